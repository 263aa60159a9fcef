"""All that is replaced in BasicSR, as one list, `REPLACED`, which `pcl-loss doctor` prints.

What else a run of `pcl-loss train` or `run` has is in `RunMixin`, which `whole_run` puts around the model. A function
that a codebase lacks, or has with other parameters, is left alone.
"""

from __future__ import annotations

import argparse
import inspect
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml
from basicsr.models import base_model
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from .._files import UnreadableFileError, keep_with_checkpoints
from .checkpoints import FILES, load_resume_state, states_of
from .data import STOP_SIGNALS
from .options_build import check_options
from .options_loading import OptionsError, load_options
from .run_mixin import BadStepsError, Run, StoppedError, in_run


class Replaced(NamedTuple):
    """A thing of BasicSR that ours takes the place of, and why; `in_a_run` of `pcl-loss train` and `run` alone."""

    name: str
    replaces: str
    why: str
    in_a_run: bool = False


REPLACED = [
    Replaced("parse_options", "basicsr.utils.options", "option files are checked, and no code in them is run"),
    Replaced("torch", "basicsr.models.base_model", "files are read as tensors alone, and written whole or not at all"),
    Replaced("save_training_state", "BaseModel", "what a PCLPerceptualLoss has learned is saved, too"),
    Replaced("resume_training", "BaseModel", "and taken up again"),
    Replaced("load_resume_state", "basicsr.train", "the newest files that are whole, and also without a GPU"),
    Replaced("build_model", "basicsr.train", "RunMixin goes around the model", in_a_run=True),
    Replaced("create_train_val_dataloader", "basicsr.train", "an image is drawn by its place", in_a_run=True),
]

ERRORS = (OptionsError, BadStepsError, UnreadableFileError, StoppedError)
"""What a run ends with where the message says all, in one line. The exit status is 1, or `.status` if it has one."""


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


def _has(module: ModuleType, name: str, *parameters: str) -> bool:
    function = vars(module).get(name)
    return callable(function) and tuple(inspect.signature(function).parameters) == parameters


class ParseOptions:
    """Takes the place of a `parse_options` of BasicSR: our loader reads the file, and what it holds is checked."""

    runs: ExitStack | None = None  # set in `whole_runs`

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def __call__(self, root_path: str, is_train: bool = True, *rest: Any, **keywords: Any) -> Any:
        """What BasicSR's returns: the options, or, since 1.3.4, those and the flags. Raises OptionsError if they cannot
        be used; nothing was written.
        """
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
        if is_train and self.runs is not None:
            self.runs.close()
            pipeline = sys.modules[sys._getframe(1).f_globals["__name__"]]  # a script has one of its own
            self.runs.enter_context(whole_run(pipeline))
        return parsed


def _copyable(file: str) -> str:
    """An option file that BasicSR can copy into its experiment, which it reads in the default encoding."""
    text = Path(file).read_text(encoding="utf-8")
    with suppress(UnicodeDecodeError):
        Path(file).read_text()
        return file
    copy = Path(tempfile.mkdtemp(), Path(file).name)
    copy.write_bytes(text.encode("ascii", "backslashreplace"))
    return str(copy)


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
def whole_run(pipeline: ModuleType) -> Iterator[None]:
    """While open, the model of a module like `basicsr.train` has `RunMixin` around it, its data come by their place in
    the run, and a signal leaves a checkpoint and ends in StoppedError. Of another pipeline the model alone is changed.
    """
    run = Run()
    ours = _functions_of(pipeline, run)
    lacks = [name for name in ours if not _has(pipeline, name, *inspect.signature(ours[name]).parameters)]
    if lacks:
        ours = {name: ours[name] for name in ("build_model",) if name not in lacks}
        where = f"{pipeline.__file__} has no {lacks[0]} as that of BasicSR 1.3.4"
        print(f"[pcl_loss] {where}: what it resumes, and what a signal does, are its own.", flush=True)
    handlers = {} if lacks else {number: signal.signal(number, run.on_signal) for number in STOP_SIGNALS}
    children = set(multiprocessing.active_children())
    try:
        with replaced(pipeline, **ours):
            yield
    finally:
        # Workers that load data for an iteration which will not come, or wait for another epoch.
        for child in set(multiprocessing.active_children()) - children:
            child.kill()
            child.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
        model: BaseModel = build(opt)  # type: ignore[misc]
        model.__class__ = in_run(type(model), run)
        return model

    return {
        "load_resume_state": resume_newest,
        "create_train_val_dataloader": create_train_val_dataloader,
        "build_model": build_model,
    }
