"""From a half sleeve to a full one: networks that saw three quarters, and one that did not."""

from collections.abc import Iterator
from functools import cached_property

from torch import Tensor

from ddpmlab.data.dataset import Split
from ddpmlab.data.fashion_mnist import FashionMNIST
from ddpmlab.lab import Experiment, Run, recipes
from ddpmlab.metrics import sleeves
from ddpmlab.studies import register

HALF = {"name": "unet", "widths": [32, 64], "refine": 16, "n_classes": 10}
"""The U-Net of half the width."""
SAW, NEVER_SAW = "all tops", "none between 0.5 and 0.9"
"""Names of what a half-width network saw; `SAW` is every training picture, `NEVER_SAW` all but the tops whose sleeves
measure 0.5 to 0.9."""


class WithoutThreeQuarters(FashionMNIST):
    """FashionMNIST without the training tops whose sleeves measure 0.5 to 0.9; in the units of the whole set."""

    name = "fashion_mnist"

    @cached_property
    def _kept(self) -> Tensor:
        whole = FashionMNIST.split(FashionMNIST())
        return ~sleeves.withheld_mask(whole.train, whole.train_labels)

    @property
    def n_train(self) -> int:
        """Number of training pictures kept."""
        return int(self._kept.sum())

    def _split(self, mean: float, scale: float) -> Split:
        whole = FashionMNIST()._split(mean, scale)
        return Split(whole.train[self._kept], whole.test, whole.train_labels[self._kept], whole.test_labels)


def half_width(n_steps: int, withheld: bool, seed: int = 0, **changes) -> Experiment:
    """The half-width network on all pictures, or on those without three-quarter sleeves."""
    dataset = f"{__name__}:WithoutThreeQuarters" if withheld else "fashion_mnist"
    return recipes.fashion_mnist(n_steps, dataset=dataset, network=HALF, seed=seed, **changes)


@register
def interpolation(half_steps: int, half_seeds: int) -> Iterator[Run]:
    """The half-width network with and without three-quarter sleeves, and one picture of each class by each.

    Args:
        half_steps: optimiser steps of each; 0 for none.
        half_seeds: trainings of each.
    """
    sampler = {"name": "dpmpp_2m", "n_steps": 12}
    for withheld, name in ((False, SAW), (True, NEVER_SAW)):
        for seed in range(half_seeds if half_steps else 0):
            config = half_width(half_steps, withheld, seed, sampler=sampler, n_samples=10, metrics=())
            yield Run(name, config, None, {"seen": name})
