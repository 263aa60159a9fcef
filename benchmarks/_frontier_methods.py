"""The second losses that `frontier.py` compares, and the candidates for an embedding that is never trained."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import (
    ContrastiveDiscriminatorLoss,
    FixedEmbedding,
    PCLCriterion,
    VGGEmbedding,
    WaveletDiscriminator,
    functional,
    haar_dwt,
    samples,
)

L1, REORDERED, UNSHARP = "l1", "l1_reordered", "unsharp"
# PCLLoss divides its weight by 255 for images in [0, 1]; this gives L_CL itself, which is then weighed by gradients.
UNSCALED = 255.0
E_D_STEPS = 300
E_D_LR = 1e-4
PAPER_WARMUP = 20
RANDOM_STATISTICS_BATCHES = 10
# The ReLU maps before each of VGG16's first four poolings.
VGG_MAPS = (1, 3, 6, 9)
# The losses whose backbone is VGG16, as DISTS's is.
VGG16_LOSSES = ("vgg", "dists", "lpips_vgg")

Batch = tuple[Tensor, Tensor]


class Loss(Protocol):
    """A second loss of SR and HR images `(N, 3, H, W)` in [0, 1]."""

    def __call__(self, sr: Tensor, hr: Tensor) -> Tensor:
        """0-dim."""
        ...


@dataclass(frozen=True)
class Context:
    """What a loss may be made of.

    Attributes:
        seed: of the run.
        batch: the LR and HR images of a step, of a stream that the run does not train on.
        net_g: the start network.
        cache: a folder for what the runs of this net and seed share.
    """

    seed: int
    batch: Callable[[int], Batch]
    net_g: nn.Module
    cache: Path


class PackageMissing(RuntimeError):
    """A package that the core does not need is not there; the message says how to get it."""


def optional(module: str, package: str) -> Any:
    """The module, or an error with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackageMissing(f"{package} is not installed: pip install --no-deps {package}") from error


# Embeddings


