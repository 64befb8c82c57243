"""What perfect alignment is measured against, each in closed form and with the same result type.

Two families start from the same statistic as the solver:

- a map of each view into a shared space: ``cca``, ``ridge_cca``, ``ridge_cca_cv``,
  ``linear_contrastive``, and of its lifted features: ``kernel_cca``;
- a map of the first view into the space of the second, so that ``A2 = I`` and ``k = d2``:
  ``procrustes``, ``least_squares``, ``ridge_regression``, ``total_least_squares``.

``identity`` does nothing at all. No function keeps a direction below the rank cut-off, which is
mapped to zero, or inverts a matrix, but for a kernel with its ridge, and none forms a features x
features matrix for its factorisation when there are fewer rows than features.

All are about two views by nature. ``singular_values`` holds what every row leaves over,
``sqrt(sum_i (a_j1 . x_i1 - a_j2 . x_i2)^2)``, as for a perfect alignment; what the first family
made large is in ``coupling``.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perfalign_jax import _checks, _dual, kernels, statistics
from perfalign_jax._host import Tall
from perfalign_jax._numerics import (
    compress,
    eigh,
    flip_signs,
    matmul,
    namespace,
    solve_lower,
    solve_upper,
)
from perfalign_jax.statistics import Rows, Statistic
from perfalign_jax.types import Alignment, Views

__all__ = [
    "cca",
    "identity",
    "kernel_cca",
    "least_squares",
    "linear_contrastive",
    "procrustes",
    "ridge_cca",
    "ridge_cca_cv",
    "ridge_regression",
    "total_least_squares",
]

_Pair = tuple[Float[Array, "_ _"], Float[Array, "_ _"]]
_FEW = 4  # of so many times as many directions
_HALF = 1e-8  # half the digits of float64


def cca(data: Views | Statistic, *, k: int, center: bool = False) -> Alignment:
    """Canonical correlation analysis: the most correlated directions of two views.

    The latents of each view are uncorrelated with unit variance (over ``n``, or over the total
    weight). Stacked and whitened, the views have the singular values ``sqrt(1 -+ rho)``: CCA is
    perfect alignment of whitened views.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        k: number of latent dimensions, at most the smaller rank of the two views.
        center: remove the means first.

    Returns:
        Alignment with ``coupling`` the canonical correlations, largest first.

    Raises:
        TypeError: if ``data`` is no pair of real arrays or ``k`` no integer.
        ValueError: if the views do not fit together or have NaN, or ``k`` exceeds what their ranks
            allow (under ``jit``, only their shapes).

    Source: Hotelling (1936), compared with in the paper's Section 4; by one SVD for each view and
    one of the product of their left factors (Björck and Golub, 1973).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> z = np.random.default_rng(0).normal(size=(100, 2)).astype("float32")
        >>> alignment = baselines.cca((z @ np.float32([[1, 2], [0, 1]]), 5 * z), k=2)
        >>> np.asarray(alignment.coupling).round(3).tolist()
        [1.0, 1.0]
    """
    return _checked_cca(data, 0.0, k=k, center=center, method="cca")


def ridge_cca(
    data: Views | Statistic, *, k: int, ridge: float | Array, center: bool = False
) -> Alignment:
    """Ridge-regularised canonical correlation analysis; at ``ridge=0`` it is ``cca``.

    ``ridge`` is relative to the mean eigenvalue of each view's covariance: that of view ``m``
    becomes ``S_mm + ridge * tr(S_mm) / d_m * I``, so the answer does not depend on units. The
    latents have unit variance under this covariance, hence smaller variance under the data's own.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        k: number of latent dimensions, at most the smaller rank of the two views.
        ridge: zero or more, without unit.
        center: remove the means first.

    Returns:
        Alignment with ``coupling`` the regularised correlations, largest first.

    Raises:
        TypeError: if ``data`` is no pair of real arrays, ``k`` no integer or ``ridge`` no number.
        ValueError: if the views do not fit together or have NaN, ``ridge`` is negative, or ``k``
            exceeds what the ranks of the views allow (under ``jit``, only their shapes).

    Source: Vinod (1976); Hardoon et al. (2004), compared with in the paper's Section 4.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
        >>> alignment = baselines.ridge_cca((x, x), k=1, ridge=1.0)
        >>> bool(alignment.coupling[0] < 0.7)
        True
    """
    _checks.positive(ridge, "ridge", zero=True)
    return _checked_cca(data, ridge, k=k, center=center, method="ridge_cca")


def ridge_cca_cv(
    views: Views,
    *,
    k: int,
    ridges: Sequence[float] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    folds: int = 5,
) -> Alignment:
    """Ridge CCA with the ridge chosen by cross-validation: refits on all folds but one.

    What is compared is the sum of the ``k`` correlations on the fold left out, averaged over folds,
    as a grid search over scikit-learn's estimators does. Rows are held out in turn. Not for
    ``jit``: the choice is made on the host.

    Args:
        views: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``.
        k: number of latent dimensions.
        ridges: what to choose from, as in ``ridge_cca``.
        folds: how many parts the rows are held out in.

    Returns:
        ``ridge_cca`` of all rows, centred, with the ridge chosen.

    Raises:
        TypeError: if ``views`` is no pair of real arrays, or ``k`` or ``folds`` no integer.
        ValueError: if the views do not fit together, there are too few rows, or ``k`` exceeds what
            the ranks of a training set allow.

    Source: Vinod (1976); Stone (1974) for the choice.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
        >>> baselines.ridge_cca_cv((x, x), k=2).method
        'ridge_cca_cv'
    """
    x1, x2 = _checks.two_views(views)
    folds = _checks.integer(folds, "folds", low=2, high=max(2, len(x1) // 2))
    ridges = tuple(np.asarray(ridges, float).tolist())
    if not ridges:
        raise ValueError("ridges must hold at least one value, got none.")
    inside = np.arange(len(x1)) % folds
    totals = np.zeros(len(ridges))
    for fold in range(folds):
        train, test = (
            tuple(x[np.flatnonzero(rows)] for x in (x1, x2))
            for rows in (inside != fold, inside == fold)
        )
        for i, ridge in enumerate(ridges):
            fitted = ridge_cca(train, k=k, ridge=ridge, center=True)
            totals[i] += float(_correlate(fitted.projections, fitted.means, test))
    best = ridges[int(np.argmax(np.nan_to_num(totals, nan=-np.inf)))]
    chosen = ridge_cca((x1, x2), k=k, ridge=best, center=True)
    return dataclasses.replace(chosen, method="ridge_cca_cv")


@jax.jit
def _correlate(
    projections: tuple[Array, ...], means: tuple[Array, ...], views: tuple[Array, ...]
) -> Float[Array, ""]:
    """Sum over axes of the correlations of two views' latents."""
    z1, z2 = (
        matmul(x - mean[None, :], a.T) for x, mean, a in zip(views, means, projections, strict=True)
    )
    z1, z2 = (z - jnp.mean(z, axis=0)[None, :] for z in (z1, z2))
    size = jnp.sqrt(jnp.sum(z1**2, axis=0) * jnp.sum(z2**2, axis=0))
    return jnp.sum(jnp.sum(z1 * z2, axis=0) / jnp.where(size > 0, size, 1))


