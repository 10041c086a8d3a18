r"""Reverse process: one class per solver, each a `step` from time t to an earlier time s.

Every solver sees the data estimate :math:`D = E[x_0|x_t]` and the scales at both times. With
:math:`\hat\varepsilon = (x_t - \alpha_t D)/\sigma_t` and the one-step quantities of the forward process

.. math:: \alpha_{t|s} = \alpha_t/\alpha_s, \qquad \sigma_{t|s}^2 = \sigma_t^2 - \alpha_{t|s}^2\sigma_s^2, \qquad
          \tilde\sigma^2 = \sigma_s^2\,\sigma_{t|s}^2/\sigma_t^2,

a step works for variance-preserving and variance-exploding schedules alike. The last time is clean (s = 0,
:math:`\sigma_s = 0`), where every solver returns D. A sampler is a generator of states, so a trajectory is what you
keep: `*states, x0 = sampler(denoiser, n=100, seed=0)`.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpmlab.denoisers import Denoising
from ddpmlab.registry import Registry
from ddpmlab.schedules import Schedule

SAMPLERS = Registry("sampler")
make = SAMPLERS.make


class Run:
    """One sampling run: the denoiser, its noise source, and the estimates D of earlier steps for multistep solvers.

    Attributes:
        label: classes `(n,)` that the denoiser is given with every call, or None.
        calls: how often it was called.
    """

    def __init__(self, denoiser: Denoising, generator: torch.Generator, label: Tensor | None = None):
        self.denoiser, self.generator, self.label, self.calls = denoiser, generator, label, 0
        self.history: list[tuple[float, Tensor]] = []  # (log SNR / 2, D), newest last
        self.memory: tuple | None = None

    def scales(self, t: float) -> tuple[float, float]:
        alpha, sigma = self.denoiser.schedule(t)
        return float(alpha), float(sigma)

    def denoise(self, x: Tensor, t: float) -> Tensor:
        """The data estimate D of the states `(n, *shape)` at time t."""
        self.calls += 1
        return self.denoiser(x, t) if self.label is None else self.denoiser(x, t, self.label)

    def noise(self, like: Tensor) -> Tensor:
        noise = torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device=self.generator.device)
        return noise.to(like.device)


def _half_log_snr(alpha: float, sigma: float) -> float:
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


class Sampler(ABC):
    """A solver and how it spends its steps.

    Args:
        n_steps: number of steps; all T of a discrete schedule if omitted.
        spacing: how the times are spread, see `Schedule.times`; the schedule's default if omitted.
    """

    def __init__(self, n_steps: int | None = None, spacing: str | None = None):
        if n_steps is not None and (n_steps != int(n_steps) or n_steps < 1):
            raise ValueError(f"n_steps = {n_steps}; need a whole number of steps, at least 1")
        self.n_steps, self.spacing = n_steps, spacing

    @abstractmethod
    def step(self, run: Run, x: Tensor, t: float, s: float) -> Tensor:
        """One step of the reverse process: the state `(n, *shape)` at time s < t from that at t.

        It asks `run.denoise(x, t)` for the data estimate, which counts the evaluations.
        """

    def nfe(self, schedule: Schedule) -> int:
        """Evaluations of the denoiser from noise to data on a schedule, counted on a run over one number."""
        times = schedule.times(self.n_steps, self.spacing).tolist()
        run = Run(_Zero(schedule), torch.Generator().manual_seed(0))
        for _ in self._states(run, torch.zeros(1, 1, dtype=torch.float64), times):
            pass
        return run.calls

    def __call__(
        self,
        denoiser: Denoising,
        n: int | None = None,
        seed: int | torch.Generator = 0,
        x: Tensor | None = None,
        label: int | Tensor | None = None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[Tensor]:
        """Yield the states from pure noise to clean data, `n_steps + 1` tensors `(n, *shape)`.

        Args:
            denoiser: any denoiser; it carries the schedule.
            n: how many points to draw.
            seed: seed of all noise, drawn on the device of the states, or a generator.
            x: start from these states `(n, *shape)` instead of fresh noise.
            label: one class for all points, or classes `(n,)`, for a denoiser that takes them.
            shape, dtype, device: of fresh noise; the denoiser's own if omitted.

        Raises:
            ValueError: neither or both of `n` and `x` given; a step count off the schedule; NaN in `x`; a label that
                does not fit.
        """
        if (n is None) == (x is None):
            raise ValueError("give either n, how many points to draw, or x, the states to start from")
        if n is not None and n < 1:
            raise ValueError(f"n = {n}; need at least 1 point")
        if x is not None and (x.ndim < 2 or len(x) == 0 or not torch.isfinite(x).all()):
            raise ValueError(f"x has shape {tuple(x.shape)}; need finite states (n, *shape) with n at least 1")
        times = denoiser.schedule.times(self.n_steps, self.spacing).tolist()
        device = torch.device(device or denoiser.device) if x is None else x.device
        generator = _generator(seed, device)
        if x is None:
            shape = shape or denoiser.shape
            if shape is None:
                raise ValueError("cannot tell the shape of this denoiser's points; pass shape, such as (2,)")
            dtype = dtype or denoiser.dtype
            alpha, sigma = denoiser.schedule(times[0])
            x = torch.randn(n, *shape, generator=generator, dtype=dtype, device=generator.device).to(device)
            x = x * math.hypot(float(alpha), float(sigma))  # the marginal's scale for data of unit variance
        return self._states(Run(denoiser, generator, _labels(label, len(x), denoiser, device)), x, times)

    def _states(self, run: Run, x: Tensor, times: list[float]) -> Iterator[Tensor]:
        yield x
        for t, s in itertools.pairwise(times):
            with torch.no_grad():
                x = self.step(run, x, t, s)
            yield x

    def sample(
        self,
        denoiser: Denoising,
        n: int,
        seed: int | torch.Generator = 0,
        batch_size: int = 20_000,
        progress: bool = False,
        label: int | Tensor | None = None,
        **options,
    ) -> Tensor:
        """Draw `n` points `(n, *shape)`, keeping no trajectory, in batches of at most `batch_size`.

        The noise comes from one stream, so the same seed and batch size give the same points.

        Args:
            denoiser: any denoiser; it carries the schedule.
            n: how many points to draw.
            seed: seed of all noise, or a generator.
            batch_size: most points at a time.
            progress: show a text progress bar.
            label: one class for all n points, or classes `(n,)`, for a denoiser that takes them.
            options: `shape`, `dtype` and `device`, as for a call.
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"n = {n}, batch_size = {batch_size}; both must be at least 1")
        device = torch.device(options.get("device") or denoiser.device)
        generator, labels, batches = _generator(seed, device), _labels(label, n, denoiser, device), []
        for start in tqdm(range(0, n, batch_size), desc="sampling", disable=not progress, leave=False):
            size = min(batch_size, n - start)
            part = None if labels is None else labels[start : start + size]
            for x in self(denoiser, size, generator, label=part, **options):  # noqa: B007
                pass
            batches.append(x)
        return torch.cat(batches)


