"""The transfer protocol: a classifier trained on one modality, used on another without labels.

The alignment is fitted on unlabelled pairs (role ``align``), the classifier on the latents of the
labelled source (role ``har``), and it is scored on the latents of target clips (``val`` and
``test``): paper, Section 3.2. The classifier is a logistic regression on latents divided by **one**
number. Scaling every coordinate by itself would blow up the directions that carry no energy, of
which an aligned latent space has many.

Everything linear here, with or without an L2 penalty, sees the data through inner products only.
``split_by_span`` uses that, exactly: it replaces thousands of features by as many coordinates as
there are pairs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import sklearn.linear_model
from jaxtyping import Float, Int
from scipy import stats

from perfalign_jax import _checks

__all__ = [
    "Estimate",
    "Parts",
    "estimate_mean",
    "estimate_share",
    "rank_classes",
    "score_ranks",
    "split_by_span",
]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Example:
        >>> from perfalign_jax.har.transfer import Estimate
        >>> print(Estimate(94.8, 94.2, 95.4))
        94.8 [94.2, 95.4]
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def estimate_mean(values: Sequence[float] | Float[np.ndarray, " s"]) -> Estimate:
    """Mean over splits, with its 95 % interval by Student's t.

    Given the differences of two methods split by split, it is the paired comparison. Splits of one
    dataset share clips, so the interval speaks of other splits of this dataset, not of other data.

    Args:
        values: one number for each split.

    Returns:
        An ``Estimate``; with a single split the interval is infinite.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> from perfalign_jax.har.transfer import estimate_mean
        >>> print(estimate_mean([90.0, 92.0, 94.0]))
        92.0 [87.0, 97.0]
    """
    found = np.asarray(values, np.float64)
    if found.size == 0:
        raise ValueError("values must hold one number for each split, got none.")
    mean = float(found.mean())
    if found.size == 1:
        return Estimate(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.975, found.size - 1) * stats.sem(found))
    return Estimate(mean, mean - half, mean + half)


def estimate_share(hits: int, n: int) -> Estimate:
    """Share of hits in percent, with Wilson's 95 % interval for a share of independent clips.

    Args:
        hits: number of clips told correctly.
        n: number of clips, at least one.

    Raises:
        ValueError: if the numbers are out of range.

    Example:
        >>> from perfalign_jax.har.transfer import estimate_share
        >>> print(estimate_share(90, 100))
        90.0 [82.6, 94.5]
    """
    n = _checks.integer(n, "n", low=1)
    hits = _checks.integer(hits, "hits", low=0, high=n)
    interval = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Estimate(100 * hits / n, 100 * float(interval.low), 100 * float(interval.high))


class Parts(NamedTuple):
    """Features of every clip, and their parts inside and outside the span of some clips.

    Attributes:
        whole: the features, shape ``(n, d)``.
        inside: coordinates in an orthonormal basis of the span, shape ``(n, r)``.
        outside: what is left, shape ``(n, d)``.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.transfer import split_by_span
        >>> split_by_span(np.eye(3), rows=np.array([0])).outside[2].tolist()
        [0.0, 0.0, 1.0]
    """

    whole: Float[np.ndarray, "n d"]
    inside: Float[np.ndarray, "n r"]
    outside: Float[np.ndarray, "n d"]


def split_by_span(x: Float[np.ndarray, "n d"], *, rows: Int[np.ndarray, " m"]) -> Parts:
    """Write every row of ``x`` as a part inside the span of some of its rows and a part outside.

    Inner products with the chosen rows depend on the inside alone. So whatever is fitted to them
    and lives in their span (the informative part of a perfect alignment, CCA, linear contrastive,
    Procrustes, regression) gives the same latents from the inside as from all features, up to
    rounding. The outside is what the trivial directions of their null space see.

    Args:
        x: shape ``(n, d)``.
        rows: indices of the chosen rows: the alignment pairs.

    Returns:
        ``Parts``; the inside has as many coordinates as the rank of the chosen rows.

    Raises:
        ValueError: if ``x`` has another number of dimensions, or the chosen rows are all zero.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.transfer import split_by_span
        >>> x = np.random.default_rng(0).normal(size=(5, 40))
        >>> _, inside, outside = split_by_span(x, rows=np.arange(2))
        >>> inside.shape, np.allclose(inside @ inside[:2].T, x @ x[:2].T)
        ((5, 2), True)
        >>> np.allclose(outside @ x[:2].T, 0)
        True
    """
    x = np.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"x must have shape (n, d), got shape {x.shape}.")
    chosen = x[rows]
    q, upper = np.linalg.qr(chosen.T)
    u, s, _ = np.linalg.svd(upper, full_matrices=False)
    rank = int(np.sum(s > np.finfo(s.dtype).eps * sum(chosen.shape) * s[0]))
    if rank == 0:
        raise ValueError("the chosen rows of x are all zero.")
    basis = q @ u[:, :rank]
    inside = x @ basis
    return Parts(x, inside, x - inside @ basis.T)


def rank_classes(
    source: Any, labels: Any, target: Any, *, strength: float = 30.0
) -> Int[np.ndarray, "e classes"]:
    """Train the decoder on latents of the source, and rank the classes of every target clip.

    Multinomial logistic regression with an L2 penalty, on latents divided by one number: the root
    mean square norm of the source's latents. Where there are more coordinates than training clips
    both sides are first turned into the training clips' span, which changes nothing.

    Args:
        source: latents with labels, shape ``(h, k)``.
        labels: class of each, integers, shape ``(h,)``.
        target: latents to classify, shape ``(e, k)``.
        strength: inverse of the penalty, scikit-learn's ``C``, on latents of unit size.

    Returns:
        Classes of each target clip, most probable first, shape ``(e, classes)``.

    Raises:
        ValueError: if the shapes do not fit together, or the source's latents are all zero.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.transfer import rank_classes
        >>> z = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> rank_classes(z, np.array([4, 7]), 2 * z).tolist()
        [[4, 7], [7, 4]]
    """
    z, wanted, known = np.asarray(source), np.asarray(target), np.asarray(labels)
    if z.ndim != 2 or wanted.ndim != 2 or z.shape[1] != wanted.shape[1]:
        raise ValueError(
            "source and target must have the same number of latent dimensions, got shapes "
            f"{z.shape} and {wanted.shape}."
        )
    if known.shape != z.shape[:1]:
        raise ValueError(f"labels must have shape ({z.shape[0]},), got {known.shape}.")
    size = np.sqrt(np.mean(np.sum(z * z, axis=1)))
    if not size > 0:
        raise ValueError("source has latents without any energy: there is nothing to train on.")
    used = z.any(axis=0)  # a coordinate that is zero in training gets no weight
    if not used.all():
        z, wanted = z[:, used], wanted[:, used]
    if z.shape[1] > z.shape[0]:
        basis, upper = np.linalg.qr(z.T)
        z, wanted = upper.T, wanted @ basis
    decoder = sklearn.linear_model.LogisticRegression(C=strength, max_iter=500, tol=1e-3)
    decoder.fit(z / size, known)
    scores = np.asarray(decoder.decision_function(wanted / size))
    if scores.ndim == 1:  # two classes have one score between them
        scores = np.stack([-scores, scores], axis=1)
    return decoder.classes_[np.argsort(-scores, axis=1, kind="stable")]


def score_ranks(
    ranks: Int[np.ndarray, "e classes"],
    labels: Int[np.ndarray, " e"],
    *,
    tops: Sequence[int] = (1, 3, 5, 7),
) -> dict[int, Float[np.ndarray, " e"]]:
    """Say for each clip whether its class is among the first few; the mean is the accuracy.

    Args:
        ranks: classes in order, from ``rank_classes``.
        labels: true class of each clip, shape ``(e,)``.
        tops: how many classes may be named.

    Returns:
        By each of ``tops``: 1.0 or 0.0 for every clip.

    Raises:
        ValueError: if the numbers of clips differ.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.transfer import score_ranks
        >>> hits = score_ranks(np.array([[4, 7], [4, 7]]), np.array([4, 7]), tops=(1, 2))
        >>> hits[1].tolist(), hits[2].tolist()
        ([1.0, 0.0], [1.0, 1.0])
    """
    truth = np.asarray(labels)
    if truth.shape != ranks.shape[:1]:
        raise ValueError(f"labels must have shape ({ranks.shape[0]},), got {truth.shape}.")
    right = ranks == truth[:, None]
    return {top: right[:, :top].any(axis=1).astype(np.float64) for top in tops}
