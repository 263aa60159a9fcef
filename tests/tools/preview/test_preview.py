"""The sheet shows what the loss really compares, and its numbers are those of the equations."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pywt
import reference
import torch
import yaml
from helpers import Recorder, photograph, rand, same, snapshot, tiny_discriminator
from matplotlib.text import Text
from torch import Tensor

from pcl_loss import PCLLoss, WaveletDiscriminator
from pcl_loss.samples import seeded_generator
from pcl_loss.tools import preview
from pcl_loss.tools.preview import detailed_window, draw, load_discriminator, make_sheet, read_image

ALL = {"negatives": ("blur", "lq"), "num_positives": 2, "num_negatives": 2}


@pytest.fixture(scope="module")
def hr() -> Tensor:
    return photograph("chelsea")[None, :, 100:148, 120:168].double()


@pytest.fixture(scope="module")
def lq(hr: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(hr, 4)


@pytest.fixture(scope="module")
def sr(hr: Tensor) -> Tensor:
    return hr + 0.1 * (rand(*hr.shape) - 0.5)


def array(images: Tensor) -> Any:
    return images.numpy()


# The data


def test_the_samples_are_those_that_the_loss_embeds(hr: Tensor, sr: Tensor, lq: Tensor) -> None:
    for seed in (0, 5):
        pcl, recorder = PCLLoss(seed=seed, **ALL), Recorder(tiny_discriminator())
        sheet = make_sheet(hr, pcl, lq=lq)
        pcl(sr, hr, recorder, lq)
        embedded = torch.cat(recorder.inputs)[1:]  # SR comes first
        assert torch.equal(torch.stack([panel.image for panel in sheet.panels]), embedded)


def test_images_in_0_to_255_give_the_sheet_of_those_in_0_to_1(hr: Tensor, sr: Tensor) -> None:
    net = tiny_discriminator()
    ours = make_sheet(hr, PCLLoss(), sr=sr, embedding=net)
    theirs = make_sheet(hr * 255, PCLLoss(data_range=255.0), sr=sr * 255, embedding=net)
    assert ours.l_cl == pytest.approx(theirs.l_cl)
    for one, other in zip(ours.panels, theirs.panels, strict=True):
        torch.testing.assert_close(one.image, other.image)


def test_every_draw_beneath_a_sample_is_the_one_that_made_it(hr: Tensor) -> None:
    sheet = make_sheet(hr, PCLLoss(**ALL | {"negatives": ("blur",)}))
    assert [panel.kind for panel in sheet.panels] == ["gt", "sharpen", "sharpen", "blur", "blur"]
    for panel in sheet.panels[1:]:
        assert panel.draw is not None
        expected = (
            reference.sharpen(array(hr[0]), panel.draw)
            if panel.kind == "sharpen"
            else reference.blur(array(hr[0]), panel.draw, radius=5)
        )
        np.testing.assert_allclose(array(panel.image), expected, atol=1e-6)


def test_the_bands_and_their_energy_are_those_of_pywavelets(hr: Tensor, sr: Tensor) -> None:
    sheet = make_sheet(hr, PCLLoss(**ALL | {"negatives": ("blur",)}), sr=sr)

    def bands(image: Tensor) -> Any:
        return np.stack(pywt.dwt2(array(image), "haar")[1])

    gt_energy = (bands(hr[0]) ** 2).mean()
    for panel in sheet.panels:
        np.testing.assert_allclose(array(panel.bands), np.abs(bands(panel.image)).sum(0).mean(0), atol=1e-12)
        assert panel.energy == pytest.approx((bands(panel.image) ** 2).mean() / gt_energy)
    for panel in sheet.panels[1:]:
        if panel.kind == "sharpen":
            assert panel.energy > 1
        elif panel.kind == "blur":
            assert panel.energy < 1


def test_the_psnr_is_that_to_gt(hr: Tensor, sr: Tensor) -> None:
    for panel in make_sheet(hr, PCLLoss(), sr=sr).panels:
        mse = ((array(panel.image) - array(hr[0])) ** 2).mean()
        assert panel.psnr == (math.inf if panel.kind == "gt" else pytest.approx(-10 * math.log10(mse)))


@pytest.mark.parametrize("layer", [None, 1, 3])
def test_the_similarities_are_those_of_equation_9(layer: int | None, hr: Tensor, sr: Tensor) -> None:
    net = tiny_discriminator()
    sheet = make_sheet(hr, PCLLoss(num_layers=3, **ALL | {"negatives": ("blur",)}), sr=sr, embedding=net, layer=layer)
    anchors = reference.embed(net, array(sr[0]), 3)
    for panel in sheet.panels:
        if panel.kind == "sr":
            assert panel.similarity_map is panel.similarity is None
            continue
        maps = reference.embed(net, array(panel.image), 3)
        layers = [reference.similarity(f, g) for f, g in zip(anchors, maps, strict=True)]
        expected = float(np.mean(layers)) if layer is None else layers[layer - 1]
        assert panel.similarity == pytest.approx(expected, abs=1e-6)
        assert panel.similarity_map is not None
        assert float(panel.similarity_map.mean()) == pytest.approx(expected, abs=1e-6)
        assert panel.similarity_map.shape == anchors[0 if layer is None else layer - 1].shape[1:]


@pytest.mark.parametrize("positives", [("gt", "sharpen"), ("gt",), ("sharpen",)])
def test_l_cl_is_that_of_the_loss(positives: tuple[str, ...], hr: Tensor, sr: Tensor, lq: Tensor) -> None:
    pcl, net = PCLLoss(positives=positives, temperature=0.3, **ALL), tiny_discriminator()
    sheet = make_sheet(hr, pcl, sr=sr, lq=lq, embedding=net)
    pcl(sr, hr, net, lq)
    assert sheet.l_cl == pytest.approx(float(pcl.stats["l_cl"]), rel=1e-6)
    assert sheet.gt_is_positive == ("gt" in positives)


def test_what_one_image_cannot_show_is_noted(hr: Tensor) -> None:
    sheet = make_sheet(hr, PCLLoss(negatives=("batch", "lq")))
    assert not sheet.negatives
    assert "'lq'" in sheet.notes[0]
    assert "'batch'" in sheet.notes[1]


def test_a_sheet_changes_nothing(hr: Tensor, sr: Tensor, untouched_global_rng: None) -> None:
    net, pcl = tiny_discriminator(), PCLLoss()
    before = snapshot(net)
    make_sheet(hr, pcl, sr=sr.clone().requires_grad_(), embedding=net, generator=seeded_generator(1, 1))
    assert same(before, snapshot(net))
    assert net.training
    assert pcl.num_calls == 0
    assert not pcl.stats
    assert all(param.grad is None and param.requires_grad for param in net.parameters())


def test_a_flat_image_has_no_relative_energy(hr: Tensor) -> None:
    sheet = make_sheet(torch.full_like(hr, 0.5), PCLLoss())
    assert math.isnan(sheet.panels[0].energy)
    draw(sheet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sr": torch.zeros(1, 3, 40, 48)}, "SR is 40x48, but the image is 48x48"),
        ({"hr": torch.zeros(1, 3, 31, 48)}, "hr is 31x48, but at least 32x32"),
        ({"hr": torch.zeros(2, 3, 48, 48)}, "one image"),
        ({"embedding": tiny_discriminator()}, "give one besides the embedding"),
        ({"lq": torch.zeros(1, 1, 12, 12)}, "lq must be one image of hr's channels"),
        ({"layer": 5}, "layer must be from 1 to 4, got 5"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, hr: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        make_sheet(**({"hr": hr, "pcl": PCLLoss()} | change))


def test_the_window_is_where_the_detail_is() -> None:
    image = torch.full((1, 1, 200, 310), 0.5)
    image[..., 100:160, 200:260] = rand(1, 1, 60, 60).float()
    window = detailed_window(image, size=64, multiple=4)
    assert window.height == window.width == 64
    assert window.top % 4 == window.left % 4 == 0
    assert abs(window.top - 98) <= 4
    assert abs(window.left - 198) <= 4
    whole_height = detailed_window(image)
    assert (whole_height.top, whole_height.height, whole_height.width) == (0, 200, 256)
    assert 4 <= whole_height.left <= 54
    assert detailed_window(image[..., :47, :33]) == (0, 0, 47, 33)


# E_D's file


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("wavelet", [True, False])
def test_a_saved_e_d_is_rebuilt_from_its_shapes(norm: str, wavelet: bool, tmp_path: Path, hr: Tensor) -> None:
    net = tiny_discriminator(norm=norm, wavelet=wavelet, num_feat=4, dtype=torch.float32)
    torch.save({"params": net.state_dict()}, tmp_path / "net_d.pth")
    state = torch.get_rng_state()
    loaded = load_discriminator(tmp_path / "net_d.pth")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    for one, other in zip(loaded.embed(hr.float()), net.embed(hr.float()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no E_D file"),
        (b"no pickle", "not a PyTorch file of weights"),
        ({"epoch": 1}, r"no key 'params' \(found: \['epoch'\]\)"),
        ({"params": {"conv_first.weight": torch.zeros(1)}}, "holds no WaveletDiscriminator.*not a net_g"),
        ({"params": WaveletDiscriminator(1, 2).state_dict() | {"blocks.0.conv.weight": torch.zeros(2, 6, 3, 3)}}, "6"),
        ({"params": WaveletDiscriminator(1, 2).state_dict() | {"head.weight": torch.zeros(1, 9)}}, "does not fit"),
    ],
)
def test_a_file_of_another_kind_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_discriminator(path)


# The picture


@pytest.mark.parametrize(("shape", "count"), [((48, 48), 1), ((32, 160), 5), ((160, 32), 5), ((48, 48), 8)])
def test_no_two_texts_of_the_picture_overlap(shape: tuple[int, int], count: int) -> None:
    hr = rand(1, 3, *shape).float()
    pcl = PCLLoss(num_positives=count, num_negatives=count, negatives=("blur", "batch"))
    sheet = make_sheet(hr, pcl, sr=hr * 0.9, embedding=tiny_discriminator(dtype=torch.float32))
    figure = draw(sheet, "a_photograph.png, 48x48 at 0,0")
    pixels = preview.to_pixels(figure)
    assert pixels.shape[1:] == (1200, 3)
    assert pixels.dtype == np.uint8
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]
    for index, (name, box) in enumerate(boxes):
        assert box.x0 >= 0, name
        assert box.x1 <= pixels.shape[1], name
        assert box.y0 >= 0, name
        assert box.y1 <= pixels.shape[0], name
        for other, other_box in boxes[index + 1 :]:
            assert not box.overlaps(other_box), (name, other)


def test_all_bands_have_one_scale_and_all_similarities_one(hr: Tensor, sr: Tensor) -> None:
    figure = draw(make_sheet(hr, PCLLoss(), sr=sr, embedding=tiny_discriminator()))
    limits: dict[str, set[tuple[float, float]]] = {}
    for ax in figure.axes:
        for image in ax.images:
            limits.setdefault(f"{image.get_cmap().name} {image.get_array().ndim}", set()).add(image.get_clim())
    assert {key: len(values) for key, values in limits.items() if not key.endswith("3")} == {
        "gray 2": 1,
        "viridis 2": 1,
    }


def test_grey_images_and_images_that_are_not_finite_can_be_drawn() -> None:
    hr = rand(1, 1, 32, 32).float()
    net = WaveletDiscriminator(1, 2)
    sr = hr.clone()
    sr[..., 3, 3] = math.nan
    preview.to_pixels(draw(make_sheet(hr, PCLLoss(), sr=sr, embedding=net)))


def test_without_matplotlib_the_error_names_the_extra(hr: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pcl_loss\[plots\]'"):
        draw(make_sheet(hr, PCLLoss()))


# The verb


def save(path: Path, images: Tensor) -> Path:
    rgb = (images[0].movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


@pytest.fixture
def files(tmp_path: Path, hr: Tensor, sr: Tensor, lq: Tensor) -> dict[str, Path]:
    """GT, SR, LR, an E_D and a training YAML."""
    torch.save({"params": tiny_discriminator(dtype=torch.float32).state_dict()}, tmp_path / "net_d_5.pth")
    options = {"train": {"pcl_opt": {"type": "PCLLoss", "num_positives": 1, "num_negatives": 2, "loss_weight": 3.0}}}
    (tmp_path / "train.yml").write_text(yaml.safe_dump(options))
    (tmp_path / "l1.yml").write_text(yaml.safe_dump({"train": {"pixel_opt": {"type": "L1Loss"}}}))
    (tmp_path / "typo.yml").write_text(yaml.safe_dump({"train": {"pcl_opt": {"num_positive": 1}}}))
    (tmp_path / "text.png").write_text("no image")
    return {
        "image": save(tmp_path / "gt.png", hr),
        "sr": save(tmp_path / "sr.png", sr),
        "lq": save(tmp_path / "lq.png", lq),
        "small": save(tmp_path / "small.png", hr[..., :31, :]),
        "net_d": tmp_path / "net_d_5.pth",
        "out": tmp_path / "pictures" / "sheet.png",
        "folder": tmp_path,
    }


def command(files: dict[str, Path], *flags: str, image: str = "image") -> int:
    parser = argparse.ArgumentParser()
    preview.add_arguments(parser)
    return preview.run(parser.parse_args(["--image", str(files[image]), "--out", str(files["out"]), *flags]))


def drawn_sheets(monkeypatch: pytest.MonkeyPatch) -> list[preview.Sheet]:
    sheets = []
    real = preview.draw
    monkeypatch.setattr(preview, "draw", lambda sheet, title: (sheets.append(sheet), real(sheet, title))[1])
    return sheets


def test_the_verb_draws_a_picture(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = drawn_sheets(monkeypatch)
    flags = [f"--{key}={files[key.replace('-', '_')]}" for key in ("sr", "lq", "net-d")]
    assert command(files, *flags, "--seed", "7") == 0
    picture = cv2.imread(str(files["out"]))
    assert picture.shape[1] == 1200
    assert picture.shape[0] > 1000
    (sheet,) = sheets
    assert [panel.kind for panel in sheet.negatives] == ["sr"] + 4 * ["blur"] + ["lq"]
    assert f"L_CL = {sheet.l_cl:.4f}" in capsys.readouterr().out

    hr, sr, lq = (read_image(files[key]) for key in ("image", "sr", "lq"))
    pcl, net = PCLLoss(negatives=("blur", "lq"), seed=7), load_discriminator(files["net_d"])
    pcl(sr, hr, net, lq)
    assert sheet.l_cl == pytest.approx(float(pcl.stats["l_cl"]), rel=1e-5)


def test_the_knobs_come_from_the_yaml_and_flags_go_before_it(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = drawn_sheets(monkeypatch)
    yml = f"--opt={files['folder'] / 'train.yml'}"
    command(files, yml)
    command(files, yml, "--num-positives", "3", "--sharpness", "2", "2.1", "--negatives", "blur", "batch")
    assert [(len(sheet.positives), len(sheet.negatives)) for sheet in sheets] == [(2, 2), (4, 2)]
    assert all(2 <= (panel.draw or 0) <= 2.1 for panel in sheets[1].positives[1:])


def test_a_crop_takes_the_same_part_of_gt_sr_and_lr(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = drawn_sheets(monkeypatch)
    command(files, f"--sr={files['sr']}", f"--lq={files['lq']}", "--crop", "8,12,32")
    (sheet,) = sheets
    gt, sr = (read_image(files[key])[0, :, 8:40, 12:44] for key in ("image", "sr"))
    assert torch.equal(sheet.positives[0].image, gt)
    assert torch.equal(sheet.negatives[0].image, sr)
    expected = reference.bicubic(array(read_image(files["lq"])[0, :, 2:10, 3:11].double()), (32, 32))
    np.testing.assert_allclose(array(sheet.negatives[-1].image), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "flags", "message"),
    [
        ("folder", (), "there is no image"),
        ("image", ("--sr", "missing.png"), "there is no image missing.png"),
        ("image", ("--sr", "{folder}/text.png"), "no image that can be read"),
        ("small", (), "small.png is 31x48; at least 32x32 is needed"),
        ("image", ("--sr", "{lq}"), "lq.png is 12x12, but .*gt.png is 48x48"),
        ("image", ("--lq", "{small}"), "no whole multiple of .*small.png"),
        ("image", ("--net-d", "{net_d}"), "add --sr FILE"),
        ("image", ("--layer", "2"), "add --net-d FILE"),
        ("image", ("--crop", "0,0"), "TOP,LEFT,SIZE, three whole numbers, got '0,0'"),
        ("image", ("--crop", "0,0,20"), "SIZE must be at least 32"),
        ("image", ("--crop", "0,20,32"), "reaches beyond the image of 48x48"),
        ("image", ("--lq", "{lq}", "--crop", "2,0,32"), "take multiples of it, such as 0,0,32"),
        ("image", ("--lq", "{lq}", "--negatives", "blur"), "add 'lq' there, or drop --lq"),
        ("image", ("--seed", "-1"), "seed must be at least 0"),
        ("image", ("--opt", "{folder}/no.yml"), "there is no option file"),
        ("image", ("--opt", "{folder}/l1.yml"), r"no block train\.pcl_opt"),
        ("image", ("--opt", "{folder}/typo.yml"), r"train\.pcl_opt: .*num_positive"),
        ("image", ("--negatives", "blurr"), "unknown entries"),
    ],
)
def test_a_wrong_flag_names_itself_and_the_fix(
    image: str, flags: tuple[str, ...], message: str, files: dict[str, Path]
) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        command(files, *(flag.format(**files) for flag in flags), image=image)
    assert not files["out"].exists()
