"""The book as a reader meets it: built once without warnings, then every page opened in a browser, from a file."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from ddpmlab import samplers
from ddpmlab.book import pdf, report, sphinx_ext
from ddpmlab.book.glued import sentence
from ddpmlab.registry import names_of

RESULTS = ROOT / "book" / "results"
STATES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
SERIOUS = ("serious", "critical")
MEBIBYTE = 2**20


def pages(site: Path) -> list[Path]:
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts and p.name != "whole-book.html")


class _Anchors(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])


def anchors(page: Path) -> _Anchors:
    found = _Anchors()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def test_every_link_inside_leads_somewhere(site):
    known = {page.resolve(): anchors(page) for page in pages(site)}
    broken = []
    for page, found in known.items():
        for link in found.links:
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            address, fragment = urldefrag(link)
            target = (page.parent / unquote(urlsplit(address).path)).resolve() if address else page
            missing = not target.exists()
            if not missing and fragment and "?" not in fragment and target in known:  # after a ?: read by a script
                missing = unquote(fragment) not in known[target].ids
            if missing:
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken


def test_an_answer_is_one_sentence_in_a_box_and_a_table_of_at_most_four_rows(site):
    for page in (site / "studies").glob("*.html"):
        box = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").select_one("article .admonition")
        said = " ".join(p.get_text() for p in box.select("p:not(.admonition-title)"))
        assert (len(said) > 30, sentence(said, "rest")) == (True, ""), page.name
        table = next(table for table in box.find_all_next("table") if not table.find_parent("details"))
        assert 2 <= len(table.select("tbody tr")) <= 4, page.name


def test_every_page_is_reached_from_the_front_page_and_every_picture_is_on_a_page(site):
    """What an earlier rendering left behind is neither."""
    known = {page.resolve(): anchors(page).links for page in pages(site)}
    todo, reached = [(site / "index.html").resolve()], set()
    while todo:
        page = todo.pop()
        if page in reached or page not in known:
            continue
        reached.add(page)
        todo += [(page.parent / unquote(urlsplit(urldefrag(link)[0]).path)).resolve() for link in known[page] if link]
    listed = {"genindex.html", "py-modindex.html", "search.html"}  # the search's form leads to the last
    assert {page.name for page in known.keys() - reached} <= listed
    text = "".join(page.read_text(encoding="utf-8") for page in pages(site))
    assert not [path.name for path in (site / "_images").iterdir() if path.name not in text]


NAMELESS = """() => [
  ...[...document.images].filter((image) => !image.hasAttribute("alt")),
  ...[...document.querySelectorAll("article img:not(.toggler)")].filter((image) => image.alt.length < 20),
].map((image) => image.src.slice(-80))"""
SQUEEZED = """() => [...document.querySelectorAll("article td, article th")]
  .filter((cell) => cell.offsetParent && cell.clientWidth < 92 && cell.innerText.trim().length > 60)
  .map((cell) => cell.innerText.trim().slice(0, 40))"""
STILL = "*, *::before, *::after { transition: none !important; animation: none !important }"
OWN = ("asks for: file:", "asks for: data:", "asks for: blob:")
LONGEST = "api/library.html"
AXE = {"preload": False, "resultTypes": ["violations", "incomplete"]}


def invisible(answer: dict) -> list[dict]:
    """Elements whose letters have the colour of their background, which axe counts as undecided."""
    nodes = [node for found in answer["incomplete"] if found["id"] == "color-contrast" for node in found["nodes"]]
    return [node for node in nodes if any((c["data"] or {}).get("messageKey") == "equalRatio" for c in node["any"])]


SHARES = 6


@pytest.mark.parametrize("share", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, SHARES))])
def test_no_page_says_anything_asks_outside_or_shuts_a_reader_out(site, chromium, share):
    """At two widths and in light and dark: console, requests, names of pictures, overflow, axe."""
    Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'ddpmlab[dev]'").Axe
    axe, faults = Axe(), []
    context = chromium.new_context()
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(f"console: {message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    tab.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    tab.on("request", lambda request: said.append(f"asks for: {request.url}"))
    for page in pages(site)[share::SHARES]:
        name = str(page.relative_to(site))
        said.clear()
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.emulate_media(color_scheme="light")
        tab.goto(page.as_uri(), wait_until="load", timeout=120_000)
        tab.evaluate("() => window.MathJax?.startup?.promise")
        tab.add_style_tag(content=STILL)
        faults += [f"{name}: picture without words: {source}" for source in tab.evaluate(NAMELESS)]
        for width, scheme in STATES:
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            wide = tab.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 1:
                faults.append(f"{name} at {width}: {wide} px wider than its window")
            faults += [f"{name} at {width}: no room for {text!r}" for text in tab.evaluate(SQUEEZED)]
            # narrow is the same page with the same names; dark differs in its colours, and the longest page's entries
            # have those of api/lab
            if width == 1280 and (scheme == "light" or name != LONGEST):
                options = AXE if scheme == "light" else AXE | {"runOnly": ["color-contrast"]}
                answer = axe.run(tab, options=options).response
                faults += [f"{name} {scheme}: invisible: {node['html'][:160]}" for node in invisible(answer)[:1]]
                for found in answer["violations"]:
                    if found["impact"] in SERIOUS:
                        faults.append(f"{name} {scheme}: {found['id']}: {found['nodes'][0]['html'][:160]}")
        faults += [f"{name}: {text}" for text in said if not text.startswith(OWN)]
    context.close()
    assert not faults


def test_search_shows_excerpts_from_a_file(site, open_page):
    page = open_page((site / "search.html").as_uri() + "?q=helix", wait="#search-results p.context")
    page.wait_for_function("() => /found \\d+ page/.test(document.body.textContent)")
    excerpts = page.locator("#search-results p.context").all_text_contents()
    assert len(excerpts) >= 5
    assert all(len(text) > 20 for text in excerpts)
    assert sum("helix" in text.lower() for text in excerpts) >= len(excerpts) / 2


def test_there_is_one_search_box(site, open_page):
    page = open_page(site / "index.html")
    assert page.locator(".search-button__button:visible, form.bd-search:visible").count() == 1


def test_verdicts_are_those_of_the_table_and_sort_and_filter(site, open_page):
    claims = pd.read_csv(RESULTS / "claims.csv", dtype=str)
    page = open_page(site / "verdicts.html")
    rows = page.locator(".verdicts tbody tr")
    assert rows.count() == len(claims)
    shown = [row.locator("td").all_text_contents() for row in rows.all()]
    order = sphinx_ext.ordered(sphinx_ext.read_claims(RESULTS).values(), sphinx_ext.headlines(ROOT / "book"))
    for cells, claim in zip(shown, order, strict=True):
        assert cells[1] == claim["verdict"]
        assert cells[2] == sphinx_ext.display(claim["published"])
        assert cells[3].startswith(sphinx_ext.claim_field(claim, "measured"))
        ends = sphinx_ext.limits(RESULTS, claim)
        assert cells[4:6] == ["\N{EN DASH}" if end is None else sphinx_ext.number(f"{end:g}", 2) for end in ends]
    for row, claim in zip(rows.all(), order, strict=True):
        link = row.locator("td:nth-child(2) a").get_attribute("href")
        assert link == f"studies/{claim['page']}.html#verdicts"
    assert sphinx_ext.totals(order, "in all") in page.locator("article").inner_text()
    # filtered by verdict, then by words
    page.locator(".verdicts-tools select").nth(1).select_option("artefact")
    assert page.locator(".verdicts tbody tr:visible").count() == (claims.verdict == "artefact").sum()
    page.locator(".verdicts-tools select").nth(1).select_option("all")
    page.locator(".verdicts-tools input").fill("dropout helix")
    wanted = claims.claim.str.contains("dropout") & claims.claim.str.contains("helix")
    assert page.locator(".verdicts tbody tr:visible").count() == wanted.sum()
    page.locator(".verdicts-tools input").fill("")
    # sorted by measured value, up and down, by keyboard
    page.locator(".verdicts thead th").nth(3).get_by_role("button").focus()
    for direction in (1, -1):
        page.keyboard.press("Enter")
        texts = page.locator(".verdicts tbody tr td:nth-child(4)").all_text_contents()
        values = [float(text.split()[0].replace("\N{MINUS SIGN}", "-").replace(",", "")) for text in texts]
        assert values == sorted(values, reverse=direction < 0)


def test_floor_and_ceiling_of_a_claim_are_those_of_its_score(tmp_path):
    head = "study,dataset,variant,seed,metric,n,value,floor_mean,floor_sd,ceiling,p_value"
    (tmp_path / "a.csv").write_text(
        f"{head}\na,helix,x,0,emd_128,128,60,50,8,100,\na,helix,x,1,emd_128,128,60,52,8,104,\n"
        f"a,sin_5_5,x,0,emd_128,128,60,1,8,2,\na,helix,x,0,kl,,0.5,,,,\na,helix,x,0,frechet_distance,9,1,2,,3,\n"
        f"a,helix,x,0,frechet_distance_2048,2048,1,4,,5,\n"
    )
    (tmp_path / "b.csv").write_text(
        f"{head}\nb,two_moons,x,0,energy_distance,9,1,2,,3,\nb,two_moons,x,0,energy_distance_published,,1,,,,\n"
        f"b,two_moons,perfect sampler,0,energy_distance_published,,0.25,,,,\n"
    )
    (tmp_path / "scores.csv").write_text(f"{head}\nscores,two_moons,pure noise,0,energy_distance_published,,0.75,,,,\n")

    def limits(page, claim, source="homework-report", **fields):
        return sphinx_ext.limits(tmp_path, {"page": page, "claim": claim, "source": source, **fields})

    assert limits("a", "fall of the EMD (helix)") == (51.0, 102.0)
    assert limits("a", "fall of the EMD (surface)") == (1.0, 2.0)
    assert limits("a", "fall of the EMD, × 1000 (helix)") == (51_000.0, 102_000.0)
    assert limits("a", "fall of the path KL, nats (helix)") == (0.0, None)
    assert limits("a", "fall of the Fréchet distance (helix), n = 2,048") == (4.0, 5.0)
    assert limits("a", "says nothing (helix)") == (None, None)
    assert limits("a", "says nothing", dataset="sin_5_5", metric="emd_128") == (1.0, 2.0)
    assert limits("b", "fall of the energy distance, %", "two-moons-report") == (0.25, 0.75)
    assert limits("b", "fall of the energy distance, %") == (2.0, 3.0)


def test_claims_by_name_are_an_error_where_there_are_none():
    row = {"published": "33.3", "measured": "1.7", "ci_low": "1.3547", "ci_high": "2.05028", "verdict": "reproduced"}
    assert [sphinx_ext.claim_field(row, field) for field in ("measured", "interval")] == ["1.70", "1.35 to 2.05"]
    alone = row | {"ci_low": "1.7", "ci_high": "1.7"}
    assert [sphinx_ext.claim_field(alone, field) for field in ("measured", "interval")] == ["1.7", "\N{EN DASH}"]
    assert sphinx_ext.number("-0.00182") == "\N{MINUS SIGN}0.00182"
    assert [sphinx_ext.number(t) for t in ("1e-06", "1235.6", "no value", "0", "43.2")] == [
        *("0.000001", "1,236", "no value", "0", "43.2")
    ]
    assert sphinx_ext.display("fall (sin_5_5)") == "fall (surface)"


def test_a_measurement_in_prose_is_that_of_the_table(tmp_path):
    rows = [("helix", "a", 0, "emd", 3.0), ("helix", "a", 1, "emd", 5.0), ("helix", "b", 1, "emd", 2.0),
            ("helix", "b", 0, "emd", 1.0), ("helix", "b", 2, "emd", 9.0), ("helix", "a", 0, "kl", 7.0),
            ("surface", "a", 0, "emd", 7.0)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["dataset", "variant", "seed", "metric", "value"])
    table.to_csv(tmp_path / "s.csv", index=False)
    found = [sphinx_ext.measured(tmp_path, "s", "helix", *x) for x in (("emd", "a"), ("emd", "a", "b"), ("emd", "c"))]
    assert found == [report.interval(np.array([3.0, 5.0])), report.interval(np.array([2.0, 3.0])), None]
    assert sphinx_ext.measured(tmp_path, "s", "helix", "emd × 1000", "a").startswith("4,000 (")
    assert sphinx_ext.measured(tmp_path, "none", "helix", "emd", "a") is None
    assert sphinx_ext.measured(tmp_path, "s", "surface", "emd", "a") == "7"  # one seed has no interval
    pd.concat([table, table]).to_csv(tmp_path / "twice.csv", index=False)
    with pytest.raises(ValueError, match="'a' has several rows of emd at seed 0"):
        sphinx_ext.measured(tmp_path, "twice", "helix", "emd", "a")
    for variants in ((), ("a", "b", "c")):
        with pytest.raises(ValueError, match=f"{len(variants)} variants; give one, or two"):
            sphinx_ext.measured(tmp_path, "s", "helix", "emd", *variants)


def test_a_page_prints_what_it_measured(site):
    part = "table 5: T={}, no time input, linear output"
    rise = sphinx_ext.measured(RESULTS, "own_network", "helix", "emd_128", part.format(200), part.format(50))
    text = (site / "studies" / "own_network.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert f'<span class="claim">{rise}</span>' in text


def test_the_reference_says_by_which_name_a_thing_is_made_and_how_it_is_called(site):
    assert names_of(samplers.Heun) == [("sampler", "heun")]
    text = (site / "api" / "library.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "", text)
    assert "By name: the sampler heun." in plain
    assert 'id="ddpmlab.samplers.Sampler.__call__"' in text
    assert "factory" not in "".join(re.findall(r"<dt class=\"sig.*?</dt>", text, re.DOTALL))


def test_no_role_is_left_as_text_and_words_are_those_of_the_verdict(site):
    for page in pages(site):
        text = re.sub(r"<(pre|script)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\{[a-z:]+\}(`|\s*<code)", text), page.name  # left as it was written, or half read
    (question,) = (p for p in pages(site) if p.name == "two_moons.html")
    words = {"reproduced": "beats", "not reproduced": "does not beat"}
    claim = sphinx_ext.read_claims(RESULTS)["moons-final-energy"]
    text = re.sub(r"<[^>]+>", "", question.read_text(encoding="utf-8"))
    said = words.get(claim["verdict"], "is not told from")
    assert f"The final model {said} the baseline: it takes" in text


def test_a_rehearsal_may_settle_fewer_claims(tmp_path):
    assert not sphinx_ext.rehearsed(tmp_path)
    (tmp_path / "provenance.json").write_text('{"a": {"profile": "full"}}')
    assert not sphinx_ext.rehearsed(tmp_path)
    (tmp_path / "provenance.json").write_text('{"a": {"profile": "full"}, "b": {"profile": "quick"}}')
    assert sphinx_ext.rehearsed(tmp_path)


def test_the_front_page_answers_in_at_most_400_words_with_numbers_from_tables(site):
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    page = (site / "index.html").read_text(encoding="utf-8")
    article = page[page.index("<article") : page.index("</article>")]
    plain = re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", article, flags=re.DOTALL))
    assert len(re.findall(r"\w[\w.,%()\N{MINUS SIGN}-]*", plain)) <= 400
    # each question of the reports leads to its page, with the verdict of one of that page's claims
    questions = re.search(r"```\{answers\}\n(.*?)```", text, re.DOTALL)[1].splitlines()
    rows = re.findall(r"<tr.*?</tr>", article, re.DOTALL)[1:]
    assert len(questions) == len(rows) >= 11
    for line, row in zip(questions, rows, strict=True):
        question, study, patterns, *more = (part.strip() for part in line.split("|"))
        claim = sphinx_ext.of_quantity(sphinx_ext.chosen_claim(RESULTS, study, patterns.split()))
        if more:
            words = sphinx_ext.short_answer(more[0], claim["verdict"])
            assert len(words.split()) <= 5
            assert words in re.sub(r"<[^>]+>", "", row)
        assert question in row
        assert f'href="studies/{study}.html"' in row
        assert claim["verdict"] in row
        assert sphinx_ext.claim_field(claim, "measured") in row
    # what stands in the prose as digits comes by a role
    prose = re.sub(r"\{[a-z:]+\}`[^`]*`|```.*?```|`[^`]*`|\d+%|[|:-]+", " ", text, flags=re.DOTALL)
    assert not re.findall(r"\d+", prose)


def test_a_question_takes_the_first_claim_that_fits(tmp_path):
    (tmp_path / "claims.csv").write_text("id,page\na-1,a\na-2,a\nb-1,b\n")
    found = [sphinx_ext.chosen_claim(tmp_path, *x) for x in (("a", ["b-1", "a-2"]), ("a", ["x"]), ("c", ["a-1"]))]
    assert [row and row["id"] for row in found] == ["a-2", "a-1", None]


def test_the_effect_of_a_claim_is_short():
    claims = {
        "EMA helps by a quarter: fall of the energy distance (its convention), %": "fall of the energy distance, %",
        "training longer helps: fall of the EMD, 100 to 1000 epochs (helix)": "fall of the EMD",
        "EMD rises with T: rise from T = 10 to 200 (helix)": "rise from T = 10 to 200",
    }
    assert {claim: sphinx_ext.short_effect(claim) for claim in claims} == claims


def test_of_a_bar_the_quantity_itself_is_shown():
    words = "it does: points by which the Fréchet distance left lies below our bar of 1%, n = 10,000"
    row = {"claim": words, "measured": "-1.2", "ci_low": "-1.4", "ci_high": "-1.0"}
    assert sphinx_ext.short_effect(words) == "Fréchet distance left, % (bar 1%)"
    assert sphinx_ext.of_quantity(row) == {"claim": words, "measured": "2.2", "ci_low": "2", "ci_high": "2.4"}
    words = "made (guided): points by which its share of pairs lies above our bar of 70%"
    row = {"claim": words, "measured": "-11", "ci_low": "-18", "ci_high": "-4.5"}
    assert sphinx_ext.of_quantity(row) == {"claim": words, "measured": "59", "ci_low": "52", "ci_high": "65.5"}
    plain = {"claim": "EMA helps: fall of the MMD, %", "measured": "1"}
    assert sphinx_ext.of_quantity(plain) is plain


def test_an_answer_is_that_of_its_verdict():
    words = "a little; no: it harms; unclear"
    found = [sphinx_ext.short_answer(words, verdict) for verdict in report.VERDICTS]
    assert found == ["a little", "no: it harms", "unclear", "unclear"]
    assert [sphinx_ext.short_answer("it does", verdict) for verdict in report.VERDICTS] == ["it does"] * 4


def test_verdicts_are_in_the_order_of_reports_questions_and_headlines():
    sources = {
        "b-10-helix": "homework-report, table 3", "b-10-sin_5_5": "homework-report, table 3",
        "b-9": "homework-report, question 2", "moons-ema-kl": "two-moons-report", "moons-a": "two-moons-report",
        "moons-ema": "two-moons-report", "a-more": "homework-report, note to table 5", "a": "homework-report, table 1",
    }  # fmt: skip
    rows = [{"id": id, "source": source, "page": "p", "verdict": "reproduced"} for id, source in sources.items()]
    found = [row["id"] for row in sphinx_ext.ordered(rows, ["a", "moons-ema"])]
    assert found == ["a", "b-9", "b-10-sin_5_5", "b-10-helix", "a-more", "moons-ema", "moons-ema-kl", "moons-a"]
    rows[0]["verdict"], rows[1]["verdict"] = "artefact", "not resolved"
    assert sphinx_ext.totals(rows, "on a report") == (
        "Of 8 rows on a report 6 are reproduced, 1 is not resolved, 1 is an artefact."
    )


def test_claims_to_take_away_have_floor_and_ceiling(site):
    rows = sphinx_ext.read_claims(RESULTS)
    copies = [site / "results" / "claims.csv", *site.glob("_downloads/*/claims.csv")]
    assert len(copies) == 2
    assert copies[0].read_bytes() == copies[1].read_bytes()
    for row in sphinx_ext.read_table(copies[0]):
        own = rows[row["id"]]
        assert {name: row[name] for name in own} == own
        ends = sphinx_ext.limits(RESULTS, own)
        assert [row["floor"], row["ceiling"]] == ["" if end is None else f"{end:.6g}" for end in ends]


def test_no_line_ends_inside_an_interval():
    text = "1.70 (1.35 to 2.05), 3% (−1 to 2%) and 92.0 ± 2.8, from 1 to 2 (up to 3)"
    assert sphinx_ext.unbroken(text).replace("\N{NO-BREAK SPACE}", "~") == (
        "1.70 (1.35~to~2.05), 3% (−1~to~2%) and 92.0~±~2.8, from 1 to 2 (up to 3)"
    )


def test_a_wide_table_on_a_phone_says_so(site, open_page):
    page = open_page(site / "studies" / "two_moons.html", viewport={"width": 390, "height": 844})
    page.wait_for_selector(".scroll.wide")
    for box in page.locator(".scroll").all():
        wide, marked = box.evaluate("e => [e.scrollWidth > e.clientWidth + 1, e.classList.contains('wide')]")
        assert wide == marked
    first = page.locator(".scroll.wide").first
    assert "swipe" in first.evaluate("e => getComputedStyle(e, '::before').content")
    first.evaluate("e => e.scrollLeft = e.scrollWidth")
    page.wait_for_function("() => document.querySelector('.scroll.wide').classList.contains('at-end')")
    # the long tables are cards
    for name in ("index", "verdicts", "status"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.locator(".scroll:not(.wide)").count() >= 1
        assert page.locator(":is(.answers, .verdicts, .provenance) .scroll.wide").count() == 0, name


def test_figures_of_a_dark_page_are_dark_and_photographs_stay(site, open_page):
    page = open_page(site / "studies" / "fashion_mnist.html", color_scheme="dark")
    filters = {"invert": [], "brightness": []}
    for image in page.locator("article .cell_output img[src$='.svg']").all():
        marked, how = image.evaluate("e => [e.hasAttribute('data-photographs'), getComputedStyle(e).filter]")
        filters["brightness" if marked else "invert"].append(how)
    assert all(filters.values())
    assert all(how.startswith(name) for name, found in filters.items() for how in found)


def test_private_bases_are_not_shown(site):
    for page in (site / "api").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
        assert not re.findall(r"Bases: [^\n]*\b_[A-Z]\w+", text), page.stem


def test_studies_offer_their_notebook_and_tables(site):
    for page in (site / "studies").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert f"../_sources/studies/{page.stem}.ipynb" in text
        assert f"../results/{page.stem}.csv" in text


def test_no_first_line_of_an_attribute_is_read_as_its_type(site):
    """The docstring's reader takes what stands before a colon there for a type."""
    for page in (site / "api").glob("*.html"):
        assert 'Type<span class="colon">' not in page.read_text(encoding="utf-8"), page.stem


