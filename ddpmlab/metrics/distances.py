r"""Distances between two samples x `(n, d)` and y `(m, d)`: floats that tend to 0 for equal laws.

Each runs on the device of its samples (EMD on the CPU) and none ever holds the matrix of all distances of large
samples: sums over pairs go block by block, in float64 whatever the samples' precision. Where a report has a convention
of its own it is asked for by name.

In other units, :math:`x, y \to cx, cy`: EMD, energy distance and sliced Wasserstein become c times as large, MMD,
classifier tests and neighbourhood scores stay (their widths come from the data), and `course_nll` changes, as its
width is fixed. Distances take squares, so coordinates must be 0 or reach between 1e-150 and 1e150.
"""

import math
from collections.abc import Iterator

import numpy as np
import ot
import torch
from ot.lp import emd_wrap
from torch import Tensor

CONVENTIONS = ("unbiased", "biased", "two-moons-report")
_EMD_PAIRS = 25_000_000  # up to here the EMD holds its cost matrix, about 1 GB with the solver's own arrays
_EMD_ITERATIONS = 2_000_000_000
_EMD_NEAREST, _EMD_MORE, _EMD_MOST = 16, 4, 24  # pairs of a point: at first, gained a round, kept
_EMD_TOLERANCE, _EMD_GAP = 1e-9, 1e-6  # of the mean: what a pair may undercut its duals by; proven accuracy
_BLOCK = 1_000_000  # pairs held at once: 8 MB stay in the cache, twice to four times as fast as 160 MB
_LEAST, _LARGEST = 1e-150, 1e150  # coordinates whose squares float64 holds
TIE = 1e-10
"""Numbers that equal each other in exact arithmetic differ by rounding, so they count as equal within this share of the
scale of what they were computed from."""
ROUNDING = 1e-14
"""What rounding may add to a distance, as a share of it and of the coordinates that were subtracted."""
_MEDIAN_POINTS = 10_000  # the median heuristic is exact up to this many pooled points, then a subsample's


