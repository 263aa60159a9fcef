"""What BasicSR 1.4.2 needs to run on current PyTorch and without a GPU.

Each repair is one function that changes one thing, and changes nothing where BasicSR is already right. What `apply`
does lets models run that could not; how the others train stays as it is. The repair of BasicSR's import is
`pcl_loss.import_repair`, which must come before BasicSR is there; that of its YAML loader, which runs code, is
`yaml_loading`, and what changes a run's course is `course`. `pcl-loss doctor` lists all of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import basicsr.train
import torch
from basicsr.models import base_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import dist_util, get_root_logger, options
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.torch_version import TorchVersion

from .. import import_repair
from . import durable


def apply() -> None:
    """All repairs without which BasicSR does not run; calling it twice is harmless."""
    if not hasattr(BaseModel, "repaired_by_pcl_loss"):
        repairs = (resume_without_cuda, distribute_without_cuda, load_tensors_alone)
        BaseModel.repaired_by_pcl_loss = {repair.__name__: repair() for repair in repairs}


def report() -> dict[str, bool]:
    """Each repair's name, those of the import and of the YAML's loader among them, and whether it was needed here and
    applied.

    Call it after `register`.
    """
    is_loader_safe = hasattr(options.parse_options, "completes_pcl")
    return {
        "import_repair": import_repair.is_used(),
        "loaded_options": is_loader_safe,
        **BaseModel.repaired_by_pcl_loss,
    }


def resume_without_cuda() -> bool:
    """BasicSR loads a training state onto `torch.cuda.current_device()`, which fails where there is no GPU."""
    if torch.cuda.is_available():
        return False
    basicsr.train.load_resume_state = durable.load_resume_state
    return True


def load_tensors_alone() -> bool:
    """BasicSR loads networks with torch's default, which before torch 2.6 runs code that a file may hold."""
    is_default = TorchVersion(torch.__version__) >= "2.6"
    if is_default and not os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        return False
    base_model.torch = durable.Torch()
    return True


def distribute_without_cuda() -> bool:
    """BasicSR starts NCCL and pins every rank to a GPU; without one, gloo and the CPU take their place."""
    if torch.cuda.is_available():
        return False

    def init_gloo(backend: str = "nccl", **kwargs: Any) -> None:
        torch.distributed.init_process_group("gloo", **kwargs)

    model_to_device = BaseModel.model_to_device

    @functools.wraps(model_to_device)
    def model_to_cpu(self: Any, net: nn.Module) -> nn.Module:
        if not self.opt["dist"]:
            return model_to_device(self, net)
        return DistributedDataParallel(net, find_unused_parameters=self.opt.get("find_unused_parameters", False))

    dist_util._init_dist_pytorch = init_gloo
    BaseModel.model_to_device = model_to_cpu
    return True


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """While open, these attributes of a module or class have these values."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def end_warmup(model: Any, current_iter: int, warmup_iter: int) -> None:
    """Set a model's full learning rate where its warm-up ends, if it is not there yet, and log that.

    BasicSR's warm-up stops one iteration short of it, at `(w - 1) / w` of it, and MultiStepRestartLR goes on from what
    it finds: the rate stays too low for the rest of the run. To be called before the schedulers step, so that a
    milestone at this very iteration still counts.
    """
    if current_iter != warmup_iter:
        return
    full = model._get_init_lr()
    if [[group["lr"] for group in optimizer.param_groups] for optimizer in model.optimizers] != full:
        model._set_lr(full)
        get_root_logger().info(
            f"The warm-up ends at iteration {warmup_iter} at the full learning rate, not at BasicSR's "
            f"{warmup_iter - 1}/{warmup_iter} of it."
        )


@contextmanager
def end_warmup_of_every_model() -> Iterator[None]:
    """While open, `end_warmup` holds for every BasicSR model, so that runs with PCL can be compared with baselines;
    otherwise it holds for our models alone.
    """
    update_learning_rate = BaseModel.update_learning_rate

    @functools.wraps(update_learning_rate)
    def update(self: Any, current_iter: int, warmup_iter: int = -1) -> None:
        end_warmup(self, current_iter, warmup_iter)
        update_learning_rate(self, current_iter, warmup_iter)

    with replaced(BaseModel, update_learning_rate=update):
        yield
