"""The test suite on every Python that pcl_loss supports, and on the oldest PyTorch: `make test-versions`.

Each version gets an environment of its own (several GB; removed afterwards), made and tested by the Makefile.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")  # 3.13 has no BasicSR
PYENV = Path.home() / ".pyenv" / "versions"
ENVIRONMENT = ROOT / ".venv-versions"


@dataclass(frozen=True)
class Version:
    """A Python, `major.minor`, and the oldest or the newest PyTorch."""

    python: str
    torch: str

    def __str__(self) -> str:
        return f"{self.python}-{self.torch}"

    @property
    def make_variables(self) -> list[str]:
        """Of the Makefile, which expands its own variable in them."""
        return [f"VENV={ENVIRONMENT}", *(["TORCH=$(OLDEST_TORCH)"] if self.torch == "oldest" else [])]


# The oldest PyTorch stands first: where a lower bound is wrong, it is seen soon.
VERSIONS = (Version(PYTHONS[0], "oldest"), *(Version(python, "newest") for python in PYTHONS))


def main() -> int:
    """Returns 0 if every version that was found passes, and there were at least two Pythons."""
    parser = argparse.ArgumentParser(description="Run the test suite on every version that is supported.")
    names = [str(version) for version in VERSIONS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="VERSION", help=f"some of {', '.join(names)}")
    args = parser.parse_args()
    rows, ran, failed = [], set(), False
    for version in VERSIONS:
        if args.only and str(version) not in args.only:
            continue
        python = find_python(version.python)
        result = "not found" if python is None else run(version, python)
        rows.append(f"{version!s:12}  {result}")
        print(rows[-1], flush=True)
        if python is not None:
            ran.add(version.python)
            failed |= not result.startswith("passed")
    print("", *rows, sep="\n")
    if len(ran) < 2 and not args.only:
        print(f"only {', '.join(ran) or 'no Python'} was found; install another of {', '.join(PYTHONS)}")
        return 1
    return int(failed)


def find_python(version: str) -> Path | None:
    """The interpreter of a version, on PATH or among pyenv's."""
    on_path = shutil.which(f"python{version}")
    candidates = [*([Path(on_path)] if on_path else []), *sorted(PYENV.glob(f"{version}.*/bin/python"))]
    code = "import sys; print('{}.{}'.format(*sys.version_info))"
    for python in candidates:
        # pyenv's own command stands on PATH for versions that are not switched on, too.
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return python
    return None


def run(version: Version, python: Path) -> str:
    """What came out, in words: `passed` or `FAILED`, and what with."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    start = time.monotonic()
    try:
        setup = ["make", "setup", f"PYTHON={python}", *version.make_variables]
        if subprocess.run(setup, cwd=ROOT, check=False).returncode:
            return "FAILED: no environment"
        seconds = time.monotonic() - start
        libraries = installed("torch", "torchvision", "basicsr")
        test = [str(ENVIRONMENT / "bin" / "python"), "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider"]
        done = subprocess.run(test, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    summary = done.stdout.strip().splitlines()[-1:] or ["pytest said nothing"]
    if done.returncode:
        print(done.stdout)
    status = "FAILED" if done.returncode else "passed"
    return f"{status}: {libraries}; set-up {seconds:.0f} s; {summary[0]}"


def installed(*names: str) -> str:
    """The versions of distributions in the environment."""
    command = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    versions = dict(re.findall(r"^(\S+)\s+(\S+)", listed, re.MULTILINE))
    return ", ".join(f"{name} {versions.get(name, 'none')}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
