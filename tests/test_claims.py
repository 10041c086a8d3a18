"""Every verdict of the book, computed again from the committed tables by arithmetic of its own.

A page adds its rows to `ROWS`: a claim's effect is a signed sum of values of its table, one a seed. A page whose
template has changed since it was run fails, until it is run again.
"""

import csv
import json
import math
import runpy
import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from scipy.special import stdtrit

from ddpmlab.book.pages import cells_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "book" / "results"
LAWS = ("sin_5_5", "helix")


@dataclass(frozen=True)
class Row:
    """How a claim follows from its page's table.

    Attributes:
        page, law: which rows of which table.
        terms: (factor, metric, variant), added up seed by seed over the seeds that all of them have.
        above: a column of the last term's rows to subtract, such as `ceiling`.
        error: (metric, variant) of a row that holds a standard error shared by all seeds.
        verdict: `artefact` where the page says so; what the interval says if omitted.
        scale: factor on the effect.
        less: a number to subtract, such as a bar.
    """

    page: str
    law: str
    terms: tuple[tuple[float, str, str], ...]
    above: str | None = None
    error: tuple[str, str] | None = None
    verdict: str | None = None
    scale: float = 1.0
    less: float = 0.0


@dataclass(frozen=True)
class Lead:
    """Lead of linear over the best other schedule, which for each seed is the one best on the other seeds.

    Attributes:
        page, law, metric: which rows; `bound` is `chain_kl` with the schedule's `prior_kl`.
        others: the schedules that linear is compared with.
        suffix: of the variants.
        verdict, scale: as in `Row`.
    """

    page: str
    law: str
    metric: str
    others: tuple[str, ...]
    suffix: str = ""
    verdict: str | None = None
    scale: float = 1.0

    def effect(self, table: list[dict[str, str]]) -> tuple[list[float], float]:
        """One value per seed."""

        def found(metric: str, name: str) -> dict[str, float]:
            key = (self.law, metric, f"schedule={name}{self.suffix}")
            return {r["seed"]: float(r["value"]) for r in table if (r["dataset"], r["metric"], r["variant"]) == key}

        def score(name: str) -> dict[str, float]:
            if self.metric != "bound":
                return found(self.metric, name)
            (prior,) = found("prior_kl", name).values()
            return {seed: value + prior for seed, value in found("chain_kl", name).items()}

        linear, others = score("linear"), {name: score(name) for name in self.others}
        values = []
        for seed in sorted(linear):
            apart = {name: [v for k, v in each.items() if k != seed] for name, each in others.items()}
            best = min(apart, key=lambda name: sum(apart[name]) / len(apart[name]))
            values.append(self.scale * (others[best][seed] - linear[seed]))
        return values, 0.0


@dataclass(frozen=True)
class Relative:
    """A score of one variant over that of another, seed by seed, less 1.

    Attributes:
        page, law, metric: which rows.
        after, before: the two variants.
        scale, offset: of the effect, scale (after / before - 1) + offset.
        verdict, error: as in `Row`.
    """

    page: str
    law: str
    metric: str
    after: str
    before: str
    scale: float = -100.0
    offset: float = 0.0
    verdict: str | None = None
    error: tuple[str, str] | None = None

    def effect(self, table: list[dict[str, str]]) -> tuple[list[float], float]:
        """One value per seed."""

        def found(variant: str) -> dict[str, float]:
            key = (self.law, self.metric, variant)
            return {r["seed"]: float(r["value"]) for r in table if (r["dataset"], r["metric"], r["variant"]) == key}

        after, before = found(self.after), found(self.before)
        assert set(after) == set(before), f"seeds of {self.after} and {self.before}"
        values = [self.scale * (after[k] / before[k] - 1) + self.offset for k in sorted(after)]
        return values, shared_error(table, self.law, self.error)


def shared_error(table: list[dict[str, str]], law: str, error: tuple[str, str] | None) -> float:
    """The standard error in the row of a metric and variant; none if there is no such pair."""
    if error is None:
        return 0.0
    (value,) = (float(r["value"]) for r in table if (r["dataset"], r["metric"], r["variant"]) == (law, *error))
    return value


