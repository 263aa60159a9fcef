"""E_D: the discriminator that embeds. It knows nothing of losses."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import MIN_SIZE, check_count, check_images, check_switch, layout_of, match_double
from .wavelet import haar_dwt

WIDTHS = (1, 1, 2, 2, 4, 4, 8, 8)
NORMS = ("batch", "group", "none")
NEGATIVE_SLOPE = 0.2


class WaveletDiscriminator(nn.Module):
    """E_D of the paper: a small discriminator that sees the Haar high-frequency bands of an image alone.

    Eight blocks conv3x3 - norm - LeakyReLU(0.2) with 1, 1, 2, 2, 4, 4, 8 and 8 times `num_feat` channels, stride 2
    in every second one, then global average pooling and a linear head.

    `num_in_ch` are the channels of the images, `num_feat` those of the first block; `norm` is `'batch'`, `'group'` or
    `'none'`; without `wavelet` the image itself is fed. Raises TypeError or ValueError if one of them does not fit.
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64, norm: str = "batch", wavelet: bool = True) -> None:
        super().__init__()
        self.num_in_ch = check_count("num_in_ch", num_in_ch, 1)
        check_count("num_feat", num_feat, 1)
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {list(NORMS)}, got {norm!r}")
        self.wavelet = check_switch("wavelet", wavelet)
        channels = [3 * num_in_ch if wavelet else num_in_ch, *(width * num_feat for width in WIDTHS)]
        self.blocks = nn.ModuleList(
            _Block(channels[i], channels[i + 1], stride=1 + i % 2, norm=norm) for i in range(len(WIDTHS))
        )
        self.head = nn.Linear(channels[-1], 1)
        self.num_layers = len(self.blocks)  # how many maps `embed` has

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, 1)`, high for real images.

        Raises TypeError or ValueError unless `x` is a float tensor `(N, num_in_ch, H, W)` in [0, 1], `H, W >= 32`.
        """
        features = self._bands(x)
        for block in self.blocks:
            features = block(features)
        return self.head(features.mean(dim=(2, 3)))

    def embed(self, x: Tensor, num_layers: int = 4) -> list[Tensor]:
        """The frozen view: the maps behind the first blocks, as fixed functions of `x`.

        Computed with a copy of the weights and running statistics: an image's maps do not depend on its batch mates,
        only `x` can receive a gradient, and a later step does not invalidate a pending backward. Returns the first
        `num_layers` maps, 1 to 8, `(N, C_l, H_l, W_l)`, behind the activations. Errors are those of `forward`.
        """
        check_count("num_layers", num_layers, 1, len(self.blocks))
        layout = layout_of(x)
        features = self._bands(x).contiguous(memory_format=layout)
        maps = []
        for block in self.blocks[:num_layers]:
            features = cast(_Block, block).frozen(features, layout)
            maps.append(features)
        return maps

    def _bands(self, x: Tensor) -> Tensor:
        check_images("x", x, self.num_in_ch, MIN_SIZE)
        x = match_double(x, self.head.weight)
        return torch.cat(haar_dwt(x)[1:], dim=1) if self.wavelet else x


class _Block(nn.Module):
    """conv3x3 - norm - LeakyReLU."""

    def __init__(self, in_ch: int, out_ch: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_ch, out_ch, 3, stride, padding=1, bias=norm != "batch")
        self.norm: nn.Module = nn.Identity()
        if norm == "batch":
            self.norm = QuickStartBatchNorm2d(out_ch)
        elif norm == "group":
            # Two channels a group or more: alone, a channel whose map is a single pixel would be erased.
            groups = [n for n in range(1, min(32, out_ch // 2) + 1) if out_ch % n == 0]
            self.norm = nn.GroupNorm(max(groups, default=1), out_ch)
        nn.init.kaiming_normal_(self.conv.weight, a=NEGATIVE_SLOPE)
        if self.conv.bias is not None:
            # High-frequency bands are near 0.02: PyTorch's default bias would drown them and make all images alike.
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), NEGATIVE_SLOPE, inplace=True)

    def frozen(self, x: Tensor, layout: torch.memory_format) -> Tensor:
        """The block with a copy of its present weights and running statistics, its map in this layout."""
        with torch.no_grad():
            weight = self.conv.weight.clone(memory_format=layout)
            bias = None if self.conv.bias is None else self.conv.bias.clone()
            if isinstance(self.norm, QuickStartBatchNorm2d):
                gain = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
                bias = self.norm.bias - self.norm.running_mean * gain
                weight *= gain[:, None, None, None]
            elif not isinstance(self.norm, (nn.GroupNorm, nn.Identity)):
                raise TypeError(f"embed cannot freeze a {type(self.norm).__name__}; leave E_D's batch norm as it was")
        y = F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding)
        if isinstance(self.norm, nn.GroupNorm):
            gamma, beta = self.norm.weight.detach().clone(), self.norm.bias.detach().clone()
            y = F.group_norm(y, self.norm.num_groups, gamma, beta, self.norm.eps)
        return F.leaky_relu(y, NEGATIVE_SLOPE, inplace=True)


class QuickStartBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics follow with momentum `max(0.1, 1 / number of updates)`: with a fixed 0.1 the
    initial variance of 1, thousands of times that of a high-frequency band, would rule them for some eighty updates.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(N, C, H, W)` by the batch's statistics in training mode, by the running ones otherwise."""
        if not self.training:
            return super().forward(x)
        # torch's momentum is a Python number; read from the counter it would stall a GPU. Momentum 1 writes the
        # batch's own statistics into the spare buffers, and the blend stays on the device.
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.num_batches_tracked.to(mean.dtype).reciprocal().clamp_min(self.momentum)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var, momentum)
        return y
