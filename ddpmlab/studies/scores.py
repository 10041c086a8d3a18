"""How to read a score: what each reads for perfect and for flawed samples, as tables (`lab.remembered`).

Every function returns rows with the columns `dataset, variant, seed, metric, n, value` of the results contract.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ddpmlab import data, metrics
from ddpmlab.data.laws import Law
from ddpmlab.metrics import two_sample
from ddpmlab.metrics.calibration import draw, emd_total, fresh_points, stream
from ddpmlab.metrics.moons import report_sample

NOISE, PERFECT = "pure noise", "perfect sampler"
COLLIDING, FREE = "the report's folds", "folds of another seed"
FLAWED = {
    "pure noise": lambda x, generator: torch.randn(x.shape, generator=generator, dtype=x.dtype),
    "blurred by 0.25 sd": lambda x, generator: blurred(x, 0.25, generator),
    "moved by 0.25 sd": lambda x, generator: x + x.new_tensor([0.25, 0.0]),
}
"""Samplers for `classifiers`, as what becomes of perfect points, in standardised units."""
UNITS = ("standardised", "raw data, noise N(0, I)")


def blurred(x: Tensor, blur: float, generator: torch.Generator) -> Tensor:
    """Points with Gaussian noise of standard deviation `blur` on top."""
    return x + blur * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _moons() -> Law:
    return data.make("two_moons").standardised()


def _table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["dataset", "variant", "seed", "metric", "n", "value"])


def by_the_report(n: int, n_perfect: int, n_noise: int) -> pd.DataFrame:
    """The two-moons report's three distances, for a perfect sampler and for noise, against its own real points."""
    law, real, rows = _moons(), report_sample(n), []
    for variant, repeats in ((PERFECT, n_perfect), (NOISE, n_noise)):
        for seed in range(repeats):
            generator = stream(f"{variant} by the report", seed)
            x = law.sample(n, generator)
            if variant == NOISE:
                x = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            squared = metrics.mmd2(x, real)
            found = {
                "mmd2": squared,
                "mmd_published": max(squared, 0.0) ** 0.5,
                "energy_distance_published": metrics.energy_distance(x, real, "two-moons-report"),
                "sliced_wasserstein_published": metrics.sliced_wasserstein(x, real),
            }
            rows += [("two_moons", variant, seed, metric, n, value) for metric, value in found.items()]
    return _table(rows)


def folds_of(n: int, blur: float, seed: int, free: bool) -> pd.DataFrame:
    """The report's classifier test of a perfect sampler, blurred or not, by repeat; with other folds beside it if free.

    Args:
        n: points a side.
        blur: standard deviation of the noise that is added.
        seed: of the sampler, and with 1,000 more of the free folds.
        free: test with folds of another seed too.
    """
    real, generator = report_sample(n), stream("folds", seed)
    x = blurred(_moons().sample(n, generator), blur, generator)
    found = two_sample.c2st_folds(x, real, "svm", n_folds=5, n_repeats=3, seed=42)
    parts = {COLLIDING: found, "its first repeat": found[:5], "its other two": found[5:]}
    if free:
        parts[FREE] = two_sample.c2st_folds(x, real, "svm", n_folds=5, seed=1_000 + seed)
    rows = []
    for name, part in parts.items():
        scores = {"c2st_accuracy": [f[2] for f in part], "c2st_roc": [2 * abs(f[3] - 0.5) for f in part]}
        for metric, values in scores.items():
            variant = f"blur {blur:g}, {name}"
            rows.append(("two_moons", variant, seed, f"{metric}_published", n, float(np.mean(values))))
    return _table(rows)


def logistic_auc(x: Tensor, y: Tensor, seed: int = 0, n_folds: int = 5) -> float:
    """AUC of a classifier two-sample test by logistic regression on the coordinates: its boundary is a line.

    Args:
        x, y: generated and real points, `(n, d)` each.
        seed: of the folds.
        n_folds: folds; the mean over them is returned.
    """
    points, label = torch.cat([y, x]).numpy(), np.repeat([1, 0], [len(y), len(x)])
    values = []
    for train, held_out in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(points, label):
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(points[train], label[train])
        values.append(roc_auc_score(label[held_out], model.decision_function(points[held_out])))
    return float(np.mean(values))


