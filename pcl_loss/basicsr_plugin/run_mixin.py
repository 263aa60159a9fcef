"""RunMixin: what a run of `pcl-loss train` and `run` has, mixed around the model that its YAML names.

BasicSR's train loop calls its model for all that an iteration is, so one class can see to it: a batch that is not
finite leaves no trace, the run is saved with its place in the data, signals end it between two iterations, and a
terminal shows how far it is.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn

from .._distributed import average
from ..discriminator_step import not_finite, put_back, skips_on_device
from .bad_steps import DEFAULT_MAX_BAD_STEPS, BadSteps
from .checkpoints import FILES
from .data_order import kept_rng_state
from .run_state import Run, StoppedError, take_schedule
from .speed import keep_fused

if TYPE_CHECKING:
    from basicsr.models.base_model import BaseModel as Base
else:
    # A mixin comes before the model in a class's bases: what `super()` finds is the model's.
    Base = object

SHOWN = ("l_pix", "l_pcl", "margin")  # in a terminal


class RunMixin(Base):
    """See the head of this file. `run` is set in the class that it is mixed into."""

    run: Run
    bad_steps: BadSteps | None = None
    losses: Sequence[Tensor] = ()
    """What a model has computed on the way to its step that must be finite too; set by `SpeedMixin`."""
    _files: Sequence[str] = ()
    _flags: Tensor | None = None
    """Of this iteration, 0 or 1 each: the step is left out; the batch is bad; and this rank's batch is."""
    _bar: Any = None

    # --- an iteration ---

    def update_learning_rate(self, current_iter: int, *rest: Any, **keywords: Any) -> None:
        """As the model; the first call of an iteration, where signals are obeyed.

        Raises:
            StoppedError: a signal has ended the run.
        """
        self.run.has_begun = True
        if number := self.run.signal():
            if self.run.saved != current_iter - 1:
                self.save(0 if self.run.data is None else self.run.data.sampler.epoch, current_iter - 1)
            raise StoppedError(number, current_iter - 1)
        super().update_learning_rate(current_iter, *rest, **keywords)

    def feed_data(self, data: Any, *rest: Any, **keywords: Any) -> None:
        """As the model; the batch's files are kept, to name them."""
        if isinstance(data, dict):
            self._files = data.get("gt_path") or data.get("lq_path") or ()
        super().feed_data(data, *rest, **keywords)

    def optimize_parameters(self, current_iter: int, *rest: Any, **keywords: Any) -> Any:
        """As the model. If the batch, a loss or a gradient is not finite, on any rank, no optimizer steps from there
        on, and the networks' buffers (batch norm's statistics) are put back. Only an optimizer that cannot leave out a
        step on its device, as a fused Adam can, waits for it.
        """
        if self.bad_steps is None:
            self.bad_steps = BadSteps(self.opt["train"].get("max_bad_steps") or DEFAULT_MAX_BAD_STEPS)
            for optimizer in self.optimizers:
                optimizer.register_step_pre_hook(self._before_step)
                optimizer.register_step_post_hook(self._after_step)
        nets = [net for name, net in vars(self).items() if name.startswith("net_") and isinstance(net, nn.Module)]
        kept = [(buffer, buffer.clone()) for net in nets for buffer in net.buffers()]
        self._flags, self.losses = None, ()
        result = super().optimize_parameters(current_iter, *rest, **keywords)
        if self._flags is not None:
            put_back(kept, self._flags[0])
            self.bad_steps.note(current_iter, self._files, self._flags)
        if self.run.data is not None:
            self.run.data.num_batches += 1
        self._show(current_iter)
        return result

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        if not grads:
            return
        # Set by a GradScaler, or by E_D's own step.
        judged = getattr(optimizer, "found_inf", None)
        no_step = not_finite(grads) if judged is None else judged.float()
        batch = [value for value in (getattr(self, "lq", None), getattr(self, "gt", None)) if isinstance(value, Tensor)]
        batch = [value for value in batch if value.device == grads[0].device]
        own = not_finite([*batch, *self.losses]) if batch or self.losses else torch.zeros_like(no_step)
        # A gradient for which fp16's scale was too high is no fault of the batch.
        if not any(isinstance(value, torch.amp.GradScaler) and value.is_enabled() for value in vars(self).values()):
            own = torch.maximum(own, no_step)
        flags = torch.stack([torch.maximum(own, no_step), own])
        average([flags])
        flags = torch.cat([flags.ceil(), own[None]])
        self._flags = flags if self._flags is None else torch.maximum(self._flags, flags)
        if skips_on_device(optimizer):
            optimizer.found_inf = self._flags[0]
            optimizer.is_guarded = judged is None
        elif self._flags[0].item():
            optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def _after_step(optimizer: Any, *_: Any) -> None:
        if vars(optimizer).pop("is_guarded", False):
            del optimizer.found_inf

    def model_ema(self, *arguments: Any, **keywords: Any) -> None:
        """As the model, unless the step was left out."""
        average_net = getattr(self, "net_g_ema", None)
        kept = [] if average_net is None else [(param, param.detach().clone()) for param in average_net.parameters()]
        super().model_ema(*arguments, **keywords)
        if self._flags is not None:
            put_back(kept, self._flags[0])

    # --- log, validation and checkpoints ---

    def get_current_log(self) -> Any:
        """As the model; the steps up to here are looked at.

        Raises:
            BadStepsError: `train.max_bad_steps` of them in a row were left out.
        """
        if self.bad_steps is not None:
            self.bad_steps.read()
        return super().get_current_log()

    def _show(self, current_iter: int) -> None:
        """Show iteration, rate, time left and some of the log, where standard error is a terminal."""
        if not sys.stderr.isatty() or get_dist_info()[0] != 0:
            return
        total = int(self.opt["train"].get("total_iter", 0))
        if self._bar is None:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            line = tqdm(total=total, initial=current_iter - 1, unit="it", dynamic_ncols=True)
            self._bar = self.run.terminal.enter_context(line)
            # BasicSR's log lines then appear above the line, not through it.
            self.run.terminal.enter_context(logging_redirect_tqdm([logging.getLogger("basicsr")]))
        # At most ten times a second, and at the end: reading the log waits for the GPU.
        if self._bar.update() or self._bar.n == total:
            log = self.get_current_log()
            self._bar.set_postfix({key: f"{log[key]:.3g}" for key in SHOWN if key in log})

    def validation(self, dataloader: Any, current_iter: int, *rest: Any, **keywords: Any) -> Any:
        """As the model; what it draws (a metric may build a network) leaves the run's random numbers alone."""
        with kept_rng_state():
            # BasicSR's counter is past the last iteration in the last validation.
            current_iter = min(current_iter, int(self.opt["train"].get("total_iter", current_iter)))
            return super().validation(dataloader, current_iter, *rest, **keywords)

    def save(self, epoch: int, current_iter: int, *rest: Any, **keywords: Any) -> None:
        """As the model; the steps up to here are looked at first."""
        if self.bad_steps is not None:
            self.bad_steps.read()
            if current_iter == -1:
                self.bad_steps.sum_up()
        super().save(epoch, current_iter, *rest, **keywords)
        self.run.saved = current_iter

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """As the model; and the run's place in the data and its random numbers."""
        with FILES.adding(self.run.state_dict()):
            super().save_training_state(epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """As the model, by the schedule of the YAML; and the run's random numbers."""
        take_schedule(self.schedulers, resume_state["schedulers"])
        keep_fused(self.optimizers, resume_state["optimizers"])
        super().resume_training(resume_state)
        self.run.restore(resume_state)


def in_run(model_class: Any, run: Run) -> Any:
    """A model's class with `RunMixin` around it, under its own name."""
    return type(model_class.__name__, (RunMixin, model_class), {"__module__": model_class.__module__, "run": run})
