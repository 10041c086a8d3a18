r"""A U-Net for pictures (Ronneberger et al. 2015; Ho et al. 2020; Dhariwal & Nichol 2021), on unshuffled pixels.

Each 2 x 2 square of pixels becomes four channels (pixel-unshuffle, Shi et al. 2016), so that a 28 x 28 picture is
worked on at 14 x 14 and 7 x 7. A residual block is told the noise level and the class by a scale and a shift behind its
second normalisation,

.. math:: h \leftarrow P h + C_2\,\phi\big((1 + s(e))\,\mathrm{GN}(C_1\,\phi(\mathrm{GN}(h))) + b(e)\big),

with 3 x 3 convolutions :math:`C_1` and :math:`C_2`, :math:`\phi` = SiLU, P a 1 x 1 convolution where the width changes,
and e the sum of an embedding of c and one of the class. :math:`C_2`, the projection behind attention and the last layer
start at zero: at first each block is the identity and the network says 0.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpmlab.networks.base import NETWORKS, checked_label, checked_shape, time_embedding

ATTENTIONS = ("coarsest", "middle", "none")
HEAD = 32
"""Channels of a head of attention, at least; one head where there are fewer."""


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its weights at zero."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    r""":math:`\mathrm{softmax}(q k^\top/\sqrt d)\,v`, all `(n, heads, positions, d)`.

    On the CPU by two products: torch's fused kernel takes six times as long there for few positions in bf16.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v


