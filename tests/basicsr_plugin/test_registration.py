"""register() is all that BasicSR needs, and may be called again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import basicsr
import pytest
import yaml
from basicsr.losses import build_loss
from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

import pcl_loss
from pcl_loss import basicsr_plugin


def test_every_name_is_known_to_basicsr() -> None:
    assert LOSS_REGISTRY.get("PCLLoss") is pcl_loss.PCLLoss
    assert LOSS_REGISTRY.get("ContrastiveDiscriminatorLoss") is pcl_loss.ContrastiveDiscriminatorLoss
    assert ARCH_REGISTRY.get("WaveletDiscriminator") is pcl_loss.WaveletDiscriminator
    assert MODEL_REGISTRY.get("PCLModel") is basicsr_plugin.PCLModel
    assert MODEL_REGISTRY.get("PCLSwinIRModel") is basicsr_plugin.PCLSwinIRModel
    assert MODEL_REGISTRY.get("SpeedSRModel") is basicsr_plugin.SpeedSRModel
    assert MODEL_REGISTRY.get("SpeedSwinIRModel") is basicsr_plugin.SpeedSwinIRModel


def test_registering_twice_changes_nothing() -> None:
    parse_options = basicsr_options.parse_options
    basicsr_plugin.register()
    assert basicsr_options.parse_options is parse_options


def test_a_name_that_another_package_took_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "PCLLoss", dict)
    with pytest.raises(RuntimeError, match="already knows another PCLLoss"):
        basicsr_plugin.register()


def test_a_yaml_block_builds_the_loss_with_its_knobs() -> None:
    options: dict[str, Any] = {"type": "PCLLoss", "loss_weight": 0.5, "temperature": 0.2, "negatives": ["lq"]}
    loss = build_loss(options)
    assert (loss.loss_weight, loss.temperature, loss.samples.negatives) == (0.5, 0.2, ("lq",))


@pytest.fixture
def older_copy(tmp_path: Path) -> Path:
    """A folder with a `basicsr/` as old as those that other codebases carry: without RCAN and `SwinIRModel`."""
    lacks = shutil.ignore_patterns("rcan_arch.py", "swinir_model.py", "__pycache__")
    shutil.copytree(Path(basicsr.__file__).parent, tmp_path / "basicsr", ignore=lacks)
    return tmp_path


def test_an_older_copy_of_basicsr_gets_what_it_can_hold_and_says_once_what_it_lacks(
    older_copy: Path, baseline: dict[str, Any]
) -> None:
    (older_copy / "options.yml").write_text(yaml.safe_dump(baseline))
    code = """if 1:
        import pcl_loss.basicsr_plugin
        from basicsr.utils.options import parse_options
        from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
        pcl_loss.basicsr_plugin.register()
        for name in ("PCLModel", "SpeedSRModel", "PCLSwinIRModel", "SpeedSwinIRModel"):
            print(name, name in MODEL_REGISTRY)
        print("HAN", "HAN" in ARCH_REGISTRY)
        import basicsr.train
        basicsr.train.parse_options(".")
    """
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(older_copy), str(Path(pcl_loss.__file__).parents[1])])}
    command = [sys.executable, "-c", code, "-opt", "options.yml"]
    out = subprocess.run(command, cwd=older_copy, env=env, capture_output=True, text=True, check=True).stdout
    known = dict(re.findall(r"^(\w+) (True|False)$", out, re.MULTILINE))
    lacks = dict.fromkeys(("PCLSwinIRModel", "SpeedSwinIRModel", "HAN"), "False")
    assert known == {"PCLModel": "True", "SpeedSRModel": "True"} | lacks
    (line,) = re.findall(r"^\[pcl_loss\] .+", out, re.MULTILINE)
    assert str(older_copy / "basicsr") in line
    for name in lacks:
        assert name in line


def test_a_whole_basicsr_is_not_spoken_of(
    registered: None, baseline: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "options.yml").write_text(yaml.safe_dump(baseline))
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(tmp_path / "options.yml")])
    basicsr_options.parse_options(str(tmp_path))
    assert "[pcl_loss]" not in capsys.readouterr().out


def test_options_as_basicsr_parsed_them_before_1_3_4_are_completed_too(
    with_pcl: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("basicsr.train.parse_options")  # as before 1.3.3 there was none to import
    parse_options = lambda root_path, is_train: with_pcl | {"is_train": is_train}  # noqa: E731
    monkeypatch.setattr(basicsr_options, "parse_options", parse_options)
    basicsr_plugin.register()
    assert basicsr_options.parse_options(".", is_train=True)["network_d"]["type"] == "WaveletDiscriminator"
