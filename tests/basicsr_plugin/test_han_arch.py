import math

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs.rcan_arch import RCAN

from pcl_loss.basicsr_plugin.han_arch import HAN, LayerAttention

MEAN = (0.4488, 0.4371, 0.4040)
TINY = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 3, "num_block": 2, "squeeze_factor": 4}
TINY["upscale"] = 2


def tiny(**overrides):
    torch.manual_seed(0)
    net = HAN(**(TINY | overrides))
    assert net.la.gamma.item() == net.csa.gamma.item() == 0
    with torch.no_grad():
        # Else both attentions are the identity.
        net.la.gamma.fill_(0.3)
        net.csa.gamma.fill_(-0.6)
    return net


def image(n=1, h=9, w=11, dtype=torch.float32):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(1)).to(dtype)


def reference_layer_attention(layers, gamma):
    """The attended maps of L layers (C, H, W), and the weights (L, L)."""
    attended, rows = [], []
    for own in layers:
        energies = [float((own * other).sum()) for other in layers]
        weights = [math.exp(min(energies) - energy) for energy in energies]
        rows.append([weight / sum(weights) for weight in weights])
        mixed = sum(weight * other for weight, other in zip(rows[-1], layers, strict=True))
        attended.append(gamma * mixed + own)
    return attended, torch.tensor(rows)


def reference_han(state, image, num_group, num_block, upscale, img_range):
    """HAN in float64, one image (3, H, W) in [0, 1] at a time, layers and their similarities in plain loops."""
    p = {key: value.double() for key, value in state.items()}

    def conv(name, x):
        weight = p[f"{name}.weight"]
        return F.conv2d(x[None], weight, p[f"{name}.bias"], padding=weight.shape[-1] // 2)[0]

    mean = torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
    head = conv("conv_first", (image.double() - mean) * img_range)
    x, layers = head, []
    for g in range(num_group):
        group_input = x
        for b in range(num_block):
            block = f"body.{g}.residual_group.{b}.rcab"
            y = conv(f"{block}.2", torch.relu(conv(f"{block}.0", x)))
            squeezed = torch.relu(conv(f"{block}.3.attention.1", y.mean((1, 2), keepdim=True)))
            x = x + y * torch.sigmoid(conv(f"{block}.3.attention.3", squeezed))
        x = conv(f"body.{g}.conv", x) + group_input
        layers.append(x)
    last = conv("conv_after_body", x)
    layers = [*layers, last][::-1]

    attended, _ = reference_layer_attention(layers, p["la.gamma"])
    by_layer = conv("last_conv", torch.cat(attended))

    gate = torch.sigmoid(F.conv3d(last[None, None], p["csa.conv.weight"], p["csa.conv.bias"], padding=1)[0, 0])
    by_position = last * (p["csa.gamma"] * gate) + last

    x = conv("last", torch.cat([by_position, by_layer])) + head
    factors = [3] if upscale == 3 else [2] * int(math.log2(upscale))
    for i, factor in enumerate(factors):
        x = F.pixel_shuffle(conv(f"upsample.{2 * i}", x), factor)
    return conv("conv_last", x) / img_range + mean


@pytest.mark.parametrize(
    ("upscale", "img_range", "dtype", "tolerance"),
    [(2, 255.0, torch.float32, 1e-4), (3, 255.0, torch.float64, 2e-5), (4, 1.0, torch.float64, 2e-5)],
)
def test_forward_equals_the_float64_reference(upscale, img_range, dtype, tolerance):
    net = tiny(upscale=upscale, img_range=img_range).to(dtype)
    x = image(2, dtype=dtype)
    with torch.no_grad():
        out = net(x)
    expected = torch.stack([reference_han(net.state_dict(), one, 3, 2, upscale, img_range) for one in x])
    assert out.dtype == dtype
    torch.testing.assert_close(out.double() * 255, expected * 255, rtol=0, atol=tolerance)


def test_layer_attention_equals_the_loops_where_it_is_soft():
    # In 0-255 the softmax is one-hot, whatever the scale of the energies.
    layers = torch.randn(5, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.1
    attention = LayerAttention().double()
    attention.gamma.data.fill_(0.3)
    attended, weights = reference_layer_attention(list(layers), 0.3)
    assert 0.05 < weights.min() < 0.9 * weights.max() < 0.6
    torch.testing.assert_close(attention(layers[None])[0], torch.cat(attended), rtol=0, atol=1e-12)


def test_state_dict_has_rcan_s_names_and_the_attentions_only():
    rcan, own = RCAN(**TINY).state_dict(), tiny().state_dict()
    assert {key: own[key].shape for key in rcan} == {key: value.shape for key, value in rcan.items()}
    layers = {key.rpartition(".")[0] for key in own.keys() - rcan.keys()}
    assert layers == {"csa", "csa.conv", "la", "last", "last_conv"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_layer_attention_survives_energies_beyond_half_precision(dtype):
    net, x = tiny(), image(h=16, w=16)
    expected = net(x)
    with torch.autocast("cpu", dtype):
        out = net(x)
        attended = net.la(torch.rand(1, 3, 4, 16, 16, dtype=dtype) * 500)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.05)
    assert attended.dtype == dtype
    assert attended.isfinite().all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"squeeze_factor": 16}, "squeeze_factor must be at most num_feat, 8, got 16"),
        ({"num_out_ch": 4}, "num_out_ch 4"),
        ({"img_range": 0}, "img_range must be above 0"),
    ],
)
def test_impossible_options_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny(**overrides)
