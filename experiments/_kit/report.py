"""Result files of the experiments, and the report that sets the paper's numbers beside ours."""

import base64
import dataclasses
import html
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from perfalign_jax.serialization import write_whole


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table that sets the paper beside this project; what is missing is empty."""

    quantity: str
    paper: str = ""  # the number as printed
    ours: str = ""
    interval: str = ""  # of 95 %
    verdict: str = ""  # what the comparison says, in a few words
    note: str = ""
    protocol: str = ""  # what was less than the full protocol; see ``reduce``


def reduce(rows: Sequence[Row], protocol: str) -> list[Row]:
    """Mark rows of less than the full protocol, as "quick: 20 of 500 draws", if of any less.

    They are not set beside the paper: its number goes, and the verdict on it.
    """
    if not protocol:
        return list(rows)
    return [
        dataclasses.replace(
            row, protocol=protocol, paper="", verdict="" if row.paper else row.verdict
        )
        for row in rows
    ]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one experiment leaves behind, in ``<name>.json``."""

    name: str
    title: str
    summary: str  # one paragraph: what was done and what it says
    rows: Sequence[Row] = ()
    figures: dict[str, str] = dataclasses.field(default_factory=dict)  # file name to caption
    values: dict[str, Any] = dataclasses.field(default_factory=dict)  # every measured number
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


def percentile_of(value: float, values: np.ndarray) -> float:
    """Return the share of ``values`` below ``value``, in percent, ties counting half."""
    return float(stats.percentileofscore(np.asarray(values), value, kind="mean"))


def format_number(value: float) -> str:
    """Format a number for a table: three digits, scientific where that is shorter."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def provenance() -> dict[str, str]:
    """Versions, device (of a processor the number and name of its cores), and default dtype."""
    names = ("perfalign-jax", "jax", "jaxlib", "numpy", "scipy", "scikit-learn", "optax")
    device = jax.devices()[0]
    return {
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "device": _processor() if device.platform == "cpu" else str(device.device_kind),
        "dtype": "float64" if jax.config.read("jax_enable_x64") else "float32",
    }


def _processor() -> str:
    """Name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{len(names) or os.cpu_count()} x {name}"


def save_result(result: Result, out: Path) -> Path:
    """Write a result to ``out/<name>.json``, with the versions, device and dtype behind it.

    Every figure it names must lie in ``out/figures``.
    """
    out.mkdir(parents=True, exist_ok=True)
    for figure in result.figures:
        if not (out / "figures" / figure).is_file():
            raise FileNotFoundError(f"result {result.name!r} names a missing figure: {figure}.")
    content = {**dataclasses.asdict(result), "provenance": provenance()}
    path = out / f"{result.name}.json"
    write_whole(path, json.dumps(_plain(content), indent=1, allow_nan=False).encode())
    return path


def _plain(value: Any) -> Any:
    """The same of nothing but what JSON knows; null for numbers that are infinite or none."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(np.asarray(value).tolist())


def load_result(path: Path) -> dict[str, Any]:
    """Read a result file that ``save_result`` wrote; any other is a ``ValueError``."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a result file: {error}") from None
    if not isinstance(content, dict) or not {"name", "title", "rows"} <= set(content):
        raise ValueError(f"{path} is not a result file.")
    return content


_COLUMNS = ("quantity", "protocol", "paper", "ours", "interval", "verdict", "note")
_HEADINGS = {"protocol": "less than the full protocol", "interval": "95 % interval"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
         border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } td { font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; } td:first-child { min-width: 9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption, .made { color: #555;
font-size: .85rem; } .made { overflow-wrap: anywhere; }
"""


def write_report(out: Path, *, order: Sequence[str], title: str) -> tuple[Path, Path]:
    """Write ``report.html`` (self-contained, figures inside) and ``report.md`` from result files.

    Experiments of the order that have no file are listed as not run.
    """
    missing = [name for name in order if not (out / f"{name}.json").is_file()]
    results = [load_result(out / f"{name}.json") for name in order if name not in missing]
    notes = [f"Not run: {', '.join(missing)}."] if missing else []
    reduced = [r["name"] for r in results if r["config"].get("scale") == "quick"]
    if reduced:
        notes.append(
            f"Run with --quick, too small to be compared with the paper: {', '.join(reduced)}."
        )
    page, text = out / "report.html", out / "report.md"
    write_whole(page, _as_html(title, notes, results, out).encode())
    write_whole(text, as_markdown(title, notes, results).encode())
    return page, text


def _made(result: dict[str, Any]) -> str:
    parts = {**result["config"], **result["provenance"]}
    took = f"{result['seconds']:.0f} s; " if result["seconds"] else ""  # none if transcribed
    return took + ", ".join(f"{k} {v}" for k, v in parts.items())


def _cell(text: str) -> str:
    """A table cell; numbers with their interval stay in one line, sentences do not."""
    kind = " class='number'" if len(text) <= 24 and any(c.isdigit() for c in text) else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _as_html(title: str, notes: list[str], results: list[dict[str, Any]], out: Path) -> str:
    e = html.escape
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{e(title)}</title>",
        f"<style>{_STYLE}</style></head><body><h1>{e(title)}</h1>",
        *(f"<p><strong>{e(note)}</strong></p>" for note in notes),
    ]
    for result in results:
        parts.append(f"<h2>{e(result['title'])}</h2><p>{e(result['summary'])}</p>")
        if result["rows"]:
            shown = _columns(result["rows"])
            head = "".join(f"<th>{_HEADINGS.get(c, c)}</th>" for c in shown)
            cells = ["".join(_cell(row[c]) for c in shown) for row in result["rows"]]
            body = "".join(f"<tr>{line}</tr>" for line in cells)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        for name, caption in result["figures"].items():
            data = base64.b64encode((out / "figures" / name).read_bytes()).decode()
            parts.append(
                f"<figure><img alt='{e(caption)}' src='data:image/png;base64,{data}'>"
                f"<figcaption>{e(caption)}</figcaption></figure>"
            )
        parts.append(f"<p class='made'>{e(_made(result))}</p>")
    return "\n".join([*parts, "</body></html>\n"])


def as_markdown(title: str, notes: Sequence[str], results: Sequence[dict[str, Any]]) -> str:
    """Return a page in Markdown: a section for each result file, with its table and figures."""
    parts = [f"# {title}", *(f"**{note}**" for note in notes)]
    for result in results:
        parts += [f"## {result['title']}", result["summary"]]
        if result["rows"]:
            shown = _columns(result["rows"])
            lines = [[_HEADINGS.get(c, c) for c in shown], ["---"] * len(shown)]
            lines += [[row[c].replace("|", "\\|") for c in shown] for row in result["rows"]]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += [f"![{text}](figures/{name})" for name, text in result["figures"].items()]
        parts.append(f"*{_made(result)}*")
    return "\n\n".join(parts) + "\n"


def _columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """The columns in which any row says something."""
    return [name for name in _COLUMNS if any(row[name] for row in rows)]
