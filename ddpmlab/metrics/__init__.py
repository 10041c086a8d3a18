"""Scores: functions of two samples that return floats (`distances`), and what they mean (`calibration`)."""

from ddpmlab.metrics.distances import emd

__all__ = ["emd"]
