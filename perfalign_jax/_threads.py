"""A thread pool in which XLA's own calls cannot wait for each other for ever."""

import os

__all__ = ["widen_pool"]

_THREADS = 16


def widen_pool() -> None:
    """Give XLA's CPU client at least 16 threads, unless ``NPROC`` is set.

    jaxlib hands the parts of a batched LAPACK call (a vmapped ``svd`` or ``qr``) to the pool that
    the call itself runs in, and waits for them there. On a machine with two cores the pool has two
    threads, and two such calls at the same time wait for ever (seen with jaxlib 0.10.2, all threads
    asleep in ``ParallelBatchMap``). With more threads than calls at a time, the parts always find a
    free one. It takes effect if it comes before the first use of JAX's CPU client.
    """
    if (os.cpu_count() or 1) < _THREADS:
        os.environ.setdefault("NPROC", str(_THREADS))
