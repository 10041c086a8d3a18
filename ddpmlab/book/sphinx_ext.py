"""What the book's build needs beyond its pages: tables that cannot disagree with the CSVs, and a theme that is quiet.

Directives and roles, all read from `results/` when the book is built:

- role `claim`: one field of one row of `claims.csv`, such as `epochs-helix measured`, or the words of its verdict;
- role `measured`: a score of a page's table, or its change between two variants, with its interval;
- role `glued`: the first sentence of a text that the page glued, `name first`, or what follows it, `name rest`;
- role `built`: what the book is built from, its `version`, `commit` or `date`;
- ``{verdicts}``: every row of `claims.csv` as a table, sorted and filtered in the page by `_static/verdicts.js`;
- ``{answers}``: questions with the claims that answer them, one a line;
- ``{provenance}``: what was computed when, where and in how many seconds, from `provenance.json`; ``{costs}``: the
  hours of one core alone;
- ``{package-api} ddpmlab.data ddpmlab.metrics``: the public names of these modules, from their docstrings;
- ``{command-line}``: what the command line says of itself.

The rest works on the finished pages: it names what has no name for a screen reader, keeps the theme out of the console,
links each study's notebook and tables, and writes the text that the search shows beside its hits, so that it works from
a file too.
"""

import ast
import base64
import csv
import fnmatch
import importlib
import importlib.util
import inspect
import json
import pkgutil
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape, unescape
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from textwrap import indent
from types import ModuleType

import click
import nbformat
import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from PIL import Image
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode

from ddpmlab.book.glued import glued, sentence
from ddpmlab.book.plotting import LAW_TITLES
from ddpmlab.book.report import VERDICTS, interval, measured_text, number
from ddpmlab.files import git
from ddpmlab.registry import names_of

log = logging.getLogger(__name__)

_INTERVAL = ("ci_low", "ci_high")

_SCORES = {
    "EMD": "emd_128",
    "course NLL": "course_nll",
    "energy distance": "energy_distance",
    "path KL": "kl",
    "chain KL": "chain_kl",
    "sliced W1": "sliced_wasserstein",
    "MMD": "mmd",
    "C2ST": "c2st_accuracy",
    "Fréchet distance": "frechet_distance",
    "class accuracy": "class_accuracy",
    "NLL": "nll_gap",
}
"""How claims name a score, the more specific first, and its metric in the tables."""
_EXACT_AT_ZERO = ("kl", "chain_kl", "nll_gap")
"""Divergences from the exact denoiser: their floor is 0, and they have no ceiling."""


