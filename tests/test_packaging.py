"""pyproject's ranges, the exact pins and conda's file must tell one story, and the wheel must work alone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from ddpmlab.book import colab

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(r.name): r
    for r in map(Requirement, (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line))
}


def test_every_pin_is_exact():
    for pin in PINS.values():
        assert [s.operator for s in pin.specifier] == ["=="], f"{pin} is not an exact pin"


def test_every_requirement_is_a_range_with_a_pin_inside():
    for text in [*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["cluster"], *EXTRAS["dev"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in PINS, f"constraints.txt does not pin {name}"
        (pin,) = PINS[name].specifier
        assert requirement.specifier.contains(pin.version), f"{text} excludes the pin {pin.version}"
        assert "==" not in {s.operator for s in requirement.specifier}, f"{text}: pyproject keeps ranges"


def test_the_pins_that_matter():
    assert str(PINS["torch"].specifier) == "==2.13.0"
    assert str(PINS["jupyter-book"].specifier).startswith("==1.0.")
    torch = next(Requirement(r) for r in PROJECT["dependencies"] if r.startswith("torch"))
    assert torch.specifier.contains("2.8.0")
    assert not torch.specifier.contains("2.7.1")


def test_conda_takes_the_same_package_and_pins():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (d["pip"] for d in conda if isinstance(d, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[book,cluster,dev]"]
    assert "pip" in conda
    python = next(d for d in conda if isinstance(d, str) and d.startswith("python"))
    assert Requirement(python).specifier == Requirement("python" + PROJECT["requires-python"]).specifier


def test_pre_commit_runs_the_pinned_tools():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {repo["repo"].rsplit("/", 1)[1]: repo["rev"].lstrip("v") for repo in hooks}
    assert revisions == {
        "ruff-pre-commit": next(iter(PINS["ruff"].specifier)).version,
        "nbstripout": next(iter(PINS["nbstripout"].specifier)).version,
    }
    assert {hook["id"] for repo in hooks for hook in repo["hooks"]} == {"ruff-check", "ruff-format", "nbstripout"}


# --- the wheel -------------------------------------------------------------------------------------------------

COLAB = """
import sys, types
google, module, output = (types.ModuleType(n) for n in ("google", "google.colab", "google.colab.output"))
output.enable_custom_widget_manager = lambda: print("widgets")
module.output = output
sys.modules |= {"google": google, "google.colab": module, "google.colab.output": output}
try:
    import ddpmlab
except ModuleNotFoundError:
    print("not there")
exec(sys.argv[1])
"""
ALONE = """
import sys
from importlib.machinery import PathFinder
absent = set(sys.argv[1].split(","))
class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Others
import ddpmlab
from ddpmlab import data, networks, samplers, schedules
from ddpmlab.cli import main
from ddpmlab.denoisers import Denoiser
from ddpmlab.training import fit
law = data.make("helix").standardised()
denoiser = Denoiser(networks.make("mlp", shape=law.shape), schedules.make("linear", n_steps=10))
fit(denoiser, law.split().train, n_steps=3, seed=0)
*states, x0 = samplers.make("ddim", n_steps=5)(denoiser, n=7, seed=1)
print(ddpmlab.__file__, tuple(x0.shape))
try:
    main(sys.argv[2:])
finally:
    assert not absent & {name for name, module in sys.modules.items() if module is not None}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python that sees what is installed here except this project, after the set-up cell ran in it; what that said.

    The cell installs a wheel that is built from the tree.
    """
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    shutil.copytree(ROOT / "ddpmlab", tree / "ddpmlab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    try:
        here = Version(version("setuptools")) >= Version("77")
    except PackageNotFoundError:
        here = False
    build = ["wheel", "--quiet", "--no-deps", *["--no-build-isolation"] * here, "-w", str(folder), str(tree)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    template = nbformat.read(ROOT / "notebooks" / "epochs.ipynb", as_version=4)
    cell = colab.edition(template, f"ddpmlab[book] @ {wheel.as_uri()}", {}).cells[0].source
    return python, run(python, COLAB, cell)


def run(python, code, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PIP_NO_INDEX": "1"}
    command = [str(python), "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=python.parent, capture_output=True, text=True)


def test_the_set_up_cell_installs_the_package_and_keeps_what_is_there(installed):
    python, answer = installed
    assert answer.returncode == 0, answer.stderr
    first, widgets, torch = answer.stdout.splitlines()
    assert (first, widgets) == ("not there", "widgets")
    assert torch.startswith(f"torch {version('torch')} on ")
    there = run(python, "import ddpmlab; print(ddpmlab.__file__)").stdout
    assert there.startswith(str(python.parent.parent / "lib"))
    assert not list((python.parent.parent / "lib").glob("*/site-packages/torch*"))


def needed(name, found):
    """Everything that a distribution needs without extras."""
    if (name := canonicalize_name(name)) not in found:
        found.add(name)
        for text in requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, found)
    return found


def test_the_wheel_without_extras_gives_the_library_and_the_command_line(installed):
    python, _ = installed
    core = set()
    for text in PROJECT["dependencies"]:
        needed(Requirement(text).name, core)
    there = packages_distributions()
    absent = [top for top, found in there.items() if not core & {canonicalize_name(name) for name in found}]
    assert {"papermill", "nbformat", "distributed", "ipywidgets", "pytest"} <= set(absent)
    blocked = ",".join(name for name in absent if name != "ddpmlab")
    answer = run(python, ALONE, blocked, "--help")
    assert answer.returncode == 0, answer.stderr
    place, usage = answer.stdout.split(maxsplit=1)
    assert place.startswith(str(python.parent.parent / "lib"))
    assert usage.startswith("(7, 3)")
    assert "Usage:" in usage
    answer = run(python, ALONE, blocked, "status")
    assert answer.returncode == 1
    assert "which is not installed: pip install 'ddpmlab[book]'" in answer.stderr
