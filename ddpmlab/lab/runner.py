"""Many runs: the trainings that a table needs, side by side over any executor, gathered from the store.

What is sent out is a job, the runs that share one training; what comes back is nothing but a sign of life, for the
results lie in the store. So an executor may be a pool of this machine's cores or a cluster, and anything may die: the
next call computes what is missing, and a training goes on from its checkpoint.
"""

import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import cloudpickle
import loky
import pandas as pd
import torch
from safetensors import SafetensorError
from tqdm import tqdm  # text, so that it reaches the console of a batch run

from ddpmlab import registry
from ddpmlab.lab import stages
from ddpmlab.lab import store as stores
from ddpmlab.lab.config import Experiment
from ddpmlab.lab.scores import SCORES
from ddpmlab.lab.store import Store
from ddpmlab.networks import NETWORKS, flop
from ddpmlab.samplers import SAMPLERS
from ddpmlab.training import build_seeded

COLUMNS = (
    *("study", "dataset", "variant", "seed", "metric", "n"),
    *("value", "floor_mean", "floor_sd", "ceiling", "p_value"),
)
"""Columns that every tidy table begins with; those of a study's factors follow."""


PATIENCE = 15.0
"""Seconds without news after which a pool is looked at, whether any of its processes lives."""


_AGAIN = "what was finished is kept, and trainings go on from their checkpoints: run it again"


class RunError(RuntimeError):
    """A run failed; the message names it and the cause."""


class _OutOfTime(Exception):
    pass


@dataclass(frozen=True)
class Run:
    """A row of a study's table: a config, at which step of its training, and the factors that tell it from the others.

    Attributes:
        variant: its name in the table.
        config: what is run; its seed counts.
        step: one of the steps at which training kept weights; the last if omitted.
        factors: columns of the table, name -> value.
    """

    variant: str
    config: Experiment
    step: int | None = None
    factors: Mapping[str, Any] = field(default_factory=dict)


def over_seeds(runs: Iterable[Run], seeds: Iterable[int]) -> list[Run]:
    """Every run with every seed."""
    seeds = list(seeds)
    return [Run(r.variant, stages.seeded(r.config, seed), r.step, r.factors) for r in runs for seed in seeds]


# --- the pool of this machine ----------------------------------------------------------------------------------


def _start_worker() -> None:
    """One thread: bits that do not depend on the number of cores; an end with the parent; interrupts are its affair."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, left over when a worker is ended
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_NO_RESTARTS = {"LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}  # bytes
_pools: dict[int, loky.ProcessPoolExecutor] = {}


def pool(workers: int | None = None) -> loky.ProcessPoolExecutor:
    """A pool of processes, kept for the next call because fresh ones take seconds to import torch.

    Its processes end with the one that started them, and need no main guard in a script. As many as cores, if omitted.
    They are never started afresh for having grown, as loky would: they hold datasets and posteriors for the next job,
    and a process that is slow to end would hold up all others.

    Raises:
        ValueError: fewer than one worker.
    """
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers = {workers}; need at least 1")
    known = _pools.get(workers)
    if known is None or known._flags.broken is not None or known._flags.shutdown:
        _pools[workers] = loky.ProcessPoolExecutor(workers, timeout=600, initializer=_start_worker, env=_NO_RESTARTS)
    return _pools[workers]


def stop(executor: Executor) -> None:
    """End an executor and what it still runs, at once where it can be."""
    if isinstance(executor, loky.ProcessPoolExecutor):
        for size in [size for size, known in _pools.items() if known is executor]:
            del _pools[size]
        executor.shutdown(wait=False, kill_workers=True)
    else:
        executor.shutdown(wait=False, cancel_futures=True)


def release() -> None:
    """End this machine's pools, and give back the memory that they hold."""
    for executor in list(_pools.values()):
        stop(executor)


# --- jobs ------------------------------------------------------------------------------------------------------


def _named(run: Run) -> str:
    return f"{run.variant!r} of {run.config.dataset['name']}, seed {run.config.seed}"


def _is_of_files(error: Exception) -> bool:
    return isinstance(error, OSError) or (isinstance(error, SafetensorError) and "os error" in str(error))


