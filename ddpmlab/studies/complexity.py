"""How complex should the model be? The report's networks and larger ones, as published, with dropout, and at rest."""

from collections.abc import Iterator

from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register


@register
def complexity(
    epochs: int,
    hidden: list[list[int]],
    dropouts: list[float],
    rests: list[tuple[str, int, float, list[int]]],
    n_seeds: int,
    n_few_seeds: int,
    exact_seeds: int,
    exact_samples: int,
    n_samples: int = 5_000,
) -> Iterator[Run]:
    """Each network as published, model 3 with dropout, each network in annealed trainings, and the exact denoiser.

    Args:
        epochs: of the published training.
        hidden: widths of model 1, 2, ...; the report's are the first three.
        dropouts: rates behind each hidden layer of model 3.
        rests: annealed trainings (law, number of the model, learning rate, budgets in optimiser steps).
        n_seeds: of the report's three networks as published.
        n_few_seeds: of everything else that is trained.
        exact_seeds, exact_samples: of the exact denoiser.
        n_samples: points of every network.
    """
    scored = {"metrics": ("emd_128", "kl", "chain_kl"), "n_samples": n_samples}
    published = Training(epochs=epochs)
    for law in HOMEWORK_LAWS:
        report, others = [], []
        for i, widths in enumerate(hidden, 1):
            network = {"name": "mlp", "hidden": widths}
            config = recipes.homework(law, network=network, training=published, **scored)
            factors = {"model": i, "dropout": 0.0, "budget": "published"}
            (report if i <= 3 else others).append(Run(f"model={i}", config, None, factors))
        for p in dropouts:
            network = {"name": "mlp", "hidden": hidden[2], "dropout": p}
            config = recipes.homework(law, network=network, training=published, **scored)
            factors = {"model": 3, "dropout": p, "budget": "published"}
            others.append(Run(f"model=3, dropout {p:g}", config, None, factors))
        for of, i, rate, budgets in rests:
            network = {"name": "mlp", "hidden": hidden[i - 1]}
            for n in budgets if of == law else ():
                training = recipes.annealed(n, rate)
                config = recipes.homework(law, network=network, training=training, **scored)
                factors = {"model": i, "dropout": 0.0, "budget": f"{n} steps", "rate": rate, "steps": n}
                others.append(Run(f"model={i}, {n} steps", config, None, factors))
        yield from over_seeds(report, range(n_seeds))
        yield from over_seeds(others, range(n_few_seeds))
        yield from over_seeds([Run(EXACT, limit(report[0].config, "exact", exact_samples))], range(exact_seeds))
