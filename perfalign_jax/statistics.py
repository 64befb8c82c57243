"""The mergeable statistics of paired views: the data is read once, into one of these.

Three kinds hold the second moments of two or more views, and solvers do not ask which it is:

- ``Samples``: the rows themselves.
- ``Factor``: the total weight, the means, and an R factor of the centred views. Together they are
  the R factor of ``[1, X1, X2, ...]``: its first row is ``sqrt(weight) * [1, means]``, and below
  it stands exactly the R factor of the centred data. Keeps every digit of the data.
- ``Gram``: the total weight, the means, and the centred scatter matrix. Cheaper, but it squares
  the condition number: singular values below ``sqrt(eps)`` of the largest are lost, and so are
  gradients where the views are rank-deficient (they come out NaN; a ``Factor`` has them).

All merge in any order and any batch sizes, and serve centred and uncentred solvers alike. The
means are kept apart from the factor, and merged by the pairwise update of Chan, Golub & LeVeque
(1983), so that a large common mean costs no digits. ``rows`` is the one question that a statistic
answers.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _checks
from perfalign_jax._numerics import compress, matmul, rounding
from perfalign_jax.types import Views

__all__ = ["Factor", "Gram", "Rows", "Samples", "as_parts", "as_statistic", "check_finite"]
__all__ += [
    "count_rows",
    "from_moments",
    "from_views",
    "init",
    "merge",
    "put_together",
    "rows",
    "take_apart",
]
__all__ += ["update"]

Blocks = tuple[Float[Array, "r _"], ...]


class Rows(NamedTuple):
    """Few rows that stand for all the samples, and all that a solver may know beside them.

    Attributes:
        blocks: shapes ``(r, d_m)``, one for each view; ``blocks[i].T @ blocks[j]`` is the weighted
            sum of ``x_i x_j'`` over the samples.
        means: weighted means, shapes ``(d_m,)``; removed from the blocks if asked to.
        constant: shape ``(r,)``, the direction in which the means stand in the blocks,
            ``constant @ blocks[m] = sqrt(weight) * means[m]``; zeros where they were removed.
        weight: total weight.
        samples: number of samples.
        rounding: share of the largest singular value at or below which another one is rounding.
        roundings: shape ``(M,)``, the same of each view by itself.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> state = pa.statistics.from_views((np.eye(4, 2, dtype="f4"), np.eye(4, dtype="f4")))
        >>> [block.shape for block in pa.statistics.rows(state, center=True).blocks]
        [(3, 2), (3, 4)]
    """

    blocks: Blocks
    means: tuple[Float[Array, " _"], ...]
    constant: Float[Array, " r"]
    weight: Float[Array, ""]
    samples: Float[Array, ""]
    rounding: Float[Array, ""]
    roundings: Float[Array, " M"]


@dataclasses.dataclass(frozen=True)
class _Moments:
    """What a ``Factor`` and a ``Gram`` share."""

    total: Float[Array, "... 2"]
    means: tuple[Float[Array, "... _"], ...]
    count: Float[Array, "... 2"]
    coarsest: Float[Array, "..."]

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        return tuple(mean.shape[-1] for mean in self.means)

    @property
    def weight(self) -> Float[Array, "..."]:
        """Total weight of the samples, their number when unweighted."""
        return self.total[..., 0]

    @property
    def samples(self) -> Any:
        """Number of samples seen, with or without weight: exact, or as traced floating point."""
        return _whole(self.count)

    @property
    def dtype(self) -> jnp.dtype:
        """In which it is computed."""
        return self.total.dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_shown(self)})"

    def _merged(self, other: "_Moments") -> tuple[dict[str, Any], Float[Array, "1 d"]]:
        """The common fields of both together, and the row that the gap of the means adds."""
        total = _add(self.total, other.total)
        safe = jnp.where(total[0] > 0, total[0], 1)
        share = other.weight / safe
        gaps = tuple(b - a for a, b in zip(self.means, other.means, strict=True))
        gap = jnp.concatenate(gaps)[None, :] * jnp.sqrt(
            jnp.maximum(self.weight * share, jnp.finfo(self.dtype).tiny)
        )
        fields = {
            "total": total,
            "means": tuple(a + share * gap for a, gap in zip(self.means, gaps, strict=True)),
            "count": _add(self.count, other.count),
            "coarsest": jnp.maximum(self.coarsest, other.coarsest),
        }
        return fields, jnp.where((self.weight > 0) & (other.weight > 0), gap, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Factor(_Moments):
    """The R factor of ``[1, X1, X2, ...]``, split into its first row and what stands below it.

    Attributes:
        total: shape ``(2,)``: total weight, and what its rounding left over, so that a long stream
            counts right.
        means: weighted means, shapes ``(d_m,)``.
        count: shape ``(2,)``: number of samples and what its rounding left over.
        coarsest: eps of the coarsest dtype that the data came in.
        blocks: shapes ``(r, d_m)``; side by side they have the same Gram matrix as the centred
            data. From ``init`` on ``r`` is the number of features ``d``, whatever comes, so that a
            scan can carry it; from views with no more than ``d`` samples ``r = n - 1``, and the
            rows are the centred data in a rotated order.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> state = pa.statistics.from_views((x, x))
        >>> [block.shape for block in state.blocks], float(state.weight), state.samples
        ([(4, 2), (4, 2)], 6.0, 6)
    """

    blocks: tuple[Float[Array, "... r _"], ...]

    def _with(self, other: "Factor") -> "Factor":
        fields, gap = self._merged(other)
        stacked = [jnp.concatenate(self.blocks, axis=1), jnp.concatenate(other.blocks, axis=1), gap]
        return Factor(**fields, blocks=_split(compress(jnp.concatenate(stacked)), self.dims))

    def _count(self, center: bool) -> int:
        return self.blocks[0].shape[-2] + (not center)

    def _rows(self, center: bool) -> Rows:
        return _below_the_mean(self, self.blocks, center, squared=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Gram(_Moments):
    """The means and the centred scatter matrix of ``[X1, X2, ...]``.

    Attributes:
        total: shape ``(2,)``: total weight, and what its rounding left over.
        means: weighted means, shapes ``(d_m,)``.
        count: shape ``(2,)``: number of samples and what its rounding left over.
        coarsest: eps of the coarsest dtype that the data came in.
        scatter: shape ``(d, d)`` with ``d`` all features: the weighted sum of outer products of the
            centred samples.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> pa.statistics.from_views((x, x), kind="gram").scatter.shape
        (4, 4)
    """

    scatter: Float[Array, "... d d"]

    def _with(self, other: "Gram") -> "Gram":
        fields, gap = self._merged(other)
        return Gram(**fields, scatter=self.scatter + other.scatter + gap.T * gap)

    def _count(self, center: bool) -> int:
        return sum(self.dims) + (not center)

    def _rows(self, center: bool) -> Rows:
        values, vectors = jnp.linalg.eigh(self.scatter)
        root = jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T
        return _below_the_mean(self, _split(root, self.dims), center, squared=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Samples:
    """Paired rows as they are.

    Attributes:
        views: shapes ``(n, d_m)``; NumPy arrays where they are only passed on.
        weights: shape ``(n,)``, or None where all are 1.
        coarsest: eps of the coarsest dtype that the data came in.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> pa.statistics.from_views((x, x), kind="samples")
        Samples(samples=6, dims=(2, 2), dtype=float32)
    """

    views: tuple[Float[Any, "... n _"], ...]
    weights: Float[Array, "... n"] | None
    coarsest: Float[Array, "..."]

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        return tuple(x.shape[-1] for x in self.views)

    @property
    def weight(self) -> Float[Array, "..."]:
        """Total weight of the samples, their number when unweighted."""
        if self.weights is None:
            return jnp.full(self.views[0].shape[:-2], self.samples, self.dtype)
        return jnp.sum(self.weights, axis=-1)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.views[0].shape[-2]

    @property
    def dtype(self) -> jnp.dtype:
        """In which it is computed."""
        return self.views[0].dtype

    def __repr__(self) -> str:
        return f"Samples({_shown(self)})"

    def _with(self, other: "Samples") -> "Samples":
        weights = None
        if self.weights is not None or other.weights is not None:
            weights = jnp.concatenate(
                [
                    jnp.ones(s.samples, s.dtype) if s.weights is None else s.weights
                    for s in (self, other)
                ]
            )
        views = tuple(jnp.concatenate(pair) for pair in zip(self.views, other.views, strict=True))
        return Samples(views, weights, jnp.maximum(self.coarsest, other.coarsest))

    def _count(self, center: bool) -> int:
        return self.samples - (center and self.samples <= sum(self.dims))

    def _rows(self, center: bool) -> Rows:
        n, d = self.samples, sum(self.dims)
        samples = jnp.asarray(n, self.dtype)
        if self.weights is not None:  # rows of weight zero are not there
            samples = jnp.sum(self.weights > 0, dtype=self.dtype)
        if center:
            if n <= d:  # one row fewer keeps the rank full
                return _of_samples(self, "factor")._rows(center=True)._replace(samples=samples)
            means, blocks, _ = _centred(self)
        elif self.weights is None:
            means, blocks = tuple(jnp.mean(x, axis=0) for x in self.views), self.views
        else:
            safe = jnp.where(self.weight > 0, self.weight, 1)
            means = tuple(matmul(self.weights, x) / safe for x in self.views)
            blocks = tuple(_roots(self)[:, None] * x for x in self.views)
        constant = jnp.zeros((n,), self.dtype)
        if not center:
            constant = _roots(self) / jnp.sqrt(jnp.where(self.weight > 0, self.weight, 1))
        cuts = _cuts(blocks, means, self.weight, jnp.asarray(n), self.coarsest, center)
        return Rows(blocks, means, constant, self.weight, samples, *cuts)


Statistic = Samples | Factor | Gram
Kind = Literal["samples", "factor", "gram"]
_KINDS = ("samples", "factor", "gram")


def _shown(state: Any) -> str:
    batch = f"batch={state.coarsest.shape}, " if jnp.ndim(state.coarsest) else ""
    return f"{batch}samples={state.samples}, dims={state.dims}, dtype={state.dtype}"


def _split(stacked: Float[Array, "r d"], dims: tuple[int, ...]) -> Blocks:
    return tuple(jnp.split(stacked, np.cumsum(dims)[:-1].tolist(), axis=-1))


# Sums in twice the digits of the dtype (Dekker, 1971): the sum, and what its rounding left over.


def _pair(value: int | Array, dtype: jnp.dtype) -> Float[Array, "2"]:
    if isinstance(value, int):
        high = int(np.asarray(value, dtype))
        return jnp.asarray([high, value - high], dtype)
    return jnp.stack([value, jnp.zeros_like(value)])


def _add(a: Float[Array, "2"], b: Float[Array, "2"]) -> Float[Array, "2"]:
    total = a[0] + b[0]
    part = total - a[0]
    left = (a[0] - (total - part)) + (b[0] - part) + (a[1] + b[1])
    high = total + left
    return jnp.stack([high, left - (high - total)])


def _whole(count: Float[Array, "... 2"]) -> Any:
    if _checks.is_traced(count):
        return count[..., 0]
    exact = np.asarray(count, np.float64).sum(axis=-1).astype(np.int64)
    return int(exact) if exact.ndim == 0 else exact


def _roots(data: Samples) -> Float[Array, " n"]:
    if data.weights is None:
        return jnp.ones((data.samples,), data.dtype)
    inside = data.weights > 0  # a finite gradient at weight 0
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, data.weights, 1)), 0)


def _centred(data: Samples) -> tuple[tuple[Array, ...], Blocks, Float[Array, " n"]]:
    """Weighted means, the centred rows times the roots of their weights, and those roots."""
    roots = _roots(data)
    w = jnp.ones_like(roots) if data.weights is None else data.weights
    safe = jnp.where(data.weight > 0, data.weight, 1)
    centre = tuple(matmul(w, x) / safe for x in data.views)
    centred = [x - mean[None, :] for x, mean in zip(data.views, centre, strict=True)]
    # A second pass takes out what rounding of the first mean left in.
    drift = [matmul(w, x) / safe for x in centred]
    means = tuple(mean + shift for mean, shift in zip(centre, drift, strict=True))
    blocks = [x - shift[None, :] for x, shift in zip(centred, drift, strict=True)]
    if data.weights is None:
        return means, tuple(blocks), roots
    return means, tuple(roots[:, None] * x for x in blocks), roots


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


def _of_samples(data: Samples, kind: str) -> Statistic:
    if kind == "samples":
        return data
    means, blocks, roots = _centred(data)
    stacked = jnp.concatenate(blocks, axis=1)
    total = data.samples if data.weights is None else data.weight
    fields: Any = {
        "total": _pair(total, data.dtype),
        "means": means,
        "count": _pair(data.samples, data.dtype),
        "coarsest": data.coarsest,
    }
    if kind == "gram":
        return Gram(**fields, scatter=matmul(stacked.T, stacked))
    many = data.samples - 1 > sum(data.dims)
    reduced = compress(stacked) if many else _rotate_ones_away(stacked, roots)
    return Factor(**fields, blocks=_split(reduced, data.dims))


def _below_the_mean(state: Factor | Gram, blocks: Blocks, center: bool, *, squared: bool) -> Rows:
    """Rows of centred blocks; the means stand above them unless they are removed."""
    cuts = _cuts(blocks, state.means, state.weight, state.count[0], state.coarsest, center)
    if squared:  # half the digits
        cuts = jnp.sqrt(cuts[0]), jnp.sqrt(cuts[1])
    size = blocks[0].shape[0] + (not center)
    constant = jnp.zeros((size,), state.dtype)
    if not center:
        root = jnp.sqrt(state.weight)
        blocks = tuple(
            jnp.concatenate([root * mean[None, :], block])
            for mean, block in zip(state.means, blocks, strict=True)
        )
        constant = constant.at[0].set(1)
    return Rows(blocks, state.means, constant, state.weight, state.count[0], *cuts)


def count_weighed(state: Statistic) -> int:
    """How many of the rows have a weight, where that is known; else how many there are."""
    weights = getattr(state, "weights", None)
    return state.samples if weights is None else int(np.count_nonzero(np.asarray(weights)))


def known_to(state: Samples, coarsest: float) -> Samples:
    """The same rows, with eps of the coarsest dtype that they came in before they were cast."""
    least = float(jnp.finfo(state.dtype).eps)
    return dataclasses.replace(state, coarsest=jnp.asarray(max(least, coarsest), state.dtype))


def with_rounding(rows: Rows, rtol: Any) -> Rows:
    """The same with a cut-off that is given."""
    share = jnp.asarray(rtol, rows.rounding.dtype)
    return rows._replace(rounding=share, roundings=jnp.full_like(rows.roundings, share))


def _cuts(
    blocks: Blocks, means: Any, weight: Array, samples: Array, coarsest: Array, center: bool
) -> tuple[Float[Array, ""], Float[Array, " M"]]:
    """What rounding can give to a singular value, of all views side by side and of each."""
    d, dtype = sum(block.shape[1] for block in blocks), blocks[0].dtype
    spreads = [jnp.sum(block**2) for block in blocks]
    energies = [weight * jnp.sum(mean**2) for mean in means]

    def cut(energy: Any, spread: Any) -> Array:
        common = energy / jnp.where(spread > 0, spread, 1) if center else 0.0
        return rounding(dtype, samples, d, common=common, coarsest=coarsest)

    each = [cut(*pair) for pair in zip(energies, spreads, strict=True)]
    return cut(jnp.stack(energies).sum(), jnp.stack(spreads).sum()), jnp.stack(each)


@functools.partial(jax.jit, static_argnames=("kind",))
def _from_samples(data: Samples, *, kind: str) -> tuple[Statistic, Array]:
    state = _of_samples(data, kind)
    return state, _all_finite(data, state)


@jax.jit
def _update(state: Any, batch: Samples) -> tuple[Statistic, Array]:
    one = _of_samples(batch, type(state).__name__.lower())
    return state._with(one), _all_finite(batch, one)


def _all_finite(data: Samples, state: Statistic) -> Array:
    """Whether nothing can be NaN or infinite: it would show in a mean."""
    sums = data.views if isinstance(state, Samples) else state.means
    return jnp.stack([jnp.isfinite(jnp.sum(part)) for part in sums]).all()


def _check(finite: Array, views: tuple[Array, ...], seen: Statistic | None = None) -> None:
    """Name the row that is not finite, counted over all that was seen; traced values pass."""
    if not _checks.is_traced(finite) and not finite:
        _look(views, 0 if seen is None else seen.samples)


def _look(views: tuple[Any, ...], first: int = 0) -> None:
    for m, x in enumerate(views):
        _checks.finite(x, f"x{m + 1}", first=first)


def check_finite(state: Statistic) -> None:
    """Refuse rows with NaN or infinity, naming the first; traced ones and moments pass.

    Raises:
        ValueError: if there are any.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import statistics
        >>> x = np.ones((3, 2), np.float32)
        >>> statistics.check_finite(statistics.as_statistic((x, x), look=False))
    """
    _look(getattr(state, "views", ()))


_merge = jax.jit(lambda a, b: a._with(b))


def _samples(views: Any, weights: Any, *, look: bool, host: bool = False) -> Samples:
    arrays, coarsest = _checks.views(views, look=look, host=host)
    if weights is not None:
        weights = _checks.array(weights, "weights", ndim=1, shape="(n,)").astype(arrays[0].dtype)
        _checks.paired(weights, arrays[0], "weights", "x1")
        if not _checks.is_traced(weights) and bool((weights < 0).any()):
            raise ValueError(
                f"weights must not be negative, but weight {int(jnp.argmin(weights))} is."
            )
    return Samples(arrays, weights, jnp.asarray(coarsest, arrays[0].dtype))


def init(
    dims: tuple[int, ...], *, kind: Literal["factor", "gram"] = "factor", dtype: Any = None
) -> Factor | Gram:
    """Return the statistic of no samples at all.

    Its arrays have the shapes that they keep, so ``jax.lax.scan`` can carry it through batches.

    Args:
        dims: number of features ``(d1, d2, ...)`` of two or more views.
        kind: "factor" (exact) or "gram" (cheaper, half the digits).
        dtype: float32 or float64; JAX's default float if not given.

    Returns:
        A ``Factor`` or a ``Gram``.

    Raises:
        ValueError: if ``dims`` or ``kind`` is none of the allowed.

    Example:
        >>> import perfalign_jax as pa
        >>> pa.statistics.init((3, 2))
        Factor(samples=0, dims=(3, 2), dtype=float32)
    """
    _checks.one_of(kind, "kind", _KINDS[1:])
    if not isinstance(dims, tuple) or len(dims) < 2:
        raise ValueError(f"dims must be a tuple (d1, d2), got {dims!r}; it may be longer.")
    dims = tuple(_checks.integer(d, f"dims[{m}]", low=1) for m, d in enumerate(dims))
    asked = None if dtype is None else np.dtype(dtype)
    dtype = jax.dtypes.canonicalize_dtype(float if asked is None else asked)
    if asked is not None and asked != dtype:
        raise ValueError(
            f'dtype must be float32 or, after jax.config.update("jax_enable_x64", True), float64; '
            f"got {asked}."
        )
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}.")
    d = sum(dims)
    fields: Any = {
        "total": _pair(0, dtype),
        "means": tuple(jnp.zeros((size,), dtype) for size in dims),
        "count": _pair(0, dtype),
        "coarsest": jnp.zeros((), dtype),
    }
    square = jnp.zeros((d, d), dtype)
    if kind == "gram":
        return Gram(**fields, scatter=square)
    return Factor(**fields, blocks=_split(square, dims))


def from_views(views: Views, *, weights: Any = None, kind: Kind = "factor") -> Statistic:
    """Return the statistic of two or more views.

    Args:
        views: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``: the transposes of the paper's
            X1 and X2.
        weights: shape ``(n,)``, one weight per row, not negative; a weight of 2 counts a row
            twice, a weight of 0 leaves it out. All 1 if not given.
        kind: "factor" (exact), "gram" (cheaper, half the digits), or "samples" (the rows).

    Returns:
        A ``Factor``, a ``Gram`` or ``Samples``.

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
    data = _samples(views, weights, look=False)
    _check_any(data)
    state, finite = _from_samples(data, kind=kind)
    _check(finite, data.views)
    return state


