"""What rows say of an alignment, drawn: the panels of one figure, or of a page."""

import io
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from perfalign_jax.inspection import Inspection, inspect
from perfalign_jax.plotting._looks import COLORS, GREY, dot, make_panels, tidy
from perfalign_jax.types import Alignment, Views

__all__ = ["PANELS", "draw_svg", "plot_alignment"]

_LEVEL = 0.05
_DOUBTFUL = 12  # pairs that are named
# What a page may set to suit a dark screen.
_VARIABLES = {
    "#000000": "currentColor",
    "#dddddd": "var(--grid)",
    COLORS[0]: "var(--first)",
    COLORS[1]: "var(--second)",
}


def plot_alignment(
    alignment: Alignment,
    views: Views,
    *,
    seed: int = 0,
    sides: tuple[int, int] = (0, 1),
    names: Any = None,
    groups: Any = None,
) -> Figure:
    """Draw what rows say of an alignment: five panels, two sides of it against each other.

    The rows shown are those given. Whether the alignment was fitted to them is not known here: if
    it was, errors and ranks look better than they will be, and the held-out correlations do not.

    Args:
        alignment: an alignment of any method.
        views: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, one for each view.
        seed: of the permutation test of the axes: the same rows make the same figure.
        sides: which two of the alignment's sides are compared, counted from 0.
        names: shape ``(n,)``, integers that the rows are called by; 0 to n - 1 if not given.
        groups: shape ``(n,)``, as in ``inspection.inspect``.

    Returns:
        The figure: singular values of the stacked views, and where perfect alignment ends;
        correlation of each axis, and how many are more than chance; scores of right pairs and of
        shuffled ones, with the errors of telling them apart; how many rows find their partner among
        so many; the least credible pairs.

    Raises:
        TypeError, ValueError: as ``inspection.inspect``, which measures all this.

    Source: paper Theorem 2.2 (the spectrum); the rest are figures of this package.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> from perfalign_jax import plotting
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> alignment = pa.align((x, x + 1), lift=None)
        >>> len(plotting.plot_alignment(alignment, (x, x + 1)).axes)
        5
    """
    key = jax.random.key(seed)
    found = inspect(alignment, views, key=key, sides=sides, names=names, groups=groups)
    figure, panels = make_panels(len(PANELS), 2, row=3.6, width=9.0)
    for axes, draw in zip(panels, PANELS.values(), strict=True):
        draw(axes, found)
    return figure


def draw_svg(found: Inspection, panel: str, *, title: str) -> str:
    """Return one panel as SVG to stand inside a page, whose colours it takes.

    Ids are numbered, so that several such figures on a page do not share any, and the same
    inspection gives the same text.
    """
    figure, (axes,) = make_panels(1, 1, row=3.3, width=4.4)
    PANELS[panel](axes, found)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    names = dict.fromkeys(re.findall(r'\bid="([^"]+)"', text))
    numbers = {name: f"{panel}{i}" for i, name in enumerate(names)}
    text = re.sub(
        r'(\bid="|href="#|url\(#)([^")]+)', lambda m: m[1] + numbers.get(m[2], m[2]), text
    )
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    named = f'<svg role="img" aria-label="{title}" fill="currentColor"'
    text = text.replace("<svg", named, 1)
    for color, word in _VARIABLES.items():
        text = text.replace(color.lower(), word)
    return text


