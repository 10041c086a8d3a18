"""Tests for paths between points, on Gaussian laws whose probability flow is known in closed form."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from ddpmlab import data, interpolation, networks, schedules
from ddpmlab.denoisers import Denoiser, Denoising, ExactDenoiser
from ddpmlab.interpolation import climb, encode

MEAN, SCALE = (0.5, -1.0, 0.0), (0.3, 1.0, 2.0)
SCHEDULES = {
    "ve": {"sigma_max": 20.0, "sigma_min": 0.002},
    "vp_cosine": {"terminal_snr": 20.0**-2},
    "linear": {"n_steps": 1000, "lbeta": 1e-4, "ubeta": 2e-2},
}


def gaussian(schedule="ve", mean=MEAN, scale=SCALE) -> ExactDenoiser:
    return ExactDenoiser(data.make("gaussian", mean=mean, scale=scale), schedules.make(schedule, **SCHEDULES[schedule]))


def points(n=6, seed=0, dim=3):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flowed(x0, low, high, mean=MEAN, scale=SCALE):
    """Closed form of the probability flow in x / alpha: deviations grow as the marginal's standard deviation."""
    mean, variance = torch.tensor(mean, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64) ** 2
    return mean + (x0 - mean) * ((variance + high**2) / (variance + low**2)).sqrt()


# -- Up and down -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_encoding_converges_to_the_closed_form_at_the_solvers_order(schedule, sampler, order):
    denoiser, x0, low, high = gaussian(schedule), points(), 0.1, 4.0
    expected, errors = flowed(x0, low, high), []
    for n_steps in (80, 160):
        times = climb(denoiser.schedule, high, n_steps, low)
        alpha = float(denoiser.schedule(times[-1])[0])
        errors.append(float((encode(denoiser, x0, times, sampler=sampler) / alpha - expected).abs().max()))
    assert errors[1] < (0.3 if order == 1 else 0.03)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_climb_visits_the_levels_of_edm(schedule):
    schedule = schedules.make(schedule, **SCHEDULES[schedule])
    times = climb(schedule, 4.0, 5, low=0.1)
    levels = [float(schedule.noise_level(t)) for t in times]
    expected = [(0.1 ** (1 / 7) + i / 5 * (4 ** (1 / 7) - 0.1 ** (1 / 7))) ** 7 for i in range(6)]
    np.testing.assert_allclose(levels, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 0}, "n_steps = 0"),
        ({"low": 5.0}, "from 5 to 4"),
        ({"high": 50.0}, "depth = 50; this schedule ends at the noise level 20"),
    ],
)
def test_climb_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        climb(gaussian().schedule, **{"high": 4.0, "n_steps": 5} | options)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_round_trip_error_falls_at_the_solvers_order(sampler, order):
    # the last step to clean data jumps over `low`: take a law that is wide against it
    denoiser, counts = gaussian(scale=(5.0, 6.0, 7.0)), (20, 40)
    rows = interpolation.round_trip_error(denoiser, points(), 15.0, counts, sampler=sampler)
    assert [row["nfe"] for row in rows] == [2 * n * (2 if sampler == "heun" else 1) + 1 for n in counts]
    assert np.log2(rows[0]["error"] / rows[1]["error"]) > order - 0.45


# -- Mixes -------------------------------------------------------------------------------------------------------------


def test_spherical_mix_keeps_norms_and_ends():
    a, b = points(4, 1), points(4, 2)
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (a, b))
    for w in (0.0, 0.3, 1.0):
        mixed = interpolation.slerp(a, b, torch.full((4,), w))
        torch.testing.assert_close(mixed.norm(dim=1), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close((mixed * a).sum(1).acos(), w * (a * b).sum(1).acos(), atol=1e-6, rtol=0)
    x, y = torch.eye(2, dtype=torch.float64)[:1], torch.eye(2, dtype=torch.float64)[1:]
    torch.testing.assert_close(interpolation.slerp(x, y, torch.tensor([0.5])), (x + y) / 2**0.5)
    torch.testing.assert_close(interpolation.slerp(x, 2 * x, torch.tensor([0.5])), 1.5 * x)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.3, 0.9), (2.0, -1.0)])
