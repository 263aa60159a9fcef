"""What one training step costs, in time and in peak memory: `python benchmarks/step_cost.py`.

1. The loss alone, on HR images of 192x192: `PCLLoss`; `plain`, our re-implementation of the published code's way of
   working, which has the same value and gradient (this is checked first); and `floor_loss`, nothing but the
   convolutions that the loss cannot do without. With `--against COMMIT` also the loss of that commit, with E_D as it
   was there: the value and the gradient must be the same, and the ratio says which is faster.
2. One training step of BasicSR's own models, x4, LR 48x48, for each SR network: L1; L1 + VGG19, its perceptual loss on
   conv5_4 with random weights; L1 + GAN; L1 + PCL with E_D trained, with E_D frozen and with the plain loss; and
   `floor_step`, the sum of the L1 step, of `floor_loss` and of the convolutions of E_D's own step. And L1 + PCL with
   the light recipe, which has no E_D; `light_loss` is that loss alone, forward and backward. The GAN's discriminator
   is UNetDiscriminatorSN with 64 channels: of BasicSR's discriminators the only one that SRGANModel can train on
   192x192 patches (VGGStyleDiscriminator takes 128 or 256, StyleGAN2Discriminator powers of two, and
   HiFaceGANDiscriminator answers with lists).

All variants are measured in turn, round by round, so that ratios are taken between neighbours in time. Peak memory is
that of a process of its own for every variant. Tables go to stdout, progress to stderr, everything to a JSON file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import gc
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _step_against import package_of_commit
from _step_measure import BenchmarkError, Report, measure_rounds, peak_memory, ratios, summary, with_progress
from _step_tables import (
    MAX_GRADIENT_DIFFERENCE,
    MAX_VALUE_DIFFERENCE,
    describe_agreement,
    describe_loss,
    describe_machine,
    describe_steps,
    describe_targets,
)
from _step_variants import (
    FULL,
    L1,
    L1_LIGHT,
    NETS,
    SCALE,
    TINY,
    VARIANTS,
    PlainPCLLoss,
    Sizes,
    build_model,
    downsample,
    loss_and_gradient,
    make_floor_loss,
    make_floor_net_d_step,
    make_light_loss,
    make_step,
    net_d_with_statistics,
    photograph_crops,
    share_network,
)
from torch import Tensor

from pcl_loss import PCLLoss, WaveletDiscriminator, samples

BATCHES = {"cpu": {"EDSR-S": 8, "EDSR-L": 1, "RCAN": 1, "HAN": 1}, "cuda": dict.fromkeys(NETS, 16)}
ONLY = "measure one of the two parts, or, of the second, what the light recipe costs alone"
LOSSES: dict[str, type[PCLLoss]] = {"PCLLoss": PCLLoss, "plain": PlainPCLLoss}


@dataclass(frozen=True)
class Settings:
    """What is asked for; batch sizes in images."""

    nets: tuple[str, ...]
    batches: Mapping[str, int]
    rounds: int
    loss_batch: int
    device: torch.device
    json: Path
    skip_memory: bool
    tiny: bool
    only: str | None
    against: str | None
    seed: int
    arguments: tuple[str, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Of the training step."""
        return (L1, L1_LIGHT) if self.only == "light" else VARIANTS

    @property
    def sizes(self) -> Sizes:
        """Of networks and images."""
        return TINY if self.tiny else FULL


@dataclass(frozen=True)
class LossInputs:
    """What the loss alone is measured on: `sr` and `hr` `(N, 3, H, W)`, and E_D."""

    sr: Tensor
    hr: Tensor
    net_d: WaveletDiscriminator
    seed: int

    def run(self, loss: PCLLoss) -> tuple[Tensor, Tensor]:
        """The value and the gradient to `sr`."""
        return loss_and_gradient(loss, self.sr, self.hr, self.net_d, self.seed)

    def run_exactly(self, loss: PCLLoss) -> tuple[Tensor, Tensor]:
        """The same in float64, where what differs is no rounding: in float32 a LeakyReLU may take either slope."""
        net_d = copy.deepcopy(self.net_d).double()
        return LossInputs(self.sr.double(), self.hr.double(), net_d, self.seed).run(loss)


