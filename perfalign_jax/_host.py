"""Second moments of rows that come block by block, on the host.

BLAS knows that the product of a matrix with itself is symmetric and takes half the time for it;
XLA on a CPU does not. So moments of rows that are at hand on the host are computed there, and
nothing is compiled: blocks may have any size.

Sums of many blocks are kept in float64, whatever the rows are in. The moments of float32 rows for a
factor are computed in float64 altogether: a factor of them has more digits than float32 can hold.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from perfalign_jax import statistics
from perfalign_jax.statistics import Factor, Gram

__all__ = ["Moments"]


class Moments:
    """Weight, number, means, and scatter or root of the rows seen so far.

    Attributes:
        weight: total weight.
        samples: number of rows.
        mean: of all views side by side, shape ``(d,)``, float64.
        spread: scatter about the mean, shape ``(d, d)``, or a root of it, ``(r, d)``, where float64
            rows are to give a factor; float64.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax._host import Moments
        >>> moments = Moments((2, 1), np.float32, "gram")
        >>> moments.add((np.eye(2, dtype="f4"), np.ones((2, 1), "f4")))
        >>> moments.statistic()
        Gram(samples=2, dims=(2, 1), dtype=float32)
    """

    def __init__(self, dims: tuple[int, ...], dtype: Any, kind: str) -> None:
        self.dims, self.dtype, self.kind = dims, np.dtype(dtype), kind
        self.exact = kind == "factor" and self.dtype == np.float64
        d = sum(dims)
        self.weight, self.samples = 0.0, 0
        self.mean, self.spread = np.zeros(d), np.zeros((0 if self.exact else d, d))
        self._work = self.dtype if kind == "gram" else np.dtype(np.float64)
        self._space = np.empty((0, d), self._work)

    def add(
        self,
        views: Sequence[Float[np.ndarray, "b _"]],
        weights: Float[np.ndarray, " b"] | None = None,
    ) -> None:
        """Take in a block of rows, with a weight each; nothing changes if a value is not finite.

        Raises:
            FloatingPointError: if a value is not finite.
        """
        rows, edges = len(views[0]), np.cumsum((0, *self.dims))
        if len(self._space) < rows:
            self._space = np.empty((rows, int(edges[-1])), self._work)
        x = self._space[:rows]
        for view, first, last in zip(views, edges[:-1], edges[1:], strict=True):
            x[:, first:last] = view
        w = np.ones(rows, self._work) if weights is None else weights.astype(self._work)
        own = float(w.sum(dtype=np.float64))
        with np.errstate(all="ignore"):
            shift = w @ x / max(own, np.finfo(self._work).tiny)
            x -= shift
            # A second pass takes out what rounding of the first mean left in.
            drift = w @ x / max(own, np.finfo(self._work).tiny)
            x -= drift
            if weights is not None:
                x *= np.sqrt(w)[:, None]
            part = x if self.exact else x.T @ x
            total = self.weight + own
            gap = (shift.astype(np.float64) + drift) - self.mean
            # Pairwise update of Chan, Golub and LeVeque (1983).
            step = np.sqrt(self.weight * (own / total)) * gap if total > 0 else 0 * gap
            if self.exact:
                stacked = np.vstack([self.spread, x, step[None, :]])
                finite = bool(np.isfinite(stacked.sum()))
                few = len(stacked) <= stacked.shape[1]
                spread = stacked
                if finite and not few:
                    spread = np.asarray(np.linalg.qr(stacked, mode="r"))
            else:
                spread = self.spread + part
                spread += np.outer(step, step)
                finite = bool(np.isfinite(np.diagonal(spread).sum()))
        if not (finite and np.isfinite(gap).all()):
            raise FloatingPointError("a value is not finite")
        self.spread = spread
        self.weight, self.samples = total, self.samples + rows
        if total > 0:
            self.mean = self.mean + (own / total) * gap

    def statistic(self, coarsest: float = 0.0) -> Factor | Gram:
        """The statistic of all rows so far; ``coarsest`` as in ``Factor``."""
        spread = self.spread
        if self.kind == "factor" and not self.exact:
            values, vectors = np.linalg.eigh(spread)
            spread = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        return statistics.from_moments(
            self.weight, self.samples, self.mean, spread, self.dims, self.dtype, coarsest, self.kind
        )
