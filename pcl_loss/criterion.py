"""PCLCriterion: PCLLoss, its embedding and the embedding's training step in one module."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_count, check_number, check_positive, check_white
from ._distributed import average, broadcast, is_distributed
from ._guarded_step import GuardedStep
from ._tensors import at_least_float32
from .discriminator import WaveletDiscriminator
from .embedding import Embedding, FixedEmbedding
from .functional import contrastive_discriminator_loss
from .loss import PCLLoss


class PCLCriterion(nn.Module):
    """The contrastive loss for a training loop that knows no discriminator.

    It owns E_D and E_D's Adam. Every training call returns the loss with the E_D of the call before, and then takes
    one step of E_D (eq 7) on `sr.detach()`, so that `loss = F.l1_loss(sr, hr) + pcl(sr, hr)` is all that a loop needs.
    The returned loss may be back-propagated any time later, also after further calls.

    The loop's optimizer does not train E_D: its parameters never hold a `.grad` between calls, so that an optimizer
    that was given them by accident leaves them alone. A batch that is not finite leaves no trace in E_D.

    Under torch.distributed every rank must make the same calls; E_D then starts equal, its gradients and statistics
    are averaged, and it is the same on all ranks after every step. To resume, every rank must load the state.

    Args:
        embedding: a network to use in place of a new `WaveletDiscriminator`; without trainable parameters it is
            never trained. To be trained it must also map images to logits. `'fixed'` is a new `FixedEmbedding`, which
            is also what `recipe='light'` takes where none is given: there is no E_D then.
        num_in_ch: channels of the images.
        num_feat, norm, wavelet: of the new `WaveletDiscriminator`.
        lr: of E_D's Adam.
        betas: of E_D's Adam.
        update_every: average E_D's gradients over so many calls before a step, as loops that accumulate do.
        sync: average E_D over the ranks of torch.distributed.
        **pcl: keywords of `PCLLoss`.

    Raises:
        TypeError, ValueError: an argument is of a wrong type or out of range.
    """

    range_knob = "data_range"
    """How a user calls the images' white."""

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
        super().__init__()
        self.pcl = PCLLoss(**pcl)
        if embedding is None and self.pcl.recipe == "light":
            embedding = "fixed"
        if embedding == "fixed":
            _refuse_discriminator_knobs(num_feat=num_feat, norm=norm, wavelet=wavelet, lr=lr, update_every=update_every)
            embedding = FixedEmbedding(num_in_ch, self.pcl.num_layers)
        elif embedding is None:
            embedding = WaveletDiscriminator(num_in_ch, num_feat, norm, wavelet)
        if not isinstance(embedding, Embedding) or isinstance(embedding, str):
            raise TypeError(
                f"embedding must be 'fixed' or have a method embed(x, num_layers): {type(embedding).__name__} has none"
            )
        check_count("num_layers", self.pcl.num_layers, 1, getattr(embedding, "num_layers", None))
        self.embedding = embedding
        self.update_every = check_count("update_every", update_every, 1)
        if not isinstance(sync, bool):
            raise TypeError(f"sync must be True or False, got {sync!r}")
        self.sync = sync
        self._param_names = [name for name, param in embedding.named_parameters() if param.requires_grad]
        self._params = self._named_params()
        self._optimizer: torch.optim.Optimizer | None = None
        if self._params:
            # Fused, it can skip a step without waiting for the device.
            self._optimizer = torch.optim.Adam(self._params, check_positive("lr", lr), _check_betas(betas), fused=True)
        # Since E_D's last step: the calls, those whose gradients were finite, and the sums of these gradients.
        self._num_pending = 0
        self._num_good: Tensor
        self.register_buffer("_num_good", torch.zeros(()), persistent=False)
        self._grads: dict[int, Tensor] = {}
        self._in_step_with_ranks = False
        self._range_is_checked = False
        self._lock = threading.RLock()
        self.log: dict[str, Tensor] = {}
        """Detached 0-dim tensors of the last call: those of `PCLLoss.stats`, `l_pcl` (the value returned), and, from
        the last training of E_D, `l_d`, `out_d_real` and `out_d_fake`."""

    def forward(self, sr: Tensor, hr: Tensor, lq: Tensor | None = None) -> Tensor:
        """The weighted contrastive loss, 0-dim; only `sr` receives a gradient.

        E_D is trained when the module is in training mode, gradients are enabled and `sr` requires one; always in
        float32 or wider, whatever autocast says.

        Args:
            sr: super-resolved images `(N, C, H, W)` in `[0, data_range]`, `H, W >= 32`.
            hr: their ground truth, the same shape.
            lq: the LR images, for the negative source `'lq'`.

        Raises:
            TypeError, ValueError: as `PCLLoss`; or, on the first call, `hr` is plainly of another range.
        """
        if torch.compiler.is_compiling():
            return self._forward(sr, hr, lq)
        with self._lock:  # one thread at a time: E_D's step and the count of calls are shared
            return self._forward(sr, hr, lq)

    def _forward(self, sr: Tensor, hr: Tensor, lq: Tensor | None) -> Tensor:
        if not self._range_is_checked and not torch.compiler.is_compiling():
            self._range_is_checked = check_white(self.range_knob, hr, self.pcl.data_range)
        has_state = not isinstance(self.embedding, FixedEmbedding)
        if self.sync and has_state and is_distributed() and not self._in_step_with_ranks:
            self._start_equal()
        loss = self.pcl(sr, hr, self.embedding, lq)
        log = {"l_pcl": loss.detach(), **self.pcl.stats}
        # A loop may freeze its losses, E_D with them, after this module was built.
        trainable = self._optimizer is not None and any(param.requires_grad for param in self._params)
        if trainable and self.training and torch.is_grad_enabled() and sr.requires_grad:
            log |= self._train_embedding(sr.detach(), hr.detach())
        else:
            log |= {key: self.log[key] for key in ("l_d", "out_d_real", "out_d_fake") if key in self.log}
        self.log = log
        return loss

    def _train_embedding(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        step = DiscriminatorStep(self.embedding, self.sync)
        # Parameters that were frozen later, or that the logits do not use, have no gradient: None.
        active = [i for i, param in enumerate(self._params) if param.requires_grad]
        with torch.autocast(sr.device.type, enabled=False):
            l_d = step.loss(self.embedding, hr, sr, self.pcl.data_range, contrastive_discriminator_loss)
            found = torch.autograd.grad(l_d, [self._params[i] for i in active], allow_unused=True)
        bad = step.settle([grad for grad in found if grad is not None])
        for i, grad in zip(active, found, strict=True):
            if grad is not None:
                grad = torch.where(bad > 0, 0, grad)
                before = self._grads.get(i)
                self._grads[i] = grad if before is None else before.add_(grad)
        self._num_good += 1 - bad
        self._num_pending += 1
        # Or more: a loaded state may have been saved with a larger `update_every`.
        if self._num_pending >= self.update_every:
            self._step()
        return step.log

    def _step(self) -> None:
        grads = list(self._grads.values())
        if self.update_every > 1:
            torch._foreach_div_(grads, self._num_good.clamp_min(1))
        if self.sync:
            average(grads)
        for i, grad in self._grads.items():
            self._params[i].grad = grad
        optimizer = cast(torch.optim.Optimizer, self._optimizer)
        DiscriminatorStep.apply(optimizer, skip=self._num_good == 0)
        optimizer.zero_grad(set_to_none=True)
        self._grads, self._num_pending = {}, 0
        self._num_good.zero_()

    def _start_equal(self) -> None:
        broadcast([*self.embedding.parameters(), *self.embedding.buffers()])
        self._in_step_with_ranks = True

    def get_extra_state(self) -> dict[str, Any]:
        """E_D's optimizer, and the gradients that wait for its next step."""
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        pending = {"num_pending": self._num_pending, "num_good": self._num_good, "grads": dict(self._grads)}
        return {"optimizer": optimizer, **pending}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` gave.

        Raises:
            ValueError: one of the two criterions trains its embedding, the other does not.
        """
        if (state["optimizer"] is None) != (self._optimizer is None):
            raise ValueError(
                "the checkpoint's embedding is "
                f"{'frozen' if state['optimizer'] is None else 'trained'}, this criterion's is not; "
                "build PCLCriterion with the same embedding as the saved one"
            )
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self._num_pending = int(state["num_pending"])
        self._num_good.copy_(state["num_good"])
        self._grads = {i: grad.detach().to(self._params[i], copy=True) for i, grad in state["grads"].items()}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """As `nn.Module`, but names what differs in words: torch lists keys, and would have loaded half of them."""
        saved = {
            key.removeprefix(f"{prefix}embedding."): value
            for key, value in state_dict.items()
            if key.startswith(f"{prefix}embedding.") and isinstance(value, Tensor)
        }
        own = self.embedding.state_dict()
        if saved and {key: value.shape for key, value in saved.items()} != {k: v.shape for k, v in own.items()}:
            raise ValueError(
                f"the state is of another embedding, {_describe(saved)}; this criterion has {_describe(own)}; build it "
                "with the norm, num_feat, num_in_ch and wavelet of the saved one"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PCLCriterion:
        """Move E_D and its optimizer together; `.half()` and `.bfloat16()` leave both in float32, which Adam needs."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype.itemsize < 4:
                return tensor.to(moved.device)
            return moved

        super()._apply(move, recurse)
        self._grads = {i: move(grad) for i, grad in self._grads.items()}
        if self._optimizer is not None:
            self._follow_parameters(self._optimizer)
            for param, state in self._optimizer.state.items():
                # The step counter keeps its dtype.
                state.update({k: v.to(param.device) if k == "step" else move(v) for k, v in state.items()})
        return self

    def _named_params(self) -> list[nn.Parameter]:
        return [self.embedding.get_parameter(name) for name in self._param_names]

    def _follow_parameters(self, optimizer: torch.optim.Optimizer) -> None:
        """Hand the optimizer the parameters of now: some moves (`to_empty`) replace them."""
        old = self._params
        self._params = self._named_params()
        optimizer.param_groups[0]["params"] = self._params
        for before, after in zip(old, self._params, strict=True):
            if before is not after and before in optimizer.state:
                optimizer.state[after] = optimizer.state.pop(before)


class DiscriminatorStep(GuardedStep):
    """E_D's step on one batch (eq 7).

    A loop takes the gradients of `loss` in its own way, hands them to `settle`, and then calls `apply`.

    Args:
        net_d: whose buffers (batch norm's statistics) the step may change.
        sync: average these buffers over the ranks of torch.distributed, and agree with them.
    """

    def __init__(self, net_d: nn.Module, sync: bool = True) -> None:
        super().__init__(net_d, sync)
        self.log: dict[str, Tensor] = {}
        """Detached 0-dim tensors: `l_d`, `out_d_real` and `out_d_fake`."""

    def loss(
        self,
        net_d: Callable[[Tensor], Tensor],
        hr: Tensor,
        sr: Tensor,
        data_range: float,
        cri_cld: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """`cri_cld` of the logits that `net_d` gives real and super-resolved images `(N, C, H, W)`, 0-dim."""
        images = torch.cat([at_least_float32(hr), at_least_float32(sr)]) / data_range
        # One forward over both, so that batch norm treats them alike.
        real, fake = net_d(images).chunk(2)
        l_d = cri_cld(real, fake)
        self.log = {"l_d": l_d.detach(), "out_d_real": real.detach().mean(), "out_d_fake": fake.detach().mean()}
        return l_d

    def settle(self, grads: Sequence[Tensor]) -> Tensor:
        """As `GuardedStep`; the buffers become the mean of those of the ranks."""
        if self.sync:
            average([buffer for buffer, _ in self._buffers if buffer.is_floating_point()])
        return super().settle(grads)


class PCLPerceptualLoss(PCLCriterion):
    """`PCLCriterion` for BasicSR's `perceptual_opt`, and whatever else calls a loss with `(x, gt)` and takes two.

    Args:
        scale: the SR factor; needed for the negative source `'lq'` alone, whose LR images are then made of `gt`.
        **keywords: of `PCLCriterion`.

    Raises:
        TypeError, ValueError: an argument is of a wrong type or out of range, or `'lq'` comes without `scale`.
    """

    def __init__(self, *, scale: int | None = None, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.scale = None if scale is None else check_count("scale", scale, 2)
        if "lq" in self.pcl.samples.negatives and scale is None:
            raise ValueError(
                "negatives contains 'lq', and a perceptual loss is given no LR image; set scale=, or drop 'lq'"
            )

    def forward(self, x: Tensor, gt: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The weighted contrastive loss of `x`, and None for the style loss that it has not.

        Args:
            x: super-resolved images `(N, C, H, W)` in `[0, data_range]`, `H, W >= 32`.
            gt: their ground truth, the same shape.

        Raises:
            TypeError, ValueError: as `PCLLoss`.
        """
        lq = None
        if self.scale is not None and "lq" in self.pcl.samples.negatives:
            lq = downsample(gt, self.scale)
        return super().forward(x, gt, lq), None


def downsample(gt: Tensor, scale: int) -> Tensor:
    """The LR images of `gt`, in float32 or wider: for loops that pass none."""
    size = (max(gt.shape[-2] // scale, 1), max(gt.shape[-1] // scale, 1))
    # With antialiasing this is the bicubic that SR data sets are made with.
    return F.interpolate(at_least_float32(gt.detach()), size, mode="bicubic", antialias=True)


def _describe(state: Mapping[str, Tensor]) -> str:
    """A state dict of E_D as its knobs."""
    weight = state.get("blocks.0.conv.weight")
    if weight is None:
        return f"one with {len(state)} tensors"
    has_statistics = "blocks.0.norm.running_mean" in state
    norm = "batch" if has_statistics else "group" if "blocks.0.norm.weight" in state else "none"
    return f"norm={norm!r}, num_feat={len(weight)} and {weight.shape[1]} planes of input"


def _refuse_discriminator_knobs(**given: Any) -> None:
    """Raise `ValueError` if a knob of the discriminator differs from its default where there is no discriminator."""
    defaults = inspect.signature(PCLCriterion).parameters
    for name, value in given.items():
        if value != defaults[name].default:
            raise ValueError(
                f"{name}={value!r} is a knob of the discriminator, and a fixed embedding has none; drop {name}, or "
                "give embedding=WaveletDiscriminator(...)"
            )


def _check_betas(betas: Sequence[float]) -> tuple[float, float]:
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    first, second = (check_number(f"betas[{i}]", beta) for i, beta in enumerate(betas))
    if not (0 <= first < 1 and 0 <= second < 1):
        raise ValueError(f"betas must each be at least 0 and below 1, got {tuple(betas)}")
    return first, second
