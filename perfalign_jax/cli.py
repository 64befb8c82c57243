"""The command line: align your own paired views, and reproduce the paper.

Long files are read a block of rows at a time, so that memory follows the number of features. JAX
takes seconds to import: it is imported where it is used, so that usage errors do not wait for it.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from perfalign_jax.arrays import Moments, RowReader, measure_moments

if TYPE_CHECKING:
    from perfalign_jax.statistics import Rows
    from perfalign_jax.types import Alignment

__all__ = ["main"]

_THREADS = 16  # of XLA's CPU client: with as few as cores, its batched factorisations can hang


class _InputError(Exception):
    """Bad input, in one line."""


class _UnfinishedError(Exception):
    """The result is written, but what was to be said about it is not."""


class _Hint(UserWarning):
    """What the command line itself advises."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _InputError(f"{message}; see {self.prog} --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="perfalign",
        description="Perfect multimodal alignment in closed form.",
        epilog="Views are files of paired rows, counted from 0: .npy, .npz or .safetensors "
        "(file.npz:name picks an array).",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Any, name: str) -> argparse.ArgumentParser:
        text = run.__doc__
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    def add_views(added: argparse.ArgumentParser) -> None:
        for m in range(2):
            added.add_argument(f"x{m + 1}", help=f"view {m}, shape (n, d{m + 1})")

    def add_fitting(added: argparse.ArgumentParser) -> None:
        added.add_argument("--center", action="store_true", help="remove the means first")
        text = "share of the largest singular value that counts as zero (default: rounding)"
        _add_number(added, "--rtol", kind=float, text=text)

    fit = command(_fit, "fit")
    add_views(fit)
    text = "latent dimensions; with --select energy may be left out: all that carry energy"
    _add_number(fit, "-k", "--k", kind=int, text=text)
    _add_out(fit, "alignment.safetensors", "the alignment file to write")
    fit.add_argument(
        "--select",
        choices=("trailing", "energy"),
        default="trailing",
        help="which null directions: the last as in the paper, or those that carry most energy "
        "(default: %(default)s)",
    )
    fit.add_argument(
        "--method",
        choices=("auto", "svd", "qr", "gram", "null", "dual"),
        default="auto",
        help="how the subspace is computed (default: %(default)s)",
    )
    add_fitting(fit)

    transform = command(_transform, "transform")
    transform.add_argument("alignment", help="alignment file")
    transform.add_argument("x", help="rows of the view, shape (n, d)")
    text = "which view x is, counted from 0"
    _add_number(transform, "--view", kind=int, text=text, required=True)
    _add_out(transform, "latents.npy", "the latents to write, shape (n, k)")

    score = command(_score, "score")
    score.add_argument("alignment", help="alignment file")
    add_views(score)

    diagnose = command(_diagnose, "diagnose")
    add_views(diagnose)
    add_fitting(diagnose)
    for added in (fit, transform, score, diagnose):
        added.add_argument("--json", action="store_true", help="print JSON instead of a table")

    again = command(_reproduce, "reproduce")
    again.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of results (default: %(default)s)"
    )
    again.add_argument("--quick", action="store_true", help="small, in seconds; not for comparison")
    again.add_argument("--full", action="store_true", help="the most careful versions")
    again.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="name of an experiment to run; may be given several times",
    )
    return parser


def _add_out(command: argparse.ArgumentParser, default: str, text: str) -> None:
    command.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar=f"FILE{Path(default).suffix}",
        help=f"{text} (default: %(default)s)",
    )


def _add_number(
    command: argparse.ArgumentParser, *names: str, kind: type, text: str, required: bool = False
) -> None:
    def read(given: str) -> Any:
        try:
            return kind(given)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise _InputError(f"{names[0]} must be {what}, got {given!r}.") from None

    metavar = "INT" if kind is int else "FLOAT"
    command.add_argument(*names, type=read, metavar=metavar, required=required, help=text)


