# ruff: noqa: E501  (the rows of Markdown tables)
"""The option files that we ship, all from one place; and `pcl-loss options --to DIR`, which writes them out.

`basicsr_options/` in the repository holds what `option_files()` gives: change the tables here, then `make options`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._datasets import BENCHMARKS, DIV2K

SCALES = (2, 3, 4)
LR_PATCH = 48  # section 3.5 of the paper

PCL_OPT = ("  pcl_opt:", "    type: PCLLoss", "    loss_weight: 1.0")
PIXEL_OPT = ("  pixel_opt:", "    type: L1Loss", "    loss_weight: 1.0", "    reduction: mean")
NETWORK_D = ("network_d:", "  type: WaveletDiscriminator", "  num_in_ch: 3", "  num_feat: 64")
FROZEN_D = "experiments/train_RCAN_x4_PCL/models/net_d_latest.pth"


@dataclass(frozen=True)
class Net:
    """One SR network: its name in file names, its `network_g` block, and the model classes that train it."""

    name: str
    block: tuple[str, ...]
    scales: tuple[int, ...] = SCALES
    base_model: str = "SRModel"
    pcl_model: str = "PCLModel"


def _residual_net(name: str, *block: str) -> Net:
    shared = ("num_in_ch: 3", "num_out_ch: 3", "upscale: {scale}", "img_range: 255.")
    return Net(name, (*block, *shared, "rgb_mean: [0.4488, 0.4371, 0.4040]"))


NETS = (
    _residual_net("EDSR-S", "type: EDSR", "num_feat: 64", "num_block: 16", "res_scale: 1"),
    _residual_net("EDSR-L", "type: EDSR", "num_feat: 256", "num_block: 32", "res_scale: 0.1"),
    _residual_net("RCAN", "type: RCAN", "num_feat: 64", "num_group: 10", "num_block: 20", "squeeze_factor: 16"),
    _residual_net("HAN", "type: HAN", "num_feat: 64", "num_group: 10", "num_block: 20", "squeeze_factor: 16"),
    Net(
        "SwinIR",
        (
            "type: SwinIR",
            "upscale: {scale}",
            "in_chans: 3",
            "img_size: 48",
            "window_size: 8",
            "img_range: 1.",
            "depths: [6, 6, 6, 6, 6, 6]",
            "embed_dim: 180",
            "num_heads: [6, 6, 6, 6, 6, 6]",
            "mlp_ratio: 2",
            "upsampler: pixelshuffle",
            "resi_connection: 1conv",
        ),
        scales=(4,),
        base_model="SwinIRModel",
        pcl_model="PCLSwinIRModel",
    ),
)


def option_files() -> dict[str, str]:
    """All option files: their path below `basicsr_options/`, and their text."""
    files = {}
    for net in NETS:
        for scale in net.scales:
            for pcl in (False, True):
                for start in ("train", "finetune"):
                    name = f"{start}_{net.name}_x{scale}{'_PCL' if pcl else ''}"
                    files[f"train/{name}.yml"] = _train_file(name, net, scale, _pcl_lines() if pcl else None, start)
            name = f"test_{net.name}_x{scale}"
            files[f"test/{name}.yml"] = _test_file(name, net, scale)
    files |= _ablation_files()
    files["README.md"] = _readme(sorted(files))
    return files


@dataclass(frozen=True)
class _Pcl:
    """What a file with PCL has more than its baseline: lines at the top level, under `path:` and under `train:`."""

    top: tuple[str, ...]
    path: tuple[str, ...]
    train: tuple[str, ...]


def _pcl_lines(*knobs: str, network_d: Sequence[str] = NETWORK_D, frozen: bool = False) -> _Pcl:
    return _Pcl(
        top=("", *network_d),
        path=(f"  pretrain_network_d: {FROZEN_D}",) if frozen else (),
        train=("", *PCL_OPT, *(f"    {knob}" for knob in knobs), *(["  net_d_frozen: true"] if frozen else [])),
    )


def _ablation_files() -> dict[str, str]:
    vgg = ("network_d:", "  type: VGGEmbedding", "  vgg: vgg19")
    rgb = (*NETWORK_D, "  wavelet: false")
    configs: dict[str, _Pcl | None] = {
        "config1_L1": None,
        "config2_VGG_blur": _pcl_lines(network_d=vgg),
        "config3_lq": _pcl_lines("negatives: ['lq']"),
        "config4_no_wavelet": _pcl_lines(network_d=rgb),
        "config5_batch": _pcl_lines("negatives: ['batch']"),
        "config6_default": _pcl_lines(),
        "config7_frozen_E_D": _pcl_lines(frozen=True),
    }
    rcan = next(net for net in NETS if net.name == "RCAN")
    return {
        f"ablation/{name}.yml": _train_file(f"ablation_{name}", rcan, 4, pcl, "train") for name, pcl in configs.items()
    }


def _train_file(name: str, net: Net, scale: int, pcl: _Pcl | None, start: str) -> str:
    finetune = start == "finetune"
    iterations = 50000 if finetune else 200000
    pretrained = f"experiments/pretrained_models/{net.name}_x{scale}.pth" if finetune else "~"
    lines = [
        f"name: {name}",
        f"model_type: {net.pcl_model if pcl else net.base_model}",
        f"scale: {scale}",
        "num_gpu: auto",
        "manual_seed: 0",
        "",
        "datasets:",
        "  train:",
        "    name: DIV2K",
        "    type: PairedImageDataset",
        "    # Crops of 480 (pcl-loss prepare --crop 480 --step 240) are read faster than whole images.",
        "    dataroot_gt: datasets/DIV2K/DIV2K_train_HR",
        f"    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X{scale}",
        f"    filename_tmpl: '{{}}x{scale}'",
        "    io_backend: {type: disk}",
        f"    gt_size: {LR_PATCH * scale}  # {LR_PATCH} in LR",
        "    use_hflip: true",
        "    use_rot: true",
        "    batch_size_per_gpu: 16  # the batch of the paper; divide it by the number of GPUs",
        "    num_worker_per_gpu: 6",
        "    # BasicSR's workers repeat their random crops in every epoch: long epochs keep them fresh.",
        "    dataset_enlarge_ratio: 1000",
        "    prefetch_mode: ~",
        "  val:",
        *_benchmark("Set5", scale),
        "",
        *_network_g(net, scale),
        *(pcl.top if pcl else ()),
        "",
        "path:",
        f"  pretrain_network_g: {pretrained}",
        "  strict_load_g: true",
        "  resume_state: ~",
        *(pcl.path if pcl else ()),
        "",
        "train:",
        "  ema_decay: 0",
        "  optim_g:",
        "    type: Adam",
        f"    lr: {'5.0e-5' if finetune else '1.0e-4'}",
        "    weight_decay: 0",
        "    betas: [0.9, 0.999]",
        "  scheduler:",
        "    type: CosineAnnealingRestartLR",
        f"    periods: [{iterations}]",
        "    restart_weights: [1]",
        "    eta_min: 1.0e-7",
        f"  total_iter: {iterations}",
        "  warmup_iter: -1",
        "",
        *PIXEL_OPT,
        *(pcl.train if pcl else ()),
        "",
        "val:",
        "  val_freq: 5000",
        "  save_img: false",
        "  metrics:",
        *_metric("psnr", scale),
        "",
        "logger:",
        "  print_freq: 100",
        "  save_checkpoint_freq: 5000",
        "  use_tb_logger: true",
        "  wandb: {project: ~, resume_id: ~}",
        "",
        "dist_params: {backend: nccl, port: 29500}",
    ]
    return "\n".join(lines) + "\n"


def _test_file(name: str, net: Net, scale: int) -> str:
    lines = [
        f"name: {name}",
        f"model_type: {net.base_model}  # E_D is not needed any more",
        f"scale: {scale}",
        "num_gpu: auto",
        "manual_seed: 0",
        "",
        "datasets:",
    ]
    for number, benchmark in enumerate(BENCHMARKS, 1):
        lines += [f"  test_{number}:", *_benchmark(benchmark.name, scale)]
    lines += [
        "",
        *_network_g(net, scale),
        "",
        "path:",
        f"  pretrain_network_g: experiments/train_{net.name}_x{scale}_PCL/models/net_g_latest.pth",
        "  param_key_g: params  # params_ema for a network that was trained with ema_decay",
        "  strict_load_g: true",
        "",
        "val:",
        "  save_img: true",
        "  suffix: ~",
        "  metrics:",
    ]
    for metric in ("psnr", "ssim", "niqe", "lpips"):
        lines += _metric(metric, scale)
    return "\n".join(lines) + "\n"


def _network_g(net: Net, scale: int) -> list[str]:
    return ["network_g:", *(f"  {line.format(scale=scale)}" for line in net.block)]


def _benchmark(name: str, scale: int) -> list[str]:
    return [
        f"    name: {name}",
        "    type: PairedImageDataset",
        f"    dataroot_gt: datasets/benchmark/{name}/HR",
        f"    dataroot_lq: datasets/benchmark/{name}/LR_bicubic/X{scale}",
        f"    filename_tmpl: '{{}}x{scale}'",
        "    io_backend: {type: disk}",
    ]


def _metric(name: str, scale: int) -> list[str]:
    # LPIPS is published for whole images.
    border = 0 if name == "lpips" else scale
    more = {
        "psnr": "test_y_channel: true",
        "ssim": "test_y_channel: true",
        "niqe": "input_order: HWC, convert_to: y, better: lower",
        "lpips": "better: lower",
    }
    return [f"    {name}: {{type: calculate_{name}, crop_border: {border}, {more[name]}}}"]


def _readme(paths: list[str]) -> str:
    datasets = "\n".join(f"| {dataset.name} | {dataset.published} |" for dataset in (DIV2K, *BENCHMARKS))
    ablation = "\n".join(
        f"| `{path}` | {_ABLATION[path.split('/')[1].split('_')[0]]} |" for path in paths if "ablation/" in path
    )
    nets = "\n".join(
        f"| {net.name} | {', '.join(f'x{scale}' for scale in net.scales)} | {_NET_NOTES[net.name]} |" for net in NETS
    )
    return f"""# Option files

