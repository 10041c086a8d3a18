r"""Denoisers: estimates of :math:`E[x_0 | x_t]`, whatever the network predicts.

With :math:`x_t = \alpha x_0 + \sigma\varepsilon` and :math:`v = \alpha\varepsilon - \sigma x_0` (Salimans & Ho 2022,
appendix D), the one estimate D gives every other:

.. math:: \hat\varepsilon = \frac{x_t - \alpha D}{\sigma}, \qquad
          \hat v = \frac{\alpha x_t - (\alpha^2 + \sigma^2) D}{\sigma}, \qquad
          \nabla\log q(x_t) = \frac{\alpha D - x_t}{\sigma^2} .

A network F sees the point scaled to unit variance, :math:`x_t/s` with :math:`s^2 = \alpha^2 + \sigma^2` (1 for
variance-preserving schedules; data are standardised), and its output F is read as

.. math::
    \text{epsilon:}\; D = \frac{x_t - \sigma F}{\alpha}, \qquad \text{x0:}\; D = F, \qquad
    \text{v:}\; D = \frac{\alpha x_t - \sigma F}{s^2}, \qquad
    \text{edm:}\; D = \frac{\alpha}{s^2} x_t + \frac{\sigma}{s} F, \qquad
    \text{flow:}\; D = \frac{x_t - \sigma F}{\alpha + \sigma} .

`edm` is Karras et al. 2022, eq. 7 and table 1 with :math:`\sigma_{data} = 1`, written for any :math:`\alpha`. `flow`
predicts :math:`\varepsilon - x_0`, the velocity along the `rectified` schedule's straight lines (Liu et al. 2023).

Training minimises :math:`w\,|F - F^\ast|^2` with :math:`F^\ast` the output that would give :math:`x_0`; per
parameterisation :math:`|F - F^\ast|^2 = k\,|D - x_0|^2`, so that a weighting is the same whatever the network predicts.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from ddpmlab.data.laws import Law
from ddpmlab.schedules import Schedule

PARAMETERISATIONS = ("epsilon", "x0", "v", "edm", "flow")
WEIGHTINGS = ("simple", "snr+1 inverse", "min-snr", "edm")
MIN_SNR_GAMMA = 5.0
_TINY = 1e-12


def _as(values: Tensor, like: Tensor) -> Tensor:
    """Values in the dtype and on the device of another tensor; a single one without a wait for the device."""
    if values.numel() > 1 or values.device == like.device:
        return values.to(like)
    return torch.full(values.shape, float(values), dtype=like.dtype, device=like.device)


class Denoising(nn.Module):
    """The interface of everything that denoises: a schedule, the shape of a point, and `forward(x_t, t, label)` = D.

    Attributes:
        schedule: the forward process.
        shape: shape of a point, such as `(3,)` or `(1, 28, 28)`; None if it is not known.
        n_classes: classes that `label` may name; 0 without any.
    """

    schedule: Schedule
    shape: tuple[int, ...] | None = None
    n_classes: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, or of stored points; float64 where there are neither."""
        return self._anchor().dtype

    @property
    def device(self) -> torch.device:
        """Of the weights, or of stored points; the CPU where there are neither."""
        return self._anchor().device

    def _anchor(self) -> Tensor:
        tensors = itertools.chain(self.parameters(), (b for b in self.buffers() if b.is_floating_point()))
        return next(tensors, torch.empty(0, dtype=torch.float64))

    def scales(self, x_t: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at t as `(n, 1, ..., 1)` or `(1, 1, ..., 1)` tensors of the dtype and device of `x_t`."""
        alpha, sigma = self.schedule(self._times(x_t, t))
        return tuple(_as(a, x_t).reshape(-1, *[1] * (x_t.ndim - 1)) for a in (alpha, sigma))

    def _times(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """t as float64 on the CPU, after checking that it and `x_t` fit."""
        if x_t.ndim < 2 or len(x_t) == 0 or (self.shape is not None and x_t.shape[1:] != self.shape):
            wanted = "*shape" if self.shape is None else ", ".join(map(str, self.shape))
            raise ValueError(f"x_t has shape {tuple(x_t.shape)}; need (n, {wanted}) with n at least 1")
        t = torch.as_tensor(t, dtype=torch.float64)
        if t.ndim > 1 or t.numel() not in (1, len(x_t)):
            raise ValueError(f"t has shape {tuple(t.shape)}; need one time, or one per point ({len(x_t)})")
        return t.cpu()

    def epsilon(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        r"""Predicted noise :math:`(x_t - \alpha D)/\sigma`, `(n, *shape)`."""
        alpha, sigma = self.scales(x_t, t)
        return (x_t - alpha * self._estimate(x_t, t, label)) / sigma

    def v(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        r"""Predicted velocity :math:`\alpha\hat\varepsilon - \sigma D`, `(n, *shape)`."""
        alpha, sigma = self.scales(x_t, t)
        return (alpha * x_t - (alpha**2 + sigma**2) * self._estimate(x_t, t, label)) / sigma

    def score(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        r"""Predicted score :math:`(\alpha D - x_t)/\sigma^2`, `(n, *shape)`."""
        alpha, sigma = self.scales(x_t, t)
        return (alpha * self._estimate(x_t, t, label) - x_t) / sigma**2

    def _estimate(self, x_t: Tensor, t: float | Tensor, label: Tensor | None) -> Tensor:
        return self(x_t, t) if label is None else self(x_t, t, label)


class Denoiser(Denoising):
    r"""A network read as a denoiser.

    Args:
        network: maps points `(n, *shape)`, conditioning numbers `(n,)` and, with `n_classes`, labels `(n,)` to
            `(n, *shape)`.
        schedule: the forward process.
        parameterisation: `epsilon`, `x0`, `v`, `edm` or `flow`. `edm` conditions the network on a quarter of
            :math:`\ln\sigma/\alpha`, the others on `t / t_max`.

    Raises:
        ValueError: unknown parameterisation; or epsilon with a terminal SNR of 0, where it says nothing of x0.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, parameterisation: str = "epsilon"):
        super().__init__()
        if parameterisation not in PARAMETERISATIONS:
            raise ValueError(
                f"unknown parameterisation {parameterisation!r}; choose one of: {', '.join(PARAMETERISATIONS)}"
            )
        if parameterisation == "epsilon" and schedule.terminal_snr == 0:
            raise ValueError("epsilon prediction cannot start from a terminal SNR of 0; choose x0, v, edm or flow")
        self.network, self.schedule, self.parameterisation = network, schedule, parameterisation
        self.shape, self.n_classes = getattr(network, "shape", None), getattr(network, "n_classes", 0)

    def _condition(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.parameterisation == "edm":
            return 0.25 * (sigma / alpha).clamp(1e-5, 1e5).log().reshape(-1)
        return _as(t / self.schedule.t_max, alpha).reshape(-1)

    def _ask(self, scaled: Tensor, condition: Tensor, label: Tensor | None) -> Tensor:
        # under autocast a network may answer in less precision than it was asked in
        return self.network(scaled, condition, *([label] if label is not None else [])).to(scaled.dtype)

    def _check(self, x_t: Tensor) -> None:
        weight = next(self.network.parameters())
        if x_t.dtype != weight.dtype:
            raise TypeError(f"x_t has dtype {x_t.dtype}, the network {weight.dtype}; convert one with .to(...)")
        if x_t.device != weight.device:
            raise ValueError(f"x_t is on {x_t.device}, the network on {weight.device}; move one with .to(...)")

    def _output(self, x_t, t, alpha, sigma, label):
        """Network output F, `(n, *shape)`."""
        self._check(x_t)
        scaled = x_t / (alpha**2 + sigma**2).sqrt()
        condition = self._condition(torch.as_tensor(t, dtype=torch.float64), alpha, sigma).expand(len(x_t))
        return self._ask(scaled, condition, label)

    def forward(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        r"""Estimate :math:`E[x_0 | x_t]`.

        Args:
            x_t: noisy points `(n, *shape)`.
            t: one time, or `(n,)`.
            label: classes `(n,)` of a conditional network; `n_classes`, or no label at all, is "no class".

        Raises:
            ValueError: shapes or devices that do not fit, or a time off the schedule.
            TypeError: `x_t` and the network have different dtypes.
        """
        alpha, sigma = self.scales(x_t, t)
        output = self._output(x_t, t, alpha, sigma, label)
        if self.parameterisation == "x0":
            return output
        if self.parameterisation == "epsilon":
            return (x_t - sigma * output) / alpha
        if self.parameterisation == "flow":
            return (x_t - sigma * output) / (alpha + sigma)
        variance = alpha**2 + sigma**2
        if self.parameterisation == "v":
            return (alpha * x_t - sigma * output) / variance
        return alpha / variance * x_t + sigma / variance.sqrt() * output

    def levels(self, t: Tensor, weighting: str = "simple", checked: bool = True) -> Tensor:
        r"""What the loss needs of times `(n,)` on the schedule: :math:`\alpha`, :math:`\sigma`, s, the conditioning
        number and, unless it is 1 throughout, the weight; `(n, 4)` or `(n, 5)` in the network's dtype and on `t`'s
        device. For a schedule of few times it can be tabulated once.

        Raises:
            ValueError: unknown weighting, or with `checked` a time off the schedule.
        """
        if weighting not in WEIGHTINGS:
            raise ValueError(f"unknown weighting {weighting!r}; choose one of: {', '.join(WEIGHTINGS)}")
        alpha, sigma = (a.to(self.dtype) for a in self.schedule(t, checked))
        variance = alpha**2 + sigma**2
        parts = [alpha, sigma, variance.sqrt(), self._condition(t, alpha, sigma)]
        if weighting == "simple" or weighting == self.parameterisation == "edm":
            return torch.stack(parts, 1)
        # a = SNR/(1 + SNR), b = 1/(1 + SNR); both weights below are per |D - x0|^2 and carry a common factor b
        a, b = (alpha**2 / variance).clamp(min=_TINY), (sigma**2 / variance).clamp(min=_TINY)
        one, flow = torch.ones_like(a), (alpha + sigma) ** 2 / variance
        own = {"epsilon": a, "x0": b, "v": variance, "edm": one, "flow": flow}[self.parameterisation]
        wanted = {"snr+1 inverse": a * b, "min-snr": torch.minimum(a, MIN_SNR_GAMMA * b), "edm": one}[weighting]
        return torch.stack([*parts, wanted / own], 1)

    def loss(
        self,
        x0: Tensor,
        t: Tensor,
        noise: Tensor,
        weighting: str = "simple",
        label: Tensor | None = None,
        levels: Tensor | None = None,
    ) -> Tensor:
        r"""Training loss per point, `(n,)`: :math:`w_t\,|F - F^\ast|^2/d` in the network's own output of d numbers.

        Weightings, with :math:`|\hat\varepsilon - \varepsilon|^2 = \mathrm{SNR}\,|D - x_0|^2`:

        - `simple`: the network's output unweighted, w = 1 (Ho et al. 2020, eq. 14);
        - `snr+1 inverse`: :math:`1/(1 + \mathrm{SNR})` on the epsilon loss, as in the two-moons report;
        - `min-snr`: :math:`\min(\mathrm{SNR}, \gamma)` on the x0 loss, :math:`\gamma` = 5 (Hang et al. 2023, eq. 8);
        - `edm`: :math:`(1 + \mathrm{SNR})` on the x0 loss (Karras et al. 2022, :math:`\lambda(\sigma)` of table 1),
          which is w = 1 for `edm`, and for `v` where the schedule preserves the variance.

        Every weight is finite, at SNR = 0 and SNR = infinity too. With `levels`, those of t, nothing is checked.

        Raises:
            ValueError: unknown weighting, or shapes, devices or times that do not fit.
            TypeError: `x0` and the network have different dtypes.
        """
        if levels is None:
            self._check(x0)
            levels = self.levels(self._times(x0, t).reshape(-1).expand(len(x0)), weighting).to(x0)
        alpha, sigma, scale, condition, *weight = levels.unbind(1)
        alpha, sigma, scale = (a.reshape(-1, *[1] * (x0.ndim - 1)) for a in (alpha, sigma, scale))
        output = self._ask((alpha * x0 + sigma * noise) / scale, condition, label)
        if self.parameterisation == "epsilon":
            target = noise
        elif self.parameterisation == "x0":
            target = x0
        elif self.parameterisation == "v":
            target = alpha * noise - sigma * x0
        elif self.parameterisation == "flow":
            target = noise - x0
        else:
            target = (sigma * x0 - alpha * noise) / scale
        error = (output - target).square().flatten(1).mean(1)
        return error * weight[0] if weight else error


class ExactDenoiser(Denoising):
    r"""The best possible denoiser of a law, :math:`E[x_0 | x_t]` itself, through the same interface.

    Its loss is the smallest that any network can reach. Computed in float64; returns the dtype of `x_t`.

    Args:
        law: the law in the units of `x_t`, usually `law.standardised()`.
        schedule: the forward process.
    """

    def __init__(self, law: Law, schedule: Schedule):
        super().__init__()
        self.law, self.schedule, self.shape = law, schedule, law.shape

    def forward(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """Exact posterior mean `(n, *shape)`; the mean of the law where alpha is 0."""
        alpha, sigma = self.scales(x_t.double().cpu(), t)
        # at alpha = 0 the point says nothing: 1e-12 stands for "nothing" and keeps the quadrature finite
        return self.law.denoise(x_t.cpu(), alpha.clamp(min=1e-12), sigma).to(x_t)


class Guided(Denoising):
    r"""Guidance: away from what a guide G says, :math:`G + g\,(D_y - G)`.

    Without a guide of its own, G is the same denoiser without the class, :math:`D_\emptyset`: classifier-free guidance
    (Ho & Salimans 2022, eq. 6). With one, such as an early checkpoint, both are given the class: autoguidance (Karras
    et al. 2024, eq. 4). Two evaluations a call, one at g = 1.

    Args:
        conditional: a conditional denoiser, called as `conditional(x_t, t, label)`.
        label: one class, or classes `(n,)`, for calls that bring none.
        scale: guidance g; 0 the guide alone, 1 conditional, above 1 sharper.
        guide: a worse denoiser of the same points and schedule.
    """

    def __init__(
        self,
        conditional: Denoising,
        label: int | Tensor | None = None,
        scale: float = 1.0,
        guide: Denoising | None = None,
    ):
        super().__init__()
        self.conditional, self.guide, self.scale = conditional, guide, scale
        self.schedule, self.shape, self.n_classes = conditional.schedule, conditional.shape, conditional.n_classes
        self.label = None if label is None else torch.as_tensor(label)

    def forward(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        """Guided estimate `(n, *shape)`.

        Raises:
            ValueError: neither the call nor this denoiser has a label, and there is no guide that could do without.
        """
        if label is None and self.label is not None:
            label = self.label.to(x_t.device).expand(len(x_t))
        if label is None and self.guide is None:
            raise ValueError("guidance needs a class: pass label to the sampler, to the call or to Guided")
        told = self.conditional._estimate(x_t, t, label)
        if self.scale == 1:
            return told
        free = self.conditional(x_t, t) if self.guide is None else self.guide._estimate(x_t, t, label)
        return free + self.scale * (told - free)


class EmpiricalDenoiser(Denoising):
    r"""The best possible denoiser of a finite training set (Karras et al. 2022, eq. 57).

    .. math::
        D(x_t) = \sum_j w_j\, y_j, \qquad
        w = \operatorname{softmax}_j\!\Bigl(\frac{\alpha\, x_t^\top y_j - \alpha^2 |y_j|^2/2}{\sigma^2}\Bigr),

    the posterior mean when :math:`x_0` is one of the N points y, each as likely. It has the smallest loss on the
    training set that any network can reach, and it learns nothing: its samples are training points.

    It costs 4 N d operations a point (188 MFLOP for 60,000 pictures of 784 pixels), goes over points in tiles of
    bounded memory, and runs on the device and in the dtype of `points`. In float32 the exponents carry errors of some
    :math:`10^{-4}/\sigma^2`, which matters only between points nearer to each other than that; pass points in float64
    where it does.

    Args:
        points: the training set `(N, *shape)`, in the units of `x_t`.
        schedule: the forward process.
        labels: classes of the points `(N,)`, 0, 1, ...; with them `label` restricts the posterior to a class.

    Raises:
        ValueError: no points, NaN or infinity, or labels that do not fit.
    """

    TILE = 16_000_000
    """Weights held at once."""

    def __init__(self, points: Tensor, schedule: Schedule, labels: Tensor | None = None):
        super().__init__()
        if points.ndim < 2 or len(points) == 0 or not torch.is_floating_point(points):
            raise ValueError(
                f"points have shape {tuple(points.shape)}, {points.dtype}; need floats (N, *shape), N at least 1"
            )
        if not torch.isfinite(points).all():
            bad = int((~torch.isfinite(points)).flatten(1).any(1).sum())
            raise ValueError(f"{bad} of {len(points)} points hold NaN or infinity; drop them first")
        self.schedule, self.shape, self.n_classes = schedule, tuple(points.shape[1:]), 0
        self._ends = []  # points are kept in the order of their classes: class c ends at _ends[c]
        flat = points.detach().flatten(1)
        if labels is not None:
            labels = torch.as_tensor(labels, device=points.device)
            if labels.shape != (len(points),) or torch.is_floating_point(labels) or (labels < 0).any():
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)}, {labels.dtype}; need integers from 0, ({len(points)},)"
                )
            self._ends = labels.bincount().cumsum(0).tolist()
            self.n_classes = len(self._ends)
            flat = flat[labels.argsort(stable=True)]
        self.register_buffer("points", flat, persistent=False)
        self.register_buffer("_half_squares", flat.square().sum(1) / 2, persistent=False)

    def _part(self, label: int) -> slice:
        """Which points a class has; all of them for `n_classes`, "no class"."""
        if label == self.n_classes:
            return slice(0, len(self.points))
        if not 0 <= label < self.n_classes:
            raise ValueError(f"label {label}; this training set has the classes 0 to {self.n_classes - 1}")
        part = slice(self._ends[label - 1] if label else 0, self._ends[label])
        if part.start == part.stop:
            raise ValueError(f"no point of the training set has the label {label}")
        return part

    def posterior(self, x_t: Tensor, t: float | Tensor, label: Tensor | int | None = None) -> tuple[Tensor, Tensor]:
        r"""Log density and posterior mean of noisy points.

        Args:
            x_t: noisy points `(n, *shape)`.
            t: one time, or `(n,)`.
            label: classes, one or `(n,)`; `n_classes` is "no class", as no label at all.

        Returns:
            :math:`\log q(x_t)` (of the class), `(n,)`, and :math:`E[x_0|x_t]`, `(n, *shape)`, of the dtype of `x_t`.

        Raises:
            ValueError: shapes or devices that do not fit, a time off the schedule, or an unknown class.
        """
        alpha, sigma = (a.reshape(-1, 1).to(self.points.dtype).expand(len(x_t), 1) for a in self.scales(x_t, t))
        if x_t.device != self.points.device:
            raise ValueError(f"x_t is on {x_t.device}, the training set on {self.points.device}; move one with .to")
        x, sigma = x_t.flatten(1).to(self.points.dtype), torch.maximum(sigma, 1e-6 * alpha)
        label = torch.as_tensor(self.n_classes if label is None else label, device=x.device).expand(len(x))
        order = label.argsort(stable=True)
        log_q, mean = [], []
        for value, count in zip(*(u.tolist() for u in label.unique(return_counts=True)), strict=True):
            part = self._part(value)
            start = sum(len(q) for q in log_q)
            for rows in order[start : start + count].split(max(1, self.TILE // (part.stop - part.start))):
                q, m = self._tile(x[rows], alpha[rows], sigma[rows], part)
                log_q.append(q)
                mean.append(m)
        back = order.argsort()
        return torch.cat(log_q)[back].to(x_t.dtype), torch.cat(mean)[back].reshape(x_t.shape).to(x_t.dtype)

    def _tile(self, x, alpha, sigma, part):
        precision = sigma**-2
        points = self.points[part]
        logits = alpha * precision * x @ points.T - alpha**2 * precision * self._half_squares[part]  # (b, N)
        constant = 0.5 * x.shape[1] * (2 * torch.pi * sigma[:, 0] ** 2).log() + math.log(len(points))
        log_q = logits.logsumexp(1) - 0.5 * precision[:, 0] * x.square().sum(1) - constant
        return log_q, logits.softmax(1) @ points

    def log_prob(self, x_t: Tensor, t: float | Tensor, label: Tensor | int | None = None) -> Tensor:
        r"""Log density of the noised training set, :math:`\log\frac1N\sum_j N(x_t; \alpha y_j, \sigma^2 I)`, `(n,)`."""
        return self.posterior(x_t, t, label)[0]

    def forward(self, x_t: Tensor, t: float | Tensor, label: Tensor | int | None = None) -> Tensor:
        """Exact posterior mean `(n, *shape)`; see `posterior`."""
        return self.posterior(x_t, t, label)[1]
