"""Experiments: a frozen, validated config says what is learned, with what, how it is sampled and how it is scored.

A named part is a mapping with its `name` and its options, as its module's `make` takes them:
`schedule={"name": "linear", "n_steps": 50}`; the name alone stands for its defaults. Every part is built once at
construction, so a wrong name or option fails there.
"""

from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from functools import lru_cache
from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from ddpmlab import data, networks, samplers, schedules
from ddpmlab.denoisers import PARAMETERISATIONS, Denoiser
from ddpmlab.lab import weights
from ddpmlab.lab.scores import SCORES
from ddpmlab.training import Options, build_seeded

POINTS_SEED = 2_000_003
DENOISERS = ("network", "exact", "empirical", "law")
STRICT = ConfigDict(extra="forbid")
Part = Mapping[str, Any]


@validated(frozen=True, config=STRICT)
class Training(Options):
    """How to train: the options of `training.fit`, where each is explained, with the budget in epochs if you like.

    Give `epochs` (passes over the training points) or `n_steps`. The points are the dataset's training split, or, with
    `n_points`, so many others drawn afresh: more than a run can visit is data without end.

    Args:
        epochs: passes over the training points.
        n_points: how many points to draw afresh.
        keep_epochs: passes after which to keep weights, besides `keep_steps` and the last step; at most `epochs`.

    Raises:
        ValueError: both or neither budget, or an option out of range.
    """

    epochs: float | None = None
    n_points: int | None = None
    keep_epochs: tuple[float, ...] = ()

    def __post_init__(self):
        if (self.epochs is None) == (self.n_steps is None):
            raise ValueError(f"epochs = {self.epochs}, n_steps = {self.n_steps}; give exactly one of them")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise ValueError(f"epochs = {self.epochs}; need a positive number of passes")
        if self.n_points is not None and self.n_points < 1:
            raise ValueError(f"n_points = {self.n_points}; training needs at least 1 point")
        budget = self.epochs or 0
        if self.keep_epochs and not 0 < min(self.keep_epochs) <= max(self.keep_epochs) <= budget:
            raise ValueError(f"keep_epochs = {self.keep_epochs} must lie within epochs = {self.epochs}")
        super().__post_init__()

    def step_of(self, epochs: float, n_points: int) -> int:
        """The optimiser step at which a number of passes over `n_points` is complete."""
        return max(1, round(epochs * n_points / self.batch_size))

    def points(self, dataset: data.Dataset) -> tuple[Tensor, Tensor | None]:
        """The points to train on, `(n, *shape)`, and their labels where there are any."""
        if self.n_points is not None:
            return dataset.sample(self.n_points, POINTS_SEED), None
        split = dataset.split()
        return split.train, split.train_labels

    def options(self, n_points: int) -> Options:
        """Options of `fit` for a training set of `n_points`."""
        found = {f.name: getattr(self, f.name) for f in fields(Options)}
        if self.epochs is not None:
            found["n_steps"] = self.step_of(self.epochs, n_points)
        kept = {*found["keep_steps"], *(self.step_of(e, n_points) for e in self.keep_epochs)}
        return Options(**found | {"keep_steps": tuple(sorted(kept))})


def _named(part: str | Part) -> dict[str, Any]:
    return {"name": part} if isinstance(part, str) else dict(part)


