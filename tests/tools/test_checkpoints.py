"""A checkpoint is read without running its code, and a file of another kind is named with what to take instead."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pcl_loss.tools import _checkpoints as checkpoints


class Pickled:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_was_saved_is_read_and_no_code_is_run(zipped: bool, tmp_path: Path) -> None:
    net = nn.Conv2d(1, 1, 1)
    torch.save({"params": net.state_dict(), "iter": 5}, tmp_path / "net", _use_new_zipfile_serialization=zipped)
    content = checkpoints.read(tmp_path / "net")
    assert content["iter"] == 5
    assert all(torch.equal(content["params"][key], value) for key, value in net.state_dict().items())

    torch.save({"a": Pickled(tmp_path / "ran")}, tmp_path / "code", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"code holds Python objects.*torch\.save\(net\.state_dict"):
        checkpoints.read(tmp_path / "code")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_another_kind_is_named_with_the_one_to_take(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam([torch.ones(1)])
    foreign = [b"", b"PK\x03\x04 no zip", b"<html>404</html>", b"\x80\x02}q"]
    contents = [
        *zip(foreign, itertools.repeat("is no readable checkpoint")),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({"iter": 5, "optimizers": [], "schedulers": []}, r"training state of BasicSR.*net_g_\*\.pth"),
        (optimizer.state_dict(), "state of an optimizer"),
        ({"state_dict": {"head.0.weight": torch.ones(1)}}, "under 'state_dict'"),
    ]
    path = tmp_path / "file.pth"
    for content, message in contents:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=rf"file\.pth .*{message}"):
            checkpoints.read(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        checkpoints.read(tmp_path / "none.pth")
