"""The option files are what the one place that makes them says, and a pair differs in PCL alone."""

from pathlib import Path
from typing import Any

import make_options
import pytest
import yaml

from pcl_loss import cli
from pcl_loss.tools.options import option_files

SHIPPED = Path(__file__).parents[2] / "basicsr_options"
FILES = [path for path in option_files() if path.endswith(".yml")]


def load(path: str) -> dict[str, Any]:
    return yaml.safe_load(option_files()[path])


def test_the_shipped_files_are_the_generated_ones() -> None:
    shipped = {str(path.relative_to(SHIPPED)): path.read_text() for path in SHIPPED.rglob("*.yml")}
    assert shipped == make_options.option_files(), "run `make options`"
    assert {path: text for path, text in option_files().items() if path in shipped} == shipped


def test_every_net_of_the_paper_is_there_for_every_scale() -> None:
    nets = [*(f"{net}_x{scale}" for net in ("EDSR-S", "EDSR-L", "RCAN", "HAN") for scale in (2, 3, 4)), "SwinIR_x4"]
    kinds = ("test/test_{}", "train/train_{}", "train/train_{}_PCL", "train/finetune_{}", "train/finetune_{}_PCL")
    expected = {f"{kind.format(net)}.yml" for net in nets for kind in kinds}
    light = {f"train/train_{net}_PCL_light.yml" for net in nets if net.endswith("x4")}
    light.add("train/gan_EDSR-S_x4_light.yml")
    assert {path for path in FILES if not path.startswith("ablation/")} == expected | light


@pytest.mark.parametrize("path", [path for path in FILES if "_PCL" in path])
def test_a_pair_differs_in_pcl_alone(path: str) -> None:
    ending = "_PCL_light" if "light" in path else "_PCL"
    with_pcl, baseline = load(path), load(path.replace(ending, ""))
    assert with_pcl.pop("name") == baseline.pop("name") + ending
    assert with_pcl.pop("model_type") == "PCL" + baseline.pop("model_type").removeprefix("SR")
    pcl_opt = with_pcl["train"].pop("pcl_opt")
    if ending == "_PCL_light":
        assert pcl_opt == {"type": "PCLLoss", "recipe": "light"}
    else:
        assert pcl_opt == {"type": "PCLLoss", "loss_weight": 1.0}
        assert with_pcl.pop("network_d")["type"] == "WaveletDiscriminator"
    assert with_pcl == baseline


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("train/train_")])
def test_training_is_that_of_section_3_5_and_finetuning_differs_in_a_few_lines(path: str) -> None:
    options = load(path)
    train_set, train = options["datasets"]["train"], options["train"]
    assert (train_set["gt_size"], train_set["batch_size_per_gpu"]) == (48 * options["scale"], 16)
    assert {train_set["use_hflip"], train_set["use_rot"]} == {True}
    assert train["optim_g"] == {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.999]}
    assert train["scheduler"]["eta_min"] == 1e-7
    assert [train["total_iter"]] == train["scheduler"]["periods"] == [200_000]
    if path.endswith("_light.yml"):
        return
    finetune = path.replace("train_", "finetune_")
    net = Path(finetune).stem.removeprefix("finetune_").removesuffix("_PCL")
    options["name"] = Path(finetune).stem
    options["path"]["pretrain_network_g"] = f"experiments/pretrained_models/{net}.pth"
    train["optim_g"]["lr"] = 5e-5
    train["total_iter"], train["scheduler"]["periods"] = 50_000, [50_000]
    assert load(finetune) == options


def test_the_ablation_has_the_configs_of_table_4_by_number() -> None:
    configs = {Path(path).stem[6]: load(path) for path in FILES if path.startswith("ablation/")}
    assert sorted(configs) == list("1234567")
    assert all(config["network_g"]["type"] == "RCAN" and config["scale"] == 4 for config in configs.values())
    assert "pcl_opt" not in configs["1"]["train"]
    assert configs["2"]["network_d"] == {"type": "VGGEmbedding", "vgg": "vgg19"}
    assert configs["3"]["train"]["pcl_opt"]["negatives"] == ["lq"]
    assert configs["4"]["network_d"]["wavelet"] is False
    assert configs["5"]["train"]["pcl_opt"]["negatives"] == ["batch"]
    assert configs["6"]["train"]["pcl_opt"] == {"type": "PCLLoss", "loss_weight": 1.0}
    assert configs["7"]["train"]["net_d_frozen"] is True
    assert configs["7"]["path"]["pretrain_network_d"].endswith("net_d_latest.pth")


def test_the_verb_writes_them_out_and_keeps_what_the_user_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["options", "--to", str(tmp_path)]) == 0
    assert {path: (tmp_path / path).read_text() for path in option_files()} == option_files()
    changed = tmp_path / "train/finetune_RCAN_x4.yml"
    changed.write_text("mine")
    assert cli.main(["options", "--to", str(tmp_path)]) == 1
    assert "finetune_RCAN_x4.yml is there with another text" in capsys.readouterr().err
    assert changed.read_text() == "mine"
    assert cli.main(["options", "--to", str(tmp_path), "--overwrite"]) == 0
    assert changed.read_text() != "mine"
