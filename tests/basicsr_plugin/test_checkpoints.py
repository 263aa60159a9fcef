"""A killed run, a full disk and broken files cost no checkpoint that was whole, and no file runs code."""

import io
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.models import base_model
from basicsr.utils.logger import initialized_logger
from basicsr_fixtures import Options

from pcl_loss import train
from pcl_loss._files import UnreadableFileError
from pcl_loss.basicsr_plugin.checkpoints import FILES, load_resume_state

STATE = {"epoch": 0, "iter": 0, "optimizers": [], "schedulers": []}
NAMES = ("training_states/{}.state", "models/net_g_{}.pth", "models/net_d_{}.pth", "models/pcl_{}.pth")


class Payload:
    """Pickled, it makes a file when it is loaded with its code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def options_of(folder: Path, **path: Any) -> Options:
    places = {key: str(folder / key) for key in ("models", "training_states")}
    return {"network_g": {}, "network_d": {}, "auto_resume": True, "path": {"resume_state": None} | places | path}


def write_sets(folder: Path, *iterations: int, by_basicsr: bool = False) -> None:
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
        "deleted": path.unlink,
        "of another kind": lambda: torch.save([1], path),
    }[how]()


def resumed(folder: Path, **path: Any) -> int | None:
    """The iteration that `--auto_resume` takes."""
    state = load_resume_state(options_of(folder, **path))
    return None if state is None else int(state["iter"])


# --- writing ---


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths))[1])
    FILES.save({}, tmp_path / "new.pth")
    assert done == ["fsync", "replace"]


def write_half(content: Any, file: Any) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def test_on_a_full_disk_the_older_files_stay_the_run_goes_on_and_the_log_names_the_new_ones(
    baseline: Options, run_pipeline: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline["train"] |= {"perceptual_opt": {"type": "PCLPerceptualLoss", "num_feat": 2}, "total_iter": 2}
    run_pipeline(baseline | {"val": None})
    before = {path.name: path.read_bytes() for path in (tmp_path / "experiments/tiny/models").iterdir()}
    assert before.keys() == {f"{name}_{iteration}.pth" for name in ("net_g", "pcl") for iteration in (2, "latest")}
    baseline["train"]["total_iter"] = 4
    monkeypatch.setattr(torch, "save", write_half)
    log = run_pipeline(baseline | {"val": None}, "--auto_resume")
    assert {path.name: path.read_bytes() for path in (tmp_path / "experiments/tiny/models").iterdir()} == before
    for name in ("net_g_4.pth", "pcl_4.pth", "net_g_latest.pth", "4.state"):
        assert f"{name} could not be saved, and is as it was: [Errno 28] No space left on device" in log
    assert "iter:       4" in log


def test_a_state_whose_network_could_not_be_saved_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sets(tmp_path, 2)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(torch, "save", write_half)
        FILES.save({}, tmp_path / "models/net_g_4.pth")
    FILES.save(STATE | {"iter": 4}, tmp_path / "training_states/4.state")
    assert resumed(tmp_path) == 2


# --- what is resumed ---


@pytest.mark.parametrize(("name", "how"), zip(NAMES, ("truncated", "deleted") * 2, strict=True))
def test_a_broken_file_is_named_and_the_set_before_it_taken(
    name: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sets(tmp_path, 2, 10)
    damage(tmp_path / name.format(10), how)
    opt = options_of(tmp_path)
    assert load_resume_state(opt) is not None
    assert opt["path"]["resume_state"] == str(tmp_path / "training_states/2.state")
    assert opt["path"]["pretrain_network_d"] == str(tmp_path / "models/net_d_2.pth")
    said = capsys.readouterr().out
    assert "--auto_resume passes over iteration 10" in said
    assert str(tmp_path / name.format(10)) in said


@pytest.mark.parametrize("name", NAMES)
def test_so_it_is_where_plain_basicsr_has_saved_but_for_our_files_which_it_may_lack(name: str, tmp_path: Path) -> None:
    write_sets(tmp_path, 2, 10, by_basicsr=True)
    (tmp_path / name.format(10)).unlink()
    assert resumed(tmp_path) == (10 if "pcl" in name else 2)


@pytest.mark.parametrize("by_basicsr", [False, True])
def test_a_network_that_is_not_to_be_resumed_may_be_missing(by_basicsr: bool, tmp_path: Path) -> None:
    write_sets(tmp_path, 2, 10, by_basicsr=by_basicsr)
    (tmp_path / "models/net_d_10.pth").unlink()
    assert resumed(tmp_path, ignore_resume_networks=["network_d"]) == 10


def test_foreign_files_and_what_a_killed_run_left_are_passed_over(tmp_path: Path) -> None:
    write_sets(tmp_path, 2)
    (tmp_path / "training_states/latest.state").write_bytes(b"")
    (tmp_path / "models/.tmp-1.pth").write_bytes(b"half")
    torch.save(STATE, tmp_path / "models/net_g_4.pth")
    assert resumed(tmp_path) == 2
    assert not (tmp_path / "models/.tmp-1.pth").exists()


def test_nothing_whole_is_an_error_and_nothing_at_all_a_start_from_scratch(tmp_path: Path) -> None:
    write_sets(tmp_path, 2)
    damage(tmp_path / "models/net_g_2.pth", "truncated")
    with pytest.raises(UnreadableFileError, match=r"no iteration in .*training_states"):
        resumed(tmp_path)
    (tmp_path / "training_states/2.state").unlink()
    assert resumed(tmp_path) is None


@pytest.mark.parametrize("how", ["truncated", "deleted", "of another kind"])
def test_a_broken_state_that_was_to_be_resumed_is_named(how: str, tmp_path: Path) -> None:
    write_sets(tmp_path, 2)
    path = tmp_path / "training_states/2.state"
    damage(path, how)
    with pytest.raises(UnreadableFileError, match=re.escape(str(path))):
        load_resume_state(options_of(tmp_path, resume_state=str(path)) | {"auto_resume": False})


# --- no code in a file is run ---


def test_no_network_that_basicsr_loads_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"params": Payload(tmp_path / "ran")}, tmp_path / "net_g.pth")
    net = torch.nn.Conv2d(1, 1, 1)
    model = base_model.BaseModel({"num_gpu": 0, "is_train": False})
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnreadableFileError, match=r"net_g\.pth holds Python objects"):
        model.load_network(net, str(tmp_path / "net_g.pth"))
    assert not (tmp_path / "ran").exists()

    monkeypatch.setattr(base_model, "torch", torch)
    with pytest.warns((UserWarning, FutureWarning), match=r"WEIGHTS_ONLY|weights_only"), pytest.raises(AttributeError):
        model.load_network(net, str(tmp_path / "net_g.pth"))
    assert (tmp_path / "ran").exists(), "the payload does not work"


@pytest.mark.parametrize("name", NAMES[:2])
def test_no_file_of_a_resumed_run_runs_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write_sets(tmp_path, 2)
    torch.save(STATE | {"iter": 2, "more": Payload(tmp_path / "ran")}, tmp_path / name.format(2))
    with pytest.raises(UnreadableFileError):
        resumed(tmp_path)
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
        buffer = io.BytesIO()
        save(content, buffer)
        whole = buffer.getvalue()
        for part in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
            file.write(part)
            file.flush()
            time.sleep(0.05)

    if slow:
        torch.save = save_slowly
    sys.argv = ["train", "-opt", "tiny.yml", "--auto_resume"]
    train.main()


def newest(folder: Path) -> int:
    return max((int(path.stem) for path in folder.glob("experiments/tiny/training_states/[0-9]*.state")), default=0)


@pytest.mark.slow
def test_thirty_kills_half_of_them_inside_a_save_lose_nothing(small: Options, tmp_path: Path) -> None:
    small["train"]["total_iter"] = 100000
    small["train"]["scheduler"]["periods"] = [100000]
    small["logger"] |= {"save_checkpoint_freq": 1, "use_tb_logger": False, "print_freq": 100}
    small["val"] = None
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(small))
    draw = random.Random(0)
    before = 0
    for number in range(31):
        in_a_save = number % 2 == 1
        log = tmp_path / f"{number}.log"
        process = multiprocessing.get_context("fork").Process(target=leg, args=(str(tmp_path), str(log), in_a_save))
        process.start()
        end = time.monotonic() + 120
        while newest(tmp_path) < before + 2:
            assert process.is_alive(), f"leg {number} ended: {log.read_text()[-3000:]}"
            assert time.monotonic() < end, f"leg {number} saved nothing: {log.read_text()[-3000:]}"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        while in_a_save and not list((tmp_path / "experiments/tiny").rglob(".tmp-*")):
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if number:
            assert re.search(rf"Resuming training from epoch: \d+, iter: {before}\.", log.read_text()), log.read_text()
        before = newest(tmp_path)
