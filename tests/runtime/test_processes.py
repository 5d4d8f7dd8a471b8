"""Process pool: results, errors, deaths, progress, interrupts."""

import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress

import pytest

from scdataloader.runtime.processes import ProcessPool, WorkerDiedError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # of libraries in the processes


def _divide(a, b):
    return a / b


def _die(code):
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def _count(n, report):
    for i in range(n):
        report(i)
    return n


def _wait_for(path):
    path.with_suffix(".begun").touch()
    while not path.exists():
        time.sleep(0.01)


class _OnlyHereError(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


def _raise_unpicklable():
    raise _OnlyHereError("of this process")


def test_results_errors_and_progress():
    with ProcessPool(2) as pool:
        assert [future.result() for future in [pool.submit(_divide, n, b=2) for n in range(5)]] == [0, 0.5, 1, 1.5, 2]
        with pytest.raises(ZeroDivisionError) as raised:
            pool.submit(_divide, 1, 0).result()
        assert "in _divide" in str(raised.value.__cause__)  # the traceback of the other process
        with pytest.raises(RuntimeError, match="_OnlyHereError: of this process"):
            pool.submit(_raise_unpicklable).result()
        with pytest.raises((AttributeError, TypeError), match=r"lambda|pickle"):
            pool.submit(lambda: 1).result()
        seen = []
        assert pool.submit_with_progress(_count, 4, on_progress=seen.append).result() == 4
        assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("code", "why"),
    [(3, "exit code 3"), (-signal.SIGKILL, "SIGKILL, perhaps for lack of memory"), (-signal.SIGBUS, "shorter")],
)
def test_a_death_fails_one_call(code, why):
    with ProcessPool(1) as pool:
        before, deadly, after = pool.submit(_divide, 4, 2), pool.submit(_die, code), pool.submit(_divide, 6, 2)
        assert (before.result(), after.result()) == (2, 3)
        with pytest.raises(WorkerDiedError, match=why):
            deadly.result()


def test_an_exception_terminates_running_calls_and_cancels_waiting_ones(tmp_path):
    never = tmp_path / "never"
    with suppress(KeyboardInterrupt), ProcessPool(1) as pool:
        running, waiting = pool.submit(_wait_for, never), pool.submit(_divide, 1, 1)
        while not never.with_suffix(".begun").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    with pytest.raises(WorkerDiedError, match="SIGTERM"):
        running.result()
    with pytest.raises(CancelledError):
        waiting.result()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scdataloader-pool")]


def test_processes_receive_no_interrupts():
    """The terminal interrupts all processes; one that is still starting would end with a traceback."""
    with ProcessPool(1) as pool:
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
