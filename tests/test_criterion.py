from __future__ import annotations

import copy
import io
import math
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
from device_waits import WaitCounter
from helpers import (
    check_gradient_by_finite_differences,
    rand,
    same,
    skip_kornias_sigma_check,
    snapshot,
    tiny_discriminator,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pcl_loss import FixedEmbedding, PCLCriterion, PCLLoss, WaveletDiscriminator
from pcl_loss.criterion import DiscriminatorStep

FEW = {"num_positives": 1, "num_negatives": 2, "num_layers": 3}


def criterion(seed: int = 0, **keywords: Any) -> PCLCriterion:
    """A tiny float64 criterion whose E_D moves fast enough to be seen moving."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PCLCriterion(**{"num_feat": 2, "lr": 1e-2, **FEW, **keywords}).double()


def batch(step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """sr, which requires a gradient, and hr."""
    return (
        rand(2, 3, 32, 32, seed=2 * step, dtype=dtype).requires_grad_(),
        rand(2, 3, 32, 32, seed=2 * step + 1, dtype=dtype),
    )


def run(crit: PCLCriterion, steps: range) -> list[Tensor]:
    """Call and back-propagate once per step; the losses and the gradients at sr."""
    results = []
    for step in steps:
        sr, hr = batch(step)
        loss = crit(sr, hr)
        loss.backward()
        assert sr.grad is not None
        results += [loss.detach(), sr.grad]
    return results


def all_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether every tensor differs. Equation 7 does not feel a shift of all logits, so the head's bias may stay."""
    return all(not torch.equal(before[name], after[name]) for name in before if name != "head.bias")


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class SRNet(nn.Module):
    """The smallest SR network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, lq: Tensor) -> Tensor:
        return self.conv(F.interpolate(lq, scale_factor=2, mode="bicubic"))


class LiveSR(PCLCriterion):
    """Mutant: E_D's step on the SR images as they are, without the detach."""

    def forward(self, sr: Tensor, hr: Tensor, lq: Tensor | None = None) -> Tensor:
        self.live_sr = sr
        return super().forward(sr, hr, lq)

    def _train_embedding(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        return super()._train_embedding(self.live_sr, hr)


# --- gradients ---


def check_the_two_steps_are_apart(crit: PCLCriterion) -> None:
    """Raise if E_D's step reaches the SR network, or the SR step E_D."""
    net = SRNet().double()
    seen: list[Tensor] = []
    crit.embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    hr = rand(2, 3, 32, 32, seed=1).requires_grad_()
    loss = crit(net(rand(2, 3, 16, 16)), hr)
    assert len(seen) == 1, "E_D was not trained, so the check could not fail"
    assert not seen[0].requires_grad, "E_D's step hangs on the SR network's graph"
    assert all(p.grad is None for p in net.parameters()), "E_D's step left a gradient in the SR network"

    before = snapshot(crit.embedding)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    assert all(p.grad is None for p in crit.parameters()), "the SR step left a gradient in E_D"
    assert hr.grad is None
    assert same(before, snapshot(crit.embedding)), "the backward changed E_D"


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_neither_step_reaches_the_others_network(norm: str) -> None:
    check_the_two_steps_are_apart(criterion(norm=norm))


def test_a_missing_detach_in_e_ds_step_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="hangs on the SR network's graph"):
        check_the_two_steps_are_apart(LiveSR(num_feat=2, **FEW).double())


def check_gradient_of_sr(crit: PCLCriterion) -> None:
    _, hr = batch()
    crit.pcl.loss_weight = 255.0

    def loss(sr: Tensor) -> Tensor:
        # Evaluation mode keeps E_D, and the number of calls set back keeps the samples.
        crit.eval()
        crit.pcl.num_calls = 0
        return crit(sr, hr)

    check_gradient_by_finite_differences(loss, rand(2, 3, 32, 32), eps=1e-7)


def test_sr_receives_the_gradient_of_the_loss() -> None:
    crit = criterion()
    run(crit, range(2))
    check_gradient_of_sr(crit)


def test_the_published_codes_no_grad_around_the_anchor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    crit = criterion()
    monkeypatch.setattr(WaveletDiscriminator, "embed", torch.no_grad()(WaveletDiscriminator.embed))
    with pytest.raises(AssertionError, match="no gradient at all"):
        check_gradient_of_sr(crit)


def check_one_backward_for_two_calls(crit: PCLCriterion) -> None:
    """Raise unless two calls and one backward give what two calls with a backward each give."""
    one_by_one = copy.deepcopy(crit)
    expected = run(one_by_one, range(2))
    (sr1, hr1), (sr2, hr2) = batch(0), batch(1)
    loss1 = crit(sr1, hr1)
    loss2 = crit(sr2, hr2)
    (loss1 + loss2).backward()
    assert sr1.grad is not None
    assert sr2.grad is not None
    assert all_equal([loss1.detach(), sr1.grad, loss2.detach(), sr2.grad], expected)
    assert same(snapshot(crit), snapshot(one_by_one))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("update_every", [1, 2])
def test_one_backward_after_two_calls_equals_two_backwards(norm: str, update_every: int) -> None:
    check_one_backward_for_two_calls(criterion(norm=norm, update_every=update_every))


def test_shared_weights_in_embed_would_break_a_late_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcl_loss.discriminator import _Block

    def live(self: _Block, x: Tensor, layout: torch.memory_format) -> Tensor:
        return F.leaky_relu(F.conv2d(x, self.conv.weight, self.conv.bias, self.conv.stride, 1), 0.2)

    monkeypatch.setattr(_Block, "frozen", live)
    with pytest.raises(AssertionError):
        check_one_backward_for_two_calls(criterion(norm="none"))


# --- when E_D is trained, and how ---


def test_e_d_is_trained_only_in_training_with_gradients_on_and_wanted() -> None:
    sr, hr = batch()
    crit = criterion()
    before = snapshot(crit.embedding)
    crit.eval()
    crit(sr, hr)
    crit.train()
    crit(sr.detach(), hr)
    with torch.no_grad():
        crit(sr, hr)
    with torch.inference_mode():
        crit(sr, hr)
    assert same(before, snapshot(crit.embedding))
    crit(sr, hr)
    assert all_moved(before, snapshot(crit.embedding))


def test_the_loss_is_that_of_the_e_d_before_its_step() -> None:
    sr, hr = batch()
    crit = criterion()
    untrained = copy.deepcopy(crit.embedding)
    assert torch.equal(crit(sr, hr), PCLLoss(**FEW)(sr, hr, untrained))
    assert not torch.equal(crit(sr, hr), PCLLoss(**FEW)(sr, hr, untrained))


def discriminator_gradients(net: nn.Module, sr: Tensor, hr: Tensor) -> list[Tensor]:
    """Of equation 7, term by term, with E_D in training mode on the joint batch."""
    logits = net(torch.cat([hr, sr.detach()])).flatten()
    reals, fakes = logits[: len(hr)], logits[len(hr) :]
    loss = torch.zeros((), dtype=logits.dtype)
    for r in reals:
        loss = loss - (r.exp() / (r.exp() + sum(f.exp() for f in fakes))).log() / len(reals)
    for f in fakes:
        loss = loss - ((-f).exp() / ((-f).exp() + sum((-r).exp() for r in reals))).log() / len(fakes)
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("update_every", [1, 3])
def test_a_step_is_one_adam_step_on_the_mean_gradient(update_every: int) -> None:
    crit = criterion(update_every=update_every, lr=3e-3, betas=(0.8, 0.95))
    net = copy.deepcopy(crit.embedding)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.8, 0.95))
    for start in (0, update_every):
        grads = [discriminator_gradients(net, *batch(start + i)) for i in range(update_every)]
        for param, *of_calls in zip(net.parameters(), *grads, strict=True):
            param.grad = torch.stack(of_calls).mean(0)
        before = snapshot(crit.embedding)
        run(crit, range(start, start + update_every - 1))
        assert all(torch.equal(before[name], p) for name, p in crit.embedding.named_parameters())
        run(crit, range(start + update_every - 1, start + update_every))
        adam.step()
        for (name, ours), theirs in zip(crit.embedding.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
        for ours, theirs in zip(crit.embedding.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_images_of_0_255_train_e_d_as_those_of_0_1() -> None:
    one, eight_bit = criterion(), criterion(data_range=255.0)
    sr, hr = batch()
    one(sr, hr)
    eight_bit(255 * sr, 255 * hr)
    for a, b in zip(one.embedding.parameters(), eight_bit.embedding.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_training_tells_real_from_fake() -> None:
    crit = criterion(num_feat=4)
    hr = rand(4, 3, 32, 32)
    sr = F.avg_pool2d(rand(4, 3, 32, 32, seed=1), 3, 1, 1).requires_grad_()
    losses = []
    for _ in range(15):
        crit(sr, hr)
        losses.append(crit.log["l_d"].item())
    assert losses[-1] < losses[0] / 2
    assert crit.log["out_d_real"] > crit.log["out_d_fake"]


def test_log_holds_detached_scalars_of_the_last_step() -> None:
    crit = criterion()
    sr, hr = batch()
    loss = crit(sr, hr)
    assert {"l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "l_d", "out_d_real", "out_d_fake"} <= set(crit.log)
    assert torch.equal(crit.log["l_pcl"], loss.detach())
    for value in crit.log.values():
        assert value.shape == ()
        assert not value.requires_grad
    l_d = crit.log["l_d"]
    crit.eval()(sr, hr)
    assert torch.equal(crit.log["l_d"], l_d)


@pytest.mark.usefixtures("untouched_global_rng")
def test_the_global_generator_is_left_alone() -> None:
    run(criterion(negatives=("blur", "batch")), range(2))


def test_lq_reaches_the_loss() -> None:
    sr, hr = batch()
    crit = criterion(negatives=("lq",))
    with pytest.raises(ValueError, match="no lq was passed"):
        crit(sr, hr)
    values = [copy.deepcopy(crit)(sr, hr, rand(2, 3, 8, 8, seed=seed)).item() for seed in (1, 2)]
    assert values[0] != values[1]


# --- a resumed run ---


@pytest.mark.parametrize(("update_every", "norm"), [(1, "batch"), (3, "batch"), (2, "none")])
def test_a_run_resumed_from_a_file_is_bit_identical_to_an_uninterrupted_one(update_every: int, norm: str) -> None:
    uninterrupted = criterion(update_every=update_every, norm=norm)
    run(uninterrupted, range(5))  # 5 is no multiple of 2 or 3: gradients are pending
    resumed = criterion(seed=1, update_every=update_every, norm=norm)
    state = through_a_file(uninterrupted.state_dict())
    assert not same(snapshot(resumed), snapshot(uninterrupted))
    resumed.load_state_dict(state)
    assert all_equal(run(resumed, range(5, 9)), run(uninterrupted, range(5, 9)))
    assert same(snapshot(resumed), snapshot(uninterrupted))


def test_loading_into_a_criterion_that_has_run_forgets_its_run() -> None:
    uninterrupted, other = criterion(update_every=2), criterion(seed=1, update_every=2)
    state = through_a_file(uninterrupted.state_dict())
    run(other, range(10, 13))
    other.load_state_dict(state)
    assert all_equal(run(other, range(4)), run(uninterrupted, range(4)))
    assert same(snapshot(other), snapshot(uninterrupted))


def test_a_state_of_another_kind_is_refused() -> None:
    frozen = tiny_discriminator().requires_grad_(False)
    with pytest.raises(ValueError, match="the checkpoint's embedding is trained, this criterion's is not"):
        PCLCriterion(frozen).double().load_state_dict(criterion().state_dict())


def test_a_copy_goes_its_own_way() -> None:
    crit = criterion(update_every=2)
    run(crit, range(3))
    twin = copy.deepcopy(crit)
    before = snapshot(crit)
    continued = run(twin, range(3, 6))
    assert same(before, snapshot(crit))
    assert not same(before, snapshot(twin))
    assert all_equal(run(crit, range(3, 6)), continued)
    assert same(snapshot(crit), snapshot(twin))


# --- devices and dtypes ---


def optimizer_tensors(crit: PCLCriterion, keys: tuple[str, ...] = ("exp_avg", "exp_avg_sq")) -> list[Tensor]:
    state = crit.state_dict()["_extra_state"]["optimizer"]["state"]
    return [entry[key] for entry in state.values() for key in keys]


def test_a_move_takes_the_optimizer_and_pending_gradients_along() -> None:
    crit = criterion(update_every=2).to(torch.float32)
    for step in range(3):
        crit(*batch(step, torch.float32))
    crit.to(torch.float64)
    assert optimizer_tensors(crit)
    assert {t.dtype for t in optimizer_tensors(crit)} == {torch.float64}
    assert {t.dtype for t in crit.state_dict()["_extra_state"]["grads"].values()} == {torch.float64}
    before = snapshot(crit.embedding)
    run(crit, range(3, 4))
    assert all_moved(before, snapshot(crit.embedding))


@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)])
def test_half_precision_is_declined_by_e_d_and_its_optimizer(convert: Callable[[nn.Module], nn.Module]) -> None:
    crit = criterion().float()
    crit(*batch(0, torch.float32))
    before, moments = snapshot(crit), [t.clone() for t in optimizer_tensors(crit)]
    model = nn.ModuleDict({"criterion": crit})
    convert(model)
    assert same(before, snapshot(crit))
    assert all_equal(moments, optimizer_tensors(crit))
    assert {t.dtype for t in optimizer_tensors(crit)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_train_a_float32_e_d(dtype: torch.dtype) -> None:
    crit, exact = criterion().float(), criterion().float()
    sr, hr = batch(0, dtype)
    crit(sr, hr).backward()
    exact(sr.detach().float().requires_grad_(), hr.float())
    assert same(snapshot(crit), snapshot(exact))
    assert sr.grad is not None
    assert sr.grad.dtype == dtype
    assert sr.grad.isfinite().all()


def test_under_autocast_e_d_is_trained_in_float32_and_the_loss_is_near_the_exact_one() -> None:
    inside, outside = criterion(num_feat=4).float(), criterion(num_feat=4).float()
    dtypes: list[torch.dtype] = []
    for module in inside.embedding.modules():
        module.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    for step in range(3):
        sr, hr = batch(step, torch.float32)
        exact = outside(sr, hr)
        with torch.autocast("cpu", torch.bfloat16):
            value = inside(sr, hr)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=0.01)
    assert set(dtypes) == {torch.float32}
    assert same(snapshot(inside), snapshot(outside))


@pytest.mark.usefixtures("fake_cuda")
def test_a_training_call_runs_on_the_device_of_the_images_and_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_kornias_sigma_check(monkeypatch)
    # Backward does not run on fake CUDA tensors: gradients of the right shapes stand in for it.
    monkeypatch.setattr(
        torch.autograd, "grad", lambda loss, params, **_: tuple(torch.zeros_like(param) for param in params)
    )
    with FakeTensorMode():
        with torch.device("cuda"):
            crit = PCLCriterion(num_feat=2, negatives=("blur", "lq", "batch"), update_every=2)
            sr, hr, lq = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8)
        crit(sr.requires_grad_(), hr, lq)
        with WaitCounter() as counter:
            for _ in range(2):
                value = crit(sr, hr, lq)
        assert not counter.waits
        assert value.device.type == "cuda"
        assert "l_d" in crit.log
        assert all(scalar.device.type == "cuda" for scalar in crit.log.values())


