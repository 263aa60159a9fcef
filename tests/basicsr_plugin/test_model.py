"""One iteration is the SR step with the E_D of before, and then E_D's step; nothing else moves."""

import copy
import functools
import inspect
import logging
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
from helpers import skip_kornias_sigma_check
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from pcl_loss import PCLLoss, WaveletDiscriminator, _known_gradient, functional
from pcl_loss.basicsr_plugin import PCLMixin, PCLModel, PCLSwinIRModel, model, pcl_model
from pcl_loss.basicsr_plugin.gradients import GradientBalance
from pcl_loss.samples import seeded_generator
from pcl_loss.tools import preview

Options = dict[str, Any]
Build = Callable[[Options], Any]
Batches = list[dict[str, torch.Tensor]]

LOG_KEYS = {"l_pix", "l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio", "l_d", "out_d_real", "out_d_fake"}


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


def with_options(options: Options, train: Options) -> Options:
    """Options with more keys under `train:`."""
    options["train"] |= copy.deepcopy(train)
    if "pcl_grad_ratio" in train:
        options["train"]["pcl_opt"].pop("loss_weight", None)
    return options


def strong(options: Options) -> Options:
    options["train"]["pcl_opt"]["loss_weight"] = 300.0
    return options


def test_one_iteration_is_the_sr_step_and_then_the_step_of_e_d(small: Options, build: Build, batches: Batches) -> None:
    check_one_iteration(build(strong(small)), batches[0])


