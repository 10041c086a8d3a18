"""The stages of an experiment: train, sample, score. Each result lies in the store under the key of what made it.

A key holds the values that the stage depends on, spelt out, and the code (`source.code_hash`) of just the parts that
the config names and of what they are built on, the versions of the libraries that matter, device kind and precision.
An option without effect is not in it, and neither is anything else of this package: a new law, network, sampler or
metric touches no entry, and a changed metric scores again without training again.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ddpmlab import data, denoisers, networks, samplers, schedules
from ddpmlab.denoisers import Denoising, ExactDenoiser, Guided
from ddpmlab.lab import store as stores
from ddpmlab.lab import weights
from ddpmlab.lab.config import Experiment, Part, build_denoiser, standardised
from ddpmlab.lab.scores import SCORES
from ddpmlab.lab.source import code_hash, named_hash, versions
from ddpmlab.lab.store import DamagedEntryWarning, Store
from ddpmlab.metrics import calibration, likelihood, two_sample
from ddpmlab.training import CheckpointError, Fit, fit

SAMPLING_SEED = 1_000_003
LAW_SEED = 3_000_003
TEST_SEED = 4_000_037
_MAIN = ("numpy", "torch")
_SCORING = ("numpy", "torch", "scipy", "scikit-learn", "POT", "torchdiffeq")


def _hash(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _dataset(config_part: Part) -> list:
    return [data.DATASETS.spelt_out(config_part), code_hash(data.DATASETS[config_part["name"]])]


def _schedule(part: Part) -> list:
    return [schedules.SCHEDULES.spelt_out(part), code_hash(schedules.SCHEDULES[part["name"]])]


# --- keys ------------------------------------------------------------------------------------------------------


def train_key(config: Experiment) -> str:
    """Key of a training: everything that its weights depend on."""
    if config.weights is not None:
        device = config.training.torch_device.type
        return "-".join([config.weights, weights.digest(config.weights), *([] if device == "cpu" else [device])])
    dataset = config.data
    options = config.training.options(config.training.n_points or dataset.n_train)
    found = {
        "dataset": _dataset(config.dataset),
        "schedule": _schedule(config.schedule),
        "network": [
            networks.NETWORKS.spelt_out(config.network, shape=dataset.shape),
            code_hash(networks.NETWORKS[config.network["name"]]),
        ],
        "parameterisation": config.parameterisation,
        "options": options.effective() | {"device": options.torch_device.type},
        "n_points": config.training.n_points,
        "seed": config.seed,
        "code": code_hash(_train),
        "versions": versions(*_MAIN),
    }
    return _hash(found)


def sample_key(config: Experiment, step: int | None = None) -> str:
    """Key of the samples of a config."""
    found: dict[str, Any] = {"n": config.n_samples, "seed": sampling_seed(config), "code": code_hash(_sample)}
    if config.denoiser == "network":
        found |= {"train": train_key(config), "step": step, "average": config.average, "guidance": config.guidance}
    else:
        found |= {"denoiser": config.denoiser, "dataset": _dataset(config.dataset), "versions": versions(*_MAIN)}
        found |= {"empirical": code_hash(denoisers.EmpiricalDenoiser)} if config.denoiser == "empirical" else {}
    if config.denoiser != "law":
        found["schedule"] = _schedule(config.schedule)
        sampler = samplers.SAMPLERS[config.sampler["name"]]
        found["sampler"] = [samplers.SAMPLERS.spelt_out(config.sampler), code_hash(sampler)]
    return _hash(found)


def score_key(config: Experiment, step: int | None, metric: str) -> str:
    """Key of one score of a config."""
    score = SCORES[metric]
    found: dict[str, Any] = {"metric": metric, "score": code_hash(score), "code": code_hash(_score)}
    found |= {"versions": versions(*_SCORING), "dataset": _dataset(config.dataset)}
    if score.of == "denoiser":
        found |= {"step": step, "average": config.average}
        made_by = train_key(config) if config.denoiser == "network" else config.denoiser
        return _hash(found | {"train": made_by, "schedule": _schedule(config.schedule)})
    return _hash(found | {"sample": sample_key(config, step), "seed": config.seed, "draw": config.draw})


# --- stages ----------------------------------------------------------------------------------------------------


def _train(config: Experiment, checkpoint, progress: bool, on_step: Callable[[int], None] | None) -> Fit:
    """Train a config from the beginning or from a checkpoint."""
    points, labels = config.training.points(config.data)
    denoiser, options = build_denoiser(config), config.training.options(len(points))
    return fit(
        denoiser,
        points,
        options=options,
        labels=labels if denoiser.n_classes or options.flip else None,
        seed=config.seed,
        checkpoint=checkpoint,
        checkpoint_every=2_000 if len(config.data.shape) == 1 else 200,
        progress=progress,
        context=f"{config.dataset['name']}, seed {config.seed}",
        on_step=on_step,
    )


def train(
    config: Experiment,
    store: Store | None = None,
    progress: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Fit:
    """Train, or fetch from the store; a run that was interrupted continues from its checkpoint."""
    if config.weights is not None:
        raise ValueError(f"weights = {config.weights!r} are given; there is nothing to train")
    store = store or stores.default()
    key = train_key(config)
    entry = store.get("train", key)
    if entry is None:
        checkpoint, start = store.checkpoint(key), perf_counter()
        try:
            try:
                result = _train(config, checkpoint, progress, on_step)
            except CheckpointError as error:
                warnings.warn(f"{error}; starting this run anew", DamagedEntryWarning, 2)
                checkpoint.unlink(missing_ok=True)
                result = _train(config, checkpoint, progress, on_step)
        except (RuntimeError, OSError):  # another process may be done with this run, and its checkpoint gone as we read
            entry = store.get("train", key)
            if entry is None:
                raise
    if entry is None:
        tensors = {f"weights/{s}/{k}": v for s in result.weights for k, v in result.weights[s].items()}
        for width, states in result.by_width.items():
            tensors |= {f"{width}/{s}/{k}": v for s in states for k, v in states[s].items()}
        note = {"losses": result.losses, "seconds": result.seconds, "wall": perf_counter() - start}
        note |= {"made": _made("train", config), "steps": result.steps[-1], "device": device_name()}
        entry = store.put("train", key, note, tensors)
        checkpoint.unlink(missing_ok=True)
    result = Fit(losses=entry.note["losses"], seconds=entry.note["seconds"])
    for name, tensor in entry.tensors.items():
        kind, step, parameter = name.split("/", 2)
        kept = result.weights if kind == "weights" else result.by_width.setdefault(float(kind), {})
        kept.setdefault(int(step), {})[parameter] = tensor
    result.averages = result.by_width.get(next(iter(config.training.widths), None), {})
    return result


def trained(config: Experiment, step: int | None = None, store: Store | None = None) -> Denoising:
    """The denoiser of a config: trained, at its last step or at one that was kept; or the exact or empirical one.

    Raises:
        ValueError: `denoiser` is `law`, fresh points, which have no denoiser; or no weights were kept at `step`.
    """
    if config.denoiser == "exact":
        return ExactDenoiser(config.data, config.make_schedule())
    if config.denoiser == "empirical":
        split = config.data.split()
        return denoisers.EmpiricalDenoiser(split.train, config.make_schedule(), labels=split.train_labels)
    if config.denoiser == "law":
        raise ValueError("fresh points of the law have no denoiser; choose denoiser='exact' or 'network'")
    if config.weights is not None:
        return _loaded(config)
    result = train(config, store)
    kept = result.weights
    if config.average is not False:
        kept = result.averages if config.average is True else result.by_width[config.average]
    step = max(kept) if step is None else step
    if step not in kept:
        raise ValueError(f"no weights were kept at step {step}; kept: {sorted(kept)}")
    denoiser = build_denoiser(config)
    denoiser.network.load_state_dict(kept[step])
    return denoiser.eval().requires_grad_(False)


def _placed(config: Experiment, step: int | None, store: Store) -> Denoising:
    """The denoiser of a config; a network on the device that it is trained on, as that samples and scores it faster."""
    denoiser = trained(config, step, store)
    return denoiser.to(config.training.torch_device) if config.denoiser == "network" else denoiser


def sampling_seed(config: Experiment) -> int:
    """Seed of a config's samples and of the draws of its scores: its own, apart for every draw of them."""
    return config.seed + 7_919 * config.draw


