"""This package beside its peers, question by question: time, memory and held-out R@1.

Command:  python experiments/benchmarks/peers.py [--full | --targets] [--only "ridge CCA" ...]
          [--threads 2]
Time:     7 minutes on 2 quiet cores; with --targets half an hour, with --full some hours, both with
          13 GB of disk, and 16 of memory
Needs:    pip install '.[bench]'; PyTorch takes part where it is installed
Expect:   faster than every peer, or even, in every cell where one of both takes 10 ms, but for
          PyTorch's randomised SVD, which may be faster than ``linear_contrastive``. With --targets
          2 times the speed of cca_zoo's RidgeCCA and 100 times that of scikit-learn's CCA at
          2 x 1,024 features and 20,000 pairs, 10 times that of its KCCA at 5,000, and
          500,000 x 6,400 in 1.5 GB. --full has not been run to its end

Every question is asked over pairs at fixed features and over features at fixed pairs, in float64
from host arrays; out of core in float32 from files. Calls are warm, by medians; a peer that starts
from the stacked matrix finds it stacked. With --full every contestant has three processes, in turn
with the others (out of core it is one), and one is faster where all of its medians are; otherwise
it has one, and a lead of less than a fifth counts for nothing.

Some peers answer a neighbouring question: PLSCanonical and ikpls deflate one direction after the
other, ``torch.svd_lowrank`` is randomised, and GCCA is MAXVAR. Their R@1 says what that costs.
"""

import dataclasses
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import _harness
from _contestants import HELD_OUT, QUESTIONS, Size, is_installed, write_files

sys.path.insert(0, str(Path(__file__).parents[1]))
from _kit.options import Options, start
from _kit.report import Row, format_number
from _kit.rows import Figures, finish

from perfalign_jax.plotting import Panel, plot_panels

CONTESTANTS = Path(__file__).with_name("_contestants.py")
PACKAGES = ("cca-zoo", "dask", "ikpls", "torch")
Cells = dict[Size, dict[str, dict[str, Any]]]  # by size and contestant, what was measured


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of one scale, and how long they are measured."""

    base: Size  # from which one axis at a time departs
    pairs: tuple[int, ...]
    features: tuple[int, ...]
    kernel_pairs: tuple[int, ...]
    files: Size
    repeats: int  # in each process
    processes: int  # of each contestant and cell in memory, in turn
    limit: float  # seconds of a call in memory
    files_limit: float  # and out of core

    def sizes(self, question: str) -> list[Size]:
        """Cells of a question, smaller ones first."""
        if question == "out of core":
            return [self.files]
        if question == "kernel CCA":
            return [Size(n, 64, self.base.k) for n in self.kernel_pairs]
        cells = {self.base._replace(n=n) for n in self.pairs}
        return sorted({self.base} | cells | {self.base._replace(d=d) for d in self.features})


PLANS = {
    "quick": Plan(
        base=Size(200, 16, 4),
        pairs=(),
        features=(),
        kernel_pairs=(100,),
        files=Size(2_000, 16, 4),
        repeats=2,
        processes=2,
        limit=30,
        files_limit=30,
    ),
    "default": Plan(
        base=Size(4_000, 128, 16),
        pairs=(1_000, 16_000),
        features=(64, 256),
        kernel_pairs=(250, 500, 1_000),
        files=Size(20_000, 128, 16),
        repeats=3,
        processes=1,
        limit=20,
        files_limit=60,
    ),
    "full": Plan(
        base=Size(20_000, 256, 64),
        pairs=(1_250, 5_000, 80_000),
        features=(64, 128, 512, 1_024),
        kernel_pairs=(1_000, 2_000, 5_000),
        files=Size(500_000, 3_200, 64),
        repeats=3,
        processes=3,
        limit=300,
        files_limit=1_800,
    ),
}
TARGETS = {  # how many times as long a peer takes, at least
    ("ridge CCA", "cca_zoo RidgeCCA", 20_000, 1_024): 2,
    ("CCA", "scikit-learn CCA", 20_000, 1_024): 100,
    ("kernel CCA", "cca_zoo KCCA", 5_000, 64): 10,
}
MOST_RESIDENT = 1_500  # MB, at 500,000 x 6,400


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Options of this benchmark."""

    threads: int = len(os.sched_getaffinity(0))  # cores for everybody
    only: tuple[str, ...] = ()  # questions; all if none is named
    targets: bool = False  # only the large cells that a target is about


