"""A short training with `pcl-loss`, as a stranger starts it; nothing of this package is imported here."""

from __future__ import annotations

MAKE_HR = """
from pathlib import Path
from skimage import data, io  # BasicSR brings scikit-image
for name in ("astronaut", "chelsea", "coffee", "rocket"):
    folder = Path("test" if name == "rocket" else "hr")
    folder.mkdir(exist_ok=True)
    io.imsave(folder / f"{name}.png", getattr(data, name)()[:288, :288])
"""
PREPARATION = (
    ("python", "-c", MAKE_HR),
    ("pcl-loss", "prepare", "--hr", "hr", "--out", "pairs", "--scale", "4", "--jobs", "1"),
    ("pcl-loss", "options", "--to", "options"),
)
"""Makes HR and LR images, and the option files, in the folder where it runs."""


def flags(file: str, name: str, iterations: int, batch: int, gt_size: int, **train: object) -> list[str]:
    """The flags of a training in the folder of `PREPARATION`.

    Args:
        file: the option file, without its ending.
        name: of the run.
        iterations: how many; the learning rate falls to its end within them.
        batch: images for each GPU.
        gt_size: of the HR patches, in pixels.
        train: more keys under `train:`.
    """
    values: dict[str, object] = {"name": name, "datasets:train:batch_size_per_gpu": batch}
    values |= {"datasets:train:gt_size": gt_size, "datasets:train:num_worker_per_gpu": 2}
    for phase in ("train", "val"):
        paths = {"dataroot_gt": "pairs/X4/HR", "dataroot_lq": "pairs/X4/LR", "filename_tmpl": "'{}'"}
        values |= {f"datasets:{phase}:{key}": value for key, value in paths.items()}
    values |= {"train:total_iter": iterations, "train:scheduler:periods": f"[{iterations}]"}
    values |= {"val:val_freq": iterations, "logger:save_checkpoint_freq": iterations}
    values |= {"logger:print_freq": max(1, iterations // 10)}
    values |= {f"train:{key}": value for key, value in train.items()}
    options = [f"{key}={value}" for key, value in values.items()]
    return ["-opt", f"options/train/{file}.yml", "--force_yml", *options]
