"""The alignment to use on one's own data: everything chosen on held-out rows, with the reasons.

``fit`` is the paper; on noisy data its directions of least error are directions without energy.
``align`` whitens each side with a ridge, finds the axes on which the sides agree, and weighs every
axis by its correlation on rows it was not fitted to (see ``evidence``). The views may be lifted
first, may be more than two, and may be put together into sides.

Folds are moments: trying a ridge costs products with them, not passes over the data, and only the
held-out rows that choose, at most 2,000, are looked at again.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perfalign_jax import _checks, _folds, evidence, kernels, significance, statistics
from perfalign_jax import lift as lifting
from perfalign_jax._folds import Axes, Folds, Tried
from perfalign_jax._numerics import matmul
from perfalign_jax.lift import Lift
from perfalign_jax.statistics import Statistic
from perfalign_jax.types import Alignment, Choice, CollapseWarning, Evidence, Trial, Views

__all__ = ["align"]

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
FACTORS = (0.7, 1.0, 1.5)  # of the median distance, as the bandwidth of a kernel
_LANDMARKS = 2000
_AXES = 512  # looked for at most
_ROWS = 2000  # held-out rows that choose
_LIKELY = 200  # of them in each fold, for the likelihood
_KERNELS = ("gaussian", "laplacian", "polynomial", "arc_cosine")
_ROUNDS = 7  # of weighing pairs
Sides = tuple[tuple[int, ...], ...]


class _Candidate(NamedTuple):
    """Lifted views, and the moments of their folds."""

    name: str
    lifts: tuple[Lift, ...]
    features: tuple[Float[Array, "n _"], ...]  # of each side
    folds: Folds
    tried: Tried
    hits: Float[np.ndarray, "l k f b"]


class _Plan(NamedTuple):
    """Which rows are in which fold, and which of them choose."""

    order: Int[np.ndarray, "f b"]  # rows of each fold, filled up with -1
    thin: Int[np.ndarray, "f c"]  # places in it of those that choose
    chosen: Int[np.ndarray, "f c"]  # their rows, filled up with -1
    n: int


def align(
    data: Views | Statistic | Sequence[Statistic],
    *,
    sides: Sequence[Sequence[int]] | None = None,
    lift: Literal["auto", "gaussian", "laplacian", "polynomial", "arc_cosine"]
    | Sequence[Lift]
    | None = "auto",
    ridge: float | Array | Literal["auto"] = "auto",
    k: int | Literal["auto"] = "auto",
    weights: Any = None,
    groups: Any = None,
    wrong_pairs: bool = False,
    folds: int = 5,
) -> Alignment:
    """Align two or more views, with everything chosen and every axis weighed on held-out rows.

    Args:
        data: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``; or statistics of two or more
            parts of the data, which are then the folds (each a ``Factor`` or ``Gram`` of the same
            views): what needs rows, lifts and the choice by retrieval, is then not possible.
        sides: which views to put together, such as ``((0, 1), (2,))``: all that is known of a
            thing on one side against the other. By default every view is a side; more than two
            then get one joint space, which serves any subset of views but costs weakly related
            pairs of views accuracy against an alignment of their own.
        lift: None aligns linearly, after every feature is brought to its own spread; "gaussian"
            and the other kernels of ``kernels.fit_nystroem`` take all rows as landmarks up to 2,000
            and as many evenly spaced rows beyond; "auto" tries None and "gaussian"; fitted lifts,
            one for each view, are used as they are.
        ridge: relative to the mean eigenvalue of each side.
        k: number of axes; axes without held-out correlation are left out in any case.
        weights: shape ``(n,)``, as in ``fit``.
        groups: shape ``(n,)``, such as subjects or sessions: rows of one group are never in
            different folds.
        wrong_pairs: some pairs may be wrong; weigh each by how probably it is right. The alignment
            then has ``right_share`` and ``right_probability``.
        folds: how many parts the rows are held out in.

    Returns:
        An ``Alignment`` with ``evidence`` and ``choice``. With lift (None or fitted), ridge and k
        given, it works under jit, vmap and grad, and ``choice`` is then None.

    Raises:
        TypeError: if the data is neither, or does not hold real numbers.
        ValueError: if shapes, options or values do not fit; the message names what came.

    Warns:
        CollapseWarning: outside jit, if no axis agrees on held-out rows.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(200, 3)).astype(np.float32)
        >>> x1, x2 = (z @ rng.normal(size=(3, d)).astype("f4") for d in (6, 8))
        >>> x1, x2 = (x + rng.normal(size=x.shape).astype("f4") / 10 for x in (x1, x2))
        >>> alignment = pa.align((x1, x2), lift=None)
        >>> found = pa.search(alignment, x1, x2, top=1)
        >>> bool((found.indices[:, 0] == np.arange(200)).mean() > 0.9)
        True
    """
    parts = statistics.as_parts(data)
    if parts is not None:
        for name, value in (("weights", weights), ("groups", groups)):
            if value is not None:
                raise ValueError(f"{name} must be None with statistics, got {name}.")
        return _align_parts(parts, sides=sides, lift=lift, ridge=ridge, k=k, wrong=wrong_pairs)
    state: Any = statistics.as_statistic(data, weights=weights, center=True)
    views = state.views
    places = _check_sides(sides, len(views))
    _check_options(lift, ridge, k, views)
    n = state.samples
    folds = _checks.integer(folds, "folds", low=2)
    plan = _plan(n, folds, groups)
    traced = _checks.is_traced((state, ridge, lift))
    if traced and ("auto" in (ridge, k) or isinstance(lift, str) or wrong_pairs):
        raise ValueError(
            "under jit, vmap and grad lift (None or fitted lifts), ridge and k must be given, and "
            "wrong_pairs must be False."
        )
    if not traced:
        _check_moving(views)
    w = jnp.ones((n,), state.dtype) if state.weights is None else state.weights
    ridges = RIDGES if isinstance(ridge, str) else (ridge,)
    most = _AXES if k == "auto" else int(k)
    if traced:  # nothing is chosen
        lifts = _fit_lifts(views, lift)
        best = _try(views, "", lifts, w, (ridge,), places, plan, most, auto=False)
        return _finish(views, best, 0, ridge, most, w, places, plan, None)
    candidates = [
        _try(views, name, lifts, w, ridges, places, plan, most, k == "auto")
        for name, lifts in _list_lifts(views, lift)
    ]
    picked, number, size, choice = _choose(candidates, ridges, w, plan, k == "auto")
    best = candidates[picked]
    del candidates
    if wrong_pairs:
        return _with_wrong_pairs(views, best, ridges, number, size, w, places, plan, choice)
    return _finish(views, best, number, ridges[number], size, w, places, plan, choice)


def _check_sides(sides: Any, count: int) -> Sides:
    if sides is None:
        return tuple((m,) for m in range(count))
    try:
        given = tuple(tuple(int(m) for m in side) for side in sides)
    except TypeError:
        raise TypeError(
            f"sides must be a tuple of tuples of views such as ((0, 1), (2,)), got {sides!r}."
        ) from None
    flat = sorted(m for side in given for m in side)
    if len(given) < 2 or not all(given) or flat != list(range(count)):
        raise ValueError(
            f"sides must be two or more groups that hold each of the views 0 to {count - 1} once, "
            f"got {given}."
        )
    return tuple(tuple(sorted(side)) for side in given)


def _check_options(lift: Any, ridge: Any, k: Any, views: tuple[Array, ...]) -> None:
    if isinstance(lift, str):
        _checks.one_of(lift, "lift", ("auto", *_KERNELS))
    elif lift is not None:
        fitted = isinstance(lift, Sequence) and all(isinstance(part, Lift) for part in lift)
        if not fitted or len(lift) != len(views):
            raise TypeError(
                f"lift must be a word, None, or {len(views)} fitted lifts, one for each view; "
                f"got {lift!r:.80}."
            )
        for m, (part, x) in enumerate(zip(lift, views, strict=True)):
            if getattr(part, "dim", x.shape[1]) != x.shape[1]:
                raise ValueError(
                    f"lift[{m}] must be fitted to {x.shape[1]} features like x{m + 1}, got "
                    f"{part.dim}."
                )
    if isinstance(ridge, str):
        _checks.one_of(ridge, "ridge", ("auto",))
    else:
        _checks.positive(ridge, "ridge")
    if isinstance(k, str):
        _checks.one_of(k, "k", ("auto",))
    else:
        _checks.integer(k, "k", low=1)


def _check_moving(views: tuple[Array, ...]) -> None:
    for m, x in enumerate(views):
        if bool(jnp.all(x == x[:1])):
            raise ValueError(
                f"x{m + 1} must vary, but all its {x.shape[0]} rows are the same: nothing can be "
                "aligned with it."
            )


def _plan(n: int, folds: int, groups: Any) -> _Plan:
    if groups is None:
        if n < 2 * folds:
            raise ValueError(
                f"data must have at least 2 rows for each of the {folds} folds, got {n}; give "
                "more rows or fewer folds."
            )
        parts = [np.arange(f, n, folds) for f in range(folds)]
    else:
        labels = np.asarray(groups)
        if labels.shape != (n,):
            raise ValueError(f"groups must have shape ({n},), got shape {labels.shape}.")
        _, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(counts) < folds:
            raise ValueError(
                f"groups must have at least folds = {folds} different values, got {len(counts)}."
            )
        # The largest first, each to the fold with fewest rows so far.
        home, sizes = np.zeros(len(counts), int), np.zeros(folds, int)
        for group in np.argsort(-counts, kind="stable"):
            home[group] = np.argmin(sizes)
            sizes[home[group]] += counts[group]
        parts = [np.flatnonzero(home[number] == f) for f in range(folds)]
        if min(map(len, parts)) < 2:
            raise ValueError("groups must leave at least two rows in every fold, got fewer.")
    order = np.full((folds, max(map(len, parts))), -1)
    for row, part in zip(order, parts, strict=True):
        row[: len(part)] = part
    few = min(order.shape[1], _ROWS // folds)
    thin = np.stack([np.arange(few) * max(few, len(part)) // few for part in parts])
    return _Plan(order, thin, np.take_along_axis(order, thin, axis=1), n)


def _list_lifts(views: tuple[Array, ...], lift: Any) -> list[tuple[str, tuple[Lift, ...]]]:
    if not isinstance(lift, str):
        name = "none" if lift is None else "given"
        return [(name, _fit_lifts(views, lift))]
    kernel = "gaussian" if lift == "auto" else lift
    found = [("none", _fit_lifts(views, None))] if lift == "auto" else []
    for factor in FACTORS:
        name = f"{kernel}, bandwidth {factor:g} of the median distance"
        found.append((name, _fit_lifts(views, kernel, factor)))
    return found


def _fit_lifts(views: tuple[Array, ...], lift: Any, factor: float = 1.0) -> tuple[Lift, ...]:
    if lift is None:
        return tuple(kernels.fit_standardise(x) for x in views)
    if isinstance(lift, str):
        return tuple(
            kernels.fit_nystroem(x, kernel=cast(Any, lift), factor=factor, landmarks=_LANDMARKS)
            for x in views
        )
    return tuple(lift)


def _lift_sides(
    views: tuple[Array, ...], lifts: tuple[Lift, ...], places: Sides
) -> tuple[Float[Array, "n _"], ...]:
    lifted = [lifting.apply(f, x).astype(x.dtype) for f, x in zip(lifts, views, strict=True)]
    return tuple(jnp.concatenate([lifted[m] for m in side], axis=1) for side in places)


def _most_axes(dims: tuple[int, ...], n: int, most: int) -> int:
    return max(1, min(*dims, n - 1, most))


def _ladder(k: int, auto: bool) -> tuple[int, ...]:
    """Numbers of axes to try: all of them, and halves down to one."""
    return (k, *(k >> i for i in range(1, k.bit_length()))) if auto else (k,)


def _try(
    views: tuple[Array, ...],
    name: str,
    lifts: tuple[Lift, ...],
    w: Array,
    ridges: tuple[Any, ...],
    places: Sides,
    plan: _Plan,
    most: int,
    auto: bool,
) -> _Candidate:
    """Hold every fold out under every ridge, and count which rows find their partners."""
    features = _lift_sides(views, lifts, places)
    k = _most_axes(tuple(f.shape[1] for f in features), plan.n, most)
    return _try_features(name, lifts, features, w, ridges, plan, k, auto)


def _try_features(
    name: str,
    lifts: tuple[Lift, ...],
    features: tuple[Array, ...],
    w: Array,
    ridges: tuple[Any, ...],
    plan: _Plan,
    k: int,
    auto: bool,
) -> _Candidate:
    folds = _folds.of_rows(features, plan.order, w)
    rows = _take_rows(features, folds.mean, plan.chosen)
    tried = _folds.try_ridges(folds, rows, jnp.asarray(ridges, rows.dtype), k=k)
    if _checks.is_traced(tried):
        return _Candidate(name, lifts, features, folds, tried, np.zeros(()))
    hits = _count_hits(tried, plan.chosen >= 0, ks=_ladder(k, auto))
    return _Candidate(name, lifts, features, folds, tried, np.asarray(hits, np.float64))


@jax.jit
def _take_rows(
    features: tuple[Array, ...], mean: Array, chosen: Int[Array, "f c"]
) -> Float[Array, "f c p"]:
    return jnp.concatenate([x[chosen] for x in features], axis=-1) - mean[None, None, :]


def _variances(covariances: Float[Array, "s s k"]) -> Float[Array, "s k"]:
    return jnp.diagonal(covariances).T


def _scaled(covariances: Array, latents: tuple[Array, ...]) -> list[Array]:
    """Coordinates of variance one on held-out rows."""
    scale = [jnp.where(v > 0, v, jnp.inf) for v in _variances(covariances)]
    return [z * jax.lax.rsqrt(v)[None, None, :] for z, v in zip(latents, scale, strict=True)]


def _pairs(sides: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(sides) for b in range(a + 1, sides)]


@functools.partial(jax.jit, static_argnames=("ks",))
def _count_hits(tried: Tried, valid: Array, *, ks: tuple[int, ...]) -> Float[Array, "l k f b"]:
    """Share of ways and pairs of sides in which each held-out row finds its partner first."""

    def one(covariances: Array, *latents: Array) -> Array:
        def with_k(size: Array) -> Array:
            scores = _score_sides(covariances, latents, size)
            return jnp.mean(jnp.stack([_first(pair, valid) for pair in scores]), axis=0)

        return jax.lax.map(with_k, jnp.asarray(ks))

    moved = tuple(jnp.moveaxis(z, 1, 0) for z in tried.latents)
    return jax.lax.map(lambda part: one(*part), (tried.covariances, *moved))


def _score_sides(
    covariances: Array, latents: tuple[Array, ...], size: Array
) -> list[Float[Array, "f b b"]]:
    """Scores of held-out rows against each other by the first axes, for every pair of sides."""
    rho = _folds.reliabilities(covariances)
    rho = jnp.where(jnp.arange(rho.shape[1]) < size, rho, 0)
    z = _scaled(covariances, latents)
    score = jax.vmap(evidence.score_all, (0, 0, None))
    return [score(z[a], z[b], rho[a] * rho[b]) for a, b in _pairs(len(z))]


def _first(scores: Float[Array, "f b b"], valid: Array) -> Float[Array, "f b"]:
    """Whether a row's partner is first, both ways; scores equal up to rounding share the place."""
    own = jnp.diagonal(scores, axis1=1, axis2=2)
    band = jnp.finfo(scores.dtype).eps * 8 * (1 + jnp.abs(own))
    shares = []
    for axis in (1, 2):
        rivals = jnp.where(jnp.expand_dims(valid, 3 - axis), scores, -jnp.inf)
        own_row, width = (jnp.expand_dims(v, axis) for v in (own, band))
        beaten = jnp.any(rivals > own_row + width, axis=axis)
        tied = jnp.sum(rivals >= own_row - width, axis=axis).astype(scores.dtype)
        shares.append(jnp.where(beaten, 0, 1 / jnp.maximum(tied, 1)))
    return jnp.where(valid, (shares[0] + shares[1]) / 2, 0)


