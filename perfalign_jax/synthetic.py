"""Synthetic views of known latents, as the paper draws them.

Latents come from a Gaussian mixture (Eq. 10) or uniformly around a line (Section 6.5); random maps
with entries in [-5, 5] turn them into views (Eq. 11), with or without noise. Every function takes a
random ``key``, the number of samples ``n``, latent dimensions ``k`` and numbers of features
``dims = (d1, d2)``, and works under ``jit`` (sizes static) and under ``vmap`` over keys. It raises
a ``TypeError`` if a size is no integer or another number is none, and a ``ValueError`` if a size or
option is out of range, a shape does not fit or a value is not finite.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from perfalign_jax import _checks
from perfalign_jax._numerics import matmul

__all__ = [
    "Problem",
    "draw_maps",
    "draw_mixture_latents",
    "draw_problem",
    "draw_uniform_latents",
    "draw_views",
]

RandomKey = Key[Array, ""] | UInt32[Array, "2"]
Numbers = Array | np.ndarray | Sequence[Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Two views together with what is hidden in real data.

    Attributes:
        views: shapes ``(n, d1)`` and ``(n, d2)``.
        latents: the true latents, shape ``(n, k)``.
        labels: the class of each sample, shape ``(n,)``.
        maps: the paper's S, shapes ``(d1, k)`` and ``(d2, k)``.

    Example:
        >>> import jax
        >>> from perfalign_jax.synthetic import draw_problem
        >>> draw_problem(jax.random.key(0), 10, dims=(4, 3)).views[1].shape
        (10, 3)
    """

    views: tuple[Float[Array, "... n d1"], Float[Array, "... n d2"]]
    latents: Float[Array, "... n k"]
    labels: Int[Array, "... n"]
    maps: tuple[Float[Array, "... d1 k"], Float[Array, "... d2 k"]]


def draw_mixture_latents(
    key: RandomKey,
    n: int,
    *,
    k: int = 2,
    means: Numbers | None = None,
    covariances: Numbers | None = None,
    weights: Numbers | None = None,
) -> tuple[Float[Array, "n k"], Int[Array, " n"]]:
    """Draw latents ``(n, k)`` from a mixture of Gaussians, and the component of each, ``(n,)``.

    Args:
        key: random key.
        n: number of samples.
        k: latent dimensions.
        means: one mean per component, shape ``(c, k)``. Without it the paper's (0, 1) and (4, 5);
            for other ``k`` the components are at (0, 1, 0, 1, ...) and at that plus 4.
        covariances: shape ``(c, k, k)``, positive definite; identities without it.
        weights: share of each component, shape ``(c,)``, summing to 1; equal without it.

    Raises:
        TypeError, ValueError: as the module says.

    Source: paper Section 3.1, Eq. 10.

    Example:
        >>> import jax
        >>> from perfalign_jax.synthetic import draw_mixture_latents
        >>> z, labels = draw_mixture_latents(jax.random.key(0), 2000)
        >>> z.shape, [round(float(m)) for m in z[labels == 1].mean(axis=0)]
        ((2000, 2), [4, 5])
    """
    n = _checks.integer(n, "n", low=1)
    k = _checks.integer(k, "k", low=1)
    if means is None:
        first = jnp.arange(k, dtype=float) % 2
        means = jnp.stack([first, first + 4])
    means = _parameter(means, "means", 2, "(c, k)")
    c = means.shape[0]
    if means.shape[1] != k or c < 1:
        raise ValueError(f"means must have shape (c, k = {k}), got shape {means.shape}.")
    if covariances is not None:
        covariances = _parameter(covariances, "covariances", 3, "(c, k, k)")
        if covariances.shape != (c, k, k):
            raise ValueError(
                f"covariances must have shape (c, k, k) = {(c, k, k)}, got {covariances.shape}."
            )
    weights = jnp.full(c, 1 / c) if weights is None else weights
    weights = _parameter(weights, "weights", 1, "(c,)")
    if weights.shape != (c,):
        raise ValueError(f"weights must have shape (c,) = ({c},), got {weights.shape}.")
    if not _checks.is_traced(weights):
        host = np.asarray(weights)
        if (host < 0).any() or abs(host.sum() - 1) > 1e-3:
            raise ValueError(f"weights must be zero or more and sum to 1, got {host.tolist()}.")
    return _mixture(key, means, covariances, weights, n=n)


