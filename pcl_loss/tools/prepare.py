"""`pcl-loss prepare`: a folder of HR images becomes pairs that BasicSR's `PairedImageDataset` trains on.

Every scale has a folder of its own, and HR is cropped no further than its scale asks for, as published test sets are:

```
OUT/X4/HR/name.png          8-bit colour, top left part whose sides are multiples of 4
OUT/X4/LR/name.png          its MATLAB-like bicubic down-sampling (BasicSR's imresize), rounded to 8 bits
OUT/X4/meta_info.txt        a line `name.png (height,width,3)` for each pair, of the HR image
OUT/X4/datasets.yml         the YAML lines that train on them
```

With `crop` the pairs are overlapping sub-images `name_s001.png`, `name_s002.png`, ..., row by row: one every `step`
pixels, and a last one flush with the edge. LR is made from the whole image and then cut.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import signal
import string
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import import_repair  # noqa: F401  (at module level: the worker processes import BasicSR too)
from .._checks import MIN_SIZE, check_count
from ._images import Image, find_images, read_image, resize, write_file, write_image
from ._pictures import Region, tiles

LR_PATCH = 48  # section 3.5 of the paper

Shapes = dict[str, tuple[int, int]]  # height and width of HR, by file name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss prepare`."""
    add = parser.add_argument
    add("--hr", type=Path, required=True, metavar="DIR", help="the folder of HR images")
    add("--out", type=Path, required=True, metavar="DIR", help="where the pairs go")
    add("--scale", type=int, nargs="+", required=True, metavar="S", help="one or more of 2 to 8")
    add("--crop", type=int, metavar="SIZE", help="cut sub-images of this HR size, e.g. 480")
    add("--step", type=int, metavar="PIXELS", help="between the sub-images of --crop (default: half of it)")
    add("--jobs", type=int, metavar="N", help="worker processes (default: one for each CPU core)")


def run(args: argparse.Namespace) -> int:
    """YAML lines to standard output, all else to standard error; returns 1 if an image was skipped."""
    yaml, skipped = prepare(**vars(args))
    for name, reason in skipped.items():
        print(f"SKIPPED {name}: {reason}", file=sys.stderr)
    print("---\n".join(yaml.values()), end="")
    return 1 if skipped else 0


def prepare(
    hr: str | os.PathLike[str],
    out: str | os.PathLike[str],
    scale: int | Sequence[int],
    *,
    crop: int | None = None,
    step: int | None = None,
    jobs: int | None = None,
) -> tuple[dict[int, str], dict[str, str]]:
    """Make pairs of HR and bicubic LR images; the module's docstring shows what lies where.

    The arguments are the flags of `pcl-loss prepare`. Returns for each scale the YAML lines that train on it (none
    where there is no pair), and for each file that cannot be used the reason. Killed or interrupted, it leaves only
    complete images, and the same call finishes the rest. With more than one job, a script that calls this needs an
    `if __name__ == "__main__":` around the call. Raises OSError where there is no folder of images, ValueError or
    TypeError where a number or the name of an image cannot be used.
    """
    out, given = Path(out), [scale] if isinstance(scale, int) else scale
    scales = tuple(sorted({check_count("scale", value, 2, 8) for value in given}))
    if crop is not None:
        check_count("crop", crop, MIN_SIZE)
        step = crop // 2 if step is None else check_count("step", step, 1)
        for (name, value), factor in itertools.product((("crop", crop), ("step", step)), scales):
            if value % factor:
                fix = f"take {name} {max(1, value // factor) * factor}"
                raise ValueError(f"{name} {value} is no multiple of scale {factor}, so HR and LR cannot match; {fix}")
    jobs = (os.cpu_count() or 1) if jobs is None else check_count("jobs", jobs, 1)
    sources = list(find_images("the HR folder", Path(hr)).values())
    for path in sources:
        if path.stem.split() != [path.stem]:
            raise ValueError(f"{path} has a blank in its name, where BasicSR ends a name in meta_info.txt; rename it")

    work = functools.partial(prepare_image, out=out, scales=scales, crop=crop, step=step)
    bar = functools.partial(tqdm, total=len(sources), unit="image", dynamic_ncols=True)
    if jobs == 1:
        outcomes = list(bar(map(work, sources)))
    else:
        # Not by a fork: that of a process in which torch has run threads can hang.
        with ProcessPoolExecutor(min(jobs, len(sources)), get_context("spawn"), _start_worker) as pool:
            outcomes = list(bar(pool.map(work, sources)))
    skipped = {path.name: found for path, found in zip(sources, outcomes, strict=True) if isinstance(found, str)}
    made = [found for found in outcomes if not isinstance(found, str)]
    return {value: _describe(out, value, made) for value in scales if made}, skipped


