"""Batch runs: manifest -> papermill -> pages.

A study runs in a folder of its own and a process of its own. Only when every cell ran, no output is an error and the
tables are there do its page and tables move to the book: what is under a final name is complete.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import nbformat
import pandas as pd
import papermill
import yaml

from ddpmlab.files import atomic

PROFILES = ("quick", "full")
CELL_TIMEOUT = 6 * 3_600
_merging = Lock()
_WIDGET = "application/vnd.jupyter.widget-view+json"


class StudyError(RuntimeError):
    """A notebook did not run to its end; nothing in the book was changed."""


def read_manifest(notebooks: Path) -> dict[str, dict[str, Any]]:
    """The studies of `studies.yml`: name -> profile -> parameters, in the order of the file."""
    manifest = yaml.safe_load((notebooks / "studies.yml").read_text(encoding="utf-8"))
    for study, profiles in manifest.items():
        if set(profiles) != set(PROFILES):
            raise ValueError(f"studies.yml: {study} has profiles {sorted(profiles)}; need {', '.join(PROFILES)}")
        if not (notebooks / f"{study}.ipynb").exists():
            raise ValueError(f"studies.yml: {study} has no notebook {study}.ipynb in {notebooks}")
    return manifest


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook's `parameters` cell does not set.

    Raises:
        ValueError: the notebook has no such cell, or a name is not in it (the message lists those that are).
    """
    known = papermill.inspect_notebook(str(notebook))
    if not known:
        raise ValueError(f"{notebook} has no cell tagged 'parameters'; papermill's values would be overwritten")
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known))}")


