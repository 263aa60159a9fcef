from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import yaml

from pcl_loss.tools import demo
from pcl_loss.tools._files import read_image, resize
from pcl_loss.tools.demo import data as demo_data
from pcl_loss.tools.demo import results as demo_results
from pcl_loss.tools.demo import runs as demo_runs

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
TINY = demo_runs.DemoSettings(
    warmup_iters=2, iters=3, seed=5, num_feat=4, num_block=1, num_feat_d=4, gt_size=32, batch_size=2
)

LINE = (
    "2026-11-22 19:31:45,120 INFO: [demo_..][epoch:  0, iter:   1,200, lr:(1.000e-04,1.000e-04,)] "
    "[eta: 0:00:10, time (data): 0.050 (0.001)] l_pix: 2.1000e-02 l_pcl: 5.0000e-03 pos_sim: 6.1000e-01 "
    "neg_sim: 4.0000e-01 margin: -2.1000e-01 l_d: nan \n"
)


# --- data ---


def mask(region: demo_data.Region) -> np.ndarray:
    photo = getattr(skimage.data, region.photo)()
    covered = np.zeros(photo.shape[:2], bool)
    assert region.top + region.height <= photo.shape[0]
    assert region.left + region.width <= photo.shape[1]
    covered[region.top : region.top + region.height, region.left : region.left + region.width] = True
    return covered


def test_no_pixel_is_in_two_test_crops_or_in_both_training_and_test() -> None:
    seen = {photo: np.zeros(getattr(skimage.data, photo)().shape[:2], int) for photo in PHOTOS}
    for region in demo_data.TRAIN_REGIONS:
        seen[region.photo] |= mask(region)
    for region in demo_data.TEST_REGIONS:
        seen[region.photo] += mask(region)
    assert all(count.max() == 1 for count in seen.values())
    assert all((count == 1).mean() > 0.6 for count in seen.values()), "little of the photographs is left unused"


def test_a_training_patch_can_lie_anywhere_in_the_training_part() -> None:
    size = demo_runs.DemoSettings().gt_size
    for photo, height, width in (("astronaut", 312, 512), ("chelsea", 300, 248), ("coffee", 200, 600)):
        regions = [region for region in demo_data.TRAIN_REGIONS if region.photo == photo]
        for length, starts in ((height, {r.top for r in regions}), (width, {r.left for r in regions})):
            positions = {start + offset for start in starts for offset in range(demo_data.TILE - size + 1)}
            assert positions == set(range(length - size + 1))


def test_the_rocket_is_for_testing_alone() -> None:
    assert {region.photo for region in demo_data.TRAIN_REGIONS} == {"astronaut", "chelsea", "coffee"}
    assert {region.photo for region in demo_data.TEST_REGIONS} == {"astronaut", "chelsea", "coffee", "rocket"}
    assert len(demo_data.TEST_REGIONS) >= 8


def test_lr_is_a_quarter_of_hr_and_made_from_it_alone(tmp_path: Path) -> None:
    for kind, regions in (("train", demo_data.TRAIN_REGIONS), ("test", demo_data.TEST_REGIONS)):
        folder = tmp_path / kind
        demo_data.write_pairs(folder, regions)
        names = sorted(path.name for path in (folder / "HR").iterdir())
        assert names == sorted(path.name for path in (folder / "LR").iterdir())
        assert names == sorted(f"{region.name}.png" for region in regions)
        for region in regions:
            hr, lr = (read_image(folder / size / f"{region.name}.png") for size in ("HR", "LR"))
            photo = getattr(skimage.data, region.photo)()
            cut = photo[region.top : region.top + region.height, region.left : region.left + region.width, ::-1]
            np.testing.assert_array_equal(hr, cut)
            assert hr.shape == (4 * lr.shape[0], 4 * lr.shape[1], 3)
            np.testing.assert_array_equal(lr, resize(hr, 1 / 4))


# --- options ---


def test_the_two_yamls_differ_in_pcl_alone(tmp_path: Path) -> None:
    demo_runs.write_options(tmp_path, demo_runs.make_options(demo_runs.DemoSettings()))
    l1, pcl = (yaml.safe_load((tmp_path / f"{name}.yml").read_text()) for name in (demo_runs.L1, demo_runs.PCL))
    assert (l1.pop("name"), pcl.pop("name")) == ("demo_l1", "demo_pcl")
    assert (l1.pop("model_type"), pcl.pop("model_type")) == ("SRModel", "PCLModel")
    assert pcl.pop("network_d") == {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 32}
    assert pcl["train"].pop("pcl_opt") == {"type": "PCLLoss", "loss_weight": 1.0}
    assert pcl == l1


