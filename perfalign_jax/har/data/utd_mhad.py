"""UTD-MHAD's files as its authors laid them out: discovery, pairing by name, one file read.

The dataset (Chen, Jafari and Kehtarnavaz, ICIP 2015) is a folder with one folder per modality and
one file per clip, ``a<action>_s<subject>_t<trial>_<modality>.mat``:

    Inertial/*_inertial.mat   d_iner   (T, 6)        acceleration in g, angular rate in degrees/s
    Skeleton/*_skeleton.mat   d_skel   (20, 3, T)    joints in metres
    Depth/*_depth.mat         d_depth  (240, 320, T) depth video in millimetres
    RGB/*_color.avi           colour video, 640 x 480
"""

import concurrent.futures
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
import scipy.io
from jaxtyping import UInt8

from perfalign_jax import _checks

__all__ = ["DamagedFileError", "discover", "parse_name", "read_clip"]

# modality: folder, end of the file names, variable, its axes, which axis is time
_LAYOUT: dict[str, tuple[str, str, str, tuple[int | None, ...], int]] = {
    "inertial": ("Inertial", "_inertial.mat", "d_iner", (None, 6), 0),
    "skeleton": ("Skeleton", "_skeleton.mat", "d_skel", (20, 3, None), 2),
    "depth": ("Depth", "_depth.mat", "d_depth", (None, None, None), 2),
    "rgb": ("RGB", "_color.avi", "", (), 0),
}
# No 01, and no digits but these: one clip has one name.
_MOST_UNPACKED = 2**31  # bytes of a clip in memory
_NAME = re.compile(r"a([1-9][0-9]*)_s([1-9][0-9]*)_t([1-9][0-9]*)")


class DamagedFileError(ValueError):
    """A file that is there, but does not hold what its name promises.

    Example:
        >>> from perfalign_jax.har.data.utd_mhad import DamagedFileError
        >>> issubclass(DamagedFileError, ValueError)
        True
    """


@dataclasses.dataclass(frozen=True)
class Defect:
    """A file that keeps its clip out of the data, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Catalog:
    """What a dataset folder holds, before anything is read.

    Attributes:
        root: the dataset's folder.
        names: clips that have a file of every modality asked for, in order of action, subject and
            trial.
        files: path of each clip's file, by modality, in the order of ``names``.
        available: modalities whose folder exists.
        problems: files that are missing, and files whose names are no clip's.
    """

    root: Path
    names: tuple[str, ...]
    files: dict[str, tuple[Path, ...]]
    available: tuple[str, ...]
    problems: tuple[Defect, ...]


def parse_name(name: str) -> tuple[int, int, int]:
    """Return action, subject and trial of a clip's name; a ``ValueError`` if it is none.

    Example:
        >>> from perfalign_jax.har.data.utd_mhad import parse_name
        >>> parse_name("a27_s8_t4")
        (27, 8, 4)
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"a clip is named a<action>_s<subject>_t<trial>, got {name!r}.")
    action, subject, trial = (int(number) for number in found.groups())
    return action, subject, trial


def discover(
    root: str | Path, *, modalities: Sequence[str] = ("inertial", "skeleton", "depth")
) -> Catalog:
    """List the clips of a dataset folder that have a file of every modality asked for.

    Missing files and strange names are in the catalog's ``problems``.

    Args:
        root: folder that holds ``Inertial``, ``Skeleton``, ``Depth`` or ``RGB``.
        modalities: modalities a clip must have to be listed.

    Raises:
        FileNotFoundError: if the folder or that of a modality is missing, or no clip is complete;
            the message says what was expected.
        ValueError: if a modality is unknown.

    Example:
        >>> import pathlib, tempfile
        >>> from perfalign_jax.har.data.utd_mhad import discover
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = pathlib.Path(folder)
        ...     (root / "Inertial").mkdir()
        ...     _ = (root / "Inertial" / "a1_s2_t3_inertial.mat").write_bytes(b"")
        ...     discover(root, modalities=["inertial"]).names
        ('a1_s2_t3',)
    """
    root = Path(root)
    modalities = tuple(modalities)
    for modality in modalities:
        _checks.one_of(modality, "modality", tuple(_LAYOUT))
    if not modalities:
        raise ValueError("modalities must name at least one, got none.")
    if not root.is_dir():
        raise FileNotFoundError(f"the UTD-MHAD folder {root} does not exist.")
    available = tuple(m for m, layout in _LAYOUT.items() if (root / layout[0]).is_dir())
    found: dict[str, dict[str, Path]] = {}
    named: set[str] = set()
    problems = []
    for modality in modalities:
        folder, ending = _LAYOUT[modality][:2]
        if modality not in available:
            raise FileNotFoundError(
                f"{root} has no folder {folder!r}; expected {folder}/*{ending} there (found "
                f"{', '.join(_LAYOUT[m][0] for m in available) or 'no modality'})."
            )
        files = found.setdefault(modality, {})
        for path in sorted((root / folder).iterdir()):
            name = path.name.removesuffix(ending)
            if path.name.endswith(ending) and _NAME.fullmatch(name):
                named.add(name)
                if path.is_file():  # a link to nowhere is none
                    files[name] = path
            elif path.suffix == Path(ending).suffix:
                problems.append(Defect(path, f"not named a<action>_s<subject>_t<trial>{ending}"))
    every = sorted(named, key=parse_name)
    names = tuple(name for name in every if all(name in files for files in found.values()))
    problems += [
        Defect(path_of(root, name, modality), "missing")
        for name in every
        for modality in modalities
        if name not in found[modality]
    ]
    if not names:
        raise FileNotFoundError(
            f"{root} has no clip with all of {', '.join(modalities)}; expected files such as "
            + " and ".join(str(path_of(Path(), "a1_s1_t1", m)) for m in modalities)
            + "."
        )
    files_of = {m: tuple(found[m][name] for name in names) for m in modalities}
    return Catalog(root, names, files_of, available, tuple(problems))


