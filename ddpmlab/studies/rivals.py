"""Rivals: what costs nothing, and diffusion, in nats on the same points; computed as tables (`lab.remembered`)."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ddpmlab import data, schedules
from ddpmlab.denoisers import ExactDenoiser
from ddpmlab.lab import COLUMNS, remembered
from ddpmlab.lab.rivals import divergence, one_thread, rivals_table
from ddpmlab.metrics.calibration import fresh_points
from ddpmlab.metrics.likelihood import log_likelihood

KERNEL, MIXTURE, BEST, MEAN = "kernel density", "mixture, by BIC", "mixture, best", "mixtures, mean"
FLOW, RECTIFIED, RECIPE, TUNED = "spline flow", "rectified flow", "diffusion", "tuned diffusion"
FINE = {"schedule": {"name": "ve", "sigma_min": 0.003, "sigma_max": 8.0, "rho": 7.0}}
"""The recipe's schedule down to a noise at which the blurred law and the law are one, for densities."""
CHOOSING_SEED = 100


def fits(dataset: str, name: str, seeds: Iterable[int], n: int, **options) -> pd.DataFrame:
    """`rivals_table`, each seed remembered alone."""
    found = [remembered(rivals_table, dataset=dataset, name=name, seeds=[s], n=n, **options) for s in seeds]
    return pd.concat(found, ignore_index=True)


def mixtures(dataset: str, components: Iterable[int], n: int, tolerance: float) -> pd.DataFrame:
    """Mixtures of several sizes at the choosing seed: columns of `rivals_table`, `components` and `bic`."""
    found = []
    for k in components:
        rows = fits(dataset, "Gaussian mixture", [CHOOSING_SEED], n, components=[k], tolerance=tolerance)
        bic = json.loads(rows["choice"].iloc[0])["bic"][str(k)]
        found.append(rows.assign(components=k, bic=bic))
    return pd.concat(found, ignore_index=True)


def tuning(dataset: str, candidates: dict[str, dict[str, Any]], n: int) -> pd.DataFrame:
    """Each candidate trained at the choosing seed: columns of `rivals_table`, and `candidate`."""
    found = [
        fits(dataset, "diffusion", [CHOOSING_SEED], n, **FINE, **options).assign(candidate=name)
        for name, options in candidates.items()
    ]
    return pd.concat(found, ignore_index=True)


def compared(
    dataset: str,
    seeds: Iterable[int],
    n: int,
    components: Iterable[int],
    tolerance: float,
    flow: dict[str, Any],
    n_steps: int,
    tuned: dict[str, Any] | None = None,
    kernel: dict[str, Any] | None = None,
    starts: int = 5,
) -> pd.DataFrame:
    """All models of one law on the same points: columns of `rivals_table`, and `model`.

    The mixtures are that of the least BIC and that of the least divergence, both found at the choosing seed, and the
    mean of `starts` of the latter.

    Args:
        dataset: name of the law.
        seeds: of fits and of fresh points.
        n: fresh points.
        components, tolerance: of `mixtures`.
        flow: options of the spline flow.
        n_steps: of the recipe and of rectified flow.
        tuned: options of the tuned recipe, if there is one.
        kernel: options of the kernel density.
        starts: mixtures whose mean is taken.
    """
    grid = mixtures(dataset, components, n, tolerance)
    mixture, best = {"tolerance": tolerance}, int(grid.components[grid.kl.idxmin()])
    models = {
        KERNEL: ("kernel density", kernel or {}),
        MIXTURE: ("Gaussian mixture", mixture | {"components": [int(grid.components[grid.bic.idxmin()])]}),
        BEST: ("Gaussian mixture", mixture | {"components": [best]}),
        MEAN: ("Gaussian mixture", mixture | {"components": [best], "starts": starts}),
        FLOW: ("normalising flow", flow),
        RECTIFIED: ("rectified flow", {"n_steps": n_steps}),
        RECIPE: ("diffusion", {"n_steps": n_steps} | FINE),
    }
    if tuned is not None:
        models[TUNED] = ("diffusion", FINE | tuned)
    found = [fits(dataset, name, seeds, n, **options).assign(model=model) for model, (name, options) in models.items()]
    return pd.concat(found, ignore_index=True)


def control(dataset: str, n: int, seed: int, tolerance: float = 1e-5) -> pd.DataFrame:
    """The law's exact denoiser scored as a network is: what the ODE's solver and the smallest noise level cost."""
    law = data.make(dataset).standardised()
    with one_thread():
        x = fresh_points(law, n, seed)
        exact = ExactDenoiser(law, schedules.SCHEDULES.build(FINE["schedule"]))
        found = divergence(law.log_prob(x), log_likelihood(exact, x, tolerance))
    return pd.DataFrame([{"dataset": dataset, "kl": found.value, "low": found.low, "high": found.high}])


def tidy(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """By the results contract: `kl_exact` (nats, on fresh points), `kl` (path), seconds and parameters."""
    names = {
        "kl": "kl_exact",
        "path_kl": "kl",
        "final_seconds": "seconds_train",
        "seconds_density": "seconds_density",
        "parameters": "parameters",
    }
    rows = table.rename(columns={"model": "variant"}).drop(columns=["low", "high", "name", "seconds"])
    rows = rows.melt(["dataset", "variant", "seed", "choice"], list(names), "metric").dropna(subset="value")
    empty = dict.fromkeys(("floor_mean", "floor_sd", "ceiling", "p_value"), np.nan)
    rows = rows.assign(study="rivals", n=n, metric=rows["metric"].map(names), **empty)
    return rows[[*COLUMNS, "choice"]].reset_index(drop=True)
