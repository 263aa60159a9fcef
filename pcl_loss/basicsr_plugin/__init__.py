"""The part that plugs into BasicSR, and the only one that imports it."""

from .. import import_repair  # noqa: F401  (before anything that imports basicsr)
from .model import PCLMixin, PCLModel, PCLSwinIRModel, pcl_model
from .registration import register
from .speed import SpeedSRModel, SpeedSwinIRModel
from .yaml_checks import OptionsError, complete_options

__all__ = [
    "OptionsError",
    "PCLMixin",
    "PCLModel",
    "PCLSwinIRModel",
    "SpeedSRModel",
    "SpeedSwinIRModel",
    "complete_options",
    "pcl_model",
    "register",
]
