"""A resumed run of `pcl-loss train` goes on as if it had not been interrupted, and a stopped one can be resumed."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info

from .._durable import UnreadableFileError, load
from . import durable
from .data_order import STOP_SIGNALS, PlacedSampler, kept_rng_state, rng_state, set_rng_state, skip
from .durable import KEY
from .options_loading import OptionsError
from .repairs import replaced


class StoppedError(Exception):
    """A signal has ended the run."""

    def __init__(self, number: int, saved: int | None) -> None:
        self.status = 128 + number
        where = "nothing was trained yet" if saved is None else f"iteration {saved} is saved, --auto_resume goes on"
        super().__init__(f"{signal.Signals(number).name}: {where}")


class Run:
    """What of a run BasicSR does not save: its place in the data, the generators of all ranks, and the best metrics.

    A signal that ends runs is taken note of, and obeyed between two iterations, by all ranks at the same one; of a
    single process it also ends a validation. A second one is obeyed at once, without a checkpoint.
    """

    def __init__(self, files: durable.DurableTorch) -> None:
        self.files = files
        self.state: dict[str, Any] | None = None
        self.sampler: PlacedSampler
        self.loader: Any
        self.val_loaders: Any
        self.num_batches = 0  # of this epoch, that were trained on
        self.saved: int | None = None
        self.has_begun = self.is_validating = self.owes_validation = False
        self.received = 0
        self._agreed: Any = None

    # --- the start ---

    def begin(self, opt: dict[str, Any], state: dict[str, Any] | None) -> None:
        """Take the seed of the run that is resumed."""
        self.opt, self.state = opt, state
        seed = {} if state is None else state.get(KEY, {})
        if seed and seed["manual_seed"] != opt["manual_seed"]:
            if get_dist_info()[0] == 0:
                print(f"manual_seed is {seed['manual_seed']}, that of the run which is resumed.", flush=True)
            opt["manual_seed"] = seed["manual_seed"]

    def take_data(self, loader: Any, sampler: PlacedSampler, val_loaders: Any) -> int:
        """Begin where the resumed run was; returns the number of the run's last epoch.

        BasicSR counts its epochs with the batch that is not full, which its loader leaves out: with 9 images and
        batches of 4 it ends at 30 of 40 iterations.
        """
        if len(loader) == 0:  # a data set that `check_data` does not look into
            raise OptionsError(
                "datasets.train.batch_size_per_gpu: a batch is larger than the data; raise dataset_enlarge_ratio, or "
                "lower the batch"
            )
        self.loader, self.sampler = loader, sampler
        self.val_loaders = val_loaders if isinstance(val_loaders, list) else [val_loaders]  # one, up to BasicSR 1.3.3
        sampler.manual_seed = self.opt["manual_seed"]
        iteration = epoch = 0
        if self.state is not None:
            iteration, epoch = self.state["iter"], self.state["epoch"]
            for line in self._inexact(self.state):
                get_root_logger().warning(f"The resumed run is not bit for bit the uninterrupted one: {line}")
            if (saved := self.state.get(KEY)) and saved["num_images"] == sampler.total_size:
                skip(sampler, epoch, saved["position"])
        set_epoch = sampler.set_epoch

        def begin_epoch(epoch: int) -> None:
            set_epoch(epoch)
            first = sampler.num_skipped if epoch == sampler.first_epoch else 0
            self.num_batches = first // loader.batch_size

        sampler.set_epoch = begin_epoch
        num_iters = sampler.num_skipped // loader.batch_size + int(self.opt["train"]["total_iter"]) - iteration
        return epoch + max(math.ceil(num_iters / len(loader)), 1) - 1

    def _inexact(self, state: dict[str, Any]) -> Iterator[str]:
        saved = state.get(KEY)
        if saved is None:
            yield (
                "its training state was not written by `pcl-loss train` or `run`; its epoch's data begin anew, and "
                "random crops, flips and dropout differ."
            )
            return
        if saved["num_images"] != self.sampler.total_size:
            yield "the number of training images has changed; the epoch's data begin anew."
        if len(saved["rng"]) != get_dist_info()[1]:
            yield (
                f"it was saved by {len(saved['rng'])} processes and goes on with {get_dist_info()[1]}; random crops, "
                "flips and dropout differ."
            )

    # --- the model ---

    def watch(self, model: Any) -> None:
        """Keep the place of a model's run, and look for signals between its iterations."""
        optimize, validate, resume = model.optimize_parameters, model.validation, model.resume_training
        update_learning_rate, save = model.update_learning_rate, model.save

        def optimize_parameters(current_iter: int, *rest: Any, **keywords: Any) -> None:
            optimize(current_iter, *rest, **keywords)
            self.num_batches += 1

        def validation(loader: Any, current_iter: int, *rest: Any, **keywords: Any) -> None:
            # The last validation is that of the last iteration; BasicSR's counter may be past it.
            current_iter = min(current_iter, int(self.opt["train"]["total_iter"]))
            self.is_validating = True
            try:
                # It may build networks of its own, whose weights are drawn; a resumed run builds them at another time.
                with kept_rng_state():
                    if self.received and get_dist_info()[1] == 1:
                        raise StoppedError(self.received, self.saved)
                    validate(loader, current_iter, *rest, **keywords)
            except StoppedError as error:
                stop(error.status - 128, current_iter)
            finally:
                self.is_validating = False
            if loader is self.val_loaders[-1]:
                self._note_metrics(model, current_iter)

        def resume_training(state: dict[str, Any]) -> None:
            take_schedule(model, state)
            resume(state)
            self._restore(model, state)

        def begin_iteration(current_iter: int, **keywords: Any) -> None:
            self.has_begun = True
            number = self._signal()
            if number:
                stop(number, current_iter - 1)
            if self.owes_validation:
                self.owes_validation = False
                get_root_logger().info(f"The validation of iteration {current_iter - 1} was not finished; here it is.")
                for loader in self.val_loaders:
                    model.validation(loader, current_iter - 1, None, self.opt["val"]["save_img"])
            update_learning_rate(current_iter, **keywords)

        def stop(number: int, iteration: int) -> NoReturn:
            if self.saved != iteration:
                model.save(self.sampler.epoch, iteration)
            raise StoppedError(number, iteration)

        def save_and_note(epoch: int, current_iter: int) -> None:
            self.files.extra = {} if current_iter == -1 else self.state_dict()
            self.files.of_this_save.clear()
            save(epoch, current_iter)
            self.saved = current_iter

        model.optimize_parameters, model.validation, model.resume_training = (
            optimize_parameters,
            validation,
            resume_training,
        )
        model.update_learning_rate, model.save = begin_iteration, save_and_note

    def state_dict(self) -> dict[str, Any]:
        """What a training state holds of the run; every rank must ask for it."""
        world_size = get_dist_info()[1]
        states = [rng_state()]
        if world_size > 1:
            states = [{} for _ in range(world_size)]
            torch.distributed.all_gather_object(states, rng_state())
        return {
            "manual_seed": self.opt["manual_seed"],
            "position": self.num_batches * self.loader.batch_size * world_size,
            "num_images": self.sampler.total_size,
            "rng": states,
        }

    def _restore(self, model: Any, state: dict[str, Any]) -> None:
        rank, world_size = get_dist_info()
        saved = state.get(KEY)
        if saved is not None and len(saved["rng"]) == world_size:
            set_rng_state(saved["rng"][rank])
        self.saved = state["iter"]
        known = {i: best for i, best in self._best_metrics().items() if i <= state["iter"]}
        if known:
            model.best_metric_results = copy.deepcopy(known[max(known)])
        val = self.opt.get("val") or {}
        has_best = val.get("metrics") and hasattr(model, "_initialize_best_metric_results")
        # A run that ended between an iteration's checkpoint and the end of its validation.
        is_due = saved is not None and has_best and state["iter"] % val["val_freq"] == 0
        self.owes_validation = bool(is_due) and state["iter"] not in known

    # --- the best metrics, which are known only after an iteration's checkpoint was saved ---

    def _best_metrics(self) -> dict[int, Any]:
        path = self._metrics_path()
        try:
            best: dict[int, Any] = load(path) if path.exists() else {}
        except (OSError, UnreadableFileError) as error:
            get_root_logger().warning(f"The best metrics start anew: {error}")
            return {}
        return best

    def _note_metrics(self, model: Any, current_iter: int) -> None:
        results = getattr(model, "best_metric_results", None)
        if results is None or get_dist_info()[0] != 0:
            return
        plain = {
            name: {
                metric: best | {"val": float(best["val"]), "iter": int(best["iter"])}
                for metric, best in metrics.items()
            }
            for name, metrics in results.items()
        }
        before = {i: best for i, best in self._best_metrics().items() if i < current_iter}
        durable.save(before | {current_iter: plain}, self._metrics_path())

    def _metrics_path(self) -> Path:
        return Path(self.opt["path"]["training_states"], "best_metrics.pth")

    # --- signals ---

    def on_signal(self, number: int, _frame: Any) -> None:
        """The handler of `STOP_SIGNALS`."""
        is_second, self.received = bool(self.received), number
        if is_second or not self.has_begun or (self.is_validating and get_dist_info()[1] == 1):
            raise StoppedError(number, self.saved)

    def _signal(self) -> int:
        """The signal that all ranks obey at this iteration, or 0. They hear of one another's an iteration later, which
        costs no waiting.
        """
        if get_dist_info()[1] == 1:
            return self.received
        number = 0
        if self._agreed is not None:
            flag, work, group = self._agreed
            work.wait()
            number = int(flag.item())
        else:
            group = torch.distributed.new_group(backend="gloo")
        if not number:
            flag = torch.tensor([self.received])
            work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group, async_op=True)
            self._agreed = flag, work, group
        return number


