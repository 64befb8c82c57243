"""Folds of second moments: fits on all folds but one, and what the one left out says of them.

A fold is the weight, mean and scatter of its rows, so leaving one out is addition, and a held-out
correlation is a product of directions with the moments of the fold that they have not seen. A side
is one view, or several in one; the features of all sides stand side by side.

With the moments of one training set written in the eigenvectors of its sides, whitening with a
ridge is a division, so trying many ridges costs one small factorisation each.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from perfalign_jax._numerics import compiled, matmul, namespace, over, repeat

__all__ = [
    "Axes",
    "Folds",
    "Incomplete",
    "Tried",
    "axes_of",
    "correlations",
    "count_axes",
    "effective_rows",
    "falling",
]
__all__ += ["of_rows", "others", "paired", "reliabilities", "split", "tell", "try_ridges"]

_WHOLE = 1024  # up to so many features all axes are found at once, above it the leading ones
_SWEEPS = 8  # of subspace iteration


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Folds:
    """Moments of the features of all sides, fold by fold.

    Attributes:
        weights: total weight of each fold, shape ``(F,)``.
        mean: of all folds together, shape ``(p,)``.
        means: of each fold about ``mean``, shape ``(F, p)``.
        scatters: weighted sums of products about the fold's own mean, shape ``(F, p, p)``.
        dims: number of features of each side; together ``p``.
    """

    weights: Float[Any, " f"]
    mean: Float[Any, " p"]
    means: Float[Any, "f p"]
    scatters: Float[Any, "f p p"]
    dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})


class Axes(NamedTuple):
    """Directions of every side, and how the sides' coordinates vary together.

    Attributes:
        directions: one ``(p_s, k)`` for each side.
        couplings: shape ``(k,)``, the correlation after whitening with the ridge.
        variances: shape ``(S, k)``, of the coordinates on the rows that were fitted.
    """

    directions: tuple[Float[Any, "_ k"], ...]
    couplings: Float[Any, " k"]
    variances: Float[Any, "s k"]


class Tried(NamedTuple):
    """What the folds say of each ridge.

    Attributes:
        covariances: shape ``(L, S, S, k)``: of the sides' coordinates on held-out rows, pooled.
        trained: shape ``(L, S, k)``: variances on the rows that were fitted, pooled.
        rho: shape ``(L, S, k)``: reliability of every side, from the held-out correlations.
        latents: one ``(F, L, b, k)`` for each side: coordinates of held-out rows, of variance one.
    """

    covariances: Float[Any, "l s s k"]
    trained: Float[Any, "l s k"]
    rho: Float[Any, "l s k"]
    latents: tuple[Float[Any, "f l b k"], ...]


class Incomplete(NamedTuple):
    """What to fit and to hold out where some rows have some sides only.

    A correlation needs both its variances from the rows that it is of: with those of other rows it
    can pass one. The folds' own scatters are then of all rows, at the mean where a side is missing.

    Attributes:
        means: what to fit without each fold, shape ``(F, p)``.
        covariances: shape ``(F, p, p)``.
        scatters: of each fold, for each pair of sides of the rows that have both, about the mean
            that was fitted, shape ``(F, P, p, p)``.
        seen: weight of the rows that have each side, shape ``(S,)``.
        both: weight of the rows that have both sides of a pair, shape ``(P,)``.
    """

    means: Float[Any, "f p"]
    covariances: Float[Any, "f p p"]
    scatters: Float[Any, "f q p p"]
    seen: Float[Any, " s"]
    both: Float[Any, " q"]


def split(whole: Any, dims: tuple[int, ...], axis: int = -1) -> list[Any]:
    """Cut an axis of features into the sides."""
    return namespace(whole).split(whole, np.cumsum(dims)[:-1].tolist(), axis=axis)


@compiled()
def of_rows(
    features: tuple[Float[Any, "n _"], ...],
    order: Int[Any, "f b"],
    weights: Float[Any, " n"],
) -> Folds:
    """Moments of folds of rows; ``order`` lists each fold's rows, filled up with -1."""
    xp = namespace(weights)
    x = xp.concatenate(features, axis=1)
    total = xp.maximum(weights.sum(), jnp.finfo(x.dtype).tiny)
    mean = matmul(weights, x) / total
    x = x - mean[None, :]

    def one(rows: Int[Any, " b"]) -> tuple[Any, Any, Any]:
        w = xp.where(rows >= 0, weights[rows], 0)
        part = x[rows]
        weight = w.sum()
        middle = matmul(w, part) / xp.where(weight > 0, weight, 1)
        part = xp.sqrt(w)[:, None] * (part - middle[None, :])
        return weight, middle, matmul(part.T, part)

    sizes, means, scatters = over(one, order)
    return Folds(sizes, mean, means, scatters, tuple(f.shape[1] for f in features))


