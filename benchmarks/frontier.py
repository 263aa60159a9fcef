"""What works in this loss, and at what price: `python benchmarks/frontier.py run ...`, then `... tables RESULTS`.

A trained net is fine-tuned with L1 and a second loss: every method from the same weights, on the same batches. The
second loss is weighed once, before the run, so that the norm of its gradient at the SR images is a given ratio of L1's.
Several ratios give a curve in the plane of distortion and perception; curves are compared, not single points.

`run` appends one JSON line a run to its results and passes over what is there, so that it may be stopped at any time.
The net's code and weights lie outside this repository. Beyond what the package needs: `pip install --no-deps piq
dists-pytorch`, and the VGG16 and AlexNet backbones under `$TORCH_HOME`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from _frontier_methods import L1, REORDERED, UNSHARP, PackageMissing, parse_method
from _frontier_run import TEST, VAL, Job, Setting, run
from _frontier_sheet import draw_sheet
from _frontier_tables import Results, describe, draw

Record = dict[str, Any]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message if it makes no sense."""
    parser = argparse.ArgumentParser(description="What works in this loss, and at what price.")
    commands = parser.add_subparsers(dest="command", required=True)

    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("--net", required=True, metavar="MODULE:FUNCTION", help="the x4 net; MODULE on PYTHONPATH")
    runs.add_argument("--weights", required=True, type=Path, metavar="FILE", help="its state dict")
    runs.add_argument("--name", help="of the net in the results (default: FUNCTION)")
    runs.add_argument("--range", type=float, default=1.0, metavar="WHITE", help="of the net's images (default: 1)")
    runs.add_argument("--train", required=True, nargs="+", type=Path, metavar="DIR", help="HR images; 60 are held out")
    runs.add_argument("--test", nargs="*", default=[], type=_named_folder, metavar="NAME=DIR", help="more test sets")
    runs.add_argument("--on", choices=(VAL, TEST), default=VAL, help="choose knobs on val, report on test")
    runs.add_argument("--methods", required=True, nargs="+", type=_method, metavar="NAME[,KEY=VALUE...]")
    runs.add_argument("--ratios", nargs="+", type=float, default=[0.5, 1.0], help="of the gradients (default: .5 1)")
    runs.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    runs.add_argument("--iters", type=int, default=300, help="of a run (default: 300)")
    runs.add_argument("--threads", type=int, default=1, help="of a run (default: 1)")
    runs.add_argument("--work", required=True, type=Path, metavar="DIR", help="takes the nets that come out")

    command = commands.add_parser("run", parents=[runs], help="train and measure; goes on where it was stopped")
    command.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    command.add_argument("--results", required=True, type=Path, metavar="FILE", help="one JSON line a run is appended")

    command = commands.add_parser("sheet", parents=[runs], help="crops where the methods differ most from the first")
    command.add_argument("--set", default=TEST, metavar="NAME", help="of the images (default: %(default)s)")
    command.add_argument("--rows", type=int, default=8, help="crops (default: 8)")
    command.add_argument("--out", required=True, type=Path, metavar="FILE")

    command = commands.add_parser("tables", help="Markdown of results, on standard output; nothing is run")
    command.add_argument("results", nargs="+", type=Path, metavar="RESULTS")
    command.add_argument("--on", choices=(VAL, TEST), default=TEST)
    command.add_argument("--iters", type=int, default=300)
    command.add_argument("--every", action="store_true", help="also the candidates that were looked at on the way")
    command.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves too")
    command.add_argument(
        "--methods", nargs="*", default=[], metavar="NAME", help="curves of the picture (default: those with a title)"
    )
    command.add_argument("--sets", nargs="+", metavar="NAME", help="test sets (default: all); the picture: the first")
    return parser.parse_args(arguments)


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=DIR, a folder of HR images")
    return name, Path(folder)


def _method(text: str) -> str:
    try:
        name, options = parse_method(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if name == UNSHARP and list(options) != ["factor"]:
        raise argparse.ArgumentTypeError(f"write {UNSHARP},factor=1.2; got {text!r}")
    return text


def plan(methods: Iterable[str], ratios: Iterable[float], seeds: Iterable[int]) -> list[Job]:
    """The runs in their order: seed by seed, so that a stop leaves whole comparisons behind."""
    methods, ratios = list(methods), list(ratios)
    return [
        Job(method, ratio, seed)
        for seed in seeds
        for method in methods
        for ratio in ([None] if method.partition(",")[0] in (L1, REORDERED, UNSHARP) else ratios)
    ]


def key(record: Record) -> tuple[Any, ...]:
    """What tells a run from all others."""
    return tuple(record[name] for name in ("net", "on", "iters", "method", "ratio", "seed"))


def read_results(file: Path) -> list[Record]:
    """The records so far; a line that was cut off by a stop does not count."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def pending(setting: Setting, jobs: Iterable[Job], records: Iterable[Record]) -> list[Job]:
    """The jobs that have no record yet."""
    done = {key(record) for record in records}
    return [job for job in jobs if (setting.name, setting.on, setting.iters, *job) not in done]


def run_all(setting: Setting, jobs: Sequence[Job], results: Path, threads: int, workers: int) -> None:
    """Make the runs that are not in the results yet, and append them."""
    left = pending(setting, jobs, read_results(results))
    print(f"{len(left)} of {len(jobs)} runs to do", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        futures = [pool.submit(run, setting, job) for job in left]
        try:
            for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
                record = future.result()
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rounded(record)) + "\n")
                passed = time.perf_counter() - begin
                minutes = passed / count * (len(left) - count) / 60
                print(f"{count}/{len(left)}, {minutes:.0f} min left: {key(record)}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def rounded(value: Any) -> Any:
    """Floats to seven figures, so that the results stay small."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if args.command == "tables":
        results = Results([record for file in args.results for record in read_results(file)], args.on, args.iters)
        sets = args.sets or results.sets
        print(describe(results, sets, args.every))
        if args.picture:
            draw(results, args.picture, args.methods, sets[0])
        return
    setting = Setting(
        net=args.net,
        name=args.name or args.net.partition(":")[2],
        weights=args.weights,
        data_range=args.range,
        train=tuple(args.train),
        tests=tuple(args.test),
        on=args.on,
        iters=args.iters,
        work=args.work,
    )
    jobs = plan(args.methods, args.ratios, args.seeds)
    try:
        if args.command == "run":
            run_all(setting, jobs, args.results, args.threads, args.jobs)
        else:
            torch.set_num_threads(args.threads)
            for spot in draw_sheet(setting, jobs, args.set, args.rows, args.out):
                print(spot)
    except PackageMissing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