# --- batches that are not finite ---


def everything(crit: PCLCriterion) -> list[Tensor]:
    """E_D's weights, statistics and counters, and its Adam's moments and step counters."""
    return [*snapshot(crit.embedding).values(), *optimizer_tensors(crit, ("exp_avg", "exp_avg_sq", "step"))]


def spoilt_batch(where: str, value: float) -> tuple[Tensor, Tensor]:
    sr, hr = batch(7)
    with torch.no_grad():
        {"sr": sr, "hr": hr}[where][0, 1, 5, 9] = value
    return sr, hr


def check_a_spoilt_batch_leaves_no_trace(norm: str, where: str, value: float, update_every: int = 1) -> None:
    spoilt, clean = (criterion(norm=norm, update_every=update_every) for _ in range(2))
    for crit in (spoilt, clean):
        run(crit, range(2))
    for _ in range(update_every):
        assert not spoilt(*spoilt_batch(where, value)).isfinite()
    for crit in (spoilt, clean):
        run(crit, range(2, 4))
    assert all_equal(everything(spoilt), everything(clean))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["sr", "hr"])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_batch_that_is_not_finite_leaves_no_trace_in_e_d(norm: str, where: str, value: float) -> None:
    check_a_spoilt_batch_leaves_no_trace(norm, where, value)


