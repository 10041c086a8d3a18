import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pretended
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest, chisquare, kstest
from torch import nn

from ddpmlab import data, networks, samplers, schedules
from ddpmlab.denoisers import WEIGHTINGS, Denoiser, EmpiricalDenoiser, Guided
from ddpmlab.files import safe_open
from ddpmlab.training import CheckpointError, NonFiniteLossError, Options, build_seeded, fit
from ddpmlab.training.draws import Draws


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pretended.GPU), "pretended"])
def device(request):
    if request.param != "pretended":
        yield request.param
        return
    with pretended.cuda():
        yield "cuda"


def mlp(dim=3, hidden=(16, 16), **options):
    return networks.make("mlp", shape=(dim,), hidden=hidden, **options)


def denoiser(hidden=(16, 16), dropout=0.0, seed=0, schedule=None):
    def build():
        return Denoiser(mlp(hidden=hidden, dropout=dropout), schedule or schedules.make("linear", n_steps=50))

    return build_seeded(build, seed)


@pytest.fixture(scope="module")
def points():
    return data.make("helix").standardised().split().train


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Linear(nn.Module):
    """F(x, c) = W (x, c), in double precision; keeps what it was shown."""

    def __init__(self, dim, n_classes=0):
        super().__init__()
        self.dim, self.n_classes, self.seen = dim, n_classes, []
        self.layer = nn.Linear(dim + 1, dim, bias=False, dtype=torch.float64)

    def forward(self, x, c, label=None):
        self.seen.append((x.detach().clone(), c.clone(), label, self.training))
        return self.layer(torch.cat([x.flatten(1), c[:, None]], 1)).reshape(x.shape)


def shown(points, n_steps, schedule=None, n_classes=0, **options):
    """What a network is shown in training: x_t, c and labels, each of all steps in one."""
    network = Linear(points[0].numel(), n_classes)
    fit(Denoiser(network, schedule or clean()), points, n_steps, **options)
    assert len(network.seen) == n_steps
    x, c, label, training = zip(*network.seen, strict=True)
    assert all(training)
    return torch.cat(x), torch.cat(c), None if label[0] is None else torch.cat(label)


def clean():
    """A schedule with next to no noise, under which a network is shown the points themselves."""
    return schedules.make("linear", n_steps=4, lbeta=1e-12, ubeta=1e-12)


# --- steps by hand ---------------------------------------------------------------------------------------------


def by_hand(points, weight, options, seed, schedule, rates):
    """Training of `Linear` written out: losses and the weights after each step."""
    generator, states, losses = torch.Generator().manual_seed(seed), [], []
    m = v = torch.zeros_like(weight)
    order = torch.empty(0, dtype=torch.int64)
    n, d = options["batch_size"], points.shape[1]
    for k, rate in enumerate(rates, 1):
        while len(order) < n:
            order = torch.cat([order, torch.randperm(len(points), generator=generator)])
        x0, order = points[order[:n]], order[n:]
        noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
        t = torch.randint(1, schedule.t_max + 1, (n,), generator=generator)
        alpha_bar = (1 - schedule.betas).cumprod(0)[t - 1, None]
        snr = alpha_bar / (1 - alpha_bar)
        w = {
            "simple": torch.ones_like(snr),
            "snr+1 inverse": 1 / (1 + snr),
            "min-snr": snr.clamp(max=5) / snr,
            "edm": (1 + snr) / snr,
        }[options["weighting"]]
        features = torch.cat([alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, t[:, None] / schedule.t_max], 1)
        error = features @ weight.T - noise
        losses.append(float((w * error**2).mean()))
        gradient = 2 * (w * error).T @ features / (n * d)
        gradient = gradient * min(1.0, options["grad_clip"] / (float(gradient.norm()) + 1e-6))
        if options["optimiser"] == "adamw":
            weight = weight - rate * options["weight_decay"] * weight
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight = weight - rate * m / (1 - 0.9**k) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        states.append(weight)
    return losses, states


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("optimiser", "grad_clip"), [("adam", 0.3), ("adamw", 1e9)])
def test_eight_steps_by_hand(weighting, optimiser, grad_clip):
    points = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    schedule = schedules.make("linear", n_steps=6, lbeta=0.05, ubeta=0.5)
    options = {
        "batch_size": 8, "weighting": weighting, "optimiser": optimiser, "weight_decay": 0.5, "grad_clip": grad_clip,
        "learning_rate": 0.05, "decay": "cosine", "warmup": 2,
    }  # fmt: skip
    model = build_seeded(lambda: Denoiser(Linear(2), schedule), 3)
    start = model.network.layer.weight.detach().clone()
    rates = [0.05 * min(1, k / 2) * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(1, 9)]
    losses, states = by_hand(points, start, options, 7, schedule, rates)
    result = fit(model, points, 8, keep_steps=range(1, 9), seed=7, **options)
    assert result.losses == pytest.approx([sum(losses) / 8], rel=1e-6)  # times enter the network in its own dtype
    for k, state in enumerate(states, 1):
        torch.testing.assert_close(result.weights[k]["layer.weight"], state, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model.network.layer.weight.detach(), states[-1], rtol=1e-7, atol=1e-9)
    unclipped = by_hand(points, start, {**options, "grad_clip": 1e9}, 7, schedule, rates)[1]
    assert grad_clip > 1 or not torch.allclose(unclipped[1], states[1], rtol=1e-3)  # the clip was felt


