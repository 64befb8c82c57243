"""Perfect multimodal alignment in closed form, in JAX.

Two modalities see the same things. ``fit`` finds one linear map per modality into a shared latent
space in which both views of the same thing coincide; ``diagnose`` says how well that can work, and
the metrics whether it did.
"""

from perfalign_jax import (
    baselines,
    contrastive,
    gauge,
    metrics,
    statistics,
    sweeps,
    synthetic,
    theory,
)
from perfalign_jax.diagnosis import diagnose
from perfalign_jax.metrics import (
    cmae,
    effective_rank,
    latent_energy,
    linear_cka,
    mlre,
    mlre_affine,
    ncmae,
    relative_cmae,
)
from perfalign_jax.neighbours import mutual_knn, retrieval
from perfalign_jax.serialization import load, save
from perfalign_jax.solver import encode, fit, predict, transform
from perfalign_jax.types import (
    Alignment,
    CollapseWarning,
    Diagnosis,
    OverfitWarning,
    PrecisionWarning,
)

__version__ = "0.1.0"
__all__ = [
    "Alignment",
    "CollapseWarning",
    "Diagnosis",
    "OverfitWarning",
    "PrecisionWarning",
    "baselines",
    "cmae",
    "contrastive",
    "diagnose",
    "effective_rank",
    "encode",
    "fit",
    "gauge",
    "latent_energy",
    "linear_cka",
    "load",
    "metrics",
    "mlre",
    "mlre_affine",
    "mutual_knn",
    "ncmae",
    "predict",
    "relative_cmae",
    "retrieval",
    "save",
    "statistics",
    "sweeps",
    "synthetic",
    "theory",
    "transform",
]
