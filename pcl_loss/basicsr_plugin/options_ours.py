"""What an option file says of PCL: its defaults, and what is refused before anything is written."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from .._checks import check_keys
from ..criterion import PCLCriterion, PCLPerceptualLoss
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from .options_basicsr import KINDS, Count, Int, Keys, Kinds, Natural, check, nearest
from .options_loading import Options, OptionsError, named

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Of BasicSR's own models, the one that reads the keys of `SpeedMixin`.
SPEED_TWINS = {"SRModel": "SpeedSRModel", "SwinIRModel": "SpeedSwinIRModel"}
# Flat keys under `train:`, as BasicSR's own `net_d_iters`: of every model of ours, and of those with PCL.
SPEED_DEFAULTS = {"amp": None, "channels_last": False, "compile": None, "max_bad_steps": 100}
SPEED_KINDS: Kinds = {
    "amp": Literal["bf16", "fp16"] | None,
    "channels_last": bool,
    "compile": bool | Keys | None,
    "max_bad_steps": Count,
}
PCL_DEFAULTS = {"pcl_start_iter": 0, "pcl_every": 1, "pcl_grad_ratio": None, "net_d_frozen": False}
PCL_KINDS: Kinds = {
    **dict.fromkeys(("pcl_opt", "cld_opt", "optim_d"), Keys | None),  # whose model need not be BasicSR's own
    "pcl_start_iter": Natural,
    "pcl_every": Count,
    "pcl_grad_ratio": Annotated[float, Field(gt=0, le=1e4)] | None,
    "net_d_frozen": bool,
}
SLOT = ("PCLPerceptualLoss", "PerceptualLossWithPCL")
HOMES = {"PCLLoss": "pcl_opt", "ContrastiveDiscriminatorLoss": "cld_opt", **dict.fromkeys(SLOT, "perceptual_opt")}


def complete_options(opt: Options, *, is_pcl_model: bool) -> None:
    """Check what a training YAML says of PCL, and write the defaults of `network_d`, `optim_d` and `cld_opt` into it;
    twice is harmless. `is_pcl_model` says whether its `model_type` uses `train.pcl_opt`.

    BasicSR resumes the networks whose `network_*` key it sees: without the defaults E_D would silently be a new one.
    Raises OptionsError at a key that `model_type` would ignore, needs or does not know, or a value that cannot be.
    """
    train, model_type = opt.get("train"), opt.get("model_type")
    if train is None:
        return
    for key, block in train.items():
        home = HOMES.get(str(block.get("type")), key) if isinstance(block, dict) else key
        _refuse(home != key, f"train.{key}: {block} belongs into train.{home}; move it, or take another loss")
    if isinstance(train.get("perceptual_opt"), dict) and train["perceptual_opt"].get("type") in SLOT:
        _check_perceptual_loss(opt, train)
    if is_pcl_model:
        _complete_pcl(opt, train)
        return
    ignored = [*PCL_KINDS] if model_type in SPEED_TWINS.values() else ["pcl_opt"]
    if model_type in SPEED_TWINS:  # another model may well read a `cld_opt` or an `amp` of its own
        ignored = [*PCL_KINDS, "amp", "channels_last", "compile"]
    for key in ignored:
        twin = SPEED_TWINS[str(model_type)] if key in SPEED_KINDS else "PCLModel (or PCLSwinIRModel)"
        _refuse(train.get(key), f"`model_type: {model_type}` ignores train.{key}; take {twin}, or delete {key}")
    if model_type in SPEED_TWINS.values():
        _refuse_slips(train, SPEED_KINDS)
        complete_speed(train)


def complete_speed(train: Options) -> None:
    """Check `amp`, `channels_last`, `compile` and `max_bad_steps`, and write their defaults; raises OptionsError."""
    check("train", train, SPEED_KINDS)
    train |= SPEED_DEFAULTS | train
    if isinstance(train["compile"], bool):
        train["compile"] = {} if train["compile"] else None
    if train["compile"]:
        with named("train.compile"):
            torch.compile(torch.nn.Identity(), **train["compile"])


def num_sr_channels(opt: Options) -> int:
    """The channels of the SR images, as `network_g` says."""
    return int(opt["network_g"].get("num_out_ch", opt["network_g"].get("in_chans", 3)))


def _refuse(is_broken: Any, message: str) -> None:
    if is_broken:
        raise OptionsError(message)


def _refuse_slips(train: Options, kinds: Kinds) -> None:
    """Refuse a key under `train:` that is the slip of one of ours."""
    for key in train.keys() - kinds.keys() - KINDS.keys():
        meant = nearest(key, [*kinds, *KINDS])
        is_ours = meant in kinds or str(key).startswith(("pcl_", "cld_"))
        _refuse(is_ours, f"unknown key 'train.{key}'; did you mean {meant or list(kinds)}?")


def _check_perceptual_loss(opt: Options, train: Options) -> None:
    where, block, scale = "train.perceptual_opt", train["perceptual_opt"], opt.get("scale")
    _refuse(train.get("pcl_opt"), f"{where} and train.pcl_opt are the same loss twice; drop one of the two")
    train.setdefault("max_bad_steps", SPEED_DEFAULTS["max_bad_steps"])
    check("train", train, {"max_bad_steps": Count})
    if block["type"] == "PerceptualLossWithPCL":
        where, block = f"{where}.pcl", block.get("pcl")
        check(where, block, {})
        _refuse("loss_weight" in block, "train.perceptual_opt.grad_ratio is in place of pcl.loss_weight; drop that")
    loss = _build(where, block, PCLPerceptualLoss)
    _check_range(where, loss.pcl, opt)
    _refuse(loss.scale and scale and loss.scale != scale, f"{where}.scale is {loss.scale}, but scale is {scale}")


def _complete_pcl(opt: Options, train: Options) -> None:
    model = f"`model_type: {opt.get('model_type')}`"
    for key in ("gan_opt", "ldl_opt", "feature_matching_opt"):
        _refuse(train.get(key), f"{model} ignores train.{key} and would train without it; drop it")
    for key in train.keys() & inspect.signature(PCLLoss).parameters.keys():
        raise OptionsError(f"train.{key} is read by nobody; {key} belongs into train.pcl_opt")
    _refuse_slips(train, SPEED_KINDS | PCL_KINDS)
    check("train", train, PCL_KINDS)
    complete_speed(train)
    train |= PCL_DEFAULTS | train
    block, ratio = train.get("pcl_opt") or {}, train["pcl_grad_ratio"]
    _refuse(not block, f"{model} needs train.pcl_opt, for example `pcl_opt: {{type: PCLLoss, loss_weight: 1.0}}`")
    block.setdefault("type", "PCLLoss")
    _refuse(ratio and "loss_weight" in block, "train.pcl_grad_ratio is in place of pcl_opt.loss_weight; drop one")
    _refuse(ratio and not train.get("pixel_opt"), "train.pcl_grad_ratio is against the pixel loss; set train.pixel_opt")
    val, logger = opt.get("val") or {}, opt.get("logger") or {}
    for key in val.keys() - {"pcl_preview"}:
        _refuse(nearest(key, ["pcl_preview"]), f"unknown key 'val.{key}'; did you mean 'pcl_preview'?")
    check("val", val, {"pcl_preview": bool})
    is_shown = logger.get("use_tb_logger") and importlib.util.find_spec("matplotlib")
    fix = "set logger.use_tb_logger: true and pip install 'pcl_loss[plots]', or drop it"
    _refuse(val.get("pcl_preview") and not is_shown, f"val.pcl_preview draws into TensorBoard with matplotlib; {fix}")
    # The model seeds the samples of every iteration from manual_seed: a seed here would have no effect.
    pcl = _build("train.pcl_opt", block, PCLLoss, seed=0)
    _check_range("train.pcl_opt", pcl, opt)
    network_d, num_ch = opt.get("network_d"), num_sr_channels(opt)
    check("network_d", network_d or {}, {"type": str, "num_in_ch": Int})
    kind = (network_d or {}).get("type", "WaveletDiscriminator")
    if pcl.recipe == "light" and kind == "WaveletDiscriminator":
        left = [f"train.{key}" for key in ("optim_d", "cld_opt", "net_d_frozen") if train.get(key)]
        left += ["the block network_d"] if network_d else []
        _refuse(left, f"train.pcl_opt.recipe: light trains no discriminator; drop {', '.join(left)}, or take paper")
        return
    adam = {"type": "Adam", "lr": train["optim_g"]["lr"], "weight_decay": 0, "betas": [0.9, 0.999]}
    train["cld_opt"] = train.get("cld_opt") or {"type": "ContrastiveDiscriminatorLoss"}
    train["optim_d"] = train.get("optim_d") or adam
    opt["network_d"] = network_d or {"num_in_ch": num_ch, "num_feat": 64}
    opt["network_d"].setdefault("type", kind)
    _build("train.cld_opt", train["cld_opt"], ContrastiveDiscriminatorLoss)
    for embedding in (WaveletDiscriminator, FixedEmbedding):
        if kind == embedding.__name__:
            num_in_ch = opt["network_d"].setdefault("num_in_ch", num_ch)
            _refuse(num_in_ch != num_ch, f"network_d.num_in_ch is {num_in_ch}, but network_g makes {num_ch}; drop it")
            _build("network_d", opt["network_d"], embedding)
    is_new = kind == "WaveletDiscriminator" and not opt["path"].get("pretrain_network_d")
    is_fused = train["optim_d"].get("fused", True) and not train["optim_d"].get("foreach")
    _refuse(train["net_d_frozen"] and is_new, "train.net_d_frozen needs a trained E_D: set path.pretrain_network_d")
    _refuse(not is_fused, "train.optim_d must be fused, to skip a batch that is not finite; drop foreach and fused")


def _build(where: str, block: Options, constructor: Any, **given: Any) -> Any:
    """What a class makes of a block, for its checks alone; `given` are keywords that the block must not have."""
    name, found = constructor.__name__, block.get("type")
    _refuse(found != name, f"{where}.type must be {name}, got {found!r}" if found else f"{where}.type is missing")
    check(where, block, KINDS)
    classes = (constructor, PCLCriterion, PCLLoss) if constructor is PCLPerceptualLoss else (constructor,)
    known = [key for cls in classes for key in inspect.signature(cls).parameters if key not in ("keywords", "pcl")]
    keywords = {key: value for key, value in block.items() if key != "type"}
    # Without storage, and without taking from the run's random numbers.
    with named(where), torch.random.fork_rng(devices=[]), torch.device("meta"):
        check_keys(where, keywords, [key for key in known if key not in given])
        return constructor(**keywords, **given)


def _check_range(where: str, pcl: PCLLoss, opt: Options) -> None:
    data = opt.get("datasets", {}).get("train", {})
    _refuse(pcl.data_range != 1, f"{where}.data_range must be 1.0, as BasicSR's images are in 0-1; drop data_range")
    is_shifted = data.get("mean") or data.get("std")
    _refuse(is_shifted, f"datasets.train: mean and std take the images out of 0-1, which {where} needs; drop them")
