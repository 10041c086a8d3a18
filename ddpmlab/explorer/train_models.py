"""Trains the networks that the explorer's page holds: `python -m ddpmlab.explorer.train_models [name ...]`.

Each is an experiment of the book, kept at a few stages of its training, rounded to float16 (fixed frequencies stay
float32) and written to `ddpmlab/weights/explorer/` with its config, seed, steps, seconds, commit and device.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from ddpmlab.explorer import export
from ddpmlab.files import atomic, git
from ddpmlab.lab import Experiment, Training, recipes
from ddpmlab.studies import two_moons
from ddpmlab.training import fit

REPORT_STEPS = 10_000
_MODELS_OF_HOMEWORK = {1: [64], 2: [64, 64], 3: [64, 128, 128]}


class Model(NamedTuple):
    """A network of the page: what it is called, what it is, how it is trained, and after how much of it it is kept."""

    title: str
    what: str
    experiment: Experiment
    stages: tuple[int, ...]
    unit: str = "steps"


def _homework(law: str, number: int, title: str = "", **network: Any) -> Model:
    return Model(
        title or f"Homework, model {number}",
        "a network of the homework report with its own hyperparameters",
        recipes.homework(law, network={"name": "mlp", "hidden": _MODELS_OF_HOMEWORK[number], **network}),
        (1, 10, 100) if number == 3 and not network else (100,),
        "epochs",
    )


def _report(title: str, schedule: dict[str, Any]) -> Model:
    rung = two_moons.ladder(REPORT_STEPS, [], 2_000, 1_000, ["emd_128"])["4_larger_mlp"]
    return Model(
        title,
        f"the two-moons report's network of 50K parameters, averaged weights, after {REPORT_STEPS:,} steps "
        "instead of its 40,000",
        replace(rung, schedule=schedule, sampler={"name": "ddim", "n_steps": 50}),
        (REPORT_STEPS,),
    )


MODELS: dict[str, Model] = {
    "two_moons_recipe": Model(
        "Two-moons recipe", "the book's recipe for the two moons", recipes.two_moons(4_000), (100, 500, 4_000)
    ),
    "two_moons_linear": _report("Two-moons report, linear betas", two_moons.LINEAR),
    "two_moons_cosine": _report("Two-moons report, cosine betas", two_moons.COSINE),
    "helix_model_1": _homework("helix", 1),
    "helix_model_2": _homework("helix", 2),
    "helix_model_3": _homework("helix", 3),
    "helix_model_3_relu": _homework("helix", 3, "Homework, model 3, ReLU behind the output", output_activation="relu"),
    "sin_5_5_model_1": _homework("sin_5_5", 1),
    "sin_5_5_model_2": _homework("sin_5_5", 2),
    "sin_5_5_model_3": _homework("sin_5_5", 3),
}


def config(name: str) -> dict[str, Any]:
    """What a stored network's metadata says of how it was made, but for its stage."""
    model, plain = MODELS[name], asdict(MODELS[name].experiment)
    default = asdict(Training(epochs=1)) | {"batch_size": None, "learning_rate": None}
    training = {key: value for key, value in plain["training"].items() if value is not None and value != default[key]}
    return {
        "title": model.title,
        "family": name,
        "law": plain["dataset"]["name"],
        **{part: plain[part] for part in ("schedule", "network", "parameterisation", "sampler")},
        "training": training,
        "stage_unit": model.unit,
    }


def _commit() -> str:
    return git(Path(__file__).parent, "rev-parse", "--short", "HEAD") or "unknown"


def train(name: str, folder: Path = export.WEIGHTS) -> list[Path]:
    """Train one of `MODELS` and write a file per stage.

    Raises:
        ValueError: an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of: {', '.join(MODELS)}")
    model = MODELS[name]
    points, _ = model.experiment.training.points(model.experiment.data)
    steps = {s: s for s in model.stages}
    if model.unit == "epochs":
        steps = {s: model.experiment.training.step_of(s, len(points)) for s in model.stages}
    options = replace(model.experiment.training.options(len(points)), keep_steps=tuple(steps.values()))
    denoiser = model.experiment.build()
    result = fit(denoiser, points, options=options, seed=model.experiment.seed, context=name)
    weights = result.averages or result.weights
    frequencies = {key: value for key, value in denoiser.network.state_dict().items() if key.endswith("frequency")}
    written = []
    for index, (stage, step) in enumerate(steps.items()):
        rounded = {key: value.half().contiguous() for key, value in weights[step].items()} | frequencies
        header = {
            "what": model.what,
            "config": json.dumps({**config(name), "stage": stage, "order": [list(MODELS).index(name), index]}),
            "seed": str(model.experiment.seed),
            "steps": str(step),
            "seconds": f"{result.seconds * step / options.n_steps:.1f}",
            "commit": _commit(),
            "device": "cpu",
        }
        path = folder / (f"{name}.safetensors" if len(steps) == 1 else f"{name}_{stage:05d}.safetensors")
        with atomic(path) as temporary:
            save_file(rounded, temporary, metadata=header)
        written.append(path)
    return written


if __name__ == "__main__":
    for asked in sys.argv[1:] or MODELS:
        for path in train(asked):
            print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)
