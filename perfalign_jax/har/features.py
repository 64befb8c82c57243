"""Lift, then align: random-convolution features of multichannel time series.

Perfect alignment exists, and is informative, once each modality has at least as many independent
features as there are pairs (Theorem 2.2: the null space needs room). Random convolutions take a
sensor there without training: every kernel is convolved with the series and leaves two numbers,
the share of time it responds positively and its largest response. The features need no labels and
no other clip, so they are computed once for a whole dataset, before any split.

Kernels follow ROCKET (Dempster, Petitjean and Webb, 2020): random weights without a mean, random
biases, random dilations, random padding and random subsets of the channels; the kernels of one
dilation run as one convolution.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from perfalign_jax import _checks

__all__ = ["Kernels", "convolve", "draw_kernels", "standardize"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernels:
    """Random convolution kernels, grouped by dilation.

    Attributes:
        weights: one array ``(taps, channels, count)`` for each dilation; every kernel has unit norm
            and, in each channel it sees, zero mean over the taps.
        biases: one array ``(count,)`` for each dilation, in units of the response.
        padded: one array ``(count,)`` for each dilation: whether the kernel also looks over the
            ends of the series, where it sees zeros.
        dilations: distance between neighbouring taps, in frames.

    Example:
        >>> import jax
        >>> from perfalign_jax.har import features
        >>> kernels = features.draw_kernels(jax.random.key(0), channels=6, length=50, count=10)
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
    def channels(self) -> int:
        """Number of channels of the series they are for."""
        return self.weights[0].shape[1]

    @property
    def shortest(self) -> int:
        """Number of frames that a series must have at least."""
        return (self.weights[0].shape[0] - 1) * self.dilations[-1] + 1


