"""Scores of pictures and the exact denoiser of a training set: closed forms, brute force and small sets."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from ddpmlab import data, samplers, schedules
from ddpmlab.data import fashion_mnist
from ddpmlab.data.dataset import Dataset, Split
from ddpmlab.denoisers import EmpiricalDenoiser, ExactDenoiser
from ddpmlab.metrics import images, two_sample
from ddpmlab.metrics.train_features import train_features

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def grey(n, seed=0):
    """Pictures of whole grey levels: a bright patch whose place and size are the class's, on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    x = 0.1 * torch.rand(n, 1, 28, 28, generator=generator)
    for i, label in enumerate(labels.tolist()):
        x[i, 0, 2 * label : 2 * label + 8, 4 + label : 14 + label] += 0.4 + 0.4 * float(
            torch.rand(1, generator=generator)
        )
    return x.mul(255).round().div(255), labels


class Pictures(Dataset):
    """A small set of the test's own."""

    name, shape, n_train, n_test = "patches", (1, 28, 28), 200, 60

    def split(self):
        (x, y), (u, v) = grey(200, 1), grey(60, 2)
        return Split(x, u, y, v)

    def standardised(self):
        return self


# -- The exact denoiser of a training set ------------------------------------------------------------------------------


def brute_force(points, x, alpha, sigma):
    """Posterior mean and log density by the definition, one point at a time."""
    means, logs = [], []
    for row in x:
        density = torch.stack(
            [torch.distributions.Normal((alpha * y).flatten(), sigma).log_prob(row.flatten()).sum() for y in points]
        )
        weight = density.softmax(0)
        means.append((weight.reshape(-1, *[1] * (points.ndim - 1)) * points).sum(0))
        logs.append(density.logsumexp(0) - math.log(len(points)))
    return torch.stack(means), torch.stack(logs)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 3)])
