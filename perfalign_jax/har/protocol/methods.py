"""Every alignment of Table 1 and of the closed-form transfer: one list, from one task to latents.

A ``Method`` says what is done; ``align`` fits it to the pairs of a ``Task`` and gives task and exam
in its latent space, where a decoder trained on the labelled source ranks the classes of the unseen
target. Nothing here sees more than a ``Task``.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from perfalign_jax import _checks, automatic, baselines, lift, solver, statistics
from perfalign_jax.har.protocol.transfer import Exam, Task, rank_classes
from perfalign_jax.types import Alignment

__all__ = [
    "ALIGN",
    "INFORMATIVE",
    "KINDS",
    "Method",
    "align",
    "align_all",
    "join",
    "list_methods",
    "rank_by_pseudo_labels",
    "standardise",
    "to_directions",
]

KINDS = {
    "identity": "identity",
    "ridge_regression": "ridge regression",
    "procrustes": "Procrustes",
    "linear_contrastive": "linear contrastive",
    "ridge_cca": "ridge CCA",
    "trailing": "PA, trailing",
    "null_space": "PA, whole null space",
    "energy": "PA, energy",
    "align": "align",
}
"""Every kind of alignment, and how it is printed; PA is perfect alignment."""

_TRUNCATED = ("linear_contrastive", "ridge_cca")  # have as many dimensions as are asked for
_RIDGES = ("ridge_regression", "ridge_cca")

Posed = tuple[Task, Exam]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way from one modality to another: on which features, by which alignment, decoded how.

    Attributes:
        kind: one of ``KINDS``: features as they are, a function of ``baselines``, perfect alignment
            by its trailing directions, by those of most energy, or by its null space, or
            ``automatic.align`` of the features.
        k: number of dimensions; None takes all there are, with "energy" the informative part of the
            null space. Linear contrastive and ridge CCA have fewer where the pairs allow no more.
        ridge: of ridge regression and ridge CCA, relative to the mean eigenvalue of the pairs;
            None for all others.
        inside: number of leading principal directions of each modality that it is fitted in.
        center: take the pairs' means off first.
        space: what the features are called.
        decoder: what the decoder is called.
        backwards: labels are on the usual target, and carried to the usual source.

    Raises:
        TypeError: if a number is none.
        ValueError: if the kind is unknown or a number out of range.

    Example:
        >>> from perfalign_jax.har.protocol.methods import Method
        >>> Method("trailing", k=27, space="CA").label
        'CA + PA, trailing k = 27'
    """

    kind: str
    k: int | None = None
    ridge: float | None = None
    inside: int | None = None
    center: bool = True
    space: str = ""
    decoder: str = ""
    backwards: bool = False

    def __post_init__(self) -> None:
        _checks.one_of(self.kind, "kind", tuple(KINDS))
        for name in ("k", "inside"):
            if getattr(self, name) is not None:
                _checks.integer(getattr(self, name), name, low=1)
        if self.kind in _RIDGES:
            _checks.positive(self.ridge, "ridge")
        elif self.ridge is not None:
            raise ValueError(f"ridge is for {' and '.join(_RIDGES)}, got kind {self.kind!r}.")

    @property
    def name(self) -> str:
        """What the alignment is called, wherever it is used."""
        if self.inside is not None:
            return f"PA inside {self.inside} principal directions"
        if self.kind == "energy" and self.k is None:
            return "PA, informative part"
        if self.k is None:
            return KINDS[self.kind]
        if self.kind in _TRUNCATED:
            return f"{KINDS[self.kind]}, k ≤ {self.k}"
        return f"{KINDS[self.kind]} k = {self.k}{'' if self.center else ' (the paper)'}"

    @property
    def label(self) -> str:
        """What the method is called, with its features and its decoder."""
        way = f"{self.space} + {self.name}" if self.space else self.name
        way = self.space if self.space and self.kind == "identity" else way
        decoded = f"{way}, {self.decoder}" if self.decoder else way
        return f"from IMU: {decoded}" if self.backwards else decoded


INFORMATIVE = Method("energy")
"""Perfect alignment, the whole informative part of the null space."""

ALIGN = Method("align")
"""The alignment to use, ``automatic.align`` of the features: ridge and dimensions are chosen."""


