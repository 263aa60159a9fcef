"""PCLCriterion: PCLLoss, its embedding and the embedding's training step in one module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ._checks import at_least_float32, check_count, check_number, check_positive, check_switch, check_white
from ._distributed import average, broadcast, is_distributed
from .discriminator import WaveletDiscriminator
from .discriminator_step import DiscriminatorStep
from .embedding import Embedding, FixedEmbedding
from .functional import contrastive_discriminator_loss
from .loss import PCLLoss


class PCLCriterion(nn.Module):
    """The contrastive loss for a training loop that knows no discriminator: `loss = l1(sr, hr) + pcl(sr, hr)`.

    Every training call returns the loss with the E_D of the call before, and then takes one Adam step of E_D (eq 7) on
    `sr.detach()`. The loss may be back-propagated any time later, also after further calls. A batch that is not finite
    leaves no trace in E_D. E_D's parameters require no gradient: other optimizers and wrappers pass them by.

    Under torch.distributed every rank must make the same calls; E_D then starts equal, and its gradients and statistics
    are averaged. To resume, every rank must load the state, which holds E_D, its Adam and the number of calls.

    Args:
        embedding: in place of a new `WaveletDiscriminator`. Those of its parameters that require a gradient are trained
            here from now on; it must then also map images to logits. `'fixed'` is a new `FixedEmbedding`, which is also
            what `recipe='light'` takes where none is given: there is no E_D then.
        num_in_ch, num_feat, norm, wavelet: of a new embedding, `num_in_ch` being the channels of the images.
        lr, betas: of E_D's Adam.
        update_every: average E_D's gradients over so many calls before a step, as loops that accumulate do.
        sync: average E_D over the ranks of torch.distributed.
        **pcl: keywords of `PCLLoss`.

    Raises TypeError or ValueError if an argument is of a wrong type or out of range, or would be ignored.
    """

    range_knob = "data_range"  # how a user calls the images' white
    embedding: Any
    _num_good: Tensor

    def __init__(
        self,
        embedding: nn.Module | str | None = None,
        *,
        num_in_ch: int = 3,
        num_feat: int = 64,
        norm: str = "batch",
        wavelet: bool = True,
        lr: float = 1e-4,
        betas: Sequence[float] = (0.9, 0.999),
        update_every: int = 1,
        sync: bool = True,
        **pcl: Any,
    ) -> None:
        given = dict(locals())
        super().__init__()
        self.pcl = PCLLoss(**pcl)
        self.lr = check_positive("lr", lr)
        self.betas: Any = tuple(betas)
        if len(self.betas) != 2 or not all(0 <= check_number("each of betas", beta) < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers, each at least 0 and below 1, got {betas!r}")
        self.update_every = check_count("update_every", update_every, 1)
        self.sync = check_switch("sync", sync)
        if embedding is None and self.pcl.recipe == "light":
            embedding = "fixed"
        if embedding is not None:
            of_one = ("lr", "update_every") if isinstance(embedding, str) else ("num_in_ch",)
            for name in ("num_feat", "norm", "wavelet", *of_one):
                if given[name] != inspect.signature(PCLCriterion).parameters[name].default:
                    raise ValueError(f"{name}={given[name]!r} would be ignored by this embedding; drop it")
        if embedding == "fixed":
            embedding = FixedEmbedding(num_in_ch, self.pcl.num_layers)
        elif embedding is None:
            # Forked, so that a seeded training draws the same batches with this loss as without.
            with torch.random.fork_rng(devices=[]):
                embedding = WaveletDiscriminator(num_in_ch, num_feat, norm, wavelet)
        if not isinstance(embedding, Embedding) or isinstance(embedding, str):
            raise TypeError(f"embedding must be 'fixed' or have a method embed: {type(embedding).__name__} has none")
        check_count("num_layers", self.pcl.num_layers, 1, getattr(embedding, "num_layers", None))
        self.embedding = embedding
        self._adam = nn.ModuleDict()
        self._follow_embedding()
        self._in_step_with_ranks = False
        # Since E_D's last step: the calls, and those whose gradients were finite.
        self._num_pending = 0
        self.register_buffer("_num_good", torch.zeros(()))
        self._range_is_checked = False
        self.log: dict[str, Tensor] = {}
        """Detached 0-dim tensors of the last call: `PCLLoss.stats`, `l_pcl` (the value returned), and, from E_D's last
        step, `l_d`, `out_d_real` and `out_d_fake`."""

    def forward(self, sr: Tensor, hr: Tensor, lq: Tensor | None = None) -> Tensor:
        """The weighted loss, 0-dim; only `sr` receives a gradient. Arguments and errors are those of `PCLLoss`.

        E_D is trained, in float32 or wider, if the module is in training mode, gradients are enabled and `sr` requires
        one. Raises ValueError if, on the first call, `hr` is plainly of another range.
        """
        if self.sync and is_distributed() and not self._in_step_with_ranks:
            broadcast([*self.embedding.parameters(), *self.embedding.buffers()])
            self._in_step_with_ranks = True
        loss = self.pcl(sr, hr, self.embedding, lq)
        if not self._range_is_checked and not torch.compiler.is_compiling():
            self._range_is_checked = check_white(self.range_knob, hr, self.pcl.data_range)
        log = {key: value for key, value in self.log.items() if key in ("l_d", "out_d_real", "out_d_fake")}
        log |= {"l_pcl": loss.detach(), **self.pcl.stats}
        if self.is_trained and self.training and torch.is_grad_enabled() and sr.requires_grad:
            log |= self._train_embedding(sr.detach(), hr.detach())
        self.log = log
        return loss

    @property
    def is_trained(self) -> bool:
        """Whether the embedding has parameters that are trained."""
        return len(self._adam) > 0

    def _follow_embedding(self) -> dict[str, nn.Parameter]:
        """E_D's trained parameters; those that came since the last call, such as a new head's, are taken up."""
        named = dict(self.embedding.named_parameters())
        for name, param in named.items():
            if param.requires_grad:
                param.requires_grad_(False)
                if _key(name) not in self._adam or self._adam[_key(name)].exp_avg.shape != param.shape:
                    # What Adam knows of it, and the sum of the gradients that wait for its next step.
                    state = self._adam[_key(name)] = nn.Module()
                    state.register_buffer("step", torch.zeros((), device=param.device))
                    for kind in ("exp_avg", "exp_avg_sq", "grad"):
                        state.register_buffer(kind, torch.zeros_like(param))
        return {name: param for name, param in named.items() if _key(name) in self._adam}

    def _train_embedding(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        params = self._follow_embedding()
        # They share the parameters' memory, and alone require a gradient.
        leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
        net_d = functools.partial(functional_call, self.embedding, leaves)
        step = DiscriminatorStep(self.embedding, self.sync)
        with torch.autocast(sr.device.type, enabled=False):
            l_d = step.loss(net_d, hr, sr, self.pcl.data_range, contrastive_discriminator_loss)
            # None where the logits do not use a parameter.
            found = torch.autograd.grad(l_d, [*leaves.values()], allow_unused=True)
        grads = [grad for grad in found if grad is not None]
        if self.sync:
            # At every call, so that a state that one rank saves holds the sums of all.
            average(grads)
        bad = step.settle(grads)
        states: list[Any] = [self._adam[_key(name)] for name in params]
        for state, grad in zip(states, found, strict=True):
            if grad is not None:
                state.grad += torch.where(bad > 0, 0, grad)
        self._num_good += 1 - bad
        self._num_pending += 1
        # Or more: a loaded state may have been saved with a larger `update_every`.
        if self._num_pending >= self.update_every:
            self._step(params.values(), states)
        return step.log

    def _step(self, params: Iterable[nn.Parameter], states: Sequence[Any]) -> None:
        """Adam's, on the mean of the gradients that were finite; nothing moves where none was."""
        # Fused, it can skip a step without waiting for the device.
        optimizer = torch.optim.Adam(params, self.lr, self.betas, fused=True)
        for param, state in zip(params, states, strict=True):
            state.step = state.step.float()  # also after a move to float64
            optimizer.state[param] = {name: getattr(state, name) for name in ("step", "exp_avg", "exp_avg_sq")}
            param.grad = state.grad / self._num_good.clamp_min(1)
        DiscriminatorStep.apply(optimizer, skip=self._num_good == 0)
        optimizer.zero_grad()
        for buffer in (self._num_good, *(state.grad for state in states)):
            buffer.zero_()
        self._num_pending = 0

    def get_extra_state(self) -> Tensor:
        """The number of calls since E_D's last step."""
        return torch.tensor(self._num_pending)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up what `get_extra_state` gave."""
        self._num_pending = int(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PCLCriterion:
        """As `nn.Module`; `.half()` and `.bfloat16()` leave E_D in float32, which its Adam needs."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.is_floating_point() and moved.itemsize < 4 else moved

        return super()._apply(move, recurse)