def kernel_cca(
    views: Views,
    *,
    k: int,
    ridge: float | Array,
    kernel: kernels.Kernel = "gaussian",
    factor: float = 1.0,
) -> Alignment:
    """Kernel CCA: ridge CCA of the features that a kernel has at all rows.

    Nothing is made of the features but their inner products, in float64 on the host. The lifts are
    the latents themselves: weighted sums of a row's kernel values at all rows.

    Args:
        views: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``; memory and time grow
            with the square and the cube of ``n``.
        k: number of latent dimensions, below ``n``.
        ridge: relative to the mean eigenvalue of each view's centred kernel, above zero: without
            a ridge the rows of any two kernels correlate perfectly.
        kernel: as in ``kernels.fit_nystroem``.
        factor: bandwidth over the median distance between rows.

    Returns:
        Alignment with ``lifts``, and ``coupling`` the regularised correlations, largest first.

    Raises:
        TypeError: if ``views`` is no pair of real arrays, ``k`` no integer or ``ridge`` no number.
        ValueError: if the views do not fit together, an option is out of range, or the kernels hold
            fewer than ``k`` correlations.

    Source: Akaho (2001); Hardoon et al. (2004).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.random.default_rng(0).normal(size=(50, 1)).astype("float32")
        >>> alignment = baselines.kernel_cca((x, x**2), k=1, ridge=0.1)
        >>> bool(alignment.coupling[0] > 0.8)
        True
    """
    arrays = _checks.two_views(views)
    n, dtype = len(arrays[0]), arrays[0].dtype
    if n < 2:
        raise ValueError(f"views must have at least two rows, got {n}.")
    k = _checks.integer(k, "k", low=1, high=n - 1, why=f" (below the {n} rows)")
    _checks.positive(ridge, "ridge")
    _checks.one_of(kernel, "kernel", kernels.KERNELS)
    _checks.positive(factor, "factor")
    lifts, columns, ridges, smoothers, noise = [], [], [], [], 0.0
    for x in arrays:
        found, values = kernels.kernel_of(np.asarray(x), kernel, factor)
        lifts.append(found)
        columns.append(_dual.center(values))
        mean = np.trace(values) / n
        if mean <= 0:
            raise ValueError(f"x{len(lifts)} must vary, but all its {n} rows are the same.")
        ridges.append(float(ridge) * mean)
        largest = np.abs(values).sum(axis=0).max()
        # What rounding of a row's kernel values makes of its latents, at most a hundredth.
        least = max(_HALF * largest, 100 * float(jnp.finfo(dtype).eps) * n**0.5)
        if not ridges[-1] > least:
            raise ValueError(
                f"ridge must be above {least / mean:.1e}, where these kernels lose too many "
                f"digits, got {float(ridge):g}."
            )
        smoothers.append(_dual.smoother(values, ridges[-1]))
        noise = max(noise, 4 * float(np.finfo(np.float64).eps) * (1 + largest / ridges[-1]))
    rho, latents, duals = _dual.leading(smoothers[0], smoothers[1], k, noise)
    top = float(rho.max(initial=0))
    floor = 2 * top * np.sqrt(np.sqrt(noise / max(top, noise)))
    kept = int((rho > floor).sum())
    if k > kept:
        raise ValueError(
            f"k must be at most {kept}: other correlations of these kernels are below {floor:.1e}, "
            f"where rounding hides them; got {k}."
        )
    size = np.sqrt(n)
    pair = _flip_pair(*(size * (dual / c).T for dual, c in zip(duals, ridges, strict=True)))
    lifts = [
        jax.tree.map(lambda a: jnp.asarray(a, dtype), dataclasses.replace(found, weights=own.T))
        for found, own in zip(lifts, pair, strict=True)
    ]
    residuals = jnp.asarray(size * np.linalg.norm(latents[0] - latents[1], axis=0), dtype)
    return Alignment(
        projections=(jnp.eye(k, dtype=dtype),) * 2,
        singular_values=residuals,
        means=tuple(
            jnp.asarray(own @ mean, dtype) for own, mean in zip(pair, columns, strict=True)
        ),
        offset=jnp.zeros_like(residuals),
        coupling=jnp.asarray(rho, dtype),
        lifts=tuple(lifts),
        method="kernel_cca",
        center=True,
    )


