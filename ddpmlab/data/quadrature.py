r"""Integrals over a law's latent: log density of :math:`x_t` and posterior mean :math:`E[x_0 | x_t]`.

Given nodes :math:`c_j` with weights :math:`w_j`, noise scales s of the law and :math:`\sigma` of the process, both per
dimension, and :math:`v = \alpha^2 s^2 + \sigma^2`,

.. math::
    q(x_t) = \sum_j w_j N(x_t; \alpha c_j, v), \qquad
    E[x_0 | x_t] = \frac{\sigma^2}{v} \sum_j p_j c_j + \frac{\alpha s^2}{v} x_t, \qquad
    p_j \propto w_j N(x_t; \alpha c_j, v).

Nodes lie closer than the narrowest feature of the integrand. Where it vanishes at both ends or is periodic the
trapezoid rule is used, whose error for a Gaussian feature of width w at spacing h is :math:`2\exp(-2\pi^2 w^2/h^2)`,
2e-6 at h = 1.2 w; elsewhere Gauss-Legendre.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

CHUNK = 300_000  # integrand values held at once: 2.4 MB per temporary, so that they stay in cache
SPACING = 1.2  # of trapezoid nodes, in widths of the narrowest feature


@cache
def legendre(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on (-1, 1), `(n,)` each."""
    node, weight = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(node), torch.from_numpy(weight)


def composite_legendre(n_panels: int, order: int = 8) -> tuple[Tensor, Tensor]:
    """Nodes and weights, `(n_panels * order,)` each, of the composite rule on (0, 1)."""
    node, weight = legendre(order)
    nodes = (torch.arange(n_panels, dtype=torch.float64)[:, None] + (1 + node) / 2) / n_panels
    return nodes.flatten(), (weight / 2 / n_panels).repeat(n_panels)


