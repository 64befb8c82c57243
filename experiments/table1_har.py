"""Table 1: contrastive encoders, perfect alignment on top, and what needs no training at all.

Command:  UTD_MHAD_ROOT=<folder> python experiments/table1_har.py [--quick | --full]
          [--authors-only] [--out results] [--root <folder>] [--no-resume]
Time:     3 minutes on 2 cores once the recordings are cached (--quick, 1 minute; --full, 2 hours,
          with --authors-only 25 minutes)
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
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
from _har_data import (
    AUTHORS,
    EPOCHS,
    HELD_OUT,
    LATENT,
    RANDOM,
    SEEDS,
    TARGET,
    HarData,
    HarOptions,
    Job,
    list_splits,
    load_har_data,
    say_what_is_less,
)
from _har_figures import draw_dimensions, draw_largest, draw_study, draw_training
from _har_scores import (
    BOUND,
    CA,
    CA_KEPT,
    JOINED_PA,
    KEPT,
    LIFTED_PA,
    TOPS,
    TRAINED,
    name_of_papers,
    run_job,
)
from _kit.options import start
from _kit.report import Row
from _kit.rows import Figures, describe, estimate_hits, finish
from _transfer_data import by_label
from scipy import stats

from perfalign_jax.har.protocol import estimates
from perfalign_jax.har.protocol.methods import Method

NAME = "table1_har"
PAPER = {
    "CA": ("38.6 ± 3.01", "56.1 ± 6.66", "66.3 ± 5.61", "73.9 ± 5.21"),
    "CA+PA": ("43.9 ± 4.28", "60.6 ± 5.67", "69.7 ± 2.83", "75.8 ± 1.07"),
}
PAPERS_CMAE = {"CA": "2210 ± 20.5", "CA+PA": "8.66 ± 0.306"}
AGREEMENTS = ("CMAE", "NCMAE", "relative CMAE", "R@1")
PAPERS, PAPERS_KEPT = name_of_papers(LATENT), name_of_papers(LATENT, space=KEPT)
STUDY_SEEDS = 3
Found = dict[str, Any]  # by source, then by method or by epochs and method: what is measured
WIDE = 2048  # the paper's latents: their null space holds far more directions than are taken


@dataclasses.dataclass(frozen=True)
class TableOptions(HarOptions):
    """Options of this experiment.

    Attributes:
        authors_only: every seed and epoch of --full on the authors' split, and nothing else: no
            other splits, no held-out subjects, no shorter or wider trainings.
    """

    authors_only: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is run."""

    sources: tuple[str, ...]
    seeds: int
    epochs: int
    random: int
    dimensions: tuple[int, ...] = (27, 64, 128)
    study: tuple[int, ...] = ()  # epochs of shorter trainings
    wide_dimensions: tuple[int, ...] = ()


def choose_scale(options: TableOptions, *, has_rgb: bool) -> Scale:
    if options.authors_only and not options.full:
        raise SystemExit("--authors-only needs --full: other runs have no other splits.")
    if options.quick:
        return Scale(("skeleton",), 1, 2, 0)
    if not options.full:
        return Scale(("skeleton", "depth"), 1, 40, 0)
    sources = ("skeleton", "depth", *(("rgb",) if has_rgb else ()))
    few, many = (8, 27, 64, 128, 192), (8, 27, 64, 128, 256, 512, 1024)
    if options.authors_only:
        return Scale(sources, SEEDS, EPOCHS, 0, few)
    return Scale(sources, SEEDS, EPOCHS, 10, few, study=(5, 20, 60), wide_dimensions=many)


def load_by_source(options: HarOptions, scale: Scale) -> dict[str, HarData]:
    """Recordings for each source; RGB by itself, as clips without it serve the others."""
    groups = [[s for s in scale.sources if (s == "rgb") == alone] for alone in (False, True)]
    loaded: dict[str, HarData] = {}
    for group in filter(None, groups):
        loaded |= dict.fromkeys(group, load_har_data(options, modalities=(TARGET, *group)))
    return loaded


