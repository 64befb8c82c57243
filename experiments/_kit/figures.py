"""Figures that only the paper's experiments need, in the looks of ``perfalign_jax.plotting``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from perfalign_jax.plotting import _looks as looks

Table = Mapping[str, Mapping[str, Any]]  # by quantity and method


def plot_data_model(
    latents: Any, views: tuple[Any, Any], labels: Any, *, names: Sequence[str] | None = None
) -> Figure:
    """Draw the true latents and the views made of them, two columns of each (paper Fig. 1)."""
    points, classes = looks.check_points((latents, *views), labels, ("latents", "x1", "x2"))
    figure, panels = looks.make_panels(3, 3, row=3.1)
    _draw_model(panels, points, classes)
    looks.put_legend(figure, looks.name_classes(classes, names))
    return figure


def plot_boundary(
    latents: Any,
    views: tuple[Any, Any],
    estimates: tuple[Any, Any],
    labels: Any,
    *,
    line: tuple[Any, float],
    estimated_lines: Sequence[tuple[Any, float]] = (),
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw classes that a line divides: true latents, views, estimated latents (paper Fig. 7).

    A line ``(w, b)`` is ``w . z + b = 0``; estimated ones are found in each modality's latents.
    """
    arrays, described = (latents, *views, *estimates), ("latents", "x1", "x2", "z1", "z2")
    points, classes = looks.check_points(arrays, labels, described)
    figure, panels = looks.make_panels(4, 2, row=3.2)
    _draw_model(panels[:3], points[:3], classes)
    _draw_line(panels[0], *line, style="-")
    looks.scatter_views(panels[3], points[3:], classes)
    for (weights, offset), style in zip(estimated_lines, ("-", "--"), strict=False):
        _draw_line(panels[3], weights, offset, style=style)
    panels[3].set_title("Estimated latent space")
    panels[3].set(xlabel="coordinate 1 (latent units)", ylabel="coordinate 2 (latent units)")
    handles = [*looks.name_classes(classes, names), *looks.name_modalities()]
    handles.append(Line2D([], [], color="black", label="boundary"))
    looks.put_legend(figure, handles)
    return figure


def plot_errors(errors: Table, *, paper: Table | None = None) -> Figure:
    """Draw one panel per quantity with every method's draws, and the paper's number (Fig. 3).

    An axis is logarithmic where the values are positive and span more than two decades.
    """
    paper = paper or {}
    if not errors or not all(errors.values()):
        raise ValueError("errors must hold at least one quantity with at least one method.")
    tallest = max(len(by_method) for by_method in errors.values())
    figure, panels = looks.make_panels(len(errors), 2, row=0.85 + 0.36 * tallest, add=0.5)
    for axes, (quantity, by_method) in zip(panels, errors.items(), strict=True):
        values = {}
        for method, draws in by_method.items():
            values[method] = np.asarray(draws, np.float64).ravel()
            if values[method].size == 0 or not np.isfinite(values[method]).all():
                name, must = f"errors[{quantity!r}][{method!r}]", "at least one number and only"
                raise ValueError(f"{name} must hold {must} finite ones.")
        _draw_distributions(axes, values, paper.get(quantity, {}))
        axes.set_xlabel(quantity)
        if axes in panels[1::2] and list(by_method) == list(next(iter(errors.values()))):
            axes.set_yticklabels([])  # the panel to the left names the same methods
    handles = [
        Line2D([], [], color=looks.GREY, marker="o", ls="", ms=4, alpha=0.6, label="one draw"),
        Patch(facecolor="none", edgecolor="black", label="median, quartiles, middle 95 %"),
    ]
    if any(paper.get(quantity) for quantity in errors):
        handles.append(Line2D([], [], ls="", label="the paper's number", **_PAPER))
    looks.put_legend(figure, handles)
    return figure


_PAPER: dict[str, Any] = {"color": "black", "marker": "D", "mfc": "white", "mew": 1.5}


