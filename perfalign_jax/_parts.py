"""Alignment from moments alone: statistics of parts of the data, or a single one with theory."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _folds, kernels, significance, statistics
from perfalign_jax._assembly import Fitted, Loaded, build, regress, solve
from perfalign_jax._folds import Folds
from perfalign_jax._numerics import at_hand, compiled, matmul, namespace
from perfalign_jax._selection import AXES, RIDGES, Sides, most_axes
from perfalign_jax.types import Alignment, Choice, Trial

__all__ = ["align_parts"]


def align_parts(parts: list[Any], places: Sides, ridge: Any, k: Any) -> Alignment:
    """Align moments alone, part by part or, from a single one, with the help of theory."""
    dims = parts[0].dims
    order = [m for side in places for m in side]
    folds, scalings = _of_parts(parts, order)
    folds = dataclasses.replace(folds, dims=tuple(sum(dims[m] for m in side) for side in places))
    samples = float(sum(part.samples for part in parts))
    largest = max(part.samples for part in parts) if len(parts) > 1 else 0
    fitted_rows = int(samples - largest)
    size = most_axes(folds.dims, fitted_rows, AXES if k == "auto" else int(k))
    count = namespace(folds.mean).asarray(samples, folds.mean.dtype)
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
        xp, dtype = namespace(folds.mean), folds.mean.dtype
        nothing = xp.zeros((len(parts), 0, folds.mean.shape[0]), dtype)
        tried = _folds.try_ridges(folds, nothing, xp.asarray(ridges, dtype), count, k=size)
        informations = [float(_folds.tell(c)) for c in tried.covariances]
        number = int(np.argmax(informations))
        covariances, trained = tried.covariances[number], tried.trained[number]
        chosen = float(ridges[number])
        reason = "held-out information is largest, " + ", ".join(
            f"{i:.3g} nats at {r:g}" for i, r in zip(informations, ridges, strict=True)
        )
    rho = _folds.reliabilities(covariances, count)
    size = _folds.count_axes(rho)
    setting = Trial("none", chosen, size, math.nan, math.nan)
    choice = Choice(trials, setting, 0, 0, reason, remarks)
    ridge = namespace(folds.mean).asarray(chosen, folds.mean.dtype)
    fitted = solve(folds, -1, covariances, trained, rho, ridge, k=size)
    one = jnp.ones((), folds.mean.dtype)
    loaded = _load_moments(fitted, scalings, places, tuple(dims))
    return build(
        tuple(scalings), fitted, places, ridge, (one, 0 * one, one, 0 * one), loaded, None, choice
    )


_rows = jax.jit(functools.partial(statistics.rows, center=True))


def _of_parts(parts: list[Any], order: list[int]) -> tuple[Folds, tuple[kernels.Standardise, ...]]:
    """Folds of standardised features from statistics, the views in the order of the sides."""
    leaves, tree = jax.tree.flatten([_rows(part) for part in parts])
    given = jax.tree.unflatten(tree, at_hand(tuple(leaves)))
    xp = namespace(given[0].weight)
    weights = xp.stack([rows.weight for rows in given])
    means = xp.stack([xp.concatenate([rows.means[m] for m in order]) for rows in given])
    blocks = [xp.concatenate([rows.blocks[m] for m in order], axis=1) for rows in given]
    scatters = xp.stack([matmul(block.T, block) for block in blocks])
    dims = tuple(given[0].means[m].shape[0] for m in order)
    mean = matmul(weights, means) / weights.sum()
    raw = Folds(weights, mean, means - mean[None, :], scatters, dims)
    middle, covariance = _folds.others(raw, -1)
    mean = mean + middle
    scalings: dict[int, kernels.Standardise] = {}
    for m, own, spread in zip(
        order,
        _folds.split(mean, dims),
        _folds.split(xp.sqrt(xp.diagonal(covariance)), dims),
        strict=True,
    ):
        scalings[m] = kernels.standardise(own, spread)
        if not bool((spread > 0).any()):
            raise ValueError(f"data must vary, but view {m} of the statistics does not.")
    factor = xp.concatenate([scalings[m].factor for m in order])
    if not bool(xp.isfinite(covariance).all()):
        raise ValueError(
            f"data is statistics of values too large to square in {covariance.dtype}: divide the "
            "views by their size first."
        )
    folds = Folds(
        weights,
        xp.zeros_like(mean),
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
    starts = np.cumsum((0, *folds.dims))
    ranks = [_rank(covariance[a:b, a:b]) for a, b in itertools.pairwise(starts)]
    least = float(jnp.finfo(covariance.dtype).eps)
    axes = _folds.axes_of(covariance, folds.dims, jnp.asarray(least, covariance.dtype), size)
    try:
        r = significance.debias_correlations(
            jnp.minimum(axes.couplings, 1), n=samples - 1, d1=ranks[0], d2=ranks[1]
        )
    except ValueError as error:
        raise ValueError(f"data is one statistic: {error}") from None
    r = jnp.where(jnp.arange(size) < min(ranks), r, 0)
    one = jnp.ones_like(r)
    covariances = jnp.stack([jnp.stack([one, r]), jnp.stack([r, one])])
    return covariances, jnp.ones((2, size), r.dtype), least


def _rank(covariance: Float[Any, "p p"]) -> int:
    """Number of directions that vary: of the eigenvalues, squares, half the digits are known."""
    values = np.linalg.eigvalsh(np.asarray(covariance))
    least = 4 * len(values) * float(np.finfo(values.dtype).eps)
    return max(1, int((values > least * values[-1]).sum()))


@compiled("places", "dims")
def _load_moments(
    fitted: Fitted, scalings: tuple[kernels.Standardise, ...], places: Sides, dims: tuple[int, ...]
) -> Loaded:
    """What ``load_views`` measures, from the covariance of the standardised features."""
    loadings: dict[int, Any] = {}
    variances: dict[int, Any] = {}
    xp, start = namespace(fitted.mean), 0
    for s, side in enumerate(places):
        width = sum(dims[m] for m in side)
        block = fitted.covariance[start : start + width, start : start + width]
        covariance = matmul(block, fitted.directions[s])
        own = matmul(fitted.directions[s].T, covariance)
        cut = tuple(dims[m] for m in side)
        for m, found, spread in zip(
            side,
            _folds.split(regress(own, covariance.T), cut, 1),
            _folds.split(xp.diagonal(block), cut),
            strict=True,
        ):
            factor = scalings[m].factor
            back = xp.where(factor > 0, 1 / xp.where(factor > 0, factor, 1), 0)
            loadings[m] = found * back[None, :]
            variances[m] = spread * back**2
        start += width
    views = range(len(dims))
    centres = tuple(scaling.mean for scaling in scalings)
    return Loaded(tuple(loadings[m] for m in views), centres, tuple(variances[m] for m in views))
