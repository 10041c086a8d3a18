"""The style of every figure and the plots that pages share.

Colours are Okabe and Ito's, told apart by colour-blind readers; the same colour means the same thing on every page:
`REAL` data, `OURS` generated or measured, `PUBLISHED` a report's numbers, `NOISE` pure noise.
"""

import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
REAL, OURS, PUBLISHED, NOISE = GREEN, BLUE, VERMILION, "#767676"

METRIC_TITLES = {
    "emd_128": "EMD, 128 points (total)",
    "course_nll": "course NLL (nats)",
    "kl": "path KL (nats)",
    "energy_distance": "energy distance (squared)",
}
LAW_TITLES = {"sin_5_5": "surface", "helix": "helix", "two_moons": "two moons"}
"""Names of the laws on pages; those of the tables stay in the tables."""
SCHEDULE_TITLES = {"scaled_linear": "scaled linear"}
"""Schedules whose name in configs is not the one to read."""
SOLVER_TITLES = {"ddpm": "ancestral", "ddim": "DDIM", "heun": "Heun", "dpmpp_2m": "DPM-Solver++(2M)"}


def schedule_title(name: str) -> str:
    """A schedule as a page says it; a dagger behind its name stays."""
    plain = name.rstrip("†")
    return SCHEDULE_TITLES.get(plain, plain) + name[len(plain) :]


def use_style() -> None:
    """Set matplotlib's defaults for the book and draw vector graphics in notebooks."""
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "figure.figsize": (8.0, 3.6),
            "font.size": 11,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.dpi": 200,
            "svg.hashsalt": "ddpmlab",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # a script, not a notebook
        return
    set_matplotlib_formats("svg")


def band(ax: Axes, mean: float, sd: float, label: str, color: str) -> None:
    """A horizontal reference line with a shaded plus-minus one standard deviation."""
    ax.axhspan(mean - sd, mean + sd, color=color, alpha=0.15, lw=0)
    ax.axhline(mean, color=color, lw=1.2, ls="--", label=label)


def calibrated_curve(
    ax: Axes, table: pd.DataFrame, x: dict[str, float], published: dict[str, float], limit: pd.DataFrame | None = None
) -> None:
    """One metric of one law against a number per variant, with floor, ceiling, limit and published values.

    Args:
        table: rows of a tidy table for one law and one metric.
        x: variant -> abscissa.
        published: variant -> published value, where there is one.
        limit: rows of the exact denoiser under the same sampler, if it is the same for all variants.
    """
    first = table.iloc[0]
    ax.axhline(first["ceiling"], color=NOISE, lw=1.2, ls=":", label="pure noise, N(0, I)")
    band(ax, first["floor_mean"], first["floor_sd"], "real against real (one draw, ± 1 sd)", REAL)
    if published:
        ax.plot([x[v] for v in published], list(published.values()), "D", color=PUBLISHED, ms=6, label="published")
    if limit is not None:
        ax.axhline(limit["value"].mean(), color=BLACK, lw=1.2, ls="-.", label="exact denoiser, same sampler")
    value = table.groupby("variant")["value"]
    mean, sd = value.mean().reindex(x), value.std().reindex(x)
    ax.errorbar(list(x.values()), mean, sd, fmt="o-", color=OURS, capsize=3, ms=5, label="ours (mean ± sd over seeds)")


def cloud(ax: Axes, points: np.ndarray, color: str = OURS, size: float = 1.2) -> None:
    """Points `(n, 2)` or `(n, 3)` as a rasterised scatter on equal axes without ticks."""
    points = np.asarray(points)
    if points.shape[1] == 3:
        ax.scatter(*points.T, s=size, c=color, lw=0, alpha=0.6, rasterized=True)
        ax.set_box_aspect((1, 1, 0.8), zoom=1.25)
        ax.view_init(elev=24, azim=-58)
        ax.set(xticklabels=[], yticklabels=[], zticklabels=[], xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), zlim=(-3, 3))
        ax.tick_params(length=0, pad=-4)
    else:
        ax.scatter(*points.T, s=size, c=color, lw=0, alpha=0.6, rasterized=True)
        ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
        ax.grid(False)


