"""The adapter for EDSR-PyTorch and the codebases that share its skeleton: RCAN, HAN and their forks.

Their `loss/__init__.py` builds each term of `--loss "1*L1+1*PCL"` in an if/elif chain; one more branch builds ours:

    elif loss_type == 'PCL':
        loss_function = import_module('pcl_loss.edsr_plugin').PCL(args)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .criterion import PCLCriterion


class PCL(PCLCriterion):
    """`PCLCriterion` as those codebases build and call a loss.

    It owns E_D, which the codebase's own `--save` and `--load` then save and resume with the loss. Prints one line
    when it is built: a codebase without the branch reuses L1 for a name it does not know, and says nothing.

    Args:
        args: the codebase's options; read are `rgb_range`, `n_colors` and `lr`.
        **keywords: of `PCLCriterion`, in place of what `args` says.
    """

    def __init__(self, args: Any, **keywords: Any) -> None:
        super().__init__(
            **{"data_range": float(args.rgb_range), "num_in_ch": args.n_colors, "lr": float(args.lr)} | keywords
        )
        print(f"[pcl_loss] contrastive loss and its discriminator are built, for images in 0-{self.pcl.data_range:g}")

    def forward(self, sr: Tensor, hr: Tensor, lq: Tensor | None = None) -> Tensor:
        """The contrastive loss of `sr` and `hr`, `(N, C, H, W)` in `[0, rgb_range]`, unclamped; trains E_D."""
        return super().forward(sr, hr, lq)

    @property
    def loss(self) -> float:
        """The discriminator's loss of the last call, for the codebase's own `DIS` column."""
        return float(self.log["l_d"])
