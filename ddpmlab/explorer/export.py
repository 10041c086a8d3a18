"""What the page needs to know, as JSON: schedules, laws, networks, denoisers and samplers of the package.

`engine.js` reads these specs and computes from them what the package would. Numbers of a tensor travel as base64 of
little-endian float32, or of float16 where that is what was stored.
"""

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddpmlab import data, denoisers, networks, samplers, schedules
from ddpmlab.data import laws

WEIGHTS = Path(__file__).parent.parent / "weights" / "explorer"
"""Where the page's own networks lie, one safetensors file each, written by `train_models`."""

_KINDS = {networks.MLP: "mlp", networks.ResidualMLP: "residual_mlp"}
_ACTIVATIONS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu"}
_EXACT = {laws.TwoMoons: "two_moons", laws.Helix: "helix", laws.GaussianMixture: "gaussian_mixture"}
_OVERLAY_POINTS = 2_000
_REMEDY = "keep it in Python: the live widget evaluates any denoiser of yours as a remote one"


def tensor(values: Tensor) -> dict[str, Any]:
    """A tensor as `{"shape": [...], "f32": base64}`; `f16` for a float16 one.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    values = values.detach().cpu()
    if not torch.isfinite(values).all():
        raise ValueError(
            f"a tensor of shape {tuple(values.shape)} holds NaN or infinity; the page can show no such thing"
        )
    name, kind = ("f16", "<f2") if values.dtype == torch.float16 else ("f32", "<f4")
    return {"shape": list(values.shape), name: base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode()}


def schedule(schedule: schedules.Schedule, name: str | None = None) -> dict[str, Any]:
    """Spec of a forward process; a discrete one by its alpha_bars at t = 1, ..., T.

    Args:
        schedule: any schedule of the package.
        name: what to call it; its kind if omitted.

    Raises:
        ValueError: a schedule of another class.
    """
    if type(schedule) is schedules.DiscreteSchedule:
        spec = {"kind": "discrete", "alpha_bars": schedule.alpha_bars[1:].tolist()}
    elif type(schedule) is schedules.VPCosine:
        spec = {"kind": "vp_cosine", "terminal_snr": schedule.terminal_snr, "t_min": schedule.t_min}
    elif type(schedule) is schedules.Rectified:
        spec = {"kind": "rectified", "terminal_snr": schedule.terminal_snr, "t_min": schedule.t_min}
    elif type(schedule) is schedules.VE:
        spec = {
            "kind": "ve",
            "sigma_min": schedule.sigma_min,
            "sigma_max": schedule.sigma_max,
            "rho": schedule.rho,
        }
    else:
        raise ValueError(f"a schedule of class {type(schedule).__name__} does not run in the page; {_REMEDY}")
    return {**spec, "name": name or spec["kind"], "spacing": schedule.spacing}


def _activation(module: nn.Module) -> str:
    if type(module) not in _ACTIVATIONS or getattr(module, "approximate", "none") != "none":
        raise ValueError(f"an activation {module} does not run in the page; {_REMEDY}")
    return _ACTIVATIONS[type(module)]


def network(network: nn.Module, label: int | None = None, half: bool = False) -> dict[str, Any]:
    """Spec of an MLP or a residual MLP with its weights.

    Args:
        network: the network; dropout is off in the page, as in evaluation.
        label: the class that a conditional network is asked for; none if omitted.
        half: weights as float16, rounded if they are not stored so; fixed frequencies stay float32.

    Raises:
        ValueError: another kind of network, or weights that are not finite.
    """
    if type(network) not in _KINDS:
        known = ", ".join(kind.__name__ for kind in _KINDS)
        raise ValueError(
            f"a network of class {type(network).__name__} does not run in the page ({known} do); {_REMEDY}"
        )
    embedding = type(network.time[0]).__name__
    spec: dict[str, Any] = {
        "kind": _KINDS[type(network)],
        "shape": list(network.shape),
        "time": {"Identity": "scalar", "Sinusoidal": "sinusoidal", "Fourier": "fourier"}.get(embedding, "none"),
    }
    if isinstance(network, networks.MLP):
        spec["activation"] = _activation(network.layers[1])
        if not isinstance(network.layers[-1], nn.Linear):
            spec["output_activation"] = _activation(network.layers[-1])
    else:
        spec["activation"] = _activation(network.blocks[0].activation)
    if label is not None:
        if not 0 <= int(label) <= network.n_classes or not network.n_classes:
            raise ValueError(f"label = {label}; this network has {network.n_classes} classes")
        spec["label"] = int(label)
    parameters = dict(network.named_parameters())
    state = {k: v.half() if half and k in parameters else v.float() for k, v in network.state_dict().items()}
    return {**spec, "weights": {name: tensor(value) for name, value in state.items()}}


def law(law: data.Dataset, n_points: int = _OVERLAY_POINTS) -> dict[str, Any]:
    """Spec of a law or dataset, in its own units or standardised ones, as it stands.

    The two moons, the helix and Gaussian mixtures are known in the page, with their exact denoisers; so is the surface,
    without. Of anything else the page gets points: fresh ones of a law, test points of a dataset.

    Args:
        law: the law or dataset.
        n_points: how many points, where points are needed.
    """
    own = law.law if isinstance(law, laws.Standardised) else law
    spec: dict[str, Any] = {"title": law.name, "dim": law.dim, "exact": type(own) in _EXACT}
    if type(own) in _EXACT or type(own) is laws.Sin55:
        spec["name"] = _EXACT.get(type(own), "sin_5_5")
        if isinstance(own, laws.GaussianMixture):
            spec |= {key: getattr(own, key).tolist() for key in ("means", "scales", "weights")}
        else:
            spec["noise"] = own.noise
        if law is not own:
            spec |= {"mean": law.mean.tolist(), "scale": law.scale.tolist()}
        return spec
    points = law.sample(n_points, 0) if isinstance(law, data.Law) else law.split().test[:n_points]
    return {**spec, "name": law.name, "points": tensor(points.reshape(len(points), -1))}


def denoiser(
    denoiser: denoisers.Denoising, title: str | None = None, *, schedule_name: str | None = None, half: bool = False
) -> dict[str, Any]:
    """Spec of a denoiser that runs in the page: a network, an exact one, or one of a finite set of points.

    Args:
        denoiser: the denoiser.
        title: what to call it.
        schedule_name: what to call its schedule.
        half: see `network`.

    Raises:
        ValueError: it cannot run in the page.
    """
    common = {"schedule": schedule(denoiser.schedule, schedule_name)}
    if type(denoiser) is denoisers.Denoiser:
        return {
            "type": "network",
            "title": title or "network",
            "parameterisation": denoiser.parameterisation,
            **common,
            "network": network(denoiser.network, half=half),
        }
    if type(denoiser) is denoisers.ExactDenoiser:
        spec = law(denoiser.law)
        if not spec["exact"]:
            raise ValueError(f"the exact denoiser of {denoiser.law.name} does not run in the page; {_REMEDY}")
        return {"type": "exact", "title": title or "exact", **common, "law": spec}
    if type(denoiser) is denoisers.EmpiricalDenoiser and not denoiser.n_classes:
        return {"type": "empirical", "title": title or "training set", **common, "points": tensor(denoiser.points)}
    raise ValueError(f"a denoiser of class {type(denoiser).__name__} does not run in the page; {_REMEDY}")


def sampler(sampler: samplers.Sampler) -> dict[str, Any]:
    """Spec of a sampler: its name, number of steps, spacing and own options.

    Raises:
        ValueError: a sampler of another class.
    """
    names = {samplers.SAMPLERS[name]: name for name in samplers.SAMPLERS}
    if type(sampler) not in names:
        raise ValueError(f"a sampler of class {type(sampler).__name__} does not run in the page; {_REMEDY}")
    options = {key: getattr(sampler, key) for key in ("n_steps", "spacing", "variance", "eta") if hasattr(sampler, key)}
    return {"name": names[type(sampler)], **{key: value for key, value in options.items() if value is not None}}


def build(config: Mapping[str, Any]) -> denoisers.Denoiser:
    """The untrained denoiser of a stored network's config, see `train_models`."""
    (kind, options), (process, betas) = (_named(config[part]) for part in ("network", "schedule"))
    network = networks.make(kind, shape=data.make(config["law"]).shape, **options)
    return denoisers.Denoiser(network, schedules.make(process, **betas), config["parameterisation"])