def _choose(
    candidates: list[_Candidate], ridges: tuple[Any, ...], w: Array, plan: _Plan, auto: bool
) -> tuple[int, int, int, Choice]:
    """Which lift, ridge and k; the numbers of the first two, and k itself."""
    valid = plan.chosen >= 0
    share = np.where(valid, np.asarray(w, np.float64)[plan.chosen], 0)
    share = share / max(share.sum(), 1e-300)
    rows = int(valid.sum())
    settings, hits, trials = [], [], []
    for c, candidate in enumerate(candidates):
        ks = _ladder(candidate.tried.covariances.shape[-1], auto)
        for i, j in np.ndindex(len(ridges), len(ks)):
            each = candidate.hits[i, j]
            mean, error = _mean_and_error(each, share)
            settings.append((c, i, ks[j]))
            hits.append(each)
            trials.append(Trial(candidate.name, float(ridges[i]), ks[j], mean, error))
    best = int(np.argmax([trial.recall for trial in trials]))
    for s, (c, i, size) in enumerate(settings):
        lead, error = _mean_and_error(hits[best] - hits[s], share)
        if lead <= error + 1e-12:
            likely = _log_likelihood(candidates[c].tried, i, size, plan, w)
            trials[s] = dataclasses.replace(trials[s], log_likelihood=likely)
    among = [s for s, trial in enumerate(trials) if not math.isnan(trial.log_likelihood)]
    chosen = max(among, key=lambda s: trials[s].log_likelihood)
    if len(trials) == 1:
        reason = "everything was given"
    else:
        reason = (
            f"of {len(among)} settings within one standard error of the best R@1 "
            f"({100 * trials[best].recall:.1f} %), rows compared in pairs, partners are most "
            "probable under it"
        )
    candidates_of_row = int(valid.sum(axis=1).min())
    tried = tuple(trials) if len(trials) > 1 else ()
    return (*settings[chosen], Choice(tried, trials[chosen], rows, candidates_of_row, reason))


