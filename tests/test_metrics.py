import itertools
import math
import subprocess
import sys

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.datasets import make_moons
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from ddpmlab import data, metrics
from ddpmlab.metrics import c2st, course_nll, distances, emd, energy_distance, mmd2, neighbourhood, sliced_wasserstein
from ddpmlab.metrics.calibration import Calibration, calibrate, floor_and_ceiling, fresh_points, fresh_test, stream
from ddpmlab.metrics.two_sample import permutation_test


def draw(n, dim, seed, scale=1.0):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dim, seed):
    return torch.linalg.qr(draw(dim, dim, seed))[0]


SIZES = {"n": st.integers(2, 60), "m": st.integers(2, 60), "dim": st.integers(1, 4), "seed": st.integers(0, 2**31)}
SYMMETRIC = (emd, energy_distance, mmd2, sliced_wasserstein, course_nll)


@given(n=st.integers(1, 128), dim=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_emd_is_the_linear_sum_assignment(n, dim, seed):
    x, y = draw(n, dim, seed), draw(n, dim, seed + 1, 2.0)
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    row, column = linear_sum_assignment(cost)
    total = cost[row, column].sum()
    assert emd(x, y, reduction="total") == pytest.approx(total, abs=1e-9, rel=1e-9)
    assert emd(x, y) == pytest.approx(total / n, abs=1e-9, rel=1e-9)


def test_one_dimension_is_the_quantile_distance():
    x, y = draw(50, 1, 0), draw(80, 1, 1)
    expected = wasserstein_distance(x[:, 0], y[:, 0])
    assert emd(x, y) == pytest.approx(expected, abs=1e-9)
    assert sliced_wasserstein(x, y) == pytest.approx(expected, abs=1e-9)


@given(**SIZES)
def test_definitions_by_brute_force(n, m, dim, seed):
    x, y = draw(n, dim, seed), draw(m, dim, seed + 1, 1.5)
    xy, xx, yy = cdist(x, y), cdist(x, x), cdist(y, y)
    u = 2 * xy.mean() - xx.sum() / (n * (n - 1)) - yy.sum() / (m * (m - 1))
    v = 2 * xy.mean() - xx.mean() - yy.mean()
    assert energy_distance(x, y) == pytest.approx(u, abs=1e-10)
    assert energy_distance(x, y, "biased") == pytest.approx(v, abs=1e-10)
    assert energy_distance(x, y, "two-moons-report") == pytest.approx(math.sqrt(max(v, 0)), abs=1e-6)
    pooled = np.concatenate([x, y])
    off = cdist(pooled, pooled) ** 2
    off = np.sort(off[off > 0])
    gamma = 2 / off[(len(off) - 1) // 2]  # torch's median is the lower one
    k = lambda d: np.mean([np.exp(-gamma * 2.0**i * d**2) for i in range(-2, 3)], 0)  # noqa: E731
    unbiased = (k(xx).sum() - n) / (n * (n - 1)) + (k(yy).sum() - m) / (m * (m - 1)) - 2 * k(xy).mean()
    assert mmd2(x, y) == pytest.approx(unbiased, abs=1e-10)
    assert mmd2(x, y, "biased") == pytest.approx(k(xx).mean() + k(yy).mean() - 2 * k(xy).mean(), abs=1e-10)
    assert mmd2(x, y, "two-moons-report") == pytest.approx(math.sqrt(max(unbiased, 0)), abs=1e-6)
    nll = -math.log((np.exp(-(xy**2) / 0.4) / (2 * math.pi * 0.1) ** (dim / 2)).mean())
    assert course_nll(x, y) == pytest.approx(nll, abs=1e-10)


@pytest.mark.parametrize("n", [200, 300])
def test_sliced_wasserstein_is_pots(n):
    x, y = draw(300, 3, 0), draw(n, 3, 1, 1.2)
    directions = torch.nn.functional.normalize(draw(3, 256, 0), dim=0)
    expected = float(ot.sliced_wasserstein_distance(x, y, projections=directions, p=1))
    assert sliced_wasserstein(x, y, seed=0) == pytest.approx(expected, abs=1e-9)
    by_hand = np.mean([wasserstein_distance(x @ u, y @ u) for u in directions.T])
    assert expected == pytest.approx(by_hand, abs=1e-9)


def test_gaussians_in_closed_form():
    """N(0, 1) against N(m, 1) in one dimension: all four have formulas; 2,000 stratified points come close to them."""
    u = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    x = torch.special.ndtri(u)[:, None]
    for m in (0.0, 0.5, 2.0):
        y = x + m
        assert emd(x[::20], y[::20]) == pytest.approx(m, abs=1e-6)
        assert sliced_wasserstein(x, y) == pytest.approx(m, abs=1e-6)
        folded = 2 * stats.norm.pdf(m / 2**0.5) * 2**0.5 + m * (2 * stats.norm.cdf(m / 2**0.5) - 1)  # E|X - Y|
        energy = 2 * (folded - 2 / math.pi**0.5)
        assert energy_distance(x, y, "biased") == pytest.approx(energy, abs=2e-3)
        gammas = np.array(distances.median_bandwidths(x, y))
        same, shifted = ((np.exp(-gammas * d**2 / (1 + 4 * gammas)) / np.sqrt(1 + 4 * gammas)).mean() for d in (0, m))
        assert mmd2(x, y, "biased") == pytest.approx(2 * (same - shifted), abs=2e-3)


@given(metric=st.sampled_from(SYMMETRIC), **SIZES)
def test_symmetry_and_translation(metric, n, m, dim, seed):
    x, y, shift = draw(n, dim, seed), draw(m, dim, seed + 1), draw(1, dim, seed + 2, 5.0)
    value = metric(x, y)
    assert metric(y, x) == pytest.approx(value, abs=1e-9)
    assert metric(x + shift, y + shift) == pytest.approx(value, abs=1e-7)


@given(metric=st.sampled_from((emd, energy_distance, mmd2, course_nll)), **SIZES)
def test_rotation(metric, n, m, dim, seed):
    x, y, turn = draw(n, dim, seed), draw(m, dim, seed + 1), rotation(dim, seed + 2)
    assert metric(x @ turn, y @ turn) == pytest.approx(metric(x, y), abs=1e-8)


def test_sliced_wasserstein_rotates_up_to_its_directions():
    x, y, turn = draw(200, 3, 0), draw(200, 3, 1, 1.5), rotation(3, 2)
    values = [sliced_wasserstein(x @ r, y @ r, n_projections=4_000) for r in (torch.eye(3, dtype=torch.float64), turn)]
    assert values[0] == pytest.approx(values[1], rel=0.02)


@given(n=st.integers(8, 60), dim=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_identity(n, dim, seed):
    x = draw(n, dim, seed)
    assert emd(x, x) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x, x) == pytest.approx(0, abs=1e-12)
    assert energy_distance(x, x, "biased") == pytest.approx(0, abs=1e-12)
    assert mmd2(x, x, "biased") == pytest.approx(0, abs=1e-12)
    assert energy_distance(x, x) < 0
    found = neighbourhood(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_chunks_do_not_change_anything(monkeypatch):
    x, y = draw(257, 3, 0), draw(131, 3, 1)
    calls = [energy_distance, mmd2, course_nll, sliced_wasserstein, lambda a, b: permutation_test(a, b)[0]]
    calls += [lambda a, b: permutation_test(a, b, "mmd2")[0], lambda a, b: permutation_test(a, b).p_value]
    whole = [f(x, y) for f in calls]
    monkeypatch.setattr(distances, "_BLOCK", 1_000)
    for f, value in zip(calls, whole, strict=True):
        assert f(x, y) == pytest.approx(value, abs=1e-6)


def test_emd_without_the_cost_matrix_is_the_same(monkeypatch):
    x, y = draw(257, 3, 0), draw(131, 3, 1)
    whole = emd(x, y), emd(x, y[:100].repeat(2, 1)), emd(y, y + 1, reduction="total")
    monkeypatch.setattr(distances, "_EMD_PAIRS", 0)
    found = emd(x, y), emd(x, y[:100].repeat(2, 1)), emd(y, y + 1, reduction="total")
    assert found == pytest.approx(whole, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), m=st.integers(1, 60), dim=st.integers(1, 5), step=st.sampled_from([0, 1, 0.25]))
def test_emd_by_columns_is_that_of_all_pairs_with_ties_and_unequal_sizes(n, m, dim, step):
    """Points on a lattice (step > 0) have many equal distances, and optimal plans."""
    x, y = draw(n, dim, 0), draw(m, dim, 1, 2.0)
    x, y = ((step * (z / step).round() if step else z) for z in (x, y))
    with pytest.MonkeyPatch.context() as patch:
        whole = emd(x, y)
        patch.setattr(distances, "_EMD_PAIRS", 0)
        patch.setattr(distances, "_EMD_NEAREST", 1)
        patch.setattr(distances, "_EMD_MORE", 1)
        assert emd(x, y) == pytest.approx(whole, abs=1e-9)


def test_emd_by_columns_ends_where_rounding_alone_breaks_the_duals(monkeypatch):
    x, y = draw(300, 2, 0), draw(300, 2, 1)
    whole = emd(x, y)
    monkeypatch.setattr(distances, "_EMD_PAIRS", 0)
    monkeypatch.setattr(distances, "_EMD_TOLERANCE", -1e-12)  # every pair of the plan, at 0, counts as broken
    assert emd(x, y) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("change", [lambda x: 1e-9 * x, lambda x: 1e9 * x, lambda x: 3 * x, lambda x: x + 20])
def test_emd_by_columns_of_very_different_laws_drops_pairs_and_is_exact_in_any_units(monkeypatch, change):
    x, y = draw(400, 2, 0), change(draw(300, 2, 1))
    whole = emd(x, y), emd(change(x), y)
    monkeypatch.setattr(distances, "_EMD_PAIRS", 0)
    monkeypatch.setattr(distances, "_EMD_MOST", 6)
    assert (emd(x, y), emd(change(x), y)) == pytest.approx(whole, rel=1e-9)


def test_emd_by_columns_that_rounding_leaves_unproven_is_an_error(monkeypatch):
    monkeypatch.setattr(distances, "_EMD_PAIRS", 0)
    monkeypatch.setattr(distances, "_EMD_GAP", -1e-3)  # no gap is small enough
    with pytest.raises(RuntimeError, match=r"300 against 300 points: .* leave far points out or use sliced_wasser"):
        emd(draw(300, 2, 0), draw(300, 2, 1))


@pytest.mark.parametrize("pairs", [0, 10_000_000])
def test_emd_that_stops_short_is_an_error(monkeypatch, pairs):
    monkeypatch.setattr(distances, "_EMD_ITERATIONS", 10)
    monkeypatch.setattr(distances, "_EMD_PAIRS", pairs)
    with pytest.raises(RuntimeError, match=r"EMD of 300 against 300 points: .*use sliced_wasserstein"):
        emd(draw(300, 2, 0), draw(300, 2, 1))


def grown_by(code):
    """Bytes by which the peak memory of a fresh process grows between `before` and the end of `code`.

    By the kernel's own mark for the process: `ru_maxrss` starts at the parent's peak, and so hides growth below that.
    """
    peak = "peak = lambda: 1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    code = peak + code + "\nprint(peak() - before)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_hundred_thousand_points_a_side_need_under_two_gigabytes():
    code = (
        "import torch; from ddpmlab import metrics; from ddpmlab.metrics import distances\n"
        "x, y = torch.rand(2, 100_000, 2, dtype=torch.float64); x[0] = 50\n"
        "before = peak(); metrics.sliced_wasserstein(x, y); metrics.neighbourhood(x, y)\n"
        "distances.median_bandwidths(x, y); rows, d = next(distances.distance_blocks(x, y))\n"
        "gammas = [1.0] * 5; float(distances.kernel(d, gammas).sum())"
    )  # the sums over pairs visit such blocks one after another; one is enough for the peak
    assert grown_by(code) < 2e9


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_emd_of_many_points_does_not_hold_its_cost_matrix():
    code = (
        "import torch; from ddpmlab.metrics import distances\n"
        "x, y = torch.rand(2, 6_000, 2, dtype=torch.float64); before = peak(); distances.emd(x, y)"
    )
    assert grown_by(code) < 4 * 6_000**2  # the matrix takes 8 bytes a pair, beside what the solver makes of it


def test_neighbourhood_by_brute_force():
    x, y, k = draw(80, 2, 0, 1.3).numpy(), draw(60, 2, 1).numpy(), 4
    radius_y, radius_x = np.sort(cdist(y, y))[:, k], np.sort(cdist(x, x))[:, k]
    in_real, in_made = cdist(x, y) <= radius_y, cdist(y, x) <= radius_x
    found = neighbourhood(torch.from_numpy(x), torch.from_numpy(y), k)
    expected = in_real.any(1).mean(), in_made.any(1).mean(), in_real.sum(1).mean() / k, in_real.any(0).mean()
    assert found == pytest.approx(expected)


def reports_c2st(gen, real):
    """The two-moons report's arithmetic, in its own terms: 5 folds, 3 repeats, seed 42, probabilities, 2|AUC - 1/2|."""
    points, label = np.concatenate([real, gen]), np.repeat([1, 0], [len(real), len(gen)])
    aucs, accuracies = [], []
    for train, test in RepeatedStratifiedKFold(n_splits=5, n_repeats=3, random_state=42).split(points, label):
        model = make_pipeline(StandardScaler(), SVC(kernel="rbf", gamma="scale", C=1.0)).fit(
            points[train], label[train]
        )
        aucs.append(2 * abs(roc_auc_score(label[test], model.decision_function(points[test])) - 0.5))
        accuracies.append(accuracy_score(label[test], model.predict(points[test])))
    return np.mean(accuracies), np.mean(aucs)


def test_the_reports_c2st_and_what_its_seeds_do():
    """A *perfect* sampler: the report's folds undo the shuffle of the data that share their seed, others do not."""
    n = 1_000
    real = make_moons(n, noise=0.05, random_state=42)[0]
    perfect = data.make("two_moons").sample(n, 7).numpy()
    found = c2st(torch.from_numpy(perfect), torch.from_numpy(real), convention="two-moons-report")
    assert found == pytest.approx(reports_c2st(perfect, real), abs=1e-12)
    assert found.accuracy < 0.45
    other = make_moons(n, noise=0.05, random_state=43)[0]
    assert c2st(torch.from_numpy(perfect), torch.from_numpy(other), convention="two-moons-report").accuracy > 0.47
    assert c2st(torch.from_numpy(perfect), torch.from_numpy(real), seed=1).accuracy == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("classifier", ["svm", "fast"])
def test_c2st_finds_what_is_there_and_nothing_else(classifier):
    law = data.make("two_moons").standardised()
    x, y = law.sample(1_000, 0), law.sample(1_000, 1)
    nothing = c2st(x, y, classifier)
    assert nothing.accuracy == pytest.approx(0.5, abs=0.05)
    assert nothing.auc == pytest.approx(0.5, abs=0.06)
    noise = draw(1_000, 2, 3)
    assert c2st(noise, y, classifier).auc > 0.7
    shifted = c2st(x + 10, y, classifier)
    assert shifted.accuracy == 1


@pytest.mark.parametrize("statistic", ["energy_distance", "mmd2"])
def test_the_permutation_statistic_is_the_metric(statistic):
    x, y = draw(90, 2, 0), draw(120, 2, 1, 1.1)
    assert permutation_test(x, y, statistic).statistic == pytest.approx(getattr(metrics, statistic)(x, y), abs=1e-6)


@pytest.mark.parametrize("statistic", ["energy_distance", "mmd2"])
def test_permutation_p_values_are_uniform_under_the_null(statistic):
    p = [
        permutation_test(draw(40, 2, 2 * i), draw(40, 2, 2 * i + 1), statistic, 99, seed=i).p_value for i in range(200)
    ]
    jittered = np.array(p) - np.random.default_rng(0).uniform(
        0, 0.01, 200
    )  # p is one of 1/100, ..., 1: spread the atoms
    assert stats.kstest(jittered, "uniform").pvalue > 0.01


def enumerated(x, y, statistic):
    """Share of all relabellings whose statistic is no smaller, for integers on a line, in exact arithmetic."""
    pooled, n = [*x, *y], len(x)

    def value(chosen):
        a, b = [pooled[i] for i in chosen], [pooled[i] for i in range(len(pooled)) if i not in chosen]
        mean = lambda u, v: sum(statistic(p, q) for p in u for q in v)  # noqa: E731
        within = mean(a, a) * len(b) * (len(b) - 1) + mean(b, b) * len(a) * (len(a) - 1)
        return 2 * mean(a, b) * (len(a) - 1) * (len(b) - 1) - within

    values = [value(chosen) for chosen in itertools.combinations(range(len(pooled)), n)]
    return np.mean([v >= value(tuple(range(n))) for v in values])


@pytest.mark.parametrize(
    ("x", "y"), [([1, 1, 1, 0], [0, 0, 0, 1]), ([0, 1, 1, 3], [1, 2, 3, 3, 2]), ([5, 1, 2, 2, 7], [3, 3, 1, 9])]
)
@pytest.mark.parametrize(("unit", "shift"), [(1.0, 0.0), (0.1, 0.3), (1e-9, 0.0), (3e30, 0.0), (0.1, 1_000.0)])
def test_permutations_that_tie_in_exact_arithmetic_tie_in_the_p_value(x, y, unit, shift):
    expected = enumerated(x, y, lambda p, q: abs(p - q))
    points = [unit * torch.tensor(v, dtype=torch.float64)[:, None] + shift for v in (x, y)]
    found = permutation_test(*points, n_permutations=9_999).p_value
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 9_999))


