"""Which noise levels should it train on? The recipe with its levels, its schedule and its warm-up changed."""

import math
from collections.abc import Iterator

from ddpmlab import schedules
from ddpmlab.lab import Experiment, Run, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, register

FIRST, USUAL = "the recipe", "cosine, trailing spacing"


def configs(n_steps: int, n_samples: int) -> dict[str, Experiment]:
    """The recipe and its changes by name."""
    standard = recipes.two_moons(n_steps)
    even = {**standard.sampler, "spacing": "linspace"}
    low, high = standard.schedule["sigma_min"], standard.schedule["sigma_max"]
    cosine = {"name": "vp_cosine", "terminal_snr": high**-2}
    cosine["t_min"] = float(schedules.SCHEDULES.build(cosine).time_of(low))
    others = {
        "cosine, same ends": cosine,
        "linear, T = 1000": {"name": "linear", "n_steps": 1000, "lbeta": 1e-4, "ubeta": 2e-2},
        "VE, 0.002 to 80": {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    }
    changes = {
        FIRST: {},
        "levels drawn independently": {"times": "log-normal, independent"},
        "EDM's numbers as printed": {"log_normal": (-1.2, 1.2)},
        "EDM's numbers, shifted": {"log_normal": (-1.2 + math.log(2), 1.2)},
        "levels uniform in time": {"times": "uniform"},
        "no warm-up": {"warmup": 0},
        **{name: {"schedule": part} for name, part in others.items()},
        USUAL: {"schedule": cosine, "sampler": {**even, "spacing": "trailing"}},
        **{f"{name}, uniform in time": {"schedule": part, "times": "uniform"} for name, part in others.items()},
    }
    shared = {"n_samples": n_samples, "metrics": ("thickness",), "sampler": even}
    return {name: recipes.two_moons(n_steps, **shared | change) for name, change in changes.items()}


@register
def noise_levels(n_steps: int, n_samples: int, n_seeds: int, exact_seeds: int) -> Iterator[Run]:
    """Every change, and the exact denoiser under each one's schedule and sampler."""
    made = configs(n_steps, n_samples)
    yield from over_seeds([Run(name, config) for name, config in made.items()], range(n_seeds))
    perfect = [Run(f"{EXACT}: {name}", limit(config), None, {"of": name}) for name, config in made.items()]
    yield from over_seeds(perfect, range(exact_seeds))
