"""Base classes of collate functions that make many batches at once, and of those that need the vocabulary."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scdataloader.types import CellBatch


class MakesMany:
    """Makes a single batch as it makes many."""

    @abstractmethod
    def many(self, cells: CellBatch, batch_size: int) -> Sequence[Mapping[str, Any]]:
        """Consecutive batches of ``batch_size`` cells."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> Mapping[str, Any]:  # noqa: ARG002
        """The batch of some cells; random choices are those of their positions."""
        return self.many(batch, max(1, len(batch)))[0]


class NeedsVocabulary:
    """Options of a collate function, which `bind` makes for a vocabulary."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> Mapping[str, Any]:  # noqa: ARG002
        """Refuse.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} needs the vocabulary: call bind() first")
