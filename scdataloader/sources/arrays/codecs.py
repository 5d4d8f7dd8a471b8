"""Decoders of stored chunks: HDF5 filters and zarr codecs, run without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from scdataloader.kernels.rows.gather import unshuffle

Buffer = bytes | NDArray[np.uint8]
Decode = Callable[[Buffer], Buffer]

# the stubs of isal declare its exception as an instance
_DAMAGED = (cast("type[Exception]", isal_zlib.IsalError), EOFError, OSError, RuntimeError)
_DEFLATE, _SHUFFLE, _FLETCHER32, _ZSTD = 1, 2, 3, 32015
ZLIB, GZIP = 15, 31
"""``wbits`` of a zlib stream (HDF5's deflate) and of a gzip stream (zarr's)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Codecs:
    """The steps that decode a chunk, first to last."""

    steps: tuple[Decode, ...] = ()
    """Each takes all bytes and returns all bytes."""
    inflate: int | None = None
    """``wbits`` of a deflate stream that is decompressed before ``steps``."""

    def decode(self, raw: Buffer, size: int, wanted: int) -> Buffer:
        """The first ``wanted`` of the ``size`` decoded bytes of ``raw``; more where fewer would not be faster.

        Raises:
            ValueError: the bytes are damaged.
        """
        try:
            out = self._decode(raw, size, wanted)
        except _DAMAGED as error:
            raise ValueError(str(error)) from error
        got = len(out)
        if got < wanted:
            raise ValueError(f"it decodes to {got} bytes, expected {wanted}")
        return out

    def _decode(self, raw: Buffer, size: int, wanted: int) -> Buffer:
        out: Buffer = raw
        if self.inflate is not None:
            if wanted < size and not self.steps:
                # Decompression stops after the last requested row; the checksum of a whole stream only is verified.
                return isal_zlib.decompressobj(self.inflate).decompress(raw, wanted)
            out = isal_zlib.decompress(raw, self.inflate, size)
        for step in self.steps:
            out = step(out)
        return out


def undo_shuffle(item_size: int) -> Decode:
    """Decoder of the HDF5 shuffle filter for items of ``item_size`` bytes."""

    def decode(raw: Buffer) -> Buffer:
        shuffled = np.frombuffer(raw, np.uint8)
        out = np.empty_like(shuffled)
        unshuffle(shuffled, item_size, out)
        return out

    return decode


def by_numcodecs(codec: Any) -> Decode:
    """Decoder of a `numcodecs` codec."""

    def decode(raw: Buffer) -> Buffer:
        return np.frombuffer(codec.decode(raw), np.uint8)

    return decode


def hdf5_codecs(filters: Sequence[tuple[int, int]]) -> Codecs | None:
    """Decoder of HDF5 filters, given as (filter number, item size) in the order of writing.

    None if the HDF5 library has to decode one of them.
    """
    from numcodecs import Zstd
    from numcodecs.fletcher32 import Fletcher32

    steps: list[Decode] = []
    inflate = None
    for number, item_size in reversed(filters):
        if number == _DEFLATE and not steps:
            inflate = ZLIB
        elif number == _DEFLATE:
            steps.append(lambda raw: isal_zlib.decompress(raw, ZLIB))
        elif number == _SHUFFLE:
            steps.append(undo_shuffle(item_size))
        elif number == _FLETCHER32:
            steps.append(by_numcodecs(Fletcher32()))
        elif number == _ZSTD:
            steps.append(by_numcodecs(Zstd()))
        else:
            return None
    return Codecs(steps=tuple(steps), inflate=inflate)


def zarr_v2_codecs(compressor: Any, filters: Any) -> Codecs | None:
    """Decoder of the compressor of a zarr v2 array; None if zarr has to decode it."""
    if filters:
        return None
    if compressor is None:
        return Codecs()
    if compressor.codec_id in ("zlib", "gzip"):
        return Codecs(inflate=ZLIB if compressor.codec_id == "zlib" else GZIP)
    return Codecs(steps=(by_numcodecs(compressor),))


def zarr_v3_codecs(codecs: Sequence[dict[str, Any]]) -> Codecs | None:
    """Decoder of zarr v3 codecs, given as in their metadata, in the order of writing; None if zarr must."""
    from numcodecs import Blosc, Zstd

    match [codec["name"] for codec in codecs]:
        case ["bytes"]:
            return Codecs()
        case ["bytes", "gzip"]:
            return Codecs(inflate=GZIP)
        case ["bytes", "zstd"]:
            return Codecs(steps=(by_numcodecs(Zstd()),))
        case ["bytes", "blosc"]:
            return Codecs(steps=(by_numcodecs(Blosc()),))
        case _:
            return None
