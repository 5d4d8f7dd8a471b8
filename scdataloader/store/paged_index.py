"""Index of shards in a mirror, read by pages as long as few of their cells are drawn.

An entry of a page is taken only if the record that it leads to has the checksum of its cell, whose number is included,
and states the size of the entry: so entry and record are right if they are of the right file. The file of a shard is
recognised by its last bytes, which contain the checksum of all its records, and from then on each request requires its
ETag. Once as much was spent on pages as all of an index takes, or if the server states no ETag, all of it is fetched
and its own checksum verified.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import proxy

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.machine.pages import PAGE
from scdataloader.kernels.records.decode import wrong_checksums
from scdataloader.kernels.records.encode import most_words
from scdataloader.kernels.records.format import Records
from scdataloader.runtime.bytes import MirroredBytes

if TYPE_CHECKING:
    from scdataloader.store.mapped_shards import MappedShards

PAGE_COST = 128 << 10
"""Bytes whose transfer takes about as long as the requests for a page of offsets and one of sizes."""
TRIES = 5
"""Times that bytes with a wrong checksum are fetched."""
_COPIED = 1 << 20
"""Bytes of records that are compared at once."""
_SHARD = 40
"""Bits of the number of a page, below those of its shard."""


class PagedIndex:
    """The index of the shards of one matrix. Thread-safe: threads at most do the same twice."""

    def __init__(self, shards: MappedShards, files: MirroredBytes, foot_bytes: int) -> None:
        """``foot_bytes`` are those at the end of a file that identify it."""
        self._shards, self._files, self._foot_bytes = proxy(shards), files, foot_bytes  # no cycle, which delays closing
        self._spent = np.zeros(len(shards.index), np.int64)
        self._is_known = np.zeros(len(shards.index), np.bool_)
        """Shards whose files were recognised."""

    def locate(self, shard: NDArray[np.integer], records: Records) -> NDArray[np.bool_]:
        """Fill in address, length and size of ``records``; returns which have impossible entries in a right index.

        Raises:
            SourceChangedError: the file of a shard was written meanwhile.
            StoreFormatError: it is not that of the manifest; names it.
        """
        self._prepare(shard, records.cell)
        impossible: NDArray[np.bool_] = self._shards.read_entries(shard, records)
        left = np.flatnonzero(~self._shards.is_checked[shard])
        for _ in range(TRIES):
            if not len(left):
                break
            left = left[self._are_wrong(shard[left], _some(records, left), impossible[left])]
            self._read_again(shard, records, impossible, left)
        if len(left):
            self._shards.check_indexes(np.unique(shard[left]))
            self._read_again(shard, records, impossible, left)
        return impossible

    def _prepare(self, shard: NDArray[np.integer], cell: NDArray[np.int64]) -> None:
        """Fetch the whole index of those shards for which this is cheaper by now, and recognise the others."""
        loose = ~self._shards.is_checked[shard]
        if not loose.any():
            return
        page = np.unique(shard[loose].astype(np.int64) << _SHARD | 8 * cell[loose] // PAGE)
        numbers, n_pages = np.unique(page >> _SHARD, return_counts=True)
        self._spent[numbers] += n_pages * PAGE_COST
        is_paged = self._spent[numbers] < (self._shards.n_bytes - self._shards.index)[numbers]
        paged = numbers[is_paged & ~self._is_known[numbers]]
        whole = np.concatenate([numbers[~is_paged], paged[~self._recognise(paged)]])
        self._shards.check_indexes(whole)
        self._files.pin(whole, [None] * len(whole))  # requests with an ETag take more time
        left = ~self._shards.is_checked[shard]
        self._shards.start_entries(shard[left], cell[left])

    def _recognise(self, numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether requests of shards can require the ETag of the right file, and its index stays in the cache."""
        kept = [self._files.keep(number, int(self._shards.index[number])) for number in numbers.tolist()]
        left, etags = numbers[np.array(kept, np.bool_)], dict[int, str | None]()
        for _ in range(TRIES):
            ends = self._files.ends(left, self._foot_bytes) if len(left) else []
            found = zip(left.tolist(), ends, strict=True)
            etags |= {number: etag for number, (foot, etag) in found if self._shards.is_foot(number, foot)}
            left = np.setdiff1d(left, list(etags))
        stated = np.array([number for number, etag in etags.items() if etag is not None], np.int64)
        self._files.pin(stated, [etags[number] for number in stated.tolist()])
        self._is_known[stated] = True
        known: NDArray[np.bool_] = self._is_known[numbers]
        return known

    def _are_wrong(
        self, shard: NDArray[np.integer], records: Records, impossible: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Which entries and records contradict each other; both are then fetched anew when they are next read."""
        fewest = 8 * most_words(1, 0)
        most = fewest + (8 * most_words(1, 1) - fewest) * records.size  # a wrong entry may ask for the whole file
        wrong: NDArray[np.bool_] = impossible | (records.length > most)
        there = np.flatnonzero(~wrong)
        self._files.start(shard[there], records.address[there], records.length[there])
        before = np.cumsum(records.length[there])
        cuts = np.searchsorted(before, np.arange(_COPIED, before[-1] if len(there) else 0, _COPIED))
        for part in np.split(there, np.unique(cuts)):
            some = _some(records, part)
            content, starts = self._files.copied(shard[part], some.address, some.length)
            size = content.view(np.uint32)[starts // 4 + 1]
            copies = some._replace(address=content.ctypes.data + starts)
            wrong[part] = wrong_checksums(copies) | (size != some.size)
        fetched = np.flatnonzero(wrong[there])
        self._files.forget(shard[there][fetched], records.address[there][fetched], records.length[there][fetched])
        self._shards.forget_entries(shard[wrong], records.cell[wrong])
        return wrong

    def _read_again(
        self, shard: NDArray[np.integer], records: Records, impossible: NDArray[np.bool_], which: NDArray[np.int64]
    ) -> None:
        """Fill in ``which`` of ``records`` and their part of ``impossible`` anew."""
        some = _some(records, which)
        impossible[which] = self._shards.read_entries(shard[which], some)
        for whole, part in zip(records[1:], some[1:], strict=True):
            whole[which] = part


def _some(records: Records, which: NDArray[np.int64]) -> Records:
    return Records(*(array[which] for array in records))
