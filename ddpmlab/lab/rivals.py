r"""Rivals: density models that need no diffusion, and diffusion models, fitted to the same points, scored in nats.

Each is scored by

.. math:: \mathrm{KL}(q\,\|\,p) = E_{x \sim q}[\ln q(x) - \ln p(x)]

on fresh points of the law q, whose density is known. All in standardised units. With :math:`r = p/q`, the mean of r
over q is 1, so that any multiple of :math:`1 - r` may be taken off :math:`-\ln r`: near :math:`r = 1` the two are
nearly the same number, and what is left scatters far less (`divergence`).

- *Kernel density*: a Gaussian at each training point, its width the one of the largest held-out likelihood.
- *Gaussian mixture*: full covariances, by expectation maximisation, the number of components by BIC; or the mean of
  several such densities, each from a start of its own.
- *Normalising flow*: coupling layers of rational-quadratic splines (Durkan et al. 2019).
- *Diffusion*: a recipe of `recipes`; its density is that of its probability-flow ODE (`metrics.likelihood`).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any

import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import softmax, softplus

from ddpmlab import data
from ddpmlab.data.laws import Law
from ddpmlab.denoisers import Denoising
from ddpmlab.lab import recipes
from ddpmlab.metrics.calibration import fresh_points, stream
from ddpmlab.metrics.distances import distance_blocks
from ddpmlab.metrics.likelihood import Estimate, Truth, log_likelihood
from ddpmlab.training import fit

COMPONENTS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200)


@dataclass(frozen=True)
class Fitted:
    """A density model.

    Attributes:
        log_prob: log density of points `(n, d)`, in nats, `(n,)` float64.
        parameters: how many numbers it keeps.
        seconds: of one core's computing (all threads added up) to fit, the search for its size included.
        choice: what it chose, such as its number of components.
        final_seconds: of the fit that was chosen alone.
        denoiser: of a diffusion model, for the path KL.
    """

    log_prob: Callable[[Tensor], Tensor]
    parameters: int
    seconds: float
    choice: dict[str, Any]
    final_seconds: float
    denoiser: Denoising | None = None


@dataclass(frozen=True)
class Score:
    """What a rival reads on one law: see `Fitted`, and its divergence from the law in nats with its 95% interval.

    `seconds_density` are of one core for the densities of a thousand points; `path_kl` is a diffusion model's.
    """

    name: str
    kl: float
    low: float
    high: float
    parameters: int
    seconds: float
    final_seconds: float
    choice: dict[str, Any]
    seconds_density: float
    path_kl: float | None


def _held_out(points: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    points = points.double()
    n = round(share * len(points))
    if points.ndim != 2 or n < 1 or n >= len(points):
        raise ValueError(f"points have shape {tuple(points.shape)}; need (n, dim) with enough to hold {share:.0%} out")
    order = torch.randperm(len(points), generator=stream("held out by a rival", seed))
    return points[order[n:]], points[order[:n]]


def _log_kernel_density(x: Tensor, centres: Tensor, width: float) -> Tensor:
    """Log of the mean of N(x; centre, width^2 I) over the centres, `(n,)`."""
    blocks = [d.square_().div_(-2 * width**2).logsumexp(1) for _, d in distance_blocks(x, centres)]
    return torch.cat(blocks) - math.log(len(centres)) - 0.5 * x.shape[1] * math.log(2 * math.pi * width**2)


def kernel_density(points: Tensor, seed: int = 0, held_out: float = 0.1, most: int = 1_000) -> Fitted:
    """Kernel density estimate: isotropic Gaussians of the width that makes held-out points likeliest.

    Args:
        points: training points `(n, d)`.
        seed: which of them are held out, and then put back.
        held_out: their share.
        most: so many of them are looked at.

    Raises:
        ValueError: too few points.
    """
    start = process_time()
    train, test = _held_out(points, held_out, seed)
    test = test[:most]

    def loss(log_width):
        return -float(_log_kernel_density(test, train, math.exp(log_width)).mean())

    rule = math.log(len(train)) / -(points.shape[1] + 4)  # Scott's rule, an upper end for laws of unit variance
    found = minimize_scalar(loss, bounds=(rule - 4, rule + 0.5), method="bounded", options={"xatol": 0.01})
    width, centres = math.exp(found.x), points.double()
    seconds = process_time() - start
    return Fitted(
        lambda x: _log_kernel_density(x.double(), centres, width),
        points.numel() + 1,
        seconds,
        {"width": width},
        seconds,
    )


def gaussian_mixture(
    points: Tensor,
    seed: int = 0,
    components: Iterable[int] = COMPONENTS,
    patience: int = 2,
    tolerance: float = 1e-5,
    max_iter: int = 1_000,
    starts: int = 1,
) -> Fitted:
    r"""Gaussian mixture with the number of components of the smallest BIC, :math:`k\ln n - 2\ln L`.

    Expectation maximisation from k-means (scikit-learn), until an iteration gains less than `tolerance` nats a point:
    scikit-learn's own 1e-3 stops several thousandths of a nat short.

    Args:
        points: training points `(n, d)`.
        seed: of k-means.
        components: numbers to try, increasing.
        patience: stop after so many numbers in a row that are no better than the best.
        tolerance, max_iter: of expectation maximisation.
        starts: fit the chosen number from so many starts and take the mean of the densities; the first start is `seed`.

    Raises:
        ValueError: no number of components, or no start.
    """
    if starts < 1:
        raise ValueError(f"starts = {starts}; fit at least once")
    array, best, tried, since, start = points.double().numpy(), None, {}, 0, process_time()

    def fitted(k: int, another: int = 0) -> GaussianMixture:
        state = seed + 1_000_003 * another
        return GaussianMixture(k, tol=tolerance, max_iter=max_iter, random_state=state).fit(array)

    for k in sorted(components):
        began = process_time()
        model = fitted(k)
        tried[k], seconds = float(model.bic(array)), process_time() - began
        if best is None or tried[k] < best[0]:
            best, since = (tried[k], model, seconds), 0
        else:
            since += 1
            if since >= patience:
                break
    if best is None:
        raise ValueError("no number of components to try; give at least one")
    _, model, final = best
    k, d, began = model.n_components, array.shape[1], process_time()
    models = [model, *(fitted(k, another) for another in range(1, starts))]
    final += process_time() - began

    def log_prob(x: Tensor) -> Tensor:
        found = [torch.from_numpy(one.score_samples(x.double().numpy())) for one in models]
        return torch.logsumexp(torch.stack(found), 0) - math.log(starts)

    return Fitted(
        log_prob,
        starts * (k - 1 + k * d + k * d * (d + 1) // 2),
        process_time() - start,
        {"components": k, "bic": tried} | ({"starts": starts} if starts > 1 else {}),
        final,
    )


class Spline(nn.Module):
    r"""Coupling layer: one coordinate goes through a monotone rational-quadratic spline set by the others.

    The spline maps [-b, b] to itself in `bins` pieces and is the identity beyond (Durkan et al. 2019, eqs. 4, 5): with
    :math:`\xi` the position within a piece of slope s and end derivatives :math:`\delta_0, \delta_1`,

    .. math:: y = y_0 + (y_1 - y_0)\,\frac{s\xi^2 + \delta_0\xi(1 - \xi)}{s + (\delta_0 + \delta_1 - 2s)\,\xi(1 - \xi)}.

    Args:
        dim: of a point, at least 2.
        coordinate: which one is mapped.
        width: of the two hidden layers that look at the others.
        bins: pieces.
        bound: where the spline ends and the identity begins, b.
    """

    def __init__(self, dim: int, coordinate: int, width: int = 64, bins: int = 16, bound: float = 5.0):
        super().__init__()
        self.coordinate, self.bins, self.bound = coordinate, bins, bound
        self.others = [k for k in range(dim) if k != coordinate]
        self.network = nn.Sequential(
            nn.Linear(dim - 1, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3 * bins - 1)
        )
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mapped points `(n, d)` and the log derivative `(n,)`."""
        least, b = 1e-3, self.bound
        raw = self.network(x[:, self.others])
        sizes = raw[:, : 2 * self.bins].reshape(-1, 2, self.bins)
        sizes = least + (1 - least * self.bins) * softmax(sizes, -1)
        knots = nn.functional.pad(sizes.cumsum(-1), (1, 0)) * 2 * b - b  # (n, 2, bins + 1): of x and of y
        inner = least + softplus(raw[:, 2 * self.bins :] + math.log(math.expm1(1 - least)))
        slopes = nn.functional.pad(inner, (1, 1), value=1.0)  # (n, bins + 1)
        value = x[:, self.coordinate]
        inside = value.abs() < b
        u = torch.where(inside, value, 0.0)[:, None]
        piece = (u >= knots[:, 0, 1:-1]).sum(1, keepdim=True)
        x0, x1 = (knots[:, 0].gather(1, piece + k)[:, 0] for k in (0, 1))
        y0, y1 = (knots[:, 1].gather(1, piece + k)[:, 0] for k in (0, 1))
        d0, d1 = (slopes.gather(1, piece + k)[:, 0] for k in (0, 1))
        s, xi = (y1 - y0) / (x1 - x0), (u[:, 0] - x0) / (x1 - x0)
        both = xi * (1 - xi)
        below = s + (d0 + d1 - 2 * s) * both
        mapped = y0 + (y1 - y0) * (s * xi**2 + d0 * both) / below
        derivative = s**2 * (d1 * xi**2 + 2 * s * both + d0 * (1 - xi) ** 2) / below**2
        out = x.clone()
        out[:, self.coordinate] = torch.where(inside, mapped, value)
        return out, torch.where(inside, derivative.log(), 0.0)


