"""Tuned recipes: whole configs that a study found and others build upon."""

from dataclasses import fields
from typing import Any

from ddpmlab.experiment import Experiment, Training

_TWO_MOONS: dict[str, Any] = {
    "law": "two_moons",
    "schedule": {"name": "ve", "sigma_min": 0.011, "sigma_max": 8.0, "rho": 7.0},
    "network": {
        "name": "residual_mlp",
        "width": 64,
        "n_blocks": 2,
        "activation": "gelu",
        "time": "fourier",
        "time_features": 16,
        "time_layers": 0,
    },
    "parameterisation": "edm",
    "training": {
        "batch_size": 512,
        "learning_rate": 8e-3,
        "decay": "cosine",
        "weighting": "edm",
        "times": "log-normal",
        "log_normal": (-2.1, 1.5),
    },
    "sampler": {"name": "dpmpp_2m", "n_steps": 20},
}


def two_moons(n_steps: int, **changes: Any) -> Experiment:
    """The recipe for the two moons: 19,778 parameters, 20 network evaluations a sample.

    EDM preconditioning and log-normal noise levels at a location of our own (Karras et al. 2022, table 1),
    DPM-Solver++(2M) (Lu et al. 2022); the book measures what each part is worth.

    Args:
        n_steps: optimiser steps; the book's longest training has 16,000.
        changes: options of `Experiment` or of its `Training` to set instead; `network` is merged into the recipe's.

    Raises:
        ValueError: an option that neither has, or one out of range.
    """
    of_training = {field.name for field in fields(Training)}
    unknown = set(changes) - of_training - {field.name for field in fields(Experiment)}
    if unknown:
        raise ValueError(f"unknown options {sorted(unknown)}; see Experiment and Training for theirs")
    training = {name: changes.pop(name) for name in of_training & set(changes)}
    network = _TWO_MOONS["network"] | changes.pop("network", {})
    training = Training(**{"n_steps": n_steps, "warmup": min(100, n_steps), **_TWO_MOONS["training"], **training})
    return Experiment(**{**_TWO_MOONS, "network": network, "training": training, **changes})
