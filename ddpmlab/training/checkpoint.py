"""Checkpoints: the whole state of a run between two steps, in one safetensors file, and whose run it is.

A file is continued only by the run that wrote it: its identity names the options, the seed, the schedule's scales, the
parameterisation, the network (its code, its hyper-parameters and the weights it started from), the points and the
labels. It is moved into place whole, so that two processes may write the same one, and carries its own checksum.
"""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpmlab.denoisers import Denoiser
from ddpmlab.files import atomic, safe_open
from ddpmlab.registry import PARSING
from ddpmlab.schedules import Schedule
from ddpmlab.training.draws import Draws
from ddpmlab.training.ema import EMA, reconstruct_ema
from ddpmlab.training.options import Options

State = dict[str, Tensor]
_FORMAT = "ddpmlab checkpoint 3"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be continued: it is damaged, or belongs to another run."""


@dataclass
class Fit:
    """What `fit` returns. States are whole `state_dict`s of the network, on the CPU.

    Attributes:
        steps: the steps at which states were kept, the last one included.
        weights: step -> state.
        averages: step -> state with averaged weights, of the first width; buffers are the network's. Empty without EMA.
        by_width: width -> the same, for each width that was asked for.
        losses: mean training loss over each block of `LOG_EVERY` steps.
        seconds: time spent training, over all resumptions.
    """

    weights: dict[int, State] = field(default_factory=dict)
    averages: dict[int, State] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    by_width: dict[float, dict[int, State]] = field(default_factory=dict)

    @property
    def steps(self) -> list[int]:
        return sorted(self.weights)

    def post_hoc(self, sigma_rel: float, step: int | None = None) -> State:
        """The average of another relative width, from those that were kept; at the last step if none is given."""
        kept = [(s, width, state) for width, states in self.by_width.items() for s, state in states.items()]
        return reconstruct_ema(kept, max(self.weights) if step is None else step, sigma_rel)


@dataclass
class Run:
    """All that changes from step to step, and how it turns into tensors and back."""

    network: nn.Module
    optimisers: list[torch.optim.Optimizer]
    averages: list[EMA]
    draws: Draws
    running: Tensor  # sum of losses since the last report
    result: Fit
    step: int = 0

    def tensors(self) -> State:
        """Everything, by name, on the CPU."""
        found = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for k, optimiser in enumerate(self.optimisers):
            for i, state in optimiser.state_dict()["state"].items():
                found |= {f"optimiser {k}/{i}/{name}": value for name, value in state.items()}
        for i, average in enumerate(self.averages):
            found |= {f"ema/{i}/{name}": value for name, value in average.weights.items()}
        kept = {"kept": self.result.weights}
        kept |= {f"average{i}": self.result.by_width[width] for i, width in enumerate(self.result.by_width)}
        for kind, states in kept.items():
            found |= {f"{kind}/{step}/{name}": v for step, state in states.items() for name, v in state.items()}
        found |= {"draws": self.draws.generator.get_state(), "left": self.draws.left, "running": self.running}
        found |= {"torch": torch.get_rng_state()}
        if self.running.is_cuda:
            found |= {"torch cuda": torch.cuda.get_rng_state(self.running.device)}
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}

    def restore(self, tensors: State, header: dict[str, str]) -> None:
        """Go on from `tensors()`. Raises KeyError, ValueError or RuntimeError, before anything is changed, if some do
        not fit."""

        def part(prefix: str) -> State:
            return {name[len(prefix) + 1 :]: v for name, v in tensors.items() if name.startswith(prefix + "/")}

        network, own = part("network"), self.network.state_dict()
        if {k: v.shape for k, v in network.items()} != {k: v.shape for k, v in own.items()}:
            raise ValueError("its network has other tensors")
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        for k, own in enumerate(optimisers):
            for name, value in part(f"optimiser {k}").items():
                index, key = name.split("/")
                own["state"].setdefault(int(index), {})[key] = value
        averages = [part(f"ema/{i}") for i in range(len(self.averages))]
        if any(found.keys() != ema.weights.keys() for found, ema in zip(averages, self.averages, strict=True)):
            raise ValueError("its averages have other tensors")
        step, losses, seconds = int(header["step"]), json.loads(header["losses"]), float(header["seconds"])
        draws, left, running, cpu = (tensors[name] for name in ("draws", "left", "running", "torch"))
        cuda = tensors["torch cuda"] if self.running.is_cuda else None

        self.network.load_state_dict(network)
        for optimiser, own in zip(self.optimisers, optimisers, strict=True):
            optimiser.load_state_dict(own)
        for average, found in zip(self.averages, averages, strict=True):
            average.load(found)
        for kind, states in (
            ("kept", self.result.weights),
            *((f"average{i}", self.result.by_width[width]) for i, width in enumerate(self.result.by_width)),
        ):
            for name, value in part(kind).items():
                at, key = name.split("/", 1)
                states.setdefault(int(at), {})[key] = value
        self.draws.generator.set_state(draws)
        self.draws.left = left.to(self.draws.device)
        self.running.copy_(running)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.running.device)
        self.step, self.result.losses, self.result.seconds = step, losses, seconds


# --- whose run -------------------------------------------------------------------------------------------------


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:24]


@cache
def _code(kind: type) -> str:
    """Code of a class without docstrings; its name where there is no source."""
    try:
        with PARSING:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return kind.__qualname__
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body.pop(0)
    return ast.dump(tree)


def _scales(schedule: Schedule) -> str:
    last = schedule.t_max
    times = torch.arange(1, last + 1) if isinstance(last, int) else torch.linspace(schedule.t_min, last, 257)
    alpha, sigma = schedule(times.to(torch.float64).clamp(max=last))
    return " ".join(f"{value:.10g}" for value in [schedule.t_min, last, *alpha.tolist(), *sigma.tolist()])


def identity(denoiser: Denoiser, points: Tensor, labels: Tensor | None, options: Options, seed: int) -> dict[str, str]:
    """All that the weights of a run depend on, part by part, as short texts."""
    own = {type(module) for module in denoiser.modules() if not type(module).__module__.startswith("torch.")}
    code = "\n".join(sorted(_code(base) for kind in own for base in (kind, *kind.__bases__) if base is not nn.Module))

    def short(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    return {
        **{name: str(value) for name, value in options.effective().items()},
        "device": points.device.type,
        "seed": str(seed),
        "schedule": short(_scales(denoiser.schedule)),
        "parameterisation": denoiser.parameterisation,
        "network": short(f"{denoiser!r}\n{code}"),
        "initial weights": _digest(denoiser.network.state_dict().values()),
        "points": _digest([points]),
        "labels": _digest([] if labels is None else [labels]),
    }


# --- files -----------------------------------------------------------------------------------------------------


def save(path: Path, run: Run, whose: dict[str, str]) -> None:
    """Write the state of `run` to `path`, whole or not at all."""
    tensors = run.tensors()
    header = {
        "format": _FORMAT,
        "identity": json.dumps(whose),
        "step": str(run.step),
        "losses": json.dumps(run.result.losses),
        "seconds": str(run.result.seconds),
        "checksum": _digest(tensors[name] for name in sorted(tensors)),
    }
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def resume(path: Path, run: Run, whose: dict[str, str]) -> None:
    """Bring `run` to the state that `path` holds; nothing if there is no such file.

    Raises:
        CheckpointError: the file is damaged or foreign, or another run's. `run` is as it was.
    """
    try:
        with safe_open(path, "pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); delete it to start anew") from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint that this version can continue; choose another path")
    if header.get("checksum") != _digest(tensors[name] for name in sorted(tensors)):
        raise CheckpointError(f"checkpoint {path} is damaged (its checksum is wrong); delete it to start anew")
    try:
        found = json.loads(header["identity"])
        differ = [name for name in whose if whose[name] != found.get(name)]
        if not differ:
            run.restore(tensors, header)
            return
    except (KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); delete it to start anew") from error
    advice = " (build the network under its seed, see `build_seeded`)" if differ == ["initial weights"] else ""
    raise CheckpointError(
        f"checkpoint {path} belongs to another run: {', '.join(differ)} differ{advice}; "
        "delete it or choose another path"
    )
