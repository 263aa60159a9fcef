"""The doctor's text is true, and names what is wrong."""

import argparse
import builtins
import contextlib
import importlib
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pcl_loss import PCLLoss, WaveletDiscriminator
from pcl_loss.tools import doctor
from pcl_loss.tools.doctor import Diagnosis, Gradients, Workload, diagnose

TINY = Workload(num_feat=4, num_block=1, batch_size=2, gt_size=32, net_d_feat=4, iterations=1)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.WORKLOADS, "cpu", TINY)


@pytest.fixture(scope="module")
def healthy() -> Diagnosis:
    return diagnose("cpu", TINY)


def command(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.run(parser.parse_args(list(flags)))


def test_a_healthy_machine_gives_exit_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--device", "cpu") == 0
    text = capsys.readouterr().out
    assert text.endswith("healthy\n")
    for part in ("gradient of PCL reaches the SR network: yes", "E_D moved: yes", "loss_weight = r / ", "peak memory"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_text_has_every_version(healthy: Diagnosis) -> None:
    assert healthy.versions["torch"].startswith(torch.__version__)
    assert {"pcl_loss", "python", "platform", "torchvision", "basicsr", "kornia", "numpy", "opencv", "lpips"} <= set(
        healthy.versions
    )
    assert all(f"{name} " in str(healthy) and version in str(healthy) for name, version in healthy.versions.items())


@pytest.mark.usefixtures("registered")
def test_the_text_tells_which_repairs_were_applied(healthy: Diagnosis) -> None:
    without_gpu = "not needed" if torch.cuda.is_available() else "applied"
    assert healthy.repairs["resume_without_cuda"] == healthy.repairs["distribute_without_cuda"] == without_gpu
    has_module = not importlib.import_module("pcl_loss.import_repair").is_used()
    for name in ("end_warmup", "durable_files", "load_resume_state", "placed_data", "exact_resume", "take_schedule"):
        assert healthy.repairs[name] == "by `pcl-loss train` and `run` alone"
    assert healthy.repairs["loaded_options"] == "applied"
    assert healthy.repairs["import_repair"] == ("not needed" if has_module else "applied")


def test_the_measured_ratio_is_that_of_the_two_gradients(healthy: Diagnosis) -> None:
    gradients = healthy.gradients
    assert gradients is not None
    # Every element's derivative of a mean absolute difference is 1 / n or -1 / n.
    count = TINY.batch_size * 3 * TINY.gt_size**2
    assert gradients.l_1[1.0] == pytest.approx(count**-0.5, rel=1e-3)
    assert gradients.l_cl[1.0] == pytest.approx(gradients.l_cl[255.0], rel=1e-3)
    assert gradients.ratio == pytest.approx(gradients.l_cl[255.0] / gradients.l_1[255.0], rel=1e-3)


def test_the_advised_weight_gives_the_wanted_ratio() -> None:
    torch.manual_seed(0)
    net, hr = WaveletDiscriminator(num_feat=4), torch.rand(2, 3, 32, 32)
    sr = (hr + 0.1 * torch.randn_like(hr)).requires_grad_()

    def norm(loss: torch.Tensor) -> float:
        return float(torch.autograd.grad(loss, sr)[0].norm())

    l_1 = norm(F.l1_loss(sr, hr))
    gradients = Gradients({1.0: norm(PCLLoss()(sr, hr, net))}, {1.0: l_1})
    wanted = 0.5
    weight = wanted / gradients.ratio
    assert norm(PCLLoss(loss_weight=weight)(sr, hr, net)) / l_1 == pytest.approx(wanted, rel=1e-4)
    assert f"r / {gradients.ratio:.2g}" in gradients.advice()


def test_rates_and_memory_are_measured(healthy: Diagnosis) -> None:
    assert set(healthy.rates) == {"L1", "L1 + PCL"}
    assert all(rate > 0 for rate in healthy.rates.values())
    assert "MiB" in healthy.memory or "not measured" in healthy.memory


def test_the_global_random_numbers_are_left_alone(untouched_global_rng: None) -> None:
    diagnose("cpu", TINY)


def mutant(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    forward = PCLLoss.forward
    monkeypatch.setattr(PCLLoss, "forward", lambda self, sr, *args, **kw: change(forward, self, sr, *args, **kw))


def test_a_loss_without_gradient_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The mistake of the paper's published code: SR's features under no_grad.
    mutant(monkeypatch, lambda forward, self, sr, *args, **kw: forward(self, sr.detach(), *args, **kw))
    assert command("--device", "cpu") == 1
    text = capsys.readouterr().out
    assert "gradient of PCL reaches the SR network: NO" in text
    assert text.endswith("FAILED: gradient of PCL reaches the SR network\n")


def test_a_loss_with_a_zero_gradient_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(
        monkeypatch,
        lambda forward, self, sr, *args, **kw: forward(self, sr.detach(), *args, **kw) + 0 * sr.sum(),
    )
    assert [check.name for check in diagnose("cpu").failures] == ["gradient of PCL reaches the SR network"]


def test_an_e_d_that_stands_still_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    assert "E_D moved" in [check.name for check in diagnose("cpu").failures]


def test_a_step_that_raises_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kw: Any) -> None:
        raise RuntimeError("out of luck")

    mutant(monkeypatch, fail)
    diagnosis = diagnose("cpu")
    assert "a training step runs: NO (RuntimeError: out of luck)" in str(diagnosis)
    assert diagnosis.gradients is None
    assert not diagnosis.rates


def block_import(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    real = importlib.import_module

    def import_module(module: str, package: str | None = None) -> Any:
        if module == name:
            raise error
        return real(module, package)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)


def test_a_missing_library_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    block_import(monkeypatch, "lpips", ModuleNotFoundError("No module named 'lpips'", name="lpips"))
    real = doctor.importlib.metadata.version

    def version(name: str) -> str:
        if name == "lpips":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    diagnosis = diagnose("cpu")
    assert diagnosis.versions["lpips"] == "not installed: pip install 'pcl_loss[metrics]'"
    assert not diagnosis.failures


def test_a_broken_library_shows_its_error_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    block_import(monkeypatch, "basicsr", ImportError("undefined symbol: xyz"))
    diagnosis = diagnose("cpu")
    assert diagnosis.versions["basicsr"].endswith("BROKEN: ImportError: undefined symbol: xyz")
    assert [check.name for check in diagnosis.failures] == ["basicsr can be imported"]
    assert "none: BasicSR is not usable" in str(diagnosis)


def test_without_scikit_image_a_synthetic_texture_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    diagnosis = diagnose("cpu")
    assert diagnosis.images == "synthetic texture"
    assert not diagnosis.failures


def test_without_getrusage_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_resource(name: str, *args: Any, **kw: Any) -> Any:
        if name == "resource":
            raise ImportError(name)
        return real(name, *args, **kw)

    monkeypatch.setattr(builtins, "__import__", no_resource)
    assert "not measured" in doctor._memory({})


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device 'gpu' cannot be used: .*; take cpu, cuda or cuda:N"),
        ("meta", "device 'meta' is not supported; take cpu, cuda or cuda:N"),
        ("cuda:99", "device 'cuda:99' cannot be used: (no GPU is visible|PyTorch .* without CUDA|.*invalid device)"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(device)


def test_a_build_without_cuda_is_told_apart_from_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, why in (("13.0", "no GPU is visible"), (None, "built without CUDA")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with contextlib.suppress(AttributeError):
            monkeypatch.setattr(torch.version, "hip", None)
        with pytest.raises(ValueError, match=why):
            diagnose("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_healthy() -> None:
    diagnosis = diagnose("cuda", TINY)
    assert not diagnosis.failures
    assert "on the GPU" in diagnosis.memory
