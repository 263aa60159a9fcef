"""The bench compares methods on equal terms, goes on where it was stopped, and does its sums right."""

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_loss import WaveletDiscriminator, samples

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "frontier.py"
PAGES = [
    ("evidence.md", "test", 300),
    ("evidence.md", "test", 3000),
    ("tables.md", "Set5", 300),
    ("tables.md", "Set14", 300),
]
NETS, SEEDS = ("A", "B"), (0, 1, 2)


@pytest.fixture(scope="module")
def frontier() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("frontier")


@pytest.fixture
def runs(frontier: ModuleType) -> ModuleType:
    return sys.modules["_frontier_run"]


@pytest.fixture
def methods(frontier: ModuleType) -> ModuleType:
    return sys.modules["_frontier_methods"]


@pytest.fixture
def tables(frontier: ModuleType) -> ModuleType:
    return sys.modules["_frontier_tables"]


class ToyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-0.1, 0.1, self.conv.weight.numel()).view_as(self.conv.weight))
            self.conv.bias.fill_(0.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=4))


def noise_images(count: int, side: int = 64) -> list[Any]:
    return list(np.random.default_rng(5).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.fixture
def batches(runs: ModuleType) -> Any:
    return runs.Batches(noise_images(2), size=2, lr_patch=8)


@pytest.fixture
def setting(runs: ModuleType, tmp_path: Path) -> Any:
    return runs.Setting("toy:Net", "toy", tmp_path / "w.pth", 1.0, (), (), "val", 3, tmp_path)


# --- on equal terms ---


def test_the_ratio_of_the_gradients_is_that_of_their_closed_forms(runs: ModuleType, batches: Any) -> None:
    net, chosen = ToyNet(), [batches(1, step) for step in range(3)]

    def half_square(sr: Tensor, hr: Tensor) -> Tensor:
        return (sr - hr).square().sum() / 2

    with torch.no_grad():  # the gradients are sr - hr, and one N-th of its signs
        expected = [float((net(lq) - hr).norm()) * math.sqrt(hr.numel()) for lq, hr in chosen]
    assert runs.gradient_ratio(net, half_square, chosen) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_second_loss_is_weighed_so_that_its_gradient_has_the_asked_ratio(
    runs: ModuleType, setting: Any, batches: Any, ratio: float
) -> None:
    log = runs.train(setting, runs.Job("haar_l1", ratio, 0), batches, ToyNet())
    # Haar is orthonormal: the mean L1 of its three bands of N / 4 values each has a gradient of norm 2 / sqrt(3 N).
    assert log["weight"] == pytest.approx(ratio * math.sqrt(3) / 2, rel=1e-5)
    assert log["ratio_at_end"] == pytest.approx(ratio, rel=1e-5)


def test_all_methods_see_the_same_batches_and_the_noise_floor_sees_them_backwards(
    runs: ModuleType, setting: Any, batches: Any
) -> None:
    def seen(method: str, ratio: float | None) -> list[tuple[int, int]]:
        calls = []

        def spy(stream: int, step: int) -> Any:
            calls.append((stream, step))
            return batches(stream, step)

        runs.train(setting, runs.Job(method, ratio, 7), spy, ToyNet())
        return [call for call in calls if call[0] == 7]

    assert seen("l1", None) == [(7, 0), (7, 1), (7, 2)]
    assert seen("haar_l1", 1.0) == seen("l1", None)
    assert seen("l1_reordered", None) == seen("l1", None)[::-1]


def test_a_batch_depends_on_its_stream_and_step_alone(batches: Any) -> None:
    first, again, other_step, other_stream = batches(3, 4), batches(3, 4), batches(3, 5), batches(4, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other_step[1])
    assert not torch.equal(first[1], other_stream[1])


def test_lr_and_hr_patches_show_the_same_place_turned_the_same_way(runs: ModuleType) -> None:
    y, x = np.mgrid[0:128, 0:128]
    ramp = np.stack([y, x, 255 - y], 2).astype(np.uint8)
    batches = runs.Batches([ramp], size=4, lr_patch=8)
    for step in range(8):
        lq, hr = batches(0, step)
        assert lq.shape == (4, 3, 8, 8)
        # Bicubic keeps a ramp, so that an LR pixel is the mean of its 4 x 4 block; the image's own border apart.
        torch.testing.assert_close(lq, F.avg_pool2d(hr, 4), atol=3 / 255, rtol=0)


def test_training_leaves_the_mean_of_the_weights_of_all_its_steps(runs: ModuleType, setting: Any, batches: Any) -> None:
    net = ToyNet()
    runs.train(setting, runs.Job("l1", None, 0), batches, net)
    slow, passed = ToyNet(), []
    optimizer = torch.optim.Adam(slow.parameters(), 5e-5)
    for step in range(3):
        lq, hr = batches(0, step)
        optimizer.zero_grad()
        (slow(lq) - hr).abs().mean().backward()
        optimizer.step()
        passed.append(slow.conv.weight.detach().clone())
    torch.testing.assert_close(net.conv.weight, torch.stack(passed).mean(0), rtol=0, atol=1e-7)


def test_the_images_held_out_are_chosen_by_name_and_never_trained_on(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "NUM_VAL", 2)
    monkeypatch.setattr(runs, "NUM_TEST", 3)
    for index in range(8):
        side = 252 if index == 0 else 256
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((side, 300, 3), np.uint8))
    found = {name: [file.stem for file in files] for name, files in runs.split([tmp_path]).items()}
    # printf %s N | sha256sum, sorted: 4b.. 4; 4e.. 2; 6b.. 1; 79.. 7; e7.. 6; ef.. 5; 4e07.. 3
    assert found["val"] == ["4", "3"]
    assert found["test"] == ["1", "7", "2"]
    assert found["train"] == ["0", "5", "6"]


