"""Fig. 6: t-SNE of five classes after contrastive alignment, and after perfect alignment on top.

Command:  UTD_MHAD_ROOT=<folder> python experiments/fig6_tsne.py [--quick | --full] [--out results]
          [--root <folder>] [--no-resume]
Time:     a minute on 2 cores (--full, 3 minutes) without the trainings, which table1_har shares
Expect:   on pairs that were fitted the distance relative to the spread falls by more than half

The paper's titles give the summed distance of the pairs in the plane of t-SNE, almost halved by
perfect alignment. That sum depends on how wide t-SNE has spread its points, so it stands here
beside the sum relative to their spread; both over several runs of t-SNE (with --full also several
pairs of encoders), for the pairs that the alignment was fitted to and for pairs that it has never
seen.
"""

import dataclasses
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.manifold
from _har_data import (
    AUTHORS,
    TARGET,
    HarData,
    HarOptions,
    Job,
    list_splits,
    load_har_data,
    pose_latents,
    train_and_encode,
)
from _kit.options import config_of, start
from _kit.report import Result, Row, format_number
from _kit.rows import draw_figures, finish
from rich.progress import track

from perfalign_jax import plotting, solver
from perfalign_jax.har import transfer
from perfalign_jax.types import CollapseWarning

NAME = "fig6_tsne"
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
        for name, z1, z2, labels in (
            ("held-out pairs", exam.partners, task.unseen, held_out),
            ("fitted pairs", *task.pairs, fitted),
        ):
            rows = choose_clips(labels, held_out)
            after = (np.asarray(z)[rows] for z in solver.transform(alignment, (z1, z2)))
            found[f"{CA}, {name}"] = (z1[rows], z2[rows], labels[rows])
            found[f"{PA}, {name}"] = (*after, labels[rows])
        yield found


def main(options: HarOptions) -> Result:
    start = time.perf_counter()
    source = "skeleton" if options.quick else "depth"
    data = load_har_data(options, modalities=(TARGET, source))
    kind, split = list_splits(data, options, random=0)[0]
    assert kind == AUTHORS
    epochs = 2 if options.quick else 100 if options.full else 10
    job = Job(source, kind, split, 5 if options.full else 1, epochs)
    repeats = 2 if options.quick else 4 if options.full else 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # what it looks like is shown
        latents = list(collect(job, data, options))
    pictures: dict[str, Any] = {}
    measured: dict[str, list[Any]] = {}
    jobs = [(seed, what) for seed in range(job.seeds) for what in latents[seed]]
    for seed, what in track(jobs, "t-SNE", transient=True):
        z1, z2, labels = latents[seed][what]
        planes = [embed(z1, z2, options.seed + i) for i in range(repeats)]
        pictures.setdefault(what, (*planes[0], labels))
        measured.setdefault(what, []).append([plotting.measure_pairs(*plane) for plane in planes])
    values = {what: np.array(found) for what, found in measured.items()}  # (seeds, repeats, 2)
    over = f"{repeats} runs of t-SNE"
    if job.seeds > 1:
        over = f"{job.seeds} pairs of encoders, {over} each"
    rows = []
    for name in ("held-out pairs", "fitted pairs"):
        before, after = values[f"{CA}, {name}"], values[f"{PA}, {name}"]
        for column, what in ((0, "summed distance"), (1, "distance relative to the spread")):
            ratios = after[:, :, column] / before[:, :, column]
            logs = np.log(ratios)  # of ratios the logarithms are added
            over_log = transfer.estimate_mean(logs.mean(axis=1) if job.seeds > 1 else logs[0])
            ratio = transfer.Estimate(*np.exp(dataclasses.astuple(over_log)).tolist())
            rows.append(
                Row(
                    f"{name}: {what}, CA+PA over CA",
                    paper="almost half" if column == 0 and name == "held-out pairs" else "",
                    ours=f"{ratio.value:.2f}",
                    interval=f"[{ratio.low:.2f}, {ratio.high:.2f}]",
                    verdict="closer"
                    if ratio.high < 1
                    else "farther"
                    if ratio.low > 1
                    else "not told apart",
                    note=f"CA {format_number(before[:, :, column].mean())}, "
                    f"CA+PA {format_number(after[:, :, column].mean())}; {over}",
                )
            )
    stand_in = " (simulated)" if data.simulated else ""
    caption = (
        f"t-SNE of five classes{stand_in}, encoders after {epochs} epochs: rings are {source}, "
        "crosses the IMU, lines join the two of a clip."
    )
    held = {row.quantity.split(": ")[1].split(",")[0]: row for row in rows[:2]}
    total, relative = held["summed distance"], held["distance relative to the spread"]
    summary = (
        f"Over {over}: on held-out pairs perfect alignment changes the summed pair distance in "
        f"the plane by a factor of {total.ours} {total.interval}, relative to the spread by "
        f"{relative.ours} {relative.interval}; on the pairs it was fitted to they fall to "
        f"{rows[2].ours} and {rows[3].ours}."
    )
    figure = plotting.plot_pairs(pictures, names=("video" if source == "depth" else source, "IMU"))
    result = Result(
        name=NAME,
        title=f"Fig. 6, latent space before and after perfect alignment{stand_in}",
        summary=("SIMULATED RECORDINGS, not UTD-MHAD. " if data.simulated else "") + summary,
        rows=rows,
        figures=draw_figures(options.out, {f"{NAME}.png": (figure, caption)}),
        values=values,
        config=config_of(options, data=data.name, source=source, epochs=epochs),
        seconds=time.perf_counter() - start,
    )
    finish(result, options)
    return result


if __name__ == "__main__":
    start(main, HarOptions, __doc__)