def test_combination_keeps_mean_and_variance(weights):
    """Exactly: of latents mu + s u_i the mean must be mu, and the coefficients of the u_i have norm 1."""
    m, mean = len(weights), torch.tensor([2.0, -1.0], dtype=torch.float64)
    units = torch.eye(m, dtype=torch.float64)[:, :, None]  # latent i deviates in "world" i alone
    worlds = mean + units * 3.0  # (m, n = m worlds, 2)
    combined = interpolation.combine(worlds, torch.tensor(weights), mean)
    coefficients = (combined - mean) / 3.0
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(coefficients[:, 0], expected / expected.norm())
    assert float(coefficients[:, 0].square().sum()) == pytest.approx(1)


def test_combination_refuses():
    with pytest.raises(ValueError, match=r"weights have shape \(3,\); need \(2,\)"):
        interpolation.combine(torch.zeros(2, 4, 3), torch.ones(3))
    with pytest.raises(ValueError, match="nothing to combine"):
        interpolation.combine(torch.zeros(2, 4, 3), torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shared": True}, 1.0),
        ({"shared": False}, 1.0),
        ({"shared": False, "mix": "linear"}, (0.3**2 + 0.7**2) ** 0.5),
    ],
)
def test_sd_of_the_noise_in_a_mix(options, expected):
    schedule, n = gaussian("vp_cosine").schedule, 20_000
    a, b = torch.full((n, 1), 3.0, dtype=torch.float64), torch.full((n, 1), -1.0, dtype=torch.float64)
    mixed = interpolation.make("noise", depth=2.0, **options).mixed(schedule, a, b, torch.tensor([0.3]))
    alpha, sigma = (float(s) for s in schedule(schedule.time_of(2.0)))
    assert float(mixed.mean()) == pytest.approx(alpha * (0.7 * 3.0 - 0.3), abs=0.03)
    assert float(mixed.std()) == pytest.approx(sigma * expected, rel=0.02)


# -- Ways --------------------------------------------------------------------------------------------------------------

WEIGHTS = torch.linspace(0, 1, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("way", "within"),
    [
        (interpolation.make("pixels"), 0),
        (interpolation.make("flow", n_steps=80, depth=8.0), 0.06),
        (interpolation.make("flow", n_steps=80, depth=8.0, mix="gaussian"), 0.06),
        (interpolation.make("flow", n_steps=80, depth=8.0, mix="linear", batch_size=7), 0.06),
        (interpolation.make("noise", n_steps=40, depth=0.05), 0.15),  # three sd of the noise
    ],
)
def test_ends_are_reproduced(way, within):
    a, b = points(4, 1), points(4, 2)
    frames = way(gaussian(), a, b, WEIGHTS)
    assert frames.shape == (4, 5, 3)
    for frame, end in ((frames[:, 0], a), (frames[:, -1], b)):
        torch.testing.assert_close(frame, end, atol=within, rtol=0)


def test_flow_with_linear_mix_is_the_average_for_a_gaussian():
    """The flow of a Gaussian is linear, so that encoding, averaging and decoding is averaging."""
    a, b = points(4, 1), points(4, 2)
    frames = interpolation.make("flow", n_steps=80, depth=8.0, mix="linear")(gaussian(), a, b, WEIGHTS)
    torch.testing.assert_close(frames[:, 2], (a + b) / 2, atol=0.03, rtol=0)


