"""One page that shows an alignment: a single HTML file that loads nothing from anywhere."""

import html
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from perfalign_jax.inspection import Inspection, inspect
from perfalign_jax.plotting._alignment import PANELS, draw_svg
from perfalign_jax.serialization import write_whole
from perfalign_jax.types import Alignment, Choice, Trial, Views

__all__ = ["write_page"]

_NAMED = 12  # pairs in the table
_ROWS = {
    None: "Whether the alignment was fitted to the rows shown is not known to this page; if it "
    "was, retrieval and errors look better than on new rows.",
    True: "The rows shown are those the alignment was fitted to: retrieval and errors look better "
    "than on new rows; correlations of held-out rows do not.",
    False: "The rows shown were held out of the fit.",
}


def write_page(
    alignment: Alignment,
    views: Views,
    path: str | os.PathLike[str],
    *,
    key: Key[Array, ""],
    sides: tuple[int, int] = (0, 1),
    names: Any = None,
    groups: Any = None,
    fitted: bool | None = None,
    title: str = "Alignment",
) -> Inspection:
    """Write one HTML file with what ``plotting.plot_alignment`` draws, the choice, and tables.

    Figures are part of the file; it takes the reader's light or dark colours, one column on a
    phone, two on a wide screen.

    Args:
        alignment: an alignment of any method.
        views: paired rows ``(x1, x2, ...)`` of shapes ``(n, d_m)``, one for each view.
        path: file to write; it appears whole or not at all.
        key: random key of the permutation test of the axes.
        sides: which two of the alignment's sides are compared, counted from 0.
        names: shape ``(n,)``, integers that the rows are called by; 0 to n - 1 if not given.
        groups: shape ``(n,)``, as in ``inspection.inspect``.
        fitted: whether the alignment was fitted to these rows; the page says so, or that it is not
            known.
        title: heading.

    Returns:
        What was measured, of which the page tells.

    Raises:
        TypeError, ValueError: as ``inspection.inspect``.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, jax, numpy as np, perfalign_jax as pa
        >>> from perfalign_jax.page import write_page
        >>> x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/page.html"
        ...     found = write_page(pa.fit((x, x), k=3), (x, x), path, key=jax.random.key(0))
        ...     open(path).read().count("<svg")
        5
    """
    found = inspect(alignment, views, key=key, sides=sides, names=names, groups=groups)
    write_whole(path, _compose(found, title, fitted).encode())
    return found


def _compose(found: Inspection, title: str, fitted: bool | None) -> str:
    alignment, e = found.alignment, html.escape
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{e(title)}</title><style>{_STYLE}</style></head><body><header><h1>{e(title)}</h1>",
        f"<p>{_describe(found)}</p><p class='rows'>{_ROWS[fitted]}</p></header>",
        f"<dl class='facts'>{''.join(_list_facts(found))}</dl><main>",
    ]
    for panel in PANELS:
        text = e(_caption(panel, found))
        svg = draw_svg(found, panel, title=e(_NAMES[panel], quote=True))
        parts.append(
            f"<figure><h2>{_NAMES[panel]}</h2>{svg}<figcaption>{text}</figcaption></figure>"
        )
    names, scores = found.least_credible(_NAMED)
    head = ["row", f"score ({found.unit})"]
    body = [[f"{name:,}", f"{score:.3g}"] for name, score in zip(names, scores, strict=True)]
    if alignment.evidence is not None:
        head.append("probability at even odds")
        for line, score in zip(body, scores, strict=True):
            line.append(f"{1 / (1 + np.exp(-max(score, -700))):.3f}")
    parts.append(f"<section><h2>Least credible pairs</h2>{_table(head, body)}</section>")
    if alignment.choice is not None:
        parts.append(f"<section class='wide'>{_tell_choice(alignment.choice)}</section>")
    made = f"perfalign_jax on JAX {jax.__version__}, {alignment.offset.dtype}"
    return "\n".join([*parts, f"</main><footer>{made}</footer></body></html>\n"])


def _describe(found: Inspection) -> str:
    alignment = found.alignment
    sides = " against ".join(
        f"view{'s' if len(views) > 1 else ''} {', '.join(map(str, views))}" for views in found.views
    )
    features = ", ".join(f"{d:,}" for d in alignment.dims)
    return (
        f"{found.rows:,} paired rows, {sides}; views of {features} features, {alignment.k} latent "
        f"dimensions, method {html.escape(alignment.method)}."
    )


