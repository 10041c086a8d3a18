r"""Scores of pictures: how far generated ones are from real ones, by the features of a classifier trained here.

Pixels say little of what a picture shows, so the usual scores compare features :math:`f(x) \in R^{128}`: what the last
layer of a classifier of the ten garments reads. Of generated features with mean m and covariance C, and real ones with
m' and C',

.. math::
    \text{Frechet} = |m - m'|^2 + \operatorname{tr}\bigl(C + C' - 2 (C^{1/2} C' C^{1/2})^{1/2}\bigr), \qquad
    \text{kernel} = E\,k(f, \tilde f) + E\,k(f', \tilde f') - 2\,E\,k(f, f'),\quad k(a, b) = (a^\top b/128 + 1)^3,

the squared Wasserstein-2 distance of two Gaussians (Heusel et al. 2017, eq. 6) and the squared maximum mean discrepancy
over pairs of distinct pictures (Binkowski et al. 2018, eq. 4). Neither compares with numbers from another network's
features, nor, the Frechet distance, with numbers at another n: each is read between its floor, real pictures against
real ones, and its ceiling, noise against real ones, both at the same n and both from `Reference.calibration`.

Everywhere here pictures are in own units, pixels in [0, 1] (`law.to_own_units(samples)`), `(n, 1, 28, 28)`. What leaves
that range is cut to it, and values are rounded to the 256 grey levels, as when a picture is saved.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddpmlab.data.dataset import Dataset
from ddpmlab.metrics.calibration import Calibration, draw
from ddpmlab.metrics.distances import check_samples
from ddpmlab.metrics.two_sample import Neighbourhood

if TYPE_CHECKING:
    from ddpmlab.denoisers import Denoising

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
    """A small classifier of FashionMNIST: three convolutions, then 128 features, then ten classes.

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
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default a GPU's convolutions keep 10 bits
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


def class_accuracy(x: Tensor, labels: Tensor) -> float:
    """Share of pictures `(n, 1, 28, 28)` that the feature network takes for the class `(n,)` they were asked for.

    Of real test pictures it is the network's accuracy, `feature_metadata()["accuracy"]`, and not 1.

    Raises:
        ValueError: see `pixels`, or labels of another number or beyond 9.
    """
    x = pixels(x)
    return _accuracy(_features_and_logits(x)[1], _checked_labels(labels, len(x)))


def _checked_labels(labels: Tensor, n: int) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.shape != (n,) or torch.is_floating_point(labels):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, {labels.dtype}; need {n} integers, one a picture")
    if labels.min() < 0 or labels.max() >= N_CLASSES:
        raise ValueError(f"labels span [{labels.min()}, {labels.max()}]; the classes are 0 to {N_CLASSES - 1}")
    return labels


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1).cpu() == labels.cpu()).double().mean())


