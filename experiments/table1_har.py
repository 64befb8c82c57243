"""Table 1: contrastive encoders, perfect alignment on top, and what needs no training at all.

Command:  UTD_MHAD_ROOT=<folder> python experiments/table1_har.py [--quick | --full]
          [--out results] [--root <folder>] [--no-resume]
Time:     about 3 minutes on 2 cores (--quick, 1 minute; --full, 2 hours)
Expect:   authors' split, --full: skeleton CA 90.6 % top-1, PA as published 12.6 points less (with
          latents of 2048 dimensions 4.6 more), random convolutions + PA without training 96.9 %;
          depth 87.5 %, 20.3 less, 92.3 %

Labels on the source (skeleton, depth, or RGB where it is present) only; the classifier is used on
the inertial sensor. Every training writes checkpoints to <out>/har, and what is finished its
latents: an interrupted run goes on where it stopped. Without the dataset simulated recordings stand
in, and the report says so.
"""

import dataclasses
import os
import re
import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
from _har_data import (
    AUTHORS,
    HELD_OUT,
    LATENT,
    RANDOM,
    TARGET,
    HarData,
    HarOptions,
    Job,
    list_splits,
    load_har_data,
)
from _har_scores import (
    BOUND,
    CA,
    JOINED,
    KEPT,
    LIFTED,
    MLP,
    REVERSE,
    TOPS,
    name_of_papers,
    run_job,
)
from _kit.options import config_of, start
from _kit.report import Result, Row
from _kit.rows import describe, draw_figures, estimate_hits, finish
from scipy import stats

from perfalign_jax import plotting
from perfalign_jax.har import transfer
from perfalign_jax.types import CollapseWarning

NAME = "table1_har"
PAPER = {
    "CA": ("38.6 ± 3.01", "56.1 ± 6.66", "66.3 ± 5.61", "73.9 ± 5.21"),
    "CA+PA": ("43.9 ± 4.28", "60.6 ± 5.67", "69.7 ± 2.83", "75.8 ± 1.07"),
}
PAPERS_CMAE = {"CA": "2210 ± 20.5", "CA+PA": "8.66 ± 0.306"}
AGREEMENTS = ("CMAE", "NCMAE", "relative CMAE", "R@1")
PAPERS = name_of_papers(LATENT)
WIDE = 2048  # the paper's latents: their null space holds far more directions than are taken


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is run."""

    sources: tuple[str, ...]
    seeds: int
    epochs: int
    random: int
    study: tuple[int, ...] = ()
    study_seeds: int = 0
    dimensions: tuple[int, ...] = (27, 64, 128)
    wide_seeds: int = 0
    wide_dimensions: tuple[int, ...] = ()


def choose_scale(options: HarOptions, *, has_rgb: bool) -> Scale:
    if options.quick:
        return Scale(("skeleton",), 1, 2, 0)
    if not options.full:
        return Scale(("skeleton", "depth"), 1, 40, 0)
    sources = ("skeleton", "depth", *(("rgb",) if has_rgb else ()))
    return Scale(
        sources,
        seeds=5,
        epochs=100,
        random=10,
        study=(5, 20, 60),
        study_seeds=3,
        dimensions=(8, 27, 64, 128, 192),
        wide_seeds=3,
        wide_dimensions=(8, 27, 64, 128, 256, 512, 1024),
    )


def load_by_source(options: HarOptions, scale: Scale) -> dict[str, HarData]:
    """Recordings for each source; RGB by itself, as clips without it serve the others."""
    groups = [[s for s in scale.sources if s != "rgb"], [s for s in scale.sources if s == "rgb"]]
    loaded: dict[str, HarData] = {}
    for group in filter(None, groups):
        found = load_har_data(options, modalities=(TARGET, *group))
        loaded |= dict.fromkeys(group, found)
    return loaded


def list_jobs(data: dict[str, HarData], scale: Scale, options: HarOptions) -> list[Job]:
    jobs = []
    for source in scale.sources:
        every = list_splits(data[source], options, random=scale.random)
        short = source != "skeleton" and not options.full
        epochs = scale.epochs // 2 if short else scale.epochs
        for kind, split in every:
            jobs.append(Job(source, kind, split, scale.seeds if kind == AUTHORS else 1, epochs))
        study = (Job(source, AUTHORS, every[0][1], scale.study_seeds, e) for e in scale.study)
        jobs.extend(study)
        if scale.wide_seeds and source == "skeleton":  # the one that is trained soonest
            jobs.append(Job(source, AUTHORS, every[0][1], scale.wide_seeds, epochs, latent=WIDE))
    return jobs


def gather(results: list[dict[str, Any]], scale: Scale) -> dict[str, Any]:
    """Accuracies with intervals, and paired differences to CA: by source, method and split."""
    found: dict[str, Any] = {}
    for source in scale.sources:
        for kind in (AUTHORS, RANDOM, HELD_OUT):
            runs = [
                run
                for result in results
                if result["job"].kind == kind and is_main(result, results, source)
                for run in result["runs"]
            ]
            for method in {name: None for run in runs for name in run}:
                entry = measure(runs, method, kind)
                found.setdefault(source, {}).setdefault(method, {})[kind] = entry
    return found


def is_main(result: dict[str, Any], results: list[dict[str, Any]], source: str) -> bool:
    """Whether it is of the longest trainings of a source, with latents of the usual size."""
    job = result["job"]
    return (job.source, job.latent, job.epochs) == (source, LATENT, longest(results, source))


def gather_epochs(results: list[dict[str, Any]], scale: Scale) -> dict[str, Any]:
    """The same on the authors' split, by source and by how long the encoders were trained."""
    return {
        source: {
            result["job"].epochs: {
                method: measure(result["runs"], method, AUTHORS) for method in result["runs"][-1]
            }
            for result in of_study(results, source)
        }
        for source in scale.sources
    }


