r"""Paths between two points by a denoiser, and what a path is worth.

A way takes ends `a` and `b` and weights `w` in [0, 1] and returns *frames* `(n, k, *shape)`, the first like `a` and the
last like `b` or, for the ways that edit `a`, changed the way `b` differs. All noise levels are :math:`\sigma/\alpha`,
so that a depth means the same for every schedule. The ways are

- `pixels`: :math:`(1 - w) a + w b`;
- `noise`: noise both ends to a depth, mix, decode (Ho et al. 2020, figure 9). With *independent* noises the plain mix
  shrinks the noise, to :math:`\sqrt{(1-w)^2 + w^2}` of its sd; `preserve` divides its noise part by that;
- `flow`: encode both ends along the probability-flow ODE (Song et al. 2021, section 4.3), mix, decode. The mix is
  `spherical` (Shoemake 1985) or `gaussian` (`combine`). With `forward` the first steps of the encoding are the forward
  process instead (arXiv 2410.23530: what is inverted at low noise is structured where a picture is flat);
- `labels`: the encoding of `a`, decoded with a mix of the two ends' class embeddings;
- `direction`: the encoding of `a`, decoded with `w` times a shift of the network's bottleneck (Kwon et al. 2023);
- `searched`: another way's path, walked at the pace of a reading;
- `guided`: an encoding decoded by `Steered`, so that a reading of the frame, such as a sleeve's length, comes out as
  :math:`(1 - w) r(a) + w r(b)`.

Deterministic parts are solved by any of `samplers` in either direction of time.
"""

import itertools
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor, nn
from tqdm import tqdm

from ddpmlab import samplers
from ddpmlab.data.dataset import Dataset
from ddpmlab.denoisers import Denoiser, Denoising
from ddpmlab.metrics import sleeves
from ddpmlab.registry import Registry
from ddpmlab.schedules import Schedule

WAYS = Registry("way to interpolate")
make = WAYS.make
LOW = 0.02
"""Noise level at which a clean point is taken for a state of the ODE, about the step between two grey levels."""

# -- Up and down -------------------------------------------------------------------------------------------------------


def climb(schedule: Schedule, high: float, n_steps: int, low: float = LOW, rho: float = 7.0) -> list[float]:
    """Increasing times of `n_steps + 1` noise levels from `low` to `high`, spaced as in Karras et al. 2022, eq. 5.

    Raises:
        ValueError: no step, or levels that do not increase or that the schedule does not reach.
    """
    if n_steps != int(n_steps) or n_steps < 1:
        raise ValueError(f"n_steps = {n_steps}; need a whole number of steps, at least 1")
    if not 0 < low < high:
        raise ValueError(f"noise levels from {low:g} to {high:g}; need 0 < low < high")
    top = float(schedule.noise_level(schedule.t_max))
    if high > top * (1 + 1e-9):
        raise ValueError(f"depth = {high:g}; this schedule ends at the noise level {top:.4g}")
    levels = torch.linspace(low ** (1 / rho), high ** (1 / rho), n_steps + 1, dtype=torch.float64) ** rho
    return [float(schedule.time_of(level)) for level in levels]


def solve(
    denoiser: Denoising,
    x: Tensor,
    times: Sequence[float],
    label: Tensor | None = None,
    sampler: str | samplers.Sampler = "dpmpp_2m",
    seed: int | torch.Generator = 0,
) -> Tensor:
    """States `(n, *shape)` at the last of these times, from those at the first: up or down.

    Args:
        denoiser: any denoiser.
        x: states at `times[0]`, which must be noisy.
        times: monotone; a last time of 0 gives clean data.
        label: classes `(n,)`.
        sampler: a solver or its name.
        seed: noise of a stochastic solver.
    """
    sampler = samplers.make(sampler) if isinstance(sampler, str) else sampler
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator(x.device).manual_seed(seed)
    run = samplers.Run(denoiser, generator, label)
    with torch.no_grad():
        for t, s in itertools.pairwise(times):
            x = sampler.step(run, x, t, s)
    return x


def encode(denoiser: Denoising, x0: Tensor, times: Sequence[float], label: Tensor | None = None, **options) -> Tensor:
    r"""Latents `(n, *shape)`: clean points moved up the probability-flow ODE, from increasing `times`.

    A clean point is taken for the state :math:`\alpha x_0` at the first time.
    """
    return solve(denoiser, float(denoiser.schedule(times[0])[0]) * x0, times, label, **options)


def decode(denoiser: Denoising, x: Tensor, times: Sequence[float], label: Tensor | None = None, **options) -> Tensor:
    """Clean points `(n, *shape)` from states at the last of increasing `times`."""
    return solve(denoiser, x, [*reversed(times), 0.0], label, **options)


def diffuse(schedule: Schedule, x0: Tensor, t: float, noise: Tensor) -> Tensor:
    r"""The forward process, :math:`\alpha_t x_0 + \sigma_t \varepsilon`."""
    alpha, sigma = schedule(t)
    return float(alpha) * x0 + float(sigma) * noise


