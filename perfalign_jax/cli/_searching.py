"""Search among candidates that memory does not hold, for queries that it does not hold either."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from perfalign_jax import _checks, evidence, solver
from perfalign_jax._console import InputError, counting
from perfalign_jax.arrays import RowReader
from perfalign_jax.cli._files import write_header
from perfalign_jax.serialization import open_whole

if TYPE_CHECKING:
    from perfalign_jax.types import Alignment

__all__ = ["write_hits"]

_HELD = 2**26  # bytes of queries and hits that are held in one pass over the candidates
_CHUNK = 1024  # queries compared at once


def write_hits(
    alignment: "Alignment",
    queries: RowReader,
    candidates: RowReader,
    source: Sequence[int],
    target: Sequence[int],
    top: int,
    out: Path,
) -> float:
    """Write an .npz of what ``search`` finds, block by block; the mean probability of the first."""
    for rows, name in ((queries, "queries"), (candidates, "candidates")):
        if rows.n == 0:
            raise InputError(f"{name} must have at least one row, got none.")
    why = f" ({candidates.n:,} candidates)"
    top = _checks.integer(top, "top", low=1, high=candidates.n, why=why)
    kinds = {
        "indices": (np.dtype(np.int64), (queries.n, top)),
        "log_odds": (queries.dtype, (queries.n, top)),
        "probability": (queries.dtype, (queries.n,)),
    }
    total = 0.0
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        paths = {name: Path(folder) / f"{name}.npy" for name in kinds}
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths.values()]
            for file, kind in zip(files, kinds.values(), strict=True):
                write_header(file, *kind)
            for found in _search_blocks(alignment, queries, candidates, source, target, top):
                for file, (dtype, _), values in zip(files, kinds.values(), found, strict=True):
                    file.write(values.astype(dtype).tobytes())
                total += float(found[2].sum())
        with open_whole(out) as whole, zipfile.ZipFile(whole, "w") as archive:
            for path in paths.values():
                archive.write(path, path.name)
    return total / queries.n


def _search_blocks(
    alignment: "Alignment",
    queries: RowReader,
    candidates: RowReader,
    source: Sequence[int],
    target: Sequence[int],
    top: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices, log-odds and probability, for as many queries at a time as fit."""
    # Of no rows: the checks of the search in memory, and how reliable the coordinates are.
    first, second = (
        {m: jnp.zeros((0, alignment.dims[m]), queries.dtype) for m in views}
        for views in (source, target)
    )
    (z, rho1), (_, rho2) = evidence.two_posteriors(alignment, first, second, None, None)
    known, r = alignment.evidence, rho1 * rho2
    assert known is not None
    row = z.shape[1] * queries.dtype.itemsize + 32 * top  # two sets of hits, score and place
    passes = -(-queries.n // max(_HELD // row, 1))
    steps = passes * -(-candidates.n // candidates.step)

    def place(block: Sequence[Any], views: Sequence[int]) -> Any:
        coordinates, _ = solver.posterior(alignment, dict(zip(views, block, strict=True)))
        return solver.at_length(coordinates, r, known.unit)

    with counting("searching", steps) as step:
        held: list[Any] = []
        wanted, done = -(-queries.n // passes), 0
        for block in queries.blocks():
            held.append(place(block, source))
            done += len(block[0])
            if sum(map(len, held)) < wanted and done < queries.n:
                continue
            z1, held = jnp.concatenate(held), []
            best = np.full((len(z1), top), -np.inf)
            places = np.zeros((len(z1), top), np.int64)
            mass = np.full(len(z1), -np.inf)
            start = 0
            for others in candidates.blocks():
                z2 = place(others, target)
                raw, rows, sums = map(
                    np.asarray,
                    evidence.best_scores(
                        z1,
                        z2,
                        r,
                        known.search_slope,
                        top=min(top, len(z2)),
                        chunk=min(_CHUNK, len(z1)),
                    ),
                )
                scores = np.concatenate([best, raw], axis=1)
                both = np.concatenate([places, start + rows.astype(np.int64)], axis=1)
                order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
                best = np.take_along_axis(scores, order, axis=1)
                places = np.take_along_axis(both, order, axis=1)
                mass = np.logaddexp(mass, sums)
                start += len(z2)
                step()
            odds, share = evidence.calibrated(
                best.astype(r.dtype), mass.astype(r.dtype), known, candidates.n
            )
            yield places, np.asarray(odds), np.asarray(share)