def _fit(options: argparse.Namespace) -> None:
    """Align two views and write the alignment."""
    if options.k is None and options.select != "energy":
        raise _InputError("-k is required unless --select energy, got none.")
    _check_out(options.out, ".safetensors", (options.x1, options.x2))
    with _computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import metrics

        rows = _training_rows(options)
        data = rows.survey(varied=True)
        alignment = pa.fit(
            data,
            k=options.k,
            select=options.select,
            method=options.method,
            center=options.center,
            rtol=options.rtol,
        )
        moments = measure_moments(data)
        del data
        pa.save(alignment, options.out)
        with _after_writing(f"the alignment is written to {options.out}"):
            measured, latents = _measure(alignment, rows, moments)
            gap = (latents.means[0] - latents.means[1]) * math.sqrt(rows.n / 2)
            both = np.vstack([*latents.blocks, gap])
            _hint_at_means(options, moments)
            facts = {
                "out": str(options.out),
                "n": rows.n,
                "d1": alignment.dims[0],
                "d2": alignment.dims[1],
                "k": alignment.k,
                "method": alignment.method,
                "select": alignment.select,
                "center": alignment.center,
                "dtype": str(rows.dtype),
                **measured,
                "effective_rank": float(metrics.effective_rank(_mirrored(both))),
            }
            del facts["ncmae"]
            _show(f"alignment written to {options.out}", facts, notes, as_json=options.json)


def _transform(options: argparse.Namespace) -> None:
    """Map one view into the shared latent space."""
    from perfalign_jax.serialization import open_whole

    _check_out(options.out, ".npy", (options.alignment, options.x))
    with _computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import _checks

        alignment = pa.load(options.alignment)
        last, why = len(alignment.dims) - 1, " (views are counted from 0)"
        view = _checks.integer(options.view, "--view", low=0, high=last, why=why)
        rows = RowReader(options.x)
        _suit(rows, alignment, (view,))
        header = {
            "descr": np.lib.format.dtype_to_descr(rows.dtype),
            "fortran_order": False,
            "shape": (rows.n, alignment.k),
        }
        with open_whole(options.out) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for (x,) in rows.blocks("transforming"):
                file.write(np.asarray(pa.encode(alignment, x, view=view)).tobytes())
        with _after_writing(f"the latents are written to {options.out}"):
            facts = {"out": str(options.out), "n": rows.n, "k": alignment.k}
            _show(f"latents written to {options.out}", facts, notes, as_json=options.json)


def _score(options: argparse.Namespace) -> None:
    """Measure an alignment on paired views: error, energy and retrieval."""
    with _computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import metrics, neighbours

        alignment = pa.load(options.alignment)
        rows = RowReader(options.x1, options.x2)
        _suit(rows, alignment, (0, 1))
        if rows.n < 1:
            raise _InputError(f"{options.x1} must have at least one row, got none.")
        moments = measure_moments(rows.survey(varied=False))
        kept: list[tuple[Any, ...]] = []
        measured, latents = _measure(alignment, rows, moments, kept)
        facts: dict[str, Any] = {"n": rows.n, "k": alignment.k, **measured}
        halves = [_mirrored(block) for block in latents.blocks]
        for m, half in enumerate(halves):
            facts[f"effective_rank_{m}"] = float(metrics.effective_rank(half))
        facts["linear_cka"] = float(metrics.linear_cka(*halves))
        z1, z2 = (np.concatenate(z) for z in zip(*kept, strict=True))
        found = neighbours.retrieval(z1, z2)
        for way, recalls, rank in (
            ("0 to 1", found.recall_12, found.median_rank_12),
            ("1 to 0", found.recall_21, found.median_rank_21),
        ):
            facts |= {
                f"R@{at}, view {way}": float(r) for at, r in zip(found.at, recalls, strict=True)
            }
            facts[f"median rank, view {way}"] = float(rank)
        _show(f"{options.alignment} on {rows.n:,} pairs", facts, notes, as_json=options.json)


def _diagnose(options: argparse.Namespace) -> None:
    """Say what two views allow: ranks, null space, and how much of it carries information."""
    with _computing() as notes:
        import perfalign_jax as pa

        data = _training_rows(options).survey(varied=True)
        found = pa.diagnose(data, center=options.center, rtol=options.rtol)
        _hint_at_means(options, measure_moments(data))
        if not options.json:
            _say_notes(notes)
            print(_in_own_words(str(found)))
            return
        counts = ("rank", "null_dimension", "informative_dimension", "trivial_dimension", "samples")
        arrays = ("ranks", "dims", "center", "cutoff", "singular_values", "energies")
        facts: dict[str, Any] = {name: int(getattr(found, name)) for name in counts}
        for name in (*arrays, "view_energies"):
            facts[name] = np.asarray(getattr(found, name)).tolist()
        _show("", facts, notes, as_json=True)


