"""Folds of second moments: fits on all folds but one, and what the one left out says of them.

A fold is the weight, mean and scatter of its rows, so leaving one out is addition, and a held-out
correlation is a product of directions with the moments of the fold that they have not seen. A side
is one view, or several in one; the features of all sides stand side by side.

With the moments of one training set written in the eigenvectors of its sides, whitening with a
ridge is a division, so trying many ridges costs one small factorisation each.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perfalign_jax._numerics import matmul

__all__ = [
    "Axes",
    "Folds",
    "Incomplete",
    "Tried",
    "axes_of",
    "correlations",
    "falling",
    "information",
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

    weights: Float[Array, " f"]
    mean: Float[Array, " p"]
    means: Float[Array, "f p"]
    scatters: Float[Array, "f p p"]
    dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})


class Axes(NamedTuple):
    """Directions of every side, and how the sides' coordinates vary together.

    Attributes:
        directions: one ``(p_s, k)`` for each side.
        couplings: shape ``(k,)``, the correlation after whitening with the ridge.
        variances: shape ``(S, k)``, of the coordinates on the rows that were fitted.
    """

    directions: tuple[Float[Array, "_ k"], ...]
    couplings: Float[Array, " k"]
    variances: Float[Array, "s k"]


class Tried(NamedTuple):
    """What the folds say of each ridge.

    Attributes:
        covariances: shape ``(L, S, S, k)``: of the sides' coordinates on held-out rows, pooled.
        trained: shape ``(L, S, k)``: variances on the rows that were fitted, pooled.
        rho: shape ``(L, S, k)``: reliability of every side, from the held-out correlations.
        latents: one ``(F, L, b, k)`` for each side: coordinates of held-out rows, of variance one.
    """

    covariances: Float[Array, "l s s k"]
    trained: Float[Array, "l s k"]
    rho: Float[Array, "l s k"]
    latents: tuple[Float[Array, "f l b k"], ...]


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

    means: Float[Array, "f p"]
    covariances: Float[Array, "f p p"]
    scatters: Float[Array, "f q p p"]
    seen: Float[Array, " s"]
    both: Float[Array, " q"]


def split(whole: Array, dims: tuple[int, ...], axis: int = -1) -> list[Array]:
    """Cut an axis of features into the sides."""
    return jnp.split(whole, np.cumsum(dims)[:-1].tolist(), axis=axis)


@jax.jit
def of_rows(
    features: tuple[Float[Array, "n _"], ...],
    order: Int[Array, "f b"],
    weights: Float[Array, " n"],
) -> Folds:
    """Moments of folds of rows; ``order`` lists each fold's rows, filled up with -1."""
    x = jnp.concatenate(features, axis=1)
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(x.dtype).tiny)
    mean = matmul(weights, x) / total
    x = x - mean[None, :]

    def one(rows: Int[Array, " b"]) -> tuple[Array, Array, Array]:
        w = jnp.where(rows >= 0, weights[rows], 0)
        part = x[rows]
        weight = jnp.sum(w)
        middle = matmul(w, part) / jnp.where(weight > 0, weight, 1)
        part = jnp.sqrt(w)[:, None] * (part - middle[None, :])
        return weight, middle, matmul(part.T, part)

    sizes, means, scatters = jax.lax.map(one, order)
    return Folds(sizes, mean, means, scatters, tuple(f.shape[1] for f in features))


def others(folds: Folds, left_out: Array | int) -> tuple[Float[Array, " p"], Float[Array, "p p"]]:
    """Mean (about the common one) and covariance of all folds but one; of all for -1."""
    kept = jnp.arange(len(folds.weights)) != left_out
    w = jnp.where(kept, folds.weights, 0)
    total = jnp.maximum(jnp.sum(w), jnp.finfo(w.dtype).tiny)
    mean = matmul(w, folds.means) / total
    apart = jnp.sqrt(w)[:, None] * (folds.means - mean[None, :])
    scatter = jnp.tensordot(
        kept.astype(w.dtype), folds.scatters, 1, precision=jax.lax.Precision.HIGHEST
    )
    return mean, (scatter + matmul(apart.T, apart)) / total


@jax.custom_jvp
def _eigh(matrix: Float[Array, "p p"]) -> tuple[Float[Array, " p"], Float[Array, "p p"]]:
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


