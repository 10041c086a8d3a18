"""FashionMNIST: the straightforward approach, a network for pictures, and what each is worth."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from ddpmlab import data, samplers, schedules
from ddpmlab.denoisers import EmpiricalDenoiser, Guided
from ddpmlab.lab import Experiment, Run, Training, recipes, trained
from ddpmlab.lab.scores import SCORES
from ddpmlab.metrics import images
from ddpmlab.studies import register

UNET, GUIDED, HALF, MLP, TRANSFORMER = "U-Net", "U-Net, guided", "U-Net, half the width", "784-MLP", "transformer"
PUBLISHED, LARGER = "784-MLP as published", "784-MLP, T = 1000"
SOLVERS = ("ddim", "heun", "dpmpp_2m")
SIZES = {
    HALF: {"name": "unet", "widths": [32, 64], "refine": 16, "n_classes": 10},
    TRANSFORMER: {"name": "patch_transformer", "n_classes": 10},
    MLP: {
        "name": "residual_mlp", "width": 768, "n_blocks": 3, "time": "fourier", "time_layers": 2, "n_classes": 10
    },
}  # fmt: skip
"""Rivals under the same recipe, as name -> network."""


def straightforward(
    label: int | None, larger: bool, epochs: float, scores: tuple[str, ...], n: int, n_steps: int | None = None
) -> Experiment:
    """The homework's MLP on 784 pixels: model 3 with T = 50, or a larger one with T = 1000; of one class or of all.

    Args:
        label: the class, or None for all.
        larger: three hidden layers of 1,024 and T = 1000.
        epochs: passes over the pictures.
        scores: names of metrics.
        n: how many pictures to draw.
        n_steps: of ancestral sampling; all T if omitted.
    """
    dataset = {"name": "fashion_mnist"} | ({} if label is None else {"classes": [label]})
    network = {"name": "mlp", "hidden": [1024, 1024, 1024] if larger else [64, 128, 128]}
    schedule = {"name": "linear", "n_steps": 50, "lbeta": 1e-5, "ubeta": 1.28e-2}
    if larger:
        schedule = {"name": "linear", "n_steps": 1000, "lbeta": 1e-4, "ubeta": 2e-2}
    training = Training(epochs=epochs, batch_size=256 if larger else 1_024, learning_rate=1e-3)
    sampler = {"name": "ddpm"} | ({} if n_steps is None else {"n_steps": n_steps})
    return Experiment(dataset, schedule, network, training=training, sampler=sampler, n_samples=n, metrics=scores)


def unet(n_steps: int, keep_steps: list[int] | tuple[int, ...] = (), **changes) -> Experiment:
    """The network for pictures at a budget."""
    return recipes.fashion_mnist(n_steps, keep_steps=tuple(keep_steps), **changes)


@register
def fashion_mnist(
    weights: str | None,
    n_steps: int,
    keep_steps: list[int],
    rival_steps: dict[str, int],
    locations: list[float],
    location_steps: int,
    epochs: float,
    larger_epochs: float,
    larger_evaluations: int,
    n_samples: int,
    n_few: int,
    many_draws: list[int],
    chosen_guidance: float,
    n_draws: int,
    nfe: int,
    evaluations: list[int],
    guidances: list[float],
) -> Iterator[Run]:
    """The straightforward approach, rivals, the U-Net over training, evaluations and guidance.

    Args:
        weights: committed weights of the U-Net in place of its training, whose earlier steps are then not there.
        n_steps, keep_steps: of the U-Net's training.
        rival_steps: name of `SIZES` -> optimiser steps.
        locations, location_steps: means of the log noise level in training to compare in short runs of the network of
            half the width, and their optimiser steps.
        epochs, larger_epochs: of the homework's MLP and of the larger one.
        larger_evaluations: steps of ancestral sampling for T = 1000.
        n_samples: pictures of the U-Net's best samples.
        n_few: pictures of all comparisons.
        many_draws, chosen_guidance: which draws of the best samples are made, without guidance and with this one.
        n_draws: how often those of the trained U-Net are drawn.
        nfe: network evaluations a picture.
        evaluations, guidances: those to compare.
    """
    few, many = (f"pictures_{n_few}",), (f"pictures_{n_samples}",)
    solver = {"name": "dpmpp_2m", "n_steps": nfe}
    best = unet(n_steps, keep_steps, weights=weights, sampler=solver, n_samples=n_samples, metrics=many)
    for name, scale in ((UNET, 1.0), (GUIDED, chosen_guidance)):
        for draw in many_draws:
            factors = {"part": "best", "network": name, "draw": draw}
            yield Run(name, replace(best, guidance=scale, draw=draw), None, factors)
    short = replace(best, n_samples=n_few, metrics=few)
    for step in keep_steps if weights is None else []:
        yield Run(f"{UNET}, step {step}", short, step, {"part": "training", "network": UNET, "step": step})
    for draw in range(n_draws):
        factors = {"part": "training", "network": UNET, "step": n_steps, "draw": draw}
        yield Run(f"{UNET}, step {n_steps}", replace(short, draw=draw), None, factors)
    for name, steps in rival_steps.items():
        rival = unet(steps, network=SIZES[name], sampler=solver, n_samples=n_few, metrics=few)
        yield Run(name, rival, None, {"part": "rivals", "network": name, "step": steps})
    for location in locations:
        drawn = (location, best.training.log_normal[1])
        made = unet(location_steps, network=SIZES[HALF], log_normal=drawn, sampler=solver, n_samples=n_few, metrics=few)
        yield Run(f"{HALF}, log noise {location:g}", made, None, {"part": "locations", "location": location})
    for name in SOLVERS:
        for k in evaluations:
            sampler = {"name": name, "n_steps": (k + 1) // 2 if name == "heun" else k}
            config = replace(short, sampler=sampler)
            yield Run(f"{name}, {k} evaluations", config, None, {"part": "evaluations", "solver": name})
    for scale in guidances:
        config = replace(short, guidance=scale)
        yield Run(f"guidance {scale:g}", config, None, {"part": "guidance", "guidance": scale})
    for label, of in ((0, "label 0"), (None, "all classes")):
        for larger in (False, True):
            name = LARGER if larger else PUBLISHED
            scores, n = (few, n_few) if label is None else ((), 100)
            made = larger_epochs if larger else epochs, scores, n, larger_evaluations if larger else None
            config = straightforward(label, larger, *made)
            yield Run(f"{name}, {of}", config, None, {"part": "straightforward", "network": name, "of": of})


# --- what the page computes beside its runs; `lab.remembered` keeps it --------------------------------------------


def level_table(
    networks: dict[str, dict[str, Any]],
    trainings: dict[str, str],
    parts: dict[str, float],
    levels: list[float],
    n: int,
    n_copies: int,
) -> pd.DataFrame:
    """Squared error on test pictures, noise level by noise level: networks beside exact denoisers of training pictures.

    Args:
        networks: name -> config as plain values.
        trainings: name -> key of the training, which makes the table another one.
        parts: name -> share of the training set that an exact denoiser knows, with its classes. The first also
            without them.
        levels: sigma over alpha; networks with a schedule of their own steps take its nearest ones.
        n: test pictures.
        n_copies: of them, those whose estimates are held to the training pictures.

    Returns:
        `name, level, error, sd`, and `copies` for the first network and the first part.
    """
    law = data.make("fashion_mnist").standardised()
    split = law.split()
    x0, labels = split.test[:n], split.test_labels[:n]
    ve = schedules.make("ve", sigma_min=0.004, sigma_max=80.0)
    exact = {}
    for name, share in parts.items():
        kept = slice(0, round(share * len(split.train)))
        exact[name] = EmpiricalDenoiser(split.train[kept], ve, labels=split.train_labels[kept])
    first = next(iter(parts))
    exact[f"{first}, class unknown"] = EmpiricalDenoiser(split.train, ve)
    rows = []

    def add(denoisers, at):
        for name, errors in images.level_errors(denoisers, x0, at, labels=labels).items():
            for level, row in zip(at, errors, strict=True):
                rows.append((name, level, float(row.mean()), float(row.std())))

    add(exact, levels)
    loaded = {name: trained(Experiment(**config)) for name, config in networks.items()}
    for name, denoiser in loaded.items():
        at = levels
        if isinstance(denoiser.schedule, schedules.DiscreteSchedule):
            own = denoiser.schedule.noise_level(torch.arange(1, denoiser.schedule.t_max + 1)).tolist()
            at = sorted({min(own, key=lambda a, b=b: abs(a - b)) for b in levels if own[0] < b < 1.2 * own[-1]})
        add({name: denoiser}, at)
    table = pd.DataFrame(rows, columns=["name", "level", "error", "sd"])
    held = {name: denoiser for name, denoiser in {**loaded, **exact}.items() if name in (next(iter(loaded)), first)}
    for name, shares in images.level_copies(held, law, levels, n_copies).items():
        for level, share in zip(levels, shares, strict=True):
            table.loc[(table["name"] == name) & (table["level"] == level), "copies"] = share
    return table


def autoguided(
    config: dict[str, Any], training: str, early_step: int, scales: list[float], n: int, metric: str
) -> pd.DataFrame:
    """Scores of samples guided away from an earlier step of the same training.

    Args:
        config: as plain values.
        training: its key.
        early_step: a step that was kept.
        scales: of guidance.
        n: pictures.
        metric: name of the score.

    Returns:
        `guidance, metric, value`.
    """
    made = Experiment(**config)
    denoiser, early = trained(made), trained(made, early_step)
    sampler, labels, rows = samplers.SAMPLERS.build(made.sampler), torch.arange(n) % denoiser.n_classes, []
    for scale in scales:
        guided = Guided(denoiser, scale=scale, guide=early)
        with torch.autocast("cpu", torch.bfloat16, enabled=made.training.precision == "bf16"):
            x = sampler.sample(guided, n, seed=1, batch_size=500, label=labels)
        for name, value in SCORES[metric].function(x.double(), made.data, 0).items():
            rows.append((scale, name, value))
    return pd.DataFrame(rows, columns=["guidance", "metric", "value"])
