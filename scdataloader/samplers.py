"""The order in which cells are drawn: pure functions of (seed, epoch, position).

No sampler reads data, holds a generator or stores anything as long as an epoch: a draw's random bits are a
counter-based function of its position, so any stretch of any epoch can be drawn by anyone at any time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scdataloader.kernels.draw import BLOCK, block_sums, class_index, draw_weighted
from scdataloader.kernels.random import derive_key, permute_range
from scdataloader.types import Sampler

_NO_CELLS = np.empty(0, np.int64)
_NO_WEIGHTS = np.empty(0, np.float64)


class SequentialSampler:
    """Rows 0, 1, … n - 1, the same in every epoch."""

    def __init__(self, n: int) -> None:
        """Order ``n`` cells as they lie."""
        self.num_samples = _positive(n, "n")
        self.fingerprint = f"sequential {n}"

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:  # noqa: ARG002
        """Rows ``start`` to ``stop - 1``."""
        _check_range(start, stop, self.num_samples)
        return np.arange(start, stop, dtype=np.int64)


class ShuffleSampler:
    """Every row of [0, n) exactly once per epoch, in another random order each epoch; no order is stored."""

    def __init__(self, n: int, *, seed: int = 0) -> None:
        """Shuffle ``n`` cells by ``seed``."""
        self.num_samples = _positive(n, "n")
        self.seed = seed
        self.fingerprint = f"shuffle {n} {seed}"

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at positions ``[start, stop)``: images of the positions under a keyed permutation."""
        _check_range(start, stop, self.num_samples)
        out = np.empty(stop - start, np.int64)
        permute_range(derive_key(self.seed, epoch), self.num_samples, start, out)
        return out


class WeightedSampler:
    """Independent draws with replacement: class by class mass, then cell by its weight within the class.

    Cell i of class c is drawn with probability ``mass_c / sum(mass) * w_i / sum of w in c``. Without classes that is
    ``w_i / sum(w)``.

    Args:
        weights: (n,) weight of each cell, 0 or more; None: all alike. Taken in float64.
        classes: (n,) class of each cell, -1 for cells never to be drawn; None: one class.
        class_mass: (K,) mass of each class, 0 or more; None: the same for every class that has cells.
        num_samples: Draws in one epoch.
        seed: Names the stream.

    Raises:
        ValueError: a weight or mass is negative, infinite or NaN (the first is named), all are zero, lengths differ, or
            a class with mass has no cell that can be drawn.
    """

    def __init__(
        self,
        weights: ArrayLike | None = None,
        *,
        classes: NDArray[np.integer] | None = None,
        class_mass: ArrayLike | None = None,
        num_samples: int,
        seed: int = 0,
    ) -> None:
        if weights is None and classes is None:
            raise ValueError(
                "a weighted sampler needs weights, or classes, or both; for neither there is ShuffleSampler"
            )
        self.num_samples = _positive(num_samples, "num_samples")
        self.seed = seed
        self._weights = _NO_WEIGHTS if weights is None else _non_negative(weights, "weight", "cell")
        if weights is not None and classes is not None and len(self._weights) != len(classes):
            raise ValueError(f"there are {len(self._weights)} weights for {len(classes)} cells with a class")
        self._starts, self._cells = _index(classes, len(self._weights))
        sizes = np.diff(self._starts)
        first = np.zeros(len(self._starts), np.int64)
        np.cumsum(-(-sizes // BLOCK), out=first[1:])
        self._first = first
        self._sums = _NO_WEIGHTS
        drawable = sizes > 0
        if weights is not None:
            self._sums = block_sums(self._starts, self._cells, self._weights, first)
            drawable[drawable] = self._sums[first[1:][drawable] - 1] > 0
        self._mass = np.cumsum(_class_mass(class_mass, drawable))

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that the stream depends on."""
        digest = hashlib.blake2b(f"weighted {self.num_samples} {self.seed}".encode(), digest_size=16)
        for array in (self._mass, self._starts, self._cells, self._weights):
            digest.update(array.data)
        return digest.hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows drawn at positions ``[start, stop)``."""
        _check_range(start, stop, self.num_samples)
        out = np.empty(stop - start, np.int64)
        draw_weighted(
            derive_key(self.seed, epoch),
            start,
            self._mass,
            self._starts,
            self._cells,
            self._weights,
            self._first,
            self._sums,
            out,
        )
        return out


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A sampler over ``len(rows)`` cells, whose draws are looked up in ``rows``."""

    sampler: Sampler
    """Draws numbers in [0, len(rows))."""
    rows: NDArray[np.int64]
    """The row numbers that it stands for."""

    @property
    def num_samples(self) -> int:
        """Draws in one epoch."""
        return self.sampler.num_samples

    @cached_property
    def fingerprint(self) -> str | None:
        """Digest of the sampler's own fingerprint and of the rows; None where it has none."""
        own = getattr(self.sampler, "fingerprint", None)
        if own is None:
            return None
        return hashlib.blake2b(own.encode() + np.ascontiguousarray(self.rows).data, digest_size=16).hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at positions ``[start, stop)``."""
        return self.rows[self.sampler.draw(epoch, start, stop)]


def _positive(n: int, name: str) -> int:
    if n < 1:
        raise ValueError(f"{name} must be 1 or more, not {n}")
    return int(n)


def _check_range(start: int, stop: int, num_samples: int) -> None:
    if not 0 <= start <= stop <= num_samples:
        raise IndexError(f"positions [{start}, {stop}) are not all in an epoch of {num_samples} draws")


def _non_negative(values: ArrayLike, what: str, of: str) -> NDArray[np.float64]:
    array = np.ascontiguousarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{what}s must be a one-dimensional array with at least one entry, not of shape {array.shape}")
    valid = np.isfinite(array) & (array >= 0)
    if not valid.all():
        at = int(np.argmin(valid))
        raise ValueError(f"the {what} of {of} {at} is {array[at]}; {what}s must be finite and 0 or more")
    return array


def _index(classes: NDArray[np.integer] | None, n: int) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """Where each class begins in the class index, and the index; empty for a single class of all cells in order."""
    if classes is None:
        return np.array([0, n], np.int64), _NO_CELLS
    sizes = np.bincount(classes[classes >= 0])
    if not len(sizes):
        raise ValueError("no cell has a class: every code is -1")
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    cells = np.empty(starts[-1], np.int32 if len(classes) <= np.iinfo(np.int32).max else np.int64)
    class_index(classes, starts, cells)
    return starts, cells


def _class_mass(class_mass: ArrayLike | None, drawable: NDArray[np.bool_]) -> NDArray[np.float64]:
    if not drawable.any():
        raise ValueError("all weights are zero: no cell could ever be drawn")
    if class_mass is None:
        return drawable.astype(np.float64)
    mass = _non_negative(class_mass, "mass", "class")
    if not mass.any():
        raise ValueError("all class masses are zero: no cell could ever be drawn")
    padded = np.zeros(max(len(mass), len(drawable)), np.float64)
    padded[: len(mass)] = mass
    if len(mass) < len(drawable):
        raise ValueError(f"there are {len(mass)} class masses for {len(drawable)} classes")
    empty = np.flatnonzero((padded[: len(mass)] > 0) & ~np.pad(drawable, (0, len(mass) - len(drawable))))
    if len(empty):
        raise ValueError(f"class {empty[0]} has mass {mass[empty[0]]} but no cell that can be drawn; give it mass 0")
    return mass[: len(drawable)]
