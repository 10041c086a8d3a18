r"""The live explorer: any denoiser and dataset of the user's, in JupyterLab, VS Code and Colab.

Networks that the engine knows are exported and run in the page; every other denoiser is evaluated here: the page sends
the starting noise, this side runs the package's own sampler and sends the states back as they come.
"""

import base64
import math
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor

from ddpmlab import samplers
from ddpmlab.denoisers import Denoising, ExactDenoiser
from ddpmlab.explorer import export, page

SIDES = ("a", "b")
_LEVELS = 200  # of a schedule that the page does not know, tabulated for it
_SHOWN = 5_000  # points of a law that the page cannot draw by itself


def _known(kind: str, thing: Any) -> dict[str, Any] | None:
    """The engine's spec of a thing, or None where the engine does not know it."""
    try:
        return dict(getattr(export, kind)(thing))
    except (ValueError, TypeError, NotImplementedError, AttributeError):
        return None


def _schedule(schedule) -> dict[str, Any]:
    """A schedule's spec; one that the engine does not know is tabulated, and its denoisers are evaluated here."""
    spec = _known("schedule", schedule)
    if spec is not None:
        return spec
    first, last = float(schedule.t_min), float(schedule.t_max)
    alpha, sigma = schedule(torch.linspace(first, last, _LEVELS, dtype=torch.float64))
    alpha_bars = (alpha**2 / (alpha**2 + sigma**2)).tolist()  # t = 1, 2, ...
    return {"kind": "discrete", "alpha_bars": alpha_bars, "title": type(schedule).__name__, "remote": True}


def _shape(law: Any) -> tuple[int, ...]:
    return tuple(law.shape) if hasattr(law, "shape") else (law.dim,)


def _law(law: Any) -> dict[str, Any]:
    """A law's spec; one that the engine does not know is shown by points, its exact denoiser evaluated here."""
    spec = _known("law", law)
    if spec is None:
        points = law.sample(_SHOWN, 0) if hasattr(law, "sample") else law.split()[0][:_SHOWN]
        values = np.ascontiguousarray(points.detach().cpu().reshape(len(points), -1).numpy(), dtype="<f4")
        packed = {"shape": list(values.shape), "f32": base64.b64encode(values.tobytes()).decode("ascii")}
        spec = {"name": f"own {_name(law)}", "dim": values.shape[1], "points": packed, "exact": False}
    if spec.get("exact") is False and hasattr(law, "denoise"):
        spec["exact"] = "remote"
    return {**spec, "title": _name(law).replace("_", " ").capitalize()}


def _name(law: Any) -> str:
    return str(getattr(law, "name", type(law).__name__))


def _checked(law: Any) -> Any:
    """A law or another dataset whose points the page can draw."""
    if isinstance(law, (Tensor, np.ndarray)) or not (hasattr(law, "shape") or hasattr(law, "dim")):
        raise TypeError(f"law is a {type(law).__name__}; need a dataset, as data.make('two_moons').standardised()")
    if not 1 <= math.prod(_shape(law)) <= 3:
        raise ValueError(
            f"points of {_name(law)} have shape {_shape(law)}; the explorer draws 1 to 3 coordinates. "
            "For pictures there is ddpmlab.explorer.pad"
        )
    return law


def _bytes(points: Tensor) -> bytes:
    return points.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()


def _setting(trait: traitlets.TraitType) -> traitlets.TraitType:
    return trait.tag(sync=True, setting=True)


