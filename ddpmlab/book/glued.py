"""Every number that a page glues into its prose, looked for in the tables: `python -m ddpmlab.book.glued [book]`.

A glued number is *found* if it is one of these, of the committed tables, to the digits that both have:

- a cell of the page's table, a field of its claims, a published value, a parameter of the run, a number in a variant's
  name;
- of the rows of one metric, of one law and metric, or of one variant and metric: mean, sd, least, most, median, sum,
  count, the ends of the mean's interval, the number and share of p-values above 0.05, and the same as fractions left;
- of two published values of one table: their difference;
- of two variants of one law and metric: difference, ratio or relative change, of their means or seed by seed, with the
  ends of its interval, also of their fractions left. Among all pairs of a large table nearly every number is the
  difference of some two, so there one that stands alone counts for variants that differ in one part of their names.

In a glued text a number with its interval, `1.2 (0.9 to 1.5)`, an interval, or a number with its spread, `1.2 ± 0.1`,
is looked for as one; any other number by itself, to the digits that are printed. What is computed otherwise (a slope, a
bracket, a number of weights) is declared in `book/derived.yml`, page by page, with what it is derived from. So a number
that its table has left behind is noticed: it is neither found nor declared.
"""

import ast
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import yaml
from scipy import stats

_RECORD = "application/papermill.record/text/plain"
_DECIMAL = r"[-+\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_INTERVAL = re.compile(rf"({_DECIMAL})%? \((?:[^()\d]*)({_DECIMAL}) to ({_DECIMAL})\)")
_ENDS = re.compile(rf"({_DECIMAL})%? to ({_DECIMAL})%?")
_SPREAD = re.compile(rf"({_DECIMAL}) ± ({_DECIMAL})")
_NUMBER = re.compile(rf"(?<![\w.])({_DECIMAL})")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PATTERNS = {"interval": _INTERVAL, "spread": _SPREAD, "number": _NUMBER}
_COLUMNS = {"number": (0, 1, 2, 3), "interval": (0, 1, 2), "spread": (0, 3), "ends": (1, 2)}
_LAST_DIGIT, _SIX_DIGITS = 5e-6, 2e-6
"""Relative error of a number of six digits: at most, and of a mean over seeds."""
_FEW = 16
"""Variants up to which each pair of them counts."""
_SCALES = (1.0, 100.0)  # a share is also a percentage
_COSTS = ("nfe", "seconds_train", "seconds_sample", "divergent_share")


def glued(page: nbformat.NotebookNode) -> dict[str, float | str]:
    """What an executed notebook glued: name -> number or text."""
    found = {}
    for cell in page.cells:
        for output in cell.get("outputs", []):
            name, text = (
                output.get("metadata", {}).get("scrapbook", {}).get("name"),
                output.get("data", {}).get(_RECORD),
            )
            if name and text is not None:
                found[name] = ast.literal_eval(text)
    return found


def sentence(text: str, part: str) -> str:
    """Of a glued text the `first` sentence, or the `rest`, which may be empty.

    An opening of three words or fewer, such as `In part.`, belongs to the sentence that it opens.

    Raises:
        ValueError: another part.
    """
    if part not in ("first", "rest"):
        raise ValueError(f"unknown part {part!r} of a text; choose first or rest")
    end = next((m for m in _SENTENCE.finditer(text) if len(text[: m.start()].split()) > 3), None)
    if end is None:
        return text if part == "first" else ""
    return text[: end.start()] if part == "first" else text[end.end() :]


@dataclass(frozen=True)
class Quantity:
    """Numbers that are glued together, as `(value, half a unit of its last digit)`; `kind` says what they are."""

    kind: str
    parts: tuple[tuple[float, float], ...]

    def moved(self) -> "Quantity":
        """The same quantity had its run come out 3% larger, and by three of its last digits at least."""
        return Quantity(self.kind, tuple((v + math.copysign(max(0.03 * abs(v), 6 * s), v), s) for v, s in self.parts))


def _read(text: str) -> tuple[float, float]:
    plain = text.replace(",", "").replace("\N{MINUS SIGN}", "-")
    mantissa, _, exponent = plain.partition("e")
    return float(plain), 0.501 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def quantities(value: float | str) -> list[Quantity]:
    """The quantities of a glued value: itself, or what a text is made of: an interval, or some of each kind."""
    if not isinstance(value, str):
        return [Quantity("number", ((float(value), 1e-12),))]
    ends = _ENDS.fullmatch(value.strip())
    if ends:
        return [Quantity("ends", tuple(_read(text) for text in ends.groups()))]
    found, rest = [], value
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(rest):
            found.append(Quantity(kind, tuple(_read(text) for text in match.groups())))
        rest = pattern.sub(" ", rest)
    return found