def test_muon_turns_matrices_and_adam_the_rest():
    # the first step: a matrix moves along the orthogonal factor of its gradient, Adam's weights by one rate each
    points = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    model, rate = denoiser(hidden=(16, 8)), 0.01
    before = {name: w.detach().clone() for name, w in model.network.named_parameters()}
    plain = {}
    for weight, name in zip(model.network.parameters(), before, strict=True):
        weight.register_hook(lambda g, name=name: plain.setdefault(name, g.clone()))
    fit(model, points, 1, batch_size=64, optimiser="muon", learning_rate=rate)
    for name, weight in model.network.named_parameters():
        moved = (before[name] - weight.detach()).double()
        if weight.ndim != 2:
            torch.testing.assert_close(moved, rate * plain[name].double().sign(), rtol=1e-3, atol=1e-8)
            continue
        u, _, v = torch.linalg.svd(plain[name].double(), full_matrices=False)
        tall = max(1, weight.shape[0] / weight.shape[1]) ** 0.5  # torch's factor on the rate
        turned = u.T @ moved @ v.T / (rate * tall)  # nearly diagonal, near 1
        assert torch.diagonal(turned)[:2].sub(1).abs().max() < 0.5, name
        assert (turned - torch.diag(torch.diagonal(turned))).abs().max() < 0.1, name


def test_steps_of_muon_are_torch_s_own_without_decay(points):
    options = Options(n_steps=6, batch_size=32, optimiser="muon", learning_rate=0.02, decay="cosine", device="cpu")
    ours, theirs = denoiser(), denoiser()
    fit(ours, points, options=options, seed=3)
    weights = list(theirs.network.parameters())
    muon = torch.optim.Muon(
        [w for w in weights if w.ndim == 2], weight_decay=0.0, momentum=0.95, nesterov=True, ns_steps=5
    )
    adam = torch.optim.Adam([w for w in weights if w.ndim != 2], betas=(0.9, 0.999), eps=1e-8)
    draws = Draws(points.float(), None, theirs.schedule, options, torch.Generator().manual_seed(3))
    for step in range(1, 7):
        x0, noise, t, _ = draws()
        theirs.loss(x0, t, noise).mean().backward()
        for optimiser in (muon, adam):
            optimiser.param_groups[0]["lr"] = options.rate(step)
            optimiser.step()
            optimiser.zero_grad()
    for mine, other in zip(ours.network.parameters(), weights, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_muon_needs_a_matrix_and_a_torch_that_has_it(monkeypatch):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(3))

        def forward(self, x, c):
            return self.by * x

    with pytest.raises(ValueError, match="optimiser = 'muon', but the network has no matrix to train"):
        fit(Denoiser(Scale(), schedules.make("linear")), torch.zeros(4, 3), 1, optimiser="muon")
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"optimiser = 'muon' needs torch 2\.9, and this is"):
        fit(denoiser(), torch.zeros(4, 3), 1, optimiser="muon")


@pytest.mark.parametrize("schedule", ["ve", "vp_cosine", "linear"])
def test_a_shared_target_is_the_exact_denoiser_of_the_group(schedule):
    # one group that is the whole training set: nothing is left to chance in the target, and nothing else changes
    points = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    schedule = schedules.make(schedule)
    drawn = {}
    for size in (1, 8, 32):
        generator = torch.Generator().manual_seed(2)
        options = Options(n_steps=1, batch_size=32, shared_targets=size)
        x0, noise, t, _ = Draws(points, None, schedule, options, generator)()
        alpha, sigma = (scale[:, None] for scale in schedule(t))
        drawn[size] = x0, alpha * x0 + sigma * noise, t
    plain, noised, times = drawn[1]
    for size in (8, 32):
        torch.testing.assert_close(drawn[size][1], noised, rtol=0, atol=1e-12)
        assert torch.equal(drawn[size][2], times)
        for group in range(0, 32, size):
            part = slice(group, group + size)
            exact = EmpiricalDenoiser(plain[part], schedule)(noised[part], times[part])
            torch.testing.assert_close(drawn[size][0][part], exact, rtol=1e-6, atol=1e-6)


def test_a_shared_target_is_of_the_mirrored_pictures_and_fine_at_little_noise():
    pictures = torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    labels, schedule = torch.arange(16) % 2, schedules.make("ve", sigma_min=0.003, sigma_max=0.004)
    found = []
    for size in (1, 16):
        options = Options(n_steps=1, batch_size=16, shared_targets=size, flip=(0, 1))
        x0, noise, t, _ = Draws(pictures, labels, schedule, options, torch.Generator().manual_seed(2))()
        _, sigma = (scale.float()[:, None, None, None] for scale in schedule(t))
        found.append((x0, x0 + sigma * noise))
    (plain, noised), (shared, same_noised) = found
    assert not torch.equal(plain.sort(0).values, pictures.sort(0).values)  # some were mirrored
    torch.testing.assert_close(same_noised, noised, rtol=0, atol=1e-6)
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-5)  # so little noise leaves no doubt which it was


