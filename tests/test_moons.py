import math
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import make_moons

from ddpmlab import data, metrics, schedules
from ddpmlab.lab import Experiment, Training, limit, run_all, score
from ddpmlab.metrics import moons
from ddpmlab.studies import two_moons

LAW = data.make("two_moons").standardised()


def standardised(own):
    return (own - LAW.mean) / LAW.scale


def arc(n, radius):
    """Points at a distance from the upper arc's circle, away from its ends and from the other arc."""
    angle = torch.linspace(0.6 * math.pi, 0.9 * math.pi, n, dtype=torch.float64)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def test_thickness_is_the_rms_distance_to_the_arcs():
    points = standardised(torch.cat([arc(50, 1.03), arc(50, 0.96)]))
    expected = math.sqrt((0.03**2 + 0.04**2) / 2) / moons.law_thickness()
    assert moons.thickness(points) == pytest.approx(expected, rel=1e-9)
    # the noise is normal in two dimensions, but only its part across the arc counts, save at the arcs' ends
    assert moons.law_thickness() == pytest.approx(0.05, rel=0.01)


def test_thickness_of_the_law_is_one_and_divergent_points_do_not_count():
    points = LAW.sample(100_000, 1)
    assert moons.thickness(points) == pytest.approx(1, abs=4 / math.sqrt(200_000))
    far = torch.tensor([[7_500.0, 0.0], [0.0, -6.1]], dtype=torch.float64)
    assert moons.thickness(torch.cat([points, far])) == moons.thickness(points)
    with pytest.raises(ValueError, match="all 2 points lie beyond 6 standard deviations"):
        moons.thickness(far)
    with pytest.raises(ValueError, match="dimensions"):
        moons.thickness(torch.zeros(5, 3))


def test_the_reports_columns_are_its_arithmetic_on_its_points():
    real = standardised(torch.from_numpy(make_moons(5_000, noise=0.05, random_state=42)[0]))
    assert torch.equal(moons.report_sample(), real)
    x = LAW.sample(300, 2)
    found = moons.report_scores(x)
    assert found["mmd_published"] == metrics.mmd2(x, real, "two-moons-report")
    assert found["energy_distance_published"] == metrics.energy_distance(x, real, "two-moons-report")
    assert found["sliced_wasserstein_published"] == metrics.sliced_wasserstein(x, real)
    test = metrics.c2st(x, real, convention="two-moons-report")
    assert (found["c2st_accuracy_published"], found["c2st_roc_published"]) == tuple(test)


@pytest.mark.slow
def test_scores_of_samples_go_with_those_of_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPMLAB_CACHE", str(tmp_path))
    config = Experiment(
        "two_moons",
        {"name": "ve", "sigma_min": 0.01, "sigma_max": 8.0},
        training=Training(n_steps=1),
        sampler={"name": "dpmpp_2m", "n_steps": 20},
        n_samples=1_000,
        metrics=("thickness", "emd_128", "kl"),
    )
    many = limit(replace(config, metrics=("energy_distance_20000",), n_samples=20_000), "law")
    assert score(many)["energy_distance_20000 p"] > 0.01
    for denoiser in ("exact", "law"):
        table = run_all("x", {denoiser: limit(config, denoiser)}, range(2), progress=False)
        assert set(table.metric) == {"thickness", "emd_128"}
        thickness = table[table.metric == "thickness"]
        assert (thickness["value"] - 1).abs().max() < 4 / math.sqrt(2_000)
        assert thickness["floor_mean"].isna().all()
        assert table[table.metric == "emd_128"]["floor_mean"].notna().all()


def test_scores_that_a_run_cannot_have_are_refused():
    with pytest.raises(ValueError, match="metric thickness is one of the dataset two_moons, not of helix"):
        Experiment("helix", metrics=("thickness",))
    with pytest.raises(ValueError, match=r"n_samples = 5000; the metrics .* compare 20000"):
        Experiment("two_moons", metrics=("energy_distance_20000",))
    with pytest.raises(ValueError, match=r"unknown metric .*energy_distance_20000.*thickness"):
        Experiment("two_moons", metrics=("thicknes",))


def test_a_shorter_chain_ends_where_the_reports_ends():
    assert [*two_moons.chains(1_000).values()] == [two_moons.LINEAR, two_moons.COSINE]
    ends = [schedules.SCHEDULES.build(two_moons.chains(n)["linear"]).alpha_bars[-1].log() for n in (1_000, 100)]
    assert float(ends[1] / ends[0]) == pytest.approx(1, abs=0.1)
