"""The demo's evaluation, table and picture."""

from __future__ import annotations

import csv
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ... import import_repair  # noqa: F401  (BasicSR is imported below)
from .._files import Image, read_image, resize, write_image
from . import figure as viz
from .data import CROP, SCALE, TEST_REGIONS
from .runs import L1, PCL, DemoSettings, LogLine, network_options, weights_path

WINDOW = 72
"""Side of what the picture shows of a test crop."""

METHODS = ("bicubic", "L1", "L1 + PCL")
REFERENCE = "HR itself"
METRICS = {
    "psnr": ("PSNR (dB)", 2, "higher"),
    "ssim": ("SSIM", 4, "higher"),
    "niqe": ("NIQE", 2, "lower"),
    "lpips": ("LPIPS", 4, "lower"),
}

DISCLAIMER = (
    "This is a small demonstration: a small network, minutes of training on parts of three photographs, one seed, and "
    "a recipe that was chosen on these test crops. It shows that the loss trains; it is no evidence for or against the "
    "paper's results."
)


class Score(NamedTuple):
    """The numbers of one method on one test crop."""

    crop: str
    method: str
    psnr: float
    ssim: float
    niqe: float
    lpips: float | None = None
    """None where LPIPS or its backbone is not at hand."""


def lpips_at_hand() -> bool:
    """Whether LPIPS can be measured without a download."""
    from ...basicsr_plugin.lpips_metric import backbone_at_hand

    return importlib.util.find_spec("lpips") is not None and backbone_at_hand()


def measure(crop: str, method: str, image: Image, hr: Image) -> Score:
    """PSNR and SSIM on Y, and NIQE, as BasicSR computes them, without a border of 4 pixels; LPIPS if it is at hand."""
    from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim

    from ...basicsr_plugin.lpips_metric import calculate_lpips

    pair = {"crop_border": SCALE, "input_order": "HWC", "test_y_channel": True}
    return Score(
        crop,
        method,
        psnr=float(calculate_psnr(image, hr, **pair)),
        ssim=float(calculate_ssim(image, hr, **pair)),
        niqe=float(calculate_niqe(image, crop_border=SCALE, input_order="HWC")),
        lpips=calculate_lpips(image, hr, crop_border=0) if lpips_at_hand() else None,
    )


def load_network(folder: Path, name: str, settings: DemoSettings) -> Callable[[Image], Image]:
    """The trained network of a run, as a function from an LR image to an SR image."""
    import torch
    from basicsr.archs import build_network
    from basicsr.utils import img2tensor, tensor2img

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_network(network_options(settings))
    network.load_state_dict(torch.load(folder / weights_path(name), map_location="cpu", weights_only=True)["params"])
    network.to(device).eval()

    def upscale(lr: Image) -> Image:
        with torch.no_grad():
            x = img2tensor(lr.astype(np.float32) / 255).unsqueeze(0).to(device)
            image: Image = tensor2img(network(x))
        return image

    return upscale


def evaluate(folder: Path, settings: DemoSettings) -> list[Score]:
    """Measure all methods on all test crops; their images go to `folder/sr/METHOD/`."""
    upscalers = (lambda lr: resize(lr, SCALE), *(load_network(folder, name, settings) for name in (L1, PCL)))
    scores = []
    for region in tqdm(TEST_REGIONS, desc="measuring", unit="crop", leave=False):
        file = f"{region.name}.png"
        hr, lr = (read_image(folder / "data" / "test" / kind / file) for kind in ("HR", "LR"))
        scores.append(measure(region.name, REFERENCE, hr, hr))
        for method, upscale in zip(METHODS, upscalers, strict=True):
            sr = upscale(lr)
            write_image(folder / "sr" / method / file, sr)
            scores.append(measure(region.name, method, sr, hr))
    return scores


def values_of(scores: Sequence[Score], method: str, metric: str) -> list[float]:
    """One metric of one method, a number per crop."""
    return [getattr(score, metric) for score in scores if score.method == method]


def metrics_of(scores: Sequence[Score]) -> dict[str, tuple[str, int, str]]:
    """The metrics that were measured: title, digits, and which direction is better."""
    return {m: about for m, about in METRICS.items() if all(getattr(score, m) is not None for score in scores)}


def differences(scores: Sequence[Score], metric: str) -> list[float]:
    """L1 + PCL minus L1, a number per crop."""
    pairs = zip(values_of(scores, METHODS[2], metric), values_of(scores, METHODS[1], metric), strict=True)
    return [with_pcl - without for with_pcl, without in pairs]


