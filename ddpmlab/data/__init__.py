"""What is learned: point-cloud laws with exact answers (`laws`)."""

from ddpmlab.data.laws import LAWS, GaussianMixture, Helix, Law, Sin55, Split, TwoMoons

make = LAWS.make

__all__ = ["LAWS", "GaussianMixture", "Helix", "Law", "Sin55", "Split", "TwoMoons", "make"]