def _work(payload: bytes) -> RunError | None:
    """What a worker does: train once, then sample and score every run of the job, all into the store.

    It returns the error of a training that took too long, as an executor may try again what raises.
    """
    url, parts, runs, reference, limit = cloudpickle.loads(payload)
    registry.register_again(parts)
    store, threads, start = Store(url), torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)

    def in_time(step: int) -> None:
        if limit is not None and time.monotonic() - start > limit:
            raise _OutOfTime

    try:
        if reference is not None:
            stages.references(*reference, store)
        for run in runs:
            try:
                if _untrained(run.config, store):
                    stages.train(run.config, store, on_step=in_time)
                stages.score(run.config, run.step, store)
            except _OutOfTime:
                return RunError(
                    f"run {_named(run)} trained for longer than its study's time_limit, {limit:,.0f} s; {_AGAIN}, or "
                    "raise the limit in studies.yml"
                )
            except Exception as error:
                if _is_of_files(error):  # a full disk: where in the code it was tells nothing
                    raise RunError(f"run {_named(run)} failed: {error}; the store is {url}") from None
                trace = "".join(traceback.format_exception(error)[-4:])
                raise RunError(f"run {_named(run)} failed: {type(error).__name__}: {error}\n{trace}") from None
    except OSError as error:
        raise RunError(f"floors and ceilings failed: {error}; the store is {url}") from None
    finally:
        torch.set_num_threads(threads)


def _is_there(run: Run, store: Store) -> bool:
    """Whether every score of a run is in the store."""
    config = run.config
    if config.denoiser == "network" and not store.has("sample", stages.sample_key(config, run.step)):
        return False
    return all(store.has("score", stages.score_key(config, run.step, metric)) for metric in config.metrics)


def missing(runs: Iterable[Run], store: Store | None = None) -> list[list[Run]]:
    """The jobs that are still to be computed: runs that wait for one training, or that score one sample, together."""
    store, jobs = store or stores.default(), {}
    for run in runs:
        if not _is_there(run, store):
            key = (
                stages.train_key(run.config)
                if _untrained(run.config, store)
                else stages.sample_key(run.config, run.step)
            )
            jobs.setdefault(key, []).append(run)
    return list(jobs.values())


def _untrained(config: Experiment, store: Store) -> bool:
    """Whether a config's training is still to be done."""
    needed = config.denoiser == "network" and config.weights is None
    return needed and not store.has("train", stages.train_key(config))


def _flop(config: Experiment) -> int:
    network = build_seeded(lambda: NETWORKS.build(dict(config.network), shape=config.data.shape), 0)
    return flop(network.eval())


_nfe: dict[str, int] = {}  # many runs share few samplers, whose steps are counted one by one


def _sampling(config: Experiment) -> float:
    """Seconds that a run takes beside its training, on one core of 100 GFLOP a second; at least one."""
    if config.denoiser != "network":
        return 1.0
    key = str((config.sampler, config.schedule))
    if key not in _nfe:
        _nfe[key] = SAMPLERS.build(config.sampler).nfe(config.make_schedule())
    nfe = _nfe[key] * (2 if config.guidance not in (None, 1.0) else 1)
    if config.n_samples * nfe * math.prod(config.data.shape) < 1e7:  # points, whose networks are not worth building
        return 1.0
    return max(1.0, config.n_samples * nfe * _flop(config) / 1e11)


def _step(config: Experiment) -> float:
    """Seconds that an optimiser step takes, on one core of 100 GFLOP a second: three passes, and a millisecond.

    A millisecond alone for a network that does not take a single point.
    """
    try:
        return 1e-3 + 3 * config.training.batch_size * _flop(config) / 1e11
    except Exception:
        return 1e-3


