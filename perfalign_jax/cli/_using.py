"""The commands that use an alignment, on files larger than memory: blocks in, blocks out."""

import argparse
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from perfalign_jax._console import InputError, after_writing, computing, show, waiting
from perfalign_jax.arrays import RowReader, measure_moments
from perfalign_jax.cli._files import (
    check_files,
    find_arrays,
    load_alignment,
    open_rows,
    write_header,
)
from perfalign_jax.cli._measuring import encode_rows, measure, mirrored, survey

if TYPE_CHECKING:
    from perfalign_jax.types import Alignment

__all__ = ["pairs", "predict", "score", "search", "transform"]

_MOST_RANKED = 10_000  # rows that score compares with each other
_MOST_SORTED = 1_000_000  # log-odds whose median is taken


def transform(options: argparse.Namespace) -> None:
    """Map one view, or several together, into the shared latent space."""
    from perfalign_jax.serialization import open_whole

    files = find_arrays(options.x, options.view, "--view")
    check_files(options.out, ".npy", [options.alignment, *files])
    with computing() as notes:
        alignment = load_alignment(options.alignment)
        views = _check_views(options.view, "--view", alignment)
        rows = open_rows(files, alignment, views)
        with open_whole(options.out) as file:
            write_header(file, rows.dtype, (rows.n, alignment.k))
            for block in rows.blocks("transforming"):
                file.write(np.asarray(encode_rows(alignment, views, block)).tobytes())
        with after_writing(f"the latents are written to {options.out}"):
            facts = {"out": str(options.out), "n": rows.n, "k": alignment.k}
            show(f"latents written to {options.out}", facts, notes, as_json=options.json)


def predict(options: argparse.Namespace) -> None:
    """Predict one view from another, such as a new embedding from the old."""
    from perfalign_jax.serialization import open_whole

    check_files(options.out, ".npy", [options.alignment])
    with computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax.solver import sides_of

        alignment = load_alignment(options.alignment)
        source, target = _check_sides(options, alignment)
        if options.target is None:  # of the first side that is not predicted from
            others = (side for side in sides_of(alignment) if not set(side) & set(source))
            target = next(others, target)[:1]
        if len(target) > 1:
            raise InputError(f"--target must be one view to predict, got {len(target)}.")
        files = find_arrays(options.x, source, "--source")
        check_files(options.out, ".npy", files)
        rows = open_rows(files, alignment, source)
        width = alignment.dims[target[0]]
        with open_whole(options.out) as file:
            write_header(file, rows.dtype, (rows.n, width))
            for block in rows.blocks("predicting"):
                found = (
                    pa.predict(alignment, block[0], source=source[0], target=target[0])
                    if len(source) == 1
                    else pa.predict(alignment, _by_view(source, block), target=target[0])
                )
                file.write(np.asarray(found).tobytes())
        with after_writing(f"the predictions are written to {options.out}"):
            facts = {"out": str(options.out), "n": rows.n, "features": width}
            show(f"predictions written to {options.out}", facts, notes, as_json=options.json)


def search(options: argparse.Namespace) -> None:
    """Find the most credible partners of every query among the candidates."""
    check_files(options.out, ".npz", [options.alignment])
    with computing() as notes:
        from perfalign_jax.cli._searching import write_hits

        alignment = load_alignment(options.alignment)
        source, target = _check_sides(options, alignment)
        given = [
            find_arrays(options.queries, source, "--source"),
            find_arrays(options.candidates, target, "--target"),
        ]
        check_files(options.out, ".npz", [*given[0], *given[1]])
        queries, candidates = (
            open_rows(files, alignment, views)
            for files, views in zip(given, (source, target), strict=True)
        )
        top = min(10, max(candidates.n, 1)) if options.top is None else options.top
        probability = write_hits(alignment, queries, candidates, source, target, top, options.out)
        with after_writing(f"the hits are written to {options.out}"):
            facts: dict[str, Any] = {"out": str(options.out)}
            facts |= {"queries": queries.n, "candidates": candidates.n}
            facts |= {"mean_probability": probability}
            show(f"hits written to {options.out}", facts, notes, as_json=options.json)


