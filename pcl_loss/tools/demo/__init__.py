"""`pcl-loss demo`: a small trained network is fine-tuned with L1 and with L1 + PCL, at several strengths.

Read on in the order of the work: `data` cuts the photographs, `runs` trains, `results` measures. README.md beside them
says where the network comes from.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from pathlib import Path

from tqdm import tqdm

from ..._checks import check_count
from ...basicsr_plugin.lpips_metric import fetch_backbone
from .data import TEST_REGIONS, TRAIN_REGIONS, write_pairs
from .results import BACKBONE, draw, evaluate, write_results
from .runs import ITERS, MINUTES, make_runs, train

MAX_SEED = 2**31 - 1  # BasicSR adds the rank to it, and NumPy takes no more than 32 bits


def run_demo(out: Path, iters: int = ITERS, seed: int = 0) -> Path:
    """Train, measure, write and draw in a new folder `out/run-N`, which it returns.

    Raises ValueError or TypeError where a number is out of range, ChildProcessError if a training failed, ImportError
    where a library is missing.
    """
    check_count("iters", iters, 1)
    check_count("seed", seed, 0, MAX_SEED)
    # Before the training rather than after it.
    for library, extra in (("matplotlib", "plots"), ("piq", "metrics")):
        if importlib.util.find_spec(library) is None:
            raise ImportError(f"the demo needs {library}, which is not installed: pip install 'pcl_loss[{extra}]'")
    no_lpips = ""
    try:
        fetch_backbone(BACKBONE)
    except (ImportError, FileNotFoundError) as error:
        no_lpips = str(error)
    folder = next(path for path in (out / f"run-{number}" for number in itertools.count(1)) if not path.exists())
    folder.mkdir(parents=True)
    print(f"Results go to {folder}", flush=True)

    write_pairs(folder / "data" / "train", TRAIN_REGIONS)
    write_pairs(folder / "data" / "test", TEST_REGIONS)
    runs = make_runs(folder, iters, seed)
    with tqdm(runs.items(), unit="run", dynamic_ncols=True) as bar:
        for method, options in bar:
            bar.set_description_str(f"training with {method}")
            train(folder, options)
    scores = evaluate(folder, runs, with_lpips=not no_lpips)
    write_results(folder, scores, iters, seed, no_lpips)
    draw(folder, scores)
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss demo`."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("experiments", "demo"), help="parent of the new folder (default: %(default)s)")
    add("--iters", type=int, default=ITERS, metavar="N", help="iterations of each run (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the data order and the samples (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss demo`; returns the exit status. Raises as `run_demo` does."""
    start = time.monotonic()
    print(f"L1, and L1 + PCL at several strengths: about {MINUTES} min on two idle CPU cores", flush=True)
    print("For LPIPS, SqueezeNet's weights are downloaded once (4.7 MB); without them there is no LPIPS", flush=True)
    folder = run_demo(args.out, args.iters, args.seed)
    print("", (folder / "results.md").read_text(encoding="utf-8"), sep="\n")
    for file in ("results.md", "results.csv", "comparison.png"):
        print(folder / file)
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    return 0
