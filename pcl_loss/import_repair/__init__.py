"""Puts back what current packages took away from code that others wrote.

BasicSR 1.4.2, for one, imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 removed. Importing
this module puts back what BasicSR and its plugins need; `install(OLD_CODE)` also what still older code needs. It is
cheap: nothing is imported before it is asked for, a name that its package still has is left alone, and `USED` has what
was needed. It must happen in every process that imports such code, so at module level of the entry points, since the
workers of a spawning data loader import those again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Moved = Mapping[str, Mapping[str, tuple[str, str]]]

BASICSR: Moved = {
    "torchvision.transforms.functional_tensor": {
        "rgb_to_grayscale": ("torchvision.transforms.functional", "rgb_to_grayscale")
    },
    # HAT and DRCT import them from where BasicSR 1.3 had them.
    "basicsr.utils.matlab_functions": {
        name: ("basicsr.utils.color_util", name) for name in ("rgb2ycbcr", "bgr2ycbcr", "ycbcr2rgb", "ycbcr2bgr")
    },
}
"""Module -> its missing name -> the module that has it today, and the name there."""

OLD_CODE: Moved = {
    "scipy.misc": {"imread": ("imageio.v2", "imread"), "imsave": ("imageio.v2", "imwrite")},
    "numpy": {name: ("builtins", name) for name in ("bool", "complex", "float", "int", "object", "str")},
}

USED: list[str] = []
"""What was missing, asked for and put back."""


class _Finder(MetaPathFinder, Loader):
    """Looks for a module as the other finders do, and lets what `after` has for it run once it is imported."""

    def __init__(self) -> None:
        self.after: dict[str, list[Callable[[ModuleType], None]]] = {}
        self.instead: dict[str, Callable[[ModuleType, ImportError], bool]] = {}
        self.stand_ins: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.after and fullname not in self.instead:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is None:
            return ModuleSpec(fullname, self) if fullname in self.stand_ins else None
        if spec.loader is not None:
            spec.loader.exec_module = functools.partial(self._import, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but what `after` puts into the stand-in for a module that is gone."""
        self._import(lambda module: None, module)

    def _import(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        try:
            execute(module)
        except ImportError as error:
            instead = self.instead.get(module.__name__)
            if instead is None or not instead(module, error):
                raise
        for action in self.after.get(module.__name__, ()):
            action(module)


_finder = _Finder()


def install(moved: Moved = BASICSR) -> None:
    """Put names back where they are missing; calling it twice is harmless."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for module, names in moved.items():
        if module not in _finder.stand_ins:
            _finder.stand_ins.add(module)
            after_import(module, functools.partial(_offer, names=names))


def after_import(module: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action(module)` when the module has been imported; now, if it is there already."""
    _finder.after.setdefault(module, []).append(action)
    if module in sys.modules:
        action(sys.modules[module])


def instead_of_failing(module: str, action: Callable[[ModuleType, ImportError], bool]) -> None:
    """Where the import of the module ends in an ImportError, let `action` fill it; False from it means: it cannot."""
    _finder.instead[module] = action


def allow_no_version(package: str) -> None:
    """Let a fresh clone be imported: the set-up of BasicSR and its kin writes the `version.py` that they import."""
    _finder.stand_ins.add(f"{package}.version")
    after_import(f"{package}.version", _fill_version)


def _fill_version(module: ModuleType) -> None:
    if module.__loader__ is _finder:
        module.__dict__.update(__version__="unknown", __gitsha__="unknown")
        USED.append(module.__name__)


def _offer(module: ModuleType, names: Mapping[str, tuple[str, str]]) -> None:
    """Let the module have `names` where it is asked for them and has no such name itself (PEP 562)."""
    own = getattr(module, "__getattr__", None)

    def put_back(name: str) -> Any:
        if own is not None:
            try:
                return own(name)
            except AttributeError:
                if name not in names:
                    raise
        if name not in names:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        home, its_name = names[name]
        value = getattr(import_module(home), its_name)
        setattr(module, name, value)
        USED.append(f"{module.__name__}.{name}")
        return value

    module.__dict__["__getattr__"] = put_back


def is_used() -> bool:
    """Whether anything has been put back."""
    return bool(USED)


install()
