"""Image files are read as BasicSR reads them, and written whole or not at all."""

import os
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


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    synced: list[bytes] = []

    def sync(handle: int) -> None:
        assert not path.exists()
        (other,) = tmp_path.iterdir()
        assert other.stat().st_ino == os.fstat(handle).st_ino
        synced.append(other.read_bytes())

    monkeypatch.setattr(os, "fsync", sync)
    images.write_file(path, b"new")
    assert synced == [path.read_bytes()] == [b"new"]


def test_an_image_does_not_wait_for_the_disk_unless_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    images.write_image(tmp_path / "cat.png", np.zeros((4, 4, 3), np.uint8))
    assert not synced
    images.write_image(tmp_path / "cat.png", np.zeros((4, 4, 3), np.uint8), sync=True)
    assert len(synced) == 1


def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "links" / "link"
    link.parent.mkdir()
    link.symlink_to(path)
    path.write_bytes(b"old")
    path.chmod(0o640)
    images.write_file(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_missing_or_broken_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        images.read_image(tmp_path / "none.png")
    for name, content in (("empty.png", b""), ("text.png", b"no image")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is no image that can be read"):
            images.read_image(tmp_path / name)


@pytest.mark.usefixtures("registered")
def test_a_flat_image_keeps_its_colour_at_any_scale() -> None:
    flat = np.full((24, 36, 3), (10, 200, 255), np.uint8)
    for scale, shape in ((0.25, (6, 9, 3)), (2, (48, 72, 3))):
        resized = images.resize(flat, scale)
        assert resized.shape == shape
        assert (resized == flat[0, 0]).all()
