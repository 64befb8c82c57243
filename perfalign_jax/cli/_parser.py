"""The commands, their options and examples, and completion in the shell."""

import argparse
import difflib
import importlib.metadata
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import perfalign_jax
from perfalign_jax._console import InputError
from perfalign_jax.cli import _making, _using
from perfalign_jax.cli._hosts import add_hosts
from perfalign_jax.cli._reproducing import reproduce

__all__ = ["SHELLS", "make_parser"]

SHELLS = ("bash", "zsh", "tcsh")
_ALIGNMENT = "alignment file, of perfalign align or fit"
_FILES = """\
views are files of paired rows, counted from 0: .npy, .npz or .safetensors
(file.npz:name picks an array). A quoted pattern, 'x-*.npy', stands for shards of
one view in natural order, and - for a list of them on stdin, a path a line.
Everything is said on stdout, notes, errors and progress on stderr."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        bad = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        near = difflib.get_close_matches(bad[1], re.findall(r"[\w-]+", bad[2]), 1) if bad else []
        advice = f" Did you mean {near[0]}?" if near else ""
        if re.search(r"unrecognized arguments: .*\.(npy|npz|safetensors)", message):
            advice = " Put a pattern of shards in quotes, so that the shell leaves it as it is."
        raise InputError(f"{message}; see {self.prog} --help.{advice}")


class _Completion(argparse.Action):
    """Print what makes a shell complete the commands, their options and files."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        import shtab

        print(shtab.complete(parser, given[1]))
        parser.exit()


def _is_file(action: argparse.Action) -> bool:
    named = "FILE" in str(action.metavar or "")
    return not action.option_strings or action.type is Path or named


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ``perfalign``; ``run`` of what it parses is the command's function."""
    parser = _Parser(
        prog="perfalign",
        description="Perfect multimodal alignment in closed form.",
        epilog=_FILES,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = (
        f"%(prog)s {perfalign_jax.__version__} (JAX {importlib.metadata.version('jax')}, Python "
        f"{platform.python_version()})"
    )
    parser.add_argument("--version", action="version", version=version, help="print the version")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        help="print a script that makes this shell complete commands, options and files",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[..., None], *examples: str) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=text,
            epilog="\n".join(["examples:", *(f"  perfalign {example}" for example in examples)]),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    _add_making(command)
    _add_using(command)
    again = command(reproduce, "reproduce --quick", "reproduce --only fig3_synthetic --json")
    again.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="folder of results (default: %(default)s)",
    )
    again.add_argument("--quick", action="store_true", help="small, in minutes; not for comparison")
    again.add_argument("--full", action="store_true", help="the most careful versions")
    again.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="name of an experiment to run; may be given several times",
    )
    for added in commands.choices.values():
        added.add_argument("--json", action="store_true", help="print JSON instead of a table")
        for action in added._actions:
            if _is_file(action):  # where shtab looks: names of files are completed
                action.complete = {  # type: ignore[attr-defined]
                    "bash": "_shtab_compgen_files",
                    "zsh": "_files",
                    "tcsh": "f",
                }
    return parser


def _add_making(command: Callable[..., argparse.ArgumentParser]) -> None:
    fit = command(
        _making.fit,
        "fit x1.npy x2.npy -k 64",
        "fit data.npz:image data.npz:text --select energy --out a.safetensors",
        "fit part0-x1.npy part0-x2.npy -k 64 --hosts 10.0.0.1:1234,4,0",
    )
    for m in range(2):
        fit.add_argument(f"x{m + 1}", help=f"view {m}, shape (n, d{m + 1})")
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
    _add_numerics(fit)
    _add_checkpoint(fit)
    add_hosts(fit)

    align = command(
        _making.align,
        "align x1.npy x2.npy --out a.safetensors --report page.html",
        "align x1.npy x2.npy x3.npy --sides 0,1/2",
        "align 'image-*.npy' 'text-*.npy' --wrong-pairs",
    )
    align.add_argument("views", nargs="+", metavar="FILE", help="two or more views, paired rows")
    align.add_argument(
        "--lift",
        choices=("auto", "none", "linear", "gaussian", "laplacian", "polynomial", "arc_cosine"),
        default="auto",
        help="features before the alignment (default: %(default)s tries linear and gaussian)",
    )
    text = "ridge, relative to the mean eigenvalue of each side (default: chosen)"
    _add_number(align, "--ridge", kind=float, text=text)
    _add_number(align, "-k", "--k", kind=int, text="latent dimensions at most (default: chosen)")
    text = (
        "views put together, such as 0,1/2 for views 0 and 1 against view 2 (default: each alone)"
    )
    align.add_argument("--sides", metavar="VIEWS", help=text)
    text = "array of n labels, such as subjects: their rows are held out together"
    align.add_argument("--groups", metavar="FILE", help=text)
    text = "array (n, M), True where a row has a view; or nan: views are NaN where they are missing"
    align.add_argument("--mask", metavar="FILE", help=text)
    text = "some pairs may be wrong: fit to the most credible, as many as are right by estimate"
    align.add_argument("--wrong-pairs", action="store_true", help=text)
    _add_number(
        align, "--folds", kind=int, text="parts that rows are held out in, 2 to 100 (default: 5)"
    )
    text = "a page to write that shows the alignment; opens in any browser, offline"
    align.add_argument("--report", type=Path, metavar="FILE.html", help=text)
    text = "seed of the page's permutation test (default: %(default)s)"
    _add_number(align, "--seed", kind=int, text=text, default=0)
    _add_checkpoint(align)
    add_hosts(align)
    _add_out(align, "alignment.safetensors", "the alignment file to write")

    diagnose = command(
        _making.diagnose, "diagnose x1.npy x2.npy", "diagnose a.safetensors x1.npy x2.npy --json"
    )
    text = "two or more views; before them, or alone, an alignment file may stand"
    diagnose.add_argument("files", nargs="+", metavar="FILE", help=text)
    _add_numerics(diagnose)


