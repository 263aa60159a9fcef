import collections
import math
import os

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from pcl_loss import cli
from pcl_loss.tools import convert
from pcl_loss.tools.convert import convert_file, convert_state

CODEBASES = ["edsr", "rcan", "han"]
MEAN = (0.4488, 0.4371, 0.4040)
FEAT, BLOCKS, SQUEEZED = 8, 2, 2
# The official HAN has no other number of groups.
GROUPS = {"edsr": None, "rcan": 2, "han": 10}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # The networks are tiny: on a busy machine more threads only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def official_state(codebase, scale=2, rgb_range=255.0, dtype=torch.float32, seed=0):
    """An official checkpoint, named by hand, with random weights that make images of about the contrast of theirs."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out_ch, in_ch, *kernel):
        weight = torch.randn(out_ch, in_ch, *kernel, generator=generator, dtype=torch.float64)
        # Residuals add up over the body; weaker ones keep its output near its input.
        gain = 0.4 if name.startswith("body") else 1
        state[f"{name}.weight"] = (weight * gain / math.sqrt(in_ch * math.prod(kernel))).to(dtype)
        bias = torch.randn(out_ch, generator=generator, dtype=torch.float64)
        state[f"{name}.bias"] = (bias * rgb_range / 255).to(dtype)

    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        state[f"{name}.weight"] = torch.eye(3, dtype=dtype).view(3, 3, 1, 1)
        state[f"{name}.bias"] = sign * rgb_range * torch.tensor(MEAN, dtype=torch.float32).to(dtype)
    conv("head.0", FEAT, 3, 3, 3)
    if codebase == "edsr":
        for block in range(BLOCKS):
            conv(f"body.{block}.body.0", FEAT, FEAT, 3, 3)
            conv(f"body.{block}.body.2", FEAT, FEAT, 3, 3)
        conv(f"body.{BLOCKS}", FEAT, FEAT, 3, 3)
    else:
        for group in range(GROUPS[codebase]):
            for block in range(BLOCKS):
                conv(f"body.{group}.body.{block}.body.0", FEAT, FEAT, 3, 3)
                conv(f"body.{group}.body.{block}.body.2", FEAT, FEAT, 3, 3)
                conv(f"body.{group}.body.{block}.body.3.conv_du.0", SQUEEZED, FEAT, 1, 1)
                conv(f"body.{group}.body.{block}.body.3.conv_du.2", FEAT, SQUEEZED, 1, 1)
            conv(f"body.{group}.body.{BLOCKS}", FEAT, FEAT, 3, 3)
        conv(f"body.{GROUPS[codebase]}", FEAT, FEAT, 3, 3)
    if codebase == "han":
        state["csa.gamma"] = torch.tensor([-0.6], dtype=dtype)
        conv("csa.conv", 1, 1, 3, 3, 3)
        state["la.gamma"] = torch.tensor([0.3], dtype=dtype)
        conv("last_conv", FEAT, 11 * FEAT, 3, 3)
        conv("last", FEAT, 2 * FEAT, 3, 3)
    if scale == 3:
        conv("tail.0.0", 9 * FEAT, FEAT, 3, 3)
    for i in range(0 if scale == 3 else int(math.log2(scale))):
        conv(f"tail.0.{2 * i}", 4 * FEAT, FEAT, 3, 3)
    conv("tail.1", 3, FEAT, 3, 3)
    return state


def official_forward(state, codebase, scale, images):
    """The official network in float64 on images (N, 3, H, W) in [0, rgb_range], from its description."""
    p = {key: value.double() for key, value in state.items()}

    def conv(name, x):
        weight = p[f"{name}.weight"]
        return F.conv2d(x, weight, p[f"{name}.bias"], padding=weight.shape[-1] // 2)

    head = conv("head.0", conv("sub_mean", images.double()))
    x, children = head, []
    for i in range((GROUPS[codebase] or BLOCKS) + 1):
        if f"body.{i}.weight" in p:
            x = conv(f"body.{i}", x)
        elif codebase == "edsr":
            x = x + conv(f"body.{i}.body.2", conv(f"body.{i}.body.0", x).relu())
        else:
            y = x
            for b in range(BLOCKS):
                z = conv(f"body.{i}.body.{b}.body.2", conv(f"body.{i}.body.{b}.body.0", y).relu())
                attention = conv(f"body.{i}.body.{b}.body.3.conv_du.0", z.mean((2, 3), keepdim=True)).relu()
                y = y + z * conv(f"body.{i}.body.{b}.body.3.conv_du.2", attention).sigmoid()
            x = x + conv(f"body.{i}.body.{BLOCKS}", y)
        children.append(x)
    if codebase == "han":
        f = torch.stack(children[::-1], 1)
        energy = torch.einsum("nichw,njchw->nij", f, f)
        attention = torch.softmax(energy.max(-1, keepdim=True).values - energy, -1)
        by_layer = p["la.gamma"] * torch.einsum("nij,njchw->nichw", attention, f) + f
        gate = torch.sigmoid(F.conv3d(x[:, None], p["csa.conv.weight"], p["csa.conv.bias"], padding=1))[:, 0]
        by_position = x * (p["csa.gamma"] * gate) + x
        x = conv("last", torch.cat([by_position, conv("last_conv", by_layer.flatten(1, 2))], 1))
    x = x + head
    for i, factor in enumerate([3] if scale == 3 else [2] * int(math.log2(scale))):
        x = F.pixel_shuffle(conv(f"tail.0.{2 * i}", x), factor)
    return conv("add_mean", conv("tail.1", x))


def images(rgb_range=255.0):
    return torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(5)) * rgb_range


def basicsr_net(options, state=None):
    from pcl_loss.basicsr_plugin.han_arch import HAN  # isort: skip  (BasicSR cannot be imported before)
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.rcan_arch import RCAN

    options = dict(options)
    torch.manual_seed(7)
    net = {"EDSR": EDSR, "RCAN": RCAN, "HAN": HAN}[options.pop("type")](**options)
    if state is not None:
        net.load_state_dict(state, strict=True)
    return net.eval()


def options_of(codebase, scale, **overrides):
    options = {"type": codebase.upper(), "num_in_ch": 3, "num_out_ch": 3, "num_feat": FEAT, "num_block": BLOCKS}
    options["upscale"] = scale
    if codebase != "edsr":
        options |= {"num_group": GROUPS[codebase], "squeeze_factor": FEAT // SQUEEZED}
    return options | overrides


def max_difference(net, state, codebase, scale, rgb_range=255.0):
    """Between BasicSR's network and the official one, in levels of 255."""
    x = images(rgb_range)
    dtype = net.conv_first.weight.dtype
    with torch.no_grad():
        expected = official_forward(state, codebase, scale, x)
        out = net(x.to(dtype) / rgb_range).double() * rgb_range
    assert out.shape == expected.shape
    # Contrast of photographs: neither the mean colour alone nor values whose float32 is coarser than the tolerance.
    assert 0.05 < expected.std() / rgb_range < 0.6
    return float((out - expected).abs().max()) * 255 / rgb_range


