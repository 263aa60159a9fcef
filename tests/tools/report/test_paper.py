"""The transcription of the paper's tables agrees with itself: a slip of one digit turns a test red."""

from __future__ import annotations

import itertools

import pytest

from pcl_loss.tools.report import paper as paper_tables
from pcl_loss.tools.report.paper import (
    MISPRINTED_GAINS,
    MISPRINTED_VALUES,
    PCL,
    TABLE_2,
    TABLE_3,
    Cell,
    Table,
    gain,
    value,
)

SETS = {"Set5", "Set14", "B100", "Urban100", "Manga109"}
BASELINES = ["EDSR-S", "EDSR-L", "RCAN", "HAN"]
OTHERS = ["Bicubic", "SRCNN", "FSRCNN", "VDSR", "LapSRN", "MemNet", "SRMDNF", "D-DBPN", "RDN", "SRFBN", "SAN"]


def nets(table: Table) -> list[str]:
    return list(dict.fromkeys(cell.net for cell in table.values))


def test_every_row_and_column_is_there() -> None:
    pairs = [name for baseline in BASELINES for name in (baseline, baseline + PCL)]
    assert nets(TABLE_2) == OTHERS + pairs
    assert nets(TABLE_3) == pairs
    for table, metrics in ((TABLE_2, ("psnr", "ssim")), (TABLE_3, ("niqe", "lpips"))):
        assert set(table.sets) == SETS
        assert table.metrics == metrics
        assert len(table.values) == len(nets(table)) * 10
    assert len(TABLE_2.printed_gains) == 40
    assert not TABLE_3.printed_gains


def test_table_3_lists_set14_first() -> None:
    assert TABLE_2.sets[:2] == ("Set5", "Set14")
    assert TABLE_3.sets[:2] == ("Set14", "Set5")


def test_printed_gains_are_the_differences_except_for_the_two_misprints() -> None:
    wrong = {cell for cell, printed in TABLE_2.printed_gains.items() if gain(cell) != printed}
    assert wrong == set(MISPRINTED_GAINS)
    assert gain(Cell("EDSR-L", "Set5", "psnr")) == 0.04
    assert gain(Cell("RCAN", "Manga109", "ssim")) == 0.0015


def test_values_are_plausible_except_for_the_one_misprint() -> None:
    ranges = {"psnr": (23, 33), "ssim": (0.65, 0.95), "niqe": (4.8, 7.3), "lpips": (0.15, 0.35)}
    everything = TABLE_2.values | TABLE_3.values
    wrong = {
        cell for cell, number in everything.items() if not ranges[cell.metric][0] < number < ranges[cell.metric][1]
    }
    assert wrong == set(MISPRINTED_VALUES)


def test_nets_stand_in_the_order_of_their_psnr_up_to_edsr() -> None:
    """A slip in a row without a gain row leaves the order of the columns, in all but the last digit."""
    for set_name in SETS:
        column = [TABLE_2.values[Cell(net, set_name, "psnr")] for net in OTHERS]
        assert all(later >= earlier - 0.02 for earlier, later in itertools.pairwise(column)), set_name


def test_neighbours_in_table_3_are_close() -> None:
    """Table 3 prints no gains: the nearest check is that PCL changes LPIPS by less than 0.006 and NIQE by 0.3."""
    for cell in TABLE_3.values:
        change = gain(cell)
        if change is not None:
            assert abs(change) < {"niqe": 0.3, "lpips": 0.006}[cell.metric], cell


def test_lpips_gets_worse_with_pcl_for_han_alone_and_there_on_every_set() -> None:
    for baseline in BASELINES:
        changes = [gain(Cell(baseline, set_name, "lpips")) for set_name in SETS]
        assert all((change > 0) == (baseline == "HAN") for change in changes if change is not None)
        assert None not in changes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("EDSR-S", "EDSR-S"),
        ("edsr-l+pcl", "EDSR-L+PCL"),
        ("HAN_PCL", "HAN+PCL"),
        ("bicubic", "Bicubic"),
        ("SwinIR", None),
        ("VDSR+PCL", None),
        ("EDSR-S+PCL+PCL", None),
    ],
)
def test_nets_are_known_by_the_papers_names(given: str, expected: str | None) -> None:
    assert paper_tables.net_name(given) == expected


@pytest.mark.parametrize(("given", "expected"), [("set5", "Set5"), ("BSD100", "B100"), ("B100", "B100"), ("T91", None)])
def test_sets_are_known_by_the_papers_names(given: str, expected: str | None) -> None:
    assert paper_tables.set_name(given) == expected


def test_what_the_paper_has_not_is_none() -> None:
    assert value(Cell("Bicubic", "Set5", "lpips")) is None
    assert gain(Cell("SAN", "Set5", "psnr")) is None
    assert value(Cell("HAN", "T91", "psnr")) is None