def _leading_eigenpairs(
    matrix: Float[Array, "p p"], k: int
) -> tuple[Float[Array, " k"], Float[Array, "p k"]]:
    """The k largest eigenvalues of a symmetric matrix that has none far below zero."""
    p = matrix.shape[0]
    if p <= _WHOLE or 4 * k > p:
        values, vectors = _eigh(matrix)
        return values[::-1][:k], vectors[:, ::-1][:, :k]
    # Subspace iteration from a fixed start; what lies near the k-th is left to the spare columns.
    size = min(p, k + 32)
    place = jnp.arange(p * size, dtype=matrix.dtype).reshape(p, size)
    block = jnp.sin(place * place % 7919)
    for _ in range(_SWEEPS):
        block, _ = jnp.linalg.qr(matmul(matrix, block))
    values, turn = _eigh(matmul(block.T, matmul(matrix, block)))
    return values[::-1][:k], matmul(block, turn[:, ::-1][:, :k])


def _couple(
    cross: Float[Array, "p p"], dims: tuple[int, ...], k: int
) -> tuple[Float[Array, " k"], list[Float[Array, "_ k"]]]:
    """Leading axes of whitened sides: an SVD for two, the joint eigenvectors (MAXVAR) for more."""
    if len(dims) > 2:
        values, joint = _leading_eigenpairs(cross, k)
        parts = split(joint, dims, axis=0)
        lengths = [jnp.sqrt(jnp.sum(part**2, axis=0)) for part in parts]
        return (values - 1) / (len(dims) - 1), [
            part / jnp.where(length > 0, length, 1)[None, :]
            for part, length in zip(parts, lengths, strict=True)
        ]
    block = cross[: dims[0], dims[0] :]
    # From the smaller Gram matrix: couplings below sqrt(eps) are lost, and are none.
    turned = block if dims[0] <= dims[1] else block.T
    _, first = _leading_eigenpairs(matmul(turned, turned.T), k)
    second = matmul(turned.T, first)
    squares = jnp.sum(second**2, axis=0)  # the eigenvalues, never below zero by rounding
    positive = squares > 0
    length = jnp.sqrt(jnp.where(positive, squares, 1))
    second = second / length[None, :]
    pair = [first, second] if dims[0] <= dims[1] else [second, first]
    return jnp.where(positive, length, 0), pair


class _Turned(NamedTuple):
    """Moments of one training set in the eigenvectors of its sides."""

    values: Float[Array, " p"]
    vectors: tuple[Float[Array, "_ _"], ...]
    covariance: Float[Array, "p p"]


def _turn(covariance: Float[Array, "p p"], dims: tuple[int, ...]) -> _Turned:
    starts = np.cumsum((0, *dims))
    pairs = [_eigh(covariance[a:b, a:b]) for a, b in itertools.pairwise(starts)]
    values = jnp.concatenate([jnp.maximum(values, 0) for values, _ in pairs])
    vectors = tuple(vectors for _, vectors in pairs)
    return _Turned(values, vectors, _both(covariance, vectors, dims))


def _both(
    matrix: Float[Array, "p p"], vectors: tuple[Array, ...], dims: tuple[int, ...]
) -> Float[Array, "p p"]:
    """``V' matrix V`` with block-diagonal V."""
    rows = [matmul(v.T, part) for v, part in zip(vectors, split(matrix, dims, 0), strict=True)]
    whole = jnp.concatenate(rows)
    columns = [matmul(part, v) for v, part in zip(vectors, split(whole, dims), strict=True)]
    return jnp.concatenate(columns, axis=1)


def _ridged(turned: _Turned, dims: tuple[int, ...], ridge: Array, k: int) -> Axes:
    """Axes in the turned basis; the ridge is relative to each side's mean eigenvalue."""
    tiny = jnp.finfo(turned.values.dtype).tiny
    whiten = []
    for values in split(turned.values, dims):
        # Never below the rounding of the largest eigenvalue, where nothing can be told apart.
        least = 4 * jnp.finfo(values.dtype).eps * jnp.max(values)
        penalty = jnp.maximum(ridge * jnp.mean(values), least)
        whiten.append(jax.lax.rsqrt(jnp.maximum(values + penalty, tiny)))
    d = jnp.concatenate(whiten)
    couplings, parts = _couple(d[:, None] * turned.covariance * d[None, :], dims, k)
    directions = [w[:, None] * part for w, part in zip(whiten, parts, strict=True)]
    variances = [
        jnp.sum(part**2 * values[:, None], axis=0)
        for part, values in zip(directions, split(turned.values, dims), strict=True)
    ]
    return Axes(tuple(directions), couplings, jnp.stack(variances))


