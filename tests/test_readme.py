"""The README's call sites run as printed, and what it names is there."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from skeleton import Loss
from torch.nn import functional as F

README = Path(__file__).parent.parent / "README.md"


def printed(name: str) -> str:
    """The code block behind `<!-- test: name -->`."""
    (block,) = re.findall(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    return block


def test_the_yaml_block_turns_a_baseline_into_pcl_training(
    baseline: dict[str, Any], run_pipeline: Callable[..., str]
) -> None:
    block = yaml.safe_load(printed("yaml"))
    baseline["model_type"] = block["model_type"]
    baseline["train"] |= block["train"]
    assert block.keys() == {"model_type", "train"}
    assert "l_pcl: " in run_pipeline(baseline)


def test_the_speed_block_is_read_and_trains(
    small: dict[str, Any], build: Callable[..., Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    train = yaml.safe_load(printed("speed"))["train"]
    assert train.pop("compile") is True
    del small["train"]["pcl_opt"]["loss_weight"]
    small["train"] |= train | {"compile": {"backend": "aot_eager"}}
    net = build(small)
    for iteration in (1, 2):
        net.feed_data(batches[iteration])
        net.optimize_parameters(iteration)
    assert net.amp_dtype == torch.bfloat16
    assert net.channels_last
    assert net.get_current_log()["grad_ratio"] == pytest.approx(0.5, rel=0.01)


def test_the_loop_trains_both_networks() -> None:
    net_g = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3, padding=1), torch.nn.PixelShuffle(4))
    twin = copy.deepcopy(net_g)
    hr = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    lq = F.avg_pool2d(hr, 4)
    scope: dict[str, Any] = {
        "F": F,
        "net_g": net_g,
        "device": "cpu",
        "loader": [(lq, hr)] * 2,
        "optimizer": torch.optim.SGD(net_g.parameters(), lr=1.0),
    }
    torch.manual_seed(0)
    exec(printed("loop"), scope)
    assert scope["pcl"].embedding.blocks[0].norm.num_batches_tracked == 2

    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        F.l1_loss(twin(lq), hr).backward()
        optimizer.step()
    assert not torch.equal(net_g[0].weight, twin[0].weight)


def test_the_branch_gives_the_edsr_family_the_term() -> None:
    args = SimpleNamespace(rgb_range=255, n_colors=3, scale=[4], lr=1e-4, loss="1*L1+1*PCL")
    loss = Loss(args, printed("edsr"))
    sr = torch.rand(1, 3, 32, 32).mul(255).requires_grad_()
    loss(sr, torch.rand(1, 3, 32, 32) * 255).backward()
    assert type(loss.terms["PCL"]).__module__ == "pcl_loss.edsr_plugin"
    assert loss.terms["PCL"].log["l_pcl"] > 0


def test_every_test_that_the_table_names_is_there() -> None:
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", README.read_text())
    assert len(named) >= 10
    for file, test in named:
        sources = [path.read_text() for path in README.parent.glob(f"tests/**/{file}.py")]
        assert any(f"def {test}(" in source for source in sources), f"{file}.{test}"


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_verbs_of_the_makefile(target: str) -> None:
    assert f"make {target}" in README.read_text()
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)


def test_every_picture_is_in_the_repository() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
