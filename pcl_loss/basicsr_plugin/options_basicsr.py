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

Kinds = dict[str, Any]
Keys = dict[str, Any]
# Whole floats such as 5e3 are the integers that they mean.
Int = Annotated[int, BeforeValidator(lambda x: int(x) if isinstance(x, float) and x.is_integer() else x)]
Count = Annotated[Int, Field(ge=1, le=10**9)]
Natural = Annotated[Int, Field(ge=0, le=10**9)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(pattern=r"\S")]
Folder = Annotated[str, Field(pattern=r"^[^/\\]*[^./\\][^/\\]*$", max_length=199)]
Wandb = dict[str, str | None] | None

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
PATH: Kinds = {"pretrain_network": Text | None, "strict_load": bool | None, "param_key": Text | None}
LOGGER: Kinds = {"print_freq": Count, "save_checkpoint_freq": Count, "use_tb_logger": bool, "wandb": Wandb}
VAL: Kinds = {"val_freq": Count, "save_img": bool, "metrics": dict[str, Keys] | None}
DATASET: Kinds = {
    "name": Folder,
    "type": Text,
    **dict.fromkeys(("batch_size_per_gpu", "dataset_enlarge_ratio"), Count),
    "num_worker_per_gpu": Annotated[Int, Field(ge=0, le=512)],
    "prefetch_mode": Literal["cpu", "cuda"] | None,
}
PAIRED: Kinds = {
    **dict.fromkeys(("dataroot_gt", "dataroot_lq"), Text),
    "io_backend": Keys,
    "filename_tmpl": Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")],
    "gt_size": Count,
    **dict.fromkeys(("use_hflip", "use_rot"), bool),
    "color": Literal["y", "rgb"] | None,
}
TRAIN: Kinds = {
    **dict.fromkeys(("optim_g", "scheduler"), Keys),
    **dict.fromkeys(("optim_d", "pixel_opt", "perceptual_opt", "gan_opt", "pcl_opt", "cld_opt"), Keys | None),
    "total_iter": Count,
    "warmup_iter": Annotated[Int, Field(ge=-1)],
    "ema_decay": Share,
}
# Of its optimizers, schedulers, losses and metrics. The classes themselves check the rest.
CLASSES: Kinds = {
    "type": Text,
    "lr": Annotated[float, Field(gt=0, le=10)],
    "betas": Annotated[list[Share], Field(min_length=2, max_length=2)],
    "maximize": Literal[False],
    "periods": list[Count],
    **dict.fromkeys(("eta_min", "weight_decay"), Annotated[float, Field(ge=0, le=10)]),
    **dict.fromkeys(("loss_weight", "perceptual_weight", "style_weight"), Factor),
    "layer_weights": dict[str, Factor],
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


def nearest(word: Any, known: Iterable[str]) -> str | None:
    """The known word that `word` is a slip of."""
    return next(iter(difflib.get_close_matches(str(word), known, 1, 0.8)), None)


def shown(value: Any) -> str:
    """A value for a message of one line; a number that YAML reads as text comes with the way to write it."""
    text = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value, re.IGNORECASE)
    return f"{text} (in YAML write 1.0e-4, not 1e-4, and no quotes: those are text)" if is_number else text


def check(where: str, block: Any, kinds: Kinds, required: Iterable[str] = (), is_whole: bool = False) -> None:
    """Check the values in a block, and make whole floats such as 5e3 integers where they are counts; other keys than
    those in `kinds` pass, with a warning where one is a slip and `kinds` names all there are (`is_whole`).

    Raises:
        OptionsError: it is no block, a `required` key is missing, or a value is of another kind or out of range.
    """
    where = where and f"{where}."
    if not isinstance(block, dict):
        raise OptionsError(f"{where[:-1] or 'the option file'} must be a block of keys, got {shown(block)}")
    if missing := [key for key in required if key not in block]:
        raise OptionsError(f"{where}{missing[0]} is missing")
    for key, value in block.items():
        if key in kinds:
            try:
                adapter = TypeAdapter(kinds[key], config=ConfigDict(strict=True, allow_inf_nan=False))
                block[key] = adapter.validate_python(value)
            except ValidationError as error:
                wanted = dict.fromkeys(part["msg"].replace("Input should", "should") for part in error.errors())
                raise OptionsError(f"{where}{key} {', or '.join(wanted)}, got {shown(value)}") from error
        elif is_whole and (meant := nearest(key, kinds)) and os.environ.get("RANK", "0") == "0":
            print(f"[pcl_loss] nobody reads {where}{key}; did you mean {meant}?", file=sys.stderr)


