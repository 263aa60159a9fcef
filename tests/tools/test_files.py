"""Image files are read as BasicSR reads them, and written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data

from pcl_loss.tools import _files as images


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    photograph = np.ascontiguousarray(skimage.data.chelsea()[:40, :50])
    images.write_image(tmp_path / "new" / "cat.png", photograph)
    np.testing.assert_array_equal(images.read_image(tmp_path / "new" / "cat.png"), photograph)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cat.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    images.write_file(path, b"old")

    def full(_source: object, _target: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        images.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_or_broken_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        images.read_image(tmp_path / "none.png")
    for name, content in (("empty.png", b""), ("text.png", b"no image")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is no image that can be read"):
            images.read_image(tmp_path / name)


def test_a_flat_image_keeps_its_colour_at_any_scale() -> None:
    flat = np.full((24, 36, 3), (10, 200, 255), np.uint8)
    for scale, shape in ((0.25, (6, 9, 3)), (2, (48, 72, 3))):
        resized = images.resize(flat, scale)
        assert resized.shape == shape
        assert (resized == flat[0, 0]).all()
