"""The command line: align your own paired views, and reproduce the paper.

Bad input is one line on stderr and exit code 2; a failed experiment is exit code 1.
"""

import contextlib
import dataclasses
import io
import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

import perfalign_jax as pa
from perfalign_jax import _checks, metrics, neighbours, solver
from perfalign_jax.arrays import path_of, read_array
from perfalign_jax.report import format_number
from perfalign_jax.reproduce import reproduce
from perfalign_jax.serialization import check_target, write_whole

__all__ = ["main"]

Source = tyro.conf.Positional[str]


class _InputError(Exception):
    """Bad input, in one line."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """Align two views and write the alignment.

    Views are files of paired rows: .npy, .npz or .safetensors (file.npz:name picks an array).
    """

    x1: Source
    """view 1, shape (n, d1)"""
    x2: Source
    """view 2, shape (n, d2)"""
    k: Annotated[str | None, tyro.conf.arg(aliases=["-k"], metavar="INT")] = None
    """latent dimensions; may be left out with --select energy: all that carry energy"""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.safetensors")] = Path("alignment.safetensors")
    """the alignment file to write"""
    select: Literal["trailing", "energy"] = "trailing"
    """which null directions: the last as in the paper, or those that carry most energy"""
    method: Literal["auto", "svd", "qr", "gram", "null", "dual"] = "auto"
    """how the subspace is computed"""
    center: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """remove the means first"""
    rtol: Annotated[str | None, tyro.conf.arg(metavar="FLOAT")] = None
    """share of the largest singular value that counts as zero; rounding alone if left out"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON instead of a table"""

    def run(self) -> int:
        """Fit, write, and print how well the training pairs align."""
        k = None if self.k is None else _whole(self.k, "-k")
        if k is None and self.select != "energy":
            raise _InputError("-k is required unless --select energy, got none.")
        _check_out(self.out, ".safetensors", (self.x1, self.x2))
        with _collect_notes() as notes:
            views = _load_views(self.x1, self.x2)
            alignment = pa.fit(
                views,
                k=k,
                select=self.select,
                method=self.method,
                center=self.center,
                rtol=_tolerance(self.rtol, self.x1, self.x2),
            )
            facts = _fit_facts(alignment, views)
        pa.save(alignment, self.out)
        facts = {"out": str(self.out), **facts}
        _show(f"alignment written to {self.out}", facts, notes, as_json=self.json)
        return 0


@dataclasses.dataclass(frozen=True)
class Transform:
    """Map one view into the shared latent space."""

    alignment: Source
    """alignment file"""
    x: Source
    """rows of the view, shape (n, d)"""
    view: Annotated[str, tyro.conf.arg(metavar="{0,1}")]
    """which view x is, counted from 0"""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")] = Path("latents.npy")
    """the latents to write, shape (n, k)"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON instead of a table"""

    def run(self) -> int:
        """Encode and write."""
        view = _whole(self.view, "--view")
        _check_out(self.out, ".npy", (self.alignment, self.x))
        alignment = pa.load(self.alignment)
        view = _checks.integer(view, "--view", low=0, high=1, why=" (views are counted from 0)")
        with _collect_notes() as notes:
            x = _load(self.x, f"(n, {alignment.dims[view]})")
            _check_columns(self.x, x, alignment, view)
            latents = np.asarray(pa.encode(alignment, x.astype(_dtype(alignment)), view=view))
        buffer = _npy_bytes(latents)
        write_whole(self.out, buffer)
        facts = {"out": str(self.out), "n": latents.shape[0], "k": latents.shape[1]}
        _show(f"latents written to {self.out}", facts, notes, as_json=self.json)
        return 0


