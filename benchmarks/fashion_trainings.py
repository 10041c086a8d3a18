"""The U-Net of the FashionMNIST page trained again: other seeds, float32, and the committed weights, sampled alike.

Run: `python benchmarks/fashion_trainings.py TABLE.csv [--seeds 4] [--steps 5000] [--samples 10000] [--workers 1]`

A training of 5,000 steps takes four minutes of an H100, on which several workers may train at a time, and one to two
hours of a core. The committed table, `book/results/fashion_trainings.csv`, holds runs of these configs on an H100 at
commit 34272216ca1f, 12 to 15 processes at a time; its seed 0 is draw 1 of the page's own run there.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ddpmlab.lab import Run, runner
from ddpmlab.lab.config import Experiment
from ddpmlab.studies.fashion_mnist import GUIDED, UNET, unet

GUIDANCE = 1.25
"""The page's, chosen on a training of its own."""


def runs(seeds: int, steps: int, samples: int) -> list[Run]:
    """Every training with and without guidance, by draw 1."""
    sampler = {"name": "dpmpp_2m", "n_steps": 12}
    found = []

    def add(name: str, config: Experiment) -> None:
        for scale, of in ((1.0, UNET), (GUIDANCE, GUIDED)):
            found.append(Run(of.replace(UNET, f"{UNET}{name}"), replace(config, guidance=scale)))

    scored = "pictures_10000" if samples == 10_000 else f"pictures_{samples}"
    kept = [step for step in (500, 1_250, 2_500) if step < steps]
    one = unet(steps, kept, sampler=sampler, n_samples=samples, metrics=(scored,), draw=1)
    for seed in range(seeds):
        add("", replace(one, seed=seed))
    add(" in float32", replace(one, training=replace(one.training, precision="fp32")))
    add(", committed weights", replace(one, weights="fashion_unet"))
    return found


def with_left(table: pd.DataFrame) -> pd.DataFrame:
    """The table and, as `frechet_left` and `kernel_left`, what is left of two distances from noise to real pictures."""
    found = [table]
    for kind in ("frechet", "kernel"):
        rows = table[table["metric"].str.fullmatch(rf"{kind}_distance(_\d+)?")]
        left = (rows["value"] - rows["floor_mean"]) / (rows["ceiling"] - rows["floor_mean"])
        bare = {"floor_mean": None, "floor_sd": None, "ceiling": None}
        found.append(rows.assign(metric=f"{kind}_left", value=left, **bare))
    return pd.concat(found, ignore_index=True)


def main() -> None:
    """Compute what the store lacks, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    for name, value in (("seeds", 4), ("steps", 5_000), ("samples", 10_000), ("workers", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    wanted = runs(asked.seeds, asked.steps, asked.samples)
    table = with_left(runner.run_all(asked.table.stem, wanted, executor=runner.pool(asked.workers)))
    table.to_csv(asked.table, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
