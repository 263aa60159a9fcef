"""The examples run as they are, for a few iterations, and both networks learn."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, iterations: int) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(iterations)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_plain_loop_trains_and_resumes() -> None:
    before, after = run("plain_loop", 8).split("resumed")
    first, last = (re.findall(r"l_pix (\d\.\d+)", part) for part in (before, after))
    assert len(first) == len(last) == 4
    # The same batches again, by a network that has seen them.
    assert float(last[0]) < float(first[0])
    assert all(0 < float(value) < 0.1 for value in re.findall(r"l_pcl (\S+)", before))


def test_denoising_beats_the_noisy_image() -> None:
    noisy, denoised = re.findall(r"noisy (\S+) dB, denoised (\S+) dB", run("denoising", 40))[-1]
    assert 19 < float(noisy) < 22  # sigma 25 of 255 is 20.2 dB
    assert float(denoised) > float(noisy) + 1


def test_accelerate_trains() -> None:
    pytest.importorskip("accelerate")
    assert len(re.findall(r"l_pix \d\.\d+  margin [+-]\d\.\d+", run("with_accelerate", 8))) == 4
