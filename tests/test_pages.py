"""Real kernels, a real papermill, a real book."""

import ast
import json
import math
import re
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT

from ddpmlab.book import batch, pages, report
from ddpmlab.book.pages import Project, StudyError
from ddpmlab.cli import main, value_of
from ddpmlab.files import git
from ddpmlab.lab import COLUMNS
from ddpmlab.schedules import SCHEDULES

PARAMETERS = nbformat.v4.new_code_cell(
    'profile = "quick"\nx = 1\nresults = "results"', metadata={"tags": ["parameters"]}
)
TABLE = """
import pandas as pd
from ddpmlab.book import report
from ddpmlab.lab import COLUMNS
row = dict.fromkeys(COLUMNS, 0.0) | {"study": "tiny", "variant": "a", "metric": "m", "value": x}
report.save_table(pd.DataFrame([row], columns=COLUMNS), results, "tiny")
report.save_claims([{"id": "tiny-1", "source": "s", "claim": "c", "published": "1", "measured": x, "ci_low": 0,
                     "ci_high": 2, "verdict": "reproduced"}], results, "tiny")
report.save_environment(results, "tiny")
"""


@pytest.fixture
def notebooks(tmp_path):
    def write(*sources, parameters=True):
        notebook = nbformat.v4.new_notebook()
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        notebook.cells = [PARAMETERS] * parameters + [
            s if isinstance(s, nbformat.NotebookNode) else nbformat.v4.new_code_cell(s) for s in sources
        ]
        folder = tmp_path / "notebooks"
        folder.mkdir(exist_ok=True)
        nbformat.write(notebook, folder / "tiny.ipynb")
        (folder / "studies.yml").write_text("tiny:\n  full: {x: 3}\n")
        return Project(tmp_path)

    return write


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def run(project, book, **parameters):
    """Run the tiny study with some parameters of its own."""
    return pages.run_study(project, "tiny", "quick", project.parameters("tiny", "quick", parameters), book)


def test_a_study_leaves_page_table_claims_and_provenance(notebooks, tmp_path):
    noise, transport = "import sys; print('noise', file=sys.stderr); x", "get_connection_info(unpack=True)['transport']"
    project = notebooks(TABLE, noise, f"from ipykernel.connect import get_connection_info\n{transport}")
    book = tmp_path / "book"
    seconds = run(project, book, x=5)
    assert files(book) == [
        ".publishing.lock", "results/claims.csv", "results/provenance.json", "results/tiny.csv", "studies/tiny.ipynb"
    ]  # fmt: skip
    assert pd.read_csv(book / "results" / "tiny.csv").value.tolist() == [5]
    note = json.loads((book / "results" / "provenance.json").read_text())["tiny"]
    assert note["profile"] == "quick"
    assert note["seconds"] == pytest.approx(seconds, abs=0.1)
    assert {"commit", "code", "device", "torch", "ddpmlab", "date", "core_seconds", "fingerprint"} <= set(note)
    page = nbformat.read(book / "studies" / "tiny.ipynb", 4)
    (spoken,) = page.cells[-1].outputs
    assert spoken.data["text/plain"] == "'ipc'"  # no two race for a port
    assert "papermill" not in json.dumps([c.metadata.get("papermill", "") for c in page.cells] + [page.metadata])
    assert str(tmp_path) not in json.dumps(page)
    assert "widgets" not in page.metadata
    assert not [o for c in page.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"]
    # a second run replaces its own claims and keeps the others'
    others = pd.DataFrame([dict.fromkeys(report.CLAIM_COLUMNS, "a") | {"page": "else"}])
    pd.concat([pd.read_csv(book / "results" / "claims.csv"), others]).to_csv(
        book / "results" / "claims.csv", index=False
    )
    run(project, book, x=7)
    claims = pd.read_csv(book / "results" / "claims.csv")
    assert dict(zip(claims.page, claims.measured.astype(str), strict=True)) == {"else": "a", "tiny": "7"}
    # and one that makes no claim any more leaves none behind
    run(notebooks(TABLE.split("report.save_claims")[0]), book, x=8)
    assert pd.read_csv(book / "results" / "claims.csv").page.tolist() == ["else"]


def test_what_a_page_reads_from_the_store_counts_as_its_cost_whenever_it_was_made(notebooks, tmp_path, monkeypatch):
    """Its own seconds do not; an entry that it reads twice counts once."""
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path / "store"))
    slow = """
import time
from ddpmlab.lab import remembered
def slow(n):
    time.sleep(2)
    return pd.DataFrame({"n": [n]})
for _ in range(2):
    x = float(remembered(slow, n=3).n[0])
"""
    project, book = notebooks("import pandas as pd", TABLE, slow, "time.sleep(1)"), tmp_path / "book"
    costs = []
    for _ in range(2):
        run(project, book, x=5)
        costs.append(json.loads((book / "results" / "provenance.json").read_text())["tiny"]["core_seconds"])
    assert costs[0] == costs[1]
    assert 2 <= costs[0] < 3


