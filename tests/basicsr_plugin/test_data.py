"""A patch depends on its place in the run alone, and an image that cannot be read is named."""

import importlib.util
import pickle
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from basicsr.data import build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader, Dataset

from pcl_loss.basicsr_plugin.data import (
    ImageError,
    PlacedData,
    PlacedDataset,
    PlacedSampler,
    read_item,
    rng_state,
    set_rng_state,
)


class Draws(Dataset[Any]):
    """What an image draws, from every generator, and its index."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> torch.Tensor:
        assert type(index) is int
        values = [index, random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor(values, dtype=torch.float64)


def data_of(num_images: int, ratio: int = 1, seed: int = 3, workers: int = 0, batch: int = 2) -> PlacedData:
    sampler = EnlargedSampler(Draws(num_images), 1, 0, ratio)
    loader: Any = DataLoader(Draws(num_images), batch, sampler=sampler, num_workers=workers, drop_last=True)
    return PlacedData(loader, seed)


def draws(data: PlacedData, epochs: range) -> torch.Tensor:
    """One row per image, in the order of training."""
    rows = []
    for epoch in epochs:
        data.sampler.set_epoch(epoch)
        for batch in data.loader:
            rows.append(batch)
            data.num_batches += 1
    return torch.cat(rows)


@pytest.mark.parametrize(("num_images", "ratio", "epochs"), [(8, 1, 22), (4, 1000 // 15, 1)])
def test_every_place_has_numbers_of_its_own(num_images: int, ratio: int, epochs: int) -> None:
    rows = draws(data_of(num_images, ratio), range(epochs))
    assert len(rows) == num_images * ratio * epochs
    for column in (1, 2, 3):
        assert len(set(rows[:, column].tolist())) == len(rows)


def test_workers_change_nothing_and_a_seed_everything() -> None:
    rows = draws(data_of(9), range(3))
    assert torch.equal(rows, draws(data_of(9, workers=2), range(3)))
    assert not set(rows[:, 1].tolist()) & set(draws(data_of(9, seed=4), range(3))[:, 1].tolist())


def test_the_order_is_basicsrs() -> None:
    for rank in (0, 1):
        theirs = EnlargedSampler(Draws(5), 2, rank, 3)
        ours = PlacedSampler(EnlargedSampler(Draws(5), 2, rank, 3), 3)
        for epoch in (0, 1):
            for sampler in (theirs, ours):
                sampler.set_epoch(epoch)
            assert [index for index, _ in ours] == list(theirs)


@pytest.mark.parametrize("num_batches", [0, 3, 4, 6])
def test_data_that_begin_at_a_place_go_on_with_what_was_left(num_batches: int) -> None:
    """Nine images, four full batches an epoch."""
    whole = data_of(9)
    rows = draws(whole, range(2))
    stopped = data_of(9)
    epoch = min(num_batches // 4, 1)
    stopped.sampler.set_epoch(epoch)
    stopped.num_batches = num_batches
    resumed = data_of(9)
    resumed.begin(epoch, stopped.position)
    assert torch.equal(draws(resumed, range(epoch, 3)), torch.cat([rows, draws(whole, range(2, 3))])[2 * num_batches :])


def test_the_runs_own_generators_are_left_alone_and_come_back_through_a_file(tmp_path: Path) -> None:
    torch.save(rng_state(), tmp_path / "state")
    draws(data_of(4), range(2))
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    set_rng_state(torch.load(tmp_path / "state", weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_data_sets_reach_a_spawned_worker() -> None:
    placed = next(iter(data_of(4).sampler))
    dataset = pickle.loads(pickle.dumps(PlacedDataset(Draws(4))))
    assert torch.equal(dataset[placed], PlacedDataset(Draws(4))[placed])
    assert dataset.num_images == 4


def read_with_a_worker(dataset: Any) -> None:
    list(DataLoader(PlacedDataset(dataset), sampler=[(1, (0, 0, 0, 1))], num_workers=1))


@pytest.mark.parametrize("read", [lambda dataset: read_item(dataset, 1), read_with_a_worker])
def test_an_image_that_cannot_be_read_is_named_in_one_line(
    read: Callable[[Any], None], baseline: dict[str, Any], paired_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(paired_data, tmp_path / "pairs"))
    folders = {"dataroot_gt": str(folder / "gt"), "dataroot_lq": str(folder / "lq")}
    dataset = build_dataset(baseline["datasets"]["train"] | folders | {"phase": "train", "scale": 4})
    broken = dataset.paths[1]["gt_path"]
    Path(broken).write_bytes(b"notes")
    with pytest.raises(ImageError, match=rf"^datasets\.train.*{broken}") as raised:
        read(dataset)
    assert "\n" not in str(raised.value)
    assert read_item([5, 6], 1) == 6  # another kind of data set is read as it is


def test_it_is_imported_where_a_signal_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(signal, "SIGHUP")
    spec: Any = importlib.util.find_spec("pcl_loss.basicsr_plugin.data")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    assert {number.name for number in module.STOP_SIGNALS} == {"SIGTERM", "SIGINT"}


RAMP = np.add.outer(np.arange(64), np.arange(64)) / 126


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (RAMP.astype(np.float32), "pixels of type float32 from 0 to 1"),
        ((RAMP * 3000 - 1000).astype(np.int16), "pixels of type int16 from -1000 to 2000"),
        ((RAMP * 4095).astype(np.uint16), "16 bits, but its largest value is 4095 of 65535"),
        ((RAMP * 65535).astype(np.uint16), None),
        ((RAMP * 20).astype(np.uint8), None),
    ],
)
def test_pixels_that_basicsr_would_garble_are_refused(
    small: Any, tmp_path: Path, pixels: Any, words: str | None
) -> None:
    for sub, step in (("gt", 1), ("lq", 4)):
        (tmp_path / sub).mkdir()
        tifffile.imwrite(tmp_path / sub / "0.tif", (pixels if sub == "gt" else np.uint8(RAMP))[::step, ::step])
    folders = {"dataroot_gt": str(tmp_path / "gt"), "dataroot_lq": str(tmp_path / "lq"), "gt_size": 64}
    dataset = build_dataset(small["datasets"]["train"] | folders | {"phase": "train", "scale": small["scale"]})
    if words is None:
        read_item(dataset, 0)
    else:
        with pytest.raises(ImageError, match=f"^datasets.train, .*/0.tif.*{words}"):
            read_item(dataset, 0)
