import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ddpmlab.experiment import (
    COLUMNS,
    DamagedCacheWarning,
    Experiment,
    Training,
    code_hash,
    run,
    run_all,
    sample,
    score,
    train,
)
from ddpmlab.limits import exact_limit
from ddpmlab.workers import pool

from ddpmlab import experiment, limits, recipes

SMALL = Experiment(
    "helix",
    network={"name": "mlp", "hidden": [16]},
    training=Training(n_steps=200, batch_size=128, keep_steps=(100, 200)),
    n_samples=300,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("trained although it was cached")

    return lambda: monkeypatch.setattr(experiment, "fit", refuse)


def test_a_run_repeats_to_the_bit_and_comes_from_the_cache(cache, no_training, monkeypatch, tmp_path):
    first, points = run(SMALL, steps=(100, 200)), sample(SMALL, 200)[0]
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path / "other"))
    second = run(SMALL, steps=(100, 200))
    assert torch.equal(points, sample(SMALL, 200)[0])
    assert [s["emd_128"] for s in first] == [s["emd_128"] for s in second]
    no_training()
    assert run(SMALL, steps=(100, 200)) == second
    assert score(SMALL)["emd_128"] == second[1]["emd_128"]


@pytest.mark.parametrize("stage", ["train", "sample", "score"])
def test_a_damaged_entry_is_named_and_rebuilt(cache, stage):
    before = run(SMALL)[0]["emd_128"]
    (victim,) = (
        p
        for p in (cache / stage).glob("*/*")
        if p.name in {"weights.safetensors", "samples.safetensors", "scores.json"}
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.warns(
        DamagedCacheWarning, match=rf"{victim.parent.name} is damaged \({victim.name}\); building it again"
    ):
        {"train": train, "sample": sample, "score": score}[stage](SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(SMALL)[0]["emd_128"] == before


def test_an_entry_without_its_seal_is_not_there(cache):
    run(SMALL)
    (seal,) = (cache / "train").glob("*/checksums.json")
    seal.unlink()
    weights = train(SMALL).weights
    assert sorted(weights) == [100, 200]
    assert seal.exists()


def test_the_key_follows_config_and_code(monkeypatch):
    key = experiment._key
    assert key(SMALL, "train") == key(replace(SMALL, n_samples=400, metrics=()), "train")
    assert key(SMALL, "sample") == key(replace(SMALL, metrics=()), "sample")
    assert key(SMALL, "sample") != key(replace(SMALL, n_samples=400), "sample")
    assert key(SMALL, "train") != key(replace(SMALL, seed=1), "train")
    spelt_out = replace(SMALL, schedule={"name": "linear", "ubeta": 1.28e-2}, network={"name": "mlp", "hidden": (16,)})
    assert key(SMALL, "train") == key(spelt_out, "train")
    assert len({code_hash(stage) for stage in ("train", "sample", "score")}) == 3


def test_docstrings_and_comments_do_not_change_the_code_hash(monkeypatch, tmp_path):
    package = tmp_path / "ddpmlab"
    package.mkdir()
    monkeypatch.setattr(experiment, "__file__", str(package / "experiment.py"))
    hashes = []
    for text in ('"""Old."""\nx = 1\n', '"""New."""\nx = 1  # one\n', '"""Old."""\nx = 2\n'):
        (package / "schedules.py").write_text(text)
        code_hash.cache_clear()
        hashes.append(code_hash("train"))
    code_hash.cache_clear()
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_tidy_table_keeps_the_contract(cache, capsys):
    runs = [("early", SMALL, 100), ("late", SMALL, 200)]
    table = run_all("tiny", runs, seeds=range(2), workers=2)
    assert tuple(table.columns) == experiment.COLUMNS
    emd = table[table.metric == "emd_128"]
    assert list(zip(emd.variant, emd.seed, strict=True)) == [("early", 0), ("early", 1), ("late", 0), ("late", 1)]
    assert (emd.n == 128).all()
    assert ((emd.floor_mean > 45) & (emd.floor_mean < 58) & (emd.ceiling > 95)).all()
    assert {"seconds_train", "seconds_sample", "nfe", "divergent_share"} <= set(table.metric)
    assert (table[table.metric == "nfe"].value == 50).all()
    assert "tiny" in capsys.readouterr().err
    # each row is what one run gives
    torch.set_num_threads(1)
    alone = run(replace(SMALL, seed=1), steps=(200,))[0]
    assert emd.value.iloc[-1] == alone["emd_128"]


def test_a_run_with_non_finite_loss_names_step_and_config(cache):
    broken = replace(SMALL, training=Training(n_steps=150, batch_size=128, learning_rate=1e30))
    with pytest.raises(Exception, match=r"up to step \d+ of 150.*law='helix'"):
        run_all("broken", {"lr": broken}, seeds=[0], progress=False)
    assert not list((cache / "train").glob("*/checksums.json"))


def test_the_config_is_frozen_and_checked():
    with pytest.raises(Exception, match=r"frozen|cannot assign"):
        SMALL.seed = 3
    for options, message in (
        ({"law": "spiral"}, "unknown dataset 'spiral'; choose one of"),
        ({"law": "helix", "schedule": {"name": "linear", "n_step": 5}}, "schedule 'linear' takes .*n_steps"),
        ({"law": "helix", "schedule": {"name": "lin"}}, "unknown schedule 'lin'"),
        ({"law": "helix", "schedule": {}}, "a schedule needs a 'name'"),
        ({"law": "helix", "sampler": {"name": "ddpm", "variance": "small"}}, "unknown variance"),
        ({"law": "helix", "metrics": ["fid"]}, r"unknown metrics \['fid'\]"),
        ({"law": "helix", "parameterisation": "eps"}, "unknown parameterisation 'eps'; choose one of: epsilon"),
        ({"law": "helix", "average": True}, "ema_decay"),
        ({"law": "helix", "n_samples": 100}, r"n_samples = 100; the metrics \['emd_128'\] compare 128"),
        (
            {"law": "helix", "sampler": {"name": "ddpm", "n_steps": 500}},
            "n_steps = 500; this schedule samples in 1 to 50",
        ),
        ({"law": "helix", "colour": 1}, "colour"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            Experiment(**options)
    for options, message in (
        ({}, "either epochs or n_steps"),
        ({"epochs": 1, "n_steps": 1}, "either epochs or n_steps"),
        ({"epochs": -1}, "epochs = -1.0.*must be positive"),
        ({"epochs": 10, "keep_epochs": (20,)}, "keep_epochs"),
        ({"epochs": 10, "weighting": "x"}, "unknown weighting 'x'"),
        ({"epochs": 10, "optimiser": "sgd"}, "unknown optimiser 'sgd'; choose one of: adam, adamw"),
        ({"epochs": 10, "ema_decay": 3.0}, "decay = 3.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(**options)


def test_points_at_infinity_are_counted_and_left_out(cache, monkeypatch):
    """A diverged sample costs its share, not the study."""
    train(SMALL)
    points = torch.randn(300, 3)
    points[:3] = torch.inf
    monkeypatch.setattr(experiment, "sample", lambda *_: (points, {"seconds_sample": 0.0, "nfe": 50}))
    values = score(SMALL)
    assert values["divergent_share"] == pytest.approx(0.01)
    assert 80 < values["emd_128"] < 130


def test_every_score_of_the_contract_runs(cache):
    config = replace(SMALL, metrics=("kl", "nll_gap", "nll_gap_train", "energy_distance"), n_samples=5_000)
    table = run_all("all", {"small": config}, seeds=[0], progress=False).set_index("metric")
    assert (table.loc[["kl", "nll_gap", "nll_gap_train"], "value"] > 0).all()
    assert table.loc["energy_distance", "n"] == 5_000
    assert 0 < table.loc["energy_distance", "p_value"] <= 1
    assert (
        table.loc["energy_distance", "floor_mean"]
        < table.loc["energy_distance", "value"]
        < table.loc["energy_distance", "ceiling"]
    )


PARENT = """
import time
from ddpmlab.workers import pool
if __name__ == "__main__":
    with pool(2) as executor:
        tasks = [executor.submit(time.sleep, 600) for _ in range(2)]
        print(*executor._processes, flush=True)
        tasks[0].result()
"""


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    children = [int(p) for p in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(8)  # until they have imported torch and watch their parent
    parent.kill()
    parent.wait()
    for _ in range(100):
        alive = [p for p in children if is_running(p)]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


def is_running(process):
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_are_kept_unless_the_environment_changes_or_one_is_interrupted(monkeypatch):
    with pool(1) as executor:
        first = executor.submit(os.getpid).result()
    with pool(1) as executor:
        assert executor.submit(os.getpid).result() == first
    monkeypatch.setenv("DDPMLAB_CACHE", "elsewhere")
    with pool(1) as executor:
        second = executor.submit(os.getpid).result()
        assert second != first
        assert executor.submit(os.getenv, "DDPMLAB_CACHE").result() == "elsewhere"
    os.kill(second, signal.SIGINT)
    while is_running(second):
        time.sleep(0.05)
    time.sleep(0.5)
    with pool(1) as executor:
        assert executor.submit(os.getpid).result() not in (first, second)
    with pytest.raises(ZeroDivisionError), pool(1) as executor:
        executor.submit(divmod, 1, 0).result()
    with pool(1) as executor:
        assert executor.submit(divmod, 7, 2).result() == (3, 1)


def test_the_exact_denoiser_stands_in_for_a_network(cache, monkeypatch):
    """Scores of a known sampler: samples of the exact denoiser score as real points do; computed once."""
    config = replace(SMALL, n_samples=5_000, sampler={"name": "heun", "n_steps": 20}, metrics=("emd_128", "kl"))
    config = replace(config, schedule={"name": "vp_cosine", "terminal_snr": 1e-4, "t_min": 0.005})
    table = exact_limit("x", config, range(2), n_samples=400)
    assert table["metric"].tolist() == ["emd_128"] * 2
    assert tuple(table.columns) == COLUMNS
    assert (table["value"] - table["floor_mean"]).abs().max() < 5
    assert table["ceiling"].min() > 95
    monkeypatch.setattr(limits, "_scores", None)
    again = exact_limit("x", config, range(2), "by another name", n_samples=400)
    assert again["value"].tolist() == table["value"].tolist()
    assert exact_limit("x", replace(config, metrics=("energy_distance",)), [0], n_samples=400).empty


def test_cache_entries_hold_no_pickle(cache):
    run(SMALL)
    suffixes = {p.suffix for p in cache.rglob("*") if p.is_file()}
    assert suffixes <= {".json", ".safetensors"}
    for path in cache.rglob("*.json"):
        json.loads(path.read_text())
    assert os.environ["DDPMLAB_CACHE"] == str(cache)


def test_training_points_can_be_drawn_afresh(cache):
    law = experiment.data.make("helix").standardised()
    split = law.split().train
    assert torch.equal(SMALL.training.points(law), split)
    fresh = Training(n_steps=20, batch_size=128, n_points=500)
    points = fresh.points(law)
    assert points.shape == (500, 3)
    assert not torch.equal(points, split[:500])
    losses = [train(replace(SMALL, training=replace(fresh, n_points=n))).losses for n in (None, 500, 600)]
    assert len({tuple(x) for x in losses}) == 3  # three runs, none taken for another in the cache
    assert Training(epochs=4, batch_size=100, n_points=500).options(500)["n_steps"] == 20
    with pytest.raises(ValueError, match="n_points = 0; training needs at least 1 point"):
        Training(n_steps=1, n_points=0)


def test_the_two_moons_recipe_changes_only_what_it_is_told_to():
    recipe = recipes.two_moons(2_000)
    assert sum(w.numel() for w in recipe.build().parameters()) == 19_778
    other = recipes.two_moons(2_000, network={"width": 32}, warmup=0, n_samples=700)
    assert other == replace(
        recipe,
        network={**recipe.network, "width": 32},
        training=replace(recipe.training, warmup=0),
        n_samples=700,
    )
    assert recipes.two_moons(2_000) == recipe
    with pytest.raises(ValueError, match=r"unknown options \['width'\]"):
        recipes.two_moons(2_000, width=32)
