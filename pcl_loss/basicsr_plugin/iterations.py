"""A run takes as many iterations as its YAML says."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import basicsr.train

from .yaml_values import OptionsError


@contextmanager
def exactly_total_iter() -> Iterator[None]:
    """While open, BasicSR's training takes exactly `train.total_iter` iterations. It counts its epochs with the batch
    that is not full, which its loader leaves out: with 9 images and batches of 4 it ends at 30 of 40 iterations.
    """
    create = basicsr.train.create_train_val_dataloader

    @functools.wraps(create)
    def create_for_all_iterations(opt: Any, logger: Any) -> Any:
        train_loader, sampler, val_loaders, _, total_iters = create(opt, logger)
        if len(train_loader) == 0:  # a data set that `check_data` does not look into
            raise OptionsError(
                "datasets.train.batch_size_per_gpu: a batch is larger than the data; raise dataset_enlarge_ratio, or "
                "lower the batch"
            )
        return train_loader, sampler, val_loaders, math.ceil(total_iters / len(train_loader)), total_iters

    basicsr.train.create_train_val_dataloader = create_for_all_iterations
    try:
        yield
    finally:
        basicsr.train.create_train_val_dataloader = create
