"""Two moons: the report's ladder of improvements, a recipe, its ablation."""

from collections.abc import Iterator
from dataclasses import replace

from ddpmlab import samplers
from ddpmlab.lab import Experiment, Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, PERFECT, register

SMALL = {"name": "mlp", "hidden": (128, 128), "activation": "silu", "time": "sinusoidal", "time_layers": 2}
LARGE = SMALL | {"hidden": (128, 128, 128)}
RESIDUAL = {"name": "residual_mlp"}
LINEAR = {"name": "linear", "n_steps": 1000, "lbeta": 1e-4, "ubeta": 2e-2}
COSINE = {"name": "cosine", "n_steps": 1000}
PLAIN = {"name": "mlp", "hidden": (96, 96, 96), "activation": "gelu", "time": "fourier", "time_features": 16}
CONTROL, FINAL, RECIPE = "4, without EMA", "6_residual_blocks", "the recipe"


def ladder(
    ladder_steps: int, kept_steps: list[int], n_samples: int, report_sampler_steps: int, metrics: list[str]
) -> dict[str, Experiment]:
    """The report's rungs by name, and what its rung 5.1 has to be compared with."""
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
        "baseline": rung(LINEAR, SMALL, average=False, sampler="euler"),
        "1_ddpm": rung(LINEAR, SMALL, average=False),
        "2_ema": rung(LINEAR, SMALL),
        "3_cosine": rung(COSINE, SMALL),
        "4_larger_mlp": rung(COSINE, LARGE),
        "5.1_snr_weighting_no_ema": rung(COSINE, LARGE, average=False, weighting="snr+1 inverse"),
        "5.2_snr_weighting_ema": rung(COSINE, LARGE, weighting="snr+1 inverse"),
        FINAL: rung(COSINE, RESIDUAL),
        CONTROL: rung(COSINE, LARGE, average=False),
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


def of_the_recipe(metrics: list[str]) -> tuple[str, ...]:
    """The book's scores; the report's own columns are the ladder's affair."""
    return tuple(dict.fromkeys(["thickness", *(m for m in metrics if m != "two-moons-report")]))


def distance(metrics: list[str]) -> str:
    """The distance that curves over evaluations are drawn in."""
    return next(metric for metric in ("sliced_wasserstein", "emd_128") if metric in metrics)


SOLVERS = ("ddpm", "euler", "heun", "dpmpp_2m", "unipc")


@register
def two_moons(
    ladder_steps: int,
    kept_steps: list[int],
    n_samples: int,
    report_sampler_steps: int,
    metrics: list[str],
    budgets: list[int],
    ablation_steps: int,
    n_many: int,
    evaluations: list[int],
    n_seeds: int,
    exact_seeds: int,
) -> Iterator[Run]:
    """The ladder and a perfect sampler; the recipe at each budget, on many points, in few evaluations; its ablation."""
    rungs = ladder(ladder_steps, kept_steps, n_samples, report_sampler_steps, metrics)
    runs = [Run(name, config, None, {"part": "ladder"}) for name, config in rungs.items()]
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
