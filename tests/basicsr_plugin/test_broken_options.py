"""What is wrong with an option file is said in one line that names the key and the fix, before anything is written."""

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils import get_root_logger, logger
from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import DATASET_REGISTRY

from pcl_loss.basicsr_plugin import OptionsError

Options = dict[str, Any]
Parse = Callable[..., Options]
GONE = object()


def set_at(options: Options, path: str, value: Any) -> None:
    *blocks, key = path.split(".")
    for block in blocks:
        options = options[block]
    if value is GONE:
        del options[key]
    else:
        options[key] = value


def refuses(parse: Parse, options: Options | str, message: str, *flags: str, is_train: bool = True) -> None:
    with pytest.raises(OptionsError, match=message) as raised:
        parse(options, *flags, is_train=is_train)
    assert "\n" not in str(raised.value)
    assert [path.name for path in Path().iterdir()] == ["run.yml"]


TEXT_FOR_A_NUMBER = r"YAML reads this as text.*1\.0e-4"

BROKEN: list[tuple[str, Any, str]] = [
    # the file's own keys
    ("name", GONE, r"^name is missing"),
    ("name", 7, r"^name must be text.*got 7"),
    ("name", "", r"^name must be text"),
    ("name", "a/b", r"^name must be text that can name a folder, got 'a/b'"),
    ("name", "..", r"^name must be text that can name a folder"),
    ("model_type", GONE, r"^model_type is missing"),
    ("model_type", "PCLModle", r"^model_type: there is no PCLModle; did you mean PCLModel\?"),
    ("model_type", "OtherModel", r"^model_type: there is no OtherModel; known are .*PCLModel"),
    ("model_type", ["PCLModel"], r"^model_type must be text"),
    ("modeltype", "PCLModel", r"unknown key 'modeltype'; did you mean 'model_type'\?"),
    ("scale", GONE, r"^scale is missing"),
    ("scale", 0, r"^scale must be an integer from 1"),
    ("scale", "4", rf"^scale must be an integer.*got '4'.*{TEXT_FOR_A_NUMBER}"),
    ("scale", 2.5, r"^scale must be an integer.*got 2\.5"),
    ("scale", 2, r"network_g: EDSR makes .* but HR is .* at scale 2"),
    ("num_gpu", GONE, r"^num_gpu is missing"),
    ("num_gpu", "all", r"^num_gpu must be one of auto, or an integer from 0.*got 'all'"),
    ("num_gpu", -1, r"^num_gpu must be"),
    ("num_gpu", 512, r"^num_gpu: 512, but torch sees \d+ GPUs; set num_gpu: auto, or 0"),
    ("manual_seed", -1, r"^manual_seed must be"),
    ("manual_seed", "ten", r"^manual_seed must be"),
    ("manual_seed", 2**40, r"^manual_seed must be"),
    # data sets
    ("datasets", GONE, r"^datasets is missing"),
    ("datasets", [], r"^datasets must be a block of keys"),
    ("datasets.train", GONE, r"^datasets\.train is missing"),
    ("datasets.train", None, r"^datasets\.train must be a block of keys, got None"),
    ("datasets.trian", {}, r"^datasets\.trian: a data set is called train, val.*did you mean 'train'\?"),
    ("datasets.test", {}, r"^datasets\.test: a data set is called train, val"),
    ("datasets.train.type", GONE, r"^datasets\.train\.type is missing"),
    ("datasets.train.type", "PairedImageDatset", r"there is no PairedImageDatset; did you mean PairedImageDataset"),
    ("datasets.train.name", GONE, r"^datasets\.train\.name is missing"),
    ("datasets.train.dataroot_gt", GONE, r"^datasets\.train\.dataroot_gt is missing"),
    ("datasets.train.dataroot_gt", 5, r"^datasets\.train\.dataroot_gt must be text"),
    ("datasets.train.dataroot_gt", "nowhere", r"^datasets\.train\.dataroot_gt: there is no nowhere"),
    ("datasets.train.dataroot_lq", "nowhere", r"^datasets\.train\.dataroot_lq: there is no nowhere"),
    ("datasets.val.dataroot_gt", "nowhere", r"^datasets\.val\.dataroot_gt: there is no nowhere"),
    ("datasets.train.dataroot_gtt", "x", r"did you mean 'dataroot_gt'\?"),
    ("datasets.train.meta_info_file", "nowhere.txt", r"^datasets\.train\.meta_info_file: there is no nowhere\.txt"),
    ("datasets.train.filename_tmpl", "x4", r"filename_tmpl must be a name with \{\} in it.*got 'x4'"),
    ("datasets.train.filename_tmpl", "{}x9", r"HR images have no LR image.*set datasets\.train\.filename_tmpl"),
    ("datasets.train.io_backend", GONE, r"^datasets\.train\.io_backend is missing"),
    ("datasets.train.io_backend", "disk", r"^datasets\.train\.io_backend must be a block"),
    ("datasets.train.io_backend.type", GONE, r"^datasets\.train\.io_backend\.type is missing"),
    ("datasets.train.io_backend.type", "disc", r"io_backend\.type must be one of disk, lmdb"),
    ("datasets.train.io_backend.type", "lmdb", r"dataroot_gt: .* is no LMDB"),
    ("datasets.train.gt_size", GONE, r"^datasets\.train\.gt_size is missing"),
    ("datasets.train.gtsize", 64, r"unknown key 'datasets\.train\.gtsize'; did you mean 'gt_size'\?"),
    ("datasets.train.gt_size", 0, r"gt_size must be an integer of at least 1"),
    ("datasets.train.gt_size", "64", r"gt_size must be an integer.*got '64'"),
    ("datasets.train.gt_size", 66, r"gt_size must be a multiple of scale, 4, got 66; take 64"),
    ("datasets.train.gt_size", 28, r"gt_size must be at least 32 with train\.pcl_opt, got 28"),
    ("datasets.train.gt_size", 128, r"gt_size is 128, but .*\.png is 96x96"),
    ("datasets.train.use_hflip", GONE, r"use_hflip is missing"),
    ("datasets.train.use_hflip", "yes", r"use_hflip must be true or false, got 'yes'"),
    ("datasets.train.use_hfilp", True, r"did you mean 'use_hflip'\?"),
    ("datasets.train.use_rot", 1, r"use_rot must be true or false, got 1"),
    ("datasets.train.batch_size_per_gpu", GONE, r"batch_size_per_gpu is missing"),
    ("datasets.train.batch_size_per_gpu", 0, r"batch_size_per_gpu must be an integer from 1"),
    ("datasets.train.batch_size_per_gpu", 2.5, r"batch_size_per_gpu must be an integer"),
    ("datasets.train.batch_size_per_gpu", 31, r"a batch of 31 is larger than the data, 3 images times .* 10"),
    ("datasets.train.batchsize_per_gpu", 2, r"did you mean 'batch_size_per_gpu'\?"),
    ("datasets.train.num_worker_per_gpu", GONE, r"num_worker_per_gpu is missing"),
    ("datasets.train.num_worker_per_gpu", -1, r"num_worker_per_gpu must be"),
    ("datasets.train.num_workers_per_gpu", 1, r"did you mean 'num_worker_per_gpu'\?"),
    ("datasets.train.dataset_enlarge_ratio", 0, r"dataset_enlarge_ratio must be an integer from 1"),
    ("datasets.train.prefetch_mode", "gpu", r"prefetch_mode must be one of cpu, cuda, or ~"),
    ("datasets.train.prefetch_mode", "cuda", r"prefetch_mode: cuda needs datasets\.train\.pin_memory: true"),
    ("datasets.train.persistent_workers", True, r"persistent_workers: true needs .*num_worker_per_gpu above 0"),
    ("datasets.train.color", "ycbcr", r"color must be one of y, rgb"),
    ("datasets.train.color", "y", r"network_g\.num_in_ch is 3, but the images of datasets\.train have 1 channels"),
    ("datasets.train.mean", [0.5, 0.5, 0.5], r"mean and std go together"),
    ("datasets.train.mean", 0.5, r"mean must be a list of 3"),
    # networks
    ("network_g", GONE, r"^network_g is missing"),
    ("network_g", "EDSR", r"^network_g must be a block of keys, got 'EDSR'"),
    ("network_g.type", GONE, r"^network_g\.type is missing"),
    ("network_g.type", "ESDR", r"^network_g\.type: there is no ESDR; did you mean EDSR\?"),
    ("network_g.num_feats", 4, r"unknown key 'num_feats' in network_g; allowed are.*did you mean 'num_feat'\?"),
    ("network_g.num_feat", "64", rf"network_g\.num_feat must be a number.*{TEXT_FOR_A_NUMBER}"),
    ("network_g.num_feat", -4, r"^network_g\.num_feat must be a number from 0"),
    ("network_g.num_in_ch", GONE, r"network_g\.num_in_ch is missing, which EDSR needs"),
    ("network_g.num_in_ch", 1, r"network_g\.num_in_ch is 1, but the images .* have 3 channels.*color: y"),
    ("network_g.num_out_ch", 1, r"network_g\.num_out_ch is 1, but the images .* have 3 channels"),
    ("network_g.upscale", 2, r"network_g: EDSR makes \(3, 32, 32\) of an LR patch \(3, 16, 16\)"),
    ("network_g.upscale", 5, r"^network_g cannot be built: .*5"),
    (
        "network_d",
        {"type": "WaveletDiscriminater"},
        r"network_d\.type: there is no .*did you mean WaveletDiscriminator",
    ),
    (
        "network_d",
        {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3},
        r"network_d\.type must be a network with a method embed",
    ),
    ("network_d", {"num_feat": 0}, r"network_d: num_feat must be at least 1"),
    ("network_d", {"num_feat": 10**6}, r"network_d\.num_feat must be an integer from 1 to 1024"),
    ("network_d", {"num_in_ch": 1}, r"network_d\.num_in_ch is 1, but the SR images .* 3 channels"),
    ("network_d", {"norm": "layer"}, r"network_d: norm must be one of"),
    ("network_d", {"wavelets": True}, r"unknown key 'wavelets' in network_d.*did you mean 'wavelet'\?"),
    # path
    ("path", GONE, r"^path is missing"),
    ("path", None, r"^path must be a block of keys, got None"),
    ("path.pretrain_network_g", "nowhere.pth", r"^path\.pretrain_network_g: there is no nowhere\.pth"),
    ("path.pretrain_networkg", "x.pth", r"did you mean 'pretrain_network_g'\?"),
    ("path.resume_state", "nowhere.state", r"^path\.resume_state: there is no nowhere\.state"),
    ("path.resume_stat", None, r"did you mean 'resume_state'\?"),
    ("path.strict_load_g", "no way", r"^path\.strict_load_g must be true or false"),
    ("path.param_key_g", 3, r"^path\.param_key_g must be text"),
    # training
    ("train", GONE, r"^train is missing"),
    ("train", None, r"^train must be a block of keys"),
    ("train.total_iter", GONE, r"^train\.total_iter is missing"),
    ("train.total_iter", 0, r"^train\.total_iter must be an integer of at least 1, got 0"),
    ("train.total_iter", "1e3", rf"^train\.total_iter must be.*{TEXT_FOR_A_NUMBER}"),
    ("train.total_iters", 4, r"did you mean 'total_iter'\?"),
    ("train.warmup_iter", -2, r"^train\.warmup_iter must be"),
    ("train.ema_decay", 2, r"^train\.ema_decay must be a number from 0 and below 1, got 2"),
    ("train.ema_decay", "0.999", rf"^train\.ema_decay must be.*{TEXT_FOR_A_NUMBER}"),
    ("train.emadecay", 0.9, r"unknown key 'train\.emadecay'; did you mean 'ema_decay'\?"),
    ("train.amps", "bf16", r"unknown key 'train\.amps'; did you mean 'amp'\?"),
    ("train.pixelopt", {}, r"unknown key 'train\.pixelopt'; did you mean 'pixel_opt'\?"),
    ("train.pixel_opt", None, r"train\.pixel_opt and train\.perceptual_opt are both missing; set one"),
    ("train.pcl_opt.num_positives", 1e30, r"num_positives must be an integer from 0 to 256"),
    ("datasets.val.dataroot_gt", None, r"^datasets\.val\.dataroot_gt must be text, got None"),
    ("train.pixel_opt", "L1Loss", r"^train\.pixel_opt must be a block of keys"),
    ("train.pixel_opt.type", GONE, r"^train\.pixel_opt\.type is missing"),
    ("train.pixel_opt.type", "L1loss", r"there is no L1loss; did you mean L1Loss\?"),
    ("train.pixel_opt.loss_weight", "1.0", rf"loss_weight must be a number.*{TEXT_FOR_A_NUMBER}"),
    ("train.pixel_opt.loss_weight", 1e30, r"loss_weight must be a number from 0 to 1e\+06, got 1e\+30"),
    ("train.pixel_opt.lossweight", 1.0, r"unknown key 'lossweight' in train\.pixel_opt.*did you mean 'loss_weight'"),
    ("train.pixel_opt.reduction", "none", r"train\.pixel_opt\.reduction must be one of mean, sum"),
    ("train.perceptual_opt", {"type": "PerceptualLoss"}, r"train\.perceptual_opt\.layer_weights is missing"),
    (
        "train.perceptual_opt",
        {"type": "PerceptualLoss", "layer_weights": {"conv9_9": 1.0}},
        r"layer_weights: vgg19 has no layer 'conv9_9'",
    ),
    ("train.optim_g", GONE, r"^train\.optim_g is missing"),
    ("train.optim_g.type", GONE, r"^train\.optim_g\.type is missing"),
    ("train.optim_g.type", "adam", r"train\.optim_g\.type: there is no adam; did you mean Adam\?"),
    ("train.optim_g.lr", GONE, r"^train\.optim_g\.lr is missing"),
    ("train.optim_g.lr", "1e-4", rf"^train\.optim_g\.lr must be.*got '1e-4'.*{TEXT_FOR_A_NUMBER}"),
    ("train.optim_g.lr", -1e-4, r"^train\.optim_g\.lr must be a number above 0"),
    ("train.optim_g.lr", 0, r"^train\.optim_g\.lr must be a number above 0"),
    ("train.optim_g.betas", [0.9], r"train\.optim_g\.betas must be a list of 2"),
    ("train.optim_g.betas", [0.9, 1.5], r"train\.optim_g\.betas must be a list of 2"),
    ("train.optim_g.weightdecay", 0, r"unknown key 'weightdecay' in train\.optim_g.*did you mean 'weight_decay'"),
    ("train.optim_g.weight_decay", -1, r"train\.optim_g\.weight_decay must be"),
    ("train.optim_d", {"lr": 1e-4}, r"^train\.optim_d\.type is missing"),
    ("train.optim_d", {"type": "Adm", "lr": 1e-4}, r"train\.optim_d\.type: there is no Adm; did you mean Adam"),
    ("train.optim_d", {"type": "Adam"}, r"train\.optim_d\.lr is missing"),
    ("train.scheduler", GONE, r"^train\.scheduler is missing"),
    ("train.scheduler.type", GONE, r"^train\.scheduler\.type is missing"),
    ("train.scheduler.type", "CosineRestart", r"^train\.scheduler cannot be built.*CosineRestart"),
    ("train.scheduler.periods", [2], r"train\.scheduler\.periods ends at iteration 2, before train\.total_iter, 4"),
    ("train.scheduler.periods", 100, r"train\.scheduler\.periods must be a list"),
    ("train.scheduler.periods", [50, 50], r"train\.scheduler cannot be built: .*same length"),
    ("train.scheduler.eta_min", "1e-7", rf"eta_min must be a number.*{TEXT_FOR_A_NUMBER}"),
    ("train.scheduler.milestones", [1], r"^train\.scheduler cannot be built: .*milestones"),
    # ours
    ("train.pcl_opt", GONE, r"needs train\.pcl_opt"),
    ("train.pcl_opt.type", "PCLoss", r"train\.pcl_opt\.type must be PCLLoss, got PCLoss"),
    ("train.pcl_opt.data_range", 255.0, r"train\.pcl_opt\.data_range must be 1\.0, got 255: .*drop data_range"),
    ("train.pcl_opt.loss_weight", 1e30, r"train\.pcl_opt\.loss_weight must be a number from 0 to 1e\+06"),
    ("train.pcl_opt.loss_weight", "1e-1", r"loss_weight must be a number.*1\.0e-4"),
    ("train.pcl_opt.num_layers", 9, r"train\.pcl_opt\.num_layers must be at most 8, the maps of network_d .*got 9"),
    ("train.pcl_opt.num_layers", 2.5, r"num_layers must be an integer"),
    ("train.pcl_opt.temprature", 1.0, r"unknown key 'temprature' in train\.pcl_opt.*did you mean 'temperature'\?"),
    ("train.pcl_opt.temperature", 1e-30, r"temperature must be a number from 0\.0001"),
    ("train.pcl_opt.positives", "gt", r"positives must be a list of names"),
    ("train.pcl_opt.positives", 3, r"positives must be a list of names, got 3"),
    ("train.pcl_opt.negatives", [], r"negatives is empty"),
    ("train.pcl_opt.negatives", [["blur"]], r"negatives has unknown entries"),
    ("train.pcl_opt.blur_sigma", [0.5, 30.0], r"blur_sigma reaches 90 pixels .*gt_size 64"),
    ("train.pcl_opt.sharpness", [3.0, 1.5], r"sharpness must satisfy"),
    ("train.pcl_opt.num_negatives", 10**5, r"num_negatives must be an integer from 0 to 256"),
    ("train.pcl_opt.recipe", "ligth", r"recipe must be one of \['paper', 'light'\], got 'ligth'"),
    ("train.pcl_opt.recipe", ["light"], r"recipe must be one of"),
    (
        "train.cld_opt",
        {"loss_weight": 1.0},
        r"train\.cld_opt\.type is missing; write type: ContrastiveDiscriminatorLoss",
    ),
    ("train.cld_opt", {"type": "GANLoss"}, r"train\.cld_opt\.type must be ContrastiveDiscriminatorLoss"),
    ("train.cld_opt", "on", r"^train\.cld_opt must be a block of keys"),
    ("train.pcl_start_iter", -1, r"train\.pcl_start_iter must be at least 0"),
    ("train.pcl_every", "2", r"pcl_every must be an integer"),
    ("train.pclopt", {}, r"did you mean 'pcl_opt'\?"),
    ("train.perceptual_opt", {"type": "PCLPerceptualLoss"}, r"are the same loss twice; drop one"),
    # validation and logging
    ("val", [], r"^val must be a block of keys"),
    ("val.val_freq", GONE, r"^val\.val_freq is missing"),
    ("val.val_freq", 0, r"^val\.val_freq must be an integer of at least 1, got 0"),
    ("val.val_freq", "1e3", rf"^val\.val_freq must be.*{TEXT_FOR_A_NUMBER}"),
    ("val.valfreq", 1, r"did you mean 'val_freq'\?"),
    ("val.save_img", GONE, r"^val\.save_img is missing"),
    ("val.save_img", "no", r"^val\.save_img must be true or false"),
    ("val.metrics", ["psnr"], r"^val\.metrics must be a block of keys"),
    ("val.metrics.psnr", "calculate_psnr", r"^val\.metrics\.psnr must be a block of keys"),
    ("val.metrics.psnr.type", GONE, r"^val\.metrics\.psnr\.type is missing"),
    ("val.metrics.psnr.type", "calculate_pnsr", r"there is no calculate_pnsr; did you mean calculate_psnr\?"),
    ("val.metrics.psnr.crop_border", GONE, r"^val\.metrics\.psnr\.crop_border is missing"),
    ("val.metrics.psnr.crop_border", 200, r"crop_border is 200, which leaves too little of .*96x96"),
    ("val.metrics.psnr.crop_border", -4, r"crop_border must be an integer of at least 0"),
    ("val.metrics.psnr.test_y_channel", "y", r"test_y_channel must be true or false"),
    ("val.metrics.psnr.input_order", "CHW", r"input_order must be one of HWC"),
    ("val.metrics.psnr.better", "more", r"better must be one of higher, lower"),
    ("logger", GONE, r"^logger is missing"),
    ("logger", None, r"^logger must be a block of keys"),
    ("logger.print_freq", GONE, r"^logger\.print_freq is missing"),
    ("logger.print_freq", 0, r"^logger\.print_freq must be an integer of at least 1"),
    ("logger.save_checkpoint_freq", GONE, r"^logger\.save_checkpoint_freq is missing"),
    ("logger.save_checkpoint_freq", "5e3", rf"save_checkpoint_freq must be.*{TEXT_FOR_A_NUMBER}"),
    ("logger.save_checkpoint_freq", -1, r"save_checkpoint_freq must be"),
    ("logger.use_tb_loger", True, r"did you mean 'use_tb_logger'\?"),
    ("logger.wandb", {"project": 3}, r"logger\.wandb\.project must be text"),
    ("dist_params", {"backend": "nccl", "port": "x"}, r"dist_params\.port must be"),
    ("train.pcl_grad_ratio", 1e5, r"train\.pcl_grad_ratio must be a number from 0 to 10000"),
    ("train.max_bad_steps", 0, r"train\.max_bad_steps must be at least 1, got 0"),
    ("network_g.type", ["EDSR"], r"^network_g\.type must be text, got \['EDSR'\]"),
    ("network_g.spynet_path", "gone.pth", r"^network_g\.spynet_path: there is no gone\.pth"),
    ("train.optim_g.type", ["Adam"], r"^train\.optim_g\.type must be text, got \['Adam'\]"),
    (
        "train.optim_g",
        {"type": "Adam", "lr": 1e-4, "foreach": True, "fused": True},
        r"^train\.optim_g cannot be built: `fused` and `foreach`",
    ),
    ("train.gan_opt", {"type": "GANLoss", "gan_type": "vanila"}, r"^train\.gan_opt cannot be built: GAN type vanila"),
    (
        "train.perceptual_opt",
        {"type": "PerceptualLoss", "layer_weights": ["conv5_4"]},
        r"^train\.perceptual_opt\.layer_weights must be a block of keys",
    ),
    (
        "train.perceptual_opt",
        {"type": "PerceptualLoss", "layer_weights": {"conv5_4": "1"}},
        r"^train\.perceptual_opt\.layer_weights\.conv5_4 must be a number",
    ),
    # what was found by writing files as users get them wrong
    (
        "datasets.train.type",
        "SingleImageDataset",
        r"^datasets\.train: a SingleImageDataset has no HR, which a tr",
    ),
    (
        "datasets.val.type",
        "SingleImageDataset",
        r"^datasets\.val: a SingleImageDataset has no HR, which calculate_p",
    ),
    ("datasets.train.type", "FFHQDataset", r"^datasets\.train cannot be built: it has no key 'mean'"),
    ("datasets.train.type", "RealESRGANDataset", r"^datasets\.train cannot be built: it has no key 'meta_info'"),
    ("datasets.train.io_backend.type", "memcached", r"^datasets\.train\.io_backend cannot be built: .*server_list_cfg"),
    ("datasets.train.meta_info_file", ".", r"^datasets\.train\.meta_info_file: \. cannot be read: .*directory"),
    ("datasets.val.name", "../other", r"^datasets\.val\.name must be text that can name a folder"),
    (
        "datasets.val.name",
        "pairs",
        r"^datasets\.val\.name is that of datasets\.train, pairs; give each data",
    ),
    ("network_g.num_block", -16, r"^network_g\.num_block must be a number from 0"),
    ("network_g.img_range", 0, r"^network_g\.img_range must be a number above 0"),
    ("path.pretrain_network_g", ".", r"^path\.pretrain_network_g: .*directory"),
    ("path.pretrain_network_g", "run.yml", r"^path\.pretrain_network_g: run\.yml is no readable checkpoint"),
    (
        "path.pretrain_model_g",
        None,
        r"^unknown key 'path\.pretrain_model_g': BasicSR makes a folder of it, but it is ",
    ),
    ("train.optim_g.maximize", True, r"^train\.optim_g\.maximize must be false"),
    ("train.scheduler.eta_min", 0.01, r"^train\.scheduler\.eta_min is 0\.01, above train\.optim_g\.lr, 0\.001"),
    ("train.pixel_opt", {"type": "PCLLoss"}, r"^train\.pixel_opt: PCLLoss belongs into train\.pcl_opt"),
    ("train.pixel_opt", {"type": "PCLPerceptualLoss"}, r"PCLPerceptualLoss belongs into train\.perceptual_opt"),
    (
        "train.perceptual_opt",
        {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}, "criterion": "huber"},
        r"^train\.perceptual_opt\.criterion must be one of l1, l2, fro, got 'huber'",
    ),
    ("train.gan_opt", {"type": "GANLoss", "gan_type": "vanilla"}, r"`model_type: PCLModel` ignores train\.gan_opt"),
    ("train.compile", {"mode": "fastest"}, r"^train\.compile: Unrecognized mode=fastest"),
    ("train.pcl_opt", True, r"^train\.pcl_opt must be a block of keys such as {type: PCLLoss}, got True"),
    ("train.recipe", "light", r"^train\.recipe is read by nobody; recipe belongs into train\.pcl_opt"),
    ("val.metrics.psnr.net", "alexnet", r"^val\.metrics\.psnr\.net must be one of alex, vgg, squeeze"),
    ("val.metrics.psnr", {"type": "calculate_niqe", "crop_border": 4, "convert_to": "luma"}, r"must be one of y, gray"),
    ("val.metrics.psnr", {"type": "calculate_niqe", "crop_border": 4}, r"too little of .*, 96x96, for calculate_niqe"),
]


