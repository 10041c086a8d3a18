"""What perfect training reads: the exact denoiser, under the same schedule, by the same sampler, scored the same way.

Real against real is the floor of a score; a chain that stops short of noise, or takes too few steps, does not reach it
even with the exact denoiser. What lies between a trained network and this limit is the network's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ddpmlab import data, samplers, schedules
from ddpmlab.denoisers import ExactDenoiser
from ddpmlab.experiment import COLUMNS, SAMPLE_SCORES, SCORES, Experiment, build, calibrated, remembered, sample_scores
from ddpmlab.workers import pool

EXACT, PERFECT = "exact denoiser", "perfect sampler"
_LAW_SEED = 3_000_003


def _scores(
    law: str,
    n: int,
    names: list[str],
    seed: int,
    schedule: Mapping[str, Any] | None = None,
    sampler: Mapping[str, Any] | None = None,
):
    """Scores of `n` samples of the exact denoiser, or without a sampler of the law itself: a table of one row."""
    reference = data.make(law).standardised()
    if sampler is None:
        points = reference.sample(n, _LAW_SEED + seed)
    else:
        exact = ExactDenoiser(reference, build(schedules.SCHEDULES, schedule))
        points = build(samplers.SAMPLERS, sampler).sample(exact, n, seed=seed)
    return pd.DataFrame([sample_scores(law, points, names, seed)])


def _limit(
    study: str, config: Experiment, seeds: Iterable[int], variant: str, n_samples: int | None, **parts
) -> pd.DataFrame:
    n, known = n_samples or config.n_samples, {**SCORES, **SAMPLE_SCORES}
    names = [name for name in config.metrics if name in known and known[name].n <= n]
    rows = []
    with pool() as executor:
        jobs = {
            seed: executor.submit(
                remembered, EXACT if parts else PERFECT, _scores, law=config.law, n=n, names=names, seed=seed, **parts
            )
            for seed in (seeds if names else ())
        }
        for seed, job in jobs.items():
            values = job.result().iloc[0]
            for name in (name for name in values.index if not name.endswith(" p")):
                size, bounds = None, (None, None, None)
                if name in SCORES:
                    found, size = calibrated(config.law, name), SCORES[name].n
                    bounds = found.floor_mean, found.floor_sd, found.ceiling_mean
                p_value = values.get(f"{name} p")
                rows.append((study, config.law, variant, seed, name, size, values[name], *bounds, p_value))
    return pd.DataFrame(rows, columns=COLUMNS)


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
    return _limit(study, config, seeds, variant, n_samples, schedule=config.schedule, sampler=config.sampler)


def law_limit(study: str, config: Experiment, seeds: Iterable[int], n_samples: int | None = None) -> pd.DataFrame:
    """The tidy table of a perfect sampler: fresh points of the law in place of a config's samples; cached.

    The arguments are those of `exact_limit`; only the config's law and metrics count.
    """
    return _limit(study, config, seeds, PERFECT, n_samples)
