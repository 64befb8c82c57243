"""Perfect multimodal alignment in closed form, in JAX."""

from perfalign_jax import statistics
from perfalign_jax.serialization import load, save
from perfalign_jax.solver import diagnose, encode, fit, predict, transform
from perfalign_jax.types import (
    Alignment,
    CollapseWarning,
    Diagnosis,
    PrecisionWarning,
)

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "CollapseWarning",
    "Diagnosis",
    "PrecisionWarning",
    "diagnose",
    "encode",
    "fit",
    "load",
    "predict",
    "save",
    "statistics",
    "transform",
]