def expected(jobs: Iterable[list[Run]], runs: Iterable[Run], store: Store | None = None) -> list[float]:
    """Seconds that each job should take on one core.

    A step costs what it cost, in the median, in trainings among `runs` of the same network on the same dataset in
    batches of the same size. Where there is none, it costs what its FLOP suggest, times the median of what steps did
    cost over what theirs suggest. Sampling and scoring count as one second a run, or what a network for pictures takes.

    Args:
        jobs: see `missing`.
        runs: those whose trainings tell the pace.
        store: the default one if omitted.
    """
    store, paces, guesses = store or stores.default(), {}, {}

    def kind(config: Experiment) -> str:
        return str((config.dataset, config.network, config.training.batch_size, config.training.precision))

    def guess(config: Experiment) -> float:
        if kind(config) not in guesses:
            guesses[kind(config)] = _step(config)
        return guesses[kind(config)]

    trainings = {}
    for run in runs:
        if run.config.denoiser == "network" and run.config.weights is None:
            trainings.setdefault(stages.train_key(run.config), run.config)
    for key, config in trainings.items():
        if (note := store.note("train", key)) is not None:
            paces.setdefault(kind(config), []).append((note["seconds"] / note["steps"], config))
    jobs = list(jobs)
    waiting = [_untrained(job[0].config, store) for job in jobs]
    slower = 1.0
    if any(waits and kind(job[0].config) not in paces for job, waits in zip(jobs, waiting, strict=True)):
        slower = median([pace / guess(config) for found in paces.values() for pace, config in found] or [1.0])
    seconds = []
    for job, waits in zip(jobs, waiting, strict=True):
        config, found = job[0].config, sum(_sampling(run.config) for run in job)
        if waits:
            steps = config.training.options(config.training.n_points or config.data.n_train).n_steps
            known = [pace for pace, _ in paces.get(kind(config), [])]
            found += steps * (median(known) if known else slower * guess(config))
        seconds.append(found)
    return seconds


def _as_done(homes: Mapping[Future, Executor]) -> Iterator[Future]:
    """Futures as they are done, each of an executor.

    Raises:
        RunError: a pool's processes are gone and it does not say so.
    """

    def is_gone(pool: Executor) -> bool:
        own = isinstance(pool, loky.ProcessPoolExecutor)
        return own and not any(process.is_alive() for process in list(pool._processes.values()))

    left, gone = set(homes), set()
    while left:
        done, left = wait(left, PATIENCE, FIRST_COMPLETED)
        yield from done
        if not done:
            before, gone = gone, {pool for pool in {homes[future] for future in left} if is_gone(pool)}
            if before & gone:
                raise RunError(f"the pool's processes are gone with {len(left)} jobs to do; {_AGAIN}")


def _turn(pair: tuple[list[Run], float]) -> tuple[int, int]:
    """No long job at the end; among those that take about as long seed by seed, as the first to need a law's truth
    computes it and the others then find it.
    """
    (first, *_), seconds = pair
    return -math.frexp(seconds)[1], first.config.seed