For `pcl-loss train -opt FILE` and `pcl-loss test -opt FILE`. Paths in them are relative to the folder from which you
start; `pcl-loss options --to DIR` copies the files out of an installed package. They are generated: a baseline and its
`_PCL` twin differ in the name, `model_type`, `network_d` and `pcl_opt` alone.

| file | what it is |
|---|---|
| `train/train_NET_xS.yml` | L1 from scratch: DIV2K, LR patches of {LR_PATCH}x{LR_PATCH}, batch 16, Adam, 200,000 iterations, flips and rotations (section 3.5 of the paper); learning rate 1e-4 with a cosine to 1e-7 (ours: the paper states none) |
| `train/train_NET_xS_PCL.yml` | the same with L1 + PCL |
| `train/finetune_NET_xS.yml` | 50,000 iterations from a pre-trained network, learning rate 5e-5; put it at `experiments/pretrained_models/NET_xS.pth` (`pcl-loss convert` makes it of an official checkpoint) |
| `train/finetune_NET_xS_PCL.yml` | the same with L1 + PCL |
| `test/test_NET_xS.yml` | PSNR and SSIM on Y, NIQE and LPIPS (`pip install 'pcl_loss[metrics]'`) on the five benchmarks |

| NET | scales | size |
|---|---|---|
{nets}

