"""What is replaced in BasicSR stands in one list, is put back after a run, and lets BasicSR start everywhere."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import basicsr.train
import pytest
import yaml
from basicsr.models import base_model
from basicsr.utils import options as basicsr_options
from basicsr_fixtures import Options, with_options
from cpu_ranks import TWO_RANKS

from pcl_loss.basicsr_plugin import repairs
from pcl_loss.basicsr_plugin.checkpoints import FILES
from pcl_loss.basicsr_plugin.data import STOP_SIGNALS

PLACES = {
    "basicsr.utils.options": basicsr_options,
    "basicsr.models.base_model": base_model,
    "basicsr.train": basicsr.train,
    "BaseModel": base_model.BaseModel,
}


def replaceable() -> dict[tuple[str, str], Any]:
    return {(place, name): value for place, owner in PLACES.items() for name, value in vars(owner).items()}


def test_what_the_list_says_is_replaced_and_nothing_else() -> None:
    ours = {key for key, value in replaceable().items() if getattr(value, "__module__", "").startswith("pcl_loss")}
    ours |= {key for key, value in replaceable().items() if value is FILES}
    ours |= {key for key, value in replaceable().items() if "pcl_loss" in str(getattr(value, "__code__", ""))}
    # Imported from there; the list names where BasicSR defines it.
    ours -= {("basicsr.train", "parse_options")}
    listed = {(entry.replaces, entry.name) for entry in repairs.REPLACED if not entry.in_a_run}
    assert ours == listed
    assert len(repairs.REPLACED) <= 12


def test_after_a_run_basicsr_is_as_it_was(
    small: Options, run_pipeline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, handlers = replaceable(), [signal.getsignal(number) for number in STOP_SIGNALS]
    monkeypatch.setattr("pcl_loss.basicsr_plugin.PCLModel.feed_data", lambda *_: os.kill(os.getpid(), 15))
    with pytest.raises((SystemExit, AttributeError)):
        run_pipeline(small)
    assert replaceable() == before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


EVERY_KEY = {"amp": "bf16", "channels_last": True, "pcl_every": 2, "pcl_grad_ratio": 0.5, "ema_decay": 0}


@pytest.mark.slow
@pytest.mark.parametrize("train", [EVERY_KEY, {"pcl_opt": {"type": "PCLLoss", "recipe": "light"}}], ids=str)
def test_two_processes_train_one_model_without_a_gpu(train: Options, small: Options, tmp_path: Path) -> None:
    small = with_options(small, train)
    is_light = "recipe" in small["train"]["pcl_opt"]
    if is_light:
        del small["network_d"]
    else:  # its buffer would be sent at each forward pass of a parallel wrapper, also in a validation of rank 0 alone
        small["network_g"] |= {"type": "HAN", "num_group": 1, "squeeze_factor": 2}
    small["dist_params"] = {"backend": "nccl", "port": 29500}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(small))
    command = [sys.executable, *TWO_RANKS, "-opt", "tiny.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "iter:       4" in done.stderr
    assert "grad_ratio: " in done.stderr
    saved = {path.name for path in (tmp_path / "experiments/tiny/models").iterdir()}
    assert ("net_g_4.pth" in saved, "net_d_4.pth" in saved) == (True, not is_light)
