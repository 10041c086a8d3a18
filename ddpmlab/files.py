"""Files that are never half-written: write under a temporary name, then move into place; and read in one piece.

And what git knows of the folder they lie in.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Literal


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success move it there, on error remove it.

    The temporary name keeps the suffix, which some writers look at.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder; empty where there is no git, no checkout, or no answer."""
    if shutil.which("git") is None:
        return ""
    answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def read_header(raw: bytes) -> dict[str, str]:
    """The metadata in the bytes of a safetensors file. Raises KeyError or ValueError where there is none."""
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


@contextmanager
def safe_open(path: Path, framework: Literal["pt"]) -> Iterator[SimpleNamespace]:
    """As safetensors' function of that name, for a file that another process may be replacing.

    That one opens the path twice, for the header and for the tensors, and fails if the file was moved away in between;
    this one reads it once, so that header and tensors are of one file.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: it is damaged, or not a safetensors file.
    """
    from safetensors.torch import load

    raw = Path(path).read_bytes()
    tensors = load(raw)
    try:
        header = read_header(raw)
    except KeyError:
        header = {}
    yield SimpleNamespace(metadata=lambda: header, keys=tensors.keys, get_tensor=tensors.__getitem__)
