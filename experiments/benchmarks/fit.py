"""Speed of ``fit`` beside what bounds it: a singular value decomposition, and one product of X.

Command:  python experiments/benchmarks/fit.py [--full] [--threads 2]
Time:     2 minutes on 2 quiet cores; with --full, and ridge CCA of 2 x 1,024 features, half an hour
Needs:    pip install '.[bench]'
Expect:   9.1, 8.1, 2.9 and 13 times the speed of numpy.linalg.svd at the four shapes (9, 8, 6 and
          15 are aimed at), in 1.9, 1.6, - and 2.5 products by BLAS (2.4, 2.1, - and 2.5 are);
          2,000 x 4 in 3 ms (2 are); 5 times the speed of cca_zoo's RidgeCCA

Views of k latents without noise, in float64, from host arrays; SVD and products find them stacked.
The SVD is whole where there are fewer rows than features. What the first call takes longer than the
others is counted as compilation.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _harness
from _contestants import QUESTIONS, Size, is_installed

sys.path.insert(0, str(Path(__file__).parents[1]))
from _kit.options import Options, start
from _kit.report import Row, format_number
from _kit.rows import finish

CONTESTANTS = Path(__file__).with_name("_contestants.py")
SMALL = Size(2_000, 2, 2)
# Times the speed of the SVD, at least, and products by BLAS, at most.
TARGETS = {
    Size(20_000, 256, 64): (9, 2.4),
    Size(20_000, 512, 64): (8, 2.1),
    Size(336, 2_048, 2_048): (6, None),
    Size(1_000_000, 32, 16): (15, 2.5),
}
MOST_COMPILATION, MOST_SMALL = 2.0, 0.002  # seconds
RIDGE_PEERS = ("cca_zoo RidgeCCA", "cca_zoo MCCA")
RIDGE_TARGETS = {("cca_zoo RidgeCCA", 1_024): 2}  # how many times as long, at least


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Options of this benchmark."""

    threads: int = len(os.sched_getaffinity(0))  # cores for everybody


def measure(
    question: str, names: Sequence[str], size: Size, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Time contestants at one size; with --full in three processes each, in turn."""
    repeats, processes, limit = {"quick": (2, 1, 60), "default": (3, 1, 60), "full": (5, 3, 1_200)}[
        settings.scale
    ]
    task = {"question": question, "size": size, "folder": "", "repeats": repeats, "limit": limit}
    tasks = {name: (json.dumps(task | {"name": name}),) for name in names}
    found = _harness.try_in_turn(CONTESTANTS, tasks, processes=processes, limit=limit)
    for name, one in found.items():
        print(f"{say(size)}: {name}: {_harness.describe(one)}", flush=True)
    return found


def say(size: Size) -> str:
    return f"{size.n:,} x {2 * size.d:,}, k = {size.k:,}"


def bound(value: float, *, least: float | None = None, most: float | None = None) -> str:
    """Whether a figure keeps to its bound, if it has one."""
    if least is not None:
        return f"{'met' if value >= least else 'missed'}: at least {least:g}"
    if most is not None:
        return f"{'met' if value <= most else 'missed'}: at most {most:g}"
    return ""


def compare(found: dict[str, dict[str, Any]], size: Size) -> list[Row]:
    """Rows of one shape; of what failed there is the reason alone."""
    if failed := [f"{name}: {one['failed']}" for name, one in found.items() if "failed" in one]:
        return [Row(say(size), ours="none", note="; ".join(failed))]
    names = ("fit", "fit, check=False", "numpy.linalg.svd", "NumPy's product", "XLA's product")
    ours, plain, svd, blas, xla = (found[name] for name in names)
    seconds, (faster, products) = _harness.median(ours), TARGETS.get(size, (None, None))
    longest = MOST_SMALL if size == SMALL else None
    lines: list[tuple[str, float, str, dict[str, float | None]]] = [
        ("seconds of fit", seconds, "fit", {"most": longest}),
        (
            "times the speed of numpy.linalg.svd",
            _harness.ratio(svd, ours),
            "numpy.linalg.svd",
            {"least": faster},
        ),
        (
            "products by BLAS that fit takes",
            _harness.ratio(ours, blas),
            "NumPy's product",
            {"most": products},
        ),
        ("products by XLA that fit takes", _harness.ratio(ours, xla), "XLA's product", {}),
        (
            "share of the check for collapse in fit",
            1 - _harness.ratio(plain, ours),
            "fit, check=False",
            {},
        ),
        ("seconds of compilation", ours["first"] - seconds, "fit", {"most": MOST_COMPILATION}),
    ]
    return [
        Row(
            f"{say(size)}: {what}",
            ours=format_number(value),
            verdict=bound(value, **bounds),
            note=f"{name}: {_harness.describe(found[name])}",
        )
        for what, value, name, bounds in lines
    ]


def main(settings: Settings) -> None:
    _harness.take_cores(settings.threads)
    shapes = [SMALL, Size(300, 8, 4)] if settings.quick else [*TARGETS, SMALL]
    ridge_shapes = [Size(300, 8, 4)] if settings.quick else [Size(20_000, 256, 64)]
    if settings.full:
        ridge_shapes.append(Size(20_000, 1_024, 64))
    rows, values = [], []
    for size in shapes:
        found = measure("fit", tuple(QUESTIONS["fit"]), size, settings)
        rows += compare(found, size)
        values.append({**size._asdict(), **found})
    for size in ridge_shapes:
        names = [n for n in ("ridge_cca", *RIDGE_PEERS) if is_installed("ridge CCA", n)]
        found = measure("ridge CCA", names, size, settings)
        us, *peers = found
        for name in peers:
            least = RIDGE_TARGETS.get((name, size.d))
            fields = _harness.compare(found[us], found[name], us, name, least)
            rows.append(Row(f"{us}, {say(size)}: {name} over {us}", **fields))
        values.append({**size._asdict(), **found})
    finish(
        settings,
        "benchmark_fit",
        title="Benchmark: fit",
        summary="Seconds of `pa.fit` from host arrays in float64, against one singular value "
        "decomposition and one product of the stacked matrix, and of ridge CCA against cca_zoo: "
        "medians and quartiles of warm calls, each in a process of its own with the same cores.",
        rows=rows,
        values={"shapes": values},
        config={"threads": settings.threads} | _harness.versions("cca-zoo"),
        less="small shapes",
    )


if __name__ == "__main__":
    start(main, Settings, __doc__)
