"""An alignment with its evidence, from the setting that was chosen."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from perfalign_jax import _checks, _folds, evidence, solver
from perfalign_jax import lift as lifting
from perfalign_jax._folds import Axes, Folds, Tried
from perfalign_jax._numerics import compiled, matmul, namespace
from perfalign_jax._selection import (
    LIKELY,
    Candidate,
    Plan,
    Sides,
    all_pairs,
    list_pairs,
    variances_of,
)
from perfalign_jax.lift import Lift
from perfalign_jax.types import Alignment, Choice, CollapseWarning, Evidence

__all__ = ["Fitted", "Loaded", "build", "calibrate", "finish", "load_views", "regress", "solve"]


class Fitted(NamedTuple):
    """All that an alignment of sides is made of."""

    mean: Float[Any, " p"]
    directions: tuple[Float[Any, "_ k"], ...]
    variances: Float[Any, "s k"]  # on the rows that were fitted
    couplings: Float[Any, " k"]
    rho: Float[Any, "s k"]
    left: Float[Any, " k"]
    covariance: Float[Any, "p p"]


@compiled("k")
def solve(
    folds: Folds,
    out: Any | int,
    covariances: Float[Any, "s s k"],
    trained: Float[Any, "s k"],
    rho: Float[Any, "s k"],
    ridge: Any,
    whole: tuple[Any, Any] | None = None,
    *,
    k: int,
) -> Fitted:
    """Axes of all folds but one, in units in which coordinates of new rows have variance one.

    ``out`` is the fold left out, -1 for none; ``whole`` are mean and covariance where they are not
    the folds' own.
    """
    mean, covariance = _folds.others(folds, out) if whole is None else whole
    dims, xp = folds.dims, namespace(mean)
    axes = _folds.axes_of(covariance, dims, ridge, k)
    held_out = variances_of(covariances)[:, :k]
    growth = held_out / xp.where(trained[:, :k] > 0, trained[:, :k], 1)
    scale = axes.variances * growth
    inverse = xp.where(scale > 0, 1 / xp.sqrt(xp.where(scale > 0, scale, 1)), 0)
    directions = tuple(a * s[None, :] for a, s in zip(axes.directions, inverse, strict=True))
    largest = xp.argmax(xp.abs(directions[0]), axis=0)
    sign = xp.where(xp.take_along_axis(directions[0], largest[None], axis=0)[0] < 0, -1, 1)
    directions = tuple(a * sign.astype(a.dtype)[None, :] for a in directions)
    rho = rho[:, :k]
    moments = _folds.paired(covariance, dims, Axes(directions, axes.couplings, inverse))
    lengths = rho / xp.sqrt(1 - rho**4)
    scaled = moments * lengths[:, None, :] * lengths[None, :, :]
    left = xp.zeros_like(axes.couplings)
    for a, b in list_pairs(len(dims)):
        left = left + scaled[a, a] + scaled[b, b] - 2 * scaled[a, b]
    left = xp.sqrt(xp.maximum(left * folds.weights.sum(), 0))
    return Fitted(
        folds.mean + mean, directions, variances_of(moments), axes.couplings, rho, left, covariance
    )


def regress(own: Float[Any, "k k"], common: Float[Any, "k d"]) -> Float[Any, "k d"]:
    """Least squares of features on coordinates of an axis each, all axes together.

    Under a ridge coordinates are correlated, and features regressed on each alone would count twice
    what two axes share. Axes that do not vary get nothing.
    """
    xp = namespace(own)
    squares = xp.diagonal(own)
    inverse = xp.where(squares > 0, 1 / xp.sqrt(xp.where(squares > 0, squares, 1)), 0)
    # Rounding of correlations of hundreds of axes is below sqrt(eps); a tenth changes little.
    steady = jnp.finfo(own.dtype).eps ** 0.5 * xp.eye(len(own), dtype=own.dtype)
    correlation = own * inverse[:, None] * inverse[None, :] + steady
    return inverse[:, None] * xp.linalg.solve(correlation, inverse[:, None] * common)


def load(
    x: Float[Any, "n d"], z: Float[Any, "n k"], w: Float[Any, " n"]
) -> tuple[Float[Any, " d"], Float[Any, "k d"]]:
    """What a view's features are where all coordinates are 0, and their regression on these.

    Where rows lack the view, the coordinates of those that have it need not have mean zero.
    """
    w = w / namespace(w).maximum(w.sum(), jnp.finfo(z.dtype).tiny)
    centre, middle = matmul(w, x), matmul(w, z)
    z = z - middle[None, :]
    scaled = w[:, None] * z
    loadings = regress(matmul(scaled.T, z), matmul(scaled.T, x - centre[None, :]))
    return centre - matmul(middle, loadings), loadings


@compiled()
def coordinates(
    features: tuple[Any, ...], mean: Float[Any, " p"], directions: Sequence[Any]
) -> tuple[Float[Any, "n k"], ...]:
    """Rows of every side on the axes."""
    means = _folds.split(mean, tuple(x.shape[1] for x in features))
    parts = zip(features, means, directions, strict=True)
    return tuple(matmul(x - c[None, :], a) for x, c, a in parts)


class Loaded(NamedTuple):
    """Regressions of the views' own features on the axes, and these features' moments.

    Attributes:
        loadings: of each view, shape ``(k, d_m)``.
        centres: means over all rows, shape ``(d_m,)``.
        variances: over all rows, shape ``(d_m,)``.
    """

    loadings: tuple[Any, ...]
    centres: tuple[Any, ...]
    variances: tuple[Any, ...]


@compiled("places")
def load_views(
    views: tuple[Any, ...],
    latents: tuple[Any, ...],
    weights: Float[Any, "m n"],
    *,
    places: Sides,
) -> Loaded:
    """Load all views; ``weights`` are of the rows that have each view."""
    home = {m: s for s, side in enumerate(places) for m in side}
    found = [load(x, latents[home[m]], weights[m]) for m, x in enumerate(views)]
    every = weights.max(axis=0)
    variances = []
    for m, (x, w, (centre, loadings)) in enumerate(zip(views, weights, found, strict=True)):
        # What the coordinates leave, of the rows that have the view, and what they say, of all.
        said = matmul(latents[home[m]], loadings)
        left = matmul(w / w.sum(), (x - centre[None, :] - said) ** 2)
        middle = matmul(every / every.sum(), said)
        apart = matmul(every / every.sum(), (said - middle[None, :]) ** 2)
        variances.append(left + apart)
    return Loaded(tuple(b for _, b in found), tuple(c for c, _ in found), tuple(variances))


class _Known(NamedTuple):
    """An alignment as predictions need it: coordinates of all rows, and what they load on."""

    latents: tuple[Float[Any, "n k"], ...]
    loaded: Loaded


def _know(
    views: tuple[Any, ...],
    features: tuple[Any, ...],
    fitted: Fitted,
    weights: Float[Any, "m n"],
    places: Sides,
) -> _Known:
    latents = coordinates(features, fitted.mean, fitted.directions)
    return _Known(latents, load_views(views, latents, weights, places=places))


@compiled("places")
def share_explained(
    views: tuple[Any, ...],
    whole: _Known,
    without: _Known,
    rho: Float[Any, "s k"],
    w: Float[Any, " n"],
    inside: Float[Any, " n"],
    *,
    places: Sides,
) -> tuple[Float[Any, ""], ...]:
    """Of the variance that predictions have, how much of it held-out rows confirm, view by view.

    Loadings are least squares, so with few rows predictions vary more than they explain. What is
    left on the fitted rows is corrected by how much more is left on the rows ``inside`` a fold when
    it is not fitted than when it is.
    """
    found: dict[int, Any] = {}
    for s, side in enumerate(places):
        rest = [o for o in range(len(places)) if o != s]
        weights = [
            solver.combine(tuple(known.latents[o] for o in rest), tuple(rho[o] for o in rest))
            for known in (whole, without)
        ]
        r = weights[0][1] * rho[s]
        for m in side:
            xp, tiny = namespace(w), jnp.finfo(w.dtype).tiny
            # In units of the view's own spread: sums of squares overflow long before it does.
            size = xp.sqrt(xp.maximum(whole.loaded.variances[m].max(), tiny))
            x = views[m] / size
            left, left_out = (
                _left(
                    x,
                    z * r[None, :],
                    known.loaded.centres[m] / size,
                    known.loaded.loadings[m] / size,
                )
                for known, (z, _) in zip((whole, without), weights, strict=True)
            )
            held_out, fitted = ((w * inside * part).sum() for part in (left_out, left))
            remains = (w * left).sum() / w.sum() * (held_out / xp.maximum(fitted, tiny))
            said = ((r[:, None] * whole.loaded.loadings[m] / size) ** 2).sum()
            confirmed = (whole.loaded.variances[m] / size / size).sum() - remains
            found[m] = xp.clip(confirmed / xp.maximum(said, tiny), 0, 2)
    return tuple(found[m] for m in range(len(views)))


def _left(x: Any, z: Any, centre: Any, loadings: Any) -> Float[Any, " n"]:
    """Squared error of predictions, row by row."""
    return ((x - centre[None, :] - matmul(z, loadings)) ** 2).sum(axis=1)


@compiled()
def calibrate(
    rho: Float[Any, "s k"],
    latents: tuple[Any, ...],
    size: Any | int,
    unit: Any | float,
    seen: Any,
    w: Any,
    chosen: Any,
) -> tuple[Any, Any, Any, Any]:
    """Slope and offset of the log-odds; slope among many candidates, and lapse."""
    scores, valid, weights = all_pairs(rho, latents, size, unit, seen, w[chosen])
    slope, offset = evidence.fit_calibration(scores, valid, weights)
    few = slice(None, None, max(1, scores.shape[1] // LIKELY))
    among = scores[:, few, few], valid[:, few], weights[:, few]
    return slope, offset, *evidence.fit_lapse(*among)


def finish(
    views: tuple[Any, ...],
    best: Candidate,
    number: int,
    ridge: Any,
    size: int,
    w: Any,
    places: Sides,
    plan: Plan,
    choice: Choice | None,
    right: tuple[Any, Any, Any] | None = None,
    whole: tuple[Any, Any] | None = None,
    present: Float[Any, "m n"] | None = None,
) -> Alignment:
    """The alignment of one setting, with its evidence.

    ``right`` are the share of right pairs, how probably each is right, and the weights to calibrate
    by, where some pairs are left out; ``whole`` are mean and covariance where they are not the
    folds' own, ``present`` which views every row has, where some are missing.
    """
    covariances, trained, rho, held_out = _pick(best.tried, number)
    k = min(size, covariances.shape[-1])
    if choice is not None:  # axes without held-out correlation say nothing
        told = np.asarray(rho)[:, :k]
        k = _folds.count_axes(told)
        choice = dataclasses.replace(choice, chosen=dataclasses.replace(choice.chosen, k=k))
        chance = find_chance(told, np.asarray(w, np.float64), choice)
        if chance is not None:
            _checks.warn(chance, CollapseWarning)
    xp = namespace(covariances)
    ridge = xp.asarray(ridge, covariances.dtype)
    fitted = solve(best.folds, -1, covariances, trained, rho, ridge, whole, k=k)
    unit = float(best.unit)
    judged = w if right is None else right[2]
    slopes = calibrate(rho, held_out, k, unit, plan.seen, judged, plan.chosen)
    weights = xp.tile(w, (len(views), 1)) if present is None else present * w[None, :]
    known = _know(views, best.features, fitted, weights, places)
    explained = None
    if whole is None:  # the folds of rows completed by EM are not those that were fitted
        sizes = best.folds.weights
        out = 0 if _checks.is_traced(sizes) else int(np.argmax(sizes))
        inside = xp.asarray(np.isin(np.arange(plan.n), plan.order[out]), w.dtype)
        others = solve(best.folds, out, covariances, trained, rho, ridge, None, k=k)
        without = _know(views, best.features, others, weights * (1 - inside)[None, :], places)
        explained = share_explained(views, known, without, fitted.rho, w, inside, places=places)
    return build(
        best.lifts, fitted, places, ridge, slopes, known.loaded, explained, choice, right, unit
    )


def find_chance(
    rho: Float[np.ndarray, "s k"], w: Float[np.ndarray, " n"], choice: Choice
) -> str | None:
    """Say so if held-out rows agree no better than those of unrelated views may."""
    best = float(np.sort(rho, axis=0)[-2:].prod(axis=0).max())
    rows = w.sum() ** 2 / max((w**2).sum(), 1e-300)
    found, chance = choice.chosen.recall, 1 / max(choice.candidates, 1)
    if best <= 0:
        return (
            "no axis of the views agrees on rows it was not fitted to: nothing in them tells "
            "which rows belong together."
        )
    # Four: the best of several axes, and of all settings that were tried.
    if best < 4 / np.sqrt(rows) and found - 2 * choice.chosen.error <= chance:
        return (
            "the views agree no better than unrelated ones may on rows they were not fitted to: "
            f"correlation {best:.2f} on the best axis (four standard errors of zero are "
            f"{4 / np.sqrt(rows):.2f}), and {found:.1%} of the rows find their partner "
            f"({chance:.1%} by chance)."
        )
    return None


@compiled()
def _pick(tried: Tried, number: Any | int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """Moments, reliabilities and latents of one ridge."""
    latents = tuple(z[:, number] for z in tried.latents)
    return tried.covariances[number], tried.trained[number], tried.rho[number], latents


def build(
    lifts: tuple[Lift, ...],
    fitted: Fitted,
    places: Sides,
    ridge: Any,
    slopes: tuple[Any, Any, Any, Any],
    loaded: Loaded,
    explained: tuple[Any, ...] | None,
    choice: Choice | None,
    right: tuple[Any, Any, Any] | None = None,
    unit: float = 0.0,
) -> Alignment:
    widths = tuple(_width(f) for f in lifts)
    projections, centres, fills = _part(fitted, ridge, places=places, widths=widths)
    fitted, slopes, loaded, right = jax.tree.map(jnp.asarray, (fitted, slopes, loaded, right))
    return Alignment(
        projections=jax.tree.map(jnp.asarray, projections),
        singular_values=fitted.left,
        means=jax.tree.map(jnp.asarray, centres),
        offset=jnp.zeros_like(fitted.left),
        coupling=fitted.couplings,
        lifts=jax.tree.map(jnp.asarray, lifts),
        evidence=Evidence(
            fitted.rho,
            *slopes,
            jnp.asarray(unit, fitted.left.dtype),
            **loaded._asdict(),
            explained=(
                tuple(jnp.ones((), fitted.left.dtype) for _ in lifts)
                if explained is None
                else tuple(map(jnp.asarray, explained))
            ),
            fills=jax.tree.map(jnp.asarray, fills),
            right_share=None if right is None else right[0],
            right_probability=None if right is None else right[1],
        ),
        method="align",
        center=True,
        sides=() if places == tuple((m,) for m in range(len(widths))) else places,
        choice=choice,
    )


@compiled("places", "widths")
def _part(
    fitted: Fitted, ridge: Any, *, places: Sides, widths: tuple[int, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Projection and mean of every view, and the covariance of every side of several views."""
    dims = tuple(a.shape[0] for a in fitted.directions)
    projections: dict[int, Any] = {}
    centres: dict[int, Any] = {}
    xp, fills, start = namespace(fitted.mean), [], 0
    for s, side in enumerate(places):
        cut = tuple(widths[m] for m in side)
        means = _folds.split(_folds.split(fitted.mean, dims)[s], cut)
        parts = _folds.split(fitted.directions[s], cut, 0)
        for m, a, mean in zip(side, parts, means, strict=True):
            projections[m], centres[m] = a.T, mean
        block = fitted.covariance[start : start + dims[s], start : start + dims[s]]
        # With the ridge on its diagonal, so that views can be regressed on each other.
        # It is never below the rounding of the largest eigenvalue, of which the trace is a bound.
        least = 4 * jnp.finfo(block.dtype).eps
        penalty = xp.trace(block) * xp.maximum(ridge / dims[s], least)
        eye = xp.eye(dims[s], dtype=block.dtype)
        fills.append(block + penalty * eye if len(side) > 1 else block[:0, :0])
        start += dims[s]
    views = range(len(widths))
    return (
        tuple(projections[m] for m in views),
        tuple(centres[m] for m in views),
        tuple(fills),
    )


def _width(f: Lift) -> int:
    """Number of features that a lift makes of a row."""
    assert not isinstance(f, lifting.Convolutions)
    shape = jax.eval_shape(
        lambda x: lifting.apply(f, x), jax.ShapeDtypeStruct((1, f.dim), jnp.result_type(float))
    )
    return shape.shape[1]
