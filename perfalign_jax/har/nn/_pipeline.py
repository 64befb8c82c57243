"""Batches of paired recordings: seeded order, prefetching, augmentation on the device.

A recording is stored once; what varies from epoch to epoch is made on the device by pure functions
of a random key. Every one moves a whole batch with one gather: slicing clip by clip costs several
times the training step. Augmentations never use a label and never mirror: a mirrored swipe is
another action, and its sensor still has the motion of the first.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from perfalign_jax import _checks

__all__ = [
    "augment_inertial",
    "augment_skeleton",
    "augment_video",
    "draw_batches",
    "prefetch",
    "prepare_video",
    "warp_time",
]

_T = TypeVar("_T")


def warp_time(
    key: Key[Array, ""], x: Float[Array, "b length ..."], *, crop: float = 0.2, warp: float = 0.1
) -> Float[Array, "b length ..."]:
    """Take a random stretch of every series ``(b, length, ...)`` and bend its clock.

    At most a share ``crop < 1`` of the time is cut off; the clock runs ahead or behind by at most a
    share ``warp``, below 1 / pi, from where on it would run backwards. Linear between frames.
    """
    for value, name, high in ((crop, "crop", 1.0), (warp, "warp", 1 / np.pi)):
        _checks.positive(value, name, zero=True)
        if value >= high:
            raise ValueError(f"{name} must be below {high:.3g}, got {value}.")
    when = _draw_clock(key, x.shape[0], x.shape[1], crop=crop, warp=warp)
    before = jnp.clip(jnp.floor(when).astype(jnp.int32), 0, x.shape[1] - 2)
    tail = (1,) * (x.ndim - 2)
    share = (when - before.astype(when.dtype)).astype(x.dtype).reshape(*when.shape, *tail)
    before = before.reshape(*when.shape, *tail)
    first = jnp.take_along_axis(x, before, axis=1)
    return first + share * (jnp.take_along_axis(x, before + 1, axis=1) - first)


def augment_inertial(
    key: Key[Array, ""], x: Float[Array, "b length 6"]
) -> Float[Array, "b length 6"]:
    """Vary inertial series of ``dataset.to_series`` as wearing, tempo and sensor would.

    Cropped and warped in time, the sensor turned by about 14 degrees about a random axis, scaled by
    about 10 %, with noise of 0.05 g and 5 degrees/s.
    """
    return _augment_series(key, x, channels=6, turn=0.15, noise=0.1)


def augment_skeleton(
    key: Key[Array, ""], x: Float[Array, "b length 60"]
) -> Float[Array, "b length 60"]:
    """Vary skeleton series of ``dataset.to_series`` as bodies, viewpoint and tempo would.

    Cropped and warped in time, the body turned by about 9 degrees, scaled by about 10 %, with noise
    of 1 cm.
    """
    return _augment_series(key, x, channels=60, turn=0.1, noise=0.05)


def augment_video(
    key: Key[Array, ""], x: UInt8[Array, "b frames h w *c"]
) -> Float[Array, "b frames h w *c"]:
    """Vary videos by speed, a shift of up to a sixteenth of the picture, and brightness."""
    for_time, for_shift, for_scale = jax.random.split(key, 3)
    b, frames, height, width = x.shape[:4]
    when = _draw_clock(for_time, b, frames, crop=0.2, warp=0.1)
    when = jnp.round(when).astype(jnp.int32)
    reach = max(1, height // 16)
    shift = jax.random.randint(for_shift, (2, b, 1), -reach, reach + 1)
    rows = jnp.clip(jnp.arange(height)[None] + shift[0], 0, height - 1)
    columns = jnp.clip(jnp.arange(width)[None] + shift[1], 0, width - 1)
    clips = jnp.arange(b)[:, None, None, None]
    where = clips, when[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    x = jnp.asarray(x)[where]
    scale = 1 + 0.15 * jax.random.normal(for_scale, (b, *(1,) * (x.ndim - 1)), jnp.float32)
    return prepare_video(x) * scale


def prepare_video(x: UInt8[Array, "b frames h w *c"]) -> Float[Array, "b frames h w *c"]:
    """Turn stored pixels into numbers from 0 to 2, without augmentation."""
    if x.dtype != jnp.uint8:
        raise TypeError(f"x must hold pixels as uint8, got dtype {x.dtype}.")
    return x.astype(jnp.float32) * (2 / 255)


def draw_batches(
    keys: Key[Array, " seeds"], *, n: int, batch_size: int, epoch: int
) -> Int[np.ndarray, "steps seeds b"]:
    """Draw the batches of one epoch for every seed: each clip at most once, the last ones left out.

    They depend on the keys and the epoch alone, so a resumed training sees what an unbroken one
    would.
    """
    n = _checks.integer(n, "n", low=1)
    batch_size = _checks.integer(batch_size, "batch_size", low=1, high=n, why=f" (n = {n} clips)")
    epoch = _checks.integer(epoch, "epoch", low=0)
    steps = n // batch_size
    orders = [np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), n)) for key in keys]
    chosen = np.stack([order[: steps * batch_size] for order in orders]).astype(np.int64)
    return chosen.reshape(len(orders), steps, batch_size).transpose(1, 0, 2)


def prefetch(make: Callable[[Any], _T], items: Any, *, ahead: int = 2) -> Iterator[_T]:
    """Make the next few batches in a thread while the present one is used, in order.

    What ``make`` raises is raised where the batch was due. Leaving early stops the thread.
    """
    ahead = _checks.integer(ahead, "ahead", low=1)
    waiting: collections.deque[Any] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _augment_series(
    key: Key[Array, ""], x: Array, *, channels: int, turn: float, noise: float
) -> Float[Array, "b length channels"]:
    """Series of vectors in space, three channels each: warped, turned, scaled, with noise."""
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(f"x must have shape (b, length, {channels}), got shape {x.shape}.")
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
    for_time, for_axes, for_scale, for_noise = jax.random.split(key, 4)
    b, length, _ = x.shape
    vectors = warp_time(for_time, x).reshape(b, length, channels // 3, 3)
    turned = jnp.einsum("btsc,bcd->btsd", vectors, _draw_rotations(for_axes, b, turn, x.dtype))
    scale = 1 + 0.1 * jax.random.normal(for_scale, (b, 1, 1), x.dtype)
    return turned.reshape(x.shape) * scale + noise * jax.random.normal(for_noise, x.shape, x.dtype)


def _draw_clock(
    key: Key[Array, ""], b: int, length: int, *, crop: float, warp: float
) -> Float[Array, "b length"]:
    """Where each frame of each clip is taken from, in frames, ascending."""
    for_span, for_start, for_bend = jax.random.split(key, 3)
    span = jax.random.uniform(for_span, (b, 1), minval=1 - crop, maxval=1.0)
    start = jax.random.uniform(for_start, (b, 1)) * (1 - span)
    bend = jax.random.uniform(for_bend, (b, 1), minval=-warp, maxval=warp)
    even = jnp.linspace(0.0, 1.0, length)[None]
    return (start + span * (even + bend * jnp.sin(jnp.pi * even))) * (length - 1)


def _draw_rotations(
    key: Key[Array, ""], b: int, size: float, dtype: Any
) -> Float[Array, "b three three"]:
    """Rotations about random axes by random small angles (Rodrigues' formula)."""
    vector = size * jax.random.normal(key, (b, 3), dtype)
    angle = jnp.linalg.norm(vector, axis=1)[:, None, None]
    x, y, z = (vector / jnp.maximum(angle[:, 0], 1e-12)).T
    zero = jnp.zeros_like(x)
    cross = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(b, 3, 3)
    eye = jnp.eye(3, dtype=dtype)[None]
    return eye + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * (cross @ cross)
