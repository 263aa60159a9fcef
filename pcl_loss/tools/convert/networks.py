"""EDSR, RCAN and HAN: the names of their layers in the official codes and in BasicSR, and their sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

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
_OTHER = "is it another network, or are --from and --to exchanged?"
LAYERS = {"edsr": _EDSR, "rcan": _RCAN, "han": _HAN}


def renamed(names: Iterable[str], codebase: str, network_g: Mapping[str, Any] | None = None) -> dict[str, str]:
    """BasicSR's names by the official ones, or, given the options of the network, the official ones by BasicSR's."""
    layers, counts = LAYERS[codebase], list[int]()
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


def find_network_g(state: Mapping[str, Tensor], codebase: str) -> dict[str, Any]:
    """The options of BasicSR's `network_g` that make the network of a state with BasicSR's names, `res_scale` guessed.

    Raises ValueError if a tensor is missing, unknown or of another shape.
    """
    from ... import basicsr_plugin

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
