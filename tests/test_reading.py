"""How pages read: short captions, every figure referred to, and the counting itself."""

import nbformat
import pytest
from conftest import ROOT

from ddpmlab.book import reading

TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_figures_are_referred_to_and_captions_are_short(template):
    found = reading.read(nbformat.read(template, as_version=4))
    assert not [name for name, cited in found.figures.items() if not cited]
    assert max(found.captions, default=0) <= 30


def test_a_page_is_counted_as_it_is_read():
    text = (
        "(label)=\n# A heading\n\nOne two {glue:text}`n:.0f` four. Five *six* {ref}`seven eight <target>`!\n\n"
        "$$ a = b $$ (eq)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- one item\n- and another of five words\n"
    )
    figure = {"mystnb": {"figure": {"name": "fig-one", "caption": "Two words."}}}
    page = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("1", metadata=figure)]
    )
    found = reading.read(page)
    assert found.paragraphs == [8, 2, 5]
    assert found.sentences == [4, 4, 2, 5]
    assert (found.captions, found.figures, found.tables) == ([2], {"fig-one": False}, 1)
    page.cells[0].source += "\nSee {numref}`fig-one`.\n"
    assert reading.read(page).figures == {"fig-one": True}


def test_a_part_of_a_glued_text_is_counted_by_its_own_words():
    record = {"application/papermill.record/text/plain": repr("Five words are said first. Two more.")}
    output = nbformat.v4.new_output("display_data", record, metadata={"scrapbook": {"name": "n"}})
    cells = [nbformat.v4.new_markdown_cell("{glued}`n first`\n\n{glued}`n rest`")]
    page = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1", outputs=[output])])
    assert reading.read(page).paragraphs == [5, 2]
