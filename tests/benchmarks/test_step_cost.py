"""The benchmark compares like with like, does its sums right, and runs."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import reference
import torch
from helpers import photograph_crops, same, snapshot, tiny_discriminator
from torch import Tensor

from pcl_loss import PCLLoss, WaveletDiscriminator, samples

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step_cost.py"
VARIANTS = ["L1", "L1 + VGG19", "L1 + GAN", "L1 + PCL", "L1 + PCL, E_D frozen", "L1 + PCL, light", "L1 + plain PCL"]


@pytest.fixture(scope="module")
def step_cost() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("step_cost")


@pytest.fixture
def tables(step_cost: ModuleType) -> ModuleType:
    return sys.modules["_step_tables"]


@pytest.fixture
def hr() -> Tensor:
    return photograph_crops(32)[::5].double()


@pytest.fixture
def sr(hr: Tensor) -> Tensor:
    return samples.upsample(torch.nn.functional.avg_pool2d(hr, 4), (32, 32))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# --- the plain loss ---


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"loss_weight": 3.0, "temperature": 0.3, "num_layers": 6},
        {"num_positives": 2, "num_negatives": 1, "data_range": 255.0},
    ],
)
def test_the_plain_loss_has_the_value_gradient_and_statistics_of_ours(
    step_cost: ModuleType, sr: Tensor, hr: Tensor, knobs: dict[str, Any]
) -> None:
    white = knobs.get("data_range", 1.0)
    net = tiny_discriminator(num_feat=4)
    values, grads, stats = [], [], []
    for cls in (PCLLoss, step_cost.PlainPCLLoss):
        loss, anchor = cls(**knobs), (sr * white).requires_grad_()
        value = loss(anchor, hr * white, net, generator=generator())
        value.backward()
        values.append(value)
        grads.append(anchor.grad)
        stats.append(torch.stack([loss.stats[name] for name in ("l_cl", "pos_sim", "neg_sim", "margin")]))
    torch.testing.assert_close(*values, rtol=1e-10, atol=0)
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9 * float(grads[0].abs().max()))
    torch.testing.assert_close(*stats, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("norm", "wavelet"), [("batch", False), ("group", True), ("none", True)])
def test_the_plain_loss_equals_ours_for_every_kind_of_e_d(
    step_cost: ModuleType, sr: Tensor, hr: Tensor, norm: str, wavelet: bool
) -> None:
    net = tiny_discriminator(norm, wavelet)
    values = [cls()(sr, hr, net, generator=generator()) for cls in (PCLLoss, step_cost.PlainPCLLoss)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=0)


def test_the_plain_loss_draws_the_samples_of_ours_without_a_generator_too(
    step_cost: ModuleType, sr: Tensor, hr: Tensor
) -> None:
    net, ours, plain = tiny_discriminator(), PCLLoss(seed=5), step_cost.PlainPCLLoss(seed=5)
    for _ in range(2):
        torch.testing.assert_close(ours(sr, hr, net), plain(sr, hr, net), rtol=1e-10, atol=0)


def test_the_plain_loss_equals_the_loops_over_single_images(step_cost: ModuleType, sr: Tensor, hr: Tensor) -> None:
    net, loss = tiny_discriminator(), step_cost.PlainPCLLoss(num_positives=2, num_negatives=2, temperature=0.4)
    value = loss(sr, hr, net, generator=generator())
    source = generator()
    factors, sigmas = (samples.draw_uniform(*bounds, (2, len(hr)), source) for bounds in ((1.5, 3.0), (0.5, 1.5)))
    positives = [hr, *samples.sharpen(hr, factors)]
    negatives = [*samples.blur(hr, sigmas, 1.5)]
    per_image = [[[kind[i].numpy() for kind in kinds] for i in range(len(hr))] for kinds in (positives, negatives)]
    expected = reference.pcl_loss(net, sr, *per_image, temperature=0.4)
    assert value.item() * 255 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_plain_loss_leaves_e_d_as_it_was(step_cost: ModuleType, sr: Tensor, hr: Tensor, training: bool) -> None:
    net = tiny_discriminator().train(training)
    net.head.requires_grad_(False)
    before, flags = snapshot(net), [param.requires_grad for param in net.parameters()]
    step_cost.PlainPCLLoss()(sr.requires_grad_(), hr, net).backward()
    assert same(before, snapshot(net))
    assert [param.requires_grad for param in net.parameters()] == flags
    assert all(module.training is training for module in net.modules())
    assert all(param.grad is None for param in net.parameters())


def test_the_plain_loss_refuses_other_samples(step_cost: ModuleType, sr: Tensor, hr: Tensor) -> None:
    with pytest.raises(ValueError, match="drop positives= and negatives="):
        step_cost.PlainPCLLoss(negatives=("blur", "batch"))(sr, hr, tiny_discriminator())


def test_losses_that_are_not_the_same_function_are_not_compared(step_cost: ModuleType, sr: Tensor, hr: Tensor) -> None:
    inputs = step_cost.LossInputs(sr, hr, tiny_discriminator(), seed=0)
    ours = inputs.run_exactly(PCLLoss())
    difference = step_cost.check_agreement("plain", ours, inputs.run_exactly(step_cost.PlainPCLLoss()))
    assert difference["value"] < 1e-10
    assert difference["gradient"] < 1e-6
    for knobs in ({"num_layers": 3}, {"loss_weight": 1.00001}):
        other = inputs.run_exactly(step_cost.PlainPCLLoss(**knobs))
        with pytest.raises(step_cost.BenchmarkError, match="PCLLoss and plain are not the same function"):
            step_cost.check_agreement("plain", ours, other)


# --- the loss of another commit ---


def copied_package(folder: Path) -> Path:
    shutil.copytree(SCRIPT.parents[1] / "pcl_loss", folder / "pcl_loss", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "pcl_loss"


def test_two_versions_of_the_package_stand_side_by_side(
    step_cost: ModuleType, tmp_path: Path, sr: Tensor, hr: Tensor
) -> None:
    folder = copied_package(tmp_path)
    source = (folder / "loss.py").read_text()
    (folder / "loss.py").write_text(source.replace("ALPHA_RANGE = 255.0", "ALPHA_RANGE = 127.5"))
    other = sys.modules["_step_against"].import_package(folder, "pcl_loss_twice_as_strong")
    shutil.rmtree(folder)
    net_d = tiny_discriminator(num_feat=4)
    other_net_d = other.WaveletDiscriminator(num_feat=4).double()
    other_net_d.load_state_dict(net_d.state_dict())
    value, grad = step_cost.loss_and_gradient(PCLLoss(), sr, hr, net_d, 0)
    other_value, other_grad = step_cost.loss_and_gradient(other.PCLLoss(), sr, hr, other_net_d, 0)
    torch.testing.assert_close(other_value, 2 * value, rtol=1e-12, atol=0)
    torch.testing.assert_close(other_grad, 2 * grad, rtol=1e-9, atol=0)
    assert not isinstance(other_net_d, WaveletDiscriminator)


def test_a_commit_that_git_does_not_know_is_refused_with_the_fix(step_cost: ModuleType) -> None:
    for commit in ("no_such_commit", "--output=x"):
        with pytest.raises(step_cost.BenchmarkError, match="name a commit of this repository"):
            step_cost.package_of_commit(commit)


@pytest.mark.skipif(not (SCRIPT.parents[1] / ".git").exists(), reason="needs the project's repository")
def test_the_loss_of_a_commit_is_timed_in_the_same_rounds(tmp_path: Path) -> None:
    text, report = run(tmp_path, "--only", "loss", "--against", "HEAD", "--skip-memory")
    (name,) = report["loss"]["seconds"].keys() - {"PCLLoss", "plain", "floor_loss"}
    assert re.fullmatch(r"PCLLoss of [0-9a-f]{7,}", name)
    times = report["loss"]["seconds"]
    assert report["loss"]["pcl_over"][name]["median"] == pytest.approx(times["PCLLoss"][0] / times[name][0])
    assert report["loss"]["agreement"][name]["value"] <= 1e-9
    assert f"| {name} |" in text
    assert f"{name}: in float64 its value differs" in text


# --- sums, targets and errors ---


def test_ratios_are_taken_within_a_round_and_summarised_by_their_median(step_cost: ModuleType) -> None:
    times = {"ours": [2.0, 9.0, 4.0], "plain": [4.0, 3.0, 4.0]}
    found = step_cost.ratios(times, "ours", to="plain")
    assert found == [0.5, 3.0, 1.0]
    assert step_cost.summary(found) == {"median": 1.0, "min": 0.5, "max": 3.0}


def test_the_warm_up_round_does_not_count(step_cost: ModuleType) -> None:
    calls = []
    times = step_cost.measure_rounds(
        {name: lambda name=name: calls.append(name) for name in "ab"}, 2, torch.device("cpu"), "title"
    )
    assert calls == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_targets_are_judged_for_what_was_measured_alone(tables: ModuleType) -> None:
    over_l1 = {net: {"over_l1": {"L1 + PCL": {"median": value}}} for net, value in (("EDSR-S", 1.9), ("RCAN", 1.16))}
    lines = tables.describe_targets({"steps": over_l1}).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert rows == [
        ["EDSR-S, L1 + PCL / L1, time", "1.900", "<= 2", "yes"],
        ["RCAN, L1 + PCL / L1, time", "1.160", "<= 1.15", "no"],
    ]
    assert not any("HAN" in line or "floor" in line for line in lines)


def test_the_stretch_of_a_target_is_named_where_it_is_reached(tables: ModuleType) -> None:
    assert [tables.Target(1.6, 1.25).verdict(value) for value in (1.2, 1.6, 1.7)] == [
        "yes, and the stretch of 1.25",
        "yes",
        "no",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak since the process's start is all there is")
def test_extra_memory_is_what_a_call_holds_at_once_and_nothing_freed_before(step_cost: ModuleType) -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(16 * 2**20)  # 64 MiB, let go before the next

    torch.ones(48 * 2**20)
    assert 56 < step_cost.peak_memory(call, torch.device("cpu"))["extra_mib"] < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nets", "EDSR-XL"], r"invalid choice: 'EDSR-XL' .*EDSR-S.*HAN"),
        (["--batch", "EDSR-S"], r"must look like EDSR-S=8, got 'EDSR-S'"),
        (["--batch", "SRCNN=4"], r"unknown network 'SRCNN' in 'SRCNN=4'; known are EDSR-S, EDSR-L, RCAN, HAN"),
        (["--batch", "RCAN=0"], r"whole number of at least 1, got '0'"),
        (["--rounds", "two"], r"whole number of at least 1, got 'two'"),
        (["--seed", "-1"], r"--seed"),
        (["--only", "steps", "--against", "HEAD"], r"drop --only steps"),
        (["--json", "no_such_folder/out.json"], r"there is no folder no_such_folder; make it first"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_with_the_fix(
    step_cost: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is let through must not start to measure, which takes minutes.
    monkeypatch.setattr(step_cost, "measure", lambda settings: pytest.fail("was not refused"))
    with pytest.raises(SystemExit) as exit_info:
        step_cost.main(arguments)
    assert exit_info.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error


def test_a_batch_replaces_the_default_of_its_network_alone(step_cost: ModuleType) -> None:
    settings, _ = step_cost.parse_arguments(["--device", "cpu", "--batch", "RCAN=3", "HAN=2"])
    assert settings.batches == {"EDSR-S": 8, "EDSR-L": 1, "RCAN": 3, "HAN": 2}


# --- the whole script ---


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Its stdout and its JSON."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--rounds", "1", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads((folder / "step_cost.json").read_text())


def check_times(times: dict[str, list[float]], names: list[str]) -> None:
    assert set(times) == set(names)
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in times.values())


@pytest.mark.slow
def test_every_loss_and_every_variant_of_every_network_is_timed(tmp_path: Path) -> None:
    text, report = run(tmp_path, "--skip-memory")
    check_times(report["loss"]["seconds"], ["PCLLoss", "plain", "floor_loss"])
    assert list(report["steps"]) == ["EDSR-S", "EDSR-L", "RCAN", "HAN"]
    for net, steps in report["steps"].items():
        times = steps["seconds"]
        check_times(times, [*VARIANTS, "light_loss", "floor_loss", "floor_net_d", "floor_step"])
        assert times["floor_step"][0] == pytest.approx(
            times["L1"][0] + times["floor_loss"][0] + times["floor_net_d"][0]
        )
        assert steps["over_l1"]["L1 + PCL"]["median"] == pytest.approx(times["L1 + PCL"][0] / times["L1"][0])
        assert f"| {net}, batch {steps['batch']}, LR 8x8 |" in text
    assert "| the loss alone |" in text
    assert "these numbers say nothing about the real cost" in text
    assert "targets" not in text


@pytest.mark.slow
def test_the_light_recipes_price_is_measured_alone(tmp_path: Path) -> None:
    text, report = run(tmp_path, "--only", "light", "--nets", "EDSR-S", "--skip-memory")
    assert "loss" not in report
    steps = report["steps"]["EDSR-S"]
    check_times(steps["seconds"], ["L1", "L1 + PCL, light", "light_loss"])
    times = steps["seconds"]
    assert steps["over_l1"]["light_loss"]["max"] == pytest.approx(times["light_loss"][0] / times["L1"][0])
    assert "| light_loss" in text


@pytest.mark.slow
def test_every_variant_has_a_peak_memory_of_its_own_process(tmp_path: Path) -> None:
    text, report = run(tmp_path, "--nets", "EDSR-S", "--batch", "EDSR-S=1")
    assert set(report["loss"]["memory"]) == {"PCLLoss", "plain"}
    assert "extra peak MiB" in text
    memory = report["steps"]["EDSR-S"]["memory"]
    assert list(memory) == VARIANTS
    assert all(peak["peak_mib"] > peak["extra_mib"] >= 0 for peak in memory.values())
    # VGG19's convolutions alone are 76 MiB.
    assert memory["L1 + VGG19"]["peak_mib"] > memory["L1"]["peak_mib"] + 50
