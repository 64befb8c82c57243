"""The same statistics from many devices and many hosts: only moments travel, never rows.

Rows are divided along the first axis of a device mesh. Every device reduces its own, and what is
left, of the size of the features, merges in a tree. Hosts each reduce what they hold, by
``streaming`` or here, and ``merge_hosts`` brings their moments together under ``jax.distributed``.
The merges have one order, so the same partition of the rows gives the same bits.
"""

import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from perfalign_jax import _checks, statistics
from perfalign_jax.statistics import Factor, Gram
from perfalign_jax.types import Views

__all__ = ["from_views", "merge_hosts"]


def from_views(
    views: Views,
    *,
    mesh: jax.sharding.Mesh,
    weights: Any = None,
    kind: Literal["factor", "gram"] = "factor",
) -> Factor | Gram:
    """Return the statistic of views whose rows are divided among the devices of a mesh.

    Args:
        views: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, any ``n``. Host arrays go to
            the devices part by part; arrays that lie on the mesh stay there.
        mesh: devices of this process; rows are divided along its first axis.
        weights: shape ``(n,)``, as in ``statistics.from_views``.
        kind: "factor" (exact) or "gram" (cheaper, half the digits).

    Returns:
        A ``Factor`` or a ``Gram`` on the first device, that of ``statistics.from_views`` up to
        rounding and the turn of a factor.

    Raises:
        TypeError: if a view does not hold real numbers, or ``mesh`` is no mesh.
        ValueError: if shapes do not fit, a value is not finite, or a device of the mesh belongs to
            another process.

    Example:
        >>> import jax, numpy as np, perfalign_jax as pa
        >>> x = np.arange(20, dtype=np.float32).reshape(10, 2)
        >>> mesh = jax.make_mesh((jax.local_device_count(),), ("rows",))
        >>> pa.sharded.from_views((x, x), mesh=mesh)
        Factor(samples=10, dims=(2, 2), dtype=float32)
    """
    _checks.one_of(kind, "kind", ("factor", "gram"))
    if not isinstance(mesh, jax.sharding.Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}.")
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "mesh must hold devices of this process alone; reduce the rows of each process by "
            "itself, then merge_hosts."
        )
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        arrays, coarsest = _checks.views(views, look=False)
        own = None
        if weights is not None:
            own = _checks.array(weights, "weights", ndim=1, shape="(n,)").astype(arrays[0].dtype)
            _checks.paired(own, arrays[0], "weights", "x1")
            if bool((own < 0).any()):
                raise ValueError(f"weights must not be negative, but weight {own.argmin()} is.")
    n, axis = arrays[0].shape[0], mesh.axis_names[0]
    if n < 1:
        raise ValueError(f"views must have at least one row, got shape {arrays[0].shape}.")
    # Axes whose shardings XLA finds by itself, of whatever kind those of the mesh are.
    mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
    if own is None and n % mesh.shape[axis]:
        own = jnp.ones((n,), arrays[0].dtype)  # those filled up with have none
    parts = tuple(_divide(x, mesh) for x in arrays)
    state = _reduce(parts, None if own is None else _divide(own, mesh), mesh=mesh, kind=kind)
    state = jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
    if not all(bool(jnp.isfinite(mean).all()) for mean in state.means):
        for m, x in enumerate(arrays):
            _checks.finite(x, f"x{m + 1}")
    high = int(np.asarray(n, state.dtype))
    count = jax.device_put(np.asarray([high, n - high], state.dtype), state.count.sharding)
    coarse = jax.device_put(np.asarray(coarsest, state.dtype), state.count.sharding)
    return dataclasses.replace(state, count=count, coarsest=coarse)


