"""What the page on scores computes: perfect and flawed samples by the reports' conventions."""

import numpy as np
import pandas as pd
import pytest
import torch

from ddpmlab import data, metrics
from ddpmlab.metrics.moons import report_sample
from ddpmlab.studies import scores

MOONS = data.make("two_moons").standardised()


def cell(table: pd.DataFrame, variant: str, metric: str) -> np.ndarray:
    return table[(table.variant == variant) & (table.metric == metric)]["value"].to_numpy()


def test_mmd_is_clamped_at_zero_as_the_reports_code_does():
    table = scores.by_the_report(300, 6, 2)
    signed, printed = (cell(table, scores.PERFECT, name) for name in ("mmd2", "mmd_published"))
    assert len(signed) == 6
    assert (signed < 0).any()
    np.testing.assert_array_equal(printed, np.sqrt(np.maximum(signed, 0)))
    x = next(x for x in (MOONS.sample(300, k) for k in range(9)) if metrics.mmd2(x, report_sample(300)) < 0)
    assert metrics.mmd2(x, report_sample(300), "two-moons-report") == 0.0  # not the root of some least value
    noise = cell(table, scores.NOISE, "energy_distance_published")
    assert noise.min() > cell(table, scores.PERFECT, "energy_distance_published").max()


def test_folds_of_the_datas_seed_collide_and_others_do_not():
    found = scores.folds_of(300, 0.0, 0, free=True)
    accuracy = {v: cell(found, f"blur 0, {v}", "c2st_accuracy_published")[0] for v in (scores.COLLIDING, scores.FREE)}
    first, other = (
        cell(found, f"blur 0, {v}", "c2st_accuracy_published")[0] for v in ("its first repeat", "its other two")
    )
    assert first < 0.25
    assert min(other, accuracy[scores.FREE]) > 0.4
    assert accuracy[scores.COLLIDING] == pytest.approx((first + 2 * other) / 3)
    assert scores.FREE not in " ".join(scores.folds_of(50, 0.1, 0, free=False).variant)


def test_a_line_sees_a_move_and_not_a_blur():
    x, y = MOONS.sample(2_000, 0), MOONS.sample(2_000, 1)
    assert scores.logistic_auc(3 * x, y) == pytest.approx(0.5, abs=0.03)
    assert scores.logistic_auc(x + torch.tensor([3.0, 0.0]), y) > 0.95
    assert metrics.c2st(3 * x[:500], y[:500]).auc > 0.8


def test_scatter_over_directions_falls_with_their_number():
    few, many = (scores.directions(100, 3, 8, k).groupby("variant")["value"].mean() for k in (4, 400))
    assert few["4 directions, over directions"] > 3 * many["400 directions, over directions"]
    assert many["400 directions, over directions"] < many["400 directions, over samples"]


def test_raw_units_move_the_points_and_not_the_noise():
    table = {units: scores.emds("helix", 64, 4, units) for units in scores.UNITS}
    own, raw = (cell(table[units], f"{scores.NOISE}, {units}", "emd_total").mean() for units in scores.UNITS)
    assert raw > 1.3 * own  # the helix in its own units lies off the origin
    with pytest.raises(ValueError, match="units = 'metres'; choose one of: standardised"):
        scores.emds("helix", 64, 4, "metres")


def test_one_repeated_point_beats_real_data_by_the_courses_nll():
    table = scores.course_nlls("helix", 200, 2)
    real, crowd = (cell(table, v, "course_nll_published") for v in (scores.PERFECT, "one point, repeated"))
    assert crowd[0] < real.min() < cell(table, scores.NOISE, "course_nll_published").min()
