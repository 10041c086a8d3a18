"""A headless Chromium for tests of pages, and a record of what it complains about and asks for.

Use the fixtures through `conftest.py`: `chromium` is one browser a test module, `open_page` opens pages in it and fails
the test at its end if one of them logged an error or asked for something outside itself.
"""

import http.server
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def executable() -> str | None:
    """The path of a Chromium: `$CHROMIUM`, or the first of the usual names on the path, or None."""
    named = os.environ.get("CHROMIUM")
    found = [shutil.which(name) for name in ((named,) if named else NAMES)]
    return next((path for path in found if path), None)


class Record:
    """What one page logged as an error, and what it asked for beyond its own origin."""

    def __init__(self, page):
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        self._page = page

    def outside(self) -> list[str]:
        """Requests that left the page's own file, server, Blobs and data URLs."""
        home = urlsplit(self._page.url)
        return [
            url
            for url in self.requests
            if (parts := urlsplit(url)).scheme not in ("file", "blob", "data", "about")
            and (parts.scheme, parts.netloc) != (home.scheme, home.netloc)
        ]


@contextmanager
def served(folder: Path):
    """The address of a server on this machine that gives out a folder, while the block runs."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def chromium():
    """A running headless Chromium (playwright's `Browser`); a skip, with the reason, where there is none."""
    path = executable()
    if path is None:
        pytest.skip("no Chromium found: install one (Debian: apt install chromium) or set CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'ddpmlab[dev]'")
    # one a module, not one a session: its event loop would stay in the way of other tests that run one
    with playwright.sync_playwright() as runtime:
        browser = runtime.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """A function that opens an address and returns the page; `page.record` is its `Record`.

    `quiet=False` lets a page log errors and ask outside. Other options are those of playwright's `new_context`.
    """
    opened = []

    def opener(address: str | Path, quiet: bool = True, wait: str | None = None, script: str | None = None, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        page.set_default_timeout(60_000)  # of a machine under load
        page.record = Record(page)
        if script:
            page.add_init_script(script)
        opened.append((context, page, quiet))
        page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
        if wait:
            page.wait_for_selector(wait)
        return page

    yield opener
    complaints = [
        (page.url, page.record.errors, page.record.outside())
        for _, page, quiet in opened
        if quiet and (page.record.errors or page.record.outside())
    ]
    for context, *_ in opened:
        context.close()
    assert not complaints