def test_rendering_leaves_nothing_of_an_earlier_one(tmp_path, monkeypatch):
    old = tmp_path / "_build" / "_build" / "html" / "studies" / "gone.html"
    old.parent.mkdir(parents=True)
    old.touch()
    monkeypatch.setattr(pages.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 0}))
    (tmp_path / "book").mkdir()
    pages.render(tmp_path / "book", ROOT / "_config.yml", tmp_path / "_build")
    assert not old.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os._exit(0)", "a cell did not run|the notebook did not run"),
        ("pass", r"the notebook wrote no results/tiny\.csv"),
        ("import time; time.sleep(600)", "tiny: the notebook ran longer than its time limit of 8 s"),
    ],
)
def test_a_failed_run_changes_nothing_in_the_book_and_is_kept(notebooks, tmp_path, source, message):
    project, book = notebooks(TABLE), tmp_path / "book"
    run(project, book, x=5)
    before = {name: (book / name).read_bytes() for name in files(book)}
    notebooks("y = 42; y", source, *([] if source == "pass" else [TABLE]))
    if slow := "sleep" in source:
        (project.notebooks / "studies.yml").write_text("tiny: {full: {x: 3}, time_limit: 8}")
    with pytest.raises(StudyError, match=message) as caught:
        run(project, book, x=6)
    assert {name: (book / name).read_bytes() for name in files(book)} == before
    kept = project.build / "failed" / "tiny.ipynb"
    if not slow or kept.exists():  # on a crowded machine a kernel does not start in 8 s
        assert str(kept) in str(caught.value)
        assert "42" in kept.read_text()
    assert "ddpmlab run tiny --profile quick -p x '6'" in str(caught.value)
    assert pages.status(project, "tiny", "quick").state == "failed"


def test_what_a_killed_publisher_had_complete_is_finished_and_the_rest_dropped(tmp_path):
    book = tmp_path / "book"
    for name, ready in (("a", True), ("b", False)):
        folder = book / f".publishing-{name}" / "results"
        folder.mkdir(parents=True)
        (folder / f"{name}.csv").write_text(name)
        if ready:
            (folder.parent / "ready").touch()
    pages.recover(book)
    assert files(book) == [".publishing.lock", "results/a.csv"]


@pytest.mark.parametrize("large", ["page", "table", "provenance"])
def test_a_disk_that_fills_up_while_publishing_leaves_the_last_good_page(tmp_path, large):
    book, produced = tmp_path / "book", tmp_path / "produced"
    produced.mkdir()

    def publish(value, most=None, **sizes):
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * sizes.get("page", 1))])
        (produced / "tiny.csv").write_text(f"value\n{value}\n" * sizes.get("table", 1))
        note = {"value": value, "note": "x" * sizes.get("provenance", 1)}
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most or before[0], before[1]))  # what a full disk does to a writer
        try:
            pages.publish("tiny", page, produced, book, note)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    publish(1)
    good = {name: (book / name).read_bytes() for name in files(book)}
    with pytest.raises(OSError, match="File too large"):
        publish(2, most=4_000, **{large: 4_000})
    assert {name: (book / name).read_bytes() for name in files(book)} == good
    assert not list(book.glob(".publishing-*/"))
    publish(3)
    assert (book / "results" / "tiny.csv").read_text() == "value\n3\n"


def test_a_page_is_stale_when_its_template_or_parameters_change(notebooks, tmp_path):
    project = notebooks(TABLE)
    (tmp_path / "book").mkdir()
    book = project.book("quick")
    assert pages.status(project, "tiny", "quick").state == "missing"
    pages.run_study(project, "tiny", "quick", project.parameters("tiny", "quick"))
    assert pages.status(project, "tiny", "quick").state == "fresh"
    notebooks(TABLE, "x + 1")
    found = pages.status(project, "tiny", "quick")
    assert (found.state, found.why) == ("stale", "template changed")
    assert (book / "studies" / "tiny.ipynb").exists()


