"""A tiny BasicSR experiment on free photographs, and ways to run it."""

import copy
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from skimage import data
from torch.nn import functional as F

Options = dict[str, Any]
Build = Callable[..., Any]
Batches = list[dict[str, torch.Tensor]]

LOG_KEYS = {"l_pix", "l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio", "l_d", "out_d_real", "out_d_fake"}


def train_on(net: Any, batches: Batches, first_iter: int = 1) -> list[dict[str, float]]:
    logs = []
    for iteration, batch in enumerate(batches, first_iter):
        net.update_learning_rate(iteration)
        net.feed_data(batch)
        net.optimize_parameters(iteration)
        logs.append(dict(net.get_current_log()))
    return logs


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def assert_equal_weights(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def all_files(folder: Path, iteration: int) -> dict[str, Any]:
    """The checkpoints of an iteration, flat, by name."""
    flat: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                walk(f"{name}.{key}", entry)
        elif isinstance(value, list | tuple):
            for key, entry in enumerate(value):
                walk(f"{name}.{key}", entry)
        else:
            flat[name] = value if isinstance(value, torch.Tensor) else torch.tensor(hash(value))

    for path in [*folder.rglob(f"*_{iteration}.pth"), *folder.rglob(f"{iteration}.state")]:
        walk(path.name, torch.load(path, weights_only=True))
    return flat


def with_options(options: Options, train: Options) -> Options:
    """Options with more keys under `train:`."""
    options["train"] |= copy.deepcopy(train)
    if "pcl_grad_ratio" in train:
        options["train"]["pcl_opt"].pop("loss_weight", None)
    return options


def strong(options: Options) -> Options:
    options["train"]["pcl_opt"]["loss_weight"] = 300.0
    return options


def cosine(ours: torch.nn.Module, expected: torch.nn.Module) -> float:
    """Between the gradients of two networks."""
    grads = [torch.cat([param.grad.flatten() for param in net.parameters()]) for net in (ours, expected)]
    return F.cosine_similarity(*grads, dim=0).item()


class TinyPerceptualLoss(torch.nn.Module):
    """As BasicSR's PerceptualLoss: two losses of the same features, None if its weight is 0."""

    def __init__(self, perceptual_weight: float = 1.0, style_weight: float = 0.0, **_keywords: Any) -> None:
        super().__init__()
        self.weights = perceptual_weight, style_weight

    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> list[torch.Tensor | None]:
        features = [F.avg_pool2d(images, 3).square().flatten(2) for images in (x, gt)]
        losses = F.l1_loss(*features), F.mse_loss(*(maps @ maps.mT for maps in features))
        return [weight * loss if weight else None for weight, loss in zip(self.weights, losses, strict=True)]


@pytest.fixture
def vgg_stand_in(monkeypatch: pytest.MonkeyPatch) -> type[TinyPerceptualLoss]:
    """It is what BasicSR builds as its PerceptualLoss, which needs VGG's weights."""
    from basicsr.utils.registry import LOSS_REGISTRY

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "PerceptualLoss", TinyPerceptualLoss)
    return TinyPerceptualLoss


@pytest.fixture(scope="session")
def registered() -> None:
    """BasicSR, imported here so that tests of the core do without, knows us."""
    if find_spec("basicsr") is None:
        pytest.skip("BasicSR is not installed")
    from pcl_loss import basicsr_plugin

    basicsr_plugin.register()


