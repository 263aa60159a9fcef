"""A YAML's defaults are filled in, and what it cannot mean is refused with the line to change."""

import copy
from typing import Any

import pytest
import torch

from pcl_loss.basicsr_plugin import OptionsError, complete_options

Options = dict[str, Any]


def test_pcl_opt_and_the_model_type_are_the_whole_change(with_pcl: Options) -> None:
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl["network_d"] == {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 64}
    optim_d = {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.999]}
    assert with_pcl["train"]["optim_d"] == optim_d
    assert with_pcl["train"]["cld_opt"] == {"type": "ContrastiveDiscriminatorLoss"}


def test_completing_twice_changes_nothing(with_pcl: Options) -> None:
    complete_options(with_pcl, is_pcl_model=True)
    once = copy.deepcopy(with_pcl)
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl == once


def test_what_the_yaml_says_is_kept(with_pcl: Options) -> None:
    with_pcl["network_d"] = {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 8, "norm": "none"}
    with_pcl["train"]["optim_d"] = {"type": "Adam", "lr": 0.5}
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl["network_d"]["num_feat"] == 8
    assert with_pcl["train"]["optim_d"] == {"type": "Adam", "lr": 0.5}


def test_grey_images_get_an_e_d_for_one_channel(with_pcl: Options) -> None:
    with_pcl["network_g"]["num_out_ch"] = 1
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl["network_d"]["num_in_ch"] == 1


def test_the_runs_random_numbers_are_left_alone(with_pcl: Options) -> None:
    state = torch.random.get_rng_state()
    complete_options(with_pcl, is_pcl_model=True)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_baseline_is_left_as_it_is(baseline: Options) -> None:
    before = copy.deepcopy(baseline)
    complete_options(baseline, is_pcl_model=False)
    assert baseline == before


@pytest.mark.parametrize(
    ("model_type", "line"), [("SRModel", "`model_type: PCLModel`"), ("SwinIRModel", "`model_type: PCLSwinIRModel`")]
)
def test_pcl_opt_under_a_model_that_ignores_it_is_refused(with_pcl: Options, model_type: str, line: str) -> None:
    with_pcl["model_type"] = model_type
    with pytest.raises(OptionsError, match=line):
        complete_options(with_pcl, is_pcl_model=False)


@pytest.mark.parametrize("model_type", ["SRModel", "SpeedSRModel", "SpeedSwinIRModel"])
def test_keys_of_pcl_that_a_model_without_it_ignores_are_refused(baseline: Options, model_type: str) -> None:
    baseline["train"]["pcl_every"] = 2
    pcl_type = "PCLSwinIRModel" if "SwinIR" in model_type else "PCLModel"
    message = rf"`model_type: {model_type}` ignores train\.pcl_every .*`model_type: {pcl_type}`"
    with pytest.raises(OptionsError, match=message):
        complete_options(baseline | {"model_type": model_type}, is_pcl_model=False)


@pytest.mark.parametrize("model_type", ["SRModel", "SwinIRModel"])
@pytest.mark.parametrize("key_and_value", [("amp", "bf16"), ("channels_last", True), ("compile", True)])
def test_a_stock_model_becomes_the_twin_that_knows_the_key(
    baseline: Options, key_and_value: tuple[str, Any], model_type: str
) -> None:
    key, value = key_and_value
    baseline |= {"model_type": model_type}
    baseline["train"][key] = value
    complete_options(baseline, is_pcl_model=False)
    assert baseline["model_type"] == f"Speed{model_type}"
    assert {key: baseline["train"][key] for key in ("amp", "channels_last", "compile")} == {
        "amp": None,
        "channels_last": False,
        "compile": None,
    } | {key: {} if key == "compile" else value}


@pytest.mark.parametrize("key_and_value", [("amp", None), ("channels_last", False), ("compile", False)])
def test_a_key_that_is_off_leaves_a_stock_model_as_it_is(baseline: Options, key_and_value: tuple[str, Any]) -> None:
    key, value = key_and_value
    baseline["train"][key] = value
    before = copy.deepcopy(baseline)
    complete_options(baseline, is_pcl_model=False)
    assert baseline == before


def test_a_bad_value_under_a_stock_model_names_itself_and_the_fix(baseline: Options) -> None:
    baseline["train"]["amp"] = "half"
    with pytest.raises(OptionsError, match=r"train\.amp must be one of \['bf16', 'fp16'\].*got 'half'"):
        complete_options(baseline, is_pcl_model=False)


def test_another_model_may_have_an_amp_of_its_own(baseline: Options) -> None:
    baseline["train"]["amp"] = "o1"
    complete_options(baseline | {"model_type": "TheirModel"}, is_pcl_model=False)


def test_compile_true_means_torchs_defaults_and_false_none(with_pcl: Options) -> None:
    for value, expected in ((True, {}), (False, None), (None, None), ({"mode": "default"}, {"mode": "default"})):
        with_pcl["train"]["compile"] = value
        for _ in range(2):
            complete_options(with_pcl, is_pcl_model=True)
            assert with_pcl["train"]["compile"] == expected


def test_pcl_grad_ratio_needs_a_pixel_loss(with_pcl: Options) -> None:
    del with_pcl["train"]["pcl_opt"]["loss_weight"], with_pcl["train"]["pixel_opt"]
    with_pcl["train"]["pcl_grad_ratio"] = 0.5
    with pytest.raises(OptionsError, match=r"set train\.pixel_opt"):
        complete_options(with_pcl, is_pcl_model=True)


