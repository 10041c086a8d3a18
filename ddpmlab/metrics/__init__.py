"""Scores: functions of two samples that return floats (`distances`, `two_sample`), measures against the exact denoiser
(`likelihood`), and what a score means (`calibration`)."""

from ddpmlab.metrics.calibration import calibrate, fresh_test
from ddpmlab.metrics.distances import course_nll, emd, energy_distance, mmd2, sliced_wasserstein
from ddpmlab.metrics.two_sample import c2st, neighbourhood, permutation_test

__all__ = [
    "c2st",
    "calibrate",
    "course_nll",
    "emd",
    "energy_distance",
    "fresh_test",
    "mmd2",
    "neighbourhood",
    "permutation_test",
    "sliced_wasserstein",
]
