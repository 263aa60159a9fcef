"""The call sites in README and docs/ run as printed, and what the pages name is there."""

import copy
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from basicsr_fixtures import train_on
from skeleton import Loss
from torch.nn import functional as F

from pcl_loss import PCLCriterion

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "basicsr_options" / "README.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)
HR = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LQ = F.avg_pool2d(HR, 2)
TESTED = re.compile(r"<!-- test: (\w+) -->\n```\w+\n(.*?)```", re.DOTALL)


def printed(name: str) -> str:
    """The code block behind `<!-- test: name -->`."""
    (block,) = [block for found, block in TESTED.findall(TEXT) if found == name]
    return block


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)}


def execute(name: str, **scope: Any) -> dict[str, Any]:
    """The names that are there once the block has run."""
    exec(printed(name), scope)
    return scope


@pytest.fixture
def net_g() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2))


def test_the_first_lines_run_and_train_e_d() -> None:
    assert len([line for line in printed("first").splitlines() if line]) == 6
    scope = execute("first")
    assert float(scope["sr"].grad.abs().sum()) > 0
    assert scope["pcl"].embedding.blocks[0].norm.num_batches_tracked == 1


def test_the_yaml_block_turns_a_baseline_into_pcl_training(
    baseline: dict[str, Any], run_pipeline: Callable[..., str]
) -> None:
    block = yaml.safe_load(printed("yaml"))
    assert block.keys() == {"model_type", "train"}
    baseline["train"] |= block.pop("train")
    assert "l_pcl: " in run_pipeline(baseline | block)


def test_the_speed_block_is_read_and_trains(
    small: dict[str, Any], build: Callable[..., Any], batches: list[dict[str, torch.Tensor]]
) -> None:
    block = yaml.safe_load(printed("speed"))["train"]
    assert block.pop("compile") is True  # which takes a minute
    del small["train"]["pcl_opt"]["loss_weight"]
    small["train"] |= block
    net = build(small)
    assert net.amp_dtype == torch.bfloat16
    assert train_on(net, batches[:2])[1]["grad_ratio"] == pytest.approx(0.5, rel=0.01)


def test_the_loop_trains_both_networks(net_g: Any) -> None:
    before = copy.deepcopy(net_g[0].weight)
    optimizer = torch.optim.SGD(net_g.parameters(), lr=1.0)
    scope = execute("loop", F=F, net_g=net_g, device="cpu", optimizer=optimizer, loader=[(LQ, HR)] * 2)
    assert scope["pcl"].embedding.blocks[0].norm.num_batches_tracked == 2
    assert not torch.equal(net_g[0].weight, before)


def small_criterion() -> PCLCriterion:
    return PCLCriterion(num_feat=4)


def module_with_loss(net_g: torch.nn.Module) -> Any:
    """The module of the block for `Trainer`, with a small E_D."""
    return execute("trainer", torch=torch, F=F, PCLCriterion=small_criterion)["WithLoss"](net_g)


def test_a_module_with_the_loss_inside_is_saved_by_safetensors_and_averaged(net_g: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = module_with_loss(net_g)
    average = execute("ema", torch=torch, model=model)["average"]
    whole = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(2):
        model(LQ, HR)["loss"].backward()
        average.update_parameters(model.net_g)
        whole.update_parameters(model)
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other = module_with_loss(copy.deepcopy(net_g))
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    for one in (model, other):
        one(LQ, HR)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_accelerate_prepares_saves_and_loads_it_inside_a_module_and_beside_one(net_g: Any, tmp_path: Path) -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = accelerator.prepare(module_with_loss(net_g))
    pcl = execute("accelerate", accelerator=accelerator, PCLCriterion=small_criterion)["pcl"]

    def step() -> list[float]:
        out = model(LQ, HR)
        out["loss"].backward()
        return [out["loss"].item(), pcl(out["sr"], HR).item()]

    step()
    accelerator.save_state(str(tmp_path))
    after = step()
    accelerator.load_state(str(tmp_path))
    assert step() == after


def test_lightnings_module_trains_both_networks(net_g: Any) -> None:
    # Its hooks are called by hand where it is not installed.
    lightning: Any = SimpleNamespace(LightningModule=torch.nn.Module)
    if find_spec("lightning"):
        import lightning
    scope = execute("lightning", torch=torch, F=F, lightning=lightning, PCLCriterion=small_criterion)
    module = scope["SuperResolution"](net_g)
    before = copy.deepcopy(module.state_dict())
    optimizer = module.configure_optimizers()
    module.training_step((LQ, HR), 0).backward()
    optimizer.step()
    moved = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
    assert {"net_g.0.weight", "pcl.embedding.head.weight"} <= set(moved)


def test_the_branch_gives_the_edsr_family_the_term() -> None:
    args = SimpleNamespace(rgb_range=255, n_colors=3, scale=[4], lr=1e-4, loss="1*L1+1*PCL")
    loss = Loss(args, printed("edsr"))
    loss(LQ.new_zeros(1, 3, 32, 32).requires_grad_(), 255 * HR[:1]).backward()
    assert type(loss.terms["PCL"]).__module__ == "pcl_loss.edsr_plugin"
    assert loss.terms["PCL"].log["l_pcl"] > 0


@pytest.mark.usefixtures("vgg_stand_in")
@pytest.mark.parametrize("block", ["plugin_slot", "plugin_yaml", "beside_vgg"])
def test_a_plugin_of_basicsr_trains_with_either_set_of_lines(
    block: str, baseline: dict[str, Any], run_pipeline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import MODEL_REGISTRY

    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    hat_model: Any = ModuleType("hat.models.hat_model")
    hat_model.HATModel = type("HATModel", (SRModel,), {})
    MODEL_REGISTRY.register(hat_model.HATModel)
    for module in (ModuleType("hat"), ModuleType("hat.models"), hat_model):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    scope = execute("plugin_top")
    if block == "plugin_yaml":
        execute("plugin_model", **scope)
    options = yaml.safe_load(printed(block))
    baseline["train"] |= options.pop("train")
    log = run_pipeline(baseline | options)
    assert ("l_pcl: " if block == "plugin_yaml" else "l_percep: ") in log


def test_every_python_and_yaml_block_is_run() -> None:
    assert len(TESTED.findall(TEXT)) == len(re.findall(r"^```(?:python|yaml)$", TEXT, re.MULTILINE))


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in headings(target), link
