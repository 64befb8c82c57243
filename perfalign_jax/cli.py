"""The command line: align your own paired views, and reproduce the paper.

Long files are read a block of rows at a time, so that memory follows the number of features. JAX
takes seconds to import: it is imported where it is used, so that usage errors do not wait for it.
"""

import argparse
import dataclasses
import importlib
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from perfalign_jax._console import (
    Hint,
    InputError,
    UnfinishedError,
    after_writing,
    check_out,
    computing,
    in_own_words,
    say,
    say_notes,
    show,
)
from perfalign_jax.arrays import Moments, RowReader, measure_moments, open_array

if TYPE_CHECKING:
    from perfalign_jax.statistics import Rows
    from perfalign_jax.types import Alignment

__all__ = ["main"]

_THREADS = 16  # of XLA's CPU client: with as few as cores, its batched factorisations can hang


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help.")


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

    def add_checkpoint(added: argparse.ArgumentParser) -> None:
        text = "where reading long files is kept: an interrupted run goes on from there"
        added.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)

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
    add_checkpoint(fit)

    align = command(_align, "align")
    align.add_argument("views", nargs="+", metavar="x.npy", help="two or more views, paired rows")
    align.add_argument(
        "--lift",
        choices=("auto", "none", "linear", "gaussian", "laplacian", "polynomial", "arc_cosine"),
        default="auto",
        help="features before the alignment (default: %(default)s tries linear and gaussian)",
    )
    text = "ridge, relative to the mean eigenvalue of each side (default: chosen)"
    _add_number(align, "--ridge", kind=float, text=text)
    text = "latent dimensions at most (default: chosen)"
    _add_number(align, "-k", "--k", kind=int, text=text)
    text = (
        "views put together, such as 0,1/2 for views 0 and 1 against view 2 (default: each alone)"
    )
    align.add_argument("--sides", help=text)
    text = "array of n labels, such as subjects: their rows are held out together"
    align.add_argument("--groups", metavar="FILE", help=text)
    text = "array (n, M), True where a row has a view; or nan: views are NaN where they are missing"
    align.add_argument("--mask", metavar="FILE", help=text)
    text = "some pairs may be wrong: weigh each by how probably it is right"
    align.add_argument("--wrong-pairs", action="store_true", help=text)
    _add_number(align, "--folds", kind=int, text="parts that rows are held out in (default: 5)")
    add_checkpoint(align)
    _add_out(align, "alignment.safetensors", "the alignment file to write")

    predict = command(_predict, "predict")
    search = command(_search, "search")
    pairs = command(_pairs, "pairs")
    predict.add_argument("alignment", help="alignment file")
    predict.add_argument("x", help="rows of the source view, shape (n, d)")
    for added, first, second in (
        (search, "queries", "candidates"),
        (pairs, "x1", "x2"),
    ):
        added.add_argument("alignment", help="alignment file, of perfalign align")
        added.add_argument(first, help="rows of the source view, shape (n, d)")
        added.add_argument(second, help="rows of the target view, shape (m, d)")
    for added in (predict, search, pairs):
        for name, default in (("source", 0), ("target", 1)):
            text = f"which view the {name} is, counted from 0 (default: {default})"
            _add_number(added, f"--{name}", kind=int, text=text)
            added.set_defaults(**{name: default})
    _add_number(search, "--top", kind=int, text="candidates to name (default: 10, or all)")
    _add_number(pairs, "--show", kind=int, text="least credible pairs to print (default: 10)")
    pairs.set_defaults(show=10)
    _add_out(predict, "predicted.npy", "the predicted rows to write, shape (n, d)")
    _add_out(search, "hits.npz", "indices, log_odds and probability to write")
    _add_out(pairs, "pairs.npy", "log-odds of the pairs to write, shape (n,)")

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
    for added in (fit, align, predict, search, pairs, transform, score, diagnose):
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
            raise InputError(f"{names[0]} must be {what}, got {given!r}.") from None

    metavar = "INT" if kind is int else "FLOAT"
    command.add_argument(*names, type=read, metavar=metavar, required=required, help=text)


