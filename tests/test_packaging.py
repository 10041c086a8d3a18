"""pyproject's ranges, the exact pins and conda's file must tell one story."""

import tomllib

import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
