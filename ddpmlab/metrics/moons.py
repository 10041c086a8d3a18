r"""What only the two moons have: arcs with a thickness, and a report with conventions of its own.

Thickness is the root mean square distance to the nearer arc, in the law's own units, over that of the law itself:

.. math:: \sqrt{E\,\mathrm{dist}(X, \text{arcs})^2} \,/\, \sqrt{E\,\mathrm{dist}(X_{law}, \text{arcs})^2} .

It is 1 for the law. For n points of the law its standard deviation is about :math:`1/\sqrt{2n}`.
"""

from functools import cache

import torch
from sklearn.datasets import make_moons
from torch import Tensor

from ddpmlab import data
from ddpmlab.metrics.calibration import DIVERGENT
from ddpmlab.metrics.distances import check_samples, energy_distance, mmd2, sliced_wasserstein
from ddpmlab.metrics.two_sample import c2st

_LAW_POINTS = 4_000_000  # gives the law's own thickness to 0.04%


def _rms_distance(own: Tensor) -> float:
    return float(data.make("two_moons").distance_to_arcs(own).square().mean().sqrt())


@cache
def law_thickness() -> float:
    """Root mean square distance of the law's points to the nearer arc, in its own units."""
    return _rms_distance(data.make("two_moons").sample(_LAW_POINTS, seed=0))


@cache
def _standardised():
    return data.make("two_moons").standardised()


def thickness(x: Tensor) -> float:
    """Thickness of the arcs of generated points over the law's.

    Args:
        x: points `(n, 2)` in standardised units. Divergent ones (see `calibration.DIVERGENT`) are left out: one of them
            would decide the mean, and `divergent_share` counts them.

    Raises:
        ValueError: bad samples, or every point is divergent.
    """
    x = check_samples(x, torch.zeros(2, 2, device=x.device))[0]
    kept = x[(x.abs() <= DIVERGENT).all(1)]
    if len(kept) == 0:
        raise ValueError(
            f"all {len(x)} points lie beyond {DIVERGENT:g} standard deviations; there is no arc to measure"
        )
    return _rms_distance(_standardised().to_own_units(kept)) / law_thickness()


@cache
def report_sample(n: int = 5_000) -> Tensor:
    """The real points that the two-moons report scores against, `(n, 2)`, in the units of `Law.standardised`.

    The report standardises them by their own moments, here as everywhere it is the training split's.
    """
    points, _ = make_moons(n, noise=0.05, random_state=42)
    return (torch.from_numpy(points) - _standardised().mean) / _standardised().scale


def report_scores(x: Tensor) -> dict[str, float]:
    """The five columns of the two-moons report for generated points `(n, 2)`, by its conventions and its real points.

    Returns:
        `mmd_published`, `energy_distance_published`, `sliced_wasserstein_published`, `c2st_roc_published` and
        `c2st_accuracy_published`. The classifier's folds share their seed with the real points, as in the report.
    """
    real = report_sample().to(x.device)
    test = c2st(x, real, convention="two-moons-report")
    return {
        "mmd_published": mmd2(x, real, "two-moons-report"),
        "energy_distance_published": energy_distance(x, real, "two-moons-report"),
        "sliced_wasserstein_published": sliced_wasserstein(x, real),
        "c2st_roc_published": test.auc,
        "c2st_accuracy_published": test.accuracy,
    }
