r"""Training: minimise :math:`E_{t, x_0, \varepsilon}\, w_t\,|F(x_t, t) - F^\ast|^2` by Adam on tensors held in memory.

One generator draws batches, times and noise, and torch's own, set apart for the run, dropout; both travel in the
checkpoint, so that a seed fixes every bit on one machine and a run that was killed ends at the same weights as one that
was not.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpmlab.denoisers import WEIGHTINGS, Denoiser
from ddpmlab.ema import EMA
from ddpmlab.files import atomic

OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
DECAYS = ("none", "cosine", "inverse sqrt")
TIMES = ("uniform", "log-normal", "log-normal, independent")


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss or a weight is NaN or infinite."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be continued: it is damaged, or belongs to another run."""


@dataclass
class Fit:
    """What `fit` returns.

    Attributes:
        steps: the steps at which weights were kept, the last one included.
        weights: step -> raw weights.
        averages: step -> averaged weights; empty without EMA.
        losses: mean training loss over each block of `LOG_EVERY` steps.
        seconds: time spent training, over all resumptions, evaluation excluded.
    """

    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    averages: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> list[int]:
        return sorted(self.weights)


LOG_EVERY = 100


class _Batches:
    """Endless minibatches of indices: each epoch a fresh permutation, batches run across epochs."""

    def __init__(self, n: int, batch_size: int, generator: torch.Generator):
        self.n, self.batch_size, self.generator = n, batch_size, generator
        self.left = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        while len(self.left) < self.batch_size:
            self.left = torch.cat([self.left, torch.randperm(self.n, generator=self.generator)])
        batch, self.left = self.left[: self.batch_size], self.left[self.batch_size :]
        return batch


def _learning_rate(base: float, decay: str, step: int, n_steps: int, warmup: int) -> float:
    rate = base * min(1.0, step / warmup) if warmup else base
    if decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / n_steps))
    elif decay == "inverse sqrt":
        rate /= math.sqrt(max(1.0, step / (n_steps / 8)))
    return rate


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def _pick(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + "/")}


def check_options(
    weighting: str, optimiser: str, decay: str, times: str, ema_decay: float | None, ema_sigma_rel: float | None
) -> None:
    """Check the named options of `fit`.

    Raises:
        ValueError: a name is unknown, both kinds of average are asked for, or one's width is out of range.
    """
    for name, value, allowed in (
        ("weighting", weighting, WEIGHTINGS),
        ("optimiser", optimiser, OPTIMISERS),
        ("decay", decay, DECAYS),
        ("times", times, TIMES),
    ):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; choose one of: {', '.join(allowed)}")
    if ema_decay is not None or ema_sigma_rel is not None:
        EMA({}, ema_decay, ema_sigma_rel)


