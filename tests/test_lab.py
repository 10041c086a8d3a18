"""Experiments: configs, stages, and many runs side by side."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cloudpickle
import loky
import numpy as np
import pandas as pd
import pytest
import torch
from processes import checkpointed, children, running, wait_for

from ddpmlab import cli, networks, registry, samplers, schedules, studies
from ddpmlab.denoisers import Denoising
from ddpmlab.lab import (
    COLUMNS,
    Experiment,
    Run,
    Training,
    limit,
    over_seeds,
    recipes,
    remembered,
    run_all,
    runner,
    sample,
    score,
    stages,
    train,
    trained,
)
from ddpmlab.lab import store as stores
from ddpmlab.lab.runner import RunError, compute, pool
from ddpmlab.lab.store import DamagedEntryWarning, Store
from ddpmlab.studies import own_network

ROOT = Path(__file__).parent.parent
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
        raise AssertionError("trained although it was in the store")

    return lambda: monkeypatch.setattr(stages, "fit", refuse)


# --- stages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["folder", "memory"])
def test_a_run_repeats_to_the_bit_and_comes_from_the_store(tmp_path, no_training, url):
    first, second = (Store(tmp_path / n if url == "folder" else f"memory://{tmp_path.name}{n}") for n in "ab")
    for store in (first, second):
        score(SMALL, 100, store)
    assert torch.equal(sample(SMALL, 200, first)[0], sample(SMALL, 200, second)[0])
    assert score(SMALL, 100, first)["emd_128"] == score(SMALL, 100, second)["emd_128"]
    no_training()
    found = score(SMALL, 200, first)
    assert found == score(SMALL, 200, first)
    assert {"seconds_train", "seconds_sample", "nfe", "divergent_share", "emd_128"} == set(found)


def test_the_committed_digits_come_out_again(cache):
    """Model 1 of the homework after its 100 epochs: the tables' digits, but for what another processor rounds away."""
    table = pd.read_csv(ROOT / "book" / "results" / "complexity.csv")
    config = recipes.homework(
        "helix", network={"name": "mlp", "hidden": [64]}, training=Training(epochs=100), metrics=("emd_128",)
    )
    rows = table[(table.dataset == "helix") & (table.variant == "model=1") & (table.seed == 0)].set_index("metric")
    assert score(config)["emd_128"] == pytest.approx(rows.loc["emd_128", "value"], rel=3e-4)


@pytest.mark.parametrize("stage", ["train", "sample", "score"])
def test_a_damaged_entry_is_named_and_computed_again(cache, stage):
    before = score(SMALL)["emd_128"]
    (victim,) = (cache / stage).glob("*.safetensors")
    content = bytearray(victim.read_bytes())
    content[-3] ^= 1
    victim.write_bytes(content)
    with pytest.warns(DamagedEntryWarning, match=rf"{victim.name} is damaged; computing it again"):
        {"train": train, "sample": sample, "score": score}[stage](SMALL)
    assert score(SMALL)["emd_128"] == before


def test_a_training_that_was_killed_goes_on_from_its_checkpoint(cache, monkeypatch):
    config = replace(SMALL, training=Training(n_steps=30, batch_size=64))
    whole = train(config, Store(cache / "whole")).weights[30]
    key, store = stages.train_key(config), Store(cache / "cut")
    real = stages.fit

    def often(*args, **options):
        return real(*args, **options | {"checkpoint_every": 10})

    monkeypatch.setattr(stages, "fit", often)

    def killed(step):
        if step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, store, on_step=killed)
    assert store.checkpoint(key).exists()
    seen = []
    again = train(config, store, on_step=seen.append).weights[30]
    assert min(seen) == 21
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not store.checkpoint(key).exists()


def test_a_foreign_checkpoint_is_named_and_left_behind(cache):
    config = replace(SMALL, training=Training(n_steps=5, batch_size=64))
    stores.default().checkpoint(stages.train_key(config)).write_bytes(b"not a checkpoint")
    with pytest.warns(DamagedEntryWarning, match="starting this run anew"):
        assert train(config).steps == [5]


