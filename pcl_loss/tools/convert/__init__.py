"""Checkpoints of the official EDSR, RCAN and HAN codes for BasicSR, and back: `pcl-loss convert`.

The layers differ in their names (`networks`), and the colour shift around the network in kind (`mean_shift`).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..._checks import check_positive
from .._checkpoints import PARAM_KEYS, choose_params, read
from .._images import write_file
from . import mean_shift
from .networks import DIV2K_MEAN, LAYERS, find_network_g, renamed

# The options of the official codes' main.py, and those of BasicSR's network_g.
_FLAGS = {
    "model": "type",
    "scale": "upscale",
    "n_resgroups": "num_group",
    "n_resblocks": "num_block",
    "n_feats": "num_feat",
    "reduction": "squeeze_factor",
    "res_scale": "res_scale",
    "rgb_range": "img_range",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcl-loss convert` to `parser`."""
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="from_codebase", choices=LAYERS, help="official checkpoint to BasicSR's")
    direction.add_argument("--to", dest="to_codebase", choices=LAYERS, help="BasicSR's checkpoint to the official")
    parser.add_argument("--in", dest="source", required=True, type=Path, metavar="FILE", help="the file to read")
    parser.add_argument("--out", dest="target", required=True, type=Path, metavar="FILE", help="the file to write")
    add = parser.add_argument
    add("--param-key", choices=PARAM_KEYS, default="params", help="the network in BasicSR's file (default: params)")
    range_help = "--rgb_range of the official training (default: with --from read off the file, with --to 255)"
    add("--rgb-range", type=float, metavar="R", help=range_help)
    mean_help, colours = "rgb_mean of network_g (default: DIV2K's, %(default)s)", ("R", "G", "B")
    add("--rgb-mean", type=float, nargs=3, default=DIV2K_MEAN, metavar=colours, help=mean_help)
    add("--force", action="store_true", help="replace an existing output file")


def run(args: argparse.Namespace) -> int:
    """Convert a file, and print the options for it; raises as `convert_state` does, then nothing is written."""
    to_official, codebase, target = args.from_codebase is None, args.from_codebase or args.to_codebase, args.target
    if target.exists() and not args.force:
        raise ValueError(f"{target} exists; name another file, or replace it with --force")
    content = read(args.source)
    if choose_params(args.source, content) is not None:
        content = content[choose_params(args.source, content, args.param_key)]
    state, network_g = convert_state(
        content, codebase, to_official=to_official, rgb_range=args.rgb_range, rgb_mean=args.rgb_mean
    )
    buffer = io.BytesIO()
    # The official codes are of PyTorch 0.4 to 1.x, and those before 1.6 cannot read today's zip files.
    written = state if to_official else {args.param_key: state}
    torch.save(written, buffer, _use_new_zipfile_serialization=not to_official)
    write_file(target, buffer.getbuffer())
    print(f"wrote {target}; make the network with:\n")
    if to_official:
        options = network_g | {"img_range": f"{network_g['img_range']:g}"}
        flags = " ".join(f"--{flag} {options[key]}" for flag, key in _FLAGS.items() if key in options)
        print(f"{flags} --pre_train {target}\n")
    else:
        path = {"pretrain_network_g": str(target), "param_key_g": args.param_key}
        print(yaml.safe_dump({"network_g": network_g, "path": path}, sort_keys=False, default_flow_style=None))
    print("# No file holds res_scale, the range or rgb_mean: compare them with those of its training")
    return 0


def convert_state(
    state: Mapping[str, Tensor],
    codebase: str,
    *,
    to_official: bool = False,
    rgb_range: float | None = None,
    rgb_mean: Sequence[float] = DIV2K_MEAN,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of BasicSR's network for one of an official code, or the inverse; and the options `network_g`.

    BasicSR's network with `img_range=rgb_range` and this `rgb_mean` maps x in [0, 1] to the images of the official one,
    which work on [0, rgb_range], divided by `rgb_range`. `res_scale` in the options is a guess.

    Args:
        state: a state dict; a leading `module.` of every name is dropped. It shares no memory with what is returned.
            A folded layer is at least float32, others keep their dtype.
        codebase: 'edsr' (EDSR-PyTorch), 'rcan' or 'han'.
        to_official: from BasicSR's to the official one.
        rgb_range: the official `--rgb_range`, BasicSR's `img_range`; None reads 255 or 1 off the mean shift of an
            official state, and is 255 for one of BasicSR.
        rgb_mean: the mean colour in [0, 1] of `network_g`.

    Raises:
        TypeError: `state` holds something else than float tensors.
        ValueError: a name or a shape does not fit, the mean shift would not be exact, or a HAN has not 10 groups.
    """
    if not all(isinstance(value, Tensor) and value.is_floating_point() for value in state.values()):
        raise TypeError("state must map names to float tensors; pass net.state_dict()")
    state = {key.removeprefix("module."): value.detach() for key, value in state.items()}
    if rgb_range is not None:
        rgb_range = check_positive("rgb_range", rgb_range)
    if not to_official:
        names = renamed([name for name in state if name not in mean_shift.NAMES], codebase)
        network_g = find_network_g({new: state[old] for old, new in names.items()}, codebase)
        folded, rgb_range = mean_shift.fold(state, rgb_range, rgb_mean)
        network_g |= {"img_range": rgb_range, "rgb_mean": [*rgb_mean]}
        return {new: folded.get(old, state[old].clone()) for old, new in names.items()}, network_g
    network_g = find_network_g(state, codebase)
    if codebase == "han" and network_g["num_group"] != 10:
        raise ValueError(f"this HAN has {network_g['num_group']} groups, but the official code is written for 10")
    network_g |= {"img_range": 255.0 if rgb_range is None else rgb_range, "rgb_mean": [*rgb_mean]}
    converted = mean_shift.unfolded(network_g["img_range"], rgb_mean)
    converted |= {new: state[old].clone() for old, new in renamed(state, codebase, network_g).items()}
    return converted, network_g