@pytest.mark.parametrize(("path", "value", "message"), BROKEN)
def test_a_broken_option_names_its_key_and_the_fix(
    with_pcl: Options, parse: Parse, path: str, value: Any, message: str
) -> None:
    set_at(with_pcl, path, value)
    refuses(parse, with_pcl, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"run\.yml is empty; `pcl-loss options`"),
        ("# nothing\n", r"run\.yml is empty"),
        ("- a\n- b\n", r"run\.yml holds list, not a block of keys"),
        ("name: tiny\n  scale: 4\n", r"run\.yml, line 2, column 8 is not YAML"),
        ("name: [tiny\n", r"run\.yml, line 2, column 1 is not YAML"),
        ("name: 'tiny\n", r"run\.yml, line 2, column 1 is not YAML"),
        ("name: tiny\n\tscale: 4\n", r"run\.yml, line 2, column 1 is not YAML"),
        ("name: tiny\nscale: 2\nname: other\n", r"line 3, column 1 is not YAML: the key 'name' stands twice"),
        ("name: !!float tiny\n", r"run\.yml, line 1, column 7 is not YAML: 'tiny' is no float"),
        ("name: &a [*a]\n", r"run\.yml: Circular reference"),
        ("3: 4\n", r"3: a key must be text, got 3"),
        ("name: 2026-13-45\n", r"run\.yml, line 1, column 7 is not YAML: '2026-13-45' is no timestamp"),
        ("name: !!bool maybe\n", r"run\.yml, line 1, column 7 is not YAML: 'maybe' is no bool"),
        (
            "scale: 04\n",
            r"run\.yml, line 1, column 8 is not YAML: YAML reads 04 as 4; write a decimal number",
        ),
        ("scale: 5:00\n", r"run\.yml, line 1, column 8 is not YAML: YAML reads 5:00 as 300; write"),
    ],
)
def test_what_is_no_option_file_is_said_with_its_line(parse: Parse, text: str, message: str) -> None:
    refuses(parse, text, message)


