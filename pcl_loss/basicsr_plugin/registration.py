"""register(): makes BasicSR know us."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

from ..discriminator import WaveletDiscriminator
from ..loss import ContrastiveDiscriminatorLoss, PCLLoss
from . import repairs
from .model import PCLMixin, PCLModel, PCLSwinIRModel
from .options import complete_options

CLASSES = {
    LOSS_REGISTRY: (PCLLoss, ContrastiveDiscriminatorLoss),
    ARCH_REGISTRY: (WaveletDiscriminator,),
    MODEL_REGISTRY: (PCLModel, PCLSwinIRModel),
}


def register() -> None:
    """Register our losses, networks and models into BasicSR, check and complete the options it parses, and repair
    what of BasicSR 1.4.2 does not run on current PyTorch or without a GPU (see `repairs`).

    Call it before `basicsr.train.train_pipeline`. Calling it twice is harmless.

    Raises:
        RuntimeError: another package has registered one of our names.
    """
    for registry, classes in CLASSES.items():
        for cls in classes:
            if cls.__name__ not in registry:
                registry.register(cls)
            elif registry.get(cls.__name__) is not cls:
                raise RuntimeError(f"BasicSR already knows another {cls.__name__}: {registry.get(cls.__name__)}")
    repairs.apply()
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
        return opt, args

    parse_and_complete.completes_pcl = True  # type: ignore[attr-defined]
    module.parse_options = parse_and_complete  # type: ignore[attr-defined]