def list_methods(
    *, dimensions: Sequence[int] = (27, 128), components: Sequence[int] = (), largest: int = 128
) -> tuple[Method, ...]:
    """List every closed-form alignment.

    Identity, ridge regression, Procrustes, linear contrastive and ridge CCA (of ``largest``
    dimensions at most); perfect alignment with each number of ``dimensions`` trailing, with the
    whole null space, with so many directions of most energy, and with the whole informative part;
    ``automatic.align``; and perfect alignment inside each number of ``components``, leading
    principal directions, with as many directions.

    Example:
        >>> from perfalign_jax.har.protocol.methods import list_methods
        >>> [method.name for method in list_methods(dimensions=(8,))][3:6]
        ['linear contrastive, k ≤ 128', 'ridge CCA, k ≤ 128', 'PA, trailing k = 8']
    """
    return (
        Method("identity"),
        Method("ridge_regression", ridge=0.1),
        Method("procrustes"),
        Method("linear_contrastive", k=largest),
        Method("ridge_cca", k=largest, ridge=1.0),
        *(Method("trailing", k=k) for k in dimensions),
        Method("null_space"),
        *(Method("energy", k=k) for k in dimensions),
        INFORMATIVE,
        ALIGN,
        *(Method("trailing", k=r, inside=r) for r in components),
    )


def align(task: Task, exam: Exam, *, method: Method = INFORMATIVE) -> Posed:
    """Fit one method to the pairs, and give task and exam in its latent space.

    As ``align_all``, and a ``ValueError`` also if the method does not fit the pairs. By default the
    informative part of the null space, which needs more features than pairs.

    Source: paper, Theorem 2.2.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol import methods, transfer
        >>> x = np.random.default_rng(0).normal(size=(8, 40)).astype("float32")
        >>> task = transfer.Task((x, -x), labelled=x, labels=np.arange(8), unseen=-x)
        >>> exam = transfer.Exam(labels=np.arange(8), partners=x, bound=-x)
        >>> after, _ = methods.align(task, exam)
        >>> bool(np.abs(after.labelled - after.unseen).max() < 1e-4)
        True
    """
    _, task, exam = next(align_all(task, exam, methods=[method]))
    return task, exam


def align_all(
    task: Task, exam: Exam, *, methods: Sequence[Method]
) -> Iterator[tuple[Method, Task, Exam]]:
    """Fit several methods to the same pairs, and give task and exam in the latent space of each.

    One factorisation serves every number of dimensions: the trailing ``k`` are the last of a larger
    choice, the ``k`` of most energy the first of the informative part, and the whole null space is
    the informative part beside the trivial one, on which the latents are zero for every pair and
    not zero elsewhere. Whatever lives in the span of the pairs is fitted there, see
    ``lift.fit_span``; a ridge is relative to the mean eigenvalue of that span.

    Args:
        task: features of one scale: standardised, or latents.
        exam: the same features of what no method sees.
        methods: which. One that asks for more dimensions than the features or the pairs have, or
            for a null space where there is none, is left out.

    Raises:
        TypeError: if features are no real numbers.
        ValueError: if the features of a modality are all the same, or no method fits the pairs.

    Warns:
        CollapseWarning: where an alignment collapses.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol import methods, transfer
        >>> z = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
        >>> task = transfer.Task((z, z), labelled=z, labels=np.arange(20), unseen=z)
        >>> exam = transfer.Exam(labels=np.arange(20), partners=z, bound=z)
        >>> listed = methods.list_methods(dimensions=(2, 99))
        >>> [method.name for method, _, _ in methods.align_all(task, exam, methods=listed)][4:]
        ['ridge CCA, k ≤ 128', 'PA, trailing k = 2', 'PA, energy k = 2', 'align']
    """
    task, exam = _both((task, exam), _as_latents, _as_latents)
    for x, name in zip(task.pairs, ("pairs[0]", "pairs[1]"), strict=True):
        if not np.ptp(x, axis=0).any():
            raise ValueError(f"{name} has latents that are all the same: nothing to align.")
    centers = {method.center for method in methods}
    fits = {center: _Fits((task, exam), methods, center=center) for center in centers}
    fitting = [method for method in methods if fits[method.center].has_room(method)]
    if not fitting:
        n, (d1, d2) = len(task.pairs[0]), (x.shape[1] for x in task.pairs)
        raise ValueError(
            f"methods must hold one that fits {n} pairs of d1 + d2 = {d1 + d2} features, got "
            f"{', '.join(method.name for method in methods) or 'none'}."
        )
    for method in fitting:
        yield method, *fits[method.center].align(method)


