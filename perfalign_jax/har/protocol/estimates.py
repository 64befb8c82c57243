"""What scores over clips, splits and training seeds say, with their 95 % intervals.

Each function raises a ``ValueError`` if its numbers are too few, out of range or none.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from perfalign_jax import _checks

__all__ = ["Estimate", "estimate_crossed", "estimate_mean", "estimate_share"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Example:
        >>> from perfalign_jax.har.protocol.estimates import Estimate
        >>> print(Estimate(94.8, 94.2, 95.4))
        94.8 [94.2, 95.4]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def estimate_mean(values: Sequence[float] | Float[np.ndarray, " s"]) -> Estimate:
    """Mean over splits, one number for each, with its 95 % interval by Student's t.

    Given the differences of two methods split by split, it is the paired comparison. Splits of one
    dataset share clips, so the interval speaks of other splits of this dataset, not of other data.
    With a single split it is infinite.

    Example:
        >>> from perfalign_jax.har.protocol.estimates import estimate_mean
        >>> print(estimate_mean([90.0, 92.0, 94.0]))
        92.0 [87.0, 97.0]
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"values must hold one number for each split, got shape {found.shape}.")
    _checks.finite(found, "values")
    mean = float(found.mean())
    if found.size == 1:
        return Estimate(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.975, found.size - 1) * stats.sem(found))
    return Estimate(mean, mean - half, mean + half)


def estimate_crossed(values: Float[np.ndarray, "s n"]) -> Estimate:
    """Mean over training seeds that are scored on the same clips, with its 95 % interval.

    Of numbers of shape ``(seeds, clips)``, at least two of both. Seeds and clips are both samples,
    crossed: the variance of the mean is that of the seeds' means over ``s``, plus that of the
    clips' means over ``n``, less what both of them count, the interaction over ``s n``. The degrees
    of freedom are Satterthwaite's. Differences of two methods make it the paired comparison. The
    interval speaks of other seeds and other clips of this dataset.

    Source: Searle, Casella and McCulloch, "Variance Components", two-way crossed random effects.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol.estimates import estimate_crossed
        >>> print(estimate_crossed(np.array([[8.0, 9.0, 10.0], [9.0, 10.0, 12.0]])))
        9.7 [6.4, 12.9]
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 2 or min(found.shape) < 2:
        raise ValueError(
            f"values must have shape (seeds, clips), at least 2 of both, got {found.shape}."
        )
    _checks.finite(found, "values")
    s, n = found.shape
    mean, seeds, clips = float(found.mean()), found.mean(axis=1), found.mean(axis=0)
    rest = found - seeds[:, None] - clips + mean
    parts = np.array([seeds.var(ddof=1) / s, clips.var(ddof=1) / n])
    both = np.sum(rest**2) / ((s - 1) * (n - 1)) / (s * n)
    variance = max(float(parts.sum() - both), float(parts.max()))
    if variance == 0:
        return Estimate(mean, mean, mean)
    freedom = float(parts.sum() ** 2 / np.sum(parts**2 / np.array([s - 1, n - 1])))
    half = float(stats.t.ppf(0.975, freedom)) * variance**0.5
    return Estimate(mean, mean - half, mean + half)


def estimate_share(hits: int, n: int) -> Estimate:
    """Share in percent of ``hits`` among ``n`` independent clips, with Wilson's 95 % interval.

    Example:
        >>> from perfalign_jax.har.protocol.estimates import estimate_share
        >>> print(estimate_share(90, 100))
        90.0 [82.6, 94.5]
    """
    n = _checks.integer(n, "n", low=1)
    hits = _checks.integer(hits, "hits", low=0, high=n)
    interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Estimate(100 * hits / n, 100 * float(interval.low), 100 * float(interval.high))