@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.95])
def test_empirical_denoiser_is_the_definition(shape, t):
    points, schedule = normal(40, *shape), schedules.make("vp_cosine")
    alpha, sigma = map(float, schedule(t))
    x = alpha * points[:7] + sigma * normal(7, *shape, seed=1)
    denoiser = EmpiricalDenoiser(points, schedule)
    mean, log_q = brute_force(points, x, alpha, sigma)
    torch.testing.assert_close(denoiser(x, t), mean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(denoiser.log_prob(x, t), log_q, atol=1e-9, rtol=1e-9)
    assert denoiser.shape == shape


def test_empirical_denoiser_takes_a_time_a_point_and_bounded_tiles(monkeypatch):
    points, schedule = normal(50, 3), schedules.make("linear")
    t = torch.tensor([1.0, 10.0, 25.0, 50.0, 3.0], dtype=F64)
    x = normal(5, 3, seed=1)
    whole = EmpiricalDenoiser(points, schedule)(x, t)
    apart = torch.cat([brute_force(points, x[i : i + 1], *map(float, schedule(t[i])))[0] for i in range(5)])
    torch.testing.assert_close(whole, apart)
    seen = []
    tile = EmpiricalDenoiser._tile
    monkeypatch.setattr(EmpiricalDenoiser, "TILE", 100)
    monkeypatch.setattr(EmpiricalDenoiser, "_tile", lambda self, x, *a: seen.append(len(x)) or tile(self, x, *a))
    torch.testing.assert_close(EmpiricalDenoiser(points, schedule)(x, t), whole)
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_its_score_is_the_gradient_of_its_log_density(t):
    denoiser = EmpiricalDenoiser(normal(30, 1, 2, 2), schedules.make("vp_cosine"))
    x = normal(6, 1, 2, 2, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)
    torch.testing.assert_close(denoiser.score(x.detach(), t), gradient, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun", "dpmpp_2m"])
def test_its_samples_are_training_points(name):
    points = normal(20, 1, 3, 3)
    denoiser = EmpiricalDenoiser(points, schedules.make("vp_cosine"))
    samples = samplers.make(name, n_steps=60).sample(denoiser, 40, seed=1)
    assert samples.shape == (40, 1, 3, 3)
    distance = torch.cdist(samples.flatten(1), points.flatten(1)).amin(1)
    assert distance.max() < 1e-6
    assert len(set(torch.cdist(samples.flatten(1), points.flatten(1)).argmin(1).tolist())) > 8


def test_of_many_points_it_nears_the_laws_own_denoiser():
    law, schedule = data.make("helix").standardised(), schedules.make("vp_cosine")
    x = normal(50, 3, seed=3)
    exact, empirical = ExactDenoiser(law, schedule), EmpiricalDenoiser(law.sample(40_000, 1), schedule)
    assert (exact(x, 0.8) - empirical(x, 0.8)).abs().max() < 0.05


def test_labels_restrict_the_training_set():
    points, labels, schedule = normal(30, 2), torch.arange(30) % 3, schedules.make("vp_cosine")
    denoiser = EmpiricalDenoiser(points, schedule, labels)
    x, asked = normal(8, 2, seed=1), torch.tensor([2, 0, 1, 3, 0, 2, 3, 1])  # 3 is "no class"
    found = denoiser(x, 0.4, asked)
    for row, value, estimate in zip(x, asked.tolist(), found, strict=True):
        of = points if value == 3 else points[labels == value]
        mean, _ = brute_force(of, row[None], *map(float, schedule(0.4)))
        torch.testing.assert_close(estimate, mean[0])
    torch.testing.assert_close(denoiser(x, 0.4), denoiser(x, 0.4, 3))
    assert denoiser.n_classes == 3
    samples = samplers.make("ddim", n_steps=40).sample(denoiser, 12, label=1)
    assert torch.cdist(samples, points[labels == 1]).amin(1).max() < 1e-4


def test_limits_of_the_noise_and_float32():
    points = normal(10, 2)
    denoiser = EmpiricalDenoiser(points, schedules.make("vp_cosine"))
    torch.testing.assert_close(denoiser(points + 1e-3, 0.0), points)  # no noise: the nearest point
    rescaled = EmpiricalDenoiser(points, schedules.make("cosine", n_steps=50).rescaled())
    torch.testing.assert_close(rescaled(normal(4, 2), 50), points.mean(0).expand(4, 2))  # no signal: their mean
    x = normal(6, 2, seed=1)
    single = EmpiricalDenoiser(points.float(), schedules.make("vp_cosine"))(x.float(), 0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, denoiser(x, 0.5).float(), atol=1e-4, rtol=1e-4)
    assert not EmpiricalDenoiser(points, schedules.make("linear")).state_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, s: EmpiricalDenoiser(p[:0], s), r"shape \(0, 2\)"),
        (lambda p, s: EmpiricalDenoiser(p.long(), s), "torch.int64; need floats"),
        (lambda p, s: EmpiricalDenoiser(torch.full((3, 2), math.nan), s), "3 of 3 points hold NaN"),
        (lambda p, s: EmpiricalDenoiser(p, s, torch.zeros(3, dtype=torch.long)), r"labels have shape \(3,\)"),
        (lambda p, s: EmpiricalDenoiser(p, s, -torch.ones(10, dtype=torch.long)), "integers from 0"),
        (lambda p, s: EmpiricalDenoiser(p, s)(normal(4, 3), 0.5), r"shape \(4, 3\); need \(n, 2\)"),
        (lambda p, s: EmpiricalDenoiser(p, s)(normal(4, 2), 2.0), "times span"),
        (lambda p, s: EmpiricalDenoiser(p, s, torch.arange(10) // 5)(p, 0.5, 5), "label 5; .*0 to 1"),
        (lambda p, s: EmpiricalDenoiser(p, s, 2 * (torch.arange(10) // 5))(p, 0.5, 1), "no point .* label 1"),
    ],
)
def test_empirical_denoiser_names_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(10, 2), schedules.make("vp_cosine"))


# -- Distances of features ---------------------------------------------------------------------------------------------


def with_moments(n, mean, root, seed):
    """Points whose sample mean and covariance (n - 1) are exactly `mean` and root root^T."""
    z = normal(n, len(mean), seed=seed)
    z = z - z.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T)))
    return z @ whiten.T @ root.T + mean


def test_frechet_distance_is_the_closed_form_of_gaussians():
    d = 6
    root_a, root_b = normal(d, d, seed=1), normal(d, d, seed=2)
    mean_a, mean_b = normal(d, seed=3), normal(d, seed=4)
    a, b = with_moments(100, mean_a, root_a, 5), with_moments(80, mean_b, root_b, 6)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    by_scipy = np.trace(linalg.sqrtm((cov_a @ cov_b).numpy()).real)
    expected = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * by_scipy
    assert images.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert images.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    # commuting covariances: sum of (s - s')^2
    scale = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    a, b = (
        with_moments(50, torch.zeros(3, dtype=F64), scale, 1),
        with_moments(50, torch.ones(3, dtype=F64), 2 * scale, 2),
    )
    assert images.frechet_distance(a, b) == pytest.approx(3 + 14, rel=1e-9)
    assert images.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert images.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * 17, rel=1e-9)