def round_trip_error(
    denoiser: Denoising, x0: Tensor, depth: float, n_steps: Sequence[int], label: Tensor | None = None, **options
) -> list[dict[str, float]]:
    """Root mean square of `decode(encode(x0)) - x0` against evaluations: rows `n_steps, nfe, error`.

    Args:
        denoiser: what encodes and decodes.
        x0: the points that are encoded, `(n, *shape)`.
        depth: noise level of the latents.
        n_steps: step counts, each used up and down.
        label: classes of the points, `(n,)`.
        options: `sampler` of `solve`.
    """
    rows = []
    for n in n_steps:
        counted, times = Counted(denoiser), climb(denoiser.schedule, depth, n)
        back = decode(counted, encode(counted, x0, times, label, **options), times, label, **options)
        error = float((back - x0).square().mean().sqrt())
        rows.append({"n_steps": n, "nfe": counted.evaluations / len(x0), "error": error})
    return rows


class Counted(Denoising):
    """A denoiser that counts the points it is asked about in `evaluations`."""

    def __init__(self, denoiser: Denoising):
        super().__init__()
        self.denoiser, self.schedule, self.evaluations = denoiser, denoiser.schedule, 0
        self.shape, self.n_classes = denoiser.shape, denoiser.n_classes

    def forward(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        self.evaluations += len(x_t)
        return self.denoiser(x_t, t) if label is None else self.denoiser(x_t, t, label)


# -- Mixes -------------------------------------------------------------------------------------------------------------


def _column(weights: Tensor, x: Tensor) -> Tensor:
    return weights.to(x).reshape(-1, *[1] * (x.ndim - 1))


def lerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    r""":math:`(1 - w)\,a + w\,b` for points `(n, *shape)` and weights `(n,)`."""
    w = _column(weights, a)
    return (1 - w) * a + w * b


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    r"""Spherical mix :math:`[\sin((1-w)\Omega)\,a + \sin(w\Omega)\,b]/\sin\Omega` with the angle :math:`\Omega`.

    Linear where a and b are parallel.
    """
    w = _column(weights, a)
    inner = (a.flatten(1) * b.flatten(1)).sum(1)
    cos = inner / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    omega = _column(cos.clamp(-1, 1).acos(), a)
    sine = omega.sin()
    flat = sine < 1e-6
    safe = torch.where(flat, 1, sine)
    mixed = (((1 - w) * omega).sin() * a + (w * omega).sin() * b) / safe
    return torch.where(flat, (1 - w) * a + w * b, mixed)


def combine(latents: Tensor, weights: Tensor, mean: float | Tensor = 0.0) -> Tensor:
    r"""A linear combination of several Gaussian latents that has their law again (arXiv 2408.08558, lemma 1).

    For independent :math:`z_i \sim N(\mu, \Sigma)` the sum :math:`y = \sum_i w_i z_i` has mean
    :math:`\alpha\mu, \alpha = \sum_i w_i`, and covariance :math:`\beta\Sigma, \beta = \sum_i w_i^2`, so that

    .. math:: z = \Big(1 - \frac{\alpha}{\sqrt\beta}\Big)\mu + \frac{y}{\sqrt\beta} \sim N(\mu, \Sigma) .

    Args:
        latents: m latents for each of n points, `(m, n, *shape)`.
        weights: `(m,)`, or `(m, n)` for weights of each point's own; not all zero.
        mean: :math:`\mu`, one number or `(*shape)`.

    Raises:
        ValueError: not one weight per latent, or all weights of a point zero.
    """
    weights = torch.as_tensor(weights).to(latents)
    if weights.ndim not in (1, 2) or weights.shape != latents.shape[: weights.ndim]:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}; need {tuple(latents.shape[:1])}, or also n of them"
        )
    norm = weights.square().sum(0).sqrt()
    if not (norm > 0).all():
        raise ValueError("all weights of a point are 0; there is nothing to combine")
    weights = weights.reshape(*weights.shape, *[1] * (latents.ndim - weights.ndim))
    total, norm = weights.sum(0), weights.square().sum(0).sqrt()
    return (1 - total / norm) * mean + (weights * latents).sum(0) / norm


def gaussian_mix(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """`combine` of two latents with mean 0."""
    return combine(torch.stack([a, b]), torch.stack([1 - weights, weights]))


MIXES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "spherical": slerp,
    "gaussian": gaussian_mix,
    "linear": lerp,
}

