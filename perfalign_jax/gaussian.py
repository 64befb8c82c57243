"""Classes as Gaussians in the latent space: found without labels, or carried across modalities.

A linear map of a Gaussian is Gaussian, so classes that are Gaussian in the true latent space are
Gaussian in the estimated one. A classifier fitted on the labelled latents of one modality then
works on the latents of the other (zero-shot); a few labelled samples of the other may be added.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from perfalign_jax import _checks
from perfalign_jax._numerics import matmul, rounding

__all__ = [
    "Gaussians",
    "accuracy",
    "classify",
    "fit_gaussians",
    "fit_mixture",
    "log_scores",
    "match_classes",
]

Latents = Float[Array, "n k"] | Float[np.ndarray, "n k"]
Labels = Int[Array, " n"] | Int[np.ndarray, " n"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussians:
    """One Gaussian per class (or per component of a mixture) and the share of each.

    Attributes:
        means: shape ``(c, k)``, in units of the latents.
        covariances: shape ``(c, k, k)``, in squared units of the latents.
        log_shares: shape ``(c,)``, logarithm of each class's probability.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.gaussian import Gaussians, classify
        >>> means, covariances = jnp.array([[0.0], [4.0]]), jnp.ones((2, 1, 1))
        >>> two = Gaussians(means, covariances, log_shares=jnp.log(jnp.array([0.5, 0.5])))
        >>> classify(two, jnp.array([[1.0], [3.0]])).tolist()
        [0, 1]
    """

    means: Float[Array, "c k"]
    covariances: Float[Array, "c k k"]
    log_shares: Float[Array, " c"]


def fit_gaussians(
    z: Latents,
    labels: Labels,
    *,
    classes: int,
    shots: tuple[Latents, Labels] | None = None,
    covariance: str = "per_class",
    ridge: float | Array | None = None,
) -> Gaussians:
    """Fit one Gaussian to the latents of each class.

    This is quadratic (``"per_class"``) or linear (``"shared"``) discriminant analysis by maximum
    likelihood. Classes without samples get share zero.

    Args:
        z: labelled latents of the source modality, shape ``(n, k)``.
        labels: their classes, integers in ``[0, classes)``, shape ``(n,)``.
        classes: number of classes.
        shots: a few labelled latents of the target modality, ``(z, labels)``, pooled with the
            source's.
        covariance: ``"per_class"``, or ``"shared"`` by all classes.
        ridge: added to each covariance's diagonal, relative to the mean variance within classes.
            Without it what rounding alone gives to a variance (``_numerics.rounding``): just enough
            that directions without energy do no harm. Give more where a class has fewer samples
            than dimensions.

    Returns:
        Means, covariances and shares.

    Raises:
        TypeError: if the latents do not hold real numbers or the labels no integers.
        ValueError: if shapes do not fit, a label or option is out of range, or a value is not
            finite.

    Source: version 1 of the paper, Section 1 (classes as Gaussians in the latent space).

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.gaussian import fit_gaussians
        >>> z = jnp.array([[0.0], [2.0], [10.0], [12.0]])
        >>> fit_gaussians(z, jnp.array([0, 0, 1, 1]), classes=2).means.tolist()
        [[1.0], [11.0]]
    """
    classes = _checks.integer(classes, "classes", low=1)
    _checks.one_of(covariance, "covariance", ("per_class", "shared"))
    if ridge is not None:
        _checks.positive(ridge, "ridge", zero=True)
    z, labels = _labelled(z, labels, "z", "labels", classes)
    if shots is not None:
        if not isinstance(shots, tuple | list) or len(shots) != 2:
            raise TypeError("shots must be a tuple (z, labels) of the target modality.")
        more, more_labels = _labelled(*shots, "shots[0]", "shots[1]", classes)
        if more.shape[1] != z.shape[1]:
            raise ValueError(
                f"shots[0] must have k = {z.shape[1]} columns like z, got shape {more.shape}."
            )
        z, labels = jnp.concatenate([z, more]), jnp.concatenate([labels, more_labels])
    if z.shape[0] < 1:
        raise ValueError("z must have at least one row, got none.")
    if ridge is None:
        ridge = rounding(z.dtype, *z.shape)
    return _fit(z, labels, ridge, classes=classes, shared=covariance == "shared")


def log_scores(gaussians: Gaussians, z: Latents) -> Float[Array, "n c"]:
    """Logarithm of share times density of every class, for every latent.

    Args:
        gaussians: classes or mixture components.
        z: latents of any modality, shape ``(n, k)``.

    Returns:
        Shape ``(n, c)``, in nats. The softmax over a row is the posterior probability.

    Raises:
        TypeError: if the latents do not hold real numbers.
        ValueError: if they do not have ``k`` columns or a value is not finite.

    Source: Bayes' rule for the mixture of paper Eq. 10.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from perfalign_jax.gaussian import fit_gaussians, log_scores
        >>> z = jnp.array([[0.0], [2.0], [10.0], [12.0]])
        >>> gaussians = fit_gaussians(z, jnp.array([0, 0, 1, 1]), classes=2)
        >>> jax.nn.softmax(log_scores(gaussians, jnp.array([[6.0]]))).round(3).tolist()
        [[0.5, 0.5]]
    """
    if not isinstance(gaussians, Gaussians):
        raise TypeError(f"gaussians must be Gaussians, got {type(gaussians).__name__}.")
    z = _checks.array(z, "z", ndim=2, shape="(n, k)")
    k = gaussians.means.shape[-1]
    if z.shape[1] != k:
        raise ValueError(f"z must have k = {k} columns like the Gaussians, got shape {z.shape}.")
    return _log_scores(gaussians, z)


def classify(gaussians: Gaussians, z: Latents) -> Int[Array, " n"]:
    """Name the most probable class of every latent.

    Args:
        gaussians: classes or mixture components.
        z: latents of any modality, shape ``(n, k)``.

    Returns:
        Class numbers, shape ``(n,)``.

    Raises:
        TypeError: if the latents do not hold real numbers.
        ValueError: if they do not have ``k`` columns or a value is not finite.

    Source: version 1 of the paper, Section 1: a classifier of one modality on the other's latents.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.gaussian import classify, fit_gaussians
        >>> z = jnp.array([[0.0], [2.0], [10.0], [12.0]])
        >>> gaussians = fit_gaussians(z, jnp.array([0, 0, 1, 1]), classes=2)
        >>> classify(gaussians, jnp.array([[1.5], [9.0]])).tolist()
        [0, 1]
    """
    return jnp.argmax(log_scores(gaussians, z), axis=1)


def fit_mixture(
    key: Key[Array, ""] | UInt32[Array, "2"],
    z: Latents,
    *,
    components: int,
    covariance: str = "per_class",
    restarts: int = 10,
) -> Gaussians:
    """Fit a mixture of Gaussians to latents without labels, by scikit-learn's EM.

    The latents are whitened for the fit and the result is mapped back, so that it depends neither
    on their unit nor on the invertible map that an alignment leaves free. It runs on the host: not
    inside ``jit`` or ``vmap``.

    Args:
        key: random key of the starts.
        z: latents without labels, shape ``(n, k)``.
        components: number of Gaussians.
        covariance: ``"per_class"``, or ``"shared"`` by all components.
        restarts: starts from k-means, of which the likeliest fit is kept.

    Returns:
        Means, covariances and shares; which component is which class is arbitrary
        (``match_classes``).

    Raises:
        TypeError: if the latents do not hold real numbers or a count is no integer.
        ValueError: if a count is out of range or a value is not finite.

    Source: version 1 of the paper, Section 3.1: "the classes can still be identified in the
    estimated latent space using a GMM".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from perfalign_jax.gaussian import fit_mixture
        >>> z = jnp.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
        >>> mixture = fit_mixture(jax.random.key(0), z, components=2, covariance="shared")
        >>> sorted(round(float(m)) for m in mixture.means[:, 0])
        [1, 11]
    """
    z = _checks.array(z, "z", ndim=2, shape="(n, k)")
    n = z.shape[0]
    components = _checks.integer(
        components, "components", low=1, high=n, why=f" (there are {n} samples)"
    )
    restarts = _checks.integer(restarts, "restarts", low=1)
    _checks.one_of(covariance, "covariance", ("per_class", "shared"))
    host = np.asarray(z, np.float64)
    middle = host.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(host.T, bias=True).reshape(z.shape[1], -1))
    floor = float(rounding(z.dtype, *z.shape)) * variances[-1]
    root = axes * np.sqrt(np.maximum(variances, floor) if floor > 0 else np.ones_like(variances))
    white = np.linalg.solve(root, (host - middle).T).T
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        components,
        covariance_type="tied" if covariance == "shared" else "full",
        n_init=restarts,
        random_state=int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max)),
    ).fit(white)
    k = z.shape[1]
    covariances = root @ np.broadcast_to(model.covariances_, (components, k, k)) @ root.T
    return Gaussians(
        jnp.asarray(middle + model.means_ @ root.T, z.dtype),
        jnp.asarray(covariances, z.dtype),
        jnp.asarray(np.log(model.weights_), z.dtype),
    )


def match_classes(predicted: Labels, labels: Labels, *, classes: int) -> Int[np.ndarray, " c"]:
    """Name the class that each cluster stands for: the one-to-one naming with most hits.

    Args:
        predicted: cluster numbers in ``[0, classes)``, shape ``(n,)``.
        labels: true classes in ``[0, classes)``, shape ``(n,)``.
        classes: number of classes and of clusters.

    Returns:
        Class of each cluster, shape ``(classes,)``: ``match[predicted]`` are class labels.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: if the lengths differ or a label is out of range.

    Source: Kuhn's Hungarian method, as SciPy has it.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.gaussian import match_classes
        >>> match_classes(np.array([1, 1, 0]), np.array([0, 0, 1]), classes=2).tolist()
        [1, 0]
    """
    classes = _checks.integer(classes, "classes", low=1)
    first, second = (
        np.asarray(_class_numbers(v, name, classes))
        for v, name in ((predicted, "predicted"), (labels, "labels"))
    )
    _checks.paired(first, second, "predicted", "labels")
    hits = np.zeros((classes, classes), np.int64)
    np.add.at(hits, (first, second), 1)
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(hits, maximize=True)[1]


def accuracy(predicted: Labels, labels: Labels) -> Float[Array, ""]:
    """Share of samples whose class is named correctly.

    Args:
        predicted: class numbers, shape ``(n,)``.
        labels: true classes, shape ``(n,)``.

    Returns:
        A scalar between 0 and 1.

    Raises:
        TypeError: if the labels are no integers.
        ValueError: if the lengths differ or are zero.

    Source: top-1 accuracy, as in the paper's Table 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from perfalign_jax.gaussian import accuracy
        >>> float(accuracy(jnp.array([0, 1, 1, 1]), jnp.array([0, 1, 1, 0])))
        0.75
    """
    first, second = _class_numbers(predicted, "predicted"), _class_numbers(labels, "labels")
    _checks.paired(first, second, "predicted", "labels")
    if first.shape[0] == 0:
        raise ValueError("predicted and labels must have at least one entry, got none.")
    return jnp.mean(first == second, dtype=float)


def _class_numbers(labels: Any, name: str, classes: int | None = None) -> Int[Array, " n"]:
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if np.dtype(labels.dtype).kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {labels.dtype}.")
    if len(labels.shape) != 1:
        raise ValueError(f"{name} must have shape (n,), got shape {tuple(labels.shape)}.")
    if classes is not None and not _checks.is_traced(labels) and labels.shape[0]:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{name} must lie in [0, {classes}), got values from {low} to {high}.")
    return jnp.asarray(labels, jnp.int32)


def _labelled(z: Any, labels: Any, z_name: str, name: str, classes: int) -> tuple[Array, Array]:
    z = _checks.array(z, z_name, ndim=2, shape="(n, k)")
    numbers = _class_numbers(labels, name, classes)
    _checks.paired(z, numbers, z_name, name)
    return z, numbers


@functools.partial(jax.jit, static_argnames=("classes", "shared"))
def _fit(
    z: Float[Array, "n k"], labels: Int[Array, " n"], ridge: Any, *, classes: int, shared: bool
) -> Gaussians:
    n, k = z.shape
    middle = jnp.mean(z, axis=0, keepdims=True)  # keeps rounding small where the mean is large
    z = z - middle
    member = (labels[:, None] == jnp.arange(classes, dtype=labels.dtype)[None, :]).astype(z.dtype)
    counts = jnp.sum(member, axis=0)
    means = matmul(member.T, z) / jnp.maximum(counts, 1)[:, None]
    within = z - means[labels]
    scatters = jax.lax.map(  # one class at a time: n * k numbers, not n * k * classes
        lambda one: matmul((within * one[:, None]).T, within), member.T
    )
    pooled = jnp.sum(scatters, axis=0) / n
    if shared:
        covariances = jnp.broadcast_to(pooled, scatters.shape)
    else:
        covariances = scatters / jnp.maximum(counts, 1)[:, None, None]
    level = ridge * jnp.trace(pooled) / k
    # Latents without any variance: a unit covariance leaves all classes tied.
    level = jnp.where(jnp.trace(pooled) > 0, level, 1)
    # At least the rounding of a class's own largest eigenvalue, of which the trace is a bound.
    least = rounding(z.dtype, n, k) * jnp.trace(covariances, axis1=1, axis2=2)
    level = jnp.maximum(level.astype(z.dtype), least)
    covariances += level[:, None, None] * jnp.eye(k, dtype=z.dtype)[None]
    shares = jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1) / n), -jnp.inf)
    return Gaussians(means + middle, covariances, shares)


@jax.jit
def _log_scores(gaussians: Gaussians, z: Float[Array, "n k"]) -> Float[Array, "n c"]:
    def one(mean: Array, covariance: Array, log_share: Array) -> Float[Array, " n"]:
        factor = jnp.linalg.cholesky(covariance)
        white = jax.scipy.linalg.solve_triangular(factor, (z - mean[None, :]).T, lower=True)
        size = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + mean.shape[0] * jnp.log(2 * jnp.pi)
        return log_share - (jnp.sum(white**2, axis=0) + size) / 2

    return jax.vmap(one, out_axes=1)(gaussians.means, gaussians.covariances, gaussians.log_shares)
