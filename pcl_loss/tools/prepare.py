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
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .. import import_repair  # noqa: F401  (at module level: the worker processes import BasicSR too)
from .._checks import MIN_SIZE, check_count
from ._files import TEMPORARY, Image, resize, temporary_name, write_file, write_image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
COMPRESSION = 3
LR_PATCH = 48  # the paper's


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        pairs: the number of pairs at hand for each scale.
        made: how many images had a file to be written.
        kept: how many images had all of their files already.
        skipped: file name and reason, for each image that cannot be used.
        converted: file name and change, for each image that is not 8-bit colour.
        yaml: for each scale the lines that train on it; no entry where there is no pair.
    """

    pairs: dict[int, int]
    made: int
    kept: int
    skipped: dict[str, str]
    converted: dict[str, str]
    yaml: dict[int, str]


class _Region(NamedTuple):
    """A part of an HR image that becomes one pair."""

    name: str
    top: int
    left: int
    height: int
    width: int

    def cut(self, image: Image, shrink: int = 1) -> Image:
        """Its part of the HR image, or of one `shrink` times smaller."""
        top, left, height, width = (value // shrink for value in self[1:])
        return image[top : top + height, left : left + width]


class _Task(NamedTuple):
    source: Path
    out: Path
    scales: tuple[int, ...]
    crop: int | None
    step: int | None


@dataclass
class _Outcome:
    """What became of one HR image."""

    name: str
    skipped: str = ""
    converted: str = ""
    wrote: bool = False
    regions: dict[int, list[_Region]] = field(default_factory=dict)


class _UnusableImage(Exception):
    """The message says why."""


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
    """Prepare as the flags say: YAML lines to standard output, all else to standard error.

    Returns:
        0 if every image became pairs, 1 if any was skipped, 130 if it was interrupted.
    """
    try:
        done = prepare(
            args.hr, args.out, args.scale, crop=args.crop, step=args.step, lmdb=args.lmdb, jobs=args.jobs, progress=True
        )
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
        FileNotFoundError, NotADirectoryError: `hr` is no folder, or one without images.
        ValueError: a number is out of range; two HR files would have the same name, or a name does not suit BasicSR;
            `out` was written with other settings.
        TypeError: a number is none.
        ChildProcessError: a worker process died.
    """
    hr, out = Path(hr), Path(out)
    scales = tuple(
        sorted({check_count("scale", value, 2, 8) for value in ([scale] if isinstance(scale, int) else scale)})
    )
    if not scales:
        raise ValueError("scale is empty; give at least one, from 2 to 8")
    crop, step = _check_tiling(crop, step, scales)
    jobs = _cores() if jobs is None else check_count("jobs", jobs, 1)
    sources = _find_images(hr, for_lmdb=lmdb)

    _claim(out, scales, {"hr": str(hr.resolve()), "crop": crop, "step": step})
    for value in scales:
        for folder in (out / f"X{value}", out / f"X{value}" / "HR", out / f"X{value}" / "LR"):
            folder.mkdir(exist_ok=True)
            _remove_temporary(folder)

    tasks = [_Task(source, out, scales, crop, step) for source in sources]
    with _bar("images", len(tasks), progress) as bar:
        outcomes = _process(tasks, jobs, bar.update)
    # In the order of the folder, whichever worker was first.
    outcomes.sort(key=lambda outcome: outcome.name)

    pairs: dict[int, int] = {}
    yaml: dict[int, str] = {}
    for value in scales:
        regions = [region for outcome in outcomes for region in outcome.regions.get(value, [])]
        pairs[value] = len(regions)
        if regions:
            yaml[value] = _describe(out, value, regions, lmdb, progress)
    used = [outcome for outcome in outcomes if not outcome.skipped]
    return Prepared(
        pairs=pairs,
        made=sum(outcome.wrote for outcome in used),
        kept=sum(not outcome.wrote for outcome in used),
        skipped={outcome.name: outcome.skipped for outcome in outcomes if outcome.skipped},
        converted={outcome.name: outcome.converted for outcome in used if outcome.converted},
        yaml=yaml,
    )


# What is checked before anything is written


def _check_tiling(crop: int | None, step: int | None, scales: tuple[int, ...]) -> tuple[int | None, int | None]:
    if crop is None:
        if step is not None:
            raise ValueError(
                f"step {step} is given without crop; give the size of the sub-images too, such as crop 480"
            )
        return None, None
    check_count("crop", crop, _min_size(scales))
    step = crop // 2 if step is None else check_count("step", step, 1)
    for name, value in (("crop", crop), ("step", step)):
        for scale in scales:
            if value % scale:
                raise ValueError(
                    f"{name} {value} is no multiple of scale {scale}, so that HR and LR would not match; "
                    f"take {name} {max(1, value // scale) * scale}"
                )
    return crop, step


def _min_size(scales: tuple[int, ...]) -> int:
    """What E_D needs of an HR patch, and imresize of an image (it mirrors about two LR pixels at each border)."""
    return max(MIN_SIZE, 4 * max(scales))


