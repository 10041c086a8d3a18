r"""Multilayer perceptrons for point clouds.

A network maps a scaled point and a conditioning number c (t/T, or :math:`\frac14\ln\sigma/\alpha`) to a vector of the
point's size. c enters as it is (`scalar`), through sines and cosines at fixed geometric frequencies (`sinusoidal`,
Vaswani et al. 2017, section 3.5, of 1000 c) or at random ones (`fourier`, Tancik et al. 2020, eq. 5).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpmlab.registry import Registry

NETWORKS = Registry("network")


class Fourier(nn.Module):
    r"""Random Fourier features :math:`[\cos 2\pi f x, \sin 2\pi f x]`, `(n, dim)` -> `(n, n_features)`.

    Args:
        dim: size of the input.
        n_features: size of the output, even.
        scale: standard deviation of the fixed frequencies `f`, in cycles per unit.
        seed: seed of the frequencies.
    """

    def __init__(self, dim: int, n_features: int, scale: float, seed: int = 0):
        super().__init__()
        if n_features < 2 or n_features % 2:
            raise ValueError(f"n_features = {n_features}; need an even number, at least 2")
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequency", scale * torch.randn(dim, n_features // 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * (x @ self.frequency)
        return torch.cat([phase.cos(), phase.sin()], 1)


class Sinusoidal(nn.Module):
    """Sinusoidal features of 1000 c at wavelengths from 2 pi to 2 pi 10,000, `(n, 1)` -> `(n, n_features)`."""

    def __init__(self, n_features: int):
        super().__init__()
        if n_features < 2 or n_features % 2:
            raise ValueError(f"n_features = {n_features}; need an even number, at least 2")
        half = n_features // 2
        self.register_buffer("frequency", torch.exp(-math.log(10_000) * torch.arange(half) / half))

    def forward(self, c: Tensor) -> Tensor:
        phase = 1_000 * c * self.frequency
        return torch.cat([phase.sin(), phase.cos()], 1)


TIME_EMBEDDINGS = ("scalar", "sinusoidal", "fourier")


def _time_embedding(kind: str, n_features: int) -> tuple[nn.Module, int]:
    if kind == "scalar":
        return nn.Identity(), 1
    if kind == "sinusoidal":
        return Sinusoidal(n_features), n_features
    if kind == "fourier":
        return Fourier(1, n_features, scale=1.0, seed=1), n_features
    raise ValueError(f"unknown time embedding {kind!r}; choose one of: {', '.join(TIME_EMBEDDINGS)}")


ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; choose one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class _Embedded(nn.Module):
    """Input features shared by the backbones: the point, its Fourier features, the time, a class."""

    def __init__(self, dim, activation, time, time_features, time_layers, fourier_features, fourier_scale, n_classes):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim = {dim}; a point has at least 1 coordinate")
        self.dim, self.n_classes = dim, n_classes
        embedding, n_time = _time_embedding(time, time_features)
        layers = []
        for _ in range(time_layers):
            layers += [nn.Linear(n_time, time_features), _activation(activation)]
            n_time = time_features
        self.time = nn.Sequential(embedding, *layers[:-1])
        self.fourier = Fourier(dim, fourier_features, fourier_scale) if fourier_features else None
        # the last row stands for "no class", for classifier-free guidance
        self.classes = nn.Embedding(n_classes + 1, time_features) if n_classes else None
        self.n_features = dim + fourier_features + n_time + (time_features if n_classes else 0)

    def embed(self, x: Tensor, c: Tensor, label: Tensor | None) -> Tensor:
        parts = [x, *([self.fourier(x)] if self.fourier is not None else []), self.time(c[:, None])]
        if self.classes is not None:
            label = torch.full((len(x),), self.n_classes, device=x.device) if label is None else label
            parts.append(self.classes(label))
        elif label is not None:
            raise ValueError("this network has no classes; build it with n_classes to pass a label")
        return torch.cat(parts, 1)


@NETWORKS.register("mlp")
class MLP(_Embedded):
    """Plain MLP over the concatenated point and time features.

    `hidden=(64,)`, `(64, 64)` and `(64, 128, 128)` with their defaults are the homework's models 1, 2 and 3. With
    `activation="silu"`, `time="sinusoidal"` and `time_layers=2`, `(128, 128)` and `(128, 128, 128)` are the two-moons
    report's networks of 34K and 50K parameters.

    Args:
        dim: size of a point.
        hidden: widths of the hidden layers.
        activation: `relu`, `silu` or `gelu`.
        dropout: probability after each hidden layer.
        time: `scalar`, `sinusoidal` or `fourier`.
        time_features: size of a non-scalar time embedding.
        time_layers: linear layers of that size on top of the embedding, with activations between.
        fourier_features: random Fourier features of the point to append; 0 for none.
        fourier_scale: their frequency scale.
        n_classes: classes of a conditional network; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        time: str = "scalar",
        time_features: int = 64,
        time_layers: int = 0,
        fourier_features: int = 0,
        fourier_scale: float = 1.0,
        n_classes: int = 0,
    ):
        super().__init__(dim, activation, time, time_features, time_layers, fourier_features, fourier_scale, n_classes)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden = {tuple(hidden)}; need at least one positive width")
        widths, layers = (self.n_features, *hidden), []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), _activation(activation)]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Map points `(n, dim)` and conditioning numbers `(n,)` to `(n, dim)`."""
        return self.layers(self.embed(x, c, label))


class _Block(nn.Module):
    def __init__(self, width: int, n_condition: int, activation: str, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.condition = nn.Linear(n_condition, width)
        self.activation, self.dropout = _activation(activation), nn.Dropout(dropout)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        inner = self.layers[0](self.activation(self.norms[0](h) + self.condition(condition)))
        return h + self.layers[1](self.activation(self.norms[1](self.dropout(inner))))


@NETWORKS.register("residual_mlp")
class ResidualMLP(_Embedded):
    r"""Pre-norm residual blocks, each told the time.

    .. math:: h \leftarrow h + W_2\,\phi(\mathrm{LN}(\mathrm{drop}(W_1\,\phi(\mathrm{LN}(h) + U e)))).

    e is the time embedding, and the class embedding if there is one. The defaults are the two-moons report's network of
    134K parameters.

    Args:
        dim: size of a point.
        width: width of the residual stream and of each block.
        n_blocks: number of blocks.

    The others are those of `MLP`.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        n_blocks: int = 3,
        activation: str = "silu",
        dropout: float = 0.0,
        time: str = "sinusoidal",
        time_features: int = 64,
        time_layers: int = 2,
        fourier_features: int = 0,
        fourier_scale: float = 1.0,
        n_classes: int = 0,
    ):
        super().__init__(dim, activation, time, time_features, time_layers, fourier_features, fourier_scale, n_classes)
        if width < 1 or n_blocks < 1:
            raise ValueError(f"width = {width}, n_blocks = {n_blocks}; both must be positive")
        self.n_point = dim + fourier_features
        n_condition = self.n_features - self.n_point
        self.inlet = nn.Linear(self.n_point, width)
        self.blocks = nn.ModuleList(_Block(width, n_condition, activation, dropout) for _ in range(n_blocks))
        self.outlet = nn.Sequential(nn.LayerNorm(width), _activation(activation), nn.Linear(width, dim))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Map points `(n, dim)` and conditioning numbers `(n,)` to `(n, dim)`."""
        point, condition = self.embed(x, c, label).tensor_split([self.n_point], 1)
        h = self.inlet(point)
        for block in self.blocks:
            h = block(h, condition)
        return self.outlet(h)
