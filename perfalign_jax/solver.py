"""Fit a perfect alignment, apply it, and say what the data allows.

The road is views -> rows -> alignment -> latents. Rows are the views themselves, or a statistic
(``perfalign_jax.statistics``) where the data was streamed or merged.
"""

import dataclasses
import functools
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _checks, statistics, subspace
from perfalign_jax._numerics import matmul, rank_cutoff
from perfalign_jax.statistics import Factor, Gram
from perfalign_jax.types import Alignment, CollapseWarning, Diagnosis, Views

__all__ = ["diagnose", "encode", "fit", "predict", "transform"]

Method = Literal["auto", "svd", "qr", "gram", "null", "dual"]

# Below this share of the energy that directions chosen at random would keep, the latents are noise.
_LITTLE_ENERGY = 1e-3
# A latent axis whose correlation between the views is below this is more noise than signal.
_LITTLE_AGREEMENT = 0.5**0.5


def _prepare(data: Any, *, center: bool) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
    """Return rows, means and the number of samples of checked views or of a statistic."""
    if isinstance(data, Factor | Gram):
        return statistics.rows(data, center=center), statistics.means(data), data.samples
    x1, x2 = data
    samples = jnp.asarray(x1.shape[0], jnp.int32)
    means = (jnp.mean(x1, axis=0), jnp.mean(x2, axis=0))
    if not center:
        return (x1, x2), means, samples
    if x1.shape[0] <= x1.shape[1] + x2.shape[1]:  # one row fewer keeps the rank full
        return _prepare(statistics.from_views(data), center=True)
    return (x1 - means[0][None, :], x2 - means[1][None, :]), means, samples


def _cutoff_scale(
    data: Any,
    rows: tuple[Array, Array],
    means: tuple[Array, Array],
    samples: Array,
    rtol: float | Array | None,
    *,
    center: bool,
) -> Array:
    """Share of the largest singular value at or below which another one counts as zero."""
    dtype = rows[0].dtype
    if rtol is not None:
        return jnp.asarray(rtol, dtype)
    d = rows[0].shape[1] + rows[1].shape[1]
    scale = rank_cutoff(jnp.ones((1,), dtype), (samples, d))
    if center:  # what was rounded is the data with its mean
        spread = sum(jnp.sum(block**2) for block in rows)
        common = samples * sum(jnp.sum(mean**2) for mean in means)
        scale = scale * jnp.sqrt(1 + common / jnp.where(spread > 0, spread, 1))
    return jnp.sqrt(scale) if isinstance(data, Gram) else scale  # squaring costs half the digits


@functools.partial(jax.jit, static_argnames=("k", "select", "method", "center", "label"))
def _fit(
    data: Any, rtol: Any, *, k: int | None, select: str, method: str, center: bool, label: str
) -> tuple[Alignment, Array | None]:
    """Fit; without k all that can carry energy, and how many of the directions do."""
    rows, means, samples = _prepare(data, center=center)
    scale = _cutoff_scale(data, rows, means, samples, rtol, center=center)
    d1, informative = rows[0].shape[1], None
    if k is None:
        k = min(rows[0].shape[0], d1, rows[1].shape[1])
        stacked, values, informative = subspace.solve_by_energy(rows, scale, k=k, method=method)
    else:
        stacked, values = subspace.solve(rows, scale, samples, k=k, select=select, method=method)
    if not center:
        means = (jnp.zeros_like(means[0]), jnp.zeros_like(means[1]))
    alignment = Alignment(
        projections=(stacked[:, :d1], stacked[:, d1:]),
        singular_values=values,
        means=means,
        offset=jnp.zeros((k,), stacked.dtype),
        method=label,
        select=select,
        space="raw",
        center=center,
    )
    return alignment, informative


