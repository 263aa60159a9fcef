"""Runs `main.py` of RCAN_TrainCode, in whose folder it is started, on a PyTorch and a SciPy that it does not know.

Nothing of it is changed on disk: what it imports and no longer exists is given to it here.
"""

import runpy
import sys
from types import ModuleType
from typing import Any

import imageio.v2
import scipy
import torch
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, default_collate


class MSDataLoader(DataLoader):
    """Its data loader, built on parts of PyTorch 0.4, adds the index of the scale to every batch."""

    def __init__(self, args: Any, dataset: Any, **kwargs: Any) -> None:
        kwargs["collate_fn"] = lambda samples: [*default_collate(samples), 0]
        super().__init__(dataset, **kwargs)


def from_before_the_first_epoch(scheduler: Any) -> Any:
    """Its epochs begin with a step of the scheduler; today a new scheduler has made one already."""

    def build(*args: Any, **kwargs: Any) -> Any:
        built = scheduler(*args, **kwargs)
        built.last_epoch = -1
        return built

    return build


def main() -> None:
    misc: Any = ModuleType("scipy.misc")
    misc.imread, misc.imsave = imageio.v2.imread, imageio.v2.imwrite
    loader: Any = ModuleType("dataloader")
    loader.MSDataLoader = MSDataLoader
    sys.modules |= {"scipy.misc": misc, "dataloader": loader}
    scipy.misc = misc
    for name in ("StepLR", "MultiStepLR"):
        setattr(lr_scheduler, name, from_before_the_first_epoch(getattr(lr_scheduler, name)))
    torch.set_num_threads(1)
    sys.path.insert(0, "")
    runpy.run_path("main.py", run_name="__main__")


if __name__ == "__main__":
    main()
