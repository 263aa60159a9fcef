"""A table reads well rendered and as text."""

from pcl_loss.tools._markdown import table


def test_names_stand_to_the_left_and_numbers_to_the_right() -> None:
    assert table([["net", "dB"], ["a", "32.10"], ["longer", "1"]]) == (
        "| net    |    dB |\n|--------|------:|\n| a      | 32.10 |\n| longer |     1 |"
    )