@pytest.fixture(scope="session")
def paired_data(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `gt/*.png` of 96x96 and `lq/*.png` of 24x24."""
    import cv2
    from basicsr.utils.matlab_functions import imresize

    folder = tmp_path_factory.mktemp("pairs")
    (folder / "gt").mkdir()
    (folder / "lq").mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        gt = np.ascontiguousarray(getattr(data, name)()[100:196, 100:196, ::-1])
        lq = (imresize(gt / 255.0, 1 / 4).clip(0, 1) * 255).round().astype(np.uint8)
        cv2.imwrite(str(folder / "gt" / f"{name}.png"), gt)
        cv2.imwrite(str(folder / "lq" / f"{name}.png"), lq)
    return folder


@pytest.fixture
def baseline(paired_data: Path) -> Options:
    """The options of an L1 baseline, as its YAML would have them."""
    folders = {"dataroot_gt": str(paired_data / "gt"), "dataroot_lq": str(paired_data / "lq")}
    dataset = {"type": "PairedImageDataset", "io_backend": {"type": "disk"}} | folders
    train_set = dataset | {"name": "pairs", "gt_size": 64, "use_hflip": True, "use_rot": True}
    train_set |= {"num_worker_per_gpu": 0, "batch_size_per_gpu": 2, "dataset_enlarge_ratio": 10}
    scheduler = {"type": "CosineAnnealingRestartLR", "periods": [100], "restart_weights": [1], "eta_min": 1e-7}
    psnr = {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True}
    return {
        "name": "tiny",
        "model_type": "SRModel",
        "scale": 4,
        "num_gpu": 0,
        "manual_seed": 3,
        "datasets": {"train": train_set, "val": dataset | {"name": "held_out"}},
        "network_g": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4},
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.9,
            "optim_g": {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]},
            "scheduler": scheduler,
            "total_iter": 4,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {"val_freq": 2, "save_img": False, "metrics": {"psnr": psnr}},
        "logger": {"print_freq": 1, "save_checkpoint_freq": 2, "use_tb_logger": True},
    }


@pytest.fixture
def with_pcl(baseline: Options) -> Options:
    """The baseline with the two changes of the README."""
    options = copy.deepcopy(baseline)
    options["model_type"] = "PCLModel"
    options["train"]["pcl_opt"] = {"type": "PCLLoss", "loss_weight": 1.0}
    return options


@pytest.fixture
def small(with_pcl: Options) -> Options:
    """`with_pcl` with a tiny E_D."""
    return with_pcl | {"network_d": {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 4}}


@pytest.fixture
def light(with_pcl: Options) -> Options:
    """`with_pcl` with the light recipe: no E_D."""
    with_pcl["train"]["pcl_opt"] = {"type": "PCLLoss", "recipe": "light"}
    return with_pcl


@pytest.fixture
def build(registered: None, tmp_path: Path) -> Build:
    """Builds a training model from options, without a train loop."""
    from basicsr import models
    from basicsr.utils import set_random_seed

    def build(options: Options, build_model: Any = models.build_model) -> Any:
        options = copy.deepcopy(options)
        options |= {"is_train": True, "dist": False, "rank": 0, "world_size": 1}
        for key in ("models", "training_states"):
            (tmp_path / key).mkdir(exist_ok=True)
            options["path"][key] = str(tmp_path / key)
        set_random_seed(options["manual_seed"])
        return build_model(options)

    return build


@pytest.fixture
def build_in_run(build: Build) -> Build:
    """As `build`, in a run of `pcl-loss train`."""
    import basicsr.train

    from pcl_loss.basicsr_plugin import repairs

    def build_in_run(options: Options) -> Any:
        with repairs.whole_run(basicsr.train):
            return build(options, basicsr.train.build_model)

    return build_in_run


@pytest.fixture
def batches() -> Batches:
    """Six batches of two training pairs, the LR made by averaging."""
    crops = [np.ascontiguousarray(data.astronaut()[y : y + 64, 100:228]) for y in range(0, 384, 64)]
    gts = [torch.from_numpy(crop).permute(2, 0, 1).float().div(255).unfold(2, 64, 64).movedim(2, 0) for crop in crops]
    return [{"gt": gt.contiguous(), "lq": F.avg_pool2d(gt, 4)} for gt in gts]


@pytest.fixture
def run_pipeline(registered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `pcl_loss.train` or `pcl_loss.test` in `tmp_path` on options; returns the log file's text."""
    from basicsr.utils import logger

    monkeypatch.chdir(tmp_path)

    def run(options: Options, *flags: str, verb: str = "train") -> str:
        from pcl_loss import test, train

        # BasicSR opens one log file per process.
        logger.initialized_logger.clear()
        logging.getLogger("basicsr").handlers.clear()
        yml = tmp_path / f"{options['name']}.yml"
        yml.write_text(yaml.safe_dump(options))
        monkeypatch.setattr(sys, "argv", [verb, "-opt", str(yml), *flags])
        {"train": train, "test": test}[verb].main()
        folder = tmp_path / ("experiments" if verb == "train" else "results") / options["name"]
        return max(folder.glob("*.log"), key=lambda log: log.stat().st_mtime_ns).read_text()

    return run
