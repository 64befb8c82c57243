"""What the transfer experiments start from: features of every clip, and who is used for what."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import sklearn.datasets

from perfalign_jax.har import dataset, features, splits
from perfalign_jax.report import Options

RAW, LIFTED = "raw signals", "random convolutions"
AUTHORS, RANDOM, HELD_OUT = "authors' split", "random splits", "subject held out"
WORKERS = 2


@dataclasses.dataclass(frozen=True)
class TransferOptions(Options):
    """Options of this experiment.

    Attributes:
        root: folder of UTD-MHAD; by default that in the environment variable UTD_MHAD_ROOT.
    """

    root: Path | None = None


@dataclasses.dataclass(frozen=True)
class Material:
    """Features of every clip, and who is used for what: all that the protocol needs."""

    data: str
    sources: tuple[str, ...]
    target: str
    series: dict[str, np.ndarray]  # modality -> (n, length, channels)
    taps: int  # frames that a random kernel sees
    arrays: dict[str, dict[str, np.ndarray]]  # kind of features -> modality -> (n, d)
    labels: np.ndarray
    splits: dict[str, list[splits.Split]]  # kind of split -> splits
    problems: list[str]


def lift(
    series: Mapping[str, np.ndarray], options: TransferOptions, *, taps: int, seed: int
) -> dict[str, np.ndarray]:
    """Random-convolution features of every modality, from the cache where they are there."""
    count = 300 if options.quick else 1000
    keys = jax.random.split(jax.random.key(seed), len(series))

    def one(modality: str, x: np.ndarray, key: jax.Array) -> np.ndarray:
        def compute() -> np.ndarray:
            _, length, channels = x.shape
            kernels = features.draw_kernels(
                key, channels=channels, length=length, count=count, taps=taps
            )
            return np.asarray(features.convolve(x, kernels))

        content = hashlib.sha256(x.tobytes()).hexdigest()
        made_from = (content, x.shape, count, taps, jax.random.key_data(key).tolist())
        stem = f"features-{modality.replace(' ', '-')}"
        return dataset.keep_array(options.out / "cache", stem, made_from, compute)

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(series, pool.map(one, series, series.values(), keys), strict=True))


def random_splits(n: int, options: TransferOptions) -> list[splits.Split]:
    count = 2 if options.quick else 100 if options.full else 20
    keys = jax.random.split(jax.random.key(options.seed), count)
    return [splits.split_at_random(n, key=key, name=f"random {i}") for i, key in enumerate(keys)]


def load_recordings(root: Path, options: TransferOptions) -> Material:
    """UTD-MHAD: skeleton and depth as sources, the inertial sensor as target."""
    sources = ("skeleton",) if options.quick else ("skeleton", "depth")
    recordings = dataset.read_recordings(
        root, modalities=("inertial", *sources), cache=options.out / "cache", progress=True
    )
    series = {
        modality: dataset.to_series(signal, modality=modality)
        for modality, signal in recordings.signals.items()
    }
    n = len(recordings.names)
    # As raw signals fewer frames will do: 32 of the skeleton, 8 of the video.
    strides = {"inertial": 1, "skeleton": 3, "depth": 4}
    raw = {m: x[:, strides[m] // 2 :: strides[m]].reshape(n, -1) for m, x in series.items()}
    authors = splits.read_split(root / "splits" / "40_40_10_10", recordings.names)
    subjects, counts = np.unique(recordings.subjects, return_counts=True)
    held_out = [
        splits.hold_out_subject(
            recordings.subjects,
            subject=int(subject),
            key=jax.random.fold_in(jax.random.key(options.seed), int(subject)),
            pairs=(n - int(counts.max())) // 2,  # half of what the largest subject leaves
        )
        for subject in subjects[: 1 if options.quick else None]
    ]
    missing = [f"{name}: in the authors' split, but not read" for name in authors.missing]
    return Material(
        data="UTD-MHAD",
        sources=sources,
        target="inertial",
        series=series,
        taps=9,
        arrays={RAW: raw, LIFTED: lift(series, options, taps=9, seed=options.seed)},
        labels=recordings.actions,
        splits={AUTHORS: [authors], RANDOM: random_splits(n, options), HELD_OUT: held_out},
        problems=[str(problem) for problem in recordings.problems] + missing,
    )


def load_digits(options: TransferOptions) -> Material:
    """Stand-in: left half of an image of a digit as source, right half as target."""
    digits = sklearn.datasets.load_digits()
    n = 861  # as many as UTD-MHAD has clips
    images = (digits.images[:n] / 8 - 1).astype(np.float32)
    series = {"left half": images[:, :, :4], "right half": images[:, :, 4:]}
    raw = {half: x.reshape(n, -1) for half, x in series.items()}
    raw = {half: x[:, x.std(axis=0) > 0.1] for half, x in raw.items()}  # pixels that change
    return Material(
        data="digits stand-in",
        sources=("left half",),
        target="right half",
        series=series,
        taps=3,
        arrays={RAW: raw, LIFTED: lift(series, options, taps=3, seed=options.seed)},
        labels=digits.target[:n],
        splits={RANDOM: random_splits(n, options)},
        problems=[],
    )


def load_material(options: TransferOptions) -> Material:
    """UTD-MHAD from ``--root`` or ``UTD_MHAD_ROOT``; without either the digits."""
    root = options.root or os.environ.get("UTD_MHAD_ROOT")
    return load_recordings(Path(root), options) if root else load_digits(options)