def test_terms_and_symbols_are_linked_where_they_are_first_used(site):
    page = (site / "studies" / "epochs.html").read_text(encoding="utf-8")
    article = page[page.index("<article") : page.index("</article>")]
    assert len(re.findall(r'href="\.\./notation\.html#term-path-KL"', article)) == 1
    page = (site / "studies" / "parts.html").read_text(encoding="utf-8")
    article = page[page.index("<article") : page.index("</article>")]
    linked = re.findall(r'href="\.\./notation\.html#(symbol-[^"]+)"', article)
    assert len(linked) == len(set(linked)) >= 3
    assert set(linked) <= anchors(site / "notation.html").ids
    # not in headings, code, captions or other links
    for inside in re.finditer(r"<(h[1-6]|pre|figcaption)\b.*?</\1>", article, re.DOTALL):
        assert "notation.html#" not in inside[0]


def test_symbols_are_found_in_formulas():
    symbols = [
        r"\alpha_t",
        r"\bar\alpha_t",
        r"\sigma_t",
        r"\hat\sigma_t",
        r"x_0",
        "D",
        r"D^\ast",
        "n",
        r"\mathrm{SNR}_t",
    ]
    patterns = {symbol: pattern for symbol in symbols if (pattern := sphinx_ext.symbol_pattern(symbol))}
    assert "n" not in patterns
    assert sphinx_ext.symbols_in(r"x_t = \alpha_t x_0 + \sigma_t \varepsilon", patterns) == [
        r"\alpha_t",
        "x_0",
        r"\sigma_t",
    ]
    assert sphinx_ext.symbols_in(r"\bar\alpha_T", patterns) == [r"\bar\alpha_t"]
    assert sphinx_ext.symbols_in(r"\hat\sigma / \mathrm{SNR}_{t}", patterns) == [r"\hat\sigma_t", r"\mathrm{SNR}_t"]
    assert sphinx_ext.symbols_in(r"\alpha\,\varepsilon - \sigma x_0", patterns) == [r"\alpha_t", r"\sigma_t", "x_0"]
    assert sphinx_ext.symbols_in(r"|D - D^\ast|", patterns) == ["D", r"D^\ast"]
    assert sphinx_ext.symbols_in(r"\mathrm{ED}^2 + n", patterns) == []