def _draw_spectrum(axes: Axes, found: Inspection) -> None:
    diagnosis = found.diagnosis
    values = np.asarray(diagnosis.singular_values, np.float64)
    d, rank = values.size, int(diagnosis.rank)
    informative, trivial = int(diagnosis.informative_dimension), int(diagnosis.trivial_dimension)
    floor = max(float(diagnosis.cutoff), float(np.finfo(np.float32).tiny))
    shown = np.maximum(values, floor)
    index, size = np.arange(1, d + 1), 5 if d <= 40 else 3
    axes.semilogy(index[:rank], shown[:rank], "o", ms=size, color=COLORS[0])
    axes.semilogy(index[rank:], shown[rank:], "v", ms=size, color=COLORS[1])
    axes.axhline(floor, color=GREY, lw=0.9, ls=":")
    handles = [dot(COLORS[0], "o", f"approximate ({rank})")]
    if rank < d:
        axes.axvline(rank + 0.5, color=GREY, lw=1.2, ls="--")
        axes.axvspan(rank + 0.5, d + 0.5, color=COLORS[1], alpha=0.1, lw=0)
        handles.append(dot(COLORS[1], "v", f"perfect ({d - rank})"))
    handles.append(Line2D([], [], color=GREY, lw=0.9, ls=":", label="counts as zero"))
    axes.set_xlim(0.5 - 0.02 * d, d + 0.5 + 0.02 * d)
    title = f"Perfect: {informative} informative, {trivial} trivial directions"
    _finish(axes, title if rank < d else "No direction aligns perfectly", handles)
    axes.set(xlabel="direction, by singular value", ylabel="singular value (data units, times √n)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _draw_reliability(axes: Axes, found: Inspection) -> None:
    test, held_out = found.test, found.reliability
    real, tested = test.count(level=_LEVEL), len(test.correlations)
    handles = []
    if held_out.size:
        place = np.arange(1, held_out.size + 1)
        axes.plot(place, held_out, "o-", color=COLORS[0], ms=4, lw=1)
        handles.append(
            Line2D([], [], color=COLORS[0], marker="o", ms=4, lw=1, label="held-out rows")
        )
    place = np.arange(1, tested + 1)
    look: dict[str, Any] = {"ls": "", "marker": "s", "color": COLORS[1], "ms": 6}
    axes.plot(place[:real], test.correlations[:real], mfc="none", **look)
    handles.append(Line2D([], [], mfc="none", label=f"these rows, p ≤ {_LEVEL}", **look))
    if real < tested:
        axes.plot(place[real:], test.correlations[real:], **look | {"marker": "x"})
        handles.append(Line2D([], [], label="not more than chance", **look | {"marker": "x"}))
    axes.axvline(real + 0.5, color=GREY, lw=1.2, ls="--")
    axes.set_ylim(-0.03, 1.05)
    noun = "axis is" if real == 1 else "axes are"
    _finish(axes, f"{found.real_axes} {noun} more than chance", handles)
    axes.set(xlabel="axis", ylabel="correlation of the two sides")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _draw_evidence(axes: Axes, found: Inspection) -> None:
    right, wrong, cut = found.right, found.wrong, found.threshold
    ends = [np.quantile(right, (0.005, 0.995)), np.quantile(wrong, (0.05, 0.995)), [cut, cut]]
    low, high = np.min(ends), np.max(ends)
    bins = np.linspace(low, high if high > low else low + 1, 41)
    for scores, color, face in ((wrong, COLORS[1], "none"), (right, COLORS[0], COLORS[0])):
        # What lies outside is in the outermost bins.
        heights, _ = np.histogram(np.clip(scores, bins[0], bins[-1]), bins)
        share = heights / scores.size
        if face != "none":
            axes.stairs(share, bins, fill=True, color=face, alpha=0.35)
        axes.stairs(share, bins, color=color, lw=1.5, ls="-" if face != "none" else "--")
    axes.axvline(cut, color=GREY, lw=1.2, ls=":")
    where = "even odds" if found.alignment.evidence is not None else "errors meet"
    handles = [
        Patch(facecolor=COLORS[0], edgecolor=COLORS[0], alpha=0.45, label="right pairs"),
        Line2D([], [], color=COLORS[1], lw=1.5, ls="--", label="shuffled pairs"),
        Line2D([], [], color=GREY, lw=1.2, ls=":", label=where),
    ]
    errors = f"Missed {found.missed:.1%}, false alarms {found.false_alarms:.1%}"
    _finish(axes, errors, handles)
    axes.set(xlabel=_score_label(found), ylabel="share of the pairs")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _draw_retrieval(axes: Axes, found: Inspection) -> None:
    count = found.ranks.shape[1]
    at = np.unique(np.geomspace(1, count, 60).round().astype(int))
    recalls = found.recall(at)
    handles = []
    for recall, color, style, way in (
        (recalls[0], COLORS[0], "-", (0, 1)),
        (recalls[1], COLORS[1], "--", (1, 0)),
    ):
        asked, sought = (_name_side(found.views[s]) for s in way)
        (line,) = axes.plot(at, 100 * recall, color=color, ls=style, lw=1.8)
        line.set_label(f"{asked} to {sought}")
        handles.append(line)
    (chance,) = axes.plot(at, 100 * at / count, color=GREY, ls=":", lw=1.2, label="chance")
    first = recalls[:, 0].mean()
    _finish(axes, f"{first:.1%} find their partner first of {count:,}", [*handles, chance])
    axes.set(xscale="log", ylim=(-3, 103), xlabel="candidates looked at")
    axes.set_ylabel("rows that find their partner (%)")


def _draw_doubtful(axes: Axes, found: Inspection) -> None:
    names, scores = found.least_credible(_DOUBTFUL)
    places = np.arange(len(names))[::-1]
    middle = float(np.median(found.scores))
    for place, score in zip(places, scores, strict=True):
        axes.plot([score, middle], [place, place], color=COLORS[0], lw=0.8, alpha=0.6)
    axes.plot(scores, places, "D", color=COLORS[0], ms=5)
    axes.axvline(found.threshold, color=GREY, lw=1.2, ls=":")
    axes.axvline(middle, color=COLORS[1], lw=1.2, ls="--")
    axes.set_yticks(places, [f"{name:,}" for name in names])
    handles = [
        dot(COLORS[0], "D", "pair"),
        Line2D([], [], color=COLORS[1], lw=1.2, ls="--", label="median of all"),
        Line2D([], [], color=GREY, lw=1.2, ls=":", label="threshold"),
    ]
    _finish(axes, f"Least credible of {found.rows:,} pairs", handles)
    axes.set(xlabel=_score_label(found), ylabel="row")


PANELS: dict[str, Callable[[Axes, Inspection], None]] = {
    "spectrum": _draw_spectrum,
    "reliability": _draw_reliability,
    "evidence": _draw_evidence,
    "retrieval": _draw_retrieval,
    "pairs": _draw_doubtful,
}


def _score_label(found: Inspection) -> str:
    if found.alignment.evidence is not None:
        return "log-odds of being the same thing (nats)"
    return "negative distance (latent units)"


def _name_side(views: tuple[int, ...]) -> str:
    return f"view{'s' if len(views) > 1 else ''} {', '.join(map(str, views))}"


def _finish(axes: Axes, title: str, handles: list[Any]) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=9)
    tidy(axes)
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        handlelength=1.6,
        columnspacing=1.2,
    )