def list_jobs(data: dict[str, HarData], scale: Scale, options: TableOptions) -> list[Job]:
    jobs = []
    for source in scale.sources:
        every = list_splits(data[source], options, random=scale.random)
        every = every[:1] if options.authors_only else every
        short = source != "skeleton" and not options.full
        epochs = scale.epochs // 2 if short else scale.epochs
        for kind, split in every:
            jobs.append(Job(source, kind, split, scale.seeds if kind == AUTHORS else 1, epochs))
        again = Job(source, AUTHORS, every[0][1], STUDY_SEEDS, epochs, untrained=False)
        jobs.extend(replace(again, epochs=e) for e in scale.study)
        if scale.wide_dimensions and source == "skeleton":  # the one that is trained soonest
            jobs.append(replace(again, latent=WIDE))
    return jobs


def gather(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies with intervals, paired differences to CA: by source, method, kind of split."""
    found: dict[str, Any] = {}
    for source, job in main_jobs(results).items():
        for kind in (AUTHORS, RANDOM, HELD_OUT):
            alike = [r for r in results if r["job"].kind == kind and is_alike(r["job"], job)]
            runs = [run for result in alike for run in result["runs"]]
            for method in {method: None for run in runs for method in run}:
                entry = measure(runs, method, one_exam=kind == AUTHORS)
                found.setdefault(source, {}).setdefault(method, {})[kind] = entry
    return found


def is_alike(job: Job, other: Job) -> bool:
    """Whether two trainings differ in their pairs only."""
    names = ("source", "epochs", "latent", "untrained")
    return all(getattr(job, name) == getattr(other, name) for name in names)


def main_jobs(results: list[dict[str, Any]]) -> dict[str, Job]:
    """The training of each source that the table is about: authors' split, the longest."""
    jobs = (result["job"] for result in results)
    return {job.source: job for job in jobs if job.kind == AUTHORS and job.untrained}


def of_study(results: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Trainings of a source on the authors' split, latents of the usual size, short to long."""
    wanted = source, AUTHORS, LATENT
    chosen = [r for r in results if (r["job"].source, r["job"].kind, r["job"].latent) == wanted]
    return sorted(chosen, key=lambda result: result["job"].epochs)


def gather_runs(result: dict[str, Any]) -> dict[Method, Any]:
    """The same of one training on the authors' split, for the methods that need it."""
    runs = result["runs"]
    needed = [method for method in runs[-1] if method.space in TRAINED]
    return {method: measure(runs, method, one_exam=True) for method in needed}


def measure(runs: list[dict[Method, Any]], method: Method, *, one_exam: bool) -> dict[str, Any]:
    """Accuracy, paired differences to CA and to the bound, and agreement, over runs of a method.

    An interval is over training seeds and clips, or over splits; where one training is all there
    is, what depends on it has none.
    """
    mine = [run for run in runs if method in run]

    def estimate(*hits: list[np.ndarray], trained: bool) -> dict[str, Any]:
        entry = estimate_hits(hits[0], against=hits[1] if len(hits) > 1 else None, crossed=one_exam)
        known = not trained or len(runs) > 1
        return entry if known else entry | {"low": -np.inf, "high": np.inf}

    trained = method.space in TRAINED
    by_top = {top: [hits_of(run, method, top) for run in mine] for top in TOPS}
    hits = by_top[1]
    entry: dict[str, Any] = {f"top-{t}": estimate(h, trained=trained) for t, h in by_top.items()}
    rival = CA_KEPT if method.space == KEPT else CA
    if method != rival and not method.backwards:
        ours, against = hits, [hits_of(run, rival, 1) for run in mine]
        if len(mine) < len(runs) and one_exam:  # scored once: set beside CA of every seed
            ours, against = hits[:1] * len(runs), [hits_of(run, rival, 1) for run in runs]
        entry["difference"] = estimate(ours, against, trained=True)
    if method in (CA, LIFTED_PA, JOINED_PA) and BOUND in runs[0]:
        bounds = [hits_of(run if BOUND in run else runs[0], BOUND, 1) for run in mine]
        entry["against bound"] = estimate(hits, bounds, trained=trained)
    for name in AGREEMENTS:
        values = [run[method][name] for run in mine if name in run[method]]
        if values:
            entry[name] = dataclasses.asdict(estimates.estimate_mean(values))
    return entry


def hits_of(run: dict[Method, Any], method: Method, top: int) -> np.ndarray:
    return np.asarray(run[method]["hits"][str(top)], np.float64)


def make_rows(
    found: Found, less: Mapping[str, str], tables: Found, *, simulated: bool, chance: float
) -> list[Row]:
    """The paper's table beside ours, then every method, then other trainings.

    The paper's numbers stand beside the full protocol on real recordings only.
    """
    rows = []
    for source, by_method in found.items():
        part = f", {less[source]}" if less[source] else ""
        comparable = not part and not simulated
        for ours, papers in ((CA_KEPT, "CA"), (PAPERS_KEPT, "CA+PA")):
            entry = by_method[ours][AUTHORS]
            what = f"{source} to IMU, {papers}, lengths kept"
            for top, printed in zip(TOPS, PAPER[papers], strict=True):
                paper = f"{printed} (RGB)" if comparable else ""
                name = f"{what}, top-{top} (%), {AUTHORS}{part}"
                rows.append(make_row(name, entry[f"top-{top}"], paper=paper))
            for error in AGREEMENTS:
                paper = f"{PAPERS_CMAE[papers]} (2048-d)" if error == "CMAE" and comparable else ""
                unit = " (%)" if error == "R@1" else ""
                name = f"{what}, {error}{unit}, held-out pairs, {AUTHORS}{part}"
                rows.append(make_row(name, entry[error], paper=paper, digits=2))
        for kind, entry in by_method[PAPERS_KEPT].items():
            gap = entry["difference"]
            paper = f"+5.30; {judge_the_paper()[0]}" if comparable and kind == AUTHORS else ""
            name = f"{source} to IMU, CA+PA minus CA with lengths kept, top-1 (points), {kind}"
            verdict, note = judge(gap, CA_KEPT.label), f"latents of {LATENT} dimensions"
            rows.append(make_row(name + part, gap, paper=paper, verdict=verdict, note=note))
        for kind in by_method[LIFTED_PA]:
            for method in (CA, LIFTED_PA, JOINED_PA):
                gap = by_method[method][kind]["against bound"]
                name = f"{source} to IMU, {method.label} minus supervised bound, top-1 (points)"
                name += f", {kind}{part if method.space in TRAINED else ''}"
                rows.append(make_row(name, gap, verdict=judge(gap, "the bound")))
    rows.append(Row("chance, top-1 (%)", ours=f"{chance:.1f}"))
    for source, by_method in found.items():
        for method, by_kind in by_method.items():
            beside = (CA_KEPT if method.space == KEPT else CA).label
            against = {kind: tell_gap(entry, beside) for kind, entry in by_kind.items()}
            part = f", {less[source]}" if less[source] and method.space in TRAINED else ""
            where = f"IMU to {source}" if method.backwards else source
            name = f"{where}: {replace(method, backwards=False).label}{part}"
            note = "; ".join(
                ", ".join(filter(None, (f"{kind} {tell(entry['top-1'])}", against[kind])))
                for kind, entry in by_kind.items()
                if kind != AUTHORS
            )
            top = by_kind[AUTHORS]["top-1"]
            rows.append(make_row(name, top, verdict=against[AUTHORS], note=note))
    for what, by_method in tables.items():
        for method, entry in by_method.items():
            if (method.space, method.decoder, method.backwards) == (CA.space, "", False):
                name = f"{what}: {method.label}"
                rows.append(make_row(name, entry["top-1"], verdict=tell_gap(entry, CA.label)))
    return rows


def is_known(entry: dict[str, Any]) -> bool:
    return bool(np.isfinite([entry["low"], entry["high"]]).all())


def tell(entry: dict[str, Any]) -> str:
    return describe(entry) if is_known(entry) else f"{entry['value']:.1f}"


def tell_gap(entry: dict[str, Any], rival: str) -> str:
    return f"{tell(entry['difference'])} against {rival}" if "difference" in entry else ""


def judge(gap: dict[str, Any], rival: str) -> str:
    """Say what a paired difference shows."""
    if not is_known(gap):
        return "one training: no interval"
    if gap["high"] < 0:
        return f"below {rival}"
    return f"above {rival}" if gap["low"] > 0 else f"not told apart from {rival}"


def make_row(quantity: str, entry: dict[str, Any], *, digits: int = 1, **more: str) -> Row:
    low, high = entry["low"], entry["high"]
    interval = f"[{low:.{digits}f}, {high:.{digits}f}]" if is_known(entry) else ""
    return Row(quantity, ours=f"{entry['value']:.{digits}f}", interval=interval, **more)


def judge_the_paper() -> tuple[str, float]:
    """What three trials with the published means and standard deviations can say of +5.3."""
    found = stats.ttest_ind_from_stats(43.9, 4.28, 3, 38.6, 3.01, 3, equal_var=False)
    parts = 4.28**2 / 3, 3.01**2 / 3
    freedom = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts)))
    return f"95 % interval {5.3 - half:.1f} to {5.3 + half:.1f}", float(found.pvalue)