def display(text: str) -> str:
    """A claim's words with the laws' prose names in place of those of the tables."""
    return re.sub("|".join(LAW_TITLES), lambda name: LAW_TITLES[name[0]], text)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV as text; none if there is no such file."""
    if not path.exists():
        return []
    state = path.stat()
    return _rows(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)  # a table is asked for once a claim
def _rows(path: Path, *state: int) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_claims(results: Path) -> dict[str, dict[str, str]]:
    """Rows of `claims.csv` by id, as text."""
    return {row["id"]: row for row in read_table(results / "claims.csv")}


def rehearsed(results: Path) -> bool:
    """Whether a page was run at another profile than the full one: it may settle fewer claims than the book names."""
    path = results / "provenance.json"
    notes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return any(note.get("profile") != "full" for note in notes.values())


def score_of(claim: dict[str, str], rows: list[dict[str, str]]) -> tuple[str, str]:
    """Law and metric that a claim is about: its fields `dataset` and `metric`, or what its words name.

    Args:
        claim: a row of `claims.csv`.
        rows: the table of its page. A law that the claim does not name is the only one there. Where the table has the
            score by the two-moons report's own convention, or at the number of points that the claim names, it is that.
    """
    words, found = claim["claim"], {row["dataset"] for row in rows}
    named = words.replace("(surface)", "(sin_5_5)")
    law = claim.get("dataset") or next((name for name in found if name in named), "")
    law = law or (found.pop() if len(found) == 1 else "")
    metric = claim.get("metric") or next((metric for name, metric in _SCORES.items() if name in words), "")
    size, read = re.search(r"n = ([\d,]+)", words), {row["metric"] for row in rows}
    own = f"{metric}_published" if claim["source"].startswith("two-moons") else ""
    sized = f"{metric}_{size[1].replace(',', '')}" if size else ""
    return law, next((name for name in (own, sized) if name in read), metric)


def limits(results: Path, claim: dict[str, str]) -> tuple[float | None, float | None]:
    """Floor and ceiling of the score that a claim is about, in the claim's unit, from its page's table.

    They are the means of the columns `floor_mean` and `ceiling`; of a score without them, those of the rows `perfect
    sampler` and `pure noise`, there or in `scores.csv`. A divergence from the exact denoiser has the floor 0. What no
    table has is None.
    """
    page = read_table(results / f"{claim['page']}.csv")
    law, metric = score_of(claim, page)
    scale = 1_000 if "× 1000" in claim["claim"] else 1

    def mean(column: str, variant: str) -> float | None:
        for table in (page, read_table(results / "scores.csv")):
            rows = [row for row in table if row["dataset"] == law and row["metric"] == metric]
            for values in (
                [row[column] for row in rows if row[column]],
                [row["value"] for row in rows if row["variant"] == variant],
            ):
                if values:
                    return scale * sum(map(float, values)) / len(values)
        return None

    floor = 0.0 if metric in _EXACT_AT_ZERO else mean("floor_mean", "perfect sampler")
    return floor, None if metric in _EXACT_AT_ZERO else mean("ceiling", "pure noise")


def claim_field(row: dict[str, str], field: str) -> str:
    """One field of a claim as a page prints it; `interval` joins the two ends, with the decimals of `measured`."""
    if field in ("measured", "interval"):
        value, _, ends = measured_text(*(float(row[name]) for name in ("measured", *_INTERVAL))).partition(" (")
        return value if field == "measured" else ends.rstrip(")") or "\N{EN DASH}"
    return number(row[field]) if field in _INTERVAL else display(row[field])


class _FromBook:
    """Where the book that is being built keeps its results."""

    env: object

    @property
    def book(self) -> Path:
        return Path(self.env.srcdir)

    def depend(self, *names: str) -> None:
        """Build the page again when one of these files changes."""
        for name in names:
            self.env.note_dependency(str(self.book / name))


class ClaimRole(_FromBook, SphinxRole):
    """A claim of `claims.csv`, in a sentence; where the full book has no such claim the build fails.

    Of `id field` it is that field, or its `interval`; of `id :: words` it is the words of its verdict,
    see `short_answer`.
    """

    FIELDS = ("claim", "source", "published", "measured", "interval", "verdict", *_INTERVAL)

    def run(self):
        self.depend("results/claims.csv")
        id, _, field = self.text.partition(" ")
        words = field.removeprefix("::") if field.startswith("::") else ""
        row = read_claims(self.book / "results").get(id)
        if row is None and rehearsed(self.book / "results"):
            return [nodes.inline("\N{EN DASH}", "\N{EN DASH}")], []
        if row is not None and words:
            text = short_answer(words, row["verdict"])
            return [nodes.inline(text, text, classes=["claim"])], []
        if row is None or field not in self.FIELDS:
            wrong = f"there is no claim {id!r}" if row is None else f"{field!r} is none of {', '.join(self.FIELDS)}"
            log.warning(f"{{claim}}`{self.text}`: {wrong}", location=self.get_location())
            return [], []
        text = claim_field(row, field)
        classes = ["verdict", f"verdict-{text.replace(' ', '-')}"] if field == "verdict" else ["claim"]
        return [nodes.inline(text, text, classes=classes)], []


def measured(results: Path, study: str, law: str, metric: str, *variants: str) -> str | None:
    """A score of a page's table over seeds, with its 95% interval by Student's t, as text; None without such rows.

    Args:
        results: folder of the tables.
        study: whose table.
        law: or data set.
        metric: name in the table, which may end with ` × 1000`.
        variants: one; or two, for the fall from the first to the second, seed by seed.

    Raises:
        ValueError: another number of variants, or a seed has several rows.
    """
    if len(variants) not in (1, 2):
        raise ValueError(f"{len(variants)} variants; give one, or two for a fall from the first to the second")
    metric, _, factor = metric.partition(" × ")
    rows = [row for row in read_table(results / f"{study}.csv") if (row["dataset"], row["metric"]) == (law, metric)]
    of_seed: list[dict[str, float]] = [{} for _ in variants]
    for name, values in zip(variants, of_seed, strict=True):
        for row in (row for row in rows if row["variant"] == name):
            if row["seed"] in values:
                raise ValueError(f"{name!r} has several rows of {metric} at seed {row['seed']}")
            values[row["seed"]] = float(factor or 1) * float(row["value"])
    seeds = sorted(set.intersection(*map(set, of_seed)))
    first, *second = ([values[seed] for seed in seeds] for values in of_seed)
    found = np.subtract(first, second[0]) if second else np.array(first)
    return None if not seeds else number(found[0]) if len(seeds) == 1 else interval(found)


class MeasuredRole(_FromBook, SphinxRole):
    """Of `study :: law :: score :: variant`, or two variants, see `measured`.

    A table without them fails the build, unless a page was run at a smaller profile, which may lack some.
    """

    def run(self):
        study, *rest = (part.strip() for part in self.text.split("::"))
        self.depend(f"results/{study}.csv")
        try:
            text, why = measured(self.book / "results", study, *rest), f"results/{study}.csv has no such rows"
        except (TypeError, ValueError) as error:
            text, why = None, str(error)
        if text is None and not rehearsed(self.book / "results"):
            log.warning(f"{{measured}}`{self.text}`: {why}", location=self.get_location())
        text = text or "\N{EN DASH}"
        return [nodes.inline(text, text, classes=["claim"])], []


class GluedRole(SphinxRole):
    """Of `name first` the first sentence of a text that the page glued, of `name rest` what follows it."""

    def run(self):
        name, _, part = self.text.partition(" ")
        texts = glued(nbformat.read(self.env.doc2path(self.env.docname), as_version=4))
        try:
            return [nodes.Text(sentence(texts[name], part))], []
        except (KeyError, TypeError, ValueError) as error:
            log.warning(f"{{glued}}`{self.text}`: {error!r}", location=self.get_location())
            return [], []


def built(book: Path) -> dict[str, str]:
    """Version of the package, and commit and date of the project that the book is built from."""
    commit, _, date = git(book, "log", "-1", "--format=%h %cs").partition(" ")
    return {"version": version("ddpmlab"), "commit": commit or "unknown", "date": date or "an unknown date"}


class BuiltRole(_FromBook, SphinxRole):
    """The package's `version`, or the `commit` or `date` of the project."""

    def run(self):
        text = built(self.book)[self.text]
        return [nodes.inline(text, text)], []


