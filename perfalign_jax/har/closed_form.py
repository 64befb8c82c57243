"""Every closed-form alignment of one set of pairs, as latents of all clips.

One fit serves every number of dimensions: the trailing ``k`` are the last of a larger choice, the
``k`` of most energy the first of the informative part, and the whole null space is the informative
part beside the trivial one, on which the latents are zero for every pair and not zero elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from perfalign_jax import baselines, solver, statistics
from perfalign_jax.har.transfer import Parts
from perfalign_jax.types import Alignment

__all__ = ["INFORMATIVE", "Latents", "align_by_all"]

INFORMATIVE = "perfect alignment, informative part"
"""Name of the method that takes the whole informative part of the null space."""


class Latents(NamedTuple):
    """Latents of one method: its name, and both modalities of every clip.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.closed_form import Latents
        >>> Latents("identity", np.ones((3, 2)), np.ones((3, 2))).method
        'identity'
    """

    method: str
    source: Float[np.ndarray, "n k"]
    target: Float[np.ndarray, "n k"]


def align_by_all(
    parts: tuple[Parts, Parts],
    *,
    rows: Int[np.ndarray, " m"],
    dimensions: Sequence[int] = (27, 128),
    ridge_regression: float = 0.1,
    ridge_cca: float = 1.0,
) -> Iterator[Latents]:
    """Fit every closed-form method to some pairs, and give the latents of all clips one by one.

    Identity (the features both views have), ridge regression, Procrustes, linear contrastive, ridge
    CCA; perfect alignment with trailing directions, the whole null space, the directions of most
    energy, and the whole informative part. Where the pairs are at least as many
    as the features there is no null space: the directions of most energy are then the best
    approximation, and the whole null space and the informative part are left out.

    Args:
        parts: features of both modalities for every clip, centred over the pairs, each taken apart
            by ``split_by_span`` with the same rows.
        rows: indices of the pairs to fit.
        dimensions: numbers of dimensions ``k``, ascending; those above ``d1 + d2`` are left out.
            Linear contrastive and ridge CCA use the last (fewer if they must).
        ridge_regression: ridge of the regression, see ``baselines.ridge_regression``; the mean
            eigenvalue it is relative to is that of the pairs' span.
        ridge_cca: ridge of CCA, likewise.

    Yields:
        ``Latents`` of each method.

    Raises:
        TypeError: if a view does not hold real numbers.
        ValueError: if the views do not fit together, or no k of ``dimensions`` fits them.

    Warns:
        CollapseWarning: from the fits of perfect alignment that collapse.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.closed_form import align_by_all
        >>> from perfalign_jax.har.transfer import split_by_span
        >>> x = np.random.default_rng(0).normal(size=(12, 40)).astype(np.float32)
        >>> pairs = np.arange(8)
        >>> parts = split_by_span(x, rows=pairs), split_by_span(-x, rows=pairs)
        >>> found = align_by_all(parts, rows=pairs, dimensions=(4,))
        >>> [latents.method for latents in found][:3]
        ['identity', 'ridge regression', 'Procrustes']
    """
    views, inside, outside = zip(*parts, strict=True)
    width = views[0].shape[1] + views[1].shape[1]
    dims = [k for k in dimensions if k <= width]
    if not dims:
        raise ValueError(
            f"dimensions must hold a k of at most d1 + d2 = {width}, got {list(dimensions)}."
        )
    shared = min(views[0].shape[1], views[1].shape[1])
    yield Latents("identity", views[0][:, :shared], views[1][:, :shared])
    state = statistics.from_views((inside[0][rows], inside[1][rows]))
    k = min(dims[-1], inside[0].shape[1], inside[1].shape[1])
    fits: dict[str, Callable[[], Alignment]] = {
        "ridge regression": lambda: baselines.ridge_regression(state, ridge=ridge_regression),
        "Procrustes": lambda: baselines.procrustes(state),
        f"linear contrastive, k ≤ {dims[-1]}": lambda: baselines.linear_contrastive(state, k=k),
        f"ridge CCA, k ≤ {dims[-1]}": lambda: baselines.ridge_cca(state, k=k, ridge=ridge_cca),
    }
    for method, fit in fits.items():
        yield Latents(method, *_transform(fit(), inside))

    trailing = solver.fit((views[0][rows], views[1][rows]), k=dims[-1])
    z1, z2 = _transform(trailing, views)
    for k in dims:
        yield Latents(f"perfect alignment, trailing k = {k}", z1[:, -k:], z2[:, -k:])

    has_null_space = len(rows) < width
    by_energy = solver.fit(state, k=None if has_null_space else dims[-1], select="energy")
    z1, z2 = _transform(by_energy, inside)
    if has_null_space:
        yield Latents(
            "perfect alignment, whole null space",
            np.concatenate([z1, outside[0], np.zeros_like(outside[1])], axis=1),
            np.concatenate([z2, np.zeros_like(outside[0]), outside[1]], axis=1),
        )
    for k in dims:
        yield Latents(f"perfect alignment, energy k = {k}", z1[:, :k], z2[:, :k])
    if has_null_space:
        yield Latents(INFORMATIVE, z1, z2)


def _transform(
    alignment: Alignment, views: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    z1, z2 = solver.transform(alignment, views)
    return np.asarray(z1), np.asarray(z2)
