"""The command line: align your own paired views, and reproduce the paper.

Files longer than memory are read and written a block of rows at a time. JAX takes seconds to
import: it is imported where it is used, so that usage errors do not wait for it.
"""

import os
import sys
from pathlib import Path

from perfalign_jax._console import InputError, UnfinishedError, advise, say
from perfalign_jax.cli._parser import make_parser

__all__ = ["main"]

_THREADS = 16  # of XLA's CPU client: with as few as cores, its batched factorisations can hang


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
    _keep_programs()
    granted = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    if len(granted) < _THREADS:
        os.environ.setdefault("NPROC", str(_THREADS))
    try:
        options = make_parser().parse_args(arguments)
        options.run(options)
        if sys.stdout is not None:  # closed by who started it
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt as stop:
        kept = " ".join(getattr(stop, "__notes__", ())).rstrip(".")
        say(f"interrupted; {stop.args[0] if stop.args else kept or 'nothing was written'}.")
        return 130
    except UnfinishedError as error:
        say(str(error))
        return 1
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError, ValueError, TypeError, KeyError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        say(f"error: {' '.join([advise(text), *getattr(error, '__notes__', ())])}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        say(
            f"error: the memory did not suffice: {error} Give views as .npy or .safetensors, which "
            "are read in blocks, or fewer of their rows."
        )
        return 1


def _keep_programs() -> None:
    """Keep what JAX compiles in the user's cache, unless the user says where: it takes longest."""
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = Path(cache) / "perfalign_jax"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and folder.is_absolute():
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