def from_moments(
    weight: float,
    samples: int,
    mean: Float[np.ndarray, " d"],
    spread: Float[np.ndarray, "r d"],
    dims: tuple[int, ...],
    dtype: Any,
    coarsest: float,
    kind: str,
) -> Factor | Gram:
    """The statistic of moments that were computed elsewhere.

    Args:
        weight: total weight.
        samples: number of samples.
        mean: weighted mean of all views side by side, shape ``(d,)``.
        spread: the scatter about it, shape ``(d, d)``, for a ``Gram``; a root of it for a
            ``Factor``: any rows of shape ``(r, d)`` with the scatter as their Gram matrix.
        dims: number of features of each view.
        dtype: of the statistic.
        coarsest: as in ``Factor``.
        kind: "factor" or "gram".

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import statistics
        >>> statistics.from_moments(4.0, 4, np.zeros(3), np.eye(3), (2, 1), "f4", 0.0, "gram")
        Gram(samples=4, dims=(2, 1), dtype=float32)
    """
    dtype = jnp.dtype(dtype)
    high = float(np.asarray(weight, dtype))
    fields: Any = {
        "total": jnp.asarray([high, weight - high], dtype),
        "means": tuple(jnp.asarray(m, dtype) for m in np.split(mean, np.cumsum(dims)[:-1])),
        "count": _pair(samples, dtype),
        "coarsest": jnp.asarray(coarsest, dtype),
    }
    rows = jnp.asarray(spread, dtype)
    if kind == "gram":
        return Gram(**fields, scatter=rows)
    return Factor(**fields, blocks=_split(rows, dims))


