"""Arrays of paired rows in the files that researchers keep them in, read some rows at a time."""

import contextlib
import dataclasses
import functools
import io
import math
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

__all__ = ["RowReader", "open_array"]

_KINDS = (".npy", ".npz", ".safetensors")
_BLOCK = 4 * 2**20  # bytes of a block of rows
_MOST_UNPACKED = 4 * 2**30  # bytes that a compressed array may take in memory
_HEADER = 2**14  # bytes: NumPy refuses headers of more than 10,000 characters
_MOST_AXES = 32  # of an array of NumPy 1
_LONGEST = 400  # characters of what a file says that an error repeats


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """An array on disk, of which nothing but its shape and dtype has been read."""

    spec: str
    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def stamp(self) -> list[Any]:
        """What tells this file from another, or from what it was before it was written anew."""
        found = self.path.stat()
        return [self.path.name, self.name, found.st_size, found.st_mtime_ns]

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start`` to ``stop``, all of them if not given.

        Only those are held in memory; of a .npz file, from the first call on, the whole array.
        """
        with _named_errors(self.spec, self.path):
            if self.path.suffix.lower() == ".npz":
                return self.unpacked[start:stop]
            if self.path.suffix.lower() == ".npy":
                # Mapped anew each time: pages that were read do not stay with the process.
                return np.array(np.load(self.path, mmap_mode="r", allow_pickle=False)[start:stop])
            with safetensors.safe_open(self.path, framework="numpy") as file:
                last = self.shape[0] if stop is None else min(stop, self.shape[0])
                if start >= last:  # which safetensors refuses, as it does a stop beyond the end
                    return np.zeros((0, *self.shape[1:]), self.dtype)
                return file.get_slice(self.name)[start:last]

    @functools.cached_property
    def unpacked(self) -> np.ndarray:
        """The whole array of an .npz file."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)


class Moments(NamedTuple):
    """A view's mean, and the energies of its mean and about it, in units of ``unit`` squared."""

    mean: Any
    unit: float  # a power of two of about the view's size: no square overflows or vanishes
    common: float
    spread: float


def measure_moments(state: Any) -> list[Moments]:
    """Measure every view of a statistic."""
    from perfalign_jax import statistics

    found = []
    rows = statistics.rows(state, center=True)
    for mean, block in zip(rows.means, rows.blocks, strict=True):
        host, spread = np.asarray(mean, np.float64), np.asarray(block, np.float64)
        largest = np.abs(spread).max(initial=np.abs(host).max())
        unit = 2.0 ** (int(np.frexp(largest)[1]) - 1)
        energies = [float(np.sum((part / unit) ** 2)) for part in (host, spread)]
        found.append(Moments(mean, unit, float(rows.weight) * energies[0], energies[1]))
    return found


