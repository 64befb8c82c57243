"""UTD-MHAD in memory: every clip at fixed length, videos small and kept in a cache.

A clip of which a file is missing or damaged is left out and reported by name, or is an error if so
asked; what concerns the whole dataset (no such folder, no clip with all modalities) always is one.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped, UInt8

from perfalign_jax import _checks
from perfalign_jax.arrays import open_array
from perfalign_jax.har.data.utd_mhad import (
    DamagedFileError,
    Defect,
    discover,
    parse_name,
    read_clip,
    run_in_threads,
)
from perfalign_jax.serialization import write_whole

__all__ = ["Recordings", "keep_array", "read_recordings", "to_series"]

_VERSION = 2  # part of every cache key: raise it when a reader's answer changes
_GRID = 12  # squares along each side of a video that is turned into a series


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Clips of several modalities in memory, row ``i`` of everything being the same clip.

    Attributes:
        names: names of the clips, ``a<action>_s<subject>_t<trial>``.
        signals: by modality, shape ``(n, length, ...)``: "inertial" ``(n, length, 6)`` in g and
            degrees/s, "skeleton" ``(n, length, 20, 3)`` in metres, "depth"
            ``(n, frames, size, size)`` and "rgb" ``(n, frames, size, size, 3)``, uint8.
        problems: files that kept their clips out.

    Example:
        >>> from perfalign_jax.har.data.dataset import Recordings
        >>> Recordings(names=("a3_s1_t2", "a27_s8_t4"), signals={}, problems=()).actions.tolist()
        [3, 27]
    """

    names: tuple[str, ...]
    signals: dict[str, Shaped[np.ndarray, "n length ..."]]
    problems: tuple[Defect, ...]

    @property
    def actions(self) -> Int[np.ndarray, " n"]:
        """Action of each clip, from 1 to 27: the class."""
        return np.array([parse_name(name)[0] for name in self.names], np.int64)

    @property
    def subjects(self) -> Int[np.ndarray, " n"]:
        """Subject of each clip, from 1 to 8."""
        return np.array([parse_name(name)[1] for name in self.names], np.int64)


def resample(signal: Float[np.ndarray, "t ..."], *, length: int) -> Float[np.ndarray, "l ..."]:
    """Bring a signal ``(T, ...)`` to a fixed number of frames by linear interpolation in time.

    First and last frame stay what they are; the frames in between are spread evenly.
    """
    length = _checks.integer(length, "length", low=2)
    if not isinstance(signal, np.ndarray) or signal.dtype.kind != "f":
        raise TypeError("signal must be a floating-point NumPy array.")
    if signal.ndim < 1 or signal.shape[0] < 2:
        raise ValueError(f"signal must have at least 2 frames, got shape {signal.shape}.")
    when = np.linspace(0, signal.shape[0] - 1, length)
    before = np.minimum(when.astype(np.int64), signal.shape[0] - 2)
    share = (when - before).astype(signal.dtype).reshape(-1, *(1,) * (signal.ndim - 1))
    signal = np.ascontiguousarray(signal)
    return signal[before] * (1 - share) + signal[before + 1] * share


def crop_person(
    video: Integer[np.ndarray, "t h w"], *, frames: int, size: int
) -> UInt8[np.ndarray, "frames size size"]:
    """Cut the person out of a depth video in mm: a square around every place they go, in grey.

    The square is that of the pixels that saw something in any frame, without the outermost 0.2 %.
    Grey is depth relative to the person's median: 128 at the median, 255 at 0.7 m nearer, 1 at 0.7
    m farther, 0 where nothing was seen. The frames are spread evenly over the clip.
    """
    if video.ndim != 3 or 0 in video.shape:
        raise ValueError(f"video must have shape (T, H, W), got {video.shape}.")
    _checks.integer(frames, "frames", low=1)
    _checks.integer(size, "size", low=1)
    seen = video > 0
    if not seen.any():
        raise ValueError("video sees nothing: every pixel is 0.")
    top, bottom = _extent(seen.sum(axis=(0, 2)))
    left, right = _extent(seen.sum(axis=(0, 1)))
    side = max(bottom - top, right - left)
    middle = float(np.median(video[seen]))
    fine = 3  # samples along each edge of a pixel of the answer
    offsets = (np.arange(size * fine) + 0.5) * side / (size * fine) - side / 2
    rows, columns = (
        np.floor((low + high) / 2 + offsets).astype(np.int64)
        for low, high in ((top, bottom), (left, right))
    )
    inside = np.logical_and.outer(
        (rows >= 0) & (rows < video.shape[1]), (columns >= 0) & (columns < video.shape[2])
    )
    rows = np.clip(rows, 0, video.shape[1] - 1)
    columns = np.clip(columns, 0, video.shape[2] - 1)
    depth = video[_spread(len(video), frames)][:, rows][:, :, columns].astype(np.float32)
    grey = np.clip(128 - (depth - middle) * (127 / 700), 1, 255) * ((depth > 0) & inside)
    blocks = grey.reshape(frames, size, fine, size, fine).mean(axis=(2, 4))
    return np.round(blocks).astype(np.uint8)


