"""Backbones: networks of a scaled point and a conditioning number per point (`mlp`)."""

from ddpmlab.networks.mlp import MLP, NETWORKS, ResidualMLP

make = NETWORKS.make

__all__ = ["MLP", "NETWORKS", "ResidualMLP", "make"]
