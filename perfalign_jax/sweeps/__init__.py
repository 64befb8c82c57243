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

from perfalign_jax.sweeps._cell import draw_cell, sweep_seed
from perfalign_jax.sweeps.grid import AXES, METHODS, METRICS, Grid, SweepResult, make_grid
from perfalign_jax.sweeps.runner import load_sweep, sweep

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