def linear_contrastive(
    data: Views | Statistic, *, k: int, rho: float | Array = 1.0, center: bool = False
) -> Alignment:
    """Linear contrastive alignment in closed form: the SVD of the cross-covariance.

    The minimiser of the linear contrastive loss ``-tr(A1 S12 A2') + rho / 2 |A1' A2|^2`` has
    ``A1' A2 = U_k diag(s_k) V_k' / rho`` with ``S12 = U diag(s) V'`` the cross-covariance (over
    ``n``; with a loss over the ``n (n - 1)`` negative pairs, ``rho`` is scaled by ``n / (n - 1)``).
    Of the factorisations that agree with it this is the symmetric one,
    ``A1 = diag(s_k / rho)^(1/2) U_k'``. The directions are those of PLS-SVD.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        k: number of latent dimensions, at most ``min(d1, d2)`` and the number of rows; rows beyond
            the rank of the cross-covariance are zero.
        rho: strength of the regulariser, above zero; it only scales the latents.
        center: remove the means first; otherwise ``S12`` is the uncentred cross-moment.

    Returns:
        Alignment with ``coupling`` the singular values of the cross-covariance, largest first.

    Raises:
        TypeError: if ``data`` is no pair of real arrays, ``k`` no integer or ``rho`` no number.
        ValueError: if the views do not fit together or have NaN, ``rho`` is not above zero, or
            ``k`` is out of range.

    Source: Nakada et al. (2023), the contrastive method of the paper's Fig. 3.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.float32([[1, 0], [-1, 0], [0, 2], [0, -2]])
        >>> round(float(baselines.linear_contrastive((x, 2 * x), k=1).coupling[0]), 4)
        4.0
    """
    _checks.positive(rho, "rho")
    state = _two_views(data, look=False)
    _check_k(state, k, center)
    tall = Tall.of(state, center=center, cross=True)
    if tall is None or _checks.is_traced(rho):
        return _linear_contrastive(state, rho, k=k, center=center)
    u, s, vt = _cross_of_moments(tall, k)
    coupling = s / np.asarray(tall.weight, s.dtype)
    scale = np.sqrt(coupling / np.asarray(rho, s.dtype))
    pair = _flip_pair(scale[:, None] * u.T, scale[:, None] * vt)
    return _on_host(tall, pair, coupling, center=center, method="linear_contrastive")


