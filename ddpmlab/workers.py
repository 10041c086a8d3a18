"""Worker processes: one run, one core, and none that outlives its parent."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import torch


def _start_worker() -> None:
    """One thread: bits that do not depend on the number of cores, and no contention; and an end with the parent."""
    torch.set_num_threads(1)

    def watch():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes that die with the process that started them: a killed study leaves nothing running."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
