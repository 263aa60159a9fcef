import pytest

from pcl_loss import import_repair  # noqa: F401  (these files import basicsr)


@pytest.fixture(autouse=True)
def basicsr_knows_us(registered: None) -> None:
    pass
