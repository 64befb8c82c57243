"""Section 3.2 on real recordings: transfer to a wrist sensor in closed form, without its labels.

Command:  UTD_MHAD_ROOT=<folder> python experiments/utd_mhad_linear.py [--quick | --full]
          [--out results] [--root <folder>]
Time:     10 minutes on 2 cores
Expect:   top-1 on the authors' split, informative part of perfect alignment: 74 % (skeleton, raw
          signals), 97 % (skeleton, random convolutions), 92 % (depth, the same), 95 %
          (both; 94.7 over random splits, align 94.8); over twelve draws of the kernels (--seed 0 to
          11) skeleton and depth 96.4 +- 0.7 and 93.4 +- 1.8 (mean +- standard deviation)

Labels on the source (skeleton or depth video) only; the classifier is used on the inertial sensor
(IMU). Authors' split, 10 random 40/40/10/10 splits (100 with --full), each of 8 subjects held out.
Without the dataset the same protocol runs on simulated recordings, and the report says so.
"""

import concurrent.futures
import dataclasses
import time
from typing import Any

import numpy as np
import rich.console
import threadpoolctl
from _kit.options import start
from _kit.report import Row
from _kit.rows import describe, estimate_hits, finish
from _transfer_data import (
    LIFTED,
    REAL,
    TARGET,
    WORKERS,
    Material,
    TransferOptions,
    beside,
    by_label,
    convolve,
    draw_methods,
    load_material,
)
from rich.progress import track
from scipy import stats

from perfalign_jax import metrics
from perfalign_jax.har.data import splits
from perfalign_jax.har.protocol import estimates, methods, transfer
from perfalign_jax.har.protocol.methods import ALIGN, INFORMATIVE, Method

BEST = dataclasses.replace(INFORMATIVE, space=LIFTED)
BOUND = Method("identity", decoder="labels on the target (bound)")
PAPER = {1: (43.9, 4.28), 3: (60.6, 5.67), 5: (69.7, 2.83), 7: (75.8, 1.07)}  # CA+PA, 3 trials
TOPS = tuple(PAPER)

Hits = dict[tuple[str, Method], dict[int, np.ndarray]]  # by source, method, top: 1.0 or 0.0
Outcome = tuple[Hits, dict[str, dict[str, float]], np.ndarray]


def run_split(material: Material, split: splits.Split, *, measure: bool) -> Outcome:
    """Score every method on one split, clip by clip; measure, if asked, how well pairs align.

    The last of the three says how long aligning and classifying took, in seconds.
    """
    hits: Hits = {}
    measured: dict[str, dict[str, float]] = {}
    classifying, start = 0.0, time.perf_counter()
    for space, arrays in material.arrays.items():
        for source in material.sources:
            posed = transfer.make_task(arrays, material.labels, split, source=source, target=TARGET)
            posed = methods.standardise(*posed)
            listed = [m for m in methods.list_methods() if space == LIFTED or m != ALIGN]
            aligned = methods.align_all(*posed, methods=listed)
            found = [(method, task.labelled, task, exam) for method, task, exam in aligned]
            for method, labelled, task, exam in (*found, (BOUND, posed[1].bound, *posed)):
                method = dataclasses.replace(method, space=space)
                began = time.perf_counter()
                ranks = transfer.rank_classes(labelled, task.labels, task.unseen)
                classifying += time.perf_counter() - began
                hits[source, method] = exam.score(ranks)
                if measure and method.decoder == "":
                    fitted = {
                        "relative CMAE, fitted pairs": float(metrics.relative_cmae(*task.pairs))
                    }
                    measured[f"{source}: {method.label}"] = fitted | exam.agreement(task)
    return hits, measured, np.array([time.perf_counter() - start - classifying, classifying])


def run_splits(material: Material) -> dict[str, Any]:
    """Every method on every split: accuracies with intervals and paired differences."""
    jobs = [(kind, split) for kind, group in material.splits.items() for split in group]

    def run(job: tuple[str, splits.Split]) -> Outcome:
        return run_split(material, job[1], measure=job == jobs[0])

    with (
        threadpoolctl.threadpool_limits(1),  # a thread for every split, none inside
        concurrent.futures.ThreadPoolExecutor(WORKERS) as pool,
    ):
        outcomes = pool.map(run, jobs)
        done = list(track(outcomes, "transfer", total=len(jobs), transient=True))
    accuracy: dict[str, Any] = {}
    # A split with few pairs may have no room for a method: that one is left out.
    for source, method in (one for one in done[0][0] if all(one in out[0] for out in done)):
        best = source, dataclasses.replace(INFORMATIVE, space=method.space)
        for kind in material.splits:
            found = [out[0] for job, out in zip(jobs, done, strict=True) if job[0] == kind]
            mine = [hits[source, method] for hits in found]
            entry = {f"top-{top}": estimate_hits([hits[top] for hits in mine]) for top in TOPS}
            if (source, method) != best and all(best in hits for hits in found):
                against = [hits[best][1] for hits in found]
                entry["difference"] = estimate_hits([own[1] for own in mine], against=against)
            accuracy.setdefault(source, {}).setdefault(method, {})[kind] = entry
    aligning, classifying = np.sum([out[2] for out in done], axis=0).tolist()
    seconds = {"aligning": aligning, "classifying": classifying}
    return {"accuracy": accuracy, "agreement": done[0][1], "thread seconds": seconds}


