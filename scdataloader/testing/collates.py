"""The laws of transforms and collate functions."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from scdataloader.genes.vocabulary import GeneVocabulary
from scdataloader.protocols import (
    BatchContext,
    Binds,
    Collate,
    Densifies,
    PerCell,
    Transform,
    WantsMatrices,
    WantsObs,
    makes_many,
)
from scdataloader.testing._checks import Checked, difference, global_random_state, global_seeds
from scdataloader.testing.data import named_batch
from scdataloader.types import CellBatch, CSRRows

_SHAPE = 24, 60
_CLASSES = {"cell_type": ("B cell", "T cell")}


def check_collate(
    collate: Collate,
    *,
    cells: CellBatch | None = None,
    context: BatchContext | None = None,
    obs: Mapping[str, ArrayLike] | None = None,
    batch_size: int = 8,
) -> None:
    """Check a collate function against the laws of `Collate`, and of each optional capability that it has.

    Args:
        collate: The collate function, not bound yet.
        cells: Cells that it can collate, at least two batches of them; default: 24 cells of 60 genes whose values name
            their row and column, with the columns and matrices that it wants.
        context: What it is bound to; default: that of the default cells.
        obs: {column: at least 24 values} of columns of obs that it wants.
        batch_size: Cells in a batch; the cells' last batch may be shorter.

    Raises:
        AssertionError: it breaks a law; the message names the member, what was expected and what came back.
        ValueError: it wants a column that is not in ``obs``.
    """
    about = Checked(_name(collate))
    context = context or _context(_SHAPE[1] if cells is None else cells.x.n_genes)
    bound = _bound(about, collate, context)
    about.require_members(bound, Collate)
    wanted = _wanted(about, bound, obs or {})
    check = _BatchCheck(about, bound, wanted if cells is None else cells, batch_size)
    check.pure()
    check.mapping()
    check.densified()
    if makes_many(bound):
        check.many()
    if isinstance(collate, Binds):
        again = _bound(about, collate, context)
        wrong = difference(check.made(0), check.made(0, again))
        about.require(wrong is None, "bind(context)", "a collate function that makes the same batches each time", wrong)


def check_transform(transform: Transform, *, cells: CellBatch | None = None, batch_size: int = 8) -> None:
    """Check a transform against the laws of `Transform`, and of `PerCell` if it is one.

    Args:
        transform: The transform.
        cells: Cells that it can change, at least two batches of them; default: as in `check_collate`.
        batch_size: Cells in a batch.

    Raises:
        AssertionError: it breaks a law; the message names the member, what was expected and what came back.
    """
    about = Checked(_name(transform))
    about.require_members(transform, Transform)
    check = _BatchCheck(about, transform, named_batch(*_SHAPE) if cells is None else cells, batch_size)
    check.pure()
    for number, batch in enumerate(check.batches):
        made = check.made(number)
        about.require(isinstance(made, CellBatch), "__call__", "a CellBatch", type(made).__name__)
        for name in ("row", "source", "labels", "position", "key"):
            wrong = difference(getattr(made, name), getattr(batch, name))
            about.require(wrong is None, "__call__", f"the {name} of the batch unchanged", wrong)
        _require_rows(about, made.x, len(batch))
    if isinstance(transform, PerCell) and transform.per_cell:
        whole = about.call("__call__", transform, check.cells, np.random.default_rng(len(check.batches)))
        start = 0
        for number, batch in enumerate(check.batches):
            wrong = difference(_fields(check.made(number)), _fields(whole.slice(start, start + len(batch))))
            about.require(wrong is None, "per_cell", "the same cells in a batch as among all, with any rng", wrong)
            start += len(batch)


def _name(plugin: object) -> str:
    return str(getattr(plugin, "__name__", type(plugin).__name__))


def _context(n_genes: int) -> BatchContext:
    ids = [f"ENSG{number:011d}" for number in range(n_genes)]
    return BatchContext(vocabulary=GeneVocabulary.from_dict({"human": ids}), labels=tuple(_CLASSES), classes=_CLASSES)


def _bound(about: Checked, collate: Any, context: BatchContext) -> Any:
    if not isinstance(collate, Binds):
        return collate
    bound = about.call("bind(context)", collate.bind, context)
    about.require(callable(bound), "bind(context)", "a collate function", bound)
    return bound


def _wanted(about: Checked, collate: Any, obs: Mapping[str, ArrayLike]) -> CellBatch:
    """A batch with the columns and matrices that a collate function wants."""
    columns = _names(about, "obs", collate.obs) if isinstance(collate, WantsObs) else []
    keys = _names(about, "matrices", collate.matrices) if isinstance(collate, WantsMatrices) else []
    unknown = [column for column in columns if column not in obs]
    if unknown:
        raise ValueError(
            f"{about.name} wants the obs columns {columns}, and no values of {unknown[0]!r} are given; call "
            f"check_collate(..., obs={{{unknown[0]!r}: [...]}}) with {_SHAPE[0]} values"
        )
    return named_batch(*_SHAPE, obs={column: obs[column] for column in columns}, matrices=keys)


def _names(about: Checked, member: str, names: Any) -> list[str]:
    are_names = not isinstance(names, str) and all(isinstance(name, str) for name in names)
    about.require(are_names, member, "a sequence of strings", names)
    return list(names)


@dataclass
class _BatchCheck:
    about: Checked
    function: Any
    cells: CellBatch
    batch_size: int

    @property
    def batches(self) -> list[CellBatch]:
        edges = [*range(0, len(self.cells), self.batch_size), len(self.cells)]
        return [self.cells.slice(start, stop) for start, stop in pairwise(edges) if start < stop]

    def made(self, number: int, function: Any = None) -> Any:
        """What a function makes of a batch, with a generator that depends on the number of the batch."""
        batch, rng = self.batches[number], np.random.default_rng(number)
        return self.about.call("__call__", function or self.function, batch, rng)

    def pure(self) -> None:
        """S7: the batch and the generator alone decide the result, and are the only arguments used."""
        about = self.about
        before = pickle.dumps(self.cells)
        first = self.made(0)
        kept = _copy(first)
        unchanged = difference(_fields(pickle.loads(before)), _fields(self.cells))  # noqa: S301
        about.require(unchanged is None, "__call__", "the batch unchanged", unchanged)
        self.made(len(self.batches) - 1)
        wrong = difference(kept, _fields(first))
        about.require(wrong is None, "__call__", "a result that later calls leave unchanged", wrong)
        wrong = difference(kept, _fields(self.made(0)))
        about.require(wrong is None, "__call__", "the same result for the same batch and generator", wrong)
        for seed in (1, 2):
            with global_seeds(seed):
                state = global_random_state()
                wrong = difference(kept, _fields(self.made(0)))
                untouched = global_random_state() == state
            about.require(wrong is None, "__call__", "the same result for any global random state", wrong)
            about.require(untouched, "__call__", "the global random generators unchanged", "another state of one")
        numbers = list(range(len(self.batches))) * 4
        expected = [_fields(self.made(number)) for number in range(len(self.batches))]
        for number, got in zip(numbers, about.in_threads("__call__", self.made, numbers), strict=True):
            wrong = difference(expected[number], _fields(got))
            about.require(wrong is None, "__call__, in threads", "the same result as in one thread", wrong)

    def mapping(self) -> None:
        for number in range(len(self.batches)):
            made = self.made(number)
            self.about.require(isinstance(made, Mapping), "__call__", "a mapping", type(made).__name__)
            self.about.require(all(isinstance(key, str) for key in made), "__call__", "strings as keys", list(made))

    def densified(self) -> None:
        """`Densifies`."""
        if not isinstance(self.function, Densifies):
            return
        made = self.made(0)
        for key in _names(self.about, "densify", self.function.densify):
            self.about.require(key in made, "densify", f"keys of the batch, which are {list(made)}", key)
            layout = made[key].layout if isinstance(made[key], torch.Tensor) else type(made[key]).__name__
            is_sparse = layout is torch.sparse_csr
            self.about.require(is_sparse, "densify", f"a sparse CSR tensor in {key!r}", layout)

    def many(self) -> None:
        """`CollatesMany`."""
        for n in (len(self.cells), self.batch_size, self.batch_size - 1):
            cells = self.cells.slice(0, n)
            got = self.about.call("many(cells, batch_size)", self.function.many, cells, self.batch_size)
            part = replace(self, cells=cells)
            n_batches = len(part.batches)
            self.about.require(len(got) == n_batches, "many(cells, batch_size)", f"{n_batches} batches", len(got))
            for number in range(n_batches):
                wrong = difference(dict(part.made(number)), dict(got[number]))
                self.about.require(wrong is None, "many(cells, batch_size)", "what calls one by one return", wrong)


def _fields(value: Any) -> Any:
    """A value that `difference` can compare: a batch as a mapping."""
    if isinstance(value, CellBatch):
        return {field.name: _fields(getattr(value, field.name)) for field in fields(value)}
    return value


def _copy(value: Any) -> Any:
    """The value as it is now."""
    return pickle.loads(pickle.dumps(_fields(value)))  # noqa: S301


def _require_rows(about: Checked, x: CSRRows, n: int) -> None:
    about.require(isinstance(x, CSRRows), "__call__: x", "CSRRows", type(x).__name__)
    about.require(len(x) == n, "__call__: x", f"{n} cells", f"{len(x)} cells")
    fit = x.indptr[0] == 0 and (np.diff(x.indptr) >= 0).all() and x.indptr[-1] == len(x.indices) == len(x.data)
    about.require(fit, "__call__: x.indptr", f"ascending offsets from 0 to {len(x.data)}", x.indptr)
    about.require(x.data.dtype == np.float32, "__call__: x.data", "float32", x.data.dtype)
    rows: Sequence[Any] = [x.indices[start:stop] for start, stop in pairwise(x.indptr)]
    ascend = all((np.diff(row) > 0).all() and (not len(row) or (row[0] >= 0 and row[-1] < x.n_genes)) for row in rows)
    about.require(ascend, "__call__: x.indices", f"ascending gene numbers below {x.n_genes} in each cell", x.indices)
