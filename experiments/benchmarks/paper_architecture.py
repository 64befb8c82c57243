"""The paper's own encoders, end to end on real depth: ResNet-18 and 3D CNN, 2048 dimensions.

Command:  UTD_MHAD_ROOT=<folder> python experiments/benchmarks/paper_architecture.py
          [--epochs 3] [--frames 8] [--size 64] [--weights resnet18.safetensors] [--frozen]
Time:     on 2 CPU cores about a minute an epoch of 366 clips of 8 frames of 64 x 64
Writes:   experiments/benchmarks/results/paper_architecture_<source>_<frames>x<size>_<epochs>_epochs
          [_weights][_frozen]_<device>.json

Without a file of ImageNet weights the trunk starts from random numbers and is trained with
everything else, and the result says so: with a few epochs that shows that it runs and how fast,
not how good it can become.
"""

import dataclasses
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console

from perfalign_jax.har.data import dataset, splits
from perfalign_jax.har.nn import encoders, training
from perfalign_jax.har.protocol import methods, transfer
from perfalign_jax.serialization import write_whole

sys.path.insert(0, str(Path(__file__).parents[1]))
from _kit.options import start
from _kit.report import provenance

TARGET, LATENT = "inertial", 2048


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of this benchmark."""

    root: Path | None = None  # folder of UTD-MHAD; by default that in UTD_MHAD_ROOT
    source: str = "depth"  # video modality, depth or rgb
    epochs: int = 3  # passes over the pairs, at least 2: the first is compilation as well
    frames: int = 8  # of each video
    size: int = 64  # height and width of each frame
    batch_size: int = 32  # pairs in a batch
    weights: Path | None = None  # file of ResNet-18 weights under torchvision's names
    frozen: bool = False  # keep the trunk as the file has it
    cache: Path = Path("results/cache")  # folder for the small videos


def main(options: Options) -> None:
    console = rich.console.Console()
    if options.epochs < 2:
        raise SystemExit(f"--epochs must be at least 2, got {options.epochs}: the first compiles.")
    root = options.root or os.environ.get("UTD_MHAD_ROOT")
    if not root:
        raise SystemExit("UTD_MHAD_ROOT is not set: this benchmark is about the real recordings.")
    trunk: dict[str, Any] = {"weights": options.weights, "frozen": options.frozen}
    branches = (
        encoders.make_branch(options.source, latent=LATENT, architecture="paper", **trunk),
        encoders.make_branch(TARGET, latent=LATENT),
    )
    branches[0].make(jax.random.key(0))  # reads the weights, before the videos are
    small: dict[str, Any] = {"frames": options.frames, "size": options.size, "progress": True}
    recordings = dataset.read_recordings(
        root, modalities=(TARGET, options.source), cache=options.cache, **small
    )
    series = dataset.to_series(recordings.signals[TARGET], modality=TARGET)
    inputs = recordings.signals | {TARGET: series}
    split = splits.read_split(Path(root) / "splits" / "40_40_10_10", recordings.names)
    sides = {"source": options.source, "target": TARGET}
    task, exam = transfer.make_task(inputs, recordings.actions, split, **sides)
    trained_from = "random weights, trained as well"
    if options.weights:
        trained_from = f"weights {options.weights}"
    console.print(f"trunk: {trained_from}{', frozen' if options.frozen else ''}", highlight=False)
    ends: list[float] = []

    def watch(trained: training.Trained) -> list[float]:
        ends.append(time.perf_counter())
        return [0.0]

    trained = training.train(
        branches,
        task.pairs,
        keys=jax.random.split(jax.random.key(0), 1),
        settings=training.Settings(epochs=options.epochs, batch_size=options.batch_size),
        watch=watch,
        watch_every=1,
        progress=True,
    )
    began = time.perf_counter()
    through = [lambda x, v=v: training.encode(trained, x, view=v)[0] for v in (0, 1)]
    task, exam = task.encode(*through), exam.encode(*through)
    encoding = time.perf_counter() - began
    per_epoch = float(np.median(np.diff(ends)))
    accuracy = {}
    paper = methods.Method("trailing", k=LATENT, center=False)
    listed = [paper, *methods.list_methods(components=(64, 128))]
    posed = methods.to_directions(task, exam)
    for method, t, e in methods.align_all(*posed, methods=listed):
        name = dataclasses.replace(method, space="CA").label
        hits = e.score(transfer.rank_classes(t.labelled, t.labels, t.unseen))[1]
        accuracy[name] = 100 * float(hits.mean())
        console.print(f"{name}: top-1 {accuracy[name]:.1f} %", highlight=False)
    chosen = dataclasses.asdict(options)
    result = {
        "options": {k: str(v) for k, v in chosen.items() if k not in ("root", "cache")},
        "trunk": trained_from,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.variables[0])),
        "seconds": {"training": trained.seconds, "epoch": per_epoch, "encoding": encoding},
        "clips per second": len(split.align) / per_epoch,
        "losses": trained.losses[:, 0].tolist(),
        "top-1": accuracy,
        "provenance": provenance(),
    }
    name = re.sub(r"[^a-z0-9]", "_", result["provenance"]["device"].lower()).strip("_")
    what = f"{options.source}_{options.frames}x{options.size}_{options.epochs}_epochs"
    what += "_weights" * (options.weights is not None) + "_frozen" * options.frozen
    path = Path(__file__).parent / "results" / f"paper_architecture_{what}_{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(result, indent=1).encode())
    speed = f"{per_epoch:.1f} s an epoch, {result['clips per second']:.1f} clips/s"
    console.print(f"{trained.seconds:.0f} s of training, {speed}; {path}", highlight=False)


if __name__ == "__main__":
    start(main, Options, __doc__, bits=32)