class BandEmbedding(nn.Module):
    """The Haar bands of some scales with a constant channel beside them: no weights, no network.

    `bands / c` and 1: a flat pixel, whose bands are far below `c`, looks alike in all images; without the constant,
    the cosine of equation 9 gives it, all noise, the same say as an edge.

    Args:
        c: where a band counts as much as the constant.
        scales: how many, one map each.
        overlap: take the bands at every pixel, not at every second one.
        curve: `'none'`; `'sqrt'`, the signed root of the bands; `'local'`, bands divided by their local size, so that
            a strong edge counts no more than a weak one; `'rectify'`, each sign a channel of its own.
    """

    def __init__(self, c: float = 0.02, scales: int = 2, overlap: bool = False, curve: str = "none") -> None:
        if curve not in ("none", "sqrt", "local", "rectify"):
            raise ValueError(f"curve must be none, sqrt, local or rectify, got {curve!r}")
        super().__init__()
        self.c, self.scales, self.overlap, self.curve = c, scales, overlap, curve

    def embed(self, x: Tensor, num_layers: int) -> list[Tensor]:
        """One map per scale, the finest first."""
        maps = []
        for _ in range(min(num_layers, self.scales)):
            low, *bands = haar_dwt(x)
            high = torch.cat(_bands_everywhere(x) if self.overlap else bands, 1) / self.c
            if self.curve == "sqrt":
                high = high.sign() * ((high.abs() + 0.01).sqrt() - 0.1)
            elif self.curve == "local":
                size = F.avg_pool2d(high.square().mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
                high = high * (1 + size).rsqrt()
            elif self.curve == "rectify":
                high = F.leaky_relu(torch.cat([high, -high], 1), 0.2)
            maps.append(torch.cat([high, torch.ones_like(high[:, :1])], 1))
            x = low / 2
        return maps


def _bands_everywhere(x: Tensor) -> list[Tensor]:
    a, b, c, d = x[..., :-1, :-1], x[..., :-1, 1:], x[..., 1:, :-1], x[..., 1:, 1:]
    return [(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]


def random_embedding(context: Context, num_feat: int, seed: int) -> WaveletDiscriminator:
    """An untrained E_D whose batch-norm statistics are those of a few batches of photographs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net_d = WaveletDiscriminator(num_feat=num_feat)
    with torch.no_grad():
        for step in range(RANDOM_STATISTICS_BATCHES):
            net_d(context.batch(step)[1])
    return net_d.eval().requires_grad_(False)


def trained_embedding(context: Context, num_feat: int = 64) -> WaveletDiscriminator:
    """E_D, trained beforehand to tell the start network's images from photographs, then frozen."""
    file = context.cache / f"net_d_{num_feat}_seed{context.seed}.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        net_d = WaveletDiscriminator(num_feat=num_feat)
    if file.is_file():
        net_d.load_state_dict(torch.load(file, weights_only=True))
    else:
        cld = ContrastiveDiscriminatorLoss()
        optimizer = torch.optim.Adam(net_d.parameters(), E_D_LR)
        for step in range(E_D_STEPS):
            lq, hr = context.batch(step)
            with torch.no_grad():
                sr = context.net_g(lq)
            real, fake = net_d(torch.cat([hr, sr])).chunk(2)
            optimizer.zero_grad()
            cld(real, fake).backward()
            optimizer.step()
        part = file.with_suffix(f".{id(net_d)}.part")
        torch.save(net_d.state_dict(), part)
        part.replace(file)
    return net_d.eval().requires_grad_(False)


# Losses


def contrast(context: Context, embedding: nn.Module | str | None, **knobs: Any) -> PCLCriterion:
    """L_CL itself; a frozen embedding stays as it is."""
    return PCLCriterion(embedding, loss_weight=UNSCALED, seed=context.seed, **knobs)


def _few(negatives: int = 2, temperature: float = 1.0, low: float = 0.5, high: float = 1.5) -> dict[str, Any]:
    """GT as the only positive, and few blurred images."""
    knobs = {"num_negatives": negatives, "temperature": temperature, "blur_sigma": (low, high)}
    return {"positives": ("gt",), "negatives": ("blur",), **knobs}


def pcl_paper(context: Context, num_feat: int = 64) -> Loss:
    """The paper's way: E_D is trained along, GT and 4 sharpened images against 4 blurred ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        criterion = contrast(context, None, num_feat=num_feat, lr=E_D_LR)
    for step in range(PAPER_WARMUP):
        lq, hr = context.batch(step)
        with torch.no_grad():
            sr = context.net_g(lq)
        criterion(sr.requires_grad_(), hr)
    return criterion


def pcl_trained(context: Context, **knobs: Any) -> Loss:
    """E_D trained beforehand and frozen; samples as in the paper."""
    return contrast(context, trained_embedding(context), **knobs)


def pcl_random(
    context: Context,
    num_feat: int = 16,
    layers: int = 4,
    weights: int | None = None,
    **few: Any,
) -> Loss:
    """A random, frozen E_D, GT alone, few blurred images; `weights` is its seed, by default the run's."""
    embedding = random_embedding(context, num_feat, context.seed if weights is None else weights)
    return contrast(context, embedding, num_layers=layers, **_few(**few))


def pcl_bands(
    context: Context,
    c: float = 0.02,
    scales: int = 2,
    overlap: bool = False,
    curve: str = "none",
    **few: Any,
) -> Loss:
    """No network: `BandEmbedding`, GT alone, few blurred images."""
    return contrast(context, BandEmbedding(c, scales, overlap, curve), num_layers=scales, **_few(**few))


def pcl_light(context: Context) -> Loss:
    """The package's own recipe."""
    return contrast(context, None, recipe="light")


def feature_l1(context: Context) -> Loss:
    """L1 between the maps of the trained E_D: no contrast."""
    net_d = trained_embedding(context)
    return lambda sr, hr: _l1_of_maps(net_d.embed(sr), net_d.embed(hr))


def cosine(context: Context, light: bool = False) -> Loss:
    """One minus equation 9's similarity to GT, by the trained E_D or the light recipe's bands: no negatives."""
    net = FixedEmbedding() if light else trained_embedding(context)

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        pairs = zip(net.embed(sr), net.embed(hr), strict=True)
        return torch.stack([1 - functional.similarity(f, p[None]).mean() for f, p in pairs]).mean()

    return loss


def push(context: Context) -> Loss:
    """Negatives without a positive: away from the blurred images, by the trained E_D."""
    net_d = trained_embedding(context)
    generator = samples.seeded_generator(context.seed, 0)

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        blurred = samples.blur(hr, samples.draw_uniform(0.5, 1.5, (4, len(hr)), generator), 1.5)
        maps = [f.unflatten(0, blurred.shape[:2]) for f in net_d.embed(blurred.flatten(0, 1))]
        pairs = zip(net_d.embed(sr), maps, strict=True)
        return torch.stack([functional.similarity(f, n).logsumexp(1).mean() for f, n in pairs]).mean()

    return loss


def haar_l1(context: Context) -> Loss:
    """L1 on the high-frequency Haar bands."""
    return lambda sr, hr: _l1_of_maps(haar_dwt(sr)[1:], haar_dwt(hr)[1:])


def vgg(context: Context) -> Loss:
    """L1 between VGG16's ReLU maps."""
    net = VGGEmbedding("vgg16", VGG_MAPS[-1] + 1)

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        f, g = net.embed(sr), net.embed(hr)
        return _l1_of_maps([f[i] for i in VGG_MAPS], [g[i] for i in VGG_MAPS])

    return loss


def dists(context: Context) -> Loss:
    """DISTS (Ding et al. 2020) as a loss."""
    net = dists_net()
    return lambda sr, hr: net(sr, hr, require_grad=True, batch_average=True)


def lpips_vgg(context: Context) -> Loss:
    """LPIPS with VGG16 as a loss."""
    with vgg16_features_alone():
        net = optional("lpips", "lpips").LPIPS(net="vgg", verbose=False).requires_grad_(False)
    return lambda sr, hr: net(sr, hr, normalize=True).mean()


def focal_frequency(context: Context) -> Loss:
    """The focal frequency loss (Jiang et al. 2021)."""
    loss: Loss = optional("focal_frequency_loss", "focal-frequency-loss").FocalFrequencyLoss()
    return loss


def dists_net() -> nn.Module:
    """DISTS with its authors' weights and torchvision's VGG16 features."""
    with vgg16_features_alone():
        net: nn.Module = optional("DISTS_pytorch", "dists-pytorch").DISTS()
    return net.requires_grad_(False).eval()


@contextlib.contextmanager
def vgg16_features_alone() -> Iterator[None]:
    """Within, torchvision's VGG16 is its convolutions alone: a file without the classifier, a tenth, is enough."""
    import torchvision

    whole, features = torchvision.models.vgg16, VGGEmbedding("vgg16", 13).features
    torchvision.models.vgg16 = lambda *_, **__: SimpleNamespace(features=features)
    try:
        yield
    finally:
        torchvision.models.vgg16 = whole


def _l1_of_maps(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    return torch.stack([F.l1_loss(f, g) for f, g in zip(maps, targets, strict=True)]).mean()


SECOND_LOSSES: dict[str, Callable[..., Loss]] = {
    maker.__name__: maker
    for maker in (
        pcl_paper,
        pcl_trained,
        pcl_random,
        pcl_bands,
        pcl_light,
        feature_l1,
        cosine,
        push,
        haar_l1,
        vgg,
        dists,
        lpips_vgg,
        focal_frequency,
    )
}
METHODS = (L1, REORDERED, UNSHARP, *SECOND_LOSSES)


def parse_method(method: str) -> tuple[str, dict[str, Any]]:
    """`name,key=value,...` as a name and options.

    Raises:
        ValueError: the name is unknown, or an option has no value.
    """
    name, *options = method.split(",")
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; take one of {', '.join(METHODS)}")
    parsed = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"method {method!r}: {option!r} has no value; write {option}=...")
        parsed[key] = _value(value)
    return name, parsed


def _value(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"True": True, "False": False}.get(text, text)


def make_loss(method: str, context: Context) -> Loss:
    """The second loss of a method.

    Raises:
        ValueError: it has none, or not such an option.
    """
    name, options = parse_method(method)
    if name not in SECOND_LOSSES:
        raise ValueError(f"method {name!r} has no second loss")
    try:
        return SECOND_LOSSES[name](context, **options)
    except TypeError as error:
        raise ValueError(f"method {method!r}: {error}") from error
