import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.neighbors import KernelDensity

from ddpmlab import data
from ddpmlab.lab import COLUMNS, rivals
from ddpmlab.lab.rivals import Fitted, SplineFlow, held_out_kl, score_rival
from ddpmlab.metrics.calibration import stream
from ddpmlab.metrics.likelihood import Estimate, Truth, log_likelihood
from ddpmlab.studies import rivals as study

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


def test_the_control_variate_keeps_the_mean_and_shrinks_the_error():
    """Normal laws of sd 1 and s: (1/s^2 - 1)/2 + ln s. Where the ratio has no variance, the plain mean is left."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_q = -(x**2) / 2
    for s, shrinks in ((1.04, True), (0.97, True), (2.5, False)):
        log_p = -((x / s) ** 2) / 2 - math.log(s)
        plain, found = Estimate.of(log_q - log_p), rivals.divergence(log_q, log_p)
        expected = (1 / s**2 - 1) / 2 + math.log(s)
        assert abs(found.value - expected) < 2 * (found.high - found.low)
        assert (found.high - found.low < 0.2 * (plain.high - plain.low)) == shrinks
        assert found.high - found.low < 1.01 * (plain.high - plain.low)
    assert rivals.divergence(log_q, log_q) == Estimate(0.0, 0.0, 0.0)
    # a density far broader than the law has its mass where there are no points: only the plain mean is right
    few = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_q, log_p = -few.square().sum(1) / 2, -(few / 10).square().sum(1) / 2 - 3 * math.log(10)
    assert rivals.divergence(log_q, log_p) == Estimate.of(log_q - log_p)
    # nor is a mean of r that is not 1 on these points, as of densities that are not normalised, taken for chance
    assert rivals.divergence(log_q, log_q + 0.01 + 1e-6 * few[:, 0]).value == pytest.approx(-0.01, abs=1e-4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        rivals.divergence(log_q, log_q / 0)


SMALL = {"network": {"width": 32}, "batch_size": 128}


def test_a_diffusion_model_is_a_density_scored_like_the_others():
    """More training lowers both numbers; both are those of the denoiser that was trained."""
    law = data.make("two_moons").standardised()
    points, x = law.split().train, law.sample(200, 7)
    short, long = (rivals.diffusion(points, n_steps=n, **SMALL) for n in (30, 300))
    kl = [held_out_kl(model, law, n=300).value for model in (short, long)]
    assert 0 < kl[1] < 0.5 * kl[0]
    expected = log_likelihood(long.denoiser, x, 1e-5)
    torch.testing.assert_close(long.log_prob(x), expected)
    loose = rivals.diffusion(points, n_steps=30, tolerance=1e-3, **SMALL)
    assert not torch.equal(loose.log_prob(x), short.log_prob(x))
    assert long.parameters == sum(p.numel() for p in long.denoiser.parameters())
    threads = torch.get_num_threads()
    found = score_rival("diffusion", law, n=100, dataset="two_moons", n_steps=30, **SMALL)
    assert torch.get_num_threads() == threads
    assert found.kl > 0.1
    assert found.path_kl == pytest.approx(
        Truth.of(law, short.denoiser.schedule, seed=stream("noisy points of a rival", 0)).path_kl(short.denoiser).value
    )
    straight = rivals.rectified_flow(points, n_steps=30, **SMALL).denoiser
    assert (straight.parameterisation, type(straight.schedule).__name__) == ("flow", "Rectified")


def test_a_table_of_rivals():
    table = rivals.rivals_table("two_moons", "kernel density", seeds=(s for s in range(2)), n=300, most=30)
    assert list(table.seed) == [0, 1]
    assert (table.low < table.kl).all()
    assert table.path_kl.isna().all()
    assert (table.seconds_density > 0).all()
    assert set(json.loads(table["choice"].iloc[0])) == {"width"}
    other = rivals.rivals_table("gaussian", "diffusion", seeds=[0], n=50, own_points=False, n_steps=3, **SMALL)
    own = rivals.rivals_table("gaussian", "diffusion", seeds=[0], n=50, n_steps=3, **SMALL)
    assert (other.dataset == "gaussian").all()
    assert float(other.kl.iloc[0]) != float(own.kl.iloc[0])
    with pytest.raises(ValueError, match="unknown rival 'histogram'; choose one of: kernel density, Gaussian mixture"):
        score_rival("histogram", PLANE)
    with pytest.raises(ValueError, match="dim = 1; a coupling needs at least 2"):
        SplineFlow(1)
    with pytest.raises(ValueError, match=r"points have shape \(3, 2\); need \(n, dim\) with enough to hold 10% out"):
        rivals.kernel_density(PLANE.sample(3, 0))
    with pytest.raises(ValueError, match="no number of components"):
        rivals.gaussian_mixture(PLANE.sample(30, 0), components=[])
    with pytest.raises(ValueError, match="starts = 0; fit at least once"):
        rivals.gaussian_mixture(PLANE.sample(30, 0), components=[1], starts=0)


def test_a_mean_of_mixtures_is_the_mean_of_their_densities():
    points, options = TRIPLE.sample(300, 0), {"components": [6], "tolerance": 1e-4}
    one, other = (rivals.gaussian_mixture(points, seed=s, **options) for s in (4, 4 + 1_000_003))
    mean = rivals.gaussian_mixture(points, seed=4, starts=2, **options)
    x = TRIPLE.sample(50, 1)
    assert not torch.allclose(one.log_prob(x), other.log_prob(x), atol=1e-3)
    expected = (one.log_prob(x).exp() + other.log_prob(x).exp()) / 2
    torch.testing.assert_close(mean.log_prob(x).exp(), expected)
    assert mean.parameters == 2 * one.parameters


def test_the_choice_is_made_on_a_seed_of_its_own(monkeypatch):
    """The mixture of the least BIC and that of the least divergence; the test seeds are others."""
    asked = []

    def fake(function, **options):
        asked.append(options)
        k = (options.get("components") or [0])[0]
        choice = json.dumps({"bic": {str(k): abs(k - 20)}})
        row = {"dataset": options["dataset"], "seed": options["seeds"][0], "kl": abs(k - 30), "choice": choice}
        return pd.DataFrame([row])

    monkeypatch.setattr(study, "remembered", fake)
    options = {"tolerance": 1e-4, "flow": {"width": 8}, "n_steps": 7}
    table = study.compared("two_moons", range(2), 50, [10, 20, 30], tuned={"n_steps": 9}, **options)
    models = [study.KERNEL, study.MIXTURE, study.BEST, study.MEAN]
    models += [study.FLOW, study.RECTIFIED, study.RECIPE, study.TUNED]
    assert table.groupby("model", sort=False).seed.agg(list).to_dict() == {model: [0, 1] for model in models}
    assert [o["seeds"] for o in asked[:3]] == [[study.CHOOSING_SEED]] * 3
    chosen = [o["components"] for o in asked[3:] if o["name"] == "Gaussian mixture"]
    assert chosen == [[20], [20], [30], [30], [30], [30]]
    assert [o["starts"] for o in asked if "starts" in o] == [5, 5]
    assert [o["n_steps"] for o in asked[-6:]] == [7, 7, 7, 7, 9, 9]


def test_rows_by_the_contract():
    row = {"dataset": "helix", "seed": 1, "name": "x", "kl": 0.1, "low": 0, "high": 1, "parameters": 5, "seconds": 3.0}
    row |= {"final_seconds": 2.0, "choice": "{}", "seconds_density": 0.5, "path_kl": None, "model": "spline flow"}
    table = study.tidy(pd.DataFrame([row, row | {"model": "diffusion", "path_kl": 0.2}]), 50)
    assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS
    assert table.value.notna().all()
    read = table.pivot(index="variant", columns="metric", values="value")
    assert read.loc["diffusion", ["kl", "kl_exact", "seconds_train"]].tolist() == [0.2, 0.1, 2.0]
    assert math.isnan(read.loc["spline flow", "kl"])


def test_the_exact_denoiser_scored_as_a_network_reads_nothing():
    found = study.control("two_moons", 60, 0).iloc[0]
    assert abs(found.kl) < 3e-4
