"""What pages share beside plots: published values, tables to read and to save, claims, numbers for prose."""

import json
import math
import re
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.core.formatters import format_display_data
from IPython.display import display
from scipy import stats

from ddpmlab.book import cost
from ddpmlab.book.plotting import LAW_TITLES
from ddpmlab.files import atomic
from ddpmlab.lab.runner import COLUMNS
from ddpmlab.lab.source import package_hash, versions
from ddpmlab.lab.stages import device_name, train_key
from ddpmlab.studies import Study

CLAIM_COLUMNS = ("id", "source", "claim", "published", "measured", "ci_low", "ci_high", "verdict", "page")
"""Columns of a page's claims; `ci_low` and `ci_high` are the ends of the 95% interval of `measured`."""
SCORE_COLUMNS = ("dataset", "metric")
"""Columns that follow where a claim has them, for the score whose floor and ceiling stand beside it."""
VERDICTS = ("reproduced", "not reproduced", "not resolved", "artefact")
"""What comes of a claim. Its interval bears it out, excludes it, or leaves it open; or the effect comes from how it was
made or measured."""

cost.record()  # every page imports this module before it reads from the store


def published(source: str, table: str | int) -> pd.DataFrame:
    """Values printed in a report: columns `dataset, variant, metric, value`.

    Args:
        source: `homework-report` or `two-moons-report`.
        table: number or name of the table there.

    Raises:
        ValueError: there is no such table.
    """
    known = pd.read_csv(files("ddpmlab.book") / "published.csv", dtype={"table": str})
    found = known[(known.source == source) & (known.table == str(table))]
    if found.empty:
        tables = sorted(set(zip(known.source, known.table, strict=True)))
        raise ValueError(f"no published table {str(table)!r} of {source!r}; there are: {tables}")
    return found.drop(columns=["source", "table"]).reset_index(drop=True)


