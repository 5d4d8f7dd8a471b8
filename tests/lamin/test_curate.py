"""Curating into a collection."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scdataloader as scd
from scdataloader.curation import Curator
from scdataloader.lamin import collection_folder, curate_into
from tests.curation.helpers import raw

pytestmark = pytest.mark.filterwarnings("default")  # of libraries in worker processes


@pytest.mark.slow
def test_what_is_kept_is_registered_and_what_is_new_makes_a_version(tmp_path, lamin, caplog):
    caplog.set_level("INFO", "scdataloader")
    paths = raw(tmp_path / "raw")
    curator = Curator(out=tmp_path / "out", processes=1)
    for files in (paths[:2], paths[:2], paths):
        curate_into("tests/runs", curator, files)
    said = [record.getMessage() for record in caplog.records if "lamindb:tests/runs@" in record.getMessage()]
    assert [re.search(r"\(.*new", line)[0] for line in said] == [
        "(new): 2 artifacts, 2 new",
        "(unchanged): 2 artifacts, 0 new",
        "(new): 3 artifacts, 1 new",
    ]
    assert len(scd.Collection.open("lamindb:tests/runs")) == 30


def test_a_file_that_is_refused_has_failed_in_the_report(tmp_path, lamin, monkeypatch, caplog):
    (path,) = raw(tmp_path / "raw", 1)
    monkeypatch.setattr(
        "scdataloader.lamin.register.collection.unlinkable", lambda outcomes: {str(path): "no such term"}
    )
    (outcome,) = curate_into("tests/refused", Curator(out=tmp_path / "out", processes=1), path)
    assert (outcome.status, outcome.reason) == ("failed", "curated, but not registered: no such term")
    assert outcome.reason in (tmp_path / "out" / "report.csv").read_text()
    assert f"{path} failed: {outcome.reason}" in caplog.messages


def test_the_folder_of_a_collection_is_in_the_storage(lamin):
    storage = Path(lamin.settings.storage.root_as_str)
    assert collection_folder("tests/placed") == storage / "curated" / "tests" / "placed"


@pytest.mark.parametrize("key", ["", "lamindb:a/b", "a/../b", "a//b", "/a", "a "])
def test_invalid_keys(key, tmp_path):
    with pytest.raises(ValueError, match="not a valid collection key"):
        curate_into(key, Curator(out=tmp_path), "a.h5ad")