def test_mmd_ties_by_enumeration():
    """Two values, so that the kernel's width does not matter: 34 of the 70 relabellings are no smaller."""
    x, y = torch.tensor([[1.0], [1], [1], [0]]), torch.tensor([[0.0], [0], [0], [1]])
    assert permutation_test(x, y, "mmd2", n_permutations=9_999).p_value == pytest.approx(34 / 70, abs=0.02)


def test_far_points_give_finite_scores_or_an_error():
    x, y = draw(100, 2, 0), draw(100, 2, 1)
    x[0, 0] = 3e38
    for statistic in ("energy_distance", "mmd2"):
        found = permutation_test(x, y, statistic)
        assert math.isfinite(found.statistic)
        assert found.p_value > 0.005  # the tie of all permutations is no evidence
    for metric in (emd, energy_distance, mmd2, sliced_wasserstein, course_nll):
        assert math.isfinite(metric(x, y))
        assert math.isfinite(metric(x.float(), y.float()))
    assert all(map(math.isfinite, (*neighbourhood(x, y), *c2st(x, y, "fast"), *c2st(x, y))))
    column = torch.full((100, 1), 3e38, dtype=torch.float64)  # the same number everywhere: nothing changes
    both = [torch.cat([draw(100, 2, s), column], 1) for s in (2, 1)]
    assert permutation_test(*both) == pytest.approx(permutation_test(both[0][:, :2], both[1][:, :2]), rel=1e-9)