# Command line


def parse_arguments(arguments: Sequence[str]) -> tuple[Settings, str | None]:
    """The settings, and in a process that measures memory, of what. Exits with a message if they make no sense."""
    parser = argparse.ArgumentParser(
        description="What one training step costs, in time and in peak memory; with L1 alone and with other losses."
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS), help="SR networks (default: all)")
    parser.add_argument(
        "--batch",
        nargs="+",
        type=_net_and_batch,
        default=[],
        metavar="NET=N",
        help="batch of a network's training step (default: 16 on a GPU; on a CPU 8 for EDSR-S and 1 for the others)",
    )
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="after one to warm up (default: 5)")
    parser.add_argument("--loss-batch", type=_count, default=4, metavar="N", help="of the loss alone (default: 4)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--json", type=Path, default=Path("step_cost.json"), help="file (default: %(default)s)")
    parser.add_argument("--skip-memory", action="store_true", help="measure time alone")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs; the numbers mean nothing")
    parser.add_argument("--only", choices=("loss", "steps", "light"), help=ONLY)
    parser.add_argument("--against", metavar="COMMIT", help="measure the loss of this commit too, in the same rounds")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of crops, weights, samples (default: 0)")
    parser.add_argument("--_memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU; take --device cpu")
    if not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no folder {args.json.parent}; make it first")
    if args.against is not None and args.only == "steps":
        parser.error("--against measures the loss alone; drop --only steps")
    settings = Settings(
        nets=tuple(dict.fromkeys(args.nets)),
        batches=BATCHES[device] | dict(args.batch),
        rounds=args.rounds,
        loss_batch=args.loss_batch,
        device=torch.device(device),
        json=args.json,
        skip_memory=args.skip_memory,
        tiny=args.tiny,
        only=args.only,
        against=args.against,
        seed=args.seed,
        arguments=tuple(arguments),
    )
    return settings, args._memory_of


def _count(text: str) -> int:
    return _whole_number(text, minimum=1)


def _seed(text: str) -> int:
    return _whole_number(text, minimum=0)


def _whole_number(text: str, minimum: int) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, got {text!r}")
    return int(text)


def _net_and_batch(text: str) -> tuple[str, int]:
    net, equals, count = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"must look like EDSR-S=8, got {text!r}")
    if net not in NETS:
        raise argparse.ArgumentTypeError(f"unknown network {net!r} in {text!r}; known are {', '.join(NETS)}")
    return net, _count(count)


# Memory, each in a process of its own


