"""The verb `prepare`, through its command line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import yaml
from helpers import ctrl_c_as_in_a_terminal

import pcl_loss.basicsr_plugin  # before anything that imports basicsr
from pcl_loss.tools import prepare as module
from pcl_loss.tools.prepare import add_arguments, prepare, run

COMMAND = """
import argparse, sys
from pcl_loss.tools.prepare import add_arguments, run
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
"""


def crop_of(name: str, height: int, width: int) -> np.ndarray:
    """A part of a free photograph, BGR."""
    return np.ascontiguousarray(getattr(skimage.data, name)()[60 : 60 + height, 120 : 120 + width, ::-1])


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    """Three images, no side a multiple of 4."""
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "astronaut.png"), crop_of("astronaut", 101, 90))
    cv2.imwrite(str(folder / "chelsea.png"), crop_of("chelsea", 70, 107))
    cv2.imwrite(str(folder / "rocket.bmp"), crop_of("rocket", 81, 82))
    return folder


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(16):
        cv2.imwrite(str(folder / f"{number}.png"), np.roll(crop_of("coffee", 280, 320), number, axis=1))
    return folder


def command(hr: Path, out: Path, *flags: Any) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["--hr", str(hr), "--out", str(out), "--jobs", "1", *map(str, flags)]))


def direct_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    from basicsr.utils.matlab_functions import imresize

    height, width = hr.shape[0] // scale * scale, hr.shape[1] // scale * scale
    lr = imresize(hr[:height, :width].astype(np.float32) / 255.0, 1 / scale)
    return np.round(lr.clip(0, 1) * 255.0).astype(np.uint8)


def files(out: Path) -> dict[str, bytes]:
    """Every file but LMDBs, which hold page numbers that depend on history."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".lmdb" not in str(path.relative_to(out))
    }


def dataset(text: str, scale: int, phase: str = "val") -> Any:
    from basicsr.data import build_dataset

    options = yaml.safe_load(text)["datasets"]["train"]
    return build_dataset({**options, "phase": phase, "scale": scale})


def bgr(tensor: Any) -> np.ndarray:
    return (tensor.numpy()[::-1].transpose(1, 2, 0) * 255).round().astype(np.uint8)


def test_lr_equals_imresize_and_hr_is_cropped_no_further_than_its_scale(hr: Path, tmp_path: Path) -> None:
    assert command(hr, tmp_path / "out", "--scale", 2, 3, 4) == 0
    for source in hr.iterdir():
        image = cv2.imread(str(source))
        for scale in (2, 3, 4):
            folder = tmp_path / f"out/X{scale}"
            made = cv2.imread(str(folder / f"HR/{source.stem}.png"))
            height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
            np.testing.assert_array_equal(made, image[:height, :width])
            lr = cv2.imread(str(folder / f"LR/{source.stem}.png"))
            np.testing.assert_array_equal(lr, direct_lr(image, scale))


def test_meta_info_names_each_pair_with_its_hr_shape(hr: Path, tmp_path: Path) -> None:
    command(hr, tmp_path / "out", "--scale", 4)
    text = (tmp_path / "out/X4/meta_info.txt").read_text()
    assert text == "astronaut.png (100,88,3)\nchelsea.png (68,104,3)\nrocket.png (80,80,3)\n"


def test_sub_images_tile_the_image_row_by_row_up_to_its_edges(hr: Path, tmp_path: Path) -> None:
    assert command(hr, tmp_path / "out", "--scale", 2, 4, "--crop", 48, "--step", 24) == 0
    for scale in (2, 4):
        folder = tmp_path / f"out/X{scale}"
        expected = set()
        for source in hr.iterdir():
            image = cv2.imread(str(source))
            lr = direct_lr(image, scale)
            height, width = lr.shape[0] * scale, lr.shape[1] * scale
            corners = [
                (y, x)
                for y in range(height - 47)
                for x in range(width - 47)
                if (y % 24 == 0 or y == height - 48) and (x % 24 == 0 or x == width - 48)
            ]
            for number, (y, x) in enumerate(corners, 1):
                name = f"{source.stem}_s{number:03d}.png"
                expected.add(name)
                np.testing.assert_array_equal(cv2.imread(str(folder / "HR" / name)), image[y : y + 48, x : x + 48])
                small = 48 // scale
                y, x = y // scale, x // scale
                np.testing.assert_array_equal(cv2.imread(str(folder / "LR" / name)), lr[y : y + small, x : x + small])
        assert {path.name for path in (folder / "HR").iterdir()} == expected
        assert {path.name for path in (folder / "LR").iterdir()} == expected