def change(page: str, law: str, metric: str, plus: str, minus: str, **more) -> Row:
    """One variant less another."""
    return Row(page, law, ((1, metric, plus), (-1, metric, minus)), **more)


def _own_network() -> dict[str, Row]:
    relu, no_time = "time as an input, ReLU behind the output", "no time input, ReLU behind the output"
    pairs = [f"table 8: lbeta={low};ubeta={up}, {relu}" for low, up in ((0.0128, 0.001), (0.0128, "1e-05"))]
    widest = f"table 8: lbeta=0.128;ubeta=1e-06, {relu}"
    rows = {
        "own-network-explosion": Row("own_network", "sin_5_5", ((1, "emd_128", widest),), above="ceiling"),
        "own-network-pairs": change("own_network", "sin_5_5", "emd_128", pairs[1], pairs[0]),
    }
    changes = {
        "": (f"table 5: T=200, {relu}", f"table 5: T=10, {relu}"),
        "no-time-": (f"table 5: T=200, {no_time}", f"table 5: T=10, {no_time}"),
        "perfect-": ("table 5: T=200, perfect", "table 5: T=10, perfect"),
        "epochs-": (f"table 1: epochs=100, {relu}", f"table 1: epochs=1000, {relu}"),
        "complexity-": (f"table 3: model=1, {relu}", f"table 3: model=3, {relu}"),
        "cosine-": (f"table 7: schedule=cosine, {relu}", f"table 7: schedule=linear, {relu}"),
    }
    for name, (plus, minus) in changes.items():
        for law in LAWS:
            rows[f"own-network-{name}{law}"] = change("own_network", law, "emd_128", plus, minus)
    return rows


def _epochs() -> dict[str, Row]:
    rows = {}
    for law in LAWS:
        rows[f"epochs-{law}"] = change("epochs", law, "emd_128", "epochs=100", "epochs=1000")
        rows[f"epochs-late-{law}"] = change("epochs", law, "emd_128", "epochs=500", "epochs=1000")
        rows[f"epochs-chain-kl-{law}"] = change("epochs", law, "chain_kl", "epochs=500", "epochs=1000")
        apart = ((1, "nll_gap", "epochs=1000"), (-1, "nll_gap_train", "epochs=1000"))
        before = ((-1, "nll_gap", "epochs=100"), (1, "nll_gap_train", "epochs=100"))
        error = ("nll_gap_change_error", "500 points")
        rows[f"epochs-overfitting-{law}"] = Row("epochs", law, apart + before, error=error)
        for name, other in (("T-200", "T=200"), ("schedule-cosine", "schedule=cosine")):
            ends = (f"{other}, epochs=100", f"{other}, epochs=500")
            rows[f"epochs-more-{name}-{law}"] = change("epochs", law, "emd_128", *ends)
    return rows


def _diffusion_steps() -> dict[str, Row]:
    page, rows = "diffusion_steps", {}
    for law in LAWS:
        rows[f"diffusion-steps-{law}"] = change(page, law, "emd_128", "T=200", "T=10")
        for name, metric, suffix, scale in (
            ("emd", "emd_128", "", -1.0),
            ("fine", "energy_distance", "", -1e3),
            ("settled", "energy_distance", ", settled", -1e3),
        ):  # the scatter of real points less the fall: minus (fall - scatter)
            terms = ((-1, metric, f"T=200{suffix}"), (1, metric, f"T=50{suffix}"))
            rows[f"diffusion-steps-marginal-{name}-{law}"] = Row(page, law, terms, above="floor_sd", scale=scale)
        for name, metric, scale in (("emd", "emd_128", -1.0), ("fine", "energy_distance", -1e3)):
            terms = ((-1, metric, "T=50"), (1, metric, "T=10"))
            rows[f"diffusion-steps-marginal-{name}-early-{law}"] = Row(page, law, terms, above="floor_sd", scale=scale)
    return rows