def draw_kernels(
    key: Key[Array, ""], *, channels: int, length: int, count: int = 1000, taps: int = 9
) -> Kernels:
    """Draw random dilated convolution kernels for series of a given shape.

    Dilations are the powers of two at which a kernel still fits into the series, each with an equal
    share of the kernels. The number of channels a kernel sees is log-uniform from one to all.

    Args:
        key: random key.
        channels: number of channels of the series.
        length: number of frames of the series, at least ``taps``.
        count: number of kernels.
        taps: odd number of frames that a kernel sees, at least three.

    Returns:
        ``Kernels`` in JAX's default floating-point dtype.

    Raises:
        TypeError: if ``key`` is no random key, or a size no integer.
        ValueError: if a size is out of range; the message names it.

    Source: Dempster, Petitjean and Webb (2020).

    Example:
        >>> import jax
        >>> from perfalign_jax.har import features
        >>> kernels = features.draw_kernels(jax.random.key(0), channels=3, length=20, count=8)
        >>> [weights.shape for weights in kernels.weights]
        [(9, 3, 4), (9, 3, 4)]
    """
    _checks.key(key)
    channels = _checks.integer(channels, "channels", low=1)
    count = _checks.integer(count, "count", low=1)
    taps = _checks.integer(taps, "taps", low=3)
    if taps % 2 == 0:
        raise ValueError(f"taps must be odd, so that a kernel has a centre, got {taps}.")
    length = _checks.integer(length, "length", low=taps, why=f" (taps = {taps})")
    dilations = tuple(2**p for p in range(32) if (taps - 1) * 2**p < length)[:count]
    groups = len(dilations)
    ends = np.cumsum([count // groups + (g < count % groups) for g in range(groups)]).tolist()
    parts = _draw(key, (taps, channels, count), tuple(ends))
    return Kernels(weights=parts[0], biases=parts[1], padded=parts[2], dilations=dilations)


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
    seen = jnp.argsort(jnp.argsort(order, axis=0), axis=0) < number[None, :]
    weights = (weights - jnp.mean(weights, axis=0, keepdims=True)) * seen[None]
    weights = weights / jnp.linalg.norm(weights.reshape(-1, count), axis=0)[None, None, :]
    bias = jax.random.uniform(for_bias, (count,), minval=-1.0, maxval=1.0)
    padded = jax.random.bernoulli(for_padding, 0.5, (count,))
    cuts = list(zip((0, *ends[:-1]), ends, strict=True))
    weights_of, biases_of, padded_of = (
        tuple(values[..., low:high] for low, high in cuts) for values in (weights, bias, padded)
    )
    return weights_of, biases_of, padded_of


@functools.partial(jax.jit, static_argnames=("batch",))
def _convolve(
    series: Float[Array, "n length channels"], kernels: Kernels, batch: int
) -> Float[Array, "n features"]:
    # One scan over batches keeps the responses (batch x length x count) small. Rows of zeros fill
    # the last batch up, so that every batch is the same convolution.
    n = series.shape[0]
    filled = jnp.pad(series, ((0, -n % batch), (0, 0), (0, 0)))
    batches = filled.reshape(-1, batch, *series.shape[1:])
    found = jax.lax.map(lambda part: _pool(part, kernels), batches)
    return found.reshape(filled.shape[0], -1)[:n]


def _pool(
    series: Float[Array, "b length channels"], kernels: Kernels
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


def convolve(
    series: Float[Array | np.ndarray, "n length channels"], kernels: Kernels, *, batch: int = 32
) -> Float[Array, "n features"]:
    """Turn every multichannel series into ``2 * count`` random-convolution features.

    Bring the series to values around one first (biases are drawn between -1 and 1), by fixed units
    or scales: statistics of the clips to be tested do not belong here.

    Args:
        series: shape ``(n, length, channels)``.
        kernels: kernels drawn for this number of channels and, at least, this length.
        batch: how many series to convolve at once; it bounds the memory and changes nothing else.

    Returns:
        Features, shape ``(n, 2 * count)``: first the share of frames, from 0 to 1, at which each
        kernel responds positively, then its largest response, in units of the series.

    Raises:
        TypeError: if ``series`` does not hold real numbers or ``batch`` is no integer.
        ValueError: if the shapes do not fit or a value is not finite.

    Source: Dempster, Petitjean and Webb (2020).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.har import features
        >>> kernels = features.draw_kernels(jax.random.key(0), channels=2, length=30, count=5)
        >>> features.convolve(np.ones((4, 30, 2), np.float32), kernels).shape
        (4, 10)
    """
    checked = _checks.array(series, "series", ndim=3, shape="(n, length, channels)")
    batch = _checks.integer(batch, "batch", low=1)
    n, length, channels = checked.shape
    if n == 0:
        raise ValueError(f"series must hold at least one series, got shape {checked.shape}.")
    if channels != kernels.channels:
        raise ValueError(
            f"series must have {kernels.channels} channels like the kernels, got shape "
            f"{checked.shape}."
        )
    if length < kernels.shortest:
        raise ValueError(
            f"series must have at least {kernels.shortest} frames for kernels of dilation "
            f"{kernels.dilations[-1]}, got shape {checked.shape}."
        )
    return _convolve(checked, kernels, min(batch, n))


@functools.partial(jax.jit, static_argnames=("floor",))
def _standardize(
    features: Float[Array, "n d"], counts: Float[Array, " n"], floor: float
) -> Float[Array, "n d"]:
    # Weights instead of a selection: every split of a dataset is then the same program.
    share = (counts / jnp.sum(counts))[:, None]
    mean = jnp.sum(share * features, axis=0)
    spread = jnp.sqrt(jnp.sum(share * (features - mean[None, :]) ** 2, axis=0))
    least = floor * jnp.sqrt(jnp.mean(spread**2))
    scale = jnp.maximum(spread, least)
    scaled = (features - mean[None, :]) / jnp.where(scale > 0, scale, 1)[None, :]
    return scaled / jnp.sqrt(jnp.asarray(features.shape[1], features.dtype))


def standardize(
    features: Float[Array | np.ndarray, "n d"],
    *,
    rows: Int[Array | np.ndarray, " m"],
    floor: float = 0.1,
) -> Float[Array, "n d"]:
    """Centre and scale every feature by its statistics over some rows, and divide by ``sqrt(d)``.

    A feature that hardly moves over the chosen rows says nothing about its scale: divided by its
    own spread it can reach thousands on another row and drown all others. No feature is therefore
    scaled up by more than ``1 / floor`` against the typical one.

    Args:
        features: shape ``(n, d)``.
        rows: indices of the rows whose statistics are used, at least two: the alignment pairs.
        floor: smallest spread that is believed, as a share of the root mean square spread.

    Returns:
        Shape ``(n, d)``; over the chosen rows the mean is zero and the mean squared norm at most 1.

    Raises:
        TypeError: if ``features`` does not hold real numbers.
        ValueError: if a value is not finite, or the rows are fewer than two or out of range.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har import features
        >>> x = np.float32([[0, 1], [2, 5], [4, 4]])
        >>> np.asarray(features.standardize(x, rows=np.array([0, 1])) * 2**0.5).round(3)
        array([[-1. , -1. ],
               [ 1. ,  1. ],
               [ 3. ,  0.5]], dtype=float32)
    """
    checked = _checks.array(features, "features", ndim=2, shape="(n, d)")
    _checks.positive(floor, "floor", zero=True)
    index = jnp.asarray(rows)
    if index.ndim != 1 or index.shape[0] < 2:
        raise ValueError(f"rows must hold at least two indices, got shape {index.shape}.")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"rows must hold indices (integers), got dtype {index.dtype}.")
    if not _checks.is_traced(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= checked.shape[0]:
            raise ValueError(
                f"rows must lie between 0 and {checked.shape[0] - 1}, got {low} to {high}."
            )
    counts = jnp.zeros((checked.shape[0],), checked.dtype).at[index].add(1)
    return _standardize(checked, counts, float(floor))
