"""Where the genes of several sources fall in one vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.records.decode import COMPLETE, IN_ORDER, SHIFTED
from scdataloader.store.gene_spaces import GenePlaces


class GeneTables:
    """Where the genes of several sources fall in a vocabulary, for one compiled loop over cells of all of them.

    Whatever gene of its space a record has, what its table says lies below ``n_genes``. A gene that the source has not,
    which no whole store has in its records, gets the number of another one, or -1.
    """

    def __init__(self, luts: Sequence[NDArray[np.int32]], places: Sequence[GenePlaces], n_genes: int) -> None:
        """Join look-up tables: ``luts[p][g]`` is the number of gene g of source p in a vocabulary of ``n_genes``.

        ``places[p]`` says where in its space that gene is.
        """
        self.n_genes = n_genes
        tables: list[NDArray[np.int32]] = []
        how, number, of_part = [], dict[tuple[int, bytes], int](), []
        for lut, own in zip(luts, places, strict=True):
            flags = _how(lut, own, n_genes)
            table = _table(lut, own, flags)
            # Thousands of sources may have the same one.
            at = number.setdefault((flags, blake2b(table.data).digest()), len(tables))
            if at == len(tables):
                tables.append(table)
                how.append(flags)
            of_part.append(at)
        self.of_part = np.array(of_part, np.int64)
        """``(P,)`` the table of each source, by number."""
        self.luts = np.concatenate([*tables, np.empty(0, np.int32)])
        """The T distinct tables, end to end."""
        self.start = np.zeros(len(tables) + 1, np.int64)
        """``(T + 1,)`` where each begins."""
        np.cumsum([len(table) for table in tables], out=self.start[1:])
        self.how = np.array(how, np.uint8)
        """``(T,)`` how the genes that the sources have fall in the vocabulary: `IN_ORDER`, `COMPLETE`, `SHIFTED`."""


def _how(lut: NDArray[np.int32], own: GenePlaces, n_genes: int) -> int:
    kept, shift = lut[lut >= 0], lut - own.place
    in_order = bool((np.diff(kept) > 0).all())
    complete = 0 < len(kept) == len(lut)
    shifted = complete and bool((shift == shift[0]).all() and 0 <= shift[0] <= n_genes - own.n_space)
    return IN_ORDER * in_order | COMPLETE * complete | SHIFTED * shifted


def _table(lut: NDArray[np.int32], own: GenePlaces, how: int) -> NDArray[np.int32]:
    """``(n_space,)`` the vocabulary's number of each gene of the space."""
    numbers = np.arange(own.n_space, dtype=np.int32)
    if how & SHIFTED:
        shifted: NDArray[np.int32] = numbers + (lut[0] - own.place[0])
        return shifted
    if how & COMPLETE and how & IN_ORDER:  # what is looked up is not asked whether it is -1
        return lut[np.maximum(np.searchsorted(own.place, numbers, side="right") - 1, 0)]
    return own.spread(lut, -1)
