"""Kernel canonical correlations from the kernels of all rows, without their features.

With ``K_m`` a centred kernel and ``c_m`` its ridge, ``S_m = K_m (K_m + c_m I)^{-1}`` is what ridge
regression makes of any values of the rows. The latents ``u_m`` of all rows satisfy
``S_1 u_2 = rho u_1`` and ``S_2 u_1 = rho u_2`` with ``u_m' S_m^{-1} u_m = 1`` (Hardoon et al. 2004,
in these terms), so the leading ones come from products with ``S_1`` and ``S_2`` alone. A block
Krylov space of ``S_2 S_1`` holds them after a few; where it does not, they come from the whole.
Everything is done in float64 by the host's BLAS: a ridge of a thousandth costs three digits.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float

__all__ = ["center", "leading", "smoother"]

_Pair = tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]
_BLOCK = 8  # directions at once, in the time of one: it goes by reading the smoothers
_TOLERANCE = 1e-10  # of a latent's length, in what the equations leave over
_SHARE = 3  # beyond one in so many of all directions the whole is as fast
_EXHAUSTED = 1e-8  # share of a block that is new, below which the space has no more to give


def center(kernel: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Remove the means of the features from their inner products, in place.

    Returns:
        Mean of every column before, shape ``(n,)``.
    """
    means = kernel.mean(axis=0)
    kernel -= means[None, :]
    kernel -= (means - means.mean())[:, None]
    return means


def smoother(kernel: Float[np.ndarray, "n n"], ridge: float) -> Float[np.ndarray, "n n"]:
    """``K (K + c I)^{-1}``, in place of the centred kernel, by ``I - c (K + c I)^{-1}``."""
    n = len(kernel)
    kernel[np.diag_indices(n)] += ridge
    # Symmetric, so its transpose is what LAPACK takes without a copy.
    lower, failed = scipy.linalg.lapack.dpotrf(kernel.T, lower=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("a kernel with its ridge is not positive definite")
    inverse, _ = scipy.linalg.lapack.dpotri(lower, lower=1, overwrite_c=1)
    found = inverse.T
    for row in range(n - 1):  # the half that LAPACK leaves
        found[row + 1 :, row] = found[row, row + 1 :]
    found *= -ridge
    found[np.diag_indices(n)] += 1
    return found


def leading(
    first: Float[np.ndarray, "n n"], second: Float[np.ndarray, "n n"], k: int, noise: float
) -> tuple[Float[np.ndarray, " k"], _Pair, _Pair]:
    """The ``k`` largest correlations, fewer if there are not as many, with what belongs to them.

    Args:
        first: smoother of the first view.
        second: of the second view.
        k: at most ``n``.
        noise: what rounding has left in the smoothers. A direction that the first lets through with
            less than the root of it is not looked at: its square would be noise.

    Returns:
        Correlations; latents of both views, of unit length under kernel and ridge; and the dual
        coefficients that make them of the kernels, times the ridges.
    """
    found = _in_krylov_space(first, second, k, noise)
    if found is not None and _misses(first, second, *found, noise):
        found = None
    if found is None:
        squares, weights = _pencil(np.eye(len(first)), first, second @ first, k, noise)
        found = squares, second @ (first @ weights)
    squares, start = found
    rho = np.sqrt(np.maximum(squares, 0))
    safe = np.where(rho > 0, rho, 1)
    # Once more by both: what the smoothers do not let through is not in it, such as a mean.
    start = start / safe**2
    u1 = first @ start / safe
    u2 = second @ u1 / safe
    return np.minimum(rho, 1), (u1, u2), (start / safe - u1, u1 / safe - u2)


def _misses(
    first: Float[np.ndarray, "n n"],
    second: Float[np.ndarray, "n n"],
    squares: Float[np.ndarray, " k"],
    start: Float[np.ndarray, "n k"],
    noise: float,
) -> bool:
    """Whether a correlation is left that is larger than the last one found.

    Of more equal ones than a block a Krylov space shows as many as a block, and not that there are
    others; without those that were found it would.
    """
    if squares[-1] <= 0:
        return True
    vectors = start / squares  # of length rho under the first smoother
    away = vectors, first @ (vectors / squares)
    others = _in_krylov_space(first, second, 1, noise, away)
    return others is None or bool(others[0][0] > squares[-1] * (1 + _TOLERANCE))


def _in_krylov_space(
    first: Float[np.ndarray, "n n"],
    second: Float[np.ndarray, "n n"],
    k: int,
    noise: float,
    away: _Pair | None = None,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n k"]] | None:
    """Squared correlations, and ``S_2 S_1`` times the second view's latents.

    None if the space would have to be large, or is exhausted: then there are more equal
    correlations than a block holds, or few in all, and it cannot tell. ``away`` are latents to
    leave out, and what measures a column's share of them.
    """

    def leave_out(columns: Float[np.ndarray, "n b"]) -> Float[np.ndarray, "n b"]:
        return columns if away is None else columns - away[0] @ (away[1].T @ columns)

    n = len(first)
    most = n // _SHARE // _BLOCK * _BLOCK  # columns; S_1 and S_2 S_1 times the basis beside it
    basis, once, twice = (np.empty((n, most), order="F") for _ in range(3))
    # A start that is fixed, and like no other: nothing else is drawn.
    block = leave_out(second @ np.random.default_rng(0).normal(size=(n, min(_BLOCK, n))))
    check = k + _BLOCK  # columns at which to look
    for size in range(_BLOCK, most + 1, _BLOCK):
        there, new = basis[:, : size - _BLOCK], slice(size - _BLOCK, size)
        largest = np.linalg.norm(block, axis=0).max()
        block, upper = np.linalg.qr(block - there @ (there.T @ block))
        if np.abs(np.diagonal(upper)).min() <= _EXHAUSTED * largest:
            return None
        # Once leaves what rounding leaves, and twice does not.
        block = np.linalg.qr(block - there @ (there.T @ block))[0]
        basis[:, new], once[:, new] = block, first @ block
        block = twice[:, new] = leave_out(second @ once[:, new])
        if size >= check:
            parts = basis[:, :size], once[:, :size], twice[:, :size]
            squares, weights = _pencil(*parts, k, noise)
            start, found = twice[:, :size] @ weights, basis[:, :size] @ weights
            lost = np.linalg.norm(start - squares * found, axis=0)
            if len(squares) == k and (lost <= _TOLERANCE * np.linalg.norm(found, axis=0)).all():
                return squares, start
            check += max(check // 3, _BLOCK)
    return None


def _pencil(
    basis: Float[np.ndarray, "n m"],
    once: Float[np.ndarray, "n m"],
    twice: Float[np.ndarray, "n m"],
    k: int,
    noise: float,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "m k"]]:
    """Squared correlations within a basis, and the second view's latents in it."""
    values, vectors = np.linalg.eigh(_symmetric(basis.T @ once))
    kept = values > np.sqrt(noise * max(values[-1], noise))
    root = vectors[:, kept] / np.sqrt(values[kept])
    inner = _symmetric(root.T @ (once.T @ twice) @ root)
    squares, turn = np.linalg.eigh(inner)
    squares, weights = squares[::-1][:k], root @ turn[:, ::-1][:, :k]
    # Of unit length under S_1; under the inverse of S_2 they shall be.
    return squares, weights * np.sqrt(np.maximum(squares, 0))


def _symmetric(matrix: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    return (matrix + matrix.T) / 2
