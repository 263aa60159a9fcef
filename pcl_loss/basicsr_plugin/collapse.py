"""CollapseWatch: says once that the contrastive term has stopped to do anything."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

from basicsr.utils import get_root_logger

FIRST_STEPS = 100  # E_D's statistics and first steps settle
BOUND = 0.999  # of |cosine|, the mean over all layers: the samples look alike
SHARE = 0.01  # of the median gradient norm
MIN_NORMS = 5  # that the median goes over


class CollapseWatch:
    """Looks at what is logged, when it is logged."""

    def __init__(self) -> None:
        self._has_warned = False
        self._norms: deque[float] = deque(maxlen=100)

    def look(self, num_steps: int, log: Mapping[str, float], grad_norm: float) -> None:
        """Take up a step that had the term: the number of steps so far, a log with `pos_sim` and `neg_sim`, and the
        norm of L_CL's gradient at the SR output, before any weight.
        """
        reason = ""
        if min(abs(log["pos_sim"]), abs(log["neg_sim"])) > BOUND:
            reason = f"all similarities are at their bound (pos_sim {log['pos_sim']:.4f}, neg_sim {log['neg_sim']:.4f})"
        elif len(self._norms) >= MIN_NORMS and grad_norm < SHARE * (median := statistics.median(self._norms)):
            reason = f"its gradient norm is {grad_norm:.2g}, less than {SHARE:.0%} of its median, {median:.2g}"
        self._norms.append(grad_norm)
        if reason and num_steps >= FIRST_STEPS and not self._has_warned:
            self._has_warned = True
            get_root_logger().warning(
                f"The contrastive term has collapsed: {reason}. L_CL hardly acts on the SR network. Lower "
                "train.optim_d.lr, set network_d's norm to group, or take pcl_opt's recipe light."
            )
