"""Keys follow the code that a result depends on, and nothing else."""

import importlib
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from ddpmlab import data, metrics, networks, samplers, schedules
from ddpmlab.lab import Experiment, Training, source, stages
from ddpmlab.lab.scores import SCORES, Score
from ddpmlab.lab.source import code_hash, definitions, package_hash

CONFIG = Experiment(
    "helix", network={"name": "mlp", "hidden": [8]}, training=Training(n_steps=4, batch_size=16), n_samples=300,
    metrics=("emd_128", "kl"),
)  # fmt: skip


def keys(config=CONFIG):
    return [
        stages.train_key(config),
        stages.sample_key(config),
        *(stages.score_key(config, None, m) for m in config.metrics),
    ]  # fmt: skip


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own, written anew by each call."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{tmp_path.name.replace('-', '_')}"

    def write(source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        return importlib.import_module(name)

    yield write
    sys.modules.pop(name, None)


def test_a_definition_counts_with_what_it_is_built_on():
    found = set(definitions(data.DATASETS["helix"]))
    assert {"ddpmlab.data.laws.Helix", "ddpmlab.data.laws._Curve", "ddpmlab.data.quadrature.shared_nodes"} <= found
    assert not {"ddpmlab.data.laws.TwoMoons", "ddpmlab.data.laws.Sin55"} & found
    fit = set(definitions(stages._train))
    assert {"ddpmlab.training.loop.fit", "ddpmlab.denoisers.Denoiser", "ddpmlab.training.ema.EMA"} <= fit
    assert not [name for name in fit if name.startswith(("ddpmlab.metrics", "ddpmlab.networks", "ddpmlab.samplers"))]
    kept = ("ddpmlab.files", "ddpmlab.registry", "ddpmlab.lab.source", "ddpmlab.lab.store")  # how, not what
    for found in (fit, definitions(stages._score), definitions(stages._sample)):
        assert found
        assert not [name for name in found if name.startswith(kept)]


def test_versions_of_libraries_count(monkeypatch):
    assert source.versions("torch", "no-such-library") == {"torch": torch.__version__.split("+")[0]}
    before = keys()
    monkeypatch.setattr(source, "_version", lambda name: "0")
    assert not set(keys()) & set(before)


def test_new_parts_touch_no_entry(module):
    before = keys()
    own = module(
        """
        import torch
        from ddpmlab.data import GaussianMixture
        from ddpmlab.networks import MLP
        from ddpmlab.samplers import DDIM
        from ddpmlab.schedules import linear
        def law(): return GaussianMixture()
        class Net(MLP): pass
        class Walk(DDIM): pass
        def schedule(): return linear(10)
        def metric(x, y): return 0.0
        """
    )
    registries = [(data.DATASETS, own.law), (networks.NETWORKS, own.Net), (samplers.SAMPLERS, own.Walk)]
    for registry, part in [*registries, (schedules.SCHEDULES, own.schedule), (SCORES, Score(own.metric, 2))]:
        registry.register("own part")(part)
    try:
        assert keys() == before
        mine = Experiment(
            "own part", "own part", "own part", sampler="own part", metrics=("own part",), n_samples=10,
            training=Training(n_steps=2),
        )  # fmt: skip
        assert stages.train_key(mine) != before[0]
    finally:
        for registry, _ in [*registries, (schedules.SCHEDULES, None), (SCORES, None)]:
            del registry._factories["own part"]


SOURCE = """
from ddpmlab.networks import MLP
WIDTH = {width}
def helper(x):
    '''{doc}'''
    return x * {factor}
class Net(MLP):
    scale: float = 1.0
    '''{doc}'''
    def forward(self, x, c, label=None):
        return helper(super().forward(x, c)) * WIDTH  # {doc}
"""


def test_edited_code_of_the_users_own_counts_and_its_comments_do_not(module):
    def key(**edits):
        own = module(SOURCE.format(**{"width": 1, "doc": "old", "factor": 1} | edits))
        return stages.train_key(Experiment("helix", network=f"{own.__name__}:Net", training=Training(n_steps=2)))

    first = key()
    assert key() == first
    assert key(doc="new") == first
    assert len({first, key(factor=2), key(width=2)}) == 3


HELD = """
from functools import partial
from dataclasses import dataclass
def distance(x, y, power):
    return float((x - y).abs().pow(power).mean()) * {factor}
@dataclass(frozen=True)
class Distance:
    power: int
    def __call__(self, x, y):
        return distance(x, y, self.power)
    def floors(self, dataset):
        return {{}}
"""


@pytest.mark.parametrize(
    "make",
    [lambda own, p: own.Distance(p), lambda own, p: own.partial(own.distance, power=p)],
    ids=["instance", "partial"],
)
def test_code_that_a_score_holds_in_an_instance_counts(module, make):
    def key(factor=1, power=1):
        return code_hash(Score(make(module(HELD.format(factor=factor)), power), 2))

    assert key() == key()
    assert len({key(), key(factor=2), key(power=2)}) == 3


def test_the_code_of_the_scores_of_pictures_counts():
    assert "ddpmlab.metrics.images.Reference" in definitions(SCORES["pictures_200"].function)
    pictures = SCORES["pictures_200"]
    assert code_hash(pictures) != code_hash(replace(pictures, function=metrics.energy_distance))
    bound = replace(pictures, function=metrics.energy_distance, floors=None)
    assert code_hash(bound) != code_hash(replace(bound, floors=pictures.floors))


def test_a_class_typed_into_a_notebook_counts_by_its_bytecode():
    def typed(body):
        space = {"__name__": "__main__"}
        code = "from ddpmlab.networks import MLP\nclass Net(MLP):\n    def forward(self, x, c, label=None):\n        "
        exec(code + body, space)
        return code_hash(space["Net"])

    assert typed("return x") == typed("return x")
    assert typed("return x") != typed("return 2 * x")


def test_options_without_effect_are_in_no_key():
    def key(**options):
        return stages.train_key(Experiment("helix", training=Training(n_steps=2, **options)))

    assert key() == key(weight_decay=0.5) == key(log_normal=(0.0, 2.0)) == key(device="cpu")
    assert key(optimiser="adamw") != key(optimiser="adamw", weight_decay=0.5)
    assert key() != key(precision="bf16")


def test_a_changed_metric_or_sampler_costs_no_training():
    from dataclasses import replace

    other = replace(CONFIG, sampler={"name": "ddim"}, metrics=("nll_gap",), n_samples=400)
    assert stages.train_key(other) == stages.train_key(CONFIG)
    assert stages.sample_key(other) != stages.sample_key(CONFIG)
    assert stages.sample_key(replace(CONFIG, metrics=())) == stages.sample_key(CONFIG)
    spelt_out = replace(CONFIG, schedule={"name": "linear", "ubeta": 1.28e-2})
    assert keys(spelt_out) == keys()
    assert stages.train_key(replace(CONFIG, seed=1)) != stages.train_key(CONFIG)


def test_an_entry_says_how_it_was_made_so_that_its_key_can_be_computed_again():
    import json

    made = json.loads(json.dumps(stages._made("score", CONFIG, step=None, metric="kl")))
    assert stages.key_of(made) == stages.score_key(CONFIG, None, "kl")
    made[1]["network"] = {"name": "no such network"}
    assert stages.key_of(made) is None


def test_a_script_counts_with_the_code_that_it_refers_to(module, tmp_path):
    own = "def used():\n    return helper()\n\ndef helper():\n    return {}\n\ndef unused():\n    return {}\n"
    name = module(own.format(1, 1)).__name__
    cells = [f"from {name} import used as f\nf()", f"import {name}\n{name}.used()", f"import {name} as m\nm.used"]
    for cell in (*cells, f"from {name} import *\nused()"):
        module(own.format(1, 1))
        before = source.script_hash(["x = 1", cell])
        module(own.format(1, 2) + "# more\n")
        assert source.script_hash(["x = 1", cell]) == before
        module(own.format(2, 2))
        assert source.script_hash(["x = 1", cell]) != before
    # what a notebook takes from a module of this package, and what it names in quotes
    pairs = [("report.interval(x)", "report.spread(x)"), ('schedules.make("cosine")', 'schedules.make("linear")')]
    for one, other in pairs:
        imports = "from ddpmlab import schedules\nfrom ddpmlab.book import report\n"
        first, second = (source.script_hash(["%matplotlib inline", imports, cell]) for cell in (one, other))
        assert first != second
        assert first == source.script_hash([imports + one])
    (tmp_path / "broken_part.py").write_text("raise RuntimeError")
    assert source.script_hash(["import broken_part\nbroken_part.x", "import __main__"])  # told when the notebook runs


def test_what_a_table_or_a_page_makes_by_name_counts(module, monkeypatch):
    own = module("def table(part):\n    return ['heun', part]\n")
    page = ["from ddpmlab.studies.rivals import FINE\nprint(FINE)"]  # whose schedule is ve

    def found():
        table = source.named_hash(own.table, {"part": {"name": "mlp"}})
        return table, source.script_hash(page), source.script_hash([], {"laws": ["helix"]})

    before = found()
    assert found() == before
    for registry, name, which in (
        (networks.NETWORKS, "mlp", {0}), (samplers.SAMPLERS, "heun", {0}), (samplers.SAMPLERS, "ddim", set()),
        (schedules.SCHEDULES, "ve", {1}), (data.DATASETS, "helix", {2}),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setitem(registry._factories, name, own.table)
            assert {i for i, (now, then) in enumerate(zip(found(), before, strict=True)) if now != then} == which


def test_the_key_of_a_table_holds_what_the_table_makes_by_name(module, monkeypatch):
    own = module("def table(part):\n    return ['heun', part]\n")
    before = stages._table_key(own.table, {"part": "mlp"})
    assert stages._table_key(own.table, {"part": "mlp"}) == before
    for registry, name in ((networks.NETWORKS, "mlp"), (samplers.SAMPLERS, "heun")):
        with monkeypatch.context() as patch:
            patch.setitem(registry._factories, name, own.table)
            assert stages._table_key(own.table, {"part": "mlp"}) != before


def test_the_package_has_one_hash():
    assert len(package_hash()) == 12