class _Fits:
    """The factorisations of one set of pairs that several methods share."""

    def __init__(self, posed: Posed, methods: Sequence[Method], *, center: bool) -> None:
        self.original = posed
        means = [x.mean(axis=0) if center else 0 * x[0] for x in posed[0].pairs]
        self.posed = _both(posed, lambda x: x - means[0], lambda x: x - means[1])
        self.pairs = self.posed[0].pairs
        self.widths = [x.shape[1] for x in self.pairs]
        self.rows = len(self.pairs[0]) - center  # no larger rank
        alike = [m for m in methods if m.kind == "trailing" and not m.inside and m.center == center]
        sizes = [self.size_of(method) for method in alike if self.has_room(method)]
        self.largest = max(sizes, default=0)

    @functools.cached_property
    def spans(self) -> list[lift.Span]:
        return [lift.fit_span(x) for x in self.pairs]

    @functools.cached_property
    def ranks(self) -> list[int]:
        return [span.basis.shape[1] for span in self.spans]

    @functools.cached_property
    def inside(self) -> Posed:
        return _both(self.posed, *(functools.partial(lift.apply, span) for span in self.spans))

    @functools.cached_property
    def state(self) -> statistics.Statistic:
        return statistics.from_views(self.inside[0].pairs)

    @functools.cached_property
    def trailing(self) -> Posed:
        return _apply(solver.fit(self.pairs, k=self.largest), self.posed)

    @functools.cached_property
    def informative(self) -> Posed:
        return _apply(solver.fit(self.state, k=None, select="energy"), self.inside)

    def size_of(self, method: Method) -> int:
        return method.k or sum(self.widths)

    def has_room(self, method: Method) -> bool:
        """Whether the pairs have as many directions as the method asks for."""
        if method.inside is not None:
            return method.inside <= min(self.rows, *self.widths)
        if method.kind == "null_space" or (method.kind == "energy" and method.k is None):
            return self.rows < sum(self.ranks)
        if method.kind == "energy":
            return self.size_of(method) <= min(self.rows, sum(self.ranks))
        return method.kind != "trailing" or self.size_of(method) <= sum(self.widths)

    def align(self, method: Method) -> Posed:
        k = method.k
        if method.kind == "identity":
            return _cut(self.original, slice(min(self.widths)))
        if method.inside is not None:
            axes = [np.linalg.svd(x, full_matrices=False)[2].T for x in self.pairs]
            v1, v2 = (v[:, : method.inside] for v in axes)
            posed = _both(self.posed, lambda x: x @ v1, lambda x: x @ v2)
            return _apply(solver.fit(posed[0].pairs, k=k or method.inside), posed)
        if method.kind == "trailing":
            return _cut(self.trailing, slice(-self.size_of(method), None))
        if method.kind == "align":
            pairs = tuple(self.original[0].pairs)
            return _apply(automatic.align(pairs, lift="linear"), self.original)
        if method.kind == "null_space":
            return self._join_trivial_part()
        if method.kind == "energy":
            if self.rows < sum(self.ranks) and (k or 0) <= self.informative[0].unseen.shape[1]:
                return _cut(self.informative, slice(k))
            return _apply(solver.fit(self.state, k=k, select="energy"), self.inside)
        options: dict[str, Any] = {} if method.ridge is None else {"ridge": method.ridge}
        if method.kind in _TRUNCATED:
            options["k"] = min(k or self.rows, *self.ranks)
        return _apply(getattr(baselines, method.kind)(self.state, **options), self.inside)

    def _join_trivial_part(self) -> Posed:
        """Beside the informative part, what each modality has outside the span of its pairs."""
        bases = [np.asarray(span.basis) for span in self.spans]

        def outside(x: np.ndarray, view: int) -> np.ndarray:
            rest = x - x @ bases[view] @ bases[view].T
            nothing = np.zeros((len(x), self.widths[1 - view]), x.dtype)
            return np.concatenate([rest, nothing] if view == 0 else [nothing, rest], axis=1)

        task, exam = _both(self.posed, *(functools.partial(outside, view=m) for m in (0, 1)))
        return self.informative[0].beside(task), self.informative[1].beside(exam)


def standardise(task: Task, exam: Exam) -> Posed:
    """Standardise features by what their pairs show of them, see ``lift.fit_standardise``.

    The features of a view have the same units here and the pairs are few, so none is scaled up by
    more than 10 against the typical one.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol import methods, transfer
        >>> x = np.float32([[0.0], [2.0]])
        >>> task = transfer.Task((x, x), labelled=x, labels=np.arange(2), unseen=x)
        >>> exam = transfer.Exam(labels=np.arange(2), partners=x, bound=x)
        >>> methods.standardise(task, exam)[0].unseen.ravel().tolist()
        [-1.0, 1.0]
    """
    lifts = [lift.fit_standardise(x, floor=0.1) for x in task.pairs]
    return _both((task, exam), *(functools.partial(lift.apply, one) for one in lifts))


