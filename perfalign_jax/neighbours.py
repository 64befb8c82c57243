"""Whether a sample is found by its neighbours: retrieval of partners, and shared neighbourhoods.

Distances come from products, in blocks of ``chunk`` rows, so that memory never grows with the
square of the number of samples. Two candidates whose distances differ by no more than rounding
count as tied, and ties share their ranks: neither the order of the samples nor the size of the
blocks decides. Ranks have no gradient: it is zero.

A ``TypeError`` is raised if an array does not hold real numbers or an option no integers, a
``ValueError`` if an array is empty, not 2-D or not finite, the shapes do not fit together, or an
option is out of range. Where a value is not known yet, inside ``jit`` and ``vmap``, a latent that
is not finite is nobody's neighbour and makes every figure NaN.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from perfalign_jax import _checks
from perfalign_jax._numerics import matmul
from perfalign_jax.metrics import Latents, Matrix, paired_rows, unit_rows

__all__ = ["Retrieval", "mutual_knn", "retrieval"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How often a sample finds its partner in the other modality, both ways.

    Attributes:
        recall_12: shape ``(len(at),)``; share of the queries of modality 1 whose partner of
            modality 2 is among the nearest ``at[i]``.
        recall_21: the same with modality 2 asking.
        median_rank_12: median rank of the partner, from 1 (nearest) to ``n``, modality 1 asking.
        median_rank_21: the same with modality 2 asking.
        at: how many of the nearest count as found.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.neighbours import retrieval
        >>> retrieval(jnp.eye(4), jnp.eye(4), at=(1, 2)).at
        (1, 2)
    """

    recall_12: Float[Array, " a"]
    recall_21: Float[Array, " a"]
    median_rank_12: Float[Array, ""]
    median_rank_21: Float[Array, ""]
    at: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def retrieval(
    z1: Latents,
    z2: Latents,
    *,
    at: tuple[int, ...] = (1, 5, 10),
    metric: str = "euclidean",
    chunk: int = 1024,
) -> Retrieval:
    """Rank every sample's partner among all samples of the other modality.

    Candidates at equal distance share their ranks: the median rank uses mid-ranks, and the recall
    is the one expected when ties are broken at random. So latents that are all equal score at
    chance, ``at / n``, and not 100 %. Equal means up to rounding, a few ``eps`` of the squared
    distance from the cloud's centre: in float32, candidates nearer to each other than about a
    thousandth of that distance may tie, so use float64 there.

    Args:
        z1: latents of modality 1, shape ``(n, k)``.
        z2: latents of modality 2, shape ``(n, k)``.
        at: how many of the nearest count as found, any number of choices.
        metric: ``"euclidean"``, or ``"cosine"`` for latents divided by their norms.
        chunk: rows per block; memory grows with ``chunk**2 + n``.

    Raises:
        TypeError, ValueError: as the module says.

    Source: the usual measure of cross-modal retrieval.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.neighbours import retrieval
        >>> retrieval(jnp.eye(4), jnp.eye(4), at=(1,)).recall_12.tolist()
        [1.0]
        >>> collapsed = retrieval(jnp.zeros((4, 2)), jnp.zeros((4, 2)), at=(1,))
        >>> collapsed.recall_12.tolist(), float(collapsed.median_rank_12)
        ([0.25], 2.5)
    """
    z1, z2 = _checks.latents(z1, z2)
    if not isinstance(at, Sequence) or isinstance(at, str) or len(at) == 0:
        raise TypeError(f"at must be a tuple of integers such as (1, 5, 10), got {at!r}.")
    at = tuple(_checks.integer(a, f"at[{i}]", low=1) for i, a in enumerate(at))
    _checks.one_of(metric, "metric", ("euclidean", "cosine"))
    chunk = _checks.integer(chunk, "chunk", low=1)
    z1, z2 = _alike(z1, z2)
    return _retrieval(z1, z2, at=at, metric=metric, chunk=min(chunk, z1.shape[0]))


def mutual_knn(
    z1: Matrix, z2: Matrix, *, neighbors: int = 10, metric: str = "cosine", chunk: int = 256
) -> Float[Array, ""]:
    """Mean share of a sample's nearest neighbours that two representations have in common.

    Neighbours are sought inside each representation; the sample itself does not count. Samples tied
    for the last places share them, so latents that are all equal score at chance,
    ``neighbors / (n - 1)``.

    Args:
        z1: first representation, shape ``(n, k1)``.
        z2: second representation of the same samples, shape ``(n, k2)``.
        neighbors: how many nearest neighbours, below ``n``.
        metric: ``"cosine"`` (the source's), or ``"euclidean"``.
        chunk: rows per block; memory grows with ``chunk * n``.

    Raises:
        TypeError, ValueError: as the module says.

    Source: Huh et al., "The Platonic Representation Hypothesis", ICML 2024.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.neighbours import mutual_knn
        >>> z = jnp.array([[0.0], [1.0], [3.0], [7.0]])
        >>> float(mutual_knn(z, 2 * z, neighbors=1, metric="euclidean"))
        1.0
    """
    z1, z2 = paired_rows(z1, z2, "z1", "z2")
    n = z1.shape[0]
    neighbors = _checks.integer(
        neighbors, "neighbors", low=1, high=max(n - 1, 1), why=f" (there are {n} samples)"
    )
    if n < 2:
        raise ValueError(f"z1 and z2 must have at least two rows, got {n}.")
    _checks.one_of(metric, "metric", ("cosine", "euclidean"))
    chunk = _checks.integer(chunk, "chunk", low=1)
    z1, z2 = _alike(z1, z2)
    return _mutual_knn(z1, z2, neighbors=neighbors, metric=metric, chunk=min(chunk, n))


