"""EDSR, RCAN and HAN: the names and shapes of their layers in the official codes and in BasicSR."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import Tensor

from . import mean_shift

CODEBASES = ("edsr", "rcan", "han")
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)

# Names of one layer in the official codes and in BasicSR; {} is counted.
_SIDES = ("the official code", "BasicSR")
_HEAD = ("head.0.weight", "conv_first.weight")
_UPSAMPLER = ("tail.0.{}.weight", "upsample.{}.weight")
_EDSR_BLOCK = ("body.{}.body.0.weight", "body.{}.conv1.weight")
_GROUP = ("body.{}.body.0.body.0.weight", "body.{}.residual_group.0.rcab.0.weight")
_BLOCK = ("body.0.body.{}.body.0.weight", "body.0.residual_group.{}.rcab.0.weight")
_SQUEEZE = ("body.0.body.0.body.3.conv_du.0.weight", "body.0.residual_group.0.rcab.3.attention.1.weight")

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


@dataclass(frozen=True)
class Network:
    """What a checkpoint is for, read from its names and shapes."""

    codebase: str
    upscale: int
    num_feat: int
    num_block: int  # in each group if there are groups
    num_group: int | None = None  # None for EDSR
    squeeze_factor: int | None = None  # of the channel attention; None for EDSR
    img_range: float = 255.0  # the largest value of its images, in none of BasicSR's files
    rgb_mean: tuple[float, ...] = DIV2K_MEAN  # in [0, 1], in none of BasicSR's files either
    learned_shift: bool = field(default=False, compare=False)  # a mean shift of its own was folded into the layers

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
        options = {"type": self.codebase.upper(), "num_in_ch": 3, "num_out_ch": 3, "res_scale": self.res_scale}
        options |= dataclasses.asdict(self) | {"rgb_mean": list(self.rgb_mean)}
        hidden = ("codebase", "learned_shift")
        return {key: value for key, value in options.items() if value is not None and key not in hidden}

    def network_g_yaml(self) -> str:
        """The `network_g` block for a BasicSR option file, with remarks on what the checkpoint does not hold."""
        own_mean = "this network's own, not in the checkpoint: keep it"
        remarks = {
            "res_scale": f"the official {self.codebase.upper()} ignores its own option of this name",
            "img_range": "not in the checkpoint: the --rgb_range of its training",
            "rgb_mean": own_mean if self.rgb_mean != DIV2K_MEAN else "not in the checkpoint",
        }
        if self.codebase == "edsr":
            published = "EDSR's 32 x 256 networks need 0.1, the smaller published ones 1"
            remarks["res_scale"] = f"not in the checkpoint; {published}"
        options = yaml.safe_dump(self.network_g(), sort_keys=False, default_flow_style=None, width=200).splitlines()
        lines = ["network_g:"]
        for line in options:
            remark = remarks.get(line.split(":")[0])
            lines.append(f"  {line}  # {remark}" if remark else f"  {line}")
        return "\n".join(lines)

    def official_flags(self) -> str:
        """The options of the official code's `main.py` that make this network, `res_scale` being a guess."""
        options = {key: f"{value:g}" if isinstance(value, float) else value for key, value in self.network_g().items()}
        if self.codebase != "edsr":
            del options["res_scale"]
        return " ".join(f"--{flag} {options[key]}" for flag, key in _FLAGS.items() if key in options)

    def layers(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Official name, BasicSR's name and shape of every tensor but the mean shift."""
        rows: list[tuple[str, str, tuple[int, ...]]] = []
        feat = self.num_feat

        def conv(official: str, basicsr: str, out_ch: int, in_ch: int, kernel: tuple[int, ...] = (3, 3)) -> None:
            rows.append((f"{official}.weight", f"{basicsr}.weight", (out_ch, in_ch, *kernel)))
            rows.append((f"{official}.bias", f"{basicsr}.bias", (out_ch,)))

        conv("head.0", "conv_first", feat, 3)
        if self.num_group is None or self.squeeze_factor is None:
            for block in range(self.num_block):
                conv(f"body.{block}.body.0", f"body.{block}.conv1", feat, feat)
                conv(f"body.{block}.body.2", f"body.{block}.conv2", feat, feat)
        else:
            squeezed = feat // self.squeeze_factor
            for group in range(self.num_group):
                for block in range(self.num_block):
                    official, basicsr = f"body.{group}.body.{block}.body", f"body.{group}.residual_group.{block}.rcab"
                    conv(f"{official}.0", f"{basicsr}.0", feat, feat)
                    conv(f"{official}.2", f"{basicsr}.2", feat, feat)
                    conv(f"{official}.3.conv_du.0", f"{basicsr}.3.attention.1", squeezed, feat, (1, 1))
                    conv(f"{official}.3.conv_du.2", f"{basicsr}.3.attention.3", feat, squeezed, (1, 1))
                conv(f"body.{group}.body.{self.num_block}", f"body.{group}.conv", feat, feat)
        conv(f"body.{self.num_group or self.num_block}", "conv_after_body", feat, feat)
        if self.codebase == "han":
            rows.append(("csa.gamma", "csa.gamma", (1,)))
            conv("csa.conv", "csa.conv", 1, 1, (3, 3, 3))
            rows.append(("la.gamma", "la.gamma", (1,)))
            conv("last_conv", "last_conv", feat, feat * ((self.num_group or 0) + 1))
            conv("last", "last", feat, feat * 2)
        for i, step in enumerate([3] if self.upscale == 3 else [2] * (self.upscale.bit_length() - 1)):
            conv(f"tail.0.{2 * i}", f"upsample.{2 * i}", feat * step**2, feat)
        conv("tail.1", "conv_last", 3, feat)
        return rows


def inspect(state: Mapping[str, Tensor], codebase: str, side: int) -> tuple[Network, dict[str, Tensor]]:
    """The network, and its tensors without the prefix of `DataParallel`, detached.

    `side` is 0 for the official names, 1 for BasicSR's. Raises `TypeError` if `state` does not map names to float
    tensors, and `ValueError` if it is of another network or side, or a tensor is missing, unknown or of another shape.
    """
    if codebase not in CODEBASES:
        raise ValueError(f"codebase must be one of {', '.join(map(repr, CODEBASES))}, got {codebase!r}")
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
        raise ValueError(f"this is no EDSR, RCAN or HAN of {_SIDES[side]}: its layers start with {some(body)}")
    if found != codebase:
        raise ValueError(f"this is {found.upper()}, not {codebase.upper()}; pass {found!r} as the codebase")
    net = _measure(state, codebase, side)

    expected = {(official, basicsr)[side]: shape for official, basicsr, shape in net.layers()}
    if side == 0:
        expected |= mean_shift.SHAPES
    problems = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} is {tuple(state[key].shape)} instead of {shape}"
            for key, shape in expected.items()
            if key in state and tuple(state[key].shape) != shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {problem}: {some(names)}" for problem, names in problems.items() if names)
        raise ValueError(f"this is not {_SIDES[side]}'s {codebase.upper()} as published; {listed}")
    return net, state


def some(names: Iterable[str]) -> str:
    """The first four names, for a message."""
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "nothing"


def _check_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _measure(state: Mapping[str, Tensor], codebase: str, side: int) -> Network:
    """The sizes of the network, as far as a few of its layers tell them."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"{name!r} is missing; the names start with {some(state)}")
        if state[name].dim() != 4:
            raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}; a convolution's weight has 4 dimensions")
        return tuple(state[name].shape)

    def count(name: str, step: int = 1) -> int:
        return next(i for i in itertools.count() if name.format(i * step) not in state)

    feat, in_ch = shape(_HEAD[side])[:2]
    if in_ch != 3:
        raise ValueError(f"the network takes {in_ch} channels; the official codes are for 3 (RGB), nothing fits it")
    steps = count(_UPSAMPLER[side], step=2)
    upscale = 3 if steps == 1 and shape(_UPSAMPLER[side].format(0))[0] == 9 * feat else 2**steps
    if codebase == "edsr":
        return Network(codebase, upscale, feat, count(_EDSR_BLOCK[side]))
    squeeze_factor = max(1, feat // max(1, shape(_SQUEEZE[side])[0]))
    return Network(codebase, upscale, feat, count(_BLOCK[side]), count(_GROUP[side]), squeeze_factor)