def others(folds: Folds, left_out: Any | int) -> tuple[Float[Any, " p"], Float[Any, "p p"]]:
    """Mean (about the common one) and covariance of all folds but one; of all for -1."""
    xp = namespace(folds.weights)
    kept = xp.arange(len(folds.weights)) != left_out
    w = xp.where(kept, folds.weights, 0)
    total = xp.maximum(w.sum(), jnp.finfo(w.dtype).tiny)
    mean = matmul(w, folds.means) / total
    apart = xp.sqrt(w)[:, None] * (folds.means - mean[None, :])
    scatter = matmul(kept.astype(w.dtype), folds.scatters.reshape(len(kept), -1))
    scatter = scatter.reshape(folds.scatters.shape[1:])
    return mean, (scatter + matmul(apart.T, apart)) / total


@jax.custom_jvp
def _eigh(matrix: Float[Any, "p p"]) -> tuple[Float[Any, " p"], Float[Any, "p p"]]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@_eigh.defjvp
def _eigh_jvp(primals: tuple, tangents: tuple) -> tuple:
    # Inside a cluster of equal eigenvalues the basis is arbitrary: what only the basis feels has
    # no derivative, and 0 stands for it instead of a division by rounding errors.
    values, vectors = _eigh(primals[0])
    turned = matmul(matmul(vectors.T, tangents[0]), vectors)
    gaps = values[None, :] - values[:, None]
    size = jnp.max(jnp.abs(values), initial=0)
    apart = jnp.abs(gaps) > jnp.finfo(values.dtype).eps * len(values) * size
    turn = jnp.where(apart, turned / jnp.where(apart, gaps, 1), 0)
    return (values, vectors), (jnp.diagonal(turned), matmul(vectors, turn))


def eigh(matrix: Float[Any, "p p"]) -> tuple[Float[Any, " p"], Float[Any, "p p"]]:
    """Eigenvalues, smallest first, and eigenvectors."""
    return np.linalg.eigh(matrix) if namespace(matrix) is np else _eigh(matrix)


def _leading_eigenpairs(
    matrix: Float[Any, "p p"], k: int
) -> tuple[Float[Any, " k"], Float[Any, "p k"]]:
    """The k largest eigenvalues of a symmetric matrix that has none far below zero."""
    p, xp = matrix.shape[0], namespace(matrix)
    if p <= _WHOLE or 4 * k > p:
        values, vectors = eigh(matrix)
        return values[::-1][:k], vectors[:, ::-1][:, :k]
    # Subspace iteration from a fixed start; what lies near the k-th is left to the spare columns.
    size = min(p, k + 32)
    place = xp.arange(p * size, dtype=matrix.dtype).reshape(p, size)
    block = xp.sin(place * place % 7919)
    for _ in range(_SWEEPS):
        block, _ = xp.linalg.qr(matmul(matrix, block))
    values, turn = eigh(matmul(block.T, matmul(matrix, block)))
    return values[::-1][:k], matmul(block, turn[:, ::-1][:, :k])


