"""A run that is stopped and resumed is the uninterrupted one, bit for bit; a signal ends it with a checkpoint."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr_fixtures import Batches, Build, Options, all_files, assert_equal_weights, train_on, weights, with_options
from cpu_ranks import TWO_RANKS
from torch.utils.data import DataLoader

from pcl_loss.basicsr_plugin import PCLModel, run_mixin
from pcl_loss.basicsr_plugin.data import STOP_SIGNALS, PlacedData

Run = Callable[..., str]


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch, small: Options) -> Options:
    """`small` with a network that draws random numbers, in the middle of an epoch at iterations 2 and 5."""
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.utils.registry import ARCH_REGISTRY

    class DropoutEDSR(EDSR):  # type: ignore[misc]
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.conv_first = torch.nn.Sequential(self.conv_first, torch.nn.Dropout(0.3))

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "DropoutEDSR", DropoutEDSR)
    small["network_g"]["type"] = "DropoutEDSR"
    small["datasets"]["train"]["dataset_enlarge_ratio"] = 2  # three batches an epoch
    small["train"]["total_iter"] = 6
    small["logger"]["use_tb_logger"] = False
    return small


# --- resumed ---


@pytest.mark.parametrize(("road", "workers"), [("PCL", 0), ("perceptual", 2), ("beside another", 0)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    road: str, workers: int, dropout: Options, run_pipeline: Run, tmp_path: Path, vgg_stand_in: Any
) -> None:
    if road != "PCL":
        dropout["model_type"] = "SRModel"
        del dropout["train"]["pcl_opt"], dropout["network_d"]
        dropout["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 2}
    if road == "beside another":
        pcl = {"type": "PerceptualLossWithPCL", "pcl": dropout["train"]["perceptual_opt"]}
        dropout["train"]["perceptual_opt"] = pcl | {"perceptual_weight": 1.0, "style_weight": 0.0}
    dropout["datasets"]["train"]["num_worker_per_gpu"] = workers
    run_pipeline(dropout | {"name": "whole"})
    for seed, stop in enumerate((2, 5, 6), 3):
        dropout["train"]["total_iter"] = stop
        dropout["logger"]["save_checkpoint_freq"] = stop
        dropout["manual_seed"] = seed  # the first leg's holds
        assert "not bit for bit" not in run_pipeline(dropout, "--auto_resume")
    resumed, expected = (all_files(tmp_path / "experiments" / name, 6) for name in ("tiny", "whole"))
    for name in ("conv_first", "rng", {"PCL": "net_d_6", "perceptual": "pcl_6"}.get(road, "pcl_balance_6")):
        assert any(name in key for key in resumed)
    assert_equal_weights(resumed, expected)


@pytest.mark.parametrize(("owner", "broken"), [(PlacedData, "begin"), (run_mixin, "set_rng_state")])
def test_what_is_not_taken_up_would_be_noticed(
    owner: Any, broken: str, dropout: Options, run_pipeline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, broken, lambda *_: None)
    with pytest.raises(AssertionError):
        test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit("PCL", 0, dropout, run_pipeline, tmp_path, None)


def test_so_is_a_model_with_keys_of_its_own_also_outside_of_such_a_run(
    small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    options = with_options(small, {"amp": "fp16", "channels_last": True, "pcl_grad_ratio": 0.5, "pcl_every": 2})
    first, whole = build(options), build(options)
    train_on(whole, batches)
    train_on(first, batches[:3])
    first.save(0, 3)
    options["path"] |= {f"pretrain_network_{net}": str(tmp_path / f"models/net_{net}_3.pth") for net in "gd"}
    second = build(options)
    second.resume_training(torch.load(tmp_path / "training_states/3.state", weights_only=True))
    train_on(second, batches[3:], first_iter=4)

    for name in ("net_g", "net_g_ema", "net_d", "balance"):
        if isinstance(net := getattr(whole, name, None), torch.nn.Module):
            assert_equal_weights(weights(getattr(second, name)), weights(net))
    for resumed, uninterrupted in zip(second.optimizers, whole.optimizers, strict=True):
        for param, state in uninterrupted.state_dict()["state"].items():
            assert_equal_weights(resumed.state_dict()["state"][param], state)
    assert second.scaler.state_dict() == whole.scaler.state_dict()


SAVED = {"num_images": 4, "position": 2, "rng": [{}]}


@pytest.mark.parametrize(
    ("saved", "is_said"), [(SAVED, 0), ({}, 1), (SAVED | {"num_images": 7}, 1), (SAVED | {"rng": [{}, {}]}, 1)]
)
def test_a_resumed_run_says_that_it_is_not_exact(
    saved: Options, is_said: int, logged: pytest.LogCaptureFixture
) -> None:
    loader: Any = DataLoader(range(4), sampler=EnlargedSampler(range(4), 1, 0))  # type: ignore[arg-type]
    run = run_mixin.Run()
    run.resumed = {"epoch": 0, "iter": 2, "pcl_loss": saved}
    run.take_data({"manual_seed": 0}, loader, loader.sampler)
    assert logged.text.count("not bit for bit the uninterrupted one") == is_said
    assert run.take_data({}, [], "order") == "order"  # data that are read in another way
    assert "a resume is not exact" in logged.text


def test_a_resume_of_plain_basicsrs_files_says_that_e_d_starts_anew(
    baseline: Options, run_pipeline: Run, tmp_path: Path
) -> None:
    baseline["train"] |= {"perceptual_opt": {"type": "PCLPerceptualLoss", "num_feat": 2}, "total_iter": 2}
    run_pipeline(baseline | {"val": None})
    (tmp_path / "experiments/tiny/models/pcl_2.pth").unlink()
    path = tmp_path / "experiments/tiny/training_states/2.state"
    state = torch.load(path, weights_only=True)
    del state["pcl_loss"]
    torch.save(state, path)
    baseline["train"]["total_iter"] = 3
    assert "the PCLPerceptualLoss starts anew" in run_pipeline(baseline | {"val": None}, "--auto_resume")


# --- signals ---


def test_a_signal_ends_the_run_with_a_checkpoint_and_one_line(
    small: Options, run_pipeline: Run, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    small["logger"]["save_checkpoint_freq"] = 1000
    small["val"]["val_freq"] = 3
    validate = PCLModel.nondist_validation

    def validate_and_signal(self: Any, *given: Any, **keywords: Any) -> None:
        validate(self, *given, **keywords)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PCLModel, "nondist_validation", validate_and_signal)
    with pytest.raises(SystemExit, match="143"):
        run_pipeline(small)
    line = "pcl-loss train: SIGTERM: iteration 3 is saved, --auto_resume goes on"
    assert capsys.readouterr().err.splitlines()[-1] == line
    saved = {path.name for path in (tmp_path / "experiments").rglob("*_3.pth")}
    assert saved >= {"net_g_3.pth", "net_d_3.pth"}


def test_a_signal_before_the_first_iteration_and_a_second_one_are_obeyed_at_once() -> None:
    run = run_mixin.Run()
    with pytest.raises(run_mixin.StoppedError, match="SIGTERM: nothing was trained yet"):
        run.on_signal(signal.SIGTERM, None)
    run = run_mixin.Run()
    run.has_begun, run.saved = True, 4
    run.on_signal(signal.SIGINT, None)
    with pytest.raises(run_mixin.StoppedError, match="SIGINT: iteration 4 is saved") as stop:
        run.on_signal(signal.SIGINT, None)
    assert stop.value.status == 130


def test_a_signal_ends_workers_that_load_what_will_not_come(
    small: Options, run_pipeline: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["datasets"]["train"]["num_worker_per_gpu"] = 2
    small["val"] = None
    read = PairedImageDataset.__getitem__
    reads: list[int] = []

    def read_or_hang(self: Any, index: int) -> Any:
        """What each worker reads for the iterations that will not come takes a minute."""
        if torch.utils.data.get_worker_info() is not None:
            reads.append(index)
            if len(reads) == 5:
                os.kill(os.getppid(), signal.SIGTERM)
            if len(reads) >= 7:
                time.sleep(60)
        return read(self, index)

    monkeypatch.setattr(PairedImageDataset, "__getitem__", read_or_hang)
    children = set(multiprocessing.active_children())
    start = time.monotonic()
    with pytest.raises(SystemExit, match="143"):
        run_pipeline(small)
    assert time.monotonic() - start < 50
    assert set(multiprocessing.active_children()) <= children


def start(options: Options, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    (folder / "tiny.yml").write_text(yaml.safe_dump(options))
    command = [sys.executable, *launcher, "-opt", "tiny.yml", "--auto_resume"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=out, text=True, env=env, start_new_session=True)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not file.exists():
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.poll() is None
        time.sleep(0.05)


def endless(options: Options) -> Options:
    options["train"]["total_iter"] = 100000
    options["train"]["scheduler"]["periods"] = [100000]
    return options | {"val": None}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_group"), [*((number, False) for number in STOP_SIGNALS), (signal.SIGINT, True)])
def test_a_process_that_is_signalled_leaves_no_child_and_no_traceback(
    number: signal.Signals, to_group: bool, small: Options, tmp_path: Path
) -> None:
    small["datasets"]["train"]["num_worker_per_gpu"] = 2
    process = start(endless(small), tmp_path, "-m", "pcl_loss.train")
    wait_for(tmp_path / "experiments/tiny/training_states/4.state", process)
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in out
    assert out.splitlines()[-1].startswith(f"pcl-loss train: {number.name}: iteration ")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit_and_stop_at_one_iteration(small: Options, tmp_path: Path) -> None:
    small |= {"dist_params": {"backend": "nccl", "port": 29500}, "val": None}
    small["logger"] |= {"save_checkpoint_freq": 4, "use_tb_logger": False}
    for name, stops in (("whole", [8]), ("tiny", [4, 8])):
        for stop in stops:
            options = copy.deepcopy(small) | {"name": name}
            options["train"]["total_iter"] = stop
            process = start(options, tmp_path, *TWO_RANKS)
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0, out[-3000:]
    resumed, expected = (all_files(tmp_path / "experiments" / name, 8) for name in ("tiny", "whole"))
    assert_equal_weights(resumed, expected)

    process = start(endless(small), tmp_path, *TWO_RANKS)
    wait_for(tmp_path / "experiments/tiny/training_states/12.state", process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in out.splitlines() if "pcl-loss train: SIGTERM: iteration" in line]
    assert len({line.partition("pcl-loss")[2] for line in lines}) == 1, out[-3000:]
