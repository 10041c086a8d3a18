import itertools
import math

import pytest
import torch
from torch import nn

from ddpmlab import networks, schedules
from ddpmlab.denoisers import Denoiser
from ddpmlab.networks.unet import attend


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- points ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"name": "mlp", "shape": (3,), "hidden": (64,)}, 515),
        ({"name": "mlp", "shape": (3,), "hidden": (64, 64)}, 4_675),
        ({"name": "mlp", "shape": (3,), "hidden": (64, 128, 128)}, 25_539),
        ({"name": "mlp", "hidden": (128, 128), "activation": "silu", "time": "sinusoidal", "time_layers": 2}, 33_666),
        ({"name": "mlp", "hidden": (128,) * 3, "activation": "silu", "time": "sinusoidal", "time_layers": 2}, 50_178),
        ({"name": "residual_mlp"}, 134_786),
    ],
)
def test_sizes_of_the_reports_networks(options, parameters):
    options = {"shape": (2,), **options}
    network = networks.make(options.pop("name"), **options)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network(torch.zeros(5, *options["shape"]), torch.zeros(5)).shape == (5, *options["shape"])


@pytest.mark.parametrize("name", ["mlp", "residual_mlp"])
@pytest.mark.parametrize("time", ["scalar", "sinusoidal", "fourier"])
def test_every_input_feature_reaches_the_output(name, time):
    network = networks.make(name, shape=(2,), time=time, fourier_features=8)
    x, c = randn(4, 2).requires_grad_(), torch.rand(4).requires_grad_()
    network(x, c).sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()
    assert (c.grad.abs() > 0).all()