def _fit(options: argparse.Namespace) -> None:
    """Align two views and write the alignment."""
    if options.k is None and options.select != "energy":
        raise InputError("-k is required unless --select energy, got none.")
    check_out(options.out, ".safetensors", (options.x1, options.x2))
    _check_checkpoint(options.checkpoint, (options.x1, options.x2, options.out))
    with computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import metrics

        rows = _training_rows(options)
        data = _survey(rows, checkpoint=options.checkpoint)
        moments = _moments_that_vary(data, rows)
        alignment = pa.fit(
            data,
            k=options.k,
            select=options.select,
            method=options.method,
            center=options.center,
            rtol=options.rtol,
        )
        del data
        pa.save(alignment, options.out)
        with after_writing(f"the alignment is written to {options.out}"):
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
            show(f"alignment written to {options.out}", facts, notes, as_json=options.json)


def _align(options: argparse.Namespace) -> None:
    """Align two or more views of your own, everything chosen on held-out rows."""
    if len(options.views) < 2:
        raise InputError(f"align needs two or more views, got {len(options.views)}.")
    mask = options.mask
    files = (*options.views, *filter(None, (options.groups, mask if mask != "nan" else None)))
    check_out(options.out, ".safetensors", files)
    _check_checkpoint(options.checkpoint, (*files, options.out))
    sides = None if options.sides is None else _read_sides(options.sides)
    with computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import streaming

        rows = RowReader(*options.views)
        groups = None
        if options.groups:
            groups = open_array(options.groups).rows()
            if groups.shape != (rows.n,):
                raise InputError(
                    f"--groups must have shape ({rows.n},), a label for each row, got "
                    f"{groups.shape}."
                )
        if mask not in (None, "nan"):
            mask = open_array(mask).rows()
        in_parts = groups is None and mask is None and not options.wrong_pairs
        if options.checkpoint and not in_parts:
            raise InputError(
                "--checkpoint keeps the reading of rows into moments; --mask, --groups and "
                "--wrong-pairs need the rows themselves."
            )
        given: dict[str, Any] = {"sides": sides, "lift": options.lift}
        given["lift"] = None if options.lift == "none" else options.lift
        given |= {"ridge": "auto" if options.ridge is None else options.ridge}
        given |= {"k": "auto" if options.k is None else options.k}
        folds = 5 if options.folds is None else options.folds
        data: Any
        if rows.size > _MOST_ROWS and in_parts:
            data = streaming.survey(rows, kind="gram", parts=folds, checkpoint=options.checkpoint)
            warnings.warn(
                f"the views hold {rows.size / 2**30:.1f} GiB: aligned from their moments alone, "
                "without a lift.",
                Hint,
                stacklevel=2,
            )
        else:
            _say_if_short(options.checkpoint)
            data = rows.whole(look=mask is None)
            given |= {
                "mask": mask,
                "groups": groups,
                "wrong_pairs": options.wrong_pairs,
                "folds": folds,
            }
        alignment = pa.align(data, **given)
        pa.save(alignment, options.out)
        with after_writing(f"the alignment is written to {options.out}"):
            choice = cast(Any, alignment.choice)
            facts: dict[str, Any] = {"out": str(options.out), "n": rows.n, "k": alignment.k}
            facts |= {"lift": choice.chosen.lift, "ridge": choice.chosen.ridge}
            facts |= {"held_out_recall_at_1": choice.chosen.recall}
            facts |= {"standard_error": choice.chosen.error, "candidates": choice.candidates}
            if alignment.right_share is not None:
                facts["right_share"] = float(alignment.right_share)
            if not options.json:
                say_notes(notes)
                print(f"alignment written to {options.out}\n{choice}")
                return
            facts["trials"] = [dataclasses.asdict(trial) for trial in choice.trials]
            show("", facts, notes, as_json=True)


