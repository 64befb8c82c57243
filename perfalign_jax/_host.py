"""Second moments of rows on the host, in memory or block by block, by its BLAS.

BLAS knows that the product of a matrix with itself is symmetric and takes half the time for it;
XLA on a CPU does not. So moments of rows that are at hand on the host are computed there, and
nothing is compiled: blocks may have any size. Rows in memory are not copied.

Sums of a stream's blocks are kept in float64, whatever the rows are in. The moments of float32 rows
for a factor are computed in float64 altogether: a factor of them has more digits than float32 can
hold.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.linalg.lapack
from jaxtyping import Float

from perfalign_jax import _checks, statistics
from perfalign_jax._numerics import is_staged, on_host, rounding
from perfalign_jax._subspace import contrasts
from perfalign_jax.statistics import Factor, Gram, Rows

__all__ = ["Moments", "Tall"]

_FAR = 100  # times the spread: the square of a mean that costs two digits of what is about it
_APART = 0.1  # smallest eigenvalue of columns' cosines at which Cholesky loses a digit at most
_BLOCK = 8 * 2**20  # bytes of rows that are at work at once: they stay in the cache
_SOME = 1000  # rows that tell whether a mean is large
_LARGE_BLOCK = 64 * 2**20  # as many where rows are wide


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
        with np.errstate(all="ignore"):
            self._add(views, weights)

    def _add(
        self,
        views: Sequence[Float[np.ndarray, "b _"]],
        weights: Float[np.ndarray, " b"] | None,
    ) -> None:
        rows = len(views[0])
        if len(self._space) < rows:
            self._space = np.empty((rows, len(self.mean)), self._work)
        x, tiny = self._space[:rows], np.finfo(self._work).tiny
        w = np.ones(rows, self._work) if weights is None else weights.astype(self._work)
        roots, own = np.sqrt(w), float(w.sum(dtype=np.float64))
        # About the mean so far, which spares a pass; where the block's own is far from it beside
        # the spread, as the first one's is from zero, about that.
        guess = self.mean.astype(self._work)
        for again in (True, False):
            self._take(x, views, guess, None if weights is None else roots)
            drift = (roots @ x).astype(np.float64) / max(own, tiny)
            spread = np.einsum("bd,bd->d", x, x)
            far = own * drift**2 > _FAR * (spread - own * drift**2)
            apart = np.abs(drift) > 8 * np.finfo(self._work).eps * np.abs(guess)
            if not (again and (far & apart).any()):
                break
            guess = (guess + drift).astype(self._work)
        total = self.weight + own
        gap = guess.astype(np.float64) + drift - self.mean
        # Pairwise update of Chan, Golub and LeVeque (1983).
        step = np.sqrt(self.weight * (own / total)) * gap if total > 0 else 0 * gap
        if self.exact:
            x -= roots[:, None] * drift
            stacked = np.vstack([self.spread, x, step[None, :]])
            finite = bool(np.isfinite(stacked.sum()))
            few = len(stacked) <= stacked.shape[1]
            found = stacked if few or not finite else np.linalg.qr(stacked, mode="r")
        else:
            # In place, and a few rows at a time: of thousands of features each copy is large.
            found = (x.T @ x).astype(np.float64, copy=False)
            found += self.spread
            left, right = np.stack([step, own * drift], axis=1), np.stack([step, -drift])
            for start in range(0, len(found), 512):
                found[start : start + 512] += left[start : start + 512] @ right
            finite = bool(np.isfinite(np.diagonal(found).sum()))
        if not (finite and np.isfinite(gap).all()):
            raise FloatingPointError("a value is not finite")
        self.spread = np.asarray(found)
        self.weight, self.samples = total, self.samples + rows
        if total > 0:
            self.mean = self.mean + (own / total) * gap

    def _take(
        self,
        x: Float[np.ndarray, "b d"],
        views: Sequence[Float[np.ndarray, "b _"]],
        guess: Float[np.ndarray, " d"],
        roots: Float[np.ndarray, " b"] | None,
    ) -> None:
        """Write the views side by side, about a guess of their mean, times the roots of weights."""
        edges = np.cumsum((0, *self.dims))
        for view, first, last in zip(views, edges[:-1], edges[1:], strict=True):
            np.subtract(view, guess[first:last], out=x[:, first:last])
        if roots is not None:
            x *= roots[:, None]

    def statistic(self, coarsest: float = 0.0) -> Factor | Gram:
        """The statistic of all rows so far, used up by it; ``coarsest`` as in ``Factor``."""
        spread, self._space = self.spread, self._space[:0].copy()
        if self.kind == "factor" and not self.exact:
            spread = _root_of(spread, self.dtype)
        return statistics.from_moments(
            self.weight, self.samples, self.mean, spread, self.dims, self.dtype, coarsest, self.kind
        )


def _root_of(scatter: Float[np.ndarray, "d d"], dtype: Any) -> Float[np.ndarray, "d d"]:
    """R with R'R the scatter, by Cholesky with pivots: rows fall, so each keeps its digits.

    It takes the place of the scatter, which is not there afterwards.
    """
    # Symmetric, so its transpose is what LAPACK takes without a copy.
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(scatter.T, tol=0, overwrite_a=True)
    root = np.zeros(scatter.shape, dtype)
    for row in range(rank):
        root[row, pivots[row:] - 1] = upper[row, row:]
    return root


def _is_small(x: Float[np.ndarray, "n d"]) -> bool:
    """Whether squares of some rows are so small that what rounding leaves of them is not."""
    limits = np.finfo(x.dtype)
    return bool(
        np.abs(x[:: max(1, len(x) // _SOME)]).max(initial=0) < limits.tiny**0.5 / limits.eps
    )


def _is_near(x: Float[np.ndarray, "n d"]) -> bool:
    """Whether no feature has a mean larger than its spread, as far as some rows can tell."""
    some = x[:: max(1, len(x) // _SOME)]
    with np.errstate(all="ignore"):
        return bool((some.mean(axis=0) ** 2 <= some.var(axis=0)).all())


class Tall:
    """Rows in memory, more of them than features, or those of a factor, and products with them.

    X is the stacked matrix of the views, as in ``_subspace``.

    Attributes:
        views: shapes ``(n, d_m)``, as they lie there.
        second: all products of the features, summed over the rows, shape ``(d, d)``.
        cross: those of the first view with the second, shape ``(d1, d2)``.
        samples: how many samples the rows are or stand for.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import _host, statistics
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> state = statistics.from_views((x, x), kind="samples")
        >>> rows = _host.Tall.of(state, center=False)
        >>> bool((rows.second[:2, 2:] == x.T @ x).all())
        True
    """

    @classmethod
    def of(cls, state: Any, *, center: bool, cross: bool = False) -> "Tall | None":
        """Those of a statistic; None if they are traced, elsewhere, too few, or there are none.

        Args:
            state: of any kind.
            center: remove the means.
            cross: whether ``cross`` is all that is asked for: a third of the work.

        Raises:
            ValueError: if a value is not finite.
        """
        blocks: tuple[Any, ...] = getattr(state, "blocks", ())  # of a factor
        views: tuple[Any, ...] = getattr(state, "views", blocks)
        found = None
        known = bool(views) and not (_checks.is_traced(state) or is_staged())
        known = known and views[0].ndim == 2
        if known and all(map(on_host, views)) and state.samples > sum(state.dims):
            found = cls._of_factor(state, center) if blocks else cls._of_samples(state, center)
            found = found if found.there > sum(state.dims) else None
        if found is not None:
            with np.errstate(all="ignore"):  # what is not finite shows in the products
                probe = found.cross.sum() if cross else np.diagonal(found.second).sum()
            if np.isfinite(probe) and not any(map(_is_small, found.views)):
                return found
        statistics.check_finite(state)
        return None  # also what is too large or too small to square

    @classmethod
    def _of_samples(cls, state: Any, center: bool) -> "Tall":
        weights = None if state.weights is None else np.asarray(state.weights)
        return cls(state, tuple(np.asarray(x) for x in state.views), weights, center, center)

    @classmethod
    def _of_factor(cls, state: Factor, center: bool) -> "Tall":
        """They stand for all samples, and are about their means already."""
        held = statistics.rows(state, center=center)
        found = cls(state, tuple(np.asarray(block) for block in held.blocks), None, False, center)
        found.weight, found.means = float(held.weight), [np.asarray(mean) for mean in held.means]
        found.samples = found.there = state.samples
        return found

    def __init__(
        self,
        state: Any,
        views: tuple[np.ndarray, ...],
        weights: np.ndarray | None,
        remove: bool,
        center: bool,
    ) -> None:
        """``remove`` says whether the rows have means that are to be removed on the way."""
        self.views, self.weights = views, weights
        self.dims, self.center, self.n = state.dims, center, len(self.views[0])
        self.coarsest = state.coarsest
        edges = np.cumsum([0, *self.dims]).tolist()
        self._spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self._drift = np.zeros(sum(self.dims), self.views[0].dtype)
        self.there = self.n if self.weights is None else int(np.count_nonzero(self.weights))
        self.samples = self.n
        # Means no larger than the spread are taken out of what is computed, and cost two bits at
        # most; others out of the rows, block by block, and so are those that float32 sums.
        plain = weights is None and self._drift.dtype == np.float64
        self._after = remove and plain and all(map(_is_near, self.views))
        self._before = remove and not self._after

    @functools.cached_property
    def weight(self) -> float:
        """Total weight of the rows."""
        return float(self.n if self.weights is None else self.weights.sum(dtype=np.float64))

    @functools.cached_property
    def means(self) -> list[Float[np.ndarray, " _"]]:
        """Weighted means of the features of every view."""
        ones = np.ones(self.n, self.views[0].dtype) if self.weights is None else self.weights
        return [ones @ x / max(self.weight, np.finfo(x.dtype).tiny) for x in self.views]

    @property
    def _size(self) -> int:
        """How many rows are at work at once: as many as features, so that their product is fast."""
        least, most = (max(1, size // self._drift.nbytes) for size in (_BLOCK, _LARGE_BLOCK))
        return min(self.n, max(least, min(len(self._drift), most)))

    def _space(self) -> Float[np.ndarray, "b d"]:
        """Where a block of rows of all views lies side by side."""
        return np.empty((self._size, len(self._drift)), self._drift.dtype)

    def _blocks(
        self, space: Float[np.ndarray, "b d"]
    ) -> Iterator[tuple[list[np.ndarray], Float[np.ndarray, " b"]]]:
        """Some rows of every view at a time, centred and weighed, and the roots of the weights.

        Where they are neither centred nor weighed they are those in memory, else they lie in
        ``space`` until the next block.
        """
        dtype, raw = self._drift.dtype, not self._before and self.weights is None
        centre = self.centre if self._before else [np.zeros((), dtype) for _ in self.views]
        for start in range(0, self.n, self._size):
            rows = slice(start, start + self._size)
            block = [x[rows] for x in self.views]
            roots = np.ones(len(block[0]), dtype)
            if not raw:
                block = [
                    np.subtract(x, mean, out=space[: len(x), span])
                    for x, mean, span in zip(block, centre, self._spans, strict=True)
                ]
            if self.weights is not None:
                roots = np.sqrt(self.weights[rows])
                space[: len(roots)] *= roots[:, None]
            yield block, roots

    @property
    def centre(self) -> list[Float[np.ndarray, " _"]]:
        """The means, and what rounding left in them."""
        shift = self._drift / max(self.weight, np.finfo(self._drift.dtype).tiny)
        return [
            mean + shift[span].astype(mean.dtype)
            for mean, span in zip(self.means, self._spans, strict=True)
        ]

    @functools.cached_property
    def second(self) -> Float[np.ndarray, "d d"]:
        if not self._before and self.weights is None:  # whole, as they lie there
            total = self._products()
            if self._after:
                mean = np.concatenate(self.means)
                total -= np.outer(self.weight * mean, mean)
                if not self._keeps_digits(np.diagonal(total), mean):
                    self._after, self._before = False, True
                    return self.second
            return total
        total, drift = np.zeros((len(self._drift),) * 2, self._drift.dtype), self._drift.copy()
        product, space = np.empty_like(total), self._space()
        for _, roots in self._blocks(space):
            x = space[: len(roots)]
            total += np.matmul(x.T, x, out=product)
            drift += roots @ x
        if self._before:
            total -= np.outer(drift, drift) / max(self.weight, np.finfo(drift.dtype).tiny)
            self._drift = drift
        return total

    @functools.cached_property
    def cross(self) -> Float[np.ndarray, "d1 d2"]:
        x, y = self.views[:2]
        if self._after:
            mean = np.concatenate(self.means)
            if not self._keeps_digits(np.concatenate(self._squares) - self.weight * mean**2, mean):
                self._after, self._before = False, True
        if self._before or self.weights is not None:
            return self.second[self._spans[0], self._spans[1]]
        total = x.T @ y
        if self._after:
            total -= np.outer(self.weight * self.means[0], self.means[1])
        return total

    def _keeps_digits(
        self, scatter: Float[np.ndarray, " d"], mean: Float[np.ndarray, " d"]
    ) -> bool:
        return bool((4 * scatter >= self.weight * mean**2).all())

    @functools.cached_property
    def _squares(self) -> list[Float[np.ndarray, " _"]]:
        """Sums of squares of the features, as they lie there."""
        return [np.einsum("nd,nd->d", x, x) for x in self.views]

    @property
    def _spreads(self) -> list[float]:
        """Sums of squares of all features of every view, about what was removed."""
        if "second" in self.__dict__:
            return [float(np.trace(self.second[span, span])) for span in self._spans]
        away = self.weight if self._after else 0.0
        return [
            float(squares.sum() - away * (mean @ mean))
            for squares, mean in zip(self._squares, self.means, strict=True)
        ]

    def _products(self) -> Float[np.ndarray, "d d"]:
        total = np.empty((len(self._drift),) * 2, self._drift.dtype)
        views = enumerate(self.views)
        for (i, a), (j, b) in itertools.combinations_with_replacement(views, 2):
            total[self._spans[i], self._spans[j]] = a.T @ b
            if i < j:
                total[self._spans[j], self._spans[i]] = total[self._spans[i], self._spans[j]].T
        return total

    def _latents(self, columns: np.ndarray) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Blocks of rows, and the latents of every view there."""
        parts = [np.ascontiguousarray(columns[span]) for span in self._spans]
        away = self.means if self._after else [np.zeros(d, columns.dtype) for d in self.dims]
        shifts = [mean @ part for mean, part in zip(away, parts, strict=True)]
        for block, _ in self._blocks(self._space()):
            latents = [x @ part for x, part in zip(block, parts, strict=True)]
            if self._after:
                for z, shift in zip(latents, shifts, strict=True):
                    z -= shift
            yield block, latents

    def times_gram(self, columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
        """X' X times the columns: each view's rows times ``sum_j (z_m - z_j)``."""
        total = np.zeros_like(columns, order="C")
        for block, latents in self._latents(columns):
            for m, (x, span) in enumerate(zip(block, self._spans, strict=True)):
                apart = [latents[m] - z for j, z in enumerate(latents) if j != m]
                across = functools.reduce(np.add, apart)
                total[span] += x.T @ across
                if self._after:
                    total[span] -= np.outer(self.means[m], across.sum(axis=0))
        return total

    def root(self, columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "k k"]:
        """R of the QR of X times the columns.

        From their inner products where the columns are far from parallel, as images of singular
        vectors are: scaled to one length, their Cholesky factor has all digits of a QR. What is
        rounding alone, as all images of null directions are, has no digits to keep.
        """
        gram = np.zeros((columns.shape[1],) * 2)
        for image in self._images(columns):
            gram += image.T @ image
        with np.errstate(all="ignore"):
            lengths = np.sqrt(np.diagonal(gram))
            rest = np.finfo(columns.dtype).eps * np.sqrt(len(columns) * sum(self._spreads))
            if (lengths <= rest * np.linalg.norm(columns, axis=0)).all():
                values, vectors = np.linalg.eigh(gram)
                found = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
                return found.astype(columns.dtype)
            cosines = gram / np.outer(lengths, lengths)
        if np.isfinite(cosines).all() and np.linalg.eigvalsh(cosines)[0] > _APART:
            return (np.linalg.cholesky(cosines).T * lengths).astype(columns.dtype)
        found = np.zeros((0, columns.shape[1]), columns.dtype)
        for image in self._images(columns):
            found = np.asarray(np.linalg.qr(np.concatenate([found, image]), mode="r"))
        return found

    def _images(self, columns: np.ndarray) -> Iterator[Float[np.ndarray, "b k"]]:
        """Blocks of X times the columns."""
        mix = contrasts(len(self.dims)).astype(columns.dtype)
        for _, latents in self._latents(columns):
            for row in mix:
                yield functools.reduce(
                    np.add, [w * z for w, z in zip(row, latents, strict=True) if w]
                )

    def rows(self) -> Rows:
        """All that a solver may know of them but the rows themselves."""
        d, dtype = len(self._drift), self._drift.dtype
        means, tiny = tuple(self.centre), np.finfo(dtype).tiny
        energies = [self.weight * float(mean @ mean) for mean in means]

        def cut(energy: float, spread: float) -> np.ndarray:
            common = energy / max(spread, tiny) if self.center else 0.0
            share = rounding(dtype, self.samples, d, common=common, coarsest=self.coarsest)
            return np.asarray(share)

        cuts = np.stack([cut(*pair) for pair in zip(energies, self._spreads, strict=True)])
        constant = np.full(1, 0 if self.center else 1, dtype)
        weight, samples = np.asarray(self.weight, dtype), np.asarray(self.there, dtype)
        whole = cut(sum(energies), sum(self._spreads))
        held: Any = (), means, constant, weight, samples, whole, cuts
        return Rows(*held)