@torch.random.fork_rng(devices=[])  # dropout draws from torch's own generator: leave the caller's alone
def fit(
    denoiser: Denoiser,
    data: Tensor,
    n_steps: int,
    *,
    batch_size: int = 1_024,
    learning_rate: float = 1e-3,
    decay: str = "none",
    warmup: int = 0,
    optimiser: str = "adam",
    weight_decay: float = 0.01,
    grad_clip: float | None = None,
    weighting: str = "simple",
    times: str = "uniform",
    log_normal: tuple[float, float] = (-1.2, 1.2),
    ema_decay: float | None = None,
    ema_sigma_rel: float | None = None,
    keep_steps: Sequence[int] = (),
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 2_000,
    progress: bool = False,
    context: str = "",
    on_step: Callable[[int], None] | None = None,
) -> Fit:
    r"""Train `denoiser` in place and return what was kept on the way.

    Args:
        denoiser: the denoiser; its network's weights are re-drawn from `seed`, then trained.
        data: training points `(n, dim)`, standardised.
        n_steps: optimiser steps.
        batch_size: points per step; batches run through fresh permutations of the data.
        learning_rate, decay, warmup: step size; `none`, `cosine` to zero, or `inverse sqrt` after an eighth of the
            run; linear warm-up over `warmup` steps.
        optimiser: `adam` or `adamw` (with `weight_decay`), torch's defaults otherwise.
        grad_clip: largest norm of the gradient; no clipping if omitted.
        weighting: see `Denoiser.loss`.
        times: `uniform` over the schedule's times; `log-normal`: :math:`\ln\sigma/\alpha \sim N(m, s^2)` with
            (m, s) = `log_normal` (Karras et al. 2022, table 1); or `log-normal, independent`. The first, where time is
            continuous, and the second are stratified: the i-th of n draws lies in the i-th of n equally likely
            intervals (compare Kingma et al. 2021, appendix I.1). Levels beyond the schedule's are moved to its ends.
        ema_decay, ema_sigma_rel: keep an average of the weights, see `EMA`.
        keep_steps: steps at which to keep weights, besides the last.
        seed: fixes initial weights, batches, times and noise.
        checkpoint: file to save to every `checkpoint_every` steps and to continue from if it exists.
        progress: show a text progress bar.
        context: what the run is, for error messages and the checkpoint's identity.
        on_step: called with the number of steps done after each of them.

    Raises:
        ValueError: bad data or an option out of range.
        NonFiniteLossError: names the step and `context`.
        CheckpointError: the checkpoint is damaged or was written by another run.
    """
    check_options(weighting, optimiser, decay, times, ema_decay, ema_sigma_rel)
    if n_steps < 1 or batch_size < 1 or learning_rate <= 0:
        raise ValueError(
            f"n_steps = {n_steps}, batch_size = {batch_size}, learning_rate = {learning_rate}; all must be positive"
        )
    if data.ndim != 2 or len(data) == 0:
        raise ValueError(f"data have shape {tuple(data.shape)}; need (n, dim) with n at least 1")
    if not torch.isfinite(data).all():
        raise ValueError(f"data hold {int((~torch.isfinite(data)).sum())} values that are NaN or infinite")
    outside = [k for k in keep_steps if not 1 <= k <= n_steps]
    if outside:
        raise ValueError(f"keep_steps {outside} lie outside 1..{n_steps}")
    network, schedule = denoiser.network, denoiser.schedule
    device = next(network.parameters()).device
    data = data.to(device, next(network.parameters()).dtype)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    weights = dict(network.named_parameters())
    options = {"weight_decay": weight_decay} if optimiser == "adamw" else {}
    adam = OPTIMISERS[optimiser](weights.values(), lr=learning_rate, fused=True, **options)
    ema = EMA(weights, ema_decay, ema_sigma_rel) if ema_decay or ema_sigma_rel else None
    batches, result, start = _Batches(len(data), batch_size, generator), Fit(), 0
    kept = sorted({*keep_steps, n_steps})
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    choices = (n_steps, batch_size, learning_rate, decay, warmup, optimiser, weight_decay, grad_clip, weighting, times)
    choices += (log_normal, ema_decay, ema_sigma_rel, kept, seed, len(data), denoiser.parameterisation, shapes)
    identity = f"{context}|{choices}"
    running = torch.zeros((), dtype=torch.float64, device=device)

    def save(step: int) -> None:
        tensors = {
            **_prefixed(weights, "weights"),
            **{f"adam/{i}/{k}": v.contiguous() for i, s in adam.state_dict()["state"].items() for k, v in s.items()},
            **(_prefixed(ema.weights, "ema") if ema else {}),
            **{k: v for s in result.weights for k, v in _prefixed(result.weights[s], f"kept/{s}").items()},
            **{k: v for s in result.averages for k, v in _prefixed(result.averages[s], f"average/{s}").items()},
            "generator": generator.get_state(),
            "torch": torch.get_rng_state(),
            "left": batches.left,
            "running": running,
        }
        header = {
            "step": str(step),
            "identity": identity,
            "losses": json.dumps(result.losses),
            "seconds": str(result.seconds),
        }
        with atomic(checkpoint) as temporary:
            save_file(tensors, temporary, metadata=header)

    if checkpoint is not None and Path(checkpoint).exists():
        try:
            with safe_open(checkpoint, "pt") as file:
                header, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {checkpoint} is damaged ({error}); delete it to start anew") from error
        if header["identity"] != identity:
            raise CheckpointError(f"checkpoint {checkpoint} belongs to another run; delete it or choose another path")
        with torch.no_grad():
            for name, value in _pick(tensors, "weights").items():
                weights[name].copy_(value)
        state = adam.state_dict()
        for name, value in _pick(tensors, "adam").items():
            index, key = name.split("/")
            state["state"].setdefault(int(index), {})[key] = value
        adam.load_state_dict(state)
        if ema:
            ema.weights = {name: value.to(device) for name, value in _pick(tensors, "ema").items()}
        for name in {k.split("/")[1] for k in tensors if k.startswith("kept/")}:
            result.weights[int(name)] = _pick(tensors, f"kept/{name}")
        for name in {k.split("/")[1] for k in tensors if k.startswith("average/")}:
            result.averages[int(name)] = _pick(tensors, f"average/{name}")
        generator.set_state(tensors["generator"])
        torch.set_rng_state(tensors["torch"])
        batches.left, start = tensors["left"], int(header["step"])
        running.copy_(tensors["running"])
        result.losses, result.seconds = json.loads(header["losses"]), float(header["seconds"])

    def draw_times(n: int) -> Tensor:
        if times == "uniform":
            return schedule.random_times(n, generator)
        quantiles = torch.rand(n, generator=generator, dtype=torch.float64)
        if times == "log-normal":
            quantiles = quantiles.add(torch.arange(n)) / n
        mean, sd = log_normal
        return schedule.time_of((mean + sd * torch.special.ndtri(quantiles)).exp())

    network.train()
    bar = tqdm(total=n_steps, initial=start, desc="training", disable=not progress, mininterval=1.0, leave=False)
    began, before = perf_counter(), result.seconds
    for step in range(start + 1, n_steps + 1):
        x0 = data[batches.next()]
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(device)
        loss = denoiser.loss(x0, draw_times(batch_size), noise, weighting).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(weights.values(), grad_clip)
        if decay != "none" or warmup:
            adam.param_groups[0]["lr"] = _learning_rate(learning_rate, decay, step, n_steps, warmup)
        adam.step()
        if ema:
            ema.update(weights, step)
        running += loss.detach()
        if step % LOG_EVERY == 0 or step == n_steps:
            mean_loss = float(running) / ((step - 1) % LOG_EVERY + 1)
            if not math.isfinite(mean_loss):
                raise NonFiniteLossError(
                    f"loss is {mean_loss} within the {LOG_EVERY} steps up to step {step} of {n_steps}; "
                    f"lower learning_rate = {learning_rate} or set grad_clip. Run: {context or 'unnamed'}"
                )
            result.losses.append(mean_loss)
            running.zero_()
            bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        if step in kept:
            if not all(torch.isfinite(w).all() for w in weights.values()):
                raise NonFiniteLossError(
                    f"a weight is not finite at step {step} of {n_steps}. Run: {context or 'unnamed'}"
                )
            result.weights[step] = {name: w.detach().clone() for name, w in weights.items()}
            if ema:
                result.averages[step] = {name: w.clone() for name, w in ema.weights.items()}
        if checkpoint is not None and (step % checkpoint_every == 0 or step == n_steps):
            result.seconds = before + perf_counter() - began
            save(step)
        bar.update(1)
        if on_step is not None:
            on_step(step)
    bar.close()
    result.seconds = before + perf_counter() - began
    network.eval()
    return result
