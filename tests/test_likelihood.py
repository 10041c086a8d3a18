import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ddpmlab import data, lab, networks, samplers, schedules
from ddpmlab.denoisers import Denoiser, Denoising, ExactDenoiser
from ddpmlab.metrics.likelihood import Estimate, Truth, evaluation_times, log_likelihood, nll_gap, prior_kl
from ddpmlab.training import build_seeded, fit

VE = schedules.make("ve", sigma_min=0.002, sigma_max=50.0)


@pytest.mark.parametrize(("name", "n"), [("two_moons", 300), ("helix", 300), ("sin_5_5", 50)])
def test_the_exact_flow_has_the_laws_density(name, n, generator):
    law = data.make(name).standardised()
    clean = law.sample(n, 3)
    x = clean + 0.002 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    found = log_likelihood(ExactDenoiser(law, VE), torch.cat([x, clean]))
    # an identity: the density at the first noise level, point by point
    assert (found[:n] - law.marginal(x, 1.0, 0.002)[0]).abs().mean() < 1e-2
    if name != "sin_5_5":  # its density ends at the rim and has no noise in x and y: only the noised law is smooth
        assert abs(float((found[n:] - law.log_prob(clean)).mean())) < 1e-2
    else:
        inside = ((clean * law.scale + law.mean)[:, :2].norm(dim=1) < 0.97).nonzero()[:, 0]
        assert abs(float((found[n:] - law.log_prob(clean))[inside].mean())) < 1e-2


@pytest.mark.parametrize(
    "schedule",
    [schedules.make("vp_cosine"), schedules.make("linear", n_steps=200, lbeta=1e-4, ubeta=0.05).rescaled()],
    ids=["continuous", "discrete"],
)
def test_the_exact_flow_at_zero_terminal_snr(schedule):
    law = data.make("gaussian", mean=[0.3, -0.2], scale=[0.4, 0.9])
    level = float(schedule.noise_level(schedule.t_min))
    x = law.sample(50, 0)
    found = log_likelihood(ExactDenoiser(law, schedule), x, tolerance=1e-6)
    prior = 0.1 if schedule.t_max > 1 else 1e-2  # the step before SNR 0 is where a discrete schedule's prior starts
    assert (found - law.marginal(x, 1.0, level)[0]).abs().max() < prior


class Mistaken(Denoising):
    """The exact denoiser of a Gaussian of another width: a denoiser with a known error everywhere."""

    def __init__(self, scale, schedule):
        super().__init__()
        self.law = data.make("gaussian", mean=[0.0, 0.0], scale=scale)
        self.schedule, self.shape = schedule, (2,)

    def forward(self, x_t, t):
        alpha, sigma = self.scales(x_t, t)
        return self.law.denoise(x_t, alpha.clamp(min=1e-12), sigma)


def test_both_divergences_in_closed_form_on_a_gaussian():
    r"""True width 1, believed width b, variance exploding: everything is linear.

    D - D* = (b^2/(b^2 + s^2) - 1/(1 + s^2)) x, so path KL is a one-dimensional integral. The ODE's law is N(0, v) with
    v = (first^2 + b^2) (1 + last^2)/(last^2 + b^2), the SDE's by its own moment equation; the path KL plus the prior
    mismatch bounds the SDE's divergence, and need not bound the ODE's.
    """
    b, law = 1.3, data.make("gaussian", mean=[0.0, 0.0], scale=1.0)
    schedule = schedules.make("ve", sigma_min=0.01, sigma_max=20.0)
    mistaken = Mistaken(b, schedule)
    first, last = 0.01, 20.0

    def kl(variance):  # N(0, 1 + first^2) from N(0, variance), two dimensions
        ratio = (1 + first**2) / variance
        return ratio - 1 - math.log(ratio)

    s = torch.logspace(math.log10(first), math.log10(last), 20_001, dtype=torch.float64)
    gap = 2 * (1 + s**2) / s**2 * (b**2 / (b**2 + s**2) - 1 / (1 + s**2)) ** 2
    path = float(torch.trapezoid(gap, s.log()))
    found = Truth.of(law, schedule, n_levels=64, n=20_000).path_kl(mistaken)
    assert found.low - 0.01 * path < path < found.high + 0.01 * path
    # ODE
    ode = kl((first**2 + b**2) * (1 + last**2) / (last**2 + b**2))
    estimate = nll_gap(mistaken, law, n=4_000)
    assert estimate.low - 1e-3 < ode < estimate.high + 1e-3
    # reverse SDE by its variance: dv/d(s^2) = 2 v/(b^2 + s^2) - 1, integrated downwards in closed form
    c = (1 + last**2 - (last**2 + b**2)) / (last**2 + b**2) ** 2
    sde = kl((first**2 + b**2) + c * (first**2 + b**2) ** 2)
    assert 0 < sde <= path + prior_kl(law, schedule).high
    # the same variance from a sampler with many small steps
    x = samplers.make("ddpm", n_steps=400, spacing="linspace").sample(mistaken, 100_000, seed=0)
    assert float(x.var()) == pytest.approx(b**2 + c * b**4, rel=0.03)