class _Zero(Denoising):
    """The denoiser of a law of one point at 0: for counting evaluations."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule, self.shape = schedule, (1,)

    def forward(self, x_t, t):
        return torch.zeros_like(x_t)


def _generator(seed: int | torch.Generator, device: torch.device) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator(device).manual_seed(int(seed))


def _labels(label: int | Tensor | None, n: int, denoiser: Denoising, device: torch.device) -> Tensor | None:
    """Classes `(n,)` on a device, checked."""
    if label is None:
        return None
    label = torch.as_tensor(label)
    if label.is_floating_point() or label.shape not in ((), (n,)):
        raise ValueError(f"label is {label.dtype} of shape {tuple(label.shape)}; need one class, or {n} of them")
    if denoiser.n_classes and not 0 <= int(label.min()) <= int(label.max()) <= denoiser.n_classes:
        raise ValueError(
            f"labels span [{int(label.min())}, {int(label.max())}]; this denoiser has classes 0 to "
            f'{denoiser.n_classes - 1}, and {denoiser.n_classes} for "no class"'
        )
    return label.to(device, torch.int64).expand(n)


def _ancestral(run: Run, x: Tensor, t: float, s: float) -> tuple[Tensor, float, float]:
    """Mean of q(x_s | x_t, x_0 = D), the posterior variance and the forward one-step variance."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = run.scales(t), run.scales(s)
    step_alpha = alpha_t / alpha_s
    step_variance = max(sigma_t**2 - step_alpha**2 * sigma_s**2, 0.0)
    data = run.denoise(x, t)
    mean = (step_alpha * sigma_s**2 * x + alpha_s * step_variance * data) / sigma_t**2
    return mean, sigma_s**2 * step_variance / sigma_t**2, step_variance


