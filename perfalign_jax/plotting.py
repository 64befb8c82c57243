"""Figures. The only module that imports matplotlib.

Each function returns a ``Figure`` of its own and touches no global state of matplotlib, so it works
without a display, in threads and in notebooks. Colours can be told apart with any colour vision.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
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
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from perfalign_jax import _checks
from perfalign_jax.serialization import open_whole
from perfalign_jax.sweeps import AXES, SweepResult
from perfalign_jax.types import Choice, Diagnosis

__all__ = [
    "Panel",
    "plot_choice",
    "plot_latents",
    "plot_panels",
    "plot_spectrum",
    "plot_sweep",
    "plot_transfer",
    "save_figure",
]

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


def plot_choice(choice: Choice, *, title: str = "") -> Figure:
    """Draw what ``align`` tried: R@1 of held-out rows over the ridge, a line for each lift.

    Args:
        choice: ``alignment.choice`` of an alignment for which something was chosen.
        title: heading.

    Returns:
        The figure: at every ridge the best number of axes, with its standard error; a ring marks
        what was chosen, a dotted line what chance finds.

    Raises:
        ValueError: if nothing was tried.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> from perfalign_jax import plotting
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> len(plotting.plot_choice(pa.align((x, x + 1), lift=None).choice).axes)
        1
    """
    if not choice.trials:
        raise ValueError("choice must hold trials, but lift, ridge and k were all given.")
    figure, (axes,) = _grid(1, 1, row=4.2, width=6.4)
    names = list(dict.fromkeys(trial.lift for trial in choice.trials))
    handles: list[Any] = []
    for name, color in zip(names, itertools.cycle(COLORS), strict=False):
        best: dict[float, Any] = {}
        for trial in choice.trials:
            if trial.lift == name and (
                trial.ridge not in best or trial.recall > best[trial.ridge].recall
            ):
                best[trial.ridge] = trial
        ridges = sorted(best)
        recalls = [100 * best[r].recall for r in ridges]
        errors = [100 * best[r].error for r in ridges]
        axes.errorbar(ridges, recalls, yerr=errors, color=color, marker="o", ms=4, capsize=2)
        handles.append(Line2D([], [], color=color, marker="o", ms=4, label=f"lift: {name}"))
    chosen, marker = (
        choice.chosen,
        dict[str, Any]({"marker": "o", "mfc": "none", "mec": "black", "ms": 11}),
    )
    axes.plot(chosen.ridge, 100 * chosen.recall, ls="", **marker)
    handles.append(Line2D([], [], ls="", label=f"chosen, k = {chosen.k}", **marker))
    axes.axhline(100 / choice.candidates, color=GREY, ls=":")
    handles.append(Line2D([], [], color=GREY, ls=":", label="chance"))
    axes.set(
        title=title,
        xscale="log",
        xlabel="ridge, relative to the mean eigenvalue",
        ylabel=f"R@1 of held-out rows among {choice.candidates:,} (%)",
    )
    axes.set_ylim(bottom=0)
    _tidy(axes)
    _legend_below(figure, handles, columns=1 if max(map(len, names)) > 20 else 2)
    return figure


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
    if not 2 <= len(latents) <= 1 + len(_MARKERS):
        raise ValueError(f"latents must hold 2 to {1 + len(_MARKERS)} arrays, got {len(latents)}.")
    points, classes = _checked(latents, labels, [f"z{m + 1}" for m in range(len(latents))])
    figure, (axes,) = _grid(1, 1, row=4.6, width=5.6)
    _scatter_views(axes, points, classes)
    label = "latent coordinate {} (latent units)"
    axes.set(title=title, xlabel=label.format(1), ylabel=label.format(2))
    handles = [*_class_handles(classes, names), *_modality_handles(len(points))]
    _legend_below(figure, handles, columns=2)
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
    figure, (left, right) = _grid(2, 2, row=3.9)
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
    left.set(xlabel="index of the singular value", ylabel="singular value (data units)")
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
        _tidy(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles = [
        _dot(COLORS[0], "o", f"not null ({rank})"),
        _dot(COLORS[1], "v", f"null ({informative + trivial})"),
        _dot(COLORS[2], "s", f"null and informative ({informative})"),
        _dot("black", "x", f"null and trivial ({trivial})"),
    ]
    if k is not None:
        handles.append(Line2D([], [], color="black", ls="--", lw=1, label=f"the trailing k = {k}"))
    _legend_below(figure, handles, columns=3)
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
    looks = _assign(kinds, [(COLORS[i % len(COLORS)], "osD^v"[i % 5]) for i in range(35)])
    row = 0.8 + 0.27 * len(methods)
    columns = 3 if len(accuracies) == 3 else 2
    width = 10.0 if columns == 3 else 7.5
    figure, panels = _grid(len(accuracies), columns, row=row, add=0.4, width=width, share=True)
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
        _tidy(axes)
        axes.grid(visible=False, axis="y")
    for axes in panels[-2:-1] if columns == 3 else panels[-2:]:
        axes.set_xlabel(quantity)
    handles = [Line2D([], [], color=c, marker=m, ms=5, label=k) for k, (c, m) in looks.items()]
    handles.append(Line2D([], [], color=GREY, lw=0.9, ls=":", label="chance"))
    _legend_below(figure, handles, columns=4)
    return figure


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel of ``plot_panels``: measured curves over an axis, and what theory says of them.

    Attributes:
        title: heading.
        x: values of the axis.
        xlabel: name of the axis.
        ylabel: what is measured, with its unit.
        curves: for each label one value per draw and place, shape ``(draws, len(x))``; NaN where
            there is none.
        theory: for each label one value per place, NaN where theory says nothing.
        thresholds: for each label a place on the axis.
        log_x: whether the axis is logarithmic.
        log_y: whether the values are drawn on a logarithmic scale.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.plotting import Panel
        >>> Panel("1", (1, 2), "n", "CMAE", {"measured": np.ones((5, 2))}).log_y
        False
    """

    title: str
    x: Sequence[int | float]
    xlabel: str
    ylabel: str
    curves: Mapping[str, Any]
    theory: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thresholds: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False


