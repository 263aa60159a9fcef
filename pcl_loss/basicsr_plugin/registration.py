"""register(): makes BasicSR know us."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from ..criterion import PCLPerceptualLoss
from ..discriminator import WaveletDiscriminator
from ..embedding import FixedEmbedding, VGGEmbedding
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from . import perceptual, repairs
from .han_arch import HAN
from .lpips_metric import calculate_lpips
from .model import PCLMixin, PCLModel, PCLSwinIRModel
from .speed import SpeedSRModel, SpeedSwinIRModel
from .yaml_checks import check_files, complete_options

ENTRIES: dict[Any, tuple[Any, ...]] = {
    LOSS_REGISTRY: (PCLLoss, ContrastiveDiscriminatorLoss, PCLPerceptualLoss),
    ARCH_REGISTRY: (WaveletDiscriminator, VGGEmbedding, FixedEmbedding, HAN),
    MODEL_REGISTRY: (PCLModel, PCLSwinIRModel, SpeedSRModel, SpeedSwinIRModel),
    METRIC_REGISTRY: (calculate_lpips,),
}


def register() -> None:
    """Register our losses, networks, models and metrics into BasicSR, check and complete the options it parses, and
    repair what of BasicSR 1.4.2 does not run on current PyTorch or without a GPU (see `repairs`).

    Call it before `basicsr.train.train_pipeline`. Calling it twice is harmless.

    Raises:
        RuntimeError: another package has registered one of our names.
    """
    for registry, entries in ENTRIES.items():
        for entry in entries:
            name = entry.__name__
            if name not in registry:
                registry.register(entry)
            elif registry.get(name) is not entry:
                raise RuntimeError(f"BasicSR already knows another {name}: {registry.get(name)}")
    repairs.apply()
    perceptual.keep_with_checkpoints()
    import basicsr.test
    import basicsr.train

    for module in (basicsr_options, basicsr.train, basicsr.test):
        _complete_parsed_options(module)


def _complete_parsed_options(module: ModuleType) -> None:
    """Let `module.parse_options` complete what it returns."""
    parse_options = module.parse_options
    if getattr(parse_options, "completes_pcl", False):
        return

    @functools.wraps(parse_options)
    def parse_and_complete(root_path: str, is_train: bool = True) -> Any:
        opt, args = parse_options(root_path, is_train=is_train)
        model_type = opt.get("model_type")
        if is_train and model_type in MODEL_REGISTRY:
            complete_options(opt, is_pcl_model=issubclass(MODEL_REGISTRY.get(model_type), PCLMixin))
        check_files(opt)
        return opt, args

    parse_and_complete.completes_pcl = True  # type: ignore[attr-defined]
    module.parse_options = parse_and_complete  # type: ignore[attr-defined]
