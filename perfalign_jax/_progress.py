"""How far long work has come, told to whoever listens; by itself the library prints nothing."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["listen", "tell"]

_listener: ContextVar[Callable[[float], None] | None] = ContextVar("_listener", default=None)


@contextlib.contextmanager
def listen(hear: Callable[[float], None]) -> Iterator[None]:
    """Call ``hear`` with the share that is done, whenever work within tells it."""
    token = _listener.set(hear)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(share: float) -> None:
    """Say which share of the work is done, an estimate from 0 to 1."""
    hear = _listener.get()
    if hear is not None:
        hear(share)