def summarize(
    found: Found, less: Mapping[str, str], by_epochs: Found, wide: Found, *, simulated: bool
) -> str:
    interval, p = judge_the_paper()
    parts = []
    for source, by_method in found.items():
        first = {method: by_kind[AUTHORS] for method, by_kind in by_method.items()}
        top = {method: entry["top-1"]["value"] for method, entry in first.items()}
        rivals = [m for m in top if m != BOUND and not m.backwards]
        best = max(rivals, key=lambda m: top[m])
        parts.append(
            f"{source} ({less[source] or 'full protocol'}): CA {top[CA]:.1f} %, with PA as "
            f"published {top[PAPERS]:.1f} %, a difference of {tell(first[PAPERS]['difference'])} "
            f"points (with the latents' lengths kept, {top[CA_KEPT]:.1f} and "
            f"{top[PAPERS_KEPT]:.1f} %, {tell(first[PAPERS_KEPT]['difference'])}); no training at "
            f"all ({LIFTED_PA.label}) {top[LIFTED_PA]:.1f} %; highest on these clips {best.label}, "
            f"{top[best]:.1f} %; supervised bound {top[BOUND]:.1f} %."
        )
    for source, by_method in wide.items():
        pa = by_method[name_of_papers(WIDE)]
        parts.append(
            f"{source}, latents of {WIDE}, in whose null space there is room for as many: CA "
            f"{by_method[CA]['top-1']['value']:.1f} %, with PA as published "
            f"{pa['top-1']['value']:.1f} %, a difference of {tell(pa['difference'])} points."
        )
    trend = []
    for source, by_length in by_epochs.items():
        for epochs, by_method in by_length.items() if len(by_length) > 1 else ():
            ca, pa = (by_method[method]["top-1"]["value"] for method in (CA, PAPERS))
            trend.append(f"{source}, {epochs} epochs {ca:.1f} to {pa:.1f}")
    if trend:
        parts.append("CA to CA+PA as encoders get stronger: " + "; ".join(trend) + ".")
    parts.append(
        f"The paper's +5.3 points, of three trials each, has a {interval} (Welch, p = {p:.2f}): "
        "within the noise of its own design."
    )
    return ("SIMULATED RECORDINGS, not UTD-MHAD. " if simulated else "") + " ".join(parts)