@pytest.mark.parametrize("size", [1e160, 1e-160])
@pytest.mark.parametrize("metric", [*SYMMETRIC, neighbourhood, c2st, permutation_test], ids=lambda f: f.__name__)
def test_coordinates_whose_squares_do_not_fit_are_an_error(metric, size):
    with pytest.raises(ValueError, match=r"x reaches .*e[+-]160; distances need its square.*rescale both samples"):
        metric(size * draw(20, 2, 0).sign(), draw(20, 2, 1))


def test_a_score_that_overflows_is_an_error():
    with pytest.raises(ArithmeticError, match="course NLL = inf"):
        course_nll(draw(5, 2, 0), draw(5, 2, 1), tau=1e-310)


def test_the_permutation_statistic_is_computed_in_double_precision():
    x, y = draw(90, 2, 0), draw(120, 2, 1, 1.1)
    x[0] = 1e5
    for statistic in ("energy_distance", "mmd2"):
        expected = getattr(metrics, statistic)(x, y)
        assert permutation_test(x, y, statistic).statistic == pytest.approx(expected, rel=1e-9, abs=1e-9)


UNITS = (1e-140, 1e-30, 1e-12, 1e-6, 1e6, 1e30)


@pytest.mark.parametrize("c", UNITS)
def test_scores_in_other_units(c, monkeypatch):
    x, y = draw(80, 2, 0), draw(80, 2, 1, 1.4)
    for metric in (emd, energy_distance, sliced_wasserstein, lambda a, b: sliced_wasserstein(a, b[:60])):
        assert metric(c * x, c * y) == pytest.approx(c * metric(x, y), rel=1e-9)
    assert mmd2(c * x, c * y) == pytest.approx(mmd2(x, y), rel=1e-9)
    assert neighbourhood(c * x, c * y) == neighbourhood(x, y)
    assert c2st(c * x, c * y) == pytest.approx(c2st(x, y), abs=1e-9)
    for statistic in ("energy_distance", "mmd2"):
        assert permutation_test(c * x, c * y, statistic).p_value == permutation_test(x, y, statistic).p_value
    monkeypatch.setattr(distances, "_EMD_PAIRS", 0)
    whole = emd(x, y)
    assert emd(c * x, c * y) == pytest.approx(c * whole, rel=1e-9)


