"""LPIPS as a metric: what it hands to the lpips package, and what it says when something is missing."""

from __future__ import annotations

import sys
import urllib.error
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from pcl_loss.basicsr_plugin import lpips_metric
from pcl_loss.basicsr_plugin.lpips_metric import backbone_file, calculate_lpips


class FakeLPIPS(nn.Module):
    """Notes the images it gets, and is as loud when built as the package is."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        assert keywords == {"net": "alex", "verbose": False}
        warnings.warn("The parameter 'pretrained' is deprecated since 0.13", UserWarning, stacklevel=1)
        self.layer = nn.Linear(2, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        self.seen += [first.cpu(), second.cpu()]
        return (first - second).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    lpips_metric._model.cache_clear()
    yield
    lpips_metric._model.cache_clear()


@pytest.fixture
def no_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("lpips")
    package.__dict__["LPIPS"] = FakeLPIPS
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture
def fake(no_backbone: None) -> None:
    backbone_file().parent.mkdir(parents=True)
    backbone_file().touch()


def seen() -> list[Tensor]:
    images: list[Tensor] = lpips_metric._model("alex", "cuda" if torch.cuda.is_available() else "cpu").seen
    return images


def image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (40, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ["HWC", "CHW"])
def test_it_hands_over_rgb_from_minus_1_to_1_without_the_border(order: str, fake: None) -> None:
    picture = np.zeros((40, 48, 3))
    picture[3:-3, 3:-3] = (0, 127.5, 255)  # blue, green, red
    given = picture if order == "HWC" else picture.transpose(2, 0, 1)
    assert calculate_lpips(given, given, crop_border=3, input_order=order) == 0
    for got in seen():
        assert torch.equal(got, torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 34, 42))


def test_grey_counts_as_colour(fake: None) -> None:
    grey = image(0, 40, 48)
    calculate_lpips(grey, grey, crop_border=0)
    for got in seen():
        assert torch.equal(got, (torch.from_numpy(grey).float() / 127.5 - 1).expand(1, 3, 40, 48))


def test_basicsr_calls_it_from_a_yaml_quietly_and_with_the_runs_random_numbers_left_alone(
    fake: None, untouched_global_rng: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from basicsr.metrics import calculate_metric

    options = {"type": "calculate_lpips", "crop_border": 4, "better": "lower", "test_y_channel": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = calculate_metric({"img": image(0), "img2": image(1)}, options)
    expected = np.abs(image(0)[4:-4, 4:-4] / 127.5 - image(1)[4:-4, 4:-4] / 127.5).mean()
    assert value == pytest.approx(expected, rel=1e-5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "resnet"}, "net 'resnet' is unknown; take one of alex, vgg, squeeze"),
        ({"test_y_channel": True}, "remove test_y_channel"),
        ({"img2": image(1, 40, 40, 3)}, "different shapes"),
    ],
)
def test_wrong_options_and_images_are_refused(fake: None, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculate_lpips(**{"img": image(0), "img2": image(1), "crop_border": 0, **change})


def test_offline_it_fails_with_where_to_put_the_file(no_backbone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"Name or service not known.*By hand: put https://") as caught:
        calculate_lpips(image(0), image(1), crop_border=0)
    assert str(backbone_file()) in str(caught.value)


@pytest.mark.skipif(not backbone_file().is_file(), reason=f"AlexNet's weights are not at hand (as {backbone_file()})")
def test_the_value_is_that_of_the_lpips_package() -> None:
    lpips = pytest.importorskip("lpips")
    rgb = skimage.data.astronaut()[60:180, 160:280]
    noisy = np.clip(rgb + np.random.default_rng(0).normal(0, 20, rgb.shape), 0, 255).round().astype(np.uint8)
    inner = [picture[4:-4, 4:-4].transpose(2, 0, 1)[None] / 255.0 * 2 - 1 for picture in (rgb, noisy)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = lpips.LPIPS(net="alex", verbose=False)(*(torch.from_numpy(picture).float() for picture in inner))
    assert direct.item() > 0.05
    value = calculate_lpips(rgb[..., ::-1], noisy[..., ::-1], crop_border=4)
    assert value == pytest.approx(direct.item(), rel=1e-4)
