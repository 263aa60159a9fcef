"""What an option file names is built once before BasicSR writes anything, by BasicSR's own builders: they judge it."""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from basicsr.utils import logger
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from .._files import load
from ..criterion import PCLPerceptualLoss
from ..embedding import FixedEmbedding
from ..loss import PCLLoss
from .data_order import kept_rng_state
from .images import read_item
from .options_basicsr import check_kinds, entry_of, is_own, nearest, shown
from .options_loading import Options, OptionsError, named
from .options_ours import complete_options

# Where the data sets that our option files name are published; the files say where they are expected.
PUBLISHED = {
    "DIV2K": "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    **dict.fromkeys(("Set5", "Set14", "B100", "Urban100"), "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"),
    "Manga109": "http://www.manga109.org/en/ (on request)",
}


def check_options(opt: Options, is_train: bool) -> None:
    """Check all that an option file says, and write the defaults of what is ours into it; nothing is written to disk.

    Args:
        opt: what `load_options` gives, before BasicSR's `parse_options` has seen it; changed in place.
        is_train: for training, or for testing.

    Raises:
        OptionsError: a value that cannot be, or what cannot be built of it, in one line that names the block.
    """
    check_kinds(opt, is_train)
    model = _registered("model_type", opt["model_type"], MODEL_REGISTRY)
    with named("the option file"):
        if is_train:
            complete_options(opt, is_pcl_model=any(cls.__name__ == "PCLMixin" for cls in model.__mro__))
            model = _registered("model_type", opt["model_type"], MODEL_REGISTRY)
        if os.environ.get("RANK", "0") == "0":  # the first process alone makes folders, and the others wait for it
            with _quiet():
                _build(copy.deepcopy(opt), model, is_train)


@contextmanager
def _quiet() -> Iterator[None]:
    """What is built in here draws no random numbers of the run, and leaves BasicSR's log unopened."""
    opened, level = dict(logger.initialized_logger), logging.root.manager.disable
    logger.initialized_logger["basicsr"] = True  # BasicSR opens its log file where it first asks for its log
    logging.disable(logging.WARNING)
    try:
        with kept_rng_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logger.initialized_logger.clear()
        logger.initialized_logger.update(opened)


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


def _is_basicsrs(model: Any, method: str) -> bool:
    """Whether a model leaves a method to the BasicSR in use, or to ours."""
    return getattr(getattr(model, method, None), "__module__", "").split(".")[0] in ("basicsr", "pcl_loss")


def _build(options: Options, model: Any, is_train: bool) -> None:
    """Build data sets, networks, losses, optimizers, schedule and metrics, as the model will."""
    opt: Options = {"rank": 0, "world_size": 1, "is_train": is_train} | options
    opt |= {"dist": "--launcher" in sys.argv, "auto_resume": "--auto_resume" in sys.argv}
    shell = model.__new__(model)
    vars(shell).update(opt=opt, is_train=is_train, device=torch.device("cpu"), optimizers=[], schedulers=[])
    has_gpu, path = torch.cuda.is_available(), opt["path"].get("resume_state")
    if opt["num_gpu"] not in (0, "auto") and is_own(model) and not (has_gpu or opt["dist"]):
        raise OptionsError(f"num_gpu is {opt['num_gpu']}, but torch sees no GPU; set num_gpu: 0 for the CPU")
    if path and not opt["auto_resume"] and not os.path.exists(os.path.expanduser(path)):
        raise OptionsError(f"path.resume_state: there is no {path}; change it, or set ~")
    pairs = {phase: _first_pair(phase, block, opt, is_own(model)) for phase, block in opt["datasets"].items()}
    networks = {key: _network(key, opt, shell) for key in opt if key.startswith("network_") and opt[key]}
    if is_train:
        pair = pairs["train"] if getattr(pairs["train"].get("lq"), "ndim", 0) == 3 and "gt" in pairs["train"] else None
        if pair and networks.get("network_g") is not None and _is_basicsrs(model, "optimize_parameters"):
            _check_patch(opt, networks["network_g"], pair["lq"], pair["gt"])
        if _is_basicsrs(model, "init_training_settings"):
            _check_losses(opt, networks.get("network_d"), pair)
        if _is_basicsrs(model, "setup_optimizers"):
            _check_optimizers(opt["train"], shell)
    metrics = (opt.get("val") or {}).get("metrics") or {}
    for name, block in metrics.items() if is_own(model) else ():
        metric = _registered(f"val.metrics.{name}.type", block["type"], METRIC_REGISTRY)
        for phase in pairs.keys() - {"train"} if is_own(metric) else ():
            _check_metric(f"val.metrics.{name}", metric, block, pairs[phase], opt.get("scale", 1))


