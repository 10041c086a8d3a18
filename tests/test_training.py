import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import kstest

from ddpmlab import data, networks, schedules
from ddpmlab.denoisers import Denoiser
from ddpmlab.training import CheckpointError, NonFiniteLossError, fit


def denoiser(hidden=(16, 16), dropout=0.0):
    return Denoiser(
        networks.make("mlp", shape=(3,), hidden=hidden, dropout=dropout), schedules.make("linear", n_steps=50)
    )


@pytest.fixture(scope="module")
def points():
    return data.make("helix").standardised().split().train


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_seed_gives_the_same_bits(points):
    options = {"n_steps": 120, "batch_size": 64, "ema_decay": 0.9}
    first, second = fit(denoiser(), points, seed=3, **options), fit(denoiser(), points, seed=3, **options)
    assert same(first.weights[120], second.weights[120])
    assert same(first.averages[120], second.averages[120])
    assert first.losses == second.losses
    assert not same(first.weights[120], fit(denoiser(), points, seed=4, **options).weights[120])


def test_global_random_state_neither_matters_nor_changes(points):
    network = denoiser()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fit(network, points, 20, batch_size=64)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first.weights[20], fit(denoiser(), points, 20, batch_size=64).weights[20])


@pytest.mark.parametrize(
    "options", [{}, {"ema_sigma_rel": 0.1, "decay": "cosine", "optimiser": "adamw", "grad_clip": 1.0}]
)
def test_a_resumed_run_ends_at_the_same_bits(points, tmp_path, options):
    class Stop(Exception):
        pass

    def stop(step):
        if step == 77:
            raise Stop

    options = {"n_steps": 130, "batch_size": 64, "keep_steps": (10, 60), "seed": 1, **options}
    dropout = 0.2 if "decay" in options else 0.0
    whole = fit(denoiser(dropout=dropout), points, **options)
    checkpoint = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        fit(denoiser(dropout=dropout), points, checkpoint=checkpoint, checkpoint_every=25, on_step=stop, **options)
    resumed = fit(denoiser(dropout=dropout), points, checkpoint=checkpoint, checkpoint_every=25, **options)
    assert resumed.steps == [10, 60, 130]
    for step in resumed.steps:
        assert same(whole.weights[step], resumed.weights[step])
    assert whole.averages.keys() == resumed.averages.keys()
    assert all(same(whole.averages[s], resumed.averages[s]) for s in whole.averages)
    assert whole.losses == resumed.losses


RUN = """
import sys
from ddpmlab.experiment import Experiment, Training, train
training = Training(n_steps=6_000, batch_size=64)
config = Experiment("helix", network={"name": "mlp", "hidden": [16, 16]}, training=training)
train(config, on_step=lambda step: print(step, flush=True) if step % 500 == 0 else None)
"""


def test_a_killed_process_ends_at_the_weights_of_an_uninterrupted_one(tmp_path):
    def run(cache, kill_after=None):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DDPMLAB_CACHE": str(cache)},
        )
        steps = []
        for line in process.stdout:
            steps.append(int(line))
            if kill_after and steps[-1] >= kill_after:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == (-signal.SIGKILL if kill_after else 0)
        return steps

    assert run(tmp_path / "whole")[0] == 500
    run(tmp_path / "killed", kill_after=2_500)
    (checkpoint,) = (tmp_path / "killed").rglob(".checkpoint.safetensors")
    assert checkpoint.stat().st_size > 0
    assert run(tmp_path / "killed")[0] == 2_500  # it went on from step 2000
    (whole,), (killed,) = ((tmp_path / name).rglob("weights.safetensors") for name in ("whole", "killed"))
    assert same(load_file(whole), load_file(killed))


