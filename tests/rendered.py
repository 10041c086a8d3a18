"""The book, built once for all tests of its pages."""

from pathlib import Path

import pytest

try:
    from ddpmlab.book.pages import render
except ImportError:
    from ddpmlab.batch import render

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the committed book, rendered."""
    return render(ROOT / "book", ROOT / "_config.yml", tmp_path_factory.mktemp("site")).parent
