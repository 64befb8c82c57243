"""How well two latents agree, and whether they carry anything.

An alignment error alone proves nothing: latents that are identically zero have error zero. Read
beside it how much energy the latents keep, how many directions they use and whether a sample finds
its partner again (``neighbours``). A mean common to all samples fools relative measures, so those
remove it first.

Every function takes arrays with samples as rows and returns a scalar, works inside ``jit``,
``vmap`` and ``grad``, and has a finite gradient also where two latents coincide exactly. It raises
a ``TypeError`` if an array does not hold real numbers, and a ``ValueError`` if one is empty, not
2-D or not finite, or if the shapes do not fit together. Where a value is not known yet, inside
``jit`` and ``vmap``, the metric of a NaN is NaN. Memory grows with the number of samples, never
with its square.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from perfalign_jax import _checks
from perfalign_jax._numerics import matmul, rank_cutoff

__all__ = [
    "cmae",
    "effective_rank",
    "latent_energy",
    "linear_cka",
    "mlre",
    "mlre_affine",
    "ncmae",
    "relative_cmae",
]

Latents = Float[Array, "n k"] | Float[np.ndarray, "n k"]
Matrix = Float[Array, "n _"] | Float[np.ndarray, "n _"]  # of its own width


def cmae(z1: Latents, z2: Latents) -> Float[Array, ""]:
    """Cross-modal alignment error: mean Euclidean distance of the two latents of a pair.

    Latents ``z1`` and ``z2`` of shape ``(n, k)``; the error is in their units, and so depends on
    their scale: see ``relative_cmae``. Errors are raised as the module says.

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

    Latents ``z1`` and ``z2`` of shape ``(n, k)``; one that is exactly zero stays zero. The error
    has no unit and lies between 0 and 2. Errors are raised as the module says.

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
        z: true latents, shape ``(n, k)``, whose units the error has.
        z_hat: latents of one modality, shape ``(n, k)``, for the error of that modality; or a tuple
            of them, for the average over the modalities.

    Raises:
        TypeError, ValueError: as the module says.

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


def mlre_affine(z: Matrix, z_hat: Matrix | Sequence[Matrix]) -> Float[Array, ""]:
    """Latent reconstruction error after the affine map of the estimate that fits best.

    The map ``z_hat -> z_hat @ G.T + b`` minimises the summed squared distance. Because
    ``(G A1, G A2)`` is as aligned as ``(A1, A2)``, all modalities share one map. Directions of the
    centred estimates at or below the package's rank cut-off count as absent. Zero up to rounding
    says that the true latents are an affine function of the estimated ones; with ``n <= j`` it is
    zero whatever the data.

    Args:
        z: true latents, shape ``(n, k)``, whose units the error has.
        z_hat: latents of one modality, shape ``(n, j)``, or a tuple of them; ``j`` and ``k`` may
            differ.

    Raises:
        TypeError, ValueError: as the module says.

    Source: paper Section 3.1 (key insights: solutions are unique up to a linear map), with Eq. 9.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import mlre_affine
        >>> z = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [4.0, 4.0]])
        >>> bool(mlre_affine(z, z @ jnp.array([[2.0, 1.0], [0.0, 3.0]]) - 7.0) < 1e-4)
        True
    """
    pairs = [paired_rows(z, e, "z", name) for name, e in _named(z_hat)]
    widths = {e.shape[1] for _, e in pairs}
    if len(widths) > 1:
        raise ValueError(
            f"z_hat must hold latents with the same number of columns, got {sorted(widths)}."
        )
    return _mlre_affine(pairs[0][0], tuple(e for _, e in pairs))


