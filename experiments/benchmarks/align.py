"""Speed and memory of ``align`` and ``search``, each task in a process of its own.

Command:  python experiments/benchmarks/align.py [--repeats 3] [--only NAME ...] [--out FILE]
Time:     4 minutes on 2 cores
Expect:   ridge and number of axes chosen below 3 s at 2 x 256 features and 20,000 pairs, and below
          cross-validated ridge CCA that fits anew for every fold and ridge; 200 settings below 10
          fits with one setting; 2,000 landmarks with the choice below 5 minutes

Views are rows of noise with 64 shared directions of falling strength, in float32. Times are medians
of the repeats, beside the first call with what it compiles.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

RIDGES, FOLDS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001), 5


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    repeats: int = 3  # of which the median counts
    only: tuple[str, ...] = ()  # tasks; all if none is named
    out: Path | None = None  # file of the figures; named after the device if not given
    task: str = ""  # run one task and print its times as JSON (used internally)


def draw(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 64)) * np.linspace(2, 0.2, 64)
    views = (z @ rng.normal(size=(64, d)) / 8 + rng.normal(size=(n, d)) for _ in range(2))
    first, second = (x.astype(np.float32) for x in views)
    return first, second


def scipy_grid(views: tuple[np.ndarray, np.ndarray], k: int = 64) -> float:
    """Ridge CCA refitted for every fold and ridge, as a grid search over estimators does."""
    from scipy import linalg

    n, best = len(views[0]), []
    fold = np.arange(n) % FOLDS
    for ridge in RIDGES:
        total = 0.0
        for f in range(FOLDS):
            train, test = ([x[rows] for x in views] for rows in (fold != f, fold == f))
            means = [x.mean(axis=0) for x in train]
            a, b = (x - m for x, m in zip(train, means, strict=True))
            roots = []
            for x in (a, b):
                cov = x.T @ x / len(x)
                cov[np.diag_indices_from(cov)] += ridge * np.trace(cov) / len(cov)
                roots.append(linalg.cholesky(cov, lower=True))
            cross = linalg.solve_triangular(roots[0], a.T @ b / len(a), lower=True)
            cross = linalg.solve_triangular(roots[1], cross.T, lower=True).T
            u, _, vt = linalg.svd(cross, full_matrices=False)
            maps = [
                linalg.solve_triangular(r.T, w[:, :k])
                for r, w in zip(roots, (u, vt.T), strict=True)
            ]
            z = [(x - m) @ w for x, m, w in zip(test, means, maps, strict=True)]
            r = [np.corrcoef(z[0][:, j], z[1][:, j])[0, 1] for j in range(k)]
            total += float(np.sum(r))
        best.append(total)
    return RIDGES[int(np.argmax(best))]


def align_256() -> Callable[[], Any]:
    import perfalign_jax as pa

    views = draw(20_000, 256)
    return lambda: pa.align(views, lift=None)


def grid_256() -> Callable[[], Any]:
    views = draw(20_000, 256)
    return lambda: scipy_grid(views)


def one_setting_512() -> Callable[[], Any]:
    import perfalign_jax as pa

    views = draw(20_000, 512)
    return lambda: pa.align(views, lift=None, ridge=0.1, k=512)


def settings_200_512() -> Callable[[], Any]:
    from perfalign_jax import _selection

    views = draw(20_000, 512)
    ridges, weights = tuple(np.logspace(0, -3, 20)), np.ones(20_000, np.float32)

    def run() -> Any:
        plan = _selection.plan_rows(20_000, FOLDS, None, 2)
        lifts = _selection.fit_lifts(views, None, [weights] * 2)
        return _selection.try_lifts(
            views, "", lifts, weights, ridges, ((0,), (1,)), plan, 512, auto=True
        ).hits

    return run


def landmarks_given() -> Callable[[], Any]:
    import perfalign_jax as pa
    from perfalign_jax import kernels

    views = draw(20_000, 64)

    def run() -> Any:
        lifts = tuple(kernels.fit_nystroem(x, landmarks=2000) for x in views)
        return pa.align(views, lift=lifts, ridge=0.1)

    return run


def landmarks_chosen() -> Callable[[], Any]:
    import perfalign_jax as pa

    views = draw(20_000, 64)
    return lambda: pa.align(views)


def search_100k() -> Callable[[], Any]:
    import perfalign_jax as pa

    views = draw(100_000, 64)
    alignment = pa.align(tuple(x[:5000] for x in views), lift=None)
    return lambda: pa.search(alignment, *views, top=10).log_odds


TASKS: dict[str, tuple[Callable[[], Callable[[], Any]], str]] = {
    "align 256": (align_256, "align, 2 x 256 features, 20,000 pairs, linear, all chosen"),
    "grid 256": (grid_256, "the same by ridge CCA refitted for 5 folds x 7 ridges (SciPy)"),
    "one 512": (one_setting_512, "align, 2 x 512 features, 20,000 pairs, everything given"),
    "settings 512": (
        settings_200_512,
        "the same, choosing alone, among 20 ridges x 10 numbers of axes",
    ),
    "landmarks given": (
        landmarks_given,
        "align, 20,000 pairs, 2,000 landmarks, lift and ridge given",
    ),
    "landmarks": (landmarks_chosen, "align, 20,000 pairs, 2,000 landmarks, all chosen"),
    "search": (search_100k, "search, 100,000 x 100,000, 10 best"),
}
SLOW = ("landmarks given", "landmarks", "search")  # once: minutes each, compilation is a share


def run_task(name: str, repeats: int) -> dict[str, Any]:
    from _kit.report import provenance

    found, _ = _harness.measure(TASKS[name][0](), repeats=0 if name in SLOW else repeats)
    return {
        "first": found["first"],
        "warm": found["seconds"] if found["warm"] else [],
        "peak MB": _harness.memory(),
        "device": provenance()["device"],
    }


def main(settings: Settings) -> None:
    if settings.task:
        print(json.dumps(run_task(settings.task, settings.repeats)))
        return
    unknown = set(settings.only) - set(TASKS)
    if unknown:
        raise SystemExit(f"only must name some of {', '.join(TASKS)}, got {', '.join(unknown)}.")
    found = {}
    table = Table("task", "first call (s)", "then (s)", "peak (MB)")
    for name in settings.only or TASKS:
        options = ("--task", name, "--repeats", str(settings.repeats))
        one = found[name] = _harness.run_apart(__file__, *options)
        warm = f"{statistics.median(one['warm']):.2f}" if one["warm"] else ""
        table.add_row(TASKS[name][1], f"{one['first']:.2f}", warm, f"{one['peak MB']:,.0f}")
    Console().print(table)
    device = next(iter(found.values()))["device"]
    content = {"tasks": {n: TASKS[n][1] for n in found}, **found}
    print(f"numbers: {_harness.keep('align', content, device, settings.out)}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
