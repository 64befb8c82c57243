"""Speed and memory of statistics of files, beside the same products of rows in memory.

Command:  python experiments/benchmarks/streaming.py [--rows 4000000] [--folder FOLDER] [--out FILE]
Time:     3 minutes on 2 cores, and 8 GB of disk in the folder, removed at the end
Expect:   60 % or more of the rate of NumPy's product, for a factor and for a Gram matrix

Two views of 256 features in float32. Each task is a process of its own; the product is that of a
part of the rows, in memory and without a mean to remove, and its time is scaled to all rows.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

D, PART = 256, 250_000
TASKS = {
    "product float32": "NumPy's product of rows in memory, float32",
    "product float64": "NumPy's product of rows in memory, float64",
    "gram": 'from_files, kind="gram": float32 products, float64 sums',
    "factor": 'from_files, kind="factor": float64 products and sums',
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    rows: int = 4_000_000  # pairs in the files
    folder: Path | None = None  # where they are written; the system's temporary folder if not given
    out: Path | None = None  # file of the figures; named after the device if not given
    task: str = ""  # run one task on the files in the folder (used internally)


def write_files(folder: Path, rows: int) -> list[Path]:
    paths = [folder / f"x{m + 1}.npy" for m in range(2)]
    views = [
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, D))
        for path in paths
    ]
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(32, D)).astype(np.float32) for _ in views]
    for start in track(range(0, rows, PART), description="writing", transient=True):
        z = rng.standard_normal((min(PART, rows - start), 32), dtype=np.float32)
        for view, m in zip(views, maps, strict=True):
            noise = rng.standard_normal((len(z), D), dtype=np.float32)
            view[start : start + len(z)] = z @ m + noise + 1
    for view in views:
        view.flush()
    return paths


def run_task(name: str, folder: Path, rows: int) -> dict[str, Any]:
    paths = [folder / f"x{m + 1}.npy" for m in range(2)]
    if name.startswith("product"):
        parts = [np.load(path, mmap_mode="r")[:PART] for path in paths]
        x = np.concatenate(parts, axis=1).astype(name.split()[1])
        found, _ = _harness.measure(lambda: x.T @ x, repeats=3)
        seconds = _harness.median(found) * rows / len(x)
    else:
        import jax

        import perfalign_jax as pa

        start = time.perf_counter()
        kind: Any = name
        jax.block_until_ready(pa.streaming.from_files(paths, kind=kind).means)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows per second": rows / seconds, "peak MB": _harness.memory()}


def plan(rate: float) -> dict[str, Any]:
    """How long 10^10 pairs would take at so many rows a second and machine."""
    pairs, row = 1e10, 2 * D * 4
    return {"TB": pairs * row / 1e12, "GB per second and machine": rate * row / 1e9} | {
        f"hours and minutes with {machines} machines": [
            pairs / machines / rate / 3600,
            pairs / machines / rate / 60,
        ]
        for machines in (1, 16, 256)
    }


def main(settings: Settings) -> None:
    if settings.task:
        assert settings.folder is not None
        print(json.dumps(run_task(settings.task, settings.folder, settings.rows)))
        return
    folder = Path(tempfile.mkdtemp(dir=settings.folder))
    found: dict[str, Any] = {}
    table = Table("task", "seconds", "rows a second", "of the product's rate", "peak (MB)")
    try:
        write_files(folder, settings.rows)
        for name, text in TASKS.items():
            options = ("--task", name, "--folder", str(folder), "--rows", str(settings.rows))
            one = found[name] = _harness.run_apart(__file__, *options)
            peer = {"gram": "product float32", "factor": "product float64"}.get(name)
            if peer:
                one["share of rate"] = one["rows per second"] / found[peer]["rows per second"]
            share = f"{one['share of rate']:.0%}" if peer else ""
            speed = f"{one['rows per second']:,.0f}"
            table.add_row(text, f"{one['seconds']:.1f}", speed, share, f"{one['peak MB']:,.0f}")
    finally:
        shutil.rmtree(folder)
    Console().print(table)
    from _kit.report import provenance  # with JAX, which no process that is measured shares

    device = provenance()["device"]
    content = {"device": device, "rows": settings.rows, "features": [D, D], "tasks": found}
    content["plan for 10^10 pairs"] = plan(found["gram"]["rows per second"])
    print(_harness.keep("streaming", content, device, settings.out))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