class RowReader:
    """Paired rows of one or more files, read in blocks.

    One rule for all commands: rows that make more than four blocks are read a block at a time, and
    a block is 4 MiB or, where that is more, twice as many rows as features. Fewer rows are one
    block, so a wide matrix stays what it is: a statistic of it would hold more numbers.

    Nothing but shapes and dtypes is read before ``blocks``. What is open already may stand for a
    file: anything with the spec, shape, dtype, stamp and rows of one.

    Example:
        >>> import tempfile, numpy as np
        >>> from perfalign_jax.arrays import RowReader
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.eye(3, dtype=np.float32))
        ...     RowReader(f"{folder}/x.npy").n
        3
    """

    def __init__(self, *specs: Any) -> None:
        from perfalign_jax import _checks

        self.files = [open_array(spec) if isinstance(spec, str) else spec for spec in specs]
        self.dtypes = []
        for m, file in enumerate(self.files):
            probe: Any = np.broadcast_to(np.zeros((), file.dtype), file.shape)
            probe = probe[:0] if probe.ndim == 2 else probe
            shape = f"(n, d{m + 1})"
            self.dtypes.append(_checks.array(probe, file.spec, ndim=2, shape=shape).dtype)
        for file in self.files:
            _checks.paired(self.files[0], file, self.files[0].spec, file.spec)
            if file.shape[1] < 1:
                raise ValueError(
                    f"{file.spec} must have at least one column, got shape {file.shape}."
                )
        self.dtype = np.result_type(*self.dtypes)
        self.n = self.files[0].shape[0]
        d = sum(file.shape[1] for file in self.files)
        step = max(_BLOCK // (d * self.dtype.itemsize), 2 * d)
        self.step = step if self.n > 4 * step else max(self.n, 1)

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of features of each view."""
        return tuple(file.shape[1] for file in self.files)

    @property
    def coarsest(self) -> float:
        """Eps of the coarsest dtype among the files, as in ``Factor``."""
        parts = [part for file in self.files for part in getattr(file, "parts", [file])]
        kinds = [part.dtype for part in parts if np.issubdtype(part.dtype, np.floating)]
        return max((float(np.finfo(kind).eps) for kind in kinds), default=0.0)

    @property
    def in_blocks(self) -> bool:
        """Whether a block is read at a time."""
        return self.step < self.n

    def blocks(
        self, doing: str = "", *, look: bool = True, first: int = 0
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Read the rows from ``first`` on, in ``dtype``, block by block.

        A terminal shows a bar that says what is being done, if that is given.

        Raises:
            ValueError: if a value is not finite, unless nobody is to ``look``; the message names
                the file and the row.
        """
        starts: Any = range(first, self.n, self.step)
        if doing and self.in_blocks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            starts = track(starts, doing, console=Console(stderr=True), transient=True)
        for start in starts:
            yield tuple(self._read(file, start, look) for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all rows in memory."""
        return self.n * sum(file.shape[1] for file in self.files) * self.dtype.itemsize

    def whole(self, *, look: bool = True) -> tuple[np.ndarray, ...]:
        """Read all rows."""
        blocks = list(self.blocks("reading", look=look))
        return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))

    def _read(self, file: ArrayFile, start: int, look: bool) -> np.ndarray:
        with np.errstate(all="ignore"):
            block = file.rows(start, start + self.step).astype(self.dtype, copy=False)
            # The sum is fast.
            if not look or np.isfinite(block.sum()) or np.isfinite(block).all():
                return block
            row, count = start + int(np.argmax(~np.isfinite(block).all(axis=1))), 0
            for later in range(start, self.n, self.step):
                rest = file.rows(later, later + self.step).astype(self.dtype, copy=False)
                count += int(np.count_nonzero(~np.isfinite(rest)))
        what = "NaN" if np.isnan(file.rows(row, row + 1)).any() else "infinity"
        raise ValueError(
            f"{file.spec} must be finite, but row {row} has {what} ({count:,} such values in all)."
        )


def open_array(spec: str | os.PathLike[str]) -> ArrayFile:
    """Find an array and read its shape and dtype; nothing is unpickled.

    ``spec`` is ``file.npy``, ``file.npz`` or ``file.safetensors``; of the last two
    ``file.npz:name`` picks one array, and the name may be left out where there is only one.

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such file.
        KeyError: if it has no array of that name.
        TypeError: if it holds Python objects.
        ValueError: if it is damaged, truncated or of another kind, or if it is compressed and
            would take more than 4 GiB.

    Example:
        >>> import tempfile, numpy as np
        >>> from perfalign_jax.arrays import open_array
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/views.npz", x1=np.eye(3), x2=np.eye(2))
        ...     open_array(f"{folder}/views.npz:x2").shape
        (2, 2)
    """
    spec = str(spec)
    path, name = split_name(spec)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise ValueError(f"{path} must be one of {', '.join(_KINDS)}, got {kind or 'no'} suffix.")
    if name is not None and kind == ".npy":
        raise KeyError(
            f"{path} is a .npy file, which holds one array without a name, not {name!r}."
        )
    with _named_errors(spec, path):
        if kind == ".npy":
            with path.open("rb") as file:
                shape, dtype = _read_header(file, path.stat().st_size)
            return ArrayFile(spec, path, "", shape, dtype)
        if kind == ".npz":
            return open_member(path, name, spec=spec)
        with safetensors.safe_open(path, framework="numpy") as file:
            name = _pick(path, name, list(file.keys()))
            part = file.get_slice(name)
            shape = tuple(part.get_shape())
            _check_shape(shape, 1)
            some = part[0:1] if shape and shape[0] else file.get_tensor(name)
            return ArrayFile(spec, path, name, shape, some.dtype)


def open_member(path: Path, name: str | None, *, spec: str) -> ArrayFile:
    """Find an array in an .npz file, whatever that is called."""
    with zipfile.ZipFile(path) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        name = _pick(path, name, names)
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in a way that NumPy does not write")
        if info.compress_type != zipfile.ZIP_STORED and info.file_size > _MOST_UNPACKED:
            raise MemoryError(
                f"{spec} is compressed and would unpack to {info.file_size / 2**20:,.1f} MiB in "
                f"memory, the limit is {_MOST_UNPACKED / 2**20:,.0f} MiB; save it as .npy, which "
                "is read in parts."
            )
        with archive.open(info) as member:
            return ArrayFile(spec, path, name, *_read_header(member, info.file_size))


def _read_header(file: Any, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of the array in .npy format that a file of ``size`` bytes is."""
    head = io.BytesIO(file.read(_HEADER))  # NumPy would make room for what the file claims
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(head))
    if read is None:
        raise ValueError("the array's header is of an unknown version")
    shape, _, dtype = read(head)
    if dtype.hasobject:
        raise ValueError("Python objects")
    _check_shape(shape, dtype.itemsize)
    if size - head.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{size - head.tell():,} bytes for an array of shape {shape} and dtype {dtype}"
        )
    return shape, dtype


