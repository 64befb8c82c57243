"""The mergeable statistics of paired views: the data is read once, into one of these.

Two kinds hold the same information about ``[1, X1, X2]``:

- ``Factor``: the total weight, the means, and an R factor of the centred views. Together they are
  the R factor of ``[1, X1, X2]``: its first row is ``sqrt(weight) * [1, means]``, and below it
  stands exactly the R factor of the centred data. Keeps every digit of the data.
- ``Gram``: the total weight, the means, and the centred scatter matrix. Cheaper, but it squares
  the condition number: singular values below ``sqrt(eps)`` of the largest are lost, and so are
  gradients where the views are rank-deficient (they come out NaN; a ``Factor`` has them).

Both merge in any order and any batch sizes, and serve centred and uncentred solvers alike. The
means are kept apart from the factor, and merged by the pairwise update of Chan, Golub & LeVeque
(1983), so that a large common mean costs no digits.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from perfalign_jax import _checks
from perfalign_jax._numerics import matmul
from perfalign_jax.types import Views

__all__ = [
    "Factor",
    "Gram",
    "as_statistic",
    "from_views",
    "init",
    "means",
    "merge",
    "rows",
    "total_weight",
    "update",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factor:
    """The R factor of ``[1, X1, X2]``, split into its first row and what stands below it.

    Attributes:
        weight: total weight of the samples, their number when unweighted.
        means: weighted means, shapes ``(d1,)`` and ``(d2,)``.
        blocks: shapes ``(r, d1)`` and ``(r, d2)`` with ``r = min(n - 1, d1 + d2)``; side by side
            they have the same Gram matrix as the centred data. Triangular only once there are more
            samples than features; before that the rows are the centred data in a rotated order.
        samples: number of samples seen, with or without weight.
        empty: whether no sample has been seen.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> state = pa.statistics.from_views((x, x))
        >>> [block.shape for block in state.blocks], float(state.weight)
        ([(4, 2), (4, 2)], 6.0)
    """

    weight: Float[Array, "..."]
    means: tuple[Float[Array, "... _"], ...]
    blocks: tuple[Float[Array, "... r _"], ...]
    samples: Int[Array, "..."]
    empty: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        return tuple(block.shape[-1] for block in self.blocks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gram:
    """The means and the centred scatter matrix of ``[X1, X2]``.

    Attributes:
        weight: total weight of the samples, their number when unweighted.
        means: weighted means, shapes ``(d1,)`` and ``(d2,)``.
        scatter: shape ``(d, d)`` with ``d = d1 + d2``: the weighted sum of outer products of the
            centred samples.
        samples: number of samples seen, with or without weight.
        empty: whether no sample has been seen.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> pa.statistics.from_views((x, x), kind="gram").scatter.shape
        (4, 4)
    """

    weight: Float[Array, "..."]
    means: tuple[Float[Array, "... _"], ...]
    scatter: Float[Array, "... d d"]
    samples: Int[Array, "..."]
    empty: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        return tuple(mean.shape[-1] for mean in self.means)


Statistic = Factor | Gram
Kind = Literal["factor", "gram"]
_KINDS = ("factor", "gram")


def _concatenate(blocks: tuple[Float[Array, "r _"], ...]) -> Float[Array, "r d"]:
    return jnp.concatenate(blocks, axis=-1)


def _split(
    stacked: Float[Array, "... d"], dims: tuple[int, ...]
) -> tuple[Float[Array, "... _"], ...]:
    starts = [sum(dims[:m]) for m in range(len(dims))]
    return tuple(stacked[..., a : a + d] for a, d in zip(starts, dims, strict=True))


@jax.custom_jvp
def compress(stacked: Float[Array, "r d"]) -> Float[Array, "m d"]:
    """Return at most ``d`` rows with the same Gram matrix: the R of a QR, if there are more.

    Every solver depends on the rows through their Gram matrix alone, so the derivative may be any
    lift of the Gram matrix's: with ``Y = Q R``, ``dR = Q' dY`` gives
    ``dR' R + R' dR = dY' Y + Y' dY`` and is finite where ``R`` is singular, as it is in every
    perfectly alignable problem. It is a first derivative only.
    """
    rows_, columns = stacked.shape
    if rows_ <= columns:
        return stacked
    return jnp.linalg.qr(stacked, mode="r")


@compress.defjvp
def _compress_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (stacked,), (tangent,) = primals, tangents
    if stacked.shape[0] <= stacked.shape[1]:
        return stacked, tangent
    q, r = jnp.linalg.qr(stacked)
    return r, matmul(q.T, tangent)


def _rotate_ones_away(
    centred: Float[Array, "n d"], roots: Float[Array, " n"]
) -> Float[Array, "n-1 d"]:
    """Reflect the rows so that ``roots`` points along the first axis, and drop that row.

    The rows are centred, so the dropped one is zero: ``n`` samples leave ``n - 1`` rows.
    """
    norm = jnp.linalg.norm(roots)
    mirror = roots.at[0].add(jnp.where(roots[0] < 0, -norm, norm))
    scale = 2 / jnp.maximum(jnp.sum(mirror**2), jnp.finfo(roots.dtype).tiny)
    return (centred - scale * mirror[:, None] * matmul(mirror, centred)[None, :])[1:]


def _of_batch(
    views: tuple[Float[Array, "n _"], ...], weights: Float[Array, " n"] | None, kind: str
) -> Statistic:
    dtype, n = views[0].dtype, views[0].shape[0]
    w = jnp.ones((n,), dtype) if weights is None else weights
    total = jnp.sum(w)
    safe = jnp.where(total > 0, total, 1)
    centre = tuple(matmul(w, x) / safe for x in views)
    roots = jnp.where(w > 0, jnp.sqrt(jnp.where(w > 0, w, 1)), 0)  # finite gradient at weight 0
    centred = [x - mean[None, :] for x, mean in zip(views, centre, strict=True)]
    # A second pass takes out what rounding of the first mean left in.
    drift = [matmul(w, x) / safe for x in centred]
    centre = tuple(mean + shift for mean, shift in zip(centre, drift, strict=True))
    stacked = _concatenate(
        tuple(
            roots[:, None] * (x - shift[None, :]) for x, shift in zip(centred, drift, strict=True)
        )
    )
    samples = jnp.asarray(n, jnp.int32)
    if kind == "gram":
        return Gram(total, centre, matmul(stacked.T, stacked), samples)
    dims = tuple(x.shape[1] for x in views)
    many = n - 1 > sum(dims)
    reduced = compress(stacked) if many else _rotate_ones_away(stacked, roots)
    return Factor(total, centre, _split(reduced, dims), samples)


def _merge(a: Statistic, b: Statistic) -> Statistic:
    if a.empty or b.empty:
        return b if a.empty else a
    total = a.weight + b.weight
    share = b.weight / jnp.where(total > 0, total, 1)
    gaps = tuple(mb - ma for ma, mb in zip(a.means, b.means, strict=True))
    centre = tuple(ma + share * gap for ma, gap in zip(a.means, gaps, strict=True))
    gap = _concatenate(tuple(g[None, :] for g in gaps)) * jnp.sqrt(
        jnp.maximum(a.weight * share, jnp.finfo(total.dtype).tiny)
    )
    samples = a.samples + b.samples
    if isinstance(a, Gram):
        assert isinstance(b, Gram)
        return Gram(total, centre, a.scatter + b.scatter + gap.T * gap, samples)
    assert isinstance(b, Factor)
    stacked = jnp.concatenate([_concatenate(a.blocks), _concatenate(b.blocks), gap])
    return Factor(total, centre, _split(compress(stacked), a.dims), samples)


_of_batch_jit = functools.partial(jax.jit, static_argnames=("kind",))(_of_batch)
_merge_jit = jax.jit(_merge)


@jax.jit
def _update_jit(state: Statistic, views: tuple[Array, ...], weights: Array | None) -> Statistic:
    return _merge(state, _of_batch(views, weights, "gram" if isinstance(state, Gram) else "factor"))


def _check_weights(weights: Any, views: tuple[Array, ...]) -> Array | None:
    if weights is None:
        return None
    w = _checks.array(weights, "weights", ndim=1, shape="(n,)").astype(views[0].dtype)
    _checks.paired(w, views[0], "weights", "x1")
    if not _checks.is_traced(w) and bool((w < 0).any()):
        raise ValueError(f"weights must not be negative, but weight {int(jnp.argmin(w))} is.")
    return w


def init(dims: tuple[int, int], *, kind: Kind = "factor", dtype: Any = None) -> Statistic:
    """Return the statistic of no samples at all.

    Args:
        dims: number of features ``(d1, d2)`` of the two views.
        kind: "factor" (exact) or "gram" (cheaper, half the digits).
        dtype: float32 or float64; JAX's default float if not given.

    Returns:
        A ``Factor`` or a ``Gram``.

    Raises:
        ValueError: if ``dims`` or ``kind`` is none of the allowed.

    Example:
        >>> import perfalign_jax as pa
        >>> pa.statistics.init((3, 2)).dims
        (3, 2)
    """
    _checks.one_of(kind, "kind", _KINDS)
    if not isinstance(dims, tuple) or len(dims) != 2:
        raise ValueError(f"dims must be a tuple (d1, d2), got {dims!r}.")
    d1, d2 = (_checks.integer(d, f"dims[{m}]", low=1) for m, d in enumerate(dims))
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}.")
    weight, centre = jnp.zeros((), dtype), (jnp.zeros((d1,), dtype), jnp.zeros((d2,), dtype))
    samples = jnp.asarray(0, jnp.int32)
    if kind == "gram":
        return Gram(weight, centre, jnp.zeros((d1 + d2, d1 + d2), dtype), samples, empty=True)
    blocks = (jnp.zeros((0, d1), dtype), jnp.zeros((0, d2), dtype))
    return Factor(weight, centre, blocks, samples, empty=True)


def from_views(views: Views, *, weights: Any = None, kind: Kind = "factor") -> Statistic:
    """Return the statistic of two views.

    Args:
        views: paired rows ``(x1, x2)`` of shapes ``(n, d1)`` and ``(n, d2)``: the transposes of the
            paper's X1 and X2.
        weights: shape ``(n,)``, one weight per pair, not negative; a weight of 2 counts a pair
            twice, a weight of 0 leaves it out. All 1 if not given.
        kind: "factor" (exact) or "gram" (cheaper, half the digits).

    Returns:
        A ``Factor`` or a ``Gram``.

    Raises:
        TypeError: if a view does not hold real numbers.
        ValueError: if the shapes do not fit, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(5, 2, dtype=np.float32)
        >>> alignment = pa.fit(pa.statistics.from_views((x, x)), k=2)
        >>> bool(alignment.singular_values.max() < 1e-6)
        True
    """
    _checks.one_of(kind, "kind", _KINDS)
    arrays = _checks.views(views)
    _check_rows(arrays)
    return _of_batch_jit(arrays, _check_weights(weights, arrays), kind=kind)


def update(state: Statistic, views: Views, *, weights: Any = None) -> Statistic:
    """Return the statistic of what ``state`` has seen and one more batch.

    Compiles once per batch shape and, while there are fewer samples than features, once per
    number of rows so far.

    Args:
        state: what was seen before, of any kind.
        views: a batch ``(x1, x2)`` of shapes ``(b, d1)`` and ``(b, d2)``, of the state's dtype.
        weights: shape ``(b,)``, as in ``from_views``.

    Returns:
        A statistic of the state's kind.

    Raises:
        TypeError: if a view does not hold real numbers, or the dtypes differ.
        ValueError: if the shapes do not fit, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x1, x2 = np.eye(6, 2, dtype=np.float32), np.ones((6, 3), np.float32)
        >>> state = pa.statistics.init((2, 3), dtype="float32")
        >>> for i in range(0, 6, 2):
        ...     state = pa.statistics.update(state, (x1[i : i + 2], x2[i : i + 2]))
        >>> int(state.samples)
        6
    """
    _check_state(state, "state")
    arrays = _checks.views(views)
    _check_rows(arrays)
    came = tuple(x.shape[1] for x in arrays)
    if came != state.dims:
        raise ValueError(f"views must have {state.dims} features like the state, got {came}.")
    if arrays[0].dtype != state.weight.dtype:
        raise TypeError(
            f"views must have the state's dtype {state.weight.dtype}, got {arrays[0].dtype}."
        )
    return _update_jit(state, arrays, _check_weights(weights, arrays))


def merge(a: Statistic, b: Statistic) -> Statistic:
    """Return the statistic of what two statistics have seen, in any order.

    Args:
        a: a statistic.
        b: another of the same kind, dims and dtype.

    Returns:
        A statistic of the same kind.

    Raises:
        TypeError: if the kinds or dtypes differ.
        ValueError: if the numbers of features differ.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(6, 2, dtype=np.float32)
        >>> a, b = (pa.statistics.from_views((part, part)) for part in (x[:3], x[3:]))
        >>> float(pa.statistics.merge(a, b).weight)
        6.0
    """
    _check_state(a, "a")
    _check_state(b, "b")
    if type(a) is not type(b):
        raise TypeError(
            "a and b must be statistics of one kind, "
            f"got {type(a).__name__} and {type(b).__name__}."
        )
    if a.dims != b.dims:
        raise ValueError(f"a and b must have the same features, got {a.dims} and {b.dims}.")
    if a.weight.dtype != b.weight.dtype:
        raise TypeError(f"a and b must share a dtype, got {a.weight.dtype} and {b.weight.dtype}.")
    return _merge_jit(a, b)


def as_statistic(data: Any) -> Statistic:
    """Return ``data`` itself if it is a statistic, and the ``Factor`` of two views otherwise.

    Args:
        data: a statistic, or views ``(x1, x2)`` of shapes ``(n, d1)`` and ``(n, d2)``.

    Returns:
        A ``Factor`` or a ``Gram``.

    Raises:
        TypeError: if it is neither.
        ValueError: if the shapes do not fit, a value is not finite, or no sample has been seen.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.statistics import as_statistic
        >>> as_statistic((np.eye(4, 2), np.eye(4, 3))).dims
        (2, 3)
    """
    if isinstance(data, Factor | Gram):
        if data.empty:
            raise ValueError("data is a statistic that has seen no samples; update it first.")
        return data
    return from_views(data)


def rows(state: Statistic, *, center: bool) -> tuple[Float[Array, "r d1"], Float[Array, "r d2"]]:
    """Return few rows that stand for all the samples: same Gram matrix, same singular values.

    Args:
        state: a statistic.
        center: whether the means are removed.

    Returns:
        Blocks ``B1, B2`` of shapes ``(r, d1)`` and ``(r, d2)`` with ``Bi' Bj`` equal to the
        weighted sum of ``xi xj'`` over the samples; ``r <= d1 + d2 + 1``.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(200, dtype=np.float32).reshape(100, 2) / 100
        >>> b1, b2 = pa.statistics.rows(pa.statistics.from_views((x, x)), center=False)
        >>> bool(np.allclose(b1.T @ b2, x.T @ x, rtol=1e-5))
        True
    """
    if isinstance(state, Gram):
        values, vectors = jnp.linalg.eigh(state.scatter)
        stacked = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
    else:
        stacked = _concatenate(state.blocks)
    if not center:
        first = jnp.sqrt(state.weight) * _concatenate(tuple(m[None, :] for m in state.means))
        stacked = jnp.concatenate([first, stacked])
    b1, b2 = _split(stacked, state.dims)
    return b1, b2


def means(state: Statistic) -> tuple[Float[Array, " d1"], Float[Array, " d2"]]:
    """Return the weighted means of the two views, shapes ``(d1,)`` and ``(d2,)``.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> pa.statistics.means(pa.statistics.from_views((np.ones((4, 2)), np.eye(4))))[0].shape
        (2,)
    """
    first, second = state.means
    return first, second


def total_weight(state: Statistic) -> Float[Array, ""]:
    """Return the sum of the samples' weights: their number when unweighted.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> float(pa.statistics.total_weight(pa.statistics.from_views((np.eye(4), np.eye(4)))))
        4.0
    """
    return state.weight


def _check_rows(arrays: tuple[Array, ...]) -> None:
    if arrays[0].shape[0] < 1:
        raise ValueError(f"x1 and x2 must have at least one row, got shape {arrays[0].shape}.")


def _check_state(state: Any, name: str) -> None:
    if not isinstance(state, Factor | Gram):
        raise TypeError(f"{name} must be a statistic (Factor or Gram), got {type(state).__name__}.")
