"""Checkpoints of the official EDSR, RCAN and HAN codes for BasicSR, and back: `pcl-loss convert`.

The layers are the same on both sides and differ in their names. What differs in kind is the colour shift in front of
the network and behind it: two 1x1 convolutions `sub_mean` and `add_mean` in the official codes, a constant `rgb_mean`
in BasicSR, outside the checkpoint. RCAN's own training code learns its two convolutions by accident, so they cannot be
dropped unseen. With colours in [0, r], `sub_mean(x) = W x + b`, `add_mean(x) = A x + c` and BasicSR's mean m:

- `A` and `c - r m` always fold into the last convolution, since nothing comes between.
- `W` folds into the first convolution if `b = -r W m`: then `W x + b = W (x - r m)`, and the zeros that pad
  `x - r m` are the zeros that pad `W (x - r m)`.
- Any other `b` is refused: as a bias of the first convolution it would be right inside the image and wrong along its
  border, where the padding has no part in it. As `rgb_mean` is an option of `network_g`, there is a way out for every
  regular `W`, m = -W^-1 b / r, and the error names it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._checks import check_number, check_positive
from .._tensors import at_least_float32

CODEBASES = ("edsr", "rcan", "han")
PARAM_KEYS = ("params", "params_ema")
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)

# What the file of a mean shift may be off, in units of the range: some roundings to float32, which no image shows.
_SHIFT_TOLERANCE = 2e-7

# Names of one layer in the official codes and in BasicSR; {} is counted.
_SIDES = ("the official code", "BasicSR")
_HEAD = ("head.0.weight", "conv_first.weight")
_UPSAMPLER = ("tail.0.{}.weight", "upsample.{}.weight")
_EDSR_BLOCK = ("body.{}.body.0.weight", "body.{}.conv1.weight")
_GROUP = ("body.{}.body.0.body.0.weight", "body.{}.residual_group.0.rcab.0.weight")
_BLOCK = ("body.0.body.{}.body.0.weight", "body.0.residual_group.{}.rcab.0.weight")
_SQUEEZE = ("body.0.body.0.body.3.conv_du.0.weight", "body.0.residual_group.0.rcab.3.attention.1.weight")
_SHIFT_SHAPES: dict[str, tuple[int, ...]] = {
    "sub_mean.weight": (3, 3, 1, 1),
    "sub_mean.bias": (3,),
    "add_mean.weight": (3, 3, 1, 1),
    "add_mean.bias": (3,),
}


@dataclass(frozen=True)
class Network:
    """What a checkpoint is for, read from its names and shapes.

    Attributes:
        codebase: 'edsr', 'rcan' or 'han'.
        upscale: scale factor.
        num_feat: channels of the features.
        num_block: residual blocks, in each group if there are groups.
        num_group: residual groups; None for EDSR.
        squeeze_factor: of the channel attention; None for EDSR.
        img_range: the largest value of the images the network works on, in none of BasicSR's files.
        rgb_mean: the mean colour in [0, 1], in none of BasicSR's files either.
        learned_shift: True if a mean shift other than the codebase's own was folded into the layers.
    """

    codebase: str
    upscale: int
    num_feat: int
    num_block: int
    num_group: int | None = None
    squeeze_factor: int | None = None
    img_range: float = 255.0
    rgb_mean: tuple[float, ...] = DIV2K_MEAN
    learned_shift: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        body = f"{self.num_block} blocks"
        if self.num_group is not None:
            body = f"{self.num_group} groups of {body}, squeeze factor {self.squeeze_factor}"
        return f"{self.codebase.upper()} x{self.upscale}: {body}, {self.num_feat} channels, range {self.img_range:g}"

    @property
    def res_scale(self) -> float:
        """The likely factor of the residuals: no checkpoint holds it. The published EDSR of 32 x 256 has 0.1."""
        return 0.1 if self.codebase == "edsr" and self.num_block >= 32 and self.num_feat >= 256 else 1

    def network_g(self) -> dict[str, Any]:
        """The options of BasicSR's `network_g`, `res_scale` being a guess."""
        options = {
            "type": self.codebase.upper(),
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": self.num_feat,
            "num_group": self.num_group,
            "num_block": self.num_block,
            "squeeze_factor": self.squeeze_factor,
            "upscale": self.upscale,
            "res_scale": self.res_scale,
            "img_range": self.img_range,
            "rgb_mean": list(self.rgb_mean),
        }
        return {key: value for key, value in options.items() if value is not None}

    def network_g_yaml(self) -> str:
        """The `network_g` block for a BasicSR option file, with remarks on what the checkpoint does not hold."""
        remarks = {
            "res_scale": "not in the checkpoint; EDSR's 32 x 256 networks need 0.1, the smaller published ones 1"
            if self.codebase == "edsr"
            else f"the official {self.codebase.upper()} ignores its own option of this name",
            "img_range": "not in the checkpoint: the --rgb_range of its training",
            "rgb_mean": "this network's own, not in the checkpoint: keep it"
            if self.rgb_mean != DIV2K_MEAN
            else "not in the checkpoint",
        }
        lines = ["network_g:"]
        for key, value in self.network_g().items():
            remark = f"  # {remarks[key]}" if key in remarks else ""
            if isinstance(value, list):
                value = f"[{', '.join(map(_decimal, value))}]"
            elif isinstance(value, float):
                value = _decimal(value)
            lines.append(f"  {key}: {value}{remark}")
        return "\n".join(lines)

    def official_flags(self) -> str:
        """The options of the official code's `main.py` that make this network, `res_scale` being a guess."""
        flags = {
            "model": self.codebase.upper(),
            "scale": self.upscale,
            "n_resgroups": self.num_group,
            "n_resblocks": self.num_block,
            "n_feats": self.num_feat,
            "reduction": self.squeeze_factor,
            "res_scale": self.res_scale if self.codebase == "edsr" else None,
            "rgb_range": f"{self.img_range:g}",
        }
        return " ".join(f"--{key} {value}" for key, value in flags.items() if value is not None)


