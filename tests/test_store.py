"""The store: first writer wins, damaged entries are named, any fsspec URL."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ddpmlab.lab import store as stores
from ddpmlab.lab.store import DamagedEntryWarning, Store

ARRAYS = {"x": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "mask": torch.tensor([True, False])}


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    found = Store(tmp_path / "store") if request.param == "folder" else Store(f"memory://{tmp_path.name}")
    yield found
    found.clear()


def test_what_is_put_comes_back_and_the_first_writer_wins(store):
    assert store.get("train", "a") is None
    assert not store.has("train", "a")
    store.put("train", "a", {"seconds": 1.5}, ARRAYS)
    second = store.put("train", "a", {"seconds": 9.0}, {"x": torch.zeros(1)})
    entry = store.get("train", "a")
    assert entry.note == second.note == {"seconds": 1.5}
    assert all(torch.equal(entry.tensors[k], v) and entry.tensors[k].dtype == v.dtype for k, v in ARRAYS.items())
    assert store.note("train", "a") == {"seconds": 1.5}
    assert [(kind, key) for kind, key, size in store.entries() if size > 50] == [("train", "a")]
    store.delete("train", "a")
    store.delete("train", "a")
    assert store.get("train", "a") is None


def test_of_two_writers_of_a_remote_store_at_once_the_first_wins(tmp_path, monkeypatch):
    store = Store(f"memory://{tmp_path.name}")
    store.put("train", "c", {"seconds": 1.5})
    seen = iter([False])  # the second looks before the first has written
    monkeypatch.setattr(store._fs, "exists", lambda path: next(seen, True))
    assert store.put("train", "c", {"seconds": 9.0}).note == {"seconds": 1.5}
    monkeypatch.undo()
    store.clear()


@pytest.mark.parametrize("position", [4, 20, -10])
def test_a_damaged_entry_is_named_and_written_again(store, position):
    store.put("score", "b", {"values": {"emd_128": 1.0}}, ARRAYS)
    path = store.path("score", "b")
    raw = bytearray(store._fs.cat_file(path))
    raw[position] ^= 1
    store._fs.pipe_file(path, bytes(raw))
    with pytest.warns(DamagedEntryWarning, match=r"entry .*score/b\.safetensors is damaged; computing it again"):
        assert store.get("score", "b") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.put("score", "b", {"values": {"emd_128": 2.0}}).note["values"] == {"emd_128": 2.0}


def test_a_full_disk_leaves_nothing_under_the_entrys_name(tmp_path, monkeypatch):
    store = Store(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put("train", "a", {}, ARRAYS)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


WRITER = """
import sys, torch
from ddpmlab.lab.store import Store
store = Store(sys.argv[1])
for i in range(60):
    entry = store.put("train", f"k{i}", {"by": sys.argv[2]}, {"x": torch.full((1000,), float(i))})
    assert float(entry.tensors["x"][0]) == i
"""


def test_processes_that_write_the_same_keys_agree(tmp_path):
    root = Path(__file__).parent.parent
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "s"), str(i)], cwd=root, stderr=subprocess.PIPE)
        for i in range(3)
    ]
    for writer in writers:
        assert writer.communicate()[1] == b""
        assert writer.returncode == 0
    store = Store(tmp_path / "s")
    assert len(list(store.entries())) == 60
    assert not [p for p in (tmp_path / "s").rglob(".*") if p.is_file()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(store.get("train", f"k{i}") is not None for i in range(60))


def test_a_relative_folder_is_beside_where_the_process_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPMLAB_CACHE", "mycache")
    assert stores.default_url() == str(tmp_path / "mycache")
    monkeypatch.setenv("DDPMLAB_CACHE", "memory://there")
    assert stores.default_url() == "memory://there"