def _couple(
    cross: Float[Any, "p p"], dims: tuple[int, ...], k: int
) -> tuple[Float[Any, " k"], list[Float[Any, "_ k"]]]:
    """Leading axes of whitened sides: an SVD for two, the joint eigenvectors (MAXVAR) for more."""
    xp = namespace(cross)
    if len(dims) > 2:
        # A side says nothing of itself, so its own block is 1, whatever the ridge took from it.
        side = np.repeat(np.arange(len(dims)), dims)
        eye = xp.eye(len(side), dtype=cross.dtype)
        cross = xp.where(side[:, None] == side[None, :], eye, cross)
        values, joint = _leading_eigenpairs(cross, k)
        parts = split(joint, dims, axis=0)
        lengths = [xp.sqrt((part**2).sum(axis=0)) for part in parts]
        return (values - 1) / (len(dims) - 1), [
            part / xp.where(length > 0, length, 1)[None, :]
            for part, length in zip(parts, lengths, strict=True)
        ]
    block = cross[: dims[0], dims[0] :]
    # From the smaller Gram matrix: couplings below sqrt(eps) are lost, and are none.
    turned = block if dims[0] <= dims[1] else block.T
    _, first = _leading_eigenpairs(matmul(turned, turned.T), k)
    second = matmul(turned.T, first)
    squares = (second**2).sum(axis=0)  # the eigenvalues, never below zero by rounding
    positive = squares > 0
    length = xp.sqrt(xp.where(positive, squares, 1))
    second = second / length[None, :]
    pair = [first, second] if dims[0] <= dims[1] else [second, first]
    return xp.where(positive, length, 0), pair


class _Turned(NamedTuple):
    """Moments of one training set in the eigenvectors of its sides."""

    values: Float[Any, " p"]
    vectors: tuple[Float[Any, "_ _"], ...]
    covariance: Float[Any, "p p"]


def _turn(covariance: Float[Any, "p p"], dims: tuple[int, ...]) -> _Turned:
    starts = np.cumsum((0, *dims))
    xp = namespace(covariance)
    pairs = [eigh(covariance[a:b, a:b]) for a, b in itertools.pairwise(starts)]
    values = xp.concatenate([xp.maximum(values, 0) for values, _ in pairs])
    vectors = tuple(vectors for _, vectors in pairs)
    return _Turned(values, vectors, _both(covariance, vectors, dims))


def _both(
    matrix: Float[Any, "p p"], vectors: tuple[Any, ...], dims: tuple[int, ...]
) -> Float[Any, "p p"]:
    """``V' matrix V`` with block-diagonal V."""
    rows = [matmul(v.T, part) for v, part in zip(vectors, split(matrix, dims, 0), strict=True)]
    xp = namespace(matrix)
    whole = xp.concatenate(rows)
    columns = [matmul(part, v) for v, part in zip(vectors, split(whole, dims), strict=True)]
    return xp.concatenate(columns, axis=1)


def _ridged(turned: _Turned, dims: tuple[int, ...], ridge: Any, k: int) -> Axes:
    """Axes in the turned basis; the ridge is relative to each side's mean eigenvalue."""
    xp, whiten = namespace(turned.values), []
    for values in split(turned.values, dims):
        # What is below the rounding of the largest eigenvalue is no direction of the data: these
        # rows do not move in it, and others that do would be enlarged without limit.
        least = 8 * jnp.finfo(values.dtype).eps * values.max()
        penalty = xp.maximum(ridge * values.mean(), least)
        there = values > least
        whiten.append(xp.where(there, 1 / xp.sqrt(xp.where(there, values + penalty, 1)), 0))
    d = xp.concatenate(whiten)
    couplings, parts = _couple(d[:, None] * turned.covariance * d[None, :], dims, k)
    directions = [w[:, None] * part for w, part in zip(whiten, parts, strict=True)]
    variances = [
        matmul(values, part**2)
        for part, values in zip(directions, split(turned.values, dims), strict=True)
    ]
    return Axes(tuple(directions), couplings, xp.stack(variances))


def axes_of(covariance: Float[Any, "p p"], dims: tuple[int, ...], ridge: Any, k: int) -> Axes:
    """Axes of one covariance of all sides."""
    turned = _turn(covariance, dims)
    axes = _ridged(turned, dims, ridge, k)
    back = tuple(matmul(v, a) for v, a in zip(turned.vectors, axes.directions, strict=True))
    return axes._replace(directions=back)