def _list_facts(found: Inspection) -> Iterable[str]:
    compared = found.ranks.shape[1]
    recall = float(found.recall([1]).mean())
    error = (recall * (1 - recall) / compared) ** 0.5
    perfect = int(found.diagnosis.null_dimension)
    where = "even odds" if found.alignment.evidence is not None else "where errors meet"
    facts = [
        (f"{recall:.1%}", f"± {error:.1%}: partner found first of {compared:,} (R@1)"),
        (f"{found.missed:.1%}", f"right pairs missed at {where}"),
        (f"{found.false_alarms:.1%}", f"shuffled pairs taken for right at {where}"),
        (found.real_axes, "axes that are more than chance (p ≤ 0.05)"),
        (f"{perfect:,}", "directions that align perfectly"),
    ]
    share = found.alignment.right_share
    if share is not None:
        facts.append((f"{float(share):.1%}", "of the pairs are estimated to be right"))
    for value, text in facts:
        yield f"<div><dt>{text}</dt><dd>{value}</dd></div>"


_NAMES = {
    "spectrum": "What the views allow",
    "reliability": "Which axes to trust",
    "evidence": "Right pairs and shuffled ones",
    "retrieval": "Finding the partner",
    "pairs": "The pairs to look at",
}


def _caption(panel: str, found: Inspection) -> str:
    compared = found.ranks.shape[1]
    if panel == "spectrum":
        return (
            "Singular values of the stacked views as they are, before any lift. Directions whose "
            "value counts as zero align perfectly; of them only the informative ones "
            "carry anything of the data. All others align approximately."
        )
    if panel == "reliability":
        held_out = (
            "Dots: correlation of the alignment's axes on rows it was not fitted to. "
            if found.reliability.size
            else "The alignment has no held-out correlations, as align gives them. "
        )
        return held_out + (
            f"Squares: correlations of the rows shown, in {found.coordinates[0]} and "
            f"{found.coordinates[1]} principal coordinates of the two sides; those left of the "
            f"dashed line are larger than under {found.test.permutations} permutations of the rows "
            "or, where there are any, of groups."
        )
    if panel == "evidence":
        return (
            f"Scores of {compared:,} rows with their partners and with all others' partners. "
            "Outermost bars hold what lies beyond them."
        )
    if panel == "retrieval":
        return (
            f"Share of {compared:,} rows whose partner is among the most credible candidates, "
            "asked from either side; ties share their places."
        )
    return (
        "Rows whose partner is least credible of all that were given: the first to check where "
        "some pairs may be wrong."
    )


def _tell_choice(choice: Choice) -> str:
    best: dict[str, Trial] = {}
    for trial in choice.trials:
        if trial.lift not in best or trial.recall > best[trial.lift].recall:
            best[trial.lift] = trial
    trials = [choice.chosen, *(trial for trial in best.values() if trial != choice.chosen)]
    body = [
        [
            "chosen" if trial is choice.chosen else "best of its lift",
            trial.lift,
            f"{trial.ridge:.3g}",
            str(trial.k),
            "none" if np.isnan(trial.recall) else f"{trial.recall:.1%} ± {trial.error:.1%}",
        ]
        for trial in trials
    ]
    head = ["", "lift", "ridge", "axes", "held-out R@1"]
    counted = (
        f" {len(choice.trials)} settings, R@1 of {choice.rows:,} held-out rows among "
        f"{choice.candidates:,} candidates."
        if choice.rows
        else ""
    )
    notes = "".join(f"<li>{html.escape(remark)}</li>" for remark in choice.remarks)
    return (
        f"<h2>What was chosen</h2><p>{html.escape(choice.reason[:1].upper() + choice.reason[1:])}."
        f"{counted} The ridge is relative to the mean eigenvalue.</p>"
        f"{_table(head, body)}<ul>{notes}</ul>"
    )


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in body]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class='table'><table><tr>{heads}</tr>{rows}</table></div>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1a1a1a;--paper:#fff;--soft:#f4f5f7;--grid:#dddddd;
--dim:#595959;--first:#0072b2;--second:#d55e00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e6e6;--paper:#16181c;--soft:#21242a;--grid:#3a3f47;
--dim:#a5a9b0;--first:#56b4e9;--second:#e69f00}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:1rem;font:16px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.1rem;margin:0 0 .5rem}header p{margin:.3rem 0}
.rows,figcaption,footer,dt{color:var(--dim);font-size:.875rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.6rem;
margin:1rem 0}
.facts div{background:var(--soft);border-radius:8px;padding:.6rem .8rem;display:flex;
flex-direction:column-reverse;justify-content:flex-end}
dd{margin:0;font-size:1.5rem;font-weight:600}
main{display:grid;grid-template-columns:minmax(0,1fr);gap:1rem}
@media(min-width:800px){main{grid-template-columns:repeat(2,minmax(0,1fr))}.wide{grid-column:1/-1}}
figure,section{margin:0;padding:.9rem;background:var(--soft);border-radius:8px}
svg{width:100%;height:auto;display:block;color:var(--ink)}
.table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--grid)}
td{font-variant-numeric:tabular-nums}footer{margin:1rem 0}
"""