def classifiers(n: int, n_seeds: int) -> pd.DataFrame:
    """AUC of the classifier test of flawed samplers, by logistic regression and by the SVM, fresh real points each."""
    law, rows = _moons(), []
    for seed in range(n_seeds):
        for variant, flaw in FLAWED.items():
            generator = stream(f"classifiers, {variant}", seed)
            x, y = flaw(law.sample(n, generator), generator), law.sample(n, generator)
            rows.append(("two_moons", variant, seed, "auc_logistic", n, logistic_auc(x, y, seed)))
            rows.append(("two_moons", variant, seed, "auc_svm", n, two_sample.c2st(x, y, seed=seed).auc))
    return _table(rows)


def directions(n: int, n_seeds: int, repeats: int, n_projections: int = 256) -> pd.DataFrame:
    """Scatter of the sliced Wasserstein distance of a perfect sampler, over samples and over directions.

    Per seed the standard deviation over `repeats` pairs of samples at the same directions, and over as many sets of
    directions for the first of these pairs.
    """
    law, rows = _moons(), []
    for seed in range(n_seeds):
        generator = stream("directions", seed)
        pairs = [(law.sample(n, generator), law.sample(n, generator)) for _ in range(repeats)]
        over = {
            "samples": [metrics.sliced_wasserstein(x, y, n_projections, seed) for x, y in pairs],
            "directions": [metrics.sliced_wasserstein(*pairs[0], n_projections, 1_000 + k) for k in range(repeats)],
        }
        for name, values in over.items():
            variant = f"{n_projections} directions, over {name}"
            rows.append(("two_moons", variant, seed, "sd_of_sliced_wasserstein", n, float(np.std(values, ddof=1))))
    return _table(rows)


def emds(dataset: str, n: int, repeats: int, units: str) -> pd.DataFrame:
    """Total EMD of `n` test points and as many of the law, or of noise N(0, I), one row a draw.

    Args:
        dataset: name of the law.
        n: points a side.
        repeats: draws.
        units: one of `UNITS`; raw data are in the law's own units, and the noise is N(0, I) there too.

    Raises:
        ValueError: unknown units.
    """
    if units not in UNITS:
        raise ValueError(f"units = {units!r}; choose one of: {', '.join(UNITS)}")
    law, rows = data.make(dataset).standardised(), []
    test = law.split().test.double()
    for seed in range(repeats):
        generator = stream(f"EMD of {dataset}, {n}, {units}", seed)
        y, x = draw(test, n, generator), law.sample(n, generator)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if units != UNITS[0]:
            x, y = law.to_own_units(x), law.to_own_units(y)
        for variant, points in ((PERFECT, x), (NOISE, z)):
            rows.append((dataset, f"{variant}, {units}", seed, "emd_total", n, emd_total(points, y)))
    return _table(rows)


def course_nlls(dataset: str, n: int, repeats: int, n_single: int = 200) -> pd.DataFrame:
    """The course's NLL of a perfect sampler, of noise, and of the best of `n_single` points drawn over and over."""
    law, rows = data.make(dataset).standardised(), []
    for seed in range(repeats):
        generator = stream(f"course NLL of {dataset}", seed)
        x, y = law.sample(n, generator), fresh_points(law, n, seed)
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        for variant, points in ((PERFECT, x), (NOISE, z)):
            rows.append((dataset, variant, seed, "course_nll_published", n, metrics.course_nll(points, y)))
    test = law.split().test.double()[:n]
    crowd = min(metrics.course_nll(point[None], test) for point in test[:n_single])
    rows.append((dataset, "one point, repeated", 0, "course_nll_published", len(test), crowd))
    rows.append((dataset, "exact", 0, "entropy", n, float(law.entropy())))
    return _table(rows)
