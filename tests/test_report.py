"""Intervals and claims: the numbers that verdicts hang on."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from ddpmlab.book import report


def test_the_interval_of_a_mean_is_students_t():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    expected = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    assert report.mean_interval(values, 0.9) == pytest.approx((3.75, *expected), rel=1e-12)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(n):
    draws, n_draws = np.random.default_rng(0).normal(7.0, 2.0, (4_000, n)), 4_000
    held = sum(low <= 7.0 <= high for _, low, high in map(report.mean_interval, draws))
    assert abs(held / n_draws - 0.95) < 4 * (0.95 * 0.05 / n_draws) ** 0.5


def test_one_value_has_no_interval():
    assert report.mean_interval([2.5]) == (2.5, 2.5, 2.5)


def test_a_claim_is_reproduced_or_not_only_if_its_whole_interval_says_so():
    clear, unclear = np.array([1.0, 1.2, 0.9]), np.array([1.0, -0.2, 0.9])
    assert report.claim("a", "source", "claim", "1", -clear)["verdict"] == "not reproduced"
    assert report.claim("a", "source", "claim", "1", clear)["verdict"] == "reproduced"
    assert report.claim("a", "source", "claim", "1", unclear)["verdict"] == "not resolved"
    # an error that all seeds share widens the interval, as independent errors do
    wide = report.claim("a", "source", "claim", "1", clear, error=1.0)
    assert wide["verdict"] == "not resolved"
    _, low, high = report.mean_interval(clear)
    assert wide["ci_high"] - wide["ci_low"] == pytest.approx(2 * np.hypot((high - low) / 2, 1.96))


def test_a_claim_may_name_its_score(tmp_path):
    plain = report.claim("a", "source", "claim", "1", np.array([1.0, 1.2]))
    named = report.claim("b", "source", "claim", "1", np.array([1.0, 1.2]), dataset="helix", metric="emd_128")
    saved = report.save_claims([plain], tmp_path, "page")
    assert tuple(saved.columns) == report.CLAIM_COLUMNS
    saved = report.save_claims([plain, named], tmp_path, "page")
    assert tuple(saved.columns) == report.CLAIM_COLUMNS + report.SCORE_COLUMNS
    assert saved["metric"].tolist() == ["", "emd_128"]


def test_numbers_are_glued_as_myst_nb_does():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from myst_nb import glue

    InteractiveShell.instance()
    with capture_output() as ours:
        report.glue({"kl": 0.5, "told": "-3 (-5 to -1)"})
    with capture_output() as theirs:
        glue("kl", 0.5, display=False)
        glue("told", "-3 (-5 to -1)", display=False)
    assert len(ours.outputs) == 2
    assert [(o.data, o.metadata) for o in ours.outputs] == [(o.data, o.metadata) for o in theirs.outputs]


def test_numbers_as_pages_print_them():
    assert [report.number(v) for v in (-0.00439, 1235.6, 1e-6, 92.4, "no value")] == [
        "−0.00439", "1,236", "0.000001", "92.4", "no value",
    ]  # fmt: skip
    assert [report.number(v) for v in (0.2, 0.0, -0.0, 12)] == ["0.2", "0", "0", "12"]
    assert [report.number(v, 2) for v in (0.2, 0.0912, -1.0, 9.96, 99.6, 0.0)] == [
        "0.20", "0.091", "−1.0", "10", "100", "0",
    ]  # fmt: skip
    assert report.between(1.7043, 1.3547, 2.0503) == "1.70 (1.35 to 2.05)"
    assert report.between(-142.1, -166.5, -117.7) == "−142 (−166 to −118)"
    assert report.between(-0.0004, -0.06, 0.06) == "0.000 (−0.060 to 0.060)"
    assert report.between(4.85, 0.03, 9.67) == "4.85 (0.03 to 9.67)"  # not 4.9 (0.0 to 9.7)
    assert report.between(1.0, 0.0, 2.0) == "1.0 (0.0 to 2.0)"
    assert report.spread([100_000.0, 200_000.0]) == "150,000 ± 70,711"
    assert report.interval([2.5]) == "2.5 (2.5 to 2.5)"
    assert report.spread([90.0, 94.0]) == "92.0 ± 2.8"
    assert report.spread([900.0, 940.0]) == "920 ± 28"
    assert report.spread([0.012, 0.014]) == "0.013 ± 0.001"
    assert report.spread([0.12, 0.12, 0.12]) == "0.12 ± 0"  # equal values: the mean keeps its digits
    assert [report.spread(values) for values in ([0.0, 0.0], [0.0], [90.0], [0.12])] == ["0 ± 0", "0", "90", "0.12"]


def test_what_was_chosen_on_some_seeds_is_read_on_another():
    # each candidate is lucky once: the best by its own seed reads 0, the best by the others does not
    table = pd.DataFrame({"a": [0.0, 3.0, 1.0], "b": [2.0, 0.0, 2.5]})
    assert report.chosen_on_others(table).tolist() == [2.0, 3.0, 2.5]
    assert report.chosen_on_others(-table, "max").tolist() == [-2.0, -3.0, -2.5]
    with pytest.raises(ValueError, match="at least 2"):
        report.chosen_on_others(table[:1])


def test_values_and_bounds_are_those_of_the_rows_asked_for():
    columns = ["dataset", "variant", "seed", "metric", "value", "floor_mean", "floor_sd", "ceiling"]
    rows = [("helix", "a", 0, "emd", 1.0, 0.5, 0.1, 9.0), ("helix", "a", 1, "emd", 2.0, 0.5, 0.1, 9.0)]
    rows += [("helix", "b", 0, "emd", 3.0, 0.5, 0.1, 9.0), ("helix", "a", 0, "kl", 4.0, None, None, None)]
    table = pd.DataFrame(rows, columns=columns)
    assert report.per_seed(table, "helix", "emd", "a").to_dict() == {0: 1.0, 1: 2.0}
    assert report.bounds(table, "helix", "emd").tolist() == [0.5, 0.1, 9.0]
    with pytest.raises(ValueError, match="no kl of 'b'"):
        report.per_seed(table, "helix", "kl", "b")
    with pytest.raises(ValueError, match="no floor"):
        report.bounds(table, "helix", "kl")


def test_a_table_of_claims_is_one_that_styles_know(tmp_path):
    shown = report.show_claims([report.claim("a", "source", "claim", "1", np.array([1.0, 1.2]))], tmp_path, "page")
    assert 'class="claims"' in shown.to_html()
    assert "table.claims" in (ROOT / "book" / "_static" / "book.css").read_text(encoding="utf-8")


def test_columns_of_numbers_are_set_flush_right_and_words_flush_left():
    table = pd.DataFrame({"law": ["helix", "surface"], "n": [1, 2], "KL": ["−0.1 (−0.2 to 0.1)", "< 0.1"],
                          "what": ["1 flaw", "2 EMA; 4 larger"], "value": [1.5, None]})  # fmt: skip
    styles = [s["selector"] for s in report.show(table).table_styles if "right" in str(s["props"])]
    assert styles == ["th.col1, td.col1", "th.col2, td.col2", "th.col4, td.col4"]
