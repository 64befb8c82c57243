"""The commands that make an alignment, or say what one can be."""

import argparse
import dataclasses
import importlib.util
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from perfalign_jax._console import (
    Hint,
    InputError,
    after_writing,
    computing,
    following,
    in_own_words,
    say_notes,
    show,
    tell,
    waiting,
)
from perfalign_jax.arrays import Moments, RowReader, measure_moments
from perfalign_jax.cli._files import check_files, find_array, is_alignment, load_alignment
from perfalign_jax.cli._hosts import joined, merge
from perfalign_jax.cli._measuring import measure, mirrored, say_if_short, survey

if TYPE_CHECKING:
    from perfalign_jax.types import Alignment

__all__ = ["align", "diagnose", "fit"]


def fit(options: argparse.Namespace) -> None:
    """Align two views as the paper does, and write the alignment."""
    if options.k is None and options.select != "energy":
        raise InputError("-k is required unless --select energy, got none.")
    files = [find_array(spec) for spec in (options.x1, options.x2)]
    check_files(options.out, ".safetensors", files)
    _check_checkpoint(options.checkpoint, files, options.out)
    with joined(options) as (number, count), computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import metrics

        rows = _training_rows(files)
        many = options.hosts is not None
        data = merge(options, rows) if many else survey(rows, checkpoint=options.checkpoint)
        moments = [] if many else _moments_that_vary(data, rows)
        with waiting("fitting"):
            alignment = pa.fit(
                data,
                k=options.k,
                select=options.select,
                method=options.method,
                center=options.center,
                rtol=options.rtol,
            )
        if many:
            _tell_of_hosts(options, alignment, data, notes, number, count)
            return
        del data
        pa.save(alignment, options.out)
        with after_writing(f"the alignment is written to {options.out}"):
            measured, latents = measure(alignment, rows, moments, ((0,), (1,)))
            gap = (latents.means[0] - latents.means[1]) * math.sqrt(rows.n / 2)
            both = np.vstack([*latents.blocks, gap])
            _hint_at_means(moments, options.center)
            facts = {
                "out": str(options.out),
                "n": rows.n,
                "d1": alignment.dims[0],
                "d2": alignment.dims[1],
                "k": alignment.k,
                "method": alignment.method,
                "select": alignment.select,
                "center": alignment.center,
                "dtype": str(rows.dtype),
                **measured,
                "effective_rank": float(metrics.effective_rank(mirrored(both))),
            }
            del facts["ncmae"]
            show(f"alignment written to {options.out}", facts, notes, as_json=options.json)


