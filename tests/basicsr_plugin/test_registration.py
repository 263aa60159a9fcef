"""register() is all that BasicSR needs, may be called again, and asks nothing of a copy that lacks some modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import basicsr
import pytest
import yaml
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
    assert "calculate_lpips" in METRIC_REGISTRY


def test_registering_twice_changes_nothing_and_a_whole_basicsr_is_not_spoken_of(capsys: Any) -> None:
    before = vars(basicsr_options).copy(), list(MODEL_REGISTRY)
    basicsr_plugin.register()
    assert (vars(basicsr_options), list(MODEL_REGISTRY)) == before
    assert capsys.readouterr().out == ""


def test_a_name_that_another_package_took_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "PCLLoss", dict)
    with pytest.raises(RuntimeError, match="already knows another PCLLoss"):
        basicsr_plugin.register()


OWN_MODEL = """
import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import MODEL_REGISTRY

@MODEL_REGISTRY.register()
class OwnModel(BaseModel):
    def __init__(self, opt):
        super().__init__(opt)
        self.net_g = self.model_to_device(build_network(opt["network_g"]))
        self.cri_pix = build_loss(opt["train"]["pixel_opt"])
        self.cri_perceptual = build_loss(opt["train"]["perceptual_opt"]) if "perceptual_opt" in opt["train"] else None
        optim_opt = dict(opt["train"]["optim_g"])
        self.optimizers = [self.get_optimizer(optim_opt.pop("type"), self.net_g.parameters(), **optim_opt)]
        self.setup_schedulers()

    def feed_data(self, data):
        self.lq, self.gt = data["lq"], data["gt"]

    def optimize_parameters(self, current_iter):
        self.optimizers[0].zero_grad()
        sr = self.net_g(self.lq)
        loss = self.cri_pix(sr, self.gt)
        if self.cri_perceptual is not None:
            loss = loss + self.cri_perceptual(sr, self.gt)[0]
        loss.backward()
        self.optimizers[0].step()
        self.log_dict = {"l_total": loss.item()}

    def save(self, epoch, current_iter):
        self.save_network(self.net_g, "net_g", current_iter)
        self.save_training_state(epoch, current_iter)
"""


@pytest.mark.parametrize(
    ("lacks", "names"),
    [
        ("models/s*_model.py models/[!bso]*_model.py", ("PCLModel", "SpeedSRModel", "PCLSwinIRModel")),
        pytest.param("archs/vgg_arch.py archs/dfdnet_arch.py", (), marks=pytest.mark.slow),
    ],
)
def test_a_copy_of_basicsr_without_some_modules_trains_with_l1_and_pcl_and_says_once_what_it_lacks(
    lacks: str, names: tuple[str, ...], tmp_path: Path, baseline: dict[str, Any]
) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    copy = Path(shutil.copytree(Path(basicsr.__file__).parent, tmp_path / "basicsr", ignore=ignored))
    for pattern in lacks.split():
        for file in copy.glob(pattern):
            file.unlink()
    (copy / "models/own_model.py").write_text(OWN_MODEL)
    losses = copy / "losses/basic_loss.py"
    losses.write_text(losses.read_text().replace("from basicsr.archs.vgg_arch import VGGFeatureExtractor", ""))
    baseline |= {"model_type": "OwnModel", "val": None}
    baseline["train"] |= {"total_iter": 2, "ema_decay": 0}
    out = ""
    for perceptual in ({}, {"perceptual_opt": {"type": "PCLPerceptualLoss", "num_feat": 2}}):
        (tmp_path / "options.yml").write_text(yaml.safe_dump(baseline | {"train": baseline["train"] | perceptual}))
        env = os.environ | {"PYTHONPATH": str(Path(pcl_loss.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pcl_loss", "run", "basicsr/train.py", "-opt", "options.yml"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        out = done.stdout
    lines = [line for line in out.splitlines() if line.startswith("[pcl_loss] the BasicSR in")]
    assert len(lines) == (1 if names else 0)
    for name in names:
        assert str(copy) in lines[0]
        assert name in lines[0]
