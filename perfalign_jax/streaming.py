"""Statistics of data that does not fit into memory: files, or batches from anywhere.

The data is read once, some rows at a time, while the rows before are computed with. What comes out
is a ``Factor`` or a ``Gram`` like that of rows in memory, for ``fit``, ``diagnose`` and ``align``.
With a ``checkpoint`` an interrupted pass goes on where it stopped and ends in the same bits.
"""

import concurrent.futures
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from perfalign_jax import _checks, serialization
from perfalign_jax._host import Moments
from perfalign_jax.arrays import RowReader, open_array
from perfalign_jax.statistics import Factor, Gram
from perfalign_jax.types import Views

__all__ = ["from_batches", "from_files", "survey"]

_FORMAT = "perfalign_jax.Checkpoint"
_EVERY = 30.0  # seconds between checkpoints
_LONGEST = 64 * 2**20  # bytes of a block of rows


def from_files(
    files: Sequence[str | os.PathLike[str]],
    *,
    weights: str | os.PathLike[str] | None = None,
    kind: Literal["factor", "gram"] = "factor",
    parts: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Any:
    """Return the statistic of two or more files of paired rows, larger than memory or not.

    Args:
        files: one file for each view, shapes ``(n, d_m)``: .npy, .npz or .safetensors, of the last
            two ``file.npz:name`` picks an array. Compressed .npz members are held in memory.
        weights: a file of shape ``(n,)``, as in ``statistics.from_views``.
        kind: "factor" (exact) or "gram" (cheaper, half the digits). Of float32 rows a factor costs
            no more than float64 products, as it is computed by them.
        parts: return a list of that many statistics, each of every so manieth block of rows: folds
            for ``align``.
        checkpoint: file in which the pass is kept, every half minute, at the end, and when it is
            interrupted or a value is not finite. If it is there, the pass goes on from it; what it
            was made of must be unchanged.

    Returns:
        A ``Factor`` or a ``Gram``; a list of them if ``parts`` is given.

    Raises:
        FileNotFoundError, KeyError, TypeError: as for the files of the command line.
        ValueError: if shapes do not fit, a value is not finite (the message names file and row), or
            the checkpoint is of something else.

    Example:
        >>> import tempfile, numpy as np, perfalign_jax as pa
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.eye(4, 2, dtype=np.float32))
        ...     pa.streaming.from_files([f"{folder}/x.npy"] * 2)
        Factor(samples=4, dims=(2, 2), dtype=float32)
    """
    if isinstance(files, str | os.PathLike) or len(files) < 2:
        raise TypeError(f"files must be two or more paths, got {files!r:.80}.")
    reader = RowReader(*map(str, files))
    return survey(reader, weights=weights, kind=kind, parts=parts, checkpoint=checkpoint)


def survey(
    reader: RowReader,
    *,
    weights: str | os.PathLike[str] | None = None,
    kind: Literal["factor", "gram"] = "factor",
    parts: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Any:
    """``from_files`` of files that are open.

    Example:
        >>> import tempfile, numpy as np
        >>> from perfalign_jax import arrays, streaming
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.eye(4, 2, dtype=np.float32))
        ...     streaming.survey(arrays.RowReader(f"{folder}/x.npy", f"{folder}/x.npy"))
        Factor(samples=4, dims=(2, 2), dtype=float32)
    """
    _checks.one_of(kind, "kind", ("factor", "gram"))
    count = 1 if parts is None else _checks.integer(parts, "parts", low=2)
    if reader.n < 2 * count:
        raise ValueError(
            f"files must have at least {2 * count} rows for {count} part(s), got {reader.n}."
        )
    d, size = sum(reader.dims), reader.dtype.itemsize
    # A factor of each block costs as much as d rows more: let them be few beside the block.
    longer = min(8 * d, _LONGEST // (d * size)) if kind == "factor" else 0
    reader.step = min(max(reader.step, longer), -(-reader.n // count))
    own = None if weights is None else _read_weights(weights, reader)
    made_of: list[Any] = [
        [f.spec, f.path.stat().st_size, f.path.stat().st_mtime_ns] for f in reader.files
    ]
    made_of += [kind, count, reader.step, None if own is None else _digest(own)]
    one = _Pass(reader.dims, reader.dtype, kind, count, made_of, checkpoint)

    def blocks() -> Iterator[tuple[Any, Any]]:
        first = one.done * reader.step
        for block in reader.blocks("reading", first=first):
            rows = slice(first, first + len(block[0]))
            first += len(block[0])
            yield block, None if own is None else own[rows]

    one.run(_ahead(blocks()))
    found = one.statistics(reader.coarsest)
    return found if parts is not None else found[0]


def from_batches(
    batches: Iterable[Views],
    *,
    kind: Literal["factor", "gram"] = "factor",
    parts: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Any:
    """Return the statistic of batches ``(x1, x2, ...)`` from anywhere, one after the other.

    A PyTorch ``DataLoader`` of tuples will do, as will batches of a Parquet file
    (``ParquetFile.iter_batches``), slices of Zarr arrays, or a generator. The next batch is fetched
    in a thread while one is computed with.

    Args:
        batches: each of two or more arrays of shapes ``(b, d_m)``, any ``b`` above zero; what
            NumPy's ``asarray`` takes. All in the dtype of the first.
        kind: as in ``from_files``.
        parts: as in ``from_files``; batches go to the parts in turn.
        checkpoint: as in ``from_files``. To go on, the same batches have to come in the same order:
            those that were seen are fetched again and passed over.

    Returns:
        A ``Factor`` or a ``Gram``; a list of them if ``parts`` is given.

    Raises:
        TypeError: if a batch does not hold real numbers.
        ValueError: if there is none, shapes do not fit, a value is not finite (the message names
            the batch and its rows), or the checkpoint is of something else.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> pa.streaming.from_batches((x[i : i + 2], x[i : i + 2]) for i in (0, 2, 4))
        Factor(samples=6, dims=(2, 2), dtype=float32)
    """
    _checks.one_of(kind, "kind", ("factor", "gram"))
    count = 1 if parts is None else _checks.integer(parts, "parts", low=2)
    source = iter(batches)
    first = next(source, None)
    if first is None:
        raise ValueError("batches must hold at least one batch, got none.")
    example, coarsest = _checks.views(first, "batch 0", look=False)
    dims, dtype = tuple(x.shape[1] for x in example), example[0].dtype
    one = _Pass(dims, dtype, kind, count, ["batches", list(dims), kind, count], checkpoint)

    def blocks() -> Iterator[tuple[Any, Any]]:
        # Fetched in another thread and checked in this one, whose settings of JAX count.
        for number, batch in enumerate(_ahead(itertools.chain([first], source))):
            arrays, _ = _checks.views(batch, f"batch {number}", look=False)
            came = tuple(x.shape[1] for x in arrays)
            if came != dims:
                raise ValueError(f"batch {number} must have {dims} features, got {came}.")
            if number >= one.done:
                yield tuple(np.asarray(x, dtype) for x in arrays), None

    one.run(blocks())
    found = one.statistics(coarsest)
    return found if parts is not None else found[0]


def _read_weights(path: Any, reader: RowReader) -> np.ndarray:
    weights = _checks.array(open_array(path).rows(), str(path), ndim=1, shape="(n,)")
    host = np.asarray(weights, np.float64)
    if host.shape != (reader.n,):
        raise ValueError(f"weights must have shape ({reader.n},) like the rows, got {host.shape}.")
    if (host < 0).any():
        raise ValueError(f"weights must not be negative, but weight {int(host.argmin())} is.")
    return host


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _ahead(blocks: Iterator[Any]) -> Iterator[Any]:
    """The same, each fetched in a thread while the one before is used."""
    nothing = object()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, nothing)
        while (block := coming.result()) is not nothing:
            coming = pool.submit(next, blocks, nothing)
            yield block


class _Pass:
    """A pass over blocks of rows that can be interrupted."""

    def __init__(
        self,
        dims: tuple[int, ...],
        dtype: Any,
        kind: str,
        parts: int,
        made_of: list[Any],
        checkpoint: Any,
    ) -> None:
        self.moments = [Moments(dims, dtype, kind) for _ in range(parts)]
        self.made_of, self.done = json.dumps([str(np.dtype(dtype)), *made_of]), 0
        self.path = None if checkpoint is None else serialization.check_target(checkpoint)
        if self.path is not None and self.path.exists():
            self._resume()

    def run(self, blocks: Iterator[Any]) -> None:
        saved, since = self.done, time.monotonic()
        try:
            for views, weights in blocks:
                try:
                    self.moments[self.done % len(self.moments)].add(views, weights)
                except FloatingPointError:
                    first = sum(moments.samples for moments in self.moments)
                    for m, x in enumerate(views):
                        _checks.finite(x, f"x{m + 1}", first=first)
                    raise ValueError(
                        f"rows {first} to {first + len(views[0]) - 1} are too large to square."
                    ) from None
                self.done += 1
                if self.path is not None and time.monotonic() - since > _EVERY:
                    self._save()
                    saved, since = self.done, time.monotonic()
        except BaseException as error:
            if self.path is not None and self.done > saved:
                self._save()
            if self.path is not None and self.done:
                rows = sum(moments.samples for moments in self.moments)
                error.add_note(f"The {rows:,} rows before are kept in {self.path}.")
            raise
        if self.path is not None and self.done > saved:
            self._save()

    def statistics(self, coarsest: float) -> list[Factor | Gram]:
        return [moments.statistic(coarsest) for moments in self.moments]

    def _save(self) -> None:
        assert self.path is not None
        arrays = {}
        for number, moments in enumerate(self.moments):
            arrays[f"{number}.counts"] = np.array([moments.weight, moments.samples], np.float64)
            arrays[f"{number}.mean"] = moments.mean
            arrays[f"{number}.spread"] = moments.spread
        words = {"made_of": self.made_of, "blocks": str(self.done)}
        serialization.write_arrays(self.path, arrays, _FORMAT, words)

    def _resume(self) -> None:
        assert self.path is not None
        arrays, words = serialization.read_arrays(self.path, "a checkpoint", _FORMAT)
        if words.get("made_of") != self.made_of:
            raise ValueError(
                f"checkpoint {self.path} is of other data or options ({words.get('made_of')}), not "
                f"of {self.made_of}; remove it to start afresh."
            )
        self.done = int(words["blocks"])
        for number, moments in enumerate(self.moments):
            weight, samples = arrays[f"{number}.counts"].tolist()
            moments.weight, moments.samples = weight, int(samples)
            moments.mean, moments.spread = arrays[f"{number}.mean"], arrays[f"{number}.spread"]
