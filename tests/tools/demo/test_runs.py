"""The runs differ in PCL alone, and what they log arrives while they run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pcl_loss import PCLLoss
from pcl_loss.tools.demo import runs as demo_runs

LINE = (
    "2026-11-22 19:31:45,120 INFO: [demo_..][epoch:  0, iter:   1,200, lr:(1.000e-04,1.000e-04,)] "
    "[eta: 0:00:10, time (data): 0.050 (0.001)] l_pix: 2.1000e-02 l_pcl: 5.0000e-03 pos_sim: 6.1000e-01 "
    "neg_sim: 4.0000e-01 margin: -2.1000e-01 l_d: nan \n"
)


def test_the_yamls_differ_in_pcl_alone(tmp_path: Path) -> None:
    demo_runs.write_options(tmp_path, demo_runs.make_runs(demo_runs.DemoSettings()))

    def read(name: str) -> tuple[str, dict[str, Any]]:
        options = yaml.safe_load((tmp_path / f"{name}.yml").read_text())
        assert options.pop("name") == name
        return options.pop("model_type"), options

    model_type, l1 = read("demo_l1")
    assert model_type == "SRModel"
    recipes = {"demo_paper_1": ("paper", 1.0)} | {f"demo_light_{w}": ("light", float(w)) for w in (3, 6, 12)}
    for name, (recipe, weight) in recipes.items():
        model_type, pcl = read(name)
        assert model_type == "PCLModel"
        assert pcl["train"].pop("pcl_opt") == {"type": "PCLLoss", "recipe": recipe, "loss_weight": weight}
        if recipe == "paper":
            assert pcl.pop("network_d") == {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 32}
        assert pcl == l1


def test_the_weakest_light_run_has_the_recipes_own_weight() -> None:
    weights = list(demo_runs.LIGHT.values())
    assert weights[0] == PCLLoss(recipe="light").loss_weight
    assert weights == sorted(weights)


def test_a_yaml_says_what_the_run_does(tmp_path: Path) -> None:
    settings = demo_runs.DemoSettings(warmup_iters=11, iters=7, seed=3)
    runs = demo_runs.make_runs(settings)
    demo_runs.write_options(tmp_path, runs)
    options = {run.name: run.options for run in runs}
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
        demo_runs.train(tmp_path, "demo_light_3", lambda line: None)
    message = str(caught.value)
    assert "demo_light_3 stopped with exit status 1" in message
    assert str(tmp_path / "demo_light_3.log") in message
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


def test_a_run_waits_passively_unless_the_user_chose_otherwise(
    tmp_path: Path, child_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / demo_runs.weights_path(demo_runs.L1)
    weights.parent.mkdir(parents=True)
    weights.touch()
    child_runs("import os; print(os.environ['OMP_WAIT_POLICY'], os.environ['MINE'])")
    monkeypatch.setenv("MINE", "kept")
    for own, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if own:
            monkeypatch.setenv("OMP_WAIT_POLICY", own)
        demo_runs.train(tmp_path, demo_runs.L1, lambda line: None)
        assert (tmp_path / "demo_l1.log").read_text() == f"{expected} kept\n"


def test_the_progress_line_says_that_its_time_left_is_that_of_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    seen = []

    def train(folder: Path, name: str, on_log: Callable[[demo_runs.LogLine], None]) -> list[demo_runs.LogLine]:
        # Three times as slow as on two idle cores.
        if name == demo_runs.L1:
            seconds = 3 * 0.06 * 100
            clock[0] += seconds
            on_log(demo_runs.LogLine(100, {"l_pix": 0.5}))
            seen.append(capsys.readouterr().err.split("\r")[-1])
        elif name == demo_runs.WARMUP:
            clock[0] += 3 * 0.06 * 1000
        return []

    monkeypatch.setattr(demo_runs, "train", train)
    demo_runs.train_all(tmp_path, demo_runs.make_runs(demo_runs.DemoSettings(warmup_iters=1000, iters=600)))
    # 500 iterations of L1, 3 x 600 of the light recipe and 600 of the paper's are left: 3 * (30 + 117 + 102) seconds.
    assert "about 12:27 left of all 6 runs" in seen[0]
    assert "L1: iteration 100 of 600, l_pix 0.5000" in seen[0]
