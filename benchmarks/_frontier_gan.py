"""The second stage of `frontier.py`: a discriminator that already tells the start net's images from photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pcl_loss._files import load, replacing

NUM_FEAT = 32
LR = 2e-4
STEPS = 1000  # before the first run


class PatchDiscriminator(nn.Module):
    """Five convolutions, the inner ones under spectral norm: a logit for every 4 x 4 pixels of `(N, 3, H, W)`.

    The images are in [0, 1]. It is frozen, except in `step`, and trains along with whatever net it is shown.
    """

    def __init__(self, num_feat: int = NUM_FEAT) -> None:
        super().__init__()
        wide = 2 * num_feat
        inner = [(num_feat, num_feat, 3, 1), (num_feat, wide, 4, 2), (wide, wide, 3, 1)]
        convs = [spectral_norm(nn.Conv2d(*shape, padding=1)) for shape in inner]
        self.convs = nn.ModuleList([nn.Conv2d(3, num_feat, 4, 2, 1), *convs, nn.Conv2d(wide, 1, 3, 1, 1)])
        self.optimizer = torch.optim.Adam(self.parameters(), LR)
        self.eval().requires_grad_(False)

    def embed(self, x: Tensor, num_layers: int = 3) -> list[Tensor]:
        """The maps of its first layers, shallowest first."""
        maps = [2 * x - 1]
        for conv in self.convs[:num_layers]:
            maps.append(F.leaky_relu(conv(maps[-1]), 0.2))
        return maps[1:]

    def forward(self, x: Tensor) -> Tensor:
        """A logit for every place: how much it looks like a photograph."""
        logits: Tensor = self.convs[-1](self.embed(x, len(self.convs) - 1)[-1])
        return logits

    def loss(self, sr: Tensor, _hr: Tensor) -> Tensor:
        """What the net that made the images gets."""
        return F.softplus(-self(sr)).mean()

    def step(self, sr: Tensor, hr: Tensor) -> float:
        """Train it by one step; by how much the mean logit of HR exceeded that of SR images."""
        self.train().requires_grad_(True)
        real, fake = self(hr), self(sr.detach())
        self.optimizer.zero_grad()
        (F.softplus(-real) + F.softplus(fake)).mean().backward()
        self.optimizer.step()
        self.eval().requires_grad_(False).zero_grad()
        return float((real - fake).detach().mean())


def pretrained(file: Path, net_g: nn.Module, batch: Callable[[int], tuple[Tensor, Tensor]]) -> PatchDiscriminator:
    """It has learnt to tell the frozen net's images from HR; trained once, and then read from the file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net_d = PatchDiscriminator()
    if not file.is_file():
        for step in range(STEPS):
            lq, hr = batch(step)
            with torch.no_grad():
                sr = net_g(lq)
            net_d.step(sr, hr)
        with replacing(file) as part:
            torch.save([net_d.state_dict(), net_d.optimizer.state_dict()], part)
    of_net, of_optimizer = load(file)
    net_d.load_state_dict(of_net)
    net_d.optimizer.load_state_dict(of_optimizer)
    return net_d
