"""register(): makes BasicSR know us."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import basicsr
import yaml
from basicsr.utils import options as basicsr_options
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from ..criterion import PCLPerceptualLoss
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding, VGGEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from . import perceptual, repairs
from .lpips_metric import calculate_lpips
from .model import PCLModel
from .options_build import check_options
from .options_loading import Options, load_options
from .speed import SpeedSRModel

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
def loaded_options(check: Callable[[Options], None]) -> Iterator[None]:
    """While open, BasicSR's `parse_options` is handed what `load_options` reads, once `check` has passed it.

    Raises:
        OptionsError: as `load_options` and `check`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-opt")
    parser.add_argument("--force_yml", nargs="+", default=[])
    flags, others = parser.parse_known_args(sys.argv[1:])
    if flags.opt is None:  # BasicSR's own parser says so, or prints its help
        yield
        return
    options = load_options(flags.opt, flags.force_yml)
    check(options)

    class Loaded:
        def __init__(self, stream: Any) -> None:
            pass  # it is read already, as UTF-8

        def get_single_data(self) -> Options:
            return options

        def dispose(self) -> None:
            pass

    argv, ordered_yaml = sys.argv, basicsr_options.ordered_yaml
    sys.argv = [argv[0], "-opt", flags.opt, *others]
    basicsr_options.ordered_yaml = lambda: (Loaded, yaml.SafeDumper)
    try:
        yield
    finally:
        sys.argv, basicsr_options.ordered_yaml = argv, ordered_yaml


def _complete_parsed_options(module: ModuleType) -> None:
    """Let `module.parse_options` complete what it returns: the options, or, since 1.3.4, those and the flags."""
    parse_options = getattr(module, "parse_options", None)
    if parse_options is None or getattr(parse_options, "completes_pcl", False):
        return

    @functools.wraps(parse_options)
    def parse_and_complete(root_path: str, is_train: bool = True, *args: Any, **keywords: Any) -> Any:
        for begin in before_training if is_train else ():
            begin(sys.modules[sys._getframe(1).f_globals["__name__"]])
        with loaded_options(functools.partial(check_options, is_train=is_train)):
            parsed = parse_options(root_path, is_train, *args, **keywords)
        _say_what_is_missing()
        return parsed

    parse_and_complete.completes_pcl = True  # type: ignore[attr-defined]
    module.parse_options = parse_and_complete  # type: ignore[attr-defined]