def test_a_page_depends_on_the_code_that_its_cells_use(notebooks, monkeypatch):
    project = notebooks("from ddpmlab import schedules\n%time schedules.make('cosine')", TABLE)

    def mark(**parameters):
        return pages.fingerprint(project, "tiny", project.parameters("tiny", "quick", parameters))

    before = mark()
    assert mark() == before
    for name, changed in (("cosine", {"code"}), ("sech", set())):
        with monkeypatch.context() as patch:
            patch.setitem(SCHEDULES._factories, name, SCHEDULES["linear"])
            assert {part for part, digest in mark().items() if digest != before[part]} == changed


def test_notebooks_share_a_process_and_nothing_that_they_change(notebooks, tmp_path):
    code = "import os, torch; torch.seen = hasattr(torch, 'seen'); (os.getppid(), torch.seen)"
    project, book = notebooks(TABLE, code), tmp_path
    found = []
    for _ in range(2):
        run(project, book)
        found.append(nbformat.read(book / "studies" / "tiny.ipynb", 4).cells[-1].outputs[-1].data["text/plain"])
    assert found[0] == found[1]
    assert found[0].endswith("False)")


def test_a_notebook_s_process_ends_as_python_does(notebooks, tmp_path):
    code = f"""
import atexit
from pathlib import Path
atexit.register(Path({str(tmp_path / "left")!r}).touch)
left_open = open({str(tmp_path / "rows")!r}, "w")
left_open.write("rows"); import sys; ('' in sys.path)
"""
    project = notebooks(TABLE, code)
    run(project, tmp_path)
    assert (tmp_path / "rows").read_text() == "rows"
    assert (tmp_path / "left").exists()
    page = nbformat.read(tmp_path / "studies" / "tiny.ipynb", 4)
    assert page.cells[-1].outputs[-1].data["text/plain"] == "True"


def test_what_keeps_a_process_for_notebooks_from_starting_is_said(notebooks, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "papermill.py").write_text("raise ImportError('papermill is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(StudyError, match="ImportError: papermill is broken"):
        run(notebooks(TABLE), tmp_path)


EXECUTE = ROOT / "ddpmlab" / "book" / "execute.py"


def test_a_process_for_notebooks_whose_parent_is_gone_ends():
    command = [sys.executable, "-P", str(EXECUTE), "999999999"]  # no such parent, as if it had gone at once
    deaf = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # as a command in the background of a shell is
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=deaf) as process:
        assert process.wait(60) != 0  # it waits for no request


