"""Colours, panels, legends and files that all figures share."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from perfalign_jax.serialization import open_whole

__all__ = ["COLORS", "GREY", "MARKERS", "save_figure"]

# Okabe & Ito's colours, the two most different first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#777777"


def save_figure(figure: Figure, path: Path | str, *, dpi: int = 150) -> Path:
    """Write a figure to a file; the folder is made if missing.

    Args:
        figure: what a function of this module returned.
        path: file to write; its ending chooses the format (``.png``, ``.pdf``, ``.svg``).
        dpi: dots per inch of a ``.png``.

    Returns:
        The path. The file appears whole or not at all.

    Raises:
        ValueError: if matplotlib does not know the format.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from perfalign_jax import plotting
        >>> z = np.random.default_rng(0).normal(size=(9, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     figure = plotting.plot_latents((z, z), np.arange(9) % 2)
        ...     plotting.save_figure(figure, pathlib.Path(folder) / "a.png").name
        'a.png'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=dpi)
    return path


MARKERS = ("x", "+", "1", "2")  # of the second modality and further ones: lines, no areas


def label_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 on a logarithmic axis that spans less than two decades."""
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))


def assign(labels: Sequence[str], looks: Sequence[Any]) -> dict[str, Any]:
    """Give every distinct label a look, in order of appearance."""
    return dict(zip(dict.fromkeys(labels), itertools.cycle(looks), strict=False))


def make_panels(
    count: int, columns: int, *, row: float, add: float = 0, width: float = 7.5, share: bool = False
) -> tuple[Figure, Any]:
    """A figure of so many panels, filled row by row, and its panels; sizes in inches.

    At 150 dots per inch the width is a little more than that of the report's column.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, row * rows + add), layout=layout)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def check_points(
    arrays: Sequence[Any], labels: Any, names: Sequence[str]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the first two columns of each array and the class number of each row."""
    classes = np.asarray(labels)
    points = []
    for value, name in zip(arrays, names, strict=True):
        host = np.asarray(value, np.float64)
        if host.ndim != 2 or host.shape[1] < 2 or host.shape[0] != classes.shape[0]:
            raise ValueError(
                f"{name} must have shape (n = {classes.shape[0]}, at least 2), got {host.shape}."
            )
        if not np.isfinite(host).all():
            raise ValueError(f"{name} must be finite.")
        points.append(host[:, :2])
    return points, classes


def list_colors(count: int) -> list[Any]:
    if count <= len(COLORS):
        return list(COLORS[:count])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def color_classes(classes: np.ndarray) -> list[tuple[float, float, float, float]]:
    names, numbers = np.unique(classes, return_inverse=True)
    colors = [to_rgba(color) for color in list_colors(names.size)]
    return [colors[number] for number in numbers]


def name_classes(classes: np.ndarray, names: Sequence[str] | None) -> list[Line2D]:
    found = np.unique(classes)
    names = [f"class {c}" for c in found] if names is None else names
    return [
        dot(color, "s", name) for color, name in zip(list_colors(found.size), names, strict=True)
    ]


def name_modalities(count: int = 2) -> list[Line2D]:
    return [
        Line2D([], [], color="black", marker=marker, mfc="none", ls="", label=f"modality {m + 1}")
        for m, marker in enumerate(("o", *MARKERS[: count - 1]))
    ]


def dot(color: Any, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker=marker, ls="", ms=6, label=label)


def put_legend(figure: Figure, handles: Sequence[Any], columns: int = 5) -> None:
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), columns), frameon=False
    )


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def scatter_views(axes: Axes, points: Sequence[np.ndarray], classes: np.ndarray) -> None:
    colors = color_classes(classes)
    first, *others = points
    x, y = first.T
    axes.scatter(x, y, s=26, facecolors="none", edgecolors=colors, linewidths=0.7, alpha=0.7)
    for xy, marker in zip(others, MARKERS, strict=False):
        axes.scatter(xy[:, 0], xy[:, 1], s=9, c=colors, marker=marker, linewidths=0.7, alpha=0.7)
    tidy(axes)
