"""A GPU's own product and SVDs beside ``fit`` on it, and the paper's encoders at full size.

Command:  python experiments/benchmarks/accelerator.py [--quick] [--out FILE]
Time:     4 minutes on one GPU; on a CPU, which it takes where there is no GPU, --quick 40 s
Expect:   not run on a GPU so far

``fit`` of pairs that lie on the device, in float32 and float64, against one product and
``jnp.linalg.svd`` of the stacked matrix there and, where PyTorch is installed,
``torch.linalg.svd``; products of float32 in full precision and in TF32, and what that costs.
The encoders see random clips: how fast they train does not depend on what is in them. The sweep of
Fig. 4 has a script of its own, ``sweeps.py``, which takes the GPU too.
"""

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _harness
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from _contestants import Size

SHAPES = (Size(20_000, 256, 64), Size(20_000, 512, 64), Size(1_000_000, 32, 16))
SMALL = (Size(300, 8, 4),)
CLIPS = {"frames": 16, "size": 224, "latent": 2048, "clips": 64, "batch": 16}
FEW_CLIPS = {"frames": 4, "size": 32, "latent": 16, "clips": 4, "batch": 2}
LENGTH = 180  # samples of a clip of the inertial sensor


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to run."""

    quick: bool = False  # one small shape, and few small clips
    out: Path | None = None  # file of the figures; named after the device if not given
    task: str = ""  # run one task and print what it found (used internally)


def draw(size: Size, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Two views of k latents, without noise: their stacked matrix has a null space."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(size.n, size.k))
    first, second = (z @ rng.normal(size=(size.k, size.d)) for _ in range(2))
    return first.astype(dtype), second.astype(dtype)


def run_jax(size: Size, dtype: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    import perfalign_jax as pa

    jax.config.update("jax_enable_x64", dtype == "float64")
    views = tuple(map(jax.device_put, draw(size, dtype)))
    stacked = jnp.concatenate([views[0], -views[1]], axis=1)

    def product(precision: str) -> Callable[[], Any]:
        compiled = jax.jit(lambda x: jnp.matmul(x.T, x, precision=precision))
        return lambda: compiled(stacked)

    svd = jax.jit(lambda x: jnp.linalg.svd(x, full_matrices=False))
    calls: dict[str, Callable[[], Any]] = {
        "fit": lambda: pa.fit(views, k=size.k),
        "product": product("highest"),
        "jnp.linalg.svd": lambda: svd(stacked),
    }
    if dtype == "float32":
        calls["product, TF32"] = product("tensorfloat32")
    found, results = {}, {}
    for name, call in calls.items():
        found[name], results[name] = _harness.measure(call, repeats=5)
    z1, z2 = pa.transform(results["fit"], views)
    norms = float(jnp.linalg.norm(stacked) / size.n**0.5)
    found["fit"]["cmae"] = float(pa.metrics.cmae(z1, z2)) / norms
    for name in calls:
        if name.startswith("product"):
            exact = np.asarray(stacked, np.float64)
            exact = exact.T @ exact
            apart = np.abs(np.asarray(results[name], np.float64) - exact).max()
            found[name]["error"] = float(apart / np.abs(exact).max())
            found[name]["flops"] = 2 * size.n * (2 * size.d) ** 2 / _harness.median(found[name])
    return found


def run_torch(size: Size, dtype: str) -> dict[str, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, second = draw(size, dtype)
    stacked = torch.from_numpy(np.hstack([first, -second])).to(device)

    def call() -> None:
        torch.linalg.svd(stacked, full_matrices=False)
        if device == "cuda":
            torch.cuda.synchronize()

    found, _ = _harness.measure(call, repeats=5)
    return {"torch.linalg.svd": found | {"device": device}}


def run_encoders(scale: dict[str, int]) -> dict[str, Any]:
    """Clips a second of training and of encoding, after what compiles."""
    import jax

    from perfalign_jax.har.nn import encoders, training

    rng = np.random.default_rng(0)
    shape = scale["clips"], scale["frames"], scale["size"], scale["size"]
    clips = rng.integers(0, 256, shape, dtype=np.uint8)
    series = rng.normal(size=(scale["clips"], LENGTH, 6)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trunk starts from random weights
        branches = (
            encoders.make_branch("depth", latent=scale["latent"], architecture="paper"),
            encoders.make_branch("inertial", latent=scale["latent"]),
        )
    ends: list[float] = []

    def watch(_: Any) -> list[float]:
        ends.append(time.perf_counter())
        return [0.0]

    settings = training.Settings(epochs=4, batch_size=scale["batch"])
    keys = jax.random.key(0)[None]
    trained = training.train(
        branches, (clips, series), keys=keys, settings=settings, watch=watch, watch_every=1
    )
    encoding, _ = _harness.measure(
        lambda: training.encode(trained, clips, view=0, batch_size=scale["batch"]), repeats=3
    )
    memory = jax.devices()[0].memory_stats() or {}
    return {
        **scale,
        "training, clips a second": scale["clips"] / float(np.median(np.diff(ends))),
        "encoding, clips a second": scale["clips"] / _harness.median(encoding),
        "peak MB on the device": memory.get("peak_bytes_in_use", 0) / 2**20,
    }


def run_device() -> dict[str, Any]:
    from _kit.report import provenance

    return provenance()


def run_task(task: dict[str, Any]) -> dict[str, Any]:
    what = task.pop("what")
    if what == "encoders":
        return run_encoders(task)
    if what == "device":
        return run_device()
    return {"jax": run_jax, "torch": run_torch}[what](Size(*task["size"]), task["dtype"])


def main(settings: Settings) -> None:
    if settings.task:
        print(json.dumps(run_task(json.loads(settings.task))))
        return

    def run(**task: Any) -> dict[str, Any]:
        return _harness.run_apart(__file__, "--task", json.dumps(task))

    console, shapes = Console(), []
    about = run(what="device")
    for size in SMALL if settings.quick else SHAPES:
        for dtype in ("float32", "float64"):
            found = run(what="jax", size=size, dtype=dtype)
            if find_spec("torch") is not None:
                found |= run(what="torch", size=size, dtype=dtype)
            shapes.append({**size._asdict(), "dtype": dtype, **found})
            title = f"{size.n:,} x {2 * size.d:,}, k = {size.k}, {dtype}, on {about['device']}"
            table = Table("", "seconds", "fit takes", "more", title=title)
            for name, one in found.items():
                more = f"first call {one['first']:.1f} s"
                if "flops" in one:
                    more = f"{one['flops'] / 1e12:.2f} TFLOP/s, error {one['error']:.0e}"
                times = f"{_harness.ratio(found['fit'], one):.3g} of it" if name != "fit" else ""
                table.add_row(name, _harness.describe(one), times, more)
            console.print(table)
    encoders = run(what="encoders", **(FEW_CLIPS if settings.quick else CLIPS))
    console.print_json(json.dumps(encoders))
    content = {"about": about, "shapes": shapes, "encoders": encoders}
    print(f"numbers: {_harness.keep('accelerator', content, about['device'], settings.out)}")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
