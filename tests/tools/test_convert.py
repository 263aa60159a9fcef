"""`pcl-loss convert` against the official networks, written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
import yaml

from pcl_loss import cli
from pcl_loss.tools.convert import convert_state

pytestmark = pytest.mark.usefixtures("registered")

CODEBASES = ["edsr", "rcan", "han"]
MEAN = (0.4488, 0.4371, 0.4040)
FEAT, BLOCKS, SQUEEZED = 8, 2, 2
# The official HAN has no other number of groups.
GROUPS = {"edsr": None, "rcan": 2, "han": 10}


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


def basicsr_net(options, state=None):
    from basicsr.archs import build_network

    torch.manual_seed(7)
    net = build_network(options)
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
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(5)) * rgb_range
    dtype = net.conv_first.weight.dtype
    with torch.no_grad():
        expected = official_forward(state, codebase, scale, x)
        out = net(x.to(dtype) / rgb_range).double() * rgb_range
    assert out.shape == expected.shape
    # Contrast of photographs: neither the mean colour alone nor values whose float32 is coarser than the tolerance.
    assert 0.05 < expected.std() / rgb_range < 0.6
    return float((out - expected).abs().max()) * 255 / rgb_range


def learned_shift(state, consistent=True):
    """Give a float64 `state` a learned mean shift; if consistent, one that still maps DIV2K's mean to zero."""
    generator = torch.Generator().manual_seed(3)

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


def from_basicsr(state, codebase, **options):
    return convert_state(state, codebase, to_official=True, **options)[0]


def pcl_loss_convert(*arguments):
    return cli.main(["convert", *map(str, arguments)])


@pytest.mark.parametrize("scale", [3, 4])
@pytest.mark.parametrize("codebase", CODEBASES)
def test_converted_from_basicsr_gives_basicsr_s_images(codebase, scale):
    net = basicsr_net(options_of(codebase, scale))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.4)
            elif name.startswith(("conv_first", "upsample", "conv_last")):
                parameter.mul_(1.7)
    state = from_basicsr(net.state_dict(), codebase)
    assert max_difference(net, state, codebase, scale) < 1e-3


@pytest.mark.parametrize(("scale", "rgb_range"), [(3, 255.0), (8, 1.0)])
@pytest.mark.parametrize("codebase", CODEBASES)
def test_round_trip_is_bit_identical(codebase, scale, rgb_range):
    official = official_state(codebase, scale, rgb_range)
    back = from_basicsr(to_basicsr(official, codebase), codebase, rgb_range=rgb_range)
    assert back.keys() == official.keys()
    assert all(torch.equal(back[key], official[key]) and back[key].dtype == official[key].dtype for key in official)


def test_learned_shift_that_keeps_the_mean_folds_exactly():
    plain = official_state("rcan", dtype=torch.float64)
    state = learned_shift(dict(plain))
    net = basicsr_net(options_of("rcan", 2)).double()
    net.load_state_dict(to_basicsr(state, "rcan"))
    # 1e-5 is what BasicSR's float32 mean costs.
    assert max_difference(net, state, "rcan", 2) < 1e-5
    net.load_state_dict(to_basicsr(plain, "rcan"))
    assert max_difference(net, state, "rcan", 2) > 1


def test_a_mean_shift_that_would_not_be_exact_is_refused():
    moved = learned_shift(official_state("rcan", dtype=torch.float64), consistent=False)
    broken = official_state("rcan") | {"sub_mean.bias": torch.full((3,), math.nan)}
    cases = (moved, {}), (broken, {}), (official_state("rcan", rgb_range=1.0), {"rgb_range": 255})
    for state, options in (*cases, (official_state("rcan"), {"rgb_mean": (0.4, 0.4, 0.4)})):
        with pytest.raises(ValueError, match="cannot be folded exactly for --rgb-range"):
            to_basicsr(state, "rcan", **options)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("tail.1.bias", None, r"Missing key.*conv_last\.bias"),
        ("sub_mean.bias", None, r"'sub_mean\.bias' is missing"),
        ("head.0.weight", torch.ones(8, 1, 3, 3), r"size mismatch for conv_first\.weight"),
        ("extra.0", torch.ones(1), r"'extra\.0' is no layer of RCAN"),
        ("step", torch.ones(1).long(), "must map names to float tensors"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name, tensor, message):
    state = official_state("rcan")
    state.pop(name, None)
    with pytest.raises((ValueError, TypeError), match=message):
        to_basicsr(state if tensor is None else state | {name: tensor}, "rcan")


