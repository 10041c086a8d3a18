r"""Multilayer perceptrons over points of any shape, flattened.

A network maps a scaled point and a conditioning number c (t/T, or :math:`\frac14\ln\sigma/\alpha`) to an output of the
point's shape. c enters as it is (`scalar`), through sines and cosines at fixed geometric frequencies (`sinusoidal`,
Vaswani et al. 2017, section 3.5, of 1000 c), at random ones (`fourier`, Tancik et al. 2020, eq. 5), or not (`none`).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpmlab.networks.base import NETWORKS, Fourier, checked_label, checked_shape, make_activation, time_embedding


class _Embedded(nn.Module):
    """Input features shared by the backbones: the point, its Fourier features, the time, a class."""

    def __init__(self, shape, activation, time, time_features, time_layers, fourier_features, fourier_scale, n_classes):
        super().__init__()
        self.shape, self.n_classes = checked_shape(shape), n_classes
        self.dim = dim = math.prod(self.shape)
        embedding, n_time = time_embedding(time, time_features)
        if n_time == 0 and time_layers:
            raise ValueError(f"time_layers = {time_layers} over time = {time!r}; a network without the time has none")
        layers = []
        for _ in range(time_layers):
            layers += [nn.Linear(n_time, time_features), make_activation(activation)]
            n_time = time_features
        self.time = nn.Sequential(embedding, *layers[:-1])
        self.fourier = Fourier(dim, fourier_features, fourier_scale) if fourier_features else None
        # the last row stands for "no class", for classifier-free guidance
        self.classes = nn.Embedding(n_classes + 1, time_features) if n_classes else None
        self.n_features = dim + fourier_features + n_time + (time_features if n_classes else 0)

    def embed(self, x: Tensor, c: Tensor, label: Tensor | None) -> Tensor:
        x = x.flatten(1)
        parts = [x, *([self.fourier(x)] if self.fourier is not None else []), self.time(c[:, None])]
        label = checked_label(label, len(x), self.n_classes, x.device)
        if label is not None:
            parts.append(self.classes(label))
        return torch.cat(parts, 1)


@NETWORKS.register("mlp")
class MLP(_Embedded):
    """Plain MLP over the concatenated point and time features.

    `hidden=(64,)`, `(64, 64)` and `(64, 128, 128)` with their defaults are the homework's models 1, 2 and 3. With
    `activation="silu"`, `time="sinusoidal"` and `time_layers=2`, `(128, 128)` and `(128, 128, 128)` are the two-moons
    report's networks of 34K and 50K parameters.

    Args:
        shape: shape of a point, such as `(3,)`.
        hidden: widths of the hidden layers.
        activation: `relu`, `silu` or `gelu`.
        dropout: probability after each hidden layer.
        time: `scalar`, `sinusoidal`, `fourier`, or `none` for a network that is not told the time.
        time_features: size of a non-scalar time embedding.
        time_layers: linear layers of that size on top of the embedding, with activations between.
        fourier_features: random Fourier features of the point to append; 0 for none.
        fourier_scale: their frequency scale.
        n_classes: classes of a conditional network; 0 for none.
        output_activation: an activation behind the last layer too, as in the homework's text; none if omitted.
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = (64, 128, 128),
        activation: str = "relu",
        dropout: float = 0.0,
        time: str = "scalar",
        time_features: int = 64,
        time_layers: int = 0,
        fourier_features: int = 0,
        fourier_scale: float = 1.0,
        n_classes: int = 0,
        output_activation: str | None = None,
    ):
        super().__init__(
            shape, activation, time, time_features, time_layers, fourier_features, fourier_scale, n_classes
        )
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden = {tuple(hidden)}; need at least one positive width")
        widths, layers = (self.n_features, *hidden), []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), make_activation(activation)]
            layers += [nn.Dropout(dropout)] if dropout else []
        last = [] if output_activation is None else [make_activation(output_activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.dim), *last)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Map points `(n, *shape)` and conditioning numbers `(n,)` to `(n, *shape)`."""
        return self.layers(self.embed(x, c, label)).view_as(x)


class _Block(nn.Module):
    def __init__(self, width: int, n_condition: int, activation: str, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.condition = nn.Linear(n_condition, width) if n_condition else None
        self.activation, self.dropout = make_activation(activation), nn.Dropout(dropout)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        told = self.norms[0](h) if self.condition is None else self.norms[0](h) + self.condition(condition)
        inner = self.layers[0](self.activation(told))
        return h + self.layers[1](self.activation(self.norms[1](self.dropout(inner))))


@NETWORKS.register("residual_mlp")
class ResidualMLP(_Embedded):
    r"""Pre-norm residual blocks, each told the time.

    .. math:: h \leftarrow h + W_2\,\phi(\mathrm{LN}(\mathrm{drop}(W_1\,\phi(\mathrm{LN}(h) + U e)))).

    e is the time embedding, and the class embedding if there is one. The defaults are the two-moons report's network of
    134K parameters.

    Args:
        shape: shape of a point, such as `(3,)`.
        width: width of the residual stream and of each block.
        n_blocks: number of blocks.

    The others are those of `MLP`.
    """

    def __init__(
        self,
        shape: Sequence[int],
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
        super().__init__(
            shape, activation, time, time_features, time_layers, fourier_features, fourier_scale, n_classes
        )
        if width < 1 or n_blocks < 1:
            raise ValueError(f"width = {width}, n_blocks = {n_blocks}; both must be positive")
        self.n_point = self.dim + fourier_features
        n_condition = self.n_features - self.n_point
        self.inlet = nn.Linear(self.n_point, width)
        self.blocks = nn.ModuleList(_Block(width, n_condition, activation, dropout) for _ in range(n_blocks))
        self.outlet = nn.Sequential(nn.LayerNorm(width), make_activation(activation), nn.Linear(width, self.dim))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Map points `(n, *shape)` and conditioning numbers `(n,)` to `(n, *shape)`."""
        point, condition = self.embed(x, c, label).tensor_split([self.n_point], 1)
        h = self.inlet(point)
        for block in self.blocks:
            h = block(h, condition)
        return self.outlet(h).view_as(x)