def learned_shift(state, seed=3, consistent=True):
    """Give a float64 `state` a learned mean shift; if consistent, one that still maps DIV2K's mean to zero."""
    generator = torch.Generator().manual_seed(seed)

    def learned(*shape):
        return 0.05 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    mean = torch.tensor(MEAN, dtype=torch.float32).double() * 255
    colour = torch.eye(3, dtype=torch.float64) + learned(3, 3)
    state["sub_mean.weight"] = colour.view(3, 3, 1, 1)
    state["sub_mean.bias"] = -colour @ mean + (0 if consistent else 30 * learned(3))
    state["add_mean.weight"] = state["add_mean.weight"] + learned(3, 3, 1, 1)
    state["add_mean.bias"] = state["add_mean.bias"] + 30 * learned(3)
    return state


def to_basicsr(state, codebase, **options):
    return convert_state(state, codebase, **options)[0]


def from_basicsr(state, codebase, rgb_range=None, **options):
    return convert_state(state, codebase, to_official=True, rgb_range=rgb_range, **options)[0]


def pcl_loss_convert(*arguments):
    return cli.main(["convert", *map(str, arguments)])


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("codebase", CODEBASES)
def test_converted_to_basicsr_gives_the_official_images(codebase, scale):
    state = official_state(codebase, scale)
    net = basicsr_net(options_of(codebase, scale), to_basicsr(state, codebase))
    assert max_difference(net, state, codebase, scale) < 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("codebase", CODEBASES)
