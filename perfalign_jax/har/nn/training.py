"""Contrastive training of two encoders on unlabelled pairs, several seeds in one program.

The training step is a pure function of split state (Flax NNX), vmapped over seeds and compiled once
per training. Order of the clips and augmentations depend on the seed's key and on the step alone,
so a training that was killed and resumed ends where an unbroken one does.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from perfalign_jax import _checks
from perfalign_jax.contrastive import LARGEST_LOG_SCALE, info_nce_of_scale
from perfalign_jax.har.nn import _pipeline as pipeline
from perfalign_jax.har.nn._checkpoints import Store
from perfalign_jax.har.nn.encoders import Branch, computing_dtype

__all__ = ["NonFiniteLossError", "Settings", "Trained", "encode", "start", "train"]

Pairs = tuple[Shaped[np.ndarray, "n ..."], Shaped[np.ndarray, "n ..."]]


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became infinite or NaN.

    The message names the step and the last good checkpoint.

    Example:
        >>> from perfalign_jax.har.nn import training
        >>> issubclass(training.NonFiniteLossError, ArithmeticError)
        True
    """


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs in a batch, about: an epoch has a whole number of equal batches, and
            leaves out fewer pairs than it has batches. Pairs of the same action push each other
            apart: the larger the batch, the more of them.
        learning_rate: highest learning rate of AdamW, after the warm-up and before the cosine.
        warmup: share of the steps in which the learning rate grows from zero.
        weight_decay: of AdamW, on kernels only.
        clip: largest norm of the gradient.
        temperature: where the learned temperature starts; it stays above 1/100.
        ema: decay of the exponential moving average of the weights that ``encode`` then uses; None
            uses the last weights.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from perfalign_jax.har.nn import training
        >>> training.Settings(epochs=5).batch_size
        32
    """

    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    temperature: float = 0.1
    ema: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 2)):
            object.__setattr__(self, name, _checks.integer(getattr(self, name), name, low=low))
        numbers = ["learning_rate", "clip", "temperature", "weight_decay", "warmup"]
        for name in [*numbers, "ema"] if self.ema is not None else numbers:
            value = getattr(self, name)
            _checks.positive(value, name, zero=name in ("weight_decay", "warmup"))
            object.__setattr__(self, name, float(value))  # NumPy's would not go into the record
        if self.temperature < math.exp(-LARGEST_LOG_SCALE):
            raise ValueError(f"temperature must be at least 1/100, got {self.temperature}.")
        if self.warmup > 1:
            raise ValueError(f"warmup must be a share of at most 1, got {self.warmup}.")
        if self.ema is not None and self.ema >= 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}.")


@dataclasses.dataclass(frozen=True)
class Trained:
    """Two encoders, for every seed.

    Attributes:
        branches: what each modality's encoder is.
        graphs: NNX graph definitions of the encoders.
        variables: their variables, trained or not, with the seeds along the first axis.
        losses: loss of each epoch and seed, the mean over its steps, shape ``(epochs, seeds)``.
        watched: what ``watch`` returned after each epoch, NaN where it was not asked.
        seconds: time of training; after a resume that of its parts up to their last checkpoints.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.nn import encoders, training
        >>> branch = encoders.make_branch("inertial", latent=4)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> training.start((branch, branch), keys).losses.shape
        (0, 2)
    """

    branches: tuple[Branch, Branch]
    graphs: tuple[Any, Any]
    variables: tuple[Any, Any]
    losses: Float[np.ndarray, "epochs seeds"]
    watched: Float[np.ndarray, "epochs seeds"]
    seconds: float = 0.0

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return int(self.losses.shape[1])


def start(branches: tuple[Branch, Branch], keys: Key[Array, " seeds"]) -> Trained:
    """Return untrained encoders of two modalities, one pair for every key, shape ``(seeds,)``.

    Raises:
        TypeError, ValueError: if the branches are not two, or ``keys`` of another kind or shape.

    Example:
        >>> import jax
        >>> from perfalign_jax.har.nn import encoders, training
        >>> branch = encoders.make_branch("inertial", latent=4)
        >>> training.start((branch, branch), jax.random.split(jax.random.key(0), 3)).seeds
        3
    """
    if not jnp.issubdtype(jnp.asarray(keys).dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"keys must be made by jax.random.key, got dtype {jnp.asarray(keys).dtype}."
        )
    if not isinstance(branches, tuple | list) or len(branches) != 2:
        raise TypeError("branches must be a tuple of two, one for each modality.")
    if jnp.ndim(keys) != 1 or len(keys) == 0:
        raise ValueError(f"keys must have shape (seeds,), got shape {jnp.shape(keys)}.")

    def make(m: int) -> tuple[Any, Any]:
        own = [branches[m].make(jax.random.fold_in(key, m)) for key in keys]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, own))
        return nnx.split(own[0])[0], stacked

    (graph1, variables1), (graph2, variables2) = make(0), make(1)
    nothing = np.zeros((0, len(keys)))
    both = branches[0], branches[1]
    return Trained(both, (graph1, graph2), (variables1, variables2), nothing, nothing)


def encode(
    trained: Trained, x: Shaped[np.ndarray, "n ..."], *, view: int, batch_size: int = 128
) -> Float[np.ndarray, "seeds n k"]:
    """Encode recordings of one modality with the encoders of every seed.

    The latents have shape ``(seeds, n, k)`` and are float32.

    Args:
        trained: what ``train`` returned.
        x: recordings as they were trained on, without augmentation.
        view: 0 or 1, the modality.
        batch_size: clips at a time.

    Raises:
        TypeError: if ``x`` is no array of real numbers.
        ValueError: if there is no such view, or ``x`` is empty, not finite or of another shape.

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.har.nn import encoders, training
        >>> branch = encoders.make_branch("inertial", latent=4)
        >>> trained = training.start((branch, branch), jax.random.split(jax.random.key(0), 2))
        >>> training.encode(trained, np.zeros((5, 16, 6), np.float32), view=1).shape
        (2, 5, 4)
    """
    view = _checks.integer(view, "view", low=0, high=1)
    batch_size = _checks.integer(batch_size, "batch_size", low=1)
    _check_recordings(x, "x")
    n = x.shape[0]
    size = min(batch_size, n)
    parts = []
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)  # one shape, one compilation
        found = _encode(
            trained.graphs[view], trained.branches[view].prepare, trained.variables[view], x[rows]
        )
        parts.append(np.asarray(found))
    return np.concatenate(parts, axis=1)[:, :n]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph: Any, prepare: Any, variables: Any, x: Array) -> Array:
    return jax.vmap(lambda own, batch: nnx.merge(graph, own)(prepare(batch)), (0, None))(
        variables, x
    )


def train(
    branches: tuple[Branch, Branch],
    pairs: Pairs,
    *,
    keys: Key[Array, " seeds"],
    settings: Settings | None = None,
    folder: Path | None = None,
    resume: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    watch: Callable[[Trained], Sequence[float] | Float[np.ndarray, " seeds"]] | None = None,
    watch_every: int = 10,
    progress: bool = False,
) -> Trained:
    """Train two encoders with symmetric InfoNCE, AdamW, warm-up and cosine, for several seeds.

    Args:
        branches: the two modalities, see ``encoders.make_branch``.
        pairs: recordings of both modalities, row by row of the same moment; nothing else is seen.
        keys: one random key for every seed, shape ``(seeds,)``.
        settings: how to train.
        folder: where a checkpoint is written after every epoch; None writes none.
        resume: go on from the last checkpoint in ``folder`` if there is one; otherwise the folder
            must be empty.
        mesh: devices that share every batch, along the mesh's first axis. The loss is that of the
            whole batch, wherever its parts lie. Batches are cut to a multiple of their number.
        watch: asked every ``watch_every`` epochs, and after the last, for one number of each seed
            (such as validation accuracy) that is shown and kept; it never changes the training.
        watch_every: see ``watch``.
        progress: show epoch, loss, the watched number and the time left.

    Raises:
        NonFiniteLossError: if the loss is no number; what was good is in the last checkpoint.
        ValueError: if the pairs do not fit together, or the folder belongs to another training.
        FileExistsError: if the folder has checkpoints and ``resume`` is False.
        NotADirectoryError: if ``folder`` is a file.

    Source: paper, Section 3.2 (CA), with the loss of ``contrastive.info_nce``.

    Example:
        >>> import jax, numpy as np
        >>> from perfalign_jax.har.nn import encoders, training
        >>> x = np.random.default_rng(0).normal(size=(8, 16, 6)).astype("float32")
        >>> branch, keys = encoders.make_branch("inertial", latent=4), jax.random.key(0)[None]
        >>> settings = training.Settings(epochs=2, batch_size=4)
        >>> training.train((branch, branch), (x, x), keys=keys, settings=settings).losses.shape
        (2, 1)
    """
    settings = settings or Settings()
    _check_pairs(pairs)
    watch_every = _checks.integer(watch_every, "watch_every", low=1)
    n = pairs[0].shape[0]
    steps = max(1, min(round(n / settings.batch_size), n // 2))  # one pair has nothing to tell
    place = _Place(mesh, n // steps)
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise NotADirectoryError(f"folder must be a folder, got the file {folder}.")
    first = start(branches, keys)
    _check_latents(first, pairs)
    step, optimizer = _make_step(first.graphs, first.branches, settings, settings.epochs * steps)
    state = _first_state(first, optimizer, settings)
    identity = _identify(branches, pairs, keys, settings, place.batch_size)
    store = Store(folder, identity) if folder else None
    done, spent = 0, 0.0
    losses, watched = np.zeros((0, first.seeds)), np.zeros((0, first.seeds))
    if store is not None and store.last is not None:
        if not resume:
            raise FileExistsError(
                f"{folder} holds checkpoints up to epoch {store.last}; resume from them, or give "
                "an empty folder."
            )
        done, state, losses, watched, spent = store.read(state, first.seeds)
    state, keys = place.everywhere((state, keys))
    began = time.perf_counter() - spent
    seconds = spent

    def now() -> Trained:
        variables = _variables(state, settings)
        return Trained(branches, first.graphs, variables, losses, watched, seconds)

    bar = rich.progress.Progress(
        rich.progress.TextColumn("epoch {task.completed}/{task.total}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TextColumn("loss {task.fields[loss]}  watched {task.fields[watched]}"),
        rich.progress.TimeRemainingColumn(),
        disable=not progress,
        transient=True,
    )
    with bar, contextlib.closing(store) if store is not None else contextlib.nullcontext():
        task = bar.add_task("", total=settings.epochs, completed=done, loss="-", watched="-")
        for epoch in range(done, settings.epochs):
            state, found = _run_epoch(step, state, pairs, keys, epoch, steps, place)
            bad = ~np.isfinite(found).all(axis=1)
            if bad.any():
                where = epoch * steps + int(np.argmax(bad))
                kept = store.path if store is not None else None
                raise NonFiniteLossError(
                    f"the loss or its gradient is not finite at step {where} (epoch {epoch + 1} of "
                    f"{settings.epochs}, seeds {np.flatnonzero(~np.isfinite(found[bad][0]))}); "
                    + (f"the last good checkpoint is {kept}." if kept else "no checkpoint is kept.")
                )
            losses = np.concatenate([losses, found.mean(axis=0, keepdims=True)])
            watched = np.concatenate([watched, np.full((1, first.seeds), np.nan)])
            seconds = time.perf_counter() - began
            if watch is not None and (
                (epoch + 1) % watch_every == 0 or epoch + 1 == settings.epochs
            ):
                numbers = np.asarray(watch(now()), np.float64)
                if numbers.shape != (first.seeds,):
                    raise ValueError(
                        f"watch must return {first.seeds} numbers, got shape {numbers.shape}."
                    )
                watched[-1] = numbers
                bar.update(task, watched=f"{np.mean(watched[-1]):.1f}")
            bar.update(task, advance=1, loss=f"{losses[-1].mean():.3f}")
            if store is not None:
                store.write(epoch + 1, state, losses, watched, seconds)
    return now()


def _check_pairs(pairs: Pairs) -> None:
    if not isinstance(pairs, tuple | list) or len(pairs) != 2:
        raise TypeError("pairs must be a tuple of two arrays of recordings.")
    for x, name in zip(pairs, ("pairs[0]", "pairs[1]"), strict=True):
        _check_recordings(x, name)
    if pairs[0].shape[0] != pairs[1].shape[0] or pairs[0].shape[0] < 2:
        raise ValueError(
            "pairs must have the same number of recordings, at least 2, got shapes "
            f"{pairs[0].shape} and {pairs[1].shape}."
        )


def _check_recordings(x: Any, name: str) -> None:
    if not isinstance(x, np.ndarray | jax.Array):
        raise TypeError(f"{name} must be an array of recordings, got {type(x).__name__}.")
    if x.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {x.dtype}.")
    if x.ndim < 3 or 0 in x.shape:
        raise ValueError(
            f"{name} must hold at least one recording and have shape (n, time, ...), got shape "
            f"{x.shape}."
        )
    if x.dtype.kind == "f":
        _checks.finite(x, name)


def _check_latents(first: Trained, pairs: Pairs) -> None:
    """Try both encoders on the shapes alone."""
    sizes = [
        jax.eval_shape(functools.partial(_encode, g, b.prepare), v, x[:1]).shape[-1]
        for g, b, v, x in zip(first.graphs, first.branches, first.variables, pairs, strict=True)
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"branches must give latents of one size, got {sizes[0]} and {sizes[1]} dimensions."
        )


def _make_optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    warmup = min(round(settings.warmup * steps), steps - 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warmup, steps)

    def kernels(parameters: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(rate, weight_decay=settings.weight_decay, mask=kernels),
    )


def _split(variables: Any, branch: Branch) -> tuple[Any, Any]:
    """What training changes by its gradient, and the rest."""

    def trainable(path: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, nnx.Param) and not set(path) & set(branch.frozen)

    chosen, rest = nnx.split_state(variables, trainable, ...)
    return chosen, rest


def _first_state(
    first: Trained, optimizer: optax.GradientTransformation, settings: Settings
) -> Any:
    """Weights, what else the encoders keep, the optimiser's state and the average, per seed."""
    split = [_split(own, b) for own, b in zip(first.variables, first.branches, strict=True)]
    scale = jnp.full((first.seeds,), -math.log(settings.temperature), jnp.float32)
    weights = (split[0][0], split[1][0], scale)
    rest = (split[0][1], split[1][1])
    # A copy: the step gives every buffer of the state away, and may do so only once.
    average = jax.tree.map(jnp.copy, weights[:2]) if settings.ema is not None else ()
    return weights, rest, jax.vmap(optimizer.init)(weights), average


