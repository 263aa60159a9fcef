"""The short training's flags become the options that they mean."""

from pathlib import Path

import _training
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("registered")
def test_the_flags_are_read_as_what_they_mean() -> None:
    from pcl_loss.basicsr_plugin.yaml_loading import load_options

    words = _training.command(["pcl-loss", "train"], iterations=2, batch=3, gt_size=64, amp="bf16", compile="true")
    file = words[words.index("-opt") + 1].replace("options", "basicsr_options", 1)
    options = load_options(str(ROOT / file), words[words.index("--force_yml") + 1 :])
    train = options["datasets"]["train"]
    assert (train["batch_size_per_gpu"], train["gt_size"], train["filename_tmpl"]) == (3, 64, "{}")
    assert (options["train"]["total_iter"], options["train"]["amp"], options["train"]["compile"]) == (2, "bf16", True)
    assert options["datasets"]["val"]["filename_tmpl"] == "{}"
    assert words[:2] == ["pcl-loss", "train"]
