"""The alignment to use on one's own data: everything chosen on held-out rows, with the reasons.

``fit`` is the paper; on noisy data its directions of least error are directions without energy.
``align`` whitens each side with a ridge, finds the axes on which the sides agree, and weighs every
axis by its correlation on rows it was not fitted to (see ``evidence``). The views may be lifted
first, may be more than two, and may be put together into sides.

Folds are moments: trying a ridge costs products with them, not passes over the data, and only the
held-out rows that choose, at most 2,000, are looked at again.
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax import _checks, _folds, evidence, solver, statistics
from perfalign_jax._assembly import find_chance, finish
from perfalign_jax._folds import Tried
from perfalign_jax._masked import align_masked
from perfalign_jax._numerics import at_hand, compiled, namespace, sigmoid
from perfalign_jax._parts import align_parts
from perfalign_jax._progress import tell
from perfalign_jax._selection import (
    AXES,
    RIDGES,
    Candidate,
    Plan,
    Sides,
    add_lengths,
    all_pairs,
    choose,
    fit_lifts,
    lift_sides,
    list_lifts,
    plan_rows,
    take_rows,
    try_features,
    try_lifts,
)
from perfalign_jax.lift import Convolutions, Lift
from perfalign_jax.statistics import Statistic
from perfalign_jax.types import Alignment, Choice, CollapseWarning, Evidence, Views

__all__ = ["align"]

_KERNELS = ("gaussian", "laplacian", "polynomial", "arc_cosine")
_TRYING = 0.8  # share of the time in which lifts are tried; the rest is choosing and finishing
_FOLDS = 100  # with more, too few rows of one are left to find a partner among
_ROUNDS = 4  # of judging pairs by the fit to the most credible, with one setting
_PASSES = 4  # of choosing a setting for them, at most
_SHUFFLED = 8  # rows that are put beside each row as wrong partners


def align(
    data: Views | Statistic | Sequence[Statistic],
    *,
    sides: Sequence[Sequence[int]] | None = None,
    lift: Literal["auto", "linear", "gaussian", "laplacian", "polynomial", "arc_cosine"]
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
            views): what needs rows, lifts and the choice by retrieval, is then not possible. One
            statistic of two sides, with the ridge left open, is weighed by random matrix theory.
        sides: which views to put together, such as ``((0, 1), (2,))``: all that is known of a
            thing on one side against the other. By default every view is a side; more than two
            then get one joint space, which serves any subset of views but costs weakly related
            pairs of views accuracy against an alignment of their own.
        lift: None aligns features at their own spread, "linear" at that or as they are, whichever
            is better on held-out rows; "gaussian" and the other kernels of
            ``kernels.fit_nystroem`` take all rows as landmarks up to 2,000 and as many evenly
            spaced rows beyond; "auto" tries "linear" and "gaussian"; fitted lifts, one for each
            view, are used as they are.
        ridge: relative to the mean eigenvalue of each side, of wide views in the span of the rows.
        k: number of axes at most; by default chosen, up to 512. Axes without held-out correlation
            are left out in any case.
        mask: shape ``(n, M)``, True where a row has a view; what is not there is never read. With
            "nan" a view is missing where all its features are NaN. Rows of a single view are
            welcome. Views, or what the lift makes of them, are then cut to their leading principal
            coordinates, 512 in all (and 64 of each at least). Not together with ``wrong_pairs``.
        weights: shape ``(n,)``, as in ``fit``; rows of weight zero are not there, outside jit.
        groups: shape ``(n,)``, such as subjects or sessions: rows of one group are never in
            different folds.
        wrong_pairs: some pairs may be wrong; fit to as many as are right by estimate, the most
            credible. The alignment then has ``right_share``, which with fewer than some hundred
            rows is too high, and ``right_probability``, both zero where the views agree no better
            than unrelated ones may; its reliabilities are of the pairs that are left, and so a
            little high. For two sides.
        folds: how many parts the rows are held out in, at most 100.

    Returns:
        An ``Alignment`` with ``evidence`` and ``choice``. Where anything is chosen, rows are also
        tried at one length (``Evidence.unit``). With lift (None or fitted), ridge and k given, it
        works under jit, vmap and grad, where ``choice`` is None.

    Raises:
        TypeError: if the data is neither, or does not hold real numbers.
        ValueError: if shapes, options or values do not fit; the message names what came.

    Warns:
        CollapseWarning: outside jit, if no axis agrees on held-out rows, or none better than
            chance may, or hardly any pair is estimated to be right.

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
        if lift not in (None, "linear", "auto"):
            raise ValueError(
                "lift must be None with statistics, which have no rows to lift, got "
                f"{lift!r:.80}; lift the views before the statistics."
            )
        if wrong_pairs:
            raise ValueError(
                "wrong_pairs must be False with statistics: single pairs are not in them."
            )
        places = _check_sides(sides, len(parts[0].dims))
        _check_options(None, ridge, k, ())
        if _checks.is_traced((parts, ridge)):
            raise ValueError("data must be views under jit, vmap and grad, got statistics.")
        with np.errstate(all="ignore"):  # as XLA does
            return align_parts(parts, places, ridge, k)
    present = None
    if mask is not None:
        if _checks.is_traced((data, mask, weights, ridge, lift)):
            raise ValueError("mask must be None under jit, vmap and grad.")
        data, _ = _checks.views(data, look=False)
        present = _check_mask(mask, data, wrong_pairs)
        data = _hide(data, present)
        present = None if present.all() else present
    state: Any = statistics.as_statistic(data, weights=weights, center=True, look=False)
    statistics.check_finite(state)
    traced = _checks.is_traced((state, ridge, lift))
    views = tuple(map(jnp.asarray, state.views)) if traced else at_hand(state.views)
    places = _check_sides(sides, len(views))
    _check_options(lift, ridge, k, views)
    n = state.samples
    folds = _checks.integer(folds, "folds", low=2, high=_FOLDS)
    groups = None if groups is None else _check_groups(groups, n)
    if wrong_pairs and len(places) > 2:
        raise ValueError(
            f"wrong_pairs must be False with {len(places)} sides: which of a row's views is wrong "
            "is not looked for. Give two sides, such as sides=((0, 1), (2,))."
        )
    if traced and ("auto" in (ridge, k) or isinstance(lift, str) or wrong_pairs):
        raise ValueError(
            "under jit, vmap and grad lift (None or fitted lifts), ridge and k must be given, and "
            "wrong_pairs must be False."
        )
    if not traced and state.weights is not None:
        there = np.flatnonzero(np.asarray(state.weights) > 0)
        if len(there) < 2 * folds:
            raise ValueError(
                f"weights must be above zero for at least 2 rows for each of the {folds} folds, "
                f"got {len(there)} such rows."
            )
        if len(there) < n:
            fitted = align(
                tuple(x[there] for x in views),
                sides=places,
                lift=lift,
                ridge=ridge,
                k=k,
                mask=None if present is None else present[there],
                weights=np.asarray(state.weights)[there],
                groups=None if groups is None else groups[there],
                wrong_pairs=wrong_pairs,
                folds=folds,
            )
            return _judge_others(fitted, views, there) if wrong_pairs else fitted
    plan = plan_rows(n, folds, groups, len(places))
    w = jnp.ones((n,), state.dtype) if state.weights is None else state.weights
    if namespace(views[0]) is np:
        w, lift = np.asarray(w), lift if isinstance(lift, str) else _to_host(lift, state.dtype)
    if present is not None:
        _check_met(present)
        _check_moving(tuple(x[np.flatnonzero(s)] for x, s in zip(views, present.T, strict=True)))
        return align_masked(views, present, w, ridge, k, places, folds, groups, lift)
    if not traced:
        _check_moving(views)
    ridges = RIDGES if isinstance(ridge, str) else (ridge,)
    most = AXES if k == "auto" else int(k)
    if traced:  # nothing is chosen
        lifts = fit_lifts(views, cast(Sequence[Lift] | None, lift), [w] * len(views))
        best = try_lifts(views, "", lifts, w, (ridge,), places, plan, most, auto=False)
        return finish(views, best, 0, ridge, most, w, places, plan, None)
    listed = list_lifts(views, lift, [w] * len(views))
    work = np.cumsum([_work_of(views, lifts) for _, lifts in listed])
    candidates = []
    for (name, lifts), done in zip(listed, work / work[-1], strict=True):
        found = try_lifts(views, name, lifts, w, ridges, places, plan, most, k == "auto")
        candidates.append(found if len(listed) == 1 else found._replace(features=()))  # large
        tell(_TRYING * float(done))
    lengths = len(candidates) > 1 or len(ridges) > 1 or k == "auto"
    if lengths:
        candidates = add_lengths(candidates, w, plan, k == "auto")
    picked, number, size, choice = choose(candidates, ridges, w, plan, k == "auto")
    best = candidates[picked]
    del candidates
    if not best.features:
        best = best._replace(features=lift_sides(views, best.lifts, places))
    if wrong_pairs:
        setting = ridges, number, size, lengths
        return _with_wrong_pairs(views, best, setting, w, places, plan, choice)
    return finish(views, best, number, ridges[number], size, w, places, plan, choice)


def _work_of(views: tuple[Any, ...], lifts: tuple[Lift, ...]) -> float:
    """What trying a lift costs beside others, by the features that it makes."""
    n = len(views[0])
    pairs = zip(lifts, views, strict=True)
    widths = [jax.eval_shape(f._apply, x[:1]).shape[1] for f, x in pairs]
    return float(sum(100 * p**3 + n * p**2 for p in widths))


def _to_host(lift: Any, dtype: Any) -> Any:
    """Lifts with arrays of NumPy, in the dtype of the views."""
    arrays = jax.tree.map(np.asarray, lift)
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a, arrays)


def _check_sides(sides: Any, count: int) -> Sides:
    if sides is None:
        return tuple((m,) for m in range(count))
    try:
        given = tuple(tuple(map(operator.index, side)) for side in sides)
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


def _check_groups(groups: Any, n: int) -> np.ndarray:
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), got shape {labels.shape}.")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"groups must not hold NaN, got {int(np.isnan(labels).sum())} of them.")
    return labels


def _judge_others(
    alignment: Alignment, views: tuple[Any, ...], there: Int[np.ndarray, " m"]
) -> Alignment:
    """Say of every row how probably it is right, also of those that were left out of the fit."""
    known = cast(Evidence, alignment.evidence)
    first, second = ({m: views[m] for m in side} for side in solver.sides_of(alignment))
    share = jnp.clip(cast(Array, known.right_share), 1e-4, 1 - 1e-4)
    odds = evidence.log_odds(alignment, first, second) + jnp.log(share) - jnp.log1p(-share)
    probability = sigmoid(odds).at[there].set(cast(Array, known.right_probability))
    return dataclasses.replace(
        alignment, evidence=dataclasses.replace(known, right_probability=probability)
    )


def _check_options(lift: Any, ridge: Any, k: Any, views: tuple[Any, ...]) -> None:
    if isinstance(lift, str):
        _checks.one_of(lift, "lift", ("auto", "linear", *_KERNELS))
    elif lift is not None:
        fitted = isinstance(lift, Sequence) and all(isinstance(part, Lift) for part in lift)
        if not fitted or len(lift) != len(views):
            raise TypeError(
                f"lift must be a word, None, or {len(views)} fitted lifts, one for each view; "
                f"got {lift!r:.80}."
            )
        for m, (part, x) in enumerate(zip(lift, views, strict=True)):
            if isinstance(part, Convolutions):
                raise TypeError(
                    "lift must not hold Convolutions: they take series (n, length, channels); "
                    "apply them first and give their features as a view."
                )
            if part.dim != x.shape[1]:
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


def _check_mask(mask: Any, views: tuple[Any, ...], wrong: bool) -> Bool[np.ndarray, "n m"]:
    if wrong:
        raise ValueError("wrong_pairs must be False with a mask: both at once are not supported.")
    if isinstance(mask, str):
        _checks.one_of(mask, "mask", ("nan",))
        present = np.stack([~np.isnan(x).all(axis=1) for x in views], axis=1)
    else:
        try:
            present = np.asarray(mask)
        except ValueError:  # rows of several lengths
            raise TypeError("mask must be an array of booleans, got a ragged list.") from None
    if present.dtype != bool:
        raise TypeError(f"mask must hold booleans, True where present, got dtype {present.dtype}.")
    shape = (len(views[0]), len(views))
    if present.shape != shape:
        raise ValueError(f"mask must have shape (n, M) = {shape}, got {present.shape}.")
    return present.copy()


def _check_met(present: Bool[np.ndarray, "n m"]) -> None:
    """Every view must be linked to every other by views that are seen together."""
    for m, seen in enumerate(present.T):
        if seen.sum() < 2:
            raise ValueError(f"mask must leave view {m} at least two rows, got {seen.sum()}.")
    views = present.shape[1]
    linked = (present.T.astype(int) @ present) > 0
    for _ in range(views):
        linked = (linked.astype(int) @ linked) > 0
    for m in range(views):
        apart = np.flatnonzero(~linked[m]).tolist()
        if len(apart) == views - 1:
            raise ValueError(
                f"mask must show every view together with another somewhere, but view {m} is "
                "always alone."
            )
        if apart:
            raise ValueError(
                f"mask must link all views by rows that have two of them, but nothing links view "
                f"{m} to {', '.join(map(str, apart))}."
            )


def _hide(views: tuple[Any, ...], present: Bool[np.ndarray, "n m"]) -> tuple[Any, ...]:
    """The views with zeros where they are not there."""
    pairs = zip(map(np.asarray, views), present.T, strict=True)
    return tuple(np.where(seen[:, None], x, np.zeros((), x.dtype)) for x, seen in pairs)


def _check_moving(views: tuple[Any, ...]) -> None:
    for m, x in enumerate(views):
        values = np.asarray(x)
        if bool((values == values[0]).all()):
            raise ValueError(
                f"x{m + 1} must vary, but all its {x.shape[0]} rows are the same: nothing can be "
                "aligned with it."
            )


def _with_wrong_pairs(
    views: tuple[Any, ...],
    best: Candidate,
    setting: tuple[tuple[Any, ...], int, int, bool],
    w: Any,
    places: Sides,
    plan: Plan,
    choice: Choice,
) -> Alignment:
    """Fit to as many pairs as are right by estimate, the most credible, until they stand.

    Credibility and share come from rows held out of the fit, so no pair vouches for itself. Pairs
    weighed by their probability instead would leave wrong ones a part of their weight, and where
    views determine each other closely a twentieth of it spoils the fit. Ridge, k and whether
    lengths count are chosen anew until they stand. What is measured of retrieval and of the
    calibration weighs all pairs by their probability: the most credible alone would flatter both.

    Source: the concentration steps of least trimmed squares (Rousseeuw and Van Driessen 2006).
    """
    ridges, number, size, lengths = setting
    auto = len(best.hits[0]) > 1
    xp = namespace(w)
    share, probability, kept = xp.asarray(1.0, w.dtype), xp.ones_like(w), w
    k = best.tried.covariances.shape[-1]
    where = plan.order, plan.thin, plan.chosen, plan.seen
    ridge = ridges[number]
    for _ in range(_PASSES):
        before = ridge, size, best.unit
        for _ in range(_ROUNDS):
            folds = _folds.of_rows(best.features, plan.order, kept)
            rows = take_rows(best.features, folds.mean, plan.order)
            count, one = _folds.effective_rows(kept), xp.asarray([ridge], w.dtype)
            tried = _folds.try_ridges(folds, rows, one, count, k=k)
            share, probability, scores = _weigh(
                tried, size, float(best.unit), where, w, probability, share
            )
            kept = _most_credible(scores, w, float(share), 2 * len(plan.order))
        again = try_features(best.name, best.lifts, best.features, kept, ridges, plan, k, auto)
        weighed = w * probability
        both = add_lengths([again], weighed, plan, auto) if lengths else [again]
        picked, number, size, chosen = choose(both, ridges, weighed, plan, auto)
        best, ridge = both[picked], ridges[number]
        if before == (ridge, size, best.unit):
            break
    if float(share) * plan.n < 2 * len(plan.order):
        _checks.warn(
            f"the share of right pairs is estimated as {float(share):.1%}: there is hardly one to "
            "learn from.",
            CollapseWarning,
        )
    choice = dataclasses.replace(choice, chosen=chosen.chosen)
    told = np.asarray(best.tried.rho[number], np.float64)[:, :size]
    if find_chance(told, np.asarray(kept, np.float64), choice) is not None:
        share, probability = 0 * share, 0 * probability  # none can be told from a wrong one
    wrong = f"{float(1 - share):.1%} of the pairs are estimated to be wrong"
    choice = dataclasses.replace(choice, remarks=(*choice.remarks, wrong))
    right = (share, probability, weighed)
    return finish(views, best, number, ridge, size, kept, places, plan, choice, right)


def _most_credible(
    scores: Float[Any, " n"], w: Float[Any, " n"], share: float, least: int
) -> Float[Any, " n"]:
    """Weights of the most credible pairs that hold a share of all, and of some in any case."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked = np.asarray(w, np.float64)[order]
    held = np.cumsum(ranked) - ranked < share * ranked.sum() * (1 - 1e-9)
    held[:least] = True
    return namespace(w).where(held[np.argsort(order)], w, 0)


