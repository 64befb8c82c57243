"""The transfer protocol: a classifier trained on one modality, used on another without labels.

The alignment is fitted on unlabelled pairs (role ``align``), the classifier on the latents of the
labelled source (role ``har``), and it is scored on the latents of target clips (``val`` and
``test``): paper, Section 3.2. It is held by construction: a method gets a ``Task``, in which there
are no labels of the pairs or of the target and no source of the clips to classify; an ``Exam``
keeps those, and only scores. The classifier is a logistic regression on latents divided by **one**
number. Scaling every coordinate by itself would blow up the directions that carry no energy, of
which an aligned latent space has many.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sklearn.linear_model
from jaxtyping import Float, Int, Shaped

from perfalign_jax import _checks, metrics, neighbours
from perfalign_jax._numerics import to_common_scale
from perfalign_jax.har.data.splits import Split

__all__ = ["Exam", "Task", "make_task", "rank_classes"]

Encode = Callable[[np.ndarray], Any]


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
        TypeError: if latents are no real numbers, or labels no integers.
        ValueError: if the shapes do not fit together, something is not finite, there is nothing to
            classify, there are fewer than two classes, or the source's latents are all zero.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol.transfer import rank_classes
        >>> z = np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> rank_classes(z, np.array([4, 7]), 2 * z).tolist()
        [[4, 7], [7, 4]]
    """
    z = _checks.matrix(source, "source")
    wanted = _checks.matrix(target, "target")
    known = np.asarray(labels)
    _checks.positive(strength, "strength")
    if len(wanted) == 0:
        raise ValueError(f"target must hold at least one clip, got shape {wanted.shape}.")
    if z.shape[1] != wanted.shape[1]:
        raise ValueError(
            "source and target must have the same number of latent dimensions, got shapes "
            f"{z.shape} and {wanted.shape}."
        )
    if known.shape != z.shape[:1]:
        raise ValueError(f"labels must have shape ({z.shape[0]},), got {known.shape}.")
    if known.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {known.dtype}.")
    if len(np.unique(known)) < 2:
        raise ValueError(f"labels must name at least 2 classes, got {np.unique(known).tolist()}.")
    if not z.any():
        raise ValueError("source has latents without any energy: there is nothing to train on.")
    z, wanted = to_common_scale(z, wanted)
    _checks.finite(wanted, "target, in units of the largest number of source,")
    size = np.sqrt(np.mean(np.sum(z * z, axis=1)))
    used = z.any(axis=0)  # a coordinate that is zero in training gets no weight
    if not used.all():
        z, wanted = z[:, used], wanted[:, used]
    if z.shape[1] > z.shape[0]:
        basis, upper = np.linalg.qr(z.T)
        z, wanted = upper.T, wanted @ basis
    # In float64, to a gradient of 1e-5: at the usual 1e-4 or in float32 accuracy is off by points.
    decoder = sklearn.linear_model.LogisticRegression(C=float(strength), max_iter=5000, tol=1e-5)
    decoder.fit((z / size).astype(np.float64), known)
    scores = np.asarray(decoder.decision_function((wanted / size).astype(np.float64)))
    if scores.ndim == 1:  # two classes have one score between them
        scores = np.stack([-scores, scores], axis=1)
    return decoder.classes_[np.argsort(-scores, axis=1, kind="stable")]


def score_ranks(
    ranks: Int[np.ndarray, "e classes"],
    labels: Int[np.ndarray, " e"],
    *,
    tops: Sequence[int] = (1, 3, 5, 7),
) -> dict[int, Float[np.ndarray, " e"]]:
    """Say for each clip whether its class is among the first ``tops``; the mean is the accuracy.

    By each of ``tops``, how many classes may be named, 1.0 or 0.0 for every clip.
    """
    truth = np.asarray(labels)
    if np.ndim(ranks) != 2:
        raise ValueError(f"ranks must have shape (clips, classes), got {np.shape(ranks)}.")
    if truth.shape != np.shape(ranks)[:1]:
        raise ValueError(f"labels must have shape ({len(ranks)},), got {truth.shape}.")
    for top in tops:
        _checks.integer(top, "tops", low=1)
    right = np.asarray(ranks) == truth[:, None]
    return {top: right[:, :top].any(axis=1).astype(np.float64) for top in tops}


