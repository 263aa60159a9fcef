"""Training data whose crops and flips depend on their place in the run alone: not on workers, nor on interruptions."""

from __future__ import annotations

import functools
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils.dist_util import get_dist_info
from torch.utils.data import DataLoader, Dataset

from .images import read_item
from .repairs import replaced

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def rng_state() -> dict[str, Any]:
    """The global generators of Python, NumPy and torch, in values that `torch.load(weights_only=True)` reads."""
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    numpy_state = [name, np.asarray(keys).tolist(), *rest]
    return {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Take up what `rng_state` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def kept_rng_state() -> Iterator[None]:
    """What is drawn inside leaves the global generators as they were."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


class PlacedIndex(int):
    """The index of an image, which knows the place that it is drawn for: (manual_seed, epoch, rank, position)."""

    place: tuple[int, ...]


class PlacedSampler(EnlargedSampler):
    """BasicSR's sampler, its order unchanged, which may begin its first epoch in the middle."""

    manual_seed = 0
    first_epoch = 0
    num_skipped = 0
    """Images of `first_epoch` that an interrupted run has had, on this rank."""

    def __iter__(self) -> Iterator[PlacedIndex]:
        skipped = self.num_skipped if self.epoch == self.first_epoch else 0
        for position, value in enumerate(super().__iter__()):
            if position >= skipped:
                index = PlacedIndex(value)
                index.place = (self.manual_seed, self.epoch, self.rank, position)
                yield index


class PlacedDataset(Dataset[Any]):
    """A data set whose random numbers are those of an image's place, and which takes none of the run's own.

    The place is that in the sampler's order, never the image's index: the sampler hands out each image
    `dataset_enlarge_ratio` times in an epoch.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet: it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, PlacedIndex):
            return self.dataset[index]
        words = [int(word) for word in np.random.SeedSequence(index.place).generate_state(3)]
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            random.seed(words[0])
            np.random.seed(words[1])
            torch.default_generator.manual_seed(words[2])
            return read_item(self.dataset, int(index))
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])
            torch.set_rng_state(state[2])


@contextmanager
def placed_data(pipeline: ModuleType) -> Iterator[None]:
    """While open, a module like `basicsr.train` builds its training data so."""
    build, build_loader = pipeline.build_dataset, pipeline.build_dataloader

    @functools.wraps(build)
    def build_dataset(dataset_opt: dict[str, Any]) -> Any:
        dataset = build(dataset_opt)
        return PlacedDataset(dataset) if dataset_opt["phase"] == "train" else dataset

    @functools.wraps(build_loader)
    def build_dataloader(dataset: Any, dataset_opt: dict[str, Any], **keywords: Any) -> DataLoader[Any]:
        loader: DataLoader[Any] = build_loader(dataset, dataset_opt, **keywords)
        # Each pass draws a seed, by default from the global generator: a resumed run makes other passes.
        loader.generator = torch.Generator()
        loader.worker_init_fn = functools.partial(start_worker, loader.worker_init_fn)
        return loader

    with replaced(
        pipeline, build_dataset=build_dataset, build_dataloader=build_dataloader, EnlargedSampler=PlacedSampler
    ):
        yield


def start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Leave signals that end a run to its main process, which tells its workers when it is done."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker_id)


def skip(sampler: PlacedSampler, epoch: int, position: int) -> None:
    """Begin at an epoch of which the first `position` images, on all ranks together, were seen."""
    sampler.first_epoch, sampler.num_skipped = epoch, position // get_dist_info()[1]