def check_kinds(opt: Options, is_train: bool) -> None:
    """Check the values of BasicSR's own keys, before its `parse_options` reads them.

    Raises:
        OptionsError: a key is missing, or a value is of another kind or out of range.
    """
    needed = ["name", "model_type", "num_gpu", "datasets", "path", *(["train", "logger"] if is_train else ["val"])]
    check("", opt, FILE, needed)
    check("datasets", opt["datasets"], {}, ["train"] if is_train else [])
    model, train, val = entry_of(MODEL_REGISTRY, opt["model_type"]), opt.get("train") or {}, opt.get("val")
    _check_path(opt, model)
    if not is_own(MODEL_REGISTRY):
        return
    if is_train:
        check("train", train, TRAIN, ["total_iter"])
        check("logger", opt["logger"], LOGGER, ["print_freq", "save_checkpoint_freq"], is_whole=True)
    if val is not None or not is_train:
        check("val", val, VAL, ["save_img", *(["val_freq"] if is_train else [])], is_whole=is_own(model))
    for phase, dataset in opt["datasets"].items():
        is_paired = is_own(entry_of(DATASET_REGISTRY, dataset)) and "Paired" in dataset["type"]
        loader = ["batch_size_per_gpu", "num_worker_per_gpu"] if phase == "train" else []
        check(
            f"datasets.{phase}", dataset, DATASET | (PAIRED if is_paired else {}), ["name", "type", *loader], is_paired
        )
    if not is_own(model):
        return
    check("", opt, FILE, ["network_g"], is_whole=True)
    blocks = {f"train.{key}": block for key, block in train.items() if is_own(entry_of(LOSS_REGISTRY, block))}
    if is_train:
        check("train", train, TRAIN, ["optim_g", "scheduler"], is_whole=True)
        blocks |= {f"train.{key}": train[key] for key in ("optim_g", "optim_d", "scheduler") if train.get(key)}
    metrics = ((val or {}).get("metrics") or {}).items()
    blocks |= {f"val.metrics.{name}": block for name, block in metrics if is_own(entry_of(METRIC_REGISTRY, block))}
    for where, block in blocks.items():
        check(where, block, CLASSES, ["type"])


def _check_path(opt: Options, model: Any) -> None:
    """Refuse a key that nobody reads: BasicSR makes a folder of it, or trains from scratch without a word."""
    labels = {key.removeprefix("network_") for key in opt if str(key).startswith("network_")} | {"g", "d"}
    known = [f"{key}_{label}" for key in PATH for label in sorted(labels)] + ["resume_state", "ignore_resume_networks"]
    known += ["experiments_root", "results_root", "models", "training_states", "log", "visualization"]
    modules = [sys.modules[cls.__module__] for cls in getattr(model, "__mro__", [])[:-1]]
    for key, value in opt["path"].items():
        kind = next((kind for name, kind in PATH.items() if str(key).startswith(f"{name}_")), None)
        if key in known or (kind is not None and not is_own(model)):
            check("path", {key: value}, {key: kind or Any})
        elif is_own(model) or not any(str(key) in inspect.getsource(module) for module in modules):
            meant = nearest(str(key).replace("model", "network"), known)
            raise OptionsError(f"nobody reads path.{key}, which is {shown(value)}; write {meant or known}, or drop it")
