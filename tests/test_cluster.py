"""Fan-out over a real Dask cluster, whose parts are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pretended
import pytest
from processes import checkpointed, children, wait_for

from ddpmlab.lab import Experiment, Run, Store, Training, cluster, over_seeds, run_all, runner

ROOT = Path(__file__).parent.parent
CLIENT = """
import sys
from ddpmlab.lab import Experiment, Training, cluster, run_all
config = Experiment("helix", network={"name": "mlp", "hidden": [16]}, n_samples=200,
                    training=Training(n_steps=int(sys.argv[2]), batch_size=128))
with cluster.executor(scheduler=sys.argv[1]) as executor:
    print("begins", flush=True)
    run_all("x", {"a": config}, range(4), executor=executor, progress=False)
print("done", flush=True)
"""


def computed(n_steps, store):
    """What one process computes, and of what."""
    config = Experiment(
        "helix", network={"name": "mlp", "hidden": [16]}, n_samples=200,
        training=Training(n_steps=n_steps, batch_size=128),
    )  # fmt: skip
    return untimed(run_all("x", {"a": config}, range(4), store=store, progress=False)), config


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return computed(1_500, Store(tmp_path_factory.mktemp("serial")))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Trainings that are checkpointed before their end."""
    return computed(3_000, Store(tmp_path_factory.mktemp("long")))


def untimed(table):
    """A table without what differs from run to run."""
    return table[~table.metric.str.startswith("seconds")].reset_index(drop=True)


class Cluster:
    """A scheduler and two workers with their nannies, each a process that can be killed."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.environment = {**os.environ, "DDPMLAB_CACHE": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.scheduler = self.start("distributed.cli.dask_scheduler", "--port", str(port), "--no-dashboard")
        worker = ("distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-dashboard")
        self.nannies = [self.start(*worker) for _ in range(2)]

    def start(self, module, *arguments):
        command = [sys.executable, "-m", module, *arguments]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=self.environment, **options)

    def client(self, n_steps):
        command = [sys.executable, "-c", CLIENT, self.address, str(n_steps)]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def close(self):
        for process in (*self.nannies, self.scheduler):
            for child in children(process.pid):
                kill(child)
            process.kill()
            process.wait()


def kill(process):
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "nanny", "scheduler", "client"])
def test_whatever_is_killed_a_second_run_gives_the_serial_table(tmp_path, long, victim):
    expected, config = long
    there = Cluster(tmp_path)
    try:
        client = there.client(config.training.n_steps)
        assert client.stdout.readline() == "begins\n", client.communicate()[1]
        at = wait_for(lambda: checkpointed(tmp_path), 120)
        assert 0 < at < config.training.n_steps  # in the middle of a training
        if victim == "worker":
            for child in children(there.nannies[0].pid):
                kill(child)
        elif victim == "nanny":
            workers = children(there.nannies[0].pid)
            there.nannies[0].kill()
            for worker in workers:
                kill(worker)
        elif victim == "scheduler":
            there.scheduler.kill()
        else:
            client.kill()
        out, err = client.communicate(timeout=240)
        if victim in ("worker", "nanny"):
            assert out == "done\n", err
        else:
            assert client.returncode != 0
    finally:
        there.close()
    if victim in ("scheduler", "client"):
        assert len(runner.missing(over_seeds([Run("a", config)], range(4)), Store(tmp_path))) > 0
    again = run_all("x", {"a": config}, range(4), store=Store(tmp_path), progress=False)
    pd.testing.assert_frame_equal(untimed(again), expected)


def test_a_local_cluster_fans_out(tmp_path, monkeypatch, serial):
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    expected, config = serial
    with cluster.executor(workers=2) as executor:
        table = run_all("x", {"a": config}, range(4), executor=executor, progress=False)
    pd.testing.assert_frame_equal(untimed(table), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers = 0; need at least 1"),
        ({"workers": 1, "scheduler": "tcp://127.0.0.1:1"}, "give one of them"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "no Dask scheduler answers at tcp://127.0.0.1:1"),
    ],
)
def test_what_cannot_be_reached_is_said_in_one_line(monkeypatch, options, message):
    monkeypatch.setattr(cluster, "TIMEOUT", 1)
    with pytest.raises(ValueError, match=message), cluster.executor(**options):
        pass


def test_a_store_of_one_process_is_refused(monkeypatch):
    monkeypatch.setenv("DDPMLAB_CACHE", "memory://x")
    with pytest.raises(ValueError, match="memory:// is this process's own"), cluster.executor(workers=1):
        pass


class Queue:
    """A client of a scheduler whose worker comes when it was asked for so many times."""

    def __init__(self, asked):
        self.asked, self.scheduler = asked, type("Scheduler", (), {"address": "tcp://10.255.0.1:8786"})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def scheduler_info(self):
        return {"workers": {} if self.asked else {"a": 1}}

    def wait_for_workers(self, n, timeout):
        self.asked -= 1
        if self.asked:
            from distributed.client import WorkerStartTimeoutError

            raise WorkerStartTimeoutError(0, n, timeout)

    def get_executor(self, **options):
        return "executor"


def test_a_worker_that_a_queue_has_yet_to_start_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr("distributed.Client", lambda **how: Queue(4))
    monkeypatch.setenv("DDPMLAB_CACHE", "s3://bucket/x")
    monkeypatch.setattr(cluster.stores, "default_url", lambda: "s3://bucket/x")
    with cluster.executor(scheduler="tcp://10.255.0.1:8786") as executor:
        assert executor == "executor"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "no worker at tcp://10.255.0.1:8786 yet, after 0 minutes; waiting"


def test_a_folder_as_the_store_of_another_machine_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr("distributed.Client", lambda **how: Queue(0))
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path))
    where = "the scheduler tcp://10.255.0.1:8786 is elsewhere"
    with pytest.warns(UserWarning, match=where), cluster.executor(scheduler="tcp://10.255.0.1:8786"):
        pass
    here = ("tcp://127.0.0.1:8786", "tls://localhost:1", "inproc://10.255.0.1/4/5", f"tcp://{socket.gethostname()}:1")
    assert all(cluster._is_here(address) for address in here)


def test_nothing_asked_for_is_this_machine():
    with cluster.executor() as executor:
        assert executor is None


def test_one_gpu_trains_one_network_at_a_time(monkeypatch):
    with cluster.executor(gpus=True) as executor:
        assert executor is runner.pool(1)
    refused = pytest.raises(ValueError, match="workers = 2 would share one GPU; choose 1, or --device cpu")
    with refused, cluster.executor(workers=2, gpus=True):
        pass
    asked = {}
    queue = type("Asked", (Queue,), {"get_executor": lambda self, **options: asked.update(options)})
    monkeypatch.setattr("distributed.Client", lambda **how: queue(0))
    monkeypatch.setattr(cluster.stores, "default_url", lambda: "s3://bucket/x")
    with cluster.executor(scheduler="tcp://127.0.0.1:8786", gpus=True):
        pass
    assert asked["resources"] == {"GPU": 1}
    with pretended.cuda():
        assert cluster.use_device("auto")
        assert cluster.use_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not cluster.use_device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_scheduler_is_found_by_its_file(tmp_path, monkeypatch, serial):
    from distributed import LocalCluster

    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path / "store"))
    expected, config = serial
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as there:
        (tmp_path / "cluster.json").write_text(json.dumps(there.scheduler.identity()))
        with cluster.executor(scheduler=str(tmp_path / "cluster.json")) as executor:
            table = run_all("x", {"a": config}, range(4), executor=executor, progress=False)
    pd.testing.assert_frame_equal(untimed(table), expected)
