"""Does training longer help? One training per seed and law, its weights kept at each number of epochs."""

from collections.abc import Iterator

from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import register

LAWS = ("sin_5_5", "helix")

@register
def epochs(
    epochs: list[float], n_seeds: int, exact_seeds: int, exact_samples: int, fine: str = "energy_distance"
) -> Iterator[Run]:
    """Model 3 after each number of epochs, and the exact denoiser in its place."""
    training = Training(epochs=max(epochs), keep_epochs=tuple(epochs))
    metrics = tuple(dict.fromkeys(["emd_128", fine, "kl", "nll_gap", "nll_gap_train"]))
    for law in LAWS:
        config = recipes.homework(law, training=training, metrics=metrics)
        runs = [
            Run(f"epochs={e}", config, training.step_of(e, config.data.n_train), {"epochs": e}) for e in epochs
        ]  # fmt: skip
        yield from over_seeds(runs, range(n_seeds))
        yield from over_seeds([Run("exact denoiser", limit(config, "exact", exact_samples))], range(exact_seeds))