def _blocks(values: Array, chunk: int, fill: float | int) -> Array:
    missing = -values.shape[0] % chunk
    padding = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
    return jnp.pad(values, padding, constant_values=fill).reshape(-1, chunk, *values.shape[1:])


def _alike(z1: Array, z2: Array) -> tuple[Array, Array]:
    """Both in the wider of their dtypes."""
    wider = max((z1.dtype, z2.dtype), key=lambda dtype: dtype.itemsize)
    return z1.astype(wider), z2.astype(wider)


def _squares(z: Float[Array, "n k"]) -> Float[Array, " n"]:
    return jnp.sum(z**2, axis=-1)


def _squared_distances(
    a: Float[Array, "p k"], aa: Float[Array, " p"], b: Float[Array, "q k"], bb: Float[Array, " q"]
) -> Float[Array, "p q"]:
    """Squared distances of rows whose squared norms are known."""
    return (aa[:, None] + bb[None, :]) - 2 * matmul(a, b.T)


def _clouds(
    metric: str, *latents: Float[Array, "n _"]
) -> list[tuple[Float[Array, "n _"], Float[Array, " n"]]]:
    """Rows to compare by Euclidean distance, each with the norm it was rounded at.

    For ``"cosine"`` they have length one; else they move to a common centre and by a power of two
    to a common scale: no rank changes, nothing overflows, and products lose fewer digits.
    """
    rows = list(jax.lax.stop_gradient(latents))
    if metric == "cosine":
        scaled = points = [unit_rows(z) for z in rows]
    else:
        size = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(z)) for z in rows])
        scaled = [jnp.ldexp(z, -jnp.frexp(size)[1]) for z in rows]
        middle = jnp.mean(scaled[-1], axis=0, keepdims=True)
        # Some bits fewer, so that no fused multiply-add of the mean's division by n gives a row
        # other bits wherever XLA computes it anew.
        kind = jnp.finfo(middle.dtype)
        middle = jax.lax.reduce_precision(middle, kind.nexp, kind.nmant - 2)
        points = [z - middle for z in scaled]
    return [(z, jnp.sqrt(_squares(s))) for z, s in zip(points, scaled, strict=True)]


def _band(
    squared: Float[Array, " n"], points: Float[Array, "n k"], norms: Float[Array, " n"]
) -> Float[Array, " n"]:
    """How far a squared distance may be from a query's ``squared`` one and still be equal to it.

    A query of length a (from the centre) sees a candidate at distance d, of length b <= a + d.
    Computed as a^2 + b^2 - 2 a.b, d^2 is rounded by a few eps of (a + b)^2 <= (2 a + d)^2. The
    candidate was itself rounded, at its distance A from the origin: that moves d by a few eps of
    A, and d^2 by 2 d A eps + (A eps)^2. A few is 2 + sqrt(k): two additions, and a sum of k terms
    whose errors are independent.
    """
    rounding = jnp.finfo(points.dtype).eps * (2 + points.shape[-1] ** 0.5)
    length, distance = jnp.sqrt(_squares(points)), jnp.sqrt(jnp.maximum(squared, 0))
    moved = rounding * norms
    return rounding * (2 * length + distance) ** 2 + moved * (2 * distance + moved)


def _or_nan(result: Any, *latents: Float[Array, "n _"]) -> Any:
    known = jnp.all(jnp.stack([jnp.isfinite(z).all() for z in latents]))
    return jax.tree.map(lambda value: jnp.where(known, value, jnp.nan), result)


