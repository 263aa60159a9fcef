"""Every shipped option file trains or tests as it is, but for the sizes and the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.utils.matlab_functions import imresize
from skimage import data

from pcl_loss import WaveletDiscriminator
from pcl_loss.basicsr_plugin.lpips_metric import backbone_file
from pcl_loss.tools.options import option_files

Options = dict[str, Any]

SMALL: dict[str, Options] = {
    "EDSR": {"num_feat": 4, "num_block": 1},
    "RCAN": {"num_feat": 16, "num_group": 1, "num_block": 1},
    "HAN": {"num_feat": 16, "num_group": 2, "num_block": 1},
    "SwinIR": {"depths": [1], "embed_dim": 8, "num_heads": [2]},
}
ONE_PER_ROAD = (
    "train/train_EDSR-S_x4_PCL_light.yml",
    "train/train_SwinIR_x4_PCL.yml",
    "train/gan_EDSR-S_x4_light.yml",
    "ablation/config7_frozen_E_D.yml",
    "test/test_HAN_x4.yml",
)


def files(*folders: str) -> list[Any]:
    found = [path for path in option_files() if path.startswith(folders)]
    return [pytest.param(path, marks=[] if path in ONE_PER_ROAD else pytest.mark.slow) for path in found]


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`HR/*.png` of 204x204, a multiple of all scales, and `X2`, `X3`, `X4` beside it, named as DIV2K names them."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("astronaut", "coffee"):
        hr = np.ascontiguousarray(getattr(data, name)()[100:304, 100:304, ::-1])
        for sub in ("HR", "X2", "X3", "X4"):
            scale = 1 if sub == "HR" else int(sub[1])
            image = hr if scale == 1 else (imresize(hr / 255.0, 1 / scale).clip(0, 1) * 255).round().astype(np.uint8)
            (folder / sub).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / sub / f"{name}{'' if scale == 1 else f'x{scale}'}.png"), image)
    return folder


def shrunk(path: str, sets: Path, tmp_path: Path) -> Options:
    """The file's options with a small network, our data, and a run of one iteration."""
    options: Options = yaml.safe_load(option_files()[path])
    scale = options["scale"]
    options["num_gpu"] = 0
    options["network_g"] |= SMALL[options["network_g"]["type"]]
    for dataset in options["datasets"].values():
        dataset |= {"dataroot_gt": str(sets / "HR"), "dataroot_lq": str(sets / f"X{scale}")}
    if "train" not in options:
        return options
    options["datasets"]["train"] |= {"gt_size": 16 * scale, "batch_size_per_gpu": 2}
    options["datasets"]["train"] |= {"num_worker_per_gpu": 0, "dataset_enlarge_ratio": 4}
    options["train"]["total_iter"] = 1
    options["logger"] |= {"print_freq": 1, "save_checkpoint_freq": 1}
    options["val"]["val_freq"] = 1
    if options.get("network_d", {}).get("type") == "VGGEmbedding":
        options["network_d"] |= {"vgg": "vgg11", "weights": None}
    elif "network_d" in options:
        options["network_d"]["num_feat"] = 4
    if options["train"].get("net_d_frozen"):
        options["path"]["pretrain_network_d"] = str(tmp_path / "net_d.pth")
        torch.save({"params": WaveletDiscriminator(num_feat=4).state_dict()}, tmp_path / "net_d.pth")
    if options["path"]["pretrain_network_g"] is not None:
        options["path"]["pretrain_network_g"] = str(tmp_path / "net_g.pth")
        torch.save({"params": build_network(options["network_g"]).state_dict()}, tmp_path / "net_g.pth")
    return options


@pytest.mark.parametrize("path", files("train/", "ablation/"))
def test_every_training_file_trains_saves_and_resumes(
    path: str, sets: Path, tmp_path: Path, run_pipeline: Callable[..., str]
) -> None:
    options = shrunk(path, sets, tmp_path)
    log = run_pipeline(options)
    assert "iter:       1" in log
    assert ("l_pcl: " in log) == ("pcl_opt" in options["train"])
    assert ("l_g_percep: " in log) == ("perceptual_opt" in options["train"])
    assert "# psnr:" in log
    options["train"]["total_iter"] = 2
    log = run_pipeline(options, "--auto_resume")
    assert "Resuming training from epoch: 0, iter: 1." in log
    assert "iter:       2" in log


@pytest.mark.parametrize("path", files("test/"))
def test_every_test_file_tests(path: str, sets: Path, tmp_path: Path, run_pipeline: Callable[..., str]) -> None:
    options = shrunk(path, sets, tmp_path)
    if not backbone_file().is_file():
        del options["val"]["metrics"]["lpips"]
    torch.save({"params": build_network(options["network_g"]).state_dict()}, tmp_path / "net_g.pth")
    options["path"]["pretrain_network_g"] = str(tmp_path / "net_g.pth")
    log = run_pipeline(options, verb="test")
    for dataset in options["datasets"].values():
        assert f"Validation {dataset['name']}" in log
    for metric in options["val"]["metrics"]:
        assert log.count(f"# {metric}:") == 5


# Of the official codes, at these sizes.
@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("test/test_EDSR-S_x2.yml", 1_369_859),
        ("test/test_EDSR-S_x3.yml", 1_554_499),
        ("test/test_EDSR-L_x4.yml", 43_089_923),
        ("test/test_RCAN_x4.yml", 15_592_355),
        ("test/test_HAN_x4.yml", 16_071_745),
    ],
)
def test_a_network_has_its_full_size_and_is_trained_as_it_is_tested(path: str, count: int) -> None:
    options, trained = (yaml.safe_load(option_files()[name]) for name in (path, path.replace("test", "train")))
    assert options["network_g"] == trained["network_g"]
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(options["network_g"]).parameters()) == count
