"""`pcl-loss doctor`: does the loss work on this machine, how strong is it, and what does it cost? One block of text."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import platform
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import benchmark

from .. import __version__, import_repair  # before anything that imports basicsr
from .._extras import EXTRAS, advice
from ..criterion import PCLCriterion
from ..loss import PCLLoss
from ._checkpoints import usable_device

SCALE = 4

LIBRARIES = ("torch", "torchvision", "basicsr", "kornia", "numpy", "opencv", "lpips")
# Where they are not the library's own name: of what is imported, and of what may have been installed.
_MODULES = {"opencv": "cv2"}
_DISTRIBUTIONS = {"opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python")}


@dataclass(frozen=True)
class Workload:
    """The size of what is measured: a small EDSR, its batches, and E_D."""

    num_feat: int
    num_block: int
    batch_size: int
    gt_size: int
    net_d_feat: int = 64
    iterations: int = 4

    def __str__(self) -> str:
        images = f"batch {self.batch_size} of {self.gt_size}x{self.gt_size}"
        return f"EDSR of {self.num_block} blocks x {self.num_feat} channels, x{SCALE}, {images}"


WORKLOADS = {
    "cpu": Workload(num_feat=32, num_block=4, batch_size=2, gt_size=64),
    # The paper's batch and patch.
    "cuda": Workload(num_feat=64, num_block=16, batch_size=16, gt_size=192, iterations=30),
}


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    passed: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {'yes' if self.passed else 'NO'}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Gradients:
    """Norms of the gradients at the SR output, for a `loss_weight` of 1 of both losses."""

    l_cl: dict[float, float]  # of `PCLLoss`, for images whose white is the key
    l_1: dict[float, float]  # of the mean absolute difference, likewise

    @property
    def ratio(self) -> float:
        """`PCLLoss` against L_1; the same for every range, since `PCLLoss` takes it into account."""
        return self.l_cl[1.0] / self.l_1[1.0]

    def advice(self) -> str:
        """How to choose `loss_weight`."""
        if not self.ratio > 0:
            return "choosing loss_weight: not possible without a gradient"
        return (
            f"choosing loss_weight: 1 gives PCL {self.ratio:.2g} of L_1's gradient here. It is proportional: for a "
            f"wanted ratio r take\n  loss_weight = r / {self.ratio:.2g} (as strong as L_1: {1 / self.ratio:.2g}). More "
            "favours perception, less PSNR. Your own network's\n  ratio is what counts: measure it where it has "
            "trained for a while"
        )


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; `str` makes the text to paste."""

    versions: dict[str, str]  # library and version, "not installed", or the error of its import
    repairs: dict[str, str]  # repair of BasicSR and "applied" or "not needed"; empty where it cannot be imported
    device: str  # what it ran on, in words
    images: str  # what it was measured on
    workload: Workload  # how large
    checks: list[Check]  # all must hold
    # What follows is empty if a check failed before.
    gradients: Gradients | None = None
    rates: dict[str, float] = field(default_factory=dict)  # iterations per second of "L1" and of "L1 + PCL"
    memory: str = ""  # peak memory in MiB and what it counts, in words

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if not check.passed]

    def __str__(self) -> str:
        lines = [f"pcl_loss {__version__} doctor", "", "versions"]
        lines += [f"  {name:12} {version}" for name, version in self.versions.items()]
        lines += ["", "repairs of BasicSR"]
        lines += [f"  {name:26} {state}" for name, state in self.repairs.items()] or ["  none: BasicSR is not usable"]
        lines += ["", f"one training step on {self.device}", f"  {self.workload}; {self.images}"]
        lines += [f"  {check}" for check in self.checks]
        if self.gradients is not None:
            lines += ["", "gradient norms at the SR output, loss_weight 1"]
            for white, l_cl in self.gradients.l_cl.items():
                l_1 = self.gradients.l_1[white]
                lines.append(f"  images in 0-{white:<4.0f} PCL {l_cl:.3e}   L_1 {l_1:.3e}   ratio {l_cl / l_1:.3g}")
            lines.append(f"  {self.gradients.advice()}")
        if self.rates:
            lines += ["", "cost"]
            lines += [f"  {name:9} {rate:.3g} iterations per second" for name, rate in self.rates.items()]
            added = 1 / self.rates["L1 + PCL"] - 1 / self.rates["L1"]
            lines.append(f"  PCL adds {added:.3g} s to an iteration on such a batch, whatever the SR network")
        if self.memory:
            lines.append(f"  {self.memory}")
        failed = "; ".join(check.name for check in self.failures)
        lines += ["", f"FAILED: {failed}" if failed else "healthy"]
        return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss doctor`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis; returns 0 if all is well, 1 if a check failed. Raises as `diagnose` does."""
    diagnosis = diagnose(args.device)
    print(diagnosis)
    return 1 if diagnosis.failures else 0


def diagnose(device: str | None = None, workload: Workload | None = None) -> Diagnosis:
    """Look at the libraries, take one training step, and measure. The global random numbers are left alone.

    The device is 'cpu', 'cuda', 'cuda:N', or None: a GPU where there is one. Without a workload it is that of
    `WORKLOADS` for the device. Raises ValueError if the device is unknown or not there.
    """
    place = torch.device(usable_device(device))
    if place.type not in WORKLOADS:
        raise ValueError(f"device {device!r} is not supported; take cpu, cuda or cuda:N")
    workload = workload or WORKLOADS[place.type]
    versions, checks = _versions()
    repairs, problems = _repairs(versions["basicsr"])
    checks += problems
    measured: dict[str, Any] = {}
    images = "no images"
    try:
        # On the CPU, and with a seed of their own: the same networks on every device.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            net = _SmallEDSR(workload.num_feat, workload.num_block).to(place)
            pcl = PCLCriterion(num_feat=workload.net_d_feat, sync=False).to(place)
        hr, images = _images(workload)
        hr = hr.to(place)
        lq = F.interpolate(hr, scale_factor=1 / SCALE, mode="bicubic", antialias=True).clamp(0, 1)
        step = _training_step(net, pcl, hr, lq)
        checks += step
        if all(check.passed for check in step):
            measured = _measure(net, pcl, hr, lq, workload)
    except Exception as error:  # whatever it is, it is the result
        checks.append(_failure("a training step runs", error))
    threads = f"{torch.get_num_threads()} threads"
    where = f"{place} ({torch.cuda.get_device_name(place) if place.type == 'cuda' else threads})"
    return Diagnosis(versions, repairs, where, images, workload, checks, **measured)


def _failure(name: str, error: Exception) -> Check:
    return Check(name, False, f"{type(error).__name__}: {error}")


# Versions


def _versions() -> tuple[dict[str, str], list[Check]]:
    """The versions, and a failed check for each library that is there but cannot be imported."""
    versions = {"pcl_loss": __version__, "python": platform.python_version(), "platform": platform.platform()}
    broken = []
    for library in LIBRARIES:
        module = _MODULES.get(library, library)
        versions[library], error = _version(module, _DISTRIBUTIONS.get(library, (library,)))
        if error is not None:
            broken.append(_failure(f"{module} can be imported", error))
            versions[library] += f", BROKEN: {broken[-1].detail}"
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["no GPU"]
    versions["torch"] += f", {cuda}, {', '.join(gpus)}"
    return versions, broken


def _version(module: str, distributions: tuple[str, ...]) -> tuple[str, Exception | None]:
    """The version, and what went wrong when it was imported."""
    version = None
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = version or importlib.metadata.version(distribution)
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # a binary of another version raises anything
        if version is None and isinstance(error, ModuleNotFoundError) and error.name == module:
            return _missing(module), None
        return version or "unknown version", error
    return str(getattr(imported, "__version__", version or "unknown version")), None


def _missing(module: str) -> str:
    extra = f": {advice(module)}" if module in EXTRAS else ""
    return f"not installed{extra}"


def _repairs(basicsr: str) -> tuple[dict[str, str], list[Check]]:
    """What each repair did; and a failed check if BasicSR, which can be imported, cannot be taught our names."""
    if basicsr.startswith("not installed") or "BROKEN" in basicsr:
        return {}, []
    try:
        from ..basicsr_plugin import register, repairs

        register()
    except Exception as error:  # BasicSR of another version
        return {}, [_failure("BasicSR knows us", error)]
    alone = "by `pcl-loss train` and `run` alone"
    states = {
        replaced.name: alone if replaced.in_a_run else "applied" if replaced.applied else "not needed"
        for replaced in repairs.REPLACED
    }
    return states | {"import_repair": "applied" if import_repair.is_used() else "not needed"}, []


# The training step


class _SmallEDSR(nn.Module):
    """Residual blocks upon bicubic enlargement, so that SR is near HR from the start."""

    def __init__(self, num_feat: int, num_block: int) -> None:
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
        self.head = conv(3, num_feat)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(num_feat, num_feat), nn.ReLU(), conv(num_feat, num_feat)) for _ in range(num_block)
        )
        self.tail = nn.Sequential(conv(num_feat, 3 * SCALE**2), nn.PixelShuffle(SCALE))

    def forward(self, lq: Tensor) -> Tensor:
        features = self.head(lq)
        for block in self.blocks:
            features = features + 0.1 * block(features)
        return 0.01 * self.tail(features) + F.interpolate(lq, scale_factor=SCALE, mode="bicubic")


def _images(workload: Workload) -> tuple[Tensor, str]:
    """HR patches `(N, 3, H, W)` in [0, 1], and what they are."""
    size, count = workload.gt_size, workload.batch_size
    try:
        import skimage.data

        photo = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1).float() / 255
        name = "astronaut of scikit-image"
    except Exception:  # not installed, or without its data: the texture does as well
        photo, name = _texture(512), "synthetic texture"
    rows = [(60 + 97 * i) % (photo.shape[1] - size) for i in range(count)]
    columns = [(180 + 61 * i) % (photo.shape[2] - size) for i in range(count)]
    return torch.stack([photo[:, y : y + size, x : x + size] for y, x in zip(rows, columns, strict=True)]), name


def _texture(size: int) -> Tensor:
    """Noise on five scales, stronger the coarser, as in photographs; `(3, size, size)`."""
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(1, 3, size, size)
    for level in range(5):
        noise = torch.rand(1, 3, size >> level, size >> level, generator=generator)
        image += float(2**level) * F.interpolate(noise, size=(size, size), mode="bilinear")
    return ((image - image.min()) / (image.max() - image.min()))[0]


def _training_step(net: nn.Module, pcl: PCLCriterion, hr: Tensor, lq: Tensor) -> list[Check]:
    before = [param.detach().clone() for param in pcl.embedding.parameters()]
    loss = pcl(net(lq), hr)
    value = float(loss.detach())
    grads = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True) if loss.requires_grad else ()
    norm = sum(float(grad.square().sum()) for grad in grads if grad is not None) ** 0.5
    moved = any(not torch.equal(old, new) for old, new in zip(before, pcl.embedding.parameters(), strict=True))
    return [
        Check("the loss is finite and above 0", 0 < value < float("inf"), f"L_CL {float(pcl.pcl.stats['l_cl']):.4f}"),
        Check("gradient of PCL reaches the SR network", 0 < norm < float("inf"), f"norm {norm:.3e}"),
        Check("E_D moved", moved),
        Check("E_D holds no gradient of it", all(param.grad is None for param in pcl.embedding.parameters())),
    ]


def _measure(net: nn.Module, pcl: PCLCriterion, hr: Tensor, lq: Tensor, workload: Workload) -> dict[str, Any]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def iteration(with_pcl: bool) -> None:
        sr = net(lq)
        loss = F.l1_loss(sr, hr)
        if with_pcl:
            loss = loss + pcl(sr, hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    rates, peaks = {}, {}
    for name, with_pcl in (("L1", False), ("L1 + PCL", True)):
        if hr.is_cuda:
            torch.cuda.reset_peak_memory_stats(hr.device)
        step = {"iteration": iteration, "with_pcl": with_pcl}
        # It runs twice to warm up, and waits for a GPU.
        timer = benchmark.Timer("iteration(with_pcl)", globals=step, num_threads=torch.get_num_threads())
        rates[name] = 1 / timer.timeit(workload.iterations).mean
        if hr.is_cuda:
            peaks[name] = torch.cuda.max_memory_allocated(hr.device) / 2**20
    # After these iterations E_D's statistics are those of images.
    return {"gradients": _gradients(net(lq).detach(), hr, pcl), "rates": rates, "memory": _memory(peaks)}


def _gradients(sr: Tensor, hr: Tensor, pcl: PCLCriterion) -> Gradients:
    l_cl, l_1 = {}, {}
    for white in (1.0, 255.0):
        anchor, target = (sr * white).requires_grad_(), hr * white
        loss = PCLLoss(data_range=white)
        l_cl[white] = float(torch.autograd.grad(loss(anchor, target, pcl.embedding), anchor)[0].norm())
        l_1[white] = float(torch.autograd.grad(F.l1_loss(anchor, target), anchor)[0].norm())
    return Gradients(l_cl, l_1)


def _memory(peaks: dict[str, float]) -> str:
    if peaks:
        each = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
        return f"peak memory, PyTorch's tensors on the GPU: {each}"
    try:
        import resource
    except ImportError:  # Windows
        return "peak memory: not measured on this system"
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return f"peak memory of the whole process, libraries included: {peak:.0f} MiB"
