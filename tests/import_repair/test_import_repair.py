"""What is gone from torchvision is put back where it is asked for, and nothing is imported before."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_repair_imports_neither_torchvision_nor_basicsr() -> None:
    code = "import sys, pcl_loss.import_repair; print([name in sys.modules for name in ('torchvision', 'basicsr')])"
    assert run(code) == "[False, False]"


@pytest.mark.skipif(find_spec("basicsr") is None, reason="BasicSR is not installed")
def test_basicsr_imports_after_the_repair() -> None:
    assert run("from pcl_loss import import_repair as r; r.install(); import basicsr; print('there')") == "there"
