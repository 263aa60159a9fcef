"""Checkpoints of the official EDSR, RCAN and HAN codes for BasicSR, and back: `pcl-loss convert`.

The layers differ in their names alone, but for the colour shift in front of the network and behind it: the official
codes have two 1x1 convolutions `sub_mean` and `add_mean`, BasicSR a constant `rgb_mean` outside the checkpoint. RCAN's
own training code learns its two by accident, so they cannot be dropped unseen. With colours in [0, r],
`sub_mean(x) = W x + b`, `add_mean(x) = A x + c` and BasicSR's mean m:

- `A` and `c - r m` always fold into the last convolution, since nothing comes between.
- `W` folds into the first convolution if `b = -r W m`, that is `W x + b = W (x - r m)`. Any other `b` is refused: as a
  bias of the first convolution it would be wrong along the border, where the zero padding has no part in it.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from .._checks import at_least_float32, check_positive
from ._checkpoints import PARAM_KEYS, choose_params, read
from ._images import write_file

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)

# A layer in the official code and in BasicSR; {} is a number. The first that fits counts.
_ENDS = [
    ("head.0", "conv_first"),
    ("body.{}", "conv_after_body"),
    ("tail.0.{}", "upsample.{}"),
    ("tail.1", "conv_last"),
]
_EDSR = [("body.{}.body.0", "body.{}.conv1"), ("body.{}.body.2", "body.{}.conv2"), *_ENDS]
_RCAN = [
    ("body.{}.body.{}.body.3.conv_du.0", "body.{}.residual_group.{}.rcab.3.attention.1"),
    ("body.{}.body.{}.body.3.conv_du.2", "body.{}.residual_group.{}.rcab.3.attention.3"),
    ("body.{}.body.{}.body.{}", "body.{}.residual_group.{}.rcab.{}"),
    ("body.{}.body.{}", "body.{}.conv"),
    *_ENDS,
]
_HAN = [*_RCAN, *((layer, layer) for layer in ("csa", "csa.conv", "la", "last_conv", "last"))]
_LAYERS = {"edsr": _EDSR, "rcan": _RCAN, "han": _HAN}
_SHIFT = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")
# What the file of a mean shift may be off, in units of the range: some roundings to float32, which no image shows.
_TOLERANCE = 2e-7
_OTHER = "is it another network, or are --from and --to exchanged?"

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
    direction.add_argument("--from", dest="from_codebase", choices=_LAYERS, help="official checkpoint to BasicSR's")
    direction.add_argument("--to", dest="to_codebase", choices=_LAYERS, help="BasicSR's checkpoint to the official")
    add = parser.add_argument
    add("--in", dest="source", required=True, type=Path, metavar="FILE", help="the file to read")
    add("--out", dest="target", required=True, type=Path, metavar="FILE", help="the file to write")
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
        names = _renamed([name for name in state if name not in _SHIFT], codebase)
        network_g = _find_network_g({new: state[old] for old, new in names.items()}, codebase)
        folded, rgb_range = _folded(state, rgb_range, rgb_mean)
        network_g |= {"img_range": rgb_range, "rgb_mean": [*rgb_mean]}
        return {new: folded.get(old, state[old].clone()) for old, new in names.items()}, network_g
    network_g = _find_network_g(state, codebase)
    if codebase == "han" and network_g["num_group"] != 10:
        raise ValueError(f"this HAN has {network_g['num_group']} groups, but the official code is written for 10")
    network_g |= {"img_range": 255.0 if rgb_range is None else rgb_range, "rgb_mean": [*rgb_mean]}
    shift = torch.tensor(rgb_mean, dtype=torch.float32) * network_g["img_range"]
    identity = torch.eye(3).view(3, 3, 1, 1)
    converted = dict(zip(_SHIFT, (identity, -shift, identity.clone(), shift), strict=True))
    converted |= {new: state[old].clone() for old, new in _renamed(state, codebase, network_g).items()}
    return converted, network_g


def _renamed(names: Iterable[str], codebase: str, network_g: Mapping[str, Any] | None = None) -> dict[str, str]:
    """BasicSR's names by the official ones, or, given the options of the network, the official ones by BasicSR's."""
    layers, counts = _LAYERS[codebase], list[int]()
    if network_g is not None:
        layers = [(basicsr, official) for official, basicsr in layers]
        # What BasicSR names, the official code counts on from the blocks.
        counts = [network_g.get("num_group", network_g["num_block"]), network_g["num_block"]]
    patterns = [(re.compile(re.escape(old).replace(r"\{\}", r"(\d+)")), new) for old, new in layers]
    found = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        match, new = next(((m, new) for pattern, new in patterns if (m := pattern.fullmatch(layer))), (None, ""))
        if match is None:
            raise ValueError(f"{name!r} is no layer of {codebase.upper()}; {_OTHER}")
        found[name] = f"{new.format(*match.groups(), *counts[len(match.groups()) :])}.{kind}"
    return found


def _find_network_g(state: Mapping[str, Tensor], codebase: str) -> dict[str, Any]:
    """The options that make BasicSR's network of a state with its names, which must fit to the last tensor."""
    from .. import basicsr_plugin

    # isort: split
    from basicsr.utils.registry import ARCH_REGISTRY

    basicsr_plugin.register()
    try:
        feat = len(state["conv_first.weight"])
        steps = [value for name, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", name)]
        upscale = 3 if len(steps) == 1 and len(steps[0]) == 9 * feat else 2 ** len(steps)
        found = {"type": codebase.upper(), "num_in_ch": 3, "num_out_ch": 3, "upscale": upscale, "num_feat": feat}
        outer = {match[1] for match in map(re.compile(r"body\.(\d+)\.").match, state) if match}
        inner = {match[1] for match in map(re.compile(r"body\.0\.residual_group\.(\d+)\.").match, state) if match}
        if codebase == "edsr":
            # No checkpoint holds it; the published EDSR of 32 x 256 has 0.1.
            found |= {"num_block": len(outer), "res_scale": 0.1 if len(outer) >= 32 and feat >= 256 else 1}
        else:
            squeezed = len(state["body.0.residual_group.0.rcab.3.attention.1.weight"])
            found |= {"num_group": len(outer), "num_block": len(inner), "squeeze_factor": feat // squeezed}
        with torch.device("meta"):
            net = ARCH_REGISTRY.get(codebase.upper())(**{key: value for key, value in found.items() if key != "type"})
        net.load_state_dict(state, assign=True)
    except (KeyError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else "; ".join(str(error).split("\n\t")[:4])
        raise ValueError(f"this is no {codebase.upper()} as published: {reason}; {_OTHER}") from error
    return found


def _folded(
    state: Mapping[str, Tensor], rgb_range: float | None, rgb_mean: Sequence[float]
) -> tuple[dict[str, Tensor], float]:
    """The layers of an official state that its mean shift changes, and the range of the images."""
    try:
        w, b, a, c = (state[name].double().squeeze() for name in _SHIFT)
    except KeyError as error:
        raise ValueError(f"{error} is missing, a part of the mean shift") from error
    if rgb_range is None:
        rgb_range = 255.0 if b.abs().max() > 2 else 1.0
    # BasicSR rounds its mean to float32 as well.
    mean = torch.tensor(rgb_mean, dtype=torch.float32).double()
    if not (b / rgb_range + w @ mean).abs().max() <= _TOLERANCE:  # NaN too
        raise ValueError(
            f"sub_mean cannot be folded exactly for --rgb-range {rgb_range:g} and --rgb-mean {list(rgb_mean)}; "
            "give those of its training"
        )
    folded = {}
    identity = torch.eye(3, dtype=torch.float64)
    if not torch.equal(w, identity):
        folded["head.0.weight"] = torch.einsum("oikl,ij->ojkl", state["head.0.weight"].double(), w)
    c = c - rgb_range * mean
    if not torch.equal(a, identity) or c.abs().max() > _TOLERANCE * rgb_range:
        folded["tail.1.weight"] = torch.einsum("oi,ijkl->ojkl", a, state["tail.1.weight"].double())
        folded["tail.1.bias"] = a @ state["tail.1.bias"].double() + c
    return {key: value.to(at_least_float32(state[key]).dtype) for key, value in folded.items()}, rgb_range
