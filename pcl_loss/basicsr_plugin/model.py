"""PCLMixin: joint training of an SR network with the contrastive loss and of E_D, in BasicSR's train loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from basicsr.models.swinir_model import SwinIRModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from .._tensors import at_least_float32
from ..samples import seeded_generator
from ..tools import preview
from .gradients import GradientBalance
from .yaml_checks import AMP_DTYPES, complete_options

if TYPE_CHECKING:
    from basicsr.models.sr_model import SRModel as _Base
else:
    _Base = object


class PCLMixin(_Base):
    """Gives a BasicSR model that derives from `SRModel` the contrastive term and E_D.

    One iteration is the SR step, with the E_D of the iteration before, and then E_D's step on `sr.detach()`, in one
    forward over real and fake images.

    Read from the YAML, next to what `SRModel` reads: `network_d`, `path.pretrain_network_d`, and under `train:`

    - `pcl_opt` (`PCLLoss`), the only one that is required, `cld_opt` (`ContrastiveDiscriminatorLoss`) and `optim_d`.
      `scheduler` and `warmup_iter` hold for both networks.
    - `pcl_start_iter`: for so many iterations E_D is trained while the SR network does without the contrastive term.
    - `pcl_every: n`: the term is applied at every n-th iteration alone, with the same weight. E_D is trained at each.
    - `pcl_grad_ratio: r`, in place of `pcl_opt.loss_weight`: the term is weighed so that its gradient at the SR output
      keeps r times the norm of the pixel loss's; see `GradientBalance`.
    - `net_d_frozen`: E_D is loaded and never trained.
    - `amp: bf16` or `fp16`: both networks and the embedding run under autocast, fp16 with a `GradScaler`. Samples,
      similarities, equations 7 to 10, the optimizers and validation stay in float32.
    - `channels_last: true`: the networks and images of a step lie channels last.
    - `compile: true`, or a block of `torch.compile`'s keywords: what a step runs is compiled; validation is not.

    `val.pcl_preview: true` adds the sheet of `pcl-loss preview`, for the first image of every validation set, to
    TensorBoard at every validation.

    Logged at every iteration: `l_pix`, `l_pcl` (weighted, as added to the total; 0 up to `pcl_start_iter`), `l_cl`
    (unweighted), `pos_sim`, `neg_sim`, `margin`, `grad_ratio` (the norm of the term's gradient at the SR output over
    that of the pixel loss's), with `pcl_grad_ratio` also `pcl_weight` (what is used in place of `loss_weight`), and,
    unless E_D is frozen, `l_d`, `out_d_real`, `out_d_fake`. Between the iterations of `pcl_every` the values of the
    last one stand.
    """

    net_g: nn.Module
    lq: Tensor
    gt: Tensor
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
        self.pcl_every: int = train_opt["pcl_every"]
        ratio = train_opt["pcl_grad_ratio"]
        self.balance = None if ratio is None else GradientBalance(ratio).to(self.device)
        self.amp_dtype = AMP_DTYPES.get(train_opt["amp"])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        # Of the last step that had the term, so that every step logs the same keys.
        names = ["l_pcl", "grad_ratio"] + ([] if self.balance is None else ["pcl_weight"])
        self._pcl_log = {name: torch.zeros((), device=self.device) for name in names}
        self.cri_pcl = build_loss(train_opt["pcl_opt"]).to(self.device)
        self.cri_cld = build_loss(train_opt["cld_opt"]).to(self.device)
        self.net_d = self._build_net_d(frozen=train_opt["net_d_frozen"])
        super().init_training_settings()
        self._compile_networks(train_opt["compile"])

    def _compile_networks(self, keywords: dict[str, Any] | None) -> None:
        """Compile what a step runs. The networks themselves stay as they are: for checkpoints, and for validation,
        whose images of many sizes would each be compiled anew.
        """
        self._compiled: dict[str, Any] = {}
        if keywords is not None:
            embed = torch.compile(self.get_bare_model(self.net_d).embed, **keywords)
            self._compiled = {
                "net_g": torch.compile(self.net_g, **keywords),
                "net_d": torch.compile(self.net_d, **keywords),
                "embedding": SimpleNamespace(embed=embed),
            }

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As the base model; with `train.channels_last` its convolutions lie so."""
        return super().model_to_device(self._laid_out(net))

    def _laid_out(self, net: nn.Module) -> nn.Module:
        if self.channels_last:
            # Not `net.to(memory_format=...)`, which stumbles over a three-dimensional convolution.
            for param in net.parameters():
                if param.dim() == 4:
                    param.data = param.data.contiguous(memory_format=torch.channels_last)
        return net

    @property
    def channels_last(self) -> bool:
        """Whether the networks and images of a step lie channels last."""
        return self.is_train and self.opt["train"]["channels_last"]

    def feed_data(self, data: dict[str, Any]) -> None:
        """As the base model; with `train.channels_last` the images lie so."""
        super().feed_data(data)
        if self.channels_last:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)
            if "gt" in data:
                self.gt = self.gt.contiguous(memory_format=torch.channels_last)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

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
        net_d = self.model_to_device(net_d) if distributed else self._laid_out(net_d).to(self.device)
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
        with self._autocast():
            output = self._compiled.get("net_g", self.net_g)(self.lq)
        # The losses have a graph of their own, which is gone before the SR network's backward pass begins.
        self.output = at_least_float32(output.detach()).requires_grad_()
        with self._autocast():
            losses = self._sr_losses(current_iter)
        grad, log = self._gradient(losses)
        self.output = self.output.detach()
        output.backward(self.scaler.scale(grad).to(output.dtype))
        self.scaler.step(self.optimizer_g)
        if self.trains_net_d:
            log |= self._optimize_net_d()
        self.scaler.update()
        self._note(log)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def _sr_losses(self, current_iter: int) -> dict[str, Tensor]:
        """The losses of `self.output` by name, weighted; `l_pcl` only where the contrastive loss is due."""
        losses: dict[str, Tensor] = {}
        if self.cri_pix is not None:
            losses["l_pix"] = self.cri_pix(self.output, self.gt)
        if self.cri_perceptual is not None:
            l_percep, l_style = self.cri_perceptual(self.output, self.gt)
            losses |= {k: v for k, v in (("l_percep", l_percep), ("l_style", l_style)) if v is not None}
        is_due = current_iter % self.pcl_every == 0
        if is_due and current_iter > self.pcl_start_iter:
            losses["l_pcl"] = self._contrastive_loss(current_iter)
        elif is_due or not self.cri_pcl.stats:
            # Measured all the same: what the log shows is never made up.
            with torch.no_grad():
                self._contrastive_loss(current_iter)
        return losses

    def _contrastive_loss(self, current_iter: int) -> Tensor:
        generator = seeded_generator(self._seed, current_iter)
        embedding = self._compiled.get("embedding", self.get_bare_model(self.net_d))
        return self.cri_pcl(self.output, self.gt, embedding, lq=self.lq, generator=generator)

    def _gradient(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of all losses at the SR output, and what is logged of them."""
        log = {name: loss.detach() for name, loss in losses.items()}
        # The pixel loss comes first, if there is one: L_CL is held against it.
        grads = [self._gradient_of(loss) for name, loss in losses.items() if name != "l_pcl"]
        grad = torch.stack(grads).sum(0) if len(grads) > 1 else grads[0]
        if "l_pcl" in losses:
            grad_pcl = self._gradient_of(losses["l_pcl"])
            norm, norm_pcl = grads[0].norm(), grad_pcl.norm()
            if self.balance is not None:
                weight = self.balance(norm, norm_pcl)
                grad_pcl, norm_pcl, log["l_pcl"] = weight * grad_pcl, weight * norm_pcl, weight * log["l_pcl"]
                self._pcl_log["pcl_weight"] = weight
            grad = grad + grad_pcl
            self._pcl_log |= {"l_pcl": log["l_pcl"], "grad_ratio": norm_pcl / norm}
        stats = {key: self.cri_pcl.stats[key] for key in ("l_cl", "pos_sim", "neg_sim", "margin")}
        return grad, log | {"l_pcl": self._pcl_log["l_pcl"]} | stats | self._pcl_log

    def _gradient_of(self, loss: Tensor) -> Tensor:
        """The gradient at the SR output, taken through E_D at the scale that keeps it within fp16's range."""
        (grad,) = torch.autograd.grad(self.scaler.scale(loss), self.output)
        return grad / self.scaler.scale(loss.new_ones(()))

    def _optimize_net_d(self) -> dict[str, Tensor]:
        self.optimizer_d.zero_grad()
        images = torch.cat([self.gt, self.output]) / self.cri_pcl.data_range
        # One forward over both: DistributedDataParallel allows one per backward.
        with self._autocast():
            real, fake = self._compiled.get("net_d", self.net_d)(images).chunk(2)
        l_d = self.cri_cld(real, fake)
        self.scaler.scale(l_d).backward()
        self.scaler.step(self.optimizer_d)
        return {"l_d": l_d.detach(), "out_d_real": real.detach().mean(), "out_d_fake": fake.detach().mean()}

    def _note(self, log: dict[str, Tensor]) -> None:
        """Keep the log on its device: only what asks for it waits for the GPU."""
        values = torch.stack([value.float().mean() for value in log.values()])
        if self.opt["dist"]:
            torch.distributed.reduce(values, dst=0)
            if self.opt["rank"] == 0:
                values /= self.opt["world_size"]
        self._log_names, self._log_values = list(log), values

    @property
    def log_dict(self) -> dict[str, float]:
        """What the last iteration logged."""
        return dict(zip(self._log_names, self._log_values.tolist(), strict=True))

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
        """Save E_D, what else a resumed run needs, the SR network and the training state, in this order: a run that is
        killed in between resumes from the state before.
        """
        self.save_network(self.net_d, "net_d", current_iter)
        state = self._extra_state()
        if state and self.opt["rank"] == 0:
            torch.save(state, self._extra_path("latest" if current_iter == -1 else current_iter))
        super().save(epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """As the base model; and the gradients' balance and the scale of fp16, from `models/pcl_state_ITER.pth`."""
        super().resume_training(resume_state)
        if not self._extra_state():
            return
        path = self._extra_path(resume_state["iter"])
        state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
        for name in self._extra_state():
            if name in state:
                getattr(self, name).load_state_dict(state[name])
            else:
                get_root_logger().warning(f"{path} does not hold the {name}'s state: it starts anew.")

    def _extra_state(self) -> dict[str, Any]:
        state = {} if self.balance is None else {"balance": self.balance.state_dict()}
        return state | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def _extra_path(self, iteration: int | str) -> Path:
        return Path(self.opt["path"]["models"], f"pcl_state_{iteration}.pth")


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