def to_basicsr(
    state: Mapping[str, Tensor],
    codebase: str,
    rgb_range: float | None = None,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
) -> dict[str, Tensor]:
    """The state dict of BasicSR's network for one of an official code.

    BasicSR's network with `img_range=rgb_range` and this `rgb_mean` maps x in [0, 1] to the images of the official one,
    which work on [0, rgb_range], divided by `rgb_range`. The mean shift is dropped or folded (see the module's text).

    Args:
        state: the official state dict; a leading `module.` of every name is dropped. It is not changed.
        codebase: 'edsr' (EDSR-PyTorch), 'rcan' or 'han'.
        rgb_range: the official `--rgb_range`; None reads it off the mean shift: 255 or 1.
        rgb_mean: the mean colour in [0, 1] that `network_g` will be given.

    Returns:
        The state dict, sharing no memory with `state`. A folded layer is at least float32, others keep their dtype.

    Raises:
        TypeError: `state` is no mapping of names to tensors.
        ValueError: another codebase, an unknown or missing name, a wrong shape, or a mean shift that would not be
            exact with this `rgb_range` and `rgb_mean`.
    """
    return _to_basicsr(state, codebase, rgb_range, rgb_mean)[0]


def from_basicsr(
    state: Mapping[str, Tensor],
    codebase: str,
    rgb_range: float = 255.0,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
) -> dict[str, Tensor]:
    """The state dict of an official code for one of BasicSR's network: the inverse of `to_basicsr`.

    Args:
        state: BasicSR's state dict; a leading `module.` of every name is dropped. It is not changed.
        codebase: 'edsr' (EDSR-PyTorch), 'rcan' or 'han'.
        rgb_range: the network's `img_range`, which will be the official `--rgb_range`.
        rgb_mean: the network's `rgb_mean`.

    Returns:
        The state dict with its mean shift, sharing no memory with `state`.

    Raises:
        TypeError: `state` is no mapping of names to tensors.
        ValueError: another codebase, an unknown or missing name, a wrong shape, or a HAN of other than 10 groups,
            which the official code cannot hold.
    """
    return _from_basicsr(state, codebase, rgb_range, rgb_mean)[0]


def file_to_basicsr(
    source: str | Path,
    target: str | Path,
    codebase: str,
    *,
    param_key: str = "params",
    rgb_range: float | None = None,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
    force: bool = False,
) -> Network:
    """Convert a checkpoint file of an official code for BasicSR.

    Files are read with `torch.load(weights_only=True)`, which runs no code of theirs, and are written under their name
    only when they are complete.

    Args:
        source: the official file, a plain state dict.
        target: BasicSR's file.
        codebase: 'edsr' (EDSR-PyTorch), 'rcan' or 'han'.
        param_key: 'params' or 'params_ema', the key in BasicSR's file.
        rgb_range: see `to_basicsr`.
        rgb_mean: see `to_basicsr`.
        force: replace an existing `target`.

    Returns:
        What was found.

    Raises:
        OSError: a file cannot be read or written.
        TypeError: see `to_basicsr`.
        ValueError: see `to_basicsr`; or `source` is of another kind, or `target` exists.
    """
    _check_choice("param_key", param_key, PARAM_KEYS)
    _check_target(target, force)
    state, network = _to_basicsr(_official_content(source), codebase, rgb_range, rgb_mean)
    _write(target, {param_key: state})
    return network


