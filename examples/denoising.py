"""The same loss on another task: Gaussian denoising of colour photographs.

    python examples/denoising.py [ITERATIONS]

Nothing in the loss knows of super-resolution: the blurred negatives push the network away from over-smooth results,
and the noisy input can serve as a negative where the LR image does in super-resolution.
"""

import sys

import torch
from _data import hr_batches
from torch import nn
from torch.nn import functional as F

from pcl_loss import PCLCriterion

SIGMA = 25 / 255

device = "cuda" if torch.cuda.is_available() else "cpu"


def main(iterations: int) -> None:
    """Train for so many batches, and print the PSNR on the last ones against that of the noisy images."""
    torch.manual_seed(0)
    denoise = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, 1, 1)
    ).to(device)
    optimizer = torch.optim.Adam(denoise.parameters(), lr=2e-3)
    pcl = PCLCriterion(num_feat=16, negatives=("blur", "lq")).to(device)
    for iteration, clean in enumerate(hr_batches(iterations, size=64), 1):
        clean = clean.to(device)
        noisy = clean + SIGMA * torch.randn_like(clean)
        result = noisy - denoise(noisy)
        loss = F.l1_loss(result, clean) + pcl(result, clean, noisy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % max(iterations // 10, 1) == 0:
            margin = float(pcl.log["margin"])
            print(
                f"{iteration:4d}  margin {margin:+.3f}  PSNR: noisy {psnr(noisy, clean):.2f} dB, "
                f"denoised {psnr(result, clean):.2f} dB"
            )


def psnr(image: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB, over the whole batch, for images in [0, 1]."""
    return float(-10 * torch.log10(F.mse_loss(image.detach().clamp(0, 1), reference)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
