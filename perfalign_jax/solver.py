"""Fit a perfect alignment, and apply an alignment of any origin.

The road is views -> statistic -> rows -> alignment -> latents.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _checks, _subspace, diagnosis, lift, statistics
from perfalign_jax._host import Tall
from perfalign_jax._numerics import (
    compiled,
    flip_signs,
    is_staged,
    matmul,
    namespace,
    on_host,
    rank_cutoff,
)
from perfalign_jax.diagnosis import Evidence
from perfalign_jax.statistics import Rows, Statistic
from perfalign_jax.types import Alignment, Views

__all__ = ["encode", "fit", "posterior", "predict", "transform"]

Method = Literal["auto", "svd", "qr", "gram", "null", "dual"]


@functools.partial(jax.jit, static_argnames=("k", "select", "method", "center", "check"))
def _fit(
    state: Statistic,
    second: Array | None,
    rtol: Any,
    *,
    k: int | None,
    select: str,
    method: str,
    center: bool,
    check: bool,
) -> tuple[Alignment, Array | None, Array, Evidence | None]:
    """Fit; without k all that can carry energy, and how many of the directions do.

    ``second`` are the products of the rows, where they are known.
    """
    rows = statistics.rows(state, center=center)
    if rtol is not None:
        rows = statistics.with_rounding(rows, rtol)
    r, informative = rows.blocks[0].shape[0], None
    if second is None and (method == "gram" or (check and _is_tall(r, state.dims))):
        second = _subspace.moments(rows.blocks)
    if k is None:
        k = min(r, *state.dims)
        stacked, values, informative = _subspace.solve_by_energy(rows, k=k, method=method)
        enough = jnp.ones((), values.dtype)
    else:
        stacked, values, enough = _subspace.solve(rows, second, k=k, select=select, method=method)
    alignment = _make(stacked, values, rows, method=method, select=select, center=center)
    evidence = None
    if check:
        kept = stacked
        if informative is not None:  # rows beyond the informative ones will be dropped
            kept = jnp.where(jnp.arange(k)[:, None] < informative, stacked, 0)
        evidence = diagnosis.collect_evidence(rows, second, kept)
    return alignment, informative, enough, evidence


def _is_tall(r: int, dims: tuple[int, ...]) -> bool:
    """Whether moments say of r rows all that the rows say."""
    return (len(dims) - 1) * r > sum(dims)


def _make(
    stacked: Any, values: Any, rows: Rows, *, method: str, select: str, center: bool
) -> Alignment:
    dims, xp = tuple(mean.shape[0] for mean in rows.means), namespace(values)
    means = rows.means if center else tuple(xp.zeros_like(mean) for mean in rows.means)
    return Alignment(
        projections=tuple(jnp.asarray(part.T) for part in _subspace.split(stacked.T, dims)),
        singular_values=jnp.asarray(values),
        means=tuple(jnp.asarray(mean) for mean in means),
        offset=jnp.asarray(xp.zeros_like(values)),
        coupling=jnp.asarray(values[:0]),
        method=method,
        select=select,
        space="raw",
        center=center,
    )


def _fit_tall(
    tall: Tall, rtol: float | None, k: int, center: bool, check: bool
) -> tuple[Alignment, None, bool, Evidence | None] | None:
    """As ``_fit`` by the Gram matrix, on the host from start to end; None if it is not good enough.

    Nothing is compiled.
    """
    with np.errstate(all="ignore"):  # gaps of nothing and to infinity are provided for
        columns, values, good = _subspace.trailing_by_gram(
            tall.second, tall.dims, k, tall.samples, tall.times_gram, tall.root
        )
        if not good:
            return None
        stacked, rows = flip_signs(columns.T), tall.rows()
        if rtol is not None:
            rows = jax.tree.map(np.asarray, statistics.with_rounding(rows, rtol))
        evidence = diagnosis.collect_evidence(rows, tall.second, stacked) if check else None
    found = _make(stacked, values, rows, method="gram", select="trailing", center=center)
    return found, None, True, evidence


_rows = functools.partial(jax.jit, static_argnames=("center",))(statistics.rows)


def _fit_few(
    state: Statistic, rtol: float | None, *, k: int, center: bool, check: bool
) -> tuple[Alignment, None, bool, Evidence | None] | None:
    """As ``_fit`` by reflectors, on the host; None if the rows are not the host's to compute."""
    if _checks.is_traced((state, rtol)) or is_staged():
        return None
    rows = _rows(state, center=center)
    if not all(map(on_host, rows.blocks)):
        return None
    limits = np.finfo(rows.blocks[0].dtype)
    energy = sum(float(np.vdot(block, block)) for block in map(np.asarray, rows.blocks))
    if not limits.tiny / limits.eps**2 < energy < limits.max / len(rows.blocks) ** 2:
        return None  # squares that are no numbers
    if rtol is not None:
        rows = statistics.with_rounding(rows, rtol)
    rows = jax.tree.map(np.asarray, rows)
    columns, values = _subspace.trailing_by_reflectors(_subspace.stack(rows.blocks), k)
    stacked = flip_signs(columns.T)
    with np.errstate(all="ignore"):
        evidence = diagnosis.collect_evidence(rows, None, stacked) if check else None
    found = _make(stacked, values, rows, method="null", select="trailing", center=center)
    return found, None, True, evidence