@SAMPLERS.register("ddpm")
class DDPM(Sampler):
    r"""Ancestral sampling (Ho et al. 2020, algorithm 2): :math:`x_s \sim N(\mu(x_t, D), \tilde\sigma^2)`.

    :math:`\mu = (\alpha_{t|s}\sigma_s^2 x_t + \alpha_s\sigma_{t|s}^2 D)/\sigma_t^2`.

    Args:
        variance: `posterior` for :math:`\tilde\sigma^2` or `beta` for :math:`\sigma_{t|s}^2` (their two choices in
            section 3.2). The last step adds no noise either way.
    """

    VARIANCES = ("posterior", "beta")

    def __init__(self, n_steps: int | None = None, spacing: str | None = None, variance: str = "posterior"):
        super().__init__(n_steps, spacing)
        if variance not in self.VARIANCES:
            raise ValueError(f"unknown variance {variance!r}; choose one of: {', '.join(self.VARIANCES)}")
        self.variance = variance

    def step(self, run, x, t, s):
        mean, posterior, forward = _ancestral(run, x, t, s)
        if s == 0:
            return mean
        return mean + math.sqrt(posterior if self.variance == "posterior" else forward) * run.noise(x)


@SAMPLERS.register("ddim")
class DDIM(Sampler):
    r"""DDIM (Song et al. 2021, eq. 12).

    .. math:: x_s = \alpha_s D + \sqrt{\sigma_s^2 - \eta^2\tilde\sigma^2}\,\hat\varepsilon + \eta\tilde\sigma z

    Args:
        eta: 0 deterministic, 1 as noisy as ancestral sampling.
    """

    def __init__(self, n_steps: int | None = None, spacing: str | None = None, eta: float = 0.0):
        super().__init__(n_steps, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta = {eta}; need 0 <= eta <= 1")
        self.eta = eta

    def step(self, run, x, t, s):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = run.scales(t), run.scales(s)
        data = run.denoise(x, t)
        noise = (x - alpha_t * data) / sigma_t
        step_variance = max(sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2, 0.0)
        fresh = self.eta * sigma_s / sigma_t * math.sqrt(step_variance)
        x = alpha_s * data + math.sqrt(max(sigma_s**2 - fresh**2, 0.0)) * noise
        return x + fresh * run.noise(x) if fresh > 0 else x


def _euler(x: Tensor, data: Tensor, scales_t, scales_s) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales_t, scales_s
    return alpha_s * data + sigma_s / sigma_t * (x - alpha_t * data)


@SAMPLERS.register("euler")
class Euler(Sampler):
    r"""Euler's method on the probability-flow ODE in the noise level (Karras et al. 2022, eq. 4).

    With :math:`\hat x = x/\alpha` and :math:`\hat\sigma = \sigma/\alpha` the ODE reads
    :math:`d\hat x/d\hat\sigma = \hat\varepsilon`, so a step is
    :math:`\hat x_s = \hat x_t + (\hat\sigma_s - \hat\sigma_t)\hat\varepsilon`: DDIM's map at :math:`\eta = 0`.
    """

    def step(self, run, x, t, s):
        return _euler(x, run.denoise(x, t), run.scales(t), run.scales(s))


@SAMPLERS.register("heun")
class Heun(Sampler):
    r"""Heun's second-order method on the same ODE (Karras et al. 2022, algorithm 1, no churn).

    :math:`\hat x_s = \hat x_t + \frac12(\hat\sigma_s - \hat\sigma_t)(\hat\varepsilon_t + \hat\varepsilon_s')`; the last
    step, to clean data, and a first step from SNR 0 are Euler's, of one evaluation; the others take two.
    """

    def step(self, run, x, t, s):
        scales_t, scales_s = run.scales(t), run.scales(s)
        data = run.denoise(x, t)
        guess = _euler(x, data, scales_t, scales_s)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scales_t, scales_s
        if s == 0 or alpha_t == 0:
            return guess
        slope_t = (x - alpha_t * data) / sigma_t
        slope_s = (guess - alpha_s * run.denoise(guess, s)) / sigma_s
        return alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * (slope_t + slope_s) / 2)


