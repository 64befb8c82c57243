"""Perfect multimodal alignment in closed form, in JAX.

Two or more modalities see the same things. ``fit`` finds one linear map per modality into a shared
latent space in which all views of the same thing coincide; ``diagnose`` says how well that can
work, and the metrics whether it did. ``align`` is the alignment for one's own data: everything
chosen on held-out rows, with evidence for every pair. A module is imported on its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfalign_jax import (
        baselines,
        contrastive,
        gauge,
        kernels,
        lift,
        metrics,
        sharded,
        significance,
        statistics,
        streaming,
        sweeps,
        synthetic,
        theory,
    )
    from perfalign_jax.automatic import align
    from perfalign_jax.diagnosis import diagnose
    from perfalign_jax.evidence import log_odds, search
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

_HOMES = {
    "automatic": "align",
    "evidence": "log_odds search",
    "diagnosis": "diagnose",
    "metrics": "cmae effective_rank latent_energy linear_cka mlre mlre_affine ncmae relative_cmae",
    "neighbours": "mutual_knn retrieval",
    "serialization": "load save",
    "solver": "encode fit predict transform",
    "types": "Alignment CollapseWarning Diagnosis OverfitWarning PrecisionWarning",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Alignment",
    "CollapseWarning",
    "Diagnosis",
    "OverfitWarning",
    "PrecisionWarning",
    "align",
    "baselines",
    "cmae",
    "contrastive",
    "diagnose",
    "effective_rank",
    "encode",
    "fit",
    "gauge",
    "kernels",
    "latent_energy",
    "lift",
    "linear_cka",
    "load",
    "log_odds",
    "metrics",
    "mlre",
    "mlre_affine",
    "mutual_knn",
    "ncmae",
    "predict",
    "relative_cmae",
    "retrieval",
    "save",
    "search",
    "sharded",
    "significance",
    "statistics",
    "streaming",
    "sweeps",
    "synthetic",
    "theory",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        metadata = importlib.import_module("importlib.metadata")
        try:
            return metadata.version("perfalign-jax")
        except metadata.PackageNotFoundError:  # files on the path that were never installed
            return "0+unknown"
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOME:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