def _start_worker() -> None:
    import cv2
    import torch

    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def prepare_image(
    source: Path, out: Path, scales: Sequence[int], crop: int | None, step: int | None
) -> dict[int, Shapes] | str:
    """Write what is missing of one image's pairs: whole, or in squares of `crop` every `step`.

    Returns the pairs by scale, or the reason why there are none.
    """
    import cv2

    try:
        hr = read_image(source)
        changed = source.stat().st_mtime
    except (ValueError, OSError, cv2.error) as error:
        return " ".join(str(error).split())
    size = crop or MIN_SIZE  # of E_D; and imresize mirrors about two LR pixels at each border, 32 at the most
    if min(hr.shape[:2]) < size:
        return f"is too small: {hr.shape[0]}x{hr.shape[1]} pixels, but at least {size}x{size} are needed"
    shapes: dict[int, Shapes] = {}
    for scale in scales:
        height, width = (side // scale * scale for side in hr.shape[:2])
        regions = {f"{source.stem}.png": Region(0, 0, height, width)}
        if crop and step:
            squares = enumerate(tiles(height, width, crop, step), 1)
            regions = {f"{source.stem}_s{i:03d}.png": square for i, square in squares}
        lr: Image | None = None
        for name, region in regions.items():
            hr_path, lr_path = (out / f"X{scale}" / part / name for part in ("HR", "LR"))
            if not _is_done(hr_path, lr_path, region.cut(hr), changed):
                lr = resize(hr[:height, :width], 1 / scale) if lr is None else lr
                write_image(hr_path, region.cut(hr))
                write_image(lr_path, region.cut(lr, scale))
        shapes[scale] = {name: (region.height, region.width) for name, region in regions.items()}
    return shapes


def _is_done(hr_path: Path, lr_path: Path, hr: Image, source_changed: float) -> bool:
    """Whether a pair is there, no older than its source, and of this very part of it: LR is written after HR."""
    if not all(path.is_file() and path.stat().st_size for path in (hr_path, lr_path)):
        return False
    is_current = lr_path.stat().st_mtime >= hr_path.stat().st_mtime >= source_changed
    return is_current and np.array_equal(read_image(hr_path), hr)


def _describe(out: Path, scale: int, made: Sequence[dict[int, Shapes]]) -> str:
    """Write a scale's meta_info.txt and datasets.yml; returns the latter's text."""
    folder = out / f"X{scale}"
    shapes = {name: shape for of_image in made for name, shape in of_image[scale].items()}
    meta = "".join(f"{name} ({height},{width},3)\n" for name, (height, width) in shapes.items())
    write_file(folder / "meta_info.txt", meta.encode())
    gt_size = min(LR_PATCH * scale, *map(min, shapes.values()))
    texts = {"name": f"{out.resolve().name}_X{scale}", "meta_info": folder / "meta_info.txt"}
    texts |= {part: folder / part for part in ("HR", "LR")}
    # A JSON string is a YAML string too, whatever characters it holds.
    quoted = {key: json.dumps(str(text), ensure_ascii=False) for key, text in texts.items()}
    template = resources.files(__package__).joinpath("dataset_template.yml").read_text(encoding="utf-8")
    text = string.Template(template).substitute(quoted, gt_size=gt_size, scale=scale)
    write_file(folder / "datasets.yml", text.encode())
    return text
