"""BasicSR 1.4.2 resumes, distributes and warms up where it could not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from basicsr.models.base_model import BaseModel
from basicsr.models.lr_scheduler import MultiStepRestartLR

from pcl_loss.basicsr_plugin import PCLModel, SpeedSRModel, repairs

Options = dict[str, Any]


def test_applying_twice_wraps_nothing_twice() -> None:
    before = BaseModel.model_to_device
    repairs.apply()
    assert BaseModel.model_to_device == before


def test_an_l1_baseline_resumes_without_a_gpu(baseline: Options, run_pipeline: Callable[..., str]) -> None:
    run_pipeline(baseline)
    baseline["train"]["total_iter"] = 6
    log = run_pipeline(baseline, "--auto_resume")
    assert "Resuming training from epoch: 0, iter: 4." in log
    assert "iter:       5" in log
    assert "iter:       1" not in log


def test_auto_resume_without_a_state_starts_from_scratch(baseline: Options, run_pipeline: Callable[..., str]) -> None:
    assert "Start training from epoch: 0, iter: 0" in run_pipeline(baseline, "--auto_resume")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the repairs log."""
    lines: list[str] = []
    monkeypatch.setattr(repairs, "get_root_logger", lambda: SimpleNamespace(info=lines.append))
    return lines


def rates_of(model: Any, warmup: int) -> list[float]:
    """The learning rates of ten iterations, of which the full one is 1 and the last two are behind a milestone."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    model.optimizers, model.schedulers = [optimizer], [MultiStepRestartLR(optimizer, [8], gamma=0.1)]
    rates = []
    for iteration in range(1, 11):
        model.update_learning_rate(iteration, warmup_iter=warmup)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("warmup", [2, 5])
@pytest.mark.parametrize("model_type", [BaseModel, PCLModel, SpeedSRModel])
def test_where_it_is_asked_for_every_models_warm_up_ends_at_the_full_rate(
    model_type: Any, warmup: int, logged: list[str]
) -> None:
    model = object.__new__(model_type)
    with repairs.end_warmup_of_every_model():
        rates = rates_of(model, warmup)
    expected = [min(1.0, iteration / warmup) * (0.1 if iteration > 8 else 1.0) for iteration in range(1, 11)]
    assert rates == pytest.approx(expected)
    (line,) = logged
    assert f"The warm-up ends at iteration {warmup} at the full learning rate" in line


@pytest.mark.parametrize("warmup", [-1, 1])
def test_a_run_without_a_warm_up_has_nothing_to_mend(warmup: int, logged: list[str]) -> None:
    assert rates_of(object.__new__(PCLModel), warmup) == pytest.approx([1.0] * 8 + [0.1] * 2)
    assert not logged


def test_a_mere_register_leaves_other_models_warm_up_alone(registered: None) -> None:
    with repairs.end_warmup_of_every_model():
        pass
    assert rates_of(BaseModel({"num_gpu": 0, "is_train": True}), 5) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.08, 0.08]
    )
    assert rates_of(object.__new__(PCLModel), 5)[4:8] == pytest.approx([1.0] * 4)


def test_train_mends_a_baselines_warm_up_and_says_so(baseline: Options, run_pipeline: Callable[..., str]) -> None:
    baseline["train"]["warmup_iter"] = 3
    assert run_pipeline(baseline).count("The warm-up ends at iteration 3 at the full learning rate") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {},
        {"amp": "bf16", "channels_last": True, "pcl_every": 2, "pcl_grad_ratio": 0.5, "pcl_opt": {"type": "PCLLoss"}},
        {"pcl_opt": {"type": "PCLLoss", "recipe": "light"}},
    ],
    ids=["paper", "every key", "light"],
)
def test_two_processes_train_one_model_without_a_gpu(train: Options, small: Options, tmp_path: Path) -> None:
    small["train"] |= train
    is_light = "recipe" in small["train"]["pcl_opt"]
    if is_light:
        del small["network_d"]
    small["dist_params"] = {"backend": "nccl", "port": 29500}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(small))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"),
        *("-m", "pcl_loss.train", "-opt", "tiny.yml", "--launcher", "pytorch"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "iter:       4" in done.stderr
    saved = {path.name for path in (tmp_path / "experiments/tiny/models").iterdir()}
    assert "net_g_4.pth" in saved
    assert ("net_d_4.pth" in saved) != is_light
    assert "grad_ratio: " in done.stderr
