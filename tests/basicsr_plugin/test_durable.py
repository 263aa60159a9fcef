"""A killed run, a full disk and broken files cost no checkpoint that was whole."""

import contextlib
import logging
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.models import base_model
from basicsr.utils.logger import initialized_logger
from basicsr_fixtures import Options

from pcl_loss import _durable
from pcl_loss.basicsr_plugin import durable, repairs

STATE = {"epoch": 0, "iter": 0, "optimizers": [], "schedulers": []}
NAMES = ("training_states/{}.state", "models/net_g_{}.pth", "models/net_d_{}.pth", "models/pcl_state_{}.pth")


class Payload:
    """Pickled, it makes a file when it is loaded with its code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def options_of(folder: Path, **path: Any) -> Options:
    places = {key: str(folder / key) for key in ("models", "training_states")}
    return {"network_g": {}, "network_d": {}, "auto_resume": True, "path": {"resume_state": None} | places | path}


def write_sets(folder: Path, *iterations: int, by_basicsr: bool = True) -> None:
    for name in ("models", "training_states"):
        (folder / name).mkdir()
    for iteration in iterations:
        files = [Path(name.format(iteration)).name for name in NAMES[1:]]
        for name in NAMES:
            more = {} if by_basicsr else {"pcl_loss": {"files": files}}
            torch.save(STATE | {"iter": iteration} | more, folder / name.format(iteration))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    {
        "truncated": lambda: path.write_bytes(content[: len(content) // 2]),
        "emptied": lambda: path.write_bytes(b""),
        "foreign": lambda: path.write_bytes(b"no checkpoint"),
        "deleted": path.unlink,
        "of another iteration's kind": lambda: torch.save([1], path),
    }[how]()


# --- writing ---


def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net_g_latest.pth"
    durable.save({"old": torch.ones(3)}, path)

    def write_half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="No space left"):
        durable.save({"new": torch.ones(3)}, path)
    assert list(torch.load(path)) == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["net_g_latest.pth"]


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths))[1])
    durable.save({}, tmp_path / "new.pth")
    assert done == ["fsync", "replace"]


def test_in_a_run_every_checkpoint_is_written_so(
    small: Options, baseline: Options, run_pipeline: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    replacing = durable.replacing
    monkeypatch.setattr(durable, "replacing", lambda path: (written.append(path.name), replacing(path))[1])
    small["train"]["amp"] = "fp16"
    run_pipeline(small)
    baseline["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 2}
    run_pipeline(baseline | {"name": "perceptual"})
    kept = [path.name for path in (tmp_path / "experiments").rglob("*") if path.suffix in (".pth", ".state")]
    assert set(kept) == set(written)
    assert {"2.state", "net_g_4.pth", "net_d_latest.pth", "pcl_state_4.pth", "pcl_4.pth"} <= set(kept)


def test_a_mere_register_leaves_basicsrs_saves_alone(small: Options, run_pipeline: Callable[..., str]) -> None:
    before = base_model.torch
    run_pipeline(small)
    assert base_model.torch is before
    assert base_model.torch.save is torch.save


def test_a_full_disk_keeps_the_older_files_and_ends_in_an_error(
    small: Options, run_pipeline: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of more than 4 kB cannot be written in the second leg."""
    run_pipeline(small)
    latest = tmp_path / "experiments/tiny/models/net_g_latest.pth"
    before = latest.read_bytes()
    small["train"]["total_iter"] = 6
    monkeypatch.setattr(durable, "SECONDS_TO_SECOND_TRY", 0.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = torch.save

    def save_on_a_full_disk(content: Any, file: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            save(content, file)
            file.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(torch, "save", save_on_a_full_disk)
    with pytest.raises(SystemExit) as stop:
        run_pipeline(small, "--auto_resume")
    assert "could not be saved, the disk may be full" in str(stop.value.code)
    for name in ("net_g_6.pth", "net_d_6.pth", "6.state", "net_g_latest.pth"):
        assert name in str(stop.value.code)
    assert latest.read_bytes() == before
    assert not list((tmp_path / "experiments").rglob(".tmp-*"))
    log = max((tmp_path / "experiments/tiny").glob("*.log"), key=lambda path: path.stat().st_mtime_ns).read_text()
    assert "net_g_6.pth could not be saved: [Errno 27] File too large" in log
    assert "Just ignore it" not in log


def test_images_of_a_validation_that_cannot_be_written_end_the_run_in_one_line(
    small: Options, run_pipeline: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small["val"] |= {"save_img": True, "suffix": None}
    monkeypatch.setattr("cv2.imwrite", lambda *_: False)
    with pytest.raises(SystemExit, match=r"pcl-loss train: images of the validation could not be written, .*save_img"):
        run_pipeline(small)
    assert (tmp_path / "experiments/tiny/models/net_g_2.pth").is_file()


# --- what is resumed ---


def test_the_newest_whole_set_is_taken(tmp_path: Path) -> None:
    write_sets(tmp_path, 2, 10)
    opt = options_of(tmp_path)
    state = durable.load_resume_state(opt)
    assert state is not None
    assert state["iter"] == 10
    assert opt["path"]["resume_state"] == str(tmp_path / "training_states/10.state")
    assert opt["path"]["pretrain_network_d"] == str(tmp_path / "models/net_d_10.pth")


@pytest.mark.parametrize("how", ["truncated", "emptied", "foreign", "deleted"])
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_file_is_named_and_the_set_before_it_taken(
    name: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sets(tmp_path, 2, 10, by_basicsr=False)
    damage(tmp_path / name.format(10), how)
    state = durable.load_resume_state(options_of(tmp_path))
    said = capsys.readouterr().out
    assert state is not None
    assert state["iter"] == 2
    assert "--auto_resume passes over iteration 10" in said
    assert str(tmp_path / name.format(10)) in said


@pytest.mark.parametrize("name", NAMES)
def test_so_it_is_where_plain_basicsr_has_saved_but_for_our_files_which_it_may_lack(name: str, tmp_path: Path) -> None:
    write_sets(tmp_path, 2, 10)
    (tmp_path / name.format(10)).unlink()
    state = durable.load_resume_state(options_of(tmp_path))
    assert state == STATE | {"iter": 10 if "pcl_state" in name else 2}


@pytest.mark.parametrize("by_basicsr", [False, True])
def test_a_network_that_is_not_to_be_resumed_may_be_missing(by_basicsr: bool, tmp_path: Path) -> None:
    write_sets(tmp_path, 2, 10, by_basicsr=by_basicsr)
    (tmp_path / "models/net_d_10.pth").unlink()
    state = durable.load_resume_state(options_of(tmp_path, ignore_resume_networks=["network_d"]))
    assert state is not None
    assert state["iter"] == 10


@pytest.mark.parametrize("road", ["PCL", "perceptual"])
def test_a_run_knows_its_files_also_where_only_one_set_was_saved(
    road: str, small: Options, baseline: Options, run_pipeline: Callable[..., str], tmp_path: Path, capsys: Any
) -> None:
    if road == "perceptual":
        small = baseline
        small["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "num_feat": 2}
    small["train"]["amp"] = "fp16"
    small["logger"]["save_checkpoint_freq"] = 4
    run_pipeline(small)
    models = tmp_path / "experiments/tiny/models"
    names = {path.stem.removesuffix("_4") for path in models.glob("*_4.pth")}
    assert names == {"net_g", "pcl_state"} | ({"net_d"} if road == "PCL" else {"pcl"})
    for name in sorted(names):
        paths = [path for path in models.glob(f"{name}_*.pth") if path.stem in (f"{name}_4", f"{name}_latest")]
        kept = [path.rename(path.with_suffix(".kept")) for path in paths]
        with pytest.raises(SystemExit, match=r"finds no iteration in .* of which every file is whole"):
            run_pipeline(small, "--auto_resume")
        assert f"{models / name}_4.pth" in capsys.readouterr().out
        for path in kept:
            path.rename(path.with_suffix(".pth"))
    assert "Resuming training from epoch: 0, iter: 4." in run_pipeline(small, "--auto_resume")


def test_networks_without_a_training_state_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sets(tmp_path, 2, 10)
    (tmp_path / "training_states/10.state").unlink()
    assert durable.load_resume_state(options_of(tmp_path)) == STATE | {"iter": 2}
    assert "passes over iteration 10" in capsys.readouterr().out


def test_foreign_files_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sets(tmp_path, 2)
    for name in ("foo.state", "latest.state"):
        (tmp_path / "training_states" / name).write_bytes(b"")
    (tmp_path / "models/.tmp-1.pth").write_bytes(b"half")
    assert durable.load_resume_state(options_of(tmp_path)) == STATE | {"iter": 2}
    said = capsys.readouterr().out
    assert "foo.state: its name is no iteration" in said
    assert "latest.state: its name is no iteration" in said
    assert not (tmp_path / "models/.tmp-1.pth").exists()


def test_nothing_whole_is_an_error_and_nothing_at_all_a_start_from_scratch(tmp_path: Path) -> None:
    write_sets(tmp_path, 2)
    damage(tmp_path / "models/net_g_2.pth", "emptied")
    with pytest.raises(_durable.UnreadableFileError, match=r"no iteration in .*training_states"):
        durable.load_resume_state(options_of(tmp_path))
    (tmp_path / "training_states/2.state").unlink()
    assert durable.load_resume_state(options_of(tmp_path)) is None


@pytest.mark.parametrize("how", ["truncated", "emptied", "foreign", "deleted", "of another iteration's kind"])
def test_train_names_a_broken_state_that_it_was_told_to_resume(
    how: str, small: Options, run_pipeline: Callable[..., str], tmp_path: Path
) -> None:
    write_sets(tmp_path, 2)
    path = tmp_path / "training_states/2.state"
    damage(path, how)
    small["path"]["resume_state"] = str(path)
    with pytest.raises(SystemExit) as stop:
        run_pipeline(small)
    assert str(stop.value.code).startswith("pcl-loss train: ")
    assert str(path) in str(stop.value.code)


def test_train_and_test_name_a_broken_network(small: Options, run_pipeline: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "net_g.pth"
    path.write_bytes(b"")
    small["path"]["pretrain_network_g"] = str(path)
    for verb in ("train", "test"):
        if verb == "test":
            small["datasets"] = {"test": small["datasets"]["val"]}
            del small["train"], small["network_d"]
            small["model_type"] = "SRModel"
        with pytest.raises(SystemExit, match=rf"pcl-loss {verb}: .*net_g\.pth is no readable checkpoint"):
            run_pipeline(small, verb=verb)


# --- no code in a file is run ---


def test_where_torch_would_run_code_in_a_network_basicsr_no_longer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"params": Payload(tmp_path / "ran")}, tmp_path / "net_g.pth")
    net = torch.nn.Conv2d(1, 1, 1)
    model = base_model.BaseModel({"num_gpu": 0, "is_train": False})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(base_model, "torch", torch)
    with pytest.warns((UserWarning, FutureWarning), match=r"WEIGHTS_ONLY|weights_only"), pytest.raises(AttributeError):
        model.load_network(net, str(tmp_path / "net_g.pth"))
    assert (tmp_path / "ran").exists(), "the payload does not work"
    (tmp_path / "ran").rmdir()

    assert repairs.load_tensors_alone()
    with pytest.raises(_durable.UnreadableFileError, match=r"net_g\.pth holds Python objects"):
        model.load_network(net, str(tmp_path / "net_g.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("version", "needed"), [("2.5.1+cu124", True), ("2.6.0", False), ("2.14.1+cpu", False)])
def test_torch_that_loads_tensors_alone_needs_no_repair(
    version: str, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.setattr(base_model, "torch", torch)
    monkeypatch.setattr(torch, "__version__", version)
    assert repairs.load_tensors_alone() == needed


def test_no_network_that_basicsr_loads_runs_code_with_the_torch_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    torch.save({"params": Payload(tmp_path / "ran")}, tmp_path / "net_g.pth")
    model = base_model.BaseModel({"num_gpu": 0, "is_train": False})
    with pytest.raises((_durable.UnreadableFileError, pickle.UnpicklingError)):
        model.load_network(torch.nn.Conv2d(1, 1, 1), str(tmp_path / "net_g.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_a_resumed_run_runs_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write_sets(tmp_path, 2)
    torch.save(STATE | {"iter": 2, "more": Payload(tmp_path / "ran")}, tmp_path / name.format(2))
    with pytest.raises(_durable.UnreadableFileError):
        durable.load_resume_state(options_of(tmp_path))
    assert not (tmp_path / "ran").exists()


# --- killed ---


def leg(folder: str, log: str, slow: bool) -> None:
    """The process of one leg: trains until it is killed."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    # The handlers of the process that was forked write to its own streams.
    logging.getLogger("basicsr").handlers.clear()
    initialized_logger.clear()
    save = torch.save

    def save_slowly(content: Any, file: Any) -> None:
        import io

        buffer = io.BytesIO()
        save(content, buffer)
        half = len(buffer.getvalue()) // 2
        with open(file, "wb") if isinstance(file, str) else _Unowned(file) as target:
            target.write(buffer.getvalue()[:half])
            target.flush()
            time.sleep(0.05)
            target.write(buffer.getvalue()[half:])

    if slow:
        torch.save = save_slowly
    sys.argv = ["train", "-opt", "tiny.yml", "--auto_resume"]
    from pcl_loss import train

    train.main()


class _Unowned:
    """A file that is left open."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Any:
        return self.file

    def __exit__(self, *_: Any) -> None:
        pass


def newest(folder: Path) -> int:
    return max((int(path.stem) for path in folder.glob("experiments/tiny/training_states/[0-9]*.state")), default=0)


def kill_often(options: Options, folder: Path, kills: int) -> None:
    options["train"]["total_iter"] = 100000
    options["train"]["scheduler"]["periods"] = [100000]
    options["logger"] |= {"save_checkpoint_freq": 1, "use_tb_logger": False, "print_freq": 100}
    options["val"] = None
    (folder / "tiny.yml").write_text(yaml.safe_dump(options))
    draw = random.Random(0)
    before = 0
    for number in range(kills):
        in_a_save = number % 2 == 1
        log = folder / f"{number}.log"
        process = multiprocessing.get_context("fork").Process(target=leg, args=(str(folder), str(log), in_a_save))
        process.start()
        end = time.monotonic() + 120
        while newest(folder) < before + 2:
            assert process.is_alive(), f"leg {number} ended: {log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"leg {number} saved nothing: {log.read_text()[-3000:]}"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        if in_a_save:
            while not list((folder / "experiments/tiny").rglob(".tmp-*")):
                time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if number:
            assert f"Resuming training from epoch: 0, iter: {before}." in re.sub(
                r"epoch: \d+", "epoch: 0", log.read_text()
            ), log.read_text()[-3000:]
        before = newest(folder)


@pytest.mark.slow
def test_thirty_kills_half_of_them_inside_a_save_lose_nothing(small: Options, tmp_path: Path) -> None:
    kill_often(small, tmp_path, 31)


# --- a disk that is really full ---


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_keeps_the_older_files_names_the_failed_ones_and_ends_with_1(
    small: Options, tiny_disk: Path
) -> None:
    """Its log and TensorBoard's events lie there too."""
    small["train"]["total_iter"] = 6
    small["logger"]["save_checkpoint_freq"] = 3
    (tiny_disk / "tiny.yml").write_text(yaml.safe_dump(small))

    def train(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pcl_loss.train", "-opt", "tiny.yml", *flags],
            cwd=tiny_disk,
            text=True,
            capture_output=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    done = train()
    assert done.returncode == 0, done.stderr
    experiment = tiny_disk / "experiments/tiny"
    before = {path: path.read_bytes() for path in experiment.rglob("*") if path.suffix in (".pth", ".state")}
    small["train"]["total_iter"] = 9
    (tiny_disk / "tiny.yml").write_text(yaml.safe_dump(small))
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1024))
    done = train("--auto_resume")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pcl-loss train: ")
    assert "the disk may be full" in last
    for name in ("9.state", "net_g_9.pth", "net_d_9.pth", "net_g_latest.pth", "net_d_latest.pth"):
        assert name in last
    assert "Traceback" not in done.stdout + done.stderr
    for path, content in before.items():
        if path.name != "best_metrics.pth":
            assert path.read_bytes() == content
    assert not list(experiment.rglob(".tmp-*"))
    (tiny_disk / "filler").unlink()
    done = train("--auto_resume")
    assert done.returncode == 0, done.stderr
    assert (experiment / "training_states/9.state").exists()
