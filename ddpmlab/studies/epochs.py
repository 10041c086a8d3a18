"""Does training longer help? One training per seed and law, its weights kept at each number of epochs."""

from collections.abc import Iterator

from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register
from ddpmlab.studies.diffusion_steps import BETAS


@register
def epochs(
    epochs: list[float],
    n_seeds: int,
    exact_seeds: int,
    exact_samples: int,
    other_steps: list[int],
    other_schedules: list[str],
    other_epochs: list[float],
    n_other_seeds: int,
    n_samples: int = 5_000,
    fine: str = "energy_distance",
) -> Iterator[Run]:
    """Model 3 after each number of epochs, the exact denoiser in its place, and other chains trained for longer too.

    Args:
        epochs: passes after which model 3 is sampled; its training ends at the largest.
        n_seeds: of model 3.
        exact_seeds: of the exact denoiser.
        exact_samples: points of the exact denoiser.
        other_steps: lengths T of the other linear chains.
        other_schedules: names of the other schedules.
        other_epochs: passes after which these are sampled.
        n_other_seeds: of these.
        n_samples: points of every network.
        fine: a score that resolves what `emd_128` does not.
    """
    training = Training(epochs=max(epochs), keep_epochs=tuple(epochs))
    longer = Training(epochs=max(other_epochs), keep_epochs=tuple(other_epochs))
    metrics = tuple(dict.fromkeys(["emd_128", fine, "kl", "chain_kl", "nll_gap", "nll_gap_train"]))
    others = {f"T={n}": {"name": "linear", "n_steps": n, **BETAS} for n in other_steps}
    others |= {f"schedule={name}": {"name": name} for name in other_schedules}
    for law in HOMEWORK_LAWS:
        config = recipes.homework(law, training=training, metrics=metrics, n_samples=n_samples)
        n = config.data.n_train
        runs = [Run(f"epochs={e:g}", config, training.step_of(e, n), {"epochs": e}) for e in epochs]
        yield from over_seeds(runs, range(n_seeds))
        yield from over_seeds([Run(EXACT, limit(config, "exact", exact_samples))], range(exact_seeds))
        runs = []
        for name, schedule in others.items():
            config = recipes.homework(law, schedule=schedule, training=longer, n_samples=n_samples)
            for e in other_epochs:
                step, factors = longer.step_of(e, n), {"epochs": e, "other": name}
                runs.append(Run(f"{name}, epochs={e:g}", config, step, factors))
        yield from over_seeds(runs, range(n_other_seeds))
