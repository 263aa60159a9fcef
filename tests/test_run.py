"""`pcl-loss run SCRIPT` is `python SCRIPT`, with what the script needs put back and PCL known to its BasicSR."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from basicsr_fixtures import all_files, assert_equal_weights

from pcl_loss import run

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
RUN = ("-m", "pcl_loss", "run")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", "-m", "pcl_loss.run")

Done = subprocess.CompletedProcess[str]


def python(cwd: Path, *arguments: str) -> Done:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=ENV, text=True, capture_output=True, check=False)


def write(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return str(file)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A codebase with a `basicsr/` of its own, as a fresh clone has it: BasicSR itself, without `version.py`."""
    pytest.importorskip("basicsr")
    (installed,) = find_spec("basicsr").submodule_search_locations  # type: ignore[union-attr, misc]
    ignored = shutil.ignore_patterns("__pycache__", "version.py")
    shutil.copytree(installed, tmp_path / "checkout" / "basicsr", ignore=ignored)
    return tmp_path / "checkout"


LOOKS_AROUND = """
    import os, sys
    import __main__

    import beside

    assert __name__ == "__main__" and __main__.beside is beside
    for value in (sys.argv, __file__, __package__, __spec__, sys.path[0], os.getcwd() in sys.path):
        print(value)
"""


@pytest.mark.parametrize(
    ("script", "ending"), [("code/main.py", "sys.exit(7)"), ("here.py", "raise ValueError('of the script')")]
)
def test_a_script_sees_what_python_itself_would_show_it_and_ends_as_it_does(
    script: str, ending: str, tmp_path: Path
) -> None:
    write(tmp_path / script, LOOKS_AROUND + f"    {ending}\n")
    write(tmp_path / Path(script).parent / "beside.py", "")
    write(tmp_path / "code/__init__.py", "")
    flags = ("--loss", "1*L1+1*PCL", "-h", "--", "two words")
    plain, ours = python(tmp_path, script, *flags), python(tmp_path, *RUN, script, *flags)
    assert flags[-1] in plain.stdout
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode)
    assert ours.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    ("script", "reason"), [("none.py", "there is no file none.py"), ("basicsr/train.py", "has no __init__.py")]
)
def test_what_cannot_be_run_is_refused_with_the_reason(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "basicsr/train.py", "print('ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run.main([script])
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert reason in output.err
    assert output.out == ""


def test_a_basicsr_without_a_registry_is_refused_with_what_works(tmp_path: Path) -> None:
    write(tmp_path / "basicsr/__init__.py", "")
    write(tmp_path / "basicsr/train.py", "import basicsr\nprint('ran')")
    done = python(tmp_path, *RUN, "basicsr/train.py")
    assert done.returncode == 1
    assert "ran" not in done.stdout
    assert "PCLCriterion" in done.stderr


OLD_SCRIPT = """
    import os

    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    from scipy.misc import imread, imsave

    class Files(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return imread(f"{index}.png").astype(np.float), os.getpid()

    if __name__ == "__main__":
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        if rank == 0:
            for index in range(4):
                imsave(f"{index}.png", np.full((2, 2), index, np.uint8))
        torch.distributed.barrier()
        workers = set()
        for image, worker in DataLoader(Files(), num_workers=2, multiprocessing_context="spawn"):
            print(f"rank {rank}: image {image.mean().item():g} {image.dtype}", flush=True)
            workers.add(worker.item())
        assert len(workers - {os.getpid()}) == 2
        print(f"rank {rank}: done", flush=True)
"""


def test_two_processes_with_two_spawned_workers_each_have_what_was_put_back(tmp_path: Path) -> None:
    write(tmp_path / "main.py", OLD_SCRIPT)
    done = python(tmp_path, *TORCHRUN, "main.py")
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert sorted(re.findall(rf"rank {rank}: image (\d) torch.float64", done.stdout)) == list("0123")
        assert f"rank {rank}: done" in done.stdout


def test_the_scripts_own_basicsr_knows_pcl_also_where_the_script_imports_us_first(checkout: Path) -> None:
    write(
        checkout / "mine/train.py",
        """
        from pcl_loss.basicsr_plugin import pcl_model
        from basicsr.utils.registry import LOSS_REGISTRY
        assert "PCLLoss" in LOSS_REGISTRY
        from basicsr.utils.matlab_functions import rgb2ycbcr
        import basicsr
        print(basicsr.__file__, basicsr.__version__)
        """,
    )
    write(checkout / "mine/__init__.py", "")
    done = python(checkout, *RUN, "mine/train.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"[pcl_loss] PCL is registered in {checkout / 'basicsr'}",
        f"{checkout / 'basicsr' / '__init__.py'} unknown",
    ]


def train(checkout: Path, options: dict[str, Any], *command: str, status: int = 0) -> Done:
    file = write(checkout / "options.yml", yaml.safe_dump(options))
    done = python(checkout, *command, "-opt", file)
    assert done.returncode == status, done.stdout + done.stderr
    return done


STOPPING_MODEL = """
    import os, signal
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import MODEL_REGISTRY

    @MODEL_REGISTRY.register()
    class StoppingModel(SRModel):
        def optimize_parameters(self, current_iter):
            super().optimize_parameters(current_iter)
            if current_iter == self.opt["train"].get("stop_at"):
                os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_basicsr_script_that_is_stopped_and_resumed_is_the_uninterrupted_one_bit_for_bit(
    checkout: Path, baseline: dict[str, Any]
) -> None:
    write(checkout / "basicsr/models/stopping_model.py", STOPPING_MODEL)
    baseline["train"] |= {"perceptual_opt": {"type": "PCLPerceptualLoss", "num_feat": 2}}
    baseline["datasets"]["train"] |= {"num_worker_per_gpu": 1, "dataset_enlarge_ratio": 2}
    baseline["logger"] |= {"use_tb_logger": False, "save_checkpoint_freq": 4}
    baseline |= {"model_type": "StoppingModel", "val": None}
    command = (*RUN, "basicsr/train.py")
    train(checkout, baseline | {"name": "whole"}, *command)

    stopping = baseline | {"train": baseline["train"] | {"stop_at": 2}}
    done = train(checkout, stopping, *command, status=143)
    assert done.stderr.splitlines()[-1] == "pcl-loss run: SIGTERM: iteration 2 is saved, --auto_resume goes on"
    assert "Traceback" not in done.stderr + done.stdout
    done = train(checkout, baseline, *command, "--auto_resume")
    assert "iter: 2." in done.stdout + done.stderr
    resumed, whole = (all_files(checkout / "experiments" / name, 4) for name in ("tiny", "whole"))
    assert any(name.startswith("pcl_4.pth") for name in whole)
    assert_equal_weights(resumed, whole)


def test_a_training_pipeline_of_another_kind_is_run_as_it_is_and_a_line_says_so(
    checkout: Path, baseline: dict[str, Any]
) -> None:
    file = checkout / "basicsr/train.py"
    file.write_text(file.read_text().replace("load_resume_state", "find_resume_state"))
    baseline["logger"]["use_tb_logger"] = False
    done = train(checkout, baseline | {"val": None}, *RUN, "basicsr/train.py")
    assert done.stdout.count("has no load_resume_state as that of BasicSR") == 1
    assert (checkout / "experiments/tiny/training_states/4.state").exists()
