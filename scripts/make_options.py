# ruff: noqa: E501  (the rows of Markdown tables)
"""Writes `basicsr_options/`, all of it from one place: change the tables here, then `make options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pcl_loss._datasets import BENCHMARKS, DIV2K, LR_PATCH

PCL_OPT = "  pcl_opt:\n    type: PCLLoss\n    loss_weight: 1.0\n"
NETWORK_D = "network_d:\n  type: WaveletDiscriminator\n  num_in_ch: 3\n  num_feat: 64\n"
FROZEN_D = "experiments/train_RCAN_x4_PCL/models/net_d_latest.pth"


@dataclass(frozen=True)
class Net:
    """One SR network: its name in file names, what it is, its `network_g` block, and the models that train it."""

    name: str
    note: str
    block: tuple[str, ...]
    scales: tuple[int, ...] = (2, 3, 4)
    base_model: str = "SRModel"
    pcl_model: str = "PCLModel"


def _residual_net(name: str, note: str, *block: str) -> Net:
    shared = ("num_in_ch: 3", "num_out_ch: 3", "upscale: {scale}", "img_range: 255.")
    return Net(name, note, (*block, *shared, "rgb_mean: [0.4488, 0.4371, 0.4040]"))


_GROUPS = ("num_feat: 64", "num_group: 10", "num_block: 20", "squeeze_factor: 16")
_SWINIR = (
    *("type: SwinIR", "upscale: {scale}", "in_chans: 3", "img_size: 48", "window_size: 8", "img_range: 1."),
    *("depths: [6, 6, 6, 6, 6, 6]", "embed_dim: 180", "num_heads: [6, 6, 6, 6, 6, 6]", "mlp_ratio: 2"),
    *("upsampler: pixelshuffle", "resi_connection: 1conv"),
)
NETS = (
    _residual_net("EDSR-S", "16 blocks, 64 channels", "type: EDSR", "num_feat: 64", "num_block: 16", "res_scale: 1"),
    _residual_net(
        "EDSR-L",
        "32 blocks, 256 channels, `res_scale` 0.1",
        "type: EDSR",
        "num_feat: 256",
        "num_block: 32",
        "res_scale: 0.1",
    ),
    _residual_net("RCAN", "10 groups of 20 blocks, 64 channels", "type: RCAN", *_GROUPS),
    _residual_net(
        "HAN", "10 groups of 20 blocks, 64 channels, layer and channel-spatial attention", "type: HAN", *_GROUPS
    ),
    Net("SwinIR", "6 x 6 blocks, 180 channels; `PCLSwinIRModel`", _SWINIR, (4,), "SwinIRModel", "PCLSwinIRModel"),
)


class _Pcl(NamedTuple):
    """What a file with PCL has more than its baseline, at the top level, under `path:` and under `train:`."""

    top: str = ""
    path: str = ""
    train: str = ""


def _pcl(*knobs: str, network_d: str = NETWORK_D, frozen: bool = False) -> _Pcl:
    frozen_d, is_frozen = ("", "") if not frozen else (f"  pretrain_network_d: {FROZEN_D}\n", "  net_d_frozen: true\n")
    return _Pcl(f"\n{network_d}", frozen_d, f"\n{PCL_OPT}" + "".join(f"    {knob}\n" for knob in knobs) + is_frozen)


_VGG = "network_d:\n  type: VGGEmbedding\n  vgg: vgg19\n"
_RGB = f"{NETWORK_D}  wavelet: false\n"
_PRE_TRAINED = f"a pre-trained, frozen E_D, which the paper proposes to save training time; from `{FROZEN_D}`"
# Table 4: what is different, and what a file has more.
ABLATION = {
    "config1_L1": ("L1 alone", None),
    "config2_VGG_blur": ("features of a pre-trained VGG in place of E_D; blurred negatives", _pcl(network_d=_VGG)),
    "config3_lq": ("the LR image as the only negative", _pcl("negatives: ['lq']")),
    "config4_no_wavelet": ("E_D sees the image itself, not its wavelet bands", _pcl(network_d=_RGB)),
    "config5_batch": ("other images of the batch as negatives", _pcl("negatives: ['batch']")),
    "config6_default": ("the default: E_D on wavelet bands, blurred negatives", _pcl()),
    "config7_frozen_E_D": (_PRE_TRAINED, _pcl(frozen=True)),
}

LIGHT = _Pcl(train="\n  pcl_opt:\n    type: PCLLoss\n    recipe: light\n")


def option_files() -> dict[str, str]:
    """All option files: their path below `basicsr_options/`, and their text."""
    files = {}
    for net in NETS:
        for scale in net.scales:
            for start in ("train", "finetune"):
                for ending, pcl in (("", None), ("_PCL", _pcl())):
                    name = f"{start}_{net.name}_x{scale}{ending}"
                    files[f"train/{name}.yml"] = _train_file(name, net, scale, pcl, start)
            if scale == 4:
                name = f"train_{net.name}_x4_PCL_light"
                files[f"train/{name}.yml"] = _train_file(name, net, scale, LIGHT, "train")
            name = f"test_{net.name}_x{scale}"
            files[f"test/{name}.yml"] = _test_file(name, net, scale)
    rcan = next(net for net in NETS if net.name == "RCAN")
    for name, (_, pcl) in ABLATION.items():
        files[f"ablation/{name}.yml"] = _train_file(f"ablation_{name}", rcan, 4, pcl, "train")
    return files | {"README.md": _readme()}


def _train_file(name: str, net: Net, scale: int, pcl: _Pcl | None, start: str) -> str:
    is_finetuning = start == "finetune"
    iterations = 50000 if is_finetuning else 200000
    more = pcl or _Pcl()
    return f"""\
