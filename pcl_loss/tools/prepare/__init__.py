"""`pcl-loss prepare`: a folder of HR images becomes pairs that BasicSR's `PairedImageDataset` trains on.

Every scale has a folder of its own, complete in itself, so that a scale added later changes none of the others, and
HR is cropped no further than its scale asks for (as the published test sets are):

```
OUT/prepare.json            the settings of the run, which every later run into OUT must share
OUT/X4/HR/name.png          8-bit colour, top left part whose sides are multiples of 4
OUT/X4/LR/name.png          its MATLAB-like bicubic down-sampling (BasicSR's imresize), rounded to 8 bits
OUT/X4/meta_info.txt        a line `name.png (height,width,3)` for each pair, of the HR image
OUT/X4/HR.lmdb, LR.lmdb     with lmdb=True: the same PNGs, for BasicSR's lmdb io_backend
OUT/X4/datasets.yml         the YAML lines that train on them
```

With `crop` the pairs are overlapping sub-images `name_s001.png`, `name_s002.png`, ..., row by row: one every `step`
pixels, and a last one flush with the edge. LR is made from the whole image and then cut, so that sub-images have true
neighbours at their borders. HR files that are equal for several scales share their disk space (hard links).

No file ever lies half-written under one of these names: what is being written is called `.tmp-*` until it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import import_repair  # noqa: F401  (at module level: the worker processes import BasicSR too)
from ..._checks import check_count
from ..._files import TEMPORARY
from .._files import find_images, write_file
from .._regions import Region
from .dataset import bar, describe
from .image import Cuts, Outcome, prepare_image


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did."""

    pairs: dict[int, int]  # the number of pairs that there are now, for each scale
    made: int  # how many images had a file to be written
    kept: int  # how many images had all of their files already
    skipped: dict[str, str]  # file name and reason, for each image that cannot be used
    converted: dict[str, str]  # file name and change, for each image that is not 8-bit colour
    yaml: dict[int, str]  # for each scale the lines that train on it; no entry where there is no pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss prepare`."""
    parser.add_argument("--hr", type=Path, required=True, metavar="DIR", help="the folder of HR images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pairs go")
    parser.add_argument("--scale", type=int, nargs="+", required=True, metavar="S", help="one or more of 2 to 8")
    parser.add_argument("--crop", type=int, metavar="SIZE", help="cut sub-images of this HR size, e.g. 480")
    parser.add_argument("--step", type=int, metavar="PIXELS", help="between sub-images (default: half of --crop)")
    parser.add_argument("--lmdb", action="store_true", help="also write LMDBs")
    parser.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: one for each CPU core)")


def run(args: argparse.Namespace) -> int:
    """YAML lines to standard output, all else to standard error; 0, 1 if an image was skipped, 130 if interrupted."""
    try:
        done = prepare(**vars(args), progress=True)
    except KeyboardInterrupt:
        print("interrupted; the same command finishes the rest", file=sys.stderr)
        return 130
    for name, change in done.converted.items():
        print(f"converted {name}: {change}", file=sys.stderr)
    for name, reason in done.skipped.items():
        print(f"SKIPPED {name}: {reason}", file=sys.stderr)
    print(f"images: {done.made} made, {done.kept} kept, {len(done.skipped)} skipped", file=sys.stderr)
    for scale, count in done.pairs.items():
        print(f"X{scale}: {count} pairs in {args.out / f'X{scale}'}", file=sys.stderr)
    print("---\n".join(done.yaml.values()), end="")
    return 1 if done.skipped else 0