def test_status_lists_every_page(site):
    text = re.sub(r"<[^>]+>", " ", (site / "status.html").read_text(encoding="utf-8"))
    for page, note in json.loads((RESULTS / "provenance.json").read_text()).items():
        assert page.replace("_", " ") in text
        assert note["commit"] in text
    assert "all pages" in text


def test_seconds_of_the_page_alone_are_not_given_for_its_computing():
    assert sphinx_ext._cost({"seconds": 15.0, "core_seconds": 15.0}) is None
    assert sphinx_ext._cost({"seconds": 15.0, "core_seconds": 900.0}) == 900.0
    assert sphinx_ext._cost({}) is None


@pytest.mark.slow
def test_the_pdf_has_every_page_and_figure_and_its_links_work(site, chromium, tmp_path):
    printed = pdf.print_book(site, ROOT / "book", tmp_path / "book.pdf", chromium).read_bytes()
    places = pdf.destinations(printed)
    chapters = pdf.chapters(ROOT / "book")
    begins = [places[f"{chapter.name}--"] for chapter in chapters[1:]]
    assert begins == sorted(set(begins))
    # the reference is a part of the book, not most of it: arguments are in the pages alone
    api = [i for i, chapter in enumerate(chapters[1:]) if chapter.name.startswith("api/")]
    assert sum(begins[i + 1] - begins[i] for i in api) < printed.count(b"/Type /Page\n") / 3
    articles = [pdf.article(site, chapter, {c.name for c in chapters}) for chapter in chapters]
    figures = re.findall(r'<figure[^>]*id="([^"]+)"', " ".join(articles))
    assert len(figures) >= 20
    pictures = set(re.findall(r'<img[^>]*src="([^"]+\.png)"', " ".join(articles)))
    assert printed.count(b"/Subtype /Image") >= len(pictures)
    inside = set(re.findall(r'<a [^>]*href="#([^"]+)"', " ".join(articles)))
    assert inside - set(places) == set()
    text = pdf.combined(site, ROOT / "book", places)
    contents = text[text.index('<nav class="book-contents">') : text.index("</nav>")]
    assert [int(n) for n in re.findall(r"</a>(\d+)</li>", contents)] == begins


def test_no_page_knows_the_machine_it_was_built_on(site):
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert "PosixPath(" not in text, page
        assert str(ROOT) not in text, page


def test_the_book_is_light(site):
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) < 60 * MEBIBYTE


NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("book/**/*.ipynb")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_committed_notebooks_are_clean(path):
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert not re.search(r"(?<![\w.])/(home|root|Users|work|tmp)/\w+", json.dumps(notebook))
