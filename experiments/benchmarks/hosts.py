"""How long the moments of many processes take to merge, beside how long each reads its rows.

Command:  python experiments/benchmarks/hosts.py [--rows 200000] [--out FILE]
Time:     3 minutes on 2 cores
Expect:   at 2 x 256 features a merge of 1.6 s for two processes and 5.8 s for four that share two
          cores (each factorises the moments of all), whatever the number of rows; the same bits
          on every process

Processes of one machine under ``jax.distributed``, each with files of its own rows in float32. They
share its cores, so reading does not get faster by more of them; what the table is about is the
merge, which between machines takes as long as their network needs for the moments.
"""

import dataclasses
import hashlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

COUNTS, FEATURES = (1, 2, 4), (32, 256)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    rows: int = 200_000  # pairs in the files of each process
    out: Path | None = None  # file of the figures; named after the device if not given
    worker: tuple[str, ...] = ()  # folder, port, count and number of a process (used internally)


def work(folder: str, port: str, count: str, number: str) -> dict[str, Any]:
    import jax

    jax.config.update("jax_enable_x64", True)
    if int(count) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(number))
    from jax.experimental import multihost_utils

    import perfalign_jax as pa

    times = []
    for _ in range(3):  # the first compiles, and connects the processes
        start = time.perf_counter()
        state = pa.streaming.from_files([f"{folder}/{number}-{m}.npy" for m in range(2)])
        read = time.perf_counter()
        if int(count) > 1:  # waiting for who reads last is no merging
            multihost_utils.sync_global_devices("read")
        together = time.perf_counter()
        whole = jax.block_until_ready(pa.sharded.merge_hosts(state))
        times.append((read - start, time.perf_counter() - together))
    held = [np.asarray(leaf) for leaf in jax.tree.leaves(whole)]
    return {
        "reading": float(np.median([t[0] for t in times[1:]])),
        "merging": float(np.median([t[1] for t in times[1:]])),
        "first merge": times[0][1],
        "megabytes": sum(leaf.nbytes for leaf in held) / 1e6,
        "samples": int(whole.samples),
        "bits": hashlib.sha256(b"".join(leaf.tobytes() for leaf in held)).hexdigest(),
    }


def run_all(folder: str, count: int) -> dict[str, Any]:
    """Slowest process of so many, and whether they agree."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", folder, port, str(count), str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    found = [json.loads(p.communicate()[0].splitlines()[-1]) for p in started]
    assert len({one["bits"] for one in found}) == 1
    return {
        name: max(one[name] for one in found)
        for name in ("reading", "merging", "first merge", "megabytes", "samples")
    }


def main(settings: Settings) -> None:
    if settings.worker:
        print(json.dumps(work(*settings.worker)))
        return
    rng = np.random.default_rng(0)
    cells = []
    table = Table("features", "processes", "pairs", "reading (s)", "merging (s)", "moments (MB)")
    for d in FEATURES:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(max(COUNTS)):
                for m in range(2):
                    x = rng.standard_normal((settings.rows, d), dtype=np.float32)
                    np.save(f"{folder}/{number}-{m}.npy", x)
            for count in COUNTS:
                one = run_all(folder, count)
                cells.append({"features": [d, d], "processes": count} | one)
                table.add_row(
                    f"2 x {d}",
                    str(count),
                    f"{one['samples']:,}",
                    f"{one['reading']:.2f}",
                    f"{one['merging']:.3f}",
                    f"{one['megabytes']:.2f}",
                )
    Console().print(table)
    from _kit.report import provenance

    device = provenance()["device"]
    content = {"device": device, "rows": settings.rows, "cells": cells}
    print(_harness.keep("hosts", content, device, settings.out))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