def _extent(counts: Int[np.ndarray, " n"]) -> tuple[int, int]:
    """First and one past the last place, without the outermost 0.2 % on either side."""
    share = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(share, 0.002)), int(np.searchsorted(share, 0.998)) + 1


def _spread(length: int, frames: int) -> Int[np.ndarray, " frames"]:
    """Indices of frames spread evenly over a clip, first and last among them."""
    return np.round(np.linspace(0, length - 1, frames)).astype(np.int64)


def shrink_video(
    video: UInt8[np.ndarray, "t h w 3"], *, frames: int, size: int
) -> UInt8[np.ndarray, "frames size size 3"]:
    """Bring a colour video to a fixed number of small square frames, spread evenly over the clip.

    The middle square of every frame (people stand in the middle) is averaged down.
    """
    if video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
        raise ValueError(f"video must have shape (T, H, W, 3), got {video.shape}.")
    if video.dtype != np.uint8:
        raise TypeError(f"video must be uint8, got {video.dtype}.")
    side = min(video.shape[1:3])
    _checks.integer(frames, "frames", low=1)
    _checks.integer(size, "size", low=1, high=side, why=" (the shorter side of a frame)")
    top, left = (video.shape[1] - side) // 2, (video.shape[2] - side) // 2
    chosen = video[_spread(len(video), frames), top : top + side, left : left + side]
    edges = np.linspace(0, side, size + 1)
    starts = np.floor(edges[:-1]).astype(np.int64)
    counts = np.diff([*starts, side]).astype(np.float32)
    sums = np.add.reduceat(chosen.astype(np.float32), starts, axis=1)
    sums = np.add.reduceat(sums, starts, axis=2)
    means = sums / (counts[:, None] * counts[None, :])[None, :, :, None]
    return np.round(means).astype(np.uint8)


