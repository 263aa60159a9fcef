"""Checkpoints that a killed run, a full disk or a broken file do not take away.

`save` is how our models write. In a run of `pcl-loss train` BasicSR's own files are written so too (`durable_files`),
and `--auto_resume` takes the newest set of files that is whole (`load_resume_state`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from basicsr.models import base_model
from basicsr.utils import check_resume, get_root_logger
from basicsr.utils.dist_util import get_dist_info

from .._durable import TEMPORARY, UnreadableFileError, load, replacing

Options = dict[str, Any]

SECONDS_TO_SECOND_TRY = 1.0
KEY = "pcl_loss"  # in a training state of BasicSR

_run: DurableTorch | None = None


def save(content: Any, path: str | Path) -> None:
    """As `torch.save`, all or nothing: until the new file is whole, the older one stays.

    In a run of `pcl-loss train` a file that cannot be written, as on a full disk, is tried a second time, and then
    logged and noted: the run goes on.

    Raises:
        OSError, RuntimeError: it cannot be written, outside such a run.
    """
    if _run is not None:
        _run.of_this_save.append(Path(path))
    for is_last in (False, True):
        try:
            with replacing(Path(path)) as file:
                torch.save(content, file)
            return
        except (OSError, RuntimeError) as error:
            if _run is None:
                raise
            if is_last:
                _run.failed.append(str(path))
                get_root_logger().error(
                    f"{path} could not be saved: {_reason(error)}. A file of that name is as it was. The run goes on; "
                    "its exit status will be 1."
                )
            else:
                time.sleep(SECONDS_TO_SECOND_TRY)


def _reason(error: BaseException) -> str:
    """The operating system's words, where torch hides them behind its own."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error).partition("\n")[0]


class Torch:
    """Stands in for the module `torch` where BasicSR reads and writes its files, and is torch in all else."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(path: str, **_keywords: Any) -> Any:
        """BasicSR asks for the CPU too."""
        return load(path)


class DurableTorch(Torch):
    """It writes durably as well, and puts more into the training states."""

    def __init__(self) -> None:
        self.extra: Options = {}
        """What the next training states hold under `KEY` beside what BasicSR puts there, which reads over it; with it
        they hold the names of the files that belong to them."""
        self.of_this_save: list[Path] = []
        self.failed: list[str] = []
        """The files that could not be written."""

    def save(self, content: Any, path: str) -> None:
        """What BasicSR calls."""
        if path.endswith(".state") and self.extra:
            files = [file.name for file in self.of_this_save if file.parent.name == "models"]
            content = content | {KEY: self.extra | {"files": files}}
        save(content, path)


@contextmanager
def durable_files() -> Iterator[DurableTorch]:
    """While open, BasicSR's networks and training states are written by `save`."""
    global _run
    before = base_model.torch
    base_model.torch = _run = files = DurableTorch()
    try:
        yield files
    finally:
        base_model.torch, _run = before, None


# --- what to resume ---


def load_resume_state(opt: Options) -> Options | None:
    """The training state to go on from, on the CPU: that of `path.resume_state`, or, with `--auto_resume`, of the
    newest iteration of which every file is whole; None if there is none. What is passed over is said.

    Raises:
        UnreadableFileError: the files of `path.resume_state` are not there or not whole, or there are training states
            and none of them has all its files.
    """
    path = opt["path"].get("resume_state")
    state: Options | None = None
    if opt["auto_resume"]:
        state, path = _newest_whole(opt)
        opt["path"]["resume_state"] = path
    elif path is not None:
        try:
            state = _load_whole(opt, Path(path))
        except OSError as error:
            raise UnreadableFileError(f"path.resume_state: {path} cannot be resumed: {error}") from error
    if state is not None:
        check_resume(opt, state["iter"])
    return state


def _newest_whole(opt: Options) -> tuple[Options | None, str | None]:
    states, models = (Path(opt["path"][key]) for key in ("training_states", "models"))
    _remove_leftovers(states, models)
    found = {path.stem: path for path in states.glob("*.state")}
    for stem in sorted(found):
        if not stem.isdecimal():
            _say(f"--auto_resume passes over {found[stem]}: its name is no iteration.")
    # A run that was killed while it saved leaves networks without a training state.
    saved = {match[1] for path in models.glob("net_g_*.pth") if (match := re.fullmatch(r"net_g_(\d+)", path.stem))}
    iterations = saved | {stem for stem in found if stem.isdecimal()}
    for stem in sorted(iterations, key=int, reverse=True):
        path = states / f"{stem}.state"
        try:
            return _load_whole(opt, path), str(path)
        except (OSError, UnreadableFileError) as error:
            _say(f"--auto_resume passes over iteration {stem}: {error}.")
    if any(stem.isdecimal() for stem in found):
        raise UnreadableFileError(
            f"--auto_resume finds no iteration in {states} of which every file is whole; delete it to start anew"
        )
    return None, None


def _load_whole(opt: Options, path: Path) -> Options:
    """A training state of which every file can be read."""
    state = load(path)
    if not (isinstance(state, dict) and {"epoch", "iter", "optimizers", "schedulers"} <= state.keys()):
        raise UnreadableFileError(f"{path} is no training state of BasicSR")
    models = Path(opt["path"]["models"])
    ignored = tuple(key.removeprefix("network_") for key in opt["path"].get("ignore_resume_networks") or ())
    if (names := state.get(KEY, {}).get("files")) is None:
        names = _expected(opt, models, state["iter"])
    for name in names:
        if not name.startswith(tuple(f"net_{label}_" for label in ignored)):
            load(models / name)
    return state


def _expected(opt: Options, models: Path, iteration: int) -> list[str]:
    """The files of a training state that does not say which are its own, as one of plain BasicSR."""
    labels = [key.removeprefix("network_") for key in opt if key.startswith("network_")]
    # A network of which nothing was ever saved is none that is resumed.
    needed = [f"net_{label}" for label in labels if any(models.glob(f"net_{label}_*.pth"))] or ["net_g"]
    ours = [name for name in ("pcl_state", "pcl") if (models / f"{name}_{iteration}.pth").exists()]
    return [f"{name}_{iteration}.pth" for name in [*needed, *ours]]


def _remove_leftovers(*folders: Path) -> None:
    """What a killed run had begun to write."""
    if get_dist_info()[0] == 0:
        for folder in folders:
            for file in folder.glob(f"{TEMPORARY}*"):
                file.unlink(missing_ok=True)


def _say(line: str) -> None:
    # Not to the log, which BasicSR opens later.
    if get_dist_info()[0] == 0:
        print(line, flush=True)