def test_frechet_distance_of_fewer_points_than_dimensions():
    a, b = normal(20, 64, seed=1), normal(30, 64, seed=2)
    assert math.isfinite(images.frechet_distance(a, b))
    assert images.frechet_distance(a, a) < 1e-5


def test_kernel_distance_is_its_sum_over_pairs(monkeypatch):
    a, b = normal(13, 4, seed=1), 1 + normal(9, 4, seed=2)
    monkeypatch.setattr(images, "_BLOCK", 40)

    def k(x, y):
        return float((x @ y / 4 + 1) ** 3)

    within = [np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (a, b)]
    between = np.mean([k(x, y) for x in a for y in b])
    assert images.kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-10)
    values = [images.kernel_distance(normal(20, 3, seed=2 * s), normal(20, 3, seed=2 * s + 1)) for s in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5  # unbiased


@pytest.mark.parametrize("k", [1, 3])
def test_neighbourhood_by_blocks_is_that_by_trees(k, monkeypatch):
    monkeypatch.setattr(images, "_BLOCK", 500)
    x, y = normal(90, 5, seed=1), 0.7 * normal(120, 5, seed=2)
    x[:10] = y[:10]  # copies lie in balls of radius 0 and on rims
    assert images.feature_neighbourhood(x, y, k) == pytest.approx(two_sample.neighbourhood(x, y, k))
    assert images.feature_neighbourhood(x + 1e4, y + 1e4, k) == pytest.approx(two_sample.neighbourhood(x, y, k))
    far = images.feature_neighbourhood(x + 100, y, k)
    assert far == (0, 0, 0, 0)


@pytest.mark.parametrize("score", [images.frechet_distance, images.kernel_distance, images.feature_neighbourhood])
def test_distances_refuse_bad_features(score):
    with pytest.raises(ValueError, match="NaN or infinity"):
        score(torch.full((8, 3), math.inf), normal(8, 3))
    with pytest.raises(ValueError, match=r"need \(n, dim\)"):
        score(normal(8, 3, 2), normal(8, 3))
    with pytest.raises(ValueError, match="must agree"):
        score(normal(8, 3), normal(8, 2))
    with pytest.raises(ValueError, match="at least 2"):
        score(normal(1, 3), normal(8, 3))


# -- Pixels ------------------------------------------------------------------------------------------------------------


def test_pixels_are_cut_and_rounded_as_in_a_file():
    x = torch.tensor([-0.3, 0.0, 0.5, 0.5019, 1.0, 1.7]).repeat(784)[:784].reshape(1, 1, 28, 28)
    levels = images.pixels(x)[0, 0, 0, :6] * 255
    torch.testing.assert_close(levels, torch.tensor([0.0, 0, 128, 128, 255, 255]))
    as_bytes = images.pixels(torch.full((2, 28, 28), 51, dtype=torch.uint8))
    torch.testing.assert_close(as_bytes, torch.full((2, 1, 28, 28), 0.2))
    assert images.pixels(torch.zeros(3, 784)).shape == (3, 1, 28, 28)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 1, 27, 28), ValueError, r"shape \(3, 1, 27, 28\); need pictures \(n, 1, 28, 28\)"),
        (torch.zeros(0, 784), ValueError, "0 pictures; need at least 1"),
        (torch.full((2, 784), math.nan), ValueError, "2 pictures with NaN"),
        (torch.zeros(2, 784, dtype=torch.int64), TypeError, "int64; need floats"),
    ],
)
def test_pictures_that_are_none(x, error, message):
    with pytest.raises(error, match=message):
        images.pixels(x)


def test_nearest_is_brute_force(monkeypatch):
    monkeypatch.setattr(images, "_BLOCK", 2_000)
    x, real = grey(23, 3)[0], grey(150, 4)[0]
    distance, index = images.nearest(x, real, 3)
    expected = torch.cdist(x.flatten(1).double(), real.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distance, expected.sort(1).values[:, :3])
    assert torch.equal(index, expected.argsort(1)[:, :3])
    with pytest.raises(ValueError, match="k = 151; need 1 <= k <= 150"):
        images.nearest(x, real, 151)