def _cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _find_images(hr: Path, for_lmdb: bool) -> list[Path]:
    if not hr.exists():
        raise FileNotFoundError(f"the HR folder {hr} does not exist")
    if not hr.is_dir():
        raise NotADirectoryError(f"{hr} is a file; name the folder of the HR images")
    found = sorted(
        path for path in hr.iterdir() if path.suffix.lower() in EXTENSIONS and path.name[0] != "." and path.is_file()
    )
    if not found:
        raise FileNotFoundError(
            f"{hr} holds no image ({', '.join(EXTENSIONS)}); name the folder that holds them, not one above it"
        )
    by_stem: dict[str, Path] = {}
    for path in found:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(f"{other} and {path} would both become {path.stem}.png; rename or remove one of them")
        if any(character.isspace() for character in path.stem):
            raise ValueError(f"{path} has a blank in its name, where BasicSR ends a name in meta_info.txt; rename it")
        if for_lmdb and ("." in path.stem or not path.stem.isascii()):
            raise ValueError(
                f"{path}: BasicSR's LMDB keys are ASCII and end at the first dot; rename it, or do without LMDB"
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


# One image


def _process(tasks: Sequence[_Task], jobs: int, advance: Callable[[], object]) -> list[_Outcome]:
    """Do all tasks; calls `advance` after each."""
    outcomes: list[_Outcome] = []
    if min(jobs, len(tasks)) == 1:
        for task in tasks:
            outcomes.append(_prepare_image(task))
            advance()
        return outcomes

    # A plain fork of a process in which torch has run threads can hang. The fork server imports the slow libraries
    # once, before there are any threads, and the workers share them.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__, "basicsr.utils.matlab_functions"])
    jobs = min(jobs, len(tasks))
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    waiting = iter(tasks)
    pending: set[Future[_Outcome]] = set()
    try:
        while True:
            # No more than the workers can begin with, so that an interruption waits for these alone.
            pending |= {pool.submit(_prepare_image, task) for task in islice(waiting, jobs + 1 - len(pending))}
            if not pending:
                return outcomes
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                outcomes.append(future.result())
                advance()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died; if memory ran out, take fewer jobs (the same call finishes the rest); if this is "
            'a script without `if __name__ == "__main__":`, add it or take jobs=1'
        ) from error
    finally:
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


def _prepare_image(task: _Task) -> _Outcome:
    """Write what is missing of one image's pairs."""
    outcome = _Outcome(task.source.name)
    try:
        changed = task.source.stat().st_mtime
        hr, outcome.converted = _read(task.source, task.crop or _min_size(task.scales))
    except _UnusableImage as error:
        outcome.skipped = str(error)
        return outcome
    except OSError as error:
        outcome.skipped = f"cannot be read: {error.strerror or error}"
        return outcome

    written: dict[_Region, Path] = {}
    for scale in task.scales:
        folder = task.out / f"X{scale}"
        height, width = (side - side % scale for side in hr.shape[:2])
        regions = _regions(task.source.stem, height, width, task.crop, task.step)
        lr: Image | None = None
        for region in regions:
            hr_path, lr_path = folder / "HR" / region.name, folder / "LR" / region.name
            twin = written.setdefault(region, hr_path)
            if not _is_current(hr_path, changed):
                if twin == hr_path or not _link(twin, hr_path):
                    write_image(hr_path, region.cut(hr))
                outcome.wrote = True
            if not _is_current(lr_path, changed):
                lr = resize(hr[:height, :width], 1 / scale) if lr is None else lr
                write_image(lr_path, region.cut(lr, scale))
                outcome.wrote = True
        outcome.regions[scale] = regions
    return outcome


def _read(source: Path, min_size: int) -> tuple[Image, str]:
    """An image as 8-bit BGR, and what had to be changed for that."""
    import cv2

    data = np.frombuffer(source.read_bytes(), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error as error:
        raise _UnusableImage(f"cannot be decoded: {error.err}") from error
    if image is None:
        raise _UnusableImage("cannot be decoded: corrupt, cut short, or no image at all")
    if image.dtype not in (np.uint8, np.uint16):
        raise _UnusableImage(f"has pixels of type {image.dtype}; save it with 8 or 16 bits per channel")
    if min(image.shape[:2]) < min_size:
        raise _UnusableImage(
            f"is too small: {image.shape[0]}x{image.shape[1]} pixels, but at least {min_size}x{min_size} are needed"
        )

    changes = []
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 4:
        if (image[..., 3] != np.iinfo(image.dtype).max).any():
            raise _UnusableImage("is transparent in places; flatten it onto a background")
        image = image[..., :3]
        changes.append("opaque alpha channel dropped")
    elif channels == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        changes.append("grey to colour")
    elif channels != 3:
        raise _UnusableImage(f"has {channels} channels; save it as RGB")
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)
        changes.append("16 bits to 8")
    return image, ", ".join(changes)


def _regions(stem: str, height: int, width: int, crop: int | None, step: int | None) -> list[_Region]:
    if crop is None or step is None:
        return [_Region(f"{stem}.png", 0, 0, height, width)]
    corners = [(top, left) for top in _starts(height, crop, step) for left in _starts(width, crop, step)]
    return [
        _Region(f"{stem}_s{number:03d}.png", top, left, crop, crop) for number, (top, left) in enumerate(corners, 1)
    ]


