r"""Averages of weights over training: :math:`\bar\theta_k = \beta_k\bar\theta_{k-1} + (1 - \beta_k)\theta_k`.

:math:`\beta` is constant, or follows the power profile :math:`\beta_k = (1 - 1/k)^{\gamma + 1}` of Karras et al. 2024
(EDM2, section 3.1), whose weight on step i of k is proportional to :math:`i^\gamma` and whose width is a fixed fraction
:math:`\sigma_{rel}` of training. Averages with a power profile can be mixed into others after training.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sigma_rel_to_gamma(sigma_rel: float) -> float:
    r"""Exponent :math:`\gamma` of the power profile of relative width `sigma_rel` (EDM2, algorithm 2).

    Solves :math:`(\gamma + 2)^2(\gamma + 3)\,\sigma_{rel}^2 = \gamma + 1` for its largest root.

    Raises:
        ValueError: `sigma_rel` not in (0, 0.2886).
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel = {sigma_rel}; a power profile needs 0 < sigma_rel < {12**-0.5:.4f}")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class EMA:
    """An average of weights over training.

    Args:
        weights: by name, those to start from, which are copied.
        decay: constant decay in (0, 1).
        sigma_rel: instead, the relative width of a power profile.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float | None = None, sigma_rel: float | None = None):
        if (decay is None) == (sigma_rel is None):
            raise ValueError("give either decay or sigma_rel")
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"decay = {decay}; need 0 < decay < 1")
        self.decay = decay
        self.gamma = None if sigma_rel is None else sigma_rel_to_gamma(sigma_rel)
        self.weights = {name: w.detach().clone() for name, w in weights.items()}
        self._own = list(self.weights.values())

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], step: int) -> None:
        """Take in the weights after `step` (counted from 1)."""
        beta = self.decay if self.gamma is None else (1 - 1 / step) ** (self.gamma + 1)
        torch._foreach_lerp_(self._own, [weights[name] for name in self.weights], 1 - beta)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])


def _profile_dot(step_a, gamma_a, step_b, gamma_b):
    """Inner products of power profiles ending at two steps (EDM2, eq. 154, `p_dot_p`)."""
    ratio = step_a / step_b
    exponent = np.where(step_a < step_b, gamma_b, -gamma_a)
    top = np.maximum(step_a, step_b)
    number = (gamma_a + 1) * (gamma_b + 1) * ratio**exponent
    return number / ((gamma_a + gamma_b + 1) * top)


def reconstruct_ema(
    snapshots: Sequence[tuple[int, float, dict[str, Tensor]]], step: int, sigma_rel: float
) -> dict[str, Tensor]:
    r"""Post-hoc EMA: the power-profile average that training did not keep, as a mixture of those it kept.

    Solves :math:`A x = b` with the profiles' inner products: the least-squares fit of the wanted profile
    (Karras et al. 2024, section 3.2 and algorithm 3).

    Args:
        snapshots: (step, sigma_rel, weights) of stored averages; two widths at several steps are enough.
        step: training step at which the wanted average ends.
        sigma_rel: its width.

    Raises:
        ValueError: fewer than 2 snapshots, or all of them after `step`.
    """
    if len(snapshots) < 2:
        raise ValueError(f"{len(snapshots)} snapshots; a reconstruction needs at least 2")
    if min(s[0] for s in snapshots) > step:
        raise ValueError(f"every snapshot is later than step {step}; store some before it")
    steps = np.array([s[0] for s in snapshots], dtype=np.float64)
    gammas = np.array([sigma_rel_to_gamma(s[1]) for s in snapshots])
    gram = _profile_dot(steps[:, None], gammas[:, None], steps, gammas)
    wanted = _profile_dot(steps, gammas, np.float64(step), sigma_rel_to_gamma(sigma_rel))
    mix = np.linalg.lstsq(gram, wanted, rcond=None)[0]
    return {
        name: sum(float(c) * s[2][name].double() for c, s in zip(mix, snapshots, strict=True)).to(weight.dtype)
        for name, weight in snapshots[0][2].items()
    }
