"""Batches of cellarium-ml: keys are the arguments of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from scdataloader.batches.base import NeedsVocabulary
from scdataloader.batches.full import csr_tensors
from scdataloader.integrations.versions import warn_untested
from scdataloader.protocols import BatchContext, Collate
from scdataloader.runtime.messages import suggestion
from scdataloader.training.config import listed
from scdataloader.training.datamodule import DataModule
from scdataloader.types import CellBatch

__all__ = ["Cellarium", "CellariumAnnDataDataModule"]


@dataclass(frozen=True, kw_only=True)
class Cellarium(NeedsVocabulary):
    """Batches for the models of cellarium-ml, which take keys by the names of their arguments.

    | key                   | value                                                                                 |
    |-----------------------|---------------------------------------------------------------------------------------|
    | ``x_ng``              | (n, g) float32 counts, a CSR tensor that the `DataModule` makes dense on the device   |
    | ``var_names_g``       | (g,) gene ids, the same array in every batch                                          |
    | ``total_mrna_umis_n`` | (n,) float32 total counts over all genes of the source                                |
    | ``row``, ``pad``      | (n,) row of the collection; on several ranks, whether the cell is a repeated one      |

    and those of ``codes`` and ``obs``. The registered name is "cellarium".

    Args:
        codes: {key: label column, or a list of them}, as in ``{"y_n": "cell_type", "batch_index_n": "donor_id"}``:
            int64 codes of the labels, (n,), or (n, d) of a list. For a key that ends in ``_n``, the labels in the order
            of their codes are under the same name with ``_categories``. The columns must be in ``labels``.
        obs: {key: column of obs}: its values, as a tensor of numbers or an array of strings.
    """

    codes: Mapping[str, list[str] | str] = field(default_factory=dict)
    obs: Mapping[str, str] = field(default_factory=dict)

    def bind(self, context: BatchContext) -> Collate:
        """The same for the vocabulary and the labels of ``context``.

        Raises:
            KeyError: a column is not among the labels.
        """
        warn_untested("cellarium-ml", "0.0.15", "0.0.15")
        codes: dict[str, list[int] | int] = {}
        categories: dict[str, NDArray[np.str_]] = {}
        for key, columns in self.codes.items():
            places = [_place(key, column, context) for column in listed("codes", columns)]
            codes[key] = places[0] if isinstance(columns, str) else places
            if isinstance(columns, str) and key.endswith("_n"):
                categories[f"{key.removesuffix('_n')}_categories"] = np.array(context.classes[columns], np.str_)
        return _Bound(
            constant={"var_names_g": np.array(context.vocabulary.ids, np.str_), **categories},
            codes=codes,
            of_obs=self.obs,
            labels=context.labels,
        )


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """`Cellarium` for a vocabulary and labels."""

    densify: ClassVar[tuple[str, ...]] = ("x_ng",)
    constant: Mapping[str, NDArray[np.str_]]
    codes: Mapping[str, list[int] | int]
    """{key: places of its columns in the labels}."""
    of_obs: Mapping[str, str]
    labels: tuple[str, ...]

    @property
    def obs(self) -> Sequence[str]:
        """Columns of obs that batches need."""
        return list(dict.fromkeys(self.of_obs.values()))

    def __call__(self, batch: CellBatch, rng: np.random.Generator) -> dict[str, Any]:  # noqa: ARG002
        """One batch.

        Raises:
            ValueError: a cell has no label in a column of ``codes``.
        """
        (x,) = csr_tensors(batch.x, max(1, len(batch)))
        made: dict[str, Any] = {"x_ng": x, **self.constant, "total_mrna_umis_n": torch.from_numpy(batch.depth)}
        for key, places in self.codes.items():
            made[key] = torch.from_numpy(batch.labels[:, places])
            self._check_known(key, places, made[key])
        for key, column in self.of_obs.items():
            values = batch.obs[column]
            made[key] = values.astype(np.str_) if values.dtype == object else torch.from_numpy(values)
        made["row"] = torch.from_numpy(batch.row)
        return made if batch.pad is None else {**made, "pad": torch.from_numpy(batch.pad)}

    def _check_known(self, key: str, places: list[int] | int, codes: torch.Tensor) -> None:
        if not (codes < 0).any():
            return
        unknown = (codes.reshape(len(codes), -1) < 0).any(0).tolist()
        of_key = places if isinstance(places, list) else [places]
        column = next(self.labels[place] for place, lacks in zip(of_key, unknown, strict=True) if lacks)
        raise ValueError(
            f"{key!r} has cells without a label in {column!r}, which models of cellarium-ml cannot take; set "
            f"unknown_classes=[{column!r}], or select cells by where= or unknown_share=0"
        )


class CellariumAnnDataDataModule(DataModule):
    """A `DataModule` under the name that ``cellarium.ml.CellariumModule`` expects in its checkpoints.

    With another name, it fails with a KeyError when a checkpoint is saved on the last batch of an epoch.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state, with the number of the epoch that ``CellariumModule`` increments; nothing here reads it."""
        return super().state_dict() | {"epoch": 0 if self.trainer is None else self.trainer.current_epoch}


def _place(key: str, column: str, context: BatchContext) -> int:
    if column not in context.labels:
        raise KeyError(
            f"codes of {key!r} need the label column {column!r}; name it in labels, or another column here: "
            f"{suggestion(column, context.labels)}"
        )
    return context.labels.index(column)
