"""UTD-MHAD in memory: every clip at fixed length, depth as small grey videos kept in a cache.

A clip of which a file is missing or damaged is left out and reported by name; what concerns the
whole dataset (no such folder, no clip with all modalities) is an error.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
from jaxtyping import Float, Int, Integer

from perfalign_jax import _checks
from perfalign_jax.har.utd_mhad import DamagedFileError, Problem, discover, parse_name, read_clip
from perfalign_jax.serialization import write_whole

__all__ = [
    "Recordings",
    "keep_array",
    "read_recordings",
    "resample",
    "shrink_video",
    "to_series",
]

_VERSION = 1  # part of every cache key: raise it when a reader's answer changes


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Clips of several modalities in memory, row ``i`` of everything being the same clip.

    Attributes:
        names: names of the clips, ``a<action>_s<subject>_t<trial>``.
        signals: by modality, shape ``(n, length, ...)``: "inertial" ``(n, length, 6)`` in g and
            degrees/s, "skeleton" ``(n, length, 20, 3)`` and "depth" ``(n, length, height, width)``
            in metres.
        problems: files that kept their clips out.

    Example:
        >>> from perfalign_jax.har.dataset import Recordings
        >>> Recordings(names=("a3_s1_t2", "a27_s8_t4"), signals={}, problems=()).actions.tolist()
        [3, 27]
    """

    names: tuple[str, ...]
    signals: dict[str, Float[np.ndarray, "n length ..."]]
    problems: tuple[Problem, ...]

    @property
    def actions(self) -> Int[np.ndarray, " n"]:
        """Action of each clip, from 1 to 27: the class."""
        return np.array([parse_name(name)[0] for name in self.names], np.int64)

    @property
    def subjects(self) -> Int[np.ndarray, " n"]:
        """Subject of each clip, from 1 to 8."""
        return np.array([parse_name(name)[1] for name in self.names], np.int64)


