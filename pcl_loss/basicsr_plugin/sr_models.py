"""What is built on BasicSR's `SRModel` and `SwinIRModel`. Some codebases lack the first, older copies the second."""

from importlib.util import find_spec

from basicsr.models.sr_model import SRModel

from .model import pcl_model
from .speed import SpeedMixin

PCLModel = pcl_model(SRModel)


class SpeedSRModel(SpeedMixin, SRModel):
    """BasicSR's `SRModel` with the keys of `SpeedMixin`: the baseline of a run with PCL that has them."""


if find_spec("basicsr.models.swinir_model"):
    from basicsr.models.swinir_model import SwinIRModel

    PCLSwinIRModel = pcl_model(SwinIRModel)

    class SpeedSwinIRModel(SpeedMixin, SwinIRModel):
        """BasicSR's `SwinIRModel` with the keys of `SpeedMixin`."""
