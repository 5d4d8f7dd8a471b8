"""Long work in threads that ends early once its result is not needed any more."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

_thread = threading.local()


def stops_with(event: threading.Event) -> None:
    """Let `check_stopped` raise in this thread once ``event`` is set; the initializer of a pool of threads."""
    _thread.event = event


def check_stopped() -> None:
    """Call this between steps of work that can take minutes.

    Raises:
        CancelledError: the event of this thread is set.
    """
    event = getattr(_thread, "event", None)
    if event is not None and event.is_set():
        raise CancelledError
