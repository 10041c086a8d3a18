"""Studies as data: parameters -> the runs that a table needs, one module a study.

```python
study = studies.make("epochs", epochs=[100, 500], n_seeds=3)
study.status()  # what is there and what is missing
study.table()   # computes what is missing, over any executor
```

Everything that needs to know what a study consists of starts here: the notebook that shows its table, `ddpmlab status`,
the fan-out over a cluster, the explorer.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pydantic import ConfigDict, ValidationError, validate_call

from ddpmlab.lab import runner, stages
from ddpmlab.lab import store as stores
from ddpmlab.lab.runner import Run
from ddpmlab.lab.store import Store
from ddpmlab.registry import Registry

STUDIES = Registry("study")
HOMEWORK_LAWS = ("sin_5_5", "helix")
EXACT, PERFECT = "exact denoiser", "perfect sampler"
"""Names of the variants that a table's networks are held to; `EXACT` is the law's own denoiser in their place,
`PERFECT` fresh points of the law."""


@dataclass(frozen=True)
class Status:
    """What of a study is in the store.

    Attributes:
        present: how many runs are there.
        missing: how many are not.
        seconds: what the trainings that are there took.
        expected: seconds that the missing runs should take on one core, see `runner.expected`.
    """

    present: int
    missing: int
    seconds: float
    expected: float


@dataclass(frozen=True)
class Study:
    """A named list of runs.

    Attributes:
        name: that of its notebook, page and table.
        parameters: what it was made with.
        runs: a row each.
    """

    name: str
    parameters: Mapping[str, Any]
    runs: list[Run] = field(repr=False)

    def table(
        self, executor: Executor | None = None, store: Store | None = None, progress: bool = True
    ) -> pd.DataFrame:
        """The tidy table of all runs; computes what the store lacks, see `runner.compute`."""
        return runner.run_all(self.name, self.runs, executor=executor, store=store, progress=progress)

    def select(self, **factors: Any) -> list[Run]:
        """The runs whose factors, `variant`, `dataset` or `seed` have the given values.

        Raises:
            ValueError: there is none.
        """

        def has(run: Run, name: str, value: Any) -> bool:
            own = {"variant": run.variant, "dataset": run.config.dataset["name"], "seed": run.config.seed}
            return {**run.factors, **own}.get(name) == value

        found = [run for run in self.runs if all(has(run, *item) for item in factors.items())]
        if not found:
            raise ValueError(f"study {self.name} has no run with {factors}; its variants: {self.variants}")
        return found

    @property
    def variants(self) -> list[str]:
        """Names of the variants, in their order."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    def status(self, store: Store | None = None) -> Status:
        """What is there, what is missing, and how long it took or should take."""
        store = store or stores.default()
        jobs, trained = runner.missing(self.runs, store), {}
        for run in self.runs:
            if run.config.denoiser == "network" and run.config.weights is None:
                key = stages.train_key(run.config)
                trained.setdefault(key, store.note("train", key))
        seconds = sum(note["seconds"] for note in trained.values() if note is not None)
        missing = sum(map(len, jobs))
        return Status(len(self.runs) - missing, missing, seconds, sum(runner.expected(jobs, self.runs, store)))


def names() -> list[str]:
    """Every study's name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(STUDIES)


def parameters(name: str) -> list[str]:
    """Names of a study's parameters."""
    names()
    return list(inspect.signature(STUDIES[name]).parameters)


def make(name: str, **parameters: Any) -> Study:
    """A study with its parameters; those that are omitted have the defaults of its function.

    Raises:
        ValueError: an unknown study or parameter, or a value of the wrong type (the message names each).
    """
    names()
    build = STUDIES[name]
    try:
        runs = validate_call(build, config=ConfigDict(arbitrary_types_allowed=True))(**parameters)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg'].lower()}"
            if e["type"] != "unexpected_keyword_argument" else f"it has no parameter {e['loc'][0]}"
            for e in error.errors()
        )  # fmt: skip
        known = ", ".join(inspect.signature(build).parameters)
        raise ValueError(f"study {name}: {problems}; its parameters: {known}") from None
    runs = list(runs)
    return Study(name, parameters, runs)


def register(build: Callable[..., Iterable[Run]]) -> Callable[..., Iterable[Run]]:
    """Decorator that enters a function of parameters -> runs under its own name."""
    return STUDIES.register(build.__name__)(build)
