"""One iteration is the SR step with the E_D of before, and then E_D's step; nothing else moves."""

import copy
import inspect
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.models.swinir_model import SwinIRModel
from torch.nn import functional as F

from pcl_loss import PCLLoss, functional, preview
from pcl_loss.basicsr_plugin import PCLMixin, PCLModel, PCLSwinIRModel, model, pcl_model
from pcl_loss.samples import seeded_generator

Options = dict[str, Any]
Build = Callable[[Options], Any]
Batches = list[dict[str, torch.Tensor]]

LOG_KEYS = {"l_pix", "l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "l_d", "out_d_real", "out_d_fake"}


def train_on(net: Any, batches: Batches, first_iter: int = 1) -> list[dict[str, float]]:
    logs = []
    for iteration, batch in enumerate(batches, first_iter):
        net.update_learning_rate(iteration)
        net.feed_data(batch)
        net.optimize_parameters(iteration)
        logs.append(dict(net.get_current_log()))
    return logs


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def assert_equal_weights(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def check_one_iteration(net: Any, batch: dict[str, torch.Tensor]) -> None:
    """Both networks move as plain PyTorch steps written out from the paper's algorithm move their copies."""
    net_g, net_d = copy.deepcopy(net.net_g), copy.deepcopy(net.net_d)
    optim_g = torch.optim.Adam(net_g.parameters(), lr=1e-3, betas=(0.9, 0.99))
    sr = net_g(batch["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batch["gt"], net_d, generator=seeded_generator(3, 1))
    (F.l1_loss(sr, batch["gt"]) + pcl).backward()
    optim_g.step()

    optim_d = torch.optim.Adam(net_d.parameters(), lr=1e-3, betas=(0.9, 0.999))
    logits = net_d(torch.cat([batch["gt"], sr.detach()]))
    functional.contrastive_discriminator_loss(logits[:2], logits[2:]).backward()
    optim_d.step()

    train_on(net, [batch])
    assert_equal_weights(weights(net.net_g), weights(net_g))
    assert_equal_weights(weights(net.net_d), weights(net_d))
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        assert torch.equal(param.grad, expected.grad), "E_D's step reached the SR network"


def strong(options: Options) -> Options:
    options["train"]["pcl_opt"]["loss_weight"] = 300.0
    return options


def test_one_iteration_is_the_sr_step_and_then_the_step_of_e_d(small: Options, build: Build, batches: Batches) -> None:
    check_one_iteration(build(strong(small)), batches[0])


@pytest.mark.parametrize(
    ("method", "line", "mutation"),
    [
        ("_optimize_net_d", "self.output.detach()", "self.output"),
        ("_contrastive_loss", "self.cri_pcl(self.output,", "self.cri_pcl(self.output.detach(),"),
        ("_optimize_net_d", "torch.cat([self.gt, self.output", "torch.cat([self.output, self.gt"),
        ("_optimize_net_d", "self.optimizer_d.step()", "self.optimizer_g.step()"),
    ],
)
def test_a_mutant_of_the_iteration_is_caught(
    method: str, line: str, mutation: str, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    source = textwrap.dedent(inspect.getsource(getattr(PCLMixin, method)))
    assert line in source
    namespace = dict(vars(model))
    exec(source.replace(line, mutation), namespace)
    monkeypatch.setattr(PCLMixin, method, namespace[method])
    with pytest.raises((AssertionError, RuntimeError)):
        check_one_iteration(build(strong(small)), batches[0])


def test_every_iteration_logs_the_same_keys(small: Options, build: Build, batches: Batches) -> None:
    small["train"]["pcl_start_iter"] = 1
    assert all(log.keys() == LOG_KEYS for log in train_on(build(small), batches[:3]))


def test_the_logged_margin_is_the_difference_of_the_similarities(
    small: Options, build: Build, batches: Batches
) -> None:
    (log,) = train_on(build(small), batches[:1])
    assert log["margin"] == pytest.approx(log["pos_sim"] - log["neg_sim"], abs=1e-6)
    assert log["l_pcl"] == pytest.approx(log["l_cl"] / 255, rel=1e-5)


def test_the_sr_network_trains_as_its_baseline_up_to_pcl_start_iter(
    baseline: Options, small: Options, build: Build, batches: Batches
) -> None:
    small["train"]["pcl_start_iter"] = 3
    plain, net = build(baseline), build(strong(small))
    before = weights(net.net_d)
    train_on(plain, batches[:3])
    logs = train_on(net, batches[:3])
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))
    assert all(log["l_pcl"] == 0 and log["l_cl"] > 0 for log in logs)
    assert any(not torch.equal(value, before[key]) for key, value in weights(net.net_d).items())

    plain.feed_data(batches[3])
    plain.optimize_parameters(4)
    (log,) = train_on(net, batches[3:4], first_iter=4)
    assert log["l_pcl"] > 0
    assert not torch.equal(net.net_g.conv_first.weight, plain.net_g.conv_first.weight)


def test_building_e_d_leaves_the_random_numbers_of_the_run_alone(
    baseline: Options, small: Options, build: Build
) -> None:
    plain = build(baseline)
    state = torch.random.get_rng_state()
    net = build(small)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))


def test_the_seed_decides_e_d(small: Options, build: Build) -> None:
    first, again = build(small), build(small)
    assert_equal_weights(weights(first.net_d), weights(again.net_d))
    other = build(small | {"manual_seed": 4})
    assert not torch.equal(first.net_d.head.weight, other.net_d.head.weight)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    whole = build(small)
    train_on(whole, batches)

    first = build(small)
    train_on(first, batches[:3])
    first.save(0, 3)
    small["path"] |= {f"pretrain_network_{net}": str(tmp_path / f"models/net_{net}_3.pth") for net in "gd"}
    second = build(small)
    second.resume_training(torch.load(tmp_path / "training_states/3.state", weights_only=True))
    train_on(second, batches[3:], first_iter=4)

    for name in ("net_g", "net_g_ema", "net_d"):
        assert_equal_weights(weights(getattr(second, name)), weights(getattr(whole, name)))
    for resumed, uninterrupted in zip(second.optimizers, whole.optimizers, strict=True):
        for param, state in uninterrupted.state_dict()["state"].items():
            assert_equal_weights(resumed.state_dict()["state"][param], state)
    assert len(second.optimizers) == len(second.schedulers) == 2


def test_warm_up_and_scheduler_hold_for_both_networks(small: Options, build: Build, batches: Batches) -> None:
    small["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [5], "gamma": 0.5}
    net = build(small)
    rates = []
    for iteration, batch in enumerate(batches, 1):
        net.update_learning_rate(iteration, warmup_iter=3)
        net.feed_data(batch)
        net.optimize_parameters(iteration)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in net.optimizers])
    expected = [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3, 5e-4]
    assert rates == [pytest.approx([rate, rate], rel=1e-12) for rate in expected]


