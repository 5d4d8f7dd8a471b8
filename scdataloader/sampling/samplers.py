"""The order in which cells are drawn: pure functions of (seed, epoch, position).

No sampler reads data, holds a generator or stores anything as long as an epoch: a draw's random bits are a
counter-based function of its position, so any stretch of any epoch can be drawn by anyone at any time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scdataloader.kernels.draws.blocks import permute_blocks
from scdataloader.kernels.draws.classes import first_invalid
from scdataloader.kernels.draws.random import derive_key, permute_range
from scdataloader.protocols import Sampler
from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.draws import NO_WEIGHTS, BlockDraws, Draws, IndependentDraws, QuotaDraws

_BLOCKS_TOGETHER = 512


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
    """Every row of [0, n) exactly once per epoch, in another random order each epoch; no order is stored.

    Args:
        n: Cells.
        seed: Names the stream.
        block_size: Neighbouring cells that are drawn as a unit; blocks begin at other cells each epoch.
        window: Draws over which the draws of a block are spread evenly, a multiple of ``block_size``; None is 512
            blocks.
    """

    def __init__(self, n: int, *, seed: int = 0, block_size: int = 1, window: int | None = None) -> None:
        self.num_samples = _positive(n, "n")
        self.seed = seed
        self.block_size = _positive(block_size, "block_size")
        self.window = _window(window, block_size)
        self.fingerprint = f"shuffle {n} {seed}" + (f" {block_size} {self.window}" if self.window else "")

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at positions ``[start, stop)``: images of the positions under a keyed permutation."""
        _check_range(start, stop, self.num_samples)
        out = np.empty(stop - start, np.int64)
        key = derive_key(self.seed, epoch)
        if self.window is None:
            permute_range(key, self.num_samples, start, out)
        else:
            stride = self.window // self.block_size
            permute_blocks(key, self.num_samples, self.block_size, stride, start, out)
        return out