_MOST_ROWS = 4 * 2**30  # bytes of views that align holds in memory


def _read_sides(text: str) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(int(m) for m in side.split(",")) for side in text.split("/"))
    except ValueError:
        raise InputError(
            f"--sides must name views such as 0,1/2 (0 and 1 against 2), got {text!r}."
        ) from None


def _predict(options: argparse.Namespace) -> None:
    """Predict one view from another, such as a new embedding from the old."""
    from perfalign_jax.serialization import open_whole

    check_out(options.out, ".npy", (options.alignment, options.x))
    with computing() as notes:
        import perfalign_jax as pa

        alignment = _load(options)
        source, target = _views_of(options, alignment)
        rows = RowReader(options.x)
        _suit(rows, alignment, (source,))
        width = alignment.dims[target]
        with open_whole(options.out) as file:
            _write_header(file, rows, width)
            for (x,) in rows.blocks("predicting"):
                found = pa.predict(alignment, x, source=source, target=target)
                file.write(np.asarray(found).tobytes())
        with after_writing(f"the predictions are written to {options.out}"):
            facts = {"out": str(options.out), "n": rows.n, "features": width}
            show(f"predictions written to {options.out}", facts, notes, as_json=options.json)


def _load(options: argparse.Namespace) -> "Alignment":
    import perfalign_jax as pa

    alignment = pa.load(options.alignment)
    if not isinstance(alignment, pa.Alignment):
        raise InputError(
            f"{options.alignment} holds a statistic ({type(alignment).__name__}), no alignment."
        )
    return alignment


def _views_of(options: argparse.Namespace, alignment: "Alignment") -> tuple[int, int]:
    from perfalign_jax import _checks

    last, why = len(alignment.dims) - 1, " (views are counted from 0)"
    source, target = (
        _checks.integer(getattr(options, name), f"--{name}", low=0, high=last, why=why)
        for name in ("source", "target")
    )
    return source, target


def _write_header(file: Any, rows: RowReader, width: int) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": (rows.n, width),
    }
    np.lib.format.write_array_header_1_0(file, header)


def _search(options: argparse.Namespace) -> None:
    """Find the most credible partners of every query among the candidates."""
    from perfalign_jax.serialization import open_whole

    check_out(options.out, ".npz", (options.alignment, options.queries, options.candidates))
    with computing() as notes:
        import perfalign_jax as pa

        alignment = _load(options)
        source, target = _views_of(options, alignment)
        readers = [RowReader(spec) for spec in (options.queries, options.candidates)]
        for rows, view in zip(readers, (source, target), strict=True):
            _suit(rows, alignment, (view,))
        (x1,), (x2,) = (rows.whole() for rows in readers)
        top = min(10, len(x2)) if options.top is None else options.top
        found = pa.search(alignment, x1, x2, source=source, target=target, top=top)
        with open_whole(options.out) as file:
            arrays: dict[str, Any] = {n: np.asarray(getattr(found, n)) for n in _FOUND}
            np.savez(file, **arrays)
        with after_writing(f"the hits are written to {options.out}"):
            facts = {"out": str(options.out), "queries": len(x1), "candidates": len(x2)}
            facts |= {"mean_probability": float(np.mean(arrays["probability"]))}
            show(f"hits written to {options.out}", facts, notes, as_json=options.json)


_FOUND = ("indices", "log_odds", "probability")