def test_points_that_rounding_alone_tells_apart_do_not_set_the_bandwidth():
    same = torch.tensor([[0.1 + 0.2], [0.3]], dtype=torch.float64)
    x, y = torch.cat([same.repeat(20, 1), same + 1]), torch.cat([same.repeat(20, 1), same + 2])
    exact = [z.round(decimals=9) for z in (x, y)]
    assert distances.median_bandwidths(x, y) == pytest.approx(distances.median_bandwidths(*exact), rel=1e-9)
    assert mmd2(x, y) == pytest.approx(mmd2(*exact), rel=1e-9)
    with pytest.raises(ValueError, match="all points are the same"):
        mmd2(same, same)
    far = torch.tensor([[1e25]], dtype=torch.float64)  # hides no other distance
    assert distances.median_bandwidths(torch.cat([x, far]), y) == pytest.approx(
        distances.median_bandwidths(torch.cat([exact[0], 1000 + 0 * far]), exact[1])
    )


def test_course_nll_of_samples_far_apart():
    one, other = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = math.log(2 * math.pi * 0.1) + 400 / 0.4
    assert course_nll(one, other) == pytest.approx(expected, rel=1e-12)
    assert course_nll(one.repeat(3, 1), other.repeat(2, 1)) == pytest.approx(expected, rel=1e-12)
    x, y = draw(50, 2, 0), draw(40, 2, 1)
    assert 700 < course_nll(x + 20, y) < 2_000
    assert course_nll(x + 1e9, y) == pytest.approx(2e18 / 0.4, rel=1e-6)


