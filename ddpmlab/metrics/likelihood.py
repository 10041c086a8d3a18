r"""Measures against the truth, in nats: how far a denoiser D is from the exact one D*, and the exact likelihood.

With :math:`\lambda = \ln\sigma/\alpha`, two reverse SDEs that start alike but denoise differently are apart by the
path-space Kullback-Leibler divergence (Girsanov; Kingma et al. 2021, eq. 18; Song et al. 2021b, theorem 1)

.. math:: \mathrm{KL} = \int \mathrm{SNR}\; E|D - D^\ast|^2\, d\lambda, \qquad \mathrm{SNR} = \alpha^2/\sigma^2 .

Started from the prior :math:`\pi = N(0, (\alpha_T^2 + \sigma_T^2) I)` instead of :math:`q_T`, the sampler's law p obeys

.. math:: \mathrm{KL}(q\,\|\,p) \le \mathrm{KL} + \mathrm{KL}(q_T\,\|\,\pi) :

the last term is the prior mismatch of a schedule that does not reach noise, and no training removes it. Here q is the
law at the schedule's first noise level, where a T-step model ends.

A chain of K steps is not that SDE. It draws :math:`x_s` from :math:`N(\mu(x_t, D), \tilde\sigma^2)` and has a
divergence of its own (`Truth.chain_kl`; the bound of Ho et al. 2020, eq. 5, as Kingma et al. 2021 write it, eq. 13),

.. math:: \mathrm{KL}(q\,\|\,p) \le \mathrm{KL}(q_T\,\|\,\pi) + \mathrm{KL}^\ast
          + \tfrac12\sum_k (\mathrm{SNR}_{t_{k-1}} - \mathrm{SNR}_{t_k})\, E|D - D^\ast|^2_{t_k},

where :math:`\mathrm{KL}^\ast` is what the exact denoiser pays for steps of finite length: the true reverse steps are
not Gaussian. The path KL is the limit of the sum for many small steps; for a few long ones the two differ several times
over.

The probability-flow ODE of the same denoiser, in :math:`\hat x = x/\alpha`,

.. math:: \frac{d\hat x}{d\lambda} = \hat x - D, \qquad
          \ln p(\hat x_0) = \ln\hat\pi(\hat x_T)
          + \int \Big(d - \mathrm{tr}\,\frac{\partial D}{\partial\hat x}\Big) d\lambda,

has a likelihood that can be computed (Song et al. 2021, section 4.3). Its divergence from q is another number: the ODE
and the SDE of an imperfect denoiser have different laws, and the bound above holds for the SDE only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

from ddpmlab.data.laws import Law
from ddpmlab.denoisers import Denoising, ExactDenoiser
from ddpmlab.schedules import DiscreteSchedule, Schedule

LARGEST_NOISE_LEVEL = 200.0
"""Schedules that reach further are integrated up to here; at SNR = 2.5e-5 nothing is left to tell apart, in the
standardised units that everything here is in."""


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo mean with its 95% interval, mean ± 1.96 standard errors."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """From independent values `(n,)`.

        Raises:
            ValueError: fewer than 2 values, or one that is not finite.
        """
        if len(values) < 2:
            raise ValueError(f"{len(values)} values; an interval needs at least 2")
        if not values.isfinite().all():
            bad = int((~values.isfinite()).sum())
            raise ValueError(f"{bad} of {len(values)} values are NaN or infinite, and so would their mean be")
        mean, error = float(values.mean()), float(values.std()) / len(values) ** 0.5
        return cls(mean, mean - 1.96 * error, mean + 1.96 * error)


def _span(schedule: Schedule) -> tuple[float, float]:
    """First and last noise level to integrate over; a last step at SNR 0 is left to the prior mismatch."""
    last = schedule.noise_level(schedule.t_max)
    if not torch.isfinite(last) and isinstance(schedule, DiscreteSchedule):
        last = schedule.noise_level(schedule.t_max - 1)
    return float(schedule.noise_level(schedule.t_min)), min(float(last), LARGEST_NOISE_LEVEL)


def evaluation_times(schedule: Schedule, n_levels: int) -> Tensor:
    r"""Times spread evenly in :math:`\ln\sigma/\alpha` from the first noisy time on; whole steps of a discrete
    schedule.

    Raises:
        ValueError: fewer than 2 levels wanted.
    """
    if n_levels < 2:
        raise ValueError(f"n_levels = {n_levels}; an integral needs at least 2")
    first, last = _span(schedule)
    levels = torch.linspace(math.log(first), math.log(last), n_levels, dtype=torch.float64).exp()
    times = schedule.time_of(levels)
    return times.round().unique() if isinstance(schedule, DiscreteSchedule) else times


@dataclass(frozen=True)
class ChainKL:
    """A chain's excess over the exact denoiser's by step, in nats; see `Truth.chain_kl`.

    Attributes:
        total: the sum over all steps between noisy times, with its interval.
        times: `(K,)`, increasing: a step starts at each.
        terms: `(K,)`, each step's mean. The first, which ends at clean data, is not in `total`.
        errors: `(K,)`, their standard errors.
    """

    total: Estimate
    times: Tensor
    terms: Tensor
    errors: Tensor

    @property
    def reconstruction(self) -> float:
        """The term of the last step, from the first noisy time to clean data."""
        return float(self.terms[0])


@dataclass(frozen=True)
class Truth:
    """Noisy points of a law at several noise levels and their exact posterior means: computed once, used often.

    Attributes:
        times: `(L,)`, increasing.
        x_t: noisy points, `(L, n, dim)` float64.
        exact: their posterior means, the same shape.
    """

    times: Tensor
    x_t: Tensor
    exact: Tensor

    @classmethod
    def of(
        cls,
        law: Law,
        schedule: Schedule,
        n_levels: int = 24,
        n: int = 1_000,
        seed: int | torch.Generator = 0,
        times: Tensor | None = None,
    ) -> "Truth":
        """Draw `n` points of `law` with fresh noise at each of `n_levels` levels, or at each of `times`.

        For the divergence of a chain, `times` are its own: `schedule.times(n_steps, spacing)`, clean data left out.

        Raises:
            ValueError: fewer than 2 points or levels, or a time off the schedule.
        """
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        if n < 2:
            raise ValueError(f"n = {n}; an interval needs at least 2 points")
        return cls.at(law.sample(n, generator), ExactDenoiser(law, schedule), n_levels, generator, times)

    @classmethod
    def at(
        cls,
        x0: Tensor,
        exact: Denoising,
        n_levels: int = 24,
        seed: int | torch.Generator = 0,
        times: Tensor | None = None,
    ) -> "Truth":
        """As `of`, for given points `(n, dim)` and the denoiser that is exact for them, as that of a training set."""
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        schedule, x0 = exact.schedule, x0.double().cpu()
        if len(x0) < 2:
            raise ValueError(f"n = {len(x0)}; an interval needs at least 2 points")
        if times is None:
            times = evaluation_times(schedule, n_levels)
        else:
            times = torch.as_tensor(times, dtype=torch.float64).unique()  # increasing
            times = times[times > 0]
            if len(times) < 2:
                raise ValueError(f"{len(times)} noisy times; need at least 2")
        alpha, sigma = (a.reshape(-1, *[1] * x0.ndim) for a in schedule(times))
        noise = torch.randn((len(times), *x0.shape), generator=generator, dtype=torch.float64)
        x_t = alpha * x0 + sigma * noise
        means = [exact(x.to(exact.device), t).cpu() for x, t in zip(x_t, times, strict=True)]
        return cls(times, x_t, torch.stack(means))

    def squared_errors(self, denoiser: Denoising) -> Tensor:
        r""":math:`|D - D^\ast|^2` of each point at each level, `(L, n)`."""
        weight = next(denoiser.parameters(), None)
        dtype = torch.float64 if weight is None else weight.dtype
        with torch.no_grad():
            estimates = torch.stack(
                [
                    denoiser(x.to(denoiser.device, dtype), t).cpu().double()
                    for x, t in zip(self.x_t, self.times, strict=True)
                ]
            )
        return (estimates - self.exact).square().flatten(2).sum(2)

    def gaps(self, denoiser: Denoising) -> Tensor:
        r"""Denoising gap :math:`\mathrm{SNR}\,|D - D^\ast|^2` of each point at each level, `(L, n)`."""
        return denoiser.schedule.snr(self.times)[:, None] * self.squared_errors(denoiser)

    def chain_kl(self, denoiser: Denoising) -> ChainKL:
        r"""Excess of the variational bound of the chain that steps through these `times`, over the exact denoiser's.

        One reverse step from t to s is :math:`N(\mu(x_t, D), \tilde\sigma^2 I)`; the true one has mean
        :math:`\mu(x_t, D^\ast)`, as :math:`\mu` is linear in D (with slope
        :math:`\alpha_s\sigma_{t|s}^2/\sigma_t^2`). So, whatever the true step's shape, its divergence from the one with
        D exceeds that from the one with :math:`D^\ast` by
        :math:`|\mu(D) - \mu(D^\ast)|^2/2\tilde\sigma^2 = \frac12(\mathrm{SNR}_s - \mathrm{SNR}_t)\,|D - D^\ast|^2`.

        Exact for ancestral sampling with the posterior variance (`ddpm`), in all T steps or in fewer. What it bounds is
        the law of the last noisy state, as the path KL does. The step from there, :math:`t_1`, to clean data adds no
        noise: :math:`\mathrm{SNR}_0` is infinite, and between two point masses there is no divergence. It is left out
        of the total; its term is :math:`\frac12\mathrm{SNR}_{t_1}|D - D^\ast|^2`, that of a last step with the noise of
        the channel, :math:`x_0 \sim N(D, \sigma_{t_1}^2/\alpha_{t_1}^2)`, about what is left open of :math:`x_0` there.
        A last time at SNR 0 is a step like any other.

        Args:
            denoiser: the denoiser; its schedule is the one that the points were drawn with.

        Raises:
            ValueError: an error is not finite.
        """
        snr = denoiser.schedule.snr(self.times)
        weights = torch.cat([snr[:1], snr[:-1] - snr[1:]]) / 2
        terms = weights[:, None] * self.squared_errors(denoiser)
        errors = terms.std(1) / terms.shape[1] ** 0.5
        return ChainKL(Estimate.of(terms[1:].sum(0)), self.times, terms.mean(1), errors)

    def path_kl(self, denoiser: Denoising, between: tuple[float, float] | None = None) -> Estimate:
        r"""Path-space KL divergence of the denoiser's reverse SDE from the exact one, in nats.

        The integral over :math:`\ln\sigma/\alpha` is a trapezoid sum over the levels, its interval that over points.

        Args:
            denoiser: the denoiser; its schedule is the one that the points were drawn with.
            between: lowest and highest noise level to integrate over, so that schedules of different reach compare;
                all of them if omitted. The gap is interpolated there.

        Raises:
            ValueError: `between` reaches beyond the schedule's levels, or the points hold a level of SNR 0.
        """
        levels, gaps = denoiser.schedule.noise_level(self.times).log(), self.gaps(denoiser)
        if not levels.isfinite().all():
            raise ValueError(
                "a time of SNR 0 has no place in the path KL's integral; leave it out of `times`, or use chain_kl"
            )
        if between is None:
            return Estimate.of(torch.trapezoid(gaps, levels, dim=0))
        low, high = (math.log(level) for level in between)
        if not levels[0] - 1e-9 <= low < high <= levels[-1] + 1e-9:
            raise ValueError(
                f"between = {between}; need an increasing pair within the schedule's noise levels, "
                f"{levels[0].exp():.3g} to {levels[-1].exp():.3g}"
            )
        within = torch.cat(
            [levels.new_tensor([low]), levels[(levels > low) & (levels < high)], levels.new_tensor([high])]
        )
        after = torch.searchsorted(levels, within).clamp(1, len(levels) - 1)
        weight = ((within - levels[after - 1]) / (levels[after] - levels[after - 1]))[:, None]
        return Estimate.of(torch.trapezoid(torch.lerp(gaps[after - 1], gaps[after], weight), within, dim=0))


def prior_kl(law: Law, schedule: Schedule, n: int = 4_000, seed: int = 0) -> Estimate:
    r"""Prior mismatch :math:`\mathrm{KL}(q_T\,\|\,N(0, (\alpha_T^2 + \sigma_T^2) I))`, in nats.

    What a schedule costs by starting from noise that the forward process does not reach; exactly 0 at a terminal SNR
    of 0.
    """
    generator = torch.Generator().manual_seed(seed)
    alpha, sigma = (float(a) for a in schedule(schedule.t_max))
    if alpha == 0:
        return Estimate(0.0, 0.0, 0.0)
    x0 = law.sample(n, generator)
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    log_q = law.marginal(x_t, alpha, sigma)[0]
    return Estimate.of(log_q - _log_normal(x_t, alpha**2 + sigma**2))


def _log_normal(x: Tensor, variance: float) -> Tensor:
    return -0.5 * (x.square().sum(1) / variance + x.shape[1] * math.log(2 * math.pi * variance))


def _divergence(denoiser: Denoising, x: Tensor, alpha: float, sigma: float, t: Tensor) -> tuple[Tensor, Tensor]:
    r"""D at :math:`\alpha\hat x` and the trace of :math:`\partial D/\partial\hat x`, `(n, d)` and `(n,)`.

    By automatic differentiation of a network; the exact denoiser, float64, by central differences.
    """
    weight = next(denoiser.parameters(), None)
    if weight is None:

        def estimate(x_t):
            return denoiser(x_t.to(denoiser.device), t).to(x_t)

        h = 1e-4 * sigma / alpha
        trace = torch.zeros(len(x), dtype=x.dtype)
        for k in range(x.shape[1]):
            step = torch.zeros_like(x)
            step[:, k] = h
            up, down = estimate(alpha * (x + step)), estimate(alpha * (x - step))
            trace += (up - down)[:, k] / (2 * h)
        return estimate(alpha * x), trace
    with torch.enable_grad():
        x = x.to(weight.device, weight.dtype).requires_grad_()
        data = denoiser(alpha * x, t)
        trace = sum(
            torch.autograd.grad(data[:, k].sum(), x, retain_graph=k + 1 < x.shape[1])[0][:, k]
            for k in range(x.shape[1])
        )
    return data.detach().cpu().double(), trace.cpu().double()


def log_likelihood(denoiser: Denoising, x: Tensor, tolerance: float = 1e-4) -> Tensor:
    r"""Log density `(n,)` of points under the probability-flow ODE of a denoiser, in nats.

    The density is that of :math:`\hat x` at the schedule's first noise level, where sampling ends; the prior is
    N(0, I) scaled to the last. Solved by dopri5 (torchdiffeq) with exact divergence; for two or three dimensions. The
    solver and the density are on the CPU, wherever the denoiser is.

    Args:
        denoiser: a trained or exact denoiser.
        x: points `(n, dim)`.
        tolerance: relative and absolute tolerance of the solver.
    """
    schedule = denoiser.schedule
    first, last = _span(schedule)

    def slope(level, state):
        t = schedule.time_of(level.exp().clamp(first, last))  # the solver may look beyond the end
        alpha, sigma = (float(a) for a in schedule(t))
        data, trace = _divergence(denoiser, state[:, :-1], alpha, sigma, t)
        return torch.cat([state[:, :-1] - data, (x.shape[1] - trace)[:, None]], 1)

    x = x.double().cpu()
    start = torch.cat([x, torch.zeros(len(x), 1, dtype=torch.float64)], 1)
    span = torch.tensor([math.log(first), math.log(last)], dtype=torch.float64)
    end = odeint(slope, start, span, rtol=tolerance, atol=tolerance, method="dopri5")[-1]
    return end[:, -1] + _log_normal(end[:, :-1], 1 + last**2)


def nll_gap(
    denoiser: Denoising, law: Law, points: Tensor | None = None, n: int = 500, seed: int = 0, tolerance: float = 1e-4
) -> Estimate:
    r"""Excess negative log-likelihood of the denoiser's ODE, :math:`\mathrm{KL}(q\,\|\,p_{ODE})` in nats.

    Both densities at the schedule's first noise level, on points of the law with that noise.

    Args:
        denoiser: a trained or exact denoiser.
        law: the law it learned.
        points: which points, such as a training split; `n` fresh ones if omitted. The excess is lower on points that
            a network has memorised.
        n: how many fresh points.
        seed: of points and noise.
        tolerance: of the ODE solver.
    """
    generator = torch.Generator().manual_seed(seed)
    level = float(denoiser.schedule.noise_level(denoiser.schedule.t_min))
    x = law.sample(n, generator) if points is None else points.double().cpu()
    x = x + level * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return Estimate.of(law.marginal(x, 1.0, level)[0] - log_likelihood(denoiser, x, tolerance))
