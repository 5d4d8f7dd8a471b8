"""A digest that tells sources apart and recognises copies, without reading them whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

from scdataloader.sources.anndata.layout import MatrixLayout
from scdataloader.sources.anndata.matrix import StoredMatrix

_PLACES = 256
_BYTES = 2048


def content_digest(
    layout: MatrixLayout, genes: Sequence[object], obs_columns: Sequence[str], stored: StoredMatrix
) -> str:
    """Hexadecimal digest of what a source holds, wherever its file lies and whenever it was written.

    It covers the shape, the offsets, the gene ids and the names of the obs columns in full, and 256 evenly strided
    pieces of 2 KB of the values and gene numbers as they are stored: compressed otherwise, the same has another digest.
    """
    digest = blake2b(digest_size=16)
    head = [1, layout.key, layout.kind, layout.shape, [array.shape for array in stored.arrays], list(obs_columns)]
    digest.update(json.dumps([head, [str(gene) for gene in genes]]).encode())
    if stored.offsets is not None:
        digest.update(stored.offsets.tobytes())
    for array in stored.arrays:
        for piece in array.sample(_PLACES, _BYTES):
            digest.update(piece)
    return digest.hexdigest()