def align(options: argparse.Namespace) -> None:
    """Align two or more views of your own, everything chosen on held-out rows."""
    if len(options.views) < 2:
        raise InputError(f"align needs two or more views, got {len(options.views)}.")
    sides = None if options.sides is None else _read_sides(options.sides)
    views = [find_array(spec) for spec in options.views]
    mask = options.mask
    labels = None if options.groups is None else find_array(options.groups)
    shown = None if mask in (None, "nan") else find_array(mask)
    others = [file for file in (labels, shown) if file is not None]
    check_files(options.out, ".safetensors", [*views, *others])
    _check_checkpoint(options.checkpoint, [*views, *others], options.out)
    if options.report is not None:
        check_files(options.report, ".html", [], "--report")
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError("--report needs matplotlib, which the extra 'experiments' brings.")
    with joined(options) as (number, count), computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import streaming

        rows = RowReader(*views)
        groups = None if labels is None else labels.rows()
        if groups is not None and groups.shape != (rows.n,):
            raise InputError(
                f"--groups must have shape ({rows.n},), a label for each row, got {groups.shape}."
            )
        if shown is not None:
            mask = shown.rows()
        in_parts = groups is None and mask is None and not options.wrong_pairs
        if options.checkpoint and not in_parts:
            raise InputError(
                "--checkpoint keeps the reading of rows into moments; --mask, --groups and "
                "--wrong-pairs need the rows themselves."
            )
        given: dict[str, Any] = {"sides": sides, "lift": options.lift}
        given["lift"] = None if options.lift == "none" else options.lift
        given |= {"ridge": "auto" if options.ridge is None else options.ridge}
        given |= {"k": "auto" if options.k is None else options.k}
        folds = 5 if options.folds is None else options.folds
        data: Any
        if options.hosts is not None:
            if not in_parts or options.report is not None:
                raise InputError(
                    "--hosts merges moments; --mask, --groups, --wrong-pairs and --report need the "
                    "rows themselves."
                )
            data = merge(options, rows, folds)
            alignment = pa.align(data, **given)
            _tell_of_hosts(options, alignment, data, notes, number, count)
            return
        if rows.size > _MOST_ROWS and in_parts:
            data = streaming.survey(rows, kind="gram", parts=folds, checkpoint=options.checkpoint)
            warnings.warn(
                f"the views hold {rows.size / 2**30:.1f} GiB: aligned from their moments alone, "
                "without a lift.",
                Hint,
                stacklevel=2,
            )
        else:
            say_if_short(options.checkpoint)
            data = rows.whole(look=mask is None)
            given |= {
                "mask": mask,
                "groups": groups,
                "wrong_pairs": options.wrong_pairs,
                "folds": folds,
            }
        with following("trying settings on held-out rows"):
            try:
                alignment = pa.align(data, **given)
            except ValueError as error:  # which counts views; here they have names
                known = {f"x{m + 1}": view.spec for m, view in enumerate(views)}
                error.args = (re.sub(r"\bx\d+\b", lambda m: known.get(m[0], m[0]), str(error)),)
                raise
        pa.save(alignment, options.out)
        with after_writing(f"the alignment is written to {options.out}"):
            choice = cast(Any, alignment.choice)
            facts: dict[str, Any] = {"out": str(options.out), "n": rows.n, "k": alignment.k}
            facts |= {"lift": choice.chosen.lift, "ridge": choice.chosen.ridge}
            facts |= {"held_out_recall_at_1": choice.chosen.recall}
            facts |= {"standard_error": choice.chosen.error, "candidates": choice.candidates}
            if alignment.right_share is not None:
                facts["right_share"] = float(alignment.right_share)
            if options.report is not None:
                with waiting("drawing the page"):
                    _write_report(options, alignment, rows, data, mask, groups)
                facts["report"] = str(options.report)
            if not options.json:
                say_notes(notes)
                tell(f"alignment written to {options.out}\n{choice}")
                if options.report is not None:
                    print(f"page written to {options.report}")
                return
            facts["trials"] = [dataclasses.asdict(trial) for trial in choice.trials]
            show("", facts, notes, as_json=True)


def _tell_of_hosts(
    options: argparse.Namespace,
    alignment: "Alignment",
    data: Any,
    notes: list[warnings.WarningMessage],
    number: int,
    count: int,
) -> None:
    """Write the alignment that every process has found, and what it was fitted to."""
    import perfalign_jax as pa

    samples = sum(part.samples for part in (data if isinstance(data, list) else [data]))
    facts: dict[str, Any] = {"n": samples, "k": alignment.k, "processes": count}
    if number:
        show(f"process {number} of {count} is done", facts, [], as_json=options.json)
        return
    pa.save(alignment, options.out)
    facts = {"out": str(options.out)} | facts
    show(f"alignment written to {options.out}", facts, notes, as_json=options.json)


_MOST_ROWS = 4 * 2**30  # bytes of views that align holds in memory


def _write_report(
    options: argparse.Namespace,
    alignment: "Alignment",
    rows: RowReader,
    data: Any,
    mask: Any,
    groups: Any,
) -> None:
    """Write the page on the rows that the alignment was fitted to, those without a view left out.

    Where only moments were held, some runs of rows are read again.
    """
    import jax

    from perfalign_jax.page import write_page

    views, names = data, np.arange(rows.n)
    if rows.size > _MOST_ROWS and isinstance(data, list):
        starts = np.linspace(0, rows.n - _RUN, _RUNS).astype(int)
        names = np.concatenate([np.arange(start, start + _RUN) for start in starts])
        views = tuple(
            np.concatenate([file.rows(start, start + _RUN) for start in starts]).astype(rows.dtype)
            for file in rows.files
        )
    elif mask is not None:
        there = (
            mask
            if isinstance(mask, np.ndarray)
            else ~np.stack([np.isnan(x).all(axis=1) for x in data], axis=1)
        )
        names = np.flatnonzero(there.all(axis=1))
        views = tuple(x[names] for x in data)
    title = f"Alignment {options.out.name}"
    key = jax.random.key(options.seed)
    write_page(
        alignment,
        views,
        options.report,
        key=key,
        names=names,
        groups=None if groups is None else np.asarray(groups)[names],
        fitted=True,
        title=title,
    )


_RUNS, _RUN = 20, 100  # of rows, where they are more than memory holds


def _read_sides(text: str) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(int(m) for m in side.split(",")) for side in text.split("/"))
    except ValueError:
        raise InputError(
            f"--sides must name views such as 0,1/2 (0 and 1 against 2), got {text!r}."
        ) from None