# -- Distances between two samples of features -------------------------------------------------------------------------


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Squared Wasserstein-2 distance of the Gaussians with the moments of `a` and `b`; see the module.

    Float64; covariances with n - 1 as in the original code; the trace of the root from eigenvalues of
    :math:`C^{1/2} C' C^{1/2}`, which are real and, but for rounding, not negative. It falls with n: for features in d
    dimensions the same law still reads about d/n of their variance, so compare at equal n only.

    Args:
        a, b: features `(n, d)` and `(m, d)`; any points will do.

    Raises:
        ValueError: see `check_samples`.
    """
    a, b = check_samples(a, b)
    moments = [(z.mean(0), torch.cov(z.T, correction=1).reshape(z.shape[1], -1)) for z in (a, b)]
    (mean_a, cov_a), (mean_b, cov_b) = moments
    value, vector = torch.linalg.eigh(cov_a)
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    middle = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * middle
    return max(float(distance), 0.0)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    r"""Squared maximum mean discrepancy with the kernel :math:`(a^\top b/d + 1)^3`, unbiased: it can be negative.

    Unlike the Frechet distance its mean does not depend on n. All pairs are used, in float64.

    Args:
        a, b: features `(n, d)` and `(m, d)`.

    Raises:
        ValueError: see `check_samples`.
    """
    a, b = check_samples(a, b)
    d = a.shape[1]

    def mean(x, y, same):
        total = 0.0
        for rows in x.split(max(1, _BLOCK // 2 // len(y))):
            total += float((rows @ y.T).div_(d).add_(1).pow_(3).sum())
        if same:
            total -= float((x.square().sum(1) / d + 1).pow(3).sum())
        return total / (len(x) * (len(y) - same))

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def feature_neighbourhood(x: Tensor, y: Tensor, k: int = 5) -> Neighbourhood:
    """Precision, recall, density and coverage as `two_sample.neighbourhood` defines them, by blocks of all pairs.

    In 128 dimensions no tree helps: this takes some 10 s of one core at n = 10,000. A point at just the radius of a
    ball is in it, and rounding does not decide that.

    Args:
        x, y: features of generated and of real pictures, `(n, d)` and `(m, d)`.
        k: which neighbour's distance is a ball's radius.

    Raises:
        ValueError: `k` below 1 or not below both sizes, or bad samples.
    """
    x, y = check_samples(x, y)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k = {k}; need 1 <= k < {min(len(x), len(y))}, the smaller sample's size")
    centre = y.mean(0)
    x, y = x - centre, y - centre
    slack = 1e-12 * float(x.square().sum(1).max() + y.square().sum(1).max())

    def blocks(a, b):
        half = b.square().sum(1)
        start = 0
        for rows in a.split(max(1, _BLOCK // 2 // len(b))):
            yield start, torch.addmm(half + rows.square().sum(1, keepdim=True), rows, b.T, alpha=-2)
            start += len(rows)

    def radii(a):
        return torch.cat([square.kthvalue(k + 1, dim=1).values for _, square in blocks(a, a)])

    radius_x, radius_y = radii(x) + slack, radii(y) + slack
    held_by_real = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    in_generated = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    filled = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    for start, square in blocks(y, x):
        rows = slice(start, start + len(square))
        inside = square <= radius_y[rows, None]
        held_by_real += inside.sum(0)
        filled[rows] = inside.any(1)
        in_generated[rows] = (square <= radius_x).any(1)
    precision, recall = (float(hit.double().mean()) for hit in (held_by_real > 0, in_generated))
    return Neighbourhood(precision, recall, float(held_by_real.double().mean() / k), float(filled.double().mean()))


# -- Pictures against the training set ---------------------------------------------------------------------------------


class Nearest(NamedTuple):
    """Distances `(n, k)` (float64, pixels in [0, 1]) and indices `(n, k)` of the nearest pictures, nearest first."""

    distance: Tensor
    index: Tensor


@torch.no_grad()
def nearest(x: Tensor, real: Tensor, k: int = 1) -> Nearest:
    """The `k` pictures of `real` nearest to each of `x` in Euclidean distance of pixels.

    Candidates come from matrix products in float32, tile by tile; their distances are then computed anew from the
    differences. Some 15 s of one core for 10,000 pictures against 60,000.

    Args:
        x: pictures `(n, 1, 28, 28)`; see `pixels`.
        real: pictures `(N, 1, 28, 28)`.
        k: how many.

    Raises:
        ValueError: see `pixels`, or `k` beyond N.
    """
    x = pixels(x).flatten(1)
    real = pixels(real, "real").flatten(1).to(x.device)
    if not 1 <= k <= len(real):
        raise ValueError(f"k = {k}; need 1 <= k <= {len(real)}, the number of real pictures")
    more, half = min(len(real), k + 6), real.square().sum(1) / 2
    distance, index = [], []
    for rows in x.split(max(1, _BLOCK // len(real))):
        found = torch.addmm(half, rows, real.T, alpha=-1).topk(more, dim=1, largest=False).indices
        exact = (rows[:, None].double() - real[found].double()).square().sum(2).sqrt()
        order = exact.argsort(dim=1, stable=True)[:, :k]
        distance.append(exact.gather(1, order))
        index.append(found.gather(1, order))
    return Nearest(torch.cat(distance), torch.cat(index))


def _distinct(x: Tensor) -> Tensor:
    """The pictures without repetitions, in no particular order."""
    rows = np.ascontiguousarray((pixels(x, "train") * 255).flatten(1).cpu().numpy().astype(np.uint8))
    _, first = np.unique(rows.view(f"V{rows.shape[1]}")[:, 0], return_index=True)
    return x[torch.from_numpy(first).to(x.device)]


def copies(x: Tensor, train: Tensor, ratio: float = 1 / 3) -> Tensor:
    """Which pictures are copies, `(n,)`: the distance to the nearest training picture is below `ratio` times that to
    the second nearest.

    The rule is that of Yoon et al. 2023. Training pictures that are equal to each other count as one, or what copies
    them would never be found.

    Args:
        x: generated pictures `(n, 1, 28, 28)`.
        train: the training set `(N, 1, 28, 28)`, at least 2 different ones.
        ratio: of the first distance to the second, below which a picture is a copy.

    Raises:
        ValueError: see `pixels`, a ratio outside (0, 1), or fewer than 2 different training pictures.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio = {ratio}; need 0 < ratio < 1")
    train = _distinct(torch.as_tensor(train))
    if len(train) < 2:
        raise ValueError("all training pictures are equal; the rule needs a second nearest one")
    distance = nearest(x, train, 2).distance
    return distance[:, 0] < ratio * distance[:, 1]


