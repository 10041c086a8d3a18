"""What figures promise beyond looks, which a person checks."""

import re

import numpy as np

from ddpmlab.book import plotting


def test_an_animation_carries_all_it_needs():
    """One player with every frame inside: nothing fetched, described in words, small enough for a page."""
    states = np.random.default_rng(0).normal(size=(24, 1_000, 3))
    player = plotting.animation({"left": states, "right": -states}, "reverse process", start=False)
    assert len(re.findall(r'frames\[\d+\] = "data:image/png;base64,', player)) == 24
    assert "http" not in re.sub(r'"data:[^"]*"', "", player)
    assert re.findall(r'<img alt="([^"]*)"', player) == [
        "Animation, reverse process: left, right, with the lowest and highest points marked."
    ]
    assert len(player) < 2_000_000


def test_marked_points_are_the_lowest_and_the_highest():
    points = np.random.default_rng(0).normal(size=(50, 3))
    order = points[:, 2].argsort()
    figure = plotting.clouds({"a": {"end": points}}, tracked={"a": (order[:3], order[-3:])})
    low, high = figure.axes[0].lines
    assert max(low.get_data_3d()[2]) == np.sort(points[:, 2])[2]
    assert min(high.get_data_3d()[2]) == np.sort(points[:, 2])[-3]
