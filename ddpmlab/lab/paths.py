"""Paths between pictures that lie in the store: each way's frames are computed once, and a run that stops goes on."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpmlab import interpolation
from ddpmlab.lab import stages
from ddpmlab.lab import store as stores
from ddpmlab.lab import weights as committed
from ddpmlab.lab.config import Experiment
from ddpmlab.lab.source import code_hash, versions
from ddpmlab.lab.store import Store

Computed = tuple[Tensor, float]


def _described(name: str, network: str, settings: dict[str, Any]) -> list:
    """All that frames depend on: the way, the network's digest or training, the ruler, settings, code, libraries."""
    code = [code_hash(part) for part in (interpolation.compare, interpolation.sleeve_ways)]
    return ["paths", name, network, committed.digest("sleeve_ruler"), settings, code, versions("numpy", "torch")]


def _key(described: list) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:24]


def key_of(made: list) -> str:
    """The key that present code gives to frames whose entry says that they are `made`, see `stages.key_of`."""
    _, name, network, _, settings, *_ = made
    return _key(_described(name, network, settings))


def remembering(
    network: str | Experiment, store: Store | None = None, **settings: Any
) -> Callable[[str, Callable[[], Computed]], Computed]:
    """What `interpolation.compare` takes as `remember`: frames from the store, computed where it lacks them.

    Args:
        network: name of committed weights, or the experiment whose training the denoiser is.
        store: the default one if omitted.
        settings: everything else that the frames depend on, plain values: pairs, points, seed, steps, depths.
    """
    store = store or stores.default()
    if isinstance(network, Experiment):
        made = stages.train_key(network)
    else:
        made = network if network == "untrained" else committed.digest(network)

    def remember(name: str, compute: Callable[[], Computed]) -> Computed:
        described = _described(name, made, settings)
        key = _key(described)
        entry = store.get("sample", key)
        if entry is None:
            frames, nfe = compute()
            entry = store.put("sample", key, {"made": described, "nfe": nfe}, {"frames": frames.to(torch.uint8)})
        return entry.tensors["frames"], entry.note["nfe"]

    return remember
