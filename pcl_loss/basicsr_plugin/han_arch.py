"""HAN, the third network of the paper, which BasicSR lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from basicsr.archs.arch_util import Upsample, make_layer
from basicsr.archs.rcan_arch import ResidualGroup
from torch import Tensor, nn

from .._checks import at_least_float32, check_positive


class LayerAttention(nn.Module):
    """Lets every layer's features attend to the features of all layers, weighted by a learned, initially zero `gamma`.

    A softmax over `row maximum - energy` favours the *least* similar layers. On images in 0-255 the energies reach 1e9,
    so they are computed in float32 or wider, whatever autocast says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Maps of L layers `(N, L, C, H, W)` -> `(N, L * C, H, W)`, of their dtype."""
        with torch.autocast(features.device.type, enabled=False):
            flat = at_least_float32(features).flatten(2)
            energy = flat @ flat.mT
            attention = (energy.amax(-1, keepdim=True) - energy).softmax(-1)
            attended = flat + self.gamma.to(flat.dtype) * (attention @ flat)
        return attended.to(features.dtype).view_as(features).flatten(1, 2)


class ChannelSpatialAttention(nn.Module):
    """A 3x3x3 convolution over (channel, row, column) that gates its input, weighted by an initially zero `gamma`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` of shape `(N, C, H, W)`; the result has the same shape."""
        gate = self.conv(x.unsqueeze(1)).sigmoid().squeeze(1)
        return x + x * (self.gamma * gate)


class HAN(nn.Module):
    """Holistic Attention Network, with the keywords and the layer names of BasicSR's RCAN.

    Niu et al., ECCV 2020: RCAN's residual groups, an attention over the outputs of all groups (`la`) and one over the
    channels and positions of the last (`csa`). `pcl-loss convert --from han` reads checkpoints of the official code.

    Args:
        num_in_ch, num_out_ch: channels, as many as `rgb_mean` has values (one value serves any number).
        num_group: residual groups of `num_block` channel attention blocks. The official code works with 10 only.
        squeeze_factor: by how much the channel attentions narrow `num_feat`.
        upscale: 3 or a power of 2.
        res_scale: factor of each block's residual. The official code ignores its own option of this name: 1.
        img_range: what the inside sees as white. A network trained at 255 gives other images at 1.
        rgb_mean: the mean colour in [0, 1] that is subtracted first and added last; the default is DIV2K's.

    Raises:
        TypeError, ValueError: a number is out of its range, or `rgb_mean` does not fit the channels.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int,
        num_out_ch: int,
        num_feat: int = 64,
        num_group: int = 10,
        num_block: int = 20,
        squeeze_factor: int = 16,
        upscale: int = 4,
        res_scale: float = 1,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        super().__init__()
        if squeeze_factor > num_feat:
            raise ValueError(f"squeeze_factor must be at most num_feat, {num_feat}, got {squeeze_factor}")
        if len(rgb_mean) != 1 and not num_in_ch == num_out_ch == len(rgb_mean):
            channels = f"num_in_ch {num_in_ch} and num_out_ch {num_out_ch}"
            raise ValueError(f"rgb_mean has {len(rgb_mean)} values for {channels}; give one for each channel, or one")
        self.img_range = check_positive("img_range", img_range)
        # Outside the state dict, whose keys are the layers' alone, as in BasicSR's networks.
        self.register_buffer("mean", torch.tensor(rgb_mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        group = {"num_feat": num_feat, "num_block": num_block, "squeeze_factor": squeeze_factor, "res_scale": res_scale}
        self.body = make_layer(ResidualGroup, num_group, **group)
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.la = LayerAttention()
        self.csa = ChannelSpatialAttention()
        self.last_conv = nn.Conv2d(num_feat * (num_group + 1), num_feat, 3, padding=1)
        self.last = nn.Conv2d(num_feat * 2, num_feat, 3, padding=1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """LR images `(N, num_in_ch, H, W)` in [0, 1] -> SR `(N, num_out_ch, upscale * H, upscale * W)`, not clamped."""
        mean = self.mean.to(x.dtype)
        shallow = self.conv_first((x - mean) * self.img_range)
        features = [shallow]
        for group in self.body:
            features.append(group(features[-1]))
        features.append(self.conv_after_body(features[-1]))
        deep = features[-1]

        # The newest layer first: the order in which the channels of the official last_conv are stored.
        layers = self.last_conv(self.la(torch.stack(features[:0:-1], dim=1)))
        res = self.last(torch.cat([self.csa(deep), layers], dim=1)) + shallow
        return self.conv_last(self.upsample(res)) / self.img_range + mean
