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
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
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
        parts: return a list of that many statistics, block ``i`` in that of number ``i % parts``:
            folds for ``align``.
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
    paths = isinstance(files, Sequence) and all(isinstance(f, str | os.PathLike) for f in files)
    if isinstance(files, str) or not paths or len(files) < 2:
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
    # A block costs as much as some d rows more, whatever it holds: let them be few beside it. Where
    # products are all that is taken it costs hardly more, and of wide views d rows are large.
    longest = _LONGEST // (d * size)
    step = max(reader.step, min(32 * d, longest))
    if kind == "gram" or reader.dtype != np.float64:
        step = min(step, max(longest, 256))
    # As many blocks for each part, but for a short one at the end.
    reader.step = reader.n // (count * -(-reader.n // (count * step)))
    own = None if weights is None else _read_weights(weights, reader)
    made_of: dict[str, Any] = {f"file {m}": f.stamp for m, f in enumerate(reader.files)}
    made_of |= {"rows of a block": reader.step}
    made_of |= {"weights": None if own is None else _digest(own)}
    one = _Pass(reader.dims, reader.dtype, kind, count, made_of, checkpoint)

    def blocks() -> Iterator[tuple[Any, Any]]:
        first = one.done * reader.step
        for block in reader.blocks("reading", look=False, first=first):
            rows = slice(first, first + len(block[0]))
            first += len(block[0])
            yield block, None if own is None else own[rows]

    # Products show what is not finite; only then the block is looked at.
    one.run(_ahead(blocks()), lambda first: next(reader.blocks(first=first)))
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

    A PyTorch ``DataLoader`` of tuples will do, as will slices of Zarr arrays, or a generator that
    makes arrays of the batches of a Parquet file (``ParquetFile.iter_batches``). The next batch is
    fetched and copied in a thread while one is computed with.

    Args:
        batches: each of two or more arrays of shapes ``(b, d_m)``; what NumPy's ``asarray`` takes.
            All are computed in the dtype of the first.
        kind: as in ``from_files``.
        parts: as in ``from_files``; batches go to the parts in turn.
        checkpoint: as in ``from_files``. To go on, the same batches have to come in the same order:
            those that were seen are fetched again, compared by a checksum, and passed over.

    Returns:
        A ``Factor`` or a ``Gram``; a list of them if ``parts`` is given.

    Raises:
        TypeError: if a batch does not hold real numbers.
        ValueError: if there is none for each part, shapes do not fit, a value is not finite (the
            message names its row, counted over all batches), or the checkpoint is of something
            else.

    Example:
        >>> import numpy as np, perfalign_jax as pa
        >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
        >>> pa.streaming.from_batches((x[i : i + 2], x[i : i + 2]) for i in (0, 2, 4))
        Factor(samples=6, dims=(2, 2), dtype=float32)
    """
    _checks.one_of(kind, "kind", ("factor", "gram"))
    count = 1 if parts is None else _checks.integer(parts, "parts", low=2)
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}.")
    source = map(_copied, batches)
    nothing = object()
    first = next(source, nothing)
    if first is nothing:
        raise ValueError("batches must hold at least one batch, got none.")
    example, coarsest = _checks.views(first, "batch 0", look=False)
    dims, dtype = tuple(x.shape[1] for x in example), example[0].dtype
    one = _Pass(dims, dtype, kind, count, {}, checkpoint)

    def blocks() -> Iterator[tuple[Any, Any]]:
        nonlocal coarsest
        number = -1
        # Fetched in another thread and checked in this one, whose settings of JAX count.
        for number, batch in enumerate(_ahead(itertools.chain([first], source))):
            arrays, eps = _checks.views(batch, f"batch {number}", look=False)
            coarsest = max(coarsest, eps)
            came = tuple(x.shape[1] for x in arrays)
            if came != dims:
                raise ValueError(f"batch {number} must have {dims} features, got {came}.")
            block = tuple(np.asarray(x, dtype) for x in arrays)
            if number < one.done:
                one.pass_over(block)
            else:
                yield block, None
        if number + 1 < max(one.done, count):
            raise ValueError(
                f"batches must be at least {max(one.done, count)} (those that the checkpoint has "
                f"seen, and one for each part), got {number + 1}."
            )

    one.run(blocks())
    found = one.statistics(coarsest)
    return found if parts is not None else found[0]


def _copied(batch: Any) -> Any:
    """A batch whose arrays do not change when the next one is fetched into the same memory."""
    if not isinstance(batch, list | tuple):
        return batch
    return tuple(
        # The copy of a masked array keeps its mask, which is refused.
        np.array(x, subok=np.ma.isMaskedArray(x)) if hasattr(x, "__array__") else x
        for x in batch
    )


def _read_weights(path: Any, reader: RowReader) -> np.ndarray:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"weights must be the path of a file, got {type(path).__name__}.")
    file = open_array(path)
    if file.shape != (reader.n,):
        raise ValueError(f"weights must have shape ({reader.n},) like the rows, got {file.shape}.")
    weights = _checks.array(file.rows(), str(path), ndim=1, shape="(n,)")
    host = np.asarray(weights, np.float64)
    if (host < 0).any():
        raise ValueError(f"weights must not be negative, but weight {int(host.argmin())} is.")
    return host


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _ahead(blocks: Iterator[Any]) -> Iterator[Any]:
    """The same, each fetched in a thread while the one before is used."""
    nothing, wide = object(), jax.dtypes.canonicalize_dtype(float) == np.float64

    def fetch() -> Any:
        with jax.enable_x64(wide):  # a generator may make arrays of JAX, in the caller's precision
            return next(blocks, nothing)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(fetch)
        while (block := coming.result()) is not nothing:
            coming = pool.submit(fetch)
            yield block


def _check_sum(views: tuple[np.ndarray, ...], start: int) -> int:
    for x in views:
        start = zlib.crc32(np.ascontiguousarray(x).data, start)
    return start


class _Pass:
    """A pass over blocks of rows that can be interrupted."""

    def __init__(
        self,
        dims: tuple[int, ...],
        dtype: Any,
        kind: str,
        parts: int,
        made_of: dict[str, Any],
        checkpoint: Any,
    ) -> None:
        if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
            raise TypeError(f"checkpoint must be a path, got {type(checkpoint).__name__}.")
        self.moments = [Moments(dims, dtype, kind) for _ in range(parts)]
        own = {"features": list(dims), "dtype": str(np.dtype(dtype)), "kind": kind, "parts": parts}
        self.made_of = own | made_of
        self.done, self.sum, self.passed, self.passed_sum = 0, 0, 0, 0
        self.path = None if checkpoint is None else serialization.check_target(checkpoint)
        if self.path is not None and self.path.exists():
            self._resume()
        self.kept = self._whole()

    def run(self, blocks: Iterator[Any], look: Callable[[int], Any] = lambda _: None) -> None:
        """Take in the blocks; ``look`` says what is wrong with the one that begins with a row."""
        saved, since = self.done, time.monotonic()
        try:
            for views, weights in blocks:
                try:
                    self.moments[self.done % len(self.moments)].add(views, weights)
                except FloatingPointError:
                    first = sum(moments.samples for moments in self.moments)
                    look(first)
                    for m, x in enumerate(views):
                        _checks.finite(x, f"x{m + 1}", first=first)
                    raise ValueError(
                        f"rows {first} to {first + len(views[0]) - 1} are too large to square."
                    ) from None
                self.done += 1
                if self.path is not None:
                    self.sum = _check_sum(views, self.sum)
                self.kept = self._whole()
                if self.path is not None and time.monotonic() - since > _EVERY:
                    self._save()
                    saved, since = self.done, time.monotonic()
        except BaseException as error:
            done, _, before = self.kept
            if self.path is not None and done > saved:
                self._save()
            if self.path is not None and done:
                rows = sum(samples for _, samples, _, _ in before)
                error.add_note(f"The {rows:,} rows before are kept in {self.path}.")
            raise
        if self.path is not None and self.done > saved:
            self._save()

    def pass_over(self, views: tuple[np.ndarray, ...]) -> None:
        """Compare a block with what the checkpoint has seen, once all of that came by."""
        self.passed += 1
        self.passed_sum = _check_sum(views, self.passed_sum)
        if self.passed == self.done and self.passed_sum != self.sum:
            raise ValueError(
                f"checkpoint {self.path} has seen other batches before: the first {self.done} must "
                "be the same, in the same order; remove it to start afresh."
            )

    def statistics(self, coarsest: float) -> list[Factor | Gram]:
        return [moments.statistic(coarsest) for moments in self.moments]

    def _whole(self) -> tuple[int, int, list[tuple[float, int, np.ndarray, np.ndarray]]]:
        """Where the pass stands after a block: an interruption may come amid the next one."""
        return self.done, self.sum, [(m.weight, m.samples, m.mean, m.spread) for m in self.moments]

    def _save(self) -> None:
        assert self.path is not None
        arrays = {}
        done, checksum, states = self.kept
        for number, (weight, samples, mean, spread) in enumerate(states):
            arrays[f"{number}.counts"] = np.array([weight, samples], np.float64)
            arrays[f"{number}.mean"] = mean
            arrays[f"{number}.spread"] = spread
        words = {"made_of": json.dumps(self.made_of), "blocks": str(done)}
        words |= {"sum": str(checksum)}
        serialization.write_arrays(self.path, arrays, _FORMAT, words)

    def _resume(self) -> None:
        assert self.path is not None
        arrays, words = serialization.read_arrays(self.path, "a checkpoint", _FORMAT)
        try:
            before = dict(json.loads(words["made_of"]))
            self.done, self.sum = int(words["blocks"]), int(words["sum"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"checkpoint {self.path} does not say what it was made of; remove it to start "
                "afresh."
            ) from None
        now = json.loads(json.dumps(self.made_of))
        other = [
            f"{name} {before.get(name)}, now {now.get(name)}"
            for name in (now | before)
            if before.get(name) != now.get(name)
        ]
        if other:
            raise ValueError(
                f"checkpoint {self.path} is of other data or options ({'; '.join(other)}); remove "
                "it to start afresh."
            )
        shapes: dict[str, tuple[int, ...]] = {}
        for number, moments in enumerate(self.moments):
            spread = arrays.get(f"{number}.spread", moments.spread)
            shape = (
                (*spread.shape[:1], moments.mean.size) if moments.exact else moments.spread.shape
            )
            shapes |= {f"{number}.counts": (2,), f"{number}.mean": moments.mean.shape}
            shapes[f"{number}.spread"] = shape
        good = self.done >= 0 and {name: a.shape for name, a in arrays.items()} == shapes
        if not good or any(a.dtype != np.float64 for a in arrays.values()):
            raise ValueError(
                f"checkpoint {self.path} holds other arrays than were kept; remove it to start "
                "afresh."
            )
        for number, moments in enumerate(self.moments):
            weight, samples = arrays[f"{number}.counts"].tolist()
            moments.weight, moments.samples = weight, int(samples)
            moments.mean, moments.spread = arrays[f"{number}.mean"], arrays[f"{number}.spread"]