def procrustes(data: Views | Statistic, *, center: bool = False) -> Alignment:
    """Orthogonal Procrustes: the rotation (or reflection) of the first view onto the second.

    ``A2 = I`` and ``A1`` minimises ``sum_i |A1 x_i1 - x_i2|^2`` over the matrices with orthonormal
    columns (``d1 <= d2``) or maximises ``sum_i x_i2 . A1 x_i1`` over those with orthonormal rows
    (``d1 > d2``). Where the cross-covariance has less than full rank, ``A1`` is the unique partial
    isometry that maps to zero what the pairs do not determine.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        center: remove the means first.

    Returns:
        Alignment into the space of the second view, ``k = d2``, with ``singular_values`` the
        residual of every row, in units of the second view times ``sqrt(n)``.

    Raises:
        TypeError: if ``data`` is no pair of real arrays.
        ValueError: if the views do not fit together or have NaN.

    Source: Schönemann (1966).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
        >>> alignment = baselines.procrustes((x, x @ np.float32([[0, 1], [-1, 0]])))
        >>> (np.asarray(alignment.projections[0]).round(3) + 0.0).tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """
    state = _two_views(data, look=False)
    tall = Tall.of(state, center=center, cross=True)
    if tall is None:
        return _procrustes(state, center=center)
    u, s, vt = _cross_of_moments(tall, min(tall.dims))
    pair = (vt.T * (s > 0)) @ u.T, np.eye(state.dims[1], dtype=s.dtype)
    return _on_host(tall, pair, s[:0], center=center, method="procrustes")


def least_squares(data: Views | Statistic, *, center: bool = False) -> Alignment:
    """Ordinary least squares from the first view to the second.

    ``A2 = I`` and ``A1`` minimises ``sum_i |A1 x_i1 - x_i2|^2``: the paper's loss with one map held
    at the identity. Of several minimisers it is the one of smallest norm.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        center: remove the means first, which is a regression with an intercept.

    Returns:
        Alignment into the space of the second view, ``k = d2``, with ``singular_values`` the
        residual of every row, in units of the second view times ``sqrt(n)``.

    Raises:
        TypeError: if ``data`` is no pair of real arrays.
        ValueError: if the views do not fit together or have NaN.

    Source: the paper's Remark 2.6 (there from the second view to the first).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
        >>> alignment = baselines.least_squares((x, x @ np.float32([[1], [3]])))
        >>> np.asarray(alignment.projections[0]).round(3).tolist()
        [[1.0, 3.0]]
    """
    return _checked_regression(data, 0.0, center=center, method="least_squares")


def ridge_regression(
    data: Views | Statistic, *, ridge: float | Array, center: bool = False
) -> Alignment:
    """Ridge regression from the first view to the second; at ``ridge=0`` it is least squares.

    ``ridge`` is relative to the mean eigenvalue of the first view: the penalty is
    ``ridge * sum_i |x_i1|^2 / d1`` times ``|A1|^2``, so the answer does not depend on units.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        ridge: zero or more, without unit.
        center: remove the means first, which is a regression with an intercept.

    Returns:
        Alignment into the space of the second view, ``k = d2``, with ``singular_values`` the
        residual of every row, in units of the second view times ``sqrt(n)``.

    Raises:
        TypeError: if ``data`` is no pair of real arrays or ``ridge`` no number.
        ValueError: if the views do not fit together or have NaN, or ``ridge`` is negative.

    Source: Hoerl and Kennard (1970); the paper's Remark 2.6 with a penalty.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.eye(2, dtype="float32")
        >>> alignment = baselines.ridge_regression((x, x), ridge=1.0)
        >>> np.asarray(alignment.projections[0]).diagonal().round(3).tolist()
        [0.5, 0.5]
    """
    _checks.positive(ridge, "ridge", zero=True)
    return _checked_regression(data, ridge, center=center, method="ridge_regression")


