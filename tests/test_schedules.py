import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given
from hypothesis import strategies as st

from ddpmlab import schedules
from ddpmlab.schedules import SPACINGS, DiscreteSchedule

BETAS = ("linear", "scaled_linear", "quadratic", "sigmoid", "sech")
DISCRETE = (*BETAS, "cosine")
CONTINUOUS = ("vp_cosine", "rectified", "ve")
T = st.integers(1, 1_000)
THEIRS = {"linear": "linear", "scaled_linear": "scaled_linear", "sigmoid": "sigmoid", "cosine": "squaredcos_cap_v2"}


def make(name, n_steps, lbeta=1e-4, ubeta=2e-2):
    return schedules.make(name, n_steps=n_steps, **({} if name == "cosine" else {"lbeta": lbeta, "ubeta": ubeta}))


@given(name=st.sampled_from(DISCRETE), n_steps=T, ends=st.tuples(st.floats(1e-6, 0.5), st.floats(1e-6, 0.5)))
def test_discrete_schedules_are_ddpms(name, n_steps, ends):
    schedule = make(name, n_steps, *ends)  # the first beta may be the larger one: the homework's pairs
    assert schedule.t_max == n_steps
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert ((schedule.alpha_bars > 0) & (schedule.alpha_bars <= 1)).all()
    assert (schedule.alpha_bars.diff() < 0).all()
    alpha, sigma = schedule(torch.arange(n_steps + 1))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert schedule.terminal_snr == pytest.approx(float(schedule.alpha_bars[-1] / (1 - schedule.alpha_bars[-1])))


@given(name=st.sampled_from(DISCRETE), n_steps=T, data=st.data(), spacing=st.sampled_from(SPACINGS))
def test_discrete_sampling_times(name, n_steps, data, spacing):
    schedule = make(name, n_steps)
    n_sampling = data.draw(st.integers(1, n_steps))
    times = schedule.times(n_sampling, spacing)
    assert len(times) == n_sampling + 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert torch.equal(times, times.round())
    assert times[0] <= n_steps
    assert times[-2] >= 1
    if spacing != "leading":
        assert times[0] == n_steps
    if spacing != "trailing" and n_sampling > 1:
        assert times[-2] == 1
    assert torch.isfinite(torch.stack(schedule(times))).all()


@given(name=st.sampled_from(CONTINUOUS), n_sampling=T, spacing=st.sampled_from(SPACINGS))
def test_continuous_sampling_times(name, n_sampling, spacing):
    schedule = schedules.make(name)
    times = schedule.times(n_sampling, spacing)
    assert len(times) == n_sampling + 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert times[0] <= 1
    alpha, sigma = schedule(times)
    assert torch.isfinite(torch.stack([alpha, sigma])).all()
    assert (sigma.diff() < 0).all()
    assert (alpha[-1], sigma[-1]) == (1, 0)


def test_spacings_of_lin_et_al_table_2():
    schedule = make("linear", 1_000)
    assert schedule.times(10, "leading").tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert schedule.times(10, "linspace").tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0]
    assert schedule.times(10, "trailing").tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]


