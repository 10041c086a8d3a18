"""The explorer as readers meet it: in a Chromium, from a file and from a server, and in a live JupyterLab."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from browser import served

from ddpmlab import data, denoisers, networks, samplers, schedules
from ddpmlab.explorer import directive, export, page
from ddpmlab.metrics import energy_distance

ROOT = Path(__file__).parent.parent
CHAPTER = yaml.safe_load(re.search(r"```\{explorer\}\n(.*?)```", (ROOT / "book/explore.md").read_text(), re.S)[1])
ROOT_NODE = "document.querySelector('.ddx')"
SETTLED = f"{ROOT_NODE} && {ROOT_NODE}.explorer && {ROOT_NODE}.explorer.settled"


def _chapter(folder: Path, **settings) -> Path:
    path = folder / "explorer.html"
    path.write_text(page.document(stops=CHAPTER["stops"], **CHAPTER["settings"], **settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The chapter's explorer as a page in a file."""
    return _chapter(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The same with few points, for tests of what moves."""
    return _chapter(tmp_path_factory.mktemp("page"), n=200)


def settle(opened):
    opened.wait_for_function(SETTLED, timeout=60_000)
    return opened


def state(opened, key):
    return opened.evaluate(f"{ROOT_NODE}.explorer.state[{json.dumps(key)}]")


def picture(opened) -> str:
    return opened.evaluate("document.querySelector('.ddx-canvas').toDataURL()")


def numbers(opened) -> str:
    return "\n".join(opened.locator("[data-number]:not([data-number$=_ms])").all_inner_texts())


def written(tmp_path, **options) -> Path:
    path = tmp_path / "page.html"
    path.write_text(page.document(**options), encoding="utf-8")
    return path


def small(**changes) -> dict:
    """A catalogue of one law, and of denoisers to try things with."""
    law = {"name": "two_moons", "title": "Two moons", "dim": 2, "mean": [0.5, 0.25], "scale": [0.87, 0.5]}
    catalogue = {
        "laws": {"moons": law},
        "denoisers": {},
        "schedules": {"ve": page.library()["schedules"]["variance_exploding"]},
    }
    return {**catalogue, **changes}


# ------------------------------------------------------------------------------------------------------- what is shown


def test_it_opens_from_a_file_and_from_a_server(whole, open_page):
    shown = []
    with served(whole.parent) as address:
        for where in (whole, f"{address}/{whole.name}"):
            opened = settle(open_page(where))
            caption = opened.inner_text(".ddx-caption")
            assert "Two-moons recipe" in caption
            assert "Exact denoiser" in caption
            assert not opened.inner_text(".ddx-messages")
            assert opened.evaluate(f"{ROOT_NODE}.explorer.runs.a.nfe") == 20
            shown.append(numbers(opened))
            assert opened.evaluate("new Set(document.querySelector('.ddx-canvas').toDataURL()).size") > 40
    assert shown[0] == shown[1]


def test_the_page_weighs_less_than_two_megabytes(whole):
    assert whole.stat().st_size < 2_000_000


SELECTS = [
    ("a_family", "exact", "a_model"),
    ("a_stage", "two_moons_recipe_00100", "a_model"),
    ("b_schedule", "cosine_continuous", "b_schedule"),
    ("a_solver", "heun", "a_solver"),
    ("a_spacing", "trailing", "a_spacing"),
    ("target", "off", "target"),
    ("target", "level", "target"),
    ("paths", "many", "paths"),
    ("field", "field", "field"),
    ("field", "error", "field"),
    ("pictures", "overlay", "pictures"),
    ("law", "helix", "law"),
]


def test_every_control_changes_what_it_should(built, open_page):
    opened = settle(open_page(built))
    changes_numbers = {"a_family", "a_stage", "b_schedule", "a_solver", "a_spacing", "law"}
    # in the middle, so that fields and noisy targets differ from clean ones
    opened.locator("[data-key=progress]").fill("0.5")
    settle(opened)
    for control, value, key in SELECTS:
        before, read = picture(opened), numbers(opened)
        opened.locator(f"[data-key={control}]").select_option(value)
        settle(opened)
        assert state(opened, key) == (value if value != "exact" else "exact"), control
        assert picture(opened) != before, f"{control} = {value} changes no pixel"
        assert (numbers(opened) != read) == (control in changes_numbers), f"{control} = {value}: numbers"
        opened.get_by_role("button", name="Reset all").click()
        opened.locator("[data-key=progress]").fill("0.5")
        settle(opened)

    for control, value in (("n", "150"), ("seed", "5"), ("a_steps", "7"), ("a_seed", "9")):
        before, read = picture(opened), numbers(opened)
        opened.locator(f"[data-key={control}]").fill(value)
        opened.locator(f"[data-key={control}]").press("Tab")
        settle(opened)
        assert state(opened, control) == int(value)
        assert picture(opened) != before, control
        assert numbers(opened) != read, control
    for label, key in (("Two at a time", "compare"), ("Samples", "samples")):
        before, was = picture(opened), state(opened, key)
        opened.get_by_label(label).click()
        settle(opened)
        assert picture(opened) != before, label
        assert state(opened, key) != was, label
        opened.get_by_label(label).click()
        settle(opened)

    # solvers with options of their own
    for solver, control, value in (("ddim", "a_eta", "0.8"), ("ddpm", "a_variance", "beta")):
        opened.locator("[data-key=a_solver]").select_option(solver)
        settle(opened)
        before = picture(opened)
        field = opened.locator(f"[data-key={control}]")
        if solver == "ddim":
            field.fill(value)
            field.press("Tab")
        else:
            field.select_option(value)
        settle(opened)
        assert picture(opened) != before, control


def test_no_control_is_left_out_of_these_tests(built, open_page):
    opened = settle(open_page(built))
    keys = opened.eval_on_selector_all(".ddx [data-key]", "(nodes) => nodes.map((node) => node.dataset.key)")
    tested = Path(__file__).read_text(encoding="utf-8")
    for key in keys:
        twin = {"a_": "b_", "b_": "a_"}.get(key[:2], key[:2]) + key[2:]  # one function makes both sides' controls
        assert any(f'"{name}"' in tested or f"={name}]" in tested for name in (key, twin)), key
    for button in opened.locator(".ddx > :not(nav) button, .ddx-guide button").all():
        name = button.get_attribute("aria-label") or button.inner_text()
        assert f'"{name}"' in tested or "ddx-stop" in (button.get_attribute("class") or ""), name


def test_side_b_is_moved_by_its_own_controls(built, open_page):
    opened = settle(open_page(built))
    ours = opened.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]")
    for control, value in (("b_solver", "euler"), ("b_spacing", "trailing"), ("b_family", "Two-moons recipe")):
        before, read = picture(opened), numbers(opened)
        opened.locator(f"[data-key={control}]").select_option(value)
        settle(opened)
        assert picture(opened) != before, control
        assert numbers(opened) != read, control
    assert opened.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]") == ours


def test_buttons_of_time_and_view(built, open_page):
    opened = settle(open_page(built))

    def press(name):
        before = picture(opened)
        opened.get_by_role("button", name=name, exact=True).click()
        settle(opened)
        assert picture(opened) != before, name

    press("To noise")
    assert state(opened, "progress") == 0
    assert "step 0 of 20" in opened.inner_text(".ddx-time")
    press("One step on")
    assert state(opened, "progress") == pytest.approx(1 / 20)
    press("One step back")
    press("To data")
    press("Zoom in")
    press("Zoom out")
    press("Zoom in")
    press("Whole picture")
    press("Let all go")
    assert state(opened, "picked") == []
    press("Pick a point")
    assert len(state(opened, "picked")) == 1
    press("New noise")
    press("Reset all")
    assert state(opened, "seed") == 1


def test_it_plays_and_comes_back_to_the_same_noise(built, open_page):
    opened = settle(open_page(built))
    opened.get_by_role("button", name="To noise").click()
    noise = picture(settle(opened))
    opened.locator("[data-key=speed]").select_option("4")
    frames = opened.evaluate(f"{ROOT_NODE}.explorer.frames")
    opened.get_by_role("button", name="Play", exact=True).click()
    opened.wait_for_function(f"{ROOT_NODE}.explorer.state.progress === 1 && !{ROOT_NODE}.explorer.state.playing")
    assert opened.evaluate(f"{ROOT_NODE}.explorer.frames") > frames + 10
    assert picture(settle(opened)) != noise
    opened.get_by_role("button", name="To noise").click()
    assert picture(settle(opened)) == noise
    # both sides start at the same points
    start = [opened.evaluate(f"[...{ROOT_NODE}.explorer.runs.{side}.states[0].x]") for side in "ab"]
    assert start[0] == start[1]


def test_keys_and_pointer_on_the_picture(built, open_page):
    opened = settle(open_page(built))
    canvas = opened.locator(".ddx-canvas")
    canvas.focus()
    for key in ("ArrowLeft", "+", "-", "[", "]", "n", "Escape", "0"):
        before = picture(opened)
        opened.keyboard.press(key)
        settle(opened)
        if key not in "]":
            assert picture(opened) != before, key
    opened.keyboard.press("Space")
    assert state(opened, "playing") is True
    opened.keyboard.press("Space")
    assert state(opened, "playing") is False
    opened.keyboard.press("End")
    settle(opened)
    # a click at a point picks it: the first sample, wherever it lies
    x, y = opened.evaluate(f"(({{x}}) => [x[0], x[1]])({ROOT_NODE}.explorer.runs.a.states[20])")
    box = canvas.bounding_box()
    scale = min(box["width"] / 2, box["height"]) / 2 / 2.9
    opened.mouse.click(box["x"] + box["width"] / 4 + x * scale, box["y"] + box["height"] / 2 - y * scale)
    assert len(state(opened, "picked")) == 1
    zoom = state(opened, "camera")[2]
    opened.mouse.wheel(0, -100)  # the picture has the focus: it comes nearer
    opened.wait_for_function(f"{ROOT_NODE}.explorer.state.camera[2] > {zoom}")
    opened.keyboard.press("0")
    # a drag moves a plane and turns space
    opened.mouse.move(box["x"] + 100, box["y"] + 100)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 160, box["y"] + 130, steps=4)
    opened.mouse.up()
    assert state(opened, "camera")[3:] != [0, 0]
    opened.locator("[data-key=law]").select_option("helix")
    settle(opened)
    # in space a click picks the point that stands there, and what is near goes with the hand
    box = canvas.bounding_box()
    points = np.array(opened.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]")).reshape(-1, 3)
    before, depth = _seen(points, state(opened, "camera"), box)
    index = int(np.argmax(np.abs(before - before.mean(0)).sum(1) - 10 * depth))  # near, and at the rim
    opened.evaluate(f"{ROOT_NODE}.explorer.state.picked = []")
    opened.mouse.click(*before[index])
    assert np.linalg.norm(before[state(opened, "picked")] - before[index], axis=1) == pytest.approx([0], abs=3)
    opened.mouse.move(*before[index])
    opened.mouse.down()
    opened.mouse.move(*(before[index] + [20, 10]), steps=4)
    opened.mouse.up()
    after, _ = _seen(points, state(opened, "camera"), box)
    near = depth < -0.8
    moved = (after - before)[near].mean(0)
    assert moved[0] > 5
    assert moved[1] > 2
    yaw = state(opened, "camera")[0]
    canvas.focus()
    opened.keyboard.press("ArrowRight")
    assert state(opened, "camera")[0] < yaw


def _seen(points, camera, box):
    """Where points of space stand in the left panel, in pixels, and how far behind the middle."""
    yaw, pitch, zoom, *pan = camera
    right = np.array([np.cos(yaw), np.sin(yaw), 0])
    away = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    depth = points @ away
    flat = points @ np.stack([right, np.cross(right, away)], 1) * (9 / (9 + depth))[:, None] + pan
    middle = np.array([box["x"] + box["width"] / 4, box["y"] + box["height"] / 2])
    return middle + flat * [1, -1] * min(box["width"] / 2, box["height"]) / 2 / 2.9 * zoom, depth


PINCH = """() => {
  const canvas = document.querySelector('.ddx-canvas'), box = canvas.getBoundingClientRect();
  const send = (type, pointerId, x) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerId, pointerType: 'touch', clientX: box.left + x, clientY: box.top + 90, bubbles: true }));
  send('pointerdown', 11, 100);
  send('pointerdown', 12, 140);
  for (const x of [150, 160, 180]) send('pointermove', 12, x);
  send('pointerup', 11, 100);
  send('pointerup', 12, 180);
  return document.querySelector('.ddx').explorer.state.camera[2];
}"""


def test_two_fingers_zoom(built, open_page):
    opened = settle(open_page(built))
    picked = state(opened, "picked")
    assert opened.evaluate(PINCH) == pytest.approx(80 / 50, rel=0.01)  # from the first distance seen to the last
    assert state(opened, "picked") == picked


def test_the_six_stops_set_what_they_promise(built, open_page):
    assert len(CHAPTER["stops"]) == 6
    opened = settle(open_page(built, reduced_motion="reduce"))
    seen = {picture(opened)}
    for i, stop in enumerate(CHAPTER["stops"]):
        opened.locator(".ddx-stop").nth(i).click()
        settle(opened)
        assert opened.inner_text(".ddx-stop-text").split() == stop["text"].split()
        assert not opened.inner_text(".ddx-messages"), stop["title"]
        for key, value in stop["state"].items():
            assert state(opened, key) == (bool(value) if key == "compare" else value), (stop["title"], key)
        assert stop["text"].count(".") >= 2  # two sentences
        seen.add(picture(opened))
    assert len(seen) == 7


def test_a_bad_schedule_reads_worse_with_nothing_to_learn(whole, open_page):
    opened = settle(open_page(whole, reduced_motion="reduce"))
    opened.locator(".ddx-stop").nth(2).click()
    settle(opened)
    bad, good = (opened.evaluate(f"{ROOT_NODE}.explorer.runs.{side}.energy") for side in "ab")
    floor = opened.evaluate(f"{ROOT_NODE}.explorer.target.floor")
    assert bad > floor["floorMean"] + 2 * floor["floorSd"]
    assert good < floor["floorMean"] + 2 * floor["floorSd"]


READ = """(side) => {
  const { runs, target } = document.querySelector('.ddx').explorer, run = runs[side];
  const arrows = run.arrows && { z: [...run.arrows.z], vectors: [...run.arrows.vectors] };
  return { states: run.states.map(({ x, t }) => [t, ...x]), energy: run.energy, error: run.error, errorAt: run.errorAt,
           target: [...target.points], size: target.floor.size, floor: target.floor, noise: [...target.noise],
           z: [...run.z], shown: [...document.querySelector('.ddx').explorer.targetAt(side)], arrows };
}"""


def test_the_numbers_shown_are_those_of_the_package(whole, open_page):
    opened = open_page(f"{whole.resolve().as_uri()}#explorer?n=300&a_steps=6&b_steps=6&progress=0.5")
    settle(opened)
    opened.wait_for_function(f"{ROOT_NODE}.explorer.runs.a.errorAt === 3")
    law = data.make("two_moons").standardised()
    network, _ = export.load("two_moons_recipe_04000")
    exact = denoisers.ExactDenoiser(law, network.schedule)
    read = {side: opened.evaluate(READ, side) for side in "ab"}
    shown = {side: [torch.tensor(each[1:]).reshape(-1, 2) for each in read[side]["states"]] for side in "ab"}
    times = [each[0] for each in read["a"]["states"]]
    assert times == pytest.approx(network.schedule.times(6).tolist())
    scale = [float(a.hypot(s)) for a, s in map(network.schedule, times)]
    assert float(shown["a"][0].std()) == pytest.approx(scale[0], rel=0.1)
    sampler = samplers.make("dpmpp_2m", n_steps=6)
    for side, denoiser in (("a", network), ("b", exact)):
        states = list(
            sampler(denoiser, x=shown[side][0].to(next(denoiser.parameters(), torch.zeros(1).double()).dtype))
        )
        gap = (states[-1].float() - shown[side][-1]).abs()
        assert gap.median() < 1e-4
        z = shown[side][3][: read[side]["size"]].double() / scale[3]
        real = torch.tensor(read[side]["target"]).reshape(-1, 2)[: read[side]["size"]].double()
        assert read[side]["energy"] == pytest.approx(energy_distance(z, real), abs=1e-5)
    x = shown["a"][3]
    with torch.no_grad():
        miss = (network(x, times[3]) - exact(x, times[3])).square().sum(1).mean().sqrt()
    assert read["a"]["error"] == pytest.approx(float(miss), rel=1e-3)
    apart = (shown["a"][-1] - shown["b"][-1]).norm(dim=1)
    said = re.search(
        r"lie ([0-9.]+) apart on average, at most ([0-9.]+) ", opened.inner_text("[data-number=difference]")
    )
    assert [float(value) for value in said.groups()] == pytest.approx(
        [float(apart.mean()), float(apart.max())], rel=0.01
    )
    alpha, sigma = network.schedule(times[3])
    level, share = float(sigma / alpha), float(alpha**2 / (alpha**2 + sigma**2))
    said = re.findall(r"step 3 of 6, ᾱ ([0-9.]+), noise level ([0-9.]+)", opened.inner_text(".ddx-time"))
    said += [[opened.inner_text(f"[data-number={side}_{key}]") for key in ("alpha_bar", "level")] for side in "ab"]
    assert [[float(value) for value in pair] for pair in said] == [pytest.approx([share, level], rel=0.01)] * 4
    # the meter: a needle between the band of real points and pure noise, on the scale of roots
    floor = read["a"]["floor"]
    ends = [floor["floorMean"] + 2 * floor["floorSd"], floor["ceiling"]]
    said = re.search(r"up to ([0-9.]+), pure noise ([0-9.]+[0-9])\.", opened.inner_text("[data-number=b_energy]"))
    assert [float(value) for value in said.groups()] == pytest.approx(ends, rel=0.05)
    meter = opened.locator(".ddx-b .ddx-meter")
    found = [meter.locator(f".ddx-{part}").evaluate("(node, key) => parseFloat(node.style[key])", key)
             for part, key in (("band", "width"), ("needle", "left"))]  # fmt: skip
    energy = max(0, read["b"]["energy"])
    assert found == pytest.approx([100 * min(1, (value / ends[1]) ** 0.5) for value in (ends[0], energy)], abs=0.1)
    # the target at the same noise level, the arrows, and points between two states
    opened.locator("[data-key=target]").select_option("level")
    opened.locator("[data-key=field]").select_option("field")
    opened.wait_for_function(f"{ROOT_NODE}.explorer.runs.b.arrows?.kind === 'field'")
    now = opened.evaluate(READ, "b")
    clean, noise = (torch.tensor(now[key]) for key in ("target", "noise"))
    torch.testing.assert_close(torch.tensor(now["shown"]), (float(alpha) * clean + float(sigma) * noise) / scale[3])
    z, vectors = (torch.tensor(now["arrows"][key]).reshape(-1, 2).double() for key in ("z", "vectors"))
    torch.testing.assert_close(vectors, exact(z * scale[3], times[3]) - z, atol=1e-4, rtol=1e-3)
    opened.locator("[data-key=field]").select_option("error")
    opened.wait_for_function(f"{ROOT_NODE}.explorer.runs.a.arrows?.kind === 'error'")
    arrows = opened.evaluate(READ, "a")["arrows"]
    z, vectors = (torch.tensor(arrows[key]).reshape(-1, 2) for key in ("z", "vectors"))
    with torch.no_grad():
        wanted = network(z * scale[3], times[3]) - exact(z.double() * scale[3], times[3]).float()
    torch.testing.assert_close(vectors, wanted, atol=2e-4, rtol=1e-3)
    opened.locator("[data-key=progress]").fill("0.625")  # three quarters of the way from step 3 to step 4
    settle(opened)
    between = torch.tensor(opened.evaluate(READ, "a")["z"]).reshape(-1, 2)
    torch.testing.assert_close(between, shown["a"][3] / scale[3] / 4 + shown["a"][4] / scale[4] * 3 / 4)
    # without the same noise there are no pairs
    opened.locator("[data-key=b_seed]").fill("9")
    opened.locator("[data-key=b_seed]").press("Tab")
    settle(opened)
    assert "start from different noise" in opened.inner_text("[data-number=difference]")


# ------------------------------------------------------------------------------------------------------- take away


def test_an_address_shows_the_same_picture_again(built, open_page):
    opened = settle(open_page(built))
    for side, steps in (("a", 6), ("b", 7)):
        opened.locator(f"[data-key={side}_steps]").fill(str(steps))
        opened.locator(f"[data-key={side}_steps]").press("Tab")
    opened.locator("[data-key=target]").select_option("level")
    settle(opened)
    opened.get_by_role("button", name="To noise").click()
    opened.get_by_role("button", name="One step on").click()
    opened.locator(".ddx-canvas").focus()
    for key in ("+", "ArrowLeft", "ArrowUp"):
        opened.keyboard.press(key)
    settle(opened)
    opened.wait_for_function("location.hash.includes('progress=0.142857142857')")
    link = opened.evaluate("location.href")
    again = settle(open_page(link))
    assert picture(again) == picture(opened)
    assert numbers(again) == numbers(opened)
    both = [page.evaluate(f"{ROOT_NODE}.explorer.state") for page in (again, opened)]
    assert both[0] == both[1]
    assert state(again, "a_steps") == 6
    # the button puts it into the address bar, and onto the clipboard where it may
    opened.get_by_role("button", name="Copy link to this view").click()
    opened.wait_for_function("document.querySelector('.ddx').textContent.includes('The link ')")
    assert opened.evaluate("location.href") == link
    # and a link followed within the page
    again.evaluate("location.hash = '#explorer?law=helix&n=300'")
    again.wait_for_function(f"{ROOT_NODE}.explorer.state.n === 300")
    assert state(again, "law") == "helix"
    assert state(again, "a_steps") == 20  # what the address leaves out is as at the start


def test_downloads(built, open_page):
    opened = settle(open_page(built))
    opened.locator("[data-key=n]").fill("50")
    opened.locator("[data-key=n]").press("Tab")
    settle(opened)
    with opened.expect_download() as event:
        opened.get_by_role("button", name="Picture (PNG)").click()
    assert Path(event.value.path()).read_bytes() == base64.b64decode(picture(opened).split(",")[1])
    with opened.expect_download() as event:
        opened.get_by_role("button", name="Trajectories (CSV)").click()
    lines = Path(event.value.path()).read_text().splitlines()
    assert lines[0] == "side,step,t,alpha,sigma,point,x,y"
    assert len(lines) == 1 + 2 * 21 * 50
    for side, k, i in (("a", 0, 0), ("a", 7, 49), ("b", 13, 3), ("b", 20, 49)):
        t, x = opened.evaluate(
            f"(({{t, x}}) => [t, [...x].slice({2 * i}, {2 * i + 2})])({ROOT_NODE}.explorer.runs.{side}.states[{k}])"
        )
        alpha, sigma = schedules.make("ve", sigma_min=0.011, sigma_max=8.0)(t)
        name, *row = lines[1 + (side == "b") * 21 * 50 + k * 50 + i].split(",")
        assert name == side
        assert [float(v) for v in row] == pytest.approx([k, t, float(alpha), float(sigma), i, *x], rel=1e-6)
    with opened.expect_download() as event:
        opened.get_by_role("button", name="Export points (CSV)").click()
    assert len(Path(event.value.path()).read_text().splitlines()) == 51


# ------------------------------------------------------------------------------------------------------- own law


def test_a_law_drawn_with_the_pointer(built, open_page):
    opened = settle(open_page(built))
    opened.get_by_role("button", name="Draw a law").click()
    box = opened.locator(".ddx-canvas").bounding_box()
    opened.mouse.move(box["x"] + 60, box["y"] + 80)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] / 2 - 60, box["y"] + box["height"] - 80, steps=12)
    opened.mouse.up()
    opened.wait_for_function(f"{ROOT_NODE}.explorer.state.law === 'own'")
    settle(opened)
    law = state(opened, "mixture")
    assert sum(law["weights"]) == pytest.approx(1, abs=0.01)
    # a straight stroke downwards: the samples of its exact denoiser lie on a line that falls
    x = np.array(opened.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]")).reshape(-1, 2)
    assert np.corrcoef(x.T)[0, 1] < -0.95
    # and its address brings it back, without the board
    opened.wait_for_function("location.hash.includes('mixture=')")
    again = settle(open_page(opened.evaluate("location.href")))
    assert state(again, "law") == "own"
    y = np.array(again.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]")).reshape(-1, 2)
    assert np.allclose(x, y, atol=1e-5)


def test_a_law_drawn_by_keyboard_alone(built, open_page):
    opened = settle(open_page(built))
    opened.get_by_role("button", name="Draw a law").press("Enter")
    empty = picture(settle(opened))
    for key in ("ArrowLeft", "ArrowLeft", "Space", *["ArrowRight"] * 12, "Space"):
        opened.keyboard.press(key)
    opened.wait_for_function(f"{ROOT_NODE}.explorer.state.law === 'own'")
    settle(opened)
    drawn = picture(opened)
    opened.get_by_role("button", name="Clear the drawing").click()
    assert picture(settle(opened)) not in (drawn, empty)  # the board is empty, its law stays beside it
    opened.locator(".ddx-canvas").press("Escape")
    assert opened.get_by_role("button", name="Draw a law").is_visible()


def test_points_from_a_file(built, open_page, tmp_path):
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 500)
    good = tmp_path / "ring.csv"
    np.savetxt(good, np.stack([10 + 3 * np.cos(angle), 3 * np.sin(angle)], 1), delimiter=",", header="x,y", comments="")
    opened = settle(open_page(built))
    chooser = opened.locator("input[type=file]")
    bad = {
        "words.csv": ("1,2\nx,3\n", "line 2: 'x' is not a number"),
        "ragged.csv": ("1,2\n1,2,3\n", "line 2 has 3 numbers"),
        "wide.csv": ("1,2,3,4\n" * 30, "have 4 numbers"),
        "few.csv": ("1,2\n3,4\n", "2 points; a mixture needs at least 20"),
        "empty.csv": ("", "no line of numbers"),
        "flat.csv": ("".join(f"{i},7\n" for i in range(30)), "coordinate 2 is the same for all points"),
        "infinite.csv": ("1,2\n1,Infinity\n", "infinite"),
    }
    for name, (content, words) in bad.items():
        (tmp_path / name).write_text(content)
        chooser.set_input_files(tmp_path / name)
        opened.locator("[data-key=own]").wait_for()
        opened.wait_for_function(f"document.querySelector('.ddx-messages').textContent.includes({json.dumps(words)})")
        assert state(opened, "law") == "two_moons"
    chooser.set_input_files(good)
    opened.wait_for_function(f"{ROOT_NODE}.explorer.state.law === 'own'")
    settle(opened)
    x = np.array(opened.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]")).reshape(-1, 2)
    # a ring of radius sqrt(2) in units of its own standard deviations, centred
    assert np.hypot(*x.T).mean() == pytest.approx(2**0.5, rel=0.05)
    assert not opened.locator("[data-key=own]").count()
    with opened.expect_download() as event:
        opened.get_by_role("button", name="Export points (CSV)").click()
    back = np.loadtxt(event.value.path(), delimiter=",", skiprows=1)
    assert np.allclose(back, np.loadtxt(good, delimiter=",", skiprows=1), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------- bad input


def message(opened, words):
    opened.wait_for_function(
        f"[...document.querySelectorAll('[role=alert]')].some((box) => box.textContent.includes({json.dumps(words)}))"
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("#explorer?a_steps=abc", "a_steps = abc: need a whole number from 1 to 1000"),
        ("#explorer?a_steps=2.5", "need a whole number"),
        ("#explorer?nonsense=1", "'nonsense' is not a setting"),
        ("#explorer?camera=1_2", "need 5 numbers"),
        ("#explorer?law=nowhere", "There is no law 'nowhere' here; choose one of: two_moons"),
        ("#explorer?a_model=nothing", "there is no network 'nothing' for this law; choose one of: exact"),
        ("#explorer?a_model=helix_model_1", "there is no network 'helix_model_1' for this law"),
        ("#explorer?a_schedule=never", "there is no schedule 'never' here"),
        ("#explorer?law=own", "holds no mixture"),
        ("#explorer?law=own&mixture=2~1_0", "a component lacks numbers"),
        ("#explorer?mixture=2f~1_0_0_1_5_1", "positive definite"),
        ("#explorer?a_schedule=linear_as_the_homework_s&a_model=exact&a_steps=80", "this schedule has 50 steps"),
    ],
)
def test_an_address_that_cannot_be_read_says_so(built, open_page, address, words):
    opened = open_page(built.resolve().as_uri() + address)
    message(opened, words)
    assert opened.locator(".ddx-canvas").is_visible()
    opened.wait_for_function(f"{ROOT_NODE}.explorer.frames > 0")


def test_a_malformed_state_says_so(tmp_path, open_page):
    message(open_page(written(tmp_path, catalogue={})), "holds no catalogue")
    message(open_page(written(tmp_path, catalogue=small(), n="many")), "n: need a whole number from 10 to 5000")
    text = written(tmp_path, catalogue=small()).read_text()
    (tmp_path / "cut.html").write_text(text.replace('{"module":', '{"module"'))
    opened = open_page(tmp_path / "cut.html")
    opened.wait_for_function("document.body.textContent.includes('its inline state cannot be read')")
    (tmp_path / "broken.html").write_text(text.replace("export default", "export defaults"))
    opened = open_page(tmp_path / "broken.html")
    opened.wait_for_function("document.body.textContent.includes('may not import its own script')")


def test_weights_that_do_not_fit_say_so(tmp_path, open_page):
    library = page.library()
    broken = json.loads(json.dumps(library["denoisers"]["two_moons_recipe_00100"]))
    name, weight = next((n, w) for n, w in broken["network"]["weights"].items() if n.endswith("weight"))
    weight["shape"] = [weight["shape"][0] + 1, *weight["shape"][1:]]
    catalogue = small(denoisers={"broken": {**broken, "law": "moons"}})
    opened = open_page(written(tmp_path, catalogue=catalogue, a_model="broken"))
    message(opened, name)
    # the other side goes on
    opened.wait_for_function(f"{ROOT_NODE}.explorer.runs.b.done")


def test_a_law_without_density_says_so(tmp_path, open_page):
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).numpy().astype("<f4")
    packed = {"shape": [200, 2], "f32": base64.b64encode(points.tobytes()).decode()}
    cloud = {"name": "cloud", "title": "Cloud", "dim": 2, "exact": False, "points": packed}
    known = {**page.library()["denoisers"]["two_moons_recipe_00100"], "law": "cloud"}
    catalogue = small(laws={"cloud": cloud}, denoisers={"known": known})
    opened = open_page(written(tmp_path, catalogue=catalogue, a_model="known", b_model="exact"))
    message(opened, "Cloud has no density, so its exact denoiser is not known; choose a network on this side")
    opened.locator("[data-key=field]").select_option("error")
    message(opened, "there is no exact denoiser to compare with")
    assert opened.locator("[data-key=b_family] option[value=exact]").is_disabled()


def test_without_webassembly_it_says_so_and_computes_the_same(built, open_page):
    with_it = settle(open_page(built, script="delete window.Worker"))
    without = settle(open_page(built, script="delete window.WebAssembly; delete window.Worker"))
    message(without, "no WebAssembly, so plain JavaScript computes")
    assert "JavaScript" in without.inner_text(".ddx")
    ends = [np.array(p.evaluate(f"[...{ROOT_NODE}.explorer.runs.a.states[20].x]")) for p in (with_it, without)]
    assert np.abs(ends[0] - ends[1]).max() < 1e-2  # a trajectory that turns at a saddle enlarges the last bit
    assert np.median(np.abs(ends[0] - ends[1])) < 1e-5


def test_a_box_without_room_says_so_and_draws_when_there_is(built, open_page):
    opened = settle(open_page(built))
    opened.evaluate("document.querySelector('.ddx-host').style.width = '40px'")
    message(opened, "The picture has no room: its box is")
    opened.evaluate("document.querySelector('.ddx-host').style.width = ''")
    opened.wait_for_function("!document.querySelector('.ddx-messages').textContent.includes('no room')")
    opened.evaluate("document.querySelector('.ddx-host').style.display = 'none'")
    opened.evaluate("document.querySelector('.ddx-host').style.display = ''")
    settle(opened)


def test_a_control_refuses_what_does_not_fit(built, open_page):
    opened = settle(open_page(built))
    for control, value, words in (
        ("n", "3", "Points: need a whole number from 10 to 5000"),
        ("a_steps", "", "A: steps"),
    ):
        opened.locator(f"[data-key={control}]").fill(value)
        opened.locator(f"[data-key={control}]").press("Tab")
        message(opened, words)
        assert opened.locator(f"[data-key={control}]").get_attribute("aria-invalid") == "true"
    assert state(opened, "n") == 200


def test_a_remote_denoiser_without_its_kernel_says_so(tmp_path, open_page):
    remote = {
        "type": "remote",
        "law": "moons",
        "title": "Mine",
        "schedule": page.library()["schedules"]["variance_exploding"],
    }
    opened = open_page(written(tmp_path, catalogue=small(denoisers={"mine": remote}), a_model="mine"))
    message(opened, "this denoiser lives in a Python kernel")


# ------------------------------------------------------------------------------------------------------- for people


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_nothing_overflows(built, open_page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'ddpmlab[dev]'").Axe()
    opened = settle(open_page(built, color_scheme=scheme, viewport={"width": width, "height": 800}))
    opened.locator(".ddx-stop").nth(4).click()
    opened.evaluate("location.hash = '#explorer?a_steps=x'")  # a message, too
    settle(opened)
    found = axe.run(opened).response["violations"]
    grave = [(v["id"], [n["target"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
    assert not grave
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(f"{ROOT_NODE}.dataset.theme") == scheme


CONTRAST = """(background) => {
  const host = document.querySelector('.ddx-host');
  host.style.background = background;
  document.body.classList.toggle('changed');
  return new Promise((done) => setTimeout(() => {
    const style = getComputedStyle(document.querySelector('.ddx'));
    const rgb = (name) => style.getPropertyValue('--ddx-' + name).match(/[0-9]+/g).map(Number);
    const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const against = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    done(['ink', 'muted', 'a', 'b', 'target', 'warning'].flatMap((name) =>
      ['background', 'surface'].map((behind) => against(rgb(name), rgb(behind)))));
  }, 80));
}"""


@pytest.mark.parametrize(
    "background", ["#fff", "#14181c", "#fdf6e3", "#000", "#1a2b6d", "#777", "#c8e6c9", "oklch(0.3 0.1 20)"]
)
def test_contrast_on_any_background(built, open_page, background):
    opened = settle(open_page(built))
    assert min(opened.evaluate(CONTRAST, background)) >= 4.5


def test_it_follows_a_theme_that_changes_under_it(built, open_page):
    opened = settle(open_page(built, color_scheme="light"))
    assert opened.evaluate(f"{ROOT_NODE}.dataset.theme") == "light"
    opened.emulate_media(color_scheme="dark")
    opened.wait_for_function(f"{ROOT_NODE}.dataset.theme === 'dark'")


def test_reduced_motion_moves_only_when_asked_and_in_whole_steps(built, open_page):
    opened = settle(open_page(built, reduced_motion="reduce"))
    opened.locator(".ddx-stop").nth(1).click()  # a stop that plays
    settle(opened)
    assert state(opened, "playing") is False
    opened.locator("[data-key=progress]").fill("0.5")
    settle(opened)
    one = picture(opened)
    opened.locator("[data-key=progress]").fill("0.501")  # of 200 steps: still the same states
    settle(opened)
    assert picture(opened) == one


def test_the_text_alternative_says_what_is_shown(built, open_page):
    opened = settle(open_page(built))
    caption = opened.locator(".ddx-caption")
    assert caption.get_attribute("aria-live") == "polite"
    assert caption.get_attribute("id") in opened.locator(".ddx-canvas").get_attribute("aria-describedby")
    before = caption.inner_text()
    for words in (
        "200 points",
        "step 20 of 20",
        "ᾱ 1",
        "noise level 0",
        "energy distance",
        "end points of A and B",
    ):
        assert words in before
    opened.get_by_role("button", name="To noise").click()
    settle(opened)
    assert "step 0 of 20" in caption.inner_text()


def test_style_stays_inside_a_shadow_tree(tmp_path, open_page):
    path = tmp_path / "shadow.html"
    source = page.fragment(catalogue=small()).replace(
        "loaded.default.render({ model: model, el: host })",
        "var inner = document.createElement('div'); host.attachShadow({ mode: 'open' }).append(inner);"
        "loaded.default.render({ model: model, el: inner })",
    )
    assert "attachShadow" in source
    path.write_text(f'<!doctype html><html lang="en"><title>x</title><link rel="icon" href="data:,"><body>{source}')
    opened = open_page(path)
    opened.wait_for_function(
        "document.querySelector('.ddx-host').shadowRoot?.querySelector('.ddx')?.explorer?.settled", timeout=60_000
    )
    border = "getComputedStyle(document.querySelector('.ddx-host').shadowRoot.querySelector('fieldset')).borderRadius"
    assert opened.evaluate(border) == "6px"
    assert opened.evaluate("document.head.querySelectorAll('style').length") == 0


# ------------------------------------------------------------------------------------------------------- page and book


def test_inline_json_cannot_end_its_script():
    text = page.inline({"a": "</script><!-- <script> <STYLE> & ' \u2028"})
    assert "</" not in text
    assert "<!" not in text
    assert json.loads(text) == {"a": "</script><!-- <script> <STYLE> & ' \u2028"}


def test_the_book_and_its_links_use_what_there_is():
    library = page.library()
    settings = [CHAPTER["settings"], *(stop["state"] for stop in CHAPTER["stops"]), *directive.LINKS.values()]
    for given in settings:
        law = given["law"]
        assert law in library["laws"]
        for side in "ab":
            model = given.get(f"{side}_model", "exact")
            assert model == "exact" or library["denoisers"][model]["law"] == law, model
            assert given.get(f"{side}_schedule", "own") in {"own", *library["schedules"]}
    assert directive.address({"law": "helix", "compare": False}) == "#explorer?law=helix&compare=0"
    for path in (ROOT / "book/studies").glob("*.ipynb"):
        if re.search("two_moons|helix|sin_5_5", path.read_text(encoding="utf-8")):  # a study of points
            assert f"studies/{path.stem}" in directive.LINKS, f"{path.stem} has no link to the explorer"


CONF = """
extensions = ["myst_parser", "ddpmlab.explorer.directive"]
html_theme = "basic"
"""


def test_the_chapter_in_a_book_and_a_link_from_a_study(tmp_path, open_page):
    sphinx = pytest.importorskip("sphinx.cmd.build", reason="a book needs: pip install 'ddpmlab[book]'")
    source, built = tmp_path / "source", tmp_path / "built"
    (source / "studies").mkdir(parents=True)
    (source / "conf.py").write_text(CONF)
    (source / "index.md").write_text("# Book\n\n```{toctree}\nexplore\nstudies/epochs\n```\n")
    (source / "studies" / "epochs.md").write_text("# Epochs\n")
    shutil.copy(ROOT / "book" / "explore.md", source)
    assert sphinx.main(["-q", "-b", "html", str(source), str(built)]) == 0
    opened = settle(open_page(built / "explore.html"))
    assert opened.locator(".ddx-stop").count() == 6
    study = open_page(built / "studies" / "epochs.html")
    study.get_by_text("Open in the explorer").click()
    settle(study)
    assert state(study, "a_model") == directive.LINKS["studies/epochs"]["a_model"]
    assert not study.inner_text(".ddx-messages")
    # a mistake in a chapter is reported with its place, not built into the page
    (source / "explore.md").write_text("# Explore\n\n```{explorer}\nstop: []\n```\n")
    assert sphinx.main(["-q", "-W", "-E", "-b", "html", str(source), str(built)]) != 0


# ------------------------------------------------------------------------------------------------------- live


class Odd(denoisers.Denoising):
    """A denoiser of nobody's package: shrinks towards the middle."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.shape = schedule, (2,)

    def forward(self, x_t, t, label=None):
        alpha, sigma = self.scales(x_t, t)
        return alpha / (alpha**2 + sigma**2) * x_t


