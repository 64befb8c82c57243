"""How the benchmarks measure: every task in processes of its own, with the same cores for all.

Where a task has several processes they take turns with those of the others. From one process to
the next the same work takes up to a fifth longer or shorter (where its memory lies, what else the
machine does), which no number of calls in one process shows.

Seconds are of calls that have ended (JAX's results are waited for), after one call that warms up
and compiles and is kept apart. Memory is what Linux counts as resident (``VmHWM`` of the process,
which unlike ``ru_maxrss`` inherits nothing from its parent), its peak started anew once the data is
there; it is given whole, and above what the process held after its imports.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

SHORT = 0.01  # seconds below which nobody waits: calls of both sides then count as even
APART = 1.1  # how far one process may be from the middle of many
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def take_cores(threads: int) -> None:
    """Keep this process and those it starts to so many cores."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise SystemExit(f"--threads must be 1 to {len(cores)} on this machine, got {threads}.")
    os.sched_setaffinity(0, cores[:threads])


def run_apart(script: Path | str, *arguments: str) -> dict[str, Any]:
    """Run a script in a process of its own; the object in JSON on the last line that it prints.

    Raises:
        RuntimeError: if it fails, with what it said.
    """
    done = _start(script, arguments)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def try_apart(script: Path | str, *arguments: str, limit: float) -> dict[str, Any]:
    """As ``run_apart``, but of a process that fails, or has a call beyond the limit, the reason."""
    done = _start(script, arguments)
    if done.returncode == -signal.SIGALRM:
        return {"failed": f"more than {limit:g} s", "over": limit}
    if done.returncode == -signal.SIGKILL or "MemoryError" in done.stderr[-300:]:
        return {"failed": "out of memory"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def try_in_turn(
    script: Path | str, tasks: Mapping[str, Sequence[str]], *, processes: int, limit: float
) -> dict[str, dict[str, Any]]:
    """``try_apart`` of every task, again and again in turn; what failed is not tried again."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in tasks}
    for _ in range(processes):
        for name, arguments in tasks.items():
            if not any("failed" in one for one in found[name]):
                found[name].append(try_apart(script, *arguments, limit=limit))
    return {name: pool(each) for name, each in found.items()}


def pool(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What processes of one task found, in one; of any that failed, that."""
    if failed := [one for one in each if "failed" in one]:
        return dict(failed[0])
    largest = {name: max(one[name] for one in each) for name in each[0] if name != "seconds"}
    return largest | {
        "first": float(np.median([one["first"] for one in each])),
        "seconds": [seconds for one in each for seconds in one["seconds"]],
        "processes": [median(one) for one in each],
        "warm": all(one["warm"] for one in each),
    }


def _start(script: Path | str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Let it have as many threads as this process has cores, and compile everything anew."""
    threads = str(len(os.sched_getaffinity(0)))
    # XLA's pool must be larger than the cores are (thread_pool.py); the cores are the same for all.
    env = os.environ | dict.fromkeys(_POOLS, threads) | {"NPROC": "16"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def spare_the_machine() -> None:
    """End this process, and not another, where memory runs out."""
    free = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    resource.setrlimit(resource.RLIMIT_DATA, (int(free) * 1024 * 9 // 10,) * 2)
    Path("/proc/self/oom_score_adj").write_text("1000")


def memory(word: str = "VmHWM") -> float:
    """Resident memory of this process in MB: its peak, or with "VmRSS" what it is now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{word}:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Let the peak of resident memory start anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(
    call: Callable[[], Any], *, repeats: int, limit: float = 0.0
) -> tuple[dict[str, Any], Any]:
    """Seconds of the first call and of ``repeats`` more (a short one: more often), and its result.

    A call beyond ``limit`` seconds ends the process (SIGALRM; a first one that compiles may take
    three times as long), and once all together took as long no other is begun: a first call may
    then be the only one. Zero is no limit.
    """
    times: list[float] = []
    while len(times) <= repeats or (0 < sum(times[1:]) < 0.2 and len(times) < 1000):
        if limit and sum(times[bool("jax" in sys.modules) :]) >= limit:
            break
        compiles = not times and "jax" in sys.modules
        signal.setitimer(signal.ITIMER_REAL, 3 * limit if compiles else limit)
        start = time.perf_counter()
        result = call()
        if jax := sys.modules.get("jax"):
            jax.block_until_ready(result)
        times.append(time.perf_counter() - start)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"first": times[0], "seconds": times[1:] or times, "warm": len(times) > 1}, result


def recall(z1: np.ndarray, z2: np.ndarray) -> float:
    """R@1 in percent, both ways, of pairs compared by the cosine of their latents."""
    a, b = (z / np.maximum(np.linalg.norm(z, axis=1), 1e-300)[:, None] for z in (z1, z2))
    alike, own = a @ b.T, np.arange(len(a))
    return float(50 * sum(np.mean(alike.argmax(axis=axis) == own) for axis in (0, 1)))


def median(found: Mapping[str, Any]) -> float:
    return float(np.median(found["seconds"]))


def ratio(peer: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """How many times as long the peer takes, by medians; of one that was stopped, at least."""
    return (peer["over"] if "over" in peer else median(peer)) / median(ours)


def span(found: Mapping[str, Any]) -> tuple[float, float, float]:
    """Least, middle and most of the seconds: of its processes' medians, or about that of one."""
    middle, each = median(found), found.get("processes", ())
    if len(each) > 1:
        return min(each), middle, max(each)
    low, high = np.percentile(found["seconds"], (25, 75))
    return float(low) / APART, middle, float(high) * APART


def judge(ours: Mapping[str, Any], peer: Mapping[str, Any], name: str) -> str:
    """Who is faster: neither where spans overlap; and whether that costs retrieval."""
    if "failed" in ours or "failed" in peer:
        ended = [
            side for side, one in (("perfalign_jax", ours), (name, peer)) if "failed" not in one
        ]
        return f"{ended[0]} alone" if ended else "neither"
    (low, middle, high), (peer_low, peer_middle, peer_high) = map(span, (ours, peer))
    if max(middle, peer_middle) < SHORT:
        return "both under 10 ms"
    if low <= peer_high and peer_low <= high:
        return "even"
    won, better, worse = (
        ("perfalign_jax", ours, peer) if middle < peer_middle else (name, peer, ours)
    )
    lost = worse.get("recall", 0) - better.get("recall", 0)
    return f"{won}, with {lost:.1f} points less R@1" if lost > 1 else won


def compare(
    ours: Mapping[str, Any], peer: Mapping[str, Any], us: str, name: str, least: float | None = None
) -> dict[str, str]:
    """A row's fields: how many times as long the peer takes, who is faster, and both in numbers."""
    verdict, times = judge(ours, peer, name), "none"
    if "failed" not in ours and ("failed" not in peer or "over" in peer):
        value = ratio(peer, ours)
        shown = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        times = f"{'over ' if 'over' in peer else ''}{shown} times"
        if least is not None:
            verdict += f"; {'met' if value >= least else 'missed'}: at least {least:g} times"
    note = f"{us}: {describe(ours)}; {name}: {describe(peer)}"
    return {"ours": times, "verdict": verdict, "note": note}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Power of the size by which time grows, by least squares over three sizes or more."""
    if len(sizes) < 3:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def describe(found: Mapping[str, Any]) -> str:
    """Median and quartiles of the seconds, memory and accuracy, as far as they were measured."""
    if "failed" in found:
        return str(found["failed"])
    low, middle, high = (f"{v:.3g}" for v in np.percentile(found["seconds"], (25, 50, 75)))
    parts = [f"{middle} s" + (f" [{low}, {high}]" if found["warm"] else " (one call)")]
    if len(found.get("processes", ())) > 1:
        parts[0] += f" in {len(found['processes'])} processes"
    if "memory" in found:
        parts.append(f"{found['memory']:,.0f} MB")
    if "recall" in found:
        parts.append(f"R@1 {found['recall']:.1f} %")
    if "cmae" in found:
        parts.append(f"CMAE {found['cmae']:.0e}")
    return ", ".join(parts)


def versions(*packages: str) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def keep(name: str, content: Mapping[str, Any], device: str, out: Path | None) -> Path:
    """Write figures as JSON: to ``out``, or beside the scripts under the name of the device."""
    slug = "".join(c if c.isalnum() else "_" for c in device.lower()).strip("_")
    path = out or Path(__file__).parent / "results" / f"{name}_{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