def main(options: TableOptions) -> None:
    console = rich.console.Console()
    root = options.root or os.environ.get("UTD_MHAD_ROOT")
    scale = choose_scale(options, has_rgb=root is not None and (Path(root) / "RGB").is_dir())
    loaded = load_by_source(options, scale)
    data = loaded[scale.sources[0]]
    problems = list(dict.fromkeys(p for found in loaded.values() for p in found.problems))
    for problem in problems:
        console.print(f"left out: {problem}")
    jobs = list_jobs(loaded, scale, options)
    results = []
    for i, job in enumerate(jobs):
        console.print(f"[{i + 1}/{len(jobs)}] {job.name}", markup=False, highlight=False)
        dimensions = scale.dimensions if job.latent == LATENT else scale.wide_dimensions
        results.append(run_job(job, loaded[job.source], options, dimensions=dimensions))
    found = gather(results)
    main_ones = main_jobs(results).items()
    less = {source: say_what_is_less(epochs=j.epochs, seeds=j.seeds) for source, j in main_ones}
    by_epochs = {
        source: {result["job"].epochs: gather_runs(result) for result in of_study(results, source)}
        for source in scale.sources
    }
    wide = {r["job"].source: gather_runs(r) for r in results if r["job"].latent == WIDE}
    stand_in = " (simulated)" if data.simulated else ""
    chance = 100 / len(np.unique(data.labels))
    part = "; ".join(f"{source} {text}" for source, text in less.items() if text)
    part = f" Trained for less than the full protocol: {part}." if part else ""
    figures: Figures = {
        f"{NAME}.png": (
            draw_largest(found, chance=chance),
            f"Top-1 accuracy on the target{stand_in} with labels on the source only (the bound: on "
            "the target). Lines are 95 % intervals: over splits, over training seeds and clips, or "
            f"over clips where nothing is trained; one training has none.{part}",
        ),
        f"{NAME}_training.png": (
            draw_training({source: of_study(results, source)[-1] for source in scale.sources}),
            f"Contrastive training{stand_in}, authors' split: loss, and top-1 on validation clips.",
        ),
    }
    tables: dict[str, Any] = {}
    if scale.study:
        most = [(s, LATENT, by_length[max(by_length)]) for s, by_length in by_epochs.items()]
        most += [(source, WIDE, by_method) for source, by_method in wide.items()]
        figures[f"{NAME}_k.png"] = (
            draw_dimensions(most),
            "Perfect alignment of more and more directions, on encoders trained for "
            f"{scale.epochs} epochs, authors' split; bands are the middle 80 % of the seeds.",
        )
        figures[f"{NAME}_epochs.png"] = (
            draw_study(by_epochs),
            "Does perfect alignment help? Top-1 with and without it on encoders that were trained "
            "for more and more epochs; bands are the middle 80 % of the seeds.",
        )
        for source, by_length in by_epochs.items():
            tables |= {f"{source}, {n} epochs": by_method for n, by_method in by_length.items()}
        tables |= {f"{s}, latents of {WIDE}": by_method for s, by_method in wide.items()}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    rows = make_rows(found, less, tables, simulated=data.simulated, chance=chance)
    finish(
        options,
        NAME,
        title=f"Table 1, video or skeleton to IMU with trained encoders{stand_in}",
        summary=summarize(found, less, by_epochs, wide, simulated=data.simulated),
        rows=[*rows, Row("peak memory (GiB)", ours=f"{memory:.1f}")],
        figures=figures,
        values={
            "accuracy": by_label(found),
            "by epochs": by_label(by_epochs),
            "wide": by_label(wide),
            "seconds": {result["job"].name: result["seconds"] for result in results},
            "problems": problems,
        },
        config={"data": data.name, "latent": LATENT},
    )


if __name__ == "__main__":
    start(main, TableOptions, __doc__, bits=32)