def total_least_squares(data: Views | Statistic, *, center: bool = False) -> Alignment:
    """Total least squares from the first view to the second: errors in both views.

    With ``A`` the perfect alignment of ``k = d2`` it is ``A2^-1 A1``, here computed from the
    leading singular vectors, which needs no features x features factorisation and gives the
    solution of smallest norm where the data is consistent with many. It does not exist where
    ``A2`` is singular: when a change of the first view alone explains the pairs best, for instance
    with collinear columns in the first view and noise in the second.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        center: remove the means first.

    Returns:
        Alignment into the space of the second view (``A2 = I``, ``k = d2``), with
        ``singular_values`` the residual of every row, in units of the second view times
        ``sqrt(n)``.

    Raises:
        TypeError: if ``data`` is no pair of real arrays.
        ValueError: if the views do not fit together or have NaN, or no solution exists (under
            ``jit`` the solution then leaves out the directions that have none).

    Source: Golub and Van Loan (1980); Van Huffel and Vandewalle (1991) for the smallest norm.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> x = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
        >>> alignment = baselines.total_least_squares((x, x @ np.float32([[1], [3]])))
        >>> np.asarray(alignment.projections[0]).round(3).tolist()
        [[1.0, 3.0]]
    """
    alignment, missing = _total_least_squares(_two_views(data), center=center)
    if not _checks.is_traced(missing) and missing > 0:
        raise ValueError(
            f"total least squares has no solution for these views: {int(missing)} of the trailing "
            "singular directions of [x1, -x2] lie in x1 alone, so A2 is singular (collinear "
            "columns in x1 do this); use least_squares or ridge_regression, or drop them from x1."
        )
    return alignment


