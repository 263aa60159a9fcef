"""Train the small EDSR that the demo starts from: `python scripts/train_demo_net.py PHOTOGRAPHS OUT`.

L1 alone, x4, on photographs under free licences; `pcl_loss/tools/demo/README.md` names them, and has the command and
the figures of the weights that are shipped. The first part of the iterations runs in bfloat16, the last in float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pcl_loss.tools._images import read_image, resize

# isort: split
from basicsr.archs.edsr_arch import EDSR

SCALE, PATCH, BATCH = 4, 24, 16
LR, LR_END, AVERAGE = 5e-4, 1e-6, 0.999
FLOAT32_SHARE = 0.27  # of the iterations
# Longer side of a photograph from which on it is made smaller by 3, and otherwise by 2: JPEG's blocks disappear.
LARGE = 2000


def load_pair(file: Path) -> list[Tensor]:
    """HR and LR of a photograph, RGB, `(3, H, W)` in 0-255 as bytes."""
    photo = read_image(file)
    factor = 3 if max(photo.shape) > LARGE else 2
    height, width = (side // factor // SCALE * SCALE for side in photo.shape[:2])
    hr = np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    images = (hr, resize(hr, 1 / SCALE))
    return [torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))) for image in images]


def draw_patches(pairs: list[list[Tensor]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of HR and LR patches in [0, 1]: the place by area, flipped and turned."""
    areas = torch.tensor([float(lr.shape[1] * lr.shape[2]) for _, lr in pairs])
    batch: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in torch.multinomial(areas, BATCH, replacement=True, generator=generator).tolist():
        sides = pairs[index][1].shape[1:]
        top, left = (int(torch.randint(side - PATCH + 1, (), generator=generator)) for side in sides)
        flip, turn = int(torch.randint(2, (), generator=generator)), int(torch.randint(4, (), generator=generator))
        for image, factor, patches in zip(pairs[index], (SCALE, 1), batch, strict=True):
            rows, columns = (slice(start * factor, (start + PATCH) * factor) for start in (top, left))
            patch = image[:, rows, columns]
            patches.append(torch.rot90(patch.flip(2) if flip else patch, turn, (1, 2)))
    return torch.stack(batch[0]) / 255, torch.stack(batch[1]) / 255


def main() -> None:
    """Train, and write the moving average of the weights."""
    parser = argparse.ArgumentParser(description="Train the small EDSR that the demo starts from.")
    parser.add_argument("photographs", type=Path, help="folder of JPEG files")
    parser.add_argument("out", type=Path, help="the weights, a .pth file")
    parser.add_argument("--iters", type=int, default=30000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    pairs = [load_pair(file) for file in sorted(arguments.photographs.glob("*.jpg"))]
    net = EDSR(3, 3, num_feat=32, num_block=8, upscale=SCALE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), LR, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.iters, LR_END)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE))
    for iteration in range(1, arguments.iters + 1):
        hr, lr = draw_patches(pairs, generator)
        is_bfloat16 = iteration <= (1 - FLOAT32_SHARE) * arguments.iters
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            sr = net(lr.to(memory_format=torch.channels_last))
        loss = F.l1_loss(sr.float(), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(net)
        if iteration % 500 == 0 or iteration == arguments.iters:
            torch.save({"params": average.module.state_dict()}, arguments.out)
            print(f"{iteration} of {arguments.iters}: L1 {loss.item():.5f}", flush=True)


if __name__ == "__main__":
    main()