def _pairs(options: argparse.Namespace) -> None:
    """Say how credible each pair of rows is, least credible first."""
    from perfalign_jax.serialization import open_whole

    if options.show < 0:
        raise InputError(f"--show must be at least 0, got {options.show}.")
    check_out(options.out, ".npy", (options.alignment, options.x1, options.x2))
    with computing() as notes:
        import perfalign_jax as pa

        alignment = _load(options)
        source, target = _views_of(options, alignment)
        rows = RowReader(options.x1, options.x2)
        _suit(rows, alignment, (source, target))
        odds = [
            np.asarray(pa.log_odds(alignment, *block, source=source, target=target))
            for block in rows.blocks("weighing")
        ]
        found = np.concatenate(odds)
        with open_whole(options.out) as file:
            np.save(file, found)
        with after_writing(f"the log-odds are written to {options.out}"):
            order = np.argsort(found)[: options.show].tolist()
            facts: dict[str, Any] = {"out": str(options.out), "n": rows.n}
            facts |= {"median_log_odds": float(np.median(found))}
            facts |= {"below_zero": int((found < 0).sum())}
            if options.json:
                facts["least_credible"] = order
                facts["log_odds"] = found[order].tolist()
                show("", facts, notes, as_json=True)
                return
            show(f"log-odds written to {options.out}", facts, notes, as_json=False)
            if order:
                print("least credible\n       row  log-odds (nats)  probability")
            for row in order:
                probability = 1 / (1 + math.exp(min(-float(found[row]), 700.0)))
                print(f"{row:10,}  {found[row]:15.2f}  {probability:11.3f}")


def _transform(options: argparse.Namespace) -> None:
    """Map one view into the shared latent space."""
    from perfalign_jax.serialization import open_whole

    check_out(options.out, ".npy", (options.alignment, options.x))
    with computing() as notes:
        import perfalign_jax as pa
        from perfalign_jax import _checks

        alignment = _load(options)
        last, why = len(alignment.dims) - 1, " (views are counted from 0)"
        view = _checks.integer(options.view, "--view", low=0, high=last, why=why)
        rows = RowReader(options.x)
        _suit(rows, alignment, (view,))
        with open_whole(options.out) as file:
            _write_header(file, rows, alignment.k)
            for (x,) in rows.blocks("transforming"):
                file.write(np.asarray(pa.encode(alignment, x, view=view)).tobytes())
        with after_writing(f"the latents are written to {options.out}"):
            facts = {"out": str(options.out), "n": rows.n, "k": alignment.k}
            show(f"latents written to {options.out}", facts, notes, as_json=options.json)


def _score(options: argparse.Namespace) -> None:
    """Measure an alignment on paired views: error, energy and retrieval."""
    with computing() as notes:
        from perfalign_jax import metrics, neighbours

        alignment = _load(options)
        rows = RowReader(options.x1, options.x2)
        _suit(rows, alignment, (0, 1))
        if rows.n < 1:
            raise InputError(f"{options.x1} must have at least one row, got none.")
        moments = measure_moments(_survey(rows))
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
        show(f"{options.alignment} on {rows.n:,} pairs", facts, notes, as_json=options.json)


def _diagnose(options: argparse.Namespace) -> None:
    """Say what two views allow: ranks, null space, and how much of it carries information."""
    with computing() as notes:
        import perfalign_jax as pa

        rows = _training_rows(options)
        data = _survey(rows)
        moments = _moments_that_vary(data, rows)
        found = pa.diagnose(data, center=options.center, rtol=options.rtol)
        _hint_at_means(options, moments)
        if not options.json:
            say_notes(notes)
            print(in_own_words(str(found)))
            return
        counts = ("rank", "null_dimension", "informative_dimension", "trivial_dimension", "samples")
        arrays = ("ranks", "dims", "center", "cutoff", "singular_values", "energies")
        facts: dict[str, Any] = {name: int(getattr(found, name)) for name in counts}
        for name in (*arrays, "view_energies"):
            facts[name] = np.asarray(getattr(found, name)).tolist()
        show("", facts, notes, as_json=True)


def _reproduce(options: argparse.Namespace) -> None:
    """Run the experiments of the paper and write the report."""
    if options.quick and options.full:
        raise InputError("--quick and --full exclude each other.")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file, not a folder.")
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
        raise UnfinishedError(f"failed: {', '.join(failed)}.")


