"""The verb `demo`, from its flags to its folder."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pcl_loss import PCLLoss
from pcl_loss.cli import main
from pcl_loss.tools import demo
from pcl_loss.tools.demo import runs
from pcl_loss.tools.demo.data import TEST_REGIONS


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a training be a few lines of Python, and SqueezeNet be out of reach."""

    def set_program(program: str) -> None:
        monkeypatch.setattr(runs, "TRAIN", ("-c", program))

    monkeypatch.setattr(demo, "fetch_backbone", no_backbone)
    return set_program


def no_backbone(net: str) -> None:
    raise FileNotFoundError(f"{net} could not be downloaded")


def test_all_runs_start_from_the_shipped_weights_on_the_same_batches_and_differ_by_the_loss_alone(
    tmp_path: Path,
) -> None:
    made = runs.make_runs(tmp_path, iters=7, seed=3)
    l1 = made.pop("L1")
    assert l1["model_type"] == "SRModel"
    assert (l1["train"]["total_iter"], l1["manual_seed"]) == (7, 3)
    weights = Path(l1["path"]["pretrain_network_g"])
    assert weights.stat().st_size < 1_000_000
    assert torch.load(weights, weights_only=True)["params"]["body.7.conv2.weight"].shape == (32, 32, 3, 3)
    strengths = []
    for options in made.values():
        assert options == yaml.safe_load((tmp_path / f"{options['name']}.yml").read_text())
        pcl = options["train"].pop("pcl_opt")
        strengths.append(pcl["loss_weight"])
        assert pcl == {"type": "PCLLoss", "recipe": "light", "loss_weight": strengths[-1]}
        assert options | {"name": l1["name"], "model_type": "SRModel"} == l1
    assert strengths == sorted(strengths)
    assert PCLLoss(recipe="light").loss_weight in strengths


def test_flags_out_of_range_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    for flag, value, message in (("--iters", "0", "at least 1"), ("--seed", str(2**31), "from 0 to 2147483647")):
        assert main(["demo", "--out", str(out), flag, value]) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_failed_run_shows_the_end_of_its_log_and_where_it_is(
    tmp_path: Path, child_runs: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    child_runs("print('line\\n' * 100); raise KeyError('the reason')")
    for number in (1, 2):
        assert main(["demo", "--out", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert str(tmp_path / f"run-{number}") in out
        assert "demo_l1 ended with exit status 1" in err
        assert str(tmp_path / f"run-{number}" / "demo_l1.log") in err
        assert "KeyError: 'the reason'" in err
        assert err.count("| line") < 20
    child_runs("print('nothing done')")
    assert main(["demo", "--out", str(tmp_path)]) == 1, "a run that leaves no network has failed"


@pytest.mark.slow
def test_a_short_demo_from_end_to_end_with_the_highest_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "fetch_backbone", no_backbone)
    folder = demo.run_demo(tmp_path, iters=2, seed=2**31 - 1)
    assert folder == tmp_path / "run-1"
    assert {path.name for path in folder.iterdir()} >= {"results.md", "results.csv", "comparison.png", "data", "sr"}
    assert (folder / "comparison.png").stat().st_size < 700_000
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert "squeeze could not be downloaded" in text
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for method in ("Bicubic", "L1", *runs.STRENGTHS):
        values = [float(row["psnr"]) for row in rows if row["net"] == method]
        assert len(values) == len(TEST_REGIONS)
        assert f" {statistics.fmean(values):.3f} " in text

    # With its weight at 0 the loss is out, and what is left of the difference between two runs is the data.
    l1, light, *_ = runs.make_runs(folder, iters=2, seed=2**31 - 1).values()
    light["train"]["pcl_opt"]["loss_weight"] = 0.0
    (folder / f"{light['name']}.yml").write_text(yaml.safe_dump(light))
    first, before = (_l_pix(folder / f"{options['name']}.log") for options in (l1, light))
    runs.train(folder, light)
    assert before != first
    assert _l_pix(folder / f"{light['name']}.log") == first
    assert len(first) == 2


def _l_pix(log: Path) -> list[str]:
    return re.findall(r"l_pix: (\S+)", log.read_text())
