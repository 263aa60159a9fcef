"""The part that plugs into BasicSR, and the only one that imports it."""

from importlib.util import find_spec

from .. import _missing, import_repair  # noqa: F401  (before anything that imports basicsr)

with _missing.named_in_errors():
    from .model import PCLMixin, PCLModel, pcl_model
    from .options_loading import OptionsError
    from .options_ours import complete_options
    from .registration import register
    from .speed import SpeedSRModel

__all__ = [
    "OptionsError",
    "PCLMixin",
    "PCLModel",
    "SpeedSRModel",
    "complete_options",
    "pcl_model",
    "register",
]

# See `registration.OPTIONAL`.
if find_spec("basicsr.models.swinir_model"):
    from .swinir_models import PCLSwinIRModel, SpeedSwinIRModel

    __all__ += ["PCLSwinIRModel", "SpeedSwinIRModel"]
