"""Scores: functions of two samples that return floats (`distances`), measures against the exact denoiser
(`likelihood`), and what a score means (`calibration`)."""

from ddpmlab.metrics.distances import emd

__all__ = ["emd"]
