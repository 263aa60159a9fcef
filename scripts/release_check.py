"""Builds the sdist and the wheel, and uses each as a stranger does: `make release-check`.

Both are installed into fresh environments (several GB each, one after the other) and used from another folder: the
core alone, where the six lines of the README run and nothing of BasicSR is there, then `[basicsr]`, with `pcl-loss
doctor` and a training of two iterations. With `--tag vX.Y.Z` the tag, the version and the changelog must agree.
"""

from __future__ import annotations

import argparse
import email
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

import _training

ROOT = Path(__file__).resolve().parent.parent
MAX_WHEEL = 2**20  # bytes
NOT_IN_SDIST = (".ci/", ".github/", ".gitattributes", ".gitignore")
# What BasicSR's build imports, since it runs without isolation.
BUILD = ["numpy", "cython", "wheel", "setuptools>=77"]
EXTRAS_ONLY = ("basicsr", "cv2", "torchvision", "lpips", "matplotlib")


class CheckError(Exception):
    """What keeps this version from being released."""


class Environment:
    """A fresh virtual environment, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self.work = folder / "work"
        self.work.mkdir(parents=True)
        venv.create(folder / "venv", with_pip=True)

    def run(self, *command: str, status: int = 0) -> str:
        """The output of a command of the environment, run in the work folder.

        Raises:
            CheckError: it ends with another status.
        """
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != status:
            raise CheckError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
        return done.stdout

    def install(self, *requirements: str) -> None:
        """What pip is asked for."""
        self.run("python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *requirements)


def say(text: str) -> None:
    """One line, with the time since the start."""
    print(f"release-check {time.monotonic() - START:5.0f} s  {text}", flush=True)


START = time.monotonic()


def main() -> int:
    """Returns 0 if the version can be released."""
    parser = argparse.ArgumentParser(description="Build the sdist and the wheel, and use each as a stranger does.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of both (default: dist)")
    parser.add_argument("--tag", help="of the release, such as v0.1.0")
    args = parser.parse_args()
    try:
        if sys.version_info >= (3, 13):
            raise CheckError("this needs Python 3.11 or 3.12: BasicSR, which is a part of it, does not install on 3.13")
        if args.tag:
            check_tag(args.tag)
        with tempfile.TemporaryDirectory() as folder:
            wheel, sdist = build(Environment(Path(folder)), args.out.resolve())
        check_contents(wheel, sdist)
        for archive, requirements in ((wheel, BUILD), (sdist, ["torch", "torchvision", *BUILD])):
            with tempfile.TemporaryDirectory() as folder:
                use(archive, Environment(Path(folder)), requirements)
    except CheckError as error:
        print(f"release-check FAILED: {error}", file=sys.stderr)
        return 1
    say(f"passed: {wheel.name} has {wheel.stat().st_size // 1024} kB, {sdist.name} {sdist.stat().st_size // 1024} kB")
    return 0


def check_tag(tag: str) -> None:
    """Raise CheckError unless `tag` is that of the version in the source, and the changelog has a section of it."""
    source = (ROOT / "pcl_loss" / "__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if tag != f"v{version}":
        raise CheckError(f"the tag is {tag}, but pcl_loss/__init__.py says {version}: expected is v{version}")
    if f"## [{version}] - " not in (ROOT / "CHANGELOG.md").read_text():
        raise CheckError(f"CHANGELOG.md has no section '## [{version}] - DATE'")


def build(tools: Environment, out: Path) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist."""
    tools.install("build", "twine")
    for old in [*out.glob("pcl_loss-*")]:
        old.unlink()
    tools.run("python", "-m", "build", "--outdir", str(out), str(ROOT))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    tools.run("python", "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    say(f"{wheel.name} and {sdist.name} are built, and twine has nothing to say against them")
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """Raise CheckError if the wheel is large or its page has a broken link, or if the sdist lacks a file of git's."""
    if wheel.stat().st_size > MAX_WHEEL:
        raise CheckError(f"{wheel.name} has {wheel.stat().st_size} bytes, more than {MAX_WHEEL}")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    if broken := [link for link in links if not link.startswith(("https://", "#"))]:
        raise CheckError(f"on the index these links lead nowhere: {broken}")
    if (licence := metadata["License-Expression"]) != "Apache-2.0":
        raise CheckError(f"the wheel's licence is {licence}")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if lacking := sorted(file for file in {*tracked} - shipped if not file.startswith(NOT_IN_SDIST)):
        raise CheckError(f"{sdist.name} lacks {lacking}: name them in MANIFEST.in")


def use(archive: Path, environment: Environment, build_requirements: list[str]) -> None:
    """Install a wheel or sdist with BasicSR, a wheel before that without; raise CheckError if something fails."""
    if archive.suffix == ".whl":
        environment.install(str(archive))
        use_core(environment)
        say(f"{archive.name}: the core alone runs the six lines and doctor, and train names its extra")
    # BasicSR's isolated build would download PyTorch a second time.
    environment.install(*build_requirements)
    environment.install("--no-build-isolation", f"{archive}[basicsr]")
    diagnosis = environment.run("pcl-loss", "doctor")
    for command in _training.PREPARATION:
        environment.run(*command)
    training = _training.command(["pcl-loss", "train"], iterations=2, batch=2, gt_size=64)
    if "l_pcl: " not in environment.run(*training):
        raise CheckError("the log of the training has no l_pcl")
    for network in ("net_g", "net_d"):
        if not (environment.work / "experiments" / "short" / "models" / f"{network}_latest.pth").is_file():
            raise CheckError(f"the training has left no {network}_latest.pth")
    say(f"{archive.name}: [basicsr] trains for two iterations; doctor says {diagnosis.splitlines()[-1]!r}")


def use_core(environment: Environment) -> None:
    """Raise CheckError if the core brought what belongs to an extra, or does not work without."""
    found = environment.run("python", "-c", f"import importlib.util as u; print(*filter(u.find_spec, {EXTRAS_ONLY}))")
    if found.strip():
        raise CheckError(f"the core brought {found.strip()}")
    (lines,) = re.findall(r"<!-- test: first -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    environment.run("python", "-c", lines)
    environment.run("pcl-loss", "doctor")
    if "pip install 'pcl_loss[basicsr]'" not in environment.run("pcl-loss", "train", status=1):
        raise CheckError("without BasicSR, pcl-loss train does not name the pip line")


if __name__ == "__main__":
    sys.exit(main())
