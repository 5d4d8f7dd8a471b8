"""Survival of bus errors: a page of a mapped file that cannot be read ends in an error, not in the signal SIGBUS.

The system sends SIGBUS to a thread that touches a page of a map behind the end of its file, which another process has
truncated, or a page that the disk fails to deliver. Nothing can be raised there: the thread may be in the middle of a
compiled loop. So a handler replaces the whole map by zeros, records the address, and lets the thread continue; the
reader of a map calls `fault` before the values are used.

The handler is compiled code (`numba.cfunc`) that calls only ``mmap``, ``sigaction`` and ``raise``: it takes no lock
and needs no Python, whatever the thread holds. It is installed whenever a file is mapped and another handler is in
place, for example that of `faulthandler`. A fault at any other address, and a signal that was sent, are left to that
other handler.

Linux on x86-64 and ARM64 only. Elsewhere nothing is handled, and such a page ends the process.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import platform
import signal
import sys
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba as nb
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]

from scdataloader.kernels.machine.files import c_function
from scdataloader.kernels.machine.memory import TABLE_OF_MAPS, pointer, table_of_maps

IS_HANDLED = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
"""Whether this system is one whose structures (below) the handler knows."""

# /usr/include/asm-generic/mman-common.h, bits/mman.h
_PROT_READ, _MAP_FIXED = 1, 0x10
_ZEROS = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_CODE, _ADDRESS = 2, 2
"""Places in ``siginfo_t``: ``si_code`` among 32-bit words, ``si_addr`` among 64-bit words (asm-generic/siginfo.h)."""
_SIGINFO, _ONSTACK, _RESTART = 0x4, 0x08000000, 0x10000000
"""Flags of ``sigaction`` (bits/sigaction.h)."""
_ACTION_WORDS = 19
"""64-bit words of a ``struct sigaction``."""

_HAS_FAULTED = 20
"""Place in the table of a word that is not 0 once a map has had a fault."""
_MOST_MAPS = 1 << 20
_HEAD, _SLOT = 32, 3
_table = np.zeros(_HEAD + _SLOT * _MOST_MAPS, np.uint64)  # pages that are not used take no memory
"""The previous action, then for each map: first address, first address behind it, address of a fault or 0."""
_words = _table.data
_new_slots = itertools.count()
_free_slots: list[int] = []
_compiled: list[Any] = []
"""Keeps the handler alive, also one of a thread that compiled it at the same time as another."""


class _Action(ctypes.Structure):
    """``struct sigaction`` of the C library (bits/sigaction.h)."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def watch(address: int, n_bytes: int) -> int:
    """Survive bus errors in a map of ``n_bytes`` at ``address``; returns a number for `fault` and `unwatch`."""
    _install()
    try:
        slot = _free_slots.pop()
    except IndexError:
        slot = next(_new_slots)
    if slot >= _MOST_MAPS:
        raise OSError(
            f"this process has mapped {_MOST_MAPS:,} files, the most that are supported; close() some sources"
        )
    at = _HEAD + _SLOT * slot
    _words[at], _words[at + 2] = address, 0
    _words[at + 1] = address + -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    return slot


def unwatch(slot: int) -> None:
    """Forget a map that is about to be closed."""
    _words[_HEAD + _SLOT * slot + 1] = 0
    _free_slots.append(slot)


def has_faulted() -> bool:
    """Whether a byte of any map could not be read since this process began."""
    return bool(_words[_HAS_FAULTED])


def fault(slot: int) -> int | None:
    """Offset in a map of a byte that could not be read, since when all of it reads as zeros; None if there is none."""
    at = _HEAD + _SLOT * slot
    return _words[at + 2] - _words[at] if _words[at + 2] else None


def after_fork() -> None:
    """Handle bus errors of inherited maps in a forked process, which may have installed another handler."""
    if _compiled:
        _install()


def _install() -> None:
    """Make the handler the first that gets the signal."""
    if not IS_HANDLED:
        return
    action, before = ctypes.CDLL(None).sigaction, _Action()
    action(signal.SIGBUS, None, ctypes.byref(before))
    if before.handler != _handler():
        ctypes.memmove(_table.ctypes.data, ctypes.byref(before), ctypes.sizeof(before))
        own = _Action(handler=_handler(), flags=_SIGINFO | _ONSTACK | _RESTART)
        action(signal.SIGBUS, ctypes.byref(own), None)


@cache
def _handler() -> int:
    """Address of the compiled handler."""
    llvm.add_symbol(TABLE_OF_MAPS, _table.ctypes.data)
    compiled = nb.cfunc(types.void(types.int32, types.uintp, types.uintp), cache=True)(_on_bus_error)
    _compiled.append(compiled)
    address: Any = compiled.address
    return int(address)


_map_zeros = c_function("mmap", "uintp", "uintp", "uintp", "int32", "int32", "int32", "int64")
_set_action = c_function("sigaction", "int32", "int32", "uintp", "uintp")
_raise = c_function("raise", "int32", "int32")


def _on_bus_error(number: int, info: int, _: int) -> None:
    """Handle the signal; compiled by `_handler`. ``info`` is the address of a ``siginfo_t``."""
    code = carray(pointer(info), (_CODE + 1,), np.int32)[_CODE]
    address = carray(pointer(info), (_ADDRESS + 1,), np.uint64)[_ADDRESS]
    table = carray(pointer(table_of_maps()), (_HEAD + _SLOT * _MOST_MAPS,), np.uint64)
    if code > 0:  # by the kernel, not sent
        at = _HEAD
        while table[at]:
            begin, end = table[at], table[at + 1]
            if begin <= address < end:
                table[at + 2] = table[_HAS_FAULTED] = address
                if _map_zeros(begin, end - begin, _PROT_READ, _ZEROS, -1, 0) == begin:
                    return
            at += _SLOT
    # Hand over to the action before: a fault occurs again, a sent signal is sent again. The default action follows if
    # that one leads back here.
    _set_action(number, table_of_maps(), np.uintp(0))
    table[:_ACTION_WORDS] = 0
    if code <= 0:
        _raise(number)