# --- goes on ---


def test_a_run_that_has_a_record_is_not_made_again(frontier: ModuleType, runs: ModuleType, setting: Any) -> None:
    jobs = frontier.plan(["l1", "haar_l1"], [0.5, 1.0], [0, 1])
    record = {"net": "toy", "on": "val", "iters": 3, "method": "haar_l1", "ratio": 0.5, "seed": 0, "scores": {}}
    left = frontier.pending(setting, jobs, [record])
    assert left == [job for job in jobs if job != runs.Job("haar_l1", 0.5, 0)]
    for other in ({"net": "B"}, {"on": "test"}, {"iters": 300}):
        assert frontier.pending(setting, jobs, [record | other]) == jobs


def test_a_record_that_a_stop_cut_off_does_not_count(frontier: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"net": "A"}\n{"net": "B", "scor')
    assert frontier.read_results(file) == [{"net": "A"}]
    assert frontier.read_results(tmp_path / "none") == []


def test_a_seed_is_done_before_the_next_begins(frontier: ModuleType) -> None:
    plan = frontier.plan(["l1", "haar_l1", "unsharp,factor=1.2"], [0.5, 1.0], [3, 4])
    assert [tuple(job) for job in plan[:4]] == [
        ("l1", None, 3),
        ("haar_l1", 0.5, 3),
        ("haar_l1", 1.0, 3),
        ("unsharp,factor=1.2", None, 3),
    ]
    assert [job.seed for job in plan] == [3] * 4 + [4] * 4


def test_a_trained_net_is_kept_with_its_log(runs: ModuleType, setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(_setting: Any, job: Any, _batches: Any, net: ToyNet) -> dict[str, Any]:
        trained.append(job)
        net.conv.bias.data.fill_(0.25)  # type: ignore[union-attr]
        return {"weight": 2.0}

    monkeypatch.setattr(runs, "build_net", lambda _: ToyNet())
    monkeypatch.setattr(runs, "load_batches", lambda _: None)
    monkeypatch.setattr(runs, "train", train)
    job = runs.Job("haar_l1", 0.5, 0)
    for _ in range(2):
        net, log = runs.trained_net(setting, job)
        assert log == {"weight": 2.0}
        assert net.conv.bias[0].item() == 0.25
    assert trained == [job]


# --- methods ---


def test_bands_stand_beside_a_constant(methods: ModuleType) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).div(10).expand(1, 1, 2, 2)
    (only,) = methods.BandEmbedding(c=0.1, scales=1).embed(x, 4)
    # (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2, each over c
    torch.testing.assert_close(only.flatten(), torch.tensor([-2.5, -1.5, 0.5, 1.0]))


def test_a_coarser_scale_is_the_bands_of_the_image_of_half_the_size(methods: ModuleType) -> None:
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    embedding = methods.BandEmbedding(c=0.02, scales=2)
    torch.testing.assert_close(embedding.embed(x, 2)[1], embedding.embed(F.avg_pool2d(x, 2), 1)[0])


def test_one_scale_at_every_pixel_is_the_recipe_of_the_package(
    methods: ModuleType, batches: Any, tmp_path: Path
) -> None:
    context = methods.Context(3, lambda step: batches(1, step), ToyNet(), tmp_path)
    lq, hr = batches(0, 0)
    grads = []
    for method in ("pcl_bands,c=0.01,scales=1,overlap=True", "pcl_light"):
        sr = samples.upsample(lq, (32, 32)).requires_grad_()
        methods.make_loss(method, context)(sr, hr).backward()
        grads.append(sr.grad)
    assert float(grads[0].norm()) > 0
    torch.testing.assert_close(*grads)


def test_a_random_embedding_takes_its_statistics_from_photographs_and_no_global_number(
    methods: ModuleType, batches: Any, tmp_path: Path
) -> None:
    context = methods.Context(0, lambda step: tuple(F.interpolate(x, 32) for x in batches(1, step)), ToyNet(), tmp_path)
    before = torch.get_rng_state()
    net_d = methods.random_embedding(context, num_feat=4, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    fresh = WaveletDiscriminator(num_feat=4)
    assert torch.equal(net_d.blocks[0].conv.weight, fresh.blocks[0].conv.weight)
    with torch.no_grad():
        means = [fresh.blocks[0].conv(fresh._bands(context.batch(step)[1])).mean((0, 2, 3)) for step in range(10)]
    torch.testing.assert_close(net_d.blocks[0].norm.running_mean, torch.stack(means).mean(0))
    assert not any(param.requires_grad for param in net_d.parameters())


def test_every_second_loss_gives_the_sr_image_alone_a_gradient(
    methods: ModuleType, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "E_D_STEPS", 2)
    monkeypatch.setattr(methods, "PAPER_WARMUP", 2)
    context = methods.Context(0, lambda step: batches(1, step), ToyNet(), tmp_path)
    _, hr = batches(0, 0)
    hr.requires_grad_()
    for method in ("pcl_paper,num_feat=4", "pcl_trained", "pcl_random,num_feat=4", "pcl_bands", "feature_l1", "cosine"):
        sr = samples.blur(hr.detach(), torch.full((1, len(hr)), 0.8), 1.0)[0].requires_grad_()
        hr.grad = None
        methods.make_loss(method, context)(sr, hr).backward()
        assert sr.grad is not None
        assert float(sr.grad.norm()) > 0, method
        if method.startswith("pcl_"):
            assert hr.grad is None, method
    assert [file.name for file in tmp_path.iterdir()] == ["net_d_64_seed0.pth"]


@pytest.mark.parametrize("method", ["no_such", "pcl_bands,c", "pcl_bands,no_such=1"])
def test_a_method_that_does_not_exist_is_refused(methods: ModuleType, method: str, tmp_path: Path) -> None:
    context = methods.Context(0, lambda step: (torch.rand(1), torch.rand(1)), ToyNet(), tmp_path)
    with pytest.raises(ValueError, match=r"no_such|c="):
        methods.make_loss(method, context)


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(methods: ModuleType) -> None:
    with pytest.raises(methods.PackageMissing, match="pip install --no-deps no-such"):
        methods.optional("no_such_module", "no-such")


@pytest.mark.skipif(importlib.util.find_spec("piq") is None, reason="piq is not installed")
def test_an_image_is_at_no_distance_from_itself(runs: ModuleType) -> None:
    import piq

    image = torch.from_numpy(noise_images(1, 64)[0]).permute(2, 0, 1)[None] / 255
    assert float(piq.haarpsi(image, image)) == pytest.approx(1, abs=1e-4)
    assert float(piq.mdsi(image, image)) == pytest.approx(0, abs=1e-6)


# --- tables ---


def record(net: str, seed: int, method: str, ratio: float | None, psnr: float, lpips: float) -> dict[str, Any]:
    scores = dict.fromkeys(("ssim", "dists", "haarpsi", "mdsi"), 0.5) | {"psnr": psnr, "lpips": lpips}
    run = {"net": net, "seed": seed, "method": method, "ratio": ratio, "seconds_per_step": 0.25, "on": "test"}
    return run | {"iters": 300, "scores": {"test": scores}}


@pytest.fixture
def records() -> list[dict[str, Any]]:
    made = []
    for net in NETS:
        for seed in SEEDS:
            made += [
                record(net, seed, "l1", None, 30.0, 0.200),
                record(net, seed, "l1_reordered", None, 30.0, 0.200 * (1.01 if seed else 0.98)),
                record(net, seed, "pcl_bands", 0.5, 29.99, 0.190),
                record(net, seed, "pcl_bands", 1.0, 29.95, 0.182),
            ]
    return made


def test_differences_are_to_l1_of_the_same_net_and_seed(tables: ModuleType, records: list[dict[str, Any]]) -> None:
    records[0]["scores"]["test"] |= {"psnr": 31.0, "lpips": 0.4}
    results = tables.Results(records, "test", 300)
    psnr = results.differences("pcl_bands", 0.5, "test", "psnr")
    lpips = results.differences("pcl_bands", 0.5, "test", "lpips")
    assert psnr == pytest.approx({(net, seed): -0.01 for net in NETS for seed in SEEDS} | {("A", 0): -1.01})
    assert lpips == pytest.approx({(net, seed): -5.0 for net in NETS for seed in SEEDS} | {("A", 0): -52.5})


def test_the_noise_floor_is_a_root_mean_square(tables: ModuleType, records: list[dict[str, Any]]) -> None:
    floor = tables.Results(records, "test", 300).noise_floor("test", "lpips")
    assert floor == pytest.approx(math.sqrt((4 * 1**2 + 2 * 2**2) / 6))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-5, -5, -5, -5, -5, -5], "better"),
        ([5, 5, 5, 5, 5, 5], "worse"),
        ([-20, -20, -20, -20, -20, 0.1], ""),  # one sign
        ([-2.8, -2.8, -2.8, -2.8, -2.8, -2.8], ""),  # twice the floor is 2.83
        ([-5, -5, -5, -5, -5], ""),  # five pairs
    ],
)
def test_better_needs_six_signs_and_twice_the_noise_floor(
    tables: ModuleType, records: list[dict[str, Any]], values: list[float], verdict: str
) -> None:
    results = tables.Results(records, "test", 300)
    pairs = [(net, seed) for net in NETS for seed in SEEDS]
    assert results.verdict(dict(zip(pairs, values, strict=False)), "test", "lpips") == verdict