def _loaded(config: Experiment) -> Denoising:
    """The denoiser of committed weights."""
    denoiser = build_denoiser(config)
    denoiser.network.load_state_dict(weights.read(config.weights)[0])
    return denoiser.eval().requires_grad_(False)


def _sample(config: Experiment, denoiser: Denoising | None) -> tuple[Tensor, dict[str, Any]]:
    """Samples of a denoiser by a config's sampler; without one, fresh points of the law."""
    start = perf_counter()
    if denoiser is None:
        points = config.data.sample(config.n_samples, LAW_SEED + sampling_seed(config))
        return points, {"seconds_sample": perf_counter() - start, "nfe": 0}
    sampler = samplers.SAMPLERS.build(config.sampler)
    seed = sampling_seed(config) + (SAMPLING_SEED if config.denoiser == "network" else 0)
    options: dict[str, Any] = {} if len(config.data.shape) == 1 else {"batch_size": 500}
    if config.guidance is not None:
        options["label"] = torch.arange(config.n_samples) % denoiser.n_classes
        denoiser = Guided(denoiser, scale=config.guidance)
    half = config.training.precision == "bf16" and config.denoiser == "network"
    with torch.autocast(config.training.torch_device.type, torch.bfloat16, enabled=half):
        points = sampler.sample(denoiser, config.n_samples, seed=seed, **options)
    seconds = perf_counter() - start
    return points, {"seconds_sample": seconds, "nfe": sampler.nfe(denoiser.schedule)}


