"""The book, built once for all tests of its pages, also where several processes share the tests."""

import fcntl
import os
from pathlib import Path

import pytest

from ddpmlab.book.pages import render

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the committed book, rendered (`$DDPMLAB_SITE` if set, to try a test without waiting for that)."""
    if os.environ.get("DDPMLAB_SITE"):
        return Path(os.environ["DDPMLAB_SITE"])
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "site"
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits and finds it done
        if not done.exists():
            done.write_text(str(render(ROOT / "book", ROOT / "_config.yml", folder).parent))
    return Path(done.read_text())
