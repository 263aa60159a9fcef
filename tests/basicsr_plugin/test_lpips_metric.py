"""LPIPS as a metric: what it hands to the lpips package, and what it says when something is missing."""

from __future__ import annotations

import sys
import urllib.error
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from pcl_loss.basicsr_plugin import lpips_metric
from pcl_loss.basicsr_plugin.lpips_metric import backbone_at_hand, backbone_file, calculate_lpips

needs_backbone = pytest.mark.skipif(
    not backbone_at_hand(), reason=f"AlexNet's weights are not at hand (as {backbone_file()})"
)


class FakeLPIPS(nn.Module):
    """Records what it gets; the distance is a mean absolute difference."""

    built: list[dict[str, Any]]
    seen: list[tuple[Tensor, Tensor]]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.built.append(kwargs)
        warnings.warn("The parameter 'pretrained' is deprecated since 0.13", UserWarning, stacklevel=1)
        warnings.warn("Arguments other than a weight enum or `None` for 'weights' are deprecated", stacklevel=1)
        self.layer = nn.Linear(2, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.seen.append((first.cpu(), second.cpu()))
        return (first - second).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeLPIPS]:
    """The package, and an empty file for each backbone."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for net in ("alex", "vgg", "squeeze"):
        backbone_file(net).parent.mkdir(parents=True, exist_ok=True)
        backbone_file(net).touch()
    package = ModuleType("lpips")
    package.__dict__["LPIPS"] = FakeLPIPS
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(FakeLPIPS, "built", [], raising=False)
    monkeypatch.setattr(FakeLPIPS, "seen", [], raising=False)
    lpips_metric._model.cache_clear()
    return FakeLPIPS


def image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (40, 48, 3), dtype=np.uint8)


def test_it_hands_over_rgb_from_minus_1_to_1_without_the_border(fake: type[FakeLPIPS]) -> None:
    first, second = image(0), image(1)
    value = calculate_lpips(first, second, crop_border=3)
    assert isinstance(value, float)
    for got, given in zip(fake.seen[0], (first, second), strict=True):
        assert got.shape == (1, 3, 34, 42)
        for y, x in ((0, 0), (7, 9), (33, 41)):
            blue, green, red = (float(level) for level in given[y + 3, x + 3])
            expected = torch.tensor([red / 127.5 - 1, green / 127.5 - 1, blue / 127.5 - 1])
            torch.testing.assert_close(got[0, :, y, x], expected)
    assert value == pytest.approx(np.abs(first[3:-3, 3:-3] / 127.5 - second[3:-3, 3:-3] / 127.5).mean(), rel=1e-5)


def test_input_orders_number_types_and_grey_agree(fake: type[FakeLPIPS]) -> None:
    first, second = image(0), image(1)
    value = calculate_lpips(first, second, crop_border=0)
    assert calculate_lpips(first.astype(np.float64), second.astype(np.float32), crop_border=0) == value
    turned = calculate_lpips(first.transpose(2, 0, 1), second.transpose(2, 0, 1), crop_border=0, input_order="CHW")
    assert turned == value
    grey = [image(seed, 40, 48) for seed in (0, 1)]
    colour = [np.dstack([one] * 3) for one in grey]
    assert calculate_lpips(*grey, crop_border=0) == pytest.approx(calculate_lpips(*colour, crop_border=0))


def test_a_backbone_is_built_once_quietly_and_draws_no_random_numbers_from_the_run(
    fake: type[FakeLPIPS], capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for net in ("alex", "vgg", "alex", "vgg"):
            calculate_lpips(image(0), image(1), crop_border=0, net=net)
    assert fake.built == [{"net": net, "verbose": False} for net in ("alex", "vgg")]
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_basicsr_can_call_it_from_a_yaml(fake: type[FakeLPIPS]) -> None:
    from basicsr.metrics import calculate_metric

    options = {"type": "calculate_lpips", "crop_border": 4, "better": "lower", "test_y_channel": False}
    value = calculate_metric({"img": image(0), "img2": image(1)}, options)
    assert value == calculate_lpips(image(0), image(1), crop_border=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "resnet"}, "net 'resnet' is unknown; take one of alex, vgg, squeeze"),
        ({"test_y_channel": True}, "remove test_y_channel"),
        ({"network": "vgg"}, "unknown key 'network'"),
        ({"input_order": "WHC"}, "WHC"),
        ({"crop_border": -1}, "crop_border must be at least 0"),
        ({"crop_border": 5}, "40x48 pixels without crop_border 5 are too few"),
        ({"img2": image(1, 40, 40, 3)}, "different shapes"),
        ({"input_order": "CHW"}, "check input_order"),
    ],
)
def test_wrong_options_and_images_are_refused(fake: type[FakeLPIPS], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculate_lpips(**{"img": image(0), "img2": image(1), "crop_border": 0, **change})


def test_a_missing_package_names_the_extra(fake: type[FakeLPIPS], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"pip install 'pcl_loss\[metrics\]'"):
        calculate_lpips(image(0), image(1), crop_border=0)


def test_a_missing_backbone_is_announced_before_it_is_fetched_and_offline_it_says_where_to_put_it(
    fake: type[FakeLPIPS], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert backbone_file() == tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    assert backbone_file("vgg") == tmp_path / "hub/checkpoints/vgg16-397923af.pth"
    backbone_file().unlink()
    assert not backbone_at_hand()
    said_before = []

    def offline(url: str, dst: str, hash_prefix: str) -> None:
        said_before.append(capsys.readouterr().err)
        assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
        assert hash_prefix == "7be5be79"
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"Name or service not known.*By hand: put https://") as caught:
        calculate_lpips(image(0), image(1), crop_border=0)
    for text in (*said_before, str(caught.value)):
        assert str(backbone_file()) in text
    assert fake.built == []


@needs_backbone
def test_the_value_is_that_of_the_lpips_package() -> None:
    lpips = pytest.importorskip("lpips")
    lpips_metric._model.cache_clear()
    rgb = skimage.data.astronaut()[60:180, 160:280]
    noisy = np.clip(rgb + np.random.default_rng(0).normal(0, 20, rgb.shape), 0, 255).round().astype(np.uint8)
    first, second = (
        torch.from_numpy(picture[4:-4, 4:-4] / 127.5 - 1).permute(2, 0, 1)[None].float() for picture in (rgb, noisy)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = lpips.LPIPS(net="alex", verbose=False)(first, second).item()
    assert direct > 0.05
    assert calculate_lpips(rgb[..., ::-1], noisy[..., ::-1], crop_border=4) == pytest.approx(direct, rel=1e-4)
    assert calculate_lpips(rgb, rgb.copy(), crop_border=4) == 0
