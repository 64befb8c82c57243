"""Kernel lifts: the features of a kernel, exact at landmarks, or random.

A kernel is an inner product of features that need not be written down. ``Nystroem`` writes down
those that matter at some landmarks: with all rows as landmarks every inner product of these rows is
exact, so the linear method on the features is the kernel method itself. ``Fourier`` draws random
features whose inner products are the kernel's on average; it keeps no row of the data.

Rows are standardised first (``lift.Standardise``), so one rule for the bandwidth serves all data: a
factor times the median distance between rows.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from perfalign_jax import _checks
from perfalign_jax._numerics import compiled, flip_signs, matmul, namespace, rounding

__all__ = ["Fourier", "Nystroem", "Principal", "Standardise", "choose_landmarks", "fit_fourier"]
__all__ += ["fit_nystroem", "fit_principal", "fit_standardise"]

Kernel = Literal["gaussian", "laplacian", "polynomial", "arc_cosine"]
KERNELS = ("gaussian", "laplacian", "polynomial", "arc_cosine")
_DEGREE = 3  # of the polynomial kernel
_SAMPLE = 2000  # rows that the median distance, leverages and k-means look at
_BLOCK = 4096  # rows lifted at once
_WIDTHS = 4  # widths that features may have: each is compiled anew


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Standardise:
    """Centre every feature, scale it by its spread, and divide all by ``sqrt(d)``.

    Attributes:
        mean: what is taken off, shape ``(d,)``, in the features' units.
        factor: what each feature is then multiplied by, shape ``(d,)``.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> lift.fit_standardise(np.float32([[0], [2]])).mean.tolist()
        [1.0]
    """

    mean: Float[Any, " d"]
    factor: Float[Any, " d"]

    @property
    def dim(self) -> int:
        """Number of features of a row."""
        return self.mean.shape[0]

    def _apply(self, x: Float[Any, "n d"]) -> Float[Any, "n d"]:
        return _scale(matching(x, self.mean), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Principal:
    """Principal coordinates of what another lift makes of a row: fewer features than it makes.

    Attributes:
        lift: what is applied first.
        basis: orthonormal columns, shape ``(p, r)``.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
        >>> narrow = lift.fit_principal(lift.fit_standardise(x), x)
        >>> lift.apply(narrow, x).shape
        (5, 5)
    """

    lift: Any
    basis: Float[Any, "p r"]

    @property
    def dim(self) -> int:
        """Number of features of a row."""
        return self.lift.dim

    def _apply(self, x: Float[Any, "n d"]) -> Float[Any, "n r"]:
        features = self.lift._apply(x)
        return matmul(features, self.basis.astype(features.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nystroem:
    """Features of a kernel whose inner products are exact at the landmarks.

    Attributes:
        scaling: what standardises a row first.
        landmarks: standardised rows, shape ``(m, d)``.
        bandwidth: distance at which two rows are about half alike, in standardised units.
        weights: shape ``(m, p)``, maps a row's kernel values at the landmarks to features.
        kernel: which kernel.

    Source: Williams and Seeger (2001).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import kernels
        >>> kernels.fit_nystroem(np.eye(4, dtype=np.float32)).landmarks.shape
        (4, 4)
    """

    scaling: Standardise
    landmarks: Float[Any, "m d"]
    bandwidth: Float[Any, ""]
    weights: Float[Any, "m p"]
    kernel: str = dataclasses.field(metadata={"static": True})

    @property
    def dim(self) -> int:
        """Number of features of a row."""
        return self.scaling.dim

    def _apply(self, x: Float[Any, "n d"]) -> Float[Any, "n p"]:
        return _blockwise(self, matching(x, self.landmarks))

    def _features(self, x: Float[Any, "n d"]) -> Float[Any, "n p"]:
        values = _compare(_scale(x, self.scaling), self.landmarks, self.bandwidth, self.kernel)
        return matmul(values, self.weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fourier:
    """Random features whose inner products are a shift-invariant kernel on average.

    Attributes:
        scaling: what standardises a row first.
        frequencies: shape ``(d, p)``, in standardised units.
        phases: shape ``(p,)``, in radians.

    Source: Rahimi and Recht (2007).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax import kernels
        >>> x = np.eye(4, 3, dtype=np.float32)
        >>> kernels.fit_fourier(x, key=jax.random.key(0), count=8).frequencies.shape
        (3, 8)
    """

    scaling: Standardise
    frequencies: Float[Any, "d p"]
    phases: Float[Any, " p"]

    @property
    def dim(self) -> int:
        """Number of features of a row."""
        return self.scaling.dim

    def _apply(self, x: Float[Any, "n d"]) -> Float[Any, "n p"]:
        return _blockwise(self, matching(x, self.frequencies.T))

    def _features(self, x: Float[Any, "n d"]) -> Float[Any, "n p"]:
        angles = matmul(_scale(x, self.scaling), self.frequencies) + self.phases[None, :]
        return (2 / self.phases.shape[0]) ** 0.5 * namespace(angles).cos(angles)


def matching(x: Float[Any, "n d"], like: Float[Any, "... d"]) -> Float[Any, "n d"]:
    """Return finite rows with as many features as what a lift holds, or raise."""
    d = like.shape[-1]
    if namespace(like) is np and namespace(x) is np:  # within a fit that looked at its rows
        return x
    checked = _checks.array(x, "x", ndim=2, shape=f"(n, {d})")
    if checked.shape[1] != d:
        raise ValueError(f"x must have shape (n, {d}), got shape {checked.shape}.")
    return checked


@compiled()
def _scale(x: Float[Any, "n d"], scaling: Standardise) -> Float[Any, "n d"]:
    return (x - scaling.mean.astype(x.dtype)[None, :]) * scaling.factor.astype(x.dtype)[None, :]


@compiled()
def _blockwise(lift: Nystroem | Fourier, x: Float[Any, "n d"]) -> Float[Any, "n p"]:
    lift = jax.tree.map(lambda a: a.astype(x.dtype), lift)
    n = x.shape[0]
    if n <= _BLOCK:
        return lift._features(x)
    if namespace(x) is np:
        first = lift._features(x[:_BLOCK])
        found = np.empty((n, first.shape[1]), first.dtype)
        found[:_BLOCK] = first
        for start in range(_BLOCK, n, _BLOCK):
            found[start : start + _BLOCK] = lift._features(x[start : start + _BLOCK])
        return found
    blocks = jnp.pad(x, ((0, -n % _BLOCK), (0, 0))).reshape(-1, _BLOCK, x.shape[1])
    found = jax.lax.map(lift._features, blocks)
    return found.reshape(-1, found.shape[-1])[:n]


def _distances(x: Float[Any, "n d"], y: Float[Any, "m d"]) -> Float[Any, "n m"]:
    xp, eps = namespace(x), jnp.finfo(x.dtype).eps
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :]
    apart = squares - 2 * matmul(x, y.T)
    # What rounding leaves of equal rows is no distance.
    return xp.where(apart > (8 + x.shape[1] ** 0.5) * eps * squares, apart, 0)


def _compare(
    x: Float[Any, "n d"], y: Float[Any, "m d"], bandwidth: Any, kernel: str
) -> Float[Any, "n m"]:
    xp = namespace(x)
    if kernel == "gaussian":
        return xp.exp(-_distances(x, y) / (2 * bandwidth**2))
    if kernel == "laplacian":
        return xp.exp(-xp.sqrt(_distances(x, y)) / bandwidth)
    # Rows with a constant beside them, so that lines need not pass through the origin.
    product = matmul(x, y.T) / bandwidth**2 + 1
    if kernel == "polynomial":
        return product**_DEGREE
    lengths = [xp.sqrt((a**2).sum(axis=1) / bandwidth**2 + 1) for a in (x, y)]
    scale = lengths[0][:, None] * lengths[1][None, :]
    cosine = xp.clip(product / scale, -1, 1)
    angle = xp.arccos(cosine)
    return scale * (xp.sqrt(1 - cosine**2) + (xp.pi - angle) * cosine) / xp.pi


def fit_standardise(x: Float[Array | np.ndarray, "n d"], *, floor: float = 0.0) -> Standardise:
    """Measure mean and spread of every feature over some rows: the alignment pairs.

    Every feature is brought to its own spread, so their units do not matter; one that does not move
    over these rows, but for rounding, says nothing and becomes zero. Over these rows the features
    have mean zero, and their mean squared norm is at most 1.

    Args:
        x: shape ``(n, d)``, at least two rows.
        floor: smallest spread that is believed, as a share of the root mean square spread of all
            features. Above 0 it is for features in the same units of which some hardly move over
            few rows: divided by its own spread such a one can reach thousands on another row.
            Infinity leaves the features as they are against each other, one scale for all.

    Raises:
        TypeError: if ``x`` does not hold real numbers.
        ValueError: if a value is not finite, or there are fewer than two rows.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> x = np.float32([[0, 1], [2, 5], [4, 4]])
        >>> np.asarray(lift.apply(lift.fit_standardise(x[:2]), x) * 2**0.5).round(3)
        array([[-1. , -1. ],
               [ 1. ,  1. ],
               [ 3. ,  0.5]], dtype=float32)
    """
    checked = _rows(x)
    if floor != np.inf:
        _checks.positive(floor, "floor", zero=True)
    return measure_spread(checked, np.asarray(floor, checked.dtype))


@compiled()
def measure_spread(
    x: Float[Any, "n d"], floor: Float[Any, ""], w: Float[Any, " n"] | None = None
) -> Standardise:
    """As ``fit_standardise``, of rows that were looked at, with weights."""
    # Sums of products: NumPy adds columns up term by term, and errors with them.
    xp = namespace(x)
    share = xp.full(x.shape[0], 1 / x.shape[0], x.dtype) if w is None else w / w.sum()
    mean = matmul(share, x)
    mean = mean + matmul(share, x - mean[None, :])
    apart = x - mean[None, :]
    unit = _power_of_two(xp.maximum(apart.max(axis=0), -apart.min(axis=0)))
    squares = matmul(share, (apart / unit[None, :]) ** 2)
    moves = squares > 0  # the root of zero has no derivative
    spread = xp.where(moves, unit * xp.sqrt(xp.where(moves, squares, 1)), 0)
    return standardise(mean, spread, floor)


def _power_of_two(size: Float[Any, "*d"]) -> Float[Any, "*d"]:
    """One below each size, in whose unit no square overflows or vanishes; 1 for zero."""
    xp = namespace(size)
    unit = xp.ldexp(xp.ones_like(size), xp.frexp(size)[1] - 1)
    unit = xp.where((size > 0) & xp.isfinite(size), unit, 1).astype(size.dtype)
    return unit if xp is np else jax.lax.stop_gradient(unit)


def standardise(mean: Float[Any, " d"], spread: Float[Any, " d"], floor: Any = 0.0) -> Standardise:
    """Standardise by a known mean and spread."""
    xp = namespace(mean)
    # Values near their mean are rounded to eps / 2 of it, and the mean to a little more.
    real = spread > 4 * jnp.finfo(mean.dtype).eps * xp.abs(mean)
    spread = xp.where(real, spread, 0)
    unit = _power_of_two(spread.max())
    typical = unit * xp.sqrt(((spread / unit) ** 2).mean())
    common = xp.isinf(floor)
    scale = xp.maximum(spread, xp.where(common, 1, floor) * typical)
    scale = xp.where(common, xp.where(real, typical, 0), scale).astype(mean.dtype)
    moves = scale > 0
    whole = xp.asarray(len(mean) ** 0.5, mean.dtype)
    return Standardise(mean, xp.where(moves, 1 / (xp.where(moves, scale, 1) * whole), 0))


def fit_principal(
    lift: Any,
    x: Float[Array | np.ndarray, "n d"],
    *,
    most: int | None = None,
    weights: Float[Array | np.ndarray, " n"] | None = None,
) -> Principal:
    """Keep what some rows span of a lift's features, or the leading part of it.

    A linear fit with a ridge lives in the span of its rows, so nothing is lost but what no row has.

    Args:
        lift: a fitted lift whose features have mean zero or nearly so.
        x: rows, shape ``(n, d)``.
        most: how many principal coordinates to keep; as many as the rows can span if not given.
        weights: of the rows, shape ``(n,)``; all alike if not given.

    Raises:
        TypeError: if ``x`` does not hold real numbers, or ``lift`` is none.
        ValueError: if a value is not finite, a shape does not fit, or weights are negative.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> x = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
        >>> lift.fit_principal(lift.fit_standardise(x), x, most=3).basis.shape
        (9, 3)
    """
    if not hasattr(lift, "_apply"):
        raise TypeError(f"lift must be a fitted lift, got {lift!r:.80}.")
    features = lift._apply(_rows(x))
    n = len(features)
    if most is not None:
        most = _checks.integer(most, "most", low=1)
    w = jnp.ones((n,), features.dtype)
    if weights is not None:
        w = _checks.array(weights, "weights", ndim=1, shape="(n,)").astype(features.dtype)
        if w.shape != (n,):
            raise ValueError(f"weights must have shape ({n},) like the rows, got {w.shape}.")
        if not _checks.is_traced(w) and not (bool((w >= 0).all()) and bool((w > 0).any())):
            raise ValueError("weights must not be negative, and not all zero.")
    return _narrow(lift, features, w, most)


def principal_of(
    lift: Any,
    x: Float[Any, "n d"],
    most: int | None = None,
    w: Float[Any, " n"] | None = None,
) -> Principal:
    """As ``fit_principal``, of rows that were looked at."""
    features = lift._apply(x)
    if w is None:
        w = namespace(features).ones((len(features),), features.dtype)
    return _narrow(lift, features, w, most)


def _narrow(
    lift: Any, features: Float[Any, "n p"], w: Float[Any, " n"], most: int | None
) -> Principal:
    count = min(*features.shape, *(() if most is None else (most,)))
    return Principal(lift, _principal(features, w, count=count))


@compiled("count")
def _principal(
    features: Float[Any, "n p"], w: Float[Any, " n"], *, count: int
) -> Float[Any, "p r"]:
    xp = namespace(features)
    n, p = features.shape
    span = None
    if p > n:  # the rows' own span first: an orthonormal basis, exact to rounding
        span, _ = xp.linalg.qr(features.T)
        features = matmul(features, span)
    scaled = xp.sqrt(w)[:, None] * features
    _, vectors = xp.linalg.eigh(matmul(scaled.T, scaled))
    basis = vectors[:, ::-1][:, :count]
    return flip_signs((basis if span is None else matmul(span, basis)).T).T


def fit_nystroem(
    x: Float[Array | np.ndarray, "n d"],
    *,
    kernel: Kernel = "gaussian",
    factor: float = 1.0,
    landmarks: int | Float[Array | np.ndarray, "m d"] | None = None,
) -> Nystroem:
    """Find the features of a kernel that are exact at landmarks among some rows.

    Args:
        x: rows, shape ``(n, d)``, at least two.
        kernel: with ``b`` the bandwidth and ``s`` a standardised row: "gaussian",
            ``exp(-|s - t|^2 / (2 b^2))``; "laplacian", ``exp(-|s - t| / b)``; "polynomial",
            ``(1 + s.t / b^2)^3``; "arc_cosine", what a wide layer of rectifiers computes (Cho and
            Saul, 2009).
        factor: bandwidth over the median distance between at most 2,000 of the rows.
        landmarks: a number takes that many rows at even distances, all if there are no more;
            or rows themselves, shape ``(m, d)``, such as ``choose_landmarks`` gives. All rows if
            not given.

    Raises:
        TypeError: if ``x`` does not hold real numbers.
        ValueError: if a value is not finite or out of range; the message names it.

    Source: Williams and Seeger (2001).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import kernels, lift
        >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        >>> features = lift.apply(kernels.fit_nystroem(x), x)
        >>> bool(np.allclose((features**2).sum(axis=1), 1, atol=1e-2))  # each row like itself
        True
    """
    checked = _rows(x)
    _checks.one_of(kernel, "kernel", KERNELS)
    _checks.positive(factor, "factor")
    if getattr(landmarks, "ndim", 0):
        landmarks = _checks.array(landmarks, "landmarks", ndim=2, shape="(m, d)")
        if landmarks.shape[1] != checked.shape[1] or len(landmarks) < 1:
            raise ValueError(
                f"landmarks must have shape (m, {checked.shape[1]}) like the rows, got "
                f"{landmarks.shape}."
            )
    elif landmarks is not None:
        landmarks = _checks.integer(landmarks, "landmarks", low=1)
    return nystroem_of(checked, kernel, factor, landmarks)


def nystroem_of(
    x: Float[Any, "n d"],
    kernel: Kernel,
    factor: float,
    landmarks: Any,
    w: Float[Any, " n"] | None = None,
) -> Nystroem:
    """As ``fit_nystroem``, of rows that were looked at, standardised with weights."""
    scaling, rows, bandwidth = _measure(x, factor, w)
    if getattr(landmarks, "ndim", 0):
        rows = _scale(landmarks.astype(rows.dtype), scaling)
    elif landmarks is not None:
        rows = _spread(rows, landmarks)
    weights, rank = _square_root(rows, bandwidth, kernel=kernel)
    step = -(-len(rows) // _WIDTHS)  # features beyond the rank are zero
    width = min(len(rows), step * -(-int(rank) // step))
    return Nystroem(scaling, rows, bandwidth, weights[:, :width], kernel=kernel)


def kernel_of(
    x: Float[np.ndarray, "n d"], kernel: Kernel, factor: float
) -> tuple[Nystroem, Float[np.ndarray, "n n"]]:
    """The kernel between all rows in float64, and a lift to it that waits for weights."""
    # What is rounding and no spread is said by the dtype that the rows came in.
    scaling = measure_spread(x, np.zeros((), x.dtype))
    scaling = jax.tree.map(lambda a: np.asarray(a, np.float64), scaling)
    scaling, rows, bandwidth = _measure(x.astype(np.float64), factor, scaling=scaling)
    with np.errstate(all="ignore"):
        values = _compare(rows, rows, bandwidth, kernel)
    return Nystroem(scaling, rows, bandwidth, values[:, :0], kernel=kernel), values


def _measure(
    x: Float[Any, "n d"],
    factor: float,
    w: Float[Any, " n"] | None = None,
    scaling: Standardise | None = None,
) -> tuple[Standardise, Float[Any, "n d"], Float[Any, ""]]:
    """What standardises the rows, the rows so, and the bandwidth."""
    scaling = measure_spread(x, np.zeros((), x.dtype), w) if scaling is None else scaling
    rows = _scale(x, scaling)
    return (
        scaling,
        rows,
        _median_distance(_spread(rows, _SAMPLE), np.asarray(factor, rows.dtype)),
    )


def _rows(x: Float[Array | np.ndarray, "n d"]) -> Float[Array, "n d"]:
    checked = _checks.array(x, "x", ndim=2, shape="(n, d)")
    if checked.shape[0] < 2:
        raise ValueError(f"x must have at least two rows, got shape {checked.shape}.")
    return checked


def _spread(rows: Float[Any, "n d"], count: int) -> Float[Any, "m d"]:
    """At most ``count`` rows at even distances."""
    n = rows.shape[0]
    return rows if n <= count else rows[np.arange(count) * n // count]


@compiled()
def _median_distance(rows: Float[Any, "m d"], factor: Float[Any, ""]) -> Float[Any, ""]:
    xp = namespace(rows)
    apart = np.triu_indices(rows.shape[0], 1)
    middle = xp.sqrt(xp.median(_distances(rows, rows)[apart]))
    return (factor * xp.where(middle > 0, middle, 1)).astype(rows.dtype)


@compiled("kernel")
def _square_root(
    landmarks: Float[Any, "m d"], bandwidth: Float[Any, ""], *, kernel: str
) -> tuple[Float[Any, "m m"], Any]:
    """Inverse root of the landmarks' kernel matrix, largest eigenvalues first, and its rank."""
    xp = namespace(landmarks)
    values, vectors = xp.linalg.eigh(_compare(landmarks, landmarks, bandwidth, kernel))
    values, vectors = values[::-1], vectors[:, ::-1]
    m = landmarks.shape[0]
    # Eigenvalues are squares: below the rounding of the matrix they are noise.
    keep = values > xp.asarray(rounding(values.dtype, m, m)) * values[0]
    inverse = xp.where(keep, 1 / xp.sqrt(xp.where(keep, values, 1)), 0)
    return vectors * inverse[None, :], keep.sum()


