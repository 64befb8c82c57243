"""How an experiment starts: its options, and what has to be set before JAX computes."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from perfalign_jax.types import CollapseWarning, OverfitWarning


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that every experiment script takes.

    Attributes:
        out: folder for the numbers (``<name>.json``) and figures (``figures/``).
        quick: a small version that runs in seconds; its numbers are not for comparison.
        full: the most careful version, where the default had to be reduced to save time.
        seed: seed of everything random.
    """

    out: Path = Path("results")
    quick: bool = False
    full: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ValueError("quick and full exclude each other; give one of them.")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out must be a folder, got the file {self.out}.")

    @property
    def scale(self) -> str:
        """Name of the chosen size: quick, default or full."""
        return "quick" if self.quick else "full" if self.full else "default"


T = TypeVar("T")


def start(main: Callable[[T], Any], options: type[T], about: str | None, *, bits: int = 64) -> None:
    """Run an experiment with the options of the command line, in numbers of 64 or 32 bits.

    Where the user says nothing else, jaxlib's pool gets as many threads as it needs not to wait for
    itself (``experiments/benchmarks/thread_pool.py``). Collapse and overfitting are what the
    experiments measure, on held-out pairs: they need no warning.
    """
    for category in (CollapseWarning, OverfitWarning):
        warnings.simplefilter("ignore", category)
    jax.config.update("jax_enable_x64", bits == 64)
    os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))
    main(tyro.cli(options, description=about))
