"""Does training longer help? One training per seed and law, its weights kept at each number of epochs."""

from collections.abc import Iterator

from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register


@register
def epochs(
    epochs: list[float], n_seeds: int, exact_seeds: int, exact_samples: int, fine: str = "energy_distance"
) -> Iterator[Run]:
    """Model 3 after each number of epochs, and the exact denoiser in its place."""
    training = Training(epochs=max(epochs), keep_epochs=tuple(epochs))
    metrics = tuple(dict.fromkeys(["emd_128", fine, "kl", "nll_gap", "nll_gap_train"]))
    for law in HOMEWORK_LAWS:
        config = recipes.homework(law, training=training, metrics=metrics)
        n = config.data.n_train
        runs = [Run(f"epochs={e:g}", config, training.step_of(e, n), {"epochs": e}) for e in epochs]
        yield from over_seeds(runs, range(n_seeds))
        yield from over_seeds([Run(EXACT, limit(config, "exact", exact_samples))], range(exact_seeds))