def test_balls_hold_the_points_on_their_rims():
    """A copy has (k + 1)/k real points a ball; on a lattice many distances tie, in any units and wherever it lies."""
    x = draw(300, 3, 0)
    for copy in (x, 0.1 * x, x + 7):
        assert neighbourhood(copy, copy).density == 6 / 5
    x, y = (torch.randint(0, 12, (n, 2), generator=torch.Generator().manual_seed(n)).double() for n in (90, 80))
    exact = neighbourhood(x, y, 3)
    square_y, square_x = ((np.round(cdist(z, z) ** 2)) for z in (y, x))
    between = np.round(cdist(x, y) ** 2)
    held = between <= np.sort(square_y)[:, 3]
    assert exact.density == held.sum(1).mean() / 3
    assert exact.recall == (np.sort(square_x)[:, 3] >= between.T).any(1).mean()
    for unit, shift in ((0.1, 0.0), (0.1, 0.7), (1 / 3, 100.0)):
        assert neighbourhood(unit * x + shift, unit * y + shift, 3) == exact


@pytest.mark.parametrize("classifier", ["svm", "fast"])
def test_the_order_of_the_points_is_no_evidence(classifier):
    law = data.make("two_moons").standardised()
    x, y = law.sample(400, 0), law.sample(1_600, 1)
    for sample in (y[y[:, 0].argsort()], y[y[:, 0].argsort(descending=True)]):
        assert c2st(x, sample, classifier).accuracy == pytest.approx(0.5, abs=0.06)
        assert c2st(sample, x, classifier).accuracy == pytest.approx(0.5, abs=0.06)
        assert c2st(sample, x, classifier, seed=1) != c2st(sample, x, classifier, seed=2)
    assert c2st(sample, x, convention="two-moons-report").accuracy == pytest.approx(0.5, abs=0.06)