def compute(
    runs: Iterable[Run],
    executor: Executor | None = None,
    store: Store | None = None,
    progress: bool = True,
    title: str = "runs",
    go_on: bool = False,
    time_limit: Callable[[Run], float] | None = None,
) -> list[tuple[list[Run], Exception]]:
    """Compute what the store lacks of some runs, and the floors and ceilings of their scores.

    Args:
        runs: what is wanted.
        executor: any `concurrent.futures` executor; this machine's cores if omitted.
        store: where results are; the default one if omitted.
        progress: show a text progress bar.
        title: its name.
        go_on: after a failure compute the others all the same, and return the failures.
        time_limit: seconds that a run may train; no limit if omitted.

    Returns:
        Jobs that failed, each with its error; none without `go_on`.

    Raises:
        RunError: a run failed, and those that had not begun do not start; or the executor's processes died.
    """
    runs, store = list(runs), store or stores.default()
    parts = [part for part in registry.defined_interactively() if part[0] != "study"]  # workers know runs alone

    def payload(job: list[Run], reference=None) -> bytes:
        limit = max(map(time_limit, job)) if time_limit and job else None
        return cloudpickle.dumps((store.url, parts, job, reference, limit))

    scored = {
        (r.config.dataset["name"], m): (r.config.dataset, m)
        for r in runs for m in r.config.metrics if SCORES[m].calibrated
    }  # fmt: skip
    references = [p for p in scored.values() if not store.has("reference", stages.reference_key(*p))]
    own = executor is None
    # floors need no GPU: where this machine's pool is the one process that has it, all its cores compute them
    beside = pool() if own or executor in _pools.values() else executor
    executor = executor or beside
    homes: dict[Future, Executor] = {}
    futures: dict[Future, list[Run]] = {}
    seconds: dict[Future, float] = {}
    failed: list[tuple[list[Run], Exception]] = []
    try:
        for pair in references:  # a pool's processes start while the jobs are still being counted
            futures[future := beside.submit(_work, payload([], pair))] = []
            homes[future] = beside
        jobs = missing(runs, store)
        if not jobs and not references:
            return []
        costs = expected(jobs, runs, store) if progress else [1.0] * len(jobs)
        for job, needed in sorted(zip(jobs, costs, strict=True), key=_turn):
            futures[future := executor.submit(_work, payload(job))] = job
            seconds[future], homes[future] = needed, executor
        # a job counts by its expected seconds, so that the time left is an estimate; floors do not, as none is known
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        with tqdm(
            total=sum(seconds.values()), desc=title, disable=not progress, mininterval=1.0, bar_format=form
        ) as bar:
            for count, future in enumerate(_as_done(homes), 1):
                try:
                    if (late := future.result()) is not None:
                        raise late
                except Exception as error:
                    if isinstance(error, BrokenExecutor):
                        error = RunError(f"a process was killed, perhaps for want of memory; {_AGAIN}")
                    if not go_on:
                        raise error from None
                    failed.append((futures[future], error))
                bar.set_postfix_str(f"{count} of {len(futures)} jobs", refresh=False)
                bar.update(seconds.get(future, 0.0))
    except BaseException as error:
        if executor in _pools.values() and (own or not isinstance(error, Exception)):
            for each in {executor, beside}:
                stop(each)  # with its jobs; it stumbles over one that was cancelled before
        else:
            for future in futures:
                future.cancel()
        raise
    return failed


def gather(study: str, runs: Iterable[Run], store: Store | None = None) -> pd.DataFrame:
    """The tidy table of runs: one row per (variant, seed, metric), `COLUMNS` and the factors.

    What the store lacks is computed on the way, one run after another; `compute` does that side by side.
    """
    runs, store = list(runs), store or stores.default()
    rows, factors = [], list(dict.fromkeys(name for run in runs for name in run.factors))
    for run in runs:
        name = run.config.dataset["name"]
        values, bounds_of = stages.score(run.config, run.step, store), {}
        for metric in run.config.metrics:
            if SCORES[metric].calibrated:
                found = stages.references(run.config.dataset, metric, store)
                bounds_of |= {column: (SCORES[metric].n, value) for column, value in found.items()}
        for metric, value in values.items():
            if metric.endswith(" p"):
                continue
            n, bounds = None, (None, None, None)
            if metric in bounds_of:
                n, found = bounds_of[metric]
                bounds = found.floor_mean, found.floor_sd, found.ceiling_mean
            row = (study, name, run.variant, run.config.seed, metric, n, value, *bounds, values.get(f"{metric} p"))
            rows.append((*row, *(run.factors.get(factor) for factor in factors)))
    table = pd.DataFrame(rows, columns=[*COLUMNS, *factors])
    table["n"] = table["n"].astype("Int64")
    order = {variant: i for i, variant in enumerate(dict.fromkeys(run.variant for run in runs))}
    return table.sort_values(
        ["dataset", "variant", "seed", "metric"],
        key=lambda column: column.map(order) if column.name == "variant" else column,
        ignore_index=True, kind="stable",
    )  # fmt: skip


def run_all(
    study: str,
    runs: Mapping[str, Experiment] | Iterable[Run],
    seeds: Iterable[int] | None = None,
    executor: Executor | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute what is missing of some runs, side by side, and return their tidy table.

    Args:
        study: name of the study, for the table.
        runs: runs; or variant -> config.
        seeds: seeds to give each of them; their configs' own if omitted.
        executor, store, progress: see `compute`.
    """
    if isinstance(runs, Mapping):
        runs = [Run(variant, config) for variant, config in runs.items()]
    runs = list(runs) if seeds is None else over_seeds(runs, seeds)
    compute(runs, executor, store, progress, study)
    return gather(study, runs, store)
