"""Badges and the set-up cell of the Colab editions."""

import subprocess
import sys
import types

import nbformat
import pytest
from conftest import ROOT

from ddpmlab.book import colab


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
    return template, colab.edition(template, colab.package_at("a/b", "abc"))


def test_an_edition_is_its_template_behind_one_cell():
    template, found = edition()
    assert [c.source for c in found.cells[1:]] == [c.source for c in template.cells]
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
