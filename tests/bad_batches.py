"""Batches that are not finite, and the trace that they may not leave."""

import math
from typing import Any

import torch
from basicsr_fixtures import Batches, Build, Options, assert_equal_weights, train_on, weights


def spoil(batches: Batches, where: str, value: float, *numbers: int) -> Batches:
    """Copies, of which those of these numbers have one bad pixel."""
    batches = [{name: images.clone() for name, images in batch.items()} for batch in batches]
    for number in numbers:
        batches[number][where][0, 0, 5, 5] = value
    for number, batch in enumerate(batches):
        batch["gt_path"] = [f"hr/{number}a.png", f"hr/{number}b.png"]  # type: ignore[assignment]
    return batches


def everything(net: Any) -> dict[str, Any]:
    """Weights, averages, statistics and moments."""
    state: dict[str, Any] = {}
    for name in ("net_g", "net_g_ema", "net_d"):
        if hasattr(net, name):
            state |= {f"{name}.{key}": value for key, value in weights(getattr(net, name)).items()}
    for number, optimizer in enumerate(net.optimizers):
        for param, values in optimizer.state_dict()["state"].items():
            state |= {f"{number}.{param}.{key}": value.clone() for key, value in values.items()}
    return state


def add_batch_norm(options: Options, monkeypatch: Any) -> None:
    """Put statistics into the SR network, behind its first convolution."""
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.utils.registry import ARCH_REGISTRY

    class NormalisedEDSR(EDSR):  # type: ignore[misc]
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.conv_first = torch.nn.Sequential(self.conv_first, torch.nn.BatchNorm2d(keywords["num_feat"]))

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "NormalisedEDSR", NormalisedEDSR)
    options["network_g"]["type"] = "NormalisedEDSR"


def check_no_trace(options: Options, build: Build, batches: Batches, where: str, value: float) -> None:
    """Train with a bad third batch; it must leave what four good ones leave."""
    net, clean = build(options), build(options)
    train_on(net, batches[:2])
    before = everything(net)
    logs = train_on(net, spoil(batches, where, value, 2)[2:3], first_iter=3)
    assert not all(math.isfinite(entry) for entry in logs[0].values()), "the batch was to be a bad one"
    assert_equal_weights(everything(net), before)
    assert net.bad_steps.num_steps == 3
    train_on(clean, batches[:2])
    clean.update_learning_rate(3)
    if clean.cri_perceptual is not None:
        # It draws its samples by the number of the call.
        clean.cri_perceptual.pcl.num_calls += 1
    train_on(net, batches[3:], first_iter=4)
    train_on(clean, batches[3:], first_iter=4)
    assert_equal_weights(everything(net), everything(clean))
    assert (net.bad_steps.num_bad, net.bad_steps.num_in_a_row) == (1, 0)