def update(state: Statistic, views: Views, *, weights: Any = None) -> Statistic:
    """Return the statistic of what ``state`` has seen and one more batch.

    Compiles once per batch shape for a state from ``init``.

    Args:
        state: what was seen before, of any kind.
        views: a batch ``(x1, x2, ...)`` of shapes ``(b, d_m)``, of the state's dtype.
        weights: shape ``(b,)``, as in ``from_views``.

    Returns:
        A statistic of the state's kind.

    Raises:
        TypeError: if a view does not hold real numbers, or the dtypes differ.
        ValueError: if the shapes do not fit, or a value is not finite; its row is counted over all
            that the state has seen.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x1, x2 = np.eye(6, 2, dtype=np.float32), np.ones((6, 3), np.float32)
        >>> state = pa.statistics.init((2, 3), dtype="float32")
        >>> for i in range(0, 6, 2):
        ...     state = pa.statistics.update(state, (x1[i : i + 2], x2[i : i + 2]))
        >>> state.samples
        6
    """
    _check_state(state, "state")
    batch = _samples(views, weights, look=False)
    _check_any(batch)
    if batch.dims != state.dims:
        raise ValueError(f"views must have {state.dims} features like the state, got {batch.dims}.")
    if batch.dtype != state.dtype:
        raise TypeError(f"views must have the state's dtype {state.dtype}, got {batch.dtype}.")
    result, finite = _update(state, batch)
    _check(finite, batch.views, state)
    return result


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
    if a.dtype != b.dtype:
        raise TypeError(f"a and b must share a dtype, got {a.dtype} and {b.dtype}.")
    return _merge(a, b)