def pictures(ax: Axes, grid: np.ndarray, scale: int = 3) -> None:
    """Pictures `(rows, columns, H, W)` in [0, 1] as one image without gaps; x ticks are left to set, y has none.

    Pixels are repeated `scale` times, so that a browser that smooths what it enlarges keeps their edges.
    """
    grid = np.asarray(grid)
    rows, columns, height, width = grid.shape
    whole = grid.transpose(0, 2, 1, 3).reshape(rows * height, columns * width).clip(0, 1)
    whole = np.round(whole * 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    extent = (0, columns * width, rows * height, 0)
    ax.imshow(whole, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=extent)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


LOWEST, HIGHEST = ORANGE, PURPLE


def _mark(ax: Axes, points: np.ndarray, indices: np.ndarray, color: str):
    return ax.plot(*points[indices].T, "o", ms=4.5, color=color, mec="black", mew=0.5, zorder=9)[0]


def clouds(
    rows: dict[str, dict[str, np.ndarray]],
    colors: dict[str, str] | None = None,
    width: float = 8.0,
    tracked: dict[str, tuple[np.ndarray, np.ndarray]] | None = None,
):
    """A grid of point clouds: row title -> column title -> points. Columns called `real` are green.

    Args:
        rows: the clouds.
        colors: column title -> colour.
        width: of the figure, in inches.
        tracked: row title -> indices of points to mark in each of its clouds, the lowest and the highest.
    """
    n_rows, n_columns = len(rows), max(len(r) for r in rows.values())
    dim = next(iter(next(iter(rows.values())).values())).shape[1]
    figure, axes = plt.subplots(
        n_rows, n_columns, squeeze=False, figsize=(width, width / n_columns * n_rows * 1.05),
        subplot_kw={"projection": "3d"} if dim == 3 else {},
    )  # fmt: skip
    for (row_title, row), row_axes in zip(rows.items(), axes, strict=True):
        for (title, points), ax in zip(row.items(), row_axes, strict=False):
            cloud(ax, points, (colors or {}).get(title, REAL if title == "real" else OURS))
            for indices, color in zip((tracked or {}).get(row_title, ()), (LOWEST, HIGHEST), strict=False):
                _mark(ax, points, indices, color)
            ax.set_title(f"{row_title}\n{title}" if row_title else title, fontsize=10, pad=2)
    return figure


def animation(states: dict[str, np.ndarray], title: str, start: bool, n_tracked: int = 3) -> str:
    """HTML of a player that shows trajectories side by side, in the page itself, with its frames as PNG.

    Args:
        states: panel title -> states `(n_frames, n, 3)`.
        title: shown above the panels, with the frame's number.
        start: mark the points that are lowest and highest in z at the first frame rather than at the last.
        n_tracked: how many of either.
    """
    figure, axes = plt.subplots(
        1, len(states), figsize=(3.4 * len(states), 3.3), dpi=72, squeeze=False, subplot_kw={"projection": "3d"}
    )
    drawn = []
    for ax, (name, points) in zip(axes[0], states.items(), strict=True):
        cloud(ax, points[0])
        ax.set_title(name, fontsize=10)
        order = points[0 if start else -1][:, 2].argsort()
        chosen = (order[:n_tracked], order[-n_tracked:])
        marks = [_mark(ax, points[0], i, c) for i, c in zip(chosen, (LOWEST, HIGHEST), strict=True)]
        drawn.append((ax.collections[0], marks, chosen, points))
    n_frames = len(next(iter(states.values())))

    def draw(k):
        for scatter, marks, chosen, points in drawn:
            scatter._offsets3d = tuple(points[k].T)
            for mark, indices in zip(marks, chosen, strict=True):
                mark.set_data_3d(*points[k][indices].T)
        figure.suptitle(f"{title}, {k / (n_frames - 1):.0%}", fontsize=11)

    with mpl.rc_context({"savefig.dpi": 72, "animation.embed_limit": 2.0}):
        player = FuncAnimation(figure, draw, frames=n_frames).to_jshtml(fps=8, default_mode="once")
    plt.close(figure)
    # the book has its own icon font: fetch nothing from elsewhere
    player = re.sub(r'<link rel="stylesheet"\s+href="https://[^>]*>', "", player)
    described = f"Animation, {title}: {', '.join(states)}, with the lowest and highest points marked."
    return player.replace("<img id=", f'<img alt="{described}" id=')


def log_ticks(ax: Axes, values: Sequence[float], axis: str = "x") -> None:
    """A logarithmic axis labelled at the given values only, as far as it reaches over what was drawn."""
    one = ax.xaxis if axis == "x" else ax.yaxis
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    limits = ax.get_xlim() if axis == "x" else ax.get_ylim()
    shown = [v for v in values if limits[0] <= v <= limits[1]]
    one.set_ticks(shown, [f"{v:,.0f}" if v >= 10 else f"{v:g}" for v in shown])
    one.set_tick_params(which="minor", length=0)
    one.set_minor_formatter(NullFormatter())