def draw_uniform_latents(
    key: RandomKey,
    n: int,
    *,
    k: int = 2,
    slope: float = 1.0,
    intercept: float = -10.0,
    margin: float = 10.0,
    span: tuple[float, float] = (-10.0, 10.0),
) -> tuple[Float[Array, "n k"], Int[Array, " n"]]:
    """Draw latents ``(n, k)`` uniformly on both sides of a line, which divides two classes.

    The last coordinate lies above or below ``slope * (sum of the others) + intercept`` by an amount
    uniform on ``(0, margin)``; the others are uniform on ``span``; all in units of the latents. The
    paper says "1000 above and below the line y = x - 10 by a maximum margin of 10" and gives no
    range for x; the default takes the one length it names. Every second sample lies above: the
    classes, shape ``(n,)``, are 0 below and 1 above. Sizes and errors are the module's, with
    ``k >= 2``.

    Source: paper Section 6.5 and Fig. 7a.

    Example:
        >>> import jax
        >>> from perfalign_jax.synthetic import draw_uniform_latents
        >>> z, labels = draw_uniform_latents(jax.random.key(0), 6)
        >>> (z[:, 1] > z[:, 0] - 10).astype(int).tolist() == labels.tolist() == [0, 1, 0, 1, 0, 1]
        True
    """
    n = _checks.integer(n, "n", low=1)
    k = _checks.integer(k, "k", low=2)
    _checks.positive(margin, "margin")
    numbers = _parameter((slope, intercept, margin), "slope, intercept, margin", 1, "(3,)")
    ends = _parameter(span, "span", 1, "(2,)")
    if ends.shape != (2,) or (not _checks.is_traced(ends) and not ends[0] < ends[1]):
        raise ValueError(f"span must be two numbers, low below high, got {span}.")
    return _uniform(key, numbers, ends, n=n, k=k)


def draw_maps(
    key: RandomKey,
    *,
    k: int = 2,
    dims: tuple[int, int] = (2, 2),
    low: float = -5.0,
    high: float = 5.0,
) -> tuple[Float[Array, "d1 k"], Float[Array, "d2 k"]]:
    """Draw the matrix S of each modality, ``(d1, k)`` and ``(d2, k)``, every entry uniform.

    Entries lie between ``low`` and ``high``. Sizes and errors are the module's.

    Source: paper Section 3.1, above Eq. 11.

    Example:
        >>> import jax
        >>> from perfalign_jax.synthetic import draw_maps
        >>> s1, s2 = draw_maps(jax.random.key(0), k=2, dims=(5, 3))
        >>> s1.shape, s2.shape, bool(abs(s1).max() <= 5)
        ((5, 2), (3, 2), True)
    """
    k = _checks.integer(k, "k", low=1)
    d1, d2 = _checked_dims(dims)
    if not low < high:
        raise ValueError(f"low must be below high, got low = {low} and high = {high}.")
    return _maps(key, float(low), float(high), k=k, dims=(d1, d2))


def draw_views(
    key: RandomKey,
    latents: Float[Array, "n k"] | Float[np.ndarray, "n k"],
    maps: Sequence[Any],
    *,
    noise: float | Array | Sequence[float | Array] = 0.0,
) -> tuple[Float[Array, "n d1"], Float[Array, "n d2"]]:
    """Turn latents into two views: ``x = S z + noise * e`` with ``e`` standard normal.

    Args:
        key: random key of the noise; unused without noise.
        latents: shape ``(n, k)``.
        maps: the matrices S, shapes ``(d1, k)`` and ``(d2, k)``.
        noise: standard deviation of the noise, in units of the views; one number, or one for each
            modality.

    Raises:
        TypeError, ValueError: as the module says.

    Source: paper Section 3.1, Eq. 11, and the noise model of its parameter experiments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from perfalign_jax.synthetic import draw_views
        >>> maps = (jnp.array([[2.0]]), jnp.array([[1.0], [-1.0]]))
        >>> x1, x2 = draw_views(jax.random.key(0), jnp.array([[3.0]]), maps)
        >>> x1.tolist(), x2.tolist()
        ([[6.0]], [[3.0, -3.0]])
    """
    latents = _checks.array(latents, "latents", ndim=2, shape="(n, k)")
    if not isinstance(maps, Sequence) or len(maps) != 2:
        raise TypeError("maps must be a tuple of two matrices (S1, S2).")
    checked = []
    for m, s in enumerate(maps):
        s = _checks.array(s, f"maps[{m}]", ndim=2, shape=f"(d{m + 1}, k)")
        if s.shape[1] != latents.shape[1]:
            raise ValueError(
                f"maps[{m}] must have k = {latents.shape[1]} columns like latents, "
                f"got shape {s.shape}."
            )
        checked.append(s)
    scales = tuple(noise) if isinstance(noise, tuple | list) else (noise, noise)
    if len(scales) != 2:
        raise ValueError(f"noise must be one number or two, got {len(scales)}.")
    for scale in scales:
        _checks.positive(scale, "noise", zero=True)
    noisy = tuple(_checks.is_traced(scale) or float(scale) > 0 for scale in scales)
    return _views(key, latents, tuple(checked), scales, noisy=noisy)


