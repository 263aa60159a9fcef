"""LPIPS as a metric of BasicSR's validation."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from basicsr.metrics.metric_util import reorder_image
from torchvision.models import get_weight

from .._missing import cached_file, download, named_in_errors

# What the lpips package asks torchvision for.
BACKBONES = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def calculate_lpips(
    img: npt.NDArray[Any],
    img2: npt.NDArray[Any],
    crop_border: int,
    input_order: str = "HWC",
    net: str = "alex",
    better: str = "lower",
    test_y_channel: bool = False,
) -> float:
    """LPIPS (Zhang et al., CVPR 2018) of BGR images in 0 to 255: how far apart they look to a network; lower is better.

    It is computed on a GPU if there is one. The first call downloads the backbone if `backbone_file(net)` is missing.

    Args:
        img: (H, W, 3), uint8 or float; grey (H, W) or (H, W, 1) counts as colour.
        img2: the other image, of the same shape.
        crop_border: pixels of each border that are left out.
        input_order: 'HWC' or 'CHW'.
        net: the backbone: 'alex', as papers report it, 'vgg' or 'squeeze'.
        better: BasicSR's, of no meaning here.
        test_y_channel: false, since LPIPS looks at colours.

    Raises:
        ImportError, FileNotFoundError: `lpips` is not installed, or the backbone is missing and cannot be downloaded.
        ValueError: the shapes differ, or an option has another value.
    """
    if test_y_channel:
        raise ValueError("calculate_lpips looks at colours: remove test_y_channel: true from its options")
    if img.shape != img2.shape:
        raise ValueError(f"the images have different shapes {img.shape} and {img2.shape}; crop or resize one of them")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pair = [_to_tensor(reorder_image(image, input_order=input_order), crop_border).to(device) for image in (img, img2)]
    with torch.inference_mode(), torch.autocast(device, enabled=False):
        return float(_model(net, device)(*pair))


def backbone_file(net: str = "alex") -> Path:
    """Where the backbone's weights lie or belong: under `$TORCH_HOME/hub/checkpoints`, named as torchvision does."""
    return cached_file(_url(net))


def fetch_backbone(net: str = "alex") -> None:
    """Download the backbone's weights if they are not at hand; raises as `calculate_lpips`."""
    with named_in_errors():
        import lpips  # noqa: F401
    download(_url(net), f"the {net} weights for LPIPS")


def _url(net: str) -> str:
    if net not in BACKBONES:
        raise ValueError(f"net {net!r} is unknown; take one of {', '.join(BACKBONES)}")
    return str(get_weight(f"{BACKBONES[net]}.IMAGENET1K_V1").url)


def _to_tensor(image: npt.NDArray[Any], crop_border: int) -> torch.Tensor:
    """HWC, BGR, 0 to 255 -> (1, 3, H, W), RGB, -1 to 1, as lpips wants it."""
    height, width = image.shape[:2]
    inner = image[crop_border : height - crop_border, crop_border : width - crop_border, ::-1].astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(inner.transpose(2, 0, 1)))[None]
    return (tensor / 127.5 - 1).expand(1, 3, -1, -1)


@functools.cache
def _model(net: str, device: str) -> Any:
    fetch_backbone(net)  # before lpips would, without a word
    import lpips

    # Its layers draw their weights before they are loaded: that must not change the training around.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # It calls torchvision the old way, which is no concern of the user's.
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net=net, verbose=False).eval().to(device)
