r"""Laws: distributions whose best possible denoiser is known.

A law is a latent curve, surface or mixture :math:`c(\theta)` blurred by a diagonal Gaussian,

.. math:: x_0 = c(\theta) + s \odot \xi, \qquad x_t = \alpha x_0 + \sigma \odot \varepsilon,

so that given :math:`\theta` everything is Gaussian, with variance :math:`v = \alpha^2 s^2 + \sigma^2` per dimension:

.. math::
    q(x_t) = \int w(\theta)\, N(x_t; \alpha c(\theta), v)\, d\theta, \qquad
    E[x_0 | x_t] = \frac{\sigma^2}{v}\, E[c(\theta) | x_t] + \frac{\alpha s^2}{v}\, x_t .

The integrals are done in `quadrature`. Everything here is float64.
"""

import math
import operator
from abc import abstractmethod
from functools import cached_property

import torch
from scipy.stats import qmc
from torch import Tensor

from ddpmlab.data import quadrature
from ddpmlab.data.dataset import DATASETS, Dataset, Split

_SPLIT_SEED = 2_023


def check_points(x: Tensor, dim: int, name: str = "x") -> Tensor:
    """Return `x` as float64 after checking that it is `(n, dim)`, non-empty and finite.

    Raises:
        ValueError: another shape, no point, or NaN or infinity.
        TypeError: not a floating-point dtype.
    """
    x = torch.as_tensor(x)
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; need (n, {dim})")
    if len(x) == 0:
        raise ValueError(f"{name} is empty; need at least one point")
    if not torch.is_floating_point(x):
        raise TypeError(f"{name} has dtype {x.dtype}; need a floating-point tensor")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} holds {int((~torch.isfinite(x)).any(1).sum())} points with NaN or infinity")
    return x.to(torch.float64)


