import math

import pytest
import torch
from torch import nn

from ddpmlab import data, networks, samplers, schedules
from ddpmlab.denoisers import Denoiser, Denoising, ExactDenoiser
from ddpmlab.metrics.likelihood import Truth, evaluation_times, log_likelihood, nll_gap, prior_kl
from ddpmlab.training import fit

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
        return self.law.denoise(x_t, alpha, sigma)


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
    network = networks.make("mlp", shape=(2,), hidden=(64, 64), activation="silu")
    denoiser, truth = Denoiser(network, schedule, "v"), Truth.of(law, schedule)
    path, flow = [], []
    for n_steps in (200, 1_500):
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
