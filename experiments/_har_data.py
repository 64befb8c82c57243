"""The recordings that the experiments with encoders start from: real ones, or simulated ones."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import rich.console

from perfalign_jax.har import dataset, features, simulate, splits
from perfalign_jax.report import Options

AUTHORS, RANDOM, HELD_OUT = "authors' split", "random splits", "subject held out"


@dataclasses.dataclass(frozen=True)
class HarOptions(Options):
    """Options of the experiments with encoders.

    Attributes:
        root: folder of UTD-MHAD; by default that in the environment variable UTD_MHAD_ROOT. Without
            either, recordings are simulated.
        resume: go on from what an interrupted run left in ``<out>/har``; otherwise start afresh.
    """

    root: Path | None = None
    resume: bool = True


@dataclasses.dataclass(frozen=True)
class HarData:
    """Recordings as encoders take them, and what random convolutions make of them."""

    name: str
    root: Path
    names: tuple[str, ...]
    labels: np.ndarray
    subjects: np.ndarray
    inputs: dict[str, np.ndarray]  # modality -> series (n, length, channels) or videos, uint8
    raw: dict[str, np.ndarray]  # modality -> some frames of the series (n, d)
    lifted: dict[str, np.ndarray]  # modality -> features (n, 2 * kernels)
    problems: list[str]

    @property
    def simulated(self) -> bool:
        return self.name != "UTD-MHAD"


def load_har_data(options: HarOptions, *, modalities: tuple[str, ...]) -> HarData:
    """Read UTD-MHAD, or simulate recordings in its layout and read those."""
    console = rich.console.Console()
    root = options.root or os.environ.get("UTD_MHAD_ROOT")
    name = "UTD-MHAD" if root else "simulated recordings"
    if not root:
        console.print("[bold]UTD_MHAD_ROOT is not set: simulated recordings stand in.")
        subjects, actions = (4, range(1, 28, 3)) if options.quick else (6, range(1, 28))
        count = len(actions)
        root = options.out / f"simulated-{subjects}x{count}"
        simulate.simulate(
            root,
            key=jax.random.key(options.seed),
            subjects=subjects,
            trials=2,
            actions=actions,
            modalities=modalities,
            progress=True,
        )
    root = Path(root)
    recordings = dataset.read_recordings(
        root, modalities=modalities, cache=options.out / "cache", progress=True
    )
    series = {m: dataset.to_series(x, modality=m) for m, x in recordings.signals.items()}
    inputs = {m: recordings.signals[m] if m in ("depth", "rgb") else series[m] for m in series}
    return HarData(
        name=name,
        root=root,
        names=recordings.names,
        labels=recordings.actions,
        subjects=recordings.subjects,
        inputs=inputs,
        raw={m: _thin(x, m) for m, x in series.items()},
        lifted={m: _lift(x, m, options) for m, x in series.items()},
        problems=[str(problem) for problem in recordings.problems],
    )


def _thin(series: np.ndarray, modality: str) -> np.ndarray:
    """As raw signals fewer frames will do: 96 of the sensor, 32 of the skeleton, 8 of a video."""
    stride = {"inertial": 1, "skeleton": 3}.get(modality, 4)
    return series[:, stride // 2 :: stride].reshape(len(series), -1)


def _lift(series: np.ndarray, modality: str, options: HarOptions) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(options.seed), sum(modality.encode()))
    kernels = features.draw_kernels(
        key,
        channels=series.shape[2],
        length=series.shape[1],
        count=300 if options.quick else 1000,
    )
    return np.asarray(features.convolve(series, kernels))


def list_splits(
    data: HarData, options: HarOptions, *, random: int
) -> list[tuple[str, splits.Split]]:
    """The authors' split, random ones, and each subject held out; with the kind of each."""
    chosen = [(AUTHORS, splits.read_split(data.root / "splits" / "40_40_10_10", data.names))]
    n = len(data.names)
    for i in range(random):
        key = jax.random.fold_in(jax.random.key(options.seed), 1000 + i)
        chosen.append((RANDOM, splits.split_at_random(n, key=key, name=f"random {i}")))
    if options.full:
        present, counts = np.unique(data.subjects, return_counts=True)
        for subject in present.tolist():
            split = splits.hold_out_subject(
                data.subjects,
                subject=subject,
                key=jax.random.fold_in(jax.random.key(options.seed), subject),
                pairs=(n - int(counts.max())) // 2,
            )
            chosen.append((HELD_OUT, split))
    return chosen
