"""Lets BasicSR 1.4.2 be imported with today's torchvision.

BasicSR imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 removed. Importing this module
stands in for it. It is cheap (neither package is imported) and must happen in every process that imports BasicSR, at
module level of the entry points, since the workers of a spawning data loader import those again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MISSING = "torchvision.transforms.functional_tensor"


class _Finder(MetaPathFinder, Loader):
    """Finds `MISSING` alone; last in line, so that a torchvision that has the module is left as it is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == MISSING else None

    def exec_module(self, module: ModuleType) -> None:
        from torchvision.transforms.functional import rgb_to_grayscale

        module.__dict__["rgb_to_grayscale"] = rgb_to_grayscale  # all that BasicSR takes from it


def install() -> None:
    """Stand in for the missing module; calling it twice is harmless."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def is_used() -> bool:
    """Whether something has imported the stand-in, for lack of the module itself."""
    spec = getattr(sys.modules.get(MISSING), "__spec__", None)
    return isinstance(getattr(spec, "loader", None), _Finder)


install()
