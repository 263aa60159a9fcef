"""From a YAML to a trained network, through BasicSR's own pipelines and our entry points."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("basicsr")

Options = dict[str, Any]

LOGGED = ("l_pix", "l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio", "l_d", "out_d_real", "out_d_fake")


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_yaml_with_pcl_opt_and_no_network_d_trains_logs_and_saves(
    with_pcl: Options, run_pipeline: Callable[..., str], tmp_path: Path
) -> None:
    log = run_pipeline(with_pcl)
    lines = [line for line in log.splitlines() if "iter:" in line and "l_pix" in line]
    assert len(lines) == 4
    for line in lines:
        values = dict(re.findall(r"(\w+): (-?\d\.\d+e[+-]\d+)", line))
        assert tuple(values) == LOGGED
        assert float(values["l_pcl"]) > 0
    assert "# psnr:" in log
    models = {path.name for path in (tmp_path / "experiments/tiny/models").iterdir()}
    assert models == {f"net_{net}_{iteration}.pth" for net in "gd" for iteration in (2, 4, "latest")}
    scalars = events_of(tmp_path / "tb_logger/tiny").Tags()["scalars"]
    assert set(scalars) >= {f"losses/{key}" if key.startswith("l_") else key for key in LOGGED}


def test_a_trained_net_g_is_tested_without_e_d_and_loads_in_a_stock_model(
    small: Options, run_pipeline: Callable[..., str], tmp_path: Path
) -> None:
    run_pipeline(small)
    path = tmp_path / "experiments/tiny/models/net_g_latest.pth"
    options = {key: small[key] for key in ("scale", "num_gpu", "manual_seed", "network_g")} | {
        "name": "tested",
        "model_type": "SRModel",
        "datasets": {"test": small["datasets"]["val"] | {"phase": "test"}},
        "path": {"pretrain_network_g": str(path), "strict_load_g": True, "param_key_g": "params_ema"},
        "val": {"save_img": True, "suffix": None, "metrics": small["val"]["metrics"]},
    }
    assert "# psnr:" in run_pipeline(options, verb="test")
    assert len(list((tmp_path / "results/tested/visualization/held_out").glob("*.png"))) == 3

    from basicsr.archs import build_network

    stock = build_network(small["network_g"])
    stock.load_state_dict(torch.load(path, weights_only=True)["params"], strict=True)


@pytest.mark.parametrize("module", ["pcl_loss", "pcl_loss.train"])
def test_a_module_run_by_python_trains_under_the_callers_folder_and_ends(
    module: str, small: Options, tmp_path: Path
) -> None:
    small["train"]["total_iter"] = 1
    # Workers import the entry point again where processes are spawned; here they are forked. They leave SIGTERM to the
    # main process, and persistent ones must not outlive it.
    small["datasets"]["train"] |= {"num_worker_per_gpu": 1, "persistent_workers": True}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(small))
    verb = ["train"] if module == "pcl_loss" else []
    command = [sys.executable, "-m", module, *verb, "-opt", "tiny.yml", "--force_yml", "name=forced"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "experiments/forced/models/net_g_latest.pth").is_file()


@pytest.mark.slow
def test_the_preview_appears_in_tensorboard(small: Options, run_pipeline: Callable[..., str], tmp_path: Path) -> None:
    small["val"]["pcl_preview"] = True
    run_pipeline(small)
    images = events_of(tmp_path / "tb_logger/tiny").Images("pcl_preview/held_out")
    assert {image.step for image in images} >= {2, 4}
    assert images[0].width == 1200
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
