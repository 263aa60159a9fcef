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

import pcl_loss.basicsr_plugin  # noqa: F401  (before anything that imports basicsr)
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


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    lpips_metric._model.cache_clear()
    yield
    lpips_metric._model.cache_clear()


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with an empty file for each backbone."""
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for net in ("alex", "vgg", "squeeze"):
        backbone_file(net).parent.mkdir(parents=True, exist_ok=True)
        backbone_file(net).touch()
    return tmp_path


@pytest.fixture
def fake(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeLPIPS]:
    package = ModuleType("lpips")
    package.__dict__["LPIPS"] = FakeLPIPS
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(FakeLPIPS, "built", [], raising=False)
    monkeypatch.setattr(FakeLPIPS, "seen", [], raising=False)
    return FakeLPIPS


def image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (40, 48, 3), dtype=np.uint8)


def test_it_hands_over_rgb_from_minus_1_to_1_without_the_border(fake: type[FakeLPIPS]) -> None:
    first, second = image(0), image(1)
    first[10, 12] = (0, 127.5, 255)
    value = calculate_lpips(first, second, crop_border=3)
    assert isinstance(value, float)
    for got, given in zip(fake.seen[0], (first, second), strict=True):
        assert got.shape == (1, 3, 34, 42)
        for y in (0, 7, 33):
            for x in (0, 9, 41):
                blue, green, red = (float(level) for level in given[y + 3, x + 3])
                expected = torch.tensor([red / 127.5 - 1, green / 127.5 - 1, blue / 127.5 - 1])
                torch.testing.assert_close(got[0, :, y, x], expected)
    assert value == pytest.approx(np.abs(first[3:-3, 3:-3] / 127.5 - second[3:-3, 3:-3] / 127.5).mean(), rel=1e-5)


def test_input_orders_and_number_types_agree(fake: type[FakeLPIPS]) -> None:
    first, second = image(0), image(1)
    value = calculate_lpips(first, second, crop_border=0)
    assert calculate_lpips(first.astype(np.float64), second.astype(np.float32), crop_border=0) == value
    turned = calculate_lpips(first.transpose(2, 0, 1), second.transpose(2, 0, 1), crop_border=0, input_order="CHW")
    assert turned == value


def test_grey_counts_as_colour(fake: type[FakeLPIPS]) -> None:
    first, second = image(0, 40, 48), image(1, 40, 48)
    calculate_lpips(first, second, crop_border=0)
    calculate_lpips(np.dstack([first] * 3), np.dstack([second] * 3), crop_border=0)
    for grey, colour in zip(*fake.seen, strict=True):
        assert grey.shape == (1, 3, 40, 48)
        assert torch.equal(grey, colour)


def test_a_backbone_is_built_once(fake: type[FakeLPIPS]) -> None:
    for net in ("alex", "vgg", "alex", "vgg"):
        calculate_lpips(image(0), image(1), crop_border=0, net=net)
    assert [kwargs["net"] for kwargs in fake.built] == ["alex", "vgg"]


def test_building_is_quiet_and_draws_no_random_numbers_from_the_run(
    fake: type[FakeLPIPS], capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculate_lpips(image(0), image(1), crop_border=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert fake.built == [{"net": "alex", "verbose": False}]
    assert capsys.readouterr() == ("", "")


def test_other_warnings_are_not_silenced(fake: type[FakeLPIPS], monkeypatch: pytest.MonkeyPatch) -> None:
    class Loud(FakeLPIPS):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            warnings.warn("something else", UserWarning, stacklevel=1)

    sys.modules["lpips"].__dict__["LPIPS"] = Loud
    with pytest.warns(UserWarning, match="something else"):
        calculate_lpips(image(0), image(1), crop_border=0)


def test_basicsr_can_call_it_from_a_yaml(fake: type[FakeLPIPS]) -> None:
    from basicsr.metrics import calculate_metric
    from basicsr.utils.registry import METRIC_REGISTRY

    if "calculate_lpips" not in METRIC_REGISTRY:
        METRIC_REGISTRY.register(calculate_lpips)
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


def test_a_missing_package_names_the_extra(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"pip install 'pcl_loss\[metrics\]'"):
        calculate_lpips(image(0), image(1), crop_border=0)


def test_backbone_files_are_those_of_torchvision(torch_home: Path) -> None:
    folder = torch_home / "hub/checkpoints"
    assert backbone_file() == backbone_file("alex") == folder / "alexnet-owt-7be5be79.pth"
    assert backbone_file("vgg") == folder / "vgg16-397923af.pth"
    assert backbone_at_hand("vgg")
    backbone_file("vgg").unlink()
    assert not backbone_at_hand("vgg")
    with pytest.raises(ValueError, match="net 'resnet' is unknown"):
        backbone_at_hand("resnet")


def test_a_download_is_announced_before_it_begins(
    fake: type[FakeLPIPS], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone_file().unlink()
    said_before = []

    def download(url: str, dst: str, hash_prefix: str) -> None:
        said_before.append(capsys.readouterr().err)
        assert url == "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
        assert hash_prefix == "7be5be79"
        Path(dst).touch()

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        calculate_lpips(image(0), image(1), crop_border=0)
    assert len(said_before) == 1
    assert str(backbone_file()) in said_before[0]
    assert "By hand" in said_before[0]


def test_offline_it_fails_with_where_to_put_the_file(fake: type[FakeLPIPS], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone_file().unlink()

    def offline(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match=r"By hand: put https://") as caught:
        calculate_lpips(image(0), image(1), crop_border=0)
    assert str(backbone_file()) in str(caught.value)
    assert "Name or service not known" in str(caught.value)
    assert fake.built == []


@needs_backbone
def test_identical_images_are_at_distance_0() -> None:
    pytest.importorskip("lpips")
    photograph = skimage.data.chelsea()[60:160, 120:220]
    assert calculate_lpips(photograph, photograph.copy(), crop_border=4) == 0


@needs_backbone
def test_the_value_is_that_of_the_lpips_package() -> None:
    lpips = pytest.importorskip("lpips")
    rgb = skimage.data.astronaut()[60:180, 160:280]
    noisy = np.clip(rgb + np.random.default_rng(0).normal(0, 20, rgb.shape), 0, 255).round().astype(np.uint8)
    first, second = (
        torch.stack([torch.from_numpy(picture[4:-4, 4:-4, channel] / 255.0 * 2 - 1) for channel in range(3)])
        for picture in (rgb, noisy)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = lpips.LPIPS(net="alex", verbose=False)(first[None].float(), second[None].float()).item()
    assert direct > 0.05
    value = calculate_lpips(rgb[..., ::-1], noisy[..., ::-1], crop_border=4)
    assert value == pytest.approx(direct, rel=1e-4)
