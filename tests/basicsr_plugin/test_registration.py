"""register() is all that BasicSR needs, may be called again, and asks nothing of a copy that lacks some modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import basicsr
import pytest
from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

import pcl_loss
from pcl_loss import basicsr_plugin


def test_every_name_is_known_to_basicsr() -> None:
    for name in ("PCLLoss", "ContrastiveDiscriminatorLoss", "PCLPerceptualLoss"):
        assert LOSS_REGISTRY.get(name) is getattr(pcl_loss, name)
    for name in ("WaveletDiscriminator", "VGGEmbedding", "FixedEmbedding"):
        assert ARCH_REGISTRY.get(name) is getattr(pcl_loss, name)
    for name in ("PCLModel", "PCLSwinIRModel", "SpeedSRModel", "SpeedSwinIRModel"):
        assert MODEL_REGISTRY.get(name) is getattr(basicsr_plugin, name)
    assert "HAN" in ARCH_REGISTRY
    assert "PerceptualLossWithPCL" in LOSS_REGISTRY
    assert "calculate_lpips" in METRIC_REGISTRY


def test_registering_twice_changes_nothing_and_a_whole_basicsr_is_not_spoken_of(capsys: Any) -> None:
    before = vars(basicsr_options).copy(), list(MODEL_REGISTRY)
    basicsr_plugin.register()
    assert (vars(basicsr_options), list(MODEL_REGISTRY)) == before
    assert capsys.readouterr().out == ""


def test_a_name_that_another_package_took_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "PCLLoss", dict)
    with pytest.raises(AssertionError, match="'PCLLoss' was already registered"):
        basicsr_plugin.register()


def test_a_copy_of_basicsr_without_some_modules_knows_pcl_and_one_line_says_what_it_lacks(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "[!b]*_model.py", "dfdnet_arch.py", "vgg_arch.py")
    copy = Path(shutil.copytree(Path(basicsr.__file__).parent, tmp_path / "basicsr", ignore=ignored))
    losses = copy / "losses/basic_loss.py"
    losses.write_text(losses.read_text().replace("from basicsr.archs.vgg_arch import VGGFeatureExtractor", ""))
    (tmp_path / "main.py").write_text(
        "import basicsr.train\nfrom basicsr.losses import build_loss\nprint(build_loss({'type': 'PCLLoss'}).recipe)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(pcl_loss.__file__).parents[1])}
    command = [sys.executable, "-m", "pcl_loss", "run", "main.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("paper\n")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("[pcl_loss] the BasicSR in")]
    for name in (str(copy), "PCLModel", "SpeedSRModel", "PCLSwinIRModel"):
        assert name in line
