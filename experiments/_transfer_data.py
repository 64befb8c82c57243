"""What the transfer experiments start from: features of every clip, and who is used for what."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
from _kit.options import Options
from _kit.rows import Figure

from perfalign_jax import lift
from perfalign_jax.har.data import dataset, simulate, splits
from perfalign_jax.har.protocol.methods import Method
from perfalign_jax.plotting import plot_transfer

RAW, LIFTED = "raw signals", "random convolutions"
AUTHORS, RANDOM, HELD_OUT = "authors' split", "random splits", "subject held out"
SPLIT = Path("splits") / "40_40_10_10"
TARGET, REAL = "inertial", "UTD-MHAD"
BOTH = "skeleton and depth"  # two views that stand side by side: one side of three views
WORKERS = 2
ALL_SPLITS = 100  # random splits of the full protocol


@dataclasses.dataclass(frozen=True)
class TransferOptions(Options):
    """Options of the experiments on recordings.

    Attributes:
        root: folder of UTD-MHAD; by default that in the environment variable UTD_MHAD_ROOT. Without
            either, recordings are simulated.
    """

    root: Path | None = None


@dataclasses.dataclass(frozen=True)
class Material:
    """Features of every clip, and who is used for what: all that the protocol needs."""

    data: str
    sources: tuple[str, ...]
    series: dict[str, np.ndarray]  # modality -> (n, length, channels)
    arrays: dict[str, dict[str, np.ndarray]]  # kind of features -> modality -> (n, d)
    labels: np.ndarray
    splits: dict[str, list[splits.Split]]  # kind of split -> splits; the random ones second
    problems: list[str]


def convolve(
    series: Mapping[str, np.ndarray], options: TransferOptions, *, seed: int
) -> dict[str, np.ndarray]:
    """Random-convolution features of every modality, from the cache where they are there."""
    count = 300 if options.quick else 1000

    def one(modality: str, x: np.ndarray) -> np.ndarray:
        key = jax.random.fold_in(jax.random.key(seed), sum(modality.encode()))

        def compute() -> np.ndarray:
            return np.asarray(lift.apply(lift.fit_convolutions(x, key=key, count=count), x))

        content = hashlib.sha256(x.tobytes()).hexdigest()
        code = hashlib.sha256(Path(lift.__file__).read_bytes()).hexdigest()
        made_from = (content, x.shape, count, jax.random.key_data(key).tolist(), code)
        return dataset.keep_array(options.out / "cache", f"features-{modality}", made_from, compute)

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(series, pool.map(one, series, series.values()), strict=True))


def beside(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same features, with those of skeleton and depth together where both are there."""
    together = [arrays[m] for m in ("skeleton", "depth") if m in arrays]
    both = {BOTH: np.concatenate(together, axis=1)} if len(together) == 2 else {}
    return dict(arrays) | both


def name_part(what: str, count: int, whole: int) -> str:
    """Say of how small a part of the full protocol something comes, if it does."""
    return what if count >= whole else f"{what} ({count} of {whole})"


def random_splits(n: int, options: TransferOptions) -> list[splits.Split]:
    count = 2 if options.quick else ALL_SPLITS if options.full else 10
    keys = jax.random.split(jax.random.key(options.seed), count)
    return [splits.split_at_random(n, key=key, name=f"random {i}") for i, key in enumerate(keys)]


def find_recordings(options: TransferOptions, *, modalities: tuple[str, ...]) -> tuple[Path, str]:
    """Folder and name of UTD-MHAD, or of recordings simulated in its layout where it is not."""
    options.out.mkdir(parents=True, exist_ok=True)  # fails now, not when there is work to lose
    root = options.root or os.environ.get("UTD_MHAD_ROOT")
    if root:
        if not (Path(root) / SPLIT).is_dir():
            raise SystemExit(
                f"{root} (--root, or UTD_MHAD_ROOT) has no folder {SPLIT} with the authors' split."
            )
        return Path(root), REAL
    rich.console.Console().print("[bold]UTD_MHAD_ROOT is not set: simulated recordings stand in.")
    subjects, actions = (4, range(1, 28, 3)) if options.quick else (6, range(1, 28))
    folder = options.out / f"simulated-{subjects}x{len(actions)}-seed-{options.seed}"
    size: dict[str, Any] = {"subjects": subjects, "trials": 2, "actions": actions}
    key = jax.random.key(options.seed)
    simulate.simulate(folder, key=key, modalities=modalities, progress=True, **size)
    return folder, "simulated recordings"


