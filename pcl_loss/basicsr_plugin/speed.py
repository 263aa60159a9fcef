"""SpeedMixin: half precision, channels last and compiled networks for BasicSR's models; and the iteration they run.

A step's losses meet at the SR output, where `GradientBalance` weighs the contrastive gradient with the pixel loss's.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import at_least_float32
from .._distributed import average
from .options_loading import OptionsError
from .options_ours import AMP_DTYPES, complete_speed

Base: Any = object  # a mixin comes before the model in a class's bases: what `super()` finds is the model's

# What `optimize_parameters` uses. A codebase's own `SRModel` may build more.
USED_LOSSES = {"cri_pix", "cri_perceptual", "cri_pcl", "cri_cld"}
# E_D moves L_CL's gradient by several per cent a step in its first iterations: a slower mean would lag behind it.
MOMENTUM = 0.4


def gradient_at(sr: Tensor, losses: Iterable[Tensor], scaler: torch.amp.GradScaler) -> Tensor:
    """The gradient of the sum of 0-dim losses, which may share a graph, at the SR images `(N, C, H, W)` that they were
    computed from. It passes the losses' networks at the scaler's scale, within fp16's range, and comes without it.
    """
    loss = reduce(torch.add, losses)
    (grad,) = torch.autograd.grad(scaler.scale(loss), sr)
    return grad / scaler.scale(loss.new_ones(()))


class GradientBalance(nn.Module):
    """Weighs L_CL so that its gradient at the SR output has `ratio` times the norm of the pixel loss's.

    `weight = ratio * exp(mean of log(|dL_pix/dSR| / |dL_CL/dSR|))`, an exponential mean over the steps of momentum
    `max(0.4, 1 / number of updates)`: the first update counts alone. Under torch.distributed the mean goes over the
    ranks too, of which each must make the same calls.
    """

    log_ratio: Tensor
    num_updates: Tensor

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.register_buffer("log_ratio", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, pix_norm: Tensor, cl_norm: Tensor) -> Tensor:
        """The weight of a step's L_CL by its norms, all 0-dim. A ratio of 0 or not finite leaves the mean alone."""
        log_ratio = (pix_norm.float() / cl_norm.float()).log()
        average([log_ratio])
        is_finite = log_ratio.isfinite()
        self.num_updates += is_finite
        momentum = self.num_updates.clamp_min(1).float().reciprocal().clamp_min(MOMENTUM)
        self.log_ratio.copy_(torch.where(is_finite, self.log_ratio.lerp(log_ratio, momentum), self.log_ratio))
        return self.ratio * self.log_ratio.exp()


