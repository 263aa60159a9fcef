"""A YAML's defaults of PCL are filled in, and what it cannot mean is refused with the line to change."""

import copy
from typing import Any

import pytest

from pcl_loss.basicsr_plugin import OptionsError, complete_options

Options = dict[str, Any]


def test_pcl_opt_and_the_model_type_are_the_whole_change(with_pcl: Options) -> None:
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl["network_d"] == {"type": "WaveletDiscriminator", "num_in_ch": 3, "num_feat": 64}
    optim_d = {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.999]}
    assert with_pcl["train"]["optim_d"] == optim_d
    assert with_pcl["train"]["cld_opt"] == {"type": "ContrastiveDiscriminatorLoss"}
    once = copy.deepcopy(with_pcl)
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl == once


@pytest.mark.parametrize("network_d", [None, {"num_feat": 8}, {"type": "FixedEmbedding"}])
def test_grey_images_get_an_embedding_for_one_channel(with_pcl: Options, network_d: Options | None) -> None:
    with_pcl |= {"network_d": network_d}
    with_pcl["network_g"]["num_out_ch"] = 1
    complete_options(with_pcl, is_pcl_model=True)
    assert with_pcl["network_d"]["num_in_ch"] == 1


def test_a_baseline_is_left_as_it_is(baseline: Options) -> None:
    baseline["train"] |= {"amp": None, "channels_last": False, "compile": False}
    before = copy.deepcopy(baseline)
    complete_options(baseline, is_pcl_model=False)
    assert baseline == before


@pytest.mark.parametrize(
    ("model_type", "key", "value", "taken"), [("SRModel", "amp", "bf16", "bf16"), ("SwinIRModel", "compile", True, {})]
)
def test_a_stock_model_that_would_ignore_a_key_is_refused_and_the_one_that_knows_it_is_named(
    baseline: Options, model_type: str, key: str, value: Any, taken: Any
) -> None:
    baseline["train"][key] = value
    with pytest.raises(OptionsError, match=rf"`model_type: {model_type}` ignores train\.{key}; take Speed{model_type}"):
        complete_options(baseline | {"model_type": model_type}, is_pcl_model=False)
    complete_options(baseline | {"model_type": f"Speed{model_type}"}, is_pcl_model=False)
    assert baseline["train"][key] == taken


def test_another_model_may_have_an_amp_of_its_own(baseline: Options) -> None:
    baseline["train"] |= {"amp": "o1", "cld_opt": 3, "amps": 2}
    complete_options(baseline | {"model_type": "TheirModel"}, is_pcl_model=False)


IGNORED = [
    ("SRModel", {"pcl_opt": {"type": "PCLLoss"}}, "`model_type: SRModel` ignores train.pcl_opt; take PCLModel"),
    ("SpeedSRModel", {"pcl_every": 2}, "ignores train.pcl_every"),
    ("TheirModel", {"pcl_opt": {"type": "PCLLoss"}}, "ignores train.pcl_opt"),
    ("SpeedSRModel", {"amp": "half"}, "train.amp should be 'bf16' or 'fp16', got 'half'"),
    ("SpeedSRModel", {"chanels_last": True}, "unknown key 'train.chanels_last'; did you mean channels_last?"),
]


@pytest.mark.parametrize(("model_type", "keys", "words"), IGNORED)
def test_keys_of_ours_that_a_model_ignores_are_refused(
    baseline: Options, model_type: str, keys: Options, words: str
) -> None:
    baseline["train"] |= keys
    with pytest.raises(OptionsError) as raised:
        complete_options(baseline | {"model_type": model_type}, is_pcl_model=False)
    assert words in str(raised.value)


# Under `train:`, where nothing else is said.
BROKEN = [
    ({"cld_opt": {"type": "ContrastiveDiscriminatorLoss", "gathr": True}}, "did you mean 'gather'?"),
    ({"pcl_opt": {"type": "PCLLoss", "seed": 3}}, "unknown key 'seed' in train.pcl_opt"),
    ({"net_d_frozen": "yes"}, "train.net_d_frozen should be a valid boolean, got 'yes'"),
    ({"net_d_frozen": True}, "set path.pretrain_network_d"),
    ({"pcl_grad_ratio": 0.5}, "in place of pcl_opt.loss_weight; drop one"),
    ({"pcl_grad_ratio": 0.5, "pcl_opt": {"type": "PCLLoss"}, "pixel_opt": None}, "set train.pixel_opt"),
    ({"optim_d": {"type": "Adam", "lr": 1e-4, "fused": False}}, "train.optim_d must be fused"),
]


@pytest.mark.parametrize(("keys", "words"), BROKEN)
def test_a_bad_value_names_itself_and_the_fix(with_pcl: Options, keys: Options, words: str) -> None:
    with_pcl["train"] |= keys
    with pytest.raises(OptionsError) as raised:
        complete_options(with_pcl, is_pcl_model=True)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("keys", [{"network_d": {"num_feat": 8}}, {"optim_d": {"type": "Adam", "lr": 1e-4}}])
def test_the_light_recipe_takes_nothing_of_a_discriminator(light: Options, keys: Options) -> None:
    complete_options(light, is_pcl_model=True)
    assert light.get("network_d") is None
    (key,) = keys
    (light if key == "network_d" else light["train"]).update(keys)
    with pytest.raises(OptionsError, match=f"recipe: light trains no discriminator; drop .*{key}"):
        complete_options(light, is_pcl_model=True)


@pytest.mark.parametrize(
    ("block", "key", "value", "words"),
    [
        ("val", "pcl_previw", True, "did you mean 'pcl_preview'"),
        ("logger", "use_tb_logger", False, "logger.use_tb_logger: true"),
    ],
)
def test_a_preview_that_would_not_appear_is_refused(
    with_pcl: Options, block: str, key: str, value: Any, words: str
) -> None:
    with_pcl["val"]["pcl_preview"] = True
    complete_options(with_pcl, is_pcl_model=True)
    with_pcl[block][key] = value
    with pytest.raises(OptionsError, match=words):
        complete_options(with_pcl, is_pcl_model=True)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lossweight": 1.0}, "unknown key 'lossweight' in train.perceptual_opt"),
        ({"scale": 2, "negatives": ["lq"]}, "train.perceptual_opt.* is 2, but scale is 4"),
    ],
)
def test_pcl_perceptual_loss_is_checked_under_any_model(baseline: Options, keys: Options, words: str) -> None:
    pcl: Any = {"type": "PCLPerceptualLoss", "num_feat": 8, **keys}
    for block, where in ((pcl, ""), ({"type": "PerceptualLossWithPCL", "pcl": pcl}, ".pcl")):
        baseline["train"]["perceptual_opt"] = block
        with pytest.raises(OptionsError, match=words.replace("perceptual_opt", f"perceptual_opt{where}")):
            complete_options(baseline, is_pcl_model=False)
    for pcl, words in ((None, "pcl must be a block of keys"), ({"loss_weight": 1.0}, "grad_ratio is in place of")):
        baseline["train"]["perceptual_opt"] = {"type": "PerceptualLossWithPCL", "pcl": pcl}
        with pytest.raises(OptionsError, match=f"train.perceptual_opt.{words}"):
            complete_options(baseline, is_pcl_model=False)