def draw_problem(
    key: RandomKey,
    n: int,
    *,
    k: int = 2,
    dims: tuple[int, int] = (2, 2),
    noise: float | Array | Sequence[float | Array] = 0.0,
    latents: str = "mixture",
) -> Problem:
    """Draw latents, maps and views in one go.

    Sizes and errors are the module's; ``latents`` is ``"mixture"`` (Eq. 10) or ``"uniform"``
    (Section 6.5), and ``noise`` a standard deviation in units of the views, one number or one for
    each.

    Source: paper Section 3.1; the defaults are those of its Fig. 3.

    Example:
        >>> import jax
        >>> from perfalign_jax.synthetic import draw_problem
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> jax.vmap(lambda key: draw_problem(key, 50))(keys).latents.shape
        (3, 50, 2)
    """
    _checks.one_of(latents, "latents", ("mixture", "uniform"))
    draw = draw_mixture_latents if latents == "mixture" else draw_uniform_latents
    latent_key, map_key, noise_key = jax.random.split(key, 3)
    z, labels = draw(latent_key, n, k=k)
    maps = draw_maps(map_key, k=k, dims=dims)
    return Problem(draw_views(noise_key, z, maps, noise=noise), z, labels, maps)


def _parameter(value: Any, name: str, ndim: int, shape: str) -> Array:
    """Check a parameter; Python numbers become JAX's default float without a word."""
    if isinstance(value, tuple | list):
        try:
            value = jnp.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} must hold real numbers in shape {shape}, got {value!r}."
            ) from None
    return _checks.array(value, name, ndim=ndim, shape=shape)


def _checked_dims(dims: Any) -> tuple[int, int]:
    if not isinstance(dims, Sequence) or len(dims) != 2:
        raise TypeError(f"dims must be two integers (d1, d2), got {dims!r}.")
    return _checks.integer(dims[0], "d1", low=1), _checks.integer(dims[1], "d2", low=1)


@functools.partial(jax.jit, static_argnames="n")
def _mixture(
    key: Array, means: Array, covariances: Array | None, weights: Array, *, n: int
) -> tuple[Array, Array]:
    label_key, normal_key = jax.random.split(key)
    labels = jax.random.categorical(label_key, jnp.log(weights), shape=(n,))
    z = jax.random.normal(normal_key, (n, means.shape[1]), means.dtype)
    if covariances is not None:
        factors = jnp.linalg.cholesky(covariances)
        z = jnp.einsum("nij,nj->ni", factors[labels], z, precision=jax.lax.Precision.HIGHEST)
    return means[labels] + z, labels


@functools.partial(jax.jit, static_argnames=("n", "k"))
def _uniform(key: Array, numbers: Array, span: Array, *, n: int, k: int) -> tuple[Array, Array]:
    slope, intercept, margin = numbers
    along_key, away_key = jax.random.split(key)
    along = jax.random.uniform(along_key, (n, k - 1), numbers.dtype, span[0], span[1])
    labels = jnp.arange(n) % 2
    # 1 - u lies in (0, 1]: no sample lies on the line itself.
    away = margin * (1 - jax.random.uniform(away_key, (n,), numbers.dtype))
    line = slope * jnp.sum(along, axis=1) + intercept
    last = line + jnp.where(labels == 1, away, -away)
    return jnp.concatenate([along, last[:, None]], axis=1), labels


@functools.partial(jax.jit, static_argnames=("k", "dims"))
def _maps(
    key: Array, low: float | Array, high: float | Array, *, k: int, dims: tuple[int, int]
) -> tuple[Array, Array]:
    first, second = jax.random.split(key)
    return (
        jax.random.uniform(first, (dims[0], k), minval=low, maxval=high),
        jax.random.uniform(second, (dims[1], k), minval=low, maxval=high),
    )


@functools.partial(jax.jit, static_argnames="noisy")
def _views(
    key: Array,
    latents: Array,
    maps: tuple[Array, ...],
    scales: tuple[Any, ...],
    *,
    noisy: tuple[bool, ...],
) -> tuple[Array, ...]:
    views = []
    for s, scale, some, one_key in zip(maps, scales, noisy, jax.random.split(key), strict=True):
        x = matmul(latents, s.T)
        if some:
            x += jnp.asarray(scale, x.dtype) * jax.random.normal(one_key, x.shape, x.dtype)
        views.append(x)
    return tuple(views)
