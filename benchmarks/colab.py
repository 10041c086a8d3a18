"""How long each study's profile for Colab should take on its GPU, estimated from FLOP; no GPU is needed or used.

Run: python benchmarks/colab.py [--profile colab]

A T4 does 8.1e12 FLOP a second in float32 (NVIDIA's data sheet), of which a quarter is taken to be reached; and a pass
of a small network is bound by the launching of its kernels, here 0.7 ms an evaluation and 2 ms an optimiser step. The
U-Net launches many: its 50 ms a step of 128 pictures and 10 ms an evaluation of 500 were measured on an H100. One
GPU trains one network at a time. Scoring a run is taken to cost 2 s of the processor. What a page computes beside its
runs is not in it. These are assumptions otherwise; nothing was measured on a T4.
"""

import argparse
from pathlib import Path

import pandas as pd

from ddpmlab import networks, samplers
from ddpmlab.book.pages import PROFILES, Project
from ddpmlab.lab.stages import train_key

FLOP_A_SECOND = 0.25 * 8.1e12
SMALL, UNET = (2e-3, 7e-4, 2_000), (50e-3, 10e-3, 500)  # seconds a step and an evaluation, points of an evaluation
SCORING = 2.0


def cost(runs) -> dict[str, float]:
    """Optimiser steps, FLOP and seconds of a study's runs; a training that several share counts once."""
    trainings, flop, seconds = {}, 0.0, 0.0
    for run in runs:
        config, forward = run.config, 0
        step, evaluation, batch = UNET if config.network["name"] == "unet" else SMALL
        if config.denoiser == "network":
            network = networks.NETWORKS.build(config.network, shape=config.data.shape)
            forward = networks.flop(network)
            if config.weights is None:
                steps = config.training.options(config.data.n_train).n_steps
                trainings[train_key(config)] = steps, step, 3 * forward * config.training.batch_size
        nfe = samplers.SAMPLERS.build(config.sampler).nfe(config.make_schedule())
        work, passes = nfe * forward * config.n_samples, nfe * -(-config.n_samples // batch)
        flop += work
        seconds += max(work / FLOP_A_SECOND, passes * evaluation) + SCORING
    for steps, step, per_step in trainings.values():
        flop += steps * per_step
        seconds += steps * max(per_step / FLOP_A_SECOND, step)
    return {
        "trainings": len(trainings), "runs": len(runs), "steps": sum(steps for steps, *_ in trainings.values()),
        "FLOP": flop, "minutes": seconds / 60,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", choices=PROFILES, default="colab")
    profile = parser.parse_args().profile
    project, rows = Project(Path(__file__).parents[1]), {}
    for name in project.manifest():
        study = project.study(name, project.parameters(name, profile))
        if study is not None:
            rows[name] = cost(study.runs)
    table = pd.DataFrame(rows).T
    formats = {"trainings": "{:.0f}", "runs": "{:.0f}", "steps": "{:,.0f}", "FLOP": "{:.1e}", "minutes": "{:.1f}"}
    print(pd.DataFrame({name: table[name].map(form.format) for name, form in formats.items()}).to_string())


if __name__ == "__main__":
    main()
