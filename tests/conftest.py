"""What every test shares: strict promotion, a 64-bit switch, and one compilation cache."""

import os
from pathlib import Path

# Nearly all of the tests' time is compilation. One cache serves workers, sessions, and the
# subprocesses and notebooks that tests start; JAX reads these when it is imported.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# jaxlib's thread pool: with fewer cores a vectorised program may wait for ever.
os.environ.setdefault("NPROC", "16")

import jax
import jaxtyping
import numpy as np
import pytest

collect_ignore = ["smoke.py", "fuzz_with_atheris.py"]  # scripts


@pytest.fixture(autouse=True)
def _strict():
    """Nothing promotes by itself, neither ranks nor dtypes."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True)
def _wrong_on_purpose():
    """Shapes and types of every call are checked in doctests; tests call with wrong ones too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def promoting(_strict):
    """For what trains with Optax or Flax: they raise floats to the power of integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def x64():
    """Turn JAX's 64-bit mode on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded NumPy generator: tests draw their data outside JAX."""
    return np.random.default_rng(20250319)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Drop a module's compiled programs: thousands of them in one process crash XLA's compiler."""
    yield
    jax.clear_caches()
