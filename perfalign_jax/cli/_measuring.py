"""What the rows of two sides measure: moments, errors, energies."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from perfalign_jax._console import Hint
from perfalign_jax.arrays import Moments, RowReader

if TYPE_CHECKING:
    from perfalign_jax.statistics import Rows
    from perfalign_jax.types import Alignment

__all__ = ["encode_rows", "measure", "mirrored", "say_if_short", "survey"]


def encode_rows(alignment: "Alignment", views: Sequence[int], block: Sequence[Any]) -> Any:
    """Latents of rows of one view, or of what several views together say."""
    import perfalign_jax as pa

    if len(views) == 1:
        return pa.encode(alignment, block[0], view=views[0])
    return pa.encode(alignment, dict(zip(views, block, strict=True)))


def measure(
    alignment: "Alignment",
    rows: RowReader,
    moments: list[Moments],
    sides: tuple[Sequence[int], Sequence[int]],
    kept: list[tuple[Any, ...]] | None = None,
    every: int = 1,
) -> tuple[dict[str, float], "Rows"]:
    """Errors and energies of two sides' latents, and their moments.

    The rows hold the first side's views and then the second's. Latents of one row in ``every``
    go into a list.
    """
    import perfalign_jax as pa
    from perfalign_jax import statistics

    cut = len(sides[0])

    def encode(block: Sequence[Any]) -> list[Any]:
        parts = block[:cut], block[cut:]
        return [encode_rows(alignment, s, part) for s, part in zip(sides, parts, strict=True)]

    if alignment.evidence is None and not alignment.lifts:
        centres = encode([view.mean[None, :] for view in moments])
    else:  # the mean of latents is not what the mean row has
        totals = np.zeros((2, alignment.k))
        for block in rows.blocks("locating"):
            totals += [np.asarray(z, np.float64).sum(axis=0) for z in encode(block)]
        centres = [(total / rows.n)[None, :].astype(rows.dtype) for total in totals]
    sums, state, start = np.zeros(4), cast(Any, None), 0
    for block in rows.blocks("measuring"):
        latents = encode(block)
        lengths = [
            pa.cmae(z, np.broadcast_to(centre, z.shape))
            for z, centre in zip(latents, centres, strict=True)
        ]
        errors = [float(v) for v in (pa.cmae(*latents), pa.ncmae(*latents), *lengths)]
        sums += len(block[0]) * np.array(errors)
        part = statistics.from_views(latents)
        state = part if state is None else statistics.merge(state, part)
        if kept is not None:
            kept.append(tuple(np.asarray(z)[-start % every :: every] for z in latents))
        start += len(block[0])
    error, unit_error, length1, length2 = (sums / rows.n).tolist()
    length = (length1 + length2) / 2
    facts = {
        "cmae": error,
        "ncmae": unit_error,
        "relative_cmae": error / length if length > 0 else math.inf,
    }
    found = statistics.rows(state, center=True)
    if alignment.evidence is not None:  # its latents are in units of evidence
        return facts, found
    views = zip((side[0] for side in sides), moments, found.blocks, strict=True)
    for view, (_, unit, _, spread), rest in views:
        energy = float(np.sum((np.asarray(rest, np.float64) / unit) ** 2))
        facts[f"energy_kept_{view}"] = energy / spread if spread else 0.0
    return facts, found


def mirrored(rows: Any) -> np.ndarray:
    """Zeros, each row and its negative: of mean zero, and measured like the rows."""
    return np.vstack([np.zeros_like(rows, shape=(1, rows.shape[1])), rows, -rows])


def survey(rows: RowReader, checkpoint: Path | None = None) -> Any:
    """All rows as they are or, where they are read in blocks, their factor."""
    from perfalign_jax import statistics, streaming

    if rows.in_blocks:
        return streaming.survey(rows, checkpoint=checkpoint)
    say_if_short(checkpoint)
    state: Any = statistics.from_views(rows.whole(), kind="samples")
    return statistics.known_to(state, rows.coarsest)


def say_if_short(checkpoint: Path | None) -> None:
    if checkpoint is not None:
        warnings.warn(
            f"the views are short enough to be read at once: {checkpoint} is not needed.",
            Hint,
            stacklevel=3,
        )
