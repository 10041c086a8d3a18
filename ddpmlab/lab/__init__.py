"""The laboratory: experiments as data, stages whose results lie in a store, and many of them side by side."""

from ddpmlab.lab import recipes
from ddpmlab.lab.config import Experiment, Training, limit
from ddpmlab.lab.runner import COLUMNS, Run, over_seeds, run_all
from ddpmlab.lab.scores import SCORES, Score
from ddpmlab.lab.stages import reference, remembered, sample, score, train, trained, truth
from ddpmlab.lab.store import Store, default

__all__ = [
    "COLUMNS",
    "SCORES",
    "Experiment",
    "Run",
    "Score",
    "Store",
    "Training",
    "default",
    "limit",
    "over_seeds",
    "recipes",
    "reference",
    "remembered",
    "run_all",
    "sample",
    "score",
    "train",
    "trained",
    "truth",
]
