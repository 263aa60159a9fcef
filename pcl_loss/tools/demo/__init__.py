"""`pcl-loss demo`: L1 against L1 + PCL on real photographs, small enough for a CPU.

Read on in the order of the work: `data` cuts the photographs, `runs` trains, `results` measures.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..report.measure import Score
from .data import TEST_REGIONS, TRAIN_REGIONS, write_pairs
from .results import draw, evaluate, write_results
from .runs import PCL, DemoSettings, LogLine, RunError, make_runs, train_all, write_options


@dataclass(frozen=True)
class DemoResult:
    """What a demo has measured and where it lies.

    Attributes:
        folder: holds `results.md`, `results.csv`, `comparison.png`, the data, the YAMLs and BasicSR's own folders.
        scores: of every method on every test crop.
        logs: by name of the run, what it logged.
        text: the table and what there is to say about it.
        seconds: how long it took.
    """

    folder: Path
    scores: list[Score]
    logs: dict[str, list[LogLine]]
    text: str
    seconds: float


def run_demo(out: Path, settings: DemoSettings | None = None) -> DemoResult:
    """Train, measure, write and draw; prints nothing but a progress bar.

    Args:
        out: every call writes a new folder `run-1`, `run-2`, ... in it, and `latest` points to the last complete one.
        settings: how long and how large.

    Raises:
        ValueError: `out` is a file.
        ImportError: matplotlib is missing.
        RunError: a training run failed.
    """
    return _run_demo(make_run_folder(out), settings or DemoSettings())


def _run_demo(folder: Path, settings: DemoSettings) -> DemoResult:
    start = time.monotonic()
    write_pairs(folder / "data" / "train", TRAIN_REGIONS)
    write_pairs(folder / "data" / "test", TEST_REGIONS)
    runs = make_runs(settings)
    write_options(folder, runs)
    logs = train_all(folder, runs)
    scores = evaluate(folder, runs)
    text = write_results(folder, scores, settings)
    draw(folder, scores, logs[PCL])
    _point_latest_to(folder)
    return DemoResult(folder, scores, logs, text, time.monotonic() - start)


def make_run_folder(out: Path) -> Path:
    """Make `out/run-N` with the first N that is free.

    Raises:
        ValueError: `out` is a file.
        ImportError: matplotlib is missing: it is better to learn this now than after the training.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("the demo draws with matplotlib, which is not installed: pip install 'pcl_loss[plots]'")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, but {out} is a file; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    number = 1
    while (folder := out / f"run-{number}").exists():
        number += 1
    folder.mkdir()
    return folder


def _point_latest_to(folder: Path) -> None:
    latest = folder.parent / "latest"
    if latest.is_symlink():
        latest.unlink()
    if not latest.exists():
        try:
            latest.symlink_to(folder.name, target_is_directory=True)
        except OSError:
            return  # some file systems have no symbolic links; the demo prints the folder anyway


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss demo`."""
    default = DemoSettings()
    parser.add_argument("--out", type=Path, default=Path("experiments", "demo"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--warmup-iters",
        type=int,
        default=default.warmup_iters,
        metavar="N",
        help="iterations of the common start with L1 (default: %(default)s)",
    )
    parser.add_argument(
        "--iters",
        type=int,
        default=default.iters,
        metavar="N",
        help="iterations of each of the two runs after it (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        metavar="N",
        help="of weights, data order and samples (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """`pcl-loss demo`; returns the exit status.

    Raises:
        TypeError, ValueError, OSError: as `run_demo`.
    """
    settings = DemoSettings(warmup_iters=args.warmup_iters, iters=args.iters, seed=args.seed)
    try:
        folder = make_run_folder(args.out)
        print(
            f"L1 against L1 + PCL: about {_duration(settings)} on two idle CPU cores. Results go to {folder}",
            flush=True,
        )
        result = _run_demo(folder, settings)
    except RunError as error:
        print(f"pcl-loss demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npcl-loss demo: stopped", file=sys.stderr)
        return 130
    print(f"\n{result.text}\n")
    for file in ("results.md", "results.csv", "comparison.png"):
        print(folder / file)
    print(f"{result.seconds / 60:.1f} minutes")
    return 0


def _duration(settings: DemoSettings) -> str:
    # 55: starting and measuring.
    seconds = 55 + sum(run.iters * run.seconds for run in make_runs(settings))
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' if minutes > 1 else ''}"
