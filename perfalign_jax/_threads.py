"""How scripts and tests run many small problems on a CPU without getting in their own way."""

import os
from importlib.metadata import version

import jax

__all__ = ["calm_threads"]


def calm_threads() -> None:
    """Run XLA and BLAS with one thread each, and XLA in the calling thread.

    For processes that vectorise small factorisations: more threads make those slower, and with
    jaxlib 0.10.2 a program now and then never finished, all of XLA's threads asleep. Its offloading
    of fusions to YNNPACK, new in that version, is known to hang and is turned off where it exists.
    Call it before anything is computed; what the user has set in the environment stays.
    """
    flags = "--xla_cpu_multi_thread_eigen=false"
    major, minor, patch = (int(part) for part in version("jaxlib").split(".")[:3])
    if (0, 10, 1) <= (major, minor, patch) < (0, 12, 0):
        flags += " --xla_cpu_experimental_ynn_fusion_type="
    os.environ.setdefault("XLA_FLAGS", flags)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    jax.config.update("jax_cpu_enable_async_dispatch", False)