def test_a_kernel_s_end_is_seen_where_the_end_of_children_is_ignored():
    code = """
import os, signal
from ddpmlab.book.execute import Forked
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os._exit(3)
print(Forked(pid).wait())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


CODE = "from pathlib import Path; Path(results).absolute().name"  # elsewhere at every run


def test_new_prose_and_captions_get_into_a_page_and_nothing_runs(notebooks, tmp_path):
    text, command = nbformat.v4.new_markdown_cell, ["run", "tiny", "--root", str(tmp_path)]
    project = notebooks(text("Before."), TABLE, CODE)
    (tmp_path / "book").mkdir()
    assert CliRunner().invoke(main, command).exit_code == 0
    book = project.book("quick")
    ran, known = nbformat.read(book / "studies" / "tiny.ipynb", 4), project.provenance("quick")["tiny"]
    tables = {name: (book / name).read_bytes() for name in files(book) if name.endswith(".csv")}

    figure = nbformat.v4.new_code_cell(CODE, metadata={"mystnb": {"figure": {"caption": "Its name."}}})
    project = notebooks(text("After."), TABLE, text("More."), figure)
    assert (pages.status(project, "tiny", "quick").why) == "text changed"
    answer = CliRunner().invoke(main, [*command, "--dry-run"])
    assert answer.output.split() == ["tiny", "new", "text", "no", "runs"]
    assert nbformat.read(book / "studies" / "tiny.ipynb", 4) == ran
    answer = CliRunner().invoke(main, command)
    assert (answer.exit_code, answer.output) == (
        0, "tiny: only its text had changed; it is in the page, and nothing ran\n"
    )  # fmt: skip
    page = nbformat.read(book / "studies" / "tiny.ipynb", 4)
    assert [c.source for c in page.cells if c.cell_type == "markdown"] == ["After.", "More."]
    assert [c.cell_type for c in page.cells] == ["code", "code", "markdown", "code", "markdown", "code"]
    assert page.cells[-1].metadata.mystnb == figure.metadata.mystnb
    del page.cells[-1].metadata["mystnb"]
    assert [c for c in page.cells if c.cell_type == "code"] == [c for c in ran.cells if c.cell_type == "code"]
    assert pages.status(project, "tiny", "quick").state == "fresh"
    now = project.provenance("quick")["tiny"]
    assert {**now, "fingerprint": 0} == {**known, "fingerprint": 0}
    assert {name: (book / name).read_bytes() for name in tables} == tables

    notebooks(text("After all."), TABLE, "x + 1")
    assert (pages.status(project, "tiny", "quick").why) == "template changed"
    assert not pages.refresh_text(project, "tiny", "quick")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"y": 1}, r"tiny\.ipynb has no parameter y; it has: profile, results, x"),
        ({"x": "many"}, "tiny: parameter x = 'many' is str; it needs int, such as 1"),
    ],
)
def test_parameters_are_checked_in_name_and_type(notebooks, parameters, message):
    with pytest.raises(ValueError, match=message):
        notebooks(TABLE).parameters("tiny", "quick", parameters)


def test_a_notebook_without_parameters_is_refused(notebooks):
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        notebooks(TABLE, parameters=False).defaults("tiny")


def test_status_downloads_nothing(monkeypatch, tmp_path):
    """Where the pictures are not here it says so, with the remedy."""
    monkeypatch.delenv("DDPMLAB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pooch.retrieve", None)
    answer = CliRunner().invoke(main, ["status", "fashion_mnist", "--root", str(ROOT)])
    assert answer.exit_code == 0, answer.output
    (line,) = answer.output.splitlines()
    assert line.split()[:2] == ["fashion_mnist", "missing"]
    assert line.endswith("its data are not here: `ddpmlab data` fetches them")


def test_values_from_the_command_line_are_read_as_python_and_json_write_them():
    assert [value_of(text) for text in ("1e-3", "3", "[1, 2]", "true", "null", "helix")] == [
        0.001, 3, [1, 2], True, None, "helix"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"cannot read the value '\[1'"):
        value_of("[1")


def test_the_manifest_names_notebooks_and_their_parameters():
    project = Project(ROOT)
    manifest = project.manifest()
    assert set(manifest) <= {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}
    for study in manifest:
        for profile in pages.PROFILES:
            project.study(study, project.parameters(study, profile))


@pytest.mark.parametrize("limit", [0, -1, "6h", True])
def test_a_time_limit_that_is_no_number_of_seconds_is_refused(notebooks, limit):
    project = notebooks(TABLE)
    (project.notebooks / "studies.yml").write_text(f"tiny: {{full: {{}}, time_limit: {json.dumps(limit)}}}")
    with pytest.raises(ValueError, match=f"tiny has time_limit = {limit!r}; give seconds above 0"):
        project.manifest()


def test_the_notebooks_use_public_names_alone():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        code = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert not [a.name for a in node.names if a.name.startswith("_")], path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.attr.startswith("_") and not node.attr.startswith("__")), f"{path}: {node.attr}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "spiral"], "unknown study spiral; choose from: parts, scores, epochs"),
        (["run", "epochs", "-p", "epoch", "3"], "epochs.ipynb has no parameter epoch; it has: epochs"),
        (["run", "epochs", "-p", "n_seeds", "[1"], "cannot read the value '[1'"),
        (["run", "epochs", "-p", "n_seeds", "few"], "parameter n_seeds = 'few' is str; it needs int"),
        (["run", "epochs", "-p", "n_seeds", "true"], "parameter n_seeds = True is bool; it needs int"),
        (["run", "epochs", "-p", "n_seeds", "0"], "parameter n_seeds = 0; it needs at least 1, such as"),
        (["book", "spiral"], "unknown study spiral"),
        (["book", "--profile", "slow"], "'slow' is not one of 'quick', 'colab', 'full'"),
    ],
)
def test_the_command_line_explains_itself_before_anything_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(batch, "run", lambda *a, **b: pytest.fail("it began to run"))
    answer = CliRunner().invoke(main, [*arguments, "--root", str(ROOT)])
    assert answer.exit_code != 0
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_a_dry_run_counts_what_the_parameters_given_would_compute(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path))

    def counted(*options):
        answer = CliRunner().invoke(main, ["run", "settled", "--dry-run", *options, "--root", str(ROOT)])
        assert answer.exit_code == 0, answer.output
        return int(re.fullmatch(r"settled +would run +0 runs there, (\d+) to compute.*\n", answer.output)[1])

    assert counted() == len(Project(ROOT).study("settled", Project(ROOT).parameters("settled", "quick")).runs)
    assert counted("-p", "n_trend_seeds", "7") > counted()


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands)])
def test_every_command_has_help(command):
    answer = CliRunner().invoke(main, [*command, "--help"])
    assert (answer.exit_code, answer.output[:6]) == (0, "Usage:")


def test_tables_and_claims_keep_the_contract(tmp_path):
    with pytest.raises(ValueError, match="results contract"):
        report.save_table(pd.DataFrame({"value": [1]}), tmp_path, "x")
    row = dict.fromkeys(COLUMNS, 0.0) | {"value": float("nan")}
    with pytest.raises(ValueError, match="missing values"):
        report.save_table(pd.DataFrame([row], columns=COLUMNS), tmp_path, "x")
    claim = dict.fromkeys(report.CLAIM_COLUMNS, "a")
    with pytest.raises(ValueError, match=r"unknown verdict \['a'\]; choose one of: reproduced"):
        report.save_claims([claim], tmp_path, "x")
    with pytest.raises(ValueError, match="lack"):
        report.save_claims([{"id": "a", "verdict": "artefact"}], tmp_path, "x")
    with pytest.raises(ValueError, match="no published table '9' of 'homework-report'"):
        report.published("homework-report", 9)
    assert not list(tmp_path.iterdir())


def test_a_claim_holds_if_its_interval_lies_above_zero():
    values = [1.0, 1.2, 0.9, 1.1, 1.3]
    found = report.claim("id", "source", "text", "2", values)
    assert found["verdict"] == "reproduced"
    assert found["measured"] == "1.1"
    assert 0.9 < found["ci_low"] < 1.1 < found["ci_high"] < 1.3
    wider = report.claim("id", "source", "text", "2", values, error=1.0)
    assert wider["verdict"] == "not resolved"
    assert wider["ci_high"] - 1.1 == pytest.approx(math.hypot(found["ci_high"] - 1.1, 1.96))


def test_published_values_stand_beside_ours():
    bounds = {"floor_mean": 50.0, "floor_sd": 8.0, "ceiling": 107.0}
    rows = [("helix", f"model={m}", s, "emd_128", 60.0 + m + 2 * s) for m in (1, 2) for s in (0, 1)]
    table = pd.DataFrame(rows, columns=["dataset", "variant", "seed", "metric", "value"]).assign(**bounds)
    shown = report.side_by_side(table, report.published("homework-report", 3).query("dataset == 'helix'"))
    assert shown.loc["model=1"].tolist() == ["120.2", "62.0 ± 1.4"]
    assert shown.loc["model=3", "helix, published"] == "89.8"
    assert shown.index[-2:].tolist() == ["floor (real against real)", "ceiling (pure noise)"]


def test_a_page_names_the_commit_and_says_where_there_is_none(tmp_path, monkeypatch):
    project = Project(tmp_path)
    (project.notebooks).mkdir()
    assert project.commit() == "unknown"  # no checkout
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    (project.notebooks / "a").write_text("1")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "one")):
        # before the first commit git fails, and yet prints a name
        assert (project.commit(), git(tmp_path, "rev-parse", "HEAD")) == ("unknown", "")
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = project.commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (project.root / "elsewhere").write_text("1")
    assert project.commit() == clean
    (project.notebooks / "a").write_text("2")
    assert project.commit() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert project.commit() == "unknown"  # as in an image without git


def test_committed_pages_are_full_profile_clean_and_complete():
    manifest = Project(ROOT).manifest()
    provenance = json.loads((ROOT / "book" / "results" / "provenance.json").read_text())
    claims = pd.read_csv(ROOT / "book" / "results" / "claims.csv")
    assert claims.columns[: len(report.CLAIM_COLUMNS)].tolist() == list(report.CLAIM_COLUMNS)
    assert claims.id.is_unique
    assert set(claims.verdict) <= set(report.VERDICTS)
    assert set(claims.page) <= set(manifest)
    for study in manifest:
        assert provenance[study]["profile"] == "full"
        page = nbformat.read(ROOT / "book" / "studies" / f"{study}.ipynb", 4)
        assert "widgets" not in page.metadata
        outputs = [o for c in page.cells if c.cell_type == "code" for o in c.outputs]
        assert outputs
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
        template = nbformat.read(ROOT / "notebooks" / f"{study}.ipynb", 4)
        assert not [o for c in template.cells if c.cell_type == "code" for o in c.outputs]
        table = pd.read_csv(ROOT / "book" / "results" / f"{study}.csv")
        assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS
        assert table.value.notna().all()


def test_every_study_of_the_book_shows_pictures_with_words_and_numbers(site):
    pages = {p.name: p.read_text(encoding="utf-8") for p in [site / "index.html", *site.glob("studies/*.html")]}
    assert "epochs.html" in pages
    for name, page in pages.items():
        article = page[page.index("<article") : page.index("</article>")]
        assert "Traceback" not in article, name
        assert "application/vnd.jupyter.widget" not in page, name
        for image in re.findall(r"<img[^>]*>", article):
            alt = re.search(r'alt="([^"]*)"', image)
            assert alt, f"{name}: {image[:200]}"
            assert len(alt[1]) > 20, f"{name}: {image[:200]}"
            assert not alt[1].startswith("../"), f"{name}: {image[:200]}"
        numbers = re.findall(r'class="pasted-text">([^<]*)<', article)
        assert numbers, f"{name} glues no number"
        assert not [n for n in numbers if "nan" in n], name
        assert not re.search(r"\{glue", article), name
        assert "cdn.jsdelivr" not in re.sub(r'thebe[^"]*"', "", article), name
    assert (site / "_static" / "mathjax" / "tex-chtml.js").exists()


@pytest.mark.slow
def test_a_real_study_runs_from_its_template(tmp_path):
    """The quick profile of one of the book's own notebooks, in a kernel: page, table, claims, glued numbers."""
    book, project = tmp_path / "book", Project(ROOT)
    shutil.copytree(ROOT / "book" / "results", book / "results")
    (book / "studies").mkdir()
    pages.run_study(project, "diffusion_steps", "quick", project.parameters("diffusion_steps", "quick", {}), book)
    page = nbformat.read(book / "studies" / "diffusion_steps.ipynb", 4)
    outputs = [o for c in page.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    glued = {
        o.metadata["scrapbook"]["name"]: "".join(map(str, o.data.values()))
        for o in outputs
        if "scrapbook" in o.get("metadata", {})
    }
    assert "diffusion_steps_few_sentence" in glued
    assert not [name for name, value in glued.items() if "nan" in value]
    table = pd.read_csv(book / "results" / "diffusion_steps.csv")
    assert set(table.dataset) == {"sin_5_5", "helix"}
    made = pd.read_csv(book / "results" / "claims.csv")
    committed = pd.read_csv(ROOT / "book" / "results" / "claims.csv")
    assert set(made.verdict[made.page == "diffusion_steps"]) <= set(report.VERDICTS)
    assert len(made[made.page != "diffusion_steps"]) == len(committed[committed.page != "diffusion_steps"])


def test_a_page_with_a_warning_does_not_render(tmp_path):
    book = tmp_path / "book"
    book.mkdir()
    shutil.copytree(ROOT / "book" / "_static", book / "_static")
    shutil.copy(ROOT / "book" / "references.bib", book)
    (book / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (book / "index.md").write_text("# A page\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(StudyError, match="did not build without warnings"):
        pages.render(book, ROOT / "_config.yml", tmp_path / "_build")


@pytest.mark.parametrize(
    "name", ["epochs", "complexity", "diffusion_steps", "noise_schedules", "own_network", "settled"]
)
def test_a_profiles_sample_size_and_score_reach_every_network_of_a_study(name):
    project = Project(ROOT)
    for profile in ("quick", "full"):
        parameters = project.parameters(name, profile)
        runs = [run for run in project.study(name, parameters).runs if run.config.denoiser == "network"]
        assert runs
        assert {run.config.n_samples for run in runs} == {parameters["n_samples"]}
        if "nll" in parameters:
            asked = {metric for run in runs for metric in run.config.metrics if metric.startswith("course_nll")}
            assert asked == {parameters["nll"]}