def _noise_schedules() -> dict[str, Row | Lead]:
    page, others, rows = "noise_schedules", ("sech", "cosine", "scaled_linear", "sigmoid"), {}
    for law in LAWS:
        for name in ("emd_128", "course_nll", "energy_distance", "bound"):
            scale = 1e3 if name == "energy_distance" else 1.0
            if (law, name) == ("helix", "course_nll"):
                scale = -1.0  # the one case where the report says that linear is not best
            beside = ("scaled_linear",) if name == "bound" else others  # of one first level
            rows[f"noise-schedules-linear-{name.replace('_', '-')}-{law}"] = Lead(page, law, name, beside, scale=scale)
        rows[f"noise-schedules-settled-{law}"] = Lead(page, law, "energy_distance", others, ", settled", scale=1e3)
        ends = ("schedule=linear, settled", "schedule=cosine, settled")
        rows[f"noise-schedules-newer-{law}"] = change(page, law, "energy_distance", *ends, scale=1e3)
    widest, narrow, equal = (
        f"pair lbeta={low};ubeta={up}" for low, up in (("0.128", "1e-06"), ("0.0128", "0.001"), ("0.128", "0.128"))
    )
    rows["noise-schedules-widest"] = change(page, "sin_5_5", "emd_128", widest, narrow)
    rows["noise-schedules-widening"] = change(page, "sin_5_5", "emd_128", widest, equal)
    rows["noise-schedules-explosion"] = Row(page, "sin_5_5", ((1, "emd_128", widest),), above="ceiling")
    return rows


def _memorisation() -> dict[str, Row]:
    def at(n: int, width: int, step: int) -> str:
        return f"N = {n}, width {width}, step {step}"

    rows = {
        f"memorisation-epochs-{n}": change("memorisation", "two_moons", "kl", at(n, 64, 8000), at(n, 64, 2000))
        for n in (100, 300, 1_000, 3_000, 10_000, 100_000)
    }
    ends = at(300, 128, 8000), at(300, 16, 8000)
    return rows | {"memorisation-width": change("memorisation", "two_moons", "kl", *ends)}


def _complexity() -> dict[str, Row]:
    page, rows = "complexity", {}
    rested = {"sin_5_5": ("model=1, 54000 steps", "model=3, 54000 steps"),
              "helix": ("model=1, 54000 steps", "model=3, 18000 steps")}  # fmt: skip
    for law in LAWS:
        rows[f"complexity-{law}"] = change(page, law, "emd_128", "model=1", "model=3")
        rows[f"complexity-chain-kl-{law}"] = change(page, law, "chain_kl", "model=1", "model=3")
        rows[f"complexity-larger-is-worse-{law}"] = change(page, law, "chain_kl", "model=5", "model=3")
        equal = ("model=5, 18000 steps", "model=3, 18000 steps")
        rows[f"complexity-larger-at-rest-{law}"] = change(page, law, "chain_kl", *equal)
        rows[f"complexity-converged-{law}"] = change(page, law, "emd_128", *rested[law])
        for p in ("0.1", "0.5"):
            for metric in ("train_loss", "emd_128", "chain_kl"):
                id = f"complexity-dropout-{p}-{metric.replace('_', '-')}-{law}"
                rows[id] = change(page, law, metric, f"model=3, dropout {p}", "model=3")
    return rows