def resample(signal: Float[np.ndarray, "t ..."], *, length: int) -> Float[np.ndarray, "l ..."]:
    """Bring a signal to a fixed number of frames by linear interpolation in time.

    First and last frame stay what they are; the frames in between are spread evenly.

    Args:
        signal: shape ``(T, ...)``, time first, ``T >= 2``.
        length: number of frames wanted, at least 2.

    Returns:
        Shape ``(length, ...)``, in the units and the floating-point dtype of the signal.

    Raises:
        TypeError: if ``length`` is no integer or the signal no floating-point array.
        ValueError: if there are fewer than two frames.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.dataset import resample
        >>> resample(np.array([[0.0], [1.0], [4.0]]), length=5).ravel().tolist()
        [0.0, 0.5, 1.0, 2.5, 4.0]
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


def shrink_video(
    video: Integer[np.ndarray, "t h w"], *, height: int, width: int
) -> Float[np.ndarray, "t height width"]:
    """Average a depth video over blocks of pixels, in metres.

    Args:
        video: shape ``(T, H, W)``, unsigned integers, in millimetres; 0 where nothing was seen.
        height: rows wanted; divides ``H``.
        width: columns wanted; divides ``W``.

    Returns:
        Shape ``(T, height, width)``, float32, in metres.

    Raises:
        ValueError: if the video cannot be cut into such blocks.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.dataset import shrink_video
        >>> shrink_video(np.full((2, 4, 6), 1500, np.uint16), height=2, width=2).tolist()[0]
        [[1.5, 1.5], [1.5, 1.5]]
    """
    if video.ndim != 3 or video.shape[1] % height or video.shape[2] % width:
        raise ValueError(
            f"a video of shape {video.shape} cannot be cut into {height} x {width} equal blocks."
        )
    # The files hold columns of pixels: summing over neighbouring columns first runs along memory.
    columns = video.transpose(0, 2, 1)
    t, w, h = columns.shape
    sums = columns.reshape(t, width, w // width, h).sum(axis=2, dtype=np.uint32)
    sums = sums.reshape(t, width, height, h // height).sum(axis=3)
    blocks = sums.transpose(0, 2, 1) / (1000 * (h // height) * (w // width))
    return blocks.astype(np.float32)


def keep_array(
    folder: Path | None, stem: str, made_from: Any, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return what ``compute`` returns, from the cache if it was computed before.

    The file's name holds a digest of ``made_from``, so a changed setting or source never meets an
    old file; it appears whole or not at all, so an interrupted run leaves nothing broken behind.

    Args:
        folder: cache folder, made if missing; None computes anew.
        stem: what the file is called before the digest.
        made_from: everything the result depends on; its ``repr`` must say it all.
        compute: makes the array.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from perfalign_jax.har.dataset import keep_array
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
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged by someone else: make it again
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
    frames: int = 48,
    size: tuple[int, int] = (15, 20),
    cache: Path | None = None,
    workers: int = 2,
    progress: bool = False,
) -> Recordings:
    """Read every clip that has all modalities, at fixed length; depth as small grey videos.

    Args:
        root: the dataset's folder.
        modalities: which of "inertial", "skeleton" and "depth" to read.
        length: frames of an inertial or skeleton series.
        frames: frames of a small depth video.
        size: height and width of a small depth video, divisors of 240 and 320.
        cache: folder for the small videos, the costly part: an interrupted run goes on where it
            stopped. They are kept by the source's path, size and date and by the settings.
        workers: threads that read.
        progress: show a progress bar.

    Returns:
        ``Recordings``; clips with a missing or damaged file are left out and in ``problems``.

    Raises:
        FileNotFoundError: see ``discover``.
        ValueError: if a modality cannot be read, or no clip is left.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np, scipy.io
        >>> from perfalign_jax.har.dataset import read_recordings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "Inertial"
        ...     path.mkdir()
        ...     scipy.io.savemat(path / "a1_s1_t1_inertial.mat", {"d_iner": np.zeros((50, 6))})
        ...     (path / "a1_s1_t2_inertial.mat").touch()
        ...     found = read_recordings(folder, modalities=["inertial"], length=20)
        >>> found.signals["inertial"].shape, len(found.problems)
        ((1, 20, 6), 1)
    """
    for modality in modalities:
        if modality == "rgb":
            raise ValueError("RGB videos are found but not read (no decoder): use 'depth'.")
    length = _checks.integer(length, "length", low=2)
    frames = _checks.integer(frames, "frames", low=2)
    height, width = (_checks.integer(s, "size", low=1) for s in size)
    catalog = discover(root, modalities=modalities)

    def read(modality: str, path: Path) -> np.ndarray:
        if modality != "depth":
            return resample(read_clip(path, modality=modality), length=length)

        def small() -> np.ndarray:
            video = read_clip(path, modality=modality)
            try:
                return resample(shrink_video(video, height=height, width=width), length=frames)
            except ValueError as error:
                raise DamagedFileError(f"{path}: {error}") from None

        state = path.stat()
        made_from = (str(path.resolve()), state.st_size, state.st_mtime_ns, frames, height, width)
        return keep_array(cache, path.stem, made_from, small)

    jobs = [(m, i, path) for m in modalities for i, path in enumerate(catalog.files[m])]
    read_ones: dict[str, dict[int, np.ndarray]] = {m: {} for m in modalities}
    problems = list(catalog.problems)
    bar = rich.progress.Progress(disable=not progress, transient=True)
    with bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("reading UTD-MHAD", total=len(jobs))
        waiting = {pool.submit(read, m, path): (m, i, path) for m, i, path in jobs}
        try:
            for done in concurrent.futures.as_completed(waiting):
                modality, index, path = waiting[done]
                try:
                    read_ones[modality][index] = done.result()
                except DamagedFileError as error:
                    reason = str(error).removeprefix(f"{path}: ")
                    problems.append(Problem(path, f"damaged: {reason}"))
                bar.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    keep = [i for i in range(len(catalog.names)) if all(i in read_ones[m] for m in modalities)]
    if not keep:
        raise ValueError(
            f"no clip of {catalog.root} could be read; the first problem is {problems[0]}."
        )
    signals = {m: np.stack([read_ones[m][i] for i in keep]) for m in modalities}
    ordered = tuple(sorted(problems, key=lambda p: str(p.path)))
    return Recordings(tuple(catalog.names[i] for i in keep), signals, ordered)


def to_series(
    signal: Float[np.ndarray, "n length ..."], *, modality: str
) -> Float[np.ndarray, "n length channels"]:
    """Turn one modality's recordings into multichannel series with values around one.

    The units are fixed, not estimated, so nothing of one clip reaches another: 0.5 g and 50
    degrees/s; joints relative to where the body is on average in the clip, in units of 0.2 m; depth
    in units of 0.5 m.

    Args:
        signal: recordings of one modality, as in ``Recordings.signals``.
        modality: "inertial", "skeleton" or "depth".

    Returns:
        Shape ``(n, length, channels)``, without unit: 6, 60 or ``height * width`` channels.

    Raises:
        ValueError: if the modality is unknown or the shape does not fit it.

    Example:
        >>> import numpy as np
        >>> from perfalign_jax.har.dataset import to_series
        >>> to_series(np.ones((1, 2, 6)), modality="inertial")[0, 0].tolist()
        [2.0, 2.0, 2.0, 0.02, 0.02, 0.02]
    """
    _checks.one_of(modality, "modality", ("inertial", "skeleton", "depth"))
    tail = {"inertial": (6,), "skeleton": (20, 3), "depth": None}[modality]
    if signal.ndim != (3 if modality == "inertial" else 4) or tail not in (None, signal.shape[2:]):
        raise ValueError(f"signal of modality {modality!r} has an unexpected shape {signal.shape}.")
    if modality == "inertial":
        return signal / np.array([0.5] * 3 + [50.0] * 3, signal.dtype)
    if modality == "skeleton":
        signal = (signal - signal.mean(axis=(1, 2), keepdims=True)) / 0.2
    else:
        signal = signal / 0.5
    return signal.reshape(*signal.shape[:2], -1)
