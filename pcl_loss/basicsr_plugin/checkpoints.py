"""Checkpoints that are whole or not there, and the newest set of them that a run can go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume, get_root_logger
from basicsr.utils.dist_util import get_dist_info

from .._files import TEMPORARY, UnreadableFileError, load, save
from ..criterion import PCLPerceptualLoss
from .perceptual import PerceptualLossWithPCL

Options = dict[str, Any]

KEY = "pcl_loss"  # in a training state of BasicSR


class Files:
    """Stands in for the module `torch` where BasicSR reads and writes its files, and is torch in all else: what is read
    holds tensors alone, and what is written is whole, or not there.
    """

    def __init__(self) -> None:
        self.extra: Options = {}
        """What training states hold, too, under `KEY`."""
        self._failed: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(path: str, **_keywords: Any) -> Any:
        """On the CPU, which BasicSR asks for too."""
        return load(path)

    def save(self, content: Any, path: str | Path) -> None:
        """As `torch.save`; if it fails, the log names the file. A training state also names the files with it."""
        path = Path(path)
        if path.suffix == ".state":
            ending = f"_{path.stem}.pth"
            files = {file.name for file in path.parent.with_name("models").glob(f"*{ending}")}
            files |= {name for name in self._failed if name.endswith(ending)}
            content = content | {KEY: self.extra | {"files": sorted(files)}}
        try:
            save(content, path)
        except (OSError, RuntimeError) as error:
            self._failed.add(path.name)
            get_root_logger().error(f"{path} could not be saved, and is as it was: {str(error).partition(chr(10))[0]}")


FILES = Files()


def states_of(model: Any) -> Options:
    """What a model has beside networks and optimizers that a resumed run needs, by the names of the files."""
    slot = getattr(model, "cri_perceptual", None)
    own = model.pcl_states() if hasattr(model, "pcl_states") else {}
    if isinstance(slot, PerceptualLossWithPCL):
        return own | {"pcl": slot.pcl, "pcl_balance": slot.balance}
    return own | ({"pcl": slot} if isinstance(slot, PCLPerceptualLoss) else {})


def load_resume_state(opt: Options) -> Options | None:
    """The training state to go on from, on the CPU, or None: that of `path.resume_state`, or, with `--auto_resume`, of
    the newest iteration of which every file is whole. What is passed over is said. Its seed becomes that of `opt`.
    Raises UnreadableFileError if the files of `path.resume_state`, or those of every iteration, are not whole.
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
        opt["manual_seed"] = state.get(KEY, {}).get("manual_seed", opt.get("manual_seed"))
    return state


def _newest_whole(opt: Options) -> tuple[Options | None, str | None]:
    states, models = (Path(opt["path"][key]) for key in ("training_states", "models"))
    is_first = get_dist_info()[0] == 0
    for file in [*states.glob(f"{TEMPORARY}*"), *models.glob(f"{TEMPORARY}*")] if is_first else ():
        file.unlink(missing_ok=True)  # what a killed run had begun to write
    found = set(filter(str.isdecimal, (path.stem for path in states.glob("*.state"))))
    # A run that was killed while it saved leaves networks without a training state.
    saved = set(filter(str.isdecimal, (path.stem.removeprefix("net_g_") for path in models.glob("net_g_*.pth"))))
    for stem in sorted(found | saved, key=int, reverse=True):
        path = states / f"{stem}.state"
        try:
            return _load_whole(opt, path), str(path)
        except (OSError, UnreadableFileError) as error:
            if is_first:  # not to the log, which BasicSR opens later
                print(f"--auto_resume passes over iteration {stem}: {error}.", flush=True)
    if found:
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
    ignored = tuple(f"net_{key.removeprefix('network_')}_" for key in opt["path"].get("ignore_resume_networks") or ())
    files = state.get(KEY, {}).get("files")
    if files is None:  # written by plain BasicSR; a network of which nothing was ever saved is none that is resumed
        labels = [key.replace("network", "net", 1) for key in opt if key.startswith("network_")]
        labels = [label for label in labels if any(models.glob(f"{label}_*.pth"))] or ["net_g"]
        files = [f"{label}_{state['iter']}.pth" for label in labels]
    for name in files:
        if not name.startswith(ignored):
            load(models / name)
    return state
