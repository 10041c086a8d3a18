r"""A pad to play on: two pictures, a mixing slider, a depth slider, and the ruler's reading under the frame.

In a page every frame was computed before: all lie in one compressed sprite inside the HTML, and `pad.js` shows them,
without a server and without a network connection. In a live kernel `live` computes frames of any two pictures.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from ddpmlab import interpolation
from ddpmlab.denoisers import Denoising
from ddpmlab.metrics import sleeves

LIMIT = 1_500_000
"""Most bytes that a pad may add to a page."""
_COLUMNS = 44


@dataclass(frozen=True)
class Frames:
    """Frames of one way for every pair of a first and a last picture.

    Attributes:
        title: the way's name.
        depths: noise levels d; 0 for a way without any.
        pictures: `(d, first, last, k, 28, 28)` in [0, 1].
    """

    title: str
    depths: tuple[float, ...]
    pictures: Tensor


def all_pairs(
    denoiser: Denoising,
    ways: Mapping[str, interpolation.Way],
    first: Tensor,
    last: Tensor,
    weights: Tensor,
    depths: Sequence[float],
    to_pixels: Callable[[Tensor], Tensor],
    labels: tuple[int, int] = (0, 2),
    seed: int = 0,
) -> list[Frames]:
    """Frames of every way, depth and pair, for `fragment`.

    Args:
        denoiser: any denoiser of these pictures.
        ways: ways by title; each is run at all `depths` but `Pixels`, which has none.
        first, last: pictures `(m, 1, 28, 28)` and `(n, 1, 28, 28)` as the denoiser has them.
        weights: `(k,)`.
        depths: noise levels.
        to_pixels: from the denoiser's units to [0, 1].
        labels: classes of first and last.
        seed: of whatever is random.
    """
    m, n, k = len(first), len(last), len(weights)
    a, b = first.repeat_interleave(n, 0), last.repeat(m, 1, 1, 1)
    classes = tuple(torch.full((m * n,), label) for label in labels)
    found = []
    for title, way in ways.items():
        levels = (0.0,) if isinstance(way, interpolation.Pixels) else tuple(depths)
        parts = []
        for depth in levels:
            frames = (replace(way, depth=depth) if depth else way)(denoiser, a, b, weights, classes, seed)
            parts.append(to_pixels(frames).clamp(0, 1).reshape(m, n, k, *first.shape[-2:]))
        found.append(Frames(title, levels, torch.stack(parts)))
    return found


def sprite(pictures: Tensor, columns: int = _COLUMNS, quality: int = 90) -> str:
    """All pictures `(n, h, w)` in [0, 1] as one WebP image, row by row, in a data URL."""
    from PIL import Image

    n, height, width = pictures.shape
    rows = -(-n // columns)
    tiles = torch.zeros(rows * columns, height, width)
    tiles[:n] = pictures
    sheet = tiles.unflatten(0, (rows, columns)).transpose(1, 2).reshape(rows * height, columns * width)
    buffer = io.BytesIO()
    grey = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(grey).save(buffer, "WEBP", quality=quality, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _rounded(values: Tensor) -> list[float | None]:
    return [None if value != value else round(value, 3) for value in values.tolist()]


def state(
    first: Tensor,
    last: Tensor,
    weights: Tensor,
    frames: Sequence[Frames],
    titles: tuple[str, str] = ("Half sleeve", "Full sleeve"),
    quality: int = 90,
) -> dict[str, Any]:
    """What `pad.js` is given: the sprite, and the ruler's reading and the ghost index of every frame.

    Args:
        first, last: pictures `(m, 1, 28, 28)` and `(n, 1, 28, 28)` in [0, 1].
        weights: `(k,)`.
        frames: see `all_pairs`.
        titles: of the two groups.
        quality: of the WebP compression, to 100.

    Raises:
        ValueError: no frames, or frames that do not fit the pictures and weights.
    """
    if not frames:
        raise ValueError("a pad without frames has nothing to show; give at least one way")
    expected = (len(first), len(last), len(weights), sleeves.SIZE, sleeves.SIZE)
    for way in frames:
        if way.pictures.shape != (len(way.depths), *expected):
            raise ValueError(
                f"frames of {way.title!r} have shape {tuple(way.pictures.shape)}; need {(len(way.depths), *expected)}"
            )
    ends = [sleeves.as_pictures(end) for end in (first, last)]
    flat = [way.pictures.flatten(0, 3) for way in frames]
    return {
        "size": sleeves.SIZE,
        "columns": _COLUMNS,
        "titles": list(titles),
        "weights": [round(w, 4) for w in weights.tolist()],
        "firsts": _rounded(sleeves.sleeve_length(ends[0])),
        "lasts": _rounded(sleeves.sleeve_length(ends[1])),
        "ways": [
            {
                "title": way.title,
                "depths": list(way.depths),
                "readings": _rounded(sleeves.sleeve_length(pictures)),
                "ghosts": _rounded(sleeves.ghost_index(pictures)),
            }
            for way, pictures in zip(frames, flat, strict=True)
        ],
        "start": {"way": 0, "depth": len(frames[0].depths) // 2, "weight": len(weights) // 2},
        "sprite": sprite(torch.cat([*ends, *flat]), quality=quality),
    }


def fragment(state: Mapping[str, Any], limit: int = LIMIT) -> str:
    """The pad as HTML that runs from a file: a host, its state as JSON, and the script.

    Raises:
        ValueError: it is larger than `limit` bytes; take fewer pictures, depths or points, or less quality.
    """
    text = json.dumps(state, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = (files("ddpmlab.explorer") / "pad.js").read_text(encoding="utf-8")
    name = "pad-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    titles = html.escape(" and ".join(state["titles"]).lower())
    page = (
        f'<div id="{name}" class="pad-host"><p>Here a pad mixes {titles} pictures; it needs JavaScript.</p></div>\n'
        f'<script type="application/json" id="{name}-state">{text}</script>\n'
        f"<script>(function () {{\n{script}\n"
        f'createPad(document.getElementById("{name}"), '
        f'JSON.parse(document.getElementById("{name}-state").textContent));\n}})();</script>\n'
    )
    size = len(page.encode())
    if size > limit:
        raise ValueError(
            f"the pad has {size:,} bytes; at most {limit:,}: take fewer pictures, depths or points, or a lower quality"
        )
    return page


def live(
    denoiser: Denoising,
    points: Tensor,
    ways: Mapping[str, interpolation.Way],
    to_pixels: Callable[[Tensor], Tensor],
    labels: Tensor | None = None,
    depths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 5.0),
    n_points: int = 11,
    start: tuple[int, int] = (0, 1),
):
    """A pad over any two pictures of a data set, in a live kernel: an `ipywidgets` box that computes its frames.

    A path is computed when a picture, the way or the depth changes, and shown at once while the mix moves.

    Args:
        denoiser: any denoiser of these pictures.
        points: `(n, 1, 28, 28)` as the denoiser has them.
        ways: ways by title.
        to_pixels: from the denoiser's units to [0, 1].
        labels: classes `(n,)`, for the ways that need them.
        depths: noise levels to choose from.
        n_points: frames of a path.
        start: indices of the first two pictures.

    Raises:
        ModuleNotFoundError: `ipywidgets` is not installed; `pip install 'ddpmlab[book]'`.
    """
    try:
        import ipywidgets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the live pad needs ipywidgets: pip install 'ddpmlab[book]'") from error
    weights = torch.linspace(0, 1, n_points)
    indices = [
        ipywidgets.BoundedIntText(start[k], min=0, max=len(points) - 1, description=words)
        for k, words in enumerate(("first", "last"))
    ]
    way = ipywidgets.Dropdown(options=list(ways), description="way")
    depth = ipywidgets.SelectionSlider(options=list(depths), value=depths[len(depths) // 2], description="depth")
    mix = ipywidgets.IntSlider(n_points // 2, min=0, max=n_points - 1, description="mix")
    image = ipywidgets.Image(format="png", width=224, height=224)
    reading = ipywidgets.Label()
    known: dict[tuple, Tensor] = {}

    def path() -> Tensor:
        key = (*(index.value for index in indices), way.value, depth.value)
        if key not in known:
            chosen = ways[way.value]
            if not isinstance(chosen, interpolation.Pixels):
                chosen = replace(chosen, depth=depth.value)
            ends = [points[index.value : index.value + 1] for index in indices]
            classes = None if labels is None else tuple(labels[i.value : i.value + 1] for i in indices)
            known[key] = to_pixels(chosen(denoiser, *ends, weights, classes)[0]).clamp(0, 1)
        return known[key]

    def show(change=None) -> None:
        try:
            frame = path()[mix.value]
        except ValueError as error:  # such as a depth beyond the schedule
            reading.value = str(error)
            return
        image.value = _png(frame[0])
        length, ghost = float(sleeves.sleeve_length(frame[None, 0])), float(sleeves.ghost_index(frame[None, 0]))
        reading.value = f"sleeve length {length:.2f}, ghost index {ghost:.2f}"

    for control in (*indices, way, depth, mix):
        control.observe(show, names="value")
    show()
    box = ipywidgets.VBox([ipywidgets.HBox(indices), way, depth, mix, image, reading])
    box.controls = {"first": indices[0], "last": indices[1], "way": way, "depth": depth, "mix": mix}
    box.image, box.reading = image, reading
    return box


def _png(picture: Tensor, scale: int = 8) -> bytes:
    from PIL import Image

    grey = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    buffer = io.BytesIO()
    grey.resize((scale * grey.width, scale * grey.height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
