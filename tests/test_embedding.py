"""VGG embeds as torchvision computes it, stays frozen, and says what to do about missing weights."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from helpers import rand
from torch import nn

from pcl_loss import PCLCriterion, VGGEmbedding


def maps_by_hooks(features: nn.Sequential, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The outputs of torchvision's own ReLUs, on the input normalised by hand."""
    found: list[torch.Tensor] = []
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.clone()))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    features(torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1))
    return found[:count]


@pytest.mark.parametrize(("vgg", "count"), [("vgg19", 4), ("vgg11", 3), ("vgg16", 5)])
def test_the_maps_are_those_after_the_first_relus(vgg: str, count: int, tmp_path: Path) -> None:
    # torchvision's own layers, without the large classifier behind them.
    layers = {"vgg11": "A", "vgg16": "D", "vgg19": "E"}[vgg]
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs[layers]).eval()
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, tmp_path / "vgg.pth")
    x = rand(2, 3, 48, 40, dtype=torch.float32)
    maps = VGGEmbedding(vgg, count, tmp_path / "vgg.pth").embed(x, count)
    for ours, theirs in zip(maps, maps_by_hooks(features, x, count), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_only_the_image_receives_a_gradient() -> None:
    vgg = VGGEmbedding("vgg11", 2, weights=None)
    x = rand(1, 3, 32, 32, dtype=torch.float32).requires_grad_()
    vgg.embed(x, 2)[1].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in vgg.parameters())


def test_fewer_maps_than_it_was_built_with_compute_nothing_deeper() -> None:
    vgg = VGGEmbedding("vgg11", 3, weights=None)
    deepest = [layer for layer in vgg.features if isinstance(layer, nn.Conv2d)][2]
    deepest.register_forward_hook(lambda *_: pytest.fail("a deeper layer ran"))
    assert len(vgg.embed(rand(1, 3, 32, 32, dtype=torch.float32), 2)) == 2


def test_a_criterion_never_trains_it() -> None:
    vgg = VGGEmbedding("vgg11", 2, weights=None)
    before = {key: value.clone() for key, value in vgg.state_dict().items()}
    criterion = PCLCriterion(vgg, num_layers=2)
    sr = rand(2, 3, 32, 32, dtype=torch.float32).requires_grad_()
    criterion(sr, rand(2, 3, 32, 32, seed=1, dtype=torch.float32)).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert all(torch.equal(value, before[key]) for key, value in vgg.state_dict().items())
    assert "l_d" not in criterion.log


def offline(*_args: object, **_keywords: object) -> None:
    raise URLError("no route to host")


def test_missing_weights_say_what_where_from_and_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    target = tmp_path / "hub/checkpoints/vgg19-dcbb9e9d.pth"
    with pytest.raises(FileNotFoundError) as error:
        VGGEmbedding()
    for said in (str(error.value), capsys.readouterr().err):
        assert "ImageNet weights of vgg19" in said
        assert "vgg19-dcbb9e9d.pth at " + str(target) in said


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vgg must be one of .*'vgg19'.*got 'vgg20'"):
        VGGEmbedding("vgg20", weights=None)
    with pytest.raises(ValueError, match="num_layers must be from 1 to 8, got 9"):
        VGGEmbedding("vgg11", 9, weights=None)
    with pytest.raises(FileNotFoundError, match="no file"):
        VGGEmbedding("vgg11", weights=tmp_path / "none.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lacks \['features\.0\.bias'"):
        VGGEmbedding("vgg11", weights=tmp_path / "other.pth")
    vgg = VGGEmbedding("vgg11", 2, weights=None)
    with pytest.raises(ValueError, match="num_layers must be from 1 to 2, got 4"):
        vgg.embed(torch.zeros(1, 3, 32, 32), 4)
    with pytest.raises(ValueError, match="1 channels, but 3 are expected"):
        vgg.embed(torch.zeros(1, 1, 32, 32), 2)


def test_real_weights_tell_a_photograph_from_its_blurred_copy(crops: torch.Tensor) -> None:
    path = Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    first = VGGEmbedding("vgg16").embed(crops, 4)
    again = VGGEmbedding("vgg16").embed(crops, 4)
    blurred = VGGEmbedding("vgg16").embed(torchvision.transforms.functional.gaussian_blur(crops, 7, 1.5), 4)
    for same, a, b in zip(first, again, blurred, strict=True):
        assert torch.equal(same, a)
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).mean()
        assert 0.3 < cosine < 0.99
