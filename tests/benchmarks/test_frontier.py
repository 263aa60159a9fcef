"""The bench compares methods on equal terms, goes on where it was stopped, and does its sums right."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import _frontier_gan as gan
import _frontier_methods as methods
import _frontier_run as runs
import _frontier_tables as tables
import cv2
import frontier
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import samples

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "frontier_results.jsonl"
NETS, SEEDS = ("A", "B"), (0, 1, 2)


class ToyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-0.1, 0.1, self.conv.weight.numel()).view_as(self.conv.weight))
            self.conv.bias.fill_(0.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=4))


def half_square(_context: methods.Context, power: float = 1.0) -> methods.Loss:
    return lambda sr, hr: power * (sr - hr).square().sum() / 2


HALF_SQUARE = f"{__name__}:half_square"
SETTING = runs.Setting("toy:toy", (), (), "val", 3)


@pytest.fixture(scope="module")
def batches() -> runs.Batches:
    images = np.random.default_rng(5).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return runs.Batches(list(images), size=2, lr_patch=8)


def test_the_second_loss_is_weighed_so_that_its_gradient_has_the_asked_ratio(batches: runs.Batches) -> None:
    net, chosen = ToyNet(), [batches(runs.CALIBRATE, step) for step in range(8)]
    with torch.no_grad():  # the gradients are 3 (sr - hr), and one N-th of its signs
        of_one = np.mean([float((net(lq) - hr).norm()) * math.sqrt(hr.numel()) for lq, hr in chosen])
    log = runs.train(SETTING, runs.Job(f"{HALF_SQUARE},power=3", 0.5, 0), batches, net)
    assert log["weights"] == pytest.approx([0.5 / 3 / of_one], rel=1e-5)


def test_a_method_of_two_losses_gives_each_its_share(batches: runs.Batches) -> None:
    weights = []
    for method, ratio in ((HALF_SQUARE, 1.5), (f"{HALF_SQUARE}+0.5*{HALF_SQUARE},power=7", 1.0), ("l1", None)):
        net = ToyNet()
        runs.train(SETTING, runs.Job(method, ratio, 0), batches, net)
        weights.append(net.conv.weight)
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-7)
    assert not torch.equal(weights[0], weights[2])


def test_all_methods_see_the_same_batches_and_the_noise_floor_sees_them_backwards(batches: runs.Batches) -> None:
    def seen(method: str, ratio: float | None) -> list[tuple[int, int]]:
        calls = []

        def spy(stream: int, step: int) -> Any:
            calls.append((stream, step))
            return batches(stream, step)

        runs.train(SETTING, runs.Job(method, ratio, 7), spy, ToyNet())
        return [call for call in calls if call[0] == 7]

    assert seen("l1", None) == [(7, 0), (7, 1), (7, 2)]
    assert seen(HALF_SQUARE, 1.0) == seen("l1", None)
    assert seen("l1_reordered", None) == seen("l1", None)[::-1]


def test_lr_and_hr_patches_show_the_same_place_turned_the_same_way() -> None:
    y, x = np.mgrid[0:128, 0:128]
    ramp = np.stack([y, x, 255 - y], 2).astype(np.uint8)
    batches = runs.Batches([ramp], size=4, lr_patch=8)
    for step in range(8):
        lq, hr = batches(0, step)
        assert lq.shape == (4, 3, 8, 8)
        # Bicubic keeps a ramp, so that an LR pixel is the mean of its 4 x 4 block; the image's own border apart.
        torch.testing.assert_close(lq, F.avg_pool2d(hr, 4), atol=3 / 255, rtol=0)


def test_training_leaves_the_mean_of_the_weights_of_all_its_steps(batches: runs.Batches) -> None:
    net, slow, passed = ToyNet(), ToyNet(), []
    runs.train(SETTING, runs.Job("l1", None, 0), batches, net)
    optimizer = torch.optim.Adam(slow.parameters(), 5e-5)
    for step in range(3):
        lq, hr = batches(0, step)
        optimizer.zero_grad()
        (slow(lq) - hr).abs().mean().backward()
        optimizer.step()
        passed.append(slow.conv.weight.detach().clone())
    torch.testing.assert_close(net.conv.weight, torch.stack(passed).mean(0), rtol=0, atol=1e-7)


def test_the_images_held_out_are_chosen_by_name_and_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "NUM_VAL", 2)
    monkeypatch.setattr(runs, "NUM_TEST", 3)
    for index in range(8):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((256 if index else 252, 300, 3), np.uint8))
    found = {name: [file.stem for file in files] for name, files in runs.split([tmp_path]).items()}
    # printf %s N | sha256sum, sorted: 4b.. 4; 4e.. 2; 6b.. 1; 79.. 7; e7.. 6; ef.. 5; 4e07.. 3
    assert found == {"val": ["4", "3"], "test": ["1", "7", "2"], "train": ["0", "5", "6"]}


def test_a_run_that_has_a_record_is_not_made_again_and_a_record_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    jobs = frontier.plan(["l1", HALF_SQUARE], [0.5, 1.0], [0, 1])
    assert [tuple(job) for job in jobs[:3]] == [("l1", None, 0), (HALF_SQUARE, 0.5, 0), (HALF_SQUARE, 1.0, 0)]
    done = {"net": "toy", "on": "val", "iters": 3, "method": HALF_SQUARE, "ratio": 0.5, "seed": 0}
    whole = json.dumps(done | {"scores": {"val": {"psnr": 1.0}}})
    file = tmp_path / "results.jsonl"
    file.write_text(f"{whole}\n{whole.replace('0.5', '1.0')[:-9]}")
    left = frontier.pending(SETTING, jobs, frontier.read_results(file))
    assert left == [job for job in jobs if job != runs.Job(HALF_SQUARE, 0.5, 0)]
    for other in ({"net": "B"}, {"on": "test"}, {"iters": 300}):
        assert frontier.pending(SETTING, jobs, [done | other]) == jobs


def test_every_second_loss_gives_the_sr_image_a_gradient(
    batches: runs.Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "E_D_STEPS", 2)
    context = methods.Context(0, lambda step: batches(1, step), ToyNet())
    _, hr = batches(0, 0)
    without_weights = ("pcl_trained", "pcl_few", "energy", "cosine", "cosine,light=True")
    for method in ("pcl_paper,num_feat=4,steps=2", "pcl_random,num_feat=4", *without_weights):
        sr = samples.blur(hr, torch.full((1, len(hr)), 0.8), 1.0)[0].requires_grad_()
        ((_, loss),) = methods.make_losses(method, context)
        loss(sr, hr).backward()
        assert sr.grad is not None
        assert float(sr.grad.norm()) > 0, method


def test_a_discriminator_learns_in_its_own_step_alone(batches: runs.Batches) -> None:
    torch.manual_seed(0)
    net_d, (lq, hr) = gan.PatchDiscriminator(num_feat=4), batches(0, 0)
    sr = F.interpolate(lq, scale_factor=4).requires_grad_()
    before = copy.deepcopy(net_d.state_dict())
    similarity = methods.cosine(methods.Context(0, lambda _: (lq, hr), net_d, net_d), host=True)
    for loss in (net_d.loss, similarity):
        (gradient,) = torch.autograd.grad(loss(sr, hr), sr)
        assert float(gradient.norm()) > 0
    assert not any(param.requires_grad for param in net_d.parameters())
    torch.testing.assert_close(net_d.state_dict(), before, rtol=0, atol=0)
    leads = [net_d.step(sr, hr) for _ in range(100)]
    assert leads[-1] > leads[0] + 0.1
    assert sr.grad is None


def test_every_run_of_the_second_stage_begins_with_the_discriminator_that_was_kept(
    batches: runs.Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for folder, method, ratio in (
        (tmp_path, "l1", None),
        (tmp_path, "cosine,host=True", 1.0),
        (tmp_path, "l1", None),
        (None, "l1", None),
    ):
        monkeypatch.setattr(gan, "STEPS", 3 - len(weights))  # another one would be made after the first
        net = ToyNet()
        runs.train(SETTING._replace(gan=folder), runs.Job(method, ratio, 0), batches, net)
        weights.append(net.conv.weight)
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[3])


@pytest.mark.parametrize("method", ["no_such", "pcl_few,c", "pcl_few+no_such", "pcl_few+x*cosine"])
def test_a_method_that_does_not_exist_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"is not NAME\[,KEY=VALUE...\]; NAME is MODULE:FUNCTION or one of .*pcl_few"):
        methods.parse_method(method)


def test_a_grid_of_two_pixels_and_a_shift_of_colour_are_measured() -> None:
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 200, (128, 128, 3), dtype=np.uint8), (0, 0), 1.5)
    dots, bluer = image.copy(), image.copy()
    dots[::2, ::2] += 8
    bluer[..., 0] += 8
    assert runs.grid(dots) - runs.grid(image) > 1
    assert runs.colour_error(image, image) == 0
    assert runs.colour_error(bluer, image) > 2 * runs.colour_error(dots, image)


def record(net: str, seed: int, method: str, ratio: float | None, psnr: float, lpips: float) -> dict[str, Any]:
    scores = dict.fromkeys(("ssim", "dists", "haarpsi", "mdsi"), 0.5) | {"psnr": psnr, "lpips": lpips}
    run = {"net": net, "seed": seed, "method": method, "ratio": ratio, "on": "test", "iters": 300}
    return run | {"scores": {"test": scores}}


@pytest.fixture
def records() -> list[dict[str, Any]]:
    made = []
    for net in NETS:
        for seed in SEEDS:
            made += [
                record(net, seed, "l1", None, 30.0, 0.200),
                record(net, seed, "l1_reordered", None, 30.0, 0.200 * (1.01 if seed else 0.98)),
                record(net, seed, "pcl_few", 0.5, 29.99, 0.190),
                record(net, seed, "pcl_few", 1.0, 29.95, 0.182),
                record(net, seed, "unsharp,factor=1.4", None, 29.9, 0.196),
            ]
    return made


def results_of(records: list[dict[str, Any]]) -> tables.Results:
    return tables.Results(records, "test", 300, "test")


def test_differences_are_to_l1_of_the_same_net_and_seed(records: list[dict[str, Any]]) -> None:
    records[0]["scores"]["test"] |= {"psnr": 31.0, "lpips": 0.4}
    results = results_of(records)
    pairs = [(net, seed) for net in NETS for seed in SEEDS]
    psnr, lpips = (results.differences("pcl_few", 0.5, metric) for metric in ("psnr", "lpips"))
    assert psnr == pytest.approx(dict.fromkeys(pairs, -0.01) | {("A", 0): -1.01})
    assert lpips == pytest.approx(dict.fromkeys(pairs, -5.0) | {("A", 0): -52.5})


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-5, -5, -5, -5, -5, -5], "better"),
        ([5, 5, 5, 5, 5, 5], "worse"),
        ([-20, -20, -20, -20, -20, 0.1], ""),  # one sign
        ([-2.8, -2.8, -2.8, -2.8, -2.8, -2.8], ""),  # the floor is the root mean square, 2.83 / 2
        ([-5, -5, -5, -5, -5], ""),  # five pairs
    ],
)
def test_better_needs_six_signs_and_twice_the_noise_floor(
    records: list[dict[str, Any]], values: list[float], verdict: str
) -> None:
    pairs = [(net, seed) for net in NETS for seed in SEEDS]
    assert results_of(records).verdict(dict(zip(pairs, values, strict=False)), "lpips") == verdict


def test_at_equal_psnr_a_curve_is_interpolated_and_never_extended(records: list[dict[str, Any]]) -> None:
    results = results_of(records)
    # At the ratios themselves, -.01 dB and -5 %, -.05 dB and -9 %; unsharp masking has its factor as its strength.
    assert results.at_psnr_loss("pcl_few", 0.01, "lpips")["A", 1] == pytest.approx(-5, abs=0.02)
    assert results.at_psnr_loss("pcl_few", 0.05, "lpips")["B", 2] == pytest.approx(-9, abs=0.02)
    assert results.at_psnr_loss("pcl_few", 0.06, "lpips") == {}
    assert results.at_psnr_loss("unsharp", 0.05, "lpips")["A", 0] == pytest.approx(-1, abs=0.02)


def test_the_table_says_what_is_better(records: list[dict[str, Any]], tmp_path: Path) -> None:
    results = results_of(records)
    rows = [" ".join(line.split()) for line in tables.differences_table(results, 0.5).splitlines()]
    # Twice PSNR's noise floor of 0 is exceeded; 5 % is more than twice 1.41 %.
    assert (
        "| PCL, light without its energy | 0.5 | 6 | _-0.010 (0.000)_ | +0.000 (0.000) | **-5.00 (0.00)** |"
        in "\n".join(rows)
    )
    assert not any("energy | 1 " in row for row in rows)
    tables.draw(results, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[0] > 500


def test_the_pages_and_the_file_beside_them_show_the_results_that_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for page, flags in (("gan", ["--iters", "600", "--every-ratio", "--at", "0.05"]), ("evidence", [])):
        frontier.main(["tables", str(RESULTS), "--csv", str(tmp_path / "tables.csv"), *flags])
        for table in capsys.readouterr().out.strip().split("\n\n"):
            assert table in (ROOT / "docs" / f"{page}.md").read_text()
    assert (tmp_path / "tables.csv").read_bytes() == (ROOT / "docs" / "tables.csv").read_bytes()
