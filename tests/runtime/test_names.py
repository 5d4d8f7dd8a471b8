"""Names of sources by as much of their paths as tells them apart, and patterns of them."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from scdataloader.runtime.names import distinct_names, matches, name_of


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/a.h5ad", "/d/b.h5ad"], ["a.h5ad", "b.h5ad"]),
        (["/d/x/a.h5ad", "/d/y/a.h5ad", "/d/b.h5ad"], ["x/a.h5ad", "y/a.h5ad", "b.h5ad"]),
        (["/d/x/1/a.h5ad", "/d/y/1/a.h5ad", "/d/2/a.h5ad"], ["x/1/a.h5ad", "y/1/a.h5ad", "2/a.h5ad"]),
        (["/a.h5ad", "/d/a.h5ad"], ["/a.h5ad", "d/a.h5ad"]),
        (["/d/x.h5mu/mod/rna", "/d/y.h5mu/mod/rna"], ["x.h5mu/mod/rna", "y.h5mu/mod/rna"]),
        (["/d/x/s.zarr/tables/table", "/d/y/s.zarr/tables/table"], ["x/s.zarr/tables/table", "y/s.zarr/tables/table"]),
        (["AnnData", "AnnData"], ["AnnData 1", "AnnData 2"]),
    ],
)
def test_as_much_of_the_path_as_needed(paths: list[str], names: list[str]) -> None:
    found = list(map(PurePath, paths))
    assert distinct_names([name_of(path) for path in found], found) == names
    order = [2, 0, 1][: len(paths)] if len(paths) > 2 else [1, 0]
    again = distinct_names([name_of(found[i]) for i in order], [found[i] for i in order])
    if names[0] != "AnnData 1":
        assert again == [names[i] for i in order]  # whatever the order of the files


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("a.h5ad", "/d/mouse/a.h5ad", True),
        ("a*", "/d/mouse/a.h5ad", True),
        ("mouse/*", "/d/mouse/a.h5ad", True),
        ("mouse/*", "/d/mouse/deep/a.h5ad", True),
        ("*/mouse/*", "/d/mouse/a.h5ad", True),
        ("/d/mouse/a.h5ad", "/d/mouse/a.h5ad", True),
        ("house/*", "/d/mouse/a.h5ad", False),
        ("ouse/*", "/d/mouse/a.h5ad", False),
        ("mouse", "/d/mouse/a.h5ad", False),
        ("x.h5mu*", "/d/x.h5mu/mod/rna", True),
        ("rna", "/d/x.h5mu/mod/rna", True),
        ("mod/rna", "/d/x.h5mu/mod/rna", True),
    ],
)
def test_patterns(pattern: str, path: str, *, is_match: bool) -> None:
    assert matches(pattern, name_of(PurePath(path)), PurePath(path)) is is_match
