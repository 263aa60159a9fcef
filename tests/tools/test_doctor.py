"""The doctor's text is true, and names what is wrong."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pcl_loss import PCLLoss, cli
from pcl_loss.tools.doctor import diagnose

GRADIENT = "gradient of PCL reaches the SR network"


@pytest.mark.usefixtures("registered")
def test_a_healthy_machine_gives_exit_status_0_every_version_and_what_is_replaced_in_basicsr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pcl_loss.basicsr_plugin import repairs

    assert cli.main(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("healthy\n")
    for name in ("python", "torch", "torchvision", "basicsr", "kornia", "numpy", "cv2", "lpips", "matplotlib"):
        assert re.search(rf"^  {name} +(\d+\.|not installed)", text, re.MULTILINE)
    for part in ("GPU", "gradient of PCL reaches the SR network: yes", "E_D moved: yes", "no gradient of it: yes"):
        assert part in text
    for entry in repairs.REPLACED:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {entry.replaces}.{entry.name} (")]
        assert entry.why in line
        assert line.endswith(": yes") != entry.in_a_run


@pytest.mark.parametrize(
    ("target", "method", "change", "failure"),
    [
        # The mistake of the paper's published code: SR's features under no_grad.
        (PCLLoss, "forward", lambda real, pcl, sr, *args: real(pcl, sr.detach(), *args), GRADIENT),
        (PCLLoss, "forward", lambda real, pcl, sr, *args: real(pcl, sr.detach(), *args) + 0 * sr.sum(), GRADIENT),
        (PCLLoss, "forward", lambda *_: 1 / 0, "a training step runs"),
        (torch.optim.Adam, "step", lambda *_: None, "E_D moved"),
    ],
)
def test_a_loss_that_does_not_train_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: Any,
    method: str,
    change: Any,
    failure: str,
) -> None:
    real = getattr(target, method)
    monkeypatch.setattr(target, method, lambda *args: change(real, *args))
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert f"{failure}: NO" in text
    assert text.endswith(f"FAILED: {failure}\n")


def test_a_missing_library_is_no_failure_and_a_broken_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    diagnosis = diagnose("cpu")
    assert "not installed: pip install 'pcl_loss[metrics]'" in str(diagnosis)
    assert not diagnosis.failures
    (tmp_path / "lpips.py").write_text("raise ImportError('undefined symbol: xyz')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips")
    diagnosis = diagnose("cpu")
    assert "undefined symbol: xyz" in str(diagnosis)
    assert diagnosis.failures == ["lpips can be imported"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used: .*; take cpu, cuda or cuda:N"):
        diagnose(device)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_healthy() -> None:
    assert not diagnose("cuda").failures
