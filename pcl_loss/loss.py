"""PCLLoss: samples -> embedding -> equations. It owns no optimizer and does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks as checks
from ._checks import MIN_SIZE, at_least_float32, check_images, layout_of
from ._distributed import gather
from .embedding import Embedding, FixedEmbedding
from .functional import contrastive_discriminator_loss, energy_loss, known_contrastive_loss
from .samples import SampleDraw, seeded_generator

# alpha of equation 11 is meant for images in 0-255, where |dL_1/dSR| and |dL_CL/dSR| are comparable.
ALPHA_RANGE = 255.0

PAPER: dict[str, Any] = {
    "loss_weight": 1.0,
    "temperature": 1.0,
    "num_layers": 4,
    "num_positives": 4,
    "num_negatives": 4,
    "positives": ("gt", "sharpen"),
    "negatives": ("blur",),
    "sharpness": (1.5, 3.0),
    "blur_sigma": (0.5, 1.5),
    "energy_weight": 0.0,
}
LIGHT = {"loss_weight": 1.2, "num_layers": 1, "positives": ("gt",), "num_negatives": 2, "energy_weight": 0.16}
# What a knob of `PCLLoss` is where it is not given.
RECIPES: dict[str, dict[str, Any]] = {"paper": PAPER, "light": PAPER | LIGHT}

# Images in a chunk on a CPU: fewer cost more in calls, more leave the cache.
CPU_IMAGES = 2


class PCLLoss(nn.Module):
    """The contrastive loss of the paper between a super-resolved image and samples made of its ground truth.

    `loss_weight * data_range / 255 * (L_CL + energy_weight * L_E)`, `L_CL` as in equations 8 to 10, and `L_E`
    `functional.energy_loss` of a `FixedEmbedding`'s finest bands. `loss_weight` is thereby the paper's alpha for images
    in 0-255, and keeps its balance against L_1 on images of any range.

    Args, of which one that is None has the value of the recipe:
        loss_weight: alpha of equation 11.
        recipe: `'paper'`, or `'light'`, few samples and the energy term, for a `FixedEmbedding`; see `RECIPES`.
        temperature: tau of equation 8. Smaller pushes harder.
        num_layers: L of equation 10, how many maps of the embedding are compared.
        num_positives: number of sharpened images; `'gt'` adds one more positive.
        num_negatives: number of blurred images, and the most that `'batch'` adds; `'lq'` adds one.
        positives: out of `'gt'` and `'sharpen'`.
        negatives: out of `'blur'`, `'lq'` (the LR image enlarged) and `'batch'` (the next images' ground truth).
        sharpness, blur_sigma: ranges of the sharpening factor, of which 1 is the image itself, and of the Gaussian's
            sigma, in pixels.
        energy_weight: of the energy term, which is 0 where SR is HR; at least 0.
        data_range: the images' white: 1.0 or 255.0.
        chunk_size: how many samples are embedded at once, for memory; None: all on a GPU, two images' on a CPU.
        seed: of the samples, at least 0.
    """

    def __init__(
        self,
        loss_weight: float | None = None,
        *,
        recipe: str = "paper",
        temperature: float | None = None,
        num_layers: int | None = None,
        num_positives: int | None = None,
        num_negatives: int | None = None,
        positives: Iterable[str] | None = None,
        negatives: Iterable[str] | None = None,
        sharpness: Sequence[float] | None = None,
        blur_sigma: Sequence[float] | None = None,
        energy_weight: float | None = None,
        data_range: float = 1.0,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in PAPER and value is not None}
        super().__init__()
        if not isinstance(recipe, str) or recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {list(RECIPES)}, got {recipe!r}")
        self.recipe = recipe
        knobs = RECIPES[recipe] | given
        self.loss_weight = checks.check_number("loss_weight", knobs.pop("loss_weight"))
        self.temperature = checks.check_positive("temperature", knobs.pop("temperature"))
        self.num_layers = checks.check_count("num_layers", knobs.pop("num_layers"), 1)
        self.energy_weight = checks.check_number("energy_weight", knobs.pop("energy_weight"))
        if self.energy_weight < 0:
            raise ValueError(f"energy_weight must be at least 0, got {self.energy_weight}")
        self.samples = SampleDraw(**knobs)
        self.data_range = checks.check_positive("data_range", data_range)
        self.chunk_size = None if chunk_size is None else checks.check_count("chunk_size", chunk_size, 1)
        self.seed = checks.check_count("seed", seed, 0)
        self.num_calls = 0
        # Whether the value is less that of SR = HR, and all images of a batch have one draw.
        self.is_relative = False
        self.stats: dict[str, Tensor] = {}
        """Of the last call, detached and 0-dim: `l_cl` (without weight), `pos_sim`, `neg_sim`, `margin` (their
        difference), the same per layer, `l_cl_1` being the shallowest's, and `l_energy` if it has a weight."""

    def forward(
        self,
        sr: Tensor,
        hr: Tensor,
        embedding: Embedding | None = None,
        lq: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The weighted loss, 0-dim; only `sr` can receive a gradient.

        `sr` and `hr`, its ground truth, are `(N, C, H, W)` in `[0, data_range]`, `H, W >= 32`, not clamped; `lq`, LR
        images `(N, C, h, w)` in the same range, is needed for the negatives `'lq'`. `generator` gives the samples'
        random numbers; by default it is seeded from (`seed`, number of the call, rank).

        Raises TypeError or ValueError if an image is not such a tensor or missing, or `embedding` does not embed;
        RuntimeError in a backward pass with `create_graph=True`.
        """
        embedding = self._check(sr, hr, embedding, lq)
        lq = lq if "lq" in self.samples.negatives else None
        if generator is None:
            generator = seeded_generator(self.seed, self.num_calls)
        # An evaluation in between leaves the samples of the training calls as they would be.
        self.num_calls += int(torch.is_grad_enabled() and (sr.requires_grad or not self.is_relative))
        # Drawn for the whole batch, so that the samples do not depend on how it is cut up.
        draws = self.samples.draw(1 if self.is_relative else len(hr), generator).expand(-1, len(hr))
        size = CPU_IMAGES if hr.device.type == "cpu" else len(hr)
        if self.chunk_size is not None:
            size = max(1, self.chunk_size // len(self.samples.kinds))
        chunks = [slice(start, min(start + size, len(hr))) for start in range(0, len(hr), size)]
        gt_maps = self._gt_maps(hr, chunks, embedding) if "batch" in self.samples.negatives else []
        losses, sims, energies = [], [], []
        for images in chunks:
            anchor = self._embed(self._unit(sr[images]), embedding)
            samples = self._sample_maps(hr[images], None if lq is None else lq[images], draws[:, images], embedding)
            for layer, maps in zip(samples, gt_maps, strict=False):
                # GT, a positive or not, and the images that follow, each `(1, n, C_l, H_l, W_l)`.
                shifted = [maps[None, images.start + k : images.stop + k] for k in range(1 + len(maps) - len(hr))]
                layer[:0] = shifted[:1] if "gt" in self.samples.positives else []
                layer += shifted[1:]
            compared = samples, self.samples.total_positives, self.temperature
            of_chunk, of_samples = known_contrastive_loss(anchor, *compared)
            if self.is_relative:
                with torch.no_grad():
                    at_hr = known_contrastive_loss(self._embed(self._unit(hr[images]), embedding), *compared)
                of_chunk = of_chunk - at_hr[0]
            losses.append(of_chunk)
            sims.append(of_samples)
            if self.energy_weight:
                bands = [anchor[0], samples[0][0][0]]
                if not isinstance(embedding, FixedEmbedding) or "gt" not in self.samples.positives:
                    own = FixedEmbedding(hr.shape[1])
                    bands = [own.embed(self._unit(x[images]))[0] for x in (sr, hr.detach())]
                # Without the constant beside them.
                energies.append(energy_loss(bands[0][:, :-1], bands[1][:, :-1]))
        layer_losses = torch.cat(losses).mean(0)
        value = layer_losses.mean()
        pos_and_neg = torch.cat(sims).mean(0).tensor_split([self.samples.total_positives], 1)
        pos_sims, neg_sims = (of_layers.mean(1) for of_layers in pos_and_neg)
        per_layer = {"l_cl": layer_losses.detach(), "pos_sim": pos_sims, "neg_sim": neg_sims}
        per_layer["margin"] = pos_sims - neg_sims
        self.stats = {name: values.mean() for name, values in per_layer.items()}
        for name, values in per_layer.items():
            self.stats |= {f"{name}_{layer}": value for layer, value in enumerate(values.unbind(), 1)}
        if energies:
            l_energy = torch.cat(energies).mean()
            value = value + self.energy_weight * l_energy
            self.stats["l_energy"] = l_energy.detach()
        return self.loss_weight * self.data_range / ALPHA_RANGE * value

    def get_extra_state(self) -> Tensor:
        """The number of calls so far: a resumed run draws the samples of an uninterrupted one."""
        return torch.tensor(self.num_calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up what `get_extra_state` gave."""
        self.num_calls = int(state)

    def _unit(self, images: Tensor) -> Tensor:
        """Images in [0, 1], in float32 or wider."""
        return at_least_float32(images) / self.data_range

    def _embed(self, images: Tensor, embedding: Embedding) -> list[Tensor]:
        # On a CPU convolutions and channel norms are faster in this layout.
        layout = torch.channels_last if images.device.type == "cpu" else layout_of(images)
        return embedding.embed(images.contiguous(memory_format=layout), self.num_layers)

    @torch.no_grad()
    def _gt_maps(self, hr: Tensor, chunks: Sequence[slice], embedding: Embedding) -> list[Tensor]:
        """The maps of all GT images, the first ones once more behind the last, so that each has those that follow."""
        layers = zip(*(self._embed(self._unit(hr[images]), embedding) for images in chunks), strict=True)
        return [torch.cat([*maps, torch.cat(maps)[: min(self.samples.num_negatives, len(hr) - 1)]]) for maps in layers]

    @torch.no_grad()
    def _sample_maps(self, hr: Tensor, lq: Tensor | None, draws: Tensor, embedding: Embedding) -> list[list[Tensor]]:
        """The maps of the samples of n images: of every layer, tensors `(k, n, C_l, H_l, W_l)`, the positives first."""
        made = self.samples.make(self._unit(hr), None if lq is None else self._unit(lq), draws)
        if "batch" in self.samples.negatives and "gt" in self.samples.positives:
            made = made[1:]  # the maps of GT are there already
        layers: list[list[Tensor]] = [[] for _ in range(self.num_layers)]
        flat = made.flatten(0, 1)
        for chunk in flat.split(self.chunk_size or len(flat)) if len(flat) else ():
            for layer, maps in zip(layers, self._embed(chunk, embedding), strict=True):
                layer.append(maps.unflatten(0, (-1, len(hr))))
        return layers

    def _check(self, sr: Tensor, hr: Tensor, embedding: Embedding | None, lq: Tensor | None) -> Embedding:
        if not isinstance(embedding, Embedding):
            raise TypeError(
                f"PCLLoss needs an embedding with a method embed(x, num_layers); {type(embedding).__name__} has none. "
                "Pass the bare network (net_d.module), or use PCLCriterion; in a BasicSR YAML, train.pcl_opt with "
                "`model_type: PCLModel`, or PCLPerceptualLoss as train.perceptual_opt"
            )
        check_images("sr", sr, min_size=MIN_SIZE)
        check_images("hr", hr, min_size=MIN_SIZE)
        if sr.shape != hr.shape:
            raise ValueError(f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)} must have the same shape; check the scale")
        if "lq" in self.samples.negatives:
            if lq is None:
                raise ValueError("negatives contains 'lq', but no lq was passed; call with lq=..., or drop 'lq'")
            check_images("lq", lq)
            if lq.shape[:2] != hr.shape[:2]:
                raise ValueError(f"lq {tuple(lq.shape)} must have the batch size and channels of hr {tuple(hr.shape)}")
        if self.samples.negatives == ("batch",) and len(hr) < 2:
            raise ValueError("the negatives are ['batch'], but the batch has one image; take at least 2, or add 'blur'")
        return embedding


class ContrastiveDiscriminatorLoss(nn.Module):
    """Equation 7, what E_D is trained with; see `functional.contrastive_discriminator_loss`.

    `gather`, under torch.distributed, compares with the logits of all ranks, of which each must hold as many; for
    gradients that are then averaged over the ranks, as `DistributedDataParallel` does.
    """

    def __init__(self, loss_weight: float = 1.0, gather: bool = False) -> None:
        super().__init__()
        self.loss_weight = checks.check_number("loss_weight", loss_weight)
        self.gather = checks.check_switch("gather", gather)

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The weighted loss, 0-dim, of logits of any shape; raises ValueError if either side is empty."""
        if self.gather:
            real_logits, fake_logits = gather(real_logits), gather(fake_logits)
        return self.loss_weight * contrastive_discriminator_loss(real_logits, fake_logits)