@validated(frozen=True, config=STRICT)
class Experiment:
    """One run, complete.

    Args:
        dataset: named part; always learned in standardised units.
        schedule, network, sampler: named parts.
        parameterisation: see `denoisers`.
        denoiser: `network`, a trained one; or what trained ones are held to: `exact` (the law's own), `empirical` (that
            of the training set), `law` (no denoiser at all: fresh points of the law, a perfect sampler). For the
            others network and training have no effect.
        training: how to train.
        weights: committed weights (`lab.weights`) to take in place of a training.
        n_samples: how many points to draw.
        guidance: classifier-free guidance towards balanced classes, 1 for plain conditional samples; unconditional
            samples if omitted.
        metrics: names of scores, see `scores.SCORES`.
        average: sample from averaged weights instead of the last ones: true, or which of several widths.
        seed: fixes everything.
        draw: which samples of the same training; scores that draw take it for another seed.

    Raises:
        ValueError: a name or a value out of range, or parts that do not fit together.
        TypeError: an option that a part does not have.
    """

    dataset: str | dict[str, Any]
    schedule: str | dict[str, Any] = "linear"
    network: str | dict[str, Any] = "mlp"
    parameterisation: str = "epsilon"
    denoiser: str = "network"
    training: Training = field(default_factory=lambda: Training(epochs=100))
    weights: str | None = None
    sampler: str | dict[str, Any] = "ddpm"
    n_samples: int = 5_000
    guidance: float | None = None
    metrics: tuple[str, ...] = ("emd_128",)
    average: bool | float = False
    seed: int = 0
    draw: int = 0

    def __post_init__(self):
        for name in ("dataset", "schedule", "network", "sampler"):
            object.__setattr__(self, name, _named(getattr(self, name)))
        for name, value, allowed in (
            ("parameterisation", self.parameterisation, PARAMETERISATIONS),
            ("denoiser", self.denoiser, DENOISERS),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; choose one of: {', '.join(allowed)}")
        dataset, needed = self.dataset["name"], 2
        for name in self.metrics:
            score = SCORES[name]
            if score.dataset not in (None, dataset):
                raise ValueError(f"metric {name} is one of the dataset {score.dataset}, not of {dataset}")
            needed = max(needed, score.n)
        if self.n_samples < needed:
            raise ValueError(f"n_samples = {self.n_samples}; the metrics {list(self.metrics)} compare {needed}")
        if self.weights is not None:
            weights.path(self.weights)
        if self.average is not False and not self.training.widths:
            raise ValueError(f"average = {self.average} needs training with ema_decay or ema_sigma_rel")
        if not isinstance(self.average, bool) and self.average not in self.training.widths:
            raise ValueError(f"average = {self.average}; training keeps the widths {list(self.training.widths)}")
        sampler = samplers.SAMPLERS.build(self.sampler)
        _checked_parts(_frozen(self.dataset), _frozen(self.schedule), _frozen(self.network), self.parameterisation)
        schedules.SCHEDULES.build(self.schedule).times(sampler.n_steps, sampler.spacing)

    @property
    def data(self) -> data.Dataset:
        """The dataset in standardised units."""
        return standardised(self.dataset)

    def make_schedule(self) -> schedules.Schedule:
        """The forward process."""
        return schedules.SCHEDULES.build(self.schedule)

    def build(self) -> Denoiser:
        """An untrained denoiser of this config, its weights drawn under the seed."""
        return build_denoiser(self)

    def spelt_out(self) -> dict[str, Any]:
        """The config as plain values with every part's defaults filled in."""
        found = asdict(self)
        found["dataset"] = data.DATASETS.spelt_out(self.dataset)
        found["schedule"] = schedules.SCHEDULES.spelt_out(self.schedule)
        found["network"] = networks.NETWORKS.spelt_out(self.network, shape=self.data.shape)
        found["sampler"] = samplers.SAMPLERS.spelt_out(self.sampler)
        return found


def limit(config: Experiment, denoiser: str = "exact", n_samples: int | None = None) -> Experiment:
    """What perfect training reads: a config with another denoiser in place of its network.

    Real against real is the floor of a score; a chain that stops short of noise, or takes too few steps, does not reach
    it even with the exact denoiser. What lies between a trained network and this limit is the network's.

    Args:
        config: dataset, schedule, sampler and metrics count.
        denoiser: `exact`, `empirical` or `law`.
        n_samples: how many points to draw; the config's if omitted. Scores that compare more are left out, and so are
            those of the denoiser itself.
    """
    n = n_samples or config.n_samples
    kept = tuple(m for m in config.metrics if SCORES[m].of != "denoiser" and SCORES[m].n <= n)
    return replace(config, denoiser=denoiser, n_samples=n, metrics=kept, average=False, guidance=None)


def build_denoiser(config: Experiment) -> Denoiser:
    """An untrained denoiser, its weights drawn under the config's seed."""
    network = build_seeded(lambda: networks.NETWORKS.build(config.network, shape=config.data.shape), config.seed)
    return Denoiser(network, config.make_schedule(), config.parameterisation)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ("\0dict", *((k, _frozen(v)) for k, v in sorted(value.items())))
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple) and value[:1] == ("\0dict",):
        return {k: _thawed(v) for k, v in value[1:]}
    return [_thawed(v) for v in value] if isinstance(value, tuple) else value


@lru_cache(maxsize=512)
def _standardised(part, factory) -> data.Dataset:
    return data.DATASETS.build(_thawed(part)).standardised()


def standardised(part: str | Part) -> data.Dataset:
    """A dataset in the units in which it is learned; built once a process."""
    part = _named(part)
    return _standardised(_frozen(part), data.DATASETS[part["name"]])


@lru_cache(maxsize=2_048)
def _checked_parts(dataset, schedule, network, parameterisation) -> None:
    """Build the parts once, so that what does not fit fails early."""
    with torch.random.fork_rng(devices=[]):
        built = networks.NETWORKS.build(_thawed(network), shape=standardised(_thawed(dataset)).shape)
    Denoiser(built, schedules.SCHEDULES.build(_thawed(schedule)), parameterisation)
