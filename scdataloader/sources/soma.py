"""Queries of TileDB-SOMA experiments, read into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from scdataloader.protocols import OpenOptions
from scdataloader.runtime.messages import shown
from scdataloader.sources.anndata.memory import AnnDataInMemory
from scdataloader.sources.anndata.source import AnnDataSource

_LAYERS = "layers/"


def open_queries(data: Sequence[Any], options: OpenOptions) -> Iterator[AnnDataSource]:
    """Open queries; registered for objects of tiledbsoma.

    The cells of a query are read into memory, as by its ``to_anndata``. ``counts`` is "layers/<name of a layer of X>";
    "auto" is the only layer, or else "raw".

    Raises:
        TypeError: an object is not a query.
        ValueError: a query has no cells.
        KeyError: the measurement has no such layer; lists those that exist.
    """
    for query in data:
        if not isinstance(query, import_module("tiledbsoma").ExperimentAxisQuery):
            raise TypeError(f"data must be a query, such as experiment.axis_query('RNA'); got {type(query).__name__}")
        layer = _layer(query, options.counts)
        if not query.n_obs:
            raise ValueError("the query has no cells; see its obs_query, whose filters take the values of obs")
        form = AnnDataInMemory.of(query.to_anndata(layer))
        yield AnnDataSource.open(form.path, form, counts="X", values=options.values)


def _layer(query: Any, counts: str) -> str:
    """Name of the layer of X that has the counts."""
    layers = list(query.experiment.ms[query.measurement_name].X.keys())
    if counts == "auto" and len(layers) == 1:
        return str(layers[0])
    name = "raw" if counts == "auto" else counts.removeprefix(_LAYERS)
    if name not in layers:
        raise KeyError(
            f"the measurement {query.measurement_name!r} has no layer {name!r} of X; set counts to one of "
            f"{shown(_LAYERS + layer for layer in layers)}"
        )
    return name
