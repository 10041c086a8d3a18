"""FashionMNIST: the straightforward approach, a network for pictures, and what each is worth."""

from collections.abc import Iterator
from dataclasses import replace

from ddpmlab.lab import Experiment, Run, Training, recipes
from ddpmlab.studies import register

UNET, HALF = "U-Net", "U-Net, half the width"
PUBLISHED, LARGER = "784-MLP as published", "784-MLP, T = 1000"
SIZES = {
    HALF: {"name": "unet", "widths": [32, 64], "refine": 16, "n_classes": 10},
    "transformer": {"name": "patch_transformer", "n_classes": 10},
    "784-MLP": {
        "name": "residual_mlp", "width": 768, "n_blocks": 3, "time": "fourier", "time_layers": 2, "n_classes": 10
    },
}  # fmt: skip
"""Rivals at equal FLOP: name -> network."""


def straightforward(label: int | None, larger: bool, epochs: float, scores: tuple[str, ...], n: int) -> Experiment:
    """The homework's MLP on 784 pixels: model 3 with T = 50, or a larger one with T = 1000; of one class or of all."""
    dataset = {"name": "fashion_mnist"} | ({} if label is None else {"classes": [label]})
    network = {"name": "mlp", "hidden": [1024, 1024, 1024] if larger else [64, 128, 128]}
    schedule = {"name": "linear", "n_steps": 50, "lbeta": 1e-5, "ubeta": 1.28e-2}
    if larger:
        schedule = {"name": "linear", "n_steps": 1000, "lbeta": 1e-4, "ubeta": 2e-2}
    training = Training(epochs=epochs, batch_size=256 if larger else 1_024, learning_rate=1e-3)
    return Experiment(dataset, schedule, network, training=training, sampler="ddpm", n_samples=n, metrics=scores)


def unet(n_steps: int, keep_steps: list[int] | tuple[int, ...] = (), **changes) -> Experiment:
    """The network for pictures at a budget."""
    return recipes.fashion_mnist(n_steps, keep_steps=tuple(keep_steps), **changes)


@register
def fashion_mnist(
    n_steps: int,
    keep_steps: list[int],
    rival_steps: dict[str, int],
    epochs: float,
    larger_epochs: float,
    n_samples: int,
    n_few: int,
    n_draws: int,
    nfe: int,
    evaluations: list[int],
    guidances: list[float],
) -> Iterator[Run]:
    """The straightforward approach, rivals at equal FLOP, the U-Net over training, evaluations and guidance."""
    few, many = (f"pictures_{n_few}",), (f"pictures_{n_samples}",)
    solver = {"name": "dpmpp_2m", "n_steps": nfe}
    best = unet(n_steps, keep_steps, sampler=solver, n_samples=n_samples, metrics=many)
    for draw in range(n_draws):
        yield Run(UNET, replace(best, draw=draw), None, {"part": "best", "network": UNET})
    short = replace(best, n_samples=n_few, metrics=few)
    for step in [*keep_steps, n_steps]:
        yield Run(f"{UNET}, step {step}", short, step, {"part": "training", "network": UNET, "step": step})
    for name, steps in rival_steps.items():
        network = SIZES.get(name, recipes.fashion_mnist(1).network)
        rival = unet(steps, network=network, sampler=solver, n_samples=n_few, metrics=few)
        yield Run(f"{name}, quarter budget", rival, None, {"part": "rivals", "network": name, "step": steps})
    for name in ("ddim", "heun", "dpmpp_2m"):
        for k in evaluations:
            sampler = {"name": name, "n_steps": (k + 1) // 2 if name == "heun" else k}
            config = replace(short, sampler=sampler)
            yield Run(f"{name}, {k} evaluations", config, None, {"part": "evaluations", "solver": name, "nfe": k})
    for scale in guidances:
        config = replace(short, guidance=scale)
        yield Run(f"guidance {scale:g}", config, None, {"part": "guidance", "guidance": scale})
    for label, of in ((0, "label 0"), (None, "all classes")):
        for larger in (False, True):
            name = LARGER if larger else PUBLISHED
            scores = few if label is None else ()
            config = straightforward(label, larger, larger_epochs if larger else epochs, scores, n_few)
            yield Run(f"{name}, {of}", config, None, {"part": "straightforward", "network": name, "of": of})
