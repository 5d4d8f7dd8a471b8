"""A weighting applied to cells: which class each is in, what each class gets, and the sampler that draws so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.collection.collection import Collection
from scdataloader.labels.encoder import joint
from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.labels.table import fit_encoder
from scdataloader.protocols import Sampler
from scdataloader.sampling.factors import NNZ, cell_factor, nnz_factor
from scdataloader.sampling.samplers import ShuffleSampler, Subset, WeightedSampler, curriculum_mass
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.tree import Tree
from scdataloader.sampling.weights import ClassWeights, Sampling, class_weights

_WINDOW = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """How some rows of a collection are weighted."""

    rows: NDArray[np.int64]
    """``(n,)`` rows that may be drawn."""
    codes: NDArray[np.int32]
    """``(n,)`` class of each; -1 is unknown."""
    names: list[str]
    """Class names; joint values of several columns are joined by " | "."""
    factors: NDArray[np.float64] | None
    """``(n,)`` factor of each cell within its class; None where all are alike."""
    weights: ClassWeights
    """What each class gets."""
    sampling: Sampling
    """What was asked for."""
    tree: Tree | None = None
    """Where the classes are in the ontology; None unless just one of the columns has a hierarchy."""

    @classmethod
    def of(
        cls,
        collection: Collection,
        rows: NDArray[np.int64],
        sampling: Sampling,
        hierarchies: Mapping[str, Hierarchy] | None = None,
    ) -> Weighting:
        """Weigh ``rows`` of a collection; the classes of a column with a hierarchy are its terms.

        Raises:
            KeyError: a column is in no source.
            ValueError: no cell is left, all labels are unknown, a factor is no number that can weigh, or the scheme is
                ``tree`` and not just one column has a hierarchy.
        """
        hierarchies = hierarchies or {}
        above = _column_of_tree(sampling, hierarchies)
        codes, labels = _classes(collection, rows, sampling.columns, hierarchies)
        names = [" | ".join(joined) for joined in labels] if sampling.columns else ["all cells"]
        tree = None
        if above is not None:
            place = sampling.columns.index(above)
            tree = Tree.of(hierarchies[above].ontology, [joined[place] for joined in labels])
        factors = _factors(collection, rows, sampling.factors)
        weights = class_weights(codes, len(names), sampling, factors, tree)
        return cls(rows=rows, codes=codes, names=names, factors=factors, weights=weights, sampling=sampling, tree=tree)

    @property
    def names_and_unknown(self) -> list[str]:
        """A name for every entry of `mass`."""
        return [*self.names, "unknown"]

    @property
    def num_samples(self) -> int:
        """Draws in one epoch."""
        return self.sampling.num_samples or self.weights.n_drawable

    def mass(self, epoch: int) -> NDArray[np.float64]:
        """``(n_classes + 1,)`` share of the draws that each class is to get in ``epoch``; unknown last."""
        return curriculum_mass(self.weights.mass, epoch, self.sampling.curriculum_epochs)

    def window(self, global_batch_size: int = 1) -> int | None:
        """Draws over which blocks are spread: some 8,192, in whole batches for each draw of a block; None without."""
        if self.sampling.block_size == 1:
            return None
        together = self.sampling.block_size * global_batch_size
        return together * max(1, round(_WINDOW / together))

    def tally(self, n_cells: int) -> Tally:
        """A tally of draws by the classes of this weighting, from a collection of ``n_cells``."""
        if not self.sampling.columns:
            return Tally(n_cells)
        classes = np.full(n_cells, -1, np.int32)
        classes[self.rows] = self.codes
        return Tally(n_cells, classes, len(self.names))

    def sampler(self, seed: int, global_batch_size: int = 1) -> Sampler:
        """The sampler that draws rows of the collection as this weighting asks.

        Where nothing is weighted and no number of draws is asked for, every row comes exactly once per epoch. Blocks
        are spread so that no batch of ``global_batch_size`` holds two draws of one, and so that all draws of a block
        fall to the same rank, however many ranks share the batch.
        """
        sampling = self.sampling
        blocks: dict[str, Any] = {"block_size": sampling.block_size, "window": self.window(global_batch_size)}
        if not sampling.columns and not sampling.factors and sampling.num_samples is None:
            return Subset(sampler=ShuffleSampler(len(self.rows), seed=seed, **blocks), rows=self.rows)
        by_class = bool(sampling.columns) or self.factors is None
        drawn = WeightedSampler(
            self.factors,
            classes=np.where(self.codes < 0, len(self.names), self.codes) if by_class else None,
            class_mass=self.weights.mass if by_class else None,
            num_samples=self.num_samples,
            seed=seed,
            replacement=sampling.replacement,
            curriculum_epochs=sampling.curriculum_epochs,
            **blocks,
        )
        return Subset(sampler=drawn, rows=self.rows)


def _column_of_tree(sampling: Sampling, hierarchies: Mapping[str, Hierarchy]) -> str | None:
    """The one column that has a hierarchy, if there is just one."""
    found = [column for column in sampling.columns if column in hierarchies]
    if sampling.scheme == "tree" and len(found) != 1:
        what = f"{' and '.join(found)} have one each" if found else f"none of {sampling.columns} has one"
        raise ValueError(
            f"scheme='tree' splits the draws down the ontology of one column of by, and {what}: name just one of "
            "them in hierarchies"
        )
    return found[0] if len(found) == 1 else None


def _classes(
    collection: Collection, rows: NDArray[np.int64], columns: Sequence[str], hierarchies: Mapping[str, Hierarchy]
) -> tuple[NDArray[np.int32], list[tuple[str, ...]]]:
    """The class of each row by its joint values in ``columns``, and the labels of each class, one per column."""
    if not columns:
        return np.zeros(len(rows), np.int32), [()]
    encoders, per_column = [], []
    for column in columns:
        series = collection.column(column)
        encoder = fit_encoder(column, series, hierarchies)
        encoders.append(encoder)
        per_column.append(collection.arrange([encoder.encode(values) for values in series])[rows])
    codes, n_classes = joint(per_column, [len(encoder.labels) for encoder in encoders])
    # Only combinations that occur have a code, so every class has a cell to take its name from.
    example = np.empty(n_classes + 1, np.int64)  # the last is that of unknown ones, whose code is -1
    example[codes] = np.arange(len(codes))
    labels = [
        tuple(encoder.labels[code[cell]] for encoder, code in zip(encoders, per_column, strict=True))
        for cell in example[:-1]
    ]
    return codes, labels


def _factors(collection: Collection, rows: NDArray[np.int64], columns: Sequence[str]) -> NDArray[np.float64] | None:
    """The product of each row's factors."""
    factors: NDArray[np.float64] | None = None
    for column in columns:
        if column == NNZ:
            factor = nnz_factor(collection.nnz()[rows])
        else:
            factor = cell_factor(collection.obs([column])[column].iloc[rows], column)
        factors = factor if factors is None else factors * factor
    return factors