def fit(
    data: Views | Statistic,
    *,
    k: int | None,
    space: Literal["raw"] = "raw",
    select: Literal["trailing", "energy"] = "trailing",
    method: Method = "auto",
    center: bool = False,
    weights: Any = None,
    rtol: float | None = None,
    check: bool = True,
) -> Alignment:
    """Find one linear map per view under which all views of the same thing coincide.

    Minimises ``||X A'||_F`` over ``A = [A1, A2]`` with ``A A' = I``, where ``X = [X1, -X2]`` has
    one row per sample (the paper's X is its transpose). With ``k`` at most the dimension of X's
    null space the alignment is perfect: both latents of a pair are equal (Theorem 2.2); otherwise
    it is the best approximation (Corollary 2.3), and ``||X A'||_F^2`` is the sum of the k smallest
    squared singular values. With more than two views it is the sum of ``|z_i - z_j|^2`` over all
    pairs of views that is minimised, and X has ``M - 1`` rows per sample.

    jit, vmap and grad work on it with ``k`` and the options static. Gradients are exact for
    functions of the subspace (the residual, the projector ``A'A``), see ``_subspace.solve``; first
    derivatives only.

    Args:
        data: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, or a statistic of them.
        k: number of latent dimensions, at most the number ``d`` of all features; None, with
            ``select="energy"``, takes the whole informative part of the null space (not under jit:
            the shape depends on the data).
        space: "raw", the views as they are: the paper.
        select: "trailing" takes the last k right singular vectors in the order of Eq. 7, an
            arbitrary choice where the null space is larger than k. "energy" takes the k null
            directions whose latents carry most energy: unique, the same on every backend, nothing
            trivial before everything informative; outside a null space larger than k both span the
            same subspace.
        method: "svd" is Eq. 7 on the stacked matrix, the reference. "qr", "gram", "null" and
            "dual" reach the same subspace faster (see ``perfalign_jax._subspace``); "auto" chooses
            by shape and checks on the way. The alignment names the method that did the work.
        center: remove the means first; ``transform`` then removes them too.
        weights: shape ``(n,)``, for views only, not negative: a weight of 2 counts a row twice, and
            one factor for all changes nothing but the scale of the singular values.
        rtol: singular values at or below this share of the largest count as zero, where the null
            space must be told from the rest (``select="energy"``). By default rounding alone, see
            ``_numerics``; give more for data that was rounded or is known to a few digits.
        check: look for signs of collapse, and warn.

    Returns:
        An ``Alignment``; its rows have the sign rule of ``_numerics.flip_signs``.

    Raises:
        TypeError: if the data is neither, does not hold real numbers, or k is no integer.
        ValueError: if shapes, k, options or values do not fit; the message names what came.

    Warns:
        CollapseWarning: outside jit, if the latents carry next to no energy, the directions are
            trivial, or the latents of a pair do not agree.
        OverfitWarning: outside jit, if any pairing of the rows would align as perfectly.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(100, 2)).astype(np.float32)
        >>> x1 = z @ rng.normal(size=(2, 3)).astype(np.float32)
        >>> x2 = z @ rng.normal(size=(2, 4)).astype(np.float32)
        >>> z1, z2 = pa.transform(pa.fit((x1, x2), k=2, select="energy"), (x1, x2))
        >>> bool(pa.cmae(z1, z2) < 1e-5)
        True
    """
    _checks.one_of(space, "space", ("raw",))
    _checks.one_of(select, "select", ("trailing", "energy"))
    _checks.one_of(method, "method", _subspace.METHODS)
    _checks.tolerance(rtol)
    state: Any = statistics.as_statistic(data, weights=weights, center=bool(center), look=False)
    dims = state.dims
    if k is None:
        if select != "energy":
            raise ValueError("k must be an integer unless select='energy', got None.")
        if _checks.is_traced(state):
            raise ValueError(
                "k=None is not possible under jit, vmap or grad: the number of directions would "
                "depend on the data; call diagnose first and give k."
            )
    else:
        names = " + ".join(f"d{m + 1}" for m in range(len(dims)))
        k = _checks.integer(
            k, "k", low=1, high=sum(dims), why=f" ({names} = {' + '.join(map(str, dims))})"
        )
    r = statistics.count_rows(state, center=bool(center))
    chosen = _subspace.choose_method(method, select, r, dims, k=k)
    check = bool(check) and not _checks.is_traced(state)
    tall = None
    if chosen == "gram" or (check and _is_tall(r, dims)):
        tall = Tall.of(state, center=bool(center))
    else:
        statistics.check_finite(state)
    solved = None
    if tall is not None and chosen == "gram" and k is not None and not _checks.is_traced(rtol):
        solved = _fit_tall(tall, rtol, k, bool(center), check)
        chosen = "gram" if solved is not None else "qr"
    elif chosen == "null" and select == "trailing" and k is not None:
        solved = _fit_few(state, rtol, k=k, center=bool(center), check=check)
    alignment, informative, enough, evidence = solved or _fit(
        state,
        None if tall is None else tall.second,
        rtol,
        k=k,
        select=select,
        method=chosen,
        center=bool(center),
        check=check,
    )
    if chosen == "gram":  # whether it was enough is known once it has run
        ran = "gram or qr" if _checks.is_traced(enough) else "gram" if enough else "qr"
        alignment = dataclasses.replace(alignment, method=ran)
    tried = alignment.k
    if informative is not None:
        if int(informative) == 0:
            raise ValueError(
                "k=None with select='energy' takes the informative part of the null space, but "
                "this data has none (see diagnose): give a k for the best approximation."
            )
        alignment = alignment.take(int(informative))
    if evidence is not None and not _checks.is_traced(evidence):
        signs = jax.device_get(diagnosis.judge_evidence(evidence, k=tried))
        signs = signs._replace(  # the rows dropped are zero in the evidence
            trivial=signs.trivial - (tried - alignment.k),
            shares=signs.shares * tried / alignment.k,
        )
        few = (len(dims) - 1) * statistics.count_weighed(state) <= sum(dims)
        if few and not signs.any_pairing:  # the statistic may store more rows than it has seen
            found = diagnosis.fits_any_pairing(state, rtol, center=bool(center))
            signs = signs._replace(any_pairing=found)
        diagnosis.warn_of_collapse(signs, alignment)
    return alignment


