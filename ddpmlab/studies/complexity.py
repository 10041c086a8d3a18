"""How complex should the model be? The report's networks and larger ones, as published, annealed, with dropout."""

from collections.abc import Iterator

from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register


@register
def complexity(
    epochs: int,
    hidden: list[list[int]],
    dropouts: list[float],
    settled_steps: list[int],
    n_seeds: int,
    exact_seeds: int,
    exact_samples: int,
    fine: str = "energy_distance",
) -> Iterator[Run]:
    """Each network at each budget, model 3 with dropout, and the exact denoiser."""
    metrics = tuple(dict.fromkeys(["emd_128", fine, "kl"]))
    models = {f"model={i}": {"name": "mlp", "hidden": widths} for i, widths in enumerate(hidden, 1)}
    published = Training(epochs=epochs)
    for law in HOMEWORK_LAWS:
        runs = []
        for name, network in models.items():
            factors = {"model": name, "dropout": 0.0, "budget": "published"}
            config = recipes.homework(law, network=network, training=published, metrics=metrics)
            runs.append(Run(name, config, None, factors))
            for n in settled_steps:
                config = recipes.homework(law, network=network, training=recipes.annealed(n), metrics=metrics)
                runs.append(Run(f"{name}, annealed in {n} steps", config, None, factors | {"budget": f"{n} steps"}))
        for p in dropouts:
            network = models["model=3"] | {"dropout": p}
            config = recipes.homework(law, network=network, training=published, metrics=metrics)
            factors = {"model": "model=3", "dropout": p, "budget": "published"}
            runs.append(Run(f"model=3, dropout {p:g}", config, None, factors))
        yield from over_seeds(runs, range(n_seeds))
        yield from over_seeds([Run(EXACT, limit(runs[0].config, "exact", exact_samples))], range(exact_seeds))
