"""A process that has imported everything, and forks children that convert until they are killed.

Reads one command per line, as JSON: {sources, out, options, and when to kill}; answers with one line.
"""

import json
import os
import signal
import sys
import time
from functools import wraps

from scdataloader.store.convert import convert
from scdataloader.store.writing import tasks

EVENTS = ("replace", "unlink", "fsync", "mkdir", "rmdir", "ftruncate")
"""Calls of the system that change what is on the disk, beside writing into files."""


def count_events(stop_before):
    """Have this process kill itself before its event of that number; without one, count them all."""
    seen = []

    def counted(function):
        @wraps(function)
        def call(*args, **kwargs):
            if len(seen) == stop_before:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for name in EVENTS:
        setattr(os, name, counted(getattr(os, name)))
    return seen


def run(command):
    """Convert in a fork of this process; how it ended, how long it took, and how many events there were."""
    reading, writing = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            seen = count_events(command.get("stop_before"))
            convert(command["sources"], command["out"], n_processes=1, progress=False, **command["options"])
            os.write(writing, json.dumps(len(seen)).encode())
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    os.close(writing)
    if command.get("after") is not None:
        time.sleep(command["after"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        events = pipe.read()
    return {
        "killed": os.WIFSIGNALED(status),
        "failed": os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0,
        "events": int(events) if events else None,
        "seconds": time.perf_counter() - start,
    }


def main():
    """Answer commands until there are no more."""
    tasks._CELLS_PER_BLOCK = 3
    tasks._SECONDS_PER_NOTE = 0.0
    for line in sys.stdin:
        command = json.loads(line)
        if command.get("here"):  # so that all is compiled and loaded before the first fork
            convert(command["sources"], command["out"], n_processes=1, progress=False, **command["options"])
            sys.stdout.write("null\n")
            sys.stdout.flush()
            continue
        sys.stdout.write(json.dumps(run(command)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
