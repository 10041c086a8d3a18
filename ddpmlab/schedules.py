r"""Forward process: the scales of :math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon`.

A schedule maps a time to :math:`(\alpha_t, \sigma_t)`, with t = 0 clean data: :math:`(1, 0)`. Discrete schedules count
t = 1, ..., T and come from the betas of a DDPM (Ho et al. 2020, eq. 4),

.. math:: \bar\alpha_t = \prod_{i \le t} (1 - \beta_i), \qquad \alpha_t = \sqrt{\bar\alpha_t}, \qquad
          \sigma_t = \sqrt{1 - \bar\alpha_t};

continuous ones take t in [0, 1]. The signal-to-noise ratio is :math:`\mathrm{SNR}_t = \alpha_t^2/\sigma_t^2`, and the
noise level, by which schedules are compared, :math:`\sigma_t/\alpha_t`. All scales are float64.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from ddpmlab.registry import Registry

SCHEDULES = Registry("schedule")
make = SCHEDULES.make

SPACINGS = ("leading", "linspace", "trailing")


class Schedule(ABC):
    """A map from times to scales.

    Attributes:
        t_max: the last time: T, or 1 for a continuous schedule.
        t_min: the first noisy time.
        spacing: the default spacing of sampling times.
    """

    t_max: float
    t_min: float
    spacing: str = "trailing"

    @abstractmethod
    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]: ...

    def __call__(self, t: float | Tensor, checked: bool = True) -> tuple[Tensor, Tensor]:
        r"""Scales :math:`(\alpha_t, \sigma_t)` at times of any shape, float64, of that shape.

        A time between two steps of a discrete schedule interpolates :math:`\ln\sigma/\alpha` linearly. With
        `checked=False` times are taken to lie on the schedule, as `random_times` and `time_of` give them.

        Raises:
            ValueError: a time lies outside [0, t_max].
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        if checked and t.numel() and not (t.min() >= 0 and t.max() <= self.t_max):
            raise ValueError(f"times span [{t.min():g}, {t.max():g}]; this schedule has [0, {self.t_max:g}]")
        return self._scales(t)

    def snr(self, t: float | Tensor) -> Tensor:
        r""":math:`\alpha_t^2/\sigma_t^2`; infinite at t = 0."""
        alpha, sigma = self(t)
        return alpha**2 / sigma**2

    def noise_level(self, t: float | Tensor) -> Tensor:
        r""":math:`\sigma_t/\alpha_t`; infinite where the terminal SNR is 0."""
        alpha, sigma = self(t)
        return sigma / alpha

    @property
    def terminal_snr(self) -> float:
        """SNR at the last time, 0 if and only if sampling starts where the forward process ends."""
        return float(self.snr(self.t_max))

    @abstractmethod
    def time_of(self, noise_level: float | Tensor) -> Tensor:
        r"""The (fractional) time at which :math:`\sigma_t/\alpha_t` has a given value, clamped to [t_min, t_max]."""

    @abstractmethod
    def random_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Training times, `(n,)`: uniform on 1..T, or on [t_min, 1] stratified."""

    @abstractmethod
    def _noisy_times(self, n_steps: int, spacing: str) -> np.ndarray: ...

    def times(self, n_steps: int | None = None, spacing: str | None = None) -> Tensor:
        """Decreasing sampling times, `(n_steps + 1,)` float64, from noise to clean data (0).

        Args:
            n_steps: how many steps; all T of a discrete schedule if omitted, while a continuous one needs it.
            spacing: `leading` (every k-th from the first), `linspace` (both ends) or `trailing` (every k-th from
                the last), as tabulated by Lin et al. 2024, table 2. The schedule's own default if omitted.

        Raises:
            ValueError: `n_steps` is no whole number from 1 to T, or missing for a continuous schedule; or `spacing` is
                unknown.
        """
        n_steps = self.t_max if n_steps is None and isinstance(self, DiscreteSchedule) else n_steps
        spacing = spacing or self.spacing
        if spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {spacing!r}; choose one of: {', '.join(SPACINGS)}")
        if n_steps is None:
            raise ValueError("a continuous schedule needs n_steps, the number of sampling steps")
        limit = self.t_max if isinstance(self, DiscreteSchedule) else math.inf
        if n_steps != int(n_steps) or not 1 <= n_steps <= limit:
            raise ValueError(f"n_steps = {n_steps}; this schedule samples in 1 to {limit:g} whole steps")
        return torch.from_numpy(np.append(self._noisy_times(int(n_steps), spacing), 0.0))

    @abstractmethod
    def rescaled(self, terminal_snr: float = 0.0) -> "Schedule":
        """The same schedule with its end moved to a wanted terminal SNR; each class says what moves.

        Raises:
            ValueError: an SNR at which this schedule cannot end; each class says which those are.
        """


class DiscreteSchedule(Schedule):
    r"""The T-step schedule of a DDPM.

    `rescaled` shifts and scales :math:`\alpha_t` so that its first value stays (Lin et al. 2024, algorithm 1, there for
    terminal SNR 0). It takes an SNR from 0 to below the first step's, and needs two steps at least.

    Args:
        betas: :math:`\beta_1, \ldots, \beta_T` in (0, 1]; only the last may be 1 (zero terminal SNR).

    Raises:
        ValueError: no betas, or one out of range.
    """

    t_min = 1.0

    def __init__(self, betas: Tensor):
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas have shape {tuple(betas.shape)}; need (T,) with T at least 1")
        if not ((betas > 0).all() and (betas <= 1).all() and (betas[:-1] < 1).all()):
            raise ValueError(f"betas span [{betas.min():g}, {betas.max():g}]; each must lie in (0, 1)")
        self.betas = betas
        self.t_max = len(betas)
        self.alpha_bars = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
        r""":math:`\bar\alpha_t` for t = 0, ..., T, of shape `(T + 1,)`."""

    def _scales(self, t):
        index = t.round().long()
        if torch.equal(index.to(t), t):
            alpha_bar = self.alpha_bars.to(t.device)[index]
            return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        if ((t > 0) & (t < 1)).any():
            raise ValueError("times strictly between 0 and 1 have no noise level: t = 0 is clean, t = 1 the first step")
        low, known = t.floor().clamp(max=self.t_max - 1), self._log_noise_levels.to(t.device)
        log_ratio = known[low.long()].lerp(known[low.long() + 1], t - low)
        log_ratio = torch.where(t == low, known[low.long()], log_ratio)
        return torch.sigmoid(-2 * log_ratio).sqrt(), torch.sigmoid(2 * log_ratio).sqrt()

    @property
    def _log_noise_levels(self):
        return 0.5 * ((1 - self.alpha_bars) / self.alpha_bars).log()

    def time_of(self, noise_level):
        known = self._log_noise_levels[1:].numpy()
        level = torch.as_tensor(noise_level, dtype=torch.float64)
        steps = np.arange(1, self.t_max + 1, dtype=np.float64)
        return torch.from_numpy(np.asarray(np.interp(level.log().cpu().numpy(), known, steps))).to(level.device)

    def random_times(self, n, generator):
        device = generator.device
        return torch.randint(1, self.t_max + 1, (n,), generator=generator, device=device).to(torch.float64)

    def _noisy_times(self, n_steps, spacing):
        i = np.arange(n_steps)
        if spacing == "trailing":
            return np.round(self.t_max - i * self.t_max / n_steps)
        if spacing == "linspace":
            return np.round(np.linspace(self.t_max, 1, n_steps))
        return 1.0 + i[::-1] * (self.t_max // n_steps)

    def rescaled(self, terminal_snr=0.0):
        alpha = self.alpha_bars[1:].sqrt()
        if len(alpha) < 2:
            raise ValueError("a schedule of one step has no terminal step to rescale; use at least 2")
        first_snr = float(self.snr(1))
        if not 0 <= terminal_snr < first_snr:
            raise ValueError(f"terminal_snr = {terminal_snr}; need 0 <= terminal_snr < {first_snr:g}, the first step's")
        last = math.sqrt(terminal_snr / (1 + terminal_snr))
        alpha = last + (alpha - alpha[-1]) * (alpha[0] - last) / (alpha[0] - alpha[-1])
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha**2])
        return DiscreteSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])


def _ramp(n_steps: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    if n_steps != int(n_steps) or n_steps < 1:
        raise ValueError(f"n_steps = {n_steps}; a discrete schedule needs a whole number of steps, at least 1")
    return torch.linspace(low, high, int(n_steps), dtype=torch.float64)


def _check_betas(lbeta: float, ubeta: float) -> None:
    for name, beta in (("lbeta", lbeta), ("ubeta", ubeta)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} = {beta}; need 0 < {name} < 1")


@SCHEDULES.register("linear")
def linear(n_steps: int = 50, lbeta: float = 1e-5, ubeta: float = 1.28e-2) -> DiscreteSchedule:
    r""":math:`\beta_t` linear from `lbeta` to `ubeta` (Ho et al. 2020, section 4); `lbeta` > `ubeta` is allowed.

    Args:
        n_steps: how many steps, T.
        lbeta: the first beta, :math:`\beta_1`, in (0, 1).
        ubeta: the last one, :math:`\beta_T`, in (0, 1).

    Raises:
        ValueError: a beta outside (0, 1), or no whole number of steps from 1 on.
    """
    _check_betas(lbeta, ubeta)
    return DiscreteSchedule(_ramp(n_steps, lbeta, ubeta))


@SCHEDULES.register("scaled_linear")
def scaled_linear(n_steps: int = 50, lbeta: float = 1e-5, ubeta: float = 1.28e-2) -> DiscreteSchedule:
    r""":math:`\sqrt{\beta_t}` linear (Rombach et al. 2022's code; DDIM's code calls it quad).

    Args:
        n_steps: how many steps, T.
        lbeta: the first beta, :math:`\beta_1`, in (0, 1).
        ubeta: the last one, :math:`\beta_T`, in (0, 1).

    Raises:
        ValueError: a beta outside (0, 1), or no whole number of steps from 1 on.
    """
    _check_betas(lbeta, ubeta)
    return DiscreteSchedule(_ramp(n_steps, math.sqrt(lbeta), math.sqrt(ubeta)) ** 2)


@SCHEDULES.register("quadratic")
def quadratic(n_steps: int = 50, lbeta: float = 1e-5, ubeta: float = 1.28e-2) -> DiscreteSchedule:
    r""":math:`\beta_t = l + (u - l)\, r^2` with the ramp :math:`r` from 0 to 1.

    Args:
        n_steps: how many steps, T.
        lbeta: the first beta, :math:`l`, in (0, 1).
        ubeta: the last one, :math:`u`, in (0, 1).

    Raises:
        ValueError: a beta outside (0, 1), or no whole number of steps from 1 on.
    """
    _check_betas(lbeta, ubeta)
    return DiscreteSchedule(lbeta + (ubeta - lbeta) * _ramp(n_steps) ** 2)


@SCHEDULES.register("sigmoid")
def sigmoid(n_steps: int = 50, lbeta: float = 1e-5, ubeta: float = 1.28e-2) -> DiscreteSchedule:
    r""":math:`\beta_t = l + (u - l)\,\mathrm{sigmoid}(r)`, ramp :math:`r` from -6 to 6 (Xu et al. 2022).

    Args:
        n_steps: how many steps, T.
        lbeta: :math:`l` in (0, 1), where the sigmoid would begin; the first beta lies 0.25% of the way on to :math:`u`.
        ubeta: :math:`u` in (0, 1), where it would end; the last beta lies as far from it.

    Raises:
        ValueError: a beta outside (0, 1), or no whole number of steps from 1 on.
    """
    _check_betas(lbeta, ubeta)
    return DiscreteSchedule(lbeta + (ubeta - lbeta) * _ramp(n_steps, -6, 6).sigmoid())


@SCHEDULES.register("sech")
def sech(n_steps: int = 50, lbeta: float = 1e-5, ubeta: float = 1.28e-2) -> DiscreteSchedule:
    r""":math:`\beta_t = l + (u - l)\,\mathrm{sech}(r)`, ramp :math:`r` from -6 to 0: the rising half of the bump.

    The homework names a hyperbolic secant schedule without a formula; this is the reading that rises from `lbeta` to
    `ubeta` as its other schedules do.

    Args:
        n_steps: how many steps, T.
        lbeta: :math:`l` in (0, 1), where the bump would begin; the first beta lies 0.5% of the way on to :math:`u`.
        ubeta: the last beta, :math:`u`, in (0, 1).

    Raises:
        ValueError: a beta outside (0, 1), or no whole number of steps from 1 on.
    """
    _check_betas(lbeta, ubeta)
    return DiscreteSchedule(lbeta + (ubeta - lbeta) / _ramp(n_steps, -6, 0).cosh())


@SCHEDULES.register("cosine")
def cosine(n_steps: int = 50, offset: float = 0.008, max_beta: float = 0.999) -> DiscreteSchedule:
    r""":math:`\bar\alpha_t = f(t/T)/f(0)`, :math:`f(u) = \cos^2\frac{\pi}{2}\frac{u + s}{1 + s}`, betas clipped.

    Nichol & Dhariwal 2021, eq. 17. The clip at `max_beta` = 0.999 makes the last step nearly a jump: with epsilon
    prediction it divides by :math:`\sqrt{\bar\alpha_T}`, a few times 1e-5 at T = 1000.

    Args:
        n_steps: how many steps, T.
        offset: :math:`s`, which keeps the first betas from being tiny.
        max_beta: the largest beta, in (0, 1).

    Raises:
        ValueError: `max_beta` outside (0, 1), or no whole number of steps from 1 on.
    """
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta = {max_beta}; need 0 < max_beta < 1")
    n_steps = len(_ramp(n_steps))
    u = torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
    alpha_bar = ((u + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    return DiscreteSchedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


class _Continuous(Schedule):
    t_max = 1.0

    def random_times(self, n, generator):
        device = generator.device
        strata = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
        strata = strata.add(torch.arange(n, device=device)) / n
        return self.t_min + (1 - self.t_min) * strata

    def _noisy_times(self, n_steps, spacing):
        i = np.arange(n_steps)
        if spacing == "trailing":
            return 1 - i / n_steps
        if spacing == "linspace":
            return np.linspace(1, self.t_min, n_steps)
        return self.t_min + (1 - self.t_min) * i[::-1] / n_steps


@SCHEDULES.register("vp_cosine")
class VPCosine(_Continuous):
    r"""Variance preserving: :math:`\alpha_t = (1 - a)\sin\frac{\pi}{2}(1 - t) + a`.

    With terminal SNR 0 (a = 0) this is :math:`\alpha_t = \cos\frac{\pi t}{2}` (Salimans & Ho 2022, section 3).
    `rescaled` sets a anew; it takes any finite SNR from 0 on.

    Args:
        terminal_snr: SNR at t = 1.
        t_min: first noisy time, where training starts.
    """

    def __init__(self, terminal_snr: float = 0.0, t_min: float = 1e-3):
        if not 0 <= terminal_snr < math.inf:
            raise ValueError(f"terminal_snr = {terminal_snr}; need a finite value of at least 0")
        if not 0 < t_min < 1:
            raise ValueError(f"t_min = {t_min}; need 0 < t_min < 1")
        self.t_min = t_min
        self._last = math.sqrt(terminal_snr / (1 + terminal_snr))

    def _scales(self, t):
        # 1 - alpha, free of cancellation: cos(pi t / 2) = 1 - 2 sin^2(pi t / 4)
        drop = 2 * (1 - self._last) * (math.pi / 4 * t).sin() ** 2
        alpha = self._last + (1 - self._last) * (math.pi / 2 * (1 - t)).sin()
        return alpha, (drop * (2 - drop)).sqrt()

    def time_of(self, noise_level):
        level = torch.as_tensor(noise_level, dtype=torch.float64)
        alpha = 1 / (1 + level**2).sqrt()
        cos = ((alpha - self._last) / (1 - self._last)).clamp(-1, 1)
        # near alpha = 1 arccos loses digits: use the half angle
        drop = (1 - 1 / torch.hypot(level, torch.ones_like(level))) / (1 - self._last)
        drop = torch.where(level < 1e-3, level**2 / 2 / (1 - self._last), drop)
        t = torch.where(cos > 0.9, 4 / math.pi * (drop / 2).clamp(0, 1).sqrt().asin(), 2 / math.pi * cos.acos())
        return t.clamp(self.t_min, 1)

    def rescaled(self, terminal_snr=0.0):
        return VPCosine(terminal_snr, self.t_min)


@SCHEDULES.register("rectified")
class Rectified(_Continuous):
    r"""Straight lines from data to noise: :math:`\alpha_t = 1 - (1 - a)\,t`, :math:`\sigma_t = t`.

    With terminal SNR 0 (a = 0) the interpolation of rectified flow (Liu et al. 2023, eq. 1) and of flow matching's
    optimal transport (Lipman et al. 2023, eq. 20 without its least noise). The variance is not preserved: for data of
    unit variance it is 1/2 half way. `rescaled` sets a anew, while :math:`\sigma_t` stays; it takes an SNR from 0 to
    below 1.

    Args:
        terminal_snr: SNR at t = 1, :math:`a^2`.
        t_min: first noisy time, where training starts.
    """

    def __init__(self, terminal_snr: float = 0.0, t_min: float = 1e-3):
        if not 0 <= terminal_snr < 1:
            raise ValueError(f"terminal_snr = {terminal_snr}; need 0 <= terminal_snr < 1, so that alpha falls")
        if not 0 < t_min < 1:
            raise ValueError(f"t_min = {t_min}; need 0 < t_min < 1")
        self.t_min, self._fall = t_min, 1 - math.sqrt(terminal_snr)

    def _scales(self, t):
        return 1 - self._fall * t, t.clone()

    def time_of(self, noise_level):
        level = torch.as_tensor(noise_level, dtype=torch.float64)
        return (1 / (1 / level + self._fall)).clamp(self.t_min, 1)

    def rescaled(self, terminal_snr=0.0):
        return Rectified(terminal_snr, self.t_min)


@SCHEDULES.register("ve")
class VE(_Continuous):
    r"""Variance exploding: :math:`\alpha_t = 1`, :math:`\sigma_t = \sigma_{max}\, t^\rho`.

    `linspace` spacing then gives the sampling noise levels of Karras et al. 2022, eq. 5, from `sigma_max` down to
    `sigma_min` and then 0. `rescaled` moves `sigma_max`, while :math:`\alpha_t` stays 1; it takes an SNR above 0 and
    below :math:`\sigma_{min}^{-2}`, so not the method's default of 0.

    Args:
        sigma_min: noise level at the first noisy time.
        sigma_max: noise level at t = 1.
        rho: :math:`\rho`; the larger, the more of the sampling times lie at little noise.

    Raises:
        ValueError: levels that do not increase from above 0, or `rho` not above 0.
    """

    spacing = "linspace"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        if not 0 < sigma_min < sigma_max < math.inf or rho <= 0:
            raise ValueError(f"need 0 < sigma_min < sigma_max and rho > 0, got {sigma_min}, {sigma_max}, {rho}")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.t_min = (sigma_min / sigma_max) ** (1 / rho)

    def _scales(self, t):
        return torch.ones_like(t), self.sigma_max * t**self.rho

    def time_of(self, noise_level):
        level = torch.as_tensor(noise_level, dtype=torch.float64)
        return (level / self.sigma_max).clamp(min=0).pow(1 / self.rho).clamp(self.t_min, 1)

    def rescaled(self, terminal_snr=0.0):
        if not 0 < terminal_snr < self.sigma_min**-2:
            raise ValueError(
                f"terminal_snr = {terminal_snr}; a variance-exploding schedule needs "
                f"0 < terminal_snr < {self.sigma_min**-2:g}: it reaches 0 only at infinite sigma"
            )
        return VE(self.sigma_min, terminal_snr**-0.5, self.rho)


def ending_at(terminal_snr: float, name: str = "linear", **options) -> dict:
    r"""The named schedule whose `ubeta` gives it a wanted terminal SNR, as a part of a config.

    Solves :math:`\bar\alpha_T/(1 - \bar\alpha_T)` = `terminal_snr` for :math:`\ln` `ubeta`.

    Args:
        terminal_snr: SNR at the last step, above 0.
        name: a discrete schedule with an option `ubeta`.
        options: its others.

    Raises:
        ValueError: no `ubeta` from 1e-5 to 0.99 gives it.
    """

    def miss(log_ubeta: float) -> float:
        betas = make(name, **options, ubeta=math.exp(log_ubeta)).betas
        log_alpha_bar = float(torch.log1p(-betas).sum())
        return log_alpha_bar - math.log(-math.expm1(log_alpha_bar)) - math.log(terminal_snr)

    low, high = math.log(1e-5), math.log(0.99)
    if not terminal_snr > 0 or miss(low) * miss(high) > 0:
        raise ValueError(
            f"terminal_snr = {terminal_snr}; no ubeta from 1e-5 to 0.99 gives {name!r} with {options} that end; "
            "choose another SNR or more steps"
        )
    return {"name": name, **options, "ubeta": round(math.exp(brentq(miss, low, high)), 12)}