def check_alignment(alignment: Any) -> None:
    if not isinstance(alignment, Alignment):
        raise TypeError(f"alignment must be an Alignment, got {type(alignment).__name__}.")


def _check_view(view: Any, name: str, alignment: Alignment) -> int:
    last = len(alignment.projections) - 1
    return _checks.integer(view, name, low=0, high=last, why=" (views are counted from 0)")


def _check_features(x: Any, name: str, alignment: Alignment, view: int) -> Array:
    checked = _checks.array(x, name, ndim=2, shape=f"(n, d{view + 1})")
    if checked.shape[1] != alignment.dims[view]:
        raise ValueError(
            f"{name} must have {alignment.dims[view]} columns like view {view} of the alignment, "
            f"got shape {checked.shape}."
        )
    return checked


def check_given(x: Any, view: Any, alignment: Alignment, name: str, role: str) -> dict[int, Array]:
    """Rows by view, from rows of one view or a mapping of several."""
    if not isinstance(x, Mapping):
        if view is None:
            raise TypeError(
                f"{role} must say which view {name} is of (counted from 0), unless {name} maps "
                "views to rows."
            )
        view = _check_view(view, role, alignment)
        return {view: _check_features(x, name, alignment, view)}
    if view is not None:
        raise TypeError(f"{role} must not be given where {name} maps views to rows, got {view!r}.")
    if not x:
        raise ValueError(f"{name} must map at least one view to its rows, got none.")
    rows: dict[int, Array] = {}
    for key, value in x.items():
        m = _check_view(key, f"a view of {name}", alignment)
        rows[m] = _check_features(value, f"{name}[{m}]", alignment, m)
        first = next(iter(rows))
        _checks.paired(rows[first], rows[m], f"{name}[{first}]", f"{name}[{m}]")
    return dict(sorted(rows.items()))