def test_a_shared_target_is_the_mean_where_no_signal_is_left():
    points = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
    schedule = schedules.make("linear", n_steps=3).rescaled(0.0)
    options = Options(n_steps=1, batch_size=16, shared_targets=16)
    for seed in range(9):
        x0, noise, t, _ = Draws(points, None, schedule, options, torch.Generator().manual_seed(seed))()
        last = t == 3
        assert last.any()
        torch.testing.assert_close(x0[last], points.mean(0).expand_as(x0[last]))
        assert noise.isfinite().all()


def test_losses_are_means_over_a_hundred_steps_and_over_what_is_left():
    points = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    schedule = schedules.make("linear", n_steps=6, lbeta=0.05, ubeta=0.5)
    options = {"batch_size": 8, "weighting": "simple", "optimiser": "adam", "grad_clip": 1e9, "learning_rate": 0.01}
    model = build_seeded(lambda: Denoiser(Linear(2), schedule), 3)
    start = model.network.layer.weight.detach().clone()
    losses, _ = by_hand(points, start, options, 0, schedule, [0.01] * 130)
    expected = [sum(losses[:100]) / 100, sum(losses[100:]) / 30]
    assert fit(model, points, 130, **options).losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.1, 0.4, 0.4, 0.4, 0.4]),
        # warm-up over 4 of 16 steps, at steps 1, 4, 8, 12 and 16
        (
            "cosine",
            [0.1 * (1 + math.cos(math.pi / 16)) / 2, 0.4 * (1 + 0.5**0.5) / 2, 0.2, 0.4 * (1 - 0.5**0.5) / 2, 0],
        ),
        ("inverse sqrt", [0.1, 0.4 / 2**0.5, 0.4 / 2, 0.4 / 6**0.5, 0.4 / 8**0.5]),
    ],
)
def test_the_rate_at_every_phase(decay, expected):
    options = Options(n_steps=16, learning_rate=0.4, warmup=4, decay=decay)
    assert [options.rate(k) for k in (1, 4, 8, 12, 16)] == pytest.approx(expected, abs=1e-15)
    assert Options(n_steps=16, learning_rate=0.4).rate(1) == 0.4


# --- what is drawn ---------------------------------------------------------------------------------------------


def test_training_times_are_uniform_on_1_to_t():
    points = torch.zeros(10, 1, dtype=torch.float64)
    _, c, _ = shown(points, 60, schedules.make("linear", n_steps=7), batch_size=100)
    times = (c * 7).round()
    torch.testing.assert_close(times / 7, c)
    assert set(times.tolist()) == {*range(1, 8)}
    assert chisquare(times.long().bincount()[1:]).pvalue > 0.001


def test_continuous_times_are_stratified_from_the_first_noisy_one():
    points = torch.zeros(10, 1, dtype=torch.float64)
    network = Linear(1)
    fit(Denoiser(network, schedules.make("vp_cosine", t_min=0.2), "v"), points, 30, batch_size=40)
    for _, c, _, _ in network.seen:
        assert ((40 * (c - 0.2) / 0.8).floor() == torch.arange(40)).all()


@pytest.mark.parametrize("times", ["log-normal", "log-normal, independent"])
def test_log_normal_noise_levels_have_their_law(times):
    network = Linear(1)
    model = Denoiser(network, schedules.make("ve"), "edm")
    options = {"weighting": "edm", "times": times, "log_normal": (-1.0, 1.3)}
    fit(model, torch.zeros(10, 1, dtype=torch.float64), 40, batch_size=50, **options)
    levels = torch.stack([4 * c for _, c, _, _ in network.seen])  # c = ln(sigma / alpha) / 4
    quantiles = torch.special.ndtr((levels + 1.0) / 1.3)
    assert kstest(quantiles.flatten(), "uniform").pvalue > 0.01
    occupied = torch.tensor([len(row.unique()) for row in (50 * quantiles).floor()])
    if times == "log-normal":
        assert (occupied == 50).all()
    else:  # of 50 intervals 50 independent draws hit 50 (1 - (1 - 1/50)^50) = 31.8
        assert occupied.double().mean() == pytest.approx(31.8, abs=1.5)


