"""What perfect training reads: the exact denoiser, under the same schedule, by the same sampler, scored the same way.

Real against real is the floor of a score; a chain that stops short of noise, or takes too few steps, does not reach it
even with the exact denoiser. What lies between a trained network and this limit is the network's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ddpmlab import data, samplers, schedules
from ddpmlab.denoisers import ExactDenoiser
from ddpmlab.experiment import COLUMNS, SCORES, Experiment, build, calibrated, remembered, sample_scores
from ddpmlab.workers import pool

EXACT = "exact denoiser"


def _scores(law: str, schedule: Mapping[str, Any], sampler: Mapping[str, Any], n: int, names: list[str], seed: int):
    """Scores of `n` samples of the exact denoiser against the test split: a table of one row."""
    reference = data.make(law).standardised()
    test, exact = reference.split().test, ExactDenoiser(reference, build(schedules.SCHEDULES, schedule))
    points = build(samplers.SAMPLERS, sampler).sample(exact, n, seed=seed)
    return pd.DataFrame([sample_scores(points, test, names, seed)])


def exact_limit(
    study: str, config: Experiment, seeds: Iterable[int], variant: str = EXACT, n_samples: int | None = None
) -> pd.DataFrame:
    """The tidy table of a config with the exact denoiser in place of its trained network; cached.

    Args:
        study: name of the study, for the table.
        config: law, schedule, sampler and metrics count.
        seeds: of the sampler.
        variant: name of the rows.
        n_samples: how many points to draw; the config's if omitted. Scores that compare more are left out, and so are
            those of the denoiser itself.
    """
    n = n_samples or config.n_samples
    names = [name for name in config.metrics if name in SCORES and SCORES[name].n <= n]
    parts = {"law": config.law, "schedule": config.schedule, "sampler": config.sampler}
    rows = []
    with pool() as executor:
        jobs = {
            seed: executor.submit(remembered, EXACT, _scores, **parts, n=n, names=names, seed=seed)
            for seed in (seeds if names else ())
        }
        for seed, job in jobs.items():
            values = job.result().iloc[0]
            for name in names:
                bounds = calibrated(config.law, name)
                bounds = bounds.floor_mean, bounds.floor_sd, bounds.ceiling_mean
                p_value = values.get(f"{name} p")
                row = (study, config.law, variant, seed, name, SCORES[name].n, values[name], *bounds, p_value)
                rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)