# -- Ways --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way(ABC):
    """A way from a to b; called with any denoiser.

    Attributes:
        depth: noise level of the latents.
        n_steps: steps up and down.
        sampler: name of the deterministic solver.
        low: noise level at which encoding starts.
        batch_size: most points that the denoiser sees at a time.
    """

    depth: float = 5.0
    n_steps: int = 12
    sampler: str = "dpmpp_2m"
    low: float = LOW
    batch_size: int = 256

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}; need at least 1")

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoising,
        first: Tensor,
        last: Tensor,
        weights: Tensor,
        labels: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Frames `(n, k, *shape)`.

        Args:
            denoiser: any denoiser of these points.
            first, last: ends `(n, *shape)`, as the denoiser has them (standardised).
            weights: `(k,)` in [0, 1].
            labels: classes `(n,)` of either end, for the ways that use them.
            seed: of whatever is random.
        """

    def _times(self, denoiser: Denoising) -> list[float]:
        return climb(denoiser.schedule, self.depth, self.n_steps, self.low)

    def _encode(self, denoiser, x0, label=None) -> Tensor:
        times = self._times(denoiser)
        return self._batched(lambda x, y: encode(denoiser, x, times, y, sampler=self.sampler), x0, label)

    def _decode(self, denoiser, x, label=None) -> Tensor:
        times = self._times(denoiser)
        return self._batched(lambda x, y: decode(denoiser, x, times, y, sampler=self.sampler), x, label)

    def _batched(self, function, x: Tensor, *others: Tensor | None) -> Tensor:
        """Apply a function to batches of points and of what belongs to them."""
        parts = []
        for start in range(0, len(x), self.batch_size):
            cut = slice(start, start + self.batch_size)
            parts.append(function(x[cut], *(None if other is None else other[cut] for other in others)))
        return torch.cat(parts)

    @staticmethod
    def _spread(weights: Tensor, *ends: Tensor) -> tuple[Tensor, ...]:
        """Weights `(n * k,)` and every end repeated to `(n * k, *shape)`, pair by pair."""
        n = len(ends[0])
        return (weights.repeat(n), *(end.repeat_interleave(len(weights), 0) for end in ends))


@WAYS.register("pixels")
@dataclass(frozen=True)
class Pixels(Way):
    """The average of the two pictures; asks no denoiser."""

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        w, a, b = self._spread(weights, first, last)
        return lerp(a, b, w).unflatten(0, (len(first), len(weights)))


@WAYS.register("noise")
@dataclass(frozen=True)
class Noise(Way):
    """Noise to a depth, mix, decode (Ho et al. 2020, figure 9).

    Attributes:
        shared: one noise for both ends of a pair, or one each.
        mix: `preserve` keeps the sd of the noise, `linear` lets independent noises shrink.
    """

    depth: float = 1.0
    shared: bool = True
    mix: str = "preserve"

    def __post_init__(self):
        super().__post_init__()
        if self.mix not in ("preserve", "linear"):
            raise ValueError(f"unknown mix {self.mix!r}; choose one of: preserve, linear")

    def mixed(self, schedule: Schedule, first: Tensor, last: Tensor, weights: Tensor, seed: int = 0) -> Tensor:
        """The mixed states at the depth, `(n * k, *shape)`, pair by pair."""
        generator = torch.Generator().manual_seed(seed)
        noises = [torch.randn(first.shape, generator=generator, dtype=torch.float64).to(first) for _ in range(2)]
        if self.shared:
            noises[1] = noises[0]
        w, a, b, *noises = self._spread(weights, first, last, *noises)
        noise = lerp(*noises, w)
        if self.mix == "preserve" and not self.shared:
            noise = noise / _column(((1 - w) ** 2 + w**2).sqrt(), noise)
        return diffuse(schedule, lerp(a, b, w), float(schedule.time_of(self.depth)), noise)

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        mixed = self.mixed(denoiser.schedule, first, last, weights, seed)
        return self._decode(denoiser, mixed).unflatten(0, (len(first), len(weights)))


@WAYS.register("flow")
@dataclass(frozen=True)
class Flow(Way):
    """Encode by the probability flow, mix, decode.

    Attributes:
        mix: `spherical`, `gaussian` or `linear`.
        forward: noise level up to which the forward process, with one noise a pair, stands in for the encoding; 0 for
            the encoding alone.
    """

    mix: str = "spherical"
    forward: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.mix not in MIXES:
            raise ValueError(f"unknown mix {self.mix!r}; choose one of: {', '.join(MIXES)}")
        if not 0 <= self.forward < self.depth:
            raise ValueError(f"forward = {self.forward:g}; need a noise level from 0 to below the depth {self.depth:g}")

    def latents(self, denoiser: Denoising, points: Tensor, seed: int = 0) -> Tensor:
        """Latents of points, `(n, *shape)`, at the depth."""
        if not self.forward:
            return self._encode(denoiser, points)
        times, start = self._times(denoiser), float(denoiser.schedule.time_of(self.forward))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        states = diffuse(denoiser.schedule, points, start, noise)
        times = [start, *(t for t in times if t > start)]
        return self._batched(lambda x: solve(denoiser, x, times, sampler=self.sampler), states)

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        ends = (self.latents(denoiser, end, seed) for end in (first, last))
        w, a, b = self._spread(weights, *ends)
        return self._decode(denoiser, MIXES[self.mix](a, b, w)).unflatten(0, (len(first), len(weights)))


def _class_embeddings(denoiser: nn.Module) -> list[nn.Embedding]:
    embeddings = [module for module in denoiser.modules() if isinstance(module, nn.Embedding)]
    if not embeddings:
        raise ValueError("this denoiser has no class embedding to mix; it needs a network with n_classes")
    return embeddings


@contextmanager
def mixed_classes(denoiser: nn.Module, first: Tensor, last: Tensor, weights: Tensor) -> Iterator[None]:
    """While open, every class embedding in a denoiser answers with `(1 - w) E[first] + w E[last]`, row by row.

    Raises:
        ValueError: there is no class embedding.
    """
    embeddings = _class_embeddings(denoiser)

    def answer(module, inputs, output):
        rows = module.weight
        return lerp(rows[first], rows[last], weights).to(output)

    handles = [embedding.register_forward_hook(answer) for embedding in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@WAYS.register("labels")
@dataclass(frozen=True)
class Labels(Way):
    """The encoding of the first end under its class, decoded with a mix of both ends' class embeddings."""

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        if labels is None:
            raise ValueError("mixing classes needs labels, a pair of tensors (n,)")
        _class_embeddings(denoiser)
        a, b = (torch.as_tensor(label, device=first.device) for label in labels)
        w, latent, a, b = self._spread(weights, self._encode(denoiser, first, a), a, b)
        times = self._times(denoiser)

        def part(x, w, a, b):
            with mixed_classes(denoiser, a, b, w):
                return decode(denoiser, x, times, a, sampler=self.sampler)

        return self._batched(part, latent, w, a, b).unflatten(0, (len(first), len(weights)))


