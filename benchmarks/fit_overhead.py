"""What `fit` costs above a bare loop that does the same mathematics, in turns on the same machine.

    python benchmarks/fit_overhead.py [--rounds 9] [--steps 300] [--case "width 64"]

The bare loop is what one would write in a notebook: permutations, noise, times, a table of scales, the network, the
mean square error, backward, Adam. Each round runs both, in turn first; printed are the medians of CPU time per step and
of their ratio over the rounds, and the range of the ratio.
"""

import argparse
import statistics
from time import process_time

import torch

from ddpmlab import data, networks, schedules
from ddpmlab.denoisers import Denoiser
from ddpmlab.training import build_seeded, fit

CASES = {
    "width 64, batch 256": ("helix", {"name": "mlp", "hidden": (64,)}, "linear", "epsilon", 256, {}, 0.15),
    "model 3, batch 1,024": ("helix", {"name": "mlp", "hidden": (64, 128, 128)}, "linear", "epsilon", 1_024, {}, 0.03),
    "two-moons recipe, batch 512": (
        "two_moons",
        {"name": "residual_mlp", "width": 64, "n_blocks": 2, "activation": "gelu", "time": "fourier",
         "time_features": 16, "time_layers": 0},
        "ve", "edm", 512, {"times": "log-normal", "log_normal": (-2.1, 1.5), "weighting": "edm"}, None,
    ),
}  # fmt: skip


def bare(network, schedule, points, n_steps, batch_size, seed=0, log_normal=None) -> torch.Tensor:
    """Train and return the last loss."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), fused=True)
    left = torch.empty(0, dtype=torch.int64)
    if log_normal is None:
        n_levels = schedule.t_max
        alphas, sigmas = (a.float()[:, None] for a in schedule(torch.arange(n_levels + 1)))
    for _ in range(n_steps):
        if len(left) < batch_size:
            left = torch.cat([left, torch.randperm(len(points), generator=generator)])
        batch, left = left[:batch_size], left[batch_size:]
        x0 = points[batch]
        noise = torch.randn(x0.shape, generator=generator)
        if log_normal is None:  # Ho et al. 2020, algorithm 1
            t = torch.randint(1, n_levels + 1, (batch_size,), generator=generator)
            x_t, condition, target = alphas[t] * x0 + sigmas[t] * noise, t / n_levels, noise
        else:  # Karras et al. 2022, eq. 7 and 8
            mean, sd = log_normal
            quantile = (torch.rand(batch_size, generator=generator) + torch.arange(batch_size)) / batch_size
            level = (mean + sd * torch.special.ndtri(quantile)).clamp(schedule.low, schedule.high)
            sigma = level.exp()[:, None]
            scale = (1 + sigma**2).sqrt()
            x_t, condition, target = (x0 + sigma * noise) / scale, level / 4, (sigma * x0 - noise) / scale
        loss = (network(x_t, condition) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.detach()


def measure(case: str, rounds: int, steps: int) -> tuple[float, float, list[float]]:
    """Median CPU seconds a step of the bare loop and of `fit`, and the rounds' ratios less 1."""
    law, network, schedule, parameterisation, batch_size, options, _ = CASES[case]
    points = data.make(law).standardised().split().train
    single, schedule = points.float(), schedules.make(schedule)
    if "log_normal" in options:
        schedule.low, schedule.high = schedule.noise_level(torch.tensor([schedule.t_min, 1.0])).log().tolist()

    def build():
        options = {key: value for key, value in network.items() if key != "name"}
        return networks.make(network["name"], shape=tuple(points.shape[1:]), **options)

    def run_bare(network):
        bare(network, schedule, single, steps, batch_size, log_normal=options.get("log_normal"))

    def run_fit(network):
        fit(Denoiser(network, schedule, parameterisation), points, steps, batch_size=batch_size, **options)

    times = {run_bare: [], run_fit: []}
    for i in range(rounds + 1):
        for run in list(times)[:: 1 if i % 2 else -1]:
            network_ = build_seeded(build, 0)
            start = process_time()
            run(network_)
            times[run].append((process_time() - start) / steps)
    pairs = list(zip(times[run_bare], times[run_fit], strict=True))[1:]  # the first round warms up
    return *(statistics.median(t) for t in zip(*pairs, strict=True)), [b / a - 1 for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--case", default="", help="only the cases whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case, (*_, limit) in CASES.items():
        if arguments.case in case:
            alone, ours, ratios = measure(case, arguments.rounds, arguments.steps)
            wanted = "" if limit is None else f", at most {limit:.0%} wanted"
            print(
                f"{case}: bare {alone * 1e6:,.0f} us, fit {ours * 1e6:,.0f} us a step; above it "
                f"{statistics.median(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%}){wanted}",
                flush=True,
            )


if __name__ == "__main__":
    main()