def test_at_equal_psnr_a_curve_is_interpolated_and_never_extended(
    tables: ModuleType, records: list[dict[str, Any]]
) -> None:
    results = tables.Results(records, "test", 300)
    # At the ratios themselves, -.01 dB and -5 %, -.05 dB and -9 %.
    assert results.at_psnr_loss("pcl_bands", 0.01, "test", "lpips")["A", 1] == pytest.approx(-5, abs=0.02)
    assert results.at_psnr_loss("pcl_bands", 0.05, "test", "lpips")["B", 2] == pytest.approx(-9, abs=0.02)
    assert results.at_psnr_loss("pcl_bands", 0.06, "test", "lpips") == {}
    for each in records:
        if each["ratio"]:  # now both are lines: -.02 dB and -4 % at 1
            each["scores"]["test"] |= {"psnr": 30 - 0.02 * each["ratio"], "lpips": 0.2 * (1 - 0.04 * each["ratio"])}
    assert results.at_psnr_loss("pcl_bands", 0.005, "test", "lpips")["A", 1] == pytest.approx(-1, abs=0.01)
    assert results.at_psnr_loss("pcl_bands", 0.015, "test", "lpips")["A", 1] == pytest.approx(-3, abs=0.01)


def test_the_factor_of_unsharp_masking_is_its_curve(tables: ModuleType, records: list[dict[str, Any]]) -> None:
    records += [
        record("A", 0, "unsharp,factor=1.4", None, 29.9, 0.196),
        record("A", 0, "unsharp,factor=1.2", None, 29.98, 0.198),
    ]
    curve = tables.Results(records, "test", 300).curve("unsharp", ("A", 0), "test", "lpips")
    assert [x for _, x, _ in curve] == pytest.approx([0, -0.02, -0.1])
    assert [y for *_, y in curve] == pytest.approx([0, -1, -2])