class Known:
    """Numbers that the tables hold, each with its spread and interval if it is a mean, and the error of its digits."""

    def __init__(self):
        self._rows: list[tuple[float, float, float, float, float, float]] = []  # ..., error, looked at alone
        self._array = None

    def add(self, *values: float, error: float = 0.0) -> None:
        """Numbers that stand alone."""
        self._rows += [(float(v), math.nan, math.nan, math.nan, error or _LAST_DIGIT * abs(v), 1.0) for v in values]
        self._array = None

    def add_pair(self, mean: float, sd: float) -> None:
        """A mean and its sd."""
        self._rows.append((mean, math.nan, math.nan, sd, _LAST_DIGIT * abs(mean), 1.0))
        self._array = None

    def add_means(self, samples: np.ndarray, error: np.ndarray | float, alone: np.ndarray | bool = True) -> None:
        """Means of rows `(..., seeds)`, with sd and 95% interval, whose values are known up to an error.

        A mean that is not `alone` counts only together with its interval or its sd.
        """
        samples = np.atleast_2d(samples)
        error, alone = (np.broadcast_to(x, len(samples)).astype(float) for x in (error, alone))
        ok = np.isfinite(samples)
        n, some = ok.sum(1), ok.any(1)
        samples, ok, n, error, alone = samples[some], ok[some], n[some], error[some], alone[some]
        mean = np.where(ok, samples, 0).sum(1) / n
        sd = np.sqrt((np.where(ok, samples - mean[:, None], 0) ** 2).sum(1) / np.maximum(n - 1, 1))
        sd = np.where(n > 1, sd, np.nan)
        half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * sd / np.sqrt(n)
        self._rows += zip(mean, mean - half, mean + half, sd, error, alone, strict=True)
        self._array = None

    def holds(self, wanted: Quantity) -> bool:
        """Whether one entry is the quantity, as it stands or in percent."""
        if self._array is None:
            self._array = np.array(self._rows, dtype=float).reshape(-1, 6)
        columns = _COLUMNS[wanted.kind]
        array = self._array[self._array[:, 5] > 0] if wanted.kind == "number" else self._array
        for scale in _SCALES:
            error = array[:, 4] * scale
            near = [
                np.abs(np.abs(array[:, column]) * scale - abs(value)) <= error + slack
                for (value, slack), column in zip(wanted.parts * len(columns), columns, strict=False)
            ]
            if (np.any(near, axis=0) if wanted.kind == "number" else np.all(near, axis=0)).any():
                return True
        return False


def _parameters(page: nbformat.NotebookNode) -> Iterator[float]:
    """Numbers among a run's parameters, at any depth, and the lengths of its lists."""
    for cell in page.cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                    yield float(node.value)
                if isinstance(node, ast.List):
                    yield float(len(node.elts))


def _summaries(known: Known, rows: pd.DataFrame) -> None:
    values = rows["value"].to_numpy(float)
    known.add_means(values, _SIX_DIGITS * np.abs(values).max())
    known.add(values.min(), values.max(), np.median(values), values.sum(), len(values))
    known.add(values.std(), error=_SIX_DIGITS * np.abs(values).max())
    p_values = rows["p_value"].dropna().to_numpy(float)
    if len(p_values):
        known.add((p_values > 0.05).sum(), (p_values > 0.05).mean(), len(p_values))


def _one_part_apart(names: list[str]) -> np.ndarray:
    """Which pairs of variants differ in no more than one of the parts that commas separate."""
    parts = [set(name.split(", ")) for name in names]
    return np.array([[max(len(a - b), len(b - a)) <= 1 for b in parts] for a in parts])