def test_each_point_comes_once_an_epoch_and_in_another_order_each_time():
    points = torch.arange(10, dtype=torch.float64)[:, None]
    x, _, _ = shown(points, 10, batch_size=4)
    epochs = x.round().long().reshape(4, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert all(not torch.equal(a, b) for a, b in itertools.combinations([*epochs, torch.arange(10)], 2))


def test_a_batch_may_be_larger_than_the_data():
    x, _, _ = shown(torch.arange(3, dtype=torch.float64)[:, None], 2, batch_size=9)
    assert x.round().long().flatten().bincount().tolist() == [6, 6, 6]


def test_labels_stay_with_their_points_and_are_dropped_at_the_rate_asked_for():
    points = torch.arange(4, dtype=torch.float64)[:, None]
    labels = torch.tensor([3, 0, 2, 1])
    x, _, label = shown(points, 50, n_classes=4, labels=labels, batch_size=40)
    assert torch.equal(label, labels[x.round().long().flatten()])
    dropped_x, _, dropped = shown(points, 50, n_classes=4, labels=labels, batch_size=40, label_dropout=0.2)
    assert dropped_x[:40].equal(x[:40])  # coins are tossed last: the first batch is the same
    kept = dropped != 4
    assert torch.equal(dropped[kept], labels[dropped_x.round().long().flatten()][kept])
    assert binomtest(int((~kept).sum()), len(kept), 0.2).pvalue > 0.001
    # a coin per point, not one per batch
    per_batch = (~kept).reshape(50, 40).sum(1)
    assert per_batch.min() > 0
    assert per_batch.max() < 40


def test_pictures_of_the_listed_classes_and_no_others_are_mirrored_half_the_time():
    pictures = torch.arange(36, dtype=torch.float64).reshape(4, 1, 3, 3)
    labels = torch.arange(4)
    for n_classes in (0, 4):  # a network without classes profits too
        x, _, label = shown(pictures, 40, n_classes=n_classes, labels=labels, batch_size=40, flip=[1, 2], seed=1)
        x = x.round()
        kind = (x[:, 0, 0, 1] / 9).floor().long()
        mirrored = (x == pictures[kind].flip(-1)).all((1, 2, 3))
        assert ((x == pictures[kind]).all((1, 2, 3)) | mirrored).all()
        assert n_classes == 0 or torch.equal(label, kind)
        assert not mirrored[(kind == 0) | (kind == 3)].any()
        for k in (1, 2):
            assert binomtest(int(mirrored[kind == k].sum()), int((kind == k).sum()), 0.5).pvalue > 0.001


def test_labels_alone_change_no_draw():
    points, labels = torch.arange(6, dtype=torch.float64)[:, None], torch.arange(6)
    without, c, _ = shown(points, 5, batch_size=4)
    with_labels, c_too, _ = shown(points, 5, batch_size=4, n_classes=6, labels=labels)
    assert torch.equal(without, with_labels)
    assert torch.equal(c, c_too)


def test_a_guided_sampler_draws_the_class_it_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2_000) % 2
    points = torch.where(labels == 1, 1.0, -1.0)[:, None] + 0.05 * torch.randn(2_000, 1, generator=generator)
    schedule = schedules.make("vp_cosine")
    model = build_seeded(lambda: Denoiser(mlp(1, (64, 64), n_classes=2), schedule, "v"), 0)
    fit(model, points, 600, labels=labels, label_dropout=0.2, batch_size=256, learning_rate=5e-3, decay="cosine")
    heun = samplers.make("heun", n_steps=15)
    for label, mean in ((0, -1), (1, 1)):
        drawn = heun.sample(Guided(model, label, 1.0), 200, seed=1)
        assert float(((drawn - mean).abs() < 0.3).double().mean()) > 0.9
    free = heun.sample(model, 1_000, seed=2)
    assert binomtest(int((free > 0).sum()), 1_000, 0.5).pvalue > 0.001


# --- weights, averages, modes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": (64, 128, 128)}),
        ("mlp", {"hidden": (8,), "time": "sinusoidal", "time_layers": 2, "fourier_features": 6, "n_classes": 3}),
        ("residual_mlp", {"width": 16, "n_blocks": 2, "time": "fourier", "time_features": 8, "n_classes": 2}),
    ],
)
def test_weights_built_under_a_seed_are_those_of_resetting_each_module_in_turn(name, options):
    network = build_seeded(lambda: networks.make(name, shape=(3,), **options), 7)
    other = networks.make(name, shape=(3,), **options)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for module in other.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    assert same(network.state_dict(), other.state_dict())


def test_training_starts_from_the_weights_that_the_network_has(points):
    model = denoiser()
    nn.init.zeros_(model.network.layers[-1].weight)
    start = {k: v.clone() for k, v in model.network.state_dict().items()}
    kept = fit(model, points, 1, batch_size=64, learning_rate=1e-3).weights[1]
    moved = {k: float((kept[k] - start[k]).abs().max()) for k in start}
    assert max(moved.values()) <= 1.001e-3  # Adam's first step is at most the rate
    assert moved["layers.4.weight"] > 0.9e-3


def walked(path, beta):
    """The average by its definition, from the states after each step."""
    average = path[0]
    for k, state in enumerate(path[1:], 1):
        average = {name: beta(k) * average[name] + (1 - beta(k)) * w for name, w in state.items()}
    return average


class Normalised(nn.Module):
    """A network with running statistics, dropout and two names for one weight."""

    def __init__(self):
        super().__init__()
        self.dim, self.n_classes = 3, 0
        self.layers = nn.Sequential(
            nn.Linear(4, 12), nn.BatchNorm1d(12), nn.SiLU(), nn.Dropout(0.3), nn.Linear(12, 12), nn.Linear(12, 3)
        )
        self.tied = self.layers[4]

    def forward(self, x, c, label=None):
        return self.layers(torch.cat([x, c[:, None]], 1))


def normalised(seed=0):
    return build_seeded(lambda: Denoiser(Normalised(), schedules.make("linear", n_steps=50)), seed)