def test_forward_noise_replaces_the_first_steps():
    """Latents of one point under the forward start have the marginal law at the depth given x0, in closed form."""
    denoiser = gaussian()
    x0 = torch.tensor([[0.7, -0.4, 1.0]], dtype=torch.float64)
    way = interpolation.make("flow", n_steps=120, depth=6.0, forward=0.5)
    latents = way.latents(denoiser, x0.expand(4000, 3).clone())
    growth = ((torch.tensor(SCALE, dtype=torch.float64) ** 2 + 36) / (torch.tensor(SCALE) ** 2 + 0.25)).sqrt()
    torch.testing.assert_close(latents.mean(0), flowed(x0, 0.5, 6.0)[0], atol=0.3, rtol=0)
    torch.testing.assert_close(latents.std(0), 0.5 * growth, rtol=0.05, atol=0)
    again = way.latents(denoiser, x0)
    torch.testing.assert_close(again, way.latents(denoiser, x0), rtol=0, atol=0)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steered_denoiser_is_the_conditional_mean(schedule, strength):
    """Exact for Gaussians: E[x0 | x_t, r(x0) = wanted + noise] of a linear reading, by the joint covariance."""
    denoiser, slope, wanted, tolerance = gaussian(schedule), torch.tensor([1.0, -2.0, 0.5]).double(), 1.7, 0.3
    steered = interpolation.Steered(denoiser, lambda x: x @ slope, wanted, tolerance, strength)
    t, x_t = denoiser.schedule.time_of(1.5), points()
    alpha, sigma = (float(s) for s in denoiser.schedule(t))
    mean, prior = torch.tensor(MEAN).double(), torch.diag(torch.tensor(SCALE).double() ** 2)
    # observations y = H x0 + noise: x_t and, if steered, the reading
    rows = [alpha * torch.eye(3).double()] + ([slope[None]] if strength else [])
    noise = torch.cat([torch.full((3,), sigma**2), torch.full((len(rows) - 1,), tolerance**2)]).double()
    observe, seen = torch.cat(rows), torch.cat([x_t, torch.full((len(x_t), 1), wanted).double()], 1)[:, : len(noise)]
    gain = prior @ observe.T @ torch.linalg.inv(observe @ prior @ observe.T + torch.diag(noise))
    expected = mean + (seen - observe @ mean) @ gain.T
    torch.testing.assert_close(steered(x_t, t), expected, rtol=1e-6, atol=1e-6)


def test_nothing_is_steered_below_a_level():
    denoiser = gaussian()
    steered = interpolation.Steered(denoiser, lambda x: x[:, 0], 3.0, until=1.0)
    for level, same in ((0.9, True), (1.1, False)):
        t = denoiser.schedule.time_of(level)
        assert torch.equal(steered(points(), t), denoiser(points(), t)) == same


