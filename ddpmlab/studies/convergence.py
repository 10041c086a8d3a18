"""What can each size reach? Every network at budgets where three times the training hardly moves its EMD."""

from collections.abc import Iterator

from ddpmlab.lab import Run, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, register


@register
def convergence(
    hidden: list[list[int]],
    trainings: list[tuple[str, int, float, list[int]]],
    n_seeds: int,
    exact_seeds: int,
    exact_samples: int,
) -> Iterator[Run]:
    """Annealed trainings (law, network, learning rate, budgets), and the exact denoiser of each law."""
    metrics = ("emd_128", "kl")
    first = {}
    for law, size, rate, budgets in trainings:
        network = {"name": "mlp", "hidden": hidden[size - 1]}
        runs = []
        for n in budgets:
            config = recipes.homework(law, network=network, training=recipes.annealed(n, rate), metrics=metrics)
            factors = {"model": f"model={size}", "rate": rate, "steps": n}
            runs.append(Run(f"model={size}, rate {rate:g}, {n} steps", config, None, factors))
        first.setdefault(law, runs[0].config)
        yield from over_seeds(runs, range(n_seeds))
    for config in first.values():
        yield from over_seeds([Run(EXACT, limit(config, "exact", exact_samples))], range(exact_seeds))