def test_converted_from_basicsr_gives_basicsr_s_images(codebase, scale):
    net = basicsr_net(options_of(codebase, scale))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.4)
            # The default initialisation fades to gray.
            elif name.startswith(("conv_first", "upsample", "conv_last")):
                parameter.mul_(1.7)
    state = from_basicsr(net.state_dict(), codebase)
    assert max_difference(net, state, codebase, scale) < 1e-3


@pytest.mark.parametrize("codebase", CODEBASES)
def test_networks_of_range_1_are_recognised(codebase):
    state = official_state(codebase, 2, rgb_range=1.0)
    for rgb_range in (None, 1):
        converted = to_basicsr(state, codebase, rgb_range=rgb_range)
    net = basicsr_net(options_of(codebase, 2, img_range=1.0), converted)
    assert max_difference(net, state, codebase, 2, rgb_range=1.0) < 1e-3
    with pytest.raises(ValueError, match="the mean shift is that of --rgb-range 1, not 255"):
        to_basicsr(state, codebase, rgb_range=255)


@pytest.mark.parametrize("rgb_range", [1.0, 255.0])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("codebase", CODEBASES)
def test_round_trip_is_bit_identical(codebase, scale, rgb_range):
    official = official_state(codebase, scale, rgb_range)
    there = to_basicsr(official, codebase)
    back = from_basicsr(there, codebase, rgb_range)
    assert list(back) == list(official)
    assert all(torch.equal(back[key], official[key]) and back[key].dtype == official[key].dtype for key in official)
    again = to_basicsr(back, codebase)
    assert all(torch.equal(again[key], there[key]) for key in there)


def test_result_shares_no_memory_with_its_source():
    official = official_state("edsr")
    there = to_basicsr(official, "edsr")
    back = from_basicsr(there, "edsr")
    expected = {key: value.clone() for key, value in official.items()}
    for value in (*there.values(), *back.values()):
        value.zero_()
    assert all(torch.equal(official[key], expected[key]) for key in official)


def test_prefix_of_data_parallel_is_dropped():
    official = official_state("edsr")
    wrapped = {f"module.{key}": value for key, value in official.items()}
    assert list(to_basicsr(wrapped, "edsr")) == list(to_basicsr(official, "edsr"))


@pytest.mark.parametrize("codebase", CODEBASES)
def test_learned_shift_that_keeps_the_mean_folds_exactly(codebase):
    state = learned_shift(official_state(codebase, 2, dtype=torch.float64))
    plain = official_state(codebase, 2, dtype=torch.float64)
    net = basicsr_net(options_of(codebase, 2), None).double()
    net.load_state_dict(to_basicsr(state, codebase))
    # 1e-5 is what BasicSR's float32 mean costs.
    assert max_difference(net, state, codebase, 2) < 1e-5
    # And the learned part is no trifle: dropping it shows.
    net.load_state_dict(to_basicsr(plain, codebase))
    assert max_difference(net, state, codebase, 2) > 1


def test_learned_shift_in_float32_agrees_to_a_thousandth():
    state = {k: v.float() for k, v in learned_shift(official_state("rcan", 2, dtype=torch.float64)).items()}
    net = basicsr_net(options_of("rcan", 2), to_basicsr(state, "rcan"))
    assert max_difference(net, state, "rcan", 2) < 1e-3


