"""Run the experiments of the paper one after the other, and write the report.

What is finished is kept: an interrupted run goes on where it stopped, and an experiment runs again
only if its code, its size or its data changed.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _kit.cells import fingerprint
from _kit.report import write_report
from perfalign_jax.serialization import write_whole

FOLDER = Path(__file__).parents[1]
"""Where the scripts are."""

EXPERIMENTS = {
    "fig3_synthetic": "Section 3.1: errors of perfect and contrastive alignment (Figs. 1-3)",
    "fig4_robustness": "Section 3.1: robustness over n, d, k and noise (Fig. 4), and collapse",
    "table2_pseudoinverse": "Table 2: pseudo-inverse of the true maps",
    "fig7_uniform": "Section 6.5: uniform latents and a linear boundary (Fig. 7)",
    "labels_as_modality": "Section 6.1: class labels as a modality",
    "v1_transfer": "First version: classes without labels, transfer with Gaussians",
    "remarks": "Remarks 2.6 and 2.7 as executable statements",
    "utd_mhad_linear": "Section 3.2 on real files: closed-form transfer to IMU",
    "table1_har": "Section 3.2, Table 1: transfer to IMU with trained encoders",
    "fig6_tsne": "Section 3.2, Fig. 6: latent space before and after perfect alignment",
    "alignment_study": "Which alignment to use: align and its rivals on pairs of real views",
    "migrate": "Changing the embedding model without embedding everything again",
}
"""Every experiment of the report, in its order: name of the script to one line about it."""


TIMES = "times.json"
"""File of the seconds that every experiment took, where all ran in one go."""


def _fingerprint(script: Path, scale: str) -> str:
    """Digest of everything that decides an experiment's numbers."""
    digest = hashlib.sha256(f"{scale} {fingerprint(script)}".encode())
    root = os.environ.get("UTD_MHAD_ROOT")
    for file in sorted(Path(root).rglob("*")) if root else ():
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def reproduce(
    out: Path,
    *,
    scale: str = "default",
    only: Sequence[str] = (),
    aside: bool = False,
) -> list[str]:
    """Run all experiments, or only some, as processes, and write the report; names that failed.

    ``aside``: all that is said on the way goes to stderr.
    """
    unknown = [name for name in only if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(
            f"only must name experiments of {', '.join(EXPERIMENTS)}, got {', '.join(unknown)}."
        )
    out.mkdir(parents=True, exist_ok=True)
    ledger = out / "finished.json"
    try:
        finished = dict(json.loads(ledger.read_text()))
    except (OSError, TypeError, ValueError):  # none, or damaged
        finished = {}
    chosen = [name for name in EXPERIMENTS if not only or name in only]
    failed: list[str] = []
    took: dict[str, float] = {}
    start = time.perf_counter()
    say = functools.partial(print, flush=True, file=sys.stderr if aside else None)
    for i, name in enumerate(chosen):
        script = FOLDER / f"{name}.py"
        heading = f"[{i + 1}/{len(chosen)}] {name}: {EXPERIMENTS[name]}"
        made_by = _fingerprint(script, scale)
        result = out / f"{name}.json"
        if result.is_file() and finished.get(name) == f"{made_by} {_digest(result)}":
            say(f"{heading} (finished before, kept)")
            continue
        say(heading)
        flags = [] if scale == "default" else [f"--{scale}"]
        command = [sys.executable, str(script), "--out", str(out), *flags]
        began = time.perf_counter()
        status = subprocess.run(command, check=False, stdout=2 if aside else None).returncode
        if status:
            say(f"    failed with exit code {status}: {' '.join(command)}")
            failed.append(name)
            continue
        finished[name] = f"{made_by} {_digest(result)}"
        write_whole(ledger, json.dumps(finished, indent=1).encode())
        took[name] = time.perf_counter() - began
        say(f"    {took[name]:.0f} s")
    if len(took) == len(EXPERIMENTS):  # all in one go: what a run of everything costs
        write_whole(out / TIMES, json.dumps({"scale": scale, "seconds": took}, indent=1).encode())
    title = "Perfect multimodal alignment: the paper and this code"
    page, text = write_report(out, order=list(EXPERIMENTS), title=title)
    say(f"{time.perf_counter() - start:.0f} s in all; report: {page} and {text}")
    return failed
