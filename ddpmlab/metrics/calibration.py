r"""Calibration: what a score reads for a perfect sampler (floor) and for pure noise (ceiling), at the same size.

A score alone says little: 128 points against 128 others of the *same* law are far apart. The floor is the score of
fresh points of the law, the ceiling that of N(0, I), each against the same test points and over many repeats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpmlab.data.laws import Law
from ddpmlab.metrics.distances import emd

DIVERGENT = 6.0
"""A standardised coordinate beyond this counts as divergent: no law here has points past 6 standard deviations."""


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of a score's floor and ceiling over repeats."""

    floor_mean: float
    floor_sd: float
    ceiling_mean: float
    ceiling_sd: float


def emd_total(x: Tensor, y: Tensor) -> float:
    """The homework's EMD: total cost of the best matching."""
    return emd(x, y, reduction="total")


def _draw(points: Tensor, n: int, generator: torch.Generator) -> Tensor:
    if len(points) < n:
        raise ValueError(f"{len(points)} points; this score compares {n}")
    return points[torch.randperm(len(points), generator=generator)[:n]]


def mean_score(score, x: Tensor, y: Tensor, seed: int) -> float:
    """Mean of `score.function` over `score.repeats` draws of `score.n` points from each sample."""
    generator = torch.Generator().manual_seed(seed)
    draws = [score.function(_draw(x, score.n, generator), _draw(y, score.n, generator)) for _ in range(score.repeats)]
    return float(sum(draws) / len(draws))


def calibrate(score, law: Law, repeats: int, seed: int = 0) -> Calibration:
    """Floor and ceiling of a score: `repeats` single draws of `score.n` points against the test split."""
    generator, test = torch.Generator().manual_seed(seed), law.split().test
    floor, ceiling = [], []
    for _ in range(repeats):
        real = _draw(test, score.n, generator)
        floor.append(score.function(law.sample(score.n, generator), real))
        noise = torch.randn(score.n, law.dim, generator=generator, dtype=torch.float64)
        ceiling.append(score.function(noise, real))
    floor, ceiling = torch.tensor(floor), torch.tensor(ceiling)
    return Calibration(*(float(f) for f in (floor.mean(), floor.std(), ceiling.mean(), ceiling.std())))