def measure_pairs(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Sum the distances of pairs of places ``(n, 2)``, raw and over the spread of all points.

    The spread is their root mean square distance from their middle. The titles of the paper's
    Fig. 6 give the raw sum.
    """
    total = float(np.linalg.norm(first - second, axis=1).sum())
    points = np.concatenate([first, second])
    spread = float(np.sqrt(np.mean(np.sum((points - points.mean(axis=0)) ** 2, axis=1))))
    return total, total / spread


def plot_pairs(
    pictures: Mapping[str, Any], *, names: tuple[str, str] = ("modality 1", "modality 2")
) -> Figure:
    """Draw both modalities' places in a plane, a line joining the two of a pair (paper Fig. 6).

    A panel (its title) holds the places of modality 1 and 2, ``(n, 2)``, and the pairs' classes.
    """
    if not pictures:
        raise ValueError("pictures must hold at least one panel, got none.")
    figure, panels = looks.make_panels(len(pictures), 2, row=3.5, add=0.6)
    every = np.unique(np.concatenate([np.asarray(p[2]) for p in pictures.values()]))
    palette = looks.list_colors(len(every))
    for axes, (title, (first, second, labels)) in zip(panels, pictures.items(), strict=True):
        a, b, classes = (np.asarray(part) for part in (first, second, labels))
        if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or classes.shape != a.shape[:1]:
            raise ValueError(
                f"pictures[{title!r}] must hold shapes (n, 2), (n, 2) and (n,), got {a.shape}, "
                f"{b.shape} and {classes.shape}."
            )
        for color, one in zip(palette, every, strict=True):
            own = classes == one
            for p, q in zip(a[own], b[own], strict=True):
                axes.plot([p[0], q[0]], [p[1], q[1]], color=color, lw=0.5, alpha=0.6, zorder=1)
            axes.plot(*a[own].T, "o", mfc="none", color=color, ms=5, zorder=2)
            axes.plot(*b[own].T, "x", color=color, ms=5, zorder=2)
        total, relative = measure_pairs(a, b)
        heading = f"{title}\nsummed pair distance {total:.0f}, over the spread {relative:.1f}"
        axes.set_title(heading, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
    handles = [looks.dot(c, "s", f"class {one}") for c, one in zip(palette, every, strict=True)]
    handles += [
        Line2D([], [], color=looks.GREY, marker=marker, mfc="none", ls="", ms=5, label=name)
        for marker, name in zip("ox", names, strict=True)
    ]
    looks.put_legend(figure, handles)
    return figure


def _draw_model(panels: Any, points: Sequence[np.ndarray], classes: np.ndarray) -> None:
    colors = looks.color_classes(classes)
    texts = (
        ("True latent space", "coordinate {} (latent units)"),
        ("Modality 1", "feature {} (data units)"),
        ("Modality 2", "feature {} (data units)"),
    )
    for axes, xy, (title, label) in zip(panels, points, texts, strict=True):
        axes.scatter(xy[:, 0], xy[:, 1], s=5, c=colors, alpha=0.6, linewidths=0)
        axes.set(title=title, xlabel=label.format(1), ylabel=label.format(2))
        looks.tidy(axes)


def _draw_line(axes: Axes, weights: Any, offset: float, *, style: str) -> None:
    """Draw w . z + b = 0 across the panel without widening it."""
    w, b = np.asarray(weights, np.float64), float(offset)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    x, y = -b * w / (w @ w)
    axes.axline((x, y), (x - w[1], y + w[0]), color="black", lw=1.4, ls=style)


def _draw_distributions(
    axes: Axes, values: Mapping[str, np.ndarray], paper: Mapping[str, float]
) -> None:
    axes.use_sticky_edges = False
    everything = np.concatenate([*values.values(), np.asarray(list(paper.values()), np.float64)])
    places = np.arange(len(values))[::-1]
    spread = np.random.default_rng(0)
    colors = looks.list_colors(len(values))
    for place, color, (method, draws) in zip(places, colors, values.items(), strict=True):
        height = place + spread.uniform(-0.26, 0.26, size=draws.size)
        axes.plot(draws, height, "o", ms=2.5, color=color, alpha=0.35, mew=0)
        low, first, middle, third, high = np.percentile(draws, (2.5, 25, 50, 75, 97.5))
        axes.barh(place, third - first, 0.5, left=first, fill=False, ec="black", lw=1)
        axes.plot([middle, middle], [place - 0.25, place + 0.25], color="black", lw=2)
        for ends in ((low, first), (third, high)):
            axes.plot(ends, [place, place], color="black", lw=1)
        if method in paper:
            axes.plot(paper[method], place, ms=7, zorder=5, **_PAPER)
    if everything.min() > 0 and everything.max() > 100 * everything.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
    else:
        axes.set_xlim(left=min(0.0, float(everything.min())))
    axes.set_yticks(places, list(values))
    axes.set_ylim(-0.6, len(values) - 0.4)
    looks.tidy(axes)
