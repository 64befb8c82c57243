"""What every test shares: strict array promotion and a 64-bit switch."""

import os

# XLA's thread pool can wedge on vectorised factorisations (seen with jaxlib 0.10.2), and small
# problems gain nothing from more threads: the tests run side by side instead.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import numpy as np
import pytest

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
