"""`pcl-loss run SCRIPT [ARGS...]`, and `torchrun ... -m pcl_loss.run SCRIPT [ARGS...]`: a training script of another
codebase, as `python SCRIPT ARGS...` runs it, with PCL known to the BasicSR that it imports.

What the script needs and current packages lack is put back (see `import_repair`); what they have stays as it is. A
script that calls BasicSR's train pipeline, or has one of its own that calls `basicsr.utils.options.parse_options`,
saves, resumes and ends at a signal as `pcl-loss train` does.

A process that the script starts by `spawn` or `forkserver` runs the script again without this command. So a part of
what `multiprocessing` hands to such a process is an object that, when it is unpickled there, does the same preparation
before anything of the script.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.machinery import SourceFileLoader
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import import_repair
from .train import end_in_one_line

PLUGIN = "pcl_loss.basicsr_plugin"
NO_REGISTRY = (
    "and PCL cannot be registered there; run the script with python, and use pcl_loss.PCLCriterion in its loop"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script: `argv` is its path and its arguments. Does not return the script's exit status, but leaves as the
    script leaves.
    """
    parser = argparse.ArgumentParser(prog="pcl-loss run", description=__doc__.split("\n\n")[0])
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, such as hat/train.py")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="what the script itself takes")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    script = Path(args.script)
    if not script.is_file():
        parser.error(f"there is no file {script} in {Path.cwd()}")
    folder = script.resolve().parent
    if folder.name == "basicsr" and not (folder / "__init__.py").exists():
        parser.error(f"{folder} has no __init__.py, so that an installed BasicSR would take its place, {NO_REGISTRY}")
    root = folder
    # A folder `code` with `__init__.py`, as A2N has it, is no package to be found before Python's own.
    while (root / "__init__.py").exists() and root.name not in sys.stdlib_module_names:
        root = root.parent
    # In place of the folder of this command, or the one in which it was started.
    sys.path[0 : 0 if sys.flags.safe_path else 1] = list(dict.fromkeys(map(str, (folder, root))))
    sys.argv = [args.script, *args.arguments]
    prepare(folder.relative_to(root).parts[:1])
    course = _Course()
    import_repair.after_import(PLUGIN, course.wait_for_training)
    _say_it_once_at_the_first_step(course)

    def run() -> None:
        with course:
            _execute(os.path.abspath(script))

    end_in_one_line("run", run, _errors)


def _errors() -> tuple[type[Exception], ...]:
    course = sys.modules.get(f"{PLUGIN}.course")
    return () if course is None else course.ERRORS


class _Course(ExitStack):
    """That of `pcl-loss train`, from where the script's train pipeline parses its options on."""

    has_begun = False

    def wait_for_training(self, plugin: ModuleType) -> None:
        import_module(f"{PLUGIN}.registration").before_training.append(self.begin)

    def begin(self, pipeline: ModuleType) -> None:
        self.close()
        self.has_begun = True
        self.enter_context(import_module(f"{PLUGIN}.course").whole_course(pipeline))


def _execute(file: str) -> None:
    # runpy would make sys.argv[0] the same as __file__, and take the module away before what runs at exit.
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__, module.__loader__ = file, (loader := SourceFileLoader("__main__", file))
    module.__dict__.update(__spec__=None, __package__=None)
    exec(loader.source_to_code(loader.get_data(file), file), module.__dict__)


def prepare(packages: Sequence[str] = ()) -> None:
    """What comes before the script, in each of its processes; nothing of it acts before the script asks for it.

    Args:
        packages: those, besides `basicsr`, that may lack their `version.py`.
    """
    import_repair.install()
    import_repair.install(import_repair.OLD_CODE)
    import_repair.instead_of_failing("dataloader", _replace_data_loader)
    for package in {"basicsr", *packages}:
        import_repair.allow_no_version(package)
    # Also where the script itself imports the plugin first, which then imports BasicSR.
    import_repair.after_import("basicsr", _import_plugin)
    import_repair.after_import(PLUGIN, lambda plugin: plugin.register())

    get_preparation_data = spawn.get_preparation_data
    preparation = _Preparation(packages)
    spawn.get_preparation_data = lambda name: {"pcl_loss": preparation, **get_preparation_data(name)}


class _Preparation:
    """Prepares the process in which it is unpickled."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def __reduce__(self) -> tuple[Any, ...]:
        return prepare, (self.packages,)


def _replace_data_loader(module: ModuleType, error: ImportError) -> bool:
    from .import_repair import old_torch

    return old_torch.replace_data_loader(module, error)


def _import_plugin(basicsr: ModuleType) -> None:
    if not (Path(basicsr.__path__[0]) / "utils" / "registry.py").exists():
        raise ImportError(f"{basicsr.__path__[0]} has no utils/registry.py, {NO_REGISTRY}")
    import_module(PLUGIN)


def _say_it_once_at_the_first_step(course: _Course) -> None:
    """Print what is in use when all is imported and built: at the first step of an optimizer, or else at the end."""
    if os.environ.get("RANK", "0") != "0":
        return
    hook = register_optimizer_step_pre_hook(lambda *_: say(trains=True))

    def say(trains: bool = False) -> None:
        atexit.unregister(say)
        hook.remove()
        basicsr = sys.modules.get("basicsr")
        where = f"PCL is registered in {basicsr.__path__[0]}" if basicsr else "no basicsr is in use"
        repaired = ", ".join(import_repair.USED) or "nothing"
        print(f"[pcl_loss] {where}; repaired: {repaired}", flush=True)
        if basicsr and trains and not course.has_begun:
            print("[pcl_loss] saves, resume and signals are the script's own: it does not call BasicSR's parse_options")

    atexit.register(say)


if __name__ == "__main__":
    # Not from this copy of the module: what other processes unpickle must have the module's name.
    import_module("pcl_loss.run").main()
