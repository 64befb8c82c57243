"""One fit by many processes, each with rows of its own, under JAX's distributed runtime."""

import argparse
import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

from perfalign_jax._console import InputError, advise, say
from perfalign_jax.arrays import RowReader

__all__ = ["add_hosts", "joined", "merge"]


def add_hosts(command: argparse.ArgumentParser) -> None:
    """Add the options of a fit by many processes."""
    command.add_argument(
        "--hosts",
        metavar="WHERE",
        help="this is one of many processes, each with files of its own rows; their moments are "
        "merged. auto under SLURM, Open MPI, Kubernetes and on Cloud TPU, or "
        "ADDRESS:PORT,COUNT,NUMBER, the address that of process 0, which writes the alignment",
    )
    command.add_argument(
        "--wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long --hosts waits for a process that does not come (default: %(default)g)",
    )


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Join the other processes: the number of this one, and of all of them.

    A process that fails leaves at once: JAX would have it wait for the others.
    """
    if options.hosts is None:
        yield 0, 1
        return
    place = _read_place(options.hosts)
    if not 0 < options.wait < 1e6:
        raise InputError(f"--wait must be between 0 and a million seconds, got {options.wait:g}.")
    import jax

    # JAX would end a process that waits in vain with a trace of its own: it is told to wait longer.
    longer = int(options.wait) + 60
    late = f"the other processes of --hosts {options.hosts} did not come within {options.wait:g} s."
    timer = threading.Timer(options.wait, _leave, (late,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **place, initialization_timeout=longer, heartbeat_timeout_seconds=longer
        )
    except ValueError as error:
        raise InputError(f"--hosts {options.hosts} finds no cluster here ({error}).") from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--hosts {options.hosts} cannot be joined: {reason}.") from None
    finally:
        timer.cancel()
    try:
        yield jax.process_index(), jax.process_count()
    except KeyboardInterrupt:
        _leave("interrupted.", 130)
    except (
        InputError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        MemoryError,
        RuntimeError,
    ) as error:
        notes = " ".join(getattr(error, "__notes__", []))
        _leave(f"{advise(str(error))} {notes}".rstrip())


def _read_place(hosts: str) -> dict[str, Any]:
    if hosts == "auto":
        return {}
    found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", hosts)
    if not found or not int(found[3]) < int(found[2]):
        raise InputError(
            "--hosts must be auto or ADDRESS:PORT,COUNT,NUMBER with a number below the count, such "
            f"as 10.0.0.1:1234,4,0, got {hosts}."
        )
    address, count, number = found.groups()
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
    }


def _leave(why: str, code: int = 2) -> None:
    say(why if code == 130 else f"error: {why}")
    sys.stderr.flush()
    os._exit(code)


def merge(options: argparse.Namespace, rows: RowReader, parts: int | None = None) -> Any:
    """The moments of the rows of all processes: a statistic, or a list of parts."""
    from perfalign_jax import sharded, streaming

    kind: Any = "factor" if parts is None else "gram"
    state = streaming.survey(rows, kind=kind, parts=parts, checkpoint=options.checkpoint)
    try:
        with _said_on_stderr():
            return sharded.merge_hosts(state, timeout=options.wait)
    except (TimeoutError, ConnectionError) as error:
        if options.checkpoint is not None:
            error.add_note(f"The moments of this process are kept in {options.checkpoint}.")
        raise


@contextlib.contextmanager
def _said_on_stderr() -> Iterator[None]:
    """What libraries say on stdout, where it would stand in the JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
