"""Every number in the book's prose is in a results table, or is declared with what it is derived from."""

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from ddpmlab.book import glued
from ddpmlab.book.report import COLUMNS, mean_interval


@pytest.fixture(scope="module")
def answers():
    return glued.check_book(ROOT / "book")


def test_every_glued_number_is_found_in_a_table_or_declared(answers):
    unexplained = {page: answer.unexplained for page, answer in answers.items() if answer.unexplained}
    assert not unexplained, "run `python -m ddpmlab.book.glued`; add to book/derived.yml what each is derived from"


def test_the_check_is_sharp_enough_to_notice_a_number_left_behind(answers):
    found, sharp = (sum(len(getattr(a, kind)) for a in answers.values()) for kind in ("found", "sharp"))
    assert found > 250
    assert sharp > 0.4 * found  # the rest are counts, parameters and texts of one or two digits


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("A little: 1.5 (0.3 to 2.7) less. Not more. Done.", "A little: 1.5 (0.3 to 2.7) less.", "Not more. Done."),
        ("In part. A part of it does this. The rest is open.", "In part. A part of it does this.", "The rest is open."),
        ("One sentence, of T. 50 and no other.", "One sentence, of T. 50 and no other.", ""),
    ],
)
def test_a_text_is_cut_behind_its_first_sentence(text, first, rest):
    assert (glued.sentence(text, "first"), glued.sentence(text, "rest")) == (first, rest)


def test_a_text_has_no_other_parts():
    with pytest.raises(ValueError, match="'last' of a text; choose first or rest"):
        glued.sentence("A text.", "last")


@pytest.fixture(scope="module")
def known():
    """A table of three variants and five seeds, and a parameter."""
    values = {
        "a": [1.11, 1.27, 1.38, 1.12, 1.59],
        "b": [2.31, 2.77, 2.15, 2.96, 2.42],
        "c, late": [5.3, 5.1, 5.7, 5.9, 5.5],
    }
    rows = [
        ("s", "helix", variant, seed, "emd_128", 128, value, 0.5, 0.25, 10.5, 0.01 + 0.02 * seed)
        for variant, of in values.items()
        for seed, value in enumerate(of)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return {k: np.array(v) for k, v in values.items()}, glued.known_numbers(table, [1234.5])


def holds(known, value) -> bool:
    wanted = glued.quantities(value)
    assert wanted
    return all(map(known.holds, wanted))


def test_what_is_in_the_table_is_found_and_what_is_not_is_not(known):
    of, numbers = known
    a, b = of["a"], of["b"]
    mean, low, high = mean_interval(b - a)
    there = {
        "cell": 1.38, "parameter": 1234.5, "mean": a.mean(), "sd": a.std(ddof=1), "least": 1.11, "p-values": 9.0,
        "difference": a.mean() - b.mean(), "ratio": (a / b).mean(), "ratio of means": a.mean() / b.mean(),
        "fall in percent": 100 * (1 - a.mean() / b.mean()), "fraction left": (a.mean() - 0.5) / 10, "low": low,
        "interval": f"{mean:.2f} ({low:.2f} to {high:.2f})", "ends": f"{low:.3f} to {high:.3f}",
        "spread": f"{a.mean():.3f} ± {a.std(ddof=1):.3f}", "floor": "0.50 ± 0.25",
        "words": f"it reads {a.mean():.3f} twice",
    }  # fmt: skip
    assert [name for name, value in there.items() if not holds(numbers, value)] == []
    absent = {
        "mean": a.mean() * 1.001, "parameter": 1235.5, "ratio": (a / b).mean() * 1.001, "difference": mean + 0.003,
        "interval": f"{mean:.2f} ({low - 0.05:.2f} to {high:.2f})", "ends": f"{low:.3f} to {high + 0.01:.3f}",
        "spread": f"{a.mean():.3f} ± {b.std(ddof=1):.3f}", "words": f"it reads {a.mean() + 0.004:.3f} twice",
    }  # fmt: skip
    assert [name for name, value in absent.items() if holds(numbers, value)] == []


def test_a_page_is_checked_name_by_name(known):
    of, numbers = known
    page = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("")
    for name, value in (("mean", of["a"].mean()), ("stale", 1.2345), ("slope_a", -0.777), ("words", "not run")):
        cell.outputs.append(
            nbformat.v4.new_output(
                "display_data",
                {"application/papermill.record/text/plain": repr(value if isinstance(value, str) else float(value))},
                metadata={"scrapbook": {"name": name}},
            )
        )
    page.cells.append(cell)
    answer = glued.check(page, numbers, {"slope_*": "two means", "old": "nothing"})
    assert (answer.found, answer.declared, answer.unexplained) == (["mean"], ["slope_a"], {"stale": 1.2345})
    assert (answer.sharp, answer.idle) == (["mean"], ["old"])