def prepare(
    hr: str | os.PathLike[str],
    out: str | os.PathLike[str],
    scale: int | Sequence[int],
    *,
    crop: int | None = None,
    step: int | None = None,
    lmdb: bool = False,
    jobs: int | None = None,
    progress: bool = False,
) -> Prepared:
    """Make pairs of HR and bicubic LR images; the module's docstring shows what lies where.

    Killed or interrupted, it leaves only complete files, and the same call finishes the rest. A file is kept if it is
    there and no older than its HR image. One call at a time may write into `out`.

    Grey images become colour, 16 bits become 8 and an opaque alpha channel is dropped; `converted` tells which. An
    image that cannot be decoded, is too small, or is transparent somewhere is left out and named in `skipped`.

    Args:
        hr: folder of HR images; its sub-folders are not looked at.
        out: folder of the results, made if missing.
        scale: one scale or several, from 2 to 8.
        crop: size of square sub-images in HR pixels, a multiple of every scale; None keeps images whole.
        step: distance of sub-images, a multiple of every scale; None is half of `crop`.
        lmdb: write LMDBs too.
        jobs: number of worker processes, None for one per CPU core. With more than 1, a script that calls this needs
            an `if __name__ == "__main__":` around the call; 1 works in this process.
        progress: show a progress bar on standard error.

    Raises:
        OSError: `hr` is no folder, or one without images; or a worker process died.
        ValueError, TypeError: a number is none or out of range; two HR files would have the same name, or a name does
            not suit BasicSR; `out` was written with other settings.
    """
    hr, out = Path(hr), Path(out)
    given = [scale] if isinstance(scale, int) else scale
    scales = tuple(sorted({check_count("scale", value, 2, 8) for value in given}))
    if not scales:
        raise ValueError("scale is empty; give at least one, from 2 to 8")
    cuts = _check_cuts(out, scales, crop, step)
    if jobs is None:
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    check_count("jobs", jobs, 1)
    sources = _find_images(hr, for_lmdb=lmdb)

    _claim(out, scales, {"hr": str(hr.resolve()), "crop": cuts.crop, "step": cuts.step})
    for value, part in itertools.product(scales, ("", "HR", "LR")):
        folder = out / f"X{value}" / part
        folder.mkdir(exist_ok=True)
        for stray in folder.glob(f"{TEMPORARY}*"):  # what a killed run left half-written
            if stray.is_dir():
                shutil.rmtree(stray)
            else:
                stray.unlink()

    with contextlib.closing(_process(sources, cuts, min(jobs, len(sources)))) as finished:
        outcomes = list(bar(finished, "images", len(sources), progress))

    regions: dict[int, dict[str, Region]] = {value: {} for value in scales}
    for outcome in outcomes:
        for value, more in outcome.regions.items():
            regions[value] |= more
    pairs = {value: len(found) for value, found in regions.items()}
    yaml = {value: describe(out, value, found, lmdb, progress) for value, found in regions.items() if found}
    used = [outcome for outcome in outcomes if not outcome.skipped]
    made = sum(outcome.wrote for outcome in used)
    skipped = {outcome.name: outcome.skipped for outcome in outcomes if outcome.skipped}
    converted = {outcome.name: outcome.converted for outcome in used if outcome.converted}
    return Prepared(pairs, made, len(used) - made, skipped, converted, yaml)


# What is checked before anything is written


def _check_cuts(out: Path, scales: tuple[int, ...], crop: int | None, step: int | None) -> Cuts:
    if crop is None:
        if step is not None:
            raise ValueError(f"step {step} is given without crop; give the sub-images' size too, such as crop 480")
        return Cuts(out, scales)
    check_count("crop", crop, Cuts(out, scales).min_size)
    step = crop // 2 if step is None else check_count("step", step, 1)
    for (name, value), scale in itertools.product((("crop", crop), ("step", step)), scales):
        if value % scale:
            fix = f"take {name} {max(1, value // scale) * scale}"
            raise ValueError(
                f"{name} {value} is no multiple of scale {scale}, so that HR and LR would not match; {fix}"
            )
    return Cuts(out, scales, crop, step)


def _find_images(hr: Path, for_lmdb: bool) -> list[Path]:
    found = list(find_images("the HR folder", hr).values())
    for path in found:
        if any(character.isspace() for character in path.stem):
            raise ValueError(f"{path} has a blank in its name, where BasicSR ends a name in meta_info.txt; rename it")
        if for_lmdb and ("." in path.stem or not path.stem.isascii()):
            raise ValueError(
                f"{path}: BasicSR's LMDB keys are ASCII and end at the first dot; rename it, or use no LMDB"
            )
    return found


def _claim(out: Path, scales: Iterable[int], settings: dict[str, Any]) -> None:
    """Make `out` ours with these settings; refuse one that holds the results of others."""
    record = out / "prepare.json"
    if not record.exists():
        for scale in scales:
            if (out / f"X{scale}").exists():
                raise ValueError(f"{out / f'X{scale}'} was not made by prepare; take another out folder")
        out.mkdir(parents=True, exist_ok=True)
        write_file(record, json.dumps(settings, indent=2).encode() + b"\n")
        return
    before = json.loads(record.read_text(encoding="utf-8"))
    changed = [key for key in settings if settings[key] != before.get(key)]
    if changed:
        changes = ", ".join(f"{key} {before.get(key)} instead of {settings[key]}" for key in changed)
        raise ValueError(
            f"{out} was made with {changes}; take another out folder, or remove this one. "
            f"(If only the HR folder has moved, edit {record}.)"
        )


# The worker processes


def _process(sources: Sequence[Path], cuts: Cuts, jobs: int) -> Generator[Outcome]:
    """Do all images, in their order."""
    prepare_one = functools.partial(prepare_image, cuts=cuts)
    if jobs == 1:
        yield from map(prepare_one, sources)
        return

    # A plain fork of a process in which torch has run threads can hang. The fork server imports the slow libraries
    # once, before there are any threads, and the workers share them.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__, "basicsr.utils.matlab_functions"])
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(prepare_one, sources)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died; if memory ran out, take fewer jobs (the same call finishes the rest); if this is "
            'a script without `if __name__ == "__main__":`, add it or take jobs=1'
        ) from error
    finally:
        # An interruption waits for the images that the workers have begun with alone.
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import cv2
    import torch

    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, the workers of a killed parent would wait for ever, and go on writing beside the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
