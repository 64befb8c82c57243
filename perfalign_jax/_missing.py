"""Second moments of views of which some rows are missing: EM for a Gaussian, pattern by pattern.

Rows that have the same views form a pattern, and a pattern is a weight, a mean and a scatter of
what it has, fold by fold. A step of EM regresses the missing features of every pattern on its
present ones and adds up what all patterns then say, the uncertainty of the regression included; no
step reads a row.

The ridge is noise of known variance that every row is thought to carry, complete ones too, and that
is taken off at the end. A ridge in the regressions alone would be wrong: it takes what rows say
about weak directions for less than they say, and with a share ``f`` of a view's rows missing, EM
then shrinks the coupling there by ``1 - f``.

Moments of the rows that happen to have both features are no substitute: whitening and coupling then
come from different rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax._numerics import matmul, namespace

__all__ = ["RIDGES", "Completed", "Patterns", "complete", "fill_rows", "of_rows"]

RIDGES = (0.1, 0.01, 0.001)  # tried
CYCLES = 2  # at once, of three steps each


class Patterns(NamedTuple):
    """Moments of the rows of patterns with a like number of features, fold by fold.

    Lists of features are filled up with ``p``, the number of all features.

    Attributes:
        inside: features that are there, shape ``(P, o)``.
        outside: features that are not, shape ``(P, m)``.
        weights: shape ``(P, F)``.
        means: of what is there, shape ``(P, F, o)``.
        scatters: shape ``(P, F, o, o)``, about the pattern's own mean in the fold.
    """

    inside: Int[Array, "q o"]
    outside: Int[Array, "q m"]
    weights: Float[Array, "q f"]
    means: Float[Array, "q f o"]
    scatters: Float[Array, "q f o o"]


class Completed(NamedTuple):
    """Mean and covariance without each fold, and of all rows.

    Attributes:
        means: without each fold, shape ``(F, p)``.
        covariances: without each fold, shape ``(F, p, p)``.
        mean: of all rows, shape ``(p,)``.
        covariance: of all rows, shape ``(p, p)``.
        noise: variance of the noise that is taken off, shape ``(p,)``.
        cycles: so far.
        change: of the covariance of all rows in the last step, relative to its size.
    """

    means: Float[np.ndarray, "f p"]
    covariances: Float[np.ndarray, "f p p"]
    mean: Float[np.ndarray, " p"]
    covariance: Float[np.ndarray, "p p"]
    noise: Float[np.ndarray, " p"]
    cycles: int
    change: float


def of_rows(
    x: Float[Any, "n p"],
    present: Bool[np.ndarray, "n m"],
    blocks: Int[np.ndarray, " p"],
    order: Int[np.ndarray, "f b"],
    w: Float[Any, " n"],
) -> list[Patterns]:
    """Moments by pattern and fold. Patterns that need matrices of a like size are together.

    ``blocks`` is the view of every feature.
    """
    n, p = x.shape
    shown, pattern = _patterns(present, blocks)
    step = -(-p // 4)
    sizes = -(-shown.sum(axis=1) // step) * step
    parts = []
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        inside = np.full((len(members), min(int(size), p)), p)
        outside = np.full((len(members), int((~shown[members]).sum(axis=1).max())), p)
        rows = []
        for place, q in enumerate(members):
            have, lack = np.flatnonzero(shown[q]), np.flatnonzero(~shown[q])
            inside[place, : len(have)] = have
            outside[place, : len(lack)] = lack
            rows.append([row[(row >= 0) & (pattern[row] == q)] for row in order])
        most = max(len(part) for row in rows for part in row)
        most = 1 << max(0, (max(most, 1) - 1).bit_length())  # few programs for all patterns
        table = np.full((len(members), len(order), most), n)
        for place, row in enumerate(rows):
            for f, part in enumerate(row):
                table[place, f, : len(part)] = part
        moments = _moments(x, w, jnp.asarray(inside), jnp.asarray(table))
        parts.append(Patterns(jnp.asarray(inside), jnp.asarray(outside), *moments))
    return parts


def _patterns(
    present: Bool[np.ndarray, "n m"], blocks: Int[np.ndarray, " p"]
) -> tuple[Bool[np.ndarray, "q p"], Int[np.ndarray, " n"]]:
    """Which features rows have, every pattern once, and the pattern of every row."""
    found, number = np.unique(present, axis=0, return_inverse=True)
    return found[:, blocks], number.reshape(-1)


@jax.jit
def _moments(x: Array, w: Array, inside: Array, table: Array) -> tuple[Array, Array, Array]:
    def pattern(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        features, folds = part

        def fold(rows: Array) -> tuple[Array, Array, Array]:
            own = w.at[rows].get(mode="fill", fill_value=0)
            seen = x.at[rows[:, None], features[None, :]].get(mode="fill", fill_value=0)
            weight = jnp.sum(own)
            mean = matmul(own, seen) / jnp.where(weight > 0, weight, 1)
            apart = jnp.sqrt(own)[:, None] * (seen - mean[None, :])
            return weight, mean, matmul(apart.T, apart)

        return jax.lax.map(fold, folds)

    return jax.lax.map(pattern, (inside, table))


def _block(covariance: Array, a: Array, b: Array) -> Array:
    return covariance.at[a[:, None], b[None, :]].get(mode="fill", fill_value=0)


_State = tuple[Float[Any, " p"], Float[Any, "p p"]]


@jax.jit
def _step(
    patterns: list[Patterns], kept: Float[Any, " f"], noise: Float[Any, " p"], state: _State
) -> tuple[_State, Array]:
    """One step of EM on the folds kept, and their log-likelihood before it."""
    mean, covariance = state
    p = len(mean)

    def one(carry: tuple, part: Patterns) -> tuple[tuple, None]:
        total, first, second, likelihood = carry
        a, b = part.inside, part.outside
        valid = a < p
        own = noise.at[a].get(mode="fill", fill_value=0)
        center = mean.at[a].get(mode="fill", fill_value=0)
        factor = jnp.linalg.cholesky(
            _block(covariance, a, a) + jnp.diag(1 - valid.astype(mean.dtype))
        )
        root = jax.scipy.linalg.solve_triangular(
            factor, jnp.eye(len(a), dtype=mean.dtype), lower=True
        )
        inverse = matmul(root.T, root)
        cross = _block(covariance, a, b)
        fill = matmul(inverse, cross)
        volume = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))

        w = kept * part.weights
        weight = jnp.sum(w)
        gaps = part.means - center[None, :]
        gap = matmul(w, gaps) / jnp.where(weight > 0, weight, 1)
        apart = jnp.sqrt(w)[:, None] * gaps
        scatter = jnp.tensordot(kept, part.scatters, 1, precision=jax.lax.Precision.HIGHEST)
        scatter = scatter + matmul(apart.T, apart) + jnp.diag(weight * own)
        missing = matmul(fill.T, scatter)
        unknown = _block(covariance, b, b) - matmul(fill.T, cross)
        whole = jnp.block(
            [[scatter, missing.T], [missing, matmul(missing, fill) + weight * unknown]]
        )
        # Where each feature stands among the present and the missing.
        place = (
            jnp.zeros(p, int)
            .at[jnp.concatenate([a, b])]
            .set(jnp.arange(len(a) + len(b)), mode="drop")
        )
        moved = jnp.concatenate([gap, matmul(gap, fill)])[place]
        return (
            total + weight,
            first + weight * moved,
            second + whole[place][:, place],
            likelihood - (weight * volume + jnp.sum(inverse * scatter)) / 2,
        ), None

    zero = jnp.zeros((), mean.dtype)
    carry = (zero, 0 * mean, 0 * covariance, zero)
    for part in patterns:
        carry, _ = jax.lax.scan(one, carry, part)
    total, first, second, likelihood = carry
    moved = first / total
    found = second / total - moved[:, None] * moved[None, :]
    return (mean + moved, (found + found.T) / 2), likelihood


@jax.jit
def _cycle(
    patterns: list[Patterns], kept: Float[Any, " f"], noise: Float[Any, " p"], state: _State
) -> tuple[_State, Array]:
    """Two steps, a leap in their direction, and a step from there (SQUAREM, scheme S3).

    Varadhan and Roland (2008). Where the leap leaves the covariances or lowers the likelihood, the
    two steps stand. Also returned: how much the second step still changed.
    """
    first, before = _step(patterns, kept, noise, state)
    second, _ = _step(patterns, kept, noise, first)
    r = [b - a for a, b in zip(state, first, strict=True)]
    v = [b - a - c for a, b, c in zip(first, second, r, strict=True)]
    size, bend = (jnp.sqrt(sum(jnp.sum(x**2) for x in part)) for part in (r, v))
    alpha = jnp.maximum(size / jnp.where(bend > 0, bend, 1), 1)
    leap = tuple(x + 2 * alpha * a + alpha**2 * b for x, a, b in zip(state, r, v, strict=True))
    settled, there = _step(patterns, kept, noise, leap)
    better = jnp.all(jnp.isfinite(settled[1])) & (there >= before)
    chosen = jax.tree.map(lambda a, b: jnp.where(better, a, b), settled, second)
    change = jnp.linalg.norm(second[1] - first[1]) / jnp.linalg.norm(second[1])
    return chosen, change


_sum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _start(patterns: list[Patterns], kept: Any, noise: Any, same: Any) -> _State:
    """Mean and covariance of each view by itself, over the rows that have it."""
    total, first, second = jnp.zeros_like(noise), jnp.zeros_like(noise), jnp.zeros_like(same)
    for part in patterns:
        w = part.weights * kept[None, :]
        a = part.inside
        scatter = _sum("f,qfij->qij", kept, part.scatters)
        scatter = scatter + _sum("qf,qfi,qfj->qij", w, part.means, part.means)
        total = total.at[a].add(jnp.sum(w, axis=1)[:, None], mode="drop")
        first = first.at[a].add(_sum("qf,qfi->qi", w, part.means), mode="drop")
        second = second.at[a[:, :, None], a[:, None, :]].add(scatter, mode="drop")
    total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    mean = first / total
    covariance = same * (second / total[:, None] - mean[:, None] * mean[None, :])
    return mean, covariance + jnp.diag(noise)


def _noise(
    patterns: list[Patterns], same: Float[np.ndarray, "p p"], ridge: float
) -> Float[np.ndarray, " p"]:
    """The ridge times the mean variance of each view; never below what rounding leaves open."""
    dtype, nothing = same.dtype, np.zeros(len(same), same.dtype)
    _, covariance = _start(patterns, np.ones(patterns[0].weights.shape[1], dtype), nothing, same)
    # Of the largest eigenvalue of all views together, of which the sum of the variances is a bound.
    ridge = max(ridge, 4 * float(np.finfo(dtype).eps) * len(same))
    return np.asarray(ridge, dtype) * (same @ np.diagonal(covariance)) / same.sum(axis=1)


def complete(
    patterns: list[Patterns], blocks: np.ndarray, ridge: float, start: Completed | None = None
) -> Completed:
    """Complete the moments without each fold, and of all rows, a few cycles further.

    Likelihood goes on rising where regressions begin to learn the rows by heart, so whoever calls
    this stops where held-out rows no longer gain.

    Args:
        patterns: moments by pattern and fold.
        blocks: view of each feature, shape ``(p,)``.
        ridge: variance of the noise, relative to the mean variance of each view.
        start: the result to go on from.
    """
    folds, dtype = patterns[0].weights.shape[1], patterns[0].weights.dtype
    same = (blocks[:, None] == blocks[None, :]).astype(dtype)
    noise = _noise(patterns, same, ridge)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for fold in range(folds + 1):
        kept = (np.arange(folds) != fold).astype(dtype)
        if start is None:
            state = _start(patterns, kept, noise, same)
        elif fold < folds:
            state = start.means[fold], start.covariances[fold] + np.diag(noise)
        else:
            state = start.mean, start.covariance + np.diag(noise)
        for _ in range(CYCLES):
            state, change = _cycle(patterns, kept, noise, state)
        found.append((np.asarray(state[0]), np.asarray(state[1]) - np.diag(noise)))
    means, covariances = (np.stack(part[:-1]) for part in zip(*found, strict=True))
    cycles = CYCLES + (0 if start is None else start.cycles)
    return Completed(means, covariances, *found[-1], noise, cycles, float(change))


def fill_rows(
    x: Float[Any, "b p"],
    present: Bool[np.ndarray, "b m"],
    blocks: Int[np.ndarray, " p"],
    sides: Int[np.ndarray, " p"],
    mean: Float[np.ndarray, " p"],
    covariance: Float[np.ndarray, "p p"],
    noise: Float[np.ndarray, " p"],
) -> Float[Any, "b p"]:
    """Rows with what is missing regressed on the present views of the same side.

    A side without any view is at the mean. ``blocks`` is the view of every feature, ``sides`` its
    side.
    """
    filled = np.array(x, copy=True)
    center, whole = mean, covariance + np.diag(noise)
    shown, number = _patterns(present, blocks)
    for q, pattern in enumerate(shown):
        rows = np.flatnonzero(number == q)
        for side in np.unique(sides):
            have, lack = pattern & (sides == side), ~pattern & (sides == side)
            if not lack.any():
                continue
            guess = np.broadcast_to(center[lack], (len(rows), int(lack.sum())))
            if have.any():
                weights = np.linalg.solve(whole[np.ix_(have, have)], whole[np.ix_(have, lack)])
                guess = guess + (filled[np.ix_(rows, have)] - center[have]) @ weights
            filled[np.ix_(rows, lack)] = guess
    return namespace(x).asarray(filled)
