"""Which files a view is in: one, shards that a pattern names, or a list on stdin."""

import glob
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from perfalign_jax._console import InputError, check_out
from perfalign_jax.arrays import ArrayFile, RowReader, open_array, split_name
from perfalign_jax.types import PrecisionWarning

if TYPE_CHECKING:
    from perfalign_jax.types import Alignment

__all__ = [
    "Shards",
    "check_files",
    "find_array",
    "find_arrays",
    "is_alignment",
    "load_alignment",
    "open_rows",
    "write_header",
]

_LONGEST = 2**24  # bytes of a block where nothing but its rows is made of it


class Shards:
    """One array in several files, one after the other, read like an ``ArrayFile``."""

    def __init__(self, spec: str, parts: Sequence[ArrayFile]) -> None:
        self.spec, self.parts = spec, parts
        for part in parts[1:]:
            if part.shape[1:] != parts[0].shape[1:]:
                raise InputError(
                    f"all shards of {spec} must have rows of one shape, but {parts[0].spec} has "
                    f"shape {parts[0].shape} and {part.spec} {part.shape}."
                )
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()
        self.shape = (self.starts[-1], *parts[0].shape[1:])
        self.dtype = np.result_type(*(part.dtype for part in parts))

    @property
    def stamp(self) -> list[Any]:
        """What tells these files from others, as of one."""
        return [part.stamp for part in self.parts]

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows ``start`` to ``stop``, all of them if not given."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        found = [
            part.rows(max(start - first, 0), min(stop, last) - first)
            for part, first, last in zip(self.parts, self.starts[:-1], self.starts[1:], strict=True)
            if first < stop and last > start
        ]
        return np.concatenate(found) if found else self.parts[0].rows(0, 0)


def load_alignment(path: str) -> "Alignment":
    """The alignment in a file; a statistic is refused."""
    import perfalign_jax as pa

    alignment = pa.load(path)
    if not isinstance(alignment, pa.Alignment):
        kind = type(alignment).__name__
        raise InputError(
            f"{path} holds a statistic ({kind}), no alignment; perfalign fit makes one."
        )
    return alignment


def find_array(spec: str) -> Any:
    """Open the array that a file, a pattern or, with "-", stdin names."""
    if spec == "-":
        paths = [line.strip() for line in sys.stdin if line.strip()]
        if not paths:
            raise InputError(
                "- reads the paths of one view's files from stdin, one a line, and got none."
            )
    elif re.search(r"[*?\[]", spec) and not split_name(spec)[0].exists():
        path, name = split_name(spec)
        paths = sorted(glob.glob(str(path), recursive=True), key=_in_order)
        if not paths:
            raise InputError(f"no file matches {path}.")
        paths = [p if name is None else f"{p}:{name}" for p in paths]
    else:
        return open_array(spec)
    parts = [open_array(path) for path in paths]
    return parts[0] if len(parts) == 1 else Shards("stdin" if spec == "-" else spec, parts)


def _in_order(path: str) -> list[Any]:
    """By words and numbers: x-2 stands before x-10."""
    words = re.split(r"(\d+)", path)
    return [int(word) if i % 2 else word for i, word in enumerate(words)]


def find_arrays(spec: str, views: Sequence[int], option: str) -> list[Any]:
    """Open the arrays of one view, or of several, whose files have commas between."""
    specs = [spec] if len(views) == 1 else spec.split(",")
    if len(specs) != len(views):
        given = ",".join(map(str, views))
        raise InputError(
            f"{option} {given} needs {len(views)} files with commas between, such as "
            f"{','.join(f'x{m + 1}.npy' for m in views)}, got {spec!r}."
        )
    return [find_array(one) for one in specs]


def check_files(out: Path, suffix: str, inputs: Iterable[Any], name: str = "--out") -> None:
    """Refuse a file to write that has another ending, cannot be written, or is an input."""
    parts = [part for file in inputs for part in getattr(file, "parts", [file])]
    check_out(out, suffix, tuple(str(getattr(part, "path", part)) for part in parts), name)


def open_rows(files: Sequence[Any], alignment: Any, views: Sequence[int]) -> RowReader:
    """Rows of an alignment's views, in its dtype, of whose blocks nothing but rows is made."""
    dtype = np.dtype(alignment.offset.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # of another dtype than it is computed in
        rows = RowReader(*files)
    for file in rows.files:
        if np.promote_types(file.dtype, dtype) != dtype:
            warnings.warn(
                f"{file.spec} has dtype {file.dtype}; it is computed in {dtype}, the alignment's.",
                PrecisionWarning,
                stacklevel=2,
            )
    for file, view in zip(rows.files, views, strict=True):
        if file.shape[1] != alignment.dims[view]:
            raise InputError(
                f"{file.spec} must have {alignment.dims[view]} columns like view {view} of the "
                f"alignment, got shape {file.shape}."
            )
    rows.dtype = dtype
    rows.step = min(rows.step, max(_LONGEST // (sum(rows.dims) * rows.dtype.itemsize), 1024))
    return rows


def is_alignment(spec: str) -> bool:
    """Whether a file is one that an alignment was written to."""
    try:
        with safetensors.safe_open(spec, framework="numpy") as file:
            return str((file.metadata() or {}).get("format", "")).endswith(".Alignment")
    except (safetensors.SafetensorError, OSError, ValueError):
        return False


def write_header(file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Begin an .npy file whose rows are written as they come."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
