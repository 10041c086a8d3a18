import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import make_moons

from ddpmlab import data
from ddpmlab.data import laws, quadrature

POINT_CLOUDS = ("sin_5_5", "helix", "two_moons")
SIZES = {"sin_5_5": (15_686, 7_781), "helix": (10_000, 5_000), "two_moons": (50_000, 5_000)}
TESTS = {"gaussian": {"mean": [0.5, -1.0, 2.0], "scale": [0.5, 1.0, 2.0]}, "gaussian_mixture": {}}


def standardised(name):
    return data.make(name, **TESTS.get(name, {})).standardised()


@pytest.mark.parametrize("name", POINT_CLOUDS)
def test_splits_have_the_stated_sizes_and_are_standardised_by_the_training_set(name):
    law = standardised(name)
    train, test = law.split()[:2]
    assert (len(train), len(test)) == SIZES[name]
    torch.testing.assert_close(train.mean(0), torch.zeros(law.dim, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(law.dim, dtype=torch.float64))
    assert torch.equal(train, law.split().train)
    assert not torch.isin(train[:, 0], test[:, 0]).any()


def test_definitions():
    x = data.make("sin_5_5").sample(20_000, 0)
    r = torch.hypot(x[:, 0], x[:, 1])
    assert stats.kstest(r.numpy() ** 2, "uniform").pvalue > 1e-3
    noise = x[:, 2] - (1 - r) * torch.sin(5 * x[:, 0]) * torch.cos(5 * x[:, 1])
    assert stats.kstest(noise.numpy() / 0.01, "norm").pvalue > 1e-3
    x = data.make("helix").sample(20_000, 0)
    assert stats.kstest((x[:, 2] + 2).numpy(), stats.uniform(0, 1).cdf).statistic < 0.03
    radius = torch.hypot(x[:, 0], x[:, 1])
    assert radius.mean() == pytest.approx(1, abs=3e-3)
    ours, theirs = data.make("two_moons").sample(4_000, 0).numpy(), make_moons(4_000, noise=0.05, random_state=1)[0]
    for direction in np.random.default_rng(0).normal(size=(5, 2)):
        assert stats.ks_2samp(ours @ direction, theirs @ direction).pvalue > 1e-3


@pytest.mark.parametrize("name", [*POINT_CLOUDS, *TESTS])
@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_exact_denoiser_is_the_monte_carlo_posterior_mean(name, sigma, generator):
    law, alpha = standardised(name), 0.8
    x0 = law.sample(12, 5)
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    log_q, exact = law.marginal(x_t, alpha, sigma)
    draws = law.sample(400_000, 6)
    for point, estimate, log_density in zip(x_t, exact, log_q, strict=True):
        log_weight = -0.5 * ((point - alpha * draws) / sigma).square().sum(1)
        density = log_weight.exp() / (2 * math.pi * sigma**2) ** (law.dim / 2)
        assert density.mean() == pytest.approx(float(log_density.exp()), abs=5 * float(density.std()) / 400_000**0.5)
        weight = log_weight.softmax(0)[:, None]
        mean = (weight * draws).sum(0)
        error = (weight.square() * (draws - mean).square()).sum(0).sqrt()  # of the ratio estimator
        assert ((mean - estimate).abs() <= 5 * error + 1e-9).all()


def brute_force(law, x_t, sigma, half_width, n):
    """Posterior mean over a Cartesian grid of disk cells: nothing in common with the polar rules of the package."""
    own = law.scale * x_t + law.mean
    scales = sigma * law.scale
    axes = [torch.linspace(float(c - half_width), float(c + half_width), n, dtype=torch.float64) for c in own[:2]]
    x, y = torch.meshgrid(*axes, indexing="ij")
    r = torch.hypot(x, y)
    z = (1 - r) * torch.sin(5 * x) * torch.cos(5 * y)
    height = 0.01**2 + scales[2] ** 2
    log = -0.5 * (((own[0] - x) / scales[0]) ** 2 + ((own[1] - y) / scales[1]) ** 2 + (own[2] - z) ** 2 / height)
    weight = torch.where(r <= 1, log, -math.inf).flatten().softmax(0)
    mean = torch.stack([(weight * f.flatten()).sum() for f in (x, y, z)])
    mean[2] = (scales[2] ** 2 * mean[2] + 0.01**2 * own[2]) / height
    return (mean - law.mean) / law.scale


@pytest.mark.parametrize(("sigma", "half_width", "n"), [(0.01, 0.04, 1_000), (0.05, 0.2, 1_500), (0.4, 2.2, 1_500)])
def test_surface_denoiser_equals_brute_force_integration(sigma, half_width, n, generator):
    law = standardised("sin_5_5")
    radius = (law.sample(4_000, 3) * law.scale + law.mean)[:, :2].norm(dim=1)
    x0 = law.sample(4_000, 3)[(radius > 0.3) & (radius < 0.9)][:6]  # a Cartesian grid is poor at the rim
    x_t = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    exact = law.denoise(x_t, 1.0, sigma)
    tolerance = 1e-4 if sigma < 0.3 else 2e-3  # windows that reach the rim pay for its staircase
    for point, mean in zip(x_t, exact, strict=True):
        assert (brute_force(law, point, sigma, half_width, n) - mean).norm() <= tolerance * max(1, mean.norm())


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.2, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("name", POINT_CLOUDS)
def test_quadrature_has_converged(name, sigma, generator, monkeypatch):
    law = standardised(name)
    x0 = law.sample(100, 1)
    x_t = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    log_q, mean = law.marginal(x_t, 1.0, sigma)
    if name == "sin_5_5":
        monkeypatch.setattr(quadrature.Disk, "REFINE", 2.0)
        monkeypatch.setattr(quadrature.Disk, "REACH", 8.5)
        monkeypatch.setattr(quadrature.Disk, "WHOLE", 0.45)
    else:
        panels = laws._Curve._n_panels
        monkeypatch.setattr(laws._Curve, "_n_panels", lambda *a: 2 * panels(*a) + 1)
    finer_q, finer = law.marginal(x_t, 1.0, sigma)
    assert ((mean - finer).norm(dim=1) <= 1e-4 * finer.norm(dim=1)).all()
    torch.testing.assert_close(log_q, finer_q, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", [*POINT_CLOUDS, *TESTS])
def test_limits_of_the_noise(name):
    law = standardised(name)
    x = law.sample(50, 0)
    torch.testing.assert_close(law.denoise(2 * x, 2.0, 0.0), x)
    assert (law.denoise(x, 1.0, 1e-4) - x).abs().max() < 1e-3
    far = law.denoise(1e4 * torch.randn(20, law.dim, dtype=torch.float64), 1.0, 1e4)
    assert far.abs().max() < 0.1  # standardised: the prior mean is about 0


@pytest.mark.parametrize("name", [*POINT_CLOUDS, *TESTS])
def test_noise_levels_per_point_equal_one_call_per_level(name):
    law = standardised(name)
    x = law.sample(30, 0)
    alpha = torch.linspace(0.5, 1, 30, dtype=torch.float64)[:, None]
    sigma = torch.logspace(-1.5, 1, 30, dtype=torch.float64).flip(0)[:, None]
    together = law.denoise(x, alpha, sigma)
    apart = torch.cat([law.denoise(x[i : i + 1], alpha[i], sigma[i]) for i in range(30)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-6)


def test_densities_integrate_to_one_and_entropies_agree():
    moons = data.make("two_moons")
    axis = torch.linspace(-1.5, 2.5, 900, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_p = moons.log_prob(grid)
    cell = float(axis[1] - axis[0]) ** 2
    assert float(log_p.exp().sum() * cell) == pytest.approx(1, abs=1e-5)
    assert moons.entropy() == pytest.approx(-float((log_p.exp() * log_p).nan_to_num().sum() * cell), abs=1e-3)
    # closed form: uniform disk, Gaussian height
    surface = math.log(math.pi) + 0.5 * math.log(2 * math.pi * math.e * 0.01**2)
    assert data.make("sin_5_5").entropy() == pytest.approx(surface, abs=1e-3)
    gaussian = data.make("gaussian", mean=[0.0, 1.0], scale=[1.0, 2.0])
    assert gaussian.entropy() == pytest.approx(math.log(2 * math.pi * math.e) + math.log(2), abs=1e-3)
    helix = data.make("helix")  # a thin tube: length times a two-dimensional Gaussian
    assert helix.entropy() == pytest.approx(math.log(math.hypot(14, 1) * 2 * math.pi * math.e * 0.03**2), abs=0.01)
    for name in POINT_CLOUDS:
        law = data.make(name)
        monte_carlo = -law.log_prob(law.sample(100_000, 1))
        assert law.entropy() == pytest.approx(float(monte_carlo.mean()), abs=5 * float(monte_carlo.std()) / 316)
        assert law.standardised().entropy() == pytest.approx(
            law.entropy() - float(law.standardised().scale.log().sum())
        )


@given(
    mean=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    scale=st.floats(0.1, 3),
    alpha=st.floats(0.01, 1),
    sigma=st.floats(0.01, 100),
)
def test_gaussian_is_the_textbook_posterior(mean, scale, alpha, sigma):
    law = data.make("gaussian", mean=mean, scale=scale)
    x = law.sample(5, 0) * alpha + sigma
    m = torch.tensor(mean, dtype=torch.float64)
    expected = m + alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * (x - alpha * m)
    torch.testing.assert_close(law.denoise(x, alpha, sigma), expected, atol=1e-10, rtol=1e-8)


def test_ten_thousand_points_need_under_a_gigabyte():
    import subprocess
    import sys

    code = (
        "import resource, torch; from ddpmlab import data\n"
        "law = data.make('sin_5_5').standardised(); x = law.sample(10_000, 0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "law.denoise(x, 1.0, 1.0); law.denoise(x[:2_000], 1.0, 0.01)\n"
        "law = data.make('helix').standardised(); law.denoise(law.sample(10_000, 0), 1.0, 0.01)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 1e9


def test_two_moons_distance_is_the_distance_to_a_fine_polyline():
    law = data.make("two_moons")
    x = law.sample(500, 0) + 0.3 * torch.linspace(-1, 1, 1_000, dtype=torch.float64).reshape(500, 2)
    arcs = law._arcs(torch.linspace(0, 1, 20_001, dtype=torch.float64)).reshape(-1, 2)
    torch.testing.assert_close(law.distance_to_arcs(x), torch.cdist(x, arcs).amin(1), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda law: law.sample(0, 0), "cannot draw 0 points"),
        (lambda law: law.denoise(torch.zeros(3, 2), 1.0, 1.0), r"shape \(3, 2\); need \(n, 3\)"),
        (lambda law: law.denoise(torch.zeros(0, 3), 1.0, 1.0), "empty"),
        (lambda law: law.denoise(torch.full((2, 3), math.nan), 1.0, 1.0), "2 points with NaN"),
        (lambda law: law.denoise(torch.zeros(2, 3), 0.0, 1.0), "alpha > 0"),
        (lambda law: law.denoise(torch.zeros(2, 3), 1.0, -1.0), "at least 0"),
        (lambda law: data.make("spiral"), "unknown dataset 'spiral'; choose one of: fashion_mnist"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(data.make("helix"))