def test_guided_path_reads_what_is_wanted_and_keeps_the_rest():
    denoiser, a, b = gaussian(), points(4, 1), points(4, 2)

    def reading(x):
        return x[:, 1]

    way = interpolation.make("guided", reading=reading, n_steps=60, depth=8.0, tolerance=0.01)
    frames = way(denoiser, a, b, WEIGHTS)
    wanted = way.wanted(a, b, WEIGHTS).reshape(4, 5)
    torch.testing.assert_close(wanted, a[:, 1:2] + WEIGHTS * (b - a)[:, 1:2])
    torch.testing.assert_close(frames[..., 1], wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(frames[..., 0], a[:, :1].expand(4, 5), atol=0.05, rtol=0)  # independent of the reading


def test_searched_path_goes_at_the_pace_of_the_reading():
    """Of a path that is a square in its weight, the search takes the root."""

    class Square(interpolation.Way):
        def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
            return first[:, None] + (weights**2)[None, :, None] * (last - first)[:, None]

    a, b = points(4, 1), points(4, 2)
    way = interpolation.make("searched", way=Square(), reading=lambda x: x[:, 0], n_dense=2001)
    torch.testing.assert_close(way(None, a, b, WEIGHTS), interpolation.Pixels()(None, a, b, WEIGHTS), atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match="a search needs a way"):
        interpolation.make("searched")


class Spoken(nn.Module):
    """A network that answers with its class embedding, plus what is added in its bottleneck."""

    def __init__(self):
        super().__init__()
        self.shape, self.n_classes = (2,), 2
        self.classes = nn.Embedding(3, 2)
        nn.init.orthogonal_(self.classes.weight)

    def bottleneck(self, x, c, label=None):
        return x.mean(1, keepdim=True)

    def forward(self, x, c, label=None, shift=None):
        said = self.classes(torch.full((len(x),), 2) if label is None else label)
        return said if shift is None else said + shift


def spoken():
    return Denoiser(Spoken(), schedules.make("ve", sigma_max=20.0), "x0")


def test_class_embeddings_are_mixed_row_by_row():
    denoiser = spoken()
    rows, a, b = denoiser.network.classes.weight, torch.tensor([0, 1]), torch.tensor([1, 0])
    frames = interpolation.make("labels", n_steps=3, batch_size=4)(
        denoiser, torch.zeros(2, 2), torch.zeros(2, 2), WEIGHTS.float(), (a, b)
    )
    for pair, (k, w) in itertools.product(range(2), enumerate(WEIGHTS.tolist())):
        torch.testing.assert_close(frames[pair, k], (1 - w) * rows[a[pair]] + w * rows[b[pair]])
    # nothing is left behind
    torch.testing.assert_close(denoiser(torch.zeros(1, 2), 0.5, torch.tensor([0])), rows[:1])


def test_labels_need_labels_and_an_embedding():
    with pytest.raises(ValueError, match="needs labels"):
        interpolation.make("labels")(spoken(), torch.zeros(2, 2), torch.zeros(2, 2), WEIGHTS)
    with pytest.raises(ValueError, match="no class embedding"):
        interpolation.make("labels")(gaussian(), points(2), points(2, 1), WEIGHTS, (torch.zeros(2), torch.ones(2)))


def test_direction_is_the_mean_difference_of_the_groups():
    """The bottleneck here is the mean of x / sqrt(1 + sigma^2): its mean difference is that of the groups, shrunk."""
    denoiser = spoken()
    groups = torch.zeros(3, 2), torch.full((3, 2), 4.0)
    way = interpolation.make("direction", n_steps=3, groups=groups, scale=2.0)
    frames = way(denoiser, torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0.0, 0.5, 1.0]))
    free = denoiser.network.classes.weight[2]
    shift = 2.0 * 4.0 / (1 + interpolation.LOW**2) ** 0.5  # at the last time, where the answer is given
    for k, w in enumerate((0.0, 0.5, 1.0)):
        torch.testing.assert_close(frames[0, k], free + w * shift)
    with pytest.raises(TypeError, match="no network with a bottleneck"):
        way(gaussian(), points(2), points(2, 1), WEIGHTS)


def test_options_are_validated():
    for name, options, words in (
        ("noise", {"mix": "square"}, "unknown mix 'square'; choose one of: preserve, linear"),
        ("flow", {"mix": "cubic"}, "unknown mix 'cubic'"),
        ("flow", {"forward": 9.0}, "forward = 9; need a noise level from 0 to below the depth 5"),
        ("guided", {}, "guidance needs a reading"),
        ("pixels", {"batch_size": 0}, "batch_size = 0"),
    ):
        with pytest.raises(ValueError, match=words):
            interpolation.make(name, **options)
    with pytest.raises(ValueError, match="unknown way to interpolate 'jump'"):
        interpolation.make("jump")


def test_evaluations_are_counted():
    denoiser, a, b = gaussian(), points(4, 1), points(4, 2)
    assert interpolation.walk(denoiser, interpolation.make("pixels"), a, b, WEIGHTS)[1] == 0
    # 10 steps up for either end, 11 down for each of 5 frames
    assert interpolation.walk(denoiser, interpolation.make("flow", n_steps=10), a, b, WEIGHTS)[1] == 2 * 10 + 5 * 11


# -- Measures ----------------------------------------------------------------------------------------------------------


def garment(length, brightness=0.6, sleeve=1.0, other=None):
    picture = torch.zeros(1, 28, 28)
    picture[:, 2:26, 8:20] = brightness
    for columns, side in ((slice(3, 7), length), (slice(21, 25), length if other is None else other)):
        picture[:, 2 : 2 + round(24 * side), columns] = brightness * sleeve
    return picture


