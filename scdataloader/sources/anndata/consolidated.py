"""Consolidated metadata of zarr: copies of the metadata of all arrays, used instead of those of the arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zarr

from scdataloader.errors import SourceFormatError

_FILES = {2: (".zmetadata", ".zarray"), 3: ("zarr.json", "zarr.json")}
"""By format: the file of the copies, and that of an array's own metadata."""


def check_consolidated(array: zarr.Array[Any]) -> None:
    """Check that an array's own metadata state what zarr uses.

    Raises:
        SourceFormatError: they state something else, or are missing: the copies are out of date.
    """
    used, folder = array.metadata, Path(str(array.store.root))  # type: ignore[attr-defined]
    copies, own = _FILES[used.zarr_format]
    path = folder / array.path / own
    try:
        stated = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise SourceFormatError(
            f"{folder / copies} lists {array.path}, which is missing; copy or write the folder again, or rebuild the "
            "list by zarr.consolidate_metadata"
        ) from error
    if type(used).from_dict({**stated, "attributes": {}}) != type(used).from_dict({**used.to_dict(), "attributes": {}}):
        raise SourceFormatError(
            f"{folder / copies} contradicts the metadata in {array.path}; rebuild it by zarr.consolidate_metadata if "
            "the array is right, or write the folder again"
        )