def test_divergences_of_a_trained_model_and_how_they_relate():
    """Both are positive beyond their intervals, shrink with training, and vanish for the exact denoiser.

    Only the path KL bounds anything here, and that is the SDE's law. The ODE's divergence differs from it; for a model
    this close to the truth both are small, and we check that they agree within a factor of five.
    """
    law, schedule = data.make("two_moons").standardised(), schedules.make("cosine", n_steps=100, max_beta=0.5)
    truth, path, flow = Truth.of(law, schedule), [], []
    for n_steps in (200, 1_500):
        network = build_seeded(lambda: networks.make("mlp", shape=(2,), hidden=(64, 64), activation="silu"), 0)
        denoiser = Denoiser(network, schedule, "v")
        fit(denoiser, law.split().train, n_steps, batch_size=512)
        path.append(truth.path_kl(denoiser))
        flow.append(nll_gap(denoiser, law, n=1_000))
    for early, late in (path, flow):
        assert 0 < late.low < late.value < late.high < early.low
    assert 0.2 < flow[1].value / path[1].value < 5
    exact = truth.path_kl(ExactDenoiser(law, schedule))
    assert exact.value == 0


def test_the_prior_mismatch_is_what_the_homework_pays():
    law = data.make("helix").standardised()
    homework = prior_kl(law, schedules.make("linear", n_steps=50))
    assert homework.low > 0.1
    assert abs(prior_kl(law, schedules.make("linear", n_steps=50).rescaled(1e-4)).value) < 1e-3
    gaussian = data.make("gaussian", mean=[0.0, 0.0], scale=0.5)
    schedule = schedules.make("linear", n_steps=50)
    alpha, sigma = map(float, schedule(50))
    v = 0.25 * alpha**2 + sigma**2
    estimate = prior_kl(gaussian, schedule)
    assert estimate.low - 1e-3 < v - 1 - math.log(v) < estimate.high + 1e-3


def test_evaluation_times_are_whole_steps_spread_in_log_noise():
    schedule = schedules.make("linear", n_steps=50)
    times = evaluation_times(schedule, 24)
    assert times[0] == 1
    assert times[-1] == 50
    assert (times.diff() >= 1).all()
    assert torch.equal(times, times.round())
    levels = schedules.make("ve").noise_level(evaluation_times(schedules.make("ve"), 10)).log()
    torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(9))
    with pytest.raises(ValueError, match="n_levels = 1"):
        evaluation_times(schedule, 1)
    with pytest.raises(ValueError, match="n = 1"):
        Truth.of(data.make("gaussian"), schedule, n=1)


def test_a_network_that_ignores_its_input_has_the_entropy_gap_it_should():
    """D = 0 against a centred Gaussian: the gap is SNR |D*|^2, in closed form."""

    class Zero(nn.Module):
        dim = 2

        def forward(self, x, c):
            return 0 * self.weight * x

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

    schedule = schedules.make("vp_cosine", terminal_snr=1e-3)
    law = data.make("gaussian", mean=[0.0, 0.0], scale=1.0)
    truth = Truth.of(law, schedule, n_levels=5, n=20_000)
    gaps = truth.gaps(Denoiser(Zero(), schedule, "x0")).mean(1)
    alpha, sigma = schedule(truth.times)
    torch.testing.assert_close(gaps, 2 * alpha**2 / sigma**2 * alpha**2, rtol=0.05, atol=0)