@jax.jit
def _encode(x: Array, mean: Array, projection: Array, offset: Array) -> Array:
    return matmul(x - mean[None, :], projection.T) + offset[None, :]


@jax.jit
def _predict(x: Array, mean: Array, projection: Array, target: Array, target_mean: Array) -> Array:
    latent = matmul(x - mean[None, :], projection.T)
    u, s, vt = jnp.linalg.svd(target, full_matrices=False)
    keep = s > rank_cutoff(s, (target.shape[0], target.shape[1]))
    inverse = jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)
    return matmul(matmul(latent, u) * inverse[None, :], vt) + target_mean[None, :]


def _through(alignment: Alignment, x: Array, view: int) -> Array:
    if alignment.lifts:
        x = lift.apply(alignment.lifts[view], x).astype(alignment.offset.dtype)
    return _encode(x, alignment.means[view], alignment.projections[view], alignment.offset)


def sides_of(alignment: Alignment) -> tuple[tuple[int, ...], ...]:
    """Which views make each side of an alignment."""
    return alignment.sides or tuple((m,) for m in range(len(alignment.projections)))


@jax.jit
def _fill_in(
    covariance: Array,
    seen: tuple[Array, ...],
    whole: tuple[Array, ...],
    features: tuple[Array, ...],
) -> tuple[Array, Array]:
    """Coordinates of a side from some of its views, and what share of their variance is left.

    ``seen`` are the places of the present features; the others are regressed on them.
    """
    places = jnp.concatenate(seen)
    directions = jnp.concatenate(whole, axis=1)
    factor = jnp.linalg.cholesky(covariance[places[:, None], places[None, :]])
    turned = jax.scipy.linalg.solve_triangular(
        factor, matmul(covariance[places], directions.T), lower=True
    )
    weights = jax.scipy.linalg.solve_triangular(factor.T, turned, lower=False)
    kept = jnp.sum(turned**2, axis=0)
    total = jnp.sum(directions.T * matmul(covariance, directions.T), axis=0)
    share = kept / jnp.where(total > 0, total, 1)
    latents = matmul(jnp.concatenate(features, axis=1), weights)
    return latents * jax.lax.rsqrt(jnp.where(share > 0, share, 1))[None, :], share