def test_tests_of_many_seeds_each_have_real_points_of_their_own():
    """Of a perfect sampler's p-values 5% lie below 0.05, also for one and the same set of generated points."""
    law = data.make("two_moons").standardised()
    p = [fresh_test(law.sample(60, 10_000 + seed), law, seed=seed, n_permutations=99).p_value for seed in range(200)]
    assert stats.kstest(np.array(p) - np.random.default_rng(0).uniform(0, 0.01, 200), "uniform").pvalue > 0.01
    drawn = [fresh_points(law, 5, seed) for seed in range(20)] + [law.sample(5, seed) for seed in range(20)]
    assert len(torch.cat(drawn).unique(dim=0)) == 200  # no two streams share a point
    assert torch.equal(fresh_points(law, 5, np.int64(3)), fresh_points(law, 5, 3))
    assert float(torch.rand(1, generator=stream("a", 0))) != float(torch.rand(1, generator=stream("b", 0)))
    x = law.sample(80, 3)
    found = fresh_test(x, law, "mmd2", n=50, seed=4)
    assert found.statistic != fresh_test(x, law, "mmd2", n=50, seed=5).statistic
    assert found == fresh_test(x, law, "mmd2", n=50, seed=4)
    with pytest.raises(ValueError, match="80 points, but the score compares 81"):
        fresh_test(x, law, n=81)


