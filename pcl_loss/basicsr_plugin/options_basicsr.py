"""Kinds and ranges of what the installed BasicSR's own classes read, as types.

A class of another codebase may take what these refuse: it is judged by being built, in `options_build`.
"""

from __future__ import annotations

import difflib
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
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Folder = Annotated[str, Field(pattern=r"^[^/\\]*[^./\\][^/\\]*$", max_length=199)]

ROOTS: Kinds = dict.fromkeys(("resume_state", "experiments_root", "results_root", "log", "visualization"), Text | None)
ROOTS["ignore_resume_networks"] = list[str] | None
PATH: Kinds = {"pretrain_network": Text | None, "strict_load": bool | None, "param_key": Text | None}
# What a key holds, whichever block it stands in. Beyond the ranges the numbers of float32, or the memory of a machine,
# come to an end, or a value would be taken for another. The classes themselves check the rest.
KINDS: Kinds = {
    "name": Folder,
    **dict.fromkeys(("model_type", "type", "dataroot_gt", "dataroot_lq", "filename_tmpl"), Text),
    "num_gpu": Literal["auto"] | Natural,
    "datasets": dict[str, Keys],
    "metrics": dict[str, Keys] | None,
    **dict.fromkeys(("path", "train", "logger", "network_g", "optim_g", "scheduler", "io_backend"), Keys),
    **dict.fromkeys(("val", "network_d", "optim_d", "pixel_opt", "perceptual_opt", "gan_opt"), Keys | None),
    **dict.fromkeys(("pcl_opt", "cld_opt"), Keys | None),
    "scale": Annotated[Int, Field(ge=1, le=64)],
    "manual_seed": Annotated[Int, Field(ge=0, lt=2**31)] | None,
    **dict.fromkeys(("print_freq", "save_checkpoint_freq", "val_freq", "total_iter"), Count),
    **dict.fromkeys(("gt_size", "batch_size_per_gpu", "dataset_enlarge_ratio"), Count),
    **dict.fromkeys(("use_tb_logger", "save_img", "use_hflip", "use_rot", "test_y_channel"), bool),
    "num_worker_per_gpu": Annotated[Int, Field(ge=0, le=512)],
    "prefetch_mode": Literal["cpu", "cuda"] | None,
    "color": Literal["y", "rgb"] | None,
    "warmup_iter": Annotated[Int, Field(ge=-1)],
    "ema_decay": Share,
    "lr": Annotated[float, Field(gt=0, le=10)],
    "betas": Annotated[list[Share], Field(min_length=2, max_length=2)],
    "periods": list[Count],
    **dict.fromkeys(("eta_min", "weight_decay"), Annotated[float, Field(ge=0, le=10)]),
    **dict.fromkeys(("loss_weight", "perceptual_weight", "style_weight"), Annotated[float, Field(ge=0, le=1e6)]),
    "temperature": Annotated[float, Field(ge=1e-4, le=1e4)],
    **dict.fromkeys(("num_positives", "num_negatives"), Annotated[Int, Field(ge=0, le=256)]),
    "num_feat": Annotated[Int, Field(ge=1, le=1024)],
    **dict.fromkeys(("num_layers", "chunk_size", "num_in_ch", "update_every"), Int | None),
    "layer_weights": dict[str, float],
    "reduction": Literal["mean", "sum"],  # with "none" a loss is no number that could be minimised
    "crop_border": Natural,
    "input_order": Literal["HWC"],  # what BasicSR's models hand over
    "better": Literal["higher", "lower"],
    "convert_to": Literal["y", "gray"],
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


def check(where: str, block: Any, kinds: Kinds, required: Iterable[str] = ()) -> None:
    """Check those values in a block that `kinds` knows, and make whole floats such as 5e3 integers where they count.
    Raises OptionsError if it is no block, lacks a `required` key, or has a value of another kind or out of range.
    """
    if not isinstance(block, dict):
        raise OptionsError(f"{where} must be a block of keys, got {shown(block)}")
    for key in required:
        if key not in block:
            raise OptionsError(f"{where}.{key} is missing".lstrip("."))
    for key in block.keys() & kinds.keys():
        try:
            block[key] = TypeAdapter(kinds[key], config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(
                block[key]
            )
        except ValidationError as error:
            wanted = dict.fromkeys(re.sub("^(Input|Value error,) ", "", part["msg"]) for part in error.errors())
            name = f"{where}.{key}".lstrip(".")
            raise OptionsError(f"{name} {', or '.join(wanted)}, got {shown(block[key])}") from error


def check_kinds(opt: Options, is_train: bool) -> None:
    """Check the values of BasicSR's own keys, before its `parse_options` reads them; raises OptionsError."""
    needed = ["name", "model_type", "num_gpu", "datasets", "path", *(["train", "logger"] if is_train else ["val"])]
    check("", opt, KINDS, needed)
    model, train, val = entry_of(MODEL_REGISTRY, opt["model_type"]), opt.get("train") or {}, opt.get("val")
    sets = {f"datasets.{phase}": dataset for phase, dataset in opt["datasets"].items()}
    own_sets = {where: dataset for where, dataset in sets.items() if is_own(entry_of(DATASET_REGISTRY, dataset))}
    for where, dataset in sets.items():
        loader = ["batch_size_per_gpu", "num_worker_per_gpu"] if where == "datasets.train" else []
        check(where, dataset, KINDS if where in own_sets else {}, ["name", "type", *loader])
    if not is_own(model):
        return
    check("", opt, {}, ["network_g"])
    check("datasets", opt["datasets"], {}, ["train"] if is_train else [])
    labels = {key.removeprefix("network_") for key in opt if str(key).startswith("network_")} | {"g", "d"}
    paths = ROOTS | {f"{key}_{label}": PATH[key] for key in PATH for label in labels}
    check("path", opt["path"], paths)
    for key in opt["path"].keys() - paths.keys():  # BasicSR would make a folder of it, or train from scratch
        meant = nearest(str(key).replace("model", "network"), paths) or list(paths)
        raise OptionsError(f"nobody reads path.{key}; write {meant}, or drop it")
    if val is not None or not is_train:
        check("val", val, KINDS, ["save_img", "val_freq"] if is_train else ["save_img"])
    blocks = {f"train.{key}": block for key, block in train.items() if is_own(entry_of(LOSS_REGISTRY, block))}
    if is_train:
        check("logger", opt["logger"], KINDS, ["print_freq", "save_checkpoint_freq"])
        check("train", train, KINDS, ["total_iter", "optim_g", "scheduler"])
        blocks |= {f"train.{key}": train[key] for key in ("optim_g", "optim_d", "scheduler") if train.get(key)}
    for name, block in ((val or {}).get("metrics") or {}).items():
        if "type" not in block or is_own(entry_of(METRIC_REGISTRY, block)):
            blocks[f"val.metrics.{name}"] = block
    for where, block in blocks.items():
        check(where, block, KINDS, ["type", "lr"] if "optim" in where else ["type"])
    if os.environ.get("RANK", "0") == "0":
        _warn_of_slips({"": opt, "train": train, "val": val or {}, "logger": opt.get("logger") or {}} | own_sets)


def _warn_of_slips(blocks: dict[str, Options]) -> None:
    """Say which keys are slips of those that BasicSR's own classes read: a run starts with them, as without PCL."""
    for where, block in blocks.items():
        for key in block.keys() - KINDS.keys():
            meant = nearest(key, KINDS, 0.87)
            if meant and not str(key).startswith("network_"):
                name = f"{where}.{key}".lstrip(".")
                print(f"[pcl_loss] nobody reads {name}; did you mean {meant}?", file=sys.stderr, flush=True)
