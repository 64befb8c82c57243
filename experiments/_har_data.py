"""The recordings that the experiments with encoders start from: real ones, or simulated ones."""

import dataclasses
import functools
import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from _transfer_data import (
    AUTHORS,
    HELD_OUT,
    RANDOM,
    REAL,
    TARGET,
    TransferOptions,
    beside,
    convolve,
    hold_out_subjects,
    read_clips,
)

from perfalign_jax.har.data import splits
from perfalign_jax.har.nn import encoders, training
from perfalign_jax.har.protocol import methods, transfer
from perfalign_jax.serialization import open_whole

LATENT = 256
EPOCHS, SEEDS = 100, 5  # of the full protocol


@dataclasses.dataclass(frozen=True)
class HarOptions(TransferOptions):
    """Options of the experiments with encoders.

    Attributes:
        resume: go on from what an interrupted run left in ``<out>/har``; otherwise start afresh.
    """

    resume: bool = True


@dataclasses.dataclass(frozen=True)
class HarData:
    """Recordings as encoders take them, and what random convolutions make of them."""

    name: str
    labels: np.ndarray
    subjects: np.ndarray
    inputs: dict[str, np.ndarray]  # modality -> series (n, length, channels) or videos, uint8
    lifted: dict[str, np.ndarray]  # modality -> features (n, 2 * kernels)
    authors: splits.Split
    problems: list[str]

    @property
    def simulated(self) -> bool:
        return self.name != REAL


def load_har_data(options: HarOptions, *, modalities: tuple[str, ...]) -> HarData:
    """Read UTD-MHAD, or simulate recordings in its layout and read those."""
    name, recordings, series, authors, problems = read_clips(options, modalities=modalities)
    videos = {m: x for m, x in recordings.signals.items() if m in ("depth", "rgb")}
    lifted = beside(convolve(series, options, seed=options.seed))
    labels, subjects = recordings.actions, recordings.subjects
    return HarData(name, labels, subjects, series | videos, lifted, authors, problems)


def list_splits(
    data: HarData, options: HarOptions, *, random: int
) -> list[tuple[str, splits.Split]]:
    """The authors' split, random ones, and each subject held out; with the kind of each."""
    chosen = [(AUTHORS, data.authors)]
    for i in range(random):
        key = jax.random.fold_in(jax.random.key(options.seed), 1000 + i)
        split = splits.split_at_random(len(data.labels), key=key, name=f"random {i}")
        chosen.append((RANDOM, split))
    if options.full:
        chosen.extend((HELD_OUT, split) for split in hold_out_subjects(data.subjects, options))
    return chosen


def say_what_is_less(*, epochs: int, seeds: int) -> str:
    """How much smaller a training is than the full protocol's; empty if it is that."""
    parts = [f"{epochs} of {EPOCHS} epochs"] * (epochs < EPOCHS)
    return ", ".join(parts + [f"{seeds} of {SEEDS} seeds"] * (seeds < SEEDS))


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: which source, on which pairs, how long, how often; what is scored with it."""

    source: str
    kind: str
    split: splits.Split
    seeds: int
    epochs: int
    latent: int = LATENT
    untrained: bool = True  # also what needs no training

    @property
    def name(self) -> str:
        """What the job is called on the screen and in the result."""
        return (
            f"{self.source}, {self.split.name}, {self.latent} dimensions, {self.epochs} epochs, "
            f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        )

    @property
    def stem(self) -> str:
        """What its files are called."""
        rows = b"".join(role.tobytes() for role in (self.split.har, self.split.align))
        what = f"{self.seeds} {self.split.evaluated.tolist()} ".encode() + rows
        digest = hashlib.sha256(what).hexdigest()[:8]
        name = self.split.name.replace(" ", "-")
        return f"{self.source}-{name}-{self.latent}-{self.epochs}-{digest}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Latents of every clip from the encoders of one job, and the history of their training."""

    source: np.ndarray  # (seeds, n, k)
    target: np.ndarray  # (seeds, n, k)
    losses: np.ndarray  # (epochs, seeds)
    watched: np.ndarray  # (epochs, seeds), NaN between
    seconds: float


