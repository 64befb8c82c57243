"""The numerical policy, stated once.

- Matrix products run at the highest precision the backend has: tf32 and bf16 passes lose the
  null space.
- A singular value counts as zero when it is at most ``rounding`` times the largest; there is no
  other cut-off in the package.
- Signs: in every row of a projection the entry of largest magnitude is positive.
- The dtype of a result is the data's own.

Where all arrays are NumPy's a function runs as it is, on the host's BLAS, and nothing is compiled:
compiling takes longer than most work on a CPU. One text serves both: ``namespace`` says whose
functions to call, ``compiled`` stands for ``jit``, ``over`` and ``repeat`` for XLA's loops.

That BLAS is NumPy's. SciPy brings one of its own, and the threads of each keep a core busy for a
while after every call, in case there is another: short work that goes from one to the other and
back takes twice as long. SciPy does what NumPy cannot, and large decompositions: NumPy's copy what
they are given, and in float64.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = [
    "at_hand",
    "compiled",
    "compress",
    "cores",
    "eigh",
    "flip_signs",
    "is_staged",
    "matmul",
    "namespace",
    "on_host",
    "over",
    "rank_cutoff",
    "reflect",
    "repeat",
    "rounding",
    "sigmoid",
    "solve_lower",
    "solve_upper",
    "to_common_scale",
]

_LARGE = 4 * 2**20  # entries of a matrix of which another copy counts
_SMALL = 32  # size of half a triangle that is solved as a whole
_Function = TypeVar("_Function", bound=Callable[..., Any])


def namespace(array: Any) -> Any:
    """``numpy`` for its own arrays, with which nothing is compiled; else ``jax.numpy``."""
    return np if isinstance(array, np.ndarray | np.generic) else jnp


def at_hand(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """As arrays of NumPy, if all are the host's to compute, and of JAX otherwise; not copied."""
    return tuple(map(np.asarray if all(map(on_host, arrays)) else jnp.asarray, arrays))


def is_staged() -> bool:
    """Whether a program is traced right now, which turns all that JAX computes into its parts."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def on_host(array: Any) -> bool:
    """Whether an array is the host's to compute: it lies there, and NumPy's would stay there."""
    if namespace(array) is np:
        chosen = getattr(jax.config, "jax_default_device", None)
        return (getattr(chosen, "platform", chosen) or jax.default_backend()) == "cpu"
    return not isinstance(array, jax.core.Tracer) and all(
        device.platform == "cpu" for device in array.devices()
    )


def compiled(*static: str) -> Callable[[_Function], _Function]:
    """Compile a function with ``jit``; where all its arrays are NumPy's, run it as it is."""

    def wrap(function: _Function) -> _Function:
        jitted = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            arrays = [a for a in jax.tree.leaves((args, kwargs)) if hasattr(a, "dtype")]
            if not arrays or not all(namespace(a) is np for a in arrays):
                return jitted(*args, **kwargs)
            with np.errstate(all="ignore"):  # as XLA does
                return function(*args, **kwargs)

        return cast(_Function, call)

    return wrap


def cores() -> int:
    """How many cores this process may use."""
    return len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))


def over(function: Callable[..., Any], *arrays: Any) -> Any:
    """Map over the leading axis and stack what comes out."""
    if namespace(arrays[0]) is np:
        found = [function(*parts) for parts in zip(*arrays, strict=True)]
        return jax.tree.map(lambda *each: np.stack(each), *found)
    return jax.lax.map(lambda parts: function(*parts), arrays)


def repeat(count: int, step: Callable[[Any], Any], start: Any) -> Any:
    """Take a step so many times."""
    if all(namespace(a) is np for a in jax.tree.leaves(start)):
        for _ in range(count):
            start = step(start)
        return start
    return jax.lax.fori_loop(0, count, lambda _, state: step(state), start)


def sigmoid(x: Float[Any, "..."]) -> Float[Any, "..."]:
    """The logistic function."""
    return 1 / (1 + np.exp(-x)) if namespace(x) is np else jax.nn.sigmoid(x)