def _explorer(*args, **options):
    pytest.importorskip("anywidget", reason="the live explorer needs: pip install 'ddpmlab[book]'")
    from ddpmlab.explorer import Explorer

    return Explorer(*args, **options)


def test_the_widget_exports_what_the_engine_knows_and_keeps_the_rest():
    law, schedule = data.make("two_moons").standardised(), schedules.make("vp_cosine")
    known = denoisers.Denoiser(networks.make("mlp", shape=(2,)), schedule, "v")
    widget = _explorer({"known": known, "odd": Odd(schedule)}, law, a_steps=5)
    specs = widget.catalogue["denoisers"]
    assert specs["known"]["type"] == "network"
    assert specs["odd"]["type"] == "remote"
    assert widget.a_model == "known"
    assert widget.a_steps == 5
    surface = _explorer(Odd3(schedule), data.make("sin_5_5").standardised())
    assert surface.catalogue["laws"]["law"]["exact"] == "remote"
    mine = _explorer(Odd(schedule), Mine()).catalogue["laws"]["law"]
    assert (mine["title"], mine["exact"], mine["points"]["shape"]) == ("Mine", False, [40, 2])
    bundle = widget._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "ddx-host" in bundle["text/html"]


class Mine:
    """A dataset of nobody's package: points alone."""

    shape = (2,)

    def split(self):
        return torch.randn(40, 2), torch.randn(9, 2)


