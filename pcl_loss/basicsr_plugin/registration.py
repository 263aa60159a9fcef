"""register(): makes BasicSR know us."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any

import basicsr
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from ..criterion import PCLPerceptualLoss
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding, VGGEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from . import repairs
from .lpips_metric import calculate_lpips
from .perceptual import PerceptualLossWithPCL

ENTRIES: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (LOSS_REGISTRY, (PCLLoss, ContrastiveDiscriminatorLoss, PCLPerceptualLoss, PerceptualLossWithPCL)),
    (ARCH_REGISTRY, (WaveletDiscriminator, VGGEmbedding, FixedEmbedding)),
    (METRIC_REGISTRY, (calculate_lpips,)),
)

OPTIONAL = (
    ("models.sr_model", MODEL_REGISTRY, ".model", ("PCLModel", "SpeedSRModel")),
    ("models.swinir_model", MODEL_REGISTRY, ".model", ("PCLSwinIRModel", "SpeedSwinIRModel")),
    ("archs.rcan_arch", ARCH_REGISTRY, ".han_arch", ("HAN",)),
)
"""A module of BasicSR that other codebases' copies lack, and what of ours is built on it."""


def register() -> None:
    """Register our losses, networks, models and metrics into BasicSR, and replace what `repairs` lists. What is built
    on a part that the BasicSR in use lacks, such as RCAN or `SwinIRModel`, is left out, and a line says so.

    Call it before `basicsr.train.train_pipeline`. Calling it twice is harmless; another package's entry under one of
    our names is an error.
    """
    missing = []
    for registry, entries in ENTRIES:
        _register(registry, *entries)
    for needed, registry, ours, names in OPTIONAL:
        if lacks(needed):
            missing.append(f"no {needed} (so no {', '.join(names)})")
        else:
            module = importlib.import_module(ours, __package__)
            _register(registry, *(getattr(module, name) for name in names))
    repairs.apply()
    if missing and os.environ.get("RANK", "0") == "0":
        print(f"[pcl_loss] the BasicSR in {basicsr.__path__[0]} has {', '.join(missing)}; the rest works", flush=True)


def lacks(module: str) -> bool:
    """Whether the BasicSR in use has no such module."""
    return find_spec(f"basicsr.{module}") is None


def _register(registry: Any, *entries: Any) -> None:
    for entry in entries:
        if registry._obj_map.get(entry.__name__) is not entry:
            registry.register(entry)