def test_path_kl_between_two_noise_levels():
    """It is additive, the whole range is the default, and another schedule's integral over the same levels agrees."""
    law = data.make("gaussian", mean=[0.0, 0.0], scale=1.0)
    truth, mistaken = Truth.of(law, VE, n_levels=60, n=4_000), Mistaken(0.8, VE)
    whole = truth.path_kl(mistaken).value
    assert truth.path_kl(mistaken, between=(0.002, 50.0)).value == pytest.approx(whole, rel=1e-9)
    parts = [truth.path_kl(mistaken, between=b).value for b in ((0.002, 0.7), (0.7, 3.3), (3.3, 50.0))]
    assert sum(parts) == pytest.approx(whole, rel=5e-3)
    cosine = schedules.make("vp_cosine")
    other = Truth.of(law, cosine, n_levels=60, n=4_000, seed=1).path_kl(Mistaken(0.8, cosine), between=(0.7, 3.3))
    assert other.value == pytest.approx(parts[1], rel=0.1)
    for between in ((0.001, 1.0), (1.0, 60.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match=r"within the schedule's noise levels, 0\.002 to 50"):
            truth.path_kl(mistaken, between=between)


def chain_moments(schedule, times, b):
    """Covariance of the states (x_{t_1}, ..., x_{t_K}) of a chain on a line, by its own steps.

    `b` is the width that the denoiser believes in; without one, of the forward process from N(0, 1).
    """
    alpha, sigma = (a.numpy() for a in schedule(times))
    covariance = np.zeros((len(times), len(times)))
    if b is None:
        for i, j in itertools.product(range(len(times)), repeat=2):
            s, t = min(i, j), max(i, j)
            covariance[i, j] = alpha[i] * alpha[j] + sigma[s] ** 2 * (alpha[t] / alpha[s] if s < t else 1)
        return covariance
    covariance[-1, -1] = alpha[-1] ** 2 + sigma[-1] ** 2  # the prior
    for s in range(len(times) - 2, -1, -1):
        t, step = s + 1, alpha[s + 1] / alpha[s]
        variance = sigma[t] ** 2 - step**2 * sigma[s] ** 2
        shrink = alpha[t] * b**2 / (alpha[t] ** 2 * b**2 + sigma[t] ** 2)  # D = shrink x_t
        factor = (step * sigma[s] ** 2 + alpha[s] * variance * shrink) / sigma[t] ** 2
        covariance[s, t:] = covariance[t:, s] = factor * covariance[t, t:]
        covariance[s, s] = factor**2 * covariance[t, t] + sigma[s] ** 2 * variance / sigma[t] ** 2
    return covariance


def gaussian_kl(p, q):
    """KL(N(0, p) from N(0, q)) in nats."""
    ratio = np.linalg.solve(q, p)
    return 0.5 * (np.trace(ratio) - len(p) - np.linalg.slogdet(ratio)[1])


CHAINS = [
    (schedules.make("linear", n_steps=12, lbeta=0.01, ubeta=0.5), None),
    (schedules.make("cosine", n_steps=12), None),
    (schedules.make("cosine", n_steps=100), 9),
    (schedules.make("linear", n_steps=12, lbeta=0.01, ubeta=0.4).rescaled(), None),  # terminal SNR 0
    (schedules.make("ve", sigma_min=0.05, sigma_max=20.0), 8),
]


@pytest.mark.parametrize(("schedule", "n_steps"), CHAINS, ids=["linear", "cosine", "9 of 100", "SNR 0", "VE"])
@pytest.mark.parametrize("b", [0.7, 1.4])
def test_the_chains_excess_is_that_of_the_joint_gaussians(schedule, n_steps, b):
    """All states of a chain are jointly Gaussian: the divergences of two chains' joint laws differ by chain_kl."""
    times = schedule.times(n_steps)[:-1].flip(0)
    true, exact, mistaken = (chain_moments(schedule, times, width) for width in (None, 1.0, b))
    excess = 2 * (gaussian_kl(true, mistaken) - gaussian_kl(true, exact))  # two dimensions
    truth = Truth.of(data.make("gaussian", mean=[0.0, 0.0], scale=1.0), schedule, n=60_000, times=times)
    found = truth.chain_kl(Mistaken(b, schedule))
    error = (found.total.high - found.total.value) / 1.96
    assert found.total.value == pytest.approx(excess, abs=4 * error, rel=1e-9)
    assert error < 0.03 * excess
    assert float(found.terms[1:].sum()) == pytest.approx(found.total.value, rel=1e-9)
    alpha, sigma = schedule(times)
    snr, scale = (alpha / sigma) ** 2, alpha**2 + sigma**2
    error_of = lambda w: alpha * w**2 / (alpha**2 * w**2 + sigma**2)  # noqa: E731
    weights = torch.cat([snr[:1], snr[:-1] - snr[1:]]) / 2
    expected = weights * 2 * (error_of(b) - error_of(1.0)) ** 2 * scale
    assert ((found.terms - expected).abs() <= 5 * found.errors + 1e-12).all()
    assert found.reconstruction == float(found.terms[0])
    # the bound: what the chain's last noisy state is off by, and what the exact one pays for its few steps
    last = 2 * gaussian_kl(true[:1, :1], mistaken[:1, :1])
    assert last <= 2 * gaussian_kl(true, exact) + excess + 1e-9
    zero = truth.chain_kl(ExactDenoiser(data.make("gaussian", mean=[0.0, 0.0], scale=1.0), schedule))
    assert (zero.total.value, zero.reconstruction) == (0, 0)


def test_the_chains_excess_tends_to_the_path_kl_with_many_steps():
    law = data.make("gaussian", mean=[0.0, 0.0], scale=1.0)
    schedule = schedules.make("ve", sigma_min=0.05, sigma_max=20.0)
    mistaken = Mistaken(1.3, schedule)
    path = Truth.of(law, schedule, n_levels=64, n=20_000).path_kl(mistaken).value
    found = [Truth.of(law, schedule, n=10_000, times=schedule.times(k)).chain_kl(mistaken) for k in (10, 200)]
    assert found[1].total.value == pytest.approx(path, rel=0.05)
    assert abs(found[0].total.value / path - 1) > 0.3


def test_truths_of_given_points_are_those_of_their_law():
    law, schedule = data.make("gaussian"), schedules.make("cosine", n_steps=20)
    truth = Truth.of(law, schedule, n_levels=5, n=50, seed=3)
    generator = torch.Generator().manual_seed(3)
    again = Truth.at(law.sample(50, generator), ExactDenoiser(law, schedule), 5, generator)
    assert torch.equal(truth.x_t, again.x_t)
    assert torch.equal(truth.exact, again.exact)
    chain = Truth.of(law, schedule, n=2, times=schedule.times(4))
    assert chain.times.tolist() == [5, 10, 15, 20]
    with pytest.raises(ValueError, match="1 noisy times; need at least 2"):
        Truth.of(law, schedule, times=torch.tensor([0.0, 5.0]))
    with pytest.raises(ValueError, match="n = 1"):
        Truth.at(law.sample(1, 0), ExactDenoiser(law, schedule))


def test_what_is_not_finite_is_no_estimate():
    with pytest.raises(ValueError, match="2 of 3 values are NaN or infinite"):
        Estimate.of(torch.tensor([1.0, math.nan, math.inf]))
    with pytest.raises(ValueError, match="1 values; an interval needs at least 2"):
        Estimate.of(torch.ones(1))
    law, schedule = data.make("gaussian"), schedules.make("vp_cosine")
    assert prior_kl(law, schedule) == Estimate(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="SNR 0 has no place in the path KL"):
        Truth.of(law, schedule, times=schedule.times(5)).path_kl(Mistaken(1.0, schedule))


def test_the_chains_excess_is_a_score_of_experiments(tmp_path):
    store = lab.Store(tmp_path)
    options = {
        "schedule": {"name": "linear", "n_steps": 6, "ubeta": 0.5},
        "metrics": ("chain_kl", "kl"),
        "n_samples": 10,
    }
    config = lab.Experiment("gaussian", training=lab.Training(n_steps=3), **options)
    found = lab.score(config, store=store)
    schedule, law = config.make_schedule(), config.data
    truth = Truth.of(law, schedule, times=schedule.times())
    assert found["chain_kl"] == truth.chain_kl(lab.trained(config, store=store)).total.value
    assert len(lab.truth("gaussian", config.schedule, store, chain=True).times) == 6
    assert lab.score(lab.Experiment("gaussian", denoiser="exact", **options), store=store)["chain_kl"] == 0
    with pytest.raises(ValueError, match="a continuous schedule needs n_steps"):
        lab.truth("gaussian", "ve", store, chain=True)
