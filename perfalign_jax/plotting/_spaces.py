"""Figures of latents, of spectra, and of what can be done with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from perfalign_jax.plotting._looks import (
    COLORS,
    GREY,
    MARKERS,
    assign,
    check_points,
    dot,
    make_panels,
    name_classes,
    name_modalities,
    put_legend,
    scatter_views,
    tidy,
)
from perfalign_jax.types import Diagnosis

__all__ = ["plot_latents", "plot_spectrum", "plot_transfer"]


def plot_latents(
    latents: Sequence[Any],
    labels: Any,
    *,
    title: str = "Aligned latent space",
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw the first two coordinates of all modalities' latents in one plane.

    Args:
        latents: ``(z1, z2, ...)``, each of shape ``(n, k)`` with ``k >= 2``, in units of the
            latents; up to five of them.
        labels: class of each sample, shape ``(n,)``: the colour.
        title: heading.
        names: name of each class, in the order of the sorted labels.

    Returns:
        The figure: rings are modality 1, crosses modality 2, and further ones have markers of
        their own; a cross inside its ring is a pair that coincides.

    Raises:
        ValueError: if shapes do not fit or a value is not finite.

    Source: paper Fig. 2.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import plotting
        >>> z = np.random.default_rng(0).normal(size=(20, 2))
        >>> len(plotting.plot_latents((z, z), np.arange(20) % 2).axes)
        1
    """
    if not 2 <= len(latents) <= 1 + len(MARKERS):
        raise ValueError(f"latents must hold 2 to {1 + len(MARKERS)} arrays, got {len(latents)}.")
    points, classes = check_points(latents, labels, [f"z{m + 1}" for m in range(len(latents))])
    figure, (axes,) = make_panels(1, 1, row=4.6, width=5.6)
    scatter_views(axes, points, classes)
    label = "latent coordinate {} (latent units)"
    axes.set(title=title, xlabel=label.format(1), ylabel=label.format(2))
    handles = [*name_classes(classes, names), *name_modalities(len(points))]
    put_legend(figure, handles, columns=2)
    return figure


def plot_spectrum(diagnosis: Diagnosis, *, title: str = "", k: int | None = None) -> Figure:
    """Draw the singular values of the stacked views and what their null space holds.

    Args:
        diagnosis: result of ``diagnose``.
        title: heading.
        k: latent dimensions of a fit: a line marks the directions it takes.

    Returns:
        The figure: on the left the singular values, largest first, none drawn below the cut-off
        (dotted) up to which they count as zero; on the right the latent energy of the null
        directions, informative ones first, then the trivial ones, whose latents are zero.

    Raises:
        TypeError: if the argument is no diagnosis.

    Source: paper Theorem 2.2 (the null space), Remark 2.4 and Section 6.1.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> from perfalign_jax import plotting
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> len(plotting.plot_spectrum(pa.diagnose((x, np.pad(x, ((0, 0), (0, 1)))))).axes)
        2
    """
    if not isinstance(diagnosis, Diagnosis):
        raise TypeError(f"diagnosis must be a Diagnosis, got {type(diagnosis).__name__}.")
    values = np.asarray(diagnosis.singular_values, np.float64)
    d, rank = values.size, int(diagnosis.rank)
    informative, trivial = int(diagnosis.informative_dimension), int(diagnosis.trivial_dimension)
    figure, (left, right) = make_panels(2, 2, row=3.9)
    size = 5 if d <= 40 else 3
    floor: float = max(float(diagnosis.cutoff), float(np.finfo(np.float32).tiny))
    shown = np.maximum(values, floor)
    index = np.arange(1, d + 1)
    left.semilogy(index[:rank], shown[:rank], "o", ms=size, color=COLORS[0])
    left.semilogy(index[rank:], shown[rank:], "v", ms=size, color=COLORS[1])
    left.axhline(floor, color=GREY, lw=0.8, ls=":")
    if k is not None:
        left.axvline(d - k + 0.5, color="black", lw=1, ls="--")
    left.set_title(title or f"Stacked views, d = {d}")
    left.set(xlabel="index of the singular value", ylabel="singular value (data units, times √n)")
    right.set_title(f"Null space: {informative} informative, {trivial} trivial")
    right.set(xlabel="null direction, by latent energy", ylabel="share of the views' energy")
    energies = np.asarray(diagnosis.energies, np.float64)[: informative + trivial]
    share = energies / max(float(np.sum(np.asarray(diagnosis.view_energies))), floor)
    place = np.arange(1, share.size + 1)
    right.plot(place[:informative], share[:informative], "s", ms=size, color=COLORS[2])
    right.plot(place[informative:], share[informative:], "x", ms=size, color="black")
    if not share.any():  # nothing to scale the axis by
        right.set_ylim(-0.05, 1)
    if share.size == 0:
        right.set(xticks=[], yticks=[])
        right.text(0.5, 0.5, "the null space is empty", ha="center", transform=right.transAxes)
    for axes in (left, right):
        tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles = [
        dot(COLORS[0], "o", f"not null ({rank})"),
        dot(COLORS[1], "v", f"null ({informative + trivial})"),
        dot(COLORS[2], "s", f"null and informative ({informative})"),
        dot("black", "x", f"null and trivial ({trivial})"),
    ]
    if k is not None:
        handles.append(Line2D([], [], color="black", ls="--", lw=1, label=f"the trailing k = {k}"))
    put_legend(figure, handles, columns=3)
    return figure