def _named(part: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    return part["name"], {key: value for key, value in part.items() if key != "name"}


def stored() -> list[str]:
    """Names of the page's own networks, in the order in which they are offered."""
    files = [(json.loads(_header(path)["config"])["order"], path.stem) for path in WEIGHTS.glob("*.safetensors")]
    return [name for _, name in sorted(files)]


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def load(name: str) -> tuple[denoisers.Denoiser, dict[str, Any]]:
    """One of the page's own networks, as a denoiser in float32, and what is known of it.

    Raises:
        ValueError: there is no network of that name.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"no stored network {name!r}; choose one of: {', '.join(stored())}")
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = json.loads(header.pop("config"))
    built = build(config)
    built.network.load_state_dict({key: value.float() for key, value in tensors.items()})
    return built.eval(), {**header, **config}


@cache
def models() -> list[dict[str, Any]]:
    """The page's own networks: `id`, `title`, `family`, `law`, `stage` of training, `denoiser`, `sampler`, `about`.

    Networks of one family differ in how long they were trained.
    """
    found = []
    for name in stored():
        built, known = load(name)
        found.append(
            {
                "id": name,
                "title": known["title"],
                "family": known["family"],
                "law": known["law"],
                "stage": known["stage"],
                "stage_unit": known["stage_unit"],
                "parameters": sum(p.numel() for p in built.network.parameters()),
                "denoiser": denoiser(built, known["title"], schedule_name=known["schedule"]["name"], half=True),
                "sampler": known["sampler"],
                "about": {key: known[key] for key in ("what", "seed", "steps", "seconds", "commit", "device")},
            }
        )
    return found


def laws_of_page() -> dict[str, dict[str, Any]]:
    """The laws that the page's networks learned, standardised, by name."""
    return {name: law(data.make(name).standardised()) for name in ("two_moons", "helix", "sin_5_5")}


def schedules_of_page() -> dict[str, dict[str, Any]]:
    """Schedules to try the exact denoisers with, by the title they are offered under."""
    made = {
        "linear, as the homework's": schedules.make("linear"),
        "linear, 1000 steps": schedules.make("linear", n_steps=1_000, lbeta=1e-4, ubeta=2e-2),
        "cosine, 1000 steps": schedules.make("cosine", n_steps=1_000),
        "cosine, continuous": schedules.make("vp_cosine"),
        "rectified, straight lines": schedules.make("rectified"),
        "variance exploding": schedules.make("ve", sigma_min=0.011, sigma_max=8.0, rho=7.0),
    }
    return {title: schedule(own, title) for title, own in made.items()}


def library() -> dict[str, Any]:
    """All of the page's own: `models`, `laws`, `schedules`, as JSON."""
    return {"models": models(), "laws": laws_of_page(), "schedules": schedules_of_page()}
