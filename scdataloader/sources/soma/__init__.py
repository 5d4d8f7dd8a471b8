"""Experiments of TileDB-SOMA, queries of them, and the Census, read in place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.protocols import OpenOptions
from scdataloader.runtime.files import is_url, local_path
from scdataloader.runtime.messages import did_you_mean, shown, suggestion
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.soma.experiment import ExperimentFile, Joinids, explained, library, matching
from scdataloader.sources.soma.source import SomaSource

__all__ = ["SomaSource", "open_census", "open_soma"]

_PREFIX = "soma:"
_OPTIONS = ("measurement", "layer", "obs_query", "var_query", "genes", "timestamp")
_OPTION = re.compile(r"&(\w+)=(?!=)")
"""An option of an address; comparisons of a filter have another sign after the column."""
_CENSUS, _ORGANISMS = "stable", "census_data"


def open_soma(
    data: Any,
    *,
    measurement: str | None = None,
    obs_query: str | None = None,
    var_query: str | None = None,
    genes: str | None = None,
    timestamp: int | datetime | str | None = None,
    counts: str = "auto",
    values: Values = "counts",
) -> SomaSource:
    """Open an experiment of TileDB-SOMA, or a query of one; needs the extra ``soma``.

    Args:
        data: Path or URI of an experiment, an open ``tiledbsoma.Experiment``, or an ``ExperimentAxisQuery``. An open
            one can be closed afterwards.
        measurement: Name of the measurement; None for the only one, or that of the query.
        obs_query: Filter of the cells by columns of obs, such as ``"is_primary_data == True"``.
        var_query: Filter of the genes by columns of var.
        genes: Column of var that names the genes; None for "var_id", else a column of ids, else one of symbols.
        timestamp: Time as of which the experiment is read, in milliseconds or as a date; None for now, or for the time
            as of which ``data`` was opened.
        counts: "layers/<name>" for a layer of X, or "auto" for the first of raw, counts, data and the others whose
            values, in a sample, are whole numbers from 0 up.
        values: "counts" rejects values that are negative or fractions, also later while reading; "any" accepts all.

    Raises:
        FileNotFoundError: the path does not exist.
        KeyError: a measurement, layer or column does not exist; suggests the nearest ones.
        NotCountsError: the layer, or every candidate, holds values that are not counts.
        SourceFormatError: not an experiment, or it cannot be read.
        TypeError: ``data`` is nothing of these, or a query with another one.
        ValueError: the query has no cells or no genes, a filter is not valid, or there are several measurements.
    """
    soma = library()
    if isinstance(data, soma.ExperimentAxisQuery):
        if not (measurement is obs_query is var_query is timestamp is None):
            raise TypeError("an ExperimentAxisQuery selects cells, genes and measurement itself; give it alone")
        with explained("the query cannot be read; open its experiment again, or give its address"):
            ids = [data.obs_joinids().to_numpy(), data.var_joinids().to_numpy()]
        file, measurement = ExperimentFile.of(data.experiment), data.measurement_name
    else:
        file = _file(data, timestamp)
        measurement, ids = _selected(file, measurement, obs_query, var_query)
    for kind, found, query in zip(("cells", "genes"), ids, (obs_query, var_query), strict=True):
        if not len(found):
            given = "the query" if query is None else repr(query)
            raise ValueError(f"{given} selects no {kind} of {file.uri}; see which values its columns have")
    obs_ids, var_ids = map(Joinids.of, ids)
    return SomaSource(file, measurement, obs_ids, var_ids, counts=counts, values=values, genes=genes)


def open_census(
    organism: str,
    obs_value_filter: str | None = None,
    *,
    var_value_filter: str | None = None,
    census: Any = _CENSUS,
    counts: str = "layers/raw",
    values: Values = "counts",
) -> SomaSource:
    """Cells of the CELLxGENE Census.

    Args:
        organism: "Homo sapiens", "homo_sapiens" or another one of the Census.
        obs_value_filter: Filter of the cells by columns of obs.
        var_value_filter: Filter of the genes by columns of var.
        census: Version, such as "2025-01-30", which needs the package ``cellxgene_census``; path or URI of a copy; or
            an open census.
        counts: As for `open_soma`.
        values: As for `open_soma`.

    Raises:
        ModuleNotFoundError: the package is not installed, and ``census`` is a version.
        KeyError: the Census has no such organism.
        ValueError: no cell is selected.
    """
    opened = _census(census) if isinstance(census, str | PathLike) else census
    organisms = opened[_ORGANISMS]
    name = organism.strip().lower().replace(" ", "_")
    if name not in organisms:
        raise KeyError(f"the Census has no organism {organism!r}; {suggestion(name, organisms.keys())}")
    return open_soma(
        organisms[name],
        obs_query=obs_value_filter,
        var_query=var_value_filter,
        counts=counts,
        values=values,
    )


def open_experiments(data: Sequence[Any], options: OpenOptions) -> Iterator[SomaSource]:
    """Open experiments; registered for their folders, for objects of tiledbsoma, and for addresses.

    An address is "soma:<path or URI>", also with two slashes after the colon, and options:
    "?measurement=RNA&layer=raw&obs_query=<filter>&var_query=<filter>&genes=<column>&timestamp=<date or ms>".
    """
    for one in data:
        if not isinstance(one, str | PathLike):
            yield open_soma(one, counts=options.counts, values=options.values)
            continue
        address, given = _parsed(fspath(one))
        layer = given.pop("layer", None)
        counts = options.counts if layer is None else f"layers/{layer}"
        yield open_soma(address, **given, counts=counts, values=options.values)


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    """The path or URI, and the options, of an address.

    Raises:
        ValueError: an option does not exist; suggests the nearest one.
    """
    place, _, query = text.removeprefix(_PREFIX).partition("?")
    place = place.removeprefix("//") if text.startswith(_PREFIX) else place
    _, *pairs = _OPTION.split(f"&{query}" if query else "")
    given = dict(zip(pairs[::2], pairs[1::2], strict=True))
    if unknown := [name for name in given if name not in _OPTIONS]:
        hint = did_you_mean(unknown[0], _OPTIONS)
        raise ValueError(f"{text} has no option {unknown[0]!r}{hint}; the options are {', '.join(_OPTIONS)}")
    if (query and not given) or not place:
        raise ValueError(f"{text} is not an address, expected 'soma:<path or URI>?measurement=<name>&layer=<name>'")
    return place, given


def _file(data: Any, timestamp: int | datetime | str | None) -> ExperimentFile:
    if isinstance(data, str | PathLike):
        return ExperimentFile.at(fspath(data), _milliseconds(timestamp))
    if not isinstance(data, library().Experiment):
        raise TypeError(
            "data must be the address of an experiment, an Experiment, or a query, such as "
            f"experiment.axis_query('RNA'); got {type(data).__name__}"
        )
    if timestamp is not None:
        raise TypeError("an open Experiment has the time as of which it was opened; give timestamp with its address")
    return ExperimentFile.of(data)


def _selected(
    file: ExperimentFile, measurement: str | None, obs_query: str | None, var_query: str | None
) -> tuple[str, list[NDArray[np.int64]]]:
    """The measurement, and joinids of cells and genes."""
    with file.opened() as experiment:
        known = list(experiment.ms.keys())
        if measurement is None and len(known) != 1:
            raise ValueError(
                f"{file.uri} has the measurements {shown(known) or 'none'}; name one, as "
                f"'soma:{file.uri}?measurement={known[0] if known else 'RNA'}'"
            )
        name = known[0] if measurement is None else measurement
        if name not in known:
            raise KeyError(f"{file.uri} has no measurement {name!r}; {suggestion(name, known)}")
        tables = {"obs": (experiment.obs, obs_query), "var": (experiment.ms[name].var, var_query)}
        return name, [matching(table, query, f"{key} of {file.uri}") for key, (table, query) in tables.items()]


def _milliseconds(timestamp: int | datetime | str | None) -> int | None:
    """A time in milliseconds.

    Raises:
        ValueError: it is none.
    """
    if isinstance(timestamp, str) and not timestamp.isdigit():
        try:
            timestamp = datetime.fromisoformat(timestamp)
        except ValueError as error:
            raise ValueError(
                f"timestamp must be milliseconds or a date such as 2025-01-30T12:00:00Z; got {timestamp!r}"
            ) from error
    if isinstance(timestamp, datetime):
        return round(timestamp.timestamp() * 1000)
    return None if timestamp is None else int(timestamp)


def _census(census: str | PathLike[str]) -> Any:
    """A census by version, path or URI."""
    soma = library()
    text = fspath(census)
    if is_url(text) or Path(text).exists():
        with explained(f"{text} cannot be opened as a census"):
            return soma.Collection.open(text if is_url(text) else str(local_path(text)))
    try:
        package = import_module("cellxgene_census")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"version {text!r} of the Census needs the package cellxgene_census; pip install 'scdataloader[census]', "
            "or give the path or URI of a census"
        ) from error
    return package.open_soma(census_version=text)
