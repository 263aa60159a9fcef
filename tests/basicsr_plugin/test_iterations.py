"""A run takes as many iterations as its YAML says."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import basicsr.train
import pytest

from pcl_loss.basicsr_plugin import OptionsError
from pcl_loss.basicsr_plugin.iterations import exactly_total_iter

Options = dict[str, Any]


def test_a_batch_that_is_never_full_costs_no_iteration(baseline: Options, run_pipeline: Callable[..., str]) -> None:
    # Three images: one batch of two an epoch, where BasicSR counts two.
    baseline["datasets"]["train"]["dataset_enlarge_ratio"] = 1
    baseline["train"]["total_iter"] = 7
    del baseline["val"]
    log = run_pipeline(baseline)
    assert [int(number) for number in re.findall(r"iter: +(\d+),", log)] == list(range(1, 8))


def test_data_that_make_no_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basicsr.train, "create_train_val_dataloader", lambda opt, logger: ([], None, [], 1, 4))
    with exactly_total_iter(), pytest.raises(OptionsError, match="a batch is larger than the data"):
        basicsr.train.create_train_val_dataloader(SimpleNamespace(), None)
