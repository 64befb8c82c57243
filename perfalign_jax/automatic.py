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
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax import _checks, _folds, _missing, evidence, kernels, significance, statistics
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
_MASKED = 512  # principal features in all where views are missing: EM takes their cube
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
    seen: Bool[np.ndarray, "s f c"]  # which sides these rows have
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
    mask: Any = None,
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
        mask: shape ``(n, M)``, True where a row has a view; what is not there is never read. Rows
            of a single view are welcome. Linear alignments only. EM stops early where few rows
            have both sides: compare with leaving incomplete rows out.
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
        >>> x1 = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> x2 = x1 @ np.float32([[1, 2, 0], [0, 1, 1], [1, 0, 1]]) + 5
        >>> alignment = pa.align((x1, x2), lift=None)
        >>> found = pa.search(alignment, x1, x2, top=1)
        >>> bool((found.indices[:, 0] == np.arange(60)).mean() > 0.9)
        True
    """
    parts = statistics.as_parts(data)
    if parts is not None:
        for name, value in (("mask", mask), ("weights", weights), ("groups", groups)):
            if value is not None:
                raise ValueError(f"{name} must be None with statistics, got {name}.")
        return _align_parts(parts, sides=sides, lift=lift, ridge=ridge, k=k, wrong=wrong_pairs)
    present = None if mask is None else _check_mask(mask, data, lift, wrong_pairs)
    if present is not None and present.all():
        lift, present = None, None
    if present is not None:
        data = _hide(cast(Views, data), present)
    state: Any = statistics.as_statistic(data, weights=weights, center=True)
    views = state.views
    places = _check_sides(sides, len(views))
    _check_options(lift, ridge, k, views)
    n = state.samples
    folds = _checks.integer(folds, "folds", low=2)
    plan = _plan(n, folds, groups, len(places))
    traced = _checks.is_traced((state, ridge, lift))
    if traced and ("auto" in (ridge, k) or isinstance(lift, str) or wrong_pairs):
        raise ValueError(
            "under jit, vmap and grad lift (None or fitted lifts), ridge and k must be given, and "
            "wrong_pairs must be False."
        )
    if present is not None:
        if traced:
            raise ValueError("mask must be None under jit, vmap and grad.")
        return _align_masked(views, present, state, ridge, k, places, folds, groups)
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


def _check_mask(mask: Any, data: Any, lift: Any, wrong: bool) -> Bool[np.ndarray, "n m"]:
    if lift not in (None, "auto"):
        raise ValueError(
            f"lift must be None with a mask, got {lift!r:.80}: lift the rows that are there first, "
            "and give the features as views."
        )
    if wrong:
        raise ValueError("wrong_pairs must be False with a mask: both at once are not supported.")
    present = np.asarray(mask)
    shape = (len(data[0]), len(data)) if isinstance(data, Sequence) and len(data) else None
    if present.dtype != bool:
        raise TypeError(f"mask must hold booleans, True where present, got dtype {present.dtype}.")
    if present.shape != shape:
        raise ValueError(f"mask must have shape (n, M) = {shape}, got {present.shape}.")
    for m, seen in enumerate(present.T):
        if seen.sum() < 2:
            raise ValueError(f"mask must leave view {m} at least two rows, got {seen.sum()}.")
    for m, seen in enumerate(present.T):
        if not (present[seen].sum(axis=1) > 1).any():
            raise ValueError(
                f"mask must show every view together with another somewhere, but view {m} is "
                "always alone."
            )
    return present


def _hide(data: Views, present: Bool[np.ndarray, "n m"]) -> tuple[Any, ...]:
    """The views with zeros where they are not there."""
    return tuple(
        np.where(seen[:, None], x, np.zeros((), x.dtype))
        for x, seen in zip(map(np.asarray, data), present.T, strict=True)
    )


def _check_moving(views: tuple[Array, ...]) -> None:
    for m, x in enumerate(views):
        if bool((np.asarray(x) == np.asarray(x[0])).all()):
            raise ValueError(
                f"x{m + 1} must vary, but all its {x.shape[0]} rows are the same: nothing can be "
                "aligned with it."
            )


def _plan(
    n: int, folds: int, groups: Any, sides: int, have: Bool[np.ndarray, "n s"] | None = None
) -> _Plan:
    """Rows of every fold; to choose, at most 2,000 of those that have two sides."""
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
    useful = order >= 0
    if have is not None:
        useful &= (have.sum(axis=1) > 1)[order]
    few = min(int(useful.sum(axis=1).max()), _ROWS // folds)
    thin = np.zeros((folds, few), int)
    chosen = np.full((folds, few), -1)
    for row, mask, places, rows in zip(order, useful, thin, chosen, strict=True):
        found = np.flatnonzero(mask)
        if len(found) > few:
            found = found[np.arange(few) * len(found) // few]
        places[: len(found)] = found
        rows[: len(found)] = row[found]
    seen = np.repeat((chosen >= 0)[None], sides, axis=0)
    if have is not None:
        seen &= np.moveaxis(have[chosen], -1, 0)
    return _Plan(order, thin, chosen, seen, n)


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
    if all(len(side) == 1 for side in places):
        return tuple(lifted[m] for (m,) in places)
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
    hits = _count_hits(tried, jnp.asarray(plan.seen), ks=_ladder(k, auto))
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
def _count_hits(tried: Tried, seen: Array, *, ks: tuple[int, ...]) -> Float[Array, "l k f b"]:
    """Share of ways and pairs of sides in which each held-out row finds its partner first."""

    def one(covariances: Array, *latents: Array) -> Array:
        def with_k(size: Array) -> Array:
            scores = _score_sides(covariances, latents, size)
            valid = _both_seen(seen)
            found = [_first(pair, both) for pair, both in zip(scores, valid, strict=True)]
            ways = jnp.sum(valid, axis=0).astype(scores[0].dtype)
            return jnp.sum(jnp.stack(found), axis=0) / jnp.maximum(ways, 1)

        return jax.lax.map(with_k, jnp.asarray(ks))

    moved = tuple(jnp.moveaxis(z, 1, 0) for z in tried.latents)
    return jax.lax.map(lambda part: one(*part), (tried.covariances, *moved))


def _score_sides(
    covariances: Array, latents: tuple[Array, ...], size: Array | int
) -> list[Float[Array, "f b b"]]:
    """Scores of held-out rows against each other by the first axes, for every pair of sides."""
    rho = _folds.reliabilities(covariances)
    rho = jnp.where(jnp.arange(rho.shape[1]) < size, rho, 0)
    z = _scaled(covariances, latents)
    score = jax.vmap(evidence.score_all, (0, 0, None))
    return [score(z[a], z[b], rho[a] * rho[b]) for a, b in _pairs(len(z))]


def _both_seen(seen: Bool[Array, "s f b"]) -> Bool[Array, "q f b"]:
    """Which rows have both sides of every pair."""
    return jnp.stack([seen[a] & seen[b] for a, b in _pairs(len(seen))])


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
    valid = plan.seen.sum(axis=0) > 1
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
    stride = max(1, plan.chosen.shape[1] // _LIKELY)
    return float(_likely(tried, i, size, plan.seen, w, plan.chosen, stride=stride))


@functools.partial(jax.jit, static_argnames=("stride",))
def _likely(
    tried: Tried, number: Array, size: Array, seen: Array, w: Array, chosen: Array, *, stride: int
) -> Float[Array, ""]:
    """Mean log-probability of held-out rows' partners among the candidates of their fold."""
    few = slice(None, None, stride)
    latents = tuple(z[:, number, few] for z in tried.latents)
    scores, valid, weights = _all_pairs(
        tried.covariances[number], latents, size, seen[:, :, few], w[chosen[:, few]]
    )
    _, found = evidence.fit_search_slope(scores, valid, weights)
    return jnp.sum(weights * found) / jnp.maximum(jnp.sum(weights), 1e-30)


