"""Datasets: what is learned, whatever the shape of a point. A law (`laws`) is one with a density."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from ddpmlab.registry import Registry

DATASETS = Registry("dataset")
make = DATASETS.make


class Split(NamedTuple):
    """The fixed training and test points of a dataset, each `(n, *shape)`; labels `(n,)` int64 where there are any."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


class Dataset(ABC):
    """Points to learn, in their own units.

    Attributes:
        name: the name it is registered under.
        shape: shape of a point, `(3,)` or `(1, 28, 28)`.
        n_train: points of the fixed split to train on.
        n_test: points of it to compare with.
    """

    name: str
    shape: tuple[int, ...]
    n_train: int
    n_test: int

    @property
    def dim(self) -> int:
        """How many numbers a point has."""
        return math.prod(self.shape)

    @abstractmethod
    def split(self) -> Split:
        """The fixed training and test sets."""

    @abstractmethod
    def standardised(self) -> "Dataset":
        """The same points in units of the training set's mean and standard deviation: what networks see."""

    def to_own_units(self, x: Tensor) -> Tensor:
        """Map points `(n, *shape)` of this dataset to the units they were measured in; here these are the same."""
        return x
