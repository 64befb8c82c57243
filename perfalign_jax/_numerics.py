"""The numerical policy, stated once.

- Matrix products run at the highest precision the backend has: tf32 and bf16 passes lose the
  null space.
- A singular value counts as zero when it is at most ``rounding`` times the largest; there is no
  other cut-off in the package.
- Signs: in every row of a projection the entry of largest magnitude is positive.
- The dtype is the data's own; nothing here casts.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = ["compress", "flip_signs", "matmul", "multiply_on_host", "rank_cutoff", "rounding"]
__all__ += ["to_common_scale"]

_BLOCK = 8 * 2**20  # bytes of rows that are at work at once: they stay in the cache


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Matrix product at the highest precision of the backend."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def multiply_on_host(
    views: Sequence[Float[np.ndarray, "n _"]],
    weights: Float[np.ndarray, " n"] | None = None,
    *,
    center: bool = False,
) -> Float[np.ndarray, "d d"]:
    """Products of all features of all views, summed over the rows, by BLAS.

    Args:
        views: shapes ``(n, d_m)``.
        weights: of the rows, shape ``(n,)``; 1 if not given.
        center: remove the weighted means first.
    """
    n, d, dtype = len(views[0]), sum(x.shape[1] for x in views), views[0].dtype
    total = np.zeros((d, d), dtype)
    edges = np.cumsum([0, *(x.shape[1] for x in views)])
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    if weights is None and not center:  # the rows as they lie there
        for i, a in enumerate(views):
            total[spans[i], spans[i]] = a.T @ a
            for j in range(i + 1, len(views)):
                total[spans[i], spans[j]] = a.T @ views[j]
                total[spans[j], spans[i]] = total[spans[i], spans[j]].T
        return total
    mean = np.zeros(d, dtype)
    if center:
        w = np.ones(n, dtype) if weights is None else weights
        mean = np.concatenate([w @ x for x in views]) / max(w.sum(), np.finfo(dtype).tiny)
    step = max(1, _BLOCK // (d * dtype.itemsize))
    drift = np.zeros(d, dtype)
    for start in range(0, n, step):
        x = np.concatenate([v[start : start + step] for v in views], axis=1)
        x -= mean
        roots = None if weights is None else np.sqrt(weights[start : start + step])
        if roots is not None:
            x *= roots[:, None]
        drift += x.sum(axis=0) if roots is None else roots @ x
        total += x.T @ x
    if center:  # what rounding of the mean left in
        weight = n if weights is None else max(weights.sum(), np.finfo(dtype).tiny)
        total -= np.outer(drift, drift) / weight
    return total


def rounding(
    dtype: jnp.dtype,
    samples: ArrayLike,
    features: int,
    *,
    common: ArrayLike = 0.0,
    coarsest: ArrayLike = 0.0,
) -> Float[Array, ""]:
    """Share of the largest singular value that rounding alone can give to another one.

    The factorisation of ``(n, d)`` data is that of data changed by about ``d eps`` of its norm
    (Higham, 2002, Section 19.3). The entries themselves are rounded to ``eps / 2``: ``n d``
    independent errors of entries of size ``a`` make a matrix of norm
    ``eps a (sqrt(n) + sqrt(d))``, beside a largest singular value of at least ``a sqrt(n)``. Sums
    over ``n`` terms add errors that grow like ``sqrt(n)``. Together ``eps (d + sqrt(n))``: the
    customary ``eps max(n, d)`` would cut a million float32 samples at a tenth of the largest.

    Args:
        dtype: in which it is computed.
        samples: number of samples ``n``.
        features: number of features ``d``.
        common: energy of the mean over that of the spread, ``W |mean|^2 / sum_i w_i |x_i|^2``,
            where the mean has been removed: what was rounded is the data with its mean.
        coarsest: eps of the coarsest dtype the data came in, where that is not ``dtype``. Its
            errors alone make ``2 eps (1 + sqrt(d / n))`` of the largest, by the same argument.
    """
    n = jnp.maximum(jnp.asarray(samples, dtype), 1)
    eps = jnp.finfo(dtype).eps
    own = eps * (features + jnp.sqrt(n)) * jnp.sqrt(1 + jnp.asarray(common, dtype))
    coarse = jnp.minimum(2 * coarsest * (1 + jnp.sqrt(features / n)), 0.5)
    return jnp.where(coarsest > eps, jnp.maximum(own, coarse), own).astype(dtype)


def rank_cutoff(
    singular_values: Float[Array, " r"], shape: tuple[ArrayLike, int]
) -> Float[Array, ""]:
    """Return the value at or below which a singular value of ``(n, d)`` data counts as zero."""
    largest = jnp.max(singular_values, initial=0)
    return rounding(singular_values.dtype, *shape) * largest


@jax.custom_jvp
def compress(stacked: Float[Array, "r d"]) -> Float[Array, "m d"]:
    """Return at most ``d`` rows with the same Gram matrix: the R of a QR, if there are more.

    Every solver depends on the rows through their Gram matrix alone, so the derivative may be any
    lift of the Gram matrix's: with ``Y = Q R``, ``dR = Q' dY`` gives
    ``dR' R + R' dR = dY' Y + Y' dY`` and is finite where ``R`` is singular, as it is in every
    perfectly alignable problem. It is a first derivative only.
    """
    rows, columns = stacked.shape
    if rows <= columns:
        return stacked
    return jnp.linalg.qr(stacked, mode="r")


@compress.defjvp
def _compress_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (stacked,), (tangent,) = primals, tangents
    if stacked.shape[0] <= stacked.shape[1]:
        return stacked, tangent
    q, r = jnp.linalg.qr(stacked)
    return r, matmul(q.T, tangent)


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
