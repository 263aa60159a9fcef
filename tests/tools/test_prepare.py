"""The verb `prepare`, through its command line."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
import yaml
from helpers import ctrl_c_as_in_a_terminal

from pcl_loss import cli
from pcl_loss.tools.prepare import prepare


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


def command(hr: Path, out: Path, *flags: Any) -> int:
    return cli.main(["prepare", "--hr", str(hr), "--out", str(out), "--jobs", "1", *map(str, flags)])


def lr_by_hand(hr: np.ndarray, scale: int) -> np.ndarray:
    from basicsr.utils.matlab_functions import imresize

    height, width = hr.shape[0] // scale * scale, hr.shape[1] // scale * scale
    lr = imresize(hr[:height, :width].astype(np.float32) / 255.0, 1 / scale)
    return np.round(lr.clip(0, 1) * 255.0).astype(np.uint8)


def stats(out: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_size) for path in out.rglob("*.png")}


def dataset(text: str, phase: str = "val") -> Any:
    from basicsr.data import build_dataset

    options = yaml.safe_load(text)["datasets"]["train"]
    return build_dataset({**options, "phase": phase, "scale": 4})


def test_lr_equals_imresize_and_hr_is_cropped_no_further_than_its_scale(hr: Path, tmp_path: Path) -> None:
    assert command(hr, tmp_path / "out", "--scale", 2, 3, 4) == 0
    for source in hr.iterdir():
        image = cv2.imread(str(source))
        for scale in (2, 3, 4):
            folder = tmp_path / f"out/X{scale}"
            height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
            np.testing.assert_array_equal(cv2.imread(str(folder / f"HR/{source.stem}.png")), image[:height, :width])
            lr = cv2.imread(str(folder / f"LR/{source.stem}.png"))
            np.testing.assert_array_equal(lr, lr_by_hand(image, scale))
    text = (tmp_path / "out/X4/meta_info.txt").read_text()
    assert text == "astronaut.png (100,88,3)\nchelsea.png (68,104,3)\nrocket.png (80,80,3)\n"


def test_sub_images_tile_the_image_row_by_row_up_to_its_edges(hr: Path, tmp_path: Path) -> None:
    scale = 4
    assert command(hr, tmp_path, "--scale", scale, "--crop", 48, "--step", 24) == 0
    folder = tmp_path / f"X{scale}"
    expected = set()
    for source in hr.iterdir():
        image = cv2.imread(str(source))
        lr = lr_by_hand(image, scale)
        tops, lefts = (
            [at for at in range(side * scale - 47) if at % 24 == 0 or at == side * scale - 48] for side in lr.shape[:2]
        )
        for number, (y, x) in enumerate(itertools.product(tops, lefts), 1):
            expected.add(f"{source.stem}_s{number:03d}.png")
            for part, whole, factor in (("HR", image, 1), ("LR", lr, scale)):
                made = cv2.imread(str(folder / part / f"{source.stem}_s{number:03d}.png"))
                top, left, size = (value // factor for value in (y, x, 48))
                np.testing.assert_array_equal(made, whole[top : top + size, left : left + size])
    assert {path.name for path in (folder / "HR").iterdir()} == expected
    assert {path.name for path in (folder / "LR").iterdir()} == expected


def test_the_printed_yaml_builds_a_dataset_of_the_pngs(
    hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a: 'b' #\"c\""
    assert command(hr, out, "--scale", 4, "--crop", 48, "--step", 24) == 0
    text = capsys.readouterr().out
    assert text == (out / "X4/datasets.yml").read_text()
    pairs = dataset(text)
    names = sorted(path.name for path in (out / "X4/HR").iterdir())
    for pair, name in zip([pairs[i] for i in range(len(pairs))], names, strict=True):
        assert Path(pair["gt_path"]).stem == Path(name).stem
        for key, part in (("gt", "HR"), ("lq", "LR")):
            image = (pair[key].numpy()[::-1].transpose(1, 2, 0) * 255).round().astype(np.uint8)
            np.testing.assert_array_equal(image, cv2.imread(str(out / "X4" / part / name)))


def test_yaml_takes_training_patches_no_larger_than_the_smallest_image(hr: Path, tmp_path: Path) -> None:
    pairs = dataset(prepare(hr, tmp_path / "out", 4, jobs=1)[0][4], phase="train")
    assert all(pairs[index]["gt"].shape == (3, 68, 68) for index in range(3))
    for path in hr.iterdir():
        cv2.imwrite(str(path), crop_of("coffee", 200, 200))
    text = prepare(hr, tmp_path / "out_large", 4, jobs=1)[0][4]
    assert yaml.safe_load(text)["datasets"]["train"]["gt_size"] == 192


def test_a_second_run_makes_what_is_missing_outdated_or_of_another_part_and_nothing_else(
    hr: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--scale", 4, "--crop", 48, "--step", 24)
    command(hr, out, *flags)
    before = stats(out)
    command(hr, out, *flags)
    assert stats(out) == before
    (out / "X4/HR/astronaut_s002.png").unlink()
    (out / "X4/LR/rocket_s001.png").write_bytes(b"")  # as a power cut can leave it
    command(hr, out, *flags)
    after = stats(out)
    again = {f"X4/{part}/{name}.png" for part in ("HR", "LR") for name in ("astronaut_s002", "rocket_s001")}
    assert {name for name in before if after[name] != before[name]} <= again
    assert [(name, size) for name, (_, size) in after.items()] == [(name, size) for name, (_, size) in before.items()]

    command(hr, out, "--scale", 4, "--crop", 48, "--step", 48)
    astronaut = cv2.imread(str(hr / "astronaut.png"))
    np.testing.assert_array_equal(cv2.imread(str(out / "X4/HR/astronaut_s002.png")), astronaut[:48, 40:88])
    cv2.imwrite(str(hr / "chelsea.png"), crop_of("coffee", 70, 107))
    later = time.time() + 5
    os.utime(hr / "chelsea.png", (later, later))
    command(hr, out, "--scale", 4)
    lr = cv2.imread(str(out / "X4/LR/chelsea.png"))
    np.testing.assert_array_equal(lr, lr_by_hand(crop_of("coffee", 70, 107), 4))


def test_unusable_images_are_named_and_skipped_and_the_status_says_so(
    hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (hr / "astronaut.png").read_bytes()
    (hr / "cut.png").write_bytes(whole[: len(whole) // 2])
    (hr / "notes.txt").write_text("no image, and no business of ours")
    cv2.imwrite(str(hr / "tiny.png"), crop_of("coffee", 20, 200))
    assert command(hr, tmp_path / "out", "--scale", 4) == 1
    err = capsys.readouterr().err
    assert re.findall(r"SKIPPED (\S+):", err) == ["cut.png", "tiny.png"]
    assert len(dataset((tmp_path / "out/X4/datasets.yml").read_text())) == 3
    made, skipped = prepare(hr, tmp_path / "out_120", 4, crop=120, jobs=1)
    assert "70x107 pixels, but at least 120x120" in skipped["chelsea.png"]
    assert made == {}


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("rocket.jpg", (), r"rocket\.bmp and .*rocket\.jpg would both become rocket\.png"),
        ("a b.png", (), "blank in its name"),
        ("a.png", ("--scale", 1), "scale must be from 2 to 8, got 1"),
        ("a.png", ("--crop", 50, "--step", 20), r"crop 50 is no multiple of scale 4.* take crop 48"),
    ],
)
def test_names_and_numbers_that_cannot_be_used_are_refused_before_anything_is_written(
    hr: Path, tmp_path: Path, name: str, flags: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(hr / name), crop_of("rocket", 64, 64))
    assert command(hr, tmp_path / "out", "--scale", 4, *flags) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_parallel_run_and_the_next_finishes_it(tmp_path: Path) -> None:
    many, out = tmp_path / "many", tmp_path / "out"
    many.mkdir()
    for number in range(16):
        cv2.imwrite(str(many / f"{number}.png"), np.roll(crop_of("coffee", 280, 320), number, axis=1))
    with ctrl_c_as_in_a_terminal():
        process = subprocess.Popen(
            [sys.executable, "-m", "pcl_loss", "prepare", "--hr", many, "--out", out, "--scale", "4", "--jobs", "2"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    limit = time.monotonic() + 300
    while len(list(out.glob("X4/LR/[!.]*"))) < 2:
        assert process.poll() is None, f"it ended early: {process.communicate()[1]}"
        assert time.monotonic() < limit, "no image within five minutes"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "pcl-loss prepare: interrupted"
    assert "Traceback" not in err
    assert 2 * 2 <= len(stats(out)) < 2 * 16
    assert len(dataset(prepare(many, out, 4, jobs=2)[0][4])) == 16
    for number in range(16):
        lr = cv2.imread(str(out / f"X4/LR/{number}.png"))
        np.testing.assert_array_equal(lr, lr_by_hand(cv2.imread(str(many / f"{number}.png")), 4))