Table 4 of the paper, RCAN x4:

| file | what is different |
|---|---|
{ablation}

## Data

| set | published at |
|---|---|
{datasets}

Expected below the folder from which you start (DIV2K and the benchmark archive unpack to this):

```
datasets/DIV2K/DIV2K_train_HR/0001.png
datasets/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png
datasets/benchmark/Set5/HR/baby.png
datasets/benchmark/Set5/LR_bicubic/X4/babyx4.png
```

Where only HR images are at hand, `pcl-loss prepare --hr HRDIR --out DIR --scale 4` makes the LR images, of whole
images or of crops, and prints the lines to paste.
"""


_NET_NOTES = {
    "EDSR-S": "16 blocks, 64 channels",
    "EDSR-L": "32 blocks, 256 channels, `res_scale` 0.1",
    "RCAN": "10 groups of 20 blocks, 64 channels",
    "HAN": "10 groups of 20 blocks, 64 channels, layer and channel-spatial attention",
    "SwinIR": "6 x 6 blocks, 180 channels; `PCLSwinIRModel`",
}
_ABLATION = {
    "config1": "L1 alone",
    "config2": "features of a pre-trained VGG in place of E_D; blurred negatives",
    "config3": "the LR image as the only negative",
    "config4": "E_D sees the image itself, not its wavelet bands",
    "config5": "other images of the batch as negatives",
    "config6": "the default: E_D on wavelet bands, blurred negatives",
    "config7": f"a pre-trained, frozen E_D, which the paper proposes to save training time; from `{FROZEN_D}`",
}


def write_options(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write all option files below `folder`; returns their paths.

    Args:
        folder: made if it is missing.
        overwrite: replace files that are there with another text.

    Raises:
        FileExistsError: a file is there with another text, and `overwrite` is False; then nothing is written.
    """
    targets = {folder / path: text for path, text in option_files().items()}
    if not overwrite:
        for path, text in targets.items():
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise FileExistsError(f"{path} is there with another text; choose another folder, or pass --overwrite")
    for path, text in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pcl-loss options`."""
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write the option files to")
    parser.add_argument("--overwrite", action="store_true", help="replace files that you have changed")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss options`; returns the exit status."""
    paths = write_options(args.to, overwrite=args.overwrite)
    print(f"wrote {len(paths)} files below {args.to}; {args.to / 'README.md'} says what they are")
    return 0
