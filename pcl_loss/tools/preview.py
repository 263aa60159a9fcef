"""`pcl-loss preview`: what the loss compares, as one picture: GT, its positives, its negatives, and their bands."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import preview
from ..loss import PCLLoss
from . import _images
from ._checkpoints import load_discriminator, read_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss preview`."""
    add = parser.add_argument
    add("--image", type=Path, required=True, metavar="FILE", help="the ground truth")
    add("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    add("--sr", type=Path, metavar="FILE", help="its super-resolved image")
    add("--lq", type=Path, metavar="FILE", help="its LR image, for the negative 'lq'")
    add("--net-d", type=Path, metavar="FILE", help="a trained E_D, net_d_*.pth: similarities to --sr")
    add("--seed", type=int, default=0, help="of the samples (default: 0)")
    add("--opt", type=Path, metavar="FILE.yml", help="take the knobs of PCLLoss from its train.pcl_opt")


def run(args: argparse.Namespace) -> int:
    """Draw the sheet that the flags describe; returns 0. Raises ValueError, TypeError, OSError or ImportError."""
    if not args.out.suffix or args.out.is_dir():
        raise ValueError(f"--out {args.out} names no picture; give a file such as {args.out / 'sheet.png'}")
    if args.net_d is not None and args.sr is None:
        raise ValueError("--net-d gives similarities to an SR image: add --sr FILE")
    pcl = _loss_of(args)
    hr, sr, lq = (None if path is None else read_image(path) for path in (args.image, args.sr, args.lq))
    assert hr is not None
    height, width = hr.shape[-2:]
    if sr is not None and sr.shape != hr.shape:
        raise ValueError(f"{args.sr} is no SR image of {args.image}, which is {height}x{width}")
    scale = 1 if lq is None else max(1, width // lq.shape[-1])
    if lq is not None and [scale * side for side in lq.shape[-2:]] != [height, width]:
        raise ValueError(f"{args.image} is {height}x{width}, which is no whole multiple of {args.lq}")
    window = preview.detailed_window(hr, multiple=scale)
    sheet = preview.make_sheet(
        preview.cut(hr, window),
        pcl,
        sr=None if sr is None else preview.cut(sr, window),
        lq=None if lq is None else preview.cut(lq, window, scale),
        embedding=None if args.net_d is None else load_discriminator(args.net_d),
    )
    title = f"{args.image.name}, {window[2]}x{window[3]} at {window[0]},{window[1]}"
    figure = preview.draw(sheet, title)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    print(
        "; ".join([f"{args.out}: {title}", *([] if sheet.l_cl is None else [f"L_CL = {sheet.l_cl:.4f}"]), *sheet.notes])
    )
    return 0


def read_image(path: Path) -> Tensor:
    """An image file as a tensor `(1, 3, H, W)`, RGB, in [0, 1]."""
    bgr = _images.read_image(path)
    return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).permute(2, 0, 1)[None].float() / 255


def _loss_of(args: argparse.Namespace) -> PCLLoss:
    options = {} if args.opt is None else read_options(args.opt)
    knobs = dict((options.get("train") or {}).get("pcl_opt") or {})
    if args.opt is not None and not knobs:
        raise ValueError(f"{args.opt} has no block train.pcl_opt; give a training YAML with PCL")
    knobs.pop("type", None)
    if args.lq is not None:
        knobs["negatives"] = list(dict.fromkeys([*knobs.get("negatives", ["blur"]), "lq"]))
    return PCLLoss(**(knobs | {"data_range": 1.0, "seed": args.seed}))