def as_statistic(
    data: Any,
    *,
    weights: Any = None,
    center: bool = False,
    views: int | None = None,
    look: bool = True,
) -> Statistic:
    """Return ``data`` itself if it is a statistic, and the ``Samples`` of views otherwise.

    Args:
        data: a statistic, or views ``(x1, x2, ...)`` of shapes ``(n, d_m)``.
        weights: shape ``(n,)``, for views only, as in ``from_views``.
        center: whether the means are to be removed, which takes two samples.
        views: how many there must be, if it matters.
        look: for values that are not finite. Without it the caller does, and NumPy arrays stay
            where they are.

    Raises:
        TypeError: if it is neither.
        ValueError: if the shapes do not fit, a value is not finite, there are too few samples or
            another number of views, or weights come with a statistic.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.statistics import as_statistic
        >>> as_statistic((np.eye(4, 2, dtype="f4"), np.eye(4, 3, dtype="f4")))
        Samples(samples=4, dims=(2, 3), dtype=float32)
    """
    given = isinstance(data, Statistic)
    if given and weights is not None:
        raise ValueError("weights must be None with a statistic, which has its own, got weights.")
    state = data if given else _samples(data, weights, look=look, host=not look)
    if views is not None and len(state.dims) != views:
        raise ValueError(f"data must have {views} views, got {len(state.dims)} of them.")
    least = 2 if center else 1
    if not _checks.is_traced(state.samples) and np.min(state.samples) < least:
        if given:
            raise ValueError(
                "data is a statistic that has seen no samples; update it first."
                if np.min(state.samples) == 0
                else "data must have at least two samples to be centred, got one."
            )
        names = " and ".join(f"x{m + 1}" for m in range(len(state.dims)))
        raise ValueError(
            f"{names} must have at least {('one row', 'two rows')[least - 1]}"
            f"{' to be centred' if center else ''}, got shape {state.views[0].shape}."
        )
    return state


