"""Two moons: the report's ladder of improvements, a recipe, its ablation, its noise levels."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from ddpmlab import samplers, schedules
from ddpmlab.lab import Experiment, Run, Training, limit, over_seeds, recipes, trained
from ddpmlab.studies import EXACT, PERFECT, register

SMALL = {"name": "mlp", "hidden": (128, 128), "activation": "silu", "time": "sinusoidal", "time_layers": 2}
LARGE = SMALL | {"hidden": (128, 128, 128)}
RESIDUAL = {"name": "residual_mlp"}
LINEAR = {"name": "linear", "n_steps": 1000, "lbeta": 1e-4, "ubeta": 2e-2}
COSINE = {"name": "cosine", "n_steps": 1000}
PLAIN = {"name": "mlp", "hidden": (96, 96, 96), "activation": "gelu", "time": "fourier", "time_features": 16}
CONTROL, FINAL, RECIPE = "4, without EMA", "6_residual_blocks", "the recipe"
SHORTER = "6, the cosine's last step left out"
TITLES = {
    "baseline": "baseline",
    "1_ddpm": "1 DDPM",
    "2_ema": "2 EMA",
    "3_cosine": "3 cosine",
    "4_larger_mlp": "4 larger MLP",
    "5.1_snr_weighting_no_ema": "5.1 weighting without EMA",
    "5.2_snr_weighting_ema": "5.2 weighting with EMA",
    FINAL: "6 residual blocks",
    CONTROL: CONTROL,
}
"""Names of the rungs on pages."""
STEPS = {
    "1 DDPM": ("baseline", "1_ddpm"),
    "2 EMA": ("1_ddpm", "2_ema"),
    "3 cosine": ("2_ema", "3_cosine"),
    "4 larger MLP": ("3_cosine", "4_larger_mlp"),
    "5.1 weighting without EMA": (CONTROL, "5.1_snr_weighting_no_ema"),
    "5.2 weighting with EMA": ("4_larger_mlp", "5.2_snr_weighting_ema"),
    "6 residual blocks": ("4_larger_mlp", FINAL),
}
"""The rung that each of the report's modifications is judged against, and its own."""


def chains(n_steps: int) -> dict[str, dict]:
    """The two noising chains by name; a shorter linear one takes larger betas, and so ends at as much noise."""
    linear = LINEAR | {"n_steps": n_steps, "ubeta": LINEAR["ubeta"] * (LINEAR["n_steps"] / n_steps)}
    return {part["name"]: part for part in (linear, COSINE | {"n_steps": n_steps})}


def ladder(
    ladder_steps: int,
    kept_steps: list[int],
    n_samples: int,
    report_sampler_steps: int,
    metrics: list[str],
    chain_steps: int = 1_000,
) -> dict[str, Experiment]:
    """The report's rungs by name, and what its rung 5.1 has to be compared with.

    Args:
        ladder_steps: optimiser steps of each rung.
        kept_steps: steps at which weights are kept, besides the last.
        n_samples: points of each rung.
        report_sampler_steps: steps of each rung's sampler.
        metrics: scores of each rung.
        chain_steps: steps of the noising chains, T.
    """
    linear, cosine = chains(chain_steps).values()
    training = Training(
        n_steps=ladder_steps, keep_steps=tuple(kept_steps), batch_size=512, learning_rate=1e-3, optimiser="adamw",
        grad_clip=1.0, ema_decay=0.999,
    )  # fmt: skip

    def rung(schedule, network, average=True, sampler="ddpm", weighting="simple"):
        return Experiment(
            "two_moons", schedule, network, training=replace(training, weighting=weighting), average=average,
            sampler={"name": sampler, "n_steps": report_sampler_steps}, n_samples=n_samples, metrics=tuple(metrics),
        )  # fmt: skip

    return {
        "baseline": rung(linear, SMALL, average=False, sampler="euler"),
        "1_ddpm": rung(linear, SMALL, average=False),
        "2_ema": rung(linear, SMALL),
        "3_cosine": rung(cosine, SMALL),
        "4_larger_mlp": rung(cosine, LARGE),
        "5.1_snr_weighting_no_ema": rung(cosine, LARGE, average=False, weighting="snr+1 inverse"),
        "5.2_snr_weighting_ema": rung(cosine, LARGE, weighting="snr+1 inverse"),
        FINAL: rung(cosine, RESIDUAL),
        CONTROL: rung(cosine, LARGE, average=False),
    }


