"""The doctor's text is true, and names what is wrong."""

import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pcl_loss import PCLLoss, cli
from pcl_loss.tools import doctor
from pcl_loss.tools.doctor import diagnose


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.WORKLOADS, "cpu", (2, 32, 1))


def test_a_healthy_machine_gives_exit_status_0_and_every_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("healthy\n")
    for name in ("python", "torch", "torchvision", "basicsr", "kornia", "numpy", "cv2", "lpips", "matplotlib"):
        assert re.search(rf"^  {name} +(\d+\.|not installed)", text, re.MULTILINE)
    assert "GPU" in text
    for part in ("gradient of PCL reaches the SR network: yes", "E_D moved: yes", "E_D holds no gradient of it: yes"):
        assert part in text
    assert re.search(r"PCL takes [\d.e-]+ s", text)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.usefixtures("registered")
def test_the_text_tells_what_is_replaced_in_basicsr() -> None:
    from pcl_loss.basicsr_plugin import repairs

    text = str(diagnose("cpu"))
    assert len(repairs.REPLACED) <= 12
    for entry in repairs.REPLACED:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {entry.replaces}.{entry.name} (")]
        assert entry.why in line
        is_needed_here = entry.applied or entry.in_a_run
        assert line.endswith(": not needed") != is_needed_here


def test_the_advised_weight_gives_the_wanted_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    def ratio() -> float:
        (found,) = re.findall(r"loss_weight 1 gives PCL ([\d.e-]+) of", str(diagnose("cpu")))
        return float(found)

    at_1 = ratio()
    init = PCLLoss.__init__
    monkeypatch.setattr(PCLLoss, "__init__", lambda self, **kw: init(self, **kw | {"loss_weight": 0.5 / at_1}))
    assert ratio() == pytest.approx(0.5, rel=0.06)  # two digits are printed


def test_the_global_random_numbers_are_left_alone(untouched_global_rng: None) -> None:
    diagnose("cpu")


def no_gradient(forward: Callable[..., torch.Tensor], self: PCLLoss, sr: torch.Tensor, *args: Any) -> torch.Tensor:
    # The mistake of the paper's published code: SR's features under no_grad.
    return forward(self, sr.detach(), *args)


def zero_gradient(forward: Callable[..., torch.Tensor], self: PCLLoss, sr: torch.Tensor, *args: Any) -> torch.Tensor:
    return forward(self, sr.detach(), *args) + 0 * sr.sum()


def raises(forward: Callable[..., torch.Tensor], self: PCLLoss, sr: torch.Tensor, *args: Any) -> torch.Tensor:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize(
    ("change", "failure", "detail"),
    [
        (no_gradient, "gradient of PCL reaches the SR network", "NO"),
        (zero_gradient, "gradient of PCL reaches the SR network", "NO"),
        (raises, "a training step runs", "NO (RuntimeError: out of luck)"),
    ],
)
def test_a_loss_that_does_not_train_is_reported(
    monkeypatch: pytest.MonkeyPatch, change: Any, failure: str, detail: str
) -> None:
    forward = PCLLoss.forward
    monkeypatch.setattr(PCLLoss, "forward", lambda self, sr, *args: change(forward, self, sr, *args))
    diagnosis = diagnose("cpu")
    assert diagnosis.failures == [failure]
    assert f"{failure}: {detail}" in str(diagnosis)
    assert str(diagnosis).endswith(f"FAILED: {failure}")


def test_an_e_d_that_stands_still_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    assert "E_D moved: NO" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("library", "error", "says", "failures"),
    [
        (
            "lpips",
            ModuleNotFoundError("No module named 'lpips'", name="lpips"),
            "not installed: pip install 'pcl_loss[metrics]'",
            [],
        ),
        ("basicsr", ImportError("undefined symbol: xyz"), "undefined symbol: xyz", ["basicsr can be imported"]),
    ],
)
def test_a_missing_library_is_no_failure_and_a_broken_one_is(
    monkeypatch: pytest.MonkeyPatch, library: str, error: Exception, says: str, failures: list[str]
) -> None:
    real = importlib.import_module

    def import_module(module: str, package: str | None = None) -> Any:
        if module == library:
            raise error
        return real(module, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    diagnosis = diagnose("cpu")
    assert says in str(diagnosis)
    assert diagnosis.failures == failures


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device 'gpu' cannot be used: .*; take cpu, cuda or cuda:N"),
        ("meta", "device 'meta' is not supported; take cpu, cuda or cuda:N"),
        ("cuda:99", "device 'cuda:99' cannot be used: "),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(device)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_healthy() -> None:
    diagnosis = diagnose("cuda")
    assert not diagnosis.failures
    assert "on the GPU" in str(diagnosis)
