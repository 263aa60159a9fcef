"""What `step_cost.py` measures: the plain loss, and BasicSR's training steps."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import skimage.data
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from pcl_loss import Embedding, PCLLoss, VGGEmbedding, WaveletDiscriminator, criterion, samples
from pcl_loss.loss import ALPHA_RANGE
from pcl_loss.tools.options import option_files
from pcl_loss.wavelet import haar_dwt

SCALE = 4
SEED = 0
NETS = ("EDSR-S", "EDSR-L", "RCAN", "HAN")
VARIANTS = ("L1", "L1 + VGG19", "L1 + GAN", "L1 + PCL", "L1 + PCL, E_D frozen", "L1 + PCL, light", "L1 + plain PCL")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
TINY_NETWORK = {"num_feat": 8, "num_block": 2, "num_group": 1, "squeeze_factor": 4}


def photograph_crops(count: int, size: int) -> Tensor:
    """Random crops of the photographs in turn, `(count, 3, size, size)`, float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(SEED)
    crops = []
    for index in range(count):
        photograph = torch.from_numpy(getattr(skimage.data, PHOTOGRAPHS[index % len(PHOTOGRAPHS)])())
        y, x = (int(torch.randint(side - size + 1, (), generator=generator)) for side in photograph.shape[:2])
        crops.append(photograph[y : y + size, x : x + size])
    return torch.stack(crops).float().div(255).permute(0, 3, 1, 2).contiguous()


def bicubic_sr(hr: Tensor) -> Tensor:
    """What stands for SR images, `(N, 3, H, W)`."""
    return samples.upsample(criterion.downsample(hr, SCALE).clamp(0, 1), (hr.shape[-2], hr.shape[-1]))


def net_d_with_statistics(hr: Tensor, num_feat: int) -> WaveletDiscriminator:
    """An E_D in training mode, new but for its running statistics, which are those of HR and bicubic images."""
    net_d = WaveletDiscriminator(num_feat=num_feat).to(hr.device)
    with torch.no_grad():
        net_d(torch.cat([hr, bicubic_sr(hr)]))
    return net_d


# The loss


