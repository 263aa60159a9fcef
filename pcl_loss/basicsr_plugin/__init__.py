"""The part that plugs into BasicSR."""

from .. import _missing, import_repair  # noqa: F401  (before anything that imports basicsr)

with _missing.named_in_errors():
    from .model import PCLMixin, pcl_model
    from .options_loading import OptionsError
    from .options_ours import complete_options
    from .registration import lacks, register

__all__ = ["OptionsError", "PCLMixin", "complete_options", "pcl_model", "register"]

# See `registration.OPTIONAL`.
if not lacks("models.sr_model"):
    from .model import PCLModel, SpeedSRModel

    __all__ += ["PCLModel", "SpeedSRModel"]
    if not lacks("models.swinir_model"):
        from .model import PCLSwinIRModel, SpeedSwinIRModel

        __all__ += ["PCLSwinIRModel", "SpeedSwinIRModel"]