def copy_share(x: Tensor, train: Tensor, ratio: float = 1 / 3) -> float:
    """Share of pictures that are copies of training pictures; see `copies`. Real new ones have a share of their own."""
    return float(copies(x, train, ratio).double().mean())


# -- Spectrum ----------------------------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    """Mean power of Fourier coefficients by spatial frequency.

    `frequency` in cycles a picture, `power` for each, and `count`, how many coefficients it is a mean of: power times
    count sums to the mean square of a pixel.
    """

    frequency: Tensor
    power: Tensor
    count: Tensor


def radial_spectrum(x: Tensor) -> Spectrum:
    r"""Power by spatial frequency, :math:`E|\hat x_k|^2/(HW)^2` over all k with :math:`|k|` nearest to an integer.

    Speckle shows at the upper end, blur as a lack of it. Pictures are taken as they are, neither cut nor rounded.

    Args:
        x: pictures `(n, 1, H, W)` or `(n, H, W)`, in any units.

    Returns:
        Float64, frequencies 0 to the corner's.

    Raises:
        ValueError: another shape, no picture, or NaN or infinity.
    """
    x = torch.as_tensor(x)
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}; need pictures (n, 1, H, W)")
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinity; drop those pictures first")
    height, width = x.shape[1:]
    power = torch.zeros(height, width, dtype=torch.float64, device=x.device)
    for batch in x.split(2_000):
        power += torch.fft.fft2(batch.double()).abs().square().sum(0)
    power = power.cpu() / (len(x) * (height * width) ** 2)
    rows, columns = (torch.fft.fftfreq(size, 1 / size, dtype=torch.float64) for size in (height, width))
    ring = torch.hypot(rows[:, None], columns[None]).round().long().reshape(-1)
    count = ring.bincount()
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, ring, power.reshape(-1))
    return Spectrum(torch.arange(len(count), dtype=torch.float64), total / count.clamp(min=1), count)


# -- All scores, between floor and ceiling -----------------------------------------------------------------------------

SCORES = (
    "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "class_accuracy", "copy_share",
)  # fmt: skip
"""Names of the scores that `Reference` computes."""


class Reference:
    """Real pictures that generated ones are held to.

    Args:
        train, test: pictures in own units `(n, 1, 28, 28)`.
        train_labels, test_labels: their classes, if they have any.
    """

    def __init__(
        self, train: Tensor, test: Tensor, train_labels: Tensor | None = None, test_labels: Tensor | None = None
    ):
        self.train, self.test = pixels(train, "train", 2), pixels(test, "test", 2)
        self.train_labels, self.test_labels = train_labels, test_labels
        self._known: dict[str, Tensor] = {}

    @classmethod
    def of(cls, dataset: Dataset) -> "Reference":
        """The pictures of a dataset, standardised or not."""
        split = dataset.split()
        return cls(
            dataset.to_own_units(split.train), dataset.to_own_units(split.test), split.train_labels, split.test_labels
        )

    def real_features(self, half: str, n: int) -> Tensor:
        """Features `(n, 128)` of the first n `train` or `test` pictures, kept for the next call."""
        if half not in self._known or len(self._known[half]) < n:
            self._known[half] = _features_and_logits(getattr(self, half)[:n])[0]
        return self._known[half][:n]

    @cached_property
    def _distinct(self) -> Tensor:
        return _distinct(self.train)

    def scores(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        against: str = "test",
        names: Iterable[str] = SCORES,
        k: int = 5,
    ) -> dict[str, float]:
        """Scores of generated pictures against as many real ones.

        Args:
            x: generated pictures in own units `(n, 1, 28, 28)`, n at most the number of real ones.
            labels: the classes asked for, `(n,)`; without them there is no `class_accuracy`.
            against: `test` or `train`: the first n pictures of that half (the files' order is random). `copy_share` is
                always against the training set, all of it.
            names: which of `SCORES`.
            k: neighbours of `feature_neighbourhood`.

        Raises:
            ValueError: an unknown name, more pictures than real ones, and see `pixels`.
        """
        names = list(names)
        _check_names(names)
        _check_half(against)
        x = pixels(x, least=2)
        there = len(getattr(self, against))
        if len(x) > there:
            raise ValueError(f"x has {len(x)} pictures, the {against} set {there}; scores compare equal numbers")
        real = self.real_features(against, len(x))
        return self._scores(x, _features_and_logits(x), real, labels, names, k)

    def _scores(self, x, found, real, labels, names, k):
        a, b = found[0].double().to(real.device), real.double()
        values = {}
        if "frechet_distance" in names:
            values["frechet_distance"] = frechet_distance(a, b)
        if "kernel_distance" in names:
            values["kernel_distance"] = kernel_distance(a, b)
        if {"precision", "recall", "density", "coverage"} & set(names):
            values.update(feature_neighbourhood(a, b, k)._asdict())
        if "class_accuracy" in names and labels is not None:
            values["class_accuracy"] = _accuracy(found[1], _checked_labels(labels, len(x)))
        if "copy_share" in names:
            distance = nearest(x, self._distinct.to(x.device), 2).distance
            values["copy_share"] = float((distance[:, 0] < distance[:, 1] / 3).double().mean())
        return {name: values[name] for name in names if name in values}

    def calibration(
        self,
        n: int,
        repeats: int = 5,
        seed: int = 0,
        against: str = "test",
        names: Iterable[str] = SCORES,
        k: int = 5,
    ) -> dict[str, Calibration]:
        """Floor and ceiling of each score at n pictures a side.

        The floor is n training pictures against n test pictures (or against n others of the training set), drawn anew
        each time. `copy_share` and `class_accuracy` have no such pair: their floor is what n test pictures read
        themselves. The ceiling is noise: pixels that are normal with the training pixels' mean and sd, and random
        labels.

        Args:
            n: pictures a side.
            repeats: draws behind means and sds.
            seed: of all draws.
            against: `test` or `train`.
            names: which of `SCORES`.
            k: neighbours of `feature_neighbourhood`.

        Raises:
            ValueError: fewer than 2 repeats, an unknown name, or n beyond the pictures.
        """
        names = list(names)
        _check_names(names)
        _check_half(against)
        if repeats < 2:
            raise ValueError(f"repeats = {repeats}; a standard deviation needs at least 2")
        generator = torch.Generator().manual_seed(seed)
        mean, sd = self.train.mean(), self.train.std()
        pairs = [name for name in names if name not in ("class_accuracy", "copy_share")]
        floors, ceilings = [], []
        for _ in range(repeats):
            if against == "test":
                chosen = draw(torch.arange(len(self.train)), n, generator)
                others = draw(torch.arange(len(self.test)), n, generator)
            else:
                chosen, others = draw(torch.arange(len(self.train)), 2 * n, generator).split(n)
            real = _features_and_logits(getattr(self, against)[others])[0]
            floor = self._scores(None, _features_and_logits(self.train[chosen]), real, None, pairs, k)
            if n < len(self.test) or not floors:
                mine = draw(torch.arange(len(self.test)), min(n, len(self.test)), generator)
                x = self.test[mine]
                told = None if self.test_labels is None else self.test_labels[mine]
                alone = self._scores(
                    x, _features_and_logits(x), real, told, [name for name in names if name not in pairs], k
                )
            floor |= alone
            noise = pixels(mean + sd * torch.randn(n, *SHAPE, generator=generator).to(mean.device))
            labels = None if self.test_labels is None else torch.randint(N_CLASSES, (n,), generator=generator)
            floors.append(floor)
            ceilings.append(self._scores(noise, _features_and_logits(noise), real, labels, names, k))
        calibrations = {}
        for name in (name for name in names if name in floors[0]):
            values = [torch.tensor([row[name] for row in rows], dtype=torch.float64) for rows in (floors, ceilings)]
            calibrations[name] = Calibration(*(float(m) for v in values for m in (v.mean(), v.std())))
        return calibrations


def _check_half(against: str) -> None:
    if against not in ("test", "train"):
        raise ValueError(f"against = {against!r}; choose test or train")


def _check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise ValueError(f"unknown score {unknown[0]!r}; choose from: {', '.join(SCORES)}")


# -- Denoisers, noise level by noise level -----------------------------------------------------------------------------


@torch.no_grad()
def denoised(
    denoiser: "Denoising", x0: Tensor, level: float, noise: Tensor, labels: Tensor | None = None, batch_size: int = 250
) -> Tensor:
    r"""Estimates of `x0` from :math:`\alpha x_0 + \sigma\varepsilon` at the noise level :math:`\sigma/\alpha`.

    Args:
        denoiser: any, with any schedule.
        x0: points `(n, *shape)` in the denoiser's units.
        level: the noise level.
        noise: standard normal, `(n, *shape)`.
        labels: classes `(n,)` for a conditional denoiser.
        batch_size: points at a time.

    Returns:
        `(n, *shape)`, of the dtype and on the device of `x0`.

    Raises:
        ValueError: the denoiser's schedule does not reach this level.
    """
    schedule = denoiser.schedule
    t = schedule.time_of(torch.tensor(float(level), dtype=torch.float64))
    reached = float(schedule.noise_level(t))
    if not math.isclose(reached, level, rel_tol=1e-3):
        low, high = (float(schedule.noise_level(s)) for s in (schedule.t_min, schedule.t_max))
        raise ValueError(f"noise level {level:g}; this denoiser's schedule has {low:g} to {high:g}")
    alpha, sigma = (float(a) for a in schedule(t))
    estimates = []
    for i in range(0, len(x0), batch_size):
        rows = slice(i, i + batch_size)
        x_t = (alpha * x0[rows] + sigma * noise[rows]).to(denoiser.device, denoiser.dtype)
        more = () if labels is None else (labels[rows].to(denoiser.device),)
        estimates.append(denoiser(x_t, t, *more).to(x0))
    return torch.cat(estimates)


def level_errors(
    denoisers: Mapping[str, "Denoising"],
    x0: Tensor,
    levels: Sequence[float] | Tensor,
    seed: int = 0,
    labels: Tensor | None = None,
    batch_size: int = 250,
) -> dict[str, Tensor]:
    r"""Squared error :math:`|D(x_t) - x_0|^2/d` of denoisers, noise level by noise level, on the same noisy points.

    Args:
        denoisers: by name; each may have a schedule of its own.
        x0: clean points `(n, *shape)` in the denoisers' units, such as `law.standardised().split().test`.
        levels: noise levels :math:`\sigma/\alpha`.
        seed: of the noise, the same for all denoisers and fresh at each level.
        labels: classes `(n,)`, given to the denoisers that have classes (`n_classes` above 0).
        batch_size: points at a time.

    Returns:
        By name, `(len(levels), n)` float64. Means over points are losses, differences between denoisers are paired.

    Raises:
        ValueError: see `denoised`; no denoiser, or no point.
    """
    if not denoisers or len(x0) == 0:
        raise ValueError(f"{len(denoisers)} denoisers and {len(x0)} points; need at least one of each")
    generator = torch.Generator().manual_seed(seed)
    errors = {name: [] for name in denoisers}
    for level in (float(level) for level in levels):
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
        for name, denoiser in denoisers.items():
            known = labels if getattr(denoiser, "n_classes", 0) else None
            estimate = denoised(denoiser, x0, level, noise, known, batch_size)
            errors[name].append((estimate - x0).double().square().flatten(1).mean(1).cpu())
    return {name: torch.stack(rows) for name, rows in errors.items()}


def level_copies(
    denoisers: Mapping[str, "Denoising"],
    dataset: Dataset,
    levels: Sequence[float] | Tensor,
    n: int = 500,
    seed: int = 0,
    batch_size: int = 250,
) -> dict[str, list[float]]:
    """Share of estimates of noised test pictures that are copies of training pictures (see `copies`), by noise level.

    The exact denoiser of the training set answers with training pictures at small noise; a network that has learned
    what pictures are does not.

    Args:
        denoisers: by name, in the units of `dataset`.
        dataset: standardised pictures.
        levels: noise levels.
        n: how many test pictures, the first ones.
        seed, batch_size: see `level_errors`.

    Returns:
        By name, one share for each level.

    Raises:
        ValueError: see `denoised`.
    """
    split = dataset.split()
    x0, train = split.test[:n], _distinct(dataset.to_own_units(split.train))
    labels = None if split.test_labels is None else split.test_labels[:n]
    generator = torch.Generator().manual_seed(seed)
    shares = {name: [] for name in denoisers}
    for level in (float(level) for level in levels):
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        for name, denoiser in denoisers.items():
            known = labels if getattr(denoiser, "n_classes", 0) else None
            estimate = dataset.to_own_units(denoised(denoiser, x0, level, noise, known, batch_size))
            distance = nearest(estimate, train, 2).distance
            shares[name].append(float((distance[:, 0] < distance[:, 1] / 3).double().mean()))
    return shares
