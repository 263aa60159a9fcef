"""Builds the sdist and the wheel, and uses each as a stranger does: `make release-check`.

Both are installed into fresh environments (several GB each, one after the other) and used from another folder: the
core alone, where the six lines of the README run and nothing of BasicSR is there, then `[basicsr]`, with `pcl-loss
doctor` and a training of two iterations. With `--tag vX.Y.Z` the tag, the version and the changelog must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import email
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import _training

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL = 2**20  # bytes
NOT_IN_SDIST = (".ci/", ".github/", ".gitattributes", ".gitignore")
# What BasicSR's build imports, since it runs without isolation: an isolated one would download PyTorch a second time.
BUILD = ("torch", "torchvision", "numpy", "cython", "wheel", "setuptools>=77")
PIP = ("python", "-m", "pip", "install", "--quiet")
EXTRAS_ONLY = ("basicsr", "cv2", "torchvision", "lpips", "matplotlib")

Runner = Callable[..., str]


def require(holds: object, problem: str) -> None:
    """Exit with the problem, with status 1, unless something holds."""
    if not holds:
        sys.exit(f"release-check FAILED: {problem}")


@contextlib.contextmanager
def environment() -> Iterator[Runner]:
    """A fresh virtual environment: gives what runs its programs in an empty folder, and returns their output."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(f"{folder}/venv", with_pip=True)

        def run(*command: str, status: int = 0) -> str:
            words = [f"{folder}/venv/bin/{command[0]}", *command[1:]]
            done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            require(done.returncode == status, f"{words} has status {done.returncode}:\n{done.stdout}")
            return done.stdout

        yield run


def check_tag(tag: str) -> None:
    """Exit unless `tag` is that of the version in the source, and the changelog has a section of it."""
    source = (ROOT / "pcl_loss" / "__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    require(tag == f"v{version}", f"the tag is {tag}, and the version in pcl_loss/__init__.py {version}")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    require(f"## [{version}] - " in changelog, f"CHANGELOG.md has no section '## [{version}] - DATE'")


def check_contents(wheel: Path, sdist: Path) -> None:
    """Exit if the wheel is large or its page has a broken link, or if the sdist lacks a file of git's."""
    require(wheel.stat().st_size <= MAX_WHEEL, f"{wheel.name} has more than {MAX_WHEEL} bytes")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    broken = [link for link in links if not link.startswith(("https://", "#"))]
    require(not broken, f"on the index these links lead nowhere: {broken}")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    lacking = [file for file in tracked if file not in shipped and not file.startswith(NOT_IN_SDIST)]
    require(not lacking, f"{sdist.name} lacks {lacking}: name them in MANIFEST.in")


def use_core(run: Runner) -> None:
    """Exit if the core brought what belongs to an extra, or does not work without."""
    found = run("python", "-c", f"import importlib.util as u; print(*filter(u.find_spec, {EXTRAS_ONLY}))")
    require(not found.strip(), f"the core brought {found.strip()}")
    (lines,) = re.findall(r"<!-- test: first -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run("python", "-c", lines)
    run("pcl-loss", "doctor")
    said = run("pcl-loss", "train", status=1)
    require("pip install 'pcl_loss[basicsr]'" in said, "without BasicSR, pcl-loss train does not name the pip line")


def use_basicsr(run: Runner) -> None:
    """Exit if a training with BasicSR leaves no loss in its log, or no networks."""
    run("pcl-loss", "doctor")
    for command in _training.PREPARATION:
        run(*command)
    flags = _training.flags("train_EDSR-S_x4_PCL", "short", iterations=2, batch=2, gt_size=64)
    require("l_pcl: " in run("pcl-loss", "train", *flags), "the log of the training has no l_pcl")
    models = "experiments/short/models"
    run("python", "-c", f"open('{models}/net_g_latest.pth'), open('{models}/net_d_latest.pth')")


def main() -> None:
    """Exits with status 1 if the version cannot be released."""
    parser = argparse.ArgumentParser(description="Build the sdist and the wheel, and use each as a stranger does.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of both (default: dist)")
    parser.add_argument("--tag", help="of the release, such as v0.1.0")
    args = parser.parse_args()
    require(sys.version_info < (3, 13), "BasicSR, which is a part of this, does not install on Python 3.13")
    if args.tag:
        check_tag(args.tag)
    for old in args.out.glob("pcl_loss-*"):
        old.unlink()
    with environment() as run:
        run(*PIP, "build", "twine")
        run("python", "-m", "build", "--outdir", str(args.out.resolve()), str(ROOT))
        (wheel,), (sdist,) = args.out.resolve().glob("*.whl"), args.out.resolve().glob("*.tar.gz")
        run("python", "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    check_contents(wheel, sdist)
    for archive in (wheel, sdist):
        with environment() as run:
            if archive is wheel:
                run(*PIP, str(wheel))
                use_core(run)
            run(*PIP, *BUILD)
            run(*PIP, "--no-build-isolation", f"{archive}[basicsr]")
            use_basicsr(run)
        print(f"release-check: {archive.name} passed, {archive.stat().st_size // 1024} kB", flush=True)


if __name__ == "__main__":
    main()