def test_calls_that_are_all_not_finite_make_no_step() -> None:
    check_a_spoilt_batch_leaves_no_trace("batch", "sr", math.nan, update_every=2)


def test_of_accumulated_calls_the_finite_ones_count() -> None:
    spoilt, clean = criterion(update_every=2), criterion()
    spoilt(*batch(0))
    spoilt(*spoilt_batch("sr", math.nan))
    clean(*batch(0))
    assert all_equal(everything(spoilt), everything(clean))


def test_a_step_that_is_not_skipped_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiscriminatorStep, "apply", staticmethod(lambda optimizer, skip: optimizer.step()))
    with pytest.raises(AssertionError):
        check_a_spoilt_batch_leaves_no_trace("none", "sr", math.nan)


def test_statistics_that_are_not_restored_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = DiscriminatorStep.settle

    def settle_and_leave_the_buffers(self: DiscriminatorStep, grads: Any) -> Tensor:
        self._buffers = []
        return settle(self, grads)

    monkeypatch.setattr(DiscriminatorStep, "settle", settle_and_leave_the_buffers)
    with pytest.raises(AssertionError):
        check_a_spoilt_batch_leaves_no_trace("batch", "sr", math.nan)


def test_in_a_loop_with_fp16_an_overflowing_batch_costs_one_step() -> None:
    net, crit = SRNet(), criterion(norm="batch").float()
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    taken = []
    optimizer.register_step_post_hook(lambda *_: taken.append(None))
    for step in range(30):
        _, hr = batch(step, torch.float32)
        lq = F.avg_pool2d(hr, 2)
        if step == 10:
            lq[0, 0, 3, 3] = 1e30
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            sr = net(lq)
            loss = F.l1_loss(sr, hr) + crit(sr, hr)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(taken) == 29
    assert scaler.get_scale() == 2.0**7
    assert all(value.isfinite().all() for value in [*net.parameters(), *everything(crit)])
    assert {state["step"].item() for state in crit._optimizer.state.values()} == {29}


