"""`pcl-loss preview`: what the loss compares, as one picture: GT, its positives, its negatives, and their bands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import samples
from ..._checks import MIN_SIZE
from ...loss import PCLLoss
from .. import _images
from .._checkpoints import load_discriminator, read_options
from .._regions import Region, parse_square
from .drawing import draw, to_pixels
from .sheet import MAX_WINDOW, Panel, Sheet, detailed_window, make_sheet, size_of

__all__ = ["Panel", "Sheet", "detailed_window", "draw", "make_sheet", "to_pixels"]

KNOBS: dict[str, dict[str, Any]] = {
    "num_positives": {"type": int, "metavar": "K"},
    "num_negatives": {"type": int, "metavar": "K"},
    "positives": {"nargs": "+", "metavar": "NAME", "help": ", ".join(samples.POSITIVE_SOURCES)},
    "negatives": {"nargs": "+", "metavar": "NAME", "help": ", ".join(samples.NEGATIVE_SOURCES)},
    "sharpness": {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")},
    "blur_sigma": {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")},
    "num_layers": {"type": int, "metavar": "L"},
    "temperature": {"type": float, "metavar": "TAU"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `pcl-loss preview`."""
    add = parser.add_argument
    add("--image", type=Path, required=True, metavar="FILE", help="the ground truth")
    add("--out", type=Path, required=True, metavar="FILE", help="the picture, such as sheet.png")
    add("--sr", type=Path, metavar="FILE", help="its super-resolved image")
    add("--lq", type=Path, metavar="FILE", help="its LR image, for the negative 'lq'")
    add("--net-d", type=Path, metavar="FILE", help="a trained E_D, net_d_*.pth: similarities to --sr")
    add("--layer", type=int, metavar="N", help="similarities of this layer (default: mean over all)")
    add("--crop", metavar="TOP,LEFT,SIZE", help=f"a square (default: a detailed one, {MAX_WINDOW} pixels at most)")
    add("--seed", type=int, default=0, help="of the samples (default: 0)")
    add("--opt", type=Path, metavar="FILE.yml", help="take the knobs from its train.pcl_opt")
    knob = parser.add_argument_group("knobs of PCLLoss, before those of --opt").add_argument
    for name, how in KNOBS.items():
        knob(f"--{name.replace('_', '-')}", **how)


def run(args: argparse.Namespace) -> int:
    """Draw the sheet that the flags describe; returns 0.

    Raises FileNotFoundError where a file is missing, ValueError or TypeError where one is of another kind or size, or a
    knob is out of range, and ImportError where matplotlib is not installed.
    """
    pcl = _loss_of(args)
    if args.net_d is not None and args.sr is None:
        raise ValueError("--net-d gives similarities to an SR image: add --sr FILE")
    if args.layer is not None and args.net_d is None:
        raise ValueError("--layer chooses among the similarities of an E_D: add --net-d FILE")
    hr = read_image(args.image)
    if min(hr.shape[-2:]) < MIN_SIZE:
        raise ValueError(f"{args.image} is {size_of(hr)}; at least {MIN_SIZE}x{MIN_SIZE} is needed")
    sr, lq = (None if path is None else read_image(path) for path in (args.sr, args.lq))
    if sr is not None and sr.shape != hr.shape:
        raise ValueError(
            f"{args.sr} is {size_of(sr)}, but {args.image} is {size_of(hr)}; give the SR image of this very image"
        )
    scale = 1 if lq is None else _scale(hr, lq, args)
    window = detailed_window(hr, multiple=scale) if args.crop is None else _crop(args.crop, hr, scale)
    sheet = make_sheet(
        window.cut(hr),
        pcl,
        sr=None if sr is None else window.cut(sr),
        lq=None if lq is None else window.cut(lq, scale),
        embedding=None if args.net_d is None else load_discriminator(args.net_d),
        layer=args.layer,
    )
    figure = draw(sheet, f"{args.image.name}, {window}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)
    value = "" if sheet.l_cl is None else f"; L_CL = {sheet.l_cl:.4f}"
    print("; ".join([f"{args.out}: {window} of {args.image}{value}", *sheet.notes]))
    return 0


def read_image(path: Path) -> Tensor:
    """An image file as a tensor `(1, 3, H, W)`, RGB, in [0, 1]."""
    bgr = _images.read_image(path)
    return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).permute(2, 0, 1)[None].float() / 255


def _loss_of(args: argparse.Namespace) -> PCLLoss:
    knobs = {} if args.opt is None else _pcl_opt(args.opt)
    knobs |= {key: getattr(args, key) for key in KNOBS if getattr(args, key) is not None}
    negatives = knobs.get("negatives", ("blur",))
    if args.lq is not None and "lq" not in negatives:
        if args.negatives is not None or args.opt is not None:
            raise ValueError(f"--lq is given, but the negatives are {list(negatives)}; add 'lq' there, or drop --lq")
        knobs["negatives"] = ("blur", "lq")
    return PCLLoss(**(knobs | {"data_range": 1.0, "seed": args.seed}))


def _pcl_opt(path: Path) -> dict[str, Any]:
    train = read_options(path).get("train")
    block = train.get("pcl_opt") if isinstance(train, dict) else None
    if not isinstance(block, dict):
        raise ValueError(f"{path} has no block train.pcl_opt; give a training YAML with PCL, or the knobs as flags")
    knobs = {key: value for key, value in block.items() if key != "type"}
    try:
        PCLLoss(**knobs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: train.pcl_opt: {error}") from error
    return knobs


def _scale(hr: Tensor, lq: Tensor, args: argparse.Namespace) -> int:
    scale = hr.shape[-1] // lq.shape[-1]
    if scale < 1 or any(big != scale * small for big, small in zip(hr.shape[-2:], lq.shape[-2:], strict=True)):
        raise ValueError(
            f"{args.image} is {size_of(hr)}, which is no whole multiple of {args.lq}, {size_of(lq)}; "
            "give the LR image of this very image, and crop the image to a multiple of the scale"
        )
    return scale


def _crop(text: str, hr: Tensor, scale: int) -> Region:
    region = parse_square(text)
    if region.height < MIN_SIZE:
        raise ValueError(f"--crop {text}: SIZE must be at least {MIN_SIZE}")
    region.check_inside(hr.shape[-2], hr.shape[-1])
    if any(number % scale for number in region):
        fit = ",".join(str(number // scale * scale) for number in region[:3])
        raise ValueError(f"--crop {text}: with an LR image of scale {scale} take multiples of it, such as {fit}")
    return region
