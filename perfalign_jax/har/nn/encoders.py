"""Encoders of the modalities, as Flax NNX modules.

Every encoder maps a batch of recordings to latents of one size (2048 in the paper), so any two can
be trained together. Convolutions of the compact encoders are products of gathered patches with a
matrix: on a CPU their gradients take half the time of XLA's convolution, and several seeds in one
vmapped program (whose kernels differ) a fifth.
"""

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from perfalign_jax import _checks
from perfalign_jax.har.nn import _pipeline as pipeline
from perfalign_jax.har.nn.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet18, load_resnet18

__all__ = ["Branch", "computing_dtype", "make_branch"]


@dataclasses.dataclass(frozen=True)
class Branch:
    """What training needs to know of one modality.

    Attributes:
        make: makes the encoder from a random key.
        augment: makes the encoder's input from a random key and a batch of recordings.
        prepare: makes it from a batch alone, for evaluation.
        name: says what it is; part of what a checkpoint is recognised by.
        frozen: parts of the encoder that training leaves as they are.

    Example:
        >>> from perfalign_jax.har.nn import encoders
        >>> encoders.make_branch("inertial", latent=8).name
        'inertial, SeriesEncoder, latent 8'
    """

    make: Callable[[Array], nnx.Module]
    augment: Callable[[Array, Array], Array]
    prepare: Callable[[Array], Array]
    name: str
    frozen: tuple[str, ...] = ()


def computing_dtype() -> DTypeLike:
    """Return bfloat16 where the device computes faster in it (GPU, TPU), float32 on a CPU.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.nn import encoders
        >>> encoders.computing_dtype() is jax.numpy.float32 or jax.default_backend() != "cpu"
        True
    """
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def make_branch(
    modality: str,
    *,
    latent: int = 256,
    architecture: str = "compact",
    size: int = 48,
    weights: str | os.PathLike[str] | None = None,
    frozen: bool = False,
) -> Branch:
    """Choose encoder, augmentation and preparation of one modality.

    Args:
        modality: "inertial", "skeleton", "depth" or "rgb".
        latent: size of the latents, the same for both modalities of a pair.
        architecture: of the video encoder: "compact", or "paper" for ``PaperVideoEncoder``.
        size: height and width of the video, for the compact encoder: a multiple of 16.
        weights: file of ResNet-18 weights for the paper's encoder, see ``load_resnet18``; without
            one its trunk starts from random weights, with a warning.
        frozen: keep the trunk of the paper's encoder as it is loaded.

    Returns:
        A ``Branch``.

    Raises:
        FileNotFoundError: if there is no file ``weights``.
        ValueError: if a word is unknown, or the options do not fit together.

    Example:
        >>> from perfalign_jax.har.nn import encoders
        >>> encoders.make_branch("depth", latent=8, size=16).name
        'depth, CompactVideoEncoder, latent 8'
    """
    _checks.one_of(modality, "modality", ("inertial", "skeleton", "depth", "rgb"))
    _checks.one_of(architecture, "architecture", ("compact", "paper"))
    _checks.integer(latent, "latent", low=1)
    video, paper = modality in ("depth", "rgb"), architecture == "paper"
    if not paper:
        _check_size(size)
    if frozen and weights is None:
        raise ValueError("frozen=True keeps a random trunk for ever: give weights as well.")
    if weights is not None and not (paper and video):
        raise ValueError("weights are for a video encoder with architecture='paper' only.")
    if paper and not video:
        raise ValueError(f"architecture='paper' is for depth and rgb, got modality {modality!r}.")
    if weights is not None and not os.path.isfile(weights):
        raise FileNotFoundError(f"weights: {os.fspath(weights)} does not exist.")
    if paper and weights is None:
        warnings.warn(
            "without a file of ImageNet weights the ResNet-18 trunk starts from random numbers and "
            "is trained with the rest of the encoder.",
            stacklevel=2,
        )
    options: dict[str, Any] = {"latent": latent, "dtype": computing_dtype()}
    kind: Any = SeriesEncoder
    if not video:
        options["channels"] = 6 if modality == "inertial" else 60
        options["hidden"] = max(256, latent)  # a narrower layer would be the rank of the latents
        if modality == "skeleton":
            options |= {"widths": (128, 128, 192), "velocity": True}
    elif paper:
        kind, options = PaperVideoEncoder, options | {"frozen": frozen}
    else:
        channels = 3 if modality == "rgb" else 1
        kind, options = CompactVideoEncoder, options | {"size": size, "channels": channels}

    def make(key: Array) -> nnx.Module:
        encoder = kind(key, **options)
        if weights is not None:
            load_resnet18(encoder.trunk, weights)
        return encoder

    series = {"inertial": pipeline.augment_inertial, "skeleton": pipeline.augment_skeleton}
    extra = f", weights {weights}" if weights is not None else ""
    extra += ", frozen trunk" if frozen else ""
    return Branch(
        make,
        series.get(modality, pipeline.augment_video),
        pipeline.prepare_video if video else _as_it_is,
        f"{modality}, {kind.__name__}, latent {latent}{extra}",
        ("trunk",) if frozen else (),
    )


