"""What fanning out costs: 200 short experiments, serial and through 2 workers; tasks a second.

Run: python benchmarks/fan_out.py [--experiments 200] [--rounds 3]

Each is told by the clock, which needs a machine with nothing else to do, and by the processor's time of all processes
that took part, which does not: twice serial over fanned out is what two free cores would give at best.
"""

import argparse
import os
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


def processor_seconds(*processes: int) -> float:
    """Processor time that some processes have used until now (Linux)."""
    total = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def who(seconds: float) -> int:
    """The process that this runs in."""
    time.sleep(seconds)
    return os.getpid()


def throughput(n: int, rounds: int) -> None:
    """Experiments a second of one process and of two workers."""
    import torch

    from ddpmlab.lab import Store, runner, stages

    torch.set_num_threads(1)
    pool, found, used = runner.pool(2), {"serial": [], "2 workers": []}, {"serial": 0.0, "2 workers": 0.0}
    workers = set(pool.map(who, [0.5] * 8))
    runner.compute(experiments(4), pool, Store(tempfile.mkdtemp()), progress=False)  # workers have imported torch
    for _ in range(rounds):
        for name, seconds in found.items():
            with tempfile.TemporaryDirectory() as folder:
                store, start = Store(folder), time.perf_counter()
                before = processor_seconds(os.getpid(), *workers)
                if name == "serial":
                    for run in experiments(n):
                        stages.score(run.config, None, store)
                else:
                    runner.compute(experiments(n), pool, store, progress=False)
                seconds.append(time.perf_counter() - start)
                used[name] += processor_seconds(os.getpid(), *workers) - before
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    for name, seconds in medians.items():
        print(f"{name:10} {n / seconds:6.2f} experiments a second")
    print(f"ratio of medians by the clock {medians['serial'] / medians['2 workers']:.2f}")
    each = {name: seconds / rounds / n for name, seconds in used.items()}
    print(f"processor seconds an experiment: {each['serial']:.3f} serial, {each['2 workers']:.3f} through 2 workers")
    print(f"two free cores at best {2 * each['serial'] / each['2 workers']:.2f}")


def scheduling(workers: int = 64, tasks: int = 4_000) -> None:
    """Tasks a second that a scheduler hands to workers whose tasks sleep."""
    from distributed import Client, LocalCluster, wait

    # no memory limit: 64 workers in one process would each take the whole for their own, and pause
    shared = {"threads_per_worker": 1, "processes": False, "dashboard_address": None, "memory_limit": 0}
    with (
        LocalCluster(n_workers=workers, **shared) as cluster,
        Client(cluster) as client,
    ):
        start, before = time.perf_counter(), time.process_time()
        wait(client.map(lambda k: time.sleep(0.01), range(tasks), pure=False))
        print(f"{tasks / (time.perf_counter() - start):.0f} tasks a second on {workers} workers by the clock")
        used = time.process_time() - before
        print(f"{tasks / used:.0f} tasks a processor second, scheduler, client and workers in one process together")


def main() -> None:
    parser = argparse.ArgumentParser(description=Path(__file__).stem)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    throughput(options.experiments, options.rounds)
    scheduling()


if __name__ == "__main__":
    main()
