"""PreviewMixin: the sheet of `pcl-loss preview` in TensorBoard, at every validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from basicsr.utils import get_root_logger

from .. import preview
from ..samples import seeded_generator

if TYPE_CHECKING:
    from basicsr.models.sr_model import SRModel as Base
else:
    Base = object


class PreviewMixin(Base):
    """With `val.pcl_preview: true`, draws the first image of every validation set, its samples and SR, as the embedding
    embeds them and `cri_pcl` compares them.
    """

    _sheet_due: tuple[Any, str, int] | None = None
    """TensorBoard's writer, the validation set's name and the iteration."""

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """As the base model; the first image's sheet goes to TensorBoard."""
        if self.is_train and tb_logger is not None and self.opt["val"].get("pcl_preview"):
            self._sheet_due = tb_logger, dataloader.dataset.opt["name"], current_iter
        super().nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def test(self) -> None:
        """As the base model; then the sheet, if it is due: validation deletes the images one by one."""
        super().test()
        if self._sheet_due is None:
            return
        (tb_logger, name, iteration), self._sheet_due = self._sheet_due, None
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