def test_a_missing_file_and_one_that_is_no_text_are_named(parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("run.yml").write_bytes(b"\xff\xfe\x00")
    for file, message in (
        ("gone.yml", r"^gone\.yml cannot be read: No such file"),
        ("run.yml", r"run\.yml is no text"),
    ):
        monkeypatch.setattr(sys, "argv", ["train", "-opt", file])
        with pytest.raises(OptionsError, match=message):
            basicsr_options.parse_options(".", is_train=True)


# --- code in options ---


def test_a_tag_that_asks_for_code_runs_nothing(parse: Parse) -> None:
    text = "name: !!python/object/apply:os.mkdir [owned]\n"
    refuses(parse, text, r"run\.yml, line 1, column 7: the tag !!python/object/apply:os\.mkdir is not allowed.*drop it")


@pytest.mark.parametrize(
    "override",
    [
        "name=!!python/object/apply:os.mkdir [owned]",
        "train:pixel_opt=[__import__('os').mkdir('owned')]",
        """train:x"]=__import__("os").mkdir("owned");opt["name=1""",
    ],
)
def test_force_yml_runs_nothing(with_pcl: Options, parse: Parse, override: str) -> None:
    for flag in ("--force_yml", "--force"):  # argparse takes an abbreviation
        with contextlib.suppress(OptionsError):
            parse(with_pcl, flag, override)
        assert [path.name for path in Path().iterdir()] == ["run.yml"]


def test_force_yml_sets_values_in_yaml(with_pcl: Options, parse: Parse) -> None:
    flags = ("train:ema_decay=0.5", "name=other", "path:pretrain_network_g=None", "train:optim_g:betas=[0.8, 0.9]")
    opt = parse(with_pcl, "--force_yml", *flags, "train:total_iter=!!float 3", "val:save_img=true")
    assert (opt["train"]["ema_decay"], opt["name"], opt["path"]["pretrain_network_g"]) == (0.5, "other", None)
    assert (opt["train"]["optim_g"]["betas"], opt["train"]["total_iter"], opt["val"]["save_img"]) == (
        [0.8, 0.9],
        3,
        True,
    )
    assert opt["path"]["experiments_root"].endswith("other")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train:emadecay=0.9", r"did you mean 'ema_decay'"),
        ("trian:ema_decay=0.9", r"the option file has no block trian"),
        ("train:ema_decay", r"takes block:key=value.*got 'train:ema_decay'"),
        ("train:ema_decay=[1", r"--force_yml train:ema_decay=\[1, line 1"),
        ("train:ema_decay=2", r"train\.ema_decay must be a number"),
    ],
)
def test_force_yml_is_checked_as_the_file_is(with_pcl: Options, parse: Parse, override: str, message: str) -> None:
    refuses(parse, with_pcl, message, "--force_yml", override)


