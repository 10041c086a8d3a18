"""The training loop, on tensors held in memory."""

import math
import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ddpmlab.denoisers import Denoiser
from ddpmlab.schedules import DiscreteSchedule
from ddpmlab.training import checkpoint as checkpoints
from ddpmlab.training.checkpoint import Fit, Run, State
from ddpmlab.training.draws import Draws
from ddpmlab.training.options import Options

LOG_EVERY = 100
"""Steps behind each mean loss that `fit` keeps, after which it is checked to be finite."""
_DROPOUT_SEED = 4_000_003
_T = TypeVar("_T")


class NonFiniteLossError(RuntimeError):
    """Training diverged: the loss or a weight is NaN or infinite."""


def build_seeded(build: Callable[[], _T], seed: int) -> _T:
    """Call `build` with torch's own generator at `seed`, and leave the caller's as it was.

    Networks draw their first weights from that generator; `fit` never draws them again.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(operator.index(seed))
        return build()


def fit(
    denoiser: Denoiser,
    points: Tensor,
    n_steps: int | None = None,
    *,
    labels: Tensor | None = None,
    options: Options | None = None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 2_000,
    progress: bool = False,
    on_step: Callable[[int], None] | None = None,
    context: str = "",
    **choices: Any,
) -> Fit:
    r"""Train `denoiser` in place and return what was kept on the way.

    Minimises :math:`E_{t, x_0, \varepsilon}\, w_t\,|F(x_t, t) - F^\ast|^2`, see `Denoiser.loss`. It starts from the
    weights that the network has: build it under a seed, `build_seeded(lambda: networks.make(...), seed)`.

    Args:
        denoiser: the denoiser; it is moved to the device of the options and ends in evaluation mode.
        points: training points `(n, *shape)`, standardised.
        n_steps: optimiser steps.
        labels: classes `(n,)`, which a conditional network is told; integers from 0 on.
        options: how to train; the defaults if omitted.
        seed: fixes batches, times, noise and dropout.
        checkpoint: file to save to every `checkpoint_every` steps and to continue from if it exists.
        progress: show a text progress bar.
        on_step: called with the number of steps done after each of them.
        context: what the run is, for error messages.
        choices: single `Options` to set instead.

    Raises:
        ValueError: bad points or labels, or an option out of range.
        NonFiniteLossError: names the step and `context`.
        CheckpointError: the checkpoint is damaged or was written by another run.
    """
    choices |= {} if n_steps is None else {"n_steps": n_steps}
    options = Options(**choices) if options is None else replace(options, **choices)
    if options.n_steps is None:
        raise ValueError("n_steps = None; say for how many optimiser steps to train")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every = {checkpoint_every}; save after 1 step or more")
    device, seed = options.torch_device, operator.index(seed)
    network = denoiser.to(device).network
    weights = [w for w in network.parameters() if w.requires_grad]
    if not weights:
        raise ValueError("the network has no weights to train; every one is frozen, or there are none")
    points, labels = _checked(points, labels, network, options)
    points = points.to(device, weights[0].dtype)
    labels = None if labels is None else labels.to(device)
    # dropout draws from torch's own generators: leave the caller's alone
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(seed + _DROPOUT_SEED)
        run = Run(
            network,
            options.optimisers(weights),
            options.averages(_averaged(network)),
            Draws(
                points, labels, denoiser.schedule, options,
                torch.Generator(device).manual_seed(seed), getattr(network, "n_classes", 0),
            ),
            torch.zeros((), dtype=torch.float64, device=device),
            Fit(by_width={width: {} for width in options.widths}),
        )  # fmt: skip
        run.result.averages = next(iter(run.result.by_width.values()), {})
        save = None
        if checkpoint is not None:
            whose = checkpoints.identity(denoiser, points, labels, options, seed)
            checkpoints.resume(Path(checkpoint), run, whose)

            def save():
                checkpoints.save(Path(checkpoint), run, whose)

        try:
            denoiser.train()
            _loop(denoiser, run, options, weights, save, checkpoint_every, progress, on_step, context or "unnamed")
        finally:
            denoiser.eval()
    return run.result


def _loop(denoiser, run, options, weights, save, checkpoint_every, progress, on_step, context) -> None:
    network, result, last = run.network, run.result, options.n_steps
    kept, anneal = {*options.keep_steps, last}, options.decay != "none" or options.warmup
    half = torch.autocast(run.running.device.type, torch.bfloat16)
    precision = half if options.precision == "bf16" else nullcontext()
    averaged, levels = _averaged(network), _levels(denoiser, options, run.running.device)
    bar = tqdm(total=last, initial=run.step, desc="training", disable=not progress, mininterval=1.0, leave=False)
    began, before = perf_counter(), result.seconds
    for step in range(run.step + 1, last + 1):
        x0, noise, t, label = run.draws()
        with precision:
            loss = denoiser.loss(x0, t, noise, options.weighting, label, levels(t)).mean()
        for weight in weights:
            weight.grad = None
        loss.backward()
        if options.grad_clip is not None:
            nn.utils.clip_grad_norm_(weights, options.grad_clip)
        for optimiser in run.optimisers:
            if anneal:
                optimiser.param_groups[0]["lr"] = options.rate(step)
            optimiser.step()
        for average in run.averages:
            average.update(averaged, step)
        run.running += loss.detach()
        run.step = step
        if step % LOG_EVERY == 0 or step == last:
            mean_loss = float(run.running) / ((step - 1) % LOG_EVERY + 1)
            if not math.isfinite(mean_loss):
                raise NonFiniteLossError(
                    f"loss is {mean_loss} within the {LOG_EVERY} steps up to step {step} of {last}; "
                    f"lower learning_rate = {options.learning_rate} or set grad_clip. Run: {context}"
                )
            result.losses.append(mean_loss)
            run.running.zero_()
            bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
        if step in kept:
            state = _copy(network.state_dict())
            if not all(w.isfinite().all() for w in state.values()):
                raise NonFiniteLossError(
                    f"a weight is not finite at step {step} of {last}; "
                    f"lower learning_rate = {options.learning_rate} or set grad_clip. Run: {context}"
                )
            result.weights[step] = state
            for average, states in zip(run.averages, result.by_width.values(), strict=True):
                states[step] = {**state, **_copy(average.weights)}
        if save is not None and (step % checkpoint_every == 0 or step == last):
            result.seconds = before + perf_counter() - began
            save()
        bar.update(1)
        if on_step is not None:
            on_step(step)
    bar.close()
    result.seconds = before + perf_counter() - began


def _levels(denoiser: Denoiser, options: Options, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`Denoiser.levels` of a minibatch's times: from a table where they are whole, computed where they are not."""
    if options.times != "uniform" or not isinstance(denoiser.schedule, DiscreteSchedule):
        return lambda t: denoiser.levels(t, options.weighting, checked=False)
    every = torch.arange(1, denoiser.schedule.t_max + 1, dtype=torch.float64)
    table = denoiser.levels(every, options.weighting).to(device)
    return lambda t: table.index_select(0, t.long() - 1)


