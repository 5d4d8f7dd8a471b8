"""Samplers: the order in which cells are drawn, as pure functions of (seed, epoch, position).

A sampler reads no data, keeps no generator and stores nothing of the length of an epoch. The random bits of a draw are
a counter-based function of its position, so any part of any epoch can be drawn independently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scdataloader.kernels.draws.blocks import permute_blocks
from scdataloader.kernels.draws.classes import first_invalid
from scdataloader.kernels.draws.random import derive_key, permute_range, seed_of
from scdataloader.labels.encoder import LabelEncoder, label_text
from scdataloader.protocols import DrawsSets, HasFingerprint, HasWindow, Sampler
from scdataloader.runtime.messages import suggestion
from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.draws import NO_WEIGHTS, BlockDraws, Draws, IndependentDraws, QuotaDraws
from scdataloader.sampling.rows import Rows

__all__ = ["SequentialSampler", "ShuffleSampler", "Subset", "WeightedSampler"]

AFTER_CURRICULUM = 1 << 31
"""An epoch after the end of any curriculum."""

_BLOCKS_TOGETHER = 512
_DRAWS_IN_DIGEST = 16_384


class SequentialSampler:
    """Rows 0, 1, … n - 1, the same in every epoch."""

    def __init__(self, n: int) -> None:
        """Number ``n`` cells in order."""
        self.num_samples = positive(n, "n")
        self.fingerprint = f"sequential {n}"

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:  # noqa: ARG002
        """Rows ``start`` to ``stop - 1``."""
        check_range(start, stop, self.num_samples)
        return np.arange(start, stop, dtype=np.int64)


class ShuffleSampler:
    """Every row of [0, n) exactly once per epoch, in a new random order each epoch; no order is stored.

    Args:
        n: Cells.
        seed: Seed of the stream.
        block_size: Neighbouring cells drawn as a unit; blocks begin at different cells in each epoch.
        window: Draws over which the draws of a block are spread evenly, a multiple of ``block_size``; None is 512
            blocks.
    """

    def __init__(self, n: int, *, seed: int = 0, block_size: int = 1, window: int | None = None) -> None:
        self.num_samples = positive(n, "n")
        self.seed = seed_of(seed)
        self.block_size = positive(block_size, "block_size")
        self.window = _window(window, block_size)
        self.fingerprint = f"shuffle 2 {n} {self.seed}" + (f" {block_size} {self.window}" if self.window else "")

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at positions ``[start, stop)``, by a keyed permutation of the positions."""
        check_range(start, stop, self.num_samples)
        out = np.empty(stop - start, np.int64)
        key = derive_key(self.seed, epoch)
        if self.window is None:
            permute_range(key, self.num_samples, start, out)
        else:
            stride = self.window // self.block_size
            permute_blocks(key, self.num_samples, self.block_size, stride, start, out)
        return out


