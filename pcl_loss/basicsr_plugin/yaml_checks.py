"""What a YAML says of PCL: its defaults, and what is refused before anything is written."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .._checks import MIN_SIZE, check_count, check_keys, check_positive
from ..criterion import PCLCriterion, PCLPerceptualLoss
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding, VGGEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from .bad_steps import DEFAULT_MAX_BAD_STEPS
from .yaml_values import Options, OptionsError, list_of, number, whole

# Flat keys under `train:`, as BasicSR's own `net_d_iters`: those of the models with PCL, and those of SpeedMixin.
PCL_KEYS = ("pcl_opt", "pcl_start_iter", "pcl_every", "pcl_grad_ratio", "cld_opt", "optim_d", "net_d_frozen")
SPEED_KEYS = ("amp", "channels_last", "compile")
# What BasicSR's own models are built as where one of the latter is set.
SPEED_TWINS = {"SRModel": "SpeedSRModel", "SwinIRModel": "SpeedSwinIRModel"}
STOCK_MODELS = (*SPEED_TWINS, *SPEED_TWINS.values())
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
    try:
        _check_perceptual_loss(opt, train, is_pcl_model)
    except (TypeError, ValueError) as error:
        raise OptionsError(str(error)) from error
    for key in ("gan_opt", "ldl_opt", "feature_matching_opt") if is_pcl_model or model_type in STOCK_MODELS else ():
        if train.get(key):
            raise OptionsError(f"`model_type: {model_type}` ignores train.{key} and would train without it; drop it")
    if not is_pcl_model:
        _refuse_ignored_keys(model_type, train)
        if model_type in SPEED_TWINS and any(train.get(key) not in (None, False) for key in SPEED_KEYS):
            raise OptionsError(f"`model_type: {model_type}` ignores {', '.join(SPEED_KEYS)}; set `model_type: {SPEED_TWINS[model_type]}`")
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


def _refuse_ignored_keys(model_type: str | None, train: Options) -> None:
    # Other models than BasicSR's own two and their twins may well read a `cld_opt` of theirs.
    for key in PCL_KEYS if model_type in STOCK_MODELS else ("pcl_opt",):
        if train.get(key):
            raise OptionsError(
                f"`model_type: {model_type}` ignores train.{key} and would train without it; change that line to "
                f"`model_type: {_pcl_twin(model_type)}`, or delete {key}"
            )


def _complete(opt: Options, train: Options) -> None:
    check_keys("train", [key for key in train if key.startswith(("pcl_", "cld_", "net_d_"))], PCL_KEYS)
    misplaced = sorted(train.keys() & inspect.signature(PCLLoss).parameters.keys())
    if misplaced:
        raise ValueError(f"train.{misplaced[0]} is read by nobody; {misplaced[0]} belongs into train.pcl_opt")
    train.setdefault("pcl_start_iter", 0)
    train.setdefault("pcl_every", 1)
    _whole_floats(train, ("pcl_start_iter", "pcl_every"))
    check_count("train.pcl_start_iter", train["pcl_start_iter"], 0)
    check_count("train.pcl_every", train["pcl_every"], 1)
    frozen = train.setdefault("net_d_frozen", False)
    _check_switch("train.net_d_frozen", frozen)
    _check_grad_ratio(train)
    _check_preview(opt)

    _set_default("train.pcl_opt", train["pcl_opt"], "PCLLoss")
    # The model seeds the samples of every iteration from manual_seed: a seed here would have no effect.
    pcl = _check_block("train.pcl_opt", train["pcl_opt"], PCLLoss, without=("seed",))
    _check_samples("train.pcl_opt", pcl, opt)
    if train["pcl_opt"].get("recipe") == "light" and _has_no_discriminator(opt, train):
        return
    _set_block(train, "cld_opt", {"type": "ContrastiveDiscriminatorLoss"})
    _check_block("train.cld_opt", train["cld_opt"], ContrastiveDiscriminatorLoss)

    _set_block(opt, "network_d", {"type": "WaveletDiscriminator", "num_in_ch": num_sr_channels(opt), "num_feat": 64})
    _set_default("network_d", opt["network_d"], "WaveletDiscriminator")
    _check_embedding(opt["network_d"], pcl, num_sr_channels(opt))
    is_e_d = opt["network_d"]["type"] == "WaveletDiscriminator"
    if frozen and is_e_d and not opt["path"].get("pretrain_network_d"):
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
    network: Options = opt["network_g"]
    num_ch: int = network["num_out_ch"] if "num_out_ch" in network else network.get("in_chans", 3)
    return num_ch


def _check_embedding(block: Options, pcl: PCLLoss, num_ch: int) -> None:
    """Check the block `network_d`: what embeds."""
    name = block["type"]
    constructor: Any = {cls.__name__: cls for cls in (WaveletDiscriminator, FixedEmbedding, VGGEmbedding)}.get(name)
    if constructor is None:
        from basicsr.utils.registry import ARCH_REGISTRY

        constructor = ARCH_REGISTRY.get(name) if name in ARCH_REGISTRY else None
        if not hasattr(constructor, "embed"):
            raise ValueError(
                f"network_d.type must be a network with a method embed, such as WaveletDiscriminator, got {name!r}"
            )
        return
    if constructor is VGGEmbedding:  # building it may fetch its weights
        most = whole(1, 16).check("network_d.num_layers", block.get("num_layers", 4))
    else:
        embedding = _check_block("network_d", block, constructor)
        most = embedding.num_layers
        if embedding.num_in_ch != num_ch:
            raise ValueError(
                f"network_d.num_in_ch is {embedding.num_in_ch}, but the SR images of network_g have {num_ch} channels; "
                f"set num_in_ch: {num_ch}, or drop it"
            )
    if pcl.num_layers > most:
        raise ValueError(
            f"train.pcl_opt.num_layers must be at most {most}, the maps of network_d {name}, got {pcl.num_layers}"
        )


def _check_samples(where: str, pcl: PCLLoss, opt: Options) -> None:
    """Check that the training data can have the samples of a loss."""
    if pcl.data_range != 1:
        raise ValueError(
            f"{where}.data_range must be 1.0, got {pcl.data_range:g}: BasicSR's images are in 0-1, and loss_weight "
            "has the same balance against the pixel loss at any range; drop data_range"
        )
    dataset = opt.get("datasets", {}).get("train", {})
    if dataset.get("mean") is not None or dataset.get("std") is not None:
        raise ValueError(
            f"datasets.train: mean and std take the images out of 0-1, where {where} makes its samples; drop them, and "
            "let the network normalise"
        )
    gt_size, reach = dataset.get("gt_size"), math.ceil(3 * pcl.samples.blur_sigma[1])
    if gt_size is not None and gt_size < MIN_SIZE:
        raise ValueError(f"datasets.train.gt_size must be at least {MIN_SIZE} with {where}, got {gt_size}")
    if gt_size is not None and "blur" in pcl.samples.negatives and reach >= gt_size:
        raise ValueError(
            f"{where}.blur_sigma reaches {reach} pixels to each side, too far for datasets.train.gt_size {gt_size}; "
            "lower it"
        )
    if "batch" in pcl.samples.negatives and dataset.get("batch_size_per_gpu") == 1:
        raise ValueError(
            f"{where}.negatives has 'batch', the other images of the batch, but datasets.train.batch_size_per_gpu is "
            "1; raise it, or drop 'batch'"
        )


def _check_perceptual_loss(opt: Options, train: Options, is_pcl_model: bool) -> None:
    """Check `train.perceptual_opt` where it is ours."""
    block = train.get("perceptual_opt")
    if not isinstance(block, dict) or block.get("type") != "PCLPerceptualLoss":
        return
    if is_pcl_model and train.get("pcl_opt"):
        raise ValueError(
            "train.perceptual_opt: PCLPerceptualLoss and train.pcl_opt are the same loss twice; drop one of the two"
        )
    _check_max_bad_steps(train)
    where = "train.perceptual_opt"
    loss = _check_block(where, block, PCLPerceptualLoss)
    _check_samples(where, loss.pcl, opt)
    if loss.scale is not None and loss.scale != opt.get("scale", loss.scale):
        raise ValueError(f"{where}.scale is {loss.scale}, but scale is {opt['scale']}; make them the same")
    num_ch = getattr(loss.embedding, "num_in_ch", None)
    if num_ch not in (None, num_sr_channels(opt)):
        raise ValueError(
            f"{where}.num_in_ch is {num_ch}, but the SR images of network_g have {num_sr_channels(opt)} channels; set "
            f"num_in_ch: {num_sr_channels(opt)}"
        )


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
    number(0, 1e4).check("train.pcl_grad_ratio", ratio)
    if isinstance(train["pcl_opt"], dict) and "loss_weight" in train["pcl_opt"]:
        raise ValueError(
            "train.pcl_grad_ratio weighs the contrastive loss in place of pcl_opt.loss_weight; drop one of the two"
        )
    if not train.get("pixel_opt"):
        raise ValueError(
            "train.pcl_grad_ratio holds the contrastive loss against the pixel loss; set train.pixel_opt, or use "
            "pcl_opt.loss_weight"
        )


def _check_max_bad_steps(train: Options) -> None:
    check_count("train.max_bad_steps", train.setdefault("max_bad_steps", DEFAULT_MAX_BAD_STEPS), 1)


def _check_speed(train: Options) -> None:
    _check_max_bad_steps(train)
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
        try:
            torch.compile(torch.nn.Identity(), **keywords)
        except Exception as error:
            raise ValueError(f"train.compile: {' '.join(str(error).split())[:300]}") from error
    elif keywords is not None:
        raise TypeError(
            f"train.compile must be true, false, or a block of torch.compile's keywords such as "
            f"{{mode: max-autotune}}, got {keywords!r}"
        )


# Beyond these the numbers of float32, or the memory of any machine, come to their end.
BOUNDS = {
    "loss_weight": number(0, 1e6),
    "temperature": number(1e-4, 1e4),
    "num_positives": whole(0, 256),
    "num_negatives": whole(0, 256),
    "sharpness": list_of(number(0, 1e3), 2),
    "blur_sigma": list_of(number(0, 1e3), 2),
    "num_feat": whole(1, 1024),
    "lr": number(0, 10, above=True),
}
COUNTS = ("num_layers", "num_positives", "num_negatives", "chunk_size", "num_in_ch", "num_feat", "update_every", "seed")


def _check_block(name: str, block: Options, constructor: Callable[..., Any], without: tuple[str, ...] = ()) -> Any:
    """What a block's constructor makes of it; refuses keys that are no keyword of it, and values that it refuses."""
    if "type" not in block:
        raise ValueError(f"{name}.type is missing; write type: {constructor.__name__}")
    if block["type"] != constructor.__name__:
        raise ValueError(f"{name}.type must be {constructor.__name__}, got {block['type']}")
    _check_keywords(name, block, constructor, without)
    _whole_floats(block, COUNTS)
    for key in COUNTS:  # building so many would never end
        if isinstance(block.get(key), int) and block[key] > 1000:
            BOUNDS.get(key, whole(0, 2**31)).check(f"{name}.{key}", block[key])
    try:
        # Built for its checks alone: without storage, and without taking from the run's random numbers.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = constructor(**{key: value for key, value in block.items() if key != "type"})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    for key in BOUNDS.keys() & block.keys():
        if block[key] is not None:
            BOUNDS[key].check(f"{name}.{key}", block[key])
    return built