class Explorer(anywidget.AnyWidget):
    """Trajectories of a denoiser beside those of the exact one, from the same starting noise.

    Every setting of the page is a trait, so `ipywidgets.link((slider, "value"), (explorer, "a_steps"))` works, and so
    does `explorer.observe(handler, names="picked")`:

    - `law`, `n`, `seed`: what is drawn, how many points, the seed of their starting noise;
    - `progress` (0 noise, 1 data), `playing`, `speed`;
    - `compare`, `pictures` (`side`, `overlay`), `target` (`off`, `clean`, `level`), `samples`, `paths` (`off`,
      `picked`, `many`), `field` (`off`, `field`, `error`), `picked` (indices of points), `camera`, `mixture` (the law
      drawn);
    - for each side, `a_` and `b_`: `model` (a name of `denoisers`, or `exact`), `schedule` (`own`, or a name of
      `schedules`), `solver`, `steps`, `spacing`, `eta`, `variance`, `seed` (-1: that of both).

    Args:
        denoiser: a denoiser, or several as a mapping of names. Omitted, with no law either: the book's models.
        law: what they learned, in the units of their points: a dataset, usually `law.standardised()`.
        schedules: further schedules to run exact and EDM denoisers on, as a mapping of names.
        stops: guided stops, see `page.fragment`.
        state: traits to start with.

    Attributes:
        trajectories: states of each side's last finished run, `{"a": (n_steps + 1, n, *shape)}`, float32.
        times: their times, `{"a": (n_steps + 1,)}`, float64.

    Raises:
        TypeError: something given is not a denoiser, or the law is no dataset.
        ValueError: a denoiser without a law, a setting that does not exist, shapes that do not agree, or points of
            more than 3 coordinates.
    """

    _esm = page.module()
    catalogue = traitlets.Dict().tag(sync=True)
    stops = traitlets.List().tag(sync=True)
    law = _setting(traitlets.Unicode())
    n = _setting(traitlets.Int(1000, min=10, max=5000))
    seed = _setting(traitlets.Int(1, min=0, max=2**32 - 1))
    progress = _setting(traitlets.Float(1.0, min=0, max=1))
    speed = _setting(traitlets.Enum((0.25, 0.5, 1, 2, 4), 1))
    playing = _setting(traitlets.Bool(False))
    compare = _setting(traitlets.Bool(True))
    pictures = _setting(traitlets.Enum(("side", "overlay"), "side"))
    target = _setting(traitlets.Enum(("off", "clean", "level"), "clean"))
    samples = _setting(traitlets.Bool(True))
    paths = _setting(traitlets.Enum(("off", "picked", "many"), "picked"))
    field = _setting(traitlets.Enum(("off", "field", "error"), "off"))
    picked = _setting(traitlets.List(traitlets.Int(min=0), list(range(6)), maxlen=12))
    camera = _setting(traitlets.List(traitlets.Float(), [0.6, 0.4, 1.0, 0.0, 0.0], minlen=5, maxlen=5))
    mixture = _setting(traitlets.Dict(default_value=None, allow_none=True))
    a_model, b_model = (_setting(traitlets.Unicode("exact")) for _ in SIDES)
    a_schedule, b_schedule = (_setting(traitlets.Unicode("own")) for _ in SIDES)
    a_solver, b_solver = (_setting(traitlets.Enum(sorted(samplers.SAMPLERS), "dpmpp_2m")) for _ in SIDES)
    a_steps, b_steps = (_setting(traitlets.Int(20, min=1, max=1000)) for _ in SIDES)
    a_spacing, b_spacing = (
        _setting(traitlets.Enum(("default", "leading", "linspace", "trailing"), "default")) for _ in SIDES
    )
    a_eta, b_eta = (_setting(traitlets.Float(0.0, min=0, max=1)) for _ in SIDES)
    a_variance, b_variance = (_setting(traitlets.Enum(("posterior", "beta"), "posterior")) for _ in SIDES)
    a_seed, b_seed = (_setting(traitlets.Int(-1, min=-1, max=2**32 - 1)) for _ in SIDES)

    def __init__(
        self,
        denoiser: Denoising | Mapping[str, Denoising] | None = None,
        law: Any = None,
        *,
        schedules: Mapping[str, Any] | None = None,
        stops: list[Mapping[str, Any]] | None = None,
        **state: Any,
    ):
        unknown = set(state) - set(self.class_trait_names(setting=True))
        if unknown:
            known = ", ".join(sorted(self.class_trait_names(setting=True)))
            raise ValueError(f"unknown settings {sorted(unknown)}; the explorer has: {known}")
        if denoiser is not None and law is None:
            raise ValueError("a denoiser needs its law, in the units of its points; pass law=law.standardised()")
        self.denoisers: dict[str, Denoising] = (
            dict(denoiser) if isinstance(denoiser, Mapping) else {} if denoiser is None else {"yours": denoiser}
        )
        self.trajectories: dict[str, Tensor] = {}
        self.times: dict[str, Tensor] = {}
        self._law, self._schedules = None if law is None else _checked(law), dict(schedules or {})
        if law is None:
            catalogue = page.library()
            state = {"law": next(iter(catalogue["laws"])), **state}
        else:
            catalogue = self._catalogue()
            state = {"law": "law", "a_model": next(iter(self.denoisers), "exact"), **state}
            if catalogue["laws"]["law"].get("exact") is False:
                state = {"b_model": next(iter(self.denoisers), "exact"), **state}
        super().__init__(catalogue=catalogue, stops=list(stops or []), **state)
        self.on_msg(self._answer)

    def _catalogue(self) -> dict[str, Any]:
        denoisers, shape = {}, _shape(self._law)
        for name, each in self.denoisers.items():
            if not isinstance(each, Denoising):
                raise TypeError(f"{name} is a {type(each).__name__}; need a denoiser, as Denoiser(network, schedule)")
            if name in ("exact", "own"):
                raise ValueError(f"a denoiser cannot be called {name!r}: the page uses that name; choose another")
            own = getattr(each, "shape", None) or (getattr(each, "dim", None) or math.prod(shape),)
            if math.prod(own) != math.prod(shape):
                raise ValueError(f"{name} denoises points of shape {tuple(own)}, the law has {shape}; they must agree")
            spec = _known("denoiser", each) or {"type": "remote", "schedule": _schedule(each.schedule)}
            if spec["type"] == "exact":  # of this law or another: the kernel knows which
                spec = {"type": "remote", "schedule": spec["schedule"]}
            title = "Your denoiser" if name == "yours" else name
            denoisers[name] = {**spec, "title": title, "law": "law", "family": title, "stage": ""}
        listed = {name: {"title": name, **_schedule(each)} for name, each in self._schedules.items()}
        if not listed and not denoisers:
            from ddpmlab import schedules

            self._schedules["vp_cosine"] = schedules.make("vp_cosine")
            listed = {"vp_cosine": {"title": "VP cosine", **_schedule(self._schedules["vp_cosine"])}}
        return {"laws": {"law": _law(self._law)}, "denoisers": denoisers, "schedules": listed}

    def _denoiser(self, name: str, reference: str) -> Denoising:
        if name != "exact":
            return self.denoisers[name]
        kind, _, key = reference.partition(":")
        schedule = self.denoisers[key].schedule if kind == "own" else self._schedules[reference]
        return ExactDenoiser(self._law, schedule)

    def _points(self, buffer, denoiser: Denoising, n: int) -> Tensor:
        points = torch.frombuffer(bytearray(buffer), dtype=torch.float32).reshape(n, *_shape(self._law))
        weight = next(denoiser.parameters(), None)
        return points.to(weight) if weight is not None else points.double()

    def _answer(self, _, content: dict[str, Any], buffers: list) -> None:
        kind, number = content.get("kind"), content.get("number")
        try:
            if kind == "trajectory":
                times = content["times"]
                flat = torch.frombuffer(bytearray(buffers[0]), dtype=torch.float32)
                shape = _shape(self._law) if self._law is not None else ()
                if math.prod(shape) != content["dim"]:  # a law that was drawn on the page
                    shape = (content["dim"],)
                self._keep(content["side"], times, flat.reshape(len(times), content["n"], *shape))
            elif kind == "denoise":
                denoiser = self._denoiser(content["denoiser"], content["reference"])
                with torch.no_grad():
                    estimate = denoiser(self._points(buffers[0], denoiser, content["n"]), content["t"])
                self.send({"kind": "denoised", "number": number}, [_bytes(estimate)])
            elif kind == "run":
                self._run(content, buffers)
        except Exception as error:  # whatever the user's own denoiser raises is shown in the box, not lost in a log
            self.send({"kind": "error", "number": number, "message": f"{type(error).__name__}: {error}"})

    def _run(self, content: dict[str, Any], buffers: list) -> None:
        number, started, kept = content["number"], perf_counter(), []
        denoiser = self._denoiser(content["denoiser"], content["reference"])
        options = dict(content["sampler"])
        sampler = samplers.make(options.pop("name"), **options)
        times = denoiser.schedule.times(sampler.n_steps, sampler.spacing).tolist()
        alpha, sigma = (float(scale) for scale in denoiser.schedule(times[0]))
        x = self._points(buffers[0], denoiser, content["n"]) * math.hypot(alpha, sigma)
        # the starting noise comes from the page; a seed beside it serves solvers that add noise
        for k, state in enumerate(sampler(denoiser, x=x, seed=content["seed"])):
            scales = [float(scale) for scale in denoiser.schedule(times[k])]
            message = {"kind": "state", "number": number, "k": k, "t": times[k], "scales": scales}
            self.send({**message, "nSteps": sampler.n_steps}, [_bytes(state)])
            kept.append(state.detach().to("cpu", torch.float32))
        self._keep(content["side"], times, torch.stack(kept))
        spent = 1_000 * (perf_counter() - started)
        self.send({"kind": "done", "number": number, "nfe": sampler.nfe(denoiser.schedule), "ms": spent})

    def _keep(self, side: str, times: list[float], states: Tensor) -> None:
        self.trajectories[side], self.times[side] = states, torch.tensor(times, dtype=torch.float64)

    def settings(self) -> dict[str, Any]:
        """The page's settings as they are now, by name."""
        return {name: getattr(self, name) for name in self.trait_names(setting=True)}

    def to_html(self) -> str:
        """The explorer as it is now as a piece of static HTML, which runs from a file and needs no kernel."""
        return page.fragment(self.catalogue, self.stops, **{**self.settings(), "playing": False})

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and beside it static HTML for where there is no kernel: a book, a saved notebook."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.to_html()}, metadata