def of_study(results: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Trainings of a source on the authors' split, from short to long."""
    chosen = [
        result
        for result in results
        if (result["job"].source, result["job"].kind, result["job"].latent)
        == (source, AUTHORS, LATENT)
    ]
    return sorted(chosen, key=lambda result: result["job"].epochs)


def gather_wide(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The same on the authors' split with latents as wide as the paper's, by source."""
    return {
        result["job"].source: {
            method: measure(result["runs"], method, AUTHORS) for method in result["runs"][0]
        }
        for result in results
        if result["job"].latent == WIDE
    }


def measure(runs: list[dict[str, Any]], method: str, kind: str) -> dict[str, Any]:
    """Accuracy, paired differences to CA and to the bound, and agreement, over runs of a method."""
    mine = [run for run in runs if method in run]
    one_exam = kind == AUTHORS  # the same clips in every run
    entry: dict[str, Any] = {
        f"top-{top}": estimate_hits([hits_of(run, method, top) for run in mine], crossed=one_exam)
        for top in TOPS
    }
    hits = [hits_of(run, method, 1) for run in mine]
    rival = CA + KEPT if method.endswith(KEPT) else CA
    if method != rival and not method.startswith(REVERSE):
        against = [hits_of(run, rival, 1) for run in mine]
        if len(mine) < len(runs) and one_exam:  # scored once: set beside the mean over CA's seeds
            against = [np.mean([hits_of(run, rival, 1) for run in runs], axis=0)] * len(mine)
        entry["difference"] = estimate_hits(hits, against=against, crossed=one_exam)
    if method in (CA, LIFTED, JOINED):
        bounds = [hits_of(run if BOUND in run else runs[0], BOUND, 1) for run in mine]
        entry["against bound"] = estimate_hits(hits, against=bounds, crossed=one_exam)
    for name in AGREEMENTS:
        values = [run[method][name] for run in mine if name in run[method]]
        if values:
            entry[name] = dataclasses.asdict(transfer.estimate_mean(values))
    return entry


def hits_of(run: dict[str, Any], method: str, top: int) -> np.ndarray:
    return np.asarray(run[method]["hits"][str(top)], np.float64)


def longest(results: list[dict[str, Any]], source: str) -> int:
    return max(result["job"].epochs for result in results if result["job"].source == source)


def make_rows(
    found: dict[str, Any],
    by_epochs: dict[str, Any],
    wide: dict[str, Any],
    papers_interval: str,
    chance: float,
) -> list[Row]:
    """The paper's table beside ours, then every method, then the epochs, then wide latents."""
    rows = []
    for source, by_method in found.items():
        for ours, papers in ((CA + KEPT, "CA"), (PAPERS + KEPT, "CA+PA")):
            entry = by_method[ours][AUTHORS]
            for top, printed in zip(TOPS, PAPER[papers], strict=True):
                name = f"{source} to IMU, {papers}{KEPT}, top-{top} (%), {AUTHORS}"
                rows.append(make_row(name, entry[f"top-{top}"], paper=f"{printed} (RGB)"))
            for what in AGREEMENTS:
                printed = f"{PAPERS_CMAE[papers]} (2048-d)" if what == "CMAE" else ""
                unit = " (%)" if what == "R@1" else ""
                name = f"{source} to IMU, {papers}{KEPT}, {what}{unit}, held-out pairs, {AUTHORS}"
                rows.append(make_row(name, entry[what], paper=printed, digits=2))
        for kind, entry in by_method[PAPERS + KEPT].items():
            gap = entry["difference"]
            rows.append(
                make_row(
                    f"{source} to IMU, CA+PA minus CA with lengths kept, top-1 (points), {kind}",
                    gap,
                    paper=f"+5.30; {papers_interval}" if kind == AUTHORS else "",
                    verdict=judge(gap, CA + KEPT),
                    note=f"latents of {LATENT} dimensions",
                )
            )
        for kind in by_method[LIFTED]:
            for method in (CA, LIFTED, JOINED):
                gap = by_method[method][kind]["against bound"]
                name = f"{source} to IMU, {method} minus supervised bound, top-1 (points), {kind}"
                rows.append(make_row(name, gap, verdict=judge(gap, "the bound")))
    rows.append(Row("chance, top-1 (%)", ours=f"{chance:.1f}"))
    for source, by_method in found.items():
        for method, by_kind in by_method.items():
            first = by_kind[AUTHORS]
            gap = first.get("difference")
            beside = CA + KEPT if method.endswith(KEPT) else CA
            what = f"{source}: {method}"
            if method.startswith(REVERSE):
                what = f"IMU to {source}: {method.removeprefix(REVERSE)}"
            rows.append(
                make_row(
                    what,
                    first["top-1"],
                    verdict=f"{describe(gap)} against {beside}" if gap else "",
                    note="; ".join(
                        f"{kind} {describe(entry['top-1'])}"
                        + (f", {describe(entry['difference'])} against {beside}" if gap else "")
                        for kind, entry in by_kind.items()
                        if kind != AUTHORS
                    ),
                )
            )
    tables = {
        f"{source}, {epochs} epochs": by_method
        for source, by_length in by_epochs.items()
        for epochs, by_method in by_length.items()
        if len(by_length) > 1
    }
    tables |= {f"{source}, latents of {WIDE}": by_method for source, by_method in wide.items()}
    for what, by_method in tables.items():
        for method, entry in by_method.items():
            if method == CA or (method.startswith(f"{CA} ") and not method.endswith((KEPT, MLP))):
                gap = entry.get("difference")
                verdict = f"{describe(gap)} against CA" if gap else ""
                rows.append(make_row(f"{what}: {method}", entry["top-1"], verdict=verdict))
    return rows


def judge(gap: dict[str, Any], rival: str) -> str:
    """Say what a paired difference shows."""
    if gap["high"] < 0:
        return f"below {rival}"
    return f"above {rival}" if gap["low"] > 0 else f"not told apart from {rival}"


def make_row(
    name: str,
    entry: dict[str, Any],
    *,
    paper: str = "",
    verdict: str = "",
    note: str = "",
    digits: int = 1,
) -> Row:
    low, high = entry["low"], entry["high"]
    known = np.isfinite([low, high]).all()
    return Row(
        name,
        paper=paper,
        ours=f"{entry['value']:.{digits}f}",
        interval=f"[{low:.{digits}f}, {high:.{digits}f}]" if known else "",
        verdict=verdict,
        note=note,
    )


def judge_the_paper() -> tuple[str, float]:
    """What three trials with the published means and standard deviations can say of +5.3."""
    found = stats.ttest_ind_from_stats(43.9, 4.28, 3, 38.6, 3.01, 3, equal_var=False)
    spread = np.sqrt(4.28**2 / 3 + 3.01**2 / 3)
    parts = 4.28**2 / 3, 3.01**2 / 3
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = float(stats.t.ppf(0.975, freedom) * spread)
    return f"95 % interval {5.3 - half:.1f} to {5.3 + half:.1f}", float(found.pvalue)


def summarize(
    found: dict[str, Any],
    wide: dict[str, Any],
    data: HarData,
    results: list[dict[str, Any]],
    scale: Scale,
) -> str:
    interval, p = judge_the_paper()
    parts = []
    for source, by_method in found.items():
        top = {m: by_kind[AUTHORS]["top-1"]["value"] for m, by_kind in by_method.items()}
        rivals = [m for m in top if m != BOUND and not m.startswith(REVERSE)]
        best = max(rivals, key=lambda m: top[m])
        gap = by_method[PAPERS][AUTHORS]["difference"]
        kept = by_method[PAPERS + KEPT][AUTHORS]["difference"]
        parts.append(
            f"{source}: CA {top[CA]:.1f} % after {longest(results, source)} epochs, with PA as "
            f"published {top[PAPERS]:.1f} %, a difference of {describe(gap)} points (with the "
            f"latents' lengths kept, {top[CA + KEPT]:.1f} and {top[PAPERS + KEPT]:.1f} %, "
            f"{describe(kept)}); no training at all ({LIFTED}) {top[LIFTED]:.1f} %; "
            f"highest on these clips {best}, {top[best]:.1f} %; "
            f"supervised bound {top[BOUND]:.1f} %."
        )
    trend = []
    for source in scale.sources if scale.study else ():
        for result in of_study(results, source):
            ca, pa = (
                100 * float(np.mean([hits_of(run, m, 1).mean() for run in result["runs"]]))
                for m in (CA, PAPERS)
            )
            trend.append(f"{source}, {result['job'].epochs} epochs {ca:.1f} to {pa:.1f}")
    for source, by_method in wide.items():
        pa = by_method[name_of_papers(WIDE)]
        parts.append(
            f"{source}, latents of {WIDE}, in whose null space there is room for as many: CA "
            f"{by_method[CA]['top-1']['value']:.1f} %, with PA as published "
            f"{pa['top-1']['value']:.1f} %, a difference of {describe(pa['difference'])} points."
        )
    if trend:
        parts.append("CA to CA+PA as encoders get stronger: " + "; ".join(trend) + ".")
    parts.append(
        f"The paper's +5.3 points, of three trials each, has a {interval} (Welch, p = {p:.2f}): "
        "within the noise of its own design."
    )
    lead = "" if not data.simulated else "SIMULATED RECORDINGS, not UTD-MHAD. "
    return lead + " ".join(parts)


def draw_training(results: list[dict[str, Any]], scale: Scale) -> Any:
    """Loss and watched accuracy of the longest training of each source."""
    panels = []
    for source in scale.sources:
        result = of_study(results, source)[-1]
        losses = np.asarray(result["losses"]).T
        epochs = list(range(1, losses.shape[1] + 1))
        watched = np.asarray(result["watched"], np.float64)
        asked = np.flatnonzero(~np.isnan(watched).all(axis=1))
        panels.append(
            plotting.Panel(f"{source}: loss", epochs, "epoch", "InfoNCE (nats)", {"CA": losses})
        )
        panels.append(
            plotting.Panel(
                f"{source}: validation",
                (asked + 1).tolist(),
                "epoch",
                "top-1 (%)",
                {"CA": watched[asked].T},
            )
        )
    return plotting.plot_panels(panels, columns=2)


def draw_study(by_epochs: dict[str, Any]) -> Any:
    """Accuracy with and without PA against the epochs of CA."""
    lines = {
        "CA": CA,
        f"CA + PA, k = {LATENT} (the paper)": PAPERS,
        "CA + PA inside 128 directions": "CA + PA, inside 128 principal directions",
        "CA + ridge CCA": "CA + ridge CCA",
        JOINED: JOINED,
    }
    panels = [
        plotting.Panel(
            f"{source} to IMU",
            list(by_length),
            "epochs of contrastive training",
            "top-1 (%)",
            {
                label: line_up([by_method.get(method) for by_method in by_length.values()])
                for label, method in lines.items()
            },
            log_x=True,
        )
        for source, by_length in by_epochs.items()
    ]
    return plotting.plot_panels(panels, columns=2)


def draw_dimensions(by_epochs: dict[str, Any], wide: dict[str, Any]) -> Any:
    """Accuracy against the number of directions that are aligned, on the longest trainings."""
    tables = [
        (source, LATENT, by_length[max(by_length)]) for source, by_length in by_epochs.items()
    ]
    tables += [(source, WIDE, by_method) for source, by_method in wide.items()]
    lines = {
        "CA": CA,
        "CA + PA, trailing k": "CA + PA, trailing k = {}",
        "CA + PA, energy k": "CA + PA, energy k = {}",
        "CA + PA inside k directions": "CA + PA, inside {} principal directions",
    }
    panels = []
    for source, latent, by_method in tables:
        found = (re.search(r"trailing k = (\d+)", name) for name in by_method)
        sizes = sorted({int(size[1]) for size in found if size})
        names = {
            label: [
                name_of_papers(latent) if "trailing" in name and k == latent else name.format(k)
                for k in sizes
            ]
            for label, name in lines.items()
        }
        panels.append(
            plotting.Panel(
                f"{source} to IMU, latents of {latent}",
                sizes,
                "k, directions aligned",
                "top-1 (%)",
                {label: line_up([by_method.get(n) for n in some]) for label, some in names.items()},
                log_x=True,
            )
        )
    return plotting.plot_panels(panels, columns=2)


def line_up(entries: list[dict[str, Any] | None]) -> np.ndarray:
    """Top-1 of every run in a column for each entry, NaN where there is none."""
    columns = [entry["top-1"]["each"] if entry else [] for entry in entries]
    values = np.full((max(map(len, columns)), len(columns)), np.nan)
    for i, column in enumerate(columns):
        values[: len(column), i] = column
    return values


def main(options: HarOptions) -> Result:
    start, console = time.perf_counter(), rich.console.Console()
    root = options.root or os.environ.get("UTD_MHAD_ROOT")
    scale = choose_scale(options, has_rgb=root is not None and (Path(root) / "RGB").is_dir())
    loaded = load_by_source(options, scale)
    data = loaded[scale.sources[0]]
    problems = list(dict.fromkeys(p for found in loaded.values() for p in found.problems))
    for problem in problems:
        console.print(f"left out: {problem}")
    jobs = list_jobs(loaded, scale, options)
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # collapse is what is measured here
        for i, job in enumerate(jobs):
            console.print(f"[{i + 1}/{len(jobs)}] {job.name}", markup=False, highlight=False)
            usual = job.latent == LATENT
            dimensions = scale.dimensions if usual else scale.wide_dimensions
            results.append(run_job(job, loaded[job.source], options, dimensions=dimensions))
    found = gather(results, scale)
    by_epochs, wide = gather_epochs(results, scale), gather_wide(results)
    panels: dict[str, Any] = {}
    for source, by_method in found.items():
        for method, by_kind in by_method.items():
            size = re.search(r"(?:k =|inside) (\d+)", method)
            if size and int(size[1]) not in (128, LATENT):  # the figure over k has the others
                continue
            if method.startswith(REVERSE):  # two lines of the table
                continue
            panels.setdefault(f"{source} to IMU", {})[method] = {
                kind: tuple(entry["top-1"].values())[:3] for kind, entry in by_kind.items()
            }
    stand_in = " (simulated)" if data.simulated else ""
    chance = 100 / len(np.unique(data.labels))
    figures = {
        f"{NAME}.png": (
            plotting.plot_transfer(panels, chance=chance, quantity="top-1 (%)"),
            f"Top-1 accuracy on the target{stand_in} with labels on the source only (the bound: on "
            "the target). Lines are 95 % intervals: over splits, over training seeds, or over "
            "clips where there is one run.",
        ),
        f"{NAME}_training.png": (
            draw_training(results, scale),
            f"Contrastive training{stand_in}, authors' split: loss, and top-1 on validation clips.",
        ),
    }
    if scale.study:
        figures[f"{NAME}_k.png"] = (
            draw_dimensions(by_epochs, wide),
            "Perfect alignment of more and more directions, on encoders trained for "
            f"{scale.epochs} epochs, authors' split; bands are the middle 80 % of the seeds.",
        )
        figures[f"{NAME}_epochs.png"] = (
            draw_study(by_epochs),
            "Does perfect alignment help? Top-1 with and without it on encoders that were trained "
            "for more and more epochs; bands are the middle 80 % of the seeds.",
        )
    seconds = {result["job"].name: result["seconds"] for result in results}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    result = Result(
        name=NAME,
        title=f"Table 1, video or skeleton to IMU with trained encoders{stand_in}",
        summary=summarize(found, wide, data, results, scale),
        rows=[
            *make_rows(found, by_epochs, wide, judge_the_paper()[0], chance),
            Row("peak memory (GiB)", ours=f"{memory:.1f}"),
        ],
        figures=draw_figures(options.out, figures),
        values={
            "accuracy": found,
            "by epochs": by_epochs,
            "wide": wide,
            "seconds": seconds,
            "problems": problems,
        },
        config=config_of(options, data=data.name, latent=LATENT),
        seconds=time.perf_counter() - start,
    )
    finish(result, options)
    return result


if __name__ == "__main__":
    start(main, HarOptions, __doc__)
