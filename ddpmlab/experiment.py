"""Experiments: a frozen config is trained, sampled and scored, and each stage is cached by content.

A cache key is the hash of the part of the config that a stage depends on and of the package code that it runs
(docstrings and comments aside), so a changed metric scores again but does not train again. Every entry carries the
checksums of its files: a damaged one is named, dropped and rebuilt.
"""

import ast
import hashlib
import inspect
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import pooch
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as validated
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm  # text, so that it reaches the console of a batch run

from ddpmlab import data, metrics, networks, samplers, schedules
from ddpmlab.denoisers import PARAMETERISATIONS, Denoiser
from ddpmlab.files import atomic
from ddpmlab.metrics import calibration, likelihood, moons, two_sample
from ddpmlab.training import CheckpointError, Fit, Options, build_seeded, fit
from ddpmlab.workers import pool

COLUMNS = (
    *("study", "dataset", "variant", "seed", "metric", "n"),
    *("value", "floor_mean", "floor_sd", "ceiling", "p_value"),
)

_CODE = {
    "train": ("data/laws.py", "schedules.py", "networks/*.py", "denoisers.py", "training/*.py"),
    "sample": ("samplers.py",),
    "score": ("data/quadrature.py", "metrics/*.py", "experiment.py"),
}
_STAGES = tuple(_CODE)


class DamagedCacheWarning(UserWarning):
    """A cache entry failed its checksum and is rebuilt."""


def cache_folder() -> Path:
    """Where results are kept: `DDPMLAB_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("DDPMLAB_CACHE") or pooch.os_cache("ddpmlab"))


_SAMPLING_SEED = 1_000_003
_POINTS_SEED = 2_000_003
_STRICT = ConfigDict(extra="forbid")


@validated(frozen=True, config=_STRICT)
class Training:
    """How to train: the options of `training.fit`, where each is explained.

    Give `epochs` (passes over the training points) or `n_steps`. The points are the law's training split, or, with
    `n_points`, so many others drawn afresh: more than a run can visit is data without end.
    """

    epochs: float | None = None
    n_steps: int | None = None
    n_points: int | None = None
    keep_epochs: tuple[float, ...] = ()
    keep_steps: tuple[int, ...] = ()
    batch_size: int = 1_024
    learning_rate: float = 1e-3
    decay: str = "none"
    warmup: int = 0
    optimiser: str = "adam"
    weight_decay: float = 0.01
    grad_clip: float | None = None
    weighting: str = "simple"
    times: str = "uniform"
    log_normal: tuple[float, float] = (-1.2, 1.2)
    ema_decay: float | None = None
    ema_sigma_rel: float | None = None

    def __post_init__(self):
        if (self.epochs is None) == (self.n_steps is None):
            raise ValueError("give either epochs or n_steps")
        budget = self.epochs if self.epochs is not None else self.n_steps
        if budget <= 0 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"epochs = {self.epochs}, n_steps = {self.n_steps}, batch_size = {self.batch_size}, "
                f"learning_rate = {self.learning_rate}; all that are given must be positive"
            )
        if self.n_points is not None and self.n_points < 1:
            raise ValueError(f"n_points = {self.n_points}; training needs at least 1 point")
        if self.keep_epochs and (
            self.epochs is None or not 0 < min(self.keep_epochs) <= max(self.keep_epochs) <= budget
        ):
            raise ValueError(f"keep_epochs = {self.keep_epochs} must lie within epochs = {self.epochs}")
        Options(**{f.name: getattr(self, f.name) for f in fields(Options) if hasattr(self, f.name)})

    def step_of(self, epochs: float, n_points: int) -> int:
        """The optimiser step at which a number of passes over `n_points` is complete."""
        return max(1, round(epochs * n_points / self.batch_size))

    def points(self, law: data.Law) -> Tensor:
        """The points to train on, `(n, dim)`."""
        return law.split().train if self.n_points is None else law.sample(self.n_points, _POINTS_SEED)

    def options(self, n_points: int) -> dict[str, Any]:
        """Keyword arguments of `fit` for a training set of `n_points`."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_points"}
        epochs, keep_epochs = options.pop("epochs"), options.pop("keep_epochs")
        if epochs is not None:
            options["n_steps"] = self.step_of(epochs, n_points)
        options["keep_steps"] = sorted({*options["keep_steps"], *(self.step_of(e, n_points) for e in keep_epochs)})
        return options


