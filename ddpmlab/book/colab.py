"""Notebooks that open in Colab and Binder: the repository's address, the set-up cell, badges on the pages.

The address is taken when the book is built, from `GITHUB_REPOSITORY` (as in a workflow) or the remote `origin`, so that
a fork's badges point at the fork; without one there is no badge. Beside the pages the build writes a Colab edition of
each template: the template with a first cell that installs the package at the page's commit, and only there, and a cell
with the parameters of the profile `colab`, made for ten minutes on its GPU. A workflow publishes them with the pages on
the branch `gh-pages`, which is where the badges point.
"""

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from ddpmlab.book.pages import Project
from ddpmlab.files import git

BRANCH = "gh-pages"
FOLDER = "colab"

SET_UP = """\
# set up Colab: installs ddpmlab at the version of this page, keeps Colab's torch; does nothing elsewhere
import sys

if "google.colab" in sys.modules:
    import subprocess

    import torch

    keep = f"torch=={{torch.__version__.split('+')[0]}}"
    with open("/tmp/keep.txt", "w") as file:
        file.write(keep + "\\n")
    package = "{package}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "/tmp/keep.txt", package]
    subprocess.run(command, check=True)
    from google.colab import output

    output.enable_custom_widget_manager()
    print("torch", torch.__version__, "on", torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU")
"""


def repository(root: Path) -> str | None:
    """`owner/name` on GitHub of the checkout's origin, or of the workflow that builds it; None if there is none."""
    named = os.environ.get("GITHUB_REPOSITORY")
    if named and re.fullmatch(r"[\w.-]+/[\w.-]+", named):
        return named
    origin = git(root, "remote", "get-url", "origin")
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", origin)
    return found[1] if found else None


def package_at(repository: str, ref: str) -> str:
    """What pip installs: the package with its notebook extras at a commit or tag."""
    return f"ddpmlab[book] @ git+https://github.com/{repository}@{ref}"


def edition(template: nbformat.NotebookNode, package: str, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """A template with the set-up cell in front, and without traces of widgets, which Colab stumbles over.

    Args:
        template: with a cell tagged `parameters`.
        package: what pip installs.
        parameters: set in a cell behind that one.
    """
    found = nbformat.from_dict(template)
    cell = nbformat.v4.new_code_cell(SET_UP.format(package=package), metadata={"tags": ["colab"]})
    cell.id = "set-up-colab"
    lines = ["# the profile for Colab; without this cell: a rehearsal of a minute"]
    lines += [f"{name} = {value!r}" for name, value in parameters.items()]
    chosen = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
    chosen.id = "parameters-colab"
    first = next(k for k, c in enumerate(found.cells) if "parameters" in c.metadata.get("tags", []))
    found.cells = [cell, *found.cells[: first + 1], chosen, *found.cells[first + 1 :]]
    found.metadata.pop("widgets", None)
    found.metadata["accelerator"] = "GPU"
    found.metadata["colab"] = {"provenance": []}
    return found


def links(repository: str | None, study: str, ref: str) -> str:
    """The badges of a page as HTML; empty without an address."""
    if repository is None:
        return ""
    colab = f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{FOLDER}/{study}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{repository}/{ref}?urlpath=lab/tree/notebooks/{study}.ipynb"
    return (
        f'<p class="launch">Run this page: <a href="{html.escape(colab)}">open in Colab</a> '
        f'or <a href="{html.escape(binder)}">in Binder</a>.</p>'
    )


def _ref(root: Path) -> str:
    return git(root, "rev-parse", "HEAD") or "main"


def _root(app) -> Path:
    """The checkout that a book's sources lie in, also those of the quick profile."""
    folder = Path(app.srcdir)
    return next((p for p in folder.parents if (p / "notebooks" / "studies.yml").exists()), folder.parent)


def _add_links(app, pagename, templatename, context, doctree) -> None:
    if pagename.startswith("studies/") and context.get("body"):
        root = _root(app)
        context["body"] += links(repository(root), pagename.split("/")[1], _ref(root))


def _write_editions(app, error) -> None:
    root = _root(app)
    named = repository(root)
    if error or app.builder.name != "html" or named is None:
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(exist_ok=True)
    project = Project(root)
    for study in project.manifest():
        template = nbformat.read(project.notebooks / f"{study}.ipynb", as_version=4)
        found = edition(template, package_at(named, _ref(root)), project.parameters(study, "colab"))
        nbformat.write(found, folder / f"{study}.ipynb")


def setup(app):
    """Sphinx's entry point."""
    app.connect("html-page-context", _add_links, priority=800)
    app.connect("build-finished", _write_editions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
