"""Fig. 6: t-SNE of five classes after contrastive alignment, and after perfect alignment on top.

Command:  UTD_MHAD_ROOT=<folder> python experiments/fig6_tsne.py [--quick | --full] [--out results]
          [--root <folder>] [--no-resume]
Time:     about a minute on 2 cores without the trainings of table1_har, which it shares
Expect:   on pairs that were fitted the distance relative to the spread falls by more than half

The paper's titles give the summed distance of the pairs in the plane of t-SNE, almost halved by
perfect alignment. That sum depends on how wide t-SNE has spread its points, so it stands here
beside the sum relative to their spread; both over several runs of t-SNE, for the pairs that the
alignment was fitted to and for pairs that it has never seen.
"""

import time
import warnings
from typing import Any

import numpy as np
import sklearn.manifold
import tyro
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
from _shared import config_of, draw_figures, finish
from rich.progress import track

from perfalign_jax import plotting, solver
from perfalign_jax.har import methods, transfer
from perfalign_jax.report import Result, Row, format_number
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


def collect(job: Job, data: HarData, options: HarOptions) -> dict[str, dict[str, Any]]:
    """Latents of pairs, fitted and held out, before and after the alignment; with their classes."""
    encoded = train_and_encode(job, data, options)
    task, exam = methods.to_directions(*next(pose_latents(job, data, encoded)))
    alignment = solver.fit(task.pairs, k=task.pairs[0].shape[1])
    fitted, held_out = data.labels[job.split.align], exam.labels
    found: dict[str, dict[str, Any]] = {}
    for name, z1, z2, labels in (
        ("held-out pairs", exam.partners, task.unseen, held_out),
        ("fitted pairs", *task.pairs, fitted),
    ):
        rows = choose_clips(labels, held_out)
        found[name] = {
            "labels": labels[rows],
            CA: (z1[rows], z2[rows]),
            PA: tuple(np.asarray(z)[rows] for z in solver.transform(alignment, (z1, z2))),
        }
    return found


def main(options: HarOptions) -> Result:
    start = time.perf_counter()
    source = "skeleton" if options.quick else "depth"
    data = load_har_data(options, modalities=(TARGET, source))
    kind, split = list_splits(data, options, random=0)[0]
    assert kind == AUTHORS
    epochs = 2 if options.quick else 100 if options.full else 10
    job = Job(source, kind, split, 5 if options.full else 1, epochs)
    repeats = 2 if options.quick else 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # what it looks like is shown
        latents = collect(job, data, options)
    pictures, values, rows = {}, {}, []
    jobs = [(name, method) for name in latents for method in (CA, PA)]
    for name, method in track(jobs, "t-SNE", transient=True):
        labels = latents[name]["labels"]
        z1, z2 = latents[name][method]
        planes = [embed(z1, z2, options.seed + i) for i in range(repeats)]
        pictures[f"{method}, {name}"] = (*planes[0], labels)
        measured = np.array([plotting.measure_pairs(*plane) for plane in planes])
        values[f"{method}, {name}"] = measured
    for name in latents:
        before, after = values[f"{CA}, {name}"], values[f"{PA}, {name}"]
        for column, what in ((0, "summed distance"), (1, "distance relative to the spread")):
            ratio = transfer.estimate_mean(after[:, column] / before[:, column])
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
                    note=f"CA {format_number(before[:, column].mean())}, "
                    f"CA+PA {format_number(after[:, column].mean())}; {repeats} runs of t-SNE",
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
        f"Over {repeats} runs of t-SNE on one pair of encoders: on held-out pairs perfect "
        f"alignment changes the summed pair distance in the plane by a factor of {total.ours} "
        f"{total.interval}, relative to the spread by {relative.ours} {relative.interval}; on the "
        f"pairs it was fitted to they fall to {rows[2].ours} and {rows[3].ours}."
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
    main(tyro.cli(HarOptions, description=__doc__))