def list_cells(question: str, plan: Plan, targets: bool) -> dict[Size, list[str]]:
    """Which of those that are installed are measured at which size, smaller ones first."""
    names = [name for name in QUESTIONS[question] if is_installed(question, name)]
    if not targets:
        return dict.fromkeys(plan.sizes(question), names)
    if question == "out of core":
        return {plan.files: names[:1]}
    return {
        Size(n, d, plan.base.k): [names[0], name]
        for asked, name, n, d in TARGETS
        if asked == question and name in names
    }


def measure(question: str, plan: Plan, asked: Mapping[Size, list[str]]) -> Cells:
    """Measure contestants; one that was too slow gets no larger cell."""
    limit = plan.files_limit if question == "out of core" else plan.limit
    processes = 1 if question == "out of core" else plan.processes  # a call takes minutes
    cells: Cells = {}
    slow: list[tuple[str, Size]] = []
    with tempfile.TemporaryDirectory() as folder:
        if question == "out of core":
            write_files(Path(folder), plan.files)
        for size, names in asked.items():
            task: dict[str, Any] = {"question": question, "size": size, "folder": folder}
            task |= {"repeats": plan.repeats, "limit": limit}
            tasks: dict[str, tuple[str, ...]] = {
                name: (json.dumps(task | {"name": name}),)
                for name in names
                if not any(name == s and size.n >= at.n and size.d >= at.d for s, at in slow)
            }
            done = _harness.try_in_turn(CONTESTANTS, tasks, processes=processes, limit=limit)
            slow += [(name, size) for name, found in done.items() if "over" in found]
            told = {"failed": f"more than {limit:g} s at a smaller size", "over": limit}
            cells[size] = {name: done.get(name, told) for name in names}
            for name, found in cells[size].items():
                print(f"{say(question, size)}: {name}: {_harness.describe(found)}", flush=True)
    return cells


def say(question: str, size: Size) -> str:
    return f"{question}, 2 x {size.d:,} features, {size.n:,} pairs, k = {size.k}"


def along(cells: Cells, name: str, axis: str) -> dict[int, float]:
    """Medians of a contestant along pairs ("n") or features ("d"), where the other is fixed."""
    other = "d" if axis == "n" else "n"
    held = [getattr(size, other) for size in cells]
    fixed = max(held, key=held.count)
    return {
        getattr(size, axis): _harness.median(cells[size][name])
        for size in cells
        if getattr(size, other) == fixed and "failed" not in cells[size][name]
    }


def describe_growth(cells: Cells, name: str) -> str:
    """Time as a power of pairs and features, where three sizes or more were measured."""
    powers = []
    for axis in ("n", "d"):
        line = along(cells, name, axis)
        power = _harness.exponent(list(line), list(line.values()))
        if power is not None:
            powers.append(f"{axis}^{power:.1f}")
    return " ".join(powers)


def rival(question: str, name: str, cells: Cells) -> Iterator[Row]:
    """Rows of one peer: all cells in one, then cell by cell."""
    us = next(iter(QUESTIONS[question]))
    rows, ratios, verdicts = [], [], []
    for size, found in cells.items():
        ours, peer = found[us], found[name]
        least = TARGETS.get((question, name, size.n, size.d))
        row = Row(
            f"{say(question, size)}: {name} over {us}",
            **_harness.compare(ours, peer, us, name, least),
        )
        rows.append(row)
        verdicts.append(row.verdict)
        if "failed" not in {*ours, *peer}:
            ratios.append(_harness.ratio(peer, ours))
    if len(rows) > 1:
        span = " to ".join(map(format_number, (min(ratios), max(ratios)))) if ratios else "none"
        won, lost = (sum(v.startswith(w) for v in verdicts) for w in ("perfalign_jax", name))
        grown = [f"{who} grows as {g}" for who in (us, name) if (g := describe_growth(cells, who))]
        yield Row(
            f"{question}, all cells: {name} over {us}",
            ours=f"{span} times",
            verdict=f"of {len(rows)} cells perfalign_jax in {won}, {name} in {lost}",
            note="; ".join(grown),
        )
    yield from rows