@compiled()
def _weigh(
    tried: Tried,
    size: Any,
    unit: Any,
    where: tuple[Any, Any, Any, Any],
    w: Any,
    probability: Any,
    share: Any,
) -> tuple[Float[Any, ""], Float[Any, " n"], Float[Any, " n"]]:
    """Share of right pairs, how probably each is right, and its held-out score."""
    xp = namespace(w)
    order, thin, chosen, seen = where  # as in a Plan
    latents = tuple(z[:, 0] for z in tried.latents)
    few = tuple(xp.take_along_axis(z, thin[:, :, None], axis=1) for z in latents)
    scores, there, weights = all_pairs(tried.rho[0], few, size, unit, seen, w[chosen])
    apart, valid = _shuffle(there, scores.shape[1])
    shuffled = xp.take_along_axis(scores, apart, axis=2).reshape(-1)
    impostors = xp.where(valid, weights[:, :, None], 0).reshape(-1)
    rho = xp.where(xp.arange(tried.rho.shape[-1]) < size, tried.rho[0], 0)
    r = rho[0] * rho[1]
    first, second = (solver.at_length(z, r, unit) for z in latents)
    pairs = evidence.score_pairs(first, second, r).reshape(-1)
    row = xp.where(order >= 0, order, len(w)).reshape(-1)
    pairs = pairs[xp.argsort(row)[: len(w)]]
    found = evidence.fit_right_share(pairs, w, shuffled, impostors, share, probability)
    return *found, pairs


def _shuffle(there: Bool[Any, "f b"], count: int) -> tuple[Int[Any, "f b s"], Bool[Any, "f b s"]]:
    """Other rows of its fold for every row, and whether both are there."""
    xp = namespace(there)
    rows = there.sum(axis=1)[:, None, None]
    row = xp.arange(count)[None, :, None]
    # Not as far from one row as from the next: wrong pairs may be shifted ones.
    shifts = row * 7919 % 1009 + xp.arange(_SHUFFLED)[None, None, :] * (1 + rows // _SHUFFLED)
    apart = (row + 1 + shifts % xp.maximum(rows - 1, 1)) % xp.maximum(rows, 1)
    valid = there[:, :, None] & (rows > 1)
    return apart, xp.broadcast_to(valid, apart.shape)
