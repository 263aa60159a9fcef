"""What each of several distributed processes does; a module of its own, since spawned processes import it by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from helpers import rand, randn, snapshot
from torch import Tensor, nn

from pcl_loss.functional import contrastive_discriminator_loss

NUM_STEPS = 2
LR = 1e-2


def images_of(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Every rank and step has its own sr and hr."""
    return rand(2, 3, 32, 32, seed=100 + 10 * step + rank), rand(2, 3, 32, 32, seed=200 + 10 * step + rank)


def logit_inputs_of(rank: int) -> tuple[Tensor, Tensor]:
    return randn(3, 5, seed=300 + rank), randn(2, 5, seed=400 + rank)


def norms_of(rank: int) -> Tensor:
    """Norms of the gradients of L_1 and of L_CL at three steps, `(3, 2)`."""
    return 0.1 + rand(3, 2, seed=600 + rank)


def start_weights() -> Tensor:
    return randn(5, seed=500)


def model_steps(rank: int, world_size: int) -> list[dict[str, dict[str, Tensor]]]:
    """What steps of a PCLModel make of E_D, and what this rank's own batch alone would have made of it."""
    from pcl_loss.basicsr_plugin import PCLModel, register

    from basicsr.models.base_model import BaseModel  # isort: skip  (it needs what our import has put back)

    register()
    BaseModel.model_to_device = lambda self, net: nn.parallel.DistributedDataParallel(net)  # BasicSR's own pins a GPU
    model = PCLModel(
        {
            "is_train": True,
            "dist": True,
            "rank": rank,
            "world_size": world_size,
            "num_gpu": 0,
            # Another E_D on every rank, if nothing made them equal.
            "manual_seed": rank,
            "network_g": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1},
            "network_d": {"type": "WaveletDiscriminator", "num_feat": 2},
            "path": {},
            "train": {
                "optim_g": {"type": "Adam", "lr": LR},
                "scheduler": {"type": "MultiStepLR", "milestones": [100]},
                "pixel_opt": {"type": "L1Loss"},
                "pcl_opt": {"type": "PCLLoss"},
            },
        }
    )
    steps = []
    for step in range(NUM_STEPS):
        gt = images_of(rank, step)[1].float()
        before = copy.deepcopy(model.net_d)
        model.feed_data({"lq": gt[..., ::4, ::4], "gt": gt})
        model.optimize_parameters(step + 1)
        real, fake = before(torch.cat([gt, model.output])).chunk(2)
        contrastive_discriminator_loss(real, fake).backward()
        grads, own_grads = ({name: p.grad for name, p in net.named_parameters()} for net in (model.net_d, before))
        steps.append({"net_d": snapshot(model.net_d), "own": snapshot(before), "grads": grads, "own_grads": own_grads})
    return steps


def inside_or_beside_ddp(rank: int, inside: bool, update_every: int) -> dict[str, Tensor]:
    """E_D after NUM_STEPS steps of a network under DistributedDataParallel, with the criterion in it or not."""
    from pcl_loss import PCLCriterion

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 3, 3, padding=1)
            self.pcl = PCLCriterion(num_feat=2, lr=LR, update_every=update_every) if inside else None

        def forward(self, x: Tensor, hr: Tensor) -> Tensor:
            return self.net(x) if self.pcl is None else self.pcl(self.net(x), hr)

    torch.manual_seed(0)
    model = WithLoss()
    pcl = model.pcl or PCLCriterion(num_feat=2, lr=LR, update_every=update_every)
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(ddp.parameters())
    for step in range(NUM_STEPS):
        x, hr = (images.float() for images in images_of(rank, step))
        loss = ddp(x, hr) if inside else pcl(ddp(x, hr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return snapshot(pcl)


def work(rank: int, world_size: int, directory: str) -> None:
    """The process of one rank; it leaves its results in a file."""
    from pcl_loss import ContrastiveDiscriminatorLoss, PCLCriterion
    from pcl_loss.basicsr_plugin.speed import GradientBalance

    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    results: dict[str, Any] = {}

    torch.manual_seed(rank)
    criterion = PCLCriterion(num_feat=2, lr=LR).double()
    results["built"] = snapshot(criterion.embedding)
    # A call without a gradient trains nothing, and so shows what E_D starts from.
    criterion(*images_of(rank, 0))
    results["started"] = snapshot(criterion.embedding)
    results["steps"] = []
    for step in range(NUM_STEPS):
        sr, hr = images_of(rank, step)
        criterion(sr.requires_grad_(), hr).backward()
        results["steps"].append(snapshot(criterion.embedding))
    sr, hr = images_of(rank, NUM_STEPS)
    if rank == 1:
        sr[0, 0, 0, 0] = float("nan")
    criterion(sr.requires_grad_(), hr)
    results["after_a_spoilt_batch_on_rank_1"] = snapshot(criterion.embedding)

    weights = start_weights().requires_grad_()
    real, fake = (x @ weights for x in logit_inputs_of(rank))
    loss = ContrastiveDiscriminatorLoss(gather=True)(real, fake)
    loss.backward()
    results["gathered_loss"] = loss.detach()
    results["gathered_grad"] = weights.grad

    balance = GradientBalance(0.5)
    results["balanced_weights"] = torch.stack([balance(*norms) for norms in norms_of(rank)])

    for update_every in (1, 2):
        for where in ("inside", "beside"):
            results[f"{where}_ddp_{update_every}"] = inside_or_beside_ddp(rank, where == "inside", update_every)

    results["model_steps"] = model_steps(rank, world_size)

    torch.save(results, Path(directory) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
