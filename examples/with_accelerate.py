"""Super-resolution with Hugging Face Accelerate: several processes, mixed precision, accumulation, checkpoints.

    pip install accelerate
    accelerate launch examples/with_accelerate.py [ITERATIONS]

`PCLCriterion` is not handed to `accelerator.prepare`: it averages E_D over the processes by itself.
"""

import sys

import torch
from _data import sr_batches
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pcl_loss import PCLCriterion


def main(iterations: int) -> None:
    """Train for so many batches."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    torch.manual_seed(0)
    net_g = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, 1, 1), nn.PixelShuffle(4))
    optimizer = torch.optim.Adam(net_g.parameters(), lr=1e-3)
    pairs = [pair for lq, hr in sr_batches(iterations) for pair in zip(lq, hr, strict=True)]
    net_g, optimizer, loader = accelerator.prepare(net_g, optimizer, DataLoader(pairs, batch_size=4))
    pcl = PCLCriterion(num_feat=16, update_every=2).to(accelerator.device)
    accelerator.register_for_checkpointing(pcl)  # accelerator.save_state() and load_state() then keep E_D too

    for lq, hr in loader:
        with accelerator.accumulate(net_g), accelerator.autocast():
            sr = net_g(lq) + F.interpolate(lq, scale_factor=4, mode="bicubic")
            l_pix = F.l1_loss(sr, hr)
            accelerator.backward(l_pix + pcl(sr, hr, lq))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.print(f"l_pix {l_pix.item():.4f}  margin {pcl.log['margin'].item():+.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