@dataclasses.dataclass(frozen=True)
class Score:
    """Measure an alignment on paired views: error, energy and retrieval."""

    alignment: Source
    """alignment file"""
    x1: Source
    """view 1, shape (n, d1)"""
    x2: Source
    """view 2, shape (n, d2)"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON instead of a table"""

    def run(self) -> int:
        """Print every metric."""
        alignment = pa.load(self.alignment)
        with _collect_notes() as notes:
            views = _load_views(self.x1, self.x2, varied=False)
            for m, (spec, x) in enumerate(zip((self.x1, self.x2), views, strict=True)):
                _check_columns(spec, x, alignment, m)
            dtype = _dtype(alignment)
            views = (views[0].astype(dtype), views[1].astype(dtype))
            facts = _score_facts(alignment, views)
        _show(f"{self.alignment} on {facts['n']:,} pairs", facts, notes, as_json=self.json)
        return 0


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say what two views allow: ranks, null space, and how much of it carries information."""

    x1: Source
    """view 1, shape (n, d1)"""
    x2: Source
    """view 2, shape (n, d2)"""
    center: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """remove the means first"""
    rtol: Annotated[str | None, tyro.conf.arg(metavar="FLOAT")] = None
    """share of the largest singular value that counts as zero; rounding alone if left out"""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print JSON instead of a table"""

    def run(self) -> int:
        """Print the diagnosis."""
        with _collect_notes() as notes:
            views = _load_views(self.x1, self.x2)
            rtol = _tolerance(self.rtol, self.x1, self.x2)
            diagnosis = pa.diagnose(views, center=self.center, rtol=rtol)
        if not self.json:
            _say_notes(notes)
            print(diagnosis)
            return 0
        names = ("rank", "null_dimension", "informative_dimension", "trivial_dimension", "samples")
        facts: dict[str, Any] = {name: int(getattr(diagnosis, name)) for name in names}
        facts |= {
            "ranks": diagnosis.ranks.tolist(),
            "dims": list(diagnosis.dims),
            "center": diagnosis.center,
            "cutoff": float(diagnosis.cutoff),
            "singular_values": diagnosis.singular_values.tolist(),
            "energies": diagnosis.energies.tolist(),
            "view_energies": diagnosis.view_energies.tolist(),
        }
        _show("", facts, notes, as_json=True)
        return 0


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Run the experiments of the paper and write the report."""

    out: Path = Path("results")
    """folder of results"""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """small versions that run in seconds; not for comparison"""
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """the most careful versions"""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """name of an experiment to run; may be given several times"""

    def run(self) -> int:
        """Run, and report failures by exit code 1."""
        if self.quick and self.full:
            raise _InputError("--quick and --full exclude each other.")
        scale = "quick" if self.quick else "full" if self.full else "default"
        if self.out.exists() and not self.out.is_dir():
            raise _InputError(f"--out {self.out} is a file, not a folder.")
        failed = reproduce(self.out, scale=scale, only=self.only, say=_say)
        if failed:
            print(f"perfalign: failed: {', '.join(failed)}", file=sys.stderr)
        return 1 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _collect_notes() -> Iterator[list[warnings.WarningMessage]]:
    """Collect what the library warns of, to be told in plain lines."""
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("ignore")
        for category in (pa.PrecisionWarning, pa.CollapseWarning):
            warnings.simplefilter("always", category)
        yield log


def _say_notes(notes: Any) -> None:
    for note in notes:
        word = "warning" if issubclass(note.category, pa.CollapseWarning) else "note"
        print(f"perfalign: {word}: {note.message}", file=sys.stderr)


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _InputError(f"{name} must be an integer, got {text!r}.") from None


def _tolerance(text: str | None, spec1: str, spec2: str) -> float | None:
    """The user's tolerance, or the rounding of the files where they are coarser than the sums."""
    if text is None:
        return solver.coarser_rounding((read_array(spec1), read_array(spec2)))
    try:
        return float(text)
    except ValueError:
        raise _InputError(f"--rtol must be a number, got {text!r}.") from None


def _check_out(out: Path, suffix: str, inputs: tuple[str, ...]) -> None:
    if out.suffix.lower() != suffix:
        raise _InputError(f"--out must end in {suffix}, got {out}.")
    check_target(out)
    if out.exists():
        for spec in inputs:
            if path_of(spec).exists() and out.samefile(path_of(spec)):
                raise _InputError(f"--out {out} would overwrite an input.")


def _load(spec: str, shape: str) -> np.ndarray:
    """Read a view and return it in the dtype it is computed in."""
    return np.asarray(_checks.array(read_array(spec), spec, ndim=2, shape=shape))


def _load_views(spec1: str, spec2: str, *, varied: bool = True) -> tuple[np.ndarray, np.ndarray]:
    x1, x2 = _load(spec1, "(n, d1)"), _load(spec2, "(n, d2)")
    _checks.paired(x1, x2, spec1, spec2)
    for spec, x in ((spec1, x1), (spec2, x2)):
        if x.shape[1] < 1:
            raise _InputError(f"{spec} must have at least one column, got shape {x.shape}.")
        if x.shape[0] < (2 if varied else 1):
            raise _InputError(f"{spec} must have at least 2 rows, got shape {x.shape}.")
        if varied and (x == x[:1]).all():
            raise _InputError(f"{spec} has no variance: all its {x.shape[0]:,} rows are equal.")
    return x1, x2


def _dtype(alignment: pa.Alignment) -> np.dtype:
    return np.dtype(alignment.offset.dtype)


