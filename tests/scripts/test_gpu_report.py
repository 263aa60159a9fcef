"""The GPU report runs to its end, and its summary comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_report.py"


@pytest.mark.slow
def test_without_a_gpu_a_tiny_report_has_every_part_and_every_table(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--tiny", "--out", "report.md"], cwd=tmp_path, check=False)
    text = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, text
    summary = text[: text.index("\n## ")]
    assert "- EDSR-S, resumed: status 0" in summary
    assert "| L1 + PCL, light" in summary
    assert "| paper" in summary[summary.index("From random weights, 4 iterations**") :]
