"""Whatever stands at a key of an option file: one clear error and no folder, or an iteration that works."""

import contextlib
import copy
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.models import build_model
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pcl_loss.basicsr_plugin import OptionsError

Options = dict[str, Any]
Parse = Callable[..., Options]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.floats(-3, 70),
    st.sampled_from([5000, 10**6, 10**9, 10**15]),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 1e-30, 5e3, "1e-4", "5e3", "", "~", "true", "none"]),
    st.text(max_size=8),
    st.dates(),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(st.text(max_size=5), SCALARS, max_size=2),
    st.just({"type": 3}),
)


def paths(options: Options, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in options.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += paths(value, (*above, key))
    return found


def working_options(with_pcl: Options) -> Options:
    """A YAML with a value at each key of ours, too."""
    options = copy.deepcopy(with_pcl)
    del options["val"]["metrics"]["psnr"]["test_y_channel"]
    options["network_d"] = {
        "type": "WaveletDiscriminator",
        "num_in_ch": 3,
        "num_feat": 2,
        "norm": "batch",
        "wavelet": True,
    }
    options["train"] |= {
        "pcl_start_iter": 0,
        "pcl_every": 1,
        "net_d_frozen": False,
        "amp": None,
        "channels_last": False,
        "compile": False,
        "max_bad_steps": 100,
        "cld_opt": {"type": "ContrastiveDiscriminatorLoss", "loss_weight": 1.0, "gather": False},
        "optim_d": {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]},
    }
    options["train"]["pcl_opt"] |= {
        "recipe": "paper",
        "temperature": 1.0,
        "num_layers": 2,
        "num_positives": 1,
        "num_negatives": 1,
        "positives": ["gt", "sharpen"],
        "negatives": ["blur"],
        "sharpness": [1.5, 3.0],
        "blur_sigma": [0.5, 1.5],
        "data_range": 1.0,
        "chunk_size": None,
    }
    return options


def run_one_iteration(opt: Options) -> None:
    """What `train_pipeline` does with options up to the end of one iteration, without its folders."""
    dataset_opt = opt["datasets"]["train"]
    train_set = build_dataset(dataset_opt)
    sampler = EnlargedSampler(train_set, 1, 0, dataset_opt.get("dataset_enlarge_ratio", 1))
    loader = build_dataloader(train_set, dataset_opt, num_gpu=opt["num_gpu"], sampler=sampler, seed=opt["manual_seed"])
    model = build_model(opt)
    model.update_learning_rate(1, warmup_iter=opt["train"].get("warmup_iter", -1))
    model.feed_data(next(iter(loader)))
    model.optimize_parameters(1)
    log = dict(model.get_current_log())
    if opt["train"]["pixel_opt"]["loss_weight"] < 1e-20:
        assert log.pop("grad_ratio") == math.inf  # over a gradient of the pixel loss whose norm is 0 in float32
    assert all(math.isfinite(value) for value in log.values())


def check_case(options: Options, path: tuple[str, ...], value: Any, parse: Parse) -> None:
    options = copy.deepcopy(options)
    block = options
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    text = yaml.safe_dump(options, allow_unicode=True)
    start = time.perf_counter()
    message = None
    try:
        opt = parse(text)
    except OptionsError as error:
        message = str(error)
    assert time.perf_counter() - start < 5
    if message is not None:
        assert "\n" not in message
        assert [entry.name for entry in Path().iterdir()] == ["run.yml"]
        return
    widths = [opt["network_g"].get(key, 0) for key in ("num_feat", "num_block")] + [
        opt["network_d"].get("num_feat", 64)
    ]
    if max(widths) > 70 or opt["datasets"]["train"]["num_worker_per_gpu"] > 2 or opt["train"]["compile"] is not None:
        return  # valid, and no matter of a second
    run_one_iteration(opt)
    assert time.perf_counter() - start < 5


def fuzz(with_pcl: Options, parse: Parse, cases: int) -> None:
    options = working_options(with_pcl)
    check_case(options, ("name",), "tiny", parse)

    @seed(0)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(path=st.sampled_from(paths(options)), value=VALUES)
    def case(path: tuple[str, ...], value: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            check_case(options, path, value, parse)

    case()


def test_fifty_values_at_random_keys(with_pcl: Options, parse: Parse) -> None:
    start = time.process_time()
    fuzz(with_pcl, parse, 50)
    assert time.process_time() - start < 20


@pytest.mark.slow
def test_a_thousand_values_at_random_keys(with_pcl: Options, parse: Parse) -> None:
    fuzz(with_pcl, parse, 1000)