@pytest.mark.parametrize("flags", [(), ("--lmdb",), ("--crop", 48, "--step", 24, "--lmdb")])
def test_the_printed_yaml_builds_a_dataset_of_the_pngs(
    hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[Any, ...]
) -> None:
    out = tmp_path / "out"
    command(hr, out, "--scale", 4, *flags)
    text = capsys.readouterr().out
    assert text == (out / "X4/datasets.yml").read_text()
    pairs = dataset(text, 4)
    names = sorted(path.name for path in (out / "X4/HR").iterdir())
    assert len(pairs) == len(names)
    for index, name in enumerate(names):
        pair = pairs[index]
        assert Path(pair["gt_path"]).stem == Path(name).stem
        np.testing.assert_array_equal(bgr(pair["gt"]), cv2.imread(str(out / "X4/HR" / name)))
        np.testing.assert_array_equal(bgr(pair["lq"]), cv2.imread(str(out / "X4/LR" / name)))


def test_the_folders_alone_build_a_dataset_too(hr: Path, tmp_path: Path) -> None:
    done = prepare(hr, tmp_path / "out", 4, jobs=1)
    (tmp_path / "out/X4/HR/.tmp-1.png").write_bytes(b"left by a killed run")
    options = yaml.safe_load(done.yaml[4])
    del options["datasets"]["train"]["meta_info_file"]
    assert len(dataset(yaml.safe_dump(options), 4)) == 3


def test_yaml_takes_training_patches_no_larger_than_the_smallest_image(hr: Path, tmp_path: Path) -> None:
    done = prepare(hr, tmp_path / "out", [2, 4], jobs=1)
    sizes = {scale: yaml.safe_load(text)["datasets"]["train"]["gt_size"] for scale, text in done.yaml.items()}
    assert sizes == {2: 70, 4: 68}
    pairs = dataset(done.yaml[4], 4, phase="train")
    assert all(pairs[index]["gt"].shape == (3, 68, 68) for index in range(3))
    large = tmp_path / "large"
    large.mkdir()
    cv2.imwrite(str(large / "coffee.png"), crop_of("coffee", 200, 200))
    text = prepare(large, tmp_path / "out_large", 4, jobs=1).yaml[4]
    assert yaml.safe_load(text)["datasets"]["train"]["gt_size"] == 192


def test_yaml_holds_paths_with_any_character(hr: Path, tmp_path: Path) -> None:
    done = prepare(hr, tmp_path / "a: 'b' #\"c\"", 4, jobs=1)
    assert len(dataset(done.yaml[4], 4)) == 3


