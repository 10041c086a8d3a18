"""What all backbones share: registry, shape of a point, class labels, time embeddings, and a counter of FLOP."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpmlab.registry import Registry

NETWORKS = Registry("network")
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def make_activation(name: str) -> nn.Module:
    """The activation called `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; choose one of: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a point as a tuple, after checking it.

    Raises:
        ValueError: it is not a non-empty sequence of positive whole numbers.
    """
    if isinstance(shape, int) or not len(shape) or any(k != int(k) or k < 1 for k in shape):
        raise ValueError(f"shape = {shape}; need at least one size, each at least 1, such as (3,) or (1, 28, 28)")
    return tuple(int(k) for k in shape)


def checked_label(label: Tensor | None, n: int, n_classes: int, device: torch.device) -> Tensor | None:
    """Classes `(n,)` of n points for an embedding of `n_classes + 1` rows, whose last stands for "no class".

    None means "no class" for all points. Values are checked on the CPU alone, where it costs nothing.

    Raises:
        ValueError: the network has no classes, or a label's shape or value does not fit.
    """
    if not n_classes:
        if label is not None:
            raise ValueError("this network has no classes; build it with n_classes to pass a label")
        return None
    if label is None:
        return torch.full((n,), n_classes, device=device)
    if label.shape != (n,) or label.is_floating_point():
        raise ValueError(f"label is {label.dtype} of shape {tuple(label.shape)}; need whole numbers ({n},)")
    if label.device.type == "cpu" and n and not 0 <= int(label.min()) <= int(label.max()) <= n_classes:
        raise ValueError(
            f"labels span [{int(label.min())}, {int(label.max())}]; this network has classes 0 to {n_classes - 1}, "
            f'and {n_classes} for "no class"'
        )
    return label.to(device)


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
    r"""Sinusoidal features of :math:`1000\,c`, at wavelengths from :math:`2\pi` to nearly :math:`2\pi \cdot 10^4`.

    `(n, 1)` -> `(n, n_features)`.
    """

    def __init__(self, n_features: int):
        super().__init__()
        if n_features < 2 or n_features % 2:
            raise ValueError(f"n_features = {n_features}; need an even number, at least 2")
        half = n_features // 2
        self.register_buffer("frequency", torch.exp(-math.log(10_000) * torch.arange(half) / half))

    def forward(self, c: Tensor) -> Tensor:
        phase = 1_000 * c * self.frequency
        return torch.cat([phase.sin(), phase.cos()], 1)


class NoTime(nn.Module):
    """No features at all: the network is not told the time, `(n, 1)` -> `(n, 0)`."""

    def forward(self, c: Tensor) -> Tensor:
        return c[:, :0]


TIME_EMBEDDINGS = ("scalar", "sinusoidal", "fourier", "none")


def time_embedding(kind: str, n_features: int) -> tuple[nn.Module, int]:
    """The embedding of the conditioning number called `kind`, and its number of features.

    Raises:
        ValueError: unknown kind, or an odd number of features.
    """
    if kind == "scalar":
        return nn.Identity(), 1
    if kind == "sinusoidal":
        return Sinusoidal(n_features), n_features
    if kind == "fourier":
        return Fourier(1, n_features, scale=1.0, seed=1), n_features
    if kind == "none":
        return NoTime(), 0
    raise ValueError(f"unknown time embedding {kind!r}; choose one of: {', '.join(TIME_EMBEDDINGS)}")


def flop(network: nn.Module, n: int = 1) -> int:
    """Floating-point operations of one forward pass of `n` points, a multiply-add counted as two.

    Counts matrix products, convolutions and attention, as torch's `FlopCounterMode` does; a training step costs about
    three times as much.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and rarely needed

    weight = next(network.parameters())
    x = torch.zeros(n, *network.shape, dtype=weight.dtype, device=weight.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, torch.zeros(n, dtype=weight.dtype, device=weight.device))
    return counter.get_total_flops()