def take_apart(state: Any) -> tuple[str, dict[str, Array]] | None:
    """The kind of a ``Factor`` or ``Gram`` and its arrays by name; None of anything else.

    Raises:
        ValueError: if it is a batch of them.

    Example:
        >>> from perfalign_jax import statistics
        >>> kind, arrays = statistics.take_apart(statistics.init((2, 1), kind="gram"))
        >>> kind, sorted(arrays)
        ('Gram', ['coarsest', 'count', 'means.0', 'means.1', 'scatter', 'total'])
    """
    if not isinstance(state, Factor | Gram):
        return None
    if jnp.ndim(state.coarsest):
        raise ValueError("a statistic must be of one dataset, got a batch; take one of them.")
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        parts = enumerate(value) if isinstance(value, tuple) else ()
        arrays |= {f"{field.name}.{m}": part for m, part in parts} or {field.name: value}
    return type(state).__name__, arrays


def put_together(kind: str, arrays: dict[str, Any]) -> Factor | Gram:
    """The statistic that was taken apart.

    Raises:
        ValueError: if the arrays do not fit together.

    Example:
        >>> from perfalign_jax import statistics
        >>> state = statistics.init((2, 1), kind="gram")
        >>> statistics.put_together(*statistics.take_apart(state))
        Gram(samples=0, dims=(2, 1), dtype=float32)
    """
    made = {"Factor": Factor, "Gram": Gram}.get(kind)
    views = range(sum(name.startswith("means.") for name in arrays))
    dims = [arrays[name].size if (name := f"means.{m}") in arrays else 0 for m in views]
    shapes: dict[str, tuple[int, ...]] = {"total": (2,), "count": (2,), "coarsest": ()}
    shapes |= {f"means.{m}": (dims[m],) for m in views}
    if kind == "Gram":
        shapes["scatter"] = (sum(dims), sum(dims))
    else:
        r = len(arrays["blocks.0"]) if getattr(arrays.get("blocks.0"), "ndim", 0) else 0
        shapes |= {f"blocks.{m}": (r, dims[m]) for m in views}
    came = {name: a.shape for name, a in sorted(arrays.items())}
    dtypes = {a.dtype for a in arrays.values()}
    good = came == shapes and len(views) > 1 and min(dims) > 0
    good = good and len(dtypes) == 1 and next(iter(dtypes)) in (np.float32, np.float64)
    if made is None or not good:
        raise ValueError(f"arrays must be those of a Factor or a Gram, got {kind} of {came}.")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(made):
        count = sum(name.startswith(f"{field.name}.") for name in arrays)
        values[field.name] = (
            tuple(jnp.asarray(arrays[f"{field.name}.{m}"]) for m in range(count))
            if count
            else jnp.asarray(arrays[field.name])
        )
    return made(**values)


