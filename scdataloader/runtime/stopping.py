"""Long work in threads that ends early once its result is not needed any more."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError


class _Thread(threading.local):
    event: threading.Event | None = None


_thread = _Thread()


def stops_with(event: threading.Event) -> None:
    """Let `check_stopped` raise in this thread once ``event`` is set; the initializer of a pool of threads."""
    _thread.event = event


def check_stopped() -> None:
    """Call this between steps of work that can take minutes.

    Raises:
        CancelledError: the event of this thread is set.
    """
    if _thread.event is not None and _thread.event.is_set():
        raise CancelledError