def test_learned_add_mean_alone_leaves_every_other_layer_as_it_is():
    plain = official_state("rcan", 2)
    state = plain | {"add_mean.bias": plain["add_mean.bias"] + torch.tensor([1.0, -2.0, 0.5])}
    folded, unfolded = to_basicsr(state, "rcan"), to_basicsr(plain, "rcan")
    assert [key for key in folded if not torch.equal(folded[key], unfolded[key])] == ["conv_last.bias"]
    assert max_difference(basicsr_net(options_of("rcan", 2), folded), state, "rcan", 2) < 1e-3


def test_learned_shift_that_moves_the_mean_is_refused_with_the_rgb_mean_that_fits():
    state = learned_shift(official_state("rcan", 2, dtype=torch.float64), consistent=False)
    with pytest.raises(ValueError, match=r"cannot be folded exactly.*padding.*border") as refusal:
        to_basicsr(state, "rcan")
    words = str(refusal.value).split()
    at = words.index("--rgb-mean")
    rgb_mean = [float(word.rstrip(",")) for word in words[at + 1 : at + 4]]
    net = basicsr_net(options_of("rcan", 2, rgb_mean=rgb_mean)).double()
    net.load_state_dict(to_basicsr(state, "rcan", rgb_mean=rgb_mean))
    assert max_difference(net, state, "rcan", 2) < 1e-4


def test_bias_in_place_of_a_moved_mean_would_be_wrong_at_the_border():
    # The reason of the refusal above: the interior could be had, the border not.
    state = learned_shift(official_state("edsr", 2, dtype=torch.float64), consistent=False)
    weight, bias = state["head.0.weight"], state["head.0.bias"]
    colour, offset = state["sub_mean.weight"], state["sub_mean.bias"]
    mean = torch.tensor(MEAN, dtype=torch.float32).double().view(1, 3, 1, 1) * 255
    x = images().double()
    expected = F.conv2d(F.conv2d(x, colour, offset), weight, bias, padding=1)
    folded = torch.einsum("oikl,ij->ojkl", weight, colour[..., 0, 0])
    rest = offset + colour[..., 0, 0] @ mean.flatten()
    out = F.conv2d(x - mean, folded, bias + torch.einsum("oikl,i->o", weight, rest), padding=1)
    error = (out - expected).abs().amax((0, 1))
    assert error[1:-1, 1:-1].max() < 1e-9
    assert error[0].min() > 0.01


def test_singular_colour_matrix_has_no_rgb_mean():
    state = official_state("rcan")
    state["sub_mean.weight"] = torch.zeros(3, 3, 1, 1)
    with pytest.raises(ValueError, match="singular"):
        to_basicsr(state, "rcan")


def test_another_training_set_s_mean_is_kept_by_naming_it():
    mean = (0.4690, 0.4490, 0.4036)
    state = official_state("rcan")
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        state[f"{name}.bias"] = sign * 255 * torch.tensor(mean)
    with pytest.raises(ValueError, match=r"--rgb-range 255 --rgb-mean 0\.469\d* 0\.44[89]\d* 0\.403\d*"):
        to_basicsr(state, "rcan")
    converted = to_basicsr(state, "rcan", rgb_mean=mean)
    assert max_difference(basicsr_net(options_of("rcan", 2, rgb_mean=mean), converted), state, "rcan", 2) < 1e-3
    back = from_basicsr(converted, "rcan", rgb_mean=mean)
    assert all(torch.equal(back[key], state[key]) for key in state)