def _all_pairs(
    covariances: Array,
    latents: tuple[Array, ...],
    size: Array | int,
    seen: Bool[Array, "s f b"],
    w: Float[Array, "f b"],
) -> tuple[Float[Array, "g b b"], Bool[Array, "g b"], Float[Array, "g b"]]:
    """Scores of every pair of sides, fold after fold, which rows they hold, and their weights."""
    scores = jnp.concatenate(_score_sides(covariances, latents, size))
    valid = jnp.concatenate(list(_both_seen(seen)))
    return scores, valid, jnp.where(valid, jnp.tile(w, (len(valid) // len(w), 1)), 0)


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
    covariances: Array,
    latents: tuple[Array, ...],
    size: Array | int,
    seen: Array,
    w: Array,
    chosen: Array,
) -> tuple[Array, Array, Array]:
    """Slope and offset of the log-odds, and the slope among many candidates."""
    scores, valid, weights = _all_pairs(covariances, latents, size, seen, w[chosen])
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
    whole: tuple[Array, Array, Callable[[_Fitted], _Fitted]] | None = None,
) -> Alignment:
    """The alignment of one setting, with its evidence.

    ``whole`` are mean and covariance where they are not the folds' own, and what brings the result
    back to all features.
    """
    covariances, trained, latents, reliable = _pick(best.tried, number)
    k = min(size, covariances.shape[-1])
    if choice is not None:  # axes without held-out correlation say nothing
        rho = np.asarray(reliable)[:, :k]
        k = max(1, int(((rho > 0).sum(axis=0) > 1).sum()))
        choice = dataclasses.replace(choice, chosen=dataclasses.replace(choice.chosen, k=k))
        if not (rho > 0).any():
            _checks.warn(
                "no axis of the views agrees on rows it was not fitted to: nothing in them tells "
                "which rows belong together.",
                CollapseWarning,
            )
    ridge = jnp.asarray(ridge, covariances.dtype)
    fitted = _solve(best.folds, covariances, trained, ridge, whole and whole[:2], k=k)
    slopes = _calibrate(covariances, latents, k, plan.seen, w, plan.chosen)
    if whole is None:
        loaded = _load(views, best.features, w, fitted, places=places)
    else:
        fitted = whole[2](fitted)
        scalings = cast(Any, best.lifts)
        loaded = _load_moments(fitted, scalings, places, tuple(x.shape[1] for x in views))
    return _build(best.lifts, fitted, places, ridge, slopes, loaded, choice, right)


@jax.jit
def _pick(tried: Tried, number: Array | int) -> tuple[Array, Array, tuple[Array, ...], Array]:
    """Moments, latents and reliabilities of one ridge."""
    covariances = tried.covariances[number]
    latents = tuple(z[:, number] for z in tried.latents)
    return covariances, tried.trained[number], latents, _folds.reliabilities(covariances)


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
    widths = tuple(_width(f) for f in lifts)
    projections, centres, fills = _part(fitted, ridge, places=places, widths=widths)
    loadings, middles, variances = loaded
    return Alignment(
        projections=projections,
        singular_values=fitted.left,
        means=centres,
        offset=jnp.zeros_like(fitted.left),
        coupling=fitted.couplings,
        lifts=lifts,
        evidence=Evidence(
            fitted.rho,
            *slopes,
            loadings=loadings,
            centres=middles,
            variances=variances,
            fills=fills,
            right_share=None if right is None else right[0],
            right_probability=None if right is None else right[1],
        ),
        method="align",
        center=True,
        sides=() if all(len(side) == 1 for side in places) else places,
        choice=choice,
    )


@functools.partial(jax.jit, static_argnames=("places", "widths"))
def _part(
    fitted: _Fitted, ridge: Array, *, places: Sides, widths: tuple[int, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Projection and mean of every view, and the covariance of every side of several views."""
    dims = tuple(a.shape[0] for a in fitted.directions)
    projections: dict[int, Array] = {}
    centres: dict[int, Array] = {}
    fills, start = [], 0
    for s, side in enumerate(places):
        cut = tuple(widths[m] for m in side)
        means = _folds.split(_folds.split(fitted.mean, dims)[s], cut)
        parts = _folds.split(fitted.directions[s], cut, 0)
        for m, a, mean in zip(side, parts, means, strict=True):
            projections[m], centres[m] = a.T, mean
        block = fitted.covariance[start : start + dims[s], start : start + dims[s]]
        # With the ridge on its diagonal, so that views can be regressed on each other.
        penalty = ridge * jnp.trace(block) / dims[s] * jnp.eye(dims[s], dtype=block.dtype)
        fills.append(block + penalty if len(side) > 1 else block[:0, :0])
        start += dims[s]
    views = range(len(widths))
    return (
        tuple(projections[m] for m in views),
        tuple(centres[m] for m in views),
        tuple(fills),
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
    chosen = jnp.take_along_axis(order, thin, axis=1)
    seen = jnp.repeat((chosen >= 0)[None], len(few), axis=0)
    slope, offset, _ = _calibrate(tried.covariances[0], few, size, seen, w * probability, chosen)
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


def _align_masked(
    views: tuple[Array, ...],
    present: Bool[np.ndarray, "n m"],
    state: Any,
    ridge: Any,
    k: Any,
    places: Sides,
    folds: int,
    groups: Any,
) -> Alignment:
    """Align views of which some rows are missing, through the moments that EM completes."""
    n, dtype = state.samples, state.dtype
    have = np.stack([present[:, list(side)].any(axis=1) for side in places], axis=1)
    if not (have.sum(axis=1) > 1).any():
        raise ValueError("mask must leave some rows with two sides, to align them by; got none.")
    plan = _plan(n, folds, groups, len(places), have)
    w = jnp.ones((n,), dtype) if state.weights is None else state.weights
    order = [m for side in places for m in side]
    scalings = tuple(
        kernels.fit_standardise(np.asarray(x)[seen])
        for x, seen in zip(views, present.T, strict=True)
    )
    bases, rests, parts = [], [], []
    for m in order:
        x = jnp.where(present[:, m, None], lifting.apply(scalings[m], views[m]), 0)
        basis, rest = _principal(
            x, jnp.where(present[:, m], w, 0), most=max(64, _MASKED // len(views))
        )
        bases.append(basis)
        rests.append(rest)
        parts.append(matmul(x, basis))
    widths = [basis.shape[1] for basis in bases]
    blocks = np.repeat(order, widths)
    home = {m: s for s, side in enumerate(places) for m in side}
    sides = np.array([home[m] for m in blocks.tolist()])
    shown = present[:, blocks]
    x = jnp.concatenate(parts, axis=1)
    _, pattern = np.unique(present, axis=0, return_inverse=True)
    penalty = _missing.RIDGE if isinstance(ridge, str) else float(ridge)
    patterns = _missing.of_rows(x, shown, pattern.reshape(-1), plan.order, w)
    means, covariances, mean, covariance, steps = _missing.complete(patterns, blocks, penalty)
    x = x - jnp.where(shown, patterns.mean, 0)
    scatters, chosen = [], []
    table = np.zeros((len(places), len(places)))
    for f, row in enumerate(plan.order):
        rows = row[row >= 0]
        filled = _missing.fill_rows(
            x[rows], shown[rows], means[f], covariances[f], sides, blocks, penalty
        )
        scatters.append(_scatter(filled, means[f], w[rows]))
        weight = np.asarray(w)[rows, None] * have[rows]
        table += weight.T @ have[rows]
        place = np.searchsorted(rows, plan.chosen[f])
        chosen.append(filled[np.minimum(place, len(rows) - 1)])
    sizes = tuple(int((sides == number).sum()) for number in range(len(places)))
    weights = jnp.stack([jnp.sum(jnp.where(row >= 0, w[row], 0)) for row in plan.order])
    held = Folds(weights, jnp.zeros_like(mean), means, jnp.stack(scatters), sizes)
    size = _most_axes(sizes, n, _AXES if k == "auto" else int(k))
    ridges = RIDGES if isinstance(ridge, str) else (ridge,)
    tried = _folds.try_ridges(
        held, jnp.stack(chosen), jnp.asarray(ridges, dtype), k=size, trained=(means, covariances)
    )
    # Moments of two sides are those of the rows that have both.
    factor = jnp.asarray(table.max() / np.maximum(table, 1e-30) * (table > 0), dtype)
    factor = factor * (jnp.sum(weights) / table.max()).astype(dtype)
    tried = tried._replace(covariances=tried.covariances * factor[None, :, :, None])
    hits = _count_hits(tried, jnp.asarray(plan.seen), ks=_ladder(size, k == "auto"))
    best = _Candidate("none", scalings, (), held, tried, np.asarray(hits, np.float64))
    _, number, size, choice = _choose([best], ridges, w, plan, k == "auto")
    share = 1 - present.mean()
    note = f"{share:.0%} of the views' rows are missing: EM took {steps} steps"
    choice = dataclasses.replace(choice, remarks=(*choice.remarks, note))
    back = jax.scipy.linalg.block_diag(*bases)
    rest = jax.scipy.linalg.block_diag(*rests)
    features = [sum(views[m].shape[1] for m in side) for side in places]

    def expand(fitted: _Fitted) -> _Fitted:
        """The same in all features instead of the principal ones."""
        starts, cut = np.cumsum([0, *features]), np.cumsum([0, *sizes])
        directions = tuple(
            matmul(back[starts[s] : starts[s + 1], cut[s] : cut[s + 1]], a)
            for s, a in enumerate(fitted.directions)
        )
        whole = matmul(matmul(back, covariance), back.T) + rest
        middle = matmul(back, patterns.mean + mean)
        return fitted._replace(mean=middle, directions=directions, covariance=whole)

    whole = (mean, covariance, expand)
    return _finish(views, best, number, ridges[number], size, w, places, plan, choice, whole=whole)


def _principal(
    x: Float[Array, "n d"], w: Float[Array, " n"], *, most: int
) -> tuple[Float[Array, "d p"], Float[Array, "d d"]]:
    """Leading principal directions of a view, all if they are few, and the covariance left out."""
    covariance = _scatter(x, matmul(w, x) / jnp.sum(w), w) / jnp.sum(w)
    d = x.shape[1]
    if d <= most:
        return jnp.eye(d, dtype=x.dtype), jnp.zeros((d, d), x.dtype)
    values, vectors = jnp.linalg.eigh(covariance)
    basis = vectors[:, ::-1][:, :most]
    return basis, covariance - matmul(basis * values[::-1][None, :most], basis.T)


@jax.jit
def _scatter(
    x: Float[Array, "b p"], mean: Float[Array, " p"], w: Float[Array, " b"]
) -> Float[Array, "p p"]:
    apart = jnp.sqrt(w)[:, None] * (x - mean[None, :])
    return matmul(apart.T, apart)
