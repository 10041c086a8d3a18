"""Batch runs: manifest -> runs into the store -> papermill -> pages.

First the runs that the studies need are computed, all studies' together, over any executor. Then each notebook runs in
a folder and a process of its own and reads them. Only when every cell ran, no output is an error and the tables are
there do its page, tables, claims and provenance move to the book, together or not at all; what failed is kept beside.
"""

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import nbformat
import pandas as pd
import yaml

from ddpmlab import studies
from ddpmlab.book import cost
from ddpmlab.data import DataUnavailable, FashionMNIST, fashion_mnist
from ddpmlab.files import atomic, git
from ddpmlab.lab import source, stages
from ddpmlab.lab import store as stores

PROFILES = ("quick", "colab", "full")
TIME_LIMIT = 6 * 3_600
_READ = "read.txt"
_WIDGET = "application/vnd.jupyter.widget-view+json"


class StudyError(RuntimeError):
    """A notebook did not run to its end; nothing in the book was changed."""


# --- the project -----------------------------------------------------------------------------------------------


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was compiled


@dataclass(frozen=True)
class Project:
    """A checkout: its templates, its book, and where what is built lies.

    Args:
        root: folder with `notebooks/`, `book/` and `_config.yml`.
    """

    root: Path

    @property
    def notebooks(self) -> Path:
        """Folder of the templates and of `studies.yml`."""
        return self.root / "notebooks"

    @property
    def build(self) -> Path:
        """Folder of everything that is built; not committed."""
        return self.root / "_build"

    def book(self, profile: str) -> Path:
        """Sources of the book that a profile's pages go to: the committed ones, or a copy for a smaller profile."""
        if profile == "full":
            return self.root / "book"
        return self.build / profile / "book"

    def provenance(self, profile: str) -> dict[str, dict[str, Any]]:
        """Study -> what its page at a profile was made with."""
        path = self.book(profile) / "results" / "provenance.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def manifest(self) -> dict[str, dict[str, Any]]:
        """`studies.yml`: study -> parameters of the profiles `full` and `colab`, and options, in the order of the book.

        Raises:
            ValueError: a study without a notebook, or with an unknown option.
        """
        manifest = yaml.load((self.notebooks / "studies.yml").read_text(encoding="utf-8"), _YAML)
        for study, entry in manifest.items():
            unknown = set(entry) - {"full", "colab", "time_limit", "needs"}
            if unknown or "full" not in entry:
                raise ValueError(
                    f"studies.yml: {study} has {sorted(entry)}; need full, and may have colab, time_limit, needs"
                )
            limit = entry.get("time_limit", TIME_LIMIT)
            if isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0:
                raise ValueError(f"studies.yml: {study} has time_limit = {limit!r}; give seconds above 0")
            if not (self.notebooks / f"{study}.ipynb").exists():
                raise ValueError(f"studies.yml: {study} has no notebook {study}.ipynb in {self.notebooks}")
        return manifest

    def defaults(self, study: str) -> dict[str, Any]:
        """What a notebook's cell tagged `parameters` sets: the quick profile.

        Raises:
            ValueError: it has no such cell, or the cell holds more than constants.
        """
        path = self.notebooks / f"{study}.ipynb"
        for cell in nbformat.read(path, as_version=4).cells:
            if "parameters" in cell.metadata.get("tags", []):
                found = {}
                for statement in ast.parse(cell.source).body:
                    try:
                        (target,) = statement.targets
                        found[target.id] = ast.literal_eval(statement.value)
                    except (AttributeError, ValueError) as error:
                        raise ValueError(f"{path}: its parameters cell holds more than names and constants") from error
                return found
        raise ValueError(f"{path} has no cell tagged 'parameters'; papermill's values would be overwritten")

    def parameters(self, study: str, profile: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Parameters of a study at a profile, checked in name and type.

        Raises:
            ValueError: an unknown profile or parameter, a value of another type than the notebook's default, a number
                below 0 where the default is above, or nothing to count (`n_...` below 1).
        """
        if profile not in PROFILES:
            raise ValueError(f"unknown profile {profile!r}; choose one of: {', '.join(PROFILES)}")
        known = self.defaults(study)
        chosen = dict(self.manifest()[study].get(profile) or {})
        chosen |= overrides or {}
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise ValueError(f"{study}.ipynb has no parameter {', '.join(unknown)}; it has: {', '.join(sorted(known))}")
        for name, value in chosen.items():
            default, truth = known[name], isinstance(value, bool)
            fits = isinstance(value, type(default)) and truth == isinstance(default, bool)
            number = isinstance(default, float) and isinstance(value, int) and not truth
            if default is not None and value is not None and not fits and not number:
                raise ValueError(
                    f"{study}: parameter {name} = {value!r} is {type(value).__name__}; it needs "
                    f"{type(default).__name__}, such as {default!r}"
                )
            least = 1 if name.startswith("n_") else 0
            counted = isinstance(default, int | float) and not isinstance(default, bool) and default >= least
            if counted and value is not None and value < least:
                raise ValueError(
                    f"{study}: parameter {name} = {value!r}; it needs at least {least}, such as {default!r}"
                )
        return known | chosen | {"profile": profile}

    def study(self, name: str, parameters: Mapping[str, Any]) -> "studies.Study | None":
        """The study behind a notebook, made from those of its parameters that it has; None if it has no runs."""
        if name not in studies.names():
            return None
        accepted = studies.parameters(name)
        return studies.make(name, **{k: v for k, v in parameters.items() if k in accepted})

    def commit(self) -> str:
        """The commit of the checkout, `-dirty` if code or templates (not pages) differ from it."""
        commit = git(self.root, "rev-parse", "--short=12", "HEAD")
        changed = git(self.root, "status", "--porcelain", "--", "ddpmlab", "notebooks")
        return (commit or "unknown") + ("-dirty" if commit and changed else "")


# --- freshness -------------------------------------------------------------------------------------------------


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _code(template: Path) -> list[str]:
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [cell.source for cell in nbformat.read(template, as_version=4).cells if cell.cell_type == "code"]
    return [TransformerManager().transform_cell(source) for source in cells]


def cells_of(template: Path) -> dict[str, str]:
    """Hashes of a template: `template`, the cells that run, and `text`, these, their captions and the prose between."""
    cells = [(c.cell_type, c.source, c.metadata) for c in nbformat.read(template, as_version=4).cells]
    return {"template": _digest([cell[:2] for cell in cells if cell[0] != "markdown"]), "text": _digest(cells)}


def fingerprint(project: Project, study: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What a page depends on, by part: template, its text, parameters, code and data (the keys of its runs)."""
    template = project.notebooks / f"{study}.ipynb"
    made = project.study(study, parameters)
    keys = []
    for run in made.runs if made else []:
        keys.append(stages.sample_key(run.config, run.step))
        keys += [stages.score_key(run.config, run.step, metric) for metric in run.config.metrics]

    return {
        **cells_of(template),
        "parameters": _digest({k: v for k, v in parameters.items() if k != "results"}),
        "code": _digest([sorted(keys), source.script_hash(_code(template), dict(parameters))]),
    }


@dataclass(frozen=True)
class PageStatus:
    """State of a page: `fresh`, `stale`, `missing`, `running` or `failed`, why, and the state of its runs."""

    study: str
    state: str
    why: str
    provenance: dict[str, Any]
    runs: "studies.Status | None"


def _note(project: Project, profile: str, study: str) -> Path:
    return project.build / "state" / profile / f"{study}.json"


def _write_json(path: Path, value: Any) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def time_limit(project: Project, study: str) -> float:
    """Seconds that a study's notebook may take, and each of its trainings."""
    return project.manifest()[study].get("time_limit", TIME_LIMIT)


def status(
    project: Project,
    study: str,
    profile: str,
    store: stores.Store | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> PageStatus:
    """State of one page at a profile, with some parameters replaced by `overrides`, and of its runs."""
    found = state(project, study, profile, overrides)
    made = project.study(study, project.parameters(study, profile, overrides))
    if made is None or found.why == _NO_DATA:
        return found
    try:
        return replace(found, runs=made.status(store))
    except DataUnavailable as error:
        return PageStatus(study, "missing", str(error), {}, None)


TEXT_CHANGED = "text changed"
_NO_DATA = "its data are not here: `ddpmlab data` fetches them"


def state(project: Project, study: str, profile: str, overrides: Mapping[str, Any] | None = None) -> PageStatus:
    """State of one page as `status` tells it, without a look at its runs."""
    parameters = project.parameters(study, profile, overrides)
    made = project.study(study, parameters)
    needs = any(run.config.dataset["name"] == FashionMNIST.name for run in made.runs) if made else False
    if needs and not fashion_mnist.available():  # a look downloads nothing
        return PageStatus(study, "missing", _NO_DATA, {}, None)
    recover(project.book(profile))
    known = project.provenance(profile).get(study, {})
    note = _note(project, profile, study)
    last = json.loads(note.read_text()) if note.exists() else {}
    if last.get("state") == "running" and Path(f"/proc/{last.get('pid')}").exists():
        return PageStatus(study, "running", f"since {last['started']}", known, None)
    if last.get("state") in ("failed", "running"):
        return PageStatus(study, "failed", last.get("error", "it was interrupted"), known, None)
    page = project.book(profile) / "studies" / f"{study}.ipynb"
    if not page.exists() or known.get("profile") != profile:
        return PageStatus(study, "missing", f"no page at the {profile} profile", known, None)
    now = fingerprint(project, study, parameters)
    changed = [part for part, digest in now.items() if known.get("fingerprint", {}).get(part) != digest]
    if "template" in changed and "text" in changed:
        changed.remove("text")  # it covers the cells that run
    if changed:
        return PageStatus(study, "stale", f"{' and '.join(changed)} changed", known, None)
    return PageStatus(study, "fresh", "", known, None)


# --- publishing ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(book: Path) -> Iterator[None]:
    """One publisher at a time, over processes."""
    book.mkdir(parents=True, exist_ok=True)
    with open(book / ".publishing.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def recover(book: Path) -> None:
    """Finish what a killed publisher had complete, and drop what it had not."""
    if not any(book.glob(".publishing-*/")):
        return
    with _locked(book):
        for folder in book.glob(".publishing-*/"):
            if (folder / "ready").exists():
                _move(folder, book)
            shutil.rmtree(folder, ignore_errors=True)


def _move(staged: Path, book: Path) -> None:
    for path in sorted(p for p in staged.rglob("*") if p.is_file() and p.name != "ready"):
        target = book / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def publish(
    study: str, page: nbformat.NotebookNode, produced: Path | None, book: Path, provenance: dict[str, Any]
) -> None:
    """Put a run's page, tables, claims and provenance into the book, together; without `produced`, no tables.

    They are first complete in a folder of their own that is then marked ready; from there a killed publisher's work is
    finished by `recover`.
    """
    recover(book)
    with _locked(book):
        staged = Path(tempfile.mkdtemp(prefix=".publishing-", dir=book))
        try:
            results = staged / "results"
            results.mkdir()
            (staged / "studies").mkdir()
            nbformat.write(page, staged / "studies" / f"{study}.ipynb")
            if produced is not None:
                provenance = {**_stage_tables(study, produced, results, book), **provenance}
            known = book / "results" / "provenance.json"
            everything = json.loads(known.read_text()) if known.exists() else {}
            everything[study] = provenance
            (results / "provenance.json").write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n")
            (staged / "ready").touch()
            _move(staged, book)
        finally:
            if not (staged / "ready").exists() or not any(p.is_file() for p in staged.glob("*/*")):
                shutil.rmtree(staged, ignore_errors=True)  # what is complete and not moved is left to `recover`


def _stage_tables(study: str, produced: Path, results: Path, book: Path) -> dict[str, str]:
    """Copy what a run wrote to `results`, its claims among the book's others; returns its environment."""
    claims, note = produced / f"{study}.claims.csv", produced / f"{study}.environment.json"
    for path in sorted(produced.iterdir()):
        if path not in (claims, note):
            shutil.copyfile(path, results / path.name)
    known = book / "results" / "claims.csv"
    others = pd.read_csv(known, dtype=str) if known.exists() else pd.DataFrame()
    others = others[others["page"] != study] if len(others) else others
    own = [pd.read_csv(claims, dtype=str)] if claims.exists() else []
    merged = pd.concat([others, *own], ignore_index=True)
    if len(merged):
        merged.sort_values("id").to_csv(results / "claims.csv", index=False)
    elif known.exists():
        known.unlink()
    return json.loads(note.read_text()) if note.exists() else {}


def refresh_text(project: Project, study: str, profile: str) -> bool:
    """Put the template's prose and captions into a page that is stale for nothing else; whether it did so.

    Nothing runs: what was computed, and the record of it, stay as they are.
    """
    found = state(project, study, profile)
    if (found.state, found.why) != ("stale", TEXT_CHANGED):
        return False
    book, template = project.book(profile), project.notebooks / f"{study}.ipynb"
    page = nbformat.read(book / "studies" / f"{study}.ipynb", as_version=4)
    ran, cells = iter([cell for cell in page.cells if cell.cell_type != "markdown"]), []
    for cell in nbformat.read(template, as_version=4).cells:
        if cell.cell_type == "markdown":
            cells.append(cell)
            continue
        cells.append(next(ran))
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(next(ran))  # the values that were given
        else:
            cells[-1].metadata.update(cell.metadata)  # captions and alternative texts
    page.cells = cells
    mark = {**found.provenance["fingerprint"], **cells_of(template)}
    publish(study, page, None, book, {**found.provenance, "fingerprint": mark})
    return True


# --- one notebook ----------------------------------------------------------------------------------------------


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
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and not _only_a_widget(o)]
        if "parameters" in cell.metadata.get("tags", []):  # the defaults; those that ran are in the cell after it
            cell.metadata.tags = [*cell.metadata.tags, "hide-input"]
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    return notebook


def _only_a_widget(output: Any) -> bool:
    """Whether an output is a live widget; one that also has an HTML form keeps that."""
    found = output.get("data", {})
    if _WIDGET in found and "text/html" in found:
        del found[_WIDGET]
    return _WIDGET in found


def _environment() -> dict[str, str]:
    """What the notebook's process inherits: this environment's Python first, absolute paths, one thread a process."""
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    found["DDPMLAB_CACHE"] = stores.default_url()
    for name in ("DDPMLAB_DATA", "PYTHONPATH"):
        if found.get(name):
            found[name] = os.pathsep.join(str(Path(p).absolute()) for p in found[name].split(os.pathsep))
    found.setdefault("OMP_NUM_THREADS", "1")
    return found


def run_study(
    project: Project,
    study: str,
    profile: str,
    parameters: Mapping[str, Any],
    book: Path | None = None,
    log: Path | None = None,
    commit: str | None = None,
) -> float:
    """Run one notebook and put its page, tables and provenance into the book; returns the seconds it took.

    Args:
        project: the checkout.
        study: name of a notebook.
        profile: which profile the parameters are; recorded in the provenance and shown on the page.
        parameters: all of the notebook's, see `Project.parameters`.
        book: sources of the book to put the page into; the profile's if omitted.
        log: file for the notebook's messages; standard error if omitted.
        commit: of the project when the run began.

    Raises:
        StudyError: a cell failed, the kernel died, time ran out, or a table is missing. The notebook as far as it got
            is kept under `_build/failed/`, and the message says where.
    """
    template, book = project.notebooks / f"{study}.ipynb", book or project.book(profile)
    limit = time_limit(project, study)
    commit, start = commit or project.commit(), perf_counter()
    state = {"state": "running", "pid": os.getpid(), "started": _now(), "commit": commit}
    _write_json(_note(project, profile, study), state)
    with tempfile.TemporaryDirectory(prefix=f"ddpmlab-{study}-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        page, job = folder / f"{study}.ipynb", folder / "job.json"
        described = {"template": str(template.resolve()), "page": str(page), "cwd": str(folder)}
        job.write_text(json.dumps(described | {"parameters": dict(parameters)}))
        try:
            tail = _execute(job, folder, log or folder / "messages.log", limit)
            if log is None:
                sys.stderr.write((folder / "messages.log").read_text(errors="replace"))
            if tail in (INTERRUPTED, _too_long(limit)):
                raise StudyError(f"{study}: {tail}")
            if page.exists():
                notebook = _check_and_clean(page)
            if tail is not None or not page.exists():
                raise StudyError(f"{study}: the notebook did not run: {tail or 'no page was written'}")
            produced = folder / "results"
            if not (produced / f"{study}.csv").exists():
                raise StudyError(f"{study}: the notebook wrote no results/{study}.csv")
            seconds = perf_counter() - start
            made = project.study(study, parameters)
            provenance = {
                "profile": profile, "commit": commit, "date": state["started"][:10], "seconds": round(seconds, 1),
                "core_seconds": round(cost.seconds(folder / _READ, made), 1),
                "fingerprint": fingerprint(project, study, parameters),
            }  # fmt: skip
            publish(study, notebook, produced, book, provenance)
        except BaseException as error:
            again = _command(study, profile, parameters, project)
            plain = isinstance(error, StudyError | OSError)
            message = f"{study}: {INTERRUPTED}" if not plain else f"{error}" if isinstance(error, StudyError) else ""
            message = message or f"{study}: {error}; nothing in the book was changed"
            where = ""
            with contextlib.suppress(OSError):  # on a full disk
                kept = project.build / "failed" / f"{study}.ipynb"
                if page.exists():
                    with atomic(kept) as temporary:
                        shutil.copyfile(page, temporary)
                    where = f"\n  kept: {kept}"
                _write_json(
                    _note(project, profile, study), state | {"state": "failed", "error": message, "again": again}
                )
            if not plain:
                raise
            raise StudyError(f"{message}{where}\n  again: {again}") from None
    _note(project, profile, study).unlink(missing_ok=True)
    return seconds


def failed(
    project: Project, study: str, profile: str, parameters: Mapping[str, Any], error: str, commit: str, log: Path
) -> str:
    """Note that a study failed before its notebook could begin; the message, see `repeatable`."""
    again = _command(study, profile, parameters, project)
    state = {"state": "failed", "started": _now(), "commit": commit, "error": error, "again": again}
    with contextlib.suppress(OSError):  # on a full disk
        _write_json(_note(project, profile, study), state)
        with open(log, "a", encoding="utf-8") as file:
            file.write(error + "\n")
    return repeatable(project, study, profile, parameters, error)


def repeatable(project: Project, study: str, profile: str, parameters: Mapping[str, Any], error: str) -> str:
    """The message of a study that did not run, with the command that repeats it."""
    return f"{error}\n  again: {_command(study, profile, parameters, project)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command(study: str, profile: str, parameters: Mapping[str, Any], project: Project) -> str:
    """The command that repeats a study's run."""
    usual = project.parameters(study, profile)
    changed = {k: v for k, v in parameters.items() if usual.get(k) != v}
    options = "".join(f" -p {k} '{json.dumps(v)}'" for k, v in changed.items())
    return f"ddpmlab run {study} --profile {profile}{options}"


INTERRUPTED = "it was interrupted"
_running: dict[subprocess.Popen, str | None] = {}  # notebooks' processes, and why each was ended
_idle: list[tuple[subprocess.Popen, dict[str, str]]] = []  # processes that wait for a notebook, and their environment


def _too_long(limit: float) -> str:
    return f"the notebook ran longer than its time limit of {limit:g} s"


def _process(environment: dict[str, str], log: Path) -> subprocess.Popen:
    """A process for notebooks, of a group of its own: one that waits and has this environment, or a new one."""
    for waiting in list(_idle):
        with contextlib.suppress(ValueError):  # another thread took it
            if waiting[1] == environment:
                _idle.remove(waiting)
                if waiting[0].poll() is None:
                    return waiting[0]
    command = [sys.executable, "-P", str(Path(__file__).with_name("execute.py")), str(os.getpid())]
    with open(log, "ab") as out:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": out, "text": True}
        where = tempfile.gettempdir()  # matplotlib reads a file of settings from where it is imported
        return subprocess.Popen(command, env=environment, cwd=where, start_new_session=True, **pipes)


def release(keep: int = 0) -> None:
    """End the processes that wait for a notebook, but the last few."""
    while len(_idle) > keep:
        _idle.pop(0)[0].communicate()


def _execute(job: Path, cwd: Path, log: Path, limit: float) -> str | None:
    """Run a job's notebook; None if it ended well, else why it did not, or the last line that it said.

    Its process is ended after `limit` seconds and with this one's interrupt; after a notebook that ended well it waits
    for the next.
    """
    environment, log = _environment(), log.absolute()
    request = {"job": str(job), "log": str(log), "cwd": str(cwd), "environment": {cost.VARIABLE: str(cwd / _READ)}}
    log.touch()
    before, process = log.stat().st_size, _process(environment, log)
    _running[process] = None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answered, *_ = select.select([process.stdout], [], [], limit)
        if not answered:
            _running[process] = _too_long(limit)
            _end(process)
        answer = process.stdout.readline().strip()
    except BaseException:
        _end(process)
        raise
    finally:
        ended = _running.pop(process)
    if answer == "0" and not ended:
        _idle.append((process, environment))
        release(2)
        return None
    process.communicate()
    if ended:
        return ended
    said = [line for line in log.read_bytes()[before:].decode(errors="replace").splitlines() if line.strip()]
    return said[-1] if said else f"exit code {process.returncode}"


def _end(process: subprocess.Popen) -> None:
    """End a notebook's process, which ends its kernel, by an interrupt or else by force."""
    for how, patience in ((signal.SIGINT, 5), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def interrupt() -> None:
    """End the notebooks that run in other threads; each of them fails as interrupted."""
    for process in list(_running):
        _running[process] = INTERRUPTED
        _end(process)


# --- the book --------------------------------------------------------------------------------------------------


def render(book: Path, config: Path, output: Path) -> Path:
    """Render the book's pages as they are, running nothing, and return the path of `index.html`.

    What an earlier rendering left there is removed first: a page that is no longer in the book does not stay on.

    Raises:
        StudyError: the book has warnings; they are printed.
    """
    book, config, output = (path.resolve() for path in (book, config, output))  # it changes folder on its way
    recover(book)
    html = output / "_build" / "html"
    shutil.rmtree(html, ignore_errors=True)
    command = [
        *(sys.executable, "-c", "import ddpmlab.cli; from jupyter_book.cli.main import main; main()"),
        *("build", str(book)),
        *("--config", str(config), "--toc", str(book / "_toc.yml"), "--path-output", str(output)),
        *("--all", "-W", "-n", "--keep-going", "-q"),
    ]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
        raise StudyError("the book did not build without warnings; see above")
    return html / "index.html"


def chosen(project: Project, names: Sequence[str]) -> list[str]:
    """The studies that are meant: those named, or all.

    Raises:
        ValueError: an unknown name (the message lists those that are).
    """
    manifest = project.manifest()
    unknown = sorted(set(names) - set(manifest))
    if unknown:
        raise ValueError(f"unknown study {', '.join(unknown)}; choose from: {', '.join(manifest)}")
    return [name for name in manifest if not names or name in names]
