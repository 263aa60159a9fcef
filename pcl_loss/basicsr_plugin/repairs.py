"""All that is replaced in BasicSR, as one list, `REPLACED`, which `pcl-loss doctor` prints.

What `apply` replaces lets models run that could not, and keeps code in files from running. What else a run of
`pcl-loss train` or `run` has is in `RunMixin`, which `whole_run` puts around the model. A function that a codebase
lacks, or has with other parameters, is left alone.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from basicsr.models import base_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import dist_util, get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._files import UnreadableFileError, keep_with_checkpoints
from .bad_steps import BadStepsError
from .checkpoints import FILES, load_resume_state, states_of
from .data_order import STOP_SIGNALS
from .options_build import check_options
from .options_loading import OptionsError, load_options
from .run_mixin import in_run
from .run_state import Run, StoppedError


@dataclass
class Replaced:
    """A thing of BasicSR that ours takes the place of, and why."""

    name: str
    replaces: str
    why: str
    in_a_run: bool = False
    """Whether `pcl-loss train` and `run` alone replace it."""
    without_gpu: bool = False
    """Whether it is replaced where there is no GPU alone."""
    applied: bool = False


REPLACED = [
    Replaced("parse_options", "basicsr.utils.options", "option files are checked, and no code in them is run"),
    Replaced("torch", "basicsr.models.base_model", "files are read as tensors alone, and written whole or not at all"),
    Replaced("save_training_state", "BaseModel", "what a PCLPerceptualLoss has learned is saved, too"),
    Replaced("resume_training", "BaseModel", "and taken up again"),
    Replaced("load_resume_state", "basicsr.train", "the newest files that are whole, and also without a GPU"),
    Replaced("_init_dist_pytorch", "basicsr.utils.dist_util", "gloo takes the place of NCCL", without_gpu=True),
    Replaced("model_to_device", "BaseModel", "no process can be pinned to a GPU", without_gpu=True),
    Replaced("build_model", "basicsr.train", "RunMixin goes around the model", in_a_run=True),
    Replaced("create_train_val_dataloader", "basicsr.train", "an image is drawn by its place", in_a_run=True),
]


class NotSavedError(RuntimeError):
    """A run has ended, and files of it could not be saved."""


ERRORS = (OptionsError, BadStepsError, UnreadableFileError, NotSavedError, StoppedError)
"""What a run ends with where the message says all, in one line. The exit status is 1, or `.status` if it has one."""


# --- wherever BasicSR knows us ---


def apply() -> None:
    """Replace what BasicSR needs to run safely, on current PyTorch and without a GPU; twice is harmless."""
    for name in filter(find_spec, ("basicsr.utils.options", "basicsr.train", "basicsr.test")):
        module: Any = import_module(name)
        if "parse_options" in vars(module) and not isinstance(module.parse_options, ParseOptions):
            module.parse_options = ParseOptions(module.parse_options)
        if _has(module, "load_resume_state", "opt"):
            module.load_resume_state = load_resume_state
    base_model.torch = FILES
    keep_with_checkpoints(BaseModel, states_of, lambda model: model.opt["path"]["models"], get_root_logger, FILES.save)
    model_to_device = BaseModel.model_to_device
    if not torch.cuda.is_available() and dist_util._init_dist_pytorch is not _init_gloo:

        @functools.wraps(model_to_device)
        def to_cpu(self: Any, net: nn.Module) -> Any:
            if not self.opt["dist"]:
                return model_to_device(self, net)
            return DistributedDataParallel(net, find_unused_parameters=self.opt.get("find_unused_parameters", False))

        dist_util._init_dist_pytorch, BaseModel.model_to_device = _init_gloo, to_cpu
    for entry in REPLACED:
        entry.applied = not (entry.in_a_run or (entry.without_gpu and torch.cuda.is_available()))


def _init_gloo(backend: str = "nccl", **keywords: Any) -> None:
    torch.distributed.init_process_group("gloo", **keywords)


def _has(module: ModuleType, name: str, *parameters: str) -> bool:
    function = vars(module).get(name)
    return callable(function) and tuple(inspect.signature(function).parameters) == parameters


class ParseOptions:
    """Takes the place of a `parse_options` of BasicSR: our loader reads the file, and what it holds is checked."""

    runs: ExitStack | None = None
    """Set in `whole_runs`."""
    has_begun = False

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __call__(self, root_path: str, is_train: bool = True, *rest: Any, **keywords: Any) -> Any:
        """What BasicSR's returns: the options, or, since 1.3.4, those and the flags.

        Raises:
            OptionsError: the options cannot be used; nothing was written.
        """
        ParseOptions.has_begun = True
        parsed = self._parse(root_path, is_train, *rest, **keywords)
        if is_train and self.runs is not None:
            self.runs.close()
            pipeline = sys.modules[sys._getframe(1).f_globals["__name__"]]  # a script has one of its own
            self.runs.enter_context(whole_run(pipeline))
        return parsed

    def _parse(self, root_path: str, is_train: bool, *rest: Any, **keywords: Any) -> Any:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("-opt")
        parser.add_argument("--force_yml", nargs="+", default=[])
        flags, others = parser.parse_known_args(sys.argv[1:])
        if flags.opt is None:  # BasicSR's own parser says so, or prints its help
            return self.theirs(root_path, is_train, *rest, **keywords)
        options = load_options(flags.opt, flags.force_yml)
        check_options(options, is_train)
        with tempfile.TemporaryDirectory() as folder:
            # BasicSR's parser, which adds what follows from its flags, is given plain values.
            plain = Path(folder, Path(flags.opt).name)
            plain.write_text(yaml.safe_dump(options, sort_keys=False), encoding="ascii")
            with replaced(sys, argv=[sys.argv[0], "-opt", str(plain), *others]):
                parsed = self.theirs(root_path, is_train, *rest, **keywords)
        if isinstance(parsed, tuple):
            parsed[1].opt = _copyable(flags.opt)
        return parsed


def _copyable(file: str) -> str:
    """An option file that BasicSR can copy, which it reads in the default encoding."""
    try:
        Path(file).read_text()
        return file
    except UnicodeDecodeError:
        copy = Path(tempfile.mkdtemp(), Path(file).name)
        copy.write_bytes(Path(file).read_text(encoding="utf-8").encode("ascii", "backslashreplace"))
        return str(copy)


# --- in a run of `pcl-loss train` and `run` ---


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """While open, these attributes of a module or class have these values."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def whole_runs() -> Iterator[None]:
    """While open, each run that begins with BasicSR's `parse_options` is a whole one."""
    with ExitStack() as stack, replaced(ParseOptions, runs=stack):
        yield