def ablations(n_steps: int, **changes) -> dict[str, Experiment]:
    """The recipe with one ingredient changed at a time."""

    def recipe(steps: int = n_steps, **change) -> Experiment:
        return recipes.two_moons(steps, **changes | {"metrics": ("kl", "thickness")} | change)

    found = {
        RECIPE: recipe(),
        "noise prediction, unweighted": recipe(parameterisation="epsilon", weighting="simple"),
        "noise levels uniform in the schedule's time": recipe(times="uniform"),
        "the noise level as one number": recipe(network={"time": "scalar"}),
        "Fourier features of the point too": recipe(network={"fourier_features": 32, "fourier_scale": 0.5}),
        "SiLU for GELU": recipe(network={"activation": "silu"}),
        "half the width": recipe(network={"width": 32}),
        "constant learning rate": recipe(decay="none"),
        "constant rate, power EMA": recipe(decay="none", ema_sigma_rel=0.1, average=True),
        "decayed rate and power EMA": recipe(ema_sigma_rel=0.05, average=True),
        "learning rate 1e-3": recipe(learning_rate=1e-3),
        "batch 2,048, a quarter of the steps": recipe(n_steps // 4, batch_size=2_048),
        "points drawn afresh": recipe(n_points=2_000_000),
    }
    return found | {"a plain MLP of like size": replace(found[RECIPE], network=PLAIN)}


def noise_levels(n_steps: int, n_samples: int) -> dict[str, Experiment]:
    """The recipe with its law of noise levels, or its warm-up, changed."""
    standard = recipes.two_moons(n_steps)
    low, high = standard.schedule["sigma_min"], standard.schedule["sigma_max"]
    cosine = {"name": "vp_cosine", "terminal_snr": high**-2}
    cosine["t_min"] = float(schedules.SCHEDULES.build(cosine).time_of(low))
    uniform = {
        "uniform in a cosine's time": cosine,
        "uniform in DDPM's linear steps": LINEAR,
        "uniform in time, VE to 80": {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    }
    changes = {
        RECIPE: {},
        INDEPENDENT: {"times": "log-normal, independent"},
        "no warm-up": {"warmup": 0},
        "EDM's numbers as printed": {"log_normal": (-1.2, 1.2)},
        "EDM's numbers, shifted": {"log_normal": (-1.2 + math.log(2), 1.2)},
        "uniform in the recipe's time": {"times": "uniform"},
        **{name: {"schedule": part, "times": "uniform"} for name, part in uniform.items()},
    }
    shared = {"n_samples": n_samples, "metrics": ("thickness",), "sampler": {**standard.sampler, "spacing": "linspace"}}
    return {name: recipes.two_moons(n_steps, **shared | change) for name, change in changes.items()}


def gradient_variances(config: Experiment, n_batches: int = 16, n_parts: int = 10, seed: int = 0) -> list[float]:
    r"""Variance of a minibatch's gradient at the trained weights of a config, by part of the schedule's T steps.

    .. math:: \mathrm{tr}\,\mathrm{Cov}(g), \qquad g = \nabla_\theta \frac1B \sum_{i=1}^B w_{t_i}
              |\hat\varepsilon_i - \varepsilon_i|^2/d .

    Args:
        config: its schedule is discrete; its loss, batch size B and training points are used.
        n_batches: gradients behind each variance.
        n_parts: equal parts of the steps 1..T, in each of which the times of a batch are drawn.
        seed: of the batches.

    Returns:
        The variance with times drawn from all steps, then that of each part.
    """
    denoiser = trained(config).requires_grad_(True)
    weights, training = list(denoiser.network.parameters()), config.training
    points = training.points(config.data)[0].to(weights[0].dtype)
    generator, last, found = torch.Generator().manual_seed(seed), denoiser.schedule.t_max, []
    ends = [(0.0, 1.0), *((k / n_parts, (k + 1) / n_parts) for k in range(n_parts))]
    for low, high in ends:
        gradients = []
        for _ in range(n_batches):
            x0 = points[torch.randint(len(points), (training.batch_size,), generator=generator)]
            first, end = round(low * last) + 1, round(high * last) + 1
            t = torch.randint(first, end, (len(x0),), generator=generator).double()
            noise = torch.randn(x0.shape, generator=generator)
            loss = denoiser.loss(x0, t, noise, training.weighting).mean()
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        found.append(float(torch.stack(gradients).double().var(0).sum()))
    return found


def of_the_recipe(metrics: list[str]) -> tuple[str, ...]:
    """The book's scores; the report's own columns and the chain of T steps are the ladder's affair."""
    ladders = ("two-moons-report", "chain_kl")
    return tuple(dict.fromkeys(["thickness", *(m for m in metrics if m not in ladders)]))


def distance(metrics: list[str]) -> str:
    """The distance that curves over evaluations are drawn in."""
    return next(metric for metric in ("sliced_wasserstein", "emd_128") if metric in metrics)


INDEPENDENT = "levels drawn independently"
SOLVERS = ("ddpm", "euler", "heun", "dpmpp_2m", "unipc")


@register
def two_moons(
    ladder_steps: int,
    kept_steps: list[int],
    n_samples: int,
    report_sampler_steps: int,
    metrics: list[str],
    chain_steps: int,
    budgets: list[int],
    ablation_steps: int,
    n_many: int,
    evaluations: list[int],
    levels_steps: int,
    levels_samples: int,
    levels_seeds: int,
    n_seeds: int,
    exact_seeds: int,
) -> Iterator[Run]:
    """The ladder, a perfect sampler and the last rung's repair; the recipe at each budget, on many points, in few
    evaluations; its ablation; its noise levels.

    Args:
        ladder_steps, kept_steps, report_sampler_steps, chain_steps: see `ladder`.
        n_samples: points of every network, except where another number is given.
        metrics: scores of the ladder; the recipe has those of `of_the_recipe`.
        budgets: optimiser steps of the recipe.
        ablation_steps: optimiser steps of the ablation.
        n_many: points of the one large sample, at the largest budget.
        evaluations: network evaluations a sample, to compare solvers at.
        levels_steps: optimiser steps of the trainings with other noise levels.
        levels_samples: points of each of them.
        levels_seeds: of each of them.
        n_seeds: of all other networks.
        exact_seeds: of the exact denoiser in few evaluations.
    """
    rungs = ladder(ladder_steps, kept_steps, n_samples, report_sampler_steps, metrics, chain_steps)
    runs = [Run(name, config, None, {"part": "ladder"}) for name, config in rungs.items()]
    sampler = {"name": "ddpm", "n_steps": report_sampler_steps - 1, "spacing": "leading"}  # from t = T - 1 on
    own = tuple(metric for metric in (distance(metrics), "two-moons-report") if metric in metrics)
    shorter = replace(rungs[FINAL], sampler=sampler, metrics=own)
    runs.append(Run(SHORTER, shorter, None, {"part": "repair"}))
    runs.append(Run(PERFECT, limit(rungs["baseline"], "law"), None, {"part": PERFECT}))
    scores, longest = of_the_recipe(metrics), max(budgets)
    for n in budgets:
        config = recipes.two_moons(n, n_samples=n_samples, metrics=scores)
        runs.append(Run(f"recipe, {n} steps", config, None, {"part": "recipe", "steps": n}))
    tests = ("energy_distance_20000",) if n_many >= 20_000 else ()
    many = recipes.two_moons(longest, n_samples=n_many, metrics=("thickness", "kl", *tests))
    runs.append(Run(f"recipe, {longest} steps, {n_many} samples", many, None, {"part": "many points"}))
    for name, config in ablations(ablation_steps, n_samples=n_samples).items():
        runs.append(Run(f"ablation: {name}", config, None, {"part": "ablation", "change": name}))
    yield from over_seeds(runs, range(n_seeds))
    best = recipes.two_moons(longest, n_samples=n_samples, metrics=(distance(metrics), "thickness"))
    for solver in SOLVERS:
        for k in evaluations:
            sampler = {"name": solver, "n_steps": (k + 1) // 2 if solver == "heun" else k}
            config = replace(best, sampler=sampler)
            nfe = samplers.SAMPLERS.build(sampler).nfe(config.make_schedule())
            factors = {"part": "evaluations", "solver": solver, "nfe": nfe}
            yield from over_seeds([Run(f"recipe, {solver}, {nfe} evaluations", config, None, factors)], range(n_seeds))
            name = f"{EXACT}, {solver}, {nfe} evaluations"
            yield from over_seeds([Run(name, limit(config), None, factors | {"part": EXACT})], range(exact_seeds))
    made = noise_levels(levels_steps, levels_samples)
    runs = [Run(f"levels: {name}", config, None, {"part": "levels", "change": name}) for name, config in made.items()]
    yield from over_seeds(runs, range(levels_seeds))