def axes_of(covariance: Float[Array, "p p"], dims: tuple[int, ...], ridge: Array, k: int) -> Axes:
    """Axes of one covariance of all sides."""
    turned = _turn(covariance, dims)
    axes = _ridged(turned, dims, ridge, k)
    back = tuple(matmul(v, a) for v, a in zip(turned.vectors, axes.directions, strict=True))
    return axes._replace(directions=back)


@functools.partial(jax.jit, static_argnames=("k",))
def try_ridges(
    folds: Folds,
    rows: Float[Array, "f b p"],
    ridges: Float[Array, " l"],
    *,
    k: int,
    incomplete: Incomplete | None = None,
) -> Tried:
    """Fit on all folds but one with every ridge, and use it on the one left out.

    ``rows`` are some rows of each fold, about ``folds.mean``; there may be none.
    """
    dims = folds.dims
    pairs = list(itertools.combinations(range(len(dims)), 2))

    def leave_out(number: Array) -> tuple[Array, Array, tuple[Array, ...]]:
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
            seen_both = jax.lax.map(
                lambda s: _both(s, turned.vectors, dims), incomplete.scatters[number]
            )
        parts = split(rows[number] - mean[None, :], dims)
        seen = [matmul(x, v) for x, v in zip(parts, turned.vectors, strict=True)]

        def one(ridge: Array) -> tuple[Array, Array, tuple[Array, ...]]:
            axes = _ridged(turned, dims, ridge, k)
            latents = tuple(matmul(x, a) for x, a in zip(seen, axes.directions, strict=True))
            moments = paired(held_out, dims, axes)[None]
            if incomplete is not None:
                own = jax.lax.map(lambda s: paired(s, dims, axes), seen_both)
                moments = jnp.concatenate([moments, own])
            return moments, weight * axes.variances, latents

        return jax.lax.map(one, ridges)

    covariances, own, latents = jax.lax.map(leave_out, jnp.arange(len(folds.weights)))
    total = jnp.maximum(jnp.sum(folds.weights), jnp.finfo(folds.weights.dtype).tiny)
    pooled = jnp.sum(covariances, axis=0)
    moments = pooled[:, 0] / total
    if incomplete is not None:
        seen = incomplete.seen
        share = jnp.sqrt(total / jnp.where(seen > 0, seen, 1))
        moments = moments * (share[:, None] * share[None, :])[None, :, :, None]
        spread = jnp.sqrt(jnp.diagonal(moments, axis1=1, axis2=2))  # (l, k, s)
        for q, (a, b) in enumerate(pairs):
            both = incomplete.both[q] > 0
            r = jnp.where(both, correlations(pooled[:, 1 + q])[:, a, b], jnp.nan)
            common = r * spread[:, :, a] * spread[:, :, b]
            moments = moments.at[:, a, b].set(common).at[:, b, a].set(common)
    variances = jnp.diagonal(moments, axis1=1, axis2=2)  # (l, k, s)
    scale = jax.lax.rsqrt(jnp.where(variances > 0, variances, jnp.inf))
    latents = tuple(z * scale[None, :, None, :, s] for s, z in enumerate(latents))
    rho = jax.lax.map(reliabilities, moments)
    return Tried(moments, jnp.sum(own, axis=0) / total, rho, latents)


def paired(
    scatter: Float[Array, "p p"], dims: tuple[int, ...], axes: Axes
) -> Float[Array, "s s k"]:
    """Second moments of the sides' coordinates, axis by axis."""
    starts = np.cumsum((0, *dims))
    table = []
    for a, first in enumerate(axes.directions):
        seen = matmul(scatter[:, starts[a] : starts[a + 1]], first)
        parts = zip(axes.directions, split(seen, dims, 0), strict=True)
        table.append(jnp.stack([jnp.sum(other * part, axis=0) for other, part in parts]))
    return jnp.stack(table)


