"""Tests for the pad: its state, its page in a browser, and the live one."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch

from ddpmlab import data, interpolation, schedules
from ddpmlab.denoisers import ExactDenoiser
from ddpmlab.explorer import pad

WEIGHTS = torch.linspace(0, 1, 5)


def garment(length, brightness=0.6):
    picture = torch.zeros(1, 28, 28)
    picture[:, 2:26, 8:20] = brightness
    for columns in (slice(3, 7), slice(21, 25)):
        picture[:, 2 : 2 + round(24 * length), columns] = brightness
    return picture


def denoiser():
    law = data.make("gaussian", mean=[0.5] * 784, scale=0.3)
    return ExactDenoiser(law, schedules.make("ve"))


FIRST = torch.stack([garment(0.25), garment(0.25, 0.9)])
LAST = torch.stack([garment(1.0), garment(1.0, 0.9), garment(1.0, 0.3)])


def frames():
    """A path that answers, at two depths, and the average of the two pictures."""
    shape = (2, 3, 5, 28, 28)
    a = torch.stack([garment(0.25 + 0.75 * float(w))[0] for w in WEIGHTS]).expand(shape)
    average = interpolation.Pixels()(None, FIRST.repeat_interleave(3, 0), LAST.repeat(2, 1, 1, 1), WEIGHTS)
    answer = pad.Frames("an answer", (0.5, 2.0), torch.stack([a, a.flip(2)]))
    return [answer, pad.Frames("average", (0.0,), average.reshape(1, *shape))]


def test_sprite_holds_the_pictures_row_by_row():
    from PIL import Image

    pictures = torch.stack([garment(0.25)[0], garment(0.75)[0], garment(1.0)[0]])
    url = pad.sprite(pictures, columns=2, quality=100)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("L"))
    assert sheet.shape == (56, 56)
    for k in range(3):
        row, column = divmod(k, 2)
        tile = sheet[28 * row : 28 * row + 28, 28 * column : 28 * column + 28] / 255
        assert np.abs(tile - pictures[k].numpy()).max() < 0.12
    assert sheet[28:, 28:].max() < 10


def test_state_reads_every_frame():
    found = pad.state(FIRST, LAST, WEIGHTS, frames())
    assert found["firsts"] == [0.25, 0.25]
    assert found["lasts"] == [1.0, 1.0, 1.0]
    answer, average = found["ways"]
    assert len(answer["readings"]) == 2 * 2 * 3 * 5
    assert answer["readings"][:5] == pytest.approx([0.25, 0.417, 0.625, 0.833, 1.0], abs=0.03)
    assert average["readings"][0] == 0.25
    assert average["ghosts"][2] < 0.8
    with pytest.raises(ValueError, match="frames of 'an answer' have shape"):
        pad.state(FIRST[:1], LAST, WEIGHTS, frames())
    with pytest.raises(ValueError, match="nothing to show"):
        pad.state(FIRST, LAST, WEIGHTS, [])


def test_page_is_whole_and_within_its_limit():
    page = pad.fragment(pad.state(FIRST, LAST, WEIGHTS, frames()))
    assert not re.search(r"""(src|href)=["']?http|import\s""", page)
    with pytest.raises(ValueError, match=r"the pad has [\d,]+ bytes; at most 1,000: take fewer"):
        pad.fragment(pad.state(FIRST, LAST, WEIGHTS, frames()), limit=1000)


def test_pad_in_a_browser(open_page, tmp_path):
    """Picture and reading change with the mix, the depth, the way and the shirts."""
    file, state = tmp_path / "pad.html", pad.state(FIRST, LAST, WEIGHTS, frames())
    file.write_text(f"<!doctype html><meta charset=utf-8><title>pad</title><body>{pad.fragment(state)}</body>")
    page = open_page(file, wait=".pad[data-ready]")

    def seen():
        pixels = page.evaluate("document.querySelector('.pad-main canvas').toDataURL()")
        return pixels, page.inner_text(".pad-reading")

    def move(selector, value):
        page.locator(selector).evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", str(value)
        )

    move(".pad-depth", 0)
    history = []
    for weight in (0, 2, 4):
        move(".pad-weight", weight)
        history.append(seen())
        read = float(history[-1][1].split()[2])
        assert read == pytest.approx(state["ways"][0]["readings"][weight], abs=0.006)
    assert len({pixels for pixels, _ in history}) == len({text for _, text in history}) == 3
    move(".pad-depth", 1)  # here the path runs backwards
    assert float(seen()[1].split()[2]) == state["firsts"][0]
    move(".pad-depth", 0)
    page.keyboard.press("Tab")
    page.locator(".pad-weight").press("ArrowLeft")
    assert seen()[1] not in {text for _, text in history}
    page.locator(".pad-way").select_option("1")
    average = seen()
    assert "ghost index" in average[1]
    page.locator(".pad-shirts input").nth(1).check()
    assert seen()[0] != average[0]
    assert page.locator(".pad-depth").is_disabled()


def test_pad_passes_accessibility_rules(open_page, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    file = tmp_path / "pad.html"
    body = f"<main><h1>Pad</h1>{pad.fragment(pad.state(FIRST, LAST, WEIGHTS, frames()))}</main>"
    file.write_text(f'<!doctype html><html lang="en"><meta charset=utf-8><title>pad</title><body>{body}</body></html>')
    page = open_page(file, wait=".pad[data-ready]")
    found = axe.Axe().run(page).response["violations"]
    assert not [(v["id"], v["nodes"][0]["html"][:200]) for v in found]


def test_all_pairs_runs_every_way_at_every_depth():
    ways = {"average": interpolation.make("pixels"), "noise": interpolation.make("noise", n_steps=2)}
    law_denoiser = _Flat(denoiser())
    found = pad.all_pairs(law_denoiser, ways, FIRST, LAST, WEIGHTS, (0.5, 2.0), lambda x: x)
    assert [way.depths for way in found] == [(0.0,), (0.5, 2.0)]
    json.dumps(pad.state(FIRST, LAST, WEIGHTS, found), allow_nan=False)
    torch.testing.assert_close(found[0].pictures[0, 1, 2, 0], FIRST[1, 0])
    torch.testing.assert_close(found[0].pictures[0, 1, 2, -1], LAST[2, 0])


def test_live_pad_computes_frames():
    pytest.importorskip("ipywidgets", reason="ipywidgets is missing: pip install 'ddpmlab[book]'")
    points = torch.cat([FIRST, LAST])
    ways = {"average": interpolation.make("pixels"), "flow": interpolation.make("flow", n_steps=2)}
    box = pad.live(_Flat(denoiser()), points, ways, lambda x: x, start=(0, 2))
    seen = {(box.image.value, box.reading.value)}
    for name, value in (("mix", 0), ("mix", 10), ("first", 1), ("way", "flow"), ("depth", 5.0)):
        box.controls[name].value = value
        seen.add((box.image.value, box.reading.value))
    assert len({image for image, _ in seen}) >= 4
    box.controls["mix"].value = 0
    box.controls["way"].value = "average"
    assert box.reading.value == "sleeve length 0.25, ghost index 1.00"


class _Flat(interpolation.Denoising):
    """A denoiser of vectors asked about pictures."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.schedule, self.shape = inner, inner.schedule, (1, 28, 28)

    def forward(self, x_t, t, label=None):
        return self.inner(x_t.flatten(1), t).reshape(x_t.shape)
