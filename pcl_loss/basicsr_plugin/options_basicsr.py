"""Kinds and ranges of what BasicSR reads, as types: of its installed package, and of its own classes alone.

A class of another codebase, or a `basicsr` folder of its own, may take what these refuse: it is judged by being built,
in `options_build`.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import basicsr
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .options_loading import Options, OptionsError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
Kinds = dict[str, Any]
Keys = dict[str, Any]
Names = dict[str, str | None] | None
# Whole floats such as 5e3 are the integers that they mean.
Int = Annotated[int, BeforeValidator(lambda x: int(x) if isinstance(x, float) and x.is_integer() else x)]
Count = Annotated[Int, Field(ge=1, le=10**9)]
Natural = Annotated[Int, Field(ge=0, le=10**9)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Folder = Annotated[str, Field(pattern=r"^[^/\\]*[^./\\][^/\\]*$", max_length=199)]

FILE: Kinds = {
    "name": Folder,
    "model_type": Text,
    "num_gpu": Literal["auto"] | Natural,
    "datasets": dict[str, Keys],
    **dict.fromkeys(("path", "train", "logger", "network_g"), Keys),
    **dict.fromkeys(("val", "network_d"), Keys | None),
    "scale": Annotated[Int, Field(ge=1, le=64)],
    "manual_seed": Annotated[Int, Field(ge=0, lt=2**31)] | None,
}
ROOTS = ("resume_state", "ignore_resume_networks", "experiments_root", "results_root", "log", "visualization")
PATH: Kinds = {"pretrain_network": Text | None, "strict_load": bool | None, "param_key": Text | None}
LOGGER: Kinds = {
    "print_freq": Count,
    "save_checkpoint_freq": Count,
    "use_tb_logger": bool,
    "wandb": Names,
}
VAL: Kinds = {"val_freq": Count, "save_img": bool}
DATASET: Kinds = {
    "name": Folder,
    "type": Text,
    **dict.fromkeys(("batch_size_per_gpu", "dataset_enlarge_ratio"), Count),
    "num_worker_per_gpu": Annotated[Int, Field(ge=0, le=512)],
    "prefetch_mode": Literal["cpu", "cuda"] | None,
}
PAIRED: Kinds = {
    **DATASET,
    **dict.fromkeys(("dataroot_gt", "dataroot_lq"), Text),
    "io_backend": Keys,
    "filename_tmpl": Text,
    "gt_size": Count,
    **dict.fromkeys(("use_hflip", "use_rot"), bool),
    "color": Literal["y", "rgb"] | None,
}
COURSE: Kinds = {"total_iter": Count, "warmup_iter": Annotated[Int, Field(ge=-1)]}
TRAIN: Kinds = {
    **COURSE,
    **dict.fromkeys(("optim_g", "scheduler"), Keys),
    **dict.fromkeys(
        ("optim_d", "pixel_opt", "perceptual_opt", "gan_opt", "ldl_opt", "pcl_opt", "cld_opt"), Keys | None
    ),
    "ema_decay": Share,
}
# Of optimizers, schedulers, losses, metrics and what embeds: beyond these the numbers of float32, or the memory of any
# machine, come to an end, or a value would be taken for another. The classes themselves check the rest.
CLASSES: Kinds = {
    "type": Text,
    "lr": Annotated[float, Field(gt=0, le=10)],
    "betas": Annotated[list[Share], Field(min_length=2, max_length=2)],
    "maximize": Literal[False],
    "periods": list[Count],
    **dict.fromkeys(("eta_min", "weight_decay"), Annotated[float, Field(ge=0, le=10)]),
    **dict.fromkeys(("loss_weight", "perceptual_weight", "style_weight"), Annotated[float, Field(ge=0, le=1e6)]),
    "temperature": Annotated[float, Field(ge=1e-4, le=1e4)],
    **dict.fromkeys(("num_positives", "num_negatives"), Annotated[Int, Field(ge=0, le=256)]),
    "num_feat": Annotated[Int, Field(ge=1, le=1024)],
    **dict.fromkeys(("num_layers", "chunk_size", "num_in_ch", "update_every"), Int | None),
    "layer_weights": dict[str, float],
    "criterion": Literal["l1", "l2", "fro"],
    "reduction": Literal["mean", "sum"],  # with "none" a loss is no number that could be minimised
    "crop_border": Natural,
    "input_order": Literal["HWC"],  # what BasicSR's models hand over
    "test_y_channel": bool,
    "better": Literal["higher", "lower"],
    "convert_to": Literal["y", "gray"],
    "net": Literal["alex", "vgg", "squeeze"],
}


def is_own(entry: Any) -> bool:
    """Whether a registered class or function is that of an installed BasicSR, or ours."""
    is_installed = {"site-packages", "dist-packages"} & set(Path(basicsr.__path__[0]).parts)
    return bool(is_installed) and getattr(entry, "__module__", "").split(".")[0] in ("basicsr", "pcl_loss")


def entry_of(registry: Any, block: Any) -> Any:
    """What a registry has under a name, or under a block's type; None if nothing."""
    name = block.get("type") if isinstance(block, dict) else block
    return next((entry for key, entry in registry if key in (name, f"{name}_basicsr")), None)