def test_a_smaller_update_every_takes_up_a_state_with_more_calls_pending() -> None:
    before, after = criterion(update_every=4), criterion(update_every=2)
    run(before, range(3))
    after.load_state_dict(before.state_dict())
    weights = snapshot(after.embedding)
    run(after, range(3, 4))
    assert all_moved(weights, snapshot(after.embedding))


# --- the light recipe: no discriminator ---


def test_the_light_recipe_has_nothing_to_train_and_an_empty_state() -> None:
    crit = PCLCriterion(recipe="light").double()
    assert isinstance(crit.embedding, FixedEmbedding)
    assert not list(crit.parameters())
    assert not crit.embedding.state_dict()
    run(crit, range(2))
    assert not {"l_d", "out_d_real", "out_d_fake"} & set(crit.log)


def test_the_light_recipe_sends_the_gradient_of_its_value() -> None:
    crit = PCLCriterion(recipe="light", loss_weight=255.0).double()
    sr, hr = batch()

    def loss(x: Tensor) -> Tensor:
        crit.pcl.num_calls = 0
        return crit(x, hr)

    check_gradient_by_finite_differences(loss, sr)


def test_a_fixed_embedding_takes_the_papers_samples_too_and_e_d_the_light_ones() -> None:
    fixed = PCLCriterion("fixed", num_layers=2)
    assert isinstance(fixed.embedding, FixedEmbedding)
    assert fixed.pcl.recipe == "paper"
    trained = PCLCriterion(WaveletDiscriminator(num_feat=2), recipe="light").double()
    before = snapshot(trained.embedding)
    run(trained, range(1))
    assert all_moved(before, snapshot(trained.embedding))


