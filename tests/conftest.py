"""Fixtures of all test files."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from helpers import photograph_crops
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest_plugins = ["basicsr_fixtures"]

# BasicSR does not install on Python 3.13. What is left then is the core, and the verbs that do without BasicSR.
if find_spec("basicsr") is None:
    collect_ignore = [
        "basicsr_plugin",
        "benchmarks",
        "tools/demo",
        "tools/report",
        "tools/test_convert.py",
        "tools/test_prepare.py",
    ]

# The networks here are so small that threads wait for one another: two take five times as long as one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def crops() -> Tensor:
    """Twelve textured crops of free photographs, `(12, 3, 64, 64)`, float32 in [0, 1]."""
    return photograph_crops(64)


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two gloo processes brought back from `ranks.work`; started once, since a start takes seconds."""
    directory: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.work, args=(2, str(directory)), nprocs=2)
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="session")
def fake_cuda() -> None:
    """Tensors that only pretend to be on a GPU. PyTorch 2.5 wants a driver for them, too: the test is skipped then."""
    try:
        with FakeTensorMode(), torch.device("cuda"):
            torch.nn.Linear(1, 1)
    except RuntimeError as error:
        pytest.skip(f"no fake CUDA tensors: {str(error).splitlines()[0]}")


@pytest.fixture
def untouched_global_rng() -> Iterator[None]:
    """Fail the test if it draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