class WeightedSampler:
    """Weighted draws: cell i of class c with probability ``mass_c / sum(mass) * w_i / sum of w in c``.

    Every single draw has these probabilities, whatever the options; without classes they are ``w_i / sum(w)``.

    Args:
        weights: (n,) weight of each cell, 0 or more; None: all alike. float32 and float64 are used as they lie, memory
            maps included; other numbers are copied.
        classes: (n,) class of each cell, -1 for cells never to be drawn; or a `ClassIndex`; None: one class.
        class_mass: (K,) mass of each class, 0 or more; None: the same for every class that has cells.
        num_samples: Draws in one epoch.
        seed: Names the stream.
        replacement: Whether draws are independent. Otherwise, with classes, each gets ``num_samples * p_c`` draws of an
            epoch to within one, and goes through all its cells before any comes again, in a new order; without classes
            no cell comes twice.
        block_size: Neighbouring cells that are drawn as a unit: a block by the sum of its weights, then as many draws
            of its cells, spread over a window.
        window: Draws over which the draws of a block are spread evenly, a multiple of ``block_size``; None is 512
            blocks. A batch of up to ``window / block_size`` draws never holds two of the same block.
        curriculum_epochs: Epochs over which class masses are raised from nearly uniform to what they are; see
            `curriculum_mass`.

    Raises:
        ValueError: a weight or mass is negative, infinite or NaN (the first is named), all are zero, lengths differ, a
            class with mass has no cell that can be drawn, draws without replacement ask for more than there is, or
            options exclude each other.
    """

    def __init__(  # noqa: PLR0913 (each is a line of the docstring, and has a default but one)
        self,
        weights: ArrayLike | None = None,
        *,
        classes: NDArray[np.integer] | ClassIndex | None = None,
        class_mass: ArrayLike | None = None,
        num_samples: int,
        seed: int = 0,
        replacement: bool = True,
        block_size: int = 1,
        window: int | None = None,
        curriculum_epochs: int = 0,
    ) -> None:
        if weights is None and classes is None:
            raise ValueError(
                "a weighted sampler needs weights, or classes, or both; for neither there is ShuffleSampler"
            )
        self.num_samples = _positive(num_samples, "num_samples")
        self.seed = seed
        self.replacement = replacement
        self.block_size = _positive(block_size, "block_size")
        self.window = _window(window, block_size)
        self.curriculum_epochs = curriculum_epochs
        self._draws = self._way_to_draw(
            NO_WEIGHTS if weights is None else _non_negative(weights, "weight", "cell"), classes
        )
        self._mass = _class_mass(class_mass, self._draws.drawable)
        self._prepared: tuple[float, Any] | None = None

    def _way_to_draw(self, weights: NDArray[np.floating], classes: NDArray[np.integer] | ClassIndex | None) -> Draws:
        n_cells = classes.n_cells if isinstance(classes, ClassIndex) else len(weights if classes is None else classes)
        if len(weights) not in {0, n_cells}:
            raise ValueError(f"there are {len(weights)} weights for {n_cells} cells with a class")
        if self.window is not None:
            if not self.replacement or isinstance(classes, ClassIndex):
                raise ValueError(
                    f"blocks of {self.block_size} cells are drawn with replacement, from classes given cell by cell"
                )
            codes = None if classes is None else np.asarray(classes)
            return BlockDraws(n_cells, codes, weights, self.block_size, self.window // self.block_size)
        if classes is None:
            index = ClassIndex.of_one_class(n_cells)
        else:
            index = classes if isinstance(classes, ClassIndex) else ClassIndex.of(classes)
        if self.replacement:
            return IndependentDraws(index, weights)
        if len(weights) and classes is not None:
            raise ValueError(
                "draws without replacement go through all cells of a class before any comes again, so weights within "
                "a class have no say: give classes or weights, or draw with replacement"
            )
        return QuotaDraws(index, weights, self.num_samples)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that the stream depends on."""
        options = (self.num_samples, self.seed, self.replacement, self.block_size, self.window, self.curriculum_epochs)
        digest = hashlib.blake2b(f"weighted {options}".encode(), digest_size=16)
        for array in (self._mass, *self._draws.arrays):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows drawn at positions ``[start, stop)``."""
        _check_range(start, stop, self.num_samples)
        out = np.empty(stop - start, np.int64)
        self._draws.draw(self._of_epoch(epoch), derive_key(self.seed, epoch), start, out)
        return out

    def _of_epoch(self, epoch: int) -> Any:
        """What the masses of an epoch come to, made anew when they change."""
        exponent = _exponent(epoch, self.curriculum_epochs)
        prepared = self._prepared  # one read: another thread may be at another epoch
        if prepared is None or prepared[0] != exponent:
            mass = curriculum_mass(self._mass, epoch, self.curriculum_epochs)
            self._prepared = prepared = (exponent, self._draws.prepared(mass))
        return prepared[1]


def curriculum_mass(mass: NDArray[np.float64], epoch: int, curriculum_epochs: int) -> NDArray[np.float64]:
    """``(K,)`` class masses in an epoch: ``mass ** min(1, (epoch + 1) / curriculum_epochs)``, scaled to a sum of 1.

    Zero stays zero; 0 ``curriculum_epochs`` is no curriculum.
    """
    raised = mass ** _exponent(epoch, curriculum_epochs)
    return np.asarray(raised / raised.sum(), np.float64)


def _exponent(epoch: int, curriculum_epochs: int) -> float:
    return min(1.0, (epoch + 1) / curriculum_epochs) if curriculum_epochs else 1.0


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

    @property
    def window(self) -> int | None:
        """Draws over which blocks are spread; None where there are none."""
        return getattr(self.sampler, "window", None)

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


def _window(window: int | None, block_size: int) -> int | None:
    """The window of blocks; None for single cells."""
    if block_size == 1:
        if window is not None:
            raise ValueError(f"a window of {window} draws spreads blocks, but block_size is 1")
        return None
    if window is None:
        return _BLOCKS_TOGETHER * block_size
    if window < 1 or window % block_size:
        raise ValueError(f"a window must be a multiple of block_size={block_size} draws, not {window}")
    return window


def _non_negative(values: ArrayLike, what: str, of: str) -> NDArray[np.floating]:
    array = np.ascontiguousarray(values)
    if array.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
        array = array.astype(np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{what}s must be a one-dimensional array with at least one entry, not of shape {array.shape}")
    at = first_invalid(array)
    if at >= 0:
        raise ValueError(f"the {what} of {of} {at} is {array[at]}; {what}s must be finite and 0 or more")
    return array


def _class_mass(class_mass: ArrayLike | None, drawable: NDArray[np.bool_]) -> NDArray[np.float64]:
    if not drawable.any():
        raise ValueError("all weights are zero: no cell could ever be drawn")
    if class_mass is None:
        return drawable.astype(np.float64)
    mass = _non_negative(class_mass, "mass", "class").astype(np.float64)
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
