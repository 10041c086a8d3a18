import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import chi2

from ddpmlab import data
from ddpmlab.lab import power, remembered
from ddpmlab.lab.power import DEFECTS, divergent_share, power_table, size_at_power, thickness

LAW = data.make("two_moons")


def draw(defect, n=200_000):
    return DEFECTS[defect](n, torch.Generator().manual_seed(0))


def test_defects_are_of_the_stated_size():
    rms = LAW.distance_to_arcs(draw("arcs 5% too thick")).square().mean().sqrt()
    perfect = LAW.distance_to_arcs(LAW.sample(200_000, 1)).square().mean().sqrt()
    assert float(rms / perfect) == pytest.approx(1.05, abs=0.01)
    away = (draw("0.05% divergent").abs() > 4).any(1).double().mean()
    assert 3e-4 < float(away) < 6e-4
    # the missing piece: a twenty-fifth of the upper arc, 2% of all mass, and everything else untouched
    x = draw("2% of an arc missing")
    angle = torch.atan2(x[:, 1], x[:, 0]) / math.pi
    near_upper = ((x.norm(dim=1) - 1).abs() < 0.15) & (x[:, 1] > 0.6)
    real = LAW.sample(200_000, 2)
    real_upper = ((real.norm(dim=1) - 1).abs() < 0.15) & (real[:, 1] > 0.6)
    real_angle = torch.atan2(real[:, 1], real[:, 0]) / math.pi
    hole = [
        float((a[u] > 0.475).logical_and(a[u] < 0.485).double().mean())
        for a, u in ((angle, near_upper), (real_angle, real_upper))
    ]
    assert hole[0] < 0.35 * hole[1]  # the noise blurs its edges
    assert float(near_upper.double().mean()) == pytest.approx(
        (float(real_upper.double().mean()) - 0.02) / 0.98, abs=0.005
    )
    # what is left gains in proportion; 2,000,000 points a side give this ratio a standard deviation of 0.0014
    n = 2_000_000
    lower = (draw("2% of an arc missing", n)[:, 1] < -0.1).double().mean() / (
        LAW.sample(n, 3)[:, 1] < -0.1
    ).double().mean()
    assert float(lower) == pytest.approx(1 / 0.98, abs=0.006)


def test_direct_questions_have_direct_answers():
    law = LAW.standardised()
    x = law.sample(100_000, 0)
    perfect = thickness(x, x)
    assert perfect == pytest.approx(1, abs=0.02)
    wide = power._standard(draw("arcs 5% too thick"))
    assert thickness(wide, x) / perfect == pytest.approx(1.05, abs=0.01)
    assert divergent_share(x, x) == 0
    assert divergent_share(torch.tensor([[7.0, 0.0], [0.0, 1.0]]), x) == 0.5


def test_power_is_the_false_alarm_rate_without_a_defect_and_one_with_a_large_one(monkeypatch):
    monkeypatch.setattr(
        power, "DEFECTS", {"none": LAW.sample, "noise": lambda n, g: 3 * torch.randn(n, 2, generator=g)}
    )
    repeats = 39
    alarms = []
    for seed in range(20):
        values = {key: v[:, 0] for key, v in power._values(("energy distance",), 50, repeats, seed).items()}
        threshold = sorted(values["fresh"])[37]  # ceil(0.95 * 40) = 38 of 39
        alarms += [v > threshold for v in values["none"]]
        assert min(values["noise"]) > threshold
    assert float(np.mean(alarms)) == pytest.approx(0.05, abs=0.035)  # 20 thresholds of 39 values each: sd about 0.01


def test_the_table_covers_every_score_within_its_limit_and_is_remembered(monkeypatch):
    table = remembered(power_table, sizes=[100], repeats=19, progress=False)
    names = [name for group in power.SCORES for name in group]
    assert list(dict.fromkeys(table.score)) == names
    assert len(table) == len(names) * len(DEFECTS)
    assert table.power.between(0, 1).all()
    monkeypatch.setattr(power, "pool", lambda *_: pytest.fail("computed again"))
    again = remembered(power_table, sizes=[100], repeats=19, progress=False)
    pd.testing.assert_frame_equal(table, again)
    assert ((table.low <= table.power) & (table.power <= table.high)).all()
    with pytest.raises(ValueError, match="repeats = 18; a false-alarm rate of 5% needs at least 19"):
        power_table([100], repeats=18)


