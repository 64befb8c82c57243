"""Arrays of paired rows from the files that researchers keep them in."""

import os
import tokenize
import zipfile
from pathlib import Path

import numpy as np
import safetensors

__all__ = ["path_of", "read_array"]

_KINDS = (".npy", ".npz", ".safetensors")


def read_array(spec: str | os.PathLike[str]) -> np.ndarray:
    """Read one array; nothing is unpickled.

    Args:
        spec: ``file.npy`` (memory-mapped, so that only the rows that are used are read),
            ``file.npz`` or ``file.safetensors``; of the last two ``file.npz:name`` picks one array,
            and the name may be left out where there is only one.

    Returns:
        The array as stored.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        KeyError: if it has no array of that name.
        TypeError: if it holds Python objects.
        ValueError: if it is damaged, truncated or of another kind.

    Example:
        >>> import tempfile, numpy as np
        >>> from perfalign_jax.arrays import read_array
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/views.npz", x1=np.eye(3), x2=np.eye(2))
        ...     read_array(f"{folder}/views.npz:x2").shape
        (2, 2)
    """
    path, name = _split(str(spec))
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
    try:
        if kind == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return archive[_pick(path, name, list(archive.keys()))]
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(_pick(path, name, list(file.keys())))
    except (
        ValueError,
        TypeError,
        OSError,
        EOFError,
        AttributeError,
        OverflowError,
        MemoryError,
        SyntaxError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:
        if "Object arrays" in str(error) or "Python objects" in str(error):  # NumPy's words
            raise TypeError(f"{spec} holds Python objects, expected numbers.") from None
        raise ValueError(
            f"{path} is no readable {kind} file (truncated, or of another kind): {error}"
        ) from None


def path_of(spec: str | os.PathLike[str]) -> Path:
    """Return the file that ``read_array`` would read.

    Example:
        >>> from perfalign_jax.arrays import path_of
        >>> str(path_of("views.npz:x1"))
        'views.npz'
    """
    return _split(str(spec))[0]


def _split(spec: str) -> tuple[Path, str | None]:
    """Part ``file.npz:name``; a colon that belongs to the path stays there."""
    head, colon, tail = spec.rpartition(":")
    if colon and Path(head).suffix.lower() in _KINDS and not Path(spec).exists():
        return Path(head), tail
    return Path(spec), None


def _pick(path: Path, name: str | None, names: list[str]) -> str:
    offered = ", ".join(sorted(names)) or "none"
    if name is None:
        if len(names) == 1:
            return names[0]
        raise KeyError(f"{path} holds {len(names)} arrays; name one as {path}:NAME (of {offered}).")
    if name not in names:
        raise KeyError(f"{path} has no array {name!r}; it has {offered}.")
    return name
