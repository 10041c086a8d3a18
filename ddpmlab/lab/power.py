r"""Power and sensitivity: how many points a score needs to see a known flaw, and which flaws move which score.

A flawed sampler of the two moons is the law itself with one defect of known size. The *power* of a score at n points is
the share of B repeats in which it exceeds the k-th smallest of B values between two fresh samples of the law, with
k = ceil(0.95 (B + 1)): then a further such value exceeds it with probability 1 - k/(B + 1), at most 5%, if B >= 19.

A flaw too small to be seen still moves the score. That shift is measured against a *twin*, points of the law made from
the same numbers as the flawed ones and scored against the same real ones, so that most of the noise cancels. The
*sensitivity* is the mean shift over the standard deviation of what perfect samples read,

.. math:: d' = (\bar s_{flawed} - \bar s_{twin}) / \sigma_{perfect} .
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from ddpmlab.data.laws import TwoMoons
from ddpmlab.lab.runner import pool
from ddpmlab.metrics import distances, two_sample
from ddpmlab.metrics.calibration import DIVERGENT, stream

_LAW = TwoMoons()
_THICK = TwoMoons()
_THICK.noise = 1.05 * TwoMoons.noise
_TRIPLE = TwoMoons()
_TRIPLE.noise = 3 * TwoMoons.noise


_STANDARD = _LAW.standardised()


def _standard(points: Tensor) -> Tensor:
    return (points - _STANDARD.mean) / _STANDARD.scale


def thick_arcs(n: int, generator: torch.Generator) -> Tensor:
    """Arcs 5% thicker than the law's."""
    return _THICK.sample(n, generator)


def dropped_segment(n: int, generator: torch.Generator, share: float = 0.02) -> Tensor:
    """A share of the mass missing (2%): a piece of the upper arc (a twenty-fifth of it), near its top."""
    u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    upper = u[:, 0] < (0.5 - share) / (1 - share)  # what is left of the upper arc, of all that is left
    cut = (1 - 2 * share) * u[:, 1]
    u[:, 1] = torch.where(upper, torch.where(cut < 0.5 - share, cut, cut + 2 * share), u[:, 1])
    u[:, 0] = torch.where(upper, 0.25, 0.75)
    return _LAW._from_uniforms(u)


def divergent_points(n: int, generator: torch.Generator) -> Tensor:
    """0.05% of the points far away: :math:`N(0, 20^2 I)`."""
    points = _LAW.sample(n, generator)
    away = torch.rand(n, generator=generator) < 5e-4
    points[away] = 20 * torch.randn(int(away.sum()), 2, generator=generator, dtype=torch.float64)
    return points


DEFECTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "arcs 5% too thick": thick_arcs,
    "2% of an arc missing": dropped_segment,
    "0.05% divergent": divergent_points,
}
"""Small flaws for `power_table`, as points in the law's own units."""


def three_times_as_thick(n: int, generator: torch.Generator) -> Tensor:
    """Arcs three times as thick as the law's."""
    return _TRIPLE.sample(n, generator)


def tenth_missing(n: int, generator: torch.Generator) -> Tensor:
    """A tenth of the mass missing: a fifth of the upper arc."""
    return dropped_segment(n, generator, 0.1)


def spread_too_large(n: int, generator: torch.Generator) -> Tensor:
    """All points a tenth farther from the law's mean."""
    return _STANDARD.to_own_units(1.1 * _standard(_LAW.sample(n, generator)))


def moved(n: int, generator: torch.Generator) -> Tensor:
    """All points moved along the first axis, by a tenth of its standard deviation."""
    return _STANDARD.to_own_units(_standard(_LAW.sample(n, generator)) + torch.tensor([0.1, 0.0]))


LOCAL, GLOBAL = (
    {"arcs 3 times as thick": three_times_as_thick, "10% of the mass missing": tenth_missing},
    {"spread 10% too large": spread_too_large, "moved by 0.1 sd": moved},
)
"""Flaws for `sensitivity_table`, as points in the law's own units; `LOCAL` has those of a sampler's detail, `GLOBAL`
those of its whole."""


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
    ("energy distance",): (distances.energy_distance, 5_000),
    ("MMD",): (distances.mmd2, 1_000),
    ("sliced Wasserstein",): (distances.sliced_wasserstein, 20_000),
    ("EMD",): (distances.emd, 1_000),
    ("C2ST (SVM)",): (lambda x, y: two_sample.c2st(x, y).auc, 1_000),
    ("course NLL",): (distances.course_nll, 2_000),
    ("precision", "recall", "density", "coverage"): (
        lambda x, y: tuple(-value for value in two_sample.neighbourhood(x, y)),
        20_000,
    ),
    ("thickness",): (thickness, 20_000),
    ("divergent share",): (divergent_share, 20_000),
    ("cross-entropy",): (cross_entropy, 20_000),
}
"""Scores that one function gives -> function, larger is worse, and the largest n it is tried at.

Course NLL and density can be off on either side; the side that a worse sampler moves them to is the one tested.
"""
COMPARED = {
    "MMD": distances.mmd2,
    "energy distance": distances.energy_distance,
    "sliced Wasserstein": distances.sliced_wasserstein,
}
"""The scores of `sensitivity_table`."""


