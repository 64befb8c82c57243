"""Mapping over draws with progress, rows made of draws, and the last step of every script."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy import stats
from threadpoolctl import threadpool_limits

from _kit.options import Options
from _kit.report import Result, Row, format_number, percentile_of, reduce, save_result
from perfalign_jax.har.protocol import estimates
from perfalign_jax.plotting import save_figure

Figures = dict[str, tuple[Figure, str]]  # file name to figure and caption

_STARTED = time.perf_counter()
threadpool_limits(1)  # BLAS threads are of no use to many small factorisations


@functools.cache
def _compile(function: Callable[[Any], Any]) -> Any:
    return jax.jit(jax.vmap(function))


def map_draws(function: Callable[[Any], Any], inputs: Any, *, label: str, chunk: int = 20) -> Any:
    """Apply a function of one draw (a key, or arrays) to all draws, vectorised in chunks.

    Draws are along the first axis of every input, and of the NumPy arrays that come back.
    """
    compiled = _compile(function)
    count = len(jax.tree.leaves(inputs)[0])
    chunk = min(chunk, count)
    parts = []
    for start in track(range(0, count, chunk), description=label, transient=True):
        index = np.minimum(np.arange(start, start + chunk), count - 1)  # one shape, one compile
        some = jax.tree.map(lambda leaf, index=index: leaf[index], inputs)
        parts.append(jax.tree.map(np.asarray, compiled(some)))
    return jax.tree.map(lambda *p: np.concatenate(p)[:count], *parts)


def distribution_row(
    quantity: str,
    values: np.ndarray,
    *,
    paper: float | None = None,
    note: str = "",
    rounding: bool = False,
) -> Row:
    """Report draws by their median with its 95 % interval, and where the paper's number falls.

    Errors of random maps have heavy tails (a nearly singular draw of S), so the median says more
    than the mean; the note gives the mean and the middle 95 % of the draws as well. ``rounding``
    marks an error that is floating-point rounding, here as in the paper.
    """
    values = np.sort(np.asarray(values, np.float64))
    few, middle, most = (format_number(v) for v in np.percentile(values, (2.5, 50, 97.5)))
    # Order statistics that enclose the median with probability 95 %, whatever the law.
    below, above = (int(r) for r in stats.binom.ppf((0.025, 0.975), values.size, 0.5))
    low, high = values[max(below - 1, 0)], values[min(above, values.size - 1)]
    mean = format_number(values.mean())
    spread = f"Median of {values.size} draws; mean {mean}, middle 95 % {few} to {most}."
    return Row(
        quantity,
        paper="" if paper is None else format_number(paper),
        ours=middle,
        interval=f"{format_number(low)} to {format_number(high)}",
        verdict="" if paper is None else verdict_on(paper, values, rounding=rounding),
        note=f"{spread} {note}".strip(),
    )


def verdict_on(paper: float, values: np.ndarray, *, rounding: bool = False) -> str:
    """Say whether one published draw may come from the same law as ours."""
    percentile = percentile_of(paper, values)
    where = f"the paper's number at percentile {percentile:.0f} of ours"
    if percentile in (0.0, 100.0):
        where = f"the paper's number {'below' if percentile == 0 else 'above'} all of ours"
    if rounding and np.median(values) < 1e-13:
        return f"reproduced: rounding error, {where}"
    return f"reproduced: {where}" if 2.5 <= percentile <= 97.5 else f"not reproduced: {where}"


def estimate_hits(
    hits: list[np.ndarray], *, against: list[np.ndarray] | None = None, crossed: bool = False
) -> dict[str, Any]:
    """In percent: over several splits a mean with its interval, over one with that over clips.

    With ``against``, hits of another method on the same clips, it is the paired difference. With
    ``crossed`` the runs are training seeds that are scored on the same clips: the interval speaks
    of other seeds and other clips.
    """
    if against is not None:
        hits = [h - a for h, a in zip(hits, against, strict=True)]
    means = [100 * float(h.mean()) for h in hits]
    no_spread = len(hits) == 1 or (crossed and np.ptp(hits) == 0)  # one run, or all or none
    if no_spread and against is None:
        found = estimates.estimate_share(int(hits[0].sum()), len(hits[0]))
    elif crossed and len(hits) > 1:
        found = estimates.estimate_crossed(100 * np.stack(hits))
    else:
        found = estimates.estimate_mean(means if len(hits) > 1 else 100 * hits[0])
    entry = {**dataclasses.asdict(found), "each": means}
    if against is None:  # a share
        entry |= {"low": max(0.0, found.low), "high": min(100.0, found.high)}
    return entry


def describe(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.1f} [{entry['low']:.1f}, {entry['high']:.1f}]"


def finish(
    options: Options,
    name: str,
    *,
    title: str,
    summary: str,
    rows: Sequence[Row],
    values: dict[str, Any],
    figures: Figures | None = None,
    config: dict[str, Any],
    less: str = "",
) -> None:
    """Save what an experiment found, with figures and their captions, and print its table.

    ``less`` is what a quick run has less than the full protocol, as "20 of 500 draws".
    """
    if options.quick and less:
        rows = reduce(rows, f"quick: {less}")
    figures = figures or {}
    for file, (figure, _) in figures.items():
        save_figure(figure, options.out / "figures" / file)
    captions = {file: caption for file, (_, caption) in figures.items()}
    config = {"scale": options.scale, "seed": options.seed} | config
    seconds = time.perf_counter() - _STARTED
    result = Result(name, title, summary, rows, captions, values, config, seconds)
    path = save_result(result, options.out)
    table = Table(title=result.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("quantity, and what it says", min_width=30)
    compared = any(row.paper for row in result.rows)
    if compared:
        table.add_column("paper", max_width=16)
    table.add_column("ours [95 % interval]", min_width=20, max_width=31)
    for row in result.rows:
        # Below it: beside it, a narrow terminal would fold every cell.
        below = [Text(more, style="dim") for more in (row.protocol, row.verdict) if more]
        quantity = Group(Text(row.quantity), *(Padding(text, (0, 0, 0, 2)) for text in below))
        interval = row.interval if row.interval.startswith("[") else f"[{row.interval}]"
        ours = f"{row.ours} {interval}" if row.interval else row.ours
        table.add_row(quantity, *([Text(row.paper)] if compared else []), Text(ours))
    console = Console()
    console.print(table)
    console.print(f"{result.summary}\n{result.seconds:.0f} s; numbers: {path}", highlight=False)