class Odd3(Odd):
    def __init__(self, schedule):
        super().__init__(schedule)
        self.shape = (3,)


def test_the_widget_runs_a_denoiser_of_nobodys_package_as_the_package_does():
    schedule = schedules.make("vp_cosine")
    law, odd = data.make("two_moons").standardised(), Odd(schedule)
    widget = _explorer(odd, law)
    sent = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
    job = {"kind": "run", "number": 4, "side": "a", "denoiser": "yours", "reference": "own:yours", "seed": 0, "n": 30}
    widget._answer(None, {**job, "sampler": {"name": "heun", "n_steps": 6}}, [noise.numpy().tobytes()])
    kinds = [content["kind"] for content, _ in sent]
    assert kinds == ["state"] * 7 + ["done"]
    *_, end = samplers.make("heun", n_steps=6)(odd, x=noise.double())
    assert torch.allclose(widget.trajectories["a"][-1], end.float(), atol=1e-6)
    assert widget.trajectories["a"].shape == (7, 30, 2)
    assert np.frombuffer(sent[-2][1][0], "<f4") == pytest.approx(end.float().numpy().ravel(), abs=1e-6)
    widget._answer(None, {**job, "denoiser": "missing", "sampler": {"name": "ddim"}}, [noise.numpy().tobytes()])
    assert sent[-1][0]["kind"] == "error"