def _variables(state: Any, settings: Settings) -> tuple[Any, Any]:
    weights, rest, _, average = state
    chosen = average if settings.ema is not None else weights[:2]
    # Copies, again: what is returned must outlive the next step.
    merged = [nnx.merge_state(own, other) for own, other in zip(chosen, rest, strict=True)]
    return jax.tree.map(jnp.copy, merged[0]), jax.tree.map(jnp.copy, merged[1])


@functools.lru_cache(maxsize=4)  # trainings of the same encoders on other pairs share one program
def _make_step(
    graphs: tuple[Any, Any], branches: tuple[Branch, Branch], settings: Settings, steps: int
) -> tuple[Any, optax.GradientTransformation]:
    """The training step of all seeds, compiled: a pure function of split state; its optimiser."""
    optimizer = _make_optimizer(settings, steps)

    def loss_of(weights: Any, rest: Any, key: Array, batch: Any) -> tuple[Array, Any]:
        latents, kept = [], []
        for m in range(2):
            # A copy: statistics that the encoder updates must not be those outside the gradient.
            encoder = nnx.merge(graphs[m], weights[m], rest[m], copy=True)
            seen = branches[m].augment(jax.random.fold_in(key, m), batch[m])
            latents.append(encoder(seen, train=True))
            kept.append(_split(nnx.state(encoder), branches[m])[1])
        return info_nce_of_scale(latents[0], latents[1], jnp.exp(weights[2])), tuple(kept)

    def step(state: Any, key: Array, number: Array, batch: Any) -> tuple[Any, Array]:
        weights, rest, memory, average = state
        key = jax.random.fold_in(key, number)
        (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            weights, rest, key, batch
        )
        # A gradient that is no number spoils the weights, though the loss before it was one.
        sound = jnp.isfinite(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
        updates, memory = optimizer.update(gradient, memory, weights)
        encoders1, encoders2, scale = optax.apply_updates(weights, updates)
        weights = (encoders1, encoders2, jnp.minimum(scale, LARGEST_LOG_SCALE))
        if settings.ema is not None:
            average = optax.incremental_update(weights[:2], average, 1 - settings.ema)
        return (weights, rest, memory, average), jnp.where(sound, loss, jnp.nan)

    return jax.jit(jax.vmap(step, in_axes=(0, 0, None, 0)), donate_argnums=0), optimizer


class _Place:
    """Where a training runs: on one device, or every batch divided among those of a mesh."""

    def __init__(self, mesh: jax.sharding.Mesh | None, batch_size: int) -> None:
        self.batch_size = batch_size
        self._whole: Any = None
        self._parts: Any = None
        if mesh is not None:
            axis = mesh.axis_names[0]
            devices = mesh.shape[axis]
            if batch_size < devices:
                raise ValueError(
                    f"mesh must have at most as many devices along {axis!r} as a batch has pairs, "
                    f"{batch_size}, got {devices}."
                )
            self.batch_size -= batch_size % devices
            # Axes whose shardings XLA finds by itself, of whatever kind those of the mesh are.
            mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
            spec = jax.sharding.PartitionSpec
            self._whole = jax.sharding.NamedSharding(mesh, spec())
            self._parts = jax.sharding.NamedSharding(mesh, spec(None, axis))

    def everywhere(self, tree: Any) -> Any:
        """A copy of the whole on every device."""
        return tree if self._whole is None else jax.device_put(tree, self._whole)

    def batch(self, tree: Any) -> Any:
        """Batches of all seeds, shape ``(seeds, batch, ...)``."""
        return jax.device_put(tree, self._parts)


def _run_epoch(
    step: Any, state: Any, pairs: Pairs, keys: Array, epoch: int, steps: int, place: _Place
) -> tuple[Any, np.ndarray]:
    chosen = pipeline.draw_batches(
        keys, n=pairs[0].shape[0], batch_size=place.batch_size, epoch=epoch
    )

    def gather(rows: np.ndarray) -> Any:
        return tuple(x[rows] for x in pairs)

    batches: Iterator[Any] = pipeline.prefetch(gather, chosen[:steps])
    losses = []
    for i, batch in enumerate(batches):
        # Put there by this thread: the 64-bit switch and the default device are those of a thread.
        on_device = place.batch(batch)
        state, loss = step(state, keys, np.int32(epoch * steps + i), on_device)
        losses.append(loss)
    return state, np.stack([np.asarray(loss, np.float64) for loss in losses])


def _identify(
    branches: Sequence[Branch], pairs: Pairs, keys: Array, settings: Settings, batch_size: int
) -> str:
    """Everything that a training depends on, as text."""
    content = [hashlib.sha256(np.ascontiguousarray(x).data.cast("B")).hexdigest() for x in pairs]
    return json.dumps(
        {
            "encoders": [branch.name for branch in branches],
            "settings": dataclasses.asdict(settings),
            "batch size": batch_size,
            "64-bit mode": bool(jax.config.read("jax_enable_x64")),
            "computed in": jnp.dtype(computing_dtype()).name,
            "pairs": [f"{x.shape} {x.dtype} {c}" for x, c in zip(pairs, content, strict=True)],
            "keys": np.asarray(jax.random.key_data(keys)).tolist(),
        },
        indent=1,
    )