def changed(change, codebase="rcan"):
    state = official_state(codebase)
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "codebase", "error", "message"),
    [
        (official_state("rcan"), "edsr", ValueError, "this is RCAN, not EDSR; pass 'rcan'"),
        (official_state("han"), "rcan", ValueError, "this is HAN, not RCAN"),
        (official_state("edsr"), "vdsr", ValueError, "codebase must be one of 'edsr', 'rcan', 'han', got 'vdsr'"),
        (to_basicsr(official_state("edsr"), "edsr"), "edsr", ValueError, "names of BasicSR.*--to instead of --from"),
        ({"a.weight": torch.ones(1)}, "edsr", ValueError, r"no EDSR, RCAN or HAN.*layers start with a\.weight"),
        (
            official_state("edsr") | {"body.0.body.0.weight": torch.ones(1)},
            "edsr", ValueError, r"body\.0\.body\.0\.weight is \(1,\) instead of \(8, 8, 3, 3\)",
        ),
        ({}, "edsr", ValueError, "no EDSR, RCAN or HAN"),
        ([], "edsr", TypeError, "state must be a state dict"),
        ({"step": 3}, "edsr", TypeError, "'step' is int"),
        ({"step": torch.ones(1).long()}, "edsr", TypeError, "'step' is a tensor of torch.int64"),
        (changed(lambda s: s.pop("tail.1.bias")), "rcan", ValueError, r"1 missing: tail\.1\.bias"),
        (changed(lambda s: s.pop("sub_mean.bias")), "rcan", ValueError, r"1 missing: sub_mean\.bias"),
        (changed(lambda s: s.pop("head.0.weight")), "rcan", ValueError, r"'head\.0\.weight' is missing"),
        (
            changed(lambda s: s.update({f"extra.{i}": torch.ones(1) for i in range(9)})),
            "rcan", ValueError, r"9 unknown: extra\.0, extra\.1, extra\.2, extra\.3, \.\.\.",
        ),
        (
            changed(lambda s: s.update({"body.0.body.1.body.0.weight": torch.ones(8, 9, 3, 3)})),
            "rcan", ValueError, r"body\.0\.body\.1\.body\.0\.weight is \(8, 9, 3, 3\) instead of \(8, 8, 3, 3\)",
        ),
        (
            changed(lambda s: s.update({"head.0.weight": torch.ones(8, 1, 3, 3)})),
            "rcan", ValueError, "takes 1 channels",
        ),
        (
            changed(lambda s: s.update({"sub_mean.bias": torch.full((3,), math.nan)})),
            "rcan", ValueError, "not finite",
        ),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused(state, codebase, error, message):
    with pytest.raises(error, match=message):
        to_basicsr(state, codebase)


def test_official_names_are_refused_as_basicsr_s():
    with pytest.raises(ValueError, match=r"names of the official code.*--from instead of --to"):
        from_basicsr(official_state("rcan"), "rcan")


def test_han_of_other_than_10_groups_is_refused_for_the_official_code():
    net = basicsr_net(options_of("han", 2, num_group=3))
    with pytest.raises(ValueError, match=r"3 residual groups.*written for 10"):
        from_basicsr(net.state_dict(), "han")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rgb_range": 0}, "rgb_range must be above 0"), ({"rgb_mean": (0.4, 0.4)}, "rgb_mean must be three numbers")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_basicsr(official_state("edsr"), "edsr", **options)
    with pytest.raises(ValueError, match=message):
        from_basicsr(to_basicsr(official_state("edsr"), "edsr"), "edsr", **options)


@pytest.mark.parametrize("codebase", CODEBASES)
def test_command_makes_a_file_and_options_that_basicsr_loads(codebase, tmp_path, capsys):
    official, converted, back = tmp_path / "official.pt", tmp_path / "net_g.pth", tmp_path / "back.pt"
    state = official_state(codebase, 4)
    torch.save(collections.OrderedDict(state), official)
    assert pcl_loss_convert("--from", codebase, "--in", official, "--out", converted) == 0
    out = capsys.readouterr().out
    assert f"{codebase.upper()} x4: " in out
    assert "8 channels, range 255" in out
    opt = yaml.safe_load(out[out.index("network_g:") :])
    load_path, key = opt["path"]["pretrain_network_g"], opt["path"]["param_key_g"]
    net = basicsr_net(opt["network_g"], torch.load(load_path, weights_only=True)[key])
    assert max_difference(net, state, codebase, 4) < 1e-3

    assert pcl_loss_convert("--to", codebase, "--in", converted, "--out", back) == 0
    assert "--rgb_range 255" in capsys.readouterr().out
    loaded = torch.load(back, weights_only=True)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "net_g.pth", "official.pt"]