def read_clips(
    options: TransferOptions, *, modalities: tuple[str, ...]
) -> tuple[str, dataset.Recordings, dict[str, np.ndarray], splits.Split, list[str]]:
    """Name of the data, recordings and their series, the authors' split, and what is missing."""
    root, name = find_recordings(options, modalities=modalities)
    recordings = dataset.read_recordings(
        root, modalities=modalities, cache=options.out / "cache", progress=True
    )
    series = {m: dataset.to_series(x, modality=m) for m, x in recordings.signals.items()}
    authors = splits.read_split(root / SPLIT, recordings.names)
    problems = [str(problem) for problem in recordings.problems]
    problems += [f"{clip}: in the authors' split, but not read" for clip in authors.missing]
    return name, recordings, series, authors, problems


def thin(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As raw signals fewer frames will do: 96 of the sensor, 32 of the skeleton, 8 of a video."""
    strides = {"inertial": 1, "skeleton": 3}
    chosen = {m: x[:, strides.get(m, 4) // 2 :: strides.get(m, 4)] for m, x in series.items()}
    return {m: x.reshape(len(x), -1) for m, x in chosen.items()}


def hold_out_subjects(subjects: np.ndarray, options: TransferOptions) -> list[splits.Split]:
    """Each subject held out, with half of what the largest one leaves as pairs."""
    present, counts = np.unique(subjects, return_counts=True)
    pairs, key = (len(subjects) - int(counts.max())) // 2, jax.random.key(options.seed)
    keys = {s: jax.random.fold_in(key, s) for s in present.tolist()}
    hold_out = functools.partial(splits.hold_out_subject, subjects, pairs=pairs)
    return [hold_out(subject=subject, key=key) for subject, key in keys.items()]


def by_label(tree: Any) -> Any:
    """The same with the names of methods instead of the methods, for a file or a figure."""
    if not isinstance(tree, dict):
        return tree
    return {k.label if isinstance(k, Method) else k: by_label(v) for k, v in tree.items()}


def draw_methods(accuracy: dict[str, Any], *, chance: float, **more: str) -> Figure:
    """Top-1 by source, method and kind of split."""
    panels: dict[str, Any] = {}
    for source, by_method in by_label(accuracy).items():
        for label, by_kind in by_method.items():
            shown = {kind: tuple(entry["top-1"].values())[:3] for kind, entry in by_kind.items()}
            panels.setdefault(f"{source} to IMU", {})[label] = shown
    return plot_transfer(panels, chance=chance, **more)


def load_material(options: TransferOptions) -> Material:
    """Skeleton and depth as sources, the inertial sensor as target."""
    sources = ("skeleton",) if options.quick else ("skeleton", "depth")
    name, recordings, series, authors, problems = read_clips(options, modalities=(TARGET, *sources))
    held_out = hold_out_subjects(recordings.subjects, options)[: 1 if options.quick else None]
    random = random_splits(len(recordings.names), options)
    return Material(
        data=name,
        sources=sources if options.quick else (*sources, BOTH),
        series=series,
        arrays={
            RAW: beside(thin(series)),
            LIFTED: beside(convolve(series, options, seed=options.seed)),
        },
        labels=recordings.actions,
        splits={
            AUTHORS: [authors],
            name_part(RANDOM, len(random), ALL_SPLITS): random,
            name_part(HELD_OUT, len(held_out), len(np.unique(recordings.subjects))): held_out,
        },
        problems=problems,
    )