@SAMPLERS.register("dpmpp_2m")
class DPMSolverPP2M(Sampler):
    r"""DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2).

    With :math:`\lambda = \ln\alpha/\sigma`, :math:`h = \lambda_s - \lambda_t` and
    :math:`r = (\lambda_t - \lambda_{t'})/h` for the time t' before t,

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t - \alpha_s (e^{-h} - 1)
              \Big[\big(1 + \tfrac{1}{2r}\big) D_t - \tfrac{1}{2r} D_{t'}\Big].

    First and last step are of first order: no history, or an infinite h.
    """

    def step(self, run, x, t, s):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = run.scales(t), run.scales(s)
        now, then = _half_log_snr(alpha_t, sigma_t), _half_log_snr(alpha_s, sigma_s)
        data = run.denoise(x, t)
        h, blend = then - now, data
        if run.history and math.isfinite(h):
            before, earlier = run.history[-1]
            r = (now - before) / h
            blend = data + (data - earlier) / (2 * r)
        run.history = [(now, data)]
        return sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * blend


@SAMPLERS.register("unipc")
class UniPC(Sampler):
    r"""UniPC of order 2 (Zhao et al. 2023, algorithms 5 to 8, data prediction, :math:`B(h) = e^{h} - 1`).

    A multistep predictor, then, with the next step's evaluation, a corrector of the state just reached: one
    evaluation a step. The first and last step are of first order.
    """

    def step(self, run, x, t, s):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = run.scales(t), run.scales(s)
        now, then = _half_log_snr(alpha_t, sigma_t), _half_log_snr(alpha_s, sigma_s)
        data = run.denoise(x, t)
        if run.memory is not None:
            x = self._correct(run, data, alpha_t, sigma_t, now)
        # predictor
        h = then - now
        base = sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * data
        ahead, order = base, 1
        if run.history and math.isfinite(h):
            before, earlier = run.history[-1]
            if math.isfinite(before):
                slope = (earlier - data) * (h / (before - now))
                ahead, order = base - alpha_s * math.expm1(-h) * 0.5 * slope, 2
        run.memory = x, sigma_t, now, data, order, run.history[-1] if run.history else None
        run.history = [(now, data)]
        return ahead

    @staticmethod
    def _correct(run, data, alpha, sigma, now):
        """The corrector UniC: redo the last step with the estimate at its end."""
        x, sigma_t, start, first, order, before = run.memory
        h = now - start
        e = math.expm1(-h)
        correction = 0.5 * (data - first)
        if order == 2 and math.isfinite(h):
            # rho solves [[1, 1], [r, 1]] rho = b, r = (lambda_before - lambda_start)/h; Zhao et al. 2023, eq. 5
            r = (before[0] - start) / h
            phi_2 = e / -h - 1
            phi_3 = phi_2 / -h - 0.5
            b = phi_2 / e, 2 * phi_3 / e
            rho_1 = (b[1] - b[0]) / (r - 1)
            correction = rho_1 * (before[1] - first) / r + (b[0] - rho_1) * (data - first)
        return sigma / sigma_t * x - alpha * e * first - alpha * e * correction
