"""What BasicSR reads in an option file, as tables: each key, its kind, and which ones must be there."""

from __future__ import annotations

from typing import Any

from .._checks import nearest
from .yaml_values import (
    ANY,
    BLOCK,
    SWITCH,
    TEXT,
    Kind,
    Options,
    OptionsError,
    check_table,
    choice,
    dotted,
    either,
    list_of,
    number,
    optional,
    shown,
    warn,
    whole,
)

SHARE = number(0, 1)
FACTOR = number(0, 1e6)
"""Of a loss."""
PAIR = list_of(number(), 2)
NAME = Kind(
    "text that can name a folder",
    lambda value: TEXT.accepts(value) and not set(value) & set("/\\") and value not in (".", "..") and len(value) < 200,
)
FOLDERS = either(TEXT, list_of(TEXT))
COUNT = whole(1)

# What the models, `train_pipeline` and `parse_options` of BasicSR read at the top level.
FILE: dict[str, Kind] = {
    "name": NAME,
    "model_type": TEXT,
    "scale": whole(1, 64),
    "num_gpu": either(choice("auto"), whole(0, 1024)),
    "manual_seed": optional(whole(0, 2**31 - 1)),
    "find_unused_parameters": SWITCH,
    "datasets": BLOCK,
    "network_g": BLOCK,
    "network_d": optional(BLOCK),
    "path": BLOCK,
    "train": BLOCK,
    "val": optional(BLOCK),
    "logger": BLOCK,
    "dist_params": optional(BLOCK),
    # The degradations of Real-ESRGAN.
    "high_order_degradation": SWITCH,
    "gt_size": COUNT,
    "queue_size": COUNT,
    **dict.fromkeys(("gt_usm", "l1_gt_usm", "percep_gt_usm", "gan_gt_usm"), SWITCH),
    **{key + twice: list_of(SHARE, 3) for key in ("resize_prob",) for twice in ("", "2")},
    **{
        key + twice: PAIR
        for key in ("resize_range", "noise_range", "poisson_scale_range", "jpeg_range")
        for twice in ("", "2")
    },
    **{key + twice: SHARE for key in ("gaussian_noise_prob", "gray_noise_prob") for twice in ("", "2")},
    "second_blur_prob": SHARE,
}

DATASET: dict[str, Kind] = {
    "name": NAME,
    "type": TEXT,
    "dataroot_gt": optional(TEXT),
    "dataroot_lq": optional(TEXT),
    "dataroot_flow": optional(TEXT),
    "meta_info_file": optional(TEXT),
    "meta_info": optional(FOLDERS),
    "filename_tmpl": Kind(
        "a name with {} in it, such as '{}x4'",
        lambda value: (
            isinstance(value, str) and value.count("{}") == 1 and not set(value.replace("{}", "")) & set("{}")
        ),
    ),
    "io_backend": BLOCK,
    "gt_size": COUNT,
    **dict.fromkeys(("use_hflip", "use_rot", "random_reverse", "flip_sequence", "test_mode", "cache_data"), SWITCH),
    **dict.fromkeys(("pin_memory", "persistent_workers", "use_duf_downsampling"), SWITCH),
    "color": optional(choice("y", "rgb")),
    "mean": optional(list_of(number(), 3)),
    "std": optional(list_of(number(0, above=True), 3)),
    "num_worker_per_gpu": whole(0, 512),
    "batch_size_per_gpu": whole(1, 10**6),
    "dataset_enlarge_ratio": whole(1, 10**6),
    "prefetch_mode": optional(choice("cpu", "cuda")),
    "num_prefetch_queue": COUNT,
    "phase": TEXT,
    "scale": whole(1, 64),
    # Of videos.
    "num_frame": whole(-1),
    "interval_list": list_of(COUNT),
    "val_partition": TEXT,
    "padding": TEXT,
    # Of Real-ESRGAN.
    **{
        key + twice: kind
        for key, kind in {
            "blur_kernel_size": COUNT,
            "kernel_list": list_of(TEXT),
            "kernel_prob": list_of(SHARE),
            "sinc_prob": SHARE,
            "blur_sigma": PAIR,
            "betag_range": PAIR,
            "betap_range": PAIR,
        }.items()
        for twice in ("", "2")
    },
    "final_sinc_prob": SHARE,
}

IO_BACKEND: dict[str, Kind] = {
    "type": choice("disk", "lmdb", "memcached"),
    "readonly": SWITCH,
    "lock": SWITCH,
    "readahead": SWITCH,
    "server_list_cfg": TEXT,
    "client_cfg": TEXT,
    "sys_path": optional(TEXT),
}