@pytest.mark.parametrize("to_official", [False, True])
@pytest.mark.parametrize(("given", "named"), [("edsr", "edsr"), ("rcan", "han"), ("han", "rcan")])
def test_another_network_or_direction_is_refused(given, named, to_official):
    official = official_state(given)
    is_official = to_official if given == named else not to_official
    with pytest.raises(ValueError, match=r"is it another network, or are --from and --to exchanged\?"):
        convert_state(official if is_official else to_basicsr(official, given), named, to_official=to_official)


def test_han_of_other_than_10_groups_is_refused_for_the_official_code():
    net = basicsr_net(options_of("han", 2, num_group=3))
    with pytest.raises(ValueError, match=r"3 groups.*written for 10"):
        from_basicsr(net.state_dict(), "han")


@pytest.mark.parametrize(("codebase", "rgb_range"), [("edsr", 1.0), ("rcan", 255.0), ("han", 255.0)])
def test_the_command_makes_a_file_and_options_that_basicsr_loads(codebase, rgb_range, tmp_path, capsys):
    official, converted, back = tmp_path / "official.pt", tmp_path / "net_g.pth", tmp_path / "back.pt"
    state = official_state(codebase, 4, rgb_range)
    torch.save({f"module.{key}": value for key, value in state.items()}, official)
    assert pcl_loss_convert("--from", codebase, "--in", official, "--out", converted) == 0
    out = capsys.readouterr().out
    opt = yaml.safe_load(out[out.index("network_g:") :])
    load_path, key = opt["path"]["pretrain_network_g"], opt["path"]["param_key_g"]
    net = basicsr_net(opt["network_g"], torch.load(load_path, weights_only=True)[key])
    assert max_difference(net, state, codebase, 4, rgb_range) < 1e-3

    assert pcl_loss_convert("--to", codebase, "--in", converted, "--out", back, "--rgb-range", rgb_range) == 0
    flags = capsys.readouterr().out
    assert f"--rgb_range {rgb_range:g} " in flags
    assert f"--n_resblocks {BLOCKS} --n_feats {FEAT} " in flags
    loaded = torch.load(back, weights_only=True)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert not back.read_bytes().startswith(b"PK")  # PyTorch before 1.6 reads no zip file


def test_res_scale_is_guessed_for_the_published_network_of_32_x_256():
    for feat, blocks, res_scale in ((256, 32, 0.1), (64, 16, 1)):
        with torch.device("meta"):
            net = basicsr_net(options_of("edsr", 4, num_feat=feat, num_block=blocks))
        assert convert_state(net.state_dict(), "edsr", to_official=True)[1]["res_scale"] == res_scale


def test_param_key_chooses_the_network_and_an_output_is_kept_unless_forced(tmp_path, capsys):
    states = {key: to_basicsr(official_state("edsr", seed=i), "edsr") for i, key in enumerate(("params", "params_ema"))}
    torch.save(states, tmp_path / "both.pth")
    (tmp_path / "x.pt").write_text("precious")
    command = ["--to", "edsr", "--in", tmp_path / "both.pth", "--out", tmp_path / "x.pt"]
    assert pcl_loss_convert(*command) == 1
    assert "replace it with --force" in capsys.readouterr().err
    assert (tmp_path / "x.pt").read_text() == "precious"
    for key, seed in (("params", 0), ("params_ema", 1)):
        assert pcl_loss_convert(*command, "--param-key", key, "--force") == 0
        loaded = torch.load(tmp_path / "x.pt", weights_only=True)
        assert torch.equal(loaded["head.0.weight"], official_state("edsr", seed=seed)["head.0.weight"])
