"""The numerics of a cell: draw, fit from the statistic of what was drawn, measure."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from perfalign_jax import _checks, baselines, metrics, neighbours, solver, statistics
from perfalign_jax._numerics import matmul, rank_cutoff
from perfalign_jax.statistics import Factor
from perfalign_jax.sweeps.grid import Grid, Level, make_grid
from perfalign_jax.synthetic import Problem, RandomKey

__all__ = ["check_key", "draw_cell", "sweep_seed"]

_BLOCK = 512  # samples at a time: what is made of them stays in a processor's cache


def check_key(key: Any) -> None:
    """Refuse what is no single key, or one whose numbers depend on how many are drawn at a time."""
    _checks.key(key)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    kind = str(jax.random.key_impl(key)) if typed else "threefry2x32"
    if kind != "threefry2x32":
        raise ValueError(
            f"key must be of the kind threefry2x32, JAX's default, got {kind}: its numbers would "
            "depend on batch_size."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Draw:
    """All that a seed draws, with samples along the last axis."""

    z: Float[Array, "... k n"]
    noises: tuple[Float[Array, "... d1 n"], Float[Array, "... d2 n"]]
    maps: tuple[Float[Array, "... d1 k"], Float[Array, "... d2 k"]]
    labels: Bool[Array, "... n"]


def _draw(key: RandomKey, *, n: int, dims: tuple[int, int], k: int, held_out: bool) -> _Draw:
    """Draw in such an order that smaller sizes give a corner of what larger ones do.

    Every row has a key of its own, and a number in it depends on its place alone.
    """
    map_key, *sample_keys = jax.random.split(key, 3)
    label_key, latent_key, *noise_keys = jax.random.split(sample_keys[int(held_out)], 4)

    def rows(keys: Any, counts: Sequence[int], draw: Callable) -> list[Array]:
        """Arrays of so many rows, each from a key of its own, drawn in one go."""
        pairs = zip(keys, counts, strict=True)
        of_rows = [
            jax.vmap(functools.partial(jax.random.fold_in, k))(jnp.arange(c)) for k, c in pairs
        ]
        return jnp.split(jax.vmap(draw)(jnp.concatenate(of_rows)), np.cumsum(counts)[:-1])

    labels = jax.random.bernoulli(label_key, 0.5, (n,))
    # The paper's mixture; beyond two dimensions its means repeat, as in draw_mixture_latents.
    means = (jnp.arange(k) % 2)[:, None] + 4 * labels.astype(int)[None, :]
    z, e1, e2 = rows(
        (latent_key, *noise_keys), (k, *dims), lambda one: jax.random.normal(one, (n,))
    )
    s1, s2 = rows(
        jax.random.split(map_key),
        dims,
        lambda one: jax.random.uniform(one, (k,), minval=-5, maxval=5),
    )
    return _Draw(z + means.astype(z.dtype), (e1, e2), (s1, s2), labels)


def _dims(d: int) -> tuple[int, int]:
    return d - d // 2, d // 2


def draw_cell(
    key: RandomKey, *, n: int, d: int, k: int, noise: Level = 0.0, held_out: bool = False
) -> Problem:
    """Draw the data of one cell of a sweep, to look at it or to try another method on it.

    With other sizes and the same key, what both draws have is the same.

    Args:
        key: the seed's key, ``jax.random.fold_in(key of the sweep, number of the seed)``.
        n: number of pairs.
        d: features of both modalities together; the views have ``d - d // 2`` and ``d // 2``.
        k: dimension of the true latents (``latents`` of the grid, or its ``k``).
        noise: standard deviation in either view, in units of the views.
        held_out: give the held-out pairs instead of the training pairs.

    Raises:
        TypeError: if a size is no integer or the noise no number.
        ValueError: if a size or the noise is out of range.

    Source: paper Section 3.1, Eqs. 10 and 11, with the noise of its Fig. 4.

    Example:
        >>> import jax
        >>> from perfalign_jax import sweeps
        >>> small, large = (
        ...     sweeps.draw_cell(jax.random.key(0), n=n, d=2 * n, k=2) for n in (4, 9)
        ... )
        >>> bool(jax.numpy.allclose(small.views[0], large.views[0][:4, :4]))
        True
    """
    check_key(key)
    scales, dims = make_grid(n=n, d=d, k=1, noise=(noise,), latents=k).noise[0], _dims(d)
    drawn = _draw(key, n=n, dims=dims, k=k, held_out=held_out)
    x1, x2 = (
        (matmul(s, drawn.z) + scale * e).T
        for s, e, scale in zip(drawn.maps, drawn.noises, scales, strict=True)
    )
    return Problem((x1, x2), drawn.z.T, drawn.labels.astype(int), drawn.maps)


def sweep_seed(key: RandomKey, grid: Grid) -> dict[str, Float[Array, "method n d k noise"]]:
    """Evaluate every cell of a grid for one seed: a pure function, for ``jit`` and ``vmap``.

    For each metric an array with the axes method, n, d, k and noise; ``grid`` is static.

    Example:
        >>> import functools, jax
        >>> from perfalign_jax import sweeps
        >>> grid = sweeps.make_grid(n=30, d=6, k=(1, 2, 3), metrics="train_cmae")
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> run = jax.jit(jax.vmap(functools.partial(sweeps.sweep_seed, grid=grid)))
        >>> run(keys)["train_cmae"].shape
        (2, 1, 1, 1, 3, 1)
    """
    size = max(grid.k) if grid.latents is None else grid.latents
    dims = _dims(max(grid.d))
    train, test = (
        _draw(key, n=count, dims=dims, k=size, held_out=held_out)
        for count, held_out in ((max(grid.n), False), (grid.held_out, True))
    )
    samples = _stack(train)
    cells = _fit_cells(train, _prefixes(samples, grid.n, size), grid)
    measured = _measure(samples, _stack(test), cells, grid)
    exists = {name: jnp.asarray(_exists(grid, name)) for name in grid.metrics}
    return {name: jnp.where(exists[name], measured[name], jnp.nan) for name in grid.metrics}


def _exists(grid: Grid, metric: str) -> np.ndarray:
    """Which cells of a grid have a metric."""
    exists = np.zeros(grid.shape, bool)
    cells = itertools.product(grid.methods, grid.n, grid.d, grid.k, grid.noise)
    for index, (method, n, d, k, noise) in zip(np.ndindex(grid.shape), cells, strict=True):
        latents = k if grid.latents is None else grid.latents
        most = d
        if method == "ridge_cca":  # the smaller rank of the centred views
            most = min(d // 2, n - 1, latents if 0 in noise else d)
        raw_mlre = metric in ("train_mlre", "held_out_mlre")
        exists[index] = k <= most and (k == latents or not raw_mlre)
    return exists


def _stack(draw: _Draw) -> Float[Array, "p m"]:
    """Every drawn variable, one per row, below a row of ones; whole blocks, filled with zeros."""
    ones = jnp.ones_like(draw.z[:1])
    samples = jnp.concatenate([ones, draw.z, *draw.noises])
    return jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % _block(samples.shape[1]))))


def _block(n: int) -> int:
    return min(_BLOCK, n)


def _prefixes(samples: Float[Array, "p m"], sizes: tuple[int, ...], k: int) -> Factor:
    """Statistics of ``(z, e)`` over the first ``n`` samples, for every ``n``, along a first axis.

    A scan merges whole blocks; every ``n`` then adds the block in which it ends, with weight zero
    on the samples beyond it.
    """
    block, variables = _block(max(sizes)), samples[1:]
    p, dtype = variables.shape[0], variables.dtype
    blocks = variables.reshape(p, -1, block).transpose(1, 2, 0)
    nothing = statistics.init((k, p - k), dtype=dtype)

    def add(state: Any, rows: Array, weights: Array | None = None) -> Any:
        return statistics.update(state, (rows[:, :k], rows[:, k:]), weights=weights)

    _, before = jax.lax.scan(lambda state, rows: (add(state, rows), state), nothing, blocks)

    def up_to(n: Array) -> Any:
        last = (n - 1) // block
        state = jax.tree.map(lambda leaf: leaf[last], before)
        weights = (last * block + jnp.arange(block) < n).astype(dtype)
        state = add(state, blocks[last], weights)
        spread = tuple(jnp.where(n > 1, part, 0) for part in state.blocks)  # one sample has none
        count = jnp.stack([n, jnp.zeros_like(n)]).astype(dtype)
        return dataclasses.replace(state, blocks=spread, count=count)

    return jax.vmap(up_to)(jnp.asarray(sizes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Cell:
    """What the fit of a cell makes of a column of the stacked samples."""

    estimates: Float[Array, "... 2 p w"]  # the latents of either modality
    affine: Float[Array, "... 2 p k"]  # the true latents less their best affine estimate
    target: Float[Array, "... p k"]  # the true latents
    energy: Float[Array, "..."]  # share of the views' variance that the latents keep


def _fit_cells(draw: _Draw, states: Factor, grid: Grid) -> _Cell:
    """Fit every cell: fields with the axes method, n, d, k and noise in front."""
    levels, ks = jnp.asarray(grid.noise, draw.z.dtype), jnp.asarray(grid.k)
    own = grid.latents is None  # every k has data of its own; otherwise all share one factorisation
    see: Any = functools.partial(_see, draw, grid)
    for axes in ((None, None, 0), (None, 0, None), (0, None, None)):
        see = jax.vmap(see, in_axes=axes)
    views = see(states, ks if own else ks[:1], levels)

    # Only what depends on the shape of the views is compiled for every d.
    fitted, extents = [], []
    for method in grid.methods:
        for d in grid.d:
            fit: Any = functools.partial(_fit, method=method, d=d, grid=grid)
            for _ in range(3):
                fit = jax.vmap(fit)
            fitted.append(fit(views))
            # The order of Eq. 7 has the wanted directions last, the others first.
            extents.append((*_dims(d), _rank(method, d, grid) if method == "trailing" else 0))
    lead = len(grid.methods), len(grid.d)
    fits = jax.tree.map(
        lambda *leaves: jnp.swapaxes(jnp.stack(leaves).reshape(*lead, *leaves[0].shape), 1, 2),
        *fitted,
    )
    if not own:
        views = jax.tree.map(lambda leaf: leaf[:, 0], views)
        fits = jax.tree.map(lambda leaf: leaf[:, :, :, 0], fits)
    judge: Any = functools.partial(_judge, draw, grid)
    for axes in (
        (None, None, 0, None, 0, 0),  # noise
        (None, 0, None, None, *((0, 0) if own else (None, None))),  # k
        (None, None, None, 0, None, 0),  # d
        (0, None, None, None, 0, 0),  # n
        (None, None, None, 0, None, 0),  # method
    ):
        judge = jax.vmap(judge, in_axes=axes)
    return judge(states, ks, levels, jnp.asarray(extents).reshape(*lead, 3), views, fits)


def _maps(draw: _Draw, grid: Grid, k: Array) -> tuple[Bool[Array, " k"], list[Array]]:
    """Which latents are there, and the maps of those."""
    there = jnp.arange(draw.z.shape[0]) < (k if grid.latents is None else grid.latents)
    return there, [jnp.where(there[None, :], s, 0) for s in draw.maps]


def _see(draw: _Draw, grid: Grid, state: Factor, k: Array, noise: Array) -> Factor:
    """Statistic of the views with all their features, from that of what was drawn."""
    mean, centred = jnp.concatenate(state.means), jnp.concatenate(state.blocks, axis=1)
    rows = jnp.concatenate([mean[None, :], centred])
    start = draw.z.shape[0]
    views = []
    for s, scale in zip(_maps(draw, grid, k)[1], noise, strict=True):
        end = start + s.shape[0]
        views.append(matmul(rows[:, : s.shape[1]], s.T) + scale * rows[:, start:end])
        start = end
    return dataclasses.replace(
        state, means=tuple(x[0] for x in views), blocks=tuple(x[1:] for x in views)
    )


def _rank(method: str, d: int, grid: Grid) -> int:
    """How many directions are fitted, of which every ``k`` takes its own."""
    return min(d // 2 if method == "ridge_cca" else d, max(grid.k))


def _fit(views: Factor, *, method: str, d: int, grid: Grid) -> tuple[tuple[Array, ...], Array]:
    """Fit the first features; projections filled up with zeros, and offsets."""
    full = views.dims
    views = dataclasses.replace(
        views,
        means=tuple(m[:count] for m, count in zip(views.means, _dims(d), strict=True)),
        blocks=tuple(b[:, :count] for b, count in zip(views.blocks, _dims(d), strict=True)),
    )
    k, select = _rank(method, d, grid), cast(Any, method)
    if method == "ridge_cca":
        found = baselines.ridge_cca(views, k=k, ridge=grid.ridge, center=True)
    else:
        found = solver.fit(views, k=k, select=select, method="qr")
    short = max(grid.k) - k
    pairs = list(zip(found.projections, found.means, strict=True))
    offsets = jnp.stack([jnp.pad(-matmul(a, mean), (0, short)) for a, mean in pairs])
    projections = tuple(
        jnp.pad(a, ((0, short), (0, count - a.shape[1])))
        for a, count in zip(found.projections, full, strict=True)
    )
    return projections, offsets


def _judge(
    draw: _Draw,
    grid: Grid,
    state: Factor,
    k: Array,
    noise: Array,
    extent: Array,
    views: Factor,
    fitted: tuple[tuple[Array, ...], Array],
) -> _Cell:
    """Set a fit with ``k`` dimensions beside the true latents, by the statistic of the samples."""
    there, maps = _maps(draw, grid, k)
    mean, centred = jnp.concatenate(state.means), jnp.concatenate(state.blocks, axis=1)
    size, p = there.shape[0], 1 + mean.shape[0]
    identity = jnp.diag(there.astype(mean.dtype))
    target = jnp.zeros((p, size), mean.dtype).at[1 : 1 + size].set(identity)

    index = jnp.arange(max(grid.k))
    chosen = jnp.clip(index + jnp.maximum(extent[2] - k, 0), 0, index[-1])
    wanted = (index < k)[:, None]
    projections, offsets = fitted
    before, estimates = 1 + size, []
    for a, offset, s, scale in zip(projections, offsets, maps, noise, strict=True):
        a = jnp.where(wanted, a[chosen], 0)
        after = p - before - a.shape[1]
        parts = [jnp.where(wanted, offset[chosen, None], 0), matmul(a, s), scale * a]
        above = jnp.concatenate(parts[:2], axis=1)
        own = jnp.pad(parts[2], ((0, 0), (before - above.shape[1], after)))
        estimates.append(jnp.concatenate([above, own], axis=1).T)
        before += a.shape[1]

    kept = []
    for columns, block, count in zip(estimates, views.blocks, extent, strict=False):
        variance = jnp.sum(jnp.where(jnp.arange(block.shape[1]) < count, block**2, 0))
        share = jnp.sum(matmul(centred, columns[1:]) ** 2)
        kept.append(jnp.where(variance > 0, share / jnp.where(variance > 0, variance, 1), 0))

    # The best affine map of both estimates at once, as in metrics.mlre_affine: least squares about
    # the mean of all, from which either modality's own mean may lie apart.
    moved = [matmul(centred, columns[1:]) for columns in estimates]
    middles = [columns[0] + matmul(mean, columns[1:]) for columns in estimates]
    apart = jnp.sqrt(state.weight / 2) * (middles[0] - middles[1])
    goal = matmul(centred, target[1:])
    inverse = jnp.linalg.pinv(
        jnp.concatenate([*moved, apart[None, :]]),
        rtol=rank_cutoff(jnp.ones(1, mean.dtype), (2 * state.weight, index.size)),
    )
    weights = matmul(inverse, jnp.concatenate([goal, goal, jnp.zeros_like(goal[:1])]))
    both = jnp.stack(estimates)
    shifted = both.at[:, 0].add(-(middles[0] + middles[1])[None, :] / 2)
    affine = target.at[0].add(-matmul(mean, target[1:]))[None] - matmul(shifted, weights)
    return _Cell(both, affine, target, jnp.mean(jnp.stack(kept)))


def _measure(
    train: Float[Array, "p m"], test: Float[Array, "p h"], cells: _Cell, grid: Grid
) -> dict[str, Float[Array, "method n d k noise"]]:
    """Errors of every cell, one cell after the other."""
    size = cells.target.shape[-1]
    quiet = np.asarray([level == (0.0, 0.0) for level in grid.noise])
    parts: list[dict[str, Array]] = []
    # Where there is no noise, only the ones and the latents matter.
    for levels, rows in ((np.flatnonzero(quiet), 1 + size), (np.flatnonzero(~quiet), len(train))):
        if levels.size:
            chosen = jax.tree.map(lambda leaf, at=levels: jnp.take(leaf, at, axis=4), cells)
            parts.append(_measure_levels(train[:rows], test[:rows], chosen, grid))
    order = np.argsort(np.argsort(~quiet, kind="stable"), kind="stable")
    return jax.tree.map(lambda *p: jnp.concatenate(p, axis=-1)[..., order], *parts)


def _measure_levels(
    train: Float[Array, "p m"], test: Float[Array, "p h"], cells: _Cell, grid: Grid
) -> dict[str, Float[Array, "method n d k noise"]]:
    """Errors of the cells of some noise levels, in which only the given rows matter."""
    shape, p = cells.energy.shape, train.shape[0]
    cells = dataclasses.replace(
        cells,
        estimates=cells.estimates[..., :p, :],
        affine=cells.affine[..., :p, :],
        target=cells.target[..., :p, :],
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[5:]), cells)
    # The same for every seed, so that the loop over the samples may end early.
    numbers = np.broadcast_to(np.asarray(grid.n).reshape(1, -1, 1, 1, 1), shape).ravel()
    wanted = {
        prefix: [m.removeprefix(prefix) for m in grid.metrics if m.startswith(prefix)]
        for prefix in ("train_", "held_out_")
    }

    def measure(item: tuple[_Cell, Array]) -> dict[str, Array]:
        cell, n = item
        found = _mean_lengths(train, n, cell, wanted["train_"], "train_")
        found |= _mean_lengths(test, grid.held_out, cell, wanted["held_out_"], "held_out_")
        found["train_energy"] = cell.energy
        if {"held_out_relative_cmae", "held_out_recall"} & set(grid.metrics):
            z1, z2 = (matmul(c.T, test[:, : grid.held_out]).T for c in cell.estimates)
            found["held_out_relative_cmae"] = metrics.relative_cmae(z1, z2)
            found["held_out_recall"] = neighbours.retrieval(z1, z2, at=(1,)).recall_12[0]
        return {name: found[name] for name in grid.metrics}

    measured = jax.lax.map(measure, (flat, jnp.asarray(numbers)))
    return {name: values.reshape(shape) for name, values in measured.items()}


def _mean_lengths(
    samples: Float[Array, "p m"], n: int | Array, cell: _Cell, wanted: list[str], prefix: str
) -> dict[str, Array]:
    """Mean lengths of the residuals asked for, over the first ``n`` samples."""
    width = max(cell.target.shape[1], cell.estimates.shape[2])

    def fill(columns: Float[Array, "p _"]) -> Float[Array, "p w"]:
        return jnp.pad(columns, ((0, 0), (0, width - columns.shape[1])))

    groups = {
        "cmae": [fill(cell.estimates[0] - cell.estimates[1])],
        "mlre": [fill(estimate) - fill(cell.target) for estimate in cell.estimates],
        "mlre_affine": [fill(missed) for missed in cell.affine],
    }
    groups = {name: group for name, group in groups.items() if name in wanted}
    if not groups:
        return {}
    residuals = jnp.stack([columns for group in groups.values() for columns in group])
    count, block = residuals.shape[0], _block(samples.shape[1])
    together = residuals.transpose(0, 2, 1).reshape(count * width, -1)

    def add(i: Array, sums: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(samples, i * block, block, axis=1)
        squares = matmul(together, part).reshape(count, width, block) ** 2
        inside = i * block + jnp.arange(block) < n
        return sums + jnp.sum(
            jnp.where(inside[None, :], jnp.sqrt(jnp.sum(squares, axis=1)), 0), axis=1
        )

    blocks = (n + block - 1) // block
    sums = jax.lax.fori_loop(0, blocks, add, jnp.zeros(count, samples.dtype))
    means = sums / jnp.asarray(n, sums.dtype)
    ends = itertools.accumulate(map(len, groups.values()), initial=0)
    return {
        prefix + name: jnp.mean(means[a:b])
        for name, (a, b) in zip(groups, itertools.pairwise(ends), strict=True)
    }
