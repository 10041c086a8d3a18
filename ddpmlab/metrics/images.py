r"""Scores of pictures: how far generated ones are from real ones, by the features of a classifier trained here.

Pixels say little of what a picture shows, so the usual scores compare features :math:`f(x) \in R^{128}`: what the last
layer of a classifier of the ten garments reads. Of generated features with mean m and covariance C, and real ones with
m' and C',

.. math::
    \text{Frechet} = |m - m'|^2 + \operatorname{tr}\bigl(C + C' - 2 (C^{1/2} C' C^{1/2})^{1/2}\bigr), \qquad
    \text{kernel} = E\,k(f, \tilde f) + E\,k(f', \tilde f') - 2\,E\,k(f, f'),\quad k(a, b) = (a^\top b/128 + 1)^3,

the squared Wasserstein-2 distance of two Gaussians (Heusel et al. 2017, eq. 6) and the squared maximum mean discrepancy
over pairs of distinct pictures (Binkowski et al. 2018, eq. 4). Neither compares with numbers from another network's
features, nor, the Frechet distance, with numbers at another n: each is read between `Reference.floor`, real pictures
against real ones, and `Reference.ceiling`, noise against real ones, at the same n.

Everywhere here pictures are in own units, pixels in [0, 1] (`law.to_own_units(samples)`), `(n, 1, 28, 28)`. What leaves
that range is cut to it, and values are rounded to the 256 grey levels, as when a picture is saved.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddpmlab.metrics.two_sample import Neighbourhood

SHAPE = (1, 28, 28)
N_CLASSES = 10
N_FEATURES = 128
WEIGHTS = "fashion_features.safetensors"
_BLOCK = 16_000_000  # numbers held at once in sums over pairs: 64 MB in float32


def pixels(x: Tensor, name: str = "x", least: int = 1) -> Tensor:
    """Pictures as float32 grey levels k/255 in [0, 1], `(n, 1, 28, 28)`.

    Args:
        x: `(n, 1, 28, 28)`, `(n, 28, 28)` or `(n, 784)`; floats in own units, or uint8.
        name: what to call them in an error.
        least: how many pictures are needed.

    Raises:
        ValueError: another shape, fewer than `least`, or NaN or infinity.
        TypeError: integers other than uint8.
    """
    x = torch.as_tensor(x).detach()
    if tuple(x.shape[1:]) not in (SHAPE, SHAPE[1:], (math.prod(SHAPE),)):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; need pictures (n, 1, 28, 28)")
    if len(x) < least:
        raise ValueError(f"{name} has {len(x)} pictures; need at least {least}")
    if x.dtype == torch.uint8:
        x = x.float() / 255
    if not torch.is_floating_point(x):
        raise TypeError(f"{name} has dtype {x.dtype}; need floats in [0, 1], or uint8")
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{name} holds {bad} pictures with NaN or infinity; drop or count them first")
    return x.float().reshape(-1, *SHAPE).clamp(0, 1).mul(255).round().div(255)


# -- The features ------------------------------------------------------------------------------------------------------


class FeatureNetwork(nn.Module):
    """A small classifier of Fashion-MNIST: three convolutions, then 128 features, then ten classes.

    Its trained weights, with the accuracy on the test pictures, are part of the package; `train_features` makes them.
    """

    def __init__(self):
        super().__init__()

        def stage(n_in, n_out):
            return [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]

        self.body = nn.Sequential(*stage(1, 32), *stage(32, 64), *stage(64, 128), nn.Flatten())
        self.neck = nn.Sequential(nn.Linear(128 * 3 * 3, N_FEATURES), nn.ReLU())
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(N_FEATURES, N_CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer reads, `(n, 128)`, of pixels `(n, 1, 28, 28)` in [0, 1]."""
        return self.neck(self.body(2 * x - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten classes, `(n, 10)`, of pixels `(n, 1, 28, 28)` in [0, 1]."""
        return self.head(self.dropout(self.features(x)))


def _weights_file() -> Path:
    path = Path(str(files("ddpmlab"))) / "weights" / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run `python -m ddpmlab.metrics.train_features` to train it anew")
    return path


def feature_metadata() -> dict[str, str]:
    """What the weights say of themselves: what they are, config, accuracy, commit, seconds and device.

    Raises:
        FileNotFoundError: the package's weights are missing.
    """
    with safe_open(_weights_file(), "pt") as file:
        return dict(file.metadata())


@cache
def feature_network(device: torch.device | str = "cpu") -> FeatureNetwork:
    """The trained feature network, in evaluation mode.

    Raises:
        FileNotFoundError: the package's weights are missing.
    """
    with safe_open(_weights_file(), "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = FeatureNetwork()
    network.load_state_dict(state)
    return network.eval().requires_grad_(False).to(device)


@torch.no_grad()
def _features_and_logits(x: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    network, both = feature_network(x.device), ([], [])
    for batch in x.split(batch_size):
        found = network.features(batch)
        both[0].append(found)
        both[1].append(network.head(found))
    return torch.cat(both[0]), torch.cat(both[1])


def features(x: Tensor) -> Tensor:
    """The 128 features of pictures, `(n, 128)` float32, on their device; about 3 s of one core for 10,000.

    Raises:
        ValueError: see `pixels`.
    """
    return _features_and_logits(pixels(x))[0]
