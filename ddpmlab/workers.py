"""Worker processes: one run, one core, and none that outlives its parent."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch


def _start_worker() -> None:
    """One thread: bits that do not depend on the number of cores, and no contention; and an end with the parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # an interrupt ends it without a traceback

    def watch():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_kept: dict[tuple, ProcessPoolExecutor] = {}


@contextmanager
def pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that die with the process that started them: a killed study leaves nothing running.

    It is kept for the next call of the same size and environment, because fresh processes take seconds to import torch;
    after an error it is shut down. As many processes as cores, if omitted.
    """
    workers = workers or os.cpu_count() or 1
    key = workers, tuple(sorted(os.environ.items()))
    if getattr(_kept.get(key), "_broken", True):  # none yet, or its workers were interrupted
        for old in list(_kept):
            _kept.pop(old).shutdown(wait=False)
        _kept[key] = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )
    try:
        yield _kept[key]
    except BaseException:
        _kept.pop(key).shutdown(wait=False, cancel_futures=True)
        raise
