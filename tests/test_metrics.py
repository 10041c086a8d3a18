import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from ddpmlab.metrics import emd


def draw(n, dim, seed, scale=1.0):
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(n=st.integers(1, 128), dim=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_emd_is_the_linear_sum_assignment(n, dim, seed):
    x, y = draw(n, dim, seed), draw(n, dim, seed + 1, 2.0)
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    row, column = linear_sum_assignment(cost)
    total = cost[row, column].sum()
    assert emd(x, y, reduction="total") == pytest.approx(total, abs=1e-9, rel=1e-9)
    assert emd(x, y) == pytest.approx(total / n, abs=1e-9, rel=1e-9)


def test_emd_in_one_dimension_is_the_quantile_distance():
    x, y = draw(50, 1, 0), draw(80, 1, 1)
    assert emd(x, y) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), abs=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (draw(4, 2, 0), draw(4, 3, 0), "x has 2 dimensions, y has 3"),
        (draw(4, 2, 0)[:0], draw(4, 2, 0), "x has 0 points"),
        (draw(4, 2, 0)[:, 0], draw(4, 2, 0), r"x has shape \(4,\)"),
        (draw(4, 2, 0), draw(4, 2, 0) / 0, "y holds 4 points with NaN"),
    ],
)
def test_bad_samples_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        emd(x, y)


def test_total_cost_needs_equal_sizes():
    with pytest.raises(ValueError, match="total cost needs equal sizes, got 4 and 5"):
        emd(draw(4, 2, 0), draw(5, 2, 0), reduction="total")
    with pytest.raises(ValueError, match="unknown reduction 'sum'; choose one of: mean, total"):
        emd(draw(4, 2, 0), draw(4, 2, 0), reduction="sum")