def test_a_yaml_says_what_the_run_does(tmp_path: Path) -> None:
    settings = demo_runs.DemoSettings(warmup_iters=11, iters=7, seed=3)
    options = demo_runs.make_options(settings)
    demo_runs.write_options(tmp_path, options)
    for name, option in options.items():
        text = (tmp_path / f"{name}.yml").read_text()
        assert yaml.safe_load(text) == option
        assert "&id" not in text, "a reader of the YAML cannot be expected to know anchors"
    assert options[demo_runs.WARMUP]["train"]["total_iter"] == 11
    assert options[demo_runs.L1]["train"]["total_iter"] == 7
    weights = "experiments/demo_warmup/models/net_g_latest.pth"
    assert options[demo_runs.L1]["path"]["pretrain_network_g"] == weights
    assert options[demo_runs.WARMUP]["path"]["pretrain_network_g"] is None
    assert options[demo_runs.L1]["manual_seed"] != options[demo_runs.WARMUP]["manual_seed"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("iters", 0, "iters must be at least 1, got 0"),
        ("warmup_iters", -5, "warmup_iters must be at least 1, got -5"),
        ("seed", -1, "seed must be from 0"),
        ("gt_size", 98, "gt_size must be a multiple of 4, got 98"),
        ("gt_size", 164, "gt_size must be from 32 to 160, got 164"),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo_runs.DemoSettings(**{name: value})


# --- runs ---


def test_a_log_line_is_read() -> None:
    line = demo_runs.parse_log_line(LINE)
    assert line is not None
    assert line.iteration == 1200
    assert np.isnan(line.values.pop("l_d"))
    assert line.values == {"l_pix": 0.021, "l_pcl": 0.005, "pos_sim": 0.61, "neg_sim": 0.4, "margin": -0.21}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22 19:31:44,008 INFO: Start training from epoch: 0, iter: 0",
        "2026-11-22 19:31:44,008 INFO: Loading EDSR model from experiments/x.pth, with param key: [params].",
        "\tRequire iter number per epoch: 375",
    ],
)
def test_other_lines_are_passed_over(text: str) -> None:
    assert demo_runs.parse_log_line(text) is None


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a run be a few lines of Python."""

    def set_program(program: str) -> None:
        monkeypatch.setattr(demo_runs, "train_command", lambda name: [sys.executable, "-c", program])

    return set_program


def test_the_lines_of_a_run_arrive_while_it_runs(tmp_path: Path, child_runs: Callable[[str], None]) -> None:
    weights = tmp_path / demo_runs.weights_path(demo_runs.L1)
    # The child goes on only once the parent has answered to its first line.
    child_runs(
        "import pathlib, sys, time\n"
        f"print({LINE.strip()!r}, flush=True)\n"
        "end = time.monotonic() + 20\n"
        "while not pathlib.Path('seen').exists() and time.monotonic() < end: time.sleep(0.01)\n"
        f"weights = pathlib.Path({str(weights)!r}); weights.parent.mkdir(parents=True); weights.touch()\n"
        "sys.exit(0 if pathlib.Path('seen').exists() else 1)"
    )
    logged = demo_runs.train(tmp_path, demo_runs.L1, lambda line: (tmp_path / "seen").touch())
    assert [line.iteration for line in logged] == [1200]
    assert (tmp_path / "demo_l1.log").read_text() == LINE.strip() + "\n"


def test_a_failing_run_shows_the_end_of_its_log_and_where_it_is(
    tmp_path: Path, child_runs: Callable[[str], None]
) -> None:
    child_runs("print('line\\n' * 100); raise KeyError('the reason')")
    with pytest.raises(demo_runs.RunError) as caught:
        demo_runs.train(tmp_path, demo_runs.PCL, lambda line: None)
    message = str(caught.value)
    assert "demo_pcl stopped with exit status 1" in message
    assert str(tmp_path / "demo_pcl.log") in message
    assert "KeyError: 'the reason'" in message
    assert len(message.splitlines()) < 20


def test_a_run_that_leaves_no_network_has_failed(tmp_path: Path, child_runs: Callable[[str], None]) -> None:
    child_runs("print('nothing done')")
    with pytest.raises(demo_runs.RunError, match="left no network"):
        demo_runs.train(tmp_path, demo_runs.L1, lambda line: None)


def test_an_interrupt_ends_the_child_too(tmp_path: Path, child_runs: Callable[[str], None]) -> None:
    child_runs(
        "import os, time; open('pid', 'w').write(str(os.getpid()))\n"
        f"print({LINE.strip()!r}, flush=True); time.sleep(60)"
    )

    def interrupt(line: demo_runs.LogLine) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        demo_runs.train(tmp_path, demo_runs.L1, interrupt)
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# --- evaluation, table and picture ---


@pytest.fixture
def scores() -> list[demo_results.Score]:
    """Three crops; L1 + PCL loses 0.1 and 0.3 dB and gains 0.1; NIQE is better twice."""
    made_up = {
        "bicubic": [(28.0, 0.80, 9.0), (30.0, 0.85, 8.0), (35.0, 0.90, 7.0)],
        "L1": [(29.0, 0.82, 8.0), (31.5, 0.87, 7.0), (36.0, 0.93, 6.0)],
        "L1 + PCL": [(28.9, 0.82, 7.0), (31.2, 0.86, 6.5), (36.1, 0.91, 6.25)],
        demo_results.REFERENCE: [(float("inf"), 1.0, 3.0), (float("inf"), 1.0, 4.0), (float("inf"), 1.0, 5.0)],
    }
    return [
        demo_results.Score(f"crop{i}", method, *row) for method, rows in made_up.items() for i, row in enumerate(rows)
    ]


def test_the_table_holds_mean_and_spread_computed_by_hand(scores: list[demo_results.Score]) -> None:
    lines = demo_results.format_table(scores).splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    # bicubic: mean 31, deviations -3, -1, 4, sum of squares 26, over 2: 13
    assert cells["bicubic"] == ["31.00 ± 3.61", "0.8500 ± 0.0500", "8.00 ± 1.00"]
    # L1: mean 32.1667, deviations -3.1667, -0.6667, 3.8333, sum of squares 25.1667
    assert cells["L1"] == ["32.17 ± 3.55", "0.8733 ± 0.0551", "7.00 ± 1.00"]
    psnr = [28.9, 31.2, 36.1]
    assert cells["L1 + PCL"][0] == f"{np.mean(psnr):.2f} ± {np.std(psnr, ddof=1):.2f}"
    # -0.1, -0.3, +0.1: mean -0.1, spread 0.2; NIQE -1, -0.5, +0.25: mean -0.41667, spread 0.62915
    assert cells["L1 + PCL minus L1, per crop"] == ["-0.100 ± 0.200", "-0.01000 ± 0.01000", "-0.417 ± 0.629"]
    assert cells[demo_results.REFERENCE] == ["-", "-", "4.00 ± 1.00"]


def test_the_verdict_counts_who_is_better_and_knows_that_low_niqe_is_good(scores: list[demo_results.Score]) -> None:
    assert demo_results.verdict(scores) == (
        "L1 + PCL is better than L1 in PSNR on 1 of 3, SSIM on 0 of 3 and NIQE on 2 of 3 test crops."
    )


def test_the_results_are_on_disk_crop_by_crop(scores: list[demo_results.Score], tmp_path: Path) -> None:
    text = demo_results.write_results(tmp_path, scores, demo_runs.DemoSettings())
    assert (tmp_path / "results.md").read_text() == text + "\n"
    assert demo_results.format_table(scores) in text
    assert "small demonstration" in text
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [
        demo_results.Score(r["crop"], r["method"], float(r["psnr"]), float(r["ssim"]), float(r["niqe"])) for r in rows
    ] == scores
    assert {r["lpips"] for r in rows} == {""}


def test_lpips_is_a_column_where_it_was_measured(scores: list[demo_results.Score]) -> None:
    distances = {"bicubic": 0.4, "L1": 0.3, "L1 + PCL": 0.25, demo_results.REFERENCE: 0.0}
    table = demo_results.format_table([score._replace(lpips=distances[score.method]) for score in scores])
    cells = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in table.splitlines()}
    assert cells[""] == "LPIPS (lower is better)"
    assert cells["L1"] == "0.3000 ± 0.0000"
    assert cells["L1 + PCL minus L1, per crop"] == "-0.05000 ± 0.00000"
    assert cells[demo_results.REFERENCE] == "-"
    assert "LPIPS" not in demo_results.format_table(scores)


def test_a_score_is_basicsrs_on_y_without_the_border() -> None:
    hr = demo_data.TEST_REGIONS[0].cut()
    image = resize(resize(hr, 1 / 4), 4)
    score = demo_results.measure("crop", "bicubic", image, hr)

    def luma(bgr: np.ndarray) -> np.ndarray:
        blue, green, red = (bgr[4:-4, 4:-4, channel].astype(np.float64) / 255 for channel in range(3))
        return 16 + 65.481 * red + 128.553 * green + 24.966 * blue

    error = ((luma(image) - luma(hr)) ** 2).mean()
    assert score.psnr == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert 0 < score.ssim < 1
    # The metric's image must not be its own reference, and 2 x 2 blocks must be enough for a finite number.
    assert np.isfinite(score.niqe)
    assert demo_results.measure("crop", demo_results.REFERENCE, hr, hr).niqe != score.niqe


def test_the_picture_shows_a_window_inside_a_crop_of_different_photographs(tmp_path: Path) -> None:
    demo_data.write_pairs(tmp_path / "data" / "test", demo_data.TEST_REGIONS)
    crops = demo_results.pictured_crops(tmp_path)
    photos = [name.split("_")[0] for name, _, _ in crops]
    assert len(set(photos)) == len(photos) == 3
    assert all(0 <= edge <= demo_data.CROP - demo_results.WINDOW for _, *corner in crops for edge in corner)


# --- the whole ---


def test_a_second_demo_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "experiments" / "demo"
    first = demo.make_run_folder(out)
    (first / "results.md").write_text("mine")
    assert demo.make_run_folder(out) == out / "run-2"
    assert (out / "run-1" / "results.md").read_text() == "mine"


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give another --out"):
        demo.make_run_folder(tmp_path / "file")


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(flags)


def test_the_flags_have_the_defaults_of_the_settings() -> None:
    args, default = parse(), demo_runs.DemoSettings()
    assert args.out == Path("experiments", "demo")
    assert (args.warmup_iters, args.iters, args.seed) == (default.warmup_iters, default.iters, default.seed)


def test_a_wrong_flag_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="iters must be at least 1, got 0"):
        demo.run(parse("--out", str(tmp_path / "new"), "--iters", "0"))
    assert not (tmp_path / "new").exists()


def test_a_failed_run_is_exit_status_1_and_an_error_on_stderr(
    tmp_path: Path, child_runs: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    child_runs("raise SystemExit('no such thing')")
    assert demo.run(parse("--out", str(tmp_path))) == 1
    out, err = capsys.readouterr()
    assert "minutes" in out
    assert str(tmp_path / "run-1") in out
    assert "the run demo_warmup stopped" in err
    assert "no such thing" in err


@pytest.mark.slow
def test_a_tiny_demo_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = demo.run_demo(tmp_path / "demo", TINY)
    folder = tmp_path / "demo" / "run-1"
    assert result.folder == folder
    assert (tmp_path / "demo" / "latest").resolve() == folder
    assert {path.name for path in folder.iterdir()} >= {"results.md", "results.csv", "comparison.png", "data", "sr"}
    assert (folder / "comparison.png").stat().st_size < 700_000

    # Whatever was measured is what stands in the table.
    for method in demo_results.METHODS:
        assert len(demo_results.values_of(result.scores, method, "psnr")) == len(demo_data.TEST_REGIONS)
        assert f"{statistics.fmean(demo_results.values_of(result.scores, method, 'psnr')):.2f} ± " in result.text
    assert demo_results.values_of(result.scores, "L1", "psnr") != demo_results.values_of(
        result.scores, "L1 + PCL", "psnr"
    )
    assert {name: len(log) for name, log in result.logs.items()} == {
        demo_runs.WARMUP: 2,
        demo_runs.L1: 3,
        demo_runs.PCL: 3,
    }
    assert {"pos_sim", "neg_sim", "margin"} <= result.logs[demo_runs.PCL][0].values.keys()

    # With its weight at 0 the loss is out, and what is left of the difference between the two runs is the data.
    path = folder / "demo_pcl.yml"
    option: dict[str, Any] = yaml.safe_load(path.read_text())
    option["train"]["pcl_opt"]["loss_weight"] = 0.0
    path.write_text(yaml.safe_dump(option))
    without_weight = demo_runs.train(folder, demo_runs.PCL, lambda line: None)
    with_l1 = [line.values["l_pix"] for line in result.logs[demo_runs.L1]]
    assert [line.values["l_pix"] for line in without_weight] == with_l1
