"""Runs nets on test sets and measures their images; SR images are kept, so that no net runs twice."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ... import import_repair  # noqa: F401  (it lets basicsr be imported)
from .._checkpoints import build, upscale
from .._images import Image, read_image, resize, write_image
from .nets import Net, Pair

METRICS = ("psnr", "ssim", "niqe", "lpips")
NIQE_BLOCK = 96
TRIAL = 24  # side of the LR image that a net is tried on before anything is measured


class Score(NamedTuple):
    """What was measured of one image."""

    net: str
    pair: Pair
    sr: Path
    values: dict[str, float | None]  # by metric; None where it cannot be had

    def row(self) -> dict[str, object]:
        """A row of a CSV."""
        return {"net": self.net, "set": self.pair.set_name, "image": self.pair.name, **self.values}


def lpips_missing() -> str:
    """Why LPIPS cannot be measured without a download, and what to do; empty where it can."""
    from ...basicsr_plugin.lpips_metric import backbone_at_hand, backbone_file

    if importlib.util.find_spec("lpips") is None:
        return "the lpips package is not installed: pip install 'pcl_loss[metrics]'"
    if not backbone_at_hand():
        return f"AlexNet's weights are not at {backbone_file()}: --lpips always downloads them (233 MB)"
    return ""


def measure(sr: Image, hr: Image, scale: int, lpips: str | None) -> dict[str, float | None]:
    """PSNR and SSIM on Y, and NIQE, without `scale` pixels of the border; LPIPS of the whole, by the backbone `lpips`.

    The images are `(H, W, 3)`. NIQE is None where fewer than two of its blocks fit, or all are flat.
    """
    from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim

    from ...basicsr_plugin.lpips_metric import calculate_lpips

    inner = {"crop_border": scale, "input_order": "HWC"}
    niqe = math.nan
    if math.prod((side - 2 * scale) // NIQE_BLOCK for side in sr.shape[:2]) >= 2:  # one has no covariance
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)
            niqe = float(calculate_niqe(sr, **inner))
    return {
        "psnr": float(calculate_psnr(sr, hr, **inner, test_y_channel=True)),
        "ssim": float(calculate_ssim(sr, hr, **inner, test_y_channel=True)),
        "niqe": niqe if math.isfinite(niqe) else None,
        "lpips": calculate_lpips(sr, hr, crop_border=0, net=lpips) if lpips else None,
    }


def measure_all(
    nets: Sequence[Net],
    pairs: Sequence[Pair],
    out: Path,
    *,
    scale: int,
    device: str,
    lpips: str | None = None,
    progress: bool = False,
) -> list[Score]:
    """All scores of every net on every image; `lpips` names the backbone. SR images are kept below `out`.

    Raises ValueError or OSError where an image or a net cannot be used; every net is tried before anything is measured.
    """
    files = {net.name: net.sr_files(pairs, out, scale) for net in nets}
    modules = {
        net.name: _module(net, scale)
        for net in nets
        if net.checkpoint and not all(file.is_file() for file in files[net.name].values())
    }
    scores = []
    with tqdm(total=len(nets) * len(pairs), unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for net in nets:
            module = modules.pop(net.name, None)  # its memory is for the next
            if module is not None:
                module.to(device)
            for pair in pairs:
                bar.set_description_str(f"{net.name} on {pair.set_name}", refresh=False)
                hr, lr = pair.load(scale)
                file = files[net.name][pair]
                if not file.is_file():
                    lr = resize(hr, 1 / scale) if lr is None else lr
                    sr = upscale(module, lr, scale, device, _window(net)) if module else resize(lr, scale)
                    write_image(file, sr)
                sr = read_image(file)
                if sr.shape != hr.shape:
                    raise ValueError(f"{file} is {sr.shape[0]}x{sr.shape[1]}, {pair.hr} {hr.shape[0]}x{hr.shape[1]}")
                scores.append(Score(net.name, pair, file, measure(sr, hr, scale, lpips)))
                bar.update()
    return scores


def _window(net: Net) -> int:
    return int((net.options or {}).get("window_size", 1))


def _module(net: Net, scale: int) -> nn.Module:
    """The module of a net that upscales colour images by `scale`; raises ValueError if it does not."""
    assert net.checkpoint is not None
    module = build(net.checkpoint, net.options or {}, net.options_file, net.param_key)
    side = -(-TRIAL // _window(net)) * _window(net)
    try:
        with torch.no_grad():
            shape = module(torch.zeros(1, 3, side, side)).shape
        expected = (1, 3, scale * side, scale * side)
        problem = "" if shape == expected else f"its output is {tuple(shape)} in place of {expected}"
    except (RuntimeError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
    if problem:
        raise ValueError(
            f"{net.name} does not upscale RGB images by {scale}: {problem}; check --scale and network_g in "
            f"{net.options_file}, or give a folder of its SR images: --net {net.name}=DIR with DIR/SET/IMAGE.png"
        )
    return module