def path_of(root: Path, name: str, modality: str) -> Path:
    """Where a clip's file belongs."""
    folder, ending = _LAYOUT[modality][:2]
    return root / folder / f"{name}{ending}"


def run_in_threads(
    work: Callable[[Any], Any], jobs: Sequence[Any], *, workers: int, doing: str, progress: bool
) -> list[Any]:
    """Do every job in a few threads, with a bar if asked for; what one raises ends them all."""
    bar = rich.progress.Progress(disable=not progress, transient=True)
    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(bar.track(pool.map(work, jobs), total=len(jobs), description=doing))


def read_clip(path: str | Path, *, modality: str) -> np.ndarray:
    """Read one file of the dataset, time first.

    "inertial" is ``(T, 6)`` and "skeleton" ``(T, 20, 3)``, float64; "depth" ``(T, height, width)``
    in the file's integers (millimetres); "rgb" ``(T, height, width, 3)``, uint8.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if the file cannot be read or does not hold such a recording.
        ImportError: for "rgb", if PyAV is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np, scipy.io
        >>> from perfalign_jax.har.data.utd_mhad import read_clip
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "a1_s1_t1_inertial.mat"
        ...     scipy.io.savemat(path, {"d_iner": np.zeros((50, 6))})
        ...     read_clip(path, modality="inertial").shape
        (50, 6)
    """
    _checks.one_of(modality, "modality", tuple(_LAYOUT))
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if modality == "rgb":
        return _decode(path)
    _, _, variable, axes, time = _LAYOUT[modality]
    try:
        content = scipy.io.loadmat(path, variable_names=[variable])
    except NotImplementedError:
        raise DamagedFileError(
            f"{path}: MATLAB 7.3 (HDF5) files are not read; save as v7."
        ) from None
    except Exception as error:  # scipy raises whatever the broken bytes lead it into
        raise DamagedFileError(f"{path}: no readable MATLAB file ({error})") from None
    value = content.get(variable)
    if value is None:
        raise DamagedFileError(f"{path}: no variable {variable!r}")
    if not isinstance(value, np.ndarray):  # a sparse matrix
        raise DamagedFileError(f"{path}: expected an array, got a {type(value).__name__}")
    expected = "(" + ", ".join("T" if i == time else str(a or "any") for i, a in enumerate(axes))
    if value.ndim != len(axes) or any(
        a is not None and a != size for a, size in zip(axes, value.shape, strict=True)
    ):
        raise DamagedFileError(f"{path}: expected shape {expected}), got {value.shape}")
    if value.dtype.kind not in "fiu":
        raise DamagedFileError(f"{path}: expected numbers, got dtype {value.dtype}")
    if value.shape[time] < 2 or value.size == 0:
        raise DamagedFileError(f"{path}: expected at least 2 frames, got shape {value.shape}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise DamagedFileError(f"{path}: NaN or infinity in {variable!r}")
    first = np.moveaxis(value, time, 0)
    return first if modality == "depth" else first.astype(np.float64)


def _decode(path: Path) -> UInt8[np.ndarray, "t h w 3"]:
    """Every frame of a video file."""
    try:
        import av
    except ImportError:
        raise ImportError(
            "RGB videos are read with PyAV, which the extra 'har' brings: pip install av."
        ) from None
    try:
        with av.open(str(path)) as container:
            promised = container.streams.video[0].frames  # 0 where the file does not say
            frames, left = [], _MOST_UNPACKED
            for frame in container.decode(video=0):
                left -= 3 * frame.width * frame.height
                if left < 0:
                    raise MemoryError("it would unpack to more than 2 GiB")
                frames.append(frame.to_ndarray(format="rgb24"))
    except Exception as error:  # whatever the broken bytes lead the decoder into
        raise DamagedFileError(f"{path}: no readable video ({error})") from None
    if len(frames) < max(2, 0.95 * promised):  # decoders may drop a frame at the end
        expected = promised or "at least 2"
        raise DamagedFileError(f"{path}: expected {expected} frames, got {len(frames)}")
    if len({frame.shape for frame in frames}) > 1:
        raise DamagedFileError(f"{path}: its frames have different sizes")
    return np.stack(frames)