def _reproduce(options: argparse.Namespace) -> None:
    """Run the experiments of the paper and write the report."""
    if options.quick and options.full:
        raise _InputError("--quick and --full exclude each other.")
    if options.out.exists() and not options.out.is_dir():
        raise _InputError(f"--out {options.out} is a file, not a folder.")
    try:
        failed = _checkout().reproduce(
            options.out,
            scale="quick" if options.quick else "full" if options.full else "default",
            only=options.only,
            say=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is finished is kept") from None
    if failed:
        raise _UnfinishedError(f"failed: {', '.join(failed)}.")


def _checkout() -> Any:
    """Return what runs the experiments: they are beside the package in a checkout, or here."""
    for root in (Path(__file__).parents[1], Path.cwd()):
        if (root / "experiments" / "_kit").is_dir():
            sys.path.insert(0, str(root / "experiments"))
            return importlib.import_module("_kit.reproduce")
    raise _InputError(
        "reproduce runs the experiments of a checkout, and none was found beside the installed "
        "package or in the current folder."
    )


def _training_rows(options: argparse.Namespace) -> RowReader:
    from perfalign_jax.types import PrecisionWarning

    rows = RowReader(options.x1, options.x2)
    if rows.n < 2:
        file = rows.files[0]
        raise _InputError(f"{file.spec} must have at least 2 rows, got shape {file.shape}.")
    if rows.dtypes[0] != rows.dtypes[1]:
        each = " and ".join(
            f"{f.spec} in {t}" for f, t in zip(rows.files, rows.dtypes, strict=True)
        )
        warnings.warn(f"{each}: computed in {rows.dtype}.", PrecisionWarning, stacklevel=2)
    return rows


def _suit(rows: RowReader, alignment: "Alignment", views: tuple[int, ...]) -> None:
    """Read the rows in the alignment's dtype, if their features are those of its views."""
    for file, view in zip(rows.files, views, strict=True):
        if file.shape[1] != alignment.dims[view]:
            raise _InputError(
                f"{file.spec} must have {alignment.dims[view]} columns like view {view} of the "
                f"alignment, got shape {file.shape}."
            )
    rows.dtype = np.dtype(alignment.offset.dtype)


def _hint_at_means(options: argparse.Namespace, moments: list[Moments]) -> None:
    for m, (_, _, common, spread) in enumerate(moments):
        share = common / (common + spread) if common else 0.0
        if share > 1 / 2 and not options.center:
            warnings.warn(
                f"the mean holds {share:.0%} of view {m}'s energy and passes for something that "
                "the views share; --center removes it.",
                _Hint,
                stacklevel=2,
            )


def _measure(
    alignment: "Alignment",
    rows: RowReader,
    moments: list[Moments],
    kept: list[tuple[Any, ...]] | None = None,
) -> tuple[dict[str, float], "Rows"]:
    """Errors and energies of the latents, and their moments; they themselves go into a list."""
    import perfalign_jax as pa
    from perfalign_jax import statistics

    centres = pa.transform(alignment, [view.mean[None, :] for view in moments])
    sums, state = np.zeros(4), cast(Any, None)
    for block in rows.blocks("measuring"):
        latents = pa.transform(alignment, block)
        lengths = [
            pa.cmae(z, np.broadcast_to(centre, z.shape))
            for z, centre in zip(latents, centres, strict=True)
        ]
        errors = [float(v) for v in (pa.cmae(*latents), pa.ncmae(*latents), *lengths)]
        sums += len(block[0]) * np.array(errors)
        part = statistics.from_views(latents)
        state = part if state is None else statistics.merge(state, part)
        if kept is not None:
            kept.append(latents)
    error, unit_error, length1, length2 = (sums / rows.n).tolist()
    length = (length1 + length2) / 2
    facts = {
        "cmae": error,
        "ncmae": unit_error,
        "relative_cmae": error / length if length > 0 else math.inf,
    }
    found = statistics.rows(state, center=True)
    for m, (_, unit, _, spread) in enumerate(moments):
        energy = float(np.sum((np.asarray(found.blocks[m], np.float64) / unit) ** 2))
        facts[f"energy_kept_{m}"] = energy / spread if spread else 0.0
    return facts, found


def _mirrored(rows: Any) -> np.ndarray:
    """Zeros, each row and its negative: of mean zero, and measured like the rows."""
    return np.vstack([np.zeros_like(rows, shape=(1, rows.shape[1])), rows, -rows])


def _check_out(out: Path, suffix: str, inputs: tuple[str, ...]) -> None:
    from perfalign_jax.serialization import check_target

    if out.suffix.lower() != suffix:
        raise _InputError(f"--out must end in {suffix}, got {out}.")
    for spec in inputs:
        # Also file.npz:name: what is before the colon is the file.
        for path in (Path(spec), Path(spec.rpartition(":")[0])):
            if path.is_file() and out.exists() and out.samefile(path):
                raise _InputError(f"--out {out} would overwrite an input.")
    check_target(out)


@contextlib.contextmanager
def _computing() -> Iterator[list[warnings.WarningMessage]]:
    """Compute each array in the dtype it is stored in, and collect what is warned of."""
    import jax

    from perfalign_jax.types import CollapseWarning, OverfitWarning, PrecisionWarning

    with jax.enable_x64(True), warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("ignore")
        for category in (PrecisionWarning, CollapseWarning, OverfitWarning, _Hint):
            warnings.simplefilter("always", category)
        yield log


@contextlib.contextmanager
def _after_writing(done: str) -> Iterator[None]:
    """Say, where the rest fails or is interrupted, what is there all the same."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(done) from None
    except Exception as error:
        raise _UnfinishedError(f"{done}, but not described: {error}") from None


# The library's words, and what the same is called here.
_WORDS = (
    (r"select='energy' \(k=None takes", "--select energy (without -k it takes"),
    (r"k=None with select='energy'", "--select energy without -k"),
    (r"\(see diagnose\)", "(see perfalign diagnose)"),
    (r"\bdiagnose\(\)", "perfalign diagnose"),
    (r"\bbaselines\.ridge_cca\b", "ridge CCA (which this command does not have)"),
    (r"\b(select|method)='(\w+)'", r"--\1 \2"),
    (r"\b(with|or|any) k\b", r"\1 -k"),
    (r"\bcenter=True\b", "--center"),
    (r"^rtol must", "--rtol must"),
    (r"^k must", "-k must"),
)


def _in_own_words(text: str) -> str:
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def _printable(text: str) -> str:
    """One line; what would steer a terminal is shown as its escape."""
    line = " ".join(text.split(None))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _say(text: str) -> None:
    print(f"perfalign: {_printable(text)}", file=sys.stderr)


def _say_notes(notes: list[warnings.WarningMessage]) -> None:
    for note in notes:
        word = "note" if note.category.__name__ == "PrecisionWarning" else "warning"
        _say(f"{word}: {_in_own_words(str(note.message))}")


_LABELS = {
    "out": "file",
    "n": "pairs n",
    "d1": "features d1",
    "d2": "features d2",
    "k": "latent dimensions k",
    "cmae": "CMAE (Eq. 8), data units",
    "ncmae": "NCMAE, of latents of length one",
    "relative_cmae": "relative CMAE, of the mean latent length",
    "energy_kept_0": "share of view 0's energy in its latents",
    "energy_kept_1": "share of view 1's energy in its latents",
    "effective_rank": "effective rank of the latents",
    "effective_rank_0": "effective rank of view 0's latents",
    "effective_rank_1": "effective rank of view 1's latents",
    "linear_cka": "linear CKA",
    "center": "centred",
}


def _show(
    title: str, facts: dict[str, Any], notes: list[warnings.WarningMessage], *, as_json: bool
) -> None:
    if as_json:
        said = {"notes": [_in_own_words(str(note.message)) for note in notes]}
        clean = {_json_name(name): _json_value(value) for name, value in (facts | said).items()}
        print(json.dumps(clean, indent=1))
        return
    _say_notes(notes)
    labels = [_LABELS.get(name, name.replace("_", " ")) for name in facts]
    print(_printable(title))
    for label, value in zip(labels, facts.values(), strict=True):
        text = f"{value:,}" if type(value) is int else str(value)
        text = f"{value:.4g}" if isinstance(value, float) else text
        print(f"{label:{max(map(len, labels))}}  {_printable(text)}")


def _json_name(name: str) -> str:
    return name.replace("R@", "recall_at_").replace(",", "").replace(" ", "_")


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> int:
    """Run ``perfalign`` with the given arguments (the process's own if None); return an exit code.

    Returns:
        0 if all went well; 1 if an experiment failed, the memory did not suffice, or a result was
        written but could not be described; 2 for bad input; 130 if interrupted.

    Example:
        >>> from perfalign_jax.cli import main
        >>> main(["diagnose", "no-such-file.npy", "other.npy"])
        2
    """
    granted = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    if len(granted) < _THREADS:
        os.environ.setdefault("NPROC", str(_THREADS))
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
        return 0
    except KeyboardInterrupt as stop:
        _say(f"interrupted; {stop.args[0] if stop.args else 'nothing was written'}.")
        return 130
    except _UnfinishedError as error:
        _say(str(error))
        return 1
    except (_InputError, OSError, ValueError, TypeError, KeyError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        _say(f"error: {_in_own_words(text)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        _say(f"error: the memory did not suffice: {error}")
        return 1
