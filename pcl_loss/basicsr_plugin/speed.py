"""SpeedMixin: half precision, channels last and compiled networks for BasicSR's models; and the iteration they run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import reduce
from typing import Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from .._checks import at_least_float32
from .._distributed import average
from ..discriminator_step import GuardedStep, not_finite
from . import repairs
from .bad_steps import BadSteps
from .gradients import gradient_at
from .options_loading import OptionsError
from .options_ours import AMP_DTYPES, SPEED_KEYS, complete_speed
from .saving import SavingMixin

# What `optimize_parameters` uses. A codebase's own `SRModel` may build more.
USED_LOSSES = {"cri_pix", "cri_perceptual", "cri_pcl", "cri_cld"}


def fused_by_default(optim_type: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords of an optimizer, in which an Adam is a fused one unless they say otherwise."""
    fused = optim_type in ("Adam", "AdamW") and not keywords.get("foreach")
    return {"fused": True} | keywords if fused else keywords


def keep_fused(optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Let saved states of optimizers, changed in place, leave them fused, or not, as they are."""
    for optimizer, saved in zip(optimizers, states, strict=False):
        for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=False):
            saved_group["fused"] = group.get("fused")


class SpeedMixin(SavingMixin):
    """Gives a BasicSR model that derives from `SRModel` three keys under `train:`, of which none is required.

    - `amp: bf16` or `fp16`: networks run under autocast, fp16 with a `GradScaler`. The losses' sums, the optimizers
      and validation stay in float32.
    - `channels_last: true`: the networks and images of a step lie channels last.
    - `compile: true`, or a block of `torch.compile`'s keywords: what a step runs is compiled; validation is not.

    Without them an iteration is that of `SRModel` with a fused Adam, bit for bit. What differs: the log stays on its
    device until it is read, the warm-up ends at the full learning rate (see `repairs.end_warmup`), and a batch whose
    loss or gradient is not finite leaves no trace in the networks, EMA and optimizers. The log names its files once;
    `max_bad_steps: n` (default 100) of them in a row end the run.
    """

    net_g: nn.Module
    lq: Tensor
    gt: Tensor
    _files: Sequence[str] = ()
    _log_names: Sequence[str] = ()
    _log_values: Tensor

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["is_train"]:
            complete_speed(opt["train"])
        super().__init__(opt)

    def init_training_settings(self) -> None:
        """Build what `SRModel` builds, and compile the SR network if that is asked for."""
        train_opt = self.opt["train"]
        self.amp_dtype = AMP_DTYPES.get(train_opt["amp"])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        # The networks themselves stay as they are: for checkpoints, and for validation, whose images of many sizes
        # would each be compiled anew.
        self._compiled: dict[str, Any] = {}
        self.bad_steps = BadSteps(train_opt["max_bad_steps"])
        super().init_training_settings()
        if train_opt["compile"] is not None:
            self._compiled["net_g"] = torch.compile(self.net_g, **train_opt["compile"])
        self._refuse_unused_losses()
        wanted = [f"{key}: {train_opt[key] or True}" for key in SPEED_KEYS if train_opt[key] not in (None, False)]
        if wanted:
            get_root_logger().info(f"The model is built as {type(self).__name__}, with {', '.join(wanted)}.")

    def _refuse_unused_losses(self) -> None:
        built = [name for name, value in vars(self).items() if name.startswith("cri_") and value is not None]
        if unused := sorted(set(built) - USED_LOSSES):
            raise OptionsError(
                f"the base model of {type(self).__name__} builds {', '.join(unused)}, which would not be used; take it "
                "out of the YAML, or keep the model_type that trains with it and put "
                "`perceptual_opt: {type: PCLPerceptualLoss, loss_weight: 1.0}` under train"
            )

    # --- how the networks and images lie, and what they run in ---

    @property
    def channels_last(self) -> bool:
        """Whether the networks and images of a step lie channels last."""
        return self.is_train and self.opt["train"]["channels_last"]

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As the base model; with `train.channels_last` its convolutions lie so."""
        return super().model_to_device(self._laid_out(net))

    def feed_data(self, data: dict[str, Any]) -> None:
        """As the base model; with `train.channels_last` the images lie so."""
        super().feed_data(data)
        self._files = data.get("gt_path") or data.get("lq_path") or ()
        if self.channels_last:
            self.lq = self.lq.contiguous(memory_format=torch.channels_last)
            if "gt" in data:
                self.gt = self.gt.contiguous(memory_format=torch.channels_last)

    def _laid_out(self, net: nn.Module) -> nn.Module:
        if self.channels_last:
            # Not `net.to(memory_format=...)`, which stumbles over a three-dimensional convolution.
            for param in net.parameters():
                if param.dim() == 4:
                    param.data = param.data.contiguous(memory_format=torch.channels_last)
        return net

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    # --- the optimizers ---

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **keywords: Any) -> torch.optim.Optimizer:
        """As the base model, and its fused Adam, which skips a step whose gradients are not finite on the device
        itself: any other waits for the device to say whether they are.
        """
        return super().get_optimizer(optim_type, params, lr, **fused_by_default(optim_type, keywords))

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """As the base model, whose warm-up stops short of the full rate: see `repairs.end_warmup`."""
        repairs.end_warmup(self, current_iter, warmup_iter)
        super().update_learning_rate(current_iter, warmup_iter)

    # --- the iteration ---

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: the SR step."""
        self._end_iteration(current_iter, self._optimize_net_g(current_iter))

    def _optimize_net_g(self, current_iter: int) -> dict[str, Tensor]:
        """The SR step; returns what is logged of it."""
        self.optimizer_g.zero_grad()
        step = GuardedStep(self.net_g)
        self._is_bad = self._is_own = torch.zeros((), device=self.device)
        with self._autocast():
            output = self._compiled.get("net_g", self.net_g)(self.lq)
        # The losses have graphs of their own, which are gone before the SR network's backward pass begins.
        self.output = at_least_float32(output.detach()).requires_grad_()
        grads, log = self._sr_gradients(current_iter)
        self.output = self.output.detach()
        grad = reduce(torch.add, grads)
        output.backward(self.scaler.scale(grad).to(output.dtype))
        # The losses too: L1 sends no gradient from a pixel that is not a number.
        losses = [log[name] for name in ("l_pix", "l_percep", "l_style") if name in log]
        params = [param.grad for param in self.net_g.parameters() if param.grad is not None]
        self._skip = step.settle([*params, *losses])
        self._judge(self._skip, losses if self.scaler.is_enabled() else [*losses, grad])
        self.scaler.unscale_(self.optimizer_g)
        step.apply(self.optimizer_g, self._skip)
        return log

    def _judge(self, skip: Tensor, values: Sequence[Tensor]) -> None:
        """Take up whether a network's step was left out, and what this rank's batch alone made of it."""
        own = not_finite([*values, skip])  # `skip` is finite, and there may be no value
        if self.scaler.is_enabled():
            # A gradient for which fp16's scale was too high is no fault of the batch; no scale below 1 is too high.
            skip = skip * (self.scaler.scale(torch.ones_like(skip)) < 1)
        self._is_own = torch.maximum(self._is_own, own)
        self._is_bad = torch.maximum(self._is_bad, torch.maximum(skip, own))

    def _sr_gradients(self, current_iter: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradients at `self.output` of the pixel loss, and of the perceptual and the style loss, which share a
        graph; and the losses by name, weighted.
        """
        grads: list[Tensor] = []
        log: dict[str, Tensor] = {}
        for group in (self._pixel_loss, self._perceptual_losses):
            with self._autocast():
                losses = group()
            if losses:
                grads.append(gradient_at(self.output, losses.values(), self.scaler))
                log |= {name: loss.detach() for name, loss in losses.items()}
        return grads, log

    def _pixel_loss(self) -> dict[str, Tensor]:
        return {} if self.cri_pix is None else {"l_pix": self.cri_pix(self.output, self.gt)}

    def _perceptual_losses(self) -> dict[str, Tensor]:
        if self.cri_perceptual is None:
            return {}
        names = ("l_percep", "l_style")
        losses = zip(names, self.cri_perceptual(self.output, self.gt), strict=True)
        return {name: loss for name, loss in losses if loss is not None}

    def _end_iteration(self, current_iter: int, log: dict[str, Tensor]) -> None:
        self.scaler.update()
        self._note(current_iter, log)
        if self.ema_decay > 0:
            self._follow_net_g()

    @torch.no_grad()
    def _follow_net_g(self) -> None:
        """As the base model's `model_ema`, unless the step was left out."""
        averages = list(self.net_g_ema.parameters())
        params = list(self.get_bare_model(self.net_g).parameters())
        moved = torch._foreach_mul(averages, self.ema_decay)
        torch._foreach_add_(moved, params, alpha=1 - self.ema_decay)
        for before, after in zip(averages, moved, strict=True):
            before.copy_(torch.where(self._skip > 0, before, after))

    # --- log, validation and what a resumed run needs ---

    def _note(self, current_iter: int, log: dict[str, Tensor]) -> None:
        """Keep the log on its device: only what asks for it waits for the GPU."""
        values = [value.float().mean() for value in log.values()]
        means = torch.stack([*values, *self._watched(), self._is_bad])
        average([means])
        self._log_names, self._log_values = list(log), means[:-1]
        self.bad_steps.note(current_iter, self._files, means[-1].ceil(), self._is_own)

    @property
    def log_dict(self) -> dict[str, float]:
        """What the last iteration logged, the mean over the ranks; and the steps up to it are looked at.

        Raises:
            BadStepsError: `train.max_bad_steps` of them in a row were not finite.
        """
        values = torch.cat([self._log_values, *self.bad_steps.unread]).tolist()
        self.bad_steps.read(values[len(self._log_values) :])
        log = dict(zip(self._log_names, values, strict=False))
        self._watch(log, values[len(log) : len(self._log_values)])
        return log

    def _watched(self) -> list[Tensor]:
        """What is read with the log and not logged, 0-dim each."""
        return []

    def _watch(self, log: dict[str, float], watched: list[float]) -> None:
        """Look at the log, and at the values of `_watched`."""

    def save(self, epoch: int, current_iter: int) -> None:
        """As `SavingMixin`; the steps up to here are looked at first."""
        if self._log_names:
            _ = self.log_dict
        if current_iter == -1:
            self.bad_steps.sum_up()
        super().save(epoch, current_iter)

    def test(self) -> None:
        """As the base model, with the bare SR network: validation runs on rank 0 alone, a parallel wrapper would wait
        there for the other ranks.
        """
        wrapped, self.net_g = self.net_g, self.get_bare_model(self.net_g)
        try:
            super().test()
        finally:
            self.net_g = wrapped

    def _states(self) -> dict[str, Any]:
        return super()._states() | ({"scaler": self.scaler} if self.scaler.is_enabled() else {})

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """As the base model, also where the run was saved with another `train.amp`."""
        keep_fused(self.optimizers, resume_state["optimizers"])
        super().resume_training(resume_state)


class SpeedSRModel(SpeedMixin, SRModel):
    """BasicSR's `SRModel` with `train.amp`, `train.channels_last` and `train.compile`: the baseline of a run with PCL
    that has them.
    """
