"""What rows say of an alignment: what they allow, which axes are real, which pairs are right.

Everything that a page on an alignment shows is measured here, once, and drawn elsewhere. All pairs
of a sample of the rows are scored, so the error rates of telling right pairs from wrong ones, and
the ranks of the partners, are of the same numbers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from perfalign_jax import _checks, diagnosis, evidence, significance, solver, statistics
from perfalign_jax.significance import AxesTest
from perfalign_jax.types import Alignment, Diagnosis, Views

__all__ = ["Inspection", "inspect"]

_MOST = 2000  # rows of which all pairs are scored
_COORDINATES = 64  # principal ones of each side, at most, that the permutation test looks at
_AXES = 20  # that it looks at, at most


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What rows say of an alignment.

    Attributes:
        alignment: what was inspected.
        views: which views each of the two sides compared has.
        diagnosis: what these views allow, as they are, before any lift.
        reliability: shape ``(k,)``, held-out correlation of the two sides on each axis, from the
            alignment; empty where it has no evidence.
        test: permutation test of the rows.
        coordinates: how many principal coordinates of each side it looked at.
        rows: how many rows there are.
        numbers: shape ``(s,)``, those of which all pairs were scored.
        right: shape ``(s,)``, score of each of them with its partner: log-odds in nats or, without
            evidence, the negative distance of the latents.
        wrong: shape ``(s * (s - 1),)``, score of each with every other's partner.
        ranks: shape ``(2, s)``, place of the partner among all ``s``, asked from the first side and
            from the second; candidates that score the same share their places.
        scores: shape ``(rows,)``, the score of every row with its partner.
        names: shape ``(rows,)``, what the rows are numbered by.

    Example:
        >>> import jax, numpy as np, perfalign_jax as pa
        >>> from perfalign_jax.inspection import inspect
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> found = inspect(pa.align((x, x + 1), lift=None), (x, x + 1), key=jax.random.key(0))
        >>> found.test.count(), float(found.ranks.max())
        (3, 1.0)
    """

    alignment: Alignment
    views: tuple[tuple[int, ...], tuple[int, ...]]
    diagnosis: Diagnosis
    reliability: Float[np.ndarray, " k"]
    test: AxesTest
    coordinates: tuple[int, int]
    rows: int
    numbers: Int[np.ndarray, " s"]
    right: Float[np.ndarray, " s"]
    wrong: Float[np.ndarray, " w"]
    ranks: Float[np.ndarray, "2 s"]
    scores: Float[np.ndarray, " n"]
    names: Int[np.ndarray, " n"]

    @property
    def unit(self) -> str:
        """What the scores are in."""
        return "nats" if self.alignment.evidence is not None else "latent units"

    @property
    def threshold(self) -> float:
        """Score that parts right from wrong: even odds or, without evidence, where errors meet."""
        if self.alignment.evidence is not None:
            return 0.0
        right, wrong = np.sort(self.right), np.sort(self.wrong)
        missed = np.arange(right.size) / right.size
        taken = 1 - np.searchsorted(wrong, right) / wrong.size
        return float(right[np.argmin(np.abs(missed - taken))])

    @property
    def real_axes(self) -> str:
        """How many axes are more than chance; the test stops at 20."""
        count = self.test.count()
        return f"{count} or more" if count == _AXES else str(count)

    @property
    def missed(self) -> float:
        """Share of right pairs below the threshold."""
        return float((self.right < self.threshold).mean())

    @property
    def false_alarms(self) -> float:
        """Share of wrong pairs at or above the threshold."""
        return float((self.wrong >= self.threshold).mean())

    def recall(self, at: Any) -> Float[np.ndarray, "2 a"]:
        """Share of rows whose partner is among the first ``at``, both ways."""
        sorted_ranks = np.sort(self.ranks, axis=1)
        places = [np.searchsorted(ranks, np.asarray(at), side="right") for ranks in sorted_ranks]
        return np.stack(places) / self.ranks.shape[1]

    def least_credible(self, count: int) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
        """Names and scores of the rows whose partner is least credible, the least first."""
        order = np.argsort(self.scores, kind="stable")[:count]
        return self.names[order], self.scores[order]


