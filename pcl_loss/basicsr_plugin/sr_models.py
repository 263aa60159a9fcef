"""What is built on BasicSR's `SRModel`, which some codebases lack."""

from basicsr.models.sr_model import SRModel

from .model import pcl_model
from .speed import SpeedMixin

PCLModel = pcl_model(SRModel)


class SpeedSRModel(SpeedMixin, SRModel):
    """BasicSR's `SRModel` with `train.amp`, `train.channels_last` and `train.compile`: the baseline of a run with PCL
    that has them.
    """
