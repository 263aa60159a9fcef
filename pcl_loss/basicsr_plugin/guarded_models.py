"""The guard against a batch that is not finite, for models that know nothing of it: codebases' own, with a
`PCLPerceptualLoss`, whose gradient would carry one such pixel into every weight.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from torch import Tensor, nn

from ..criterion import PCLPerceptualLoss
from ..discriminator_step import GuardedStep, put_back, skips_on_device
from .bad_steps import BadSteps
from .repairs import replaced
from .speed import SpeedMixin, fused_by_default, keep_fused


class Guard:
    """Leaves out each optimizer's step whose gradients are not finite, and those that follow it in the same iteration;
    puts the networks' buffers and the average `net_g_ema` back, counts, and names the batch's files.

    A fused optimizer leaves a step out on its device; of any other the gradients are taken away, for which it waits.
    Where a GradScaler is at work, the step is its own.
    """

    def __init__(self, model: Any) -> None:
        self.bad_steps = model.bad_steps = BadSteps(model.opt["train"]["max_bad_steps"])
        self._files: Any = ()
        self._skip: Tensor | None = None
        self._step: GuardedStep
        for optimizer in model.optimizers:
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)
        feed_data, optimize, save = model.feed_data, model.optimize_parameters, model.save
        get_current_log, resume, model_ema = model.get_current_log, model.resume_training, model.model_ema

        def take_data(data: dict[str, Any], *rest: Any, **keywords: Any) -> None:
            self._files = data.get("gt_path") or data.get("lq_path") or ()
            feed_data(data, *rest, **keywords)

        def optimize_guarded(current_iter: int, *rest: Any, **keywords: Any) -> None:
            trained = [net for name, net in vars(model).items() if name.startswith("net_") and name != "net_g_ema"]
            self._step = GuardedStep(nn.ModuleList(net for net in trained if isinstance(net, nn.Module)))
            self._skip = None
            optimize(current_iter, *rest, **keywords)
            if self._skip is not None:
                self.bad_steps.note(current_iter, self._files, self._skip, self._skip)

        def follow(*arguments: Any, **keywords: Any) -> None:
            kept = [(param, param.detach().clone()) for param in model.net_g_ema.parameters()]
            model_ema(*arguments, **keywords)
            if self._skip is not None:
                put_back(kept, self._skip)

        def log_and_look() -> Any:
            self._look()
            return get_current_log()

        def look_and_save(epoch: int, current_iter: int) -> None:
            self._look()
            if current_iter == -1:
                self.bad_steps.sum_up()
            save(epoch, current_iter)

        def resume_training(state: dict[str, Any]) -> None:
            keep_fused(model.optimizers, state["optimizers"])
            resume(state)

        model.feed_data, model.optimize_parameters, model.save = take_data, optimize_guarded, look_and_save
        model.get_current_log, model.resume_training, model.model_ema = log_and_look, resume_training, follow

    def _look(self) -> None:
        if self.bad_steps.unread:
            self.bad_steps.read(torch.cat(self.bad_steps.unread).tolist())

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        if not grads or hasattr(optimizer, "found_inf"):
            return
        skip = self._step.settle(grads)
        self._skip = skip if self._skip is None else torch.maximum(self._skip, skip)
        if skips_on_device(optimizer):
            # What a GradScaler hands over.
            optimizer.found_inf, optimizer.is_guarded = self._skip, True
        elif self._skip.item():
            optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def _after_step(optimizer: Any, *_: Any) -> None:
        if vars(optimizer).pop("is_guarded", False):
            del optimizer.found_inf


@contextmanager
def guarded_models(pipeline: ModuleType) -> Iterator[None]:
    """While open, each model with a `PCLPerceptualLoss` that a module like `basicsr.train` builds has the guard, and
    its Adam is fused by default.
    """
    build, get_optimizer = pipeline.build_model, BaseModel.get_optimizer

    @functools.wraps(get_optimizer)
    def get_fused(self: Any, optim_type: str, params: Any, lr: float, **keywords: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = get_optimizer(
            self, optim_type, params, lr, **fused_by_default(optim_type, keywords)
        )
        return optimizer

    @functools.wraps(build)
    def build_guarded(opt: dict[str, Any]) -> BaseModel:
        block = opt["train"].get("perceptual_opt") or {}
        if block.get("type") != PCLPerceptualLoss.__name__:
            return build(opt)
        with replaced(BaseModel, get_optimizer=get_fused):
            model = build(opt)
        if not isinstance(model, SpeedMixin):
            Guard(model)
        return model

    with replaced(pipeline, build_model=build_guarded):
        yield
