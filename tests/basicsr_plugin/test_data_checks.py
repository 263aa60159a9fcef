"""Images are looked at before the first step: what is broken is named with its path, what is converted said once."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from pcl_loss.basicsr_plugin.data_checks import check_files
from PIL import Image

from pcl_loss.basicsr_plugin import OptionsError

Options = dict[str, Any]
Parse = Callable[..., Options]


@pytest.fixture
def folders(paired_data: Path, tmp_path: Path) -> Path:
    """A copy of the pairs that a test may spoil."""
    return Path(shutil.copytree(paired_data, tmp_path / "pairs"))


@pytest.fixture
def options(with_pcl: Options, folders: Path) -> Options:
    for dataset in with_pcl["datasets"].values():
        dataset |= {"dataroot_gt": str(folders / "gt"), "dataroot_lq": str(folders / "lq")}
    return with_pcl


def refuses(parse: Parse, options: Options, message: str) -> None:
    with pytest.raises(OptionsError, match=message) as raised:
        parse(options)
    assert "\n" not in str(raised.value)
    assert [path.name for path in Path().iterdir()] == ["run.yml"]


def test_folders_of_images_may_be_a_list(baseline: Options, tmp_path: Path) -> None:
    train_set = baseline["datasets"]["train"]
    train_set["dataroot_gt"] = [train_set["dataroot_gt"], str(tmp_path)]
    check_files(baseline)
    missing = str(tmp_path / "missing")
    train_set["dataroot_gt"].append(missing)
    with pytest.raises(OptionsError, match=rf"datasets\.train\.dataroot_gt: there is no {re.escape(missing)} "):
        check_files(baseline)


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 8])


def test_a_truncated_png_is_named(options: Options, folders: Path, parse: Parse) -> None:
    cut_short(folders / "gt" / "chelsea.png")
    refuses(parse, options, rf"datasets\.train\.dataroot_gt: {folders}/gt/chelsea\.png is cut short")


def test_a_truncated_jpeg_is_named_and_one_with_a_trailer_is_not(options: Options, folders: Path, parse: Parse) -> None:
    for sub in ("gt", "lq"):
        for path in (folders / sub).iterdir():
            Image.open(path).save(path.with_suffix(".jpg"))
            path.unlink()
    whole = folders / "gt" / "coffee.jpg"
    whole.write_bytes(whole.read_bytes() + b"a camera's own" * 1000)
    parse(options)
    cut_short(folders / "lq" / "coffee.jpg")
    refuses(parse, options, rf"dataroot_lq: {folders}/lq/coffee\.jpg is cut short")


@pytest.mark.parametrize("content", [b"", b"notes", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(options: Options, folders: Path, parse: Parse, content: bytes) -> None:
    (folders / "lq" / "notes.txt").write_bytes(content)
    refuses(parse, options, rf"dataroot_lq: {folders}/lq/notes\.txt is no image that can be read; take it out")


def test_hidden_files_and_folders_are_no_images(options: Options, folders: Path, parse: Parse) -> None:
    (folders / "lq" / ".DS_Store").write_bytes(b"x")
    (folders / "lq" / "more").mkdir()
    parse(options)


def test_an_empty_folder_is_named(options: Options, folders: Path, parse: Parse) -> None:
    for path in (folders / "gt").iterdir():
        path.unlink()
    refuses(parse, options, rf"dataroot_gt: {folders}/gt has no images")


def test_a_file_in_a_folders_place_is_named(options: Options, folders: Path, parse: Parse) -> None:
    options["datasets"]["train"]["dataroot_gt"] = str(folders / "gt" / "coffee.png")
    refuses(parse, options, r"dataroot_gt: .*coffee\.png is a file; give the folder")


def test_an_image_without_its_partner_is_named(options: Options, folders: Path, parse: Parse) -> None:
    lq = folders / "lq" / "coffee.png"
    lq.rename(folders / "lq" / "coffeex4.png")
    refuses(parse, options, rf"1 of 3 HR images have no LR image: {folders}/lq has no coffee\.png.*filename_tmpl")
    shutil.copy(folders / "lq" / "coffeex4.png", lq)
    refuses(parse, options, rf"3 HR images and 4 LR images: {folders}/lq/coffeex4\.png has no HR image")


@pytest.mark.parametrize("side", [20, 28])
def test_a_pair_of_sizes_that_do_not_fit_is_named(options: Options, folders: Path, parse: Parse, side: int) -> None:
    cv2.imwrite(str(folders / "lq" / "coffee.png"), np.zeros((24, side, 3), np.uint8))
    refuses(parse, options, rf"HR must be 4 times LR .*gt/coffee\.png is 96x96 and .*lq/coffee\.png 24x{side}")


def test_hr_with_what_a_division_leaves_over_is_for_validation_alone(
    options: Options, folders: Path, parse: Parse, tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        cv2.imwrite(str(odd / f"{name}.png"), np.zeros((99, 97, 3), np.uint8))
    options["datasets"]["val"]["dataroot_gt"] = str(odd)
    parse(options)
    options["datasets"]["train"]["dataroot_gt"] = str(odd)
    refuses(parse, options, r"datasets\.train: HR must be 4 times LR")


def test_what_is_converted_is_said_once_for_each_folder(
    options: Options, folders: Path, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    del options["datasets"]["val"], options["val"]
    rgb = Image.open(folders / "gt" / "coffee.png")
    rgb.convert("RGBA").save(folders / "gt" / "coffee.png")
    rgb.convert("RGBA").save(folders / "gt" / "chelsea.png")
    rgb.convert("L").save(folders / "gt" / "astronaut.png")
    lq = cv2.imread(str(folders / "lq" / "coffee.png")).astype(np.uint16) * 257
    cv2.imwrite(str(folders / "lq" / "coffee.png"), lq)
    parse(options)
    lines = sorted(capsys.readouterr().err.splitlines())
    assert len(lines) == 3
    assert re.search(rf"dataroot_gt: 1 of 3 images are grey.*\(the first: {folders}/gt/astronaut\.png\)", lines[0])
    assert re.search(r"dataroot_gt: 2 of 3 images have an alpha channel, which is dropped", lines[1])
    assert re.search(r"dataroot_lq: 1 of 3 images have 16 bits per channel", lines[2])


def test_cmyk_is_said_too(options: Options, folders: Path, parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    path = folders / "gt" / "coffee.png"
    Image.open(path).convert("CMYK").save(folders / "gt" / "coffee.jpg")
    path.unlink()
    Image.open(folders / "lq" / "coffee.png").save(folders / "lq" / "coffee.jpg")
    (folders / "lq" / "coffee.png").unlink()
    del options["datasets"]["val"]
    parse(options)
    assert re.search(r"1 of 3 images are CMYK, and are converted to RGB", capsys.readouterr().err)


def test_a_photograph_that_a_camera_turned_has_the_size_that_is_read(
    options: Options, folders: Path, parse: Parse
) -> None:
    for sub, size in (("gt", (128, 96)), ("lq", (24, 32))):  # width, height; LR stands upright already
        (folders / sub / "coffee.png").unlink()
        exif = Image.Exif()
        exif[0x0112] = 6 if sub == "gt" else 1
        Image.new("RGB", size).save(folders / sub / "coffee.jpg", exif=exif)
    parse(options)


def test_a_list_of_images_is_followed(options: Options, folders: Path, parse: Parse, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("coffee.png (96,96,3)\nchelsea.png (96,96,3)\n")
    options["datasets"]["train"] |= {"meta_info_file": str(listed), "batch_size_per_gpu": 21}
    refuses(parse, options, r"a batch of 21 is larger than the data, 2 images times dataset_enlarge_ratio 10")
    options["datasets"]["train"]["batch_size_per_gpu"] = 2
    cut_short(folders / "gt" / "astronaut.png")
    del options["datasets"]["val"]
    parse(options)  # it is not listed
    listed.write_text("gone.png (96,96,3)\n")
    refuses(parse, options, r"dataroot_gt: .*gone\.png cannot be read: No such file")


def test_an_lmdb_is_checked_by_its_list(options: Options, folders: Path, parse: Parse) -> None:
    del options["datasets"]["val"]
    train_set = options["datasets"]["train"]
    for key, sub, side in (("dataroot_gt", "gt", 96), ("dataroot_lq", "lq", 24)):
        lmdb = folders / f"{sub}.lmdb"
        lmdb.mkdir()
        (lmdb / "data.mdb").write_bytes(b"")
        (lmdb / "meta_info.txt").write_text(f"a.png ({side},{side},3) 1\nb.png ({side},{side},3) 1\n")
        train_set[key] = str(lmdb)
    train_set["io_backend"] = {"type": "lmdb"}
    parse(options)
    meta = folders / "lq.lmdb" / "meta_info.txt"
    meta.write_text("a.png (24,24,3) 1\nb.png (25,24,3) 1\n")
    refuses(parse, options, r"gt\.lmdb, b\.png is 96x96 and .*lq\.lmdb, b\.png 25x24")
    meta.write_text("a.png (24,24,3) 1\n")
    refuses(parse, options, r"1 of 2 HR images have no LR image")
    meta.write_text("")
    refuses(parse, options, r"dataroot_lq: .*meta_info\.txt lists no images")
    meta.write_text("a.png\n")
    refuses(parse, options, r"meta_info\.txt has a line 'a\.png'")
    meta.unlink()
    refuses(parse, options, r"dataroot_lq: .*lq\.lmdb is no LMDB")


def test_ssim_needs_its_window_inside_the_border(options: Options, parse: Parse) -> None:
    options["val"]["metrics"]["ssim"] = {"type": "calculate_ssim", "crop_border": 42}
    parse(options)  # 96 - 2 * 42 = 12 pixels
    options["val"]["metrics"]["ssim"]["crop_border"] = 43
    refuses(parse, options, r"val\.metrics\.ssim\.crop_border is 43, which leaves too little of .*96x96")


def test_many_images_take_little_time(tmp_path: Path) -> None:
    import time

    from pcl_loss.basicsr_plugin.data_checks import _images

    content = cv2.imencode(".png", np.zeros((48, 48, 3), np.uint8))[1].tobytes()
    for i in range(2000):
        (tmp_path / f"{i}.png").write_bytes(content)
    dataset = {"dataroot_gt": str(tmp_path), "io_backend": {"type": "disk"}, "type": "PairedImageDataset"}
    start = time.process_time()
    assert len(_images("datasets.train", dataset, "dataroot_gt")) == 2000
    assert time.process_time() - start < 2


# --- what is downloaded ---

VGG_LOSS = {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1.0}}
DOWNLOADS = {
    "train.perceptual_opt": ("vgg19-dcbb9e9d.pth", lambda opt: opt["train"].update(perceptual_opt=VGG_LOSS)),
    "network_d": ("vgg16-397923af.pth", lambda opt: opt.update(network_d={"type": "VGGEmbedding", "vgg": "vgg16"})),
    "val.metrics.lpips": (
        "alexnet-owt-7be5be79.pth",
        lambda opt: opt["val"]["metrics"].update(lpips={"type": "calculate_lpips", "crop_border": 4}),
    ),
}


@pytest.mark.parametrize("where", DOWNLOADS)
def test_weights_that_cannot_be_downloaded_are_named_before_anything_is_written(
    where: str, options: Options, parse: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    home = tmp_path / "home"
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(home))
    asked = []

    def offline(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    name, change = DOWNLOADS[where]
    options["train"].pop("perceptual_opt", None)
    change(options)
    file = home / "hub/checkpoints" / name
    with pytest.raises(
        OptionsError, match=rf"^{re.escape(where)}: .* could not be downloaded .* at {file}, "
    ) as raised:
        parse(options)
    assert "\n" not in str(raised.value)
    assert not Path("experiments").exists()
    file.write_bytes(b"")
    parse(options)
    assert [url.rpartition("/")[2] for url in asked] == [name]
