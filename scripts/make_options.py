"""Writes the YAMLs of `basicsr_options/`, all from one place: change the tables here, then `make options`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

LR_PATCH = 48  # section 3.5 of the paper
BENCHMARKS = ("Set5", "Set14", "B100", "Urban100", "Manga109")

# The `network_g` of each SR network, by its name in file names.
_RESIDUAL = "num_in_ch: 3; num_out_ch: 3; upscale: {scale}; img_range: 255.; rgb_mean: [0.4488, 0.4371, 0.4040]"
_GROUPS = "num_feat: 64; num_group: 10; num_block: 20; squeeze_factor: 16"
NETS = {
    "EDSR-S": f"type: EDSR; num_feat: 64; num_block: 16; res_scale: 1; {_RESIDUAL}",
    "EDSR-L": f"type: EDSR; num_feat: 256; num_block: 32; res_scale: 0.1; {_RESIDUAL}",
    "RCAN": f"type: RCAN; {_GROUPS}; {_RESIDUAL}",
    "HAN": f"type: HAN; {_GROUPS}; {_RESIDUAL}",
    "SwinIR": "type: SwinIR; upscale: {scale}; in_chans: 3; img_size: 48; window_size: 8; img_range: 1.; "
    "depths: [6, 6, 6, 6, 6, 6]; embed_dim: 180; num_heads: [6, 6, 6, 6, 6, 6]; mlp_ratio: 2; "
    "upsampler: pixelshuffle; resi_connection: 1conv",
}


class Pcl(NamedTuple):
    """What a file with PCL has more than its baseline, at the top level, under `path:` and under `train:`."""

    top: str = "\nnetwork_d:\n  type: WaveletDiscriminator\n  num_in_ch: 3\n  num_feat: 64\n"
    path: str = ""
    train: str = "\n  pcl_opt:\n    type: PCLLoss\n    loss_weight: 1.0\n"
    model: str = ""  # by default PCL's own for the network


PCL = Pcl()
LIGHT = Pcl(top="", train="\n  pcl_opt:\n    type: PCLLoss\n    recipe: light\n")
# Real-ESRGAN's discriminator; docs/gan.md says why not its weight of the GAN. SRGANModel takes the same keys.
GAN = Pcl(
    model="ESRGANModel",
    top="\nnetwork_d:\n  type: UNetDiscriminatorSN\n  num_in_ch: 3\n  num_feat: 64\n",
    train="\n  perceptual_opt: {type: PCLPerceptualLoss, recipe: light}\n"
    "  gan_opt: {type: GANLoss, gan_type: vanilla, loss_weight: 5.0e-3}\n"
    "  optim_d: {type: Adam, lr: 1.0e-4, betas: [0.9, 0.999]}\n",
)
# Table 4 of the paper, with RCAN x4.
ABLATION = {
    "config1_L1": None,
    "config2_VGG_blur": PCL._replace(top="\nnetwork_d:\n  type: VGGEmbedding\n  vgg: vgg19\n"),
    "config3_lq": PCL._replace(train=f"{PCL.train}    negatives: ['lq']\n"),
    "config4_no_wavelet": PCL._replace(top=f"{PCL.top}  wavelet: false\n"),
    "config5_batch": PCL._replace(train=f"{PCL.train}    negatives: ['batch']\n"),
    "config6_default": PCL,
    "config7_frozen_E_D": PCL._replace(
        path="  pretrain_network_d: experiments/train_RCAN_x4_PCL/models/net_d_latest.pth\n",
        train=f"{PCL.train}  net_d_frozen: true\n",
    ),
}


def option_files() -> dict[str, str]:
    """All YAMLs: their path below `basicsr_options/`, and their text."""
    files = {}
    for net in NETS:
        for scale in (4,) if net == "SwinIR" else (2, 3, 4):
            light = {"_PCL_light": LIGHT} if scale == 4 else {}
            for ending, pcl in {"": None, "_PCL": PCL, **light}.items():
                name = f"train_{net}_x{scale}{ending}"
                files[f"train/{name}.yml"] = _train_file(name, net, scale, pcl)
            files[f"test/test_{net}_x{scale}.yml"] = _test_file(net, scale)
    gan = _train_file("gan_EDSR-S_x4_light", "EDSR-S", 4, GAN)
    files["train/gan_EDSR-S_x4_light.yml"] = gan.replace("_g: ~", "_g: experiments/pretrained_models/EDSR-S_x4.pth")
    for name, pcl in ABLATION.items():
        files[f"ablation/{name}.yml"] = _train_file(f"ablation_{name}", "RCAN", 4, pcl)
    return files


def _model_type(net: str, pcl: bool = False) -> str:
    prefix = "PCL" if pcl else ""
    return f"{prefix}SwinIRModel" if net == "SwinIR" else f"{prefix or 'SR'}Model"


def _train_file(name: str, net: str, scale: int, pcl: Pcl | None) -> str:
    more = pcl or Pcl("", "", "")
    return f"""\
name: {name}
model_type: {more.model or _model_type(net, pcl is not None)}
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
    # The workers start anew with each epoch: long ones save time.
    dataset_enlarge_ratio: 1000
    prefetch_mode: ~
  val:
{_benchmark("Set5", scale)}
{_network_g(net, scale)}{more.top}
path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~
{more.path}
train:
  ema_decay: 0
  optim_g:
    type: Adam
    lr: 1.0e-4
    weight_decay: 0
    betas: [0.9, 0.999]
  scheduler:
    type: CosineAnnealingRestartLR
    periods: [200000]
    restart_weights: [1]
    eta_min: 1.0e-7
  total_iter: 200000
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


def _test_file(net: str, scale: int) -> str:
    datasets = "".join(f"  test_{i}:\n{_benchmark(benchmark, scale)}" for i, benchmark in enumerate(BENCHMARKS, 1))
    return f"""\
name: test_{net}_x{scale}
model_type: {_model_type(net)}  # E_D is not needed any more
scale: {scale}
num_gpu: auto
manual_seed: 0

datasets:
{datasets}
{_network_g(net, scale)}
path:
  pretrain_network_g: experiments/train_{net}_x{scale}_PCL/models/net_g_latest.pth
  param_key_g: params  # params_ema for a network that was trained with ema_decay
  strict_load_g: true

val:
  save_img: true
  suffix: ~
  metrics:
{"".join(_metric(metric, scale) for metric in ("psnr", "ssim", "niqe", "lpips"))}"""


# Each of these blocks ends its last line.


def _network_g(net: str, scale: int) -> str:
    return "network_g:\n" + "".join(f"  {line}\n" for line in NETS[net].format(scale=scale).split("; "))


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


if __name__ == "__main__":
    for path, text in option_files().items():
        target = Path(__file__).parents[1] / "basicsr_options" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