def correlations(covariances: Float[Array, "... s s k"]) -> Float[Array, "... s s k"]:
    """Correlations of the sides' coordinates on held-out rows; 0 where one does not vary."""
    variances = jnp.moveaxis(jnp.diagonal(covariances, axis1=-3, axis2=-2), -1, -2)
    product = variances[..., :, None, :] * variances[..., None, :, :]
    safe = jnp.where(product > 0, product, 1)
    return jnp.where(product > 0, covariances * jax.lax.rsqrt(safe), 0)


def falling(values: Float[Array, " k"]) -> Float[Array, " k"]:
    """The nearest sequence that never rises: isotonic regression.

    Axes come in the order of their fitted couplings, so their held-out correlations fall but for
    noise, which this averages out. By the min-max formula (Robertson, Wright and Dykstra, 1988):
    ``min over a <= j of the max over b >= j of the mean from a to b``.
    """
    sums = jnp.cumsum(values)
    place = jnp.arange(len(values))
    count = place[None, :] - place[:, None] + 1
    inside = count > 0
    means = sums[None, :] - (sums - values)[:, None]
    means = means / jnp.where(inside, count, 1).astype(values.dtype)
    largest = jax.lax.cummax(jnp.where(inside, means, -jnp.inf), axis=1, reverse=True)
    return jnp.min(jnp.where(inside, largest, jnp.inf), axis=0)


_ROUNDS = 40  # of the factor model: it has one number for each side
TOP = 1 - 1e-6  # correlations above are not told apart: an axis' weight grows like 1 / (1 - r^2)


def reliabilities(covariances: Float[Array, "s s k"]) -> Float[Array, "s k"]:
    """Correlation of every side with what they share, axis by axis, from held-out moments.

    One common factor explains all pairs, ``r_ab = rho_a rho_b``: principal factor analysis. With
    two sides both have the root of their correlation. A pair that no row has is NaN in the moments,
    and left out.
    """
    s, r = covariances.shape[0], correlations(covariances)
    if s == 2:
        held_out = jnp.clip(falling(r[0, 1]), 0, TOP)
        positive = held_out > 0
        shared = jnp.where(positive, jnp.sqrt(jnp.where(positive, held_out, 1)), 0)
        return jnp.stack([shared, shared])
    off = ~jnp.eye(s, dtype=bool)[:, :, None] & ~jnp.isnan(r)
    r = jnp.where(off, jnp.clip(jax.vmap(jax.vmap(falling))(r), 0, TOP), 0)
    count = jnp.maximum(jnp.sum(off, axis=1), 1).astype(r.dtype)

    def step(_: int | Array, rho: Array) -> Array:
        # Each side from the others: least squares of r_ab on rho_b.
        seen = jnp.where(off, rho[None, :, :], 0)
        weight = jnp.sum(seen**2, axis=1)
        fitted = jnp.sum(r * seen, axis=1) / jnp.where(weight > 0, weight, 1)
        return jnp.clip((rho + fitted) / 2, 0, TOP**0.5)

    return jax.lax.fori_loop(0, _ROUNDS, step, jnp.sqrt(jnp.sum(r, axis=1) / count))


@functools.partial(jax.jit, static_argnames=("k",))
def information(folds: Folds, ridge: Array, *, k: int) -> Float[Array, ""]:
    """Held-out information of the axes in nats, ``-1/2 sum log(1 - r^2)``, over pairs of sides.

    Differentiable in the ridge and in the moments.
    """
    nothing = jnp.zeros((len(folds.weights), 0, folds.mean.shape[0]), folds.mean.dtype)
    tried = try_ridges(folds, nothing, jnp.reshape(ridge, (1,)), k=k)
    return tell(tried.covariances[0])


def tell(covariances: Float[Array, "s s k"]) -> Float[Array, ""]:
    """Information of held-out moments in nats, ``-1/2 sum log(1 - r^2)``, over pairs of sides."""
    r = correlations(covariances)
    above = jnp.triu(jnp.ones(r.shape[:2], bool), 1)[:, :, None]
    r = jnp.where(above, jnp.clip(r, 0, TOP), 0)
    return -jnp.sum(jnp.log1p(-(r**2))) / 2
