"""The data loader and the schedulers of PyTorch 0.4 that RCAN and its forks (SAN, A2N, MSRN) were written for."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset


def replace_data_loader(module: ModuleType, error: ImportError) -> bool:
    """Make `module`, which failed with `error`, the `dataloader` of those codebases; False if it is another."""
    source = Path(module.__file__ or "")
    if not (error.name or "").startswith("torch") or "class MSDataLoader" not in source.read_text(errors="replace"):
        return False
    module.__dict__["MSDataLoader"] = MSDataLoader
    _restore_schedulers()
    return True


class _Batches(Dataset[list[Any]]):
    def __init__(self, dataset: Any, collate_fn: Any, num_scales: int) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn
        self.num_scales = num_scales if getattr(dataset, "train", False) else 1

    def __getitem__(self, indices: list[int]) -> list[Any]:
        scale = 0
        if self.num_scales > 1:
            scale = random.randrange(self.num_scales)
            self.dataset.set_scale(scale)
        return [*self.collate_fn([self.dataset[index] for index in indices]), scale]


class MSDataLoader(DataLoader[Any]):
    """Draws one of `args.scale` for every training batch, and adds its index to the batch."""

    def __init__(self, args: Any, dataset: Any, **keywords: Any) -> None:
        super().__init__(dataset, num_workers=args.n_threads, **keywords)
        self.scale = args.scale

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        loader = DataLoader(
            _Batches(self.dataset, self.collate_fn, len(self.scale)),
            batch_size=None,
            sampler=self.batch_sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
        )
        return iter(loader)


def _restore_schedulers() -> None:
    """As before PyTorch 1.1: a new one stands before its first epoch, and its rate follows from `last_epoch` alone."""
    init = lr_scheduler.LRScheduler.__init__

    @functools.wraps(init)
    def before_the_first_epoch(self: Any, optimizer: Any, last_epoch: int = -1, *args: Any, **kwargs: Any) -> None:
        init(self, optimizer, last_epoch, *args, **kwargs)
        self.last_epoch = last_epoch if last_epoch == -1 else self.last_epoch

    lr_scheduler.LRScheduler.__init__ = before_the_first_epoch  # type: ignore[method-assign]
    for scheduler in vars(lr_scheduler).values():
        if isinstance(scheduler, type) and "_get_closed_form_lr" in vars(scheduler):
            scheduler.get_lr = scheduler._get_closed_form_lr  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
