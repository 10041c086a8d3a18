"""Backbones of a scaled point, a conditioning number and a class: multilayer perceptrons, U-Net, transformer."""

from ddpmlab.networks.base import NETWORKS, flop
from ddpmlab.networks.mlp import MLP, ResidualMLP
from ddpmlab.networks.transformer import PatchTransformer
from ddpmlab.networks.unet import UNet

make = NETWORKS.make

__all__ = ["MLP", "NETWORKS", "PatchTransformer", "ResidualMLP", "UNet", "flop", "make"]