@pytest.mark.parametrize(
    ("options", "betas"),
    [
        ({"ema_decay": 0.8}, [lambda k: 0.8]),
        # gamma = 1: (1 + 2)^2 (1 + 3) / (1 + 1) = 18
        ({"ema_sigma_rel": 18**-0.5}, [lambda k: (1 - 1 / k) ** 2]),
        # gamma = 3: (3 + 2)^2 (3 + 3) / (3 + 1) = 37.5
        ({"ema_sigma_rel": (18**-0.5, 37.5**-0.5)}, [lambda k: (1 - 1 / k) ** 2, lambda k: (1 - 1 / k) ** 4]),
    ],
)
def test_averages_are_those_made_by_hand_and_buffers_the_networks_own(points, options, betas):
    model = normalised()
    path = [{k: v.clone() for k, v in model.network.state_dict().items()}]
    result = fit(model, points, 12, batch_size=64, keep_steps=range(1, 13), **options)
    path += [result.weights[k] for k in range(1, 13)]
    parameters = dict(model.network.named_parameters(remove_duplicate=False))
    assert {"tied.weight", "layers.4.weight"} <= parameters.keys()
    assert result.averages is next(iter(result.by_width.values()))
    for states, beta in zip(result.by_width.values(), betas, strict=True):
        for k in (5, 12):
            expected = walked(path[: k + 1], beta)
            for name, value in states[k].items():
                if name in parameters:
                    torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
                else:
                    assert torch.equal(value, path[k][name]), name
    for state in (result.weights[12], result.averages[12]):
        model.network.load_state_dict(state)
    assert float((path[12]["layers.1.running_var"] - 1).abs().max()) > 0.01


def test_dropout_acts_in_training_and_not_in_sampling(points):
    model = denoiser(dropout=0.5)
    start = {k: v.clone() for k, v in model.network.state_dict().items()}
    kept = fit(model, points, 1, batch_size=64)
    assert not model.training
    assert not model.network.training
    sampler = samplers.make("ddim", n_steps=5)
    with torch.random.fork_rng():
        first, second = (sampler.sample(model, 50, seed=1) for _ in range(2))
    assert torch.equal(first, second)
    still = denoiser()  # the same weights without dropout
    for name, value in start.items():  # layers move down by one place for each dropout before them
        names = {"layers.3": "layers.2", "layers.6": "layers.4"}
        layer, kind = name.rsplit(".", 1)
        still.network.get_submodule(names.get(layer, layer)).get_parameter(kind).data.copy_(value)
    assert fit(still, points, 1, batch_size=64).losses != kept.losses


# --- seeds and devices ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(points, device):
    options = {"n_steps": 120, "batch_size": 64, "ema_decay": 0.9, "device": device}
    first, second = fit(denoiser(), points, seed=3, **options), fit(denoiser(), points, seed=3, **options)
    assert same(first.weights[120], second.weights[120])
    assert same(first.averages[120], second.averages[120])
    assert first.losses == second.losses
    assert not same(first.weights[120], fit(denoiser(), points, seed=4, **options).weights[120])


def test_global_random_state_neither_matters_nor_changes(points):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fit(denoiser(dropout=0.2), points, 20, batch_size=64)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first.weights[20], fit(denoiser(dropout=0.2), points, 20, batch_size=64).weights[20])


def test_bf16_is_for_the_loss_alone(points):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.dim, self.seen = mlp(), 3, set()

        def forward(self, x, c, label=None):
            out = self.inner(x, c)
            self.seen.add((x.dtype, out.dtype))
            return out

    def run(precision):
        model = build_seeded(lambda: Denoiser(Watched(), schedules.make("linear", n_steps=50)), 0)
        inside = []
        result = fit(
            model, points, 60, batch_size=64, precision=precision, ema_decay=0.5,
            on_step=lambda step: inside.append(torch.is_autocast_enabled("cpu")),
        )  # fmt: skip
        assert not any(inside)
        for state in (result.weights[60], result.averages[60]):
            assert all(w.dtype == torch.float32 for w in state.values())
        return model.network.seen, result

    seen, half = run("bf16")
    assert seen == {(torch.float32, torch.bfloat16)}
    seen, full = run("fp32")
    assert seen == {(torch.float32, torch.float32)}
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.02)


def test_cuda_is_missed_where_there_is_none(points, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device = 'cuda', but torch finds no CUDA device here; choose device"):
        fit(denoiser(), points, 5, device="cuda")
    assert Options(device="cuda").device == "cuda"  # a config for another machine
    assert Options().torch_device == torch.device("cpu")


@pytest.mark.gpu
@pretended.GPU[1]
def test_steps_on_a_gpu_do_not_wait_for_each_other(points):
    def watch(step):
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < 90 else "default")

    try:
        fit(denoiser(), points, 95, batch_size=64, device="cuda", grad_clip=1.0, ema_decay=0.9, on_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- resuming ---------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop_at(last):
    def stop(step):
        if step == last:
            raise Stop

    return stop


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (denoiser, {}),
        (lambda: denoiser(dropout=0.2), {"ema_sigma_rel": 0.1, "decay": "cosine", "optimiser": "adamw"}),
        (normalised, {"ema_sigma_rel": (0.05, 0.1), "grad_clip": 1.0, "precision": "bf16"}),
        (denoiser, {"optimiser": "muon", "shared_targets": 16, "decay": "cosine"}),
    ],
)
def test_a_resumed_run_ends_at_the_same_bits(points, tmp_path, build, options, device, request):
    if options.get("optimiser") == "muon" and "pretended" in request.node.callspec.id:
        pytest.skip("the played device is slow at Muon's many small products; it trains with it in test_devices")
    options = {"n_steps": 130, "batch_size": 64, "keep_steps": (10, 60), "seed": 1, "device": device, **options}
    whole = fit(build(), points, **options)
    saving = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 25}
    for last in (77, 113):
        with pytest.raises(Stop):
            fit(build(), points, on_step=stop_at(last), **saving, **options)
    steps = []
    resumed = fit(build(), points, on_step=steps.append, **saving, **options)
    assert steps == [*range(101, 131)]
    assert resumed.steps == [10, 60, 130]
    again = fit(build(), points, on_step=steps.append, **saving, **options)  # nothing is left to do
    assert len(steps) == 30
    for result in (resumed, again):
        assert result.losses == whole.losses
        assert all(same(whole.weights[s], result.weights[s]) for s in whole.steps)
        assert whole.by_width.keys() == result.by_width.keys()
        for width, states in whole.by_width.items():
            assert all(same(states[s], result.by_width[width][s]) for s in whole.steps)


