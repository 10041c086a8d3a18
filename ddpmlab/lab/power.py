"""Power: how many points a score needs to see a known flaw.

A flawed sampler of the two moons is the law itself with one defect of known size. The power of a score at n points is
the share of B repeats in which it exceeds the k-th smallest of B values between two fresh samples of the law, with
k = ceil(0.95 (B + 1)): then a further such value exceeds it with probability 1 - k/(B + 1), at most 5%, if B >= 19.

A flaw too small to be seen at any n that is affordable still moves the score. That shift is measured against a *twin*,
points of the law made from the same numbers as the flawed ones and scored against the same real ones, so that most of
the noise cancels; relative to the noise it brackets the n where the power will reach 80% (`bracketed_size`).
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import as_completed

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm
from torch import Tensor
from tqdm import tqdm

from ddpmlab.data.laws import TwoMoons
from ddpmlab.lab.runner import pool
from ddpmlab.metrics import distances, two_sample
from ddpmlab.metrics.calibration import DIVERGENT

_LAW = TwoMoons()
_THICK = TwoMoons()
_THICK.noise = 1.05 * TwoMoons.noise


_STANDARD = _LAW.standardised()


def _standard(points: Tensor) -> Tensor:
    return (points - _STANDARD.mean) / _STANDARD.scale


def thick_arcs(n: int, generator: torch.Generator) -> Tensor:
    """Arcs 5% thicker than the law's."""
    return _THICK.sample(n, generator)


def dropped_segment(n: int, generator: torch.Generator) -> Tensor:
    """2% of the mass missing: a piece of the upper arc, a twenty-fifth of it, near its top."""
    u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    upper = u[:, 0] < 0.48 / 0.98  # what is left of the upper arc, of all that is left
    cut = 0.96 * u[:, 1]
    u[:, 1] = torch.where(upper, torch.where(cut < 0.46, cut, cut + 0.04), u[:, 1])
    u[:, 0] = torch.where(upper, 0.25, 0.75)
    return _LAW._from_uniforms(u)


def divergent_points(n: int, generator: torch.Generator) -> Tensor:
    """0.05% of the points far away: N(0, 20^2 I)."""
    points = _LAW.sample(n, generator)
    away = torch.rand(n, generator=generator) < 5e-4
    points[away] = 20 * torch.randn(int(away.sum()), 2, generator=generator, dtype=torch.float64)
    return points


DEFECTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "arcs 5% too thick": thick_arcs,
    "2% of an arc missing": dropped_segment,
    "0.05% divergent": divergent_points,
}


def thickness(x: Tensor, y: Tensor) -> float:
    """Rms distance to the arcs as a ratio to the law's noise, of standardised points x; y is not used."""
    return float(_LAW.distance_to_arcs(_STANDARD.to_own_units(x)).square().mean().sqrt() / _LAW.noise)


def divergent_share(x: Tensor, y: Tensor) -> float:
    """Share of points with a coordinate beyond 6 standard deviations; y is not used."""
    return float((x.abs() > DIVERGENT).any(1).double().mean())


def cross_entropy(x: Tensor, y: Tensor) -> float:
    """Mean negative log density of x under the law, in nats; y is not used."""
    return -float(_STANDARD.log_prob(x).clamp(min=-1e3).mean())


SCORES: dict[tuple[str, ...], tuple[Callable[[Tensor, Tensor], float | tuple[float, ...]], int]] = {
    ("energy distance",): (distances.energy_distance, 10_000),
    ("MMD",): (distances.mmd2, 2_000),
    ("sliced Wasserstein",): (distances.sliced_wasserstein, 20_000),
    ("EMD",): (distances.emd, 2_000),
    ("C2ST (SVM)",): (lambda x, y: two_sample.c2st(x, y).auc, 2_000),
    ("C2ST (fast)",): (lambda x, y: two_sample.c2st(x, y, "fast").auc, 5_000),
    ("course NLL",): (distances.course_nll, 10_000),
    ("precision", "recall", "density", "coverage"): (
        lambda x, y: tuple(-value for value in two_sample.neighbourhood(x, y)),
        50_000,
    ),
    ("thickness",): (thickness, 200_000),
    ("divergent share",): (divergent_share, 200_000),
    ("cross-entropy",): (cross_entropy, 200_000),
}
"""Scores that one function gives -> function, larger is worse, and the largest n it is tried at.

Course NLL and density can be off on either side; the side that a worse sampler moves them to is the one tested.
"""


def _values(names: tuple[str, ...], n: int, repeats: int, seed: int) -> dict[str, np.ndarray]:
    """Values `(repeats, scores)` of fresh points of the law, of flawed ones and of their twin, from equal numbers."""
    function, generator = (
        SCORES[names][0],
        torch.Generator().manual_seed(seed + 1_000_003 * n),
    )  # no draws in common between sizes
    values = {key: [] for key in ("fresh", "twin", *DEFECTS)}
    for _ in range(repeats):
        real, fresh = _LAW.sample(n, generator), _LAW.sample(n, generator)
        same = int(torch.randint(2**62, (), generator=generator))
        makers = {"twin": _LAW.sample, **DEFECTS}
        drawn = {key: draw(n, torch.Generator().manual_seed(same)) for key, draw in makers.items()}
        for key, points in {"fresh": fresh, **drawn}.items():
            values[key].append(np.atleast_1d(function(_standard(points), _standard(real))))
    return {key: np.array(found) for key, found in values.items()}