def test_results_become_tables_and_a_picture_without_a_run(
    frontier: ModuleType, records: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "results.jsonl", tmp_path / "curves.png"
    file.write_text("\n".join(json.dumps(each) for each in [*records, records[0] | {"iters": 3}]))
    frontier.main(["tables", str(file), "--every", "--picture", str(picture)])
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    half = next(row for row in rows if row.startswith("| pcl_bands | 0.5"))
    # Twice PSNR's noise floor of 0 is exceeded; 5 % is more than twice 1.41 %.
    assert "| 6 | _-0.010 (0.000)_ | +0.000 (0.000) | **-5.00 (0.00)** |" in half
    assert cv2.imread(str(picture)).shape[0] > 500


@pytest.mark.parametrize(("page", "set_name", "iters"), PAGES)
def test_a_page_shows_the_tables_of_the_results_that_are_kept(
    frontier: ModuleType, tables: ModuleType, page: str, set_name: str, iters: int
) -> None:
    records = frontier.read_results(ROOT / "benchmarks" / "frontier_results.jsonl")
    results = tables.Results(records, "test", iters)
    text = (ROOT / "docs" / page).read_text()
    assert tables.differences_table(results, set_name) in text
    assert tables.equal_psnr_table(results, set_name) in text


def test_the_sheet_shows_where_methods_differ(frontier: ModuleType) -> None:
    sheet = sys.modules["_frontier_sheet"]
    first, second = noise_images(2, 160)
    altered = second.copy()
    altered[64:128, 80:144] //= 2
    spots = sheet.find_spots([[first, second], [first, altered]], count=1)
    assert [spot.image for spot in spots] == [1]
    assert spots[0].cut(second).shape == (64, 64, 3)
    assert np.array_equal(spots[0].cut(altered), second[64:128, 80:144] // 2)