name: {name}
model_type: {net.pcl_model if pcl else net.base_model}
scale: {scale}
num_gpu: auto
manual_seed: 0

datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    # Crops of 480 (pcl-loss prepare --crop 480 --step 240) are read faster than whole images.
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X{scale}
    filename_tmpl: '{{}}x{scale}'
    io_backend: {{type: disk}}
    gt_size: {LR_PATCH * scale}  # {LR_PATCH} in LR
    use_hflip: true
    use_rot: true
    batch_size_per_gpu: 16  # the batch of the paper; divide it by the number of GPUs
    num_worker_per_gpu: 6
    # BasicSR's workers repeat their random crops in every epoch: long epochs keep them fresh.
    dataset_enlarge_ratio: 1000
    prefetch_mode: ~
  val:
{_benchmark("Set5", scale)}
{_network_g(net, scale)}{more.top}
path:
  pretrain_network_g: {f"experiments/pretrained_models/{net.name}_x{scale}.pth" if is_finetuning else "~"}
  strict_load_g: true
  resume_state: ~
{more.path}
train:
  ema_decay: 0
  optim_g:
    type: Adam
    lr: {"5.0e-5" if is_finetuning else "1.0e-4"}
    weight_decay: 0
    betas: [0.9, 0.999]
  scheduler:
    type: CosineAnnealingRestartLR
    periods: [{iterations}]
    restart_weights: [1]
    eta_min: 1.0e-7
  total_iter: {iterations}
  warmup_iter: -1

  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
{more.train}
val:
  val_freq: 5000
  save_img: false
  metrics:
{_metric("psnr", scale)}
logger:
  print_freq: 100
  save_checkpoint_freq: 5000
  use_tb_logger: true
  wandb: {{project: ~, resume_id: ~}}

dist_params: {{backend: nccl, port: 29500}}
"""


def _test_file(name: str, net: Net, scale: int) -> str:
    datasets = "".join(f"  test_{i}:\n{_benchmark(dataset.name, scale)}" for i, dataset in enumerate(BENCHMARKS, 1))
    return f"""\
name: {name}
model_type: {net.base_model}  # E_D is not needed any more
scale: {scale}
num_gpu: auto
manual_seed: 0

datasets:
{datasets}
{_network_g(net, scale)}
path:
  pretrain_network_g: experiments/train_{net.name}_x{scale}_PCL/models/net_g_latest.pth
  param_key_g: params  # params_ema for a network that was trained with ema_decay
  strict_load_g: true

val:
  save_img: true
  suffix: ~
  metrics:
{"".join(_metric(metric, scale) for metric in ("psnr", "ssim", "niqe", "lpips"))}"""


# Each of these blocks ends its last line.


def _network_g(net: Net, scale: int) -> str:
    return "network_g:\n" + "".join(f"  {line.format(scale=scale)}\n" for line in net.block)


def _benchmark(name: str, scale: int) -> str:
    return f"""\
    name: {name}
    type: PairedImageDataset
    dataroot_gt: datasets/benchmark/{name}/HR
    dataroot_lq: datasets/benchmark/{name}/LR_bicubic/X{scale}
    filename_tmpl: '{{}}x{scale}'
    io_backend: {{type: disk}}
"""


def _metric(name: str, scale: int) -> str:
    # LPIPS is published for whole images.
    border = 0 if name == "lpips" else scale
    more = {
        "psnr": "test_y_channel: true",
        "ssim": "test_y_channel: true",
        "niqe": "input_order: HWC, convert_to: y, better: lower",
        "lpips": "better: lower",
    }
    return f"    {name}: {{type: calculate_{name}, crop_border: {border}, {more[name]}}}\n"


def _readme() -> str:
    datasets = "\n".join(f"| {dataset.name} | {dataset.published} |" for dataset in (DIV2K, *BENCHMARKS))
    ablation = "\n".join(f"| `ablation/{name}.yml` | {note} |" for name, (note, _) in ABLATION.items())
    nets = "\n".join(f"| {net.name} | {', '.join(f'x{scale}' for scale in net.scales)} | {net.note} |" for net in NETS)
    return f"""# Option files

For `pcl-loss train -opt FILE` and `pcl-loss test -opt FILE`. Paths in them are relative to the folder from which you
start; `pcl-loss options --to DIR` copies the files out of an installed package. They are generated: a baseline and its
`_PCL` twin differ in the name, `model_type`, `network_d` and `pcl_opt` alone, a `_PCL_light` twin in the name,
`model_type` and `pcl_opt`.

| file | what it is |
|---|---|
| `train/train_NET_xS.yml` | L1 from scratch: DIV2K, LR patches of {LR_PATCH}x{LR_PATCH}, batch 16, Adam, 200,000 iterations, flips and rotations (section 3.5 of the paper); learning rate 1e-4 with a cosine to 1e-7 (ours: the paper states none) |
| `train/train_NET_xS_PCL.yml` | the same with L1 + PCL |
| `train/train_NET_x4_PCL_light.yml` | the same with L1 + the light recipe: few samples, a fixed embedding, no E_D |
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

If you have only HR images, `pcl-loss prepare --hr HRDIR --out DIR --scale 4` makes the LR images, of whole
images or of crops, and prints the lines to paste.
"""


if __name__ == "__main__":
    for path, text in option_files().items():
        target = Path(__file__).parents[1] / "basicsr_options" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