def pairs(options: argparse.Namespace) -> None:
    """Say how credible each pair of rows is, least credible first."""
    from perfalign_jax.serialization import open_whole

    if options.show < 0:
        raise InputError(f"--show must be at least 0, got {options.show}.")
    check_files(options.out, ".npy", [options.alignment])
    with computing() as notes:
        import perfalign_jax as pa

        alignment = load_alignment(options.alignment)
        rows, (source, target) = _open_both(options, alignment)
        check_files(options.out, ".npy", rows.files)
        below, start = 0, 0
        least: list[tuple[float, int]] = []
        with open_whole(options.out) as file:
            write_header(file, rows.dtype, (rows.n,))
            for block in rows.blocks("weighing"):
                first, second = block[: len(source)], block[len(source) :]
                given = _by_view(source, first), _by_view(target, second)
                odds = np.asarray(
                    pa.log_odds(alignment, *given, source=None, target=None), rows.dtype
                )
                file.write(odds.tobytes())
                below += int((odds < 0).sum())
                order = np.argsort(odds, kind="stable")[: options.show]
                new = zip(odds[order].tolist(), (start + order).tolist(), strict=True)
                least = sorted([*least, *new])[: options.show]
                start += len(odds)
        with after_writing(f"the log-odds are written to {options.out}"):
            written = np.load(options.out, mmap_mode="r")
            some = written[:: -(-max(rows.n, 1) // _MOST_SORTED)]  # all of a million at most
            facts: dict[str, Any] = {"out": str(options.out), "n": rows.n}
            facts |= {"median_log_odds": float(np.median(some)) if rows.n else math.nan}
            facts |= {"below_zero": below}
            if options.json:
                facts["least_credible"] = [row for _, row in least]
                facts["log_odds"] = [odd for odd, _ in least]
                show("", facts, notes, as_json=True)
                return
            show(f"log-odds written to {options.out}", facts, notes, as_json=False)
            if least:
                print("least credible\n       row  log-odds (nats)  probability")
            for odd, row in least:
                probability = 1 / (1 + math.exp(min(-odd, 700.0)))
                print(f"{row:10,}  {odd:15.2f}  {probability:11.3f}")


def score(options: argparse.Namespace) -> None:
    """Measure an alignment on paired views: errors, retrieval and the energy kept."""
    with computing() as notes:
        from perfalign_jax import metrics, neighbours

        alignment = load_alignment(options.alignment)
        rows, sides = _open_both(options, alignment)
        if rows.n < 1:
            raise InputError(f"{options.x1} must have at least one row, got none.")
        surveyed = RowReader(*rows.files)
        surveyed.dtype = rows.dtype
        moments = measure_moments(survey(surveyed))
        every = -(-rows.n // _MOST_RANKED)
        kept: list[tuple[Any, ...]] = []
        measured, latents = measure(alignment, rows, moments, sides, kept, every)
        facts: dict[str, Any] = {"n": rows.n, "k": alignment.k, **measured}
        halves = [mirrored(block) for block in latents.blocks]
        for side, half in zip(sides, halves, strict=True):
            name = "effective_rank_" + "_".join(map(str, side))
            facts[name] = float(metrics.effective_rank(half))
        facts["linear_cka"] = float(metrics.linear_cka(*halves))
        z1, z2 = (np.concatenate(z) for z in zip(*kept, strict=True))
        with waiting("ranking"):
            found = neighbours.retrieval(z1, z2)
        facts["candidates"] = len(z1)
        first, second = (" and ".join(map(str, side)) for side in sides)
        for way, recalls, rank in (
            (f"{first} to {second}", found.recall_12, found.median_rank_12),
            (f"{second} to {first}", found.recall_21, found.median_rank_21),
        ):
            facts |= {
                f"R@{at}, view {way}": float(r) for at, r in zip(found.at, recalls, strict=True)
            }
            facts |= {
                f"R@{at}, view {way}, 95 % interval": _interval(float(r), len(z1))
                for at, r in zip(found.at, recalls, strict=True)
            }
            facts[f"median rank, view {way}"] = float(rank)
        show(f"{options.alignment} on {rows.n:,} pairs", facts, notes, as_json=options.json)


def _interval(share: float, n: int) -> list[float]:
    """Of a share of n rows, 95 percent (Wilson, 1927)."""
    z2 = 1.96**2
    middle, half = share + z2 / (2 * n), 1.96 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return [round((middle + sign * half) / (1 + z2 / n), 4) for sign in (-1, 1)]


def _check_views(views: tuple[int, ...], option: str, alignment: "Alignment") -> tuple[int, ...]:
    from perfalign_jax import _checks

    if len(set(views)) < len(views):
        raise InputError(f"{option} must name each view once, got {','.join(map(str, views))}.")
    last, why = len(alignment.dims) - 1, " (views are counted from 0)"
    return tuple(_checks.integer(m, option, low=0, high=last, why=why) for m in views)


def _check_sides(
    options: argparse.Namespace, alignment: "Alignment"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Views of source and target: those given, or the first two sides of the alignment."""
    from perfalign_jax.solver import sides_of

    first, second, *_ = sides_of(alignment)
    source = first if options.source is None else options.source
    target = second if options.target is None else options.target
    return (
        _check_views(source, "--source", alignment),
        _check_views(target, "--target", alignment),
    )


def _open_both(
    options: argparse.Namespace, alignment: "Alignment"
) -> tuple[RowReader, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Paired rows of the source's views and the target's."""
    source, target = sides = _check_sides(options, alignment)
    files = [
        *find_arrays(options.x1, source, "--source"),
        *find_arrays(options.x2, target, "--target"),
    ]
    return open_rows(files, alignment, (*source, *target)), sides


def _by_view(views: tuple[int, ...], block: tuple[Any, ...]) -> dict[int, Any]:
    return dict(zip(views, block, strict=True))
