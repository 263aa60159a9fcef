"""What the tests of `report` share: tiny nets and their experiments, the command line, and numbers by hand."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
import yaml

from pcl_loss import basicsr_plugin  # noqa: F401
from pcl_loss.tools import report

# isort: split
from basicsr.archs.edsr_arch import EDSR
from basicsr.utils.matlab_functions import imresize

NETWORK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 4}


def part(name: str, height: int, width: int) -> np.ndarray:
    """A part of a free photograph, BGR."""
    return np.ascontiguousarray(getattr(skimage.data, name)()[60 : 60 + height, 120 : 120 + width, ::-1])


def edsr(seed: int, **options: Any) -> EDSR:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EDSR(**{key: value for key, value in (NETWORK | options).items() if key != "type"}).eval()


def write_experiment(folder: Path, seed: int, yml: bool = True, **more: Any) -> Path:
    """What BasicSR leaves of a training; returns the checkpoint."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    path = folder / "models" / "net_g_latest.pth"
    torch.save({"params": edsr(seed).state_dict()} | more, path)
    if yml:
        options = {"name": folder.name, "scale": 4, "network_g": NETWORK, "network_d": {"type": "NoSuchNet"}}
        (folder / f"{folder.name}.yml").write_text(yaml.safe_dump(options))
    return path


A, B = "--net=EDSR-S=a/models/net_g_latest.pth", "--net=EDSR-S+PCL=b/models/net_g_latest.pth"
SET5, SET14 = "--set=Set5=Set5/HR", "--set=Set14=Set14/HR"


def call(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([*flags, "--device=cpu"]))


def table(text: str, number: int) -> dict[str, list[str]]:
    """The cells of a Markdown table by the first of each row."""
    part = text.split("\n## ")[number]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in part.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def luma(bgr: np.ndarray) -> np.ndarray:
    blue, green, red = (bgr[4:-4, 4:-4, channel].astype(np.float64) / 255 for channel in range(3))
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((luma(sr) - luma(hr)) ** 2).mean()))


def run_by_hand(net: EDSR, lr: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(lr[..., ::-1].transpose(2, 0, 1)))[None].float() / 255
        return (net(x)[0].clamp(0, 1) * 255).round().byte().numpy().transpose(1, 2, 0)[..., ::-1]


def expected_psnr(place: Path, path: str, seed: int | None) -> float:
    hr = cv2.imread(str(place / path))
    hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
    lr = (imresize(hr.astype(np.float32) / 255, 1 / 4).clip(0, 1) * 255).round().astype(np.uint8)
    if seed is None:
        sr = (imresize(lr.astype(np.float32) / 255, 4).clip(0, 1) * 255).round()
    else:
        sr = run_by_hand(edsr(seed), lr)
    return psnr(sr, hr)
