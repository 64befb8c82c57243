"""Robustness sweeps: alignment errors over grids of n, d, k and noise, for many seeds at once.

A seed draws once, at the largest sizes of the grid, and every cell of the grid is a corner of that
draw: the first ``n`` samples, the first features, the first latent dimensions, the same noise at
another scale. So a cell never depends on the rest of the grid, and neighbouring cells differ by
what the axis changes and not by luck.

Views are linear in the drawn variables, ``x = S z + noise * e``, so a statistic of ``(z, e)`` over
the first ``n`` samples gives the statistic of every cell's views, and every residual is one product
with the drawn samples. Nothing is fitted to samples twice: prefixes are merged, one factorisation
gives every ``k`` (where the true latents' dimension is fixed and does not follow ``k``), and the
long products are few and large.
"""

import dataclasses
import functools
import importlib.util
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt32
from rich import get_console
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from perfalign_jax import _checks, baselines, metrics, neighbours, solver, statistics
from perfalign_jax._numerics import matmul
from perfalign_jax.serialization import check_target, write_whole
from perfalign_jax.statistics import Factor
from perfalign_jax.synthetic import Problem

__all__ = [
    "AXES",
    "METHODS",
    "METRICS",
    "Grid",
    "SweepResult",
    "draw_cell",
    "load_sweep",
    "make_grid",
    "sweep",
    "sweep_seed",
]

AXES = ("seed", "method", "n", "d", "k", "noise")
"""Names of the axes of every measured array, in their order."""

METHODS = ("trailing", "energy", "ridge_cca")
"""``fit`` with ``select="trailing"`` (the paper) or ``"energy"``, and ``baselines.ridge_cca``.

Where the null space is larger than ``k``, trailing directions are an arbitrary choice in it, here
that of a QR and an SVD of its factor. ``fit`` by another method, or another library, chooses
otherwise, and everything but the training error (MLRE and energy above all) differs with it.
"""

METRICS = (
    "train_cmae",
    "held_out_cmae",
    "train_mlre",
    "held_out_mlre",
    "train_mlre_affine",
    "held_out_mlre_affine",
    "held_out_relative_cmae",
    "held_out_recall",
    "train_energy",
)
"""What can be measured in a cell.

CMAE and MLRE (mean of both modalities) in units of the latents, MLRE also after the affine map that
fits the training pairs best, relative CMAE, the share of held-out samples whose partner is the
nearest (R@1, modality 1 asking), and the share of the views' variance that the latents keep.
"""