def _scores() -> dict[str, Row]:
    def row(*terms: tuple[float, str, str], **more) -> Row:
        return Row("scores", "two_moons", terms, **more)

    rows = {}
    flawed = (("noise", "pure noise"), ("blur", "blurred by 0.25 sd"), ("moved", "moved by 0.25 sd"))
    for id, flaw in flawed:
        rows[f"scores-logistic-{id}"] = row((1, "auc_svm", flaw), (-1, "auc_logistic", flaw))
    for id, flaw, sign in (
        ("mmd-local-thick", "arcs 3 times as thick", 1),
        ("mmd-local-missing", "10% of the mass missing", 1),
        ("energy-global-spread", "spread 10% too large", -1),
        ("energy-global-moved", "moved by 0.1 sd", -1),
    ):  # MMD less energy distance, or the other way round
        pair = f"{flaw}, MMD", f"{flaw}, energy distance"
        rows[f"scores-{id}"] = row((sign, "sensitivity", pair[0]), (-sign, "sensitivity", pair[1]))
    scatter = [("sd_of_sliced_wasserstein", f"256 directions, over {what}") for what in ("samples", "directions")]
    folds = [("c2st_accuracy_published", f"blur 0, {of}") for of in ("folds of another seed", "the report's folds")]
    return rows | {
        "scores-directions": row((1 / 3, *scatter[0]), (-1, *scatter[1])),
        "scores-c2st": row((1, *folds[0]), (-1, *folds[1]), verdict="artefact"),
    }


def _two_moons() -> dict[str, Row | Relative]:
    page, rows = "two_moons", {}
    scores = {
        "sliced": "sliced_wasserstein_published",
        "mmd": "mmd_published",
        "energy": "energy_distance_published",
        "kl": "chain_kl",
        "but_last": "chain_kl_but_last",
        "roc": "c2st_roc_published",
    }
    larger, final = "4_larger_mlp", "6_residual_blocks"
    weighted, unaveraged = "5.2_snr_weighting_ema", "5.1_snr_weighting_no_ema"
    for before, after, sign, claims in (
        ("baseline", "1_ddpm", -1, {"ddpm": "sliced", "ddpm-mmd": "mmd", "ddpm-energy": "energy"}),
        ("1_ddpm", "2_ema", -1, {"ema": "energy", "ema-sliced": "sliced", "ema-mmd": "mmd", "ema-kl": "kl"}),
        ("2_ema", "3_cosine", -1, {"cosine": "energy", "cosine-kl": "kl", "cosine-kl-but-last": "but_last"}),
        ("3_cosine", larger, -1, {"larger": "energy", "larger-sliced": "sliced", "larger-kl": "kl"}),
        (larger, final, -1, {"residual": "energy", "residual-kl": "kl"}),
        ("baseline", final, -1, {f"final-{name}": name for name in ("energy", "sliced", "mmd", "kl")}),
        (larger, weighted, -1, {"snr-roc": "roc"}),
        (larger, weighted, 1, {"snr-distance": "energy", "snr-kl": "kl"}),
        ("4, without EMA", unaveraged, 1, {"snr-no-ema": "energy", "snr-no-ema-kl": "kl"}),
    ):
        for name, score in claims.items():
            by_points = scores[score].startswith("chain_kl")
            error = (f"{scores[score]}_points_error", f"{before} to {after}") if by_points else None
            rows[f"moons-{name}"] = Relative(page, page, scores[score], after, before, 100.0 * sign, error=error)
    accuracy = "c2st_accuracy_published"
    rows["moons-snr-c2st"] = Relative(page, page, accuracy, weighted, larger, 100.0, verdict="artefact")
    rows["moons-mmd"] = Row(page, page, ((1, "mmd_published", "perfect sampler"),), verdict="artefact")
    for name, bar in (("mmd", 0.05), ("energy", 0.06), ("sliced", 0.06)):
        rows[f"moons-baseline-{name}"] = Row(page, page, ((-1, scores[name], "baseline"),), less=-bar)
    rows["moons-thicker"] = Row(page, page, ((-1, "thickness", final),), less=-1, scale=100)
    seconds = "34K, rungs 1 to 3", "50K, rungs 4 and 5", "134K, rung 6"
    rows["moons-time-larger"] = Relative(page, page, "seconds_step", seconds[1], seconds[0], -100, 25)
    rows["moons-time-residual"] = Relative(page, page, "seconds_step", seconds[2], seconds[1], 1, -1)
    for end in ("start", "end"):
        rows[f"moons-gradient-{end}"] = Row(page, page, ((1, f"gradient_{end}", "linear betas"),), less=1)
    rows["moons-gradient-cosine"] = Relative(page, page, "gradient_variance", "cosine betas", "linear betas")
    networks = "larger MLP, weighted", "larger MLP, unweighted"
    rows["moons-gradient-snr"] = Relative(page, page, "gradient_spread", *networks)
    directions = ((1, "directions_error", "256 directions"),)
    rows["moons-directions"] = Row(page, page, directions, above="floor_sd", scale=-1)
    return rows