def check_samples(x: Tensor, y: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Return both samples as float64 after checking shapes, sizes and values.

    Raises:
        ValueError: not two dimensions, different ones or devices, fewer than `least` points, NaN or infinity, or
            coordinates whose squares float64 does not hold.
    """
    checked = []
    for name, sample in (("x", x), ("y", y)):
        sample = torch.as_tensor(sample).detach()
        if sample.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(sample.shape)}; need (n, dim)")
        if len(sample) < least:
            raise ValueError(f"{name} has {len(sample)} points; this score needs at least {least}")
        if not torch.isfinite(sample).all():
            bad = int((~torch.isfinite(sample)).any(1).sum())
            raise ValueError(f"{name} holds {bad} points with NaN or infinity; drop or count them first")
        sample = sample.to(torch.float64)
        largest = float(sample.abs().max()) if sample.numel() else 0.0
        if largest and not _LEAST <= largest <= _LARGEST:
            raise ValueError(
                f"{name} reaches {largest:g}; distances need its square, so the largest coordinate must be 0 or "
                f"between {_LEAST:g} and {_LARGEST:g}: drop far points, or rescale both samples"
            )
        checked.append(sample)
    if checked[0].shape[1] != checked[1].shape[1]:
        raise ValueError(f"x has {checked[0].shape[1]} dimensions, y has {checked[1].shape[1]}; they must agree")
    if checked[0].device != checked[1].device:
        raise ValueError(f"x is on {checked[0].device}, y on {checked[1].device}; move one with .to(...)")
    return checked[0], checked[1]


def finite(value: float, name: str) -> float:
    """Return a score if it is a number.

    Raises:
        ArithmeticError: it is NaN or infinite, which no caller should take for an answer.
    """
    if not math.isfinite(value):
        raise ArithmeticError(f"{name} = {value}: the samples' distances overflow float64; rescale or drop far points")
    return value


def emd(x: Tensor, y: Tensor, reduction: str = "mean") -> float:
    r"""Earth mover's distance with Euclidean cost, exact, by POT's network simplex.

    .. math:: \min_\pi \sum_{ij} \pi_{ij} |x_i - y_j|, \quad \pi \text{ with marginals } 1/n, 1/m.

    For equal sizes the optimal plan is a matching (Peyré & Cuturi 2019, proposition 2.1); `reduction="total"` then
    gives its total cost, n times the mean: the homework's convention.

    Beyond 5,000 points a side the solver gets some tens of pairs per point instead of all, and more of them until
    linear-programming duality proves that no other pair would lower the cost by more than a millionth of it (or 1e-12
    of the longest distance, if that is more). Some 200 bytes for each of at most 48 pairs per point are held. It takes
    half as long as all pairs would between similar laws, and several times as long between very different ones.

    In other units it becomes c times as large: costs reach the solver, whose constants are absolute, near 1.

    Args:
        x, y: samples `(n, d)` and `(m, d)`.
        reduction: `mean` for the cost above, or `total` for n times that, of samples of equal size.

    Raises:
        ValueError: unknown reduction, `total` with unequal sizes, or bad samples.
        RuntimeError: the solver stopped short of the optimum, or rounding leaves it unproven.
    """
    x, y = check_samples(x, y, least=1)
    if reduction not in ("mean", "total"):
        raise ValueError(f"unknown reduction {reduction!r}; choose one of: mean, total")
    if reduction == "total" and len(x) != len(y):
        raise ValueError(f"total cost needs equal sizes, got {len(x)} and {len(y)}; use reduction='mean'")
    x, y = x.cpu(), y.cpu()
    if len(x) * len(y) > _EMD_PAIRS:
        mean = _emd_by_columns(x, y)
    else:
        cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        unit = math.ldexp(1.0, math.frexp(float(cost.max()))[1])  # a power of 2 rounds nothing
        mean, log = ot.emd2([], [], cost / unit, numItermax=_EMD_ITERATIONS, log=True)
        _check_optimal(log["result_code"], len(x), len(y))
        mean *= unit
    return finite(float(mean) * len(x) if reduction == "total" else float(mean), "EMD")


def _check_optimal(code: int, n: int, m: int) -> None:
    if code != 1:
        raise RuntimeError(
            f"EMD of {n} against {m} points: the network simplex ended with code {code} (1 is optimal, 3 that "
            f"{_EMD_ITERATIONS:,} iterations did not suffice); use sliced_wasserstein"
        )


def _emd_by_columns(x: Tensor, y: Tensor) -> float:
    r"""Optimal mean cost by column generation (Ford & Fulkerson 1958).

    Of all pairs the plan may at first use each point's nearest neighbours, and those that match the masses in the
    order of the first coordinate, so that a plan exists. The duals of this restricted optimum obey
    :math:`u_i + v_j \le |x_i - y_j|` on its pairs. All others are then priced, block by block: the pairs of each row
    that break the inequality most join, and the next solve starts from these duals. Once no other pair breaks it, the
    duals lowered by their rounding are feasible for the whole problem, where by weak duality no plan costs less than
    they sum to.

    Pairs of the largest reduced costs are dropped when there are many, but only after a round that lowered the cost,
    so that the rounds end.
    """
    n, m = len(x), len(y)
    shared = math.gcd(n, m)
    mass_x, mass_y = np.full(n, m / shared), np.full(m, n / shared)  # whole numbers: flows are exact
    below, beside = _cheapest(x, y, _EMD_NEAREST)[1], _cheapest(y, x, _EMD_NEAREST)[1]
    pairs = [torch.arange(n)[:, None] * m + below, beside * m + torch.arange(m)[:, None], _in_order(x, y)]
    pairs = torch.cat([part.flatten() for part in pairs]).unique()
    most, lowest, duals = _EMD_MOST * (n + m), math.inf, ()
    while True:
        rows, columns = pairs // m, pairs % m
        costs = sum((x[rows, k] - y[columns, k]).square_() for k in range(x.shape[1])).sqrt_()
        unit = float(costs.max()) or 1.0  # the solver's own constants suppose costs near 1
        arcs = (rows.numpy().astype(np.uint64), columns.numpy().astype(np.uint64), (costs / unit).numpy())
        # called directly, as `ot.emd` neither starts from given duals on sparse costs nor holds its gradient compactly
        *_, total, u, v, code = emd_wrap.emd_c_sparse(
            mass_x, mass_y, *arcs, _EMD_ITERATIONS, *(dual / unit for dual in duals)
        )
        _check_optimal(code, n, m)
        duals = (u * unit, v * unit)
        total, (u, v) = total * unit, map(torch.from_numpy, duals)
        reduced, found = _cheapest(x, y, _EMD_MORE, u, v)
        broken = reduced < -_EMD_TOLERANCE * total / (n * m / shared)
        joining = (torch.arange(n)[:, None] * m + found)[broken]
        if torch.isin(joining, pairs).all():  # none is broken, or only by rounding, among those that the solver had
            break
        if len(pairs) > most and total < lowest:
            slack = costs.sub_(u[rows]).sub_(v[columns])
            pairs = pairs[slack <= slack.kthvalue(most // 2).values]
        lowest = min(lowest, total)
        pairs = torch.cat([pairs, joining]).unique()
    bound = mass_x @ (u + reduced[:, 0]).numpy() + mass_y @ v.numpy()
    if total - bound > _EMD_GAP * total + 1e-12 * unit * n * m / shared:
        raise RuntimeError(
            f"EMD of {n} against {m} points: {total:g} is proven only to {(total - bound) / total:.0e} of itself, as "
            f"rounding grows with the longest distance, {unit:g}; leave far points out or use sliced_wasserstein"
        )
    return total / (n * m / shared)


def _cheapest(x: Tensor, y: Tensor, count: int, u: Tensor | None = None, v: Tensor | None = None):
    """The `count` smallest :math:`|x_i - y_j| - u_i - v_j` of each row and their columns, both `(n, count)`."""
    count = min(count, len(y))
    values, columns = torch.empty(len(x), count, dtype=x.dtype), torch.empty(len(x), count, dtype=torch.int64)
    for rows, distance in distance_blocks(x, y):
        if u is not None:
            distance.sub_(u[rows, None]).sub_(v)
        torch.topk(distance, count, largest=False, out=(values[rows], columns[rows]))
    return values, columns


def _in_order(x: Tensor, y: Tensor) -> Tensor:
    """Pairs `i m + j`, n + m - 1 at most, of the plan that fills both samples in the order of the first coordinate."""
    n, m = len(x), len(y)
    filled_x, filled_y = torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n
    steps = torch.cat([filled_x, filled_y]).unique()
    i, j = (
        x[:, 0].argsort()[torch.searchsorted(filled_x, steps)],
        y[:, 0].argsort()[torch.searchsorted(filled_y, steps)],
    )
    return i * m + j


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; choose one of: {', '.join(CONVENTIONS)}")


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the matrix of Euclidean distances, `(block, m)` at a time."""
    size = max(1, _BLOCK // len(y))
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")


def pair_blocks(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the distances of a sample to itself from the diagonal on: `(block, n - rows.start)` at a time."""
    size = max(1, _BLOCK // len(x))
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        yield rows, torch.cdist(x[rows], x[start:], compute_mode="donot_use_mm_for_euclid_dist")


def energy_distance(x: Tensor, y: Tensor, convention: str = "unbiased") -> float:
    r"""Energy distance (Székely & Rizzo 2013, eq. 1).

    .. math:: 2E|X - Y| - E|X - X'| - E|Y - Y'|.

    `unbiased`: the U-statistic, pairs of distinct points only; can be negative. `biased`: the V-statistic, which counts
    each point's zero distance to itself and so exceeds the U-statistic by :math:`E|X - X'|/n + E|Y - Y'|/m`.
    `two-moons-report`: the root of the V-statistic.

    Raises:
        ValueError: unknown convention or bad samples (see `check_samples`).
    """
    _check_convention(convention)
    x, y = check_samples(x, y)
    unbiased = convention == "unbiased"

    def mean(a, b, same):
        total = sum(float(d.sum()) for _, d in distance_blocks(a, b))
        return total / (len(a) * (len(b) - (1 if same and unbiased else 0)))

    value = finite(2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True), "energy distance")
    return math.sqrt(max(value, 0.0)) if convention == "two-moons-report" else value


def median_bandwidths(x: Tensor, y: Tensor, n_scales: int = 5) -> list[float]:
    r"""Precisions :math:`\gamma_i = 2^i \cdot 2/\mathrm{med}`, i = -2..2, with the median squared distance of distinct
    pooled points (Gretton et al. 2012, section 8, at several scales). Points that only rounding tells apart are one.

    Raises:
        ValueError: all points are the same.
    """
    pooled = torch.cat([x, y])
    if len(pooled) > _MEDIAN_POINTS:
        chosen = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(0))[:_MEDIAN_POINTS]
        pooled = pooled[chosen.to(pooled.device)]
    squared = torch.nn.functional.pdist(pooled).square_()
    close = (squared <= (ROUNDING * pooled.abs().max() * pooled.shape[1] ** 0.5) ** 2).nonzero()[:, 0]
    first = torch.arange(len(pooled), 0, -1, device=pooled.device).sub(1).cumsum(0)  # pairs of rows 0..i
    for part in close.split(_BLOCK):  # the pair's own coordinates decide: one far point hides no distance
        i = torch.searchsorted(first, part, right=True)
        j = part - first[i] + len(pooled)
        own = ROUNDING * torch.maximum(pooled[i].norm(dim=1), pooled[j].norm(dim=1))
        squared[part[squared[part] <= own.square()]] = 0
    squared = squared[squared > 0]
    if len(squared) == 0:
        raise ValueError("all points are the same; the median heuristic needs at least two different ones")
    gamma = 2 / float(squared.median())
    return [gamma * 2.0**i for i in range(-(n_scales // 2), n_scales // 2 + 1)]


def kernel(distance: Tensor, gammas: list[float]) -> Tensor:
    r"""Mean of the kernels :math:`\exp(-\gamma r^2)` over bandwidths, each twice the last, same shape as `distance`."""
    value = distance.square().mul_(-gammas[0]).exp_()
    total = value.clone()
    for _ in gammas[1:]:
        total += value.square_()  # doubling gamma squares the kernel
    return total.div_(len(gammas))


def mmd2(x: Tensor, y: Tensor, convention: str = "unbiased") -> float:
    r"""Squared maximum mean discrepancy (Gretton et al. 2012, eq. 3), mean of five Gaussian kernels.

    .. math:: E\,k(X, X') + E\,k(Y, Y') - 2E\,k(X, Y).

    `unbiased`: over pairs of distinct points, signed: about half of all values are negative when the laws are equal.
    `biased`: all pairs. `two-moons-report`: :math:`\sqrt{\max(\mathrm{mmd}^2, 0)}` of the unbiased one, as in that
    report's code (its text has 0.000001 where the code gives 0). The same in any units, as the widths are the data's.

    Raises:
        ValueError: unknown convention or bad samples (see `check_samples`).
    """
    _check_convention(convention)
    x, y = check_samples(x, y)
    gammas = median_bandwidths(x, y)

    def mean(a, b, same):
        total = sum(float(kernel(d, gammas).sum()) for _, d in distance_blocks(a, b))
        if same and convention != "biased":
            return (total - len(a)) / (len(a) * (len(a) - 1))
        return total / (len(a) * len(b))

    value = finite(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False), "MMD")
    return math.sqrt(max(value, 0.0)) if convention == "two-moons-report" else value


def sliced_wasserstein(x: Tensor, y: Tensor, n_projections: int = 256, seed: int = 0) -> float:
    r"""Sliced Wasserstein-1 distance: mean over random unit directions of the one-dimensional distance.

    .. math:: E_{\theta \sim S^{d-1}} W_1(\theta^\top X, \theta^\top Y).

    In one dimension points of equal number are matched in order (Peyré & Cuturi 2019, remark 2.28); unequal ones go to
    POT, which takes five times as long.

    Args:
        x, y: samples, of any two sizes.
        n_projections: number of directions.
        seed: of the directions.

    Raises:
        ValueError: fewer than 1 projection, or bad samples (see `check_samples`).
    """
    if n_projections < 1:
        raise ValueError(f"n_projections = {n_projections}; need at least 1")
    x, y = check_samples(x, y)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], n_projections, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=0).to(x.device)
    size = max(1, 4_000_000 // (len(x) + len(y)))

    def mean(part):
        if len(x) != len(y):
            return float(ot.sliced_wasserstein_distance(x, y, projections=part, p=1))
        sorted_x, sorted_y = ((z @ part).T.contiguous().sort().values for z in (x, y))
        return float((sorted_x - sorted_y).abs().mean())

    total = sum(mean(part) * part.shape[1] for part in directions.split(size, 1))
    return finite(total / n_projections, "sliced Wasserstein distance")


def course_nll(x: Tensor, y: Tensor, tau: float = 0.1) -> float:
    r"""The homework's negative log-likelihood of generated x under a kernel density at real y.

    .. math:: -\ln \operatorname{mean}_{ij} (2\pi\tau)^{-d/2} \exp(-|x_i - y_j|^2/4\tau).

    The logarithm of a mean density, not the mean of a log density; and the exponent is that of variance
    :math:`2\tau` while the constant is that of variance :math:`\tau`. Reported as defined; the real one is in
    `likelihood`. The width is one of standardised units and does not follow the data's. Finite however far apart the
    samples are: the mean is taken in the logarithm.

    Raises:
        ValueError: `tau` is not positive, or bad samples (see `check_samples`).
    """
    if tau <= 0:
        raise ValueError(f"tau = {tau}; need a positive width")
    x, y = check_samples(x, y, least=1)
    blocks = [d.square_().div_(-4 * tau).flatten().logsumexp(0) for _, d in distance_blocks(x, y)]
    log_mean = float(torch.stack(blocks).logsumexp(0)) - math.log(len(x) * len(y))
    return finite(0.5 * x.shape[1] * math.log(2 * math.pi * tau) - log_mean, "course NLL")
