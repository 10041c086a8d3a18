import os
from pathlib import Path

import pytest
import torch
from browser import chromium, open_page  # noqa: F401
from hypothesis import settings
from rendered import site  # noqa: F401

ROOT = Path(__file__).parent.parent
settings.register_profile("ddpmlab", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("ddpmlab")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing that a test computes reaches the user's cache."""
    os.environ["DDPMLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
