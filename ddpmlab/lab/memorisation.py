r"""Learning the law or the sample: how far a network is from the exact denoiser of each.

The loss of a finite training set has one minimiser, the denoiser of the set itself (`EmpiricalDenoiser`), whose samples
are training points. The denoiser of the law is another. A network in training is near neither, and its path KL to each,

.. math:: \mathrm{KL}_{law} = \int \mathrm{SNR}\; E_{q}|D - D_{law}|^2\, d\lambda, \qquad
          \mathrm{KL}_{sample} = \int \mathrm{SNR}\; E_{\hat q}|D - D_{sample}|^2\, d\lambda,

on noisy points of the law and of the training set, says which of them it learns, and at which noise levels. What there
is to memorise is :math:`\mathrm{KL}_{sample}` of the law's own denoiser: the divergence of the blurred training set
from the blurred law at the first noise level.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from time import process_time
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ddpmlab import samplers
from ddpmlab.data.laws import Law
from ddpmlab.denoisers import Denoising, EmpiricalDenoiser, ExactDenoiser
from ddpmlab.lab import recipes
from ddpmlab.metrics.calibration import stream
from ddpmlab.metrics.distances import distance_blocks
from ddpmlab.metrics.likelihood import Estimate, Truth
from ddpmlab.schedules import Schedule
from ddpmlab.training import fit

COPY_RATIO = 1 / 3


@dataclass(frozen=True)
class Judges:
    """Both exact denoisers at equal noise levels, each on noisy points of its own.

    Attributes:
        law: on fresh points of the law.
        sample: on points of the training set.
    """

    law: Truth
    sample: Truth

    @classmethod
    def of(
        cls, law: Law, points: Tensor, schedule: Schedule, n: int = 1_000, n_levels: int = 24, seed: int = 0
    ) -> "Judges":
        """Draw `n` noisy points a level for each.

        Args:
            law: the law, in the units of `points`.
            points: the training set `(N, d)`; `n` of them are drawn with replacement, as training does.
            schedule: the forward process.
            n, n_levels, seed: of the draws.
        """
        generator, points = stream("training points to judge by", seed), points.double()
        chosen = points[torch.randint(len(points), (n,), generator=generator)]
        sample = Truth.at(chosen, EmpiricalDenoiser(points, schedule), n_levels, generator)
        own = stream("points of the law to judge by", seed)
        return cls(Truth.of(law, schedule, n_levels, n, own), sample)

    def path_kl(self, denoiser: Denoising) -> dict[str, Estimate]:
        """Path KL to `law` and to `sample`, in nats."""
        return {"law": self.law.path_kl(denoiser), "sample": self.sample.path_kl(denoiser)}

    def gaps(self, denoiser: Denoising) -> pd.DataFrame:
        r"""The integrands :math:`\mathrm{SNR}\,E|D - D^\ast|^2` by noise level: `noise_level`, `law`, `sample`."""
        levels = denoiser.schedule.noise_level(self.law.times)
        gaps = {name: getattr(self, name).gaps(denoiser).mean(1) for name in ("law", "sample")}
        return pd.DataFrame({"noise_level": levels, **gaps})


def training_set(law: Law, n: int, seed: int) -> Tensor:
    """`n` points of the law to learn from, `(n, d)`: another set for every seed."""
    return law.sample(n, stream("training set", seed))


def copies(x: Tensor, points: Tensor, ratio: float = COPY_RATIO) -> Tensor:
    """Which generated points are copies, `(n,)`: the distance to the nearest training point is below `ratio` times that
    to the second nearest.

    The rule of arXiv 2505.16959. In d dimensions a share of about `ratio**d` of all new points passes it too, so read
    it beside that of fresh points of the law.

    Raises:
        ValueError: fewer than 2 training points, or a ratio outside (0, 1).
    """
    if len(points) < 2 or not 0 < ratio < 1:
        raise ValueError(f"{len(points)} training points and ratio = {ratio}; need 2 points and 0 < ratio < 1")
    blocks = [d.topk(2, largest=False).values for _, d in distance_blocks(x.double(), points.double())]
    nearest, second = torch.cat(blocks).T
    return nearest < ratio * second


def curve(
    n_points: int,
    keep_steps: Iterable[int],
    seed: int = 0,
    dataset: str = "two_moons",
    n: int = 1_000,
    n_levels: int = 24,
    n_samples: int = 2_000,
    **changes: Any,
) -> pd.DataFrame:
    """Train the two-moons recipe on `n_points` points, a set of the seed's own, and judge it at several steps.

    Args:
        n_points: how many, N.
        keep_steps: optimiser steps at which to look; training ends at the last.
        seed: of training set, weights, batches, samples and judges.
        dataset: the law.
        n, n_levels: of the judges.
        n_samples: generated points for the copy share.
        changes: options of `recipes.two_moons`, such as `network={"width": 16}` or `decay="none"`. Where training
            keeps averages of the weights (`ema_sigma_rel`), the first of them is judged.

    Returns:
        Columns `dataset, n_points, seed, parameters, step, measure, noise_level, value, low, high`. The measures are
        `law` and `sample`, path KL in nats, or its integrand where there is a noise level; `copy_share` (NaN at the
        ends of its interval); and `seconds` of one core to train. Rows without a step are limits: the law's
        denoiser and the set's, each judged by the other (`sample` and `law`, and their integrands), and the copy share
        of fresh points.
    """
    keep_steps = sorted({int(step) for step in keep_steps})
    config = recipes.two_moons(keep_steps[-1], dataset=dataset, keep_steps=tuple(keep_steps), seed=seed, **changes)
    law, schedule = config.data, config.make_schedule()
    points = training_set(law, n_points, seed)
    denoiser, start = config.build(), process_time()
    result = fit(denoiser, points, options=config.training.options(n_points), seed=seed)
    seconds = process_time() - start
    judges, sampler = Judges.of(law, points, schedule, n, n_levels, seed), samplers.SAMPLERS.build(config.sampler)
    rows = []

    def note(step, measure, estimate, level=None):
        rows.append((step, measure, level, estimate.value, estimate.low, estimate.high))

    def note_copies(step, x):
        share = float(copies(x, points).double().mean())
        rows.append((step, "copy_share", None, share, None, None))

    def judge(step, measure, by):
        """Path KL and its integrand from one evaluation."""
        truth = getattr(judges, measure)
        gaps = truth.gaps(by)
        note(step, measure, Estimate.of(torch.trapezoid(gaps, schedule.noise_level(truth.times).log(), dim=0)))
        levels = schedule.noise_level(truth.times).tolist()
        rows.extend((step, measure, *pair, None, None) for pair in zip(levels, gaps.mean(1).tolist(), strict=True))

    judge(None, "law", EmpiricalDenoiser(points, schedule))
    judge(None, "sample", ExactDenoiser(law, schedule))
    note_copies(None, law.sample(n_samples, stream("fresh points beside copies", seed)))
    kept = result.averages or result.weights
    for step in keep_steps:
        denoiser.network.load_state_dict(kept[step])
        for measure in ("law", "sample"):
            judge(step, measure, denoiser)
        x = sampler.sample(denoiser, n_samples, seed=seed)
        note_copies(step, x[x.isfinite().all(1)])
    rows.append((keep_steps[-1], "seconds", None, seconds, None, None))
    table = pd.DataFrame(rows, columns=["step", "measure", "noise_level", "value", "low", "high"])
    parameters = sum(p.numel() for p in denoiser.parameters())
    head = {"dataset": dataset, "n_points": n_points, "seed": seed, "parameters": parameters}
    return pd.concat([pd.DataFrame(head, index=table.index), table.astype({"step": "Int64"})], axis=1)
