"""Backbones: networks of a scaled point, a conditioning number and a class per point (`mlp`)."""

from ddpmlab.networks.base import NETWORKS, flop
from ddpmlab.networks.mlp import MLP, ResidualMLP

make = NETWORKS.make

__all__ = ["MLP", "NETWORKS", "ResidualMLP", "flop", "make"]
