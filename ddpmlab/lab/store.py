"""The store: results by the content of what made them, one file an entry, on a folder or any fsspec URL.

An entry is a safetensors file: arrays, and in its header their JSON note and a checksum of both. It is written under
another name and appears whole; the first writer wins, nobody deletes what another may be writing, and a damaged entry
is named and written again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pooch
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ddpmlab.files import read_header

KINDS = ("train", "sample", "score", "reference", "truth", "table")
_SUFFIX = ".safetensors"


class DamagedEntryWarning(UserWarning):
    """An entry failed its checksum and is computed again."""


@dataclass(frozen=True)
class Entry:
    """What was computed: a JSON note and arrays."""

    note: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def _checksum(note: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.flatten().view(dtype=torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()


def _encode(entry: Entry) -> bytes:
    note = json.dumps(entry.note, sort_keys=True, default=str)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in entry.tensors.items()}
    return save(tensors, {"note": note, "sha256": _checksum(note, tensors)})


def _decode(raw: bytes) -> Entry | None:
    """The entry in a file's bytes, or None if it is damaged."""
    try:
        header, tensors = read_header(raw), load(raw)
        if _checksum(header["note"], tensors) != header["sha256"]:
            return None
        return Entry(json.loads(header["note"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


class Store:
    """Results on a folder or any fsspec URL.

    Args:
        url: a path, or a URL such as `s3://bucket/ddpmlab` or `memory://ddpmlab`.
    """

    def __init__(self, url: str | Path):
        self.url = str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())
        self._fs, self._root = fsspec.core.url_to_fs(self.url)
        self._local = isinstance(self._fs, LocalFileSystem)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, kind: str, key: str) -> str:
        """Where an entry lies, in the store's file system."""
        return f"{self._root}/{kind}/{key}{_SUFFIX}"

    def has(self, kind: str, key: str) -> bool:
        """Whether there is an entry; it is not read."""
        return self._fs.exists(self.path(kind, key))

    def get(self, kind: str, key: str) -> Entry | None:
        """An entry, or None if there is none or it is damaged (which is said)."""
        path = self.path(kind, key)
        try:
            raw = self._fs.cat_file(path)
        except FileNotFoundError:
            return None
        entry = _decode(raw)
        if entry is None:
            warnings.warn(f"entry {path} is damaged; computing it again", DamagedEntryWarning, 2)
        return entry

    def note(self, kind: str, key: str) -> dict[str, Any] | None:
        """The note of an entry, without reading its arrays or checking them; None if there is no readable entry."""
        try:
            with self._fs.open(self.path(kind, key), "rb") as file:
                start = file.read(8)
                return json.loads(read_header(start + file.read(int.from_bytes(start, "little")))["note"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def put(self, kind: str, key: str, note: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Entry:
        """Write an entry unless a sound one is there; returns the one that is there afterwards.

        Raises:
            OSError: it cannot be written, a full disk for one; nothing is left under the entry's name.
        """
        raw, path = _encode(Entry(note, dict(tensors or {}))), self.path(kind, key)
        if self._local:
            self._put_local(Path(path), raw)
        else:
            self._put_remote(path, raw)
        entry = self.get(kind, key)
        if entry is None:
            raise OSError(f"entry {path} could not be read back after it was written; is the store writable and sound?")
        return entry

    def _put_remote(self, path: str, raw: bytes) -> None:
        mode = "create"
        if self._fs.exists(path):
            if _decode(self._fs.cat_file(path)) is not None:
                return
            mode = "overwrite"
        self._fs.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            self._fs.pipe_file(path, raw, mode=mode)  # one write: object stores show a file whole or not at all
        except OSError:
            if not self._fs.exists(path):
                raise  # else another was first

    @staticmethod
    def _put_local(path: Path, raw: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=_SUFFIX)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            try:
                os.link(temporary, path)  # fails if another was first
            except FileExistsError:
                if _decode(path.read_bytes()) is None:
                    os.replace(temporary, path)
            except OSError:  # a file system without hard links
                if not path.exists() or _decode(path.read_bytes()) is None:
                    os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """`(kind, key, bytes)` of everything that is there."""
        for kind in KINDS:
            try:
                found = self._fs.ls(f"{self._root}/{kind}", detail=True)
            except FileNotFoundError:
                continue
            for item in found:
                name = os.path.basename(item["name"])
                if name.endswith(_SUFFIX) and not name.startswith("."):
                    yield kind, name.removesuffix(_SUFFIX), int(item["size"])

    def delete(self, kind: str, key: str) -> None:
        """Remove an entry; nothing happens if another was faster."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.path(kind, key))

    def checkpoint(self, key: str) -> Path:
        """Where a training that is under way keeps its state: in the store's folder, else in the user's cache."""
        root = Path(self._root) if self._local else Path(pooch.os_cache("ddpmlab")) / hashlib.sha256(
            self.url.encode()
        ).hexdigest()[:12]  # fmt: skip
        folder = root / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{key}{_SUFFIX}"

    def clear(self) -> None:
        """Remove the whole store."""
        if self._local:
            shutil.rmtree(self._root, ignore_errors=True)
        elif self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)


def default_url() -> str:
    """`DDPMLAB_CACHE` (a relative path is beside where this process stands), or the user's cache folder."""
    return Store(os.environ.get("DDPMLAB_CACHE") or pooch.os_cache("ddpmlab")).url


def default() -> Store:
    """The store that `default_url` names."""
    return Store(default_url())
