"""Everything of the library on a device: a real CUDA one where there is one, and one that the CPU plays (`pretended`).

Noise comes from generators of the CPU where two devices are compared. What trains on the played device must give the
CPU's weights; and no step may wait for the device but to report the loss or to keep weights.
"""

import contextlib
from dataclasses import replace

import pretended
import pytest
import torch

from ddpmlab import data, interpolation, metrics, networks, samplers, schedules
from ddpmlab.data import fashion_mnist
from ddpmlab.denoisers import Denoiser, EmpiricalDenoiser, ExactDenoiser, Guided
from ddpmlab.lab import Experiment, Training, stages
from ddpmlab.lab.store import Store
from ddpmlab.metrics import images, likelihood, moons, sleeves
from ddpmlab.training import build_seeded, fit
from ddpmlab.training.loop import LOG_EVERY

SHAPE = (1, 28, 28)
HELIX = data.make("helix").standardised()
MOONS = data.make("two_moons").standardised()
X, Y = HELIX.sample(200, 1), HELIX.sample(200, 2)
PICTURES = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
LABELS = torch.arange(60) % 10
SCHEDULES = {
    "linear": schedules.make("linear", n_steps=10), "vp_cosine": schedules.make("vp_cosine"),
    "rectified": schedules.make("rectified"), "ve": schedules.make("ve"),
}  # fmt: skip
LINEAR = SCHEDULES["linear"]
CHAIN = likelihood.Truth.of(HELIX, LINEAR, n=20, times=LINEAR.times())
PATH = likelihood.Truth.of(HELIX, LINEAR, n_levels=4, n=20)


@pytest.fixture(params=[pytest.param("cuda", marks=pretended.GPU), "pretended"])
def cuda(request):
    """A context in which there is a CUDA device."""
    return contextlib.nullcontext if request.param == "cuda" else pretended.cuda


def network(schedule="linear", parameterisation="v", **options):
    def build():
        backbone = networks.make("mlp", shape=(3,), hidden=(16, 16), **options)
        return Denoiser(backbone, SCHEDULES[schedule], parameterisation)

    return build_seeded(build, 0).eval()


def painter(kind="unet", **options):
    options = {"unet": {"widths": (8, 16)}, "patch_transformer": {}}[kind] | options
    return build_seeded(
        lambda: Denoiser(networks.make(kind, shape=SHAPE, n_classes=10, **options), SCHEDULES["vp_cosine"], "edm"), 0
    ).eval()


def numbers(value) -> list[torch.Tensor]:
    """Every number in a nest of results, on the CPU."""
    if isinstance(value, torch.Tensor):
        return [value.detach().cpu().double().flatten()]
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers(v)]
    if isinstance(value, list | tuple):
        return [x for v in value for x in numbers(v)]
    return [torch.tensor([float(value)], dtype=torch.float64)]


def noise():
    return torch.Generator().manual_seed(3)


def drawn(name, schedule):
    return lambda to: samplers.make(name, n_steps=4).sample(network(schedule).to(to), 20, noise())


def guided(to):
    guide = Guided(painter().to(to), scale=2.0)
    return samplers.make("heun", n_steps=2).sample(guide, 3, noise(), label=torch.arange(3))