def test_a_pcl_model_without_pcl_opt_is_refused(baseline: Options) -> None:
    with pytest.raises(OptionsError, match=r"needs train\.pcl_opt"):
        complete_options(baseline | {"model_type": "PCLModel"}, is_pcl_model=True)


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("pcl_opt", "temprature", 1.0, r"unknown key 'temprature' in train\.pcl_opt; allowed are: .*temperature"),
        ("pcl_opt", "temperature", 0, r"train\.pcl_opt: temperature must be above 0, got 0"),
        ("pcl_opt", "temperature", "1e-1", r"train\.pcl_opt: temperature must be a number.*1\.0e-4"),
        ("pcl_opt", "negatives", ["blurr"], r"negatives has unknown entries \['blurr'\]; allowed are .*'blur'"),
        ("pcl_opt", "negatives", "blur", r"negatives must be a list"),
        ("pcl_opt", "seed", 3, r"unknown key 'seed'"),
        ("pcl_opt", "type", "L1Loss", r"train\.pcl_opt\.type must be PCLLoss, got L1Loss"),
        ("cld_opt", "gathr", True, r"unknown key 'gathr' in train\.cld_opt; allowed are: .*gather"),
        ("network_d", "num_feats", 32, r"unknown key 'num_feats' in network_d; allowed are: .*num_feat"),
        ("network_d", "norm", "layer", r"network_d: norm must be one of \['batch', 'group', 'none'\], got 'layer'"),
        ("train", "pcl_start", 5, r"unknown key 'pcl_start' in train; allowed are: .*pcl_start_iter"),
        ("train", "pcl_start_iter", -1, r"pcl_start_iter must be at least 0, got -1"),
        ("train", "net_d_frozen", "yes", r"net_d_frozen must be true or false, got 'yes'"),
        ("train", "pcl_every", 0, r"train\.pcl_every must be at least 1, got 0"),
        ("train", "pcl_evry", 2, r"unknown key 'pcl_evry' in train; allowed are: .*pcl_every"),
        ("train", "pcl_grad_ratio", 0, r"train\.pcl_grad_ratio must be above 0, got 0"),
        ("train", "pcl_grad_ratio", 0.5, r"in place of pcl_opt\.loss_weight; drop one of the two"),
        ("train", "amp", "half", r"train\.amp must be one of \['bf16', 'fp16'\].*got 'half'"),
        ("train", "amp", ["bf16"], r"train\.amp must be one of .*got \['bf16'\]"),
        ("train", "amp", True, r"train\.amp must be one of .*got True"),
        ("train", "channels_last", 1, r"train\.channels_last must be true or false, got 1"),
        ("train", "compile", "max-autotune", r"train\.compile must be true, false, or a block.*got 'max-autotune'"),
        ("train", "compile", {"modus": "default"}, r"unknown key 'modus' in train\.compile; allowed are: .*mode"),
        ("train", "net_d_frozen", True, r"path\.pretrain_network_d"),
        ("train", "optim_d", 1e-4, r"optim_d must be a block"),
        ("train", "optim_d", {"type": "Adam", "lr": 1e-4, "fused": False}, r"train\.optim_d must be fused"),
        ("train", "pcl_opt", True, r"train\.pcl_opt must be a block of keys such as"),
    ],
)
def test_a_bad_value_names_itself_and_the_fix(
    with_pcl: Options, block: str, key: str, value: Any, message: str
) -> None:
    train = with_pcl["train"]
    train["cld_opt"] = {"type": "ContrastiveDiscriminatorLoss"}
    with_pcl["network_d"] = {"type": "WaveletDiscriminator"}
    target = {"train": train, "network_d": with_pcl["network_d"]}.get(block) or train[block]
    target[key] = value
    with pytest.raises(OptionsError, match=message):
        complete_options(with_pcl, is_pcl_model=True)


@pytest.mark.parametrize("preview", [True, False])
def test_a_preview_is_a_yes_or_a_no(with_pcl: Options, preview: bool) -> None:
    with_pcl["val"]["pcl_preview"] = preview
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl["val"]["pcl_preview"] is preview


@pytest.mark.parametrize(
    ("block", "key", "value", "message"),
    [
        ("val", "pcl_preview", "yes", r"val\.pcl_preview must be true or false, got 'yes'"),
        ("val", "pcl_preview", 1, r"val\.pcl_preview must be true or false, got 1"),
        ("val", "pcl_previw", True, r"unknown key 'pcl_previw' in val; allowed are: pcl_preview"),
        ("logger", "use_tb_logger", False, r"logger\.use_tb_logger: true"),
    ],
)
def test_a_preview_that_would_not_appear_is_refused(
    with_pcl: Options, block: str, key: str, value: Any, message: str
) -> None:
    with_pcl["val"]["pcl_preview"] = True
    with_pcl[block][key] = value
    with pytest.raises(OptionsError, match=message):
        complete_options(with_pcl, is_pcl_model=True)


def test_a_preview_without_matplotlib_is_refused(with_pcl: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with_pcl["val"]["pcl_preview"] = True
    with pytest.raises(OptionsError, match=r"pip install 'pcl_loss\[plots\]'"):
        complete_options(with_pcl, is_pcl_model=True)


def test_a_run_without_validation_needs_no_val_block(with_pcl: Options) -> None:
    del with_pcl["val"]
    complete_options(with_pcl, is_pcl_model=True)