def _check_and_clean(path: Path) -> nbformat.NotebookNode:
    """The executed notebook without traces of this machine, after checking that every cell ran and none failed."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                raise StudyError(f"{path.stem}: {output.ename}: {output.evalue}")
        if cell.source.strip() and cell.execution_count is None:
            raise StudyError(
                f"{path.stem}: a cell did not run (the kernel died, or it ran out of time):\n{cell.source}"
            )
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and _WIDGET not in o.get("data", {})]
        if "parameters" in cell.metadata.get("tags", []):  # the defaults; those that ran are in the cell after it
            cell.metadata.tags = [*cell.metadata.tags, "hide-input"]
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    return notebook


def _commit() -> str:
    answer = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def run_study(study: str, profile: str, parameters: dict[str, Any], notebooks: Path, book: Path) -> float:
    """Run one notebook and put its page, tables and provenance into the book; returns the seconds it took.

    Args:
        study: name of a notebook of `notebooks`.
        profile: which profile the parameters are; recorded in the provenance and shown on the page.
        parameters: papermill parameters; unknown names are an error.
        notebooks: folder of the templates.
        book: folder of the book's sources; `studies/` and `results/` below it are written.

    Raises:
        StudyError: a cell failed, the kernel died, time ran out, or a table is missing.
    """
    template = notebooks / f"{study}.ipynb"
    parameters = {**parameters, "profile": profile}
    check_parameters(template, parameters)
    start = perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"ddpmlab-{study}-") as name:
        folder = Path(name)
        page = folder / f"{study}.ipynb"
        encoded = base64.b64encode(yaml.safe_dump(parameters).encode()).decode()
        command = [
            *(sys.executable, "-m", "papermill", str(template.resolve()), str(page), "--cwd", str(folder)),
            *("-k", "python3", "-b", encoded, "--no-progress-bar", "--stderr-file", "/dev/stderr"),
            *("--execution-timeout", str(CELL_TIMEOUT)),
        ]
        # the environment's own Python first, so that the kernel is this one
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        # runs share the cores as processes; threads of the libraries inside each would only get in their way
        environment.setdefault("OMP_NUM_THREADS", "1")
        # by a pipe: papermill opens what it is told to write to, and would empty a log file
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            for chunk in iter(lambda: process.stderr.read1(4_096), b""):
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
        if page.exists():
            notebook = _check_and_clean(page)
        if process.returncode != 0 or not page.exists():
            raise StudyError(f"{study}: papermill stopped with exit code {process.returncode}; see its log above")
        results = folder / "results"
        if not (results / f"{study}.csv").exists():
            raise StudyError(f"{study}: the notebook wrote no results/{study}.csv")
        seconds = perf_counter() - start
        with _merging:
            _merge(study, profile, seconds, results, book / "results")
        with atomic(book / "studies" / f"{study}.ipynb") as temporary:
            nbformat.write(notebook, temporary)
    return seconds


def _merge(study: str, profile: str, seconds: float, produced: Path, results: Path) -> None:
    """Move a run's files into the book's results; claims and provenance join those of the other pages."""
    claims, note = produced / f"{study}.claims.csv", produced / f"{study}.environment.json"
    environment = json.loads(note.read_text()) if note.exists() else {}
    for path in sorted(produced.iterdir()):
        if path not in (claims, note):
            with atomic(results / path.name) as temporary:
                shutil.copyfile(path, temporary)
    if claims.exists():
        known = results / "claims.csv"
        others = pd.read_csv(known, dtype=str) if known.exists() else pd.DataFrame()
        others = others[others["page"] != study] if len(others) else others
        merged = pd.concat([others, pd.read_csv(claims, dtype=str)], ignore_index=True)
        with atomic(known) as temporary:
            merged.sort_values("id").to_csv(temporary, index=False)
    known = results / "provenance.json"
    provenance = json.loads(known.read_text()) if known.exists() else {}
    provenance[study] = {"profile": profile, "commit": _commit(), **environment, "seconds": round(seconds, 1)}
    with atomic(known) as temporary:
        temporary.write_text(json.dumps(dict(sorted(provenance.items())), indent=1) + "\n")


def render(book: Path, config: Path, output: Path) -> Path:
    """Render the book's pages as they are, running nothing, and return the path of `index.html`.

    Raises:
        StudyError: the book has warnings; they are printed.
    """
    book, config, output = (path.resolve() for path in (book, config, output))  # it changes folder on its way
    command = [
        *(sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(book)),
        *("--config", str(config), "--toc", str(book / "_toc.yml"), "--path-output", str(output)),
        *("--all", "-W", "-n", "--keep-going", "-q"),
    ]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
        raise StudyError("the book did not build without warnings; see above")
    return output / "_build" / "html" / "index.html"


def build_book(profile: str, root: Path, studies: Sequence[str] = ()) -> Path:
    """Run the studies at a profile, render the book, and return the path of its `index.html`.

    The full profile writes its pages and tables into `book/`, to be committed; the quick one into a copy under
    `_build/quick/`, so that it never replaces what is published.
    """
    manifest = read_manifest(root / "notebooks")
    unknown = sorted(set(studies) - set(manifest))
    if unknown:
        raise ValueError(f"unknown study {', '.join(unknown)}; choose from: {', '.join(manifest)}")
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose one of: {', '.join(PROFILES)}")
    book, output = root / "book", root / "_build"
    if profile == "quick":
        output = root / "_build" / "quick"
        shutil.rmtree(output / "book", ignore_errors=True)
        book = Path(shutil.copytree(root / "book", output / "book"))

    def run(study: str) -> None:
        print(f"running {study} at the {profile} profile", flush=True)
        seconds = run_study(study, profile, manifest[study][profile] or {}, root / "notebooks", book)
        print(f"{study} done in {seconds:.0f} s", flush=True)

    # two at a time: while one starts its kernel or draws, the other trains
    with ThreadPoolExecutor(2) as executor:
        runs = [executor.submit(run, study) for study in studies or manifest]
        try:
            wait(runs, return_when=FIRST_EXCEPTION)
        finally:  # after an error or an interrupt start no other
            for later in runs:
                later.cancel()
    for finished in runs:
        finished.result()
    return render(book, root / "_config.yml", output)