def test_points_at_infinity_are_counted_and_left_out(cache, monkeypatch):
    """A diverged sample costs its share, not the study."""
    train(SMALL)
    points = torch.randn(300, 3)
    points[:3] = torch.inf
    monkeypatch.setattr(stages, "sample", lambda *_: (points, {"seconds_sample": 0.0, "nfe": 50}))
    values = score(SMALL)
    assert values["divergent_share"] == pytest.approx(0.01)
    assert 80 < values["emd_128"] < 130


@pytest.mark.slow
def test_every_score_of_the_contract_runs(cache):
    config = replace(SMALL, metrics=("kl", "nll_gap", "nll_gap_train", "energy_distance"), n_samples=5_000)
    table = run_all("all", {"small": config}, seeds=[0], progress=False).set_index("metric")
    assert (table.loc[["kl", "nll_gap", "nll_gap_train"], "value"] > 0).all()
    assert table.loc["energy_distance", "n"] == 5_000
    assert 0 < table.loc["energy_distance", "p_value"] <= 1
    energy = table.loc["energy_distance"]
    assert energy["floor_mean"] < energy["value"] < energy["ceiling"]


def test_permutation_tests_are_against_points_of_their_own(cache, monkeypatch):
    """Every seed's test draws fresh real points, so that ten tests are ten."""
    drawn, real = [], stages.two_sample.permutation_test

    def spy(x, y, *args, **options):
        drawn.append(y)
        return real(x[:50], y[:50], *args, **options | {"n_permutations": 19})

    monkeypatch.setattr(stages.two_sample, "permutation_test", spy)
    config = limit(replace(SMALL, n_samples=5_000, metrics=("energy_distance",)), "law")
    for seed in range(2):
        score(replace(config, seed=seed))
    assert not torch.isin(drawn[0], drawn[1]).any()
    assert not torch.isin(drawn[0], config.data.split().test).any()


def test_the_exact_denoiser_stands_in_for_a_network(cache):
    """Samples of the exact denoiser score as real points do."""
    config = replace(
        SMALL, n_samples=5_000, sampler={"name": "heun", "n_steps": 20}, metrics=("emd_128", "kl"),
        schedule={"name": "vp_cosine", "terminal_snr": 1e-4, "t_min": 0.005},
    )  # fmt: skip
    exact = limit(config, "exact", n_samples=400)
    assert exact.metrics == ("emd_128",)
    table = run_all("x", [Run("exact", exact)], range(2), progress=False)
    assert (table["value"] - table["floor_mean"]).abs().max() < 5
    assert not (cache / "train").exists()
    perfect = run_all("x", [Run("law", limit(config, "law"))], [0], progress=False)
    assert set(perfect.metric) == {"emd_128"}


def doubled(x):
    """A table that a test remembers."""
    CALLS.append(x)
    return pd.DataFrame({"x": [x], "y": [2.5 * x]})


CALLS = []


def test_tables_of_plain_functions_are_remembered(cache):
    first = remembered(doubled, x=3)
    again = remembered(doubled, x=3)
    assert CALLS == [3]
    pd.testing.assert_frame_equal(first, again)


# --- configs ---------------------------------------------------------------------------------------------------


