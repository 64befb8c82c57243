"""The command that runs the paper's experiments."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from perfalign_jax._console import InputError, UnfinishedError, show

__all__ = ["reproduce"]


def reproduce(options: argparse.Namespace) -> None:
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
            aside=options.json,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is finished is kept") from None
    if options.json:
        facts = {"out": str(options.out), "report": str(options.out / "report.html")}
        show("", facts | {"failed": failed}, [], as_json=True)
    if failed:
        raise UnfinishedError(f"failed: {', '.join(failed)}.")


def _checkout() -> Any:
    """Return what runs the experiments: they are beside the package in a checkout, or here."""
    for root in (Path(__file__).parents[2], Path.cwd()):
        if (root / "experiments" / "_kit").is_dir():
            sys.path.insert(0, str(root / "experiments"))
            return importlib.import_module("_kit.reproduce")
    raise InputError(
        "reproduce runs the experiments of a checkout, and none was found beside the installed "
        "package or in the current folder."
    )