_FLOOR = 1e-17  # errors that are exactly zero are drawn here


def plot_panels(panels: Sequence[Panel], *, columns: int = 3) -> Figure:
    """Draw curves over an axis, panel by panel: medians of the draws with 10-90 % bands.

    Args:
        panels: in reading order; equal labels have equal looks in all of them.
        columns: panels side by side.

    Returns:
        The figure. Measured curves are coloured, theory is black, thresholds are grey lines.

    Raises:
        TypeError: if a panel is no ``Panel``, or ``columns`` no integer.
        ValueError: if there is nothing to draw or shapes do not fit.

    Source: paper Fig. 4.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax import plotting
        >>> panel = plotting.Panel("1", (1, 2), "n", "CMAE", {"measured": np.ones((5, 2))})
        >>> len(plotting.plot_panels([panel, panel]).axes)
        2
    """
    if isinstance(panels, Panel) or not all(isinstance(panel, Panel) for panel in panels):
        raise TypeError("panels must be a sequence of Panel.")
    if not panels:
        raise ValueError("panels must hold at least one panel, got none.")
    columns = min(_checks.integer(columns, "columns", low=1), len(panels))
    figure, grid = _grid(len(panels), columns, row=2.35, width=max(3.1 * columns, 4.5))
    # Every second curve has hollow marks, so that it does not hide one at the same place.
    faces = [color if i % 2 == 0 else "none" for i, color in enumerate(COLORS[:6])]
    styles = [(COLORS[i % 6], "osD^v"[i % 5], faces[i % 6]) for i in range(30)]
    looks = _assign([k for panel in panels for k in panel.curves], styles)
    dashes = _assign([k for panel in panels for k in panel.theory], ("-", "--", ":"))
    marks = _assign([k for panel in panels for k in panel.thresholds], ("-", "--", ":"))
    for axes, panel in zip(grid, panels, strict=True):
        x = np.asarray(panel.x, np.float64)
        for label, values in panel.curves.items():
            draws = np.asarray(values, np.float64)
            if draws.ndim != 2 or draws.shape[1] != x.size:
                shape = f"(draws, {x.size})"
                raise ValueError(f"curves[{label!r}] must have shape {shape}, got {draws.shape}.")
            there = ~np.isnan(draws).all(axis=0)
            if not there.any():
                continue
            shown = np.maximum(draws[:, there], _FLOOR) if panel.log_y else draws[:, there]
            low, middle, high = np.nanpercentile(shown, (10, 50, 90), axis=0)
            color, marker, face = looks[label]
            size = 2.5 if face == color else 5
            axes.fill_between(x[there], low, high, color=color, alpha=0.2, lw=0)
            axes.plot(x[there], middle, color=color, marker=marker, mfc=face, ms=size, lw=1)
        for label, values in panel.theory.items():
            line = np.asarray(values, np.float64)
            if line.shape != x.shape:
                raise ValueError(f"theory[{label!r}] must have shape {x.shape}, got {line.shape}.")
            axes.plot(x, line, dashes[label], color="black", lw=1)
        for label, place in panel.thresholds.items():
            axes.axvline(place, color=GREY, lw=1, ls=marks[label])
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        if panel.log_x:
            axes.set_xscale("log")
            _few_decades(axes.xaxis)
        if panel.log_y:
            axes.set_yscale("log")
            _few_decades(axes.yaxis)
        _tidy(axes)
    handles: list[Any] = [
        Line2D([], [], color=color, marker=marker, mfc=face, ms=5, lw=1, label=label)
        for label, (color, marker, face) in looks.items()
    ]
    handles += [Line2D([], [], color="black", ls=s, lw=1, label=k) for k, s in dashes.items()]
    handles += [Line2D([], [], color=GREY, ls=s, lw=1, label=k) for k, s in marks.items()]
    if any(np.shape(values)[0] > 1 for panel in panels for values in panel.curves.values()):
        handles.append(Patch(facecolor=GREY, alpha=0.3, label="10-90 % of the draws"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    width, height = figure.get_size_inches()
    beside = max(1, int(11 * width / (longest + 10)))
    _legend_below(figure, handles, columns=beside)
    figure.set_figheight(height + 0.35 + 0.22 * -(-len(handles) // beside))  # panels keep theirs
    return figure


def _few_decades(axis: Axis) -> None:
    """Label 1, 2 and 5 on a logarithmic axis that spans less than two decades."""
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))


def _assign(labels: Sequence[str], looks: Sequence[Any]) -> dict[str, Any]:
    """Give every distinct label a look, in order of appearance."""
    return dict(zip(dict.fromkeys(labels), itertools.cycle(looks), strict=False))


_MOST_CURVES = 12
_METRIC_LABELS = {
    "cmae": "CMAE (latent units)",
    "mlre": "MLRE (latent units)",
    "mlre_affine": "MLRE after the best affine map",
    "relative_cmae": "relative CMAE",
    "recall": "R@1",
    "energy": "share of the views' variance",
}


def plot_sweep(result: SweepResult, *, x: str, metrics: Sequence[str] | None = None) -> Figure:
    """Draw a sweep over one of its axes, a panel for each metric.

    Args:
        result: what ``sweeps.sweep`` returned.
        x: the axis to draw over: "n", "d", "k" or "noise" (there the noise of the second view, or
            of the first where that of the second repeats).
        metrics: which metrics to draw; all if not given.

    Returns:
        The figure, with one curve for every combination of the other axes' values, at most 12.
        The axis is logarithmic where its values span more than a factor of 20, errors always are.

    Raises:
        TypeError: if ``result`` is no ``SweepResult``.
        ValueError: if the axis or a metric is not there or empty, or there are too many curves.

    Example:
        >>> import jax
        >>> from perfalign_jax import plotting, sweeps
        >>> grid = sweeps.make_grid(n=(5, 50), d=4, k=2, noise=1.0, metrics="train_cmae")
        >>> result = sweeps.sweep(jax.random.key(0), grid, seeds=3, progress=False)
        >>> len(plotting.plot_sweep(result, x="n").axes)
        1
    """
    if not isinstance(result, SweepResult):
        raise TypeError(f"result must be a SweepResult, got {type(result).__name__}.")
    if x not in AXES[2:]:
        raise ValueError(f"x must be one of {', '.join(AXES[2:])}, got {x!r}.")
    axes = result.axes
    places, xlabel = list(axes[x]), x
    for view, which in ((0, "first"), (1, "second")) if x == "noise" else ():
        levels = [level[view] for level in axes[x]]
        if len(set(levels)) == len(levels):
            places, xlabel = levels, f"noise of the {which} view (data units)"
    if x == xlabel == "noise":
        raise ValueError("x='noise' needs levels that differ in one view; draw with plot_panels.")
    order = np.argsort(places)
    names = [name for name in AXES[1:] if name != x and len(axes[name]) > 1]
    chosen = (metrics,) if isinstance(metrics, str) else metrics
    panels, labels = [], set()
    for metric in tuple(result.values) if chosen is None else chosen:
        curves = {}
        for at_values in itertools.product(*(axes[name] for name in names)):
            at = dict(zip(names, at_values, strict=True))
            values = result.get(metric, **at).reshape(len(result.seeds), len(places))[:, order]
            if not np.isnan(values).all():  # what does not exist is not drawn
                curves[", ".join(_say(*item) for item in at.items()) or "measured"] = values
        if not curves:
            continue
        labels |= set(curves)
        where = "training" if metric.startswith("train_") else "held-out"
        name = metric.removeprefix("train_").removeprefix("held_out_")
        panel = Panel(f"{where} pairs", sorted(places), xlabel, _METRIC_LABELS[name], curves)
        log_x = min(places) > 0 and max(places) > 20 * min(places)
        log_y = name not in ("recall", "energy")
        panels.append(dataclasses.replace(panel, log_x=log_x, log_y=log_y))
    if not panels:
        raise ValueError("result has no value of these metrics in any cell.")
    if len(labels) > _MOST_CURVES:
        raise ValueError(
            f"a figure has room for {_MOST_CURVES} curves, got {len(labels)}: choose values of "
            f"{', '.join(names)} with SweepResult.get, and draw them with plot_panels."
        )
    return plot_panels(panels, columns=min(3, len(panels)))


def _say(name: str, value: Any) -> str:
    if name == "noise":
        value = value[0] if value[0] == value[1] else f"{value[0]:g} and {value[1]:g}"
    return str(value).replace("_", " ") if name == "method" else f"{name} = {value}"


_MARKERS = ("x", "+", "1", "2")  # of the second modality and further ones: lines, no areas


def _grid(
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


def _checked(
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


def _palette(count: int) -> list[Any]:
    if count <= len(COLORS):
        return list(COLORS[:count])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count)))


def _class_colors(classes: np.ndarray) -> list[tuple[float, float, float, float]]:
    names, numbers = np.unique(classes, return_inverse=True)
    colors = [to_rgba(color) for color in _palette(names.size)]
    return [colors[number] for number in numbers]


def _class_handles(classes: np.ndarray, names: Sequence[str] | None) -> list[Line2D]:
    found = np.unique(classes)
    names = [f"class {c}" for c in found] if names is None else names
    return [_dot(color, "s", name) for color, name in zip(_palette(found.size), names, strict=True)]


def _modality_handles(count: int = 2) -> list[Line2D]:
    return [
        Line2D([], [], color="black", marker=marker, mfc="none", ls="", label=f"modality {m + 1}")
        for m, marker in enumerate(("o", *_MARKERS[: count - 1]))
    ]


def _dot(color: Any, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=color, marker=marker, ls="", ms=6, label=label)


def _legend_below(figure: Figure, handles: Sequence[Any], columns: int = 5) -> None:
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), columns), frameon=False
    )


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def _scatter_views(axes: Axes, points: Sequence[np.ndarray], classes: np.ndarray) -> None:
    colors = _class_colors(classes)
    first, *others = points
    x, y = first.T
    axes.scatter(x, y, s=26, facecolors="none", edgecolors=colors, linewidths=0.7, alpha=0.7)
    for xy, marker in zip(others, _MARKERS, strict=False):
        axes.scatter(xy[:, 0], xy[:, 1], s=9, c=colors, marker=marker, linewidths=0.7, alpha=0.7)
    _tidy(axes)