Level = int | float | tuple[int | float, int | float]
RandomKey = Key[Array, ""] | UInt32[Array, "2"]
_BLOCK = 512  # samples at a time: what is made of them stays in a processor's cache


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid of settings, and what to do in each cell; see ``make_grid``.

    Attributes:
        n: numbers of training pairs.
        d: numbers of features of both modalities together; the first has ``d - d // 2`` of them.
        k: latent dimensions of the fit.
        noise: standard deviations of the noise in either view, in units of the views.
        latents: dimension of the true latents; None for that of the fit, as in the paper.
        methods: among ``METHODS``.
        metrics: among ``METRICS``.
        held_out: number of pairs, the same in every cell, that are never trained on.
        ridge: of ridge CCA, relative to the mean eigenvalue of a view's covariance.

    Example:
        >>> from perfalign_jax import sweeps
        >>> sweeps.make_grid(n=(10, 100), d=8, k=2).n
        (10, 100)
    """

    n: tuple[int, ...]
    d: tuple[int, ...]
    k: tuple[int, ...]
    noise: tuple[tuple[float, float], ...]
    latents: int | None
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    held_out: int
    ridge: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of methods, n, d, k and noise levels."""
        return tuple(map(len, (self.methods, self.n, self.d, self.k, self.noise)))


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Every seed's value in every cell of a grid.

    Attributes:
        grid: what was swept.
        seeds: numbers of the seeds, one per entry of the first axis.
        values: for each metric an array with the axes ``AXES``. NaN where a cell does not exist: k
            above d (for ridge CCA, above either centred view's rank), or raw MLRE with k unlike
            the true latents'.

    Example:
        >>> import jax
        >>> from perfalign_jax import sweeps
        >>> grid = sweeps.make_grid(n=(5, 50), d=4, k=2, metrics=("train_cmae",))
        >>> result = sweeps.sweep(jax.random.key(0), grid, seeds=3, progress=False)
        >>> result.values["train_cmae"].shape, result.axes["n"]
        ((3, 1, 2, 1, 1, 1), (5, 50))
    """

    grid: Grid
    seeds: tuple[int, ...]
    values: dict[str, Float[np.ndarray, "seed method n d k noise"]]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Name to values of every axis."""
        g = self.grid
        return dict(zip(AXES, (self.seeds, g.methods, g.n, g.d, g.k, g.noise), strict=True))

    def get(self, metric: str, **at: Any) -> Float[np.ndarray, "..."]:
        """Return a metric at chosen values of axes.

        Args:
            metric: a name in ``values``.
            **at: for some axes the value at which to look; ``noise`` may be one number for both
                views.

        Returns:
            The seeds along the first axis (unless ``seed`` is chosen), then the axes that were not
            chosen and have more than one value, in the order of ``AXES``.

        Raises:
            ValueError: if the metric, an axis or a value is not there.

        Example:
            >>> import jax
            >>> from perfalign_jax import sweeps
            >>> grid = sweeps.make_grid(n=(5, 50), d=4, k=2, noise=(0, 1), metrics=("train_cmae",))
            >>> result = sweeps.sweep(jax.random.key(0), grid, seeds=3, progress=False)
            >>> result.get("train_cmae", noise=1).shape
            (3, 2)
        """
        _checks.one_of(metric, "metric", tuple(self.values))
        index: list[Any] = []
        for name, found in self.axes.items():
            if name in at:
                wanted = at[name]
                if name == "noise" and np.ndim(wanted) == 0:
                    wanted = (wanted, wanted)
                if isinstance(wanted, np.ndarray | np.generic | jax.Array):
                    wanted = np.asarray(wanted).tolist()
                wanted = tuple(wanted) if isinstance(wanted, list) else wanted
                if wanted not in found:
                    raise ValueError(f"{name} must be one of {found}, got {at[name]!r}.")
                index.append(found.index(wanted))
            else:
                index.append(0 if len(found) == 1 and name != "seed" else slice(None))
        unknown = set(at) - set(AXES)
        if unknown:
            raise ValueError(f"axes must be among {', '.join(AXES)}, got {', '.join(unknown)}.")
        return self.values[metric][tuple(index)]


def make_grid(
    *,
    n: int | Sequence[int],
    d: int | Sequence[int],
    k: int | Sequence[int],
    noise: Level | Sequence[Level] = 0.0,
    latents: int | None = None,
    methods: str | Sequence[str] = "trailing",
    metrics: str | Sequence[str] = METRICS,
    held_out: int = 200,
    ridge: int | float = 1e-3,
) -> Grid:
    """Check the values of a sweep's axes and what to measure.

    Args:
        n: numbers of training pairs, one or several.
        d: numbers of features of both modalities together, at least 2; of an odd number the first
            modality has one more.
        k: latent dimensions of the fit.
        noise: standard deviations, in units of the views. In a sequence every entry is one level: a
            number for both views, or a pair, one for each; so ``(0, 1)`` is two levels and
            ``[(0, 1)]`` one.
        latents: dimension k* of the true latents. None lets it follow ``k``, as the paper does.
        methods: among ``METHODS``.
        metrics: among ``METRICS``.
        held_out: pairs to measure on that are never trained on.
        ridge: of ridge CCA, relative to the mean eigenvalue of a view's covariance.

    Raises:
        TypeError: if a value has the wrong type.
        ValueError: if a value is out of range, repeated, or no cell of the grid exists.

    Example:
        >>> from perfalign_jax import sweeps
        >>> sweeps.make_grid(n=100, d=(4, 8), k=(1, 2), noise=(0, (0.1, 1))).noise
        ((0.0, 0.0), (0.1, 1.0))
    """
    levels = []
    for level in _several(noise, "noise"):
        pair = tuple(level) if isinstance(level, tuple | list) else (level, level)
        if len(pair) != 2:
            raise ValueError(f"noise must be numbers or pairs of numbers, got {level!r}.")
        for scale in pair:
            _checks.positive(scale, "noise", zero=True)
        levels.append((float(pair[0]), float(pair[1])))
    _checks.positive(ridge, "ridge", zero=True)
    words = {"methods": methods, "metrics": metrics}
    chosen: dict[str, tuple[str, ...]] = {}
    for name, allowed in (("methods", METHODS), ("metrics", METRICS)):
        chosen[name] = _several(words[name], name)
        for word in chosen[name]:
            _checks.one_of(word, name, allowed)
    grid = Grid(
        n=tuple(_checks.integer(v, "n", low=1) for v in _several(n, "n")),
        d=tuple(_checks.integer(v, "d", low=2) for v in _several(d, "d")),
        k=tuple(_checks.integer(v, "k", low=1) for v in _several(k, "k")),
        noise=tuple(levels),
        latents=None if latents is None else _checks.integer(latents, "latents", low=1),
        methods=chosen["methods"],
        metrics=chosen["metrics"],
        held_out=_checks.integer(held_out, "held_out", low=2),
        ridge=float(ridge),
    )
    for name in ("n", "d", "k", "noise", "methods", "metrics"):
        values = getattr(grid, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must hold every value once, got {values}.")
    if min(grid.k) > max(grid.d):
        raise ValueError(f"k must be at most d in some cell, got k={grid.k} and d={grid.d}.")
    return grid


def _several(value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return (value,)
    if not value:
        raise ValueError(f"{name} must hold at least one value, got none.")
    return tuple(value)


def _check_key(key: Any) -> None:
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
    means = (jnp.arange(k) % 2)[:, None] + 4 * labels[None, :]
    z, e1, e2 = rows(
        (latent_key, *noise_keys), (k, *dims), lambda one: jax.random.normal(one, (n,))
    )
    s1, s2 = rows(
        jax.random.split(map_key),
        dims,
        lambda one: jax.random.uniform(one, (k,), minval=-5, maxval=5),
    )
    return _Draw(z + means, (e1, e2), (s1, s2), labels)


def _dims(d: int) -> tuple[int, int]:
    return d - d // 2, d // 2


def draw_cell(
    key: RandomKey,
    *,
    n: int,
    d: int,
    k: int,
    noise: Level = 0.0,
    held_out: bool = False,
) -> Problem:
    """Draw the data of one cell of a sweep, to look at it or to try another method on it.

    Args:
        key: the seed's key, ``jax.random.fold_in(key of the sweep, number of the seed)``.
        n: number of pairs.
        d: features of both modalities together.
        k: dimension of the true latents (``latents`` of the grid, or its ``k``).
        noise: standard deviation in either view, in units of the views.
        held_out: give the held-out pairs instead of the training pairs.

    Returns:
        Views of shapes ``(n, d - d // 2)`` and ``(n, d // 2)``, latents, labels and maps. With
        other sizes and the same key, what both have is the same.

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
        >>> bool((small.views[0] == large.views[0][:4, :4]).all())
        True
    """
    _check_key(key)
    scales, dims = make_grid(n=n, d=d, k=1, noise=(noise,), latents=k).noise[0], _dims(d)
    drawn = _draw(key, n=n, dims=dims, k=k, held_out=held_out)
    x1, x2 = (
        (matmul(s, drawn.z) + scale * e).T
        for s, e, scale in zip(drawn.maps, drawn.noises, scales, strict=True)
    )
    return Problem((x1, x2), drawn.z.T, drawn.labels.astype(int), drawn.maps)


def sweep_seed(key: RandomKey, grid: Grid) -> dict[str, Float[Array, "method n d k noise"]]:
    """Evaluate every cell of a grid for one seed: a pure function, for ``jit`` and ``vmap``.

    Args:
        key: the seed's key.
        grid: what to sweep; static.

    Returns:
        For each metric an array with the axes method, n, d, k and noise.

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
    nothing = Factor(
        weight=jnp.zeros((), dtype),
        means=(jnp.zeros((k,), dtype), jnp.zeros((p - k,), dtype)),
        blocks=(jnp.zeros((p, k), dtype), jnp.zeros((p, p - k), dtype)),
        samples=jnp.asarray(0, jnp.int32),
    )

    def add(state: Factor, rows: Array, weights: Array | None = None) -> Any:
        return statistics.update(state, (rows[:, :k], rows[:, k:]), weights=weights)

    _, before = jax.lax.scan(lambda state, rows: (add(state, rows), state), nothing, blocks)

    def up_to(n: Array) -> Any:
        last = (n - 1) // block
        state = jax.tree.map(lambda leaf: leaf[last], before)
        weights = (last * block + jnp.arange(block) < n).astype(dtype)
        state = add(state, blocks[last], weights)
        spread = tuple(jnp.where(n > 1, part, 0) for part in state.blocks)  # one sample has none
        return dataclasses.replace(state, blocks=spread, samples=n)

    return jax.vmap(up_to)(jnp.asarray(sizes, jnp.int32))


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
    levels, ks = jnp.asarray(grid.noise, draw.z.dtype), jnp.asarray(grid.k, jnp.int32)
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
        found = baselines.ridge_cca(views, k=k, ridge=grid.ridge)
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
        rtol=jnp.finfo(mean.dtype).eps * jnp.maximum(2 * state.weight, index.size),
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
    numbers = np.broadcast_to(np.asarray(grid.n, np.int32).reshape(1, -1, 1, 1, 1), shape).ravel()
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
    means = jax.lax.fori_loop(0, blocks, add, jnp.zeros(count, samples.dtype)) / n
    ends = itertools.accumulate(map(len, groups.values()), initial=0)
    return {
        prefix + name: jnp.mean(means[a:b])
        for name, (a, b) in zip(groups, itertools.pairwise(ends), strict=True)
    }


def sweep(
    key: RandomKey,
    grid: Grid,
    *,
    seeds: int,
    batch_size: int = 8,
    path: Path | str | None = None,
    progress: bool = True,
) -> SweepResult:
    """Evaluate a grid for many seeds, in batches.

    Args:
        key: random key; seed ``i`` has the key ``jax.random.fold_in(key, i)``.
        grid: what to sweep, from ``make_grid``.
        seeds: how many seeds.
        batch_size: seeds that are computed together: memory grows with it, and with the number of
            cells.
        path: file (``.npz``) that keeps what is finished: the same sweep goes on from there, also
            with more seeds. ``load_sweep`` reads it.
        progress: show a progress bar in a terminal, or in a notebook that has ipywidgets.

    Returns:
        Every seed's values, as NumPy arrays in JAX's default float.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if ``seeds`` or ``batch_size`` is below 1, or ``path`` holds another sweep.

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
    _check_key(key)
    seeds = _checks.integer(seeds, "seeds", low=1)
    batch_size = min(_checks.integer(batch_size, "batch_size", low=1), seeds)
    wide = bool(jax.config.read("jax_enable_x64"))
    made_by = _describe(key, grid, wide)
    if path is not None:
        check_target(path)
    done = {} if path is None else _read_seeds(Path(path), made_by)
    missing = [seed for seed in range(seeds) if seed not in done]
    batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
    if batches:
        # One shape, compiled once: a last batch that is too short repeats its last seed.
        keys = [
            jax.vmap(lambda seed: jax.random.fold_in(key, seed))(
                jnp.asarray(batch + batch[-1:] * (batch_size - len(batch)))
            )
            for batch in batches
        ]
        run = _compiled(grid, batch_size, keys[0].dtype, keys[0].shape, wide)
        _run_batches(run, batches, keys, done, lambda: _write_seeds(path, made_by, done), progress)
    values = {name: np.stack([done[seed][name] for seed in range(seeds)]) for name in grid.metrics}
    return SweepResult(grid, tuple(range(seeds)), values)


@functools.lru_cache(maxsize=16)
def _compiled(grid: Grid, batch: int, dtype: Any, shape: tuple[int, ...], wide: bool) -> Any:
    """Compile a grid for a batch of seeds; ``wide`` tells 64-bit programs from others."""
    del batch, wide
    keys = jax.ShapeDtypeStruct(shape, dtype)
    return jax.jit(jax.vmap(functools.partial(sweep_seed, grid=grid))).lower(keys).compile()


def _run_batches(
    run: Any,
    batches: list[list[int]],
    keys: list[Array],
    done: dict[int, dict[str, np.ndarray]],
    keep: Callable[[], None],
    progress: bool,
) -> None:
    """Run one batch after the other; what is finished is kept when a later one is interrupted."""
    # The factorisations are small and many: threads inside each of them only get in the way.
    console = get_console()
    widgets = console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    shown = progress and (console.is_terminal or widgets)
    with threadpool_limits(1), Progress(transient=True, disable=not shown) as bar:
        task = bar.add_task("seeds", total=sum(map(len, batches)))
        for batch, some in zip(batches, keys, strict=True):
            values = jax.tree.map(np.asarray, run(some))
            for i, seed in enumerate(batch):
                done[seed] = {name: array[i] for name, array in values.items()}
            keep()
            bar.advance(task, len(batch))


def _describe(key: RandomKey, grid: Grid, wide: bool) -> dict[str, Any]:
    """Everything that decides a sweep's numbers, but the number of seeds."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if typed else key
    described = {**dataclasses.asdict(grid), "key": np.asarray(data), "float64": wide}
    return json.loads(json.dumps(described, default=lambda value: value.tolist()))


def _write_seeds(
    path: Path | str | None, made_by: dict[str, Any], done: dict[int, dict[str, np.ndarray]]
) -> None:
    if path is None:
        return
    seeds = sorted(done)
    arrays: dict[str, Any] = {
        "_seeds": np.asarray(seeds),
        "_made_by": np.asarray(json.dumps(made_by)),
        **{name: np.stack([done[seed][name] for seed in seeds]) for name in done[seeds[0]]},
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(Path(path), buffer.getvalue())


def _read(path: Path) -> tuple[dict[str, Any], dict[int, dict[str, np.ndarray]]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            made_by = json.loads(str(file["_made_by"]))
            arrays = {name: file[name] for name in made_by["metrics"]}
            seeds = [int(seed) for seed in file["_seeds"]]
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise ValueError(
            f"{path} is not a file of a sweep, or damaged ({type(error).__name__}); delete it to "
            "start anew."
        ) from None
    axes = [made_by[name] for name in ("methods", "n", "d", "k", "noise")]
    shape = (len(set(seeds)), *map(len, axes))
    for name, array in arrays.items():
        if array.shape != shape or len(seeds) != shape[0]:
            raise ValueError(f"{path} is damaged: {name} has shape {array.shape}, not {shape}.")
    return made_by, {
        seed: {name: array[i] for name, array in arrays.items()} for i, seed in enumerate(seeds)
    }


def _read_seeds(path: Path, made_by: dict[str, Any]) -> dict[int, dict[str, np.ndarray]]:
    if not path.exists():
        return {}
    found, done = _read(path)
    other = [name for name in made_by if found.get(name) != made_by[name]]
    if other:
        raise ValueError(
            f"path {path} holds another sweep: {other[0]} is {found.get(other[0])} there and "
            f"{made_by[other[0]]} here; give another path, or delete the file."
        )
    return done


def load_sweep(path: Path | str) -> SweepResult:
    """Read the file that ``sweep`` keeps, finished or not.

    Args:
        path: the file.

    Returns:
        The seeds that are finished.

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
    made_by, done = _read(Path(path))
    fields = {field.name: made_by[field.name] for field in dataclasses.fields(Grid)}
    grid = Grid(**{name: _as_tuple(value) for name, value in fields.items()})
    seeds = tuple(sorted(done))
    values = {name: np.stack([done[seed][name] for seed in seeds]) for name in grid.metrics}
    return SweepResult(grid, seeds, values)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
