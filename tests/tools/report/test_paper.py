"""The transcription of the paper's tables agrees with itself: a slip of one digit turns a test red."""

from __future__ import annotations

import itertools
from importlib import resources

import pytest

from pcl_loss.tools.report.paper import VALUES, gain, value

SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")
BASELINES = ["EDSR-S", "EDSR-L", "RCAN", "HAN"]
OTHERS = ["Bicubic", "SRCNN", "FSRCNN", "VDSR", "LapSRN", "MemNet", "SRMDNF", "D-DBPN", "RDN", "SRFBN", "SAN"]


def test_every_row_and_column_is_there() -> None:
    pairs = [name for baseline in BASELINES for name in (baseline, f"{baseline}+PCL")]
    expected = set(itertools.product([*OTHERS, *pairs], SETS, ("psnr", "ssim")))
    assert set(VALUES) == expected | set(itertools.product(pairs, SETS, ("niqe", "lpips")))


def test_printed_gains_are_the_differences_except_for_the_two_misprints() -> None:
    text = resources.files("pcl_loss.tools.report").joinpath("paper_table_2.txt").read_text(encoding="utf-8")
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith("Gains")]
    wrong = {}
    for net, row in zip(BASELINES, rows, strict=True):
        for column, printed in zip(itertools.product(SETS, ("psnr", "ssim")), row, strict=True):
            difference = gain(f"{net}+PCL", *column)
            if difference != float(printed):
                wrong[net, *column] = difference
    assert wrong == {("EDSR-L", "Set5", "psnr"): 0.04, ("RCAN", "Manga109", "ssim"): 0.0015}


def test_values_are_plausible_except_for_the_one_misprint() -> None:
    ranges = {"psnr": (23, 33), "ssim": (0.65, 0.95), "niqe": (4.8, 7.3), "lpips": (0.15, 0.35)}
    wrong = {cell for cell, number in VALUES.items() if not ranges[cell[2]][0] < number < ranges[cell[2]][1]}
    assert wrong == {("VDSR", "B100", "ssim")}


def test_nets_stand_in_the_order_of_their_psnr_up_to_edsr() -> None:
    """A slip in a row without a gain row leaves the order of the columns, in all but the last digit."""
    for set_name in SETS:
        column = [VALUES[net, set_name, "psnr"] for net in OTHERS]
        assert all(later >= earlier - 0.02 for earlier, later in itertools.pairwise(column)), set_name


def test_pcl_changes_niqe_and_lpips_little_and_lpips_is_worse_for_han_alone() -> None:
    """Table 3 prints no gains: this is the nearest check."""
    for net, set_name in itertools.product(BASELINES, SETS):
        niqe, lpips = (gain(f"{net}+PCL", set_name, metric) for metric in ("niqe", "lpips"))
        assert abs(niqe) < 0.3
        assert abs(lpips) < 0.006
        assert (lpips > 0) == (net == "HAN")


@pytest.mark.parametrize(
    ("net", "set_name", "expected"),
    [
        ("EDSR-S", "Set5", 32.09),
        ("edsr-l+pcl", "set5", 32.52),
        ("HAN_PCL", "BSD100", 27.79),
        ("bicubic", "B100", 25.96),
        ("SwinIR", "Set5", None),
        ("VDSR+PCL", "Set5", None),
        ("EDSR-S+PCL+PCL", "Set5", None),
        ("HAN", "T91", None),
    ],
)
def test_nets_and_sets_are_known_by_the_papers_names(net: str, set_name: str, expected: float | None) -> None:
    assert value(net, set_name, "psnr") == expected