def test_command_tells_a_network_of_range_1(tmp_path, capsys):
    torch.save(official_state("edsr", rgb_range=1.0), tmp_path / "in.pt")
    assert pcl_loss_convert("--from", "edsr", "--in", tmp_path / "in.pt", "--out", tmp_path / "out.pth") == 0
    assert "  img_range: 1.0  #" in capsys.readouterr().out
    back = ["--to", "edsr", "--in", tmp_path / "out.pth", "--out", tmp_path / "back.pt", "--rgb-range", 1]
    assert pcl_loss_convert(*back) == 0
    assert "--rgb_range 1 " in capsys.readouterr().out
    assert torch.load(tmp_path / "back.pt", weights_only=True)["add_mean.bias"].tolist() == pytest.approx(MEAN)


def test_command_folds_a_learned_shift_with_the_mean_it_asked_for(tmp_path, capsys):
    state = learned_shift(official_state("rcan", 2, dtype=torch.float64), consistent=False)
    state = {key: value.float() for key, value in state.items()}
    torch.save(state, tmp_path / "in.pt")
    command = ["--from", "rcan", "--in", tmp_path / "in.pt", "--out", tmp_path / "out.pth"]
    assert pcl_loss_convert(*command) == 1
    words = capsys.readouterr().err.replace(",", "").split()
    at = words.index("--rgb-mean")
    assert pcl_loss_convert(*command, *words[at : at + 4]) == 0
    out = capsys.readouterr().out
    assert "learned mean shift was folded exactly" in out
    opt = yaml.safe_load(out[out.index("network_g:") :])
    net = basicsr_net(opt["network_g"], torch.load(tmp_path / "out.pth", weights_only=True)["params"])
    assert max_difference(net, state, "rcan", 2) < 1e-3


def test_options_say_what_a_checkpoint_does_not_hold():
    large = convert.Network("edsr", 4, 256, 32)
    assert yaml.safe_load(large.network_g_yaml())["network_g"] == large.network_g()
    assert large.network_g()["res_scale"] == 0.1
    assert "--res_scale 0.1" in large.official_flags()
    assert convert.Network("edsr", 4, 64, 16).network_g()["res_scale"] == 1
    odd = convert.Network("edsr", 4, 64, 16, img_range=1.0, rgb_mean=(1e-7, 0.0, 1.0))
    assert yaml.safe_load(odd.network_g_yaml())["network_g"] == odd.network_g()


def test_param_key_chooses_the_network_in_basicsr_s_file(tmp_path):
    states = {key: to_basicsr(official_state("edsr", seed=i), "edsr") for i, key in enumerate(convert.PARAM_KEYS)}
    torch.save(states, tmp_path / "both.pth")
    for i, key in enumerate(convert.PARAM_KEYS):
        convert_file(tmp_path / "both.pth", tmp_path / f"{key}.pt", "edsr", to_official=True, param_key=key)
        loaded = torch.load(tmp_path / f"{key}.pt", weights_only=True)
        assert torch.equal(loaded["head.0.weight"], official_state("edsr", seed=i)["head.0.weight"])
    convert_file(tmp_path / "params.pt", tmp_path / "ema.pth", "edsr", param_key="params_ema")
    assert list(torch.load(tmp_path / "ema.pth", weights_only=True)) == ["params_ema"]
    with pytest.raises(ValueError, match=r"has no 'params'; it holds params_ema: choose with --param-key"):
        convert_file(tmp_path / "ema.pth", tmp_path / "x.pt", "edsr", to_official=True)
    with pytest.raises(ValueError, match="param_key must be one of 'params', 'params_ema', got 'ema'"):
        convert_file(tmp_path / "both.pth", tmp_path / "x.pt", "edsr", to_official=True, param_key="ema")


