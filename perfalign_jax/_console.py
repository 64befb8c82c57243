"""What the commands say: errors and notes in one line, tables, JSON, and words of their own."""

import contextlib
import difflib
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Hint", "InputError", "UnfinishedError", "advise", "after_writing", "check_out"]
__all__ += [
    "computing",
    "counting",
    "following",
    "in_own_words",
    "say",
    "say_notes",
    "show",
    "tell",
    "waiting",
]


_TELLING = 0.05  # a smaller share does not tell how long the rest takes


class InputError(Exception):
    """Bad input, in one line."""


class UnfinishedError(Exception):
    """The result is written, but what was to be said about it is not."""


class Hint(UserWarning):
    """What the command line itself advises."""


def check_out(out: Path, suffix: str, inputs: tuple[str, ...], name: str = "--out") -> None:
    from perfalign_jax.serialization import check_target

    if out.suffix.lower() != suffix:
        raise InputError(f"{name} must end in {suffix}, got {out}.")
    for spec in inputs:
        # Also file.npz:name: what is before the colon is the file.
        for path in (Path(spec), Path(spec.rpartition(":")[0])):
            if path.is_file() and out.exists() and out.samefile(path):
                raise InputError(f"{name} {out} would overwrite an input.")
    check_target(out)


@contextlib.contextmanager
def computing() -> Iterator[list[warnings.WarningMessage]]:
    """Compute each array in the dtype it is stored in, and collect what is warned of."""
    with waiting("starting"):
        import jax

        from perfalign_jax.types import CollapseWarning, OverfitWarning, PrecisionWarning

    with jax.enable_x64(True), warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("ignore")
        for category in (PrecisionWarning, CollapseWarning, OverfitWarning, Hint):
            warnings.simplefilter("always", category)
        yield log


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Show in a terminal what is being done and since when, where nobody knows for how long."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(doing, total=None)
        yield


@contextlib.contextmanager
def following(doing: str) -> Iterator[None]:
    """Show in a terminal which share is done, as the work tells it, and how long the rest takes.

    Its few and uneven steps are foretold from the start of the work, not from the last step.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from perfalign_jax._progress import listen

    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)

        def hear(share: float) -> None:
            if share < _TELLING:
                return
            left = (time.monotonic() - begun) * (1 / share - 1)
            about = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
            text = f"{doing}, about {about} left"
            bar.update(task, total=1.0, completed=share, description=text)

        with listen(hear):
            yield


@contextlib.contextmanager
def counting(doing: str, total: int) -> Iterator[Callable[[], None]]:
    """Show in a terminal how much is done and how long the rest takes; call it at every step."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def after_writing(done: str) -> Iterator[None]:
    """Say, where the rest fails or is interrupted, what is there all the same."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(done) from None
    except BrokenPipeError:  # whoever read the output has enough of it
        raise
    except Exception as error:
        raise UnfinishedError(f"{done}, but not described: {error}") from None


# The library's words, and what the same is called here.
_WORDS = (
    (r"select='energy' \(k=None takes", "--select energy (without -k it takes"),
    (r"k=None with select='energy'", "--select energy without -k"),
    (r"\(see diagnose\)", "(see perfalign diagnose)"),
    (r"\bdiagnose\(\)", "perfalign diagnose"),
    (r"\bbaselines\.ridge_cca\b", "perfalign align"),
    (r"\b(select|method)='(\w+)'", r"--\1 \2"),
    (r"\b(with|or|any) k\b", r"\1 -k"),
    (r"\bcenter=True\b", "--center"),
    (r"^rtol must", "--rtol must"),
    (r"^k must", "-k must"),
    (r"^(top|folds|ridge|mask|sides|groups|weights|source|target) must", r"--\1 must"),
)


def in_own_words(text: str) -> str:
    if text.startswith("Alignment("):  # what it is, in one line; words follow
        first, end, rest = text.partition("\n")
        return first + end + (in_own_words(rest) if rest else "")
    for pattern, replacement in _WORDS:
        text = re.sub(pattern, replacement, text)
    return text


# What to do about an error, where its own words do not say.
_ADVICE = (
    (r"must be finite, but row", "Drop those rows, or align with --mask if views are missing."),
    (r"has no variance", "Leave it out, or look at how it was made."),
    (r"must have evidence", "Make one with perfalign align."),
    (r"holds no alignment", "Write one with perfalign align or fit."),
    (r"sides? of the alignment, but both have", "Name two with --source and --target."),
    (r"columns like view (\d+)", "Is it another view? See --source, --target and --view."),
)


def advise(error: str) -> str:
    """An error in the command line's words, and what to do about it."""
    text = in_own_words(error)
    lost = re.fullmatch(r"there is no file (.*)\.", text)
    if lost:
        path = Path(lost[1])
        others = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, others, 1, 0.75)
        near = [] if path.exists() else near  # a device, or no file at all
        return f"{text} Is it {path.parent / near[0]}?" if near else text
    advice = [say for pattern, say in _ADVICE if re.search(pattern, text)]
    return " ".join([text, *advice[:1]])


def _printable(text: str) -> str:
    """One line; what would steer a terminal is shown as its escape."""
    return _escape(" ".join(text.split(None)))


def _escape(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def tell(text: str) -> None:
    """Print lines in which nothing steers a terminal, whatever file the words came from."""
    print("\n".join(map(_escape, text.split("\n"))))


def say(text: str) -> None:
    print(f"perfalign: {_printable(text)}", file=sys.stderr)


def say_notes(notes: list[warnings.WarningMessage]) -> None:
    for note in notes:
        word = "note" if note.category.__name__ == "PrecisionWarning" else "warning"
        say(f"{word}: {in_own_words(str(note.message))}")


_LABELS = {
    "out": "file",
    "n": "pairs n",
    "d1": "features d1",
    "d2": "features d2",
    "k": "latent dimensions k",
    "cmae": "CMAE (Eq. 8), data units",
    "ncmae": "NCMAE, of latents of length one",
    "relative_cmae": "relative CMAE, of the mean latent length",
    "effective_rank": "effective rank of the latents",
    "linear_cka": "linear CKA",
    "center": "centred",
}


def show(
    title: str, facts: dict[str, Any], notes: list[warnings.WarningMessage], *, as_json: bool
) -> None:
    if as_json:
        said = {"notes": [in_own_words(str(note.message)) for note in notes]}
        clean = {_json_name(name): _json_value(value) for name, value in (facts | said).items()}
        print(json.dumps(clean, indent=1, allow_nan=False))
        return
    say_notes(notes)
    labels = list(map(_label, facts))
    print(_printable(title))
    for label, value in zip(labels, facts.values(), strict=True):
        text = f"{value:,}" if type(value) is int else str(value)
        text = f"{value:.4g}" if isinstance(value, float) else text
        print(f"{label:{max(map(len, labels))}}  {_printable(text)}")


def _label(name: str) -> str:
    known = re.fullmatch(r"(energy_kept|effective_rank)_(\d+(?:_\d+)*)", name)
    if known is None:
        return _LABELS.get(name, name.replace("_", " "))
    view = f"view {known[2].replace('_', ' and ')}'s"
    if known[1] == "energy_kept":
        return f"share of {view} energy in its latents"
    return f"effective rank of {view} latents"


def _json_name(name: str) -> str:
    return name.replace("R@", "recall_at_").replace(",", "").replace(" ", "_")


def _json_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if isinstance(value, dict):
        return {name: _json_value(v) for name, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