# --- what passes ---


def test_whole_floats_are_integers(with_pcl: Options, parse: Parse) -> None:
    with_pcl["train"]["pcl_opt"]["num_layers"] = 3.0
    text = yaml.safe_dump(with_pcl)
    for key, number in (
        ("val_freq: 2", 5e3),
        ("save_checkpoint_freq: 2", 5e3),
        ("total_iter: 4", 20.0),
        ("gt_size: 64", 32.0),
    ):
        assert key in text
        text = text.replace(key, f"{key.split(':')[0]}: !!float {number:g}")
    opt = parse(text.replace("pcl_opt:", "pcl_every: !!float 2\n  pcl_opt:"))
    found = (opt["val"]["val_freq"], opt["logger"]["save_checkpoint_freq"], opt["train"]["total_iter"])
    found += (opt["datasets"]["train"]["gt_size"], opt["train"]["pcl_every"])
    found += (opt["train"]["pcl_opt"]["num_layers"],)
    assert found == (5000, 5000, 20, 32, 2, 3)
    assert all(type(value) is int for value in found)


def test_keys_that_nobody_reads_are_one_warning(
    with_pcl: Options, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    with_pcl["datasets"]["train"]["use_shuffle"] = True
    with_pcl["val"]["other"] = 1
    with_pcl["tile"] = {"tile_size": 256}
    parse(with_pcl)
    (line,) = capsys.readouterr().err.splitlines()
    assert all(key in line for key in ("tile", "datasets.train.use_shuffle", "val.other"))


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("train.val_freq", 5, r"BasicSR reads no key train.val_freq (there is val.val_freq); only"),
        ("train.network_d", {}, r"BasicSR reads no key train.network_d (there is network_d); only"),
        ("train.warmup_iter", 4, "train.warmup_iter is 4: the run ends before, at total_iter, 4"),
        ("train.pcl_start_iter", 9, "train.pcl_start_iter is 9: the run ends before, at total_iter, 4"),
        ("val.metrics.psnr.test_y", True, "calculate_psnr reads no key val.metrics.psnr.test_y"),
        ("datasets.val", GONE, "the block val validates nothing, since there is no datasets.val; set val to ~"),
        (
            "datasets.train.prefetch_mode",
            "cpu",
            "a resumed run is not bit for bit the uninterrupted one; set",
        ),
    ],
)
def test_what_may_be_meant_is_one_warning(
    with_pcl: Options, parse: Parse, capsys: pytest.CaptureFixture[str], path: str, value: Any, line: str
) -> None:
    parse(with_pcl)
    assert not capsys.readouterr().err
    set_at(with_pcl, path, value)
    parse(with_pcl)
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said


