import math

import numpy as np
import pandas as pd
import pytest
import torch

from ddpmlab import data, schedules
from ddpmlab.denoisers import EmpiricalDenoiser, ExactDenoiser
from ddpmlab.lab import COLUMNS
from ddpmlab.lab.memorisation import Judges, copies, curve, training_set
from ddpmlab.studies import memorisation as study

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
    assert set(few["measure"]) == {"law", "sample", "copy_share", "seconds"}
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
    total = torch.trapezoid(torch.tensor(levels.value.to_numpy()), torch.tensor(levels.noise_level.to_numpy()).log())
    assert float(total) == pytest.approx(value(few, "law", 400))
    limits = few[few.step.isna() & few.noise_level.notna()]
    assert limits.groupby("measure").size().to_dict() == {"law": 8, "sample": 8}
    assert few[few.measure == "seconds"].step.tolist() == [400]
    assert (few.parameters == many.parameters).all()
    again = [curve(4, [5], batch_size=16, **options) for _ in range(2)]
    timeless = [table[table.measure != "seconds"] for table in again]
    assert timeless[0].equals(timeless[1])


def test_averaged_weights_are_judged_where_training_keeps_them():
    options = {"n": 50, "n_levels": 4, "n_samples": 20, "network": {"width": 8}, "batch_size": 16, "seed": 0}
    plain, averaged = (curve(10, [20], decay="none", **options, **more) for more in ({}, {"ema_sigma_rel": 0.2}))
    at_end = lambda t: t[(t.measure == "law") & (t.step == 20) & t.noise_level.isna()].value.iloc[0]  # noqa: E731
    assert at_end(plain) != at_end(averaged)


@pytest.fixture
def curves(monkeypatch):
    """Curves of two sizes and one more width, two seeds and three steps, of a known shape."""

    def fake(function, n_points, keep_steps, seed, network, **options):
        rows = []
        for step in [None, *keep_steps]:
            for measure in ("law", "sample", "copy_share"):
                rows.append((step, measure, None, n_points + 0.1 * seed + (step or 0)))
                if measure != "copy_share":
                    rows.append((step, measure, 0.1, 1.0))
        rows.append((keep_steps[-1], "seconds", None, 3.0))
        table = pd.DataFrame(rows, columns=["step", "measure", "noise_level", "value"])
        return table.assign(dataset="two_moons", n_points=n_points, seed=seed, parameters=10 * network["width"])

    monkeypatch.setattr(study, "remembered", fake)
    return study.curves([10, 20], [8, 64], 10, [1, 2, 3], 2, {"batch_size": 4}, {"n": 5})


def test_a_curve_for_each_size_width_and_seed(curves):
    made = curves.groupby(["n_points", "width"]).seed.unique().map(list).to_dict()
    assert made == {(10, 8): [0, 1], (10, 64): [0, 1], (20, 64): [0, 1]}
    np.testing.assert_allclose(study.by_step(curves, "law", 20), [[21, 22, 23], [21.1, 22.1, 23.1]])
    assert study.limit(curves, "sample", 10, 8) == pytest.approx([10, 10.1])


def test_rows_by_the_contract(curves):
    table = study.tidy(curves, levels_of=20)
    assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS
    assert table[["variant", "seed", "metric", "value"]].notna().all(axis=None)
    assert not table.duplicated(["variant", "seed", "metric", "noise_level"]).any()
    assert set(table[table.noise_level.notna()].n_points) == {20}
    copies = table[table.metric == "copy_share"]
    assert (copies.floor_mean == copies.n_points + 0.1 * copies.seed).all()
    assert table[table.metric == "kl"].floor_mean.isna().all()


def test_early_stopping_takes_the_step_of_the_other_seeds():
    values = pd.DataFrame({1: [1.0, 9.0, 2.0], 2: [5.0, 0.0, 3.0]}, index=[0, 1, 2])
    # without seed 0 the means are 5.5 and 1.5, without 1 they are 1.5 and 4, without 2 they are 5 and 2.5
    assert study.stopped(values).tolist() == [5.0, 9.0, 3.0]
    with pytest.raises(ValueError, match="1 seed"):
        study.stopped(values.iloc[:1])


def test_a_path_kl_from_a_level_up_is_the_integral_from_there():
    levels = [0.01, 0.02, 0.5, 8.0]
    constant = pd.Series(3.0, index=levels)
    assert study.from_level(constant, 0) == pytest.approx(3 * math.log(800))
    assert study.from_level(constant, 2) == pytest.approx(3 * math.log(16))
    line = pd.Series([math.log(level) for level in levels], index=levels)  # the trapezoid rule is exact for it
    assert study.from_level(line, 1) == pytest.approx((math.log(8) ** 2 - math.log(0.02) ** 2) / 2)