def _checkout() -> Any:
    """Return what runs the experiments: they are beside the package in a checkout, or here."""
    for root in (Path(__file__).parents[1], Path.cwd()):
        if (root / "experiments" / "_kit").is_dir():
            sys.path.insert(0, str(root / "experiments"))
            return importlib.import_module("_kit.reproduce")
    raise InputError(
        "reproduce runs the experiments of a checkout, and none was found beside the installed "
        "package or in the current folder."
    )


def _training_rows(options: argparse.Namespace) -> RowReader:
    from perfalign_jax.types import PrecisionWarning

    rows = RowReader(options.x1, options.x2)
    if rows.n < 2:
        file = rows.files[0]
        raise InputError(f"{file.spec} must have at least 2 rows, got shape {file.shape}.")
    if rows.dtypes[0] != rows.dtypes[1]:
        each = " and ".join(
            f"{f.spec} in {t}" for f, t in zip(rows.files, rows.dtypes, strict=True)
        )
        warnings.warn(f"{each}: computed in {rows.dtype}.", PrecisionWarning, stacklevel=2)
    return rows


def _survey(rows: RowReader, checkpoint: Path | None = None) -> Any:
    """All rows as they are or, where they are read in blocks, their factor."""
    from perfalign_jax import statistics, streaming

    if rows.in_blocks:
        return streaming.survey(rows, checkpoint=checkpoint)
    _say_if_short(checkpoint)
    state: Any = statistics.from_views(rows.whole(), kind="samples")
    return dataclasses.replace(state, coarsest=np.asarray(rows.coarsest, rows.dtype))


def _check_checkpoint(path: Path | None, files: tuple[Any, ...]) -> None:
    if path is None:
        return
    *inputs, out = files
    check_out(path, ".safetensors", tuple(map(str, inputs)), "--checkpoint")
    if path.resolve() == out.resolve():
        raise InputError(f"--checkpoint and --out must be two files, got {path} for both.")


def _say_if_short(checkpoint: Path | None) -> None:
    if checkpoint is not None:
        warnings.warn(
            f"the views are short enough to be read at once: {checkpoint} is not needed.",
            Hint,
            stacklevel=3,
        )


def _moments_that_vary(data: Any, rows: RowReader) -> list[Moments]:
    """The views' moments, or an error where all rows of one are equal, but for rounding."""
    moments = measure_moments(data)
    least = (8 * float(np.finfo(rows.dtype).eps)) ** 2
    for file, view in zip(rows.files, moments, strict=True):
        if view.spread <= least * view.common:
            raise InputError(f"{file.spec} has no variance: all its {rows.n:,} rows are equal.")
    return moments


def _suit(rows: RowReader, alignment: "Alignment", views: tuple[int, ...]) -> None:
    """Read the rows in the alignment's dtype, if their features are those of its views."""
    for file, view in zip(rows.files, views, strict=True):
        if file.shape[1] != alignment.dims[view]:
            raise InputError(
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
                Hint,
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
    if alignment.evidence is not None:  # its latents are in units of evidence
        return facts, found
    for m, (_, unit, _, spread) in enumerate(moments):
        energy = float(np.sum((np.asarray(found.blocks[m], np.float64) / unit) ** 2))
        facts[f"energy_kept_{m}"] = energy / spread if spread else 0.0
    return facts, found


def _mirrored(rows: Any) -> np.ndarray:
    """Zeros, each row and its negative: of mean zero, and measured like the rows."""
    return np.vstack([np.zeros_like(rows, shape=(1, rows.shape[1])), rows, -rows])


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
        say(f"interrupted; {stop.args[0] if stop.args else 'nothing was written'}.")
        return 130
    except UnfinishedError as error:
        say(str(error))
        return 1
    except (InputError, OSError, ValueError, TypeError, KeyError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        say(f"error: {in_own_words(text)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        say(f"error: the memory did not suffice: {error}")
        return 1
