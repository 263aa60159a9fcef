"""The second losses that `frontier.py` compares."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import yaml
from _frontier_gan import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import FixedEmbedding, PCLCriterion, VGGEmbedding, WaveletDiscriminator, functional

L1, REORDERED, UNSHARP = "l1", "l1_reordered", "unsharp"
# PCLLoss divides its weight by 255 for images in [0, 1]; this gives L_CL itself, which is then weighed by gradients.
UNSCALED = 255.0
E_D_STEPS = 300
PAPER_WARMUP = 20
RANDOM_STATISTICS_BATCHES = 10

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""A second loss of SR and HR images `(N, 3, H, W)` in [0, 1]: 0-dim."""


class Context(NamedTuple):
    """What a loss may be made of: the run's seed, batches that it does not train on, and the nets."""

    seed: int
    batch: Callable[[int], Batch]
    net_g: nn.Module
    net_d: PatchDiscriminator | None = None  # of the GAN, in the second stage


def contrast(context: Context, embedding: nn.Module | None, **knobs: Any) -> PCLCriterion:
    """L_CL itself; a frozen embedding stays as it is."""
    return PCLCriterion(embedding, loss_weight=UNSCALED, seed=context.seed, **knobs)


def pcl_paper(context: Context, num_feat: int = 64, steps: int = PAPER_WARMUP) -> PCLCriterion:
    """The paper's way: E_D is trained along, GT and 4 sharpened images against 4 blurred ones; first `steps` alone."""
    criterion = contrast(context, new_net_d(context, num_feat))
    for step in range(steps):
        lq, hr = context.batch(step)
        with torch.no_grad():
            sr = context.net_g(lq)
        criterion(sr.requires_grad_(), hr)
    return criterion


def new_net_d(context: Context, num_feat: int) -> WaveletDiscriminator:
    """An untrained E_D; the global random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return WaveletDiscriminator(num_feat=num_feat)


def trained_embedding(context: Context) -> Any:
    """E_D, trained beforehand to tell the start network's images from photographs, then frozen."""
    return pcl_paper(context, steps=E_D_STEPS).embedding.eval().requires_grad_(False)


def pcl_trained(context: Context) -> Loss:
    """E_D trained beforehand and frozen; samples as in the paper."""
    return contrast(context, trained_embedding(context))


def pcl_random(context: Context, num_feat: int = 16) -> Loss:
    """A small random, frozen E_D that has seen the statistics of photographs; few samples, as in the light recipe."""
    net_d = new_net_d(context, num_feat)
    with torch.no_grad():
        for step in range(RANDOM_STATISTICS_BATCHES):
            net_d(context.batch(step)[1])
    return contrast(context, net_d.eval().requires_grad_(False), positives=("gt",), num_negatives=2)


def pcl_few(context: Context) -> Loss:
    """The contrast of the light recipe, without its energy."""
    return contrast(context, None, recipe="light", energy_weight=0.0)


def energy(context: Context) -> Loss:
    """The energy of the light recipe, without its contrast."""
    net = FixedEmbedding()
    return lambda sr, hr: functional.energy_loss(*(net.embed(x)[0][:, :-1] for x in (sr, hr))).mean()


def cosine(context: Context, light: bool = False, host: bool = False) -> Loss:
    """One minus equation 9's similarity to GT, by the trained E_D, light's bands or the GAN's own net: no negatives."""
    net: Any = FixedEmbedding() if light else context.net_d if host else trained_embedding(context)

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        pairs = zip(net.embed(sr), net.embed(hr), strict=True)
        return torch.stack([1 - functional.similarity(f, p[None]).mean() for f, p in pairs]).mean()

    return loss


def vgg(context: Context, bf16: bool = False) -> Loss:
    """L1 between VGG16's ReLU maps before each of its first four poolings; in bfloat16 at half the price on a CPU."""
    net = VGGEmbedding("vgg16", num_layers=10)

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            f, g = net.embed(sr), net.embed(hr)
            return torch.stack([F.l1_loss(f[layer], g[layer]) for layer in (1, 3, 6, 9)]).mean().float()

    return loss


def dists(context: Context) -> Loss:
    """DISTS (Ding et al. 2020) as a loss."""
    net = dists_net()
    return lambda sr, hr: net(sr, hr, require_grad=True, batch_average=True)


@functools.cache
def dists_net() -> nn.Module:
    """DISTS with its authors' weights and torchvision's VGG16 features, whose file needs no classifier."""
    vgg16 = SimpleNamespace(features=VGGEmbedding("vgg16", 13).features)
    with mock.patch("torchvision.models.vgg16", return_value=vgg16):
        net: nn.Module = importlib.import_module("DISTS_pytorch").DISTS()
    return net.requires_grad_(False).eval()


SECOND_LOSSES: dict[str, Callable[..., Loss]] = {
    maker.__name__: maker for maker in (pcl_paper, pcl_trained, pcl_random, pcl_few, energy, cosine, vgg, dists)
} | {"gan": lambda context: context.net_d.loss}  # more of the GAN itself, which what stands beside it must beat
NAMES = (L1, REORDERED, UNSHARP, *SECOND_LOSSES)
TERM = re.compile(r"(?:(?P<share>[\d.]+)\*)?(?P<name>[\w.:]+)(?P<options>(?:,\w+=[^,]+)*)")


class Term(NamedTuple):
    """A loss of a method: its share of the ratio of gradients, its name or `MODULE:FUNCTION`, and its options."""

    share: float
    name: str
    options: dict[str, Any]


def parse_method(method: str) -> list[Term]:
    """`NAME,KEY=VALUE...`, or several of them: `pcl_few+0.3*MODULE:FUNCTION,KEY=VALUE`.

    Raises:
        ValueError: it has another form, or a name is unknown.
    """
    terms = []
    for text in method.split("+"):
        found = TERM.fullmatch(text)
        if found is None or (found["name"] not in NAMES and ":" not in found["name"]):
            raise ValueError(
                f"{text!r} is not NAME[,KEY=VALUE...]; NAME is MODULE:FUNCTION or one of {', '.join(NAMES)}"
            )
        options = [option.split("=") for option in found["options"].split(",")[1:]]
        terms.append(Term(float(found["share"] or 1), found["name"], {k: yaml.safe_load(v) for k, v in options}))
    return terms


def make_losses(method: str, context: Context) -> list[tuple[float, Loss]]:
    """The second losses of a method, each with its share; `FUNCTION` of a module takes a `Context`, as ours do."""
    made = []
    for share, name, options in parse_method(method):
        module, _, function = name.partition(":")
        maker = getattr(importlib.import_module(module), function) if function else SECOND_LOSSES[name]
        made.append((share, maker(context, **options)))
    return made