def relative_cmae(z1: Latents, z2: Latents) -> Float[Array, ""]:
    """Alignment error over the mean norm of the latents, each modality's measured from its mean.

    A mean common to all samples would make any error look small. The error itself is never centred:
    an offset between the modalities counts. Latents ``z1`` and ``z2`` of shape ``(n, k)``; the
    quotient has no unit: 0 is perfect, unrelated latents score about ``sqrt(2)``, and latents
    without any spread score infinity. Errors are raised as the module says.

    Source: Eq. 8, made free of scale.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import relative_cmae
        >>> z = jnp.array([[-1.0], [1.0]])
        >>> float(relative_cmae(z + 99.0, -z + 99.0)), float(relative_cmae(0 * z, 0 * z))
        (2.0, inf)
    """
    return _relative_cmae(*_checks.latents(z1, z2))


def latent_energy(z: Matrix, x: Matrix) -> Float[Array, ""]:
    """Share of a view's energy (summed squares about its mean) that its latents keep.

    Latents ``z`` of shape ``(n, k)`` of the view ``x``, shape ``(n, d)``. The share has no unit;
    for a perfect alignment it lies between 0 and 1, and next to 0 if the alignment is trivial. A
    view without energy scores 0. Errors are raised as the module says.

    Source: the collapse of paper Section 6.1 as a number.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import latent_energy
        >>> x = jnp.array([[1.0, 3.0], [-1.0, -3.0]])
        >>> round(float(latent_energy(x[:, :1], x)), 6)
        0.1
    """
    return _latent_energy(*paired_rows(z, x, "z", "x"))


def effective_rank(z: Matrix) -> Float[Array, ""]:
    """Effective number of directions: the exponential of the entropy of the singular values.

    The mean of the latents ``z``, shape ``(n, k)``, is removed. The number has no unit and lies
    between 1 and ``min(n, k)``; it is 0 for latents that are all the same. Errors are raised as the
    module says.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import effective_rank
        >>> round(float(effective_rank(jnp.concatenate([jnp.eye(4), -jnp.eye(4)]))), 4)
        4.0
    """
    return _effective_rank(_rows(z, "z"))


def linear_cka(z1: Matrix, z2: Matrix) -> Float[Array, ""]:
    """Linear centred kernel alignment, from the features' covariances alone.

    Two representations of the same samples, shapes ``(n, k1)`` and ``(n, k2)``. It lies between 0
    and 1, unchanged by rotation and by one scale per representation; 0 if one of them is constant.
    Work and memory grow with ``n * k1 * k2``. Errors are raised as the module says.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.metrics import linear_cka
        >>> z = jnp.array([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(float(linear_cka(z, 3.0 * z[:, ::-1])), 5)
        1.0
    """
    return _linear_cka(*paired_rows(z1, z2, "z1", "z2"))


def _rows(z: Latents, name: str) -> Float[Array, "n k"]:
    z = _checks.array(z, name, ndim=2, shape="(n, k)")
    if 0 in z.shape:
        raise ValueError(f"{name} must have at least one row and one column, got shape {z.shape}.")
    return z


def paired_rows(
    a: Matrix, b: Matrix, a_name: str, b_name: str
) -> tuple[Float[Array, "n _"], Float[Array, "n _"]]:
    """Return two finite arrays of paired rows, each of its own width, or raise."""
    a, b = _rows(a, a_name), _rows(b, b_name)
    _checks.paired(a, b, a_name, b_name)
    return a, b


def _named(z_hat: Matrix | Sequence[Matrix]) -> list[tuple[str, Any]]:
    if not isinstance(z_hat, tuple | list):
        return [("z_hat", z_hat)]
    if len(z_hat) == 0 or not all(hasattr(e, "shape") for e in z_hat):
        raise TypeError("z_hat must be an array of shape (n, k) or a tuple of such arrays.")
    return [(f"z_hat[{m}]", e) for m, e in enumerate(z_hat)]