def _check_size(size: int) -> None:
    if _checks.integer(size, "size", low=16) % 16:
        raise ValueError(f"size must be a multiple of 16, got {size}.")


def _as_it_is(x: Array) -> Array:
    return x


class _Convolution(nnx.Module):
    """Convolution over every axis but first and last, then layer normalisation and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        taps: Sequence[int],
        strides: Sequence[int],
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ) -> None:
        self.taps, self.strides, self.dtype = tuple(taps), tuple(strides), dtype
        shape = (inputs * math.prod(taps), outputs)
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape, jnp.float32))
        self.norm = nnx.LayerNorm(outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space2 c2"]:
        disjoint = self.taps == self.strides and not any(
            size % taps for size, taps in zip(x.shape[1:-1], self.taps, strict=True)
        )
        gather = _cut_into_patches if disjoint else _gather_patches
        patches = gather(x.astype(self.dtype), self.taps, self.strides)
        flat = patches.reshape(-1, patches.shape[-1]) @ self.kernel[...].astype(self.dtype)
        return jax.nn.relu(self.norm(flat.reshape(*patches.shape[:-1], -1)))


def _cut_into_patches(
    x: Float[Array, "b *space c"], taps: Sequence[int], strides: Sequence[int]
) -> Float[Array, "b *space2 patch"]:
    """Patches side by side, without overlap: only the axes change their order."""
    counts = [size // t for size, t in zip(x.shape[1:-1], taps, strict=True)]
    axes = len(counts)
    cut = x.reshape(x.shape[0], *itertools.chain(*zip(counts, taps, strict=True)), x.shape[-1])
    order = (0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return cut.transpose(order).reshape(x.shape[0], *counts, -1)


def _gather_patches(
    x: Float[Array, "b *space c"], taps: Sequence[int], strides: Sequence[int]
) -> Float[Array, "b *space2 patch"]:
    """Patches that overlap, with zeros beyond the ends ("SAME")."""
    counts = [-(-size // s) for size, s in zip(x.shape[1:-1], strides, strict=True)]
    pads, along = [(0, 0)], []
    for size, count, t, s in zip(x.shape[1:-1], counts, taps, strides, strict=True):
        missing = max((count - 1) * s + t - size, 0)
        pads.append((missing // 2, missing - missing // 2))
        along.append([slice(first, first + (count - 1) * s + 1, s) for first in range(t)])
    filled = jnp.pad(x, [*pads, (0, 0)])
    return jnp.concatenate(
        [filled[(slice(None), *place)] for place in itertools.product(*along)], axis=-1
    )


class Head(nnx.Module):
    """Two-layer MLP: of latents, and the paper's decoder of actions."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        self.hidden = nnx.Linear(inputs, hidden, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(hidden, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return self.out(jax.nn.relu(self.hidden(x))).astype(jnp.float32)


def _with_velocity(x: Float[Array, "b length *c"]) -> Float[Array, "b length *c2"]:
    """The series and its change from frame to frame, side by side."""
    before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    return jnp.concatenate([x, 4 * (x - before)], axis=-1)  # changes are a fraction of the values


