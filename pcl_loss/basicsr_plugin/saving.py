"""SavingMixin: what a run of ours saves beside BasicSR's own files, and takes up when it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr.utils import get_root_logger

from .._durable import load
from . import durable

if TYPE_CHECKING:
    from basicsr.models.sr_model import SRModel as Base
else:
    # A mixin comes before the model in a class's bases: what `super()` finds is the model's.
    Base = object


class SavingMixin(Base):
    """Keeps the states of `_states` in `models/pcl_state_ITER.pth`."""

    def _states(self) -> dict[str, Any]:
        """By name, what has a `state_dict` that a resumed run needs and that no other file holds."""
        return {}

    def save(self, epoch: int, current_iter: int) -> None:
        """Save those states, and then what the base model saves, of which the training state comes last: a run that is
        killed in between resumes from the state before.
        """
        states = {name: stateful.state_dict() for name, stateful in self._states().items()}
        if states and self.opt["rank"] == 0:
            durable.save(states, self._states_path("latest" if current_iter == -1 else current_iter))
        super().save(epoch, current_iter)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """As the base model; and those states. One that was not saved starts anew, and the log says so."""
        super().resume_training(resume_state)
        if not self._states():
            return
        path = self._states_path(resume_state["iter"])
        saved = load(path) if path.is_file() else {}
        for name, stateful in self._states().items():
            if name in saved:
                stateful.load_state_dict(saved[name])
            else:
                get_root_logger().warning(f"{path} does not hold the {name}'s state: it starts anew.")

    def _states_path(self, iteration: int | str) -> Path:
        return Path(self.opt["path"]["models"], f"pcl_state_{iteration}.pth")
