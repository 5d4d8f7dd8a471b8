"""Damage to records and to the index of a shard, in memory whose edges are guarded, with checksums that match."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

from scdataloader.kernels.records.decode import (
    BAD_INDEX,
    COMPLETE,
    IN_ORDER,
    MOST_PER_BYTE,
    OK,
    SHIFTED,
    LookUpTables,
    decode_records,
    locate_records,
)
from scdataloader.kernels.records.encode import COMPACT, SHORT, encode_rows, most_words
from scdataloader.kernels.records.format import F32, Records, parts_of, record_checksum
from scdataloader.kernels.records.short import is_short
from scdataloader.kernels.records.unpack import BAD_FORM, BAD_KIND, check_records, unpack_records
from scdataloader.types import RowBuffers
from tests.store.fuzz_files import FOOT, HEAD, change, places, put
from tests.store.guarded import Guarded
from tests.store.reference_store import read_record

N_GENES = 2048
"""Whole pages of int32, so that look-up tables touch both guarded pages."""
_SHIFT = 7
"""What one of the tables adds to each number."""
_CANARY = 48
"""Entries on each side of where a record may write."""
_MARK = -858993460


def sample_records() -> list[np.ndarray]:
    """Records of bytes, and packed and short ones, of every width, with and without exceptions, as 64-bit words."""
    return [*_samples(0), *_samples(COMPACT), *_samples(SHORT)]


def _samples(flag: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    made = []
    for n, top, n_large, n_far, floats in (
        (0, 1, 0, 0, False),
        (1, 5, 0, 1, False),
        (9, 5, 1, 0, False),
        (40, 200, 3, 3, False),
        (60, 40_000, 0, 0, False),
        (50, 40_000, 2, 2, False),
        (33, 1 << 32, 0, 3, False),
        (21, 1 << 32, 0, 3, True),
        (300, 256, 0, 0, False),
        (300, 100, 5, 4, False),
        (60, 16, 2, 3, False),
        (131, 20, 0, 1, False),
        (300, 18, 3, 4, False),
    ):
        gaps = rng.integers(0, 4, n)
        gaps[: n // 150] = 64
        gaps[rng.choice(n, n_far, replace=False)] = rng.integers(256, 300)
        if n_far:  # up to the very last gene
            gaps[np.argmax(gaps)] += N_GENES - n - gaps.sum()
        genes = (np.cumsum(gaps) + np.arange(n)).astype(np.int32)
        bits = rng.integers(1, top, n)
        bits[rng.choice(n, n_large, replace=False)] = 70_000
        words = np.empty(most_words(1, n), np.uint64)
        offsets, sizes = np.empty(1, np.int64), np.empty(1, np.uint32)
        order = np.arange(N_GENES, dtype=np.int32)
        n_words = encode_rows(
            np.array([0, n]), genes, bits.astype(np.uint32), order, floats | flag, 7, words, offsets, sizes
        )
        parts = parts_of(words[:n_words])
        assert (flag == COMPACT or is_short(words)) == parts.is_packed
        if not parts.is_packed:
            assert (parts.n_gaps, parts.n_large) == (n_far, n_large)
        if flag != SHORT or is_short(words):
            made.append(words[:n_words].copy())
    assert len(made) > 2
    return made


def _by_the_page(record: bytes, size: int, floats: bool) -> dict[int, str] | None:
    """{gene: value} of a record by the reference reader; None if it breaks a rule."""
    try:
        found = read_record(record, 7, floats)
    except (AssertionError, struct.error):
        return None
    if len(found) != size or any(gene >= N_GENES for gene in found):
        return None
    return {gene: str(value) for gene, value in found.items()}


class RecordFuzzer:
    """Decodes damaged records and shards, and sees that nothing outside of what is theirs is touched."""

    def __init__(self, shard: bytes) -> None:
        self._samples, self._shard = sample_records(), shard
        self._places = places(shard)
        self._record, self._whole = Guarded(1 << 16), Guarded(2 * len(shard))
        rng = np.random.default_rng(1)
        in_order = np.arange(N_GENES, dtype=np.int32)
        some = np.where(rng.random(N_GENES) < 0.5, in_order, -1).astype(np.int32)
        shuffled = rng.permutation(some).astype(np.int32)
        backwards = in_order[::-1].copy()
        # all that they may be
        luts = (
            (in_order, IN_ORDER | COMPLETE | SHIFTED),
            (in_order + _SHIFT, IN_ORDER | COMPLETE | SHIFTED),
            (in_order, IN_ORDER | COMPLETE),
            (some, IN_ORDER),
            (backwards, COMPLETE),
            (shuffled, 0),
        )
        self._luts = [(Guarded(4 * N_GENES).filled(lut, at_end=True), how) for lut, how in luts]
        self._out = [Guarded(1 << 20) for _ in range(2)]

    def run(self, case: dict[str, Any]) -> str:
        """What came of a case, in a word."""
        return self._shard_case(case) if case["sample"] < 0 else self._record_case(case)

    def _record_case(self, case: dict[str, Any]) -> str:
        words = self._samples[case["sample"] % len(self._samples)]
        parts = parts_of(words)
        floats = parts.code == F32
        content = bytearray(words.tobytes())
        size = int(words.view(np.uint32)[1])
        n_exceptions = parts.n_gaps + parts.n_large + (2 if is_short(words) else 0)  # with the rest of its header
        where = [(4, 4), (8, 4), (12, 4), *((at, 4) for at in range(16, 16 + 8 * n_exceptions, 4))]
        other = [(at, 1) for at in range(16 + 8 * n_exceptions, len(content))]
        where = where * (len(other) // len(where) + 1) + other
        for step in case["steps"]:
            change(content, where, step)
        content = content[: max(16, len(content) + 8 * case["longer"])]
        content += bytes(8 * max(0, case["longer"]))
        put(content, 0, 4, int(record_checksum(np.frombuffer(bytes(content), np.uint64), 7)))
        # As an index may say it.
        size = min(max(0, size + case["size"]), len(content) * MOST_PER_BYTE)
        for at_end in (True, False):
            placed = self._record.filled(np.frombuffer(bytes(content), np.uint8), at_end=at_end)
            address = np.array([placed.ctypes.data], np.int64)
            said, found = self._decode(address, np.array([len(content)]), np.array([size]), np.array([7]), floats)
            expected = _by_the_page(bytes(content), size, floats)
            assert found == expected, f"{found} is not what docs/explanation/store.md says, {expected}"
        return said

    def _decode(
        self, address: np.ndarray, length: np.ndarray, size: np.ndarray, cell: np.ndarray, floats: bool
    ) -> tuple[str, Any]:
        """Every way of decoding a record, with marks around its room; and its {gene: value} if it has no fault."""
        n = 1
        records = Records(cell, address, length, size)
        starts = np.zeros(n + 1, np.int64)
        np.cumsum(size + _CANARY, out=starts[1:])
        starts += _CANARY
        statuses, decoded = [], []
        for lut, how in self._luts:
            indices, data = (out.array(int(starts[-1]), np.int32, at_end=True) for out in self._out)
            indices[:], data[:] = _MARK, _MARK
            checked, sizes, depth = np.zeros(n // 8 + 1, np.uint8), np.zeros(n, np.int64), np.zeros(n, np.float32)
            tables = LookUpTables(lut, np.array([0, N_GENES]), np.array([how], np.uint8), N_GENES + _SHIFT)
            out = RowBuffers(starts, indices, data.view(np.float32), sizes, depth)
            first = np.zeros(n, np.int64)
            status, _ = decode_records(records, np.arange(n), checked, tables, first, np.arange(n), False, out)
            self._see(starts, size, indices, data, "decode_records")
            statuses.append(status)
            if status == OK:
                room = slice(starts[0], starts[0] + sizes[0])
                decoded.append((lut, indices[room].copy(), data[room].copy()))
        indices, data = (out.array(int(starts[-1]), np.int32, at_end=True) for out in self._out)
        indices[:], data[:] = _MARK, _MARK
        order = self._luts[0][0]
        statuses.append(unpack_records(records, order, floats, starts[:-1], indices, data.view(np.uint32))[0])
        self._see(starts, size, indices, data, "unpack_records")
        per_record = np.zeros(n, np.uint8)
        known = np.zeros(n, np.int64), np.ones(N_GENES, np.bool_), np.array([0, N_GENES])
        check_records(records, np.full(n, N_GENES), *known, floats | COMPACT | SHORT, per_record)
        statuses.append(OK if per_record[0] in {BAD_FORM, BAD_KIND} else per_record[0])
        assert len(set(statuses)) == 1, f"decoders disagree: {statuses}"
        room = slice(starts[0], starts[0] + size[0])
        if statuses[0] == OK:
            words = np.frombuffer(ctypes.string_at(int(address[0]), int(length[0])), np.uint64)
            is_float = parts_of(words).code == F32
            as_float = data[room] if is_float else data[room].view(np.uint32).astype(np.float32).view(np.int32)
            self._see_same(decoded, indices[room], as_float)
        values = data[room].view(np.float32 if floats else np.uint32).tolist()
        found = dict(zip(indices[room].tolist(), map(str, values), strict=True))  # as text, since NaN equals nothing
        return ("read" if statuses[0] == OK else "refused"), found if per_record[0] == OK else None

    @staticmethod
    def _see(starts: np.ndarray, size: np.ndarray, indices: np.ndarray, data: np.ndarray, who: str) -> None:
        outside = np.ones(len(indices), bool)
        for start, n in zip(starts[:-1], size, strict=True):
            outside[start : start + n] = False
        for name, out in (("indices", indices), ("data", data)):
            assert (out[outside] == _MARK).all(), f"{who} writes {name} outside of a record's slot"

    @staticmethod
    def _see_same(decoded: list[tuple[np.ndarray, ...]], genes: np.ndarray, bits: np.ndarray) -> None:
        """What was decoded is, in the genes of each table, what was unpacked."""
        assert len(genes) == 0 or (genes[0] >= 0 and genes[-1] < N_GENES and (np.diff(genes) > 0).all()), "disorder"
        for lut, found, found_bits in decoded:
            own = lut[genes]
            order = np.argsort(own)[np.count_nonzero(own < 0) :]
            assert (found == own[order]).all(), "decoded genes are not those of the record"
            assert (found_bits == bits[order]).all(), "decoded values are not those of the record"

    def _shard_case(self, case: dict[str, Any]) -> str:
        """A shard at one edge of the memory, damaged in its index, its records, or both, and decoded whole."""
        content = bytearray(self._shard)
        n, index = (int.from_bytes(self._shard[len(self._shard) - at :][:8], "little") for at in (32, 8))
        first = index if case["sample"] % 2 else HEAD  # in the index alone, or in records as well
        where = [place for place in self._places if first <= place[0] < len(content) - FOOT]
        for step in case["steps"]:
            change(content, where, step)
        placed = self._whole.filled(np.frombuffer(bytes(content), np.uint8), at_end=bool(case["size"] % 2))
        at, base = np.array([index]), np.array([placed.ctypes.data])
        cells = np.arange(n)
        said = []
        for cell in cells:
            one, *found = np.array([cell]), *(np.empty(1, np.int64) for _ in range(3))
            if locate_records(base, at, np.array([n]), np.zeros(1, np.int64), Records(one, *found)) >= 0:
                said.append(BAD_INDEX)
                continue
            address, length, size = found
            assert base[0] <= address[0] <= base[0] + index - length[0], "a record beyond the index"
            assert length[0] >= 16
            assert 0 <= size[0] <= length[0] * MOST_PER_BYTE
            words = placed[address[0] - base[0] :][: length[0]].view(np.uint64)
            words.view(np.uint32)[0] = record_checksum(words, cell)
            said.append(self._decode(address, length, size, one, False)[0])
        return "read" if set(said) == {"read"} else "refused"
