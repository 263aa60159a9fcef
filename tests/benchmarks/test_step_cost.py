"""The benchmark compares like with like, and runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import step_cost
import torch
from helpers import photograph_crops, tiny_discriminator
from torch import Tensor

from pcl_loss import PCLLoss, samples

PlainPCLLoss = step_cost.variants.PlainPCLLoss
VARIANTS = ["L1", "L1 + VGG19", "L1 + GAN", "L1 + PCL", "L1 + PCL, E_D frozen", "L1 + PCL, light", "L1 + plain PCL"]


@pytest.fixture
def hr() -> Tensor:
    return photograph_crops(32)[::5].double()


@pytest.fixture
def sr(hr: Tensor) -> Tensor:
    return samples.upsample(torch.nn.functional.avg_pool2d(hr, 4), (32, 32))


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        (("batch", True), {"loss_weight": 3.0, "temperature": 0.3, "num_layers": 6}),
        (("batch", True), {"num_positives": 2, "num_negatives": 1, "data_range": 255.0}),
        (("group", True), {}),
        (("none", False), {}),
    ],
)
def test_the_plain_loss_has_the_value_gradient_and_statistics_of_ours(
    sr: Tensor, hr: Tensor, kind: tuple[str, bool], knobs: dict[str, Any]
) -> None:
    white = knobs.get("data_range", 1.0)
    net = tiny_discriminator(*kind)
    values, grads, stats = [], [], []
    for cls in (PCLLoss, PlainPCLLoss):
        loss, anchor = cls(**knobs), (sr * white).requires_grad_()
        value = loss(anchor, hr * white, net)
        value.backward()
        values.append(value)
        grads.append(anchor.grad)
        stats.append(torch.stack([loss.stats[name] for name in ("l_cl", "pos_sim", "neg_sim", "margin")]))
    torch.testing.assert_close(*values, rtol=1e-10, atol=0)
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9 * float(grads[0].abs().max()))
    torch.testing.assert_close(*stats, rtol=1e-9, atol=0)


def test_ratios_are_taken_within_a_round_and_the_warm_up_does_not_count() -> None:
    times = {"ours": [2.0, 9.0, 4.0], "plain": [4.0, 3.0, 4.0]}
    assert step_cost.summary(times, "ours", to="plain") == {"median": 1.0, "min": 0.5, "max": 3.0}
    calls: list[str] = []
    measured = step_cost.measure_rounds({name: lambda name=name: calls.append(name) for name in "ab"}, 2, "cpu")
    assert calls == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in measured.items()} == {"a": 2, "b": 2}


@pytest.mark.slow
def test_every_loss_and_every_variant_is_timed_and_its_memory_measured(tmp_path: Path) -> None:
    command = [sys.executable, step_cost.__file__, "--tiny", "--rounds", "1", "--nets", "EDSR-S", "--batch", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "step_cost.json").read_text())
    steps = report["steps"]["EDSR-S"]
    assert list(report["loss"]["seconds"]) == ["PCLLoss", "plain"]
    assert list(steps["seconds"]) == [*VARIANTS, "light_loss"]
    # VGG19's convolutions alone are 76 MiB.
    assert steps["peak_mib"]["L1 + VGG19"] > steps["peak_mib"]["L1"] + 50
    assert all(f"| {name} " in done.stdout for name in VARIANTS)