def test_loss_falls_to_the_exact_denoisers_and_never_below(points, generator):
    from ddpmlab.denoisers import ExactDenoiser

    law = data.make("helix").standardised()
    trained, untrained = denoiser((64, 128, 128)), denoiser()
    fit(trained, points, 1_500, batch_size=512)
    exact = ExactDenoiser(law, trained.schedule)
    x0 = law.sample(20_000, 9)
    for t in (3, 10, 25, 50):
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        alpha, sigma = trained.schedule(t)
        x_t = alpha * x0 + sigma * noise
        best = (exact(x_t, t) - x0).square().sum(1)
        for candidate in (trained, untrained):
            with torch.no_grad():
                guess = candidate(x_t.float(), t).double()
            excess = (guess - x0).square().sum(1) - best
            standard_error = float(excess.std()) / len(x0) ** 0.5
            assert excess.mean() > -4 * standard_error
            # the excess is the distance to the exact denoiser: Pythagoras
            gap = (guess - exact(x_t, t)).square().sum(1)
            assert float(excess.mean()) == pytest.approx(
                float(gap.mean()), abs=4 * float((excess - gap).std()) / len(x0) ** 0.5
            )
            assert candidate is trained or excess.mean() > 10 * standard_error


def test_non_finite_loss_stops_the_run_with_step_and_config(points):
    with pytest.raises(NonFiniteLossError, match=r"up to step \d+ of 2000.*learning_rate = 1e\+30.*helix, sweep 3"):
        fit(denoiser(), points, 2_000, batch_size=64, learning_rate=1e30, context="helix, sweep 3")


def test_a_damaged_or_foreign_checkpoint_is_named(points, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    fit(denoiser(), points, 10, batch_size=64, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        fit(denoiser(), points, 10, batch_size=64, checkpoint=checkpoint, seed=5)
    for other in ({"batch_size": 32}, {"learning_rate": 0.5}, {"weighting": "edm"}, {"keep_steps": [3]}):
        with pytest.raises(CheckpointError, match="belongs to another run"):
            fit(denoiser(), points, 10, **{"batch_size": 64, "checkpoint": checkpoint, **other})
    with pytest.raises(CheckpointError, match="belongs to another run"):
        fit(denoiser(hidden=(8,)), points, 10, batch_size=64, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        fit(denoiser(), points, 5, batch_size=64, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"run\.safetensors is damaged"):
        fit(denoiser(), points, 10, batch_size=64, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps = 0"),
        ({"n_steps": 5, "weighting": "snr"}, "unknown weighting 'snr'; choose one of: simple"),
        ({"n_steps": 5, "optimiser": "sgd"}, "choose one of: adam, adamw"),
        ({"n_steps": 5, "keep_steps": [9]}, r"keep_steps \[9\] lie outside 1..5"),
    ],
)
def test_bad_options_are_named(points, options, message):
    with pytest.raises(ValueError, match=message):
        fit(denoiser(), points, **options)


def test_bad_data_are_named(points):
    bad = points.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="data hold 1 values"):
        fit(denoiser(), bad, 5)
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        fit(denoiser(), points[:0], 5)


def test_progress_bar_is_text(points, capsys):
    fit(denoiser(), points, 10, batch_size=64, progress=True)
    assert "training" in capsys.readouterr().err


@pytest.mark.parametrize("times", ["log-normal", "log-normal, independent"])
def test_log_normal_noise_levels_have_their_law(points, monkeypatch, times):
    seen, loss = [], Denoiser.loss
    monkeypatch.setattr(Denoiser, "loss", lambda self, x0, t, *rest: (seen.append(t), loss(self, x0, t, *rest))[1])
    model = Denoiser(networks.make("mlp", shape=(3,), hidden=(4,)), schedules.make("ve"), "edm")
    fit(model, points, 40, batch_size=50, weighting="edm", times=times, log_normal=(-1.0, 1.3))
    levels = torch.stack([model.schedule.noise_level(t) for t in seen]).log()
    quantiles = torch.special.ndtr((levels + 1.0) / 1.3)
    assert kstest(quantiles.flatten(), "uniform").pvalue > 0.01
    occupied = torch.tensor([len(row.unique()) for row in (50 * quantiles).floor()])
    if times == "log-normal":
        assert (occupied == 50).all()
    else:  # of 50 intervals 50 independent draws hit 50 (1 - (1 - 1/50)^50) = 31.8
        assert occupied.double().mean() == pytest.approx(31.8, abs=1.5)
