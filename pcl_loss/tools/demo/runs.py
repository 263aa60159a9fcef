"""The demo's training runs: their YAMLs, and BasicSR at work on them in processes of their own."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml

from ...loss import RECIPES

ITERS = 300
MINUTES = 3  # of a demo of that length, on two idle CPU cores
TRAIN = ("-m", "pcl_loss.train", "-opt")  # what Python does for a run, in the folder of its YAML
BASELINE = "L1"
RECIPE = "light"
# `loss_weight` of the methods with PCL, the weakest first: half of the recipe's own, that, and twice that.
STRENGTHS = {f"{RECIPE} {weight:g}": weight for weight in (RECIPES[RECIPE]["loss_weight"] * k for k in (0.5, 1, 2))}


Options = dict[str, Any]  # BasicSR's; paths are relative to the folder that the demo writes


def weights_of(folder: Path, options: Options) -> Path:
    """Where BasicSR leaves the network."""
    return folder / "experiments" / options["name"] / "models" / "net_g_latest.pth"


def make_runs(folder: Path, iters: int, seed: int) -> dict[str, Options]:
    """Write `folder/NAME.yml` for each method: from the same weights, on the same batches. The options by method."""
    package = resources.files(__package__)
    template = string.Template(package.joinpath("l1_template.yml").read_text(encoding="utf-8"))
    runs = {}
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
        runs[method] = options
    return runs


def train(folder: Path, options: Options) -> None:
    """Do a run in a process of its own, which writes into `folder`, its output to `NAME.log`.

    Raises ChildProcessError with the end of that log if it failed.
    """
    # Threads that have nothing to do sleep, unless the user has chosen otherwise. By default they spin, and where
    # another process is busy they take the core from the thread they wait for: on two cores a small network then trains
    # ten times slower than with one thread.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    log = folder / f"{options['name']}.log"
    command = [sys.executable, *TRAIN, f"{options['name']}.yml"]
    with log.open("wb") as file:
        output: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=folder, env=environment, check=False, **output)
    if done.returncode or not weights_of(folder, options).is_file():
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        head = f"the run {options['name']} ended with exit status {done.returncode}. The end of {log}:"
        raise ChildProcessError("\n".join([head, *(f"  | {line}" for line in tail)]))
