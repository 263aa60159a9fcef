"""An image that cannot be read as it is is refused by its file's name, before the run begins or when it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from basicsr.data import build_dataset
from torch.utils.data import DataLoader

from pcl_loss.basicsr_plugin.data_order import PlacedDataset
from pcl_loss.basicsr_plugin.images import ImageError, read_item

Options = dict[str, Any]
RAMP = np.add.outer(np.arange(64), np.arange(64)) / 126


@pytest.fixture
def options(small: Options, tmp_path: Path) -> Options:
    """`small` on two pairs of grey TIFFs, the second of which a test may replace."""
    for sub, step in (("gt", 1), ("lq", 4)):
        (tmp_path / sub).mkdir()
        for name in ("0.tif", "1.tif"):
            tifffile.imwrite(tmp_path / sub / name, (RAMP * 255).astype(np.uint8)[::step, ::step])
    folders = {"dataroot_gt": str(tmp_path / "gt"), "dataroot_lq": str(tmp_path / "lq")}
    small["datasets"]["train"] |= folders | {"gt_size": 64}
    return small


def training_set(options: Options) -> Any:
    return build_dataset(options["datasets"]["train"] | {"phase": "train", "scale": options["scale"]})


GARBLED = [
    (RAMP.astype(np.float32), "pixels of type float32 from 0 to 1"),
    ((RAMP * 1e5).astype(np.uint32), "pixels of type uint32 from 0 to 100000"),
    ((RAMP * 3000 - 1000).astype(np.int16), "pixels of type int16 from -1000 to 2000"),
    ((RAMP * 4095).astype(np.uint16), "16 bits, but its largest value is 4095 of 65535"),
]


@pytest.mark.parametrize(("pixels", "words"), GARBLED)
def test_pixels_that_basicsr_would_garble_are_refused(
    options: Options, refused: Callable[..., str], tmp_path: Path, pixels: Any, words: str
) -> None:
    for name in ("0.tif", "1.tif"):
        tifffile.imwrite(tmp_path / "gt" / name, pixels)
    assert refused(options).startswith(f"datasets.train, {tmp_path}/lq/")
    assert words in refused(options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_dark_images_and_sixteen_bits_that_are_used_pass(
    options: Options, parse: Callable[..., Options], tmp_path: Path, dtype: Any
) -> None:
    for name in ("0.tif", "1.tif"):
        tifffile.imwrite(tmp_path / "gt" / name, (RAMP * np.iinfo(dtype).max).astype(dtype))
    parse(options)


def read_with_a_worker(dataset: Any) -> None:
    list(DataLoader(PlacedDataset(dataset), sampler=[(1, (0, 0, 0, 1))], num_workers=1))


@pytest.mark.parametrize("read", [lambda dataset: read_item(dataset, 1), read_with_a_worker])
@pytest.mark.parametrize("content", [b"notes", cv2.imencode(".png", np.zeros((99, 64, 3), np.uint8))[1].tobytes()])
def test_an_image_that_cannot_be_read_later_is_named_in_one_line(
    options: Options, tmp_path: Path, read: Callable[[Any], None], content: bytes
) -> None:
    dataset = training_set(options)
    broken = sorted(Path(pair["gt_path"]) for pair in dataset.paths)[1]
    dataset.paths.sort(key=lambda pair: pair["gt_path"])
    broken.write_bytes(content)
    with pytest.raises(ImageError) as raised:
        read(dataset)
    assert str(raised.value).startswith("datasets.train")
    assert str(broken) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_data_sets_are_read_as_they_are() -> None:
    assert read_item([5, 6], 1) == 6