def plot_transfer(
    accuracies: Mapping[str, Mapping[str, Mapping[str, Sequence[float | int]]]],
    *,
    chance: float,
    quantity: str = "top-1 accuracy on the target (%)",
) -> Figure:
    """Draw the accuracy of every method of cross-modal transfer, with its interval.

    Args:
        accuracies: for each panel (its title), for each method, for each kind of split, ``(value,
            low, high)`` in percent; an infinite interval is not drawn. Three panels stand beside
            each other, others fill two columns.
        chance: accuracy of guessing, in percent: a dotted line.
        quantity: label of the axis.

    Returns:
        The figure: a row per method, a marker per kind of split, lines the 95 % intervals.

    Raises:
        ValueError: if there is nothing to draw.

    Source: paper Table 1.

    Example:
        >>> from perfalign_jax import plotting
        >>> panel = {"identity": {"random": (4, 3, 5)}, "aligned": {"random": (95, 94, 96)}}
        >>> len(plotting.plot_transfer({"skeleton": panel}, chance=3.7).axes)
        1
    """
    if not accuracies or not all(accuracies.values()):
        raise ValueError("accuracies must hold at least one panel with at least one method.")
    kinds = list(dict.fromkeys(k for p in accuracies.values() for m in p.values() for k in m))
    methods = list(dict.fromkeys(m for panel in accuracies.values() for m in panel))
    looks = assign(kinds, [(COLORS[i % len(COLORS)], "osD^v"[i % 5]) for i in range(35)])
    row = 0.8 + 0.27 * len(methods)
    columns = 3 if len(accuracies) == 3 else 2
    width = 10.0 if columns == 3 else 7.5
    figure, panels = make_panels(
        len(accuracies), columns, row=row, add=0.4, width=width, share=True
    )
    places = {method: len(methods) - 1 - i for i, method in enumerate(methods)}
    shifts = np.linspace(0.24, -0.24, len(kinds)) if len(kinds) > 1 else np.zeros(1)
    for axes, (title, panel) in zip(panels, accuracies.items(), strict=True):
        axes.axvline(chance, color=GREY, lw=0.9, ls=":")
        for method, by_kind in panel.items():
            for kind, (value, low, high) in by_kind.items():
                height, (color, marker) = places[method] + shifts[kinds.index(kind)], looks[kind]
                if np.isfinite([low, high]).all():
                    axes.plot([low, high], [height, height], color=color, lw=1.3)
                axes.plot(value, height, marker, color=color, ms=4)
        for place in range(0, len(methods), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", zorder=0)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(list(places.values()), list(places))
        axes.set(xlim=(0, 100), ylim=(-0.5, len(methods) - 0.5))
        tidy(axes)
        axes.grid(visible=False, axis="y")
    for axes in panels[-2:-1] if columns == 3 else panels[-2:]:
        axes.set_xlabel(quantity)
    handles = [Line2D([], [], color=c, marker=m, ms=5, label=k) for k, (c, m) in looks.items()]
    handles.append(Line2D([], [], color=GREY, lw=0.9, ls=":", label="chance"))
    put_legend(figure, handles, columns=4)
    return figure
