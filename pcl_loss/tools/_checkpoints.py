"""Checkpoints and option files, and the networks in them: the only place of the tools where one is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._durable import load
from ..discriminator import WaveletDiscriminator
from ._images import Image

PARAM_KEYS = ("params", "params_ema")


def read(path: str | Path) -> dict[Any, Any]:
    """The dict in a checkpoint, on the CPU: a bare state dict, or BasicSR's, with one under `params` or `params_ema`.

    Tensors and plain Python values alone are loaded; no code in the file is run. Raises OSError if the file cannot be
    opened, ValueError if it is of another kind.
    """
    content = load(path)
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


def choose_params(path: str | Path, content: Mapping[Any, Any], param_key: str = "auto") -> str | None:
    """The key of the state dict in what `read` gave; None where the file is a bare state dict.

    `param_key` is 'params', 'params_ema', or 'auto': the latter if the file has it. Raises ValueError if the file has
    no such key; the message names `path`.
    """
    here = [key for key in PARAM_KEYS if isinstance(content.get(key), Mapping)]
    if param_key == "auto":
        return here[-1] if here else None
    if param_key not in PARAM_KEYS:
        raise ValueError(f"param_key must be one of auto, {', '.join(PARAM_KEYS)}, got {param_key!r}")
    if param_key not in here:
        raise ValueError(f"{path} has no {param_key}, only {', '.join(here) or 'a bare state dict'}; take auto")
    return param_key


def read_options(path: Path) -> dict[str, Any]:
    """A YAML file of options; raises FileNotFoundError if there is none, ValueError if it is no YAML or empty."""
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no option file {path}")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no options; name a training or test YAML")
    return options


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
    options = dict(network_g)
    kind = options.pop("type")
    if kind not in ARCH_REGISTRY:
        raise ValueError(f"{options_file}: BasicSR knows no network_g of type {kind}; import what registers it")
    try:
        net: nn.Module = ARCH_REGISTRY.get(kind)(**options)
    except TypeError as error:
        raise ValueError(f"{options_file}: network_g does not fit {kind}: {error}") from error
    content = read(checkpoint)
    state = content[param_key] if param_key else content
    try:
        net.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        lines = "\n".join(str(error).splitlines()[1:6])
        raise ValueError(
            f"{checkpoint} does not fit the network_g ({kind}) of {options_file}; name its own YAML, or turn a "
            f"checkpoint of the official codes into BasicSR's with `pcl-loss convert`. The first differences:\n{lines}"
        ) from error
    return net.eval()


def usable_device(device: str | None) -> str:
    """The device, or a GPU if there is one; raises ValueError with the reason if it cannot be used."""
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            why = f"PyTorch {torch.__version__} was built without CUDA (install one from pytorch.org)"
            if torch.version.cuda or torch.version.hip:
                why = "no GPU is visible to PyTorch (see nvidia-smi and CUDA_VISIBLE_DEVICES)"
            raise RuntimeError(why)
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
    """E_D from a file `net_d_*.pth` of BasicSR, built as the shapes in it say, in evaluation mode.

    Raises FileNotFoundError if there is no such file, ValueError if it holds something else.
    """
    content = read(path)
    state = content.get("params")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} has no key 'params' (found: {sorted(map(str, content))[:4]}); name a net_d_*.pth")
    first = state.get("blocks.0.conv.weight")
    if not isinstance(first, Tensor) or first.dim() != 4 or "head.weight" not in state:
        raise ValueError(
            f"{path} holds no WaveletDiscriminator (its first keys: {list(state)[:3]}); name a net_d_*.pth, "
            "not a net_g_*.pth"
        )
    num_feat, in_ch = first.shape[:2]
    if in_ch not in (3, 9):
        raise ValueError(f"{path}: E_D's first layer has {in_ch} input channels; colour images need 9 (wavelet) or 3")
    norm = "none"
    if "blocks.0.norm.running_mean" in state:
        norm = "batch"
    elif "blocks.0.norm.weight" in state:
        norm = "group"
    # Built with the weights of the file alone, so that no random number is drawn.
    with torch.device("meta"):
        net = WaveletDiscriminator(3, num_feat, norm, wavelet=in_ch == 9)
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a WaveletDiscriminator with num_feat={num_feat}: {error}") from error
    return net.requires_grad_(False).eval()