ROWS = {
    **_own_network(),
    **_epochs(),
    **_complexity(),
    **_diffusion_steps(),
    **_noise_schedules(),
    **_memorisation(),
    **_scores(),
    **_two_moons(),
}


# --- arithmetic --------------------------------------------------------------------------------------------------


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def judged(values: list[float], error: float = 0.0) -> tuple[float, float, float, str]:
    """Mean, Student's t interval of 95% widened by a shared standard error, and what it says of "above zero"."""
    mean, n = math.fsum(values) / len(values), len(values)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / n**0.5 if n > 1 else 0.0
    half = (half**2 + (1.96 * error) ** 2) ** 0.5
    verdict = "not resolved" if abs(mean) <= half else "reproduced" if mean > 0 else "not reproduced"
    return mean, mean - half, mean + half, verdict


def effect(row: Row | Lead | Relative, table: list[dict[str, str]]) -> tuple[list[float], float]:
    """One value per seed, and the shared standard error."""
    if not isinstance(row, Row):
        return row.effect(table)

    def found(metric: str, variant: str) -> dict[str, dict[str, str]]:
        key = (row.law, metric, variant)
        return {r["seed"]: r for r in table if (r["dataset"], r["metric"], r["variant"]) == key}

    terms = [(sign, found(metric, variant)) for sign, metric, variant in row.terms]
    seeds = set.intersection(*(set(rows) for _, rows in terms))
    assert seeds, f"no seeds of {row.terms}"
    less = row.less + (float(next(iter(terms[-1][1].values()))[row.above]) if row.above else 0.0)
    values = [row.scale * (sum(s * float(rows[k]["value"]) for s, rows in terms) - less) for k in sorted(seeds)]
    return values, shared_error(table, row.law, row.error)


def as_published(page: str) -> bool:
    """Whether a page's template is the one it was run from, at the full profile."""
    note = json.loads((RESULTS / "provenance.json").read_text()).get(page, {})
    path = ROOT / "notebooks" / f"{page}.ipynb"
    if note.get("profile") != "full" or not path.exists():
        return False
    return cells_of(path).items() <= note["fingerprint"].items()


def published(page: str) -> tuple[dict[str, dict[str, str]], list[dict[str, str]]]:
    """Claims and table of a page, which must stand as its template was run."""
    assert as_published(page), f"{page}.ipynb has changed since its page was run: ddpmlab run {page} --profile full"
    return {r["id"]: r for r in read("claims.csv") if r["page"] == page}, read(f"{page}.csv")


# --- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", sorted({row.page for row in ROWS.values()}))
def test_verdicts_and_intervals_follow_from_the_tables(page):
    claims, table = published(page)
    assert set(claims) == {id for id, row in ROWS.items() if row.page == page}
    for id, claim in claims.items():
        mean, low, high, verdict = judged(*effect(ROWS[id], table))
        near = {"rel": 2e-3, "abs": 1e-4 * max(abs(low), abs(high))}  # the tables have six digits
        assert float(claim["measured"]) == pytest.approx(mean, rel=6e-3, abs=near["abs"]), id
        assert (float(claim["ci_low"]), float(claim["ci_high"])) == pytest.approx((low, high), **near), id
        assert claim["verdict"] == (ROWS[id].verdict or verdict), id