@dataclasses.dataclass(frozen=True)
class Task:
    """All that a method may see, as recordings, features or latents.

    Attributes:
        pairs: both modalities of the clips of D_Align, row by row; without labels.
        labelled: the source modality of D_HAR.
        labels: class of each clip of ``labelled``.
        unseen: the target modality of D_Val and D_Test.

    Raises:
        ValueError: if the numbers of rows do not fit together.

    Source: paper, Section 3.2.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol.transfer import Task
        >>> x = np.ones((4, 3))
        >>> task = Task((x, x), labelled=x, labels=np.arange(4), unseen=x)
        >>> task.encode(lambda source: source[:, :1], lambda target: target[:, :1]).unseen.shape
        (4, 1)
    """

    pairs: tuple[Shaped[np.ndarray, "a ..."], Shaped[np.ndarray, "a ..."]]
    labelled: Shaped[np.ndarray, "h ..."]
    labels: Int[np.ndarray, " h"]
    unseen: Shaped[np.ndarray, "e ..."]

    def __post_init__(self) -> None:
        _checks.paired(self.pairs[0], self.pairs[1], "pairs[0]", "pairs[1]")
        _checks.paired(self.labelled, self.labels, "labelled", "labels")
        if np.ndim(self.labels) != 1:
            raise ValueError(f"labels must have shape (h,), got {np.shape(self.labels)}.")
        if len(self.pairs[0]) == 0:
            raise ValueError("pairs must hold at least one pair, got none.")

    def _rows(self) -> tuple[Any, ...]:
        return len(self.pairs[0]), self.labels.tolist(), len(self.unseen)

    def encode(self, source: Encode, target: Encode) -> "Task":
        """Put every array through the encoder of its modality."""
        first, second = (
            np.asarray(f(x)) for f, x in zip((source, target), self.pairs, strict=True)
        )
        return Task(
            (first, second),
            labelled=np.asarray(source(self.labelled)),
            labels=self.labels,
            unseen=np.asarray(target(self.unseen)),
        )

    def beside(self, other: "Task") -> "Task":
        """Join the features of two tasks about the same clips; a ``ValueError`` if they are not."""
        if self._rows() != other._rows():
            raise ValueError("other must be a task about the same clips, got others.")
        mine, theirs = ((t.pairs[0], t.pairs[1], t.labelled, t.unseen) for t in (self, other))
        a, b, c, d = (np.concatenate(both, axis=1) for both in zip(mine, theirs, strict=True))
        return Task((a, b), labelled=c, labels=self.labels, unseen=d)


