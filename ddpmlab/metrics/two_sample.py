r"""Two-sample tests: can generated points be told from real ones?

A classifier two-sample test (Lopez-Paz & Oquab 2017) trains a classifier on one part of the points and scores it on the
rest: accuracy and AUC of 1/2 mean that nothing was found. A permutation test compares a statistic with its values when
the labels are shuffled, which is exact whatever the statistic: for *one* test. Several samplers, or several seeds of
one, need fresh real points each (`calibration.fresh_test`): p-values against the same points share those points' luck.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedKFold
from sklearn.neighbors import KDTree
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from ddpmlab.metrics.distances import ROUNDING, TIE, check_samples, finite, kernel, median_bandwidths, pair_blocks

CLASSIFIERS = ("svm", "fast")
_CUT_SEED = 4_000_037
C2ST_CONVENTIONS = ("pooled", "two-moons-report")


class C2ST(NamedTuple):
    """Accuracy and AUC of a classifier two-sample test; 1/2 each when the samples cannot be told apart."""

    accuracy: float
    auc: float


def _classifier(name: str):
    if name == "svm":
        return make_pipeline(StandardScaler(), SVC(kernel="rbf", gamma="scale", C=1.0))
    if name == "fast":
        features = Nystroem(kernel="rbf", gamma=2.0, n_components=200, random_state=0)
        return make_pipeline(StandardScaler(), features, LogisticRegression(max_iter=500))
    raise ValueError(f"unknown classifier {name!r}; choose one of: {', '.join(CLASSIFIERS)}")


def c2st_folds(
    x: Tensor, y: Tensor, classifier: str = "svm", n_folds: int = 5, n_repeats: int = 1, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
    """One entry per held-out fold: indices into [y, x], decision values, accuracy and AUC.

    Real points y come first, as in the two-moons report's code, which matters only when the folds' random stream and
    that of the data are the same.
    """
    x, y = check_samples(x, y, least=n_folds)
    points = torch.cat([y, x]).cpu().numpy()
    label = np.repeat([1, 0], [len(y), len(x)])
    if n_repeats == 1:
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    else:
        splitter = RepeatedStratifiedKFold(n_splits=n_folds, n_repeats=n_repeats, random_state=seed)
    folds = []
    for train, held_out in splitter.split(points, label):
        model = _classifier(classifier).fit(points[train], label[train])
        value = model.decision_function(points[held_out])
        accuracy = float(((value > 0) == label[held_out]).mean())
        folds.append((held_out, value, accuracy, float(roc_auc_score(label[held_out], value))))
    return folds


def _equal_sizes(x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Both samples at the smaller one's size: of the larger one points drawn at random, the smaller one as it is."""
    n = min(len(x), len(y))
    generator = torch.Generator().manual_seed(seed + _CUT_SEED)
    return tuple(
        sample if len(sample) == n else sample[torch.randperm(len(sample), generator=generator)[:n].to(sample.device)]
        for sample in (x, y)
    )


def c2st(
    x: Tensor,
    y: Tensor,
    classifier: str = "svm",
    n_folds: int = 5,
    seed: int = 0,
    convention: str = "pooled",
) -> C2ST:
    r"""Classifier two-sample test by cross-validation.

    Of the larger sample as many points as the smaller one has are drawn at random, so that their order does not matter.

    Args:
        x: generated points `(n, d)`.
        y: real points `(m, d)`.
        classifier: `svm` (RBF kernel, C = 1, as the two-moons report) or `fast` (logistic regression on 200 Nystroem
            features of an RBF kernel; linear in n).
        n_folds: folds.
        seed: of the folds, and of the draw; must have nothing to do with the data's.
        convention: `pooled`: mean accuracy of the folds, AUC likewise. `two-moons-report`: 5 folds, 3 repeats, seed 42,
            and in place of the AUC the mean of :math:`2|\mathrm{AUC} - 1/2|` over folds.

    Raises:
        ValueError: unknown names, fewer points than folds, or bad samples.
    """
    if convention not in C2ST_CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; choose one of: {', '.join(C2ST_CONVENTIONS)}")
    if n_folds < 2:
        raise ValueError(f"n_folds = {n_folds}; cross-validation needs at least 2")
    x, y = check_samples(x, y, least=n_folds)
    x, y = _equal_sizes(x, y, seed)
    if convention == "two-moons-report":
        folds = c2st_folds(x, y, "svm", n_folds=5, n_repeats=3, seed=42)
        return C2ST(float(np.mean([f[2] for f in folds])), float(np.mean([2 * abs(f[3] - 0.5) for f in folds])))
    folds = c2st_folds(x, y, classifier, n_folds, seed=seed)
    return C2ST(float(np.mean([f[2] for f in folds])), float(np.mean([f[3] for f in folds])))


class PermutationTest(NamedTuple):
    """An unbiased statistic and the share of label permutations in which it is at least as large."""

    statistic: float
    p_value: float


STATISTICS = ("energy_distance", "mmd2")