def test_the_widget_refuses_what_does_not_fit():
    law, schedule = data.make("two_moons").standardised(), schedules.make("vp_cosine")
    with pytest.raises(ValueError, match="needs its law"):
        _explorer(Odd(schedule))
    with pytest.raises(ValueError, match="unknown settings"):
        _explorer(Odd(schedule), law, steps=4)
    with pytest.raises(ValueError, match="must agree"):
        _explorer(Odd3(schedule), law)
    with pytest.raises(TypeError, match="need a denoiser"):
        _explorer({"net": networks.make("mlp", shape=(2,))}, law)
    for wrong in ("two_moons", torch.randn(30, 2)):
        with pytest.raises(TypeError, match="need a dataset"):
            _explorer(Odd(schedule), wrong)
    with pytest.raises(ValueError, match="draws 1 to 3 coordinates"):
        _explorer(Odd(schedule), data.make("gaussian", mean=[0.0] * 5))


NOTEBOOK = """
import torch
from ddpmlab import data, denoisers, networks, samplers, schedules
from ddpmlab.explorer import Explorer

class Odd(denoisers.Denoising):
    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.shape = schedule, (2,)

    def forward(self, x_t, t, label=None):
        alpha, sigma = self.scales(x_t, t)
        return alpha / (alpha**2 + sigma**2) * x_t

law, schedule = data.make("two_moons").standardised(), schedules.make("vp_cosine")
torch.manual_seed(0)
known = denoisers.Denoiser(networks.make("mlp", shape=(2,)), schedule, "v")
explorer = Explorer({"known": known, "odd": Odd(schedule)}, law, b_model="odd", n=64, a_steps=5, b_steps=4)

def tell(change):
    open("heard.txt", "a").write(f"{change['name']}={change['new']} {sorted(explorer.trajectories)}\\n")
    if change["name"] == "a_steps" and change["new"] == 9:
        explorer.n = 40  # back to the page

explorer.observe(tell, names=["a_steps", "seed"])
explorer
"""