class _Asked(nn.Module):
    """A network asked something else: passes the call on with what was added to it, or asks for its bottleneck."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.shape, self.n_classes = network, network.shape, getattr(network, "n_classes", 0)
        self.shift: Tensor | None = None
        self.listening, self.heard = False, None

    def forward(self, x, c, label=None):
        told = () if label is None else (label,)
        if self.listening:
            self.heard = self.network.bottleneck(x, c, *told)
            return torch.zeros_like(x)
        return self.network(x, c, *told) if self.shift is None else self.network(x, c, *told, shift=self.shift)


class Shifted(Denoising):
    """A denoiser whose network's bottleneck is moved along a direction that depends on the time (Kwon et al. 2023).

    Args:
        denoiser: a `Denoiser` whose network has `bottleneck(x, c)` and takes `shift=`.

    Raises:
        TypeError: it has no such network.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        counted = denoiser.denoiser if isinstance(denoiser, Counted) else denoiser
        if not hasattr(getattr(counted, "network", None), "bottleneck"):
            raise TypeError(f"{type(counted).__name__} has no network with a bottleneck to shift; choose another way")
        self.asked = _Asked(counted.network)
        self.inner = Denoiser(self.asked, counted.schedule, counted.parameterisation)
        self.counter = denoiser if isinstance(denoiser, Counted) else None
        self.schedule, self.shape, self.n_classes = counted.schedule, counted.shape, counted.n_classes
        self.direction: Mapping[float, Tensor] = {}
        self.weights: Tensor | None = None

    def bottleneck(self, x_t: Tensor, t: float) -> Tensor:
        """What the network's bottleneck says of states at t, `(n, *bottleneck_shape)`."""
        self.asked.listening = True
        try:
            with torch.no_grad():
                self.inner(x_t, t)
        finally:
            self.asked.listening = False
        return self.asked.heard

    def forward(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        """The estimate with `weights` times `direction[t]` added in the bottleneck."""
        if self.counter is not None:
            self.counter.evaluations += len(x_t)
        if self.weights is not None:
            shift = self.direction[float(t)]
            self.asked.shift = self.weights.to(shift).reshape(-1, *[1] * shift.ndim) * shift
        try:
            return self.inner(x_t, t) if label is None else self.inner(x_t, t, label)
        finally:
            self.asked.shift = None


@WAYS.register("direction")
@dataclass(frozen=True)
class Direction(Way):
    """The encoding of the first end, decoded with w times a mean difference of two groups in the bottleneck.

    Attributes:
        groups: points `(m, *shape)` of either group; those of the pairs themselves if omitted.
        scale: how many mean differences w = 1 is.
    """

    groups: tuple[Tensor, Tensor] | None = None
    scale: float = 1.0

    def mean_difference(self, shifted: Shifted, first: Tensor, last: Tensor, seed: int = 0) -> dict[float, Tensor]:
        """Per time the mean of the last group in the bottleneck less that of the first, under one noise for both."""
        generator, found = torch.Generator().manual_seed(seed), {}
        for t in self._times(shifted):
            means = []
            noise = torch.randn(max(len(first), len(last)), *first.shape[1:], generator=generator).to(first)
            for group in (first, last):
                states = diffuse(shifted.schedule, group, t, noise[: len(group)])
                means.append(self._batched(lambda x, t=t: shifted.bottleneck(x, t), states).mean(0))
            found[t] = means[1] - means[0]
        return found

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        shifted = Shifted(denoiser)
        shifted.direction = self.mean_difference(shifted, *(self.groups or (first, last)), seed)
        w, latent = self._spread(weights, self._encode(denoiser, first))

        def part(x, w):
            shifted.weights = self.scale * w
            return decode(shifted, x, self._times(denoiser), sampler=self.sampler)

        return self._batched(part, latent, w).unflatten(0, (len(first), len(weights)))


class Steered(Denoising):
    r"""A denoiser told a reading :math:`r(x_0) = r^\ast + N(0, \tau^2)` of the clean point.

    The posterior covariance of :math:`x_0` is :math:`C = (\sigma^2/\alpha)\,\partial D/\partial x_t` (Tweedie's second
    formula). With the reading taken as linear about D, :math:`g = \nabla r(D)`, the conditional mean is

    .. math:: D^\ast = D + s\,\frac{C g\,(r^\ast - r(D))}{\tau^2 + g^T C g},

    exact for s = 1 where the law is Gaussian and the reading linear. Each call costs one evaluation and one pass back
    through the denoiser.

    Args:
        denoiser: any differentiable denoiser.
        reading: a differentiable function of points `(n, *shape)` that returns `(n,)`.
        wanted: :math:`r^\ast`, one number or `(n,)`.
        tolerance: :math:`\tau`, standard deviation of the reading.
        strength: s; 0 for none.
        until: noise level below which nothing is steered: what is left to decide there is how the picture looks, and a
            reading would be met by how bright a sleeve is instead of where it ends.
    """

    def __init__(
        self,
        denoiser: Denoising,
        reading: Callable[[Tensor], Tensor],
        wanted: float | Tensor,
        tolerance: float = 0.02,
        strength: float = 1.0,
        until: float = 0.0,
    ):
        super().__init__()
        if not tolerance > 0:
            raise ValueError(f"tolerance = {tolerance}; need a standard deviation above 0")
        self.denoiser, self.schedule, self.shape = denoiser, denoiser.schedule, denoiser.shape
        self.n_classes = denoiser.n_classes
        self.reading, self.wanted, self.tolerance, self.strength = reading, wanted, tolerance, strength
        self.until = until

    def forward(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Steered estimate `(n, *shape)`, without a gradient of its own."""
        alpha, sigma = self.scales(x_t, t)
        if bool((sigma < self.until * alpha).all()):
            return self.denoiser(x_t, t) if label is None else self.denoiser(x_t, t, label)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            data = self.denoiser(x, t) if label is None else self.denoiser(x, t, label)
            reading = self.reading(data)
            slope, pulled = torch.autograd.grad(reading.sum(), [data, x])
        data, spread = data.detach(), sigma**2 / alpha * pulled  # C g
        variance = (slope * spread).flatten(1).sum(1).clamp(min=0) + self.tolerance**2
        step = self.strength * (torch.as_tensor(self.wanted).to(reading) - reading.detach()) / variance
        return data + _column(step, data) * spread


@WAYS.register("guided")
@dataclass(frozen=True)
class GuidedTo(Way):
    """An encoding decoded so that a reading comes out as wanted.

    Attributes:
        reading: see `Steered`.
        start: what is decoded, the encoding of the `first` end, or the spherical `mix` of both.
        tolerance: see `Steered`.
        strength: see `Steered`.
        until: see `Steered`.
    """

    reading: Callable[[Tensor], Tensor] | None = None
    start: str = "first"
    tolerance: float = 0.02
    strength: float = 1.0
    until: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.start not in ("first", "mix"):
            raise ValueError(f"unknown start {self.start!r}; choose one of: first, mix")
        if self.reading is None:
            raise ValueError("guidance needs a reading, a differentiable function of points that returns (n,)")

    def wanted(self, first: Tensor, last: Tensor, weights: Tensor) -> Tensor:
        """Readings asked for, `(n * k,)`, pair by pair."""
        with torch.no_grad():
            w, a, b = self._spread(weights, self.reading(first), self.reading(last))
        return lerp(a, b, w.to(a))

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        times, wanted = self._times(denoiser), self.wanted(first, last, weights)
        w, latent = self._spread(weights, self._encode(denoiser, first))
        if self.start == "mix":
            latent = slerp(latent, self._spread(weights, self._encode(denoiser, last))[1], w)

        def part(x, wanted):
            steered = Steered(denoiser, self.reading, wanted, self.tolerance, self.strength, self.until)
            return decode(steered, x, times, sampler=self.sampler)

        return self._batched(part, latent, wanted).unflatten(0, (len(first), len(weights)))


@WAYS.register("searched")
@dataclass(frozen=True)
class Searched(Way):
    """Another way's path, walked at the pace of a reading: to each weight the frame that reads nearest to wanted.

    A path may turn what it turns all at once; where it does so gradually, there is a weight for every reading.

    Attributes:
        way: whose path.
        reading: a function of points `(n, *shape)` that returns `(n,)`.
        n_dense: frames of the path that are computed, at even weights from 0 to `reach`.
        reach: the last weight; above 1 for ways that may go beyond their end.
    """

    way: Way | None = None
    reading: Callable[[Tensor], Tensor] | None = None
    n_dense: int = 31
    reach: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.way is None or self.reading is None:
            raise ValueError("a search needs a way, whose path it walks, and a reading of points")
        if self.n_dense < 2 or not self.reach > 0:
            raise ValueError(f"n_dense = {self.n_dense}, reach = {self.reach:g}; need at least 2 frames and reach > 0")

    def __call__(self, denoiser, first, last, weights, labels=None, seed=0):
        dense = torch.linspace(0, self.reach, self.n_dense, dtype=weights.dtype)
        frames = self.way(denoiser, first, last, dense, labels, seed)
        with torch.no_grad():
            known = self._batched(self.reading, frames.flatten(0, 1)).reshape(len(first), self.n_dense)
            ends = self.reading(first)[:, None], self.reading(last)[:, None]
        w = weights.to(known)
        wanted = (1 - w) * ends[0] + w * ends[1]  # (n, k)
        chosen = (known[:, None] - wanted[..., None]).abs().argmin(2)
        return frames[torch.arange(len(first))[:, None], chosen]


# -- What a path is worth ----------------------------------------------------------------------------------------------

THREE_QUARTERS, TOLERANCE = 0.75, 0.1
_SLACK = 0.02  # half a row of one side


@dataclass(frozen=True)
class Pairs:
    """Indices into a set of pictures, `(n,)` each: half-sleeved and full-sleeved tops of matched look."""

    first: Tensor
    last: Tensor


def draw_pairs(pictures: Tensor, labels: Tensor, n: int = 200, seed: int = 0) -> Pairs:
    """Draw t-shirts with half sleeves, and to each a pullover or shirt with full ones whose torso looks most alike.

    No picture is used twice: the assignment that makes all torsos together most alike.

    Args:
        pictures: `(m, 1, 28, 28)` in [0, 1].
        labels: classes `(m,)`.
        n: how many pairs.
        seed: which t-shirts.

    Raises:
        ValueError: there are not so many.
    """
    length = sleeves.sleeve_lengths(pictures)
    short = torch.nonzero((labels == 0) & (length.amin(1) >= 0.3) & (length.amax(1) <= 0.5))[:, 0]
    full = torch.nonzero(((labels == 2) | (labels == 6)) & (length.amin(1) > 0.93))[:, 0]
    if n < 1 or n > min(len(short), len(full)):
        raise ValueError(f"n = {n}; there are {len(short)} half-sleeved and {len(full)} full-sleeved tops to pair")
    first = short[torch.randperm(len(short), generator=torch.Generator().manual_seed(seed))[:n]]
    torsos = [sleeves.as_pictures(pictures[i])[:, :, sleeves.TORSO].flatten(1) for i in (first, full)]
    _, chosen = optimize.linear_sum_assignment(torch.cdist(*torsos).numpy())
    return Pairs(first, full[torch.from_numpy(chosen)])


def ghost_band(pictures: Tensor, labels: Tensor) -> tuple[float, float]:
    """5% and 95% quantile of the ghost index of real tops that have sleeves (t-shirts, pullovers, shirts)."""
    tops = pictures[torch.isin(labels, torch.tensor([0, 2, 6]))]
    tops = tops[sleeves.sleeve_length(tops) > 0.25]
    band = sleeves.ghost_index(tops).nanquantile(torch.tensor([0.05, 0.95]))
    return float(band[0]), float(band[1])


def nearest(pictures: Tensor, real: Tensor, batch_size: int = 1024) -> tuple[Tensor, Tensor]:
    """Index of the nearest real picture and the root mean square difference to it, `(n,)` each."""
    x, y = (sleeves.as_pictures(p).flatten(1) for p in (pictures, real))
    found = [torch.cdist(part, y).min(1) for part in x.split(batch_size)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]) / math.sqrt(x.shape[1])


def measure_paths(
    frames: Tensor,
    first: Tensor,
    last: Tensor,
    weights: Tensor,
    band: tuple[float, float],
    real: Tensor | None = None,
    **columns: Any,
) -> list[dict[str, Any]]:
    r"""Measures of every path, as tidy rows `pair, metric, value` with any further columns given.

    With :math:`L_k` the sleeve length of frame k, wanted to be :math:`(1 - w_k) L_a + w_k L_b`, and :math:`k^\ast` the
    frame whose wanted length is nearest to 3/4:

    - `spearman`: rank correlation of :math:`L_k` and :math:`w_k`; 0 where nothing moves;
    - `monotone`: 1 where no step falls by more than half a row of one side and the path rises by half of
      :math:`L_b - L_a` at least;
    - `reading`, `hit`: :math:`L_{k^\ast}`, and whether it lies within 0.1 of what is wanted;
    - `hit_even`: whether it does so with both sides within 0.2 of each other;
    - `ghost`, `ghost_inside`: ghost index of :math:`k^\ast`, and whether it lies in `band`;
    - `answer`: 1 where *any* frame reads 3/4 within 0.1, with both sides within 0.2 of each other and no ghost;
    - `identity`: torso distance of :math:`k^\ast` to the nearer end; `ends_apart`: between the ends;
    - `error_first`, `error_last`: root mean square difference of the path's ends to what they should be;
    - `nearest`: root mean square difference of :math:`k^\ast` to the nearest picture of `real`.

    Args:
        frames: `(n, k, 1, 28, 28)` in [0, 1]; values beyond are cut off.
        first, last: the pairs `(n, 1, 28, 28)` in [0, 1].
        weights: `(k,)`.
        band: real pictures' ghost index, see `ghost_band`.
        real: pictures to look for neighbours in.
        columns: put into every row.

    Raises:
        ValueError: frames that do not fit the pairs and weights.
    """
    if frames.ndim != 5 or frames.shape[:2] != (len(first), len(weights)) or len(first) != len(last):
        raise ValueError(
            f"frames have shape {tuple(frames.shape)}; need (n, k, 1, 28, 28) with n = {len(first)}, k = {len(weights)}"
        )
    n, k = frames.shape[:2]
    frames = frames.float().clamp(0, 1)
    sides = sleeves.sleeve_lengths(frames.flatten(0, 1)).unflatten(0, (n, k))
    lengths, ghosts = sides.mean(2), sleeves.ghost_index(frames.flatten(0, 1)).unflatten(0, (n, k))
    ends = [sleeves.sleeve_length(end) for end in (first, last)]
    wanted = ends[0][:, None] + weights[None].float() * (ends[1] - ends[0])[:, None]
    at = (wanted - THREE_QUARTERS).abs().argmin(1)
    row = torch.arange(n)
    here, reading, ghost = frames[row, at], lengths[row, at], ghosts[row, at]
    inside = (ghosts >= band[0]) & (ghosts <= band[1])
    near = (lengths - THREE_QUARTERS).abs() <= TOLERANCE
    even = (sides[..., 0] - sides[..., 1]).abs() <= 2 * TOLERANCE
    rise = lengths[:, -1] - lengths[:, 0]
    monotone = (lengths.diff(dim=1) >= -_SLACK).all(1) & (rise >= (ends[1] - ends[0]) / 2)
    hit = (reading - wanted[row, at]).abs() <= TOLERANCE
    apart = torch.minimum(sleeves.torso_distance(here, first), sleeves.torso_distance(here, last))
    values = {
        "spearman": torch.tensor([_spearman(weights.numpy(), path.numpy()) for path in lengths]),
        "monotone": monotone,
        "reading": reading,
        "hit": hit,
        "hit_even": hit & even[row, at],
        "ghost": ghost,
        "ghost_inside": inside[row, at],
        "answer": (near & even & inside).any(1),
        "identity": apart,
        "ends_apart": sleeves.torso_distance(first, last),
        "error_first": (frames[:, 0] - first).square().flatten(1).mean(1).sqrt(),
        "error_last": (frames[:, -1] - last).square().flatten(1).mean(1).sqrt(),
    }
    if real is not None:
        values["nearest"] = nearest(here, real)[1]
    return [
        {**columns, "pair": pair, "metric": metric, "value": float(value[pair])}
        for metric, value in values.items()
        for pair in range(n)
    ]


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    return 0.0 if np.ptp(y) == 0 else float(stats.spearmanr(x, y).statistic)


def share_interval(hits: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """A share with its Wilson interval: (share, low, high) of values that are 0 or 1."""
    n, z = len(hits), float(stats.norm.ppf(0.5 + level / 2))
    share = float(np.mean(hits))
    middle, width = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return share, (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)


def sleeve_ways(
    reading: Callable[[Tensor], Tensor],
    groups: tuple[Tensor, Tensor] | None = None,
    n_steps: int = 10,
    depth: float = 10.0,
    noise_depth: float = 2.0,
    n_dense: int = 21,
) -> dict[str, Way]:
    """The ways that the study compares, by the name they have in its table.

    Args:
        reading: sleeve length of the denoiser's points, differentiable: `SleeveRuler` behind `to_own_units`.
        groups: short-sleeved and long-sleeved points for the direction.
        n_steps: steps of every encoding and decoding.
        depth: noise level of the encodings.
        noise_depth: noise level of the ways that add noise.
        n_dense: frames among which a search chooses.
    """
    shared = {"n_steps": n_steps}
    flow = {**shared, "depth": depth}
    guided = {"reading": reading, "strength": 3.0, "until": 0.5}
    return {
        "pixel average": Pixels(),
        "noise, shared": Noise(**shared, depth=noise_depth),
        "noise, independent": Noise(**shared, depth=noise_depth, shared=False),
        "noise, independent, shrunk": Noise(**shared, depth=noise_depth, shared=False, mix="linear"),
        "flow, spherical": Flow(**flow),
        "flow, forward first": Flow(**flow, forward=0.2),
        "flow, closed form": Flow(**flow, mix="gaussian"),
        "class embeddings": Labels(**flow),
        "bottleneck direction": Direction(**flow, groups=groups),
        "flow, searched": Searched(way=Flow(**flow), reading=reading, n_dense=n_dense),
        "direction, searched": Searched(
            way=Direction(**flow, groups=groups), reading=reading, n_dense=n_dense, reach=3
        ),
        "guided": GuidedTo(**flow, **guided),
        "guided, from the mix": GuidedTo(**flow, **guided, start="mix"),
    }


def walk(
    denoiser: Denoising,
    way: Way,
    first: Tensor,
    last: Tensor,
    weights: Tensor,
    labels: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> tuple[Tensor, float]:
    """Frames `(n, k, *shape)` of a way, and evaluations of the denoiser per path."""
    counted = Counted(denoiser)
    frames = way(counted, first, last, weights, labels, seed)
    return frames, counted.evaluations / len(first)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        first: ends of the pairs, `(n, 1, 28, 28)` in [0, 1].
        last: the other ends.
        weights: `(k,)`.
        frames: by way, `(n, k, 1, 28, 28)` in [0, 1].
        rows: see `measure_paths`, with the columns `way` and `nfe`.
        band: real pictures' ghost index, 5% and 95% quantile.
    """

    first: Tensor
    last: Tensor
    weights: Tensor
    frames: dict[str, Tensor]
    rows: list[dict[str, Any]]
    band: tuple[float, float]

    def values(self, way: str, metric: str) -> np.ndarray:
        """One value per pair, in their order, `(n,)`."""
        return np.array([row["value"] for row in self.rows if row["way"] == way and row["metric"] == metric])


SHARES = ("monotone", "hit", "hit_even", "ghost_inside", "answer")
"""Metrics of `measure_paths` that are 0 or 1 for a pair."""


def compare(
    denoiser: Denoising,
    pictures: Dataset,
    ways: Mapping[str, Way],
    n_pairs: int = 200,
    n_points: int = 11,
    seed: int = 0,
    progress: bool = False,
    precision: torch.dtype | None = None,
    remember: Callable[[str, Callable[[], tuple[Tensor, float]]], tuple[Tensor, float]] | None = None,
) -> Comparison:
    """Run ways over the same pairs of test pictures, and measure every path.

    Args:
        denoiser: of `pictures.standardised()`; paths are computed on its device, and measured on the CPU.
        pictures: FashionMNIST in own units, with labels.
        ways: by name, see `sleeve_ways`; what they read or hold is on the denoiser's device.
        n_pairs: pairs drawn from the test split by `draw_pairs`.
        n_points: frames a path.
        seed: of the pairs and of whatever is random in a way.
        progress: show a text progress bar over the ways.
        precision: of the network's products, `torch.bfloat16` for half; the weights' own if omitted.
        remember: called with a way's name and a function that computes its frames, `(n, k, 1, 28, 28)` uint8, and its
            evaluations per path; returns what that returned, now or before (`lab.paths.remembering`).

    Raises:
        ValueError: fewer than two points, or more pairs than there are.
    """
    if n_points < 2:
        raise ValueError(f"n_points = {n_points}; a path needs at least its 2 ends")
    split, law = pictures.split(), pictures.standardised()
    known = law.split()
    pairs = draw_pairs(split.test, split.test_labels, n_pairs, seed)
    labels = split.test_labels[pairs.first], split.test_labels[pairs.last]
    device = denoiser.device
    ends = known.test[pairs.first].to(device), known.test[pairs.last].to(device)
    first, last = split.test[pairs.first], split.test[pairs.last]
    real = split.train[torch.isin(split.train_labels, torch.tensor(sleeves.TOPS))]
    band = ghost_band(split.train, split.train_labels)
    weights, frames, rows = torch.linspace(0, 1, n_points), {}, []
    for name, way in tqdm(ways.items(), desc="ways", disable=not progress, file=sys.stdout):

        def compute(way: Way = way) -> tuple[Tensor, float]:
            with torch.autocast(device.type, precision, enabled=precision is not None):
                found, nfe = walk(denoiser, way, *ends, weights, labels, seed)
            return (255 * law.to_own_units(found.cpu()).clamp(0, 1)).round().to(torch.uint8), nfe

        found, nfe = compute() if remember is None else remember(str(name), compute)
        frames[name] = found.float() / 255
        rows += measure_paths(frames[name], first, last, weights, band, real, way=name, nfe=nfe)
    return Comparison(first, last, weights, frames, rows, band)


def summarise(rows: Sequence[Mapping[str, Any]], level: float = 0.95) -> list[dict[str, Any]]:
    """Means over pairs with their intervals: rows `way, metric, n, value, low, high, nfe`.

    Wilson's interval for `SHARES`, Student's t for the others. A value that is not a number, such as the ghost index
    of a frame without sleeves, is left out, and n counts the others.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["metric"]), []).append(row)
    found = []
    for (way, metric), members in groups.items():
        values = np.array([row["value"] for row in members if not math.isnan(row["value"])])
        if metric in SHARES:
            value, low, high = share_interval(values, level)
        else:
            n, value = len(values), float(values.mean()) if len(values) else math.nan
            error = float(stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
            low, high = value - error, value + error
        row = {"way": way, "metric": metric, "n": len(values), "value": value, "low": low, "high": high}
        found.append(row | {"nfe": members[0].get("nfe")})
    return found
