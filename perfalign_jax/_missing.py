"""Second moments of views of which some rows are missing: EM for a Gaussian, pattern by pattern.

Rows that have the same views form a pattern, and a pattern is a weight, a mean and a scatter, fold
by fold. Each step of EM regresses the missing features of every pattern on its present ones, with a
ridge, and adds up what all patterns then say, the uncertainty of the regression included; no step
reads a row. Without missing rows the first step is the plain covariance.

Moments of the rows that happen to have both features are no substitute: whitening and coupling then
come from different rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax._numerics import matmul

__all__ = ["Patterns", "complete", "fill_rows", "of_rows"]

RIDGE = 0.1  # of the regressions, relative to a view's mean variance, unless one is given
_STEPS = 60
_PATIENCE = 3  # steps without a better held-out likelihood


class Patterns(NamedTuple):
    """Moments of the rows of each pattern and fold; missing features are zero in them.

    Attributes:
        present: shape ``(P, p)``, 1 where a feature is there.
        weights: shape ``(P, F)``.
        means: shape ``(P, F, p)``, about ``mean``.
        scatters: shape ``(P, F, p, p)``, about the pattern's own mean in the fold.
        mean: of every feature over the rows that have it, shape ``(p,)``.
    """

    present: Float[Array, "q p"]
    weights: Float[Array, "q f"]
    means: Float[Array, "q f p"]
    scatters: Float[Array, "q f p p"]
    mean: Float[Array, " p"]


def of_rows(
    x: Float[Array, "n p"],
    present: Bool[np.ndarray, "n p"],
    pattern: Int[np.ndarray, " n"],
    order: Int[np.ndarray, "f b"],
    w: Float[Array, " n"],
) -> Patterns:
    """Moments by pattern and fold; what is not present in ``x`` is zero there."""
    seen = jnp.asarray(present, x.dtype)
    counts = matmul(w, seen)
    mean = matmul(w, x) / jnp.where(counts > 0, counts, 1)
    x = (x - mean[None, :]) * seen
    patterns = range(int(pattern.max()) + 1)
    parts = [
        [
            _moments(x, w, jnp.asarray(_padded(row[(row >= 0) & (pattern[row] == q)])))
            for row in order
        ]
        for q in patterns
    ]
    first = [int(np.argmax(pattern == q)) for q in patterns]
    weights, means, scatters = (
        jnp.stack([jnp.stack([part[i] for part in row]) for row in parts]) for i in range(3)
    )
    return Patterns(seen[np.array(first)], weights, means, scatters, mean)


def _padded(rows: np.ndarray) -> np.ndarray:
    """Rows filled up with -1 to a power of two, so that few programs serve all patterns."""
    size = 1 << max(0, int(np.ceil(np.log2(max(len(rows), 1)))))
    return np.pad(rows, (0, size - len(rows)), constant_values=-1)


@jax.jit
def _moments(x: Array, w: Array, rows: Array) -> tuple[Array, Array, Array]:
    own = jnp.where(rows >= 0, w[rows], 0)
    weight = jnp.sum(own)
    mean = matmul(own, x[rows]) / jnp.where(weight > 0, weight, 1)
    apart = jnp.sqrt(own)[:, None] * (x[rows] - mean[None, :])
    return weight, mean, matmul(apart.T, apart)


@jax.jit
def _regress(
    covariance: Float[Array, "p p"], present: Float[Array, " p"], penalty: Float[Array, " p"]
) -> tuple[Float[Array, "p p"], Float[Array, "p p"]]:
    """The map that fills missing features in, and the Cholesky factor of the present ones."""
    inside = present[:, None] * covariance * present[None, :]
    factor = jnp.linalg.cholesky(inside + jnp.diag(present * penalty + (1 - present)))
    cross = covariance * present[:, None] * (1 - present)[None, :]
    weights = jax.scipy.linalg.cho_solve((factor, True), cross)
    return jnp.diag(present) + weights.T, factor


@jax.jit
def _step(
    patterns: Patterns,
    kept: Float[Array, " f"],
    mean: Float[Array, " p"],
    covariance: Float[Array, "p p"],
    penalty: Float[Array, " p"],
) -> tuple[Array, Array, Array]:
    """One step of EM on the folds kept, and the log-likelihood of the others before it."""

    def one(carry: tuple, part: tuple) -> tuple[tuple, None]:
        total, first, second, likelihood = carry
        present, weights, means, scatters = part
        fill, factor = _regress(covariance, present, penalty)
        missing = 1 - present

        def gather(chosen: Array) -> tuple[Array, Array, Array]:
            w = chosen * weights
            weight = jnp.sum(w)
            middle = matmul(w, means) / jnp.where(weight > 0, weight, 1)
            apart = jnp.sqrt(w)[:, None] * (means - middle[None, :])
            scatter = jnp.tensordot(chosen, scatters, 1, precision=jax.lax.Precision.HIGHEST)
            return weight, middle, scatter + matmul(apart.T, apart)

        weight, middle, scatter = gather(kept)
        filled = mean + matmul(fill, (middle - mean) * present)
        # What the regression does not know of the missing features.
        unknown = missing[:, None] * covariance * missing[None, :] - matmul(
            fill * missing[:, None], covariance * present[:, None] * missing[None, :]
        )
        moved = matmul(matmul(fill, scatter), fill.T) + weight * (unknown + unknown.T) / 2
        second = second + moved + weight * filled[:, None] * filled[None, :]

        left, away, spread = gather(1 - kept)
        gap = (away - mean) * present
        spread = spread + left * gap[:, None] * gap[None, :]
        distance = jnp.trace(jax.scipy.linalg.cho_solve((factor, True), spread))
        volume = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)) * present)
        likelihood = likelihood - (left * volume + distance) / 2
        return (total + weight, first + weight * filled, second, likelihood), None

    zero = jnp.zeros((), mean.dtype)
    start = (zero, jnp.zeros_like(mean), jnp.zeros_like(covariance), zero)
    (total, first, second, likelihood), _ = jax.lax.scan(
        one, start, (patterns.present, patterns.weights, patterns.means, patterns.scatters)
    )
    middle = first / total
    found = second / total - middle[:, None] * middle[None, :]
    return middle, (found + found.T) / 2, likelihood


@jax.jit
def _start(
    patterns: Patterns, kept: Array, blocks: np.ndarray
) -> tuple[Float[Array, " p"], Float[Array, "p p"]]:
    """Mean and covariance of each view by itself, over the rows that have it."""
    w = patterns.weights * kept[None, :]
    total = jnp.einsum("qf,qp->p", w, patterns.present)
    total = jnp.where(total > 0, total, 1)
    mean = jnp.einsum("qf,qfp->p", w, patterns.means) / total
    apart = (patterns.means - mean[None, None, :]) * patterns.present[:, None, :]
    scatter = jnp.einsum("f,qfij->ij", kept, patterns.scatters)
    scatter = scatter + jnp.einsum("qf,qfi,qfj->ij", w, apart, apart)
    same = jnp.asarray(blocks[:, None] == blocks[None, :], mean.dtype)
    return mean, same * scatter / total[:, None]


def complete(
    patterns: Patterns, blocks: np.ndarray, ridge: float
) -> tuple[
    Float[Array, "f p"], Float[Array, "f p p"], Float[Array, " p"], Float[Array, "p p"], int
]:
    """Mean and covariance without each fold, and of all: means ``(F, p)``, and so on.

    Each fold's EM stops at the best likelihood of the fold left out; on all rows it then takes as
    many steps as those did on average. Returned last is that number.

    Args:
        patterns: moments by pattern and fold.
        blocks: view of each feature, shape ``(p,)``.
        ridge: relative to the mean variance of each view.
    """
    folds = patterns.weights.shape[1]
    means, covariances, taken = [], [], []
    for fold in range(folds):
        kept = jnp.asarray(np.arange(folds) != fold, patterns.mean.dtype)
        mean, covariance, steps = _run(patterns, kept, blocks, ridge, None)
        means.append(mean)
        covariances.append(covariance)
        taken.append(steps)
    steps = max(1, round(float(np.mean(taken))))
    mean, covariance, _ = _run(patterns, jnp.ones(folds, patterns.mean.dtype), blocks, ridge, steps)
    return jnp.stack(means), jnp.stack(covariances), mean, covariance, steps


def _run(
    patterns: Patterns, kept: Array, blocks: np.ndarray, ridge: float, steps: int | None
) -> tuple[Array, Array, int]:
    mean, covariance = _start(patterns, kept, blocks)
    share = np.zeros((len(blocks), len(blocks)))
    for block in np.unique(blocks):
        inside = blocks == block
        share[np.ix_(inside, inside)] = 1 / inside.sum()
    penalty = ridge * matmul(jnp.asarray(share, mean.dtype), jnp.diagonal(covariance))
    best, since = (-np.inf, mean, covariance, 0), 0
    for number in range(_STEPS if steps is None else steps):
        before = (mean, covariance)
        mean, covariance, likelihood = _step(patterns, kept, mean, covariance, penalty)
        if steps is not None:
            continue
        if number > 0 and float(likelihood) > best[0]:
            best, since = (float(likelihood), *before, number), 0
        elif number > 1:
            since += 1
            if since >= _PATIENCE:
                break
    return (mean, covariance, steps) if steps is not None else best[1:]


def fill_rows(
    x: Float[Array, "b p"],
    present: Bool[np.ndarray, "b p"],
    mean: Float[Array, " p"],
    covariance: Float[Array, "p p"],
    sides: np.ndarray,
    blocks: np.ndarray,
    ridge: float,
) -> Float[Array, "b p"]:
    """Rows with what is missing regressed on the present views of the same side.

    A side without any view is at the mean. ``sides`` and ``blocks`` are side and view of every
    feature.
    """
    filled = np.array(x, copy=True)
    center, whole = np.asarray(mean), np.asarray(covariance)
    shown, number = np.unique(present, axis=0, return_inverse=True)
    for q, pattern in enumerate(shown):
        rows = np.flatnonzero(number.reshape(-1) == q)
        for side in np.unique(sides):
            have, lack = pattern & (sides == side), ~pattern & (sides == side)
            if not lack.any():
                continue
            guess = np.broadcast_to(center[lack], (len(rows), int(lack.sum())))
            if have.any():
                inside = whole[np.ix_(have, have)].copy()
                for block in np.unique(blocks[have]):
                    own = blocks[have] == block
                    place = np.flatnonzero(own)
                    inside[place, place] += ridge * np.diagonal(inside)[own].mean()
                weights = np.linalg.solve(inside, whole[np.ix_(have, lack)])
                guess = guess + (filled[np.ix_(rows, have)] - center[have]) @ weights
            filled[np.ix_(rows, lack)] = guess
    return jnp.asarray(filled)
