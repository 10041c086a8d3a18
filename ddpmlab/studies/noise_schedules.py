"""Which noise schedule? The report's five as published, predicting v, ending at noise, and its grid of lbeta, ubeta."""

from collections.abc import Iterator

from ddpmlab import schedules
from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register

PUBLISHED = ("linear", "sech", "cosine", "scaled_linear", "sigmoid")
REACHING = {
    "vp_cosine": {"name": "vp_cosine", "t_min": 0.005},
    "ve": {"name": "ve", "sigma_min": 0.005, "sigma_max": 20.0},
}
"""Continuous schedules that end at noise."""


def parts(settled: list[str], raised: list[str], continuous: list[str]) -> dict[str, dict]:
    """Schedules of the settled trainings; a dagger marks those whose ubeta is raised until they end at noise."""
    found = {name: {"name": name} for name in settled}
    found |= {f"{name}†": schedules.ending_at(0.01, name) for name in raised}
    return found | {name: REACHING[name] for name in continuous}


@register
def noise_schedules(
    epochs: int,
    settled_steps: int,
    settled: list[str],
    raised: list[str],
    continuous: list[str],
    grid_lbeta: list[float],
    grid_ubeta: list[float],
    pairs: list[tuple[float, float]],
    n_seeds: int,
    n_grid_seeds: int,
    exact_seeds: int,
    exact_samples: int,
    fine: str = "energy_distance",
) -> Iterator[Run]:
    """Every schedule as published, two of them predicting v, the settled ones, the grid, and the report's pairs."""
    metrics = tuple(dict.fromkeys(["emd_128", "course_nll", fine]))
    published, sampler = Training(epochs=epochs), {"name": "ddpm", "n_steps": 50}

    def betas(lbeta: float, ubeta: float) -> dict:
        return {"name": "linear", "lbeta": lbeta, "ubeta": ubeta}

    for law in HOMEWORK_LAWS:
        runs, grid, limits = [], [], []
        for name in PUBLISHED:
            scores = (*metrics, "kl") if name in settled else metrics  # exact posteriors of a schedule take seconds
            config = recipes.homework(law, schedule={"name": name}, training=published, metrics=scores)
            factors = {"schedule": name, "kind": "as published"}
            runs.append(Run(f"schedule={name}", config, None, factors))
            perfect = Run(
                f"schedule={name}, {EXACT}", limit(config, "exact", exact_samples), None, factors | {"kind": EXACT}
            )  # fmt: skip
            limits += over_seeds([perfect], range(exact_seeds))
        for name in ("linear", "cosine"):
            config = recipes.homework(
                law, schedule={"name": name}, parameterisation="v", training=published, metrics=metrics
            )  # fmt: skip
            runs.append(Run(f"schedule={name}, predicting v", config, None, {"schedule": name, "kind": "predicting v"}))
        for name, part in parts(settled, raised, continuous).items():
            config = recipes.homework(
                law, schedule=part, parameterisation="edm" if name == "ve" else "v",
                training=recipes.annealed(settled_steps), sampler=sampler, metrics=(*metrics, "kl"),
            )  # fmt: skip
            runs.append(Run(f"schedule={name}, settled", config, None, {"schedule": name, "kind": "settled"}))
        for lbeta in grid_lbeta:
            for ubeta in grid_ubeta:
                config = recipes.homework(law, schedule=betas(lbeta, ubeta), training=published)
                factors = {"kind": "grid", "lbeta": lbeta, "ubeta": ubeta}
                grid.append(Run(f"lbeta={lbeta:g};ubeta={ubeta:g}", config, None, factors))
        for lbeta, ubeta in pairs if law == "sin_5_5" else ():
            config = recipes.homework(law, schedule=betas(lbeta, ubeta), training=published)
            factors = {"kind": "pair", "lbeta": lbeta, "ubeta": ubeta}
            name = f"pair lbeta={lbeta:g};ubeta={ubeta:g}"
            runs.append(Run(name, config, None, factors))
            perfect = Run(
                f"{name}, {EXACT}", limit(config, "exact", exact_samples), None, factors | {"kind": f"pair, {EXACT}"}
            )  # fmt: skip
            limits += over_seeds([perfect], range(exact_seeds))
        yield from over_seeds(runs, range(n_seeds))
        yield from over_seeds(grid, range(n_grid_seeds))
        yield from limits
