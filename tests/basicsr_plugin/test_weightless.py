"""Networks are built without storage: what they would take is known, and only PyTorch's refusal of that is let pass."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY

from pcl_loss.basicsr_plugin import OptionsError, weightless, yaml_blocks

Options = dict[str, Any]
Parse = Callable[..., Options]


def refuses(parse: Parse, options: Options, message: str) -> None:
    with pytest.raises(OptionsError, match=message) as raised:
        parse(options)
    assert "\n" not in str(raised.value)
    assert [path.name for path in Path().iterdir()] == ["run.yml"]


class Unit(torch.nn.Module):
    """A network of one weight, which does something with it at the start or on its way."""

    def __init__(self, at_start: Callable[[torch.Tensor], Any] | None, later: Callable[[torch.Tensor], Any] | None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.later = later
        if at_start is not None:
            at_start(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.later is not None:
            self.later(self.weight)
        return torch.nn.functional.interpolate(x, scale_factor=4)


@pytest.fixture
def network_that(baseline: Options, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Options]:
    """Parses a file whose network does something."""

    def network_that(
        at_start: Callable[[torch.Tensor], Any] | None = None, later: Callable[[torch.Tensor], Any] | None = None
    ) -> Options:
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Unit", lambda: Unit(at_start, later))
        baseline["network_g"] = {"type": "Unit"}
        return parse(baseline)

    return network_that


NEEDS_VALUES = [
    lambda weight: weight[0].item(),
    lambda weight: weight.tolist(),
    lambda weight: weight.detach().numpy(),
    lambda weight: np.asarray(weight.detach()),
    lambda weight: weight.to("cpu"),
    lambda weight: weight.nonzero(),
    lambda weight: weight.unique(),
    lambda weight: torch.eye(3).sum(0) + weight,
    lambda weight: torch.cat([torch.arange(3.0), weight]),
    lambda weight: torch.eye(3).copy_(weight),
    lambda weight: torch.repeat_interleave(weight.long()),
    lambda weight: torch.nn.functional.conv2d(weight.reshape(1, 3, 1, 1), torch.eye(3).reshape(3, 3, 1, 1)),
    lambda weight: torch.nn.LSTM(3, 3)(torch.arange(3.0).reshape(1, 1, 3) + 0 * torch.arange(3.0)),
    lambda weight: torch.FloatTensor([1.0]) * weight.data.type(torch.FloatTensor),
]


@pytest.mark.parametrize("needs_values", NEEDS_VALUES)
@pytest.mark.parametrize("moment", ["at_start", "later"])
def test_a_network_that_needs_its_weights_values_passes(
    network_that: Callable[..., Options], moment: str, needs_values: Callable[[torch.Tensor], Any]
) -> None:
    network_that(**{moment: needs_values})


# As PyTorch 2.5 to 2.14 word them; those that this version no longer raises cannot be had otherwise.
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected all tensors to be on the same device, but found at least two devices, meta and cpu!"),
        RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at meta and parameter"
        ),
        RuntimeError("Tensor on device meta is not on the expected device cpu!"),
        RuntimeError("expected TensorOptions(dtype=float, device=cpu) (got TensorOptions(dtype=float, device=meta))"),
        NotImplementedError("Could not run 'aten::equal' with arguments from the 'Meta' backend. This could be"),
        NotImplementedError("The register_meta function for torch.nonzero() raises unimplemented by default"),
        NotImplementedError("Cannot copy out of meta tensor; no data!"),
        TypeError("can't convert meta device type tensor to numpy. Use Tensor.cpu() to copy the tensor first."),
    ],
    ids=str,
)
def test_each_wording_of_pytorch_is_known(error: Exception) -> None:
    assert weightless.asks_for_storage(error)


def fail_with(error: Exception) -> Callable[[torch.Tensor], Any]:
    def fail(_: torch.Tensor) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no metadata for this scale"),
        RuntimeError("meta is no mode"),
        KeyError("meta"),
        NotImplementedError("this mode"),
        ValueError("a meta tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("moment", ["at_start", "later"])
def test_a_networks_own_error_that_speaks_of_meta_is_said(
    network_that: Callable[..., Options], moment: str, error: Exception
) -> None:
    with pytest.raises(OptionsError, match=f"network_g.*{re.escape(str(error))}"):
        network_that(**{moment: fail_with(error)})


def test_a_constructor_that_needs_values_and_then_fails_is_said(network_that: Callable[..., Options]) -> None:
    def fail(weight: torch.Tensor) -> None:
        raise ValueError(f"the first weight is {weight[0].item():g}")

    with pytest.raises(OptionsError, match="network_g cannot be built: the first weight is 1;"):
        network_that(at_start=fail)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (weightless, yaml_blocks):
        monkeypatch.setattr(module, "memory_of", lambda opt: ("this machine", 1e9))


@pytest.mark.usefixtures("small_machine")
def test_a_network_that_does_not_fit_the_memory_is_refused(baseline: Options, parse: Parse) -> None:
    # EDSR: 2 convolutions of 9 n^2 + n in a block, 1 behind the blocks, 2 times 4 (9 n^2 + n) to enlarge, and the ends.
    def num_bytes(n: int) -> int:
        square = 9 * n * n + n
        return 4 * 4 * (square * (2 + 1 + 4 + 4) + 27 * n + n + 27 * n + 3) + 4 * 4 * 3

    baseline["network_g"] |= {"num_feat": 790, "num_block": 1}
    assert num_bytes(790) < 1e9 < num_bytes(800)
    parse(baseline)
    baseline["network_g"]["num_feat"] = 5000
    expected = rf"network_g takes {num_bytes(5000) / 1e9:.3g} GB or more, but this machine has 1 GB; lower"
    refuses(parse, baseline, expected)


@pytest.mark.usefixtures("small_machine")
def test_a_batch_that_does_not_fit_the_memory_is_refused(baseline: Options, parse: Parse) -> None:
    baseline["datasets"]["train"] |= {"batch_size_per_gpu": 6000, "dataset_enlarge_ratio": 10_000}
    parse(baseline)  # HR, SR and the gradient take 3 x 6000 x 3 x 64 x 64 numbers of 4 bytes: .88 GB
    baseline["datasets"]["train"]["batch_size_per_gpu"] = 7000
    refuses(parse, baseline, "datasets.train: a batch takes 1.03 GB or more, but this machine has 1 GB; lower batch")


@pytest.mark.usefixtures("small_machine")
def test_a_test_needs_the_weights_alone(baseline: Options, parse: Parse) -> None:
    baseline["network_g"] |= {"num_feat": 1500, "num_block": 1}
    baseline["datasets"] = {"test": baseline["datasets"]["val"]}
    del baseline["train"]
    parse(baseline, is_train=False)


@pytest.mark.parametrize(
    "network",
    [
        {"num_block": 10**6},
        {"num_block": 10**9, "num_feat": 64},
        {"type": "ECBSR", "num_block": 10**6, "num_channel": 4, "with_idt": True, "act_type": "prelu", "scale": 4},
    ],
)
def test_a_network_that_would_never_be_built_is_refused_at_once(
    baseline: Options, parse: Parse, network: Options
) -> None:
    if "type" in network:
        baseline["network_g"] = {"num_in_ch": 3, "num_out_ch": 3}
    baseline["network_g"] |= network
    start = time.process_time()
    refuses(parse, baseline, "network_g cannot be built: it has more than 5000 tensors; change its values")
    assert time.process_time() - start < 5


@pytest.mark.usefixtures("small_machine")
def test_a_network_that_needs_its_values_is_counted_before_it_takes_memory(baseline: Options, parse: Parse) -> None:
    baseline["network_g"] = {
        **{"type": "ECBSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 4, "num_channel": 3000},
        **{"with_idt": True, "act_type": "prelu", "scale": 4},
    }
    refuses(parse, baseline, "network_g cannot be built: it has more than 0.25 GB of weights")


def test_the_memory_is_that_of_what_holds_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weightless.memory_of({"num_gpu": 0})[1] > 1e8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), {"total_memory": 7}))
    assert weightless.memory_of({"num_gpu": "auto"}) == ("the GPU", 7)
    assert weightless.memory_of({"num_gpu": 0})[0] == "this machine"