@validated(frozen=True, config=_STRICT)
class Experiment:
    """One run, complete: what is learned, with what, how it is sampled and how it is scored.

    A named part is a mapping with its `name` and its options, as its module's `make` takes them:
    `schedule={"name": "linear", "n_steps": 50}`. Every part is built once at construction, so a wrong name or option
    fails here.

    Args:
        law: name of a law; always learned in standardised units.
        schedule, network, sampler: named parts.
        parameterisation: see `denoisers`.
        training: how to train.
        n_samples: how many points to draw.
        metrics: names of scores, see `SCORES`, `SAMPLE_SCORES` and `MODEL_SCORES`.
        average: sample from the averaged weights instead of the last ones.
        seed: fixes everything.
    """

    law: str
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "linear"})
    network: dict[str, Any] = field(default_factory=lambda: {"name": "mlp"})
    parameterisation: str = "epsilon"
    training: Training = field(default_factory=lambda: Training(epochs=100))
    sampler: dict[str, Any] = field(default_factory=lambda: {"name": "ddpm"})
    n_samples: int = 5_000
    metrics: tuple[str, ...] = ("emd_128",)
    average: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.parameterisation not in PARAMETERISATIONS:
            raise ValueError(
                f"unknown parameterisation {self.parameterisation!r}; choose one of: {', '.join(PARAMETERISATIONS)}"
            )
        known = {**SCORES, **SAMPLE_SCORES, **MODEL_SCORES}
        unknown = [name for name in self.metrics if name not in known]
        if unknown:
            raise ValueError(f"unknown metrics {unknown}; choose from: {', '.join(sorted(known))}")
        for name in self.metrics:
            if name in SAMPLE_SCORES and SAMPLE_SCORES[name].law not in (None, self.law):
                raise ValueError(f"metric {name} is one of the law {SAMPLE_SCORES[name].law}, not of {self.law}")
        needed = max([2, *(known[name].n for name in self.metrics if name not in MODEL_SCORES)])
        if self.n_samples < needed:
            raise ValueError(f"n_samples = {self.n_samples}; the metrics {list(self.metrics)} compare {needed}")
        if self.average and self.training.ema_decay is None and self.training.ema_sigma_rel is None:
            raise ValueError("average=True needs training with ema_decay or ema_sigma_rel")
        sampler = build(samplers.SAMPLERS, self.sampler)
        self.build().schedule.times(sampler.n_steps, sampler.spacing)

    def build(self) -> Denoiser:
        """An untrained denoiser of this config."""
        network = build(networks.NETWORKS, {**self.network, "shape": data.make(self.law).shape})
        return Denoiser(network, build(schedules.SCHEDULES, self.schedule), self.parameterisation)


def build(registry, part: Mapping[str, Any]) -> Any:
    """Make a named part: `{"name": ..., **options}`."""
    if "name" not in part:
        raise ValueError(f"a {registry.kind} needs a 'name', got {dict(part)}; choose one of: {', '.join(registry)}")
    return registry.make(part["name"], **{k: v for k, v in part.items() if k != "name"})


@cache
def _standardised(name: str):
    return data.make(name).standardised()


# --- the cache -------------------------------------------------------------------------------------------------


