"""Every method of Table 1, from one task to ranked classes.

Encoders give latents; an alignment may be fitted on the latents of the pairs; a decoder trained on
the labelled source's latents ranks the classes of the unseen target. Nothing here sees more than a
``Task``.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from perfalign_jax import _checks, baselines, solver
from perfalign_jax._numerics import to_common_scale
from perfalign_jax.har.encoders import Decoder
from perfalign_jax.har.transfer import Exam, Task, rank_classes, split_by_span
from perfalign_jax.types import Alignment

__all__ = [
    "align_latents",
    "align_lifted",
    "join",
    "rank_by_mlp",
    "rank_by_pseudo_labels",
    "to_directions",
]

Posed = tuple[Task, Exam]


def to_directions(task: Task, exam: Exam) -> Posed:
    """Divide every latent vector by its length: what a contrastive loss has trained.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har import methods, transfer
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


def align_latents(
    task: Task,
    exam: Exam,
    *,
    dimensions: Sequence[int] = (27, 64, 128),
    components: Sequence[int] = (64, 128),
    ridge: float = 1.0,
) -> Iterator[tuple[str, Task, Exam]]:
    """Fit every alignment to the latents of the pairs, and give the latents after it.

    Perfect alignment exactly as the paper has it (the trailing ``k`` directions, ``k`` the size of
    the latents), with fewer directions, with those of most energy, inside the leading principal
    directions of each modality; ridge CCA; ridge regression from source to target. All but the
    paper's own are fitted to latents centred over the pairs.

    Args:
        task: latents of trained (or untrained) encoders.
        exam: the same encoders' latents of what no method sees.
        dimensions: numbers of directions below the size of the latents; for those of most energy
            below the number of pairs as well.
        components: numbers of principal directions, each aligned with as many directions.
        ridge: ridge of CCA and of the regression, relative to the mean eigenvalue.

    Yields:
        Name, task and exam after each alignment.

    Raises:
        TypeError: if latents are no real numbers, or a number of directions no integer.
        ValueError: if the latents of the two modalities have different sizes, those of one are all
            the same, or a number of directions is out of range.

    Warns:
        CollapseWarning: where an alignment collapses.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har import methods, transfer
        >>> z = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
        >>> task = transfer.Task((z, z), labelled=z, labels=np.arange(20), unseen=z)
        >>> exam = transfer.Exam(labels=np.arange(20), partners=z, bound=z)
        >>> found = methods.align_latents(task, exam, dimensions=(2,), components=())
        >>> [name for name, _, _ in found][:3]
        ['trailing k = 4 (the paper)', 'trailing k = 2', 'energy k = 2']
    """
    for numbers, name in ((dimensions, "dimensions"), (components, "components")):
        for number in numbers:
            _checks.integer(number, name, low=1)
    task, exam = _both(task, exam, _as_latents, _as_latents)
    for x, name in zip(task.pairs, ("pairs[0]", "pairs[1]"), strict=True):
        if not np.ptp(x, axis=0).any():
            raise ValueError(f"{name} has latents that are all the same: nothing to align.")
    size = task.pairs[0].shape[1]
    if task.pairs[1].shape[1] != size:
        raise ValueError(
            "pairs must have latents of one size, got "
            f"{size} and {task.pairs[1].shape[1]} dimensions."
        )
    yield (
        f"trailing k = {size} (the paper)",
        *_apply(solver.fit(task.pairs, k=size), task, exam),
    )
    means = [x.mean(axis=0) for x in task.pairs]
    task, exam = _both(task, exam, lambda x: x - means[0], lambda x: x - means[1])
    for select in ("trailing", "energy"):
        # No more directions carry energy than there are pairs.
        limit = size if select == "trailing" else min(size, len(task.pairs[0]))
        for k in (k for k in dimensions if k < limit):
            alignment = solver.fit(task.pairs, k=k, select=select)
            yield (f"{select} k = {k}", *_apply(alignment, task, exam))
    for r in components:
        if r < min(size, len(task.pairs[0])):
            v1, v2 = (np.linalg.svd(x, full_matrices=False)[2][:r].T for x in task.pairs)
            inside = _both(task, exam, lambda x, v=v1: x @ v, lambda x, v=v2: x @ v)
            alignment = solver.fit(inside[0].pairs, k=r)
            yield (f"inside {r} principal directions", *_apply(alignment, *inside))
    k = min(128, *(int(np.linalg.matrix_rank(x)) for x in task.pairs))
    yield ("ridge CCA", *_apply(baselines.ridge_cca(task.pairs, k=k, ridge=ridge), task, exam))
    regression = baselines.ridge_regression(task.pairs, ridge=ridge)
    yield ("ridge regression", *_apply(regression, task, exam))