def permutation_test(
    x: Tensor, y: Tensor, statistic: str = "energy_distance", n_permutations: int = 199, seed: int = 0
) -> PermutationTest:
    r"""Permutation test of equal laws by energy distance or MMD (Székely & Rizzo 2004; Gretton et al. 2012).

    All permutations share one pass over the distances of the pooled points: with s = 1 on the first sample, the sums
    within and between are quadratic forms of s. The p-value is :math:`(1 + \#\{T_\pi \ge T\})/(1 + B)`, exact under
    the null whatever n. Everything is float64, and :math:`T_\pi` counts as no smaller than T within rounding, 1e-10 of
    the mean distance (or kernel): permutations that tie in exact arithmetic, frequent where points repeat, then tie
    here. One far point can thus make all permutations tie, and p = 1: count such points on their own.

    In other units the energy distance scales; both p-values stay.

    Args:
        x, y: samples `(n, d)` and `(m, d)`.
        statistic: `energy_distance` or `mmd2`, unbiased.
        n_permutations: how many, B.
        seed: of the permutations.

    Raises:
        ValueError: unknown statistic, no permutation, or bad samples.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}; choose one of: {', '.join(STATISTICS)}")
    if n_permutations < 1:
        raise ValueError(f"n_permutations = {n_permutations}; need at least 1")
    x, y = check_samples(x, y)
    pooled, n, m = torch.cat([x, y]), len(x), len(y)
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(n + m, n_permutations + 1, dtype=torch.float64)
    first[:n, 0] = 1
    for b in range(1, n_permutations + 1):
        first[torch.randperm(n + m, generator=generator)[:n], b] = 1
    first = first.to(pooled.device)
    gammas = median_bandwidths(x, y) if statistic == "mmd2" else []
    within_x = torch.zeros(n_permutations + 1, dtype=torch.float64, device=pooled.device)
    of_point = torch.zeros(n + m, dtype=torch.float64, device=pooled.device)  # its sum over all others
    for rows, distance in pair_blocks(pooled):
        value = kernel(distance, gammas).neg_() if gammas else distance
        size = rows.stop - rows.start
        value[:, :size].fill_diagonal_(0.0)  # no point with itself
        value[:, :size] /= 2  # pairs within the block stand in it twice, the others once
        sums = value @ first[rows.start :]  # (block, B + 1): each row's sum over the first sample
        within_x += 2 * (sums * first[rows]).sum(0)
        of_point[rows] += value.sum(1)
        of_point[rows.start :] += value.sum(0)
    to_x, total = of_point @ first, of_point.sum()
    between = to_x - within_x
    within_y = total - within_x - 2 * between
    values = 2 * between / (n * m) - within_x / (n * (n - 1)) - within_y / (m * (m - 1))
    observed = finite(float(values[0]), statistic)
    least = observed - TIE * abs(float(total)) / ((n + m) * (n + m - 1))
    return PermutationTest(observed, float(1 + (values[1:] >= least).sum()) / (1 + n_permutations))


class Neighbourhood(NamedTuple):
    """Precision, recall, density and coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhood(x: Tensor, y: Tensor, k: int = 5) -> Neighbourhood:
    r"""Precision and recall (Kynkäänniemi et al. 2019, eq. 2), density and coverage (Naeem et al. 2020, eqs. 4, 6).

    Each point's ball holds its k nearest neighbours in its own sample, the farthest of them on its rim. Precision is
    the share of generated x in some real ball, recall the share of real y in some generated ball, density the mean
    number of real balls that hold a generated point, over k, coverage the share of real balls that hold a generated
    point.

    Points on a rim are held, rounding forgiven: a sampler that copies its n points has density (k + 1)/k. The same in
    any units.

    Args:
        x: generated points `(n, d)`.
        y: real points `(m, d)`.
        k: which neighbour's distance is a ball's radius.

    Raises:
        ValueError: `k` below 1 or not below both sizes, or bad samples.
    """
    x, y = check_samples(x, y)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k = {k}; need 1 <= k < {min(len(x), len(y))}, the smaller sample's size")
    x, y = x.cpu().numpy(), y.cpu().numpy()
    tree_x, tree_y = KDTree(x), KDTree(y)

    def radii(tree, points):
        radius = tree.query(points, k + 1)[0][:, k]
        return radius + ROUNDING * (radius + np.linalg.norm(points, axis=1))

    radius_x, radius_y = radii(tree_x, x), radii(tree_y, y)

    def held(tree, n_points, centres, radius):
        """How many balls hold each point of the tree, and how many points each ball holds."""
        count, size = np.zeros(n_points, dtype=np.int64), np.zeros(len(centres), dtype=np.int64)
        for start in range(0, len(centres), 500):
            block = slice(start, start + 500)
            inside = tree.query_radius(centres[block], radius[block])
            size[block] = [len(index) for index in inside]
            count += np.bincount(np.concatenate(inside), minlength=n_points)
        return count, size

    of_x, size = held(tree_x, len(x), y, radius_y)
    of_y, _ = held(tree_y, len(y), x, radius_x)
    precision, recall = float((of_x > 0).mean()), float((of_y > 0).mean())
    return Neighbourhood(precision, recall, float(of_x.mean() / k), float((size > 0).mean()))