class SpeedMixin(Base):
    """Gives a BasicSR model that derives from `SRModel` three keys under `train:`, of which none is required.

    - `amp: bf16` or `fp16`: networks run under autocast, fp16 with a `GradScaler`. The losses' sums, the optimizers
      and validation stay in float32.
    - `channels_last: true`: the networks and images of a step lie channels last.
    - `compile: true`, or a block of `torch.compile`'s keywords: what a step runs is compiled; validation is not.

    Without them an iteration is that of `SRModel` with a fused Adam, bit for bit; only the log stays on its device
    until it is read.
    """

    net_g: nn.Module

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["is_train"]:
            complete_speed(opt["train"])
        super().__init__(opt)

    def init_training_settings(self) -> None:
        """Build what `SRModel` builds, and compile the SR network if that is asked for."""
        self.amp_dtype = AMP_DTYPES.get(self.opt["train"]["amp"])
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)
        super().init_training_settings()
        self._step_net_g = self._for_steps(self.net_g)
        built = {name for name, value in vars(self).items() if name.startswith("cri_") and value is not None}
        if unused := sorted(built - USED_LOSSES):
            fix = "drop it, or keep the base's model_type, with `perceptual_opt: {type: PCLPerceptualLoss}` under train"
            raise OptionsError(f"{type(self).__name__} would not use {', '.join(unused)}; {fix}")

    def _for_steps(self, function: Any) -> Any:
        # The networks themselves stay as they are: validation, with its many sizes, would compile each anew.
        keywords = self.opt["train"]["compile"]
        return function if keywords is None else torch.compile(function, **keywords)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """As the base model; with `train.channels_last` its convolutions lie so."""
        return super().model_to_device(self._laid_out(net))

    def feed_data(self, data: dict[str, Any]) -> None:
        """As the base model; with `train.channels_last` the images lie so."""
        super().feed_data(data)
        for name in ("lq", "gt") if self.is_train and self.opt["train"]["channels_last"] else ():
            if name in data:
                setattr(self, name, getattr(self, name).contiguous(memory_format=torch.channels_last))

    def _laid_out(self, net: nn.Module) -> nn.Module:
        # Not `net.to(memory_format=...)`, which stumbles over a three-dimensional convolution.
        for param in net.parameters() if self.is_train and self.opt["train"]["channels_last"] else ():
            if param.dim() == 4:
                param.data = param.data.contiguous(memory_format=torch.channels_last)
        return net

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    def get_optimizer(self, optim_type: str, params: Any, lr: float, **keywords: Any) -> torch.optim.Optimizer:
        """As the base model; an Adam is a fused one, which leaves out a step on its device, unless the YAML differs."""
        if optim_type in ("Adam", "AdamW") and not keywords.get("foreach"):
            keywords = {"fused": True} | keywords
        return super().get_optimizer(optim_type, params, lr, **keywords)

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: the SR step."""
        self._end_iteration(self._optimize_net_g(current_iter))

    def _optimize_net_g(self, current_iter: int) -> dict[str, Tensor]:
        self.optimizer_g.zero_grad()
        with self._autocast():
            output = self._step_net_g(self.lq)
        # The losses have graphs of their own, which are gone before the SR network's backward pass begins.
        self.output = at_least_float32(output.detach()).requires_grad_()
        grads, log = self._sr_gradients(current_iter)
        self.output = self.output.detach()
        output.backward(self.scaler.scale(reduce(torch.add, grads)).to(output.dtype))
        # `RunMixin` looks whether they are finite.
        self.losses = [log[name] for name in ("l_pix", "l_percep", "l_style") if name in log]
        self.scaler.unscale_(self.optimizer_g)
        self.scaler.step(self.optimizer_g)
        return log

    def _sr_gradients(self, current_iter: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradients at `self.output` of the pixel loss and of the perceptual losses, and the losses by name."""
        grads: list[Tensor] = []
        log: dict[str, Tensor] = {}
        for names, criterion in ((("l_pix",), self.cri_pix), (("l_percep", "l_style"), self.cri_perceptual)):
            if criterion is not None:
                with self._autocast():
                    found = criterion(self.output, self.gt)
                found = (found,) if isinstance(found, Tensor) else found
                losses = {name: loss for name, loss in zip(names, found, strict=True) if loss is not None}
                if losses:
                    grads.append(gradient_at(self.output, losses.values(), self.scaler))
                log |= {name: loss.detach() for name, loss in losses.items()}
        return grads, log

    def _end_iteration(self, log: dict[str, Tensor]) -> None:
        self.scaler.update()
        # The log stays on its device: only what asks for it waits for the GPU.
        self._log_names = list(log)
        self._log_values = torch.stack([value.float().mean() for value in log.values()])
        average([self._log_values])
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    @property
    def log_dict(self) -> dict[str, float]:
        """What the last iteration logged, the mean over the ranks."""
        return dict(zip(self._log_names, self._log_values.tolist(), strict=True))

    def test(self) -> None:
        """As the base model, with the bare SR network: on rank 0 alone, a parallel wrapper would wait for more."""
        wrapped, self.net_g = self.net_g, self.get_bare_model(self.net_g)
        try:
            super().test()
        finally:
            self.net_g = wrapped

    def pcl_states(self) -> dict[str, Any]:
        """By the names of their files, what a resumed run needs beside networks and optimizers."""
        return {"pcl_scaler": self.scaler} if self.scaler.is_enabled() else {}
