"""The tables of `step_cost.py`, and what its figures are held against."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from _step_measure import Report
from _step_variants import L1, L1_PCL

from pcl_loss.tools._markdown import table

# In float64.
MAX_VALUE_DIFFERENCE = 1e-9
MAX_GRADIENT_DIFFERENCE = 1e-6
THREADS_OF_TARGETS = 2


@dataclass(frozen=True)
class Target:
    """The most that a figure may be on two CPU cores; `stretch` is hoped for."""

    limit: float
    stretch: float | None = None

    def verdict(self, value: float) -> str:
        """Whether it is met, in words."""
        if value > self.limit:
            return "no"
        return "yes" if self.stretch is None or value > self.stretch else f"yes, and the stretch of {self.stretch:g}"


TARGETS = {
    "PCLLoss / plain, time": Target(0.42),
    "PCLLoss / plain, extra memory": Target(0.5),
    "PCLLoss / floor_loss, time": Target(1.6, 1.25),
    "EDSR-S, L1 + PCL / L1, time": Target(2.0, 1.8),
    "RCAN, L1 + PCL / L1, time": Target(1.15),
    "HAN, L1 + PCL / L1, time": Target(1.15),
    "EDSR-L, L1 + PCL / L1, time": Target(1.06),
    "EDSR-S, light_loss / L1, slowest round": Target(0.08),
    **{f"{net}, light_loss / L1, slowest round": Target(0.02) for net in ("EDSR-L", "RCAN", "HAN")},
}


def describe_loss(report: Report) -> str:
    """The table of part 1."""
    header = ["the loss alone", "seconds", "PCLLoss / this"]
    rows = [
        [name, f"{seconds:.4g}", _spread(report["pcl_over"].get(name))]
        for name, seconds in report["median_seconds"].items()
    ]
    lines = []
    if "memory" in report:
        header.append("extra peak MiB")
        for row in rows:
            row.append(_mib(report["memory"].get(row[0]), "extra_mib"))
        ratio = report["extra_memory_over_plain"]
        lines = [
            f"extra memory of PCLLoss over that of plain: {'not to be told' if ratio is None else f'{ratio:.3g}'} "
            f"({report['memory']['plain']['counts']})"
        ]
    agreement = [f"{name}: {describe_agreement(difference)}" for name, difference in report["agreement"].items()]
    return "\n".join([table([header, *rows]), "", *agreement, *lines])


def describe_steps(net: str, report: Report) -> str:
    """The table of part 2 for one SR network."""
    header = [f"{net}, batch {report['batch']}, LR {report['lr_patch']}x{report['lr_patch']}", "seconds", "/ L1"]
    rows = [
        [name, f"{report['median_seconds'][name]:.4g}", _spread(spread)] for name, spread in report["over_l1"].items()
    ]
    if "memory" not in report:
        return table([header, *rows])
    header.append("peak MiB")
    for row in rows:
        row.append(_mib(report["memory"].get(row[0]), "peak_mib"))
    return f"{table([header, *rows])}\n\npeak: {report['memory'][L1]['counts']}"


def describe_agreement(difference: Mapping[str, float]) -> str:
    """By how much a loss differs from ours, and may."""
    return (
        f"in float64 its value differs from PCLLoss's by {difference['value']:.2g} of it (at most "
        f"{MAX_VALUE_DIFFERENCE:g}), its gradient by {difference['gradient']:.2g} of its largest entry (at most "
        f"{MAX_GRADIENT_DIFFERENCE:g})"
    )


def _spread(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values['median']:.3f} ({values['min']:.3f}-{values['max']:.3f})"


def _mib(memory: Report | None, key: str) -> str:
    return "" if memory is None else f"{memory[key]:.0f}"


def figures(report: Report) -> dict[str, float]:
    """Those of `TARGETS` that were measured."""
    found = {}
    if "loss" in report:
        over = report["loss"]["pcl_over"]
        found["PCLLoss / plain, time"] = over["plain"]["median"]
        if report["loss"].get("extra_memory_over_plain") is not None:
            found["PCLLoss / plain, extra memory"] = report["loss"]["extra_memory_over_plain"]
        found["PCLLoss / floor_loss, time"] = over["floor_loss"]["median"]
    for net, steps in report.get("steps", {}).items():
        over_l1 = steps["over_l1"]
        if L1_PCL in over_l1:
            found[f"{net}, L1 + PCL / L1, time"] = over_l1[L1_PCL]["median"]
        if "light_loss" in over_l1:
            found[f"{net}, light_loss / L1, slowest round"] = over_l1["light_loss"]["max"]
    return found


def describe_targets(report: Report) -> str:
    """Which targets are met."""
    rows = [
        [name, f"{value:.3f}", f"<= {TARGETS[name].limit:g}", TARGETS[name].verdict(value)]
        for name, value in figures(report).items()
    ]
    lines = [table([["targets on two CPU cores", "measured", "target", "met"], *rows])]
    threads = torch.get_num_threads()
    if threads != THREADS_OF_TARGETS:
        lines += ["", f"they are meant for {THREADS_OF_TARGETS} threads; PyTorch has used {threads}"]
    return "\n".join(lines)


def describe_machine(device: torch.device) -> Report:
    """Where this runs and with which versions."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "basicsr")},
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone, and not for every processor with such a line
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
