"""What is built on BasicSR's `SwinIRModel`, which its older copies lack."""

from basicsr.models.swinir_model import SwinIRModel

from .model import pcl_model
from .speed import SpeedMixin

PCLSwinIRModel = pcl_model(SwinIRModel)


class SpeedSwinIRModel(SpeedMixin, SwinIRModel):
    """BasicSR's `SwinIRModel` with `train.amp`, `train.channels_last` and `train.compile`."""
