"""PCLMixin: joint training of an SR network with the contrastive loss and of E_D, in BasicSR's train loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.models.swinir_model import SwinIRModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from .. import preview
from ..samples import seeded_generator
from .options import complete_options

if TYPE_CHECKING:
    from basicsr.models.sr_model import SRModel as _Base
else:
    _Base = object


class PCLMixin(_Base):
    """Gives a BasicSR model that derives from `SRModel` the contrastive term and E_D.

    One iteration is the SR step, with the E_D of the iteration before, and then E_D's step on `sr.detach()`, in one
    forward over real and fake images.

    Read from the YAML, next to what `SRModel` reads: `network_d`, `path.pretrain_network_d`, and under `train:`
    `pcl_opt` (`PCLLoss`), `cld_opt` (`ContrastiveDiscriminatorLoss`), `optim_d`, `pcl_start_iter` (for so many
    iterations E_D is trained while the SR network does without the contrastive term) and `net_d_frozen` (E_D is loaded
    and never trained). `pcl_opt` alone is required. `scheduler` and `warmup_iter` hold for both networks.
    `val.pcl_preview: true` adds the sheet of `pcl-loss preview`, for the first image of every validation set, to
    TensorBoard at every validation.

    Logged at every iteration: `l_pix`, `l_pcl` (weighted, as added to the total; 0 up to `pcl_start_iter`), `l_cl`
    (unweighted), `pos_sim`, `neg_sim`, `margin`, and, unless E_D is frozen, `l_d`, `out_d_real`, `out_d_fake`.
    """

    net_g: nn.Module
    # What the next `test` does with its images, once.
    _add_preview: Callable[[], None] | None = None

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["is_train"]:
            complete_options(opt, is_pcl_model=True)
        super().__init__(opt)

    def init_training_settings(self) -> None:
        """Build E_D and the losses, then all that `SRModel` builds."""
        train_opt = self.opt["train"]
        self.pcl_start_iter: int = train_opt["pcl_start_iter"]
        self.cri_pcl = build_loss(train_opt["pcl_opt"]).to(self.device)
        self.cri_cld = build_loss(train_opt["cld_opt"]).to(self.device)
        self.net_d = self._build_net_d(frozen=train_opt["net_d_frozen"])
        super().init_training_settings()

    def _build_net_d(self, frozen: bool) -> nn.Module:
        # A generator of its own: the data of a run with PCL stay those of its baseline with the same manual_seed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            net_d = build_network(self.opt["network_d"])
        path_opt = self.opt["path"]
        if path_opt.get("pretrain_network_d"):
            self.load_network(
                net_d,
                path_opt["pretrain_network_d"],
                path_opt.get("strict_load_d", True),
                path_opt.get("param_key_d", "params"),
            )
        if frozen:
            net_d.requires_grad_(False)
        self.trains_net_d = any(p.requires_grad for p in net_d.parameters())
        net_d.train(self.trains_net_d)
        # Never BasicSR's DataParallel, which model_to_device means for several GPUs in one process: it would give the
        # real images to one GPU and the fake ones to another, each with batch statistics of its own.
        distributed = self.trains_net_d and self.opt["dist"]
        net_d = self.model_to_device(net_d) if distributed else net_d.to(self.device)
        self.print_network(net_d)
        return net_d

    @property
    def _seed(self) -> int:
        return self.opt.get("manual_seed") or 0

    def setup_optimizers(self) -> None:
        """The SR network's optimizer, then E_D's: the order in which they are saved."""
        super().setup_optimizers()
        if self.trains_net_d:
            optim_opt = dict(self.opt["train"]["optim_d"])
            params = [p for p in self.net_d.parameters() if p.requires_grad]
            self.optimizer_d = self.get_optimizer(optim_opt.pop("type"), params, **optim_opt)
            self.optimizers.append(self.optimizer_d)

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: the SR step, then E_D's."""
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        l_total, log = self._sr_losses(current_iter)
        l_total.backward()
        self.optimizer_g.step()
        if self.trains_net_d:
            log |= self._optimize_net_d()
        self.log_dict = self.reduce_loss_dict(log)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def _sr_losses(self, current_iter: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Everything that trains the SR network, summed; and what is logged of it."""
        terms: dict[str, Tensor] = {}
        if self.cri_pix is not None:
            terms["l_pix"] = self.cri_pix(self.output, self.gt)
        if self.cri_perceptual is not None:
            l_percep, l_style = self.cri_perceptual(self.output, self.gt)
            terms |= {k: v for k, v in (("l_percep", l_percep), ("l_style", l_style)) if v is not None}
        terms["l_pcl"] = self._contrastive_loss(current_iter)
        stats = self.cri_pcl.stats
        l_total = torch.stack(list(terms.values())).sum()
        return l_total, terms | {key: stats[key] for key in ("l_cl", "pos_sim", "neg_sim", "margin")}

    def _contrastive_loss(self, current_iter: int) -> Tensor:
        """The weighted contrastive loss; 0, with its statistics measured all the same, up to `pcl_start_iter`."""
        embedding = self.get_bare_model(self.net_d)
        generator = seeded_generator(self._seed, current_iter)
        if current_iter > self.pcl_start_iter:
            return self.cri_pcl(self.output, self.gt, embedding, lq=self.lq, generator=generator)
        with torch.no_grad():
            return self.cri_pcl(self.output, self.gt, embedding, lq=self.lq, generator=generator) * 0

    def _optimize_net_d(self) -> dict[str, Tensor]:
        self.optimizer_d.zero_grad()
        images = torch.cat([self.gt, self.output.detach()]) / self.cri_pcl.data_range
        # One forward over both: DistributedDataParallel allows one per backward.
        real, fake = self.net_d(images).chunk(2)
        l_d = self.cri_cld(real, fake)
        l_d.backward()
        self.optimizer_d.step()
        return {"l_d": l_d, "out_d_real": real.detach().mean(), "out_d_fake": fake.detach().mean()}

    def test(self) -> None:
        """As the base model, with the bare SR network: validation runs on rank 0 alone, a parallel wrapper would wait
        there for the other ranks.
        """
        wrapped, self.net_g = self.net_g, self.get_bare_model(self.net_g)
        try:
            super().test()
        finally:
            self.net_g = wrapped
        if self._add_preview is not None:
            # Here, since validation deletes the images one by one.
            add_preview, self._add_preview = self._add_preview, None
            add_preview()

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As the base model; with `val.pcl_preview` the first image's sheet goes to TensorBoard."""
        if self.is_train and tb_logger is not None and self.opt["val"].get("pcl_preview"):
            tag = f"pcl_preview/{dataloader.dataset.opt['name']}"
            self._add_preview = functools.partial(self._draw_preview, tb_logger, tag, current_iter)
        try:
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        finally:
            self._add_preview = None

    def _draw_preview(self, tb_logger: Any, tag: str, current_iter: int) -> None:
        try:
            sheet = self._preview_sheet()
        except (ValueError, RuntimeError) as error:
            # A picture is no reason to end a training: not for an image too small, nor for a GPU that is full.
            get_root_logger().warning(f"val.pcl_preview: no sheet for {tag}: {error}")
            return
        pixels = preview.to_pixels(preview.draw(sheet, f"{tag.partition('/')[2]}, iteration {current_iter}"))
        tb_logger.add_image(tag, pixels, current_iter, dataformats="HWC")

    def _preview_sheet(self) -> preview.Sheet:
        if not hasattr(self, "gt"):
            raise ValueError("the validation set has no ground truth")
        gt, sr, lq = self.gt, self.output, self.lq
        if sr.shape != gt.shape:
            raise ValueError(f"SR has shape {tuple(sr.shape)}, its ground truth {tuple(gt.shape)}")
        scale = self.opt.get("scale", 1)
        window = preview.detailed_window(gt, multiple=scale)
        return preview.make_sheet(
            window.cut(gt),
            self.cri_pcl,
            sr=window.cut(sr),
            lq=window.cut(lq, scale),
            embedding=self.get_bare_model(self.net_d),
            # The same samples at every validation: what changes from sheet to sheet is the networks' doing.
            generator=seeded_generator(self._seed, 0),
        )

    def save(self, epoch: int, current_iter: int) -> None:
        """Save E_D, the SR network and the training state, in this order: a run that is killed in between resumes
        from the state before.
        """
        self.save_network(self.net_d, "net_d", current_iter)
        super().save(epoch, current_iter)


def pcl_model(base: Any) -> Any:
    """The class `PCL<Base>` that gives a BasicSR model the contrastive term.

    Args:
        base: a class that derives from BasicSR's `SRModel` and takes over its `optimize_parameters`.

    Raises:
        TypeError: `base` does not derive from `SRModel`, or trains in a way of its own.
    """
    if SRModel not in getattr(base, "__mro__", ()):
        raise TypeError(f"base must be a class that derives from BasicSR's SRModel, got {base!r}")
    if base.optimize_parameters is not SRModel.optimize_parameters:
        raise TypeError(
            f"{base.__name__} has an optimize_parameters of its own, which PCLMixin would replace; keep "
            f"`model_type: {base.__name__}` and put `perceptual_opt: {{type: PCLPerceptualLoss}}` under train"
        )
    name = "PCLModel" if base is SRModel else f"PCL{base.__name__}"
    return type(name, (PCLMixin, base), {"__module__": __name__, "__doc__": f"{base.__name__} with {PCLMixin.__doc__}"})


PCLModel = pcl_model(SRModel)
PCLSwinIRModel = pcl_model(SwinIRModel)
