"""What a YAML names on the disk, looked at before the first step: folders, weights, and every image's first and last
bytes.
"""

from __future__ import annotations

import copy
import functools
import os
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from .._datasets import DATASETS, expected_layout
from .._files import UnreadableFileError, load
from ..embedding import imagenet_weights
from .data_order import kept_rng_state
from .lpips_metric import fetch_backbone
from .yaml_blocks import attempt
from .yaml_values import Options, OptionsError, warn

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# OpenCV reads these, and Pillow does not.
UNCHECKED = (".exr", ".hdr", ".pfm", ".pic")
# Of a metric, in pixels.
SMALLEST = {"calculate_ssim": 11, "calculate_niqe": 96}

ALPHA = "have an alpha channel, which is dropped"
SIXTEEN_BITS = "have 16 bits per channel, of which 8 are kept"
GREY = "are grey, and become RGB with three equal channels"
CMYK = "are CMYK, and are converted to RGB"


class ImageFile(NamedTuple):
    """What the header of an image says."""

    path: str
    height: int
    width: int
    oddities: tuple[str, ...] = ()


def check_files(opt: Options) -> None:
    """Refuse data folders, weights and GPUs that are not there, before BasicSR writes anything.

    Args:
        opt: BasicSR's options.

    Raises:
        OptionsError: one is missing; for a data set that our option files name, the message says where it is published
            and which folders are expected.
    """
    for phase, dataset in opt.get("datasets", {}).items():
        for key in ("dataroot_gt", "dataroot_lq", "meta_info_file", "meta_info"):
            for path in _paths(dataset.get(key)):
                name = str(dataset.get("name"))
                hint = f" {expected_layout(name)}." if name in DATASETS and key.startswith("dataroot") else ""
                _check_exists(f"datasets.{phase}.{key}", path, f"change the path, or put the data there.{hint}")
    for key, path in opt.get("path", {}).items():
        is_read = key.startswith("pretrain_network") or (key == "resume_state" and not opt.get("auto_resume"))
        if is_read and path is not None:
            _check_exists(f"path.{key}", path, "change the path, or set it to ~")
    for name, network in opt.items():
        for key, path in network.items() if name.startswith("network_") and network else ():
            if key.endswith("_path") and isinstance(path, str):
                _check_exists(f"{name}.{key}", path, "change the path, or set it to ~")
    for phase, dataset in opt.get("datasets", {}).items():
        if dataset.get("prefetch_mode") == "cuda" and not torch.cuda.is_available():
            raise OptionsError(f"datasets.{phase}.prefetch_mode: cuda needs a GPU, and torch sees none; set cpu, or ~")
    num_gpu = opt.get("num_gpu", 0)
    if num_gpu != "auto" and num_gpu > torch.cuda.device_count():
        raise OptionsError(
            f"num_gpu: {num_gpu}, but torch sees {torch.cuda.device_count()} GPUs; set num_gpu: auto, or 0 for the CPU"
        )


def _check_exists(where: str, path: str, fix: str) -> None:
    if not os.path.exists(path):
        raise OptionsError(f"{where}: there is no {path} (seen from {os.getcwd()}); {fix}")


