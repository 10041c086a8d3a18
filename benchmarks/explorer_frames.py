"""How fast the explorer's picture is: milliseconds a frame and frames a second of playback, in a headless Chromium.

`python benchmarks/explorer_frames.py [points]` opens a page from a file with two sides, the target and paths.
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import ARGUMENTS, executable
from playwright.sync_api import sync_playwright

from ddpmlab.explorer import document

FRAME = """(count) => {
  const explorer = document.querySelector('.ddx').explorer, times = [];
  for (let i = 0; i < count; i++) {
    explorer.state.progress = i / count;
    const start = performance.now();
    explorer.draw();
    times.push(performance.now() - start);
  }
  return times;
}"""


def main(points: int) -> None:
    """Print milliseconds a frame and frames a second for two moons and the helix."""
    with sync_playwright() as runtime, tempfile.TemporaryDirectory() as folder:
        browser = runtime.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        for law, paths in (("two_moons", "picked"), ("helix", "picked"), ("two_moons", "many")):
            path = Path(folder) / "page.html"
            path.write_text(document(law=law, n=points, paths=paths), encoding="utf-8")
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_function("document.querySelector('.ddx')?.explorer?.settled", timeout=120_000)
            times = page.evaluate(FRAME, 60)
            page.evaluate("document.querySelector('.ddx').explorer.state.progress = 0")
            before = page.evaluate("document.querySelector('.ddx').explorer.frames")
            page.get_by_role("button", name="To noise").click()
            page.get_by_role("button", name="Play", exact=True).click()
            page.wait_for_timeout(3_000)
            rate = (page.evaluate("document.querySelector('.ddx').explorer.frames") - before) / 3
            median = statistics.median(times)
            print(
                f"{law}, {points:,} points a side, paths {paths}: {median:.1f} ms a frame, {rate:.0f} frames a second"
            )
            page.close()
        browser.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