def diagnose(options: argparse.Namespace) -> None:
    """Say what views allow (ranks, null space, information in it), or what an alignment is."""
    given = options.files
    described = is_alignment(given[0])
    files = [find_array(spec) for spec in given[described:]]
    if len(files) < 2 and (files or not described):
        raise InputError(f"diagnose needs two or more views, got {len(files)}.")
    with computing() as notes:
        import perfalign_jax as pa

        facts: dict[str, Any] = {}
        said = []
        center = options.center
        if described:
            alignment = load_alignment(given[0])
            facts["alignment"], text = _describe(alignment)
            said.append(text)
            center = center or alignment.center
        if files:
            rows = _training_rows(files)
            data = survey(rows)
            moments = _moments_that_vary(data, rows)
            with waiting("diagnosing"):
                found = pa.diagnose(data, center=center, rtol=options.rtol)
            _hint_at_means(moments, center)
            said.append(str(found))
            counts = ("rank", "null_dimension", "informative_dimension", "trivial_dimension")
            facts |= {name: int(getattr(found, name)) for name in (*counts, "samples")}
            arrays = ("ranks", "dims", "center", "cutoff", "singular_values", "energies")
            for name in (*arrays, "view_energies"):
                facts[name] = np.asarray(getattr(found, name)).tolist()
        if not options.json:
            say_notes(notes)
            tell(in_own_words("\n".join(said)))
            return
        show("", facts, notes, as_json=True)


def _describe(alignment: "Alignment") -> tuple[dict[str, Any], str]:
    """What an alignment says of itself, as facts and in words."""
    facts: dict[str, Any] = {"k": alignment.k, "dims": list(alignment.dims)}
    facts |= {"method": alignment.method, "center": alignment.center}
    facts |= {"sides": [list(side) for side in alignment.sides]}
    lines = [repr(alignment)]
    if alignment.evidence is not None:
        facts["reliability"] = np.asarray(alignment.reliability, np.float64).tolist()
        for side, values in enumerate(np.asarray(alignment.reliability)):
            shown = " ".join(f"{value:.2f}" for value in values[:10])
            more = f" and {len(values) - 10} more" if len(values) > 10 else ""
            lines.append(f"reliability of side {side}'s axes: {shown}{more}")
    if alignment.right_share is not None:
        facts["right_share"] = float(alignment.right_share)
        lines.append(f"{facts['right_share']:.1%} of the pairs are estimated to be right")
    if alignment.choice is not None:
        facts["choice"] = dataclasses.asdict(alignment.choice)
        lines.append(str(alignment.choice))
    return facts, "\n".join(lines)


def _training_rows(files: Sequence[Any]) -> RowReader:
    from perfalign_jax.types import PrecisionWarning

    rows = RowReader(*files)
    if rows.n < 2:
        file = rows.files[0]
        raise InputError(f"{file.spec} must have at least 2 rows, got shape {file.shape}.")
    if len(set(rows.dtypes)) > 1:
        each = " and ".join(
            f"{f.spec} in {t}" for f, t in zip(rows.files, rows.dtypes, strict=True)
        )
        warnings.warn(f"{each}: computed in {rows.dtype}.", PrecisionWarning, stacklevel=2)
    return rows


def _check_checkpoint(path: Path | None, inputs: Sequence[Any], out: Path) -> None:
    if path is None:
        return
    check_files(path, ".safetensors", inputs, "--checkpoint")
    if path.resolve() == out.resolve():
        raise InputError(f"--checkpoint and --out must be two files, got {path} for both.")


def _moments_that_vary(data: Any, rows: RowReader) -> list[Moments]:
    """The views' moments, or an error where all rows of one are equal, but for rounding."""
    moments = measure_moments(data)
    least = (8 * float(np.finfo(rows.dtype).eps)) ** 2
    for file, view in zip(rows.files, moments, strict=True):
        if view.spread <= least * view.common:
            raise InputError(f"{file.spec} has no variance: all its {rows.n:,} rows are equal.")
    return moments


def _hint_at_means(moments: list[Moments], center: bool) -> None:
    for m, (_, _, common, spread) in enumerate(moments):
        share = common / (common + spread) if common else 0.0
        if share > 1 / 2 and not center:
            warnings.warn(
                f"the mean holds {share:.0%} of view {m}'s energy and passes for something that "
                "the views share; --center removes it.",
                Hint,
                stacklevel=2,
            )