def test_the_arithmetic_on_numbers_done_by_hand():
    # 1, 2, 3: sd 1, t(0.975; 2) = 4.302653
    mean, low, high, verdict = judged([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert verdict == "not resolved"
    assert judged([10.0, 11.0, 12.0])[3] == "reproduced"
    assert judged([-10.0, -11.0, -12.0])[3] == "not reproduced"
    assert judged([10.0, 11.0, 12.0], error=10.0)[3] == "not resolved"
    cells = [("a", 0, 5.0, 1.0), ("a", 1, 7.0, 1.0), ("b", 0, 2.0, 1.0), ("b", 1, 3.0, 1.0), ("b", 2, 9.0, 1.0)]
    table = [
        {"dataset": "helix", "metric": "kl", "variant": v, "seed": str(s), "value": str(x), "ceiling": str(c)}
        for v, s, x, c in cells
    ]
    assert effect(change("p", "helix", "kl", "a", "b"), table) == ([3.0, 4.0], 0.0)
    assert effect(Row("p", "helix", ((1, "kl", "b"),), above="ceiling"), table) == ([1.0, 2.0, 8.0], 0.0)
    assert effect(Row("p", "helix", ((-1, "kl", "a"),), less=-6, scale=10), table) == ([10.0, -10.0], 0.0)
    half = [{**row, "variant": "c", "value": str(float(row["value"]) / 2)} for row in table if row["variant"] == "a"]
    assert effect(Relative("p", "helix", "kl", "c", "a"), table + half) == ([50.0, 50.0], 0.0)
    assert effect(Relative("p", "helix", "kl", "c", "a", 1, -1), table + half) == ([-1.5, -1.5], 0.0)
    shared = Relative("p", "helix", "kl", "c", "a", error=("kl_error", "a to c"))
    one = {"dataset": "helix", "metric": "kl_error", "variant": "a to c", "seed": "0", "value": "3.5"}
    assert effect(shared, [*table, *half, one]) == ([50.0, 50.0], 3.5)


def test_a_lead_is_over_the_schedule_that_is_best_on_other_seeds():
    cells = {"linear": (1.0, 1.0), "cosine": (0.0, 5.0), "sech": (4.0, 2.0)}  # each other is lucky once
    table = [
        {"dataset": "helix", "metric": m, "variant": f"schedule={name}", "seed": str(k), "value": str(v)}
        for name, values in cells.items()
        for m, k, v in (("chain_kl", 0, values[0]), ("chain_kl", 1, values[1]), ("prior_kl", 0, 0.5))
    ]
    assert effect(Lead("p", "helix", "chain_kl", ("cosine", "sech")), table) == ([3.0, 4.0], 0.0)
    assert effect(Lead("p", "helix", "bound", ("cosine", "sech"), scale=-1.0), table) == ([-3.0, -4.0], 0.0)


# --- pages of pictures, whose effects are not one value a seed ------------------------------------------------------


def matches(claim: dict[str, str], mean: float, low: float, high: float, verdict: str) -> bool:
    found = [float(claim[name]) for name in ("measured", "ci_low", "ci_high")]
    return found == pytest.approx([mean, low, high], rel=6e-3, abs=2e-5) and claim["verdict"] == verdict


def wilson(share: float, n: float, bar: float) -> tuple[float, float, float, str]:
    """A share less a bar, the interval of Wilson (1927) as roots of (share - p)^2 = z^2 p (1 - p) / n, the verdict."""
    z2n = 1.959964**2 / n
    a, b, c = 1 + z2n, -(2 * share + z2n), share**2
    low, high = ((-b + sign * (b * b - 4 * a * c) ** 0.5) / (2 * a) - bar for sign in (-1, 1))
    return share - bar, low, high, "reproduced" if low > 0 else "not reproduced" if high < 0 else "not resolved"


def test_claims_on_garments_follow_from_the_table():
    claims, table = published("fashion_mnist")

    def rows(metric, **factors):
        return [r for r in table if r["metric"] == metric and all(r[k] == v for k, v in factors.items())]

    def left(row):
        value, floor, ceiling = (float(row[k]) for k in ("value", "floor_mean", "ceiling"))
        return (value - floor) / (ceiling - floor)

    (plain,) = rows("frechet_distance_2048", part="straightforward", network="784-MLP as published")
    best = rows("frechet_distance", part="best", network="U-Net")
    guided = rows("frechet_distance", part="best", network="U-Net, guided")
    classes = rows("class_accuracy", part="best", network="U-Net, guided")
    mlps = [r for r in rows("frechet_distance_2048") if r["network"].startswith("784-MLP")]
    draws = [float(r["value"]) for r in rows("frechet_distance_2048", part="training") if r["draw"]]
    signal = math.prod(1 - (1e-5 + k * (1.28e-2 - 1e-5) / 49) for k in range(50))
    fall = min(float(r["value"]) for r in mlps)
    expected = {
        "fashion-data": [1.0],
        "fashion-dim": [1.0],
        "fashion-noising": [1 - signal / (1 - signal)],
        "fashion-straightforward": [100 * (0.1 - left(plain))],
        "fashion-quality": [100 * (0.01 - left(row)) for row in best],
        "fashion-quality-guided": [100 * (0.01 - left(row)) for row in guided],
        "fashion-classes-guided": [100 * (0.03 - abs(float(r["value"]) - float(r["floor_mean"]))) for r in classes],
        "fashion-architecture": [fall - value for value in draws],
    }
    assert min(len(draws), len(best), len(guided), len(classes)) >= 5
    chosen_on = {r["draw"] or "0.0" for r in rows("frechet_distance_2048", part="guidance")}
    assert not {r["draw"] for r in guided} & chosen_on
    assert len(mlps) >= 3
    assert set(claims) == set(expected)
    for id, values in expected.items():
        assert matches(claims[id], *judged(values)), id


def test_what_the_page_says_of_other_trainings_follows_from_their_table():
    table = read("fashion_trainings.csv")
    value, score = {(r["variant"], int(r["seed"]), r["metric"]): r for r in table}, "frechet_distance"

    def left(row):
        reads, floor, ceiling = (float(row[k]) for k in ("value", "floor_mean", "ceiling"))
        return (reads - floor) / (ceiling - floor)

    def of(name):
        found = {seed: row for (variant, seed, metric), row in value.items() if (variant, metric) == (name, score)}
        for seed, row in found.items():
            assert left(row) == pytest.approx(float(value[name, seed, "frechet_left"]["value"]), rel=1e-5)
            kernel = left(value[name, seed, "kernel_distance"])
            assert kernel == pytest.approx(float(value[name, seed, "kernel_left"]["value"]), rel=1e-4)
        return [left(found[seed]) for seed in sorted(found)]

    page = [r for r in read("fashion_mnist.csv") if (r["part"], r["metric"]) == ("best", score)]
    for name in ("U-Net", "U-Net, guided"):
        base, guided = name.partition(", ")[0], name.removeprefix("U-Net")
        ours, committed = of(name), of(f"{base}, committed weights{guided}")
        own = statistics.mean(left(r) for r in page if r["variant"] == name)
        assert (len(ours), len(committed)) == (4, 1)
        assert min(own, *committed) > max(ours)  # both of a CPU
        assert committed[0] == pytest.approx(own, rel=0.15)
        assert min(ours) <= of(f"{base} in float32{guided}")[0] <= max(ours)
    assert max(of("U-Net, guided")) < 0.01
    script = runpy.run_path(str(ROOT / "benchmarks/fashion_trainings.py"))
    whole = pd.read_csv(RESULTS / "fashion_trainings.csv")
    again = script["with_left"](whole[~whole["metric"].str.endswith("_left")])
    key = ["variant", "seed", "metric"]
    both = whole.set_index(key)["value"].sort_index(), again.set_index(key)["value"].sort_index()
    pd.testing.assert_series_equal(*both, rtol=1e-4)
    asked = script["runs"](4, 5_000, 10_000)
    assert {(run.variant, run.config.seed) for run in asked} == {key[:2] for key in value}


def test_sentences_beside_the_answers_follow_from_the_tables():
    def of(page, law, metric, variant):
        rows = [r for r in read(f"{page}.csv") if (r["dataset"], r["metric"], r["variant"]) == (law, metric, variant)]
        assert rows, variant
        return [float(r["value"]) for r in sorted(rows, key=lambda r: int(r["seed"]))]

    after = {i: statistics.mean(of("complexity", "helix", "chain_kl", f"model={i}")) for i in (3, 4, 5)}
    assert after[3] < min(after[4], after[5])
    other, path = (of("rivals", "helix", *which) for which in (("kl_exact", "mixture, best"), ("kl", "diffusion")))
    assert judged([a - b for a, b in zip(other, path, strict=True)])[3] == "reproduced"
    assert min(of("settled", "sin_5_5", "kl", "9000 steps, drawn afresh")) > 0.01
    assert min(of("settled", "sin_5_5", "kl", "27000 steps, drawn afresh")) > 0.01
    (noise,) = {
        float(r["ceiling"]) for r in read("parts.csv") if r["variant"] == "ancestral, 8 evaluations" and r["ceiling"]
    }
    assert min(of("parts", "two_moons", "sliced_wasserstein", "ancestral, 8 evaluations")) > noise


def test_the_page_computed_on_a_gpu_has_the_rows_and_the_floors_of_the_page():
    ours, there = (read(f"fashion_mnist{suffix}.csv") for suffix in ("", "_h100"))
    factors = [name for name in ours[0] if name not in ("value", "floor_mean", "floor_sd", "ceiling")]
    assert sorted([row[k] for k in factors] for row in ours) == sorted([row[k] for k in factors] for row in there)
    floors = [
        {(r["metric"], r["floor_mean"][:5], r["ceiling"][:5]) for r in rows if r["ceiling"]} for rows in (ours, there)
    ]
    assert floors[0] == floors[1]
    seconds = [{float(r["value"]) for r in rows if r["metric"] == "seconds_train"} for rows in (ours, there)]
    assert max(seconds[1]) < 0.1 * max(seconds[0])


def test_claims_on_sleeves_follow_from_the_table():
    claims, table = published("interpolation")
    value = {(r["variant"], r["metric"]): float(r["value"]) for r in table}
    n = {(r["variant"], r["metric"]): float(r["n"]) for r in table if r["n"]}
    bars = {"monotone": 0.8, "hit": 0.7, "ghost_inside": 0.9}
    named = {metric: claims[f"sleeves-{metric.replace('_', '-')}"] for metric in bars}
    ways = {way for way, metric in value if metric == "hit" and "half width" not in way}

    def judge(way, metric, bar):
        *ends, verdict = wilson(value[way, metric], n[way, metric], bar)
        return *(100 * end for end in ends), verdict

    assert [w for w in ways if all(matches(named[m], *judge(w, m, bar)) for m, bar in bars.items())], "no such way"
    assert matches(claims["sleeves-average"], *judge("pixel average", "answer", 0.1))
    retrieved = "nearest training top of that length"  # a training picture within 0.05 of a length known to 0.1
    assert value[retrieved, "hit"] == 1
    assert value[retrieved, "nearest"] < 1e-3
    withheld = {way.split(", half width")[0] for way, metric in value if metric == "sd_of_answer_minus_average"}
    assert len(withheld) == 3
    assert len(claims) == len(bars) + 1 + len(withheld)
    for way in withheld:
        name = f"{way}, half width, none between 0.5 and 0.9"
        pairs = n[name, "answer"]
        trainings = [value[key] for key in value if key[0].startswith(f"{name}, training") and key[1] == "answer"]
        assert value[name, "answer"] == pytest.approx(statistics.mean(trainings), abs=1e-5), way
        mean = 100 * (value[name, "answer"] - value["pixel average", "answer"])
        margin = 100 * stdtrit(pairs - 1, 0.975) * value[name, "sd_of_answer_minus_average"] / pairs**0.5
        low, high = mean - margin, mean + margin
        made = mean, low, high, "reproduced" if low > 0 else "not reproduced" if high < 0 else "not resolved"
        assert matches(claims[f"sleeves-withheld-{way.replace(', ', '-').replace(' ', '-')}"], *made), way
