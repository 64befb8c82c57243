"""How many axes two views really share: random-matrix theory and a permutation test.

With ``d1`` and ``d2`` features and ``n`` rows, the sample's canonical correlations of unrelated
views are far from zero. Where both ratios ``d / n`` are fixed, theory says how far, and what a
correlation above that edge was before the sample inflated it. A permutation test makes no such
assumption.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from perfalign_jax import _checks, statistics
from perfalign_jax._numerics import matmul, rounding
from perfalign_jax.statistics import Statistic
from perfalign_jax.types import Alignment, Views

__all__ = ["AxesTest", "correlation_edge", "debias_correlations", "permutation_test"]

_LEVEL = 0.05
_TOGETHER = 16  # permutations in one program


def _coefficients(n: Any, d1: Any, d2: Any) -> tuple[Any, Any, Any]:
    """Of ``lambda = a x + b + c / x``, the squared sample correlation of a true square ``x``."""
    c1, c2 = d1 / n, d2 / n
    return (1 - c1) * (1 - c2), c1 * (1 - c2) + c2 * (1 - c1), c1 * c2


def _check_sizes(n: Any, d1: Any, d2: Any) -> None:
    for name, value in (("n", n), ("d1", d1), ("d2", d2)):
        _checks.positive(value, name)
    if not _checks.is_traced((n, d1, d2)) and d1 + d2 >= n:
        raise ValueError(
            f"n must be above d1 + d2 = {d1 + d2}, got {n}: with fewer rows some sample "
            "correlations are 1 whatever the views; measure on held-out rows."
        )


def correlation_edge(n: int | float, d1: int | float, d2: int | float) -> float:
    """Largest sample canonical correlation that unrelated views come to.

    Args:
        n: number of rows, less one where the means were removed.
        d1: rank of the first view.
        d2: rank of the second view, ``d1 + d2 < n``.

    Raises:
        ValueError: if there are not more rows than features.

    Source: Wachter (1980); Bykhovskaya and Gorin (2023).

    Example:
        >>> from perfalign_jax.significance import correlation_edge
        >>> round(correlation_edge(1000, 50, 80), 2)
        0.49
    """
    _check_sizes(n, d1, d2)
    a, b, c = _coefficients(n, d1, d2)
    return float(b + 2 * (a * c) ** 0.5) ** 0.5


def debias_correlations(
    correlations: Float[Array | np.ndarray, " k"],
    *,
    n: int | float,
    d1: int | float,
    d2: int | float,
) -> Float[Array, " k"]:
    """What canonical correlations were before a sample of ``n`` rows inflated them.

    A true correlation with square ``x`` appears in the sample with square
    ``x (1 - c1 + c1 / x) (1 - c2 + c2 / x)``, ``c = d / n``, if ``x > sqrt(c1 c2 / ((1 - c1) (1 -
    c2)))``; smaller ones are not seen, and come out as 0.

    Args:
        correlations: sample canonical correlations, without a ridge, shape ``(k,)``.
        n: number of rows, less one where the means were removed.
        d1: rank of the first view.
        d2: rank of the second view, ``d1 + d2 < n``.

    Raises:
        ValueError: if there are not more rows than features.

    Source: Bao, Hu, Pan and Zhou (2019), Theorem 1.8; Bykhovskaya and Gorin (2023).

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.significance import debias_correlations
        >>> debias_correlations(jnp.array([0.9, 0.4]), n=1000, d1=50, d2=80).round(2).tolist()
        [0.8799999952316284, 0.0]
    """
    _check_sizes(n, d1, d2)
    a, b, c = _coefficients(n, d1, d2)
    rest = jnp.asarray(correlations) ** 2 - b
    inside = rest**2 - 4 * a * c
    seen = (rest > 0) & (inside > 0)
    square = (rest + jnp.sqrt(jnp.where(seen, inside, 1))) / (2 * a)
    return jnp.where(seen, jnp.sqrt(jnp.clip(jnp.where(seen, square, 1), 0, 1)), 0)


@dataclasses.dataclass(frozen=True)
class AxesTest:
    """Whether each axis is more than chance.

    Attributes:
        correlations: of the sample, largest first, for as many axes as were tested.
        p_values: of the hypothesis that no more than the axes before it are shared; they never
            fall, so stopping at the first above a level keeps the chance of one false axis below
            it.
        permutations: how many there were.

    Example:
        >>> from perfalign_jax.significance import AxesTest
        >>> AxesTest(np.array([0.9, 0.2]), np.array([0.005, 0.4]), 199).count()
        1
    """

    correlations: Float[np.ndarray, " k"]
    p_values: Float[np.ndarray, " k"]
    permutations: int

    def count(self, *, level: float = _LEVEL) -> int:
        """How many axes are real at a level."""
        return int(np.argmax(np.append(self.p_values > level, True)))


def permutation_test(
    data: Views | Statistic,
    *,
    key: Key[Array, ""],
    permutations: int = 199,
    ridge: float = 0.0,
    groups: Any = None,
    most: int = 20,
    alignment: Alignment | None = None,
) -> AxesTest:
    """Test, axis by axis, whether two views share more than chance, by permuting whitened rows.

    The rows of the first view's whitened scores are shuffled against the second's, without a refit:
    whitening looks at one view at a time. For the next axis the ones before it are taken out of
    both. Testing stops at the first axis above the level of 0.05, or at ``most``.

    Args:
        data: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``, or ``Samples`` of them.
        key: random key.
        permutations: how many; the smallest p-value is one over it plus one.
        ridge: of the whitening, relative to the mean eigenvalue of each view.
        groups: shape ``(n,)``, such as subjects: their rows stay together, and whole groups of
            equal size change places.
        most: how many axes to test at most.
        alignment: one of the same views; a warning says so where it uses fewer axes than are real
            or none where some are.

    Raises:
        TypeError: if the data are no two arrays of real numbers, or ``key`` is none.
        ValueError: if shapes do not fit, weights differ, or no two groups are of equal size.

    Warns:
        UserWarning: if the alignment and the test disagree.

    Source: Winkler, Renaud, Smith and Nichols (2020), with Roy's largest root.

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.significance import permutation_test
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=(100, 1))
        >>> x1, x2 = (np.float32(z + rng.normal(size=(100, 3)) / 2) for _ in range(2))
        >>> permutation_test((x1, x2), key=jax.random.key(0)).count()
        1
    """
    state: Any = statistics.as_statistic(data, center=True, views=2)
    if statistics.as_parts(state) is not None:
        raise TypeError("data must hold its rows, as views or Samples: moments cannot be permuted.")
    _checks.key(key)
    permutations = _checks.integer(permutations, "permutations", low=1)
    most = _checks.integer(most, "most", low=1)
    _checks.positive(ridge, "ridge", zero=True)
    weights = None if state.weights is None else np.asarray(state.weights)
    if weights is not None and (weights != weights[0]).any():
        raise ValueError(
            "data must not have weights that differ: rows change places, so each must count as "
            "much as any other."
        )
    n = state.samples
    movable = _check_movable(groups, n)
    u, v, values = _whiten(state.views, jnp.asarray(ridge, state.dtype))
    p_values: list[float] = []
    numbers = range(permutations)
    for axis in range(min(most, len(values))):
        largest = np.concatenate(
            [
                np.asarray(_largest(u, v, _draw_orders(key, n, some, movable), axis))
                for some in (numbers[i : i + _TOGETHER] for i in numbers[::_TOGETHER])
            ]
        )
        extreme = int((largest >= float(values[axis]) * (1 - 1e-6)).sum())
        p_values.append(max([(1 + extreme) / (1 + permutations), *p_values[-1:]]))
        if p_values[-1] > _LEVEL:
            break
    found = AxesTest(np.asarray(values)[: len(p_values)], np.array(p_values), permutations)
    if alignment is not None:
        _compare(alignment, found)
    return found


def _check_movable(groups: Any, n: int) -> list[np.ndarray] | None:
    """The rows of every group."""
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), got shape {labels.shape}.")
    _, number = np.unique(labels, return_inverse=True)
    members = [np.flatnonzero(number == g) for g in range(number.max() + 1)]
    sizes = np.array([len(rows) for rows in members])
    if len(np.unique(sizes)) == len(sizes):
        raise ValueError(
            "groups must have at least two of equal size, to change places, got sizes "
            f"{sorted(sizes.tolist())}."
        )
    return members


def _draw_orders(
    key: Array, n: int, numbers: Sequence[int], members: list[np.ndarray] | None
) -> Int[np.ndarray, "b n"]:
    """Some of the permutations, the same whenever they are drawn: all at once may not fit."""
    seed = np.asarray(jax.random.key_data(key)).tolist()
    orders = np.empty((len(numbers), n), np.int32)
    for order, number in zip(orders, numbers, strict=True):
        rng = np.random.default_rng([*seed, number])
        if members is None:
            order[:] = rng.permutation(n)
            continue
        sizes = np.array([len(rows) for rows in members])
        for size in np.unique(sizes):
            same = np.flatnonzero(sizes == size)
            for here, there in zip(same, rng.permutation(same), strict=True):
                order[members[here]] = members[there]
    return orders


@jax.jit
def _whiten(views: tuple[Array, ...], ridge: Array) -> tuple[Array, Array, Array]:
    """Canonical scores of both views and their correlations."""
    whitened, tiny = [], jnp.finfo(ridge.dtype).tiny
    for x in views:
        mean = jnp.mean(x, axis=0)
        x = x - mean[None, :]
        u, s, _ = jnp.linalg.svd(x, full_matrices=False)
        common = x.shape[0] * matmul(mean, mean) / jnp.maximum(jnp.sum(s**2), tiny)
        penalty = ridge * jnp.sum(s**2) / x.shape[1]
        keep = s > rounding(s.dtype, *x.shape, common=common) * s[0]
        shrunk = jnp.where(keep, s * jax.lax.rsqrt(jnp.where(keep, s**2 + penalty, 1)), 0)
        whitened.append(u * shrunk[None, :])
    # All directions of the wider view too: shuffled rows choose among them as these did.
    left, values, right = jnp.linalg.svd(matmul(whitened[0].T, whitened[1]))
    return matmul(whitened[0], left), matmul(whitened[1], right.T), values


@functools.partial(jax.jit, static_argnums=3)
def _largest(u: Array, v: Array, orders: Array, axis: int) -> Float[Array, " b"]:
    """Largest correlation of what is left after some axes, the rows shuffled."""

    def one(order: Array) -> Array:
        cross = matmul(u[:, axis:][order].T, v[:, axis:])
        return jnp.linalg.norm(cross, ord=2)

    return jax.lax.map(one, orders)


def _compare(alignment: Alignment, found: AxesTest) -> None:
    reliable = int((np.asarray(alignment.reliability) > 0).all(axis=0).sum())
    real = found.count()
    if (reliable == 0) != (real == 0) or reliable < real:
        warnings.warn(
            f"the alignment trusts {reliable} axes on held-out rows, the permutation test "
            f"{real} at the level {_LEVEL}: look at more data before believing either.",
            UserWarning,
            stacklevel=3,
        )
