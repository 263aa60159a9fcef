"""PCL as traiNNer-redux builds, calls, logs, saves and resumes a loss; its conventions stand in here, not its code."""

import logging
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from helpers import rand
from torch import Tensor

from pcl_loss import PCLCriterion
from pcl_loss.trainner_plugin import PCLLoss


class Model:
    """What of its models the adapter meets: they save networks and optimizers, never a loss."""

    def __init__(self, folder: Path, losses: dict[str, Any]) -> None:
        self.opt = SimpleNamespace(path=SimpleNamespace(models=str(folder)))
        self.losses = losses
        self.resumed: list[int] = []

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        pass

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        self.resumed.append(resume_state["iter"])

    def get_current_log(self) -> dict[str, Any]:
        return {"l_g_pcl": 0.5}


@pytest.fixture(autouse=True)
def base_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    base_model = type("BaseModel", (Model,), {})
    models: Any = ModuleType("traiNNer.models.base_model")
    models.BaseModel = base_model
    utils: Any = ModuleType("traiNNer.utils")
    utils.get_root_logger = logging.getLogger
    for module in (ModuleType("traiNNer"), ModuleType("traiNNer.models"), models, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return base_model


def images(seed: int) -> tuple[Tensor, Tensor]:
    return rand(2, 3, 32, 32, seed=seed).float().requires_grad_(), rand(2, 3, 32, 32, seed=seed + 50).float()


def test_the_options_in_the_docs_build_the_loss() -> None:
    page = (Path(__file__).parents[1] / "docs" / "codebases.md").read_text()
    (block,) = re.findall(r"<!-- test: trainner -->\n```yaml\n(.*?)```", page, re.DOTALL)
    # Its registry takes the name of the class, in lower case.
    by_type = {each.pop("type"): each for each in yaml.safe_load(block)["train"]["losses"]}
    assert PCLLoss(**by_type[PCLLoss.__name__.lower()]).pcl.recipe == "light"


@pytest.mark.parametrize("recipe", ["paper", "light"])
def test_the_weight_is_left_to_the_trainer_and_the_gradient_is_that_of_the_criterion(recipe: str) -> None:
    torch.manual_seed(0)
    loss = PCLLoss(loss_weight=3.0, recipe=recipe)
    torch.manual_seed(0)
    criterion = PCLCriterion(recipe=recipe, loss_weight=1.0)
    assert loss.loss_weight == 3.0
    with pytest.raises(ValueError, match="loss_weight"):  # which would give it another target
        PCLLoss(loss_weight=-1.0)
    for seed in range(2):
        sr, hr = (x[:1].detach() for x in images(seed))
        grads = [torch.autograd.grad(term(sr.requires_grad_(), hr), sr)[0] for term in (loss, criterion)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("recipe", "size"), [("paper", 16), ("light", 40)])
def test_it_is_zero_where_sr_is_hr_and_the_same_for_an_image_and_that_image_twice(recipe: str, size: int) -> None:
    loss, (sr, hr) = PCLLoss(loss_weight=1.0, recipe=recipe), rand(2, 1, 3, size, size).float()
    for image in (hr, torch.zeros(1, 3, size, size)):
        assert abs(loss(image, image).item()) < 1e-6
    values = [loss(x, y) for x, y in ((sr, hr), (torch.cat([sr, sr]), torch.cat([hr, hr])))]
    assert values[0] != 0
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)


def test_a_target_made_in_inference_mode_trains_both_networks() -> None:
    loss = PCLLoss(loss_weight=1.0, num_feat=4)
    before = loss.embedding.head.weight.clone()
    sr, _ = images(0)
    with torch.inference_mode():
        hr = torch.rand(2, 3, 32, 32)
    loss(sr, hr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert not torch.equal(loss.embedding.head.weight, before)


def test_the_log_gets_its_statistics_and_no_other_model_does(base_model: Any, tmp_path: Path) -> None:
    loss = PCLLoss(loss_weight=1.0, num_feat=4)
    PCLLoss(loss_weight=1.0, num_feat=4)
    model = base_model(tmp_path, {"l_g_l1": torch.nn.L1Loss(), "l_g_pcl": loss})
    assert model.get_current_log() == {"l_g_pcl": 0.5}
    loss(*images(0))
    logged = {f"pcl_{name}": loss.log[name] for name in ("l_cl", "pos_sim", "neg_sim", "margin", "l_d")}
    assert model.get_current_log() == {"l_g_pcl": 0.5} | logged
    assert base_model(tmp_path, {"l_g_l1": torch.nn.L1Loss()}).get_current_log() == {"l_g_pcl": 0.5}


def test_a_resumed_training_goes_on_exactly(base_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def build() -> tuple[PCLLoss, Any]:
        loss = PCLLoss(loss_weight=1.0, num_feat=4, update_every=2)
        return loss, base_model(tmp_path, {"l_g_pcl": loss})

    loss, model = build()
    for seed in range(3):
        loss(*images(seed))
    model.save_training_state(0, 3)
    resumed, again = build()
    again.resume_training({"iter": 3})
    assert again.resumed == [3]
    for seed in range(3, 6):
        assert torch.equal(loss(*images(seed)), resumed(*images(seed)))
    ours, theirs = loss.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if isinstance(ours[key], Tensor))

    again.resume_training({"iter": 7})
    assert "pcl_7.pth" in caplog.text
