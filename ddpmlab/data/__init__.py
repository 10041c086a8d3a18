"""What is learned: point-cloud laws with exact answers (`laws`) and pictures (`fashion_mnist`)."""

from ddpmlab.data.dataset import DATASETS, Dataset, Split, make
from ddpmlab.data.fashion_mnist import DamagedFile, DataUnavailable, FashionMNIST, export_npy, fetch
from ddpmlab.data.laws import GaussianMixture, Helix, Law, Sin55, TwoMoons

__all__ = [
    "DATASETS",
    "DamagedFile",
    "DataUnavailable",
    "Dataset",
    "FashionMNIST",
    "GaussianMixture",
    "Helix",
    "Law",
    "Sin55",
    "Split",
    "TwoMoons",
    "export_npy",
    "fetch",
    "make",
]