def memory_in_own_process(what: str, settings: Settings) -> Report:
    """`peak_memory` of `loss:NAME` or `step:NET:VARIANT`, measured in a new process by `memory_of`."""
    command = [sys.executable, __file__, *settings.arguments, "--_memory-of", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(
            f"the process that measures the memory of {what} ended with status {done.returncode}; make the batch "
            "smaller if memory was short, or add --skip-memory"
        )
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(what: str, settings: Settings) -> Report:
    """`peak_memory` of two calls in a row; the second step has the optimizers' state from its beginning."""
    part, _, name = what.partition(":")

    def twice() -> None:
        for _ in range(2):
            call()

    with tempfile.TemporaryDirectory() as folder:
        if part == "loss":
            inputs, loss = make_loss_inputs(settings, settings.loss_batch), LOSSES[name]()
            # Libraries that are imported at the first call, and the pages of their code, are no matter of the loss.
            make_loss_inputs(settings, 1, size=TINY.hr_patch).run(LOSSES[name]())
            call: Callable[[], Any] = functools.partial(inputs.run, loss)
        else:
            net, _, variant = name.partition(":")
            hr = make_hr(settings, settings.batches[net])
            call = make_step(build_model(net, variant, settings.sizes, hr, Path(folder), settings.seed))
        return peak_memory(twice, settings.device)


# The two parts


def make_hr(settings: Settings, batch: int, size: int | None = None) -> Tensor:
    """HR images `(batch, 3, size, size)` on the device, by default of the size of a training step."""
    return photograph_crops(batch, size or settings.sizes.hr_patch, settings.seed).to(settings.device)


def make_loss_inputs(settings: Settings, batch: int, size: int | None = None) -> LossInputs:
    """HR images, SR ones that are bicubic, and an E_D that has seen both once."""
    torch.manual_seed(settings.seed)
    hr = make_hr(settings, batch, size)
    sr = samples.upsample(downsample(hr), (hr.shape[-2], hr.shape[-1]))
    return LossInputs(sr, hr, net_d_with_statistics(hr, sr, settings.sizes.net_d_feat), settings.seed)


def measure_loss(settings: Settings) -> Report:
    """Part 1: times, ratios and memory of the loss alone.

    Raises:
        BenchmarkError: a loss does not equal `PCLLoss`, there is no such commit, or memory cannot be measured.
    """
    inputs = make_loss_inputs(settings, settings.loss_batch)
    losses = {name: (inputs, cls()) for name, cls in LOSSES.items()}
    if settings.against is not None:
        commit, package = package_of_commit(settings.against)
        net_d = package.WaveletDiscriminator(num_feat=settings.sizes.net_d_feat).to(settings.device)
        net_d.load_state_dict(inputs.net_d.state_dict())
        losses[f"PCLLoss of {commit}"] = (dataclasses.replace(inputs, net_d=net_d), package.PCLLoss())
    exact = {name: case.run_exactly(loss) for name, (case, loss) in losses.items()}
    others = [name for name in losses if name != "PCLLoss"]
    agreement = {name: check_agreement(name, exact["PCLLoss"], exact[name]) for name in others}
    report: Report = {"batch": settings.loss_batch, "agreement": agreement}
    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(case.run, loss) for name, (case, loss) in losses.items()
    }
    calls["floor_loss"] = make_floor_loss(inputs.net_d, PCLLoss(), settings.loss_batch, settings.sizes.hr_patch)
    times = measure_rounds(calls, settings.rounds, settings.device, "loss")
    report |= {"seconds": times, "median_seconds": {name: statistics.median(times[name]) for name in times}}
    report["pcl_over"] = {name: summary(ratios(times, "PCLLoss", to=name)) for name in (*others, "floor_loss")}
    if not settings.skip_memory:
        names = with_progress(LOSSES, "loss, peak memory")
        report["memory"] = {name: memory_in_own_process(f"loss:{name}", settings) for name in names}
        ours, plain = (report["memory"][name]["extra_mib"] for name in ("PCLLoss", "plain"))
        # In a toy the plain loss may need no memory that it did not have before.
        report["extra_memory_over_plain"] = ours / plain if plain > 0 else None
    return report


