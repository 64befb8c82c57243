"""How well two latents agree, and whether they carry anything.

An alignment error alone proves nothing: latents that are identically zero have error zero. Read
beside it how much energy the latents keep, how many directions they use and whether a sample finds
its partner again. A mean common to all samples fools relative measures, so those remove it first.

Every function takes latents with samples as rows, works inside ``jit``, ``vmap`` and ``grad``, and
has a finite gradient also where two latents coincide exactly.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perfalign_jax import _checks
from perfalign_jax._numerics import matmul

__all__ = [
    "Retrieval",
    "cmae",
    "effective_rank",
    "latent_energy",
    "linear_cka",
    "mlre",
    "mlre_affine",
    "mutual_knn",
    "ncmae",
    "relative_cmae",
    "retrieval",
]

Latents = Float[Array, "n k"] | Float[np.ndarray, "n k"]
Samples = Float[Array, "n _"] | Float[np.ndarray, "n _"]


def cmae(z1: Latents, z2: Latents) -> Float[Array, ""]:
    """Cross-modal alignment error: mean Euclidean distance of the two latents of a pair.

    Args:
        z1: latents of modality 1, shape ``(n, k)``.
        z2: latents of modality 2, shape ``(n, k)``.

    Returns:
        A scalar, in units of the latents. It depends on their scale: see ``relative_cmae``.

    Raises:
        TypeError: if a latent does not hold real numbers.
        ValueError: if the shapes differ, are empty or not 2-D, or a value is not finite.

    Source: paper Section 2.1, Eq. 8.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import cmae
        >>> float(cmae(jnp.zeros((2, 2)), jnp.array([[3.0, 4.0], [0.0, 0.0]])))
        2.5
    """
    return _cmae(*_checks.latents(z1, z2))


def ncmae(z1: Latents, z2: Latents) -> Float[Array, ""]:
    """Alignment error of the latents after each is divided by its own Euclidean norm.

    A latent that is exactly zero stays zero.

    Args:
        z1: latents of modality 1, shape ``(n, k)``.
        z2: latents of modality 2, shape ``(n, k)``.

    Returns:
        A scalar without unit, between 0 and 2.

    Raises:
        TypeError: if a latent does not hold real numbers.
        ValueError: if the shapes differ, are empty or not 2-D, or a value is not finite.

    Source: paper Section 3.1, Fig. 3 (normalized CMAE).

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import ncmae
        >>> round(float(ncmae(jnp.array([[4.0, 0.0]]), jnp.array([[0.0, 7.0]]))), 6)
        1.414214
    """
    return _ncmae(*_checks.latents(z1, z2))


def mlre(z: Latents, z_hat: Latents | Sequence[Latents]) -> Float[Array, ""]:
    """Modality latent reconstruction error: mean Euclidean distance from the true latents.

    What AX = 0 leaves free, an invertible map G in front of both projections, decides this number;
    ``mlre_affine`` removes that freedom.

    Args:
        z: true latents, shape ``(n, k)``.
        z_hat: latents of one modality, shape ``(n, k)``, for the error of that modality; or a tuple
            of them, for the average over the modalities.

    Returns:
        A scalar, in units of the latents.

    Raises:
        TypeError: if a latent does not hold real numbers.
        ValueError: if the shapes differ, are empty or not 2-D, or a value is not finite.

    Source: paper Section 2.1, Eq. 9 and the line below it.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import mlre
        >>> z = jnp.zeros((3, 2))
        >>> round(float(mlre(z, z + 1.0)), 6)
        1.414214
        >>> float(mlre(z, (z, z.at[:, 0].set(1.0))))
        0.5
    """
    pairs = [_checks.latents(z, e, "z", name) for name, e in _named(z_hat)]
    return _mlre(pairs[0][0], tuple(e for _, e in pairs))


def mlre_affine(z: Samples, z_hat: Samples | Sequence[Samples]) -> Float[Array, ""]:
    """Latent reconstruction error after the affine map of the estimate that fits best.

    The map ``z_hat -> z_hat @ G.T + b`` minimises the summed squared distance. Because
    ``(G A1, G A2)`` is as aligned as ``(A1, A2)``, two modalities share one map.

    Args:
        z: true latents, shape ``(n, k)``.
        z_hat: latents of one modality, shape ``(n, j)``, or a tuple of them; ``j`` and ``k`` may
            differ.

    Returns:
        A scalar, in units of the true latents. Zero up to rounding says that the true latents are
        an affine function of the estimated ones. With ``n <= j`` it is zero whatever the data.

    Raises:
        TypeError: if a latent does not hold real numbers.
        ValueError: if the numbers of rows differ, an array is empty or not 2-D, the estimates have
            different numbers of columns, or a value is not finite.

    Source: paper Section 3.1 (key insights: solutions are unique up to a linear map), with Eq. 9.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import mlre_affine
        >>> z = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [4.0, 4.0]])
        >>> bool(mlre_affine(z, z @ jnp.array([[2.0, 1.0], [0.0, 3.0]]) - 7.0) < 1e-4)
        True
    """
    pairs = [_pair(z, e, "z", name) for name, e in _named(z_hat)]
    widths = {e.shape[1] for _, e in pairs}
    if len(widths) > 1:
        raise ValueError(
            f"z_hat must hold latents with the same number of columns, got {sorted(widths)}."
        )
    return _mlre_affine(pairs[0][0], tuple(e for _, e in pairs))


def relative_cmae(z1: Latents, z2: Latents, *, center: bool = True) -> Float[Array, ""]:
    """Alignment error over the mean norm of the latents.

    Args:
        z1: latents of modality 1, shape ``(n, k)``.
        z2: latents of modality 2, shape ``(n, k)``.
        center: measure the norms from each modality's mean. Without it a mean common to all
            samples makes any error look small. The error itself is never centred: an offset
            between the modalities counts.

    Returns:
        A scalar without unit; 0 is perfect, unrelated latents score about ``sqrt(2)``, and latents
        without any spread score infinity.

    Raises:
        TypeError: if a latent does not hold real numbers.
        ValueError: if the shapes differ, are empty or not 2-D, or a value is not finite.

    Source: Eq. 8, made free of scale.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import relative_cmae
        >>> z = jnp.array([[-1.0], [1.0]])
        >>> float(relative_cmae(z + 99.0, -z + 99.0)), float(relative_cmae(0 * z, 0 * z))
        (2.0, inf)
    """
    return _relative_cmae(*_checks.latents(z1, z2), center=bool(center))


def latent_energy(z: Samples, x: Samples, *, center: bool = True) -> Float[Array, ""]:
    """Share of a view's energy (summed squares) that its latents keep.

    Args:
        z: latents of one modality, shape ``(n, k)``.
        x: the view they come from, shape ``(n, d)``.
        center: remove the means of both first, so that energy is variance.

    Returns:
        A scalar without unit; for a perfect alignment between 0 and 1, and next to 0 if the
        alignment is trivial. A view without energy scores 0.

    Raises:
        TypeError: if an array does not hold real numbers.
        ValueError: if the numbers of rows differ, an array is empty or not 2-D, or a value is not
            finite.

    Source: the collapse of paper Section 6.1 as a number.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import latent_energy
        >>> x = jnp.array([[1.0, 3.0], [-1.0, -3.0]])
        >>> round(float(latent_energy(x[:, :1], x)), 6)
        0.1
    """
    return _latent_energy(*_pair(z, x, "z", "x"), center=bool(center))


def effective_rank(z: Samples, *, center: bool = True) -> Float[Array, ""]:
    """Effective number of directions: the exponential of the entropy of the singular values.

    Args:
        z: latents, shape ``(n, k)``.
        center: remove the mean first.

    Returns:
        A scalar between 1 and ``min(n, k)``, without unit; 0 for latents that are all zero.

    Raises:
        TypeError: if the latents do not hold real numbers.
        ValueError: if they are empty or not 2-D, or a value is not finite.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import effective_rank
        >>> round(float(effective_rank(jnp.eye(4), center=False)), 4)
        4.0
    """
    return _effective_rank(_rows(z, "z"), center=bool(center))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Retrieval:
    """How often a sample finds its partner in the other modality, both ways.

    Attributes:
        recall_12: shape ``(len(at),)``; share of the queries of modality 1 whose partner of
            modality 2 is among the nearest ``at[i]``.
        recall_21: the same with modality 2 asking.
        median_rank_12: median rank of the partner, from 1 (nearest) to ``n``, modality 1 asking.
        median_rank_21: the same with modality 2 asking.
        at: how many of the nearest count as found.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import retrieval
        >>> retrieval(jnp.eye(4), jnp.eye(4), at=(1, 2)).at
        (1, 2)
    """

    recall_12: Float[Array, " a"]
    recall_21: Float[Array, " a"]
    median_rank_12: Float[Array, ""]
    median_rank_21: Float[Array, ""]
    at: tuple[int, ...] = dataclasses.field(metadata={"static": True})


def retrieval(
    z1: Latents,
    z2: Latents,
    *,
    at: tuple[int, ...] = (1, 5, 10),
    metric: str = "euclidean",
    chunk: int = 1024,
) -> Retrieval:
    """Rank every sample's partner among all samples of the other modality.

    Candidates at equal distance share their ranks: the median rank uses mid-ranks, and the recall
    is the one expected when ties are broken at random. So latents that are all equal score at
    chance, ``at / n``, and not 100 %.

    Args:
        z1: latents of modality 1, shape ``(n, k)``.
        z2: latents of modality 2, shape ``(n, k)``.
        at: how many of the nearest count as found, any number of choices.
        metric: ``"euclidean"``, or ``"cosine"`` for latents divided by their norms.
        chunk: rows per block; memory grows with ``chunk**2 + n``, not with ``n**2``.

    Distances come from products, so two candidates closer to each other than ``sqrt(eps)`` of the
    whole cloud's diameter (3e-4 in float32) count in no reliable order: use float64 there.

    Returns:
        Recalls and median ranks both ways.

    Raises:
        TypeError: if a latent does not hold real numbers, or ``at`` or ``chunk`` no integers.
        ValueError: if the shapes differ, are empty or not 2-D, a value is not finite, or an option
            is out of range.

    Source: the usual measure of cross-modal retrieval.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import retrieval
        >>> retrieval(jnp.eye(4), jnp.eye(4), at=(1,)).recall_12.tolist()
        [1.0]
        >>> collapsed = retrieval(jnp.zeros((4, 2)), jnp.zeros((4, 2)), at=(1,))
        >>> collapsed.recall_12.tolist(), float(collapsed.median_rank_12)
        ([0.25], 2.5)
    """
    z1, z2 = _checks.latents(z1, z2)
    if not isinstance(at, Sequence) or isinstance(at, str) or len(at) == 0:
        raise TypeError(f"at must be a tuple of integers such as (1, 5, 10), got {at!r}.")
    at = tuple(_checks.integer(a, f"at[{i}]", low=1) for i, a in enumerate(at))
    _checks.one_of(metric, "metric", ("euclidean", "cosine"))
    chunk = _checks.integer(chunk, "chunk", low=1)
    return _retrieval(z1, z2, at=at, metric=metric, chunk=min(chunk, z1.shape[0]))


def mutual_knn(
    z1: Samples,
    z2: Samples,
    *,
    neighbors: int = 10,
    metric: str = "cosine",
    chunk: int = 256,
) -> Float[Array, ""]:
    """Mean share of a sample's nearest neighbours that two representations have in common.

    Neighbours are sought inside each representation; the sample itself does not count. Samples tied
    for the last places share them, so latents that are all equal score at chance.

    Args:
        z1: first representation, shape ``(n, k1)``.
        z2: second representation of the same samples, shape ``(n, k2)``.
        neighbors: how many nearest neighbours, below ``n``.
        metric: ``"cosine"`` (the source's), or ``"euclidean"``.
        chunk: rows per block; memory grows with ``chunk * n``, not with ``n**2``.

    Returns:
        A scalar between 0 and 1; chance is ``neighbors / (n - 1)``.

    Raises:
        TypeError: if an array does not hold real numbers, or an option no integer.
        ValueError: if the numbers of rows differ, an array is empty or not 2-D, a value is not
            finite, or an option is out of range.

    Source: Huh et al., "The Platonic Representation Hypothesis", ICML 2024.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import mutual_knn
        >>> z = jnp.array([[0.0], [1.0], [3.0], [7.0]])
        >>> float(mutual_knn(z, 2 * z, neighbors=1, metric="euclidean"))
        1.0
    """
    z1, z2 = _pair(z1, z2, "z1", "z2")
    n = z1.shape[0]
    neighbors = _checks.integer(
        neighbors, "neighbors", low=1, high=max(n - 1, 1), why=f" (there are {n} samples)"
    )
    if n < 2:
        raise ValueError(f"z1 and z2 must have at least two rows, got {n}.")
    _checks.one_of(metric, "metric", ("cosine", "euclidean"))
    chunk = _checks.integer(chunk, "chunk", low=1)
    return _mutual_knn(z1, z2, neighbors=neighbors, metric=metric, chunk=min(chunk, n))


def linear_cka(z1: Samples, z2: Samples) -> Float[Array, ""]:
    """Linear centred kernel alignment, from the features' covariances alone.

    Args:
        z1: first representation, shape ``(n, k1)``.
        z2: second representation of the same samples, shape ``(n, k2)``.

    Returns:
        A scalar between 0 and 1, unchanged by rotation and by one scale per representation; 0 if
        one of them is constant. Work and memory grow with ``n * k1 * k2``, never with ``n**2``.

    Raises:
        TypeError: if an array does not hold real numbers.
        ValueError: if the numbers of rows differ, an array is empty or not 2-D, or a value is not
            finite.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import linear_cka
        >>> z = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(float(linear_cka(z, 3.0 * z[:, ::-1])), 5)
        1.0
    """
    return _linear_cka(*_pair(z1, z2, "z1", "z2"))


def _rows(z: Latents, name: str) -> Float[Array, "n k"]:
    z = _checks.array(z, name, ndim=2, shape="(n, k)")
    if 0 in z.shape:
        raise ValueError(f"{name} must have at least one row and one column, got shape {z.shape}.")
    return z


def _pair(
    a: Samples, b: Samples, a_name: str, b_name: str
) -> tuple[Float[Array, "n _"], Float[Array, "n _"]]:
    a, b = _rows(a, a_name), _rows(b, b_name)
    _checks.paired(a, b, a_name, b_name)
    return a, b


def _named(z_hat: Samples | Sequence[Samples]) -> list[tuple[str, Any]]:
    if not isinstance(z_hat, tuple | list):
        return [("z_hat", z_hat)]
    if len(z_hat) == 0 or not all(hasattr(e, "shape") for e in z_hat):
        raise TypeError("z_hat must be an array of shape (n, k) or a tuple of such arrays.")
    return [(f"z_hat[{m}]", e) for m, e in enumerate(z_hat)]


def _centred(z: Float[Array, "n k"], center: bool = True) -> Float[Array, "n k"]:
    return z - jnp.mean(z, axis=0, keepdims=True) if center else z


def _divide(a: Array, b: Array, otherwise: float) -> Array:
    """``a / b`` where b is above zero, ``otherwise`` elsewhere, with a finite gradient."""
    inside = b > 0
    return jnp.where(inside, a / jnp.where(inside, b, 1), otherwise)


def _norms(z: Float[Array, "n k"]) -> Float[Array, "n 1"]:
    """Euclidean norms of the rows: no under- or overflow, and gradient zero at zero."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, keepdims=True))
    some = largest > 0
    scale = jnp.where(some, largest, 1)
    squares = jnp.sum((z / scale) ** 2, axis=1, keepdims=True)
    return jnp.where(some, scale * jnp.sqrt(jnp.where(some, squares, 1)), 0)


def _unit(z: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return _divide(z, jnp.broadcast_to(_norms(z), z.shape), 0.0)


@jax.jit
def _cmae(z1: Float[Array, "n k"], z2: Float[Array, "n k"]) -> Float[Array, ""]:
    return jnp.mean(_norms(z1 - z2))


@jax.jit
def _ncmae(z1: Float[Array, "n k"], z2: Float[Array, "n k"]) -> Float[Array, ""]:
    return jnp.mean(_norms(_unit(z1) - _unit(z2)))


@jax.jit
def _mlre(z: Float[Array, "n k"], estimates: tuple[Array, ...]) -> Float[Array, ""]:
    return jnp.mean(jnp.stack([_norms(z - e) for e in estimates]))


@jax.jit
def _mlre_affine(z: Float[Array, "n k"], estimates: tuple[Array, ...]) -> Float[Array, ""]:
    stacked = _centred(jnp.concatenate(estimates))
    target = _centred(jnp.concatenate([z] * len(estimates)))
    eps = jnp.finfo(stacked.dtype).eps
    # pinv has a derivative of its own, finite also where singular values are equal.
    weights = matmul(jnp.linalg.pinv(stacked, rtol=eps * max(stacked.shape)), target)
    return jnp.mean(_norms(target - matmul(stacked, weights)))


@functools.partial(jax.jit, static_argnames="center")
def _relative_cmae(
    z1: Float[Array, "n k"], z2: Float[Array, "n k"], *, center: bool
) -> Float[Array, ""]:
    norms = jnp.stack([_norms(_centred(z, center)) for z in (z1, z2)])
    return _divide(jnp.mean(_norms(z1 - z2)), jnp.mean(norms), jnp.inf)


@functools.partial(jax.jit, static_argnames="center")
def _latent_energy(
    z: Float[Array, "n k"], x: Float[Array, "n d"], *, center: bool
) -> Float[Array, ""]:
    z, x = _centred(z, center), _centred(x, center)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    scale = jnp.where(scale > 0, scale, 1)
    return _divide(jnp.sum((z / scale) ** 2), jnp.sum((x / scale) ** 2), 0.0)


@functools.partial(jax.jit, static_argnames="center")
def _effective_rank(z: Float[Array, "n k"], *, center: bool) -> Float[Array, ""]:
    s = jnp.linalg.svd(_centred(z, center), compute_uv=False)
    total = jnp.sum(s)
    share = s / jnp.where(total > 0, total, 1)
    terms = jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0)
    return jnp.where(total > 0, jnp.exp(-jnp.sum(terms)), 0)


@jax.jit
def _linear_cka(z1: Float[Array, "n k1"], z2: Float[Array, "n k2"]) -> Float[Array, ""]:
    a, b = (_unit(_centred(z).reshape(1, -1)).reshape(z.shape) for z in (z1, z2))
    cross = jnp.sum(matmul(a.T, b) ** 2)
    own = jnp.sum(matmul(a.T, a) ** 2) * jnp.sum(matmul(b.T, b) ** 2)
    inside = own > 0
    return jnp.where(inside, cross / jnp.sqrt(jnp.where(inside, own, 1)), 0)


def _blocks(z: Float[Array, "n k"], chunk: int) -> Float[Array, "b chunk k"]:
    missing = -z.shape[0] % chunk
    return jnp.pad(z, ((0, missing), (0, 0))).reshape(-1, chunk, z.shape[1])


def _squared_distances(
    a: Float[Array, "p k"], aa: Float[Array, " p"], b: Float[Array, "q k"], bb: Float[Array, " q"]
) -> Float[Array, "p q"]:
    """Squared distances of rows whose squared norms are known; equal rows give equal bits."""
    return (aa[:, None] + bb[None, :]) - 2 * matmul(a, b.T)


def _squares(z: Float[Array, "... k"]) -> Float[Array, "..."]:
    return jnp.sum(z**2, axis=-1)


@functools.partial(jax.jit, static_argnames=("at", "metric", "chunk"))
def _retrieval(
    z1: Float[Array, "n k"],
    z2: Float[Array, "n k"],
    *,
    at: tuple[int, ...],
    metric: str,
    chunk: int,
) -> Retrieval:
    n = z1.shape[0]
    z1, z2 = jax.lax.stop_gradient((z1, z2))  # ranks have no gradient
    if metric == "cosine":
        z1, z2 = _unit(z1), _unit(z2)
    else:  # ranks do not change; nothing overflows, and rounding errors shrink
        size = jnp.maximum(jnp.max(jnp.abs(z1)), jnp.max(jnp.abs(z2)))
        unit = jnp.exp2(jnp.floor(jnp.log2(jnp.where(size > 0, size, 1))))
        z1, z2 = z1 / unit, z2 / unit
        middle = jnp.mean(z2, axis=0, keepdims=True)
        z1, z2 = z1 - middle, z2 - middle
    blocks1, blocks2 = ((b, _squares(b)) for b in (_blocks(z1, chunk), _blocks(z2, chunk)))
    numbers = jnp.arange(blocks1[0].shape[0] * chunk).reshape(-1, chunk)
    # The partner's distance comes from the same product as all others, so that ties stay ties.
    own = jax.lax.map(
        lambda pair: jnp.diagonal(_squared_distances(*pair[0], *pair[1])), (blocks1, blocks2)
    )

    def against_block(columns: Array, query: Any) -> tuple[Array, Array]:
        a, own_a, number_a = query

        def one(row: Array, candidate: Any) -> tuple[Array, Array]:
            b, own_b, number_b = candidate
            distances = _squared_distances(*a, *b)
            inside = (number_a < n)[:, None] & (number_b < n)[None, :]
            other = inside & (number_a[:, None] != number_b[None, :])
            row += _count(distances, own_a[:, None], other, axis=1)
            return row, _count(distances, own_b[None, :], other, axis=0)

        row, added = jax.lax.scan(one, jnp.zeros((2, chunk), jnp.int32), (blocks2, own, numbers))
        return columns + added, row

    columns, rows = jax.lax.scan(
        against_block,
        jnp.zeros((numbers.shape[0], 2, chunk), jnp.int32),
        (blocks1, own, numbers),
    )
    (recall_12, median_12), (recall_21, median_21) = (
        _recall(counts, n, at, z1.dtype) for counts in (rows, columns)
    )
    return Retrieval(recall_12, recall_21, median_12, median_21, at=at)


def _count(
    distances: Float[Array, "p q"], own: Array, other: Array, *, axis: int
) -> Int[Array, "2 _"]:
    """How many other candidates are nearer than the partner, and how many as near."""
    masks = (distances < own) & other, (distances == own) & other
    return jnp.stack([jnp.sum(m, axis=axis, dtype=jnp.int32) for m in masks])


def _recall(
    counts: Int[Array, "b 2 chunk"], n: int, at: tuple[int, ...], dtype: jnp.dtype
) -> tuple[Float[Array, " a"], Float[Array, ""]]:
    """Expected recall and median mid-rank from the numbers of nearer and of tied candidates."""
    nearer, tied = (counts[:, i].reshape(-1)[:n].astype(dtype) for i in range(2))
    places = jnp.asarray(at, dtype)
    hit = jnp.clip((places[:, None] - nearer[None, :]) / (tied + 1)[None, :], 0, 1)
    return jnp.mean(hit, axis=1), jnp.median(1 + nearer + tied / 2)


@functools.partial(jax.jit, static_argnames=("neighbors", "metric", "chunk"))
def _mutual_knn(
    z1: Float[Array, "n k1"],
    z2: Float[Array, "n k2"],
    *,
    neighbors: int,
    metric: str,
    chunk: int,
) -> Float[Array, ""]:
    n = z1.shape[0]
    both = tuple(
        jax.lax.stop_gradient(_unit(z) if metric == "cosine" else _centred(z)) for z in (z1, z2)
    )
    queries = tuple(_blocks(z, chunk) for z in both)
    starts = jnp.arange(queries[0].shape[0]) * chunk

    def block(carry: Array, query: Any) -> tuple[Array, None]:
        start, rows = query
        index = start + jnp.arange(chunk)
        is_self = jnp.arange(n)[:, None] == index[None, :]
        w1, w2 = (
            _membership(
                jnp.where(is_self, jnp.inf, _squared_distances(z, _squares(z), r, _squares(r))),
                neighbors,
            )
            for r, z in zip(rows, both, strict=True)
        )
        shared = jnp.sum(w1 * w2, axis=0) / neighbors
        return carry + jnp.sum(jnp.where(index < n, shared, 0)), None

    total, _ = jax.lax.scan(block, jnp.zeros((), both[0].dtype), (starts, queries))
    return total / n


def _membership(distances: Float[Array, "n p"], neighbors: int) -> Float[Array, "n p"]:
    """Weight with which each row is among a column's nearest; ties share the last places."""

    # The next larger value, as often as needed: far faster than sorting, and down the columns,
    # because XLA:CPU vectorises that direction.
    def widen(_: int | Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        level, found = state
        wider = jnp.min(jnp.where(distances > level, distances, jnp.inf), axis=0, keepdims=True)
        level = jnp.where(found < neighbors, wider, level)
        return level, jnp.sum(distances <= level, axis=0, keepdims=True, dtype=jnp.int32)

    none = jnp.zeros((1, distances.shape[1]), jnp.int32)
    level, found = jax.lax.fori_loop(
        0, neighbors, widen, (jnp.full(none.shape, -jnp.inf, distances.dtype), none)
    )
    tied = distances == level
    ties = jnp.sum(tied, axis=0, keepdims=True, dtype=jnp.int32)
    left = (neighbors - found + ties).astype(distances.dtype)
    return jnp.where(distances < level, 1, jnp.where(tied, left / ties, 0))