def _starts(length: int, crop: int, step: int) -> list[int]:
    starts = list(range(0, length - crop + 1, step))
    if starts[-1] + crop < length:
        starts.append(length - crop)
    return starts


# Files


def _is_current(path: Path, source_changed: float) -> bool:
    try:
        return path.stat().st_mtime >= source_changed
    except FileNotFoundError:
        return False


def _link(source: Path, path: Path) -> bool:
    """Give a file a second name; False where the file system cannot."""
    temporary = temporary_name(path)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:
        return False
    finally:
        # It stays where both names meant the same file already.
        temporary.unlink(missing_ok=True)
    return True


def _remove_temporary(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


# What describes a finished scale


def _describe(out: Path, scale: int, regions: list[_Region], lmdb: bool, progress: bool) -> str:
    """Write meta_info.txt, the LMDBs and datasets.yml; returns the latter's text."""
    folder = out / f"X{scale}"
    meta = "".join(f"{region.name} ({region.height},{region.width},3)\n" for region in regions)
    write_file(folder / "meta_info.txt", meta.encode())
    if lmdb:
        _build_lmdb(folder / "HR", regions, 1, progress)
        _build_lmdb(folder / "LR", regions, scale, progress)
    yaml = _yaml_lines(out, scale, regions, lmdb)
    write_file(folder / "datasets.yml", yaml.encode())
    return yaml


def _build_lmdb(images: Path, regions: list[_Region], shrink: int, progress: bool) -> None:
    """Put the PNGs of a folder into the LMDB beside it, unless that holds them already."""
    from basicsr.utils.lmdb_util import LmdbMaker

    target = images.with_name(f"{images.name}.lmdb")
    files = [(images / region.name).stat() for region in regions]
    shapes = [(region.height // shrink, region.width // shrink, 3) for region in regions]
    meta = "".join(
        f"{region.name} ({height},{width},{channels}) {COMPRESSION}\n"
        for region, (height, width, channels) in zip(regions, shapes, strict=True)
    )
    if (
        target.exists()
        and (target / "meta_info.txt").read_text() == meta
        and _is_current(target / "data.mdb", max(file.st_mtime for file in files))
    ):
        return

    # Room for pages that are filled in part, and for the tree: it bounds the file but does not fill the disk.
    map_size = 2 * sum(file.st_size for file in files) + 2**14 * len(files) + 2**26
    temporary = temporary_name(target)
    try:
        maker = LmdbMaker(str(temporary), map_size=map_size, batch=500, compress_level=COMPRESSION)
        try:
            with _bar(target.name, len(regions), progress) as bar:
                for region, shape in zip(regions, shapes, strict=True):
                    maker.put((images / region.name).read_bytes(), Path(region.name).stem, shape)
                    bar.update()
        finally:
            maker.close()
        if target.exists():
            # Renamed first: removing takes time, in which a kill would leave a part of it.
            outdated = target.with_name(f"{TEMPORARY}{os.getpid()}-outdated")
            os.replace(target, outdated)
            shutil.rmtree(outdated)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _yaml_lines(out: Path, scale: int, regions: list[_Region], lmdb: bool) -> str:
    folder = out / f"X{scale}"
    smallest = min(regions, key=lambda region: min(region.height, region.width))
    gt_size, why = LR_PATCH * scale, f"{LR_PATCH} LR pixels"
    if min(smallest.height, smallest.width) < gt_size:
        gt_size, why = min(smallest.height, smallest.width), f"no more, since {smallest.name} is not larger"
    ending = ".lmdb" if lmdb else ""
    lines = [
        "datasets:",
        "  train:",
        f"    name: {_quote(f'{out.resolve().name}_X{scale}')}",
        "    type: PairedImageDataset",
        f"    dataroot_gt: {_quote(folder / f'HR{ending}')}",
        f"    dataroot_lq: {_quote(folder / f'LR{ending}')}",
        *([] if lmdb else [f"    meta_info_file: {_quote(folder / 'meta_info.txt')}"]),
        "    filename_tmpl: '{}'",
        "    io_backend:",
        f"      type: {'lmdb' if lmdb else 'disk'}",
        f"    gt_size: {gt_size}  # {why}",
        "    use_hflip: true",
        "    use_rot: true",
        "    use_shuffle: true",
        "    num_worker_per_gpu: 4",
        "    batch_size_per_gpu: 16",
        "    dataset_enlarge_ratio: 100",
        "    prefetch_mode: ~",
        f"# and at the top level: scale: {scale}",
    ]
    return "\n".join(lines) + "\n"


def _quote(value: str | Path) -> str:
    """A JSON string is a YAML string too, whatever characters it holds."""
    return json.dumps(str(value), ensure_ascii=False)


def _bar(what: str, total: int, shown: bool) -> tqdm[Any]:
    # In a log file a line every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit="image", disable=not shown, mininterval=interval, dynamic_ncols=True)
