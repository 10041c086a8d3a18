"""Committed weights: trained networks that travel with the package, each with what made it in the file's header.

Stored as float16: sampling of pictures runs in bfloat16, and what rounding costs is far below what seeds differ by.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpmlab.files import atomic

FOLDER = Path(__file__).parents[1] / "weights"


def path(name: str) -> Path:
    """The file of committed weights.

    Raises:
        ValueError: there is none of that name (the message lists those that are).
    """
    found = FOLDER / f"{name}.safetensors"
    if not found.exists():
        there = ", ".join(sorted(p.stem for p in FOLDER.glob("*.safetensors")))
        raise ValueError(f"no weights {name!r} travel with the package; there are: {there}")
    return found


def digest(name: str) -> str:
    """Hash of a file of weights, for keys."""
    return hashlib.sha256(path(name).read_bytes()).hexdigest()[:16]


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State (float32) and note: `config`, `commit`, `seconds`, `device`, `steps` and others."""
    with safe_open(path(name), "pt") as file:
        header = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    return state, {k: json.loads(v) for k, v in header.items()}


def write(name: str, config, state: dict[str, Tensor], **note: Any) -> Path:
    """Write a network's state with the config that made it and a note.

    Args:
        name: of the file.
        config: the `Experiment`.
        state: a state dict.
        note: commit, seconds, device, and what else belongs to it.
    """
    small = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in state.items()}
    header = {k: json.dumps(v, default=str) for k, v in {"config": asdict(config), **note}.items()}
    target = FOLDER / f"{name}.safetensors"
    with atomic(target) as temporary:
        save_file({k: v.contiguous() for k, v in small.items()}, temporary, metadata=header)
    return target