def test_a_pretrained_e_d_is_loaded(small: Options, build: Build, batches: Batches, tmp_path: Path) -> None:
    teacher = build(small)
    train_on(teacher, batches[:2])
    teacher.save(0, 2)
    small["path"]["pretrain_network_d"] = str(tmp_path / "models/net_d_2.pth")
    assert_equal_weights(weights(build(small).net_d), weights(teacher.net_d))


def test_a_frozen_e_d_embeds_and_is_never_trained(
    small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    teacher = build(small)
    teacher.save(0, 2)
    small["path"]["pretrain_network_d"] = str(tmp_path / "models/net_d_2.pth")
    small["train"]["net_d_frozen"] = True
    net = build(small)
    logs = train_on(net, batches[:2])
    assert_equal_weights(weights(net.net_d), weights(teacher.net_d))
    assert len(net.optimizers) == 1
    assert all(log.keys() == LOG_KEYS - {"l_d", "out_d_real", "out_d_fake"} and log["l_pcl"] > 0 for log in logs)


def test_the_ema_follows_the_sr_network(small: Options, build: Build, batches: Batches) -> None:
    net = build(small)
    key = "conv_first.weight"
    expected = weights(net.net_g)[key]
    for iteration, batch in enumerate(batches[:3], 1):
        train_on(net, [batch], first_iter=iteration)
        expected = 0.9 * expected + 0.1 * weights(net.net_g)[key]
    torch.testing.assert_close(weights(net.net_g_ema)[key], expected)


def test_all_negative_sources_train(small: Options, build: Build, batches: Batches) -> None:
    small["train"]["pcl_opt"]["negatives"] = ["blur", "lq", "batch"]
    logs = train_on(build(small), batches[:2])
    assert all(0 < log["l_cl"] < 10 for log in logs)


def test_a_model_that_derives_from_sr_model_gets_the_term() -> None:
    assert issubclass(PCLModel, (PCLMixin, SRModel))
    assert issubclass(PCLSwinIRModel, SwinIRModel)
    assert PCLSwinIRModel.test is PCLMixin.test
    assert PCLModel.__name__ == "PCLModel"
    assert PCLSwinIRModel.__name__ == "PCLSwinIRModel"


def test_swinir_trains_and_is_tested_on_sizes_off_its_window(small: Options, build: Build, batches: Batches) -> None:
    small["model_type"] = "PCLSwinIRModel"
    small["network_g"] = {
        "type": "SwinIR",
        "upscale": 4,
        "in_chans": 3,
        "img_size": 16,
        "window_size": 4,
        "img_range": 1.0,
        "depths": [1],
        "embed_dim": 8,
        "num_heads": [2],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
    }
    net = build(small)
    train_on(net, batches[:1])
    net.feed_data({"lq": torch.rand(1, 3, 14, 18)})
    net.test()
    assert net.output.shape == (1, 3, 56, 72)


@pytest.mark.parametrize("base", [ESRGANModel, dict, "SRModel"])
def test_a_base_that_trains_in_a_way_of_its_own_is_refused(base: Any) -> None:
    with pytest.raises(
        TypeError, match="PCLPerceptualLoss" if base is ESRGANModel else "derives from BasicSR's SRModel"
    ):
        pcl_model(base)


class Validation(list[dict[str, Any]]):
    """What `nondist_validation` uses of a data loader."""

    class dataset:
        opt = {"name": "held_out"}  # noqa: RUF012


class TensorBoard:
    """Notes the images it is given."""

    def __init__(self) -> None:
        self.images: list[tuple[str, Any, int]] = []

    def add_scalar(self, *args: Any) -> None:
        pass

    def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
        self.images.append((tag, image, step))


def validation_pairs(batches: Batches) -> Validation:
    pairs = Validation()
    for number, batch in enumerate(batches[4:]):
        pairs.append({"lq": batch["lq"][:1], "gt": batch["gt"][:1], "lq_path": [f"{number}.png"]})
    return pairs


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def train_and_validate(net: Any, batches: Batches, board: Any) -> None:
    for iteration in (1, 2):
        train_on(net, batches[iteration : iteration + 1], first_iter=iteration)
        net.validation(validation_pairs(batches), iteration, board, False)


def test_a_preview_leaves_the_training_as_it_is_bit_for_bit(small: Options, build: Build, batches: Batches) -> None:
    small["train"]["pcl_opt"] |= {"num_positives": 1, "num_negatives": 2}
    results = []
    for wanted in (False, True):
        small["val"]["pcl_preview"] = wanted
        net, board = build(small), TensorBoard()
        train_and_validate(net, batches, board)
        assert len(board.images) == (2 if wanted else 0)
        assert net.net_d.training
        results.append((net, random_states()))
    (plain, plain_random), (shown, shown_random) = results
    assert plain_random == shown_random
    for name in ("net_g", "net_g_ema", "net_d"):
        assert_equal_weights(weights(getattr(shown, name)), weights(getattr(plain, name)))
    assert shown.metric_results == plain.metric_results


def test_the_preview_is_the_sheet_of_the_first_validation_image(
    small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    small["val"]["pcl_preview"] = True
    net, board, sheets = build(small), TensorBoard(), []
    draw = preview.draw
    monkeypatch.setattr(preview, "draw", lambda sheet, title: (sheets.append(sheet), draw(sheet, title))[1])
    train_and_validate(net, batches, board)
    first = batches[4]
    with torch.no_grad():
        sr = net.net_g_ema(first["lq"][:1])
    expected = preview.make_sheet(
        first["gt"][:1], net.cri_pcl, sr=sr, embedding=net.net_d, generator=seeded_generator(3, 0)
    )
    assert sheets[-1].l_cl == pytest.approx(expected.l_cl, rel=1e-5)
    for shown, panel in zip(sheets[-1].panels, expected.panels, strict=True):
        torch.testing.assert_close(shown.image, panel.image)
    assert [(tag, step) for tag, _, step in board.images] == [("pcl_preview/held_out", step) for step in (1, 2)]
    assert all(image.shape[1:] == (1200, 3) for _, image, _ in board.images)


@pytest.mark.parametrize("gt", [None, torch.zeros(1, 3, 60, 64)])
def test_a_validation_whose_images_make_no_sheet_goes_on_without(
    gt: torch.Tensor | None, small: Options, build: Build, batches: Batches
) -> None:
    small["val"] |= {"pcl_preview": True, "metrics": None}
    net, board, pairs = build(small), TensorBoard(), validation_pairs(batches)
    for pair in pairs:
        del pair["gt"]
        if gt is not None:
            pair["gt"] = gt
    net.validation(pairs, 1, board, False)
    assert not board.images


def test_without_tensorboard_nothing_is_drawn(small: Options, build: Build, batches: Batches, monkeypatch: Any) -> None:
    small["val"]["pcl_preview"] = True
    monkeypatch.setattr(preview, "draw", None)
    build(small).validation(validation_pairs(batches), 1, None, False)
