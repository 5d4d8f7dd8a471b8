"""Pages of a sparse copy of remote files: which are present, which are to be fetched, and copies of ranges of them.

Pages are numbered through the whole copy. 64 pages are a segment: one word of presence bits, the time of its last use,
and the number of changes to it, which is odd while its pages are removed.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.files import c_function
from scdataloader.kernels.machine.memory import prefetch_bytes

PAGE, SEGMENT = 4096, 64
"""Bytes of a page; pages of a segment."""
_ONE = np.uint64(1)
_AHEAD = 1024
"""Bytes of the next range that are prefetched."""
_memmove = c_function("memmove", "uintp", "uintp", "uintp", "uintp")


@nb.njit(nogil=True, cache=True)
def missing_runs(
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    present: NDArray[np.uint64],
    coming: NDArray[np.uint64],
    gap: int,
    most: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(r, 2)`` first and last page of each run of pages to fetch, ascending; marks them in ``coming``.

    The second result is the pages of the ranges that were in ``coming`` before, ascending.

    Args:
        begin: ``(m,)`` first bytes of ranges, ascending.
        end: ``(m,)`` bytes behind them.
        present: Bits of the pages that are present.
        coming: Bits of the pages that are being fetched.
        gap: Most pages between two pages of one run.
        most: Most pages of a run.
    """
    total = 0
    for i in range(len(begin)):
        total += (end[i] - 1) // PAGE - begin[i] // PAGE + 1
    runs, n, following = np.empty((total, 2), np.int64), 0, 0
    waited, n_waited = np.empty(total, np.int64), 0
    for i in range(len(begin)):
        for page in range(max(following, begin[i] // PAGE), (end[i] - 1) // PAGE + 1):
            word, bit = page // SEGMENT, _ONE << np.uint64(page % SEGMENT)
            if present[word] & bit:
                continue
            if coming[word] & bit:
                waited[n_waited] = page
                n_waited += 1
                continue
            coming[word] |= bit
            if n and page - runs[n - 1, 1] <= gap + 1 and page - runs[n - 1, 0] < most:
                runs[n - 1, 1] = page
            else:
                runs[n, 0] = runs[n, 1] = page
                n += 1
        following = max(following, (end[i] - 1) // PAGE + 1)
    return runs[:n].copy(), waited[:n_waited].copy()


@nb.njit(nogil=True, cache=True)
def touch(begin: NDArray[np.int64], end: NDArray[np.int64], now: int, used: NDArray[np.uint32]) -> None:
    """Set the time of the last use of the segments of ranges."""
    for i in range(len(begin)):
        for segment in range(begin[i] // (PAGE * SEGMENT), (end[i] - 1) // (PAGE * SEGMENT) + 1):
            used[segment] = max(used[segment], np.uint32(now))


@nb.njit(nogil=True, cache=True)
def look(
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    present: NDArray[np.uint64],
    changes: NDArray[np.uint32],
    seen: NDArray[np.int64],
) -> None:
    """Set ``seen`` to the sum of the changes of the segments of ranges; -1 if a page is missing or being removed."""
    for i in range(len(begin)):
        first, last = begin[i] // PAGE, (end[i] - 1) // PAGE
        seen[i] = 0
        for segment in range(first // SEGMENT, last // SEGMENT + 1):
            low, high = max(first, segment * SEGMENT) % SEGMENT, min(last, segment * SEGMENT + SEGMENT - 1) % SEGMENT
            wanted = (~np.uint64(0) >> np.uint64(63 - high)) & (~np.uint64(0) << np.uint64(low))
            # read once, before the bits: a removal in between must show in the second look
            n_changes = changes[segment]
            if n_changes & np.uint32(1) or present[segment] & wanted != wanted:
                seen[i] = -1
                break
            seen[i] += np.int64(n_changes)


@nb.njit(nogil=True, cache=True)
def copy_ranges(
    base: int,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    seen: NDArray[np.int64],
    starts: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Copy the ranges of the memory at ``base`` that `look` has ``seen``, to ``starts`` of ``out``."""
    for i in range(len(begin)):
        if i + 1 < len(begin):
            prefetch_bytes(base + begin[i + 1], min(end[i + 1] - begin[i + 1], _AHEAD))
        if seen[i] >= 0:
            _memmove(np.uintp(out.ctypes.data + starts[i]), np.uintp(base + begin[i]), np.uintp(end[i] - begin[i]))


@nb.njit(nogil=True, cache=True)
def set_pages(first: int, last: int, bits: NDArray[np.uint64], value: bool) -> int:
    """Set the bits of pages ``first`` to ``last``; returns how many changed."""
    n = 0
    for page in range(first, last + 1):
        word, bit = page // SEGMENT, _ONE << np.uint64(page % SEGMENT)
        if bool(bits[word] & bit) != value:
            bits[word] ^= bit
            n += 1
    return n


@nb.njit(nogil=True, cache=True)
def absent_runs(first: int, last: int, present: NDArray[np.uint64]) -> NDArray[np.int64]:
    """``(r, 2)`` first and last page of each run of absent pages among ``first`` to ``last``."""
    runs, n, before = np.empty((last - first + 1, 2), np.int64), 0, False
    for page in range(first, last + 1):
        absent = not present[page // SEGMENT] & (_ONE << np.uint64(page % SEGMENT))
        if absent and before:
            runs[n - 1, 1] = page
        elif absent:
            runs[n, 0] = runs[n, 1] = page
            n += 1
        before = absent
    return runs[:n].copy()
