"""From a half sleeve to a full one: networks that saw three quarters, and one that did not."""

from functools import cached_property

from torch import Tensor

from ddpmlab.data.dataset import Split
from ddpmlab.data.fashion_mnist import FashionMNIST
from ddpmlab.lab import Experiment, recipes
from ddpmlab.metrics import sleeves

HALF = {"name": "unet", "widths": [32, 64], "refine": 16, "n_classes": 10}
"""The U-Net of half the width."""


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
