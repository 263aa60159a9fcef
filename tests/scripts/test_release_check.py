"""The release check finds what must not be released."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import release_check

METADATA = "Name: pcl_loss\nLicense-Expression: {licence}\n\nA [page]({link}).\n"


def make_wheel(path: Path, link: str = "https://host/page", licence: str = "Apache-2.0", size: int = 0) -> Path:
    with zipfile.ZipFile(path / "a.whl", "w") as archive:
        archive.writestr("pcl_loss-1.dist-info/METADATA", METADATA.format(link=link, licence=licence))
        archive.writestr("large", bytes(size))
    return path / "a.whl"


def make_sdist(path: Path, files: Iterable[str]) -> Path:
    with tarfile.open(path / "a.tar.gz", "w:gz") as archive:
        for file in files:
            archive.addfile(tarfile.TarInfo(f"pcl_loss-1/{file}"), io.BytesIO())
    return path / "a.tar.gz"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of version 1.2.3, with a file that git knows and one for the host of the repository."""
    root = tmp_path / "repository"
    for file, text in {
        "pcl_loss/__init__.py": '__version__ = "1.2.3"\n',
        "CHANGELOG.md": "## [1.2.3] - 2026-01-01\n",
        ".github/a.yml": "",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *command], cwd=root, check=True)
    monkeypatch.setattr(release_check, "ROOT", root)
    return root


FILES = ("pcl_loss/__init__.py", "CHANGELOG.md")


@pytest.mark.parametrize("link", ["https://host/page", "#below"])
def test_what_is_whole_passes(root: Path, tmp_path: Path, link: str) -> None:
    release_check.check_contents(make_wheel(tmp_path, link), make_sdist(tmp_path, FILES))
    release_check.check_tag("v1.2.3")


def test_a_link_to_a_neighbouring_file_is_found(root: Path, tmp_path: Path) -> None:
    with pytest.raises(release_check.CheckError, match=r"docs/cost\.md"):
        release_check.check_contents(make_wheel(tmp_path, "docs/cost.md"), make_sdist(tmp_path, FILES))


def test_a_wheel_over_a_megabyte_is_found(root: Path, tmp_path: Path) -> None:
    with pytest.raises(release_check.CheckError, match="more than 1048576"):
        release_check.check_contents(make_wheel(tmp_path, size=2**20), make_sdist(tmp_path, FILES))


def test_another_licence_is_found(root: Path, tmp_path: Path) -> None:
    with pytest.raises(release_check.CheckError, match="licence is MIT"):
        release_check.check_contents(make_wheel(tmp_path, licence="MIT"), make_sdist(tmp_path, FILES))


def test_a_file_that_the_sdist_lacks_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(release_check.CheckError, match=r"lacks \['CHANGELOG\.md'\]"):
        release_check.check_contents(make_wheel(tmp_path), make_sdist(tmp_path, FILES[:1]))


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2.4", "v1.2"])
def test_a_tag_of_another_version_is_refused(root: Path, tag: str) -> None:
    with pytest.raises(release_check.CheckError, match=r"expected is v1\.2\.3"):
        release_check.check_tag(tag)


def test_a_version_without_a_section_in_the_changelog_is_refused(root: Path) -> None:
    (root / "CHANGELOG.md").write_text("## [Unreleased]\n")
    with pytest.raises(release_check.CheckError, match=r"no section '## \[1\.2\.3\] - DATE'"):
        release_check.check_tag("v1.2.3")
