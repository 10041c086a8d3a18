"""Three layers, library, lab and book: imports point down only, and the library stays light."""

import ast
import subprocess
import sys

from conftest import ROOT

PACKAGE = ROOT / "ddpmlab"
LAYERS = {"lab": 1, "studies": 2, "explorer": 3, "book": 3, "cli": 3}
HEAVY = {"pandas", "matplotlib", "papermill", "nbformat", "IPython", "distributed", "loky", "anywidget"}


def layer(module):
    """0 for the library, above it what DESIGN draws above it."""
    parts = module.split(".")
    return LAYERS.get(parts[1], 0) if len(parts) > 1 else 0


def imports(path):
    """Every module that a file imports, at its top or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(ROOT).with_suffix("")
        yield path, ".".join(relative.parts).removesuffix(".__init__")


def test_imports_point_down_only():
    upwards = [
        f"{name} imports {wanted}"
        for path, name in files()
        for wanted in imports(path)
        if wanted.startswith("ddpmlab") and layer(wanted) > layer(name)
    ]
    assert upwards == []


def test_the_library_needs_no_tables_figures_or_notebooks():
    heavy = [
        f"{name} imports {wanted}"
        for path, name in files()
        if layer(name) == 0
        for wanted in imports(path)
        if wanted.split(".")[0] in HEAVY
    ]
    assert heavy == []


def test_importing_the_library_loads_nothing_heavy():
    own = sorted(HEAVY - {"pandas"})  # scikit-learn may bring pandas by itself
    code = f"import sys, ddpmlab; print(sorted(set({own!r}) & sys.modules.keys()))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert answer.stdout.strip() == "[]"