def nearest(word: Any, known: Iterable[str], likeness: float = 0.85) -> str | None:
    """The known word that `word` is a slip of."""
    return next(iter(difflib.get_close_matches(str(word), known, 1, likeness)), None)


def shown(value: Any) -> str:
    """A value for a message of one line; a number that YAML reads as text comes with the way to write it."""
    text = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*(e[-+]?\d+)?", value, re.IGNORECASE)
    return f"{text} (in YAML write 1.0e-4, not 1e-4, and no quotes: those are text)" if is_number else text


def check(where: str, block: Any, kinds: Kinds, required: Iterable[str] = (), is_whole: bool = False) -> None:
    """Check the values in a block, and make whole floats such as 5e3 integers where they are counts; other keys than
    those in `kinds` pass, with a warning where one is a slip and `kinds` names all there are (`is_whole`).

    Raises:
        OptionsError: it is no block, a `required` key is missing, or a value is of another kind or out of range.
    """
    if not isinstance(block, dict):
        raise OptionsError(f"{where or 'the option file'} must be a block of keys, got {shown(block)}")
    for key in required:
        if key not in block:
            raise OptionsError(f"{where}.{key} is missing".lstrip("."))
    for key, value in block.items():
        name = f"{where}.{key}".lstrip(".")
        if key in kinds:
            try:
                block[key] = TypeAdapter(kinds[key], config=STRICT).validate_python(value)
            except ValidationError as error:
                wanted = dict.fromkeys(re.sub("^(Input|Value error,) ", "", part["msg"]) for part in error.errors())
                raise OptionsError(f"{name} {', or '.join(wanted)}, got {shown(value)}") from error
        elif is_whole and (meant := nearest(key, kinds)) and os.environ.get("RANK", "0") == "0":
            print(f"[pcl_loss] nobody reads {name}; did you mean {meant}?", file=sys.stderr)


def check_kinds(opt: Options, is_train: bool) -> None:
    """Check the values of BasicSR's own keys, before its `parse_options` reads them.

    Raises:
        OptionsError: a key is missing, or a value is of another kind or out of range.
    """
    check("", opt, FILE, ["name", "model_type", "num_gpu", "datasets", "path"])
    check("", opt, FILE, ["train", "logger"] if is_train else ["val"])
    check("datasets", opt["datasets"], {}, ["train"] if is_train else [])
    model, train, val = entry_of(MODEL_REGISTRY, opt["model_type"]), opt.get("train") or {}, opt.get("val")
    _check_path(opt, model)
    if not is_own(MODEL_REGISTRY):
        return
    if is_train:
        check("train", train, COURSE, ["total_iter"])
        check("logger", opt["logger"], LOGGER, ["print_freq", "save_checkpoint_freq"], is_whole=True)
    if val is not None or not is_train:
        check("val", val, VAL, ["save_img", "val_freq"] if is_train else ["save_img"], is_whole=is_own(model))
    for phase, dataset in opt["datasets"].items():
        kinds = PAIRED if is_own(entry_of(DATASET_REGISTRY, dataset)) and "Paired" in dataset["type"] else DATASET
        loader = ["batch_size_per_gpu", "num_worker_per_gpu"] if phase == "train" else []
        check(f"datasets.{phase}", dataset, kinds, ["name", "type", *loader], is_whole=kinds is PAIRED)
    if not is_own(model):
        return
    check("", opt, FILE, ["network_g"], is_whole=True)
    check("val", val or {}, {"metrics": dict[str, Keys] | None})
    blocks = {f"train.{key}": block for key, block in train.items() if is_own(entry_of(LOSS_REGISTRY, block))}
    if is_train:
        check("train", train, TRAIN, ["optim_g", "scheduler"], is_whole=True)
        blocks |= {f"train.{key}": train[key] for key in ("optim_g", "optim_d", "scheduler") if train.get(key)}
    for name, block in ((val or {}).get("metrics") or {}).items():
        if "type" not in block or is_own(entry_of(METRIC_REGISTRY, block)):
            blocks[f"val.metrics.{name}"] = block
    for where, block in blocks.items():
        check(where, block, CLASSES, ["type", "lr"] if "optim" in where else ["type"])


def _check_path(opt: Options, model: Any) -> None:
    """Refuse a key that nobody reads: BasicSR makes a folder of it, or trains from scratch without a word."""
    labels = {key.removeprefix("network_") for key in opt if str(key).startswith("network_")} | {"g", "d"}
    known = [*ROOTS, *(f"{key}_{label}" for key in PATH for label in labels)]
    for key, value in opt["path"].items():
        kind = next((kind for name, kind in PATH.items() if str(key).startswith(f"{name}_")), None)
        if key in known or (kind is not None and not is_own(model)):
            check("path", {key: value}, {key: kind or Any})
        elif is_own(model) or not any(
            str(key) in inspect.getsource(sys.modules[cls.__module__]) for cls in getattr(model, "__mro__", [])[:-1]
        ):
            meant = nearest(str(key).replace("model", "network"), known)
            raise OptionsError(f"nobody reads path.{key}, which is {shown(value)}; write {meant or known}, or drop it")
