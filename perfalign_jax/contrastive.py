"""Linear encoders trained with the contrastive loss that CLIP made common.

The closed form of a simpler contrastive loss is ``baselines.linear_contrastive``.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from perfalign_jax import _checks, lift
from perfalign_jax._numerics import matmul
from perfalign_jax.lift import Lift
from perfalign_jax.types import Alignment, Views

__all__ = ["info_nce", "train_linear_contrastive"]

LARGEST_LOG_SCALE = 4.6052  # log(100): CLIP's bound on the inverse temperature


def info_nce(
    z1: Float[Array | np.ndarray, "n k"],
    z2: Float[Array | np.ndarray, "n k"],
    *,
    temperature: float | Array,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """InfoNCE loss, in nats: cosine similarity, averaged over both directions.

    With ``l_ij`` the cosine of ``z1_i`` and ``z2_j`` over the temperature, it is the mean of the
    cross-entropies of finding ``i`` among the ``l_i.`` and among the ``l_.i``; ``log(n)`` where the
    latents tell nothing. A latent of zero has cosine zero with everything.

    Args:
        z1: latents of the first modality, shape ``(n, k)``.
        z2: latents of the second modality, shape ``(n, k)``; row ``i`` belongs to row ``i``.
        temperature: above zero.
        axis_name: a mapped axis (of ``shard_map`` over a device mesh, or of ``vmap``) whose members
            hold parts of one batch: every latent is compared with those of all parts, and the loss
            is that of the whole batch.

    Raises:
        TypeError: if a latent array is not of real numbers or the temperature no number.
        ValueError: if the shapes differ, there are NaN, or the temperature is not above zero.

    Source: van den Oord et al. (2018) and Radford et al. (2021), named in the paper's Section 2.1.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import contrastive
        >>> z = np.eye(2, dtype="float32")
        >>> round(float(contrastive.info_nce(z, z, temperature=1.0)), 4)
        0.3133
    """
    z1, z2 = _checks.latents(z1, z2)
    _checks.positive(temperature, "temperature")
    return _info_nce_jit(z1, z2, 1 / jnp.asarray(temperature, z1.dtype), axis_name=axis_name)


def train_linear_contrastive(
    key: Key[Array, ""] | UInt32[Array, "2"],
    views: Views,
    *,
    k: int,
    steps: int = 500,
    learning_rate: float | Array = 0.02,
    temperature: float | Array = 0.07,
    batch_size: int | None = None,
    lifts: Sequence[Lift] | None = None,
) -> tuple[Alignment, Float[Array, " steps"]]:
    """Train one linear encoder per view with InfoNCE, Adam and a learned temperature.

    The views are centred and each is divided by one number, its root mean square, so that a
    learning rate means the same for all data; both are folded back into the result. The whole
    training is one compiled ``lax.scan``, and ``jax.vmap`` over views, key or both works. A
    full-batch step costs ``n^2`` similarities. The loss sees directions only, so the length of the
    latents is arbitrary.

    Args:
        key: random key of the initial encoders and of the mini-batches.
        views: two arrays of paired rows, shapes ``(n, d1)`` and ``(n, d2)``.
        k: number of latent dimensions.
        steps: number of gradient steps.
        learning_rate: Adam's, the same throughout.
        temperature: where the learned temperature starts; it stays above 1/100.
        batch_size: rows of each step, drawn without replacement; all of them if ``None``.
        lifts: one fitted map for each view: the encoders are then linear in its features.

    Returns:
        The alignment, whose ``coupling`` is the correlations of the two latents, coordinate by
        coordinate, on the training data; and the loss before each step, ``(steps,)``, in nats.

    Raises:
        TypeError: if the views are no pair of real arrays, or an option is of the wrong kind.
        ValueError: if the views do not fit together or have NaN, or an option is out of range.

    Source: the contrastive alignment (CA) of the paper's Sections 2.1 and 3.2, with linear
    encoders.

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.contrastive import train_linear_contrastive
        >>> x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
        >>> found, losses = train_linear_contrastive(jax.random.key(0), (x, x), k=3, steps=50)
        >>> found.projections[0].shape, bool(losses[-1] < losses[0])
        ((3, 3), True)
    """
    x1, x2 = _checks.two_views(views)
    n = x1.shape[0]
    _checks.integer(k, "k", low=1)
    _checks.integer(steps, "steps", low=1)
    _checks.positive(learning_rate, "learning_rate")
    _checks.positive(temperature, "temperature")
    if batch_size is not None:
        _checks.integer(batch_size, "batch_size", low=2, high=n, why=f" (n = {n} rows)")
    if lifts is not None:
        if len(lifts) != 2:
            raise ValueError(f"lifts must be two fitted maps, one for each view, got {len(lifts)}.")
        x1, x2 = (lift.apply(f, x) for f, x in zip(lifts, (x1, x2), strict=True))
    alignment, losses = _train(
        (x1, x2), key, learning_rate, temperature, k=k, steps=steps, batch_size=batch_size
    )
    return dataclasses.replace(alignment, lifts=tuple(lifts or ())), losses


def info_nce_of_scale(
    z1: Float[Array, "n k"],
    z2: Float[Array, "n k"],
    inverse_temperature: Float[Array, ""],
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """``info_nce`` without checks, of the inverse temperature that training learns."""
    u1, u2 = (_unit(z) for z in (z1, z2))
    matched = inverse_temperature * jnp.sum(u1 * u2, axis=1)
    if axis_name is None:
        logits = inverse_temperature * matmul(u1, u2.T)
        both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
        return jnp.mean(both / 2 - matched)
    every1, every2 = (jax.lax.all_gather(u, axis_name, tiled=True) for u in (u1, u2))
    found1 = jax.nn.logsumexp(inverse_temperature * matmul(u1, every2.T), axis=1)
    found2 = jax.nn.logsumexp(inverse_temperature * matmul(u2, every1.T), axis=1)
    return jax.lax.pmean(jnp.mean((found1 + found2) / 2 - matched), axis_name)


def _unit(z: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Rows of length one; a row of zeros stays zero and has gradient zero."""
    squares = jnp.sum(z * z, axis=1, keepdims=True)
    some = squares > 0
    return z * jnp.where(some, jax.lax.rsqrt(jnp.where(some, squares, 1)), 0)


