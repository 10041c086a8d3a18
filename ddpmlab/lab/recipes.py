"""Tuned recipes: whole configs that a study found and others build upon."""

from dataclasses import fields
from typing import Any

from ddpmlab.lab.config import Experiment, Training

_TWO_MOONS: dict[str, Any] = {
    "dataset": "two_moons",
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
        "warmup": 100,
        "weighting": "edm",
        "times": "log-normal",
        "log_normal": (-2.1, 1.5),
    },
    "sampler": {"name": "dpmpp_2m", "n_steps": 20},
}


_HOMEWORK: dict[str, Any] = {
    "schedule": {"name": "linear", "n_steps": 50, "lbeta": 1e-5, "ubeta": 1.28e-2},
    "network": {"name": "mlp", "hidden": [64, 128, 128]},
    "sampler": {"name": "ddpm"},
}


def homework(dataset: str, **changes: Any) -> Experiment:
    """The homework's hyperparameters: model 3, T = 50, its linear schedule, ancestral sampling, Adam at 1e-3.

    Args:
        dataset: its surface `sin_5_5`, its `helix`, or another.
        changes: options of `Experiment` to set instead.
    """
    return Experiment(dataset, **_HOMEWORK | changes)


def annealed(n_steps: int, learning_rate: float = 2e-3, **changes: Any) -> Training:
    """Training to rest: batches of 256, a short warm-up, cosine decay to zero."""
    options = {"batch_size": 256, "learning_rate": learning_rate, "decay": "cosine", "warmup": min(100, n_steps)}
    return Training(n_steps=n_steps, **options | changes)


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
    if "network" in changes:
        changes["network"] = _TWO_MOONS["network"] | changes["network"]
    return _changed(_TWO_MOONS, n_steps, changes)


def _changed(recipe: dict[str, Any], n_steps: int, changes: dict[str, Any]) -> Experiment:
    of_training = {field.name for field in fields(Training)}
    unknown = set(changes) - of_training - {field.name for field in fields(Experiment)}
    if unknown:
        raise ValueError(f"unknown options {sorted(unknown)}; see Experiment and Training for theirs")
    own = {name: changes.pop(name) for name in of_training & set(changes)}
    training = {"n_steps": n_steps, **recipe["training"], **own}
    if "warmup" not in own:
        training["warmup"] = min(training["warmup"], training["n_steps"])
    return Experiment(**{**recipe, "training": Training(**training), **changes})


_FASHION_MNIST: dict[str, Any] = {
    "dataset": "fashion_mnist",
    "schedule": {"name": "ve", "sigma_min": 0.004, "sigma_max": 80.0, "rho": 7.0},
    "network": {"name": "unet", "widths": [48, 96], "refine": 16, "n_classes": 10},
    "parameterisation": "edm",
    "training": {
        "batch_size": 128,
        "learning_rate": 1.5e-3,
        "decay": "cosine",
        "warmup": 200,
        "grad_clip": 1.0,
        "weighting": "edm",
        "times": "log-normal",
        "log_normal": (-0.5, 1.3),
        "ema_sigma_rel": (0.05, 0.1),
        "label_dropout": 0.1,
        "flip": (0, 1, 2, 3, 4, 6, 8),
        "precision": "bf16",
    },
    "sampler": {"name": "dpmpp_2m", "n_steps": 20},
    "n_samples": 10_000,
    "guidance": 1.0,
    "average": True,
    "metrics": (),
}


def fashion_mnist(n_steps: int, **changes: Any) -> Experiment:
    """The U-Net for pictures: EDM preconditioning, log-normal noise levels, averaged weights, classes dropped at times.

    Shoes (classes 5, 7 and 9) face one way and are never mirrored.

    Args:
        n_steps: optimiser steps of 128 pictures.
        changes: options of `Experiment` or of its `Training` to set instead; `network` replaces the recipe's.

    Raises:
        ValueError: an option that neither has, or one out of range.
    """
    return _changed(_FASHION_MNIST, n_steps, changes)
