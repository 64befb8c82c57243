"""Figures of curves: over a sweep, over ridges, over anything."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from perfalign_jax import _checks
from perfalign_jax.plotting._looks import (
    COLORS,
    GREY,
    assign,
    label_decades,
    make_panels,
    put_legend,
    tidy,
)
from perfalign_jax.sweeps import AXES, SweepResult
from perfalign_jax.types import Choice

__all__ = ["Panel", "plot_choice", "plot_panels", "plot_sweep"]


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
        raise ValueError(
            "choice must hold trials: there are none where lift, ridge and k were given, or where "
            "the data were moments."
        )
    figure, (axes,) = make_panels(1, 1, row=4.2, width=6.4)
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
    tidy(axes)
    put_legend(figure, handles, columns=1 if max(map(len, names)) > 20 else 2)
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
    figure, grid = make_panels(len(panels), columns, row=2.35, width=max(3.1 * columns, 4.5))
    # Every second curve has hollow marks, so that it does not hide one at the same place.
    faces = [color if i % 2 == 0 else "none" for i, color in enumerate(COLORS[:6])]
    styles = [(COLORS[i % 6], "osD^v"[i % 5], faces[i % 6]) for i in range(30)]
    looks = assign([k for panel in panels for k in panel.curves], styles)
    dashes = assign([k for panel in panels for k in panel.theory], ("-", "--", ":"))
    marks = assign([k for panel in panels for k in panel.thresholds], ("-", "--", ":"))
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
            label_decades(axes.xaxis)
        if panel.log_y:
            axes.set_yscale("log")
            label_decades(axes.yaxis)
        tidy(axes)
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
    put_legend(figure, handles, columns=beside)
    figure.set_figheight(height + 0.35 + 0.22 * -(-len(handles) // beside))  # panels keep theirs
    return figure


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
