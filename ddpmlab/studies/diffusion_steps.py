"""Are gains marginal in T? Chains of several lengths as published, at equal terminal SNR, and settled."""

from collections.abc import Iterator

from ddpmlab import schedules
from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register

BETAS = {"lbeta": 1e-5, "ubeta": 1.28e-2}
"""The homework's ends of its linear schedule."""


@register
def diffusion_steps(
    steps: list[int],
    epochs: int,
    snapshots: list[int],
    fixed: list[int],
    settled: list[int],
    settled_steps: int,
    few: list[int],
    n_seeds: int,
    exact_seeds: int,
    exact_samples: int,
    exact_fine_seeds: int,
    exact_fine_samples: int,
    fine: str = "energy_distance",
) -> Iterator[Run]:
    """Model 3 for each T (also early in training), at the terminal SNR of T = 50, ending at noise, and in few steps."""
    metrics = tuple(dict.fromkeys(["emd_128", fine]))
    kept, annealed = Training(epochs=epochs, keep_steps=tuple(snapshots)), recipes.annealed(settled_steps)
    homework_snr = schedules.make("linear", n_steps=50, **BETAS).terminal_snr

    def ending(n: int, snr: float) -> dict:
        return schedules.ending_at(snr, n_steps=n, lbeta=BETAS["lbeta"])

    for law in HOMEWORK_LAWS:
        runs, limits = [], []
        for n in steps:
            linear = {"name": "linear", "n_steps": n, **BETAS}
            config = recipes.homework(law, schedule=linear, training=kept, metrics=metrics)
            runs.append(Run(f"T={n}", config, None, {"T": n, "kind": "as published"}))
            early = recipes.homework(law, schedule=linear, training=kept)
            runs += [
                Run(f"T={n}, after {k} steps", early, k, {"T": n, "kind": "early", "step": k}) for k in snapshots
            ]  # fmt: skip
            perfect = Run(f"T={n}, {EXACT}", limit(config, "exact", exact_samples), None, {"T": n, "kind": EXACT})
            limits += over_seeds([perfect], range(exact_seeds))
        for n in fixed:
            same = recipes.homework(
                law, schedule=ending(n, homework_snr), training=Training(epochs=epochs), metrics=metrics
            )  # fmt: skip
            runs.append(Run(f"T={n}, fixed SNR", same, None, {"T": n, "kind": "fixed SNR"}))
        for n in settled:
            noise = recipes.homework(
                law, schedule=ending(n, 0.01), parameterisation="v", training=annealed, metrics=metrics
            )  # fmt: skip
            runs.append(Run(f"T={n}, settled", noise, None, {"T": n, "kind": "settled"}))
        longest = max(settled)
        for solver in ("ddpm", "dpmpp_2m"):
            for k in few:
                config = recipes.homework(
                    law, schedule=ending(longest, 0.01), parameterisation="v", training=annealed, metrics=metrics,
                    sampler={"name": solver, "n_steps": k},
                )  # fmt: skip
                name, factors = (
                    f"T={longest}, settled, {solver} in {k} steps",
                    {"T": longest, "solver": solver, "nfe": k},
                )
                runs.append(Run(name, config, None, factors | {"kind": "few steps"}))
                perfect = Run(
                    f"{name}, {EXACT}", limit(config, "exact", exact_fine_samples), None,
                    factors | {"kind": f"few steps, {EXACT}"},
                )  # fmt: skip
                limits += over_seeds([perfect], range(exact_fine_seeds))
        yield from over_seeds(runs, range(n_seeds))
        yield from limits
