"""HDF5 datasets: whether their values can be decoded, and are where a file says that they are.

HDF5 reads zeros, without an error, where a file that a dataset takes its values from is missing or too short.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import h5py

from scdataloader.errors import SourceFormatError

RESTORE = "restore it where the file expects it, or write the data into one file"
"""End of the advice on what is expected in another file."""
_MOST_LINKS = 8
"""Links that are followed one after the other; more are a circle."""


def link_target(group: h5py.Group, name: str) -> str | None:
    """Where the link ``name`` points, for a message; None for an ordinary member."""
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return f"{link.path} in {link.filename}"
    return str(link.path) if isinstance(link, h5py.SoftLink) else None


def linked_files(group: h5py.Group, names: Iterable[str]) -> set[Path]:
    """Other files that members of a group, or parts of them, are in; without those that cannot be opened."""
    found: set[Path] = set()
    for name in names:
        _add_files(group, name, found, _MOST_LINKS)
    return found - {Path(group.file.filename).absolute()}


def _add_files(group: h5py.Group, name: str | bytes, found: set[Path], depth: int) -> None:
    with suppress(KeyError, OSError):  # it may lead nowhere, and not be needed
        node = group[name]
        found.add(Path(node.file.filename).absolute())
        if isinstance(node, h5py.Dataset):
            found.update(_files_of_values(node.id))
            return
        links: list[tuple[bytes, int]] = []
        node.id.links.visit(lambda below, info: links.append((below, info.type)), info=True)
        for below, kind in links:
            if kind != h5py.h5l.TYPE_HARD:
                if depth:
                    _add_files(node, below, found, depth - 1)
            elif isinstance(member := h5py.h5o.open(node.id, below), h5py.h5d.DatasetID):
                found.update(_files_of_values(member))


def _files_of_values(opened: h5py.h5d.DatasetID) -> Iterator[Path]:
    """The other files that a virtual dataset, or one with external storage, takes its values from."""
    created = opened.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL:
        dataset = h5py.Dataset(opened)
        for source in dataset.virtual_sources():
            places = _places(dataset, source.file_name, "HDF5_VDS_PREFIX") if source.file_name != "." else ()
            yield from islice((path.absolute() for path in places if path.is_file()), 1)
    for at in range(created.get_external_count()):
        yield _external_path(os.fsdecode(created.get_external(at)[0])).absolute()


def check_dataset(dataset: h5py.Dataset) -> None:
    """Check that the values of a dataset can be read.

    Raises:
        SourceFormatError: they are references, a filter is not available, or a file that holds values is missing or
            too short.
    """
    if any(map(h5py.check_ref_dtype, [dataset.dtype, *(kind for kind, *_ in (dataset.dtype.fields or {}).values())])):
        raise SourceFormatError(
            f"{_name(dataset)} holds HDF5 references, expected values; write the values that they refer to"
        )
    if dataset.is_virtual:
        for source in dataset.virtual_sources():
            _check_source(dataset, source)
    elif dataset.external:
        _check_external(dataset)
    elif dataset.size and not _is_written(dataset):
        raise SourceFormatError(f"{_name(dataset)} was never written; download or write the file again")
    else:
        _check_filters(dataset)


def filters(dataset: h5py.Dataset) -> list[tuple[int, str]]:
    """(number, name) of the filters in the order of writing."""
    created = dataset.id.get_create_plist()
    found = (created.get_filter(i) for i in range(created.get_nfilters()))
    return [(number, name.decode(errors="replace")) for number, _, _, name in found]


def is_plain(dataset: h5py.Dataset) -> bool:
    """Whether values, or their chunks, are where HDF5 states it in ``dataset.file``, in the bytes of the dtype."""
    return (
        dataset.file.userblock_size == 0
        and not dataset.is_virtual
        and not dataset.external
        and dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
    )


def _name(dataset: h5py.Dataset) -> str:
    return f"{dataset.file.filename}: {str(dataset.name).lstrip('/')}"


def _is_written(dataset: h5py.Dataset) -> bool:
    """Whether any value has been written; the others are the fill value, usually 0."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size())
    first = dataset.id.get_chunk_info_by_coord((0,) * dataset.ndim)  # all chunks are counted only if it is missing
    return first.byte_offset is not None or dataset.id.get_num_chunks() > 0


def _check_filters(dataset: h5py.Dataset) -> None:
    for number, name in filters(dataset):
        if h5py.h5z.filter_avail(number):
            continue
        with suppress(ImportError):
            import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(number):
            raise SourceFormatError(
                f"{dataset.file.filename} is compressed with the HDF5 filter {number} ({name or 'unnamed'}), which is "
                "not available: install hdf5plugin, or write the file with gzip or without compression"
            )


def _check_source(dataset: h5py.Dataset, source: Any) -> None:
    """Check a part of a virtual dataset, which may be virtual as well."""
    wanted = f"{source.dset_name} of {source.file_name}"
    if "%" in f"{source.file_name}{source.dset_name}":
        raise SourceFormatError(f"{_name(dataset)} is virtual, by the pattern {wanted}; {RESTORE}")
    paths = [Path(dataset.file.filename)]
    if source.file_name != ".":
        paths = [path for path in _places(dataset, source.file_name, "HDF5_VDS_PREFIX") if path.is_file()]
    if not paths:
        raise SourceFormatError(f"{_name(dataset)} is virtual, and a part of it, {wanted}, is missing; {RESTORE}")
    try:
        with h5py.File(paths[0], "r") as file:
            part = file[source.dset_name]
            check_dataset(part)
            has_all = _has_all(part, source)
    except (KeyError, OSError) as error:
        raise SourceFormatError(
            f"{_name(dataset)} is virtual, and a part of it, {wanted}, cannot be read ({error}); {RESTORE}"
        ) from error
    if not has_all:
        raise SourceFormatError(
            f"{_name(dataset)} is virtual, and a part of it, {wanted}, has fewer values than expected; {RESTORE}"
        )


def _has_all(part: h5py.Dataset, source: Any) -> bool:
    """Whether a dataset has all values that a virtual dataset takes from it."""
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        return bool(part.size == source.vspace.get_select_npoints())
    last = source.src_space.get_select_bounds()[1]
    return len(last) == part.ndim and all(at < n for at, n in zip(last, part.shape, strict=True))


def _check_external(dataset: h5py.Dataset) -> None:
    missing = dataset.size * dataset.id.get_type().get_size()
    for name, offset, size in dataset.external:
        path = _external_path(name)
        found = path.stat().st_size if path.is_file() else 0
        n_bytes = min(size, missing)
        if found < offset + n_bytes:
            raise SourceFormatError(
                f"{_name(dataset)} has its values in {path}, which has {found} bytes, expected {offset + n_bytes}; "
                f"{RESTORE}"
            )
        missing -= n_bytes


def _external_path(name: str) -> Path:
    return Path(os.environ.get("HDF5_EXTFILE_PREFIX", ""), name)


def _places(dataset: h5py.Dataset, name: str, prefix: str) -> Iterator[Path]:
    """Where HDF5 looks for a file, in its order."""
    own = Path(dataset.file.filename).absolute()
    if Path(name).is_absolute():
        yield Path(name)
        name = Path(name).name
    yield from (Path(folder, name) for folder in os.environ.get(prefix, "").split(":") if folder)
    yield from (own.parent / name, Path(name), own.resolve().parent / name)
