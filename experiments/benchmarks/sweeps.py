"""Speed of the sweep behind Fig. 4: a plain NumPy loop, and this package, on the same grid.

Command:  python experiments/benchmarks/sweeps.py [--seeds 64] [--repeats 3] [--out FILE]
Time:     5 minutes on 2 cores
Expect:   on 2 cores at least 3 times as fast as the loop once compiled, and no slower with
          compilation.

The loop does in each cell what the paper's text says: draw latents, maps and noise, stack, take the
SVD (thin, or whole where there are fewer samples than features), project training and held-out
pairs, and measure CMAE, MLRE, and MLRE after the best affine map. It runs with one BLAS thread,
which is its fastest. Both are in float64 and run alone, one after the other.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1]))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    seeds: int = 64  # in every cell
    repeats: int = 3  # of either side, of which the median counts
    batch_size: int = 8  # seeds at a time of this package
    out: Path | None = None  # file of the figures; named after the device if not given
    side: str = ""  # run one side only and print its times as JSON (used internally)


def numpy_cell(
    rng: np.random.Generator, n: int, d: int, k: int, noise: float, held_out: int
) -> list[float]:
    dims = d - d // 2, d // 2
    maps = [rng.uniform(-5, 5, (count, k)) for count in dims]

    def draw(count: int) -> tuple[np.ndarray, list[np.ndarray]]:
        z = rng.normal(size=(count, k)) + np.arange(k) % 2
        z += 4 * rng.integers(0, 2, (count, 1))
        views = [z @ s.T for s in maps]
        if noise:
            views = [x + noise * rng.normal(size=x.shape) for x in views]
        return z, views

    z, views = draw(n)
    z_new, new = draw(held_out)
    rows = np.linalg.svd(np.hstack([views[0], -views[1]]), full_matrices=n < d)[2][-k:]
    projections = rows[:, : dims[0]], rows[:, dims[0] :]
    found = [x @ a.T for x, a in zip(views, projections, strict=True)]
    found_new = [x @ a.T for x, a in zip(new, projections, strict=True)]

    def affine(latents: np.ndarray) -> np.ndarray:
        return np.hstack([latents, np.ones((len(latents), 1))])

    gauge = np.linalg.lstsq(affine(np.vstack(found)), np.vstack([z, z]), rcond=None)[0]
    energy = [
        np.var(e, axis=0).sum() / np.var(x, axis=0).sum() for e, x in zip(found, views, strict=True)
    ]
    errors = [float(np.mean(energy))]
    for true, pair in ((z, found), (z_new, found_new)):
        errors.append(np.linalg.norm(pair[0] - pair[1], axis=1).mean())
        both = pair, [affine(e) @ gauge for e in pair]
        errors += [np.mean([np.linalg.norm(true - e, axis=1).mean() for e in ez]) for ez in both]
    return errors


def run_numpy(settings: Settings) -> dict[str, object]:
    from fig4_robustness import BASE, HELD_OUT, LINES, NOISES

    times = []
    medians: dict[str, float] = {}
    with threadpool_limits(1):
        numpy_cell(np.random.default_rng(0), 100, 40, 20, 1.0, 50)  # warm-up
        for repeat in range(settings.repeats):
            rng = np.random.default_rng(repeat)
            start = time.perf_counter()
            cells = {
                (axis, value, noise): [
                    numpy_cell(rng, **{**BASE, axis: value}, noise=noise, held_out=HELD_OUT)
                    for _ in range(settings.seeds)
                ]
                for axis, values in LINES.items()
                for value in values
                for noise in NOISES
            }
            times.append(time.perf_counter() - start)
            base = np.median(cells["n", BASE["n"], 1.0], axis=0)
            medians = {"train_cmae": float(base[1]), "held_out_cmae": float(base[4])}
    return {"warm": times, "memory": _harness.memory(), "check": medians, "cells": len(cells)}


def run_package(settings: Settings) -> dict[str, object]:
    import jax

    jax.config.update("jax_enable_x64", True)
    from _kit import report
    from fig4_robustness import BASE, LINES, line_grid

    from perfalign_jax import sweeps

    before, times = _harness.memory(), []
    how: dict[str, Any] = {"seeds": settings.seeds, "batch_size": settings.batch_size}
    for repeat in range(settings.repeats + 1):
        start = time.perf_counter()
        key = jax.random.key(repeat)
        results = {
            axis: sweeps.sweep(key, line_grid(axis), progress=False, **how) for axis in LINES
        }
        times.append(time.perf_counter() - start)
    at = {"n": BASE["n"], "noise": 1.0}
    checked = ("train_cmae", "held_out_cmae")
    return {
        "cold": times[0],
        "warm": times[1:],
        "memory": _harness.memory(),
        "memory before": before,
        "check": {name: float(np.median(results["n"].get(name, **at))) for name in checked},
        "device": report.provenance()["device"],
        "jax": jax.__version__,
    }


def main(settings: Settings) -> None:
    if settings.side:
        run = run_numpy if settings.side == "numpy" else run_package
        print(json.dumps(run(settings)))
        return
    found = {}
    options = [f"--{name}={getattr(settings, name)}" for name in ("seeds", "repeats", "batch_size")]
    for side in ("numpy", "package"):  # each in a process of its own: memory, and no shared state
        found[side] = _harness.run_apart(__file__, f"--side={side}", *options)
    loop, ours = found["numpy"], found["package"]
    loop_time, warm = statistics.median(loop["warm"]), statistics.median(ours["warm"])
    title = f"Fig. 4, {settings.seeds} seeds, {loop['cells']} cells, on {ours['device']}"
    table = Table("", "NumPy loop", "sweeps, with compilation", "sweeps, compiled", title=title)
    table.add_row("wall time (s)", f"{loop_time:.1f}", f"{ours['cold']:.1f}", f"{warm:.1f}")
    table.add_row("ratio", "1", f"{loop_time / ours['cold']:.2f}", f"{loop_time / warm:.2f}")
    memory = f"{ours['memory']:.0f} ({ours['memory before']:.0f} after imports)"
    table.add_row("peak memory (MB)", f"{loop['memory']:.0f}", memory, "")
    check = (f"{run['check']['held_out_cmae']:.3f}" for run in (loop, ours))
    table.add_row("held-out CMAE at the base", *check, "")
    Console().print(table)
    ratios = {"ratio warm": loop_time / warm, "ratio cold": loop_time / ours["cold"]}
    content = {"seeds": settings.seeds, **ratios, **found}
    print(f"numbers: {_harness.keep('sweeps', content, ours['device'], settings.out)}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