def test_grey_images_have_a_fixed_embedding_of_one_channel() -> None:
    crit = PCLCriterion(recipe="light", num_in_ch=1)
    crit(rand(1, 1, 32, 32).requires_grad_(), rand(1, 1, 32, 32, seed=1)).backward()


@pytest.mark.parametrize("knob", [{"num_feat": 32}, {"norm": "none"}, {"update_every": 2}, {"lr": 1e-3}])
def test_knobs_of_a_discriminator_that_is_not_there_are_refused(knob: dict[str, Any]) -> None:
    (name,) = knob
    with pytest.raises(ValueError, match=f"{name}=.* is a knob of the discriminator.*drop {name}"):
        PCLCriterion(recipe="light", **knob)


def test_the_light_recipe_never_asks_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)
    for name in ("broadcast", "all_reduce", "all_gather"):
        monkeypatch.setattr(torch.distributed, name, lambda *_: pytest.fail("a collective was called"))
    run(PCLCriterion(recipe="light").double(), range(2))


# --- parameters without a gradient ---


def test_a_part_of_e_d_that_is_frozen_later_stays_and_the_rest_is_trained() -> None:
    crit = criterion(norm="none")
    run(crit, range(1))
    crit.embedding.blocks[0].requires_grad_(False)
    before = snapshot(crit.embedding)
    run(crit, range(1, 3))
    after = snapshot(crit.embedding)
    assert {name for name in before if torch.equal(before[name], after[name])} - {"head.bias"} == {
        "blocks.0.conv.weight",
        "blocks.0.conv.bias",
    }


