"""What the interpolation page shares with its tests and the store: which network it asks."""

import json
from importlib.resources import files
from pathlib import Path

from safetensors import safe_open

from ddpmlab import networks, schedules
from ddpmlab.denoisers import Denoiser
from ddpmlab.networks.base import NETWORKS
from ddpmlab.schedules import SCHEDULES
from ddpmlab.training import build_seeded

SHAPE = (1, 28, 28)
UNTRAINED = "untrained"
"""Name of a tiny network with weights of no training, for rehearsals without any file."""


def denoiser_of(name: str | Path) -> Denoiser:
    """The denoiser in a weights file.

    Args:
        name: of a file in `ddpmlab/weights`, a path, or `untrained`. A file's metadata hold, as JSON under `config`,
            the parts `network` and `schedule` by name with their options, and `parameterisation`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its metadata do not say what to build.
    """
    if name == UNTRAINED:
        options = {"shape": SHAPE, "widths": (8, 16), "n_blocks": 1, "n_classes": 10}
        network = build_seeded(lambda: networks.make("unet", **options), 0)
        return Denoiser(network, schedules.make("ve"), "edm").eval().requires_grad_(False)
    path = Path(name)
    if path.suffix != ".safetensors":
        path = Path(str(files("ddpmlab") / "weights" / f"{name}.safetensors"))
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}; train them, or name another file or {UNTRAINED!r}")
    with safe_open(str(path), "pt") as file:
        try:
            config = json.loads((file.metadata() or {})["config"])
            network, schedule = (dict(config[part]) for part in ("network", "schedule"))
            parameterisation = config["parameterisation"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the metadata of {path} do not say what to build ({error!r})") from None
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    built = NETWORKS.build(network, **({} if "shape" in network else {"shape": SHAPE}))
    built.load_state_dict(state)
    return Denoiser(built, SCHEDULES.build(schedule), parameterisation).eval().requires_grad_(False)