class _Table(_FromBook, SphinxDirective):
    """A directive that writes MyST for the parser, so that links, search and print work as on any page."""

    def parsed(self, text: str) -> list[nodes.Node]:
        container = nodes.container(classes=[self.name])
        self.state.nested_parse(text.splitlines(), self.content_offset, container)
        return [container]

    def table(self, head: list[str], rows: list[list[str]]) -> list[nodes.Node]:
        lines = [" | ".join(["", *row, ""]).strip() for row in [head, ["---"] * len(head), *rows]]
        return self.parsed("\n".join(lines))


def _plain(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("_", r"\_").replace("$", r"\$").replace("`", r"\`")


def _page_link(study: str, text: str = "") -> str:
    return f"{{doc}}`{text or study.replace('_', ' ')} </studies/{study}>`"


_QUESTION_OF_TABLE = {"1": 1, "3": 2, "5": 3, "7": 4, "8": 4}
"""Which question of the homework a table of its report answers."""
_LAW_SUFFIX = re.compile(rf"-({'|'.join(LAW_TITLES)})$")


def question_of(source: str) -> tuple[str, int]:
    """Report of a claim's source and which of its questions it is about; 0 if the report has none."""
    report, _, place = source.partition("-report")
    named = re.search(r"(question|table) (\d+)", place)
    if named is None:
        return report, 0
    return report, int(named[2]) if named[1] == "question" else _QUESTION_OF_TABLE.get(named[2], 0)


def ordered(claims: Iterable[dict[str, str]], headlines: Sequence[str] = ()) -> list[dict[str, str]]:
    """Claims by report and question, the headlines and what belongs to them first, one claim's laws side by side.

    Args:
        claims: rows of `claims.csv`.
        headlines: ids; a claim belongs to the one about the same question that its own id begins with.
    """
    claims = list(claims)
    about = {row["id"]: question_of(row["source"]) for row in claims}
    first = [(about[id], _LAW_SUFFIX.sub("", id)) for id in headlines if id in about]

    def key(row):
        stem, own = _LAW_SUFFIX.sub("", row["id"]), about[row["id"]]
        ranks = [i for i, (of, id) in enumerate(first) if of == own and f"{stem}-".startswith(f"{id}-")]
        rank = ranks[0] if ranks else len(first)
        natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", stem)]
        law = _LAW_SUFFIX.search(row["id"])
        return *own, rank, row["page"], natural, list(LAW_TITLES).index(law[1]) if law else 0

    return sorted(claims, key=key)


def headlines(book: Path) -> list[str]:
    """Ids of the claims that answer the questions of the front page, in their order there."""
    index = book / "index.md"
    text = index.read_text(encoding="utf-8") if index.exists() else ""
    block = re.search(r"```\{answers\}\n(.*?)```", text, re.DOTALL)
    found = []
    for line in block[1].splitlines() if block else ():
        _, page, patterns = [part.strip() for part in line.split("|")][:3]
        row = chosen_claim(book / "results", page, patterns.split())
        found += [row["id"]] if row else []
    return found


def totals(claims: Iterable[dict[str, str]], of: str) -> str:
    """How many claims have which verdict, as a sentence: `Of 3 rows on X 1 is reproduced, 2 are not resolved.`"""
    verdicts = [row["verdict"] for row in claims]
    counts = [(verdicts.count(verdict), verdict) for verdict in VERDICTS]
    parts = [f"{n} {'is' if n == 1 else 'are'} {'an artefact' if n == 1 else 'artefacts'}" if verdict == "artefact" else
             f"{n} {'is' if n == 1 else 'are'} {verdict}" for n, verdict in counts if n]  # fmt: skip
    return f"Of {len(verdicts)} rows {of} {', '.join(parts)}." if verdicts else ""


class Verdicts(_Table):
    """Every claim: published against measured, interval, floor and ceiling of its score, verdict, evidence."""

    def run(self):
        self.depend("results/claims.csv", "index.md")
        rows, results = [], self.book / "results"
        claims = ordered(read_claims(results).values(), headlines(self.book))
        for row in claims:
            claim, published, measured, interval = (
                _plain(claim_field(row, field)) for field in ("claim", "published", "measured", "interval")
            )
            source, _, place = row["source"].partition("-report")
            report = f"{source.replace('-', ' ')}{_plain(place)}"
            verdict = _page_link(row["page"], row["verdict"])
            between = f" ({interval})" if interval != "\N{EN DASH}" else ""
            ends = ["\N{EN DASH}" if end is None else number(f"{end:g}", 2) for end in limits(results, row)]
            rows.append([claim, verdict, published, measured + between, *ends, report])
            self.depend(f"results/{row['page']}.csv")
        head = ["claim", "verdict, with its evidence", "published", "measured (95% interval)", "floor", "ceiling"]
        reports = dict.fromkeys(question_of(row["source"])[0] for row in claims)
        sentences = [totals(claims, "in all")] if len(reports) > 1 else []
        for report in reports:
            own = [row for row in claims if question_of(row["source"])[0] == report]
            sentences.append(totals(own, f"on the {report} report"))
        return [*self.parsed(" ".join(sentences)), *self.table([*head, "report"], rows)]


def _link_evidence(app, doctree, docname: str) -> None:
    """A verdict's link leads to the section of its page where it is settled, if the page has one of that name."""
    places: dict[str, str] = {}
    for table in doctree.findall(lambda n: isinstance(n, nodes.container) and "verdicts" in n.get("classes", [])):
        for link in table.findall(nodes.reference):
            address = link.get("refuri", "")
            page = posixpath.normpath(posixpath.join(posixpath.dirname(docname), address.removesuffix(".html")))
            if "#" in address or not page.startswith("studies/") or page not in app.env.found_docs:
                continue
            if page not in places:
                ids = {id for section in app.env.get_doctree(page).findall(nodes.section) for id in section["ids"]}
                places[page] = "#verdicts" if "verdicts" in ids else ""
            link["refuri"] = address + places[page]


def chosen_claim(results: Path, page: str, patterns: list[str]) -> dict[str, str] | None:
    """The claim of a page whose id fits the first of the patterns that fits any; its first if none does."""
    own = {id: row for id, row in read_claims(results).items() if row["page"] == page}
    for pattern in [*patterns, "*"]:
        fitting = fnmatch.filter(own, pattern)
        if fitting:
            return own[fitting[0]]
    return None


_BAR = re.compile(r"points by which (?:the |its )?(.*?) ?lies (below|above) (?:our bar of )?([\d.]+)%")


def short_effect(claim: str) -> str:
    """What a claim measures, in short: `EMA helps: fall of the MMD (ours), %` -> `fall of the MMD, %`.

    Of a distance from a bar it is the quantity itself: `its share lies above our bar of 70%` -> `share, % (bar 70%)`.
    """
    effect = re.sub(r" ?\([^)]*\)", "", display(claim).rpartition(": ")[2])
    if bar := _BAR.match(effect):
        return f"{bar[1]}, % (bar {bar[3]}%)"
    return effect.partition(",")[0] + (", %" if effect.endswith("%") else "")


def of_quantity(row: dict[str, str]) -> dict[str, str]:
    """A claim with measured value and interval of the quantity that it holds to a bar, where it does."""
    bar = _BAR.match(re.sub(r" ?\([^)]*\)", "", row["claim"].rpartition(": ")[2]))
    if bar is None:
        return row
    sign = 1 if bar[2] == "above" else -1
    mean, low, high = (float(bar[3]) + sign * float(row[field]) for field in ("measured", *_INTERVAL))
    ends = dict(zip(_INTERVAL, sorted((low, high)), strict=True))
    return row | {field: f"{value:.6g}" for field, value in {"measured": mean, **ends}.items()}


def short_answer(text: str, verdict: str) -> str:
    """A question's answer in words: the text, or that of its parts, split by `;`, which belongs to the verdict.

    The parts are for `reproduced`, `not reproduced` and all else, in this order.
    """
    parts = [part.strip() for part in text.split(";")]
    place = VERDICTS.index(verdict) if verdict in VERDICTS else len(parts)
    return parts[min(place, len(parts) - 1)]


class Answers(_Table):
    """Questions, one a line, as a table with verdicts: `question | page | claims | answer | effect`.

    The third field has ids of claims or patterns of them, of which the first that fits is taken. The last two may be
    left out: the answer in words, see `short_answer`, and the name of the effect, which is else taken from the claim.
    """

    has_content = True

    def run(self):
        self.depend("results/claims.csv")
        rows, dash = [], "\N{EN DASH}"
        for line in self.content:
            question, page, patterns, answer, effect = [*(part.strip() for part in line.split("|")), "", ""][:5]
            row = chosen_claim(self.book / "results", page, patterns.split())
            link = _page_link(page, question)
            if row is None:
                rows.append([link, *[dash] * 5])
                continue
            effect = effect or short_effect(row["claim"]) + _law_of(row)
            row = of_quantity(row)
            published, measured, interval = (_plain(claim_field(row, f)) for f in ("published", "measured", "interval"))
            between = f" ({interval})" if interval != dash else ""
            words = short_answer(answer, row["verdict"]) or dash
            rows.append([link, _plain(words), row["verdict"], _plain(effect), published, measured + between])
        head = ["question", "answer", "verdict", "effect", "published", "ours (95% interval)"]
        if all(cells[1] == dash for cells in rows):  # no answer is given
            head, *rows = ([cells[0], *cells[2:]] for cells in (head, *rows))
        return self.table(head, rows)


def _law_of(row: dict[str, str]) -> str:
    """The law that a claim's words name, behind a comma."""
    words = display(row["claim"])
    return next((f", {title}" for title in LAW_TITLES.values() if f"({title})" in words), "")


def _duration(seconds: float) -> str:
    if seconds >= 2 * 3_600:
        return f"{seconds / 3_600:,.1f}\N{NO-BREAK SPACE}h"
    return f"{seconds:,.0f}\N{NO-BREAK SPACE}s" if seconds < 120 else f"{seconds / 60:,.0f}\N{NO-BREAK SPACE}min"


class Provenance(_Table):
    """What was computed, by which code, on what, in how long, and all pages together."""

    def notes(self) -> dict[str, dict]:
        """Page -> what it was made with, at `full` for the committed book."""
        self.depend("results/provenance.json")
        path = self.book / "results" / "provenance.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def run(self):
        notes, rows = self.notes(), []
        for page, note in notes.items():
            link = _page_link(page)
            if not (self.book / "studies" / f"{page}.ipynb").exists():
                link = page.replace("_", " ")
            values = [note.get(key, "\N{EN DASH}") for key in ("profile", "date", "commit", "code", "device", "torch")]
            cost = "\N{EN DASH}" if (found := _cost(note)) is None else _duration(found)
            rows.append([link, *(_plain(str(v)) for v in values), cost, _duration(note.get("seconds", 0.0))])
        if rows:
            costs, own = [_cost(note) for note in notes.values()], [note.get("seconds", 0.0) for note in notes.values()]
            total = "\N{EN DASH}" if None in costs else _duration(sum(costs))
            rows.append(["all pages", *[""] * 6, total, _duration(sum(own))])
        head = ["page", "profile", "date", "commit", "package", "device", "torch", "computing", "page itself"]
        note = (
            "*Computing* sums what the store keeps of trainings, samples, scores and tables that a page reads, each "
            "once a page; what several pages share counts for each of them, also in the last row."
        )
        return [*self.table(head, rows), *self.parsed(note)] if rows else self.table(head, rows)


class Costs(Provenance):
    """What each page cost, in hours of one core."""

    def run(self):
        costs = {page: cost for page, note in self.notes().items() if (cost := _cost(note)) is not None}
        rows = [[_page_link(page), _plain(f"{cost / 3600:.1f}")] for page, cost in costs.items()]
        if rows:
            rows.append(["all pages", f"{sum(costs.values()) / 3600:.1f}"])
        return self.table(["page", "core-hours"], rows)


def _cost(note: dict) -> float | None:
    """Seconds of computing behind a page; None where they were not counted and the page's own stand for them."""
    cost = note.get("core_seconds")
    return None if cost == note.get("seconds") else cost


def modules(name: str) -> Iterator[ModuleType]:
    """A module and the public ones inside it, in the order of their names; none if there is no such module."""
    if importlib.util.find_spec(name) is None:
        return
    module = importlib.import_module(name)
    yield module
    for found in sorted(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))):
        if not found.startswith("_"):
            yield from modules(f"{name}.{found}")