def test_a_parameter_that_the_logits_do_not_use_is_left_alone() -> None:
    class WithSpare(WaveletDiscriminator):
        def __init__(self) -> None:
            super().__init__(num_feat=2, norm="none")
            self.spare = nn.Parameter(torch.ones(3))

    crit = PCLCriterion(WithSpare(), lr=1e-2, **FEW).double()
    before = snapshot(crit.embedding)
    run(crit, range(2))
    after = snapshot(crit.embedding)
    assert torch.equal(after.pop("spare"), before.pop("spare"))
    assert all_moved(before, after)


# --- nobody else's optimizer trains E_D ---


def test_parameters_hold_no_gradient_after_any_call() -> None:
    crit = criterion(update_every=2)
    for step in range(4):
        sr, hr = batch(step)
        loss = crit(sr, hr)
        assert all(p.grad is None for p in crit.parameters())
        loss.backward()
        assert all(p.grad is None for p in crit.parameters())


def test_an_outside_optimizer_leaves_e_d_alone() -> None:
    crit, alone = criterion(), criterion()
    greedy = torch.optim.AdamW(crit.parameters(), lr=1.0, weight_decay=1.0)
    for step in range(3):
        run(crit, range(step, step + 1))
        greedy.step()
        greedy.zero_grad()
    run(alone, range(3))
    assert same(snapshot(crit), snapshot(alone))


# --- embeddings of the user's ---


def test_an_embedding_without_trainable_parameters_is_never_trained() -> None:
    net = tiny_discriminator().requires_grad_(False)
    crit = PCLCriterion(net, **FEW)
    before = snapshot(net)
    run(crit, range(2))
    assert same(before, snapshot(net))
    assert "l_d" not in crit.log
    crit.load_state_dict(through_a_file(crit.state_dict()))


def test_a_given_embedding_is_used_and_trained() -> None:
    net = tiny_discriminator()
    crit = PCLCriterion(net, **FEW)
    sr, hr = batch()
    expected = PCLLoss(**FEW)(sr, hr, net)
    before = snapshot(net)
    assert torch.equal(crit(sr, hr), expected)
    assert crit.embedding is net
    assert not same(before, snapshot(net))


def test_frozen_parts_of_an_embedding_stay_frozen() -> None:
    net = tiny_discriminator()
    net.blocks[0].conv.requires_grad_(False)
    weight = net.blocks[0].conv.weight.clone()
    crit = PCLCriterion(net, **FEW)
    run(crit, range(2))
    assert torch.equal(weight, net.blocks[0].conv.weight)


def test_the_built_e_d_has_the_knobs_it_was_given() -> None:
    crit = PCLCriterion(num_in_ch=1, num_feat=5, norm="group", wavelet=False, temperature=0.3, loss_weight=2.0)
    net = crit.embedding
    assert isinstance(net, WaveletDiscriminator)
    assert net.blocks[0].conv.weight.shape == (5, 1, 3, 3)
    assert isinstance(net.blocks[0].norm, nn.GroupNorm)
    assert (crit.pcl.temperature, crit.pcl.loss_weight) == (0.3, 2.0)


# --- bad input ---


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be above 0, got 0.0"),
        ({"lr": "1e-4"}, TypeError, "lr must be a number, got '1e-4'.*YAML"),
        ({"betas": (0.9,)}, ValueError, r"betas must be two numbers.*\(0.9,\)"),
        ({"betas": (0.9, 1.0)}, ValueError, r"(?i)beta.*1\.0"),
        ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
        ({"norm": "instance"}, ValueError, "norm must be one of"),
        ({"temperature": 0}, ValueError, "temperature must be above 0, got 0"),
        ({"negatives": ["blurr"]}, ValueError, r"unknown entries \['blurr'\]"),
        ({"num_feats": 32}, TypeError, "num_feats"),
        ({"embedding": nn.Conv2d(3, 3, 3)}, TypeError, "embedding must be 'fixed' or have .*Conv2d has none"),
        ({"embedding": nn.DataParallel(nn.Conv2d(3, 3, 3))}, TypeError, "DataParallel has none"),
    ],
)
def test_bad_knobs_are_refused(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PCLCriterion(**keywords)


@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.5, 0.5), (0.9, 0.8)])
def test_all_betas_that_adam_takes_are_taken(betas: tuple[float, float]) -> None:
    torch.optim.Adam([torch.zeros(1)], betas=betas)
    PCLCriterion(num_feat=2, betas=betas)