def identity(data: Views | Statistic, *, center: bool = False) -> Alignment:
    """No alignment: both views as they are, or their first ``min(d1, d2)`` coordinates.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or a statistic of them.
        center: remove the means.

    Returns:
        Alignment with ``k = min(d1, d2)`` and ``singular_values`` the residual of every row, in
        units of the data times ``sqrt(n)``.

    Raises:
        TypeError: if ``data`` is no pair of real arrays.
        ValueError: if the views do not fit together or have NaN.

    Source: none; the floor of every comparison.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import baselines
        >>> alignment = baselines.identity((np.ones((4, 2), "f4"), np.ones((4, 3), "f4")))
        >>> alignment.projections[1].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    return _identity(_two_views(data), center=center)


def _two_views(data: Views | Statistic, *, look: bool = True) -> Statistic:
    return statistics.as_statistic(data, views=2, look=look)


def _check_k(state: Statistic, k: int, center: bool) -> None:
    d1, d2 = state.dims
    rows = min(statistics.count_rows(state, center=center), d1 + d2)
    if rows == 0:
        raise ValueError("data must have at least two samples, got one: its centred views are 0.")
    why = f" (the smallest of d1 = {d1}, d2 = {d2} and the {rows} rows of the statistic)"
    _checks.integer(k, "k", low=1, high=min(rows, d1, d2), why=why)


def _rows(state: Statistic, *, center: bool) -> Rows:
    """Rows of the statistic, no more than features: factors of tall data would be tall."""
    rows = statistics.rows(state, center=center)
    small = compress(jnp.concatenate(rows.blocks, axis=1))
    d1 = state.dims[0]
    return rows._replace(blocks=(small[:, :d1], small[:, d1:]))


def _checked_cca(
    data: Views | Statistic, ridge: float | Array, *, k: int, center: bool, method: str
) -> Alignment:
    state = _two_views(data, look=False)
    _check_k(state, k, center)
    tall = Tall.of(state, center=center)
    if tall is not None and not _checks.is_traced(ridge):
        found = _cca_of_moments(tall, float(ridge), k=k, center=center, method=method)
        if found is not None:
            return found
    alignment, ranks = _cca(state, ridge, k=k, center=center, method=method)
    if not _checks.is_traced(ranks) and k > min(map(int, ranks)):
        raise ValueError(
            f"k must be at most the smaller rank of the two {'centred ' if center else ''}views, "
            f"which have rank {int(ranks[0])} and {int(ranks[1])}, got {k}."
        )
    return alignment


@functools.partial(jax.jit, static_argnames=("k", "center", "method"))
def _cca(
    state: Statistic, ridge: float | Array, *, k: int, center: bool, method: str
) -> tuple[Alignment, Int[Array, "2"]]:
    rows = _rows(state, center=center)
    lefts, backs, ranks = [], [], []
    for block, share in zip(rows.blocks, rows.roundings, strict=True):
        u, s, vt, keep = _svd(block, share)
        # 1 / sqrt(s^2 + penalty) on the directions kept, zero on the others; as shares of the
        # largest, whose square may not be a number.
        largest = jnp.max(s, initial=0)
        largest = jnp.where(largest > 0, largest, 1)
        share = s / largest
        penalty = ridge * jnp.sum(share * share) / block.shape[1]
        whiten = jnp.where(keep, 1 / jnp.sqrt(jnp.where(keep, share * share + penalty, 1)), 0)
        lefts.append(u * (share * whiten)[None, :])
        backs.append((whiten / largest)[:, None] * vt)
        ranks.append(jnp.sum(keep))
    p1, correlations, p2t = jnp.linalg.svd(matmul(lefts[0].T, lefts[1]), full_matrices=False)
    scale = jnp.sqrt(rows.weight)
    pair = _flip_pair(scale * matmul(p1[:, :k].T, backs[0]), scale * matmul(p2t[:k], backs[1]))
    coupling = jnp.minimum(correlations[:k], 1)
    return _result(rows, pair, coupling, center=center, method=method), jnp.stack(ranks)


def _cca_of_moments(
    tall: Tall, ridge: float, *, k: int, center: bool, method: str
) -> Alignment | None:
    """As ``_cca``, with the host's BLAS; None where squaring the data costs too many digits.

    Whitening errs by eps times the condition number of the moments with their ridge, where a
    factorisation of the rows errs by its root. It is taken where that is at most ``eps^(3/4)``, and
    where the moments show that both views have rank k.
    """
    d1, eps = tall.dims[0], np.finfo(tall.second.dtype).eps
    lowers = []
    for own in (tall.second[:d1, :d1], tall.second[d1:, d1:]):
        values = np.linalg.eigvalsh(own)
        if k > (values > 4 * len(own) * eps * values[-1]).sum():  # maybe beyond the rank
            return None
        penalty = np.asarray(ridge * np.trace(own) / len(own), own.dtype)
        if not (values[0] + penalty) * eps**0.75 > (values[-1] + penalty) * eps:
            return None
        lowers.append(np.linalg.cholesky(own + penalty * np.eye(len(own), dtype=own.dtype)))
    half = solve_lower(lowers[0], tall.second[:d1, d1:])
    p1, correlations, p2t = _leading_svd(solve_lower(lowers[1], half.T).T, k)
    scale = np.sqrt(tall.weight).astype(eps.dtype)
    pair = (scale * solve_upper(lower.T, p).T for lower, p in zip(lowers, (p1, p2t.T), strict=True))
    coupling = np.minimum(correlations, 1)
    return _on_host(tall, _flip_pair(*pair), coupling, center=center, method=method)


def _leading_svd(
    matrix: Float[np.ndarray, "d1 d2"], k: int
) -> tuple[Float[np.ndarray, "d1 k"], Float[np.ndarray, " k"], Float[np.ndarray, "k d2"]]:
    """The first ``k`` singular triplets.

    By eigenvectors of the smaller Gram matrix where few of many are asked for and squaring, which
    errs by ``eps (s_1 / s_k)^2`` where an SVD errs by ``eps s_1 / s_k``, leaves ``eps^(3/4)``.
    """
    if matrix.shape[0] < matrix.shape[1]:
        p, s, qt = _leading_svd(matrix.T, k)
        return qt.T, s, p.T
    last, limits = matrix.shape[1], np.finfo(matrix.dtype)
    largest = np.abs(matrix).max(initial=0)
    squares = limits.tiny**0.5 / limits.eps < largest < limits.max**0.5 / len(matrix)
    if squares and k <= last // _FEW:
        _, vectors = eigh(matrix.T @ matrix, k)
        basis, _ = np.linalg.qr(matrix @ vectors)
        turn, s, qt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
        if s[-1] > np.finfo(s.dtype).eps ** 0.125 * s[0]:
            return basis @ turn, s, qt
    p, s, qt = np.linalg.svd(matrix, full_matrices=False)
    return p[:, :k], s[:k], qt[:k]


def _cross_of_moments(
    tall: Tall, k: int
) -> tuple[Float[np.ndarray, "d1 p"], Float[np.ndarray, " p"], Float[np.ndarray, "p d2"]]:
    """The first ``k`` triplets of the cross-moment, zero below the rank cut-off."""
    u, s, vt = _leading_svd(tall.cross, k)
    cut = float(tall.rows().rounding) * s.max(initial=0)
    return u, np.where(s > cut, s, 0).astype(s.dtype), vt


def _checked_regression(
    data: Views | Statistic, ridge: float | Array, *, center: bool, method: str
) -> Alignment:
    """Regression by moments where squaring costs few digits, as in ``_cca_of_moments``."""
    state = _two_views(data, look=False)
    tall = Tall.of(state, center=center)
    if tall is not None and not _checks.is_traced(ridge):
        d1, eps = tall.dims[0], np.finfo(tall.second.dtype).eps
        own, cross = tall.second[:d1, :d1], tall.second[:d1, d1:]
        values, vectors = np.linalg.eigh(own)
        values = values + np.asarray(ridge, own.dtype) * np.trace(own) / len(own)
        if values[0] * eps**0.75 > values[-1] * eps:
            weights = (cross.T @ vectors / values) @ vectors.T
            pair = weights, np.eye(tall.dims[1], dtype=own.dtype)
            return _on_host(tall, pair, weights[:0, 0], center=center, method=method)
    return _regression(state, ridge, center=center, method=method)


def _on_host(tall: Tall, pair: tuple[Any, Any], coupling: Any, *, center: bool, method: str) -> Any:
    """As ``_result``, of what was computed with the host's BLAS."""
    root = tall.root(np.concatenate(pair, axis=1).T)
    residuals = jnp.asarray(np.linalg.norm(root, axis=0))
    return Alignment(
        projections=tuple(map(jnp.asarray, pair)),
        singular_values=residuals,
        means=tuple(jnp.asarray(mean if center else 0 * mean) for mean in tall.centre),
        offset=jnp.zeros_like(residuals),
        coupling=jnp.asarray(coupling),
        method=method,
        center=center,
    )


