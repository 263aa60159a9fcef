"""The blocks whose keys are a constructor's keywords: networks, losses, optimizers, the scheduler and metrics.

Each is built once for its checks alone, networks without storage, so that what BasicSR would stumble over later is said
before it writes anything.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import FileClient
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from .._checks import check_keys, nearest
from .model import PCLMixin
from .weightless import Weightless, asks_for_storage, check_memory, memory_of
from .yaml_schema import LOSS, METRIC, NETWORK, OPTIMIZER, SCHEDULER
from .yaml_values import BLOCK, SWITCH, TEXT, Kind, Options, OptionsError, choice, number, shown, warn

LOSS_BLOCKS = ("pixel_opt", "perceptual_opt", "gan_opt", "ldl_opt", "feature_matching_opt")


def check_blocks(opt: Options) -> Options:
    """Check every such block of an option file that `check_file` has passed, for training or testing.

    Returns:
        The networks without storage by their blocks' names; None for one that cannot be had so.

    Raises:
        OptionsError: a type that nobody has registered, a keyword that the type has not, or a value that it refuses.
    """
    model = check_type("model_type", opt["model_type"], MODEL_REGISTRY)
    for phase, dataset in opt["datasets"].items():
        check_type(f"datasets.{phase}.type", dataset["type"], DATASET_REGISTRY)
        backend = dict(dataset.get("io_backend") or {"type": "lmdb"})
        if (kind := backend.pop("type")) != "lmdb":
            attempt(f"datasets.{phase}.io_backend", functools.partial(FileClient, kind, **backend))
    networks = {}
    for name in [key for key in opt if key.startswith("network_") and opt[key] is not None]:
        # A PCL model has a default for it.
        if not (name == "network_d" and issubclass(model, PCLMixin) and "type" not in opt[name]):
            networks[name] = _check_network(name, opt)
    for name, metric in ((opt.get("val") or {}).get("metrics") or {}).items():
        _check_metric(f"val.metrics.{name}", metric)
    # A file for testing may keep the block of its training.
    if "train" in opt and "train" in opt["datasets"]:
        _check_training(opt)
        losses = ("pixel_opt", "perceptual_opt", "gan_opt")
        if issubclass(model, SRModel) and not any(opt["train"].get(name) for name in losses):
            raise OptionsError("train.pixel_opt and train.perceptual_opt are both missing; set one of the two")
        if issubclass(model, SRModel) and opt["datasets"]["train"]["type"] == "PairedImageDataset":
            _check_patch(opt, networks["network_g"])
    return networks


def check_type(where: str, name: Any, registry: Any) -> Any:
    """What a registry has under a name.

    Raises:
        OptionsError: nothing.
    """
    TEXT.check(where, name)
    if name not in registry and f"{name}_basicsr" not in registry:
        known = sorted(registry.keys())
        meant = nearest(name, known)
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"
        raise OptionsError(f"{where}: there is no {name}; {hint} (a class of your own must be imported and registered)")
    return registry.get(name if name in registry else f"{name}_basicsr")


def check_keywords(
    where: str, block: Any, call: Callable[..., Any], kinds: Mapping[str, Kind], given: Iterable[str] = ()
) -> None:
    """Check that a block's keys are keywords of what is called with them, that none is missing, and their kinds.

    Args:
        where: the block's name.
        block: the block; `type` is left aside.
        call: a class or function.
        kinds: of some keywords; the others' follow from their default values.
        given: the arguments that others give.

    Raises:
        OptionsError: one is not.
    """
    parameters = inspect.signature(call).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in given
    }
    keys = [key for key in block if key != "type"]
    if not takes_any:
        try:
            check_keys(where, map(str, keys), ["type", *named])
        except ValueError as error:
            raise OptionsError(str(error)) from error
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in block:
            raise OptionsError(f"{where}.{name} is missing, which {block.get('type')} needs")
    for key in keys:
        if key in kinds:
            block[key] = kinds[key].check(f"{where}.{key}", block[key])
        elif key in named:
            block[key] = _like(key, named[key].default, block[key]).check(f"{where}.{key}", block[key])


def _like(key: str, default: Any, value: Any) -> Kind:
    """The kind that a default value lets expect: a keyword of BasicSR's networks may be a float where its default is an
    integer, such as res_scale.
    """
    if isinstance(default, bool):
        return SWITCH
    if isinstance(default, (int, float)):
        kind = number(0) if key.startswith("num_") and default >= 0 else number()
        is_whole_float = isinstance(default, int) and isinstance(value, float) and value.is_integer()
        return kind._replace(take=int) if is_whole_float else kind
    if isinstance(default, str):
        return Kind("text", lambda value: value is None or isinstance(value, str))
    if isinstance(default, (tuple, list)):
        return Kind("a list", lambda value: value is None or isinstance(value, (list, int, float)))
    return Kind("anything", lambda value: True)


def attempt(where: str, build: Callable[[], Any]) -> Any:
    """What `build` returns; whatever it raises becomes an error of one line that names the block.

    Raises:
        OptionsError: it raises.
    """
    try:
        return build()
    except Exception as error:
        raise _not_built(where, error) from error


def _build_network(where: str, opt: Options, constructor: Callable[..., Any]) -> Any:
    """The network without storage; None where it cannot be had so."""
    block = opt[where]
    # Training has gradients too, and Adam its two moments.
    copies = 4 if "train" in opt else 1
    for made in (Weightless(), Weightless("cpu", memory_of(opt)[1] / copies)):
        keywords = {key: copy.deepcopy(value) for key, value in block.items() if key != "type"}
        try:
            with torch.random.fork_rng(devices=[]), made:
                network = constructor(**keywords)
        except Exception as error:
            # A constructor may need the values of its tensors: what it raises with them counts.
            if made.device == "meta" and not isinstance(error, MemoryError):
                continue
            raise _not_built(where, error) from error
        check_memory(opt, where, copies * made.num_bytes, "its numbers of channels and blocks")
        return network if made.device == "meta" else None


def _not_built(where: str, error: Exception) -> OptionsError:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"it has no key {text}"
    return OptionsError(f"{where} cannot be built: {text[:300]}; change its values")


def _check_network(where: str, opt: Options) -> Any:
    block = opt[where]
    if "type" not in block:
        raise OptionsError(f"{where}.type is missing; it must name a network, such as EDSR")
    constructor = check_type(f"{where}.type", block["type"], ARCH_REGISTRY)
    check_keywords(where, block, constructor, NETWORK)
    # VGG, and what has a `spynet_path`, read weights while they are built.
    reads_files = block["type"] == "VGGEmbedding" or any(key.endswith("_path") for key in block)
    return None if reads_files else _build_network(where, opt, constructor)


def _check_patch(opt: Options, network: Any) -> None:
    """Push a patch of the training set's size through the SR network, without computing anything: its channels and
    factor must fit.
    """
    dataset, block, scale = opt["datasets"]["train"], opt["network_g"], opt["scale"]
    gt_size = dataset["gt_size"]
    if gt_size % scale:
        raise OptionsError(
            f"datasets.train.gt_size must be a multiple of scale, {scale}, got {gt_size}; take "
            f"{max(gt_size // scale, 1) * scale}"
        )
    channels = 1 if dataset.get("color") == "y" else 3
    # HR, SR and its gradient.
    num_bytes = 3 * 4 * dataset["batch_size_per_gpu"] * channels * gt_size**2
    check_memory(opt, "datasets.train: a batch", num_bytes, "batch_size_per_gpu or gt_size")
    for key in ("num_in_ch", "in_chans", "num_out_ch"):
        # A mean of three colours would be spread over one channel, and the network run all the same.
        if block.get(key, channels) != channels:
            raise OptionsError(
                f"network_g.{key} is {block[key]}, but the images of datasets.train have {channels} channels; set "
                f"{key}: {channels}, or datasets.train.color: y for the luma alone"
            )
    if network is None:
        return
    lq_shape, gt_shape = ((1, channels, size, size) for size in (gt_size // scale, gt_size))
    try:
        with torch.no_grad(), Weightless():
            sr = network(torch.zeros(lq_shape))
    except Exception as error:
        if asks_for_storage(error):
            return
        text = " ".join(str(error).split())
        raise OptionsError(
            f"network_g: {block['type']} cannot take LR patches of {channels} channels and {lq_shape[2]}x{lq_shape[3]} "
            f"(datasets.train.gt_size {gt_size} over scale {scale}): {text[:200]}"
        ) from error
    if isinstance(sr, torch.Tensor) and sr.shape != gt_shape:
        raise OptionsError(
            f"network_g: {block['type']} makes {tuple(sr.shape[1:])} of an LR patch {lq_shape[1:]}, but HR is "
            f"{gt_shape[1:]} at scale {scale}; change network_g's factor or channels, or scale"
        )


def _check_metric(where: str, block: Any) -> None:
    BLOCK.check(where, block)
    if "type" not in block:
        raise OptionsError(f"{where}.type is missing; it must name a metric, such as calculate_psnr")
    metric = check_type(f"{where}.type", block["type"], METRIC_REGISTRY)
    allowed = {key: value for key, value in block.items() if key != "better"}
    check_keywords(where, allowed, metric, METRIC, given=("img", "img2"))
    known = {"type", *METRIC, *inspect.signature(metric).parameters}
    if ignored := [key for key in block if key not in known]:
        # BasicSR's metrics take any keyword.
        warn(f"{block['type']} reads no key {', '.join(f'{where}.{key}' for key in ignored)}")
    for key in METRIC.keys() & block.keys():
        block[key] = METRIC[key].check(f"{where}.{key}", block[key])


def _check_training(opt: Options) -> None:
    train = opt["train"]
    for name in LOSS_BLOCKS:
        if train.get(name):
            _check_loss(f"train.{name}", train[name])
    for name in ("optim_g", "optim_d"):
        if train.get(name) is not None:
            _check_optimizer(f"train.{name}", train[name])
    _check_scheduler(train)
    if ((opt["logger"].get("wandb") or {}).get("project")) and importlib.util.find_spec("wandb") is None:
        raise OptionsError("logger.wandb.project needs the package wandb: pip install wandb, or set project to ~")


def _check_loss(where: str, block: Options) -> None:
    if "type" not in block:
        raise OptionsError(f"{where}.type is missing; it must name a loss, such as L1Loss")
    loss = check_type(f"{where}.type", block["type"], LOSS_REGISTRY)
    home = {"PCLLoss": "train.pcl_opt", "ContrastiveDiscriminatorLoss": "train.cld_opt"}
    home["PCLPerceptualLoss"] = "train.perceptual_opt"
    if home.get(block["type"], where) != where:
        raise OptionsError(f"{where}: {block['type']} belongs into {home[block['type']]}; take L1Loss here")
    if block["type"] in home:
        return  # yaml_checks knows more of it
    check_keywords(where, block, loss, LOSS)
    if block["type"] == "PerceptualLoss":
        _check_perceptual_loss(where, block)
        return
    attempt(where, lambda: loss(**{key: value for key, value in block.items() if key != "type"}))


def _check_perceptual_loss(where: str, block: Options) -> None:
    """BasicSR's own, which is not built: that would fetch VGG."""
    from basicsr.archs.vgg_arch import NAMES

    choice("l1", "l2", "fro").check(f"{where}.criterion", block.get("criterion", "l1"))
    vgg = choice(*NAMES).check(f"{where}.vgg_type", block.get("vgg_type", "vgg19"))
    BLOCK.check(f"{where}.layer_weights", block["layer_weights"])
    for layer, weight in block["layer_weights"].items():
        if layer not in NAMES[vgg]:
            known = ", ".join(NAMES[vgg])
            raise OptionsError(f"{where}.layer_weights: {vgg} has no layer {shown(layer)}; known are {known}")
        LOSS["loss_weight"].check(f"{where}.layer_weights.{layer}", weight)