def sample(config: Experiment, step: int | None = None, store: Store | None = None) -> tuple[Tensor, dict[str, float]]:
    """Samples `(n_samples, *shape)` of a config, and `seconds_sample` and `nfe`; from the store if they are there."""
    store = store or stores.default()
    key = sample_key(config, step)
    entry = store.get("sample", key)
    if entry is None:
        denoiser = None if config.denoiser == "law" else _placed(config, step, store)
        points, note = _sample(config, denoiser)
        entry = store.put("sample", key, note | {"made": _made("sample", config, step=step)}, {"x": points})
    return entry.tensors["x"], {name: entry.note[name] for name in ("seconds_sample", "nfe")}


def _score(config: Experiment, metric: str, points: Tensor | None, denoiser, store: Store) -> dict[str, float]:
    """One score: its columns, and a permutation p-value by `<score> p`."""
    score, seed = SCORES[metric], sampling_seed(config)
    if score.of == "denoiser":
        return {metric: score.function(config, denoiser, store)}
    dataset, points = config.data, points.double()
    points = points[points.flatten(1).isfinite().all(1)]
    if score.of == "samples":
        return score.function(points, dataset, seed)
    test = dataset.split().test.double()
    values = {metric: score.mean(points, test, seed)}
    if score.test is not None:  # against points of its own: tests that share a sample are not independent
        fresh = dataset.sample(score.n, TEST_SEED + seed) if hasattr(dataset, "sample") else test[: score.n]
        tested = two_sample.permutation_test(points[: score.n], fresh, score.test, seed=seed)
        values[f"{metric} p"] = tested.p_value
    return values


def score(config: Experiment, step: int | None = None, store: Store | None = None) -> dict[str, float]:
    """Values of the config's metrics, from the store or computed.

    A permutation p-value, where a score has one, goes by `<score> p`, such as `mmd2 p`. Where `denoiser` is `network`,
    what it cost is among the values too: `seconds_train`, `seconds_sample`, `nfe` and `divergent_share`.
    """
    store = store or stores.default()
    values: dict[str, float] = {}
    points = None
    if any(SCORES[name].of != "denoiser" for name in config.metrics) or config.denoiser == "network":
        points, cost = sample(config, step, store)
        finite = points.flatten(1).isfinite().all(1)
        far = (points.abs() > calibration.DIVERGENT).flatten(1).any(1)
        if config.denoiser == "network":
            note = weights.read(config.weights)[1] if config.weights else store.note("train", train_key(config))
            values = {"seconds_train": note["seconds"] if note else train(config, store).seconds, **cost}
            values["divergent_share"] = float((~finite | far).double().mean())
    for metric in config.metrics:
        key = score_key(config, step, metric)
        entry = store.get("score", key)
        if entry is None:
            start = perf_counter()
            denoiser = _placed(config, step, store) if SCORES[metric].of == "denoiser" else None
            found = _score(config, metric, points, denoiser, store)
            note = {"values": found, "seconds": perf_counter() - start}
            entry = store.put("score", key, note | {"made": _made("score", config, step=step, metric=metric)})
        values |= entry.note["values"]
    return values


# --- what scores are read against ------------------------------------------------------------------------------


def _floor_and_ceiling(dataset: data.Dataset, metric: str) -> dict[str, calibration.Calibration]:
    score = SCORES[metric]
    if score.floors is not None:
        return score.floors(dataset)
    split = dataset.split()
    reference = dataset if isinstance(dataset, data.Law) else split.train
    found = calibration.floor_and_ceiling(
        score.function, reference, score.n, score.calibration_repeats, test=split.test
    )
    return {metric: found}


def reference_key(dataset: Part, metric: str) -> str:
    """Key of a score's floors and ceilings for a dataset."""
    described = ["reference", _dataset(dataset), metric, code_hash(SCORES[metric]), code_hash(_floor_and_ceiling)]
    return _hash([*described, versions(*_SCORING)])