class WeightedSampler:
    """Weighted draws: cell i of class c with probability ``W_c / sum(W) * w_i / sum of w in c``.

    W are class weights and w cell weights. Every single draw has these probabilities, whatever the options; without
    classes they are ``w_i / sum(w)``.

    Args:
        weights: (n,) weight of each cell, 0 or more; None: all equal. float32 and float64 arrays are used in place,
            memory maps included; other numbers are copied.
        classes: (n,) class of each cell: integer codes, -1 for cells that are never drawn; or labels, such as strings
            or a categorical, whose codes are their places in sorted order, and -1 for unknown ones; or a `ClassIndex`;
            None: one class.
        class_weights: (K,) weight of each class, 0 or more, in the order of the codes; or {label: weight} for classes
            given as labels, 0 for labels that it lacks; None: equal for all classes that have cells.
        num_samples: Draws in one epoch.
        seed: Seed of the stream.
        replacement: Whether draws are independent. Otherwise, with classes, each class gets ``num_samples * p_c`` draws
            of an epoch to within one, and uses up its cells before any repeats, then in a new order; without classes no
            cell repeats.
        block_size: Neighbouring cells drawn as a unit: a block by the sum of its weights, then as many draws of its
            cells, spread over a window.
        window: Draws over which the draws of a block are spread evenly, a multiple of ``block_size``; None is 512
            blocks. A batch of up to ``window / block_size`` draws never has two of one block.
        curriculum_epochs: Epochs over which class weights change from nearly uniform to ``class_weights``; see
            `curriculum_weights`.

    Raises:
        ValueError: a weight is negative, infinite or NaN (the first is named), all are zero, lengths differ, a class
            with a weight has no cell that can be drawn, there are too few cells for draws without replacement, or
            options exclude each other.
    """

    def __init__(  # noqa: PLR0913 (one per line of the docstring; all but one have a default)
        self,
        weights: ArrayLike | None = None,
        *,
        classes: ArrayLike | ClassIndex | None = None,
        class_weights: ArrayLike | Mapping[Any, float] | None = None,
        num_samples: int,
        seed: int = 0,
        replacement: bool = True,
        block_size: int = 1,
        window: int | None = None,
        curriculum_epochs: int = 0,
    ) -> None:
        if weights is None and classes is None:
            raise ValueError("a weighted sampler needs weights, classes or both; without either, use ShuffleSampler")
        self.num_samples = positive(num_samples, "num_samples")
        self.seed = seed_of(seed)
        self.replacement = replacement
        self.block_size = positive(block_size, "block_size")
        self.window = _window(window, block_size)
        self.curriculum_epochs = curriculum_epochs
        codes, labels = _coded(classes)
        self._draws = self._make_draws(NO_WEIGHTS if weights is None else _non_negative(weights, "cell"), codes)
        if isinstance(class_weights, Mapping):
            class_weights = _in_order(class_weights, labels)
        self._class_weights = _class_weights(class_weights, self._draws.drawable)
        self._prepared: tuple[float, Any] | None = None

    def _make_draws(self, weights: NDArray[np.floating], classes: NDArray[np.integer] | ClassIndex | None) -> Draws:
        n_cells = classes.n_cells if isinstance(classes, ClassIndex) else len(weights if classes is None else classes)
        if len(weights) not in {0, n_cells}:
            raise ValueError(f"got {len(weights)} weights for {n_cells} cells with a class; give one per cell")
        if self.window is not None:
            if not self.replacement or isinstance(classes, ClassIndex):
                raise ValueError(
                    f"blocks of {self.block_size} cells need replacement=True, and classes as one code per cell"
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
                "draws without replacement use up all cells of a class before any repeats, so weights within a class "
                "have no effect; give classes or weights, or draw with replacement"
            )
        return QuotaDraws(index, weights, self.num_samples)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of everything that the stream depends on."""
        options = (self.num_samples, self.seed, self.replacement, self.block_size, self.window, self.curriculum_epochs)
        kind = "weighted" if self.replacement else "quotas 2"
        digest = hashlib.blake2b(f"{kind} {options}".encode(), digest_size=16)
        for array in (self._class_weights, *self._draws.arrays):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows drawn at positions ``[start, stop)``."""
        check_range(start, stop, self.num_samples)
        out = np.empty(stop - start, np.int64)
        self._draws.draw(self._tables(epoch), derive_key(self.seed, epoch), start, out)
        return out

    def _tables(self, epoch: int) -> Any:
        """Look-up tables of an epoch, rebuilt when the class weights change."""
        exponent = _exponent(epoch, self.curriculum_epochs)
        prepared = self._prepared  # one read: another thread may be in another epoch
        if prepared is None or prepared[0] != exponent:
            weights = curriculum_weights(self._class_weights, epoch, self.curriculum_epochs)
            self._prepared = prepared = (exponent, self._draws.tables(weights))
        return prepared[1]


def curriculum_weights(weights: NDArray[np.float64], epoch: int, curriculum_epochs: int) -> NDArray[np.float64]:
    """``(K,)`` class weights in an epoch: ``weights ** min(1, (epoch + 1) / curriculum_epochs)``, scaled to sum to 1.

    Zero stays zero; with 0 ``curriculum_epochs`` there is no curriculum.
    """
    raised = weights ** _exponent(epoch, curriculum_epochs)
    return np.asarray(raised / raised.sum(), np.float64)


