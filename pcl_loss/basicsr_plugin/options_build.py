"""What an option file names is built once before BasicSR writes anything, by BasicSR's own builders: they judge it."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from typing import Any

import numpy as np
import torch
from basicsr.utils import logger
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from .._files import load
from ..criterion import PCLPerceptualLoss
from ..embedding import FixedEmbedding
from ..loss import PCLLoss
from .data import kept_rng_state, read_item
from .options_basicsr import check_kinds, entry_of, is_own, nearest, shown
from .options_loading import Options, OptionsError, named
from .options_ours import complete_options


def check_options(opt: Options, is_train: bool) -> None:
    """Check what `load_options` gives, and write our defaults into it; raises OptionsError, which names the block."""
    check_kinds(opt, is_train)
    model = _registered("model_type", opt["model_type"], MODEL_REGISTRY)
    with named("the option file"):
        if is_train:
            complete_options(opt, is_pcl_model=any(cls.__name__ == "PCLMixin" for cls in model.__mro__))
        if os.environ.get("RANK", "0") == "0":  # the first process alone makes folders, and the others wait for it
            # BasicSR opens its log file where it first asks for its log.
            opened, logger.initialized_logger = logger.initialized_logger, {"basicsr": True}
            try:
                with kept_rng_state(), warnings.catch_warnings(action="ignore"):
                    _build(copy.deepcopy(opt), model, is_train)
            finally:
                logger.initialized_logger = opened


def _registered(where: str, name: Any, registry: Any, is_sure: bool = True) -> Any:
    """What a registry has under a name; None where the model may know it in another way (not `is_sure`)."""
    found, meant = entry_of(registry, name), nearest(name, registry.keys(), 0.75)
    if found is None and is_sure:
        fix = f"did you mean {meant}?" if meant else f"import your own class, or take one of {sorted(registry.keys())}"
        raise OptionsError(f"{where}: there is no {shown(name)}; {fix}")
    return found


def _keywords(block: Options) -> Options:
    """What BasicSR's builders hand a class or function that is registered."""
    return {key: copy.deepcopy(value) for key, value in block.items() if key != "type"}


def _build(options: Options, model: Any, is_train: bool) -> None:
    """Build data sets, networks, losses, optimizers, schedule and metrics, as the model will."""
    opt: Options = {"rank": 0, "world_size": 1, "is_train": is_train, "dist": "--launcher" in sys.argv} | options
    shell = model.__new__(model)
    vars(shell).update(opt=opt, is_train=is_train, device=torch.device("cpu"), optimizers=[], schedulers=[])
    if opt["num_gpu"] not in (0, "auto") and is_own(model) and not (torch.cuda.is_available() or opt["dist"]):
        raise OptionsError(f"num_gpu is {opt['num_gpu']}, but torch sees no GPU; set num_gpu: 0 for the CPU")
    pairs = {phase: _first_pair(phase, block, opt) for phase, block in opt["datasets"].items()}
    networks = {key: _network(key, opt, shell) for key in opt if key.startswith("network_") and opt[key]}
    if is_train:
        lq, gt = pairs["train"].get("lq"), pairs["train"].get("gt")
        pair = (lq, gt) if lq is not None and gt is not None and lq.ndim == 3 else None  # a video has four
        if pair and is_own(type(networks.get("network_g"))) and is_own(getattr(model, "optimize_parameters", None)):
            _check_patch(networks["network_g"], *pair)
        if is_own(getattr(model, "init_training_settings", None)):
            _check_losses(opt, networks.get("network_d"), pair)
        if is_own(getattr(model, "setup_optimizers", None)):
            _check_optimizers(opt["train"], shell)
    for name, block in ((opt.get("val") or {}).get("metrics") or {}).items() if is_own(model) else ():
        metric = _registered(f"val.metrics.{name}.type", block["type"], METRIC_REGISTRY)
        side = 2 * block.get("crop_border", 0) + 256  # NIQE needs more than one of its blocks of 96
        noise = np.random.randint(0, 256, (side, side, 3), np.uint8)
        for phase in pairs.keys() - {"train"} if is_own(metric) else ():
            with named(f"val.metrics.{name}"):
                metric(img=noise, **({"img2": noise} if "gt" in pairs[phase] else {}), **_keywords(block))


