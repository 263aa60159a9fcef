"""The verb `demo`, from its flags to its folder."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pcl_loss.cli import main
from pcl_loss.tools import demo
from pcl_loss.tools.demo import data as demo_data
from pcl_loss.tools.demo import results as demo_results
from pcl_loss.tools.demo import runs as demo_runs

TINY = demo_runs.DemoSettings(
    warmup_iters=2, iters=3, seed=5, num_feat=4, num_block=1, num_feat_d=4, gt_size=32, batch_size=2
)


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
    assert main(["demo", "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "about 6 min " in out
    assert str(tmp_path / "run-1") in out
    assert "the run demo_warmup stopped" in err
    assert "no such thing" in err


@pytest.mark.slow
def test_a_tiny_demo_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = demo.run_demo(demo.make_run_folder(tmp_path / "demo"), TINY)
    folder = tmp_path / "demo" / "run-1"
    assert result.folder == folder
    assert (tmp_path / "demo" / "latest").resolve() == folder
    assert {path.name for path in folder.iterdir()} >= {"results.md", "results.csv", "comparison.png", "data", "sr"}
    assert (folder / "comparison.png").stat().st_size < 700_000

    # Whatever was measured is what stands in the table.
    for method in ("Bicubic", "L1", *demo_runs.LIGHT, demo_runs.PAPER):
        assert len(demo_results.values_of(result.scores, method, "psnr")) == len(demo_data.TEST_REGIONS)
        assert f"{statistics.fmean(demo_results.values_of(result.scores, method, 'psnr')):.2f} |" in result.text
    methods = ("L1", *demo_runs.LIGHT, demo_runs.PAPER)
    # Three iterations hardly change the average of the weights, which is what is measured.
    paths = [folder / demo_runs.weights_path(f"demo_{method.lower().replace(' ', '_')}") for method in methods]
    heads = [torch.load(path, weights_only=True)["params"]["conv_last.weight"].flatten() for path in paths]
    assert len({tuple(head.tolist()) for head in heads}) == len(methods)
    assert [len(log) for log in result.logs.values()] == [2, 3, 3, 3, 3, 3]
    assert {"pos_sim", "neg_sim", "margin"} <= result.logs["demo_light_3"][0].values.keys()

    # With its weight at 0 the loss is out, and what is left of the difference between the two runs is the data.
    path = folder / "demo_light_3.yml"
    option: dict[str, Any] = yaml.safe_load(path.read_text())
    option["train"]["pcl_opt"]["loss_weight"] = 0.0
    path.write_text(yaml.safe_dump(option))
    without_weight = demo_runs.train(folder, "demo_light_3", lambda line: None)
    with_l1 = [line.values["l_pix"] for line in result.logs[demo_runs.L1]]
    assert [line.values["l_pix"] for line in without_weight] == with_l1