def test_the_size_at_a_power_interpolates_and_says_when_it_is_not_reached():
    group = pd.DataFrame({"n": [100, 1_000, 10_000], "power": [0.2, 0.6, 1.0]})
    assert size_at_power(group) == pytest.approx(1_000 * 10**0.5)
    assert size_at_power(group.assign(power=[0.9, 0.9, 1.0])) == 100
    assert size_at_power(group.assign(power=[0.1, 0.9, 0.7])) == math.inf
    assert size_at_power(group.assign(power=[0.9, 0.2, 1.0])) == pytest.approx(1_000 * 10**0.75)


def test_the_bracket_holds_for_means_and_for_degenerate_statistics():
    """Reach of a mean, (n/N)^(1/2), and of a noncentral chi-square score, whose growth bends from n to its root."""
    sizes, truth = np.array([500, 1_000, 2_000, 5_000]), 40_000

    def chi_square(shift):  # two degrees of freedom, noncentrality = shift of the mean
        return shift / (chi2(2).ppf(0.95) - 2 + NormalDist().inv_cdf(0.8) * np.sqrt(4 + 4 * shift))

    at_truth = brentq(lambda shift: chi_square(shift) - 1, 1, 100)
    for values in ((sizes / truth) ** 0.5, chi_square(at_truth * sizes / truth)):
        rows = pd.DataFrame({"n": sizes, "reach": values, "reach_low": values / 1.1, "reach_high": values * 1.1})
        low, high = power.bracketed_size(rows.sample(frac=1, random_state=0))
        assert low < truth < high
    for nothing in (-values, values[::-1], np.where(sizes == 5_000, np.inf, values), 0 * values, values**4):
        rows = pd.DataFrame({"n": sizes, "reach": nothing, "reach_low": nothing / 1.1, "reach_high": nothing * 1.1})
        assert all(map(math.isnan, power.bracketed_size(rows)))


def test_the_reach_is_one_at_eighty_percent_power_of_a_normal_score():
    """A score N(0, 1) that a flaw shifts by z_0.95 + z_0.8 has a power of 80%; against a twin the shift is exact."""
    shift = NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.8)
    fresh, twin = np.random.default_rng(0).standard_normal((2, 4_000))
    reach, low, high = power._reach_interval(fresh, twin, twin + shift, 0)
    assert reach == pytest.approx(1, abs=0.03)
    assert low < reach < high
    assert (twin + shift > NormalDist().inv_cdf(0.95)).mean() == pytest.approx(0.8, abs=0.02)
    few = np.random.default_rng(0).standard_normal((2, 2_000, 39))
    assert power._reach(*few, few[1] + shift).mean() == pytest.approx(1, abs=0.05)  # 0.9 by numpy's default quantile


def test_a_twin_is_the_law_from_the_numbers_of_the_flawed(monkeypatch):
    """Thickness of thick arcs is exactly 1.05 times the twin's, and their divergent share moves in no repeat."""
    scores = {("thickness",): (thickness, 200), ("divergent share",): (divergent_share, 200)}
    monkeypatch.setattr(power, "SCORES", scores)
    values = power._values(("thickness",), 200, 5, 0)
    assert values["arcs 5% too thick"] == pytest.approx(1.05 * values["twin"], rel=0.01)
    table = power_table([200], repeats=19, workers=1, progress=False).set_index(["score", "defect"])
    thick = table.loc["thickness", "arcs 5% too thick"]
    assert 0 < thick.reach_low < thick.reach < thick.reach_high
    assert (table.loc["divergent share", "arcs 5% too thick"][["reach", "reach_low", "reach_high"]] == 0).all()
