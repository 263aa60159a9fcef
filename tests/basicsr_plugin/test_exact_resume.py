"""A run that is stopped and resumed is the uninterrupted one, bit for bit; a signal ends it with a checkpoint."""

import copy
import os
import re
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
from basicsr.models import lr_scheduler
from basicsr.utils import get_root_logger
from basicsr_fixtures import Options, all_files, assert_equal_weights

from pcl_loss.basicsr_plugin import OptionsError, PCLModel, exact_resume
from pcl_loss.basicsr_plugin.durable import DurableTorch

Run = Callable[..., str]


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch, small: Options) -> Options:
    """`small` with a network that draws random numbers, in the middle of an epoch at iteration 5."""
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.utils.registry import ARCH_REGISTRY

    class DropoutEDSR(EDSR):  # type: ignore[misc]
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.conv_first = torch.nn.Sequential(self.conv_first, torch.nn.Dropout(0.3))

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "DropoutEDSR", DropoutEDSR)
    small["network_g"]["type"] = "DropoutEDSR"
    small["datasets"]["train"]["dataset_enlarge_ratio"] = 2  # three batches an epoch
    small["train"]["total_iter"] = 8
    small["logger"] |= {"save_checkpoint_freq": 1, "use_tb_logger": False}
    small["val"]["val_freq"] = 1
    return small


def read_saved(folder: Path, name: str) -> tuple[Path, Any]:
    """A file beside the run's training states, and what it holds."""
    path = folder / "experiments/tiny/training_states" / name
    return path, torch.load(path, weights_only=True)


def best_lines(log: str) -> list[str]:
    return [line.strip() for line in log.splitlines() if "Best:" in line]