def test_an_interrupted_run_leaves_complete_files_and_goes_on(
    hr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(hr, tmp_path / "whole", "--scale", 4)
    out = tmp_path / "out"
    real, calls = os.replace, []

    def interrupt_the_fifth(*names: Any) -> None:
        calls.append(names)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(os, "replace", interrupt_the_fifth)
    assert command(hr, out, "--scale", 4) == 130
    assert "finishes the rest" in capsys.readouterr().err
    # The settings, a pair, and the HR image of the next.
    left = files(out)
    assert len(left) == 4
    assert all(files(tmp_path / "whole")[name] == content for name, content in left.items() if name.endswith(".png"))

    monkeypatch.setattr(os, "replace", real)
    assert command(hr, out, "--scale", 4) == 0
    assert "2 made, 1 kept" in capsys.readouterr().err
    assert files(out).keys() == files(tmp_path / "whole").keys()


def test_a_run_makes_what_is_missing_and_touches_nothing_else(hr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--scale", 2, 4, "--crop", 48, "--lmdb")
    command(hr, out, *flags)
    before = files(out)
    kept = {path: path.stat() for path in out.rglob("*.png")}
    (out / "X4/HR/astronaut_s002.png").unlink()
    (out / "X2/LR/rocket_s001.png").write_bytes(b"")  # as a power cut can leave it
    strays = [out / "X4/LR/.tmp-77.png", out / "X4/.tmp-77.lmdb"]
    strays[0].write_bytes(b"half an image")
    strays[1].mkdir()
    (strays[1] / "data.mdb").write_bytes(b"half a database")

    done = prepare(hr, out, [2, 4], crop=48, lmdb=True, jobs=1)
    assert (done.made, done.kept) == (2, 1)
    assert files(out) == before
    assert not any(path.exists() for path in strays)
    remade = [path for path, stat in kept.items() if path.stat().st_ino != stat.st_ino]
    assert {str(path.relative_to(out)) for path in remade} <= {"X4/HR/astronaut_s002.png", "X2/LR/rocket_s001.png"}
    assert len(dataset(done.yaml[4], 4)) == done.pairs[4]
    assert (prepare(hr, out, [2, 4], crop=48, lmdb=True, jobs=1)).made == 0


def test_a_finished_lmdb_is_kept_and_an_outdated_one_replaced(hr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(hr, out, "--scale", 4, "--lmdb")
    first = (out / "X4/HR.lmdb/data.mdb").stat().st_ino
    command(hr, out, "--scale", 4, "--lmdb")
    assert (out / "X4/HR.lmdb/data.mdb").stat().st_ino == first
    cv2.imwrite(str(hr / "coffee.png"), crop_of("coffee", 64, 64))
    command(hr, out, "--scale", 4, "--lmdb")
    pairs = dataset((out / "X4/datasets.yml").read_text(), 4)
    assert [pairs[index]["gt_path"] for index in range(len(pairs))] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert sorted(path.name for path in (out / "X4").iterdir()) == [
        *("HR", "HR.lmdb", "LR", "LR.lmdb", "datasets.yml", "meta_info.txt")
    ]


def test_an_hr_image_that_changed_is_made_again(hr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(hr, out, "--scale", 2, 4, "--lmdb")
    cv2.imwrite(str(hr / "chelsea.png"), crop_of("coffee", 70, 107))
    later = time.time() + 5
    os.utime(hr / "chelsea.png", (later, later))
    done = prepare(hr, out, [2, 4], lmdb=True, jobs=1)
    assert (done.made, done.kept) == (1, 2)
    for scale in (2, 4):
        lr = direct_lr(crop_of("coffee", 70, 107), scale)
        np.testing.assert_array_equal(cv2.imread(str(out / f"X{scale}/LR/chelsea.png")), lr)


def test_a_scale_added_later_changes_nothing_of_the_others(hr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(hr, out, "--scale", 4)
    before = files(out)
    assert command(hr, out, "--scale", 3) == 0
    assert {name: content for name, content in files(out).items() if not name.startswith("X3")} == before


def test_unusable_images_are_named_and_skipped_and_the_status_says_so(
    hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (hr / "astronaut.png").read_bytes()
    (hr / "cut.png").write_bytes(whole[: len(whole) // 2])
    (hr / "empty.jpg").write_bytes(b"")
    cv2.imwrite(str(hr / "tiny.png"), crop_of("coffee", 20, 200))
    glass = np.dstack([crop_of("coffee", 64, 64), np.full((64, 64), 200, np.uint8)])
    cv2.imwrite(str(hr / "glass.png"), glass)
    (hr / "notes.txt").write_text("no image, and no business of ours")
    out = tmp_path / "out"
    for _ in range(2):
        assert command(hr, out, "--scale", 4, "--lmdb") == 1
        err = capsys.readouterr().err
        assert "SKIPPED cut.png: cannot be decoded" in err
        assert "SKIPPED empty.jpg: cannot be decoded" in err
        assert "SKIPPED tiny.png: is too small: 20x200 pixels, but at least 32x32" in err
        assert "SKIPPED glass.png: is transparent" in err
        assert "4 skipped" in err
        assert "notes" not in err
        assert len(dataset((out / "X4/datasets.yml").read_text(), 4)) == 3
    (hr / "cut.png").write_bytes(whole)
    for name in ("empty.jpg", "tiny.png", "glass.png"):
        (hr / name).unlink()
    assert command(hr, out, "--scale", 4, "--lmdb") == 0
    assert len(dataset((out / "X4/datasets.yml").read_text(), 4)) == 4


def test_an_image_smaller_than_the_sub_images_is_skipped(hr: Path, tmp_path: Path) -> None:
    done = prepare(hr, tmp_path / "out", 4, crop=80, jobs=1)
    assert list(done.skipped) == ["chelsea.png"]
    assert "70x107 pixels, but at least 80x80" in done.skipped["chelsea.png"]
    assert done.pairs[4] > 0


def test_no_usable_image_gives_no_yaml_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hr").mkdir()
    (tmp_path / "hr/broken.png").write_bytes(b"broken")
    assert command(tmp_path / "hr", tmp_path / "out", "--scale", 4) == 1
    assert capsys.readouterr().out == ""


def test_other_pixel_formats_become_8_bit_colour_and_are_named(tmp_path: Path) -> None:
    hr = tmp_path / "hr"
    hr.mkdir()
    colour = crop_of("coffee", 40, 44)
    grey = colour[..., 1]
    deep = colour.astype(np.uint16) * 257 - 100 * (colour > 0).astype(np.uint16)  # rounded, not cut off
    cv2.imwrite(str(hr / "deep.png"), deep)
    cv2.imwrite(str(hr / "deep_grey.tif"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(hr / "grey.png"), grey)
    cv2.imwrite(str(hr / "opaque.png"), np.dstack([colour, np.full((40, 44), 255, np.uint8)]))
    cv2.imwrite(str(hr / "plain.png"), colour)
    done = prepare(hr, tmp_path / "out", 2, jobs=1)
    assert done.skipped == {}
    assert done.converted == {
        "deep.png": "16 bits to 8",
        "deep_grey.tif": "grey to colour, 16 bits to 8",
        "grey.png": "grey to colour",
        "opaque.png": "opaque alpha channel dropped",
    }
    for name, expected in {"deep": colour, "deep_grey": grey, "grey": grey, "opaque": colour, "plain": colour}.items():
        made = cv2.imread(str(tmp_path / f"out/X2/HR/{name}.png"), cv2.IMREAD_UNCHANGED)
        expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=2)
        np.testing.assert_array_equal(made, expected)


def test_two_images_of_one_name_are_refused_by_both_names(hr: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(hr / "rocket.jpg"), crop_of("rocket", 64, 64))
    with pytest.raises(ValueError, match=r"rocket\.bmp and .*rocket\.jpg would both become rocket\.png"):
        command(hr, tmp_path / "out", "--scale", 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a b.png", "a\u00a0b.png"])
def test_a_name_that_breaks_meta_info_is_refused(hr: Path, tmp_path: Path, name: str) -> None:
    cv2.imwrite(str(hr / name), crop_of("rocket", 64, 64))
    with pytest.raises(ValueError, match="blank in its name"):
        command(hr, tmp_path / "out", "--scale", 4)


@pytest.mark.parametrize("name", ["a.b.png", "ä.png"])
def test_a_name_that_breaks_lmdb_keys_is_refused_for_lmdb_alone(hr: Path, tmp_path: Path, name: str) -> None:
    cv2.imwrite(str(hr / name), crop_of("rocket", 64, 64))
    with pytest.raises(ValueError, match="LMDB keys"):
        command(hr, tmp_path / "out", "--scale", 4, "--lmdb")
    done = prepare(hr, tmp_path / "out", 4, jobs=1)
    assert len(dataset(done.yaml[4], 4)) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--crop", 60), "crop None instead of 60"),
        (("--crop", 48, "--step", 48), "step None instead of 48"),
    ],
)
def test_other_settings_in_one_out_folder_are_refused(
    hr: Path, tmp_path: Path, flags: tuple[Any, ...], message: str
) -> None:
    out = tmp_path / "out"
    command(hr, out, "--scale", 2)
    before = files(out)
    with pytest.raises(ValueError, match=message) as caught:
        command(hr, out, "--scale", 2, *flags)
    assert "take another out folder" in str(caught.value)
    assert files(out) == before


def test_other_images_in_one_out_folder_are_refused(hr: Path, tmp_path: Path) -> None:
    command(hr, tmp_path / "out", "--scale", 2)
    moved = hr.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="only the HR folder has moved") as caught:
        command(moved, tmp_path / "out", "--scale", 2)
    record = tmp_path / "out/prepare.json"
    assert str(record) in str(caught.value)
    record.write_text(json.dumps({**json.loads(record.read_text()), "hr": str(moved)}))
    assert prepare(moved, tmp_path / "out", 2, jobs=1).kept == 3


def test_a_folder_of_someone_elses_is_refused(hr: Path, tmp_path: Path) -> None:
    (tmp_path / "out/X4/HR").mkdir(parents=True)
    with pytest.raises(ValueError, match="was not made by prepare"):
        command(hr, tmp_path / "out", "--scale", 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--scale", 1), "scale must be from 2 to 8, got 1"),
        (("--scale", 4, "--crop", 50, "--step", 20), r"crop 50 is no multiple of scale 4.* take crop 48"),
        (("--scale", 4, "--crop", 60), r"step 30 is no multiple of scale 4.* take step 28"),
        (("--scale", 4, "--crop", 16), "crop must be at least 32, got 16"),
        (("--scale", 4, "--crop", 48, "--step", 0), "step must be at least 1, got 0"),
        (("--scale", 4, "--step", 24), "without crop"),
        (("--scale", 4, "--jobs", 0), "jobs must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(hr: Path, tmp_path: Path, flags: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(hr, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_missing_or_empty_hr_folder_is_named(hr: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere, does not exist"):
        command(tmp_path / "nowhere", tmp_path / "out", "--scale", 4)
    with pytest.raises(NotADirectoryError, match="is a file"):
        command(hr / "rocket.bmp", tmp_path / "out", "--scale", 4)
    with pytest.raises(FileNotFoundError, match="holds no image"):
        command(tmp_path, tmp_path / "out", "--scale", 4)


def test_hr_images_are_copied_where_the_file_system_knows_no_hard_links(
    hr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(hr, tmp_path / "linked", "--scale", 2, 4, "--crop", 48)
    assert os.path.samefile(tmp_path / "linked/X2/HR/rocket_s001.png", tmp_path / "linked/X4/HR/rocket_s001.png")

    def refuse(*names: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    command(hr, tmp_path / "copied", "--scale", 2, 4, "--crop", 48)
    linked, copied = files(tmp_path / "linked"), files(tmp_path / "copied")
    assert linked.keys() == copied.keys()
    assert all(linked[name] == copied[name] for name in linked if name.endswith(".png"))


class PoolInThisProcess:
    """A pool that does each image when its outcome is asked for."""

    done: list[str]
    leftovers: list[bool]

    def __init__(self, jobs: int, **kwargs: Any) -> None:
        assert jobs == 2
        type(self).done, type(self).leftovers = [], []

    def map(self, function: Any, sources: list[Path]) -> Iterator[Any]:
        for source in sources:
            self.done.append(source.name)
            yield function(source)

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        assert wait
        self.leftovers.append(not cancel_futures)


def test_a_pool_gets_every_image_once(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProcessPoolExecutor", PoolInThisProcess)
    done = prepare(many, tmp_path / "out", 4, jobs=2)
    assert (done.made, done.pairs) == (16, {4: 16})
    assert PoolInThisProcess.done == sorted(path.name for path in many.iterdir())


def test_an_interrupted_pool_does_none_of_the_images_in_line(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.prepare_image, []

    def interrupt_the_third(source: Path, cuts: Any) -> Any:
        calls.append(source)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(source, cuts)

    monkeypatch.setattr(module, "prepare_image", interrupt_the_third)
    monkeypatch.setattr(module, "ProcessPoolExecutor", PoolInThisProcess)
    assert command(many, tmp_path / "out", "--scale", 4, "--jobs", 2) == 130
    assert len(PoolInThisProcess.done) == 3
    assert PoolInThisProcess.leftovers == [False]


def test_a_dead_worker_is_no_riddle(hr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BrokenPool:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def map(self, *args: Any) -> None:
            raise module.BrokenProcessPool

        def shutdown(self, **kwargs: Any) -> None:
            pass

    monkeypatch.setattr(module, "ProcessPoolExecutor", BrokenPool)
    with pytest.raises(ChildProcessError, match="fewer jobs"):
        command(hr, tmp_path / "out", "--scale", 4, "--jobs", 2)


def start(hr: Path, out: Path, *flags: Any) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would start it."""
    with ctrl_c_as_in_a_terminal():
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--hr", str(hr), "--out", str(out), *map(str, flags)],
            env={**os.environ, "PYTHONPATH": str(Path(pcl_loss.__file__).parents[1])},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


def wait_for_images(out: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while len(list(out.glob("X4/LR/[!.]*"))) < 2:
        assert process.poll() is None, f"it ended early: {process.communicate()[1]}"
        assert time.monotonic() < limit, "no image within two minutes"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_parallel_run_that_is_killed_is_finished_by_the_next(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = start(many, out, "--scale", 4, "--lmdb", "--jobs", 2)
    wait_for_images(out, killed)
    killed.kill()
    # The pipe of standard error closes when its workers have ended too.
    killed.communicate(timeout=30)
    assert not (out / "X4/meta_info.txt").exists()

    done = prepare(many, out, 4, lmdb=True, jobs=1)
    assert 0 < done.made < 16
    assert done.made + done.kept == 16
    prepare(many, tmp_path / "whole", 4, jobs=1)
    whole = files(tmp_path / "whole")
    pngs = {name: content for name, content in files(out).items() if name.endswith(".png")}
    assert pngs == {name: content for name, content in whole.items() if name.endswith(".png")}
    assert len(dataset(done.yaml[4], 4)) == 16


@pytest.mark.slow
def test_ctrl_c_ends_a_parallel_run_without_a_trace(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted = start(many, out, "--scale", 4, "--jobs", 2)
    wait_for_images(out, interrupted)
    os.killpg(interrupted.pid, signal.SIGINT)
    _, err = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, err
    assert "finishes the rest" in err
    assert "Traceback" not in err
    assert not list(out.rglob(".tmp-*"))
    done = prepare(many, out, 4, jobs=1)
    assert 0 < done.made < 16