RUN = """
import sys
from ddpmlab import data, networks, schedules
from ddpmlab.denoisers import Denoiser
from ddpmlab.training import build_seeded, fit
network = build_seeded(lambda: networks.make("mlp", shape=(3,), hidden=(16, 16)), 0)
fit(
    Denoiser(network, schedules.make("linear", n_steps=50)), data.make("helix").standardised().split().train, 3_000,
    batch_size=64, checkpoint=sys.argv[1], checkpoint_every=500,
    on_step=lambda step: print(step, flush=True) if step % 250 == 0 else None,
)
"""


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(points, tmp_path):
    path = tmp_path / "run.safetensors"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 1_250:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    steps = []
    resumed = fit(denoiser(), points, 3_000, batch_size=64, checkpoint=path, on_step=steps.append)
    assert 1_000 < steps[0] < 3_000
    assert same(resumed.weights[3_000], fit(denoiser(), points, 3_000, batch_size=64).weights[3_000])


def test_two_runs_may_write_one_checkpoint(points, tmp_path):
    path = tmp_path / "run.safetensors"

    def run(model):
        return fit(model, points, 40, batch_size=32, checkpoint=path, checkpoint_every=1).weights[40]

    with ThreadPoolExecutor(4) as executor:
        first, *others = executor.map(run, [denoiser() for _ in range(8)])
    assert all(same(first, other) for other in others)
    assert same(first, fit(denoiser(), points, 40, batch_size=32).weights[40])
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_one_of_the_two(tmp_path):
    path, contents, done = tmp_path / "run.safetensors", [], threading.Event()
    for size in (10, 10_000):
        save_file({"x": torch.full((size,), size)}, tmp_path / "new", metadata={"size": str(size)})
        contents.append((tmp_path / "new").read_bytes())

    def replace():
        for i in itertools.count():
            (tmp_path / "new").write_bytes(contents[i % 2])
            os.replace(tmp_path / "new", path)
            if done.is_set():
                return

    path.write_bytes(contents[0])
    with ThreadPoolExecutor(1) as executor:
        writer = executor.submit(replace)
        try:
            for _ in range(1_000):
                with safe_open(path, "pt") as file:
                    header, x = file.metadata(), file.get_tensor("x")
                assert len(x) == x[0] == int(header["size"])
        finally:
            done.set()
    writer.result()


def test_a_checkpoint_goes_on_only_with_the_run_that_wrote_it(points, tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"n_steps": 10, "batch_size": 64, "checkpoint": path}
    fit(denoiser(), points, **options, context="scored by emd_128")
    fit(denoiser(), points, **options, context="scored by mmd2", weight_decay=0.3, log_normal=(0, 1))  # without effect
    moved = points.clone()
    moved[5, 1] += 1e-6
    for part, model, given, change in (
        ("seed", denoiser(), points, {"seed": 5}),
        ("batch_size", denoiser(), points, {"batch_size": 32}),
        ("learning_rate", denoiser(), points, {"learning_rate": 0.5}),
        ("weighting", denoiser(), points, {"weighting": "edm"}),
        ("keep_steps", denoiser(), points, {"keep_steps": [3]}),
        ("n_steps", denoiser(), points, {"n_steps": 5}),
        ("ema_decay", denoiser(), points, {"ema_decay": 0.9}),
        ("precision", denoiser(), points, {"precision": "bf16"}),
        ("optimiser", denoiser(), points, {"optimiser": "adamw"}),
        ("optimiser", denoiser(), points, {"optimiser": "muon"}),
        ("shared_targets", denoiser(), points, {"shared_targets": 8}),
        ("network", denoiser(hidden=(8,)), points, {}),
        ("network", denoiser(dropout=0.1), points, {}),
        ("initial weights", denoiser(seed=1), points, {}),
        ("schedule", denoiser(schedule=schedules.make("cosine", n_steps=50)), points, {}),
        ("schedule", denoiser(schedule=schedules.make("linear", n_steps=51)), points, {}),
        ("schedule", denoiser(schedule=schedules.make("linear", n_steps=50, lbeta=1.1e-5)), points, {}),
        ("schedule", denoiser(schedule=schedules.make("ve")), points, {}),
        ("parameterisation", Denoiser(denoiser().network, schedules.make("linear", n_steps=50), "v"), points, {}),
        ("points", denoiser(), moved, {}),
        ("points", denoiser(), points[:-1], {}),
    ):
        with pytest.raises(CheckpointError, match=rf"run\.safetensors belongs to another run: .*\b{part}\b.* differ"):
            fit(model, given, **{**options, **change})