def take_schedule(model: Any, state: dict[str, Any]) -> None:
    """Let the YAML's schedule hold in a resumed run, where BasicSR goes on with the saved one: raised `periods` would
    else end in a `TypeError`. A changed learning rate is not taken. Both are logged.
    """
    for scheduler, saved in zip(model.schedulers, state["schedulers"], strict=False):
        now = scheduler.state_dict()
        knobs = [*inspect.signature(type(scheduler)).parameters, "cumulative_period"]
        for knob in knobs:
            if knob not in ("optimizer", "last_epoch") and knob in now and now[knob] != saved.get(knob):
                if knob != "cumulative_period":
                    get_root_logger().warning(
                        f"train.scheduler: {knob} was {saved.get(knob)} and is {now[knob]} from here on."
                    )
                saved[knob] = now[knob]
        if now["base_lrs"] != saved["base_lrs"]:
            get_root_logger().warning(
                f"A learning rate of {now['base_lrs'][0]:g} is ignored: the resumed run goes on with that of its "
                f"training state, {saved['base_lrs'][0]:g}."
            )


@contextmanager
def exact_resume(files: durable.DurableTorch, pipeline: ModuleType) -> Iterator[None]:
    """While open, a run of a module like `basicsr.train` saves and takes up all of itself, and signals end it with a
    checkpoint.

    Raises:
        StoppedError: a signal has ended it.
    """
    run = Run(files)
    create_loaders, build = pipeline.create_train_val_dataloader, pipeline.build_model

    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        state = durable.load_resume_state(opt)
        run.begin(opt, state)
        return state

    def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple[Any, ...]:
        loader, sampler, val_loaders, _, total_iters = create_loaders(opt, logger)
        return loader, sampler, val_loaders, run.take_data(loader, sampler, val_loaders), total_iters

    @functools.wraps(build)
    def build_model(opt: dict[str, Any]) -> BaseModel:
        model: BaseModel = build(opt)
        run.watch(model)
        return model

    handlers = {number: signal.signal(number, run.on_signal) for number in STOP_SIGNALS}
    children = set(multiprocessing.active_children())
    try:
        with replaced(
            pipeline,
            load_resume_state=load_resume_state,
            create_train_val_dataloader=create_train_val_dataloader,
            build_model=build_model,
        ):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if isinstance(sys.exc_info()[1], StoppedError):
            # Workers that load data for an iteration which will not come.
            for child in set(multiprocessing.active_children()) - children:
                child.kill()
                child.join()