def test_copies_are_nearer_than_a_third_of_the_second_nearest():
    train = torch.zeros(3, 784)
    train[1, 0], train[2, 1] = 1.0, 1.0  # at distance 1 from the first, sqrt 2 from each other
    at = torch.zeros(4, 784)
    at[:, 0] = torch.tensor([0.0, 63, 64, 128]) / 255  # distances to 0 and 1: d and 1 - d; a third at d = 1/4
    assert images.copies(at, train).tolist() == [True, True, False, False]
    assert images.copy_share(at, train) == 0.5
    assert images.copies(at, train, ratio=0.99).tolist() == [True, True, True, False]


def test_a_copy_of_a_picture_that_the_training_set_has_twice_is_a_copy():
    train = grey(30, 1)[0]
    train = torch.cat([train, train[:5]])
    assert images.copy_share(train, train) == 1.0
    assert images.copy_share(grey(20, 5)[0], train) < 1.0
    with pytest.raises(ValueError, match="all training pictures are equal"):
        images.copy_share(train, train[:1].repeat(4, 1, 1, 1))
    with pytest.raises(ValueError, match=r"ratio = 1\.5"):
        images.copies(train, train, 1.5)


# -- Spectrum ----------------------------------------------------------------------------------------------------------


def test_spectrum_of_noise_of_a_wave_and_parseval():
    x = normal(400, 1, 28, 28)
    frequency, power, count = images.radial_spectrum(x)
    assert frequency.tolist() == list(range(len(power)))
    assert int(count.sum()) == 784
    assert float(power @ count.double()) == pytest.approx(float(x.square().mean()), rel=1e-12)
    torch.testing.assert_close(power * 784, torch.ones_like(power), atol=0.2, rtol=0)  # white
    i = torch.arange(28, dtype=F64)
    wave = (2 * math.pi * 5 * i / 28).cos().expand(3, 28, 28)
    power = images.radial_spectrum(wave).power * images.radial_spectrum(wave).count
    assert int(power.argmax()) == 5
    assert float(power[5]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"need pictures \(n, 1, H, W\)"):
        images.radial_spectrum(torch.zeros(3, 784))
    with pytest.raises(ValueError, match="NaN"):
        images.radial_spectrum(torch.full((1, 28, 28), math.nan))


# -- Noise level by noise level ----------------------------------------------------------------------------------------


def test_level_errors_are_those_of_the_definition_and_share_their_noise():
    points, x0 = normal(30, 1, 2, 2), normal(9, 1, 2, 2, seed=7)
    vp, ve = (EmpiricalDenoiser(points, schedules.make(name)) for name in ("vp_cosine", "ve"))
    levels = [0.05, 0.5, 3.0]
    errors = images.level_errors({"vp": vp, "ve": ve}, x0, levels, seed=3, batch_size=4)
    torch.testing.assert_close(errors["vp"], errors["ve"], atol=1e-5, rtol=1e-5)  # one posterior, two schedules
    generator = torch.Generator().manual_seed(3)
    for level, row in zip(levels, errors["ve"], strict=True):
        noise = torch.randn(x0.shape, generator=generator, dtype=F64)
        mean, _ = brute_force(points, x0 + level * noise, 1.0, level)
        torch.testing.assert_close(row, (mean - x0).square().flatten(1).mean(1), atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="noise level 1e-09; this denoiser's schedule has"):
        images.level_errors({"vp": vp}, x0, [1e-9])
    with pytest.raises(ValueError, match="0 denoisers"):
        images.level_errors({}, x0, levels)


def test_level_errors_give_labels_to_those_who_take_them():
    points, labels = normal(30, 2), torch.arange(30) % 3
    schedule = schedules.make("ve")
    plain, told = EmpiricalDenoiser(points, schedule), EmpiricalDenoiser(points, schedule, labels)
    errors = images.level_errors({"plain": plain, "told": told}, points[:6], [1.0], labels=labels[:6])
    again = images.level_errors({"plain": plain}, points[:6], [1.0])
    torch.testing.assert_close(errors["plain"], again["plain"])
    assert not torch.equal(errors["plain"], errors["told"])


def test_the_exact_denoiser_copies_at_small_noise_and_not_at_large():
    pictures = Pictures()
    split = pictures.split()
    denoiser = EmpiricalDenoiser(split.train.double(), schedules.make("ve"))
    small, large = images.level_copies({"exact": denoiser}, pictures, [0.01, 20.0], n=30)["exact"]
    assert small == 1.0
    assert large < 0.2


# -- The feature network -----------------------------------------------------------------------------------------------


