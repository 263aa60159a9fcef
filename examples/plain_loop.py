"""Super-resolution in plain PyTorch, with mixed precision, gradient accumulation and a resume.

    python examples/plain_loop.py [ITERATIONS]

What PCL adds to the loop is marked with `# PCL`: three lines, and two for the checkpoint.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _data import sr_batches
from torch import nn
from torch.nn import functional as F

from pcl_loss import PCLCriterion

ACCUMULATE = 2  # batches per step

device = "cuda" if torch.cuda.is_available() else "cpu"
amp_dtype = torch.float16 if device == "cuda" else torch.bfloat16


def build_net_g() -> nn.Module:
    """A very small x4 network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.PixelShuffle(4)
    ).to(device)


def train(iterations: int, checkpoint: Path) -> None:
    """Train from the checkpoint, if it is there, for so many batches; then write it."""
    net_g = build_net_g()
    optimizer = torch.optim.Adam(net_g.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device, enabled=amp_dtype is torch.float16)
    pcl = PCLCriterion(num_feat=16, update_every=ACCUMULATE).to(device)  # PCL
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        net_g.load_state_dict(state["net_g"])
        optimizer.load_state_dict(state["optimizer"])
        pcl.load_state_dict(state["pcl"])  # PCL

    for iteration, (lq, hr) in enumerate(sr_batches(iterations), 1):
        lq, hr = lq.to(device), hr.to(device)
        with torch.autocast(device, amp_dtype):
            sr = net_g(lq) + F.interpolate(lq, scale_factor=4, mode="bicubic")
            l_pix = F.l1_loss(sr, hr)
            loss = l_pix + pcl(sr, hr, lq)  # PCL
        scaler.scale(loss / ACCUMULATE).backward()
        if iteration % ACCUMULATE == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            log = {"l_pix": l_pix, **{key: pcl.log[key] for key in ("l_pcl", "margin", "l_d")}}
            print(f"{iteration:4d}  " + "  ".join(f"{key} {float(value):.4f}" for key, value in log.items()))
    torch.save(
        {"net_g": net_g.state_dict(), "optimizer": optimizer.state_dict(), "pcl": pcl.state_dict()},  # PCL
        checkpoint,
    )


if __name__ == "__main__":
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with TemporaryDirectory() as folder:
        train(iterations, Path(folder, "checkpoint.pt"))
        print("resumed")
        train(iterations, Path(folder, "checkpoint.pt"))
