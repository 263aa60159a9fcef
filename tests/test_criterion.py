"""PCLCriterion: the loss of before, E_D's step beside it, and a state of tensors that other tools can hold."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
from helpers import check_gradient_by_finite_differences, rand, same, snapshot, tiny_discriminator
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import FixedEmbedding, PCLCriterion, PCLLoss, PCLPerceptualLoss, WaveletDiscriminator
from pcl_loss.functional import contrastive_discriminator_loss

FEW = {"num_positives": 1, "num_negatives": 2, "num_layers": 3}


def criterion(seed: int = 0, **keywords: Any) -> PCLCriterion:
    """A tiny float64 criterion whose E_D moves fast enough to be seen moving."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PCLCriterion(**{"num_feat": 2, "lr": 1e-2, **FEW, **keywords}).double()


def batch(step: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """sr, which requires a gradient, and hr."""
    sr, hr = (rand(2, 3, 32, 32, seed=2 * step + i, dtype=dtype) for i in (0, 1))
    return sr.requires_grad_(), hr


def run(crit: PCLCriterion, steps: range) -> list[Any]:
    """Call and back-propagate once per step; the losses and the gradients at sr."""
    results = []
    for step in steps:
        sr, hr = batch(step)
        loss = crit(sr, hr)
        loss.backward()
        results += [loss.detach(), sr.grad]
    return results


def all_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether every tensor differs. Equation 7 does not feel a shift of all logits, so the head's bias may stay."""
    return all(not torch.equal(before[name], after[name]) for name in before if name != "head.bias")


def all_equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_neither_step_reaches_the_others_network(norm: str) -> None:
    crit, net = criterion(norm=norm), nn.Conv2d(3, 3, 3, padding=1).double()
    seen: list[Tensor] = []
    crit.embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    hr = rand(2, 3, 32, 32, seed=1).requires_grad_()
    loss = crit(net(rand(2, 3, 32, 32)), hr)
    assert len(seen) == 1, "E_D was not trained, so the check could not fail"
    assert not seen[0].requires_grad, "E_D's step hangs on the SR network's graph"
    before = snapshot(crit.embedding)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    assert all(p.grad is None for p in crit.parameters()), "the SR step left a gradient in E_D"
    assert hr.grad is None
    assert same(before, snapshot(crit.embedding)), "the backward changed E_D"


@pytest.mark.parametrize("keywords", [{}, {"recipe": "light", "num_feat": 64, "lr": 1e-4, "num_layers": 1}])
def test_sr_receives_the_gradient_of_the_loss(keywords: dict[str, Any]) -> None:
    crit = criterion(**keywords)
    run(crit, range(2))
    _, hr = batch()
    crit.pcl.loss_weight = 255.0

    def loss(sr: Tensor) -> Tensor:
        # Evaluation mode keeps E_D, and the number of calls set back keeps the samples.
        crit.eval()
        crit.pcl.num_calls = 0
        return crit(sr, hr)

    check_gradient_by_finite_differences(loss, rand(2, 3, 32, 32), eps=1e-7)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("update_every", [1, 2])
def test_one_backward_after_two_calls_equals_two_backwards(norm: str, update_every: int) -> None:
    crit = criterion(norm=norm, update_every=update_every)
    one_by_one = copy.deepcopy(crit)
    expected = run(one_by_one, range(2))
    (sr1, hr1), (sr2, hr2) = batch(0), batch(1)
    losses = crit(sr1, hr1), crit(sr2, hr2)
    sum(losses).backward()
    assert all_equal([losses[0].detach(), sr1.grad, losses[1].detach(), sr2.grad], expected)
    assert same(snapshot(crit), snapshot(one_by_one))


def test_e_d_is_trained_only_in_training_with_gradients_on_and_wanted() -> None:
    sr, hr = batch()
    crit = criterion()
    before = snapshot(crit.embedding)
    crit.eval()(sr, hr)
    crit.train()(sr.detach(), hr)
    with torch.no_grad():
        crit(sr, hr)
    with torch.inference_mode():
        crit(sr, hr)
    assert same(before, snapshot(crit.embedding))
    crit(sr, hr)
    assert all_moved(before, snapshot(crit.embedding))


def discriminator_gradients(net: nn.Module, sr: Tensor, hr: Tensor) -> list[Tensor]:
    """Of equation 7, with E_D in training mode on the joint batch."""
    net.requires_grad_()
    reals, fakes = net(torch.cat([hr, sr.detach()])).chunk(2)
    return list(torch.autograd.grad(contrastive_discriminator_loss(reals, fakes), list(net.parameters())))


@pytest.mark.parametrize("update_every", [1, 3])
def test_a_step_is_one_adam_step_on_the_mean_gradient(update_every: int) -> None:
    crit = criterion(update_every=update_every, lr=3e-3, betas=(0.8, 0.7))
    net = copy.deepcopy(crit.embedding)
    adam = torch.optim.Adam(net.parameters(), lr=3e-3, betas=(0.8, 0.7))
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
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        for ours, theirs in zip(crit.embedding.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_images_of_0_255_train_e_d_as_those_of_0_1() -> None:
    one, eight_bit = criterion(), criterion(data_range=255.0)
    sr, hr = batch()
    one(sr, hr)
    eight_bit(255 * sr, 255 * hr)
    for a, b in zip(one.embedding.parameters(), eight_bit.embedding.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("untouched_global_rng")
def test_building_and_calling_it_leave_the_global_generator_alone() -> None:
    run(PCLCriterion(num_feat=2, negatives=("blur", "batch")).double(), range(2))


@pytest.mark.parametrize("keywords", [{"recipe": "light"}, {"num_feat": 2, "update_every": 2}])
def test_the_state_holds_tensors_alone_under_keys_that_never_change(keywords: dict[str, Any]) -> None:
    crit = PCLCriterion(**keywords)
    before = crit.state_dict()
    run(crit.double(), range(3))
    after = through_a_file(crit.state_dict())
    assert all(isinstance(value, Tensor) for value in after.values())
    assert [(key, value.shape) for key, value in before.items()] == [(key, v.shape) for key, v in after.items()]


def go_on_by_file(crit: PCLCriterion, **keywords: Any) -> PCLCriterion:
    resumed = criterion(seed=1, **keywords)
    run(resumed, range(10, 11))  # loading forgets a run of its own
    resumed.load_state_dict(through_a_file(crit.state_dict()))
    return resumed


@pytest.mark.parametrize("road", [go_on_by_file, lambda crit, **_: pickle.loads(pickle.dumps(crit))])
@pytest.mark.parametrize(("update_every", "norm"), [(3, "batch"), (2, "none")])
def test_a_run_that_goes_on_elsewhere_is_bit_identical_and_leaves_the_first_alone(
    road: Callable[..., PCLCriterion], update_every: int, norm: str
) -> None:
    crit = criterion(update_every=update_every, norm=norm)
    run(crit, range(5))  # 5 is no multiple of 2 or 3: gradients are pending
    twin = road(crit, update_every=update_every, norm=norm)
    before = snapshot(crit)
    continued = run(twin, range(5, 9))
    assert same(before, snapshot(crit))
    assert all_equal(run(crit, range(5, 9)), continued)
    assert same(snapshot(crit), snapshot(twin))


def test_an_outside_optimizer_leaves_e_d_alone() -> None:
    crit, alone = criterion(), criterion()
    greedy = torch.optim.AdamW(crit.parameters(), lr=1.0, weight_decay=1.0)
    for step in range(3):
        run(crit, range(step, step + 1))
        greedy.step()
        assert all(p.grad is None and not p.requires_grad for p in crit.parameters())
    run(alone, range(3))
    assert same(snapshot(crit), snapshot(alone))


def test_a_new_head_of_e_d_is_trained() -> None:
    crit = criterion()
    run(crit, range(1))
    crit.embedding.head = nn.Linear(crit.embedding.head.in_features, 1).double()
    before = snapshot(crit.embedding)
    run(crit, range(1, 3))
    assert all_moved(before, snapshot(crit.embedding))


def test_an_embedding_without_trainable_parameters_is_never_trained() -> None:
    net = tiny_discriminator().requires_grad_(False)
    crit = PCLCriterion(net, **FEW)
    before = snapshot(net)
    run(crit.requires_grad_(), range(2))
    assert same(before, snapshot(net))
    assert "l_d" not in crit.log


def test_a_given_embedding_is_used_and_trained_but_for_its_frozen_and_unused_parts() -> None:
    net = tiny_discriminator()
    net.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    net.blocks[0].conv.requires_grad_(False)
    sr, hr = batch()
    expected, before = PCLLoss(**FEW)(sr, hr, net), snapshot(net)
    crit = PCLCriterion(net, **FEW)
    assert torch.equal(crit(sr, hr), expected)
    assert torch.equal(crit.log["l_pcl"], expected.detach())
    assert all(value.shape == () and not value.requires_grad for value in crit.log.values())
    after = snapshot(net)
    assert crit.embedding is net
    for name in ("spare", "blocks.0.conv.weight"):
        assert torch.equal(after.pop(name), before.pop(name))
    assert all_moved(before, after)


def test_half_precision_is_declined_by_e_d_and_its_optimizer() -> None:
    crit = criterion().float()
    crit(*batch(0, torch.float32))
    before = snapshot(crit)
    nn.ModuleDict({"criterion": crit}).half().to(torch.bfloat16)
    assert same(before, snapshot(crit))
    assert {value.dtype for value in crit.state_dict().values() if value.is_floating_point()} == {torch.float32}


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


def test_the_light_recipe_and_a_loss_without_sync_never_ask_another_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)
    for name in ("broadcast", "all_reduce", "all_gather"):
        monkeypatch.setattr(torch.distributed, name, lambda *_: pytest.fail("a collective was called"))
    run(criterion(sync=False), range(1))
    with pytest.raises(pytest.fail.Exception, match="a collective was called"):
        run(criterion(), range(1))
    crit = PCLCriterion(recipe="light", num_in_ch=3).double()
    assert isinstance(crit.embedding, FixedEmbedding)
    assert not list(crit.parameters())
    run(crit, range(2))
    assert not {"l_d", "out_d_real", "out_d_fake"} & set(crit.log)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"lr": "1e-4"}, TypeError, "lr must be a number, got '1e-4' of type str$"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas must be two numbers.*1\.0"),
        ({"num_layers": 9}, ValueError, "num_layers must be from 1 to 8, got 9"),
        ({"embedding": nn.Conv2d(3, 3, 3)}, TypeError, "embedding must be 'fixed' or have .*Conv2d has none"),
        ({"recipe": "light", "lr": 1e-3}, ValueError, "lr=0.001 would be ignored by this embedding; drop it"),
        ({"embedding": tiny_discriminator(), "num_in_ch": 1}, ValueError, "num_in_ch=1 .*drop it"),
    ],
)
def test_bad_and_useless_knobs_are_refused(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PCLCriterion(**keywords)


def test_a_perceptual_loss_makes_its_lq_of_gt() -> None:
    sr, hr = batch(0, torch.float32)
    with pytest.raises(ValueError, match="set scale=, or drop 'lq'"):
        PCLPerceptualLoss(negatives=["lq"])
    loss, twin = PCLPerceptualLoss(scale=4, num_feat=2, negatives=["lq"]), PCLCriterion(num_feat=2, negatives=["lq"])
    twin.load_state_dict(loss.state_dict())
    value, style = loss(sr, hr)
    lq = F.interpolate(hr, (8, 8), mode="bicubic", antialias=True)
    assert torch.equal(value, twin(sr, hr, lq))
    assert style is None


@pytest.mark.parametrize(
    ("low", "high", "data_range", "message"),
    [
        (0, 255, 1, r"is 1, but the largest value of HR is 25\d.*train with data_range 255,"),
        (0, 1, 255, r"is 255, but the largest value of HR is 0\.9.*train with data_range 1,"),
        (-1, 1, 1, r"smallest value of HR is -0\.99.*\[-1, 1\].* pcl\(\(sr \+ 1\) / 2, \(hr \+ 1\) / 2\)"),
    ],
)
def test_images_of_another_range_are_refused_at_first_with_one_that_fits(
    low: float, high: float, data_range: float, message: str
) -> None:
    sr, hr = (rand(2, 3, 32, 32, seed=seed, dtype=torch.float32) * (high - low) + low for seed in (1, 2))
    with pytest.raises(ValueError, match=message):
        PCLCriterion(num_feat=2, data_range=data_range)(sr, hr)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_state_that_is_assigned_goes_on_as_the_one_that_was_saved(device: str) -> None:
    saved = criterion(seed=1)
    run(saved, range(2))
    with torch.device(device):
        assigned = criterion(seed=2)
    assigned.load_state_dict(copy.deepcopy(saved.state_dict()), assign=True)
    before = snapshot(assigned.embedding)
    assert all(map(torch.equal, run(assigned, range(2, 4)), run(saved, range(2, 4))))
    assert not same(snapshot(assigned.embedding), before)


def test_the_range_is_looked_at_once_and_not_before_a_batch_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    crit, (sr, hr) = PCLCriterion(num_feat=2), batch(0, torch.float32)
    spoilt = hr.clone()
    spoilt[0, 0, 0, 0] = torch.inf
    crit(sr, spoilt)
    with pytest.raises(ValueError, match="largest value"):
        crit(sr, 255 * hr)
    crit(sr, hr)
    PCLCriterion(num_feat=2, data_range=255.0)(sr, (hr > 0.5).float())  # a black first batch
    monkeypatch.setattr("pcl_loss.criterion.check_white", None)  # not called again
    crit(sr, hr)


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
    alone = [copy.deepcopy(net) for _ in range(2)]
    grads = [discriminator_gradients(one, *ranks.images_of(rank, 0)) for rank, one in enumerate(alone)]
    for param, *of_ranks in zip(net.parameters(), *grads, strict=True):
        param.grad = torch.stack(of_ranks).mean(0)
    adam.step()
    after = two_ranks[0]["steps"][0]
    for name, param in net.named_parameters():
        torch.testing.assert_close(after[name], param.detach(), rtol=1e-8, atol=1e-10)
    for (name, buffer), other in zip(alone[0].named_buffers(), alone[1].buffers(), strict=True):
        if buffer.is_floating_point():
            torch.testing.assert_close(after[name], (buffer + other) / 2, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_batch_that_is_not_finite_on_one_rank_leaves_no_trace_on_any(two_ranks: list[dict[str, Any]]) -> None:
    for results in two_ranks:
        assert same(results["after_a_spoilt_batch_on_rank_1"], results["steps"][-1])


@pytest.mark.slow
@pytest.mark.parametrize("update_every", [1, 2])
def test_inside_distributed_data_parallel_it_trains_as_beside_it(
    two_ranks: list[dict[str, Any]], update_every: int
) -> None:
    inside, beside = (
        [results[f"{where}_ddp_{update_every}"] for results in two_ranks] for where in ("inside", "beside")
    )
    assert all(same(one, other) for one, other in zip(inside, beside, strict=True))
    assert same(*inside)
