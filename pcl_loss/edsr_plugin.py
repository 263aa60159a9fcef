"""The adapter for EDSR-PyTorch and the codebases that share its skeleton: RCAN, HAN and their forks.

Their `loss/__init__.py` builds each term of `--loss "1*L1+1*PCL"` in an if/elif chain; `pcl-loss patch` inserts one
more branch, which builds `PCL(args)`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ._checks import check_keys
from .criterion import PCLCriterion, downsample
from .loss import PCLLoss

KNOBS_FILE = "pcl.yml"

# The codebase's own options say these.
FROM_ARGS = {"data_range": "rgb_range", "num_in_ch": "n_colors", "lr": "lr"}
# --rgb_range and --n_colors say the last two.
NO_KNOBS = ("embedding", "pcl", "data_range", "num_in_ch")


class PCL(PCLCriterion):
    """`PCLCriterion` as those codebases build and call a loss.

    `--save` and `--load` then save and resume E_D with the loss. Prints one line when it is built: a codebase without
    the branch reuses L1 for a name it does not know, and says nothing.

    Reads `rgb_range`, `n_colors` and `lr` of the codebase's options `args`, and `scale` for the negatives `'lq'`, which
    take LR from `set_lr`, or else make it of HR. Keywords of `PCLCriterion` may stand in a file `pcl.yml` in the
    working folder. Raises TypeError or ValueError if one of these does not fit.
    """

    range_knob = "--rgb_range"

    def __init__(self, args: Any, **keywords: Any) -> None:
        knobs = _read_knobs()
        given = knobs | keywords
        options = dict(FROM_ARGS)
        # These have no discriminator, and so no learning rate; and a given embedding has its channels.
        if given.get("recipe") == "light" or given.get("embedding") == "fixed":
            del options["lr"]
        if given.get("embedding", "fixed") != "fixed":
            del options["num_in_ch"]
        for keyword, option in options.items():
            if keyword not in given:
                if not hasattr(args, option):
                    raise ValueError(f"the codebase's options have no {option}; build PCL(args, {keyword}=...)")
                given[keyword] = getattr(args, option)
        try:
            super().__init__(**given)
        except (TypeError, ValueError) as error:
            # YAML reads 1e-4 as text.
            hint = f" ({KNOBS_FILE} has {knobs}; it takes 1.0e-4, not 1e-4)" if knobs else ""
            raise type(error)(f"{error}{hint}") from error
        scale: Any = getattr(args, "scale", [])
        self._scales = [scale] if isinstance(scale, int | float) else list(scale)
        self.lr_images: Tensor | None = None
        kind = "discriminator" if self.is_trained else "fixed embedding"
        sets = f"; {KNOBS_FILE} sets {', '.join(knobs)}" if knobs else ""
        print(f"[pcl_loss] contrastive loss and its {kind} are built, for images in 0-{self.pcl.data_range:g}{sets}")

    def forward(self, sr: Tensor, hr: Tensor, lq: Tensor | None = None) -> Tensor:
        """The contrastive loss of `sr` and `hr`, `(N, C, H, W)` in `[0, rgb_range]`, unclamped; trains E_D."""
        if lq is None and "lq" in self.pcl.samples.negatives:
            lq = self.lr_images
            if lq is None and (len(self._scales) != 1 or self._scales[0] % 1):
                raise ValueError(
                    f"negatives contains 'lq', but the codebase's --scale is not one whole factor: {self._scales}; let "
                    "`pcl-loss patch --lr-negative` hand LR over, or drop 'lq'"
                )
            lq = downsample(hr, int(self._scales[0])) if lq is None else lq
        self.lr_images = None
        return super().forward(sr, hr, lq)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            raise ValueError(
                "the run that is loaded was trained without PCL; take its weights alone: in place of --load and "
                "--resume, --pre_train .../model/model_latest.pt"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def loss(self) -> float:
        """The discriminator's loss of the last call, for the codebase's own `DIS` column; 0 before E_D's first step."""
        return float(self.log.get("l_d", 0.0))


def set_lr(loss: nn.Module, lr: Tensor) -> None:
    """Hand the LR images over to every `PCL` within the codebase's loss, if there is one."""
    for module in loss.modules():
        if isinstance(module, PCL):
            module.lr_images = lr.detach()


def _read_knobs() -> dict[str, Any]:
    """The keywords for `PCLCriterion` in `pcl.yml`, of which ValueError says what is wrong; none without the file."""
    path = Path(KNOBS_FILE)
    if not path.is_file():
        return {}
    import yaml

    with path.open(encoding="utf-8") as file:
        knobs = yaml.safe_load(file) or {}
    if not isinstance(knobs, dict):
        raise ValueError(f"{path} must hold lines `key: value`, got {type(knobs).__name__}")
    allowed = [*inspect.signature(PCLCriterion).parameters, *inspect.signature(PCLLoss).parameters]
    check_keys(str(path), map(str, knobs), [name for name in allowed if name not in NO_KNOBS])
    return knobs