def _check_columns(spec: str, x: np.ndarray, alignment: pa.Alignment, view: int) -> None:
    if x.shape[1] != alignment.dims[view]:
        raise _InputError(
            f"{spec} must have {alignment.dims[view]} columns like view {view} of the alignment, "
            f"got shape {x.shape}."
        )


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _fit_facts(alignment: pa.Alignment, views: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    z1, z2 = solver.transform(alignment, views)
    center = alignment.center
    return {
        "n": views[0].shape[0],
        "d1": alignment.dims[0],
        "d2": alignment.dims[1],
        "k": alignment.k,
        "method": alignment.method,
        "select": alignment.select,
        "center": center,
        "dtype": str(_dtype(alignment)),
        "cmae": float(metrics.cmae(z1, z2)),
        "relative_cmae": float(metrics.relative_cmae(z1, z2)),
        "energy_kept_1": float(metrics.latent_energy(z1, views[0])),
        "energy_kept_2": float(metrics.latent_energy(z2, views[1])),
        "effective_rank": float(metrics.effective_rank(np.concatenate([z1, z2]))),
    }


def _score_facts(alignment: pa.Alignment, views: tuple[Any, ...]) -> dict[str, Any]:
    z1, z2 = solver.transform(alignment, views)
    found = neighbours.retrieval(z1, z2)
    facts: dict[str, Any] = {
        "n": z1.shape[0],
        "k": alignment.k,
        "cmae": float(metrics.cmae(z1, z2)),
        "ncmae": float(metrics.ncmae(z1, z2)),
        "relative_cmae": float(metrics.relative_cmae(z1, z2)),
        "energy_kept_1": float(metrics.latent_energy(z1, views[0])),
        "energy_kept_2": float(metrics.latent_energy(z2, views[1])),
        "effective_rank_1": float(metrics.effective_rank(z1)),
        "effective_rank_2": float(metrics.effective_rank(z2)),
        "linear_cka": float(metrics.linear_cka(z1, z2)),
    }
    for way, recalls, rank in (
        ("1 to 2", found.recall_12, found.median_rank_12),
        ("2 to 1", found.recall_21, found.median_rank_21),
    ):
        facts |= {f"R@{at}, view {way}": float(r) for at, r in zip(found.at, recalls, strict=True)}
        facts[f"median rank, view {way}"] = float(rank)
    return facts


_LABELS = {
    "out": "file",
    "n": "pairs n",
    "d1": "features d1",
    "d2": "features d2",
    "k": "latent dimensions k",
    "cmae": "CMAE (Eq. 8), data units",
    "ncmae": "NCMAE, of latents of length one",
    "relative_cmae": "relative CMAE, of the mean latent length",
    "energy_kept_1": "share of view 1's energy in its latents",
    "energy_kept_2": "share of view 2's energy in its latents",
    "effective_rank": "effective rank of the latents",
    "effective_rank_1": "effective rank of view 1's latents",
    "effective_rank_2": "effective rank of view 2's latents",
    "linear_cka": "linear CKA",
    "center": "centred",
}


def _show(title: str, facts: dict[str, Any], notes: Any, *, as_json: bool) -> None:
    if as_json:
        said = [str(note.message) for note in notes]
        clean = {_json_name(k): _json_number(v) for k, v in (facts | {"notes": said}).items()}
        print(json.dumps(clean, indent=1))
        return
    _say_notes(notes)
    table = Table(
        title=Text(title), title_justify="left", show_header=False, box=None, pad_edge=False
    )
    for name, value in facts.items():
        if isinstance(value, float):
            text = format_number(value)
        else:
            text = f"{value:,}" if type(value) is int else str(value)
        table.add_row(_LABELS.get(name, name.replace("_", " ")), Text(text))
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def _json_name(name: str) -> str:
    return name.replace("R@", "recall_at_").replace(",", "").replace(" ", "_")


def _json_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_number(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Run ``perfalign`` with the given arguments (the process's own if None); return an exit code.

    Returns:
        0 if all went well, 1 if an experiment failed, 2 for bad input, 130 if interrupted.

    Example:
        >>> from perfalign_jax.cli import main
        >>> main(["diagnose", "no-such-file.npy", "other.npy"])
        2
    """
    command = tyro.cli(
        Fit | Transform | Score | Diagnose | Reproduce,
        prog="perfalign",
        description="Perfect multimodal alignment in closed form.",
        args=arguments,
    )
    try:
        with jax.enable_x64(True):  # each array keeps the dtype it is stored in
            return command.run()
    except KeyboardInterrupt:
        print("perfalign: interrupted; what is finished is kept.", file=sys.stderr)
        return 130
    except (_InputError, OSError, ValueError, TypeError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else str(error)
        print(f"perfalign: error: {' '.join(str(message).split())}", file=sys.stderr)
        return 2