def measured(frames, **options):
    first, last, weights = garment(0.5)[None], garment(1.0)[None], torch.linspace(0, 1, 5)
    rows = interpolation.measure_paths(torch.stack(frames)[None], first, last, weights, (0.8, 1.2), **options)
    return {row["metric"]: row["value"] for row in rows}


def test_measures_of_a_perfect_path():
    frames = [garment(0.5 + 0.125 * k) for k in range(5)]
    found = measured(frames, real=torch.stack([frames[2] + 0.1, frames[0]]).clamp(0, 1))
    assert found["spearman"] == pytest.approx(1)
    assert (found["monotone"], found["hit"], found["ghost_inside"], found["answer"]) == (1, 1, 1, 1)
    assert found["reading"] == pytest.approx(0.75)
    assert found["ghost"] == pytest.approx(1)
    assert (found["error_first"], found["error_last"], found["identity"]) == (0, 0, 0)
    assert found["nearest"] == pytest.approx(0.1, rel=1e-4)
    assert found["hit_even"] == 1
    uneven = measured([*frames[:2], garment(0.5, other=1.0), *frames[3:]])  # three quarters on average alone
    assert (uneven["hit"], uneven["hit_even"], uneven["answer"]) == (1, 0, 0)


def test_measures_of_an_average_and_of_a_path_that_falls():
    average = [torch.lerp(garment(0.5), garment(1.0), k / 4) for k in range(5)]
    found = measured(average)
    assert (found["hit"], found["hit_even"], found["answer"]) == (0, 0, 0)  # half or full, never between
    assert found["ghost"] == pytest.approx((3 * 1 + 6 * 0.5 + 3 * 0.5) / 12, abs=0.2)
    falling = [garment(length) for length in (0.5, 0.75, 0.6, 0.9, 1.0)]
    assert measured(falling)["monotone"] == 0
    still = measured([garment(0.5)] * 5)
    assert (still["monotone"], still["spearman"]) == (0, 0)


def test_frames_must_fit():
    with pytest.raises(ValueError, match="frames have shape"):
        measured([garment(0.5)] * 4)


def test_share_interval_is_wilsons():
    share, low, high = interpolation.share_interval([1] * 8 + [0] * 2)
    assert (share, low, high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert interpolation.share_interval([1] * 10)[1] < 1


class Tops(data.dataset.Dataset):
    """A few drawn tops, half of them half-sleeved, in place of Fashion-MNIST."""

    name, shape, n_train, n_test = "tops", (1, 28, 28), 8, 8

    def __init__(self, mean=0.0):
        self.mean = mean

    def split(self):
        drawn = [garment(length, b) for length in (0.4, 1.0) for b in (0.4, 0.6, 0.8, 1.0)]
        labels = torch.tensor([0] * 4 + [2] * 4)
        return data.dataset.Split(*[torch.stack(drawn) - self.mean] * 2, labels, labels)

    def standardised(self):
        return Tops(0.3)

    def to_own_units(self, x):
        return x + self.mean


def test_comparison_of_ways_over_the_same_pairs():
    ways = {"average": interpolation.make("pixels")}
    found = interpolation.compare(gaussian(), Tops(), ways, n_pairs=3, n_points=5)
    torch.testing.assert_close(found.frames["average"][:, 0], found.first)
    torch.testing.assert_close(found.frames["average"][:, -1], found.last)
    assert found.values("average", "monotone").tolist() == [1, 1, 1]
    assert found.values("average", "hit").tolist() == [0, 0, 0]
    summary = {row["metric"]: row for row in interpolation.summarise(found.rows)}
    assert summary["hit"]["value"] == 0
    assert all(0 < summary[share]["high"] < 1 for share in ("hit", "hit_even"))
    assert summary["error_first"]["value"] == pytest.approx(0, abs=1e-6)
    assert (summary["reading"]["n"], summary["reading"]["nfe"]) == (3, 0)


def test_frames_are_remembered(tmp_path):
    from ddpmlab.lab import Store
    from ddpmlab.lab.paths import remembering

    calls = []

    class Counting(interpolation.Pixels):
        def __call__(self, *arguments):
            calls.append(1)
            return super().__call__(*arguments)

    def run(**settings):
        remember = remembering("untrained", Store(tmp_path), **settings)
        options = {"n_pairs": 3, "n_points": 5, "remember": remember}
        return interpolation.compare(gaussian(), Tops(), {"average": Counting()}, **options)

    first, again = run(n_pairs=3), run(n_pairs=3)
    assert len(calls) == 1
    assert first.rows == again.rows
    run(n_pairs=3, depth=2.0)  # another setting, other frames
    assert len(calls) == 2


def test_pruning_keeps_what_present_code_can_reach(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from ddpmlab.cli import main
    from ddpmlab.lab import Experiment, Store, Training, train
    from ddpmlab.lab.paths import remembering

    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path))
    remembering("untrained", n_pairs=3)("average", lambda: (torch.zeros(2), 0.0))
    train(Experiment("helix", network={"name": "mlp", "hidden": [4]}, training=Training(n_steps=2, batch_size=8)))
    store = Store(tmp_path)
    store.put("train", "1" * 24, {"made": ["train", {"dataset": "fashion_mnist"}, {}]})  # without the data: who knows
    monkeypatch.setattr("ddpmlab.data.fashion_mnist.available", lambda: False)
    kept = {(kind, key) for kind, key, _ in store.entries()}
    store.put("train", "0" * 24, {"made": ["train", {"dataset": "of another time"}, {}]})
    told = CliRunner().invoke(main, ["cache", "--prune"])
    assert told.exit_code == 0
    assert "1 entries" in told.output
    assert {(kind, key) for kind, key, _ in store.entries()} == kept


