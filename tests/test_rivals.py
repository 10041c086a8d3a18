import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity

from ddpmlab import data
from ddpmlab.lab import rivals
from ddpmlab.lab.rivals import Fitted, SplineFlow, held_out_kl, score_rival

TRIPLE = data.make("gaussian_mixture", means=[[-3.0, 0.0], [0.0, 2.0], [3.0, -1.0]], scales=0.4)
PLANE = data.make("gaussian", mean=[0.3, -0.2], scale=[0.5, 1.2])


def wild(flow, seed=0):
    """The flow with random weights: those of its last layers start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for p in flow.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return flow.double().requires_grad_(False)


def test_the_divergence_is_that_of_two_gaussians():
    """N(m, S) from N(0, I): (tr S + m^2 - d - ln det S) / 2."""
    model = Fitted(lambda x: -0.5 * (x.square().sum(1) + 2 * math.log(2 * math.pi)), 0, 0.0, {}, 0.0)
    expected = 0.5 * (0.25 + 1.44 + 0.13 - 2 - 2 * math.log(0.6))
    found = held_out_kl(model, PLANE, n=50_000)
    assert found.low - 0.01 < expected < found.high + 0.01
    assert found.high - found.low < 0.02
    assert found == held_out_kl(model, PLANE, n=50_000)
    assert found != held_out_kl(model, PLANE, n=50_000, seed=1)
    with pytest.raises(ValueError, match="100 of 100 values are NaN or infinite"):
        held_out_kl(Fitted(lambda x: x[:, 0] / 0, 0, 0.0, {}, 0.0), PLANE, n=100)


def test_the_kernel_density_is_scikit_learns_at_the_width_of_the_best_held_out_likelihood():
    points, x = PLANE.sample(2_000, 0), PLANE.sample(200, 1)
    model = rivals.kernel_density(points, seed=3)
    width = model.choice["width"]
    expected = KernelDensity(bandwidth=width).fit(points.numpy()).score_samples(x.numpy())
    np.testing.assert_allclose(model.log_prob(x), expected, rtol=1e-9)
    assert model.parameters == 4_001
    train, test = rivals._held_out(points, 0.1, 3)
    assert (len(train), len(test)) == (1_800, 200)
    assert len(torch.cat([train, test]).unique(dim=0)) == 2_000
    grid = width * np.exp(np.linspace(-1, 1, 41))
    scores = [KernelDensity(bandwidth=h).fit(train.numpy()).score(test.numpy()) for h in grid]
    assert abs(math.log(grid[np.argmax(scores)] / width)) < 0.08
    assert 0 < held_out_kl(model, PLANE).value < 0.05


def test_the_mixture_finds_the_number_of_components_and_costs_half_a_nat_a_parameter_over_n():
    n = 4_000
    found = score_rival("Gaussian mixture", TRIPLE, TRIPLE.sample(n, 0), components=[1, 2, 3, 4, 5, 6])
    assert found.choice["components"] == 3
    assert list(found.choice["bic"]) == [1, 2, 3, 4, 5]  # two in a row that are no better end the search
    assert found.parameters == 3 - 1 + 3 * 2 + 3 * 3
    assert found.kl == pytest.approx(found.parameters / (2 * n), rel=0.8)  # chi-square with 17 degrees of freedom
    assert 0 < found.final_seconds < found.seconds


def test_expectation_maximisation_runs_to_its_end():
    """Two overlapping components from many points: scikit-learn's own tolerance stops early, ours does not."""
    law = data.make("two_moons").standardised()
    points = law.sample(4_000, 0)
    early, late = (rivals.gaussian_mixture(points, components=[12], tolerance=t) for t in (1e-3, 1e-5))
    assert float(late.log_prob(points).mean()) > float(early.log_prob(points).mean()) + 1e-4


@pytest.mark.parametrize("dim", [2, 3])
def test_the_flow_is_a_density(dim):
    """Its log derivative is that of its map, it is the identity far out, and it integrates to 1."""
    flow = wild(SplineFlow(dim, n_layers=4, width=8, bins=5, bound=2.0))
    x = 1.5 * torch.randn(60, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0], x[1, 0] = 2.5, 2.0

    def mapped(x):
        for layer in flow.layers:
            x = layer(x[None] if x.ndim == 1 else x)[0]
        return x

    jacobian = torch.stack([torch.autograd.functional.jacobian(mapped, point)[0] for point in x])
    z = mapped(x)
    expected = jacobian.det().abs().log() - 0.5 * (z.square().sum(1) + dim * math.log(2 * math.pi))
    torch.testing.assert_close(flow(x), expected)
    assert torch.equal(z[0], x[0])
    axis = torch.linspace(-6, 6, 401 if dim == 2 else 61, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * dim)
    volume = float((axis[1] - axis[0]) ** dim)
    assert float(flow(grid).exp().sum()) * volume == pytest.approx(1, abs=5e-3 if dim == 2 else 0.05)
    start = SplineFlow(dim).double()  # untrained, it is N(0, I)
    torch.testing.assert_close(start(x), -0.5 * (x.square().sum(1) + dim * math.log(2 * math.pi)))


def test_the_flow_learns_and_keeps_its_best_weights():
    options = {"n_layers": 2, "width": 16, "bins": 6, "batch_size": 256, "check_every": 20}
    points = TRIPLE.standardised().split().train
    before = torch.get_rng_state()
    short, long = (rivals.spline_flow(points, n_steps=n, **options) for n in (20, 160))
    assert torch.equal(torch.get_rng_state(), before)
    kl = [held_out_kl(model, TRIPLE.standardised()).value for model in (short, long)]
    assert kl[1] < 0.5 * kl[0]
    assert long.choice["step"] % 20 == 0
    again = rivals.spline_flow(points, n_steps=160, **options)
    x = points[:50]
    assert torch.equal(long.log_prob(x), again.log_prob(x))
    assert long.parameters == sum(p.numel() for p in SplineFlow(2, n_layers=2, width=16, bins=6).parameters())
    # a handful of points is learned by heart: held-out points notice, and early weights are kept
    few = rivals.spline_flow(points[:40], n_steps=400, seed=1, **options)
    assert few.choice["step"] < 400


def test_a_table_of_rivals():
    table = rivals.rivals_table(["gaussian"], seeds=(s for s in range(2)), names=["kernel density"], n=500)
    assert list(table.seed) == [0, 1]
    assert (table.low < table.kl).all()
    with pytest.raises(ValueError, match="unknown rival 'histogram'; choose one of: kernel density, Gaussian mixture"):
        score_rival("histogram", PLANE)
    with pytest.raises(ValueError, match="dim = 1; a coupling needs at least 2"):
        SplineFlow(1)
    with pytest.raises(ValueError, match=r"points have shape \(3, 2\); need \(n, dim\) with enough to hold 10% out"):
        rivals.kernel_density(PLANE.sample(3, 0))
    with pytest.raises(ValueError, match="no number of components"):
        rivals.gaussian_mixture(PLANE.sample(30, 0), components=[])