def format_table(scores: Sequence[Score]) -> str:
    """The table, in Markdown that also reads well as text: mean ± standard deviation over the test crops."""
    metrics = metrics_of(scores)
    rows = [["", *(f"{title} ({better} is better)" for title, _, better in metrics.values())]]
    for method in METHODS:
        rows.append([method, *(_mean_and_spread(values_of(scores, method, m), d) for m, (_, d, _) in metrics.items())])
    difference = [_mean_and_spread(differences(scores, m), d + 1, "+") for m, (_, d, _) in metrics.items()]
    rows.append(["L1 + PCL minus L1, per crop", *difference])
    # NIQE alone looks at one image; the others compare HR with itself here.
    niqe = _mean_and_spread(values_of(scores, REFERENCE, "niqe"), METRICS["niqe"][1])
    rows.append([REFERENCE, *(niqe if m == "niqe" else "-" for m in metrics)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{sign}.{digits}f} ± {spread:.{digits}f}"


def verdict(scores: Sequence[Score]) -> str:
    """On how many crops L1 + PCL is better than L1, metric by metric."""
    parts = []
    for metric, (title, _, better) in metrics_of(scores).items():
        gains = [value if better == "higher" else -value for value in differences(scores, metric)]
        parts.append(f"{title.split()[0]} on {sum(gain > 0 for gain in gains)} of {len(gains)}")
    return f"L1 + PCL is better than L1 in {', '.join(parts[:-1])} and {parts[-1]} test crops."


def write_results(folder: Path, scores: Sequence[Score], settings: DemoSettings) -> str:
    """Write `results.csv`, a row per crop and method, and `results.md`; returns the latter's text."""
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Score._fields)
        writer.writerows(scores)
    text = "\n\n".join(
        [
            f"EDSR ({settings.num_block} blocks of {settings.num_feat} channels), x{SCALE}; {settings.warmup_iters} "
            f"iterations of warm-up, then {settings.iters} with L1 and {settings.iters} with L1 + PCL from the same "
            f"checkpoint, with the same patches; seed {settings.seed}.",
            f"Mean ± standard deviation over {len(TEST_REGIONS)} test crops of {CROP} x {CROP} pixels; PSNR and SSIM "
            "on Y. The crops differ much more from each other than the methods do: compare the methods by the row of "
            "differences. NIQE is meant for whole photographs and is rough on such small crops.",
            format_table(scores),
            verdict(scores),
            DISCLAIMER,
        ]
    )
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return text


def pictured_crops(folder: Path, count: int = 3) -> list[tuple[str, int, int]]:
    """The test crops that the picture shows, as (name, top, left) of a window in each.

    HR alone decides: of each photograph the most detailed window, and the `count` most detailed of these.
    """
    best: dict[str, tuple[float, str, int, int]] = {}
    for region in TEST_REGIONS:
        hr = read_image(folder / "data" / "test" / "HR" / f"{region.name}.png")
        detail, top, left = viz.most_detailed_window(hr, WINDOW)
        best[region.photo] = max(best.get(region.photo, (0.0, "", 0, 0)), (detail, region.name, top, left))
    return [(name, top, left) for _, name, top, left in sorted(best.values(), reverse=True)[:count]]


def draw(folder: Path, scores: Sequence[Score], log: Sequence[LogLine]) -> None:
    """Write `comparison.png`: crops side by side with their numbers, and the curves of the contrastive run."""
    by_key = {(score.crop, score.method): score for score in scores}
    rows = []
    for name, top, left in pictured_crops(folder):
        row = []
        for method in (REFERENCE, *METHODS):
            source = folder / ("data/test/HR" if method == REFERENCE else f"sr/{method}") / f"{name}.png"
            window = read_image(source)[top : top + WINDOW, left : left + WINDOW, ::-1]
            score = by_key[name, method]
            pair = "" if method == REFERENCE else f"PSNR {score.psnr:.2f}  SSIM {score.ssim:.4f}\n"
            lpips = "" if method == REFERENCE or score.lpips is None else f"  LPIPS {score.lpips:.4f}"
            row.append(viz.Panel(window, method, f"{pair}NIQE {score.niqe:.2f}{lpips}"))
        rows.append(row)
    curves = {key: [line.values[key] for line in log] for key in ("pos_sim", "neg_sim", "margin")}
    note = f"{WINDOW} x {WINDOW} pixels each, the most detailed of HR; numbers: of the whole {CROP} x {CROP} test crop"
    figure = viz.comparison_figure(rows, [line.iteration for line in log], curves, note)
    figure.savefig(folder / "comparison.png")
