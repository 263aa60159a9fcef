"""Training data: images are read by name, and drawn by their place in the run.

Crops and flips depend neither on workers nor on interruptions.
"""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info
from torch.utils.data import DataLoader, Dataset, Sampler

from .._files import check_pixels
from .options_basicsr import is_own
from .options_loading import OptionsError

# Windows has no SIGHUP.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))


class ImageError(OptionsError):
    """An image cannot be read as it is; the message names its file, or its key in an LMDB."""

    def __init__(self, message: str) -> None:
        # What a worker of a data loader hands over is its traceback, whose last line has the message.
        super().__init__(message.strip().splitlines()[-1].rpartition(f"{type(self).__name__}: ")[2])


def read_item(dataset: Any, index: int, where: str = "datasets.train") -> Any:
    """`dataset[index]`, of a data set of BasicSR's kind, which lists its images as `paths`.
    Raises ImageError if it cannot be read, or if a data set of BasicSR's own would garble its pixels.
    """
    paths = getattr(dataset, "paths", None)
    entry = paths[index] if isinstance(paths, list) else ()
    files = [str(file) for file in (entry.values() if isinstance(entry, dict) else [entry] if entry else [])]
    try:
        for file in files if is_own(type(dataset)) else ():
            _check_file(file)
        return dataset[index]
    except Exception as error:
        if not files:
            raise
        text = " ".join(str(error).split())[:300]
        raise ImageError(f"{where}, {' and '.join(files)}: {text}") from error


@functools.cache
def _check_file(file: str) -> None:
    """Look at the pixels of a file that may have more than 8 bits, once: of JPEGs and PNGs the header says."""
    if not os.path.isfile(file):
        return
    with open(file, "rb") as stream:
        head = stream.read(26)
    is_png = head.startswith(b"\x89PNG") and len(head) == 26
    if not (is_png and head[24] <= 8) and not head.startswith(b"\xff\xd8"):
        check_pixels(file, cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_UNCHANGED), num_bits=12)


def rng_state(cuda: bool = True) -> dict[str, Any]:
    """The global generators of Python, NumPy and torch, in values that `torch.load(weights_only=True)` reads."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if cuda and torch.cuda.is_available() else None,
    }


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
def kept_rng_state(cuda: bool = True) -> Iterator[None]:
    """What is drawn inside leaves the global generators as they were."""
    state = rng_state(cuda)
    try:
        yield
    finally:
        set_rng_state(state)


class PlacedSampler(Sampler[tuple[int, tuple[int, ...]]]):
    """The order of BasicSR's sampler, or of one with its `set_epoch`, which may begin its first epoch in the middle.

    Each index comes with the place that its image is drawn for: (the run's seed, epoch, rank, position).
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed = sampler, seed
        self.epoch = self.first_epoch = 0
        self.num_skipped = 0
        """Images of `first_epoch` that an interrupted run has had, on this rank."""

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        skipped = self.num_skipped if self.epoch == self.first_epoch else 0
        for position, index in enumerate(self.sampler):
            if position >= skipped:
                yield index, (self.seed, self.epoch, get_dist_info()[0], position)

    def set_epoch(self, epoch: int) -> None:
        """As BasicSR's, before each pass."""
        self.epoch = epoch
        self.sampler.set_epoch(epoch)


class PlacedDataset(Dataset[Any]):
    """A data set whose random numbers are those of an image's place, and which takes none of the run's own.

    The place is that in the sampler's order, never the image's index, which comes `dataset_enlarge_ratio` times in an
    epoch.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet: it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, placed: tuple[int, tuple[int, ...]]) -> Any:
        index, place = placed
        words = [int(word) for word in np.random.SeedSequence(place).generate_state(3)]
        with kept_rng_state(cuda=False):  # a worker cannot ask for the GPU's
            random.seed(words[0])
            np.random.seed(words[1])
            torch.default_generator.manual_seed(words[2])
            return read_item(self.dataset, int(index))


class PlacedData:
    """A run's training data and its place in them. BasicSR's loader is changed in place: see `PlacedDataset`."""

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.loader = loader
        self.sampler = PlacedSampler(loader.sampler, seed)
        self.num_images = len(self.sampler) * get_dist_info()[1]  # of an epoch
        self.num_batches = 0
        """Batches that the run was trained on since its first epoch began, those of an interrupted run among them."""
        # A loader lets nobody set these two, and BasicSR's may be of a class of its own: a new one would be another.
        object.__setattr__(loader, "dataset", PlacedDataset(loader.dataset))
        loader.batch_sampler.sampler = self.sampler  # type: ignore[union-attr]
        # Each pass draws a seed, by default from the global generator: a resumed run makes other passes.
        loader.generator = torch.Generator()
        loader.worker_init_fn = functools.partial(_start_worker, loader.worker_init_fn)

    @property
    def position(self) -> int:
        """Images of this epoch that were trained on, on all ranks."""
        epochs = self.sampler.epoch - self.sampler.first_epoch
        num_batches = self.num_batches - epochs * len(self.loader)
        return num_batches * (self.loader.batch_size or 1) * get_dist_info()[1]

    def begin(self, epoch: int, position: int) -> None:
        """Go on at an epoch of which `position` images were trained on."""
        self.sampler.first_epoch = self.sampler.epoch = epoch
        self.sampler.num_skipped = position // get_dist_info()[1]
        self.num_batches = self.sampler.num_skipped // (self.loader.batch_size or 1)


def _start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Leave signals that end a run to its main process, which tells its workers when it is done."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker_id)
