"""Every training YAML of BasicSR, HAT, DAT and Real-ESRGAN passes. Runs on checkouts under PCL_UPSTREAM=DIR."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from pcl_loss.basicsr_plugin.yaml_blocks import check_blocks
from pcl_loss.basicsr_plugin.yaml_loading import load_options
from pcl_loss.basicsr_plugin.yaml_schema import check_file

from pcl_loss.basicsr_plugin import OptionsError

PROJECTS = ("BasicSR", "HAT", "DAT", "Real-ESRGAN")
CHECKOUTS = Path(os.environ.get("PCL_UPSTREAM", "nowhere"))
FILES = [
    path
    for project in PROJECTS
    for path in sorted(CHECKOUTS.glob(f"{project}/options/**/*.yml"))
    if not path.name.startswith("test_") and "test" not in path.parent.name.lower()
]
# BasicSR itself cannot build these: its EDVR has no such keyword.
CANNOT_RUN = {
    "train_EDVR_L_x4_SR_REDS.yml": r"unknown key 'ema_decay' in network_g",
    "train_EDVR_L_x4_SR_REDS_woTSA.yml": r"unknown key 'ema_decay' in network_g",
}


class Anything(torch.nn.Module):
    """Stands in for a class that a project registers and BasicSR has not."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> None:
        """No image, whose size could be looked at."""


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Any:
    def stand_in(registry: Any, name: str, base: type = Anything) -> None:
        if name not in registry and f"{name}_basicsr" not in registry:
            monkeypatch.setitem(registry._obj_map, name, base)

    return stand_in


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason="set PCL_UPSTREAM to a folder with checkouts of these projects")
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUTS)))
def test_a_training_yaml_of_another_project_passes(
    path: Path, stand_ins: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    opt = load_options(path)
    check_file(opt, is_train=True)
    assert len(capsys.readouterr().err.splitlines()) <= 1
    stand_ins(MODEL_REGISTRY, opt["model_type"], SRModel)
    for dataset in opt["datasets"].values():
        stand_ins(DATASET_REGISTRY, dataset["type"])
    for key in [key for key in opt if key.startswith("network_")]:
        stand_ins(ARCH_REGISTRY, opt[key]["type"])
    stand_ins(LOSS_REGISTRY, "GANFeatLoss")
    if path.name in CANNOT_RUN:
        with pytest.raises(OptionsError, match=CANNOT_RUN[path.name]):
            check_blocks(opt)
    else:
        check_blocks(opt)
