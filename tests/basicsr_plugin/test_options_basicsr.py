"""What is wrong with an option file is said in one line that names the block, before anything is written."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

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
    ("name", "a/b", "name String should match pattern"),
    ("model_type", GONE, "is missing"),
    ("scale", GONE, "datasets.train: it has no key 'scale'"),
    ("scale", 0, "should be greater than or equal to 1, got 0"),
    ("scale", 2, "datasets.train, "),
    ("num_gpu", "all", "should be 'auto', or should be a valid integer, got 'all'"),
    ("num_gpu", 512, "is 512, but torch sees no GPU; set num_gpu: 0 for the CPU"),
    ("manual_seed", 1099511627776, "should be less than 2147483648, got 1099511627776"),
    ("datasets.train", GONE, "is missing"),
    ("datasets.trian", {}, "name is missing"),
    ("datasets.train.type", "PairedImageDatset", "did you mean PairedImageDataset?"),
    ("datasets.train.dataroot_gt", GONE, "it has no key 'dataroot_gt'"),
    ("datasets.train.dataroot_gt", 5, "should be a valid string, got 5"),
    ("datasets.train.dataroot_gt", "nowhere", "[Errno 2] No such file or directory: 'nowhere'"),
    ("datasets.val.dataroot_gt", "nowhere", "[Errno 2] No such file or directory: 'nowhere'"),
    ("datasets.train.filename_tmpl", "x4", "datasets.train: "),
    ("datasets.train.filename_tmpl", "{}x9", "coffeex9.png"),
    ("datasets.train.io_backend.type", "lmdb", "datasets.train: "),
    ("datasets.train.gt_size", 0, "should be greater than or equal to 1, got 0"),
    ("datasets.train.gt_size", 66, "change its factor or channels, scale or gt_size"),
    ("datasets.train.gt_size", 28, "train.pcl_opt: sr is 28x28, but at least 32x32 is needed"),
    ("datasets.train.gt_size", 128, "datasets.train: "),
    ("datasets.train.batch_size_per_gpu", 0, "should be greater than or equal to 1, got 0"),
    ("datasets.train.batch_size_per_gpu", 31, "3 images are no batch"),
    ("datasets.train.num_worker_per_gpu", -1, "should be greater than or equal to 0, got -1"),
    ("datasets.train.prefetch_mode", "cuda", "prefetch_mode: cuda needs a GPU and pin_memory: true"),
    ("datasets.train.persistent_workers", True, "datasets.train: "),
    ("datasets.train.color", "ycbcr", "should be 'y' or 'rgb', got 'ycbcr'"),
    ("datasets.train.color", "y", "change its factor or channels, scale or gt_size"),
    ("datasets.train.mean", [0.5, 0.5, 0.5], "drop them"),
    ("network_g.type", "ESDR", "there is no 'ESDR'; did you mean E"),
    ("network_g.num_feats", 4, "network_g: "),
    ("network_g.num_feat", "64", "in YAML write 1.0e-4"),
    ("network_g.num_in_ch", 1, "network_g of an LR patch (3, 16, 16)"),
    ("network_g.num_out_ch", 1, "change its factor or channels, scale or gt_size"),
    ("network_g.upscale", 5, "network_g: scale 5 is not supported"),
    ("path", GONE, "is missing"),
    ("path.pretrain_network_g", "nowhere.pth", "path.pretrain_network_g: "),
    ("path.pretrain_networkg", "x.pth", "write pretrain_network_g, or drop it"),
    ("path.resume_state", "nowhere.state", "there is no nowhere.state; change it, or set ~"),
    ("path.resume_stat", None, "write resume_state, or drop it"),
    ("train.total_iter", 0, "should be greater than or equal to 1, got 0"),
    ("train.ema_decay", 2, "should be less than 1, got 2"),
    ("train.pixel_opt", None, "and train.perceptual_opt are both missing"),
    ("train.pixel_opt.type", "L1loss", "there is no 'L1loss'; did you mean L1Loss?"),
    ("train.pixel_opt.loss_weight", "1.0", "in YAML write 1.0e-4"),
    ("train.pixel_opt.lossweight", 1.0, "train.pixel_opt: "),
    ("train.pixel_opt.reduction", "none", "should be 'mean' or 'sum', got 'none'"),
    ("train.perceptual_opt", {"type": "PerceptualLoss"}, "layer_weights"),
    ("train.perceptual_opt", {"type": "PerceptualLoss", "layer_weights": {"conv9_9": 1.0}}, "'conv9_9'"),
    ("train.optim_g.type", "adam", "train.optim_g: "),
    ("train.optim_g.lr", "1e-4", "in YAML write 1.0e-4"),
    ("train.scheduler.type", "CosineRestart", "train.scheduler: "),
    ("train.scheduler.periods", [2], "train.scheduler, at train.total_iter: "),
    ("train.scheduler.periods", [50, 50], "train.scheduler: "),
    ("train.scheduler.eta_min", "1e-7", "in YAML write 1.0e-4"),
    ("val.save_img", GONE, "is missing"),
    ("val.metrics.psnr.type", "calculate_pnsr", "there is no 'calculate_pnsr'; did you mean calculate_psnr?"),
    ("val.metrics.psnr.crop_border", 200, "it gives no number"),
    ("val.metrics.psnr.crop_border", -4, "should be greater than or equal to 0, got -4"),
    ("val.metrics.psnr.test_y_channel", "y", "should be a valid boolean, got 'y'"),
    ("val.metrics.psnr.input_order", "CHW", "should be 'HWC', got 'CHW'"),
    ("logger.print_freq", GONE, "is missing"),
    ("logger.save_checkpoint_freq", "5e3", "in YAML write 1.0e-4"),
    ("logger.wandb", {"project": 3}, "should be a valid string, got {'project': 3}"),
    ("train.optim_g", {"type": "Adam", "lr": 0.0001, "foreach": True, "fused": True}, "train.optim_g: "),
    ("train.perceptual_opt", {"type": "PerceptualLoss", "layer_weights": {"conv5_4": "1"}}, "layer_weights should be"),
    ("datasets.train.type", "SingleImageDataset", "SingleImageDataset has no HR, which a training needs"),
    ("datasets.val.type", "SingleImageDataset", "val.metrics.psnr: "),
    ("datasets.train.type", "RealESRGANDataset", "it has no key 'meta_info'"),
    ("network_g.img_range", 0, "change its factor or channels, scale or gt_size"),
    ("path.pretrain_network_g", "run.yml", "run.yml is no readable checkpoint"),
    ("path.pretrain_model_g", None, "write pretrain_network_g, or drop it"),
    ("train.optim_g.maximize", True, "should be False, got True"),
    ("train.gan_opt", {"type": "GANLoss", "gan_type": "vanilla"}, "drop it"),
    ("val.metrics.psnr.net", "alexnet", "should be 'alex', 'vgg' or 'squeeze', got 'alexnet'"),
    ("val.metrics.psnr", {"type": "calculate_niqe", "crop_border": 4, "convert_to": "luma"}, "convert_to should be"),
    ("val.metrics.psnr", {"type": "calculate_niqe", "crop_border": 4}, "for images of 96x96"),
    # ours
    ("model_type", "PCLModle", "there is no 'PCLModle'; did you mean PCLModel?"),
    ("network_d", {"type": "WaveletDiscriminater"}, "did you mean WaveletDiscriminator?"),
    ("network_d", {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3}, "train.pcl_opt: embedding must have a method"),
    ("network_d", {"num_feat": 0}, "num_feat should be greater than or equal to 1, got 0"),
    ("network_d", {"num_in_ch": 1}, "num_in_ch is 1, but network_g makes 3; drop it"),
    ("network_d", {"norm": "layer"}, "norm must be one of ['batch', 'group', 'none'], got 'layer'"),
    ("network_d", {"wavelets": True}, "did you mean 'wavelet'?"),
    ("train.amps", "bf16", "unknown key 'train.amps'; did you mean amp?"),
    ("train.optim_d", {"lr": 1e-4}, "type is missing"),
    ("train.optim_d", {"type": "Adam"}, "lr is missing"),
    ("train.pcl_opt", GONE, "`model_type: PCLModel` needs train.pcl_opt, for example"),
    ("train.pcl_opt.type", "PCLoss", "must be PCLLoss, got 'PCLoss'"),
    ("train.pcl_opt.data_range", 255.0, "drop data_range"),
    ("train.pcl_opt.loss_weight", "1e-1", "in YAML write 1.0e-4"),
    ("train.pcl_opt.num_layers", 9, "num_layers must be from 1 to 8, got 9"),
    ("train.pcl_opt.num_layers", 2.5, "should be a valid integer, got 2.5"),
    ("train.pcl_opt.temprature", 1.0, "did you mean 'temperature'?"),
    ("train.pcl_opt.temperature", 1e-30, "should be greater than or equal to 0.0001, got 1e-30"),
    ("train.pcl_opt.positives", "gt", "['gt']"),
    ("train.pcl_opt.negatives", [], "negatives"),
    ("train.pcl_opt.blur_sigma", [0.5, 30.0], "lower blur_sigma or use larger patches"),
    ("train.pcl_opt.sharpness", [3.0, 1.5], "sharpness must satisfy 0.0 <= low <= high, got (3.0, 1.5)"),
    ("train.pcl_opt.num_negatives", 100000, "should be less than or equal to 256, got 100000"),
    ("train.pcl_opt.recipe", "ligth", "recipe must be one of ['paper', 'light'], got 'ligth'"),
    ("train.cld_opt", {"loss_weight": 1.0}, "type is missing"),
    ("train.cld_opt", {"type": "GANLoss"}, "type must be ContrastiveDiscriminatorLoss, got 'GANLoss'"),
    ("train.pcl_start_iter", -1, "should be greater than or equal to 0, got -1"),
    ("train.pcl_every", "2", "in YAML write 1.0e-4"),
    ("train.pclopt", {}, "unknown key 'train.pclopt'; did you mean pcl_opt?"),
    ("train.perceptual_opt", {"type": "PCLPerceptualLoss"}, "drop one of the two"),
    ("train.pcl_grad_ratio", 100000.0, "should be less than or equal to 10000, got 100000.0"),
    ("train.max_bad_steps", 0, "should be greater than or equal to 1, got 0"),
    ("train.pixel_opt", {"type": "PCLLoss"}, "{'type': 'PCLLoss'} belongs into train.pcl_opt"),
    ("train.pixel_opt", {"type": "PCLPerceptualLoss"}, "move it, or take another loss"),
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
    ("val", None, "val must be a block of keys, got None"),
    ("val.save_img", GONE, "val.save_img is missing"),
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


def test_a_file_for_testing_may_keep_the_block_of_its_training(baseline: Options, parse: Parse) -> None:
    baseline["datasets"] = {"test_1": baseline["datasets"]["val"]}
    parse(baseline, is_train=False)


def test_whole_floats_are_integers(small: Options, parse: Parse) -> None:
    text = yaml.safe_dump(small)
    for line, number in (
        ("val_freq: 2", 5e3),
        ("save_checkpoint_freq: 2", 5e3),
        ("total_iter: 4", 20),
        ("gt_size: 64", 32),
    ):
        assert line in text
        text = text.replace(line, f"{line.split(':')[0]}: !!float {number:g}")
    opt = parse(text)
    found = [opt["val"]["val_freq"], opt["logger"]["save_checkpoint_freq"], opt["train"]["total_iter"]]
    found.append(opt["datasets"]["train"]["gt_size"])
    assert found == [5000, 5000, 20, 32]
    assert all(type(value) is int for value in found)


SLIPS = [
    ("modeltype", "PCLModel", "nobody reads modeltype; did you mean model_type?"),
    ("datasets.train.gtsize", 64, "nobody reads datasets.train.gtsize; did you mean gt_size?"),
    ("train.emadecay", 0.9, "nobody reads train.emadecay; did you mean ema_decay?"),
    ("val.valfreq", 1, "nobody reads val.valfreq; did you mean val_freq?"),
    ("logger.use_tb_loger", True, "nobody reads logger.use_tb_loger; did you mean use_tb_logger?"),
]


@pytest.mark.parametrize(("key", "value", "words"), SLIPS)
def test_the_slip_of_a_key_of_basicsr_is_one_warning(
    small: Options, parse: Parse, capsys: pytest.CaptureFixture[str], key: str, value: Any, words: str
) -> None:
    small["train"]["net_d_iters"] = 1  # BasicSR's, of other models
    parse(small)
    assert not capsys.readouterr().err
    set_at(small, key, value)
    parse(small)
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_class_of_another_codebase_may_take_what_basicsrs_own_does_not(
    baseline: Options, parse: Parse, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TheirDataset(PairedImageDataset):
        def __init__(self, opt: Options) -> None:
            super().__init__(opt | {"use_hflip": opt["use_flip"], "use_rot": False})

    class TheirModel(SRModel):
        def their_path(self) -> Any:
            return self.opt["path"]["pretrain_model_x"]

    for registry, entry in ((DATASET_REGISTRY, TheirDataset), (MODEL_REGISTRY, TheirModel)):
        monkeypatch.setitem(registry._obj_map, entry.__name__, entry)
    train_set = baseline["datasets"]["train"]
    baseline["model_type"], train_set["type"], train_set["use_flip"] = "TheirModel", "TheirDataset", 0.5
    del train_set["use_hflip"], train_set["use_rot"]
    baseline["train"] |= {"ema_decay": "0.999", "amp": "O1", "cld_opt": 1}
    baseline["path"] |= {"pretrain_model_x": None, "param_key_x": None}
    baseline["val"]["metrics"] = {"theirs": {"type": "calculate_psnr", "border": "no"}}
    parse(baseline)
    baseline["path"]["pretrain_model_" + "d"] = "EDSR.pth"  # no word of the module that has their model
    assert "which is 'EDSR.pth'; write pretrain_network_d, or drop it" in refused(baseline)
