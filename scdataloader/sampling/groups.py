"""Sampling plan of sets: cells that share columns, followed by controls that match them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.kernels.draws.classes import class_sizes
from scdataloader.kernels.draws.quotas import MOST_DRAWS
from scdataloader.kernels.draws.random import derive_key, seed_of
from scdataloader.kernels.draws.sets import choose_group_quotas, choose_groups, fill_controls, fill_sets
from scdataloader.labels.encoder import LabelEncoder
from scdataloader.protocols import TrainingCells
from scdataloader.runtime.messages import counted, shown, suggestion
from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.draws import guide_of
from scdataloader.sampling.samplers import Subset, check_range
from scdataloader.sampling.weights import Scheme, check_scheme, class_tree, class_weights

__all__ = ["EverySet", "GroupClasses", "GroupedSampling", "MatchedControls", "SetSampler"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GroupedSampling:
    """Training cells drawn in sets: cells of one group, then controls that match them, of the same split.

    A group has all cells of the same labels in the columns ``by``. No cell repeats in a set, unless its group has fewer
    cells than the set: then each is drawn equally often or once more. Batches hold whole sets; ``batch_size`` counts
    cells, so it is a multiple of ``size + n_controls``.

    Args:
        by: Columns that the cells of a set share. "source" is the source of a cell, and "corpus" its corpus, unless obs
            has such a column.
        size: Cells of a set, without its controls.
        scheme: Weight of a group by its cells, as the classes of `Sampling`.
        tau: Exponent of the power scheme.
        saturation: s of the saturating scheme, in cells.
        num_sets: Sets in one epoch over all ranks; None is the number that has as many cells as all groups together.
        replacement: Whether sets are drawn independently. Otherwise each group gets its share of the sets of an epoch
            to within one; its cells, in random order, are divided into sets, of which the last is completed from the
            first, and divided anew when they are used up.
        controls: Which cells are controls: {column: one value, or several}, as in {"perturbation": "non-targeting"}.
            They are in no group, unless ``controls_as_targets``.
        n_controls: Controls of each set; None is one for each of its cells. Control j is for cell j modulo ``size``.
        match: Columns in which a control has the labels of its cell; None is the columns ``by`` without those of
            ``controls``.
        fallback: Fewer columns, for cells without any control that matches in ``match``; an empty list takes any
            control. None refuses such cells.
        controls_as_targets: Whether controls also form groups, with controls of their own; a cell can then be a control
            of itself.

    Raises:
        ValueError: an option is out of its range, or would have no effect.
    """

    by: list[str] | str
    size: int
    scheme: Scheme = "natural"
    tau: float = 0.5
    saturation: float = 100.0
    num_sets: int | None = None
    replacement: bool = True
    # lists and strings first: the command line takes the first type that fits
    controls: dict[str, list[str | bool | float] | str | bool | float] | None = None
    n_controls: int | None = None
    match: list[str] | str | None = None
    fallback: list[str] | str | None = None
    controls_as_targets: bool = False

    def __post_init__(self) -> None:
        check_scheme(self.scheme, self.tau, self.saturation)
        for name in ("size", "num_sets", "n_controls"):
            n = getattr(self, name)
            if n is not None and n < 1:
                raise ValueError(f"{name} must be 1 or more, not {n}")
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"by must name at least one column, and each once; got {self.by!r}")
        if self.controls is None:
            given = {"n_controls": self.n_controls, "match": self.match, "fallback": self.fallback}
            given["controls_as_targets"] = self.controls_as_targets or None
            idle = [name for name, value in given.items() if value is not None]
            if idle:
                raise ValueError(f"{' and '.join(idle)} need controls; say which cells those are, as in {_EXAMPLE}")
        elif not self.controls:
            raise ValueError(f"controls names no column; use None for no controls, or say which they are: {_EXAMPLE}")
        if self.fallback is not None and not set(_listed(self.fallback)) < set(self._matched):
            raise ValueError(
                f"fallback must be some of the columns of match, {self._matched}, and not all; got {self.fallback!r}"
            )

    @property
    def columns(self) -> list[str]:
        """``by`` as a list."""
        return _listed(self.by)

    @property
    def _matched(self) -> list[str]:
        """``match`` as a list, with its default."""
        if self.match is None:
            return [column for column in self.columns if column not in (self.controls or {})]
        return _listed(self.match)

    @property
    def _n_controls(self) -> int:
        """Controls of a set."""
        return 0 if self.controls is None else self.n_controls or self.size

    @property
    def evaluation(self) -> EverySet:
        """The plan of validation and test cells: each group in as many sets as hold all of its cells."""
        return EverySet(sampling=self)

    def describe(self, cells: TrainingCells) -> GroupClasses:
        """The groups, and the share of each in the draws, controls included.

        Raises:
            KeyError: a column is in no source.
            ValueError: see `sampler`.
        """
        return self.groups(cells)

    def sampler(self, cells: TrainingCells, *, seed: int = 0, global_batch_size: int = 1) -> Subset:  # noqa: ARG002
        """The sampler of a training run, which draws among ``cells.rows``.

        Raises:
            KeyError: a column is in no source.
            ValueError: no cell is in a group, no cell is a control, a cell has no control that matches, or the scheme
                is ``tree`` and not exactly one column has an ontology.
        """
        groups = self.groups(cells)
        small = np.flatnonzero((groups.n_targets > 0) & (groups.n_targets < self.size))
        if len(small):
            logger.warning(
                "sets of %s repeat cells of %s with fewer: %s",
                counted(self.size, "cell"),
                counted(len(small), "group"),
                shown(f"{groups.names[group]} ({groups.n_targets[group]:,})" for group in small),
            )
        sets = SetSampler(
            groups.index,
            groups.weights,
            size=self.size,
            num_sets=groups.num_sets,
            controls=groups.controls,
            seed=seed,
            replacement=self.replacement,
        )
        return Subset(sampler=sets, rows=cells.rows)

    def groups(self, cells: TrainingCells) -> GroupClasses:
        """The groups, and where their controls are drawn from; see `sampler`."""
        codes, labels = cells.classes(self.columns)
        is_control = self._is_control(cells)
        targets = codes if self.controls_as_targets else np.where(is_control, np.int32(-1), codes)
        n_targets = class_sizes(targets, len(labels))
        if not n_targets.any():
            raise ValueError(
                f"none of {counted(len(codes), 'cell')} of the split is in a group: all are controls, or of unknown "
                f"label in {', '.join(self.columns)}; name other columns in by"
            )
        tree = class_tree(cells, self.columns) if self.scheme == "tree" else None
        names = [" | ".join(joint) for joint in labels]
        return GroupClasses(
            sampling=self,
            names=names,
            codes=codes,
            n_targets=n_targets,
            weights=class_weights(n_targets, self.scheme, self.tau, self.saturation, tree),
            index=ClassIndex.of(targets),
            controls=None if self.controls is None else self._controls(cells, is_control, targets, names),
        )

    def _is_control(self, cells: TrainingCells) -> NDArray[np.bool_]:
        """``(n,)`` whether each cell is a control."""
        chosen = np.full(len(cells.rows), self.controls is not None)
        for column, values in (self.controls or {}).items():
            codes, labels = cells.classes([column])
            encoder = LabelEncoder(column=column, classes=tuple(sorted(label for (label,) in labels)))
            wanted = np.zeros(len(labels) + 1, np.bool_)  # the last entry is for unknown labels
            for value in values if isinstance(values, list | tuple) else [values]:
                code = int(encoder.encode(pd.Series([value], dtype=object))[0])
                if code < 0:
                    raise ValueError(
                        f"no cell of the split has {value!r} in the column {column!r}, which controls names; "
                        f"{suggestion(str(value), encoder.classes)}"
                    )
                wanted[labels.index((encoder.classes[code],))] = True
            chosen &= wanted[codes]
        if self.controls is not None and not chosen.any():
            raise ValueError(f"no cell of the split has all of controls={self.controls}")
        return chosen

    def _controls(
        self, cells: TrainingCells, is_control: NDArray[np.bool_], targets: NDArray[np.int32], names: Sequence[str]
    ) -> MatchedControls:
        """The pools of controls, and that of each group or cell."""
        index, pools = _pools(cells, is_control, self._matched)
        lacks = (pools < 0) & (targets >= 0)
        n_fallback = 0
        if self.fallback is not None and lacks.any():
            more, fallback = _pools(cells, is_control, _listed(self.fallback))
            n_before, has_other = len(index.sizes), lacks & (fallback >= 0)
            n_fallback = int(np.count_nonzero(has_other))
            pools = np.where(has_other, fallback + np.int32(n_before), pools)
            index = _joined(index, more)
            lacks &= ~has_other
        if lacks.any():
            without = np.unique(targets[lacks])
            raise ValueError(
                f"{counted(int(np.count_nonzero(lacks)), 'cell')} of {counted(len(without), 'group')} "
                f"({shown(names[group] for group in without)}) match no control in "
                f"{', '.join(self._matched if self.fallback is None else _listed(self.fallback)) or 'any column'}; "
                "name fewer columns in fallback, or leave these cells out by where"
            )
        by_cell = not set(self._matched) <= set(self.columns)
        if not by_cell:  # all cells of a group have one pool
            of_group = np.full(len(names), -1, np.int32)
            of_group[targets[targets >= 0]] = pools[targets >= 0]
            pools = of_group
        return MatchedControls(n=self._n_controls, index=index, pools=pools, by_cell=by_cell, n_fallback=n_fallback)


@dataclass(frozen=True, kw_only=True, slots=True)
class EverySet:
    """The cells of every group in sets, each cell at least once in an epoch."""

    sampling: GroupedSampling
    """Groups and controls."""

    def sampler(self, cells: TrainingCells, *, seed: int = 0, global_batch_size: int = 1) -> Subset:  # noqa: ARG002
        """The sampler; see `GroupedSampling.sampler`."""
        groups, size = self.sampling.groups(cells), self.sampling.size
        n_sets = -(-groups.n_targets // size)
        sets = SetSampler(
            groups.index,
            n_sets.astype(np.float64),
            size=size,
            num_sets=int(n_sets.sum()),
            controls=groups.controls,
            seed=seed,
            replacement=False,
        )
        return Subset(sampler=sets, rows=cells.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchedControls:
    """Pools of controls, and which pool the controls of a cell are drawn from."""

    n: int
    """Controls of a set."""
    index: ClassIndex
    """The cells of each pool; a cell can be in several."""
    pools: NDArray[np.int32]
    """Pool of each cell ``(n_cells,)``, or of each group ``(K,)``; -1 where none is needed."""
    by_cell: bool
    """Whether ``pools`` are of cells."""
    n_fallback: int = 0
    """Cells whose controls match in the columns of the fallback alone."""


class SetSampler:
    """Draws sets: ``size`` cells of one group, then controls of these cells, at consecutive positions.

    Args:
        groups: The cells of each group.
        weights: ``(K,)`` weight of each group, 0 or more, and 0 for groups without cells.
        size: Cells of a set, without its controls.
        num_sets: Sets in one epoch.
        controls: Pools of controls; None for sets without.
        seed: Seed of the stream.
        replacement: Whether the groups of sets are drawn independently; see `GroupedSampling`.

    Raises:
        ValueError: there are too many sets for draws without replacement.
    """

    def __init__(
        self,
        groups: ClassIndex,
        weights: NDArray[np.float64],
        *,
        size: int,
        num_sets: int,
        controls: MatchedControls | None = None,
        seed: int = 0,
        replacement: bool = True,
    ) -> None:
        if not replacement and num_sets > MOST_DRAWS:
            raise ValueError(f"without replacement an epoch has at most {MOST_DRAWS:,} sets, not {num_sets:,}")
        self.size = size
        self.n_controls = 0 if controls is None else controls.n
        self.set_size = size + self.n_controls
        self.num_samples = num_sets * self.set_size
        self.seed = seed_of(seed)
        self.replacement = replacement
        self._num_sets, self._groups, self._controls = num_sets, groups, controls
        self._sums = np.cumsum(weights)
        self._guide = guide_of(self._sums)[1]

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of everything that the stream depends on."""
        options = (self.size, self.n_controls, self._num_sets, self.seed, self.replacement)
        digest = hashlib.blake2b(f"sets {options}".encode(), digest_size=16)
        arrays = [self._sums, self._groups.starts, self._groups.cells]
        if self._controls is not None:
            arrays += [self._controls.index.starts, self._controls.index.cells, self._controls.pools]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Cells drawn at positions ``[start, stop)``."""
        check_range(start, stop, self.num_samples)
        first, last = start // self.set_size, -(-stop // self.set_size)
        key, n = derive_key(self.seed, epoch), last - first
        group, order, piece = np.empty(n, np.int64), np.empty(n, np.uint64), np.zeros(n, np.int64)
        starts, cells = self._groups.starts, self._groups.cells
        if self.replacement:
            choose_groups(key, first, self._sums, self._guide, group, order)
        else:
            choose_group_quotas(key, self._num_sets, first, starts, self.size, self._sums, group, order, piece)
        out = np.empty((n, self.set_size), np.int64)
        fill_sets(self.size, group, order, piece, starts, cells, out)
        if self._controls is not None:
            index, pools, by_cell = self._controls.index, self._controls.pools, self._controls.by_cell
            fill_controls(key, first, self.size, group, pools, by_cell, index.starts, index.cells, out)
        before = first * self.set_size
        return out.ravel()[start - before : stop - before]


@dataclass(frozen=True, kw_only=True)
class GroupClasses:
    """Groups of training cells, with their shares of all draws."""

    sampling: GroupedSampling
    """The options."""
    names: list[str]
    """``(K,)`` labels of each group, joined by " | "; groups of controls are among them."""
    codes: NDArray[np.int32]
    """``(n,)`` group of each training cell; -1 is unknown."""
    n_targets: NDArray[np.int64]
    """``(K,)`` cells of each group that sets are made of."""
    weights: NDArray[np.float64]
    """``(K,)`` share of each group in the sets."""
    index: ClassIndex = field(repr=False)
    """The cells of each group that sets are made of."""
    controls: MatchedControls | None
    """Where controls are drawn from."""

    @property
    def num_sets(self) -> int:
        """Sets in one epoch."""
        return self.sampling.num_sets or -(-int(self.n_targets.sum()) // self.sampling.size)

    @cached_property
    def _weight_of_controls(self) -> NDArray[np.float64]:
        """``(m,)`` share of each entry of the pools in the draws of controls."""
        assert self.controls is not None
        sizes, pools = self.controls.index.sizes, self.controls.pools
        if self.controls.by_cell:
            per_cell = np.divide(self.weights, self.n_targets, out=np.zeros_like(self.weights), where=self.weights > 0)
            starts = self.index.starts
            weights, pools = np.repeat(per_cell[: len(starts) - 1], np.diff(starts)), pools[self.index.cells]
        else:
            weights = self.weights
        used = pools >= 0
        of_pool = np.bincount(pools[used], weights=weights[used], minlength=len(sizes))
        return np.repeat(np.divide(of_pool, sizes, out=np.zeros(len(sizes)), where=sizes > 0), sizes)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """``(K + 1,)`` cells of each group that can be drawn, in sets or as controls; those of unknown labels last."""
        can_be_drawn = np.zeros(len(self.codes), np.bool_)
        can_be_drawn[self.index.cells] = True
        if self.controls is not None:
            can_be_drawn[self.controls.index.cells[self._weight_of_controls > 0]] = True
        drawn = self.codes[can_be_drawn]
        known = class_sizes(drawn, len(self.names))
        return np.append(known, len(drawn) - known.sum())

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        targets = np.append(self.weights, 0.0)
        if self.controls is None:
            return targets
        of_control = self.codes[self.controls.index.cells]
        classes = np.where(of_control < 0, len(self.names), of_control)
        controls = np.bincount(classes, weights=self._weight_of_controls, minlength=len(targets))
        size, n = self.sampling.size, self.controls.n
        return (size * targets + n * controls) / (size + n)

    def target_shares(self, epoch: int) -> NDArray[np.float64]:  # noqa: ARG002 (the same in all epochs)
        """``(K + 1,)`` share of all draws, controls included, for each group; that of unknown labels last."""
        return self._shares

    def summary(self) -> str:
        """Sets and groups that are drawn, and cells that are left out; one line."""
        n_groups = int(np.count_nonzero(self.n_targets))
        size = counted(self.sampling.size, "cell")
        line = f"sampling {counted(self.num_sets, 'set')} of {size} from {counted(n_groups, 'group')}"
        if self.controls is not None:
            line += f", each with {counted(self.controls.n, 'control')}"
            if self.controls.n_fallback:
                columns = ", ".join(_listed(self.sampling.fallback)) or "no column"
                line += f"; controls of {counted(self.controls.n_fallback, 'cell')} match by fallback, in {columns}"
        n_left_out = len(self.codes) - int(self.sizes.sum())
        if n_left_out:
            line += f"; {counted(n_left_out, 'cell')} left out, of unknown label or controls of no group"
        return line


_EXAMPLE = "controls={'perturbation': 'non-targeting'}"


def _listed(columns: Sequence[str] | str | None) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns or ())


def _pools(
    cells: TrainingCells, is_control: NDArray[np.bool_], columns: Sequence[str]
) -> tuple[ClassIndex, NDArray[np.int32]]:
    """The controls of each joint label of ``columns``, and the pool of each cell; -1 where it has no control."""
    codes, labels = cells.classes(columns)
    pools = np.where(is_control, codes, np.int32(-1))
    if (pools < 0).all():  # the labels of all controls are unknown
        return ClassIndex(starts=np.zeros(1, np.int64), cells=np.empty(0, np.int32), n_cells=len(codes)), pools
    index = ClassIndex.of(pools)
    has_controls = np.zeros(len(labels) + 1, np.bool_)  # the last entry is for unknown labels
    has_controls[: len(index.sizes)] = index.sizes > 0
    has_controls[-1] = False
    return index, np.where(has_controls[codes], codes, np.int32(-1))


def _joined(first: ClassIndex, second: ClassIndex) -> ClassIndex:
    """The classes of both, those of ``second`` after those of ``first``."""
    return ClassIndex(
        starts=np.append(first.starts, first.starts[-1] + second.starts[1:]),
        cells=np.concatenate([first.cells, second.cells]),
        n_cells=first.n_cells,
    )