def keep_array(
    folder: Path | None, stem: str, made_from: Any, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return what ``compute`` returns, from the cache if it was computed before.

    The file's name is ``stem`` and a digest of ``made_from``, everything that the result depends
    on, whose ``repr`` must say it all: a changed setting or source never meets an old file. It
    appears whole or not at all, so an interrupted run leaves nothing broken behind. The folder is
    made if missing; None computes anew.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from perfalign_jax.har.data.dataset import keep_array
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = keep_array(pathlib.Path(folder), "x", ("size", 2), lambda: np.ones(2))
        ...     again = keep_array(pathlib.Path(folder), "x", ("size", 2), lambda: np.zeros(2))
        >>> again.tolist()
        [1.0, 1.0]
    """
    if folder is None:
        return compute()
    digest = hashlib.sha256(repr((_VERSION, made_from)).encode()).hexdigest()[:16]
    path = Path(folder) / f"{stem}-{digest}.npy"
    try:
        return open_array(path).rows()
    except (OSError, TypeError, ValueError):  # not there, or damaged by someone else: make it again
        pass
    value = compute()
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    return value


def read_recordings(
    root: str | Path,
    *,
    modalities: Sequence[str] = ("inertial", "skeleton", "depth"),
    length: int = 96,
    frames: int = 32,
    size: int = 48,
    damaged: Literal["skip", "raise"] = "skip",
    cache: Path | None = None,
    workers: int = 2,
    progress: bool = False,
) -> Recordings:
    """Read every clip that has all modalities, at fixed length; videos as small squares.

    Args:
        root: the dataset's folder.
        modalities: which of "inertial", "skeleton", "depth" and "rgb" to read.
        length: frames of an inertial or skeleton series.
        frames: frames of a small video.
        size: height and width of a small video: of a depth video a square around the person, in
            grey; of a colour video the middle square.
        damaged: "skip" leaves clips with a missing or damaged file out and lists them in
            ``problems``, "raise" makes the first one an error.
        cache: folder for the small videos, the costly part: an interrupted run goes on where it
            stopped. They are kept by the source's path, size and date and by the settings.
        workers: threads that read.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: see ``discover``; with ``damaged="raise"``, if a clip's file is missing.
        DamagedFileError: with ``damaged="raise"``, if a file is damaged.
        ValueError: if a modality is unknown, or no clip is left.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np, scipy.io
        >>> from perfalign_jax.har.data.dataset import read_recordings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "Inertial"
        ...     path.mkdir()
        ...     scipy.io.savemat(path / "a1_s1_t1_inertial.mat", {"d_iner": np.zeros((50, 6))})
        ...     (path / "a1_s1_t2_inertial.mat").touch()
        ...     found = read_recordings(folder, modalities=["inertial"], length=20)
        >>> found.signals["inertial"].shape, len(found.problems)
        ((1, 20, 6), 1)
    """
    _checks.one_of(damaged, "damaged", ("skip", "raise"))
    length = _checks.integer(length, "length", low=2)
    frames = _checks.integer(frames, "frames", low=2)
    size = _checks.integer(size, "size", low=1)
    workers = _checks.integer(workers, "workers", low=1)
    modalities = tuple(modalities)
    catalog = discover(root, modalities=modalities)
    missing = [problem for problem in catalog.problems if problem.reason == "missing"]
    if missing and damaged == "raise":
        raise FileNotFoundError(f"{missing[0].path} is missing ({len(missing)} such files in all).")

    def small(path: Path, modality: str) -> np.ndarray:
        video = read_clip(path, modality=modality)
        shrink = crop_person if modality == "depth" else shrink_video
        try:
            return shrink(video, frames=frames, size=size)
        except ValueError as error:
            raise DamagedFileError(f"{path}: {error}") from None

    def read(job: tuple[str, Path]) -> np.ndarray | Defect:
        modality, path = job
        try:
            if modality not in ("depth", "rgb"):
                return resample(read_clip(path, modality=modality), length=length)
            state = path.stat()
            made_from = (str(path.resolve()), state.st_size, state.st_mtime_ns, frames, size)
            return keep_array(cache, path.stem, made_from, lambda: small(path, modality))
        except DamagedFileError as error:
            if damaged == "raise":
                raise
            return Defect(path, f"damaged: {str(error).removeprefix(f'{path}: ')}")

    jobs = [(m, path) for m in modalities for path in catalog.files[m]]
    done = run_in_threads(read, jobs, workers=workers, doing="reading UTD-MHAD", progress=progress)
    problems = [*catalog.problems, *(one for one in done if isinstance(one, Defect))]
    clips = [done[i :: len(catalog.names)] for i in range(len(catalog.names))]  # of all modalities
    keep = [i for i, clip in enumerate(clips) if not any(isinstance(one, Defect) for one in clip)]
    if not keep:
        raise ValueError(
            f"no clip of {catalog.root} could be read; the first problem is {problems[0]}."
        )
    signals = {
        m: np.ascontiguousarray(np.stack([clips[i][row] for i in keep]))  # whatever files hold
        for row, m in enumerate(modalities)
    }
    ordered = tuple(sorted(problems, key=lambda p: str(p.path)))
    return Recordings(tuple(catalog.names[i] for i in keep), signals, ordered)


def to_series(
    signal: Shaped[np.ndarray, "n length ..."], *, modality: str
) -> Float[np.ndarray, "n length channels"]:
    """Turn one modality's recordings into multichannel series with values around one.

    The units are fixed, not estimated, so nothing of one clip reaches another: 0.5 g and 50
    degrees/s; joints relative to where the body is on average in the clip, in units of 0.2 m;
    pixels of a video, averaged over squares so that 12 by 12 are left, in units of 64.

    Args:
        signal: recordings of one modality, as in ``Recordings.signals``.
        modality: "inertial", "skeleton", "depth" or "rgb".

    Returns:
        Shape ``(n, length, channels)``, without unit, float32: 6, 60, 144 or 432 channels.

    Raises:
        TypeError: if the signal does not hold real numbers.
        ValueError: if the modality is unknown, the shape does not fit it, or the signal is not
            finite (in float32).

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.data.dataset import to_series
        >>> to_series(np.ones((1, 2, 6)), modality="inertial")[0, 0].tolist()
        [2.0, 2.0, 2.0, 0.019999..., 0.019999..., 0.019999...]
    """
    _checks.one_of(modality, "modality", ("inertial", "skeleton", "depth", "rgb"))
    wanted = {"inertial": (6,), "skeleton": (20, 3), "depth": (0, 0), "rgb": (0, 0, 3)}[modality]
    if signal.dtype.kind not in "fiu":
        raise TypeError(f"signal must hold real numbers, got dtype {signal.dtype}.")
    if signal.ndim != 2 + len(wanted) or any(
        size not in (0, came) for size, came in zip(wanted, signal.shape[2:], strict=True)
    ):
        raise ValueError(f"signal of modality {modality!r} has an unexpected shape {signal.shape}.")
    with np.errstate(over="ignore"):  # told below
        if modality == "inertial":
            series = signal / np.array([0.5] * 3 + [50.0] * 3)
        elif modality == "skeleton":
            series = (signal - signal.mean(axis=(1, 2), keepdims=True)) / 0.2
            series = series.reshape(*signal.shape[:2], 60)
        else:
            series = _shrink_frames(signal) / 64
        series = series.astype(np.float32)
    _checks.finite(series, "signal")
    return series


def _shrink_frames(signal: np.ndarray) -> np.ndarray:
    """Means over squares, so that 12 by 12 of them are left of every frame."""
    n, length, height, width = signal.shape[:4]
    if height != width or height % _GRID:
        raise ValueError(
            "signal of a video must have square frames whose side is a multiple of "
            f"{_GRID}, got shape {signal.shape}."
        )
    block = height // _GRID
    blocks = signal.reshape(n, length, _GRID, block, _GRID, block, -1)
    return blocks.mean(axis=(3, 5), dtype=np.float32).reshape(n, length, -1)
