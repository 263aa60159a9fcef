"""What the ranks of torch.distributed say to each other."""

from __future__ import annotations

import torch


def is_distributed() -> bool:
    """Whether this process is one of a torch.distributed group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
