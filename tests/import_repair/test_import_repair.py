"""BasicSR can be imported with a torchvision that lacks what it asks for, and nothing else is changed."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_repair_imports_neither_torchvision_nor_basicsr() -> None:
    code = "import sys, pcl_loss.import_repair; print({'torchvision', 'basicsr'} & set(sys.modules))"
    assert run(code) == "set()"


@pytest.mark.skipif(find_spec("basicsr") is None, reason="BasicSR is not installed")
def test_basicsr_imports_after_the_repair() -> None:
    assert run("import pcl_loss.import_repair, basicsr.data.degradations; print('imported')") == "imported"


def test_a_torchvision_that_has_the_module_keeps_its_own() -> None:
    code = """
import sys, types, importlib.abc, importlib.machinery
class Own(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == 'torchvision.transforms.functional_tensor':
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        module.rgb_to_grayscale = 'its own'
sys.meta_path.insert(0, Own())
import pcl_loss.import_repair
from torchvision.transforms.functional_tensor import rgb_to_grayscale
print(rgb_to_grayscale)
"""
    assert run(code) == "its own"


def test_installing_twice_adds_one_finder() -> None:
    code = (
        "import sys; from pcl_loss import import_repair; n = len(sys.meta_path); "
        "import_repair.install(); print(len(sys.meta_path) - n)"
    )
    assert run(code) == "0"