_info_nce_jit = jax.jit(info_nce_of_scale, static_argnames="axis_name")


def _size(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Root mean square, in a unit in which no square overflows or vanishes; 1 of zeros."""
    largest = jnp.max(jnp.abs(x), initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.where(largest > 0, jnp.sqrt(jnp.mean((x / unit) ** 2)), 1)


@functools.partial(jax.jit, static_argnames=("k", "steps", "batch_size"))
def _train(
    views: tuple[Float[Array, "n d1"], Float[Array, "n d2"]],
    key: Array,
    learning_rate: float | Array,
    temperature: float | Array,
    *,
    k: int,
    steps: int,
    batch_size: int | None,
) -> tuple[Alignment, Float[Array, " steps"]]:
    n, dtype = views[0].shape[0], views[0].dtype
    means = tuple(jnp.mean(x, axis=0) for x in views)
    centred = tuple(x - m[None, :] for x, m in zip(views, means, strict=True))
    sizes = tuple(_size(x) for x in centred)
    inputs = tuple(x / size for x, size in zip(centred, sizes, strict=True))

    start_key, batch_key = jax.random.split(key)
    start = tuple(
        jax.random.normal(one_key, (k, x.shape[1]), dtype) / jnp.sqrt(x.shape[1]).astype(dtype)
        for one_key, x in zip(jax.random.split(start_key), inputs, strict=True)
    )
    parameters = (start, -jnp.log(jnp.asarray(temperature, dtype)))
    import optax

    optimizer = optax.adam(learning_rate)

    def loss_of(parameters: Any, batch: tuple[Array, ...]) -> Array:
        encoders, log_scale = parameters
        z1, z2 = (matmul(x, w.T) for x, w in zip(batch, encoders, strict=True))
        return info_nce_of_scale(z1, z2, jnp.exp(log_scale))

    def step(carry: Any, step_key: Array) -> tuple[Any, Array]:
        parameters, state = carry
        batch = inputs
        if batch_size is not None:
            chosen = jax.random.permutation(step_key, n)[:batch_size]
            batch = tuple(x[chosen] for x in inputs)
        loss, gradient = jax.value_and_grad(loss_of)(parameters, batch)
        updates, state = optimizer.update(gradient, state)
        encoders, log_scale = jax.tree.map(jnp.add, parameters, updates)
        return ((encoders, jnp.minimum(log_scale, LARGEST_LOG_SCALE)), state), loss

    carry = (parameters, optimizer.init(parameters))
    ((encoders, _), _), losses = jax.lax.scan(step, carry, jax.random.split(batch_key, steps))

    z1, z2 = (matmul(x, w.T) for x, w in zip(inputs, encoders, strict=True))
    lengths = jnp.sqrt(jnp.sum(z1 * z1, axis=0) * jnp.sum(z2 * z2, axis=0))
    correlations = jnp.sum(z1 * z2, axis=0) / jnp.where(lengths > 0, lengths, 1)
    alignment = Alignment(
        projections=tuple(w / size for w, size in zip(encoders, sizes, strict=True)),
        singular_values=jnp.linalg.norm(z1 - z2, axis=0),
        means=means,
        offset=jnp.zeros_like(correlations),
        coupling=correlations,
        method="train_linear_contrastive",
        center=True,
    )
    return alignment, losses