def test_calibration_never_compares_a_sample_with_itself():
    law = data.make("two_moons").standardised()
    for seed in range(4):
        assert calibrate(emd, law.sample(60, seed), law, repeats=2).value > 0.01


def test_floors_and_ceilings_that_rounding_alone_tells_apart_are_the_same():
    with pytest.raises(ValueError, match="cannot tell noise from data"):
        Calibration(0.1 + 0.2, 0.0, 0.3, 0.0).fraction_left(0.3)
    with pytest.raises(ValueError, match=r"value, floor and ceiling are nan, 0\.0 and 1\.0"):
        Calibration(0.0, 0.1, 1.0, 0.1).fraction_left(math.nan)
    law = data.make("gaussian")
    with pytest.raises(ValueError, match="3 of 3 values of the floor are NaN or infinite"):
        floor_and_ceiling(lambda x, y: math.nan, law, 5, repeats=3)


def test_permutation_finds_a_difference():
    assert permutation_test(draw(300, 2, 0, 2.0), draw(300, 2, 1)).p_value == 1 / 200


def test_calibration_puts_noise_at_one_and_data_at_zero():
    law = data.make("two_moons").standardised()
    found = calibrate(energy_distance, law.sample(1_000, 5), law, repeats=10)
    assert abs(found.fraction_left) < 0.05
    assert found.p_value > 0.05
    noise = calibrate(energy_distance, draw(1_000, 2, 5), law, repeats=10)
    assert noise.fraction_left == pytest.approx(1, abs=0.15)
    assert noise.p_value == 1 / 200
    assert calibrate(sliced_wasserstein, law.sample(500, 5), law, repeats=5).p_value is None
    # a finite test set: draws without overlap, so the floor is unbiased
    test = law.sample(1_000, 6)
    finite = floor_and_ceiling(energy_distance, test, 400, repeats=20)
    assert abs(finite.floor_mean) < 4 * finite.floor_sd
    with pytest.raises(
        ValueError, match="a test set of 1000 points gives real-against-real draws of at most 500, not 501"
    ):
        floor_and_ceiling(energy_distance, test, 501)
    with pytest.raises(ValueError, match="repeats = 1"):
        floor_and_ceiling(energy_distance, law, 10, repeats=1)
    with pytest.raises(ValueError, match="cannot tell noise from data"):
        Calibration(1.0, 0.1, 1.0, 0.1).fraction_left(1.0)


