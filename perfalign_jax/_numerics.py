"""The numerical policy, stated once.

- Matrix products run at the highest precision the backend has: tf32 and bf16 passes lose the
  null space.
- A singular value counts as zero when it is at most ``eps(dtype) * (d + sqrt(n)) * largest`` for
  ``n`` samples of ``d`` features. Rounding in the data and in the factorisation grows like the
  square root of ``n``; the usual ``max(n, d)`` would cut a float32 problem of a million samples at
  a tenth of its largest singular value.
- Signs: in every row of a projection the entry of largest magnitude is positive.
- The dtype is the data's own; nothing here casts.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = ["flip_signs", "matmul", "rank_cutoff", "to_common_scale"]


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Matrix product at the highest precision of the backend."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def rank_cutoff(
    singular_values: Float[Array, " r"], shape: tuple[ArrayLike, int]
) -> Float[Array, ""]:
    """Return the value at or below which a singular value of ``(n, d)`` data counts as zero."""
    if singular_values.shape[-1] == 0:
        return jnp.zeros((), singular_values.dtype)
    samples, features = shape
    eps = jnp.finfo(singular_values.dtype).eps
    size = features + jnp.sqrt(jnp.asarray(samples, singular_values.dtype))
    return eps * size * jnp.max(singular_values)


def flip_signs(rows: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Make the entry of largest magnitude of every row positive."""
    largest = jnp.take_along_axis(rows, jnp.argmax(jnp.abs(rows), axis=1, keepdims=True), axis=1)
    return rows * jnp.where(largest < 0, -1, 1).astype(rows.dtype)


def to_common_scale(x: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Multiply all by the power of two that brings the first to about one; nothing is rounded.

    No square of the first overflows or vanishes then.
    """
    exponent = -int(np.frexp(np.abs(x).max(initial=0))[1])
    return tuple(np.ldexp(value, exponent) for value in (x, *others))
