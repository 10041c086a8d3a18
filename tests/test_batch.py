"""Real kernels, a real papermill, a real book."""

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import ROOT
from ddpmlab.experiment import COLUMNS

from ddpmlab import batch, report
from ddpmlab.cli import main

PARAMETERS = nbformat.v4.new_code_cell(
    'profile = "quick"\nx = 1\nresults = "results"', metadata={"tags": ["parameters"]}
)
TABLE = """
import pandas as pd
from ddpmlab import report
from ddpmlab.experiment import COLUMNS
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
        notebook.cells = [PARAMETERS] * parameters + [nbformat.v4.new_code_cell(s) for s in sources]
        folder = tmp_path / "notebooks"
        folder.mkdir(exist_ok=True)
        nbformat.write(notebook, folder / "tiny.ipynb")
        (folder / "studies.yml").write_text("tiny:\n  quick: {x: 2}\n  full: {x: 3}\n")
        return folder

    return write


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_study_leaves_page_table_claims_and_provenance(notebooks, tmp_path):
    folder, book = notebooks(TABLE, "import sys; print('noise', file=sys.stderr); x"), tmp_path / "book"
    seconds = batch.run_study("tiny", "quick", {"x": 5}, folder, book)
    assert files(book) == ["results/claims.csv", "results/provenance.json", "results/tiny.csv", "studies/tiny.ipynb"]
    assert pd.read_csv(book / "results" / "tiny.csv").value.tolist() == [5]
    note = json.loads((book / "results" / "provenance.json").read_text())["tiny"]
    assert note["profile"] == "quick"
    assert note["seconds"] == pytest.approx(seconds, abs=0.1)
    assert {"commit", "code", "device", "torch", "ddpmlab"} <= set(note)
    page = nbformat.read(book / "studies" / "tiny.ipynb", 4)
    text = json.dumps(page)
    assert "papermill" not in json.dumps([c.metadata.get("papermill", "") for c in page.cells] + [page.metadata])
    assert str(tmp_path) not in text
    assert "widgets" not in page.metadata
    assert not [o for c in page.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"]
    # a second run replaces its own claims and keeps the others'
    others = pd.DataFrame([dict.fromkeys(report.CLAIM_COLUMNS, "a") | {"page": "else"}])
    pd.concat([pd.read_csv(book / "results" / "claims.csv"), others]).to_csv(
        book / "results" / "claims.csv", index=False
    )
    batch.run_study("tiny", "full", {"x": 7}, folder, book)
    claims = pd.read_csv(book / "results" / "claims.csv")
    assert dict(zip(claims.page, claims.measured.astype(str), strict=True)) == {"else": "a", "tiny": "7"}


def test_a_log_file_keeps_what_was_written_before_the_run(notebooks, tmp_path):
    folder, log = notebooks(TABLE, "import sys; print('progress', file=sys.stderr)"), tmp_path / "log"
    shutil.copytree(folder, tmp_path / "root" / "notebooks")
    command = [*(sys.executable, "-m", "ddpmlab.cli", "run", "tiny", "--root", "root", "--into", "out")]
    with open(log, "w") as file:
        file.write("before\n")
        file.flush()
        subprocess.run(command, cwd=tmp_path, stdout=file, stderr=file, check=True)
    text = log.read_text()
    assert text.startswith("before\n")
    assert "progress" in text
    assert "tiny done in" in text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os._exit(0)", "a cell did not run|papermill stopped with exit code"),
        ("pass", r"the notebook wrote no results/tiny\.csv"),
    ],
)
def test_a_failed_run_changes_nothing_in_the_book(notebooks, tmp_path, source, message):
    folder, book = notebooks(TABLE), tmp_path / "book"
    batch.run_study("tiny", "quick", {"x": 5}, folder, book)
    before = {name: (book / name).read_bytes() for name in files(book)}
    notebooks(source, *([] if source == "pass" else [TABLE]))
    with pytest.raises(batch.StudyError, match=message):
        batch.run_study("tiny", "quick", {"x": 6}, folder, book)
    assert {name: (book / name).read_bytes() for name in files(book)} == before


def test_unknown_parameters_are_an_error(notebooks, tmp_path):
    folder = notebooks(TABLE)
    with pytest.raises(ValueError, match=r"tiny\.ipynb has no parameter y; it has: profile, results, x"):
        batch.run_study("tiny", "quick", {"y": 1}, folder, tmp_path / "book")
    notebooks(TABLE, parameters=False)
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        batch.run_study("tiny", "quick", {}, folder, tmp_path / "book")
    assert not (tmp_path / "book").exists()


def test_the_manifest_names_notebooks_and_their_parameters():
    manifest = batch.read_manifest(ROOT / "notebooks")
    assert {f"{study}.ipynb" for study in manifest} == {p.name for p in (ROOT / "notebooks").glob("*.ipynb")}
    for study, profiles in manifest.items():
        for parameters in profiles.values():
            batch.check_parameters(ROOT / "notebooks" / f"{study}.ipynb", parameters or {})


def test_after_a_study_that_failed_no_other_starts(tmp_path, monkeypatch):
    for folder in ("notebooks", "book"):
        (tmp_path / folder).mkdir()
    names = ["a", "b", "c", "d", "e"]
    (tmp_path / "notebooks" / "studies.yml").write_text(
        "".join(f"{name}: {{quick: {{}}, full: {{}}}}\n" for name in names)
    )
    for name in names:
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    ran, failed = [], threading.Event()

    def run(study, *_):
        ran.append(study)
        if study == "b":
            failed.set()
            raise batch.StudyError("b: it broke")
        failed.wait(30)
        time.sleep(0.5)
        return 0.0

    monkeypatch.setattr(batch, "run_study", run)
    with pytest.raises(batch.StudyError, match="b: it broke"):
        batch.build_book("quick", tmp_path)
    assert set(ran) <= {"a", "b", "c"}  # two at a time: c may have taken the failed one's place before it was known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "spiral"], "unknown study spiral; choose from: parts, scores, epochs"),
        (["run", "epochs", "-p", "epoch", "3"], "epochs.ipynb has no parameter epoch; it has: epochs"),
        (["book", "spiral"], "unknown study spiral"),
        (["book", "--profile", "slow"], "'slow' is not one of 'quick', 'full'"),
    ],
)
def test_the_command_line_explains_itself(arguments, message):
    answer = CliRunner().invoke(main, [*arguments, "--root", str(ROOT)])
    assert answer.exit_code != 0
    assert message in answer.output
    assert "Traceback" not in answer.output


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
    assert wider["verdict"] == "not reproduced"
    assert wider["ci_high"] - 1.1 == pytest.approx(math.hypot(found["ci_high"] - 1.1, 1.96))


def test_published_values_stand_beside_ours():
    bounds = {"floor_mean": 50.0, "floor_sd": 8.0, "ceiling": 107.0}
    rows = [("helix", f"model={m}", s, "emd_128", 60.0 + m + 2 * s) for m in (1, 2) for s in (0, 1)]
    table = pd.DataFrame(rows, columns=["dataset", "variant", "seed", "metric", "value"]).assign(**bounds)
    shown = report.side_by_side(table, report.published("homework-report", 3).query("dataset == 'helix'"))
    assert shown.loc["model=1"].tolist() == ["120.2", "62.0 ± 1.4"]
    assert shown.loc["model=3", "helix, published"] == "89.8"
    assert shown.index[-2:].tolist() == ["floor (real against real)", "ceiling (pure noise)"]


def test_committed_pages_are_full_profile_clean_and_complete():
    manifest = batch.read_manifest(ROOT / "notebooks")
    provenance = json.loads((ROOT / "book" / "results" / "provenance.json").read_text())
    claims = pd.read_csv(ROOT / "book" / "results" / "claims.csv")
    assert claims.columns.tolist() == list(report.CLAIM_COLUMNS)
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
        code = [c.source for c in page.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        assert code == [c.source for c in template.cells], (
            f"{study}: page and template have different cells; run it again"
        )
        table = pd.read_csv(ROOT / "book" / "results" / f"{study}.csv")
        assert tuple(table.columns) == COLUMNS
        assert table.value.notna().all()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The book with its first study run afresh, at less than the quick profile."""
    book = tmp_path_factory.mktemp("book") / "book"
    shutil.copytree(ROOT / "book", book)
    batch.run_study("epochs", "quick", {"epochs": [1, 2], "n_seeds": 2}, ROOT / "notebooks", book)
    return batch.render(book, ROOT / "_config.yml", book.parent / "_build")


def test_a_real_study_renders_into_a_real_book(rendered):
    pages = {p.name: p.read_text(encoding="utf-8") for p in [rendered, *rendered.parent.glob("studies/*.html")]}
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
    assert "quick" in re.findall(r'class="pasted-text">([^<]*)<', pages["index.html"])
    assert (rendered.parent / "_static" / "mathjax" / "tex-chtml.js").exists()


def test_a_page_with_a_warning_does_not_render(tmp_path):
    book = tmp_path / "book"
    book.mkdir()
    shutil.copytree(ROOT / "book" / "_static", book / "_static")
    shutil.copy(ROOT / "book" / "references.bib", book)
    (book / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (book / "index.md").write_text("# A page\n\nSee {ref}`nowhere`.\n")
    with pytest.raises(batch.StudyError, match="did not build without warnings"):
        batch.render(book, ROOT / "_config.yml", tmp_path / "_build")
