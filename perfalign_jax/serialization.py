"""Alignments on disk: one safetensors file, no pickle."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from perfalign_jax.types import Alignment

__all__ = ["load", "save"]

_FORMAT = "perfalign_jax.Alignment"
_VERSION = 1


def save(alignment: Alignment, path: str | os.PathLike[str]) -> None:
    """Write an alignment to a safetensors file; the file appears whole or not at all.

    The arrays keep their dtype; method, selection, space and centring go into the metadata.

    Args:
        alignment: what to write.
        path: where to; an existing file is replaced.

    Raises:
        TypeError: if it is no ``Alignment``.
        ValueError: if it is a batch of alignments.
        FileNotFoundError: if the folder does not exist.
        IsADirectoryError: if the path is a folder.

    Example:
        >>> import tempfile, numpy as np, perfalign_jax as pa
        >>> x = np.eye(4, 2, dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pa.save(pa.fit((x, x), k=2), f"{folder}/a.safetensors")
        ...     pa.load(f"{folder}/a.safetensors").k
        2
    """
    if not isinstance(alignment, Alignment):
        raise TypeError(f"alignment must be an Alignment, got {type(alignment).__name__}.")
    if jnp.ndim(alignment.offset) != 1:
        raise ValueError(
            "alignment must be a single one, got a batch of shape "
            f"{jnp.shape(alignment.offset)[:-1]}; save its members one by one."
        )
    arrays = {"singular_values": alignment.singular_values, "offset": alignment.offset}
    for m, (projection, mean) in enumerate(
        zip(alignment.projections, alignment.means, strict=True)
    ):
        arrays |= {f"projections.{m}": projection, f"means.{m}": mean}
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "made_by": json.dumps(
            {
                "method": alignment.method,
                "select": alignment.select,
                "space": alignment.space,
                "center": alignment.center,
            }
        ),
    }
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(value) for name, value in arrays.items()}, metadata
    )
    write_whole(path, content)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that cannot be written to, before the work that leads to it."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, not a file to write.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist.")
    return target


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    target = check_target(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes the file private
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str]) -> Alignment:
    """Read an alignment that ``save`` wrote.

    Args:
        path: the file.

    Returns:
        The alignment, with the dtype it was saved in.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if the path is a folder.
        ValueError: if the file is truncated, of another kind, or holds float64 while JAX's 64-bit
            mode is off.

    Example:
        >>> import perfalign_jax as pa
        >>> pa.load("no-such-file.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: there is no file no-such-file.safetensors.
    """
    source = Path(path)
    if source.is_dir():
        raise IsADirectoryError(f"{source} is a folder, not an alignment file.")
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}.")
    try:
        with safetensors.safe_open(source, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{source} is not a whole safetensors file (truncated, or of another kind): {error}"
        ) from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{source} is a safetensors file but holds no alignment "
            f"(format {metadata.get('format')!r}, expected {_FORMAT!r})."
        )
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{source} was written in version {metadata.get('version')!r} of the file format; "
            f"this package reads version {_VERSION}."
        )
    return _assemble(source, arrays, metadata)


def _assemble(source: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> Alignment:
    wanted = {"singular_values", "offset"} | {
        f"{part}.{m}" for part in ("projections", "means") for m in (0, 1)
    }
    if set(arrays) != wanted:
        raise ValueError(f"{source} must hold the arrays {sorted(wanted)}, got {sorted(arrays)}.")
    k = arrays["offset"].shape[0] if arrays["offset"].ndim == 1 else -1
    fits = (
        k > 0
        and arrays["singular_values"].shape == (k,)
        and all(
            arrays[f"means.{m}"].ndim == 1
            and arrays[f"projections.{m}"].shape == (k, arrays[f"means.{m}"].shape[0])
            for m in (0, 1)
        )
    )
    dtypes = {a.dtype for a in arrays.values()}
    if not fits or len(dtypes) != 1 or next(iter(dtypes)) not in (np.float32, np.float64):
        shapes = {name: (a.shape, str(a.dtype)) for name, a in sorted(arrays.items())}
        raise ValueError(f"{source} holds arrays that do not fit together: {shapes}.")
    broken = sorted(name for name, a in arrays.items() if not np.isfinite(a).all())
    if broken:
        raise ValueError(f"{source} holds values that are not finite, in {', '.join(broken)}.")
    dtype = next(iter(dtypes))
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{source} holds a {dtype} alignment; call "
            'jax.config.update("jax_enable_x64", True) first to load it without loss.'
        )
    made_by: dict[str, Any]
    try:
        made_by = json.loads(metadata["made_by"])
        words = {name: str(made_by[name]) for name in ("method", "select", "space")}
        center = bool(made_by["center"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{source} does not say how its alignment was made.") from None
    return Alignment(
        projections=(jnp.asarray(arrays["projections.0"]), jnp.asarray(arrays["projections.1"])),
        singular_values=jnp.asarray(arrays["singular_values"]),
        means=(jnp.asarray(arrays["means.0"]), jnp.asarray(arrays["means.1"])),
        offset=jnp.asarray(arrays["offset"]),
        center=center,
        **words,
    )