@cache
def code_hash(stage: str) -> str:
    """Hash of the code that a stage and those before it run; docstrings and comments do not count."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for name in _STAGES[: _STAGES.index(stage) + 1]:
        for path in sorted(p for pattern in _CODE[name] for p in root.glob(pattern)):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
                if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
                    node.body.pop(0)
            digest.update(path.name.encode() + ast.dump(tree).encode())
    return digest.hexdigest()


def _spelt_out(registry, part: Mapping[str, Any]) -> dict[str, Any]:
    """A named part with its defaults filled in, so that equal configs have equal keys."""
    bound = inspect.signature(registry[part["name"]]).bind(**{k: v for k, v in part.items() if k != "name"})
    bound.apply_defaults()
    return {"name": part["name"], **bound.arguments}


def _key(config: Experiment, stage: str, **extra) -> str:
    described = asdict(config)
    described["schedule"] = _spelt_out(schedules.SCHEDULES, config.schedule)
    described["network"] = _spelt_out(networks.NETWORKS, {**config.network, "shape": data.make(config.law).shape})
    described["sampler"] = {**_spelt_out(samplers.SAMPLERS, config.sampler), "seed": config.seed + _SAMPLING_SEED}
    described["training"] = config.training.options(config.training.n_points or data.make(config.law).n_train)
    if config.training.n_points is not None:
        described["training"]["n_points"] = config.training.n_points
    if stage != "score":
        del described["metrics"]
    if stage == "train":
        for name in ("sampler", "n_samples", "average"):
            del described[name]
    text = json.dumps([described, extra, code_hash(stage)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_entry(folder: Path) -> bool:
    """Whether a complete, undamaged entry is there; a damaged one is named and removed."""
    seal = folder / "checksums.json"
    if not seal.exists():
        return False
    try:
        sums = json.loads(seal.read_text())
        bad = [
            name for name, digest in sums.items() if not (folder / name).exists() or _digest(folder / name) != digest
        ]
    except (ValueError, AttributeError):
        bad = [seal.name]
    if bad:
        warnings.warn(f"cache entry {folder} is damaged ({', '.join(bad)}); building it again", DamagedCacheWarning, 3)
        shutil.rmtree(folder)
        return False
    return True


def _seal(folder: Path) -> None:
    """Write the checksums last: an entry without them is not there."""
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and p.name != "checksums.json"]
    with atomic(folder / "checksums.json") as temporary:
        temporary.write_text(json.dumps({p.name: _digest(p) for p in files}, indent=1))


def _save_json(path: Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str))


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)


# --- the stages ------------------------------------------------------------------------------------------------


def train(config: Experiment, progress: bool = False, on_step: Callable[[int], None] | None = None) -> Fit:
    """Train, or fetch from the cache; a run that was interrupted continues from its checkpoint."""
    folder = cache_folder() / "train" / _key(config, "train")
    if not _read_entry(folder):
        denoiser = build_seeded(config.build, config.seed)
        points = config.training.points(_standardised(config.law))
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / ".checkpoint.safetensors"
        options = config.training.options(len(points))
        start = perf_counter()
        for attempt in (1, 2):
            try:
                result = fit(
                    denoiser, points, seed=config.seed, checkpoint=checkpoint, progress=progress,
                    context=str(config), on_step=on_step, **options,
                )  # fmt: skip
                break
            except CheckpointError as error:
                if attempt == 2:
                    raise
                warnings.warn(f"{error}; starting this run anew", DamagedCacheWarning, 2)
                checkpoint.unlink(missing_ok=True)
        tensors = {f"weights/{s}/{k}": v for s in result.weights for k, v in result.weights[s].items()}
        tensors |= {f"average/{s}/{k}": v for s in result.averages for k, v in result.averages[s].items()}
        _save_tensors(folder / "weights.safetensors", tensors)
        note = {"losses": result.losses, "seconds": result.seconds, "wall": perf_counter() - start}
        _save_json(folder / "training.json", note)
        _save_json(folder / "config.json", asdict(config))
        _seal(folder)
        checkpoint.unlink(missing_ok=True)
    note = json.loads((folder / "training.json").read_text())
    result = Fit(losses=note["losses"], seconds=note["seconds"])
    for name, tensor in load_file(folder / "weights.safetensors").items():
        kind, step, key = name.split("/", 2)
        kept = result.weights if kind == "weights" else result.averages
        kept.setdefault(int(step), {})[key] = tensor
    return result


def trained(config: Experiment, step: int | None = None) -> Denoiser:
    """The trained denoiser of a config, at its last step or at one that was kept."""
    result = train(config)
    kept = result.averages if config.average else result.weights
    step = max(kept) if step is None else step
    if step not in kept:
        raise ValueError(f"no weights were kept at step {step}; kept: {sorted(kept)}")
    denoiser = config.build()
    denoiser.network.load_state_dict(kept[step])
    return denoiser.eval().requires_grad_(False)


def sample(config: Experiment, step: int | None = None) -> tuple[Tensor, dict[str, float]]:
    """Samples `(n_samples, dim)` of a trained config, and `seconds_sample` and `nfe`; cached."""
    folder = cache_folder() / "sample" / _key(config, "sample", step=step)
    if not _read_entry(folder):
        denoiser, sampler = trained(config, step), build(samplers.SAMPLERS, config.sampler)
        start = perf_counter()
        points = sampler.sample(denoiser, config.n_samples, seed=config.seed + _SAMPLING_SEED)
        seconds = perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        _save_tensors(folder / "samples.safetensors", {"x": points})
        _save_json(folder / "sampling.json", {"seconds_sample": seconds, "nfe": sampler.nfe(denoiser.schedule)})
        _seal(folder)
    return load_file(folder / "samples.safetensors")["x"], json.loads((folder / "sampling.json").read_text())


@dataclass(frozen=True)
class Score:
    """A score of the results contract: how many points it compares, and the function of (x, y) samples.

    The value of a run is the mean over `repeats` draws of `n` generated against `n` test points.
    """

    n: int
    function: calibration.Metric
    repeats: int = 1

    def mean(self, x: Tensor, y: Tensor, seed: int) -> float:
        """Mean over the draws."""
        generator = torch.Generator().manual_seed(seed)
        n = min(self.n, len(x))  # fewer where points diverged to infinity, which `divergent_share` counts
        draws = [
            self.function(calibration.draw(x, n, generator), calibration.draw(y, n, generator))
            for _ in range(self.repeats)
        ]
        return float(sum(draws) / len(draws))


SCORES: dict[str, Score] = {
    "emd_128": Score(128, calibration.emd_total, 50),
    "course_nll": Score(5_000, metrics.course_nll),
    "energy_distance": Score(5_000, metrics.energy_distance),
    "sliced_wasserstein": Score(5_000, metrics.sliced_wasserstein),
    "mmd2": Score(5_000, metrics.mmd2),
    "c2st_accuracy": Score(5_000, lambda x, y: metrics.c2st(x, y, "fast").accuracy),
    "c2st_auc": Score(5_000, lambda x, y: metrics.c2st(x, y, "fast").auc),
}


@dataclass(frozen=True)
class SampleScore:
    """A score of all generated points of a run: values by name, from (points, law, seed).

    Attributes:
        n: least number of points.
        function: returns the values; a permutation p-value goes by its score's name and ` p`.
        law: the only law that has it, if it is not one of every law.
    """

    n: int
    function: Callable[[Tensor, data.Law, int], dict[str, float]]
    law: str | None = None


def _large_energy_distance(points: Tensor, law: data.Law, seed: int, n: int = 20_000) -> dict[str, float]:
    tested = two_sample.permutation_test(points[:n], law.sample(n, _POINTS_SEED + seed), seed=seed)
    return {f"energy_distance_{n}": tested.statistic, f"energy_distance_{n} p": tested.p_value}


SAMPLE_SCORES: dict[str, SampleScore] = {
    "energy_distance_20000": SampleScore(20_000, _large_energy_distance),
    "thickness": SampleScore(2, lambda points, law, seed: {"thickness": moons.thickness(points)}, "two_moons"),
    "two-moons-report": SampleScore(5_000, lambda points, law, seed: moons.report_scores(points), "two_moons"),
}
"""Scores without floor and ceiling: `energy_distance_20000` with its test against as many fresh points of the law, and
those of `metrics.moons`."""


def truth(law: str, schedule: Mapping[str, Any]) -> likelihood.Truth:
    """Noisy points of a law under a schedule and their exact posterior means; cached, for every model to be held to."""
    text = json.dumps([law, _spelt_out(schedules.SCHEDULES, schedule), code_hash("score")], sort_keys=True)
    folder = cache_folder() / "truth" / hashlib.sha256(text.encode()).hexdigest()[:24]
    if not _read_entry(folder):
        found = likelihood.Truth.of(_standardised(law), build(schedules.SCHEDULES, schedule))
        folder.mkdir(parents=True, exist_ok=True)
        _save_tensors(folder / "truth.safetensors", asdict(found))
        _seal(folder)
    return likelihood.Truth(**load_file(folder / "truth.safetensors"))


def _nll_gap(config: Experiment, denoiser: Denoiser, split: str) -> float:
    law = _standardised(config.law)
    points = calibration.draw(getattr(law.split(), split), 500, torch.Generator().manual_seed(0))
    return likelihood.nll_gap(denoiser, law, points).value


MODEL_SCORES: dict[str, Callable[[Experiment, Denoiser], float]] = {
    "kl": lambda config, denoiser: truth(config.law, config.schedule).path_kl(denoiser).value,
    "nll_gap": lambda config, denoiser: _nll_gap(config, denoiser, "test"),
    "nll_gap_train": lambda config, denoiser: _nll_gap(config, denoiser, "train"),
}
"""Scores of a denoiser itself against the exact one, in nats. The floor of `kl` is 0, that of the excess likelihoods is
the prior mismatch."""


def sample_scores(law: str, points: Tensor, names: Iterable[str], seed: int) -> dict[str, float]:
    """Scores of finite samples against the law, and permutation p-values of those that have one, by `<name> p`."""
    reference, points, values = _standardised(law), points.double(), {}
    test = reference.split().test
    for name in names:
        if name in SAMPLE_SCORES:
            values |= SAMPLE_SCORES[name].function(points, reference, seed)
            continue
        values[name] = SCORES[name].mean(points, test, seed=seed)
        if name in two_sample.STATISTICS:
            n = SCORES[name].n
            values[f"{name} p"] = two_sample.permutation_test(points[:n], test[:n], name, seed=seed).p_value
    return values


def score(config: Experiment, step: int | None = None) -> dict[str, float]:
    """Values of the config's metrics on its samples against the law's test split; cached.

    A permutation p-value, where a score has one, goes by the score's name and ` p`.
    """
    folder = cache_folder() / "score" / _key(config, "score", step=step)
    if not _read_entry(folder):
        points, cost = sample(config, step)
        values = {"seconds_train": train(config).seconds, **cost}
        kept = points.isfinite().all(1)
        values["divergent_share"] = float((~kept | (points.abs() > calibration.DIVERGENT).any(1)).double().mean())
        values |= {n: MODEL_SCORES[n](config, trained(config, step)) for n in config.metrics if n in MODEL_SCORES}
        values |= sample_scores(
            config.law, points[kept], [n for n in config.metrics if n not in MODEL_SCORES], config.seed
        )
        folder.mkdir(parents=True, exist_ok=True)
        _save_json(folder / "scores.json", values)
        _seal(folder)
    return json.loads((folder / "scores.json").read_text())


def calibrated(law: str, metric: str, repeats: int | None = None) -> calibration.Calibration:
    """Floor and ceiling of a metric for a law, by single draws of its fresh samples against its test split; cached."""
    repeats = repeats or (200 if SCORES[metric].n <= 1_000 else 20)
    text = json.dumps([law, metric, repeats, code_hash("score")])
    folder = cache_folder() / "calibration" / hashlib.sha256(text.encode()).hexdigest()[:24]
    if not _read_entry(folder):
        reference = _standardised(law)
        found = calibration.floor_and_ceiling(
            SCORES[metric].function, reference, SCORES[metric].n, repeats, test=reference.split().test
        )
        folder.mkdir(parents=True, exist_ok=True)
        _save_json(folder / "calibration.json", asdict(found))
        _seal(folder)
    return calibration.Calibration(**json.loads((folder / "calibration.json").read_text()))


def remembered(name: str, function: Callable[..., pd.DataFrame], **arguments) -> pd.DataFrame:
    """A table that a function of this package computes from plain arguments; cached like a score."""
    text = json.dumps([name, arguments, code_hash("score")], sort_keys=True)
    folder = cache_folder() / "table" / hashlib.sha256(text.encode()).hexdigest()[:24]
    if not _read_entry(folder):
        table = function(**arguments)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "table.csv") as temporary:
            table.to_csv(temporary, index=False)
        _seal(folder)
    return pd.read_csv(folder / "table.csv")


# --- many runs -------------------------------------------------------------------------------------------------


_Job = list[tuple[str, Experiment, int | None]]  # variant, config and step of runs that share one training


def _work(job: _Job) -> list[dict[str, float]]:
    return [score(config, step) for _, config, step in job]


def _is_scored(job: _Job) -> bool:
    folders = (cache_folder() / "score" / _key(config, "score", step=step) for _, config, step in job)
    return all((folder / "checksums.json").exists() for folder in folders)


def _rows(study: str, job: _Job, scores: list[dict[str, float]]) -> list[tuple]:
    return [
        (study, config.law, variant, config.seed, metric, value, values.get(f"{metric} p"))
        for (variant, config, _), values in zip(job, scores, strict=True)
        for metric, value in values.items()
        if not metric.endswith(" p")
    ]


def run(config: Experiment, steps: Iterable[int | None] = (None,), progress: bool = False) -> list[dict[str, float]]:
    """Train, sample and score one config, at its last step or at several that were kept."""
    train(config, progress=progress)
    return [score(config, step) for step in steps]


def run_all(
    study: str,
    experiments: Mapping[str, Experiment] | Iterable[tuple[str, Experiment, int | None]],
    seeds: Iterable[int],
    workers: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every variant with every seed, side by side on the machine's cores, and return the tidy table.

    Args:
        study: name of the study, for the table.
        experiments: variant -> config; or (variant, config, step) triples when one training run, stopped at several
            steps or sampled in several ways, gives several variants. It is trained once.
        seeds: seeds to give each config.
        workers: processes; the number of cores if omitted.
        progress: show a text progress bar.

    Returns:
        One row per (variant, seed, metric), columns `COLUMNS`.
    """
    if isinstance(experiments, Mapping):
        experiments = [(variant, config, None) for variant, config in experiments.items()]
    experiments = list(experiments)
    jobs: dict[str, _Job] = {}
    for variant, config, step in experiments:
        for seed in seeds:
            seeded = replace(config, seed=seed)
            jobs.setdefault(_key(seeded, "train"), []).append((variant, seeded, step))
    rows, todo = [], []
    for job in jobs.values():
        if _is_scored(job):
            rows += _rows(study, job, _work(job))
        else:
            todo.append(job)
    workers = min(workers or os.cpu_count() or 1, max(2, len(todo)))
    with pool(workers) as executor:
        scored = {(config.law, name) for _, config, _ in experiments for name in config.metrics if name in SCORES}
        references = {key: executor.submit(calibrated, *key) for key in sorted(scored)}
        futures = {executor.submit(_work, job): job for job in todo}
        bar = tqdm(
            as_completed(futures), total=len(futures), desc=study, disable=not progress or not futures, mininterval=1.0
        )
        for future in bar:
            rows += _rows(study, futures[future], future.result())
        references = {key: future.result() for key, future in references.items()}
    table = pd.DataFrame(rows, columns=["study", "dataset", "variant", "seed", "metric", "value", "p_value"])
    for (law, metric), group in table.groupby(["dataset", "metric"]):
        if (law, metric) in references:
            reference = references[law, metric]
            columns = ["n", "floor_mean", "floor_sd", "ceiling"]
            table.loc[group.index, columns] = [
                SCORES[metric].n, reference.floor_mean, reference.floor_sd, reference.ceiling_mean,
            ]  # fmt: skip
    order = {variant: i for i, (variant, _, _) in enumerate(experiments)}
    table = table.reindex(columns=COLUMNS)
    table["n"] = table["n"].astype("Int64")
    return table.sort_values(
        ["dataset", "variant", "seed", "metric"],
        key=lambda column: column.map(order) if column.name == "variant" else column,
        ignore_index=True,
    )


def environment() -> dict[str, str]:
    """Versions and device, for the provenance of a page."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "device": device,
        "ddpmlab": version("ddpmlab"),
        "torch": torch.__version__,
        "code": code_hash("score")[:12],
    }
