"""Everything that a machine with a GPU can tell about pcl_loss, as one Markdown file: `make gpu-report`.

The tests that need a GPU, `pcl-loss doctor`, the cost of a training step, and a training of 500 iterations with amp,
channels_last and compile; with two GPUs, the training also on both. No GPU has run this yet. What fails is in the
report like the rest: paste the whole file into an issue.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import _training
import torch

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LAST_LINES = 120


def main() -> int:
    """Returns 0 if every command did; the report is written in any case."""
    parser = argparse.ArgumentParser(description="Write what this GPU can tell about pcl_loss to a Markdown file.")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_report.md", help="file (default: gpu_report.md)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs; the numbers mean nothing")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --tiny runs on the CPU, to see that the report works")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    size = " Toy sizes: the numbers mean nothing." if args.tiny else ""
    parts = [f"# GPU report\n\n{', '.join(gpus) or 'No GPU'}; PyTorch {torch.__version__}.{size}\n"]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for program, *flags in _training.PREPARATION:
            subprocess.run([BIN / program, *flags], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        for title, command, cwd in commands(args.tiny, len(gpus), Path(folder)):
            print(f"gpu-report: {title}", flush=True)
            status, text = section(title, command, cwd)
            parts.append(text)
            failed += bool(status)
            # What was measured so far is kept if the rest is stopped.
            args.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"gpu-report: wrote {args.out}; {failed or 'none'} of the commands failed")
    return int(bool(failed))


def commands(tiny: bool, gpus: int, folder: Path) -> Iterator[tuple[str, list[str], Path]]:
    """A title, a command line and the folder to run it in, for each section."""
    python = str(BIN / "python")
    bench = [python, "benchmarks/step_cost.py", "--json", str(folder / "step_cost.json")]
    if gpus:
        yield "nvidia-smi", ["nvidia-smi"], ROOT
    yield "Doctor", [str(BIN / "pcl-loss"), "doctor"], ROOT
    yield "Tests that need a GPU", [python, "-m", "pytest", "-m", "cuda", "-rs"], ROOT
    yield "Cost of a training step", bench + (["--tiny", "--rounds", "1", "--nets", "EDSR-S"] if tiny else []), ROOT
    iterations, batch, gt_size = (10, 1, 64) if tiny else (500, 16, 192)
    fast = {"amp": "bf16", "channels_last": "true", "compile": "true"}
    train = [python, "-m", "pcl_loss.train"]
    yield "Training, float32", _training.command(train, iterations, batch, gt_size), folder
    yield (
        "Training with amp, channels_last and compile",
        _training.command(train, iterations, batch, gt_size, **fast),
        folder,
    )
    if gpus >= 2:
        ranks = [str(BIN / "torchrun"), "--nproc_per_node", "2", "-m", "pcl_loss.train", "--launcher", "pytorch"]
        yield "The same on two GPUs", _training.command(ranks, iterations, batch, gt_size, **fast), folder


def section(title: str, command: Sequence[str], cwd: Path) -> tuple[int, str]:
    """The exit status of a command, and what it said, as a part of the report."""
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        status, output = done.returncode, done.stdout.decode(errors="replace")
    except OSError as error:
        status, output = 127, str(error)
    seconds = time.monotonic() - start
    # A progress bar writes one line over and over.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.rstrip("\n").split("\n")]
    left_out = [f"({len(lines) - LAST_LINES} lines left out)"] if len(lines) > LAST_LINES else []
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", output)), default=0))
    shown = " ".join([Path(command[0]).name, *command[1:]])
    text = "\n".join([*left_out, *lines[-LAST_LINES:]]).replace(str(Path.home()) + os.sep, "~/")
    head = f"## {title}\n\n`{shown}` ended with status {status} after {seconds:.0f} s."
    return status, f"{head}\n\n{fence}\n{text}\n{fence}\n"


if __name__ == "__main__":
    sys.exit(main())