def _side(
    alignment: Alignment, side: tuple[int, ...], number: int, rows: Mapping[int, Array]
) -> tuple[Array, Array]:
    """Coordinates of one side, of variance one, and their reliability."""
    evidence = alignment.evidence
    assert evidence is not None
    rho = evidence.reliability[number]
    present = [m for m in side if m in rows]
    if present == list(side):
        return functools.reduce(jnp.add, [_through(alignment, rows[m], m) for m in side]), rho
    places, start = [], 0
    for m in side:
        width = alignment.projections[m].shape[-1]
        if m in rows:
            places.append(jnp.arange(start, start + width))
        start += width
    features = []
    for m in present:
        x = rows[m] if not alignment.lifts else lift.apply(alignment.lifts[m], rows[m])
        features.append(x.astype(rho.dtype) - alignment.means[m][None, :])
    whole = tuple(alignment.projections[m] for m in side)
    latents, share = _fill_in(evidence.fills[number], tuple(places), whole, tuple(features))
    return latents, rho * jnp.sqrt(jnp.clip(share, 0, 1))


def posterior(
    alignment: Alignment, rows: Mapping[int, Any]
) -> tuple[Float[Array, "n k"], Float[Array, " k"]]:
    """What rows of one view or more say of the shared latent.

    Every axis has a standard normal latent ``t`` and side ``s`` sees
    ``z_s = rho_s t + sqrt(1 - rho_s^2) e_s``. Given some sides the posterior of ``t`` is normal, of
    precision ``1 + sum rho_s^2 / (1 - rho_s^2)`` and mean ``sum rho_s / (1 - rho_s^2) z_s`` over
    that precision. Together they are worth one side of reliability ``rho``, the root of the mean's
    variance, whose coordinate is the mean over ``rho``: that is what is returned, so one view and
    many are used alike.

    Args:
        alignment: an alignment with evidence, from ``align``.
        rows: rows of some views, ``{view: (n, d_view)}``; within a side of several views those
            missing are filled in from the others.

    Returns:
        Coordinates of variance one, shape ``(n, k)``, and their reliability, shape ``(k,)``.

    Raises:
        TypeError: if the rows are no real numbers.
        ValueError: if rows do not fit the alignment, or the alignment has no evidence.

    Source: probabilistic CCA, Bach and Jordan (2005), with a ridge and held-out correlations.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> from perfalign_jax import solver
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> alignment = pa.align((x, x + 1, -x), lift=None)
        >>> one, few = (solver.posterior(alignment, g)[1] for g in ({0: x}, {0: x, 1: x + 1}))
        >>> bool((few >= one).all())
        True
    """
    check_alignment(alignment)
    checked = check_given(rows, None, alignment, "rows", "rows")
    return _posterior(alignment, checked)


def _posterior(alignment: Alignment, rows: Mapping[int, Array]) -> tuple[Array, Array]:
    if alignment.evidence is None:
        raise ValueError(
            "alignment must have evidence from held-out rows, as align gives it; "
            f"{alignment.method} has none."
        )
    found = [
        _side(alignment, side, s, rows)
        for s, side in enumerate(sides_of(alignment))
        if any(m in rows for m in side)
    ]
    if len(found) == 1:
        return found[0]
    return combine(tuple(z for z, _ in found), tuple(rho for _, rho in found))