class SplineFlow(nn.Module):
    """Spline couplings that take the coordinates in turn, onto N(0, I): a density by change of variables."""

    def __init__(self, dim: int, n_layers: int = 8, **options):
        super().__init__()
        if dim < 2:
            raise ValueError(f"dim = {dim}; a coupling needs at least 2 coordinates")
        self.layers = nn.ModuleList(Spline(dim, i % dim, **options) for i in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Log density `(n,)` of points `(n, d)`, in nats."""
        total = torch.zeros(len(x), dtype=x.dtype)
        for layer in self.layers:
            x, gained = layer(x)
            total = total + gained
        return total - 0.5 * (x.square().sum(1) + x.shape[1] * math.log(2 * math.pi))


@torch.random.fork_rng(devices=[])
def spline_flow(
    points: Tensor,
    seed: int = 0,
    n_steps: int = 4_000,
    batch_size: int = 1_024,
    learning_rate: float = 3e-3,
    held_out: float = 0.1,
    check_every: int = 200,
    **options,
) -> Fitted:
    """Normalising flow, trained by Adam with a cosine to zero; the weights of the best held-out likelihood are kept.

    Args:
        points: training points `(n, d)`.
        seed: of weights, batches and which points are held out.
        n_steps, batch_size, learning_rate: of Adam.
        held_out: share of points to choose the step by.
        check_every: how often to look at them.
        options: of `SplineFlow`.

    Raises:
        ValueError: too few points, or points on a line.
        ArithmeticError: the likelihood of the held-out points was never finite.
    """
    start = process_time()
    train, test = (part.float() for part in _held_out(points, held_out, seed))
    torch.manual_seed(seed)
    generator, flow = torch.Generator().manual_seed(seed), SplineFlow(points.shape[1], **options)
    adam = torch.optim.Adam(flow.parameters(), lr=learning_rate, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    best, weights, at = -math.inf, None, 0
    for step in range(1, n_steps + 1):
        batch = train[torch.randint(len(train), (batch_size,), generator=generator)]
        adam.zero_grad()
        (-flow(batch).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        adam.step()
        rate.step()
        if step % check_every == 0 or step == n_steps:
            with torch.no_grad():
                value = float(flow(test).mean())
            if value > best:
                best, weights, at = value, {k: v.clone() for k, v in flow.state_dict().items()}, step
    if weights is None:
        raise ArithmeticError(f"the flow's likelihood is not finite; lower learning_rate = {learning_rate}")
    flow.load_state_dict(weights)
    flow = flow.double().requires_grad_(False)
    seconds = process_time() - start
    return Fitted(
        lambda x: torch.cat([flow(part) for part in x.double().split(20_000)]),
        sum(p.numel() for p in flow.parameters()),
        seconds,
        {"step": at},
        seconds,
    )


def diffusion(
    points: Tensor, seed: int = 0, dataset: str = "two_moons", n_steps: int = 8_000, tolerance: float = 1e-5, **changes
) -> Fitted:
    """The book's recipe; its density is that of its probability-flow ODE at the schedule's first noise level.

    Args:
        points: training points `(n, d)`.
        seed: of weights, batches and noise.
        dataset: the law that they are of.
        n_steps: optimiser steps.
        tolerance: of the ODE's solver.
        changes: options of `recipes.two_moons`.
    """
    config, start = recipes.two_moons(n_steps, dataset=dataset, seed=seed, **changes), process_time()
    denoiser = config.build()
    fit(denoiser, points.float(), options=config.training.options(len(points)), seed=seed)
    seconds = process_time() - start
    return Fitted(
        lambda x: log_likelihood(denoiser, x, tolerance),
        sum(p.numel() for p in denoiser.parameters()),
        seconds,
        {},
        seconds,
        denoiser,
    )


STRAIGHT: dict[str, Any] = {
    "schedule": {"name": "rectified"},
    "parameterisation": "flow",
    "times": "uniform",
    "weighting": "simple",
}
"""What makes the recipe rectified flow (Liu et al. 2023), straight lines, their velocity, times drawn evenly."""


def rectified_flow(points: Tensor, seed: int = 0, **options) -> Fitted:
    """`diffusion` along straight lines, see `STRAIGHT`."""
    return diffusion(points, seed, **STRAIGHT | options)


RIVALS: dict[str, Callable[..., Fitted]] = {
    "kernel density": kernel_density,
    "Gaussian mixture": gaussian_mixture,
    "normalising flow": spline_flow,
    "diffusion": diffusion,
    "rectified flow": rectified_flow,
}
"""Name -> how to fit it. The last two take the name of the law as `dataset`."""


SMALL = 0.05
"""Nats below which the control variate of `divergence` is used."""


def divergence(log_q: Tensor, log_p: Tensor) -> Estimate:
    r"""KL divergence from the log densities `(n,)` of points of q under q and p, in nats.

    The mean of :math:`-\ln r - c\,(1 - r)`, :math:`r = p/q`, with the c of least variance, which is fitted to the
    same points: its bias is of order 1/n of the estimate. Only where the plain mean of :math:`-\ln r` is below `SMALL`,
    and r has a mean of 1 on these points too: a p that is much broader than q has its mass where q has no points, and
    would be judged by what they do not show. Else it is the plain mean.

    Raises:
        ValueError: a density is not finite somewhere.
    """
    log_r = (log_p - log_q).double()
    plain = Estimate.of(-log_r)  # checks that all is finite
    if plain.value > SMALL:
        return plain
    control = log_r.clamp(max=300).expm1()  # of mean 0
    mean, spread = control.mean(), control.std()
    if spread == 0 or mean.abs() > 4 * spread / len(control) ** 0.5:
        return plain
    slope = -((control - mean) * (log_r - log_r.mean())).mean() / (control - mean).square().mean()
    return Estimate.of(-log_r - slope * control)


def held_out_kl(model: Fitted, law: Law, n: int = 20_000, seed: int = 0) -> Estimate:
    """KL divergence of a model from the law, in nats, on `n` fresh points; the same points for every model of a seed.

    Raises:
        ValueError: a density is not finite somewhere.
    """
    x = fresh_points(law, n, seed)
    return divergence(law.log_prob(x), model.log_prob(x))


def score_rival(name: str, law: Law, points: Tensor | None = None, n: int = 20_000, seed: int = 0, **options) -> Score:
    """Fit a rival to the law's training split (or to `points`) and score it.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RIVALS:
        raise ValueError(f"unknown rival {name!r}; choose one of: {', '.join(RIVALS)}")
    with one_thread():
        model = RIVALS[name](law.split().train if points is None else points, seed=seed, **options)
        x, path = fresh_points(law, n, seed), None
        start = process_time()
        log_p = model.log_prob(x)
        seconds = process_time() - start
        found = divergence(law.log_prob(x), log_p)
        if model.denoiser is not None:
            panel = Truth.of(law, model.denoiser.schedule, seed=stream("noisy points of a rival", seed))
            path = panel.path_kl(model.denoiser).value
    cost = model.parameters, model.seconds, model.final_seconds, model.choice, 1_000 * seconds / n
    return Score(name, found.value, found.low, found.high, *cost, path)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that seconds are of one core and bits do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def rivals_table(
    dataset: str, name: str, seeds: Iterable[int], n: int = 20_000, own_points: bool = True, **options
) -> pd.DataFrame:
    """One rival on one law: a row per seed, the columns of `Score`.

    Args:
        dataset: name of the law.
        name: of `RIVALS`.
        seeds: of fit and fresh points.
        n: fresh points.
        own_points: train on the law's training split; otherwise on two million others, to see what the split costs.
        options: of the rival.
    """
    law, rows = data.make(dataset).standardised(), []
    points = None if own_points else law.sample(2_000_000, stream("points without end", 0))
    if RIVALS[name] in (diffusion, rectified_flow):
        options = options | {"dataset": dataset}
    for seed in seeds:
        found = asdict(score_rival(name, law, points, n, seed, **options))
        rows.append({"dataset": dataset, "seed": seed, **found | {"choice": json.dumps(found["choice"])}})
    return pd.DataFrame(rows)
