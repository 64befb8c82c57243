"""jaxlib's CPU client waits for itself where its pool has few threads: the smallest program.

Command:  NPROC=2 python experiments/benchmarks/thread_pool.py [rounds]
Time:     a few seconds where it ends
Expect:   with NPROC=2 (or two cores and no NPROC) jaxlib 0.10.2 hangs, all threads asleep; with
          NPROC=16 it prints how many rounds it did.

A batched LAPACK call hands its parts to the pool that it runs in itself, and waits for them there.
Two independent calls in one program occupy both threads of a pool of two, and no thread is left for
the parts of either.
"""

import sys

import jax
import jax.numpy as jnp


def main(rounds: int) -> None:
    # None depends on another, so that XLA runs them at the same time.
    run = jax.jit(jax.vmap(lambda x: [jnp.linalg.svd(x + i) for i in range(32)]))
    x = jax.random.normal(jax.random.key(0), (512, 6, 4))
    for _ in range(rounds):
        jax.block_until_ready(run(x))
    print(f"{rounds} rounds done")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
