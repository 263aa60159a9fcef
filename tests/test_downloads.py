"""What is there already is not fetched, and what cannot be fetched says how to get it."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from pcl_loss._downloads import download

URL = "https://example.org/net-01234567.pth"


def offline(*_args: object, **_keywords: object) -> None:
    raise URLError("no route to host")


def test_a_file_at_hand_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    path = tmp_path / "hub/checkpoints/net-01234567.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert download(URL, "a net") == path


def test_the_hash_in_the_name_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked: dict[str, object] = {}

    def fetch(url: str, file: str, hash_prefix: str) -> None:
        asked.update(url=url, file=file, hash_prefix=hash_prefix)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    path = download(URL, "a net")
    assert asked == {"url": URL, "file": str(path), "hash_prefix": "01234567"}


def test_offline_the_message_names_the_file_its_source_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError) as error:
        download(URL, "a net")
    for said in (str(error.value), capsys.readouterr().err):
        assert f"put {URL} at {tmp_path / 'hub/checkpoints/net-01234567.pth'}" in said
