"""What describes a finished scale to BasicSR: meta_info.txt, LMDBs, and the YAML lines that train on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..._datasets import LR_PATCH
from ..._files import TEMPORARY, temporary_name
from .._files import PNG_COMPRESSION, write_file
from .._regions import Region
from .image import is_current

Item = TypeVar("Item")


def describe(out: Path, scale: int, regions: dict[str, Region], lmdb: bool, progress: bool) -> str:
    """Write meta_info.txt, the LMDBs and datasets.yml; returns the latter's text."""
    folder = out / f"X{scale}"
    meta = "".join(f"{name} ({region.height},{region.width},3)\n" for name, region in regions.items())
    write_file(folder / "meta_info.txt", meta.encode())
    if lmdb:
        _build_lmdb(folder / "HR", regions, 1, progress)
        _build_lmdb(folder / "LR", regions, scale, progress)
    yaml = _yaml(out, scale, regions, lmdb)
    write_file(folder / "datasets.yml", yaml.encode())
    return yaml


def bar(items: Iterable[Item], what: str, total: int, shown: bool) -> Iterable[Item]:
    """The items, with a progress bar on standard error."""
    # In a log file a line every ten seconds is enough.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(items, what, total, disable=not shown, unit="image", mininterval=interval, dynamic_ncols=True)


def _build_lmdb(images: Path, regions: dict[str, Region], shrink: int, progress: bool) -> None:
    """Put the PNGs of a folder into the LMDB beside it, unless that holds them already."""
    from basicsr.utils.lmdb_util import LmdbMaker

    target = images.with_name(f"{images.name}.lmdb")
    files = [(images / name).stat() for name in regions]
    shapes = {name: (region.height // shrink, region.width // shrink, 3) for name, region in regions.items()}
    meta = "".join(f"{name} ({h},{w},{c}) {PNG_COMPRESSION}\n" for name, (h, w, c) in shapes.items())
    if (
        target.exists()
        and (target / "meta_info.txt").read_text() == meta
        and is_current(target / "data.mdb", max(file.st_mtime for file in files))
    ):
        return

    # Room for pages that are filled in part, and for the tree: it bounds the file but does not fill the disk.
    map_size = 2 * sum(file.st_size for file in files) + 2**14 * len(files) + 2**26
    temporary = temporary_name(target)
    try:
        maker = LmdbMaker(str(temporary), map_size=map_size, batch=500, compress_level=PNG_COMPRESSION)
        with contextlib.closing(maker):
            for name, shape in bar(shapes.items(), target.name, len(shapes), progress):
                maker.put((images / name).read_bytes(), Path(name).stem, shape)
        if target.exists():
            # Renamed first: removing takes time, in which a kill would leave a part of it.
            outdated = target.with_name(f"{TEMPORARY}{os.getpid()}-outdated")
            os.replace(target, outdated)
            shutil.rmtree(outdated)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _yaml(out: Path, scale: int, regions: dict[str, Region], lmdb: bool) -> str:
    folder, ending = out / f"X{scale}", ".lmdb" if lmdb else ""
    name, smallest = min(regions.items(), key=lambda item: min(item[1].height, item[1].width))
    gt_size, why = LR_PATCH * scale, f"{LR_PATCH} LR pixels"
    if min(smallest.height, smallest.width) < gt_size:
        gt_size, why = min(smallest.height, smallest.width), f"no more, since {name} is not larger"
    meta_info = "" if lmdb else f"\n    meta_info_file: {_quote(folder / 'meta_info.txt')}"
    return f"""\
datasets:
  train:
    name: {_quote(f"{out.resolve().name}_X{scale}")}
    type: PairedImageDataset
    dataroot_gt: {_quote(folder / f"HR{ending}")}
    dataroot_lq: {_quote(folder / f"LR{ending}")}{meta_info}
    filename_tmpl: '{{}}'
    io_backend:
      type: {"lmdb" if lmdb else "disk"}
    gt_size: {gt_size}  # {why}
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 4
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
# and at the top level: scale: {scale}
"""


def _quote(value: str | Path) -> str:
    """A JSON string is a YAML string too, whatever characters it holds."""
    return json.dumps(str(value), ensure_ascii=False)
