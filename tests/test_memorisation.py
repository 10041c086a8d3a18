import pytest
import torch

from ddpmlab import data, schedules
from ddpmlab.denoisers import EmpiricalDenoiser, ExactDenoiser
from ddpmlab.lab.memorisation import Judges, copies, curve, training_set

LAW = data.make("gaussian", mean=[0.0, 0.0], scale=1.0)
VE = schedules.make("ve", sigma_min=0.05, sigma_max=30.0)


def test_each_exact_denoiser_is_judged_perfect_by_its_own_judge_and_the_other_by_its_divergence():
    r"""The path KL of the law's denoiser on the set is :math:`E[\ln\hat q - \ln q]` at the first noise level, less that
    at the last: both log densities are known."""
    points = training_set(LAW, 20, 0)
    judges = Judges.of(LAW, points, VE, n=4_000, n_levels=80)
    own, law = EmpiricalDenoiser(points, VE), ExactDenoiser(LAW, VE)
    assert judges.path_kl(own)["sample"].value == pytest.approx(0, abs=1e-9)
    assert judges.path_kl(law)["law"].value == 0
    gaps = []
    for t in (VE.t_min, 1.0):
        sigma = float(VE(t)[1])
        chosen = points[torch.randint(20, (40_000,), generator=torch.Generator().manual_seed(1))]
        noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        x_t = chosen + sigma * noise
        gaps.append(float((own.posterior(x_t, t)[0] - LAW.marginal(x_t, 1.0, sigma)[0]).mean()))
    found = judges.path_kl(law)["sample"]
    assert found.value == pytest.approx(gaps[0] - gaps[1], rel=0.03)
    assert found.value > 1
    by_level = judges.gaps(law)
    assert (by_level["law"] == 0).all()
    total = torch.trapezoid(torch.tensor(by_level["sample"]), torch.tensor(by_level["noise_level"]).log())
    assert float(total) == pytest.approx(found.value)


def test_copies_are_nearer_to_one_point_than_a_third_of_the_way_to_the_next():
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 100.0]])
    x = torch.tensor([[0.0, 0.0], [0.7, 0.0], [0.8, 0.0], [1.5, 0.0], [2.3, 0.0], [0.0, 90.0]])
    assert copies(x, points).tolist() == [True, True, False, False, True, True]
    assert copies(x, points, 0.1).tolist() == [True, False, False, False, False, False]
    grid = torch.rand(2, 4_000, 2, generator=torch.Generator().manual_seed(0))
    assert float(copies(*grid).double().mean()) == pytest.approx(1 / 9, abs=0.02)  # ratio^d of new points in the plane
    with pytest.raises(ValueError, match="1 training points"):
        copies(x, points[:1])


def test_training_sets_are_of_the_seed():
    assert torch.equal(training_set(LAW, 5, 0), training_set(LAW, 5, 0))
    assert not torch.equal(training_set(LAW, 5, 0), training_set(LAW, 5, 1))


def test_few_points_are_learned_by_heart_and_many_are_not():
    options = {"n": 100, "n_levels": 8, "n_samples": 200, "network": {"width": 32}, "decay": "none", "seed": 1}
    few, many = (curve(n_points, [20, 400], batch_size=128, **options) for n_points in (4, 2_000))
    assert set(few["measure"]) == {"law", "sample", "copy_share"}
    value = lambda table, measure, step: float(  # noqa: E731
        table[(table.measure == measure) & table.noise_level.isna() & (table.step.fillna(0) == step)].value.iloc[0]
    )
    assert value(few, "sample", 400) < 0.3 * value(few, "sample", 20)
    assert value(few, "law", 400) > value(few, "law", 20)
    assert value(few, "copy_share", 400) > 0.8
    assert value(many, "law", 400) < 0.5 * value(many, "law", 20)
    assert value(many, "copy_share", 400) < 0.35
    assert abs(value(many, "copy_share", 400) - value(many, "copy_share", 0)) < 0.15
    assert value(few, "sample", 0) > value(many, "sample", 0) > 0  # there is more to memorise in fewer points
    levels = few[(few.step == 400) & (few.measure == "law") & few.noise_level.notna()]
    assert len(levels) == 8
    assert (few.parameters == many.parameters).all()
    again = [curve(4, [5], batch_size=16, **options) for _ in range(2)]
    assert again[0].equals(again[1])
