"""`pcl-loss demo`: L1 against L1 + PCL, at several strengths, on real photographs; small enough for a CPU.

Read on in the order of the work: `data` cuts the photographs, `runs` trains, `results` measures.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .data import CHOOSE_REGIONS, TEST_REGIONS, TRAIN_REGIONS, write_pairs
from .results import CropScore, draw, evaluate, write_results
from .runs import DemoSettings, LogLine, make_runs, train_all, write_options


class DemoResult(NamedTuple):
    """What a demo has measured and where it lies."""

    folder: Path  # holds `results.md`, `results.csv`, `comparison.png`, the data, the YAMLs and BasicSR's own folders
    scores: list[CropScore]  # of every method on every test crop
    logs: dict[str, list[LogLine]]  # by name of the run, what it logged
    text: str  # the table and what there is to say about it


def run_demo(folder: Path, settings: DemoSettings, choose: bool = False) -> DemoResult:
    """Train, measure, write and draw in an empty folder; prints a progress bar alone. Raises RunError if a run failed.

    With `choose` it measures on the crops that settings are chosen on, and not on those that the demo reports.
    `latest` beside the folder points to the last complete one.
    """
    write_pairs(folder / "data" / "train", TRAIN_REGIONS)
    write_pairs(folder / "data" / "test", CHOOSE_REGIONS if choose else TEST_REGIONS)
    runs = make_runs(settings)
    write_options(folder, runs)
    logs = train_all(folder, runs)
    scores = evaluate(folder, runs)
    text = write_results(folder, scores, settings)
    draw(folder, scores)
    latest = folder.parent / "latest"
    if latest.is_symlink():
        latest.unlink()
    # Some file systems have no symbolic links; the demo prints the folder anyway.
    with contextlib.suppress(OSError):
        latest.symlink_to(folder.name, target_is_directory=True)
    return DemoResult(folder, scores, logs, text)


def make_run_folder(out: Path) -> Path:
    """Make `out/run-N` with the first N that is free. Raises ValueError if `out` is a file."""
    # It is better to learn this now than after the training.
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("the demo draws with matplotlib, which is not installed: pip install 'pcl_loss[plots]'")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, but {out} is a file; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    names = (f"run-{number}" for number in itertools.count(1))
    folder = next(out / name for name in names if not (out / name).exists())
    folder.mkdir()
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss demo`."""
    parser.add_argument("--out", type=Path, default=Path("experiments", "demo"), help="folder (default: %(default)s)")
    for name, text in (
        ("warmup_iters", "iterations of the common start with L1"),
        ("iters", "iterations of each of the runs after it"),
        ("seed", "of weights, data order and samples"),
    ):
        flag, default = f"--{name.replace('_', '-')}", getattr(DemoSettings(), name)
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--choose", action="store_true", help="measure on the crops that settings are chosen on")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss demo`; returns the exit status. Raises as `make_run_folder`, `DemoSettings` and `run_demo` do."""
    settings = DemoSettings(warmup_iters=args.warmup_iters, iters=args.iters, seed=args.seed)
    start = time.monotonic()
    try:
        folder = make_run_folder(args.out)
        # 55: starting and measuring.
        minutes = max(1, round((55 + sum(run.iters * run.seconds for run in make_runs(settings))) / 60))
        print(f"L1, and L1 + PCL at several strengths: about {minutes} min on two idle CPU cores", flush=True)
        print(f"Results go to {folder}", flush=True)
        result = run_demo(folder, settings, args.choose)
    except KeyboardInterrupt:
        print("\npcl-loss demo: stopped", file=sys.stderr)
        return 130
    print(f"\n{result.text}\n")
    for file in ("results.md", "results.csv", "comparison.png"):
        print(folder / file)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    return 0