def test_summary_leaves_out_what_is_no_number():
    rows = [{"way": "a", "metric": "ghost", "value": value} for value in (1.0, float("nan"), 3.0)]
    (found,) = interpolation.summarise(rows)
    assert (found["n"], found["value"]) == (2, 2.0)
    assert found["high"] - found["value"] == pytest.approx(12.706, rel=1e-3)  # t of 1 degree of freedom


def test_pairs_match_torsos_and_use_no_picture_twice():
    brightness = torch.linspace(0.3, 1.0, 8)
    short = [garment(0.4, float(b)) for b in brightness]
    full = [garment(1.0, float(b)) for b in brightness.flip(0)]
    pictures, labels = torch.stack(short + full), torch.tensor([0] * 8 + [2] * 8)
    pairs = interpolation.draw_pairs(pictures, labels, n=5, seed=3)
    assert len(set(pairs.first.tolist())) == len(set(pairs.last.tolist())) == 5
    assert (pairs.last == 15 - pairs.first).all()
    assert not torch.equal(pairs.first, interpolation.draw_pairs(pictures, labels, n=5, seed=4).first)
    with pytest.raises(ValueError, match="n = 9; there are 8 half-sleeved and 8 full-sleeved"):
        interpolation.draw_pairs(pictures, labels, n=9)


def test_every_way_runs_on_a_u_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.make("unet", shape=(1, 28, 28), widths=(8, 16), n_blocks=1, n_classes=10)
    denoiser: Denoising = Denoiser(network, schedules.make("ve"), "edm")
    a, b = (torch.stack([garment(length)] * 2) for length in (0.4, 1.0))
    labels = torch.tensor([0, 0]), torch.tensor([2, 2])
    weights = torch.linspace(0, 1, 3)
    for name, way in interpolation.sleeve_ways(lambda x: x.mean((1, 2, 3)), n_steps=2).items():
        frames, nfe = interpolation.walk(denoiser, way, a, b, weights, labels)
        assert frames.shape == (2, 3, 1, 28, 28), name
        assert torch.isfinite(frames).all(), name
        assert (nfe > 0) == (name != "pixel average"), name
        rows = interpolation.measure_paths(frames, a, b, weights, (0.5, 1.5), way=name, nfe=nfe)
        assert {row["way"] for row in rows} == {name}
