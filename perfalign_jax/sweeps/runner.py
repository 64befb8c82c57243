"""Run a sweep in batches of seeds, keep what is finished, and go on from there."""

import dataclasses
import functools
import importlib.util
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perfalign_jax import _checks
from perfalign_jax._numerics import cores
from perfalign_jax.arrays import open_member
from perfalign_jax.serialization import check_target, write_whole
from perfalign_jax.sweeps._cell import check_key, sweep_seed
from perfalign_jax.sweeps.grid import Grid, SweepResult, make_grid
from perfalign_jax.synthetic import RandomKey

__all__ = ["load_sweep", "sweep"]

_THREADS = 16  # more than the calls that XLA runs at a time


def sweep(
    key: RandomKey,
    grid: Grid,
    *,
    seeds: int,
    batch_size: int = 8,
    path: Path | str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Evaluate a grid for many seeds, in batches; values are NumPy arrays in JAX's default float.

    Args:
        key: random key; seed ``i`` has the key ``jax.random.fold_in(key, i)``.
        grid: what to sweep, from ``make_grid``.
        seeds: how many seeds.
        batch_size: seeds that are computed together: memory grows with it, and with the number of
            cells.
        path: file (``.npz``) that keeps what is finished: the same sweep goes on from there, also
            with more seeds. ``load_sweep`` reads it.
        progress: show a progress bar in a terminal, or in a notebook that has ipywidgets.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``seeds`` or ``batch_size`` is below 1, or ``path`` holds another sweep.

    Warns:
        UserWarning: once, on a CPU of fewer than 16 cores where the environment variable NPROC is
            not set: jaxlib's thread pool may then wait for itself for ever.

    Source: paper Fig. 4 and its Section 3.1, Parameter and Noise Experiments.

    Example:
        >>> import jax
        >>> from perfalign_jax import sweeps
        >>> grid = sweeps.make_grid(n=50, d=(4, 8), k=2, noise=1.0, metrics="held_out_cmae")
        >>> result = sweeps.sweep(jax.random.key(0), grid, seeds=3, progress=False)
        >>> result.get("held_out_cmae").shape
        (3, 2)
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid of make_grid, got {type(grid).__name__}.")
    check_key(key)
    seeds = _checks.integer(seeds, "seeds", low=1)
    batch_size = min(_checks.integer(batch_size, "batch_size", low=1), seeds)
    wide = bool(jax.config.read("jax_enable_x64"))
    made_by = _describe(key, grid, wide)
    if path is not None:
        check_target(path)
    done = {} if path is None else _read_seeds(Path(path), made_by)
    missing = [seed for seed in range(seeds) if seed not in done]
    if missing:
        from rich import get_console
        from rich.progress import Progress
        from threadpoolctl import threadpool_limits

        if jax.default_backend() == "cpu":
            _warn_of_few_threads()
        console = get_console()
        widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        shown = progress and (console.is_terminal or widgets)
        # The factorisations are small and many: threads inside each of them only get in the way.
        with threadpool_limits(1), Progress(transient=True, disable=not shown) as bar:
            task = bar.add_task("seeds", total=len(missing))
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                # One shape, compiled once: a last batch that is too short repeats its last seed.
                filled = jnp.asarray(batch + batch[-1:] * (batch_size - len(batch)))
                keys = jax.vmap(functools.partial(jax.random.fold_in, key))(filled)
                run = _compiled(grid, keys.dtype, keys.shape, wide)
                values = jax.tree.map(np.asarray, run(keys))
                for i, seed in enumerate(batch):
                    done[seed] = {name: array[i] for name, array in values.items()}
                if path is not None:  # what is finished is kept when a later one is interrupted
                    _write_seeds(Path(path), made_by, done)
                bar.advance(task, len(batch))
    values = {name: np.stack([done[seed][name] for seed in range(seeds)]) for name in grid.metrics}
    return SweepResult(grid, tuple(range(seeds)), values)


@functools.cache  # once per process
def _warn_of_few_threads() -> None:
    """Warn where XLA's CPU client may wait for itself for ever.

    jaxlib hands the parts of a batched LAPACK call (a vmapped ``svd`` or ``qr``) to the pool that
    the call itself runs in, and waits for them there. With fewer threads than such calls at a time
    all may wait for ever (seen with jaxlib 0.10.2, every thread asleep in ``ParallelBatchMap``).
    ``experiments/benchmarks/thread_pool.py`` shows it.
    """
    if cores() < _THREADS and "NPROC" not in os.environ:
        warnings.warn(
            f"this process has {cores()} CPU cores, and jaxlib then runs a sweep in so few "
            f"threads that it may wait for ever; set the environment variable NPROC={_THREADS} "
            "before JAX computes anything.",
            UserWarning,
            stacklevel=3,
        )


@functools.lru_cache(maxsize=16)
def _compiled(grid: Grid, dtype: Any, shape: tuple[int, ...], wide: bool) -> Any:
    """Compile a grid for a batch of seeds; ``wide`` tells 64-bit programs from others."""
    del wide
    keys = jax.ShapeDtypeStruct(shape, dtype)
    return jax.jit(jax.vmap(functools.partial(sweep_seed, grid=grid))).lower(keys).compile()


def _describe(key: RandomKey, grid: Grid, wide: bool) -> dict[str, Any]:
    """Everything that decides a sweep's numbers, but the number of seeds."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if typed else key
    described = {**dataclasses.asdict(grid), "key": np.asarray(data), "float64": wide}
    described["threefry_partitionable"] = bool(
        getattr(jax.config, "jax_threefry_partitionable", True)
    )
    return json.loads(json.dumps(described, default=lambda value: value.tolist()))


def _write_seeds(
    path: Path, made_by: dict[str, Any], done: dict[int, dict[str, np.ndarray]]
) -> None:
    seeds = sorted(done)
    arrays: dict[str, Any] = {
        "_seeds": np.asarray(seeds),
        "_made_by": np.asarray(json.dumps(made_by)),
        **{name: np.stack([done[seed][name] for seed in seeds]) for name in done[seeds[0]]},
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def _read(path: Path) -> tuple[Grid, dict[str, Any], dict[int, dict[str, np.ndarray]]]:
    def read(name: str) -> np.ndarray:
        return open_member(path, name, spec=f"{path}:{name}").unpacked

    try:
        made_by = json.loads(str(read("_made_by")))
        fields = {field.name: _as_tuple(made_by[field.name]) for field in dataclasses.fields(Grid)}
        grid = make_grid(**fields)
        arrays = {name: read(name) for name in grid.metrics}
        seeds = [int(seed) for seed in read("_seeds")]
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(
            f"{path} is not a file of a sweep, or damaged ({type(error).__name__}); delete it to "
            "start anew."
        ) from None
    shape = (len(set(seeds)), *grid.shape)
    for name, array in arrays.items():
        if array.shape != shape or len(seeds) != shape[0] or array.dtype.kind != "f":
            raise ValueError(
                f"{path} is damaged: {name} has shape {array.shape} and dtype {array.dtype}, "
                f"expected floats of shape {shape}."
            )
    return (
        grid,
        made_by,
        {seed: {name: array[i] for name, array in arrays.items()} for i, seed in enumerate(seeds)},
    )


def _read_seeds(path: Path, made_by: dict[str, Any]) -> dict[int, dict[str, np.ndarray]]:
    if not path.exists():
        return {}
    _, found, done = _read(path)
    other = [name for name in made_by if found.get(name) != made_by[name]]
    if other:
        raise ValueError(
            f"path {path} holds another sweep: {other[0]} is {found.get(other[0])} there and "
            f"{made_by[other[0]]} here; give another path, or delete the file."
        )
    return done


def load_sweep(path: Path | str) -> SweepResult:
    """Read the file that ``sweep`` keeps, finished or not: the seeds that are finished.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a file of a sweep.

    Example:
        >>> import jax, pathlib, tempfile
        >>> from perfalign_jax import sweeps
        >>> grid = sweeps.make_grid(n=20, d=4, k=1, metrics="train_cmae")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "sweep.npz"
        ...     _ = sweeps.sweep(jax.random.key(0), grid, seeds=2, path=path, progress=False)
        ...     sweeps.load_sweep(path).seeds
        (0, 1)
    """
    grid, _, done = _read(Path(path))
    seeds = tuple(sorted(done))
    values = {name: np.stack([done[seed][name] for seed in seeds]) for name in grid.metrics}
    return SweepResult(grid, seeds, values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