def _check_optimizer(where: str, block: Options) -> None:
    if "type" not in block:
        raise OptionsError(f"{where}.type is missing; it must name an optimizer, such as Adam")
    if "lr" not in block:
        raise OptionsError(f"{where}.lr is missing; it must be {OPTIMIZER['lr'].words}")
    TEXT.check(f"{where}.type", block["type"])
    constructor = getattr(torch.optim, block["type"], None)
    if constructor is None or not (isinstance(constructor, type) and issubclass(constructor, torch.optim.Optimizer)):
        meant = nearest(block["type"], ("Adam", "AdamW", "SGD"))
        raise OptionsError(
            f"{where}.type: there is no {block['type']}" + (f"; did you mean {meant}?" if meant else "; take Adam")
        )
    check_keywords(where, block, constructor, OPTIMIZER, given=("params",))
    attempt(where, lambda: _optimizer(block).step())


def _optimizer(block: Options) -> torch.optim.Optimizer:
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    keywords = copy.deepcopy(block)
    # Older copies of BasicSR have no such method.
    build = getattr(
        BaseModel, "get_optimizer", lambda _, name, params, **kwargs: getattr(torch.optim, name)(params, **kwargs)
    )
    optimizer: torch.optim.Optimizer = build(None, keywords.pop("type"), [param], **keywords)
    return optimizer


