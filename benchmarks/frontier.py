"""What works in this loss, and at what price: `python benchmarks/frontier.py run ...`, then `... tables RESULTS`.

A trained net is fine-tuned with L1 and a second loss: every method from the same weights, on the same batches. The
second loss is weighed once, before the run, so that the norm of its gradient at the SR images is a given ratio of L1's.
With `--gan` every method, L1 too, has a GAN beside it, whose discriminator was first trained against the start net.
`run` appends one JSON line a run to its results and passes over what is there, so that it may be stopped at any time.

The net's code and weights lie outside this repository. Beyond what the package needs: `pip install --no-deps piq
dists-pytorch`, and the VGG16 and AlexNet backbones under `$TORCH_HOME`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from _frontier_methods import L1, REORDERED, UNSHARP, parse_method
from _frontier_run import TEST, VAL, Job, Setting, run
from _frontier_tables import METRICS, Results, csv_rows, differences_table, draw, equal_psnr_table
from tqdm import tqdm

WITHOUT = (L1, REORDERED, UNSHARP)  # a second loss


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message if it makes no sense."""
    parser = argparse.ArgumentParser(description="What works in this loss, and at what price.")
    commands = parser.add_subparsers(dest="command", required=True)

    runs = commands.add_parser("run", help="train and measure; goes on where it was stopped")
    runs.add_argument("--net", required=True, metavar="MODULE:FUNCTION", help="gives a trained x4 net of [0, 1]")
    runs.add_argument("--train", required=True, nargs="+", type=Path, metavar="DIR", help="HR images; 60 are held out")
    runs.add_argument("--test", nargs="*", default=[], metavar="NAME=DIR", help="more test sets")
    runs.add_argument("--on", choices=(VAL, TEST), default=VAL, help="choose knobs on val, report on test")
    runs.add_argument("--methods", required=True, nargs="+", metavar="NAME[,KEY=VALUE...]")
    runs.add_argument("--ratios", nargs="+", type=float, default=[0.5, 1.0], help="of the gradients (default: .5 1)")
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    runs.add_argument("--iters", type=int, default=300, help="of a run (default: 300)")
    runs.add_argument("--gan", type=Path, metavar="DIR", help="second stage; the discriminators are kept here")
    runs.add_argument("--results", required=True, type=Path, metavar="FILE", help="one JSON line a run is appended")

    tables = commands.add_parser("tables", help="Markdown of results, on standard output; nothing is run")
    tables.add_argument("results", type=Path, metavar="RESULTS")
    tables.add_argument("--iters", type=int, default=300)
    tables.add_argument("--at", type=float, default=0.02, metavar="DB", help="lost in the second (default: .02)")
    tables.add_argument("--every-ratio", action="store_true", help="in the first, not only the largest up to 1")
    tables.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves too")
    tables.add_argument("--csv", type=Path, metavar="FILE", help="all sets, lengths, ratios and nets")
    return parser.parse_args(arguments)


def plan(methods: Iterable[str], ratios: Iterable[float], seeds: Iterable[int]) -> list[Job]:
    """The runs in their order: seed by seed, so that a stop leaves whole comparisons behind."""
    ratios_of = {method: [None] if parse_method(method)[0].name in WITHOUT else list(ratios) for method in methods}
    return [Job(method, ratio, seed) for seed in seeds for method in ratios_of for ratio in ratios_of[method]]


def read_results(file: Path) -> list[dict[str, Any]]:
    """The records so far; a line that was cut off by a stop does not count."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}}}")]


def pending(setting: Setting, jobs: Iterable[Job], records: Iterable[dict[str, Any]]) -> list[Job]:
    """The jobs that have no record yet."""
    done = {tuple(each[key] for key in ("net", "on", "iters", "method", "ratio", "seed")) for each in records}
    return [job for job in jobs if (setting.name, setting.on, setting.iters, *job) not in done]


def run_all(setting: Setting, jobs: Sequence[Job], results: Path) -> None:
    """Make the runs one after another, with one thread, and append their records."""
    torch.set_num_threads(1)
    for job in tqdm(jobs):
        record = run(setting, job)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def show_tables(args: argparse.Namespace) -> None:
    """Print the tables, and write what else is asked for."""
    records = [record for record in read_results(args.results) if record["on"] == TEST]
    results = Results(records, TEST, args.iters, TEST)
    print(differences_table(results, every=args.every_ratio), equal_psnr_table(results, args.at), sep="\n\n")
    if args.picture:
        draw(results, args.picture)
    if args.csv:
        parts = dict.fromkeys((name, record["iters"]) for record in records for name in record["scores"])
        columns = [f"{metric.title}{part}" for metric in METRICS.values() for part in ("", " (sd)")]
        with args.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["set", "iterations", "second loss", "r", "net", *columns])
            for name, iters in parts:
                writer.writerows(csv_rows(Results(records, TEST, iters, name)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if args.command == "tables":
        show_tables(args)
        return
    tests = tuple((name, Path(folder)) for name, _, folder in (text.partition("=") for text in args.test))
    setting = Setting(args.net, tuple(args.train), tests, args.on, args.iters, args.gan)
    jobs = plan(args.methods, args.ratios, args.seeds)
    run_all(setting, pending(setting, jobs, read_results(args.results)), args.results)


if __name__ == "__main__":
    main()
