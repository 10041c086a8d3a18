"""Are gains marginal in T? Chains of several lengths as published, at equal terminal SNR, and ending at noise."""

from collections.abc import Iterator
from functools import partial

from ddpmlab import schedules
from ddpmlab.lab import Run, Training, limit, over_seeds, recipes
from ddpmlab.studies import EXACT, HOMEWORK_LAWS, register

BETAS = {"lbeta": 1e-5, "ubeta": 1.28e-2}
"""The homework's ends of its linear schedule."""


@register
def diffusion_steps(
    steps: list[int],
    epochs: int,
    fixed: list[int],
    settled: list[int],
    settled_steps: int,
    few: list[int],
    in_nats: list[str],
    longest_chain: int,
    exact_steps: list[int],
    exact_few: list[int],
    exact_samples: int,
    exact_few_samples: int,
    n_seeds: int,
    n_samples: int = 5_000,
    fine: str = "energy_distance",
) -> Iterator[Run]:
    """Model 3 for each T, at the terminal SNR of T = 50, ending at noise, and in few steps; the exact denoiser beside.

    Args:
        steps, epochs: lengths of the chains as published, and their training.
        fixed: lengths whose ubeta is set so that they end at the terminal SNR of T = 50.
        settled, settled_steps: lengths that end at noise, and optimiser steps of their annealed training.
        few: steps in which the longest of them is sampled.
        in_nats: laws whose divergences are computed.
        longest_chain: the chain's own divergence costs exact posteriors at all T steps; for T up to this.
        exact_steps, exact_samples: lengths at which the exact denoiser is sampled, and how many points.
        exact_few, exact_few_samples: the same for few steps of the longest chain.
        n_seeds, n_samples: of every network; the exact denoiser has one seed.
        fine: a score that resolves what `emd_128` does not.
    """
    homework = partial(recipes.homework, n_samples=n_samples)
    metrics = tuple(dict.fromkeys(["emd_128", fine]))
    annealed = recipes.annealed(settled_steps)
    homework_snr = schedules.make("linear", n_steps=50, **BETAS).terminal_snr

    def ending(n: int, snr: float) -> dict:
        return schedules.ending_at(snr, n_steps=n, lbeta=BETAS["lbeta"])

    def nats(law: str, n: int) -> tuple[str, ...]:
        return ("kl", *(["chain_kl"] if n <= longest_chain else [])) if law in in_nats else ()

    def perfect(run: Run, n_samples: int) -> Run:
        factors = {**run.factors, "kind": f"{run.factors['kind']}, {EXACT}"}
        return Run(f"{run.variant}, {EXACT}", limit(run.config, "exact", n_samples), None, factors)

    for law in HOMEWORK_LAWS:
        chains, sampled = [], []
        for n in steps:
            linear = {"name": "linear", "n_steps": n, **BETAS}
            config = homework(
                law, schedule=linear, training=Training(epochs=epochs), metrics=(*metrics, *nats(law, n))
            )  # fmt: skip
            chains.append(Run(f"T={n}", config, None, {"T": n, "kind": "as published"}))
        for n in fixed:
            config = homework(
                law, schedule=ending(n, homework_snr), training=Training(epochs=epochs), metrics=metrics
            )  # fmt: skip
            chains.append(Run(f"T={n}, fixed SNR", config, None, {"T": n, "kind": "fixed SNR"}))
        for n in settled:
            config = homework(
                law, schedule=ending(n, 0.01), parameterisation="v", training=annealed,
                metrics=(*metrics, *nats(law, n)),
            )  # fmt: skip
            chains.append(Run(f"T={n}, settled", config, None, {"T": n, "kind": "settled"}))
        longest = max(settled)
        for solver in ("ddpm", "dpmpp_2m"):
            for k in few:
                config = homework(
                    law, schedule=ending(longest, 0.01), parameterisation="v", training=annealed, metrics=metrics,
                    sampler={"name": solver, "n_steps": k},
                )  # fmt: skip
                factors = {"T": longest, "kind": "few steps", "solver": solver, "nfe": k}
                sampled.append(Run(f"T={longest}, settled, {solver} in {k} steps", config, None, factors))
        yield from over_seeds([*chains, *sampled], range(n_seeds))
        yield from (perfect(run, exact_samples) for run in chains if run.factors["T"] in exact_steps)
        yield from (perfect(run, exact_few_samples) for run in sampled if run.factors["nfe"] in exact_few)
