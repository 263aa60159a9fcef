"""Checkpoints of the official EDSR, RCAN and HAN codes for BasicSR, and back: `pcl-loss convert`.

The layers are the same on both sides and differ in their names (`networks`). What differs in kind is the colour shift
in front of the network and behind it (`mean_shift`).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._checks import check_number, check_positive
from .._checkpoints import PARAM_KEYS, read
from .._images import write_file
from . import mean_shift
from .networks import CODEBASES, DIV2K_MEAN, Network, inspect, some


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcl-loss convert` to `parser`."""
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="from_codebase", choices=CODEBASES, help="official checkpoint to BasicSR's")
    direction.add_argument("--to", dest="to_codebase", choices=CODEBASES, help="BasicSR's checkpoint to the official")
    parser.add_argument("--in", dest="source", required=True, metavar="FILE", help="the file to read")
    parser.add_argument("--out", dest="target", required=True, metavar="FILE", help="the file to write")
    add = parser.add_argument
    add("--param-key", choices=PARAM_KEYS, default="params", help="the network in BasicSR's file (default: params)")
    range_help = (
        "--rgb_range of the official training, img_range of BasicSR's (default: with --from read off the file, "
    )
    add("--rgb-range", type=float, metavar="R", help=f"{range_help}with --to 255; 1 for networks trained at 1)")
    mean_help, colours = "rgb_mean of network_g (default: DIV2K's, %(default)s)", ("R", "G", "B")
    add("--rgb-mean", type=float, nargs=3, default=DIV2K_MEAN, metavar=colours, help=mean_help)
    add("--force", action="store_true", help="replace an existing output file")


def run(args: argparse.Namespace) -> int:
    """Do what the options of `add_arguments` say, and print what was found; raises as `convert_file` does."""
    to_official, codebase = args.from_codebase is None, args.from_codebase or args.to_codebase
    shared = {key: getattr(args, key) for key in ("param_key", "rgb_range", "rgb_mean", "force")}
    network = convert_file(args.source, args.target, codebase, to_official=to_official, **shared)
    print(f"{args.source}: {network}")
    if to_official:
        remark = f"The official {codebase.upper()} has no res_scale: network_g's must have been 1."
        if codebase == "edsr":
            remark = "--res_scale is not in the checkpoint: take it from network_g (the 32 x 256 networks: 0.1)."
        print(f"wrote {args.target} from its {args.param_key!r}; make the network with:\n")
        print(f"{network.official_flags()} --pre_train {args.target}\n\n{remark}")
        return 0
    if network.learned_shift:
        print("a learned mean shift was folded exactly into the first and the last convolution")
    print(f"wrote {args.target}; for the option file:\n")
    print(network.network_g_yaml())
    print(f"path:\n  pretrain_network_g: {json.dumps(str(args.target))}\n  param_key_g: {args.param_key}")
    return 0


def convert_file(
    source: str | Path,
    target: str | Path,
    codebase: str,
    *,
    to_official: bool = False,
    param_key: str = "params",
    rgb_range: float | None = None,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
    force: bool = False,
) -> Network:
    """Convert a checkpoint file as `convert_state` does, which has the other arguments; returns what was found.

    No code in `source` is run; `target` is written whole or not at all, and replaced if `force` is given. `param_key`
    is 'params' or 'params_ema', the key in BasicSR's file; the official codes' are plain state dicts.

    Raises as `convert_state` does; ValueError too if a file is of another kind, has no such key, or is there already,
    and OSError if one cannot be read or written.
    """
    if param_key not in PARAM_KEYS:
        raise ValueError(f"param_key must be one of {', '.join(map(repr, PARAM_KEYS))}, got {param_key!r}")
    target = Path(target)
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file")
    if target.exists() and not force:
        raise ValueError(f"{target} exists; name another file, or replace it with --force")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"the folder of {target} does not exist; create it first")
    content = read(source)
    named = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    if to_official:
        # A file without keys holds one bare state dict, what BasicSR reads with `param_key_g: ~`.
        if named and param_key not in named:
            raise ValueError(f"{source} has no {param_key!r}; it holds {some(named)}: choose with --param-key")
        content = content[param_key] if named else content
    elif set(named) & set(PARAM_KEYS):
        raise ValueError(
            f"{source} is a file of BasicSR ({some(map(str, content))}), not of an official code; convert it with --to"
        )
    state, network = convert_state(content, codebase, to_official=to_official, rgb_range=rgb_range, rgb_mean=rgb_mean)
    written: dict[str, Any] = state if to_official else {param_key: state}
    buffer = io.BytesIO()
    # The official codes are of PyTorch 0.4 to 1.x, and those before 1.6 cannot read today's zip files.
    torch.save(written, buffer, _use_new_zipfile_serialization=not to_official)
    write_file(target, buffer.getbuffer())
    return network


def convert_state(
    state: Mapping[str, Tensor],
    codebase: str,
    *,
    to_official: bool = False,
    rgb_range: float | None = None,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
) -> tuple[dict[str, Tensor], Network]:
    """The state dict of BasicSR's network for one of an official code, or the inverse.

    BasicSR's network with `img_range=rgb_range` and this `rgb_mean` maps x in [0, 1] to the images of the official one,
    which work on [0, rgb_range], divided by `rgb_range`. Its mean shift is dropped or folded (see `mean_shift`).

    Args:
        state: a state dict; a leading `module.` of every name is dropped. It is not changed, and shares no memory
            with what is returned. A folded layer is at least float32, others keep their dtype.
        codebase: 'edsr' (EDSR-PyTorch), 'rcan' or 'han'.
        to_official: from BasicSR's to the official one.
        rgb_range: the official `--rgb_range`, BasicSR's `img_range`; None reads 255 or 1 off the mean shift of an
            official state, and is 255 for one of BasicSR.
        rgb_mean: the mean colour in [0, 1] of `network_g`.

    Raises:
        TypeError: `state` is no mapping of names to tensors.
        ValueError: another codebase, an unknown or missing name, a wrong shape; a mean shift that would not be exact
            with this `rgb_range` and `rgb_mean`; or a HAN of other than 10 groups, which the official code cannot hold.
    """
    network, state = inspect(state, codebase, side=int(to_official))
    if isinstance(rgb_mean, str) or len(rgb_mean) != 3:
        raise ValueError(f"rgb_mean must be three numbers, got {rgb_mean!r}")
    mean = tuple(check_number(f"rgb_mean[{i}]", value) for i, value in enumerate(rgb_mean))
    if rgb_range is not None:
        rgb_range = check_positive("rgb_range", rgb_range)
    if not to_official:
        folded, rgb_range = mean_shift.fold(state, rgb_range, mean)
        layers = network.layers()
        converted = {basicsr: folded.get(official, state[official].clone()) for official, basicsr, _ in layers}
        return converted, replace(network, img_range=rgb_range, rgb_mean=mean, learned_shift=bool(folded))
    if codebase == "han" and network.num_group != 10:
        raise ValueError(f"this HAN has {network.num_group} residual groups, but the official code is written for 10")
    rgb_range = 255.0 if rgb_range is None else rgb_range
    converted = mean_shift.unfolded(rgb_range, mean)
    converted |= {official: state[basicsr].clone() for official, basicsr, _ in network.layers()}
    return converted, replace(network, img_range=rgb_range, rgb_mean=mean)