def test_labels_and_the_code_of_a_network_are_part_of_a_checkpoint(points, tmp_path):
    options = {"n_steps": 3, "batch_size": 64, "checkpoint": tmp_path / "run.safetensors"}
    labels = torch.arange(len(points)) % 2

    def build():
        return build_seeded(lambda: Denoiser(mlp(n_classes=2), schedules.make("linear")), 0)

    fit(build(), points, labels=labels, **options)
    with pytest.raises(CheckpointError, match="labels differ"):
        fit(build(), points, labels=1 - labels, **options)

    class Doubled(type(build().network)):
        def forward(self, x, c, label=None):
            return 2 * super().forward(x, c, label)

    edited = build()
    Doubled.__name__ = type(edited.network).__name__  # a class of the same name, weights and options, edited
    edited.network.__class__ = Doubled
    with pytest.raises(CheckpointError, match="network differ"):
        fit(edited, points, labels=labels, **options)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "foreign", "empty", "stolen header"])
def test_a_damaged_or_foreign_file_is_named_and_changes_nothing(points, tmp_path, damage):
    path = tmp_path / "run.safetensors"
    fit(denoiser(), points, 10, batch_size=64, checkpoint=path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-10] ^= 1
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "foreign":
        save_file({"weights/a": torch.zeros(3)}, path)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        save_file({"weights/a": torch.zeros(3)}, path, metadata={"format": "pt", "identity": "x"})
    model = denoiser()
    start = {k: v.clone() for k, v in model.network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"run\.safetensors is (damaged|not a checkpoint)"):
        fit(model, points, 10, batch_size=64, checkpoint=path)
    assert same(start, model.network.state_dict())
    path.unlink()
    assert fit(model, points, 10, batch_size=64, checkpoint=path).steps == [10]


def test_a_checkpoint_folder_is_made(points, tmp_path):
    fit(denoiser(), points, 5, batch_size=64, checkpoint=str(tmp_path / "new" / "run.safetensors"))
    assert (tmp_path / "new" / "run.safetensors").exists()
    shutil.rmtree(tmp_path / "new")


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps = 0; train for at least 1 step"),
        ({"n_steps": -3}, "n_steps = -3"),
        ({"batch_size": 0}, "batch_size = 0; a step needs at least 1 point"),
        ({"learning_rate": math.nan}, "learning_rate = nan; choose a finite rate above 0"),
        ({"learning_rate": math.inf}, "learning_rate = inf"),
        ({"learning_rate": -1e-3}, "learning_rate = -0.001"),
        ({"learning_rate": 0}, "learning_rate = 0"),
        ({"warmup": -5}, "warmup = -5; choose 0 to n_steps = 5 steps"),
        ({"warmup": 6}, "warmup = 6; choose 0 to n_steps = 5 steps"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"weight_decay": math.nan}, "weight_decay = nan"),
        ({"grad_clip": 0}, "grad_clip = 0.0; choose a norm above 0, or leave it out"),
        ({"grad_clip": -1}, "grad_clip = -1"),
        ({"grad_clip": math.nan}, "grad_clip = nan"),
        ({"log_normal": (0, -1)}, r"log_normal = \(0.0, -1.0\); choose a finite mean and a standard deviation above 0"),
        ({"log_normal": (0, 0)}, "log_normal"),
        ({"log_normal": (math.nan, 1)}, "log_normal = "),
        ({"log_normal": (0, math.inf)}, "log_normal = "),
        ({"weighting": "snr"}, "unknown weighting 'snr'; choose one of: simple"),
        ({"optimiser": "sgd"}, "choose one of: adam, adamw, muon"),
        ({"shared_targets": 0}, "shared_targets = 0; choose a divisor of batch_size = 1024"),
        ({"shared_targets": 100}, "shared_targets = 100; choose a divisor of batch_size = 1024"),
        ({"decay": "linear"}, "choose one of: none, cosine, inverse sqrt"),
        ({"times": "beta"}, "choose one of: uniform, log-normal"),
        ({"device": "tpu"}, "choose one of: auto, cpu, cuda"),
        ({"precision": "fp16"}, "choose one of: fp32, bf16"),
        ({"keep_steps": [9]}, r"keep_steps \[9\] lie outside 1..5"),
        ({"keep_steps": [0]}, r"keep_steps \[0\] lie outside"),
        ({"ema_decay": 1.0}, "decay = 1.0; need 0 < decay < 1"),
        ({"ema_decay": math.nan}, "decay = nan"),
        ({"ema_decay": 0.0}, "decay = 0.0"),
        ({"ema_sigma_rel": 0.3}, "sigma_rel = 0.3"),
        ({"ema_sigma_rel": (0.1, -0.1)}, "sigma_rel = -0.1"),
        ({"ema_sigma_rel": (0.1, 0.1)}, "give each width once"),
        ({"ema_decay": 0.9, "ema_sigma_rel": 0.1}, "give one of the two"),
        ({"label_dropout": 1.0}, "label_dropout = 1.0; choose a probability"),
        ({"label_dropout": -0.1}, "label_dropout = -0.1"),
        ({"label_dropout": math.nan}, "label_dropout = nan"),
        ({"flip": [-1]}, "flip = "),
        ({"steps": 5}, "steps"),
        ({"batch_size": 3.5}, "batch_size"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0"),
    ],
)
def test_bad_options_are_named(points, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit(denoiser(), points, **{"n_steps": 5, **options})


def test_options_are_one_frozen_list(points):
    options = Options(n_steps=6, batch_size=32, ema_decay=0.5)
    with pytest.raises(AttributeError):
        options.n_steps = 7
    assert hash(options) == hash(Options(n_steps=6, batch_size=32, ema_decay=0.5))
    kept = fit(denoiser(), points, options=options)
    spelt = fit(denoiser(), points, 6, batch_size=32, ema_decay=0.5)
    assert same(kept.averages[6], spelt.averages[6])
    assert same(kept.weights[6], fit(denoiser(), points, 6, options=Options(batch_size=32)).weights[6])
    assert fit(denoiser(), points, 4, options=options).steps == [4]
    with pytest.raises(ValueError, match="n_steps = None; say for how many"):
        fit(denoiser(), points)
    for same_result in (
        {"weight_decay": 0.3},
        {"log_normal": (0, 1)},
        {"keep_steps": (6,)},
        {"shared_targets": 1},
    ):
        assert Options(n_steps=6, **same_result).effective() == Options(n_steps=6).effective()
    assert Options(optimiser="adamw", weight_decay=0.3).effective() != Options(optimiser="adamw").effective()
    assert Options(times="log-normal", log_normal=(0, 1)).effective() != Options(times="log-normal").effective()


def test_bad_data_are_named(points):
    bad = points.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="points hold 1 values"):
        fit(denoiser(), bad, 5)
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        fit(denoiser(), points[:0], 5)


