"""register() is all that BasicSR needs, and may be called again."""

from typing import Any

import pytest
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
