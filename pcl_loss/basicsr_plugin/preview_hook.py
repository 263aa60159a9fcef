"""The sheet of `pcl-loss preview` in TensorBoard, at every validation of a training with `val.pcl_preview`."""

from __future__ import annotations

from typing import Any

from basicsr.utils import get_root_logger

from .. import preview
from ..samples import seeded_generator


def add_sheet(model: Any, seed: int, tb_logger: Any, name: str, iteration: int) -> None:
    """Draw the image that a model has just been tested on, its samples and SR, as the embedding embeds them and
    `cri_pcl` compares them; an image that makes no sheet is said in the log.
    """
    try:
        if not hasattr(model, "gt") or model.output.shape != model.gt.shape:
            raise ValueError("the validation set has no ground truth of the size of SR")
        scale = model.opt.get("scale", 1)
        window = preview.detailed_window(model.gt, multiple=scale)
        sheet = preview.make_sheet(
            preview.cut(model.gt, window),
            model.cri_pcl,
            sr=preview.cut(model.output, window),
            lq=preview.cut(model.lq, window, scale),
            embedding=model.embedding,
            # The same samples at every validation: what changes from sheet to sheet is the networks' doing.
            generator=seeded_generator(seed, 0),
        )
    except (ValueError, RuntimeError) as error:
        # A picture is no reason to end a training: not for an image too small, nor for a GPU that is full.
        get_root_logger().warning(f"val.pcl_preview: no sheet for {name}: {error}")
        return
    pixels = preview.to_pixels(preview.draw(sheet, f"{name}, iteration {iteration}"))
    tb_logger.add_image(f"pcl_preview/{name}", pixels, iteration, dataformats="HWC")
