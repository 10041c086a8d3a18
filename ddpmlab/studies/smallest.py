"""Does the smallest network come to rest? One network, ever longer annealed trainings, many seeds."""

from collections.abc import Iterator
from dataclasses import replace

from ddpmlab.lab import Run, over_seeds, recipes
from ddpmlab.studies import register


@register
def smallest(
    law: str, hidden: list[int], learning_rate: float, steps: list[int], n_draws: int, n_seeds: int, fine: str
) -> Iterator[Run]:
    """One run per budget and seed, scored on the samples of the tables and, for the EMD, on `n_draws` times 128."""
    metrics = tuple(dict.fromkeys(["emd_128", fine, "kl"]))
    network = {"name": "mlp", "hidden": hidden}
    runs = []
    for n in steps:
        training = recipes.annealed(n, learning_rate)
        config = recipes.homework(law, network=network, training=training, metrics=metrics)
        many = replace(config, n_samples=128 * n_draws, metrics=("emd_128_parts",))
        runs += [Run(f"{n} steps", config, None, {"steps": n}), Run(f"{n} steps, many draws", many, None, {"steps": n})]
    yield from over_seeds(runs, range(n_seeds))
