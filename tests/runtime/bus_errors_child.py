"""Bus errors in forked processes, each in its own situation; prints how each of them ended as JSON."""

import faulthandler
import json
import mmap
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scdataloader.errors import SourceChangedError
from scdataloader.runtime import bus_errors
from scdataloader.runtime.mapping import MappedFile, map_file

N_BYTES = 64 * mmap.PAGESIZE
FOLDER = Path(sys.argv[1])
TRACE = (FOLDER / "trace").open("w")


def made(name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(b"\1" * N_BYTES)
    return path


def watched(name: str) -> MappedFile:
    return map_file(made(name))


def survives(content: MappedFile, name: str) -> None:
    os.truncate(FOLDER / name, 3 * mmap.PAGESIZE)
    values = np.frombuffer(content, np.uint8)
    with ThreadPoolExecutor(4) as threads:
        last = list(threads.map(lambda page: int(values[page * mmap.PAGESIZE]), range(4, 64)))
    assert last == [0] * 60
    with pytest.raises(SourceChangedError, match=f"{FOLDER / name} cannot be read at byte"):
        content.check()


def other_map() -> None:
    """A file that someone else has mapped."""
    values = np.memmap(made("other"), np.uint8, "r")
    os.truncate(FOLDER / "other", 0)
    int(values[5 * mmap.PAGESIZE])


def own() -> None:
    survives(watched("own"), "own")


def inherited() -> None:
    """The map is the parent's, and this process has another handler, as those of torch's loaders."""
    faulthandler.enable(TRACE)
    bus_errors.after_fork()
    survives(INHERITED, "inherited")


def reused() -> None:
    """The number of a map that was closed goes to the next one."""
    survives(watched("first"), "first")
    second = watched("second")
    second.check()
    survives(second, "second")


def another_after_own() -> None:
    own()
    other_map()


def with_faulthandler() -> None:
    faulthandler.enable(TRACE)
    own()
    other_map()


def with_later_faulthandler() -> None:
    content = watched("early")
    faulthandler.enable(TRACE)
    own()
    survives(content, "early")
    other_map()


def sent() -> None:
    own()
    os.kill(os.getpid(), signal.SIGBUS)


def sent_to_a_handler() -> None:
    seen = []
    signal.signal(signal.SIGBUS, lambda number, _: seen.append(number))
    own()
    os.kill(os.getpid(), signal.SIGBUS)
    assert seen == [signal.SIGBUS]


def ended(situation) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            situation()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


INHERITED = watched("inherited")
SITUATIONS = (
    own, inherited, reused, other_map, another_after_own, with_faulthandler, with_later_faulthandler, sent,
    sent_to_a_handler,
)  # fmt: skip
json.dump({situation.__name__: ended(situation) for situation in SITUATIONS}, sys.stdout)