class PCLPerceptualLoss(PCLCriterion):
    """`PCLCriterion` for BasicSR's `perceptual_opt`, and whatever else calls a loss with `(x, gt)` and takes two.

    `scale`, the SR factor, is needed for the negatives `'lq'` alone, which are made of `gt`; other keywords are those
    of `PCLCriterion`.
    """

    def __init__(self, *, scale: int | None = None, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.scale: Any = None if scale is None else check_count("scale", scale, 2)
        if "lq" in self.pcl.samples.negatives and scale is None:
            raise ValueError("negatives contains 'lq', but a perceptual loss has no LR image; set scale=, or drop 'lq'")

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The weighted contrastive loss of `x`, and None, because there is no style loss; arguments as the base's."""
        return super().forward(x, gt, downsample(gt, self.scale) if "lq" in self.pcl.samples.negatives else None), None


def downsample(gt: Tensor, scale: int) -> Tensor:
    """The LR images of `gt`, in float32 or wider: for loops that pass none."""
    size = (max(gt.shape[-2] // scale, 1), max(gt.shape[-1] // scale, 1))
    # With antialiasing this is the bicubic that SR data sets are made with.
    return F.interpolate(at_least_float32(gt.detach()), size, mode="bicubic", antialias=True)


def _key(name: str) -> str:
    """A parameter's name as that of a module, which may hold no dot."""
    return name.replace(".", "/")