@compiled("k")
def try_ridges(
    folds: Folds,
    rows: Float[Any, "f b p"],
    ridges: Float[Any, " l"],
    count: Any,
    *,
    k: int,
    incomplete: Incomplete | None = None,
) -> Tried:
    """Fit on all folds but one with every ridge, and use it on the one left out.

    ``rows`` are some rows of each fold, about ``folds.mean``; there may be none. ``count`` is how
    many equally weighted rows tell as much as all do.
    """
    dims, xp = folds.dims, namespace(folds.weights)
    pairs = list(itertools.combinations(range(len(dims)), 2))

    def leave_out(number: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        if incomplete is None:
            mean, covariance = others(folds, number)
        else:
            mean, covariance = incomplete.means[number], incomplete.covariances[number]
        turned = _turn(covariance, dims)
        gap = folds.means[number] - mean
        weight = folds.weights[number]
        # About the mean that was fitted: what a new row will be compared by.
        scatter = folds.scatters[number] + weight * gap[:, None] * gap[None, :]
        held_out = _both(scatter, turned.vectors, dims)
        if incomplete is not None:
            seen_both = over(lambda s: _both(s, turned.vectors, dims), incomplete.scatters[number])
        parts = split(rows[number] - mean[None, :], dims)
        seen = [matmul(x, v) for x, v in zip(parts, turned.vectors, strict=True)]

        def one(ridge: Any) -> tuple[Any, Any, tuple[Any, ...]]:
            axes = _ridged(turned, dims, ridge, k)
            latents = tuple(matmul(x, a) for x, a in zip(seen, axes.directions, strict=True))
            moments = paired(held_out, dims, axes)[None]
            if incomplete is not None:
                own = over(lambda s: paired(s, dims, axes), seen_both)
                moments = xp.concatenate([moments, own])
            return moments, weight * axes.variances, latents

        return over(one, ridges)

    covariances, own, latents = over(leave_out, xp.arange(len(folds.weights)))
    total = xp.maximum(folds.weights.sum(), jnp.finfo(folds.weights.dtype).tiny)
    pooled = covariances.sum(axis=0)
    moments = pooled[:, 0] / total
    if incomplete is not None:
        seen = incomplete.seen
        share = xp.sqrt(total / xp.where(seen > 0, seen, 1))
        moments = moments * (share[:, None] * share[None, :])[None, :, :, None]
        spread = xp.sqrt(xp.diagonal(moments, axis1=1, axis2=2))  # (l, k, s)
        for q, (a, b) in enumerate(pairs):
            both = incomplete.both[q] > 0
            r = xp.where(both, correlations(pooled[:, 1 + q])[:, a, b], xp.nan)
            common = r * spread[:, :, a] * spread[:, :, b]
            own_place = np.zeros((len(dims), len(dims), 1), bool)
            own_place[a, b] = own_place[b, a] = True
            moments = xp.where(own_place, common[:, None, None, :], moments)
    variances = xp.diagonal(moments, axis1=1, axis2=2)  # (l, k, s)
    scale = 1 / xp.sqrt(xp.where(variances > 0, variances, xp.inf))
    latents = tuple(z * scale[None, :, None, :, s] for s, z in enumerate(latents))
    rho = over(lambda one: reliabilities(one, count), moments)
    return Tried(moments, own.sum(axis=0) / total, rho, latents)


def paired(scatter: Float[Any, "p p"], dims: tuple[int, ...], axes: Axes) -> Float[Any, "s s k"]:
    """Second moments of the sides' coordinates, axis by axis."""
    starts, xp = np.cumsum((0, *dims)), namespace(scatter)
    table = []
    for a, first in enumerate(axes.directions):
        seen = matmul(scatter[:, starts[a] : starts[a + 1]], first)
        parts = zip(axes.directions, split(seen, dims, 0), strict=True)
        table.append(xp.stack([(other * part).sum(axis=0) for other, part in parts]))
    return xp.stack(table)


def correlations(covariances: Float[Any, "... s s k"]) -> Float[Any, "... s s k"]:
    """Correlations of the sides' coordinates on held-out rows; 0 where one does not vary."""
    xp = namespace(covariances)
    variances = xp.moveaxis(xp.diagonal(covariances, axis1=-3, axis2=-2), -1, -2)
    product = variances[..., :, None, :] * variances[..., None, :, :]
    safe = xp.where(product > 0, product, 1)
    return xp.where(product > 0, covariances / xp.sqrt(safe), 0)


def effective_rows(weights: Float[Any, " n"]) -> Float[Any, ""]:
    """How many rows of one weight say as much of a mean (Kish, 1965)."""
    tiny = jnp.finfo(weights.dtype).tiny
    largest = namespace(weights).maximum(weights.max(), tiny)
    share = weights / largest
    return share.sum() ** 2 / namespace(weights).maximum((share**2).sum(), tiny)


def count_axes(rho: Float[Any, "s k"]) -> int:
    """Axes up to the last on which two sides agree on held-out rows; at least one."""
    agree = np.flatnonzero((np.asarray(rho) > 0).sum(axis=0) > 1)
    return int(agree[-1]) + 1 if len(agree) else 1


def falling(values: Float[Any, "... k"]) -> Float[Any, "... k"]:
    """The nearest sequence that never rises: isotonic regression.

    Axes come in the order of their fitted couplings, so their held-out correlations mostly fall but
    for noise, which this averages out. By the min-max formula (Robertson, Wright and Dykstra,
    1988): ``min over a <= j of the max over b >= j of the mean from a to b``.
    """
    xp = namespace(values)
    sums = xp.cumsum(values, axis=-1)
    place = np.arange(values.shape[-1])
    count = place[None, :] - place[:, None] + 1
    count = count.reshape((1,) * (values.ndim - 1) + count.shape)
    inside = count > 0
    means = sums[..., None, :] - (sums - values)[..., :, None]
    means = xp.where(inside, means / np.where(inside, count, 1).astype(values.dtype), -xp.inf)
    largest: Any = means[..., ::-1]
    largest = (
        np.maximum.accumulate(largest, -1)
        if xp is np
        else jax.lax.cummax(largest, axis=means.ndim - 1)
    )
    largest = largest[..., ::-1]
    return xp.where(inside, largest, xp.inf).min(axis=-2)


def _smooth(r: Float[Any, "... k"], count: Any) -> Float[Any, "... k"]:
    """Correlations that fall from axis to axis, as far as noise explains that they do not.

    The order is that of the couplings, which a ridge or a third side can turn round: an axis that
    would move by more than three standard errors of a correlation of unrelated ones stays.
    """
    xp = namespace(r)
    band = (3 / xp.sqrt(xp.maximum(count, 1))).astype(r.dtype)
    smooth = falling(r)
    return xp.clip(xp.where(xp.abs(smooth - r) > band, r, smooth), 0, TOP)


_ROUNDS = 40  # of the factor model: it has one number for each side
TOP = 1 - 1e-6  # correlations above are not told apart: an axis' weight grows like 1 / (1 - r^2)


def reliabilities(covariances: Float[Any, "s s k"], count: Any) -> Float[Any, "s k"]:
    """Correlation of every side with what they share, axis by axis, from held-out moments.

    One common factor explains all pairs, ``r_ab = rho_a rho_b``: principal factor analysis. With
    two sides both have the root of their correlation. A pair that no row has is NaN in the moments,
    and left out. ``count`` is the number of held-out rows.
    """
    s, r, xp = covariances.shape[0], correlations(covariances), namespace(covariances)
    if s == 2:
        held_out = _smooth(r[0, 1], count)
        positive = held_out > 0
        shared = xp.where(positive, xp.sqrt(xp.where(positive, held_out, 1)), 0)
        return xp.stack([shared, shared])
    off = ~np.eye(s, dtype=bool)[:, :, None] & ~xp.isnan(r)
    r = xp.where(off, _smooth(r, count), 0)
    count = xp.maximum(off.sum(axis=1), 1).astype(r.dtype)

    def step(rho: Any) -> Any:
        # Each side from the others: least squares of r_ab on rho_b.
        seen = xp.where(off, rho[None, :, :], 0)
        weight = (seen**2).sum(axis=1)
        fitted = (r * seen).sum(axis=1) / xp.where(weight > 0, weight, 1)
        return xp.clip((rho + fitted) / 2, 0, TOP**0.5)

    return repeat(_ROUNDS, step, xp.sqrt(r.sum(axis=1) / count))


def tell(covariances: Float[Any, "s s k"]) -> Float[Any, ""]:
    """Information of held-out moments in nats, ``-1/2 sum log(1 - r^2)``, over pairs of sides."""
    r, xp = correlations(covariances), namespace(covariances)
    above = np.triu(np.ones(r.shape[:2], bool), 1)[:, :, None]
    r = xp.where(above, xp.clip(r, 0, TOP), 0)
    return -xp.log1p(-(r**2)).sum() / 2