def as_parts(data: Any) -> list[Any] | None:
    """Return the statistics that hold moments alone, or None where the data has its rows.

    Args:
        data: a statistic, a sequence of statistics of the same views, or views.

    Raises:
        TypeError: if statistics differ in kind of number, or other things are among them.
        ValueError: if they differ in features, or have seen nothing.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import statistics
        >>> x = np.eye(4, 2, dtype=np.float32)
        >>> statistics.as_parts((x, x)) is None
        True
    """
    parts = [data] if isinstance(data, Statistic) else list(data) if _is_sequence(data) else []
    if not any(isinstance(part, Statistic) for part in parts) or isinstance(parts[0], Samples):
        return None
    for number, part in enumerate(parts):
        name = f"data[{number}]" if len(parts) > 1 else "data"
        if not isinstance(part, Factor | Gram):
            raise TypeError(
                f"{name} must be a Factor or a Gram like the others, got {type(part).__name__}."
            )
        if part.dims != parts[0].dims:
            raise ValueError(f"{name} must have {parts[0].dims} features, got {part.dims}.")
        if part.dtype != parts[0].dtype:
            raise TypeError(f"{name} must have dtype {parts[0].dtype}, got {part.dtype}.")
        if not _checks.is_traced(part) and part.samples < 2:
            raise ValueError(f"{name} must have seen at least two rows, got {part.samples}.")
    return parts


