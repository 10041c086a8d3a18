"""The scores of the results contract, by name: what each compares, how many points it needs, what it returns.

A score is of one of three things: a *pair* of samples, generated and real, which gives it a floor and a ceiling; the
generated *samples* alone; or the *denoiser*, against the exact one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from ddpmlab import metrics
from ddpmlab.data import make
from ddpmlab.metrics import calibration, images, moons, two_sample
from ddpmlab.registry import Registry

SCORES = Registry("metric")
"""Name -> `Score`, for the `metrics` of a config."""


@dataclass(frozen=True)
class Score:
    """How a score is computed.

    Attributes:
        function: `(x, y) -> float` of a pair, `(x, dataset, seed) -> {column: value}` of samples, or
            `(config, denoiser, store) -> float` of a denoiser.
        n: points a side; of samples the least number.
        of: `pair`, `samples` or `denoiser`.
        repeats: a pair's value is the mean over so many draws of `n` generated against `n` test points.
        test: the statistic of `two_sample.permutation_test` that gives it a p-value, against fresh points per seed.
        dataset: the only dataset that has it, if it is not one of every.
        calibration_repeats: draws behind a pair's floor and ceiling.
        floors: `(dataset) -> {column: Calibration}` of a score of samples that has floors and ceilings of its own.
    """

    function: Callable[..., Any]
    n: int = 0
    of: Literal["pair", "samples", "denoiser"] = "pair"
    repeats: int = 1
    test: str | None = None
    dataset: str | None = None
    calibration_repeats: int = 20
    floors: Callable[[Any], dict[str, calibration.Calibration]] | None = None

    @property
    def calibrated(self) -> bool:
        """Whether it has floors and ceilings."""
        return self.of == "pair" or self.floors is not None

    def mean(self, x: Tensor, y: Tensor, seed: int) -> float:
        """Mean over the draws of a pair."""
        generator = torch.Generator().manual_seed(seed)
        n = min(self.n, len(x))  # fewer where points diverged to infinity, which `divergent_share` counts
        draws = [
            self.function(calibration.draw(x, n, generator), calibration.draw(y, n, generator))
            for _ in range(self.repeats)
        ]
        return float(sum(draws) / len(draws))


def _accuracy(x: Tensor, y: Tensor) -> float:
    return metrics.c2st(x, y, "fast").accuracy


def _auc(x: Tensor, y: Tensor) -> float:
    return metrics.c2st(x, y, "fast").auc


FRESH_SEED = 5_000_011


def _large_energy_distance(points: Tensor, dataset, seed: int, n: int = 20_000) -> dict[str, float]:
    """Energy distance of `n` samples and as many fresh points of the law, with its test."""
    tested = two_sample.permutation_test(points[:n], dataset.sample(n, FRESH_SEED + seed), seed=seed)
    return {f"energy_distance_{n}": tested.statistic, f"energy_distance_{n} p": tested.p_value}


def _thickness(points: Tensor, dataset, seed: int) -> dict[str, float]:
    return {"thickness": moons.thickness(points)}


def _two_moons_report(points: Tensor, dataset, seed: int) -> dict[str, float]:
    return moons.report_scores(points)


def _path_kl(config, denoiser, store) -> float:
    from ddpmlab.lab.stages import truth

    return truth(config.dataset, config.schedule, store).path_kl(denoiser).value


def _chain_kl(config, denoiser, store) -> float:
    """Of all T steps of a discrete schedule, whichever of them the config's sampler takes."""
    from ddpmlab.lab.stages import truth

    return truth(config.dataset, config.schedule, store, chain=True).chain_kl(denoiser).total.value


def _nll_gap(split: str):
    def nll_gap(config, denoiser, store) -> float:
        points = calibration.draw(getattr(config.data.split(), split), 500, torch.Generator().manual_seed(0))
        return metrics.likelihood.nll_gap(denoiser, config.data, points).value

    return nll_gap


def _emd_of_parts(points: Tensor, dataset, seed: int) -> dict[str, float]:
    """The homework's EMD, each 128 of the samples scored alone, and the mean."""
    test = dataset.split().test.double()
    score = Score(calibration.emd_total, 128, repeats=50)
    values = [score.mean(part, test, k) for k, part in enumerate(points.split(128))]
    return {"emd_128_mean": sum(values) / len(values)}


@cache
def _real_pictures(name: str, classes: tuple[int, ...] | None) -> images.Reference:
    return images.Reference.of(make(name, classes=None if classes is None else list(classes)))


@dataclass(frozen=True)
class PictureScores:
    """Scores of the first `n` pictures against as many test pictures; see `metrics.images`.

    Attributes:
        n: pictures a side.
        names: which; of the Frechet distance also against training pictures (`frechet_distance_train`).
        suffix: of the columns.
    """

    n: int
    names: tuple[str, ...]
    suffix: str = ""

    def __call__(self, points: Tensor, dataset, seed: int) -> dict[str, float]:
        real, x = _real_pictures(dataset.name, dataset.classes), dataset.to_own_units(points[: self.n].float())
        labels = torch.arange(self.n) % dataset.n_classes  # as `stages` asks for them
        values = real.scores(x, labels, names=self.names)
        if "frechet_distance" in self.names:
            values["frechet_distance_train"] = real.scores(x, against="train", names=["frechet_distance"])[
                "frechet_distance"
            ]
        return {f"{name}{self.suffix}": value for name, value in values.items()}

    def floors(self, dataset) -> dict[str, calibration.Calibration]:
        """Floors and ceilings of the columns."""
        real = _real_pictures(dataset.name, dataset.classes)
        found = real.calibration(self.n, repeats=5, names=self.names)
        if "frechet_distance" in self.names:
            train = real.calibration(self.n, repeats=5, against="train", names=["frechet_distance"])
            found["frechet_distance_train"] = train["frechet_distance"]
        return {f"{name}{self.suffix}": value for name, value in found.items()}


_FEW = ("frechet_distance", "precision", "recall", "class_accuracy")
for _n, _names in ((10_000, images.SCORES), (2_048, _FEW), (200, _FEW)):
    _pictures = PictureScores(_n, tuple(_names), "" if _n == 10_000 else f"_{_n}")
    SCORES.register(f"pictures_{_n}")(
        Score(_pictures, _n, of="samples", dataset="fashion_mnist", floors=_pictures.floors)
    )

for _name, _score in {
    "emd_128": Score(calibration.emd_total, 128, repeats=50, calibration_repeats=200),
    "course_nll": Score(metrics.course_nll, 5_000),
    "course_nll_500": Score(metrics.course_nll, 500),
    "energy_distance": Score(metrics.energy_distance, 5_000, test="energy_distance"),
    "sliced_wasserstein": Score(metrics.sliced_wasserstein, 5_000),
    "mmd2": Score(metrics.mmd2, 5_000, test="mmd2"),
    "c2st_accuracy": Score(_accuracy, 5_000),
    "c2st_auc": Score(_auc, 5_000),
    "emd_128_parts": Score(_emd_of_parts, 128, of="samples"),
    "energy_distance_20000": Score(_large_energy_distance, 20_000, of="samples"),
    "thickness": Score(_thickness, 2, of="samples", dataset="two_moons"),
    "two-moons-report": Score(_two_moons_report, 5_000, of="samples", dataset="two_moons"),
    "kl": Score(_path_kl, of="denoiser"),
    "chain_kl": Score(_chain_kl, of="denoiser"),
    "nll_gap": Score(_nll_gap("test"), of="denoiser"),
    "nll_gap_train": Score(_nll_gap("train"), of="denoiser"),
}.items():
    SCORES.register(_name)(_score)
