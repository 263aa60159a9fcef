"""`pcl-loss doctor`: does the loss work on this machine? One block of text."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from .. import __version__, import_repair  # noqa: F401  (before anything that imports basicsr)
from .._missing import EXTRAS, advice
from ..criterion import PCLCriterion
from ._checkpoints import usable_device

MODULES = ("torch", "torchvision", "basicsr", "kornia", "numpy", "cv2", "lpips", "matplotlib")


@dataclass
class Diagnosis:
    """What `diagnose` found; `str` makes the text to paste."""

    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # what should hold and does not

    def check(self, what: str, holds: bool, detail: str = "") -> None:
        """Note something that must hold."""
        self.lines.append(f"  {what}: {'yes' if holds else 'NO'}{f' ({detail})' if detail else ''}")
        self.failures += [] if holds else [what]

    def __str__(self) -> str:
        result = f"FAILED: {'; '.join(self.failures)}" if self.failures else "healthy"
        return "\n".join([f"pcl_loss {__version__} doctor", *self.lines, "", result])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss doctor`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; returns 0 if all is well, 1 if a check failed. Raises as `diagnose` does."""
    diagnosis = diagnose(args.device)
    print(diagnosis)
    return 1 if diagnosis.failures else 0


def diagnose(device: str | None = None) -> Diagnosis:
    """Look at the libraries, and take one training step. The global random numbers are left alone.

    The device is 'cpu', 'cuda', 'cuda:N', or None: a GPU where there is one. Raises ValueError if it is not there.
    """
    place = usable_device(device)
    diagnosis = Diagnosis()
    _look_at_versions(diagnosis)
    try:
        _train(diagnosis, place)
    except Exception as error:  # whatever it is, it is the result
        diagnosis.check("a training step runs", False, f"{type(error).__name__}: {error}")
    return diagnosis


def _look_at_versions(diagnosis: Diagnosis) -> None:
    """Every library, and what is replaced in BasicSR."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["none is seen"]
    versions = {
        "python": f"{platform.python_version()}, {platform.platform()}",
        "GPU": f"{', '.join(gpus)}; PyTorch was built for CUDA {torch.version.cuda}",
    }
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            versions[name] = getattr(module, "__version__", None) or importlib.metadata.version(name)
        except Exception as error:  # a binary of another version raises anything
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                versions[name] = f"not installed: {advice(name)}" if name in EXTRAS else "not installed"
            else:
                diagnosis.check(f"{name} can be imported", False, f"{type(error).__name__}: {error}")
    diagnosis.lines += ["", *(f"  {name:12} {version}" for name, version in versions.items())]
    diagnosis.lines += ["", "replaced in BasicSR"]
    try:
        from ..basicsr_plugin import register, repairs

        register()
    except ImportError:  # which is named above
        return
    except Exception as error:  # BasicSR of another version
        diagnosis.check("BasicSR knows us", False, f"{type(error).__name__}: {error}")
        return
    for entry in repairs.REPLACED:
        when = "in a run of `pcl-loss train` or `run`" if entry.in_a_run else "yes"
        diagnosis.lines.append(f"  {entry.replaces}.{entry.name} ({entry.why}): {when}")


def _train(diagnosis: Diagnosis, place: str) -> None:
    """One step of PCL, and what it must do."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = nn.Conv2d(3, 3, 3, padding=1).to(place)
        pcl = PCLCriterion(sync=False).to(place)
        hr = torch.rand(2, 3, 32, 32).to(place)
    diagnosis.lines += ["", f"one training step on {place}, {len(hr)} images of 32x32"]
    before = [param.detach().clone() for param in pcl.embedding.parameters()]
    loss = pcl(net(F.avg_pool2d(hr, 3, 1, 1)), hr)
    grads = torch.autograd.grad(loss, [*net.parameters()], allow_unused=True) if loss.requires_grad else ()
    norm = sum(float(grad.norm()) for grad in grads if grad is not None)
    moved = any(not torch.equal(old, new) for old, new in zip(before, pcl.embedding.parameters(), strict=True))
    diagnosis.check("the loss is finite and above 0", 0 < loss.item() < float("inf"), f"{loss.item():.3g}")
    diagnosis.check("gradient of PCL reaches the SR network", 0 < norm < float("inf"), f"{norm:.3g}")
    diagnosis.check("E_D moved", moved)
    diagnosis.check("E_D holds no gradient of it", all(param.grad is None for param in pcl.embedding.parameters()))
