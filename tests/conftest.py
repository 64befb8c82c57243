"""What every test shares: strict array promotion and a 64-bit switch."""

import os

import jax
import numpy as np
import pytest

# Nearly all of the tests' time is compilation of programs that run once. Not level 0: with it
# jaxlib 0.10.2 compiles some gradients of layer normalisation into NaN.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Turn JAX's 64-bit mode on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator: tests draw their data outside JAX."""
    return np.random.default_rng(20250319)