def test_mlp_is_affine_maps_with_relus_between():
    """F = W3 r(W2 r(W1 [x, c] + b1) + b2) + b3, and r of that with an activation behind the output."""
    x, c = randn(7, 3), torch.rand(7)
    for last in (None, "relu"):
        network = networks.make("mlp", shape=(3,), hidden=(5, 4), output_activation=last)
        h = torch.cat([x, c[:, None]], 1)
        w = dict(network.named_parameters())
        for i in (0, 2, 4):
            h = h @ w[f"layers.{i}.weight"].T + w[f"layers.{i}.bias"]
            h = h.clamp(min=0) if i < 4 or last else h
        torch.testing.assert_close(network(x, c), h)
        assert list(w) == [f"layers.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]


def test_mlp_inputs_in_order_point_features_time_class():
    """The first layer sees [x, cos 2 pi f x, sin 2 pi f x, T(c), E_y], T two layers on sin and cos of 1000 c w_k."""
    network = networks.make(
        "mlp", shape=(2,), hidden=(4,), activation="silu", time="sinusoidal", time_features=6, time_layers=2,
        fourier_features=8, fourier_scale=0.7, n_classes=3,
    )  # fmt: skip
    x, c, label, w = randn(5, 2), torch.rand(5), torch.tensor([0, 2, 3, 1, 0]), network.state_dict()
    assert list(w) == [
        *("time.0.frequency", "time.1.weight", "time.1.bias", "time.3.weight", "time.3.bias", "fourier.frequency"),
        *("classes.weight", "layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"),
    ]
    phase = 2 * math.pi * x @ w["fourier.frequency"]
    wave = 1000 * c[:, None] * torch.tensor([10_000 ** (-k / 3) for k in range(3)])
    time = torch.cat([wave.sin(), wave.cos()], 1) @ w["time.1.weight"].T + w["time.1.bias"]
    time = (time * time.sigmoid()) @ w["time.3.weight"].T + w["time.3.bias"]
    h = torch.cat([x, phase.cos(), phase.sin(), time, w["classes.weight"][label]], 1)
    h = h @ w["layers.0.weight"].T + w["layers.0.bias"]
    expected = (h * h.sigmoid()) @ w["layers.2.weight"].T + w["layers.2.bias"]
    torch.testing.assert_close(network(x, c, label), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(network(x, c), network(x, c, torch.full((5,), 3)))  # no label is the last row


def test_residual_mlp_is_its_equation():
    network = networks.make("residual_mlp", shape=(2,), width=8, n_blocks=2, time="scalar", time_layers=0).eval()
    x, c, w = randn(5, 2), torch.rand(5), network.state_dict()

    def affine(h, name):
        return h @ w[name + ".weight"].T + w[name + ".bias"]

    def normed(h, name):
        centred = h - h.mean(1, keepdim=True)
        unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return unit * w[name + ".weight"] + w[name + ".bias"]

    def silu(h):
        return h * h.sigmoid()

    h = affine(x, "inlet")
    for b in ("blocks.0", "blocks.1"):
        inner = affine(silu(normed(h, f"{b}.norms.0") + affine(c[:, None], f"{b}.condition")), f"{b}.layers.0")
        h = h + affine(silu(normed(inner, f"{b}.norms.1")), f"{b}.layers.1")
    torch.testing.assert_close(network(x, c), affine(silu(normed(h, "outlet.0")), "outlet.2"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "residual_mlp"])
def test_a_network_without_the_time_does_not_see_it(name):
    network, x = networks.make(name, shape=(2,), time="none", time_layers=0), randn(4, 2)
    assert torch.equal(network(x, torch.zeros(4)), network(x, torch.rand(4)))
    told = networks.make(name, shape=(2,), time="scalar", time_layers=0)
    assert not torch.equal(told(x, torch.zeros(4)), told(x, torch.rand(4)))


@pytest.mark.parametrize(
    "options",
    [
        {"name": "mlp", "hidden": (8, 8), "time": "sinusoidal", "time_layers": 2, "n_classes": 3},
        {"name": "residual_mlp", "width": 8, "n_classes": 3},
    ],
)
def test_weights_built_under_a_seed_are_those_redrawn_under_it(options):
    """Construction draws in the order of `modules()`: results of trainings that redrew their weights stay."""
    name, options = options["name"], {k: v for k, v in options.items() if k != "name"}
    torch.manual_seed(3)
    network = networks.make(name, shape=(2,), **options)
    built = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(3)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(torch.equal(built[k], v) for k, v in network.state_dict().items())


def test_initial_weights_of_model_3_are_those_of_the_published_tables():
    torch.manual_seed(0)
    sums = [round(float(p.detach().double().sum()), 6) for p in networks.make("mlp", shape=(3,)).parameters()]
    assert sums == [
        -5.765865,
        -1.494831,
        -0.484962,
        2.246572,
        8.200026,
        -0.722648,
        0.358486,
        0.140003,
    ]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: networks.make("resnet"), ValueError, "unknown network 'resnet'; choose one of: mlp"),
        (lambda: networks.make("mlp", shape=(0,)), ValueError, r"shape = \(0,\); need at least one size"),
        (lambda: networks.make("mlp", shape=()), ValueError, r"shape = \(\); need"),
        (lambda: networks.make("mlp", shape=3), ValueError, "shape = 3; need"),
        (lambda: networks.make("mlp", shape=(2,), hidden=()), ValueError, "at least one positive width"),
        (lambda: networks.make("mlp", shape=(2,), activation="tanh"), ValueError, "choose one of: relu, silu, gelu"),
        (lambda: networks.make("mlp", shape=(2,), output_activation="tanh"), ValueError, "unknown activation 'tanh'"),
        (lambda: networks.make("mlp", shape=(2,), time="cosine"), ValueError, "scalar, sinusoidal, fourier, none"),
        (lambda: networks.make("mlp", shape=(2,), time="none", time_layers=1), ValueError, "without the time has none"),
        (lambda: networks.make("mlp", shape=(2,), fourier_features=3), ValueError, "n_features = 3; need an even"),
        (lambda: networks.make("residual_mlp", shape=(2,), n_blocks=0), ValueError, "n_blocks = 0"),
        (lambda: networks.make("mlp", shape=(2,), depth=3), TypeError, "network 'mlp' takes"),
        (
            lambda: networks.make("mlp", shape=(2,), n_classes=3)(torch.zeros(1, 2), torch.zeros(1), torch.tensor([4])),
            ValueError,
            r"labels span \[4, 4\]; this network has classes 0 to 2, and 3",
        ),
        (
            lambda: networks.make("mlp", shape=(2,), n_classes=3)(torch.zeros(2, 2), torch.zeros(2), torch.tensor([1])),
            ValueError,
            r"need whole numbers \(2,\)",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_flop_of_an_mlp_are_two_a_weight():
    network = networks.make("mlp", shape=(3,), hidden=(64, 128, 128))
    assert networks.flop(network) == 2 * sum(p.numel() for n, p in network.named_parameters() if n.endswith("weight"))
    assert networks.flop(network, 5) == 5 * networks.flop(network)


# --- pictures --------------------------------------------------------------------------------------------------

SMALL = {"unet": {"widths": (8, 16), "n_embedding": 8}, "patch_transformer": {"width": 8, "n_layers": 2, "n_heads": 2}}
PICTURES = [("unet", {}), ("unet", {"refine": 4, "attention": "middle"}), ("patch_transformer", {})]


def small(name, shape=(1, 8, 8), **options):
    """A small network whose weights, the zero ones too, are random."""
    torch.manual_seed(0)
    network = networks.make(name, shape=shape, **{**SMALL[name], "n_classes": 3, **options})
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network


@pytest.mark.parametrize(("name", "options"), PICTURES)
def test_networks_for_pictures_say_nothing_at_first(name, options):
    """Zero-initialised ends: F = 0 for every input, so that D is the best multiple of x_t for unit variance."""
    network = networks.make(name, shape=(1, 8, 8), n_classes=3, **SMALL[name], **options)
    assert (network(randn(5, 1, 8, 8), torch.rand(5), torch.arange(5) % 4) == 0).all()
    denoiser, x = Denoiser(network, schedules.make("ve"), "edm"), randn(5, 1, 8, 8)
    sigma = float(denoiser.schedule(0.5)[1])
    torch.testing.assert_close(denoiser(x, 0.5), x / (1 + sigma**2))


@pytest.mark.parametrize(("name", "options"), PICTURES)
def test_every_pixel_weight_and_condition_reaches_the_output(name, options):
    network = small(name, **options)
    x, c, label = randn(4, 1, 8, 8).requires_grad_(), torch.rand(4).requires_grad_(), torch.tensor([0, 1, 2, 3])
    y = network(x, c, label)
    assert y.shape == x.shape
    (y * randn(4, 1, 8, 8, seed=1)).sum().backward()
    assert (x.grad != 0).all()
    assert (c.grad != 0).all()
    assert all((weight.grad != 0).any() for weight in network.parameters())
    assert (network.classes.weight.grad != 0).any(1).all()
    assert torch.equal(network(x, c), network(x, c, torch.full((4,), 3)))  # no label is the last row
    for i in range(4):  # a picture's output is its own, however many there are beside it
        torch.testing.assert_close(network(x[i : i + 1], c[i : i + 1], label[i : i + 1])[0], y[i], atol=1e-5, rtol=1e-4)


class Reference:
    """The layers of both networks by hand, from a state dict."""

    def __init__(self, network):
        self.w = network.state_dict()

    def affine(self, h, name):
        return h @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def conv(self, h, name, **options):
        """Convolution as products with shifted maps."""
        weight, bias = self.w[name + ".weight"], self.w[name + ".bias"]
        k, stride = weight.shape[-1], options.get("stride", 1)
        padded = nn.functional.pad(h, [k // 2] * 4)
        out = sum(
            torch.einsum("nchw,oc->nohw", padded[:, :, i : i + h.shape[2], j : j + h.shape[3]], weight[:, :, i, j])
            for i, j in itertools.product(range(k), range(k))
        )
        return out[:, :, ::stride, ::stride] + bias[:, None, None]

    def norm(self, h, name):
        mean, var = h.mean((1, 2, 3), keepdim=True), h.var((1, 2, 3), keepdim=True, correction=0)
        unit = (h - mean) / (var + 1e-5).sqrt()
        return unit * self.w[name + ".weight"][:, None, None] + self.w[name + ".bias"][:, None, None]

    def embedding(self, c, label):
        phase = 2 * math.pi * c[:, None] * self.w["time.0.frequency"]
        e = self.affine(torch.cat([phase.cos(), phase.sin()], 1), "time.1")
        return silu(self.affine(silu(e), "time.3") + self.w["classes.weight"][label])

    def block(self, h, e, name):
        inner = self.conv(silu(self.norm(h, f"{name}.norms.0")), f"{name}.layers.0")
        scale, shift = self.affine(e, f"{name}.condition")[:, :, None, None].chunk(2, 1)
        inner = self.conv(silu((1 + scale) * self.norm(inner, f"{name}.norms.1") + shift), f"{name}.layers.1")
        return inner + (self.conv(h, f"{name}.skip") if f"{name}.skip.weight" in self.w else h)

    def attention(self, h, name):
        q, k, v = self.conv(self.norm(h, f"{name}.norm"), f"{name}.inlet").flatten(2).chunk(3, 1)
        weights = (torch.einsum("ncp,ncq->npq", q, k) / math.sqrt(q.shape[1])).softmax(2)
        return h + self.conv(torch.einsum("npq,ncq->ncp", weights, v).view_as(h), f"{name}.outlet")


def silu(h):
    return h * h.sigmoid()


def test_unet_is_its_equations():
    """Widths 8 and 16, one block a level, a thin stage of 4: every layer by hand, in order."""
    network = small("unet", shape=(2, 8, 8), n_blocks=1, refine=4)
    x, c, label, r = randn(3, 2, 8, 8), torch.rand(3), torch.tensor([0, 2, 1]), Reference(network)
    e = r.embedding(c, label)
    # (n, 4 C, 4, 4): channel 4 k + 2 i + j is pixel (i, j) of each square
    squares = torch.stack([x[:, k, i::2, j::2] for k in (0, 1) for i in (0, 1) for j in (0, 1)], 1)
    fine = r.block(r.conv(squares, "inlet"), e, "down.0.block")
    coarse = r.block(r.conv(fine, "down.1", stride=2), e, "down.2.block")
    coarse = r.attention(coarse, "down.2.attention")
    h = r.attention(r.block(coarse, e, "middle.0.block"), "middle.0.attention")
    h = r.block(h, e, "middle.1.block")
    torch.testing.assert_close(network.bottleneck(x, c, label), h, atol=1e-4, rtol=1e-3)
    assert network.bottleneck_shape == (16, 2, 2)
    h = r.attention(r.block(torch.cat([h, coarse], 1), e, "up.0.block"), "up.0.attention")
    h = r.conv(h.repeat_interleave(2, 2).repeat_interleave(2, 3), "up.1")
    h = silu(r.norm(r.block(torch.cat([h, fine], 1), e, "up.2.block"), "norm"))
    rise = r.conv(h, "outlet.rise")
    full = torch.zeros(3, 4, 8, 8)
    for k, i, j in itertools.product(range(4), (0, 1), (0, 1)):
        full[:, k, i::2, j::2] = rise[:, 4 * k + 2 * i + j]
    full = r.conv(silu(full + r.conv(x, "outlet.picture")), "outlet.middle")
    torch.testing.assert_close(network(x, c, label), r.conv(silu(full), "outlet.outlet"), atol=1e-3, rtol=1e-3)


def test_what_is_added_in_the_bottleneck():
    network, x, c = small("unet"), randn(3, 1, 8, 8), torch.rand(3)
    plain, shift = network(x, c), randn(*network.bottleneck_shape)
    assert torch.equal(network(x, c, shift=torch.zeros(network.bottleneck_shape)), plain)
    seen = {}
    network.up[0].register_forward_pre_hook(lambda module, inputs: seen.update(h=inputs[0]))
    assert not torch.equal(network(x, c, shift=shift), plain)
    torch.testing.assert_close(seen["h"][:, :16], network.bottleneck(x, c) + shift)
    torch.testing.assert_close(network(x, c, shift=shift.expand(3, -1, -1, -1)), network(x, c, shift=shift))


def test_how_maps_lie_in_memory_changes_no_number():
    network, x, c = small("unet", refine=4), randn(3, 1, 8, 8), torch.rand(3)
    last = network(x, c)
    network.channels_last = False
    torch.testing.assert_close(network(x, c), last, atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = network(x, c).float()
    assert float(((coarse - last).norm() / last.norm()).detach()) < 0.03


def test_attention_is_torchs():
    q, k, v = (randn(2, 3, 7, 5, seed=seed) for seed in range(3))
    torch.testing.assert_close(attend(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v))


def test_transformer_is_its_equations():
    network = small("patch_transformer", n_embedding=8)
    x, c, label, r = randn(3, 1, 8, 8), torch.rand(3), torch.tensor([0, 2, 1]), Reference(network)
    e = r.embedding(c, label)[:, None]

    def normed(h):
        return (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()

    corners = list(itertools.product((0, 4), (0, 4)))
    tokens = torch.stack([x[:, 0, i : i + 4, j : j + 4].flatten(1) for i, j in corners], 1)
    h = r.affine(tokens, "inlet") + r.w["places"]
    for layer in ("layers.0", "layers.1"):
        s_1, b_1, g_1, s_2, b_2, g_2 = r.affine(e, f"{layer}.condition").chunk(6, -1)
        qkv = r.affine((1 + s_1) * normed(h) + b_1, f"{layer}.qkv")
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            q, k, v = (part[..., head] for part in qkv.chunk(3, -1))
            mixed.append((q @ k.mT / 2).softmax(-1) @ v)
        h = h + g_1 * r.affine(torch.cat(mixed, -1), f"{layer}.join")
        inner = r.affine((1 + s_2) * normed(h) + b_2, f"{layer}.mlp.0")
        inner = 0.5 * inner * (1 + (math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)).tanh())
        h = h + g_2 * r.affine(inner, f"{layer}.mlp.2")
    out = r.affine(normed(h) * r.w["norm.weight"] + r.w["norm.bias"], "outlet")
    expected = torch.zeros_like(x)
    for token, (i, j) in enumerate(corners):
        expected[:, 0, i : i + 4, j : j + 4] = out[:, token].view(3, 4, 4)
    torch.testing.assert_close(network(x, c, label), expected, atol=1e-3, rtol=1e-3)


def test_flop_of_convolutions_and_attention():
    """The thin stage takes the place of the last 3 x 3 convolution; attention is products of 49 positions."""
    plain, thin, blind = (
        networks.flop(networks.make("unet", shape=(1, 28, 28), n_blocks=1, **options))
        for options in ({}, {"refine": 16}, {"attention": "middle"})
    )
    assert thin - plain == 2 * (784 * 9 * (16 + 16 * 16 + 16) + 196 * 48 * 64 - 196 * 9 * 48 * 4)
    assert plain - blind == 2 * 2 * (49 * 96 * 4 * 96 + 2 * 49 * 49 * 96)


@pytest.mark.parametrize(("name", "options"), PICTURES)
def test_networks_for_pictures_repeat_under_a_seed(name, options):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(networks.make(name, shape=(1, 8, 8), **SMALL[name], **options).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["inlet.weight"], states[2]["inlet.weight"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"shape": (3,)}, r"shape = \(3,\); need \(C, H, W\) with H and W divisible by 4"),
        ("unet", {"shape": (1, 30, 28)}, "divisible by 4"),
        ("unet", {"shape": (1, 28, 28), "widths": (8, 8, 8)}, "divisible by 8"),
        ("unet", {"shape": (1, 28, 28), "n_blocks": 0}, "n_blocks = 0"),
        ("unet", {"shape": (1, 28, 28), "n_groups": 5}, r"n_groups = 5 must divide each of widths = \(48, 96\)"),
        ("unet", {"shape": (1, 28, 28), "attention": "all"}, "choose one of: coarsest, middle, none"),
        ("unet", {"shape": (1, 28, 28), "widths": (8, 65)}, r"widths\[-1\] = 65; attention splits it"),
        ("patch_transformer", {"shape": (1, 28, 30)}, "divisible by patch = 4"),
        ("patch_transformer", {"shape": (1, 28, 28), "n_heads": 3}, "n_heads = 3"),
    ],
)
def test_bad_networks_for_pictures_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        networks.make(name, **options)