def _whole_floats(block: Options, keys: Iterable[str]) -> None:
    """Let whole floats, such as 5e3, be the integers that they mean."""
    for key in keys:
        value = block.get(key)
        if isinstance(value, float) and value.is_integer():
            block[key] = int(value)


def _check_keywords(
    name: str, block: Mapping[str, Any], constructor: Callable[..., Any], without: tuple[str, ...] = ()
) -> None:
    classes = (constructor, PCLCriterion, PCLLoss) if constructor is PCLPerceptualLoss else (constructor,)
    keywords = [key for cls in classes for key in inspect.signature(cls).parameters]
    allowed = [key for key in keywords if key not in (*without, "keywords", "pcl")]
    check_keys(name, map(str, block), ["type", *allowed])


def _set_block(parent: Options, key: str, default: Options) -> None:
    # `optim_d: ~` in a YAML means the same as leaving it out.
    if parent.get(key) is None:
        parent[key] = default
    if not isinstance(parent[key], dict):
        raise TypeError(f"{key} must be a block of keys, got {parent[key]!r}")


def _set_default(name: str, block: Options, default: str) -> None:
    if not isinstance(block, dict):
        raise TypeError(f"{name} must be a block of keys such as {{type: {default}}}, got {block!r}")
    block.setdefault("type", default)


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