def _check_scheduler(train: Options) -> None:
    where, block = "train.scheduler", train["scheduler"]
    if "type" not in block:
        raise OptionsError(f"{where}.type is missing; it must name a scheduler, such as MultiStepLR")
    for key in SCHEDULER.keys() & block.keys():
        block[key] = SCHEDULER[key].check(f"{where}.{key}", block[key])
    attempt(where, lambda: _schedule(copy.deepcopy(train)))
    if block.get("eta_min", 0) > (lr := train["optim_g"]["lr"]):
        raise OptionsError(f"{where}.eta_min is {block['eta_min']}, above train.optim_g.lr, {lr}; lower it")
    for key in ("warmup_iter", "pcl_start_iter"):
        if isinstance(first := train.get(key), int) and first >= train["total_iter"]:
            warn(f"train.{key} is {first}: the run ends before, at total_iter, {train['total_iter']}")
    periods = block.get("periods")
    if periods is not None and sum(periods) < train["total_iter"] - 1:
        raise OptionsError(
            f"{where}.periods ends at iteration {sum(periods)}, before train.total_iter, {train['total_iter']}; make "
            "its sum as large"
        )


def _schedule(train: Options) -> None:
    model = SimpleNamespace(opt={"train": train}, optimizers=[_optimizer(train["optim_g"])], schedulers=[])
    BaseModel.setup_schedulers(model)
    model.optimizers[0].step()
    for scheduler in model.schedulers:
        scheduler.step()