def _first_pair(phase: str, block: Options, opt: Options, is_basicsrs: bool) -> Options:
    where, name, ratio = f"datasets.{phase}", block.get("name"), block.get("dataset_enlarge_ratio", 1)
    data_set = _registered(f"{where}.type", block.get("type"), DATASET_REGISTRY)
    hint = f"; {name} is published at {PUBLISHED[name]}, the file says where it belongs" if name in PUBLISHED else ""
    with named(where, hint):
        block |= {"phase": phase.split("_")[0]} | ({"scale": opt["scale"]} if "scale" in opt else {})
        block |= {key: os.path.expanduser(block[key]) for key in ("dataroot_gt", "dataroot_lq") if block.get(key)}
        dataset = data_set(copy.deepcopy(block))
        if not len(dataset):
            raise ValueError("there are no images; put them there, or change its folders")
        pair: Options = read_item(dataset, 0, where)
        if phase == "train":
            from basicsr.data import build_dataloader
            from basicsr.data.data_sampler import EnlargedSampler

            sampler = EnlargedSampler(dataset, int(os.environ.get("WORLD_SIZE", 1)), 0, ratio)
            num_gpu = torch.cuda.device_count() if opt["num_gpu"] == "auto" else opt["num_gpu"]
            if not len(build_dataloader(dataset, block, num_gpu, opt["dist"], sampler, 0)):
                raise ValueError(f"{len(dataset)} images are no batch; raise dataset_enlarge_ratio, or lower the batch")
            if block.get("prefetch_mode") == "cuda" and not (torch.cuda.is_available() and block.get("pin_memory")):
                raise ValueError("prefetch_mode: cuda needs a GPU and pin_memory: true; set cpu, or ~")
            if is_basicsrs and "gt" not in pair:
                raise ValueError(f"{block['type']} has no HR, which a training needs; take PairedImageDataset")
        return pair


def _network(key: str, opt: Options, shell: Any) -> Any:
    is_sure = _is_basicsrs(type(shell), "__init__")
    arch = _registered(f"{key}.type", opt[key].get("type"), ARCH_REGISTRY, is_sure)
    if arch is None:
        return None
    texts = [f"{name}: {shown(value)}" for name, value in opt[key].items() if len(shown(value)) > len(repr(value))]
    with named(key, "".join(f"; {text}" for text in texts)):
        network = arch(**_keywords(opt[key]))
    label, paths = key.removeprefix("network_"), opt["path"]
    if path := paths.get(f"pretrain_network_{label}"):
        where, name = f"path.pretrain_network_{label}", paths.get(f"param_key_{label}", "params")
        with named(where):
            saved = load(path := os.path.expanduser(path))
        inner = saved.get(name, saved) if isinstance(saved, dict) else {}
        has = f"; it has {', '.join(map(str, saved))[:150]}, and there {', '.join(map(str, inner))[:50]} ..."
        with named(f"{where}: {path}, path.param_key_{label} {name}", has):
            shell.load_network(network, path, paths.get(f"strict_load_{label}", True), name)
    return network


