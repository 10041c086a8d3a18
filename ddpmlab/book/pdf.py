"""The whole book as one PDF: `python -m ddpmlab.book.pdf [site] [output]`, after the book was rendered.

The rendered pages are put into one, in the order of the table of contents, with their links turned into links inside
it, and printed by a headless Chromium: once to learn on which page each chapter begins, once with these numbers in
the contents. Needs playwright and a Chromium (`$CHROMIUM`, or one of the usual names on the path).
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from posixpath import dirname, join, normpath

import yaml

from ddpmlab.files import atomic

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SEPARATOR = "--"
_PRINT = """
@page { size: A4; margin: 18mm 17mm 20mm 17mm; }
html, body { background: #fff; color: #111; font-size: 9.5pt; }
body { display: block; margin: 0; }
article.bd-article { max-width: none; padding: 0; border: 0; break-before: page; }
h1 { font-size: 20pt; margin: 0 0 10pt; } h2 { font-size: 14pt; } h3 { font-size: 11.5pt; }
a { color: #0b5394; text-decoration: none; } .headerlink, .copybtn, .toctree-wrapper { display: none !important; }
img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; font-size: 7.5pt; break-inside: auto; }
nav.book-contents ol { list-style: none; padding: 0; } nav.book-contents li { display: flex; }
nav.book-contents li a { flex: 1; display: flex; } nav.book-contents li a::after { content: ""; flex: 1; border-bottom: 1px dotted #999; margin: 0 6px 4px; }
nav.book-contents .part { font-weight: 700; margin-top: 8pt; }
article[id^="api/"] dl.py { font-size: 7.5pt; margin: 0 0 2pt; } article[id^="api/"] dl.py p { margin: 0 0 2pt; }
article[id^="api/"] section { columns: 2; column-gap: 7mm; } article[id^="api/"] section section { columns: auto; }
article[id^="api/"] h1, article[id^="api/"] h2, article[id^="api/"] section > p { column-span: all; }
article[id^="api/"] dl.field-list, article[id^="api/"] dl.py mjx-container { display: none; }
article[id^="api/"] pre { font-size: 6pt; } article[id^="api/"] section.module > :is(h2, h3, h4) { font-size: 10pt; margin-top: 6pt; }
.title-page { height: 230mm; display: flex; flex-direction: column; justify-content: center; break-after: page; }
"""  # noqa: E501
_FOOTER = (
    '<div style="width: 100%; font-size: 8px; text-align: center; color: #555">'
    '<span class="pageNumber"></span> / <span class="totalPages"></span></div>'
)


@dataclass(frozen=True)
class Chapter:
    """A page of the book: its name, its number and the part that begins with it."""

    name: str
    number: str
    part: str = ""


def chapters(book: Path) -> list[Chapter]:
    """The pages in the order of `_toc.yml`; the front page comes first and has no number."""
    toc = yaml.safe_load((book / "_toc.yml").read_text(encoding="utf-8"))
    found, number = [Chapter(toc["root"], "")], 0
    for part in toc["parts"]:
        for i, entry in enumerate(part["chapters"]):
            number += 1
            found.append(Chapter(entry["file"], str(number), part.get("caption", "") if i == 0 else ""))
    return found


def _inside(name: str, fragment: str = "") -> str:
    return f"{name}{_SEPARATOR}{fragment}"


def article(site: Path, chapter: Chapter, known: set[str]) -> str:
    """A page's article with its own names: ids begin with the page's name, links to pages of the book stay inside."""
    page = (site / f"{chapter.name}.html").read_text(encoding="utf-8")
    text = page[page.index("<article") : page.index("</article>") + len("</article>")]
    folder = dirname(chapter.name)
    text = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{_inside(chapter.name, m[1])}"', text)
    text = re.sub(r'\b(for|aria-labelledby)="([^"]+)"', lambda m: f'{m[1]}="{_inside(chapter.name, m[2])}"', text)

    def inside(match: re.Match) -> str:
        address, _, fragment = match[1].partition("#")
        if re.match(r"[a-z]+:|//", address):
            return match[0]
        target = normpath(join(folder, address)) if address else f"{chapter.name}.html"
        if target.removesuffix(".html") in known:
            fragment = "" if "?" in fragment else fragment  # what follows a question mark is read by a script
            return f'href="#{_inside(target.removesuffix(".html"), fragment)}"'
        return f'href="{target}"'

    text = re.sub(r'href="([^"]*)"', inside, text)
    text = re.sub(r'src="(?!data:|https?:)([^"]*)"', lambda m: f'src="{normpath(join(folder, m[1]))}"', text)
    if chapter.number:
        text = re.sub(r"(<h1[^>]*>)", rf"\g<1>{chapter.number}&ensp;", text, count=1)
    return text.replace("<article", f'<article id="{_inside(chapter.name)}"', 1)


def titles(site: Path, found: list[Chapter]) -> dict[str, str]:
    """Headings of the pages, as HTML without links."""
    heads = {}
    for chapter in found:
        page = (site / f"{chapter.name}.html").read_text(encoding="utf-8")
        head = re.search(r"<h1[^>]*>(.*?)</h1>", page, re.DOTALL)[1]
        heads[chapter.name] = re.sub(r"<a class=\"headerlink.*?</a>", "", head, flags=re.DOTALL).strip()
    return heads


def _contents(found: list[Chapter], heads: dict[str, str], numbers: dict[str, int]) -> str:
    lines = []
    for chapter in found[1:]:
        if chapter.part:
            lines.append(f'<li class="part">{escape(chapter.part)}</li>')
        number = numbers.get(_inside(chapter.name), "")
        lines.append(
            f'<li><a href="#{_inside(chapter.name)}">{chapter.number}&ensp;{heads[chapter.name]}</a>{number}</li>'
        )
    return f'<nav class="book-contents"><h2>Contents</h2><ol>{"".join(lines)}</ol></nav>'


def combined(site: Path, book: Path, numbers: dict[str, int] | None = None) -> str:
    """All pages as one HTML document, to lie in the site's own folder."""
    found = chapters(book)
    known, heads = {chapter.name for chapter in found}, titles(site, found)
    index = (site / "index.html").read_text(encoding="utf-8")
    head = index[index.index("<head>") : index.index("</head>")].replace("console.log(", "void(")
    cover = f'<section class="title-page"><h1>{heads[found[0].name]}</h1><p>The ddpmlab authors</p></section>'
    body = "".join(article(site, chapter, known) for chapter in found)
    contents = _contents(found, heads, numbers or {})
    return f'<!DOCTYPE html><html lang="en" data-theme="light">{head}<style>{_PRINT}</style></head><body>{cover}{contents}{body}</body></html>'  # noqa: E501


def destinations(pdf: bytes) -> dict[str, int]:
    """Named places of a PDF as Chromium writes it, and the number of the page that each lies on."""
    objects = dict(re.findall(rb"(?:^|\n)(\d+) 0 obj\n(.*?)\nendobj", pdf, re.DOTALL))
    order = list(_leaves(objects, re.search(rb"/Type /Catalog\s.*?/Pages (\d+) 0 R", pdf, re.DOTALL)[1]))
    place = {page: i for i, page in enumerate(order, 1)}
    named = re.findall(rb"/((?:[^\s/\[\]<>()]|#)+) \[(\d+) 0 R /XYZ", pdf)
    unescape = lambda name: re.sub(rb"#([0-9A-Fa-f]{2})", lambda m: bytes([int(m[1], 16)]), name).decode()  # noqa: E731
    return {unescape(name): place[page] for name, page in named if page in place}


def _leaves(objects: dict[bytes, bytes], node: bytes) -> Iterator[bytes]:
    kids = re.search(rb"/Kids \[(.*?)\]", objects[node], re.DOTALL)
    if kids is None:
        yield node
        return
    for kid in re.findall(rb"(\d+) 0 R", kids[1]):
        yield from _leaves(objects, kid)


def find_chromium() -> str:
    """Path of a Chromium.

    Raises:
        FileNotFoundError: there is none.
    """
    wanted = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else CHROMIUM
    for name in wanted:
        if shutil.which(name):
            return shutil.which(name)
    raise FileNotFoundError(f"no Chromium: tried {', '.join(wanted)}; install one or set CHROMIUM to its path")


def print_book(site: Path, book: Path, output: Path, browser=None) -> Path:
    """Print the rendered book into `output` and return it.

    Args:
        site: folder of the rendered pages.
        book: folder of the sources, for the order of `_toc.yml`.
        output: the PDF to write.
        browser: playwright's `Browser` to print with; a Chromium of its own if omitted.

    Raises:
        FileNotFoundError: the site was not rendered, or there is no Chromium.
    """
    if not (site / "index.html").exists():
        raise FileNotFoundError(f"no rendered book in {site}; run `make render` first")
    if browser is not None:
        return _print(site, book, output, browser)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as runtime:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        own = runtime.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            return _print(site, book, output, own)
        finally:
            own.close()


def _print(site: Path, book: Path, output: Path, browser) -> Path:
    page = site / "whole-book.html"
    options = {"format": "A4", "print_background": True, "prefer_css_page_size": True, "outline": True, "tagged": True}
    options |= {"display_header_footer": True, "header_template": "<span></span>", "footer_template": _FOOTER}
    tab, numbers = browser.new_page(color_scheme="light"), {}
    try:
        for _ in range(2):  # the numbers in the contents take no line of their own, so they stay true
            page.write_text(combined(site, book, numbers), encoding="utf-8")
            tab.goto(page.resolve().as_uri(), wait_until="load", timeout=300_000)
            tab.evaluate("() => window.MathJax?.startup?.promise")
            printed = tab.pdf(**options)
            numbers = destinations(printed)
    finally:
        tab.close()
        page.unlink(missing_ok=True)
    with atomic(output) as temporary:
        temporary.write_bytes(printed)
    return output


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:]]
    rendered = places[0] if places else Path("_build/_build/html")
    target = places[1] if len(places) > 1 else Path("_build/ddpmlab.pdf")
    print(print_book(rendered, Path("book"), target))
