"""Cache of opened files: what it states is what the files state, whatever happens to files and cache."""

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdataloader.collection.collection import Collection
from scdataloader.errors import SourceChangedError
from scdataloader.sources import open_source
from scdataloader.sources.anndata import h5ad, opened

IDS = [f"ENSG{i:011}" for i in range(30)]
HUMAN = "NCBITaxon:9606"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the cache, which is switched on and takes files that were just written."""
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCDATALOADER_OPENED_SIZE", raising=False)
    monkeypatch.setattr(opened, "_YOUNG_NS", -(10**12))
    opened._lists.cache_clear()
    opened._bounded.cache_clear()
    opened._unusable.cache_clear()
    yield tmp_path / "cache" / "opened"
    opened._unusable.cache_clear()


def look(path):
    """Open a file and find its fingerprint, as a collection does."""
    source = open_source(path)
    assert source.fingerprint
    return source


def written(path, seed=0, ids=IDS, organisms=HUMAN, where="X", **var):
    counts = sp.csr_matrix(np.random.default_rng(seed).poisson(0.5, (12, len(ids))).astype(np.float32))
    columns = {"organism_ontology_term_id": organisms, "batch": [*"ab"] * 6}
    obs = pd.DataFrame(columns, index=[f"c{i}" for i in range(12)])
    adata = ad.AnnData(counts, obs, pd.DataFrame(var, index=ids))
    if where == "raw":
        adata.raw = adata.copy()
        adata.X = adata.X * 0.5
    if where == "dense":
        adata.X = counts.toarray()
    adata.uns["organism"] = "human"
    adata.write_h5ad(path)
    return path


@contextmanager
def counted(monkeypatch):
    """Paths of the files that are opened."""
    found, of_library = [], h5ad.opened
    with monkeypatch.context() as patch:
        patch.setattr(h5ad, "opened", lambda path: found.append(path) or of_library(path))
        yield found


def seen(source):
    rows = np.arange(source.n_obs)[::-1]
    read = source.read(rows)
    collection = Collection.open(source)
    return {
        "stated": [source.name, source.n_obs, list(source.obs_columns), source.fingerprint, source.organism],
        "matrix": [source.counts, source.is_csc, source.matrix_keys],
        "cells": read.to_scipy().toarray().tolist(),
        "obs": source.obs(["batch"])["batch"].tolist(),
        "var": source.var.index.tolist(),
        "genes": [part.genes.lut.tolist() for part in collection.parts],
        "organisms": [part.organism for part in collection.parts],
        "vocabulary": collection.vocabulary.ids,
        "fingerprint": collection.fingerprint,
    }


FILES = {
    "plain": {},
    "dense": {"where": "dense"},
    "raw": {"where": "raw"},
    "versions": {"ids": [f"{gene}.3" for gene in IDS]},
    "symbols": {"ids": ["TP53", "MYC", *(f"G{i}" for i in range(9))]},
    "column of ids": {"ids": [f"G{i}" for i in range(30)], "gene_ids": IDS},
    "antibodies": {"feature_types": ["Gene Expression"] * 28 + ["Antibody Capture"] * 2},
    "two organisms": {
        "organisms": [HUMAN] * 6 + ["NCBITaxon:10090"] * 6,
        "ids": [*IDS[:15], *(f"ENSMUSG{i:011}" for i in range(15))],
    },
    "no organism": {"organisms": "unknown"},
    "names of any script": {"ids": [*IDS, "g\u00e8ne", "\u9057\u4f1d\u5b50", ""]},
}


@pytest.mark.parametrize("kind", FILES)
def test_a_second_opening_states_the_same_without_opening_the_file(tmp_path, monkeypatch, kind):
    path = written(tmp_path / "a.h5ad", **FILES[kind])
    with monkeypatch.context() as patch:
        patch.setenv("SCDATALOADER_OPENED_SIZE", "0")
        expected = seen(open_source(path))
    assert seen(look(path)) == expected
    with counted(monkeypatch) as paths:
        source = open_source(path)
        assert source.fingerprint == expected["stated"][3]
        if kind in {"plain", "dense", "raw", "versions"}:
            Collection.open(source)
        assert not paths
    assert seen(source) == expected
    opened._lists.cache_clear()  # as in another process
    assert seen(open_source(path)) == expected


def test_options_are_part_of_the_key(tmp_path):
    path = written(tmp_path / "a.h5ad", where="raw")
    assert [open_source(path, counts=key, values="any").counts for key in ("X", "raw", "X", "auto")] == [
        "X", "raw", "X", "raw",
    ]  # fmt: skip


def test_equal_gene_lists_are_one_object_and_one_file(tmp_path, folder):
    paths = [written(tmp_path / f"{i}.h5ad", seed=i, ids=IDS if i < 4 else IDS[:20]) for i in range(6)]
    for _ in range(2):
        sources = [look(path) for path in paths]
        assert len({id(source.shared_genes.names) for source in sources}) == 2
    assert len(list(folder.glob("*.genes"))) == 2
    assert len({id(part.genes) for part in Collection.open(paths).parts}) == 2


def test_a_file_that_was_written_again_is_opened_again(tmp_path):
    path, other = written(tmp_path / "a.h5ad", seed=1), written(tmp_path / "b.h5ad", seed=2)
    first = look(path)
    before = path.stat()
    with path.open("r+b") as file:  # the same size, time of change and inode
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_ino) == (before.st_size, before.st_ino)
    assert open_source(path).fingerprint == open_source(other).fingerprint != first.fingerprint
    shutil.copy2(written(tmp_path / "c.h5ad", seed=3), tmp_path / "moved")
    (tmp_path / "moved").replace(path)
    assert open_source(path).fingerprint == open_source(tmp_path / "c.h5ad").fingerprint


def test_a_source_from_the_cache_notices_that_its_file_changes(tmp_path):
    path = written(tmp_path / "a.h5ad")
    look(path)
    source = look(path)
    written(path, seed=5, ids=IDS[:9])
    with pytest.raises(SourceChangedError, match=r"a\.h5ad"):
        source.read(np.array([0]))


def test_a_file_that_was_just_written_is_not_kept(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(opened, "_YOUNG_NS", 10**12)
    look(written(tmp_path / "a.h5ad"))
    assert not folder.exists()


def test_a_file_with_values_in_another_is_not_kept(tmp_path, folder):
    path, other = written(tmp_path / "a.h5ad"), written(tmp_path / "b.h5ad")
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink(other.name, "/X")
    assert look(path).n_obs == 12
    assert not folder.exists()


@pytest.mark.parametrize("damage", [lambda _: b"", lambda content: content[: len(content) // 2], lambda _: b"{}"])
@pytest.mark.parametrize("suffix", ["facts", "genes"])
def test_a_damaged_entry_is_ignored_and_written_again(tmp_path, folder, monkeypatch, suffix, damage):
    path = written(tmp_path / "a.h5ad")
    expected = open_source(path).fingerprint
    (entry,) = folder.glob(f"*.{suffix}")
    content = entry.read_bytes()
    entry.write_bytes(damage(content))
    opened._lists.cache_clear()  # as in another process
    opened._lists_written.cache_clear()
    assert open_source(path).fingerprint == expected
    assert entry.read_bytes() == content
    with counted(monkeypatch) as paths:
        open_source(path)
    assert not paths


def test_a_folder_that_cannot_be_written_is_reported_once(tmp_path, folder, caplog):
    folder.parent.mkdir()
    folder.write_text("a file")
    paths = [written(tmp_path / f"{i}.h5ad", seed=i) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        assert len(Collection.open(paths)) == 36
    (record,) = [record for record in caplog.records if "opened" in record.getMessage()]
    assert "set SCDATALOADER_CACHE" in record.getMessage()


def test_a_size_of_0_switches_it_off(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("SCDATALOADER_OPENED_SIZE", "0")
    look(written(tmp_path / "a.h5ad"))
    assert not folder.exists()
    monkeypatch.setenv("SCDATALOADER_OPENED_SIZE", "small")
    with pytest.raises(ValueError, match="SCDATALOADER_OPENED_SIZE is 'small'"):
        open_source(tmp_path / "a.h5ad")


def test_the_oldest_files_are_removed(tmp_path, folder, monkeypatch):
    folder.mkdir(parents=True)
    for number in range(8):
        (folder / f"{number}.facts").write_bytes(bytes(300_000))
        os.utime(folder / f"{number}.facts", (number, number))
    monkeypatch.setenv("SCDATALOADER_OPENED_SIZE", "1.1MB")
    look(written(tmp_path / "a.h5ad"))
    assert sorted(path.name for path in folder.iterdir() if len(path.name) < 10) == ["5.facts", "6.facts", "7.facts"]


def test_several_writers_leave_whole_entries(tmp_path, folder, monkeypatch):
    paths = [written(tmp_path / f"{i}.h5ad", seed=i) for i in range(4)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda at: open_source(paths[at % 4]).fingerprint, range(32)))
    assert [path.suffix for path in folder.iterdir() if path.suffix == ".partial"] == []
    opened._lists.cache_clear()
    with counted(monkeypatch) as again:
        assert [open_source(path).fingerprint for path in paths] == found[:4]
    assert not again
