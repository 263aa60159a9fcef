"""From a YAML to a trained network, through BasicSR's own pipelines and our entry points."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("basicsr")

Options = dict[str, Any]

LOGGED = ("l_pix", "l_pcl", "l_cl", "pos_sim", "neg_sim", "margin", "grad_ratio", "l_d", "out_d_real", "out_d_fake")


def test_a_yaml_with_pcl_opt_trains_logs_and_saves_what_a_stock_model_tests(
    with_pcl: Options, run_pipeline: Callable[..., str], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = run_pipeline(with_pcl)
    lines = [line for line in log.splitlines() if "iter:" in line and "l_pix" in line]
    assert len(lines) == 4
    for line in lines:
        values = dict(re.findall(r"(\w+): (-?\d\.\d+e[+-]\d+)", line))
        assert tuple(values) == LOGGED
        assert float(values["l_pcl"]) > 0
    assert "# psnr:" in log
    models = tmp_path / "experiments/tiny/models"
    saved = {path.name for path in models.iterdir()}
    assert saved == {f"net_{net}_{iteration}.pth" for net in "gd" for iteration in (2, 4, "latest")}
    events = EventAccumulator(str(tmp_path / "tb_logger/tiny"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {f"losses/{key}" if key.startswith("l_") else key for key in LOGGED}

    options = {key: with_pcl[key] for key in ("scale", "num_gpu", "manual_seed", "network_g")} | {
        "name": "tested",
        "model_type": "SRModel",
        "datasets": {"test": with_pcl["datasets"]["val"] | {"phase": "test"}},
        "path": {"pretrain_network_g": str(models / "net_g_latest.pth"), "param_key_g": "params_ema"},
        "val": {"save_img": True, "suffix": None, "metrics": with_pcl["val"]["metrics"]},
    }
    assert "# psnr:" in run_pipeline(options, verb="test")
    assert len(list((tmp_path / "results/tested/visualization/held_out").glob("*.png"))) == 3


def test_the_verb_trains_under_the_callers_folder_and_ends(small: Options, tmp_path: Path) -> None:
    small["train"]["total_iter"] = 1
    # Workers leave SIGTERM to the main process, and persistent ones must not outlive it.
    small["datasets"]["train"] |= {"num_worker_per_gpu": 1, "persistent_workers": True}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(small))
    command = [sys.executable, "-m", "pcl_loss", "train", "-opt", "tiny.yml", "--force_yml", "name=forced"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "experiments/forced/models/net_g_latest.pth").is_file()
