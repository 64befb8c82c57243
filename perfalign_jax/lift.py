"""Lifts: fitted maps of one view into other features, before the statistics.

Perfect alignment exists, and is informative, once each modality has at least as many independent
features as there are pairs (Theorem 2.2: the null space needs room). What is not linear on the way
there, and what is fitted to some rows and then used on others, is a lift: a small frozen pytree
that a ``fit_...`` function makes and ``apply`` uses.

- ``Standardise``: every feature in units of its own spread, and one scale for all;
- ``Principal``: principal coordinates of what another lift makes of a row;
- ``Span``: coordinates in the span of some rows, exact for all that sees inner products with them;
- ``Convolutions``: features of multichannel time series, random and without training.

Random convolutions follow ROCKET (Dempster, Petitjean and Webb, 2020): kernels with random weights
without a mean, random biases, dilations, padding and subsets of the channels; each is convolved
with the series and leaves two numbers, the share of time it responds positively and its largest
response. They need no labels and no other clip, so they are computed once for a whole dataset,
before any split. The kernels of one dilation run as one convolution.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from perfalign_jax import _checks
from perfalign_jax._numerics import flip_signs, matmul, rank_cutoff
from perfalign_jax.kernels import (
    Fourier,
    Nystroem,
    Principal,
    Standardise,
    fit_principal,
    fit_standardise,
    matching,
)

__all__ = [
    "Convolutions",
    "Lift",
    "Principal",
    "Span",
    "Standardise",
    "apply",
    "fit_convolutions",
    "fit_principal",
    "fit_span",
    "fit_standardise",
]

_BATCH = 32  # series convolved at once: it bounds the memory and changes nothing else


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Span:
    """Coordinates in the span of some rows.

    Attributes:
        basis: orthonormal columns, shape ``(d, r)``, ``r`` the rank of those rows.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> lift.fit_span(np.float32([[0, 2, 0]])).basis.shape
        (3, 1)
    """

    basis: Float[Any, "d r"]

    @property
    def dim(self) -> int:
        """Number of features of a row."""
        return self.basis.shape[0]

    def _apply(self, x: Float[Any, "n d"]) -> Float[Any, "n r"]:
        x = matching(x, self.basis.T)
        return matmul(x, self.basis.astype(x.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Convolutions:
    """Random convolution kernels for multichannel series, grouped by dilation.

    Attributes:
        weights: one array ``(taps, channels, count)`` for each dilation; every kernel has unit norm
            and, in each channel it sees, zero mean over the taps.
        biases: one array ``(count,)`` for each dilation, in units of the response.
        padded: one array ``(count,)`` for each dilation: whether the kernel also looks over the
            ends of the series, where it sees zeros.
        dilations: distance between neighbouring taps, in frames.

    Source: Dempster, Petitjean and Webb (2020).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax import lift
        >>> series = np.zeros((1, 50, 6), np.float32)
        >>> kernels = lift.fit_convolutions(series, key=jax.random.key(0), count=10)
        >>> kernels.dilations, kernels.count
        ((1, 2, 4), 10)
    """

    weights: tuple[Float[Array, "taps channels _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    padded: tuple[Bool[Array, " _"], ...]
    dilations: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def count(self) -> int:
        """Number of kernels."""
        return sum(bias.shape[0] for bias in self.biases)

    @property
    def shortest(self) -> int:
        """Number of frames that a series must have at least."""
        return (self.weights[0].shape[0] - 1) * self.dilations[-1] + 1

    def _apply(
        self, x: Float[Array | np.ndarray, "n length channels"]
    ) -> Float[Array, "n features"]:
        x = _as_series(x)
        channels = self.weights[0].shape[1]
        if x.shape[2] != channels:
            raise ValueError(
                f"x must have {channels} channels like the kernels, got shape {x.shape}."
            )
        if x.shape[1] < self.shortest:
            raise ValueError(
                f"x must have at least {self.shortest} frames for kernels of dilation "
                f"{self.dilations[-1]}, got shape {x.shape}."
            )
        return _convolve(x, self)


Lift = Convolutions | Fourier | Nystroem | Principal | Span | Standardise
"""A fitted map of one view."""


def apply(lift: Lift, x: Float[Array | np.ndarray, "n ..."]) -> Float[Array, "n p"]:
    """Map the rows of one view by a fitted lift, to features ``(n, p)`` in the dtype of ``x``.

    ``Standardise``: ``p = d``, without unit. ``Span``: ``p = r``, in the units of ``x``.
    ``Convolutions``: ``p = 2 * count``, first the share of frames, from 0 to 1, at which each
    kernel responds positively, then its largest response, in the units of ``x``.

    Args:
        lift: what a ``fit_...`` function of this module returned.
        x: rows as the lift was fitted for: ``(n, d)``, or ``(n, length, channels)`` for
            ``Convolutions``.

    Raises:
        TypeError: if ``x`` does not hold real numbers.
        ValueError: if its shape is not what the lift was fitted for, or a value is not finite.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> fitted = lift.fit_standardise(np.float32([[0, 0], [2, 4]]))
        >>> (lift.apply(fitted, np.float32([[3, 2]])) * 2**0.5).round(3).tolist()
        [[2.0, 0.0]]
    """
    if not _checks.is_traced(lift):  # arrays of NumPy stand for rows that were looked at
        lift = jax.tree.map(jnp.asarray, lift)
    return lift._apply(x)


def fit_span(x: Float[Array | np.ndarray, "n d"]) -> Span:
    """Find an orthonormal basis of the span of some rows ``(n, d)``: the alignment pairs.

    Inner products with these rows depend on the coordinates alone, as many as the rank. So whatever
    is fitted to them and lives in their span (the informative part of a perfect alignment, CCA,
    linear contrastive, Procrustes, regression) gives the same latents from the coordinates as from
    all features, up to rounding; a decoder with an L2 penalty gives the same scores. What the
    coordinates leave out of a row is what the trivial directions of the pairs' null space see. Not
    for ``jit``.

    Raises:
        TypeError: if ``x`` does not hold real numbers.
        ValueError: if a value is not finite, or there is no row that is not zero.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import lift
        >>> x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
        >>> inside = np.asarray(lift.apply(lift.fit_span(x[:2]), x))
        >>> inside.shape, np.allclose(inside @ inside[:2].T, x @ x[:2].T, atol=1e-5)
        ((5, 2), True)
    """
    checked = _checks.array(x, "x", ndim=2, shape="(n, d)")
    n, d = checked.shape
    if n == 0:
        raise ValueError(f"x must have at least one row, got shape {checked.shape}.")
    _, values, rows = jnp.linalg.svd(checked, full_matrices=False)
    rank = int(jnp.sum(values > rank_cutoff(values, (n, d))))
    if rank == 0:
        raise ValueError("x must have a row that is not zero, got zeros only.")
    return Span(flip_signs(rows[:rank]).T)


def _as_series(x: Float[Array | np.ndarray, "n length channels"]) -> Float[Array, "n t c"]:
    checked = _checks.array(x, "x", ndim=3, shape="(n, length, channels)")
    if 0 in checked.shape:
        raise ValueError(
            "x must have at least one series, one frame and one channel, got shape "
            f"{checked.shape}."
        )
    return checked


def fit_convolutions(
    x: Float[Array | np.ndarray, "n length channels"],
    *,
    key: Key[Array, ""],
    count: int = 1000,
    taps: int = 9,
) -> Convolutions:
    """Draw random dilated convolution kernels for series of one shape, in JAX's default float.

    Only the shape of ``x`` is used. Dilations are the powers of two at which a kernel still fits
    into the series, each with an equal share of the kernels. The number of channels a kernel sees
    is log-uniform from one to all. Bring series to values around one first (biases are drawn
    between -1 and 1), by fixed units or scales: statistics of the clips to be tested do not belong
    there.

    Args:
        x: series like those to be mapped, shape ``(n, length, channels)``, ``length >= taps``.
        key: random key.
        count: number of kernels.
        taps: odd number of frames that a kernel sees, at least three.

    Raises:
        TypeError: if ``key`` is no random key, or a size no integer.
        ValueError: if a size is out of range; the message names it.

    Source: Dempster, Petitjean and Webb (2020).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax import lift
        >>> series = np.ones((4, 20, 3), np.float32)
        >>> kernels = lift.fit_convolutions(series, key=jax.random.key(0), count=8)
        >>> lift.apply(kernels, series).shape
        (4, 16)
    """
    length, channels = _as_series(x).shape[1:]
    _checks.key(key)
    count = _checks.integer(count, "count", low=1)
    taps = _checks.integer(taps, "taps", low=3)
    if taps % 2 == 0:
        raise ValueError(f"taps must be odd, so that a kernel has a centre, got {taps}.")
    if length < taps:
        raise ValueError(f"x must have at least taps = {taps} frames, got shape {x.shape}.")
    dilations = tuple(2**p for p in range(32) if (taps - 1) * 2**p < length)[:count]
    groups = len(dilations)
    ends = np.cumsum([count // groups + (g < count % groups) for g in range(groups)]).tolist()
    parts = _draw(key, (taps, channels, count), tuple(ends))
    return Convolutions(weights=parts[0], biases=parts[1], padded=parts[2], dilations=dilations)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(
    key: Key[Array, ""], shape: tuple[int, int, int], ends: tuple[int, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """Weights, biases and paddings of all kernels, cut into groups."""
    _, channels, count = shape
    for_weights, for_number, for_order, for_bias, for_padding = jax.random.split(key, 5)
    weights = jax.random.normal(for_weights, shape)
    number = jnp.floor((channels + 1) ** jax.random.uniform(for_number, (count,)))
    order = jax.random.uniform(for_order, (channels, count))
    seen = jnp.argsort(jnp.argsort(order, axis=0), axis=0).astype(number.dtype) < number[None, :]
    weights = (weights - jnp.mean(weights, axis=0, keepdims=True)) * seen[None].astype(
        weights.dtype
    )
    weights = weights / jnp.linalg.norm(weights.reshape(-1, count), axis=0)[None, None, :]
    bias = jax.random.uniform(for_bias, (count,), minval=-1.0, maxval=1.0)
    padded = jax.random.bernoulli(for_padding, 0.5, (count,))
    cuts = list(zip((0, *ends[:-1]), ends, strict=True))
    weights_of, biases_of, padded_of = (
        tuple(values[..., low:high] for low, high in cuts) for values in (weights, bias, padded)
    )
    return weights_of, biases_of, padded_of


@jax.jit
def _convolve(
    series: Float[Array, "n length channels"], kernels: Convolutions
) -> Float[Array, "n features"]:
    # One scan over batches keeps the responses (batch x length x count) small. Rows of zeros fill
    # the last batch up, so that every batch is the same convolution.
    n = series.shape[0]
    batch = min(_BATCH, n)
    filled = jnp.pad(series, ((0, -n % batch), (0, 0), (0, 0)))
    batches = filled.reshape(-1, batch, *series.shape[1:])
    found = jax.lax.map(lambda part: _pool(part, kernels), batches)
    return found.reshape(filled.shape[0], -1)[:n]


def _pool(
    series: Float[Array, "b length channels"], kernels: Convolutions
) -> Float[Array, "b features"]:
    length = series.shape[1]
    shares, largest = [], []
    for weights, bias, padded, dilation in zip(
        kernels.weights, kernels.biases, kernels.padded, kernels.dilations, strict=True
    ):
        reach = (weights.shape[0] - 1) // 2 * dilation
        response = jax.lax.conv_general_dilated(
            series,
            weights.astype(series.dtype),
            window_strides=(1,),
            padding=[(reach, reach)],
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        response = response + bias.astype(series.dtype)[None, None, :]
        frame = jnp.arange(length)
        inside = (frame >= reach) & (frame < length - reach)
        valid = (inside[:, None] | padded[None, :])[None]
        frames = jnp.sum(valid, axis=1).astype(series.dtype)
        shares.append(jnp.sum((response > 0) & valid, axis=1).astype(series.dtype) / frames)
        largest.append(jnp.max(jnp.where(valid, response, -jnp.inf), axis=1))
    return jnp.concatenate(shares + largest, axis=1)
