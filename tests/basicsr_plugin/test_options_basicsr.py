"""What is wrong with an option file is said in one line that names the block, before anything is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

Options = dict[str, Any]
Parse = Callable[..., Options]
Refused = Callable[..., str]
GONE = object()


def set_at(options: Options, path: str, value: Any) -> None:
    """Set what a dotted path names; `GONE` deletes it."""
    *blocks, key = path.split(".")
    for block in blocks:
        options = options[block]
    if value is GONE:
        del options[key]
    else:
        options[key] = value


BROKEN = [
    ("scale", 0, "should be greater than or equal to 1, got 0"),
    ("scale", 2, "datasets.train, "),
    ("datasets.train.dataroot_gt", GONE, "it has no key 'dataroot_gt'"),
    ("datasets.train.dataroot_gt", "nowhere", "[Errno 2] No such file or directory: 'nowhere'"),
    ("datasets.train.gt_size", 66, "change its factor or channels, scale or gt_size"),
    ("datasets.train.gt_size", 28, "train.pcl_opt: sr is 28x28, but at least 32x32 is needed"),
    ("datasets.train.batch_size_per_gpu", 31, "3 images are no batch"),
    ("datasets.train.mean", [0.5, 0.5, 0.5], "drop them"),
    ("network_g.num_in_ch", 1, "network_g of an LR patch (3, 16, 16)"),
    ("path.pretrain_network_g", "nowhere.pth", "path.pretrain_network_g: "),
    ("path.pretrain_networkg", "x.pth", "write pretrain_network_g, or drop it"),
    ("train.pixel_opt.type", "L1loss", "there is no 'L1loss'; did you mean L1Loss?"),
    ("train.optim_g.lr", "1e-4", "in YAML write 1.0e-4"),
    ("train.scheduler.periods", [2], "train.scheduler: "),
    ("val.save_img", GONE, "is missing"),
    ("val.metrics.psnr.type", "calculate_pnsr", "there is no 'calculate_pnsr'; did you mean calculate_psnr?"),
    ("train.optim_g", {"type": "Adam", "lr": 0.0001, "foreach": True, "fused": True}, "train.optim_g: "),
    ("datasets.val.type", "SingleImageDataset", "val.metrics.psnr: "),
    # ours
    ("model_type", "PCLModle", "there is no 'PCLModle'; did you mean PCLModel?"),
    ("network_d", {"type": "WaveletDiscriminater"}, "did you mean WaveletDiscriminator?"),
    ("network_d", {"num_in_ch": 1}, "num_in_ch is 1, but network_g makes 3; drop it"),
    ("train.amps", "bf16", "unknown key 'train.amps'; did you mean amp?"),
    ("train.pcl_opt", GONE, "`model_type: PCLModel` needs train.pcl_opt, for example"),
    ("train.pcl_opt.data_range", 255.0, "drop data_range"),
    ("train.pcl_opt.temprature", 1.0, "did you mean 'temperature'?"),
    ("train.pcl_opt.temperature", 1e-30, "should be greater than or equal to 0.0001, got 1e-30"),
    ("train.cld_opt", {"type": "GANLoss"}, "type must be ContrastiveDiscriminatorLoss, got 'GANLoss'"),
    ("train.pcl_every", "2", "in YAML write 1.0e-4"),
    ("train.pclopt", {}, "unknown key 'train.pclopt'; did you mean pcl_opt?"),
    ("train.perceptual_opt", {"type": "PCLPerceptualLoss"}, "drop one of the two"),
    ("train.pixel_opt", {"type": "PCLLoss"}, "{'type': 'PCLLoss'} belongs into train.pcl_opt"),
    ("train.compile", {"mode": "fastest"}, "train.compile: "),
    ("train.recipe", "light", "is read by nobody; recipe belongs into train.pcl_opt"),
]


@pytest.mark.parametrize(("key", "value", "words"), BROKEN)
def test_a_broken_option_names_its_block_and_what_is_wrong(
    with_pcl: Options, refused: Refused, key: str, value: Any, words: str
) -> None:
    with_pcl["network_d"] = {"num_feat": 4}
    set_at(with_pcl, key, value)
    assert words in refused(with_pcl)


TESTING = [
    ("val", GONE, "val is missing"),
    ("network_g.type", "EDSRR", "did you mean EDSR"),
    ("datasets.test_1.dataroot_gt", "nowhere", "datasets.test_1: "),
]


@pytest.mark.parametrize(("key", "value", "words"), TESTING)
def test_the_verb_test_checks_its_file_too(
    baseline: Options, parse: Parse, refused: Refused, key: str, value: Any, words: str
) -> None:
    del baseline["train"], baseline["logger"]
    baseline["datasets"] = {"test_1": baseline["datasets"]["val"]}
    parse(baseline, is_train=False)
    set_at(baseline, key, value)
    assert words in refused(baseline, is_train=False)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("modeltype", "modeltype; did you mean model_type"),
        ("train.pixelopt", "train.pixelopt; did you mean pixel_opt"),
        ("datasets.train.gtsize", "datasets.train.gtsize; did you mean gt_size"),
        ("network_x", ""),
    ],
)
def test_a_slip_of_a_key_of_basicsrs_own_is_said_and_the_run_begins(
    key: str, said: str, with_pcl: Options, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    set_at(with_pcl, key, None)
    parse(with_pcl)
    assert capsys.readouterr().err == (f"[pcl_loss] nobody reads {said}?\n" if said else "")


def test_whole_floats_are_integers(small: Options, parse: Parse) -> None:
    small["logger"]["save_checkpoint_freq"] = 5e3
    found = parse(small)["logger"]["save_checkpoint_freq"]
    assert (found, type(found)) == (5000, int)


def test_a_class_of_another_codebase_may_take_what_basicsrs_own_does_not(
    baseline: Options, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TheirDataset(PairedImageDataset):
        def __init__(self, opt: Options) -> None:
            super().__init__(opt | {"use_hflip": opt["use_flip"], "use_rot": False})

    class TheirModel(SRModel):
        pass

    class TheirNetwork(EDSR):
        def forward(self, x: torch.Tensor) -> Any:
            raise RuntimeError("a GPU, and patches of 64x64")

    theirs = ((DATASET_REGISTRY, TheirDataset), (MODEL_REGISTRY, TheirModel), (ARCH_REGISTRY, TheirNetwork))
    for registry, entry in theirs:
        monkeypatch.setitem(registry._obj_map, entry.__name__, entry)
    train_set = baseline["datasets"]["train"]
    baseline["model_type"], train_set["type"], train_set["use_flip"] = "TheirModel", "TheirDataset", 0.5
    baseline["network_g"]["type"] = "TheirNetwork"
    del train_set["use_hflip"], train_set["use_rot"]
    baseline["train"] |= {"ema_decay": "0.999", "amp": "O1", "cld_opt": 1}
    baseline["path"] |= {"pretrain_model_x": None, "param_key_x": None}
    baseline["val"]["metrics"] = {"theirs": {"type": "calculate_psnr", "border": "no"}}
    parse(baseline)