def _answering(lab, log: Path) -> str:
    """The address of a JupyterLab that has just been started, once it answers."""
    for _ in range(1_200):
        assert lab.poll() is None, log.read_text()
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text()):
            address = f"http://127.0.0.1:{found[1]}"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/status", timeout=10):
                return address
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_live_jupyterlab_shows_it_and_exchanges_state_both_ways(tmp_path, open_page):
    pytest.importorskip("jupyterlab", reason="a live test needs: pip install 'ddpmlab[book]'")
    pytest.importorskip("anywidget", reason="a live test needs: pip install 'ddpmlab[book]'")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(NOTEBOOK)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, tmp_path / "live.ipynb")
    log = (tmp_path / "lab.log").open("w")
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **folders, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--IdentityProvider.token="]
    options = [
        f"--ServerApp.root_dir={tmp_path}",
        "--ServerApp.allow_root=True",
        "--LabApp.news_url=",
        "--expose-app-in-browser",
    ]
    lab = subprocess.Popen([*command, *options], env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        address = _answering(lab, tmp_path / "lab.log")
        opened = open_page(f"{address}/lab/tree/live.ipynb", quiet=False)
        opened.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        opened.wait_for_function(
            "document.querySelector('.jp-NotebookPanel-toolbar')?.textContent.includes('Python 3')"
        )
        # what is run before the kernel is connected is lost
        idle = "document.querySelector('#jp-main-statusbar')?.textContent.includes('| Idle')"
        opened.wait_for_function(idle, timeout=90_000)
        opened.click(".jp-Notebook .jp-Cell .cm-content")
        opened.keyboard.press("Shift+Enter")
        opened.wait_for_selector(".ddx .ddx-canvas", timeout=90_000)
        settle(opened)
        assert not opened.inner_text(".ddx-messages")
        assert opened.locator(".ddx").count() == 1  # the widget, not its static copy beside it
        assert opened.evaluate(f"{ROOT_NODE}.explorer.runs.b.nfe") == 4  # evaluated in the kernel
        # from the page to the kernel, and back
        field = opened.locator("[data-key=a_steps]")
        field.fill("9")
        field.press("Tab")
        opened.wait_for_function(f"{ROOT_NODE}.explorer.state.n === 40", timeout=20_000)
        settle(opened)
        heard = (tmp_path / "heard.txt").read_text()
        assert "a_steps=9 ['a', 'b']" in heard  # trajectories of both sides had arrived
    finally:
        lab.kill()  # its kernel ends with it
        lab.wait()
        log.close()
        shutil.rmtree(tmp_path / "runtime", ignore_errors=True)
