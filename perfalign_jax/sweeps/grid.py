"""What is swept, checked, and what came out, found by the values of its axes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from perfalign_jax import _checks

__all__ = ["AXES", "METHODS", "METRICS", "Grid", "SweepResult", "make_grid"]

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
        """Return a metric at chosen values of axes; ``noise`` may be one number for both views.

        The seeds along the first axis (unless ``seed`` is chosen), then the axes that were not
        chosen and have more than one value, in the order of ``AXES``. A ``ValueError`` is raised if
        the metric, an axis or a value is not there.

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
    """Check the values of a sweep's axes and what to measure; see ``Grid`` for what each is.

    Every axis takes one value or several. ``d`` is at least 2; of an odd number the first modality
    has one more. In a sequence of ``noise`` every entry is one level: a number for both views, or a
    pair, one for each; so ``(0, 1)`` is two levels and ``[(0, 1)]`` one.

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
    words: dict[str, Any] = {}
    for name, given, allowed in (("methods", methods, METHODS), ("metrics", metrics, METRICS)):
        words[name] = _several(given, name)
        for word in words[name]:
            _checks.one_of(word, name, allowed)
    sizes: dict[str, Any] = {
        name: tuple(_checks.integer(value, name, low=low) for value in _several(given, name))
        for name, given, low in (("n", n, 1), ("d", d, 2), ("k", k, 1))
    }
    grid = Grid(
        **sizes,
        **words,
        noise=tuple(levels),
        latents=None if latents is None else _checks.integer(latents, "latents", low=1),
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