def _is_sequence(data: Any) -> bool:
    return isinstance(data, list | tuple)


def rows(state: Statistic, *, center: bool) -> Rows:
    """Return rows that stand for all the samples: same Gram matrix, same singular values.

    Args:
        state: a statistic.
        center: whether the means are removed.

    Returns:
        ``Rows``; a ``Factor`` or ``Gram`` has at most ``d + 1`` of them.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(200, dtype=np.float32).reshape(100, 2) / 100
        >>> b1, b2 = pa.statistics.rows(pa.statistics.from_views((x, x)), center=False).blocks
        >>> bool(np.allclose(b1.T @ b2, x.T @ x, rtol=1e-5))
        True
    """
    return state._rows(center)


def count_rows(state: Statistic, *, center: bool) -> int:
    """Return how many ``rows`` there are.

    Example:
        >>> from perfalign_jax import statistics
        >>> statistics.count_rows(statistics.init((3, 2)), center=True)
        5
    """
    return state._count(center)


def _check_any(data: Samples) -> None:
    if data.samples < 1:
        names = " and ".join(f"x{m + 1}" for m in range(len(data.dims)))
        raise ValueError(f"{names} must have at least one row, got shape {data.views[0].shape}.")


def _check_state(state: Any, name: str) -> None:
    if not isinstance(state, Statistic):
        raise TypeError(
            f"{name} must be a statistic (Samples, Factor or Gram), got {type(state).__name__}."
        )
