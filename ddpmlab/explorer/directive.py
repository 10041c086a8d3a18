"""The explorer in a Sphinx book: an `explorer` directive, and links to it from the pages of its studies.

````
```{explorer}
settings: {law: helix, a_model: helix_model_3_00100}
stops:
  - {title: Learned against exact, text: Two sentences., state: {field: error}}
```
````

The page is made while the book is built, of the scripts and networks of the installed package, so it never lags behind.
"""

import html
import os
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from ddpmlab.explorer import page

_HOMEWORK = {"a_solver": "ddpm", "a_steps": 50, "b_solver": "ddpm", "b_steps": 50}
LINKS: dict[str, dict[str, Any]] = {
    "studies/parts": {"law": "two_moons", "a_model": "exact", "a_schedule": "variance_exploding", "a_steps": 10},
    "studies/scores": {"law": "helix", "a_model": "helix_model_3_00100", **_HOMEWORK, "n": 128},
    "studies/epochs": {"law": "helix", "a_model": "helix_model_3_00001", "b_model": "helix_model_3_00100", **_HOMEWORK},
    "studies/complexity": {"law": "helix", "a_model": "helix_model_1", "b_model": "helix_model_3_00100", **_HOMEWORK},
    "studies/diffusion_steps": {"law": "helix", "a_model": "helix_model_3_00001", "b_model": "exact", **_HOMEWORK},
    "studies/noise_schedules": {
        "law": "helix",
        "a_model": "exact",
        "a_schedule": "linear_as_the_homework_s",
        "b_schedule": "cosine_continuous",
        **_HOMEWORK,
    },
    "studies/own_network": {
        "law": "helix",
        "a_model": "helix_model_3_00100",
        "b_model": "helix_model_3_relu",
        **_HOMEWORK,
    },
    "studies/settled": {"law": "helix", "a_model": "helix_model_3_00100", "field": "error", **_HOMEWORK},
    "studies/two_moons": {"law": "two_moons", "a_model": "two_moons_linear", "b_model": "two_moons_recipe_04000"},
    "studies/rivals": {"law": "two_moons", "a_model": "exact", "b_model": "two_moons_recipe_04000", "field": "error"},
    "studies/memorisation": {"law": "two_moons", "a_model": "two_moons_recipe_04000", "b_model": "exact"},
}
"""What the explorer shows when it is opened from a page, as settings by the page's name."""


def address(settings: dict[str, Any]) -> str:
    """Settings as the explorer's part of an address, `#explorer?law=helix&...`."""
    words = {True: "1", False: "0"}
    pairs = ((key, words.get(value, value) if isinstance(value, bool) else value) for key, value in settings.items())
    return "#explorer?" + "&".join(f"{key}={quote(str(value))}" for key, value in pairs)


class ExplorerDirective(SphinxDirective):
    """Raw HTML of the explorer; its content is YAML with `settings` and `stops`."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            given = yaml.safe_load("\n".join(self.content)) or {}
            unknown = set(given) - {"settings", "stops"}
            if unknown:
                raise ValueError(f"unknown keys {sorted(unknown)}; the directive takes: settings, stops")
            body = page.fragment(stops=given.get("stops", ()), **given.get("settings", {}))
        except (ValueError, TypeError, yaml.YAMLError) as error:
            raise self.error(f"explorer: {error}") from error
        folder = files("ddpmlab.explorer")
        for name in (*page.SCRIPTS, "explorer.css", "page.py", "export.py"):
            if (folder / name).is_file():
                self.env.note_dependency(str(folder / name))
        return [nodes.raw("", body, format="html")]


def _link(app, pagename, templatename, context, doctree) -> None:
    """Put a link to the explorer under a study's page."""
    if pagename not in LINKS or "explore" not in app.env.found_docs or "body" not in context:
        return
    target = os.path.relpath("explore.html", os.path.dirname(pagename))
    link = html.escape(target + address(LINKS[pagename]))
    context["body"] += f'<p class="explorer-link"><a href="{link}">Open in the explorer</a></p>'


def setup(app):
    """Register the directive and the links."""
    app.add_directive("explorer", ExplorerDirective)
    app.connect("html-page-context", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
