"""Trains the networks that the explorer's page holds: `python -m ddpmlab.explorer.train_models [name ...]`.

Each is trained by `fit` with the options of its study, kept at a few stages, rounded to float16 (its fixed frequencies
stay float32) and written to `ddpmlab/weights/explorer/`, with its config, seed, steps, seconds, commit and device.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ddpmlab import data
from ddpmlab.explorer import export
from ddpmlab.files import atomic
from ddpmlab.training import build_seeded, fit

SEED = 0
_HOMEWORK = {"name": "linear", "n_steps": 50, "lbeta": 1e-5, "ubeta": 1.28e-2}
_REPORT_NETWORK = {
    "name": "mlp",
    "hidden": [128, 128, 128],
    "activation": "silu",
    "time": "sinusoidal",
    "time_layers": 2,
}
_REPORT_TRAINING = {
    "batch_size": 512,
    "learning_rate": 1e-3,
    "optimiser": "adamw",
    "grad_clip": 1.0,
    "ema_decay": 0.999,
}
_RECIPE_TRAINING = {
    "batch_size": 512,
    "learning_rate": 8e-3,
    "decay": "cosine",
    "warmup": 100,
    "weighting": "edm",
    "times": "log-normal",
    "log_normal": [-2.1, 1.5],
}
REPORT_STEPS = 10_000


def _homework(law: str, title: str, hidden: list[int], stages: list[int], **network: Any) -> dict[str, Any]:
    return {
        "title": title,
        "law": law,
        "schedule": _HOMEWORK,
        "network": {"name": "mlp", "hidden": hidden, **network},
        "parameterisation": "epsilon",
        "training": {"epochs": 100, "batch_size": 1_024},
        "sampler": {"name": "ddpm"},
        "stages": stages,
        "stage_unit": "epochs",
        "what": "a network of the homework report with its own hyperparameters",
    }


def _report(title: str, schedule: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "law": "two_moons",
        "schedule": schedule,
        "network": _REPORT_NETWORK,
        "parameterisation": "epsilon",
        "training": {"n_steps": REPORT_STEPS, **_REPORT_TRAINING},
        "sampler": {"name": "ddim", "n_steps": 50},
        "stages": [REPORT_STEPS],
        "stage_unit": "steps",
        "what": f"the two-moons report's network of 50K parameters, averaged weights, after {REPORT_STEPS:,} steps "
        "instead of its 40,000",
    }


MODELS: dict[str, dict[str, Any]] = {
    "two_moons_recipe": {
        "title": "Two-moons recipe",
        "law": "two_moons",
        "schedule": {"name": "ve", "sigma_min": 0.011, "sigma_max": 8.0, "rho": 7.0},
        "network": {
            "name": "residual_mlp",
            "width": 64,
            "n_blocks": 2,
            "activation": "gelu",
            "time": "fourier",
            "time_features": 16,
            "time_layers": 0,
        },
        "parameterisation": "edm",
        "training": {"n_steps": 4_000, **_RECIPE_TRAINING},
        "sampler": {"name": "dpmpp_2m", "n_steps": 20},
        "stages": [100, 500, 4_000],
        "stage_unit": "steps",
        "what": "the book's recipe for the two moons",
    },
    "two_moons_linear": _report(
        "Two-moons report, linear betas", {"name": "linear", "n_steps": 1_000, "lbeta": 1e-4, "ubeta": 2e-2}
    ),
    "two_moons_cosine": _report("Two-moons report, cosine betas", {"name": "cosine", "n_steps": 1_000}),
    "helix_model_1": _homework("helix", "Homework, model 1", [64], [100]),
    "helix_model_2": _homework("helix", "Homework, model 2", [64, 64], [100]),
    "helix_model_3": _homework("helix", "Homework, model 3", [64, 128, 128], [1, 10, 100]),
    "helix_model_3_relu": _homework(
        "helix", "Homework, model 3, ReLU behind the output", [64, 128, 128], [100], output_activation="relu"
    ),
    "sin_5_5_model_1": _homework("sin_5_5", "Homework, model 1", [64], [100]),
    "sin_5_5_model_2": _homework("sin_5_5", "Homework, model 2", [64, 64], [100]),
    "sin_5_5_model_3": _homework("sin_5_5", "Homework, model 3", [64, 128, 128], [1, 10, 100]),
}


def _commit() -> str:
    folder = Path(__file__).parent
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


def train(name: str, folder: Path = export.WEIGHTS) -> list[Path]:
    """Train one of `MODELS` and write a file per stage.

    Raises:
        ValueError: an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of: {', '.join(MODELS)}")
    config = {**MODELS[name], "family": name, "order": list(MODELS).index(name)}
    points = data.make(config["law"]).standardised().split().train
    options = dict(config["training"])
    per_epoch = len(points) / options["batch_size"]
    steps = {s: max(1, round(s * per_epoch)) if config["stage_unit"] == "epochs" else s for s in config["stages"]}
    epochs = options.pop("epochs", None)
    n_steps = options.pop("n_steps", None) or round(epochs * per_epoch)
    denoiser = build_seeded(lambda: export.build(config), SEED)
    result = fit(denoiser, points, n_steps, keep_steps=list(steps.values()), seed=SEED, context=name, **options)
    weights = result.averages or result.weights
    frequencies = {key: value for key, value in denoiser.network.state_dict().items() if key.endswith("frequency")}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, (stage, step) in enumerate(steps.items()):
        rounded = {key: value.half().contiguous() for key, value in weights[step].items()} | frequencies
        own = {key: value for key, value in config.items() if key not in ("stages", "what")}
        header = {
            "what": config["what"],
            "config": json.dumps({**own, "stage": stage, "order": [config["order"], index]}),
            "seed": str(SEED),
            "steps": str(step),
            "seconds": f"{result.seconds * step / n_steps:.1f}",
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
