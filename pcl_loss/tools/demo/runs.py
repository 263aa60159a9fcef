"""The demo's training runs: their YAMLs, and BasicSR at work on them in processes of their own."""

from __future__ import annotations

import os
import re
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tqdm import tqdm

from ..._checks import check_count
from .data import SCALE, TILE

Options = dict[str, Any]

WARMUP, L1 = "demo_warmup", "demo_l1"
BASELINE, PAPER = "L1", "paper 1"
LIGHT = {"light 3": 3.0, "light 6": 6.0, "light 12": 12.0}
"""`loss_weight` of the methods with the light recipe, the weakest first: its default, and two and four times that."""


@dataclass(frozen=True)
class DemoSettings:
    """How long and how large; the defaults suit two CPU cores.

    Raises TypeError or ValueError where a value is no integer or out of range.
    """

    warmup_iters: int = 1800  # of the common start
    iters: int = 400  # of each of the runs that go on from there
    seed: int = 0  # of weights, data order and samples
    num_feat: int = 32  # channels of EDSR
    num_block: int = 8  # residual blocks of EDSR
    num_feat_d: int = 32  # channels of E_D's first block
    gt_size: int = 96  # side of the HR training patches, a multiple of 4
    batch_size: int = 4

    def __post_init__(self) -> None:
        for name in ("warmup_iters", "iters", "num_feat", "num_block", "num_feat_d", "batch_size"):
            check_count(name, getattr(self, name), 1)
        check_count("seed", self.seed, 0, 2**31)
        check_count("gt_size", self.gt_size, 32, TILE)
        if self.gt_size % SCALE:
            raise ValueError(f"gt_size must be a multiple of {SCALE}, got {self.gt_size}")


class Run(NamedTuple):
    """A training run."""

    method: str  # its name in the table; empty for one that is not measured, since others start from it
    seconds: float  # of an iteration on two idle CPU cores
    options: Options  # BasicSR's; paths are relative to the folder that the demo writes

    @property
    def name(self) -> str:
        """Of its YAML and of BasicSR's folder."""
        return str(self.options["name"])

    @property
    def stage(self) -> str:
        """What it does, for the progress line."""
        return self.method or "warm-up with L1"

    @property
    def iters(self) -> int:
        """How long it is."""
        return int(self.options["train"]["total_iter"])