def _check_patch(opt: Options, network: Any, lq: torch.Tensor, gt: torch.Tensor) -> None:
    """Push a training patch through the SR network: its channels and factor must fit."""
    shapes = f"of an LR patch {tuple(lq.shape)}, and HR is {tuple(gt.shape)}"
    with named(f"network_g {shapes}"), torch.no_grad():
        try:
            x = lq[None, :, :16, :16]  # which costs little
            sr = network.eval()(x)
        except Exception:
            # What needs a larger patch, a batch or a GPU is tried as the run does it.
            device = "cuda" if opt["num_gpu"] != 0 and torch.cuda.is_available() else "cpu"
            x = torch.stack([lq, lq]).to(device)
            sr = network.train().to(device)(x)
    if not isinstance(sr, torch.Tensor):
        return
    # BasicSR's mean of three colours spreads one channel over three.
    num_ch = opt["network_g"].get("num_out_ch", sr.shape[1]) if is_own(type(network)) else sr.shape[1]
    made = (
        num_ch,
        *(side * old // new for side, old, new in zip(sr.shape[2:], lq.shape[1:], x.shape[2:], strict=True)),
    )
    if made != gt.shape or (x.isfinite().all() and not sr.isfinite().all()):
        numbers = f"from {sr.min():g} to {sr.max():g}"
        raise OptionsError(
            f"network_g makes {made} {numbers} {shapes}; change its factor or channels, scale or gt_size"
        )


def _check_losses(opt: Options, net_d: Any, pair: Options | None) -> None:
    """Build the losses, and try ours on a training patch."""
    train, count = opt["train"], min(2, opt["datasets"]["train"].get("batch_size_per_gpu", 1))
    blocks = {key: train[key] for key in train if key.endswith("_opt") and train[key]}
    if not blocks.keys() - {"pcl_opt", "cld_opt"}:
        raise OptionsError("train.pixel_opt and train.perceptual_opt are both missing; set one of the two")
    for key, block in blocks.items():
        with named(f"train.{key}"):
            is_sure = key in ("pixel_opt", "perceptual_opt", "gan_opt")  # a model may read others in its own way
            name = block["type"] if is_sure or isinstance(block, dict) else None
            made = _registered(f"train.{key}.type", name, LOSS_REGISTRY, is_sure)
            if made is None:
                continue
            loss = made(**_keywords(block))
            if pair and isinstance(loss, (PCLLoss, PCLPerceptualLoss)):
                gt, lq = (pair[name].expand(count, -1, -1, -1) for name in ("gt", "lq"))
                net_d = net_d or FixedEmbedding(len(gt[0]))
                _ = loss(gt, gt, net_d, lq) if isinstance(loss, PCLLoss) else loss(gt, gt)


def _check_optimizers(train: Options, shell: Any) -> None:
    """Build optimizers and schedule, and take the schedule's last step."""
    for key in [key for key in ("optim_g", "optim_d") if train.get(key)]:
        with named(f"train.{key}"):
            param = torch.nn.Parameter(torch.zeros(2))
            param.grad = torch.ones(2)
            shell.optimizers.append(shell.get_optimizer(train[key]["type"], [param], **_keywords(train[key])))
            shell.optimizers[-1].step()
    with named("train.scheduler"):
        shell.setup_schedulers()
    with named("train.scheduler, at train.total_iter"):
        for scheduler in shell.schedulers:
            scheduler.last_epoch = train["total_iter"] - 2
            scheduler.step()


def _check_metric(where: str, metric: Any, block: Options, pair: Options, scale: int) -> None:
    """Measure noise of the size of the first image, or of one that is large enough."""
    border = block.get("crop_border", 0)
    channels, *sides = pair["lq"].shape if getattr(pair.get("lq"), "ndim", 0) == 3 else (3, 10**6, 10**6)
    size = [min(scale * side, 2 * border + 128) for side in sides]
    image = np.random.randint(0, 256, (*size, 3) if channels == 3 else size, np.uint8)
    with named(where, f" (for images of {'x'.join(map(str, size))})"):
        if math.isnan(metric(img=image, **({"img2": image} if "gt" in pair else {}), **_keywords(block))):
            raise ValueError("it gives no number; lower crop_border, usually to scale")