@functools.cache
def _code() -> str:
    """Digest of what trains, so that latents of other code are not taken for this one's."""
    package = Path(training.__file__).parents[2]
    files = [package / "contrastive.py", *sorted((package / "har" / "nn").glob("*.py"))]
    versions = [metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")]
    content = [*(file.read_bytes() for file in files), *map(str.encode, versions)]
    return hashlib.sha256(b"".join(content)).hexdigest()


def train_and_encode(job: Job, data: HarData, options: HarOptions) -> Encoded:
    """Train the encoders of a job, or read what an earlier run left of them.

    They are trained on the pairs of D_Align alone. What is watched, accuracy on D_Val (on D_Test
    where a split has no D_Val), is shown and changes nothing.
    """
    folder = options.out / "har"
    folder.mkdir(parents=True, exist_ok=True)
    settings = training.Settings(epochs=job.epochs)
    branches = make_branches(job.source, job.latent)
    ends = job.source, TARGET
    names = [branch.name for branch in branches]
    inputs = [hashlib.sha256(data.inputs[m].data.cast("B")).digest() for m in ends]
    made_from = (_code(), settings, names, encoders.computing_dtype(), options.seed, inputs)
    stem = f"{job.stem}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]}"
    kept = folder / f"{stem}.npz"
    if not options.resume:
        kept.unlink(missing_ok=True)
        shutil.rmtree(folder / stem, ignore_errors=True)
    if kept.is_file():
        try:
            with np.load(kept) as found:
                return Encoded(**{name: found[name] for name in found.files})
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            kept.unlink()  # damaged by someone else: train again
    task, _ = pose(job, data, data.inputs)
    checked = job.split.val if len(job.split.val) else job.split.test

    def watch(trained: training.Trained) -> list[float]:
        z1 = training.encode(trained, data.inputs[job.source][job.split.har], view=0)
        z2 = training.encode(trained, data.inputs[TARGET][checked], view=1)
        found = []
        for a, b in zip(z1, z2, strict=True):
            a, b = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (a, b))
            named = transfer.rank_classes(a, data.labels[job.split.har], b)[:, 0]
            found.append(100 * float(np.mean(named == data.labels[checked])))
        return found

    trained = training.train(
        branches,
        task.pairs,
        keys=jax.random.split(jax.random.key(options.seed), job.seeds),
        settings=settings,
        folder=folder / stem,
        resume=options.resume,
        watch=watch,
        watch_every=max(1, job.epochs // 5),
        progress=True,
    )
    z1, z2 = (training.encode(trained, data.inputs[m], view=view) for view, m in enumerate(ends))
    encoded = Encoded(z1, z2, trained.losses, trained.watched, trained.seconds)
    with open_whole(kept) as file:
        np.savez(file, **vars(encoded))
    shutil.rmtree(folder / stem)  # the latents are what is needed from here on
    return encoded


@functools.cache  # the same objects, so that their programs are compiled once for all jobs
def make_branches(source: str, latent: int) -> tuple[encoders.Branch, encoders.Branch]:
    """Encoders of the source and of the target."""
    first, second = (encoders.make_branch(m, latent=latent) for m in (source, TARGET))
    return first, second


def pose(
    job: Job, data: HarData, arrays: dict[str, np.ndarray], *, backwards: bool = False
) -> methods.Posed:
    """Task and exam of a job on arrays by modality; backwards, the target has the labels."""
    source, target = (TARGET, job.source) if backwards else (job.source, TARGET)
    return transfer.make_task(arrays, data.labels, job.split, source=source, target=target)


def pose_latents(
    job: Job, data: HarData, encoded: Encoded, *, backwards: bool = False
) -> Iterator[methods.Posed]:
    """Task and exam in the latent space of every seed."""
    for z1, z2 in zip(encoded.source, encoded.target, strict=True):
        yield pose(job, data, {job.source: z1, TARGET: z2}, backwards=backwards)
