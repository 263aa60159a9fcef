"""`pcl-loss run SCRIPT [ARGS...]`, and `torchrun ... -m pcl_loss.run SCRIPT [ARGS...]`: a training script of another
codebase, as `python SCRIPT ARGS...` runs it, with PCL known to the BasicSR that it imports.

What current packages lack is put back (see `import_repair`). A pipeline that calls BasicSR's `parse_options` saves,
resumes and ends at a signal as `pcl-loss train` does. Processes that the script starts by `spawn` are prepared too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from multiprocessing import spawn
from pathlib import Path
from types import ModuleType
from typing import Any

from . import import_repair
from .train import end_in_one_line

PLUGIN = "pcl_loss.basicsr_plugin"
NO_REGISTRY = "and PCL cannot be registered there: use pcl_loss.PCLCriterion in the script's loop"

Execute = Callable[[ModuleType], None]

runs = ExitStack()
"""Ends the training runs that the script has begun."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script: `argv` is its path and its arguments. Ends with the script's exit status."""
    parser = argparse.ArgumentParser(prog="pcl-loss run", description=__doc__.split("\n\n")[0])
    parser.add_argument("script", metavar="SCRIPT", help="a Python file, such as hat/train.py")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="what the script itself takes")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    script = Path(args.script)
    if not script.is_file():
        parser.error(f"there is no file {script} in {Path.cwd()}")
    root = folder = script.resolve().parent
    if folder.name == "basicsr" and not (folder / "__init__.py").exists():
        parser.error(f"{folder} has no __init__.py, so that an installed BasicSR would take its place, {NO_REGISTRY}")
    # A package `code`, as A2N has it, would be found before Python's own.
    while (root / "__init__.py").exists() and root.name not in sys.stdlib_module_names:
        root = root.parent
    sys.path[0 : 0 if sys.flags.safe_path else 1] = list(dict.fromkeys(map(str, (folder, root))))
    sys.argv = [args.script, *args.arguments]
    prepare(folder.relative_to(root).parts[:1])

    def run() -> None:
        with runs:
            _execute(os.path.abspath(script))

    end_in_one_line("run", run, lambda: getattr(sys.modules.get(f"{PLUGIN}.repairs"), "ERRORS", ()))


def _execute(file: str) -> None:
    # runpy would make sys.argv[0] the same as __file__, and take the module away before what runs at exit.
    module = sys.modules["__main__"] = ModuleType("__main__")
    module.__file__, module.__loader__ = file, (loader := SourceFileLoader("__main__", file))
    module.__dict__.update(__spec__=None, __package__=None)
    exec(loader.source_to_code(loader.get_data(file), file), module.__dict__)


def prepare(packages: Sequence[str] = ()) -> None:
    """What comes before the script, in each of its processes; nothing of it acts before the script asks for it."""
    import_repair.install(import_repair.OLD_CODE)
    import_repair.put_back_types()
    around = {"basicsr": _import_basicsr, PLUGIN: _import_plugin, "dataloader": _import_data_loader}
    sys.meta_path.insert(0, _Around(around, [f"{package}.version" for package in ("basicsr", *packages)]))
    get_preparation_data = spawn.get_preparation_data
    preparation = _Preparation(packages)
    spawn.get_preparation_data = lambda name: {"pcl_loss": preparation, **get_preparation_data(name)}


class _Preparation:
    """Goes with what `multiprocessing` hands to a process, and prepares the one in which it is unpickled."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def __reduce__(self) -> tuple[Any, ...]:
        return prepare, (self.packages,)


class _Around(MetaPathFinder, Loader):
    """Finds modules as the other finders do, and hands those of `functions`, and what executes them, to a function.

    The `versions`, which a codebase's set-up writes, get a stand-in in a fresh clone.
    """

    def __init__(self, functions: Mapping[str, Callable[[Execute, ModuleType], None]], versions: list[str]) -> None:
        self.functions, self.versions = functions, versions

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self.functions and fullname not in self.versions:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if fullname in self.versions:
            return spec or ModuleSpec(fullname, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = partial(self.functions[fullname], execute)  # type: ignore[method-assign]
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Fill a stand-in."""
        module.__dict__.update(__version__="unknown", __gitsha__="unknown")


def _import_basicsr(execute: Execute, basicsr: ModuleType) -> None:
    if not (Path(basicsr.__path__[0]) / "utils" / "registry.py").exists():
        raise ImportError(f"{basicsr.__path__[0]} has no utils/registry.py, {NO_REGISTRY}")
    execute(basicsr)
    import_module(PLUGIN)  # it may be what imports basicsr


def _import_plugin(execute: Execute, plugin: ModuleType) -> None:
    execute(plugin)
    plugin.register()
    import_repair.put_back_colours()
    runs.enter_context(import_module(f"{PLUGIN}.repairs").whole_runs())
    if os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None:
        print(f"[pcl_loss] PCL is registered in {sys.modules['basicsr'].__path__[0]}", flush=True)


def _import_data_loader(execute: Execute, module: ModuleType) -> None:
    try:
        execute(module)
    except ImportError as error:
        from .import_repair import old_torch

        if not old_torch.replace_data_loader(module, error):
            raise


if __name__ == "__main__":
    # Not from this copy of the module: what other processes unpickle must have the module's name.
    import_module("pcl_loss.run").main()