@compiled()
def combine(coordinates: tuple[Any, ...], rho: tuple[Any, ...]) -> tuple[Any, Any]:
    """Coordinates that sides have together, and their reliability (see ``posterior``)."""
    noise = [1 - r**2 for r in rho]
    xp = namespace(rho[0])
    precision = 1 + functools.reduce(xp.add, [r**2 / e for r, e in zip(rho, noise, strict=True)])
    terms = [(r / e)[None, :] * z for z, r, e in zip(coordinates, rho, noise, strict=True)]
    together = xp.sqrt(xp.maximum(1 - 1 / precision, 0))
    scale = precision * xp.where(together > 0, together, 1)
    return functools.reduce(xp.add, terms) / scale[None, :], together


@compiled()
def at_length(
    z: Float[Any, "*n k"], r: Float[Any, " k"], unit: Float[Any, ""] | float
) -> Float[Any, "*n k"]:
    """Coordinates brought to one length over the axes with evidence, if ``unit`` is 1.

    Rows of heavy-tailed views differ in length for reasons of each view's own, and pairs are then
    told by direction. The length is the mean one of coordinates of variance one.

    Source: Garcia-Romero and Espy-Wilson (2011), length normalisation in speaker verification.
    """
    xp = namespace(z)
    seen = (r > 0).astype(z.dtype)
    square = matmul(z**2, seen)[..., None]
    size = xp.sqrt(seen.sum() / xp.where(square > 0, square, 1))
    return z * xp.where(unit > 0, size, 1)


@jax.jit
def _lengthen(coordinates: Array, rho: Array, unit: Array) -> Array:
    """Latents whose distances follow the evidence: scaled by sqrt(r / (1 - r^2)), r = rho^2."""
    coordinates = at_length(coordinates, rho, unit)
    return coordinates * (rho * jax.lax.rsqrt(1 - rho**4))[None, :]


def encode(alignment: Alignment, x: Any, *, view: int | None = None) -> Float[Array, "n k"]:
    """Map one modality, alone, into the shared latent space (the paper's z-hat, section 2.1).

    With evidence (``align``) axes are scaled by ``sqrt(r / (1 - r^2))``, ``r`` the held-out
    correlation: then distances follow the evidence that two rows are the same thing, for every tool
    that takes vectors, and axes that say nothing are zero. ``x`` may then hold several views.

    Args:
        alignment: an alignment of any method.
        x: rows of the modality, shape ``(n, d_view)``; or, with evidence, ``{view: rows}``, which
            gives what all of them together say (see ``posterior``).
        view: which modality, counted from 0; not for ``{view: rows}``.

    Returns:
        Latents, shape ``(n, k)``.

    Raises:
        TypeError: if x does not hold real numbers, or view is missing.
        ValueError: if x or view does not fit the alignment, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(4, 2, dtype=np.float32)
        >>> pa.encode(pa.fit((x, x), k=2), x, view=1).shape
        (4, 2)
    """
    check_alignment(alignment)
    rows = check_given(x, view, alignment, "x", "view")
    if alignment.evidence is not None:
        return _lengthen(*_posterior(alignment, rows), alignment.evidence.unit)
    if len(rows) > 1:
        raise ValueError(
            f"x must be rows of one view: {alignment.method} has no evidence to join views by, "
            f"got views {', '.join(map(str, rows))}."
        )
    ((m, checked),) = rows.items()
    return _through(alignment, checked, m)


def transform(alignment: Alignment, views: Views) -> tuple[Float[Array, "n k"], ...]:
    """Map all views into the shared latent space.

    Args:
        alignment: an alignment of any method.
        views: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, one for each view.

    Returns:
        Latents ``(z1, z2, ...)``, each of shape ``(n, k)``: of each view, or of each side where
        views were put together; with evidence scaled as ``encode`` does.

    Raises:
        TypeError: if the views do not hold real numbers.
        ValueError: if the views do not fit the alignment, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(4, 2, dtype=np.float32)
        >>> z1, z2 = pa.transform(pa.fit((x, x), k=2), (x, x))
        >>> z1.shape, z2.shape
        ((4, 2), (4, 2))
    """
    check_alignment(alignment)
    arrays, _ = _checks.views(views)
    if len(arrays) != len(alignment.dims):
        raise TypeError(
            f"views must be a tuple of {len(alignment.dims)} arrays like the alignment's views, "
            f"got {len(arrays)} of them."
        )
    for m, x in enumerate(arrays):
        _check_features(x, f"x{m + 1}", alignment, m)
    if alignment.evidence is not None:
        rows = dict(enumerate(arrays))
        sides = enumerate(sides_of(alignment))
        unit = alignment.evidence.unit
        return tuple(_lengthen(*_side(alignment, side, s, rows), unit) for s, side in sides)
    return tuple(_through(alignment, x, m) for m, x in enumerate(arrays))


