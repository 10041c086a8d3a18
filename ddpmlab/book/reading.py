"""How pages read, in numbers: words a paragraph and a sentence, captions, and whether figures are referred to.

Run: `python -m ddpmlab.book.reading [REVISION]`

With a revision of the project's history its pages stand beside today's. Words are those of the rendered text, glued
numbers filled in; tables, formulas and headings do not count as paragraphs.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from ddpmlab.book.glued import glued, sentence

_GLUED = re.compile(r"\{glue:text\}`([^`:]+)(?::[^`]*)?`")
_PART = re.compile(r"\{glued\}`(\S+) (\w+)`")
_ROLE = re.compile(r"\{[a-z:]+\}`([^`]*?)(?: <[^>]*>)?`")
_FORMULA = re.compile(r"\$\$.*?\$\$( \([\w-]+\))?", re.DOTALL)
_END = re.compile(r"(?<=[.!?:;])\s+(?=[\"'*A-ZÀ-Ý\d])")


@dataclass(frozen=True)
class Reading:
    """Counts of one page.

    Attributes:
        paragraphs: words of each.
        sentences: words of each.
        captions: words of each figure's caption.
        figures: names of the figures, and whether the text refers to each.
        tables: how many there are.
    """

    paragraphs: list[int]
    sentences: list[int]
    captions: list[int]
    figures: dict[str, bool]
    tables: int

    def row(self) -> dict[str, float]:
        """One line of the report: medians, the longest, and what is not referred to."""
        return {
            "words a paragraph": float(np.median(self.paragraphs)),
            "longest": max(self.paragraphs),
            "words a sentence": float(np.mean(self.sentences)),
            "longest sentence": max(self.sentences),
            "longest caption": max(self.captions, default=0),
            "figures": len(self.figures),
            "not referred to": sum(not cited for cited in self.figures.values()),
            "tables": self.tables,
        }


def _words(text: str) -> int:
    return len([word for word in text.split() if re.search(r"\w", word)])


def paragraphs(source: str) -> list[str]:
    """The paragraphs of a cell of Markdown, without headings, tables, fences, labels and displayed formulas."""
    found = []
    for block in re.split(r"\n\s*\n", _FORMULA.sub("", source)):
        lines = [line for line in block.splitlines() if not re.match(r"\s*(#|\||:|```|\([\w-]+\)=)", line)]
        items = re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))  # the items of a list are read one by one
        found += [" ".join(item.split()) for item in items if _words(item)]
    return found


def read(page: nbformat.NotebookNode) -> Reading:
    """Count one page that was run."""
    values = {name: value if isinstance(value, str) else f"{value:.3g}" for name, value in glued(page).items()}
    sources = [cell.source for cell in page.cells if cell.cell_type == "markdown"]
    texts = [_PART.sub(lambda m: sentence(values.get(m[1], m[1]), m[2]), source) for source in sources]
    texts = [_ROLE.sub(r"\1", _GLUED.sub(lambda m: values.get(m[1], m[1]), text)) for text in texts]
    found = [text for source in texts for text in paragraphs(source)]
    described = [c.metadata.get("mystnb", {}).get("figure", {}) for c in page.cells]
    named = {figure["name"]: figure.get("caption", "") for figure in described if figure.get("name")}
    tables = sum(
        "<table" in "".join(output.get("data", {}).get("text/html", ""))
        for cell in page.cells
        for output in cell.get("outputs", [])
    )
    tables += sum(len(re.findall(r"^\|[ :|-]+\|$", source, re.MULTILINE)) for source in sources)
    return Reading(
        paragraphs=[_words(text) for text in found],
        sentences=[n for text in found for part in _END.split(text) if (n := _words(part))],
        captions=[_words(caption) for caption in named.values()],
        figures={name: any(f"`{name}`" in source for source in sources) for name in named},
        tables=tables,
    )


def _pages(book: Path, revision: str | None) -> dict[str, str]:
    """Source of each committed page, as it is or as it was."""
    if revision is None:
        return {path.stem: path.read_text(encoding="utf-8") for path in sorted((book / "studies").glob("*.ipynb"))}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=book, capture_output=True, text=True, check=True).stdout

    names = git("ls-tree", "--name-only", revision, "studies/").split()
    return {Path(name).stem: git("show", f"{revision}:./{name}") for name in names if name.endswith(".ipynb")}


def main(arguments: list[str]) -> None:
    """Print how today's pages read, and those of the revision that the first argument names."""
    book, tables = Path(__file__).parents[2] / "book", {}
    for name in (None, *arguments[:1]):
        pages = {stem: nbformat.reads(text, as_version=4) for stem, text in _pages(book, name).items()}
        tables[name or "today"] = pd.DataFrame({stem: read(page).row() for stem, page in pages.items()}).T
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        for name, table in tables.items():
            print(f"{name}:\n{table.round(1).to_string()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