def file_from_basicsr(
    source: str | Path,
    target: str | Path,
    codebase: str,
    *,
    param_key: str = "params",
    rgb_range: float = 255.0,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
    force: bool = False,
) -> Network:
    """Convert a checkpoint file of BasicSR for an official code; the inverse of `file_to_basicsr`.

    Args:
        source: BasicSR's file.
        target: the official file.
        codebase: 'edsr' (EDSR-PyTorch), 'rcan' or 'han'.
        param_key: 'params' or 'params_ema', which of the file's networks.
        rgb_range: see `from_basicsr`.
        rgb_mean: see `from_basicsr`.
        force: replace an existing `target`.

    Returns:
        What was found.

    Raises:
        OSError: a file cannot be read or written.
        TypeError: see `from_basicsr`.
        ValueError: see `from_basicsr`; or `source` is of another kind or has no such key, or `target` exists.
    """
    _check_choice("param_key", param_key, PARAM_KEYS)
    _check_target(target, force)
    state, network = _from_basicsr(_basicsr_content(source, param_key), codebase, rgb_range, rgb_mean)
    # The official codes are of PyTorch 0.4 to 1.x, and those before 1.6 cannot read today's zip files.
    _write(target, state, zipped=False)
    return network


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcl-loss convert` to `parser`."""
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="from_codebase", choices=CODEBASES, help="official checkpoint to BasicSR's")
    direction.add_argument("--to", dest="to_codebase", choices=CODEBASES, help="BasicSR's checkpoint to the official")
    parser.add_argument("--in", dest="source", required=True, metavar="FILE", help="the file to read")
    parser.add_argument("--out", dest="target", required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--param-key", choices=PARAM_KEYS, default="params", help="the network in BasicSR's file (default: params)"
    )
    parser.add_argument(
        "--rgb-range",
        type=float,
        metavar="R",
        help="--rgb_range of the official training, img_range of BasicSR's "
        "(default: with --from read off the file, with --to 255; 1 for networks trained at 1)",
    )
    parser.add_argument(
        "--rgb-mean",
        type=float,
        nargs=3,
        default=DIV2K_MEAN,
        metavar=("R", "G", "B"),
        help="rgb_mean of network_g (default: DIV2K's, %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output file")


def run(args: argparse.Namespace) -> int:
    """Do what the options of `add_arguments` say, and print what was found; the exit status."""
    try:
        if args.from_codebase is not None:
            network = file_to_basicsr(
                args.source,
                args.target,
                args.from_codebase,
                param_key=args.param_key,
                rgb_range=args.rgb_range,
                rgb_mean=args.rgb_mean,
                force=args.force,
            )
        else:
            network = file_from_basicsr(
                args.source,
                args.target,
                args.to_codebase,
                param_key=args.param_key,
                rgb_range=255.0 if args.rgb_range is None else args.rgb_range,
                rgb_mean=args.rgb_mean,
                force=args.force,
            )
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.source}: {network}")
    if args.from_codebase is None:
        print(f"wrote {args.target} from its {args.param_key!r}; make the network with:\n")
        print(f"{network.official_flags()} --pre_train {args.target}")
        if network.codebase == "edsr":
            print("\n--res_scale is not in the checkpoint: take it from network_g (the 32 x 256 networks: 0.1).")
        else:
            print(f"\nThe official {network.codebase.upper()} has no res_scale: network_g's must have been 1.")
        return 0
    if network.learned_shift:
        print("a learned mean shift was folded exactly into the first and the last convolution")
    print(f"wrote {args.target}; for the option file:\n")
    print(network.network_g_yaml())
    print(f"path:\n  pretrain_network_g: {json.dumps(str(args.target))}\n  param_key_g: {args.param_key}")
    return 0


def _to_basicsr(
    state: Mapping[str, Tensor], codebase: str, rgb_range: float | None, rgb_mean: Sequence[float]
) -> tuple[dict[str, Tensor], Network]:
    sizes, state = _inspect(state, codebase, side=0)
    mean = _check_mean(rgb_mean)
    if rgb_range is not None:
        rgb_range = check_positive("rgb_range", rgb_range)
    names = {official: basicsr for official, basicsr, _ in _layers(sizes)}
    folded, rgb_range = _fold_mean_shift(state, rgb_range, mean)
    converted = {basicsr: folded.get(official, state[official].clone()) for official, basicsr in names.items()}
    return converted, replace(sizes, img_range=rgb_range, rgb_mean=mean, learned_shift=bool(folded))


def _from_basicsr(
    state: Mapping[str, Tensor], codebase: str, rgb_range: float, rgb_mean: Sequence[float]
) -> tuple[dict[str, Tensor], Network]:
    sizes, state = _inspect(state, codebase, side=1)
    mean = _check_mean(rgb_mean)
    rgb_range = check_positive("rgb_range", rgb_range)
    if codebase == "han" and sizes.num_group != 10:
        raise ValueError(
            f"this HAN has {sizes.num_group} residual groups, but the official code is written for 10; "
            "only networks with num_group 10 can be converted for it"
        )
    shift = torch.tensor(mean, dtype=torch.float32) * rgb_range
    colour = torch.eye(3).view(3, 3, 1, 1)
    values = (colour, -shift, colour.clone(), shift)
    converted = dict(zip(_SHIFT_SHAPES, values, strict=True))
    converted |= {official: state[basicsr].clone() for official, basicsr, _ in _layers(sizes)}
    return converted, replace(sizes, img_range=rgb_range, rgb_mean=mean)


def _fold_mean_shift(
    state: Mapping[str, Tensor], rgb_range: float | None, rgb_mean: tuple[float, ...]
) -> tuple[dict[str, Tensor], float]:
    """The layers that change, under their official names, and the range of the images."""
    before, before_offset, after, after_offset = (state[key].double().squeeze() for key in _SHIFT_SHAPES)
    if not all(value.isfinite().all() for value in (before, before_offset, after, after_offset)):
        raise ValueError(
            "sub_mean or add_mean holds values that are not finite; the checkpoint is of a failed training"
        )
    # The colour that becomes 0, which is what the zero padding of the first convolution stands for.
    black = -torch.linalg.pinv(before) @ before_offset
    likely_range = 255.0 if black.abs().max() > 2 else 1.0
    # BasicSR rounds its mean to float32 as well.
    mean = torch.tensor(rgb_mean, dtype=torch.float32).double()

    def error(image_range: float) -> float:
        """How far the padding would be off, in units of the range."""
        return float((before_offset / image_range + before @ mean).abs().max())

    if rgb_range is None:
        rgb_range = likely_range
    elif error(rgb_range) > _SHIFT_TOLERANCE >= error(likely_range):
        raise ValueError(f"the mean shift is that of --rgb-range {likely_range:g}, not {rgb_range:g}")
    if error(rgb_range) > _SHIFT_TOLERANCE:
        reason = (
            f"sub_mean cannot be folded exactly for --rgb-range {rgb_range:g} and the rgb_mean {list(rgb_mean)}: the "
            f"colour that it maps to 0, which the first convolution's zero padding stands for, is another one (the "
            f"shift is off by {error(rgb_range):.3g} of the range), and a bias instead of it would be wrong along the "
            "border of every image"
        )
        if (before @ black + before_offset).abs().max() > _SHIFT_TOLERANCE * rgb_range:
            raise ValueError(f"{reason}. Its colour matrix is singular: no rgb_mean is right for it")
        fitting = " ".join(map(_decimal, (black / rgb_range).tolist()))
        raise ValueError(
            f"{reason}. It folds exactly with --rgb-range {rgb_range:g} --rgb-mean {fitting}, with the same numbers as "
            "rgb_mean in network_g"
        )

    folded = {}
    if not torch.equal(before, torch.eye(3, dtype=torch.float64)):
        weight = torch.einsum("oikl,ij->ojkl", state["head.0.weight"].double(), before)
        folded["head.0.weight"] = weight.to(at_least_float32(state["head.0.weight"]).dtype)
    after_offset = after_offset - rgb_range * mean
    is_identity = torch.equal(after, torch.eye(3, dtype=torch.float64))
    if not is_identity or after_offset.abs().max() > _SHIFT_TOLERANCE * rgb_range:
        weight = torch.einsum("oi,ijkl->ojkl", after, state["tail.1.weight"].double())
        bias = after @ state["tail.1.bias"].double() + after_offset
        folded["tail.1.weight"] = weight.to(at_least_float32(state["tail.1.weight"]).dtype)
        folded["tail.1.bias"] = bias.to(at_least_float32(state["tail.1.bias"]).dtype)
    return folded, rgb_range


def _layers(net: Network) -> list[tuple[str, str, tuple[int, ...]]]:
    """Official name, BasicSR's name and shape of every tensor but the mean shift."""
    rows: list[tuple[str, str, tuple[int, ...]]] = []
    feat = net.num_feat

    def conv(official: str, basicsr: str, out_ch: int, in_ch: int, kernel: tuple[int, ...] = (3, 3)) -> None:
        rows.append((f"{official}.weight", f"{basicsr}.weight", (out_ch, in_ch, *kernel)))
        rows.append((f"{official}.bias", f"{basicsr}.bias", (out_ch,)))

    conv("head.0", "conv_first", feat, 3)
    if net.num_group is None or net.squeeze_factor is None:
        for block in range(net.num_block):
            conv(f"body.{block}.body.0", f"body.{block}.conv1", feat, feat)
            conv(f"body.{block}.body.2", f"body.{block}.conv2", feat, feat)
        conv(f"body.{net.num_block}", "conv_after_body", feat, feat)
    else:
        squeezed = feat // net.squeeze_factor
        for group in range(net.num_group):
            for block in range(net.num_block):
                official, basicsr = f"body.{group}.body.{block}.body", f"body.{group}.residual_group.{block}.rcab"
                conv(f"{official}.0", f"{basicsr}.0", feat, feat)
                conv(f"{official}.2", f"{basicsr}.2", feat, feat)
                conv(f"{official}.3.conv_du.0", f"{basicsr}.3.attention.1", squeezed, feat, (1, 1))
                conv(f"{official}.3.conv_du.2", f"{basicsr}.3.attention.3", feat, squeezed, (1, 1))
            conv(f"body.{group}.body.{net.num_block}", f"body.{group}.conv", feat, feat)
        conv(f"body.{net.num_group}", "conv_after_body", feat, feat)
        if net.codebase == "han":
            rows.append(("csa.gamma", "csa.gamma", (1,)))
            conv("csa.conv", "csa.conv", 1, 1, (3, 3, 3))
            rows.append(("la.gamma", "la.gamma", (1,)))
            conv("last_conv", "last_conv", feat, feat * (net.num_group + 1))
            conv("last", "last", feat, feat * 2)
    steps = [3] if net.upscale == 3 else [2] * (net.upscale.bit_length() - 1)
    for i, step in enumerate(steps):
        conv(f"tail.0.{2 * i}", f"upsample.{2 * i}", feat * step**2, feat)
    conv("tail.1", "conv_last", 3, feat)
    return rows


def _inspect(state: Mapping[str, Tensor], codebase: str, side: int) -> tuple[Network, dict[str, Tensor]]:
    """The network and its checked tensors, `side` being 0 for the official names and 1 for BasicSR's."""
    _check_choice("codebase", codebase, CODEBASES)
    state = _check_state(state)
    found = _guess_codebase(state, side)
    if _HEAD[side] not in state and _guess_codebase(state, 1 - side) is not None:
        raise ValueError(
            f"these are names of {_SIDES[1 - side]}, not of {_SIDES[side]}; convert in the other direction "
            f"({('--to', '--from')[side]} instead of {('--from', '--to')[side]})"
        )
    if found is None:
        # The rest is alike in a whole family of networks.
        body = [key for key in state if not key.startswith(("sub_mean.", "add_mean.", "head."))]
        raise ValueError(f"this is no EDSR, RCAN or HAN of {_SIDES[side]}: its layers start with {_some(body)}")
    if found != codebase:
        raise ValueError(f"this is {found.upper()}, not {codebase.upper()}; pass {found!r} as the codebase")

    feat, in_ch = _shape(state, _HEAD[side])[:2]
    if in_ch != 3:
        raise ValueError(f"the network takes {in_ch} channels; the official codes are for 3 (RGB), nothing fits it")
    upsamplers = [2 * i for i in range(_count(state, _UPSAMPLER[side], step=2))]
    triple = len(upsamplers) == 1 and _shape(state, _UPSAMPLER[side].format(0))[0] == 9 * feat
    upscale = 3 if triple else 2 ** len(upsamplers)
    if codebase == "edsr":
        net = Network(codebase, upscale, feat, _count(state, _EDSR_BLOCK[side]))
    else:
        squeezed = _shape(state, _SQUEEZE[side])[0]
        num_group, num_block = _count(state, _GROUP[side]), _count(state, _BLOCK[side])
        net = Network(codebase, upscale, feat, num_block, num_group, max(1, feat // max(1, squeezed)))

    expected = {(official, basicsr)[side]: shape for official, basicsr, shape in _layers(net)}
    if side == 0:
        expected |= _SHIFT_SHAPES
    problems = []
    if missing := [key for key in expected if key not in state]:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if unknown := [key for key in state if key not in expected]:
        problems.append(f"{len(unknown)} unknown: {_some(unknown)}")
    wrong = [
        f"{key} is {tuple(state[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape: {_some(wrong)}")
    if problems:
        raise ValueError(f"this is not {_SIDES[side]}'s {codebase.upper()} as published; {'; '.join(problems)}")
    return net, state


def _check_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the prefix of `DataParallel`, detached."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a state dict (names to tensors), got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"state must map names to float tensors, but {key!r} is {kind}; pass net.state_dict()")
    prefix = "module." if state and all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in state.items()}


def _guess_codebase(state: Mapping[str, Tensor], side: int) -> str | None:
    if _GROUP[side].format(0) in state:
        return "han" if "la.gamma" in state or "last_conv.weight" in state else "rcan"
    return "edsr" if _EDSR_BLOCK[side].format(0) in state else None


def _count(state: Mapping[str, Tensor], name: str, step: int = 1) -> int:
    return next(i for i in itertools.count() if name.format(i * step) not in state)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"{name!r} is missing; the names start with {_some(state)}")
    if state[name].dim() != 4:
        raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}; a convolution's weight has 4 dimensions")
    return tuple(state[name].shape)


def _decimal(value: float) -> str:
    """`value` without an exponent, which YAML would read as text; precise enough for a float32 mean colour."""
    text = f"{value:.9f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "nothing"


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_mean(rgb_mean: Sequence[float]) -> tuple[float, ...]:
    if isinstance(rgb_mean, str) or len(rgb_mean) != 3:
        raise ValueError(f"rgb_mean must be three numbers, got {rgb_mean!r}")
    return tuple(check_number(f"rgb_mean[{i}]", value) for i, value in enumerate(rgb_mean))


def _official_content(path: str | Path) -> dict[Any, Any]:
    content = _read(path)
    if any(isinstance(content.get(key), Mapping) for key in PARAM_KEYS):
        raise ValueError(
            f"{path} is a file of BasicSR ({_some(map(str, content))}), not of an official code; convert it with --to"
        )
    return content


def _basicsr_content(path: str | Path, param_key: str) -> dict[Any, Any]:
    content = _read(path)
    available = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    # A file without keys holds one bare state dict, what BasicSR reads with `param_key_g: ~`.
    if not available:
        return content
    if param_key not in available:
        raise ValueError(f"{path} has no {param_key!r}; it holds {_some(available)}: choose with --param-key")
    return content[param_key]


def _read(path: str | Path) -> dict[Any, Any]:
    """The dict in a file of tensors and plain Python values; nothing else is loaded."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # The unpickler fails on foreign bytes in a dozen ways.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds Python objects, not only tensors (a whole module, as torch.save(net) writes it?); it is "
                "not loaded, since that could run any code in it. Have it saved as torch.save(net.state_dict(), ...)"
            ) from error
        raise ValueError(
            f"{path} is no readable checkpoint: not written by torch.save, incomplete, or a TorchScript archive "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    if "optimizers" in content and "schedulers" in content:
        raise ValueError(
            f"{path} is a training state of BasicSR, which holds no network; take models/net_g_*.pth of the experiment"
        )
    if "param_groups" in content:
        raise ValueError(f"{path} is the state of an optimizer, which holds no network; take model/model_*.pt")
    if "state_dict" in content:
        raise ValueError(
            f"{path} is no bare state dict but holds one under 'state_dict'; save that one to a file of its own"
        )
    return content


def _check_target(target: str | Path, force: bool) -> None:
    target = Path(target)
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file")
    if target.exists() and not force:
        raise ValueError(f"{target} exists; name another file, or replace it with --force")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"the folder of {target} does not exist; create it first")


def _write(target: str | Path, content: Mapping[str, Any], zipped: bool = True) -> None:
    target = Path(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # Not by name: torch reports a folder that cannot be written to as a RuntimeError.
        with partial.open("wb") as file:
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
