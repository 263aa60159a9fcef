"""Checkpoints and option files, and the networks in them: the only place of the tools where one is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._files import load
from ..discriminator import WaveletDiscriminator
from ._images import Image

PARAM_KEYS = ("params", "params_ema")


def read(path: str | Path) -> dict[Any, Any]:
    """The dict in a checkpoint, on the CPU: a bare state dict, or BasicSR's, with one under `params` or `params_ema`.

    Tensors and plain Python values alone are loaded; no code in the file is run. Raises OSError if the file cannot be
    opened, ValueError if it is of another kind.
    """
    content = load(path)
    states = [content, *(content.get(key) for key in PARAM_KEYS)] if isinstance(content, dict) else []
    if not any(isinstance(value, Tensor) for state in states if isinstance(state, dict) for value in state.values()):
        raise ValueError(f"{path} holds no network; name net_g_*.pth or net_d_*.pth of BasicSR, or a state dict")
    return content


def choose_params(path: str | Path, content: Mapping[Any, Any], param_key: str = "auto") -> str | None:
    """The key of the state dict in what `read` gave, None where the file is a bare state dict; 'auto' prefers EMA.

    Raises ValueError if the file, `path`, has no such key.
    """
    here = [key for key in PARAM_KEYS if isinstance(content.get(key), Mapping)]
    if param_key == "auto":
        return here[-1] if here else None
    if param_key not in here:
        raise ValueError(f"{path} has no {param_key}, only {', '.join(here) or 'a bare state dict'}; name that")
    return param_key


def read_options(path: Path) -> dict[str, Any]:
    """A YAML file of options; raises ValueError if there is none, or it is no YAML or empty."""
    from ..basicsr_plugin.options_loading import load_options

    return load_options(path)


def build(
    checkpoint: Path, network_g: Mapping[str, Any], options_file: Path | None, param_key: str | None
) -> nn.Module:
    """The SR network of BasicSR's checkpoint on the CPU, with its weights, in evaluation mode.

    `network_g` is the block of that name in `options_file`, `param_key` what `choose_params` gives. Raises ValueError
    if BasicSR does not know the architecture, or the weights are of another one.
    """
    from .. import basicsr_plugin

    # isort: split
    from basicsr.utils.registry import ARCH_REGISTRY

    basicsr_plugin.register()
    options = {key: value for key, value in network_g.items() if key != "type"}
    kind = network_g["type"]
    if kind not in ARCH_REGISTRY:
        raise ValueError(f"{options_file}: BasicSR knows no network_g of type {kind}; import what registers it")
    content = read(checkpoint)
    state = content[param_key] if param_key else content
    try:
        net: nn.Module = ARCH_REGISTRY.get(kind)(**options)
        net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = "\n".join(str(error).splitlines()[:6])
        raise ValueError(
            f"{checkpoint} does not fit the network_g ({kind}) of {options_file}; name its own YAML, or turn a "
            f"checkpoint of the official codes into BasicSR's with `pcl-loss convert`. The first differences:\n{lines}"
        ) from error
    return net.eval()


def usable_device(device: str | None) -> str:
    """The device, or a GPU if there is one; raises ValueError if it cannot be used."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used: {reason}; take cpu, cuda or cuda:N") from error
    return device


def upscale(net: Any, lr: Image, scale: int, device: str, window: int = 1) -> Image:
    """An SR image, rounded as BasicSR does; LR is padded to a multiple of `window` for the time."""
    from .. import import_repair  # noqa: F401  (it lets basicsr be imported)

    # isort: split
    from basicsr.utils import img2tensor, tensor2img

    height, width = lr.shape[:2]
    with torch.no_grad():
        x = img2tensor(lr.astype(np.float32) / 255).unsqueeze(0).to(device)
        # As BasicSR's SwinIRModel pads.
        x = nn.functional.pad(x, (0, -width % window, 0, -height % window), "reflect")
        y = net(x)[..., : height * scale, : width * scale]
    image: Image = tensor2img([y])
    return image


def load_discriminator(path: str | Path) -> WaveletDiscriminator:
    """E_D of RGB images from a file `net_d_*.pth` of BasicSR, built as its weights say, in evaluation mode.

    Raises OSError if the file cannot be opened, ValueError if it holds something else, or E_D of other images.
    """
    state = read(path).get("params", {})
    if "head.weight" not in state or "blocks.0.conv.weight" not in state:
        raise ValueError(f"{path} holds no WaveletDiscriminator under 'params'; name a net_d_*.pth, not a net_g_*.pth")
    num_feat, planes = state["blocks.0.conv.weight"].shape[:2]
    # Three planes are RGB without wavelet, or one channel with it: BasicSR's copy of the option file tells.
    files = Path(path).absolute().parent.parent.glob("*.yml")
    is_without_wavelet = any((read_options(file).get("network_d") or {}).get("wavelet") is False for file in files)
    if planes != 9 and not (planes == 3 and is_without_wavelet):
        raise ValueError(
            f"{path}: E_D's first layer has {planes} planes of input; RGB images have 9 with wavelet. 3 are RGB "
            "without it if an option file in the folder above says wavelet: false"
        )
    has_norm, has_statistics = (f"blocks.0.norm.{name}" in state for name in ("weight", "running_mean"))
    norm = "batch" if has_statistics else "group" if has_norm else "none"
    # Built with the weights of the file alone, so that no random number is drawn.
    with torch.device("meta"):
        net = WaveletDiscriminator(3, num_feat, norm, wavelet=planes == 9)
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a WaveletDiscriminator with num_feat={num_feat}: {error}") from error
    return net.requires_grad_(False).eval()