def known_numbers(table: pd.DataFrame, others: Iterator[float] | list[float] = ()) -> Known:
    """Every number that the grammar of this module makes of a tidy table, and others.

    Args:
        table: with the columns of the results contract.
        others: numbers that stand beside it, such as published values, claims and parameters.
    """
    known = Known()
    known.add(*others)
    for column in table.select_dtypes("number"):
        known.add(*table[column].dropna().unique())
    for name in table["variant"].astype(str).unique():
        known.add(*(quantity.parts[0][0] for quantity in quantities(name)))
    for mean, sd in table[["floor_mean", "floor_sd"]].dropna().drop_duplicates().to_numpy(float):
        known.add_pair(mean, sd)
    rows = table.dropna(subset=["value"])
    for keys in (["metric"], ["dataset", "metric"], ["variant", "metric"], ["dataset", "variant", "metric"]):
        for _, group in rows.groupby(keys, dropna=False):
            _summaries(known, group)
    for (_, metric), group in rows.groupby(["dataset", "metric"], dropna=False):
        one = group.pivot_table(index="variant", columns="seed", values="value", sort=False)
        apart = _one_part_apart([str(name) for name in one.index])
        one = one.to_numpy(float)
        floor, ceiling = group["floor_mean"].mean(), group["ceiling"].mean()
        a, b = np.nonzero(~np.eye(len(one), dtype=bool))
        alone = apart[a, b] | (len(one) <= _FEW)
        if np.isfinite([floor, ceiling]).all():
            left = (one - floor) / (ceiling - floor)
            known.add_means(left, _SIX_DIGITS * max(abs(ceiling), np.nanmax(np.abs(one))) / abs(ceiling - floor))
            if len(one) > 1:
                known.add_means(left[a] - left[b], 2 * _SIX_DIGITS, alone)
        if len(one) < 2 or metric in _COSTS:
            continue
        size = np.nanmax(np.abs(one), 1)
        known.add_means(one[a] - one[b], _SIX_DIGITS * np.maximum(size[a], size[b]), alone)
        with np.errstate(all="ignore"):
            ratio = one[a] / one[b]
            error = 2 * _SIX_DIGITS * np.nanmax(np.where(np.isfinite(ratio), np.abs(ratio), 1), 1)
            of_means = np.nanmean(one[a], 1) / np.nanmean(one[b], 1)
        for values in (ratio, 1 - ratio, of_means[:, None], 1 - of_means[:, None]):
            known.add_means(values, error, alone)
    return known


@dataclass(frozen=True)
class Checked:
    """A page's glued names: found in the tables, declared, or neither; and how sharp the check is.

    Attributes:
        found: names that a table bears out.
        declared: names that `derived.yml` explains.
        unexplained: the others.
        sharp: those found that would not be, were the number 3% larger (or three of its last digits).
        idle: patterns of `derived.yml` that no name needs.
    """

    found: list[str]
    declared: list[str]
    unexplained: dict[str, float | str]
    sharp: list[str]
    idle: list[str]


def check(page: nbformat.NotebookNode, known: Known, derived: Mapping[str, str]) -> Checked:
    """Look for what a page glued among the known numbers, then among the names or patterns declared as derived."""
    values = {name: quantities(value) for name, value in glued(page).items()}
    values = {name: wanted for name, wanted in values.items() if wanted}
    found = [name for name, wanted in values.items() if all(map(known.holds, wanted))]
    sharp = [name for name in found if not all(known.holds(quantity.moved()) for quantity in values[name])]
    rest = [name for name in values if name not in found]
    declared = [name for name in rest if any(fnmatchcase(name, pattern) for pattern in derived)]
    idle = [pattern for pattern in derived if not any(fnmatchcase(name, pattern) for name in rest)]
    unexplained = {name: value for name, value in glued(page).items() if name in set(rest) - set(declared)}
    return Checked(found, declared, unexplained, sharp, idle)


def check_book(book: Path) -> dict[str, Checked]:
    """Every page with a table of its own: page -> what was found."""
    results = book / "results"
    printed = pd.read_csv(files("ddpmlab.book") / "published.csv")
    published = printed["value"].tolist()
    for _, group in printed.groupby(["source", "table", "dataset", "metric"]):
        values = group["value"].to_numpy()
        published += np.unique(np.round(np.subtract.outer(values, values), 9)).tolist()
    claims = pd.read_csv(results / "claims.csv")
    path = book / "derived.yml"
    derived = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
    answers = {}
    for path in sorted((book / "studies").glob("*.ipynb")):
        page, own = nbformat.read(path, as_version=4), claims[claims["page"] == path.stem]
        fields = [
            pd.to_numeric(own[f], errors="coerce").dropna() for f in ("measured", "ci_low", "ci_high", "published")
        ]
        others = [*published, *_parameters(page), *(float(v) for field in fields for v in field)]
        table = pd.read_csv(results / f"{path.stem}.csv")
        answers[path.stem] = check(page, known_numbers(table, others), derived.get(path.stem) or {})
    return answers


if __name__ == "__main__":
    answers = check_book(Path(sys.argv[1] if len(sys.argv) > 1 else "book"))
    for name, answer in answers.items():
        counts = f"{len(answer.found)} found ({len(answer.sharp)} to 3%), {len(answer.declared)} declared"
        print(f"# {name}: {counts}, {len(answer.unexplained)} neither", *(f"; idle: {i}" for i in answer.idle))
        for key, value in answer.unexplained.items():
            print(f"  {key}:  # {value}")
    sys.exit(any(answer.unexplained for answer in answers.values()))
