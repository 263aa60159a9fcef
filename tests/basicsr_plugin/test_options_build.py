"""What an option file names is built early: it fails in one line before the run begins, and leaves no trace."""

import contextlib
import io
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.edsr_arch import EDSR
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, logger, set_random_seed
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pcl_loss.basicsr_plugin import OptionsError

Options = dict[str, Any]
Parse = Callable[..., Options]
Refused = Callable[..., str]


def test_a_folder_without_images_is_named(small: Options, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    small["datasets"]["train"] |= {"dataroot_gt": str(tmp_path / "empty"), "dataroot_lq": str(tmp_path / "empty")}
    assert refused(small).startswith("datasets.train: there are no images; put them there")


WEIGHTS = [
    (4, "params", "net.pth (it has params_ema), path.param_key_g params: it has no key 'params'"),
    (4, "params_ema", ""),
    (5, "params_ema", "size mismatch for conv_first.weight"),
]


@pytest.mark.parametrize(("num_feat", "key", "words"), WEIGHTS)
def test_weights_that_a_network_cannot_take_say_what_they_have(
    small: Options, parse: Parse, refused: Refused, num_feat: int, key: str, words: str, tmp_path: Path
) -> None:
    block = {name: value for name, value in small["network_g"].items() if name != "type"}
    torch.save({"params_ema": EDSR(**block | {"num_feat": num_feat}).state_dict()}, tmp_path / "net.pth")
    small["path"] |= {"pretrain_network_g": str(tmp_path / "net.pth"), "param_key_g": key}
    if words:
        assert words in refused(small)
    else:
        parse(small)


def test_a_model_is_judged_by_its_own_methods(
    baseline: Options, parse: Parse, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TheirModel(SRModel):
        def get_optimizer(self, optim_type: str, params: Any, lr: float, **keywords: Any) -> Any:
            return getattr(torch.optim, optim_type)(params, lr, **keywords)

        def setup_schedulers(self) -> None:
            for optimizer in self.optimizers:
                self.schedulers.append(torch.optim.lr_scheduler.StepLR(optimizer, **self.opt["train"]["scheduler"]))

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, "TheirModel", TheirModel)
    baseline["model_type"] = "TheirModel"
    baseline["train"] |= {
        "optim_g": {"type": "NAdam", "lr": 1e-3, "momentum_decay": 0.1},
        "scheduler": {"step_size": 3},
    }
    parse(baseline)
    baseline["model_type"] = "SRModel"
    baseline["train"]["scheduler"]["type"] = "MultiStepLR"
    assert refused(baseline) == "train.optim_g: optimizer NAdam is not supperted yet."


def test_the_number_of_gpus_is_left_to_a_distributed_run(
    small: Options, parse: Parse, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small["num_gpu"] = 8
    assert refused(small) == "num_gpu is 8, but torch sees no GPU; set num_gpu: 0 for the CPU"
    monkeypatch.setattr("basicsr.utils.options.init_dist", lambda launcher: None)
    parse(small, "--launcher", "pytorch")


def test_nothing_is_logged_or_drawn(small: Options, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    # BasicSR opens its log file where it first asks for its log, and never later.
    class Talkative(EDSR):
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            get_root_logger().info("here I am")

    monkeypatch.setitem(ARCH_REGISTRY._obj_map, "Talkative", Talkative)
    monkeypatch.setattr(logger, "initialized_logger", {})
    small["network_g"]["type"] = "Talkative"
    handlers = list(logging.getLogger("basicsr").handlers)
    parse(small)
    assert not logger.initialized_logger
    assert logging.getLogger("basicsr").handlers == handlers
    drawn = (random.random(), np.random.rand(), torch.rand(()).item())
    set_random_seed(3)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


SCALARS = st.one_of(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats(-3, 70) | st.text(max_size=8) | st.dates(),
    st.sampled_from([5000, 10**9, 10**15, math.nan, math.inf, 1e30, 1e-30, 5e3, "1e-4", "", "~", "true"]),
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=2)


def paths(options: Options, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [path for key, value in options.items() if isinstance(value, dict) for path in paths(value, (*above, key))]
    return [(*above, key) for key in options if key != "num_block"] + below  # BasicSR builds as many as memory holds


@pytest.mark.parametrize("cases", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_stands_at_a_key_ends_in_options_or_in_one_line(small: Options, parse: Parse, cases: int) -> None:
    small["train"] |= {"pcl_every": 1, "pcl_start_iter": 0, "amp": None, "max_bad_steps": 100}
    small["train"]["pcl_opt"] |= {"temperature": 1.0, "num_layers": 2, "negatives": ["blur"]}
    start = yaml.safe_dump(small)

    @seed(0)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(path=st.sampled_from(paths(small)), value=VALUES)
    def case(path: tuple[str, ...], value: Any) -> None:
        broken = block = yaml.safe_load(start)
        for key in path[:-1]:
            block = block[key]
        block[path[-1]] = value
        line = ""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                parse(yaml.safe_dump(broken, allow_unicode=True))
            except OptionsError as error:
                line = str(error)
        assert "\n" not in line
        assert [entry.name for entry in Path().iterdir()] == ["run.yml"]

    case()