def vary_kernels(material: Material, options: TransferOptions) -> dict[str, Any]:
    """Top-1 of the informative part on the first split, over draws of the random kernels."""
    kind = next(iter(material.splits))
    found: dict[str, list[float]] = {}
    for seed in range(options.seed, options.seed + 5):
        lifted = beside(convolve(material.series, options, seed=seed))
        one_split = {kind: material.splits[kind][:1]}
        one = dataclasses.replace(material, arrays={LIFTED: lifted}, splits=one_split)
        for source, by_method in run_splits(one)["accuracy"].items():
            found.setdefault(source, []).append(by_method[BEST][kind]["top-1"]["value"])
    means = {source: estimates.estimate_mean(each) for source, each in found.items()}
    return {source: dataclasses.asdict(means[source]) | {"each": found[source]} for source in found}


def compare(ours: dict[str, float], paper: tuple[float, float], *, trials: int = 3) -> str:
    """Say how our interval lies to that of the paper's mean over its trials (Student's t)."""
    mean, deviation = paper
    half = float(stats.t.ppf(0.975, trials - 1)) * deviation / trials**0.5
    if ours["low"] > mean + half:
        return "higher, and nothing is trained"
    return "lower" if ours["high"] < mean - half else "not told apart"


def make_rows(material: Material, values: dict[str, Any], *, full: bool) -> list[Row]:
    """The paper's table first, then every method."""
    rows, accuracy = [], values["accuracy"]
    first, random, *others = material.splits
    for top, paper in PAPER.items() if "depth" in accuracy else ():
        entry = accuracy["depth"][BEST][random][f"top-{top}"]
        beside = {"note": f"depth instead of RGB; {BEST.label}"}
        if full and material.data == REAL:
            beside["paper"] = "{} ± {:.2f} (CA+PA, RGB)".format(*paper)
            beside["verdict"] = compare(entry, paper)
        rows.append(make_row(f"video to IMU, top-{top} (%), {random}", entry, **beside))
    for source, entry in values.get("over kernels", {}).items():
        name = f"{source}: {BEST.label}, {first}, mean over draws of the kernels"
        rows.append(make_row(name, entry))
    for source, by_method in accuracy.items():
        for method, by_kind in by_method.items():
            gap = by_kind[random].get("difference")
            verdict = f"{describe(gap)} against the informative part" if gap else ""
            note = "; ".join(f"{k} {describe(by_kind[k]['top-1'])}" for k in (random, *others))
            name = f"{source}: {method.label}"
            rows.append(make_row(name, by_kind[first]["top-1"], verdict=verdict, note=note))
    return rows


def make_row(quantity: str, entry: dict[str, Any], **more: str) -> Row:
    value, interval = describe(entry).split(" ", 1)
    return Row(quantity, ours=value, interval=interval, **more)


def summarize(material: Material, accuracy: dict[str, Any]) -> str:
    found = [
        f"{source}, {method.space}: "
        + "; ".join(f"{kind} {describe(e['top-1'])}" for kind, e in by_kind.items())
        for source, by_method in accuracy.items()
        for method, by_kind in by_method.items()
        if dataclasses.replace(method, space="") == INFORMATIVE
    ]
    first, random, *_ = material.splits
    summary = (
        "Labels on the source only, the classifier used on the target. Top-1 accuracy (%) of the "
        f"informative part of perfect alignment: {'. '.join(found)}. Brackets are 95 % intervals: "
        "over clips for a single split, over splits for several. The table has top-1 on "
        f"{first} and the paired difference over {random}."
    )
    return summary if material.data == REAL else f"SIMULATED RECORDINGS, not UTD-MHAD. {summary}"


def main(options: TransferOptions) -> None:
    start, console = time.perf_counter(), rich.console.Console()
    material = load_material(options)
    for problem in material.problems:
        console.print(f"left out: {problem}")
    ready = time.perf_counter() - start
    values = run_splits(material)
    if options.full:
        values["over kernels"] = vary_kernels(material, options)
    figure = draw_methods(values["accuracy"], chance=100 / len(np.unique(material.labels)))
    caption = (
        f"Top-1 accuracy on the target ({material.data}) with labels on the source only. Lines are "
        "95 % intervals, over clips (authors' split) or over splits."
    )
    stand_in = "" if material.data == REAL else " (simulated)"
    finish(
        options,
        "utd_mhad_linear",
        title=f"Section 3.2, closed-form transfer to another sensor: top-1 (%){stand_in}",
        summary=summarize(material, values["accuracy"]),
        rows=make_rows(material, values, full=options.full),
        figures={"utd_mhad_linear.png": (figure, caption)},
        values=by_label(values) | {"data": material.data, "problems": material.problems},
        config={"data": material.data},
    )
    console.print(
        f"{ready:.0f} s reading and convolving, then on {WORKERS} threads "
        + ", ".join(f"{s:.0f} s {stage}" for stage, s in values["thread seconds"].items())
    )


if __name__ == "__main__":
    start(main, TransferOptions, __doc__, bits=32)
