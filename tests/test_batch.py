"""`ddpmlab run` as a real process: interrupted, beside another, on a full disk, without data."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT
from processes import checkpointed, children, running, wait_for

from ddpmlab.book.pages import Project
from ddpmlab.lab import Store

DDPMLAB = """
import resource, sys
limit = int(sys.argv.pop(1))
if limit:  # no file may be larger: what a full disk does to a writer
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from ddpmlab import studies
from ddpmlab.cli import main
from ddpmlab.lab import Experiment, Run, Training
small = {"n_samples": 200, "metrics": (), "sampler": {"name": "ddim", "n_steps": 2}}
@studies.register
def tiny(n_steps: int, n_seeds: int):
    for seed in range(n_seeds):
        training = Training(n_steps=n_steps, batch_size=16)
        network = {"name": "mlp", "hidden": [256]}
        yield Run("a", Experiment("helix", network=network, training=training, seed=seed, **small))
@studies.register
def pictures():
    yield Run("a", Experiment("fashion_mnist", training=Training(n_steps=1), **small))
main()
"""
PARAMETERS = 'profile = "quick"\nn_steps = 20\nn_seeds = 2\npause = 0\nresults = "results"'
TABLE = """
import pathlib, time
time.sleep(pause)
folder = pathlib.Path(results)
folder.mkdir()
(folder / "NAME.csv").write_text(f"value\\n{n_steps}\\n")
"""


STARTED = []


@pytest.fixture
def project(tmp_path):
    """A checkout with two studies of its own, and a last good page of the first."""
    (tmp_path / "notebooks").mkdir()
    for name in ("tiny", "pictures"):
        notebook = nbformat.v4.new_notebook()
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        notebook.cells = [
            nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(TABLE.replace("NAME", name)),
        ]
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "notebooks" / "studies.yml").write_text("tiny: {full: {}}\npictures: {full: {}}\n")
    for folder in (tmp_path / "book", book(tmp_path)):
        (folder / "studies").mkdir(parents=True)
        (folder / "studies" / "tiny.ipynb").write_text("the last good page")
    yield tmp_path
    while STARTED:
        STARTED.pop().terminate()


def book(project):
    return project / "_build" / "quick" / "book"


def page(project):
    return (book(project) / "studies" / "tiny.ipynb").read_text()


def run(project, *arguments, limit=0, command="run"):
    """`ddpmlab run` of some studies, or another command, started."""
    environment = {
        **os.environ, "DDPMLAB_CACHE": str(project / "store"), "PYTHONPATH": str(ROOT), "DDPMLAB_DATA": str(project)
    }  # fmt: skip
    command = [sys.executable, "-c", DDPMLAB, str(limit), command, "--root", str(project), *arguments]
    STARTED.append(
        subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    )
    return STARTED[-1]


def status(project, *arguments):
    """What `ddpmlab status` says, by study."""
    out, err = run(project, *arguments, command="status").communicate(timeout=600)
    assert not err
    return dict(re.split(r" +", line, maxsplit=1) for line in out.splitlines())


def descendants(process):
    below = children(process)
    return [*below, *(found for child in below for found in descendants(child))]


def interrupt(process, how):
    """Send a signal to a run alone; it ends, and all that it started, with a status that says so."""
    below = descendants(process.pid)
    assert below
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert wait_for(lambda: not any(map(running, below)), 20)
    assert process.returncode not in (0, -how), (out, err)
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_run_that_is_interrupted_leaves_the_last_good_page_and_goes_on(project):
    """SIGTERM while it trains, then Ctrl-C while the notebook runs, then to the end."""
    long, store = ("tiny", "-p", "n_steps", "12000", "-p", "n_seeds", "1"), project / "store"
    first = run(project, *long)
    assert wait_for(lambda: checkpointed(store))
    interrupt(first, signal.SIGTERM)
    assert page(project) == "the last good page"
    before = checkpointed(store)
    second = run(project, *long, "-p", "pause", "600")
    after = wait_for(lambda: checkpointed(store) != before and checkpointed(store))
    assert after > before  # one that begins anew would write 2,000 first
    note = project / "_build" / "state" / "quick" / "tiny.json"
    assert wait_for(note.exists)
    assert wait_for(lambda: any(children(child) for child in children(second.pid)))  # the notebook has its kernel
    interrupt(second, signal.SIGINT)
    assert page(project) == "the last good page"
    assert "tiny: it was interrupted" in note.read_text()
    third = run(project, *long)
    out, err = third.communicate(timeout=600)
    assert third.returncode == 0, (out, err)
    assert "time.sleep(pause)" in page(project)
    assert pd.read_csv(book(project) / "results" / "tiny.csv").value.tolist() == [12_000]
    assert not note.exists()
    assert not list(book(project).glob(".publishing-*"))


@pytest.mark.slow
def test_a_full_store_is_said_in_a_line_then_two_runs_at_once_are_sound(project):
    full = run(project, "tiny", limit=4_000)
    out, err = full.communicate(timeout=600)
    assert full.returncode == 1
    (line,) = [line for line in err.splitlines() if "failed" in line]
    assert "tiny: run 'a' of helix, seed " in line
    assert re.search(rf"File too large.*; the store is {project / 'store'}$", line)
    assert "Traceback" not in out + err
    assert "again: ddpmlab run tiny --profile quick" in err
    kept = json.loads((project / "_build" / "state" / "quick" / "tiny.json").read_text())
    assert kept["state"] == "failed"
    assert kept["error"] in (project / "_build" / "logs" / "tiny.log").read_text()
    assert status(project)["tiny"].startswith("failed   tiny: run 'a' of helix, seed ")
    assert not [path for path in (project / "store").rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    assert page(project) == "the last good page"
    both = [run(project, "tiny") for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, (out, err)
    assert "time.sleep(pause)" in page(project)
    store = Store(project / "store")
    kinds = [kind for kind, _, _ in store.entries()]
    assert kinds.count("train") == kinds.count("sample") == 2
    assert all(store.get(kind, key) is not None for kind, key, _ in store.entries())
    assert not [path for path in (project / "store").rglob(".*") if path.is_file()]
    assert not list(book(project).glob(".publishing-*"))


@pytest.mark.slow
def test_a_notebook_that_fails_takes_no_other_with_it_and_a_second_run_does_what_is_not_fresh(project):
    folder, full = project / "notebooks", ("--profile", "full")
    whole = (folder / "tiny.ipynb").read_text().replace("tiny.csv", "other.csv")
    (folder / "other.ipynb").write_text(whole.replace("time.sleep(pause)", "raise LookupError(6 * 7)"))
    (folder / "studies.yml").write_text("tiny: {full: {}}\nother: {full: {}}\n")

    def ended(*arguments):
        process = run(project, *arguments)
        out, err = process.communicate(timeout=600)
        assert "Traceback" not in err
        return process.returncode, re.findall(r"^(\w+) done in", out, re.MULTILINE), err

    code, done, err = ended(*full)
    assert (code, done) == (1, ["tiny"])
    assert "LookupError: 42" in err
    assert "again: ddpmlab run other --profile full" in err
    assert "LookupError" in (project / "_build" / "failed" / "other.ipynb").read_text()
    found = status(project, *full)
    assert found["other"].startswith("failed")
    assert re.match(rf"fresh +\(\d+ s, .*{Project(project).commit()}\); 2 runs there, 0 missing", found["tiny"])
    (folder / "other.ipynb").write_text(whole)
    assert ended(*full)[:2] == (0, ["other"])
    (folder / "studies.yml").write_text("tiny: {full: {n_steps: 21}}\nother: {full: {}}\n")
    assert ended(*full, "--device", "cpu", "--workers", "1")[:2] == (0, ["tiny"])
    assert pd.read_csv(project / "book" / "results" / "tiny.csv").value.tolist() == [21]


@pytest.mark.slow
def test_a_training_past_its_studys_time_limit_leaves_the_last_good_page(project):
    (project / "notebooks" / "studies.yml").write_text("tiny: {full: {}, time_limit: 2}\npictures: {full: {}}\n")
    _, err = run(project, "tiny", "-p", "n_steps", "1000000000", "-p", "n_seeds", "1").communicate(timeout=300)
    assert STARTED[-1].returncode == 1
    assert "run 'a' of helix, seed 0 trained for longer than its study's time_limit, 2 s" in err
    assert page(project) == "the last good page"


@pytest.mark.slow
def test_a_study_without_its_data_is_named_and_the_others_go_on(project):
    process = run(project)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    line, again = [line for line in (out + err).splitlines() if "pictures" in line]
    assert again == "  again: ddpmlab run pictures --profile quick"
    assert line.startswith(f"pictures: DDPMLAB_DATA = {project} lacks some of train-images-idx3-ubyte.gz")
    assert "Traceback" not in out + err
    assert "time.sleep(pause)" in page(project)
    assert Path(project / "_build" / "logs" / "tiny.log").exists()
    assert not (project / "_build" / "state" / "quick" / "pictures.json").exists()  # nothing was tried