@contextmanager
def whole_run(pipeline: ModuleType, parsed: Any = None) -> Iterator[None]:
    """While open, the model of `basicsr.train`, or of a module of its kind, has `RunMixin` around it, its data come by
    their place in the run, and signals that end a run leave a checkpoint. Of a pipeline that is made in another way the
    model alone is changed, and a line says what is missing. What `parse_options` has returned already is handed on.

    Raises:
        NotSavedError: at the end, if a file could not be saved.
        StoppedError: a signal has ended the run.
    """
    run, num_failed = Run(), len(FILES.failed)
    ours = _functions_of(pipeline, run)
    lacks = [name for name in ours if not _has(pipeline, name, *inspect.signature(ours[name]).parameters)]
    if lacks:
        ours = {name: ours[name] for name in ("build_model",) if name not in lacks}
        if os.environ.get("RANK", "0") == "0":
            print(
                f"[pcl_loss] {pipeline.__file__} has no {lacks[0]} as that of BasicSR 1.3.4: what it resumes, and what "
                "a signal does, are its own. Its checkpoints are written whole or not at all.",
                flush=True,
            )
    if parsed is not None:
        ours["parse_options"] = lambda *_, **__: parsed
    handlers = {} if lacks else {number: signal.signal(number, run.on_signal) for number in STOP_SIGNALS}
    children = set(multiprocessing.active_children())
    try:
        with run.terminal, replaced(pipeline, **ours):
            yield
    except StoppedError:
        # Workers that load data for an iteration which will not come.
        for child in set(multiprocessing.active_children()) - children:
            child.kill()
            child.join()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if failed := FILES.failed[num_failed:]:
        names = ", ".join(dict.fromkeys(failed))
        raise NotSavedError(f"{len(failed)} files could not be saved, the disk may be full: {names}")


def _functions_of(pipeline: ModuleType, run: Run) -> dict[str, Any]:
    """What takes the place of a pipeline's functions in a run."""
    create_loaders, build = (vars(pipeline).get(name) for name in ("create_train_val_dataloader", "build_model"))

    def resume_newest(opt: dict[str, Any]) -> dict[str, Any] | None:
        run.resumed = load_resume_state(opt)
        return run.resumed

    def create_train_val_dataloader(opt: dict[str, Any], logger: Any) -> tuple[Any, ...]:
        loader, sampler, *rest = create_loaders(opt, logger)  # type: ignore[misc]
        return loader, run.take_data(opt, loader, sampler), *rest

    def build_model(opt: dict[str, Any]) -> BaseModel:
        name, models = opt["model_type"], MODEL_REGISTRY._obj_map
        name = name if name in models else f"{name}_basicsr"
        theirs = models[name]
        models[name] = in_run(theirs, run)
        try:
            model: BaseModel = build(opt)  # type: ignore[misc]
        finally:
            models[name] = theirs
        return model

    return {
        "load_resume_state": resume_newest,
        "create_train_val_dataloader": create_train_val_dataloader,
        "build_model": build_model,
    }
