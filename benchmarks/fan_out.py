"""What fanning out costs: 200 short experiments, serial and through 2 workers; tasks a second.

Run: python benchmarks/fan_out.py [--experiments 200] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path


def experiments(n: int):
    """Short runs, each a training of its own."""
    from ddpmlab.lab import Experiment, Run, Training

    return [
        Run(
            "short",
            Experiment(
                "helix",
                network={"name": "mlp", "hidden": [64]},
                seed=seed,
                n_samples=200,
                metrics=(),
                training=Training(n_steps=300, batch_size=256),
                sampler={"name": "ddim", "n_steps": 10},
            ),
        )
        for seed in range(n)
    ]


def throughput(n: int, rounds: int) -> None:
    """Experiments a second of one process and of two workers."""
    import torch

    from ddpmlab.lab import Store, runner, stages

    torch.set_num_threads(1)
    pool, found = runner.pool(2), {"serial": [], "2 workers": []}
    list(pool.map(time.sleep, [0.5, 0.5]))
    runner.compute(experiments(4), pool, Store(tempfile.mkdtemp()), progress=False)  # workers have imported torch
    for _ in range(rounds):
        for name, seconds in found.items():
            with tempfile.TemporaryDirectory() as folder:
                store, start = Store(folder), time.perf_counter()
                if name == "serial":
                    for run in experiments(n):
                        stages.score(run.config, None, store)
                else:
                    runner.compute(experiments(n), pool, store, progress=False)
                seconds.append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    for name, seconds in medians.items():
        print(f"{name:10} {n / seconds:6.2f} experiments a second")
    print(f"ratio of medians {medians['serial'] / medians['2 workers']:.2f}")


def scheduling(workers: int = 64, tasks: int = 4_000) -> None:
    """Tasks a second that a scheduler hands to workers whose tasks sleep."""
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        start = time.perf_counter()
        wait(client.map(lambda k: time.sleep(0.01), range(tasks), pure=False))
        print(f"{tasks / (time.perf_counter() - start):.0f} tasks a second on {workers} workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=Path(__file__).stem)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    throughput(options.experiments, options.rounds)
    scheduling()


if __name__ == "__main__":
    main()