@jax.jit
def _signs_of_collapse(data: Any, alignment: Alignment, rtol: Any) -> Float[Array, "4"]:
    """How many latent axes are empty, the energy kept against chance, how many axes disagree."""
    rows, means, samples = _prepare(data, center=alignment.center)
    z1, z2 = (matmul(b, p.T) for b, p in zip(rows, alignment.projections, strict=True))
    count = rows[0].shape[0]
    empty = max(alignment.k - 2 * count, 0)
    if empty:  # many more axes than rows: in coordinates of the rows' span, without the rest
        upper = jnp.linalg.qr(jnp.concatenate([z1, z2]).T, mode="r")
        z1, z2 = upper[:, :count].T, upper[:, count:].T
    # Counted in the latents' principal axes: a basis of trivial and informative directions mixed
    # has no single row without energy.
    eps = jnp.finfo(z1.dtype).eps
    spread = jnp.linalg.eigvalsh(matmul(z1.T, z1) + matmul(z2.T, z2))
    whole = sum(jnp.sum(block**2) for block in rows)
    floor = _cutoff_scale(data, rows, means, samples, rtol, center=alignment.center) ** 2 * whole
    trivial = empty + jnp.sum(spread <= jnp.maximum(4 * alignment.k * eps * spread[-1], floor))
    # A mean that all samples share is no information: it would pass for energy and agreement.
    if not alignment.center:
        statistic = isinstance(data, Factor | Gram)

        def centred(part: Array) -> Array:
            return part[1:] if statistic else part - jnp.mean(part, axis=0)[None, :]

        rows, z1, z2 = (centred(rows[0]), centred(rows[1])), centred(z1), centred(z2)
    shares = []
    for block, z in zip(rows, (z1, z2), strict=True):
        chance = jnp.sum(block**2) * alignment.k / block.shape[1]
        shares.append(jnp.sum(z**2) / jnp.where(chance > 0, chance, 1))
    # Agreement axis by axis: one axis of much energy must not hide the others.
    spread, axes = jnp.linalg.eigh((matmul(z1.T, z1) + matmul(z2.T, z2)) / 2)
    kept = spread > jnp.maximum(4 * alignment.k * eps * spread[-1], floor / 2)
    axes = axes * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, spread, 1)), 0)[None, :]
    shared = matmul(matmul(z1, axes).T, matmul(z2, axes))
    agreement = jnp.linalg.eigvalsh((shared + shared.T) / 2)
    apart = jnp.sum(agreement < _LITTLE_AGREEMENT) - jnp.sum(~kept)
    return jnp.stack([jnp.asarray(s, z1.dtype) for s in (trivial, *shares, apart)])


def _warn_of_collapse(data: Any, alignment: Alignment, rtol: Any) -> None:
    signs = np.asarray(_signs_of_collapse(data, alignment, rtol))
    trivial, share1, share2, apart = signs.tolist()
    k = alignment.k
    reasons, remedies = [], ["a smaller k"]
    if trivial:
        which = f"all {k}" if trivial == k else f"{int(trivial)} of the {k}"
        reasons.append(f"{which} directions chosen are trivial (both latents are zero on them)")
        if alignment.select == "trailing":
            remedies = ["select='energy' (k=None takes all directions that carry energy)"]
    if trivial < k:
        for view, share in ((1, share1), (2, share2)):
            if share < _LITTLE_ENERGY:
                reasons.append(
                    f"the latents of view {view} keep {share:.1e} of the energy that {k} "
                    "directions chosen at random would keep"
                )
                if "views of the same scale" not in remedies:
                    remedies = ["views of the same scale", *remedies]
        if apart > 0:
            reasons.append(
                f"on {int(apart)} of the {k} latent axes the views hardly agree (they share less "
                "than half of the variance)"
            )
            remedies = ["baselines.ridge_cca"]
    if reasons:
        warnings.warn(
            f"the alignment has collapsed: {'; '.join(reasons)}. A small alignment error proves "
            f"nothing here. See diagnose() for what the data allows, and try "
            f"{' or '.join(remedies)}.",
            CollapseWarning,
            stacklevel=3,
        )