def test_wandb_needs_its_package(with_pcl: Options, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with_pcl["logger"]["wandb"] = {"project": "sr"}
    refuses(parse, with_pcl, r"^logger\.wandb\.project needs the package wandb: pip install wandb")
    with_pcl["logger"]["use_tb_logger"] = False
    refuses(parse, with_pcl, r"^logger\.wandb\.project needs logger\.use_tb_logger: true")


def test_a_prefetcher_with_a_worker_is_exact(
    with_pcl: Options, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    with_pcl["datasets"]["train"] |= {"prefetch_mode": "cpu", "num_worker_per_gpu": 1}
    parse(with_pcl)
    assert not capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_prefetcher_for_a_gpu_needs_one(with_pcl: Options, parse: Parse) -> None:
    with_pcl["datasets"]["train"] |= {"prefetch_mode": "cuda", "pin_memory": True}
    refuses(parse, with_pcl, r"^datasets\.train\.prefetch_mode: cuda needs a GPU, and torch sees none; set cpu, or ~")


def weights_of(options: Options, file: Path, **content: Any) -> dict[str, torch.Tensor]:
    """A network's weights; the file gets them, or what is given."""
    state = EDSR(**{key: value for key, value in options["network_g"].items() if key != "type"}).state_dict()
    torch.save(content or {"params": state}, file)
    return state


def test_weights_that_a_network_cannot_take_are_refused(with_pcl: Options, parse: Parse, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    with_pcl["path"]["pretrain_network_g"] = str(file)
    state = weights_of(with_pcl, file)
    parse(with_pcl)
    weights_of(with_pcl, file, params={f"module.{key}": value for key, value in state.items()})
    parse(with_pcl)
    weights_of(with_pcl, file, params_ema=state)
    refuses(parse, with_pcl, r"net\.pth has no params; set path\.param_key_g to ~, or to what it has")
    with_pcl["path"]["param_key_g"] = "params_ema"
    parse(with_pcl)
    weights_of(with_pcl, file, **state)
    refuses(parse, with_pcl, r"net\.pth has no params_ema; set path\.param_key_g")
    with_pcl["path"]["param_key_g"] = None
    parse(with_pcl)
    with_pcl["network_g"]["num_feat"] = 5
    refuses(parse, with_pcl, r"path\.pretrain_network_g: .*net\.pth does not fit network_g: .*size mismatch")
    with_pcl["path"]["strict_load_g"] = False
    parse(with_pcl)


def test_the_checks_leave_the_log_unopened(baseline: Options, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    # BasicSR opens its log file where it first asks for its log, and never later.
    class Talkative(PairedImageDataset):
        def __init__(self, opt: Options) -> None:
            super().__init__(opt)
            get_root_logger().info("here I am")

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Talkative", Talkative)
    monkeypatch.setattr(logger, "initialized_logger", {})
    baseline["datasets"]["train"]["type"] = "Talkative"
    handlers = list(logging.getLogger("basicsr").handlers)
    parse(baseline)
    assert not logger.initialized_logger
    assert logging.getLogger("basicsr").handlers == handlers


def test_a_key_that_this_basicsr_reads_is_no_slip(
    with_pcl: Options, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pcl_loss.basicsr_plugin import yaml_values

    with_pcl["datasets"]["train"]["gt_size_h"] = 64
    refuses(parse, with_pcl, r"did you mean 'gt_size'")
    monkeypatch.setattr(yaml_values, "_is_read_by_basicsr", lambda key: key == "gt_size_h")
    parse(with_pcl)


def test_the_runs_random_numbers_do_not_depend_on_the_checks(with_pcl: Options, parse: Parse) -> None:
    import random

    import numpy as np
    from basicsr.utils import set_random_seed

    parse(with_pcl)
    after = (random.random(), np.random.rand(), torch.rand(()).item())
    set_random_seed(3)
    assert after == (random.random(), np.random.rand(), torch.rand(()).item())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("val", GONE, r"^val is missing"),
        ("val", None, r"^val must be a block of keys, got None"),
        ("datasets", {}, r"^datasets is empty"),
        ("val.save_img", True, r"^val\.suffix is missing"),
        ("datasets.train", {}, r"^datasets\.train: a data set is called test, val or test_1"),
        ("network_g.type", "ESDR", r"did you mean EDSR"),
    ],
)
def test_the_verb_test_checks_its_file_too(
    baseline: Options, parse: Parse, path: str, value: Any, message: str
) -> None:
    del baseline["train"], baseline["logger"]
    baseline["datasets"] = {"test_1": baseline["datasets"]["val"]}
    parse(baseline, is_train=False)
    set_at(baseline, path, value)
    refuses(parse, baseline, message, is_train=False)


def test_a_file_for_testing_may_keep_the_block_of_its_training(baseline: Options, parse: Parse) -> None:
    baseline["datasets"] = {"test_1": baseline["datasets"]["val"]}
    parse(baseline, is_train=False)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("network_d", {"num_feat": 8}, r"recipe: light has an embedding of its own.*drop the block network_d"),
        (
            "network_d",
            {"type": "WaveletDiscriminator"},
            r"drop the block network_d \({type: WaveletDiscriminator, \.\.\.}",
        ),
        ("train.optim_d", {"type": "Adam", "lr": 1e-4}, r"recipe: light trains no discriminator; drop train\.optim_d"),
        (
            "train.cld_opt",
            {"type": "ContrastiveDiscriminatorLoss"},
            r"light trains no discriminator; drop train\.cld_opt",
        ),
        ("train.net_d_frozen", True, r"light trains no discriminator; drop train\.net_d_frozen"),
    ],
)
def test_the_light_recipe_takes_nothing_of_a_discriminator(
    light: Options, parse: Parse, path: str, value: Any, message: str
) -> None:
    parse(light)
    set_at(light, path, value)
    refuses(parse, light, message)


def test_pcl_perceptual_loss_is_checked_under_any_model(baseline: Options, parse: Parse) -> None:
    for block, message in (
        ({"lossweight": 1.0}, r"unknown key 'lossweight' in train\.perceptual_opt.*did you mean 'loss_weight'"),
        ({"data_range": 255.0}, r"train\.perceptual_opt\.data_range must be 1\.0"),
        ({"num_layers": 9}, r"train\.perceptual_opt: num_layers must be from 1 to 8, got 9"),
        ({"sync": "no"}, r"train\.perceptual_opt: sync must be True or False, got 'no'"),
        ({"scale": 2, "negatives": ["lq"]}, r"train\.perceptual_opt\.scale is 2, but scale is 4"),
        ({"num_in_ch": 1}, r"train\.perceptual_opt\.num_in_ch is 1"),
    ):
        baseline["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", **block}
        refuses(parse, baseline, message)
    baseline["train"]["perceptual_opt"] = {"type": "PCLPerceptualLoss", "loss_weight": 0.5, "num_feat": 8}
    parse(baseline)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.pcl_opt.negatives", ["batch"], r"negatives has 'batch'.*batch_size_per_gpu is 1"),
        ("datasets.train.std", [0.5, 0.5, 0.5], r"mean and std take the images out of 0-1"),
    ],
)
def test_what_the_data_cannot_give_the_samples_is_refused(
    with_pcl: Options, parse: Parse, path: str, value: Any, message: str
) -> None:
    train_set = with_pcl["datasets"]["train"]
    train_set["batch_size_per_gpu"] = 1
    if path.endswith("std"):
        train_set["mean"] = value
    set_at(with_pcl, path, value)
    refuses(parse, with_pcl, message)