TRAIN: dict[str, Kind] = {
    "total_iter": COUNT,
    "warmup_iter": whole(-1),
    "ema_decay": number(0, 1, below=True),
    "optim_g": BLOCK,
    "optim_d": optional(BLOCK),
    "scheduler": BLOCK,
    **dict.fromkeys(
        ("pixel_opt", "perceptual_opt", "gan_opt", "ldl_opt", "feature_matching_opt", "cld_opt"), optional(BLOCK)
    ),
    "net_d_iters": COUNT,
    "net_d_init_iters": whole(0),
    "fix_flow": optional(whole(0)),
    "flow_lr_mul": FACTOR,
    "dcn_lr_mul": FACTOR,
    "lr_flow": FACTOR,
    "tsa_iter": optional(whole(0)),
    # Of StyleGAN.
    "net_g_reg_every": COUNT,
    "net_d_reg_every": COUNT,
    "r1_reg_weight": FACTOR,
    "path_reg_weight": FACTOR,
    "path_batch_shrink": COUNT,
    "mixing_prob": SHARE,
    # Ours, whose values `yaml_checks` checks.
    **dict.fromkeys(("pcl_opt", "pcl_start_iter", "pcl_every", "pcl_grad_ratio", "net_d_frozen", "max_bad_steps"), ANY),
    **dict.fromkeys(("amp", "channels_last", "compile"), ANY),
}

VAL: dict[str, Kind] = {
    "val_freq": COUNT,
    "save_img": SWITCH,
    "suffix": optional(TEXT),
    "metrics": optional(BLOCK),
    **dict.fromkeys(("pbar", "flip_seq", "center_frame_only"), SWITCH),
    "num_val_samples": COUNT,
    "pcl_preview": ANY,
}

LOGGER: dict[str, Kind] = {
    "print_freq": COUNT,
    "save_checkpoint_freq": COUNT,
    "use_tb_logger": SWITCH,
    "wandb": optional(BLOCK),
}
WANDB = {"project": optional(TEXT), "resume_id": optional(TEXT)}
DIST = {"backend": TEXT, "port": whole(1, 65535)}

OPTIMIZER: dict[str, Kind] = {
    "lr": number(0, 10, above=True),
    "betas": list_of(number(0, 1, below=True), 2),
    "weight_decay": number(0, 10),
    "eps": number(0, 1, above=True),
    "maximize": Kind("false, or left out", lambda value: value is False),
}
# Of a network.
NETWORK: dict[str, Kind] = {"img_range": number(0, 1e6, above=True)}
SCHEDULER: dict[str, Kind] = {
    "periods": list_of(COUNT),
    "restart_weights": list_of(number(0, 1e3)),
    "restarts": list_of(whole(0)),
    "milestones": list_of(whole(0)),
    "gamma": number(0, 1, above=True),
    "eta_min": number(0, 10),
}
LOSS: dict[str, Kind] = {
    # With 'none' a loss is no number that could be minimised.
    "reduction": choice("mean", "sum"),
    **dict.fromkeys(("loss_weight", "perceptual_weight", "style_weight"), FACTOR),
    "eps": number(0, 1, above=True),
}
METRIC: dict[str, Kind] = {
    "crop_border": whole(0),
    # BasicSR's models hand over (H, W, C).
    "input_order": choice("HWC"),
    "test_y_channel": SWITCH,
    "better": choice("higher", "lower"),
    # Of NIQE and LPIPS.
    "convert_to": choice("y", "gray"),
    "net": choice("alex", "vgg", "squeeze"),
}

PAIRED = ("PairedImageDataset", "RealESRGANPairedDataset")


def check_file(opt: Options, is_train: bool) -> None:
    """Check every key of an option file as it was written, and the values that a table can tell; whole floats such as
    5e3 become integers where BasicSR counts with them.

    A key that BasicSR does not read is one warning, on stderr; its own files have some.

    Args:
        opt: the options as the file has them; numbers are changed in place.
        is_train: for training, or for testing.

    Raises:
        OptionsError: the first key that is missing or the slip of another one, or value of the wrong kind.
    """
    required = ["name", "model_type", "num_gpu", "datasets", "network_g", "path"]
    networks = {key: BLOCK for key in opt if isinstance(key, str) and key.startswith("network_")} if opt else {}
    unknown = check_table("", opt, networks | FILE, [*required, *(("train", "logger") if is_train else ("val",))])
    unknown += check_path(opt)
    unknown += _check_datasets(opt, is_train)
    if is_train:
        unknown += check_table("train", opt["train"], TRAIN, ("total_iter", "optim_g", "scheduler"))
    if opt.get("val") is not None:
        unknown += check_table("val", opt["val"], VAL, ("val_freq", "save_img") if is_train else ("save_img",))
        if not is_train and opt["val"]["save_img"] and "suffix" not in opt["val"]:
            raise OptionsError("val.suffix is missing, which val.save_img: true needs; set it to ~ or to text")
    elif not is_train:
        raise OptionsError("val must be a block of keys, got None")
    if is_train and opt.get("val") is not None and len(opt["datasets"]) == 1:
        warn("the block val validates nothing, since there is no datasets.val; set val to ~ if that is meant")
    unknown += _check_logger(opt)
    if opt.get("dist_params") is not None:
        unknown += check_table("dist_params", opt["dist_params"], DIST)
    if unknown:
        warn(f"BasicSR reads no key {', '.join(map(_with_its_home, unknown))}; only a class of your own may")


