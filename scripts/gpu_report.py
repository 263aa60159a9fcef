"""Everything that a machine with a GPU can tell about pcl_loss, as one Markdown file: `make gpu-report`.

In the order of what is most wanted: the tests that need a GPU, BasicSR's loop with EDSR, RCAN and HAN in every
precision, the cost of a step, and EDSR-S from random weights with L1, the light and the paper's recipe. No GPU has run
this yet. A summary with all tables comes first in the file. What fails is in it like the rest: paste the whole file
into an issue.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import _training
import torch

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PCL = (PYTHON, "-m", "pcl_loss")
LAST_LINES = 60
RECIPES = {"L1": "train_EDSR-S_x4", "light": "train_EDSR-S_x4_PCL_light", "paper": "train_EDSR-S_x4_PCL"}
FAST: dict[str, Any] = {"amp": "bf16", "channels_last": "true"}


class Part(NamedTuple):
    """What a command said."""

    title: str
    command: str
    status: int
    seconds: float
    output: str

    def tables(self) -> str:
        """The Markdown tables of the output."""
        return "\n".join(re.findall(r"^(?:\|.*|)$", self.output, re.MULTILINE)).strip()

    def section(self) -> str:
        """Its end, between fences that it does not hold."""
        lines = self.output.splitlines()
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.output)), default=0))
        left_out = [f"({len(lines) - LAST_LINES} lines left out)"] if len(lines) > LAST_LINES else []
        head = f"## {self.title}\n\n`{self.command}` ended with status {self.status} after {self.seconds:.0f} s."
        return "\n".join([head, "", fence, *left_out, *lines[-LAST_LINES:], fence, ""])


class Report:
    """Runs commands one by one, and keeps the file up to date."""

    def __init__(self, file: Path, head: str, folder: Path, seconds: float) -> None:
        self.file, self.head, self.folder, self.seconds = file, head, folder, seconds
        self.parts: list[Part] = []

    def run(self, title: str, *command: str, cwd: Path | None = None) -> str:
        """The output of a command, which may take as long as each may."""
        print(f"gpu-report: {title}", flush=True)
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+b") as output:
            try:
                status = subprocess.run(
                    command, cwd=cwd or self.folder, stdout=output, stderr=subprocess.STDOUT, timeout=self.seconds
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
            except OSError as error:
                status = 127
                output.write(str(error).encode())
            output.seek(0)
            # A progress bar writes one line over and over.
            lines = [
                line.rstrip("\r").rpartition("\r")[2] for line in output.read().decode(errors="replace").split("\n")
            ]
        text = "\n".join(lines).rstrip().replace(str(Path.home()) + os.sep, "~/")
        shown = " ".join(command).replace(PYTHON, "python")
        self.parts.append(Part(title, shown, status, time.monotonic() - begin, text))
        self.write()
        return text

    def write(self) -> None:
        """What was measured so far is kept if the rest is stopped."""
        summary = [f"- {part.title}: status {part.status} after {part.seconds:.0f} s" for part in self.parts]
        tables = [f"**{part.title}**\n\n{tables}" for part in self.parts if (tables := part.tables())]
        sections = [part.section() for part in self.parts]
        self.file.write_text("\n\n".join([self.head, "\n".join(summary), *tables, *sections]), encoding="utf-8")


def main() -> int:
    """Returns 0 if every command did; the report is written in any case."""
    parser = argparse.ArgumentParser(description="Write what this GPU can tell about pcl_loss to a Markdown file.")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_report.md", help="file (default: gpu_report.md)")
    parser.add_argument("--minutes", type=float, default=4, help="the most that each command may take (default: 4)")
    parser.add_argument(
        "--hr", type=Path, help="folder of images for the training from random weights (default: three)"
    )
    parser.add_argument("--test", type=Path, help="folder of images that are not in --hr, to measure it (default: one)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs; the numbers mean nothing")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --tiny runs on the CPU, to see that the report works")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    size = " Toy sizes: the numbers mean nothing." if args.tiny else ""
    head = f"# GPU report\n\n{', '.join(gpus) or 'No GPU'}; PyTorch {torch.__version__}.{size}"
    with tempfile.TemporaryDirectory() as folder:
        report = Report(args.out.absolute(), head, Path(folder), 60 * args.minutes)
        for program, *flags in _training.PREPARATION:
            report.run("Preparation", *([PYTHON] if program == "python" else PCL), *flags)
        report.run("Doctor", *PCL, "doctor")
        if gpus:
            report.run("nvidia-smi", "nvidia-smi")
            report.run("Tests that need a GPU", PYTHON, "-m", "pytest", "-m", "cuda", "-rs", cwd=ROOT)
        seconds = run_loop(report, args.tiny, len(gpus))
        measure_cost(report, args.tiny)
        # Half of the time of the slowest, since the machine may do other work too.
        iterations = 4 if args.tiny else max(100, int(report.seconds / 2 / seconds))
        train_from_scratch(report, args, iterations)
    failed = sum(part.status != 0 for part in report.parts)
    print(f"gpu-report: wrote {args.out}; {failed or 'none'} of the commands failed")
    return int(bool(failed))


def run_loop(report: Report, tiny: bool, gpus: int) -> float:
    """BasicSR's loop in every way that is promised; the seconds of an iteration of the paper's recipe with EDSR-S."""
    iterations, batch, gt_size = sizes = (4, 1, 64) if tiny else (60, 16, 192)
    for net in ["EDSR-S"] if tiny else ["EDSR-S", "RCAN", "HAN"]:
        for recipe in ("_PCL", "_PCL_light"):
            flags = _training.flags(f"train_{net}_x4{recipe}", f"{net}{recipe}", *sizes)
            report.run(f"{net}, {recipe[1:]}, float32", *PCL, "train", *flags)
    edsr = RECIPES["paper"]
    resumed = _training.flags(edsr, "EDSR-S_PCL", 2 * iterations, batch, gt_size)
    report.run("EDSR-S, resumed", *PCL, "train", *resumed, "--auto_resume")
    report.run("EDSR-S, fp16", *PCL, "train", *_training.flags(edsr, "fp16", *sizes, amp="fp16"))
    compiled = _training.flags(edsr, "compiled", *sizes, **FAST, compile="true")
    report.run("EDSR-S, bf16, channels last, compiled", *PCL, "train", *compiled)
    if gpus >= 2:
        ranks = (PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pcl_loss.train")
        both = _training.flags(edsr, "two", *sizes, **FAST)
        report.run("EDSR-S on two GPUs", *ranks, "--launcher", "pytorch", *both)
    output = report.run("EDSR-S, bf16", *PCL, "train", *_training.flags(edsr, "bf16", *sizes, **FAST))
    # 'time (data): 0.050 (0.003)', as BasicSR logs it
    return float((re.findall(r"time \(data\): ([\d.]+)", output) or [1.0])[-1])


def measure_cost(report: Report, tiny: bool) -> None:
    """`benchmarks/step_cost.py`, in float32 and in bf16."""
    bench = [PYTHON, str(ROOT / "benchmarks" / "step_cost.py")]
    bench += ["--tiny", "--rounds", "1", "--nets", "EDSR-S", "--batch", "1", "--skip-memory"] if tiny else []
    nets = ["EDSR-S"] if tiny else ["EDSR-S", "RCAN", "HAN"]
    for net in nets:
        report.run(f"Cost of a step, {net}, float32", *bench, "--only", "steps", "--nets", net)
        report.run(f"Cost of a step, {net}, bf16", *bench, "--only", "steps", "--nets", net, "--amp", "bf16")


def train_from_scratch(report: Report, args: argparse.Namespace, iterations: int) -> None:
    """EDSR-S x4 from random weights: the same seed, batches and number of iterations for each recipe."""
    if args.hr:
        prepare = ("prepare", "--hr", str(args.hr.absolute()), "--out", "pairs", "--scale", "4")
        (report.folder / "pairs").rename(report.folder / "small")
        report.run("The images of --hr", *PCL, *prepare)
    size = (1, 64) if args.tiny else (16, 192)
    nets = []
    for name, file in RECIPES.items():
        train = FAST | {"ema_decay": 0.999, "optim_g:lr": 2e-4}
        report.run(
            f"From random weights, {name}", *PCL, "train", *_training.flags(file, name, iterations, *size, **train)
        )
        nets += ["--net", f"{name}=experiments/{name}/models/net_g_latest.pth"]
    test = args.test.absolute() if args.test else report.folder / "test"
    report.run(f"From random weights, {iterations} iterations", *PCL, "report", *nets, "--set", f"test={test}")


if __name__ == "__main__":
    sys.exit(main())
