"""The sheets of val.pcl_preview are those of `pcl-loss preview`, and training does not notice them."""

import random
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from basicsr_fixtures import Batches, Build, Options, assert_equal_weights, train_on, weights
from torch.utils.data import DataLoader

from pcl_loss import preview
from pcl_loss.samples import seeded_generator


class Pairs(list[dict[str, Any]]):
    """What validation uses of a data set."""

    opt = {"name": "held_out"}  # noqa: RUF012


def validation_pairs(batches: Batches) -> Pairs:
    pairs = [{name: images[0] for name, images in batch.items()} for batch in batches[4:]]
    return Pairs(pair | {"lq_path": f"{number}.png"} for number, pair in enumerate(pairs))


def train_and_validate(net: Any, batches: Batches, board: Any) -> None:
    for iteration in (1, 2):
        train_on(net, batches[iteration : iteration + 1], first_iter=iteration)
        net.validation(DataLoader(validation_pairs(batches)), iteration, board, False)


def test_a_preview_leaves_the_training_as_it_is_bit_for_bit(small: Options, build: Build, batches: Batches) -> None:
    small["train"]["pcl_opt"] |= {"num_positives": 1, "num_negatives": 2}
    results = []
    for wanted in (False, True):
        small["val"]["pcl_preview"] = wanted
        net, board = build(small), Mock()
        train_and_validate(net, batches, board)
        assert board.add_image.call_count == (2 if wanted else 0)
        assert net.net_d.training
        drawn = torch.rand(()).item(), np.random.rand(), random.random()
        results.append((net, drawn, net.metric_results))
    (plain, *expected), (shown, *found) = results
    assert found == expected
    for name in ("net_g", "net_g_ema", "net_d"):
        assert_equal_weights(weights(getattr(shown, name)), weights(getattr(plain, name)))


def test_the_preview_is_the_sheet_of_the_first_validation_image(small: Options, build: Build, batches: Batches) -> None:
    small["val"]["pcl_preview"] = True
    net, board = build(small), Mock()
    train_and_validate(net, batches, board)
    with torch.no_grad():
        sr = net.net_g_ema(batches[4]["lq"][:1])
    expected = preview.make_sheet(
        batches[4]["gt"][:1], net.cri_pcl, sr=sr, embedding=net.net_d, generator=seeded_generator(3, 0)
    )
    for iteration, call in enumerate(board.add_image.call_args_list, 1):
        tag, image, step = call.args
        assert (tag, step) == ("pcl_preview/held_out", iteration)
    assert np.array_equal(image, preview.to_pixels(preview.draw(expected, "held_out, iteration 2")))


def test_a_validation_whose_images_make_no_sheet_goes_on_without(
    small: Options, build: Build, batches: Batches, logged: pytest.LogCaptureFixture
) -> None:
    small["val"] |= {"pcl_preview": True, "metrics": None}
    net, board, pairs = build(small), Mock(), validation_pairs(batches)
    for pair in pairs:
        del pair["gt"]
    net.validation(DataLoader(pairs), 1, board, False)
    assert not board.add_image.called
    assert "no sheet for held_out" in logged.text
