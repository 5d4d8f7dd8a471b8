"""Weights: how much of the draws each class gets, and each cell within its class.

| scheme       | mass of a class of c cells | what it does                                                      |
|--------------|----------------------------|-------------------------------------------------------------------|
| `natural`    | c                          | classes as often as they are in the data                          |
| `uniform`    | 1                          | every class equally often                                         |
| `power`      | c^τ                        | between the two: τ = 0 is uniform, τ = 1 natural                  |
| `saturating` | s·c / (s + c)              | small s → nearly uniform; large s → natural. Classes far below    |
|              |                            | s cells count by their size, those far above all alike            |
| `tree`       | from above                 | split evenly down the ontology of the classes (`Tree.mass`)       |

Masses are normalised over the classes that are present among the training cells. The probability of a cell is the mass
of its class times the cell's share of the class's factors.

`tree` splits a mass of 1 evenly among the roots of the ontology, and at each term among its children that have training
cells at or below them. A term that has cells of its own is one more child of itself:

    cell                        1
    ├── leukocyte               1/2
    │   ├── (itself)  5 cells         1/6
    │   ├── B cell  900 cells         1/6
    │   └── T cell              1/6
    │       ├── CD4  40 cells         1/12
    │       └── CD8   2 cells         1/12
    └── neuron        3 cells         1/2

A term with several parents stands below one of them only, the most specific (`Tree.parents`), so that one way leads to
each class and none counts twice. Joint classes of one term (`by` names another column as well) share its mass by their
cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from scdataloader.sampling.factors import NNZ
from scdataloader.sampling.tree import Tree

Scheme = Literal["natural", "uniform", "power", "saturating", "tree"]

_STEP = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How training cells are drawn.

    Args:
        by: Columns whose classes are weighted; several columns weigh their joint values. None is one class of all
            cells.
        scheme: Mass of a class of c cells: natural c, uniform 1, power c^tau, saturating s*c/(s+c), tree
            evenly down the ontology of the one column of ``by`` that has a hierarchy.
        tau: Exponent of the power scheme: 0 is uniform, 1 natural.
        saturation: s of the saturating scheme, in cells: small is nearly uniform, large is natural.
        num_samples: Draws in one epoch over all ranks; None is the number of cells that can be drawn.
        cell_factors: Numeric columns that multiply the weights of cells within their class; "nnz" is a sigmoid of the
            number of expressed genes.
        unknown_mass: Share of the draws, from 0 to below 1, that goes to cells of unknown label; 0 leaves them out.
        replacement: Whether draws are independent. Otherwise each class gets its share of an epoch's draws to within
            one, and none of its cells comes again before all have come.
        block_size: Neighbouring cells that are drawn as a unit, for cold disks and remote files; probabilities stay
            exact.
        curriculum_epochs: Epochs over which class masses are raised from nearly uniform to what is asked for: in epoch
            e to the power min(1, (e + 1) / curriculum_epochs). 0 is no curriculum.

    Raises:
        ValueError: an option is out of its range, or asks for something without effect.
    """

    by: list[str] | str | None = None
    scheme: Scheme = "natural"
    tau: float = 0.5
    saturation: float = 100.0
    num_samples: int | None = None
    cell_factors: list[str] | None = None
    unknown_mass: float = 0.0
    replacement: bool = True
    block_size: int = 1
    curriculum_epochs: int = 0

    def __post_init__(self) -> None:
        _check_scheme(self.scheme, self.tau, self.saturation)
        if not 0 <= self.unknown_mass < 1:
            raise ValueError(f"unknown_mass is a share of the draws, from 0 to below 1, not {self.unknown_mass}")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(
                f"num_samples must be at least 1, or None for as many as there are cells, not {self.num_samples}"
            )
        for option, names in (("by", self.columns), ("cell_factors", self.factors)):
            if len(set(names)) < len(names):
                raise ValueError(f"{option} names a column twice: {names}")
        if NNZ in self.columns:
            raise ValueError("'nnz' weighs cells, not classes: name it in cell_factors instead of by")
        if not self.columns and (self.scheme != "natural" or self.unknown_mass):
            raise ValueError(
                f"scheme={self.scheme!r} and unknown_mass={self.unknown_mass} weigh classes, but by names no column; "
                "name the columns in by, or leave both at their defaults"
            )
        self._check_draws()

    def _check_draws(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be 1 cell or more, not {self.block_size}")
        if self.curriculum_epochs < 0:
            raise ValueError(f"curriculum_epochs must be 0 or more, not {self.curriculum_epochs}")
        if self.curriculum_epochs and not self.columns:
            raise ValueError("curriculum_epochs raises the masses of classes, but by names no column")
        if self.replacement:
            return
        if self.block_size > 1:
            raise ValueError(
                f"replacement=False gives exact quotas cell by cell, which blocks of {self.block_size} cannot keep; "
                "use block_size=1, or draw with replacement"
            )
        if self.columns and self.factors:
            raise ValueError(
                "replacement=False takes all cells of a class before any comes again, so cell_factors "
                f"({', '.join(self.factors)}) would have no say; leave them out, or draw with replacement"
            )

    @property
    def columns(self) -> list[str]:
        """``by`` as a list."""
        return [self.by] if isinstance(self.by, str) else list(self.by or [])

    @property
    def factors(self) -> list[str]:
        """``cell_factors`` as a list."""
        return list(self.cell_factors or [])


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassWeights:
    """What a weighting gives to each class, and what it leaves out."""

    mass: NDArray[np.float64]
    """``(n_classes + 1,)`` share of the draws of each class, summing to 1; the last is that of unknown labels, so that
    a code of -1 finds it."""
    counts: NDArray[np.int64]
    """``(n_classes + 1,)`` cells of each class that can be drawn, those of a positive factor; unknown last."""
    n_unknown_left_out: int
    """Cells of unknown label that are never drawn because their mass is 0."""
    n_zero_left_out: int
    """Cells that are never drawn because a factor of theirs is 0."""

    @property
    def n_drawable(self) -> int:
        """Cells with a positive probability."""
        return int(self.counts[self.mass > 0].sum())

    def summary(self) -> str:
        """One line for a log."""
        n_present = int(np.count_nonzero(self.mass[:-1]))
        line = f"{self.n_drawable:,} cells of {n_present:,} classes can be drawn"
        if self.mass[-1] > 0:
            line += f", with {self.mass[-1]:.1%} of the draws for {self.counts[-1]:,} cells of unknown label"
        if self.n_unknown_left_out:
            line += f"; {self.n_unknown_left_out:,} cells of unknown label are left out (unknown_mass=0)"
        if self.n_zero_left_out:
            line += f"; {self.n_zero_left_out:,} cells are left out by a factor of 0"
        return line


def class_mass(
    counts: NDArray[np.int64],
    scheme: Scheme,
    tau: float = 0.5,
    saturation: float = 100.0,
    tree: Tree | None = None,
) -> NDArray[np.float64]:
    """Share of the draws of each class; see the table at the head of this module.

    Args:
        counts: ``(n_classes,)`` cells in each class.
        scheme: which row of the table.
        tau: τ of ``power``.
        saturation: s of ``saturating``, in cells.
        tree: where the classes are in the ontology, for ``tree``.

    Returns:
        ``(n_classes,)`` masses that sum to 1; 0 exactly where the count is 0.

    Raises:
        ValueError: no class has a cell, a count is negative, an option is out of its range, or there is no tree.
    """
    _check_scheme(scheme, tau, saturation)
    if scheme == "tree" and tree is None:
        raise ValueError("scheme 'tree' splits the mass down an ontology, but the classes have none")
    if counts.size and counts.min() < 0:
        raise ValueError(f"a class cannot have {counts.min()} cells")
    present = counts > 0
    if not present.any():
        raise ValueError(f"the weighting leaves no cell: none of {len(counts)} classes has any")
    cells = counts[present].astype(np.float64)
    if scheme == "uniform":
        cells = np.ones_like(cells)
    elif scheme == "power":
        cells = cells**tau
    elif scheme == "saturating":
        # the mass over s, which is finite for every s
        cells = cells / (saturation + cells)
    elif scheme == "tree" and tree is not None:
        cells = tree.mass(counts)[present]
    mass = np.zeros(len(counts), dtype=np.float64)
    mass[present] = cells / cells.sum()
    return mass


def class_weights(
    codes: NDArray[np.int32],
    n_classes: int,
    sampling: Sampling,
    factors: NDArray[np.float64] | None = None,
    tree: Tree | None = None,
) -> ClassWeights:
    """The masses of classes among the training cells.

    Args:
        codes: ``(n,)`` class of each training cell; -1 is unknown.
        n_classes: number of classes, present or not.
        sampling: scheme and mass of the unknown.
        factors: ``(n,)`` factor of each cell. Cells of factor 0 do not count towards their class.
        tree: where the classes are in the ontology, for ``tree``.

    Raises:
        ValueError: all labels are unknown, or no cell is left.
    """
    counts = _count(codes, n_classes, None)
    if not counts[:-1].any():
        raise ValueError(
            f"all {len(codes):,} training cells are of unknown label in "
            f"{', '.join(sampling.columns) or 'every column'}: weigh by another column, or by none"
        )
    drawable = counts if factors is None else _count(codes, n_classes, factors)
    if not drawable[:-1].any():
        raise ValueError(
            f"the weighting leaves no cell: each of the {counts[:-1].sum():,} training cells of known label has a "
            f"factor of 0 (cell_factors: {', '.join(sampling.factors)})"
        )
    unknown = sampling.unknown_mass if drawable[-1] else 0.0
    known = class_mass(drawable[:-1], sampling.scheme, sampling.tau, sampling.saturation, tree)
    return ClassWeights(
        mass=np.append(known * (1 - unknown), unknown),
        counts=drawable,
        n_unknown_left_out=0 if unknown else int(drawable[-1]),
        n_zero_left_out=int((counts - drawable).sum()),
    )


def cell_probabilities(
    codes: NDArray[np.int32], mass: NDArray[np.float64], factors: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """``(n,)`` probability of each cell in one draw, summing to 1: the specification that a sampler meets.

    Args:
        codes: ``(n,)`` class of each cell; -1 is unknown.
        mass: ``(n_classes + 1,)`` as in `ClassWeights`.
        factors: ``(n,)`` factor of each cell; None is 1 everywhere.
    """
    weights = np.ones(len(codes)) if factors is None else factors
    classes = np.where(codes < 0, len(mass) - 1, codes)
    totals = np.bincount(classes, weights=weights, minlength=len(mass))
    share = np.divide(mass, totals, out=np.zeros_like(mass), where=totals > 0)
    return np.asarray(share[classes] * weights, dtype=np.float64)


def _check_scheme(scheme: str, tau: float, saturation: float) -> None:
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme must be one of {', '.join(get_args(Scheme))}, not {scheme!r}")
    if not 0 <= tau <= 1:
        raise ValueError(f"tau must be from 0 (uniform) to 1 (natural), not {tau}")
    if not 0 < saturation < np.inf:
        raise ValueError(f"saturation must be a positive number of cells, not {saturation}")


def _count(codes: NDArray[np.int32], n_classes: int, factors: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """``(n_classes + 1,)`` cells of each class, of positive factor if given; unknown last."""
    counts = np.zeros(n_classes + 1, dtype=np.int64)
    for start in range(0, len(codes), _STEP):
        part = codes[start : start + _STEP]
        if factors is not None:
            part = part[factors[start : start + _STEP] > 0]
        counts += np.bincount(part.astype(np.int64) + 1, minlength=n_classes + 1)
    return np.roll(counts, -1)