def make_runs(settings: DemoSettings) -> list[Run]:
    """The runs in their order: the common start with L1, and from there each method."""
    warmup = _l1_options(WARMUP, settings, settings.warmup_iters, lr=1e-3, seed=settings.seed)
    # Another seed than the warm-up's: BasicSR would otherwise cut the same patches again.
    l1 = _l1_options(L1, settings, settings.iters, lr=4e-4, seed=settings.seed + 1)
    l1["path"]["pretrain_network_g"] = str(weights_path(WARMUP))

    def with_pcl(method: str, seconds: float, weight: float, **more: Any) -> Run:
        recipe = method.partition(" ")[0]
        train = l1["train"] | {"pcl_opt": {"type": "PCLLoss", "recipe": recipe, "loss_weight": weight}}
        name = f"demo_{method.replace(' ', '_')}"
        return Run(method, seconds, l1 | {"name": name, "model_type": "PCLModel", "train": train, **more})

    net_d = {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": settings.num_feat_d}
    return [
        Run("", 0.06, warmup),
        Run(BASELINE, 0.06, l1),
        *(with_pcl(method, 0.065, weight) for method, weight in LIGHT.items()),
        with_pcl(PAPER, 0.17, 1.0, network_d=net_d),
    ]


def _l1_options(name: str, settings: DemoSettings, iters: int, lr: float, seed: int) -> Options:
    template = resources.files(__package__).joinpath("l1_template.yml").read_text(encoding="utf-8")
    values = {"name": name, "num_gpu": int(torch.cuda.is_available()), "lr": lr, "seed": seed}
    values |= {"iters": iters, "never": iters + 1, "print_freq": max(1, iters // 100)}
    options: Options = yaml.safe_load(string.Template(template).substitute(vars(settings) | values))
    return options


def weights_path(name: str) -> Path:
    """Where BasicSR leaves the network of a run, relative to the folder that the demo writes."""
    return Path("experiments", name, "models", "net_g_latest.pth")


def write_options(folder: Path, runs: Sequence[Run]) -> None:
    """Write `folder/NAME.yml` for each run."""
    for run in runs:
        header = f"# {run.stage}. To run it again, in this folder: pcl-loss train -opt {run.name}.yml\n"
        text = header + yaml.safe_dump(run.options, sort_keys=False)
        (folder / f"{run.name}.yml").write_text(text, encoding="utf-8")


class RunError(ChildProcessError):
    """A training run stopped with an error; the message shows the end of its log."""


class LogLine(NamedTuple):
    """What BasicSR logged at one iteration."""

    iteration: int
    values: dict[str, float]


_ITERATION = re.compile(r"\[epoch:[^\]]*\biter:\s*([\d,]+)")
_VALUE = re.compile(r"(\w+): (\S+)")


def parse_log_line(text: str) -> LogLine | None:
    """The iteration and the logged numbers of one line of BasicSR's log; None for any other line."""
    iteration = _ITERATION.search(text)
    if iteration is None:
        return None
    # The losses stand behind the bracket with the times.
    values = {key: float(number) for key, number in _VALUE.findall(text.rpartition("]")[2])}
    return LogLine(int(iteration[1].replace(",", "")), values)


def train_command(name: str) -> list[str]:
    """What starts a run, in the folder of its YAML."""
    return [sys.executable, "-m", "pcl_loss.train", "-opt", f"{name}.yml"]


def train(folder: Path, name: str, on_log: Callable[[LogLine], None]) -> list[LogLine]:
    """Run `folder/NAME.yml` in a process of its own, which ends with this call whatever happens.

    It writes into `folder`, its output to `NAME.log`. Every line of numbers is handed to `on_log` as it appears, and
    all are returned. Raises RunError if the run failed.
    """
    # Threads that have nothing to do sleep, unless the user has chosen otherwise. By default they spin, and where
    # another process is busy they take the core from the thread they wait for: on two cores a small network then trains
    # ten times slower than with one thread.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    log_path = folder / f"{name}.log"
    logged: list[LogLine] = []
    with (
        log_path.open("w", encoding="utf-8") as log_file,
        subprocess.Popen(
            train_command(name),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as child,
    ):
        try:
            for text in child.stdout or ():
                log_file.write(text)
                log_file.flush()
                line = parse_log_line(text)
                if line is not None:
                    logged.append(line)
                    on_log(line)
        except BaseException:
            child.kill()
            raise
    weights = folder / weights_path(name)
    if child.returncode == 0 and weights.is_file():
        return logged
    what = f"stopped with exit status {child.returncode}" if child.returncode else f"left no network in {weights}"
    tail = log_path.read_text(encoding="utf-8").splitlines()[-15:]
    raise RunError("\n".join([f"the run {name} {what}. The end of {log_path}:", *(f"  | {text}" for text in tail)]))


def train_all(folder: Path, runs: Sequence[Run]) -> dict[str, list[LogLine]]:
    """Do all runs in their order, under one progress bar; what each has logged. Raises RunError if one failed.

    The bar counts seconds on two idle cores, since an iteration with PCL takes longer than one without.
    """
    logs = {}
    bar_format = f"{{percentage:3.0f}}%|{{bar}}| about {{remaining}} left of all {len(runs)} runs{{postfix}}"
    total = sum(run.iters * run.seconds for run in runs)
    with tqdm(total=total, bar_format=bar_format, smoothing=0, dynamic_ncols=True) as bar:
        before = 0.0
        for run in runs:

            def show(line: LogLine, run: Run = run, before: float = before) -> None:
                values = [f"{key} {line.values[key]:.4f}" for key in ("l_pix", "margin") if key in line.values]
                now = f"{run.stage}: iteration {line.iteration} of {run.iters}"
                bar.set_postfix_str(", ".join([now, *values]), refresh=False)
                bar.update(before + line.iteration * run.seconds - bar.n)

            bar.set_postfix_str(f"{run.stage}: starting")
            logs[run.name] = train(folder, run.name, show)
            before += run.iters * run.seconds
            bar.update(before - bar.n)
    return logs