def _exponent(epoch: int, curriculum_epochs: int) -> float:
    return min(1.0, (epoch + 1) / curriculum_epochs) if curriculum_epochs else 1.0


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A sampler of some rows of a collection."""

    sampler: Sampler
    """Draws indices into ``rows``."""
    rows: Rows | NDArray[np.int64]
    """``(n,)`` row numbers in the collection."""

    @property
    def num_samples(self) -> int:
        """Draws in one epoch."""
        return self.sampler.num_samples

    @property
    def window(self) -> int | None:
        """Draws over which blocks are spread; None without blocks."""
        return self.sampler.window if isinstance(self.sampler, HasWindow) else None

    @property
    def set_size(self) -> int:
        """Cells of a set; 1 for single cells."""
        return self.sampler.set_size if isinstance(self.sampler, DrawsSets) else 1

    @property
    def n_controls(self) -> int:
        """Cells at the end of each set that are controls."""
        return self.sampler.n_controls if isinstance(self.sampler, DrawsSets) else 0

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the fingerprint of the sampler and of the rows; see `stream_fingerprint` if it has none."""
        if not isinstance(self.sampler, HasFingerprint):
            return _digest_of_draws(self)
        digest = hashlib.blake2b(self.sampler.fingerprint.encode(), digest_size=16)
        for rows in self.rows.steps() if isinstance(self.rows, Rows) else [self.rows]:
            digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Rows at positions ``[start, stop)``."""
        return self.rows.take(self.sampler.draw(epoch, start, stop))


def stream_fingerprint(sampler: Sampler) -> str:
    """The fingerprint of a sampler; of one without, a digest of its first draws in epoch 0."""
    return sampler.fingerprint if isinstance(sampler, HasFingerprint) else _digest_of_draws(sampler)


def _digest_of_draws(sampler: Sampler) -> str:
    first = sampler.draw(0, 0, min(_DRAWS_IN_DIGEST, sampler.num_samples))
    return hashlib.blake2b(np.ascontiguousarray(first, "<i8").data).hexdigest()


def positive(n: int, name: str) -> int:
    """A number of things.

    Raises:
        ValueError: it is below 1.
    """
    if n < 1:
        raise ValueError(f"{name} must be 1 or more, not {n}")
    return int(n)


def check_range(start: int, stop: int, num_samples: int) -> None:
    """Check positions ``[start, stop)`` of an epoch.

    Raises:
        IndexError: they are not within the epoch.
    """
    if not 0 <= start <= stop <= num_samples:
        raise IndexError(f"positions [{start}, {stop}) are not within an epoch of {num_samples} draws")


def _window(window: int | None, block_size: int) -> int | None:
    """The window of blocks, checked; None for single cells."""
    if block_size == 1:
        if window is not None:
            raise ValueError(f"window={window} applies to blocks, but block_size is 1")
        return None
    if window is None:
        return _BLOCKS_TOGETHER * block_size
    if window < 1 or window % block_size:
        raise ValueError(f"window must be a multiple of block_size={block_size} draws, not {window}")
    return window


def _non_negative(values: ArrayLike, what: str) -> NDArray[np.floating]:
    array = np.ascontiguousarray(values)
    if array.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
        array = array.astype(np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{what} weights must be one-dimensional with at least one entry, not of shape {array.shape}")
    at = first_invalid(array)
    if at >= 0:
        raise ValueError(f"the weight of {what} {at} is {array[at]}; weights must be finite and 0 or more")
    return array


def _coded(classes: Any) -> tuple[NDArray[np.integer] | ClassIndex | None, tuple[str, ...]]:
    """Classes as integer codes, and the label of each code if they were given as labels."""
    if classes is None or isinstance(classes, ClassIndex):
        return classes, ()
    if isinstance(classes, np.ndarray) and classes.dtype.kind in "iu":
        return classes, ()
    labels = pd.Series(classes)
    if pd.api.types.is_integer_dtype(labels.dtype):
        return labels.fillna(-1).to_numpy(np.int64), ()
    if pd.api.types.is_float_dtype(labels.dtype):
        raise TypeError(f"classes must be integer codes or labels, not numbers of dtype {labels.dtype}")
    encoder = LabelEncoder.fit("classes", [labels])
    return encoder.encode(labels), encoder.classes


def _in_order(weights: Mapping[Any, float], labels: tuple[str, ...]) -> list[float]:
    """Weights of labels in the order of their codes."""
    weight_of = {label_text(label): weight for label, weight in weights.items()}
    unknown = [label for label in weight_of if label not in labels]
    if unknown:
        hint = suggestion(unknown[0], labels) if labels else "for classes given as codes, give one weight per code"
        raise KeyError(f"class_weights names the class {unknown[0]!r}, which no cell has; {hint}")
    return [weight_of.get(label, 0.0) for label in labels]


def _class_weights(class_weights: ArrayLike | None, drawable: NDArray[np.bool_]) -> NDArray[np.float64]:
    if not drawable.any():
        raise ValueError("all weights are zero: no cell can be drawn")
    if class_weights is None:
        return drawable.astype(np.float64)
    weights = _non_negative(class_weights, "class").astype(np.float64)
    if not weights.any():
        raise ValueError("all class weights are zero: no cell can be drawn")
    n = len(drawable)
    if len(weights) < n:
        raise ValueError(f"got {len(weights)} class weights for {n} classes; give one per class")
    has_cells = np.zeros(len(weights), np.bool_)
    has_cells[:n] = drawable
    empty = np.flatnonzero((weights > 0) & ~has_cells)
    if len(empty):
        first = empty[0]
        raise ValueError(f"class {first} has weight {weights[first]} but no cell that can be drawn; give it weight 0")
    return weights[:n]
