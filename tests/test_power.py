import math

import numpy as np
import pandas as pd
import pytest
import torch

from ddpmlab import data
from ddpmlab.lab import power, remembered
from ddpmlab.lab.power import (
    DEFECTS,
    GLOBAL,
    LOCAL,
    divergent_share,
    power_table,
    sensitivity_table,
    thickness,
)  # fmt: skip

FLAWS = LOCAL | GLOBAL
LAW = data.make("two_moons")


def draw(defect, n=200_000):
    return DEFECTS[defect](n, torch.Generator().manual_seed(0))


def test_defects_are_of_the_stated_size():
    rms = LAW.distance_to_arcs(draw("arcs 5% too thick")).square().mean().sqrt()
    perfect = LAW.distance_to_arcs(LAW.sample(200_000, 1)).square().mean().sqrt()
    assert float(rms / perfect) == pytest.approx(1.05, abs=0.01)
    away = (draw("0.05% divergent").abs() > 4).any(1).double().mean()
    assert 3e-4 < float(away) < 6e-4
    # the missing piece: a twenty-fifth of the upper arc about its top, 2% of all mass, and everything else untouched
    x = draw("2% of an arc missing")
    angle = torch.atan2(x[:, 1], x[:, 0]) / math.pi
    near_upper = ((x.norm(dim=1) - 1).abs() < 0.15) & (x[:, 1] > 0.6)
    real = LAW.sample(200_000, 2)
    real_upper = ((real.norm(dim=1) - 1).abs() < 0.15) & (real[:, 1] > 0.6)
    real_angle = torch.atan2(real[:, 1], real[:, 0]) / math.pi
    hole = [
        float((a[u] > 0.495).logical_and(a[u] < 0.505).double().mean())
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


def test_large_flaws_are_of_the_stated_size():
    n, law = 200_000, LAW.standardised()
    points = {name: power._standard(make(n, torch.Generator().manual_seed(0))) for name, make in FLAWS.items()}
    same = power._standard(LAW.sample(n, torch.Generator().manual_seed(0)))
    triple = thickness(points["arcs 3 times as thick"], same) / thickness(same, same)
    assert triple == pytest.approx(3, rel=0.02)
    torch.testing.assert_close(points["spread 10% too large"], 1.1 * same)
    torch.testing.assert_close(points["moved by 0.1 sd"] - same, torch.tensor([0.1, 0.0]).double().expand(n, 2))
    low = law.to_own_units(points["10% of the mass missing"])[:, 1] < -0.1  # of the lower arc nothing is missing
    kept = float(low.double().mean() / (law.to_own_units(same)[:, 1] < -0.1).double().mean())
    assert kept == pytest.approx(1 / 0.9, rel=0.02)


def test_the_sensitivity_is_the_paired_shift_over_the_scatter_of_perfect_samples(monkeypatch):
    def first(x, y):  # mean of the first coordinate: a shift of 0.1 moves it by 0.1, whatever the points
        return float(x[:, 0].mean())

    monkeypatch.setattr(power, "COMPARED", {"first": first})
    n, repeats = 400, 60
    table = sensitivity_table(n, repeats, seed=3).set_index("flaw")["sensitivity"]
    assert list(table.index) == list(FLAWS)
    spread = n**-0.5  # of a mean of n standardised points; its estimate from 60 has a relative error of 9%
    assert table["moved by 0.1 sd"] == pytest.approx(0.1 / spread, rel=0.3)
    assert abs(table["spread 10% too large"]) < 0.1  # the twin takes the noise away: 0.1 times the mean of means
    with pytest.raises(ValueError, match="repeats = 1; a standard deviation needs at least 2"):
        sensitivity_table(n, 1, 0)
