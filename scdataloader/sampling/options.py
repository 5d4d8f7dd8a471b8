"""Sampling plan of weighted classes and cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.kernels.draws.classes import class_sizes
from scdataloader.protocols import HasColumns, HasEvaluation, HasPlans, SamplingPlan, TrainingCells
from scdataloader.runtime.messages import counted
from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.samplers import ShuffleSampler, Subset, WeightedSampler, curriculum_weights
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.sampling.weights import (
    NNZ,
    CellFactor,
    Scheme,
    Tree,
    cell_factors,
    check_scheme,
    class_tree,
    class_weights,
    factor_name,
)

__all__ = ["Sampling", "WeightedClasses"]

_WINDOW = 8192


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How training cells are drawn.

    Args:
        by: Columns whose classes are weighted; several columns weigh their joint values. "source" is the source of a
            cell, unless obs has a column of that name. None is one class of all cells.
        scheme: Weight of a class of c cells: natural c, uniform 1, power c^tau, saturating s*c/(s+c), tree
            evenly down the ontology of the one column of ``by`` that has a hierarchy.
        tau: Exponent of the power scheme: 0 is uniform, 1 natural.
        saturation: s of the saturating scheme, in cells: small is nearly uniform, large is natural.
        num_samples: Draws in one epoch over all ranks; None is the number of cells that can be drawn.
        cell_factors: Factors of the weights of cells within their class, multiplied: names of numeric columns; "nnz",
            a sigmoid of the number of expressed genes; arrays with one number for each cell of the collection; or
            functions from the training cells to an array with one number for each of them. In YAML, names or
            class_path.
        unknown_share: Share of the draws, from 0 to below 1, for cells of unknown label; 0 leaves them out.
        replacement: Whether draws are independent. Otherwise each class gets its share of the draws of an epoch to
            within one, and no cell repeats before its class is used up.
        block_size: Neighbouring cells drawn as a unit, for slow disks and remote files; probabilities stay exact.
        curriculum_epochs: Epochs over which class weights change from nearly uniform to their target: in epoch e they
            are raised to the power min(1, (e + 1) / curriculum_epochs). 0 disables the curriculum.

    Raises:
        ValueError: an option is out of its range, or would have no effect.
        TypeError: a cell factor is neither a name, an array nor a function.
    """

    by: list[str] | str | None = None
    scheme: Scheme = "natural"
    tau: float = 0.5
    saturation: float = 100.0
    num_samples: int | None = None
    # names first: the command line takes the first type that fits
    cell_factors: (
        list[str | Callable[[TrainingCells], Any] | NDArray[Any]]
        | str
        | Callable[[TrainingCells], Any]
        | NDArray[Any]
        | None
    ) = None
    unknown_share: float = 0.0
    replacement: bool = True
    block_size: int = 1
    curriculum_epochs: int = 0

    def __post_init__(self) -> None:
        check_scheme(self.scheme, self.tau, self.saturation)
        if not 0 <= self.unknown_share < 1:
            raise ValueError(f"unknown_share must be from 0 to below 1, not {self.unknown_share}")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, or None for the number of cells, not {self.num_samples}")
        self._check_factors()
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"by names a column twice: {self.columns}")
        if NNZ in self.columns:
            raise ValueError("'nnz' weights cells, not classes; name it in cell_factors instead of by")
        if not self.columns and (self.scheme != "natural" or self.unknown_share):
            raise ValueError(
                f"scheme={self.scheme!r} and unknown_share={self.unknown_share} apply to classes, but by names no "
                "column; name the columns in by, or leave both at their defaults"
            )
        self._check_draws()

    def _check_factors(self) -> None:
        for factor in self.factors:
            if not (isinstance(factor, str) or (hasattr(factor, "__array__") and np.ndim(factor)) or callable(factor)):
                raise TypeError(
                    "a cell factor must be the name of a column, an array or a function, "
                    f"not {factor!r} ({type(factor).__name__})"
                )
        names = [factor for factor in self.factors if isinstance(factor, str)]
        if len(set(names)) < len(names):
            raise ValueError(f"cell_factors names a column twice: {names}")

    def _check_draws(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be 1 cell or more, not {self.block_size}")
        if self.curriculum_epochs < 0:
            raise ValueError(f"curriculum_epochs must be 0 or more, not {self.curriculum_epochs}")
        if self.curriculum_epochs and not self.columns:
            raise ValueError("curriculum_epochs changes the weights of classes, but by names no column")
        if self.replacement:
            return
        if self.block_size > 1:
            raise ValueError(
                f"replacement=False needs single cells, but block_size is {self.block_size}; use block_size=1, or draw "
                "with replacement"
            )
        if self.columns and self.factors:
            raise ValueError(
                "replacement=False uses up all cells of a class before any repeats, so cell_factors "
                f"({self._factor_names}) would have no effect; remove them, or draw with replacement"
            )

    @property
    def columns(self) -> list[str]:
        """``by`` as a list."""
        return [self.by] if isinstance(self.by, str) else list(self.by or [])

    @property
    def factors(self) -> list[CellFactor]:
        """``cell_factors`` as a list."""
        if self.cell_factors is None:
            return []
        return list(self.cell_factors) if isinstance(self.cell_factors, list | tuple) else [self.cell_factors]

    @property
    def _factor_names(self) -> str:
        return ", ".join(map(factor_name, self.factors))

    @property
    def description(self) -> str:
        """The scheme and its parameter."""
        if self.scheme == "power":
            return f"power, tau {self.tau:g}"
        if self.scheme == "saturating":
            return f"saturating at {self.saturation:g} cells"
        return self.scheme

    def describe(self, cells: TrainingCells) -> WeightedClasses:
        """The classes of ``cells`` and their target shares.

        Raises:
            KeyError: a column is in no source.
            ValueError: no cell can be drawn, all labels are unknown, a cell factor is invalid, or the scheme is
                ``tree`` and not exactly one column has an ontology.
        """
        return self._describe(cells, cell_factors(cells, self.factors))

    def _describe(self, cells: TrainingCells, factors: NDArray[np.float64] | None) -> WeightedClasses:
        tree = self._tree(cells) if self.scheme == "tree" else None
        codes, labels = cells.classes(self.columns)
        names = [" | ".join(joint) for joint in labels] if self.columns else ["all cells"]
        return self.weigh(codes, names, factors, tree)

    def _tree(self, cells: TrainingCells) -> Tree:
        tree = class_tree(cells, self.columns)
        if tree is None:
            found = [column for column in self.columns if column in cells.hierarchies]
            what = f"{' and '.join(found)} have one each" if found else f"none of {self.columns} has one"
            raise ValueError(
                f"scheme='tree' needs exactly one column of by with an ontology, but {what}; name one of them in "
                "hierarchies"
            )
        return tree

    def weigh(
        self,
        codes: NDArray[np.int32],
        names: list[str],
        factors: NDArray[np.float64] | None = None,
        tree: Tree | None = None,
    ) -> WeightedClasses:
        """Weigh the classes of training cells.

        Args:
            codes: ``(n,)`` class of each training cell; -1 is unknown.
            names: Name of each class, present or not.
            factors: ``(n,)`` factor of each cell. Cells of factor 0 do not count towards their class.
            tree: Positions of the classes in the ontology, for ``tree``.

        Raises:
            ValueError: all labels are unknown, or no cell can be drawn.
        """
        counts = _sizes(codes, len(names))
        if not counts[:-1].any():
            raise ValueError(
                f"all {len(codes):,} training cells are of unknown label in "
                f"{', '.join(self.columns) or 'every column'}; name another column in by, or none"
            )
        drawable = counts if factors is None else _sizes(codes[factors > 0], len(names))
        if not drawable[:-1].any():
            raise ValueError(
                f"no cell can be drawn: each of the {counts[:-1].sum():,} training cells of known label has a factor "
                f"of 0 (cell_factors: {self._factor_names})"
            )
        unknown = self.unknown_share if drawable[-1] else 0.0
        known = class_weights(drawable[:-1], self.scheme, self.tau, self.saturation, tree)
        return WeightedClasses(
            sampling=self,
            names=names,
            codes=codes,
            shares=np.append(known * (1 - unknown), unknown),
            sizes=drawable,
            n_zero_left_out=int((counts - drawable).sum()),
        )

    def window(self, global_batch_size: int = 1) -> int | None:
        """Draws over which blocks are spread: about 8,192, in whole batches for each draw of a block; None without."""
        if self.block_size == 1:
            return None
        together = self.block_size * global_batch_size
        return together * max(1, round(_WINDOW / together))

    def sampler(self, cells: TrainingCells, *, seed: int = 0, global_batch_size: int = 1) -> Subset:
        """The sampler of a training run, which draws among ``cells.rows``.

        Without weights and ``num_samples``, every row is drawn exactly once per epoch. Blocks are spread so that no
        batch of ``global_batch_size`` has two draws of one block, and so that all draws of a block fall to the same
        rank, whatever the number of ranks.

        Raises:
            KeyError: see `describe`.
            ValueError: see `describe`.
        """
        factors = cell_factors(cells, self.factors)
        drawn = self._describe(cells, factors)
        blocks: dict[str, Any] = {"block_size": self.block_size, "window": self.window(global_batch_size)}
        rows = cells.selection if isinstance(cells, CollectionCells) else cells.rows
        if not self.columns and not self.factors and self.num_samples is None:
            return Subset(sampler=ShuffleSampler(len(rows), seed=seed, **blocks), rows=rows)
        by_class = bool(self.columns) or factors is None
        weighted = WeightedSampler(
            factors,
            classes=self._index(cells, drawn) if by_class else None,
            class_weights=drawn.shares if by_class else None,
            num_samples=drawn.num_samples,
            seed=seed,
            replacement=self.replacement,
            curriculum_epochs=self.curriculum_epochs,
            **blocks,
        )
        return Subset(sampler=weighted, rows=rows)

    def _index(self, cells: TrainingCells, drawn: WeightedClasses) -> ClassIndex | NDArray[np.int32]:
        """The cells of each class, unknown last; or, for blocks, the class of each cell."""
        unknown = len(drawn.names)
        if self.block_size > 1:
            return np.where(drawn.codes < 0, np.int32(unknown), drawn.codes.astype(np.int32, copy=False))
        if isinstance(cells, CollectionCells):
            return cells.class_index(self.columns, unknown)
        return ClassIndex.of(drawn.codes, unknown=unknown)


def plan_columns(plan: object) -> list[str]:
    """Columns of obs that a sampling plan draws by; empty if it does not state them."""
    return list(plan.columns) if isinstance(plan, HasColumns) else []


def used_columns(plan: object) -> list[str]:
    """Columns of obs that a sampling plan, and the plans that it draws by, state."""
    further = plan.plans if isinstance(plan, HasPlans) else ()
    return [*plan_columns(plan), *(column for other in further for column in used_columns(other))]


def evaluation_of(plan: object) -> SamplingPlan | None:
    """The plan by which a sampling plan draws validation and test cells; None for cells one by one in order."""
    return plan.evaluation if isinstance(plan, HasEvaluation) else None


def _sizes(codes: NDArray[np.int32], n_classes: int) -> NDArray[np.int64]:
    """``(n_classes + 1,)`` cells of each class, unknown last."""
    known = class_sizes(codes, n_classes)
    return np.append(known, len(codes) - known.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedClasses:
    """Classes of training cells with their target shares, as `Sampling` draws them."""

    sampling: Sampling
    """The options."""
    names: list[str]
    """Class names; joint labels of several columns are joined by " | "."""
    codes: NDArray[np.int32]
    """``(n,)`` class of each training cell; -1 is unknown."""
    shares: NDArray[np.float64]
    """``(n_classes + 1,)`` target share of the draws, after the curriculum; unknown labels last."""
    sizes: NDArray[np.int64]
    """``(n_classes + 1,)`` cells that can be drawn, those of a positive factor; unknown labels last."""
    n_zero_left_out: int
    """Cells that are never drawn because their factor is 0."""

    @property
    def n_unknown_left_out(self) -> int:
        """Cells of unknown label that are never drawn because their share is 0."""
        return 0 if self.shares[-1] else int(self.sizes[-1])

    @property
    def n_drawable(self) -> int:
        """Cells with a positive probability."""
        return int(self.sizes[self.shares > 0].sum())

    @property
    def num_samples(self) -> int:
        """Draws in one epoch."""
        return self.sampling.num_samples or self.n_drawable

    def target_shares(self, epoch: int) -> NDArray[np.float64]:
        """``(n_classes + 1,)`` target share of the draws of ``epoch``; unknown labels last."""
        return curriculum_weights(self.shares, epoch, self.sampling.curriculum_epochs)

    def summary(self) -> str:
        """Cells and classes that are drawn, and cells that are left out; one line."""
        line = f"sampling {counted(self.n_drawable, 'cell')}"
        if self.sampling.columns:
            n_present = int(np.count_nonzero(self.shares[:-1]))
            line += f" in {counted(n_present, 'class')}"
        if self.shares[-1] > 0:
            line += f", {self.shares[-1]:.1%} of the draws from {counted(int(self.sizes[-1]), 'cell')} of unknown label"
        if self.n_unknown_left_out:
            line += f"; {counted(self.n_unknown_left_out, 'cell')} of unknown label left out (unknown_share=0)"
        if self.n_zero_left_out:
            line += f"; {counted(self.n_zero_left_out, 'cell')} with a factor of 0 left out"
        return line
