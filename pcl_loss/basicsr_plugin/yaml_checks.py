"""What a YAML says of PCL: its defaults, and what is refused before anything is written."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .._checks import check_count, check_keys, check_positive
from .._datasets import DATASETS, expected_layout
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding, VGGEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from .bad_steps import DEFAULT_MAX_BAD_STEPS

Options = dict[str, Any]

# Flat keys under `train:`, as BasicSR's own `net_d_iters`: those of the models with PCL, and those of SpeedMixin.
PCL_KEYS = ("pcl_opt", "pcl_start_iter", "pcl_every", "pcl_grad_ratio", "cld_opt", "optim_d", "net_d_frozen")
SPEED_KEYS = ("amp", "channels_last", "compile")
# What BasicSR's own models are built as where one of the latter is set.
SPEED_TWINS = {"SRModel": "SpeedSRModel", "SwinIRModel": "SpeedSwinIRModel"}
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OptionsError(ValueError):
    """A YAML asks for what cannot be; the message names the line and the fix."""


def complete_options(opt: Options, *, is_pcl_model: bool) -> None:
    """Check what a training YAML says of PCL, and write the defaults of `network_d`, `optim_d` and `cld_opt` into it.

    The defaults must stand there before BasicSR looks for what to resume: it resumes the networks whose `network_*`
    key it sees, so that E_D would otherwise be silently new after a resume. Running it again changes nothing.

    BasicSR's own `SRModel` and `SwinIRModel` know nothing of `amp`, `channels_last`, `compile` and `max_bad_steps`:
    with one of them, or with a `PCLPerceptualLoss`, `model_type` becomes that of their twin which does.

    Args:
        opt: BasicSR's options; changed in place.
        is_pcl_model: whether `model_type` is a model that uses `train.pcl_opt`.

    Raises:
        OptionsError: `pcl_opt` under a model that would ignore it, a PCL model without `pcl_opt`, an unknown key, or
            a value that the loss or E_D refuses.
    """
    train = opt.get("train")
    if train is None:
        return
    model_type = opt.get("model_type")
    if not is_pcl_model:
        _refuse_ignored_keys(model_type, train)
        if model_type in SPEED_TWINS and _wants_twin(train):
            complete_speed(train)
            opt["model_type"] = SPEED_TWINS[model_type]
        return
    if train.get("pcl_opt") is None:
        raise OptionsError(
            f"`model_type: {model_type}` needs train.pcl_opt, for example "
            "`pcl_opt: {type: PCLLoss, loss_weight: 1.0}`"
        )
    complete_speed(train)
    try:
        _complete(opt, train)
    except (TypeError, ValueError) as error:
        raise OptionsError(str(error)) from error


def complete_speed(train: Options) -> None:
    """Check `amp`, `channels_last`, `compile` and `max_bad_steps`, and write their defaults: None, False, None and
    100. Running it again changes nothing.

    Args:
        train: the block `train:` of BasicSR's options; changed in place.

    Raises:
        OptionsError: a value that there is not.
    """
    try:
        _check_speed(train)
    except (TypeError, ValueError) as error:
        raise OptionsError(str(error)) from error


def _wants_twin(train: Options) -> bool:
    perceptual = train.get("perceptual_opt")
    # The contrastive term carries a number that is not finite into every weight: only the twins leave such a step out.
    has_pcl = isinstance(perceptual, dict) and perceptual.get("type") == "PCLPerceptualLoss"
    return has_pcl or any(train.get(key) not in (None, False) for key in (*SPEED_KEYS, "max_bad_steps"))


def _refuse_ignored_keys(model_type: str | None, train: Options) -> None:
    # Other models than BasicSR's own two and their twins may well read a `cld_opt` of theirs.
    ours = PCL_KEYS if model_type in (*SPEED_TWINS, *SPEED_TWINS.values()) else ("pcl_opt",)
    for key in ours:
        if train.get(key):
            raise OptionsError(
                f"`model_type: {model_type}` ignores train.{key} and would train without it; change that line to "
                f"`model_type: {_pcl_twin(model_type)}`, or delete {key}"
            )


def check_files(opt: Options) -> None:
    """Refuse data folders and pre-trained networks that are not there, before BasicSR writes anything.

    Args:
        opt: BasicSR's options.

    Raises:
        OptionsError: one is missing; for a data set that our option files name, the message says where it is published
            and which folders are expected.
    """
    for phase, dataset in opt.get("datasets", {}).items():
        for key in ("dataroot_gt", "dataroot_lq"):
            for folder in _paths(dataset.get(key)):
                if os.path.exists(folder):
                    continue
                name = str(dataset.get("name"))
                hint = f" {expected_layout(name)}." if name in DATASETS else ""
                raise OptionsError(
                    f"datasets.{phase}.{key}: there is no {folder} (seen from {os.getcwd()}); change the path, or put "
                    f"the data there.{hint}"
                )
    for key, path in opt.get("path", {}).items():
        if key.startswith("pretrain_network") and path is not None and not os.path.exists(path):
            raise OptionsError(
                f"path.{key}: there is no {path} (seen from {os.getcwd()}); change the path, or set it to ~"
            )


def _paths(value: str | Sequence[str] | None) -> Sequence[str]:
    """Those that a key names: none, one, or, where a data set reads several folders, a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _complete(opt: Options, train: Options) -> None:
    check_keys("train", [key for key in train if key.startswith(("pcl_", "cld_", "net_d_"))], PCL_KEYS)
    train.setdefault("pcl_start_iter", 0)
    check_count("train.pcl_start_iter", train["pcl_start_iter"], 0)
    frozen = train.setdefault("net_d_frozen", False)
    _check_switch("train.net_d_frozen", frozen)
    check_count("train.pcl_every", train.setdefault("pcl_every", 1), 1)
    _check_grad_ratio(train)
    _check_preview(opt)

    _set_default(train["pcl_opt"], "type", "PCLLoss")
    # The model seeds the samples of every iteration from manual_seed: a seed here would have no effect.
    _check_block("train.pcl_opt", train["pcl_opt"], PCLLoss, without=("seed",))
    if train["pcl_opt"].get("recipe") == "light" and _has_no_discriminator(opt, train):
        return
    _set_block(train, "cld_opt", {"type": "ContrastiveDiscriminatorLoss"})
    _check_block("train.cld_opt", train["cld_opt"], ContrastiveDiscriminatorLoss)

    _set_block(opt, "network_d", {"type": "WaveletDiscriminator", "num_in_ch": num_sr_channels(opt), "num_feat": 64})
    _set_default(opt["network_d"], "type", "WaveletDiscriminator")
    if opt["network_d"]["type"] == "VGGEmbedding":
        _check_keywords("network_d", opt["network_d"], VGGEmbedding)
    if opt["network_d"]["type"] == "FixedEmbedding":
        _check_block("network_d", opt["network_d"], FixedEmbedding)
    if opt["network_d"]["type"] == "WaveletDiscriminator":
        _check_block("network_d", opt["network_d"], WaveletDiscriminator)
        if frozen and not opt["path"].get("pretrain_network_d"):
            raise ValueError(
                "train.net_d_frozen: true needs a trained E_D; set path.pretrain_network_d to a net_d_*.pth, "
                "or drop net_d_frozen"
            )
    # Read before BasicSR's setup takes the optimizer's type out of its block.
    lr = train["optim_g"]["lr"]
    _set_block(train, "optim_d", {"type": "Adam", "lr": lr, "weight_decay": 0, "betas": [0.9, 0.999]})
    if train["optim_d"].get("foreach") or not train["optim_d"].get("fused", True):
        raise ValueError("train.optim_d must be fused, to skip a batch that is not finite; drop foreach and fused")


