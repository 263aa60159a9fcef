"""BadSteps: counts the steps that were left out because their batch was not finite, and names its files."""

from __future__ import annotations

from collections.abc import Sequence

from basicsr.utils import get_root_logger
from torch import Tensor


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
                    f"the batch: {named}. Further ones are counted; train.max_bad_steps ({self.limit}) in a row end "
                    "the run."
                )
            if self.num_in_a_row == self.limit:
                raise BadStepsError(
                    f"the last {self.limit} steps in a row, up to iteration {iteration}, were not finite "
                    f"(train.max_bad_steps); the networks are those of iteration {iteration - self.limit}. Look at the "
                    f"learning rate and at the data. Files of the batch: {named}."
                )

    def sum_up(self) -> None:
        """Log how many steps were left out, if any."""
        if self.num_bad:
            get_root_logger().warning(f"{self.num_bad} of {self.num_steps} steps were not finite and were left out.")
