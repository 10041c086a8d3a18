r"""The explorer as static HTML: a host element, its state, and a loader.

Browsers refuse to import modules and to fetch from a page that was opened from a file, so both lie inside: the
module's source and the state stand in one JSON block, and the loader imports the source by a Blob URL. A small model
stands in for the widget's: `get`, `set`, `on`, `off`, `save_changes`, `send`. Nothing is asked from anywhere else.
"""

import hashlib
import html
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("kernel.js", "engine.js", "view.js")
"""What makes the module, in order, where present; only the last exports."""

_numbers = itertools.count(1)

_LOADER = """
(function () {
  var host = document.getElementById(%(host)s), data = document.getElementById(%(data)s);
  function say(words) {
    host.textContent = "The explorer cannot start: " + words;
    host.style.cssText = "border: 2px solid; padding: 0.8em";
  }
  var url;
  try {
    var parts = JSON.parse(data.textContent), state = parts.state, handlers = {};
    var model = {
      get: function (key) { return state[key]; },
      set: function (key, value) {
        state[key] = value;
        (handlers["change:" + key] || []).slice().forEach(function (handler) { handler(); });
      },
      on: function (name, handler) { (handlers[name] = handlers[name] || []).push(handler); },
      off: function (name, handler) {
        handlers[name] = (handlers[name] || []).filter(function (known) { return known !== handler; });
      },
      save_changes: function () {},
      send: function () {}
    };
    host.model = model;
    url = URL.createObjectURL(new Blob([parts.module], { type: "text/javascript" }));
  } catch (error) {
    say("its inline state cannot be read (" + error.message + "). Build the page again, or load it whole.");
    return;
  }
  import(url).then(
    function (loaded) { host.textContent = ""; loaded.default.render({ model: model, el: host }); },
    function (error) {
      say("this page may not import its own script (" + error.message +
        "). Open the page in a current browser, outside of viewers that forbid scripts.");
    }
  ).then(function () { URL.revokeObjectURL(url); });
})();
"""


def _read(name: str) -> str | None:
    path = files("ddpmlab.explorer") / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


@cache
def module() -> str:
    """The one ES module: kernel, engine, style and view, with `export default {render}`.

    Raises:
        FileNotFoundError: the package was installed without its scripts.
    """
    parts = [_read(name) for name in SCRIPTS]
    style = _read("explorer.css")
    missing = [name for name, part in zip(SCRIPTS[1:], parts[1:], strict=True) if part is None]
    if missing or style is None:
        raise FileNotFoundError(f"ddpmlab.explorer lacks {', '.join(missing) or 'explorer.css'}; install ddpmlab again")
    return "\n".join(["const STYLE = " + json.dumps(style) + ";", *(part for part in parts if part is not None)])


def _slug(title: str) -> str:
    return re.sub("[^a-z0-9]+", "_", title.lower()).strip("_")


_LAWS = {"two_moons": "Two moons", "helix": "Helix", "sin_5_5": "Surface"}


@cache
def library() -> dict[str, Any]:
    """The laws, denoisers and schedules of the book, by the names that a state or an address may use."""
    from ddpmlab.explorer import export

    own = export.library()
    denoisers = {
        model["id"]: {
            **model["denoiser"],
            **{"title": model["title"], "family": model["title"], "law": model["law"]},
            "stage": f"{model['stage']:,} {model['stage_unit']}",
        }
        for model in own["models"]
    }
    schedules = {_slug(title): spec | {"title": title} for title, spec in own["schedules"].items()}
    laws = {name: spec | {"title": _LAWS.get(name, name)} for name, spec in own["laws"].items()}
    return {"laws": laws, "denoisers": denoisers, "schedules": schedules}


def inline(value: Any) -> str:
    r"""JSON that may stand in a script element: no `</`, no `<!--`, no `<script`, all written `\u003c...`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("</", "\\u003c/").replace("<!", "\\u003c!").replace("<s", "\\u003cs").replace("<S", "\\u003cS")


def _list(stops: Sequence[Mapping[str, Any]]) -> str:
    """What the guided stops say, for readers without JavaScript."""
    rows = (f"<li>{html.escape(stop['title'])}. {html.escape(stop['text'])}</li>" for stop in stops)
    return f"<ol>{''.join(rows)}</ol>" if stops else ""


def fragment(catalogue: Mapping[str, Any] | None = None, stops: Sequence[Mapping[str, Any]] = (), **state: Any) -> str:
    """The explorer as a piece of HTML for any page.

    Args:
        catalogue: laws, denoisers and schedules as `library()` gives them, which stands if omitted.
        stops: guided stops, each `{"title", "text", "state"}`; `"play": True` lets it play, `"board": True` opens the
            drawing board.
        state: settings to start with, such as `law="helix"`, `a_steps=5`, `field="error"`; see `widget.Explorer`.
    """
    catalogue = library() if catalogue is None else catalogue
    values = {**state, "catalogue": catalogue, "stops": list(stops), "host": "static"}
    number = f"{next(_numbers)}-{hashlib.sha256(inline(state).encode()).hexdigest()[:8]}"
    host, data = f"ddx-host-{number}", f"ddx-data-{number}"
    loader = _LOADER % {"host": json.dumps(host), "data": json.dumps(data)}
    return (
        f'<div class="ddx-host" id="{host}"><p>The explorer is loading. It needs JavaScript.</p>{_list(stops)}</div>\n'
        f'<script type="application/json" id="{data}">{inline({"module": module(), "state": values})}</script>\n'
        f"<script>{loader}</script>\n"
    )


def document(title: str = "Trajectory explorer", **options: Any) -> str:
    """A whole page with the explorer alone; options are those of `fragment`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>:root{color-scheme:light dark}body{font-family:system-ui,sans-serif;max-width:72rem;margin:0 auto;"
        "padding:0 1rem 2rem;background:#fff;color:#14181c}@media(prefers-color-scheme:dark){body,html{"
        "background:#14181c;color:#f0f2f5}}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{fragment(**options)}</main>\n</body>\n</html>\n"
    )
