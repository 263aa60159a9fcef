"""register(): makes BasicSR know us."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import basicsr
from basicsr.utils import logger
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from ..criterion import PCLPerceptualLoss
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding, VGGEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from . import perceptual, repairs
from .data_checks import check_data, check_files, check_weights, fetch_weights
from .lpips_metric import calculate_lpips
from .model import PCLMixin, PCLModel
from .speed import SpeedSRModel
from .yaml_blocks import check_blocks
from .yaml_checks import complete_options
from .yaml_loading import loaded_options
from .yaml_schema import check_file

ENTRIES: dict[Any, tuple[Any, ...]] = {
    LOSS_REGISTRY: (PCLLoss, ContrastiveDiscriminatorLoss, PCLPerceptualLoss),
    ARCH_REGISTRY: (WaveletDiscriminator, VGGEmbedding, FixedEmbedding),
    MODEL_REGISTRY: (PCLModel, SpeedSRModel),
    METRIC_REGISTRY: (calculate_lpips,),
}

# What is built on a module of BasicSR that the older copies in other codebases lack: that module, ours, its entries.
OPTIONAL = (
    (ARCH_REGISTRY, "archs.rcan_arch", ".han_arch", ("HAN",)),
    (MODEL_REGISTRY, "models.swinir_model", ".swinir_models", ("PCLSwinIRModel", "SpeedSwinIRModel")),
)

before_training: list[Callable[[ModuleType], None]] = []
"""What is called with the module whose train pipeline is about to parse its options."""


def register() -> None:
    """Register our losses, networks, models and metrics into BasicSR, check and complete the options it parses, and
    repair what of BasicSR 1.4.2 does not run on current PyTorch or without a GPU (see `repairs`). Where the BasicSR in
    use is an older copy without RCAN or `SwinIRModel`, what is built on them is left out; the start of a run says so.

    Call it before `basicsr.train.train_pipeline`. Calling it twice is harmless.

    Raises:
        RuntimeError: another package has registered one of our names.
    """
    for registry, entries in ENTRIES.items():
        _register(registry, entries)
    for registry, needed, ours, names in OPTIONAL:
        if find_spec(f"basicsr.{needed}"):
            module = importlib.import_module(ours, __package__)
            _register(registry, [getattr(module, name) for name in names])
    repairs.apply()
    perceptual.keep_with_checkpoints()
    for name in ("utils.options", "train", "test"):
        if find_spec(f"basicsr.{name}"):
            _complete_parsed_options(importlib.import_module(f"basicsr.{name}"))


def _register(registry: Any, entries: Iterable[Any]) -> None:
    for entry in entries:
        name = entry.__name__
        if name not in registry:
            registry.register(entry)
        elif registry.get(name) is not entry:
            raise RuntimeError(f"BasicSR already knows another {name}: {registry.get(name)}")


def _say_what_is_missing() -> None:
    lacks = [(needed, names) for _, needed, _, names in OPTIONAL if not find_spec(f"basicsr.{needed}")]
    if lacks and get_dist_info()[0] == 0:
        missing = ", ".join(f"no {needed} (so no {', '.join(names)})" for needed, names in lacks)
        print(f"[pcl_loss] the BasicSR in {basicsr.__path__[0]} has {missing}; the rest of pcl_loss is there")


@contextmanager
def _unopened_log() -> Iterator[None]:
    """What is built for its checks alone may log; BasicSR opens its log file later, and only if there is no log yet."""
    root, opened = logging.getLogger("basicsr"), dict(logger.initialized_logger)
    handlers = list(root.handlers)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        logger.initialized_logger.clear()
        logger.initialized_logger.update(opened)


def _complete_parsed_options(module: ModuleType) -> None:
    """Let `module.parse_options` complete what it returns: the options, or, since 1.3.4, those and the flags."""
    parse_options = getattr(module, "parse_options", None)
    if parse_options is None or getattr(parse_options, "completes_pcl", False):
        return

    @functools.wraps(parse_options)
    def parse_and_complete(root_path: str, is_train: bool = True, *args: Any, **keywords: Any) -> Any:
        for begin in before_training if is_train else ():
            begin(sys.modules[sys._getframe(1).f_globals["__name__"]])
        with loaded_options(functools.partial(check_file, is_train=is_train)):
            parsed = parse_options(root_path, is_train, *args, **keywords)
        opt = parsed[0] if isinstance(parsed, tuple) else parsed
        _say_what_is_missing()
        with _unopened_log():
            check_files(opt)
            check_weights(opt, check_blocks(opt))
            if is_train:
                complete_options(opt, is_pcl_model=issubclass(MODEL_REGISTRY.get(opt["model_type"]), PCLMixin))
            check_data(opt)
            fetch_weights(opt)
        return parsed

    parse_and_complete.completes_pcl = True  # type: ignore[attr-defined]
    module.parse_options = parse_and_complete  # type: ignore[attr-defined]