def _checked(data: Any, *, center: bool) -> Any:
    if isinstance(data, Factor | Gram):
        return statistics.as_statistic(data)
    arrays = _checks.views(data)
    least = 2 if center else 1
    if arrays[0].shape[0] < least:
        raise ValueError(
            f"x1 and x2 must have at least {('one row', 'two rows')[least - 1]}"
            f"{' to be centred' if center else ''}, got shape {arrays[0].shape}."
        )
    return arrays


def _check_rtol(rtol: Any) -> None:
    if rtol is None:
        return
    _checks.positive(rtol, "rtol", zero=True)
    if not _checks.is_traced(rtol) and rtol >= 1:
        raise ValueError(f"rtol must be below 1, got {rtol}.")


def coarser_rounding(data: Any) -> float | None:
    """Rounding of the coarsest view where it is computed in a finer precision than it has."""
    if isinstance(data, Factor | Gram):
        return None
    dtypes = [np.dtype(getattr(x, "dtype", np.float64)) for x in data]
    rounding = [float(jnp.finfo(t).eps) for t in dtypes if jnp.issubdtype(t, jnp.floating)]
    finest = min([*rounding, float(np.finfo(np.float32).eps)])
    if not rounding or max(rounding) <= finest:
        return None
    samples, features = np.shape(data[0])[0], sum(np.shape(x)[-1] for x in data)
    # Independent rounding errors have the norm of a random matrix, against at least sqrt(n).
    return min(2 * max(rounding) * float(1 + np.sqrt(features / samples)), 0.5)


def _shape(data: Any, *, center: bool) -> tuple[int, int, int]:
    """Numbers of rows and of features that the solver will see."""
    if isinstance(data, Factor | Gram):
        d1, d2 = data.dims
        r = d1 + d2 if isinstance(data, Gram) else data.blocks[0].shape[0] + (not center)
        return r, d1, d2
    return data[0].shape[0], data[0].shape[1], data[1].shape[1]


