"""Run: what a run of `pcl-loss train` and `run` knows of itself, and BasicSR does not save."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from signal import Signals
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info
from torch.utils.data import DataLoader

from .checkpoints import KEY
from .data_order import PlacedData, rng_state, set_rng_state


class StoppedError(Exception):
    """A signal has ended the run."""

    def __init__(self, number: int, saved: int | None) -> None:
        self.status = 128 + number
        where = "nothing was trained yet" if saved is None else f"iteration {saved} is saved, --auto_resume goes on"
        super().__init__(f"{Signals(number).name}: {where}")


class Run:
    """A run from its start to its end: what it goes on from, its data, and the signals that it was sent."""

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None
        """The training state that the run goes on from."""
        self.data: PlacedData | None = None
        self.saved: int | None = None
        self.has_begun = False
        self.received = 0
        self.terminal = ExitStack()
        self._agreed: Any = None

    def take_data(self, opt: dict[str, Any], loader: Any, sampler: Any) -> Any:
        """Take the training data, which begin where the resumed run was, and return what gives their order."""
        if not isinstance(loader, DataLoader) or loader.sampler is not sampler or loader.batch_sampler is None:
            get_root_logger().warning("These training data are read in a way of their own: a resume is not exact.")
            return sampler
        self.data = PlacedData(loader, opt["manual_seed"])
        if self.resumed is not None:
            saved = self.resumed.get(KEY, {})
            for line in self._inexact(saved, self.data):
                get_root_logger().warning(f"The resumed run is not bit for bit the uninterrupted one: {line}")
            has_place = saved.get("num_images") == self.data.num_images
            self.data.begin(self.resumed["epoch"], saved["position"] if has_place else 0)
        return self.data.sampler

    @staticmethod
    def _inexact(saved: dict[str, Any], data: PlacedData) -> Iterator[str]:
        differ = "random crops, flips and dropout differ."
        if "rng" not in saved:
            yield f"its training state was not written by `pcl-loss train` or `run`; its data begin anew, and {differ}"
            return
        if saved["num_images"] != data.num_images:
            yield "the number of training images has changed; the epoch's data begin anew."
        if len(saved["rng"]) != get_dist_info()[1]:
            yield f"it was saved by {len(saved['rng'])} processes and goes on with {get_dist_info()[1]}; {differ}"

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

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the generators of a training state, the last thing that happens before the first iteration."""
        rank, world_size = get_dist_info()
        saved = state.get(KEY, {}).get("rng", ())
        if len(saved) == world_size:
            set_rng_state(saved[rank])
        self.saved = state["iter"]

    def on_signal(self, number: int, _frame: Any) -> None:
        """Takes note of a signal, which is obeyed between two iterations; a second one at once."""
        is_second, self.received = bool(self.received), number
        if is_second or not self.has_begun:
            raise StoppedError(number, self.saved)

    def signal(self) -> int:
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


def take_schedule(schedulers: Sequence[Any], states: Sequence[dict[str, Any]]) -> None:
    """Let the YAML's schedule hold in saved states of schedulers, changed in place: with raised `periods` BasicSR would
    go on with the saved ones, and end in a `TypeError`.
    """
    for scheduler, saved in zip(schedulers, states, strict=False):
        now = scheduler.state_dict()
        knobs = [*inspect.signature(type(scheduler)).parameters, "cumulative_period"]
        saved |= {knob: now[knob] for knob in knobs if knob in now and knob != "last_epoch"}