WAYS = {
    **{f"{name}, {s}": drawn(name, s) for name in samplers.SAMPLERS for s in SCHEDULES},
    **{
        f"{p} prediction": lambda to, p=p: network(parameterisation=p).to(to)(X.float().to(to), torch.full((200,), 5))
        for p in ("epsilon", "x0", "v", "edm")
    },
    **{
        f"exact denoiser, {law.name}": lambda to, law=law: (
            ExactDenoiser(law, LINEAR)(law.sample(50, 0).to(to), 5), law.log_prob(law.sample(50, 0).to(to))
        )
        for law in (HELIX, MOONS, data.make("sin_5_5").standardised())
    },
    "empirical denoiser": lambda to: EmpiricalDenoiser(Y.to(to), LINEAR)(X.to(to), 5),
    "empirical denoiser of classes": lambda to: EmpiricalDenoiser(PICTURES.to(to), LINEAR, labels=LABELS)(
        PICTURES[:5].to(to), 5, LABELS[:5]
    ),
    "guided pictures": guided,
    "transformer": lambda to: painter("patch_transformer").to(to)(PICTURES[:4].to(to), 0.5, LABELS[:4].to(to)),
    **{
        name: lambda to, name=name: getattr(metrics, name)(X.to(to), Y.to(to))
        for name in ("course_nll", "emd", "energy_distance", "mmd2", "sliced_wasserstein", "c2st", "neighbourhood")
    },
    "permutation test": lambda to: metrics.permutation_test(X.to(to), Y.to(to), "mmd2", n_permutations=50).p_value,
    "fresh test": lambda to: metrics.fresh_test(X.to(to), HELIX, "energy_distance", seed=0).p_value,
    "calibration": lambda to: metrics.calibrate(metrics.energy_distance, X.to(to), HELIX, repeats=2).value,
    "path KL": lambda to: PATH.path_kl(network().to(to)).value,
    "chain KL": lambda to: CHAIN.chain_kl(network().to(to)).terms,
    "truth of a training set": lambda to: likelihood.Truth.at(
        X[:20], EmpiricalDenoiser(Y.to(to), LINEAR), n_levels=4
    ).exact,
    "path KL of a training set": lambda to: PATH.path_kl(EmpiricalDenoiser(Y.to(to), LINEAR)).value,
    "likelihood": lambda to: likelihood.log_likelihood(network("vp_cosine").to(to), X[:5].to(to), 1e-2),
    "likelihood by a training set": lambda to: likelihood.log_likelihood(
        EmpiricalDenoiser(Y.to(to), SCHEDULES["vp_cosine"]), X[:5].to(to), 1e-2
    ),
    "likelihood gap of points": lambda to: likelihood.nll_gap(
        network("vp_cosine").to(to), HELIX, X[:5].to(to), tolerance=1e-2
    ).value,
    "likelihood gap": lambda to: likelihood.nll_gap(network("vp_cosine").to(to), HELIX, n=5, tolerance=1e-2).value,
    "the report's scores": lambda to: moons.report_scores(MOONS.sample(200, 0).to(to)),
    "thickness": lambda to: moons.thickness(MOONS.sample(200, 0).to(to)),
    "features": lambda to: images.features(PICTURES.to(to)),
    "scores of pictures": lambda to: images.Reference(PICTURES, PICTURES.flip(0), LABELS, LABELS.flip(0)).scores(
        PICTURES.flip(2).to(to), LABELS.to(to)
    ),
    "spectrum": lambda to: tuple(images.radial_spectrum(PICTURES.to(to))),
    "errors by level": lambda to: images.level_errors(
        {"network": painter().to(to), "exact": EmpiricalDenoiser(PICTURES, SCHEDULES["vp_cosine"], labels=LABELS)},
        PICTURES[:6], [0.5, 2.0], 0, LABELS[:6],
    ),
}  # fmt: skip


def test_every_public_score_is_among_them():
    otherwise = {"permutation_test": "permutation test", "fresh_test": "fresh test", "calibrate": "calibration"}
    assert {otherwise.get(name, name) for name in metrics.__all__} <= WAYS.keys()


@pytest.mark.parametrize("what", WAYS)
def test_a_device_gives_what_the_cpu_gives(what, cuda):
    expected = torch.cat(numbers(WAYS[what]("cpu")))
    with cuda():
        found = torch.cat(numbers(WAYS[what]("cuda")))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.slow
@pytest.mark.skipif(not fashion_mnist.available(), reason="FashionMNIST is not here: set DDPMLAB_DATA")
def test_paths_between_pictures_are_those_of_the_cpu(cuda):
    pictures = data.make("fashion_mnist", n_train=3_000, n_test=2_000)
    groups = pictures.standardised().split().train[:20], pictures.standardised().split().train[20:40]

    def compare(to):
        ways = interpolation.sleeve_ways(
            sleeves.load_ruler().to(to), tuple(group.to(to) for group in groups), n_steps=2, n_dense=3
        )
        return interpolation.compare(painter().to(to), pictures, ways, n_pairs=2, n_points=3).frames

    expected = compare("cpu")
    with cuda():
        found = compare("cuda")
    for name, frames in expected.items():
        assert torch.allclose(found[name], frames, atol=2 / 255), name


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_no_step_of_a_sampler_waits(name):
    with pretended.cuda() as device:
        states = samplers.make(name, n_steps=6)(network("vp_cosine").to("cuda"), 20, seed=0)
        next(states)
        before = len(device.waits)
        for _ in states:
            pass
        assert device.waits[before:] == []


POINTS = {
    "chain": ({}, {"grad_clip": 1.0, "ema_decay": 0.9}),
    "edm": ({"schedule": "vp_cosine", "parameterisation": "edm", "dropout": 0.1},
            {"ema_sigma_rel": (0.05, 0.1), "decay": "cosine", "warmup": 5, "times": "log-normal", "weighting": "edm",
             "optimiser": "adamw"}),
    "muon": ({"schedule": "vp_cosine"}, {"optimiser": "muon", "shared_targets": 16, "times": "log-normal"}),
    "min-snr": ({}, {"weighting": "min-snr", "precision": "fp32"}),
}  # fmt: skip