def test_training_makes_a_classifier_and_repeats_to_the_bit():
    state = torch.random.get_rng_state()
    network, accuracy = train_features(Pictures(), n_epochs=5, batch_size=20, seed=3)
    assert accuracy > 0.8
    short, again = (train_features(Pictures(), n_epochs=1, batch_size=50, seed=3)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    x = Pictures().split().test
    torch.testing.assert_close(network(x), network.head(network.features(x)))
    assert network.features(x).shape == (60, images.N_FEATURES)
    assert not network.training
    unlabelled = type("Unlabelled", (Pictures,), {"split": lambda self: Split(*Pictures.split(self)[:2])})
    with pytest.raises(ValueError, match="no labels"):
        train_features(unlabelled())


def test_the_packages_weights_say_what_they_are():
    told = images.feature_metadata()
    assert float(told["accuracy"]) >= 0.92
    assert {"what", "config", "commit", "seconds", "device"} <= set(told)
    assert images._weights_file().stat().st_size < 1_500_000
    found = images.features(grey(7)[0])
    assert found.shape == (7, 128)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(images.features(grey(7)[0].flatten(1) + 1e-4), found)


def test_weights_that_are_missing_say_how_to_make_them(monkeypatch):
    monkeypatch.setattr(images, "WEIGHTS", "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"python -m ddpmlab\.metrics\.train_features"):
        images.feature_metadata()


# -- All scores --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return images.Reference.of(Pictures())


def test_scores_are_those_of_their_functions(reference):
    (x, labels), split = grey(40, 9), Pictures().split()
    scores = reference.scores(x, labels)
    assert list(scores) == list(images.SCORES)
    a, b = images.features(x), images.features(split.test[:40])
    assert scores["frechet_distance"] == pytest.approx(images.frechet_distance(a, b))
    assert scores["kernel_distance"] == pytest.approx(images.kernel_distance(a, b))
    assert scores["coverage"] == images.feature_neighbourhood(a, b).coverage
    assert scores["class_accuracy"] == images.class_accuracy(x, labels)
    assert scores["copy_share"] == images.copy_share(x, split.train)
    assert "class_accuracy" not in reference.scores(x)
    trained = reference.scores(x, against="train", names=["frechet_distance"])
    c = images.features(split.train[:40])
    assert trained == {"frechet_distance": pytest.approx(images.frechet_distance(a, c))}
    copied = reference.scores(split.train[:40], names=["copy_share"])
    assert copied["copy_share"] == 1.0


def test_floor_and_ceiling_hold_real_and_noise(reference):
    calibration = reference.calibration(30, repeats=3)
    assert list(calibration) == list(images.SCORES)
    for name in ("frechet_distance", "kernel_distance"):
        assert calibration[name].floor_mean < 0.2 * calibration[name].ceiling_mean
        assert calibration[name].floor_sd > 0
    assert calibration["coverage"].floor_mean > calibration["coverage"].ceiling_mean
    again = reference.calibration(30, repeats=3, names=["frechet_distance"])
    assert again["frechet_distance"].floor_mean != calibration["frechet_distance"].ceiling_mean
    assert reference.calibration(30, repeats=2, seed=4) == reference.calibration(30, repeats=2, seed=4)
    halves = reference.calibration(30, repeats=2, against="train", names=["frechet_distance"])
    assert halves["frechet_distance"].floor_mean > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.scores(grey(70)[0]), "x has 70 pictures, the test set 60"),
        (lambda r: r.scores(grey(9)[0], torch.arange(8)), "need 9 integers, one a picture"),
        (lambda r: r.scores(grey(9)[0], torch.full((9,), 10)), r"labels span \[10, 10\]; the classes are 0 to 9"),
        (lambda r: r.scores(grey(9)[0], names=["fid"]), "unknown score 'fid'; choose from: frechet_distance"),
        (lambda r: r.scores(grey(9)[0], against="all"), "against = 'all'"),
        (lambda r: r.scores(grey(1)[0]), "x has 1 pictures; need at least 2"),
        (lambda r: r.calibration(61, repeats=2), "60 points, but the score compares 61"),
        (lambda r: r.calibration(10, repeats=1), "repeats = 1"),
    ],
)
def test_scores_name_bad_input(call, message, reference):
    with pytest.raises(ValueError, match=message):
        call(reference)


def test_real_pictures_are_classified_as_the_weights_say():
    if not fashion_mnist.available():
        pytest.skip(f"Fashion-MNIST is not here: run `ddpmlab data`, or {fashion_mnist.REMEDY}")
    split = data.make("fashion_mnist", n_test=2_000).split()
    told = float(images.feature_metadata()["accuracy"])
    assert images.class_accuracy(split.test, split.test_labels) == pytest.approx(told, abs=0.02)
