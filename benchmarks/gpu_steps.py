"""Milliseconds of an optimiser step and of a network evaluation on a device, in float32 and bfloat16.

    python benchmarks/gpu_steps.py [--device cuda] [--steps 200] [--rounds 3]

The recipes' own networks and batch sizes. A step is one of `fit`, with all that belongs to it; an evaluation is one of
sampling, of 2,000 points or 500 pictures. All take turns, `rounds` times over; printed are medians.
"""

import argparse
import statistics
from dataclasses import replace
from time import perf_counter

import torch

from ddpmlab import samplers
from ddpmlab.lab import recipes
from ddpmlab.lab.stages import build_denoiser, device_name
from ddpmlab.studies.fashion_mnist import SIZES
from ddpmlab.training import fit

CASES = {
    "model 3": recipes.homework("helix"),
    "two-moons recipe": recipes.two_moons(1_000),
    "U-Net": recipes.fashion_mnist(1_000),
    **{name: recipes.fashion_mnist(1_000, network=network) for name, network in SIZES.items()},
}


def measure(config, precision: str, device: str, n_steps: int) -> tuple[float, float]:
    """Milliseconds of a step and of an evaluation."""
    options = replace(config.training.options(config.data.n_train), n_steps=n_steps, warmup=1, precision=precision)
    denoiser, split = build_denoiser(config), config.data.split()
    labels = split.train_labels if denoiser.n_classes else None
    step = fit(denoiser, split.train, options=options, labels=labels, device=device).seconds / n_steps
    n, told = (500, {"label": torch.arange(500) % 10}) if denoiser.n_classes else (2_000, {})
    sampler = samplers.make("ddim", n_steps=20)
    with torch.autocast(options.torch_device.type, torch.bfloat16, enabled=precision == "bf16"):
        sampler.sample(denoiser, n, seed=0, **told).cpu()
        start = perf_counter()
        sampler.sample(denoiser, n, seed=1, **told).cpu()
    return 1e3 * step, 1e3 * (perf_counter() - start) / sampler.nfe(denoiser.schedule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    times = {(name, precision): [] for name in CASES for precision in ("fp32", "bf16")}
    for turn in range(arguments.rounds + 1):
        for (name, precision), found in times.items():
            one = measure(CASES[name], precision, arguments.device, arguments.steps if turn else 10)
            if turn:  # the first is for warming up
                found.append(one)
    print(f"torch {torch.__version__}, {device_name()}, {arguments.steps} steps, {arguments.rounds} rounds")
    print(f"{'network':24} {'precision':>9} {'batch':>6} {'ms / step':>10} {'ms / evaluation':>16}")
    for (name, precision), found in times.items():
        step, evaluation = (statistics.median(column) for column in zip(*found, strict=True))
        batch = CASES[name].training.batch_size
        print(f"{name:24} {precision:>9} {batch:6,} {step:10.2f} {evaluation:16.2f}")


if __name__ == "__main__":
    main()
