"""Format of shards: files of records, written once from front to end and read through memory maps.

| bytes        | content                                                                                            |
|--------------|----------------------------------------------------------------------------------------------------|
| 8            | ``SCDCELLS``                                                                                       |
| 4            | version of the format: 4 if records may be short, 3 if they may be packed; of earlier releases, 2  |
|              | with bit 2 below, 1 without                                                                        |
| 4            | bit 0: values are float32, not counts; bit 1: cells of several sources; bit 2: values are float32, |
|              | and a cell whose values are counts may be stored as one of counts                                  |
| …            | records, each at a multiple of 8; see `kernels.records.format`                                      |
| 8 (n + 1)    | the index: offset of each record from the beginning of the file, and of the end of the last        |
| 4 n, to 8    | number of values of each record                                                                    |
| 4 n, to 8    | with bit 1: number of the source of each cell                                                      |
| 16           | BLAKE2b of all bytes before the index                                                              |
| 8, 8, 8, 8   | n, number of values, genes of the gene space (0 with bit 1), offset of the index                   |

Numbers are little-endian and unsigned. The manifest has the BLAKE2b of the last 48 bytes, which identifies the shard,
and of all bytes from the index on, which is checked before sizes or sources of all cells are read. Locating a single
cell does not read the whole index: the checksum of its record includes its number.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.records.encode import COUNTS, EITHER, FLOATS
from scdataloader.store.manifest import Kind

HEAD = struct.Struct("<8sII")
DIGEST_BYTES = 16
FOOT = struct.Struct(f"<{DIGEST_BYTES}sQQQQ")
FIRST_RECORD = HEAD.size
"""Offset of the first record."""
MAGIC = b"SCDCELLS"
HAS_FLOATS, IS_MIXED, MAY_BE_FLOATS = 1, 2, 4
"""Bits of the flags."""
KINDS: dict[Kind, int] = {"counts": COUNTS, "float32": FLOATS, "either": EITHER}
"""Kinds of values, as in kernels."""
FLAG_OF = {COUNTS: 0, FLOATS: HAS_FLOATS, EITHER: MAY_BE_FLOATS}


def index_bytes(n_cells: int, mixed: bool) -> int:  # noqa: FBT001
    """Bytes of the index of a shard and of the footer after it."""
    return 8 * (n_cells + 1) + (4 * n_cells + 7) // 8 * 8 * (1 + mixed) + FOOT.size


def checksum(content: bytes | memoryview) -> str:
    """The hexadecimal BLAKE2b of a part of a shard, as in the manifest."""
    return blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def edges_of(stored: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values of "obsp/…" from those in records; see `stored_edges`."""
    return (stored.view(np.uint32) - np.uint32(1)).view(np.float32)


def stored_edges(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values of "obsp/…" as they are in records, which cannot hold a zero: their bits plus 1. NaN is one value."""
    bits = np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)
    return (bits + np.uint32(1)).view(np.float32)