def test_images_that_do_not_fit_are_refused_and_train_nothing() -> None:
    crit = criterion()
    before = snapshot(crit)
    sr, hr = batch()
    for bad_sr, bad_hr, message in [
        (sr, hr[:1], "sr and hr must have the same shape"),
        (sr[:, :1], hr[:, :1], "1 channels, but 3 are expected"),
        (sr[..., :31], hr[..., :31], "at least 32x32"),
    ]:
        with pytest.raises(ValueError, match=message):
            crit(bad_sr, bad_hr)
    with pytest.raises(TypeError, match=r"hr has dtype torch\.uint8"):
        crit(sr, (255 * hr).byte())
    assert same(before, snapshot(crit))


# --- two processes ---


@pytest.mark.slow
def test_e_d_starts_equal_and_stays_equal_on_all_ranks(two_ranks: list[dict[str, Any]]) -> None:
    one, other = two_ranks
    assert not same(one["built"], other["built"]), "the seeds were to differ"
    assert same(one["started"], one["built"])
    assert same(one["started"], other["started"])
    states = [one["started"], *one["steps"]]
    for i in range(ranks.NUM_STEPS):
        assert same(one["steps"][i], other["steps"][i])
        assert all_moved(states[i], states[i + 1])


@pytest.mark.slow
def test_ranks_take_one_adam_step_on_the_mean_of_their_gradients(two_ranks: list[dict[str, Any]]) -> None:
    net = WaveletDiscriminator(num_feat=2).double()
    net.load_state_dict(two_ranks[0]["started"])
    adam = torch.optim.Adam(net.parameters(), lr=ranks.LR)
    grads, buffers = [], []
    for rank in range(2):
        alone = copy.deepcopy(net)
        grads.append(discriminator_gradients(alone, *ranks.images_of(rank, 0)))
        buffers.append(dict(alone.named_buffers()))
    for param, *of_ranks in zip(net.parameters(), *grads, strict=True):
        param.grad = torch.stack(of_ranks).mean(0)
    adam.step()
    after = two_ranks[0]["steps"][0]
    for name, param in net.named_parameters():
        torch.testing.assert_close(after[name], param.detach(), rtol=1e-8, atol=1e-10)
    for name, buffer in buffers[0].items():
        if buffer.is_floating_point():
            torch.testing.assert_close(after[name], (buffer + buffers[1][name]) / 2, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_batch_that_is_not_finite_on_one_rank_leaves_no_trace_on_any(two_ranks: list[dict[str, Any]]) -> None:
    for results in two_ranks:
        assert same(results["after_a_spoilt_batch_on_rank_1"], results["steps"][-1])


def test_without_sync_ranks_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)

    def refuse(*_: object) -> None:
        raise AssertionError("a collective was called")

    for name in ("broadcast", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, refuse)
    run(criterion(sync=False), range(1))
    with pytest.raises(AssertionError, match="a collective was called"):
        run(criterion(), range(1))


def test_a_loop_that_freezes_its_losses_stops_e_d_and_not_the_loss() -> None:
    criterion = PCLCriterion(num_feat=2).requires_grad_(False)
    before = snapshot(criterion.embedding)
    sr = rand(2, 3, 32, 32, dtype=torch.float32).requires_grad_()
    criterion(sr, rand(2, 3, 32, 32, seed=1, dtype=torch.float32)).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert same(before, snapshot(criterion.embedding))


def test_parameters_that_a_move_replaces_are_still_trained() -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        criterion = PCLCriterion(num_feat=2)
        sr, hr = rand(2, 3, 32, 32).requires_grad_(), rand(2, 3, 32, 32, seed=1)
        criterion(sr.float(), hr.float())
        criterion.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    before = snapshot(criterion.embedding)["blocks.0.conv.weight"]
    criterion(sr, hr)
    assert not torch.equal(before, criterion.embedding.blocks[0].conv.weight)
    state = criterion.get_extra_state()["optimizer"]["state"]
    assert {float(moments["step"]) for moments in state.values()} == {2.0}
    assert {moments["exp_avg"].dtype for moments in state.values()} == {torch.float64}


