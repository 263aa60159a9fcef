"""A short training with `pcl-loss`, as a stranger starts it; nothing of this package is imported here."""

from __future__ import annotations

MAKE_HR = """
from pathlib import Path
from skimage import data, io  # BasicSR brings scikit-image
for name in ("astronaut", "chelsea", "coffee"):
    folder = Path("hr"); folder.mkdir(exist_ok=True)
    io.imsave(folder / f"{name}.png", getattr(data, name)()[:288, :288])
"""


PREPARATION = (
    ("python", "-c", MAKE_HR),
    ("pcl-loss", "prepare", "--hr", "hr", "--out", "pairs", "--scale", "4", "--jobs", "1"),
    ("pcl-loss", "options", "--to", "options"),
)
"""Makes HR and LR images, and the option files, in the folder where it runs."""


def command(launcher: list[str], iterations: int, batch: int, gt_size: int, **train: object) -> list[str]:
    """The command line of a training in the folder of `PREPARATION`.

    Args:
        launcher: what starts `pcl_loss.train`.
        iterations: how many.
        batch: images for each GPU.
        gt_size: of the HR patches, in pixels.
        train: more keys under `train:`.
    """
    values = {
        "name": "short",
        "datasets:train:batch_size_per_gpu": batch,
        "datasets:train:gt_size": gt_size,
        "datasets:train:num_worker_per_gpu": 2,
        **{
            f"datasets:{phase}:{key}": value
            for phase in ("train", "val")
            for key, value in (
                ("dataroot_gt", "pairs/X4/HR"),
                ("dataroot_lq", "pairs/X4/LR"),
                ("filename_tmpl", "'{}'"),
            )
        },
        "train:total_iter": iterations,
        "val:val_freq": iterations,
        "logger:print_freq": max(1, iterations // 10),
        "logger:save_checkpoint_freq": iterations,
        **{f"train:{key}": value for key, value in train.items()},
    }
    options = [f"{key}={value}" for key, value in values.items()]
    return [*launcher, "-opt", "options/train/train_EDSR-S_x4_PCL.yml", "--force_yml", *options]
