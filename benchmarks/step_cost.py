"""What one training step costs, in time and in peak memory: `python benchmarks/step_cost.py`.

1. The loss alone, on HR images of 192x192: `PCLLoss`; and `plain`, our re-implementation of the published code's way of
   working, which has the same value and gradient (`tests/benchmarks` compare them).
2. One training step of BasicSR's own models, x4, LR 48x48, for each SR network: L1; L1 + VGG19, its perceptual loss on
   conv5_4 with random weights; L1 + GAN with UNetDiscriminatorSN, of BasicSR's discriminators the only one that
   SRGANModel can train on 192x192 patches; L1 + PCL with E_D trained, with E_D frozen, with the light recipe, and with
   the plain loss. `light_loss` is the loss of the light recipe alone, forward and backward.

All are measured in turn, round by round, so that ratios are taken between neighbours in time. On a CPU, peak memory is
that of a process of its own for every variant. Everything goes to a JSON file, too.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import gc
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _step_variants as variants
import torch
from torch import Tensor
from tqdm import tqdm

from pcl_loss import FixedEmbedding, PCLLoss
from pcl_loss.tools.report.tables import markdown_table

CPU_BATCHES = {"EDSR-S": 8, "EDSR-L": 1, "RCAN": 1, "HAN": 1}
GPU_BATCH = 16
LOSS_BATCH = 4

Times = dict[str, list[float]]
Report = dict[str, Any]


def measure_rounds(calls: Mapping[str, Callable[[], Any]], rounds: int, device: str) -> Times:
    """Seconds of each call in each of `rounds` rounds, all calls in turn; one more round before does not count."""
    times: Times = {name: [] for name in calls}
    torch.backends.cudnn.benchmark = True  # as BasicSR's train pipeline
    for index in tqdm(range(rounds + 1), desc="rounds, after a warm-up", leave=False):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if index:
                times[name].append(time.perf_counter() - begin)
    return times


def summary(times: Times, of: str, to: str) -> dict[str, float]:
    """Median, smallest and largest of the time of `of` over that of `to`, both of the same round."""
    values = [a / b for a, b in zip(times[of], times[to], strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_mib(net: str, variant: str, args: argparse.Namespace) -> float:
    """Peak memory of two steps, the second of which has the optimizers' state at once.

    On a GPU PyTorch's tensors count, on a CPU the resident memory of the process, as Linux tells it.
    """
    if args.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.backends.cudnn.benchmark = False  # its search has peaks of its own
        torch.cuda.reset_peak_memory_stats()
    step = variants.make_step(
        variants.build_model(net, variant, make_hr(args, net), args.num_feat, args.amp, args.tiny)
    )
    step()
    step()
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not `getrusage`, whose peak begins with that of the process that started this one.
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak) / 2**10


def measure_memory(net: str, names: Sequence[str], args: argparse.Namespace) -> dict[str, float]:
    """`peak_mib` of each variant; on a CPU in a process of its own."""
    if args.device == "cuda":
        return {name: peak_mib(net, name, args) for name in names}
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(names, pool.map(peak_mib, [net] * len(names), names, [args] * len(names)), strict=True))


# The two parts


def make_hr(args: argparse.Namespace, net: str) -> Tensor:
    """HR images of a training step, on the device."""
    batch = args.batch or (GPU_BATCH if args.device == "cuda" else CPU_BATCHES[net])
    return variants.photograph_crops(batch, args.hr_patch).to(args.device)


def measure_loss(args: argparse.Namespace) -> Report:
    """Part 1: times and ratios of the loss alone, between HR and bicubic images."""
    torch.manual_seed(variants.SEED)
    hr = variants.photograph_crops(LOSS_BATCH, args.hr_patch).to(args.device)
    sr, net_d = variants.bicubic_sr(hr), variants.net_d_with_statistics(hr, args.num_feat)
    losses = {"PCLLoss": PCLLoss(), "plain": variants.PlainPCLLoss()}
    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(variants.loss_and_gradient, loss, sr, hr, net_d) for name, loss in losses.items()
    }
    times = measure_rounds(calls, args.rounds, args.device)
    ratios = {name: summary(times, "PCLLoss", to=name) for name in times}
    return {"seconds": times, "ratios": ratios}


def measure_steps(net: str, args: argparse.Namespace) -> Report:
    """Part 2 for one SR network: times, ratios to L1 and memory of every variant."""
    chosen = ["L1", "L1 + PCL, light"] if args.only == "light" else list(variants.VARIANTS)
    if args.amp and "L1 + GAN" in chosen:
        chosen.remove("L1 + GAN")
    hr = make_hr(args, net)
    models: dict[str, Any] = {}
    for variant in chosen:
        model = models[variant] = variants.build_model(net, variant, hr, args.num_feat, args.amp, args.tiny)
        # All train one SR network, with its optimizer: seven EDSR-L with Adam's state would take 5 GiB.
        model.net_g, model.optimizer_g = models["L1"].net_g, models["L1"].optimizer_g
        model.optimizers[0] = model.optimizer_g
    calls: dict[str, Callable[[], Any]] = {name: variants.make_step(model) for name, model in models.items()}
    light = (PCLLoss(recipe="light"), variants.bicubic_sr(hr), hr, FixedEmbedding())
    calls["light_loss"] = lambda: variants.loss_and_gradient(*light)
    times = measure_rounds(calls, args.rounds, args.device)
    ratios = {name: summary(times, name, to="L1") for name in times}
    del models, calls, model
    peaks = {} if args.skip_memory else measure_memory(net, chosen, args)
    return {"batch": len(hr), "seconds": times, "ratios": ratios, "peak_mib": peaks}


def describe(title: str, ratio: str, report: Report) -> str:
    """The table of the loss alone, or of one SR network."""
    rows = [[title, "seconds", ratio, "peak MiB"]]
    for name, seconds in report["seconds"].items():
        peak = report.get("peak_mib", {}).get(name)
        spread = "{median:.3f} ({min:.3f}-{max:.3f})".format(**report["ratios"][name])
        rows.append([name, f"{statistics.median(seconds):.4g}", spread, f"{peak:.0f}" if peak else ""])
    return markdown_table(rows)


def main() -> None:
    """Measure and print everything that is asked for; everything goes to a JSON file, too."""
    parser = argparse.ArgumentParser(
        description="What one training step costs, in time and in peak memory; on a GPU where there is one."
    )
    nets = variants.NETS
    parser.add_argument("--nets", nargs="+", choices=nets, default=nets, help="SR networks (default: all)")
    parser.add_argument("--batch", type=int, metavar="N", help="of the networks (default: 16; on a CPU 8 and 1)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after one to warm up (default: 5)")
    parser.add_argument("--json", type=Path, default=Path("step_cost.json"), help="file (default: %(default)s)")
    parser.add_argument("--skip-memory", action="store_true", help="measure time alone (a CPU's memory needs Linux)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs; the numbers mean nothing")
    parser.add_argument(
        "--only", choices=("loss", "steps", "light"), help="one of the two parts, or of the second the light recipe"
    )
    parser.add_argument("--amp", choices=("bf16", "fp16"), help="steps in half precision, without the GAN")
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.hr_patch, args.num_feat = (32, 4) if args.tiny else (192, 64)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}, {args.amp or 'float32'}, {args.rounds} rounds")
    report: Report = {"machine": machine, "torch": torch.__version__, "steps": {}}
    if args.tiny:
        print("toy sizes: these numbers say nothing about the real cost")
    if args.only in (None, "loss") and not args.amp:
        report["loss"] = measure_loss(args)
        print(f"\n{describe(f'the loss alone, batch {LOSS_BATCH}', 'PCLLoss / this', report['loss'])}")
    for net in [] if args.only == "loss" else args.nets:
        steps = report["steps"][net] = measure_steps(net, args)
        title = f"{net}, batch {steps['batch']}"
        print(f"\n{describe(title, 'this / L1', steps)}", flush=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\neverything, with the time of each round: {args.json}")


if __name__ == "__main__":
    main()
