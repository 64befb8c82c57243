"""Evidence that two rows are the same thing, from the reliability of every axis.

On axis ``j`` the coordinates of a right pair are a Gaussian pair of correlation ``r_j``, those of a
wrong pair are independent. The log of how much more probable the first makes them is, in nats,

    sum_j  -1/2 log(1 - r^2) + r / (1 - r^2) z1 z2 - r^2 / (2 (1 - r^2)) (z1^2 + z2^2)

(in speaker verification this score is known as PLDA). An axis with ``r = 0`` adds nothing; as ``r``
goes to 1 its weight grows without bound and what decides is whether ``z1 = z2``: perfect alignment.
Sums over many axes that are neither independent nor Gaussian are over-confident, so two numbers
measured on held-out right and shuffled pairs, a slope and an offset, calibrate them. Where rows
differ in length for reasons of each view's own, they are compared at one length
(``solver.at_length``).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax import _checks, solver
from perfalign_jax._numerics import compiled, matmul, namespace, repeat, sigmoid
from perfalign_jax.types import Alignment, Evidence

__all__ = [
    "Found",
    "fit_calibration",
    "fit_lapse",
    "fit_right_share",
    "fit_search_slope",
    "log_odds",
    "score_all",
    "search",
]

_CANDIDATES = 8192  # compared with a block of queries at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """The most credible partners of every query.

    Attributes:
        indices: shape ``(n, top)``, rows of the candidates, most credible first.
        log_odds: shape ``(n, top)``, evidence that query and candidate are the same thing, in nats.
        probability: shape ``(n,)``, that the first candidate is the right one, given that one of
            them all is.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> pa.search(pa.align((x, x + 1), lift=None), x[:5], x + 1, top=2).indices.shape
        (5, 2)
    """

    indices: Int[Array, "n top"]
    log_odds: Float[Array, "n top"]
    probability: Float[Array, " n"]


def _weights(r: Float[Any, " k"], ndim: int = 1) -> tuple[Any, Any, Any]:
    """What a product, a square, and nothing at all count on each axis, for so many axes."""
    noise = 1 - r.reshape((1,) * (ndim - 1) + r.shape) ** 2
    r = r.reshape(noise.shape)
    return r / noise, r**2 / (2 * noise), -namespace(r).log(noise) / 2


@compiled()
def score_pairs(
    z1: Float[Any, "*f n k"], z2: Float[Any, "*f n k"], r: Float[Any, " k"]
) -> Float[Any, "*f n"]:
    product, square, constant = _weights(r, z1.ndim)
    return (product * z1 * z2 - square * (z1**2 + z2**2) + constant).sum(axis=-1)


def score_all(
    z1: Float[Any, "*f n k"], z2: Float[Any, "*f m k"], r: Float[Any, " k"]
) -> Float[Any, "*f n m"]:
    """Log-odds, before calibration, of all pairs of rows of coordinates of variance one.

    Leading axes, such as folds, are kept apart.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.evidence import score_all
        >>> score_all(jnp.eye(2), jnp.eye(2), jnp.full(2, 0.5)).shape
        (2, 2)
    """
    product, square, constant = _weights(r, z1.ndim)
    xp = namespace(z1)
    first, second = (matmul(z**2, square.reshape(-1, 1)) for z in (z1, z2))
    one = [xp.ones_like(part) for part in (first, second)]
    # All in one product: jaxlib 0.10.2 on a CPU gets sums added to a batch of products wrong, when
    # it fuses them (seen under jit and vmap from 400 rows on; a test compares).
    left = xp.concatenate([z1 * product, constant.sum() - first, one[0]], axis=-1)
    right = xp.concatenate([z2, one[1], -second], axis=-1)
    return matmul(left, xp.swapaxes(right, -1, -2))


def log_odds(
    alignment: Alignment, x1: Any, x2: Any, *, source: int | None = 0, target: int | None = 1
) -> Float[Array, " n"]:
    """Evidence that row ``i`` of both is the same thing rather than two things, in nats.

    With prior odds of one, ``1 / (1 + exp(-log_odds))`` is the probability that the pair is right.

    Args:
        alignment: an alignment with evidence, from ``align``.
        x1: rows of one view, shape ``(n, d_source)``, or of several, ``{view: rows}``.
        x2: as many rows of another, ``(n, d_target)`` or ``{view: rows}``.
        source: which view x1 is, counted from 0; not looked at for ``{view: rows}``.
        target: which view x2 is; likewise.

    Returns:
        Log-odds, shape ``(n,)``.

    Raises:
        TypeError: if a view does not hold real numbers.
        ValueError: if shapes or views do not fit, or the alignment has no evidence.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> alignment = pa.align((x, x + 1), lift=None)
        >>> right, wrong = (pa.log_odds(alignment, x, y) for y in (x + 1, x[::-1] + 1))
        >>> bool(right.min() > 0), bool(np.median(wrong) < 0)
        (True, True)
    """
    (z1, rho1), (z2, rho2) = two_posteriors(alignment, x1, x2, source, target)
    _checks.paired(z1, z2, "x1", "x2")
    evidence = alignment.evidence
    assert evidence is not None
    return evidence.slope * score_pairs(z1, z2, rho1 * rho2) + evidence.offset


def two_posteriors(
    alignment: Alignment, x1: Any, x2: Any, source: int | None, target: int | None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    solver.check_alignment(alignment)
    rows = [
        solver.check_given(x, None if isinstance(x, Mapping) else view, alignment, name, role)
        for x, view, name, role in ((x1, source, "x1", "source"), (x2, target, "x2", "target"))
    ]
    sides = [
        {s for s, side in enumerate(solver.sides_of(alignment)) if set(side) & set(given)}
        for given in rows
    ]
    if sides[0] & sides[1]:
        shared = ", ".join(map(str, sorted(sides[0] & sides[1])))
        raise ValueError(
            f"x1 and x2 must be of different sides of the alignment, but both have side {shared}."
        )
    (z1, rho1), (z2, rho2) = (solver.posterior(alignment, given) for given in rows)
    evidence = alignment.evidence
    assert evidence is not None
    z1, z2 = (solver.at_length(z, rho1 * rho2, evidence.unit) for z in (z1, z2))
    return (z1, rho1), (z2, rho2)


def search(
    alignment: Alignment,
    x1: Any,
    x2: Any,
    *,
    source: int | None = 0,
    target: int | None = 1,
    top: int = 10,
    chunk: int = 1024,
) -> Found:
    """Find the most credible partners of every row of one view among the rows of another.

    Args:
        alignment: an alignment with evidence, from ``align``.
        x1: queries, shape ``(n, d_source)``, or ``{view: rows}`` of several views.
        x2: candidates, shape ``(m, d_target)``, or ``{view: rows}``.
        source: which view x1 is, counted from 0; not looked at for ``{view: rows}``.
        target: which view x2 is; likewise.
        top: how many candidates to name, at most ``m``.
        chunk: queries compared at once; memory grows with ``8192 * chunk``, never with ``n * m``.

    Returns:
        ``Found``: indices, log-odds and the probability that the first is right.

    Raises:
        TypeError: if a view does not hold real numbers, or ``top`` is no integer.
        ValueError: if shapes, views or ``top`` do not fit, or the alignment has no evidence.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> found = pa.search(pa.align((x, x + 1), lift=None), x, x + 1, top=1)
        >>> bool((found.indices[:, 0] == np.arange(60)).all())
        True
    """
    (z1, rho1), (z2, rho2) = two_posteriors(alignment, x1, x2, source, target)
    if 0 in (len(z1), len(z2)):
        empty = "x1" if len(z1) == 0 else "x2"
        raise ValueError(f"{empty} must have at least one row, got none.")
    top = _checks.integer(top, "top", low=1, high=len(z2), why=f" ({len(z2)} candidates)")
    chunk = _checks.integer(chunk, "chunk", low=1)
    evidence = alignment.evidence
    assert evidence is not None
    slope, chunk = evidence.search_slope, min(chunk, len(z1))
    raw, indices, total = best_scores(z1, z2, rho1 * rho2, slope, top=top, chunk=chunk)
    return Found(indices, *calibrated(raw, total, evidence, len(z2)))


@jax.jit
def calibrated(
    raw: Float[Any, "n top"], total: Float[Any, " n"], evidence: Evidence, candidates: Any
) -> tuple[Float[Array, "n top"], Float[Array, " n"]]:
    """Log-odds, and the probability that the first is right; where all overflow, any may be."""
    known = jnp.isfinite(raw[:, 0]) & jnp.isfinite(total)
    found = jnp.exp(jnp.where(known, evidence.search_slope * raw[:, 0] - total, 0))
    found = jnp.where(known, found, 1 / candidates)
    probability = (1 - evidence.lapse) * found + evidence.lapse / candidates
    return evidence.slope * raw + evidence.offset, probability


@functools.partial(jax.jit, static_argnames=("top", "chunk"))
def best_scores(
    z1: Array, z2: Array, r: Array, slope: Array, *, top: int, chunk: int
) -> tuple[Float[Array, "n top"], Int[Array, "n top"], Float[Array, " n"]]:
    """Best scores before calibration, their rows, and the log of the sum over all candidates."""
    product, square, constant = _weights(r)
    n, m = len(z1), len(z2)
    wide = min(max(_CANDIDATES, top), m)
    queries = jnp.pad(z1 * product[None, :], ((0, -n % chunk), (0, 0)))
    blocks = jnp.pad(z2, ((0, -m % wide), (0, 0))).reshape(-1, wide, z2.shape[1])
    # Rows that fill the last block up can never be found.
    costs = jnp.sum(square[None, :] * z2**2, axis=1)
    costs = jnp.pad(costs, (0, -m % wide), constant_values=jnp.inf).reshape(-1, wide)
    starts = jnp.arange(len(blocks), dtype=jnp.int32) * wide

    def one(query: Float[Array, "c k"]) -> tuple[Array, Array, Array]:
        def step(carry: tuple, block: tuple) -> tuple[tuple, None]:
            best, rows, total = carry
            candidates, cost, start = block
            scores = matmul(query, candidates.T) - cost[None, :]
            total = jnp.logaddexp(total, jax.nn.logsumexp(slope * scores, axis=1))
            values, places = jax.lax.top_k(scores, min(top, wide))
            best = jnp.concatenate([best, values], axis=1)
            rows = jnp.concatenate([rows, start + places], axis=1)
            best, places = jax.lax.top_k(best, top)
            return (best, jnp.take_along_axis(rows, places, axis=1), total), None

        none = jnp.full((chunk, top), -jnp.inf, z1.dtype)
        first = (none, jnp.zeros((chunk, top), jnp.int32), none[:, 0])
        found, _ = jax.lax.scan(step, first, (blocks, costs, starts))
        return found

    best, rows, total = jax.lax.map(one, queries.reshape(-1, chunk, z1.shape[1]))
    own = jnp.sum(constant) - jnp.sum(square[None, :] * z1**2, axis=1)
    best, rows = (a.reshape(-1, top)[:n] for a in (best, rows))
    return best + own[:, None], rows, total.reshape(-1)[:n] + slope * own


@compiled()
def fit_calibration(
    scores: Float[Any, "f b b"], valid: Bool[Any, "f b"], weights: Float[Any, "f b"]
) -> tuple[Float[Any, ""], Float[Any, ""]]:
    """Slope and offset of the log-odds, by logistic regression on right and shuffled pairs.

    Args:
        scores: of held-out rows, fold by fold; right pairs stand on the diagonals.
        valid: which rows are there.
        weights: of the right pairs.

    Returns:
        Slope and offset, at which the probabilities of right pairs and of shuffled ones, taken as
        equally many, are right on average.

    Source: Platt (1999), with the weights of equal priors.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.evidence import fit_calibration
        >>> scores = jnp.array([[[3.0, -1.0], [-2.0, 1.0]]])
        >>> slope, _ = fit_calibration(scores, jnp.ones((1, 2), bool), jnp.ones((1, 2)))
        >>> bool(slope > 0)
        True
    """
    xp = namespace(scores)
    right = np.eye(scores.shape[1], dtype=bool)[None] & valid[:, :, None]
    wrong = valid[:, :, None] & valid[:, None, :] & ~right
    w = xp.where(right, weights[:, :, None], 0)
    target, impostors = right.astype(w.dtype), wrong.astype(w.dtype)
    counts = [xp.maximum(part.sum(), 1e-30) for part in (w, impostors)]
    share = w / counts[0] + impostors / counts[1]
    unit = _typical(scores, share)
    x, penalty = xp.where(share > 0, scores, 0) / unit, 1 / (counts[0] + 1)
    start = xp.zeros(2, x.dtype)
    slope, offset = repeat(60, lambda ab: _newton(ab, x, target, share, penalty), start)
    return xp.maximum(slope, 1e-6) / unit, offset


def _typical(scores: Any, share: Any) -> Any:
    """The typical score, as a unit: it gives the penalty of ``_newton`` a scale."""
    xp = namespace(scores)
    size = xp.sqrt((share * xp.where(share > 0, scores, 0) ** 2).sum() / 2)
    return xp.where(size > 0, size, 1)


def _newton(ab: Any, x: Any, target: Any, share: Any, penalty: Any) -> Any:
    """A step to the slope and offset of logistic regression; at most one unit.

    The small penalty keeps separable scores finite, as a prior of one pair would.
    """
    xp = namespace(x)
    p = sigmoid(ab[0] * x + ab[1])
    error = share * (p - target)
    curve = share * p * (1 - p)
    gradient = xp.stack([(error * x).sum() + penalty * ab[0] / 100, error.sum()])
    turned = curve * x
    a, b, c = (turned * x).sum() + penalty / 100, turned.sum(), curve.sum() + 1e-6
    step = xp.stack([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]])
    step = step / (a * c - b * b)
    return ab - step / xp.maximum(1, xp.abs(step).max())


@compiled()
def fit_right_share(
    scores: Float[Any, " n"],
    weights: Float[Any, " n"],
    shuffled: Float[Any, " m"],
    impostors: Float[Any, " m"],
    share: Float[Any, ""],
    probability: Float[Any, " n"],
) -> tuple[Float[Any, ""], Float[Any, " n"]]:
    """Of pairs that are in part wrong: the share of right ones, and how probably each is right.

    A wrong pair's score is one of shuffled rows, whose scores are known; how many times as probable
    a right pair makes a score is exponential in it, with slope and offset as in
    ``fit_calibration``. These and the share are found together: a slope from pairs weighed by an
    earlier share would count wrong ones among the right, become flatter, and so find fewer of them.
    Where right pairs score no higher, the share stays and nothing is told apart.

    Args:
        scores: of the pairs, held out.
        weights: of the pairs.
        shuffled: scores of rows of which none are a pair.
        impostors: their weights.
        share: of right pairs, to start from.
        probability: of each pair to be right, to start from.

    Returns:
        Share, from 0.0001 to 0.9999, and probability.

    Source: expectation maximisation of the share; between its steps one of Newton's for logistic
    regression of pairs, weighed by their probability, against shuffled ones.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.evidence import fit_right_share
        >>> rng = np.random.default_rng(0)
        >>> wrong, right = rng.normal(-3, 1, size=(2, 500)), rng.normal(3, 1, size=300)
        >>> scores, ones = np.concatenate([wrong[0, :200], right]), np.ones(500)
        >>> share, _ = fit_right_share(scores, ones, wrong[1], ones, np.asarray(0.9), ones)
        >>> round(float(share), 1)
        0.6
    """
    xp = namespace(scores)
    pairs, total = xp.where(weights > 0, scores, 0), xp.maximum(weights.sum(), 1e-30)
    shuffled = xp.where(impostors > 0, shuffled, 0)
    impostors = impostors / xp.maximum(impostors.sum(), 1e-30)
    target = xp.concatenate([xp.ones_like(pairs), xp.zeros_like(impostors)])
    both = xp.concatenate([pairs, shuffled])
    unit = _typical(both, xp.concatenate([weights / total, impostors]))
    x, penalty = both / unit, 1 / (total + 1)

    def fit(ab: Any, probability: Any) -> Any:
        w = weights * probability
        w = xp.concatenate([w / xp.maximum(w.sum(), 1e-30), impostors])
        return _newton(ab, x, target, w, penalty)

    def right(ab: Any, share: Any) -> Any:
        odds = xp.where(ab[0] > 0, ab[0] * x[: len(pairs)] + ab[1], 0)
        return sigmoid(odds + xp.log(share) - xp.log1p(-share))

    def step(state: Any) -> Any:
        ab, share = state

        def again(share: Any) -> Any:
            return xp.clip((weights * right(ab, share)).sum() / total, 1e-4, 1 - 1e-4)

        share = repeat(5, again, share)
        return fit(ab, right(ab, share)), share

    ab = repeat(30, lambda ab: fit(ab, probability), xp.zeros(2, x.dtype))
    ab, share = repeat(100, step, (ab, xp.clip(share, 0.5, 1 - 1e-4)))
    return share, right(ab, share)


_FLATTEST, _STEEPEST = 1e-3, 4.0


@compiled("halvings")
def fit_search_slope(
    scores: Float[Any, "f b b"],
    valid: Bool[Any, "f b"],
    weights: Float[Any, "f b"],
    *,
    halvings: int = 12,
) -> tuple[Float[Any, ""], Float[Any, "f b"]]:
    """The slope at which partners are most probable among all candidates, and how probable then.

    Args:
        scores: of held-out rows, fold by fold; partners stand on the diagonals.
        valid: which rows are there.
        weights: of the rows.
        halvings: of the interval from 0.001 to 4 in which the slope is sought; 12 find it to a
            fifth of a percent.

    Returns:
        The slope, and the log-probability of each row's partner at it, mean of both ways, in nats.

    Source: temperature scaling, Guo et al. (2017).

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.evidence import fit_search_slope
        >>> scores = jnp.array([[[3.0, -1.0], [-2.0, 1.0]]])
        >>> fit_search_slope(scores, jnp.ones((1, 2), bool), jnp.ones((1, 2)))[1].shape
        (1, 2)
    """
    xp = namespace(scores)
    w = xp.where(valid, weights, 0)
    own = xp.where(valid, xp.diagonal(scores, axis1=1, axis2=2), 0)
    # How far below the best of its row or column every score is; what is hidden, without bound.
    shown = xp.where(valid[:, :, None] & valid[:, None, :], scores, -1e30)
    tops = [(axis, shown.max(axis=axis, keepdims=True)) for axis in (1, 2)]
    ways = [(axis, top.reshape(own.shape), shown - top) for axis, top in tops]

    def rise(slope: Any) -> tuple[Any, Any]:
        """Derivative of the mean log-probability by the slope, and the log-probabilities."""
        total, rises = xp.zeros_like(own), xp.zeros((), own.dtype)
        for axis, top, below in ways:
            e = xp.exp(slope * below)
            mass = e.sum(axis=axis)
            mean = top + (e * below).sum(axis=axis) / mass
            total = total + (slope * (own - top) - xp.log(mass)) / 2
            rises = rises + (w * (own - mean)).sum()
        return rises, xp.where(valid, total, 0)

    def halve(ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = (low + high) / 2
        up = rise(xp.exp(middle))[0] > 0
        return xp.where(up, middle, low), xp.where(up, high, middle)

    ends = [xp.asarray(math.log(end), scores.dtype) for end in (_FLATTEST, _STEEPEST)]
    low, high = repeat(halvings, halve, tuple(ends))
    slope = xp.exp((low + high) / 2)
    return slope, rise(slope)[1]


_ALTERNATIONS = 6  # of slope and lapse: 34 more move the lapse by 0.001, the slope by a percent


@compiled()
def fit_lapse(
    scores: Float[Any, "f b b"], valid: Bool[Any, "f b"], weights: Float[Any, "f b"]
) -> tuple[Float[Any, ""], Float[Any, ""]]:
    """Slope among many candidates, and the share of rows whose partner can be anyone.

    A few rows whose partners score very badly, as heavy tails make them, would flatten the slope
    for all. With probability ``lapse`` a partner is therefore taken to be any of the candidates.

    Args:
        scores: of held-out rows, fold by fold; partners stand on the diagonals.
        valid: which rows are there.
        weights: of the rows.

    Returns:
        Slope and lapse, by expectation maximisation.

    Source: Wichmann and Hill (2001) for lapses of psychometric functions.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.evidence import fit_lapse
        >>> scores = jnp.array([[[3.0, -1.0], [-2.0, 1.0]]])
        >>> bool(fit_lapse(scores, jnp.ones((1, 2), bool), jnp.ones((1, 2)))[1] < 0.5)
        True
    """
    xp = namespace(scores)
    w = xp.where(valid, weights, 0)
    total = xp.maximum(w.sum(), jnp.finfo(w.dtype).tiny)
    chance = 1 / xp.maximum(valid.sum(axis=1, keepdims=True), 1).astype(w.dtype)

    def step(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        _, lapse, told = state
        slope, found = fit_search_slope(scores, valid, w * told)
        own = (1 - lapse) * xp.exp(found)
        told = own / xp.maximum(own + lapse * chance, jnp.finfo(w.dtype).tiny)
        return slope, xp.clip(1 - (w * told).sum() / total, 1e-4, 0.5), told

    start = xp.ones((), w.dtype), xp.full((), 0.05, w.dtype), xp.ones_like(w)
    slope, lapse, _ = repeat(_ALTERNATIONS, step, start)
    return slope, lapse
