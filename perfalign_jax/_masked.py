"""Alignment of views of which some rows are missing, through the moments that EM completes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from perfalign_jax import _folds, _missing, kernels
from perfalign_jax import lift as lifting
from perfalign_jax._assembly import finish
from perfalign_jax._folds import Folds, Incomplete
from perfalign_jax._numerics import matmul
from perfalign_jax._selection import (
    AXES,
    RIDGES,
    Candidate,
    Plan,
    Sides,
    choose,
    count_hits,
    ladder,
    list_lifts,
    list_pairs,
    most_axes,
    plan_rows,
    try_features,
)
from perfalign_jax.types import Alignment

__all__ = ["align_masked"]

_MASKED = 512  # principal features in all where views are missing: EM takes their cube
_SETTLED = 1e-3  # change of the covariance in a step of EM, relative to its size


def align_masked(
    views: tuple[Array, ...],
    present: Bool[np.ndarray, "n m"],
    state: Any,
    ridge: Any,
    k: Any,
    places: Sides,
    folds: int,
    groups: Any,
    lift: Any,
) -> Alignment:
    """Align views of which some rows are missing, through the moments that EM completes."""
    n, dtype = state.samples, state.dtype
    have = np.stack([present[:, list(side)].any(axis=1) for side in places], axis=1)
    if not (have.sum(axis=1) > 1).any():
        raise ValueError("mask must leave some rows with two sides, to align them by; got none.")
    plan = plan_rows(n, folds, groups, len(places), have)
    w = jnp.ones((n,), dtype) if state.weights is None else state.weights
    order = [m for side in places for m in side]
    width = max(64, _MASKED // len(views))
    ridges = RIDGES if isinstance(ridge, str) else (ridge,)
    levels = _missing.RIDGES if isinstance(ridge, str) else (float(ridge),)
    there = [x[np.flatnonzero(seen)] for x, seen in zip(views, present.T, strict=True)]
    candidates: list[Candidate] = []
    wholes: list[_missing.Completed | None] = []
    whole_rows = np.asarray(present.all(axis=1))
    complete = w * jnp.asarray(whole_rows, dtype)
    in_folds = [int(whole_rows[rows[rows >= 0]].sum()) for rows in plan.order]
    fitted_rows = sum(in_folds) - max(in_folds)
    for kind, lifts in list_lifts(tuple(there), lift):
        narrow = tuple(
            kernels.fit_principal(fitted, x, most=width, weights=w[np.flatnonzero(seen)])
            for fitted, x, seen in zip(lifts, there, present.T, strict=True)
        )
        widths = [narrow[m].basis.shape[1] for m in order]
        blocks = np.repeat(order, widths)
        sides = np.repeat([s for s, side in enumerate(places) for _ in side], widths)
        sizes = tuple(int((sides == number).sum()) for number in range(len(places)))
        shown = present[:, blocks]
        x = jnp.concatenate([lifting.apply(narrow[m], views[m]) for m in order], axis=1)
        x = jnp.where(shown, x, 0)
        most = AXES if k == "auto" else int(k)
        size = most_axes(sizes, n - plan.order.shape[1], most)
        if min(in_folds) > 1:
            candidates.append(
                try_features(
                    f"{kind}, complete rows alone",
                    narrow,
                    tuple(_folds.split(x, sizes)),
                    complete,
                    ridges,
                    plan,
                    most_axes(sizes, fitted_rows, most),
                    k == "auto",
                )
            )
            wholes.append(None)
        patterns = _missing.of_rows(x, shown, plan.order, w)
        for level in levels:
            last, before, gain = None, -1.0, 0.0
            while gain > before and (last is None or last.change > _SETTLED):
                before = gain
                last = _missing.complete(patterns, blocks, level, last)
                held, chosen, incomplete = _fill_folds(x, shown, have, w, last, sides, sizes, plan)
                tried = _folds.try_ridges(
                    held, chosen, jnp.asarray(ridges, dtype), k=size, incomplete=incomplete
                )
                counted = count_hits(tried, jnp.asarray(plan.seen), ks=ladder(size, k == "auto"))
                hits = np.asarray(counted, np.float64)
                gain = float(hits.mean(axis=(2, 3)).max())
                filled = _missing.fill_rows(x, shown, last.mean, last.covariance, last.noise, sides)
                name = f"{kind}, EM with ridge {level:g}, {last.cycles} cycles"
                features = tuple(_folds.split(filled, sizes))
                candidates.append(Candidate(name, narrow, features, held, tried, hits))
                wholes.append(last)
    picked, number, size, choice = choose(candidates, ridges, w, plan, k == "auto")
    best, completed = candidates[picked], wholes[picked]
    share = 1 - present.mean()
    note = f"{share:.0%} of the views' rows are missing"
    choice = dataclasses.replace(choice, remarks=(*choice.remarks, note))
    if completed is None:
        return finish(views, best, number, ridges[number], size, complete, places, plan, choice)
    whole = (completed.mean, completed.covariance)
    seen = jnp.asarray(present.T, dtype)
    return finish(
        views, best, number, ridges[number], size, w, places, plan, choice, None, whole, seen
    )


def _fill_folds(
    x: Float[Array, "n p"],
    shown: Bool[np.ndarray, "n p"],
    have: Bool[np.ndarray, "n s"],
    w: Float[Array, " n"],
    completed: _missing.Completed,
    sides: np.ndarray,
    sizes: tuple[int, ...],
    plan: Plan,
) -> tuple[Folds, Float[Array, "f b p"], Incomplete]:
    """Folds of rows filled in by the others, those of them that choose, and what they hold out."""
    pairs = list_pairs(len(sizes))
    both = np.stack([have[:, a] & have[:, b] for a, b in pairs])
    weights, scatters, own, chosen = [], [], [], []
    for f, row in enumerate(plan.order):
        rows = row[row >= 0]
        mean = completed.means[f]
        filled = _missing.fill_rows(
            x[rows], shown[rows], mean, completed.covariances[f], completed.noise, sides
        )
        weights.append(jnp.sum(w[rows]))
        scatters.append(_scatter(filled, mean, w[rows]))
        own.append(
            jnp.stack(
                [_scatter(filled, mean, w[rows] * seen[rows].astype(w.dtype)) for seen in both]
            )
        )
        place = np.searchsorted(rows, plan.chosen[f])
        chosen.append(filled[np.minimum(place, len(rows) - 1)])
    held = Folds(
        jnp.stack(weights), 0 * completed.mean, completed.means, jnp.stack(scatters), sizes
    )
    incomplete = Incomplete(
        completed.means,
        completed.covariances,
        jnp.stack(own),
        matmul(w, jnp.asarray(have, w.dtype)),
        matmul(jnp.asarray(both, w.dtype), w),
    )
    return held, jnp.stack(chosen), incomplete


@jax.jit
def _scatter(
    x: Float[Array, "b p"], mean: Float[Array, " p"], w: Float[Array, " b"]
) -> Float[Array, "p p"]:
    apart = jnp.sqrt(w)[:, None] * (x - mean[None, :])
    return matmul(apart.T, apart)