# --- what a caller may get wrong ---


def test_more_layers_than_the_embedding_has_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"num_layers must be from 1 to 8, got 9"):
        PCLCriterion(num_layers=9, num_feat=2)


def test_sync_is_a_yes_or_a_no() -> None:
    with pytest.raises(TypeError, match=r"sync must be True or False, got 'no'"):
        PCLCriterion(num_feat=2, sync="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("white", "data_range", "message"),
    [
        (255.0, 1.0, r"data_range is 1, but the largest value of HR is 25\d.*train with data_range 255"),
        (1.0, 255.0, r"data_range is 255, but the largest value of HR is 0\.9.*train with data_range 1"),
    ],
)
def test_images_of_another_range_are_refused_on_the_first_call(white: float, data_range: float, message: str) -> None:
    crit = PCLCriterion(num_feat=2, data_range=data_range)
    sr, hr = (rand(2, 3, 32, 32, seed=seed, dtype=torch.float32) * white for seed in (1, 2))
    with pytest.raises(ValueError, match=message):
        crit(sr, hr)


def test_images_around_zero_are_refused_on_the_first_call() -> None:
    sr, hr = (rand(2, 3, 32, 32, seed=seed, dtype=torch.float32) * 2 - 1 for seed in (1, 2))
    with pytest.raises(ValueError, match=r"the smallest value of HR is -0\.9.*not shifted around 0"):
        PCLCriterion(num_feat=2)(sr, hr)


def test_the_range_is_looked_at_once_and_not_before_a_batch_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    crit, (sr, hr) = PCLCriterion(num_feat=2), (rand(2, 3, 32, 32, seed=i, dtype=torch.float32) for i in (1, 2))
    spoilt = hr.clone()
    spoilt[0, 0, 0, 0] = torch.inf
    crit(sr, spoilt)
    with pytest.raises(ValueError, match="largest value"):
        crit(sr, 255 * hr)
    crit(sr, hr)
    monkeypatch.setattr("pcl_loss.criterion.check_white", None)  # not called again
    crit(sr, hr)


def test_double_images_are_compared_as_their_float_copies() -> None:
    values = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        crit = PCLCriterion(num_feat=2)
        sr, hr = (rand(2, 3, 32, 32, seed=seed, dtype=torch.float32).to(dtype) for seed in (1, 2))
        sr.requires_grad_()
        loss = crit(sr, hr)
        loss.backward()
        assert sr.grad is not None
        assert sr.grad.dtype == dtype
        values.append((loss.item(), crit.log["l_d"].item(), crit(sr, hr).item()))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize("nested", [False, True])
def test_a_state_of_another_norm_is_refused_in_words_and_loads_nothing(nested: bool) -> None:
    saved, crit = PCLCriterion(num_feat=4, norm="none"), PCLCriterion(num_feat=2)
    before = snapshot(crit)
    source, target = (torch.nn.ModuleList([part]) if nested else part for part in (saved, crit))
    with pytest.raises(ValueError, match=r"norm='none', num_feat=4 .*; this criterion has norm='batch', num_feat=2 "):
        target.load_state_dict(source.state_dict())
    assert same(snapshot(crit), before)


def test_evaluating_in_between_does_not_change_the_samples() -> None:
    with_evaluation, without = criterion(), criterion()
    run(with_evaluation, range(1))
    run(without, range(1))
    with torch.no_grad():
        with_evaluation(*batch(5))
    assert all_equal(run(with_evaluation, range(1, 3)), run(without, range(1, 3)))


def test_threads_take_turns_in_one_criterion() -> None:
    inside, most = [0], [0]

    class Watched(FixedEmbedding):
        def embed(self, x: Tensor, num_layers: int | None = None) -> list[Tensor]:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            maps = super().embed(x, num_layers)
            inside[0] -= 1
            return maps

    crit = PCLCriterion(Watched(num_layers=2), num_layers=2)
    sr, hr = (rand(2, 3, 32, 32, seed=seed, dtype=torch.float32) for seed in (1, 2))
    threads = [threading.Thread(target=crit, args=(sr, hr)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert crit.pcl.num_calls == 4


def test_a_copy_of_a_criterion_goes_through_pickle() -> None:
    crit = criterion()
    run(crit, range(1))
    twin = pickle.loads(pickle.dumps(crit))
    assert all_equal(run(twin, range(1, 3)), run(crit, range(1, 3)))
