"""Badges and the set-up cell of the Colab editions."""

import re
import runpy
import subprocess
import sys
import types

import nbformat
import pytest
from conftest import ROOT

from ddpmlab.book import colab
from ddpmlab.book.pages import Project


def checkout(folder, url=None):
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    if url:
        subprocess.run(["git", "-C", str(folder), "remote", "add", "origin", url], check=True)
    return folder


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://github.com/someone/fork.git", "someone/fork"),
        ("git@github.com:someone/fork.git", "someone/fork"),
        ("https://github.com/someone/fork.name", "someone/fork.name"),
        ("/srv/git/ddpmlab", None),
        (None, None),
    ],
)
def test_a_fork_s_badges_point_at_the_fork(tmp_path, monkeypatch, url, expected):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert colab.repository(checkout(tmp_path, url)) == expected
    monkeypatch.setenv("GITHUB_REPOSITORY", "else/where")
    assert colab.repository(tmp_path) == "else/where"


def test_without_an_address_there_is_no_dead_badge():
    assert colab.links(None, "epochs", "abc") == ""
    assert "https://colab.research.google.com/github/a/b/blob/gh-pages/colab/epochs.ipynb" in colab.links(
        "a/b", "epochs", "abc"
    )


def edition():
    template = nbformat.read(ROOT / "notebooks" / "epochs.ipynb", as_version=4)
    parameters = Project(ROOT).parameters("epochs", "colab")
    return template, colab.edition(template, colab.package_at("a/b", "abc"), parameters)


def test_an_edition_is_its_template_with_a_set_up_and_parameters_of_its_own():
    template, found = edition()
    own = [c for c in found.cells if c.id in ("set-up-colab", "parameters-colab")]
    assert found.cells[0] is own[0]
    assert [c.source for c in found.cells if c not in own] == [c.source for c in template.cells]
    before, behind = (next(k for k, c in enumerate(found.cells) if tag in c.metadata.get("tags", []))
                      for tag in ("parameters", "injected-parameters"))  # fmt: skip
    assert behind == before + 1
    values = {}
    exec(found.cells[before].source, values)
    assert (values["profile"], values["epochs"]) == ("quick", [2, 4])
    exec(found.cells[behind].source, values)
    assert (values["profile"], values["results"]) == ("colab", "results")
    assert max(values["epochs"]) > 4
    assert "widgets" not in found.metadata
    nbformat.validate(found)
    assert "ddpmlab[book] @ git+https://github.com/a/b@abc" in found.cells[0].source


def test_the_set_up_cell_acts_in_colab_alone(monkeypatch, capsys):
    _, found = edition()
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ran.append(command))
    exec(found.cells[0].source, {})
    assert ran == []
    google, module, output = (types.ModuleType(n) for n in ("google", "google.colab", "google.colab.output"))
    output.enable_custom_widget_manager = lambda: ran.append("widgets")
    module.output = output
    for name, value in (("google", google), ("google.colab", module), ("google.colab.output", output)):
        monkeypatch.setitem(sys.modules, name, value)
    exec(found.cells[0].source, {})
    command, widgets = ran
    assert command[-1] == "ddpmlab[book] @ git+https://github.com/a/b@abc"
    assert "--constraint" in command
    assert widgets == "widgets"
    assert capsys.readouterr().out.startswith("torch ")


def test_every_study_s_profile_is_estimated_below_ten_minutes_of_its_gpu():
    estimate = runpy.run_path(str(ROOT / "benchmarks" / "colab.py"))["cost"]
    project, minutes = Project(ROOT), {}
    for name in project.manifest():
        study = project.study(name, project.parameters(name, "colab"))
        if study is not None and name != "fashion_mnist":  # whose pictures may not be at hand
            minutes[name] = estimate(study.runs)["minutes"]
    assert len(minutes) > 7
    assert max(minutes.values()) < 10, minutes
    full = project.study("epochs", project.parameters("epochs", "full"))
    assert estimate(full.runs)["minutes"] > 10


@pytest.mark.parametrize("address", ["someone/a-fork", None])
def test_a_build_with_an_address_gives_every_page_badges_and_the_notebook_behind_them(address, tmp_path, monkeypatch):
    monkeypatch.setattr(colab, "repository", lambda root: address)
    hooks = {}
    app = types.SimpleNamespace(
        srcdir=str(ROOT / "book"), outdir=str(tmp_path), builder=types.SimpleNamespace(name="html"),
        connect=lambda event, hook, **options: hooks.update({event: hook}),
    )  # fmt: skip
    colab.setup(app)
    hooks["build-finished"](app, None)
    for study in Project(ROOT).manifest():
        page = {"body": "<p>text</p>"}
        hooks["html-page-context"](app, f"studies/{study}", "page.html", page, None)
        found = re.findall(r'href="([^"]+)"', page["body"])
        if address is None:
            assert found == []
            continue
        at = f"https://colab.research.google.com/github/{address}/blob/gh-pages/"
        assert found[0].startswith(at)
        assert found[1].startswith(f"https://mybinder.org/v2/gh/{address}/")
        assert found[1].endswith(f"?urlpath=lab/tree/notebooks/{study}.ipynb")
        edition = nbformat.read(tmp_path / found[0].removeprefix(at), as_version=4)
        assert f"git+https://github.com/{address}@" in edition.cells[0].source
    other = {"body": "<p>text</p>"}
    hooks["html-page-context"](app, "index", "page.html", other, None)
    assert other == {"body": "<p>text</p>"}
    assert any(tmp_path.iterdir()) == (address is not None)