def num_sr_channels(opt: Options) -> int:
    """The channels of the SR images, as `network_g` says."""
    num_ch: int = opt["network_g"].get("num_out_ch", 3)
    return num_ch


def _has_no_discriminator(opt: Options, train: Options) -> bool:
    """Whether the light recipe has its own embedding; refuses what would then be left unread."""
    network_d = opt.get("network_d")
    if isinstance(network_d, dict) and network_d.get("type") in (None, "WaveletDiscriminator"):
        raise ValueError(
            "train.pcl_opt.recipe: light has an embedding of its own and trains no discriminator; drop the block "
            f"network_d ({{type: {network_d.get('type')}, ...}}), or take recipe: paper"
        )
    if network_d is not None:
        return False
    for key in ("optim_d", "cld_opt", "net_d_frozen"):
        if train.get(key):
            raise ValueError(
                f"train.pcl_opt.recipe: light trains no discriminator; drop train.{key}, or take recipe: paper"
            )
    return True


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false, got {value!r}")


def _check_grad_ratio(train: Options) -> None:
    ratio = train.setdefault("pcl_grad_ratio", None)
    if ratio is None:
        return
    check_positive("train.pcl_grad_ratio", ratio)
    if isinstance(train["pcl_opt"], dict) and "loss_weight" in train["pcl_opt"]:
        raise ValueError(
            "train.pcl_grad_ratio weighs the contrastive loss in place of pcl_opt.loss_weight; drop one of the two"
        )
    if not train.get("pixel_opt"):
        raise ValueError(
            "train.pcl_grad_ratio holds the contrastive loss against the pixel loss; set train.pixel_opt, or use "
            "pcl_opt.loss_weight"
        )