def inspect(
    alignment: Alignment,
    views: Views,
    *,
    key: Key[Array, ""],
    sides: tuple[int, int] = (0, 1),
    names: Any = None,
    groups: Any = None,
    permutations: int = 199,
) -> Inspection:
    """Measure an alignment on paired rows, two sides of it against each other.

    Of more than 2,000 rows as many, evenly spaced, are compared with each other; every row with its
    partner. The permutation test looks at standardised rows, those same ones, in at most 64
    principal coordinates of each side and no more than an eighth of the rows.

    Args:
        alignment: an alignment of any method.
        views: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, one for each view. Whether they
            are the rows it was fitted to is not known here, and decides what the figures mean.
        key: random key of the permutation test.
        sides: which two of the alignment's sides are compared, counted from 0.
        names: shape ``(n,)``, integers that the rows are called by; 0 to n - 1 if not given.
        groups: shape ``(n,)``, such as subjects: their rows stay together in the permutation test,
            which then looks at as many rows of each, and at no group of fewer.
        permutations: of the permutation test.

    Returns:
        An ``Inspection``.

    Raises:
        TypeError: if the views do not hold real numbers, or ``key`` is no key.
        ValueError: if shapes or sides do not fit, there are fewer than ten rows, a value is not
            finite, or all rows of a side are the same.

    Example:
        >>> import jax, numpy as np, perfalign_jax as pa
        >>> from perfalign_jax.inspection import inspect
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> found = inspect(pa.fit((x, x), k=3), (x, x), key=jax.random.key(0))
        >>> found.unit, found.missed
        ('latent units', 0.0)
    """
    solver.check_alignment(alignment)
    _checks.key(key)
    arrays, coarsest = _checks.views(views)
    if len(arrays) != len(alignment.dims):
        raise TypeError(
            f"views must be a tuple of {len(alignment.dims)} arrays like the alignment's views, "
            f"got {len(arrays)} of them."
        )
    n = len(arrays[0])
    if n < 10:
        raise ValueError(f"views must have at least ten rows, got {n}.")
    every = solver.sides_of(alignment)
    chosen = _check_sides(sides, every)
    labels = np.arange(n) if names is None else np.asarray(names)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"names must be integers of shape ({n},), got {labels.dtype} of shape {labels.shape}."
        )
    both = [{m: arrays[m] for m in every[s]} for s in chosen]
    numbers = np.linspace(0, n - 1, min(n, _MOST)).round().astype(int)
    tested, together = _alike(numbers, groups, n)
    seen = [{m: x[numbers] for m, x in side.items()} for side in both]
    table = _score_table(alignment, *_place(alignment, seen[0]), *_place(alignment, seen[1]))
    here = np.eye(len(numbers), dtype=bool)
    features = [_principal([x[tested] for x in side.values()]) for side in both]
    test = significance.permutation_test(
        features, key=key, permutations=permutations, groups=together, most=_AXES
    )
    reliability = np.zeros(0)
    if alignment.evidence is not None:
        reliability = np.asarray(np.prod(np.asarray(alignment.reliability)[list(chosen)], axis=0))
    compared = tuple(x for side in both for x in side.values())
    state: Any = statistics.from_views(compared, kind="samples")
    return Inspection(
        alignment=alignment,
        views=(every[chosen[0]], every[chosen[1]]),
        diagnosis=diagnosis.diagnose(statistics.known_to(state, coarsest), center=alignment.center),
        reliability=reliability,
        test=test,
        coordinates=(features[0].shape[1], features[1].shape[1]),
        rows=n,
        numbers=numbers,
        right=table[here],
        wrong=table[~here],
        ranks=np.stack([_rank(table), _rank(table.T)]),
        scores=_score_rows(alignment, both),
        names=labels,
    )


def _alike(
    numbers: Int[np.ndarray, " s"], groups: Any, n: int
) -> tuple[Int[np.ndarray, " t"], np.ndarray | None]:
    """Rows for the permutation test, and their groups, all of a size: such change places."""
    if groups is None:
        return numbers, None
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), got shape {labels.shape}.")
    _, home, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("groups must be at least two, got one.")
    size = int(np.sort(sizes)[len(sizes) // 2 - 1])  # half of the groups or more have as many
    size = max(1, min(size, _MOST // len(sizes)))
    rows = [np.flatnonzero(home == g) for g in np.flatnonzero(sizes >= size)]
    taken = np.concatenate([r[np.linspace(0, len(r) - 1, size).round().astype(int)] for r in rows])
    return taken, home[taken]


def _check_sides(sides: Any, every: tuple[tuple[int, ...], ...]) -> tuple[int, int]:
    last = len(every) - 1
    if not isinstance(sides, Sequence) or len(sides) != 2 or sides[0] == sides[1]:
        raise ValueError(f"sides must be two different numbers up to {last}, got {sides!r}.")
    first, second = (_checks.integer(s, "a side", low=0, high=last) for s in sides)
    return first, second


def _place(alignment: Alignment, rows: dict[int, Array]) -> tuple[Array, Array | None]:
    """Where rows of one side are, and, with evidence, how reliable each coordinate is."""
    if alignment.evidence is not None:
        return solver.posterior(alignment, rows)
    ((view, x),) = rows.items()
    return solver.encode(alignment, x, view=view), None


def _score_table(alignment: Alignment, z1: Array, rho1: Any, z2: Array, rho2: Any) -> np.ndarray:
    """Scores of all pairs of rows."""
    known = alignment.evidence
    if known is None:
        a, b = (np.asarray(z, np.float64) for z in (z1, z2))
        squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
        return -np.sqrt(np.maximum(squared, 0))
    r = rho1 * rho2
    z1, z2 = (solver.at_length(z, r, known.unit) for z in (z1, z2))
    return np.asarray(known.slope * evidence.score_all(z1, z2, r) + known.offset, np.float64)


def _score_rows(alignment: Alignment, both: list[dict[int, Array]]) -> np.ndarray:
    """Scores of each row with its partner."""
    if alignment.evidence is not None:
        odds = evidence.log_odds(alignment, *both, source=None, target=None)
        return np.asarray(odds, np.float64)
    z1, z2 = (np.asarray(_place(alignment, side)[0], np.float64) for side in both)
    return -np.linalg.norm(z1 - z2, axis=1)


def _rank(table: Float[np.ndarray, "s s"]) -> Float[np.ndarray, " s"]:
    """Place of the diagonal in each row, the largest first; ties share theirs."""
    own = np.diagonal(table)[:, None]
    return (table > own).sum(axis=1) + ((table == own).sum(axis=1) + 1) / 2


def _principal(views: list[Array]) -> Float[np.ndarray, "s c"]:
    """Leading principal coordinates of standardised features, without those that do not vary."""
    parts = []
    for x in map(np.asarray, views):
        deviation = x.std(axis=0)
        moving = deviation > 8 * np.finfo(x.dtype).eps * np.abs(x).max(axis=0, initial=0)
        parts.append((x[:, moving] - x[:, moving].mean(axis=0)) / deviation[moving])
    rows = np.hstack(parts)
    if rows.shape[1] == 0:
        raise ValueError("views must vary, but all rows of a side are the same.")
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    count = min(_COORDINATES, max(1, len(rows) // 8), int((s > 1e-6 * s[0]).sum()))
    return u[:, :count] * s[:count]