def predict(
    alignment: Alignment, x: Any, *, source: int | None = None, target: int, variance: bool = False
) -> Any:
    """Predict one modality from another.

    With evidence (``align``) it is the posterior mean of the target: every axis moves it by no more
    than its held-out correlation allows, and ``variance=True`` says how much remains unknown.
    A view that is itself among those given comes back as what its axes carry of it, and one of the
    same side as the source only as far as the other sides share it. Several sides are taken to
    share nothing but the axes: where they repeat each other otherwise, ridge regression on all of
    them predicts better.
    Otherwise it is the smallest target row with the source's latent; with ``k = d_target`` and a
    perfect alignment of ``trailing`` directions that is total least squares,
    ``A_target^-1 A_source``.

    Args:
        alignment: an alignment of any method.
        x: rows of the source modality, shape ``(n, d_source)``; or, with evidence,
            ``{view: rows}``.
        source: modality that x is of, counted from 0; not for ``{view: rows}``.
        target: modality to predict, counted from 0.
        variance: return ``(rows, variances)``, the variances of shape ``(d_target,)``: of each
            feature about its prediction, the same for all rows. Needs evidence.

    Returns:
        Predicted rows, shape ``(n, d_target)``, in units of the target modality.

    Raises:
        TypeError: if x does not hold real numbers, or source is missing.
        ValueError: if x, source or target does not fit the alignment, a value is not finite, or
            there is no evidence for a variance.

    Source: Breiman and Friedman (1997) for shrinking canonical axes by held-out correlations.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
        >>> alignment = pa.fit((x, 3 * x), k=2)
        >>> bool(np.allclose(pa.predict(alignment, x, source=0, target=1), 3 * x, atol=1e-4))
        True
    """
    check_alignment(alignment)
    rows = check_given(x, source, alignment, "x", "source")
    target = _check_view(target, "target", alignment)
    evidence = alignment.evidence
    if evidence is not None:
        coordinates, rho = _posterior(alignment, rows)
        number = next(s for s, side in enumerate(sides_of(alignment)) if target in side)
        found, left = _expect(
            coordinates,
            rho * evidence.reliability[number],
            evidence.loadings[target],
            evidence.centres[target],
            evidence.variances[target],
            evidence.explained[target],
        )
        return (found, left) if variance else found
    if variance or len(rows) > 1 or alignment.lifts:
        raise ValueError(
            f"alignment must have evidence, as align gives it, to {_NEEDS[variance]}; "
            f"{alignment.method} has none."
        )
    ((m, checked),) = rows.items()
    return _predict(
        checked,
        alignment.means[m],
        alignment.projections[m],
        alignment.projections[target],
        alignment.means[target],
    )


_NEEDS = {True: "say the variance", False: "predict from several views or lifted ones"}


@jax.jit
def _expect(
    coordinates: Array,
    r: Array,
    loadings: Array,
    centre: Array,
    variances: Array,
    explained: Array,
) -> tuple[Array, Array]:
    moved = r[:, None] * loadings
    left = jnp.maximum(variances - explained * jnp.sum(moved**2, axis=0), 0)
    return matmul(coordinates, moved) + centre[None, :], left
