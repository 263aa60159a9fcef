"""PCLMixin: joint training of an SR network with the contrastive loss and of E_D, in BasicSR's train loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from torch import Tensor, nn

from .._distributed import average, broadcast
from ..discriminator_step import DiscriminatorStep
from ..embedding import FixedEmbedding
from ..samples import seeded_generator
from .collapse import CollapseWatch
from .gradients import ContrastiveTerm, GradientBalance, gradient_at
from .options_ours import complete_options, num_sr_channels
from .preview_hook import PreviewMixin
from .speed import SpeedMixin


class PCLMixin(PreviewMixin, SpeedMixin):
    """Gives a BasicSR model that derives from `SRModel` the contrastive term and E_D.

    One iteration is the SR step, with the E_D of the iteration before, and then E_D's step on `sr.detach()`, in one
    forward over real and fake images. A batch that is not finite leaves no trace in E_D. In several processes its
    gradients and batch-norm statistics are averaged over the ranks.

    Read from the YAML, next to what `SRModel` reads: `network_d`, `path.pretrain_network_d`, `val.pcl_preview`, and
    under `train:` `pcl_opt`, `cld_opt`, `optim_d`, the keys of `SpeedMixin` (they hold for E_D and the embedding too,
    not for samples, similarities and equations 7 to 10), and

    - `pcl_start_iter`: for so many iterations E_D is trained while the SR network does without the contrastive term.
    - `pcl_every: n`: the term is applied at every n-th iteration alone, with the same weight. E_D is trained at each.
    - `pcl_grad_ratio: r`, in place of `pcl_opt.loss_weight`: see `GradientBalance`.
    - `net_d_frozen`: E_D is loaded and never trained.

    With `recipe: light` in `pcl_opt`, and without `network_d`, there is no E_D: a `FixedEmbedding` embeds.

    Logged at every iteration: `l_pix`, `l_pcl` (weighted, as added to the total), `l_cl` (unweighted), `pos_sim`,
    `neg_sim`, `margin`, `grad_ratio`, with `pcl_grad_ratio` also `pcl_weight`, and, unless E_D is frozen, `l_d`,
    `out_d_real`, `out_d_fake`. Between the iterations of `pcl_every` the values of the last one stand.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["is_train"]:
            complete_options(opt, is_pcl_model=True)
        super().__init__(opt)

    # --- E_D and the losses ---

    def init_training_settings(self) -> None:
        """Build E_D and the losses, then all that `SRModel` builds."""
        train_opt = self.opt["train"]
        self._seed = self.opt.get("manual_seed") or 0
        self.pcl_start_iter: int = train_opt["pcl_start_iter"]
        self.pcl_every: int = train_opt["pcl_every"]
        ratio = train_opt["pcl_grad_ratio"]
        self.balance = None if ratio is None else GradientBalance(ratio).to(self.device)
        self.term = ContrastiveTerm(self.balance, self.device)
        self.watch = CollapseWatch()
        self._num_steps = 0
        self.cri_pcl = build_loss(train_opt["pcl_opt"]).to(self.device)
        if self.opt.get("network_d") is None:
            self.trains_net_d = False
            self.embedding: Any = FixedEmbedding(num_sr_channels(self.opt), self.cri_pcl.num_layers)
        else:
            self.cri_cld = build_loss(train_opt["cld_opt"]).to(self.device)
            self.embedding = self.net_d = self._build_net_d(frozen=train_opt["net_d_frozen"])
        super().init_training_settings()
        if train_opt["compile"] is not None:
            if self.trains_net_d:
                self._compiled["net_d"] = torch.compile(self.net_d, **train_opt["compile"])
            embed = torch.compile(self.embedding.embed, **train_opt["compile"])
            self._compiled["embedding"] = SimpleNamespace(embed=embed)

    def _build_net_d(self, frozen: bool) -> Any:
        # A generator of its own: the data of a run with PCL stay those of its baseline with the same manual_seed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            net_d: nn.Module = build_network(self.opt["network_d"])
        if path := self.opt["path"].get("pretrain_network_d"):
            strict, key = (
                self.opt["path"].get(*given) for given in (("strict_load_d", True), ("param_key_d", "params"))
            )
            self.load_network(net_d, path, strict, key)
        if frozen:
            net_d.requires_grad_(False)
        self.trains_net_d = any(p.requires_grad for p in net_d.parameters())
        net_d.train(self.trains_net_d)
        # In no parallel wrapper: DataParallel would give the real images to one GPU and the fake ones to another, each
        # with batch statistics of its own; DistributedDataParallel would keep rank 0's running statistics alone.
        self._laid_out(net_d).to(self.device)
        broadcast([*net_d.parameters(), *net_d.buffers()])
        self.print_network(net_d)
        return net_d

    def setup_optimizers(self) -> None:
        """The SR network's optimizer, then E_D's: the order in which they are saved."""
        super().setup_optimizers()
        if self.trains_net_d:
            # Fused, it can skip a step without waiting for the device.
            optim_opt = {"fused": True} | self.opt["train"]["optim_d"]
            params = [p for p in self.net_d.parameters() if p.requires_grad]
            self.optimizer_d = self.get_optimizer(optim_opt.pop("type"), params, **optim_opt)
            self.optimizers.append(self.optimizer_d)

    # --- the iteration ---

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: the SR step, then E_D's."""
        log = self._optimize_net_g(current_iter)
        if self.trains_net_d:
            log |= self._optimize_net_d()
        self._num_steps += 1
        self._end_iteration(log | {"grad_norm": self.term.grad_norm})

    def _sr_gradients(self, current_iter: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As without PCL; and the contrastive loss's, weighed, where it is due."""
        grads, log = super()._sr_gradients(current_iter)
        is_due = current_iter % self.pcl_every == 0
        if is_due and current_iter > self.pcl_start_iter:
            loss = self._contrastive_loss(current_iter)
            grad = gradient_at(self.output, [loss], self.scaler)
            # It is held against the pixel loss, which comes first, if there is one.
            grads.append(self.term.weigh(loss, grad, grads[0]))
        elif is_due or not self.cri_pcl.stats:
            # Measured all the same: what the log shows is never made up.
            with torch.no_grad():
                self._contrastive_loss(current_iter)
        return grads, log | self.term.log

    def _contrastive_loss(self, current_iter: int) -> Tensor:
        generator = seeded_generator(self._seed, current_iter)
        embedding = self._compiled.get("embedding", self.embedding)
        with self._autocast():
            loss: Tensor = self.cri_pcl(self.output, self.gt, embedding, lq=self.lq, generator=generator)
        self.term.measure(self.cri_pcl.stats)
        return loss

    @property
    def log_dict(self) -> dict[str, float]:
        """As `SpeedMixin`; and the term is watched."""
        log = super().log_dict
        grad_norm = log.pop("grad_norm")
        if log["l_pcl"]:  # 0 up to `pcl_start_iter`
            self.watch.look(self._num_steps, log, grad_norm)
        return log

    def _optimize_net_d(self) -> dict[str, Tensor]:
        """E_D's step; returns what is logged of it."""
        self.optimizer_d.zero_grad()
        step = DiscriminatorStep(self.net_d)
        net_d = self._compiled.get("net_d", self.net_d)
        with self._autocast():
            l_d = step.loss(net_d, self.gt, self.output, self.cri_pcl.data_range, self.cri_cld)
        self.scaler.scale(l_d).backward()
        grads = [param.grad for param in self.net_d.parameters() if param.grad is not None]
        skip = step.settle(grads)
        average(grads)
        self.scaler.unscale_(self.optimizer_d)
        step.apply(self.optimizer_d, skip)
        return step.log

    # --- save and resume ---

    def save(self, epoch: int, current_iter: int) -> None:
        """Save E_D, if there is one, and then what the base model saves, of which the training state comes last."""
        if self.opt.get("network_d") is not None:
            self.save_network(self.net_d, "net_d", current_iter)
        super().save(epoch, current_iter)

    def pcl_states(self) -> dict[str, Any]:
        """As `SpeedMixin`; and the balance of the two losses."""
        return super().pcl_states() | ({} if self.balance is None else {"pcl_balance": self.balance})


def pcl_model(base: Any) -> Any:
    """The class `PCL<Base>` that gives a BasicSR model the contrastive term.

    Args:
        base: a class that derives from BasicSR's `SRModel` and takes over its `optimize_parameters`.

    Raises:
        TypeError: `base` does not derive from `SRModel`, or trains in a way of its own.
    """
    from basicsr.models.sr_model import SRModel  # codebases lack it

    if SRModel not in getattr(base, "__mro__", ()):
        raise TypeError(f"base must be a class that derives from BasicSR's SRModel, got {base!r}")
    if base.optimize_parameters is not SRModel.optimize_parameters:
        raise TypeError(
            f"{base.__name__} has an optimize_parameters of its own, which PCLMixin would replace; keep "
            f"`model_type: {base.__name__}` and put `perceptual_opt: {{type: PCLPerceptualLoss}}` under train"
        )
    name = "PCLModel" if base is SRModel else f"PCL{base.__name__}"
    return type(name, (PCLMixin, base), {"__module__": __name__, "__doc__": f"{base.__name__} with {PCLMixin.__doc__}"})