@pytest.mark.parametrize(
    ("method", "line", "mutation"),
    [
        ("optimize_parameters", "self.output = self.output.detach()", "self.output = output"),
        ("optimize_parameters", "output.backward(", "output.sum().backward() or ("),
        ("_gradient", "grad = grad + grad_pcl", "grad = grad_pcl"),
        ("_contrastive_loss", "self.cri_pcl(self.output,", "self.cri_pcl(self.output.detach(),"),
        ("_optimize_net_d", "torch.cat([self.gt, self.output", "torch.cat([self.output, self.gt"),
        ("_optimize_net_d", "self.scaler.step(self.optimizer_d)", "self.scaler.step(self.optimizer_g)"),
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


RESUMED = [
    {},
    {"pcl_every": 2},
    {"pcl_grad_ratio": 0.5},
    {"amp": "bf16"},
    {"amp": "fp16", "pcl_grad_ratio": 0.5},
    {"channels_last": True},
    {"compile": {"backend": "aot_eager"}},
]


@pytest.mark.parametrize("train", RESUMED, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    train: Options, small: Options, build: Build, batches: Batches, tmp_path: Path
) -> None:
    with_options(small, train)
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
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    if whole.balance is not None:
        assert_equal_weights(weights(second.balance), weights(whole.balance))


def test_a_resumed_run_without_its_balance_says_so(
    small: Options, build: Build, batches: Batches, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    net = build(small)
    train_on(net, batches[:1])
    net.save(0, 1)
    net = build(with_options(small, {"pcl_grad_ratio": 0.5}))
    monkeypatch.setattr(logging.getLogger("basicsr"), "propagate", True)
    net.resume_training(torch.load(tmp_path / "training_states/1.state", weights_only=True))
    assert "pcl_state_1.pth does not hold the balance's state" in caplog.text


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


# --- how often, and how strong ---


def test_pcl_every_applies_the_term_at_every_nth_iteration_alone_with_the_same_weight(
    baseline: Options, small: Options, build: Build, batches: Batches
) -> None:
    plain, net = build(baseline), build(with_options(strong(small), {"pcl_every": 3}))
    before = weights(net.net_d)
    train_on(plain, batches[:2])
    logs = train_on(net, batches[:2])
    assert_equal_weights(weights(net.net_g), weights(plain.net_g))
    assert any(not torch.equal(value, before[key]) for key, value in weights(net.net_d).items())

    net_g = copy.deepcopy(net.net_g)
    sr = net_g(batches[2]["lq"])
    pcl = PCLLoss(loss_weight=300.0)(sr, batches[2]["gt"], net.net_d, generator=seeded_generator(3, 3))
    (F.l1_loss(sr, batches[2]["gt"]) + pcl).backward()
    (due,) = train_on(net, batches[2:3], first_iter=3)
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        assert torch.equal(param.grad, expected.grad)

    (between,) = train_on(net, batches[3:4], first_iter=4)
    assert all(log.keys() == LOG_KEYS for log in [*logs, due, between])
    assert all(log["l_pcl"] == log["grad_ratio"] == 0 and log["l_cl"] > 0 for log in logs)
    assert due["l_pcl"] == pytest.approx(pcl.item(), rel=1e-6)
    for key in ("l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio"):
        assert between[key] == due[key], key
    assert between["l_pix"] != due["l_pix"]
    assert between["l_d"] != due["l_d"]


def test_between_the_iterations_of_pcl_every_the_loss_is_not_computed(
    small: Options, build: Build, batches: Batches
) -> None:
    net = build(with_options(small, {"pcl_every": 3, "pcl_start_iter": 3}))
    calls = []
    net.cri_pcl.register_forward_hook(lambda *_: calls.append(iteration))
    for iteration, batch in enumerate(batches, 1):
        train_on(net, [batch], first_iter=iteration)
    assert calls == [1, 3, 6]  # at the first, so that the log has something to show


def gradients_at_sr(net: Any, batch: dict[str, torch.Tensor], iteration: int, white: float = 1.0) -> tuple[Any, Any]:
    """Those of L1 and of L_CL with the weight 1, from the networks as they are now."""
    sr = net.net_g(batch["lq"]).detach().requires_grad_()
    pcl = PCLLoss(data_range=white)(sr, batch["gt"], net.net_d, generator=seeded_generator(3, iteration))
    return torch.autograd.grad(F.l1_loss(sr, batch["gt"]), sr)[0], torch.autograd.grad(pcl, sr)[0]


def test_the_logged_ratio_is_that_of_the_gradients_at_the_sr_output(
    small: Options, build: Build, batches: Batches
) -> None:
    net = build(strong(small))
    grad_pix, grad_pcl = gradients_at_sr(net, batches[0], 1)
    (log,) = train_on(net, batches[:1])
    assert log["grad_ratio"] == pytest.approx((300 * grad_pcl.norm() / grad_pix.norm()).item(), rel=1e-5)


def in_range(options: Options, batches: Batches, white: float) -> Batches:
    """Options and batches for images whose white is `white`."""
    options["train"]["pcl_opt"]["data_range"] = white
    options["network_g"] |= {"img_range": 255.0 / white, "rgb_mean": [white * mean for mean in (0.45, 0.44, 0.40)]}
    return [{key: images * white for key, images in batch.items()} for batch in batches]


@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("ratio", [0.1, 2.0])
def test_pcl_grad_ratio_holds_the_ratio_over_a_run(
    ratio: float, white: float, small: Options, build: Build, batches: Batches
) -> None:
    batches = in_range(small, batches, white)
    small["train"]["scheduler"]["periods"] = [200]
    net = build(with_options(small, {"pcl_grad_ratio": ratio}))
    found, weights_used = [], []
    for iteration in range(1, 101):
        batch = batches[iteration % len(batches)]
        grad_pix, grad_pcl = gradients_at_sr(net, batch, iteration, white)
        (log,) = train_on(net, [batch], first_iter=iteration)
        found.append((log["pcl_weight"] * grad_pcl.norm() / grad_pix.norm()).item())
        weights_used.append(log["pcl_weight"])
        assert log["grad_ratio"] == pytest.approx(found[-1], rel=1e-4)
    assert found[0] == pytest.approx(ratio, rel=1e-4)
    assert sum(found) / len(found) == pytest.approx(ratio, rel=0.1)
    for start in (0, 25, 50, 75):
        assert sum(found[start : start + 25]) / 25 == pytest.approx(ratio, rel=0.1)
    # The first step's weight would not have done it.
    unweighted = [f / w for f, w in zip(found, weights_used, strict=True)]
    assert sum(unweighted[25:50]) / 25 != pytest.approx(unweighted[0], rel=0.3)


def test_with_pcl_grad_ratio_the_step_is_that_of_the_logged_weight(
    small: Options, build: Build, batches: Batches
) -> None:
    net = build(with_options(small, {"pcl_grad_ratio": 1.5}))
    net_g = copy.deepcopy(net.net_g)
    sr = net_g(batches[0]["lq"])
    grad_pix, grad_pcl = gradients_at_sr(net, batches[0], 1)
    sr.backward(grad_pix + 1.5 * grad_pix.norm() / grad_pcl.norm() * grad_pcl)
    (log,) = train_on(net, batches[:1])
    for param, expected in zip(net.net_g.parameters(), net_g.parameters(), strict=True):
        torch.testing.assert_close(param.grad, expected.grad, rtol=1e-4, atol=1e-8)
    assert log["l_pcl"] == pytest.approx(log["pcl_weight"] * log["l_cl"] / 255, rel=1e-5)
    assert log.keys() == LOG_KEYS | {"pcl_weight"}


# --- speed ---


def one_step(options: Options, build: Build, batches: Batches, train: Options) -> tuple[Any, dict[str, float]]:
    """A model after its second iteration, whose E_D has seen images, and that iteration's log."""
    net = build(with_options(strong(copy.deepcopy(options)), train))
    return net, train_on(net, batches[:2])[1]


def cosine(ours: torch.nn.Module, expected: torch.nn.Module) -> float:
    """Between the gradients of two networks."""
    grads = [torch.cat([param.grad.flatten() for param in net.parameters()]) for net in (ours, expected)]
    return F.cosine_similarity(*grads, dim=0).item()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near_float32(
    amp: str, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    # At its own first scale fp16 would skip the first steps.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**8))
    exact, expected = one_step(small, build, batches, {})
    net, log = one_step(small, build, batches, {"amp": amp})
    # bf16 has 8 bits of mantissa: 0.4 % per operation.
    assert log["l_pix"] == pytest.approx(expected["l_pix"], rel=0.01)
    assert log["l_cl"] == pytest.approx(expected["l_cl"], rel=0.01)
    assert log["l_d"] == pytest.approx(expected["l_d"], rel=0.05)
    assert log["grad_ratio"] == pytest.approx(expected["grad_ratio"], rel=0.05)
    assert all(param.dtype == torch.float32 for param in [*net.net_g.parameters(), *net.net_d.parameters()])
    assert cosine(net.net_g, exact.net_g) > 0.99
    assert cosine(net.net_d, exact.net_d) > 0.95


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_under_amp_networks_compute_in_half_and_equations_7_to_10_in_float32(
    amp: str, small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    net = build(with_options(small, {"amp": amp}))
    seen: dict[str, set[torch.dtype]] = {"sr net": set(), "e_d": set(), "similarities": set(), "logits": set()}
    net.net_g.body[0].conv1.register_forward_hook(lambda _m, _x, y: seen["sr net"].add(y.dtype))
    net.net_d.blocks[0].conv.register_forward_hook(lambda _m, _x, y: seen["e_d"].add(y.dtype))
    terms = _known_gradient.info_nce_terms
    monkeypatch.setattr(
        _known_gradient,
        "info_nce_terms",
        lambda pos, *rest: (seen["similarities"].add(pos.dtype), terms(pos, *rest))[1],
    )
    softplus = functional._softplus
    monkeypatch.setattr(functional, "_softplus", lambda x: (seen["logits"].add(x.dtype), softplus(x))[1])
    embedded = []
    embed = net.net_d.embed
    monkeypatch.setattr(net.net_d, "embed", lambda *args: (embedded.extend(maps := embed(*args)), maps)[1])
    train_on(net, batches[:1])
    assert seen == {"sr net": {half}, "e_d": {half}, "similarities": {torch.float32}, "logits": {torch.float32}}
    assert {maps.dtype for maps in embedded} == {half}
    assert net.output.dtype == torch.float32


def test_fp16_skips_a_step_that_overflows_and_halves_its_scale(small: Options, build: Build, batches: Batches) -> None:
    net = build(with_options(small, {"amp": "fp16", "pcl_grad_ratio": 0.5}))
    net.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = weights(net.net_g), weights(net.net_d), weights(net.balance)
    train_on(net, batches[:1])
    assert_equal_weights(weights(net.net_g), before[0])
    for name, param in net.net_d.named_parameters():
        assert torch.equal(param, before[1][name])
    assert net.scaler.get_scale() == 2.0**59
    assert_equal_weights(weights(net.balance), before[2])


def test_fp16_keeps_gradients_that_would_underflow(small: Options, build: Build, batches: Batches) -> None:
    # dL_1/dSR alone is 1 / 49152, below fp16's normal numbers.
    exact = build(small)
    net = build(with_options(small, {"amp": "fp16"}))
    train_on(exact, batches[:1])
    train_on(net, batches[:1])
    assert cosine(net.net_g, exact.net_g) > 0.999


@pytest.mark.parametrize("arch", ["EDSR", "HAN"])
def test_channels_last_changes_where_numbers_lie_and_not_what_they_are(
    arch: str, small: Options, build: Build, batches: Batches
) -> None:
    if arch == "HAN":
        small["network_g"] = {"type": "HAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 2}
        small["network_g"] |= {"num_block": 1, "squeeze_factor": 4, "upscale": 4}
    exact, expected = one_step(small, build, batches, {})
    net, log = one_step(small, build, batches, {"channels_last": True})
    # Adam's first step makes a step of full size of whatever rounding leaves of a gradient near 0.
    assert log == pytest.approx(expected, rel=0.01)
    for ours, theirs in ((net.net_g, exact.net_g), (net.net_d, exact.net_d)):
        assert cosine(ours, theirs) > 0.9999
        lying = [param for param in ours.parameters() if param.dim() == 4]
        assert all(param.is_contiguous(memory_format=torch.channels_last) for param in lying)
    for images in (net.lq, net.gt, net.output):
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_step_is_the_eager_one(small: Options, build: Build, batches: Batches) -> None:
    torch.compiler.reset()
    exact, expected = one_step(small, build, batches, {})
    net, log = one_step(small, build, batches, {"compile": {"backend": "aot_eager", "fullgraph": True}})
    assert log == pytest.approx(expected, rel=0.01)
    assert cosine(net.net_g, exact.net_g) > 0.9999
    assert cosine(net.net_d, exact.net_d) > 0.9999
    assert weights(net.net_g).keys() == weights(exact.net_g).keys()
    assert weights(net.net_d).keys() == weights(exact.net_d).keys()


def test_all_that_a_step_runs_is_compiled_and_validation_is_not(
    small: Options, build: Build, batches: Batches, monkeypatch: Any
) -> None:
    compiled = []

    @functools.wraps(torch.compile)
    def note(function: Any, **keywords: Any) -> Any:
        assert keywords == {"mode": "max-autotune"}
        return lambda *args: (compiled.append(function), function(*args))[1]

    monkeypatch.setattr(torch, "compile", note)
    small["train"]["ema_decay"] = 0
    net = build(with_options(small, {"compile": {"mode": "max-autotune"}}))
    train_on(net, batches[:1])
    assert set(compiled) == {net.net_g, net.net_d, net.net_d.embed}
    compiled.clear()
    net.test()
    assert not compiled


class OnFakeGPU:
    """A PCLModel's losses and log on fake CUDA tensors, on which an `.item()` raises a data-dependent error."""

    def __init__(self, balance: bool = False) -> None:
        net = object.__new__(PCLModel)
        net.opt = {"manual_seed": 3, "dist": False}
        net.device = torch.device("cuda")
        with torch.device("cuda"):
            net.net_d = WaveletDiscriminator(num_feat=2)
            net.lq, net.gt, net.output = (torch.rand(2, 3, side, side) for side in (8, 32, 32))
            net.output.requires_grad_()
            net.cri_pcl, net.cri_pix, net.cri_perceptual = PCLLoss(negatives=("blur", "lq")), torch.nn.L1Loss(), None
            net.balance = GradientBalance(0.5) if balance else None
            net._pcl_log = {"l_pcl": torch.zeros(()), "grad_ratio": torch.zeros(())}
        net.pcl_start_iter, net.pcl_every, net._compiled = 1, 2, {}
        self.net = net

    def run(self) -> None:
        # A backward pass does not run on fake CUDA tensors: any gradient of the right shape stands in.
        self.net._gradient_of = lambda loss: torch.rand_like(self.net.output)
        for iteration in (1, 2, 3):
            grad, log = self.net._gradient(self.net._sr_losses(iteration))
            self.net._note(log)
            assert grad.device.type == "cuda"


@pytest.mark.parametrize("balance", [False, True])
def test_a_steps_losses_gradient_and_log_do_not_wait_for_the_gpu(balance: bool, monkeypatch: Any) -> None:
    skip_kornias_sigma_check(monkeypatch)
    with FakeTensorMode():
        OnFakeGPU(balance).run()


def test_a_log_that_waits_for_the_gpu_would_be_noticed(monkeypatch: Any) -> None:
    skip_kornias_sigma_check(monkeypatch)
    monkeypatch.setattr(PCLModel, "_note", lambda self, log: [value.item() for value in log.values()])
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        OnFakeGPU().run()
