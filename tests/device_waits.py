"""Counts what makes the CPU wait for a GPU, without one: on fake CUDA tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.item.default, aten.equal.default, aten.nonzero.default}


class WaitCounter(TorchDispatchMode):
    """While it is open, notes each read of a tensor's value and each copy between CPU and GPU that blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READS and args[0].device.type == "cuda":
            self.waits.append(f"{func} reads a value")
        if func in (aten._to_copy.default, aten.copy_.default):
            in_place = func is aten.copy_.default
            source = args[1] if in_place else args[0]
            target = args[0].device if in_place else torch.device(kwargs.get("device") or source.device)
            goes_on = args[2:] == (True,) if in_place else kwargs.get("non_blocking")
            if source.device.type != target.type and not goes_on:
                self.waits.append(f"{func} from {source.device.type} to {target.type}, {tuple(source.shape)}")
        return func(*args, **kwargs)


class Reads(TorchDispatchMode):
    """Counts the tensors, on whatever device, of which Python reads the value."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
