"""What `PCLLoss` asks of an embedding, and the alternatives to E_D: one without weights, and VGG."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ._checks import MIN_SIZE, check_count, check_images, check_positive, match_double
from ._missing import download, named_in_errors

# The map of the smallest image, 32 x 32, is then 17 x 17.
MAX_SCALES = 4

VGGS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}  # torchvision's names of their layers


@runtime_checkable
class Embedding(Protocol):
    """Any object that turns images into feature maps."""

    def embed(self, x: Tensor, num_layers: int) -> list[Tensor]:
        """The first `num_layers` maps `(N, C_l, H_l, W_l)` of images `(N, C, H, W)` in [0, 1], shallowest first.
        Only `x` may receive a gradient, and a later training step must not invalidate a pending backward.
        """
        ...


class FixedEmbedding(nn.Module):
    """An embedding in closed form: Haar bands with a constant beside them. No weights, nothing to train or download.

    The map of scale s is `[LH / threshold, HL / threshold, HH / threshold, 1]` at every pixel, the bands being those
    of the four pixels at a distance of `2**(s - 1)`, of the image that the scales before have smoothed. A flat pixel,
    whose bands are far below the threshold, points along the constant in every image: its noise does not count.

    `num_in_ch` are the channels of the images, `num_layers` the scales, at most 4; a band as large as `threshold`, of
    images in [0, 1], counts as much as the constant. Raises TypeError or ValueError if one of them does not fit.
    """

    def __init__(self, num_in_ch: int = 3, num_layers: int = 1, threshold: float = 0.01) -> None:
        super().__init__()
        self.num_in_ch = check_count("num_in_ch", num_in_ch, 1)
        self.num_layers = check_count("num_layers", num_layers, 1, MAX_SCALES)
        self.threshold = check_positive("threshold", threshold)

    def embed(self, x: Tensor, num_layers: int | None = None) -> list[Tensor]:
        """The maps of the first scales (by default all), the finest first: `(N, 3 * num_in_ch + 1, H_s, W_s)`.

        `H_s = H - 2**s + 1`. `x` is `(N, num_in_ch, H, W)` in [0, 1], `H, W >= 32`; alone it can receive a gradient.
        Raises TypeError or ValueError if it is not, or `num_layers` is more than there are.
        """
        num_layers = check_count("num_layers", num_layers or self.num_layers, 1, self.num_layers)
        check_images("x", x, self.num_in_ch, MIN_SIZE)
        maps = []
        for scale in range(num_layers):
            step = 2**scale
            top, bottom = x[..., :-step, :], x[..., step:, :]
            low, high = top + bottom, top - bottom  # along the columns, and then along the rows
            low_left, low_right, high_left, high_right = (
                part for rows in (low, high) for part in (rows[..., :-step], rows[..., step:])
            )
            bands = torch.cat([high_left + high_right, low_left - low_right, high_left - high_right], 1)
            maps.append(torch.cat([bands / (2 * self.threshold), torch.ones_like(low_left[:, :1])], 1))
            x = (low_left + low_right) / 4
        return maps


class VGGEmbedding(nn.Module):
    """A frozen VGG: the embedding of the paper's config 2, and of most contrastive losses before it.

    `vgg` is `'vgg11'`, `'vgg13'`, `'vgg16'` or `'vgg19'`, `num_layers` how many convolution + ReLU pairs are kept, and
    `weights` `'imagenet'` (torchvision's, downloaded once, into torch's cache), a file with such a state dict, or None
    for random ones. Raises TypeError or ValueError if one of them does not fit, FileNotFoundError without the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, vgg: str = "vgg19", num_layers: int = 4, weights: str | os.PathLike[str] | None = "imagenet"
    ) -> None:
        super().__init__()
        if vgg not in VGGS:
            raise ValueError(f"vgg must be one of {list(VGGS)}, got {vgg!r}")
        with named_in_errors():
            import torchvision

        # Without the classifier, nine tenths of a VGG.
        features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[VGGS[vgg]])
        relus = [index for index, layer in enumerate(features) if isinstance(layer, nn.ReLU)]
        self.num_layers = check_count("num_layers", num_layers, 1, len(relus))
        self.features = features[: relus[num_layers - 1] + 1]
        for index in relus[:num_layers]:
            self.features[index].inplace = False  # a map that was handed out stays as it is
        # What torchvision's ImageNet weights were trained with.
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        if weights == "imagenet":
            url = torchvision.models.get_weight(f"{vgg.upper()}_Weights.IMAGENET1K_V1").url
            weights = download(url, f"the ImageNet weights of {vgg}")
        if weights is not None:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            self.load_state_dict({key: value for key, value in state.items() if key in self.state_dict()})
        self.requires_grad_(False).eval()

    def embed(self, x: Tensor, num_layers: int | None = None) -> list[Tensor]:
        """The maps after the first convolution + ReLU pairs (by default all): `(N, C_l, H_l, W_l)`, shallowest first.

        `x` is `(N, 3, H, W)` in [0, 1], `H, W >= 32`, normalised here as ImageNet's were; alone it can receive a
        gradient. Raises TypeError or ValueError if it is not, or `num_layers` is more than there are.
        """
        num_layers = check_count("num_layers", num_layers or self.num_layers, 1, self.num_layers)
        check_images("x", x, min_size=MIN_SIZE)
        if x.shape[1] != 3:
            raise ValueError(f"VGG takes RGB, not {x.shape[1]} channels; repeat grey ones: x.repeat(1, 3, 1, 1)")
        features = (match_double(x, self.mean) - self.mean) / self.std
        maps: list[Tensor] = []
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, nn.ReLU):
                maps.append(features)
            if len(maps) == num_layers:
                break
        return maps
