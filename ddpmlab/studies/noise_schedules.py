"""Which noise schedule? The report's five as published and repaired, settled, and its grid of lbeta and ubeta."""

from collections.abc import Iterator
from functools import partial

from ddpmlab import schedules
from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register

PUBLISHED = ("linear", "sech", "cosine", "scaled_linear", "sigmoid")


def parts(settled: list[str], raised: list[str]) -> dict[str, dict]:
    """Schedules of the settled trainings; a dagger marks those whose ubeta is raised until they end at noise."""
    return {name: {"name": name} for name in settled} | {f"{name}†": schedules.ending_at(0.01, name) for name in raised}


@register
def noise_schedules(
    epochs: int,
    predicting_v: list[str],
    last_beta: float,
    settled: list[str],
    raised: list[str],
    settled_steps: int,
    grid_lbeta: list[float],
    grid_ubeta: list[float],
    pairs: list[tuple[float, float]],
    in_nats: list[str],
    exact_samples: int,
    n_seeds: int,
    n_grid_seeds: int,
    n_samples: int = 5_000,
    fine: str = "energy_distance",
    nll: str = "course_nll",
) -> Iterator[Run]:
    """Every schedule as published, some predicting v, the cosine with a smaller last beta, the settled, pairs, a grid.

    Args:
        epochs: of all trainings but the settled ones.
        predicting_v: schedules trained so to predict v as well.
        last_beta: the cosine's betas are clipped here instead of at 0.999.
        settled, raised, settled_steps: see `parts`, and optimiser steps of their annealed training.
        grid_lbeta, grid_ubeta: the map of the surface's EMD.
        pairs: (lbeta, ubeta) on the surface with all seeds and the exact denoiser: the report's three, and others that
            part the first beta from the width.
        in_nats: laws whose divergences are computed.
        exact_samples: points of the exact denoiser, one seed.
        n_seeds, n_grid_seeds: of every network, and of a cell of the grid.
        n_samples: points of every network.
        fine: a score that resolves what `emd_128` does not.
        nll: the course's negative log-likelihood, at the size that is wanted.
    """
    homework = partial(recipes.homework, n_samples=n_samples)
    metrics = tuple(dict.fromkeys(["emd_128", fine]))
    published = Training(epochs=epochs)

    def betas(lbeta: float, ubeta: float) -> dict:
        return {"name": "linear", "lbeta": lbeta, "ubeta": ubeta}

    def perfect(run: Run) -> Run:
        factors = {**run.factors, "kind": f"{run.factors['kind']}, {EXACT}"}
        return Run(f"{run.variant}, {EXACT}", limit(run.config, "exact", exact_samples), None, factors)

    for law in HOMEWORK_LAWS:
        runs, held = [], []
        nats = ("kl", "chain_kl") if law in in_nats else ()
        for name in PUBLISHED:
            config = homework(
                law, schedule={"name": name}, training=published, metrics=(*metrics, nll, *nats)
            )  # fmt: skip
            held.append(Run(f"schedule={name}", config, None, {"schedule": name, "kind": "as published"}))
        for name in predicting_v:
            config = homework(
                law, schedule={"name": name}, parameterisation="v", training=published, metrics=(*metrics, *nats)
            )  # fmt: skip
            runs.append(Run(f"schedule={name}, predicting v", config, None, {"schedule": name, "kind": "predicting v"}))
        config = homework(
            law, schedule={"name": "cosine", "max_beta": last_beta}, training=published, metrics=(*metrics, *nats)
        )  # fmt: skip
        factors = {"schedule": "cosine", "kind": "smaller last beta"}
        held.append(Run("schedule=cosine, smaller last beta", config, None, factors))
        for name, part in parts(settled, raised).items():
            config = homework(
                law, schedule=part, parameterisation="v", training=recipes.annealed(settled_steps),
                metrics=(*metrics, *nats),
            )  # fmt: skip
            runs.append(Run(f"schedule={name}, settled", config, None, {"schedule": name, "kind": "settled"}))
        for lbeta, ubeta in pairs if law == "sin_5_5" else ():
            config = homework(law, schedule=betas(lbeta, ubeta), training=published)
            factors = {"kind": "pair", "lbeta": lbeta, "ubeta": ubeta}
            held.append(Run(f"pair lbeta={lbeta:g};ubeta={ubeta:g}", config, None, factors))
        grid = [
            Run(
                f"lbeta={lbeta:g};ubeta={ubeta:g}",
                homework(law, schedule=betas(lbeta, ubeta), training=published), None,
                {"kind": "grid", "lbeta": lbeta, "ubeta": ubeta},
            )
            for lbeta in (grid_lbeta if law == "sin_5_5" else ())
            for ubeta in grid_ubeta
        ]  # fmt: skip
        yield from over_seeds([*held, *runs], range(n_seeds))
        yield from over_seeds(grid, range(n_grid_seeds))
        yield from map(perfect, held)
