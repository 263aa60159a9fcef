"""Puts back what current packages took away from code that others wrote; nothing is imported before it is asked for.

Importing this module does so for BasicSR; `install(OLD_CODE)` for still older code. It must happen in every process
that imports such code, so at module level of the entry points, which workers that are spawned import again.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy

Moved = Mapping[str, Mapping[str, tuple[str, str]]]

GRAY = "rgb_to_grayscale"
BASICSR: Moved = {"torchvision.transforms.functional_tensor": {GRAY: ("torchvision.transforms.functional", GRAY)}}
"""A module that is gone -> its names -> the module that has each today, and the name there."""

OLD_CODE: Moved = {"scipy.misc": {"imread": ("imageio.v2", "imread"), "imsave": ("imageio.v2", "imwrite")}}


def install(moved: Moved = BASICSR) -> None:
    """Put modules back; calling it twice is harmless."""
    for name, names in moved.items():
        if name not in sys.modules:
            sys.modules[name] = module = ModuleType(name)
            module.__dict__["__getattr__"] = _offer(module, names)  # PEP 562


def _offer(module: ModuleType, names: Mapping[str, tuple[str, str]]) -> Any:
    def put_back(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        home, its_name = names[name]
        value = getattr(import_module(home), its_name)
        setattr(module, name, value)
        return value

    return put_back


def put_back_colours() -> None:
    """Let `basicsr.utils.matlab_functions` have what plugins of BasicSR 1.3 (HAT, DRCT) import from it."""
    if find_spec("basicsr.utils.matlab_functions"):
        home, module = import_module("basicsr.utils"), import_module("basicsr.utils.matlab_functions")
        for name in ("rgb2ycbcr", "bgr2ycbcr", "ycbcr2rgb", "ycbcr2bgr"):
            if not hasattr(module, name):
                setattr(module, name, getattr(home, name, None))


def put_back_types() -> None:
    """Let NumPy have its names of Python's types, such as `numpy.float`."""
    for name in ("bool", "complex", "float", "int", "object", "str"):
        if name not in vars(numpy):
            setattr(numpy, name, getattr(builtins, name))


install()