def _first_pair(phase: str, block: Options, opt: Options) -> Options:
    where = f"datasets.{phase}"
    data_set = _registered(f"{where}.type", block.get("type"), DATASET_REGISTRY)
    with named(where):
        block |= {"phase": phase.split("_")[0]} | ({"scale": opt["scale"]} if "scale" in opt else {})
        block |= {key: os.path.expanduser(block[key]) for key in ("dataroot_gt", "dataroot_lq") if block.get(key)}
        dataset = data_set(copy.deepcopy(block))
        if not len(dataset):
            raise ValueError("there are no images; put them there, or change its folders")
        pair: Options = read_item(dataset, 0, where)
        if phase == "train" and len(dataset) * block.get("dataset_enlarge_ratio", 1) < block["batch_size_per_gpu"]:
            raise ValueError(f"{len(dataset)} images are no batch; raise dataset_enlarge_ratio, or lower the batch")
        return pair


def _network(key: str, opt: Options, shell: Any) -> Any:
    arch = _registered(f"{key}.type", opt[key].get("type"), ARCH_REGISTRY, is_own(type(shell).__init__))
    if arch is None:
        return None
    with named(key):
        network = arch(**_keywords(opt[key]))
    label, paths = key.removeprefix("network_"), opt["path"]
    if path := paths.get(f"pretrain_network_{label}"):
        where, name = f"path.pretrain_network_{label}", paths.get(f"param_key_{label}", "params")
        with named(where):
            saved = load(path := os.path.expanduser(path))
        has = ", ".join(map(str, saved))[:150]
        with named(f"{where}: {path} (it has {has}), path.param_key_{label} {name}"):
            shell.load_network(network, path, paths.get(f"strict_load_{label}", True), name)
    return network


def _check_patch(network: Any, lq: torch.Tensor, gt: torch.Tensor) -> None:
    """Push part of a training patch through the SR network: its channels and factor must fit."""
    shapes = f"of an LR patch {tuple(lq.shape)}, and HR is {tuple(gt.shape)}"
    x = lq[None, :, :16, :16]  # which costs little
    with named(f"network_g {shapes}"), torch.no_grad():
        channels, height, width = network.eval()(x)[0].shape
    made = (channels, height * lq.shape[1] // x.shape[2], width * lq.shape[2] // x.shape[3])
    if made != gt.shape:
        raise OptionsError(f"network_g makes {made} {shapes}; change its factor or channels, scale or gt_size")


def _check_losses(opt: Options, net_d: Any, pair: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    """Build the losses, and try ours on a training patch."""
    train, count = opt["train"], min(2, opt["datasets"]["train"].get("batch_size_per_gpu", 1))
    for key in [key for key in train if key.endswith("_opt") and isinstance(train[key], dict)]:
        with named(f"train.{key}"):
            is_sure = key in ("pixel_opt", "perceptual_opt", "gan_opt")  # a model may read others in its own way
            made = _registered(f"train.{key}.type", train[key].get("type"), LOSS_REGISTRY, is_sure)
            loss = made(**_keywords(train[key])) if made else None
            if pair and loss and isinstance(getattr(loss, "pcl", loss), (PCLLoss, PCLPerceptualLoss)):
                lq, gt = (image.expand(count, -1, -1, -1) for image in pair)
                net_d = net_d or FixedEmbedding(len(gt[0]))
                _ = loss(gt, gt, net_d, lq) if isinstance(loss, PCLLoss) else loss(gt, gt)


def _check_optimizers(train: Options, shell: Any) -> None:
    """Build optimizers and schedule, and take the schedule's last step."""
    for key in [key for key in ("optim_g", "optim_d") if train.get(key)]:
        with named(f"train.{key}"):
            param = torch.nn.Parameter(torch.zeros(2))
            shell.optimizers.append(shell.get_optimizer(train[key]["type"], [param], **_keywords(train[key])))
    with named("train.scheduler"):
        shell.setup_schedulers()
        for scheduler in shell.schedulers:
            scheduler.last_epoch = train["total_iter"] - 2
            scheduler.step()
