"""Pictures of what is learned, for the front page: `python -m ddpmlab.book.pictures book/_static/learned.png`."""

import gzip
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ddpmlab import data

GREEN = "#009e73"
_LAWS = {"sin_5_5": "surface", "helix": "helix", "two_moons": "two moons"}


def _garments(folder: Path) -> np.ndarray | None:
    """The first test picture of each class of FashionMNIST, `(10, 28, 28)`, from its own files; nothing if absent."""
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    paths = [next(iter(folder.rglob(name)), None) for name in names]
    if None in paths:
        return None
    with gzip.open(paths[0]) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(paths[1]) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return np.stack([images[np.argmax(labels == label)] for label in range(10)])


def what_is_learned(path: Path, n: int = 4_000) -> None:
    """Draw `n` points of each law, and ten garments where FashionMNIST is at hand (`DDPMLAB_DATA`), into a PNG."""
    garments = _garments(Path(os.environ.get("DDPMLAB_DATA", "data")))
    figure = plt.figure(figsize=(8, 3.4 if garments is not None else 2.7))
    top = figure.add_gridspec(1, 3, top=0.98, bottom=0.32 if garments is not None else 0.1, left=0.01, right=0.99)
    for cell, (name, title) in zip(top, _LAWS.items(), strict=True):
        x = data.make(name).sample(n, 0).numpy()
        flat = x.shape[1] == 2
        axes = figure.add_subplot(cell, projection=None if flat else "3d")
        axes.scatter(*x.T, s=1.2, color=GREEN, alpha=0.5, lw=0)
        axes.set_axis_off()
        bounds = cell.get_position(figure)
        figure.text((bounds.x0 + bounds.x1) / 2, bounds.y0 - 0.01, title, ha="center", va="center", fontsize=10)
        if flat:
            axes.set_aspect("equal")
        else:
            axes.set_box_aspect(None, zoom=1.5)
    if garments is not None:
        row = figure.add_gridspec(1, 10, top=0.21, bottom=0.01, left=0.01, right=0.99, wspace=0.08)
        for cell, picture in zip(row, garments, strict=True):
            axes = figure.add_subplot(cell)
            axes.imshow(255 - picture, cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
    figure.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    what_is_learned(Path(sys.argv[1]))
