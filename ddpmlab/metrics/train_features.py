"""Train the feature network of `images` and write its weights: `python -m ddpmlab.metrics.train_features`."""

import json
import math
import operator
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from ddpmlab import data
from ddpmlab.files import atomic, git
from ddpmlab.metrics.images import WEIGHTS, FeatureNetwork, pixels

LEAST_ACCURACY = 0.92


def _commit() -> str:
    folder = Path(__file__).parent
    commit, changed = git(folder, "rev-parse", "HEAD"), git(folder, "status", "--porcelain", "-uno", ".")
    return (commit or "unknown") + ("-dirty" if changed else "")


def train_features(
    dataset: data.Dataset | None = None,
    n_epochs: int = 8,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> tuple[FeatureNetwork, float]:
    """Train a classifier of the pictures: AdamW, the rate up over a tenth of the steps and down along a cosine.

    Args:
        dataset: pictures with labels, in own units; FashionMNIST if omitted.
        n_epochs: passes over the training pictures.
        batch_size: pictures a step.
        learning_rate: the rate at its highest.
        weight_decay: of AdamW.
        seed: of the initial weights, the order of pictures and the dropout.
        progress: print a line after each epoch.

    Returns:
        The network in evaluation mode, and its accuracy on the test pictures, looked at once, at the end.

    Raises:
        ValueError: the pictures have no labels.
        FloatingPointError: the loss is not finite.
    """
    split = (dataset or data.make("fashion_mnist")).split()
    if split.train_labels is None:
        raise ValueError("these pictures have no labels; a classifier needs them")
    x, labels = pixels(split.train, "train"), split.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(operator.index(seed))
        network = FeatureNetwork()
        optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        n_steps = n_epochs * math.ceil(len(x) / batch_size)
        warmup = max(1, n_steps // 10)

        def rate(step):
            return (step + 1) / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * step / n_steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        for epoch in range(n_epochs):
            network.train()
            total = 0.0
            for index in torch.randperm(len(x)).split(batch_size):
                loss = functional.cross_entropy(network(x[index]), labels[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                total += float(loss.detach()) * len(index)
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss is {total} in epoch {epoch + 1}; lower the learning rate")
            if progress:
                print(f"epoch {epoch + 1} of {n_epochs}: loss {total / len(x):.4f}", flush=True)
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([network(batch).argmax(1) for batch in pixels(split.test, "test").split(500)])
    return network, float((predicted == split.test_labels).double().mean())


def main(path: str | Path | None = None) -> None:
    """Train with the defaults and write the weights to the package, unless they are below 92% on the test pictures."""
    path = Path(path) if path else Path(__file__).parents[1] / "weights" / WEIGHTS
    commit, start = _commit(), time.perf_counter()
    network, accuracy = train_features(progress=True)
    seconds = time.perf_counter() - start
    print(f"{accuracy:.4f} of the test pictures in {seconds:.0f} s")
    if accuracy < LEAST_ACCURACY:
        raise SystemExit(f"accuracy {accuracy:.4f} is below {LEAST_ACCURACY}; nothing written")
    options = dict(zip(train_features.__code__.co_varnames, train_features.__defaults__, strict=False))
    config = {name: value for name, value in options.items() if name not in ("dataset", "progress")}
    metadata = {
        "what": "classifier of Fashion-MNIST whose 128 features the scores of pictures compare",
        "config": json.dumps(config),
        "accuracy": f"{accuracy:.4f}",
        "commit": commit,
        "seconds": f"{seconds:.0f}",
        "device": f"cpu, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
    }
    with atomic(path) as temporary:
        save_file(network.state_dict(), temporary, metadata)


if __name__ == "__main__":
    main()