def _check_speed(train: Options) -> None:
    check_count("train.max_bad_steps", train.setdefault("max_bad_steps", DEFAULT_MAX_BAD_STEPS), 1)
    amp = train.setdefault("amp", None)
    if amp is not None and amp not in list(AMP_DTYPES):
        raise ValueError(f"train.amp must be one of {list(AMP_DTYPES)}, or left out for float32, got {amp!r}")
    _check_switch("train.channels_last", train.setdefault("channels_last", False))
    keywords = train.setdefault("compile", None)
    if isinstance(keywords, bool):
        # From here on a block of keywords, or None.
        train["compile"] = {} if keywords else None
    elif isinstance(keywords, dict):
        allowed = [key for key in inspect.signature(torch.compile).parameters if key != "model"]
        check_keys("train.compile", keywords, allowed)
    elif keywords is not None:
        raise TypeError(
            f"train.compile must be true, false, or a block of torch.compile's keywords such as "
            f"{{mode: max-autotune}}, got {keywords!r}"
        )


def _check_block(
    name: str, block: Mapping[str, Any], constructor: Callable[..., Any], without: tuple[str, ...] = ()
) -> None:
    """Refuse keys that are no keyword of the constructor, and values that it refuses."""
    if block["type"] != constructor.__name__:
        raise ValueError(f"{name}.type must be {constructor.__name__}, got {block['type']}")
    _check_keywords(name, block, constructor, without)
    try:
        # Built for its checks alone: without storage, and without taking from the run's random numbers.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            constructor(**{key: value for key, value in block.items() if key != "type"})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _check_keywords(
    name: str, block: Mapping[str, Any], constructor: Callable[..., Any], without: tuple[str, ...] = ()
) -> None:
    keywords = [key for key in inspect.signature(constructor).parameters if key not in without]
    check_keys(name, block, ["type", *keywords])


def _set_block(parent: Options, key: str, default: Options) -> None:
    # `optim_d: ~` in a YAML means the same as leaving it out.
    if parent.get(key) is None:
        parent[key] = default
    if not isinstance(parent[key], dict):
        raise TypeError(f"{key} must be a block of keys, got {parent[key]!r}")


def _set_default(block: Options, key: str, default: Any) -> None:
    if not isinstance(block, dict):
        raise TypeError(f"expected a block of keys such as {{type: {default}}}, got {block!r}")
    block.setdefault(key, default)


def _pcl_twin(model_type: str | None) -> str:
    return "PCLSwinIRModel" if model_type in ("SwinIRModel", SPEED_TWINS["SwinIRModel"]) else "PCLModel"


def _check_preview(opt: Options) -> None:
    """Refuse a preview that could not be drawn or would go nowhere, now and not at the first validation."""
    val = opt.get("val") or {}
    check_keys("val", [key for key in val if key.startswith("pcl_")], ("pcl_preview",))
    preview = val.get("pcl_preview", False)
    _check_switch("val.pcl_preview", preview)
    if not preview:
        return
    if not (opt.get("logger") or {}).get("use_tb_logger"):
        raise ValueError(
            "val.pcl_preview: true draws into TensorBoard, which is off; set logger.use_tb_logger: true, or drop "
            "pcl_preview"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("val.pcl_preview: true needs matplotlib: pip install 'pcl_loss[plots]', or drop pcl_preview")
