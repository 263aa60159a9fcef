"""PreviewMixin: the sheet of `pcl-loss preview` in TensorBoard, at every validation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from basicsr.utils import get_root_logger
from torch import Tensor

from .. import preview
from ..loss import PCLLoss
from ..samples import seeded_generator

if TYPE_CHECKING:
    from basicsr.models.sr_model import SRModel as Base
else:
    Base = object


class PreviewMixin(Base):
    """With `val.pcl_preview: true`, draws the first image of every validation set, its samples and SR, as the embedding
    embeds them and `cri_pcl` compares them.
    """

    cri_pcl: PCLLoss
    embedding: Any
    lq: Tensor
    gt: Tensor
    _seed: int
    _add_preview: Callable[[], None] | None = None

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As the base model; the first image's sheet goes to TensorBoard."""
        if self.is_train and tb_logger is not None and self.opt["val"].get("pcl_preview"):
            tag = f"pcl_preview/{dataloader.dataset.opt['name']}"
            self._add_preview = functools.partial(self._draw_preview, tb_logger, tag, current_iter)
        try:
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        finally:
            self._add_preview = None

    def test(self) -> None:
        """As the base model; then the sheet, if it is due: validation deletes the images one by one."""
        super().test()
        if self._add_preview is not None:
            add_preview, self._add_preview = self._add_preview, None
            add_preview()

    def _draw_preview(self, tb_logger: Any, tag: str, current_iter: int) -> None:
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
            get_root_logger().warning(f"val.pcl_preview: no sheet for {tag}: {error}")
            return
        pixels = preview.to_pixels(preview.draw(sheet, f"{tag.partition('/')[2]}, iteration {current_iter}"))
        tb_logger.add_image(tag, pixels, current_iter, dataformats="HWC")