def _values(names: tuple[str, ...], n: int, repeats: int, seed: int) -> dict[str, np.ndarray]:
    """Values `(repeats, scores)` of fresh points of the law and of flawed ones, against the same real ones."""
    function = SCORES[names][0]
    generator = torch.Generator().manual_seed(seed + 1_000_003 * n)  # no draws in common between sizes
    values = {key: [] for key in ("fresh", *DEFECTS)}
    for _ in range(repeats):
        real, fresh = _LAW.sample(n, generator), _LAW.sample(n, generator)
        drawn = {key: draw(n, generator) for key, draw in DEFECTS.items()}
        for key, points in {"fresh": fresh, **drawn}.items():
            values[key].append(np.atleast_1d(function(_standard(points), _standard(real))))
    return {key: np.array(found) for key, found in values.items()}


def power_table(
    sizes: Iterable[int], repeats: int = 40, seed: int = 0, workers: int | None = None, progress: bool = True
) -> pd.DataFrame:
    """Power of every score against every defect.

    Args:
        sizes: points a side; a score is tried up to its own limit.
        repeats: draws behind each quantile and each power.
        seed: of all draws.
        workers: processes; as many as cores if omitted.
        progress: show a text progress bar.

    Returns:
        One row per (score, defect, n), with columns `score, defect, n, power, low, high`, the last two Wilson's
        interval.

    Raises:
        ValueError: fewer than 19 repeats, which cannot give a false-alarm rate of 5%.
    """
    if repeats < 19:
        raise ValueError(f"repeats = {repeats}; a false-alarm rate of 5% needs at least 19")
    rank = math.ceil(0.95 * (repeats + 1))
    jobs = [(names, n) for names, (_, limit) in SCORES.items() for n in sizes if n <= limit]
    jobs.sort(key=lambda job: -job[1])  # the long ones first
    rows = []
    few = repeats * sum(n for _, n in jobs) < 100_000  # points: not worth the start of processes
    executor = ThreadPoolExecutor(1) if few else pool(workers)
    futures = {executor.submit(_values, *job, repeats, seed): job for job in jobs}
    done = as_completed(futures)
    for future in tqdm(done, desc="power", total=len(futures), disable=not progress, mininterval=1.0):
        (names, n), values = futures[future], future.result()
        for i, name in enumerate(names):
            threshold = np.sort(values["fresh"][:, i])[rank - 1]
            for defect in DEFECTS:
                found = int((values[defect][:, i] > threshold).sum())
                interval = binomtest(found, repeats).proportion_ci(method="wilson")
                rows.append((name, defect, n, found / repeats, interval.low, interval.high))
    columns = ["score", "defect", "n", "power", "low", "high"]
    order = {name: i for i, name in enumerate(name for names in SCORES for name in names)}
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(
        ["score", "defect", "n"], key=lambda c: c.map(order) if c.name == "score" else c, ignore_index=True
    )


def sensitivity_table(n: int, repeats: int, seed: int) -> pd.DataFrame:
    """Sensitivity of `COMPARED` to each flaw of `LOCAL` and `GLOBAL`, from one seed's repeats on the same points.

    Args:
        n: points a side.
        repeats: draws behind each mean and standard deviation.
        seed: of all draws.

    Returns:
        One row per (score, flaw), with columns `score, flaw, seed, n, sensitivity`.

    Raises:
        ValueError: fewer than two repeats.
    """
    if repeats < 2:
        raise ValueError(f"repeats = {repeats}; a standard deviation needs at least 2")
    flaws, generator = LOCAL | GLOBAL, stream("sensitivity", seed)
    makers = {"twin": _LAW.sample, **flaws}
    values = {(score, key): [] for score in COMPARED for key in makers}
    for _ in range(repeats):
        real = _standard(_LAW.sample(n, generator))
        same = int(torch.randint(2**62, (), generator=generator))
        for key, make in makers.items():
            points = _standard(make(n, torch.Generator().manual_seed(same)))
            for score, function in COMPARED.items():
                values[score, key].append(function(points, real))
    values = {key: np.array(found) for key, found in values.items()}
    rows = []
    for score in COMPARED:
        perfect = values[score, "twin"]
        for flaw in flaws:
            shift = (values[score, flaw] - perfect).mean()
            rows.append((score, flaw, seed, n, float(shift / perfect.std(ddof=1))))
    return pd.DataFrame(rows, columns=["score", "flaw", "seed", "n", "sensitivity"])
