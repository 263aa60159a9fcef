"""Everything that a machine with a GPU can tell about pcl_loss, as one Markdown file: `make gpu-report`.

The tests that need a GPU, BasicSR's loop with EDSR, RCAN and HAN in every precision, the cost of a step, and EDSR-S
from random weights with L1, the light and the paper's recipe. No GPU has run this yet. A summary with all tables comes
first. What fails is in it like the rest: paste the whole file into an issue.
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

import torch

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
PCL = (PYTHON, "-m", "pcl_loss")
LAST_LINES = 60
EDSR_PAPER = "EDSR-S_x4_PCL"
FAST: dict[str, Any] = {"amp": "bf16", "channels_last": "true"}
MAKE_HR = """
from pathlib import Path
from skimage import data, io  # BasicSR brings scikit-image
for name in ("astronaut", "chelsea", "coffee", "rocket"):
    folder = Path("test" if name == "rocket" else "hr")
    folder.mkdir(exist_ok=True)
    io.imsave(folder / f"{name}.png", getattr(data, name)())
"""


class Part(NamedTuple):
    """What a command said."""

    title: str
    command: str
    status: int
    seconds: float
    output: str


class Report:
    """Runs commands one by one, and keeps the file up to date."""

    def __init__(self, args: argparse.Namespace, head: str, folder: Path) -> None:
        self.args, self.head, self.folder = args, head, folder
        self.parts: list[Part] = []

    def run(self, title: str, *command: str, cwd: Path | None = None) -> str:
        """The output of a command, which may take as long as each may."""
        print(f"gpu-report: {title}", flush=True)
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+b") as file:
            try:
                limit = 60 * self.args.minutes
                done = subprocess.run(command, cwd=cwd or self.folder, stdout=file, stderr=file, timeout=limit)
                status = done.returncode
            except subprocess.TimeoutExpired:
                status = 124
            file.seek(0)
            # A progress bar writes one line over and over.
            output = re.sub(r"[^\n]*\r(?!\n)", "", file.read().decode(errors="replace"))
        shown = " ".join(command).replace(PYTHON, "python")
        self.parts.append(Part(title, shown, status, time.monotonic() - begin, output.rstrip()))
        self.write()
        return output

    def train(self, title: str, file: str, name: str, iterations: int, *launcher: str, **train: object) -> str:
        """`run` of a training with BasicSR; `train` has more keys under `train:`."""
        values: dict[str, object] = {"name": name, "datasets:train:num_worker_per_gpu": 8}
        if "PCL" not in file:
            values["model_type"] = "SpeedSRModel"  # BasicSR's own knows no precision
        if self.args.tiny:
            values |= {"datasets:train:batch_size_per_gpu": 1, "datasets:train:gt_size": 64}
        if self.args.tiny and "compile" in train:
            values["network_g:num_block"] = 1  # a compiler takes minutes for more
        for phase in ("train", "val"):
            paths = {"dataroot_gt": "pairs/X4/HR", "dataroot_lq": "pairs/X4/LR", "filename_tmpl": "'{}'"}
            values |= {f"datasets:{phase}:{key}": value for key, value in paths.items()}
        values |= dict.fromkeys(("train:total_iter", "val:val_freq", "logger:save_checkpoint_freq"), iterations)
        values |= {"logger:print_freq": max(1, iterations // 10)}
        values |= {f"train:{key}": value for key, value in train.items()}
        options = [f"{key}={value}" for key, value in values.items()]
        command = launcher or (*PCL, "train")
        return self.run(title, *command, "-opt", f"options/train/train_{file}.yml", "--force_yml", *options)

    def write(self) -> None:
        """What was measured so far is kept if the rest is stopped."""
        lines, tables, sections = [], [], []
        for part in self.parts:
            output = part.output.splitlines()
            lines.append(f"- {part.title}: status {part.status} after {part.seconds:.0f} s")
            if found := [line for line in output if line.startswith("|")]:
                tables.append("\n".join([f"**{part.title}**\n", *found]))
            # Indented, so that it may hold fences.
            end = [f"    {line}" for line in output[-LAST_LINES:]]
            sections.append("\n".join([f"## {part.title}\n", f"`{part.command}`\n", *end]))
        text = "\n\n".join([self.head, "\n".join(lines), *tables, *sections])
        self.args.out.write_text(text.replace(str(Path.home()) + os.sep, "~/"), encoding="utf-8")


def main() -> int:
    """Returns 0 if every command did; the report is written in any case."""
    parser = argparse.ArgumentParser(description="Write what this GPU can tell about pcl_loss to a Markdown file.")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_report.md", help="file (default: gpu_report.md)")
    parser.add_argument("--minutes", type=float, default=4, help="the most that each command may take (default: 4)")
    parser.add_argument("--hr", type=Path, help="folder of HR images to train on (default: three photographs)")
    parser.add_argument("--test", type=Path, help="folder of HR images to measure what was trained (default: one)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs; the numbers mean nothing")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --tiny runs on the CPU, to see that the report works")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    size = " Toy sizes: the numbers mean nothing." if args.tiny else ""
    with tempfile.TemporaryDirectory() as folder:
        head = f"# GPU report\n\n{', '.join(gpus) or 'No GPU'}; PyTorch {torch.__version__}.{size}"
        report = Report(args, head, Path(folder))
        report.run("Photographs", PYTHON, "-c", MAKE_HR)
        hr, test = (str(path.absolute()) if path else name for path, name in ((args.hr, "hr"), (args.test, "test")))
        report.run("LR images", *PCL, "prepare", "--hr", hr, "--out", "pairs", "--scale", "4")
        report.run("Option files", *PCL, "options", "--to", "options")
        report.run("Doctor", *PCL, "doctor")
        if gpus:
            report.run("Tests that need a GPU", PYTHON, "-m", "pytest", "-m", "cuda", "-rs", cwd=ROOT)
        seconds = run_loop(report, len(gpus))
        measure_cost(report)
        # Half of the time that a command has, since other work may slow it down.
        iterations = 4 if args.tiny else max(100, int(30 * args.minutes / seconds))
        train_from_scratch(report, iterations, test)
    failed = sum(part.status != 0 for part in report.parts)
    print(f"gpu-report: wrote {args.out}; {failed or 'none'} of the commands failed")
    return int(bool(failed))


def run_loop(report: Report, gpus: int) -> float:
    """BasicSR's loop in every way that is promised; the seconds of an iteration of the paper's recipe in bf16."""
    iterations = 4 if report.args.tiny else 60
    for net in ["EDSR-S"] if report.args.tiny else ["EDSR-S", "RCAN", "HAN"]:
        for name, recipe in (("paper", "PCL"), ("light", "PCL_light")):
            report.train(f"{net}, {name}, float32", f"{net}_x4_{recipe}", f"{net}-{name}", iterations)
    resume = (*PCL, "train", "--auto_resume")
    report.train("EDSR-S, resumed", EDSR_PAPER, "EDSR-S-paper", 2 * iterations, *resume)
    report.train("EDSR-S, fp16", EDSR_PAPER, "fp16", iterations, amp="fp16")
    report.train("EDSR-S, bf16, channels last, compiled", EDSR_PAPER, "compiled", iterations, compile="true", **FAST)
    if gpus >= 2:
        ranks = (PYTHON, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pcl_loss.train")
        report.train("EDSR-S on two GPUs", EDSR_PAPER, "two", iterations, *ranks, "--launcher", "pytorch", **FAST)
    output = report.train("EDSR-S, bf16", EDSR_PAPER, "bf16", iterations, **FAST)
    # 'time (data): 0.050 (0.003)', as BasicSR logs it
    return float((re.findall(r"time \(data\): ([\d.]+)", output) or [1.0])[-1])


def measure_cost(report: Report) -> None:
    """`benchmarks/step_cost.py`, in float32 and in bf16."""
    bench = [PYTHON, str(ROOT / "benchmarks" / "step_cost.py"), "--only", "steps"]
    bench += ["--tiny", "--rounds", "1", "--batch", "1", "--skip-memory"] if report.args.tiny else []
    for net in ["EDSR-S"] if report.args.tiny else ["EDSR-S", "RCAN", "HAN"]:
        report.run(f"Cost of a step, {net}, float32", *bench, "--nets", net)
        report.run(f"Cost of a step, {net}, bf16", *bench, "--nets", net, "--amp", "bf16")


def train_from_scratch(report: Report, iterations: int, test: str) -> None:
    """EDSR-S x4 from random weights: the same seed, batches and number of iterations for each recipe."""
    nets = []
    for name, file in {"L1": "EDSR-S_x4", "light": "EDSR-S_x4_PCL_light", "paper": EDSR_PAPER}.items():
        keys = FAST | {"ema_decay": 0.999, "optim_g:lr": 2e-4, "scheduler:periods": f"[{iterations}]"}
        report.train(f"From random weights, {name}", file, name, iterations, **keys)
        nets += ["--net", f"{name}=experiments/{name}/models/net_g_latest.pth"]
    report.run(f"From random weights, {iterations} iterations", *PCL, "report", *nets, "--set", f"test={test}")


if __name__ == "__main__":
    sys.exit(main())
