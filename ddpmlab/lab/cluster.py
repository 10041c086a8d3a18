"""Where runs are computed: this machine's cores, a local Dask cluster, or one that exists.

What fans out are the runs of studies (config and seed), not notebooks. A task trains, samples and scores into the store
and returns nothing, so a worker, the scheduler or the client may die: the next call computes what is missing and goes
on from the checkpoints. Workers run one thread each; with a GPU in use a task asks for one, so that one GPU trains one
network at a time.
"""

import contextlib
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from ddpmlab.lab import runner
from ddpmlab.lab import store as stores

TIMEOUT = 30
RETRIES = 3
PATIENCE = 60.0
"""Seconds between two lines that say that no worker is there yet."""
_HERE = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0", "inproc", "")


def use_device(device: str) -> bool:
    """Make `auto` mean this device, here and in the processes that are started from here; whether it is a GPU.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: CUDA is asked for where there is none, or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose one of: auto, cpu, cuda")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return False
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ValueError("device = 'cuda', but torch finds no CUDA device here; choose auto or cpu")
    return there


def _is_here(address: str) -> bool:
    """Whether a scheduler's address names this machine."""
    host = address.partition("://")[2].rpartition(":")[0] or address.partition("://")[0]
    own = [socket.gethostname()]
    with contextlib.suppress(OSError):
        own += socket.gethostbyname_ex(own[0])[2]
    return host in (*_HERE, *own)


def _wait_for_a_worker(client) -> None:
    """Wait until a scheduler has a worker, which a queue may take hours to start, and say so; Ctrl-C ends it."""
    start = time.monotonic()
    while not client.scheduler_info()["workers"]:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            minutes = (time.monotonic() - start) / 60
            print(f"no worker at {client.scheduler.address} yet, after {minutes:.0f} minutes; waiting", file=sys.stderr)


@contextmanager
def executor(workers: int | None = None, scheduler: str | None = None, gpus: bool = False) -> Iterator[Executor | None]:
    """A context manager that gives an executor for `runner.compute`; a local cluster ends with it.

    It gives None, which stands for this machine's cores, if nothing is asked for.

    Args:
        workers: processes of a local Dask cluster.
        scheduler: address of a running scheduler (`tcp://host:8786`), or the path of its scheduler file.
        gpus: one GPU trains one network at a time: here a single process computes, and on a cluster each task holds one
            unit of the workers' resource `GPU`.

    Raises:
        ValueError: both, fewer than one worker, several on one GPU, no scheduler answers, or a store that no other
            process can reach.
        ModuleNotFoundError: a cluster is asked for, and `distributed` is not installed.

    Warns:
        UserWarning: the scheduler is on another machine and the store in a folder, which the workers have to share.
    """
    if workers is None and scheduler is None:
        yield runner.pool(1) if gpus else None
        return
    if workers is not None and scheduler is not None:
        raise ValueError(f"workers = {workers} and scheduler = {scheduler!r}; give one of them")
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}; need at least 1")
    if workers is not None and workers > 1 and gpus:
        raise ValueError(
            f"workers = {workers} would share one GPU; choose 1, or --device cpu, or start a worker for each GPU and "
            "pass its --scheduler (the page on scale has the commands)"
        )
    from distributed import Client, LocalCluster

    if stores.default_url().startswith("memory://"):
        raise ValueError("the store memory:// is this process's own; set DDPMLAB_CACHE to a folder or a shared URL")
    options = {"resources": {"GPU": 1}} if gpus else {}
    if workers is not None:
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, **options
        )  # fmt: skip
        with cluster, Client(cluster) as client:
            yield client.get_executor(retries=RETRIES, pure=False, **options)
        return
    how = {"scheduler_file": scheduler} if os.path.exists(scheduler) else {"address": scheduler}
    try:
        client = Client(**how, timeout=TIMEOUT)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler}: {error}; is it running?") from error
    with client:
        url, address = stores.default_url(), client.scheduler.address
        if "://" not in url and not _is_here(address):
            warnings.warn(
                f"the store {url} is a folder and the scheduler {address} is elsewhere: every worker must see this "
                "folder under this path; else set DDPMLAB_CACHE to a shared URL, for them too",
                stacklevel=3,
            )
        _wait_for_a_worker(client)
        yield client.get_executor(retries=RETRIES, pure=False, **options)
