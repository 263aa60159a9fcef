"""PCLMixin: joint training of an SR network with the contrastive loss and of E_D, in BasicSR's train loop."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.utils.data import default_collate

from .. import preview
from .._distributed import average, broadcast
from ..discriminator_step import DiscriminatorStep
from ..embedding import FixedEmbedding
from ..samples import seeded_generator
from .options_ours import complete_options, num_sr_channels
from .speed import GradientBalance, SpeedMixin, gradient_at

FIRST_STEPS = 100  # in which E_D's statistics settle
BOUND = 0.999  # of |cosine|, the mean over all layers: the samples look alike


class PCLMixin(SpeedMixin):
    """Gives a BasicSR model that derives from `SRModel` the contrastive term and E_D.

    One iteration is the SR step, with the E_D of the iteration before, and then E_D's step on `sr.detach()`. In several
    processes E_D's gradients and batch-norm statistics are averaged over the ranks. Read from the YAML are `network_d`,
    `path.pretrain_network_d`, `val.pcl_preview`, and under `train:` `pcl_opt`, `cld_opt`, `optim_d`, the keys of
    `SpeedMixin` (not for samples, similarities and equations 7 to 10), and

    - `pcl_start_iter`: for so many iterations E_D is trained while the SR network does without the contrastive term.
    - `pcl_every: n`: the term is applied at every n-th iteration alone, with the same weight. E_D is trained at each.
    - `pcl_grad_ratio: r`, in place of `pcl_opt.loss_weight`: see `GradientBalance`.
    - `net_d_frozen`: E_D is loaded and never trained.

    With `recipe: light` in `pcl_opt`, and without `network_d`, there is no E_D: a `FixedEmbedding` embeds.

    docs/codebases.md says what is logged; between the iterations of `pcl_every` the values of the last one stand.
    """

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
        self._num_steps, self._has_collapsed = 0, False
        # Of the last iteration that had the term.
        names = ["l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio"]
        names += [] if ratio is None else ["pcl_weight"]
        self._pcl_log = {name: torch.zeros((), device=self.device) for name in names}
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
        self._end_iteration(log)

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
        """As `SpeedMixin`; says once if all samples look alike to the embedding."""
        log = super().log_dict
        is_collapsed = min(abs(log["pos_sim"]), abs(log["neg_sim"])) > BOUND and self._num_steps >= FIRST_STEPS
        if is_collapsed and not self._has_collapsed:
            get_root_logger().warning(
                f"The contrastive term has collapsed (pos_sim {log['pos_sim']:.4f}, neg_sim {log['neg_sim']:.4f}): it "
                "hardly acts on the SR network. Lower train.optim_d.lr, set network_d's norm to group, or take the "
                "recipe light in pcl_opt."
            )
        self._has_collapsed |= is_collapsed
        return log

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As the base model; with `val.pcl_preview` the first image's sheet goes to TensorBoard."""
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        if self.is_train and tb_logger is not None and self.opt["val"].get("pcl_preview"):
            self.feed_data(default_collate([dataloader.dataset[0]]))
            self.test()
            self._add_sheet(tb_logger, dataloader.dataset.opt["name"], current_iter)

    def _add_sheet(self, tb_logger: Any, name: str, iteration: int) -> None:
        try:
            if not hasattr(self, "gt") or self.output.shape != self.gt.shape:
                raise ValueError("the validation set has no ground truth of the size of SR")
            scale = self.opt.get("scale", 1)
            window = preview.detailed_window(self.gt, multiple=scale)
            sheet = preview.make_sheet(
                preview.cut(self.gt, window),
                self.cri_pcl,
                sr=preview.cut(self.output, window),
                lq=preview.cut(self.lq, window, scale),
                embedding=self.embedding,
                # The same samples at every validation: what changes from sheet to sheet is the networks' doing.
                generator=seeded_generator(self._seed, 0),
            )
        except (ValueError, RuntimeError) as error:
            # A picture is no reason to end a training: not for an image too small, nor for a GPU that is full.
            get_root_logger().warning(f"val.pcl_preview: no sheet for {name}: {error}")
            return
        pixels = preview.to_pixels(preview.draw(sheet, f"{name}, iteration {iteration}"))
        tb_logger.add_image(f"pcl_preview/{name}", pixels, iteration, dataformats="HWC")

    def save(self, epoch: int, current_iter: int) -> None:
        """Save E_D, if there is one, and then what the base model saves, of which the training state comes last."""
        if self.opt.get("network_d") is not None:
            self.save_network(self.net_d, "net_d", current_iter)
        super().save(epoch, current_iter)

    def pcl_states(self) -> dict[str, Any]:
        """As `SpeedMixin`; and the balance of the two losses."""
        return super().pcl_states() | ({} if self.balance is None else {"pcl_balance": self.balance})


def pcl_model(base: Any) -> Any:
    """The class `PCL<Base>`. Raises TypeError if `base` is no `SRModel`, or has an `optimize_parameters` of its own."""
    from basicsr.models.sr_model import SRModel  # codebases lack it

    if getattr(base, "optimize_parameters", None) is not SRModel.optimize_parameters:
        fix = "for another model keep its model_type and put `perceptual_opt: {type: PCLPerceptualLoss}` under train"
        raise TypeError(f"base must derive from SRModel and take over its optimize_parameters, got {base!r}; {fix}")
    name = "PCLModel" if base is SRModel else f"PCL{base.__name__}"
    return type(name, (PCLMixin, base), {"__module__": __name__, "__doc__": f"{base.__name__} with {PCLMixin.__doc__}"})


# Some codebases lack the first, older copies the second.
if find_spec("basicsr.models.sr_model"):
    from basicsr.models.sr_model import SRModel

    PCLModel = pcl_model(SRModel)

    class SpeedSRModel(SpeedMixin, SRModel):
        """BasicSR's `SRModel` with the keys of `SpeedMixin`: the baseline of a run with PCL that has them."""

    if find_spec("basicsr.models.swinir_model"):
        from basicsr.models.swinir_model import SwinIRModel

        PCLSwinIRModel = pcl_model(SwinIRModel)

        class SpeedSwinIRModel(SpeedMixin, SwinIRModel):
            """BasicSR's `SwinIRModel` with the keys of `SpeedMixin`."""
