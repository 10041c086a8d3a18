"""The scripts of the page on clusters, as far as they go without one; the store on S3."""

import re
from pathlib import Path

import pytest
import torch

from ddpmlab.lab.store import DamagedEntryWarning, Store

PAGE = (Path(__file__).parent.parent / "book" / "scale.md").read_text()


def script(about):
    """The page's Python block that contains a text, up to where it asks for machines."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if about in block]
    return found


def test_the_page_s_slurm_script_asks_for_one_thread_a_worker(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason="pip install dask-jobqueue")
    monkeypatch.chdir(tmp_path)  # its logs
    names = {}
    exec(script("SLURMCluster").partition("cluster.adapt")[0], names)
    with names["cluster"] as cluster:
        job = cluster.job_script()
        more = re.search(r"^ +job_extra_directives=.*\n +worker_extra_args=.*\n", PAGE, re.MULTILINE)[0]
        options = eval(f"dict({more})")
        gpu = type(cluster)(cores=1, memory="4GB", scheduler_options={"dashboard_address": ":0"}, **options)
        with gpu:
            assert "#SBATCH --gres=gpu:1\n" in gpu.job_script()
            assert gpu.job_script().rstrip().endswith("--resources GPU=1")
    assert "\nexport DDPMLAB_DATA=$HOME/fashion-mnist\n" in job
    assert "#SBATCH --cpus-per-task=1\n" in job
    assert "#SBATCH -t 08:00:00\n" in job
    assert " --nthreads 1 " in job


def test_the_page_s_kubernetes_script_names_commands_that_dask_has():
    pytest.importorskip("dask_kubernetes", reason="pip install dask-kubernetes")
    names = {}
    exec(script("make_cluster_spec").partition("cluster = KubeCluster")[0], names)
    spec = names["spec"]["spec"]
    (worker,), (scheduler,) = (spec[part]["spec"]["containers"] for part in ("worker", "scheduler"))
    assert worker["args"][:4] == ["dask", "worker", "--nthreads", "1"]
    assert scheduler["args"][:2] == ["dask", "scheduler"]
    assert spec["worker"]["replicas"] == 16
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in worker["env"]


@pytest.fixture
def bucket(monkeypatch):
    """A URL on an S3 server in this process."""
    s3fs = pytest.importorskip("s3fs", reason="pip install s3fs moto[server]")
    server = pytest.importorskip("moto.server", reason="pip install s3fs moto[server]").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/ddpmlab"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_the_store_on_s3(bucket):
    store = Store(bucket)
    assert store.get("train", "a") is None
    assert not store.has("train", "a")
    store.put("train", "a", {"seconds": 1.5}, {"x": torch.arange(3.0)})
    assert store.put("train", "a", {"seconds": 9.0}).note == store.note("train", "a") == {"seconds": 1.5}
    assert [(kind, key) for kind, key, _ in store.entries()] == [("train", "a")]
    store._fs.pipe_file(store.path("train", "a"), b"damaged")
    with pytest.warns(DamagedEntryWarning, match="is damaged; computing it again"):
        assert store.get("train", "a") is None
    assert store.put("train", "a", {"seconds": 2.0}).note == {"seconds": 2.0}
    store.delete("train", "a")
    store.delete("train", "a")
    assert not store.has("train", "a")
    store.clear()
