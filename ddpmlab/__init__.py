"""What makes a small diffusion model good: the library behind the book.

The nouns, by name: datasets and laws (`data`), forward processes (`schedules`), backbones (`networks`), estimates of
the clean point (`Denoiser`, `ExactDenoiser`, `EmpiricalDenoiser`, `Guided`), reverse processes (`samplers`), training
(`fit`) and scores (`metrics`). The laboratory above them, experiments and their store, is `ddpmlab.lab`.
"""

from importlib.metadata import PackageNotFoundError, version

from ddpmlab import data, metrics, networks, samplers, schedules
from ddpmlab.denoisers import Denoiser, EmpiricalDenoiser, ExactDenoiser, Guided
from ddpmlab.training import fit

try:
    __version__ = version("ddpmlab")
except PackageNotFoundError:  # the sources, not installed
    __version__ = "unknown"

__all__ = [
    "Denoiser",
    "EmpiricalDenoiser",
    "ExactDenoiser",
    "Guided",
    "__version__",
    "data",
    "fit",
    "metrics",
    "networks",
    "samplers",
    "schedules",
]