def test_bad_labels_are_named(points):
    labels = torch.arange(len(points)) % 3
    conditional = Denoiser(mlp(n_classes=2), schedules.make("linear"))
    for model, given, options, message in (
        (conditional, labels, {}, r"labels span 0..2; need 0..1 for n_classes = 2"),
        (conditional, labels - 1, {}, r"labels span -1..1"),
        (conditional, labels[:-1], {}, r"labels have shape"),
        (conditional, labels % 2, {"shared_targets": 8}, r"shared_targets = 8 means over points of all classes"),
        (conditional, labels.float(), {}, "need one integer for each"),
        (conditional, None, {"label_dropout": 0.1}, "label_dropout = 0.1 needs labels"),
        (conditional, None, {"flip": [1]}, "needs labels"),
        (conditional, labels % 2, {"flip": [1]}, "mirrors pictures"),
        (denoiser(), labels, {}, "this network has no classes"),
        (denoiser(), labels, {"label_dropout": 0.1, "flip": [0]}, "this network has no classes"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, points, 5, labels=given, **options)


@pytest.mark.parametrize(
    ("n_steps", "learning_rate", "message"),
    [
        (2_000, 1e30, r"up to step \d+ of 2000.*learning_rate = 1e\+30.*helix, sweep 3"),
        (1, 1e39, r"not finite at step 1 of 1;.*learning_rate = 1e\+39.*helix, sweep 3"),
    ],
)
def test_training_that_diverges_stops_with_step_and_config(points, n_steps, learning_rate, message):
    with pytest.raises(NonFiniteLossError, match=message):
        fit(denoiser(), points, n_steps, batch_size=64, learning_rate=learning_rate, context="helix, sweep 3")


def test_progress_bar_is_text(points, capsys):
    fit(denoiser(), points, 10, batch_size=64, progress=True)
    assert "training" in capsys.readouterr().err


def test_loss_falls_to_the_exact_denoisers_and_never_below(points, generator):
    from ddpmlab.denoisers import ExactDenoiser

    law = data.make("helix").standardised()
    trained, untrained = denoiser((64, 128, 128)), denoiser()
    fit(trained, points, 1_500, batch_size=512)
    exact = ExactDenoiser(law, trained.schedule)
    x0 = law.sample(20_000, 9)
    for t in (3, 10, 25, 50):
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        alpha, sigma = trained.schedule(t)
        x_t = alpha * x0 + sigma * noise
        best = (exact(x_t, t) - x0).square().sum(1)
        for candidate in (trained, untrained):
            with torch.no_grad():
                guess = candidate(x_t.float(), t).double()
            excess = (guess - x0).square().sum(1) - best
            standard_error = float(excess.std()) / len(x0) ** 0.5
            assert excess.mean() > -4 * standard_error
            # the excess is the distance to the exact denoiser: Pythagoras
            gap = (guess - exact(x_t, t)).square().sum(1)
            assert float(excess.mean()) == pytest.approx(
                float(gap.mean()), abs=4 * float((excess - gap).std()) / len(x0) ** 0.5
            )
            assert candidate is trained or excess.mean() > 10 * standard_error
