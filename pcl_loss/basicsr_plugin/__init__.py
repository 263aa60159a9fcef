"""The part that plugs into BasicSR, and the only one that imports it."""

from .. import import_repair  # noqa: F401  (before anything that imports basicsr)
from .model import PCLMixin, PCLModel, PCLSwinIRModel, pcl_model
from .options import OptionsError, complete_options
from .registration import register

__all__ = [
    "OptionsError",
    "PCLMixin",
    "PCLModel",
    "PCLSwinIRModel",
    "complete_options",
    "pcl_model",
    "register",
]