@functools.partial(jax.jit, static_argnames=("k", "center"))
def _linear_contrastive(state: Statistic, rho: float | Array, *, k: int, center: bool) -> Alignment:
    rows = _rows(state, center=center)
    u, s, v, keep = _cross_svd(rows)
    coupling = (s / rows.weight)[:k]
    scale = jnp.sqrt(jnp.where(keep[:k], coupling, 0) / rho)[:, None]
    pair = _flip_pair(scale * u[:, :k].T, scale * v[:, :k].T)
    return _result(rows, pair, coupling, center=center, method="linear_contrastive")


@functools.partial(jax.jit, static_argnames=("center",))
def _procrustes(state: Statistic, *, center: bool) -> Alignment:
    rows = _rows(state, center=center)
    u, _, v, keep = _cross_svd(rows)
    return _onto_second(
        rows, matmul(jnp.where(keep[None, :], v, 0), u.T), center=center, method="procrustes"
    )


@functools.partial(jax.jit, static_argnames=("center", "method"))
def _regression(state: Statistic, ridge: float | Array, *, center: bool, method: str) -> Alignment:
    rows = _rows(state, center=center)
    u, s, vt, keep = _svd(rows.blocks[0], rows.roundings[0])
    largest = jnp.max(s, initial=0)
    largest = jnp.where(largest > 0, largest, 1)
    penalty = ridge * jnp.sum((s / largest) ** 2) / rows.blocks[0].shape[1] * largest
    # s / (s^2 + penalty) without squaring, so that at zero penalty it is exactly 1 / s.
    safe = jnp.where(keep, s, 1)
    gain = jnp.where(keep, 1 / (safe + penalty * (largest / safe)), 0)
    weights = matmul(matmul(rows.blocks[1].T, u) * gain[None, :], vt)
    return _onto_second(rows, weights, center=center, method=method)