def _reach(fresh: np.ndarray, twin: np.ndarray, flawed: np.ndarray) -> np.ndarray:
    r"""Shift of a score over the shift that gives 80% power, of repeats on the last axis.

    .. math:: \rho = (\bar s_1 - \bar s_0) / (q_{95} - \bar s_0 + z_{0.8}\,\sigma_1)

    with the mean of flawed samples over their twins' in the numerator, and in the denominator the quantile of perfect
    samples (by the rank rule of the power) over their mean, the normal quantile z and the flawed samples' standard
    deviation: a normal score has a power of 80% where the ratio is 1. Infinite for a shift of a score that is otherwise
    constant.
    """
    perfect = np.concatenate([fresh, twin], -1)
    wanted = (
        np.quantile(perfect, 0.95, axis=-1, method="weibull")
        - perfect.mean(-1)
        + norm.ppf(0.8) * flawed.std(-1, ddof=1)
    )
    shift = (flawed - twin).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shift == 0, 0.0, shift / np.maximum(wanted, 0))


def _reach_interval(fresh: np.ndarray, twin: np.ndarray, flawed: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Reach and its 95% interval by the percentile bootstrap over repeats."""
    chosen = np.random.default_rng(seed).integers(len(fresh), size=(1_000, len(fresh)))
    draws = _reach(fresh[chosen], twin[chosen], flawed[chosen])
    return (float(_reach(fresh, twin, flawed)), *np.quantile(draws, (0.025, 0.975), method="inverted_cdf"))


def power_table(
    sizes: Iterable[int], repeats: int = 40, seed: int = 0, workers: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Power of every score against every defect.

    Args:
        sizes: points a side; a score is tried up to its own limit.
        repeats: draws behind each quantile and each power.
        seed: of all draws.
        workers: processes; as many as cores if omitted.

    Returns:
        One row per (score, defect, n): columns `score, defect, n, power, low, high`, the last two Wilson's interval;
        `reach, reach_low, reach_high`, the shift of the score over the one that 80% power needs and its interval, all
        three 0 where the defect leaves the score as it is in every repeat.

    Raises:
        ValueError: fewer than 19 repeats, which cannot give a false-alarm rate of 5%.
    """
    if repeats < 19:
        raise ValueError(f"repeats = {repeats}; a false-alarm rate of 5% needs at least 19")
    rank = math.ceil(0.95 * (repeats + 1))
    jobs = [(names, n) for names, (_, limit) in SCORES.items() for n in sizes if n <= limit]
    jobs.sort(key=lambda job: -job[1])  # the long ones first
    rows = []
    executor = pool(workers)
    futures = {executor.submit(_values, *job, repeats, seed): job for job in jobs}
    done = as_completed(futures)
    for future in tqdm(done, desc="power", total=len(futures), disable=not progress, mininterval=1.0):
        (names, n), values = futures[future], future.result()
        for i, name in enumerate(names):
            threshold = np.sort(values["fresh"][:, i])[rank - 1]
            for defect in DEFECTS:
                found = int((values[defect][:, i] > threshold).sum())
                interval = binomtest(found, repeats).proportion_ci(method="wilson")
                drawn = [values[key][:, i] for key in ("fresh", "twin", defect)]
                reach = (0.0,) * 3 if (drawn[1] == drawn[2]).all() else _reach_interval(*drawn, seed)
                rows.append((name, defect, n, found / repeats, interval.low, interval.high, *reach))
    columns = ["score", "defect", "n", "power", "low", "high", "reach", "reach_low", "reach_high"]
    order = {name: i for i, name in enumerate(name for names in SCORES for name in names)}
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(
        ["score", "defect", "n"], key=lambda c: c.map(order) if c.name == "score" else c, ignore_index=True
    )


def size_at_power(group: pd.DataFrame, wanted: float = 0.8, column: str = "power") -> float:
    """Smallest n from which the power stays at `wanted` or above, interpolated in ln n; infinite if never reached."""
    group = group.sort_values("n")
    n, power = group["n"].to_numpy(), group[column].to_numpy()
    above = power >= wanted
    if not above[-1]:
        return math.inf
    first = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
    if first == 0:
        return float(n[0])
    low, high = power[first - 1], power[first]
    return float(n[first - 1] * (n[first] / n[first - 1]) ** ((wanted - low) / (high - low)))


def bracketed_size(group: pd.DataFrame) -> tuple[float, float]:
    r"""Points a side between which the reach will be 1, from the reach at the largest n tried; NaN if it does not tell.

    With n the reach grows at least as its root, as for a mean over points, and at most in proportion, as for a
    degenerate U-statistic below its noise (Serfling 1980, section 5.5). From its interval :math:`(\rho_-, \rho_+)` at
    :math:`n_{max}` the size is between

    .. math:: n_{max} / \rho_+ \quad\text{and}\quad n_{max} / \rho_-^2 .

    It does not tell if the reach's interval at one of the two largest n touches 0, or if the growth between the two
    admits no exponent from 1/2 to 1.

    Args:
        group: rows of `power_table` of one score and one defect.
    """
    if len(group) < 2:
        return math.nan, math.nan
    before, last = (row for _, row in group.sort_values("n").iloc[-2:].iterrows())
    if not (before["reach_low"] > 0 and last["reach_low"] > 0 and math.isfinite(last["reach_high"])):
        return math.nan, math.nan
    step = math.log(last["n"] / before["n"])
    slowest = math.log(last["reach_low"] / before["reach_high"]) / step
    fastest = math.log(last["reach_high"] / before["reach_low"]) / step
    if slowest > 1 or fastest < 0.5:
        return math.nan, math.nan
    reached = min(last["reach_high"], 1.0), min(last["reach_low"], 1.0)
    return float(last["n"] / reached[0]), float(last["n"] / reached[1] ** 2)
