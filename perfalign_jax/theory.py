"""What random matrix theory says of alignment errors, to be drawn beside measured ones.

The setting is the paper's: ``n`` pairs of latents with ``latents`` dimensions (the paper's k, here
k*), seen through maps with random entries in ``d`` features of both modalities together, with
``noise`` of one standard deviation in both, in units of the views; ``k`` is the dimension of the
fit. Everything is for orthonormal alignments of the raw views (``fit`` with ``select="trailing"``)
whose signal is much stronger than the noise. The laws are those of many dimensions. Simulated
errors lie within 3 % of them from ten latents on, with ten features and samples beyond those;
within about 10 % with three to five; the error on new pairs is up to a quarter less at
``n = k* + 1``.

Host functions of plain numbers; they raise a ``TypeError`` if one is of the wrong kind, and a
``ValueError`` if it is out of range. Errors are in units of the latents.
"""

import math

import numpy as np

from perfalign_jax import _checks

__all__ = ["chi_mean", "held_out_cmae", "largest_perfect_k", "training_cmae"]

_MAP_VARIANCE = 10.0**2 / 12  # of entries uniform on [-5, 5]
_SPIKES = 2  # the mixture's two means: as many latent directions are far stronger than the others


def chi_mean(k: int | float) -> float:
    """Return the mean length of a standard normal vector of ``k > 0`` dimensions.

    ``sqrt(2) * Gamma((k + 1) / 2) / Gamma(k / 2)``; ``k`` need not be an integer. Errors are raised
    as the module says.

    Example:
        >>> from perfalign_jax.theory import chi_mean
        >>> round(chi_mean(2), 4)
        1.2533
    """
    _checks.positive(k, "k")
    if k > 1e5:  # the logarithms below would cancel
        return math.sqrt(k - 0.5)
    return math.sqrt(2) * math.exp(math.lgamma((k + 1) / 2) - math.lgamma(k / 2))


def largest_perfect_k(n: int, d: int, *, latents: int, noise: int | float = 0.0) -> int:
    """Return the largest ``k`` at which the training error is zero: ``d`` minus the rank.

    Without noise the rank is at most that of the latents, so ``k <= d - k*``; with noise it is full
    and only few samples leave a null space: ``k <= d - n``. Arguments and errors are the module's.

    Source: paper Theorem 2.2 (the rank condition), with the rank of Eq. 11.

    Example:
        >>> from perfalign_jax.theory import largest_perfect_k
        >>> largest_perfect_k(2000, 40, latents=10), largest_perfect_k(25, 40, latents=10, noise=1)
        (30, 15)
    """
    _check_sizes(n, d, latents, noise)
    return d - min(n, d if noise > 0 else min(latents, d))


def held_out_cmae(n: int, d: int, k: int, *, latents: int, noise: int | float) -> float:
    """Return the expected alignment error on new pairs, where the maps are learnt from noisy ones.

    The rows of A are orthonormal and know nothing of a new pair's noise, which therefore leaves a
    residual of length ``noise * chi_k``, with mean ``noise * chi_mean(k)``. With finite ``n`` the
    rows also leak some signal, as a regression on the latents with noise does: the squared residual
    grows by ``1 + q`` with ``q`` Hotelling's statistic of the new latent, whose mean square root
    for Gaussian latents is a ratio of Beta functions. NaN where this does not hold: for
    ``k > d - k*`` signal itself remains, and with ``n <= k*`` the signal is not known. Arguments
    and errors are the module's.

    Source: the residual of Eq. 8 under the noise of the paper's Section 3.1.

    Example:
        >>> from perfalign_jax.theory import held_out_cmae
        >>> round(held_out_cmae(10**6, 20, 2, latents=2, noise=0.1), 4)
        0.1253
    """
    _check_sizes(n, d, latents, noise)
    k = _checks.integer(k, "k", low=1, high=d)
    if k > d - latents or n <= latents:
        return math.nan
    half = latents / 2
    leak = _log_beta((n - latents) / 2, half) - _log_beta((n - latents + 1) / 2, half)
    return noise * chi_mean(k) * math.exp(leak)


def training_cmae(n: int, d: int, k: int, *, latents: int, noise: int | float) -> float:
    """Return the expected alignment error on the training pairs.

    The fit takes the ``k`` directions of least residual, so this is a sum over the lower tail of a
    spectrum, here the law of Marchenko and Pastur. Of the noise, ``(n - k*)`` by ``(d - k*)``
    independent entries remain after the signal is removed: nothing up to ``n = d - k``, where fewer
    samples than directions leave zeros, and from there the smallest squared singular values.
    Directions beyond ``d - k*`` hold signal: the smallest singular values of the maps themselves.
    NaN where signal cannot be told from noise (``n <= k*`` above the threshold), and where the last
    two directions, along the mixture's means, are taken in as well. Arguments and errors are the
    module's.

    Source: Marchenko & Pastur (1967) for the residual of Corollary 2.3.

    Example:
        >>> from perfalign_jax.theory import training_cmae
        >>> training_cmae(20, 40, 20, latents=20, noise=1.0)
        0.0
        >>> round(training_cmae(2000, 40, 20, latents=20, noise=1.0), 3)
        4.394
    """
    perfect = largest_perfect_k(n, d, latents=latents, noise=noise)
    if _checks.integer(k, "k", low=1, high=d) <= perfect:
        return 0.0
    if n <= latents:
        return math.nan
    rest = max(d - latents, 0)  # directions without signal
    inside = min(k, rest)
    sums = np.zeros(2)
    if noise > 0 and inside:
        tail = _lower_tail(n - latents, rest, inside)
        sums += tail * np.array([noise**2 / n, (noise**2 / n) ** 2])
    if k > inside:
        columns, rows = min(latents, d) - _SPIKES, max(latents, d) - _SPIKES
        if k - inside > columns:
            return math.nan
        tail = _lower_tail(rows, columns, k - inside)
        sums += tail * np.array([_MAP_VARIANCE, _MAP_VARIANCE**2])
        sums[0] += (k - inside) * noise**2
    square, fourth = sums
    # A sum of squared normals of unequal variances has the mean length of so many equal ones.
    equal = square**2 / fourth
    return math.sqrt(square / equal) * chi_mean(equal)


def _lower_tail(rows: int, columns: int, count: int) -> np.ndarray:
    """Sums of the ``count`` smallest eigenvalues of N'N, and of their squares.

    N has standard normal entries, in the limit of many rows and columns of that ratio. With
    ``lambda = 1 + c + 2 sqrt(c) cos(t)`` the law of N'N / rows has the density
    ``2 sin(t)^2 / (pi lambda)`` in t, and as many zeros as N lacks rows.
    """
    ratio = columns / rows
    t = np.linspace(np.pi, 0, 20001)
    eigenvalue = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(t)
    moments = 2 * np.sin(t) ** 2 / np.pi
    steps = np.diff(-t)
    middle = (eigenvalue[1:] + eigenvalue[:-1]) / 2
    first = (moments[1:] + moments[:-1]) / 2 * steps
    mass = np.cumsum(first / middle) + max(0.0, 1 - 1 / ratio)
    wanted = count / columns
    share = np.interp(wanted, mass, np.cumsum(first))
    squares = np.interp(wanted, mass, np.cumsum(first * middle))
    return np.array([share * columns * rows, squares * columns * rows**2])


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _check_sizes(n: int, d: int, latents: int, noise: int | float) -> None:
    _checks.integer(n, "n", low=1)
    _checks.integer(d, "d", low=2)
    _checks.integer(latents, "latents", low=1)
    _checks.positive(noise, "noise", zero=True)