class SeriesEncoder(nnx.Module):
    """Encoder of multichannel time series (IMU, skeleton): a 1D CNN, then an MLP.

    Every convolution sees ``taps`` frames and halves their number; ``widths`` are the channels
    after each. With ``velocity`` it also sees the change from frame to frame. Weights and latents
    are float32, whatever the computing ``dtype``.

    Source: paper, Section 3.2 (IMU feature encoder: 1D CNN followed by an MLP).
    """

    def __init__(
        self,
        key: Key[Array, ""],
        *,
        channels: int,
        latent: int = 256,
        widths: Sequence[int] = (64, 128, 192),
        taps: int = 5,
        hidden: int = 256,
        velocity: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        rngs = nnx.Rngs(key)
        for value, name in ((channels, "channels"), (latent, "latent"), (taps, "taps")):
            _checks.integer(value, name, low=1)
        self.channels, self.velocity = channels, velocity
        inputs = [channels * (1 + velocity), *widths]
        self.convolutions = nnx.List(
            [
                _Convolution(a, b, taps=(taps,), strides=(2,), rngs=rngs, dtype=dtype)
                for a, b in itertools.pairwise(inputs)
            ]
        )
        self.head = Head(2 * inputs[-1], hidden, latent, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b length channels"], *, train: bool = False
    ) -> Float[Array, "b latent"]:
        """Encode series of shape ``(b, length, channels)``."""
        if x.ndim != 3 or x.shape[2] != self.channels:
            raise ValueError(
                f"x must have shape (b, length, {self.channels}), got shape {x.shape}."
            )
        x = _with_velocity(x) if self.velocity else x
        for convolution in self.convolutions:
            x = convolution(x)
        return self.head(jnp.concatenate([jnp.mean(x, axis=1), jnp.max(x, axis=1)], axis=1))


class CompactVideoEncoder(nnx.Module):
    """Video encoder that trains on a CPU: convolutions in space, then in time.

    Every second frame, beside its difference from the clip's mean picture: the motion, which is
    what a wearable sensor shares with the video. Patches of eight by eight pixels, a convolution
    over two by two of them, a vector for each frame, then a ``SeriesEncoder`` over time.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        *,
        size: int = 48,
        channels: int = 1,
        latent: int = 256,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        rngs = nnx.Rngs(key)
        _check_size(size)
        _checks.one_of(str(channels), "channels", ("1", "3"))
        self.size, self.channels = size, channels
        patch, pair = (1, 8, 8), (1, 2, 2)
        self.patch = _Convolution(
            2 * channels, 32, taps=patch, strides=patch, rngs=rngs, dtype=dtype
        )
        self.space = _Convolution(32, 96, taps=pair, strides=pair, rngs=rngs, dtype=dtype)
        self.frame = nnx.Linear((size // 16) ** 2 * 96, 128, dtype=dtype, rngs=rngs)
        self.series = SeriesEncoder(
            rngs.params(),
            channels=128,
            latent=latent,
            hidden=max(256, latent),
            widths=(128, 192),
            taps=3,
            velocity=True,
            dtype=dtype,
        )

    def __call__(
        self, x: Float[Array, "b frames size size *c"], *, train: bool = False
    ) -> Float[Array, "b latent"]:
        """Encode videos of shape ``(b, frames, size, size)``, RGB with its channels last."""
        x = x[..., None] if self.channels == 1 and x.ndim == 4 else x
        if x.ndim != 5 or x.shape[2:] != (self.size, self.size, self.channels):
            tail = "" if self.channels == 1 else f", {self.channels}"
            raise ValueError(
                f"x must have shape (b, frames, {self.size}, {self.size}{tail}), "
                f"got shape {x.shape}."
            )
        x = x[:, ::2]
        motion = 2 * (x - jnp.mean(x, axis=1, keepdims=True))
        x = self.space(self.patch(jnp.concatenate([x, motion], axis=-1)))
        x = self.frame(x.reshape(*x.shape[:2], -1))
        return self.series(x.astype(jnp.float32))


class PaperVideoEncoder(nnx.Module):
    """The paper's video encoder: ResNet-18 on every frame, a 3D CNN on its maps, a two-layer MLP.

    Depth and grey videos are shown to all three colours of the trunk. A frozen trunk keeps its
    weights and its batch statistics; that is only sensible once it has weights.

    Source: paper, Section 3.2.
    """

    def __init__(
        self,
        key: Key[Array, ""],
        *,
        latent: int = 2048,
        width: int = 256,
        frozen: bool = False,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        _checks.key(key)
        for_trunk, for_rest = jax.random.split(key)
        rngs = nnx.Rngs(for_rest)
        self.frozen = frozen
        self.trunk = ResNet18(for_trunk, dtype=dtype)
        self.convolutions = nnx.List(
            [
                _Convolution(a, width, taps=(3, 3, 3), strides=(2, 1, 1), rngs=rngs, dtype=dtype)
                for a in (512, width)
            ]
        )
        self.head = Head(2 * width, latent, latent, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b frames h w *c"], *, train: bool = False
    ) -> Float[Array, "b latent"]:
        """Encode videos of shape ``(b, frames, h, w)``, or RGB with three channels last."""
        if x.ndim not in (4, 5) or (x.ndim == 5 and x.shape[4] != 3):
            raise ValueError(
                f"x must have shape (b, frames, h, w) or (b, frames, h, w, 3), got {x.shape}."
            )
        if x.ndim == 4:
            x = jnp.repeat(x[..., None], 3, axis=4)
        b, frames = x.shape[:2]
        mean, std = (
            jnp.asarray(v, x.dtype).reshape(1, 1, 1, 1, 3) for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        x = (x / 2 - mean) / std  # prepare_video's scale ends at 2
        maps = self.trunk.feature_map(
            x.reshape(b * frames, *x.shape[2:]), train=train and not self.frozen
        )
        x = maps.reshape(b, frames, *maps.shape[1:]).astype(jnp.float32)
        for convolution in self.convolutions:
            x = convolution(x)
        pooled = [jnp.mean(x, axis=(1, 2, 3)), jnp.max(x, axis=(1, 2, 3))]
        return self.head(jnp.concatenate(pooled, axis=1))