GOOD = draw(9, 2, 0)


@pytest.mark.parametrize(
    "metric",
    [emd, energy_distance, mmd2, sliced_wasserstein, course_nll, neighbourhood, c2st, permutation_test],
    ids=lambda f: f.__name__,
)
def test_bad_samples_are_named(metric):
    for x, y, message in (
        (draw(9, 3, 0), GOOD, "x has 3 dimensions, y has 2"),
        (GOOD[:0], GOOD, "x has 0 points"),
        (GOOD[:, 0], GOOD, r"x has shape \(9,\)"),
        (GOOD, GOOD / 0, "y holds 9 points with NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(x, y)
    if metric not in (emd, course_nll):
        with pytest.raises(ValueError, match=r"x has 1 points; this score needs at least"):
            metric(GOOD[:1], GOOD)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: emd(GOOD, GOOD[:5], reduction="total"), "total cost needs equal sizes, got 9 and 5"),
        (lambda: emd(GOOD, GOOD, reduction="sum"), "unknown reduction 'sum'; choose one of: mean, total"),
        (lambda: energy_distance(GOOD, GOOD, "v"), "unknown convention 'v'; choose one of: unbiased"),
        (lambda: mmd2(GOOD, GOOD, "v"), "unknown convention 'v'"),
        (lambda: mmd2(GOOD * 0, GOOD * 0), "all points are the same"),
        (lambda: sliced_wasserstein(GOOD, GOOD, 0), "n_projections = 0"),
        (lambda: course_nll(GOOD, GOOD, 0), "tau = 0"),
        (lambda: c2st(GOOD, GOOD, "tree"), "unknown classifier 'tree'; choose one of: svm, fast"),
        (lambda: c2st(GOOD, GOOD, convention="x"), "unknown convention 'x'"),
        (lambda: c2st(GOOD[:4], GOOD), "x has 4 points; this score needs at least 5"),
        (lambda: c2st(GOOD, GOOD, n_folds=1), "n_folds = 1"),
        (lambda: neighbourhood(GOOD, GOOD, 9), "k = 9; need 1 <= k < 9"),
        (lambda: permutation_test(GOOD, GOOD, "emd"), "unknown statistic 'emd'"),
        (lambda: permutation_test(GOOD, GOOD, n_permutations=0), "n_permutations = 0"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=5)
@given(seed=st.integers(0, 1_000))
def test_the_v_statistics_bias_is_the_mean_distance_over_n(seed):
    """E[V] - E[U] = 2 E|X - X'| / n for equal laws and sizes: the root of it is what the two-moons report prints."""
    n = 400
    x, y = draw(n, 2, seed), draw(n, 2, seed + 1)
    bias = energy_distance(x, y, "biased") - energy_distance(x, y)
    assert bias == pytest.approx(2 * math.sqrt(math.pi) / n, rel=0.1)  # E|X - X'| = sqrt(pi) for N(0, I) in the plane
