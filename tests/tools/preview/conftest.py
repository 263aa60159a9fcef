"""One image, its LR and an SR image of it."""

import pytest
import torch
from helpers import photograph, rand
from torch import Tensor


@pytest.fixture(scope="session")
def hr() -> Tensor:
    return photograph("chelsea")[None, :, 100:148, 120:168].double()


@pytest.fixture(scope="session")
def lq(hr: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(hr, 4)


@pytest.fixture(scope="session")
def sr(hr: Tensor) -> Tensor:
    return hr + 0.1 * (rand(*hr.shape) - 0.5)