def choose_landmarks(
    x: Float[Array | np.ndarray, "n d"],
    *,
    key: Key[Array, ""],
    count: int,
    by: Literal["kmeans", "leverage"] = "leverage",
    factor: float = 1.0,
) -> Float[Array, "m d"]:
    """Choose landmarks for ``fit_nystroem`` that stand for the rows better than even ones.

    Args:
        x: rows, shape ``(n, d)``, at least two.
        key: random key.
        count: how many, below ``n``.
        by: "kmeans" takes the centres of k-means (scikit-learn); "leverage" draws rows by their
            influence on a regression with a Gaussian kernel, so that rare rows are among them.
        factor: of that kernel's bandwidth, as in ``fit_nystroem``.

    Returns:
        Rows in the units of ``x``, shape ``(count, d)``.

    Raises:
        TypeError: if ``x`` does not hold real numbers or ``key`` is none.
        ValueError: if a value is not finite or out of range; the message names it.
        ImportError: if "kmeans" does not find scikit-learn.

    Source: Alaoui and Mahoney (2015) for leverage.

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax import kernels
        >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        >>> kernels.choose_landmarks(x, key=jax.random.key(0), count=9).shape
        (9, 3)
    """
    checked = _rows(x)
    _checks.key(key)
    count = _checks.integer(count, "count", low=1, high=len(checked) - 1)
    _checks.one_of(by, "by", ("kmeans", "leverage"))
    _checks.positive(factor, "factor")
    scaling = fit_standardise(checked)
    rows = _scale(checked, scaling)
    if by == "kmeans":
        centres = _cluster(rows, count, key)
        moves = scaling.factor > 0
        units = 1 / jnp.where(moves, scaling.factor, 1)
        return centres * units[None, :] + scaling.mean[None, :]
    bandwidth = _median_distance(_spread(rows, _SAMPLE), jnp.asarray(factor, rows.dtype))
    scores = _leverages(rows, _spread(rows, min(count, _SAMPLE)), bandwidth, kernel="gaussian")
    chosen = jax.random.choice(key, len(rows), (count,), replace=False, p=scores)
    return checked[jnp.sort(chosen)]


