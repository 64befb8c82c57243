"""The paper's decoder of actions, an MLP, trained on latents of the labelled source."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from perfalign_jax import _checks
from perfalign_jax._numerics import to_common_scale
from perfalign_jax.har.nn.encoders import Head
from perfalign_jax.har.protocol.transfer import Task

__all__ = ["rank_by_mlp"]


def rank_by_mlp(
    task: Task, *, key: Key[Array, ""], steps: int = 300, learning_rate: float = 1e-3
) -> Int[np.ndarray, "e classes"]:
    """Train the paper's decoder, an MLP, on the labelled source's latents, and rank the classes.

    Latents are divided by one number, and turned into the span of the labelled ones where they have
    more dimensions than that; both change nothing that could be learnt.

    Args:
        task: latents.
        key: random key of the initial weights.
        steps: gradient steps of AdamW on all labelled latents.
        learning_rate: AdamW's.

    Returns:
        Classes of each unseen target clip, most probable first.

    Raises:
        TypeError: if latents are no real numbers.
        ValueError: if latents are not finite, all zero or of different sizes, or an option is out
            of range.

    Source: paper, Section 3.2 (HAR task decoder).

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.har.nn.decoder import rank_by_mlp
        >>> from perfalign_jax.har.protocol import transfer
        >>> z = np.eye(3, dtype="float32")
        >>> task = transfer.Task((z, z), labelled=z, labels=np.array([4, 5, 7]), unseen=z)
        >>> rank_by_mlp(task, key=jax.random.key(0), steps=100)[:, 0].tolist()
        [4, 5, 7]
    """
    labelled = _checks.matrix(task.labelled, "labelled")
    unseen = _checks.matrix(task.unseen, "unseen")
    if labelled.shape[1:] != unseen.shape[1:]:
        raise ValueError(
            "labelled and unseen must have latents of one size, got shapes "
            f"{labelled.shape} and {unseen.shape}."
        )
    if not labelled.any():
        raise ValueError("labelled has latents without any energy: there is nothing to train on.")
    _checks.key(key)
    _checks.integer(steps, "steps", low=1)
    _checks.positive(learning_rate, "learning_rate")
    classes, numbers = np.unique(task.labels, return_inverse=True)
    z, wanted = (x.astype(np.float32) for x in to_common_scale(labelled, unseen))
    count, size = z.shape
    if size > count:
        basis = np.linalg.qr(z.T)[0]
        z, wanted = z @ basis, wanted @ basis
    # Zeros up to one width, so that latents of every size are trained by one compiled program.
    z, wanted = (np.pad(x, ((0, 0), (0, count - x.shape[1]))) for x in (z, wanted))
    scale = np.sqrt(count / np.mean(np.sum(z * z, axis=1)))
    decoder = Head(count, 256, len(classes), rngs=nnx.Rngs(key), dtype=jnp.float32)
    graph, weights = nnx.split(decoder)
    scores = _fit_decoder(graph, weights, z * scale, numbers, wanted * scale, learning_rate, steps)
    return classes[np.argsort(-np.asarray(scores), axis=1, kind="stable")]


@functools.partial(jax.jit, static_argnums=(0, 6))
def _fit_decoder(
    graph: Any,
    weights: Any,
    z: Array,
    numbers: Array,
    wanted: Array,
    learning_rate: Array,
    steps: int,
) -> Array:
    """Scores of ``wanted`` by the decoder trained on ``z``, all of it in one program."""
    optimizer = optax.adamw(learning_rate, weight_decay=1e-2)

    def loss_of(weights: Any) -> Array:
        scores = nnx.merge(graph, weights)(z)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, numbers))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, state = carry
        updates, state = optimizer.update(jax.grad(loss_of)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)
    return nnx.merge(graph, weights)(wanted)