def _paths(value: str | Sequence[str] | None) -> Sequence[str]:
    """Those that a key names: none, one, or, where a data set reads several folders, a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def check_data(opt: Options) -> None:
    """Look at the images of every paired data set, and of every one without ground truth: by their first and last
    bytes alone, and on the first process alone. What is converted while it is read is said once for each folder.

    Args:
        opt: BasicSR's options, whose files `check_files` has found.

    Raises:
        OptionsError: a file is no image or is cut short, a folder is empty, LR and HR differ in names or sizes, an
            image is smaller than what is cut from it, or a batch larger than the data.
    """
    if get_dist_info()[0] != 0:
        return
    for phase, dataset in opt["datasets"].items():
        where = f"datasets.{phase}"
        if dataset["type"] == "PairedImageDataset":
            gt = _images(where, dataset, "dataroot_gt")
            lq = _images(where, dataset, "dataroot_lq")
            pairs = _pair(where, dataset, gt, lq)
            for gt_image, lq_image in pairs:
                _check_size(where, opt, phase, gt_image, lq_image)
            if phase == "train":
                _check_batch(opt, dataset, len(pairs))
        elif dataset["type"] == "SingleImageDataset":
            _images(where, dataset, "dataroot_lq")
            compares = [metric["type"] for metric in _metrics(opt).values() if metric["type"] != "calculate_niqe"]
            if phase == "train" or compares:
                needs = "a training" if phase == "train" else compares[0]
                raise OptionsError(
                    f"{where}: a SingleImageDataset has no HR, which {needs} needs; take PairedImageDataset"
                )
        elif phase == "train":
            with kept_rng_state():
                attempt(where, functools.partial(DATASET_REGISTRY.get(dataset["type"]), copy.deepcopy(dataset)))


def check_weights(opt: Options, networks: Options) -> None:
    """Refuse weights that BasicSR could not load into its networks.

    Args:
        opt: BasicSR's options, whose files `check_files` has found.
        networks: those of `check_blocks`.

    Raises:
        OptionsError: a file of `path.pretrain_network_*` cannot be read, or does not fit.
    """
    for key, path in opt["path"].items():
        where, label = f"path.{key}", key.removeprefix("pretrain_network_")
        if label == key or path is None:
            continue
        try:
            saved = load(path)
        except (OSError, UnreadableFileError) as error:
            raise OptionsError(f"{where}: {error}") from error
        name = opt["path"].get(f"param_key_{label}", "params")
        if name is not None:
            saved = saved.get(name, saved.get("params")) if isinstance(saved, dict) else None
        if not isinstance(saved, dict):
            raise OptionsError(f"{where}: {path} has no {name}; set path.param_key_{label} to ~, or to what it has")
        network = networks.get(f"network_{label}")
        if network is None or not opt["path"].get(f"strict_load_{label}", True):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a network without storage stays so
                network.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise OptionsError(f"{where}: {path} does not fit network_{label}: {text[:300]}") from error


def fetch_weights(opt: Options) -> None:
    """Download, on the first process, what the run's losses and metrics would ask for once it is under way.

    Args:
        opt: BasicSR's options, whose blocks `check_blocks` has seen.

    Raises:
        OptionsError: it is not there and cannot be downloaded; the message says where to put it by hand.
    """
    if get_dist_info()[0] != 0:
        return
    train, net_d = opt.get("train") or {}, opt.get("network_d") or {}
    wanted: dict[str, Callable[[], object]] = {
        f"val.metrics.{name}": functools.partial(fetch_backbone, metric.get("net", "alex"))
        for name, metric in _metrics(opt).items()
        if metric["type"] == "calculate_lpips"
    }
    if (train.get("perceptual_opt") or {}).get("type") == "PerceptualLoss" and not os.path.exists(VGG_PRETRAIN_PATH):
        vgg = train["perceptual_opt"].get("vgg_type", "vgg19")
        wanted["train.perceptual_opt"] = functools.partial(imagenet_weights, vgg)
    if train and net_d.get("type") == "VGGEmbedding" and net_d.get("weights", "imagenet") == "imagenet":
        wanted["network_d"] = functools.partial(imagenet_weights, net_d.get("vgg", "vgg19"))
    for where, fetch in wanted.items():
        try:
            fetch()
        except (ImportError, FileNotFoundError) as error:
            raise OptionsError(f"{where}: {error}") from error


def _images(where: str, dataset: Options, key: str) -> dict[str, ImageFile]:
    """The images of a folder or LMDB by name."""
    folder, listed = dataset[key], dataset.get("meta_info_file")
    names = [line.split(" ")[0] for line in _lines(f"{where}.meta_info_file", listed)] if listed else []
    where = f"{where}.{key}"
    if dataset["io_backend"]["type"] == "lmdb":
        return _images_of_lmdb(where, folder)
    if not os.path.isdir(folder):
        raise OptionsError(f"{where}: {folder} is a file; give the folder that has the images")
    if listed:
        if key == "dataroot_lq" and dataset["type"] == "PairedImageDataset":
            names = [_name_of_lq(dataset, name) for name in names]
    else:
        # As BasicSR lists a folder.
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    if not names:
        raise OptionsError(f"{where}: {listed or folder} has no images; change the path, or put them there")
    progress = tqdm(names, desc=f"looking at {where}", unit="image", delay=1, leave=False)
    images = {name: _look(where, os.path.join(folder, name)) for name in progress}
    _say_oddities(where, images.values())
    return images


def _images_of_lmdb(where: str, folder: str) -> dict[str, ImageFile]:
    meta = Path(folder, "meta_info.txt")
    if not folder.endswith(".lmdb") or not meta.is_file() or not Path(folder, "data.mdb").is_file():
        raise OptionsError(
            f"{where}: {folder} is no LMDB, a folder NAME.lmdb with data.mdb and meta_info.txt; `pcl-loss prepare "
            "--lmdb` makes one, or set io_backend.type: disk"
        )
    images = {}
    for line in _lines(where, meta):
        try:
            name, shape, *_ = line.split(" ")
            height, width, *_ = (int(number) for number in shape.strip("()").split(","))
        except ValueError as error:
            raise OptionsError(f"{where}: {meta} has a line {line!r}, not `NAME.png (H,W,C) 1`") from error
        images[name] = ImageFile(f"{folder}, {name}", height, width)
    if not images:
        raise OptionsError(f"{where}: {meta} lists no images")
    return images


def _look(where: str, path: str) -> ImageFile:
    try:
        with open(path, "rb") as file:
            head = file.read(32)
            file.seek(max(os.fstat(file.fileno()).st_size - 64, 0))
            tail = file.read()
    except OSError as error:
        raise OptionsError(
            f"{where}: {path} cannot be read: {error.strerror}; put it there, or list it no more"
        ) from error
    if head.startswith(PNG_START) and head[12:16] == b"IHDR" and len(head) >= 26:
        width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
        oddities = [SIXTEEN_BITS] * (depth == 16) + [ALPHA] * (colour in (4, 6)) + [GREY] * (colour in (0, 4))
        found, end = ImageFile(path, height, width, tuple(oddities)), PNG_END
    else:
        found, end = _look_with_pillow(where, path), JPEG_END if head.startswith(JPEG_START) else b""
    if end not in tail and _is_cut_short(path):  # some cameras write more behind the end
        raise OptionsError(f"{where}: {path} is cut short; copy it again, or take it out")
    return found


def _look_with_pillow(where: str, path: str) -> ImageFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                mode = image.mode
                if image.format == "JPEG" and image.getexif().get(0x0112, 1) >= 5:  # OpenCV turns it upright
                    width, height = height, width
    except Image.DecompressionBombError as error:
        raise OptionsError(
            f"{where}: {path} is too large: {error}; cut it into sub-images with `pcl-loss prepare`"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if path.lower().endswith(UNCHECKED):
            return ImageFile(path, 0, 0)
        raise OptionsError(f"{where}: {path} is no image that can be read; take it out of the folder") from error
    oddities = [SIXTEEN_BITS] * (";16" in mode) + [ALPHA] * (mode in ("LA", "RGBA", "PA")) + [CMYK] * (mode == "CMYK")
    return ImageFile(path, height, width, (*oddities, *[GREY] * (mode in ("1", "L", "LA") or ";16" in mode)))


def _is_cut_short(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Image.DecompressionBombError:
        return False
    except (OSError, SyntaxError, ValueError):
        return True
    return False


def _say_oddities(where: str, images: Iterable[ImageFile]) -> None:
    images = list(images)
    for oddity, count in Counter(oddity for image in images for oddity in image.oddities).items():
        first = next(image.path for image in images if oddity in image.oddities)
        warn(f"{where}: {count} of {len(images)} images {oddity} (the first: {first})")


def _name_of_lq(dataset: Options, name: str) -> str:
    stem, suffix = os.path.splitext(os.path.basename(name))
    return f"{dataset.get('filename_tmpl', '{}').format(stem)}{suffix}"


def _pair(
    where: str, dataset: Options, gt: dict[str, ImageFile], lq: dict[str, ImageFile]
) -> list[tuple[ImageFile, ImageFile]]:
    is_lmdb = dataset["io_backend"]["type"] == "lmdb"
    names = {name: name if is_lmdb else _name_of_lq(dataset, name) for name in gt}
    missing = [name for name in names.values() if name not in lq]
    if missing:
        raise OptionsError(
            f"{where}: {len(missing)} of {len(gt)} HR images have no LR image: {dataset['dataroot_lq']} has no "
            f"{missing[0]}; put it there, or set {where}.filename_tmpl, as in '{{}}x4', to how LR is called"
        )
    if len(lq) > len(gt):
        extra = next(iter(sorted(lq.keys() - set(names.values()))))
        raise OptionsError(
            f"{where}: {len(gt)} HR images and {len(lq)} LR images: {dataset['dataroot_lq']}/{extra} has no HR image; "
            "take it out, or put its HR image there"
        )
    return [(image, lq[names[name]]) for name, image in gt.items()]


def _check_size(where: str, opt: Options, phase: str, gt: ImageFile, lq: ImageFile) -> None:
    if not gt.height or not lq.height:  # not looked at
        return
    dataset, scale = opt["datasets"][phase], opt["scale"]
    height, width = lq.height * scale, lq.width * scale
    # BasicSR cuts what a division left over off HR, but not in training.
    left_over = (gt.height - height, gt.width - width)
    if not all(0 <= pixels < (1 if phase == "train" else scale) for pixels in left_over):
        raise OptionsError(
            f"{where}: HR must be {scale} times LR (scale: {scale}), but {gt.path} is {gt.height}x{gt.width} and "
            f"{lq.path} {lq.height}x{lq.width}; give the LR images of this scale"
        )
    if phase == "train" and min(height, width) < dataset["gt_size"]:
        raise OptionsError(
            f"{where}.gt_size is {dataset['gt_size']}, but {gt.path} is {height}x{width}; lower gt_size, or take the "
            "image out"
        )
    for name, metric in _metrics(opt).items() if phase != "train" else ():
        if min(height, width) - 2 * metric.get("crop_border", 0) < SMALLEST.get(metric["type"], 1):
            raise OptionsError(
                f"val.metrics.{name}.crop_border is {metric['crop_border']}, which leaves too little of {gt.path}, "
                f"{height}x{width}, for {metric['type']}; lower it, usually to scale, {scale}, or take the image out"
            )


def _metrics(opt: Options) -> Options:
    return (opt.get("val") or {}).get("metrics") or {}


def _lines(where: str, path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"{where}: {path} cannot be read: {error}; give a file of names") from error


def _check_batch(opt: Options, dataset: Options, num_images: int) -> None:
    ratio, batch = dataset.get("dataset_enlarge_ratio", 1), dataset["batch_size_per_gpu"]
    num_ranks = get_dist_info()[1]
    if not opt.get("dist"):
        batch *= max(opt["num_gpu"], 1)
    of_rank = -(-num_images * ratio // num_ranks)
    if of_rank < batch:
        raise OptionsError(
            f"datasets.train.batch_size_per_gpu: a batch of {batch} is larger than the data, {num_images} images times "
            f"dataset_enlarge_ratio {ratio}, over {num_ranks} processes; raise dataset_enlarge_ratio, or lower "
            "the batch"
        )
