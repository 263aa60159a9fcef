"""PCLLoss: samples -> embedding -> equations. It owns no optimizer and does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from . import samples
from ._checks import (
    MIN_SIZE,
    check_count,
    check_images,
    check_number,
    check_positive,
    check_range,
    check_sources,
)
from ._distributed import gather
from ._known_gradient import frozen_contrastive_loss
from ._tensors import at_least_float32, fastest_layout
from .embedding import Embedding
from .functional import contrastive_discriminator_loss

# alpha of equation 11 is meant for images in 0-255, where |dL_1/dSR| and |dL_CL/dSR| are comparable.
ALPHA_RANGE = 255.0

# Images compared at a time on a CPU: fewer cost more in calls, more leave the cache.
CPU_BLOCK_SIZE = 2


class PCLLoss(nn.Module):
    """The contrastive loss of the paper between a super-resolved image and samples made of its ground truth.

    `loss_weight * data_range / 255 * L_CL`, `L_CL` as in equations 8 to 10. `loss_weight` is thereby the paper's
    alpha for images in 0-255, and keeps its balance against L_1 on images of any range.

    Args:
        loss_weight: alpha of equation 11.
        temperature: tau of equation 8. Smaller pushes harder.
        num_layers: L of equation 10, how many maps of the embedding are compared.
        num_positives: number of sharpened images; `'gt'` adds one more positive.
        num_negatives: number of blurred images, and the most that `'batch'` adds; `'lq'` adds one.
        positives: out of `'gt'` and `'sharpen'`.
        negatives: out of `'blur'`, `'lq'` (the LR image enlarged to HR's size) and `'batch'` (the ground truth of
            the next images of the batch, at most all others).
        sharpness: range of the sharpening factor; 1 is the image itself.
        blur_sigma: range of the Gaussian's sigma, in pixels.
        data_range: the images' white: 1.0 or 255.0.
        chunk_size: how many samples pass the embedding at a time; None: all of them on a GPU, those of two images
            on a CPU. It changes memory and speed, not the result: images are compared in blocks of so many samples
            (at least those of one image, with `'batch'` the whole batch), and of a block only the gradient with
            respect to its SR images' maps is kept.
        seed: of the samples, at least 0.

    Raises:
        TypeError, ValueError: an argument is of a wrong type or out of range.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        *,
        temperature: float = 1.0,
        num_layers: int = 4,
        num_positives: int = 4,
        num_negatives: int = 4,
        positives: Iterable[str] = ("gt", "sharpen"),
        negatives: Iterable[str] = ("blur",),
        sharpness: Sequence[float] = (1.5, 3.0),
        blur_sigma: Sequence[float] = (0.5, 1.5),
        data_range: float = 1.0,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.loss_weight = check_number("loss_weight", loss_weight)
        self.temperature = check_positive("temperature", temperature)
        self.num_layers = check_count("num_layers", num_layers, 1)
        self.positives = check_sources("positives", positives, samples.POSITIVE_SOURCES)
        self.negatives = check_sources("negatives", negatives, samples.NEGATIVE_SOURCES)
        self.num_positives = check_count("num_positives", num_positives, int("sharpen" in self.positives))
        self.num_negatives = check_count("num_negatives", num_negatives, int(self.negatives != ("lq",)))
        self.sharpness = check_range("sharpness", sharpness, 0.0)
        self.blur_sigma = check_range("blur_sigma", blur_sigma, 0.0)
        check_positive("blur_sigma[0]", self.blur_sigma[0])
        self.data_range = check_positive("data_range", data_range)
        self.chunk_size = None if chunk_size is None else check_count("chunk_size", chunk_size, 1)
        self.seed = check_count("seed", seed, 0)
        self._num_positives = int("gt" in self.positives) + self.num_positives * ("sharpen" in self.positives)
        # Of every image: those that are embedded. Of the GT of other images only the maps are needed, which are there.
        self._num_samples = self._num_positives + self.num_negatives * ("blur" in self.negatives)
        self._num_samples += ("lq" in self.negatives) + ("batch" in self.negatives and "gt" not in self.positives)
        self.num_calls = 0
        self.stats: dict[str, Tensor] = {}
        """Detached 0-dim tensors of the last call: `l_cl` (without weight), `pos_sim`, `neg_sim`, `margin` (their
        difference), and the same per layer, `l_cl_1` being the shallowest layer's."""

    def forward(
        self,
        sr: Tensor,
        hr: Tensor,
        embedding: Embedding | None = None,
        lq: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The weighted loss; only `sr` can receive a gradient.

        Args:
            sr: super-resolved images, the anchor: `(N, C, H, W)` in `[0, data_range]`, `H, W >= 32`; not clamped.
            hr: their ground truth, the same shape and range.
            embedding: what embeds, usually a `WaveletDiscriminator`.
            lq: the LR images, `(N, C, h, w)`, the same range; needed for the negative source `'lq'`.
            generator: where the samples' random numbers come from; by default a CPU generator seeded from
                (`seed`, number of the call, rank).

        Returns:
            0-dim.

        Raises:
            TypeError: an image is not a float tensor, or `embedding` does not embed.
            ValueError: a shape does not fit, `lq` is missing, or `'batch'` meets a batch of one.
            RuntimeError: in a backward pass with `create_graph=True`.
        """
        embedding = self._check(sr, hr, embedding, lq)
        if generator is None:
            generator = samples.seeded_generator(self.seed, self.num_calls)
        self.num_calls += 1

        losses, sims = [], []
        for block in self._blocks(sr, hr, lq, generator):
            # What is embedded of a block is let go with it, but for what its anchors' gradient needs.
            block_losses, block_sims = self._compare(*block, embedding)
            losses.append(block_losses)
            sims.append(block_sims)
        layer_losses = torch.cat(losses).mean(0)
        self.stats = _stats(layer_losses.detach(), torch.cat(sims).mean(0), self._num_positives)
        return self.loss_weight * self.data_range / ALPHA_RANGE * layer_losses.mean()

    def extra_repr(self) -> str:
        """The knobs, for `print`."""
        return (
            f"loss_weight={self.loss_weight}, temperature={self.temperature}, num_layers={self.num_layers}, "
            f"positives={list(self.positives)} ({self.num_positives} sharpened by {self.sharpness}), "
            f"negatives={list(self.negatives)} ({self.num_negatives}, sigma {self.blur_sigma}), "
            f"data_range={self.data_range}"
        )

    def get_extra_state(self) -> dict[str, int]:
        """The number of calls so far, so that a resumed run draws the samples of an uninterrupted one."""
        return {"num_calls": self.num_calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up what `get_extra_state` gave."""
        self.num_calls = int(state["num_calls"])

    def _blocks(
        self, sr: Tensor, hr: Tensor, lq: Tensor | None, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]]:
        """Blocks of images that are compared at a time: sr, hr, lq, factors `(K_P, n)` and sigmas `(K_N, n)`."""
        # Drawn for the whole batch, so that the samples do not depend on how it is cut up.
        factor = sigma = torch.empty(0, len(hr))
        if "sharpen" in self.positives:
            factor = samples.draw_uniform(*self.sharpness, (self.num_positives, len(hr)), generator)
        if "blur" in self.negatives:
            sigma = samples.draw_uniform(*self.blur_sigma, (self.num_negatives, len(hr)), generator)
        # GT of the next images is at hand only where the whole batch is.
        block_size = len(hr) if "batch" in self.negatives else max(1, self._chunk_size(hr) // self._num_samples)
        srs = sr.split(block_size)
        lqs = [None] * len(srs) if lq is None or "lq" not in self.negatives else lq.split(block_size)
        return zip(srs, hr.split(block_size), lqs, factor.split(block_size, 1), sigma.split(block_size, 1), strict=True)

    def _chunk_size(self, hr: Tensor) -> int:
        if self.chunk_size is not None:
            return self.chunk_size
        return self._num_samples * (CPU_BLOCK_SIZE if hr.device.type == "cpu" else len(hr))

    def _compare(
        self, sr: Tensor, hr: Tensor, lq: Tensor | None, factor: Tensor, sigma: Tensor, embedding: Embedding
    ) -> tuple[Tensor, Tensor]:
        """Losses `(n, L)` and similarities `(n, L, K)` of a block."""
        layout = fastest_layout(sr)
        images = self._make_samples(hr, lq, factor, sigma).contiguous(memory_format=layout)
        anchor = (at_least_float32(sr) / self.data_range).contiguous(memory_format=layout)
        return frozen_contrastive_loss(
            embedding.embed(anchor, self.num_layers),
            self._embed_samples(images.split(self._chunk_size(hr)), len(hr), embedding),
            self._num_positives,
            self.temperature,
        )

    @torch.no_grad()
    def _make_samples(self, hr: Tensor, lq: Tensor | None, factor: Tensor, sigma: Tensor) -> Tensor:
        """The samples that are made of images, `(K n, C, H, W)` in [0, 1], sample by sample, the positives first."""
        with torch.autocast(hr.device.type, enabled=False):
            gt = at_least_float32(hr) / self.data_range
            made = [gt] if "gt" in self.positives else []
            if "sharpen" in self.positives:
                made.append(samples.sharpen(gt, factor).flatten(0, 1))
            if "blur" in self.negatives:
                made.append(samples.blur(gt, sigma, self.blur_sigma[1]).flatten(0, 1))
            if lq is not None:
                enlarged = samples.upsample(at_least_float32(lq) / self.data_range, (gt.shape[-2], gt.shape[-1]))
                made.append(enlarged.to(gt.dtype))
            if "batch" in self.negatives and "gt" not in self.positives:
                made.append(gt)
            return torch.cat(made)

    @torch.no_grad()
    def _embed_samples(self, images: Iterable[Tensor], count: int, embedding: Embedding) -> Iterator[Sequence[Tensor]]:
        """The maps of all samples of `count` images, piece by piece: L of `(k, count, C_l, H_l, W_l)`."""
        chunks = (embedding.embed(chunk, self.num_layers) for chunk in images)
        if "batch" not in self.negatives:
            for chunk in chunks:
                yield [maps.unflatten(0, (-1, count)) for maps in chunk]
            return
        layers = [torch.cat(maps).unflatten(0, (-1, count)) for maps in zip(*chunks, strict=True)]
        # GT is the first sample; where it is none, it was embedded behind them, for those that follow.
        gt_is_sample = "gt" in self.positives
        yield layers if gt_is_sample else [maps[:-1] for maps in layers]
        shifts = range(1, min(self.num_negatives, count - 1) + 1)
        gt_maps = [maps[0 if gt_is_sample else -1] for maps in layers]
        yield [torch.stack([gt.roll(-shift, 0) for shift in shifts]) for gt in gt_maps]

    def _check(self, sr: Tensor, hr: Tensor, embedding: Embedding | None, lq: Tensor | None) -> Embedding:
        if embedding is None:
            raise ValueError(
                "PCLLoss needs an embedding. In a BasicSR YAML use it as train.pcl_opt with `model_type: PCLModel`, "
                "or put `type: PCLPerceptualLoss` in train.perceptual_opt; in your own loop use PCLCriterion, or "
                "pass a WaveletDiscriminator: pcl(sr, hr, net_d)"
            )
        if not isinstance(embedding, Embedding):
            raise TypeError(
                f"embedding must have a method embed(x, num_layers), {type(embedding).__name__} has none; "
                "pass a WaveletDiscriminator, or the bare network behind a parallel wrapper (net_d.module)"
            )
        check_images("sr", sr, min_size=MIN_SIZE)
        check_images("hr", hr, min_size=MIN_SIZE)
        if sr.shape != hr.shape:
            raise ValueError(
                f"sr and hr must have the same shape, got {tuple(sr.shape)} and {tuple(hr.shape)}; "
                "crop or resize one to the other, and check the scale"
            )
        if "lq" in self.negatives:
            if lq is None:
                raise ValueError("negatives contains 'lq', but no lq was passed; call with lq=..., or drop 'lq'")
            check_images("lq", lq)
            if lq.shape[:2] != hr.shape[:2]:
                raise ValueError(
                    f"lq must have the batch size and channels of hr, got {tuple(lq.shape)} and {tuple(hr.shape)}"
                )
        if "batch" in self.negatives and len(hr) < 2:
            raise ValueError(
                "negatives contains 'batch', which takes the other images of the batch, but the batch has one image; "
                "use a batch size of at least 2, or drop 'batch'"
            )
        return embedding


class ContrastiveDiscriminatorLoss(nn.Module):
    """Equation 7, what E_D is trained with; see `functional.contrastive_discriminator_loss`.

    Args:
        loss_weight: factor of the loss.
        gather: under torch.distributed, compare with the logits of all ranks, of which each must hold as many. The
            gradients are those of the loss over all logits once they are averaged over the ranks, as
            `DistributedDataParallel` does.
    """

    def __init__(self, loss_weight: float = 1.0, gather: bool = False) -> None:
        super().__init__()
        self.loss_weight = check_number("loss_weight", loss_weight)
        if not isinstance(gather, bool):
            raise TypeError(f"gather must be True or False, got {gather!r}")
        self.gather = gather

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The weighted loss, 0-dim, of logits of any shape.

        Raises:
            ValueError: either side is empty.
        """
        if self.gather:
            real_logits, fake_logits = gather(real_logits), gather(fake_logits)
        return self.loss_weight * contrastive_discriminator_loss(real_logits, fake_logits)


def _stats(losses: Tensor, sims: Tensor, num_positives: int) -> dict[str, Tensor]:
    pos_sims, neg_sims = sims[:, :num_positives].mean(1), sims[:, num_positives:].mean(1)
    per_layer = {"l_cl": losses, "pos_sim": pos_sims, "neg_sim": neg_sims, "margin": pos_sims - neg_sims}
    means = {name: values.mean() for name, values in per_layer.items()}
    layers = {
        f"{name}_{layer}": value for name, values in per_layer.items() for layer, value in enumerate(values.unbind(), 1)
    }
    return means | layers
