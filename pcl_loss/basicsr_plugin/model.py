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
from .gradients import GradientBalance, gradient_at
from .options_ours import complete_options, num_sr_channels
from .preview_hook import add_sheet
from .speed import SpeedMixin


class PCLMixin(SpeedMixin):
    """Gives a BasicSR model that derives from `SRModel` the contrastive term and E_D.

    One iteration is the SR step, with the E_D of the iteration before, and then E_D's step on `sr.detach()`, in one
    forward over real and fake images. A batch that is not finite leaves no trace in E_D. In several processes its
    gradients and batch-norm statistics are averaged over the ranks.

    Read from the YAML: `network_d`, `path.pretrain_network_d`, `val.pcl_preview`, and under `train:` `pcl_opt`,
    `cld_opt`, `optim_d`, the keys of `SpeedMixin` (not for samples, similarities and equations 7 to 10), and

    - `pcl_start_iter`: for so many iterations E_D is trained while the SR network does without the contrastive term.
    - `pcl_every: n`: the term is applied at every n-th iteration alone, with the same weight. E_D is trained at each.
    - `pcl_grad_ratio: r`, in place of `pcl_opt.loss_weight`: see `GradientBalance`.
    - `net_d_frozen`: E_D is loaded and never trained.

    With `recipe: light` in `pcl_opt`, and without `network_d`, there is no E_D: a `FixedEmbedding` embeds.

    Logged at every iteration: `l_pix`, `l_pcl` (weighted, as added to the total), `l_cl` (unweighted), `pos_sim`,
    `neg_sim`, `margin`, `grad_ratio`, with `pcl_grad_ratio` also `pcl_weight`, and, unless E_D is frozen, `l_d`,
    `out_d_real`, `out_d_fake`. Between the iterations of `pcl_every` the values of the last one stand.
    """

    _sheet_due: tuple[Any, str, int] | None = None  # TensorBoard's writer, the validation set's name, the iteration

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt["is_train"]:
            complete_options(opt, is_pcl_model=True)
        super().__init__(opt)

    def init_training_settings(self) -> None:
        """Build E_D and the losses, then all that `SRModel` builds."""
        train_opt = self.opt["train"]
        self._seed = self.opt.get("manual_seed") or 0
        ratio = train_opt["pcl_grad_ratio"]
        self.balance = None if ratio is None else GradientBalance(ratio).to(self.device)
        self.watch = CollapseWatch()
        self._num_steps = 0
        # Of the last iteration that had the term: what is logged, and the norm of its gradient before any weight.
        names = ["l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio"]
        names += [] if ratio is None else ["pcl_weight"]
        self._pcl_log = {name: torch.zeros((), device=self.device) for name in names}
        self._grad_norm = torch.zeros((), device=self.device)
        self.cri_pcl = build_loss(train_opt["pcl_opt"]).to(self.device)
        if self.opt.get("network_d") is None:
            self.trains_net_d = False
            self.embedding: Any = FixedEmbedding(num_sr_channels(self.opt), self.cri_pcl.num_layers)
        else:
            self.cri_cld = build_loss(train_opt["cld_opt"]).to(self.device)
            self.embedding = self.net_d = self._build_net_d()
        super().init_training_settings()
        self._step_embedding = SimpleNamespace(embed=self._for_steps(self.embedding.embed))
        if self.trains_net_d:
            self._step_net_d = self._for_steps(self.net_d)

    def _build_net_d(self) -> Any:
        # A generator of its own: the data of a run with PCL stay those of its baseline with the same manual_seed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            net_d: nn.Module = build_network(self.opt["network_d"])
        path_opt = self.opt["path"]
        if path_opt.get("pretrain_network_d"):
            strict, key = path_opt.get("strict_load_d", True), path_opt.get("param_key_d", "params")
            self.load_network(net_d, path_opt["pretrain_network_d"], strict, key)
        if self.opt["train"]["net_d_frozen"]:
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
            optim_opt = dict(self.opt["train"]["optim_d"])
            params = [p for p in self.net_d.parameters() if p.requires_grad]
            self.optimizer_d = self.get_optimizer(optim_opt.pop("type"), params, **optim_opt)
            self.optimizers.append(self.optimizer_d)

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration: the SR step, then E_D's."""
        log = self._optimize_net_g(current_iter)
        if self.trains_net_d:
            log |= self._optimize_net_d()
        self._num_steps += 1
        self._end_iteration(log | {"grad_norm": self._grad_norm})

    def _sr_gradients(self, current_iter: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """As without PCL; and the contrastive loss's, weighed, where it is due."""
        grads, log = super()._sr_gradients(current_iter)
        is_due = current_iter % self.opt["train"]["pcl_every"] == 0
        is_applied = is_due and current_iter > self.opt["train"]["pcl_start_iter"]
        if is_due or not self.cri_pcl.stats:
            # It is measured where it is not applied, too: what the log shows is never made up.
            generator = seeded_generator(self._seed, current_iter)
            with self._autocast(), torch.set_grad_enabled(is_applied):
                loss = self.cri_pcl(self.output, self.gt, self._step_embedding, lq=self.lq, generator=generator)
            self._pcl_log |= {name: self.cri_pcl.stats[name] for name in self._pcl_log.keys() & self.cri_pcl.stats}
        if is_applied:
            grad = gradient_at(self.output, [loss], self.scaler)
            # The pixel loss's comes first, if there is one.
            l_pcl, norm, norm_pix = loss.detach(), grad.norm(), grads[0].norm()
            self._grad_norm = norm
            if self.balance is not None:
                weight = self._pcl_log["pcl_weight"] = self.balance(norm_pix, norm)
                l_pcl, grad, norm = weight * l_pcl, weight * grad, weight * norm
            self._pcl_log |= {"l_pcl": l_pcl, "grad_ratio": norm / norm_pix}
            grads.append(grad)
        return grads, log | self._pcl_log

    def _optimize_net_d(self) -> dict[str, Tensor]:
        self.optimizer_d.zero_grad()
        step = DiscriminatorStep(self.net_d)
        with self._autocast():
            l_d = step.loss(self._step_net_d, self.gt, self.output, self.cri_pcl.data_range, self.cri_cld)
        self.scaler.scale(l_d).backward()
        grads = [param.grad for param in self.net_d.parameters() if param.grad is not None]
        skip = step.settle(grads)
        average(grads)
        self.scaler.unscale_(self.optimizer_d)
        step.apply(self.optimizer_d, skip)
        return step.log

    @property
    def log_dict(self) -> dict[str, float]:
        """As `SpeedMixin`; says once if the term has stopped to act."""
        log = super().log_dict
        grad_norm = log.pop("grad_norm")
        if log["l_pcl"]:  # 0 up to `pcl_start_iter`
            self.watch.look(self._num_steps, log, grad_norm)
        return log

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As the base model; with `val.pcl_preview` the first image's sheet goes to TensorBoard."""
        if self.is_train and tb_logger is not None and self.opt["val"].get("pcl_preview"):
            self._sheet_due = tb_logger, dataloader.dataset.opt["name"], current_iter
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def test(self) -> None:
        """As `SpeedMixin`; then the sheet, if it is due: validation deletes the images one by one."""
        super().test()
        if self._sheet_due is not None:
            due, self._sheet_due = self._sheet_due, None
            add_sheet(self, self._seed, *due)

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

    Raises:
        TypeError: `base` does not derive from BasicSR's `SRModel`, or has an `optimize_parameters` of its own.
    """
    from basicsr.models.sr_model import SRModel  # codebases lack it

    if getattr(base, "optimize_parameters", None) is not SRModel.optimize_parameters:
        raise TypeError(
            f"base must derive from BasicSR's SRModel and take over its optimize_parameters, got {base!r}; for another "
            "model keep its model_type and put `perceptual_opt: {type: PCLPerceptualLoss}` under train"
        )
    name = "PCLModel" if base is SRModel else f"PCL{base.__name__}"
    return type(name, (PCLMixin, base), {"__module__": __name__, "__doc__": f"{base.__name__} with {PCLMixin.__doc__}"})