def check_agreement(name: str, ours: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> dict[str, float]:
    """By how much value and gradient of the loss `name` differ from ours, relative to our largest entries.

    Raises:
        BenchmarkError: by too much, so that comparing their cost would be unfair.
    """
    (value, grad), (other_value, other_grad) = ours, other
    difference = {
        "value": float((value - other_value).abs() / value.abs()),
        "gradient": float((grad - other_grad).abs().max() / grad.abs().max()),
    }
    # Written so that NaN does not pass.
    if not (difference["value"] <= MAX_VALUE_DIFFERENCE and difference["gradient"] <= MAX_GRADIENT_DIFFERENCE):
        raise BenchmarkError(
            f"PCLLoss and {name} are not the same function: {describe_agreement(difference)}; repair one of them, "
            "their costs cannot be compared"
        )
    return difference


def measure_steps(net: str, settings: Settings) -> Report:
    """Part 2 for one SR network: times, ratios to L1 and memory of every variant."""
    batch, sizes = settings.batches[net], settings.sizes
    hr = make_hr(settings, batch)
    models: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for variant in with_progress(settings.variants, f"{net}, building"):
            models[variant] = build_model(net, variant, sizes, hr, Path(folder), settings.seed)
            share_network(models[variant], owner=models[L1])
    calls = {variant: make_step(model) for variant, model in models.items()}
    calls["light_loss"] = make_light_loss(hr, settings.seed)
    rows = [*settings.variants, "light_loss"]
    if settings.only != "light":
        net_d = WaveletDiscriminator(num_feat=sizes.net_d_feat).to(settings.device)
        calls["floor_loss"] = make_floor_loss(net_d, PCLLoss(), batch, sizes.hr_patch)
        calls["floor_net_d"] = make_floor_net_d_step(net_d, batch, sizes.hr_patch)
    times = measure_rounds(calls, settings.rounds, settings.device, net)
    if settings.only != "light":
        rows.append("floor_step")
        parts = (times[L1], times["floor_loss"], times["floor_net_d"])
        times["floor_step"] = [sum(of_round) for of_round in zip(*parts, strict=True)]
    report: Report = {"batch": batch, "lr_patch": sizes.lr_patch, "seconds": times}
    report["median_seconds"] = {name: statistics.median(times[name]) for name in times}
    report["over_l1"] = {name: summary(ratios(times, name, to=L1)) for name in rows}
    if not settings.skip_memory:
        del models, calls
        # These models would stand beside those of the other processes.
        gc.collect()
        torch.cuda.empty_cache()
        variants = with_progress(settings.variants, f"{net}, peak memory")
        report["memory"] = {variant: memory_in_own_process(f"step:{net}:{variant}", settings) for variant in variants}
    return report


# All of it


def describe_settings(settings: Settings, machine: Report) -> str:
    """The first lines."""
    batches = [] if settings.only in ("steps", "light") else [f"the loss alone {settings.loss_batch}"]
    if settings.only != "loss":
        batches += [f"{net} {settings.batches[net]}" for net in settings.nets]
    lines = [
        f"machine: {machine['cpu']}, {machine['threads']} threads, GPU: {machine['gpu'] or 'none used'}",
        f"torch {machine['torch']}, torchvision {machine['torchvision']}, basicsr {machine['basicsr']}, float32",
        f"command: {shlex.join(['python', sys.argv[0], *settings.arguments])}",
        f"batches: {', '.join(batches)}; {settings.rounds} rounds, x{SCALE}",
    ]
    if settings.tiny:
        lines.append("--tiny: toy networks and images; these numbers say nothing about the real cost")
    return "\n".join(lines)


def measure(settings: Settings) -> Report:
    """Measure and print everything that is asked for; the JSON file is written anew after each part.

    Raises:
        BenchmarkError: a loss does not equal `PCLLoss`, there is no such commit, or memory cannot be measured.
    """
    report: Report = {
        "machine": describe_machine(settings.device),
        "settings": {
            "command": list(settings.arguments),
            "nets": settings.nets,
            "batches": {net: settings.batches[net] for net in settings.nets},
            "loss_batch": settings.loss_batch,
            "rounds": settings.rounds,
            "device": settings.device.type,
            "seed": settings.seed,
            "tiny": settings.tiny,
            "scale": SCALE,
            "dtype": "float32",
        },
    }
    print(describe_settings(settings, report["machine"]), flush=True)
    if settings.only in (None, "loss"):
        report["loss"] = measure_loss(settings)
        _write(report, settings.json)
        print(f"\n{describe_loss(report['loss'])}", flush=True)
    if settings.only != "loss":
        report["steps"] = {}
        for net in settings.nets:
            report["steps"][net] = measure_steps(net, settings)
            _write(report, settings.json)
            print(f"\n{describe_steps(net, report['steps'][net])}", flush=True)
    if settings.device.type == "cpu" and not settings.tiny:
        print(f"\n{describe_targets(report)}")
    return report


def _write(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    settings, what = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        if what is not None:
            print(json.dumps(memory_of(what, settings)))
            return 0
        # As BasicSR's train pipeline; not where memory is measured, since cuDNN's search has peaks of its own.
        torch.backends.cudnn.benchmark = True
        measure(settings)
    except BenchmarkError as error:
        print(f"step_cost: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstep_cost: stopped", file=sys.stderr)
        return 130
    print(f"\neverything, with the time of each round: {settings.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