def _add_using(command: Callable[..., argparse.ArgumentParser]) -> None:
    added = command(
        _using.transform,
        "transform a.safetensors x2.npy --view 1 --out z2.npy",
        "transform a.safetensors x1.npy,x2.npy --view 0,1",
        "transform a.safetensors - --view 0 < list-of-shards.txt",
    )
    _add_rows(added, x="rows of the view, shape (n, d)")
    text = "which view x is, counted from 0; several with commas between, and as many files"
    added.add_argument(
        "--view", type=_read_views("--view"), metavar="INT", required=True, help=text
    )
    _add_out(added, "latents.npy", "the latents to write, shape (n, k)")

    added = command(_using.predict, "predict a.safetensors old.npy --out new.npy")
    _add_rows(added, x="rows of the source, shape (n, d)")
    _add_sides(added, predicted=True)
    _add_out(added, "predicted.npy", "the predicted rows to write, shape (n, d)")

    added = command(
        _using.search,
        "search a.safetensors queries.npy candidates.npy --top 10 --out hits.npz",
        "search a.safetensors queries.npy 'index-*.npy' --source 1 --target 0",
    )
    _add_rows(
        added,
        queries="rows of the source view, shape (n, d)",
        candidates="rows of the target view, shape (m, d)",
    )
    _add_sides(added)
    _add_number(added, "--top", kind=int, text="candidates to name (default: 10, or all)")
    _add_out(added, "hits.npz", "indices, log_odds and probability to write")

    added = command(
        _using.pairs,
        "pairs a.safetensors x1.npy x2.npy --show 20",
        "pairs a.safetensors x1.npy,x2.npy x3.npy   # of align --sides 0,1/2",
    )
    _add_both(added)
    _add_number(
        added,
        "--show",
        kind=int,
        text="least credible pairs to print (default: %(default)s)",
        default=10,
    )
    _add_out(added, "pairs.npy", "log-odds of the pairs to write, shape (n,)")

    added = command(_using.score, "score a.safetensors x1.npy x2.npy --json")
    _add_both(added)


def _add_rows(command: argparse.ArgumentParser, **files: str) -> None:
    command.add_argument("alignment", help=_ALIGNMENT)
    for name, text in files.items():
        command.add_argument(name, help=text)


def _add_both(command: argparse.ArgumentParser) -> None:
    _add_rows(command, x1="rows of the source, shape (n, d)", x2="as many rows of the target")
    _add_sides(command)


def _add_sides(command: argparse.ArgumentParser, *, predicted: bool = False) -> None:
    for name, which in (("source", "first"), ("target", "second")):
        option = f"--{name}"
        text = (
            f"which view the {name} is, counted from 0; several with commas between, and as many "
            f"files (default: the alignment's {which} side)"
        )
        if predicted and name == "target":
            text = "which view to predict, counted from 0 (default: the first of another side)"
        command.add_argument(option, type=_read_views(option), metavar="VIEW", help=text)


def _read_views(option: str) -> Callable[[str], tuple[int, ...]]:
    def read(given: str) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in given.split(","))
        except ValueError:
            raise InputError(f"{option} must be an integer, got {given!r}.") from None

    return read


def _add_numerics(command: argparse.ArgumentParser) -> None:
    command.add_argument("--center", action="store_true", help="remove the means first")
    text = "share of the largest singular value that counts as zero (default: rounding)"
    _add_number(command, "--rtol", kind=float, text=text)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    text = "where reading long files is kept: an interrupted run goes on from there"
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)


def _add_out(command: argparse.ArgumentParser, default: str, text: str) -> None:
    command.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar=f"FILE{Path(default).suffix}",
        help=f"{text} (default: %(default)s)",
    )


def _add_number(
    command: argparse.ArgumentParser, *names: str, kind: type, text: str, default: Any = None
) -> None:
    def read(given: str) -> Any:
        try:
            return kind(given)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise InputError(f"{names[0]} must be {what}, got {given!r}.") from None

    metavar = "INT" if kind is int else "FLOAT"
    command.add_argument(*names, type=read, metavar=metavar, default=default, help=text)