@pytest.mark.parametrize(
    ("road", "workers"),
    [("PCL", 0), ("PCL", 2), ("perceptual", 0), pytest.param("perceptual", 2, marks=pytest.mark.slow)],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    road: str, workers: int, dropout: Options, run_pipeline: Run, tmp_path: Path
) -> None:
    if road == "perceptual":
        dropout["model_type"] = "SRModel"
        del dropout["train"]["pcl_opt"], dropout["network_d"]
        dropout["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 2}
    dropout["datasets"]["train"]["num_worker_per_gpu"] = workers
    whole = best_lines(run_pipeline(dropout | {"name": "whole"}))
    stops = [2, 5, 8]
    for stop in stops:
        dropout["train"]["total_iter"] = stop
        log = run_pipeline(dropout, "--auto_resume")
        assert "not bit for bit" not in log
    resumed, expected = (all_files(tmp_path / "experiments" / name, 8) for name in ("tiny", "whole"))
    assert any("conv_first" in name for name in resumed)
    assert any("rng" in name for name in resumed)
    assert_equal_weights(resumed, expected)
    assert best_lines(log)[-1] == whole[-1]


@pytest.mark.parametrize("broken", ["place", "rng"])
def test_what_is_not_taken_up_would_be_noticed(
    broken: str, dropout: Options, run_pipeline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "place":
        monkeypatch.setattr(exact_resume, "skip", lambda *_: None)
    else:
        monkeypatch.setattr(exact_resume, "set_rng_state", lambda *_: None)
    with pytest.raises(AssertionError):
        test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit("PCL", 0, dropout, run_pipeline, tmp_path)


def test_the_best_metric_up_to_the_resumed_iteration_is_kept(
    dropout: Options, run_pipeline: Run, tmp_path: Path
) -> None:
    run_pipeline(dropout)
    path, best = read_saved(tmp_path, "best_metrics.pth")
    assert list(best) == list(range(1, 9))
    best[7]["held_out"]["psnr"] |= {"val": 98.0, "iter": 6}
    best[8]["held_out"]["psnr"] |= {"val": 99.0, "iter": 8}
    torch.save(best, path)
    (tmp_path / "experiments/tiny/training_states/8.state").unlink()
    assert "Best: 98.0000 @ 6 iter" in run_pipeline(dropout, "--auto_resume")
    damage = path.read_bytes()[:100]
    path.write_bytes(damage)
    assert "The best metrics start anew: " in run_pipeline(dropout, "--auto_resume")


def test_without_a_seed_in_the_yaml_the_first_legs_holds(
    dropout: Options, run_pipeline: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_pipeline(dropout)
    dropout["manual_seed"] = 17
    dropout["train"]["total_iter"] = 9
    run_pipeline(dropout, "--auto_resume")
    assert "manual_seed is 3, that of the run which is resumed." in capsys.readouterr().out
    _, state = read_saved(tmp_path, "9.state")
    assert state["pcl_loss"]["manual_seed"] == 3


def test_a_stock_state_resumes_with_a_line_that_says_what_is_not_exact(
    dropout: Options, run_pipeline: Run, tmp_path: Path
) -> None:
    run_pipeline(dropout)
    path, state = read_saved(tmp_path, "8.state")
    del state["pcl_loss"]
    torch.save(state, path)
    dropout["train"]["total_iter"] = 9
    log = run_pipeline(dropout, "--auto_resume")
    assert log.count("not bit for bit the uninterrupted one: its training state was not written by `pcl-loss") == 1
    assert "its epoch's data begin anew, and random crops, flips and dropout differ." in log
    assert "iter:       9" in log


def test_another_number_of_processes_resumes_with_such_a_line(
    dropout: Options, run_pipeline: Run, tmp_path: Path
) -> None:
    run_pipeline(dropout)
    path, state = read_saved(tmp_path, "8.state")
    state["pcl_loss"]["rng"] *= 2
    torch.save(state, path)
    dropout["train"]["total_iter"] = 9
    log = run_pipeline(dropout, "--auto_resume")
    assert "it was saved by 2 processes and goes on with 1" in log


def test_a_batch_that_is_never_full_costs_no_iteration(small: Options, run_pipeline: Run) -> None:
    # Three images: one batch of two an epoch, where BasicSR counts two.
    small["datasets"]["train"]["dataset_enlarge_ratio"] = 1
    small["train"]["total_iter"] = 7
    del small["val"]
    log = run_pipeline(small)
    assert [int(number) for number in re.findall(r"iter: +(\d+),", log)] == list(range(1, 8))


def test_data_that_make_no_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import basicsr.train

    monkeypatch.setattr(basicsr.train, "create_train_val_dataloader", lambda opt, logger: ([], None, [], 1, 4))
    with (
        exact_resume.exact_resume(DurableTorch(), basicsr.train),
        pytest.raises(OptionsError, match="a batch is larger than the"),
    ):
        basicsr.train.create_train_val_dataloader({}, None)


def test_without_train_basicsr_is_as_it_was(small: Options, run_pipeline: Run) -> None:
    import basicsr.train

    before = {name: getattr(basicsr.train, name) for name in dir(basicsr.train)}
    handlers = [signal.getsignal(number) for number in exact_resume.STOP_SIGNALS]
    run_pipeline(small)
    assert {name: getattr(basicsr.train, name) for name in dir(basicsr.train)} == before
    assert [signal.getsignal(number) for number in exact_resume.STOP_SIGNALS] == handlers


# --- another schedule ---


def test_raised_iterations_and_periods_are_taken_and_another_rate_is_said_to_be_ignored(
    small: Options, run_pipeline: Run
) -> None:
    small["train"]["scheduler"]["periods"] = [4]
    run_pipeline(small)
    small["train"] |= {"total_iter": 10}
    small["train"]["scheduler"]["periods"] = [10]
    small["train"]["optim_g"]["lr"] = 5e-3
    log = run_pipeline(small, "--auto_resume")
    assert "train.scheduler: periods was [4] and is [10] from here on." in log
    assert "A learning rate of 0.005 is ignored: the resumed run goes on with that of its training state, 0.001." in log
    rates = [line.partition("lr:(")[2].partition(",")[0] for line in log.splitlines() if "lr:(" in line]
    # The cosine of ten iterations, from the fifth on: lr * (1 + cos(pi * 4 / 10)) / 2 = 6.55e-4.
    assert float(rates[0]) == pytest.approx(6.55e-4, rel=1e-3)
    assert len(rates) == 6


def test_milestones_are_taken_too(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_root_logger(), "propagate", True)
    model = object.__new__(PCLModel)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 1.0)
    model.schedulers = [lr_scheduler.MultiStepRestartLR(optimizer, [8])]
    state = {"schedulers": [copy.deepcopy(model.schedulers[0].state_dict())]}
    exact_resume.take_schedule(model, state)
    assert not caplog.text
    model.schedulers = [lr_scheduler.MultiStepRestartLR(optimizer, [9], gamma=0.5)]
    exact_resume.take_schedule(model, state)
    assert "milestones was" in caplog.text
    assert state["schedulers"][0]["milestones"] == {9: 1}
    assert state["schedulers"][0]["gamma"] == 0.5


# --- signals ---


@pytest.mark.parametrize("number", exact_resume.STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_the_run_with_a_checkpoint_and_one_line(
    number: signal.Signals,
    small: Options,
    run_pipeline: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small["logger"]["save_checkpoint_freq"] = 1000
    small["datasets"]["train"]["num_worker_per_gpu"] = 2
    step = PCLModel.optimize_parameters

    def step_and_signal(self: Any, current_iter: int) -> None:
        step(self, current_iter)
        if current_iter == 3:
            os.kill(os.getpid(), number)

    from basicsr.data.paired_image_dataset import PairedImageDataset

    read = PairedImageDataset.__getitem__
    reads: list[int] = []

    def read_or_hang(self: Any, index: int) -> Any:
        """What each worker reads for the iterations that will not come takes a minute."""
        if torch.utils.data.get_worker_info() is not None:
            reads.append(index)
            if len(reads) >= 7:
                time.sleep(60)
        return read(self, index)

    monkeypatch.setattr(PairedImageDataset, "__getitem__", read_or_hang)
    monkeypatch.setattr(PCLModel, "optimize_parameters", step_and_signal)
    import multiprocessing

    children = set(multiprocessing.active_children())
    with pytest.raises(SystemExit) as stop:
        run_pipeline(small)
    assert stop.value.code == 128 + number
    line = f"pcl-loss train: {number.name}: iteration 3 is saved, --auto_resume goes on"
    assert capsys.readouterr().err.splitlines()[-1] == line
    saved = {path.name for path in (tmp_path / "experiments").rglob("*_3.pth")}
    assert saved >= {"net_g_3.pth", "net_d_3.pth"}
    assert set(multiprocessing.active_children()) <= children
    assert "Resuming training from epoch: 0, iter: 3." in run_pipeline(small, "--auto_resume")


def best_metrics(folder: Path) -> dict[int, Any]:
    saved: dict[int, Any] = torch.load(folder / "training_states/best_metrics.pth", weights_only=True)
    return saved


@pytest.mark.parametrize("end", ["signal", "crash"])
def test_a_validation_that_did_not_end_is_made_up_for_when_the_run_is_resumed(
    end: str, dropout: Options, run_pipeline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout["logger"]["save_checkpoint_freq"] = 2 if end == "crash" else 8
    dropout["datasets"]["val_2"] = dropout["datasets"]["val"] | {"name": "second"}
    dropout["val"]["val_freq"] = 2
    run_pipeline(dropout | {"name": "whole"})
    validate = PCLModel.nondist_validation
    went_on = []

    def validate_until_the_end(self: Any, loader: Any, current_iter: int, *rest: Any) -> None:
        if current_iter == 4 and loader.dataset.opt["name"] == "second":
            torch.rand(7)
            if end == "crash":
                raise RuntimeError("the machine has stopped")
            os.kill(os.getpid(), signal.SIGTERM)
            went_on.append(current_iter)
        validate(self, loader, current_iter, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(PCLModel, "nondist_validation", validate_until_the_end)
        with pytest.raises((SystemExit, RuntimeError)) as stop:
            run_pipeline(dropout)
    if end == "signal":
        assert stop.value.code == 143  # type: ignore[union-attr]
    assert not went_on
    assert 4 not in best_metrics(tmp_path / "experiments/tiny")
    log = run_pipeline(dropout, "--auto_resume")
    assert "Resuming training from epoch: 1, iter: 4." in log
    assert log.count("The validation of iteration 4 was not finished; here it is.") == 1
    resumed, whole = (tmp_path / "experiments" / name for name in ("tiny", "whole"))
    assert_equal_weights(all_files(resumed, 8), all_files(whole, 8))
    assert best_metrics(resumed) == best_metrics(whole)
    assert "was not finished" not in run_pipeline(dropout, "--auto_resume")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_while_the_run_waits_for_data_is_obeyed_when_they_are_there(
    workers: int, small: Options, run_pipeline: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from basicsr.data.paired_image_dataset import PairedImageDataset

    small["logger"]["save_checkpoint_freq"] = 1000
    small["val"] = None
    small["train"]["total_iter"] = 20
    small["datasets"]["train"]["num_worker_per_gpu"] = workers
    read, main = PairedImageDataset.__getitem__, os.getpid()
    calls: list[int] = []

    def read_and_signal(self: Any, index: int) -> Any:
        calls.append(index)
        # Behind what is read before the first iteration, by one of the processes that read.
        if len(calls) == (7 if workers else 3) and not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(main, signal.SIGTERM)
            time.sleep(0.5)
        return read(self, index)

    monkeypatch.setattr(PairedImageDataset, "__getitem__", read_and_signal)
    with pytest.raises(SystemExit) as stop:
        run_pipeline(small)
    assert stop.value.code == 143
    (saved,) = (tmp_path / "experiments/tiny/training_states").glob("*.state")
    assert 1 <= int(saved.stem) < 20


def start(options: Options, folder: Path, *launcher: str) -> subprocess.Popen[str]:
    (folder / "tiny.yml").write_text(yaml.safe_dump(options))
    flags = ["-opt", "tiny.yml", "--auto_resume"]
    command = [sys.executable, *launcher, "-m", "pcl_loss.train", *flags]
    if launcher:
        command += ["--launcher", "pytorch"]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("number", exact_resume.STOP_SIGNALS, ids=lambda number: number.name)
def test_a_process_that_is_signalled_leaves_no_child_and_no_traceback(
    number: signal.Signals, to_group: bool, small: Options, tmp_path: Path
) -> None:
    small["train"]["total_iter"] = 100000
    small["train"]["scheduler"]["periods"] = [100000]
    small["val"] = None
    small["datasets"]["train"]["num_worker_per_gpu"] = 2
    process = start(small, tmp_path)
    states = tmp_path / "experiments/tiny/training_states"
    end = time.monotonic() + 120
    while not list(states.glob("4.state")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
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


TWO_RANKS = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone")


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit_and_stop_at_one_iteration(small: Options, tmp_path: Path) -> None:
    small |= {"dist_params": {"backend": "nccl", "port": 29500}, "val": None}
    small["logger"] |= {"save_checkpoint_freq": 4, "use_tb_logger": False}
    small["train"]["total_iter"] = 8
    for name, stops in (("whole", [8]), ("tiny", [4, 8])):
        for stop in stops:
            options = copy.deepcopy(small) | {"name": name}
            options["train"]["total_iter"] = stop
            process = start(options, tmp_path, *TWO_RANKS)
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0, out[-3000:]
    resumed, expected = (all_files(tmp_path / "experiments" / name, 8) for name in ("tiny", "whole"))
    assert_equal_weights(resumed, expected)

    small["train"]["total_iter"] = 100000
    small["train"]["scheduler"]["periods"] = [100000]
    process = start(small, tmp_path, *TWO_RANKS)
    end = time.monotonic() + 120
    while not (tmp_path / "experiments/tiny/training_states/12.state").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in out.splitlines() if "pcl-loss train: SIGTERM: iteration" in line]
    assert len({line.partition("pcl-loss")[2] for line in lines}) == 1, out[-3000:]
