"""The demo's training runs: their YAMLs, and BasicSR at work on them in processes of their own."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ...loss import RECIPES

ITERS = 400
MINUTES = 3  # of a demo of that length, on two idle CPU cores
BASELINE = "L1"
RECIPE = "light"
STRENGTHS = {f"{RECIPE} {weight:g}": weight for weight in (RECIPES[RECIPE]["loss_weight"] * k for k in (1, 2, 4))}
"""`loss_weight` of the methods with PCL, the weakest first: the recipe's own, and two and four times that."""


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
    package = resources.files(__package__)
    template = string.Template(package.joinpath("l1_template.yml").read_text(encoding="utf-8"))
    runs = []
    for method in (BASELINE, *STRENGTHS):
        name = f"demo_{method.lower().replace(' ', '_')}"
        values = {"name": name, "num_gpu": int(torch.cuda.is_available()), "seed": seed, "iters": iters}
        options = yaml.safe_load(template.substitute(values, never=iters + 1, print_freq=max(1, iters // 10)))
        options["path"]["pretrain_network_g"] = str(package.joinpath("demo_net.pth"))
        if method in STRENGTHS:
            options["model_type"] = "PCLModel"
            options["train"]["pcl_opt"] = {"type": "PCLLoss", "recipe": RECIPE, "loss_weight": STRENGTHS[method]}
        header = f"# {method}. To run it again, in this folder: pcl-loss train -opt {name}.yml\n"
        text = header + yaml.safe_dump(options, sort_keys=False)
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
        runs.append(Run(method, options))
    return runs


def train_command(name: str) -> list[str]:
    """What starts a run, in the folder of its YAML."""
    return [sys.executable, "-m", "pcl_loss.train", "-opt", f"{name}.yml"]


def train(folder: Path, run: Run) -> None:
    """Do a run in a process of its own, which writes into `folder`, its output to `NAME.log`.

    Raises ChildProcessError with the end of that log if it failed.
    """
    # Threads that have nothing to do sleep, unless the user has chosen otherwise. By default they spin, and where
    # another process is busy they take the core from the thread they wait for: on two cores a small network then trains
    # ten times slower than with one thread.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    log = folder / f"{run.name}.log"
    with log.open("wb") as file:
        output: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        done = subprocess.run(train_command(run.name), cwd=folder, env=environment, check=False, **output)
    if done.returncode or not (folder / run.weights).is_file():
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        head = f"the run {run.name} ended with exit status {done.returncode}. The end of {log}:"
        raise ChildProcessError("\n".join([head, *(f"  | {line}" for line in tail)]))
