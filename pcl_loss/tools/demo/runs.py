"""The demo's training runs: their YAMLs, and BasicSR at work on them in processes of their own."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tqdm import tqdm

ITERS = 400
SECONDS = 200  # of a demo of that length, on two idle CPU cores
BASELINE = "L1"
RECIPE = "light"
LIGHT = {f"{RECIPE} {weight:g}": weight for weight in (3.0, 6.0, 12.0)}
"""`loss_weight` of the methods with PCL, the weakest first: the recipe's own, and two and four times that."""


class RunError(ChildProcessError):
    """A training run stopped with an error; the message shows the end of its log."""


class Run(NamedTuple):
    """A training run."""

    method: str  # its name in the table
    options: dict[str, Any]  # BasicSR's; paths are relative to the folder that the demo writes

    @property
    def name(self) -> str:
        """Of its YAML and of BasicSR's folder."""
        return str(self.options["name"])

    @property
    def weights(self) -> Path:
        """Where BasicSR leaves the network, relative to the folder that the demo writes."""
        return Path("experiments", self.name, "models", "net_g_latest.pth")


def make_runs(folder: Path, iters: int, seed: int) -> list[Run]:
    """Write `folder/NAME.yml` for each method: from the same weights, on the same batches."""
    template = string.Template(_text("l1_template.yml"))
    runs = []
    for method in (BASELINE, *LIGHT):
        name = f"demo_{method.lower().replace(' ', '_')}"
        values = {"name": name, "num_gpu": int(torch.cuda.is_available()), "seed": seed, "iters": iters}
        options = yaml.safe_load(template.substitute(values, never=iters + 1, print_freq=max(1, iters // 10)))
        options["path"]["pretrain_network_g"] = str(resources.files(__package__).joinpath("demo_net.pth"))
        if method != BASELINE:
            options["model_type"] = "PCLModel"
            options["train"]["pcl_opt"] = {"type": "PCLLoss", "recipe": RECIPE, "loss_weight": LIGHT[method]}
        header = f"# {method}. To run it again, in this folder: pcl-loss train -opt {name}.yml\n"
        text = header + yaml.safe_dump(options, sort_keys=False)
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
        runs.append(Run(method, options))
    return runs


def _text(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def train_all(folder: Path, runs: Sequence[Run]) -> None:
    """Do all runs in their order, under one progress bar. Raises RunError if one failed."""
    with tqdm(runs, unit="run", dynamic_ncols=True) as bar:
        for run in bar:
            bar.set_description_str(f"training with {run.method}")
            train(folder, run)


def train_command(name: str) -> list[str]:
    """What starts a run, in the folder of its YAML."""
    return [sys.executable, "-m", "pcl_loss.train", "-opt", f"{name}.yml"]


def train(folder: Path, run: Run) -> None:
    """Do a run in a process of its own, which writes into `folder`, its output to `NAME.log`.

    Raises RunError if it failed.
    """
    # Threads that have nothing to do sleep, unless the user has chosen otherwise. By default they spin, and where
    # another process is busy they take the core from the thread they wait for: on two cores a small network then trains
    # ten times slower than with one thread.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    log = folder / f"{run.name}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            train_command(run.name),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode or not (folder / run.weights).is_file():
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        head = f"the run {run.name} ended with exit status {done.returncode}. The end of {log}:"
        raise RunError("\n".join([head, *(f"  | {line}" for line in tail)]))