@dataclasses.dataclass(frozen=True)
class Exam:
    """What no method may see.

    Attributes:
        labels: class of each clip of the task's ``unseen``.
        partners: the source modality of those clips.
        bound: the target modality of D_HAR, whose labels the supervised bound is allowed.

    Raises:
        ValueError: if the numbers of rows do not fit together.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol.transfer import Exam
        >>> exam = Exam(labels=np.array([4, 7]), partners=np.ones((2, 3)), bound=np.ones((2, 3)))
        >>> exam.score(np.array([[4, 7], [4, 7]]))[1].tolist()
        [1.0, 0.0]
    """

    labels: Int[np.ndarray, " e"]
    partners: Shaped[np.ndarray, "e ..."]
    bound: Shaped[np.ndarray, "h ..."]

    def __post_init__(self) -> None:
        _checks.paired(self.partners, self.labels, "partners", "labels")

    def encode(self, source: Encode, target: Encode) -> "Exam":
        """Put every array through the encoder of its modality."""
        return Exam(
            labels=self.labels,
            partners=np.asarray(source(self.partners)),
            bound=np.asarray(target(self.bound)),
        )

    def beside(self, other: "Exam") -> "Exam":
        """Join the features of two exams about the same clips; a ``ValueError`` if they are not."""
        same = np.array_equal(self.labels, other.labels) and len(self.bound) == len(other.bound)
        if not same:
            raise ValueError("other must be an exam about the same clips, got others.")
        return Exam(
            labels=self.labels,
            partners=np.concatenate([self.partners, other.partners], axis=1),
            bound=np.concatenate([self.bound, other.bound], axis=1),
        )

    def score(self, ranks: Int[np.ndarray, "e classes"]) -> dict[int, Float[np.ndarray, " e"]]:
        """Say for each clip whether its class is among the first 1, 3, 5 and 7."""
        return score_ranks(ranks, self.labels)

    def agreement(self, latents: Task) -> dict[str, float]:
        """Measure how well the latents of held-out pairs coincide, those of the task ``latents``.

        CMAE, NCMAE, relative CMAE of centred latents, and R@1 in percent, target asking.
        """
        z1, z2 = (np.asarray(z, np.float32) for z in (self.partners, latents.unseen))
        middle = (z1.mean(axis=0) + z2.mean(axis=0)) / 2
        centred = z1 - middle, z2 - middle
        return {
            "CMAE": float(metrics.cmae(z1, z2)),
            "NCMAE": float(metrics.ncmae(z1, z2)),
            "relative CMAE": float(metrics.relative_cmae(*centred)),
            "R@1": 100 * float(neighbours.retrieval(*centred, at=(1,)).recall_21[0]),
        }


def make_task(
    recordings: Mapping[str, Shaped[np.ndarray, "n ..."]],
    labels: Int[np.ndarray, " n"],
    split: Split,
    *,
    source: str,
    target: str,
) -> tuple[Task, Exam]:
    """Divide recordings into what methods may see, a ``Task``, and what not, its ``Exam``.

    Every array is a copy, so nothing leads back to the rest.

    Args:
        recordings: by modality, row ``i`` of everything being the same clip.
        labels: class of each clip.
        split: which clip has which role.
        source: modality with labels.
        target: modality without.

    Raises:
        ValueError: if a modality is missing, source and target are the same, or the recordings,
            labels and split are not about the same clips.

    Source: paper, Section 3.2.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol.transfer import make_task
        >>> from perfalign_jax.har.data.splits import Split
        >>> rows = np.arange(6)
        >>> split = Split("small", har=rows[:2], align=rows[2:4], val=rows[4:5], test=rows[5:])
        >>> both = {"depth": np.arange(6.0)[:, None], "inertial": -np.arange(6.0)[:, None]}
        >>> task, exam = make_task(both, rows, split, source="depth", target="inertial")
        >>> task.unseen.ravel().tolist(), exam.partners.ravel().tolist()
        ([-4.0, -5.0], [4.0, 5.0])
    """
    for name, modality in (("source", source), ("target", target)):
        _checks.one_of(modality, name, tuple(recordings))
    if source == target:
        raise ValueError(f"source and target must be different modalities, both are {source!r}.")
    x1, x2 = np.asarray(recordings[source]), np.asarray(recordings[target])
    known = np.asarray(labels)
    for name, x in ((source, x1), (target, x2)):
        _checks.paired(x, known, f"recordings[{name!r}]", "labels")
    last = max(int(rows.max(initial=0)) for rows in (split.har, split.align, split.evaluated))
    if last >= len(known):
        raise ValueError(f"split {split.name!r} uses clip {last}, got {len(known)} clips.")
    task = Task(
        (x1[split.align], x2[split.align]),
        labelled=x1[split.har],
        labels=known[split.har],
        unseen=x2[split.evaluated],
    )
    exam = Exam(labels=known[split.evaluated], partners=x1[split.evaluated], bound=x2[split.har])
    return task, exam