def shared_nodes(
    x: Tensor, alpha: Tensor, sigma: Tensor, centres: Tensor, log_weights: Tensor, noise: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Log density `(n,)` and posterior mean `(n, d)` for nodes that all points share.

    Args:
        x: points `(n, d)`.
        alpha: scale of the data, `(n, 1)`.
        sigma: scale of the noise, `(n, d)`.
        centres: the nodes, `(m, d)`.
        log_weights: logarithms of their weights, `(m,)`.
        noise: the law's own noise scale s, one or one per dimension.
    """
    variance = alpha**2 * noise**2 + sigma**2
    precision = 1 / variance
    logits = (x * precision * alpha) @ centres.T - 0.5 * (precision * alpha**2) @ (centres**2).T
    logits += log_weights
    top = logits.amax(1, keepdim=True)
    mass = logits.sub_(top).exp_()
    total = mass.sum(1, keepdim=True)
    log_prob = (top + total.log())[:, 0] - 0.5 * (precision * x**2 + (2 * math.pi * variance).log()).sum(1)
    return log_prob, (sigma**2 * (mass @ centres) / total + alpha * noise**2 * x) / variance


class Disk:
    r"""The surface :math:`z = f(x, y)` over the unit disk, (x, y) uniform, with noise s in z only.

    Per point: far from the rim a Cartesian window of trapezoid nodes, `REACH` noise scales to each side, in which all
    but f is a product of one-dimensional factors; near the rim a window in polar coordinates, Gauss-Legendre in the
    radius, where the density ends, and trapezoid in the angle. When the noise is wide: the whole disk, with nodes that
    all points share.

    Args:
        height: f as a function of (r, x, y).
        noise: standard deviation s.
        slope: largest gradient of f at radius r is at most `slope * (1 - r) + 1`.
    """

    REACH = 7.0
    """Half the width of a point's window, in noise scales."""
    REFINE = 1.0  # all rules use this many times their nodes; tests raise it to see that nothing changes
    WHOLE = 0.25  # half-width of the window from which the whole disk is cheaper

    def __init__(self, height, noise: float, slope: float):
        self.height, self.noise, self.slope = height, noise, slope

    def _width(self, alpha: float, sigma_xy: float, sigma_z: float, slope: float) -> float:
        """Narrowest feature of the integrand where the gradient is at most `slope`."""
        return 1 / math.hypot(alpha / sigma_xy, slope / math.hypot(self.noise, sigma_z / alpha)) / self.REFINE

    def n_nodes(self, alpha: float, sigma: float) -> int:
        """Largest number of nodes of one point at noise `sigma` in every coordinate."""
        width = self._width(alpha, max(sigma, 1e-9), sigma, self.slope)
        return math.ceil(2 * min(self.REACH * sigma / alpha, 1.0) / SPACING / width + 12) ** 2

    def marginal(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log density `(n,)` and posterior mean `(n, 3)`; noise levels within a factor of about 2 in one call."""
        reach = self.REACH * float((sigma[:, :2] / alpha).max())
        if reach >= self.WHOLE:
            return self._whole(x, alpha, sigma)
        r = torch.hypot(x[:, 0], x[:, 1]) / alpha[:, 0]
        inner = r + 1.5 * reach < 1  # the window is a square
        log_prob, mean = torch.empty(len(x), dtype=torch.float64), torch.empty_like(x)
        for group, rule in ((inner, self._cartesian), (~inner, self._polar)):
            if group.any():
                log_prob[group], mean[group] = rule(x[group], alpha[group], sigma[group], reach)
        return log_prob, mean

    def _smallest(self, alpha, sigma, slope):
        return self._width(float(alpha.max()), float(sigma[:, :2].min()), float(sigma[:, 2].min()), slope)

    def _finish(self, x, alpha, sigma, mass, top, px, py, pz):
        """Sums over nodes `(n, a, b)`, coordinates broadcastable to that."""
        total = mass.sum((1, 2))
        sums = torch.stack([(mass * p).sum((1, 2)) / total for p in (px, py, pz)], 1)
        noise = torch.tensor([0.0, 0.0, self.noise], dtype=torch.float64)
        variance = alpha**2 * noise**2 + sigma**2
        log_prob = top + total.log() - 0.5 * (2 * math.pi * variance).log().sum(1)
        return log_prob, (sigma**2 * sums + alpha * noise**2 * x) / variance

    def _height_logits(self, x, alpha, sigma, pz):
        precision = 1 / (alpha[:, 0] ** 2 * self.noise**2 + sigma[:, 2] ** 2)
        return (x[:, 2, None, None] - alpha[:, :, None] * pz).square_().mul_(-0.5 * precision[:, None, None])

    def _cartesian(self, x, alpha, sigma, reach):
        width = self._smallest(alpha, sigma, self.slope)
        n = math.ceil(2 * reach / (SPACING * width)) + 1
        offset = torch.linspace(-reach, reach, n, dtype=torch.float64)
        px, py = ((x[:, k, None] / alpha + offset) for k in (0, 1))
        factor_x, factor_y = ((-0.5 * (alpha * offset / sigma[:, k, None]) ** 2).exp_() for k in (0, 1))
        px, py = px[:, :, None], py[:, None, :]
        pz = self.height((px.square() + py.square()).sqrt_(), px, py)
        logits = self._height_logits(x, alpha, sigma, pz)
        top = logits.amax((1, 2))
        mass = logits.sub_(top[:, None, None]).exp_()
        mass *= factor_x[:, :, None] * factor_y[:, None, :]
        log_cell = 2 * math.log(2 * reach / (n - 1)) - math.log(math.pi)
        return self._finish(x, alpha, sigma, mass, top + log_cell, px, py, pz)

    def _polar(self, x, alpha, sigma, reach):
        centre = x[:, :2] / alpha
        r0 = torch.hypot(centre[:, 0], centre[:, 1])
        low = (r0.clamp(max=1) - reach).clamp(min=0)
        high = (r0 + reach).clamp(max=1)
        # a point beyond the rim sees its neighbourhood under a smaller angle, no wider than its noise
        half_angle = torch.where(r0 > reach, (reach / r0.clamp(min=max(reach, 1e-300))).clamp(max=1).asin(), math.pi)
        width = self._smallest(alpha, sigma, self.slope * (1 - float(low.min())) + 1)
        n_radius = math.ceil(1.35 * float((high - low).max()) / width) + 16
        n_angle = math.ceil(float((2 * half_angle * high).max()) / (SPACING * width)) + 2
        node, weight = legendre(n_radius)
        radius = ((low + high)[:, None] + (high - low)[:, None] * node)[:, :, None] / 2
        step = 2 * half_angle / n_angle
        turn = (torch.arange(n_angle, dtype=torch.float64) - (n_angle - 1) / 2) * step[:, None]
        angle = torch.atan2(centre[:, 1], centre[:, 0])[:, None] + turn
        px, py = radius * angle.cos()[:, None, :], radius * angle.sin()[:, None, :]
        pz = self.height(radius, px, py)
        logits = self._height_logits(x, alpha, sigma, pz)
        for k, p in ((0, px), (1, py)):
            logits -= 0.5 * ((x[:, k, None, None] - alpha[:, :, None] * p) / sigma[:, k, None, None]).square_()
        top = logits.amax((1, 2))
        mass = logits.sub_(top[:, None, None]).exp_()
        mass *= weight[:, None] * radius
        log_cell = ((high - low) / 2 * step / math.pi).log()
        return self._finish(x, alpha, sigma, mass, top + log_cell, px, py, pz)

    def _whole(self, x, alpha, sigma):
        """Gauss-Legendre in the radius and trapezoid in the angle, a number of nodes at each radius as it needs.

        Periodic in the angle and wide against every feature, it converges faster than the windows: fewer nodes do.
        """
        smallest = float(alpha.max()), float(sigma[:, :2].min()), float(sigma[:, 2].min())
        node, weight = legendre(math.ceil(0.8 / self._width(*smallest, self.slope)) + 28)
        centres, log_weights = [], []
        for r, w in zip(((1 + node) / 2).tolist(), (weight / 2).tolist(), strict=True):
            width = self._width(*smallest, self.slope * (1 - r) + 1)
            n = math.ceil(2 * math.pi * r / (1.6 * SPACING * width)) + 32
            angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
            px, py = r * angle.cos(), r * angle.sin()
            centres.append(torch.stack([px, py, self.height(r, px, py)], 1))
            log_weights.append(torch.full((n,), math.log(2 * w * r / n), dtype=torch.float64))
        noise = torch.tensor([0.0, 0.0, self.noise], dtype=torch.float64)
        return shared_nodes(x, alpha, sigma, torch.cat(centres), torch.cat(log_weights), noise)
