"""Fig. 6: t-SNE of five classes after contrastive alignment, and after perfect alignment on top.

Command:  UTD_MHAD_ROOT=<folder> python experiments/fig6_tsne.py [--quick | --full] [--out results]
          [--root <folder>] [--no-resume]
Time:     a minute on 2 cores (--full, 3 minutes) without the trainings, which table1_har shares
Expect:   on pairs that were fitted the distance relative to the spread falls by more than half

The paper's titles give the summed distance of the pairs in the plane of t-SNE, almost halved by
perfect alignment. It depends on how wide t-SNE has spread its points, so it stands here beside the
sum relative to their spread; for pairs that were fitted and pairs never seen. Intervals are over
trainings (--full has five); with one training there is none, and nothing stands beside the paper.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.manifold
from _har_data import (
    AUTHORS,
    EPOCHS,
    SEEDS,
    TARGET,
    HarData,
    HarOptions,
    Job,
    load_har_data,
    pose_latents,
    say_what_is_less,
    train_and_encode,
)
from _kit.figures import measure_pairs, plot_pairs
from _kit.options import start
from _kit.report import Row, format_number
from _kit.rows import finish
from rich.progress import track

from perfalign_jax import solver
from perfalign_jax.har.protocol import estimates

CLASSES = 5
CA, PA = "CA", "CA + PA"


def embed(z1: np.ndarray, z2: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both modalities in one plane."""
    both = np.concatenate([z1, z2]).astype(np.float64)
    tsne = sklearn.manifold.TSNE(
        perplexity=min(30.0, (len(both) - 1) / 3), init="random", random_state=seed
    )
    plane = tsne.fit_transform(both)
    return plane[: len(z1)], plane[len(z1) :]


def choose_clips(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows of the five classes with most clips among those that are held out."""
    classes, counts = np.unique(known, return_counts=True)
    chosen = np.sort(classes[np.argsort(-counts, kind="stable")][:CLASSES])
    return np.flatnonzero(np.isin(labels, chosen))


def collect(
    job: Job, data: HarData, options: HarOptions
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """For every seed: latents and classes of pairs, fitted and held out, before and after PA."""
    encoded = train_and_encode(job, data, options)
    for task, exam in pose_latents(job, data, encoded):
        alignment = solver.fit(task.pairs, k=task.pairs[0].shape[1])
        fitted, held_out = data.labels[job.split.align], exam.labels
        found = {}
        unseen = "held-out pairs", exam.partners, task.unseen, held_out
        for name, z1, z2, labels in (unseen, ("fitted pairs", *task.pairs, fitted)):
            rows = choose_clips(labels, held_out)
            after = (np.asarray(z)[rows] for z in solver.transform(alignment, (z1, z2)))
            found[f"{CA}, {name}"] = (z1[rows], z2[rows], labels[rows])
            found[f"{PA}, {name}"] = (*after, labels[rows])
        yield found


def make_rows(values: dict[str, np.ndarray], part: str, *, comparable: bool) -> list[Row]:
    """Ratios of CA + PA to CA, of arrays ``(trainings, runs of t-SNE, 2)``, over trainings."""
    rows: list[Row] = []
    for name in ("held-out pairs", "fitted pairs"):
        before, after = values[f"{CA}, {name}"], values[f"{PA}, {name}"]
        seeds, repeats, _ = before.shape
        for column, what in ((0, "summed distance"), (1, "distance relative to the spread")):
            # Of ratios the logarithms are added; runs of t-SNE say nothing of other trainings.
            logs = np.log(after[:, :, column] / before[:, :, column]).mean(axis=1)
            ratio = np.exp(dataclasses.astuple(estimates.estimate_mean(logs)))
            quantity = f"{name}: {what}, CA+PA over CA{f' ({part})' if part else ''}"
            paper = "almost half" if comparable and rows == [] else ""
            interval, verdict = "", "one training: no interval"
            if seeds > 1:
                interval, verdict = f"[{ratio[1]:.2f}, {ratio[2]:.2f}]", judge(*ratio[1:])
            means = [format_number(found[:, :, column].mean()) for found in (before, after)]
            note = "CA {}, CA+PA {}; ".format(*means)
            note += f"{seeds} trainings, {repeats} runs of t-SNE each"
            rows.append(Row(quantity, paper, f"{ratio[0]:.2f}", interval, verdict, note))
    return rows


def judge(low: float, high: float) -> str:
    return "closer" if high < 1 else "farther" if low > 1 else "not told apart"


def main(options: HarOptions) -> None:
    source = "skeleton" if options.quick else "depth"
    data = load_har_data(options, modalities=(TARGET, source))
    epochs = 2 if options.quick else EPOCHS if options.full else 10
    job = Job(source, AUTHORS, data.authors, SEEDS if options.full else 1, epochs)
    repeats = 2 if options.quick else 4 if options.full else 10
    latents = list(collect(job, data, options))
    pictures: dict[str, Any] = {}
    measured: dict[str, list[Any]] = {}
    jobs = [(seed, what) for seed in range(job.seeds) for what in latents[seed]]
    for seed, what in track(jobs, "t-SNE", transient=True):
        z1, z2, labels = latents[seed][what]
        planes = [embed(z1, z2, options.seed + i) for i in range(repeats)]
        pictures.setdefault(what, (*planes[0], labels))
        measured.setdefault(what, []).append([measure_pairs(*plane) for plane in planes])
    values = {what: np.array(found) for what, found in measured.items()}  # (seeds, repeats, 2)
    part = say_what_is_less(epochs=epochs, seeds=job.seeds)
    rows = make_rows(values, part, comparable=not part and not data.simulated)
    stand_in = " (simulated)" if data.simulated else ""
    caption = (
        f"t-SNE of five classes{stand_in}, encoders after {epochs} epochs: rings are {source}, "
        "crosses the IMU, lines join the two of a clip."
    )
    total, relative, fitted, fitted_relative = (f"{r.ours} {r.interval}".strip() for r in rows)
    summary = (
        f"{part or 'Full protocol'}: on held-out pairs perfect alignment changes the summed pair "
        f"distance in the plane by a factor of {total}, relative to the spread by {relative}; on "
        f"the pairs it was fitted to by {fitted} and {fitted_relative}."
    )
    figure = plot_pairs(pictures, names=("video" if source == "depth" else source, "IMU"))
    finish(
        options,
        "fig6_tsne",
        title=f"Fig. 6, latent space before and after perfect alignment{stand_in}",
        summary=("SIMULATED RECORDINGS, not UTD-MHAD. " if data.simulated else "") + summary,
        rows=rows,
        figures={"fig6_tsne.png": (figure, caption)},
        values=values,
        config={"data": data.name, "source": source, "epochs": epochs},
    )


if __name__ == "__main__":
    start(main, HarOptions, __doc__, bits=32)
