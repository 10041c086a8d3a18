"""The documentation does what it says: every block of tutorial and how-to pages runs, every public name is listed."""

import itertools
import json
import os
import re
import subprocess
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from ddpmlab.book import sphinx_ext

PAGES = [ROOT / "book" / "tutorial.md", *sorted((ROOT / "book" / "howto").glob("*.md"))]
BLOCK = re.compile(
    r"^```(?:python|\{code-block\} python\n:caption: (?P<file>[\w./]+))\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
RUN = """
import contextlib, io, json, sys, traceback
pages, answers = json.load(open(sys.argv[1])), {}
for name, blocks in pages.items():
    space, said = {"__name__": name}, io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            for block in blocks:
                exec(compile(block, name, "exec"), space)
        answers[name] = {"error": "", "said": said.getvalue()}
    except Exception:
        answers[name] = {"error": traceback.format_exc(), "said": said.getvalue()}
    numbers = {k: v for k, v in space.items() if isinstance(v, (int, float, list)) and not k.startswith("_")}
    answers[name]["values"] = json.loads(json.dumps(numbers, default=str))
json.dump(answers, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each page's blocks print and leave behind, run in order; captioned ones are files of a scratch package."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "scratch").mkdir()
    (folder / "scratch" / "__init__.py").touch()
    pages = {}
    for page in PAGES:
        blocks = [match.groupdict() for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
        assert blocks, page
        for block in blocks:
            if block["file"]:
                (folder / block["file"]).write_text(block["code"], encoding="utf-8")
        pages[page.stem] = [block["code"] for block in blocks if not block["file"]]
    (folder / "pages.json").write_text(json.dumps(pages))
    (folder / "run.py").write_text(RUN)
    command = [sys.executable, "run.py", "pages.json", "answers.json"]
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("name", [page.stem for page in PAGES])
def test_every_block_runs(answers, name):
    assert not answers[name]["error"], answers[name]["error"]
    assert answers[name]["said"]


def test_the_pages_show_what_they_say(answers):
    tutorial = answers["tutorial"]["said"].splitlines()
    first, last = (float(x) for x in re.search(r"loss ([\d.]+) to ([\d.]+)", "\n".join(tutorial)).groups())
    assert last < first
    ours, exact = re.search(r"ours ([\d.]+) exact ([\d.]+)", "\n".join(tutorial)).groups()
    assert float(exact) == 0 < float(ours)
    # the midpoint method is of second order, at two evaluations a step
    errors = answers["sampler"]["values"]["errors"]
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios)
    # a schedule of constant betas comes nearer to noise than the homework's
    mismatch, homework = (float(x) for x in answers["schedule"]["said"].splitlines()[-1].split())
    assert mismatch < homework


def test_the_tutorial_prints_what_it_shows(answers):
    page = (ROOT / "book" / "tutorial.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    said, number = answers["tutorial"]["said"], r"-?\d[\d.]*"
    assert re.sub(number, "0", shown) == re.sub(number, "0", said)
    for a, b in zip(re.findall(number, shown), re.findall(number, said), strict=True):
        assert float(a) == pytest.approx(float(b), rel=0.05, abs=0.001)


def test_lines_of_code_fit_the_column():
    """The column cuts a longer line, and a reader of the printed book cannot scroll."""
    code = re.compile(r"^```(?:python|bash|text|\{code-block\} python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    long = [
        f"{page.name}: {line}"
        for page in sorted((ROOT / "book").glob("**/*.md"))
        for block in code.findall(page.read_text(encoding="utf-8"))
        for line in block.splitlines()
        if len(line) > 72
    ]
    assert not long


def test_the_citation_names_the_version_and_a_day_that_has_been():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == version("ddpmlab")
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%cs"]
    day = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    assert not day or cited["date-released"] <= day
    about = (ROOT / "book" / "about.md").read_text(encoding="utf-8")
    assert f'title = "{cited["title"]}"' in about
    assert f'year = "{cited["date-released"][:4]}"' in about


def inventory(path: Path) -> set[str]:
    """Names of Python objects in a Sphinx inventory."""
    data = path.read_bytes()
    body = zlib.decompress(data.split(b"\n", 4)[4]).decode()
    return {line.split(" ")[0] for line in body.splitlines() if " py:" in line}


def test_every_public_name_is_in_the_reference(site):
    listed = inventory(site / "objects.inv")
    missing = [
        f"{module.__name__}.{name}"
        for module in sphinx_ext.modules("ddpmlab")
        for name in sphinx_ext.public_names(module)
        if f"{module.__name__}.{name}" not in listed
    ]
    assert not missing, "no docstring, or not on a page of book/api"
