r"""A ruler for sleeves: how long the sleeves of a 28 x 28 top are, from 0 (none) to 1 (down to the hem).

*Geometry.* Let b be the garment's own brightness (a quantile of its lit torso) and :math:`r_0, r_1` its first and last
row. On either side the sleeve lies in the columns outside an edge e: the outer six columns, or, where the silhouette
narrows below (the torso of a t-shirt), as far as the torso. With the sleeve's profile
:math:`s(r) = \max_{c<e} x(r, c)/b`,

.. math:: L = \frac{1 + \max\{r : s(r) > \tfrac12\} - r_0}{1 + r_1 - r_0},

and the length of a picture is the mean of its two sides. Everything is relative to b, so a darker picture of the same
garment has the same length.

*Regression.* A maximum has no useful gradient. `SleeveRuler` is a small network that reads one side, trained on
*ladders*: real pictures whose sleeves were cut (`cut`) or grown from another picture's (`regrow`) to known lengths.

A class probability is no ruler. It says how sure a classifier is that something is a pullover, which a picture may be
with any sleeve: see `ladder_readings`, which reads any function of a picture back from a ladder.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor, nn

SIZE = 28
TOPS = (0, 2, 4, 6)
"""FashionMNIST's classes that are tops (t-shirt, pullover, coat, shirt)."""
OUTER = 6
"""Columns on either side in which a sleeve is looked for."""
THRESHOLD = 0.5
"""A pixel is lit where it is brighter than this share of the garment's own brightness."""
LADDER = (0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
"""Lengths of the rungs of a ladder."""
WITHHELD = (0.5, 0.9)
"""Lengths between a half and a full sleeve, which the withheld experiment keeps from a network."""
_FAINT = 0.25
TORSO = slice(OUTER + 1, SIZE - OUTER - 1)
"""Columns that belong to no sleeve."""
_MIDDLE = slice(8, 20)


def as_pictures(x: Tensor) -> Tensor:
    """Pictures as float32 `(n, 28, 28)` in [0, 1], from `(n, 28, 28)` or `(n, 1, 28, 28)`, float or uint8.

    Raises:
        ValueError: another shape, a value that is not finite, or values that are no brightness in [0, 1].
    """
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 3 or x.shape[1:] != (SIZE, SIZE) or len(x) == 0:
        raise ValueError(f"pictures have shape {tuple(x.shape)}; need (n, 28, 28) or (n, 1, 28, 28), n at least 1")
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if not torch.isfinite(x).all():
        raise ValueError("pictures hold NaN or infinity; there is no brightness to measure")
    low, high = float(x.detach().min()), float(x.detach().max())
    if low < -0.5 or high > 1.5:
        raise ValueError(f"pictures span [{low:.3g}, {high:.3g}]; need [0, 1]: map back with `.to_own_units(x)`")
    return x.clamp(0, 1)


@dataclass(frozen=True)
class Garment:
    """Where a garment lies in its picture; each `(n,)` but `edges`.

    Attributes:
        brightness: the 60% quantile of the lit pixels of the torso; 1 where nothing is lit.
        top: first row, from 0.
        bottom: last row.
        edges: per side `(n, 2)`, how many columns from that side belong to the sleeve.
    """

    brightness: Tensor
    top: Tensor
    bottom: Tensor
    edges: Tensor

    @property
    def height(self) -> Tensor:
        """Rows from first to last, `(n,)`."""
        return self.bottom - self.top + 1

    def rows(self, low: float, high: float) -> Tensor:
        """Which rows lie between two shares of the height, `(n, 28)`."""
        row, height = torch.arange(SIZE, device=self.top.device), self.height[:, None]
        return (row >= self.top[:, None] + low * height) & (row <= self.top[:, None] + high * height)


def _extreme(lit: Tensor, dim: int, first: bool, default: int) -> Tensor:
    """First or last index along a dimension where `lit`; a default where none is."""
    shape = [1] * lit.ndim
    shape[dim] = -1
    index = torch.arange(lit.shape[dim], device=lit.device).reshape(shape).expand_as(lit)
    found = torch.where(lit, index, SIZE if first else -1)
    found = found.amin(dim) if first else found.amax(dim)
    return torch.where(lit.any(dim), found, default)


def measure(pictures: Tensor) -> Garment:
    """Where the garments lie: `Garment` of pictures `(n, 28, 28)` in [0, 1]."""
    x = as_pictures(pictures)
    torso = x[:, :, _MIDDLE]
    middle = torso[:, :, 1:-1].flatten(1)
    brightness = torch.where(middle > 0.08, middle, torch.nan).nanquantile(0.6, dim=1).nan_to_num(1.0)
    lit = torso.mean(2) > THRESHOLD / 2 * brightness[:, None]
    top, bottom = _extreme(lit, 1, True, 0), _extreme(lit, 1, False, SIZE - 1)
    garment = Garment(brightness, top, bottom, torch.zeros(len(x), 2, dtype=torch.long, device=x.device))
    upper, lower = garment.rows(0.1, 0.45), garment.rows(0.6, 0.95)
    edges = []
    for side in (x, x.flip(2)):
        first = _extreme(side > THRESHOLD * brightness[:, None, None], 2, True, SIZE // 2)  # (n, 28)
        shoulder = torch.where(upper, first, SIZE // 2).amin(1)
        hem = torch.where(lower, first, SIZE // 2).amin(1)
        # a silhouette that narrows below ends its sleeve where the torso begins
        edges.append(torch.where(hem > shoulder, hem.clamp(max=OUTER + 3), OUTER))
    return Garment(brightness, top, bottom, torch.stack(edges, 1))


def _profiles(x: Tensor, garment: Garment) -> Tensor:
    """Brightest sleeve pixel of each row over the garment's brightness, `(n, 2, 28)`."""
    column = torch.arange(SIZE, device=x.device)
    sides = []
    for side, edge in ((x, garment.edges[:, 0]), (x.flip(2), garment.edges[:, 1])):
        sleeve = torch.where((column < edge[:, None])[:, None], side, 0.0)
        sides.append(sleeve.amax(2) / garment.brightness[:, None])
    return torch.stack(sides, 1)


def sleeve_lengths(pictures: Tensor) -> Tensor:
    """Length of the left and the right sleeve in [0, 1], `(n, 2)`; 0 without one.

    Args:
        pictures: `(n, 28, 28)` or `(n, 1, 28, 28)`, brightness in [0, 1] or uint8.
    """
    x = as_pictures(pictures)
    garment = measure(x)
    lowest = _extreme(_profiles(x, garment) > THRESHOLD, 2, False, -1)
    length = (lowest + 1 - garment.top[:, None]) / garment.height[:, None]
    return torch.where(lowest >= 0, length, 0.0).clamp(0, 1)


def sleeve_length(pictures: Tensor) -> Tensor:
    """Mean length of the two sleeves in [0, 1], `(n,)`: the ruler."""
    return sleeve_lengths(pictures).mean(1)


def ghost_index(pictures: Tensor) -> Tensor:
    r"""Brightness of the lower half of the sleeves relative to the torso, `(n,)`; NaN without sleeves.

    The mean over the two sides of the sleeve's profile s(r), over the lower half of the rows in which anything at all
    is lit (:math:`s > \tfrac14`). An opaque sleeve reads about 1 whatever its length; the average of a short-sleeved
    and a long-sleeved picture, half-transparent below the elbow, about 1/2.
    """
    x = as_pictures(pictures)
    garment = measure(x)
    profile = _profiles(x, garment)
    row = torch.arange(SIZE, device=x.device)
    first, last = (_extreme(profile > _FAINT, 2, first, -1)[..., None] for first in (True, False))
    lower = (2 * row >= first + last) & (row <= last) & (last >= 0)
    return torch.where(lower, profile, torch.nan).nanmean(2).nanmean(1)


def torso_distance(pictures: Tensor, others: Tensor) -> Tensor:
    """Root mean square difference outside the sleeves (the middle 14 columns), `(n,)`: is it still the same top?"""
    x, y = as_pictures(pictures)[:, :, TORSO], as_pictures(others)[:, :, TORSO]
    return (x - y).square().mean((1, 2)).sqrt()


def withheld_mask(
    pictures: Tensor, labels: Tensor, low: float = WITHHELD[0], high: float = WITHHELD[1], classes: Sequence[int] = TOPS
) -> Tensor:
    """Which pictures are tops with a measured sleeve length in [low, high]: bool `(n,)`, True = to be withheld.

    Args:
        pictures: `(n, 28, 28)` or `(n, 1, 28, 28)` in [0, 1] or uint8.
        labels: classes `(n,)`.
        low, high: ends of the lengths that are withheld.
        classes: what counts as a top.

    Raises:
        ValueError: not as many labels as pictures, or an empty range.
    """
    labels = torch.as_tensor(labels)
    if len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures and {len(labels)} labels; need one label per picture")
    if not 0 <= low < high <= 1:
        raise ValueError(f"lengths from {low} to {high}; need 0 <= low < high <= 1")
    length = torch.cat([sleeve_length(batch) for batch in pictures.split(10_000)])
    is_top = torch.isin(labels, torch.tensor(tuple(classes), device=labels.device))
    return is_top & ((length >= low) & (length <= high)).to(labels.device)


def gaps(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Where the dark line between sleeve and torso runs.

    Returns:
        Per side the number of columns outside it, `(n, 2)`, and how much darker it is than what lies on either side,
        as a share of the garment's brightness, `(n, 2)`: 0 where there is none.
    """
    x = as_pictures(pictures)
    garment = measure(x)
    lower = garment.rows(0.6, 0.9).float()[:, :, None]
    column, low, high = torch.arange(SIZE, device=x.device), 4, 10
    places, depths = [], []
    for side in (x, x.flip(2)):
        profile = (side * lower).sum(1) / lower.sum(1) / garment.brightness[:, None]
        least, place = profile[:, low:high].min(1)
        place = place + low
        outside = torch.where(column < place[:, None], profile, 0).amax(1)
        inside = torch.where((column > place[:, None]) & (column < SIZE // 2 - 1), profile, 0).amax(1)
        places.append(place)
        depths.append((torch.minimum(outside, inside) - least).clamp(min=0))
    return torch.stack(places, 1), torch.stack(depths, 1)


def _below(garment: Garment, lengths: Tensor) -> Tensor:
    """How much of each row lies below a sleeve of these lengths `(n, 2)`: `(n, 2, 28)` in [0, 1]."""
    end = garment.top[:, None] + lengths * garment.height[:, None]
    row = torch.arange(SIZE, device=lengths.device)
    return (row + 1 - end[..., None]).clamp(0, 1)


def _both(lengths: Tensor | float, like: Tensor) -> Tensor:
    lengths = torch.as_tensor(lengths, dtype=torch.float32, device=like.device)
    lengths = (lengths[:, None] if lengths.ndim == 1 else lengths).expand(len(like), 2)
    if not ((lengths >= 0) & (lengths <= 1)).all():
        raise ValueError(f"lengths span [{lengths.min():g}, {lengths.max():g}]; need 0 to 1")
    return lengths


def cut(pictures: Tensor, lengths: Tensor | float) -> Tensor:
    """Pictures whose sleeves end where they are told to: everything outside the gap and below it is black.

    Args:
        pictures: long-sleeved tops `(n, 28, 28)`.
        lengths: one number, `(n,)`, or `(n, 2)` for the two sides, in [0, 1] of the garment's height.

    Returns:
        `(n, 28, 28)`; a row that is cut through keeps its share of brightness.
    """
    x = as_pictures(pictures)
    lengths = _both(lengths, x)
    place, _ = gaps(x)
    below, column = _below(measure(x), lengths), torch.arange(SIZE, device=x.device)
    left = below[:, 0, :, None] * (column < place[:, :1])[:, None]
    right = below[:, 1, :, None] * (column < place[:, 1:])[:, None].flip(2)
    return x * (1 - left) * (1 - right)


def regrow(pictures: Tensor, donors: Tensor, lengths: Tensor | float) -> Tensor:
    """Short-sleeved pictures with the sleeves of long-sleeved ones, in their own brightness and cut to a length.

    Args:
        pictures: short-sleeved tops `(n, 28, 28)`.
        donors: long-sleeved tops `(n, 28, 28)`, one each.
        lengths: as in `cut`.
    """
    x, donors = as_pictures(pictures), as_pictures(donors)
    lengths = _both(lengths, x)
    garment, donor = measure(x), measure(donors)
    place = torch.minimum(gaps(donors)[0], garment.edges.clamp(min=OUTER))
    kept, column = 1 - _below(garment, lengths), torch.arange(SIZE, device=x.device)
    # the donor's shoulders are moved to the same row
    row = torch.arange(SIZE, device=x.device) - garment.top[:, None] + donor.top[:, None]
    moved = donors.gather(1, row.clamp(0, SIZE - 1)[:, :, None].expand_as(donors))
    moved = moved * ((row >= 0) & (row < SIZE))[:, :, None] * (garment.brightness / donor.brightness)[:, None, None]
    for side in (0, 1):
        outside = (column < place[:, side, None])[:, None].expand_as(x)
        outside = outside.flip(2) if side else outside
        x = torch.where(outside, moved.clamp(0, 1) * kept[:, side, :, None], x)
    return x


def ladder_bases(pictures: Tensor, depth: float = 0.4) -> Tensor:
    """Which pictures a ladder can be cut from, bool `(n,)`: sleeves down to the hem, clear gaps of both sides alike."""
    place, deep = gaps(pictures)
    alike = (place.amin(1) >= OUTER) & (place.amax(1) - place.amin(1) <= 1)
    return (sleeve_lengths(pictures).amin(1) > 0.93) & (deep.amin(1) > depth) & alike


def ladder_readings(ruler: Callable[[Tensor], Tensor], bases: Tensor, lengths: Sequence[float] = LADDER) -> Tensor:
    """A ladder read back: `(n, len(lengths))` readings of the same pictures with their sleeves cut.

    Args:
        ruler: any function of pictures `(n, 28, 28)` that returns `(n,)`: a ruler, or a class probability.
        bases: long-sleeved tops, see `ladder_bases`.
        lengths: the rungs.
    """
    with torch.no_grad():
        return torch.stack([ruler(cut(bases, length)) for length in lengths], 1)


class SleeveRuler(nn.Module):
    """The ruler that has a gradient: one small convolutional network that reads one side, and the mirrored other.

    Args:
        width: channels of its first layer.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        self.width = width
        self.side = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 64),
            nn.SiLU(),
            nn.Linear(64, 1),
        )

    def lengths(self, pictures: Tensor) -> Tensor:
        """Length of either sleeve, `(n, 2)`; differentiable in the pictures."""
        x = pictures[:, None] if pictures.ndim == 3 else pictures
        with torch.no_grad():
            brightness = measure(x.clamp(0, 1)).brightness
        x = x / brightness[:, None, None, None]
        return torch.cat([self.side(x), self.side(x.flip(3))], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Mean length of both sleeves, `(n,)`, of pictures `(n, 28, 28)` or `(n, 1, 28, 28)` in [0, 1]."""
        return self.lengths(pictures).mean(1)


def _blurred(x: Tensor, sd: float) -> Tensor:
    reach = torch.arange(-4, 5, dtype=x.dtype, device=x.device)
    kernel = torch.softmax(-0.5 * (reach / sd) ** 2, 0)
    x = nn.functional.conv2d(x[:, None], kernel.reshape(1, 1, -1, 1), padding=(4, 0))
    return nn.functional.conv2d(x, kernel.reshape(1, 1, 1, -1), padding=(0, 4))[:, 0]


def fit_ruler(
    long: Tensor,
    short: Tensor,
    n_steps: int = 2500,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    width: int = 16,
    seed: int = 0,
) -> SleeveRuler:
    """Train a `SleeveRuler` on ladders: half of a batch cut from long sleeves, half regrown on short ones.

    Both sides of a picture get lengths of their own, uniform in [0, 1.15] and at most what there is; a third of the
    batches is blurred, as the posterior means are that guidance looks at. Adam with a cosine decay, squared error.

    Args:
        long: tops with full sleeves `(n, 28, 28)`, see `ladder_bases`.
        short: tops with half sleeves `(m, 28, 28)`.
        n_steps, batch_size, learning_rate, width, seed: of the training.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ruler = SleeveRuler(width)
    long, short = as_pictures(long), as_pictures(short)
    optimiser = torch.optim.Adam(ruler.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
    half, ends = batch_size // 2, sleeve_lengths(long)
    for step in range(n_steps):
        lengths = (1.15 * torch.rand(2 * half, 2, generator=generator)).clamp(max=1)
        chosen = [torch.randint(len(of), (half,), generator=generator) for of in (long, short, long)]
        grown = regrow(short[chosen[1]], long[chosen[2]], lengths[half:])
        x = torch.cat([cut(long[chosen[0]], lengths[:half]), grown])
        if step % 3 == 0:
            x = _blurred(x, 0.4 + 1.1 * float(torch.rand(1, generator=generator)))
        lengths = torch.minimum(lengths, torch.cat([ends[chosen[0]], ends[chosen[2]]]))
        loss = (ruler.lengths(x) - lengths).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return ruler.eval()


def save_ruler(ruler: SleeveRuler, path, **metadata: str) -> None:
    """Write a ruler's weights as safetensors; its width and any other words go into the metadata."""
    from safetensors.torch import save_file

    from ddpmlab.files import atomic

    words = {"what": "sleeve length of one side of a 28 x 28 top", "config": json.dumps({"width": ruler.width})}
    with atomic(path) as temporary:
        save_file(ruler.state_dict(), temporary, metadata=words | metadata)


def load_ruler(path=None) -> SleeveRuler:
    """The committed `SleeveRuler`, or one from a file that `save_ruler` wrote; its weights take no gradient."""
    from safetensors import safe_open

    path = path or files("ddpmlab") / "weights" / "sleeve_ruler.safetensors"
    with safe_open(str(path), "pt") as file:
        ruler = SleeveRuler(**json.loads(file.metadata()["config"]))
        ruler.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return ruler.requires_grad_(False).eval()