def _with_its_home(name: str) -> str:
    """The name of an unknown key, and where a key so called is read."""
    key = name.rpartition(".")[2]
    tables = {"": FILE, "datasets.train": DATASET, "train": TRAIN, "val": VAL, "logger": LOGGER}
    homes = [dotted(where, key) for where, table in tables.items() if key in table]
    return f"{name} (there is {homes[0]})" if homes else name


def check_path(opt: Options) -> list[str]:
    """The block `path`, whose keys depend on the networks there are; returns its unknown keys."""
    nets = {"g", "d", *(key.removeprefix("network_") for key in opt if key.startswith("network_"))}
    per_net = {"pretrain_network": optional(TEXT), "strict_load": SWITCH, "param_key": optional(TEXT)}
    table = {f"{key}_{net}": kind for key, kind in per_net.items() for net in sorted(nets)}
    table |= {"resume_state": optional(TEXT), "ignore_resume_networks": optional(FOLDERS)}
    unknown = check_table("path", opt["path"], table)
    for name in unknown:
        if not TEXT.accepts(value := opt["path"][name.removeprefix("path.")]):
            raise OptionsError(f"unknown key {name!r}: BasicSR makes a folder of it, but it is {shown(value)}; drop it")
    return unknown


def _check_datasets(opt: Options, is_train: bool) -> list[str]:
    datasets, unknown = opt["datasets"], []
    titles: dict[str, str] = {}
    names = ("train", "val") if is_train else ("test", "val")
    for phase, dataset in datasets.items():
        where = dotted("datasets", phase)
        # There is one training set alone.
        if phase not in names and str(phase).split("_")[0] not in names[int(is_train) :]:
            meant = nearest(str(phase), names)
            raise OptionsError(
                f"{where}: a data set is called {', '.join(names)} or {names[int(is_train)]}_1 ..., got {shown(phase)}"
                + (f"; did you mean {meant!r}?" if meant else "")
            )
        required = _required_of_dataset(dataset, phase)
        unknown += check_table(where, dataset, DATASET, required)
        for key in [key for key in required if key.startswith("dataroot")]:
            TEXT.check(f"{where}.{key}", dataset[key])
        if "io_backend" in dataset:
            unknown += check_table(f"{where}.io_backend", dataset["io_backend"], IO_BACKEND, ("type",))
        # BasicSR keeps the best results by name.
        if (first := titles.setdefault(dataset["name"], where)) != where:
            raise OptionsError(f"{where}.name is that of {first}, {dataset['name']}; give each data set its own")
        if dataset.get("type") in PAIRED and "scale" not in opt:
            raise OptionsError("scale is missing; it must be the factor between LR and HR, such as 4")
        if dataset.get("prefetch_mode") == "cuda" and dataset.get("pin_memory") is not True:
            raise OptionsError(f"{where}.prefetch_mode: cuda needs {where}.pin_memory: true; set it, or set ~")
        if phase == "train" and dataset.get("prefetch_mode") == "cpu" and not dataset["num_worker_per_gpu"]:
            warn(
                f"{where}.prefetch_mode: cpu with num_worker_per_gpu: 0 draws random numbers in a thread beside the "
                "training: a resumed run is not bit for bit the uninterrupted one; set num_worker_per_gpu: 1, or ~"
            )
        if dataset.get("persistent_workers") and not dataset.get("num_worker_per_gpu"):
            raise OptionsError(f"{where}.persistent_workers: true needs {where}.num_worker_per_gpu above 0")
        if (dataset.get("mean") is None) != (dataset.get("std") is None):
            raise OptionsError(f"{where}: mean and std go together; set both, or neither")
    if is_train and "train" not in datasets:
        raise OptionsError("datasets.train is missing; it must be a block of keys")
    if not datasets:
        raise OptionsError("datasets is empty; it must have a data set such as test_1")
    return unknown


def _required_of_dataset(dataset: Any, phase: str) -> tuple[str, ...]:
    required: tuple[str, ...] = ("name", "type")
    if not isinstance(dataset, dict):
        return required
    if phase == "train":
        required += ("num_worker_per_gpu", "batch_size_per_gpu")
    if dataset.get("type") in PAIRED:
        required += ("dataroot_gt", "dataroot_lq", "io_backend")
        if phase == "train":
            required += ("gt_size", "use_hflip", "use_rot")
    elif dataset.get("type") == "SingleImageDataset":
        required += ("dataroot_lq", "io_backend")
    return required


def _check_logger(opt: Options) -> list[str]:
    logger = opt.get("logger")
    if logger is None:
        return []
    unknown = check_table("logger", logger, LOGGER, ("print_freq", "save_checkpoint_freq") if "train" in opt else ())
    wandb = logger.get("wandb")
    if wandb is not None:
        unknown += check_table("logger.wandb", wandb, WANDB)
        if wandb.get("project") is not None and not logger.get("use_tb_logger"):
            raise OptionsError("logger.wandb.project needs logger.use_tb_logger: true; set it, or set project to ~")
    return unknown