def _divide(x: Array, mesh: jax.sharding.Mesh) -> Array:
    """Rows divided among the devices, filled up with zeros to as many on each."""
    axis = mesh.axis_names[0]
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
    rows = -(-x.shape[0] // mesh.shape[axis])
    if rows * mesh.shape[axis] == x.shape[0]:
        return jax.device_put(x, place)
    host = np.asarray(x)

    def part(index: Any) -> np.ndarray:
        found = host[index]
        return np.pad(found, [(0, rows - len(found)), *[(0, 0)] * (host.ndim - 1)])

    return jax.make_array_from_callback((rows * mesh.shape[axis], *x.shape[1:]), place, part)


@functools.partial(jax.jit, static_argnames=("mesh", "kind"))
def _reduce(
    views: tuple[Array, ...], weights: Array | None, *, mesh: jax.sharding.Mesh, kind: Any
) -> Factor | Gram:
    axis = mesh.axis_names[0]
    size, spec = mesh.shape[axis], jax.sharding.PartitionSpec

    def reduce(views: tuple[Array, ...], weights: Array | None) -> Any:
        # All linear algebra is that of one device with its own rows.
        state: Any = statistics.from_views(views, weights=weights, kind=kind)
        step = 1
        while step < size:
            # Device i takes that of i + step; where there is none comes nothing, of weight zero.
            moves = [(i + step, i) for i in range(0, size - step, 2 * step)]
            move = functools.partial(jax.lax.ppermute, axis_name=axis, perm=moves)
            other = jax.tree.map(move, state)
            state = statistics.merge(state, other)
            step *= 2
        first = jax.lax.axis_index(axis) == 0
        return jax.tree.map(lambda leaf: jax.lax.psum(jnp.where(first, leaf, 0), axis), state)

    rows = spec(axis)
    return jax.shard_map(reduce, mesh=mesh, in_specs=(rows, rows), out_specs=spec())(views, weights)


def merge_hosts(state: Any, *, timeout: float = 600.0) -> Any:
    """Return the statistic of what all processes have seen, the same bits on each.

    Call it on every process, after ``jax.distributed.initialize``. What travels is the statistic,
    about ``8 d^2`` bytes from each process to each, ``4 d^2`` of float32 rows. They are merged in
    the order of the processes.

    Args:
        state: a ``Factor`` or a ``Gram`` of the rows of this process, or a list of them: the
            folds of ``align``, each merged with its like.
        timeout: seconds to wait for the others.

    Returns:
        The statistic, or the list of them. Without other processes what came.

    Raises:
        TypeError: if it is not a statistic of moments.
        ValueError: if the processes hold statistics of other kinds, features or dtypes.
        TimeoutError: if a process does not come within ``timeout``.
        ConnectionError: if a process is lost meanwhile.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(20, dtype=np.float32).reshape(10, 2)
        >>> pa.sharded.merge_hosts(pa.statistics.from_views((x, x)))
        Factor(samples=10, dims=(2, 2), dtype=float32)
    """
    _checks.positive(timeout, "timeout")
    states = list(state) if isinstance(state, Sequence) else [state]
    taken = [statistics.take_apart(one) for one in states]
    if not taken or any(one is None for one in taken):
        raise TypeError(f"state must be a Factor or a Gram, or a list of them, got {state!r:.80}.")
    if jax.process_count() == 1:
        return state
    whole = [_to_full_rows(one) for one in taken if one is not None]
    signature = repr(
        [(kind, {n: (a.shape, str(a.dtype)) for n, a in v.items()}) for kind, v in whole]
    )
    signs = _gather(np.frombuffer(signature.encode().ljust(4096)[:4096], np.uint8), timeout)
    if (signs != signs[jax.process_index()]).any():
        others = sorted({bytes(sign).decode().strip() for sign in signs})
        raise ValueError(f"processes must hold like statistics, got {' and '.join(others):.400}.")
    packed = np.concatenate(
        [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for _, v in whole for a in v.values()]
    )
    merged: list[Any] = []
    for part in _gather(packed, timeout):
        start, found = 0, []
        for kind, arrays in whole:
            own = {}
            for name, a in arrays.items():
                own[name] = part[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
                start += a.nbytes
            found.append(statistics.put_together(kind, own))
        merged = found if not merged else list(map(statistics.merge, merged, found))
    return merged if isinstance(state, Sequence) else merged[0]


def _to_full_rows(taken: tuple[str, dict[str, Array]]) -> tuple[str, dict[str, np.ndarray]]:
    """Host arrays; a factor's blocks filled up with zeros to as many rows as features."""
    kind, arrays = taken
    host = {name: np.asarray(a) for name, a in arrays.items()}
    d = sum(a.size for name, a in host.items() if name.startswith("means."))
    for name, a in host.items():
        if name.startswith("blocks."):
            host[name] = np.pad(a, [(0, max(0, d - len(a))), (0, 0)])
    return kind, host


def _gather(block: np.ndarray, timeout: float) -> np.ndarray:
    """Bytes of every process, in their order; waits no longer than asked to."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(np.asarray(multihost_utils.process_allgather(block)))
        except BaseException as error:
            found.append(error)

    # A collective cannot be called off, but it can be left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if not found:
        raise TimeoutError(
            f"{who} waited {timeout:g} s for the moments of the others: one of them did not come."
        )
    if isinstance(found[0], BaseException):
        raise ConnectionError(f"{who} lost another while their moments were merged.") from found[0]
    return found[0]
