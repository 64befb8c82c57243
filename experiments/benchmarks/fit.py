"""Speed of ``fit`` beside what bounds it: a singular value decomposition, and one product of X.

Command:  python experiments/benchmarks/fit.py [--full] [--threads 2]
Time:     4 minutes on 2 quiet cores
Needs:    pip install '.[bench]'
Expect:   at least 9, 8, 6 and 15 times the speed of numpy.linalg.svd at the four shapes, in at most
          2.4, 2.1, - and 2.5 products by BLAS; less than 2 s to compile any; 2,000 x 4 in 2 ms

Views of k latents without noise, in float64, from host arrays; SVD and products find them stacked.
The SVD is whole where there are fewer rows than features. What the first call takes longer than the
others is counted as compilation.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import _harness
from _contestants import QUESTIONS, Size, is_installed

sys.path.insert(0, str(Path(__file__).parents[1]))
from _kit.options import Options, start
from _kit.report import Row
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
RIDGE = {  # at 20,000 pairs, k = 64: how many times as long a peer takes, at least
    ("cca_zoo RidgeCCA", 256): None,
    ("cca_zoo RidgeCCA", 1_024): 2,
    ("cca_zoo MCCA", 256): None,
    ("cca_zoo MCCA", 1_024): None,
}


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Options of this benchmark."""

    threads: int = len(os.sched_getaffinity(0))  # cores for everybody


def measure(question: str, name: str, size: Size, settings: Settings) -> dict[str, Any]:
    repeats, limit = {"quick": (2, 60), "default": (5, 120), "full": (15, 1_200)}[settings.scale]
    task = {"question": question, "name": name, "size": size, "folder": "", "repeats": repeats}
    found = _harness.try_apart(CONTESTANTS, json.dumps(task | {"limit": limit}), limit=limit)
    print(f"{say(size)}: {name}: {_harness.describe(found)}", flush=True)
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
    ours, plain, svd, blas, xla = (
        found[name]
        for name in (
            "fit",
            "fit, check=False",
            "numpy.linalg.svd",
            "NumPy's product",
            "XLA's product",
        )
    )
    faster, products = TARGETS.get(size, (None, None))
    seconds, compilation = _harness.median(ours), ours["first"] - _harness.median(ours)

    def row(what: str, value: float, note: str = "", **bounds: float | None) -> Row:
        return Row(
            f"{say(size)}: {what}", ours=f"{value:.3g}", verdict=bound(value, **bounds), note=note
        )

    return [
        row(
            "seconds of fit",
            seconds,
            _harness.describe(ours),
            most=MOST_SMALL if size == SMALL else None,
        ),
        row(
            "times the speed of numpy.linalg.svd",
            _harness.ratio(svd, ours),
            f"SVD: {_harness.describe(svd)}",
            least=faster,
        ),
        row(
            "products by BLAS that fit takes",
            1 / _harness.ratio(blas, ours),
            f"product: {_harness.describe(blas)}",
            most=products,
        ),
        row(
            "products by XLA that fit takes",
            1 / _harness.ratio(xla, ours),
            f"product: {_harness.describe(xla)}",
        ),
        row(
            "share of the check for collapse in fit",
            1 - _harness.ratio(plain, ours),
            f"without: {_harness.describe(plain)}",
        ),
        row("seconds of compilation", compilation, most=MOST_COMPILATION),
    ]


def compare_ridge(ours: dict[str, Any], peer: dict[str, Any], name: str, size: Size) -> Row:
    verdict, times = _harness.judge(ours, peer, name), "none"
    if "failed" not in ours and "failed" not in peer:
        value = _harness.ratio(peer, ours)
        times = f"{value:.3g}"
        if target := RIDGE.get((name, size.d)):
            verdict += f"; {bound(value, least=target)}"
    note = f"ridge_cca: {_harness.describe(ours)}; {name}: {_harness.describe(peer)}"
    quantity = f"ridge_cca, {say(size)}: times the speed of {name}"
    return Row(quantity, ours=times, verdict=verdict, note=note)


def main(settings: Settings) -> None:
    _harness.take_cores(settings.threads)
    shapes = [SMALL, Size(300, 8, 4)] if settings.quick else [*TARGETS, SMALL]
    ridge_shapes = (
        [Size(300, 8, 4)] if settings.quick else [Size(20_000, d, 64) for d in (256, 1_024)]
    )
    rows, values = [], []
    for size in shapes:
        found = {name: measure("fit", name, size, settings) for name in QUESTIONS["fit"]}
        rows += compare(found, size)
        values.append({**size._asdict(), **found})
    for size in ridge_shapes:
        names = ["ridge_cca", *dict.fromkeys(name for name, _ in RIDGE)]
        found = {
            name: measure("ridge CCA", name, size, settings)
            for name in names
            if is_installed("ridge CCA", name)
        }
        ours, *peers = found
        rows += [compare_ridge(found[ours], found[name], name, size) for name in peers]
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
