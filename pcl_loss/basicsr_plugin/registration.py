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

ENTRIES: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (LOSS_REGISTRY, (PCLLoss, ContrastiveDiscriminatorLoss, PCLPerceptualLoss)),
    (ARCH_REGISTRY, (WaveletDiscriminator, VGGEmbedding, FixedEmbedding)),
    (METRIC_REGISTRY, (calculate_lpips,)),
)

OPTIONAL = (
    (MODEL_REGISTRY, ("models.sr_model",), ".sr_models", ("PCLModel", "SpeedSRModel")),
    (
        MODEL_REGISTRY,
        ("models.sr_model", "models.swinir_model"),
        ".sr_models",
        ("PCLSwinIRModel", "SpeedSwinIRModel"),
    ),
    (ARCH_REGISTRY, ("archs.rcan_arch",), ".han_arch", ("HAN",)),
)
"""What is built on modules of BasicSR that other codebases' copies lack: those modules, ours, and its entries."""

_said: list[str] = []


def register() -> None:
    """Register our losses, networks, models and metrics into BasicSR, and replace what `repairs` lists. What is built
    on a part that the BasicSR in use lacks, such as RCAN or `SwinIRModel`, is left out, and a line says so.

    Call it before `basicsr.train.train_pipeline`. Calling it twice is harmless.

    Raises:
        RuntimeError: another package has registered one of our names.
    """
    missing = []
    for registry, entries in ENTRIES:
        _register(registry, *entries)
    for registry, needed, ours, names in OPTIONAL:
        if lacks := lacking(*needed):
            missing.append(f"no {lacks[0]} (so no {', '.join(names)})")
        else:
            module = importlib.import_module(ours, __package__)
            _register(registry, *(getattr(module, name) for name in names))
    repairs.apply()
    if missing and not _said and os.environ.get("RANK", "0") == "0":
        _said.append(f"[pcl_loss] the BasicSR in {basicsr.__path__[0]} has {', '.join(missing)}; the rest is there")
        print(*_said, flush=True)


def lacking(*modules: str) -> list[str]:
    """Those of these modules that the BasicSR in use has not."""
    return [name for name in modules if not find_spec(f"basicsr.{name}")]


def _register(registry: Any, *entries: Any) -> None:
    for entry in entries:
        name = entry.__name__
        if name not in registry:
            registry.register(entry)
        elif registry.get(name) is not entry:
            raise RuntimeError(f"BasicSR already knows another {name}: {registry.get(name)}")
