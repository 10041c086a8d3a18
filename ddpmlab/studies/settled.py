"""How good can it get? The homework's laws by the standard recipe of the literature."""

from collections.abc import Iterator

from ddpmlab.lab import Experiment, Run, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register

NETWORKS = {
    "sin_5_5": {"name": "residual_mlp", "n_blocks": 4, "fourier_features": 128, "fourier_scale": 0.7},
    "helix": {"name": "residual_mlp", "width": 96},
}
RATES = {"sin_5_5": 2e-3, "helix": 3e-3}


def config(
    law: str, n_steps: int, n_points: int | None, fine: str = "energy_distance", n_samples: int = 5_000
) -> Experiment:
    """The recipe at a budget, on `n_points` drawn afresh or on the training split."""
    training = recipes.annealed(
        n_steps, RATES[law], n_points=n_points, weighting="edm", times="log-normal", log_normal=(-1.8, 1.4)
    )  # fmt: skip
    return Experiment(
        law,
        schedule={"name": "ve", "sigma_min": 0.005, "sigma_max": 20.0},
        network=NETWORKS[law] | {"time": "fourier"},
        parameterisation="edm",
        training=training,
        sampler={"name": "dpmpp_2m", "n_steps": 40},
        metrics=tuple(dict.fromkeys(["emd_128", fine, "kl"])),
        n_samples=n_samples,
    )


@register
def settled(
    budgets: dict[str, list[int]],
    settled_steps: dict[str, int],
    n_points: int,
    n_seeds: int,
    n_trend_seeds: int,
    exact_seeds: int,
    exact_samples: int,
    n_samples: int = 5_000,
    fine: str = "energy_distance",
) -> Iterator[Run]:
    """The trend over budgets with few seeds, the chosen budget with all, and the exact denoiser.

    Args:
        budgets: law -> optimiser steps to try on points drawn afresh.
        settled_steps: law -> the chosen one of them, at which the training split is tried too.
        n_points: how many points are drawn afresh.
        n_seeds: of the chosen budget on points drawn afresh.
        n_trend_seeds: of all other trainings.
        exact_seeds: of the exact denoiser.
        exact_samples: points of the exact denoiser.
        n_samples: points of every network.
        fine: a score that resolves what `emd_128` does not.
    """
    for law in HOMEWORK_LAWS:
        best = settled_steps[law]
        for source, points in (("drawn afresh", n_points), ("training split", None)):
            for n in budgets[law]:
                if points or n == best:
                    part, factors = config(law, n, points, fine, n_samples), {"steps": n, "points": source}
                    run = Run(f"{n} steps, {source}", part, None, factors)
                    yield from over_seeds([run], range(n_seeds if points and n == best else n_trend_seeds))
        perfect = limit(config(law, best, n_points, fine, n_samples), "exact", exact_samples)
        yield from over_seeds([Run(EXACT, perfect)], range(exact_seeds))
