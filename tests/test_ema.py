import numpy as np
import pytest
import torch

from ddpmlab import data, networks, schedules
from ddpmlab.denoisers import Denoiser
from ddpmlab.training import EMA, build_seeded, fit, reconstruct_ema, sigma_rel_to_gamma


def walk(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64).cumsum(0)


def average(path, **options):
    ema = EMA({"w": path[0] * 0}, **options)
    for step, w in enumerate(path, 1):
        ema.update({"w": w}, step)
    return ema.weights["w"]


def test_constant_decay_is_the_geometric_sum():
    path = walk(200)
    weight = 0.95 ** torch.arange(199, -1, -1, dtype=torch.float64) * 0.05
    torch.testing.assert_close(average(path, decay=0.95), (weight[:, None] * path).sum(0))


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_the_power_profile_has_its_shape_and_width(sigma_rel):
    """Response to a unit impulse at each step: proportional to step^gamma, relative width sigma_rel, sum 1."""
    n = 2_000
    profile = average(torch.eye(n, dtype=torch.float64), sigma_rel=sigma_rel)
    assert float(profile.sum()) == pytest.approx(1)
    gamma = sigma_rel_to_gamma(sigma_rel)
    slope = np.polyfit(np.log(np.arange(500, n)), profile[500:].log().numpy(), 1)[0]
    assert slope == pytest.approx(gamma, rel=0.01)
    step = torch.arange(1, n + 1, dtype=torch.float64) / n
    mean = float((profile * step).sum())
    assert float((profile * (step - mean) ** 2).sum()) ** 0.5 == pytest.approx(sigma_rel, rel=0.01)


def test_post_hoc_reconstruction_finds_averages_that_were_not_kept():
    path = walk(4_000)
    snapshots = []
    for sigma_rel in (0.05, 0.1):
        ema = EMA({"w": path[0] * 0}, sigma_rel=sigma_rel)
        for step, w in enumerate(path, 1):
            ema.update({"w": w}, step)
            if step % 250 == 0:
                snapshots.append((step, sigma_rel, {"w": ema.weights["w"].clone()}))
    spread = float((path[-1] - path[2_000]).norm())
    for sigma_rel in (0.06, 0.08, 0.12, 0.2):
        found = reconstruct_ema(snapshots, 4_000, sigma_rel)["w"]
        assert float((found - average(path, sigma_rel=sigma_rel)).norm()) < 0.02 * spread
    # an average that ends before the last step, and one that was kept itself
    early = reconstruct_ema(snapshots, 3_000, 0.08)["w"]
    assert float((early - average(path[:3_000], sigma_rel=0.08)).norm()) < 0.02 * spread
    torch.testing.assert_close(
        reconstruct_ema(snapshots, 4_000, 0.1)["w"], average(path, sigma_rel=0.1), atol=1e-4, rtol=1e-4
    )


def test_post_hoc_reconstruction_of_a_trained_network():
    points = data.make("two_moons").standardised().split().train
    steps = tuple(range(20, 801, 20))

    def run(sigma_rel):
        network = build_seeded(lambda: networks.make("mlp", shape=(2,), hidden=(16,)), 0)
        denoiser = Denoiser(network, schedules.make("linear"))
        return fit(denoiser, points, 800, batch_size=64, ema_sigma_rel=sigma_rel, keep_steps=steps)

    kept, wanted = run((0.05, 0.1)), run(0.15).averages[800]
    assert list(kept.by_width) == [0.05, 0.1]
    found = kept.post_hoc(0.15)
    for name, weight in wanted.items():
        error = float((found[name] - weight).norm())
        assert error < 0.25 * float((kept.by_width[0.1][800][name] - weight).norm()), name
    for width, states in kept.by_width.items():  # a width that was kept comes out as it is, at its step too
        for step in (400, 800):
            for name, weight in kept.post_hoc(width, step).items():
                torch.testing.assert_close(weight, states[step][name], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: EMA(w), "give either decay or sigma_rel"),
        (lambda w: EMA(w, decay=0.9, sigma_rel=0.1), "give either decay or sigma_rel"),
        (lambda w: EMA(w, decay=1.0), "decay = 1.0"),
        (lambda w: EMA(w, sigma_rel=0.3), "sigma_rel = 0.3"),
        (lambda w: reconstruct_ema([(10, 0.1, w)], 10, 0.1), "needs at least 2"),
        (lambda w: reconstruct_ema([(10, 0.1, w), (20, 0.1, w)], 5, 0.1), "every snapshot is later than step 5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call({"w": torch.zeros(2)})