def _check_shape(shape: tuple[int, ...], size: int) -> None:
    """Refuse what NumPy cannot count, also where an axis of length zero leaves nothing to read."""
    good = len(shape) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    if not good or not 0 < size * math.prod(n or 1 for n in shape) <= sys.maxsize:
        raise ValueError(f"no array has shape {shape} and values of {size} bytes")


@contextlib.contextmanager
def _named_errors(spec: str, path: Path) -> Iterator[None]:
    """Turn what the readers of files raise into errors that say which file it is about."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(str(error) or f"{spec} does not fit into memory.") from None
    except KeyError:  # no array of that name
        raise
    except Exception as error:  # whatever the broken bytes lead the readers into
        reason = str(error)
        if "Object arrays" in reason or "Python objects" in reason:  # NumPy's words
            raise TypeError(f"{spec} holds Python objects, expected numbers.") from None
        if "pickle" in reason:  # NumPy's advice is to load it unsafely
            reason = "its header is none that NumPy writes"
        raise ValueError(
            f"{path} is no readable {path.suffix.lower()} file (truncated, or of another kind): "
            f"{reason:.{_LONGEST}}"
        ) from None


def split_name(spec: str) -> tuple[Path, str | None]:
    """Part ``file.npz:name``; a colon that belongs to the path stays there."""
    head, colon, tail = spec.rpartition(":")
    if colon and Path(head).suffix.lower() in _KINDS and not Path(spec).exists():
        return Path(head), tail
    return Path(spec), None


def _pick(path: Path, name: str | None, names: list[str]) -> str:
    offered = f"{', '.join(sorted(names)) or 'none':.{_LONGEST}}"
    if name is None:
        if len(names) == 1:
            return names[0]
        raise KeyError(f"{path} holds {len(names)} arrays; name one as {path}:NAME (of {offered}).")
    if name not in names:
        raise KeyError(f"{path} has no array {name!r}; it has {offered}.")
    return name