def train_points(which, to, seen=lambda step: None):
    built, options = POINTS[which]
    result = fit(
        network(**built), HELIX.split().train, 120, batch_size=64, device=to, on_step=seen, keep_steps=(60,), **options
    )
    return result.weights, result.by_width, result.losses


def train_pictures(to, seen=lambda step: None):
    result = fit(
        painter(), PICTURES, 8, labels=LABELS, batch_size=16, device=to, on_step=seen, keep_steps=(5,), flip=(0, 1),
        label_dropout=0.2, times="log-normal", ema_decay=0.9,
    )  # fmt: skip
    return result.weights, result.by_width, result.losses


@pytest.mark.parametrize("what", [*POINTS, "pictures"])
def test_training_on_the_played_device_gives_the_cpu_s_weights_and_waits_only_to_report(what):
    def train(to, seen=lambda step: None):
        return train_pictures(to, seen) if what == "pictures" else train_points(what, to, seen)

    waited = {}
    expected = torch.cat(numbers(train("cpu")))
    with pretended.cuda() as device:
        found = torch.cat(numbers(train("cuda", lambda step: waited.update({step: len(device.waits)}))))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    reports = {LOG_EVERY, 60, 120} if what != "pictures" else {5, 8}
    steps = sorted(waited)
    waiting = {s for s, before in zip(steps[1:], steps, strict=False) if waited[s] > waited[before]}
    assert waiting == reports


@pytest.mark.parametrize("metric", ["emd_128", "kl", "chain_kl", "nll_gap"])
def test_an_experiment_trains_samples_and_scores_where_it_is_told(metric, cuda, tmp_path, monkeypatch):
    def run(to):
        training = Training(n_steps=30, batch_size=64, device=to)
        config = Experiment(
            dataset={"name": "helix"}, schedule={"name": "linear", "n_steps": 10}, training=training, n_samples=200,
            network={"name": "mlp", "hidden": [16]}, metrics=(metric,),
        )  # fmt: skip
        return stages.score(config, store=Store(tmp_path / to))

    seen, real = set(), Denoiser.forward

    def forward(self, x_t, *args):
        seen.add(x_t.device.type)
        return real(self, x_t, *args)

    expected = run("cpu")
    monkeypatch.setattr(Denoiser, "forward", forward)
    with cuda() as played:
        found = run("cuda")
    assert seen == {"cuda"}
    if played is not None:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-4)


def test_the_key_of_committed_weights_names_a_device_that_is_not_the_cpu():
    config = Experiment(
        dataset={"name": "helix"}, schedule={"name": "linear", "n_steps": 10}, network={"name": "mlp", "hidden": [16]},
        weights="fashion_unet", training=Training(n_steps=1), metrics=(),
    )  # fmt: skip

    def key(device):
        return stages.train_key(replace(config, training=replace(config.training, device=device)))

    with pretended.cuda():
        assert key("cuda") == f"{key('cpu')}-cuda"


def test_two_devices_in_one_score_are_named():
    with pretended.cuda(), pytest.raises(ValueError, match=r"x is on cuda:0, y on cpu; move one with \.to"):
        metrics.energy_distance(X.to("cuda"), Y)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda x: x + torch.zeros(3), "Expected all tensors to be on the same device"),
        (lambda x: torch.cat([x, torch.zeros(1)]), "Expected all tensors to be on the same device"),
        (lambda x: torch.tensor(0.0).add_(x.sum()), "Expected all tensors to be on the same device"),
        (lambda x: x.clamp(torch.tensor(0.0), torch.tensor(1.0)), "Expected all tensors to be on the same device"),
        (lambda x: torch.zeros(3)[x.long()], "indices should be"),
        (lambda x: torch.randn(3, device=x.device, generator=torch.Generator()), "device type for generator"),
        (lambda x: x.numpy(), "can't convert cuda"),
    ],
)
def test_the_played_device_refuses_what_cuda_refuses(mistake, message):
    with pretended.cuda(), pytest.raises((RuntimeError, TypeError), match=message):
        mistake(torch.zeros(3, device="cuda"))


def test_the_played_device_counts_waits():
    with pretended.cuda() as device:
        x = torch.arange(3.0, device="cuda")
        y = (x + 1) * torch.tensor(2.0)  # a number from the CPU travels with the kernel
        assert device.waits == []
        waits = (
            lambda: float(y.sum()), lambda: y[y > 2], lambda: y.cpu(), lambda: torch.tensor([1.0]).to("cuda"),
            lambda: torch.tensor([1.0]).to(y), lambda: torch.linalg.eigvalsh(y[:, None] * y),
        )  # fmt: skip
        for wait in waits:
            before = len(device.waits)
            wait()
            assert len(device.waits) > before
