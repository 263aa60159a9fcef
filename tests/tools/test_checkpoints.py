"""A checkpoint is read without running its code, and a file of another kind is named with what to take instead."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import rand, tiny_discriminator
from torch import nn

from pcl_loss import WaveletDiscriminator
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


@pytest.mark.parametrize(
    "content", [{"iter": 5, "optimizers": [], "schedulers": []}, {"state_dict": {"head.0.weight": torch.ones(1)}}]
)
def test_a_file_of_another_kind_is_named_with_the_one_to_take(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth holds no network; name net_g_\*\.pth"):
        checkpoints.read(tmp_path / "file.pth")
    (tmp_path / "file.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"file\.pth is no readable checkpoint"):
        checkpoints.read(tmp_path / "file.pth")


@pytest.mark.parametrize(("norm", "wavelet"), [("batch", False), ("group", True), ("none", False)])
def test_a_saved_e_d_is_rebuilt_from_its_shapes(norm: str, wavelet: bool, tmp_path: Path) -> None:
    net = tiny_discriminator(norm=norm, wavelet=wavelet, num_feat=4, dtype=torch.float32)
    file = tmp_path / "models/net_d.pth"
    file.parent.mkdir()
    torch.save({"params": net.state_dict()}, file)
    (tmp_path / "run.yml").write_text(f"network_d: {{type: WaveletDiscriminator, wavelet: {wavelet}}}")
    state = torch.get_rng_state()
    loaded = checkpoints.load_discriminator(file)
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    images = rand(1, 3, 48, 48).float()
    for one, other in zip(loaded.embed(images), net.embed(images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"params": {"conv_first.weight": torch.zeros(1)}}, "holds no WaveletDiscriminator.*not a net_g"),
        ({"params": WaveletDiscriminator(num_in_ch=1, num_feat=2).state_dict()}, "3 planes of input"),
        ({"params": WaveletDiscriminator(3, 2).state_dict() | {"head.weight": torch.zeros(1, 9)}}, "does not fit"),
    ],
)
def test_what_is_no_e_d_of_rgb_images_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        checkpoints.load_discriminator(tmp_path / "file.pth")


@pytest.mark.usefixtures("registered")
def test_window_nets_get_their_multiple_and_the_image_keeps_its_size() -> None:
    def net(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-2:] == (21, 21)
        return nn.functional.interpolate(x, scale_factor=4)

    lr = np.random.default_rng(0).integers(0, 256, (20, 17, 3), dtype=np.uint8)
    sr = checkpoints.upscale(net, lr, 4, "cpu", window=7)
    np.testing.assert_array_equal(sr, lr.repeat(4, axis=0).repeat(4, axis=1))