def test_bare_state_dict_of_basicsr_s_names_is_read(tmp_path):
    torch.save(to_basicsr(official_state("edsr"), "edsr"), tmp_path / "bare.pth")
    convert_file(tmp_path / "bare.pth", tmp_path / "out.pt", "edsr", to_official=True)
    assert torch.equal(
        torch.load(tmp_path / "out.pt", weights_only=True)["tail.1.bias"], official_state("edsr")["tail.1.bias"]
    )


class Pickled:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Conv2d(1, 1, 1), r"holds Python objects.*torch\.save\(net\.state_dict"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({"epoch": 1, "iter": 5, "optimizers": [], "schedulers": []}, r"training state of BasicSR.*net_g_\*\.pth"),
        (torch.optim.Adam([torch.ones(1)]).state_dict(), "state of an optimizer"),
        ({"state_dict": {"head.0.weight": torch.ones(1)}}, "under 'state_dict'"),
    ],
)
def test_files_of_other_kinds_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "in.pt")
    for to_official in (False, True):
        with pytest.raises(ValueError, match=message):
            convert_file(tmp_path / "in.pt", tmp_path / "out.pth", "edsr", to_official=to_official)
    assert os.listdir(tmp_path) == ["in.pt"]


def test_basicsr_s_file_is_refused_as_an_official_one(tmp_path):
    torch.save({"params": to_basicsr(official_state("edsr"), "edsr")}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=r"is a file of BasicSR \(params\).*--to"):
        convert_file(tmp_path / "in.pth", tmp_path / "out.pth", "edsr")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(zipped, tmp_path):
    torch.save({"a": Pickled(tmp_path / "ran")}, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="holds Python objects"):
        convert_file(tmp_path / "in.pt", tmp_path / "out.pth", "edsr")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"<html>404</html>", b"\x80\x02}q"])
def test_damaged_files_are_refused(content, tmp_path):
    (tmp_path / "in.pt").write_bytes(content)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        convert_file(tmp_path / "in.pt", tmp_path / "out.pth", "edsr")


def test_existing_output_is_kept_unless_forced(tmp_path, capsys):
    torch.save(official_state("edsr"), tmp_path / "in.pt")
    (tmp_path / "out.pth").write_text("precious")
    command = ["--from", "edsr", "--in", tmp_path / "in.pt", "--out", tmp_path / "out.pth"]
    assert pcl_loss_convert(*command) == 1
    assert "exists; name another file, or replace it with --force" in capsys.readouterr().err
    assert (tmp_path / "out.pth").read_text() == "precious"
    assert pcl_loss_convert(*command, "--force") == 0
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == ["params"]


def test_interrupted_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    torch.save(official_state("edsr"), tmp_path / "in.pt")
    (tmp_path / "out.pth").write_text("precious")

    def disk_full(_file):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        convert_file(tmp_path / "in.pt", tmp_path / "out.pth", "edsr", force=True)
    assert sorted(os.listdir(tmp_path)) == ["in.pt", "out.pth"]
    assert (tmp_path / "out.pth").read_text() == "precious"


def test_paths_that_cannot_be_are_refused(tmp_path, capsys):
    torch.save(official_state("edsr"), tmp_path / "in.pt")
    for source, target, message in (
        ("absent.pt", "out.pth", "absent.pt"),
        ("in.pt", "absent/out.pth", "the folder of"),
        ("in.pt", ".", "is a folder; name a file"),
    ):
        command = ["--from", "edsr", "--in", tmp_path / source, "--out", tmp_path / target, "--force"]
        assert pcl_loss_convert(*command) == 1
        assert message in capsys.readouterr().err


def test_official_files_are_written_for_old_pytorch_too(tmp_path):
    torch.save({"params": to_basicsr(official_state("edsr"), "edsr")}, tmp_path / "in.pth")
    convert_file(tmp_path / "in.pth", tmp_path / "out.pt", "edsr", to_official=True)
    # PyTorch before 1.6 reads no zip file.
    assert not (tmp_path / "out.pt").read_bytes().startswith(b"PK")
