"""Learning the law or the sample: trainings on few and many points, judged at several of their steps.

Its runs are not a study's: each training has a training set of its own, and what is kept of it is a table
(`lab.memorisation.curve`, by `lab.remembered`).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ddpmlab.lab import COLUMNS, remembered
from ddpmlab.lab.memorisation import curve

MAIN_WIDTH = 64
NAMES = {"law": "kl", "sample": "kl_sample", "copy_share": "copy_share", "seconds": "seconds_train"}
"""Measure of `curve` -> metric of the table; with a noise level the metric ends in `_level`."""


def curves(
    sizes: Iterable[int],
    widths: Iterable[int],
    width_size: int,
    keep_steps: list[int],
    n_seeds: int,
    training: dict[str, Any],
    judges: dict[str, int],
) -> pd.DataFrame:
    """Curves of the recipe's network at each size of training set, and of other widths at one size.

    Args:
        sizes: numbers of training points, N.
        widths: of the network, besides the recipe's, at `width_size` points.
        width_size: N there.
        keep_steps: optimiser steps at which to look.
        n_seeds: seeds 0, 1, ...
        training: options of `recipes.two_moons`.
        judges: `n`, `n_levels` and `n_samples` of `curve`.

    Returns:
        Columns of `curve`, and `width`.
    """
    jobs = dict.fromkeys([*((n, MAIN_WIDTH) for n in sizes), *((width_size, width) for width in widths)])
    found = []
    for n_points, width in jobs:
        for seed in range(n_seeds):
            options = {"network": {"width": width}, **training, **judges}
            rows = remembered(curve, n_points=n_points, keep_steps=keep_steps, seed=seed, **options)
            found.append(rows.assign(width=width))
    return pd.concat(found, ignore_index=True)


def tidy(table: pd.DataFrame, levels_of: int) -> pd.DataFrame:
    """By the results contract; values by noise level are kept of one size, at the recipe's width."""
    kept = table.noise_level.isna() | ((table.n_points == levels_of) & (table.width == MAIN_WIDTH))
    table = table[kept].reset_index(drop=True)
    metric = table.measure.map(NAMES) + np.where(table.noise_level.notna(), "_level", "")
    step = table.step.astype("Int64")
    of = step.astype(str).radd("step ").where(step.notna(), "limit")
    variant = "N = " + table.n_points.astype(str) + ", width " + table.width.astype(str) + ", " + of
    fresh = table[(table.measure == "copy_share") & step.isna()].set_index(["n_points", "width", "seed"])["value"]
    index = pd.MultiIndex.from_frame(table[["n_points", "width", "seed"]])
    floor = fresh.reindex(index).to_numpy()
    own = {"study": "memorisation", "variant": variant, "metric": metric, "n": table.n_points, "floor_sd": np.nan}
    own |= {"floor_mean": np.where(table.measure == "copy_share", floor, np.nan), "ceiling": np.nan, "p_value": np.nan}
    factors = ["n_points", "width", "parameters", "step", "noise_level"]
    return table.assign(**own)[[*COLUMNS, *factors]]


def by_step(table: pd.DataFrame, measure: str, n_points: int, width: int = MAIN_WIDTH) -> pd.DataFrame:
    """Values of one measure, seeds as rows and steps as columns."""
    rows = table[(table.measure == measure) & (table.n_points == n_points) & (table.width == width)]
    rows = rows[rows.noise_level.isna() & rows.step.notna()]
    return rows.pivot(index="seed", columns="step", values="value")


def limit(table: pd.DataFrame, measure: str, n_points: int, width: int = MAIN_WIDTH) -> np.ndarray:
    """What the limit reads that `curve` gives of a measure, one value a seed."""
    rows = table[(table.measure == measure) & (table.n_points == n_points) & (table.width == width)]
    return rows[rows.noise_level.isna() & rows.step.isna()]["value"].to_numpy()


def stopped(values: pd.DataFrame) -> np.ndarray:
    """Value of each seed at the step that is best on average for the *other* seeds: what early stopping can give.

    Raises:
        ValueError: fewer than two seeds.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} seed; a step is chosen on some and read on another, which needs 2")
    return np.array([row[values.drop(index=seed).mean().idxmin()] for seed, row in values.iterrows()])


def from_level(terms: pd.Series, k: int) -> float:
    r"""A path KL from its k-th noise level up, nats.

    .. math:: \int_{\lambda_k} f\,d\lambda, \qquad \lambda = \ln \sigma/\alpha,

    by the trapezoid rule.

    Args:
        terms: :math:`f = \mathrm{SNR}\,E|D - D^\ast|^2`, by its noise levels :math:`\sigma/\alpha`, which rise.
        k: place of the lowest level that counts.
    """
    return float(np.trapezoid(terms.to_numpy()[k:], np.log(terms.index.to_numpy()[k:])))