class ResidualBlock(nn.Module):
    """The equation above, `(n, n_in, H, W)` and `(n, n_embedding)` -> `(n, n_out, H, W)`."""

    def __init__(self, n_in: int, n_out: int, n_embedding: int, n_groups: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(n_groups, n_in), nn.GroupNorm(n_groups, n_out)])
        self.layers = nn.ModuleList([nn.Conv2d(n_in, n_out, 3, padding=1), zero(nn.Conv2d(n_out, n_out, 3, padding=1))])
        self.condition = nn.Linear(n_embedding, 2 * n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        inner = self.layers[0](F.silu(self.norms[0](h)))
        scale, shift = self.condition(e)[:, :, None, None].chunk(2, 1)
        inner = torch.addcmul(shift, self.norms[1](inner), 1 + scale)
        return self.skip(h) + self.layers[1](F.silu(inner))


class Attention(nn.Module):
    """Self-attention between the positions of a map, with heads of 32 channels or a few more, added to it."""

    def __init__(self, width: int, n_groups: int):
        super().__init__()
        self.n_heads = max(1, width // HEAD)
        self.norm = nn.GroupNorm(n_groups, width)
        self.inlet, self.outlet = nn.Conv2d(width, 3 * width, 1), zero(nn.Conv2d(width, width, 1))

    def forward(self, h: Tensor) -> Tensor:
        n, width, rows, columns = h.shape
        qkv = self.inlet(self.norm(h)).permute(0, 2, 3, 1).reshape(n, rows * columns, 3, self.n_heads, -1)
        mixed = attend(*qkv.permute(2, 0, 3, 1, 4).unbind())  # q, k, v: (n, heads, positions, channels)
        mixed = mixed.transpose(1, 2).reshape(n, rows, columns, width).permute(0, 3, 1, 2)
        return h + self.outlet(mixed)


class Stage(nn.Module):
    """A residual block, then attention if there is any."""

    def __init__(self, n_in: int, n_out: int, n_embedding: int, n_groups: int, attention: bool):
        super().__init__()
        self.block = ResidualBlock(n_in, n_out, n_embedding, n_groups)
        self.attention = Attention(n_out, n_groups) if attention else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return self.attention(self.block(h, e))


class Refinement(nn.Module):
    """The thin stage at full resolution: two 3 x 3 convolutions over the picture and what the U-Net says of it."""

    def __init__(self, n_channels: int, n_in: int, width: int, unshuffle: int):
        super().__init__()
        self.unshuffle = unshuffle
        self.picture = nn.Conv2d(n_channels, width, 3, padding=1)
        self.rise = nn.Conv2d(n_in, width * unshuffle**2, 1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.outlet = zero(nn.Conv2d(width, n_channels, 3, padding=1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = self.picture(x) + F.pixel_shuffle(self.rise(h), self.unshuffle)
        return self.outlet(F.silu(self.middle(F.silu(h))))


@NETWORKS.register("unet")
class UNet(nn.Module):
    """The U-Net above; the way up hears of each block on the way down.

    Args:
        shape: shape of a picture, `(C, H, W)`; H and W divisible by `unshuffle` times 2 for every level but the first.
        widths: channels of each level, finest first.
        n_blocks: residual blocks a level, on the way down and again on the way up.
        attention: where attention stands: `none`, nowhere; `middle`, between the two blocks of the bottleneck;
            `coarsest`, there and behind each block of the coarsest level.
        unshuffle: side of the squares of pixels that become channels; 1 for none.
        refine: width of the thin stage at full resolution; 0 for none.
        n_groups: groups of each group normalisation.
        time: embedding of c, see `MLP`.
        n_embedding: size of the embedding of noise level and class.
        n_classes: classes of a conditional network; 0 for none.

    Raises:
        ValueError: a shape or width that does not fit.
    """

    channels_last = True  # how maps lie in memory: the same numbers, and faster on every device tried

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (48, 96),
        n_blocks: int = 2,
        attention: str = "coarsest",
        unshuffle: int = 2,
        refine: int = 0,
        n_groups: int = 1,
        time: str = "fourier",
        n_embedding: int = 128,
        n_classes: int = 0,
    ):
        super().__init__()
        self.shape, self.n_classes, self.unshuffle = checked_shape(shape), n_classes, unshuffle
        factor = unshuffle * 2 ** (len(widths) - 1)
        if len(self.shape) != 3 or self.shape[1] % factor or self.shape[2] % factor:
            raise ValueError(f"shape = {self.shape}; need (C, H, W) with H and W divisible by {factor}")
        if not widths or n_blocks < 1 or min(widths) < 1:
            raise ValueError(
                f"widths = {tuple(widths)}, n_blocks = {n_blocks}; need positive widths and at least 1 block"
            )
        if n_groups < 1 or any(width % n_groups for width in widths):
            raise ValueError(f"n_groups = {n_groups} must divide each of widths = {tuple(widths)}")
        if attention not in ATTENTIONS:
            raise ValueError(f"unknown attention {attention!r}; choose one of: {', '.join(ATTENTIONS)}")
        if attention != "none" and widths[-1] % max(1, widths[-1] // HEAD):
            raise ValueError(f"widths[-1] = {widths[-1]}; attention splits it into heads: take a multiple of {HEAD}")
        embedding, n_time = time_embedding(time, n_embedding)
        self.time = nn.Sequential(
            embedding, nn.Linear(n_time, n_embedding), nn.SiLU(), nn.Linear(n_embedding, n_embedding)
        )
        # the last row stands for "no class", for classifier-free guidance
        self.classes = nn.Embedding(n_classes + 1, n_embedding) if n_classes else None
        n_channels, last = self.shape[0] * unshuffle**2, len(widths) - 1

        def stage(n_in: int, level: int) -> Stage:
            return Stage(n_in, widths[level], n_embedding, n_groups, attention == "coarsest" and level == last)

        self.inlet = nn.Conv2d(n_channels, widths[0], 3, padding=1)
        self.down, self.up, width = nn.ModuleList(), nn.ModuleList(), widths[0]
        for level in range(len(widths)):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            for _ in range(n_blocks):
                self.down.append(stage(width, level))
                width = widths[level]
        self.middle = nn.ModuleList(
            Stage(width, width, n_embedding, n_groups, attends) for attends in (attention != "none", False)
        )
        self.bottleneck_shape = (width, self.shape[1] // factor, self.shape[2] // factor)
        for level in reversed(range(len(widths))):
            for _ in range(n_blocks):
                self.up.append(stage(width + widths[level], level))
                width = widths[level]
            if level:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(n_groups, width)
        if refine:
            self.outlet = Refinement(self.shape[0], width, refine, unshuffle)
        else:
            self.outlet = zero(nn.Conv2d(width, n_channels, 3, padding=1))

    def _embed(self, c: Tensor, label: Tensor | None) -> Tensor:
        e = self.time(c[:, None])
        label = checked_label(label, len(c), self.n_classes, c.device)
        return F.silu(e if label is None else e + self.classes(label))

    def _descend(self, x: Tensor, e: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last map on the way down, and what each block on it said."""
        h = F.pixel_unshuffle(x, self.unshuffle)
        h = self.inlet(h.contiguous(memory_format=torch.channels_last) if self.channels_last else h)
        said = []
        for layer in self.down:
            if isinstance(layer, Stage):
                h = layer(h, e)
                said.append(h)
            else:
                h = layer(h)
        return h, said

    def _cross(self, h: Tensor, e: Tensor) -> Tensor:
        for stage in self.middle:
            h = stage(h, e)
        return h

    def bottleneck(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """The coarsest map, where up meets down, `(n, *bottleneck_shape)`."""
        e = self._embed(c, label)
        return self._cross(self._descend(x, e)[0], e)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Map pictures `(n, C, H, W)` and conditioning numbers `(n,)` to `(n, C, H, W)`.

        Args:
            x: pictures, scaled to unit variance.
            c: conditioning numbers.
            label: classes `(n,)`; `n_classes`, or no label at all, is "no class".
            shift: what to add in the bottleneck, of `bottleneck_shape`, for each picture or all.
        """
        e = self._embed(c, label)
        h, said = self._descend(x, e)
        h = self._cross(h, e)
        if shift is not None:
            h = h + shift.to(h)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = layer(torch.cat([h, said.pop()], 1), e)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = F.silu(self.norm(h))
        if isinstance(self.outlet, Refinement):
            return self.outlet(x, h).contiguous()
        return F.pixel_shuffle(self.outlet(h), self.unshuffle).contiguous()