def references(dataset: str | Part, metric: str, store: Store | None = None) -> dict[str, calibration.Calibration]:
    """Floors and ceilings of a score for a dataset, by column.

    Those of a pair are single draws of real and of noise against the test split.

    Raises:
        ValueError: the score has none.
    """
    if not SCORES[metric].calibrated:
        raise ValueError(f"{metric} is a score of {SCORES[metric].of} without floor and ceiling")
    part = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
    store, key = store or stores.default(), reference_key(part, metric)
    entry = store.get("reference", key)
    if entry is None:
        found = {name: asdict(value) for name, value in _floor_and_ceiling(standardised(part), metric).items()}
        entry = store.put("reference", key, {"values": found, "made": ["reference", part, metric]})
    return {name: calibration.Calibration(**value) for name, value in entry.note["values"].items()}


def reference(dataset: str | Part, metric: str, store: Store | None = None) -> calibration.Calibration:
    """Floor and ceiling of a score that has one column, see `references`."""
    return references(dataset, metric, store)[metric]


def _truth_key(dataset: Part, schedule: Part, chain: bool = False) -> str:
    described = ["truth", _dataset(dataset), _schedule(schedule), code_hash(likelihood.Truth), versions(*_SCORING)]
    return _hash([*described, *(["chain"] if chain else [])])


def truth(
    dataset: str | Part, schedule: str | Part, store: Store | None = None, chain: bool = False
) -> likelihood.Truth:
    """Noisy points of a law under a schedule and their exact posterior means, for every model to be held to.

    With `chain` at each of the schedule's T steps, for `Truth.chain_kl`.
    """
    dataset, schedule = ({"name": p} if isinstance(p, str) else dict(p) for p in (dataset, schedule))
    store = store or stores.default()
    key = _truth_key(dataset, schedule, chain)
    entry = store.get("truth", key)
    if entry is None:
        built = schedules.SCHEDULES.build(schedule)
        found = likelihood.Truth.of(standardised(dataset), built, times=built.times() if chain else None)
        made = ["truth", dataset, schedule, *([True] if chain else [])]
        entry = store.put("truth", key, {"made": made}, asdict(found))
    return likelihood.Truth(**entry.tensors)


def _table_key(function: Callable[..., pd.DataFrame], arguments: dict[str, Any]) -> str:
    named = [function.__module__, function.__qualname__]
    code = [code_hash(function), named_hash(function, arguments)]
    return _hash(["table", *named, arguments, *code, versions(*_SCORING)])


def remembered(function: Callable[..., pd.DataFrame], store: Store | None = None, **arguments) -> pd.DataFrame:
    """A table that a function computes from plain arguments, from the store if the same code computed it before."""
    store = store or stores.default()
    key = _table_key(function, arguments)
    entry = store.get("table", key)
    if entry is None:
        start = perf_counter()
        table = function(**arguments)
        note = {"table": table.to_csv(index=False), "seconds": perf_counter() - start}
        made = ["table", f"{function.__module__}:{function.__qualname__}", arguments]
        entry = store.put("table", key, note | {"made": made})
    from io import StringIO

    return pd.read_csv(StringIO(entry.note["table"]))


# --- provenance ------------------------------------------------------------------------------------------------


def _made(stage: str, config: Experiment, **more) -> list:
    """What an entry's note keeps, so that its key can be computed again."""
    return [stage, asdict(config), more]


def key_of(made: list) -> str | None:
    """The key that present code gives to what an entry says it is; None if it cannot be made any more."""
    try:
        if made[0] in ("train", "sample", "score"):
            config, more = Experiment(**made[1]), made[2]
            keys = {"train": train_key, "sample": sample_key, "score": score_key}
            return keys[made[0]](config, *(more[name] for name in ("step", "metric") if name in more))
        if made[0] == "reference":
            return reference_key(made[1], made[2])
        if made[0] == "truth":
            return _truth_key(*made[1:])
        if made[0] == "table":
            from importlib import import_module

            module, _, name = made[1].partition(":")
            function = getattr(import_module(module), name)
            return _table_key(function, made[2])
        if made[0] == "paths":
            from ddpmlab.lab import paths

            return paths.key_of(made)
    except (ValueError, TypeError, AttributeError, ImportError, KeyError):
        return None
    return None


def device_name() -> str:
    """The device that trainings run on here, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({os.cpu_count()} cores)"


def seeded(config: Experiment, seed: int) -> Experiment:
    """The same config with another seed."""
    return replace(config, seed=int(seed))
