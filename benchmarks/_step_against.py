"""The loss of another commit beside that of this tree, for `step_cost.py --against`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


def package_of_commit(commit: str) -> tuple[str, ModuleType]:
    """The short hash of a commit of this repository, and its `pcl_loss`, imported under another name.

    Raises:
        SystemExit: git does not know the commit, or the commit has no `pcl_loss`.
    """
    short = _git("rev-parse", "--short", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(_git("archive", "--format=tar", short, "pcl_loss"))) as archive:
            archive.extractall(folder, filter="data")
        return short, import_package(Path(folder) / "pcl_loss", f"pcl_loss_{short}")


def import_package(folder: Path, name: str) -> ModuleType:
    """The package in a folder, as `name`. It imports its own parts relatively, so that it never meets another version.

    Only what its `__init__` imports is there once the folder is gone, which is the whole loss.
    """
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"step_cost: --against: git {arguments[0]} failed: {done.stderr.decode().strip()}; name a commit of this "
            "repository that has pcl_loss/, in a full clone"
        )
    return done.stdout