@functools.partial(jax.jit, static_argnames=("center",))
def _total_least_squares(state: Statistic, *, center: bool) -> tuple[Alignment, Int[Array, ""]]:
    rows = _rows(state, center=center)
    d1 = rows.blocks[0].shape[1]
    _, _, vt, keep = _svd(jnp.concatenate(rows.blocks, axis=1), rows.rounding)
    # The trailing singular vectors [A1, -A2] are orthogonal to the leading ones [L1, L2], so that
    # L1 W' = L2 is the same equation as A2 W = A1.
    leading = jnp.where(keep[:d1, None], vt[:d1], 0)
    u, s, wt, solvable = _svd(leading[:, :d1], rows.rounding)
    inverse = jnp.where(solvable, 1 / jnp.where(solvable, s, 1), 0)
    weights = matmul(matmul(leading[:, d1:].T, u) * inverse[None, :], wt)
    missing = jnp.sum(keep[:d1]) - jnp.sum(solvable)
    return _onto_second(rows, weights, center=center, method="total_least_squares"), missing


@functools.partial(jax.jit, static_argnames=("center",))
def _identity(state: Statistic, *, center: bool) -> Alignment:
    rows = _rows(state, center=center)
    k, dtype = min(state.dims), rows.weight.dtype
    pair = (jnp.eye(k, state.dims[0], dtype=dtype), jnp.eye(k, state.dims[1], dtype=dtype))
    return _result(rows, pair, jnp.zeros((0,), dtype), center=center, method="identity")


def _svd(
    block: Float[Array, "r c"], rounding: Array
) -> tuple[Float[Array, "r p"], Float[Array, " p"], Float[Array, "p c"], Bool[Array, " p"]]:
    """Thin SVD, and which of its directions lie above the rank cut-off."""
    u, s, vt = jnp.linalg.svd(block, full_matrices=False)
    return u, s, vt, s > rounding * jnp.max(s, initial=0)


def _cross_svd(
    rows: Rows,
) -> tuple[Float[Array, "d1 p"], Float[Array, " p"], Float[Array, "d2 p"], Bool[Array, " p"]]:
    """Thin SVD of ``B1' B2``, never larger than the number of rows where those are few."""
    bases, small = [], []
    for block in rows.blocks:
        tall = block.shape[0] < block.shape[1]
        basis, r = jnp.linalg.qr(block.T) if tall else (None, block.T)
        bases.append(basis)
        small.append(r)
    u, s, vt, keep = _svd(matmul(small[0], small[1].T), rows.rounding)
    u, v = (
        side if basis is None else matmul(basis, side)
        for basis, side in zip(bases, (u, vt.T), strict=True)
    )
    return u, s, v, keep


def _flip_pair(a1: Float[Any, "k d1"], a2: Float[Any, "k d2"]) -> tuple[Any, Any]:
    """Apply the sign rule to the rows of ``[A1, A2]``."""
    both = flip_signs(namespace(a1).concatenate((a1, a2), axis=1))
    return both[:, : a1.shape[1]], both[:, a1.shape[1] :]


def _onto_second(
    rows: Rows, weights: Float[Array, "d2 d1"], *, center: bool, method: str
) -> Alignment:
    pair = (weights, jnp.eye(weights.shape[0], dtype=weights.dtype))
    return _result(rows, pair, weights[:0, 0], center=center, method=method)


def _result(
    rows: Rows, pair: _Pair, coupling: Float[Array, " _"], *, center: bool, method: str
) -> Alignment:
    z1, z2 = (matmul(block, a.T) for block, a in zip(rows.blocks, pair, strict=True))
    residuals = jnp.linalg.norm(z1 - z2, axis=0)
    return Alignment(
        projections=pair,
        singular_values=residuals,
        means=rows.means if center else tuple(jnp.zeros_like(m) for m in rows.means),
        offset=jnp.zeros_like(residuals),
        coupling=coupling,
        method=method,
        center=center,
    )
