"""A patch depends on its place in the run alone."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from basicsr_fixtures import Options
from torch.utils.data import DataLoader, Dataset

from pcl_loss.basicsr_plugin import data_order
from pcl_loss.basicsr_plugin.data_order import PlacedDataset, PlacedSampler


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


def sampler_of(num_images: int, ratio: int = 1, rank: int = 0, world_size: int = 1, seed: int = 3) -> PlacedSampler:
    sampler = PlacedSampler(Draws(num_images), world_size, rank, ratio)
    sampler.manual_seed = seed
    return sampler


def draws(sampler: PlacedSampler, epochs: int, workers: int = 0) -> torch.Tensor:
    """One row per image, in the order of training."""
    loader = DataLoader(
        PlacedDataset(sampler.dataset),
        2,
        sampler=sampler,
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=None,
    )
    rows = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        rows += list(loader)
    return torch.cat(rows)


@pytest.mark.parametrize(("num_images", "ratio", "epochs"), [(9, 1, 22), (3, 1000 // 15, 1)])
def test_every_place_has_numbers_of_its_own(num_images: int, ratio: int, epochs: int) -> None:
    rows = draws(sampler_of(num_images, ratio), epochs)
    assert len(rows) == num_images * ratio * epochs
    for column in (1, 2, 3):
        assert len(set(rows[:, column].tolist())) == len(rows)


def test_workers_change_nothing() -> None:
    assert torch.equal(draws(sampler_of(9), 3), draws(sampler_of(9), 3, workers=2))


def test_ranks_and_seeds_draw_other_numbers() -> None:
    runs = [
        draws(sampler_of(8, rank=rank, world_size=2, seed=seed), 1)[:, 1].tolist() for rank in (0, 1) for seed in (3, 4)
    ]
    assert len({value for run in runs for value in run}) == sum(len(run) for run in runs)


def test_the_order_is_basicsrs() -> None:
    from basicsr.data.data_sampler import EnlargedSampler

    for rank in (0, 1):
        theirs = EnlargedSampler(Draws(5), 2, rank, 3)
        ours = PlacedSampler(Draws(5), 2, rank, 3)
        for epoch in (0, 1):
            for sampler in (theirs, ours):
                sampler.set_epoch(epoch)
            assert list(ours) == list(theirs)


def test_a_sampler_begins_in_the_middle_of_its_first_epoch_alone() -> None:
    whole = draws(sampler_of(8), 2)
    sampler = sampler_of(8)
    data_order.skip(sampler, 0, 6)
    assert torch.equal(draws(sampler, 2), whole[6:])


def test_the_runs_own_generators_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    sampler = sampler_of(4)
    dataset = PlacedDataset(sampler.dataset)
    for index in sampler:
        dataset[index]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_indices_and_data_sets_reach_a_spawned_worker() -> None:
    dataset, index = pickle.loads(pickle.dumps((PlacedDataset(Draws(4)), next(iter(sampler_of(4))))))
    assert torch.equal(dataset[index], PlacedDataset(Draws(4))[next(iter(sampler_of(4)))])
    assert dataset.num_images == 4


def test_generators_come_back_through_a_file(tmp_path: Any) -> None:
    torch.save(data_order.rng_state(), tmp_path / "state")
    expected = random.random(), np.random.rand(), torch.rand(3)
    data_order.set_rng_state(torch.load(tmp_path / "state", weights_only=True))
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


def test_a_mere_register_leaves_basicsrs_data_alone(small: Options) -> None:
    import basicsr.train
    from basicsr.data import build_dataset
    from basicsr.data.data_sampler import EnlargedSampler

    with data_order.placed_data(basicsr.train):
        assert basicsr.train.EnlargedSampler is PlacedSampler
    assert basicsr.train.EnlargedSampler is EnlargedSampler
    assert basicsr.train.build_dataset is build_dataset