def align_lifted(task: Task, exam: Exam) -> Posed:
    """Align features, many more than there are pairs, in the informative part of the null space.

    Args:
        task: features, standardised by ``features.standardize`` or of one scale.
        exam: the same features of what no method sees.

    Returns:
        Task and exam in the latent space.

    Source: paper, Theorem 2.2, with the directions that carry anything (``select="energy"``).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har import methods, transfer
        >>> x = np.random.default_rng(0).normal(size=(8, 40)).astype("float32")
        >>> task = transfer.Task((x, -x), labelled=x, labels=np.arange(8), unseen=-x)
        >>> exam = transfer.Exam(labels=np.arange(8), partners=x, bound=-x)
        >>> after, _ = methods.align_lifted(task, exam)
        >>> bool(np.abs(after.labelled - after.unseen).max() < 1e-4)
        True
    """
    task, exam = _both(task, exam, _as_latents, _as_latents)
    inside = []
    for x in task.pairs:
        parts = split_by_span(x, rows=np.arange(len(x)))
        basis = np.linalg.lstsq(parts.inside, x, rcond=None)[0].T  # orthonormal columns
        inside.append(basis.astype(x.dtype))
    task, exam = _both(task, exam, lambda x: x @ inside[0], lambda x: x @ inside[1])
    return _apply(solver.fit(task.pairs, k=None, select="energy"), task, exam)


def join(first: Posed, second: Posed, *, weight: float = 1.0) -> Posed:
    """Join two kinds of features of the same clips, each centred and brought to one size.

    Args:
        first: task and exam.
        second: task and exam about the same clips.
        weight: size of the first beside that of the second.

    Raises:
        TypeError: if features are no real numbers.
        ValueError: if there are fewer than two pairs, features without spread, or the two are about
            other clips.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har import methods, transfer
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
        posed = _both(*posed, _as_latents, _as_latents)
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
        return _both(*posed, *maps)

    (task1, exam1), (task2, exam2) = scaled(first, weight, "first"), scaled(second, 1.0, "second")
    return task1.beside(task2), exam1.beside(exam2)


def rank_by_pseudo_labels(task: Task) -> Int[np.ndarray, "e classes"]:
    """Let a teacher on the source label the pairs, and train on the pairs' target by its labels.

    Args:
        task: features.

    Returns:
        Classes of each unseen target clip, most probable first; those that the teacher never gave
        come last.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har import methods, transfer
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


def rank_by_mlp(
    task: Task, *, key: Key[Array, ""], steps: int = 300, learning_rate: float = 1e-3
) -> Int[np.ndarray, "e classes"]:
    """Train the paper's decoder, an MLP, on the labelled source's latents, and rank the classes.

    Latents are divided by one number, and turned into the span of the labelled ones where they have
    more dimensions than that; both change nothing that could be learnt.

    Args:
        task: latents.
        key: random key of the initial weights.
        steps: gradient steps of AdamW on all labelled latents.
        learning_rate: AdamW's.

    Returns:
        Classes of each unseen target clip, most probable first.

    Raises:
        TypeError: if latents are no real numbers.
        ValueError: if latents are not finite, all zero or of different sizes, or an option is out
            of range.

    Source: paper, Section 3.2 (HAR task decoder).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.har import methods, transfer
        >>> z = np.eye(3, dtype="float32")
        >>> task = transfer.Task((z, z), labelled=z, labels=np.array([4, 5, 7]), unseen=z)
        >>> methods.rank_by_mlp(task, key=jax.random.key(0), steps=100)[:, 0].tolist()
        [4, 5, 7]
    """
    labelled = _checks.matrix(task.labelled, "labelled")
    unseen = _checks.matrix(task.unseen, "unseen")
    if labelled.shape[1:] != unseen.shape[1:]:
        raise ValueError(
            "labelled and unseen must have latents of one size, got shapes "
            f"{labelled.shape} and {unseen.shape}."
        )
    if not labelled.any():
        raise ValueError("labelled has latents without any energy: there is nothing to train on.")
    _checks.key(key)
    _checks.integer(steps, "steps", low=1)
    _checks.positive(learning_rate, "learning_rate")
    classes, numbers = np.unique(task.labels, return_inverse=True)
    z, wanted = (x.astype(np.float32) for x in to_common_scale(labelled, unseen))
    count, size = z.shape
    if size > count:
        basis = np.linalg.qr(z.T)[0]
        z, wanted = z @ basis, wanted @ basis
    # Zeros up to one width, so that latents of every size are trained by one compiled program.
    z, wanted = (np.pad(x, ((0, 0), (0, count - x.shape[1]))) for x in (z, wanted))
    scale = np.sqrt(count / np.mean(np.sum(z * z, axis=1)))
    graph, weights = nnx.split(Decoder(key, inputs=count, classes=len(classes)))
    scores = _fit_decoder(graph, weights, z * scale, numbers, wanted * scale, learning_rate, steps)
    return classes[np.argsort(-np.asarray(scores), axis=1, kind="stable")]


def _as_latents(x: np.ndarray) -> np.ndarray:
    return _checks.matrix(x, "latents")


def _both(task: Task, exam: Exam, source: Any, target: Any) -> Posed:
    return task.encode(source, target), exam.encode(source, target)


def _apply(alignment: Alignment, task: Task, exam: Exam) -> Posed:
    def through(view: int) -> Any:
        return lambda x: solver.encode(alignment, x, view=view)

    return _both(task, exam, through(0), through(1))


@functools.partial(jax.jit, static_argnums=(0, 6))
def _fit_decoder(
    graph: Any,
    weights: Any,
    z: Array,
    numbers: Array,
    wanted: Array,
    learning_rate: Array,
    steps: int,
) -> Array:
    """Scores of ``wanted`` by the decoder trained on ``z``, all of it in one program."""
    optimizer = optax.adamw(learning_rate, weight_decay=1e-2)

    def loss_of(weights: Any) -> Array:
        scores = nnx.merge(graph, weights)(z)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, numbers))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)
    return nnx.merge(graph, weights)(wanted)