def _cluster(rows: Array, count: int, key: Key[Array, ""]) -> Float[Array, "m d"]:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise ImportError(
            "by='kmeans' needs scikit-learn: install the extra 'experiments', or use by='leverage'."
        ) from None
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    model = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=max(2048, 4 * count))
    return jnp.asarray(model.fit(np.asarray(rows)).cluster_centers_, rows.dtype)


@functools.partial(jax.jit, static_argnames=("kernel",))
def _leverages(
    rows: Array, sample: Float[Array, "m d"], bandwidth: Array, *, kernel: str
) -> Float[Array, " n"]:
    """Shares of influence on a ridge regression in the span of a sample of the rows."""
    weights, _ = _square_root(sample, bandwidth, kernel=kernel)
    features = matmul(_compare(rows, sample, bandwidth, kernel), weights)
    scatter = matmul(features.T, features)
    ridge = 0.01 * jnp.trace(scatter) / scatter.shape[0]
    factor = jnp.linalg.cholesky(scatter + ridge * jnp.eye(len(scatter), dtype=scatter.dtype))
    solved = jax.scipy.linalg.solve_triangular(factor, features.T, lower=True)
    scores = jnp.sum(solved**2, axis=0)
    return scores / jnp.sum(scores)


def fit_fourier(
    x: Float[Array | np.ndarray, "n d"],
    *,
    key: Key[Array, ""],
    count: int = 1000,
    kernel: Literal["gaussian", "laplacian"] = "gaussian",
    factor: float = 1.0,
) -> Fourier:
    """Draw random features of a Gaussian or Laplacian kernel.

    Args:
        x: rows, shape ``(n, d)``, at least two: they set mean, spread and median distance.
        key: random key.
        count: number of features; inner products are off by about ``1 / sqrt(count)``.
        kernel: as in ``fit_nystroem``.
        factor: bandwidth over the median distance between at most 2,000 of the rows.

    Raises:
        TypeError: if ``x`` does not hold real numbers or ``key`` is none.
        ValueError: if a value is not finite or out of range; the message names it.

    Source: Rahimi and Recht (2007).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax import kernels, lift
        >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        >>> fitted = kernels.fit_fourier(x, key=jax.random.key(0), count=4000)
        >>> features = lift.apply(fitted, x)
        >>> bool(abs((features**2).sum(axis=1) - 1).max() < 0.1)  # each row like itself
        True
    """
    checked = _rows(x)
    _checks.key(key)
    count = _checks.integer(count, "count", low=1)
    _checks.one_of(kernel, "kernel", KERNELS[:2])
    _checks.positive(factor, "factor")
    scaling = fit_standardise(checked)
    rows = _spread(_scale(checked, scaling), _SAMPLE)
    bandwidth = _median_distance(rows, jnp.asarray(factor, rows.dtype))
    for_directions, for_lengths, for_phases = jax.random.split(key, 3)
    frequencies = jax.random.normal(for_directions, (rows.shape[1], count), rows.dtype)
    if kernel == "laplacian":  # a normal over the root of a chi-square is a Cauchy vector
        lengths = jax.random.normal(for_lengths, (count,), rows.dtype)
        frequencies = frequencies / jnp.abs(lengths)[None, :]
    phases = jax.random.uniform(for_phases, (count,), rows.dtype, maxval=2 * jnp.pi)
    return Fourier(scaling, frequencies / bandwidth, phases)
