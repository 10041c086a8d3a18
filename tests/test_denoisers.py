import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ddpmlab import data, networks, samplers, schedules
from ddpmlab.denoisers import MIN_SNR_GAMMA, PARAMETERISATIONS, WEIGHTINGS, Denoiser, Denoising, ExactDenoiser, Guided

SCHEDULES = {
    "linear": schedules.make("linear"),
    "cosine": schedules.make("cosine", n_steps=1_000),
    "zero": schedules.make("linear").rescaled(),
    "vp": schedules.make("vp_cosine"),
    "ve": schedules.make("ve"),
    "rectified": schedules.make("rectified"),
}


def noise(n, seed, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Told(nn.Module):
    """A network that outputs what it is told: the perfect output for a known x0 and noise."""

    dim = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, c):
        assert torch.isfinite(x).all()
        assert torch.isfinite(c).all()
        return self.output + self.weight


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_perfect_output_gives_back_x0_at_every_time(name, parameterisation):
    schedule = SCHEDULES[name]
    if parameterisation == "epsilon" and schedule.terminal_snr == 0:
        with pytest.raises(ValueError, match="terminal SNR of 0; choose x0, v, edm or flow"):
            Denoiser(Told(), schedule, parameterisation)
        return
    denoiser = Denoiser(Told(), schedule, parameterisation)
    times = schedule.times(min(40, int(schedule.t_max)) if schedule.t_max > 1 else 40)[:-1]
    for t in times.tolist():
        alpha, sigma = map(float, schedule(t))
        s = math.hypot(alpha, sigma)
        x0, eps = noise(7, 0), noise(7, 1)
        x_t = alpha * x0 + sigma * eps
        denoiser.network.output = {
            "epsilon": eps,
            "x0": x0,
            "v": alpha * eps - sigma * x0,
            "edm": (sigma * x0 - alpha * eps) / s,
            "flow": eps - x0,
        }[parameterisation]
        informative = (
            1.0 if parameterisation != "v" else 1 / max(alpha, sigma) ** 2
        )  # v is made for alpha^2 + sigma^2 = 1
        torch.testing.assert_close(denoiser(x_t, t), x0, atol=1e-6 * informative / max(alpha, 1e-4), rtol=1e-6)
        if alpha > 1e-3:
            torch.testing.assert_close(denoiser.epsilon(x_t, t), eps, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(denoiser.v(x_t, t), alpha * eps - sigma * x0, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(denoiser.score(x_t, t), -eps / sigma, atol=1e-5 / sigma, rtol=1e-5)
        assert denoiser.loss(x0, torch.full((7,), t, dtype=torch.float64), eps).abs().max() < 1e-20


@given(
    log_snr=st.floats(-12, 12),
    weighting=st.sampled_from(WEIGHTINGS),
    parameterisation=st.sampled_from(PARAMETERISATIONS),
)
def test_weightings_are_those_of_the_papers(log_snr, weighting, parameterisation):
    """Whatever the network predicts, a weighting puts the same weight on |D - x0|^2; `simple` weighs the output."""
    snr = math.exp(log_snr)
    schedule = schedules.DiscreteSchedule(torch.tensor([1 / (1 + snr)], dtype=torch.float64))
    denoiser = Denoiser(Told(), schedule, parameterisation)
    x0, eps, t = noise(5, 0), noise(5, 1), torch.ones(5)
    alpha, sigma = map(float, schedule(1))
    denoiser.network.output = noise(5, 2)
    loss = denoiser.loss(x0, t, eps, weighting)
    squared = (denoiser(alpha * x0 + sigma * eps, 1.0) - x0).square().mean(1)
    flow = (alpha + sigma) ** 2 / sigma**2
    weight = {
        "simple": {"epsilon": snr, "x0": 1, "v": 1 + snr, "edm": 1 + snr, "flow": flow}[parameterisation],
        "snr+1 inverse": snr / (1 + snr),
        "min-snr": min(snr, MIN_SNR_GAMMA),
        "edm": 1 + snr,
    }[weighting]
    torch.testing.assert_close(loss, weight * squared, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_losses_are_finite_at_snr_zero_and_infinity(parameterisation, weighting):
    schedule = SCHEDULES["linear"] if parameterisation == "epsilon" else SCHEDULES["zero"]
    denoiser = Denoiser(networks.make("mlp", shape=(2,)), schedule, parameterisation)
    x0, eps = noise(4, 0).float(), noise(4, 1).float()
    for t in (0.0, schedule.t_max):
        loss = denoiser.loss(x0, torch.full((4,), t), eps, weighting).mean()
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters())
        if parameterisation != "epsilon":
            assert torch.isfinite(denoiser(x0, t)).all()


def test_rectified_flow_is_its_own_loss_and_its_own_euler_method():
    r"""Loss :math:`|F - (\varepsilon - x_0)|^2`, and a step of the `euler` sampler :math:`x + (s - t) F`."""
    denoiser = Denoiser(networks.make("mlp", shape=(2,)).double(), SCHEDULES["rectified"], "flow")
    x0, eps = noise(6, 0), noise(6, 1)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    x_t = (1 - t[:, None]) * x0 + t[:, None] * eps

    def velocity(x, t):
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        return denoiser.network(x / ((1 - t) ** 2 + t**2).sqrt()[:, None], t)

    expected = (velocity(x_t, t) - (eps - x0)).square().mean(1)
    torch.testing.assert_close(denoiser.loss(x0, t, eps), expected)
    states = list(samplers.make("euler", n_steps=5)(denoiser, x=eps))
    for i, (x, after) in enumerate(itertools.pairwise(states)):
        torch.testing.assert_close(after, x - 0.2 * velocity(x, 1 - 0.2 * i))


def test_edm_is_v_prediction_on_a_variance_preserving_schedule():
    network = networks.make("mlp", shape=(2,)).double()
    v, edm = (Denoiser(network, SCHEDULES["linear"], name) for name in ("v", "edm"))
    edm._condition = v._condition  # they feed the network another time
    x = noise(9, 0)
    alpha = float(v.schedule(20)[0])
    torch.testing.assert_close(edm(x, 20) - alpha * x, -(v(x, 20) - alpha * x))


def test_the_networks_input_has_unit_variance_on_exploding_schedules():
    seen = []

    class Spy(Told):
        def forward(self, x, c):
            seen.append((float(x.std()), float(c[0])))
            return 0 * x + self.weight

    denoiser, x0 = Denoiser(Spy(), SCHEDULES["ve"], "edm"), noise(20_000, 0)
    for t in (1.0, 0.7, 0.3):
        sigma = float(denoiser.schedule(t)[1])
        denoiser(x0 + sigma * noise(20_000, 1), t)
        assert seen[-1][0] == pytest.approx(1, abs=0.02)
        assert seen[-1][1] == pytest.approx(math.log(sigma) / 4)


def test_the_exact_denoisers_score_is_the_gradient_of_the_marginal():
    law = data.make("gaussian_mixture")
    exact, x, h = ExactDenoiser(law, SCHEDULES["linear"]), noise(20, 0), 1e-5
    alpha, sigma = map(float, exact.schedule(30))
    for k in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[k] = h
        up, down = (law.marginal(x + s * step, alpha, sigma)[0] for s in (1, -1))
        torch.testing.assert_close(exact.score(x, 30)[:, k], (up - down) / (2 * h), atol=1e-6, rtol=1e-6)


def test_the_exact_denoiser_at_no_signal_is_the_mean():
    law = data.make("helix").standardised()
    mean = ExactDenoiser(law, SCHEDULES["zero"])(noise(5, 0, dim=3), 50)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=0.03, rtol=0)


class Conditional(Denoising):
    """Exact conditional denoiser of a mixture: each class is one Gaussian."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.shape = schedule, (2,)
        self.laws = [data.make("gaussian", mean=[m, 0.0], scale=0.3) for m in (-1.0, 1.0)]
        self.both = data.make("gaussian_mixture", means=[[-1.0, 0.0], [1.0, 0.0]], scales=0.3)

    def forward(self, x_t, t, label=None):
        alpha, sigma = self.scales(x_t, t)
        if label is None:
            return self.both.denoise(x_t, alpha, sigma)
        return torch.stack([law.denoise(x_t, alpha, sigma) for law in self.laws])[label, torch.arange(len(x_t))]


def test_guidance_selects_and_sharpens_a_class():
    schedule = schedules.make("vp_cosine", terminal_snr=1e-4)
    conditional = Conditional(schedule)
    draw = {
        scale: samplers.make("heun", n_steps=30).sample(Guided(conditional, 1, scale), 4_000)
        for scale in (0.0, 1.0, 3.0)
    }
    assert float((draw[0.0][:, 0] > 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert (draw[1.0][:, 0] > -0.5).all()
    assert float(draw[1.0][:, 0].mean()) == pytest.approx(1, abs=0.03)
    assert draw[3.0][:, 0].mean() > draw[1.0][:, 0].mean()
    x = noise(10, 0)
    labels = torch.tensor([0, 1] * 5)
    expected = conditional(x, 0.5) + 2.5 * (conditional(x, 0.5, labels) - conditional(x, 0.5))
    torch.testing.assert_close(Guided(conditional, labels, 2.5)(x, 0.5), expected)


def test_conditional_networks_take_labels_and_the_empty_label():
    network = networks.make("mlp", shape=(2,), n_classes=3)
    denoiser, x = Denoiser(network, SCHEDULES["linear"]), noise(6, 0).float()
    free = denoiser(x, 10)
    assert not torch.equal(free, denoiser(x, 10, torch.zeros(6, dtype=torch.long)))
    torch.testing.assert_close(free, denoiser(x, 10, torch.full((6,), 3)))
    with pytest.raises(ValueError, match="no classes"):
        Denoiser(networks.make("mlp", shape=(2,)), SCHEDULES["linear"])(x, 10, torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_pictures_are_denoised_like_their_pixels_in_a_row(parameterisation):
    """Estimate, noise, v, score and loss of `(n, 1, 4, 4)` are those of `(n, 16)`, to the bit."""
    schedule = SCHEDULES["ve"] if parameterisation == "edm" else SCHEDULES["linear"]
    flat, picture = (networks.make("mlp", shape=shape, n_classes=3) for shape in ((16,), (1, 4, 4)))
    picture.load_state_dict(flat.state_dict())
    flat, picture = (Denoiser(network, schedule, parameterisation) for network in (flat, picture))
    x, eps = noise(5, 0, 16).float(), noise(5, 1, 16).float()
    t, label = schedule.times(5)[:-1], torch.tensor([0, 1, 2, 3, 0])
    for kind in ("forward", "epsilon", "v", "score"):
        expected = getattr(flat, kind)(x, t, label)
        assert torch.equal(getattr(picture, kind)(x.view(5, 1, 4, 4), t, label), expected.view(5, 1, 4, 4))
    for weighting in WEIGHTINGS:
        expected = flat.loss(x, t, eps, weighting, label)
        assert expected.shape == (5,)
        assert torch.equal(picture.loss(x.view(5, 1, 4, 4), t, eps.view(5, 1, 4, 4), weighting, label), expected)


def test_guidance_by_a_worse_denoiser_gives_both_the_class():
    """Autoguidance: G + g (D_y - G) with both told the label; one evaluation at g = 1."""
    good, bad = Conditional(SCHEDULES["vp"]), Conditional(SCHEDULES["vp"])
    bad.laws, bad.both = [data.make("gaussian", mean=[m, 0.2], scale=0.5) for m in (-0.8, 0.8)], None
    x, labels = noise(6, 0), torch.tensor([0, 1] * 3)
    expected = bad(x, 0.5, labels) + 1.7 * (good(x, 0.5, labels) - bad(x, 0.5, labels))
    guided = Guided(good, scale=1.7, guide=bad)
    torch.testing.assert_close(guided(x, 0.5, labels), expected)
    assert torch.equal(Guided(good, scale=1.0, guide=bad)(x, 0.5, labels), good(x, 0.5, labels))
    assert torch.equal(Guided(good, 1, 1.7, bad)(x, 0.5, labels), guided(x, 0.5, labels))  # the call's label wins
    with pytest.raises(ValueError, match="guidance needs a class"):
        Guided(good, scale=2.0)(x, 0.5)


def test_dtype_and_device_are_those_of_the_weights_or_points():
    network = networks.make("mlp", shape=(2,), fourier_features=4)
    assert Denoiser(network.double(), SCHEDULES["linear"]).dtype == torch.float64
    assert Denoiser(network.float(), SCHEDULES["linear"]).dtype == torch.float32
    assert Denoiser(network.to("meta"), SCHEDULES["linear"]).device.type == "meta"
    exact = ExactDenoiser(data.make("helix"), SCHEDULES["linear"])
    assert (exact.dtype, exact.device.type, exact.shape) == (torch.float64, "cpu", (3,))


def test_a_network_under_autocast_answers_in_the_points_own_precision():
    denoiser, x = Denoiser(networks.make("mlp", shape=(2,)), SCHEDULES["linear"], "x0"), noise(6, 0).float()
    with torch.autocast("cpu", torch.bfloat16):
        estimate = denoiser(x, 10)
    assert estimate.dtype == torch.float32
    torch.testing.assert_close(estimate, denoiser(x, 10), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: Denoiser(d.network, d.schedule, "eps"), ValueError, "choose one of: epsilon, x0, v, edm"),
        (lambda d: d(torch.zeros(3, 2, dtype=torch.float64), 3), TypeError, "float64, the network torch.float32"),
        (lambda d: d(torch.zeros(2), 3), ValueError, r"need \(n, 2\)"),
        (lambda d: d(torch.zeros(5, 3), 3), ValueError, r"x_t has shape \(5, 3\); need \(n, 2\)"),
        (lambda d: d(torch.zeros(5, 2, 1), 3), ValueError, r"need \(n, 2\)"),
        (lambda d: d(torch.zeros(3, 2, device="meta"), 3), ValueError, "x_t is on meta, the network on cpu; move one"),
        (lambda d: d(torch.zeros(0, 2), 3), ValueError, "n at least 1"),
        (lambda d: d(torch.zeros(3, 2), torch.ones(2)), ValueError, r"one time, or one per point \(3\)"),
        (lambda d: d(torch.zeros(3, 2), 51), ValueError, r"this schedule has \[0, 50\]"),
        (
            lambda d: d.loss(torch.zeros(3, 2), torch.ones(3), torch.zeros(3, 2), "snr"),
            ValueError,
            "unknown weighting 'snr'",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(Denoiser(networks.make("mlp", shape=(2,)), SCHEDULES["linear"]))


def test_devices_other_than_the_cpu():
    """Where there is no GPU, the meta device stands in: shapes and devices without values."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    denoiser = Denoiser(networks.make("mlp", shape=(2,)), SCHEDULES["linear"]).to(device)
    x = torch.zeros(4, 2, device=device)
    assert denoiser(x, 10).device.type == device
    assert denoiser.loss(x, torch.ones(4), x).device.type == device