def test_the_config_is_frozen_and_checked():
    with pytest.raises(Exception, match=r"frozen|cannot assign"):
        SMALL.seed = 3
    for options, message in (
        ({"dataset": "spiral"}, "unknown dataset 'spiral'; choose one of"),
        ({"dataset": "helix", "schedule": {"name": "linear", "n_step": 5}}, "schedule 'linear' takes .*n_steps"),
        ({"dataset": "helix", "schedule": "lin"}, "unknown schedule 'lin'"),
        ({"dataset": "helix", "schedule": {}}, "a schedule needs a 'name'"),
        ({"dataset": "helix", "sampler": {"name": "ddpm", "variance": "small"}}, "unknown variance"),
        ({"dataset": "helix", "metrics": ["fid"]}, "unknown metric 'fid'"),
        ({"dataset": "helix", "metrics": ["thickness"]}, "thickness is one of the dataset two_moons"),
        ({"dataset": "helix", "parameterisation": "eps"}, "unknown parameterisation 'eps'; choose one of: epsilon"),
        ({"dataset": "helix", "denoiser": "oracle"}, "unknown denoiser 'oracle'; choose one of: network, exact"),
        ({"dataset": "helix", "average": True}, "ema_decay"),
        ({"dataset": "helix", "n_samples": 100}, r"n_samples = 100; the metrics \['emd_128'\] compare 128"),
        ({"dataset": "helix", "sampler": {"name": "ddpm", "n_steps": 500}}, "n_steps = 500; this schedule samples in"),
        ({"dataset": "helix", "colour": 1}, "colour"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            Experiment(**options)
    for options, message in (
        ({}, "give exactly one of them"),
        ({"epochs": 1, "n_steps": 1}, "give exactly one of them"),
        ({"epochs": -1}, r"epochs = -1.0; need a positive number"),
        ({"epochs": float("nan")}, "epochs = nan"),
        ({"epochs": 10, "keep_epochs": (20,)}, "keep_epochs"),
        ({"epochs": 10, "weighting": "x"}, "unknown weighting 'x'"),
        ({"epochs": 10, "learning_rate": float("nan")}, "learning_rate = nan"),
        ({"n_steps": 1, "n_points": 0}, "n_points = 0; training needs at least 1 point"),
    ):
        with pytest.raises(ValueError, match=message):
            Training(**options)


def test_averages_of_several_widths_are_named(cache):
    training = Training(n_steps=20, batch_size=64, ema_sigma_rel=(0.05, 0.1))
    config = replace(SMALL, training=training, average=0.1)
    train(config)
    first, second = (trained(replace(config, average=width)).network.state_dict() for width in (0.05, 0.1))
    assert not torch.equal(first["layers.0.weight"], second["layers.0.weight"])
    default = trained(replace(config, average=True)).network.state_dict()
    assert torch.equal(default["layers.0.weight"], first["layers.0.weight"])
    with pytest.raises(ValueError, match=r"average = 0.2; training keeps the widths \[0.05, 0.1\]"):
        replace(config, average=0.2)


def test_training_points_can_be_drawn_afresh(cache):
    law = SMALL.data
    assert torch.equal(SMALL.training.points(law)[0], law.split().train)
    fresh = Training(n_steps=20, batch_size=128, n_points=500)
    points, labels = fresh.points(law)
    assert points.shape == (500, 3)
    assert labels is None
    losses = [train(replace(SMALL, training=replace(fresh, n_points=n))).losses for n in (None, 500, 600)]
    assert len({tuple(x) for x in losses}) == 3  # three runs, none taken for another
    assert Training(epochs=4, batch_size=100, n_points=500).options(500).n_steps == 20


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
    with pytest.raises(ValueError, match=r"unknown options \['width'\]"):
        recipes.two_moons(2_000, width=32)


# --- many runs -------------------------------------------------------------------------------------------------


def test_the_tidy_table_keeps_the_contract(cache, capsys):
    runs = [Run("early", SMALL, 100, {"step": 100}), Run("late", SMALL, 200, {"step": 200})]
    table = run_all("tiny", runs, seeds=(seed for seed in range(2)))
    assert tuple(table.columns) == (*COLUMNS, "step")
    emd = table[table.metric == "emd_128"]
    assert list(zip(emd.variant, emd.seed, emd.step, strict=True)) == [
        ("early", 0, 100), ("early", 1, 100), ("late", 0, 200), ("late", 1, 200),
    ]  # fmt: skip
    assert (emd.n == 128).all()
    assert ((emd.floor_mean > 45) & (emd.floor_mean < 58) & (emd.ceiling > 95)).all()
    assert (table[table.metric == "nfe"].value == 50).all()
    assert "tiny" in capsys.readouterr().err
    torch.set_num_threads(1)  # each row is what one run gives
    alone = score(replace(SMALL, seed=1), 200, Store(cache / "alone"))
    assert emd.value.iloc[-1] == alone["emd_128"]


def test_a_released_pool_leaves_nothing_of_the_system_s_behind(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from ddpmlab.lab import runner\n"
        "def bar(n):\n    from tqdm import tqdm\n    return sum(tqdm(range(n), disable=True))\n"
        "if __name__ == '__main__':\n    print(list(runner.pool(1).map(bar, [4])))\n    runner.release()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "[6]\n"
    assert "leaked" not in done.stderr


def test_any_executor_gives_the_same_table(cache):
    config = replace(SMALL, training=Training(n_steps=20, batch_size=64))
    with ThreadPoolExecutor(2) as threads:
        by_threads = run_all("x", {"a": config}, range(2), executor=threads, store=Store(cache / "t"), progress=False)
    by_pool = run_all("x", {"a": config}, range(2), store=Store(cache / "p"), progress=False)
    timed = by_pool.metric.str.startswith("seconds")
    pd.testing.assert_frame_equal(by_threads[~timed], by_pool[~timed])


def test_one_training_serves_every_run_that_shares_it(cache):
    runs = over_seeds([Run("a", SMALL, 100), Run("b", replace(SMALL, sampler={"name": "ddim"}))], range(3))
    assert [len(job) for job in runner.missing(runs)] == [2, 2, 2]
    run_all("x", runs, progress=False)
    assert runner.missing(runs) == []
    assert len(list((cache / "train").iterdir())) == 3


def test_runs_that_wait_for_no_training_are_jobs_of_their_own(cache):
    runs = [Run(name, replace(SMALL, sampler={"name": name})) for name in ("ddim", "euler")]
    assert len(runner.missing(runs)) == 1
    train(SMALL)
    assert len(runner.missing(runs)) == 2
    twice = replace(SMALL, metrics=("kl",), sampler={"name": "ddim"})  # the same sample, another score
    assert [len(job) for job in runner.missing([*runs, Run("again", twice)])] == [2, 1]


def test_the_longest_jobs_start_first(cache):
    started = []

    class Noting(ThreadPoolExecutor):
        def submit(self, function, payload):
            started.append(cloudpickle.loads(payload)[2])
            return super().submit(lambda: None)

    brief, long = (replace(SMALL, training=Training(n_steps=n, batch_size=64)) for n in (1, 9_000))
    with Noting(1) as executor:
        runner.compute([Run("brief", brief), Run("long", long)], executor)
    assert [runs[0].variant for runs in started if runs] == ["long", "brief"]


def test_a_failed_run_is_named_and_the_others_can_go_on(cache):
    broken = replace(SMALL, training=Training(n_steps=150, batch_size=128, learning_rate=1e30))
    with pytest.raises(RunError, match=r"run 'lr' of helix, seed 0 failed: NonFiniteLossError: .*of 150"):
        run_all("broken", {"lr": broken}, seeds=[0], progress=False)
    assert not list((cache / "train").glob("*")) if (cache / "train").exists() else True
    runs = [Run("lr", broken), Run("sound", replace(SMALL, training=Training(n_steps=20)))]
    failed = runner.compute(runs, progress=False, go_on=True)
    assert [job[0].variant for job, _ in failed] == ["lr"]
    assert len(runner.missing(runs)) == 1


SCRIPT = """
import torch
from ddpmlab import networks
from ddpmlab.lab import Experiment, Training, run_all
@networks.NETWORKS.register("mine")
class Mine(networks.MLP):
    def forward(self, x, c, label=None):
        return super().forward(x, c, label) * {factor}
config = Experiment("helix", network="mine", training=Training(n_steps=10, batch_size=32), n_samples=200)
table = run_all("script", {{"a": config}}, range(2), progress=False)
print(table[table.metric == "emd_128"].value.sum())
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_parts_of_its_own(tmp_path):
    """Its processes do not import it again, know its parts, and an edited part is another part."""
    script, values = tmp_path / "script.py", []
    environment = {**os.environ, "DDPMLAB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for factor in (1, 2):
        script.write_text(SCRIPT.format(factor=factor))
        answer = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        values.append(float(answer.stdout))
    assert values[0] != values[1]


LONG = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from ddpmlab.lab import Experiment, Training, run_all
config = Experiment("helix", training=Training(n_steps=1_000_000, batch_size=64), n_samples=200)
print("begins", flush=True)
run_all("long", {"a": config}, range(20), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_to_the_parent_alone_stops_everything(tmp_path, how):
    environment = {**os.environ, "DDPMLAB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", LONG], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "begins\n"
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache" / "checkpoints").glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.2)  # until both train
    workers = children(parent.pid)
    assert workers
    parent.send_signal(how)
    start = time.monotonic()
    try:
        _, errors = parent.communicate(timeout=60)
    finally:
        parent.kill()
    while any(map(running, workers)) and time.monotonic() - start < 10:
        time.sleep(0.05)
    assert not [w for w in workers if running(w)]
    assert parent.returncode != 0
    assert "InvalidStateError" not in errors  # what loky says of a job that was cancelled before its pool was stopped
    assert list((tmp_path / "cache" / "checkpoints").glob("*.safetensors"))


LOCKSTEP = """
import sys, warnings
warnings.simplefilter("error")
from concurrent.futures import ThreadPoolExecutor
from ddpmlab.lab import Experiment, Run, Store, Training, over_seeds, runner
small = Experiment("helix", network={"name": "mlp", "hidden": [4]}, n_samples=2, metrics=(),
                   training=Training(n_steps=2, batch_size=8), sampler={"name": "ddim", "n_steps": 2})
runs = over_seeds([Run("a", small)], range(int(sys.argv[1])))
print("ready", flush=True)
for folder in sys.stdin:
    with ThreadPoolExecutor(1) as here:
        runner.compute(runs, here, Store(folder.strip()), progress=False)
    print("done", flush=True)
"""


def lockstep(folder, n_trainings, rounds=1, n_processes=3):
    """Processes that run the same tiny trainings at the same time, into a fresh store each round; yields the stores."""
    started = [
        subprocess.Popen([sys.executable, "-c", LOCKSTEP, str(n_trainings)], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
        for _ in range(n_processes)
    ]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for number in range(rounds):
        for process in started:
            process.stdin.write(f"{folder / str(number)}\n")
            process.stdin.flush()
        for process in started:
            assert process.stdout.readline() == "done\n", process.communicate()[1]
        yield folder / str(number)
    for process in started:
        assert process.communicate(timeout=60)[1] == ""


def test_processes_in_lockstep_leave_sound_entries_and_raise_nothing(tmp_path):
    """Thirty trainings once; `LOCKSTEP_ROUNDS` asks for a hundred and fifty, so often."""
    rounds = int(os.environ.get("LOCKSTEP_ROUNDS", 0))
    n = 150 if rounds else 30
    for folder in lockstep(tmp_path, n, rounds or 1):
        store = Store(folder)
        kinds = [kind for kind, _, _ in store.entries()]
        assert kinds.count("train") == kinds.count("sample") == n
        assert all(store.get(kind, key) is not None for kind, key, _ in store.entries())
        assert not list((folder / "checkpoints").iterdir())
        assert not [path for path in folder.rglob(".*") if path.is_file()]
        print(f"{n} sound", flush=True)


def test_a_checkpoint_that_another_process_takes_away_costs_nothing(cache, monkeypatch):
    """Its owner was done between two looks of ours: there to open, then gone."""
    config = replace(SMALL, training=Training(n_steps=20, batch_size=64))
    real = stages.fit

    def late(*args, **options):
        monkeypatch.setattr(stages, "fit", real)
        train(config)
        raise RuntimeError("unable to open file in read-only mode: No such file or directory (2)")

    monkeypatch.setattr(stages, "fit", late)
    assert train(config).steps == [20]

    def failing(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(stages, "fit", failing)
    with pytest.raises(RuntimeError, match="something else"):
        train(replace(config, seed=1))


KEPT = []


def grown(n_bytes):
    """What a worker does that reads a dataset: it keeps it; which process it is."""
    KEPT.append(bytearray(n_bytes))
    time.sleep(1.1)  # loky looks at most once a second
    return os.getpid()


def test_a_process_that_grows_is_not_started_afresh():
    """A process that loky ends for its growth, and that is slow to end, holds up the pool for good."""
    first = pool(1).submit(grown, 1).result(timeout=120)
    later = [pool(1).submit(grown, 400_000_000) for _ in range(3)]
    assert {future.result(timeout=60) for future in later} == {first}
    runner.stop(pool(1))


class Gone(loky.ProcessPoolExecutor):
    """A pool whose processes are gone and that does not notice."""

    def submit(self, *job):
        return Future()


def test_a_pool_whose_processes_are_gone_is_an_error_and_not_a_wait(cache, monkeypatch):
    monkeypatch.setattr(runner, "PATIENCE", 0.05)
    with pytest.raises(RunError, match=r"processes are gone with 2 jobs to do; what was finished is kept"):
        runner.compute(over_seeds([Run("a", replace(SMALL, metrics=()))], range(2)), Gone(1), progress=False)


def test_floors_do_not_wait_for_the_one_process_that_has_the_gpu(cache, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    asked = []
    for workers in (1, 2):
        each = pool(workers)
        monkeypatch.setattr(each, "submit", lambda *job, n=workers, do=each.submit: asked.append(n) or do(*job))
    config, moved = replace(SMALL, metrics=("course_nll_500",), n_samples=500), []
    bar = type("Bar", (runner.tqdm,), {"update": lambda self, n=1: moved.append(n) or super(bar, self).update(n)})
    monkeypatch.setattr(runner, "tqdm", bar)
    assert runner.compute([Run("a", config)], pool(1)) == []
    assert sorted(asked) == [1, 2]
    assert (min(moved), len(moved)) == (0, 2)  # nor do they count as work done: nobody knows their seconds
    assert stages.score(config)["course_nll_500"] > 0


def test_a_process_that_is_killed_is_named_and_the_next_run_goes_on(cache):
    long = [Run("a", replace(SMALL, metrics=(), training=Training(n_steps=8_000, batch_size=16)))]
    victim = pool(1).submit(os.getpid).result()
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(runner.compute, long, pool(1), progress=False, go_on=True)
        assert wait_for(lambda: checkpointed(cache))
        os.kill(victim, signal.SIGKILL)
        ((_, error),) = found.result(timeout=60)
        assert "a process was killed, perhaps for want of memory; what was finished is kept" in str(error)
        before = checkpointed(cache)
        found = thread.submit(runner.compute, long, pool(1), progress=False)
        assert wait_for(lambda: checkpointed(cache) not in (0, before) and checkpointed(cache)) > before
        assert found.result(timeout=120) == []


def test_what_jobs_should_take_is_told_by_the_pace_of_their_like(cache):
    """Steps of the same network cost what they cost; those of an unknown one what their FLOP say, at this pace."""
    done = replace(SMALL, metrics=(), training=Training(n_steps=20, batch_size=64))
    other = replace(done, network={"name": "mlp", "hidden": [8]})
    unknown = replace(done, network={"name": "mlp", "hidden": [1_000, 1_000]})
    jobs = [
        [Run("x", replace(c, seed=1, training=Training(n_steps=100, batch_size=64)))] for c in (done, other, unknown)
    ]
    jobs.append([Run("law", limit(done, "law"))] * 3)
    every = [Run("x", done), Run("x", other), *(run for job in jobs for run in job)]
    flops = {c: runner._step(config) for c, config in (("done", done), ("other", other), ("unknown", unknown))}
    products = 2 * (4 * 1_000 + 1_000 * 1_000 + 1_000 * 3)
    assert flops["unknown"] == pytest.approx(1e-3 + 3 * 64 * products / 1e11)
    first = runner.expected(jobs, every)
    assert first == pytest.approx([1 + 100 * flops["done"], 1 + 100 * flops["other"], 1 + 100 * flops["unknown"], 3.0])
    for config, seconds in ((done, 2.0), (other, 2.0)):
        stores.default().put("train", stages.train_key(config), {"seconds": seconds, "steps": 20})
    slower = 0.5 * (0.1 / flops["done"] + 0.1 / flops["other"])
    told = runner.expected(jobs, every)
    assert told == pytest.approx([11.0, 11.0, 1 + 100 * slower * flops["unknown"], 3.0])


def test_sampling_pictures_is_told_by_its_flop_and_guidance_doubles_it():
    plain = Experiment(
        "fashion_mnist", network={"name": "mlp", "hidden": [1_000, 1_000]}, weights="fashion_unet", n_samples=20_000,
        sampler={"name": "ddim", "n_steps": 10}, guidance=1.0, metrics=(),
    )  # fmt: skip
    products = 2 * (785 * 1_000 + 1_000 * 1_000 + 1_000 * 784)  # of the pixels and the time, and of two layers more
    jobs = [[Run("x", config)] for config in (plain, replace(plain, guidance=2.0), replace(plain, n_samples=10))]
    one = 20_000 * 10 * products / 1e11
    assert one > 5
    assert runner.expected(jobs, []) == pytest.approx([one, 2 * one, 1.0])


def test_pools_of_two_sizes_live_side_by_side_and_refuse_none():
    first, second = pool(2), pool(1)
    assert first.submit(divmod, 7, 2).result() == second.submit(divmod, 7, 2).result() == (3, 1)
    assert pool(1) is second
    runner.stop(second)
    assert pool(1) is not second
    assert pool(1).submit(np.sqrt, 4.0).result() == 2.0
    with pytest.raises(ValueError, match="workers = 0; need at least 1"):
        pool(0)


def test_a_failed_run_leaves_its_callers_pool_alone(cache):
    mine = pool(1)
    with pytest.raises(RunError, match="NonFiniteLossError"):
        compute([Run("lr", replace(SMALL, training=Training(n_steps=150, learning_rate=1e30)))], mine, progress=False)
    assert pool(1) is mine
    assert mine.submit(divmod, 7, 2).result() == (3, 1)


def test_a_studys_status_and_the_command_line_tell_what_its_missing_runs_should_take(cache):
    training = Training(n_steps=100, batch_size=64)
    runs = over_seeds([Run("a", replace(SMALL, metrics=(), training=training))], range(2))
    study = studies.Study("x", {}, runs)
    first = study.status()
    assert (first.present, first.missing) == (0, 2)
    assert first.expected == pytest.approx(2 * (1 + 100 * runner._step(runs[0].config)))
    score(runs[0].config)
    second = study.status()
    assert (second.present, second.missing) == (1, 1)
    assert second.expected == pytest.approx(1 + second.seconds)  # the pace of the training that is there
    score(runs[1].config)
    assert study.status().expected == 0
    assert cli._expected(studies.Status(0, 2, 0.0, 5_400.0)) == ", about 90.0 core-minutes"
    assert cli._expected(study.status()) == ""


def test_a_training_past_its_time_limit_is_named_once_and_the_others_go_on(cache):
    """Also where an executor tries again what raises, as Dask's does."""
    tried = []

    class Retrying(ThreadPoolExecutor):
        def submit(self, function, payload):
            def work():
                for _ in range(3):
                    tried.append(payload)
                    with contextlib.suppress(Exception):
                        return function(payload)

            return super().submit(work)

    brief, endless = (Run(str(n), replace(SMALL, training=Training(n_steps=n, batch_size=16))) for n in (10, 10**9))
    with Retrying(1) as executor:
        ((job, error),) = runner.compute(
            [brief, endless], executor, go_on=True, time_limit=lambda run: 0.5 if run is endless else 600.0
        )
    assert job == [endless]
    assert str(error).startswith("run '1000000000' of helix, seed 0 trained for longer than its study's time_limit, ")
    assert len(tried) == len(set(tried)), [cloudpickle.loads(p)[2:] for p in tried]
    assert runner.missing([brief]) == []


def test_an_estimate_takes_any_network_and_leaves_the_callers_generator_alone(cache):
    class NoSinglePoint(networks.MLP):
        def forward(self, x, c, label=None):
            assert len(x) > 1
            return super().forward(x, c, label)

    networks.NETWORKS.register("no single point")(NoSinglePoint)
    try:
        configs = [replace(SMALL, network={"name": name}) for name in ("no single point", "mlp")]
        torch.manual_seed(0)
        expected = runner.expected([[Run("x", config)] for config in configs], [])
        drawn = torch.rand(1)
        torch.manual_seed(0)
        assert drawn == torch.rand(1)
        assert expected[0] == pytest.approx(1 + 200 * 1e-3)
        assert expected[1] > expected[0]
    finally:
        del networks.NETWORKS._factories["no single point"]


def test_long_jobs_go_first_and_equal_ones_seed_by_seed(tmp_path):
    """So that two that need the same law's truth seldom begin together."""
    sent = []

    class Recorder(Executor):
        def submit(self, fn, payload):
            runs = cloudpickle.loads(payload)[2]
            sent.extend((run.config.dataset["name"], run.config.seed, run.config.training.n_steps) for run in runs)
            done = Future()
            done.set_result(None)
            return done

    def job(law, seed, n_steps=10):
        return Run("a", Experiment(law, training=Training(n_steps=n_steps), seed=seed, metrics=()))

    runs = [job(law, seed) for law in ("sin_5_5", "helix") for seed in (0, 1)] + [job("helix", 2, 10**6)]
    compute(runs, Recorder(), Store(tmp_path))
    assert sent[0] == ("helix", 2, 10**6)
    assert [(law, seed) for law, seed, _ in sent[1:]] == [("sin_5_5", 0), ("helix", 0), ("sin_5_5", 1), ("helix", 1)]


def test_a_part_that_cannot_be_hashed_is_made_like_any_other():
    @dataclass
    class Part:  # equality without a hash
        size: int = 3

        def __call__(self, step: int = 1):
            return self.size * step

    parts = registry.Registry("test part")
    try:
        parts.register("own")(Part())
        assert parts.make("own", step=2) == 6
        assert parts.spelt_out({"name": "own"}) == {"name": "own", "step": 1}
    finally:
        del registry.Registry._all["test part"]


class Noiseless(Denoising):
    """Predicts no noise at all."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t, t, label=None):
        return x_t / self.schedule(t)[0]


def test_sampling_multiplies_what_is_not_taken_off_by_one_over_alpha_at_the_end():
    chain = schedules.make("linear", n_steps=20, lbeta=1e-3, ubeta=0.3)
    x_T = torch.full((4, 2), 2.0, dtype=torch.float64)
    *_, x_0 = samplers.make("ddim")(Noiseless(chain), x=x_T)
    assert torch.allclose(x_0, x_T * own_network.growth(chain))
    assert own_network.growth(chain) == pytest.approx(float((1 - chain.betas).prod() ** -0.5))


def test_every_row_of_the_reports_own_network_has_every_seed():
    study = studies.make(
        "own_network", steps=[10, 50], control_steps=[10], pairs=[(0.0128, 1e-5)], schedules=["linear"], epochs=[1, 2],
        n_seeds=3,
    )  # fmt: skip
    seeds = {}
    for run in study.runs:
        seeds.setdefault((run.config.dataset["name"], run.variant), []).append(run.config.seed)
    assert {tuple(sorted(found)) for found in seeds.values()} == {(0, 1, 2)}
    tables = {(run.factors["table"], run.factors["input"], run.factors["output"]) for run in study.runs}
    both = ("time as an input", "no time input")
    assert {(t, i, "ReLU behind the output") for t in (1, 3, 5, 7, 8) for i in both} <= tables
    assert {(t, both[0], "linear output") for t in (1, 5, 8)} <= tables