def make_rows(found: Mapping[str, Cells]) -> list[Row]:
    rows: list[Row] = []
    for question, cells in found.items():
        us, *others = next(iter(cells.values()))
        for name in others:
            rows += rival(question, name, cells)
        if question == "out of core":
            for size, one in cells.items():
                if "failed" in one[us]:
                    continue
                held, large = one[us]["resident"], size.n * size.d >= 500_000 * 3_200
                verdict = "met" if held <= MOST_RESIDENT else "missed"
                rows.append(
                    Row(
                        f"{say(question, size)}: resident memory of {us}, all in all, MB",
                        ours=f"{held:,.0f}",
                        verdict=f"{verdict}: at most {MOST_RESIDENT:,} MB" if large else "",
                        note=_harness.describe(one[us])
                        + "; dask's tracker, number 3419, reports 25 GB for its SVD" * large,
                    )
                )
    return rows


def draw_figure(found: Mapping[str, Cells]) -> Figures:
    """Time over pairs and over features, a panel for each question."""
    panels = []
    for question, cells in found.items():
        us, *others = next(iter(cells.values()))
        for axis, label in (("n", "pairs"), ("d", "features of each view")):
            lines = {name: along(cells, name, axis) for name in (us, *others)}
            places = sorted(set(itertools.chain(*lines.values())))
            if len(places) > 1:
                curves = {
                    "perfalign_jax" if name == us else name: [
                        [line.get(place, float("nan")) for place in places]
                    ]
                    for name, line in lines.items()
                }
                looks: dict[str, Any] = {"log_x": True, "log_y": True}
                panels.append(Panel(question, places, label, "time (s)", curves, **looks))
    if not panels:
        return {}
    caption = "Seconds of a warm call over pairs and over features, of this package and its peers."
    return {"benchmark_peers.png": (plot_panels(panels), caption)}


def main(settings: Settings) -> None:
    questions = [question for question in QUESTIONS if question != "fit"]
    if not set(settings.only) <= set(questions):
        raise SystemExit(f"--only must name some of {', '.join(questions)}, got {settings.only}.")
    asked = [question for question in questions if not settings.only or question in settings.only]
    _harness.take_cores(settings.threads)
    plan = PLANS[settings.scale]
    if settings.targets and (settings.quick or settings.full):
        raise SystemExit("--targets must be alone: it has sizes of its own.")
    if settings.targets:
        plan = dataclasses.replace(PLANS["full"], repeats=1)
    listed = {question: list_cells(question, plan, settings.targets) for question in asked}
    found = {
        question: measure(question, plan, cells) for question, cells in listed.items() if cells
    }
    missing = sorted({n for q in asked for n in QUESTIONS[q] if not is_installed(q, n)})
    rows = make_rows(found)
    summary = (
        "How many times as long a peer takes as this package, and who is faster: medians of warm "
        f"calls with quartiles, memory above imports, and R@1 of {HELD_OUT:,} held-out pairs. Each "
        "contestant runs in a process of its own with the same cores. Most peers give the same "
        "answer; PLSCanonical, ikpls, GCCA and the randomised SVD give another, which R@1 weighs."
    )
    if missing:
        summary += f" Not installed: {', '.join(missing)}."
    config: dict[str, Any] = {"threads": settings.threads, "seconds at most": plan.limit}
    config |= {"scale": "targets"} if settings.targets else {}
    finish(
        settings,
        "benchmark_targets" if settings.targets else "benchmark_peers",
        title="Benchmark: this package and its peers" + ", large" * settings.targets,
        summary=summary,
        rows=rows,
        values={
            question: [{**size._asdict(), **one} for size, one in cells.items()]
            for question, cells in found.items()
        },
        figures=draw_figure(found),
        config=config | _harness.versions(*PACKAGES),
        less="a few hundred pairs",
    )


if __name__ == "__main__":
    start(main, Settings, __doc__)
