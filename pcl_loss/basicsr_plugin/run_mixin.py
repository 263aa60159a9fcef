"""RunMixin: what a run of `pcl-loss train` and `run` has, mixed around the model that its YAML names.

BasicSR's train loop calls its model for all that an iteration is, so one class can see to it: a batch that is not
finite leaves no trace, the run is saved with its place in the data, and signals end it between two iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from signal import Signals
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .._distributed import average
from ..discriminator_step import not_finite, put_back, skips_on_device
from .checkpoints import FILES, KEY
from .data import PlacedData, kept_rng_state, rng_state, set_rng_state
from .options_ours import SPEED_DEFAULTS
from .speed import Base


class BadStepsError(RuntimeError):
    """So many steps in a row were not finite that the run is over."""


class BadSteps:
    """Flags of steps, which stay on their device until the log is read; `limit` bad ones in a row end the run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_steps = self.num_bad = self.num_in_a_row = 0
        self._unread: list[tuple[int, Sequence[str], Tensor]] = []

    def note(self, iteration: int, files: Sequence[str], flags: Tensor) -> None:
        """Take up a step: its batch's files, and `(3,)` whether it was left out, a batch is why, this rank's is why."""
        self._unread.append((iteration, files, flags))

    def read(self) -> None:
        """Count the steps that were noted, and log the first bad one; waits for the device. Raises BadStepsError."""
        steps, self._unread = self._unread, []
        for iteration, files, flags in steps:
            _, is_bad, is_own = flags.tolist()
            self.num_steps += 1
            self.num_bad += bool(is_bad)
            self.num_in_a_row = self.num_in_a_row + 1 if is_bad else 0
            named = ", ".join(files) if is_own else "another rank names them"
            if is_own and self.num_bad == 1:
                # An error, since BasicSR's other ranks log nothing else.
                get_root_logger().error(
                    f"Iteration {iteration}: the loss or its gradient is not finite; the step was left out. Files of "
                    f"the batch: {named}. Others are counted; train.max_bad_steps ({self.limit}) in a row end the run."
                )
            if self.num_in_a_row == self.limit:
                raise BadStepsError(
                    f"the last {self.limit} steps in a row, up to iteration {iteration}, were not finite "
                    f"(train.max_bad_steps); the networks are of iteration {iteration - self.limit}. Files: {named}."
                )

    def sum_up(self) -> None:
        """Log how many steps were left out, if any."""
        if self.num_bad:
            get_root_logger().warning(f"{self.num_bad} of {self.num_steps} steps were not finite and were left out.")


class StoppedError(Exception):
    """A signal has ended the run."""

    def __init__(self, number: int, saved: int | None) -> None:
        self.status = 128 + number
        where = "nothing was trained yet" if saved is None else f"iteration {saved} is saved, --auto_resume goes on"
        super().__init__(f"{Signals(number).name}: {where}")


class Run:
    """What a run knows of itself and BasicSR does not save: what it goes on from, its data, and its signals."""

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None
        """The training state that the run goes on from."""
        self.data: PlacedData | None = None
        self.saved: int | None = None
        self.has_begun = False
        self.received = 0
        self._agreed: Any = None

    def take_data(self, opt: dict[str, Any], loader: Any, sampler: Any) -> Any:
        """Take the training data, which begin where the resumed run was, and return what gives their order."""
        if not isinstance(loader, DataLoader) or loader.sampler is not sampler or loader.batch_sampler is None:
            get_root_logger().warning("These training data are read in a way of their own: a resume is not exact.")
            return sampler
        self.data = PlacedData(loader, opt["manual_seed"])
        if self.resumed is not None:
            saved = self.resumed.get(KEY, {})
            has_place = saved.get("num_images") == self.data.num_images
            self.data.begin(self.resumed["epoch"], saved["position"] if has_place else 0)
            if not has_place or len(saved["rng"]) != get_dist_info()[1]:
                reason = "it was saved without pcl-loss, or with another number of processes or of training images"
                get_root_logger().warning(f"The resumed run is not bit for bit the uninterrupted one: {reason}.")
        return self.data.sampler

    def state_dict(self) -> dict[str, Any]:
        """What a training state holds of the run; every rank must ask for it."""
        if self.data is None:
            return {}
        states = [rng_state()]
        if (world_size := get_dist_info()[1]) > 1:
            states = [{} for _ in range(world_size)]
            torch.distributed.all_gather_object(states, rng_state())
        place = {"position": self.data.position, "num_images": self.data.num_images}
        return place | {"manual_seed": self.data.sampler.seed, "rng": states}

    def on_signal(self, number: int, _frame: Any) -> None:
        """Takes note of a signal, which is obeyed between two iterations; a second one at once."""
        is_second, self.received = bool(self.received), number
        if is_second or not self.has_begun:
            raise StoppedError(number, self.saved)

    def signal(self) -> int:
        """The signal that all ranks obey at this iteration, or 0; heard an iteration later, without waiting."""
        if get_dist_info()[1] == 1:
            return self.received
        if self._agreed is None:
            group: Any = torch.distributed.new_group(backend="gloo")
        else:
            flag, work, group = self._agreed
            work.wait()
            if flag.item():
                return int(flag.item())
        flag = torch.tensor([self.received])
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group, async_op=True)
        self._agreed = flag, work, group
        return 0


class RunMixin(Base):
    """See the head of this file. `run` is set in the class that it is mixed into."""

    run: Run
    bad_steps: BadSteps | None = None
    losses: Sequence[Tensor] = ()
    """What a model has computed on the way to its step that must be finite too; set by `SpeedMixin`."""
    _files: Sequence[str] = ()
    _flags: Tensor | None = None
    """Of this iteration, 0 or 1 each: the step is left out; the batch is bad; and this rank's batch is."""

    def update_learning_rate(self, current_iter: int, *rest: Any, **keywords: Any) -> None:
        """As the model; the first call of an iteration, where signals are obeyed by a StoppedError."""
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
            self.bad_steps = BadSteps((SPEED_DEFAULTS | self.opt["train"])["max_bad_steps"])
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

    def get_current_log(self) -> Any:
        """As the model; the steps up to here are looked at, which may raise BadStepsError."""
        if self.bad_steps is not None:
            self.bad_steps.read()
        return super().get_current_log()

    def validation(self, *arguments: Any, **keywords: Any) -> Any:
        """As the model; what it draws (a metric may build a network) leaves the run's random numbers alone."""
        with kept_rng_state():
            return super().validation(*arguments, **keywords)

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
        FILES.extra = self.run.state_dict()
        super().save_training_state(epoch, current_iter)
        FILES.extra = {}

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """As the model; and the run's random numbers, the last thing that happens before the first iteration."""
        for optimizer, saved in zip(self.optimizers, resume_state["optimizers"], strict=False):
            for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=False):
                saved_group["fused"] = group.get("fused")  # as it was built: a fused Adam says so once and for all
        super().resume_training(resume_state)
        rank, world_size = get_dist_info()
        states = resume_state.get(KEY, {}).get("rng", ())
        if len(states) == world_size:
            set_rng_state(states[rank])
        self.run.saved = resume_state["iter"]


def in_run(model_class: Any, run: Run) -> Any:
    """A model's class with `RunMixin` around it, under its own name."""
    return type(model_class.__name__, (RunMixin, model_class), {"__module__": model_class.__module__, "run": run})
