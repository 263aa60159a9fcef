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
import torch
import yaml
from basicsr.models import base_model
from basicsr.utils import options as basicsr_options
from basicsr_fixtures import Options
from cpu_ranks import TWO_RANKS
from pcl_loss.basicsr_plugin.data_order import STOP_SIGNALS

from pcl_loss.basicsr_plugin import repairs
from pcl_loss.basicsr_plugin.checkpoints import FILES

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
    listed = {(entry.replaces, entry.name) for entry in repairs.REPLACED if entry.applied}
    assert ours == listed
    assert len(repairs.REPLACED) <= 12


@pytest.mark.parametrize("end", ["whole", "stopped"])
def test_after_a_run_basicsr_is_as_it_was(
    end: str, small: Options, run_pipeline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, handlers = replaceable(), [signal.getsignal(number) for number in STOP_SIGNALS]
    if end == "stopped":
        monkeypatch.setattr("pcl_loss.basicsr_plugin.PCLModel.feed_data", lambda *_: os.kill(os.getpid(), 15))
        with pytest.raises((SystemExit, AttributeError)):
            run_pipeline(small)
    else:
        run_pipeline(small)
    assert replaceable() == before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers


def test_data_that_are_read_in_another_way_are_left_as_they_are_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(basicsr.train, "create_train_val_dataloader", lambda opt, logger: ([], "order", [], 1, 4))
    with repairs.whole_run(basicsr.train):
        assert basicsr.train.create_train_val_dataloader({}, None) == ([], "order", [], 1, 4)
    assert "a resume is not exact" in logged.text


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=env
    )


def test_the_plugin_is_imported_where_a_signal_does_not_exist(tmp_path: Path) -> None:
    """As on Windows."""
    code = (
        "import signal; del signal.SIGHUP; import pcl_loss.basicsr_plugin as plugin; plugin.register(); print('there')"
    )
    done = run(tmp_path, "-c", code)
    assert done.stdout.strip() == "there", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"amp": "bf16", "channels_last": True, "pcl_every": 2, "pcl_grad_ratio": 0.5, "pcl_opt": {"type": "PCLLoss"}},
        {"pcl_opt": {"type": "PCLLoss", "recipe": "light"}},
    ],
    ids=["every key", "light"],
)
def test_two_processes_train_one_model_without_a_gpu(train: Options, small: Options, tmp_path: Path) -> None:
    small["train"] |= train
    is_light = "recipe" in small["train"]["pcl_opt"]
    if is_light:
        del small["network_d"]
    small["dist_params"] = {"backend": "nccl", "port": 29500}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(small))
    done = run(tmp_path, *TWO_RANKS, "-opt", "tiny.yml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "iter:       4" in done.stderr
    saved = {path.name for path in (tmp_path / "experiments/tiny/models").iterdir()}
    assert "net_g_4.pth" in saved
    assert ("net_d_4.pth" in saved) != is_light
    assert "grad_ratio: " in done.stderr
    assert not torch.distributed.is_initialized()
