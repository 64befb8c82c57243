"""Alignment of views of which some rows are missing, through the moments that EM completes."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from perfalign_jax import _folds, _missing, kernels
from perfalign_jax._assembly import finish
from perfalign_jax._folds import Folds, Incomplete
from perfalign_jax._numerics import compiled, matmul, namespace
from perfalign_jax._selection import (
    AXES,
    RIDGES,
    Candidate,
    Plan,
    Sides,
    add_lengths,
    choose,
    count_hits,
    ladder,
    list_lifts,
    list_pairs,
    most_axes,
    plan_rows,
    try_features,
)
from perfalign_jax.lift import Lift
from perfalign_jax.types import Alignment

__all__ = ["align_masked"]

_MASKED = 512  # principal features in all where views are missing: EM takes their cube
_SETTLED = 1e-3  # change of the covariance in a step of EM, relative to its size
_COMPLETE = 100  # rows without gaps that are enough to choose a lift by


class _Lifted(NamedTuple):
    """Views under one lift, in principal coordinates, side by side in the order of the sides."""

    name: str
    lifts: tuple[Lift, ...]
    x: Float[Any, "n p"]  # zero where missing
    blocks: Int[np.ndarray, " p"]  # view of each feature
    sides: Int[np.ndarray, " p"]  # and its side

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(np.bincount(self.sides).tolist())

    @property
    def features(self) -> tuple[Float[Any, "n _"], ...]:
        return tuple(_folds.split(self.x, self.sizes))


def _lift(
    name: str,
    lifts: tuple[Lift, ...],
    views: tuple[Any, ...],
    present: Bool[np.ndarray, "n m"],
    w: Float[Any, " n"],
    places: Sides,
) -> _Lifted:
    width, xp = max(64, _MASKED // len(views)), namespace(views[0])
    narrow, parts = [], []
    for m, (fitted, x) in enumerate(zip(lifts, views, strict=True)):
        rows = np.flatnonzero(present[:, m])
        narrow.append(kernels.principal_of(fitted, x[rows], width, w[rows]))
        features = narrow[m]._apply(x).astype(x.dtype, copy=False)
        parts.append(xp.where(present[:, m, None], features, xp.zeros((), x.dtype)))
    order = [m for side in places for m in side]
    home = [s for s, side in enumerate(places) for _ in side]
    widths = [parts[m].shape[1] for m in order]
    x = xp.concatenate([parts[m] for m in order], axis=1)
    return _Lifted(name, tuple(narrow), x, np.repeat(order, widths), np.repeat(home, widths))


def align_masked(
    views: tuple[Any, ...],
    present: Bool[np.ndarray, "n m"],
    w: Float[Any, " n"],
    ridge: Any,
    k: Any,
    places: Sides,
    folds: int,
    groups: Any,
    lift: Any,
) -> Alignment:
    """Align views of which some rows are missing, through the moments that EM completes.

    EM takes long, so which lift is asked of the complete rows alone. It is compiled; of views on
    the host nothing else is.
    """
    n, dtype, xp = len(w), views[0].dtype, namespace(views[0])
    have = np.stack([present[:, list(side)].any(axis=1) for side in places], axis=1)
    if not (have.sum(axis=1) > 1).any():
        raise ValueError("mask must leave some rows with two sides, to align them by; got none.")
    plan = plan_rows(n, folds, groups, len(places), have)
    fewest = int((plan.seen.sum(axis=0) > 1).sum(axis=1).min())
    if fewest < 2:
        raise ValueError(
            f"mask must leave at least two rows with two sides in each of the {folds} folds, to "
            f"choose by, got {fewest}; give more of them or fewer folds."
        )
    ridges = RIDGES if isinstance(ridge, str) else (ridge,)
    levels = _missing.RIDGES if isinstance(ridge, str) else (float(ridge),)
    most, auto = AXES if k == "auto" else int(k), k == "auto"
    complete = w * xp.asarray(present.all(axis=1), dtype)
    in_folds = [int(present[rows[rows >= 0]].all(axis=1).sum()) for rows in plan.order]
    fitted_rows = sum(in_folds) - max(in_folds)
    rows_of = [np.flatnonzero(seen) for seen in present.T]
    there = tuple(x[rows] for x, rows in zip(views, rows_of, strict=True))
    listed = list_lifts(there, lift, [w[rows] for rows in rows_of])
    remarks: tuple[str, ...] = (f"{1 - present.mean():.0%} of the views' rows are missing",)
    if len(listed) > 1 and (fitted_rows < _COMPLETE or min(in_folds) < 2):
        listed = listed[:1]
        remarks += (f"{sum(in_folds)} rows without gaps are too few to choose a lift by",)
    lifted = [_lift(name, lifts, views, present, w, places) for name, lifts in listed]
    candidates: list[Candidate] = []
    if min(in_folds) > 1:
        candidates = [
            try_features(
                f"{one.name}, complete rows alone",
                one.lifts,
                one.features,
                complete,
                ridges,
                plan,
                most_axes(one.sizes, fitted_rows, most),
                auto,
            )
            for one in lifted
        ]
    wholes: list[_missing.Completed | None] = [None for _ in candidates]
    one = lifted[choose(candidates, ridges, complete, plan, auto)[0] if len(lifted) > 1 else 0]
    size = most_axes(one.sizes, n - plan.order.shape[1], most)
    patterns = _missing.of_rows(one.x, present, one.blocks, plan.order, w)
    for level in levels:
        last, before, gain = None, -1.0, 0.0
        while gain > before and (last is None or last.change > _SETTLED):
            before = gain
            last = _missing.complete(patterns, one.blocks, level, last)
            held, chosen, incomplete = _fill_folds(one, present, have, w, last, plan)
            rows = held, chosen, xp.asarray(ridges, dtype), _folds.effective_rows(w)
            tried = _folds.try_ridges(*rows, k=size, incomplete=incomplete)
            counted = count_hits(tried, plan.seen, 0.0, ks=ladder(size, auto))
            hits = np.asarray(counted, np.float64)
            gain = float(hits.mean(axis=(2, 3)).max())
            known = last.mean, last.covariance, last.noise
            filled = _missing.fill_rows(one.x, present, one.blocks, one.sides, *known)
            name = f"{one.name}, EM with ridge {level:g}, {last.cycles} cycles"
            features = one._replace(x=filled).features
            candidates.append(Candidate(name, one.lifts, features, held, tried, hits))
            wholes.append(last)
    if len(ridges) > 1 or auto:
        candidates = add_lengths(candidates, w, plan, auto)
        wholes += wholes
    picked, number, size, choice = choose(candidates, ridges, w, plan, auto)
    best, completed = candidates[picked], wholes[picked]
    choice = dataclasses.replace(choice, remarks=(*choice.remarks, *remarks))
    if completed is None:
        return finish(views, best, number, ridges[number], size, complete, places, plan, choice)
    whole = (completed.mean, completed.covariance)
    seen = xp.asarray(present.T, dtype)
    return finish(
        views, best, number, ridges[number], size, w, places, plan, choice, None, whole, seen
    )


def _fill_folds(
    one: _Lifted,
    present: Bool[np.ndarray, "n m"],
    have: Bool[np.ndarray, "n s"],
    w: Float[Any, " n"],
    completed: _missing.Completed,
    plan: Plan,
) -> tuple[Folds, Float[Any, "f b p"], Incomplete]:
    """Folds of rows filled in by the others, those of them that choose, and what they hold out."""
    pairs, xp = list_pairs(len(one.sizes)), namespace(w)
    both = np.stack([have[:, a] & have[:, b] for a, b in pairs])
    weights, scatters, own, chosen = [], [], [], []
    for f, row in enumerate(plan.order):
        rows = row[row >= 0]
        mean = completed.means[f]
        known = mean, completed.covariances[f], completed.noise
        filled = _missing.fill_rows(one.x[rows], present[rows], one.blocks, one.sides, *known)
        weights.append(w[rows].sum())
        scatters.append(_scatter(filled, mean, w[rows]))
        own.append(
            xp.stack(
                [_scatter(filled, mean, w[rows] * seen[rows].astype(w.dtype)) for seen in both]
            )
        )
        place = np.searchsorted(rows, plan.chosen[f])
        chosen.append(filled[np.minimum(place, len(rows) - 1)])
    held = Folds(
        xp.stack(weights), 0 * completed.mean, completed.means, xp.stack(scatters), one.sizes
    )
    incomplete = Incomplete(
        completed.means,
        completed.covariances,
        xp.stack(own),
        matmul(w, xp.asarray(have, w.dtype)),
        matmul(xp.asarray(both, w.dtype), w),
    )
    return held, xp.stack(chosen), incomplete


@compiled()
def _scatter(
    x: Float[Any, "b p"], mean: Float[Any, " p"], w: Float[Any, " b"]
) -> Float[Any, "p p"]:
    apart = namespace(x).sqrt(w)[:, None] * (x - mean[None, :])
    return matmul(apart.T, apart)