def to_directions(task: Task, exam: Exam) -> Posed:
    """Divide every latent vector by its length: what a contrastive loss has trained.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol import methods, transfer
        >>> z = np.array([[3.0, 4.0]])
        >>> task = transfer.Task((z, z), labelled=z, labels=np.array([1]), unseen=z)
        >>> exam = transfer.Exam(labels=np.array([1]), partners=z, bound=z)
        >>> methods.to_directions(task, exam)[0].unseen.tolist()
        [[0.6, 0.8]]
    """

    def unit(z: np.ndarray) -> np.ndarray:
        z = _as_latents(z)
        z = np.ldexp(z, -np.frexp(np.abs(z).max(axis=1, keepdims=True))[1])  # squares in range
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    return task.encode(unit, unit), exam.encode(unit, unit)


def join(first: Posed, second: Posed, *, weight: float = 1.0) -> Posed:
    """Join two kinds of features of the same clips, each centred and brought to one size.

    ``weight`` is the size of the first beside that of the second. A ``TypeError`` is raised if
    features are no real numbers, a ``ValueError`` if there are fewer than two pairs, features
    without spread, or the two are about other clips.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol import methods, transfer
        >>> z = np.random.default_rng(0).normal(size=(5, 4))
        >>> task = transfer.Task((z, z), labelled=z, labels=np.arange(5), unseen=z)
        >>> exam = transfer.Exam(labels=np.arange(5), partners=z, bound=z)
        >>> methods.join((task, exam), (task, exam))[0].unseen.shape
        (5, 8)
    """
    _checks.positive(weight, "weight")
    if len(first[0].pairs[0]) < 2:
        raise ValueError("first must have at least 2 pairs: one has no spread to divide by.")

    def scaled(posed: Posed, by: float, name: str) -> Posed:
        posed = _both(posed, _as_latents, _as_latents)
        maps = []
        for x in posed[0].pairs:
            if not np.ptp(x, axis=0).any():
                raise ValueError(f"{name} has pairs that are all the same: no size to divide by.")
            exponent = np.frexp(np.abs(x).max())[1]  # squares in range
            near = np.ldexp(x, -exponent)
            mean = near.mean(axis=0)
            factor = by / np.sqrt(np.mean(np.sum((near - mean) ** 2, axis=1)))
            maps.append(
                lambda y, e=exponent, mean=mean, factor=factor: (np.ldexp(y, -e) - mean) * factor
            )
        return _both(posed, *maps)

    (task1, exam1), (task2, exam2) = scaled(first, weight, "first"), scaled(second, 1.0, "second")
    return task1.beside(task2), exam1.beside(exam2)


def rank_by_pseudo_labels(task: Task) -> Int[np.ndarray, "e classes"]:
    """Let a teacher on the source label the pairs, and train on the pairs' target by its labels.

    Classes of each unseen target clip, most probable first; those that the teacher never gave come
    last.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.protocol import methods, transfer
        >>> z = np.eye(3)
        >>> task = transfer.Task((z, -z), labelled=z, labels=np.array([4, 5, 7]), unseen=-z)
        >>> methods.rank_by_pseudo_labels(task)[:, 0].tolist()
        [4, 5, 7]
    """
    given = rank_classes(task.labelled, task.labels, task.pairs[0])[:, 0]
    if len(np.unique(given)) == 1:  # nothing to train a student on
        ranks = np.full((len(task.unseen), 1), given[0])
    else:
        ranks = rank_classes(task.pairs[1], given, task.unseen)
    never = np.setdiff1d(np.unique(task.labels), given)
    return np.concatenate([ranks, np.broadcast_to(never, (len(ranks), len(never)))], axis=1)


def _as_latents(x: np.ndarray) -> np.ndarray:
    return _checks.matrix(x, "latents")


def _both(posed: Posed, source: Any, target: Any) -> Posed:
    task, exam = posed
    return task.encode(source, target), exam.encode(source, target)


def _cut(posed: Posed, dimensions: slice) -> Posed:
    return _both(posed, lambda z: z[:, dimensions], lambda z: z[:, dimensions])


def _apply(alignment: Alignment, posed: Posed) -> Posed:
    through = [functools.partial(solver.encode, alignment, view=view) for view in (0, 1)]
    return _both(posed, *through)