class Law(Dataset):
    """A dataset with a density: a distribution to learn, in its own units, whose points are `(dim,)` in float64.

    Subclasses say `name`, `shape`, `_n_uniforms` and, if they differ, `n_train` and `n_test`; and they give the methods
    `_transform`, from uniforms to points, and `_marginal`, the log density and posterior mean of noisy points.
    """

    n_train: int = 10_000
    n_test: int = 5_000
    _n_uniforms: int

    @abstractmethod
    def _transform(self, u: Tensor) -> Tensor:
        """Map `(n, _n_uniforms)` uniforms on (0, 1) to `(n, dim)` points of the law."""

    @abstractmethod
    def _marginal(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log density `(n,)` of `x_t` and posterior mean `(n, dim)`, for `alpha` `(n, 1)` and `sigma` `(n, dim)`.

        Points come sorted by sigma / alpha, and the method may be called on any number of them.
        """

    def _n_nodes(self, alpha: float, sigma: float) -> int:
        """How many integrand values one point costs at the smallest noise of a chunk."""
        return 1

    def _from_uniforms(self, u: Tensor) -> Tensor:
        return self._transform(u.clamp(1e-16, 1 - 1e-16))

    def sample(self, n: int, seed: int | torch.Generator) -> Tensor:
        """Draw `n` independent points.

        Args:
            n: how many.
            seed: any integer, or a generator.

        Returns:
            `(n, dim)` float64.

        Raises:
            ValueError: `n` is below 1.
        """
        if n < 1:
            raise ValueError(f"cannot draw {n} points of {self.name}; n must be at least 1")
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(operator.index(seed))
        return self._from_uniforms(torch.rand(n, self._n_uniforms, generator=generator, dtype=torch.float64))

    def split(self) -> Split:
        """The fixed training and test sets, of the sizes used by the reports."""
        return Split(self.sample(self.n_train, _SPLIT_SEED), self.sample(self.n_test, _SPLIT_SEED + 1))

    def marginal(self, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        r"""Exact log density and posterior mean at a noise level.

        Args:
            x_t: points `(n, dim)`.
            alpha, sigma: scales of :math:`x_t = \alpha x_0 + \sigma\varepsilon`; numbers, or `(n, 1)` tensors.
                `sigma` may also be `(dim,)` or `(n, dim)`, one scale per dimension.

        Returns:
            :math:`\log q(x_t)` of shape `(n,)` and :math:`E[x_0|x_t]` of shape `(n, dim)`, float64, on the device of
            `x_t`; computed on the CPU.

        Raises:
            ValueError: a shape does not fit, a value is not finite, `alpha` <= 0 or `sigma` < 0.
        """
        x = check_points(x_t, self.dim, "x_t").cpu()
        alpha = torch.as_tensor(alpha, dtype=torch.float64, device="cpu").expand(len(x), 1)
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").expand(len(x), self.dim)
        if not (alpha > 0).all():
            raise ValueError(f"alpha = {alpha.min():g}; the posterior mean needs alpha > 0")
        if not (sigma >= 0).all():
            raise ValueError(f"sigma = {sigma.min():g}; a noise scale must be at least 0")
        ratio = (sigma / alpha).amax(1)
        order = ratio.argsort()
        log_prob, mean = torch.empty(len(x), dtype=torch.float64), torch.empty_like(x)
        start = 0
        while start < len(x):
            first = order[start]
            size = max(1, quadrature.CHUNK // self._n_nodes(float(alpha[first]), float(sigma[first].min())))
            if len(x) > start + 1 and ratio[order[-1]] > 2 * ratio[first]:  # keep a chunk within a factor of 2
                size = min(size, int(torch.searchsorted(ratio[order], 2 * ratio[first], right=True)) - start)
            chunk = order[start : start + max(1, size)]
            log_prob[chunk], mean[chunk] = self._marginal(x[chunk], alpha[chunk], sigma[chunk])
            start += len(chunk)
        return log_prob.to(x_t.device), mean.to(x_t.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of points `(n, dim)`, in nats, shape `(n,)`."""
        return self.marginal(x, 1.0, 0.0)[0]

    def denoise(self, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        r"""The exact denoiser :math:`E[x_0 \mid \alpha x_0 + \sigma\varepsilon = x_t]`, `(n, dim)`; see `marginal`."""
        return self.marginal(x_t, alpha, sigma)[1]

    @cached_property
    def _entropy(self) -> float:
        uniforms = torch.from_numpy(qmc.Sobol(self._n_uniforms, seed=0).random_base2(14))
        return -float(self.log_prob(self._from_uniforms(uniforms)).mean())

    def entropy(self) -> float:
        r"""Differential entropy :math:`-E\log p(x_0)` in nats, by quasi-Monte Carlo (error below 1e-3)."""
        return self._entropy

    def standardised(self) -> "Standardised":
        """The same law in units of the training split's mean and standard deviation: what networks see."""
        return Standardised(self)


class Standardised(Law):
    r"""A law in standardised units, :math:`x' = (x - m)/S` with the training split's moments.

    Noise that is isotropic here has scale :math:`\sigma S` per dimension in the law's own units, since
    :math:`S x'_t + \alpha m = \alpha x_0 + \sigma S \varepsilon`.
    """

    def __init__(self, law: Law):
        train = law.split().train
        self.law, self.mean, self.scale = law, train.mean(0), train.std(0, correction=0)
        self.name, self.shape, self.n_train, self.n_test = law.name, law.shape, law.n_train, law.n_test
        self._n_uniforms = law._n_uniforms

    def _transform(self, u):
        return (self.law._transform(u) - self.mean) / self.scale

    def _marginal(self, x, alpha, sigma):
        log_prob, mean = self.law._marginal(self.scale * x + alpha * self.mean, alpha, sigma * self.scale)
        return log_prob + self.scale.log().sum(), (mean - self.mean) / self.scale

    def _n_nodes(self, alpha, sigma):
        return self.law._n_nodes(alpha, sigma * float(self.scale.min()))

    def standardised(self):
        return self

    def to_own_units(self, x: Tensor) -> Tensor:
        """Map standardised points `(n, dim)` back to the law's own units."""
        return x * self.scale.to(x) + self.mean.to(x)


class _Curve(Law):
    """Unit-speed-like arcs blurred by isotropic noise: the helix and the two moons."""

    noise: float
    length: float  # of one arc, in the units of the noise
    n_arcs: int = 1

    @abstractmethod
    def _arcs(self, u: Tensor) -> Tensor:
        """Map `(m,)` positions in (0, 1) to `(n_arcs, m, dim)` points on the arcs."""

    def _n_panels(self, alpha: float, sigma: float) -> int:
        width = math.hypot(self.noise, sigma / alpha)  # of the posterior along the arc
        return max(16, math.ceil(self.length / (2 * width)))

    def _n_nodes(self, alpha, sigma):
        return 8 * self.n_arcs * self._n_panels(alpha, sigma)

    def _marginal(self, x, alpha, sigma):
        n_panels = self._n_panels(float(alpha.max()), float(sigma.min()))
        u, weight = quadrature.composite_legendre(n_panels)
        centres = self._arcs(u).reshape(-1, self.dim)
        log_weights = weight.div(self.n_arcs).log().repeat(self.n_arcs)
        return quadrature.shared_nodes(x, alpha, sigma, centres, log_weights, self.noise)


@DATASETS.register("helix")
class Helix(_Curve):
    r"""Helix of the homework: :math:`u \sim U(-2, -1)`, :math:`x = (\cos 14u, \sin 14u, u) + N(0, 0.03^2 I)`."""

    name, shape, _n_uniforms = "helix", (3,), 4
    noise = 0.03
    length = math.hypot(14, 1)

    def _arcs(self, u):
        u = u - 2
        return torch.stack([(14 * u).cos(), (14 * u).sin(), u], 1)[None]

    def _transform(self, u):
        return self._arcs(u[:, 0])[0] + self.noise * torch.special.ndtri(u[:, 1:])


@DATASETS.register("two_moons")
class TwoMoons(_Curve):
    r"""Two interleaving half circles, each with probability 1/2, as scikit-learn's `make_moons(noise=0.05)`.

    Angle :math:`a \sim U(0, \pi)`; :math:`(\cos a, \sin a)` or :math:`(1 - \cos a, 1/2 - \sin a)`, plus
    :math:`N(0, 0.05^2 I)`.
    """

    name, shape, _n_uniforms = "two_moons", (2,), 4
    n_train, n_test = 50_000, 5_000
    noise = 0.05
    length, n_arcs = math.pi, 2

    def _arcs(self, u):
        cos, sin = (math.pi * u).cos(), (math.pi * u).sin()
        return torch.stack([torch.stack([cos, sin], 1), torch.stack([1 - cos, 0.5 - sin], 1)])

    def _transform(self, u):
        upper, lower = self._arcs(u[:, 1])
        return torch.where(u[:, :1] < 0.5, upper, lower) + self.noise * torch.special.ndtri(u[:, 2:])

    def distance_to_arcs(self, x: Tensor) -> Tensor:
        """Euclidean distance `(n,)` of points `(n, 2)` (own units) to the nearer arc; `thickness` is its rms."""
        x = check_points(x, 2)

        def to_half_circle(x, y):  # centre 0, radius 1, y >= 0
            return torch.where(y >= 0, (torch.hypot(x, y) - 1).abs(), torch.hypot(x.abs() - 1, y))

        return torch.minimum(to_half_circle(x[:, 0], x[:, 1]), to_half_circle(1 - x[:, 0], 0.5 - x[:, 1]))


@DATASETS.register("sin_5_5")
class Sin55(Law):
    r"""Surface of the homework over the unit disk, with noise in the third coordinate only.

    :math:`(x, y)` uniform on the disk of radius 1, :math:`z = (1 - r)\sin 5x \cos 5y + N(0, 0.01^2)`.
    """

    name, shape, _n_uniforms = "sin_5_5", (3,), 3
    n_train, n_test = 15_686, 7_781
    noise = 0.01

    def _transform(self, u):
        r, angle = u[:, 0].sqrt(), 2 * math.pi * u[:, 1]
        x, y = r * angle.cos(), r * angle.sin()
        z = self._surface(r, x, y) + self.noise * torch.special.ndtri(u[:, 2])
        return torch.stack([x, y, z], 1)

    @staticmethod
    def _surface(r, x, y):
        return (1 - r) * (5 * x).sin() * (5 * y).cos()

    def log_prob(self, x: Tensor) -> Tensor:
        """Closed form: uniform on the disk, Gaussian in height; -inf outside the disk."""
        x = check_points(x, self.dim)
        r = torch.hypot(x[:, 0], x[:, 1])
        s = self.noise
        height = (x[:, 2] - self._surface(r, x[:, 0], x[:, 1])) / s
        inside = -math.log(math.pi) - 0.5 * height**2 - math.log(s * math.sqrt(2 * math.pi))
        return torch.where(r <= 1, inside, -math.inf)

    @cached_property
    def _disk(self) -> quadrature.Disk:
        return quadrature.Disk(self._surface, self.noise, slope=5.0)

    def _n_nodes(self, alpha, sigma):
        return self._disk.n_nodes(alpha, sigma)

    def _marginal(self, x, alpha, sigma):
        if float(sigma.max()) == 0:
            clean = x / alpha
            return self.log_prob(clean) - self.dim * alpha[:, 0].log(), clean
        if float(sigma.min()) == 0:
            raise ValueError("sigma mixes zero and positive noise in one call; separate them")
        return self._disk.marginal(x, alpha, sigma)


@DATASETS.register("gaussian_mixture")
class GaussianMixture(Law):
    r"""Mixture of K Gaussians with diagonal covariances, in closed form, for tests.

    Args:
        means: K means, `(K, dim)`.
        scales: standard deviations, one number or `(K, dim)`.
        weights: K positive weights, normalised here; equal if omitted.
    """

    name = "gaussian_mixture"

    def __init__(self, means=((-1.0, 0.0), (1.0, 0.5)), scales=0.3, weights=None):
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"means have shape {tuple(self.means.shape)}; need (K, dim)")
        n_components, dim = self.means.shape
        self.shape = (dim,)
        self.scales = torch.as_tensor(scales, dtype=torch.float64).expand(n_components, dim)
        weights = torch.ones(n_components) if weights is None else torch.as_tensor(weights)
        if weights.shape != (n_components,) or not (weights > 0).all() or not (self.scales > 0).all():
            raise ValueError(f"need {n_components} positive weights and positive scales")
        self.weights = weights.to(torch.float64) / weights.sum()
        self._n_uniforms = 1 + self.dim

    def _transform(self, u):
        component = torch.searchsorted(self.weights.cumsum(0), u[:, 0].contiguous()).clamp(max=len(self.weights) - 1)
        return self.means[component] + self.scales[component] * torch.special.ndtri(u[:, 1:])

    def _marginal(self, x, alpha, sigma):
        variance = alpha[:, None] ** 2 * self.scales**2 + sigma[:, None] ** 2  # (n, K, d)
        residual = x[:, None] - alpha[:, None] * self.means
        logits = self.weights.log() - 0.5 * (residual**2 / variance + (2 * math.pi * variance).log()).sum(-1)
        means = self.means + alpha[:, None] * self.scales**2 / variance * residual
        return logits.logsumexp(1), (logits.softmax(1)[:, :, None] * means).sum(1)


@DATASETS.register("gaussian")
def gaussian(mean=(0.0, 0.0), scale=1.0) -> GaussianMixture:
    r"""One Gaussian :math:`N(m, \mathrm{diag}(s^2))` as a mixture of one component.

    Args:
        mean: `(dim,)`.
        scale: one standard deviation, or `(dim,)`.
    """
    law = GaussianMixture([list(mean)], torch.as_tensor(scale, dtype=torch.float64).expand(1, len(mean)))
    law.name = "gaussian"
    return law
