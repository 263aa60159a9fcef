"""A codebase of PyTorch 0.4 gets the data loader and the schedulers that it was written for."""

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, default_collate

from pcl_loss.import_repair import old_torch

OLD_LOADER = "from torch._C import _update_worker_pids\n\nclass MSDataLoader:\n    pass\n"


class Images(Dataset[Any]):
    """Item and scale, as the data sets of RCAN's kind keep the scale."""

    def __init__(self, train: bool) -> None:
        self.train, self.scale = train, 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, self.scale

    def set_scale(self, scale: int) -> None:
        self.scale = scale


@pytest.mark.parametrize("workers", [0, 2])
def test_every_item_comes_once_in_a_batch_of_one_scale_whose_index_is_at_its_end(workers: int) -> None:
    random.seed(0)
    torch.manual_seed(0)
    args, keywords = SimpleNamespace(n_threads=workers, scale=[2, 3, 4]), {"batch_size": 2, "shuffle": True}
    keywords["collate_fn"] = default_collate
    batches, tested = (list(old_torch.MSDataLoader(args, Images(train), **keywords)) for train in (True, False))
    assert {index for _, _, index in tested} == {0}
    assert sorted(int(item) for items, _, _ in batches for item in items) == list(range(40))
    for items, scales, index in batches:
        assert len(items) == 2
        assert scales.tolist() == [index, index]
    assert {index for _, _, index in batches} == {0, 1, 2}


@pytest.mark.parametrize(
    ("source", "missing"),
    [(OLD_LOADER, "numpy"), ("from torch._C import _update_worker_pids\n", "torch._C")],
)
def test_another_data_loader_or_another_failure_is_left_alone(tmp_path: Path, source: str, missing: str | None) -> None:
    (tmp_path / "dataloader.py").write_text(source)
    found: Any = SimpleNamespace(__file__=str(tmp_path / "dataloader.py"))
    assert not old_torch.replace_data_loader(found, ImportError("gone", name=missing))
    assert not hasattr(found, "MSDataLoader")


TRAINING = """
import torch
from torch.optim import lr_scheduler
from pcl_loss import run
run.prepare()
import dataloader

def train(make, epochs, state=None, resumed=0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=8.0)
    scheduler = make(optimizer)
    if state:
        optimizer.load_state_dict(state)
        for _ in range(resumed):
            scheduler.step()
    for _ in range(epochs):
        scheduler.step()
        print(scheduler.last_epoch, scheduler.get_lr()[0], optimizer.param_groups[0]["lr"])
        optimizer.step()
    return optimizer.state_dict()

for make in (
    lambda optimizer: lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5),
    lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones=[1, 4], gamma=0.5),
):
    train(make, 2, train(make, 3), 3)
"""


def test_a_schedule_begins_with_its_first_rate_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    (tmp_path / "dataloader.py").write_text(OLD_LOADER)
    (tmp_path / "training.py").write_text(TRAINING)
    done = subprocess.run([sys.executable, "training.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [[float(number) for number in line.split()] for line in done.stdout.splitlines()]
    every_two, at_one_and_four = [8, 8, 4, 4, 2], [8, 4, 4, 4, 2]
    assert found == [[epoch, rate, rate] for rates in (every_two, at_one_and_four) for epoch, rate in enumerate(rates)]
    assert "Warning" not in done.stderr