def public_names(module: ModuleType) -> list[str]:
    """The classes and functions that a module defines itself under a public name."""
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (isinstance(thing, type) or inspect.isroutine(thing))
        and getattr(thing, "__module__", None) == module.__name__
    ]


_FENCED = re.compile(r"^(`{3,})[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_TICKED = re.compile(r"(:[\w:]+:`[^`]*`|``.*?``)|`([^`]+)`(\w?)", re.DOTALL)


def _as_literal(match: re.Match) -> str:
    if match[1]:
        return match[1]
    return f"``{match[2]}``" + (f"\\ {match[3]}" if match[3] else "")


def _literal_words(app, what, name, thing, options, lines: list[str]) -> None:
    """In docstrings `x` is code, as in Markdown; reStructuredText would read stars and bars inside it."""
    pieces, text, start = [], "\n".join(lines), 0
    for fence in _FENCED.finditer(text):
        pieces.append(_TICKED.sub(_as_literal, text[start : fence.start()]))
        pieces.append(".. code-block:: none\n\n" + indent(fence[2], "   ") + "\n")
        start = fence.end()
    lines[:] = ("".join(pieces) + _TICKED.sub(_as_literal, text[start:])).split("\n")


def _registered_name(app, what, name, thing, options, lines: list[str]) -> None:
    """Below the first paragraph of what is made by name stands that name."""
    names = [f"the {kind} ``{word}``" for kind, word in names_of(thing)] if what in ("class", "function") else []
    if names:
        end = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
        lines[end:end] = ["", f"By name: {', '.join(names)}."]


def _skip_member(app, what, name, thing, skip, options) -> bool | None:
    """Fields of a named tuple are in its own docstring."""
    return True if (getattr(thing, "__doc__", "") or "").startswith("Alias for field number") else None


def _plain_defaults(app, what, name, thing, options, signature, returns):
    """A default that is made anew each time is `...` in a signature."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def _public_bases(app, name, thing, options, bases: list[type]) -> None:
    """In place of a private base stand the public ones that it is made of."""
    found: list[type] = []
    todo = list(bases)
    while todo:
        base = todo.pop(0)
        if isinstance(base, type) and base.__name__.startswith("_") and base.__module__.startswith("ddpmlab"):
            todo = [*base.__bases__, *todo]
        elif base not in found:
            found.append(base)
    bases[:] = [base for base in found if base is not object] or [object]


class PackageApi(_Table):
    """The public names of modules and of those inside them, from their docstrings; `:except:` leaves some out."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"except": directives.unchanged}  # noqa: RUF012

    def run(self):
        sections, left_out = [], tuple(self.options.get("except", "").split())
        # a docstring is written to be read in an editor first: its slips of markup do not stop the book
        reporter = self.state.document.reporter
        level, reporter.report_level = reporter.report_level, reporter.SEVERE_LEVEL + 1
        try:
            for module in (m for name in self.arguments[0].split() for m in modules(name)):
                name = module.__name__
                if name in left_out or name.startswith(tuple(f"{n}." for n in left_out)):
                    continue
                if not public_names(module) and not (module.__doc__ or "").strip():
                    continue
                self.env.note_dependency(module.__file__)
                lines = [f".. automodule:: {name}", "   :members:", "   :ignore-module-all:"]
                lines += ["   :show-inheritance:", "   :no-value:", "   :special-members: __call__", ""]
                section = nodes.section(names=[name], classes=["module"])
                self.state.document.note_implicit_target(section, section)
                section += nodes.title("", "", nodes.literal(name, name))
                section += self.parsed("\n".join(["```{eval-rst}", *lines, "```"]))
                sections.append(section)
        finally:
            reporter.report_level = level
        return sections


class CommandLine(SphinxDirective):
    """What `ddpmlab --help` and each of its commands say."""

    def run(self):
        from ddpmlab.cli import main

        top = click.Context(main, info_name="ddpmlab", terminal_width=80)
        texts = [main.get_help(top)]
        for name, command in main.commands.items():
            texts.append(command.get_help(click.Context(command, parent=top, info_name=name, terminal_width=80)))
        blocks = [nodes.literal_block(text, text, language="none") for text in texts]
        return blocks


# ---------------------------------------------------------------------------------------------------------------------
# pages


def _quiet_thebe(app, config) -> None:
    """Nothing here runs in the browser: without a launcher its scripts only declare one name twice."""
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if not entry.handler.__module__.startswith("sphinx_thebe")]


def _parameters_table(source: str) -> nodes.Node | None:
    """The parameters that ran as a table, from the assignments of papermill's cell."""
    try:
        found = [(n.targets[0].id, ast.unparse(n.value)) for n in ast.parse(source).body if isinstance(n, ast.Assign)]
    except SyntaxError:
        return None
    rows = "".join(f"<tr><th scope=row>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in found)
    html = (
        '<details class="parameters"><summary>parameters of this run</summary>'
        f'<div class="scroll"><table class="table">{rows}</table></div></details>'
    )
    return nodes.raw("", html, format="html")


def _label_cells(app, doctree) -> None:
    """Say what a folded cell is for, and show the parameters of the run as a table."""
    cells = [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code"]
    ran = any("injected-parameters" in cell.get("cell_metadata", {}).get("tags", []) for cell in cells)
    for cell in cells:
        metadata = cell.get("cell_metadata", {})
        tags = metadata.get("tags", [])
        source = "\n".join(n.astext() for n in cell.findall(nodes.literal_block))
        if "injected-parameters" in tags:
            table = _parameters_table(source)
            if table is not None:
                cell.replace_self(table)
            continue
        if "parameters" in tags and ran:
            cell.parent.remove(cell)  # the defaults; what ran is in the table
            continue
        if not cell.get("hide_mode"):
            continue
        own = metadata.get("mystnb", {})
        name = (own.get("figure") or {}).get("name", "")
        if "code_prompt_show" in own:
            cell["prompt_show"] = cell["prompt_hide"] = own["code_prompt_show"]
            continue
        if "parameters" in tags:
            label = "parameters"
        elif name:
            label = f"figure ({name.removeprefix('fig-').replace('-', ' ')})"
        elif source.lstrip().startswith(("import ", "from ")):
            label = "imports"
        elif re.search(r"report\.show|show_claims", source):
            label = "table"
        elif re.search(r"plt\.|plotting\.|figure", source):
            label = "figure"
        else:
            label = "computation"
        cell["prompt_show"] = cell["prompt_hide"] = f"code: {label}"


def _take_away(app, pagename: str) -> str:
    """Links to the notebook and the tables behind a study's page."""
    study = pagename.rpartition("/")[2]
    links = []
    if (Path(app.srcdir) / f"{pagename}.ipynb").exists():
        links.append(f'<a href="../_sources/{pagename}.ipynb" download>notebook</a>')
    for path in sorted((Path(app.srcdir) / "results").glob(f"{study}.*csv")):
        links.append(f'<a href="../results/{path.name}" download>table {path.name}</a>')
    if not links:
        return ""
    links.append('<a href="../results/claims.csv" download>all claims</a>')
    return f'<p class="take-away"><strong>Take away:</strong> {", ".join(links)}.</p>'


_NO_LINKS = (nodes.title, nodes.reference, nodes.literal, nodes.caption, nodes.term, nodes.rubric, nodes.strong)
_PLAIN_PAGES = ("notation", "references")
_DEFINING_PAGES = ("foundations", "method")
"""Pages that define symbols: they link terms only."""


def _link_first_uses(app, doctree, docname: str) -> None:
    """Link the first use of each term and each symbol on a page, in running text, to its entry in `notation`."""
    if docname == "notation":
        for id, _, entry in _symbol_rows(doctree):
            entry["ids"].append(id)
    if docname in _PLAIN_PAGES or docname.startswith("api"):
        return
    _link_terms(app, doctree, docname)
    if docname not in _DEFINING_PAGES and "notation" in app.env.found_docs:
        _link_symbols(app, doctree, docname)


def _link_terms(app, doctree, docname: str) -> None:
    entries = app.env.get_domain("std").objects
    terms = {name.lower(): place for (kind, name), place in entries.items() if kind == "term"}
    if not terms:
        return
    words = "|".join(re.escape(t) for t in sorted(terms, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w-])({words})(?![\w-])", re.IGNORECASE)
    linked: set[tuple[str, str]] = set()
    for paragraph in list(doctree.findall(nodes.paragraph)):
        for text in list(paragraph.findall(nodes.Text)):
            if _inside(text, _NO_LINKS):
                continue
            pieces: list[nodes.Node] = []
            rest, start = str(text), 0
            for match in pattern.finditer(rest):
                place = terms[match[0].lower()]
                if place in linked:
                    continue
                linked.add(place)
                label = nodes.inline(match[0], match[0], classes=["term"])
                pieces += [nodes.Text(rest[start : match.start()])]
                pieces += [make_refnode(app.builder, docname, *place, label)]
                start = match.end()
            if pieces:
                text.parent.replace(text, [*pieces, nodes.Text(rest[start:])])


def _normal(tex: str) -> str:
    """A formula's source without spaces, but for those between letters, and with the last time called t."""
    return re.sub(r"\\[,;!]|(?<![A-Za-z])\s+|\s+(?![A-Za-z])", "", tex).replace("_T", "_t").replace("_{t}", "_t")


def _symbol_rows(doctree) -> Iterator[tuple[str, list[str], nodes.Node]]:
    """Rows of the table of symbols: an id, the symbols' sources and the row's first cell."""
    for table in list(doctree.findall(nodes.table))[:1]:
        for body in table.findall(nodes.tbody):
            for row in body.children:
                symbols = [_normal(formula.astext()) for formula in row.children[0].findall(nodes.math)]
                name = re.sub(r"\W+", "-", symbols[0]).strip("-") if symbols else ""
                if name:
                    yield f"symbol-{name}", symbols, row.children[0]


def symbol_pattern(symbol: str) -> re.Pattern | None:
    """What finds a symbol of the table in a formula's source; None for single letters but D, which mean many things."""
    base = symbol.removesuffix("_t")
    if len(base) == 1 and base != "D":
        if not symbol.endswith("_t"):
            return None
        return re.compile(rf"(?<![A-Za-z\\]){re.escape(symbol)}(?!\w)")
    after = r"(?![A-Za-z])" if base[-1].isalpha() else ""
    return re.compile(rf"(?<![A-Za-z\\]){re.escape(base)}{after}(_t)?")


def symbols_in(formula: str, patterns: dict[str, re.Pattern]) -> list[str]:
    """The symbols that a formula contains, in their order there; longer ones hide their parts."""
    rest, found = _normal(formula), {}
    for symbol in sorted(patterns, key=len, reverse=True):
        match = patterns[symbol].search(rest)
        if match:
            found[symbol] = match.start()
            rest = patterns[symbol].sub(lambda hit: "." * len(hit[0]), rest)
    return sorted(found, key=found.get)


def _link_symbols(app, doctree, docname: str) -> None:
    """Link the first formula with a symbol to the symbol's row; a formula is one link, to its first new symbol."""
    rows = {symbol: id for id, symbols, _ in _symbol_rows(app.env.get_doctree("notation")) for symbol in symbols}
    patterns = {symbol: pattern for symbol in rows if (pattern := symbol_pattern(symbol))}
    seen: set[str] = set()
    for formula in [m for p in doctree.findall(nodes.paragraph) for m in p.findall(nodes.math)]:
        new = [symbol for symbol in symbols_in(formula.astext(), patterns) if symbol not in seen]
        if not new or _inside(formula, _NO_LINKS):
            continue
        seen |= set(new)
        link = make_refnode(
            app.builder, docname, "notation", rows[new[0]], formula.deepcopy(), "what this symbol means"
        )
        link["classes"].append("symbol")
        formula.parent.replace(formula, link)


def _inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


_REPAIRS = (
    ('<summary aria-label="Toggle hidden content">', "<summary>"),  # its own text names the fold
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),  # its children are no list items
    (' role="doc-biblioentry"', ""),
    ('type="range" class="anim-slider"', 'type="range" aria-label="frame of the animation" class="anim-slider"'),
)


def _finish_page(app, pagename, templatename, context, doctree) -> None:
    context["default_mode"] = context.get("default_mode") or "auto"
    context["css_files"] = [file for file in context["css_files"] if "sphinx-thebe" not in str(file.filename)]
    body = context.get("body")
    if body is None:
        return
    for wrong, right in _REPAIRS:
        body = body.replace(wrong, right)
    body = re.sub(r'<dl>\s*(<dd><em class="sig-param">.*?)</dl>', _signature_lines, body, flags=re.DOTALL)
    # a table wider than its column scrolls inside it, by keyboard too
    body = re.sub(r"(<table\b.*?</table>)", _scrolling, body, flags=re.DOTALL)
    body = unbroken(body)
    sources = {name: Path(app.srcdir) / source for source, name in app.builder.images.items()}
    body = re.sub(r"<img\b[^>]*>", lambda image: _photograph(sources, image[0]), body)
    # sections and the figure of a study, then what can be taken away
    if pagename.startswith("studies/"):
        body += _take_away(app, pagename)
    context["body"] = body
    if doctree is not None:
        app.env.ddpmlab_texts = {**getattr(app.env, "ddpmlab_texts", {}), pagename: _texts(doctree)}


def _signature_lines(match: re.Match) -> str:
    """A long signature's lines are lines, not definitions of nothing."""
    lines = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'


_WORDS = 36
"""Letters from which a table's cell has words rather than a number."""


def _scrolling(match: re.Match) -> str:
    rows = re.findall(r"<tr\b.*?</tr>", match[1], flags=re.DOTALL)
    cells = [[_seen(cell) for cell in re.findall(r"<td\b[^>]*>(.*?)</td>", row, flags=re.DOTALL)] for row in rows]
    words = " words" if any(len(cell) > _WORDS for row in cells for cell in row[1:]) else ""
    words += " long-names" if any(len(row[0]) > _WORDS for row in cells if row) else ""
    return f'<div class="scroll{words}" tabindex="0" role="group" aria-label="table">{match[1]}</div>'


def _seen(html: str) -> str:
    """What a reader sees of a piece of HTML."""
    return unescape(re.sub(r"<[^>]+>", "", html)).strip()


_ONE = r"[+\N{MINUS SIGN}]?\d[\d,.]*%?"
_UNBROKEN = re.compile(rf"\({_ONE} to {_ONE}\)|(?<![\d,.]){_ONE} ± (?=\d)")


def unbroken(text: str) -> str:
    """A text in which no line ends inside an interval, or between a mean and its spread."""
    return _UNBROKEN.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def is_photograph(picture: bytes) -> bool:
    """Whether an SVG has a grey picture inside, whose light and dark mean something also on a dark page."""
    for data in re.findall(rb"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)", picture):
        pixels = np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGBA"))
        full, colour = pixels[..., 3] > 0, pixels[..., :3].astype(int)
        if full.mean() > 0.9 and (np.ptp(colour, axis=-1)[full] < 3).all() and colour[full].std() > 1:
            return True
    return False


def _photograph(sources: dict[str, Path], image: str) -> str:
    """Mark an `<img>` whose figure holds photographs."""
    found = re.search(r'src="[^"]*_images/([^"]+\.svg)"', image)
    path = sources.get(found[1]) if found else None
    if path is None or not path.exists() or not is_photograph(path.read_bytes()):
        return image
    return image.replace("<img", "<img data-photographs", 1)


def _text(node: nodes.Node) -> str:
    """Readable text of a section: no code, no formulas' sources."""
    parts = [
        child.astext()
        for child in node.findall(nodes.Text)
        if not isinstance(child.parent, nodes.literal_block | nodes.math_block | nodes.raw | nodes.comment)
    ]
    return re.sub(r"\s+", " ", " ".join(parts)).strip()


def _texts(doctree) -> dict[str, str]:
    """Anchor -> text of the section, the whole page under the empty anchor."""
    found = {f"#{id}": _text(s)[:4_000] for s in doctree.findall(nodes.section) for id in s["ids"]}
    return {"": _text(doctree), **found}


_SEARCH = """
// Excerpts from a table of the pages' texts: reading the pages themselves is not allowed from a file.
const TEXTS = %s;
window.fetch = (url) => Promise.resolve({ text: () => Promise.resolve(String(url)) });
Search.htmlToText = (url, anchor) => {
  const page = TEXTS[url.replace(/^(\\.\\.?\\/)+/, "").replace(/\\.html$/, "")] || {};
  return page[anchor || ""] || page[""] || "";
};
"""
_KEEP_MATHJAX = ("tex-chtml.js", "output", "input", "core.js", "loader.js", "startup.js", "adaptors", "ui", "a11y")


def _finish_build(app, error) -> None:
    if error or app.builder.name not in ("html", "singlehtml"):
        return
    out = Path(app.outdir)
    _silence(out)
    # of MathJax's ready-made bundles only one is loaded
    mathjax = out / "_static" / "mathjax"
    for path in mathjax.iterdir() if mathjax.exists() else ():
        if path.name not in _KEEP_MATHJAX:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    results = Path(app.srcdir) / "results"
    if results.exists():
        shutil.copytree(results, out / "results", dirs_exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("published.csv"), out / "results" / "published.csv")
        _add_limits(results, [out / "results" / "claims.csv", *out.glob("_downloads/*/claims.csv")])
    search = out / "search.html"
    if search.exists():
        texts = json.dumps(getattr(app.env, "ddpmlab_texts", {}), ensure_ascii=False).replace("</", "<\\/")
        (out / "searchtexts.js").write_text(_SEARCH % texts, encoding="utf-8")
        page = search.read_text(encoding="utf-8").replace("console.log(", "void(")
        page = re.sub(
            r'(<script src="[^"]*searchindex\.js"></script>)', r'\1<script src="searchtexts.js"></script>', page
        )
        search.write_text(page, encoding="utf-8")


def _add_limits(results: Path, copies: list[Path]) -> None:
    """Write floor and ceiling of each claim's score into the copies of `claims.csv` that readers take away."""
    rows = []
    for row in read_claims(results).values():
        ends = zip(("floor", "ceiling"), limits(results, row), strict=True)
        rows.append(row | {name: "" if end is None else f"{end:.6g}" for name, end in ends})
    if not rows:
        return
    for path in copies:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _silence(out: Path) -> None:
    """The theme reports its doings to the console; errors it may report."""
    for name in ("scripts/pydata-sphinx-theme.js", "scripts/sphinx-book-theme.js", "togglebutton.js"):
        path = out / "_static" / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("console.log(", "void("), encoding="utf-8")


def setup(app):
    """Sphinx's entry point."""
    app.add_role("claim", ClaimRole())
    app.add_role("measured", MeasuredRole())
    app.add_role("glued", GluedRole())
    app.add_role("built", BuiltRole())
    app.add_directive("verdicts", Verdicts)
    app.add_directive("answers", Answers)
    app.add_directive("provenance", Provenance)
    app.add_directive("costs", Costs)
    app.add_directive("package-api", PackageApi)
    app.add_directive("command-line", CommandLine)
    app.connect("config-inited", _quiet_thebe)
    app.connect("autodoc-process-docstring", _registered_name)
    app.connect("autodoc-process-docstring", _literal_words)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("autodoc-process-signature", _plain_defaults)
    app.connect("autodoc-process-bases", _public_bases)
    app.connect("doctree-read", _label_cells)
    app.connect("doctree-resolved", _link_first_uses)
    app.connect("doctree-resolved", _link_evidence)
    app.connect("html-page-context", _finish_page, priority=900)
    app.connect("build-finished", _finish_build, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
