"""Collections of annbatch, and the folders of its predecessors, read in place: each of their datasets is a source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scdataloader.errors import SourceFormatError
from scdataloader.protocols import OpenOptions
from scdataloader.runtime.buckets import RemotePath
from scdataloader.runtime.messages import shown
from scdataloader.sources.anndata.remote import format_of_url
from scdataloader.sources.anndata.source import AnnDataSource

_NAME = re.compile(r"(?:dataset_([0-9]+)(?:\.h5ad)?|chunk_([0-9]+)\.zarr)")
_GROUP, _MARKER = "zarr.json", "annbatch-preshuffled"


def open_collections(data: Sequence[Path], options: OpenOptions) -> Iterator[AnnDataSource]:
    """Open collections; registered for folders of ``dataset_<i>``, ``dataset_<i>.h5ad`` and ``chunk_<i>.zarr``.

    Cells are in the order of the collection: dataset after dataset, by number. annbatch keeps the file that each cell
    is from in the column "src_path" of obs, and of var the gene ids alone, unless told otherwise.

    Raises:
        SourceFormatError: a dataset is missing, or the collection is unfinished; annbatch marks it at the end.
    """
    for folder in data:
        for path in _datasets(folder):
            form = format_of_url(path) if isinstance(path, RemotePath) else None
            yield AnnDataSource.open(path.absolute(), form, counts=options.counts, values=options.values)


def _datasets(folder: Path) -> list[Path]:
    """The datasets of a collection, in order."""
    named = {entry: _NAME.fullmatch(entry.name) for entry in folder.iterdir()}
    numbers = {int(found[1] or found[2]): entry for entry, found in named.items() if found}
    if missing := sorted(set(range(max(numbers, default=0) + 1)) - set(numbers)):
        raise SourceFormatError(
            f"{folder} has no dataset {shown(missing)}, expected 0 to the last of a collection; copy or write it "
            "again, or name the datasets one by one"
        )
    datasets = [numbers[number] for number in range(len(numbers))]
    if datasets[0].suffix == "" and _encoding(folder / _GROUP) != _MARKER:
        raise SourceFormatError(
            f"{folder} is an unfinished collection of annbatch: {_GROUP} does not mark it as {_MARKER}; write it "
            f"again, or name the datasets that are complete, as {datasets[0]}"
        )
    return datasets


def _encoding(group: Path) -> str | None:
    """The encoding that the metadata of a zarr group state."""
    try:
        metadata = json.loads(group.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    found = metadata.get("attributes", {}).get("encoding-type") if isinstance(metadata, dict) else None
    return None if found is None else str(found)