def _mean_and_error(values: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Weighted mean over rows, and its standard error."""
    mean = float((values * share).sum())
    return mean, float(np.sqrt((share**2 * (values - mean) ** 2).sum()))


def _log_likelihood(tried: Tried, i: int, size: int, plan: _Plan, w: Array) -> float:
    few = slice(None, None, max(1, plan.chosen.shape[1] // _LIKELY))
    rows = plan.chosen[:, few]
    latents = tuple(z[:, i, few] for z in tried.latents)
    found = _likely(tried.covariances[i], latents, jnp.asarray(size), rows, w)
    return float(found)


@jax.jit
def _likely(
    covariances: Array, latents: tuple[Array, ...], size: Array, rows: Array, w: Array
) -> Float[Array, ""]:
    """Mean log-probability of held-out rows' partners among the candidates of their fold."""
    scores = jnp.concatenate(_score_sides(covariances, latents, size))
    times = len(_pairs(len(latents)))
    valid = jnp.tile(rows >= 0, (times, 1))
    weights = jnp.where(valid, jnp.tile(w[rows], (times, 1)), 0)
    _, found = evidence.fit_search_slope(scores, valid, weights)
    return jnp.sum(weights * found) / jnp.maximum(jnp.sum(weights), 1e-30)


class _Fitted(NamedTuple):
    """All that an alignment of sides is made of."""

    mean: Float[Array, " p"]
    directions: tuple[Float[Array, "_ k"], ...]
    variances: Float[Array, "s k"]  # on the rows that were fitted
    couplings: Float[Array, " k"]
    rho: Float[Array, "s k"]
    left: Float[Array, " k"]
    covariance: Float[Array, "p p"]


@functools.partial(jax.jit, static_argnames=("k",))
def _solve(
    folds: Folds,
    covariances: Float[Array, "s s k"],
    trained: Float[Array, "s k"],
    ridge: Array,
    whole: tuple[Array, Array] | None = None,
    *,
    k: int,
) -> _Fitted:
    """Axes of all rows, in units in which the coordinates of new rows have variance one."""
    mean, covariance = _folds.others(folds, -1) if whole is None else whole
    dims = folds.dims
    axes = _folds.axes_of(covariance, dims, ridge, k)
    held_out = _variances(covariances)[:, :k]
    growth = held_out / jnp.where(trained[:, :k] > 0, trained[:, :k], 1)
    scale = axes.variances * growth
    inverse = jnp.where(scale > 0, jax.lax.rsqrt(jnp.where(scale > 0, scale, 1)), 0)
    directions = tuple(a * s[None, :] for a, s in zip(axes.directions, inverse, strict=True))
    largest = jnp.argmax(jnp.abs(directions[0]), axis=0)
    sign = jnp.where(jnp.take_along_axis(directions[0], largest[None], axis=0)[0] < 0, -1, 1)
    directions = tuple(a * sign.astype(a.dtype)[None, :] for a in directions)
    rho = _folds.reliabilities(covariances)[:, :k]
    moments = _folds.paired(covariance, dims, Axes(directions, axes.couplings, inverse))
    lengths = rho * jax.lax.rsqrt(1 - rho**4)
    scaled = moments * lengths[:, None, :] * lengths[None, :, :]
    left = jnp.zeros_like(axes.couplings)
    for a, b in _pairs(len(dims)):
        left = left + scaled[a, a] + scaled[b, b] - 2 * scaled[a, b]
    left = jnp.sqrt(jnp.maximum(left * jnp.sum(folds.weights), 0))
    return _Fitted(
        folds.mean + mean, directions, _variances(moments), axes.couplings, rho, left, covariance
    )


@functools.partial(jax.jit, static_argnames=("places",))
def _load(
    views: tuple[Array, ...],
    features: tuple[Array, ...],
    w: Array,
    fitted: _Fitted,
    *,
    places: Sides,
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Covariances of the axes with the views' own features, and those features' moments."""
    total = jnp.maximum(jnp.sum(w), jnp.finfo(w.dtype).tiny)
    means = _folds.split(fitted.mean, tuple(f.shape[1] for f in features))
    loadings: dict[int, Array] = {}
    centres, variances = [], []
    for s, side in enumerate(places):
        z = matmul(features[s] - means[s][None, :], fitted.directions[s])
        own = fitted.variances[s]
        z = (w / total)[:, None] * z / jnp.where(own > 0, own, 1)[None, :]
        for m in side:
            loadings[m] = matmul(z.T, views[m] - jnp.mean(views[m], axis=0)[None, :])
    for x in views:
        centre = matmul(w, x) / total
        centres.append(centre)
        variances.append(matmul(w, (x - centre[None, :]) ** 2) / total)
    ordered = tuple(loadings[m] for m in range(len(views)))
    return ordered, tuple(centres), tuple(variances)


@jax.jit
def _calibrate(
    covariances: Array, latents: tuple[Array, ...], size: Array, rows: Array, w: Array
) -> tuple[Array, Array, Array]:
    """Slope and offset of the log-odds, and the slope among many candidates."""
    scores = jnp.concatenate(_score_sides(covariances, latents, size))
    times = len(_pairs(len(latents)))
    valid = jnp.tile(rows >= 0, (times, 1))
    weights = jnp.where(valid, jnp.tile(w[rows], (times, 1)), 0)
    slope, offset = evidence.fit_calibration(scores, valid, weights)
    return slope, offset, evidence.fit_search_slope(scores, valid, weights)[0]


def _finish(
    views: tuple[Array, ...],
    best: _Candidate,
    number: int,
    ridge: Any,
    size: int,
    w: Array,
    places: Sides,
    plan: _Plan,
    choice: Choice | None,
    right: tuple[Array, Array] | None = None,
) -> Alignment:
    """The alignment of one setting, with its evidence."""
    covariances, trained = best.tried.covariances[number], best.tried.trained[number]
    k = min(size, covariances.shape[-1])
    if choice is not None:  # axes without held-out correlation say nothing
        rho = np.asarray(_folds.reliabilities(covariances)[:, :k])
        k = max(1, int(((rho > 0).sum(axis=0) > 1).sum()))
        choice = dataclasses.replace(choice, chosen=dataclasses.replace(choice.chosen, k=k))
        if not (rho > 0).any():
            _checks.warn(
                "no axis of the views agrees on rows it was not fitted to: nothing in them tells "
                "which rows belong together.",
                CollapseWarning,
            )
    ridge = jnp.asarray(ridge, covariances.dtype)
    fitted = _solve(best.folds, covariances, trained, ridge, k=k)
    latents = tuple(z[:, number] for z in best.tried.latents)
    slopes = _calibrate(covariances, latents, jnp.asarray(k), jnp.asarray(plan.chosen), w)
    loaded = _load(views, best.features, w, fitted, places=places)
    return _build(best.lifts, fitted, places, ridge, slopes, loaded, choice, right)


def _build(
    lifts: tuple[Lift, ...],
    fitted: _Fitted,
    places: Sides,
    ridge: Array,
    slopes: tuple[Array, Array, Array],
    loaded: tuple[tuple[Array, ...], ...],
    choice: Choice | None,
    right: tuple[Array, Array] | None = None,
) -> Alignment:
    dims = tuple(a.shape[0] for a in fitted.directions)
    means = _folds.split(fitted.mean, dims)
    widths = [_width(f) for f in lifts]
    projections: dict[int, Array] = {}
    centres: dict[int, Array] = {}
    fills, start = [], 0
    for s, side in enumerate(places):
        cut = tuple(widths[m] for m in side)
        for m, a, mean in zip(
            side,
            _folds.split(fitted.directions[s], cut, 0),
            _folds.split(means[s], cut),
            strict=True,
        ):
            projections[m], centres[m] = a.T, mean
        block = fitted.covariance[start : start + dims[s], start : start + dims[s]]
        # With the ridge on its diagonal, so that views can be regressed on each other.
        few = len(side) > 1
        penalty = ridge * jnp.trace(block) / dims[s] * jnp.eye(dims[s], dtype=block.dtype)
        fills.append(block + penalty if few else block[:0, :0])
        start += dims[s]
    loadings, middles, variances = loaded
    return Alignment(
        projections=tuple(projections[m] for m in range(len(lifts))),
        singular_values=fitted.left,
        means=tuple(centres[m] for m in range(len(lifts))),
        offset=jnp.zeros_like(fitted.left),
        coupling=fitted.couplings,
        lifts=lifts,
        evidence=Evidence(
            fitted.rho,
            *slopes,
            loadings=loadings,
            centres=middles,
            variances=variances,
            fills=tuple(fills),
            right_share=None if right is None else right[0],
            right_probability=None if right is None else right[1],
        ),
        method="align",
        center=True,
        sides=() if all(len(side) == 1 for side in places) else places,
        choice=choice,
    )


def _width(f: Lift) -> int:
    """Number of features that a lift makes of a row."""
    if isinstance(f, lifting.Convolutions):
        raise TypeError(
            "lift must not hold Convolutions: they take series (n, length, channels); apply them "
            "first and give their features as a view."
        )
    shape = jax.eval_shape(lambda x: lifting.apply(f, x), jax.ShapeDtypeStruct((1, f.dim), float))
    return shape.shape[1]


def _with_wrong_pairs(
    views: tuple[Array, ...],
    best: _Candidate,
    ridges: tuple[Any, ...],
    number: int,
    size: int,
    w: Array,
    places: Sides,
    plan: _Plan,
    choice: Choice,
) -> Alignment:
    """Weigh every pair by how probably it is right, and fit again, until the weights stand.

    The probabilities come from rows held out of the fit, so no pair vouches for itself. Ridge and k
    are then chosen anew, with the weights.
    """
    auto = len(best.hits[0]) > 1
    share = jnp.asarray(1.0, w.dtype)
    probability = jnp.ones_like(w)
    ridge = jnp.asarray(ridges[number], w.dtype)
    k = best.tried.covariances.shape[-1]
    for _ in range(_ROUNDS):
        folds = _folds.of_rows(best.features, plan.order, w * probability)
        rows = _take_rows(best.features, folds.mean, plan.order)
        tried = _folds.try_ridges(folds, rows, ridge[None], k=k)
        share, probability = _weigh(
            tried, jnp.asarray(size), plan.order, plan.thin, w, probability, share
        )
    if float(share) * plan.n < 2 * len(plan.order):
        _checks.warn(
            f"the share of right pairs is estimated as {float(share):.1%}: there is hardly one to "
            "learn from.",
            CollapseWarning,
        )
        probability = jnp.maximum(probability, 1e-3)
    weighed = w * probability
    again = _try_features(best.name, best.lifts, best.features, weighed, ridges, plan, k, auto)
    _, number, size, chosen = _choose([again], ridges, weighed, plan, auto)
    wrong = f"{float(1 - share):.1%} of the pairs are estimated to be wrong"
    choice = dataclasses.replace(choice, chosen=chosen.chosen, remarks=(*choice.remarks, wrong))
    right = (share, probability)
    return _finish(views, again, number, ridges[number], size, weighed, places, plan, choice, right)


@jax.jit
def _weigh(
    tried: Tried,
    size: Array,
    order: Array,
    thin: Array,
    w: Array,
    probability: Array,
    share: Array,
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Share of right pairs and how probably each is right, from held-out log-odds."""
    latents = tuple(z[:, 0] for z in tried.latents)
    few = tuple(jnp.take_along_axis(z, thin[:, :, None], axis=1) for z in latents)
    rows = jnp.take_along_axis(order, thin, axis=1)
    slope, offset, _ = _calibrate(tried.covariances[0], few, size, rows, w * probability)
    rho = _folds.reliabilities(tried.covariances[0])
    rho = jnp.where(jnp.arange(rho.shape[1]) < size, rho, 0)
    z = _scaled(tried.covariances[0], latents)
    score = jax.vmap(evidence.score_pairs, (0, 0, None))
    pairs = [score(z[a], z[b], rho[a] * rho[b]) for a, b in _pairs(len(z))]
    odds = slope * jnp.mean(jnp.stack(pairs), axis=0) + offset
    valid = order >= 0
    weights = jnp.where(valid, w[order], 0)

    def step(_: int | Array, share: Array) -> Array:
        right = jax.nn.sigmoid(odds + jnp.log(share) - jnp.log1p(-share))
        mean = jnp.sum(weights * right) / jnp.maximum(jnp.sum(weights), 1e-30)
        return jnp.clip(mean, 1e-4, 1 - 1e-4)

    share = jax.lax.fori_loop(0, 50, step, jnp.clip(share, 0.5, 1 - 1e-4))
    right = jax.nn.sigmoid(odds + jnp.log(share) - jnp.log1p(-share))
    place = jnp.where(valid, order, len(w)).reshape(-1)
    found = jnp.zeros((len(w) + 1,), w.dtype).at[place].set(right.reshape(-1))
    return share, found[:-1]


def _align_parts(
    parts: list[Any], *, sides: Any, lift: Any, ridge: Any, k: Any, wrong: bool
) -> Alignment:
    """Align moments alone, part by part or, from a single one, with the help of theory."""
    dims = parts[0].dims
    places = _check_sides(sides, len(dims))
    if lift not in (None, "auto"):
        raise ValueError(
            f"lift must be None with statistics, which have no rows to lift, got {lift!r:.80}; "
            "lift the views before the statistics."
        )
    if wrong:
        raise ValueError("wrong_pairs must be False with statistics: single pairs are not in them.")
    _check_options(None, ridge, k, ())
    order = [m for side in places for m in side]
    folds, scalings = _of_parts(parts, order)
    folds = dataclasses.replace(folds, dims=tuple(sum(dims[m] for m in side) for side in places))
    samples = float(sum(part.samples for part in parts))
    size = _most_axes(folds.dims, int(samples), _AXES if k == "auto" else int(k))
    remarks: tuple[str, ...] = (
        "from moments alone: chosen on held-out information, log-odds are not calibrated",
    )
    trials: tuple[Trial, ...] = ()
    if len(parts) == 1:
        covariances, trained, chosen = _debiased(folds, size, samples, ridge)
        remarks = ("from one statistic: correlations are those of theory, nothing is held out",)
        reason = "there are no folds to choose on"
    else:
        ridges = RIDGES if isinstance(ridge, str) else (ridge,)
        nothing = jnp.zeros((len(parts), 0, folds.mean.shape[0]), folds.mean.dtype)
        tried = _folds.try_ridges(folds, nothing, jnp.asarray(ridges, folds.mean.dtype), k=size)
        informations = [float(_folds.tell(c)) for c in tried.covariances]
        number = int(np.argmax(informations))
        covariances, trained = tried.covariances[number], tried.trained[number]
        chosen = float(ridges[number])
        reason = "held-out information is largest, " + ", ".join(
            f"{i:.3g} nats at {r:g}" for i, r in zip(informations, ridges, strict=True)
        )
    rho = np.asarray(_folds.reliabilities(covariances))
    size = max(1, int(((rho > 0).sum(axis=0) > 1).sum()))
    setting = Trial("none", chosen, size, math.nan, math.nan)
    choice = Choice(trials, setting, 0, 0, reason, remarks)
    fitted = _solve(folds, covariances, trained, jnp.asarray(chosen, folds.mean.dtype), k=size)
    one = jnp.ones((), folds.mean.dtype)
    loaded = _load_moments(fitted, scalings, places, tuple(dims))
    lifts = tuple(scalings)
    ridge = jnp.asarray(chosen, folds.mean.dtype)
    return _build(lifts, fitted, places, ridge, (one, 0 * one, one), loaded, choice)


def _of_parts(parts: list[Any], order: list[int]) -> tuple[Folds, tuple[kernels.Standardise, ...]]:
    """Folds of standardised features from statistics, the views in the order of the sides."""
    given = [statistics.rows(part, center=True) for part in parts]
    dtype = given[0].weight.dtype
    weights = jnp.stack([rows.weight for rows in given])
    means = jnp.stack([jnp.concatenate([rows.means[m] for m in order]) for rows in given])
    blocks = [jnp.concatenate([rows.blocks[m] for m in order], axis=1) for rows in given]
    scatters = jnp.stack([matmul(block.T, block) for block in blocks])
    dims = tuple(given[0].means[m].shape[0] for m in order)
    mean = matmul(weights, means) / jnp.sum(weights)
    raw = Folds(weights, mean, means - mean[None, :], scatters, dims)
    middle, covariance = _folds.others(raw, -1)
    mean = mean + middle
    scalings: dict[int, kernels.Standardise] = {}
    for m, own, spread in zip(
        order,
        _folds.split(mean, dims),
        _folds.split(jnp.sqrt(jnp.diagonal(covariance)), dims),
        strict=True,
    ):
        scalings[m] = kernels.standardise(own, spread, jnp.asarray(kernels.FLOOR, dtype))
        if not bool(jnp.any(spread > 0)):
            raise ValueError(f"data must vary, but view {m} of the statistics does not.")
    factor = jnp.concatenate([scalings[m].factor for m in order])
    folds = Folds(
        weights,
        jnp.zeros_like(mean),
        raw.means * factor[None, :],
        scatters * (factor[:, None] * factor[None, :])[None],
        dims,
    )
    return folds, tuple(scalings[m] for m in range(len(order)))


def _debiased(folds: Folds, size: int, samples: float, ridge: Any) -> tuple[Array, Array, float]:
    """Held-out moments as random-matrix theory expects them, of two sides without a ridge."""
    if len(folds.dims) > 2:
        raise ValueError(
            "data must be statistics of two or more parts for more than two sides: one alone "
            "leaves nothing to hold out."
        )
    if not isinstance(ridge, str):
        raise ValueError(
            "ridge must be 'auto' with one statistic, where theory knows correlations without a "
            f"ridge only, got {ridge}; give the statistics of two or more parts."
        )
    _, covariance = _folds.others(folds, -1)
    least = float(jnp.finfo(covariance.dtype).eps)
    axes = _folds.axes_of(covariance, folds.dims, jnp.asarray(least, covariance.dtype), size)
    try:
        r = significance.debias_correlations(
            jnp.minimum(axes.couplings, 1), n=samples - 1, d1=folds.dims[0], d2=folds.dims[1]
        )
    except ValueError as error:
        raise ValueError(f"data is one statistic: {error}") from None
    one = jnp.ones_like(r)
    covariances = jnp.stack([jnp.stack([one, r]), jnp.stack([r, one])])
    return covariances, jnp.ones((2, size), r.dtype), least


@functools.partial(jax.jit, static_argnames=("places", "dims"))
def _load_moments(
    fitted: _Fitted, scalings: tuple[kernels.Standardise, ...], places: Sides, dims: tuple[int, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """What ``_load`` measures, from the covariance of the standardised features."""
    loadings: dict[int, Array] = {}
    variances: dict[int, Array] = {}
    start = 0
    for s, side in enumerate(places):
        width = sum(dims[m] for m in side)
        block = fitted.covariance[start : start + width, start : start + width]
        own = jnp.where(fitted.variances[s] > 0, fitted.variances[s], 1)
        covariance = matmul(block, fitted.directions[s]) / own[None, :]
        cut = tuple(dims[m] for m in side)
        for m, rows, spread in zip(
            side,
            _folds.split(covariance, cut, 0),
            _folds.split(jnp.diagonal(block), cut),
            strict=True,
        ):
            factor = scalings[m].factor
            loadings[m] = rows.T / factor[None, :]
            variances[m] = spread / factor**2
        start += width
    views = range(len(dims))
    centres = tuple(scaling.mean for scaling in scalings)
    return tuple(loadings[m] for m in views), centres, tuple(variances[m] for m in views)
