import math

import pytest
import torch

from ddpmlab import networks


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