class PlainPCLLoss(PCLLoss):
    """`PCLLoss` with the default samples, in the published code's way of working: the same value and gradient.

    Each sample goes on its own through all of E_D, head included, and so does the anchor; both maps are normalised
    anew for every pair; every positive has a cross entropy of its own. In two points it is cheaper than that code: it
    keeps of each sample only the maps that are compared, and it blurs and sharpens as we do.
    """

    def forward(
        self,
        sr: Tensor,
        hr: Tensor,
        embedding: Any = None,
        lq: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The weighted loss, 0-dim, as that of `PCLLoss`; `embedding` must be a `WaveletDiscriminator`."""
        generator = generator or samples.seeded_generator(self.seed, self.num_calls)
        self.num_calls += 1
        was_training, trains = embedding.training, next(embedding.parameters()).requires_grad
        embedding.eval().requires_grad_(False)
        with torch.no_grad():
            gt = hr / self.data_range
            made = self.samples.make(gt, None, self.samples.draw(len(gt), generator))
            sample_maps = [_all_of_e_d(embedding, images, self.num_layers) for images in made]
        anchor = _all_of_e_d(embedding, sr / self.data_range, self.num_layers)
        embedding.train(was_training).requires_grad_(trains)

        first = torch.zeros(len(sr), dtype=torch.long, device=sr.device)
        losses, means = [], []
        for layer, f in enumerate(anchor):
            sims = [_plain_similarity(f, maps[layer]) for maps in sample_maps]
            positives, negatives = sims[: self.samples.total_positives], sims[self.samples.total_positives :]
            for similarity in positives:
                losses.append(F.cross_entropy(torch.stack([similarity, *negatives], dim=1) / self.temperature, first))
            means.append(torch.stack([torch.stack(group).detach().mean() for group in (positives, negatives)]))
        l_cl = torch.stack(losses).mean()
        pos_sim, neg_sim = torch.stack(means).mean(0)
        self.stats = {"l_cl": l_cl.detach(), "pos_sim": pos_sim, "neg_sim": neg_sim, "margin": pos_sim - neg_sim}
        return self.loss_weight * self.data_range / ALPHA_RANGE * l_cl


def _all_of_e_d(net_d: WaveletDiscriminator, images: Tensor, num_layers: int) -> list[Tensor]:
    """The first maps of `(N, 3, H, W)`; the deeper blocks and the head run for nothing, as in the published code."""
    features = torch.cat(haar_dwt(images)[1:], dim=1) if net_d.wavelet else images
    maps: list[Tensor] = []
    for block in net_d.blocks:
        features = block(features)
        if len(maps) < num_layers:
            maps.append(features)
    net_d.head(features.mean(dim=(2, 3)))
    return maps


def _plain_similarity(f: Tensor, sample: Tensor) -> Tensor:
    """Equation 9 of two maps `(N, C, H, W)`: `(N,)`."""
    return (F.normalize(f, dim=1) * F.normalize(sample, dim=1)).sum(1).mean((1, 2))


def loss_and_gradient(loss: PCLLoss, sr: Tensor, hr: Tensor, embedding: Embedding) -> tuple[Tensor, Tensor]:
    """One call of the loss as users make it, samples included, and its gradient to `sr` `(N, 3, H, W)`."""
    anchor = sr.detach().requires_grad_()
    value = loss(anchor, hr, embedding, generator=torch.Generator().manual_seed(SEED))
    value.backward()
    assert anchor.grad is not None
    return value.detach(), anchor.grad


# The training steps


def build_model(net: str, variant: str, hr: Tensor, num_feat: int, amp: str | None = None, tiny: bool = False) -> Any:
    """BasicSR's training model of one variant, fed with a batch; `optimize_parameters` is then its step.

    The figures of `net` are those of our option files; `amp` is `train.amp`, which a GAN does not know. `num_feat` is
    that of E_D and of the GAN's discriminator.
    """
    # Here, since importing BasicSR takes seconds, and memory that the loss alone does not need.
    from pcl_loss.basicsr_plugin import register

    register()
    import basicsr.models
    from basicsr.archs import vgg_arch

    def vgg19(pretrained: bool) -> SimpleNamespace:
        """As much of VGG19 as BasicSR takes, with random weights: nothing is downloaded."""
        return SimpleNamespace(features=VGGEmbedding("vgg19", num_layers=16, weights=None).features)

    torch.manual_seed(SEED)
    opt = _options(net, variant, num_feat)
    opt["num_gpu"] = 0 if hr.device.type == "cpu" else 1
    if tiny:
        opt["network_g"] |= {key: value for key, value in TINY_NETWORK.items() if key in opt["network_g"]}
    if amp is not None:
        opt["train"]["amp"] = amp
        opt["model_type"] = opt["model_type"].replace("SRModel", "SpeedSRModel")
    with (
        tempfile.NamedTemporaryFile(suffix=".pth") as file,
        mock.patch.object(vgg_arch, "vgg", SimpleNamespace(vgg19=vgg19)),
        mock.patch.object(vgg_arch, "VGG_PRETRAIN_PATH", ""),
    ):
        if variant == "L1 + PCL, E_D frozen":
            torch.save({"params": net_d_with_statistics(hr, num_feat).state_dict()}, file)
            file.flush()
            opt["path"]["pretrain_network_d"] = file.name
        model = basicsr.models.build_model(opt)
    if variant == "L1 + plain PCL":
        model.cri_pcl, model._step_embedding = PlainPCLLoss(), model.net_d
    model.feed_data({"lq": criterion.downsample(hr, SCALE).clamp(0, 1), "gt": hr})
    return model


def make_step(model: Any) -> Callable[[], None]:
    """What BasicSR's train loop calls at every iteration."""
    iterations = itertools.count(1)
    return lambda: model.optimize_parameters(next(iterations))


def _options(net: str, variant: str, num_feat: int) -> dict[str, Any]:
    is_pcl = variant in ("L1 + PCL", "L1 + PCL, E_D frozen", "L1 + plain PCL")
    ending = "_PCL_light" if variant == "L1 + PCL, light" else "_PCL" if is_pcl else ""
    opt: dict[str, Any] = yaml.safe_load(option_files()[f"train/train_{net}_x{SCALE}{ending}.yml"])
    opt |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1, "manual_seed": SEED}
    train = opt["train"]
    if variant == "L1 + VGG19":
        train["perceptual_opt"] = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1.0}}
    elif variant == "L1 + GAN":
        opt["model_type"] = "SRGANModel"
        # Registered by BasicSR under this longer name.
        opt["network_d"] = {"type": "UNetDiscriminatorSN_basicsr", "num_in_ch": 3, "num_feat": num_feat}
        train["gan_opt"] = {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.005}
        train["optim_d"] = dict(train["optim_g"])
    elif is_pcl:
        opt["network_d"]["num_feat"] = num_feat
        train["net_d_frozen"] = variant == "L1 + PCL, E_D frozen"
    return opt
