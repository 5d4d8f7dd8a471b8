"""Lightning callback that writes what a model predicts to one Parquet file, on any number of devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from scdataloader.collection.predictions import PredictionFile, column, refuse_existing

__all__ = ["PredictionWriter"]

NAME = "predictions.parquet"
"""The file in the folder of the run's logs, unless another is named."""
PROBABILITY = "_probability"
"""After the name of a label column, the column of the probabilities of the predicted labels."""

_CELLS_PER_PIECE = 65_536

Results = dict[str, NDArray[Any]]


class PredictionWriter(Callback):
    """Writes the results of ``predict_step`` to one file, a row per cell, in the order of the collection.

    The columns are ``row``, ``source`` and ``obs_name`` of each cell, and what ``predict_step`` returns: a tensor (B,)
    or (B, D), as the column "prediction", or a mapping of such tensors, each under its key. Of the mapping, ``codes``
    (B, C) become the predicted label of each label column, and ``probabilities`` {label column: (B, classes)} the
    probability of that label, under the column's name and ``_probability``; without ``codes``, the label is the most
    probable one.
    """

    def __init__(self, path: Path | None = None) -> None:
        """``path`` is the file; None is `NAME` in the folder of the run's logs."""
        self.path = path
        self._rows: list[NDArray[np.int64]] = []
        self._results: list[Results] = []
        self._n_cells = 0
        self._writer: pa.RecordBatchFileWriter | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Determine the file.

        Raises:
            FileExistsError: it exists.
        """
        folder = trainer.log_dir or trainer.default_root_dir  # a collective operation: every rank must read it
        self.path = self.path or Path(folder) / NAME
        refuse_existing(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Keep the results of a batch, and write those of many.

        Raises:
            TypeError: the results, or the batch, cannot be assigned to cells.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(batch, Mapping) and "row" in batch:
            rows = _array(batch["row"])
            own = ~_array(batch["pad"]) if "pad" in batch else np.ones(len(rows), np.bool_)
        else:  # a collate function that leaves it out: every cell once, in order, over all ranks
            first = (batch_idx * trainer.world_size + trainer.global_rank) * data.batch_size
            rows = np.arange(first, first + data.batch_size)
            own = rows < len(data.collection)
            rows = rows if trainer.world_size > 1 else rows[own]
            own = own[: len(rows)]
        results = results_of(outputs, list(data.decoders))
        wrong = [name for name, values in results.items() if len(values) != len(rows)]
        if wrong:
            n_values = len(results[wrong[0]])
            raise TypeError(f"predict_step returned {n_values:,} values of {wrong[0]!r} for {len(rows):,} cells")
        self._rows.append(rows[own])
        self._results.append({name: values[own] for name, values in results.items()})
        self._n_cells += len(rows)
        if self._n_cells >= _CELLS_PER_PIECE:
            self._write_piece(trainer.global_rank)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Put the results of all ranks together."""
        if self._rows:
            self._write_piece(trainer.global_rank)
        if self._writer is not None:
            self._writer.close()
        trainer.strategy.barrier("predictions of all ranks")
        if trainer.is_global_zero and self._writer is not None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            with PredictionFile(self._target, data.collection) as file:
                for rows, results in _merged(parts):
                    file.write(rows, _labelled(results, data.decoders))
            for part in parts:
                part.unlink()

    @property
    def _target(self) -> Path:
        if self.path is None:
            raise RuntimeError("the file is determined by on_predict_start")
        return self.path

    def _part(self, rank: int) -> Path:
        return self._target.with_name(f"{self._target.name}.rank{rank}.partial")

    def _write_piece(self, rank: int) -> None:
        """Write what is kept. All ranks do this after the same number of batches."""
        names = self._results[0]
        columns = {name: column(np.concatenate([results[name] for results in self._results])) for name in names}
        piece = pa.record_batch({"row": pa.array(np.concatenate(self._rows)), **columns})
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._part(rank), piece.schema)
        self._writer.write_batch(piece)
        self._rows.clear()
        self._results.clear()
        self._n_cells = 0


def results_of(outputs: Any, labels: Sequence[str]) -> Results:
    """What ``predict_step`` returned for a batch, as {column: (B,) or (B, D) values}; labels are codes.

    Raises:
        TypeError: it is neither a tensor nor a mapping of tensors.
    """
    given = dict(outputs) if isinstance(outputs, Mapping) else {"prediction": outputs}
    given.pop("row", None)
    codes, probabilities = given.pop("codes", None), given.pop("probabilities", {})
    results: Results = {}
    for place, name in enumerate(labels):
        of_classes = _array(probabilities[name]) if name in probabilities else None
        if codes is not None:
            results[name] = _array(codes)[:, place]
        elif of_classes is not None:
            results[name] = of_classes.argmax(axis=1)
        if of_classes is not None:
            at = np.arange(len(of_classes)), np.clip(results[name], 0, of_classes.shape[1] - 1)
            results[f"{name}{PROBABILITY}"] = of_classes[at]
    wrong = [name for name, values in given.items() if not isinstance(values, torch.Tensor | np.ndarray)]
    if wrong:
        raise TypeError(
            f"predict_step must return a tensor or a mapping of tensors, a row per cell; got {wrong[0]!r} of type "
            f"{type(given[wrong[0]]).__name__}"
        )
    return results | {name: _array(values) for name, values in given.items()}


def _array(values: Any) -> NDArray[Any]:
    """Values in the memory of the host; types that NumPy lacks become float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _merged(parts: Sequence[Path]) -> Iterator[tuple[NDArray[np.int64], dict[str, pa.Array]]]:
    """Pieces of all ranks together, in the order of the rows."""
    with ExitStack() as stack:
        readers = [pa.ipc.open_file(stack.enter_context(pa.memory_map(str(part)))) for part in parts]
        for number in range(readers[0].num_record_batches):
            table = pa.Table.from_batches([reader.get_batch(number) for reader in readers]).sort_by("row")
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            yield columns.pop("row").to_numpy(), columns


def _labelled(results: Mapping[str, pa.Array], decoders: Mapping[str, Mapping[int, str]]) -> dict[str, pa.Array]:
    """The results with labels instead of codes; a code below 0 is missing."""
    made = dict(results)
    for name, decoder in decoders.items():
        if name in made:
            codes = made[name].to_numpy().astype(np.int32)
            labels = [decoder[code] for code in range(len(decoder) - 1)]
            made[name] = pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(labels, pa.string()))
    return made
