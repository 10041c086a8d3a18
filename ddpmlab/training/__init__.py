"""Training: `fit` minimises a denoiser's loss, as `Options` say, and returns what it kept as a `Fit`.

One generator draws batches, times and noise, and torch's own, set apart for the run, dropout; both travel in the
checkpoint, so that a seed fixes every bit on one machine and a run that was killed ends at the same weights as one that
was not.
"""

from ddpmlab.training.checkpoint import CheckpointError, Fit
from ddpmlab.training.ema import EMA, reconstruct_ema, sigma_rel_to_gamma
from ddpmlab.training.loop import LOG_EVERY, NonFiniteLossError, build_seeded, fit
from ddpmlab.training.options import DECAYS, DEVICES, OPTIMISERS, PRECISIONS, TIMES, Options

__all__ = [
    "DECAYS",
    "DEVICES",
    "EMA",
    "LOG_EVERY",
    "OPTIMISERS",
    "PRECISIONS",
    "TIMES",
    "CheckpointError",
    "Fit",
    "NonFiniteLossError",
    "Options",
    "build_seeded",
    "fit",
    "reconstruct_ema",
    "sigma_rel_to_gamma",
]
