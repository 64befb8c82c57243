"""What ``A X = 0`` leaves free, and two ways to settle it.

If ``A1, A2`` align two views, so do ``G A1, G A2`` for every invertible ``G``: the latents are
known up to a change of basis, and no error measured on pairs can tell one basis from another.
``canonicalize`` settles it without further knowledge, so that runs and machines agree;
``calibrate`` settles it with a few samples whose true latents are known.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perfalign_jax import _checks, statistics
from perfalign_jax._numerics import compress, flip_signs, matmul, rank_cutoff
from perfalign_jax.statistics import Statistic
from perfalign_jax.types import Alignment, Views

__all__ = ["apply_gauge", "calibrate", "canonicalize"]

_ArrayLike = Array | np.ndarray


def apply_gauge(
    alignment: Alignment,
    matrix: Float[_ArrayLike, "q k"],
    *,
    offset: Float[_ArrayLike, " q"] | None = None,
) -> Alignment:
    """Change the basis of the latent space: every latent ``z`` becomes ``matrix @ z + offset``.

    Args:
        alignment: with ``k`` latent dimensions.
        matrix: the change of basis, shape ``(q, k)``.
        offset: shape ``(q,)``, in units of the new latents; zeros if not given.

    Returns:
        The alignment with ``q`` latent dimensions, in its dtype. Its ``singular_values`` are the
        residuals of the new rows, ``sqrt(sum_j matrix_ij^2 s_j^2)``, exact for a perfect alignment;
        it has no ``coupling``, which belongs to the axes that were mixed.

    Raises:
        TypeError: if ``matrix`` or ``offset`` does not hold real numbers.
        ValueError: if a shape does not fit, there are NaN, or the alignment has evidence or lifts.

    Source: the paper's "Key Insights" in Section 3.1 (solutions are unique up to such a map).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines, gauge
        >>> x = np.eye(3, dtype="float32")
        >>> double = gauge.apply_gauge(baselines.identity((x, x)), 2 * x)
        >>> double.projections[0].diagonal().tolist()
        [2.0, 2.0, 2.0]
    """
    _check_linear(alignment)
    g = _checks.array(matrix, "matrix", ndim=2, shape="(q, k)")
    if g.shape[1] != alignment.k:
        raise ValueError(
            f"matrix must have as many columns as the alignment has latent dimensions, "
            f"k = {alignment.k}, got shape {g.shape}."
        )
    shift = jnp.zeros((g.shape[0],), g.dtype)
    if offset is not None:
        shift = _checks.array(offset, "offset", ndim=1, shape="(q,)")
        if shift.shape != (g.shape[0],):
            raise ValueError(
                f"offset must have one entry for each of the {g.shape[0]} rows of matrix, "
                f"got shape {shift.shape}."
            )
    return _apply(alignment, g, shift)


def canonicalize(alignment: Alignment, data: Views | Statistic) -> Alignment:
    """Turn the latents to their principal axes, the one of most energy first.

    The result is the same for every rotation of the alignment that comes in, so runs, methods and
    machines can be compared row by row. Energy is the sum of squares of the latents of both views,
    about their means if the alignment is centred. Rows whose energies are equal to rounding, as
    all trivial directions are, have no principal axes; a fixed rule on their entries orders them.
    In every row the entry of largest magnitude is positive. Only a rotation is applied: orthonormal
    rows stay orthonormal, and every error between the views stays what it was.

    Args:
        alignment: of the views' numbers of features.
        data: arrays of paired rows, shapes ``(n, d_m)``, or a statistic of them; usually what the
            alignment was fitted to.

    Returns:
        The rotated alignment; ``singular_values`` follow as in ``apply_gauge``.

    Raises:
        TypeError: if ``data`` is no tuple of real arrays.
        ValueError: if the views do not fit together or not to the alignment, or have NaN, or the
            alignment has evidence or lifts.

    Source: the paper's "Key Insights" in Section 3.1 names the freedom; the choice is this
    package's.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines, gauge
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype("float32")
        >>> views = (x * np.float32([1, 5]), x * np.float32([1, 5]))
        >>> turned = gauge.canonicalize(baselines.identity(views), views)
        >>> np.abs(turned.projections[0]).argmax(axis=1).tolist()
        [1, 0]
    """
    _check_linear(alignment)
    state = statistics.as_statistic(data)
    if state.dims != alignment.dims:
        raise ValueError(
            f"data must have the alignment's {alignment.dims} features, got {state.dims}."
        )
    return _apply(
        alignment,
        _principal_axes(alignment.projections, state, center=alignment.center),
        jnp.zeros_like(alignment.offset),
    )


def calibrate(
    alignment: Alignment,
    views: tuple[_ArrayLike | None, ...],
    latents: Float[_ArrayLike, "m q"],
) -> Alignment:
    """Fit the affine change of basis that brings the latents of a few samples to known values.

    One matrix and one offset serve all modalities, so anchors seen in one modality calibrate the
    other as well. They are the least-squares solution over the anchors of the modalities given;
    ``k + 1`` anchors without noise determine them.

    Args:
        alignment: with ``k`` latent dimensions.
        views: the anchors as ``(x1, x2, ...)``, shapes ``(m, d_v)``; ``None`` in place of a
            modality in which they were not seen.
        latents: their true latents, shape ``(m, q)``; usually ``q = k``.

    Returns:
        The alignment with ``q`` latent dimensions, in units of ``latents``; ``singular_values``
        follow as in ``apply_gauge``.

    Raises:
        TypeError: if an array does not hold real numbers or ``views`` is no tuple.
        ValueError: if the alignment has evidence or lifts, shapes do not fit, there are NaN, there
            are fewer than ``k + 1`` anchors, or
            their estimated latents are affinely dependent (checked outside ``jit`` only, where such
            directions are mapped to zero).

    Source: the paper's Section 3.1 ("requires more information about Z"); MLRE is its Eq. 9.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines, gauge
        >>> z = np.random.default_rng(0).normal(size=(50, 2)).astype("float32")
        >>> views = (z @ np.float32([[1, 2], [0, 1]]), z @ np.float32([[3, 0], [1, 1]]))
        >>> alignment = baselines.cca(views, k=2)
        >>> fitted = gauge.calibrate(alignment, (views[0][:3], None), z[:3])
        >>> z2 = (views[1] - fitted.means[1]) @ fitted.projections[1].T + fitted.offset
        >>> bool(np.abs(z2 - z).max() < 1e-4)
        True
    """
    _check_linear(alignment)
    anchors = _anchors(alignment, views)
    target = _checks.array(latents, "latents", ndim=2, shape="(m, q)")
    some = next(x for x in anchors if x is not None)
    _checks.paired(target, some, "latents", "the anchors in views")
    count, k = some.shape[0], alignment.k
    if count < k + 1:
        raise ValueError(
            f"calibrate needs at least k + 1 = {k + 1} anchors to fit a matrix and an offset, "
            f"got {count}."
        )
    matrix, offset, rank = _calibration(
        anchors, alignment.means, alignment.projections, alignment.offset, target
    )
    if not _checks.is_traced(rank) and rank < k:
        raise ValueError(
            f"the anchors are affinely dependent: their estimated latents span {int(rank)} of "
            f"k = {k} dimensions about their mean. Take anchors that differ in more ways; if more "
            "of them do not help, the alignment has directions without energy and needs a "
            "smaller k."
        )
    return _apply(alignment, matrix, offset)


def _check_linear(alignment: Alignment) -> None:
    """Refuse what a change of basis would not fit any more."""
    if alignment.evidence is not None:
        raise ValueError(
            "alignment must have no evidence, which belongs to its axes one by one: a change of "
            "basis is for alignments of fit and of the baselines."
        )
    if alignment.lifts:
        raise ValueError("alignment must have no lifts: lift the views first and align those.")


def _anchors(
    alignment: Alignment, views: tuple[_ArrayLike | None, ...]
) -> tuple[Array | None, ...]:
    if not isinstance(views, tuple | list) or len(views) != len(alignment.dims):
        came = f"{len(views)} of them" if isinstance(views, tuple | list) else type(views).__name__
        raise TypeError(
            f"views must be a tuple of the alignment's {len(alignment.dims)} views (x1, x2, ...), "
            f"with None for a modality that is not there, got {came}."
        )
    anchors = tuple(
        x if x is None else _checks.array(x, f"x{m + 1}", ndim=2, shape=f"(m, d{m + 1})")
        for m, x in enumerate(views)
    )
    given = [(f"x{m + 1}", x) for m, x in enumerate(anchors) if x is not None]
    if not given:
        raise ValueError("views must hold the anchors of at least one modality, got none.")
    for name, other in given[1:]:
        _checks.paired(given[0][1], other, given[0][0], name)
    for m, x in enumerate(anchors):
        if x is not None and x.shape[1] != alignment.dims[m]:
            raise ValueError(
                f"x{m + 1} must have the alignment's {alignment.dims[m]} features, "
                f"got shape {x.shape}."
            )
    return anchors


def _apply(
    alignment: Alignment, matrix: Float[Array, "q k"], offset: Float[Array, " q"]
) -> Alignment:
    dtype = alignment.singular_values.dtype
    matrix, offset = matrix.astype(dtype), offset.astype(dtype)
    return dataclasses.replace(
        alignment,
        projections=tuple(matmul(matrix, p) for p in alignment.projections),
        singular_values=jnp.linalg.norm(matrix * alignment.singular_values[None, :], axis=1),
        offset=matmul(matrix, alignment.offset) + offset,
        coupling=alignment.coupling[:0],
    )


@functools.partial(jax.jit, static_argnames=("center",))
def _principal_axes(
    projections: tuple[Float[Array, "k _"], ...], state: Statistic, *, center: bool
) -> Float[Array, "k k"]:
    stacked = jnp.concatenate(projections, axis=1)
    k, d = stacked.shape
    rows = statistics.rows(state, center=center)
    latents = compress(
        jnp.concatenate([matmul(b, p.T) for b, p in zip(rows.blocks, projections, strict=True)])
    )
    _, sizes, axes = jnp.linalg.svd(latents, full_matrices=latents.shape[0] < k)
    sizes = jnp.concatenate([sizes, jnp.zeros((k - sizes.shape[0],), sizes.dtype)])

    # Axes of equal size, and those of none, form groups in which the axes are arbitrary so far.
    largest_row = jnp.linalg.norm(stacked, axis=1).max()
    scale = largest_row * jnp.sqrt(sum(jnp.sum(b * b) for b in rows.blocks))
    empty = sizes <= rows.rounding * scale
    gaps = sizes[:-1] - sizes[1:] > 32 * jnp.finfo(sizes.dtype).eps * sizes[0]
    group = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), gaps & ~empty[:-1]]))

    # Inside a group, the eigenvectors of fixed, distinct weights on the features decide.
    turned = matmul(axes, stacked)
    weights = jnp.linspace(0.5, 1, d, dtype=stacked.dtype)
    weighted = matmul(turned * weights[None, :], turned.T) / jnp.linalg.norm(stacked, ord=2) ** 2
    same = group[:, None] == group[None, :]
    apart = jnp.diag(2 * group.astype(stacked.dtype))  # keeps the groups in their order
    _, within = jnp.linalg.eigh(jnp.where(same, weighted, 0) + apart)
    matrix = matmul(within.T, axes)

    result = matmul(matrix, stacked)
    signs = jnp.where(jnp.sum(result * flip_signs(result), axis=1) < 0, -1, 1)
    return signs.astype(stacked.dtype)[:, None] * matrix


@jax.jit
def _calibration(
    anchors: tuple[Float[Array, "m _"] | None, ...],
    means: tuple[Float[Array, " _"], ...],
    projections: tuple[Float[Array, "k _"], ...],
    offset: Float[Array, " k"],
    target: Float[Array, "m q"],
) -> tuple[Float[Array, "q k"], Float[Array, " q"], Int[Array, ""]]:
    estimates, scales = [], []
    for x, mean, projection in zip(anchors, means, projections, strict=True):
        if x is not None:
            centred = x - mean[None, :]
            estimates.append(matmul(centred, projection.T) + offset[None, :])
            scales.append(jnp.linalg.norm(centred) * jnp.linalg.norm(projection))
    z = jnp.concatenate(estimates)
    wanted = jnp.concatenate([target] * len(estimates))
    z_mean, wanted_mean = jnp.mean(z, axis=0), jnp.mean(wanted, axis=0)
    u, s, vt = jnp.linalg.svd(z - z_mean[None, :], full_matrices=False)
    # The latents are known up to rounding in the data, not in the latents.
    features = sum(p.shape[1] for p in projections)
    keep = s > rank_cutoff(jnp.stack(scales), (target.shape[0], features))
    inverse = jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)
    matrix = matmul(matmul((wanted - wanted_mean[None, :]).T, u) * inverse[None, :], vt)
    return matrix, wanted_mean - matmul(matrix, z_mean), jnp.sum(keep)