def _centred(z: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Remove the mean: a second pass removes the rounding of the first sum.

    A mean lies between the extremes, so that a constant becomes exactly zero.
    """
    for _ in range(2):
        mean = jnp.mean(z, axis=0, keepdims=True)
        low, high = (f(jax.lax.stop_gradient(z), axis=0, keepdims=True) for f in (jnp.min, jnp.max))
        z = z - jax.lax.clamp(low, mean, high)
    return z


def _divide(a: Array, b: Array, otherwise: float) -> Array:
    """``a / b``, and ``otherwise`` where b is zero; NaN stays NaN, and the gradient finite."""
    zero = b == 0
    return jnp.where(zero, otherwise + 0 * a, a / jnp.where(zero, 1, b))


def _norms(z: Float[Array, "n k"]) -> Float[Array, "n 1"]:
    """Euclidean norms of the rows: no under- or overflow, and gradient zero at zero."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, keepdims=True))
    zero = largest == 0
    scale = jnp.where(zero | ~jnp.isfinite(largest), 1, largest)
    squares = jnp.sum((z / scale) ** 2, axis=1, keepdims=True)
    return jnp.where(zero, 0, scale * jnp.sqrt(jnp.where(zero, 1, squares)))


def unit_rows(z: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Divide every row by its Euclidean norm; a zero row stays zero."""
    return _divide(z, jnp.broadcast_to(_norms(z), z.shape), 0.0)


@jax.jit
def _cmae(z1: Float[Array, "n k"], z2: Float[Array, "n k"]) -> Float[Array, ""]:
    return jnp.mean(_norms(z1 - z2))


@jax.jit
def _ncmae(z1: Float[Array, "n k"], z2: Float[Array, "n k"]) -> Float[Array, ""]:
    return jnp.mean(_norms(unit_rows(z1) - unit_rows(z2)))


@jax.jit
def _mlre(z: Float[Array, "n k"], estimates: tuple[Array, ...]) -> Float[Array, ""]:
    return jnp.mean(jnp.stack([_norms(z - e) for e in estimates]))


@jax.jit
def _mlre_affine(z: Float[Array, "n k"], estimates: tuple[Array, ...]) -> Float[Array, ""]:
    stacked = _centred(jnp.concatenate(estimates))
    target = _centred(jnp.concatenate([z] * len(estimates)))
    with jax.ensure_compile_time_eval():  # pinv takes no traced number
        relative = float(rank_cutoff(jnp.ones(1, stacked.dtype), (len(stacked), stacked.shape[1])))
    # pinv has a derivative of its own, finite also where singular values are equal.
    weights = matmul(jnp.linalg.pinv(stacked, rtol=relative), target)
    return jnp.mean(_norms(target - matmul(stacked, weights)))


@jax.jit
def _relative_cmae(z1: Float[Array, "n k"], z2: Float[Array, "n k"]) -> Float[Array, ""]:
    norms = jnp.stack([_norms(_centred(z)) for z in (z1, z2)])
    return _divide(jnp.mean(_norms(z1 - z2)), jnp.mean(norms), jnp.inf)


@jax.jit
def _latent_energy(z: Float[Array, "n k"], x: Float[Array, "n d"]) -> Float[Array, ""]:
    z, x = _centred(z), _centred(x)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    scale = jnp.where(largest == 0, 1, largest)
    return _divide(jnp.sum((z / scale) ** 2), jnp.sum((x / scale) ** 2), 0.0)


@jax.jit
def _effective_rank(z: Float[Array, "n k"]) -> Float[Array, ""]:
    # Full matrices would reserve n x n even where no vectors are asked for.
    s = jnp.linalg.svd(_centred(z), full_matrices=False, compute_uv=False)
    total = jnp.sum(s)
    share = _divide(s, total, 0.0)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share == 0, 1, share)))
    return jnp.where(total == 0, 0, jnp.exp(entropy))


@jax.jit
def _linear_cka(z1: Float[Array, "n k1"], z2: Float[Array, "n k2"]) -> Float[Array, ""]:
    a, b = (unit_rows(_centred(z).reshape(1, -1)).reshape(z.shape) for z in (z1, z2))
    cross, own1, own2 = (jnp.sum(matmul(p.T, q) ** 2) for p, q in ((a, b), (a, a), (b, b)))
    own = own1 * own2  # zero where one is constant, and then so is cross
    return cross / jnp.sqrt(jnp.where(own == 0, 1, own))
