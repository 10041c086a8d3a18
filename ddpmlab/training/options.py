r"""The options of training: one frozen list, each checked where it is set.

The step size after k of n steps is the base rate :math:`\eta` times a linear warm-up :math:`\min(1, k/w)` and a decay:
:math:`\tfrac12(1 + \cos\pi k/n)`, or :math:`1/\sqrt{\max(1, 8k/n)}` (Karras et al. 2024, section 2.3), or 1.
"""

import math
from dataclasses import asdict, field
from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ddpmlab.denoisers import WEIGHTINGS
from ddpmlab.training.ema import EMA

OPTIMISERS = ("adam", "adamw", "muon")
DECAYS = ("none", "cosine", "inverse sqrt")
TIMES = ("uniform", "log-normal", "log-normal, independent")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16")


def _check(name: str, value: Any, holds: bool, bound: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value}; {bound}")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Options:
    r"""How to train.

    Args:
        n_steps: optimiser steps. `fit` needs it; omitted, the length is settled later.
        batch_size: points per step; batches run through fresh permutations of the points.
        learning_rate: base of the step size, :math:`\eta`.
        decay: of the step size: `none`, `cosine` to zero, or `inverse sqrt` after an eighth of the run.
        warmup: steps over which the step size rises linearly to its base.
        optimiser: `adam`; `adamw` (with `weight_decay`); or `muon`: a weight matrix, those of the
            first and last layers included, moves by its averaged gradient made nearly orthogonal (Jordan et al. 2024,
            who leave these two to Adam), every other weight by Adam. Torch's defaults otherwise, without decay.
        weight_decay: of `adamw`; the others have none.
        grad_clip: largest norm of the gradient; no clipping if omitted.
        weighting: see `Denoiser.loss`.
        times: `uniform` over the schedule's times; `log-normal`: :math:`\ln\sigma/\alpha \sim N(m, s^2)` with
            (m, s) = `log_normal` (Karras et al. 2022, table 1); or `log-normal, independent`. The first, where time is
            continuous, and the second are stratified: the i-th of n draws lies in the i-th of n equally likely
            intervals (compare Kingma et al. 2021, appendix I.1). Levels beyond the schedule's are moved to its ends.
        log_normal: (m, s), mean and standard deviation of :math:`\ln\sigma/\alpha` for both log-normal `times`.
        ema_decay, ema_sigma_rel: keep an average of the weights of this constant decay or relative width, see `EMA`;
            or several, one per width. Two widths, kept at several steps, are enough for any other, see
            `reconstruct_ema`.
        keep_steps: steps at which to keep weights, besides the last.
        shared_targets: share what the minibatch knows: it falls into groups of this size, and the target of a noised
            point is no longer the point that it came from but the mean of its group given the noised point,
            :math:`\sum_i w_i x_i`, :math:`w_i \propto N(x_t; \alpha x_i, \sigma^2)` (after Xu et al. 2023, whose
            estimate has a bias that vanishes with its reference batch). Here any of the group may have been
            noised, so this is the conditional mean of the plain target: it has the same minimiser, and each target less
            variance (Rao-Blackwell), unless a group that spans two epochs holds a point twice, which matters where the
            batch is not far smaller than the training set. A divisor of `batch_size`; 1 is the plain target; networks
            with classes take no other.
        label_dropout: probability with which a label is replaced by "no class", for classifier-free guidance
            (Ho & Salimans 2022, algorithm 1).
        flip: classes whose pictures are mirrored left to right with probability 1/2.
        device: `cpu`, `cuda`, or `auto`: CUDA where there is one.
        precision: `fp32`; or `bf16`: the loss under autocast to bfloat16, weights and optimiser in float32.

    Raises:
        ValueError: names the option, its value and its bound.
    """

    n_steps: int | None = None
    batch_size: int = 1_024
    learning_rate: float = 1e-3
    decay: str = "none"
    warmup: int = 0
    optimiser: str = "adam"
    weight_decay: float = 0.01
    grad_clip: float | None = None
    weighting: str = "simple"
    times: str = "uniform"
    log_normal: tuple[float, float] = (-1.2, 1.2)
    ema_decay: float | tuple[float, ...] | None = None
    ema_sigma_rel: float | tuple[float, ...] | None = None
    keep_steps: tuple[int, ...] = field(default=())
    shared_targets: int = 1
    label_dropout: float = 0.0
    flip: tuple[int, ...] = field(default=())
    device: str = "auto"
    precision: str = "fp32"

    def __post_init__(self):
        for name, allowed in (
            ("weighting", WEIGHTINGS),
            ("optimiser", OPTIMISERS),
            ("decay", DECAYS),
            ("times", TIMES),
            ("device", DEVICES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of: {', '.join(allowed)}")
        last = math.inf if self.n_steps is None else self.n_steps
        mean, sd = self.log_normal
        _check("n_steps", self.n_steps, last >= 1, "train for at least 1 step")
        _check("batch_size", self.batch_size, self.batch_size >= 1, "a step needs at least 1 point")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "choose a finite rate above 0")
        _check("warmup", self.warmup, 0 <= self.warmup <= last, f"choose 0 to n_steps = {self.n_steps} steps")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "choose a finite value from 0 on")
        if self.grad_clip is not None:
            _check("grad_clip", self.grad_clip, 0 < self.grad_clip < math.inf, "choose a norm above 0, or leave it out")
        _check(
            "log_normal", self.log_normal, math.isfinite(mean) and 0 < sd < math.inf,
            "choose a finite mean and a standard deviation above 0, both of ln sigma/alpha",
        )  # fmt: skip
        outside = [k for k in self.keep_steps if not 1 <= k <= last]
        if outside:
            raise ValueError(
                f"keep_steps {outside} lie outside 1..{self.n_steps}; keep weights after a step of the run"
            )
        divides = self.shared_targets >= 1 and self.batch_size % self.shared_targets == 0
        _check(
            "shared_targets", self.shared_targets, divides, f"choose a divisor of batch_size = {self.batch_size}"
        )  # fmt: skip
        _check(
            "label_dropout", self.label_dropout, 0 <= self.label_dropout < 1, "choose a probability from 0 to below 1"
        )
        _check("flip", self.flip, all(k >= 0 for k in self.flip), "list classes, counted from 0")
        if self.ema_decay is not None and self.ema_sigma_rel is not None:
            raise ValueError(
                f"ema_decay = {self.ema_decay} and ema_sigma_rel = {self.ema_sigma_rel}; give one of the two"
            )
        _check("ema widths", self.widths, len({*self.widths}) == len(self.widths), "give each width once")
        self.averages({})

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths of the averages that training keeps, decays or relative widths; none without averages."""
        given = self.ema_decay if self.ema_sigma_rel is None else self.ema_sigma_rel
        return () if given is None else given if isinstance(given, tuple) else (given,)

    def averages(self, weights: dict[str, torch.Tensor]) -> list[EMA]:
        """Fresh averages of `weights`, one for each of `widths`."""
        kind = "decay" if self.ema_sigma_rel is None else "sigma_rel"
        return [EMA(weights, **{kind: width}) for width in self.widths]

    def optimisers(self, weights: list[torch.Tensor]) -> list[torch.optim.Optimizer]:
        """What moves `weights`: one optimiser, or, for Muon, one for the matrices and one for the others.

        Raises:
            ValueError: Muon, and there is no matrix among the weights, or torch is too old to have it.
        """
        if self.optimiser == "adamw":
            return [torch.optim.AdamW(weights, lr=self.learning_rate, fused=True, weight_decay=self.weight_decay)]
        matrices = [w for w in weights if w.ndim == 2] if self.optimiser == "muon" else []
        others = [w for w in weights if self.optimiser != "muon" or w.ndim != 2]
        found = [torch.optim.Adam(others, lr=self.learning_rate, fused=True)] if others else []
        if self.optimiser == "muon":
            if not matrices:
                raise ValueError("optimiser = 'muon', but the network has no matrix to train; choose adam or adamw")
            if not hasattr(torch.optim, "Muon"):
                raise ValueError(f"optimiser = 'muon' needs torch 2.9, and this is {torch.__version__}; choose adam")
            found.append(torch.optim.Muon(matrices, lr=self.learning_rate, weight_decay=0.0))
        return found

    def rate(self, step: int) -> float:
        """Step size at `step`, counted from 1 to `n_steps`."""
        rate = self.learning_rate * min(1.0, step / self.warmup) if self.warmup else self.learning_rate
        if self.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
        elif self.decay == "inverse sqrt":
            rate /= math.sqrt(max(1.0, step / (self.n_steps / 8)))
        return rate

    @property
    def torch_device(self) -> torch.device:
        """The device that `device` names on this machine.

        Raises:
            ValueError: CUDA is asked for where there is none.
        """
        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise ValueError("device = 'cuda', but torch finds no CUDA device here; choose device = 'auto' or 'cpu'")
        return torch.device("cpu" if self.device == "cpu" or not there else "cuda")

    def effective(self) -> dict[str, Any]:
        """The options that the result depends on: those without effect beside the others are left out."""
        chosen = asdict(self)
        if self.optimiser != "adamw":
            del chosen["weight_decay"]
        if self.times == "uniform":
            del chosen["log_normal"]
        if self.shared_targets == 1:
            del chosen["shared_targets"]
        chosen["keep_steps"] = sorted({*self.keep_steps, *([self.n_steps] if self.n_steps else [])})
        chosen["flip"] = sorted({*self.flip})
        return chosen