@given(n_steps=T, data=st.data(), spacing=st.sampled_from(SPACINGS))
def test_spacings_are_those_of_diffusers_shifted_by_one(n_steps, data, spacing):
    """Theirs counts 0..T-1 and has no clean time; one step of `linspace` is their first time, our last.

    A time half-way between two integers may round either way: rounding goes to the even one, and both the shift by
    one and theirs' float range decide which that is. Theirs can also be one entry too long; ours has `n_steps`.
    """
    n_sampling = data.draw(st.integers(1, n_steps))
    theirs = DDPMScheduler(n_steps, timestep_spacing=spacing)
    theirs.set_timesteps(n_sampling)
    ours = make("linear", n_steps).times(n_sampling, spacing)[:-1].numpy()
    if spacing == "linspace" and n_sampling == 1:
        assert theirs.timesteps.tolist() == [0]
        assert ours.tolist() == [n_steps]
        return
    i = np.arange(n_sampling)
    exact = {
        "leading": i[::-1] * (n_steps // n_sampling),
        "linspace": np.linspace(n_steps - 1, 0, n_sampling),
        "trailing": n_steps - i * n_steps / n_sampling - 1,
    }[spacing]
    half = np.abs(exact % 1 - 0.5) < 1e-6
    assert np.array_equal(ours[~half] - 1, theirs.timesteps.numpy()[:n_sampling][~half])
    assert (np.abs(ours - 1 - exact)[half] <= 0.5 + 1e-6).all()


@given(name=st.sampled_from(list(THEIRS)), n_steps=T)
def test_betas_alpha_bars_and_noising_equal_diffusers(name, n_steps):
    """diffusers keeps betas in float32, so the tables agree to 1e-6; from the same betas the noising agrees to 1e-8."""
    schedule = make(name, n_steps)
    theirs = DDPMScheduler(n_steps, beta_start=1e-4, beta_end=2e-2, beta_schedule=THEIRS[name])
    assert (schedule.betas - theirs.betas).abs().max() < 1e-6
    assert (schedule.alpha_bars[1:] - theirs.alphas_cumprod).abs().max() < 1e-6
    theirs.alphas_cumprod = (1 - schedule.betas).cumprod(0)
    generator = torch.Generator().manual_seed(n_steps)
    x0, noise = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    t = torch.randint(n_steps, (50,), generator=generator)
    alpha, sigma = (a[:, None] for a in schedule(t + 1))
    assert (alpha * x0 + sigma * noise - theirs.add_noise(x0, noise, t)).abs().max() < 1e-8


@given(name=st.sampled_from(DISCRETE), n_steps=st.integers(2, 1_000), share=st.floats(0, 0.99))
def test_rescaling_reaches_the_wanted_terminal_snr(name, n_steps, share):
    schedule = make(name, n_steps)
    wanted = share * min(float(schedule.snr(1)), 1e4)
    rescaled = schedule.rescaled(wanted)
    assert rescaled.terminal_snr == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    assert rescaled.alpha_bars[1] == pytest.approx(float(schedule.alpha_bars[1]), rel=1e-12)
    assert (rescaled.alpha_bars.diff() <= 0).all()
    zero = schedule.rescaled()
    assert zero.terminal_snr == 0
    theirs = rescale_zero_terminal_snr(schedule.betas)
    if name != "cosine":  # theirs goes back to betas through a ratio that is 0/0 where alpha_bar underflows
        torch.testing.assert_close(zero.betas, theirs, atol=1e-8, rtol=0)


def test_rescaling_continuous_schedules():
    for wanted in (0.0, 1e-4, 0.5):
        for name in ("vp_cosine", "rectified"):
            assert schedules.make(name).rescaled(wanted).terminal_snr == pytest.approx(wanted, rel=1e-9, abs=1e-30)
    assert schedules.make("ve").rescaled(1e-4).terminal_snr == pytest.approx(1e-4)
    with pytest.raises(ValueError, match="it reaches 0 only at infinite sigma"):
        schedules.make("ve").rescaled(0)


def test_ve_linspace_is_karras_spacing():
    sigma_min, sigma_max, rho, n = 0.002, 80, 7, 18
    i = np.arange(n)
    karras = (sigma_max ** (1 / rho) + i / (n - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    schedule = schedules.make("ve")
    assert np.allclose(schedule.noise_level(schedule.times(n))[:-1], karras, rtol=1e-12)


@pytest.mark.parametrize("schedule", [make("linear", 50), make("cosine", 1_000), *map(schedules.make, CONTINUOUS)])
def test_time_of_inverts_the_noise_level(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 57, dtype=torch.float64)
    t = t[schedule.noise_level(t).isfinite()]
    torch.testing.assert_close(schedule.time_of(schedule.noise_level(t)), t, atol=1e-6, rtol=1e-6)
    assert schedule.time_of(1e-9) == pytest.approx(schedule.t_min)
    assert schedule.time_of(1e9) == pytest.approx(schedule.t_max, rel=1e-6)


def test_the_rectified_schedule_is_a_straight_line():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = schedules.make("rectified")(t)
    assert torch.equal(alpha, 1 - t)
    assert torch.equal(sigma, t)
    alpha, sigma = schedules.make("rectified", terminal_snr=0.04)(t)
    torch.testing.assert_close(alpha, 1 - 0.8 * t)
    assert torch.equal(sigma, t)


def test_fractional_times_interpolate_the_log_noise_level():
    schedule = make("linear", 50)
    low, middle, high = schedule.noise_level([7.0, 7.5, 8.0])
    assert float(middle) == pytest.approx(math.sqrt(float(low * high)))
    alpha, sigma = schedule(7.5)
    assert float(alpha**2 + sigma**2) == pytest.approx(1)


def test_the_homework_never_reaches_noise():
    published = {10: 0.94, 50: 0.73, 100: 0.53, 150: 0.38, 200: 0.28}
    for n_steps, alpha_bar in published.items():
        schedule = schedules.make("linear", n_steps=n_steps)
        assert float(schedule.alpha_bars[-1]) == pytest.approx(alpha_bar, abs=6e-3)


@given(n=st.integers(1, 300), name=st.sampled_from([*DISCRETE, *CONTINUOUS]))
def test_training_times_lie_on_the_schedule(n, name):
    schedule = schedules.make(name)
    t = schedule.random_times(n, torch.Generator().manual_seed(0))
    assert t.shape == (n,)
    assert ((t >= schedule.t_min) & (t <= schedule.t_max)).all()
    if name in CONTINUOUS:  # stratified: one time in each of n equal intervals
        strata = ((t - schedule.t_min) / (1 - schedule.t_min) * n).floor().clamp(max=n - 1)
        assert sorted(strata.tolist()) == list(range(n))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.make("lin"), "unknown schedule 'lin'; choose one of: cosine, linear"),
        (lambda: schedules.make("linear", n_steps=0), "n_steps = 0"),
        (lambda: schedules.make("linear", n_steps=2.5), "n_steps = 2.5"),
        (lambda: schedules.make("linear", lbeta=0), "lbeta = 0; need 0 < lbeta < 1"),
        (lambda: schedules.make("sech", ubeta=1.5), "ubeta = 1.5"),
        (lambda: schedules.make("cosine", max_beta=1), "max_beta = 1"),
        (lambda: schedules.make("ve", sigma_min=3, sigma_max=2), "sigma_min < sigma_max"),
        (lambda: schedules.make("vp_cosine", t_min=0), "t_min = 0"),
        (lambda: schedules.make("vp_cosine", terminal_snr=-1), "terminal_snr = -1"),
        (lambda: schedules.make("rectified", terminal_snr=1), "terminal_snr = 1; need 0 <= terminal_snr < 1"),
        (lambda: schedules.make("rectified", t_min=1), "t_min = 1"),
        (lambda: make("linear", 50).times(0), "n_steps = 0; this schedule samples in 1 to 50"),
        (lambda: make("linear", 50).times(51), "n_steps = 51; this schedule samples in 1 to 50"),
        (lambda: make("linear", 50).times(5, "even"), "unknown spacing 'even'; choose one of: leading"),
        (lambda: schedules.make("ve").times(), "a continuous schedule needs n_steps"),
        (lambda: make("linear", 50)(51), r"times span \[51, 51\]; this schedule has \[0, 50\]"),
        (lambda: make("linear", 50)(float("nan")), r"times span \[nan"),
        (lambda: make("linear", 50)(0.5), "between 0 and 1 have no noise level"),
        (lambda: make("linear", 1).rescaled(), "a schedule of one step"),
        (lambda: make("linear", 50).rescaled(-1), "terminal_snr = -1"),
        (lambda: make("linear", 50).rescaled(1e9), "the first step's"),
        (lambda: DiscreteSchedule(torch.tensor([])), r"betas have shape \(0,\)"),
        (lambda: DiscreteSchedule(torch.tensor([0.1, 1.0, 0.1])), "each must lie in"),
        (lambda: DiscreteSchedule(torch.tensor([0.1, math.nan])), "each must lie in"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