def matmul(a: Float[Any, "..."], b: Float[Any, "..."]) -> Float[Any, "..."]:
    """Matrix product at the highest precision of the backend; of NumPy arrays by its BLAS."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.matmul(a, b)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def eigh(
    matrix: Float[Any, "d d"], last: int | None = None
) -> tuple[Float[Any, " k"], Float[Any, "d k"]]:
    """Eigenvalues, smallest first, and eigenvectors; of the last ones alone if a number is given.

    The matrix may have made place for them.
    """
    d = len(matrix)
    if namespace(matrix) is np and matrix.size > _LARGE:
        few: Any = {"driver": "evd"}
        if last is not None:
            few = {"subset_by_index": (d - last, d - 1)}
        # Symmetric, so its transpose is what LAPACK takes without a copy.
        return scipy.linalg.eigh(matrix.T, overwrite_a=True, check_finite=False, **few)
    values, vectors = namespace(matrix).linalg.eigh(matrix)
    return (values, vectors) if last is None else (values[d - last :], vectors[:, d - last :])


def solve_lower(
    lower: Float[np.ndarray, "d d"], columns: Float[np.ndarray, "d c"]
) -> Float[np.ndarray, "d c"]:
    """``L^-1 C`` of a lower triangle, by halves: all but small triangles is products."""
    half = len(lower) // 2
    if half < _SMALL:
        return np.linalg.solve(lower, columns)
    top = solve_lower(lower[:half, :half], columns[:half])
    rest = columns[half:] - lower[half:, :half] @ top
    return np.concatenate([top, solve_lower(lower[half:, half:], rest)])


def solve_upper(
    upper: Float[np.ndarray, "d d"], columns: Float[np.ndarray, "d c"]
) -> Float[np.ndarray, "d c"]:
    """``U^-1 C`` of an upper triangle, as ``solve_lower`` from the other end."""
    half = len(upper) // 2
    if half < _SMALL:
        return np.linalg.solve(upper, columns)
    bottom = solve_upper(upper[half:, half:], columns[half:])
    rest = columns[:half] - upper[:half, half:] @ bottom
    return np.concatenate([solve_upper(upper[:half, :half], rest), bottom])


def reflect(
    columns: Float[Any, "d r"],
) -> tuple[Float[Any, "r r"], Callable[[Float[Any, "r s"], int], Float[Any, "d k"]]]:
    """R of the QR of fewer columns than rows, and a function of the whole Q.

    Of ``s`` columns and a number, ``(top, count)``, it gives Q times the columns, zero below the
    first ``r`` rows, and beside it the last ``count`` columns of Q.
    """
    d, r = columns.shape
    if namespace(columns) is not np:
        raw, taus = jnp.linalg.qr(columns, mode="raw")

        def turn(top: Float[Any, "r s"], count: int) -> Float[Any, "d k"]:
            below = jnp.zeros((d - r, top.shape[1]), top.dtype)
            lasts = jnp.eye(d, count, count - d, dtype=top.dtype)
            others = jnp.concatenate([jnp.concatenate([top, below]), lasts], axis=1)
            return jax.lax.linalg.ormqr(raw.T, taus, others)

        return jnp.triu(raw.T[:r]), turn
    if columns.size > _LARGE:
        (held, sizes), _ = scipy.linalg.qr(columns, mode="raw", check_finite=False)
    else:
        transposed, sizes = np.linalg.qr(columns, mode="raw")
        held = transposed.T
    vectors = np.tril(held, -1)
    vectors[np.diag_indices(r)] = 1
    vectors *= sizes != 0  # no reflection
    # Q = I - V T V' with T the inverse of a triangle of V'V (Joffrain et al., 2006).
    inner = np.triu(vectors.T @ vectors, 1)
    inner[np.diag_indices(r)] = 1 / np.where(sizes != 0, sizes, 1)

    def turn_here(top: Float[Any, "r s"], count: int) -> Float[Any, "d k"]:
        seen = np.concatenate([vectors[:r].T @ top, vectors[d - count :].T], axis=1)
        found = -vectors @ solve_upper(inner, seen)
        found[:r, : top.shape[1]] += top
        found[np.arange(d - count, d), np.arange(count) + top.shape[1]] += 1
        return found

    return np.triu(held[:r]), turn_here


@functools.partial(jax.jit, static_argnames=("dtype",))
def rounding(
    dtype: jnp.dtype,
    samples: ArrayLike,
    features: ArrayLike,
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
    singular_values: Float[Any, " r"], shape: tuple[ArrayLike, int]
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


def flip_signs(rows: Float[Any, "k d"]) -> Float[Any, "k d"]:
    """Make the entry of largest magnitude of every row positive, the first of equal ones."""
    if namespace(rows) is np:  # in the order in which they lie there, without their magnitudes
        low, high = rows.min(axis=1), rows.max(axis=1)
        negative = -low > high
        for row in np.flatnonzero(-low == high):
            negative[row] = rows[row, np.abs(rows[row]).argmax()] < 0
        return rows * np.where(negative, -1, 1).astype(rows.dtype)[:, None]
    largest = jnp.take_along_axis(rows, jnp.argmax(jnp.abs(rows), axis=1, keepdims=True), axis=1)
    return rows * jnp.where(largest < 0, -1, 1).astype(rows.dtype)


def to_common_scale(x: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Multiply all by the power of two that brings the first to about one; nothing is rounded.

    No square of the first overflows or vanishes then.
    """
    exponent = -int(np.frexp(np.abs(x).max(initial=0))[1])
    return tuple(np.ldexp(value, exponent) for value in (x, *others))