def fit(
    data: Views | statistics.Statistic,
    *,
    k: int | None,
    space: Literal["raw"] = "raw",
    select: Literal["trailing", "energy"] = "trailing",
    method: Method = "auto",
    center: bool = False,
    rtol: float | None = None,
) -> Alignment:
    """Find one linear map per modality under which both views of the same thing coincide.

    Minimises ``||X A'||_F`` over ``A = [A1, A2]`` with ``A A' = I``, where ``X = [X1, -X2]`` has
    one row per sample (the paper's X is its transpose). With ``k`` at most the dimension of X's
    null space the alignment is perfect: both latents of a pair are equal (Theorem 2.2); otherwise
    it is the best approximation (Corollary 2.3), and ``||X A'||_F^2`` is the sum of the k smallest
    squared singular values.

    jit, vmap and grad work on it with ``k`` and the options static. Gradients are exact for
    functions of the subspace (the residual, the projector ``A'A``), see ``subspace.solve``; first
    derivatives only.

    Args:
        data: paired rows ``(x1, x2)`` of shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of
            them.
        k: number of latent dimensions, at most ``d1 + d2``; None, with ``select="energy"``, takes
            the whole informative part of the null space (not under jit: the shape depends on the
            data).
        space: "raw", the views as they are: the paper.
        select: "trailing" takes the last k right singular vectors in the order of Eq. 7, an
            arbitrary choice where the null space is larger than k. "energy" takes the k null
            directions whose latents carry most energy: unique, the same on every backend, nothing
            trivial before everything informative; outside a null space larger than k both span the
            same subspace.
        method: "svd" is Eq. 7 on the stacked matrix, the reference. "qr", "gram", "null" and
            "dual" reach the same subspace faster (see ``perfalign_jax.subspace``); "auto" chooses
            by shape and checks on the way.
        center: remove the means first; ``transform`` then removes them too.
        rtol: singular values at or below this share of the largest count as zero, where the null
            space must be told from the rest (``select="energy"``). By default rounding alone, see
            ``_numerics``; give more for data that was rounded or is known to a few digits.

    Returns:
        An ``Alignment``; its rows have the sign rule of ``_numerics.flip_signs``.

    Raises:
        TypeError: if the data is neither, does not hold real numbers, or k is no integer.
        ValueError: if shapes, k, options or values do not fit; the message names what came.

    Warns:
        CollapseWarning: outside jit, if the latents carry next to no energy, the directions are
            trivial, or the latents of a pair do not agree.

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
    _checks.one_of(method, "method", subspace.METHODS)
    _check_rtol(rtol)
    checked = _checked(data, center=bool(center))
    rtol = coarser_rounding(data) if rtol is None else rtol
    gram_only = isinstance(checked, Gram)
    shape = _shape(checked, center=center)
    r, d1, d2 = shape
    if k is None:
        if select != "energy":
            raise ValueError("k must be an integer unless select='energy', got None.")
        if _checks.is_traced(checked):
            raise ValueError(
                "k=None is not possible under jit, vmap or grad: the number of directions would "
                "depend on the data; call diagnose first and give k."
            )
    else:
        k = _checks.integer(k, "k", low=1, high=d1 + d2, why=f" (d1 + d2 = {d1} + {d2})")
    chosen = subspace.choose_method(method, select, shape, k=k or 1, gram_only=gram_only)
    offered = subspace.directions_offered(chosen, shape)
    if method == "auto" and k is not None and k > offered:
        chosen, offered = "qr", d1 + d2
    if k is not None and k > offered:
        raise ValueError(
            f"method={method!r} offers at most {offered} directions for {r} rows, got k={k}; "
            "use 'svd' or 'qr'."
        )
    label = "gram" if gram_only else chosen
    alignment, informative = _fit(
        checked, rtol, k=k, select=select, method=chosen, center=bool(center), label=label
    )
    if informative is not None:
        if int(informative) == 0:
            raise ValueError(
                "k=None with select='energy' takes the informative part of the null space, but "
                "this data has none (see diagnose): give a k for the best approximation."
            )
        return _first(alignment, int(informative))
    if not _checks.is_traced(alignment):
        _warn_of_collapse(checked, alignment, rtol)
    return alignment


def _first(alignment: Alignment, k: int) -> Alignment:
    """Keep the first k latent dimensions."""
    first, second = alignment.projections
    return dataclasses.replace(
        alignment,
        projections=(first[:k], second[:k]),
        singular_values=alignment.singular_values[:k],
        offset=alignment.offset[:k],
    )


def _check_alignment(alignment: Any) -> None:
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


@functools.partial(jax.jit, static_argnames=("view",))
def _encode(alignment: Alignment, x: Array, *, view: int) -> Array:
    centred = x - alignment.means[view][None, :]
    return matmul(centred, alignment.projections[view].T) + alignment.offset[None, :]


@functools.partial(jax.jit, static_argnames=("source", "target"))
def _predict(alignment: Alignment, x: Array, *, source: int, target: int) -> Array:
    latent = _encode(alignment, x, view=source) - alignment.offset[None, :]
    projection = alignment.projections[target]
    u, s, vt = jnp.linalg.svd(projection, full_matrices=False)
    keep = s > rank_cutoff(s, (projection.shape[0], projection.shape[1]))
    inverse = jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)
    return matmul(matmul(latent, u) * inverse[None, :], vt) + alignment.means[target][None, :]


def encode(alignment: Alignment, x: Any, *, view: int) -> Float[Array, "n k"]:
    """Map one modality, alone, into the shared latent space (the paper's z-hat, section 2.1).

    Args:
        alignment: an alignment of any method.
        x: rows of the modality, shape ``(n, d_view)``.
        view: which modality, counted from 0.

    Returns:
        Latents, shape ``(n, k)``.

    Raises:
        TypeError: if x does not hold real numbers.
        ValueError: if x or view does not fit the alignment, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.eye(4, 2, dtype=np.float32)
        >>> pa.encode(pa.fit((x, x), k=2), x, view=1).shape
        (4, 2)
    """
    _check_alignment(alignment)
    view = _check_view(view, "view", alignment)
    return _encode(alignment, _check_features(x, "x", alignment, view), view=view)


def transform(
    alignment: Alignment, views: Views
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """Map both modalities into the shared latent space.

    Args:
        alignment: an alignment of any method.
        views: paired rows ``(x1, x2)`` of shapes ``(n, d1)`` and ``(n, d2)``.

    Returns:
        Latents ``(z1, z2)``, both of shape ``(n, k)``.

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
    _check_alignment(alignment)
    x1, x2 = _checks.views(views)
    x1 = _check_features(x1, "x1", alignment, 0)
    x2 = _check_features(x2, "x2", alignment, 1)
    return _encode(alignment, x1, view=0), _encode(alignment, x2, view=1)


def predict(
    alignment: Alignment, x: Any, *, source: int, target: int
) -> Float[Array, "n d_target"]:
    """Predict one modality from another: the smallest target row with the source's latent.

    With ``k = d_target`` and a perfect alignment of ``trailing`` directions this is total least
    squares, ``A_target^-1 A_source``.

    Args:
        alignment: an alignment of any method.
        x: rows of the source modality, shape ``(n, d_source)``.
        source: modality that x is of, counted from 0.
        target: modality to predict, counted from 0.

    Returns:
        Predicted rows, shape ``(n, d_target)``, in units of the target modality.

    Raises:
        TypeError: if x does not hold real numbers.
        ValueError: if x, source or target does not fit the alignment, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
        >>> alignment = pa.fit((x, 3 * x), k=2)
        >>> bool(np.allclose(pa.predict(alignment, x, source=0, target=1), 3 * x, atol=1e-4))
        True
    """
    _check_alignment(alignment)
    source = _check_view(source, "source", alignment)
    target = _check_view(target, "target", alignment)
    checked = _check_features(x, "x", alignment, source)
    return _predict(alignment, checked, source=source, target=target)


@functools.partial(jax.jit, static_argnames=("center",))
def _diagnose(data: Any, rtol: Any, *, center: bool) -> Diagnosis:
    rows, means, samples = _prepare(data, center=center)
    scale = _cutoff_scale(data, rows, means, samples, rtol, center=center)
    found = subspace.spectrum(rows, scale)
    d1, d2 = rows[0].shape[1], rows[1].shape[1]
    return Diagnosis(
        singular_values=found.singular_values,
        energies=found.energies,
        view_energies=jnp.stack([jnp.sum(block**2) for block in rows]),
        cutoff=found.cutoff,
        ranks=found.ranks,
        rank=d1 + d2 - found.null_dimension,
        null_dimension=found.null_dimension,
        informative_dimension=found.informative_dimension,
        samples=samples,
        dims=(d1, d2),
        center=center,
    )


def diagnose(
    data: Views | statistics.Statistic, *, center: bool = False, rtol: float | None = None
) -> Diagnosis:
    """Say what the data allows: spectrum, ranks, and the anatomy of the null space.

    The null space of the stacked matrix ``[X1, -X2]`` has a trivial part, directions on which both
    latents are zero, and an informative part. Only the second is worth having. jit and vmap work.

    Args:
        data: paired rows ``(x1, x2)`` of shapes ``(n, d1)`` and ``(n, d2)``, or a statistic.
        center: remove the means first.
        rtol: singular values at or below this share of the largest count as zero; by default
            rounding alone.

    Returns:
        A ``Diagnosis``; ``print`` it for a summary.

    Raises:
        TypeError: if the data is neither, or does not hold real numbers.
        ValueError: if the shapes do not fit, or a value is not finite.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> z = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> diagnosis = pa.diagnose((z @ np.ones((2, 5), np.float32), z))
        >>> diagnosis.ranks.tolist(), int(diagnosis.informative_dimension)
        ([1, 2], 1)
    """
    _check_rtol(rtol)
    checked = _checked(data, center=bool(center))
    rtol = coarser_rounding(data) if rtol is None else rtol
    return _diagnose(checked, rtol, center=bool(center))
