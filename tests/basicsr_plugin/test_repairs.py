"""BasicSR 1.4.2 resumes, distributes and warms up where it could not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.models.base_model import BaseModel

from pcl_loss.basicsr_plugin import repairs

Options = dict[str, Any]


def test_applying_twice_wraps_nothing_twice() -> None:
    before = BaseModel.update_learning_rate, BaseModel.model_to_device
    repairs.apply()
    assert (BaseModel.update_learning_rate, BaseModel.model_to_device) == before


def test_an_l1_baseline_resumes_without_a_gpu(baseline: Options, run_pipeline: Callable[..., str]) -> None:
    run_pipeline(baseline)
    baseline["train"]["total_iter"] = 6
    log = run_pipeline(baseline, "--auto_resume")
    assert "Resuming training from epoch: 0, iter: 4." in log
    assert "iter:       5" in log
    assert "iter:       1" not in log


def test_auto_resume_without_a_state_starts_from_scratch(baseline: Options, run_pipeline: Callable[..., str]) -> None:
    assert "Start training from epoch: 0, iter: 0" in run_pipeline(baseline, "--auto_resume")


@pytest.mark.parametrize("warmup", [2, 5])
def test_warm_up_ends_at_the_full_rate(warmup: int) -> None:
    from basicsr.models.lr_scheduler import MultiStepRestartLR

    model = BaseModel({"num_gpu": 0, "is_train": True})
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    model.optimizers, model.schedulers = [optimizer], [MultiStepRestartLR(optimizer, [8], gamma=0.1)]
    rates = []
    for iteration in range(1, 11):
        model.update_learning_rate(iteration, warmup_iter=warmup)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    expected = [min(1.0, iteration / warmup) * (0.1 if iteration > 8 else 1.0) for iteration in range(1, 11)]
    assert rates == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "train", [{}, {"amp": "bf16", "channels_last": True, "pcl_every": 2, "pcl_grad_ratio": 0.5}], ids=str
)
def test_two_processes_train_one_model_without_a_gpu(train: Options, small: Options, tmp_path: Path) -> None:
    small["train"] |= train
    if train:
        del small["train"]["pcl_opt"]["loss_weight"]
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
    assert {path.name for path in (tmp_path / "experiments/tiny/models").iterdir()} >= {"net_g_4.pth", "net_d_4.pth"}
    assert "grad_ratio: " in done.stderr
