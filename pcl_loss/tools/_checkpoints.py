"""Checkpoint files: the only place of the tools where one is read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


def read(path: str | Path) -> dict[Any, Any]:
    """The dict in a checkpoint, on the CPU: a bare state dict, or BasicSR's, with one under `params` or `params_ema`.

    Tensors and plain Python values alone are loaded; no code in the file is run.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        ValueError: the file is of another kind.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # The unpickler fails on foreign bytes in a dozen ways.
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds Python objects, not only tensors (a whole module, as torch.save(net) writes it?); it is "
                "not loaded, since that could run any code in it. Have it saved as torch.save(net.state_dict(), ...)"
            ) from error
        raise ValueError(
            f"{path} is no readable checkpoint: not written by torch.save, incomplete, or a TorchScript archive "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    if "optimizers" in content and "schedulers" in content:
        raise ValueError(
            f"{path} is a training state of BasicSR, which holds no network; take models/net_g_*.pth of the experiment"
        )
    if "param_groups" in content:
        raise ValueError(f"{path} is the state of an optimizer, which holds no network; take model/model_*.pt")
    if "state_dict" in content:
        raise ValueError(
            f"{path} is no bare state dict but holds one under 'state_dict'; save that one to a file of its own"
        )
    return content
