r"""A small transformer on patches of pixels (Dosovitskiy et al. 2021; Peebles & Xie 2023).

A picture is cut into P x P patches, each a token with a learned place. A layer is told the noise level and the class by
scales and shifts of its normalised input and by gates on its output ("adaLN-Zero", Peebles & Xie, section 3.2),

.. math:: h \leftarrow h + g_1\,\mathrm{MHA}\big((1 + s_1)\,\mathrm{LN}(h) + b_1\big), \qquad
          h \leftarrow h + g_2\,\mathrm{MLP}\big((1 + s_2)\,\mathrm{LN}(h) + b_2\big),

all six affine in the embedding e and zero at first, as is the last layer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpmlab.networks.base import NETWORKS, checked_label, checked_shape, time_embedding
from ddpmlab.networks.unet import attend, zero


class Layer(nn.Module):
    """The equations above, `(n, tokens, width)` -> the same."""

    def __init__(self, width: int, n_heads: int, n_embedding: int):
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.condition = zero(nn.Linear(n_embedding, 6 * width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        s_1, b_1, g_1, s_2, b_2, g_2 = self.condition(e)[:, None].chunk(6, -1)
        n, tokens, width = h.shape
        qkv = self.qkv(torch.addcmul(b_1, self.norms[0](h), 1 + s_1))
        q, k, v = qkv.view(n, tokens, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v).transpose(1, 2).reshape(h.shape)
        h = h + g_1 * self.join(mixed)
        return h + g_2 * self.mlp(torch.addcmul(b_2, self.norms[1](h), 1 + s_2))


@NETWORKS.register("patch_transformer")
class PatchTransformer(nn.Module):
    """The transformer above.

    Args:
        shape: shape of a picture, `(C, H, W)`, H and W divisible by `patch`.
        patch: side of a patch.
        width: size of a token, divisible by `n_heads`.
        n_layers: number of layers.
        n_heads: heads of attention.
        time: embedding of c, see `MLP`.
        n_embedding: size of the embedding of noise level and class.
        n_classes: classes of a conditional network; 0 for none.

    Raises:
        ValueError: a shape or width that does not fit.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int = 4,
        width: int = 128,
        n_layers: int = 6,
        n_heads: int = 4,
        time: str = "fourier",
        n_embedding: int = 128,
        n_classes: int = 0,
    ):
        super().__init__()
        self.shape, self.n_classes, self.patch = checked_shape(shape), n_classes, patch
        if len(self.shape) != 3 or self.shape[1] % patch or self.shape[2] % patch:
            raise ValueError(f"shape = {self.shape}; need (C, H, W) with H and W divisible by patch = {patch}")
        if n_layers < 1 or n_heads < 1 or width < n_heads or width % n_heads:
            raise ValueError(
                f"width = {width}, n_heads = {n_heads}, n_layers = {n_layers}; need heads that divide the width"
            )
        embedding, n_time = time_embedding(time, n_embedding)
        self.time = nn.Sequential(
            embedding, nn.Linear(n_time, n_embedding), nn.SiLU(), nn.Linear(n_embedding, n_embedding)
        )
        # the last row stands for "no class", for classifier-free guidance
        self.classes = nn.Embedding(n_classes + 1, n_embedding) if n_classes else None
        n_pixels, n_tokens = self.shape[0] * patch**2, self.shape[1] * self.shape[2] // patch**2
        self.inlet = nn.Linear(n_pixels, width)
        self.places = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.layers = nn.ModuleList(Layer(width, n_heads, n_embedding) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.outlet = zero(nn.Linear(width, n_pixels))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Map pictures `(n, C, H, W)` and conditioning numbers `(n,)` to `(n, C, H, W)`."""
        e = self.time(c[:, None])
        label = checked_label(label, len(x), self.n_classes, x.device)
        e = F.silu(e if label is None else e + self.classes(label))
        patches = F.pixel_unshuffle(x, self.patch)  # (n, C P P, H / P, W / P)
        h = self.inlet(patches.flatten(2).transpose(1, 2)) + self.places
        for layer in self.layers:
            h = layer(h, e)
        out = self.outlet(self.norm(h)).transpose(1, 2).reshape(patches.shape)
        return F.pixel_shuffle(out, self.patch)
