"""Networks without storage: what they would take is known, and only PyTorch's refusal of that is let pass."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .yaml_values import Options, OptionsError

# Of one network: seconds to build. HAT-L, the largest one that is known here, has 1,700.
MOST_TENSORS = 5_000
# The words in which PyTorch says that a tensor on its device "meta" has no values, or that another one is elsewhere.
ASKS_FOR_STORAGE = re.compile(
    r"\bmeta (device type )?tensors?\b|\bdevice[ =]meta\b|\bdevices.* meta\b|\bat meta\b|'meta' backend|register_meta",
    re.IGNORECASE,
)


class Weightless(TorchFunctionMode):
    """Parameters have no storage, but numbers that a constructor reads are there; all are counted.

    Args:
        device: another one than "meta" gives them their storage all the same.
        most_bytes: how much that may be.
    """

    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __init__(self, device: str = "meta", most_bytes: float = float("inf")) -> None:
        super().__init__()
        self.device, self.most_bytes = device, most_bytes
        self.num_tensors = self.num_bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in self.FACTORIES:
            return func(*args, **kwargs)
        tensor = func(*args, **kwargs | {"device": "meta"})
        self.num_tensors += 1
        self.num_bytes += tensor.nbytes
        if self.num_tensors > MOST_TENSORS:
            raise MemoryError(f"it has more than {MOST_TENSORS} tensors")
        if self.num_bytes > self.most_bytes:
            raise MemoryError(f"it has more than {self.most_bytes / 1e9:.2g} GB of weights")
        return tensor if self.device == "meta" else func(*args, **kwargs)


def check_memory(opt: Options, what: str, needed: int, knobs: str) -> None:
    """Refuse what no memory holds; what is far from that passes, since nothing but its sizes is known.

    Args:
        opt: BasicSR's options.
        what: how it is called.
        needed: the least number of bytes that it takes.
        knobs: what to lower.

    Raises:
        OptionsError: the GPU, or without one the machine, has less.
    """
    has, memory = memory_of(opt)
    if needed > memory:
        raise OptionsError(
            f"{what} takes {needed / 1e9:.3g} GB or more, but {has} has {memory / 1e9:.3g} GB; lower {knobs}"
        )


def memory_of(opt: Options) -> tuple[str, float]:
    """What holds the networks, and its bytes; infinite where nobody tells."""
    if torch.cuda.is_available() and opt["num_gpu"] != 0:
        return "the GPU", torch.cuda.get_device_properties(0).total_memory
    try:
        return "this machine", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows
        return "this machine", float("inf")


def asks_for_storage(error: Exception) -> bool:
    """Whether PyTorch says so of a tensor on its device "meta"."""
    return isinstance(error, (RuntimeError, TypeError)) and ASKS_FOR_STORAGE.search(str(error)) is not None
