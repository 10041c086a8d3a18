"""The book, built once for all tests of its pages, whichever process runs them."""

import fcntl
import os
from pathlib import Path

import pytest

from ddpmlab.book.pages import render

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the committed book, rendered; read it only."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / "site"
    with open(shared / "site.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            render(ROOT / "book", ROOT / "_config.yml", folder)
            (folder / "done").touch()
    return folder / "_build" / "html"
