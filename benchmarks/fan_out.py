"""What fanning out costs: 200 short experiments, serial and through 2 processes or Dask workers; tasks a second.

Run: python benchmarks/fan_out.py [--experiments 200] [--rounds 3]

Each is told by the clock, which needs a machine with nothing else to do, and by the processor's time of all processes
that took part, which does not.
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
    """Experiments a second of one process, of this machine's pool and of a local Dask cluster, two processes each."""
    import torch

    from ddpmlab.lab import Store, cluster, runner, stages

    os.environ["DDPMLAB_CACHE"] = tempfile.mkdtemp()  # a store that other processes can reach
    torch.set_num_threads(1)
    with cluster.executor(workers=2) as dask:
        executors = {"serial": None, "2 processes": runner.pool(2), "2 Dask workers": dask}
        found, used, workers = {name: [] for name in executors}, dict.fromkeys(executors, 0.0), {"serial": set()}
        for name, executor in list(executors.items())[1:]:
            workers[name] = set(executor.map(who, [0.5] * 8))
            runner.compute(experiments(4), executor, Store(tempfile.mkdtemp()), progress=False)  # torch is imported
        for _ in range(rounds):
            for name, executor in executors.items():
                with tempfile.TemporaryDirectory() as folder:
                    store, start = Store(folder), time.perf_counter()
                    before = processor_seconds(os.getpid(), *workers[name])
                    if executor is None:
                        for run in experiments(n):
                            stages.score(run.config, None, store)
                    else:
                        runner.compute(experiments(n), executor, store, progress=False)
                    found[name].append(time.perf_counter() - start)
                    used[name] += processor_seconds(os.getpid(), *workers[name]) - before
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    for name, seconds in medians.items():
        each = used[name] / rounds / n
        print(
            f"{name:15} {n / seconds:6.2f} experiments a second, {medians['serial'] / seconds:.2f} times serial; "
            f"{each:.3f} processor seconds each"
        )


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
