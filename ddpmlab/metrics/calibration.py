r"""Calibration: what a score reads for a perfect sampler (floor) and for pure noise (ceiling), at the same size.

A score alone says little: 128 points against 128 others of the *same* law are far apart. The floor is the score of real
points against real points, the ceiling that of N(0, I) against real points, both with as many points as the value and
over repeats. The one figure that compares scores is the fraction of the way from data to noise that is left,

.. math:: f = \frac{\text{value} - \text{floor}}{\text{ceiling} - \text{floor}} .
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpmlab.data.laws import Law
from ddpmlab.metrics.distances import emd, energy_distance, mmd2
from ddpmlab.metrics.two_sample import permutation_test

Metric = Callable[[Tensor, Tensor], float]
DIVERGENT = 6.0
"""A standardised coordinate beyond this counts as divergent: no law here has points past 6 standard deviations."""
_PERMUTABLE = {energy_distance: "energy_distance", mmd2: "mmd2"}


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of a score's floor and ceiling over repeats."""

    floor_mean: float
    floor_sd: float
    ceiling_mean: float
    ceiling_sd: float

    def fraction_left(self, value: float) -> float:
        """Fraction of the noise-to-data distance left: 0 at the floor, 1 at the ceiling; negative below the floor.

        Raises:
            ValueError: floor and ceiling coincide, so that the score cannot tell noise from data.
        """
        if self.ceiling_mean == self.floor_mean:
            raise ValueError(f"floor and ceiling are both {self.floor_mean:g}: this score cannot tell noise from data")
        return (value - self.floor_mean) / (self.ceiling_mean - self.floor_mean)


@dataclass(frozen=True)
class Calibrated:
    """A score with its floor and ceiling, the fraction left, and a permutation p-value where the score has one."""

    value: float
    calibration: Calibration
    fraction_left: float
    p_value: float | None


def emd_total(x: Tensor, y: Tensor) -> float:
    """The homework's EMD: total cost of the best matching."""
    return emd(x, y, reduction="total")


def draw(points: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` of the points, without repetition.

    Raises:
        ValueError: there are fewer.
    """
    if len(points) < n:
        raise ValueError(f"{len(points)} points, but the score compares {n}; draw more or lower n")
    return points[torch.randperm(len(points), generator=generator)[:n]]


def _real_pair(reference: Law | Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if isinstance(reference, Law):
        return reference.sample(n, generator), reference.sample(n, generator)
    if len(reference) < 2 * n:
        raise ValueError(
            f"a test set of {len(reference)} points gives real-against-real draws of at most {len(reference) // 2}, "
            f"not {n}; lower n, or pass the law"
        )
    pair = draw(reference, 2 * n, generator)
    return pair[:n], pair[n:]


def floor_and_ceiling(
    metric: Metric, reference: Law | Tensor, n: int, repeats: int = 50, seed: int = 0, test: Tensor | None = None
) -> Calibration:
    """Floor and ceiling of a metric at `n` points a side.

    Args:
        metric: a function of two samples.
        reference: a law, drawn afresh, or a finite test set `(N, d)` with N >= 2n, resampled without overlap.
        n: points a side.
        repeats: how many draws.
        seed: of all draws.
        test: compare with draws from this set instead of fresh real points, as when values are.

    Raises:
        ValueError: fewer than 2 repeats, or too small a test set.
    """
    if repeats < 2:
        raise ValueError(f"repeats = {repeats}; a standard deviation needs at least 2")
    generator = torch.Generator().manual_seed(seed)
    floor, ceiling = [], []
    for _ in range(repeats):
        x, y = _real_pair(reference, n, generator)
        y = y if test is None else draw(test, n, generator)
        floor.append(metric(x, y))
        ceiling.append(metric(torch.randn(x.shape, generator=generator, dtype=x.dtype), y))
    floor, ceiling = (torch.tensor(v, dtype=torch.float64) for v in (floor, ceiling))
    return Calibration(*(float(v) for v in (floor.mean(), floor.std(), ceiling.mean(), ceiling.std())))


def calibrate(metric: Metric, x: Tensor, reference: Law | Tensor, repeats: int = 50, seed: int = 0) -> Calibrated:
    """A score of generated points with everything needed to read it.

    Args:
        metric: a function of two samples, such as `metrics.energy_distance`.
        x: generated points `(n, d)`.
        reference: the law, or a test set of at least 2n points.
        repeats: draws behind floor and ceiling.
        seed: of all draws.

    Raises:
        ValueError: see `floor_and_ceiling`, and bad samples.
    """
    calibration = floor_and_ceiling(metric, reference, len(x), repeats, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    y = _real_pair(reference, len(x), generator)[0]
    value = metric(x.to(y), y)
    tested = permutation_test(x, y, _PERMUTABLE[metric], seed=seed).p_value if metric in _PERMUTABLE else None
    return Calibrated(value, calibration, calibration.fraction_left(value), tested)