@functools.partial(jax.jit, static_argnames=("at", "metric", "chunk"))
def _retrieval(
    z1: Float[Array, "n k"],
    z2: Float[Array, "n k"],
    *,
    at: tuple[int, ...],
    metric: str,
    chunk: int,
) -> Retrieval:
    n = z1.shape[0]
    clouds = _clouds(metric, z1, z2)
    partner = _squares(clouds[0][0] - clouds[1][0])
    sides = []
    for points, norms in clouds:
        band = _band(partner, points, norms)
        limits = jnp.stack([partner - band, partner + band], axis=1)
        # Rows that fill the last block are infinitely far from all.
        row = ((points, 0), (_squares(points), jnp.inf), (limits, 0), (jnp.arange(n), -1))
        sides.append(tuple(_blocks(values, chunk, fill) for values, fill in row))

    def against_block(columns: Array, query: Any) -> tuple[Array, Array]:
        a, aa, limits_a, number_a = query

        def one(row: Array, candidate: Any) -> tuple[Array, Array]:
            b, bb, limits_b, number_b = candidate
            own = number_a[:, None] == number_b[None, :]
            distances = jnp.where(own, jnp.inf, _squared_distances(a, aa, b, bb))
            row += _count(distances, limits_a.T[:, :, None], axis=1)
            return row, _count(distances, limits_b.T[:, None, :], axis=0)

        row, added = jax.lax.scan(one, jnp.zeros((2, chunk), jnp.int32), sides[1])
        return columns + added, row

    start = jnp.zeros((-(-n // chunk), 2, chunk), jnp.int32)
    columns, rows = jax.lax.scan(against_block, start, sides[0])
    (recall_12, median_12), (recall_21, median_21) = (
        _recall(counts, n, at, z1.dtype) for counts in (rows, columns)
    )
    return _or_nan(Retrieval(recall_12, recall_21, median_12, median_21, at=at), z1, z2)


def _count(distances: Float[Array, "p q"], limits: Array, *, axis: int) -> Int[Array, "2 _"]:
    """How many candidates are nearer than the partner, and how many nearer or as near."""
    masks = distances < limits[0], distances <= limits[1]
    return jnp.stack([jnp.sum(m, axis=axis, dtype=jnp.int32) for m in masks])


def _recall(
    counts: Int[Array, "b 2 chunk"], n: int, at: tuple[int, ...], dtype: jnp.dtype
) -> tuple[Float[Array, " a"], Float[Array, ""]]:
    """Expected recall and median mid-rank from the numbers of nearer and of as near candidates."""
    nearer, within = (counts[:, i].reshape(-1)[:n].astype(dtype) for i in range(2))
    tied = within - nearer
    places = jnp.asarray(at, dtype)
    hit = jnp.clip((places[:, None] - nearer[None, :]) / (tied + 1)[None, :], 0, 1)
    return jnp.mean(hit, axis=1), jnp.median(1 + nearer + tied / 2)


@functools.partial(jax.jit, static_argnames=("neighbors", "metric", "chunk"))
def _mutual_knn(
    z1: Float[Array, "n k1"], z2: Float[Array, "n k2"], *, neighbors: int, metric: str, chunk: int
) -> Float[Array, ""]:
    n = z1.shape[0]
    clouds = [_clouds(metric, z)[0] for z in (z1, z2)]
    queries = [(_blocks(points, chunk, 0), _blocks(norms, chunk, 0)) for points, norms in clouds]
    numbers = _blocks(jnp.arange(n), chunk, n)

    def block(carry: Array, query: Any) -> tuple[Array, None]:
        number, rows = query
        own = jnp.arange(n)[:, None] == number[None, :]
        weights = []
        for (points, _), (row, norms) in zip(clouds, rows, strict=True):
            distances = _squared_distances(points, _squares(points), row, _squares(row))
            band = functools.partial(_band, points=row, norms=norms)
            weights.append(_membership(jnp.where(own, jnp.inf, distances), band, neighbors))
        shared = jnp.sum(weights[0] * weights[1], axis=0) / neighbors
        return carry + jnp.sum(jnp.where(number < n, shared, 0)), None

    total, _ = jax.lax.scan(block, jnp.zeros((), z1.dtype), (numbers, queries))
    return _or_nan(total / n, z1, z2)


def _membership(
    distances: Float[Array, "n p"], band: Callable[[Array], Array], neighbors: int
) -> Float[Array, "n p"]:
    """Weight with which each row is among a column's nearest; ties share the last places."""

    # The next larger value, as often as needed: far faster than sorting, and down the columns,
    # because XLA:CPU vectorises that direction.
    def widen(_: int | Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        level, found = state
        wider = jnp.min(jnp.where(distances > level, distances, jnp.inf), axis=0, keepdims=True)
        level = jnp.where(found < neighbors, wider, level)
        return level, jnp.sum(distances <= level, axis=0, keepdims=True, dtype=jnp.int32)

    none = jnp.zeros((1, distances.shape[1]), jnp.int32)
    level, _ = jax.lax.fori_loop(
        0, neighbors, widen, (jnp.full(none.shape, -jnp.inf, distances.dtype), none)
    )
    width = band(level[0])[None, :]
    nearer = distances < level - width
    tied = (distances <= level + width) & ~nearer
    certain, ties = (
        jnp.sum(m, axis=0, keepdims=True, dtype=jnp.int32).astype(distances.dtype)
        for m in (nearer, tied)
    )
    return jnp.where(nearer, 1, jnp.where(tied, (neighbors - certain) / ties, 0))
