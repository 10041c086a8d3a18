r"""Calibration: what a score reads for a perfect sampler (floor) and for pure noise (ceiling), at the same size.

A score alone says little: 128 points against 128 others of the *same* law are far apart. The floor is the score of real
points against real points, the ceiling that of N(0, I) against real points, both with as many points as the value and
over repeats. The one figure that compares scores is the fraction of the way from data to noise that is left,

.. math:: f = \frac{\text{value} - \text{floor}}{\text{ceiling} - \text{floor}} .

A `Calibration` is floor and ceiling, a score with them is `Calibrated`, and `calibrate` makes one. Points are in
standardised units throughout: N(0, I) is noise there.

p-values of many samplers, or of many seeds, are independent only if each is tested against real points of its own:
`fresh_test` draws them, from a stream of random numbers that depends on what it is for (`stream`), so that no two seeds
and no two purposes share one.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpmlab.data.laws import Law
from ddpmlab.metrics.distances import TIE, emd, energy_distance, mmd2
from ddpmlab.metrics.two_sample import PermutationTest, permutation_test

Metric = Callable[[Tensor, Tensor], float]
DIVERGENT = 6.0
"""A standardised coordinate beyond this counts as divergent (no law here has points past 6 standard deviations)."""
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
            ValueError: floor and ceiling coincide (to rounding), so that the score cannot tell noise from data; or a
                number is not finite.
        """
        numbers = (value, self.floor_mean, self.ceiling_mean)
        if not all(map(math.isfinite, numbers)):
            raise ValueError("value, floor and ceiling are {}, {} and {}; all must be finite".format(*numbers))
        reach = max(abs(self.floor_mean), abs(self.ceiling_mean), self.floor_sd, self.ceiling_sd)
        if abs(self.ceiling_mean - self.floor_mean) <= TIE * reach:
            raise ValueError(f"floor and ceiling are both {self.floor_mean:g}: this score cannot tell noise from data")
        return (value - self.floor_mean) / (self.ceiling_mean - self.floor_mean)


@dataclass(frozen=True)
class Calibrated:
    """A score with its floor and ceiling, the fraction left, and a permutation p-value where the score has one."""

    value: float
    calibration: Calibration
    fraction_left: float
    p_value: float | None


def stream(purpose: str, seed: int) -> torch.Generator:
    """Random numbers for one purpose and seed, by a hash of both.

    Numbers that are added to a seed make streams meet where two such sums agree; hashes do not.
    """
    digest = hashlib.sha256(f"{purpose}|{int(seed)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def fresh_points(law: Law, n: int, seed: int) -> Tensor:
    """`n` real points `(n, d)` for the scores of one seed, of which no training, sampling or other seed has any."""
    return law.sample(n, stream("fresh real points", seed))


def fresh_test(
    x: Tensor,
    law: Law,
    statistic: str = "energy_distance",
    n: int | None = None,
    n_permutations: int = 199,
    seed: int = 0,
) -> PermutationTest:
    """Permutation test of generated points against as many fresh ones of the law, drawn for this seed alone.

    So the tests of many seeds are independent, and of a perfect sampler 5% of them fall below 0.05.

    Args:
        x: generated points `(N, d)`.
        law: what they should follow, in the same units.
        statistic: `energy_distance` or `mmd2`.
        n: points a side, drawn from x at random; all of them if omitted.
        n_permutations: see `permutation_test`.
        seed: of the run.

    Raises:
        ValueError: `n` exceeds the points there are, or see `permutation_test`.
    """
    x = draw(x, len(x) if n is None else n, stream("generated points to test", seed))
    y = fresh_points(law, len(x), seed)
    return permutation_test(x.to(y), y, statistic, n_permutations, seed)


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
        ValueError: fewer than 2 repeats, too small a test set, or a score that is not finite.
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
    for name, values in (("floor", floor), ("ceiling", ceiling)):
        if not values.isfinite().all():
            bad = int((~values.isfinite()).sum())
            raise ValueError(
                f"{bad} of {repeats} values of the {name} are NaN or infinite; the score fails on real points"
            )
    return Calibration(*(float(v) for v in (floor.mean(), floor.std(), ceiling.mean(), ceiling.std())))


def calibrate(metric: Metric, x: Tensor, reference: Law | Tensor, repeats: int = 50, seed: int = 0) -> Calibrated:
    """A score of generated points with everything needed to read it.

    Args:
        metric: a function of two samples, such as `metrics.energy_distance`.
        x: generated points `(n, d)`.
        reference: the law, or a test set of at least 2n points. Only a law gives fresh points for each seed.
        repeats: draws behind floor and ceiling.
        seed: of all draws.

    Raises:
        ValueError: see `floor_and_ceiling`, bad samples, or a value that is not finite.
    """
    calibration = floor_and_ceiling(metric, reference, len(x), repeats, seed)
    y = _real_pair(reference, len(x), stream("fresh real points", seed))[0]
    value = metric(x.to(y), y)
    p_value = permutation_test(x.to(y), y, _PERMUTABLE[metric], seed=seed).p_value if metric in _PERMUTABLE else None
    return Calibrated(value, calibration, calibration.fraction_left(value), p_value)