def _averaged(network: nn.Module) -> State:
    """The weights that are averaged: floating parameters, under every name they have."""
    return {k: w for k, w in network.named_parameters(remove_duplicate=False) if w.is_floating_point()}


def _copy(state: State) -> State:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}


def _checked(points: Tensor, labels: Tensor | None, network: nn.Module, options: Options):
    if points.ndim < 2 or len(points) == 0:
        raise ValueError(f"points have shape {tuple(points.shape)}; need (n, *shape) with n at least 1")
    if not torch.isfinite(points).all():
        raise ValueError(f"points hold {int((~torch.isfinite(points)).sum())} values that are NaN or infinite")
    n_classes = getattr(network, "n_classes", 0)
    if labels is None:
        if options.flip or options.label_dropout:
            name = "flip" if options.flip else "label_dropout"
            raise ValueError(f"{name} = {getattr(options, name)} needs labels; pass the classes of the points")
        return points, None
    if labels.shape != (len(points),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; need one integer for each of the "
            f"{len(points)} points"
        )
    if not n_classes and (options.label_dropout or not options.flip):
        raise ValueError("this network has no classes; build it with n_classes, or leave labels out")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (n_classes and high >= n_classes):
        raise ValueError(f"labels span {low}..{high}; need 0..{n_classes - 1} for n_classes = {n_classes}")
    if options.shared_targets > 1 and n_classes:
        raise ValueError(
            f"shared_targets = {options.shared_targets} means over points of all classes; choose 1 for a network with "
            "classes"
        )
    if options.flip and points.ndim != 4:
        raise ValueError(f"flip = {options.flip} mirrors pictures (n, c, h, w); points have {tuple(points.shape)}")
    return points, labels.to(torch.int64)