def save_table(table: pd.DataFrame, results: str | Path, study: str) -> None:
    """Write a study's tidy table to `<results>/<study>.csv`.

    Raises:
        ValueError: its columns are not those of the results contract, or a value is missing.
    """
    if tuple(table.columns[: len(COLUMNS)]) != COLUMNS:
        raise ValueError(f"columns {list(table.columns)}; the results contract begins with {list(COLUMNS)}")
    if table[["variant", "seed", "metric", "value"]].isna().any(axis=None):
        raise ValueError(f"table of {study} has missing values")
    with atomic(Path(results) / f"{study}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def save_claims(rows: list[dict[str, Any]], results: str | Path, page: str) -> pd.DataFrame:
    """Write the claims that a page settles to `<results>/<page>.claims.csv` and return them.

    Args:
        rows: one mapping per claim with every column of `CLAIM_COLUMNS` but `page`; those of `SCORE_COLUMNS` are
            kept where a claim has them.

    Raises:
        ValueError: an unknown verdict or a missing column.
    """
    columns = [*CLAIM_COLUMNS, *(name for name in SCORE_COLUMNS if any(row.get(name) for row in rows))]
    table = pd.DataFrame([{**dict.fromkeys(columns[len(CLAIM_COLUMNS) :], ""), **row, "page": page} for row in rows])
    table = table.reindex(columns=columns)
    if table.isna().any(axis=None):
        raise ValueError(f"claims of {page} lack {list(table.columns[table.isna().any()])}")
    unknown = set(table["verdict"]) - set(VERDICTS)
    if unknown:
        raise ValueError(f"unknown verdict {sorted(unknown)}; choose one of: {', '.join(VERDICTS)}")
    with atomic(Path(results) / f"{page}.claims.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return table


def claim(
    id: str,
    source: str,
    claim: str,
    published: str,
    values: np.ndarray,
    verdict: str | None = None,
    error: float = 0.0,
    dataset: str = "",
    metric: str = "",
) -> dict[str, Any]:
    """A row of `save_claims` from one value per seed, with their mean and its 95% interval.

    Args:
        id: a short name, unlike any other claim's.
        source: the report, and the place in it.
        claim: what is claimed, in words; it says that the values are positive.
        published: the value printed there, as text.
        values: one effect per seed.
        verdict: one of `VERDICTS`; if omitted, `reproduced` where the interval lies above zero, `not reproduced` where
            it lies below, `not resolved` where it holds zero.
        error: standard error that all seeds share, such as that of the points they are scored on; widens the interval.
        dataset: of the score whose floor and ceiling stand beside the claim; what its words name if omitted.
        metric: name of that score; what the claim's words name if omitted.
    """
    mean, low, high = mean_interval(values)
    low, high = mean - math.hypot(mean - low, 1.96 * error), mean + math.hypot(high - mean, 1.96 * error)
    verdict = verdict or ("reproduced" if low > 0 else "not reproduced" if high < 0 else "not resolved")
    found = dict(zip(CLAIM_COLUMNS, (id, source, claim, published, f"{mean:.6g}", low, high), strict=False))
    return found | {"verdict": verdict, **{k: v for k, v in (("dataset", dataset), ("metric", metric)) if v}}


def per_seed(table: pd.DataFrame, law: str, metric: str, variant: str) -> pd.Series:
    """The values of a tidy table's one variant, law and metric, by seed.

    Raises:
        ValueError: there are none.
    """
    rows = table[(table.dataset == law) & (table.metric == metric) & (table.variant == variant)]
    if rows.empty:
        raise ValueError(f"no {metric} of {variant!r} on {law}; its variants: {list(table.variant.unique())}")
    return rows.set_index("seed")["value"]


def bounds(table: pd.DataFrame, law: str, metric: str) -> pd.Series:
    """`floor_mean`, `floor_sd` and `ceiling` of a score on a law, from a tidy table.

    Raises:
        ValueError: the score has none.
    """
    rows = table[(table.dataset == law) & (table.metric == metric) & table.floor_mean.notna()]
    if rows.empty:
        raise ValueError(f"{metric} on {law} has no floor in this table")
    return rows.iloc[0][["floor_mean", "floor_sd", "ceiling"]]


def chosen_on_others(table: pd.DataFrame, best: str = "min") -> np.ndarray:
    """One value per row (seed) of the column that is best by the mean of all *other* rows: selection apart from test.

    Args:
        table: a row per seed, a column per candidate.
        best: `min` or `max`.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(table) < 2:
        raise ValueError(f"{len(table)} row; choosing on other seeds needs at least 2")
    found = []
    for seed in table.index:
        others = table.drop(index=seed).mean()
        found.append(table.loc[seed, others.idxmin() if best == "min" else others.idxmax()])
    return np.array(found)


def show_claims(rows: list[dict[str, Any]], results: str | Path, page: str):
    """Save the claims that a page settles and show them, in their order, with the laws' display names."""
    saved = save_claims(rows, results, page)
    named = saved["claim"].replace(LAW_TITLES, regex=True)
    texts = [
        measured_text(*map(float, row)) for row in saved[["measured", "ci_low", "ci_high"]].itertuples(index=False)
    ]
    shown = pd.DataFrame({"claim": named, "published": saved["published"].map(number), "measured": texts,
                          "verdict": saved["verdict"]})  # fmt: skip
    return show(shown).set_table_attributes('class="claims"')


def number(value: float | str, digits: int | None = None) -> str:
    """A number as pages print it: no exponent, a true minus; words stay as they are.

    With `digits`, what was measured: so many significant ones, zeros at the end included. Without, what was set or
    printed elsewhere: at most three, and no zeros at the end.

    `-0.00439` -> `−0.00439`, `1235.6` -> `1,236`, `1e-06` -> `0.000001`; `0.2` to 2 digits -> `0.20`.
    """
    try:
        value = float(value)
    except ValueError:
        return str(value)
    if not math.isfinite(value):
        return "–"
    few = 3 if digits is None else digits
    if abs(value) >= 10 ** (few - 1) or value == 0:
        return _signed(f"{value:,.0f}")
    return _signed(format(Decimal(f"{value:{'' if digits is None else '#'}.{few}g}"), "f"))


def _signed(text: str) -> str:
    """A printed number with a true minus, and none before a zero: `-0.00` -> `0.00`."""
    return text.replace("-", "\N{MINUS SIGN}" if any(digit in text for digit in "123456789") else "")


def _decimals(scale: float, digits: int) -> int:
    """Decimals at which a number of this scale has so many significant digits; none from 100 on."""
    return max(0, digits - 1 - math.floor(math.log10(scale))) if scale > 0 and math.isfinite(scale) else 0


def between(mean: float, low: float, high: float, digits: int = 2) -> str:
    """A mean and its interval, to `digits` significant ones of its half-width: `1.70 (1.35 to 2.05)`.

    To one or two more where an end that is not zero would read as one: on which side of zero it lies decides.
    """
    decimals = min(_decimals((high - low) / 2 or abs(mean), digits), 6)
    for more in (decimals + 1, decimals + 2):
        if not all(round(end, decimals) or not end for end in (low, high)):
            decimals = more
    low, mean, high = (_signed(f"{v:,.{decimals}f}") for v in (low, mean, high))
    return f"{mean} ({low} to {high})"


def measured_text(mean: float, low: float, high: float) -> str:
    """What a claim measured: the value alone where it has no interval, else see `between`."""
    return number(mean) if low == high else between(mean, low, high)


def interval(values: np.ndarray, digits: int = 2) -> str:
    """The mean of independent values and its 95% interval by Student's t as text, see `between`."""
    return between(*mean_interval(values), digits=digits)


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Mean ± standard deviation of independent values as text, to the decimals of the standard deviation.

    Those of the mean where there is none, of one value or of equal ones: `0.12 ± 0`.
    """
    values = np.asarray(values, dtype=float)
    sd = float(values.std(ddof=1)) if len(values) > 1 and np.ptp(values) != 0 else 0.0
    decimals = min(_decimals(sd or abs(values.mean()), digits), 3)
    if abs(values.mean()) >= 20:  # two or three digits are enough for a score of tens
        decimals = min(decimals, 1 if abs(values.mean()) < 100 else 0)
    mean = _signed(f"{values.mean():,.{decimals}f}")
    return f"{mean} ± {f'{sd:,.{decimals}f}' if sd else 0}" if len(values) > 1 else mean


def reproduce(study: Study, profile: str):
    """How to run a page again and what that takes: command, trainings, seeds, device, minutes of training.

    The minutes are summed over trainings, by the clock: on a machine that does other work more than a core needs.
    """
    seeds = sorted({run.config.seed for run in study.runs})
    networks = {train_key(run.config) for run in study.runs if run.config.denoiser == "network"}
    rows = {
        "command": f"ddpmlab run {study.name} --profile {profile}",
        "computed": f"{len(study.runs):,} runs, {len(networks):,} trained networks",
        "seeds": f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}",
        "device": device_name(),
        "training, by the clock": f"{study.status().seconds / 60:,.0f} minutes",
        "code": package_hash(),
    }
    return show(pd.Series(rows, name="this run").to_frame().rename_axis("to reproduce this page"))


def summary(table: pd.DataFrame, metric: str, digits: int = 1) -> pd.DataFrame:
    """Mean ± standard deviation over seeds as text, one row per variant and one column per law."""
    rows = table[table.metric == metric]
    stats = rows.groupby(["variant", "dataset"], sort=False)["value"].agg(["mean", "std"])
    text = stats["mean"].map(f"{{:.{digits}f}}".format) + stats["std"].map(
        f" ± {{:.{digits}f}}".format, "ignore"
    ).fillna("")
    return text.unstack("dataset").reindex(rows.variant.unique())


def values(published: pd.DataFrame, law: str, metric: str = "emd_128") -> dict[str, float]:
    """Published values of one law and metric, variant -> value."""
    rows = published[(published.dataset == law) & (published.metric == metric)]
    return dict(zip(rows["variant"], rows["value"], strict=True))


def side_by_side(
    table: pd.DataFrame, published: pd.DataFrame, metric: str = "emd_128", digits: int = 1
) -> pd.DataFrame:
    """Published values beside ours (mean ± sd over seeds) as text, per law, with a row for the floor and the ceiling.

    Args:
        table: a tidy table; its variants are the rows, after them those that only the report has.
        published: what `published` returned.
        metric: name of the metric in both.
        digits: after the decimal point.
    """
    rows, columns = table[table.metric == metric], {}
    floor, ceiling = "floor (real against real)", "ceiling (pure noise)"
    for law in published.dataset.unique():
        printed = {v: f"{value:.{digits}f}" for v, value in values(published, law, metric).items()}
        bounds = rows[rows.dataset == law].iloc[0]
        ours = summary(rows[rows.dataset == law], metric, digits)[law].to_dict()
        ours |= {floor: f"{bounds.floor_mean:.{digits}f} ± {bounds.floor_sd:.{digits}f}"}
        columns |= {f"{law}, published": printed, f"{law}, ours": ours | {ceiling: f"{bounds.ceiling:.{digits}f}"}}
    names = [v for column in columns.values() for v in column if v not in (floor, ceiling)]
    return pd.DataFrame(columns).reindex([*dict.fromkeys([*rows.variant, *names]), floor, ceiling])


def show(table: pd.DataFrame, digits: int = 2):
    """A table for a page: its index as an ordinary first column, headings over their columns, floats rounded.

    A column of numbers is set flush right, one with words flush left, as the first is.
    """
    if table.index.name or table.index.dtype == object:
        table = table.rename_axis(columns=None).reset_index()
    styles = [{"selector": "th, td", "props": "text-align: left"}]
    for i in range(1, table.shape[1]):
        if all(_is_measured(value) for value in table.iloc[:, i]):
            styles.append({"selector": f"th.col{i}, td.col{i}", "props": "text-align: right"})
    return table.style.hide(axis="index").format(precision=digits, thousands=",", na_rep="–").set_table_styles(styles)


def _is_measured(value: Any) -> bool:
    """A number with what may stand by it, such as ± or an interval; "2 EMA; 4 larger MLP" only begins with one."""
    text = str(value).strip()
    if text in ("", "nan", "None", "<NA>"):
        return True
    return bool(re.match(r"[\d<–\-\N{MINUS SIGN}]", text)) and not re.search(r"[^\W\d_]{3}", text)


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    r"""Mean and confidence interval over independent values, such as seeds, by Student's t.

    .. math:: \bar x \pm t_{n-1}\, s/\sqrt n .

    With the 5 to 10 seeds of a study it keeps its level where a bootstrap is too narrow. A single value, as in a
    rehearsal, has no interval: its two ends are the value itself.
    """
    values = np.asarray(values, dtype=float)
    mean, error = float(values.mean()), 0.0
    if len(values) > 1:
        error = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - error, mean + error


def fraction_left(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Fraction of the noise-to-data distance left, with its confidence interval over seeds.

    Args:
        rows: rows of a tidy table for one variant, law and metric, one per seed.
    """
    fraction = (rows["value"] - rows["floor_mean"]) / (rows["ceiling"] - rows["floor_mean"])
    return mean_interval(fraction.to_numpy())


_GLUED = "application/papermill.record/"


def glue(numbers: dict[str, Any]) -> None:
    """Store numbers and words of a run for the prose, read there as `{glue:text}`.

    It writes what `myst_nb.glue` writes, whose import brings Sphinx and two seconds to every page.
    """
    for name, value in numbers.items():
        shown, metadata = format_display_data(value if isinstance(value, str) else float(value))
        metadata["scrapbook"] = {"name": name, "mime_prefix": _GLUED}
        display({_GLUED + kind: text for kind, text in shown.items()}, raw=True, metadata=metadata)


def save_environment(results: str | Path, page: str) -> None:
    """Write where and with what a page ran to `<results>/<page>.environment.json`."""
    with atomic(Path(results) / f"{page}.environment.json") as temporary:
        found = {"device": device_name(), **versions("ddpmlab", "torch"), "code": package_hash()}
        temporary.write_text(json.dumps(found, indent=1))
