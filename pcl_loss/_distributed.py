"""What the ranks of torch.distributed say to each other. Every rank must make the same calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of a torch.distributed group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """The number of this process in its group; 0 without one."""
    return torch.distributed.get_rank() if is_distributed() else 0


def average(tensors: Sequence[Tensor]) -> None:
    """Average tensors of one dtype over the ranks, in place and in one message; alone, nothing happens."""
    if not tensors or not is_distributed():
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(mean.view_as(tensor))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank the tensors of rank 0, in place; alone, nothing happens."""
    if is_distributed():
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), 0)


def gather(values: Tensor) -> Tensor:
    """The values of all ranks, flattened, one rank after the other; each rank must hold as many. The gradient of this
    rank's own values is that of a function of all, once it is averaged over the ranks.
    """
    own = values.flatten()
    if not is_distributed():
        return own
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, own.detach())
    gathered[rank()] = own.detach() + len(gathered) * (own - own.detach())
    return torch.cat(gathered)
