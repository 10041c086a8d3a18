"""What a page's results cost, wherever and whenever they were made: the seconds that their entries in the store keep.

The process of a page notes each entry that it reads. So tables that a page remembers count as runs do, and what was
made for an earlier run of the page counts as if it were made for this one.
"""

import os
from pathlib import Path

from ddpmlab.lab import stages
from ddpmlab.lab import store as stores
from ddpmlab.lab.store import Store
from ddpmlab.studies import Study

VARIABLE = "DDPMLAB_READ"
"""Names the file in which a process notes what it reads."""


def record() -> None:
    """From now on, note what this process reads from any store, if the environment names a file for it."""
    path, plain = os.environ.get(VARIABLE), Store.get
    if not path or getattr(plain, "noting", False):
        return

    def get(self: Store, kind: str, key: str):
        entry = plain(self, kind, key)
        if entry is not None:
            seconds = entry.note.get("seconds", entry.note.get("seconds_sample", 0.0))
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{kind} {key} {seconds:.6g}\n")
        return entry

    get.noting = True
    Store.get = get


def seconds(path: Path, study: Study | None = None, store: Store | None = None) -> float:
    """Sum over the entries that a page read, each once, and over the trainings of its runs, which it need not read.

    Args:
        path: what `record` wrote; there is none if nothing was read.
        study: the page's runs.
        store: where their trainings are; the default one if omitted.
    """
    store, found = store or stores.default(), {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        kind, key, spent = line.split(" ")
        found[kind, key] = float(spent)
    for run in study.runs if study else ():
        if run.config.denoiser == "network" and run.config.weights is None:
            key = stages.train_key(run.config)
            if ("train", key) not in found and (note := store.note("train", key)) is not None:
                found["train", key] = note["seconds"]
    return sum(found.values())
